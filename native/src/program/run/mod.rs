//! Replays programs: straight ones on the calling scheduler, all others on a queue's thread, as a stack of blocks that
//! can be left and taken up again. Called by the border and by queues.

pub mod frame;
mod loops;
mod values;

use crate::base::{Device, Error, Reason, Result, Signature};
use crate::handle::array::{outcomes_of, Handle, Outcome, Outcomes};
use crate::mlx::Stream;
use crate::program::engine::{LoopPlan, Progress};
use crate::program::evaluator::Evaluator;
use crate::program::plan::{Code, Node, Work};
use crate::program::{shown, Program};

use frame::Frame;
use loops::Loop;
use mlx_rs::Array;
use rustler::ResourceArc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use values::{Slot, Values};

/// How long a run may have a queue's thread while other jobs wait.
const TURN: Duration = Duration::from_millis(10);

enum Level {
    Block(Frame),
    Loop(Box<Loop>),
}

/// Replays a straight program. Gives its outputs, whose graph is still to be submitted.
pub fn inline(
    program: &Program,
    inputs: &[ResourceArc<Handle>],
    device: Device,
    stream: &Stream,
) -> Result<Vec<ResourceArc<Handle>>> {
    let given = inputs.iter().chain(&program.constants);
    let code = &program.plan(device)?.body;
    let mut values = Values(Vec::with_capacity(code.values));
    values.0.extend(given.clone().cloned().map(Slot::Given));
    let mut frame = Frame::new(code, values);
    frame
        .build(device, stream)
        .map_err(|error| error.within(&frame.place()))?;
    let mut outcomes = outcomes_of(given.map(|handle| &**handle));
    let mut crossed = std::mem::take(&mut frame.crossed);
    if program.can_fail_late || !crossed.is_empty() {
        let outcome = Outcome::of_call(device, stream)?;
        outcomes.push(Arc::new(outcome.crossing(crossed.take())?));
    }
    handles(frame.outputs()?, device, stream, &outcomes)
}

fn handles(
    mut values: Values,
    device: Device,
    stream: &Stream,
    outcomes: &Outcomes,
) -> Result<Vec<ResourceArc<Handle>>> {
    let handle = |slot| match slot {
        Slot::Owned(array) => {
            let handle = Handle::ready(array, device, stream.clone(), outcomes.clone());
            Ok(ResourceArc::new(handle))
        }
        // Another one, which lives on where this one is deallocated.
        Slot::Given(handle) => handle.another().map(ResourceArc::new),
        Slot::Spent => Err(Error::invalid("an output was given up")),
    };
    values.0.drain(..).map(handle).collect()
}

/// Why a run leaves the queue's thread.
pub enum Pause {
    /// These are its outputs, still to be submitted.
    Finished(Vec<ResourceArc<Handle>>),
    /// Others wait.
    Turn,
    /// The caller is asked.
    Call {
        id: u64,
        arrays: Vec<ResourceArc<Handle>>,
    },
    /// Nobody waits for it any more.
    Abandoned,
}

/// A program on its way through a queue.
pub struct Run {
    levels: Vec<Level>,
    /// What the caller gave, at first and in answer to questions, and whose late failures are still to be known.
    open: Vec<ResourceArc<Handle>>,
    /// Of this run's own late failures. It is closed with the outputs, for no step before computes all that the run
    /// built.
    pub outcomes: Outcomes,
    /// Steps that a loop takes before it runs ahead.
    run_ahead: Option<usize>,
}

impl Run {
    pub fn new(
        program: &Program,
        inputs: Vec<ResourceArc<Handle>>,
        device: Device,
        stream: &Stream,
    ) -> Result<Run> {
        let mut outcomes = Outcomes::new();
        if program.can_fail_late {
            outcomes.push(Arc::new(Outcome::of_call(device, stream)?));
        }
        let given: Vec<_> = inputs.iter().chain(&program.constants).cloned().collect();
        let values = Values(given.iter().cloned().map(Slot::Given).collect());
        let frame = Frame::new(&program.plan(device)?.body, values);
        let mut run = Run {
            levels: vec![Level::Block(frame)],
            open: Vec::new(),
            outcomes,
            run_ahead: program.options.run_ahead,
        };
        run.settle_later(given);
        Ok(run)
    }

