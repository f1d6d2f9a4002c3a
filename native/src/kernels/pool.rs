//! Threads that share a kernel's work: as many as there are cores, the calling one among them. One kernel has them at a time;
//! another that comes meanwhile, from another stream, works alone.

use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

type Work = dyn Fn(usize) + Sync;

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
}

struct Pool {
    workers: usize,
    one_at_a_time: Mutex<()>,
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        let wanted = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        let pool: &'static mut Pool = Box::leak(Box::new(Pool {
            workers: 0,
            one_at_a_time: Mutex::default(),
            state: Mutex::default(),
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
        loop {
            match state.job {
                Some(job) => {
                    state.working += 1;
                    drop(state);
                    job.run();
                    state = lock(&self.state);
                    // No part is left, so nobody else has to begin.
                    state.job = None;
                    state.working -= 1;
                    if state.working == 0 {
                        self.done.notify_one();
                    }
                }
                None => {
                    state = self
                        .wake
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }
}

/// Calls `work` with every number below `count`, on several threads where `worth_it` and where they are free.
pub fn parallel(count: usize, worth_it: bool, work: &(dyn Fn(usize) + Sync)) {
    if count > 1 && worth_it {
        let pool = pool();
        let turn = match pool.one_at_a_time.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
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
    lock(&pool.state).job = Some(job);
    if count == 2 {
        pool.wake.notify_one();
    } else {
        pool.wake.notify_all();
    }
    job.run();
    let mut state = lock(&pool.state);
    state.job = None;
    while state.working > 0 {
        state = pool
            .done
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
    drop(state);
    if panicked.load(Ordering::Relaxed) {
        resume_unwind(Box::new("a kernel panicked"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_whoever_calls() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for count in [0, 1, 2, 3, 100] {
                        let done: Vec<AtomicUsize> =
                            (0..count).map(|_| AtomicUsize::new(0)).collect();
                        parallel(count, true, &|i| {
                            done[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        let result = catch_unwind(|| parallel(64, true, &|i| assert!(i != 40, "part 40")));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        parallel(64, true, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 64 * 63 / 2);
    }
}
