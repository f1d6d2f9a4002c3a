//! Nodes of MLX's graph whose kernel for CUDA we write and compile: the Rust side of cpp/generated.cpp.

use super::graph::{guarded, handed_over, taken};
use crate::base::{Dtype, Result};
use crate::mlx::error::take_error;
use crate::mlx::Stream;
use emlx_cpu::View;
use mlx_rs::Array;
use mlx_sys as sys;
use smallvec::SmallVec;
use std::ffi::{c_char, c_int, c_void, CString};

/// A compiled kernel. It lives as long as the process.
#[derive(Debug)]
pub struct Image {
    pub name: CString,
    pub code: Vec<u8>,
}

/// A launch of one.
pub struct Launched<'a> {
    pub image: &'static Image,
    pub arguments: &'a [i32],
    pub blocks: usize,
    pub threads: usize,
}

/// What a node does.
pub trait Generating: Send + Sync {
    /// Hands the launch for inputs and results that lie so to `found`. Views have no data. Not called where there is
    /// none: then the node is what [`Generating::build`] builds. The graph's lock is held.
    fn launch(&self, inputs: &[View], out: &View, found: &mut dyn FnMut(Launched));
    /// The results by MLX's own nodes on top of the inputs. The graph's lock is held.
    fn build(&self, inputs: &[Array]) -> Result<Vec<Array>>;
}

type Payload = Box<dyn Generating>;

/// As in cpp/generated.cpp.
#[repr(C)]
struct Layout {
    shape: *const i32,
    strides: *const i64,
    rank: usize,
}

impl Layout {
    /// # Safety
    /// The pointers are those of a live array.
    unsafe fn view(&self) -> View {
        let (shape, strides) = match self.rank {
            0 => (&[][..], &[][..]),
            rank => (
                std::slice::from_raw_parts(self.shape, rank),
                std::slice::from_raw_parts(self.strides, rank),
            ),
        };
        View::of(std::ptr::null::<u8>(), shape, strides)
    }
}

/// As in cpp/generated.cpp.
#[repr(C)]
struct Launch {
    name: *const c_char,
    image: *const u8,
    bytes: usize,
    arguments: *mut i32,
    capacity: usize,
    count: usize,
    blocks: i32,
    threads: i32,
}

/// As in cpp/generated.cpp.
#[repr(C)]
struct Functions {
    payload: *const c_void,
    launch: unsafe extern "C" fn(
        *const c_void,
        *const Layout,
        usize,
        *const Layout,
        *mut Launch,
    ) -> bool,
    build: unsafe extern "C" fn(
        *const c_void,
        *const sys::mlx_array,
        usize,
        *mut sys::mlx_array,
        usize,
        *mut c_char,
        usize,
    ) -> bool,
    drop: unsafe extern "C" fn(*const c_void),
    keeps_layout: bool,
}

/// As in cpp/generated.cpp.
#[repr(C)]
struct Output {
    shape: *const i32,
    rank: usize,
    dtype: sys::mlx_dtype,
}

extern "C" {
    fn emlx_generated_nodes(
        res: *mut sys::mlx_array,
        functions: Functions,
        inputs: *const sys::mlx_array,
        count: usize,
        outputs: *const Output,
        output_count: usize,
        stream: sys::mlx_stream,
    ) -> c_int;
}

/// # Safety
/// The pointer is that of a live payload.
unsafe fn payload<'a>(payload: *const c_void) -> &'a Payload {
    &*payload.cast::<Payload>()
}