    fn settle_later(&mut self, handles: Vec<ResourceArc<Handle>>) {
        let is_open = |handle: &ResourceArc<Handle>| !outcomes_of([&**handle]).is_empty();
        self.open.extend(handles.into_iter().filter(is_open));
    }

    /// Goes on until the end, or until there is a reason to leave the queue's thread.
    pub fn advance(&mut self, queue: &dyn Evaluator) -> Result<Pause> {
        // Late failures of what was given are its own and are known before anything is built on it.
        for handle in std::mem::take(&mut self.open) {
            queue.settle(handle)?;
        }
        loop {
            let result = self.go_on(queue);
            match result {
                Err(error) => {
                    let place = self.place();
                    match self.was_too_far(queue) {
                        Ok(true) => {}
                        _ => return Err(error.within(&place)),
                    }
                }
                result => return result,
            }
        }
    }

    fn go_on(&mut self, queue: &dyn Evaluator) -> Result<Pause> {
        let began = Instant::now();
        loop {
            let (device, stream) = (queue.device(), queue.stream());
            if matches!(self.levels.last(), Some(Level::Loop(_))) {
                match self.replay(queue)? {
                    None => continue,
                    Some(pause) => return Ok(pause),
                }
            }
            let Some(Level::Block(frame)) = self.levels.last_mut() else {
                return Err(Error::invalid("the run has no block"));
            };
            frame.build(device, stream)?;
            queue.compute_crossed(std::mem::take(&mut frame.crossed))?;
            let code = frame.code.clone();
            let Some(node) = code.nodes.get(frame.pc) else {
                let outputs = frame.outputs()?;
                self.levels.pop();
                match self.levels.last_mut() {
                    None => {
                        return handles(outputs, device, stream, &self.outcomes)
                            .map(Pause::Finished)
                    }
                    Some(Level::Block(parent)) => parent.deliver(outputs),
                    Some(Level::Loop(_)) => match self.turn(outputs, queue, began)? {
                        None => {}
                        Some(pause) => return Ok(pause),
                    },
                }
                continue;
            };
            let inputs = node.inputs.iter().flatten().copied();
            match &node.work {
                Work::Op(_) | Work::Segment(_) => {}
                Work::If { then, otherwise } => {
                    let predicate = inputs.clone().next().unwrap_or_default();
                    let predicate = frame.values.slot(predicate)?.array()?;
                    let taken = match queue.test(predicate, &[], &self.outcomes)? {
                        true => then,
                        false => otherwise,
                    };
                    let inputs = frame.values.take(inputs.skip(1), &node.spent)?;
                    self.levels.push(Level::Block(Frame::new(taken, inputs)));
                }
                Work::While {
                    condition,
                    body,
                    plan,
                } => self.begin(node, [condition, body], plan, queue)?,
                Work::Call { id, .. } => {
                    let values = frame.values.take(inputs, &node.spent)?;
                    let arrays = handles(values, device, stream, &Outcomes::new())?;
                    let refs: Vec<&Array> = arrays.iter().map(|array| array.array()).collect();
                    queue.compute(&refs, &self.outcomes)?;
                    return Ok(Pause::Call { id: *id, arrays });
                }
            }
        }
    }

