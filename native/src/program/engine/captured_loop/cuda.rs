//! A loop's step captured and launched, by CUDA's driver.

use super::{copied, room, ways, Home, Way, MAX_KEPT};
use crate::base::{Device, Dtype, Error, Result, Signature};
use crate::mlx::cuda::step::{capture_step, part, Fixed, StepMemory};
use crate::mlx::{self, Stream};
use crate::program::build;
use crate::program::engine::captured::copies::{Copy, CopyLaunch};
use crate::program::engine::step_graph::{address, computed, failed, in_rows, Gpu, Told};
use crate::program::engine::{Begun, Progress, RunningLoop};
use crate::program::plan::{Code, Node};
use cudarc::driver::{result as driver, sys};
use mlx_rs::Array;
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where a part of the loop's memory begins is a multiple of this: of the widest reads of MLX's kernels, and more.
const ALIGNMENT: usize = 256;
/// Bytes of an element of that memory.
const WORD: usize = 8;

/// How a step reads an input of the loop.
enum Input {
    /// In the loop's memory, from a byte on. The state is read so.
    Copied(usize),
    Fixed(Fixed),
}

/// A loop's step, and the memory in which it lies.
pub struct CapturedStep {
    stream: sys::CUstream,
    launches: sys::CUgraphExec,
    of: Stream,
    signatures: Vec<Signature>,
    inputs: Vec<Input>,
    told: Told,
    arena: Array,
    /// What the graph reads and writes beside it.
    _memory: Option<StepMemory>,
    _others: Vec<Array>,
    bytes: usize,
    used: Instant,
}

// SAFETY: the handles are CUDA's, which any thread may use; whoever owns a step uses it in one thread at a time.
unsafe impl Send for CapturedStep {}

impl CapturedStep {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn unused(&self) -> Duration {
        self.used.elapsed()
    }

    /// Whether it is a step of a loop that begins with these inputs. Else, of inputs with these shapes, `Err` has those
    /// that are others.
    fn is_for(
        &self,
        given: &Begun,
        signatures: &[Signature],
    ) -> std::result::Result<bool, Vec<bool>> {
        if self.signatures != signatures || !self.of.is_same(given.stream) {
            return Ok(false);
        }
        let inputs = self.inputs.iter().zip(given.inputs);
        let others: Vec<bool> = inputs
            .map(|(input, array)| matches!(input, Input::Fixed(fixed) if !fixed.is(array)))
            .collect();
        match others.contains(&true) {
            true => Err(others),
            false => Ok(true),
        }
    }

    /// Copies the inputs that are copied to where the step reads them.
    fn fill(&self, inputs: &[&Array]) -> Result<()> {
        let to = address(&self.arena)?;
        let (mut copies, mut rows) = (Vec::new(), Vec::new());
        for (input, array) in self.inputs.iter().zip(inputs) {
            let Input::Copied(offset) = input else {
                continue;
            };
            let from = match mlx::is_in_rows(array) {
                true => address(array)?,
                false => {
                    let own = in_rows(array)?;
                    let from = address(&own)?;
                    rows.push(own);
                    from
                }
            };
            copies.push(Copy {
                from,
                to: to + *offset as u64,
                bytes: array.nbytes() as u64,
            });
        }
        for launch in CopyLaunch::all(&copies)? {
            // SAFETY: both sides are as long as the array, and live until the stream has been waited for.
            unsafe { launch.launch(self.stream) }?;
        }
        self.told.set(0, 0);
        self.told.set(1, 0);
        self.wait()
    }

    fn launch(&self) -> Result<()> {
        // SAFETY: the graph is whole, and waited for before it is destroyed.
        unsafe { driver::graph::launch(self.launches, self.stream) }
            .map_err(|error| failed("cuGraphLaunch", error))
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: the stream is ours.
        unsafe { driver::stream::synchronize(self.stream) }
            .map_err(|error| failed("cuStreamSynchronize", error))
    }
}

impl Drop for CapturedStep {
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
        mlx::release_all(self._others.drain(..).collect());
    }
}

