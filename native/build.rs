//! Cargo's build script of the NIF crate: how the NIF is linked, so that it finds libmlx beside it, and what is in C++.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rustc-check-cfg=cfg(emlx_kernels)");
    match env::var("CARGO_CFG_TARGET_OS").as_deref() {
        Ok("linux") => {
            // priv/native/mlx has the layout of MLX's own wheel, because libmlx finds its libraries by it.
            println!("cargo:rustc-link-arg-cdylib=-Wl,-rpath,$ORIGIN/mlx/mlx/lib");
            build_kernel_nodes();
        }
        Ok("macos") => {
            // The VM itself has the NIF functions.
            println!("cargo:rustc-link-arg-cdylib=-Wl,-undefined,dynamic_lookup");
        }
        _ => {}
    }
}

/// cpp/, with the compiler and against the headers that `tools/prepare` names; `cfg(emlx_kernels)` says that it is
/// there.
fn build_kernel_nodes() {
    let key = |name: &str| {
        println!("cargo:rerun-if-env-changed={name}");
        env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `cargo run --release --package prepare`, as `mix compile` does"))
    };
    let (include, compiler) = (key("DEP_MLX_INCLUDE"), key("DEP_MLX_CXX"));
    // For the tests, which build kernels for CUDA to run on the CPU.
    println!("cargo:rustc-env=EMLX_CXX={compiler}");
    // And compare what cpp/ knows of MLX's private parts with its headers.
    println!("cargo:rustc-env=EMLX_INCLUDE={include}");
    cc::Build::new()
        .cpp(true)
        .compiler(compiler)
        .std("c++20")
        .includes(env::split_paths(&include))
        // Of MLX's headers.
        .flag("-Wno-deprecated-declarations")
        .flag("-Wno-unused-parameter")
        .flag("-Wno-unused-variable")
        .flag("-fvisibility=hidden")
        // mlx-sys links it.
        .cpp_link_stdlib(None)
        .file("cpp/buffers.cpp")
        .file("cpp/captured.cpp")
        .file("cpp/captured_step.cpp")
        .file("cpp/generated.cpp")
        .file("cpp/kernel.cpp")
        .file("cpp/solver.cpp")
        .file("cpp/stream.cpp")
        .compile("emlx_kernel_node");
    println!("cargo:rustc-cfg=emlx_kernels");
}