    /// Begins a loop at a node of the block on top of the stack.
    fn begin(
        &mut self,
        node: &Node,
        [condition, body]: [&Arc<Code>; 2],
        plan: &Arc<LoopPlan>,
        queue: &dyn Evaluator,
    ) -> Result<()> {
        let (device, stream) = (queue.device(), queue.stream());
        let Some(Level::Block(frame)) = self.levels.last_mut() else {
            return Err(Error::invalid("the run has no block"));
        };
        let inputs = node.inputs.iter().flatten().copied();
        let mut state = frame.values.take(inputs, &node.spent)?;
        let mut captured = Values(state.0.split_off(node.outputs.len()));
        for slot in &mut captured.0 {
            // Every step takes another handle of it, which is cheaper of one that the VM counts.
            if let Slot::Owned(_) = slot {
                let owned = Values(vec![std::mem::replace(slot, Slot::Spent)]);
                let handle = handles(owned, device, stream, &Outcomes::new())?.pop();
                *slot = handle.map_or(Slot::Spent, Slot::Given);
            }
        }
        let signatures = state.0.iter().map(Slot::signature).collect::<Result<_>>()?;
        let outputs = node.outputs.iter();
        let mut repeated = Loop {
            condition: condition.clone(),
            body: body.clone(),
            plan: plan.clone(),
            state,
            captured,
            signatures,
            in_body: false,
            needed: outputs.map(|value| !node.spent.contains(value)).collect(),
            until_ahead: None,
            counted: None,
            running: None,
            is_tried: plan.engines.is_empty() || device == Device::Cpu,
            doubt: None,
        };
        if repeated.is_taken_first() && repeated.try_engine(queue, &self.outcomes)? {
            self.levels.push(Level::Loop(Box::new(repeated)));
            return Ok(());
        }
        let first = match repeated.count(queue, &self.outcomes)? {
            Some(counted) if counted.left == 0 => {
                frame.deliver(std::mem::take(&mut repeated.state));
                return Ok(());
            }
            Some(counted) => {
                if repeated.pays(counted.left) {
                    queue.compute(&repeated.arrays()?, &self.outcomes)?;
                    if repeated.try_engine(queue, &self.outcomes)? {
                        self.levels.push(Level::Loop(Box::new(repeated)));
                        return Ok(());
                    }
                }
                repeated.counted = Some(counted);
                repeated.body()?
            }
            None => {
                if self.run_ahead.is_some() && repeated.can_run_ahead(&self.outcomes) {
                    repeated.until_ahead = self.run_ahead;
                }
                repeated.condition()?
            }
        };
        self.levels.push(Level::Loop(Box::new(repeated)));
        self.levels.push(Level::Block(first));
        Ok(())
    }

    /// The loop on top of the stack goes on with what its condition or its body gave.
    fn turn(
        &mut self,
        outputs: Values,
        queue: &dyn Evaluator,
        began: Instant,
    ) -> Result<Option<Pause>> {
        let Some(Level::Loop(repeated)) = self.levels.last_mut() else {
            return Err(Error::invalid("there is no loop"));
        };
        if repeated.in_body {
            repeated.step(outputs)?;
            let Some(counted) = &mut repeated.counted else {
                let condition = repeated.condition()?;
                self.levels.push(Level::Block(condition));
                return Ok(None);
            };
            counted.left -= 1;
            if counted.left == 0 {
                let state = std::mem::take(&mut repeated.state);
                self.finish(state);
                return Ok(None);
            }
            repeated.submit(queue)?;
            return self.next_step(queue, began);
        }
        // The condition and the whole state are computed together: the graph never grows over steps. What an engine may
        // have to read by itself is computed, too.
        let read = match repeated.is_tried {
            true => &[],
            false => &repeated.captured.0[..],
        };
        let state = repeated.state.0.iter().chain(read).map(Slot::array);
        let state = state.collect::<Result<Vec<_>>>()?;
        let asked = queue.ask(outputs.slot(0)?.array()?, &state, &self.outcomes)?;
        drop(state);
        drop(outputs);
        if !repeated.is_tried {
            repeated.is_tried = true;
            if !queue.answer(&asked)? {
                let state = std::mem::take(&mut repeated.state);
                self.finish(state);
                return Ok(None);
            }
            return match self.outcomes.is_empty() && repeated.try_engine(queue, &self.outcomes)? {
                true => self.replay(queue),
                false => self.next_step(queue, began),
            };
        }
        // The step before may be in doubt: then this state is one too many.
        if let Some((before, result)) = repeated.doubt.take() {
            if !queue.answer(&before)? {
                self.finish(result);
                return Ok(None);
            }
        }
        match &mut repeated.until_ahead {
            Some(0) => repeated.doubt = Some((asked, repeated.result()?)),
            until_ahead => {
                if let Some(steps) = until_ahead {
                    *steps -= 1;
                }
                if !queue.answer(&asked)? {
                    let state = std::mem::take(&mut repeated.state);
                    self.finish(state);
                    return Ok(None);
                }
            }
        }
        self.next_step(queue, began)
    }

