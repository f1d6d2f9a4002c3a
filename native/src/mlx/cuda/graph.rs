//! Operations that CUDA is to launch as one graph; cpp/captured.cpp says how.

use crate::base::{Error, Result, Signature};
use crate::mlx::error::{one, take_error};
use crate::mlx::Stream;
use mlx_rs::Array;
use mlx_sys as sys;
use std::ffi::{c_char, c_int, c_void};

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
    fn emlx_captured_new(functions: Functions, fixed: *const bool, count: usize) -> *mut c_void;
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
pub(super) unsafe fn guarded(
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

/// Handles of our own of arrays that C++ has, which frees its own.
///
/// # Safety
/// There are `count` live handles.
pub(super) unsafe fn taken(handles: *const sys::mlx_array, count: usize) -> Result<Vec<Array>> {
    let handles = match count {
        0 => &[][..],
        _ => std::slice::from_raw_parts(handles, count),
    };
    handles
        .iter()
        .map(|handle| one(|res| sys::mlx_array_set(res, *handle)))
        .collect()
}

/// Gives C++ the handles of arrays, which it owns from here on.
///
/// # Safety
/// There is room for `count` handles.
pub(super) unsafe fn handed_over(
    made: Vec<Array>,
    outputs: *mut sys::mlx_array,
    count: usize,
) -> Result<()> {
    if made.len() != count {
        return Err(Error::invalid("there is another number of outputs"));
    }
    for (i, array) in made.into_iter().enumerate() {
        let array = std::mem::ManuallyDrop::new(array);
        outputs.add(i).write(array.as_ptr());
    }
    Ok(())
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
        let inputs = taken(inputs, count)?;
        handed_over(payload(own).build(&inputs)?, outputs, output_count)
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
        let shapes: Vec<*const c_int> = outputs.iter().map(|(shape, _)| shape.as_ptr()).collect();
        let ranks: Vec<usize> = outputs.iter().map(|(shape, _)| shape.len()).collect();
        let dtypes: Vec<sys::mlx_dtype> = outputs.iter().map(|(_, dtype)| dtype.to_mlx()).collect();
        let mut made = vec![
            sys::mlx_array {
                ctx: std::ptr::null_mut()
            };
            outputs.len()
        ];
        // SAFETY: every list lives through the call and is as long as is said. Handles that were given are owned from
        // here on.
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
