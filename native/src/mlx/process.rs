//! What MLX and EMLX change in the process: how MLX is set up, how the C library allocates, and how the process ends.

use super::{async_eval, error, graph_lock, keep_buffers, zeros, Stream};
use crate::base::{Device, Dtype, Error, Result, Settings};
use mlx_sys as sys;
use once_cell::sync::OnceCell;
use std::ffi::{c_int, c_void};
use std::sync::Once;

/// Installs the error handler (mlx-c's own ends the process) and lets MLX set itself up on a thread that does nothing
/// else, since MLX treats the first thread it sees as special.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        // MLX raises an error where more than twice as many different graphs were launched on CUDA as it keeps (400 by
        // default).
        let _ = set_default_variable("MLX_ENABLE_CACHE_THRASHING_CHECK", "0");
        if Settings::get().malloc {
            settle_malloc();
        }
        let setup = || {
            // SAFETY: the handler is a plain function that stays for the life of the process.
            unsafe {
                sys::mlx_set_error_handler(Some(error::keep_error), std::ptr::null_mut(), None)
            };
            // What MLX makes when it is first used, its allocator for one, is made here: what is older than
            // `leave_at_exit` is not taken down before it.
            if let Ok(stream) = Stream::new(Device::Cpu) {
                if let Ok(array) = zeros(&[2], Dtype::F32, &stream) {
                    let _ = async_eval(&[&array], &graph_lock());
                }
                let _ = stream.synchronize();
            }
        };
        // MLX knows its first thread by an id that the system gives to another thread once this one has ended, and a
        // thread that is taken for it has its submissions broken off by failures of others, after which MLX waits for
        // work that never comes.
        let (done, wait) = std::sync::mpsc::channel();
        let first = std::thread::Builder::new().name("emlx_init".into());
        let spawned = first.spawn(move || {
            setup();
            let _ = done.send(());
            loop {
                std::thread::park();
            }
        });
        if spawned.is_ok() {
            let _ = wait.recv();
        }
    });
}

/// Bytes of large arrays that are kept when they are freed: with those that malloc keeps, 256 MiB.
const KEPT: usize = 192 << 20;

/// Has the C library join small chunks with their neighbours as they are freed. It would keep them in lists, last one
/// first: after one graph is taken apart, each allocation of the next (some ten a node, of which the lists hold most)
/// then goes to another place in memory, a third of a node's cost. The VM has allocators of its own and is not
/// concerned.
/// Large arrays keep their memory apart from that (ADR 56).
fn settle_malloc() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a setting that the C library allows at any time, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MXFAST, 0);
        // On the CPU MLX takes an array's memory from here and gives it back: memory that goes back to the system each
        // time comes as pages to clear and map, which costs as much as a pass over the array.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
    }
    keep_buffers(KEPT);
}

/// Has the process end without taking down MLX, which queues, MLX's own threads and the VM's may still be in, nor CUDA,
/// whose driver goes first. Called after [`init`], and renewed once CUDA is there, since the system undoes in reverse.
/// Where a process cannot leave with its status from such a function, `stop` is called instead. What other libraries
/// asked for before is not called.
pub fn leave_at_exit(stop: extern "C" fn()) {
    let _ = STOP.set(stop);
    renew_exit_handler();
}

/// What [`leave_at_exit`] was given.
static STOP: OnceCell<extern "C" fn()> = OnceCell::new();

/// Does as [`leave_at_exit`] did before. Called once CUDA is there, whose handlers would be called first otherwise.
pub(super) fn renew_exit_handler() {
    let Some(&stop) = STOP.get() else {
        return;
    };
    #[cfg(target_os = "linux")]
    {
        extern "C" {
            // In the C libraries of Linux; the libc crate does not name it.
            fn on_exit(call: extern "C" fn(c_int, *mut c_void), data: *mut c_void) -> c_int;
        }

        extern "C" fn leave(status: c_int, _data: *mut c_void) {
            // SAFETY: flushes what C code has written, and ends the process.
            unsafe {
                libc::fflush(std::ptr::null_mut());
                libc::_exit(status);
            }
        }

        let _ = stop;
        // SAFETY: a plain function that stays for the life of the process. It can only fail for want of memory.
        let _ = unsafe { on_exit(leave, std::ptr::null_mut()) };
    }
    #[cfg(not(target_os = "linux"))]
    // SAFETY: as above.
    let _ = unsafe { libc::atexit(stop) };
}

/// Sets a variable of the environment that MLX reads later, unless the user has set it. The VM's own environment is
/// apart from the one that C code sees.
pub fn set_default_variable(name: &str, value: &str) -> Result<()> {
    let (name, value) = (error::text(name)?, error::text(value)?);
    // SAFETY: both strings end in NUL. Called while the application starts, before anything of MLX's reads the
    // environment.
    match unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(Error::invalid("the environment cannot be changed")),
    }
}
