//! Which of the processor's cores a thread runs on.

/// The core that the calling thread is on; 0 where the system does not tell.
#[inline]
pub fn current() -> usize {
    #[cfg(target_os = "linux")]
    // SAFETY: no preconditions.
    return usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0);
    #[cfg(not(target_os = "linux"))]
    0
}
