//! Segments that CUDA launches as one graph. Launching a model's kernels one by one takes the host longer than the GPU
//! takes to run them; a graph of them is launched at once. A segment is run node by node until it is known which of its
//! inputs stay the same arrays, as weights do; then it is captured by cpp/captured.cpp, with those read where they lie
//! and the others copied for each run.

#[cfg(not(emlx_kernels))]
mod absent;
#[cfg(emlx_kernels)]
pub mod copies;
#[cfg(emlx_kernels)]
mod cuda;

#[cfg(not(emlx_kernels))]
use absent as launcher;
#[cfg(emlx_kernels)]
use cuda as launcher;
#[cfg(emlx_kernels)]
pub(super) use cuda::with_edges;

use super::{captured_loop, Given, Segment};
use crate::base::{Device, Result, Signature};
use crate::mlx::{self, Stream};
use crate::op::{Applied, Crossed};
use crate::program::build;
use crate::program::plan::Code;
use launcher::{Captured, State};
use mlx_rs::Array;
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Runs in a row for which an input is the same array before it is taken to stay.
const MIN_SAME: u32 = 2;
/// Runs after which a segment whose inputs never settle is left to run node by node.
const MAX_WATCHED: u32 = 32;
/// Bytes of a segment's values up to which it is captured: they are held as long as the graph is, and none is written
/// over. What takes more is not limited by launches.
pub(super) const MAX_BYTES: usize = 1 << 32;
/// Bytes of inputs that are copied for each run.
const MAX_COPIED: usize = 1 << 28;
/// Streams and sets of shapes for which a segment is captured.
const MAX_WAYS: usize = 8;
/// How often inputs that were taken to stay may be others before the segment is left alone.
const MAX_CHANGES: u32 = 8;
/// What all graphs hold is at most this part of the memory that MLX may use, and one of them half of it.
const PART_OF_MEMORY: usize = 8;
/// How long a graph is unused before it makes room for another one.
const IDLE: Duration = Duration::from_secs(10);

/// Whether programs are captured at all: on CUDA, unless EMLX_CUDA_GRAPHS is 0.
pub fn is_on() -> bool {
    static IS_ON: OnceCell<bool> = OnceCell::new();
    *IS_ON.get_or_init(|| {
        let is_off = std::env::var("EMLX_CUDA_GRAPHS").is_ok_and(|value| value == "0");
        !is_off && launcher::is_there()
    })
}

/// Operations, and how they are run for each stream and set of shapes.
#[derive(Debug)]
pub struct Captures {
    code: Arc<Code>,
    ways: Mutex<Vec<Way>>,
}

/// How a segment is run for inputs of certain shapes and types on a stream.
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

static ALL: Mutex<Vec<Weak<Captures>>> = Mutex::new(Vec::new());

