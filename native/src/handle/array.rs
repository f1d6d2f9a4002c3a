//! Arrays as resources of the BEAM: MLX's handle, what the scheduler needs to know of it, and how it is made and read.

use crate::base::{Device, Dtype, Error, Reason, Result, Signature};
use crate::handle::small::{Layout, Small};
use crate::handle::weight;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};
use rustler::{Encoder, Env, LocalPid, NewBinary, Resource, ResourceArc, Term};
use std::mem::ManuallyDrop;
use std::sync::atomic::{fence, AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

/// Longest chain of nodes that is left unsubmitted: it bounds the memory of a program that never reads. A GPU should be
/// given work early. On the CPU, submitting takes the cores that build the next nodes, and 32,768 nodes take about 20
/// MiB.
fn max_depth(device: Device) -> u32 {
    match device {
        Device::Cpu => 32_768,
        Device::Gpu => 256,
    }
}
/// Most bytes of inputs that unsubmitted nodes may keep alive.
const MAX_HELD: u64 = 256 << 20;

/// Whether a computation that can fail late (linear algebra, reading a file) did. Shared by everything computed from
/// it, so that no result of a failed computation is ever read as if it were one.
pub struct Outcome {
    failure: OnceCell<Error>,
    succeeded: AtomicBool,
    /// The CPU stream that the computation runs on, and that keeps its failure until it is asked.
    pub stream: Stream,
    /// What the CPU has to have computed before the GPU is given anything that builds on it.
    crossed: Mutex<Vec<ResourceArc<Handle>>>,
}

impl Outcome {
    pub fn new(stream: Stream) -> Outcome {
        Outcome {
            failure: OnceCell::new(),
            succeeded: AtomicBool::new(false),
            stream,
            crossed: Mutex::default(),
        }
    }

    /// The same, of results that the CPU computes for the GPU.
    pub fn crossing(self, arrays: impl IntoIterator<Item = Array>) -> Result<Outcome> {
        let stream = Device::Cpu.stream()?;
        let handle = |array| Handle::ready(array, Device::Cpu, stream.clone(), Outcomes::new());
        let handles = arrays.into_iter().map(handle).map(ResourceArc::new);
        self.crossed().extend(handles);
        Ok(self)
    }

    fn crossed(&self) -> MutexGuard<'_, Vec<ResourceArc<Handle>>> {
        self.crossed.lock()
    }

    /// What the CPU still has to compute.
    pub fn take_crossed(&self) -> Vec<ResourceArc<Handle>> {
        std::mem::take(&mut *self.crossed())
    }

    /// Of linear algebra called on a device, which runs on the CPU wherever it is called.
    pub fn of_call(device: Device, stream: &Stream) -> Result<Outcome> {
        Ok(Outcome::new(match device {
            Device::Cpu => stream.clone(),
            Device::Gpu => Device::Cpu.stream()?.clone(),
        }))
    }

    pub fn fail(&self, error: &Error) {
        if !self.succeeded.load(Ordering::Acquire) {
            let _ = self.failure.set(error.clone());
        }
    }

    pub fn succeed(&self) {
        if self.failure.get().is_none() {
            self.succeeded.store(true, Ordering::Release);
        }
    }

    fn is_open(&self) -> bool {
        !self.succeeded.load(Ordering::Acquire)
    }
}

/// An error if one of these was given up until now.
pub fn refuse_deallocated<'a>(handles: impl IntoIterator<Item = &'a Handle>) -> Result<()> {
    fence(Ordering::SeqCst);
    handles.into_iter().try_for_each(Handle::refuse_deallocated)
}

/// The outcomes that a result depends on; mostly none.
pub type Outcomes = Vec<Arc<Outcome>>;

/// The outcomes of several handles together.
pub fn outcomes_of<'a>(handles: impl IntoIterator<Item = &'a Handle>) -> Outcomes {
    let mut all = Outcomes::new();
    for handle in handles {
        for outcome in &handle.outcomes {
            if outcome.is_open() && !all.iter().any(|known| Arc::ptr_eq(known, outcome)) {
                all.push(outcome.clone());
            }
        }
    }
    all
}

pub fn check_outcomes(outcomes: &Outcomes) -> Result<()> {
    match outcomes.iter().find_map(|outcome| outcome.failure.get()) {
        Some(error) => Err(error.clone()),
        None => Ok(()),
    }
}

