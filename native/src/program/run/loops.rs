//! A loop that is being run: step by step, ahead of its condition, counted, recorded, or as one graph.

use super::frame::Frame;
use super::values::{Slot, Values};
use super::TURN;
use crate::base::{Device, Error, Result, Signature};
use crate::handle::array::Outcomes;
use crate::mlx::{self};
use crate::program::engine::{Begun, LoopPlan, RunningLoop};
use crate::program::evaluator::{Asked, Evaluator};
use crate::program::plan::Code;
use crate::program::shown;
use mlx_rs::Array;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a loop's result that may be kept beside the state of a step that runs ahead.
pub(super) const MAX_KEPT: usize = 1 << 20;

/// Operations of a counted loop's steps that are submitted together, at most.
pub(super) const MAX_TOGETHER: usize = 512;

/// A loop that is being run; the block above it on the stack is its condition or its body.
pub(super) struct Loop {
    pub(super) condition: Arc<Code>,
    pub(super) body: Arc<Code>,
    pub(super) plan: Arc<LoopPlan>,
    pub(super) state: Values,
    pub(super) captured: Values,
    pub(super) signatures: Vec<Signature>,
    pub(super) in_body: bool,
    /// The values of the state that are needed after the loop.
    pub(super) needed: Vec<bool>,
    /// Steps left until the loop runs ahead; None if it never does.
    pub(super) until_ahead: Option<usize>,
    /// Where the number of steps is known.
    pub(super) counted: Option<Counted>,
    /// Where an engine runs it.
    pub(super) running: Option<Box<dyn RunningLoop>>,
    /// Whether its engines, if there are any, have been asked.
    pub(super) is_tried: bool,
    /// Whether there is the step that the state comes from, which is not known yet, and the loop's result if there is
    /// not.
    pub(super) doubt: Option<(Asked, Values)>,
}

impl Loop {
    /// Whether the next step can be computed before it is known that there is one: it asks nobody, reads nothing and
    /// cannot fail late, and what it would be computed in vain from is small enough to be kept.
    pub(super) fn can_run_ahead(&self, outcomes: &Outcomes) -> bool {
        let kept = self.signatures.iter().zip(&self.needed);
        let bytes: usize = kept
            .filter(|(_, needed)| **needed)
            .map(|((shape, dtype), _)| {
                shape.iter().map(|n| *n as usize).product::<usize>() * dtype.size()
            })
            .sum();
        self.plan.is_plain && outcomes.is_empty() && bytes <= MAX_KEPT
    }

    /// Its state, and what it only reads.
    pub(super) fn arrays(&self) -> Result<Vec<&Array>> {
        let slots = self.state.0.iter().chain(&self.captured.0);
        slots.map(Slot::array).collect()
    }

    /// Whether an engine takes it before the first condition is known.
    pub(super) fn is_taken_first(&self) -> bool {
        let mut engines = self.plan.engines.iter();
        engines.any(|engine| engine.takes_first(&self.signatures))
    }

    /// Whether an engine is better than steps that are counted, of which there are so many.
    pub(super) fn pays(&self, steps: usize) -> bool {
        let mut engines = self.plan.engines.iter();
        !self.is_tried && engines.any(|engine| engine.min_steps() <= steps)
    }

    /// Hands the loop over to the first engine that can take it. What can fail late until here is known by then on the
    /// CPU.
    pub(super) fn try_engine(
        &mut self,
        queue: &dyn Evaluator,
        outcomes: &Outcomes,
    ) -> Result<bool> {
        self.is_tried = true;
        let inputs = self.arrays()?;
        let is_known = outcomes.is_empty() && are_available(&inputs);
        if queue.device() == Device::Cpu && !is_known {
            queue.compute(&inputs, outcomes)?;
        }
        let begun = Begun {
            condition: &self.condition,
            body: &self.body,
            state: self.state.0.len(),
            inputs: &inputs,
            stream: queue.stream(),
        };
        let mut running = None;
        for engine in &self.plan.engines {
            running = engine.start(&begun)?;
            if running.is_some() {
                break;
            }
        }
        drop(inputs);
        if running.is_none() {
            return Ok(false);
        }
        self.running = running;
        // The engine has its own.
        self.state = Values::default();
        Ok(true)
    }

