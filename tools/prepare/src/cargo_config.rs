//! Writes the workspace's `.cargo/config.toml`. It overrides mlx-sys's build script, which only supports macOS, by
//! Cargo's configuration for a crate with `links`.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{bail, Result};

use crate::cache::write_if_changed;

const MARKER: &str = "# Written by tools/prepare; a change here is lost.";

/// `wheel` is the MLX to link against, `mlxc` the folder of [`crate::mlxc::ready`].
pub fn write(root: &Path, wheel: &Path, mlxc: &Path) -> Result<()> {
    let path = root.join(".cargo/config.toml");
    if fs::read_to_string(&path).is_ok_and(|text| !text.starts_with(MARKER)) {
        bail!(
            "{} is not this tool's: move what it says to the config.toml in Cargo's home folder, or to .cargo/config.toml \
             of a folder above (Cargo merges them), and run this again",
            path.display()
        );
    }
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mlxc_lib = mlxc.join("lib");
    let mlx_lib = wheel.join("mlx/lib");
    let include = env::join_paths([wheel.join("mlx/include"), mlxc.join("include")])?;
    let compiler = fs::read_to_string(mlxc.join("compiler.txt"))?;
    let text = format!(
        r#"{MARKER}

# All other keys than rustc-* are for native/build.rs, as DEP_MLX_INCLUDE and so on.
[target.{triple}.mlx]
rustc-link-search = ["native={mlxc_lib}", "native={mlx_lib}"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = {{ OUT_DIR = "{out_dir}" }}
include = "{include}"
cxx = "{compiler}"

# `cargo test` and `cargo run` load the same libmlx as the NIF. ([env] would not do: Cargo sets this variable itself.)
[target.{triple}]
runner = ["env", "LD_LIBRARY_PATH={loaded}"]
"#,
        mlxc_lib = mlxc_lib.display(),
        mlx_lib = mlx_lib.display(),
        out_dir = mlxc.display(),
        include = include.to_string_lossy(),
        loaded = root.join("priv/native/mlx/mlx/lib").display(),
    );
    write_if_changed(&path, &text)
}
