//! A step's kernels compiled, and their launches as one CUDA graph. The driver and the compiler are those that libmlx
//! has loaded.

use super::lower::{Argument, Kernel, StepKernels};
use super::text;
use crate::base::{Device, Dtype, Error, Result, Signature};
use crate::mlx;
use crate::mlx::cuda::compiler;
pub use crate::mlx::cuda::compiler::failed;
use crate::program::engine::{Progress, RunningLoop};
use cudarc::driver::{result as driver, sys};
use mlx_rs::Array;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::{c_void, CString};
use std::time::{Duration, Instant};

/// Steps that are launched before the first of them has begun.
const AHEAD: u32 = 2;
/// Bytes of an element of the step's memory, whose size is a multiple of it.
const WORD: usize = 8;

// ---- kernels ----

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a function belongs to the context, which every thread may use.
unsafe impl Send for Function {}

pub struct Gpu {
    context: sys::CUcontext,
    has_bf16: bool,
    /// By the digest of their texts.
    functions: Mutex<HashMap<[u8; 32], Function>>,
}

// SAFETY: the context is the device's primary one, which every thread may make its own.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// MLX's device, with its context made this thread's.
    pub fn get() -> Result<&'static Gpu> {
        static GPU: OnceCell<std::result::Result<Gpu, Error>> = OnceCell::new();
        let gpu = GPU.get_or_init(Gpu::new).as_ref().map_err(Clone::clone)?;
        // SAFETY: the primary context is never released.
        unsafe { driver::ctx::set_current(gpu.context) }
            .map_err(|error| failed("cuCtxSetCurrent", error))?;
        Ok(gpu)
    }

    fn new() -> Result<Gpu> {
        let device = driver::device::get(0).map_err(|error| failed("cuDeviceGet", error))?;
        // SAFETY: the device is there.
        let context = unsafe { driver::primary_ctx::retain(device) }
            .map_err(|error| failed("cuDevicePrimaryCtxRetain", error))?;
        Ok(Gpu {
            context,
            has_bf16: compiler::capability()?.0 >= 8,
            functions: Mutex::default(),
        })
    }

    /// Compiled kernels, each once in a process, and once for all where there is a folder for them.
    fn functions(&'static self, kernels: &[Kernel]) -> Result<Vec<Function>> {
        let digests: Vec<[u8; 32]> = kernels.iter().map(Gpu::digest).collect();
        let known = || self.functions.lock();
        let mut missing: Vec<([u8; 32], &Kernel)> = Vec::new();
        {
            let known = known();
            for (digest, kernel) in digests.iter().zip(kernels) {
                let is_new =
                    !known.contains_key(digest) && missing.iter().all(|(other, _)| other != digest);
                if is_new {
                    missing.push((*digest, kernel));
                }
            }
        }
        // Each takes a part of a second.
        let compiled = std::thread::scope(|scope| {
            let threads: Vec<_> = missing
                .iter()
                .map(|(_, kernel)| scope.spawn(|| Gpu::compiled(kernel)))
                .collect();
            let ended = threads.into_iter().map(|thread| {
                let panicked = |_| Err(Error::invalid("compiling a kernel panicked"));
                thread.join().unwrap_or_else(panicked)
            });
            ended.collect::<Result<Vec<_>>>()
        })?;
        for ((digest, kernel), image) in missing.iter().zip(compiled) {
            let name = CString::new(kernel.name)
                .map_err(|_| Error::invalid("a kernel's name has a NUL"))?;
            // SAFETY: the image is a whole one, as the compiler made it, and modules are never unloaded.
            let function = unsafe {
                let module = driver::module::load_data(image.as_ptr().cast());
                let module = module.map_err(|error| failed("cuModuleLoadData", error))?;
                driver::module::get_function(module, name)
                    .map_err(|error| failed("cuModuleGetFunction", error))?
            };
            known().insert(*digest, Function(function));
        }
        let known = known();
        let found = digests.iter().map(|digest| known.get(digest).copied());
        found
            .collect::<Option<_>>()
            .ok_or_else(|| Error::invalid("a kernel is not there"))
    }

    /// One compiled kernel.
    pub fn function(&'static self, name: &'static str, text: String) -> Result<sys::CUfunction> {
        let kernel = Kernel {
            name,
            text,
            arguments: Vec::new(),
            launch: (1, 1),
        };
        let functions = self.functions(std::slice::from_ref(&kernel))?;
        let function = functions.first().map(|function| function.0);
        function.ok_or_else(|| Error::invalid("a kernel is not there"))
    }

    fn digest(kernel: &Kernel) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(text::PRELUDE.as_bytes());
        hasher.update(kernel.text.as_bytes());
        *hasher.finalize().as_bytes()
    }

    fn compiled(kernel: &Kernel) -> Result<Vec<u8>> {
        let source = format!("{}{}", text::PRELUDE, kernel.text);
        let options = ["--std=c++17", "--extra-device-vectorization"];
        compiler::image(kernel.name, &source, &options)
    }
}

