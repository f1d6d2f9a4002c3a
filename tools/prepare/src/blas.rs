//! Replaces the reference BLAS and LAPACK that MLX's wheels bundle by OpenBLAS, under the same file names, so that an
//! unchanged libmlx loads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::UNIX_EPOCH;

use anyhow::{bail, Context, Result};

/// Libraries that every machine with a compiler's runtime has. They must not be loaded twice, so they are not copied.
const SYSTEM: &[&str] = &[
    "linux-vdso",
    "ld-linux",
    "libc.",
    "libm.",
    "libdl.",
    "libpthread.",
    "librt.",
    "libgcc_s.",
    "libstdc++.",
];

/// Installs OpenBLAS, or warns that it is missing. `wheel` is a folder of [`crate::wheel::ready`].
pub fn exchange(wheel: &Path) -> Result<()> {
    let Some((libraries, bundled)) = bundled(wheel)? else {
        return Ok(());
    };
    let stamp = libraries.join("blas.txt");
    let Some(openblas) = installed() else {
        if !stamp.is_file() {
            eprintln!(
                "prepare: warning: OpenBLAS is not installed, and MLX's wheel brings the reference BLAS: products of f32 \
                 matrices on the CPU are about 36 times slower (5.8 against 209 GFLOP/s at 1024x1024 on two cores). \
                 Install it (Debian: libopenblas0-pthread) and run this again"
            );
        }
        return Ok(());
    };
    let identity = identity(&openblas)?;
    if fs::read_to_string(&stamp).is_ok_and(|current| current == identity) {
        return Ok(());
    }
    let needed = needed(&openblas)?;
    for (name, path) in &needed {
        copy(path, &libraries.join(name))?;
    }
    let openblas = libraries.join(&needed[0].0);
    for file in &bundled {
        stand_in(&openblas, file)?;
    }
    fs::write(&stamp, identity)?;
    Ok(())
}

/// Returns the folder of bundled libraries, and the files of BLAS and LAPACK in it.
fn bundled(wheel: &Path) -> Result<Option<(PathBuf, Vec<PathBuf>)>> {
    for entry in fs::read_dir(wheel)? {
        let folder = entry?.path();
        if folder
            .extension()
            .is_none_or(|extension| extension != "libs")
        {
            continue;
        }
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("libblas-") || name.starts_with("liblapack-") {
                files.push(entry.path());
            }
        }
        if !files.is_empty() {
            return Ok(Some((folder, files)));
        }
    }
    Ok(None)
}

/// Returns the system's OpenBLAS, as found by the loader.
fn installed() -> Option<PathBuf> {
    // On Debian a user's PATH does not contain sbin.
    let output = ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"]
        .iter()
        .find_map(|program| Command::new(program).arg("-p").output().ok())?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    ["libopenblas.so.0 ", "libopenblasp.so.0 "]
        .iter()
        .find_map(|name| {
            let line = listing
                .lines()
                .map(str::trim)
                .find(|line| line.starts_with(name))?;
            let path = PathBuf::from(line.split_once("=> ")?.1);
            path.is_file().then_some(path)
        })
}

/// Returns an identifier of the system's OpenBLAS, which changes with an upgrade, so that the copy is updated.
fn identity(openblas: &Path) -> Result<String> {
    let metadata = fs::metadata(openblas)?;
    let changed = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
    let path = openblas.canonicalize()?;
    Ok(format!("{} {} {changed}\n", path.display(), metadata.len()))
}

/// Returns soname and file of OpenBLAS and of its dependencies other than the system's own libraries.
fn needed(openblas: &Path) -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new("ldd")
        .arg(openblas)
        .output()
        .context("ldd does not run")?;
    if !output.status.success() {
        bail!(
            "ldd {} failed: {}",
            openblas.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let name = openblas.file_name().context("OpenBLAS has no file name")?;
    let mut needed = vec![(name.to_string_lossy().into_owned(), openblas.to_path_buf())];
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Some((name, rest)) = line.trim().split_once(" => ") else {
            continue;
        };
        let path = rest.rsplit_once(" (").map_or(rest, |(path, _)| path);
        if path.starts_with("not found") {
            bail!(
                "{} needs {name}, which is not installed",
                openblas.display()
            );
        }
        if !SYSTEM.iter().any(|system| name.starts_with(system)) {
            needed.push((name.to_owned(), path.into()));
        }
    }
    Ok(needed)
}

/// Creates `file` as an empty library that depends on `openblas`, which contains BLAS and LAPACK. `mix release` copies
/// the targets of links, so with links a release would contain OpenBLAS three times.
fn stand_in(openblas: &Path, file: &Path) -> Result<()> {
    let temporary = temporary(file);
    let output = Command::new("cc")
        .args([
            "-shared",
            "-nostdlib",
            "-Wl,--no-as-needed,-z,noexecstack",
            "-o",
        ])
        .arg(&temporary)
        .arg(openblas)
        .output()
        .context("cc does not run: install a C compiler (Debian: gcc)")?;
    if !output.status.success() {
        bail!(
            "cannot link with OpenBLAS: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    fs::rename(&temporary, file).with_context(|| format!("cannot write {}", file.display()))
}

/// Replaces the file instead of overwriting it, because a VM may have mapped the old one.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let temporary = temporary(to);
    fs::copy(from, &temporary)
        .and_then(|_| fs::rename(&temporary, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn temporary(file: &Path) -> PathBuf {
    file.with_extension(format!("{}.part", process::id()))
}
