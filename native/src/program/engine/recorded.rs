//! Loops over small arrays on the CPU. One step is built as always, and its kernels, which are computed on the spot,
//! are written down with the memory that they read and write. Each further step is these kernels once more: no nodes,
//! no other thread, and no memory. At the end of a step its results are copied to where the next one reads the state.

use super::{Begun, LoopEngine, Progress, RunningLoop};
use crate::base::{Device, Dtype, Error, Result, Signature};
use crate::cpu;
use crate::mlx::{self, Recorded, Stream, Tape};
use crate::program::build;
use crate::program::plan::Code;
use mlx_rs::Array;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Elements of a value of the state, at most: from there on a copy of it each step is worth avoiding.
const MAX_ELEMENTS: i64 = 4096;
/// Recordings that fail before no further one is tried. One can fail because an input is not computed yet.
const MAX_FAILURES: usize = 3;
/// Steps between two looks at the time.
const STEPS: usize = 64;

/// How the recordings of one loop have gone.
#[derive(Debug, Default)]
pub struct Recordings {
    made: AtomicUsize,
    failed: AtomicUsize,
}

impl LoopEngine for Recordings {
    fn name(&self) -> &'static str {
        "recorded step"
    }

    fn takes_first(&self, state: &[Signature]) -> bool {
        let size = |shape: &[i32]| shape.iter().map(|n| i64::from(*n)).product::<i64>();
        let has_failed = self.failed.load(Ordering::Relaxed) >= MAX_FAILURES;
        let is_small = || state.iter().all(|(shape, _)| size(shape) <= MAX_ELEMENTS);
        mlx::has_tasks() && !has_failed && is_small()
    }

    /// None where a step has something that is not a small kernel of ours.
    fn start(&self, given: &Begun) -> Result<Option<Box<dyn RunningLoop>>> {
        if !mlx::has_tasks() {
            return Ok(None);
        }
        let repeated = Repeated::of(given)?;
        let counter = match repeated {
            Some(_) => &self.made,
            None => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(repeated.map(|repeated| Box::new(repeated) as _))
    }

    fn state(&self) -> Option<String> {
        let made = self.made.load(Ordering::Relaxed);
        match (made, self.failed.load(Ordering::Relaxed)) {
            (0, failed) if failed >= MAX_FAILURES => {
                Some("none: an operation has no kernel of ours, or arrays are large".into())
            }
            (0, _) => None,
            (made, _) => Some(format!("{made} runs")),
        }
    }
}

/// Arrays that are given up as all nodes are.
struct Held(Vec<Array>);

impl Drop for Held {
    fn drop(&mut self) {
        mlx::release_all(std::mem::take(&mut self.0).into());
    }
}

/// What a step does to one value of the state.
struct Move {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

struct Repeated {
    condition: Vec<Recorded>,
    body: Vec<Recorded>,
    moves: Vec<Move>,
    /// Between the results and the state, where results lie in the state's memory.
    staging: Vec<u8>,
    /// The condition's result.
    asked: (*const u8, Dtype),
    state: Held,
    /// What the recordings read and write.
    _held: [Held; 3],
    has_ended: bool,
}

// SAFETY: the pointers go to the memory of arrays that are held, which nobody else has, or of constants.
unsafe impl Send for Repeated {}

/// A computed array's bytes, in rows.
fn bytes(array: &Array) -> Option<&'static [u8]> {
    let lock = mlx::graph_lock();
    match mlx::is_available(array, &lock) {
        // SAFETY: computed; whoever keeps the slice keeps the array.
        true => unsafe { mlx::bytes(array) },
        false => None,
    }
}

/// The kernels of code on these inputs, which have computed its outputs.
fn record(code: &Code, inputs: &[Array], stream: &Stream) -> Result<(Vec<Recorded>, Held)> {
    let tape = Tape::default();
    let inputs = inputs.iter().map(mlx::share).collect::<Result<Vec<_>>>()?;
    let stream = stream.recording(&tape);
    let (outputs, _) = build::outputs(code, inputs, Device::Cpu, &stream, |_, _| {})?;
    let mut held = Held(outputs);
    for output in &mut held.0 {
        if bytes(output).is_none() {
            // Another one, in rows; of what is not computed there is none.
            if let Some(copy) = cpu::copy_at_once(output, &stream)? {
                mlx::release(std::mem::replace(output, copy));
            }
        }
    }
    Ok((tape.take(), held))
}