    /// The loop on top of the stack takes its next step, or leaves the thread before it.
    fn next_step(&mut self, queue: &dyn Evaluator, began: Instant) -> Result<Option<Pause>> {
        let Some(Level::Loop(repeated)) = self.levels.last_mut() else {
            return Err(Error::invalid("there is no loop"));
        };
        let body = repeated.body()?;
        self.levels.push(Level::Block(body));
        let pressure = queue.pressure();
        if pressure.abandoned {
            return Ok(Some(Pause::Abandoned));
        }
        if pressure.closed {
            return Err(Reason::QueueClosed.into());
        }
        let has_had_turn = pressure.waiting && began.elapsed() >= TURN;
        Ok(has_had_turn.then_some(Pause::Turn))
    }

    /// The loop on top of the stack is run by its engine until it ends, or until the thread is to be left.
    fn replay(&mut self, queue: &dyn Evaluator) -> Result<Option<Pause>> {
        loop {
            let Some(Level::Loop(repeated)) = self.levels.last_mut() else {
                return Err(Error::invalid("there is no loop"));
            };
            let Some(running) = &mut repeated.running else {
                return Err(Error::invalid("the loop has no engine"));
            };
            if let Progress::Ended = running.advance(TURN)? {
                let state = running.state(&repeated.needed)?.into_iter();
                let slots = state.map(|array| array.map_or(Slot::Spent, Slot::Owned));
                let result = Values(slots.collect());
                self.finish(result);
                return Ok(None);
            }
            let pressure = queue.pressure();
            if pressure.closed {
                return Err(Reason::QueueClosed.into());
            }
            if pressure.abandoned {
                return Ok(Some(Pause::Abandoned));
            }
            if pressure.waiting {
                return Ok(Some(Pause::Turn));
            }
        }
    }

    /// Ends the loop on top of the stack.
    fn finish(&mut self, result: Values) {
        self.levels.pop();
        if let Some(Level::Block(parent)) = self.levels.last_mut() {
            parent.deliver(result);
        }
    }

    /// What failed may have been a step that there is not. Then its loop ends, and true says that the run goes on.
    fn was_too_far(&mut self, queue: &dyn Evaluator) -> Result<bool> {
        // Above a loop that runs ahead there is at most one block.
        let is_doubtful =
            |level: &Level| matches!(level, Level::Loop(repeated) if repeated.doubt.is_some());
        let Some(place) = self.levels.iter().rposition(is_doubtful) else {
            return Ok(false);
        };
        let Some(Level::Loop(repeated)) = self.levels.get_mut(place) else {
            return Ok(false);
        };
        let Some((asked, result)) = repeated.doubt.take() else {
            return Ok(false);
        };
        if queue.answer(&asked)? {
            return Ok(false);
        }
        self.levels.truncate(place + 1);
        self.finish(result);
        Ok(true)
    }

    /// Where the run stands, for errors.
    fn place(&self) -> String {
        let mut places = Vec::new();
        for level in &self.levels {
            match level {
                Level::Block(frame) => places.push(frame.place()),
                Level::Loop(repeated) if repeated.in_body => places.push("body".into()),
                Level::Loop(_) => places.push("condition".into()),
            }
        }
        places.retain(|place| !place.is_empty());
        places.join(", ")
    }

    /// What the caller is to answer with.
    fn expected(&self) -> Result<&[Signature]> {
        let node = match self.levels.last() {
            Some(Level::Block(frame)) => frame.node(),
            _ => None,
        };
        match node.map(|node| &node.work) {
            Some(Work::Call { outputs, .. }) => Ok(outputs),
            _ => Err(Error::invalid("the run has not asked anything")),
        }
    }

    /// Goes on after a question.
    pub fn answer(&mut self, arrays: Vec<ResourceArc<Handle>>) -> Result<()> {
        let expected = self.expected()?;
        let found: Vec<Signature> = arrays.iter().map(|array| array.signature()).collect();
        if found != expected {
            let list = |signatures: &[Signature]| {
                let all: Vec<String> = signatures.iter().map(shown).collect();
                all.join(", ")
            };
            let error = Error::invalid(format!(
                "the function gave [{}], the program takes [{}]",
                list(&found),
                list(expected)
            ));
            return Err(error.within(&self.place()));
        }
        let given = Values(arrays.iter().cloned().map(Slot::Given).collect());
        self.settle_later(arrays);
        if let Some(Level::Block(frame)) = self.levels.last_mut() {
            frame.deliver(given);
        }
        Ok(())
    }
}
