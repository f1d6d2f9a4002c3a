//! Evaluation. A queue is a thread with a stream of its own; callers put jobs on it and are answered by message.

use crate::array::{check_outcomes, outcomes_of, ArrayTerm, BinaryTerm, Buffer, Handle, Outcomes};
use crate::device::Device;
use crate::error::{Error, Reason, Result};
use crate::file;
use crate::mlx::{self, Stream};
use crate::op::take_crossed;
use crate::program::run::{Pause, Run, Suspended};
use crate::program::{self, Program};
use mlx_rs::Array;
use rustler::{Encoder, Env, LocalPid, OwnedEnv, Resource, ResourceArc, Term};
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Jobs that nobody waits for which a queue accepts before it makes their callers wait.
const MAX_BACKLOG: usize = 16;

/// Whom to answer, and with which tag.
pub struct Reply {
    pid: LocalPid,
    env: OwnedEnv,
    tag: rustler::env::SavedTerm,
}

impl Reply {
    pub fn new(pid: LocalPid, tag: Term) -> Reply {
        let env = OwnedEnv::new();
        let tag = env.save(tag);
        Reply { pid, env, tag }
    }

    /// Whether the caller is still there.
    pub fn is_awaited(&self) -> bool {
        self.env.run(|env| self.pid.is_alive(env))
    }

    /// Another message to the same caller with the same tag.
    fn again(&self) -> Reply {
        let env = OwnedEnv::new();
        let tag = self.env.run(|own| env.save(self.tag.load(own)));
        let pid = self.pid;
        Reply { pid, env, tag }
    }

    /// Sends `{tag, {:call, id, [array], suspended}}`.
    fn ask(mut self, id: u64, arrays: Vec<ResourceArc<Handle>>, run: ResourceArc<Suspended>) {
        let tag = self.tag;
        let pid = self.pid;
        let _ = self.env.send_and_clear(&pid, |env| {
            let arrays: Vec<ArrayTerm> = arrays.into_iter().map(ArrayTerm).collect();
            (tag.load(env), (atoms::call(), id, arrays, run)).encode(env)
        });
    }

    /// Sends `{tag, {:ok, value} | {:error, error}}`. A caller that is gone is no failure.
    fn send<T: Encoder>(mut self, result: Result<T>) {
        let tag = self.tag;
        let pid = self.pid;
        let _ = self.env.send_and_clear(&pid, |env| {
            (tag.load(env), outcome(env, result)).encode(env)
        });
    }
}

mod atoms {
    rustler::atoms! { call }
}

/// The value of a job that has none: `:ok`.
pub struct Done;

impl Encoder for Done {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        rustler::types::atom::ok().encode(env)
    }
}

fn outcome<T: Encoder>(env: Env, result: Result<T>) -> Term {
    match result {
        Ok(value) => (rustler::types::atom::ok(), value).encode(env),
        Err(error) => (rustler::types::atom::error(), error).encode(env),
    }
}

pub enum Job {
    /// Submit these graphs; with a reply, answer once they are computed.
    Eval {
        arrays: Vec<ResourceArc<Handle>>,
        reply: Option<Reply>,
    },
    /// Answer with the array's bytes.
    Read {
        array: ResourceArc<Handle>,
        reply: Reply,
    },
    /// Answer with the address and size of the array's bytes, which stay where they are as long as the array lives.
    Pin {
        array: ResourceArc<Handle>,
        reply: Reply,
    },
    /// Run a program, or go on with it; submit its outputs, answer with them before they are computed.
    Run(Box<Run>),
    /// Write arrays to a safetensors file.
    Save {
        path: String,
        arrays: Vec<(String, ResourceArc<Handle>)>,
        reply: Reply,
    },
    /// Write a program to a file.
    SaveProgram {
        path: String,
        program: ResourceArc<Program>,
        names: Vec<String>,
        reply: Reply,
    },
}

