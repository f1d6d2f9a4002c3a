//! What is CUDA's alone.

#[cfg(emlx_kernels)]
pub mod compiler;
#[cfg(emlx_kernels)]
pub mod cusolver;
#[cfg(emlx_kernels)]
pub mod generated;
#[cfg(emlx_kernels)]
pub mod graph;
pub mod kernel;
#[cfg(emlx_kernels)]
pub mod solver;
#[cfg(emlx_kernels)]
pub mod step;