/// Takes a loop over whose inputs have been submitted.
pub fn start(
    home: &Arc<Home>,
    [condition, body]: &[Code; 2],
    given: &Begun,
) -> Result<Box<dyn RunningLoop>> {
    Gpu::get()?;
    let inputs = given.inputs;
    if inputs.iter().any(|array| array.size() == 0) {
        return Err(Error::invalid("an input has no elements"));
    }
    let signatures: Vec<Signature> = inputs
        .iter()
        .map(|array| (array.shape().to_vec(), mlx::dtype(array)))
        .collect();
    // What is read may be under way on any stream of MLX's, which the step's knows nothing of.
    driver::ctx::synchronize().map_err(|error| failed("cuCtxSynchronize", error))?;
    let step = match kept(home, given, &signatures) {
        Some(step) => {
            step.fill(inputs)?;
            step.launch()?;
            step
        }
        None => {
            let copied = copied(&signatures, given.state, &home.varying.lock());
            let capture = Capture {
                given,
                signatures: &signatures,
                copied: &copied,
            };
            capture.run(condition, body)?
        }
    };
    let inputs = step.inputs.iter().zip(inputs);
    let fixed = inputs.filter(|(input, _)| matches!(input, Input::Fixed(_)));
    let held = fixed.map(|(_, array)| mlx::share(array));
    Ok(Box::new(Running {
        held: held.collect::<Result<Vec<_>>>()?,
        step: Some(step),
        launched: 1,
        state: given.state,
        home: home.clone(),
    }))
}

/// A step that was captured for such inputs. One that reads others is given up.
fn kept(home: &Home, given: &Begun, signatures: &[Signature]) -> Option<CapturedStep> {
    let mut steps = home.steps.lock();
    let mut i = 0;
    while i < steps.len() {
        match steps[i].is_for(given, signatures) {
            Ok(true) => return Some(steps.swap_remove(i)),
            Ok(false) => i += 1,
            Err(others) => {
                let mut varying = home.varying.lock();
                let count = others.len().max(varying.len());
                varying.resize(count, false);
                let both = varying.iter_mut().zip(others);
                both.for_each(|(varying, other)| *varying |= other);
                steps.swap_remove(i);
            }
        }
    }
    None
}

/// What a step is captured for.
struct Capture<'a> {
    given: &'a Begun<'a>,
    signatures: &'a [Signature],
    copied: &'a [bool],
}

