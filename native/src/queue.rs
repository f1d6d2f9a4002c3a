//! Evaluation. A queue is a thread with a stream of its own; callers put jobs on it and are answered by message.

use crate::array::{
    check_outcomes, outcomes_of, refuse_deallocated, ArrayTerm, BinaryTerm, Buffer, Handle,
    Outcomes,
};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Reason, Result};
use crate::handle::deallocate::free_waiting;
use crate::handle::safetensors as file;
use crate::mlx::{self, GraphLock, Stream};
use crate::op::Crossed;
use crate::pace::Pace;
use crate::program::evaluator::{Asked, Evaluator, Pressure};
use crate::program::run::{Pause, Run};
use crate::program::{self, Program, Whole};
use mlx_rs::Array;
use rustler::{Encoder, Env, LocalPid, OwnedEnv, Resource, ResourceArc, Term};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard,
    RwLockWriteGuard, TryLockError,
};
use std::time::{Duration, Instant};

/// Jobs that nobody waits for which a queue accepts before it makes their callers wait.
const MAX_BACKLOG: usize = 16;

/// Nodes that a caller submits itself, a scheduler of the VM's: at 2 to 4 µs each, and so few that MLX does not have it wait.
const MAX_AT_ONCE: usize = 32;
/// Bytes that these nodes may take.
const MAX_BYTES_AT_ONCE: usize = 4 << 20;

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
    Run(Box<Running>),
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
            Job::Run(running) => running.reply.send::<()>(Err(error)),
        }
    }
}

struct State {
    jobs: VecDeque<Job>,
    /// Whether the thread is at a job.
    is_working: bool,
    closed: bool,
}

pub struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    pub device: Device,
    pub stream: Stream,
    pace: Arc<Pace>,
    /// Whether a run did not wait long for what it had computed last.
    is_quick: AtomicBool,
    /// Jobs that have been submitted and are to end on the stream's own thread.
    unfinished: AtomicUsize,
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

/// A run with whom it answers.
pub struct Running {
    run: Run,
    reply: Reply,
    /// Keeps a queue of the caller's own from closing meanwhile.
    _queue: Option<ResourceArc<Queue>>,
}

impl Running {
    pub fn new(run: Run, reply: Reply, queue: Option<ResourceArc<Queue>>) -> Running {
        Running {
            run,
            reply,
            _queue: queue,
        }
    }

    /// Goes on after a question.
    pub fn answer(&mut self, arrays: Vec<ResourceArc<Handle>>) -> Result<()> {
        self.run.answer(arrays)
    }
}

/// A run that waits for its caller's answer, held by the caller alone: it ends with the last reference to it.
pub struct Suspended {
    run: Mutex<Option<Box<Running>>>,
    pub queue: Arc<Shared>,
}

#[rustler::resource_impl]
impl Resource for Suspended {}

impl std::panic::RefUnwindSafe for Suspended {}

impl Suspended {
    pub fn new(run: Box<Running>, queue: Arc<Shared>) -> Suspended {
        Suspended {
            run: Mutex::new(Some(run)),
            queue,
        }
    }

