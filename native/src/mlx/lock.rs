//! The lock under which MLX's graphs are walked, and how arrays are given up without waiting for it.

use mlx_rs::Array;
use parking_lot::{Mutex, MutexGuard, RwLock};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, Ordering};

static GRAPH: Mutex<()> = Mutex::new(());
static DROPPED: Mutex<Vec<Dropped>> = Mutex::new(Vec::new());
/// Whether `DROPPED` may hold anything, so that mostly nobody has to look.
static IS_PENDING: AtomicBool = AtomicBool::new(false);

/// Written while a graph that can fail late is under way, from its submission until its stream has been asked for the
/// failure. A stream tells of it once, whoever asks, and asking whether an array is computed can be asking.
pub static LATE: RwLock<()> = RwLock::new(());

struct Dropped(#[allow(dead_code)] Array);

/// Held while a graph is walked, submitted or taken apart. MLX marks nodes as it submits them and unlinks
/// siblings as it destroys them, on whichever thread that happens, without locks of its own.
pub struct GraphLock(#[allow(dead_code)] MutexGuard<'static, ()>);

pub fn graph_lock() -> GraphLock {
    GraphLock(GRAPH.lock())
}

impl Drop for GraphLock {
    fn drop(&mut self) {
        // Handles given up meanwhile, while this thread still owns the graph.
        release_dropped();
    }
}

fn dropped() -> MutexGuard<'static, Vec<Dropped>> {
    DROPPED.lock()
}

fn release_dropped() {
    while IS_PENDING.swap(false, Ordering::AcqRel) {
        let batch = std::mem::take(&mut *dropped());
        drop(batch);
    }
}

/// The lock if nobody holds it: schedulers must not wait for one another.
pub fn try_graph_lock() -> Option<GraphLock> {
    GRAPH.try_lock().map(GraphLock)
}

/// Frees what was given up while a graph was walked, unless one is being walked now.
pub fn release_pending() {
    drop(try_graph_lock());
}

/// Gives an array up without ever blocking the calling scheduler: at once when no graph is being walked, else by the
/// thread that walks it.
pub fn release(array: Array) {
    match try_graph_lock() {
        Some(lock) => {
            drop(array);
            drop(lock);
        }
        None => {
            dropped().push(Dropped(array));
            IS_PENDING.store(true, Ordering::Release);
        }
    }
}

/// The same for several arrays, of which there may be none.
pub fn release_all(arrays: SmallVec<[Array; 4]>) {
    if arrays.is_empty() {
        return;
    }
    match try_graph_lock() {
        Some(lock) => {
            drop(arrays);
            drop(lock);
        }
        None => {
            dropped().extend(arrays.into_iter().map(Dropped));
            IS_PENDING.store(true, Ordering::Release);
        }
    }
}
