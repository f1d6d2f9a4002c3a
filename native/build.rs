//! Cargo's build script of the NIF crate: how the NIF is linked, so that it finds libmlx beside it.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux") => {
            // priv/native/mlx has the layout of MLX's own wheel, because libmlx finds its libraries by it.
            println!("cargo:rustc-link-arg-cdylib=-Wl,-rpath,$ORIGIN/mlx/mlx/lib");
        }
        Ok("macos") => {
            // The VM itself has the NIF functions.
            println!("cargo:rustc-link-arg-cdylib=-Wl,-undefined,dynamic_lookup");
        }
        _ => {}
    }
}
