//! A loop on CUDA whose step is launched as one CUDA graph: a model that generates text spends its time on launching, node by node,
//! what the GPU computes faster than that. Here a step's kernels are made ready once, with memory of their own in which the state
//! lies, and the graph of their launches is launched again and again; whether the loop goes on is found on the GPU, and told to the
//! host while the next step is on its way. [`plan`] says which kernels those are, [`text`] writes them, [`cuda`] runs them. Called
//! by `run.rs`; None stands for loops that are run node by node.

#[cfg(not(emlx_kernels))]
mod absent;
#[cfg(emlx_kernels)]
mod cuda;
#[cfg_attr(not(emlx_kernels), allow(dead_code))]
mod plan;
#[cfg(all(test, emlx_kernels))]
mod tests;
#[cfg_attr(not(emlx_kernels), allow(dead_code))]
mod text;

#[cfg(not(emlx_kernels))]
pub use absent::Graph;
#[cfg(emlx_kernels)]
pub use cuda::Graph;
#[cfg(emlx_kernels)]
pub(super) use cuda::{failed, Gpu};

use super::types::Types;
use super::Block;
use crate::device::Device;
use crate::error::{Result, Signature};
use plan::{Given, Plan};

/// How far a loop has come.
pub enum Progress {
    /// There is no further step.
    Ended,
    /// The time is over.
    Going,
}

/// Whether a loop may be repeated so: the body has what a model computes for a token. Whether it is, [`Graph::of`] says.
pub fn is_for(body: &Block) -> bool {
    plan::is_for(body)
}

/// The plan of a loop's step, given what it begins with.
#[cfg_attr(not(emlx_kernels), allow(dead_code))]
fn plan_of(condition: &Block, body: &Block, state: usize, given: &[Given]) -> Result<Option<Plan>> {
    let signatures: Vec<Signature> = given
        .iter()
        .map(|array| (array.shape.clone(), array.dtype))
        .collect();
    // Shapes and types are the same on every device, and the CPU needs no kernels for them.
    let stream = Device::Cpu.stream()?;
    let types = |block| Types::of_block(block, &signatures, Device::Cpu, stream);
    let (of_condition, of_body) = (types(condition)?, types(body)?);
    let types = [&of_condition.values[..], &of_body.values[..]];
    Ok(Plan::of(condition, body, state, given, types))
}