impl Capture<'_> {
    /// The step, once it has been taken for the first time.
    fn run(&self, condition: &Code, body: &Code) -> Result<CapturedStep> {
        let Begun { inputs, state, .. } = *self.given;
        let (mut bytes, mut offsets) = (0_usize, Vec::with_capacity(inputs.len()));
        for (array, is_copied) in inputs.iter().zip(self.copied) {
            offsets.push(is_copied.then_some(bytes));
            if *is_copied {
                bytes += array.nbytes().next_multiple_of(ALIGNMENT);
            }
        }
        let words = words(bytes)?;
        let stream = driver::stream::create(driver::stream::StreamKind::NonBlocking)
            .map_err(|error| failed("cuStreamCreate", error))?;
        let mut step = CapturedStep {
            stream,
            launches: std::ptr::null_mut(),
            of: self.given.stream.clone(),
            signatures: self.signatures.to_vec(),
            inputs: Vec::new(),
            told: Told::new()?,
            arena: computed(&[words], Dtype::U64)?,
            _memory: None,
            _others: Vec::new(),
            bytes: 0,
            used: Instant::now(),
        };
        step.inputs = inputs
            .iter()
            .zip(&offsets)
            .map(|(array, offset)| match offset {
                Some(offset) => Input::Copied(*offset),
                None => Input::Fixed(Fixed::of(array)),
            })
            .collect();
        step.fill(inputs)?;
        let made = self.built(condition, body, &step.arena, &offsets)?;
        let graph = Graph::new()?;
        let mut child = std::ptr::null_mut();
        // Only memory that the loop does not own stays with its owners.
        let fixed: Vec<&Array> = inputs
            .iter()
            .zip(self.copied)
            .filter(|(_, is_copied)| !**is_copied)
            .map(|(array, _)| *array)
            .collect();
        let taken = {
            let lock = mlx::graph_lock();
            // SAFETY: the graph and its nodes are MLX's and live through this.
            let mut take = |from: *mut c_void, starts: &[_], ends: &[_]| match unsafe {
                graph.child(from, starts, ends)
            } {
                Ok(node) => {
                    child = node;
                    true
                }
                Err(_) => false,
            };
            capture_step(
                &made,
                &fixed,
                &step.arena,
                self.given.stream,
                &mut take,
                &lock,
            )?
        };
        driver::ctx::synchronize().map_err(|error| failed("cuCtxSynchronize", error))?;
        let memory = taken.ok_or_else(|| Error::invalid("MLX launches it in parts"))?;
        let arena = address(&step.arena)?;
        let mut last = Vec::new();
        let mut tail = self.tail(&made[..state], arena, &offsets, &mut last)?;
        tail.push(Launch::Tell(Gpu::get()?.function("emlx_tell", text())?));
        let condition = address(&made[state])?;
        let mut before = child;
        for launch in &tail {
            // SAFETY: all that the kernels read and write lives as long as the step.
            unsafe {
                before = launch.add(&graph, before, condition, &step.told)?;
                launch.launch(step.stream, condition, &step.told)?;
            }
        }
        step.launches = graph.instantiated()?;
        step.wait()?;
        step.bytes = memory.bytes + step.arena.nbytes();
        step._memory = Some(memory);
        step._others = made.into_iter().chain(last).collect();
        Ok(step)
    }

    /// The nodes of the new state, in rows, and of whether there is a step after it.
    fn built(
        &self,
        condition: &Code,
        body: &Code,
        arena: &Array,
        offsets: &[Option<usize>],
    ) -> Result<Vec<Array>> {
        let Begun {
            inputs,
            state,
            stream,
            ..
        } = *self.given;
        Device::Gpu.enter(stream)?;
        let parts = inputs
            .iter()
            .zip(offsets)
            .map(|(array, offset)| match offset {
                // SAFETY: the arena is computed, and lives as long as the step.
                Some(offset) => unsafe { part(arena, *offset, array.shape(), mlx::dtype(array)) },
                None => mlx::share(array),
            });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let others = parts[state..]
            .iter()
            .map(mlx::share)
            .collect::<Result<Vec<_>>>()?;
        let mut bytes = 0;
        let mut seen = |node: &Node, made: &[Array]| {
            if node.op().is_none_or(|op| op.traits().view.is_none()) {
                bytes += made.iter().map(|array| array.nbytes()).sum::<usize>();
            }
        };
        let (made, crossed) = build::outputs(body, parts, Device::Gpu, stream, &mut seen)?;
        let signature = |array: &Array| (array.shape().to_vec(), mlx::dtype(array));
        if made
            .iter()
            .map(signature)
            .ne(self.signatures[..state].iter().cloned())
        {
            return Err(Error::invalid("its state changes its shapes or types"));
        }
        let is_here = crossed.is_empty();
        let rows = made
            .iter()
            .map(|array| mlx::contiguous(array, false, stream));
        let mut made = rows.collect::<Result<Vec<_>>>()?;
        let given = made
            .iter()
            .map(mlx::share)
            .chain(others.into_iter().map(Ok));
        let given = given.collect::<Result<Vec<_>>>()?;
        let (answer, crossed) = build::outputs(condition, given, Device::Gpu, stream, &mut seen)?;
        if !is_here || !crossed.is_empty() {
            return Err(Error::invalid("an operation in it is computed on the CPU"));
        }
        if bytes > room() {
            return Err(Error::invalid(format!("its values take {bytes} bytes")));
        }
        let answer = answer.first().filter(|answer| answer.size() == 1);
        let answer = answer.ok_or_else(|| Error::invalid("its condition is not one number"))?;
        let answer = mlx::reshape(&mlx::astype(answer, Dtype::Bool, stream)?, &[1], stream)?;
        made.push(mlx::contiguous(&answer, false, stream)?);
        Ok(made)
    }

    /// The copies behind a step.
    fn tail(
        &self,
        made: &[Array],
        arena: u64,
        offsets: &[Option<usize>],
        last: &mut Vec<Array>,
    ) -> Result<Vec<Launch>> {
        let range = |start: u64, array: &Array| start..start + array.nbytes() as u64;
        let places: Vec<Range<u64>> = made
            .iter()
            .zip(offsets)
            .map(|(array, offset)| range(arena + offset.unwrap_or(0) as u64, array))
            .collect();
        let from = made.iter().map(|array| Ok(range(address(array)?, array)));
        let from = from.collect::<Result<Vec<_>>>()?;
        let ways = ways(&from, &places);
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for ((way, from), to) in ways.iter().zip(&from).zip(&places) {
            let bytes = from.end - from.start;
            let mut from = from.start;
            if *way == Way::Staged {
                let between = computed(&[words(bytes as usize)?], Dtype::U64)?;
                let to = address(&between)?;
                first.push(Copy { from, to, bytes });
                last.push(between);
                from = to;
            }
            if *way != Way::Stays {
                let to = to.start;
                second.push(Copy { from, to, bytes });
            }
        }
        let mut launches = CopyLaunch::all(&first)?;
        launches.extend(CopyLaunch::all(&second)?);
        Ok(launches.into_iter().map(Launch::Copies).collect())
    }
}

