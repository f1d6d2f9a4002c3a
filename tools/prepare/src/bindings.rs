//! Generates mlx-c's Rust bindings as mlx-sys's own build script does.

use std::fs;
use std::panic;
use std::path::Path;

use anyhow::{anyhow, Context, Result};

/// The half types and their accessors, which mlx-rs uses. mlx-c's headers declare them on some processors only, so they
/// are excluded there (see below) and declared here. An accessor only reads the array's bytes, so the one for 16-bit
/// integers is linked.
const HALF_TYPES: &str = r#"
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct float16_t(pub u16);
pub type bfloat16_t = u16;
unsafe extern "C" {
    #[link_name = "mlx_array_item_uint16"]
    pub fn mlx_array_item_float16(res: *mut float16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    #[link_name = "mlx_array_item_uint16"]
    pub fn mlx_array_item_bfloat16(res: *mut bfloat16_t, arr: mlx_array) -> ::std::os::raw::c_int;
    #[link_name = "mlx_array_data_uint16"]
    pub fn mlx_array_data_float16(arr: mlx_array) -> *const float16_t;
    #[link_name = "mlx_array_data_uint16"]
    pub fn mlx_array_data_bfloat16(arr: mlx_array) -> *const bfloat16_t;
}
"#;

pub fn write(mlxc: &Path, path: &Path) -> Result<()> {
    let mut headers = Vec::new();
    for entry in fs::read_dir(mlxc.join("mlx/c"))? {
        let header = entry?.path();
        if header.extension().is_some_and(|extension| extension == "h") {
            headers.push(header.to_string_lossy().into_owned());
        }
    }
    headers.sort();
    let builder = bindgen::builder()
        .rust_target(
            "1.73.0"
                .parse()
                .map_err(|_| anyhow!("bindgen knows no Rust 1.73"))?,
        )
        .clang_arg(format!("-I{}", mlxc.display()))
        // Defining the include guard of mlx/c/half.h excludes the header.
        .clang_arg("-DMLX_HALF_H")
        .blocklist_function("malloc")
        .blocklist_function("realloc")
        .headers(headers);
    // bindgen panics without libclang.
    let bindings = panic::catch_unwind(panic::AssertUnwindSafe(|| builder.generate()))
        .map_err(|_| {
            anyhow!("libclang does not load (see above): install it (Debian: libclang-dev)")
        })?
        .context("bindgen could not read mlx-c's headers")?;
    let text = bindings.to_string() + HALF_TYPES;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
