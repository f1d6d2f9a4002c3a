//! MLX's failures as errors: the handler that keeps MLX's words, and checks of what its C functions return.

use super::memory::memory_figures;
use crate::base::{Error, Reason, Result};
use mlx_rs::Array;
use mlx_sys as sys;
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void, CStr, CString};

thread_local! {
    /// What MLX last complained of on this thread, until the failing call takes it.
    static LAST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Whether a call of CUDA's has failed on this thread.
    static IS_SPENT: Cell<bool> = const { Cell::new(false) };
}

pub(super) unsafe extern "C" fn keep_error(message: *const c_char, _data: *mut c_void) {
    // SAFETY: mlx-c hands over a NUL-terminated string that lives through this call.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    // mlx-c appends " at <file>:<line>" of its own sources, which tells a user nothing.
    let text = match text.rfind(" at /").or_else(|| text.rfind(" at ")) {
        Some(end) if text[end..].contains(".cpp:") => &text[..end],
        _ => &text,
    };
    LAST_ERROR.with(|last| *last.borrow_mut() = Some(text.to_string()));
}

pub(in crate::mlx) fn take_error() -> Error {
    let text = LAST_ERROR.with(|last| last.borrow_mut().take());
    let mut text = text.unwrap_or_else(|| "MLX failed without a message".into());
    // Only programs ask for compilation.
    if text.starts_with("[Compile::eval_cpu]") {
        text.push_str("; a program made with fuse: false takes no compiler");
    }
    if Reason::is_of_cuda(&text) {
        IS_SPENT.set(true);
    }
    Reason::of_mlx(text, memory_figures).into()
}

/// Whether a call of CUDA's has failed on the calling thread. CUDA keeps a thread's last error, and MLX asks for it
/// after each wait: from then on nothing that this thread waits for is told from a failure.
pub fn thread_is_spent() -> bool {
    IS_SPENT.get()
}

pub(in crate::mlx) fn check(status: c_int) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(take_error())
    }
}

/// Runs a call that fills in one array.
pub(in crate::mlx) fn one(call: impl FnOnce(*mut sys::mlx_array) -> c_int) -> Result<Array> {
    let mut raw = sys::mlx_array {
        ctx: std::ptr::null_mut(),
    };
    let status = call(&mut raw);
    // SAFETY: the handle is ours alone; an empty one is freed as a no-op.
    let array = unsafe { Array::from_ptr(raw) };
    check(status)?;
    if raw.ctx.is_null() {
        return Err(take_error());
    }
    Ok(array)
}

pub(in crate::mlx) fn raw_or_null(array: Option<&Array>) -> sys::mlx_array {
    array.map_or(
        sys::mlx_array {
            ctx: std::ptr::null_mut(),
        },
        Array::as_ptr,
    )
}

pub(in crate::mlx) fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("text must not contain a NUL byte"))
}

/// The text of one of MLX's strings.
///
/// # Safety
/// The string is live.
pub(in crate::mlx) unsafe fn string_of(text: &sys::mlx_string) -> String {
    let data = sys::mlx_string_data(*text);
    match data.is_null() {
        true => String::new(),
        false => CStr::from_ptr(data).to_string_lossy().into_owned(),
    }
}
