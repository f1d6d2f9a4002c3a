//! The one module that calls MLX's C interface. Safe functions named as in MLX's own documentation; each takes
//! the stream that its node will run on, and gives MLX's words as an error.
//!
//! mlx-rs gives the array handle. Its operations are not used: they take their stream from a type that cannot hold
//! a stream which is usable from any thread (see ARCHITECTURE.md), and every operation here needs one.

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Reason, Result};
use crate::kernels::Functions;
use mlx_rs::Array;
use mlx_sys as sys;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::cell::{Cell, RefCell};
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError};

thread_local! {
    /// What MLX last complained of on this thread, until the failing call takes it.
    static LAST_ERROR: RefCell<Option<String>> = const { RefCell::new(None) };
    /// Whether a call of CUDA's has failed on this thread.
    static IS_SPENT: Cell<bool> = const { Cell::new(false) };
}

unsafe extern "C" fn keep_error(message: *const c_char, _data: *mut c_void) {
    // SAFETY: mlx-c hands over a NUL-terminated string that lives through this call.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    // mlx-c appends " at <file>:<line>" of its own sources, which tells a user nothing.
    let text = match text.rfind(" at /").or_else(|| text.rfind(" at ")) {
        Some(end) if text[end..].contains(".cpp:") => &text[..end],
        _ => &text,
    };
    LAST_ERROR.with(|last| *last.borrow_mut() = Some(text.to_string()));
}

/// Installs the error handler (mlx-c's own ends the process) and lets MLX set itself up on a thread that does nothing else,
/// since MLX treats the first thread it sees as special.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        // MLX raises an error where more than twice as many different graphs were launched on CUDA as it keeps (400 by default).
        let _ = set_default_variable("MLX_ENABLE_CACHE_THRASHING_CHECK", "0");
        settle_malloc();
        let setup = || {
            // SAFETY: the handler is a plain function that stays for the life of the process.
            unsafe { sys::mlx_set_error_handler(Some(keep_error), std::ptr::null_mut(), None) };
            // What MLX makes when it is first used, its allocator for one, is made here: what is older than `leave_at_exit` is not taken
            // down before it.
            if let Ok(stream) = Stream::new(Device::Cpu) {
                if let Ok(array) = zeros(&[2], Dtype::F32, &stream) {
                    let _ = async_eval(&[&array], &graph_lock());
                }
                let _ = stream.synchronize();
            }
        };
        // MLX knows its first thread by an id that the system gives to another thread once this one has ended, and a thread that is
        // taken for it has its submissions broken off by failures of others, after which MLX waits for work that never comes.
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

/// Has the C library join small chunks with their neighbours as they are freed. It would keep them in lists, last one first: after
/// one graph is taken apart, each allocation of the next (some ten a node, of which the lists hold most) then goes to
/// another place in memory, a third of a node's cost. The VM has allocators of its own and is not concerned.
fn settle_malloc() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a setting that the C library allows at any time, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MXFAST, 0);
        // On the CPU MLX takes an array's memory from here and gives it back: memory that goes back to the system each time comes
        // as pages to clear and map, which costs as much as a pass over the array.
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 256 << 20);
    }
}