fn words(bytes: usize) -> Result<i32> {
    i32::try_from(bytes.div_ceil(WORD))
        .map_err(|_| Error::invalid(format!("{bytes} bytes are too many for one array")))
}

fn text() -> String {
    include_str!("tell.cu").to_string()
}

/// A kernel behind the step.
enum Launch {
    Copies(CopyLaunch),
    Tell(sys::CUfunction),
}

impl Launch {
    /// # Safety
    /// What the kernel reads and writes lives as long as the graph's launches.
    unsafe fn add(
        &self,
        graph: &Graph,
        before: sys::CUgraphNode,
        condition: u64,
        told: &Told,
    ) -> Result<sys::CUgraphNode> {
        match self {
            Launch::Copies(copies) => copies.with(|function, grid, threads, arguments| {
                graph.kernel(before, function, grid, threads, arguments)
            }),
            Launch::Tell(function) => told_arguments(condition, told, |arguments| {
                graph.kernel(before, *function, (1, 1, 1), (1, 1, 1), arguments)
            }),
        }
    }

    /// # Safety
    /// What the kernel reads and writes lives until the stream has been waited for.
    unsafe fn launch(&self, stream: sys::CUstream, condition: u64, told: &Told) -> Result<()> {
        match self {
            Launch::Copies(copies) => copies.launch(stream),
            Launch::Tell(function) => told_arguments(condition, told, |arguments| {
                driver::launch_kernel(*function, (1, 1, 1), (1, 1, 1), 0, stream, arguments)
                    .map_err(|error| failed("cuLaunchKernel", error))
            }),
        }
    }
}

fn told_arguments<T>(
    mut condition: u64,
    told: &Told,
    call: impl FnOnce(&mut [*mut c_void]) -> T,
) -> T {
    let mut told = told.address();
    let pointer = |value: &mut u64| std::ptr::from_mut(value).cast::<c_void>();
    call(&mut [pointer(&mut condition), pointer(&mut told)])
}

/// A graph that is being made.
struct Graph(sys::CUgraph);

