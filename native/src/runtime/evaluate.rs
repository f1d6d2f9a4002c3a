//! Computing arrays and waiting for them, for a queue and for the runs on it ([`Evaluator`]).

use super::exit::IS_EXITING;
#[cfg(emlx_kernels)]
use super::pace::Awake;
use super::queue::Shared;
use super::reply::Reply;
use crate::base::{Device, Dtype, Error, Reason, Result, Settings};
use crate::handle::array::{check_outcomes, outcomes_of, Handle, Outcomes};
use crate::mlx::{self, Stream};
use crate::op::Crossed;
use crate::program::evaluator::{Asked, Evaluator, Pressure};
use crate::program::Whole;
use mlx_rs::Array;
use parking_lot::{Condvar, Mutex, RwLockWriteGuard};
use rustler::ResourceArc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Shared {
    /// The stream to ask for failures after a job: the CPU's, for the GPU's may be in another thread's use.
    pub(super) fn streams(&self) -> Vec<Stream> {
        match self.device {
            Device::Cpu => vec![self.stream.clone()],
            Device::Gpu => Vec::new(),
        }
    }

    /// Waits until it is known what became of an array that can fail late.
    pub(super) fn settle(&self, array: ResourceArc<Handle>) -> Result<()> {
        let outcomes = outcomes_of([&*array]);
        let streams = self.streams_of(std::slice::from_ref(&array));
        let refs = [array.live()?];
        let submitted = self.submit(&refs, &outcomes)?;
        array.mark_submitted();
        self.finish(submitted, &refs, &streams, &outcomes, true)
    }

    /// Submits arrays in the middle of a run whose outcomes stay open. On the CPU waits for them.
    pub(super) fn compute(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<()> {
        if self.device == Device::Cpu && outcomes.is_empty() && mlx::has_tasks() {
            return self.compute_and_stay(arrays);
        }
        let _submitted = self.submit(arrays, outcomes)?;
        let mut result = Ok(());
        for stream in &self.streams() {
            result = result.and(stream.synchronize());
        }
        for outcome in outcomes {
            result = result.and(outcome.stream.synchronize());
        }
        result
    }

    /// Waits awake for what does not take long: the stream's thread tells, and both go on without having slept.
    pub(super) fn compute_and_stay(&self, arrays: &[&Array]) -> Result<()> {
        let (told, turn) = {
            let lock = mlx::graph_lock();
            let submitting = self.pace.begin(&lock);
            mlx::async_eval(arrays, &lock).inspect_err(make_room)?;
            (Arc::new(Told::default()), submitting.turn())
        };
        let (tell, pace) = (told.clone(), self.pace.clone());
        let task = move |result: Result<()>| {
            tell.tell(result);
            pace.linger(turn);
        };
        mlx::then(&self.stream, true, Box::new(task));
        let start = Instant::now();
        let result = told.wait(self.is_quick.load(Ordering::Relaxed));
        let is_quick = start.elapsed() < QUICK;
        self.is_quick.store(is_quick, Ordering::Relaxed);
        result
    }

    /// Submits a scalar, and `state` with it, without waiting for it on the GPU.
    pub(super) fn ask(
        &self,
        scalar: &Array,
        state: &[&Array],
        outcomes: &Outcomes,
    ) -> Result<Asked> {
        if scalar.size() != 1 {
            return Err(Error::invalid(format!(
                "the predicate has shape {:?}, it is to be one scalar",
                scalar.shape()
            )));
        }
        // A node that nobody else has a handle of.
        let own = Asked(Some(self.rows_to_read(scalar)?));
        let mut arrays: Vec<&Array> = Vec::with_capacity(1 + state.len());
        arrays.extend(&own.0);
        arrays.extend(state);
        self.compute(&arrays, outcomes)?;
        Ok(own)
    }

    /// Waits for what was asked: whether it is other than zero.
    pub(super) fn answer(&self, asked: &Asked) -> Result<bool> {
        self.look_at(asked, |bytes, dtype| dtype.is_nonzero(bytes))
    }

    /// Single whole numbers, computed. None where one is something else.
    pub(super) fn whole_numbers(
        &self,
        arrays: &[&Array],
        outcomes: &Outcomes,
    ) -> Result<Option<Vec<Whole>>> {
        let Some((first, rest)) = arrays.split_first() else {
            return Ok(None);
        };
        if arrays.iter().any(|array| array.size() != 1) {
            return Ok(None);
        }
        let others = rest.iter().map(|array| self.rows_to_read(array));
        let others = others.map(|own| Ok(Asked(Some(own?))));
        let mut asked = others.collect::<Result<Vec<_>>>()?;
        let with: Vec<&Array> = asked.iter().filter_map(|asked| asked.0.as_ref()).collect();
        let first = self.ask(first, &with, outcomes)?;
        asked.insert(0, first);
        let numbers = asked.iter().map(|asked| self.look_at(asked, Whole::read));
        let numbers = numbers.collect::<Result<Vec<_>>>()?;
        Ok(numbers.into_iter().collect())
    }

    /// Waits for what was asked.
    pub(super) fn look_at<T>(
        &self,
        asked: &Asked,
        look: impl FnOnce(&[u8], Dtype) -> T,
    ) -> Result<T> {
        let Some(own) = &asked.0 else {
            return Err(Error::invalid("there is no predicate"));
        };
        if self.device == Device::Gpu {
            self.wait_for_own(own)?;
        }
        let _lock = mlx::graph_lock();
        // SAFETY: computed, and alive beyond the slice.
        let bytes = unsafe { mlx::bytes(own) };
        let bytes = bytes.ok_or_else(|| Error::invalid("the predicate is not laid out in rows"))?;
        Ok(look(bytes, mlx::dtype(own)))
    }

    pub(super) fn streams_of(&self, arrays: &[ResourceArc<Handle>]) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        for array in arrays {
            if array.device == Device::Cpu && !streams.iter().any(|s| s.is_same(&array.stream)) {
                streams.push(array.stream.clone());
            }
        }
        streams
    }

    pub(super) fn submit(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<Submitted> {
        check_outcomes(outcomes)?;
        let submitted = Submitted::of(outcomes);
        let result = self.compute_open(outcomes).and_then(|()| {
            let lock = mlx::graph_lock();
            let _submitting = self.pace.begin(&lock);
            mlx::async_eval(arrays, &lock)
        });
        let Err(error) = result else {
            return Ok(submitted);
        };
        make_room(&error);
        // A long graph can meet its own failure while the rest of it is still being submitted. What the stream kept is
        // taken along, so that the next job does not find it.
        for outcome in outcomes {
            let _ = outcome.stream.synchronize();
            outcome.fail(&error);
        }
        Err(error)
    }

    /// Evaluates on the CPU what these outcomes still need of it before the GPU is given what builds on it.
    pub(super) fn compute_open(&self, outcomes: &Outcomes) -> Result<()> {
        if self.device == Device::Cpu {
            return Ok(());
        }
        for outcome in outcomes {
            for handle in outcome.take_crossed() {
                let lock = mlx::graph_lock();
                mlx::async_eval(&[handle.array()], &lock)?;
                drop(lock);
                outcome.stream.synchronize()?;
            }
        }
        Ok(())
    }

    /// Evaluates on the CPU its part of what a run has built for the GPU.
    pub(super) fn compute_crossed(&self, mut crossed: Crossed) -> Result<()> {
        for array in crossed.take() {
            let result = {
                let lock = mlx::graph_lock();
                mlx::async_eval(&[&array], &lock)
            };
            mlx::release(array);
            result?;
            Device::Cpu.stream()?.synchronize()?;
        }
        Ok(())
    }

    /// Waits where somebody waits, or where an answer must be known: on the CPU a failure is kept by the stream, and
    /// only asking after every job tells whose it was.
    pub(super) fn finish(
        &self,
        _submitted: Submitted,
        arrays: &[&Array],
        streams: &[Stream],
        outcomes: &Outcomes,
        awaited: bool,
    ) -> Result<()> {
        let mut result = Ok(());
        if awaited && self.device == Device::Gpu {
            result = self.wait_for(arrays);
        }
        for stream in streams {
            result = result.and(stream.synchronize());
        }
        for outcome in outcomes {
            result = result.and(outcome.stream.synchronize());
        }
        for outcome in outcomes {
            match &result {
                Ok(()) => outcome.succeed(),
                Err(error) => outcome.fail(error),
            }
        }
        result
    }

    /// Waits on the GPU, awake at first: what is small is computed sooner than a thread is woken. The nodes are not
    /// changed, since others may have handles of them.
    #[cfg(emlx_kernels)]
    pub(super) fn wait_for(&self, arrays: &[&Array]) -> Result<()> {
        let waits = mlx::Waits::of(arrays, &mlx::graph_lock())?;
        match Awake::begin() {
            Some(_awake) => waits.wait(AWAKE_FOR_GPU),
            None => waits.wait(Duration::ZERO),
        }
    }

    /// Waits by way of a node that nobody else has a handle of, since waiting changes the node.
    #[cfg(not(emlx_kernels))]
    pub(super) fn wait_for(&self, arrays: &[&Array]) -> Result<()> {
        let marker = mlx::zeros(&[], crate::base::Dtype::Bool, &self.stream)?;
        let mut after = mlx::depends(&[&marker], arrays)?;
        let marker = after
            .pop()
            .ok_or_else(|| Error::invalid("nothing to wait for"))?;
        {
            let lock = mlx::graph_lock();
            mlx::async_eval(&[&marker], &lock)?;
        }
        mlx::wait(&marker)
    }

    /// Waits on the GPU for an array that nobody else has a handle of.
    pub(super) fn wait_for_own(&self, array: &Array) -> Result<()> {
        self.wait_for(&[array])?;
        mlx::wait(array)
    }
}

/// How long a thread that waits for the GPU looks for its answer before it sleeps.
#[cfg(emlx_kernels)]
const AWAKE_FOR_GPU: Duration = Duration::from_micros(500);

/// What a run waits for in less than this it waits for awake the next time.
const QUICK: Duration = Duration::from_micros(200);
/// How long it stays awake.
const AWAKE: Duration = Duration::from_micros(60);

/// What the stream's thread tells whoever waits for it.
#[derive(Default)]
struct Told {
    is_there: AtomicBool,
    result: Mutex<Option<Result<()>>>,
    wake: Condvar,
}

impl Told {
    pub(super) fn tell(&self, result: Result<()>) {
        *self.result.lock() = Some(result);
        self.is_there.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    pub(super) fn wait(&self, awake: bool) -> Result<()> {
        let start = Instant::now();
        let awake = awake && Settings::get().spin;
        while awake && !self.is_there.load(Ordering::Acquire) && start.elapsed() < AWAKE {
            std::hint::spin_loop();
        }
        let mut result = self.result.lock();
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            self.wake.wait(&mut result);
        }
    }
}

/// A queue as one of its runs sees it.
pub(super) struct OfRun<'a> {
    pub(super) shared: &'a Shared,
    pub(super) reply: &'a Reply,
}