fn take_error() -> Error {
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

/// Has the process end without taking down MLX, which queues, MLX's own threads and the VM's may still be in, nor CUDA, whose driver goes
/// first. Called after [`init`] and again once CUDA is there, since the system undoes in reverse. Where a process cannot leave with
/// its status from such a function, `stop` is called instead. What other libraries asked for before is not called.
pub fn leave_at_exit(stop: extern "C" fn()) {
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

/// Sets a variable of the environment that MLX reads later, unless the user has set it. The VM's own environment is apart from the one
/// that C code sees.
pub fn set_default_variable(name: &str, value: &str) -> Result<()> {
    let (name, value) = (text(name)?, text(value)?);
    // SAFETY: both strings end in NUL. Called while the application starts, before anything of MLX's reads the environment.
    match unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(Error::invalid("the environment cannot be changed")),
    }
}

/// Active, kept and most bytes, for the text of an error.
pub fn memory_figures() -> Option<(usize, usize, usize)> {
    Some((
        active_memory().ok()?,
        cache_memory().ok()?,
        memory_limit().ok()?,
    ))
}

/// Whether a call of CUDA's has failed on the calling thread. CUDA keeps a thread's last error, and MLX asks for it after each wait:
/// from then on nothing that this thread waits for is told from a failure.
pub fn thread_is_spent() -> bool {
    IS_SPENT.get()
}

fn check(status: c_int) -> Result<()> {
    if status == 0 {
        Ok(())
    } else {
        Err(take_error())
    }
}

/// Runs a call that fills in one array.
fn one(call: impl FnOnce(*mut sys::mlx_array) -> c_int) -> Result<Array> {
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

fn raw_or_null(array: Option<&Array>) -> sys::mlx_array {
    array.map_or(
        sys::mlx_array {
            ctx: std::ptr::null_mut(),
        },
        Array::as_ptr,
    )
}

// ---- streams and devices ----

/// A stream that any thread may build nodes for. Evaluation on it goes through [`graph_lock`].
#[derive(Debug)]
pub struct Stream(sys::mlx_stream);

// SAFETY: the wrapped object is an index and a device, never written after it is made.
unsafe impl Send for Stream {}
unsafe impl Sync for Stream {}

impl Clone for Stream {
    fn clone(&self) -> Self {
        // Streams live as long as the process (MLX has no call that ends one of several), so sharing the pointer is sound.
        Stream(self.0)
    }
}

fn device_handle(device: Device) -> sys::mlx_device {
    let kind = match device {
        Device::Cpu => sys::mlx_device_type__MLX_CPU,
        Device::Gpu => sys::mlx_device_type__MLX_GPU,
    };
    // SAFETY: no preconditions.
    unsafe { sys::mlx_device_new_type(kind, 0) }
}

pub fn device_is_available(device: Device) -> bool {
    let mut available = false;
    let handle = device_handle(device);
    // SAFETY: the handle is live until the call after.
    let status = unsafe { sys::mlx_device_is_available(&mut available, handle) };
    unsafe { sys::mlx_device_free(handle) };
    status == 0 && available
}

/// What NVIDIA's driver says of itself, where libmlx is one for CUDA.
pub struct CudaDriver {
    /// The version of CUDA that libmlx and its libraries are of: 12 or 13.
    pub of_mlx: u32,
    /// The newest CUDA that the driver serves: 12.4 is 12040.
    pub of_driver: u32,
    /// Why the driver has no device, in its own words.
    pub failure: Option<String>,
}

/// None where libmlx is for the CPU alone. The driver is asked directly: MLX says how many devices there are, and not why none is.
#[cfg(target_os = "linux")]
pub fn cuda_driver() -> Option<CudaDriver> {
    type Init = unsafe extern "C" fn(flags: u32) -> c_int;
    type Version = unsafe extern "C" fn(version: *mut c_int) -> c_int;
    type Words = unsafe extern "C" fn(error: c_int, words: *mut *const c_char) -> c_int;

    let mut is_cuda = false;
    // SAFETY: only fills in the flag.
    if unsafe { sys::mlx_cuda_is_available(&mut is_cuda) } != 0 || !is_cuda {
        return None;
    }
    // What is loaded already, if anything.
    let loaded = |name: &CStr| {
        // SAFETY: the name ends in NUL; the flag has nothing loaded.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        (!library.is_null()).then_some(library)
    };
    let of_mlx = if loaded(c"libnvrtc.so.12").is_some() {
        12
    } else {
        13
    };
    let mut driver = CudaDriver {
        of_mlx,
        of_driver: 0,
        failure: None,
    };
    // libmlx does not load without it.
    let library = loaded(c"libcuda.so.1")?;
    let function = |name: &CStr| {
        // SAFETY: the library stays loaded for the life of the process.
        let address = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    };
    // SAFETY: these are the functions of CUDA's driver API of those names, which have had these types since CUDA 6.
    unsafe {
        if let Some(address) = function(c"cuDriverGetVersion") {
            let mut version = 0;
            if std::mem::transmute::<*mut c_void, Version>(address)(&mut version) == 0 {
                driver.of_driver = u32::try_from(version).unwrap_or(0);
            }
        }
        let status = match function(c"cuInit") {
            Some(address) => std::mem::transmute::<*mut c_void, Init>(address)(0),
            None => 0,
        };
        if status != 0 {
            let mut words: *const c_char = std::ptr::null();
            if let Some(address) = function(c"cuGetErrorString") {
                std::mem::transmute::<*mut c_void, Words>(address)(status, &mut words);
            }
            let words = if words.is_null() {
                "an unknown error".into()
            } else {
                CStr::from_ptr(words).to_string_lossy()
            };
            driver.failure = Some(format!("cuInit gives {status}, {words}"));
        }
    }
    Some(driver)
}

#[cfg(not(target_os = "linux"))]
pub fn cuda_driver() -> Option<CudaDriver> {
    None
}

/// What MLX knows of a device: name, memory, architecture, as MLX names them.
pub fn device_info(device: Device) -> Result<Vec<(String, InfoValue)>> {
    let handle = device_handle(device);
    let mut entries = Vec::new();
    // SAFETY: every handle below is made here, used while live and freed once; strings are copied out.
    unsafe {
        let mut info = sys::mlx_device_info_new();
        let mut keys = sys::mlx_vector_string_new();
        let mut status = sys::mlx_device_info_get(&mut info, handle);
        if status == 0 {
            status = sys::mlx_device_info_get_keys(&mut keys, info);
        }
        if status == 0 {
            for i in 0..sys::mlx_vector_string_size(keys) {
                let mut key: *mut c_char = std::ptr::null_mut();
                if sys::mlx_vector_string_get(&mut key, keys, i) != 0 || key.is_null() {
                    continue;
                }
                let name = CStr::from_ptr(key).to_string_lossy().into_owned();
                let mut text: *const c_char = std::ptr::null();
                let mut size = 0usize;
                let mut is_string = false;
                sys::mlx_device_info_is_string(&mut is_string, info, key);
                if is_string {
                    if sys::mlx_device_info_get_string(&mut text, info, key) == 0 {
                        let value = CStr::from_ptr(text).to_string_lossy().into_owned();
                        entries.push((name, InfoValue::Text(value)));
                    }
                } else if sys::mlx_device_info_get_size(&mut size, info, key) == 0 {
                    entries.push((name, InfoValue::Size(size)));
                }
            }
        }
        sys::mlx_vector_string_free(keys);
        sys::mlx_device_info_free(info);
        sys::mlx_device_free(handle);
        check(status)?;
    }
    Ok(entries)
}

pub enum InfoValue {
    Text(String),
    Size(usize),
}

impl Stream {
    pub fn new(device: Device) -> Result<Stream> {
        // MLX finds a stream's encoder in a map that is not locked, and a new stream can have it rebuilt.
        let _lock = graph_lock();
        let handle = device_handle(device);
        // SAFETY: the device handle is live for the call.
        let raw = unsafe { sys::mlx_stream_new_thread_unsafe(handle) };
        unsafe { sys::mlx_device_free(handle) };
        if raw.ctx.is_null() {
            return Err(take_error());
        }
        Ok(Stream(raw))
    }

    pub fn is_same(&self, other: &Stream) -> bool {
        self.0.ctx == other.0.ctx
    }

    /// Makes this the calling thread's default on its device, for the nodes that MLX adds without asking (layer_norm's
    /// formula has one). A thread's own default stream could be used by that thread only.
    pub fn make_thread_default(&self, device: Device) -> Result<()> {
        thread_local! {
            static CURRENT: Cell<[*mut c_void; 2]> = const { Cell::new([std::ptr::null_mut(); 2]) };
        }
        let mut current = CURRENT.get();
        if current[device as usize] == self.0.ctx {
            return Ok(());
        }
        // SAFETY: the stream is live.
        check(unsafe { sys::mlx_set_default_stream(self.0) })?;
        current[device as usize] = self.0.ctx;
        CURRENT.set(current);
        Ok(())
    }

    /// Waits until everything submitted to a CPU stream is computed. MLX keeps the first failure of a CPU stream until
    /// somebody asks; this asks. Not for GPU streams, whose encoder another thread may be using.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is live.
        check(unsafe { sys::mlx_synchronize(self.0) })
    }
}

// ---- evaluation ----

static GRAPH: Mutex<()> = Mutex::new(());
static DROPPED: Mutex<Vec<Dropped>> = Mutex::new(Vec::new());
/// Whether `DROPPED` may hold anything, so that mostly nobody has to look.
static IS_PENDING: AtomicBool = AtomicBool::new(false);

struct Dropped(#[allow(dead_code)] Array);

/// Held while a graph is walked, submitted or taken apart. MLX marks nodes as it submits them and unlinks
/// siblings as it destroys them, on whichever thread that happens, without locks of its own.
pub struct GraphLock(#[allow(dead_code)] MutexGuard<'static, ()>);

pub fn graph_lock() -> GraphLock {
    GraphLock(GRAPH.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Drop for GraphLock {
    fn drop(&mut self) {
        // Handles given up meanwhile, while this thread still owns the graph.
        release_dropped();
    }
}

fn dropped() -> MutexGuard<'static, Vec<Dropped>> {
    DROPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn release_dropped() {
    while IS_PENDING.swap(false, Ordering::AcqRel) {
        let batch = std::mem::take(&mut *dropped());
        drop(batch);
    }
}

/// The lock if nobody holds it: schedulers must not wait for one another.
pub fn try_graph_lock() -> Option<GraphLock> {
    match GRAPH.try_lock() {
        Ok(guard) => Some(GraphLock(guard)),
        Err(TryLockError::Poisoned(poisoned)) => Some(GraphLock(poisoned.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
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

/// A list of arrays as MLX takes it.
pub struct Vector(sys::mlx_vector_array);

impl Vector {
    pub fn new<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Vector {
        let handles: Vec<sys::mlx_array> = arrays.into_iter().map(Array::as_ptr).collect();
        // SAFETY: mlx-c copies the handles' arrays.
        Vector(unsafe { sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len()) })
    }

    fn arrays(&self) -> Result<Vec<Array>> {
        // SAFETY: the vector is live until drop.
        let size = unsafe { sys::mlx_vector_array_size(self.0) };
        (0..size)
            .map(|i| one(|res| unsafe { sys::mlx_vector_array_get(res, self.0, i) }))
            .collect()
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::mlx_vector_array_free(self.0) };
    }
}

/// Runs a call that fills in a list of arrays.
fn many(call: impl FnOnce(*mut sys::mlx_vector_array) -> c_int) -> Result<Vec<Array>> {
    // SAFETY: no preconditions.
    let mut vector = Vector(unsafe { sys::mlx_vector_array_new() });
    check(call(&mut vector.0))?;
    vector.arrays()
}

/// Submits the graphs of these arrays. Returns when they are submitted, not when they are computed.
pub fn async_eval(arrays: &[&Array], _lock: &GraphLock) -> Result<()> {
    let vector = Vector::new(arrays.iter().copied());
    // SAFETY: the vector is live; the lock is held.
    check(unsafe { sys::mlx_async_eval(vector.0) })
}

/// What is done on a CPU stream's thread; it is told of the stream's failure where that is asked for.
pub type Task = Box<dyn FnOnce(Result<()>) + Send>;

/// Whether tasks of ours can be put on the CPU's streams. Not beside CUDA, whose events the CPU's streams call too.
pub fn has_tasks() -> bool {
    cfg!(emlx_kernels) && !Device::Gpu.is_available()
}

/// The core that the calling thread is on; 0 where the system does not tell.
pub fn core() -> usize {
    #[cfg(target_os = "linux")]
    // SAFETY: no preconditions.
    return usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0);
    #[cfg(not(target_os = "linux"))]
    0
}

/// Has a CPU stream's thread do `task` after all that was submitted to it before. With `ask` it asks for the first failure since
/// somebody asked last, as [`Stream::synchronize`] does. The thread must not wait there for the graph's lock: who has that may wait for it.
pub fn then(stream: &Stream, ask: bool, task: Task) {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_stream_task(
                stream: sys::mlx_stream,
                ask: bool,
                run: unsafe extern "C" fn(*mut c_void, *const c_char),
                payload: *mut c_void,
            ) -> c_int;
        }

        unsafe extern "C" fn run(payload: *mut c_void, failure: *const c_char) {
            // SAFETY: the box of below, once; the text lives through the call.
            let (task, result) = unsafe {
                let result = match failure.is_null() {
                    true => Ok(()),
                    false => {
                        let text = CStr::from_ptr(failure).to_string_lossy().into_owned();
                        Err(Reason::of_mlx(text, memory_figures).into())
                    }
                };
                (*Box::from_raw(payload.cast::<Task>()), result)
            };
            // A panic is nobody's here, and must not go on through C++.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(result)));
        }

        let payload = Box::into_raw(Box::new(task));
        // SAFETY: the stream is live; the box is freed by whoever calls the task, which is one of the two.
        let status = unsafe { emlx_stream_task(stream.0, ask, run, payload.cast()) };
        if let Err(error) = check(status) {
            let task = unsafe { Box::from_raw(payload) };
            task(Err(error));
        }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = ask;
        task(stream.synchronize());
    }
}

/// Whether a small graph of this many bytes can be submitted without MLX having the caller wait for other work.
pub fn takes_more(bytes: usize) -> bool {
    let room = || {
        let used = active_memory()?.saturating_add(bytes);
        Ok::<bool, Error>(used < memory_limit()?)
    };
    active_tasks() <= MAX_ACTIVE_TASKS / 3 && room().unwrap_or(false)
}

/// Groups of tasks that are under way on all streams. Whoever submits more than [`MAX_ACTIVE_TASKS`] waits in MLX.
pub fn active_tasks() -> usize {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_active_tasks() -> c_int;
        }
        // SAFETY: no preconditions.
        unsafe { emlx_active_tasks() }.max(0) as usize
    }
    #[cfg(not(emlx_kernels))]
    0
}

/// MLX's constant of that name.
pub const MAX_ACTIVE_TASKS: usize = 10;

/// Whether computing these arrays takes at most `most` nodes of together at most `bytes`, all of them on one stream.
pub fn is_small(
    arrays: &[&Array],
    stream: &Stream,
    most: usize,
    bytes: usize,
    _lock: &GraphLock,
) -> bool {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_is_small(
                arrays: *const sys::mlx_array,
                count: usize,
                stream: sys::mlx_stream,
                most: usize,
                bytes: usize,
            ) -> bool;
        }
        let handles: SmallVec<[sys::mlx_array; 4]> =
            arrays.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: the handles are live, and nobody changes the graph meanwhile.
        unsafe { emlx_is_small(handles.as_ptr(), handles.len(), stream.0, most, bytes) }
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (arrays, stream, most, bytes);
        false
    }
}

