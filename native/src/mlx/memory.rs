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
    active_of_mlx() = mlx_get_active_memory,;
    peak_of_mlx() = mlx_get_peak_memory,;
    cache_of_mlx() = mlx_get_cache_memory,;
    memory_limit() = mlx_get_memory_limit,;
    /// Sets the limit; gives the one before.
    set_memory_limit() = mlx_set_memory_limit, limit;
    set_cache_limit_of_mlx() = mlx_set_cache_limit, limit;
}

/// Bytes of arrays.
pub fn active_memory() -> Result<usize> {
    Ok(match kept::memory() {
        Some(memory) => memory.active,
        None => active_of_mlx()?,
    })
}

/// The most bytes of arrays so far.
pub fn peak_memory() -> Result<usize> {
    Ok(match kept::memory() {
        Some(memory) => memory.peak,
        None => peak_of_mlx()?,
    })
}

/// Bytes that are kept for arrays to come.
pub fn cache_memory() -> Result<usize> {
    Ok(cache_of_mlx()? + kept::memory().map_or(0, |memory| memory.kept))
}

/// Sets the limit of all that is kept; gives the one before. Where buffers of ours are kept, MLX keeps few others.
pub fn set_cache_limit(limit: usize) -> Result<usize> {
    let of_mlx = limit.min(KEPT_BY_MLX);
    let before = match kept::keep(limit - of_mlx) {
        Some(before) => before + set_cache_limit_of_mlx(of_mlx)?,
        None => set_cache_limit_of_mlx(limit)?,
    };
    // MLX on CUDA frees what is beyond a new limit with its next allocation.
    if cache_memory()? > limit {
        clear_cache()?;
    }
    Ok(before)
}

/// MLX's own limit on the CPU.
const KEPT_BY_MLX: usize = 32 << 20;

pub use kept::keep as keep_buffers;

/// Buffers of the CPU that are kept (cpp/buffers.cpp).
#[cfg(emlx_kernels)]
mod kept {
    pub struct Memory {
        pub kept: usize,
        pub active: usize,
        pub peak: usize,
    }

    extern "C" {
        fn emlx_keep_buffers(limit: usize, before: &mut usize) -> bool;
        fn emlx_clear_buffers();
        fn emlx_memory(kept: &mut usize, active: &mut usize, peak: &mut usize);
        fn emlx_reset_peak();
    }

    /// Keeps so many bytes at most. The number before, or None for an MLX with CUDA.
    pub fn keep(limit: usize) -> Option<usize> {
        let mut before = 0;
        // SAFETY: writes one number.
        unsafe { emlx_keep_buffers(limit, &mut before) }.then_some(before)
    }

    pub fn clear() {
        // SAFETY: no preconditions.
        unsafe { emlx_clear_buffers() }
    }

    /// None where this is not the place that counts.
    pub fn memory() -> Option<Memory> {
        let (mut kept, mut active, mut peak) = (0, 0, 0);
        // SAFETY: writes three numbers.
        unsafe { emlx_memory(&mut kept, &mut active, &mut peak) };
        Some(Memory { kept, active, peak })
    }

    pub fn reset_peak() {
        // SAFETY: no preconditions.
        unsafe { emlx_reset_peak() }
    }
}

/// Without the C++ part MLX alone keeps buffers.
#[cfg(not(emlx_kernels))]
mod kept {
    pub struct Memory {
        pub kept: usize,
        pub active: usize,
        pub peak: usize,
    }

    pub fn keep(_limit: usize) -> Option<usize> {
        None
    }

    pub fn clear() {}

    pub fn memory() -> Option<Memory> {
        None
    }

    pub fn reset_peak() {}
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
    kept::clear();
    // SAFETY: no preconditions.
    check(unsafe { sys::mlx_clear_cache() })
}

pub fn reset_peak_memory() -> Result<()> {
    kept::reset_peak();
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
