//! Builds mlx-c, MLX's C interface, from the sources in the mlx-sys crate against MLX's wheel, and its Rust bindings.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::bindings;
use crate::cache::{self, Cache};
use crate::wheel::Variant;

/// mlx-c uses std::format, which GCC supports from version 13.
const OLDEST_GCC: u32 = 13;

/// Returns the folder with `lib/libmlxc.a`, `include/` and `bindings.rs`. Creates it if it does not exist.
pub fn ready(cache: &Cache, root: &Path, wheel: &Path) -> Result<PathBuf> {
    let name = format!(
        "mlxc-{}-mlx-{}-{}",
        locked_version(root)?,
        Variant::Cpu.version()?,
        env::consts::ARCH
    );
    cache.entry(&name, |folder| {
        let compiler = compiler()?;
        let source = source(root)?;
        eprintln!("prepare: building mlx-c with {compiler} (half a minute)");
        build(&source, wheel, &compiler, folder)?;
        link_runtime(&compiler, &folder.join("lib"))?;
        copy_headers(&source.join("mlx/c"), &folder.join("include/mlx/c"))?;
        bindings::write(&source, &folder.join("bindings.rs"))?;
        fs::write(folder.join("compiler.txt"), compiler)?;
        Ok(())
    })
}

/// Returns the version of mlx-sys, read from the lock file because running Cargo is slow.
fn locked_version(root: &Path) -> Result<String> {
    let path = root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    lock.split_once("name = \"mlx-sys\"\nversion = \"")
        .and_then(|(_, rest)| rest.split('"').next())
        .map(str::to_owned)
        .with_context(|| format!("{} names no mlx-sys", path.display()))
}

/// Returns mlx-c's folder in the mlx-sys crate. Cargo downloads the crate if necessary.
fn source(root: &Path) -> Result<PathBuf> {
    let output = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1"])
        .current_dir(root)
        .output()
        .context("cargo does not run")?;
    if !output.status.success() {
        bail!(
            "cargo metadata failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let manifest = metadata["packages"]
        .as_array()
        .and_then(|packages| packages.iter().find(|package| package["name"] == "mlx-sys"))
        .and_then(|package| package["manifest_path"].as_str())
        .context("cargo metadata names no mlx-sys")?;
    let source = Path::new(manifest).with_file_name("src").join("mlx-c");
    if !source.join("CMakeLists.txt").is_file() {
        bail!("mlx-sys has no mlx-c in {}", source.display());
    }
    Ok(source)
}

/// Returns `CXX`, or the first g++ that is new enough.
fn compiler() -> Result<String> {
    if let Some(compiler) = env::var("CXX").ok().filter(|value| !value.is_empty()) {
        return Ok(compiler);
    }
    let found = ["g++", "g++-15", "g++-14", "g++-13"]
        .into_iter()
        .find(|compiler| {
            let output = Command::new(compiler).arg("-dumpversion").output().ok();
            let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let major =
                version.and_then(|version| version.trim().split('.').next()?.parse::<u32>().ok());
            major.is_some_and(|major| major >= OLDEST_GCC)
        });
    found.map(str::to_owned).with_context(|| {
        format!("no g++ of version {OLDEST_GCC} or newer: install one (Debian: g++-14), or set CXX to a compiler with std::format")
    })
}

fn build(source: &Path, wheel: &Path, compiler: &str, folder: &Path) -> Result<()> {
    let build = folder.join("build");
    let log = folder.join("cmake.log");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(source).arg("-B").arg(&build).args([
        "-GNinja",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_POSITION_INDEPENDENT_CODE=ON",
        "-DBUILD_SHARED_LIBS=OFF",
        // Compiling MLX's headers takes nearly all of the time: two units instead of 27 take a quarter of it.
        "-DCMAKE_UNITY_BUILD=ON",
        "-DCMAKE_UNITY_BUILD_BATCH_SIZE=14",
        "-DMLX_C_USE_SYSTEM_MLX=ON",
        "-DMLX_C_BUILD_EXAMPLES=OFF",
    ]);
    configure.arg(format!("-DCMAKE_CXX_COMPILER={compiler}"));
    configure.arg(format!(
        "-DCMAKE_PREFIX_PATH={}",
        wheel.join("mlx").display()
    ));
    run(configure, &log)?;
    let mut make = Command::new("cmake");
    make.arg("--build").arg(&build);
    run(make, &log)?;
    fs::create_dir_all(folder.join("lib"))?;
    fs::rename(build.join("libmlxc.a"), folder.join("lib/libmlxc.a"))
        .context("the build made no libmlxc.a")?;
    fs::remove_dir_all(&build)?;
    Ok(())
}

/// Links the compiler's C++ library into the archive's folder. Rust's linker, plain `cc`, may belong to another GCC,
/// and would then search elsewhere.
fn link_runtime(compiler: &str, lib: &Path) -> Result<()> {
    let output = Command::new(compiler)
        .arg("-print-file-name=libstdc++.so.6")
        .output()
        .with_context(|| format!("{compiler} does not run"))?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    // A compiler without this file prints the bare name.
    if path.is_absolute() {
        cache::link(&path, &lib.join("libstdc++.so"))?;
    }
    Ok(())
}

/// Runs a step quietly. Prints the step's output if it fails.
fn run(mut command: Command, log: &Path) -> Result<()> {
    let output = File::create(log)?;
    let status = command
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("cmake does not run: install it (Debian: cmake and ninja-build)")?;
    if !status.success() {
        eprint!("{}", fs::read_to_string(log).unwrap_or_default());
        bail!("building mlx-c failed (see above); cmake, ninja and g++ {OLDEST_GCC} or newer are needed");
    }
    Ok(())
}

/// Copies all of mlx-c's headers, including the private ones, with which EMLX's C++ code accesses MLX's arrays.
fn copy_headers(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_headers(&path, &target)?;
        } else if path.extension().is_some_and(|extension| extension == "h") {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