/// An array as the BEAM holds it.
pub struct Handle {
    /// MLX's array: of a small one that handles hold themselves, once MLX has needed it.
    array: OnceCell<Array>,
    small: Option<Small>,
    /// No other array ever has this number.
    pub number: u64,
    pub device: Device,
    pub stream: Stream,
    /// Nodes on the longest unsubmitted path to this array.
    depth: AtomicU32,
    /// Bytes of inputs that the unsubmitted graph keeps alive.
    held: AtomicU64,
    pub outcomes: Outcomes,
    /// The elements in rows, once their address has been given away.
    pinned: OnceCell<Buffer>,
    /// Stands for a value of a function that is being traced: it has a shape and a type, and never elements.
    traced: bool,
    /// Its elements were given up by the caller's word ([`crate::handle::deallocate`]).
    deallocated: AtomicBool,
    /// The process that is told when the handle goes.
    watcher: Mutex<Option<LocalPid>>,
}

// SAFETY: MLX's handle is a reference-counted pointer. What is read through `&Handle` on any thread (shape, dtype, the
// pointer itself) is fixed when the node is made; everything else happens under `mlx::graph_lock`.
unsafe impl Sync for Handle {}
unsafe impl Send for Handle {}
impl std::panic::RefUnwindSafe for Handle {}

#[rustler::resource_impl]
impl Resource for Handle {
    const IMPLEMENTS_DESTRUCTOR: bool = true;

    /// Nothing refers to the handle any more.
    fn destructor(mut self, env: Env) {
        if let Some(process) = *self.watcher.get_mut() {
            // A process that has ended needs no message.
            let _ = env.send(&process, (atoms::emlx_array_gone(), self.number));
        }
    }
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Drop for Handle {
    fn drop(&mut self) {
        if *self.deallocated.get_mut() {
            crate::handle::deallocate::forget(self);
        }
        if let Some(array) = self.array.take() {
            mlx::release(array);
        }
    }
}

impl Handle {
    /// An array with its data, or one whose graph is already submitted.
    pub fn ready(array: Array, device: Device, stream: Stream, outcomes: Outcomes) -> Handle {
        let mut handle = Handle::with(OnceCell::with_value(array), None, device, stream);
        handle.outcomes = outcomes;
        handle
    }

    /// A small array of the CPU, computed.
    pub fn small(small: Small, stream: Stream) -> Handle {
        Handle::with(OnceCell::new(), Some(small), Device::Cpu, stream)
    }

    fn with(
        array: OnceCell<Array>,
        small: Option<Small>,
        device: Device,
        stream: Stream,
    ) -> Handle {
        Handle {
            array,
            small,
            number: next_number(),
            device,
            stream,
            depth: AtomicU32::new(0),
            held: AtomicU64::new(0),
            outcomes: Outcomes::new(),
            pinned: OnceCell::new(),
            traced: false,
            deallocated: AtomicBool::new(false),
            watcher: Mutex::default(),
        }
    }

    /// Stands for a value of a function that is being traced.
    pub fn placeholder(array: Array, device: Device, stream: Stream) -> Handle {
        let mut handle = Handle::ready(array, device, stream, Outcomes::new());
        handle.traced = true;
        handle
    }

    /// A node on top of `inputs`, not yet submitted.
    pub fn node(
        array: Array,
        device: Device,
        stream: Stream,
        inputs: &[Option<&Handle>],
        outcomes: Outcomes,
    ) -> Handle {
        let mut depth = 0;
        let mut held = 0u64;
        for input in inputs.iter().flatten() {
            let below = input.depth.load(Ordering::Relaxed);
            depth = depth.max(below);
            held = held.saturating_add(match below {
                0 => input.nbytes() as u64,
                _ => input.held.load(Ordering::Relaxed),
            });
        }
        Handle {
            array: OnceCell::with_value(array),
            small: None,
            number: next_number(),
            device,
            stream,
            depth: AtomicU32::new(depth + 1),
            held: AtomicU64::new(held),
            outcomes,
            pinned: OnceCell::new(),
            traced: inputs.iter().flatten().any(|input| input.traced),
            deallocated: AtomicBool::new(false),
            watcher: Mutex::default(),
        }
    }

