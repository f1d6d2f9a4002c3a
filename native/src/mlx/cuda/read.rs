//! Bytes that CUDA has computed, copied to the CPU's memory by the driver, which leaves the array where it is.

use super::kernel::device_address;
use crate::base::{Error, Result};
use crate::mlx;
use cudarc::driver::result as driver;
use mlx_rs::Array;

/// Bytes up to which the driver copies. MLX moves what the CPU looks at to memory that both see, which a second node
/// has to copy before: for few bytes that takes longer than the copy.
pub const FEW: usize = 64 << 10;

/// The bytes of a computed array of at most [`FEW`] of them. None where it is not laid out in rows, or its buffer is not
/// known.
///
/// # Safety
/// The array is on the GPU and has been computed, by this thread or with CUDA's context made its own.
pub unsafe fn few_bytes(array: &Array) -> Result<Option<Vec<u8>>> {
    let size = array.nbytes();
    if size == 0 || size > FEW || !mlx::is_in_rows(array) {
        return Ok(None);
    }
    let Some(address) = device_address(array) else {
        return Ok(None);
    };
    let mut bytes = vec![0_u8; size];
    driver::memcpy_dtoh_sync(&mut bytes, address)
        .map_err(|error| Error::invalid(format!("CUDA did not copy {size} bytes: {error:?}")))?;
    Ok(Some(bytes))
}
