//! Arrays whose memory is given up before the VM's garbage collector finds them. `EMLX.Array.deallocate/1` marks a
//! handle, which no call takes from then on, and its buffer is freed as soon as nothing else needs it: at once, or when
//! what is under way is computed.

use crate::handle::array::Handle;
use crate::mlx::{self, GraphLock, Identity};
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashSet;
use std::sync::atomic::{fence, AtomicBool, AtomicUsize, Ordering};

/// Arrays of marked handles whose buffers others still need. A handle takes its array out before it goes.
static WAITING: Mutex<Option<HashSet<Identity>>> = Mutex::new(None);
/// Whether there may be any, so that mostly nobody has to look.
static IS_ANY: AtomicBool = AtomicBool::new(false);
/// How many handles have been marked.
static MARKED: AtomicUsize = AtomicUsize::new(0);

fn waiting() -> MutexGuard<'static, Option<HashSet<Identity>>> {
    WAITING.lock()
}

/// How many handles have been marked so far.
pub fn marked() -> usize {
    MARKED.load(Ordering::Relaxed)
}

/// Whether handles may have been marked since there were so many. Who builds on arrays outside the graph's lock asks
/// afterwards: either this sees the mark, or who gives an array up sees that a node holds it.
pub fn was_marked_since(before: usize) -> bool {
    fence(Ordering::SeqCst);
    MARKED.load(Ordering::Relaxed) != before
}

/// Frees the buffer of a marked handle, or has that done later.
fn free(handle: &Handle, lock: &GraphLock) {
    // The elements that a handle has itself go with it: others may be reading them.
    let Some(array) = handle.known_array().map(Identity::of) else {
        return;
    };
    // SAFETY: the handle has it.
    if !unsafe { mlx::strip(array, lock) } {
        waiting().get_or_insert_default().insert(array);
        IS_ANY.store(true, Ordering::Release);
    }
}

/// Frees what nobody needs any more. Called when something has been computed.
pub fn free_waiting() {
    if !IS_ANY.load(Ordering::Acquire) {
        return;
    }
    // Whoever walks the graph now looks afterwards.
    let Some(lock) = mlx::try_graph_lock() else {
        return;
    };
    if let Some(list) = &mut *waiting() {
        // SAFETY: in the list, so its handle has not gone.
        list.retain(|array| !unsafe { mlx::strip(*array, &lock) });
        IS_ANY.store(!list.is_empty(), Ordering::Release);
    }
}

/// A marked handle goes.
pub fn forget(handle: &Handle) {
    if let (Some(list), Some(array)) = (&mut *waiting(), handle.known_array()) {
        list.remove(&Identity::of(array));
    }
}

/// Gives a handle's array up. Whether it was not given up before. Waits for whoever walks the graph.
pub fn deallocate(handle: &Handle) -> bool {
    if !handle.mark_deallocated() {
        return false;
    }
    MARKED.fetch_add(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    free(handle, &mlx::graph_lock());
    free_waiting();
    true
}