/// Waits for one array. Only for an array that no other thread has a handle of.
pub fn wait(array: &Array) -> Result<()> {
    // SAFETY: the array is live and, by the caller's word, not shared.
    check(unsafe { sys::_mlx_array_wait(array.as_ptr()) })
}

/// Whether the array's values can be read without waiting. Asking may update the array's state, hence the lock.
pub fn is_available(array: &Array, _lock: &GraphLock) -> bool {
    let mut available = false;
    // SAFETY: the array is live; the lock is held.
    let status = unsafe { sys::_mlx_array_is_available(&mut available, array.as_ptr()) };
    status == 0 && available
}

/// Whether the elements of an array that has been submitted lie in row-major order without gaps.
pub fn is_in_rows(array: &Array) -> bool {
    let mut in_rows = false;
    // SAFETY: the array is live.
    unsafe { sys::_mlx_array_is_row_contiguous(&mut in_rows, array.as_ptr()) == 0 && in_rows }
}

/// The array's bytes in row-major order, or None where they are laid out otherwise.
///
/// # Safety
/// The array has been computed, and the slice is not used after the array is gone.
pub unsafe fn bytes<'a>(array: &Array) -> Option<&'a [u8]> {
    let size = array.nbytes();
    if size == 0 {
        return Some(&[]);
    }
    if !is_in_rows(array) {
        return None;
    }
    let data = sys::mlx_array_data_uint8(array.as_ptr());
    if data.is_null() {
        return None;
    }
    Some(std::slice::from_raw_parts(data, size))
}

/// The same values in row-major order and in a buffer of their own. On CUDA, what the CPU is to read is moved to other memory,
/// whoever else computes from it: so it reads this.
pub fn copy_apart(array: &Array, s: &Stream) -> Result<Array> {
    let given = dtype(array);
    let bits = match given.size() {
        1 => Dtype::U8,
        2 => Dtype::U16,
        4 => Dtype::U32,
        _ => Dtype::U64,
    };
    let rows = contiguous(array, false, s)?;
    if array.size() == 0 {
        return Ok(rows);
    }
    // An operation that changes no bit: MLX's own copy and contiguous share the buffer.
    let zero = from_bytes(&[0; 8][..bits.size()], &[], bits)?;
    let apart = bitwise_or(&view(&rows, bits, s)?, &zero, s)?;
    view(&apart, given, s)
}

/// Another handle of the same array.
pub fn share(array: &Array) -> Result<Array> {
    one(|res| unsafe { sys::mlx_array_set(res, array.as_ptr()) })
}

/// Copies a buffer in. The caller has checked that `data` holds what `shape` and `dtype` say.
pub fn from_bytes(data: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    assert_eq!(
        data.len() as u128,
        shape.iter().map(|d| *d as u128).product::<u128>() * dtype.size() as u128
    );
    // The element type's alignment: MLX reads `data` through a pointer of that type.
    let aligned;
    let source = if (data.as_ptr() as usize).is_multiple_of(dtype.size()) {
        data.as_ptr()
    } else {
        aligned = align(data);
        aligned.as_ptr().cast()
    };
    // SAFETY: `source` holds the bytes of the shape, suitably aligned, and MLX copies them before the call returns.
    let raw = unsafe {
        sys::mlx_array_new_data(
            source.cast(),
            shape.as_ptr(),
            shape.len() as c_int,
            dtype.to_mlx(),
        )
    };
    if raw.ctx.is_null() {
        return Err(take_error());
    }
    // SAFETY: a fresh handle.
    Ok(unsafe { Array::from_ptr(raw) })
}

fn align(data: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; data.len().div_ceil(8)];
    // SAFETY: the vector has at least as many bytes as `data`.
    unsafe {
        std::ptr::copy_nonoverlapping(data.as_ptr(), words.as_mut_ptr().cast(), data.len());
    }
    words
}

pub fn dtype(array: &Array) -> Dtype {
    // SAFETY: the array is live.
    Dtype::from_mlx(unsafe { sys::mlx_array_dtype(array.as_ptr()) })
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid("text must not contain a NUL byte"))
}

// ---- compilation ----

type Build = dyn Fn(&[Array]) -> Result<Vec<Array>> + Send + Sync;

/// A function of arrays that MLX traces once for each set of shapes, and whose elementwise parts it makes into kernels of their
/// own. Its cache belongs to the thread that made it: it is used there, and may be dropped anywhere.
pub struct Compiled {
    closure: sys::mlx_closure,
    failure: Arc<Mutex<Option<Error>>>,
}

// SAFETY: using it elsewhere is the callers' to avoid, and would trace once more; dropping takes it out of the thread's cache by way
// of a weak pointer and a lock of MLX's.
unsafe impl Send for Compiled {}
unsafe impl Sync for Compiled {}

struct Payload {
    build: Box<Build>,
    /// What the function failed of, since MLX has only a status for it.
    failure: Arc<Mutex<Option<Error>>>,
}

