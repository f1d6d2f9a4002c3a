//! Stretches of operations that CUDA launches as one graph. Launching a model's kernels one by one takes the host longer than the GPU
//! takes to run them; a graph of them is launched at once. A stretch is run node by node until it is known which of its inputs stay
//! the same arrays, as weights do; then it is captured by cpp/captured.cpp, with those read where they lie and the others copied for
//! each run. Called by `run.rs`, for programs on a GPU of CUDA's.

#[cfg(not(emlx_kernels))]
mod absent;
#[cfg(emlx_kernels)]
mod cuda;

#[cfg(not(emlx_kernels))]
use absent as launcher;
#[cfg(emlx_kernels)]
use cuda as launcher;

use super::fuse::{self, Stretches};
use super::{nodes, Block, Instruction, Step};
use crate::device::Device;
use crate::error::{Result, Signature};
use crate::mlx::{self, Stream};
use crate::op::Crossed;
use launcher::{Captured, State};
use mlx_rs::Array;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Operations from which launching them together pays for copying inputs and outputs.
const MIN_OPERATIONS: usize = 8;
/// Runs in a row for which an input is the same array before it is taken to stay.
const MIN_SAME: u32 = 2;
/// Runs after which a stretch whose inputs never settle is left to run node by node.
const MAX_WATCHED: u32 = 32;
/// Bytes of a stretch's values up to which it is captured: they are held as long as the graph is, and none is written over. What takes
/// more is not limited by launches.
const MAX_BYTES: usize = 1 << 32;
/// Bytes of inputs that are copied for each run.
const MAX_COPIED: usize = 1 << 28;
/// Streams and sets of shapes for which a stretch is captured.
const MAX_WAYS: usize = 8;
/// How often inputs that were taken to stay may be others before the stretch is left alone.
const MAX_CHANGES: u32 = 8;
/// What all graphs hold is at most this part of the memory that MLX may use, and one of them half of it.
const PART_OF_MEMORY: usize = 8;
/// How long a graph is unused before it makes room for another one.
const IDLE: Duration = Duration::from_secs(10);

/// Whether programs are captured at all: on CUDA, unless EMLX_CUDA_GRAPHS is 0.
pub fn is_on() -> bool {
    static IS_ON: OnceLock<bool> = OnceLock::new();
    *IS_ON.get_or_init(|| {
        let is_off = std::env::var("EMLX_CUDA_GRAPHS").is_ok_and(|value| value == "0");
        !is_off && launcher::is_there()
    })
}

/// The block with its stretches of many operations as one instruction each; None where there are none. Blocks inside are as they are.
pub fn stretched(block: &Block) -> Option<Arc<Block>> {
    let is_whole = |instruction: &Instruction| {
        matches!(
            instruction.step,
            Step::Op(_) | Step::If { .. } | Step::While { .. } | Step::Call { .. }
        )
    };
    if !block.instructions.iter().all(is_whole) {
        return None;
    }
    let stretched = fuse::with_stretches(
        block,
        &Stretches {
            pays: &|stretch| operations(stretch) >= MIN_OPERATIONS,
            is_part: &|instruction| match &instruction.step {
                Step::Op(op) => !op.can_fail_late(),
                _ => false,
            },
            step: &|block| Step::Stretch(Stretch::new(block)),
            inside: &|block| Ok(block.clone()),
        },
    );
    let has_one = |block: &Block| {
        let mut steps = block.instructions.iter();
        steps.any(|instruction| matches!(instruction.step, Step::Stretch(_)))
    };
    stretched.ok().filter(has_one).map(Arc::new)
}

fn operations(stretch: &[Instruction]) -> usize {
    let has_kernel = |instruction: &&Instruction| matches!(&instruction.step, Step::Op(op) if op.traits().view.is_none());
    stretch.iter().filter(has_kernel).count()
}

/// Operations between two instructions of another kind, and how they are run for each stream and set of shapes.
#[derive(Debug)]
pub struct Stretch {
    pub block: Arc<Block>,
    ways: Mutex<Vec<Way>>,
}

/// How a stretch is run for inputs of certain shapes and types on a stream.
#[derive(Debug)]
struct Way {
    stream: Stream,
    inputs: Vec<Signature>,
    /// Known after the first run.
    outputs: Option<Vec<Signature>>,
    history: History,
    form: Form,
    used: Instant,
}

