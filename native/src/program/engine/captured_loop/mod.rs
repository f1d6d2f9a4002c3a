//! A loop on CUDA whose step is one CUDA graph, whatever its operations are. The condition and the body are evaluated
//! once, by cpp/captured_step.cpp, on memory that the loop has for its state. From then on a step is the launch of what
//! MLX launched for that, with kernels behind it that bring the new state to where the next step reads it and tell the
//! host whether there is one. What a step writes where it lies, as a cache, is never copied.

#[cfg(not(emlx_kernels))]
mod absent;
#[cfg(emlx_kernels)]
mod cuda;

#[cfg(not(emlx_kernels))]
use absent as runner;
#[cfg(emlx_kernels)]
use cuda as runner;

use super::captured;
use super::{Begun, LoopEngine, RunningLoop};
use crate::base::{Error, Result, Signature};
use crate::program::plan::{Code, Work};
use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use runner::CapturedStep;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Bytes up to which an input that the loop only reads is copied when it begins. A larger one is read where it lies, and
/// the step is captured anew if it is another one the next time.
const MAX_COPIED: usize = 1 << 18;
/// Inputs that are others each time are copied up to so many bytes in all.
const MAX_VARYING: usize = 1 << 28;
/// Steps that are kept for a loop, each for inputs of other shapes or of another stream.
const MAX_KEPT: usize = 4;
/// Captures that may fail before the loop is left to the host.
const MAX_REFUSED: u32 = 2;
/// Fewer steps than this are not worth a capture.
const MIN_STEPS: usize = 4;

/// The engine: a loop's two blocks, and the steps that were captured.
#[derive(Debug)]
pub struct CapturedLoop {
    /// The condition and the body without segments that are captured by themselves.
    plain: OnceCell<[Code; 2]>,
    home: Arc<Home>,
    /// Captures that failed one after the other, and why the last one did.
    refused: Mutex<(u32, String)>,
}

/// Captured steps that no loop is running.
#[derive(Default)]
struct Home {
    steps: Mutex<Vec<CapturedStep>>,
    /// Which inputs were others when the loop began again.
    varying: Mutex<Vec<bool>>,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Home({} steps)", self.steps.lock().len())
    }
}

static ALL: Mutex<Vec<Weak<Home>>> = Mutex::new(Vec::new());

fn all() -> Vec<Arc<Home>> {
    ALL.lock().iter().filter_map(Weak::upgrade).collect()
}

/// How many steps are kept, and the bytes that they hold. Those of loops that are running are not among them.
pub fn kept() -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for home in all() {
        let steps = home.steps.lock();
        count += steps.len();
        bytes += steps.iter().map(CapturedStep::bytes).sum::<usize>();
    }
    (count, bytes)
}

/// Gives up the steps that nobody has used for so long.
pub fn forget(unused: Duration) {
    for home in all() {
        let given_up: Vec<CapturedStep> = {
            let mut steps = home.steps.lock();
            let (old, new) = std::mem::take(&mut *steps)
                .into_iter()
                .partition(|step| step.unused() >= unused);
            *steps = new;
            old
        };
        drop(given_up);
    }
}

impl CapturedLoop {
    /// The engine for a loop, or why there is none.
    pub fn of(
        condition: &Arc<Code>,
        body: &Arc<Code>,
    ) -> std::result::Result<CapturedLoop, String> {
        check(condition, "condition")?;
        check(body, "body")?;
        let home = Arc::new(Home::default());
        let mut all = ALL.lock();
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&home));
        Ok(CapturedLoop {
            plain: OnceCell::new(),
            home,
            refused: Mutex::default(),
        })
    }
}

fn check(code: &Code, name: &str) -> std::result::Result<(), String> {
    for node in &code.nodes {
        let reason = match &node.work {
            Work::Op(op) if op.can_fail_late() => "may fail late",
            Work::Op(_) | Work::Segment(_) => continue,
            Work::If { .. } => "is a branch, which the host decides",
            Work::While { .. } => "is a loop of its own",
            Work::Call { .. } => "asks the calling process",
        };
        return Err(format!(
            "its step is not one graph, since {} of its {name} {reason}",
            node.name()
        ));
    }
    Ok(())
}

impl LoopEngine for CapturedLoop {
    fn name(&self) -> &'static str {
        "captured step"
    }

    fn min_steps(&self) -> usize {
        MIN_STEPS
    }

    fn start(&self, given: &Begun) -> Result<Option<Box<dyn RunningLoop>>> {
        if self.refused.lock().0 >= MAX_REFUSED {
            return Ok(None);
        }
        let codes = || [Code::clone(given.condition), Code::clone(given.body)];
        let plain = self.plain.get_or_init(|| codes().map(Code::expanded));
        // What fails here for a reason of its own fails again on the host, which says where.
        let running = match plain.iter().any(has_other_engine) {
            true => Err(Error::invalid("another engine has segments in it")),
            false => runner::start(&self.home, plain, given),
        };
        let mut refused = self.refused.lock();
        match running {
            Ok(running) => {
                *refused = Default::default();
                Ok(Some(running))
            }
            Err(error) => {
                *refused = (refused.0 + 1, error.to_string());
                Ok(None)
            }
        }
    }

    fn state(&self) -> Option<String> {
        let (refused, reason) = &*self.refused.lock();
        match (refused, self.home.steps.lock().len()) {
            (1.., _) => Some(format!("not captured: {reason}")),
            (0, 0) => None,
            (0, count) => Some(format!("{count} captured")),
        }
    }
}

