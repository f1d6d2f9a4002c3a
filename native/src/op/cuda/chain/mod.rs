//! Generated kernels: links on elements (a single operation's, or those of a chain) as one kernel for CUDA, whose text
//! is written here ([`text`]) and compiled when it first runs. Called by `op/elementwise.rs` for operations that MLX
//! composes of several kernels, and by the engine `chain`.

pub mod gather;
#[cfg(emlx_kernels)]
mod layout;
#[cfg(emlx_kernels)]
mod links;
#[cfg(emlx_kernels)]
mod node;
pub mod reduction;
#[cfg(all(test, emlx_kernels))]
mod tests;
#[cfg(emlx_kernels)]
mod text;

use crate::base::Result;
use crate::cpu::{Link, Links, Type};
use crate::mlx::Stream;
use mlx_rs::Array;
use smallvec::SmallVec;

/// Why there are no generated kernels here; None where there are.
pub fn unavailable() -> Option<&'static str> {
    #[cfg(emlx_kernels)]
    {
        node::unavailable()
    }
    #[cfg(not(emlx_kernels))]
    {
        Some("generated kernels are CUDA's")
    }
}

/// Whether links have a kernel: the GPU has no f64.
pub fn takes(links: &[Link]) -> bool {
    let is_taken = |link: &Link| link.from != Type::F64 && link.to != Type::F64;
    !links.is_empty() && links.iter().all(is_taken)
}

/// The results of links that [`takes`], over arrays of the GPU with elements that broadcast to `shape`. There are
/// generated kernels. Where results are joined, they are one array, of one type and with an axis, one behind the other
/// along the first axis.
pub fn results(
    links: Links,
    is_joined: bool,
    inputs: &[&Array],
    shape: &[i32],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    #[cfg(emlx_kernels)]
    {
        node::results(links, is_joined, inputs, shape, s)
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (links, is_joined, inputs, shape, s);
        Err(crate::base::Error::invalid(
            "generated kernels are not built here",
        ))
    }
}