#[derive(Debug)]
enum Form {
    /// Node by node, until it is known which inputs stay.
    Watched,
    Captured(Captured),
    NodeByNode,
}

/// Which inputs are the same from run to run.
#[derive(Debug, Default, PartialEq)]
struct History {
    /// The number of each input of the last run; None for what is computed anew.
    last: Vec<Option<u64>>,
    /// For how many runs before that it was the same one.
    same: Vec<u32>,
    runs: u32,
    /// How often one that was taken to stay was another one.
    changes: u32,
}

impl History {
    fn see(&mut self, numbers: &[Option<u64>]) {
        self.runs += 1;
        if self.last.len() != numbers.len() {
            self.same = vec![0; numbers.len()];
        } else {
            for (i, number) in numbers.iter().enumerate() {
                let is_same = number.is_some() && *number == self.last[i];
                self.same[i] = if is_same { self.same[i] + 1 } else { 0 };
            }
        }
        self.last = numbers.to_vec();
    }

    /// Which inputs are taken to stay.
    fn fixed(&self) -> Vec<bool> {
        self.same.iter().map(|same| *same >= MIN_SAME).collect()
    }

    /// Whether one of those is another one now.
    fn breaks(&self, numbers: &[Option<u64>]) -> bool {
        let mut inputs = self.last.iter().zip(numbers).zip(&self.same);
        inputs.any(|((last, number), same)| *same >= MIN_SAME && last != number)
    }
}

/// What is to be done for a run.
enum Next {
    Build,
    Nodes(Vec<Array>),
}

static ALL: Mutex<Vec<Weak<Stretch>>> = Mutex::new(Vec::new());

/// Those that are there. Nobody may have a stretch's lock and wait for the list's, and the other way round: the list's is left first.
fn all() -> Vec<Arc<Stretch>> {
    locked(&ALL).iter().filter_map(Weak::upgrade).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stretch {
    fn new(block: Block) -> Arc<Stretch> {
        let stretch = Arc::new(Stretch {
            block: Arc::new(block),
            ways: Mutex::default(),
        });
        let mut all = locked(&ALL);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&stretch));
        stretch
    }

    /// The nodes of the stretch's outputs. `numbers` are those of the handles that inputs come from.
    pub fn build(
        &self,
        inputs: &[&Array],
        numbers: &[Option<u64>],
        device: Device,
        stream: &Stream,
    ) -> Result<(Vec<Array>, Crossed)> {
        device.enter(stream)?;
        if let Next::Nodes(outputs) = self.next(inputs, numbers, stream)? {
            return Ok((outputs, Crossed::default()));
        }
        let shared = inputs.iter().copied().map(mlx::share);
        let shared = shared.collect::<Result<Vec<_>>>()?;
        let mut bytes = 0;
        let (outputs, crossed) = nodes(&self.block, shared, device, stream, |op, made| {
            if op.traits().view.is_none() {
                bytes += made.iter().map(|array| array.nbytes()).sum::<usize>();
            }
        })?;
        let is_for_cuda = crossed.is_empty()
            && bytes <= MAX_BYTES.min(room() / 2)
            && inputs.iter().all(|array| array.size() > 0)
            && outputs.iter().all(|array| array.size() > 0);
        self.learn(inputs, stream, &outputs, is_for_cuda);
        Ok((outputs, crossed))
    }

    fn next(&self, inputs: &[&Array], numbers: &[Option<u64>], stream: &Stream) -> Result<Next> {
        let mut ways = locked(&self.ways);
        let Some(way) = way_of(&mut ways, inputs, stream) else {
            if ways.len() >= MAX_WAYS {
                let oldest = ways.iter().enumerate().min_by_key(|(_, way)| way.used);
                let oldest = oldest.map(|(i, _)| i).unwrap_or(0);
                ways.swap_remove(oldest);
            }
            let mut history = History::default();
            history.see(numbers);
            ways.push(Way {
                stream: stream.clone(),
                inputs: inputs.iter().copied().map(signature).collect(),
                outputs: None,
                history,
                form: Form::Watched,
                used: Instant::now(),
            });
            return Ok(Next::Build);
        };
        way.used = Instant::now();
        match &way.form {
            Form::NodeByNode => return Ok(Next::Build),
            Form::Watched => {
                way.history.see(numbers);
                if !way.is_due() {
                    return Ok(Next::Build);
                }
            }
            Form::Captured(captured) => {
                if captured.state().0 == State::Refused {
                    way.form = Form::NodeByNode;
                    return Ok(Next::Build);
                }
                if way.history.breaks(numbers) {
                    way.history.changes += 1;
                    way.history.see(numbers);
                    way.form = match way.history.changes > MAX_CHANGES {
                        true => Form::NodeByNode,
                        false => Form::Watched,
                    };
                    return Ok(Next::Build);
                }
            }
        }
        let Some(outputs) = &way.outputs else {
            return Ok(Next::Build);
        };
        if let Form::Watched = way.form {
            way.form = Form::Captured(launcher::capture(&self.block, stream, &way.history.fixed()));
        }
        match &way.form {
            Form::Captured(captured) => captured.nodes(inputs, outputs, stream).map(Next::Nodes),
            _ => Ok(Next::Build),
        }
    }

    /// Takes note of what a run node by node gave.
    fn learn(&self, inputs: &[&Array], stream: &Stream, outputs: &[Array], is_for_cuda: bool) {
        let mut ways = locked(&self.ways);
        let Some(way) = way_of(&mut ways, inputs, stream) else {
            return;
        };
        if !is_for_cuda {
            way.form = Form::NodeByNode;
        }
        way.outputs = Some(outputs.iter().map(signature).collect());
    }
}

