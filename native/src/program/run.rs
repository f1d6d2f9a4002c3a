//! Replays programs: straight ones on the calling scheduler, all others on a queue's thread, as a stack of blocks that can be left
//! and taken up again. Called by the border and by queues.

use super::count::Counters;
use super::evaluator::{Asked, Evaluator};
use super::graph::{self, Graph, Progress};
use super::{build, shown, Block, Instruction, Program, Step};
use crate::device::Device;
use crate::error::{Error, Reason, Result, Signature};
use crate::handle::array::{outcomes_of, refuse_deallocated, Handle, Outcome, Outcomes};
use crate::handle::deallocate::{marked, was_marked_since};
use crate::mlx::{self, Stream};
use crate::op::{Applied, Crossed};
use mlx_rs::Array;
use rustler::ResourceArc;
use smallvec::{smallvec, SmallVec};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a loop's result that may be kept beside the state of a step that runs ahead.
const MAX_KEPT: usize = 1 << 20;

/// Operations of a counted loop's steps that are submitted together, at most.
const MAX_TOGETHER: usize = 512;

/// How long a run may have a queue's thread while other jobs wait.
const TURN: Duration = Duration::from_millis(10);

// ---- values ----

/// What stands at a value's number.
enum Slot {
    /// Nothing needs it any more: a buffer that is given up can be written over by MLX.
    Spent,
    /// A node of this run, or another handle of one.
    Owned(Array),
    /// An array of the caller's, a constant, or one that the caller also has.
    Given(ResourceArc<Handle>),
}

impl Slot {
    fn array(&self) -> Result<&Array> {
        match self {
            Slot::Owned(array) => Ok(array),
            Slot::Given(handle) => handle.live(),
            Slot::Spent => Err(Error::invalid("a value was given up before its last use")),
        }
    }

    fn share(&self) -> Result<Slot> {
        match self {
            Slot::Given(handle) => Ok(Slot::Given(handle.clone())),
            other => mlx::share(other.array()?).map(Slot::Owned),
        }
    }

    fn signature(&self) -> Result<Signature> {
        let array = self.array()?;
        Ok((array.shape().to_vec(), mlx::dtype(array)))
    }
}

/// The values of a block. They are given up under the graph's lock, or by whoever has it: the nodes below may be shared.
#[derive(Default)]
struct Values(Vec<Slot>);

impl Values {
    /// The array that stands at a number, None where nothing does any more.
    fn get(&self, value: u32) -> Result<Option<&Array>> {
        match self.0.get(value as usize) {
            None | Some(Slot::Spent) => Ok(None),
            Some(slot) => slot.array().map(Some),
        }
    }

    /// The number of the handle that a value is, of one that others have too.
    fn number(&self, value: Option<u32>) -> Option<u64> {
        match self.0.get(value? as usize)? {
            Slot::Given(handle) => Some(handle.number),
            _ => None,
        }
    }

    fn slot(&self, value: u32) -> Result<&Slot> {
        let absent = || Error::invalid(format!("there is no value {value}"));
        self.0.get(value as usize).ok_or_else(absent)
    }

    /// Gives values up. The caller's own come back.
    fn spend(&mut self, values: &[u32]) -> SmallVec<[ResourceArc<Handle>; 4]> {
        let (mut owned, mut given) = (SmallVec::new(), SmallVec::new());
        for value in values {
            if let Some(slot) = self.0.get_mut(*value as usize) {
                match std::mem::replace(slot, Slot::Spent) {
                    Slot::Owned(array) => owned.push(array),
                    Slot::Given(handle) => given.push(handle),
                    Slot::Spent => {}
                }
            }
        }
        mlx::release_all(owned);
        given
    }

    /// The arrays that others have, too.
    fn given(&self) -> impl Iterator<Item = &Handle> {
        self.0.iter().filter_map(|slot| match slot {
            Slot::Given(handle) => Some(&**handle),
            _ => None,
        })
    }