    /// How many steps it takes, where its condition hangs on numbers that count by themselves.
    pub(super) fn count(
        &self,
        queue: &dyn Evaluator,
        outcomes: &Outcomes,
    ) -> Result<Option<Counted>> {
        let state = self.state.0.len();
        // Late failures are known by waiting after every step.
        let counters = self.plan.counters.as_ref();
        let Some(counters) = counters.filter(|_| outcomes.is_empty()) else {
            return Ok(None);
        };
        let slots: Vec<&Slot> = self.state.0.iter().chain(&self.captured.0).collect();
        let arrays = counters.inputs.iter().map(|input| slots[*input].array());
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let Some(given) = queue.whole_numbers(&arrays, outcomes)? else {
            return Ok(None);
        };
        let steps = counters.steps(&given);
        let number = counters.inputs.iter().copied().find(|input| *input < state);
        Ok(steps.zip(number).map(|(left, number)| Counted {
            left,
            number,
            together: 1,
            built: 0,
            since: Instant::now(),
            submitted: None,
        }))
    }

    /// Has some steps computed together: as many as take no longer than others can wait.
    pub(super) fn submit(&mut self, queue: &dyn Evaluator) -> Result<()> {
        let Some(counted) = &mut self.counted else {
            return Ok(());
        };
        counted.built += 1;
        if counted.built < counted.together {
            return Ok(());
        }
        let state = self.state.0.iter().map(Slot::array);
        let state = state.collect::<Result<Vec<_>>>()?;
        let asked = queue.ask(state[counted.number], &state, &Outcomes::new())?;
        if let Some(before) = counted.submitted.replace(asked) {
            queue.answer(&before)?;
        }
        let most = (MAX_TOGETHER / self.body.nodes.len().max(1)).max(1);
        let time = counted.since.elapsed();
        if time < TURN / 8 {
            counted.together = (counted.together * 2).min(most);
        } else if time > TURN / 2 {
            counted.together = (counted.together / 2).max(1);
        }
        counted.built = 0;
        counted.since = Instant::now();
        Ok(())
    }

    /// The state, as far as it is needed after the loop. What is not is left to be written over.
    pub(super) fn result(&self) -> Result<Values> {
        let slots = self.state.0.iter().zip(&self.needed);
        let slots = slots.map(|(slot, needed)| match needed {
            true => slot.share(),
            false => Ok(Slot::Spent),
        });
        Ok(Values(slots.collect::<Result<_>>()?))
    }

    pub(super) fn condition(&mut self) -> Result<Frame> {
        self.in_body = false;
        let mut inputs = self.state.share()?;
        inputs.0.reserve(self.condition.values);
        inputs.0.append(&mut self.captured.share()?.0);
        Ok(Frame::new(&self.condition, inputs))
    }

    /// The state moves into the body, so that MLX may write over it.
    pub(super) fn body(&mut self) -> Result<Frame> {
        self.in_body = true;
        let mut inputs = std::mem::take(&mut self.state);
        inputs.0.reserve(self.body.values);
        inputs.0.append(&mut self.captured.share()?.0);
        Ok(Frame::new(&self.body, inputs))
    }

    /// Takes over the body's outputs.
    pub(super) fn step(&mut self, state: Values) -> Result<()> {
        for (i, (slot, before)) in state.0.iter().zip(&self.signatures).enumerate() {
            let array = slot.array()?;
            if array.shape() != before.0 || mlx::dtype(array) != before.1 {
                return Err(Error::invalid(format!(
                    "value {i} of the state is {} and becomes {}; a loop keeps shapes and types",
                    shown(before),
                    shown(&slot.signature()?)
                )));
            }
        }
        self.state = state;
        Ok(())
    }
}

fn are_available(arrays: &[&Array]) -> bool {
    let lock = mlx::graph_lock();
    arrays.iter().all(|array| mlx::is_available(array, &lock))
}

/// The steps of a loop that need not be asked whether there is another one.
pub(super) struct Counted {
    pub(super) left: usize,
    /// A single number of the state, to be waited for.
    pub(super) number: usize,
    /// Steps that are submitted together, those that are built, and since when.
    pub(super) together: usize,
    pub(super) built: usize,
    pub(super) since: Instant,
    /// The number of those that were submitted last.
    pub(super) submitted: Option<Asked>,
}
