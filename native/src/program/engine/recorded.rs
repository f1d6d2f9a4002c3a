//! Loops over small arrays on the CPU. Their kernels, which are computed on the spot, are written down once with the
//! memory that they read and write, those of both branches and of the loops inside too. Then the steps are these
//! kernels, copies and jumps: no nodes, no other thread, and no memory. At the end of a step its results are copied to
//! where the next one reads the state.

use super::{Begun, LoopEngine, Progress, RunningLoop};
use crate::base::{Device, Dtype, Error, Result, Signature};
use crate::cpu;
use crate::mlx::{self, Recorded, Stream, Tape};
use crate::program::plan::{Code, Node, Work};
use crate::program::{build, shown};
use mlx_rs::Array;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Elements of a value of the state that steps change, at most: from there on a copy of it each step is worth avoiding.
const MAX_ELEMENTS: i64 = 16_384;
/// Recordings that fail before no further one is tried. One can fail because an input is not computed yet.
const MAX_FAILURES: usize = 3;
/// Steps between two looks at the time.
const STEPS: usize = 64;

/// How the recordings of one loop have gone.
#[derive(Debug, Default)]
pub struct Recordings {
    /// For each value of the state whether steps leave it as it is.
    is_kept: Vec<bool>,
    made: AtomicUsize,
    failed: AtomicUsize,
    /// What the last recording that failed ended at.
    obstacle: Mutex<String>,
}

impl Recordings {
    /// Of a loop whose code has operations, branches and loops, but no calls.
    pub fn of(body: &Code) -> Recordings {
        Recordings {
            is_kept: kept(body),
            ..Recordings::default()
        }
    }
}

impl LoopEngine for Recordings {
    fn name(&self) -> &'static str {
        "recorded step"
    }

    fn takes_first(&self, state: &[Signature]) -> bool {
        let size = |shape: &[i32]| shape.iter().map(|n| i64::from(*n)).product::<i64>();
        let has_failed = self.failed.load(Ordering::Relaxed) >= MAX_FAILURES;
        let is_small = || {
            let mut values = state.iter().zip(&self.is_kept);
            values.all(|((shape, _), is_kept)| *is_kept || size(shape) <= MAX_ELEMENTS)
        };
        mlx::has_tasks() && !has_failed && is_small()
    }

    /// None where a step has something that is not a small kernel of ours.
    fn start(&self, given: &Begun) -> Result<Option<Box<dyn RunningLoop>>> {
        if !mlx::has_tasks() {
            return Ok(None);
        }
        Ok(match Repeated::of(given)? {
            Ok(repeated) => {
                self.made.fetch_add(1, Ordering::Relaxed);
                Some(Box::new(repeated))
            }
            Err(obstacle) => {
                *self.obstacle.lock() = obstacle;
                self.failed.fetch_add(1, Ordering::Relaxed);
                None
            }
        })
    }

    fn state(&self) -> Option<String> {
        let made = self.made.load(Ordering::Relaxed);
        match (made, self.failed.load(Ordering::Relaxed)) {
            (0, 0) => None,
            (0, _) => Some(format!("none: {}", self.obstacle.lock())),
            (made, _) => Some(format!("{made} runs")),
        }
    }
}

/// For each output whether it is the input of its number.
fn kept(body: &Code) -> Vec<bool> {
    let outputs = body.outputs.iter().enumerate();
    outputs
        .map(|(i, output)| origin(body, *output) == i as u32)
        .collect()
}

/// The value that a value is once more, beyond branches and loops that leave it as it is.
fn origin(code: &Code, mut value: u32) -> u32 {
    // From the last node on: what a node takes is from nodes before it.
    for node in code.nodes.iter().rev() {
        let Some(place) = node.outputs.iter().position(|output| *output == value) else {
            continue;
        };
        let input = |i: usize| node.inputs.get(i).copied().flatten();
        let inside = |code: &Code| code.outputs.get(place).map(|output| origin(code, *output));
        let same = match &node.work {
            Work::While { body, .. } if inside(body) == Some(place as u32) => input(place),
            Work::If { then, otherwise } => match (inside(then), inside(otherwise)) {
                (Some(a), Some(b)) if a == b && (a as usize) < then.inputs => input(1 + a as usize),
                _ => None,
            },
            _ => None,
        };
        match same {
            Some(input) => value = input,
            None => return value,
        }
    }
    value
}

