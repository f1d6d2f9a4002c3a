//! A loop on CUDA whose step is launched as one CUDA graph: a model that generates text spends its time on launching,
//! node by node, what the GPU computes faster than that. Here a step's kernels are made ready once, with memory of
//! their own in which the state lies, and the graph of their launches is launched again and again; whether the loop
//! goes on is found on the GPU, and told to the host while the next step is on its way. [`lower`] says which kernels
//! those are, [`text`] writes them, [`cuda`] runs them.

#[cfg(not(emlx_kernels))]
mod absent;
#[cfg(emlx_kernels)]
mod cuda;
#[cfg_attr(not(emlx_kernels), allow(dead_code))]
mod lower;
#[cfg(all(test, emlx_kernels))]
mod tests;
#[cfg_attr(not(emlx_kernels), allow(dead_code))]
mod text;

#[cfg(not(emlx_kernels))]
use absent as runner;
#[cfg(emlx_kernels)]
use cuda as runner;
#[cfg(emlx_kernels)]
pub(super) use cuda::{address, computed, failed, in_rows, Gpu, Told};

use super::{Begun, LoopEngine, RunningLoop};
use crate::base::{Device, Result, Signature};
use crate::mlx;
use crate::program::build;
use crate::program::plan::Code;
use crate::program::types::Types;
use lower::{Layout, StepKernels};
use std::sync::Arc;

/// Whether loops are run so at all.
pub fn is_there() -> bool {
    runner::is_there()
}

/// The engine: a loop's two blocks.
#[derive(Debug)]
pub struct StepGraph {
    condition: Arc<Code>,
    body: Arc<Code>,
}

impl StepGraph {
    /// The engine for a loop, or why there is none. `types` are those of the loop's inputs and of the values of its
    /// blocks; without them it is known when the loop starts.
    pub fn of(
        condition: &Arc<Code>,
        body: &Arc<Code>,
        state: usize,
        types: Option<(Vec<Signature>, &Vec<Types>)>,
    ) -> std::result::Result<StepGraph, String> {
        lower::check_gain(body)?;
        if let Some((inputs, [of_condition, of_body])) =
            types.as_ref().map(|(inputs, types)| (inputs, &types[..]))
        {
            let inputs: Vec<Layout> = inputs.iter().map(Layout::in_rows).collect();
            let types = [&of_condition.values[..], &of_body.values[..]];
            StepKernels::of(condition, body, state, &inputs, types)?;
        }
        Ok(StepGraph {
            condition: condition.clone(),
            body: body.clone(),
        })
    }
}

impl LoopEngine for StepGraph {
    fn name(&self) -> &'static str {
        "CUDA graph"
    }

    fn start(&self, given: &Begun) -> Result<Option<Box<dyn RunningLoop>>> {
        let (state, inputs) = (given.state, given.inputs);
        let layouts: Vec<Layout> = inputs.iter().map(|array| Layout::of(array)).collect();
        let kernels = kernels_of(&self.condition, &self.body, state, &layouts)?;
        match kernels {
            Ok(kernels) => runner::start(&kernels, state, inputs),
            Err(_) => Ok(None),
        }
    }
}

/// The kernels of a loop's step, given what it begins with, or why there are none.
fn kernels_of(
    condition: &Code,
    body: &Code,
    state: usize,
    inputs: &[Layout],
) -> Result<std::result::Result<StepKernels, String>> {
    let types = [types_of(condition, inputs)?, types_of(body, inputs)?];
    let types = [&types[0][..], &types[1][..]];
    Ok(StepKernels::of(condition, body, state, inputs, types))
}

/// The types of the values of code that has operations alone. Numbers without a value have those of a scalar.
fn types_of(code: &Code, inputs: &[Layout]) -> Result<Vec<Signature>> {
    // Shapes and types are the same on every device, and the CPU needs no kernels for them.
    let stream = Device::Cpu.stream()?;
    let placeholders = inputs
        .iter()
        .map(|layout| mlx::zeros(&layout.shape, layout.dtype, stream));
    let placeholders = placeholders.collect::<Result<Vec<_>>>()?;
    let (values, _) = build::values(code, placeholders, Device::Cpu, stream, |_, _| {})?;
    let types = values.iter().map(|value| match value {
        Some(array) => (array.shape().to_vec(), mlx::dtype(array)),
        None => (Vec::new(), crate::base::Dtype::Bool),
    });
    let types = types.collect();
    mlx::release_all(values.into_iter().flatten().collect());
    Ok(types)
}