impl Graph {
    fn new() -> Result<Graph> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: there is room for a handle.
        unsafe { sys::cuGraphCreate(&mut graph, 0) }
            .result()
            .map_err(|error| failed("cuGraphCreate", error))?;
        Ok(Graph(graph))
    }

    /// A copy of MLX's graph, to which these edges are added first.
    ///
    /// # Safety
    /// The graph and the nodes are live.
    unsafe fn child(
        &self,
        graph: *mut c_void,
        from: &[*mut c_void],
        to: &[*mut c_void],
    ) -> Result<sys::CUgraphNode> {
        let graph: sys::CUgraph = graph.cast();
        super::captured::with_edges(graph, from, to, || {
            let mut node = std::ptr::null_mut();
            sys::cuGraphAddChildGraphNode(&mut node, self.0, std::ptr::null(), 0, graph)
                .result()
                .map_err(|error| failed("cuGraphAddChildGraphNode", error))?;
            Ok(node)
        })
    }

    /// # Safety
    /// The function takes these arguments, and what they point to lives as long as the graph's launches.
    unsafe fn kernel(
        &self,
        before: sys::CUgraphNode,
        function: sys::CUfunction,
        (x, y, z): (u32, u32, u32),
        (threads, _, _): (u32, u32, u32),
        arguments: &mut [*mut c_void],
    ) -> Result<sys::CUgraphNode> {
        let parameters = sys::CUDA_KERNEL_NODE_PARAMS {
            func: function,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: 0,
            kernelParams: arguments.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        let mut node = std::ptr::null_mut();
        sys::cuGraphAddKernelNode_v2(&mut node, self.0, &before, 1, &parameters)
            .result()
            .map_err(|error| failed("cuGraphAddKernelNode", error))?;
        Ok(node)
    }

    fn instantiated(&self) -> Result<sys::CUgraphExec> {
        let mut launches = std::ptr::null_mut();
        // SAFETY: the graph is live.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut launches, self.0, 0) }
            .result()
            .map_err(|error| failed("cuGraphInstantiate", error))?;
        Ok(launches)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: launches that were made of it have their own.
        let _ = unsafe { driver::graph::destroy(self.0) };
    }
}

/// A loop on its way.
struct Running {
    /// None only while it is dropped.
    step: Option<CapturedStep>,
    launched: u32,
    state: usize,
    home: Arc<Home>,
    /// Held as long as the GPU may use them.
    held: Vec<Array>,
}

impl Running {
    fn step(&self) -> Result<&CapturedStep> {
        let lost = || Error::invalid("the loop has lost its step");
        self.step.as_ref().ok_or_else(lost)
    }
}

impl RunningLoop for Running {
    fn advance(&mut self, time: Duration) -> Result<Progress> {
        Gpu::get()?;
        let began = Instant::now();
        loop {
            let step = self.step()?;
            let ended = step.told.get(0);
            // Whether it was the last one is told before that it has ended.
            if ended == self.launched {
                if step.told.get(1) != 0 {
                    step.wait()?;
                    return Ok(Progress::Ended);
                }
                if began.elapsed() >= time {
                    return Ok(Progress::Going);
                }
                step.launch()?;
                self.launched = self.launched.wrapping_add(1);
                continue;
            }
            if began.elapsed() >= 4 * time {
                return Ok(Progress::Going);
            }
            step.told.until_another(ended, step.stream)?;
        }
    }

    fn state(&self, needed: &[bool]) -> Result<Vec<Option<Array>>> {
        Gpu::get()?;
        let step = self.step()?;
        let from = address(&step.arena)?;
        let mut copies = Vec::new();
        let state = step.inputs.iter().zip(&step.signatures).take(self.state);
        let state = state
            .zip(needed)
            .map(|((input, (shape, dtype)), is_needed)| {
                let (Input::Copied(offset), true) = (input, is_needed) else {
                    return Ok(None);
                };
                let array = computed(shape, *dtype)?;
                copies.push(Copy {
                    from: from + *offset as u64,
                    to: address(&array)?,
                    bytes: array.nbytes() as u64,
                });
                Ok(Some(array))
            });
        let state = state.collect::<Result<Vec<_>>>()?;
        for launch in CopyLaunch::all(&copies)? {
            // SAFETY: both sides are as long as the array, and the copies are waited for.
            unsafe { launch.launch(step.stream) }?;
        }
        step.wait()?;
        Ok(state)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut step) = self.step.take() else {
            return;
        };
        // One that failed is not used again.
        if Gpu::get().is_ok() && step.wait().is_ok() {
            step.used = Instant::now();
            let mut steps = self.home.steps.lock();
            if steps.len() >= MAX_KEPT {
                steps.remove(0);
            }
            steps.push(step);
        }
        mlx::release_all(self.held.drain(..).collect());
    }
}
