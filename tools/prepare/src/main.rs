//! Makes MLX ready on Linux, so that plain `cargo build`, `cargo test` and `mix compile` work: script/bootstrap and the
//! Mix compiler run it. A run that finds everything in place only looks at a few files.
//!
//! `EMLX_MLX` (`cpu`, `cuda12` or `cuda13`) picks the MLX that is loaded; `EMLX_CACHE` moves the cache. Everything is
//! linked against the CPU's MLX, whose headers and soname are those of the CUDA ones: so one NIF serves all three, and a
//! change of `EMLX_MLX` exchanges only the link `priv/native/mlx`.

mod bindings;
mod blas;
mod cache;
mod cargo_config;
mod mlxc;
mod wheel;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Context, Result};

fn main() -> ExitCode {
    if cfg!(target_os = "macos") {
        println!(
            "prepare: nothing to do: on macOS the mlx-sys crate builds MLX with Metal itself \
             (it needs Xcode's command line tools and cmake)"
        );
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("prepare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        bail!("MLX's wheels are for Linux with glibc (x86-64 and aarch64); on macOS MLX is built by mlx-sys");
    }
    let root = root()?;
    let variant = wheel::Variant::from_env()?;
    let cache = cache::Cache::open()?;

    let linked = wheel::ready(&cache, wheel::Variant::Cpu)?;
    let loaded = wheel::ready(&cache, variant)?;
    blas::exchange(&loaded)?;
    let mlxc = mlxc::ready(&cache, &root, &linked)?;

    cargo_config::write(&root, &linked, &mlxc)?;
    cache::link(&loaded, &root.join("priv/native/mlx"))
}

/// The workspace's folder: the working directory or one above it. (Where the tool was built says nothing: a checkout moves.)
fn root() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    here.ancestors()
        .find(|folder| folder.join("tools/prepare/Cargo.toml").is_file())
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not in EMLX's repository", here.display()))
}