unsafe extern "C" fn launch(
    own: *const c_void,
    inputs: *const Layout,
    count: usize,
    out: *const Layout,
    to: *mut Launch,
) -> bool {
    let mut is_found = false;
    let find = || {
        let inputs: SmallVec<[View; 4]> = (0..count).map(|i| (*inputs.add(i)).view()).collect();
        let to = &mut *to;
        payload(own).launch(&inputs, &(*out).view(), &mut |launched| {
            let Launched {
                image, arguments, ..
            } = launched;
            let sizes = (
                i32::try_from(launched.blocks),
                i32::try_from(launched.threads),
            );
            let (Ok(blocks), Ok(threads)) = sizes else {
                return;
            };
            if arguments.len() > to.capacity {
                return;
            }
            std::ptr::copy_nonoverlapping(arguments.as_ptr(), to.arguments, arguments.len());
            *to = Launch {
                name: image.name.as_ptr(),
                image: image.code.as_ptr(),
                bytes: image.code.len(),
                count: arguments.len(),
                blocks,
                threads,
                ..*to
            };
            is_found = true;
        });
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(find)).is_ok() && is_found
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

unsafe extern "C" fn release(own: *const c_void) {
    drop(Box::from_raw(own.cast_mut().cast::<Payload>()));
}

/// What nodes are made of.
pub struct Node {
    pub generating: Box<dyn Generating>,
    /// Whether results, which then have one shape, lie as inputs of this shape do, where these agree.
    pub keeps_layout: bool,
}

/// Nodes of results of these shapes and types. There is at least one.
pub fn nodes(
    node: Node,
    inputs: &[&Array],
    outputs: &[(&[i32], Dtype)],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    let functions = Functions {
        payload: Box::into_raw(Box::new(node.generating)).cast(),
        launch,
        build,
        drop: release,
        keeps_layout: node.keeps_layout,
    };
    let handles: SmallVec<[sys::mlx_array; 4]> =
        inputs.iter().map(|array| array.as_ptr()).collect();
    let outputs: SmallVec<[Output; 2]> = outputs
        .iter()
        .map(|(shape, dtype)| Output {
            shape: shape.as_ptr(),
            rank: shape.len(),
            dtype: dtype.to_mlx(),
        })
        .collect();
    let null = sys::mlx_array {
        ctx: std::ptr::null_mut(),
    };
    let mut made: SmallVec<[sys::mlx_array; 2]> = SmallVec::from_elem(null, outputs.len());
    // SAFETY: every pointer comes from a live reference and every length from its slice, there is room for as many
    // handles as there are outputs, and exceptions are caught there. Handles that were given are owned from here on.
    unsafe {
        let status = emlx_generated_nodes(
            made.as_mut_ptr(),
            functions,
            handles.as_ptr(),
            handles.len(),
            outputs.as_ptr(),
            outputs.len(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Device, Error};
    use crate::mlx;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;

    /// Counts those that are not dropped.
    struct Double(Arc<AtomicUsize>);

    impl Drop for Double {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    impl Generating for Double {
        fn launch(&self, inputs: &[View], out: &View, found: &mut dyn FnMut(Launched)) {
            static IMAGE: once_cell::sync::Lazy<Image> = once_cell::sync::Lazy::new(|| Image {
                name: c"double".into(),
                code: vec![1, 2, 3],
            });
            assert_eq!(
                (inputs[0].shape(), inputs[0].strides()),
                (&[2, 3][..], &[1, 2][..])
            );
            assert_eq!(inputs[1].shape().len(), 0);
            // More than there is room for is no launch.
            let arguments = vec![7; out.size()];
            found(Launched {
                image: &IMAGE,
                arguments: &arguments,
                blocks: 5,
                threads: 256,
            });
        }

        fn build(&self, inputs: &[Array]) -> Result<Vec<Array>> {
            match inputs {
                [one] => Ok(vec![mlx::share(one)?]),
                _ => Err(Error::invalid("takes one")),
            }
        }
    }

    fn payload_of(count: &Arc<AtomicUsize>) -> *const c_void {
        count.fetch_add(1, Ordering::Relaxed);
        let payload: Payload = Box::new(Double(count.clone()));
        Box::into_raw(Box::new(payload)).cast()
    }

    #[test]
    fn a_launch_is_handed_over_where_there_is_room() {
        let count = Arc::new(AtomicUsize::new(0));
        let payload = payload_of(&count);
        let (shape, strides, long) = ([2, 3], [1i64, 2], [3i64, 1]);
        let layout = |strides: &[i64], rank| Layout {
            shape: shape.as_ptr(),
            strides: strides.as_ptr(),
            rank,
        };
        let inputs = [layout(&strides, 2), layout(&strides, 0)];
        for (capacity, is_found) in [(6, true), (5, false)] {
            let mut arguments = [0; 6];
            let mut to = Launch {
                name: std::ptr::null(),
                image: std::ptr::null(),
                bytes: 0,
                arguments: arguments.as_mut_ptr(),
                capacity,
                count: 0,
                blocks: 0,
                threads: 0,
            };
            // SAFETY: a live payload, and layouts of live arrays.
            let found = unsafe { launch(payload, inputs.as_ptr(), 2, &layout(&long, 2), &mut to) };
            assert_eq!(found, is_found);
            if is_found {
                assert_eq!((to.count, to.blocks, to.threads, to.bytes), (6, 5, 256, 3));
                assert_eq!(arguments, [7; 6]);
                // SAFETY: the image's.
                assert_eq!(unsafe { std::ffi::CStr::from_ptr(to.name) }, c"double");
            }
        }
        // SAFETY: the last use.
        unsafe { release(payload) };
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_node_has_its_shapes_and_types_and_is_for_cuda_alone() {
        mlx::init();
        let stream = Device::Cpu.stream().expect("a stream");
        let input = mlx::from_bytes(&[1; 6], &[2, 3], Dtype::U8).expect("an array");
        let count = Arc::new(AtomicUsize::new(1));
        let double = Box::new(Double(count.clone()));
        let outputs = [(&[2, 3][..], Dtype::Bool), (&[2, 1][..], Dtype::F32)];
        let node = Node {
            generating: double,
            keeps_layout: false,
        };
        let made = nodes(node, &[&input], &outputs, stream).expect("built");
        let signature = |array: &Array| (array.shape().to_vec(), mlx::dtype(array));
        let signatures: Vec<_> = made.iter().map(signature).collect();
        assert_eq!(
            signatures,
            outputs.map(|(shape, dtype)| (shape.to_vec(), dtype))
        );
        let error = mlx::async_eval(&[&made[0]], &mlx::graph_lock());
        let error = error.expect_err("is for CUDA").to_string();
        assert!(error.contains("is a kernel for CUDA"), "{error}");
        mlx::release_all(made.into_iter().collect());
        // Where another test holds the lock, it gives them up when it is done.
        drop(mlx::graph_lock());
        let mut tries = 0;
        while count.load(Ordering::Relaxed) > 0 && tries < 1000 {
            std::thread::sleep(std::time::Duration::from_millis(10));
            tries += 1;
        }
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}