fn signature(array: &Array) -> Signature {
    (array.shape().to_vec(), mlx::dtype(array))
}

fn way_of<'a>(ways: &'a mut [Way], inputs: &[&Array], stream: &Stream) -> Option<&'a mut Way> {
    ways.iter_mut().find(|way| {
        let mut known = way.inputs.iter().zip(inputs);
        way.stream.is_same(stream)
            && way.inputs.len() == inputs.len()
            && known.all(|(known, array)| known.1 == mlx::dtype(array) && known.0 == array.shape())
    })
}

impl Way {
    /// Whether it is time to capture: it is known what stays, and there is room.
    fn is_due(&mut self) -> bool {
        let history = &self.history;
        if history.runs > MAX_WATCHED {
            self.form = Form::NodeByNode;
            return false;
        }
        if history.runs <= MIN_SAME || self.outputs.is_none() {
            return false;
        }
        let fixed = history.fixed();
        let copied = self.inputs.iter().zip(fixed).filter(|(_, fixed)| !fixed);
        let bytes: usize = copied.map(|(signature, _)| bytes_of(signature)).sum();
        bytes <= MAX_COPIED && make_room()
    }
}

fn bytes_of((shape, dtype): &Signature) -> usize {
    shape.iter().map(|n| *n as usize).product::<usize>() * dtype.size()
}

/// Bytes that all graphs may hold.
fn room() -> usize {
    mlx::memory_limit().unwrap_or(0) / PART_OF_MEMORY
}

/// Drops graphs that nobody has used for a while if all of them hold too much. False where that is not enough.
fn make_room() -> bool {
    let limit = room();
    let held = |is_over: &mut dyn FnMut(&Way) -> bool| {
        let mut total = 0;
        for stretch in all() {
            // One that is in use is not idle.
            let Ok(mut ways) = stretch.ways.try_lock() else {
                continue;
            };
            for way in ways.iter_mut() {
                if let Form::Captured(captured) = &way.form {
                    let bytes = captured.state().1;
                    match is_over(way) {
                        true => way.form = Form::Watched,
                        false => total += bytes,
                    }
                }
            }
        }
        total
    };
    held(&mut |_| false) <= limit || held(&mut |way| way.used.elapsed() > IDLE) <= limit
}

/// How many graphs there are, and the bytes that they hold.
pub fn graphs() -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for stretch in all() {
        for way in locked(&stretch.ways).iter() {
            if let Form::Captured(captured) = &way.form {
                let (state, held) = captured.state();
                count += usize::from(state == State::Ready);
                bytes += held;
            }
        }
    }
    (count, bytes)
}

