//! Threads that share a kernel's work: as many as there are cores, the calling one among them. One kernel has them at a
//! time; another that comes meanwhile, from another stream, works alone. A thread that has done its part waits a moment
//! before it sleeps.

use super::cpu_core;
use once_cell::sync::OnceCell;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long a thread turns round before it sleeps. Waking one takes 20 to 50 µs on a virtual machine, and the kernels
/// of a model follow one another closer than that.
const SPIN: Duration = Duration::from_micros(50);

/// Elements from which a second thread pays: below, waking it takes longer than the work.
pub const WORTH_SHARING: usize = 32_768;
/// Elements in a part of shared work.
pub const PART: usize = 8_192;

type Work = dyn Fn(usize) + Sync;

struct Config {
    threads: Option<usize>,
    spin: bool,
}

static CONFIG: OnceCell<Config> = OnceCell::new();

/// How many threads share a kernel's work, the calling one among them (None is one for each core), and whether they
/// turn round for a moment before they sleep. To be called before the first kernel runs; later it has no effect.
pub fn configure(threads: Option<usize>, spin: bool) {
    let _ = CONFIG.set(Config { threads, spin });
}

fn config() -> &'static Config {
    let default = Config {
        threads: None,
        spin: true,
    };
    CONFIG.get_or_init(|| default)
}

/// A pointer that threads may share, each for elements of its own.
pub struct Shared<T>(pub *mut T);

// SAFETY: the parts that threads write do not overlap.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub unsafe fn at(&self, i: usize) -> *mut T {
        self.0.add(i)
    }

    pub unsafe fn offset(&self, i: isize) -> *mut T {
        self.0.offset(i)
    }
}

/// One call of [`parallel`]: parts are taken by number until none is left.
#[derive(Clone, Copy)]
struct Job {
    work: *const Work,
    next: *const AtomicUsize,
    count: usize,
    panicked: *const AtomicBool,
}

// SAFETY: the pointers go to the stack of the caller, who waits until no worker has the job any more.
unsafe impl Send for Job {}

#[derive(Default)]
struct State {
    job: Option<Job>,
    /// Workers that hold a copy of the job.
    working: usize,
    /// Workers that look out for a job and need not be woken.
    awake: usize,
}

struct Pool {
    workers: usize,
    one_at_a_time: Mutex<()>,
    state: Mutex<State>,
    /// Jobs so far.
    posted: AtomicUsize,
    /// Workers that hold a copy of the job, to be looked at without the lock.
    busy: AtomicUsize,
    /// The core of who posted last, and of the worker that took a job last.
    poster: AtomicUsize,
    worker: AtomicUsize,
    wake: Condvar,
    done: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

fn pool() -> &'static Pool {
    static POOL: OnceCell<&'static Pool> = OnceCell::new();
    POOL.get_or_init(|| {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let wanted = config().threads.unwrap_or_else(cores).saturating_sub(1);
        let pool: &'static mut Pool = Box::leak(Box::new(Pool {
            workers: 0,
            one_at_a_time: Mutex::default(),
            state: Mutex::default(),
            posted: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            poster: AtomicUsize::new(0),
            worker: AtomicUsize::new(0),
            wake: Condvar::new(),
            done: Condvar::new(),
        }));
        pool.workers = wanted;
        let pool: &'static Pool = pool;
        for i in 0..wanted {
            // With fewer threads than wanted the caller does more itself.
            let _ = std::thread::Builder::new()
                .name(format!("emlx_kernel_{i}"))
                .spawn(move || pool.work());
        }
        pool
    })
}

/// How many threads work together.
pub fn threads() -> usize {
    pool().workers + 1
}

impl Job {
    fn run(&self) {
        // SAFETY: the caller of `parallel` waits for us.
        let (work, next, panicked) = unsafe { (&*self.work, &*self.next, &*self.panicked) };
        let all = || loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return;
            }
            work(i);
        };
        if catch_unwind(AssertUnwindSafe(all)).is_err() {
            panicked.store(true, Ordering::Relaxed);
            next.store(self.count, Ordering::Relaxed);
        }
    }
}

impl Pool {
    fn work(&self) {
        let mut state = lock(&self.state);
        let mut has_spun = true;
        loop {
            match state.job {
                Some(job) => {
                    has_spun = false;
                    state.working += 1;
                    self.busy.store(state.working, Ordering::Relaxed);
                    drop(state);
                    self.worker.store(cpu_core::current(), Ordering::Relaxed);
                    job.run();
                    state = lock(&self.state);
                    // No part is left, so nobody else has to begin.
                    state.job = None;
                    state.working -= 1;
                    self.busy.store(state.working, Ordering::Relaxed);
                    if state.working == 0 {
                        self.done.notify_one();
                    }
                }
                None if !has_spun && config().spin => {
                    let seen = self.posted.load(Ordering::Relaxed);
                    state.awake += 1;
                    drop(state);
                    spin(&self.poster, || self.posted.load(Ordering::Relaxed) != seen);
                    has_spun = true;
                    state = lock(&self.state);
                    state.awake -= 1;
                }
                None => self.wake.wait(&mut state),
            }
        }
    }
}

/// Turns round for a moment. Not on the core of whom it waits for.
fn spin(other: &AtomicUsize, is_over: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_over() {
        for _ in 0..8 {
            std::hint::spin_loop();
        }
        if cpu_core::current() == other.load(Ordering::Relaxed) || start.elapsed() >= SPIN {
            return;
        }
    }
}

/// Calls `work` with every number below `count`, on several threads where `worth_it` and where they are free.
pub fn parallel(count: usize, worth_it: bool, work: &(dyn Fn(usize) + Sync)) {
    if count > 1 && worth_it {
        let pool = pool();
        let turn = pool.one_at_a_time.try_lock();
        if let Some(_turn) = turn.filter(|_| pool.workers > 0) {
            return share(pool, count, work);
        }
    }
    for i in 0..count {
        work(i);
    }
}

fn share(pool: &Pool, count: usize, work: &(dyn Fn(usize) + Sync)) {
    let (next, panicked) = (AtomicUsize::new(0), AtomicBool::new(false));
    // SAFETY: only the lifetime changes; this function does not return before every worker is done with it.
    let work: &'static Work = unsafe { std::mem::transmute(work) };
    let job = Job {
        work,
        next: &next,
        count,
        panicked: &panicked,
    };
    pool.poster.store(cpu_core::current(), Ordering::Relaxed);
    let awake = {
        let mut state = lock(&pool.state);
        state.job = Some(job);
        pool.posted.fetch_add(1, Ordering::Relaxed);
        state.awake
    };
    match (count - 1).min(pool.workers).saturating_sub(awake) {
        0 => {}
        1 => {
            pool.wake.notify_one();
        }
        _ => {
            pool.wake.notify_all();
        }
    }
    job.run();
    let mut state = lock(&pool.state);
    state.job = None;
    if state.working > 0 {
        drop(state);
        spin(&pool.worker, || pool.busy.load(Ordering::Relaxed) == 0);
        state = lock(&pool.state);
    }
    while state.working > 0 {
        pool.done.wait(&mut state);
    }
    drop(state);
    if panicked.load(Ordering::Relaxed) {
        resume_unwind(Box::new("a kernel panicked"));
    }
}