impl Repeated {
    fn of(given: &Begun) -> Result<Option<Repeated>> {
        let (count, inputs, stream) = (given.state, given.inputs, given.stream);
        let mut all = Vec::with_capacity(inputs.len());
        // Copied on a recording stream, which waits for the graph's lock. The copies' kernels are not repeated.
        let waiting = stream.recording(&Tape::default());
        for (i, input) in inputs.iter().enumerate() {
            all.push(match i < count {
                true => match cpu::copy_at_once(input, &waiting)? {
                    Some(own) => own,
                    None => return Ok(None),
                },
                false => mlx::share(input)?,
            });
        }
        let all = Held(all);
        let (asks, answers) =
            record(given.condition, &all.0, stream).map_err(|error| error.within("condition"))?;
        let asked = answers
            .0
            .first()
            .and_then(|answer| Some((bytes(answer)?, mlx::dtype(answer))));
        let Some((answer, dtype)) = asked.filter(|(answer, dtype)| answer.len() == dtype.size())
        else {
            return Ok(None);
        };
        let mut repeated = Repeated {
            condition: asks,
            body: Vec::new(),
            moves: Vec::new(),
            staging: Vec::new(),
            asked: (answer.as_ptr(), dtype),
            state: Held(
                all.0[..count]
                    .iter()
                    .map(mlx::share)
                    .collect::<Result<_>>()?,
            ),
            _held: [all, answers, Held(Vec::new())],
            has_ended: !dtype.is_nonzero(answer),
        };
        if repeated.has_ended {
            return Ok(Some(repeated));
        }
        let (steps, results) = record(given.body, &repeated._held[0].0, stream)
            .map_err(|error| error.within("body"))?;
        if results.0.len() != count || !repeated.take(steps, &results.0) {
            return Ok(None);
        }
        repeated._held[2] = results;
        // The step has been computed by being recorded.
        repeated.advance_state();
        Ok(Some(repeated))
    }

    /// Takes the body's kernels and results. False where a result is not computed, or not what the state was.
    fn take(&mut self, body: Vec<Recorded>, results: &[Array]) -> bool {
        self.body = body;
        let mut places = Vec::with_capacity(results.len());
        for (result, own) in results.iter().zip(&self.state.0) {
            let is_same = result.shape() == own.shape() && mlx::dtype(result) == mlx::dtype(own);
            match (bytes(result), bytes(own)) {
                (Some(from), Some(to)) if is_same => places.push((from, to)),
                _ => return false,
            }
        }
        // What a step leaves as it is stays where it is.
        places.retain(|(from, to)| from.as_ptr() != to.as_ptr());
        let touches = |from: &[u8], own: &Array| {
            let own = bytes(own).map_or(0..0, |own| {
                own.as_ptr() as usize..own.as_ptr() as usize + own.len()
            });
            let start = from.as_ptr() as usize;
            start < own.end && own.start < start + from.len()
        };
        let is_inside = places
            .iter()
            .any(|(from, _)| self.state.0.iter().any(|own| touches(from, own)));
        if is_inside {
            self.staging = vec![0; places.iter().map(|(from, _)| from.len()).sum()];
        }
        self.moves = places
            .iter()
            .map(|(from, to)| Move {
                from: from.as_ptr(),
                to: to.as_ptr().cast_mut(),
                bytes: from.len(),
            })
            .collect();
        true
    }

    /// Makes the results of a step the state of the next.
    fn advance_state(&mut self) {
        let is_staged = !self.staging.is_empty();
        let mut place = self.staging.as_mut_ptr();
        if is_staged {
            for moved in &self.moves {
                // SAFETY: the staging holds all results one after the other.
                unsafe {
                    std::ptr::copy_nonoverlapping(moved.from, place, moved.bytes);
                    place = place.add(moved.bytes);
                }
            }
            place = self.staging.as_mut_ptr();
        }
        for moved in &self.moves {
            // SAFETY: as many bytes of an array that is held, and of one that nobody else has.
            unsafe {
                let from = if is_staged {
                    place.cast_const()
                } else {
                    moved.from
                };
                std::ptr::copy_nonoverlapping(from, moved.to, moved.bytes);
                if is_staged {
                    place = place.add(moved.bytes);
                }
            }
        }
    }

    /// Steps until there is none, or until the time is over.
    fn steps(&mut self, time: Duration) -> Progress {
        let began = Instant::now();
        let (answer, dtype) = self.asked;
        for step in 1.. {
            // SAFETY: the memory belongs to this loop alone, which one thread runs at a time.
            unsafe {
                self.condition.iter().for_each(|kernel| kernel.run());
                if !dtype.is_nonzero(std::slice::from_raw_parts(answer, dtype.size())) {
                    break;
                }
                self.body.iter().for_each(|kernel| kernel.run());
            }
            self.advance_state();
            if step % STEPS == 0 && began.elapsed() > time {
                return Progress::Going;
            }
        }
        self.has_ended = true;
        Progress::Ended
    }
}

impl RunningLoop for Repeated {
    fn advance(&mut self, time: Duration) -> Result<Progress> {
        if self.has_ended {
            return Ok(Progress::Ended);
        }
        catch_unwind(AssertUnwindSafe(|| self.steps(time)))
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