/// Gives up the graphs, and with them their memory. They are made again when they are needed.
pub fn forget_all() {
    for stretch in all() {
        for way in locked(&stretch.ways).iter_mut() {
            if let Form::Captured(_) = way.form {
                way.form = Form::Watched;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::op::Op;

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn numbers(of: &[u64]) -> Vec<Option<u64>> {
        // 0 stands for what is computed anew.
        of.iter().map(|n| (*n > 0).then_some(*n)).collect()
    }

    fn history(runs: &[&[u64]]) -> History {
        let mut history = History::default();
        runs.iter().for_each(|run| history.see(&numbers(run)));
        history
    }

    #[test]
    fn what_was_the_same_twice_stays() {
        let seen = history(&[&[1, 2, 0], &[1, 3, 0], &[1, 4, 0]]);
        assert_eq!(seen.fixed(), [true, false, false]);
        assert!(!seen.breaks(&numbers(&[1, 5, 0])));
        assert!(seen.breaks(&numbers(&[6, 4, 0])));
        // Weights that were changed stay once they have been the same twice more.
        let runs: [&[u64]; 5] = [&[1, 2], &[3, 2], &[3, 2], &[3, 2], &[3, 2]];
        assert_eq!(history(&runs[..3]).fixed(), [false, true]);
        assert_eq!(history(&runs[..4]).fixed(), [true, true]);
    }

    fn long(count: u32) -> Vec<Instruction> {
        (0..count).map(|i| op(Op::Abs, &[i])).collect()
    }

    #[test]
    fn only_long_stretches_are_launched_together() {
        let least = MIN_OPERATIONS as u32;
        let block = |count| Block::new(1, long(count), vec![count]).expect("well-formed");
        assert!(stretched(&block(least - 1)).is_none());
        let together = stretched(&block(least)).expect("one stretch");
        assert_eq!(together.instructions.len(), 1);
        assert_eq!(together.outputs, [1]);
        // Looks at the same elements take no launches.
        let mut looks = long(least - 1);
        looks.push(op(
            Op::Flatten {
                start_axis: 0,
                end_axis: -1,
            },
            &[least - 1],
        ));
        let block = Block::new(1, looks, vec![least]).expect("well-formed");
        assert!(stretched(&block).is_none());
    }

    #[test]
    fn what_others_do_in_between_stays_by_itself() {
        let least = MIN_OPERATIONS as u32;
        let mut instructions = long(least);
        let call = Step::Call {
            id: 0,
            outputs: vec![(vec![], Dtype::F32)],
        };
        instructions.push(Instruction::new(call, [Some(least)], 1, None));
        instructions.push(op(Op::Add, &[least + 1, 2]));
        let block = Block::new(1, instructions, vec![least + 2]).expect("well-formed");
        let together = stretched(&block).expect("one stretch");
        let steps: Vec<String> = together
            .instructions
            .iter()
            .map(|i| i.step.name())
            .collect();
        assert_eq!(steps, ["captured", "call 0", "add"]);
        // Value 2 comes out of the stretch, for the addition.
        let Step::Stretch(stretch) = &together.instructions[0].step else {
            panic!("no stretch")
        };
        assert_eq!(stretch.block.outputs, [2, least]);
        assert_eq!(together.instructions[2].inputs[..], [Some(3), Some(1)]);
    }

    #[test]
    fn a_stretch_is_first_run_node_by_node() {
        mlx::init();
        let stream = Device::Cpu.stream().expect("the CPU is there");
        let least = MIN_OPERATIONS as u32;
        let block = Block::new(1, long(least), vec![least]).expect("well-formed");
        let stretch = Stretch::new(block);
        let input = mlx::from_bytes(&(-2.5f32).to_le_bytes(), &[1], Dtype::F32).expect("made");
        for _ in 0..MIN_SAME {
            let outputs = stretch.build(&[&input], &[Some(1)], Device::Cpu, stream);
            let (outputs, _) = outputs.expect("built");
            let refs: Vec<&Array> = outputs.iter().collect();
            mlx::async_eval(&refs, &mlx::graph_lock()).expect("submitted");
            mlx::wait(refs[0]).expect("computed");
            // SAFETY: computed, and nobody else has it.
            let bytes = unsafe { mlx::bytes(refs[0]) };
            assert_eq!(bytes, Some(&2.5f32.to_le_bytes()[..]));
        }
        let ways = locked(&stretch.ways);
        assert_eq!(ways.len(), 1);
        assert_eq!(ways[0].outputs, Some(vec![(vec![1], Dtype::F32)]));
        assert!(matches!(ways[0].form, Form::Watched));
    }
}