    /// Another handle of the same array, which this one's deallocation leaves as it is.
    pub fn another(&self) -> Result<Handle> {
        let array = match &self.small {
            Some(_) => OnceCell::new(),
            None => OnceCell::with_value(mlx::share(self.live()?)?),
        };
        refuse_deallocated([self])?;
        Ok(Handle {
            array,
            small: self.small.clone(),
            number: self.number,
            device: self.device,
            stream: self.stream.clone(),
            depth: AtomicU32::new(self.depth.load(Ordering::Relaxed)),
            held: AtomicU64::new(self.held.load(Ordering::Relaxed)),
            outcomes: self.outcomes.clone(),
            pinned: OnceCell::new(),
            traced: self.traced,
            deallocated: AtomicBool::new(false),
            watcher: Mutex::default(),
        })
    }

    pub fn is_traced(&self) -> bool {
        self.traced
    }

    /// Has a process told when the handle goes: `{:emlx_array_gone, number}`. There is one such process; the last one
    /// counts.
    pub fn watch(&self, process: LocalPid) {
        *self.watcher.lock() = Some(process);
    }

    /// Has the traced function contain the operation that made this array, although its inputs are known.
    pub fn trace(&mut self) {
        self.traced = true;
    }

    /// An error if there will never be elements behind this array.
    pub fn refuse_traced(&self) -> Result<()> {
        match self.traced {
            true => Err(Reason::Traced.into()),
            false => Ok(()),
        }
    }

    /// MLX's array. Of a small one it is made here.
    pub fn array(&self) -> &Array {
        self.array.get_or_init(|| {
            let small = self.small.as_ref();
            let array = small
                .map(Small::to_mlx)
                .unwrap_or_else(|| Err(Error::invalid("no array")));
            // Only where the process is out of memory. Calls and jobs turn panics into errors.
            array.unwrap_or_else(|error| panic!("{error:?}"))
        })
    }

    /// MLX's array, where there is one already.
    pub fn known_array(&self) -> Option<&Array> {
        self.array.get()
    }

    /// The elements, where the handle has them itself.
    pub fn as_small(&self) -> Option<&Small> {
        self.small.as_ref()
    }

    pub fn nbytes(&self) -> usize {
        match &self.small {
            Some(small) => small.layout.bytes,
            None => self.array().nbytes(),
        }
    }

    /// Marks the array as given up. Whether it was not before.
    pub fn mark_deallocated(&self) -> bool {
        !self.deallocated.swap(true, Ordering::SeqCst)
    }

    /// An error if the array was given up.
    pub fn refuse_deallocated(&self) -> Result<()> {
        // Of an array that is built on outside the graph's lock it is asked again afterwards.
        match self.deallocated.load(Ordering::Relaxed) {
            true => Err(Reason::Deallocated.into()),
            false => Ok(()),
        }
    }

    /// The array, unless it was given up.
    pub fn live(&self) -> Result<&Array> {
        self.refuse_deallocated().map(|()| self.array())
    }

    /// The graph behind this array has grown so far that it should be submitted.
    pub fn is_due(&self) -> bool {
        !self.traced
            && (self.depth.load(Ordering::Relaxed) >= max_depth(self.device)
                || self.held.load(Ordering::Relaxed) >= MAX_HELD)
    }

    /// Keeps computed elements in rows as long as the array lives; gives their address and number of bytes. The first
    /// ones given are kept.
    pub fn pin(&self, rows: Array) -> Result<(usize, usize)> {
        let buffer = self.pinned.get_or_init(|| Buffer::new(rows));
        let _lock = mlx::graph_lock();
        // SAFETY: computed by the caller's word.
        let bytes = unsafe { mlx::bytes(&buffer.0) };
        let bytes = bytes.ok_or_else(|| Error::invalid("the array is not laid out in rows"))?;
        Ok((bytes.as_ptr() as usize, bytes.len()))
    }

    /// Whether nothing has had it computed yet.
    pub fn is_unsubmitted(&self) -> bool {
        self.depth.load(Ordering::Relaxed) > 0
    }

    pub fn mark_submitted(&self) {
        self.depth.store(0, Ordering::Relaxed);
        self.held.store(0, Ordering::Relaxed);
    }