unsafe extern "C" fn call_payload(
    res: *mut sys::mlx_vector_array,
    inputs: sys::mlx_vector_array,
    payload: *mut c_void,
) -> c_int {
    // SAFETY: the payload that `compile` gave, which lives as long as the closure.
    let payload = unsafe { &*payload.cast::<Payload>() };
    let build = || {
        // Not ours to free.
        let inputs = std::mem::ManuallyDrop::new(Vector(inputs)).arrays()?;
        (payload.build)(&inputs)
    };
    let built = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build));
    let failure = match built {
        Ok(Ok(outputs)) => {
            let handles: Vec<sys::mlx_array> = outputs.iter().map(Array::as_ptr).collect();
            // SAFETY: `res` is a live vector of the caller's; the handles' arrays are copied.
            return unsafe { sys::mlx_vector_array_set_data(res, handles.as_ptr(), handles.len()) };
        }
        Ok(Err(error)) => error,
        Err(_) => Reason::Panic("while a function was traced".into()).into(),
    };
    *payload
        .failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some(failure);
    1
}

unsafe extern "C" fn drop_payload(payload: *mut c_void) {
    // SAFETY: made by `compile` from a box, dropped once, by the closure.
    drop(unsafe { Box::from_raw(payload.cast::<Payload>()) });
}

/// Has a function traced and fused when it is first called. To be called on the thread that will call it.
pub fn compile(build: Box<Build>) -> Result<Compiled> {
    let failure = Arc::new(Mutex::new(None));
    let payload = Box::new(Payload {
        build,
        failure: failure.clone(),
    });
    // SAFETY: the payload goes to the closure, which drops it; the plain closure is freed here and lives on in the compiled one.
    unsafe {
        let payload = Box::into_raw(payload).cast();
        let plain =
            sys::mlx_closure_new_func_payload(Some(call_payload), payload, Some(drop_payload));
        let mut closure = sys::mlx_closure_new();
        let status = sys::mlx_compile(&mut closure, plain, false);
        sys::mlx_closure_free(plain);
        let compiled = Compiled { closure, failure };
        check(status).map(|()| compiled)
    }
}

impl Compiled {
    pub fn call(&self, inputs: &[&Array]) -> Result<Vec<Array>> {
        let inputs = Vector::new(inputs.iter().copied());
        // SAFETY: both are live for the call.
        let outputs = many(|res| unsafe { sys::mlx_closure_apply(res, self.closure, inputs.0) });
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match failure.take() {
            Some(error) => Err(error),
            None => outputs,
        }
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::mlx_closure_free(self.closure) };
    }
}

// ---- memory ----

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

pub fn clear_cache() -> Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { sys::mlx_clear_cache() })
}

pub fn reset_peak_memory() -> Result<()> {
    // SAFETY: no preconditions.
    check(unsafe { sys::mlx_reset_peak_memory() })
}

// ---- operations ----

/// How each kind of argument looks in Rust.
macro_rules! rust_type {
    (array) => { &Array };
    (maybe) => { Option<&Array> };
    (arrays) => { &Vector };
    (ints) => { &[i32] };
    (longs) => { &[i64] };
    (int) => { i32 };
    (size) => { usize };
    (seed) => { u64 };
    (float) => { f32 };
    (double) => { f64 };
    (flag) => { bool };
    (text) => { &str };
    (dtype) => { Dtype };
    (maybe_int) => { Option<i32> };
    (maybe_float) => { Option<f32> };
    (maybe_dtype) => { Option<Dtype> };
    (norm) => { FftNorm };
}