impl Evaluator for OfRun<'_> {
    fn device(&self) -> Device {
        self.shared.device
    }

    fn stream(&self) -> &Stream {
        &self.shared.stream
    }

    fn settle(&self, array: ResourceArc<Handle>) -> Result<()> {
        self.shared.settle(array)
    }

    fn compute(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<()> {
        self.shared.compute(arrays, outcomes)
    }

    fn compute_crossed(&self, crossed: Crossed) -> Result<()> {
        self.shared.compute_crossed(crossed)
    }

    fn ask(&self, scalar: &Array, state: &[&Array], outcomes: &Outcomes) -> Result<Asked> {
        self.shared.ask(scalar, state, outcomes)
    }

    fn answer(&self, asked: &Asked) -> Result<bool> {
        self.shared.answer(asked)
    }

    fn whole_numbers(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<Option<Vec<Whole>>> {
        self.shared.whole_numbers(arrays, outcomes)
    }

    fn pressure(&self) -> Pressure {
        let abandoned = !self.reply.is_awaited();
        let state = self.shared.state();
        Pressure {
            waiting: !state.jobs.is_empty(),
            closed: state.closed || IS_EXITING.load(Ordering::Relaxed),
            abandoned,
        }
    }
}

/// A graph that has been submitted and not yet asked for its outcome. Those that can fail late go one at a time, over
/// all queues: they may share a stream, and a stream tells of a failure once, whoever asks.
pub(super) struct Submitted(#[allow(dead_code)] Option<RwLockWriteGuard<'static, ()>>);

impl Submitted {
    pub(super) fn of(outcomes: &Outcomes) -> Submitted {
        let lock = || mlx::LATE.write();
        Submitted((!outcomes.is_empty()).then(lock))
    }
}

/// What is kept for reuse may be of sizes that nothing fits.
pub(super) fn make_room(error: &Error) {
    if matches!(*error.reason, Reason::NoMemory { .. }) {
        let _ = mlx::clear_cache();
    }
}