/// Arrays that are given up as all nodes are.
#[derive(Default)]
struct Held(Vec<Array>);

impl Drop for Held {
    fn drop(&mut self) {
        mlx::release_all(std::mem::take(&mut self.0).into());
    }
}

/// A copy of an array's bytes.
struct Copy {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

/// Copies that happen at once.
#[derive(Default)]
struct Copies {
    copies: SmallVec<[Copy; 4]>,
    /// Between the sources and the targets, where some lie in the same memory.
    staging: Vec<u8>,
}

impl Copies {
    /// From arrays to others of their sizes; those that are their own targets are left out. All lie in rows.
    fn new(pairs: &[(&Array, &Array)]) -> Option<Copies> {
        let mut places = Vec::with_capacity(pairs.len());
        for (from, to) in pairs {
            let (from, to) = (bytes(from)?, bytes(to)?);
            if from.len() != to.len() {
                return None;
            }
            if from.as_ptr() != to.as_ptr() {
                places.push((from, to));
            }
        }
        let range = |bytes: &[u8]| bytes.as_ptr_range();
        let touches = |from: &[u8], to: &[u8]| {
            range(from).start < range(to).end && range(to).start < range(from).end
        };
        let is_staged = places
            .iter()
            .any(|(from, _)| places.iter().any(|(_, to)| touches(from, to)));
        let staged = places.iter().map(|(from, _)| from.len()).sum();
        Some(Copies {
            staging: vec![0; if is_staged { staged } else { 0 }],
            copies: places
                .iter()
                .map(|(from, to)| Copy {
                    from: from.as_ptr(),
                    to: to.as_ptr().cast_mut(),
                    bytes: from.len(),
                })
                .collect(),
        })
    }

    /// # Safety
    /// The arrays are held, and nobody else reads or writes them.
    unsafe fn run(&mut self) {
        if self.staging.is_empty() {
            for copy in &self.copies {
                std::ptr::copy_nonoverlapping(copy.from, copy.to, copy.bytes);
            }
            return;
        }
        let mut place = self.staging.as_mut_ptr();
        for copy in &self.copies {
            std::ptr::copy_nonoverlapping(copy.from, place, copy.bytes);
            place = place.add(copy.bytes);
        }
        let mut place = self.staging.as_ptr();
        for copy in &self.copies {
            std::ptr::copy_nonoverlapping(place, copy.to, copy.bytes);
            place = place.add(copy.bytes);
        }
    }
}

enum Instruction {
    Kernel(Box<Recorded>),
    Copies(Copies),
    /// Goes on at another instruction if a number is zero.
    JumpIfZero {
        number: *const u8,
        dtype: Dtype,
        to: usize,
    },
    Jump(usize),
    /// Back to a loop's condition.
    Repeat(usize),
}

/// A computed array's bytes, in rows.
fn bytes(array: &Array) -> Option<&'static [u8]> {
    let lock = mlx::graph_lock();
    match mlx::is_available(array, &lock) {
        // SAFETY: computed; whoever keeps the slice keeps the array.
        true => unsafe { mlx::bytes(array) },
        false => None,
    }
}

/// Writes code down. What it computes meanwhile is of the values that the state has before the loop, in both branches
/// and for one step of each loop; only the memory counts. `None` from any of these functions is the end of it: something
/// is not a small kernel of ours.
struct Recorder<'a> {
    /// Of the loop, for copies that are not repeated; it waits for the graph's lock, as recording streams do.
    stream: Stream,
    recording: Stream,
    tape: &'a Tape,
    instructions: Vec<Instruction>,
    held: Held,
    /// The operation that has no kernel, or whose arrays are large.
    obstacle: Option<String>,
}

