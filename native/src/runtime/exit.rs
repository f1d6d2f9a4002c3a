//! The end of the process: no queue may use MLX while it is taken down.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Threads that are at a job, and whether the process is about to exit.
pub(super) static BUSY: AtomicUsize = AtomicUsize::new(0);
pub(super) static IS_EXITING: AtomicBool = AtomicBool::new(false);

pub(super) struct Busy;

impl Busy {
    /// Does not return once the process is exiting.
    pub(super) fn begin() -> Busy {
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

/// Has every queue stop after its job, and every run at its next step: MLX must not be used while the process takes it
/// down. A job that takes longer than a second is not waited for.
pub extern "C" fn stop_all() {
    IS_EXITING.store(true, Ordering::SeqCst);
    for _ in 0..1000 {
        if BUSY.load(Ordering::SeqCst) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
