//! Where there is no CUDA, no step is one of its graphs.

use super::lower::StepKernels;
use crate::base::Result;
use crate::program::engine::RunningLoop;
use mlx_rs::Array;

pub fn is_there() -> bool {
    false
}

pub fn start(_: &StepKernels, _: usize, _: &[&Array]) -> Result<Option<Box<dyn RunningLoop>>> {
    Ok(None)
}
