//! Evaluation: threads with a stream each, which compute what they are given.

mod evaluate;
mod exit;
mod pace;
mod queue;
mod reply;
mod submit;
mod suspended;

pub use exit::stop_all;
pub use queue::{Job, Pushed, Queue, Shared};
pub use reply::{Done, Reply};
pub use suspended::{Running, Suspended};

use crate::base::{Reason, Result};
use std::panic::{catch_unwind, AssertUnwindSafe};

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