    pub fn signature(&self) -> Signature {
        match &self.small {
            Some(small) => (small.layout.shape.to_vec(), small.layout.dtype),
            None => (self.array().shape().to_vec(), mlx::dtype(self.array())),
        }
    }
}

/// The term `%EMLX.Array{}` of a handle.
pub struct ArrayTerm(pub ResourceArc<Handle>);

impl ArrayTerm {
    /// Whether the term holds more than the reference.
    pub fn has_weight(&self) -> bool {
        weight::is_felt(&self.0)
    }
}

impl Encoder for ArrayTerm {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let keys = [
            rustler::types::atom::__struct__().to_term(env),
            atoms::reference().to_term(env),
            atoms::weight().to_term(env),
        ];
        let values = [
            atoms::array_module().to_term(env),
            self.0.encode(env),
            match self.0.is_traced() {
                true => rustler::types::atom::nil().encode(env),
                false => weight::term(env, &self.0),
            },
        ];
        Term::map_from_term_arrays(env, &keys, &values).expect("three distinct keys")
    }
}

mod atoms {
    rustler::atoms! {
        array_module = "Elixir.EMLX.Array",
        emlx_array_gone,
        reference = "ref",
        weight,
    }
}

/// Refuses a result beyond the memory limit. Views are counted as if they were copies: MLX ends the process where more
/// elements than fit 32 bits are reduced, which no memory would hold.
pub fn check_size(array: &Array) -> Result<()> {
    let dtype = mlx::dtype(array);
    let bytes = byte_size(array.shape().iter().map(|d| i64::from(*d)), dtype);
    mlx::check_bytes(bytes.unwrap_or(u128::MAX))
}

pub fn byte_size(shape: impl Iterator<Item = i64>, dtype: Dtype) -> Option<u128> {
    shape
        .map(|size| u128::try_from(size).ok())
        .try_fold(dtype.size() as u128, |n, size| n.checked_mul(size?))
}

/// A shape as MLX holds it.
pub fn shape_of(shape: &[i64]) -> Result<Vec<i32>> {
    shape
        .iter()
        .map(|size| match i32::try_from(*size) {
            Ok(size) if size >= 0 => Ok(size),
            _ => Err(Error::invalid(format!(
                "shape {shape:?} has a size outside 0..2147483647"
            ))),
        })
        .collect()
}

/// Copies a binary in.
pub fn from_binary(
    data: &[u8],
    shape: &[i64],
    dtype: Dtype,
    device: Device,
    stream: &Stream,
) -> Result<Handle> {
    let bytes = byte_size(shape.iter().copied(), dtype);
    if bytes != Some(data.len() as u128) {
        return Err(Reason::BinarySize {
            shape: shape.to_vec(),
            dtype: dtype.name(),
            expected: bytes.map_or_else(|| "an impossible number of".into(), |b| b.to_string()),
            found: data.len(),
        }
        .into());
    }
    if device == Device::Gpu && dtype == Dtype::F64 {
        return Err(Error::invalid(
            "f64 is not supported on the GPU; use f32, or device: :cpu",
        ));
    }
    let shape = shape_of(shape)?;
    if let Some(layout) = Layout::of(&shape, dtype) {
        return Ok(Handle::small(Small::new(layout, data), stream.clone()));
    }
    mlx::check_bytes(data.len() as u128)?;
    let array = mlx::from_bytes(data, &shape, dtype)?;
    Ok(Handle::ready(array, device, stream.clone(), Vec::new()))
}

/// Copies from an address of this process.
///
/// # Safety
/// As many bytes as the shape and type say can be read there while the call runs.
pub unsafe fn from_address(
    address: usize,
    shape: &[i64],
    dtype: Dtype,
    device: Device,
    stream: &Stream,
) -> Result<Handle> {
    let bytes = byte_size(shape.iter().copied(), dtype).and_then(|n| usize::try_from(n).ok());
    let bytes = bytes.filter(|n| *n <= isize::MAX as usize);
    let (false, Some(bytes)) = (address == 0, bytes) else {
        return Err(Error::invalid(format!(
            "an array of shape {shape:?} cannot lie at address {address}"
        )));
    };
    let data = std::slice::from_raw_parts(address as *const u8, bytes);
    from_binary(data, shape, dtype, device, stream)
}

/// The bytes of a computed array, in a form that a BEAM binary can refer to without copying.
pub struct Buffer(ManuallyDrop<Array>);

// SAFETY: as for `Handle`; nobody else has a handle of this array.
unsafe impl Sync for Buffer {}
unsafe impl Send for Buffer {}
impl std::panic::RefUnwindSafe for Buffer {}