    fn share(&self) -> Result<Values> {
        let shared = self.0.iter().map(Slot::share).collect::<Result<_>>()?;
        Ok(Values(shared))
    }

    /// The values of these numbers. Those in `spent` are moved, so that nothing else holds them.
    fn take(&mut self, values: impl Iterator<Item = u32>, spent: &[u32]) -> Result<Values> {
        let values: SmallVec<[u32; 8]> = values.collect();
        let mut taken = Values(Vec::with_capacity(values.len()));
        for (i, value) in values.iter().enumerate() {
            let is_last = !values[i + 1..].contains(value) && spent.contains(value);
            taken.0.push(if is_last {
                match self.0.get_mut(*value as usize) {
                    Some(slot) => std::mem::replace(slot, Slot::Spent),
                    None => Slot::Spent,
                }
            } else {
                self.slot(*value)?.share()?
            });
        }
        Ok(taken)
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        let owned = self.0.drain(..).filter_map(|slot| match slot {
            Slot::Owned(array) => Some(array),
            _ => None,
        });
        mlx::release_all(owned.collect());
    }
}

// ---- blocks ----

/// A block that is being replayed.
struct Frame {
    block: Arc<Block>,
    /// The instruction that comes next, or that waits for its outputs.
    pc: usize,
    values: Values,
    /// What the CPU has to have computed before the GPU is given what was built.
    crossed: Crossed,
}

impl Frame {
    /// The block as it is run on the device.
    fn new(block: &Arc<Block>, inputs: Values, device: Device) -> Frame {
        Frame {
            block: block.on(device).clone(),
            pc: 0,
            values: inputs,
            crossed: Crossed::default(),
        }
    }

    /// Builds operations up to the block's end or to an instruction of another kind. Nothing is computed.
    fn build(&mut self, device: Device, stream: &Stream) -> Result<()> {
        // What was deallocated meanwhile nothing may be computed from.
        let mut spent = Vec::new();
        let before = marked();
        self.build_all(device, stream, &mut spent)?;
        match was_marked_since(before) {
            true => {
                let spent = spent.iter().map(|handle: &ResourceArc<Handle>| &**handle);
                refuse_deallocated(spent.chain(self.values.given()))
            }
            false => Ok(()),
        }
    }

    fn build_all(
        &mut self,
        device: Device,
        stream: &Stream,
        spent: &mut Vec<ResourceArc<Handle>>,
    ) -> Result<()> {
        while let Some(instruction) = self.block.instructions.get(self.pc) {
            if matches!(instruction.step, Step::Chained) {
                self.values.0.push(Slot::Spent);
                self.pc += 1;
                continue;
            }
            let (Step::Op(_) | Step::Chain(_) | Step::Stretch(_)) = &instruction.step else {
                break;
            };
            let mut inputs: SmallVec<[Option<&Array>; 6]> = SmallVec::new();
            for value in &instruction.inputs {
                inputs.push(match value {
                    Some(value) => self.values.get(*value)?,
                    None => None,
                });
            }
            let applied = match &instruction.step {
                Step::Op(op) => build(op, &inputs, device, stream),
                Step::Chain(chain) => chain.build(&inputs, stream).map(|array| Applied {
                    outputs: smallvec![array],
                    crossed: Crossed::default(),
                }),
                // Its errors say where in it.
                Step::Stretch(stretch) => {
                    let numbers = instruction
                        .inputs
                        .iter()
                        .map(|value| self.values.number(*value));
                    let numbers: SmallVec<[Option<u64>; 64]> = numbers.collect();
                    let inputs: Vec<&Array> = inputs.iter().copied().flatten().collect();
                    stretch
                        .build(&inputs, &numbers, device, stream)
                        .map(|(outputs, crossed)| Applied {
                            outputs: outputs.into(),
                            crossed,
                        })
                }
                _ => break,
            };
            let outputs = applied
                .and_then(|applied| {
                    self.crossed.append(applied.crossed);
                    instruction.check_outputs(applied.outputs)
                })
                .map_err(|error| error.with_inputs(signatures(&inputs), Some(device)))?;
            drop(inputs);
            self.values.0.extend(outputs.into_iter().map(Slot::Owned));
            spent.extend(self.values.spend(&instruction.spent));
            self.pc += 1;
        }
        Ok(())
    }