impl<'a> Recorder<'a> {
    fn new(stream: &Stream, tape: &'a Tape) -> Recorder<'a> {
        Recorder {
            stream: stream.recording(&Tape::default()),
            recording: stream.recording(tape),
            tape,
            instructions: Vec::new(),
            held: Held::default(),
            obstacle: None,
        }
    }

    /// Another handle of an array, which is kept for as long as the recording.
    fn keep(&mut self, array: &Array) -> Result<Array> {
        self.held.0.push(mlx::share(array)?);
        mlx::share(array)
    }

    fn copies(&mut self, pairs: &[(&Array, &Array)]) -> Option<()> {
        let copies = Copies::new(pairs)?;
        if !copies.copies.is_empty() {
            self.instructions.push(Instruction::Copies(copies));
        }
        Some(())
    }

    /// Memory of its own for values like this one.
    fn memory(&mut self, like: &Array) -> Result<Option<Array>> {
        match cpu::copy_at_once(like, &self.stream)? {
            Some(own) => {
                let own = Held(vec![own]);
                self.keep(&own.0[0]).map(Some)
            }
            None => Ok(None),
        }
    }

    /// The array in rows, which are once more what it is each time.
    fn in_rows(&mut self, array: &Array) -> Result<Option<Array>> {
        if bytes(array).is_some() {
            return self.keep(array).map(Some);
        }
        let Some(copy) = cpu::copy_at_once(array, &self.recording)? else {
            return Ok(None);
        };
        self.take_kernels();
        let copy = Held(vec![copy]);
        self.keep(&copy.0[0]).map(Some)
    }

    fn all_in_rows(&mut self, arrays: &[Array]) -> Result<Option<Vec<Array>>> {
        let rows = arrays.iter().map(|array| self.in_rows(array));
        // None before an error, as both end it.
        rows.collect::<Result<Option<Vec<_>>>>()
    }

    fn take_kernels(&mut self) {
        let kernels = self.tape.take().into_iter().map(Box::new);
        self.instructions.extend(kernels.map(Instruction::Kernel));
    }

    /// The outputs of code.
    fn code(&mut self, code: &Code, inputs: Vec<Array>) -> Result<Option<Vec<Array>>> {
        let mut values: Vec<Option<Array>> = inputs.into_iter().map(Some).collect();
        values.resize_with(code.values, || None);
        for node in &code.nodes {
            let outputs = match &node.work {
                Work::Op(_) | Work::Segment(_) => self.operation(node, &values)?,
                Work::If { then, otherwise } => {
                    let Some(inputs) = given(node, &values)? else {
                        return Ok(None);
                    };
                    self.branches(then, otherwise, inputs)?
                }
                Work::While {
                    condition, body, ..
                } => {
                    let Some(inputs) = given(node, &values)? else {
                        return Ok(None);
                    };
                    self.repeated(condition, body, node.outputs.len(), &inputs)?
                }
                Work::Call { .. } => None,
            };
            let Some(outputs) = outputs else {
                return Ok(None);
            };
            for (value, output) in node.outputs.iter().zip(outputs) {
                values[*value as usize] = Some(output);
            }
        }
        let outputs = code.outputs.iter();
        outputs
            .map(|value| values[*value as usize].as_ref().map(mlx::share).transpose())
            .collect()
    }

    fn operation(&mut self, node: &Node, values: &[Option<Array>]) -> Result<Option<Vec<Array>>> {
        let outputs = build::node(node, values, Device::Cpu, &self.recording)?;
        let outputs = Held(outputs.into_iter().collect());
        self.take_kernels();
        for output in &outputs.0 {
            if !mlx::look(output, &self.recording) {
                let inputs = node.inputs.iter().flatten();
                let inputs = inputs.filter_map(|value| values.get(*value as usize)?.as_ref());
                let inputs =
                    inputs.map(|array| shown(&(array.shape().to_vec(), mlx::dtype(array))));
                let inputs = inputs.collect::<Vec<_>>().join(", ");
                self.obstacle = Some(format!("{} of {inputs}", node.name()));
                return Ok(None);
            }
        }
        let kept = outputs.0.iter().map(|output| self.keep(output));
        kept.collect::<Result<_>>().map(Some)
    }

    /// Goes on elsewhere if a number is zero; where, is known later.
    fn jump_if_zero(&mut self, number: &Array) -> Result<Option<usize>> {
        let Some(number) = self.in_rows(number)? else {
            return Ok(None);
        };
        let (dtype, place) = (mlx::dtype(&number), self.instructions.len());
        let Some(bytes) = bytes(&number).filter(|bytes| bytes.len() == dtype.size()) else {
            return Ok(None);
        };
        self.instructions.push(Instruction::JumpIfZero {
            number: bytes.as_ptr(),
            dtype,
            to: place,
        });
        Ok(Some(place))
    }

    /// The jump at `place` goes to the next instruction.
    fn land(&mut self, place: usize) {
        let next = self.instructions.len();
        match &mut self.instructions[place] {
            Instruction::JumpIfZero { to, .. } | Instruction::Jump(to) => *to = next,
            _ => {}
        }
    }

    /// The first input says which branch it is.
    fn branches(
        &mut self,
        then: &Code,
        otherwise: &Code,
        mut inputs: Vec<Array>,
    ) -> Result<Option<Vec<Array>>> {
        let predicate = inputs.remove(0);
        let Some(to_otherwise) = self.jump_if_zero(&predicate)? else {
            return Ok(None);
        };
        let shared = inputs.iter().map(mlx::share).collect::<Result<Vec<_>>>()?;
        let Some(yes) = self.code(then, shared)? else {
            return Ok(None);
        };
        let Some(yes) = self.all_in_rows(&yes)? else {
            return Ok(None);
        };
        // The copies to the results, once these are known.
        let copies_of_yes = self.instructions.len();
        let nothing = Instruction::Copies(Copies::default());
        self.instructions.push(nothing);
        let to_end = self.instructions.len();
        self.instructions.push(Instruction::Jump(to_end));
        self.land(to_otherwise);
        let Some(no) = self.code(otherwise, inputs)? else {
            return Ok(None);
        };
        let Some(no) = self.all_in_rows(&no)? else {
            return Ok(None);
        };
        let mut results = Vec::with_capacity(yes.len());
        for (yes, no) in yes.iter().zip(&no) {
            if yes.shape() != no.shape() || mlx::dtype(yes) != mlx::dtype(no) {
                return Ok(None);
            }
            let is_same = bytes(yes).map(<[u8]>::as_ptr) == bytes(no).map(<[u8]>::as_ptr);
            results.push(match is_same || yes.size() == 0 {
                true => mlx::share(yes)?,
                false => match self.memory(yes)? {
                    Some(own) => own,
                    None => return Ok(None),
                },
            });
        }
        let pairs: Vec<_> = yes.iter().zip(&results).collect();
        let Some(copies) = Copies::new(&pairs) else {
            return Ok(None);
        };
        self.instructions[copies_of_yes] = Instruction::Copies(copies);
        let pairs: Vec<_> = no.iter().zip(&results).collect();
        if self.copies(&pairs).is_none() {
            return Ok(None);
        }
        self.land(to_end);
        Ok(Some(results))
    }

    /// The state after a loop, of which the first `count` inputs are the state before.
    fn repeated(
        &mut self,
        condition: &Code,
        body: &Code,
        count: usize,
        inputs: &[Array],
    ) -> Result<Option<Vec<Array>>> {
        let is_kept = kept(body);
        let mut all = Vec::with_capacity(inputs.len());
        for (i, input) in inputs.iter().enumerate() {
            // Values without elements are nobody's memory.
            let is_own = i < count && !is_kept[i] && input.size() > 0;
            let own = match is_own {
                true => match self.in_rows(input)? {
                    Some(input) => self.memory(&input)?.map(|own| (input, own)),
                    None => None,
                },
                false => Some((self.keep(input)?, self.keep(input)?)),
            };
            let Some(own) = own else {
                return Ok(None);
            };
            all.push(own);
        }
        let changed: Vec<_> = all[..count]
            .iter()
            .zip(&is_kept)
            .filter(|((from, _), is_kept)| !**is_kept && from.size() > 0)
            .map(|((from, own), _)| (from, own))
            .collect();
        if self.copies(&changed).is_none() {
            return Ok(None);
        }
        let again = self.instructions.len();
        let share = |all: &[(Array, Array)]| {
            let arrays = all.iter().map(|(_, own)| mlx::share(own));
            arrays.collect::<Result<Vec<_>>>()
        };
        let Some(answers) = self.code(condition, share(&all)?)? else {
            return Ok(None);
        };
        let end = match answers.first() {
            Some(answer) => self.jump_if_zero(answer)?,
            None => None,
        };
        let Some(end) = end else {
            return Ok(None);
        };
        let Some(results) = self.code(body, share(&all)?)? else {
            return Ok(None);
        };
        let mut copies = Vec::with_capacity(count);
        for (result, (_, own)) in results.iter().zip(&all[..count]) {
            if result.shape() != own.shape() || mlx::dtype(result) != mlx::dtype(own) {
                return Ok(None);
            }
        }
        for ((result, (_, own)), is_kept) in results.iter().zip(&all).zip(&is_kept) {
            if !is_kept && result.size() > 0 {
                match self.in_rows(result)? {
                    Some(result) => copies.push((result, own)),
                    None => return Ok(None),
                }
            }
        }
        let pairs: Vec<_> = copies.iter().map(|(from, to)| (from, *to)).collect();
        if results.len() != count || self.copies(&pairs).is_none() {
            return Ok(None);
        }
        self.instructions.push(Instruction::Repeat(again));
        self.land(end);
        all.truncate(count);
        Ok(Some(all.into_iter().map(|(_, own)| own).collect()))
    }
}

/// What a node with blocks is given; such nodes take no nil.
fn given(node: &Node, values: &[Option<Array>]) -> Result<Option<Vec<Array>>> {
    let inputs = node
        .inputs
        .iter()
        .map(|value| values.get((*value)? as usize)?.as_ref());
    inputs
        .map(|array| array.map(mlx::share).transpose())
        .collect()
}

/// A loop that is written down, on its way.
struct Repeated {
    instructions: Vec<Instruction>,
    next: usize,
    state: Held,
    _held: Held,
}

// SAFETY: the pointers go to the memory of arrays that are held, which nobody else has, or of inputs and constants,
// which nobody writes.
unsafe impl Send for Repeated {}

impl Repeated {
    /// Or what it ends at: something in it is not a small kernel of ours, or it fails. Then the loop fails as others do,
    /// in a step that there is.
    fn of(given: &Begun) -> Result<std::result::Result<Repeated, String>> {
        let inputs = given.inputs.iter().copied().map(mlx::share);
        let inputs = Held(inputs.collect::<Result<_>>()?);
        let tape = Tape::default();
        let mut recorder = Recorder::new(given.stream, &tape);
        let state = recorder.repeated(given.condition, given.body, given.state, &inputs.0);
        Ok(match state {
            Ok(Some(state)) => Ok(Repeated {
                instructions: recorder.instructions,
                next: 0,
                state: Held(state),
                _held: recorder.held,
            }),
            Ok(None) => Err(match recorder.obstacle {
                Some(name) => format!("{name} has no kernel of ours here, or its arrays are large"),
                None => "values are large, or change their shape or type".into(),
            }),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Goes on until the end, or until the time is over.
    fn go_on(&mut self, time: Duration) -> Progress {
        let began = Instant::now();
        let mut steps = 0;
        while let Some(instruction) = self.instructions.get_mut(self.next) {
            self.next += 1;
            match instruction {
                // SAFETY: the memory belongs to this loop alone, which one thread runs at a time.
                Instruction::Kernel(kernel) => unsafe { kernel.run() },
                // SAFETY: as before.
                Instruction::Copies(copies) => unsafe { copies.run() },
                Instruction::JumpIfZero { number, dtype, to } => {
                    // SAFETY: the bytes of a number of this type, which is held.
                    let number = unsafe { std::slice::from_raw_parts(*number, dtype.size()) };
                    if !dtype.is_nonzero(number) {
                        self.next = *to;
                    }
                }
                Instruction::Jump(to) => self.next = *to,
                Instruction::Repeat(to) => {
                    self.next = *to;
                    steps += 1;
                    if steps % STEPS == 0 && began.elapsed() > time {
                        return Progress::Going;
                    }
                }
            }
        }
        Progress::Ended
    }
}

impl RunningLoop for Repeated {
    fn advance(&mut self, time: Duration) -> Result<Progress> {
        catch_unwind(AssertUnwindSafe(|| self.go_on(time)))
            .map_err(|_| Error::invalid("a kernel of the loop's step panicked"))
    }

    fn state(&self, needed: &[bool]) -> Result<Vec<Option<Array>>> {
        let values = self.state.0.iter().zip(needed);
        // The memory is this loop's no longer.
        values
            .map(|(array, needed)| needed.then(|| mlx::share(array)).transpose())
            .collect()
    }
}