/// Flattens the arguments into C's: a slice is a pointer and a length, an absent array an empty handle.
macro_rules! c_call {
    ($run:ident $c:ident [$($done:tt)*] $s:ident;) => {
        // SAFETY: every pointer comes from a live reference and every length from its slice; MLX's exceptions are
        // caught by mlx-c and come back as a status.
        $run(|res| unsafe { sys::$c(res, $($done)* $s.0) })
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : array, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.as_ptr(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe, $($rest:tt)*) => {
        c_call!($run $c [$($done)* raw_or_null($a),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : arrays, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.0,] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : ints, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.as_ptr(), $a.len(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : longs, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.as_ptr(), $a.len(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : text, $($rest:tt)*) => {{
        let $a = text($a)?;
        c_call!($run $c [$($done)* $a.as_ptr(),] $s; $($rest)*)
    }};
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : dtype, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a.to_mlx(),] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe_int, $($rest:tt)*) => {
        c_call!($run $c [$($done)* sys::mlx_optional_int { value: $a.unwrap_or(0), has_value: $a.is_some() },] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe_float, $($rest:tt)*) => {
        c_call!($run $c [$($done)* sys::mlx_optional_float { value: $a.unwrap_or(0.0), has_value: $a.is_some() },] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : maybe_dtype, $($rest:tt)*) => {
        c_call!($run $c [$($done)* sys::mlx_optional_dtype { value: $a.unwrap_or(Dtype::Bool).to_mlx(), has_value: $a.is_some() },] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : norm, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a as sys::mlx_fft_norm,] $s; $($rest)*)
    };
    ($run:ident $c:ident [$($done:tt)*] $s:ident; $a:ident : $plain:ident, $($rest:tt)*) => {
        c_call!($run $c [$($done)* $a,] $s; $($rest)*)
    };
}

macro_rules! wrap {
    ($run:ident -> $out:ty; $($name:ident = $c:ident($($a:ident: $kind:ident),*);)*) => {$(
        #[allow(clippy::too_many_arguments)]
        pub fn $name($($a: rust_type!($kind),)* s: &Stream) -> Result<$out> {
            c_call!($run $c [] s; $($a: $kind,)*)
        }
    )*};
}

#[derive(Clone, Copy, Debug, PartialEq, rustler::NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FftNorm {
    Backward = sys::mlx_fft_norm__MLX_FFT_NORM_BACKWARD as isize,
    Ortho = sys::mlx_fft_norm__MLX_FFT_NORM_ORTHO as isize,
    Forward = sys::mlx_fft_norm__MLX_FFT_NORM_FORWARD as isize,
}

wrap! { one -> Array;
    // Elementwise, one array.
    abs = mlx_abs(a: array);
    negative = mlx_negative(a: array);
    sign = mlx_sign(a: array);
    ceil = mlx_ceil(a: array);
    floor = mlx_floor(a: array);
    trunc = mlx_trunc(a: array);
    round = mlx_round(a: array, decimals: int);
    exp = mlx_exp(a: array);
    expm1 = mlx_expm1(a: array);
    log = mlx_log(a: array);
    log1p = mlx_log1p(a: array);
    log2 = mlx_log2(a: array);
    log10 = mlx_log10(a: array);
    sin = mlx_sin(a: array);
    cos = mlx_cos(a: array);
    tan = mlx_tan(a: array);
    arcsin = mlx_arcsin(a: array);
    arccos = mlx_arccos(a: array);
    arctan = mlx_arctan(a: array);
    sinh = mlx_sinh(a: array);
    cosh = mlx_cosh(a: array);
    tanh = mlx_tanh(a: array);
    arcsinh = mlx_arcsinh(a: array);
    arccosh = mlx_arccosh(a: array);
    arctanh = mlx_arctanh(a: array);
    erf = mlx_erf(a: array);
    erfinv = mlx_erfinv(a: array);
    sqrt = mlx_sqrt(a: array);
    rsqrt = mlx_rsqrt(a: array);
    square = mlx_square(a: array);
    reciprocal = mlx_reciprocal(a: array);
    sigmoid = mlx_sigmoid(a: array);
    degrees = mlx_degrees(a: array);
    radians = mlx_radians(a: array);
    logical_not = mlx_logical_not(a: array);
    bitwise_invert = mlx_bitwise_invert(a: array);
    isnan = mlx_isnan(a: array);
    isinf = mlx_isinf(a: array);
    isposinf = mlx_isposinf(a: array);
    isneginf = mlx_isneginf(a: array);
    isfinite = mlx_isfinite(a: array);
    real = mlx_real(a: array);
    imag = mlx_imag(a: array);
    conjugate = mlx_conjugate(a: array);
    copy = mlx_copy(a: array);
    nan_to_num = mlx_nan_to_num(a: array, nan: float, posinf: maybe_float, neginf: maybe_float);
    hadamard_transform = mlx_hadamard_transform(a: array, scale: maybe_float);

    // Elementwise, two arrays.
    add = mlx_add(a: array, b: array);
    subtract = mlx_subtract(a: array, b: array);
    multiply = mlx_multiply(a: array, b: array);
    divide = mlx_divide(a: array, b: array);
    floor_divide = mlx_floor_divide(a: array, b: array);
    remainder = mlx_remainder(a: array, b: array);
    power = mlx_power(a: array, b: array);
    maximum = mlx_maximum(a: array, b: array);
    minimum = mlx_minimum(a: array, b: array);
    arctan2 = mlx_arctan2(a: array, b: array);
    logaddexp = mlx_logaddexp(a: array, b: array);
    equal = mlx_equal(a: array, b: array);
    not_equal = mlx_not_equal(a: array, b: array);
    less = mlx_less(a: array, b: array);
    less_equal = mlx_less_equal(a: array, b: array);
    greater = mlx_greater(a: array, b: array);
    greater_equal = mlx_greater_equal(a: array, b: array);
    logical_and = mlx_logical_and(a: array, b: array);
    logical_or = mlx_logical_or(a: array, b: array);
    bitwise_and = mlx_bitwise_and(a: array, b: array);
    bitwise_or = mlx_bitwise_or(a: array, b: array);
    bitwise_xor = mlx_bitwise_xor(a: array, b: array);
    left_shift = mlx_left_shift(a: array, b: array);
    right_shift = mlx_right_shift(a: array, b: array);
    isclose = mlx_isclose(a: array, b: array, rtol: double, atol: double, equal_nan: flag);
    allclose = mlx_allclose(a: array, b: array, rtol: double, atol: double, equal_nan: flag);
    array_equal = mlx_array_equal(a: array, b: array, equal_nan: flag);

    // Types.
    astype = mlx_astype(a: array, dtype: dtype);
    view = mlx_view(a: array, dtype: dtype);
    to_fp8 = mlx_to_fp8(a: array);
    from_fp8 = mlx_from_fp8(a: array, dtype: dtype);

    // Reductions.
    sum = mlx_sum_axes(a: array, axes: ints, keepdims: flag);
    prod = mlx_prod_axes(a: array, axes: ints, keepdims: flag);
    max = mlx_max_axes(a: array, axes: ints, keepdims: flag);
    min = mlx_min_axes(a: array, axes: ints, keepdims: flag);
    all = mlx_all_axes(a: array, axes: ints, keepdims: flag);
    any = mlx_any_axes(a: array, axes: ints, keepdims: flag);
    mean = mlx_mean_axes(a: array, axes: ints, keepdims: flag);
    median = mlx_median_axes(a: array, axes: ints, keepdims: flag);
    var = mlx_var_axes(a: array, axes: ints, keepdims: flag, ddof: int);
    std = mlx_std_axes(a: array, axes: ints, keepdims: flag, ddof: int);
    logsumexp = mlx_logsumexp_axes(a: array, axes: ints, keepdims: flag);
    softmax = mlx_softmax_axes(a: array, axes: ints, precise: flag);
    argmax = mlx_argmax_axis(a: array, axis: int, keepdims: flag);
    argmin = mlx_argmin_axis(a: array, axis: int, keepdims: flag);
    cumsum = mlx_cumsum_axis(a: array, axis: int, reverse: flag, inclusive: flag, dtype: maybe_dtype);
    cumprod = mlx_cumprod_axis(a: array, axis: int, reverse: flag, inclusive: flag, dtype: maybe_dtype);
    cummax = mlx_cummax_axis(a: array, axis: int, reverse: flag, inclusive: flag);
    cummin = mlx_cummin_axis(a: array, axis: int, reverse: flag, inclusive: flag);
    logcumsumexp = mlx_logcumsumexp_axis(a: array, axis: int, reverse: flag, inclusive: flag);

    // Order.
    sort = mlx_sort_axis(a: array, axis: int);
    argsort = mlx_argsort_axis(a: array, axis: int);
    partition = mlx_partition_axis(a: array, kth: int, axis: int);
    argpartition = mlx_argpartition_axis(a: array, kth: int, axis: int);
    topk = mlx_topk_axis(a: array, k: int, axis: int);
    searchsorted = mlx_searchsorted(sorted: array, values: array, side: text);

    // Shapes.
    reshape = mlx_reshape(a: array, shape: ints);
    flatten = mlx_flatten(a: array, start_axis: int, end_axis: int);
    unflatten = mlx_unflatten(a: array, axis: int, shape: ints);
    squeeze = mlx_squeeze_axes(a: array, axes: ints);
    expand_dims = mlx_expand_dims_axes(a: array, axes: ints);
    transpose = mlx_transpose_axes(a: array, axes: ints);
    swapaxes = mlx_swapaxes(a: array, axis1: int, axis2: int);
    moveaxis = mlx_moveaxis(a: array, source: int, destination: int);
    broadcast_to = mlx_broadcast_to(a: array, shape: ints);
    concatenate = mlx_concatenate_axis(arrays: arrays, axis: int);
    stack = mlx_stack_axis(arrays: arrays, axis: int);
    repeat = mlx_repeat_axis(a: array, repeats: int, axis: int);
    tile = mlx_tile(a: array, repetitions: ints);
    flip = mlx_flip_axes(a: array, axes: ints);
    roll = mlx_roll_axes(a: array, shift: ints, axes: ints);
    pad = mlx_pad(a: array, axes: ints, low: ints, high: ints, value: array, mode: text);
    as_strided = mlx_as_strided(a: array, shape: ints, strides: longs, offset: size);
    contiguous = mlx_contiguous(a: array, allow_col_major: flag);
    diag = mlx_diag(a: array, k: int);
    diagonal = mlx_diagonal(a: array, offset: int, axis1: int, axis2: int);
    tril = mlx_tril(a: array, k: int);
    triu = mlx_triu(a: array, k: int);

    // Parts.
    slice = mlx_slice(a: array, start: ints, stop: ints, strides: ints);
    slice_update = mlx_slice_update(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_add = mlx_slice_update_add(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_max = mlx_slice_update_max(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_min = mlx_slice_update_min(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_update_prod = mlx_slice_update_prod(a: array, update: array, start: ints, stop: ints, strides: ints);
    slice_dynamic = mlx_slice_dynamic(a: array, start: array, axes: ints, sizes: ints);
    slice_update_dynamic = mlx_slice_update_dynamic(a: array, update: array, start: array, axes: ints);
    take = mlx_take_axis(a: array, indices: array, axis: int);
    take_along_axis = mlx_take_along_axis(a: array, indices: array, axis: int);
    put_along_axis = mlx_put_along_axis(a: array, indices: array, values: array, axis: int);
    scatter_add_axis = mlx_scatter_add_axis(a: array, indices: array, values: array, axis: int);
    gather = mlx_gather(a: array, indices: arrays, axes: ints, slice_sizes: ints);
    scatter = mlx_scatter(a: array, indices: arrays, updates: array, axes: ints);
    scatter_add = mlx_scatter_add(a: array, indices: arrays, updates: array, axes: ints);
    scatter_max = mlx_scatter_max(a: array, indices: arrays, updates: array, axes: ints);
    scatter_min = mlx_scatter_min(a: array, indices: arrays, updates: array, axes: ints);
    scatter_prod = mlx_scatter_prod(a: array, indices: arrays, updates: array, axes: ints);
    where_ = mlx_where(condition: array, a: array, b: array);
    clip = mlx_clip(a: array, low: maybe, high: maybe);

    // Products.
    matmul = mlx_matmul(a: array, b: array);
    addmm = mlx_addmm(c: array, a: array, b: array, alpha: float, beta: float);
    tensordot = mlx_tensordot(a: array, b: array, axes_a: ints, axes_b: ints);
    einsum = mlx_einsum(subscripts: text, operands: arrays);
    inner = mlx_inner(a: array, b: array);
    outer = mlx_outer(a: array, b: array);
    kron = mlx_kron(a: array, b: array);
    vecdot = mlx_vecdot(a: array, b: array, axis: int);
    gather_mm = mlx_gather_mm(a: array, b: array, lhs_indices: maybe, rhs_indices: maybe, sorted: flag);
    conv_general = mlx_conv_general(a: array, weight: array, stride: ints, padding_low: ints, padding_high: ints, kernel_dilation: ints, input_dilation: ints, groups: int, flip: flag);

    // Spectra.
    fft = mlx_fft_fftn(a: array, sizes: ints, axes: ints, norm: norm);
    ifft = mlx_fft_ifftn(a: array, sizes: ints, axes: ints, norm: norm);
    rfft = mlx_fft_rfftn(a: array, sizes: ints, axes: ints, norm: norm);
    irfft = mlx_fft_irfftn(a: array, sizes: ints, axes: ints, norm: norm);
    fftshift = mlx_fft_fftshift(a: array, axes: ints);
    ifftshift = mlx_fft_ifftshift(a: array, axes: ints);

    // Linear algebra.
    cholesky = mlx_linalg_cholesky(a: array, upper: flag);
    cholesky_inv = mlx_linalg_cholesky_inv(a: array, upper: flag);
    inv = mlx_linalg_inv(a: array);
    tri_inv = mlx_linalg_tri_inv(a: array, upper: flag);
    pinv = mlx_linalg_pinv(a: array);
    det = mlx_linalg_det(a: array);
    solve = mlx_linalg_solve(a: array, b: array);
    solve_triangular = mlx_linalg_solve_triangular(a: array, b: array, upper: flag);
    eigvalsh = mlx_linalg_eigvalsh(a: array, uplo: text);
    eigvals = mlx_linalg_eigvals(a: array);
    cross = mlx_linalg_cross(a: array, b: array, axis: int);

    // Random numbers. The key is always given, so that no hidden state is shared between processes.
    random_bits = mlx_random_bits(shape: ints, width: int, key: maybe);
    random_uniform = mlx_random_uniform(low: array, high: array, shape: ints, dtype: dtype, key: maybe);
    random_normal = mlx_random_normal(shape: ints, dtype: dtype, loc: float, scale: float, key: maybe);
    random_randint = mlx_random_randint(low: array, high: array, shape: ints, dtype: dtype, key: maybe);
    random_bernoulli = mlx_random_bernoulli(p: array, shape: ints, key: maybe);
    random_truncated_normal = mlx_random_truncated_normal(low: array, high: array, shape: ints, dtype: dtype, key: maybe);
    random_gumbel = mlx_random_gumbel(shape: ints, dtype: dtype, key: maybe);
    random_laplace = mlx_random_laplace(shape: ints, dtype: dtype, loc: float, scale: float, key: maybe);
    random_categorical = mlx_random_categorical_shape(logits: array, axis: int, shape: ints, key: maybe);
    random_permutation = mlx_random_permutation(a: array, axis: int, key: maybe);
    random_split = mlx_random_split_num(key: array, num: int);

    // Creation.
    full = mlx_full(shape: ints, value: array, dtype: dtype);
    zeros = mlx_zeros(shape: ints, dtype: dtype);
    ones = mlx_ones(shape: ints, dtype: dtype);
    arange = mlx_arange(start: double, stop: double, step: double, dtype: dtype);
    linspace = mlx_linspace(start: double, stop: double, num: int, dtype: dtype);
    eye = mlx_eye(n: int, m: int, k: int, dtype: dtype);
    tri = mlx_tri(n: int, m: int, k: int, dtype: dtype);

    // Fused.
    rms_norm = mlx_fast_rms_norm(x: array, weight: maybe, eps: float);
    layer_norm = mlx_fast_layer_norm(x: array, weight: maybe, bias: maybe, eps: float);
    rope = mlx_fast_rope_dynamic(x: array, dims: int, traditional: flag, base: maybe_float, scale: float, offset: array, freqs: maybe);
    scaled_dot_product_attention = mlx_fast_scaled_dot_product_attention(q: array, k: array, v: array, scale: float, mask_mode: text, mask: maybe, sinks: maybe, force_fused: flag);
    cross_entropy = mlx_fast_cross_entropy(logits: array, targets: array);

    // Quantized.
    dequantize = mlx_dequantize(w: array, scales: array, biases: maybe, group_size: maybe_int, bits: maybe_int, mode: text, global_scale: maybe, dtype: maybe_dtype);
    quantized_matmul = mlx_quantized_matmul(x: array, w: array, scales: array, biases: maybe, transpose: flag, group_size: maybe_int, bits: maybe_int, mode: text);
    qqmm = mlx_qqmm(x: array, w: array, scales: maybe, group_size: maybe_int, bits: maybe_int, mode: text, global_scale_x: maybe, global_scale_w: maybe);
    gather_qmm = mlx_gather_qmm(x: array, w: array, scales: array, biases: maybe, lhs_indices: maybe, rhs_indices: maybe, transpose: flag, group_size: maybe_int, bits: maybe_int, mode: text, sorted: flag);
}

wrap! { many -> Vec<Array>;
    lu = mlx_linalg_lu(a: array);
    svd = mlx_linalg_svd(a: array, compute_uv: flag);
    quantize = mlx_quantize(w: array, group_size: maybe_int, bits: maybe_int, mode: text, global_scale: maybe);
}

macro_rules! pairs {
    ($($name:ident = $c:ident($($a:ident: $kind:ident),*);)*) => {$(
        pub fn $name($($a: rust_type!($kind),)* s: &Stream) -> Result<Vec<Array>> {
            let mut second = sys::mlx_array { ctx: std::ptr::null_mut() };
            let second_ptr: *mut sys::mlx_array = &mut second;
            let pair = |call: &mut dyn FnMut(*mut sys::mlx_array) -> c_int| one(call);
            let first = pair_call!(pair second_ptr $c s; $($a: $kind),*);
            // SAFETY: ours alone, empty if the call failed.
            let second = unsafe { Array::from_ptr(second) };
            Ok(vec![first?, second])
        }
    )*};
}

macro_rules! pair_call {
    ($pair:ident $second:ident $c:ident $s:ident; $a:ident: array) => {
        // SAFETY: as for `c_call!`; the second output is a local that outlives the call.
        $pair(&mut |res| unsafe { sys::$c(res, $second, $a.as_ptr(), $s.0) })
    };
    ($pair:ident $second:ident $c:ident $s:ident; $a:ident: array, $t:ident: text) => {{
        let $t = text($t)?;
        $pair(&mut |res| unsafe { sys::$c(res, $second, $a.as_ptr(), $t.as_ptr(), $s.0) })
    }};
}

pairs! {
    qr = mlx_linalg_qr(a: array);
    eigh = mlx_linalg_eigh(a: array, uplo: text);
    eig = mlx_linalg_eig(a: array);
    lu_factor = mlx_linalg_lu_factor(a: array);
    slogdet = mlx_linalg_slogdet(a: array);
}

/// A kernel in CUDA's C++, as `mx.fast.cuda_kernel` takes it: the body of a function in which its inputs, its outputs, integer constants
/// and the first input's type `T` have names. MLX compiles it when it first runs, once for each set of types and constants.
pub struct CudaKernel {
    pub name: &'static CStr,
    pub inputs: &'static [&'static CStr],
    pub outputs: &'static [&'static CStr],
    pub source: &'static CStr,
    /// Whether inputs are copied into rows first; otherwise the source reads `<input>_strides`.
    pub in_rows: bool,
}

/// How a kernel is launched: `blocks` groups of `threads` threads.
pub struct Launch {
    pub blocks: i32,
    pub threads: i32,
}

impl CudaKernel {
    /// Outputs of these shapes, each of the type of the input with that number.
    pub fn call(
        &self,
        inputs: &[&Array],
        constants: &[(&CStr, i32)],
        outputs: &[(&[i32], usize)],
        launch: Launch,
        s: &Stream,
    ) -> Result<SmallVec<[Array; 2]>> {
        #[cfg(emlx_kernels)]
        {
            cuda::call(self, inputs, constants, outputs, launch, s)
        }
        #[cfg(not(emlx_kernels))]
        {
            let _ = (inputs, constants, outputs, launch.blocks, launch.threads, s);
            Err(Error::invalid("kernels of our own are not built here"))
        }
    }
}

/// Where an array lies on the GPU: None where there is no CUDA.
///
/// # Safety
/// The array is on the GPU and has been submitted.
#[cfg(emlx_kernels)]
pub unsafe fn device_address(array: &Array) -> Option<u64> {
    extern "C" {
        fn emlx_device_address(array: sys::mlx_array) -> u64;
    }
    let mut is_cuda = false;
    let there = sys::mlx_cuda_is_available(&mut is_cuda) == 0 && is_cuda;
    let address = if there {
        emlx_device_address(array.as_ptr())
    } else {
        0
    };
    (address != 0).then_some(address)
}

/// The strides of an array, in elements.
///
/// # Safety
/// The array has been submitted.
#[cfg(emlx_kernels)]
pub unsafe fn strides(array: &Array) -> Vec<i64> {
    let strides = sys::mlx_array_strides(array.as_ptr());
    if strides.is_null() {
        return Vec::new();
    }
    let strides = std::slice::from_raw_parts(strides, array.ndim());
    strides.iter().map(|stride| *stride as i64).collect()
}

#[cfg(emlx_kernels)]
mod cuda {
    use super::*;

    /// As in cpp/kernel.cpp.
    #[repr(C)]
    struct Kernel {
        name: *const c_char,
        source: *const c_char,
        inputs: *const *const c_char,
        input_count: usize,
        outputs: *const *const c_char,
        output_count: usize,
        constants: *const *const c_char,
        values: *const c_int,
        constant_count: usize,
        in_rows: bool,
        blocks: c_int,
        threads: c_int,
    }

    /// As in cpp/kernel.cpp.
    #[repr(C)]
    struct Output {
        shape: *const c_int,
        rank: usize,
        like: usize,
    }

    extern "C" {
        fn emlx_cuda_node(
            res: *mut sys::mlx_array,
            kernel: *const Kernel,
            inputs: *const sys::mlx_array,
            outputs: *const Output,
            stream: sys::mlx_stream,
        ) -> c_int;
    }

    fn pointers<'a>(names: impl Iterator<Item = &'a CStr>) -> SmallVec<[*const c_char; 16]> {
        names.map(CStr::as_ptr).collect()
    }

    pub fn call(
        kernel: &CudaKernel,
        inputs: &[&Array],
        constants: &[(&CStr, i32)],
        outputs: &[(&[i32], usize)],
        launch: Launch,
        s: &Stream,
    ) -> Result<SmallVec<[Array; 2]>> {
        let fits = inputs.len() == kernel.inputs.len() && outputs.len() == kernel.outputs.len();
        if !fits || outputs.iter().any(|(_, like)| *like >= inputs.len()) {
            return Err(Error::invalid(
                "the kernel takes or gives another number of arrays",
            ));
        }
        let input_names = pointers(kernel.inputs.iter().copied());
        let output_names = pointers(kernel.outputs.iter().copied());
        let constant_names = pointers(constants.iter().map(|(name, _)| *name));
        let values: SmallVec<[c_int; 16]> = constants.iter().map(|(_, value)| *value).collect();
        let handles: SmallVec<[sys::mlx_array; 8]> =
            inputs.iter().map(|array| array.as_ptr()).collect();
        let shapes: SmallVec<[Output; 3]> = outputs
            .iter()
            .map(|(shape, like)| Output {
                shape: shape.as_ptr(),
                rank: shape.len(),
                like: *like,
            })
            .collect();
        let spec = Kernel {
            name: kernel.name.as_ptr(),
            source: kernel.source.as_ptr(),
            inputs: input_names.as_ptr(),
            input_count: input_names.len(),
            outputs: output_names.as_ptr(),
            output_count: output_names.len(),
            constants: constant_names.as_ptr(),
            values: values.as_ptr(),
            constant_count: values.len(),
            in_rows: kernel.in_rows,
            blocks: launch.blocks,
            threads: launch.threads,
        };
        // SAFETY: every pointer comes from something that lives through the call, every length is that of its list, there is room for
        // as many handles as there are outputs, and exceptions are caught there. Handles that were given are owned from here on.
        unsafe {
            let mut made: SmallVec<[sys::mlx_array; 3]> = (0..outputs.len())
                .map(|_| sys::mlx_array {
                    ctx: std::ptr::null_mut(),
                })
                .collect();
            let status = emlx_cuda_node(
                made.as_mut_ptr(),
                &spec,
                handles.as_ptr(),
                shapes.as_ptr(),
                s.0,
            );
            if status != 0 {
                return Err(take_error());
            }
            Ok(made
                .into_iter()
                .map(|handle| Array::from_ptr(handle))
                .collect())
        }
    }
}

/// Operations that CUDA is to launch as one graph; cpp/captured.cpp says how.
#[cfg(emlx_kernels)]
pub mod captured {
    use super::*;
    use crate::error::Signature;

    /// Bytes to be copied on the GPU, as in cpp/captured.cpp.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub struct Copy {
        pub from: u64,
        pub to: u64,
        pub bytes: u64,
    }

    /// What is done of it here. Handles are CUDA's.
    pub trait Capturing: Send + Sync {
        /// Nodes on top of the inputs. The graph's lock is held.
        fn build(&self, inputs: &[Array]) -> Result<Vec<Array>>;
        /// Makes a graph ready for launches, after it has been given edges between its nodes.
        ///
        /// # Safety
        /// The graph and the nodes are live.
        unsafe fn instantiate(
            &self,
            graph: *mut c_void,
            from: &[*mut c_void],
            to: &[*mut c_void],
        ) -> Result<*mut c_void>;
        /// Copies, then launches.
        ///
        /// # Safety
        /// The launches and the stream are live, as is the memory.
        unsafe fn launch(
            &self,
            launches: *mut c_void,
            stream: *mut c_void,
            copies: &[Copy],
        ) -> Result<()>;
        /// # Safety
        /// The launches are nobody else's.
        unsafe fn destroy(&self, launches: *mut c_void);
    }

    type Payload = Box<dyn Capturing>;

    /// As in cpp/captured.cpp.
    #[repr(C)]
    struct Functions {
        payload: *const c_void,
        build: unsafe extern "C" fn(
            *const c_void,
            *const sys::mlx_array,
            usize,
            *mut sys::mlx_array,
            usize,
            *mut c_char,
            usize,
        ) -> bool,
        instantiate: unsafe extern "C" fn(
            *const c_void,
            *mut c_void,
            *const *mut c_void,
            *const *mut c_void,
            usize,
            *mut *mut c_void,
            *mut c_char,
            usize,
        ) -> bool,
        launch: unsafe extern "C" fn(
            *const c_void,
            *mut c_void,
            *mut c_void,
            *const Copy,
            usize,
            *mut c_char,
            usize,
        ) -> bool,
        destroy: unsafe extern "C" fn(*const c_void, *mut c_void),
        drop: unsafe extern "C" fn(*const c_void),
    }

    extern "C" {
        fn emlx_captured_new(functions: Functions, fixed: *const bool, count: usize)
            -> *mut c_void;
        fn emlx_captured_free(captured: *mut c_void);
        fn emlx_captured_state(captured: *const c_void, bytes: *mut usize) -> c_int;
        fn emlx_captured_nodes(
            res: *mut sys::mlx_array,
            captured: *const c_void,
            inputs: *const sys::mlx_array,
            count: usize,
            shapes: *const *const c_int,
            ranks: *const usize,
            dtypes: *const sys::mlx_dtype,
            output_count: usize,
            stream: sys::mlx_stream,
        ) -> c_int;
    }

    /// # Safety
    /// The pointer is that of a live payload.
    unsafe fn payload<'a>(payload: *const c_void) -> &'a Payload {
        &*payload.cast::<Payload>()
    }

    /// Runs what C++ calls: true, or false with the reason in `message`, whose `size` bytes are writable.
    unsafe fn guarded(
        message: *mut c_char,
        size: usize,
        call: impl FnOnce() -> Result<()>,
    ) -> bool {
        let words = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "panicked".into(),
        };
        let length = words.len().min(size.saturating_sub(1));
        std::ptr::copy_nonoverlapping(words.as_ptr().cast(), message, length);
        message.add(length).write(0);
        false
    }

    unsafe extern "C" fn build(
        own: *const c_void,
        inputs: *const sys::mlx_array,
        count: usize,
        outputs: *mut sys::mlx_array,
        output_count: usize,
        message: *mut c_char,
        size: usize,
    ) -> bool {
        guarded(message, size, || {
            let handles = std::slice::from_raw_parts(inputs, count);
            // Handles of our own, for these are freed there.
            let inputs = handles
                .iter()
                .map(|handle| one(|res| sys::mlx_array_set(res, *handle)))
                .collect::<Result<Vec<_>>>()?;
            let made = payload(own).build(&inputs)?;
            if made.len() != output_count {
                return Err(Error::invalid("the stretch has another number of outputs"));
            }
            for (i, array) in made.into_iter().enumerate() {
                let array = std::mem::ManuallyDrop::new(array);
                outputs.add(i).write(array.as_ptr());
            }
            Ok(())
        })
    }

    unsafe extern "C" fn instantiate(
        own: *const c_void,
        graph: *mut c_void,
        from: *const *mut c_void,
        to: *const *mut c_void,
        count: usize,
        launches: *mut *mut c_void,
        message: *mut c_char,
        size: usize,
    ) -> bool {
        let list = |nodes| match count {
            0 => &[][..],
            _ => std::slice::from_raw_parts(nodes, count),
        };
        guarded(message, size, || {
            launches.write(payload(own).instantiate(graph, list(from), list(to))?);
            Ok(())
        })
    }

    unsafe extern "C" fn launch(
        own: *const c_void,
        launches: *mut c_void,
        stream: *mut c_void,
        copies: *const Copy,
        count: usize,
        message: *mut c_char,
        size: usize,
    ) -> bool {
        let copies = match count {
            0 => &[][..],
            _ => std::slice::from_raw_parts(copies, count),
        };
        guarded(message, size, || {
            payload(own).launch(launches, stream, copies)
        })
    }

    unsafe extern "C" fn destroy(own: *const c_void, launches: *mut c_void) {
        let call = std::panic::AssertUnwindSafe(|| payload(own).destroy(launches));
        let _ = std::panic::catch_unwind(call);
    }

    unsafe extern "C" fn release(own: *const c_void) {
        drop(Box::from_raw(own.cast_mut().cast::<Payload>()));
    }

    /// How far capturing has come.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum State {
        New,
        Ready,
        Refused,
    }

    /// Operations, as far as they are captured, for one stream.
    pub struct Captured(*mut c_void);

    // SAFETY: C++ counts references to it atomically, and uses it under the graph's lock.
    unsafe impl Send for Captured {}
    // SAFETY: as above.
    unsafe impl Sync for Captured {}

    impl std::fmt::Debug for Captured {
        fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            write!(f, "Captured({:?})", self.state())
        }
    }

    impl Captured {
        /// `fixed` says of each input whether it is read where it lies; the others are copied for each run.
        pub fn new(capturing: Box<dyn Capturing>, fixed: &[bool]) -> Captured {
            let functions = Functions {
                payload: Box::into_raw(Box::new(capturing)).cast(),
                build,
                instantiate,
                launch,
                destroy,
                drop: release,
            };
            // SAFETY: the payload goes to C++, which drops it once.
            Captured(unsafe { emlx_captured_new(functions, fixed.as_ptr(), fixed.len()) })
        }

        /// With the bytes that are held for it.
        pub fn state(&self) -> (State, usize) {
            let mut bytes = 0;
            // SAFETY: live until drop.
            let state = match unsafe { emlx_captured_state(self.0, &mut bytes) } {
                0 => State::New,
                1 => State::Ready,
                _ => State::Refused,
            };
            (state, bytes)
        }

        /// The outputs of a run. There are as many inputs as `new` was told of.
        pub fn nodes(
            &self,
            inputs: &[&Array],
            outputs: &[Signature],
            s: &Stream,
        ) -> Result<Vec<Array>> {
            let handles: Vec<sys::mlx_array> = inputs.iter().map(|array| array.as_ptr()).collect();
            let shapes: Vec<*const c_int> =
                outputs.iter().map(|(shape, _)| shape.as_ptr()).collect();
            let ranks: Vec<usize> = outputs.iter().map(|(shape, _)| shape.len()).collect();
            let dtypes: Vec<sys::mlx_dtype> =
                outputs.iter().map(|(_, dtype)| dtype.to_mlx()).collect();
            let mut made = vec![
                sys::mlx_array {
                    ctx: std::ptr::null_mut()
                };
                outputs.len()
            ];
            // SAFETY: every list lives through the call and is as long as is said. Handles that were given are owned from here on.
            unsafe {
                let status = emlx_captured_nodes(
                    made.as_mut_ptr(),
                    self.0,
                    handles.as_ptr(),
                    handles.len(),
                    shapes.as_ptr(),
                    ranks.as_ptr(),
                    dtypes.as_ptr(),
                    made.len(),
                    s.0,
                );
                if status != 0 {
                    return Err(take_error());
                }
                Ok(made.into_iter().map(|h| Array::from_ptr(h)).collect())
            }
        }
    }

    impl Drop for Captured {
        fn drop(&mut self) {
            // SAFETY: freed once.
            unsafe { emlx_captured_free(self.0) };
        }
    }
}