/// Those that are there. Nobody may have a segment's lock and wait for the list's, and the other way round: the list's
/// is left first.
fn all() -> Vec<Arc<Captures>> {
    locked(&ALL).iter().filter_map(Weak::upgrade).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Captures {
    pub fn new(code: Code) -> Arc<Captures> {
        let captures = Arc::new(Captures {
            code: Arc::new(code),
            ways: Mutex::default(),
        });
        let mut all = locked(&ALL);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&captures));
        captures
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
            way.form = Form::Captured(launcher::capture(&self.code, stream, &way.history.fixed()));
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

impl Segment for Captures {
    fn name(&self) -> &'static str {
        "captured"
    }

    fn place(&self, _: usize) -> String {
        String::new()
    }

    fn operations(&self) -> usize {
        self.code.nodes.len()
    }

    fn inside(&self) -> Option<&Code> {
        Some(&self.code)
    }

    fn build(&self, given: &Given, device: Device, stream: &Stream) -> Result<Applied> {
        let numbers: Vec<Option<u64>> = (0..given.arrays.len()).map(given.number).collect();
        let inputs = given.present();
        device.enter(stream)?;
        if let Next::Nodes(outputs) = self.next(&inputs, &numbers, stream)? {
            return Ok(Applied {
                outputs: outputs.into(),
                crossed: Crossed::default(),
            });
        }
        let shared = inputs.iter().copied().map(mlx::share);
        let shared = shared.collect::<Result<Vec<_>>>()?;
        let mut bytes = 0;
        let (outputs, crossed) =
            build::outputs(&self.code, shared, device, stream, |node, made| {
                if node.op().is_none_or(|op| op.traits().view.is_none()) {
                    bytes += made.iter().map(|array| array.nbytes()).sum::<usize>();
                }
            })?;
        let is_for_cuda = crossed.is_empty()
            && bytes <= MAX_BYTES.min(room() / 2)
            && inputs.iter().all(|array| array.size() > 0)
            && outputs.iter().all(|array| array.size() > 0);
        self.learn(&inputs, stream, &outputs, is_for_cuda);
        Ok(Applied {
            outputs: outputs.into(),
            crossed,
        })
    }

    fn state(&self) -> Option<String> {
        let ways = locked(&self.ways);
        let count = |is: &dyn Fn(&Form) -> bool| ways.iter().filter(|way| is(&way.form)).count();
        let states = [
            (count(&|form| matches!(form, Form::Captured(_))), "captured"),
            (count(&|form| matches!(form, Form::Watched)), "watched"),
            (
                count(&|form| matches!(form, Form::NodeByNode)),
                "node by node",
            ),
        ];
        let states = states.iter().filter(|(count, _)| *count > 0);
        let texts: Vec<String> = states
            .map(|(count, name)| format!("{count} {name}"))
            .collect();
        (!texts.is_empty()).then(|| texts.join(", "))
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
pub(super) fn room() -> usize {
    mlx::memory_limit().unwrap_or(0) / PART_OF_MEMORY
}

/// Drops graphs that nobody has used for a while if all of them hold too much. False where that is not enough.
fn make_room() -> bool {
    let limit = room();
    let held = |is_over: &mut dyn FnMut(&Way) -> bool| {
        let mut total = 0;
        for segment in all() {
            // One that is in use is not idle.
            let Some(mut ways) = segment.ways.try_lock() else {
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
    let is_room = |held| captured_loop::kept().1 + held <= limit;
    if is_room(held(&mut |_| false)) {
        return true;
    }
    captured_loop::forget(IDLE);
    is_room(held(&mut |way| way.used.elapsed() > IDLE))
}

/// How many graphs there are, and the bytes that they hold.
pub fn graphs() -> (usize, usize) {
    let (mut count, mut bytes) = captured_loop::kept();
    for segment in all() {
        for way in locked(&segment.ways).iter() {
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
    captured_loop::forget(Duration::ZERO);
    for segment in all() {
        for way in locked(&segment.ways).iter_mut() {
            if let Form::Captured(_) = way.form {
                way.form = Form::Watched;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Dtype;
    use crate::op::Op;
    use crate::program::{Block, Instruction, Step};

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

    #[test]
    fn a_segment_is_first_run_node_by_node() {
        mlx::init();
        let stream = Device::Cpu.stream().expect("the CPU is there");
        let instruction = |i| Instruction::new(Step::Op(Op::Abs), [Some(i)], 1, None);
        let block = Block::new(1, vec![instruction(0), instruction(1)], vec![2]);
        let segment = Captures::new(Code::of(&block.expect("well-formed")));
        let input = mlx::from_bytes(&(-2.5f32).to_le_bytes(), &[1], Dtype::F32).expect("made");
        for _ in 0..MIN_SAME {
            let given = Given {
                arrays: &[Some(&input)],
                number: &|_| Some(1),
            };
            let outputs = segment.build(&given, Device::Cpu, stream);
            let outputs = outputs.expect("built").outputs;
            let refs: Vec<&Array> = outputs.iter().collect();
            mlx::async_eval(&refs, &mlx::graph_lock()).expect("submitted");
            mlx::wait(refs[0]).expect("computed");
            // SAFETY: computed, and nobody else has it.
            let bytes = unsafe { mlx::bytes(refs[0]) };
            assert_eq!(bytes, Some(&2.5f32.to_le_bytes()[..]));
        }
        let ways = locked(&segment.ways);
        assert_eq!(ways.len(), 1);
        assert_eq!(ways[0].outputs, Some(vec![(vec![1], Dtype::F32)]));
        assert!(matches!(ways[0].form, Form::Watched));
    }
}
