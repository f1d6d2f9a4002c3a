//! What a run needs of whoever evaluates its graphs. A queue implements it; so a run can be tested without one.

use super::Whole;
use crate::base::{Device, Result};
use crate::handle::array::{Handle, Outcomes};
use crate::mlx::{self, Stream};
use crate::op::Crossed;
use mlx_rs::Array;
use rustler::ResourceArc;

/// Submits a run's graphs and reads what the run has to know before it goes on.
pub trait Evaluator {
    fn device(&self) -> Device;
    fn stream(&self) -> &Stream;
    /// Waits until it is known what became of an array that can fail late.
    fn settle(&self, array: ResourceArc<Handle>) -> Result<()>;
    /// Submits arrays in the middle of a run whose outcomes stay open. On the CPU waits for them.
    fn compute(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<()>;
    /// Evaluates on the CPU its part of what a run has built for the GPU.
    fn compute_crossed(&self, crossed: Crossed) -> Result<()>;
    /// Submits a scalar, and `state` with it, without waiting for it on the GPU.
    fn ask(&self, scalar: &Array, state: &[&Array], outcomes: &Outcomes) -> Result<Asked>;
    /// Waits for a scalar that was submitted: whether it is other than zero.
    fn answer(&self, asked: &Asked) -> Result<bool>;
    /// Single whole numbers, computed. None where one is something else.
    fn whole_numbers(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<Option<Vec<Whole>>>;
    /// Whether there is a reason to leave the thread.
    fn pressure(&self) -> Pressure;

    /// Whether a scalar is other than zero. `state` is computed with it.
    fn test(&self, scalar: &Array, state: &[&Array], outcomes: &Outcomes) -> Result<bool> {
        self.answer(&self.ask(scalar, state, outcomes)?)
    }
}

/// What a run asks before it goes on.
pub struct Pressure {
    /// Other jobs wait for the thread.
    pub waiting: bool,
    /// Nothing is to be evaluated any more.
    pub closed: bool,
    /// Nobody waits for the run's outputs.
    pub abandoned: bool,
}

/// A scalar that has been submitted, to be read later. It is given up as all nodes are.
pub struct Asked(pub Option<Array>);

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            mlx::release(own);
        }
    }
}