impl Job {
    fn is_awaited(&self) -> bool {
        !matches!(self, Job::Eval { reply: None, .. })
    }

    /// Answers without doing it.
    fn refuse(self, error: Error) {
        match self {
            Job::Eval { reply: None, .. } => {}
            Job::Eval {
                reply: Some(reply), ..
            }
            | Job::Read { reply, .. }
            | Job::Pin { reply, .. }
            | Job::Save { reply, .. }
            | Job::SaveProgram { reply, .. } => reply.send::<()>(Err(error)),
            Job::Run(mut run) => {
                if let Some(reply) = run.take_reply() {
                    reply.send::<()>(Err(error));
                }
            }
        }
    }
}

struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

pub struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    pub device: Device,
    pub stream: Stream,
}

/// The BEAM's reference to a queue. When the last one goes, the queue closes.
pub struct Queue(pub Arc<Shared>);

#[rustler::resource_impl]
impl Resource for Queue {}

impl std::panic::RefUnwindSafe for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a run asks before it goes on.
pub struct Pressure {
    pub waiting: bool,
    pub closed: bool,
}

/// What became of a job that was put on a queue.
pub enum Pushed {
    Accepted,
    /// Accepted, and the caller should wait for the queue before it sends more.
    Behind,
}

impl Shared {
    /// Starts a queue. Streams outlive their queues (MLX cannot end one), so a new queue takes over the stream of a closed one.
    pub fn start(device: Device) -> Result<Arc<Shared>> {
        device.require()?;
        let idle = free_streams(device).pop();
        let stream = match idle {
            Some(stream) => stream,
            None => Stream::new(device)?,
        };
        Self::start_on(device, stream)
    }

