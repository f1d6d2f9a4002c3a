//! Keeps a CPU stream's thread awake for a moment after it has computed something: who reads a value often wants the
//! next one, and waking a thread takes 20 to 50 µs on a virtual machine, as long as a small graph takes altogether.
//! Used by queues.

use crate::base::Settings;
use crate::mlx::{self, GraphLock};
use emlx_cpu::cpu_core;
use once_cell::sync::OnceCell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long the thread waits for the next graph to come.
const LINGER: Duration = Duration::from_micros(50);
/// How long it waits for one that is on its way: MLX submits node by node, and a thread that computed each at once
/// would sleep and be woken in between.
const HOLD: Duration = Duration::from_micros(100);

/// What is submitted to one stream.
#[derive(Default)]
pub struct Pace {
    /// Odd while somebody submits, and another number after each time.
    turn: AtomicU32,
    /// The core of whoever submitted last.
    core: AtomicUsize,
}

/// A graph is being submitted, until this goes.
pub struct Submitting<'a> {
    pace: &'a Pace,
    turn: u32,
}

impl Submitting<'_> {
    /// What [`Pace::linger`] is told once this graph is computed.
    pub fn turn(&self) -> u32 {
        self.turn.wrapping_add(1)
    }
}

impl Drop for Submitting<'_> {
    fn drop(&mut self) {
        self.pace.turn.store(self.turn(), Ordering::Release);
    }
}

impl Pace {
    /// One at a time, since the graph's lock is held.
    pub fn begin(&self, _lock: &GraphLock) -> Submitting<'_> {
        self.core.store(cpu_core::current(), Ordering::Relaxed);
        let turn = self.turn.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        Submitting { pace: self, turn }
    }

    /// Waits a moment for what comes after a turn. Called by the stream's thread when it has done its work.
    pub fn linger(&self, turn: u32) {
        if let Some(_awake) = Awake::begin() {
            self.spin(turn);
        }
    }

    fn spin(&self, turn: u32) {
        let (mut start, mut limit, mut expected) = (Instant::now(), LINGER, turn);
        loop {
            for _ in 0..4 {
                let now = self.turn.load(Ordering::Acquire);
                if now != expected {
                    if now.is_multiple_of(2) {
                        return;
                    }
                    (expected, start, limit) = (now, Instant::now(), HOLD);
                }
                std::hint::spin_loop();
            }
            // On the same core it would keep the very thread waiting that it waits for; and with much submitted that
            // thread waits in MLX.
            if cpu_core::current() == self.core.load(Ordering::Relaxed)
                || start.elapsed() >= limit
                || mlx::active_tasks() > mlx::MAX_ACTIVE_TASKS / 2
            {
                return;
            }
        }
    }
}

/// A thread that spins, until this goes.
pub struct Awake(());

static AWAKE: AtomicUsize = AtomicUsize::new(0);

impl Awake {
    /// None where threads are not to spin, or so many do that no core would be left to others.
    pub fn begin() -> Option<Awake> {
        if !Settings::get().spin {
            return None;
        }
        let awake = Awake(());
        (AWAKE.fetch_add(1, Ordering::Relaxed) + 1 < cores()).then_some(awake)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        AWAKE.fetch_sub(1, Ordering::Relaxed);
    }
}

fn cores() -> usize {
    static CORES: OnceCell<usize> = OnceCell::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lingering_ends_by_itself_and_when_a_graph_has_come() {
        let pace = Pace::default();
        // Nothing comes.
        pace.linger(0);
        // What comes is submitted by another thread, and is never done with.
        let submitting = pace.begin(&mlx::graph_lock());
        assert_eq!(submitting.turn(), 2);
        pace.linger(0);
        drop(submitting);
        // It has come before.
        pace.linger(0);
        assert_eq!(pace.turn.load(Ordering::Relaxed), 2);
    }
}