#[rustler::resource_impl]
impl Resource for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: dropped once, here.
        mlx::release(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

impl Buffer {
    /// `array` is computed, in row-major order and ours alone.
    pub fn new(array: Array) -> Buffer {
        Buffer(ManuallyDrop::new(array))
    }
}

/// As many bytes in front of a binary's memory the VM may read: for an integer of less than 64 bits its compiled code
/// loads the 8 bytes that end with it. In front of the VM's own binaries stands their header.
pub const BYTES_IN_FRONT: usize = 8;
/// The smallest page of the systems that this library runs on.
const PAGE: usize = 1 << 12;

/// A buffer as a binary term that keeps it alive, or a copy of it where the memory in front of it may belong to nobody,
/// as in front of a GPU's buffers.
pub enum BinaryTerm {
    Buffer(ResourceArc<Buffer>, &'static [u8]),
    /// The elements of a small array, which are copied.
    Small(ResourceArc<Handle>),
}

impl BinaryTerm {
    pub fn new(buffer: Buffer) -> Result<BinaryTerm> {
        Self::submitted(buffer, &mlx::graph_lock())
    }

    /// The same for one that has been submitted, to be read when it is computed.
    pub fn submitted(buffer: Buffer, _lock: &mlx::GraphLock) -> Result<BinaryTerm> {
        // SAFETY: computed before it is read, by the caller's word; the slice lives as long as the resource beside it.
        let bytes = unsafe { mlx::bytes(&buffer.0) };
        let bytes = bytes.ok_or_else(|| Error::invalid("the array is not laid out in rows"))?;
        Ok(BinaryTerm::Buffer(ResourceArc::new(buffer), bytes))
    }
}

/// Whether the CPU has computed these arrays and none of them can have failed: waiting for them then takes no queue.
pub fn are_there(arrays: &[ResourceArc<Handle>]) -> bool {
    let is_on_cpu = |array: &ResourceArc<Handle>| array.device == Device::Cpu;
    if !arrays.iter().all(is_on_cpu) || !outcomes_of(arrays.iter().map(|a| &**a)).is_empty() {
        return false;
    }
    let mut others = arrays.iter().filter(|array| array.small.is_none());
    if others.clone().next().is_none() {
        return true;
    }
    mlx::try_graph_lock()
        .is_some_and(|lock| others.all(|array| mlx::is_available(array.array(), &lock)))
}

/// The array's bytes where they are already computed, in rows and in the CPU's memory: reading them then takes no
/// queue.
pub fn read_now(handle: &ResourceArc<Handle>) -> Result<Option<BinaryTerm>> {
    if handle.small.is_some() {
        handle.refuse_deallocated()?;
        return Ok(Some(BinaryTerm::Small(handle.clone())));
    }
    let outcomes = outcomes_of([&**handle]);
    check_outcomes(&outcomes)?;
    if handle.device != Device::Cpu || !outcomes.is_empty() {
        return Ok(None);
    }
    let Some(lock) = mlx::try_graph_lock() else {
        return Ok(None);
    };
    if !mlx::is_available(handle.live()?, &lock) {
        return Ok(None);
    }
    let buffer = Buffer::new(mlx::share(handle.array())?);
    // SAFETY: available, by the check above; the slice lives as long as the resource beside it.
    let bytes = unsafe { mlx::bytes(&buffer.0) };
    drop(lock);
    Ok(bytes.map(|bytes| BinaryTerm::Buffer(ResourceArc::new(buffer), bytes)))
}

impl Encoder for BinaryTerm {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let copied = |bytes: &[u8]| {
            let mut copy = NewBinary::new(env, bytes.len());
            copy.copy_from_slice(bytes);
            copy.into()
        };
        match self {
            BinaryTerm::Small(handle) => copied(handle.small.as_ref().map_or(&[], Small::bytes)),
            BinaryTerm::Buffer(_, bytes)
                if !bytes.is_empty() && bytes.as_ptr() as usize % PAGE < BYTES_IN_FRONT =>
            {
                copied(bytes)
            }
            // SAFETY: the slice belongs to the buffer that the resource keeps.
            BinaryTerm::Buffer(buffer, bytes) => {
                unsafe { buffer.make_binary_unsafe(env, |_| bytes) }.to_term(env)
            }
        }
    }
}