    /// The run, once.
    pub fn take(&self) -> Result<Box<Running>> {
        let mut run = self.run.lock().unwrap_or_else(PoisonError::into_inner);
        run.take()
            .ok_or_else(|| Error::invalid("the run was already answered"))
    }
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
                is_working: false,
                closed: false,
            }),
            wake: Condvar::new(),
            device,
            stream,
            pace: Arc::default(),
            is_quick: AtomicBool::new(true),
            unfinished: AtomicUsize::new(0),
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

    /// Adds a job, or does it at once. A closed queue refuses; then no message follows.
    pub fn push(self: &Arc<Self>, job: Job) -> Result<Pushed> {
        let mut state = self.state();
        let ahead = state.jobs.len() + self.unfinished.load(Ordering::Relaxed);
        let pushed = match !job.is_awaited() && ahead >= MAX_BACKLOG {
            true => Pushed::Behind,
            false => Pushed::Accepted,
        };
        let mut job = Some(job);
        if state.jobs.is_empty() && !state.is_working && !state.closed {
            // Nothing is before it that the thread would have to do.
            drop(state);
            self.do_at_once(&mut job);
            state = self.state();
        }
        if let Some(job) = job {
            if state.closed {
                return Err(Reason::QueueClosed.into());
            }
            state.jobs.push_back(job);
            drop(state);
            self.wake.notify_one();
        }
        Ok(pushed)
    }

    /// An error where the queue is closed.
    pub fn require_open(&self) -> Result<()> {
        match self.state().closed {
            true => Err(Reason::QueueClosed.into()),
            false => Ok(()),
        }
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
                state.is_working = false;
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
                        state.is_working = true;
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
            free_waiting();
            drop(busy);
            // CUDA holds a failed launch against the thread. Another one goes on with the same queue.
            if mlx::thread_is_spent() && self.start_thread().is_ok() {
                return;
            }
        }
    }

    fn run(self: &Arc<Self>, job: Job) {
        match job {
            Job::Eval { arrays, reply } => self.eval(arrays, reply),
            Job::Read { array, reply } => match self.first_of(slice::from_ref(&array)) {
                Some(_first) => self.read_then(&array, reply, mlx::graph_lock()),
                None => reply.send(guard("to_binary", || self.read(&array))),
            },
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

    fn eval(self: &Arc<Self>, arrays: Vec<ResourceArc<Handle>>, reply: Option<Reply>) {
        if let Some(_first) = self.first_of(&arrays) {
            return self.eval_then(arrays, reply, mlx::graph_lock());
        }
        let outcomes = outcomes_of(arrays.iter().map(|array| &**array));
        let streams = self.streams_of(&arrays);
        let result = guard("eval", || {
            let refs = arrays.iter().map(|array| array.live());
            let refs = refs.collect::<Result<Vec<&Array>>>()?;
            let submitted = self.submit(&refs, &outcomes)?;
            self.finish(submitted, &refs, &streams, &outcomes, reply.is_some())
        });
        if let Some(reply) = reply {
            reply.send(result.map(|()| Done));
        }
    }

    // ---- what ends on the stream's thread ----

    /// Does a job where it is small, from the thread that brings it. It is taken then.
    fn do_at_once(self: &Arc<Self>, job: &mut Option<Job>) {
        let arrays = match job {
            Some(Job::Eval { arrays, .. }) => arrays.as_slice(),
            Some(Job::Read { array, .. }) => slice::from_ref(array),
            _ => return,
        };
        let Some(_first) = self.first_of(arrays) else {
            return;
        };
        // A scheduler waits for nobody.
        let Some(lock) = mlx::try_graph_lock() else {
            return;
        };
        let refs: SmallVec<[&Array; 4]> = arrays.iter().map(|array| array.array()).collect();
        if !mlx::is_small(&refs, &self.stream, MAX_AT_ONCE, MAX_BYTES_AT_ONCE, &lock)
            || !mlx::takes_more(MAX_BYTES_AT_ONCE)
            || self.device.enter(&self.stream).is_err()
        {
            return;
        }
        drop(refs);
        match job.take() {
            Some(Job::Eval { arrays, reply }) => self.eval_then(arrays, reply, lock),
            Some(Job::Read { array, reply }) => self.read_then(&array, reply, lock),
            other => *job = other,
        }
    }

    /// Whether what becomes of these arrays can be told by the stream's thread: they are this stream's own and cannot fail late, and as long
    /// as the result lives nothing is submitted that can. A stream tells of a failure once, whoever asks.
    fn first_of(&self, arrays: &[ResourceArc<Handle>]) -> Option<RwLockReadGuard<'static, ()>> {
        let is_own = |array: &ResourceArc<Handle>| array.stream.is_same(&self.stream);
        let can_tell = self.device == Device::Cpu
            && mlx::has_tasks()
            && arrays.iter().all(is_own)
            && outcomes_of(arrays.iter().map(|array| &**array)).is_empty();
        match LATE.try_read() {
            _ if !can_tell => None,
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn eval_then(
        self: &Arc<Self>,
        arrays: Vec<ResourceArc<Handle>>,
        reply: Option<Reply>,
        lock: GraphLock,
    ) {
        let held = arrays.clone();
        let refs: SmallVec<[&Array; 4]> = arrays.iter().map(|array| array.array()).collect();
        let submit = |lock: &GraphLock| mlx::async_eval(&refs, lock);
        let then = move |result: Result<()>| {
            // MLX's tasks do not keep the results that they write.
            drop(held);
            if let Some(reply) = reply {
                reply.send(result.map(|()| Done));
            }
        };
        if let Err((error, then)) = self.submit_then("eval", lock, submit, then) {
            self.tell(error, then);
        }
    }

    fn read_then(self: &Arc<Self>, array: &Handle, reply: Reply, lock: GraphLock) {
        array.mark_submitted();
        let submit = |lock: &GraphLock| {
            let mut rows = mlx::share(array.live()?)?;
            mlx::async_eval(&[&rows], lock)?;
            // How its elements lie is known once it is submitted.
            if !mlx::is_in_rows(&rows) {
                rows = mlx::contiguous(&rows, false, &self.stream)?;
                mlx::async_eval(&[&rows], lock)?;
            }
            BinaryTerm::submitted(Buffer::new(rows), lock)
        };
        let then = move |result: Result<BinaryTerm>| reply.send(result);
        if let Err((error, then)) = self.submit_then("to_binary", lock, submit, then) {
            self.tell(error, then);
        }
    }

    /// Has the stream's thread say that something was not submitted: the VM's own threads cannot send as other threads do.
    fn tell<T>(&self, error: Error, then: impl FnOnce(Result<T>) + Send + 'static) {
        mlx::then(&self.stream, false, Box::new(move |_| then(Err(error))));
    }

    /// Calls `submit`; once all of it is computed the stream's thread calls `then`. An error of `submit` comes back with it.
    fn submit_then<T: Send + 'static, F: FnOnce(Result<T>) + Send + 'static>(
        self: &Arc<Self>,
        op: &'static str,
        lock: GraphLock,
        submit: impl FnOnce(&GraphLock) -> Result<T>,
        then: F,
    ) -> std::result::Result<(), (Error, F)> {
        let submitting = self.pace.begin(&lock);
        let value = match guard(op, || submit(&lock)) {
            Ok(value) => value,
            Err(error) => {
                make_room(&error);
                return Err((error, then));
            }
        };
        self.unfinished.fetch_add(1, Ordering::Relaxed);
        let (shared, turn) = (self.clone(), submitting.turn());
        let task = move |result: Result<()>| {
            let _ = guard(op, || {
                then(result.map(|()| value).map_err(|error| error.of(op)));
                Ok(())
            });
            shared.unfinished.fetch_sub(1, Ordering::Relaxed);
            shared.pace.linger(turn);
        };
        mlx::then(&self.stream, true, Box::new(task));
        Ok(())
    }

    fn go_on(self: &Arc<Self>, mut running: Box<Running>) {
        let advanced = {
            let Running { run, reply, .. } = &mut *running;
            let of_run = OfRun {
                shared: self,
                reply,
            };
            guard("run", || run.advance(&of_run))
        };
        match advanced {
            Ok(Pause::Finished(outputs)) => self.end(*running, outputs),
            Ok(Pause::Turn) => self.push_back(running),
            Ok(Pause::Call { id, arrays }) => {
                let question = running.reply.again();
                let suspended = ResourceArc::new(Suspended::new(running, self.clone()));
                question.ask(id, arrays, suspended);
            }
            Ok(Pause::Abandoned) => {}
            Err(error) => Job::Run(running).refuse(error),
        }
    }

    /// Submits a run's outputs, answers, and sees what becomes of them.
    fn end(self: &Arc<Self>, running: Running, outputs: Vec<ResourceArc<Handle>>) {
        let refs: Vec<&Array> = outputs.iter().map(|output| output.array()).collect();
        let Running { run, reply, _queue } = running;
        let outcomes = run.outcomes.clone();
        let terms: Vec<ArrayTerm> = outputs.iter().cloned().map(ArrayTerm).collect();
        if let Some(_first) = self.first_of(&outputs) {
            let held = outputs.clone();
            let submit = |lock: &GraphLock| mlx::async_eval(&refs, lock);
            let then = move |_: Result<()>| drop(held);
            let submitted = self.submit_then("run", mlx::graph_lock(), submit, then);
            return reply.send(submitted.map(|()| terms).map_err(|(error, _)| error));
        }
        let submitted = match guard("run", || self.submit(&refs, &outcomes)) {
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
    fn push_back(&self, run: Box<Running>) {
        let mut state = self.state();
        state.jobs.push_back(Job::Run(run));
    }

    /// The stream to ask for failures after a job: the CPU's, for the GPU's may be in another thread's use.
    fn streams(&self) -> Vec<Stream> {
        match self.device {
            Device::Cpu => vec![self.stream.clone()],
            Device::Gpu => Vec::new(),
        }
    }

    /// Waits until it is known what became of an array that can fail late.
    fn settle(&self, array: ResourceArc<Handle>) -> Result<()> {
        let outcomes = outcomes_of([&*array]);
        let streams = self.streams_of(std::slice::from_ref(&array));
        let refs = [array.live()?];
        let submitted = self.submit(&refs, &outcomes)?;
        array.mark_submitted();
        self.finish(submitted, &refs, &streams, &outcomes, true)
    }

    /// Submits arrays in the middle of a run whose outcomes stay open. On the CPU waits for them.
    fn compute(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<()> {
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
    fn compute_and_stay(&self, arrays: &[&Array]) -> Result<()> {
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
    fn ask(&self, scalar: &Array, state: &[&Array], outcomes: &Outcomes) -> Result<Asked> {
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
    fn answer(&self, asked: &Asked) -> Result<bool> {
        self.look_at(asked, |bytes, dtype| dtype.is_nonzero(bytes))
    }

    /// Single whole numbers, computed. None where one is something else.
    fn whole_numbers(&self, arrays: &[&Array], outcomes: &Outcomes) -> Result<Option<Vec<Whole>>> {
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
    fn look_at<T>(&self, asked: &Asked, look: impl FnOnce(&[u8], Dtype) -> T) -> Result<T> {
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
        Ok(look(bytes, mlx::dtype(own)))
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
        let result = self.compute_open(outcomes).and_then(|()| {
            let lock = mlx::graph_lock();
            let _submitting = self.pace.begin(&lock);
            mlx::async_eval(arrays, &lock)
        });
        let Err(error) = result else {
            return Ok(submitted);
        };
        make_room(&error);
        // A long graph can meet its own failure while the rest of it is still being submitted. What the stream kept is taken
        // along, so that the next job does not find it.
        for outcome in outcomes {
            let _ = outcome.stream.synchronize();
            outcome.fail(&error);
        }
        Err(error)
    }

    /// Evaluates on the CPU what these outcomes still need of it before the GPU is given what builds on it.
    fn compute_open(&self, outcomes: &Outcomes) -> Result<()> {
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
    fn compute_crossed(&self, mut crossed: Crossed) -> Result<()> {
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
        let rows = self.rows_to_read(array.live()?)?;
        refuse_deallocated([array])?;
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
    fn tell(&self, result: Result<()>) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.is_there.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    fn wait(&self, awake: bool) -> Result<()> {
        let start = Instant::now();
        while awake && !self.is_there.load(Ordering::Acquire) && start.elapsed() < AWAKE {
            std::hint::spin_loop();
        }
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            result = self
                .wake
                .wait(result)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A queue as one of its runs sees it.
struct OfRun<'a> {
    shared: &'a Shared,
    reply: &'a Reply,
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

/// Written while a graph that can fail late is under way.
static LATE: RwLock<()> = RwLock::new(());

/// A graph that has been submitted and not yet asked for its outcome. Those that can fail late go one at a time, over all queues:
/// they may share a stream, and a stream tells of a failure once, whoever asks.
struct Submitted(#[allow(dead_code)] Option<RwLockWriteGuard<'static, ()>>);

impl Submitted {
    fn of(outcomes: &Outcomes) -> Submitted {
        let lock = || LATE.write().unwrap_or_else(PoisonError::into_inner);
        Submitted((!outcomes.is_empty()).then(lock))
    }
}

/// What is kept for reuse may be of sizes that nothing fits.
fn make_room(error: &Error) {
    if matches!(*error.reason, Reason::NoMemory { .. }) {
        let _ = mlx::clear_cache();
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
