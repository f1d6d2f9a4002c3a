//! Installs MLX on Linux, so that plain `cargo build`, `cargo test` and `mix compile` work. script/bootstrap and the
//! Mix compiler run it. If everything is installed, a run only checks a few files.
//!
//! `EMLX_MLX` (`cpu`, `cuda12` or `cuda13`) selects the MLX that is loaded; `EMLX_CACHE` is the cache folder.
//! Everything is linked against the CPU's MLX, which has the headers and the soname of MLX for CUDA. One NIF therefore
//! works with all three, and a change of `EMLX_MLX` only replaces the link `priv/native/mlx`.

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

/// Returns the workspace's folder: the working directory or one above it. The path at build time would be wrong after a
/// checkout has moved.
fn root() -> Result<PathBuf> {
    let here = std::env::current_dir()?;
    here.ancestors()
        .find(|folder| folder.join("tools/prepare/Cargo.toml").is_file())
        .map(Path::to_path_buf)
        .with_context(|| format!("{} is not in EMLX's repository", here.display()))
}