    fn instruction(&self) -> Option<&Instruction> {
        self.block.instructions.get(self.pc)
    }

    /// Goes on after an instruction that waited.
    fn deliver(&mut self, mut outputs: Values) {
        self.values.0.append(&mut outputs.0);
        if let Some(instruction) = self.block.instructions.get(self.pc) {
            self.values.spend(&instruction.spent);
        }
        self.pc += 1;
    }

    fn outputs(&mut self) -> Result<Values> {
        let outputs = &self.block.outputs;
        self.values.take(outputs.iter().copied(), outputs)
    }

    fn place(&self) -> String {
        match self.instruction() {
            Some(instruction) => instruction.place(self.pc),
            None => "outputs".into(),
        }
    }
}

pub(super) fn signatures(inputs: &[Option<&Array>]) -> Vec<Option<Signature>> {
    inputs
        .iter()
        .map(|input| input.map(|array| (array.shape().to_vec(), mlx::dtype(array))))
        .collect()
}

/// A loop that is being run; the block above it on the stack is its condition or its body.
struct Loop {
    condition: Arc<Block>,
    body: Arc<Block>,
    state: Values,
    captured: Values,
    signatures: Vec<Signature>,
    in_body: bool,
    /// The values of the state that are needed after the loop.
    needed: Vec<bool>,
    /// Steps left until the loop runs ahead; None if it never does.
    until_ahead: Option<usize>,
    /// Where the number of steps is known.
    counted: Option<Counted>,
    /// On CUDA, where the step is launched as one.
    graph: Option<Box<Graph>>,
    /// Whether it is known if there is such a graph.
    is_tried: bool,
    /// Whether there is the step that the state comes from, which is not known yet, and the loop's result if there is not.
    doubt: Option<(Asked, Values)>,
}

impl Loop {
    /// Whether the next step can be computed before it is known that there is one: it asks nobody, reads nothing and cannot fail late,
    /// and what it would be computed in vain from is small enough to be kept.
    fn can_run_ahead(&self, outcomes: &Outcomes) -> bool {
        let plain = |block: &Block| {
            let mut steps = block.instructions.iter();
            steps.all(|instruction| {
                !matches!(
                    instruction.step,
                    Step::If { .. } | Step::While { .. } | Step::Call { .. }
                )
            })
        };
        let kept = self.signatures.iter().zip(&self.needed);
        let bytes: usize = kept
            .filter(|(_, needed)| **needed)
            .map(|((shape, dtype), _)| {
                shape.iter().map(|n| *n as usize).product::<usize>() * dtype.size()
            })
            .sum();
        outcomes.is_empty() && bytes <= MAX_KEPT && plain(&self.condition) && plain(&self.body)
    }

    /// Has CUDA repeat the step from here on, if it can. All that it takes has been submitted.
    fn try_graph(&mut self) -> Result<bool> {
        let slots = self.state.0.iter().chain(&self.captured.0);
        let inputs = slots.map(Slot::array).collect::<Result<Vec<_>>>()?;
        let graph = Graph::of(&self.condition, &self.body, self.state.0.len(), &inputs)?;
        drop(inputs);
        let Some(graph) = graph else {
            return Ok(false);
        };
        self.graph = Some(Box::new(graph));
        // It has its own.
        self.state = Values::default();
        Ok(true)
    }