    fn start_on(device: Device, stream: Stream) -> Result<Arc<Shared>> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                closed: false,
            }),
            wake: Condvar::new(),
            device,
            stream,
        });
        shared.start_thread()?;
        Ok(shared)
    }

    fn start_thread(self: &Arc<Self>) -> Result<()> {
        let of_thread = self.clone();
        std::thread::Builder::new()
            .name(format!("emlx_{}", self.device.name()))
            .spawn(move || of_thread.work())
            .map(|_| ())
            .map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))
    }

    /// The device's own queue, which never closes.
    pub fn default(device: Device) -> Result<&'static Arc<Shared>> {
        static CPU: OnceLock<Result<Arc<Shared>>> = OnceLock::new();
        static GPU: OnceLock<Result<Arc<Shared>>> = OnceLock::new();
        let cell = match device {
            Device::Cpu => &CPU,
            Device::Gpu => &GPU,
        };
        let stream = device.stream()?;
        cell.get_or_init(|| Self::start_on(device, stream.clone()))
            .as_ref()
            .map_err(Clone::clone)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job. A closed queue refuses; then no message follows.
    pub fn push(&self, job: Job) -> Result<Pushed> {
        let mut state = self.state();
        if state.closed {
            return Err(Reason::QueueClosed.into());
        }
        let behind = !job.is_awaited() && state.jobs.len() >= MAX_BACKLOG;
        state.jobs.push_back(job);
        drop(state);
        self.wake.notify_one();
        Ok(if behind {
            Pushed::Behind
        } else {
            Pushed::Accepted
        })
    }

    pub fn close(&self) {
        self.state().closed = true;
        self.wake.notify_all();
    }

    /// The thread's loop.
    fn work(self: Arc<Self>) {
        let _ = self.device.enter(&self.stream);
        loop {
            let job = {
                let mut state = self.state();
                loop {
                    if state.closed {
                        let left = std::mem::take(&mut state.jobs);
                        drop(state);
                        for job in left {
                            job.refuse(Reason::QueueClosed.into());
                        }
                        free_streams(self.device).push(self.stream.clone());
                        return;
                    }
                    if let Some(job) = state.jobs.pop_front() {
                        break job;
                    }
                    state = self
                        .wake
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            let busy = Busy::begin();
            self.run(job);
            drop(busy);
            // CUDA holds a failed launch against the thread. Another one goes on with the same queue.
            if mlx::thread_is_spent() && self.start_thread().is_ok() {
                return;
            }
        }
    }

    fn run(self: &Arc<Self>, job: Job) {
        match job {
            Job::Eval { arrays, reply } => {
                let outcomes = outcomes_of(arrays.iter().map(|array| &**array));
                let streams = self.streams_of(&arrays);
                let result = guard("eval", || {
                    let refs: Vec<&Array> = arrays.iter().map(|array| array.array()).collect();
                    let submitted = self.submit(&refs, &outcomes)?;
                    self.finish(submitted, &refs, &streams, &outcomes, reply.is_some())
                });
                if let Some(reply) = reply {
                    reply.send(result.map(|()| Done));
                }
            }
            Job::Read { array, reply } => reply.send(guard("to_binary", || self.read(&array))),
            Job::Pin { array, reply } => {
                let pin = || array.pin(self.computed_rows(&array)?);
                reply.send(guard("to_pointer", pin));
            }
            Job::Run(run) => self.go_on(run),
            Job::Save {
                path,
                arrays,
                reply,
            } => {
                let result = guard("save_safetensors", || {
                    let mut entries = Vec::with_capacity(arrays.len());
                    for (name, array) in &arrays {
                        entries.push((name.clone(), self.computed_rows(array)?));
                    }
                    file::save(&path, &entries)
                });
                reply.send(result.map(|()| Done));
            }
            Job::SaveProgram {
                path,
                program,
                names,
                reply,
            } => {
                let rows = |array: &Handle| self.computed_rows(array);
                let (device, stream) = (self.device, &self.stream);
                let result = guard("save", || {
                    program::file::save(&path, &program, &names, device, stream, rows)
                });
                reply.send(result.map(|()| Done));
            }
        }
    }

    fn go_on(self: &Arc<Self>, mut run: Box<Run>) {
        match guard("run", || run.advance(self)) {
            Ok(Pause::Finished(outputs)) => self.end(*run, outputs),
            Ok(Pause::Turn) => self.push_back(run),
            Ok(Pause::Call { id, arrays }) => {
                let question = run.reply().map(Reply::again);
                let suspended = ResourceArc::new(Suspended::new(run, self.clone()));
                if let Some(question) = question {
                    question.ask(id, arrays, suspended);
                }
            }
            Ok(Pause::Abandoned) => {}
            Err(error) => Job::Run(run).refuse(error),
        }
    }

    /// Submits a run's outputs, answers, and sees what becomes of them.
    fn end(&self, mut run: Run, outputs: Vec<ResourceArc<Handle>>) {
        let refs: Vec<&Array> = outputs.iter().map(|output| output.array()).collect();
        let outcomes = run.outcomes.clone();
        let submitted = guard("run", || self.submit(&refs, &outcomes));
        let Some(reply) = run.take_reply() else {
            return;
        };
        let terms: Vec<ArrayTerm> = outputs.iter().cloned().map(ArrayTerm).collect();
        let submitted = match submitted {
            Ok(submitted) => submitted,
            // The failure is in the outcomes, and is their readers' whether it is met now or later.
            Err(error) if !outcomes.is_empty() => {
                outcomes.iter().for_each(|outcome| outcome.fail(&error));
                return reply.send(Ok(terms));
            }
            Err(error) => return reply.send::<()>(Err(error)),
        };
        reply.send(Ok(terms));
        // Nobody waits for this result; a failure is kept in the outcomes.
        let _ = guard("run", || {
            self.finish(submitted, &refs, &self.streams(), &outcomes, false)
        });
    }

    /// Lets the others go first.
    fn push_back(&self, run: Box<Run>) {
        let mut state = self.state();
        state.jobs.push_back(Job::Run(run));
    }

    pub fn pressure(&self) -> Pressure {
        let state = self.state();
        Pressure {
            waiting: !state.jobs.is_empty(),
            closed: state.closed || IS_EXITING.load(Ordering::Relaxed),
        }
    }

    /// The stream to ask for failures after a job: the CPU's, for the GPU's may be in another thread's use.
    fn streams(&self) -> Vec<Stream> {
        match self.device {
            Device::Cpu => vec![self.stream.clone()],
            Device::Gpu => Vec::new(),
        }
    }

    /// Waits until it is known what became of an array that can fail late.
    pub fn settle(&self, array: ResourceArc<Handle>) -> Result<()> {
        let outcomes = outcomes_of([&*array]);
        let streams = self.streams_of(std::slice::from_ref(&array));
        let refs = [array.array()];
        let submitted = self.submit(&refs, &outcomes)?;
        array.mark_submitted();
        self.finish(submitted, &refs, &streams, &outcomes, true)
    }

    /// Submits arrays in the middle of a run whose outcomes stay open. On the CPU waits for them.
    pub fn compute(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<()> {
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

    /// Whether a scalar is other than zero. `state` is computed with it.
    pub fn test(&self, scalar: &Array, state: &[&Array], outcomes: &Outcomes) -> Result<bool> {
        self.answer(&self.ask(scalar, state, outcomes)?)
    }

    /// Submits a scalar, and `state` with it, without waiting for it on the GPU.
    pub fn ask(&self, scalar: &Array, state: &[&Array], outcomes: &Outcomes) -> Result<Asked> {
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
    pub fn answer(&self, asked: &Asked) -> Result<bool> {
        let Some(own) = &asked.0 else {
            return Err(Error::invalid("there is no predicate"));
        };
        if self.device == Device::Gpu {
            mlx::wait(own)?;
        }
        let _lock = mlx::graph_lock();
        // SAFETY: computed, and alive beyond the slice.
        let bytes = unsafe { mlx::bytes(own) };
        let bytes = bytes.ok_or_else(|| Error::invalid("the predicate is not laid out in rows"))?;
        Ok(mlx::dtype(own).is_nonzero(bytes))
    }

    fn streams_of(&self, arrays: &[ResourceArc<Handle>]) -> Vec<Stream> {
        let mut streams: Vec<Stream> = Vec::new();
        for array in arrays {
            if array.device == Device::Cpu && !streams.iter().any(|s| s.is_same(&array.stream)) {
                streams.push(array.stream.clone());
            }
        }
        streams
    }

    fn submit(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<Submitted> {
        check_outcomes(outcomes)?;
        let submitted = Submitted::of(outcomes);
        let result = self.compute_crossed(outcomes).and_then(|()| {
            let lock = mlx::graph_lock();
            mlx::async_eval(arrays, &lock)
        });
        let Err(error) = result else {
            return Ok(submitted);
        };
        if matches!(*error.reason, Reason::NoMemory { .. }) {
            // What is kept for reuse may be of sizes that nothing fits.
            let _ = mlx::clear_cache();
        }
        // A long graph can meet its own failure while the rest of it is still being submitted. What the stream kept is taken
        // along, so that the next job does not find it.
        for outcome in outcomes {
            let _ = outcome.stream.synchronize();
            outcome.fail(&error);
        }
        Err(error)
    }

    /// Has the CPU compute its part of what the GPU is to be given.
    fn compute_crossed(&self, outcomes: &Outcomes) -> Result<()> {
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
        // Of what this thread has built itself.
        for array in take_crossed() {
            let lock = mlx::graph_lock();
            mlx::async_eval(&[&array], &lock)?;
            drop(lock);
            Device::Cpu.stream()?.synchronize()?;
            mlx::release(array);
        }
        Ok(())
    }

    /// Waits where somebody waits, or where an answer must be known: on the CPU a failure is kept by the stream, and only asking
    /// after every job tells whose it was.
    fn finish(
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

    /// Waits on the GPU by way of a node that nobody else has a handle of, since waiting changes the node.
    fn wait_for(&self, arrays: &[&Array]) -> Result<()> {
        let marker = mlx::zeros(&[], crate::dtype::Dtype::Bool, &self.stream)?;
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

    /// A private handle of the array's values in row-major order, computed.
    fn computed_rows(&self, array: &Handle) -> Result<Array> {
        let outcomes = outcomes_of([array]);
        let rows = self.rows_to_read(array.array())?;
        let submitted = self.submit(&[&rows], &outcomes)?;
        array.mark_submitted();
        let streams = match self.device {
            Device::Cpu => vec![self.stream.clone()],
            Device::Gpu => Vec::new(),
        };
        let waited = match self.device {
            Device::Cpu => Ok(()),
            Device::Gpu => mlx::wait(&rows),
        };
        if let Err(error) = &waited {
            outcomes.iter().for_each(|outcome| outcome.fail(error));
        }
        waited.and(self.finish(submitted, &[&rows], &streams, &outcomes, false))?;
        Ok(rows)
    }

    /// A node of the array's values in row-major order, for the CPU to read.
    fn rows_to_read(&self, array: &Array) -> Result<Array> {
        match self.device {
            // Metal's memory is the CPU's.
            Device::Gpu if cfg!(target_os = "linux") => mlx::copy_apart(array, &self.stream),
            _ => mlx::contiguous(array, false, &self.stream),
        }
    }

    fn read(&self, array: &Handle) -> Result<BinaryTerm> {
        BinaryTerm::new(Buffer::new(self.computed_rows(array)?))
    }
}

/// A scalar that has been submitted, to be read later. It is given up as all nodes are.
pub struct Asked(Option<Array>);

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(own) = self.0.take() {
            mlx::release(own);
        }
    }
}

/// A graph that has been submitted and not yet asked for its outcome. Those that can fail late go one at a time, over all queues:
/// they may share a stream, and a stream tells of a failure once, whoever asks.
struct Submitted(#[allow(dead_code)] Option<MutexGuard<'static, ()>>);

impl Submitted {
    fn of(outcomes: &Outcomes) -> Submitted {
        static ONE: Mutex<()> = Mutex::new(());
        let lock = || ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Submitted((!outcomes.is_empty()).then(lock))
    }
}

/// Threads that are at a job, and whether the process is about to exit.
static BUSY: AtomicUsize = AtomicUsize::new(0);
static IS_EXITING: AtomicBool = AtomicBool::new(false);

struct Busy;

impl Busy {
    /// Does not return once the process is exiting.
    fn begin() -> Busy {
        BUSY.fetch_add(1, Ordering::SeqCst);
        let busy = Busy;
        if IS_EXITING.load(Ordering::SeqCst) {
            drop(busy);
            loop {
                std::thread::park();
            }
        }
        busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        BUSY.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Has every queue stop after its job, and every run at its next step: MLX must not be used while the process takes it down.
/// A job that takes longer than a second is not waited for.
pub extern "C" fn stop_all() {
    IS_EXITING.store(true, Ordering::SeqCst);
    for _ in 0..1000 {
        if BUSY.load(Ordering::SeqCst) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn free_streams(device: Device) -> MutexGuard<'static, Vec<Stream>> {
    static CPU: Mutex<Vec<Stream>> = Mutex::new(Vec::new());
    static GPU: Mutex<Vec<Stream>> = Mutex::new(Vec::new());
    match device {
        Device::Cpu => &CPU,
        Device::Gpu => &GPU,
    }
    .lock()
    .unwrap_or_else(PoisonError::into_inner)
}

/// Turns a panic into an error, so that a queue outlives its jobs, and names the call.
pub fn guard<T>(op: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()))
                .unwrap_or_default();
            Err(Reason::Panic(text).into())
        })
        .map_err(|error| error.of(op))
}