pub fn random_key(seed: u64) -> Result<Array> {
    one(|res| unsafe { sys::mlx_random_key(res, seed) })
}

/// A node that runs a kernel of ours; it owns what `kernel` points to, also where this fails.
pub fn kernel_node(
    kernel: Functions,
    layout: i32,
    inputs: &[&Array],
    shape: &[i32],
    like: &Array,
    s: &Stream,
) -> Result<Array> {
    #[cfg(emlx_kernels)]
    {
        extern "C" {
            fn emlx_kernel_node(
                res: *mut sys::mlx_array,
                kernel: Functions,
                layout: c_int,
                inputs: *const sys::mlx_array,
                count: usize,
                shape: *const c_int,
                rank: usize,
                like: sys::mlx_array,
                stream: sys::mlx_stream,
            ) -> c_int;
        }
        let handles: SmallVec<[sys::mlx_array; 4]> =
            inputs.iter().map(|array| array.as_ptr()).collect();
        // SAFETY: every pointer comes from a live reference and every length from its slice; exceptions are caught there.
        one(|res| unsafe {
            emlx_kernel_node(
                res,
                kernel,
                layout,
                handles.as_ptr(),
                handles.len(),
                shape.as_ptr(),
                shape.len(),
                like.as_ptr(),
                s.0,
            )
        })
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (kernel, layout, inputs, shape, like, s);
        Err(Error::invalid("kernels of our own are not built here"))
    }
}

/// Arrays equal to `inputs` that are computed only after `dependencies`.
pub fn depends(inputs: &[&Array], dependencies: &[&Array]) -> Result<Vec<Array>> {
    let inputs = Vector::new(inputs.iter().copied());
    let dependencies = Vector::new(dependencies.iter().copied());
    many(|res| unsafe { sys::mlx_depends(res, inputs.0, dependencies.0) })
}
