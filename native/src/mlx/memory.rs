//! MLX's memory: what arrays take, what is kept for reuse, and the limits.

use super::error::check;
use crate::base::{Reason, Result};
use mlx_sys as sys;

macro_rules! memory {
    ($($(#[$doc:meta])* $name:ident() = $c:ident, $($arg:ident)?;)*) => {$(
        $(#[$doc])*
        pub fn $name($($arg: usize)?) -> Result<usize> {
            let mut size = 0usize;
            // SAFETY: writes one number.
            check(unsafe { sys::$c(&mut size $(, $arg)?) })?;
            Ok(size)
        }
    )*};
}

memory! {
    active_memory() = mlx_get_active_memory,;
    peak_memory() = mlx_get_peak_memory,;
    cache_memory() = mlx_get_cache_memory,;
    memory_limit() = mlx_get_memory_limit,;
    /// Sets the limit; gives the one before.
    set_memory_limit() = mlx_set_memory_limit, limit;
    /// Sets the limit; gives the one before.
    set_cache_limit() = mlx_set_cache_limit, limit;
}

/// Active, kept and most bytes, for the text of an error.
pub fn memory_figures() -> Option<(usize, usize, usize)> {
    Some((
        active_memory().ok()?,
        cache_memory().ok()?,
        memory_limit().ok()?,
    ))
}

pub fn clear_cache() -> Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { sys::mlx_clear_cache() })
}

pub fn reset_peak_memory() -> Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { sys::mlx_reset_peak_memory() })
}

/// Refuses what the memory limit does not allow.
pub fn check_bytes(bytes: u128) -> Result<()> {
    let limit = memory_limit()?;
    if bytes <= limit as u128 {
        return Ok(());
    }
    Err(Reason::OutOfMemory { bytes, limit }.into())
}