fn has_other_engine(code: &Code) -> bool {
    let is_other = |work: &Work| matches!(work, Work::Segment(segment) if !segment.is_capturable());
    code.nodes.iter().any(|node| is_other(&node.work))
}

/// Bytes that all values of a step may have.
fn room() -> usize {
    captured::MAX_BYTES.min(captured::room() / 2)
}

fn bytes_of((shape, dtype): &Signature) -> usize {
    shape.iter().map(|n| *n as usize).product::<usize>() * dtype.size()
}

/// Which of a loop's inputs are copied to memory of its own when it begins: all of the state, and of the others those
/// that are small or were others each time.
fn copied(inputs: &[Signature], state: usize, varying: &[bool]) -> Vec<bool> {
    let mut left = MAX_VARYING;
    let inputs = inputs.iter().enumerate();
    inputs
        .map(|(i, input)| {
            let bytes = bytes_of(input);
            if i < state || bytes <= MAX_COPIED {
                return true;
            }
            let is_varying = varying.get(i).copied().unwrap_or(false) && bytes <= left;
            if is_varying {
                left -= bytes;
            }
            is_varying
        })
        .collect()
}

/// How a value of the new state comes to where the next step reads it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// It is there.
    Stays,
    Copied,
    /// By way of other memory, because a copy would be written over before it is read.
    Staged,
}

/// The ways of the values that a step has left at `made`; the next one reads them at `places`.
fn ways(made: &[Range<u64>], places: &[Range<u64>]) -> Vec<Way> {
    let both = made.iter().zip(places);
    both.map(|(from, to)| {
        let lies_in = |place: &Range<u64>| from.start < place.end && place.start < from.end;
        match () {
            () if from == to => Way::Stays,
            () if places.iter().any(lies_in) => Way::Staged,
            () => Way::Copied,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Dtype;
    use crate::op::Op;
    use crate::program::{Block, Instruction, Step};

    fn ranges(of: &[(u64, u64)]) -> Vec<Range<u64>> {
        of.iter()
            .map(|(start, bytes)| *start..start + bytes)
            .collect()
    }

    #[test]
    fn a_value_is_copied_unless_it_is_there() {
        let places = ranges(&[(0, 16), (16, 16), (32, 64)]);
        let made = ranges(&[(0, 16), (1000, 16), (2000, 64)]);
        assert_eq!(ways(&made, &places), [Way::Stays, Way::Copied, Way::Copied]);
    }

    #[test]
    fn values_that_change_places_are_staged() {
        let places = ranges(&[(0, 16), (16, 16), (32, 64)]);
        // The first two exchanged, and the third one a part of itself.
        let made = ranges(&[(16, 16), (0, 16), (40, 64)]);
        assert_eq!(ways(&made, &places), [Way::Staged; 3]);
        // Two that are made of one.
        let made = ranges(&[(0, 16), (0, 16), (2000, 64)]);
        assert_eq!(ways(&made, &places), [Way::Stays, Way::Staged, Way::Copied]);
    }

    #[test]
    fn large_inputs_are_read_where_they_lie_until_they_vary() {
        let large = (vec![1 << 17], Dtype::F32);
        let inputs = [large.clone(), (vec![4], Dtype::F32), large.clone(), large];
        assert_eq!(copied(&inputs, 1, &[]), [true, true, false, false]);
        let varying = [false, false, true, false];
        assert_eq!(copied(&inputs, 1, &varying), [true, true, true, false]);
        // Not more than there is room for.
        let vast = (vec![1 << 26], Dtype::F32);
        assert_eq!(copied(&[vast.clone(), vast], 0, &[true; 2]), [true, false]);
    }

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn code(inputs: usize, instructions: Vec<Instruction>, outputs: Vec<u32>) -> Arc<Code> {
        Arc::new(Code::of(
            &Block::new(inputs, instructions, outputs).expect("well-formed"),
        ))
    }

    #[test]
    fn a_loop_that_asks_others_is_the_hosts() {
        let condition = code(1, vec![op(Op::Isfinite, &[0])], vec![1]);
        let body = code(1, vec![op(Op::Cos, &[0])], vec![1]);
        assert!(CapturedLoop::of(&condition, &body).is_ok());
        let call = Step::Call {
            id: 0,
            outputs: vec![(vec![], Dtype::F32)],
        };
        let asks = code(1, vec![Instruction::new(call, [Some(0)], 1, None)], vec![1]);
        let reason = CapturedLoop::of(&condition, &asks).expect_err("refused");
        assert!(reason.contains("call 0 of its body asks"), "{reason}");
    }
}
