//! A queue: a thread with a stream of its own. Callers put jobs on it and are answered by message.

use super::exit::Busy;
use super::guard;
use super::pace::{Awake, Pace};
use super::reply::{Done, Reply};
use super::suspended::Running;
use crate::base::{Device, Error, Reason, Result};
use crate::handle::array::Handle;
use crate::handle::deallocate::free_waiting;
use crate::handle::safetensors as file;
use crate::mlx::{self, Stream};
use crate::program::{self, Program};
use once_cell::sync::OnceCell;
use parking_lot::{Condvar, Mutex, MutexGuard};
use rustler::{Resource, ResourceArc};
use std::collections::VecDeque;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Jobs that nobody waits for which a queue accepts before it makes their callers wait.
pub(super) const MAX_BACKLOG: usize = 16;

/// How long the thread of a queue of the GPU looks for its next job before it sleeps.
const LINGER: Duration = Duration::from_micros(100);

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
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(self, Job::Eval { reply: None, .. })
    }

    /// Answers without doing it.
    pub(super) fn refuse(self, error: Error) {
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

pub(super) struct State {
    pub(super) jobs: VecDeque<Job>,
    /// Whether the thread is at a job.
    pub(super) is_working: bool,
    pub(super) closed: bool,
}

pub struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) wake: Condvar,
    pub device: Device,
    pub stream: Stream,
    pub(super) pace: Arc<Pace>,
    /// Whether a run did not wait long for what it had computed last.
    pub(super) is_quick: AtomicBool,
    /// Another number after each job that came.
    pub(super) arrivals: AtomicU32,
    /// Jobs that have been submitted and are to end on the stream's own thread.
    pub(super) unfinished: AtomicUsize,
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

/// What became of a job that was put on a queue.
pub enum Pushed {
    Accepted,
    /// Accepted, and the caller should wait for the queue before it sends more.
    Behind,
}

impl Shared {
    /// Starts a queue. Streams outlive their queues (MLX cannot end one), so a new queue takes over the stream of a
    /// closed one.
    pub fn start(device: Device) -> Result<Arc<Shared>> {
        device.require()?;
        let idle = free_streams(device).pop();
        let stream = match idle {
            Some(stream) => stream,
            None => Stream::new(device)?,
        };
        Self::start_on(device, stream)
    }

    pub(super) fn start_on(device: Device, stream: Stream) -> Result<Arc<Shared>> {
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
            arrivals: AtomicU32::new(0),
            unfinished: AtomicUsize::new(0),
        });
        shared.start_thread()?;
        Ok(shared)
    }

    pub(super) fn start_thread(self: &Arc<Self>) -> Result<()> {
        let of_thread = self.clone();
        std::thread::Builder::new()
            .name(format!("emlx_{}", self.device.name()))
            .spawn(move || of_thread.work())
            .map(|_| ())
            .map_err(|e| Error::invalid(format!("cannot start a thread: {e}")))
    }

    /// The device's own queue, which never closes.
    pub fn default(device: Device) -> Result<&'static Arc<Shared>> {
        static CPU: OnceCell<Result<Arc<Shared>>> = OnceCell::new();
        static GPU: OnceCell<Result<Arc<Shared>>> = OnceCell::new();
        let cell = match device {
            Device::Cpu => &CPU,
            Device::Gpu => &GPU,
        };
        let stream = device.stream()?;
        cell.get_or_init(|| Self::start_on(device, stream.clone()))
            .as_ref()
            .map_err(Clone::clone)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
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
            self.arrivals.fetch_add(1, Ordering::Release);
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
    pub(super) fn work(self: Arc<Self>) {
        let _ = self.device.enter(&self.stream);
        loop {
            let job = {
                let mut state = self.state();
                state.is_working = false;
                let mut may_linger = self.device == Device::Gpu;
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
                    if may_linger {
                        may_linger = false;
                        let arrivals = self.arrivals.load(Ordering::Acquire);
                        MutexGuard::unlocked(&mut state, || self.linger(arrivals));
                        continue;
                    }
                    self.wake.wait(&mut state);
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

    /// Stays awake for a moment, for the next job often comes at once, and a small one takes no longer than waking a
    /// thread. The CPU's small jobs do not come to this thread.
    fn linger(&self, arrivals: u32) {
        let Some(_awake) = Awake::begin() else {
            return;
        };
        let start = Instant::now();
        while self.arrivals.load(Ordering::Acquire) == arrivals && start.elapsed() < LINGER {
            std::hint::spin_loop();
        }
    }

    pub(super) fn run(self: &Arc<Self>, job: Job) {
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
}

pub(super) fn free_streams(device: Device) -> MutexGuard<'static, Vec<Stream>> {
    static CPU: Mutex<Vec<Stream>> = Mutex::new(Vec::new());
    static GPU: Mutex<Vec<Stream>> = Mutex::new(Vec::new());
    match device {
        Device::Cpu => &CPU,
        Device::Gpu => &GPU,
    }
    .lock()
}