// ---- a loop's graph ----

/// What the GPU tells the host, in the host's memory: steps begun, and whether there was one that is not to be.
pub struct Told(*mut u32);

// SAFETY: any thread may read and write what the GPU does; one has it at a time.
unsafe impl Send for Told {}

impl Told {
    pub fn new() -> Result<Told> {
        const FLAGS: u32 = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the context is this thread's; the memory is given back once, when this is dropped.
        let told = unsafe { driver::malloc_host(8, FLAGS) }
            .map_err(|error| failed("cuMemHostAlloc", error))?;
        let told = Told(told.cast());
        told.set(0, 0);
        told.set(1, 0);
        Ok(told)
    }

    pub fn set(&self, at: usize, number: u32) {
        // SAFETY: there are two numbers.
        unsafe { self.0.add(at).write_volatile(number) }
    }

    pub fn get(&self, at: usize) -> u32 {
        // SAFETY: there are two numbers; the GPU writes each at once.
        unsafe { self.0.add(at).read_volatile() }
    }

    pub fn address(&self) -> u64 {
        self.0 as u64
    }

    /// Waits for another number of steps on a stream, awake for a while, then asleep; a failed kernel never tells.
    pub fn until_another(&self, known: u32, stream: sys::CUstream) -> Result<()> {
        let began = Instant::now();
        loop {
            for _ in 0..64 {
                if self.get(0) != known || self.get(1) != 0 {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            let waited = began.elapsed();
            if waited > Duration::from_millis(3) {
                // SAFETY: the stream is the caller's.
                let status = unsafe { sys::cuStreamQuery(stream) };
                match status {
                    sys::CUresult::CUDA_ERROR_NOT_READY => {}
                    // All that was launched has ended.
                    sys::CUresult::CUDA_SUCCESS => return Ok(()),
                    other => {
                        return other
                            .result()
                            .map_err(|error| failed("cuStreamQuery", error))
                    }
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            if waited > Duration::from_millis(10) {
                return Ok(());
            }
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // SAFETY: nothing on the GPU writes to it any more: the graph's drop has waited.
        let _ = unsafe { driver::free_host(self.0.cast()) };
    }
}

pub fn is_there() -> bool {
    Device::Gpu.is_available() && mlx::cuda_driver().is_some()
}

/// The graph of a loop whose inputs, the first `state` of which are its state, have been submitted.
pub fn start(
    kernels: &StepKernels,
    state: usize,
    inputs: &[&Array],
) -> Result<Option<Box<dyn RunningLoop>>> {
    // The kernels round to bf16 by an instruction that older GPUs lack, and the memory is one array.
    if !Gpu::get()?.has_bf16 || i32::try_from(kernels.bytes / WORD).is_err() {
        return Ok(None);
    }
    Ok(Some(Box::new(Graph::new(kernels, state, inputs)?)))
}

/// A loop on its way. It is used by one thread at a time.
pub struct Graph {
    stream: sys::CUstream,
    launches: sys::CUgraphExec,
    arena: u64,
    state: Vec<(usize, Signature)>,
    told: Told,
    launched: u32,
    /// Held as long as the GPU may use them.
    _arrays: Vec<Array>,
}

// SAFETY: the handles are CUDA's, which any thread may use; the run that owns them is in one thread at a time.
unsafe impl Send for Graph {}

impl Graph {
    fn new(plan: &StepKernels, state: usize, inputs: &[&Array]) -> Result<Graph> {
        let gpu = Gpu::get()?;
        let functions = gpu.functions(&plan.kernels)?;
        // What is read may be under way on any stream of MLX's, which this one knows nothing of.
        driver::ctx::synchronize().map_err(|error| failed("cuCtxSynchronize", error))?;
        let mut arrays = Vec::with_capacity(inputs.len() + 1);
        let mut addresses = Vec::with_capacity(inputs.len());
        for array in inputs {
            addresses.push(address(array)?);
        }
        // The state is copied, the rest is read where it lies.
        for array in inputs.iter().skip(state) {
            arrays.push(mlx::share(array)?);
        }
        let arena = computed(&[(plan.bytes / WORD) as i32], Dtype::U64)?;
        let arena_address = address(&arena)?;
        arrays.push(arena);
        let stream = driver::stream::create(driver::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("cuStreamCreate", error))?;
        let mut graph = Graph {
            stream,
            launches: std::ptr::null_mut(),
            arena: arena_address,
            state: Vec::new(),
            told: Told::new()?,
            launched: 0,
            _arrays: arrays,
        };
        for (input, copy) in &plan.copies {
            let array = inputs[*input];
            if *input < state {
                let signature = (array.shape().to_vec(), mlx::dtype(array));
                graph.state.push((copy.offset, signature));
            }
            let rows;
            let from = match mlx::is_in_rows(array) {
                true => addresses[*input],
                false => {
                    rows = in_rows(array)?;
                    let from = address(&rows)?;
                    graph._arrays.push(rows);
                    from
                }
            };
            // SAFETY: both are so many bytes, and live as long as the graph.
            unsafe {
                driver::memcpy_dtod_async(
                    arena_address + copy.offset as u64,
                    from,
                    copy.bytes(),
                    stream,
                )
            }
            .map_err(|error| failed("cuMemcpyDtoDAsync", error))?;
        }
        graph.wait()?;
        graph.launches = graph.captured(plan, &functions, &addresses)?;
        Ok(graph)
    }

    /// The launches of a step, one after the other.
    fn captured(
        &self,
        plan: &StepKernels,
        functions: &[Function],
        addresses: &[u64],
    ) -> Result<sys::CUgraphExec> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as OF_THIS_THREAD;
        // SAFETY: the stream is ours; the functions take as many addresses as they are given, which live as long as the
        // graph. Capturing ends where it began, also where a launch is refused.
        unsafe {
            driver::stream::begin_capture(self.stream, OF_THIS_THREAD)
                .map_err(|error| failed("cuStreamBeginCapture", error))?;
            let mut result = Ok(());
            for (kernel, function) in plan.kernels.iter().zip(functions) {
                let values: Vec<u64> = kernel
                    .arguments
                    .iter()
                    .map(|argument| match argument {
                        Argument::Arena(offset) => self.arena + *offset as u64,
                        Argument::Input(input, offset) => addresses[*input] + *offset as u64,
                        Argument::Told => self.told.address(),
                    })
                    .collect();
                let mut pointers: Vec<*mut c_void> = values
                    .iter()
                    .map(|value| std::ptr::from_ref(value).cast_mut().cast())
                    .collect();
                let (blocks, threads) = (kernel.launch.0 as u32, kernel.launch.1 as u32);
                result = driver::launch_kernel(
                    function.0,
                    (blocks, 1, 1),
                    (threads, 1, 1),
                    0,
                    self.stream,
                    &mut pointers,
                )
                .map_err(|error| failed("cuLaunchKernel", error));
                if result.is_err() {
                    break;
                }
            }
            let captured = driver::stream::end_capture(self.stream);
            result?;
            let captured = captured.map_err(|error| failed("cuStreamEndCapture", error))?;
            let mut launches = std::ptr::null_mut();
            let status = sys::cuGraphInstantiateWithFlags(&mut launches, captured, 0).result();
            let _ = driver::graph::destroy(captured);
            status.map_err(|error| failed("cuGraphInstantiate", error))?;
            Ok(launches)
        }
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream is ours.
        unsafe { driver::stream::synchronize(self.stream) }
            .map_err(|error| failed("cuStreamSynchronize", error))
    }
}

impl RunningLoop for Graph {
    fn advance(&mut self, time: Duration) -> Result<Progress> {
        Gpu::get()?;
        let began = Instant::now();
        loop {
            // Whether one is too many is told before it is said to have begun.
            let begun = self.told.get(0);
            if self.told.get(1) != 0 {
                self.wait()?;
                return Ok(Progress::Ended);
            }
            if began.elapsed() >= time {
                return Ok(Progress::Going);
            }
            if self.launched.wrapping_sub(begun) < AHEAD {
                // SAFETY: the graph is whole, and waited for before it is destroyed.
                unsafe { driver::graph::launch(self.launches, self.stream) }
                    .map_err(|error| failed("cuGraphLaunch", error))?;
                self.launched = self.launched.wrapping_add(1);
                continue;
            }
            self.told.until_another(begun, self.stream)?;
        }
    }

    fn state(&self, needed: &[bool]) -> Result<Vec<Option<Array>>> {
        Gpu::get()?;
        let mut state = Vec::with_capacity(self.state.len());
        for ((offset, (shape, dtype)), is_needed) in self.state.iter().zip(needed) {
            if !is_needed {
                state.push(None);
                continue;
            }
            let array = computed(shape, *dtype)?;
            let (to, from) = (address(&array)?, self.arena + *offset as u64);
            // SAFETY: both are as long as the array, and the copy is waited for below.
            unsafe { driver::memcpy_dtod_async(to, from, array.nbytes(), self.stream) }
                .map_err(|error| failed("cuMemcpyDtoDAsync", error))?;
            state.push(Some(array));
        }
        self.wait()?;
        Ok(state)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if Gpu::get().is_err() {
            return;
        }
        let _ = self.wait();
        // SAFETY: nothing of it is under way any more, and nobody else has these.
        unsafe {
            if !self.launches.is_null() {
                let _ = driver::graph::exec_destroy(self.launches);
            }
            let _ = driver::stream::destroy(self.stream);
        }
        mlx::release_all(self._arrays.drain(..).collect());
    }
}

pub fn address(array: &Array) -> Result<u64> {
    // SAFETY: what comes here is on the GPU, and computed.
    unsafe { mlx::device_address(array) }
        .ok_or_else(|| Error::invalid("the array has no memory on the GPU"))
}

/// New memory of an array's size on the GPU.
pub fn computed(shape: &[i32], dtype: Dtype) -> Result<Array> {
    let stream = Device::Gpu.stream()?;
    let array = mlx::zeros(shape, dtype, stream)?;
    wait_for(&array)?;
    Ok(array)
}

pub fn in_rows(array: &Array) -> Result<Array> {
    let rows = mlx::contiguous(array, false, Device::Gpu.stream()?)?;
    wait_for(&rows)?;
    Ok(rows)
}

/// Computes an array that nobody else has.
fn wait_for(array: &Array) -> Result<()> {
    mlx::async_eval(&[array], &mlx::graph_lock())?;
    mlx::wait(array)
}
