//! What is CUDA's alone.

#[cfg(emlx_kernels)]
pub mod graph;
pub mod kernel;