    /// How many steps it takes, where its condition hangs on numbers that count by themselves.
    fn count(&self, queue: &dyn Evaluator, outcomes: &Outcomes) -> Result<Option<Counted>> {
        let state = self.state.0.len();
        let counters = Counters::of(&self.condition, &self.body, state);
        // Late failures are known by waiting after every step.
        let Some(counters) = counters.filter(|_| outcomes.is_empty()) else {
            return Ok(None);
        };
        let slots: Vec<&Slot> = self.state.0.iter().chain(&self.captured.0).collect();
        let arrays = counters.inputs.iter().map(|input| slots[*input].array());
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let Some(given) = queue.whole_numbers(&arrays, outcomes)? else {
            return Ok(None);
        };
        let steps = counters.steps(&self.condition, &self.body, &given);
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
    fn submit(&mut self, queue: &dyn Evaluator) -> Result<()> {
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
        let most = (MAX_TOGETHER / self.body.instructions.len().max(1)).max(1);
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
    fn result(&self) -> Result<Values> {
        let slots = self.state.0.iter().zip(&self.needed);
        let slots = slots.map(|(slot, needed)| match needed {
            true => slot.share(),
            false => Ok(Slot::Spent),
        });
        Ok(Values(slots.collect::<Result<_>>()?))
    }

    fn condition(&mut self, device: Device) -> Result<Frame> {
        self.in_body = false;
        let mut inputs = self.state.share()?;
        inputs.0.append(&mut self.captured.share()?.0);
        Ok(Frame::new(&self.condition, inputs, device))
    }

    /// The state moves into the body, so that MLX may write over it.
    fn body(&mut self, device: Device) -> Result<Frame> {
        self.in_body = true;
        let mut inputs = std::mem::take(&mut self.state);
        inputs.0.append(&mut self.captured.share()?.0);
        Ok(Frame::new(&self.body, inputs, device))
    }

    /// Takes over the body's outputs.
    fn step(&mut self, state: Values) -> Result<()> {
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

/// The steps of a loop that need not be asked whether there is another one.
struct Counted {
    left: usize,
    /// A single number of the state, to be waited for.
    number: usize,
    /// Steps that are submitted together, those that are built, and since when.
    together: usize,
    built: usize,
    since: Instant,
    /// The number of those that were submitted last.
    submitted: Option<Asked>,
}

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
    let mut values = Values(Vec::with_capacity(program.body.inputs + program.size));
    values.0.extend(given.clone().cloned().map(Slot::Given));
    let mut frame = Frame::new(program.code(device), values, device);
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

// ---- runs ----

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
    /// Of this run's own late failures. It is closed with the outputs, for no step before computes all that the run built.
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
        let frame = Frame::new(program.code(device), values, device);
        let mut run = Run {
            levels: vec![Level::Block(frame)],
            open: Vec::new(),
            outcomes,
            run_ahead: program.run_ahead,
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
            let block = frame.block.clone();
            let Some(instruction) = block.instructions.get(frame.pc) else {
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
            let inputs = instruction.inputs.iter().flatten().copied();
            match &instruction.step {
                Step::Op(_) | Step::Chain(_) | Step::Chained | Step::Stretch(_) => {}
                Step::Fused(fused) => {
                    let arrays = inputs
                        .map(|value| frame.values.slot(value)?.array())
                        .collect::<Result<Vec<_>>>()?;
                    let outputs = fused.build(&arrays, device, stream).map_err(|error| {
                        let signatures = arrays.iter().copied().map(Some).collect::<Vec<_>>();
                        error.with_inputs(self::signatures(&signatures), Some(device))
                    })?;
                    drop(arrays);
                    refuse_deallocated(frame.values.given())?;
                    frame.deliver(Values(outputs.into_iter().map(Slot::Owned).collect()));
                }
                Step::If { then, otherwise } => {
                    let predicate = inputs.clone().next().unwrap_or_default();
                    let predicate = frame.values.slot(predicate)?.array()?;
                    let taken = match queue.test(predicate, &[], &self.outcomes)? {
                        true => then,
                        false => otherwise,
                    };
                    let inputs = frame.values.take(inputs.skip(1), &instruction.spent)?;
                    self.levels
                        .push(Level::Block(Frame::new(taken, inputs, device)));
                }
                Step::While { condition, body } => {
                    let count = instruction.outputs;
                    let mut state = frame.values.take(inputs, &instruction.spent)?;
                    let mut captured = Values(state.0.split_off(count));
                    for slot in &mut captured.0 {
                        // Every step takes another handle of it, which is cheaper of one that the VM counts.
                        if let Slot::Owned(_) = slot {
                            let owned = Values(vec![std::mem::replace(slot, Slot::Spent)]);
                            let handle = handles(owned, device, stream, &Outcomes::new())?.pop();
                            *slot = handle.map_or(Slot::Spent, Slot::Given);
                        }
                    }
                    let signatures = state.0.iter().map(Slot::signature).collect::<Result<_>>()?;
                    let first = frame.values.0.len() as u32;
                    let needed = (first..first + count as u32)
                        .map(|value| !instruction.spent.contains(&value))
                        .collect();
                    let mut repeated = Loop {
                        condition: condition.clone(),
                        body: body.clone(),
                        state,
                        captured,
                        signatures,
                        in_body: false,
                        needed,
                        until_ahead: None,
                        counted: None,
                        graph: None,
                        is_tried: device == Device::Cpu || !graph::is_for(body),
                        doubt: None,
                    };
                    if let Some(counted) = repeated.count(queue, &self.outcomes)? {
                        if counted.left == 0 {
                            frame.deliver(std::mem::take(&mut repeated.state));
                            continue;
                        }
                        repeated.counted = Some(counted);
                        let first = repeated.body(device)?;
                        self.levels.push(Level::Loop(Box::new(repeated)));
                        self.levels.push(Level::Block(first));
                        continue;
                    }
                    if self.run_ahead.is_some() && repeated.can_run_ahead(&self.outcomes) {
                        repeated.until_ahead = self.run_ahead;
                    }
                    let first = repeated.condition(device)?;
                    self.levels.push(Level::Loop(Box::new(repeated)));
                    self.levels.push(Level::Block(first));
                }
                Step::Call { id, .. } => {
                    let values = frame.values.take(inputs, &instruction.spent)?;
                    let arrays = handles(values, device, stream, &Outcomes::new())?;
                    let refs: Vec<&Array> = arrays.iter().map(|array| array.array()).collect();
                    queue.compute(&refs, &self.outcomes)?;
                    return Ok(Pause::Call { id: *id, arrays });
                }
            }
        }
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
                let condition = repeated.condition(queue.device())?;
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
        // The condition and the whole state are computed together: the graph never grows over steps. What CUDA may have to read by
        // itself is computed, too.
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
            return match self.outcomes.is_empty() && repeated.try_graph()? {
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
        let body = repeated.body(queue.device())?;
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

    /// The loop on top of the stack is repeated by CUDA until it ends, or until the thread is to be left.
    fn replay(&mut self, queue: &dyn Evaluator) -> Result<Option<Pause>> {
        loop {
            let Some(Level::Loop(repeated)) = self.levels.last_mut() else {
                return Err(Error::invalid("there is no loop"));
            };
            let Some(graph) = &mut repeated.graph else {
                return Err(Error::invalid("the loop has no step"));
            };
            if let Progress::Ended = graph.advance(TURN)? {
                let state = graph.state(&repeated.needed)?.into_iter();
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
        let instruction = match self.levels.last() {
            Some(Level::Block(frame)) => frame.instruction(),
            _ => None,
        };
        match instruction.map(|instruction| &instruction.step) {
            Some(Step::Call { outputs, .. }) => Ok(outputs),
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
