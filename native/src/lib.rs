//! The border between the BEAM and MLX: the NIF functions of `EMLX.Native`, and nothing else.
//!
//! Every function takes plain terms and decodes them here, so that a bad one becomes an error that says what was expected
//! instead of a bare ArgumentError. `{:ok, value}` or `{:error, map}` comes back; no panic crosses.

mod array;
mod base;
mod handle;
mod kernels;
mod mlx;
mod nif;
#[cfg(test)]
mod no_vm;
mod op;
mod pace;
mod program;
mod queue;
mod weight;

use base::{device, dtype, error};

use array::{outcomes_of, ArrayTerm, BinaryTerm, Handle, Outcome};
use device::Device;
use dtype::Dtype;
use error::{Error, Reason, Result, Signature};
use handle::deallocate;
use handle::safetensors as file;
use mlx_rs::Array;
use op::{Applied, Op};
use program::run::Run;
use program::types::Types;
use program::{Inputs, Program};
use queue::{guard, Done, Job, Pushed, Queue, Reply, Running, Shared, Suspended};
use rustler::sys::ErlNifTerm;
use rustler::{Binary, Decoder, Encoder, Env, ListIterator, ResourceArc, Term, TermType};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

rustler::init!("Elixir.EMLX.Native", load = load);

fn load(_env: Env, _info: Term) -> bool {
    mlx::init();
    mlx::leave_at_exit(queue::stop_all);
    true
}

mod atoms {
    rustler::atoms! { ok, error, wait, check, queued, traced, trace, nil }
}

/// What a function gives back: a value, or an error as a map.
struct Answer<T>(Result<T>);

impl<T: Encoder> Encoder for Answer<T> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match &self.0 {
            Ok(value) => (atoms::ok(), value).encode(env),
            Err(error) => (atoms::error(), error).encode(env),
        }
    }
}

// ---- decoding ----

/// The term as text, cut to a length that an error message can carry.
fn shown(term: Term) -> String {
    let text = format!("{term:?}");
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// How deep lists, tuples and maps may stand in one another in what is decoded as a whole.
const MAX_NESTING: usize = 32;

/// Whether every list in a term ends in []. Decoding one that does not panics.
fn is_proper(term: Term) -> bool {
    is_proper_within(term, MAX_NESTING)
}

fn is_proper_within(term: Term, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let is_proper = |term| is_proper_within(term, depth);
    match term.get_type() {
        TermType::List => {
            term.list_length().is_ok()
                && term
                    .decode::<ListIterator>()
                    .is_ok_and(|mut elements| elements.all(is_proper))
        }
        TermType::Tuple => {
            rustler::types::tuple::get_tuple(term).is_ok_and(|all| all.into_iter().all(is_proper))
        }
        TermType::Map => rustler::types::MapIterator::new(term)
            .is_none_or(|mut pairs| pairs.all(|(_, value)| is_proper(value))),
        _ => true,
    }
}

fn argument<'a, T: Decoder<'a>>(
    term: Term<'a>,
    position: usize,
    expected: &'static str,
) -> Result<T> {
    let decoded = if is_proper(term) {
        term.decode()
    } else {
        Err(rustler::Error::BadArg)
    };
    decoded.map_err(|_| {
        Reason::BadTerm {
            position,
            expected,
            found: shown(term),
        }
        .into()
    })
}

const AN_ARRAY: &str = "an array (the ref of an %EMLX.Array{})";

fn decode_array(term: Term, position: usize) -> Result<ResourceArc<Handle>> {
    argument(term, position, AN_ARRAY)
}

/// A list of arrays, where nil stands for one that is absent. They live as long as the call whose arguments they are.
fn decode_inputs<'a>(term: Term<'a>) -> Result<SmallVec<[Option<&'a Handle>; 4]>> {
    // Every call of an operation comes here: one pass, which looks at the list's end before it begins.
    let list: ListIterator = match term.list_length() {
        Ok(_) => term
            .decode()
            .unwrap_or_else(|_| unreachable!("it has a length")),
        Err(_) => argument(term, 1, "a list of arrays")?,
    };
    list.enumerate()
        .map(|(position, term)| {
            if term.is_atom() && atoms::nil() == term {
                return Ok(None);
            }
            match term.try_get_resource() {
                Some(handle) => Ok(Some(handle)),
                None => argument(term, position, AN_ARRAY).map(Some),
            }
        })
        .collect()
}

/// Arrays that have or will have elements.
fn decode_arrays(term: Term) -> Result<Vec<ResourceArc<Handle>>> {
    decode_each(term, decode_valued)
}

/// The same with those that stand for a traced function's values, and those that were given up.
fn decode_handles(term: Term) -> Result<Vec<ResourceArc<Handle>>> {
    decode_each(term, decode_array)
}

fn decode_each(
    term: Term,
    decode: fn(Term, usize) -> Result<ResourceArc<Handle>>,
) -> Result<Vec<ResourceArc<Handle>>> {
    let list: Vec<Term> = argument(term, 0, "a list of arrays")?;
    list.into_iter()
        .enumerate()
        .map(|(position, term)| decode(term, position))
        .collect()
}

/// What [`decode_target`] looks at.
fn handles(arrays: &[ResourceArc<Handle>]) -> impl Iterator<Item = &Handle> {
    arrays.iter().map(|array| &**array)
}

fn decode_valued(term: Term, position: usize) -> Result<ResourceArc<Handle>> {
    let array = decode_valued_or_deallocated(term, position)?;
    array.refuse_deallocated()?;
    Ok(array)
}

fn decode_valued_or_deallocated(term: Term, position: usize) -> Result<ResourceArc<Handle>> {
    let array = decode_array(term, position)?;
    array.refuse_traced()?;
    Ok(array)
}

thread_local! {
    /// Operations without attributes by their atoms, as they come up.
    static BARE: RefCell<HashMap<ErlNifTerm, Op, BuildHasherDefault<WordHasher>>> = RefCell::default();
}

/// Of the words that the VM refers to terms with: numbers of atoms and addresses, which one multiplication spreads.
#[derive(Default)]
struct WordHasher(u64);

impl Hasher for WordHasher {
    // The low bits of words are the same, and so are those of products.
    fn write_usize(&mut self, word: usize) {
        self.0 = (word as u64)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(32);
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a term is hashed as one usize")
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Every eager call comes here, and the derive compares an operation's name with one name after the other.
fn decode_op(term: Term) -> Result<Op> {
    if !term.is_atom() {
        return decode_any_op(term);
    }
    let atom = term.as_c_arg();
    if let Some(op) = BARE.with_borrow(|bare| bare.get(&atom).cloned()) {
        return Ok(op);
    }
    let op = decode_any_op(term)?;
    BARE.with_borrow_mut(|bare| bare.insert(atom, op.clone()));
    Ok(op)
}

fn decode_any_op(term: Term) -> Result<Op> {
    if !is_proper(term) {
        return Err(Error::invalid(format!("improper list in {}", shown(term))));
    }
    term.decode::<Op>().map_err(|error| match error {
        // An attribute is missing or of the wrong type; the derive says which.
        rustler::Error::RaiseTerm(reason) => {
            let env = term.get_env();
            let text: String = reason.encode(env).decode().unwrap_or_default();
            Error::invalid(attribute_refused(term, &text))
        }
        _ => Reason::UnknownOp(shown(term)).into(),
    })
}

/// What is wrong with an operation's attributes, from the derive's words, which have the attribute's name in quotes.
fn attribute_refused(term: Term, words: &str) -> String {
    let value = words.split('\'').nth(1).and_then(|name| {
        let elements = rustler::types::tuple::get_tuple(term).ok()?;
        let key = rustler::types::Atom::from_str(term.get_env(), name).ok()?;
        Some((name, elements.get(1)?.map_get(key).ok()))
    });
    match value {
        Some((name, Some(value))) => {
            let why = if name != "value" && is_beyond_i32(value) {
                ", MLX counts with 32 bits, up to 2147483647"
            } else {
                ""
            };
            format!("the attribute {name} cannot be {}{why}", shown(value))
        }
        Some((name, None)) => format!("the attribute {name} is missing in {}", shown(term)),
        None => format!("{words} in {}", shown(term)),
    }
}

/// Whether a term is an integer, or a list with one, that takes more than 32 bits.
fn is_beyond_i32(term: Term) -> bool {
    match term.get_type() {
        TermType::Integer => term.decode::<i32>().is_err(),
        TermType::List => term
            .decode::<ListIterator>()
            .is_ok_and(|mut list| list.any(is_beyond_i32)),
        _ => false,
    }
}

/// The operation's name as far as the term shows it.
fn op_name(term: Term) -> String {
    let head = rustler::types::tuple::get_tuple(term)
        .ok()
        .and_then(|elements| elements.first().copied())
        .unwrap_or(term);
    head.atom_to_string().unwrap_or_else(|_| "apply".into())
}

/// Where a call goes: a device's default queue or one of the caller's own.
enum Target {
    Default(&'static Arc<Shared>),
    Own(ResourceArc<Queue>),
    /// A device's default queue, for a function that is being traced: what grows large is recorded though its inputs are known.
    Trace(&'static Arc<Shared>),
}

impl Target {
    /// The queue, where it is one of the caller's.
    fn own(&self) -> Option<ResourceArc<Queue>> {
        match self {
            Target::Default(_) | Target::Trace(_) => None,
            Target::Own(queue) => Some(queue.clone()),
        }
    }
}

impl std::ops::Deref for Target {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        match self {
            Target::Default(shared) | Target::Trace(shared) => shared,
            Target::Own(queue) => &queue.0,
        }
    }
}

/// nil is the device of the inputs (the GPU if any is there), an atom names a device, anything else is a queue.
fn decode_target<'a>(
    term: Term,
    position: usize,
    inputs: impl IntoIterator<Item = &'a Handle>,
) -> Result<Target> {
    if term.is_atom() {
        let device = if atoms::nil() == term {
            let on_gpu = inputs.into_iter().any(|input| input.device == Device::Gpu);
            if on_gpu {
                Device::Gpu
            } else {
                Device::Cpu
            }
        } else {
            argument(term, position, ":cpu, :gpu or a queue")?
        };
        return Ok(Target::Default(Shared::default(device)?));
    }
    if term.is_tuple() {
        let (tag, device): (rustler::Atom, Device) =
            argument(term, position, "{:trace, :cpu | :gpu}")?;
        if tag != atoms::trace() {
            return Err(Reason::BadTerm {
                position,
                expected: "{:trace, :cpu | :gpu}",
                found: shown(term),
            }
            .into());
        }
        return Ok(Target::Trace(Shared::default(device)?));
    }
    argument(term, position, ":cpu, :gpu or a queue").map(Target::Own)
}

// ---- building ----

/// The result of an operation: its arrays, and whether the caller should let the queue catch up.
enum AppliedTerm {
    Ready(SmallVec<[ArrayTerm; 1]>),
    Behind(SmallVec<[ArrayTerm; 1]>),
    Traced(SmallVec<[ArrayTerm; 1]>),
}

impl Encoder for AppliedTerm {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let (tag, arrays) = match self {
            AppliedTerm::Ready(arrays) => match arrays.as_slice() {
                [one] if !one.has_weight() => return one.0.encode(env),
                _ => (atoms::ok(), arrays),
            },
            AppliedTerm::Behind(arrays) => (atoms::wait(), arrays),
            AppliedTerm::Traced(arrays) => (atoms::traced(), arrays),
        };
        match arrays.as_slice() {
            [one] => (tag, one).encode(env),
            many => (tag, many).encode(env),
        }
    }
}

/// Most bytes of a result that a traced function takes as a constant, where everything it is made of is known.
const MAX_FOLDED: usize = 1 << 20;

/// A bare reference for the one array of an operation, so that the most frequent answer is the cheapest to make and to read;
/// else `{:ok | :wait, array | [array]}` or `{:error, map}`. In debugging modes, answers that are no error are
/// `{:check, answer}`.
#[rustler::nif]
fn apply<'a>(env: Env<'a>, op: Term<'a>, inputs: Term<'a>, target: Term<'a>) -> Term<'a> {
    match guard("", || apply_op(op, inputs, target)) {
        Ok(applied) if CHECKS_RESULTS.load(Ordering::Relaxed) => {
            (atoms::check(), applied).encode(env)
        }
        Ok(applied) => applied.encode(env),
        Err(error) => (atoms::error(), error.of(&op_name(op))).encode(env),
    }
}

/// Whether `EMLX.Debug` looks at what operations give.
static CHECKS_RESULTS: AtomicBool = AtomicBool::new(false);

/// Has `apply` give `{:check, result}` from now on, or its result alone.
#[rustler::nif]
fn check_results(on: Term) -> Answer<Done> {
    Answer(guard("check_results", || {
        CHECKS_RESULTS.store(argument(on, 0, "a boolean")?, Ordering::Relaxed);
        Ok(Done)
    }))
}

fn apply_op(op: Term, inputs: Term, target: Term) -> Result<AppliedTerm> {
    let op = decode_op(op)?;
    let inputs = decode_inputs(inputs)?;
    let target = decode_target(target, 2, inputs.iter().flatten().copied())?;
    let describe = |error: Error| {
        let signatures = inputs
            .iter()
            .map(|input| input.as_ref().map(|handle| handle.signature()))
            .collect();
        error.with_inputs(signatures, Some(target.device))
    };
    let marked = deallocate::marked();
    let brought = bring(&inputs, target.device).map_err(describe)?;
    let mut arrays: SmallVec<[Option<&Array>; 4]> = SmallVec::new();
    for input in &inputs {
        let array = input.map(Handle::live).transpose();
        arrays.push(array.map_err(describe)?);
    }
    for (position, array) in &brought {
        arrays[*position] = Some(array);
    }
    let Applied {
        outputs,
        mut crossed,
    } = program::build(&op, &arrays, target.device, &target.stream).map_err(describe)?;
    if deallocate::was_marked_since(marked) {
        array::refuse_deallocated(inputs.iter().flatten().copied()).map_err(describe)?;
    }
    let mut outcomes = outcomes_of(inputs.iter().flatten().copied());
    if target.device == Device::Gpu {
        for input in inputs.iter().flatten() {
            if input.device == Device::Cpu && input.is_unsubmitted() {
                crossed.add(std::slice::from_ref(input.array()))?;
            }
        }
    }
    if op.can_fail_late() || !crossed.is_empty() {
        let outcome = Outcome::of_call(target.device, &target.stream)?;
        outcomes.push(Arc::new(outcome.crossing(crossed.take())?));
    }
    let large = matches!(target, Target::Trace(_))
        && outputs.iter().any(|array| array.nbytes() > MAX_FOLDED);
    let handles: SmallVec<[ResourceArc<Handle>; 1]> = outputs
        .into_iter()
        .map(|array| {
            let mut handle = Handle::node(
                array,
                target.device,
                target.stream.clone(),
                &inputs,
                outcomes.clone(),
            );
            if large {
                handle.trace();
            }
            ResourceArc::new(handle)
        })
        .collect();
    if handles.iter().any(|handle| handle.is_traced()) {
        return Ok(AppliedTerm::Traced(
            handles.into_iter().map(ArrayTerm).collect(),
        ));
    }
    let is_due = handles.iter().any(|handle| handle.is_due());
    let behind = is_due && is_behind(&handles, &target)?;
    let terms = handles.into_iter().map(ArrayTerm).collect();
    Ok(if behind {
        AppliedTerm::Behind(terms)
    } else {
        AppliedTerm::Ready(terms)
    })
}

/// Submits arrays for whose computation nobody waits. Whether the caller should let the queue catch up.
fn is_behind(arrays: &[ResourceArc<Handle>], target: &Arc<Shared>) -> Result<bool> {
    arrays.iter().for_each(|array| array.mark_submitted());
    let job = Job::Eval {
        arrays: arrays.to_vec(),
        reply: None,
    };
    Ok(matches!(target.push(job)?, Pushed::Behind))
}

/// Copies of the GPU's arrays for the CPU, by their positions: it must not read what the GPU computes from.
fn bring(inputs: &[Option<&Handle>], device: Device) -> Result<SmallVec<[(usize, Array); 2]>> {
    let mut copies = SmallVec::new();
    if device == Device::Gpu || cfg!(target_os = "macos") {
        return Ok(copies);
    }
    for (position, input) in inputs.iter().enumerate() {
        if let Some(input) = input.filter(|input| input.device == Device::Gpu) {
            let copy = mlx::copy_apart(input.live()?, Device::Gpu.stream()?)?;
            array::refuse_deallocated([input])?;
            copies.push((position, copy));
        }
    }
    Ok(copies)
}

/// The same for the inputs of a program.
fn bring_all(
    inputs: Vec<ResourceArc<Handle>>,
    target: &Shared,
) -> Result<Vec<ResourceArc<Handle>>> {
    let handles: Vec<Option<&Handle>> = inputs.iter().map(|input| Some(&**input)).collect();
    let copies = bring(&handles, target.device)?;
    if copies.is_empty() {
        return Ok(inputs);
    }
    let mut brought = inputs.clone();
    for (position, copy) in copies {
        let outcomes = outcomes_of(handles[position]);
        let given = &handles[position..=position];
        let stream = target.stream.clone();
        brought[position] =
            ResourceArc::new(Handle::node(copy, target.device, stream, given, outcomes));
    }
    Ok(brought)
}

#[rustler::nif]
fn from_binary<'a>(
    data: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    target: Term<'a>,
) -> Answer<ArrayTerm> {
    Answer(make_array(data, shape, dtype, target))
}

/// The same for binaries that take long to copy.
#[rustler::nif(schedule = "DirtyCpu")]
fn from_large_binary<'a>(
    data: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    target: Term<'a>,
) -> Answer<ArrayTerm> {
    Answer(make_array(data, shape, dtype, target))
}

/// A shape and, as the next argument, a type.
fn decode_layout(shape: Term, dtype: Term, position: usize) -> Result<(Vec<i64>, Dtype)> {
    let shape = argument(shape, position, "a list of integers")?;
    let dtype = argument(dtype, position + 1, "a type such as :f32")?;
    Ok((shape, dtype))
}

/// What an array is made as, behind the argument that says of what: its shape, its type and where.
fn decode_made(shape: Term, dtype: Term, target: Term) -> Result<(Vec<i64>, Dtype, Target)> {
    let (shape, dtype) = decode_layout(shape, dtype, 1)?;
    Ok((shape, dtype, decode_target(target, 3, [])?))
}

fn make_array(data: Term, shape: Term, dtype: Term, target: Term) -> Result<ArrayTerm> {
    guard("from_binary", || {
        let data: Binary = argument(data, 0, "a binary")?;
        let (shape, dtype, target) = decode_made(shape, dtype, target)?;
        let handle = array::from_binary(&data, &shape, dtype, target.device, &target.stream)?;
        Ok(ArrayTerm(ResourceArc::new(handle)))
    })
}

// ---- looking ----

/// `{shape, dtype, device}`.
#[rustler::nif]
fn info(array: Term) -> Answer<(Vec<i32>, Dtype, Device)> {
    Answer(guard("info", || {
        let handle = decode_array(array, 0)?;
        let (shape, dtype) = handle.signature();
        Ok((shape, dtype, handle.device))
    }))
}

/// How far apart neighbours on each axis lie, in elements. Known once the array is computed.
#[rustler::nif(schedule = "DirtyCpu")]
fn strides(array: Term) -> Answer<Vec<i64>> {
    Answer(guard("strides", || {
        let handle = decode_valued(array, 0)?;
        let _lock = mlx::graph_lock();
        // SAFETY: live, and nobody changes it while the lock is held.
        Ok(unsafe { mlx::strides(handle.array()) })
    }))
}

/// An array that stands for a value of a function that is being traced.
#[rustler::nif]
fn placeholder<'a>(shape: Term<'a>, dtype: Term<'a>, device: Term<'a>) -> Answer<ArrayTerm> {
    Answer(guard("placeholder", || {
        let (shape, dtype) = decode_layout(shape, dtype, 0)?;
        let device: Device = argument(device, 2, ":cpu or :gpu")?;
        let stream = device.stream()?;
        let array = mlx::zeros(&array::shape_of(&shape)?, dtype, stream)?;
        array::check_size(&array)?;
        let handle = Handle::placeholder(array, device, stream.clone());
        Ok(ArrayTerm(ResourceArc::new(handle)))
    }))
}

/// `{written_for, loaded}` where the libmlx that is loaded is of another version than the one whose private parts are known, else nil.
#[rustler::nif]
fn unknown_mlx() -> Answer<Option<(String, String)>> {
    Answer(guard("unknown_mlx", || Ok(mlx::unknown_version().cloned())))
}

/// Every operation as a map: its name, its attributes, and what is true of it (op/traits.rs).
#[rustler::nif]
fn op_table(env: Env) -> Answer<Vec<Term>> {
    Answer(guard("op_table", || {
        op::attributes::table(env).map_err(|error| Error::invalid(format!("{error:?}")))
    }))
}

/// Whether an array stands for a value of a function that is being traced.
#[rustler::nif]
fn is_traced(array: Term) -> Answer<bool> {
    Answer(guard("is_traced", || {
        decode_array(array, 0).map(|array| array.is_traced())
    }))
}

/// Whether products of f32 on NVIDIA GPUs may round their operands to 10 bits (TF32), for the speed of it. MLX reads this once.
#[rustler::nif]
fn allow_tf32(allowed: Term) -> Answer<Done> {
    Answer(guard("allow_tf32", || {
        let allowed: bool = argument(allowed, 0, "a boolean")?;
        let value = if allowed { "1" } else { "0" };
        mlx::set_default_variable("MLX_ENABLE_TF32", value).map(|()| Done)
    }))
}

#[rustler::nif]
fn device_available(device: Term) -> Answer<bool> {
    Answer(guard("device_available", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        Ok(device.is_available())
    }))
}

/// Why a device is not there, nil where it is.
#[rustler::nif(schedule = "DirtyIo")]
fn device_absence(device: Term) -> Answer<Option<String>> {
    Answer(guard("device_absence", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        Ok((!device.is_available()).then(|| device.absence()))
    }))
}

impl Encoder for mlx::InfoValue {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            mlx::InfoValue::Text(text) => text.encode(env),
            mlx::InfoValue::Size(size) => size.encode(env),
        }
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn device_info(device: Term) -> Answer<Vec<(String, mlx::InfoValue)>> {
    Answer(guard("device_info", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        device.require()?;
        mlx::device_info(device)
    }))
}

#[derive(rustler::NifUnitEnum)]
enum Deallocated {
    Ok,
    AlreadyDeallocated,
}

/// Waits for whoever walks the graph.
#[rustler::nif(schedule = "DirtyIo", name = "deallocate")]
fn deallocate_array(array: Term) -> Answer<Deallocated> {
    Answer(guard("deallocate", || {
        let handle = decode_valued_or_deallocated(array, 0)?;
        Ok(match deallocate::deallocate(&handle) {
            true => Deallocated::Ok,
            false => Deallocated::AlreadyDeallocated,
        })
    }))
}

// ---- queues ----

#[rustler::nif(schedule = "DirtyIo")]
fn queue_start(device: Term) -> Answer<ResourceArc<Queue>> {
    Answer(guard("queue_start", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        Ok(ResourceArc::new(Queue(Shared::start(device)?)))
    }))
}

#[rustler::nif]
fn queue_close(queue: Term) -> Answer<Done> {
    Answer(guard("queue_close", || {
        let queue: ResourceArc<Queue> = argument(queue, 0, "a queue")?;
        queue.0.close();
        Ok(Done)
    }))
}

/// What a queue has been given to do: `{:queued, device, bytes}` with the bytes of the arrays it is about. The answer follows by message.
struct Queued {
    device: Device,
    bytes: usize,
}

impl Queued {
    fn new<'a>(target: &Shared, arrays: impl IntoIterator<Item = &'a Handle>) -> Queued {
        let bytes = arrays.into_iter().map(|array| array.array().nbytes());
        Queued {
            device: target.device,
            bytes: bytes.sum(),
        }
    }
}

impl Encoder for Queued {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        (atoms::queued(), self.device, self.bytes).encode(env)
    }
}

/// The value at once, or later.
enum Awaited<T> {
    Now(T),
    Later(Queued),
}

impl<T: Encoder> Encoder for Awaited<T> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Awaited::Now(value) => value.encode(env),
            Awaited::Later(queued) => queued.encode(env),
        }
    }
}

/// Submits arrays. With a tag, `{tag, {:ok, :ok} | {:error, map}}` follows once they are computed, unless they are already: then `:ok`.
#[rustler::nif]
fn eval<'a>(
    env: Env<'a>,
    arrays: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Answer<Awaited<Done>> {
    Answer(guard("eval", || {
        let arrays = decode_arrays(arrays)?;
        let target = decode_target(target, 1, handles(&arrays))?;
        target.require_open()?;
        if array::are_there(&arrays) {
            return Ok(Awaited::Now(Done));
        }
        arrays.iter().for_each(|array| array.mark_submitted());
        let reply = if tag.is_atom() {
            None
        } else {
            Some(Reply::new(env.pid(), tag))
        };
        let queued = Queued::new(&target, handles(&arrays));
        target.push(Job::Eval { arrays, reply })?;
        Ok(Awaited::Later(queued))
    }))
}

/// The binary where it can be had at once; else what was queued, and `{tag, {:ok, binary} | {:error, map}}` follows.
#[rustler::nif]
fn read<'a>(
    env: Env<'a>,
    array: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Answer<Awaited<BinaryTerm>> {
    Answer(guard("to_binary", || {
        let array = decode_valued(array, 0)?;
        if let Some(binary) = array::read_now(&array)? {
            return Ok(Awaited::Now(binary));
        }
        let target = decode_target(target, 1, [&*array])?;
        let reply = Reply::new(env.pid(), tag);
        let queued = Queued::new(&target, [&*array]);
        target.push(Job::Read { array, reply })?;
        Ok(Awaited::Later(queued))
    }))
}

/// `{tag, {:ok, {address, bytes}} | {:error, map}}` follows. The address holds as long as the array lives.
#[rustler::nif]
fn pin<'a>(env: Env<'a>, array: Term<'a>, target: Term<'a>, tag: Term<'a>) -> Answer<Queued> {
    Answer(guard("to_pointer", || {
        let array = decode_valued(array, 0)?;
        let target = decode_target(target, 1, [&*array])?;
        let reply = Reply::new(env.pid(), tag);
        let queued = Queued::new(&target, [&*array]);
        target.push(Job::Pin { array, reply })?;
        Ok(queued)
    }))
}

/// Copies from an address, which the caller answers for.
#[rustler::nif(schedule = "DirtyCpu")]
fn from_address<'a>(
    address: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    target: Term<'a>,
) -> Answer<ArrayTerm> {
    Answer(guard("from_pointer", || {
        let address: usize = argument(address, 0, "an address")?;
        let (shape, dtype, target) = decode_made(shape, dtype, target)?;
        // SAFETY: the caller's word, as for every pointer that Nx passes around.
        let handle =
            unsafe { array::from_address(address, &shape, dtype, target.device, &target.stream)? };
        Ok(ArrayTerm(ResourceArc::new(handle)))
    }))
}

// ---- programs ----

fn decode_program(term: Term) -> Result<ResourceArc<Program>> {
    argument(term, 0, "a program")
}

/// `inputs` is a count or a list of `{name, shape, dtype}`, `constants` a list of arrays; the rest as `EMLX.Program.new/4` has it.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_new<'a>(
    inputs: Term<'a>,
    constants: Term<'a>,
    instructions: Term<'a>,
    outputs: Term<'a>,
    opts: Term<'a>,
) -> Answer<ResourceArc<Program>> {
    Answer(guard("program", || {
        let opts: ProgramOpts = argument(
            opts,
            4,
            "%{output_names: nil | [name], fuse: boolean, run_ahead: nil | steps}",
        )?;
        let inputs = nif::decode_program::inputs(inputs)?;
        // Its own: they outlive their deallocation elsewhere, and the compile cache learns by the handles of whoever
        // made them what is still in use.
        let constants = handles(&decode_arrays(constants)?)
            .map(|constant| constant.another().map(ResourceArc::new))
            .collect::<Result<Vec<_>>>()?;
        let count = inputs.len().saturating_add(constants.len());
        let body = nif::decode_program::top(count, instructions, outputs)?;
        Program::new(inputs, constants, body, opts.output_names, opts.fuse)
            .map(|program| ResourceArc::new(program.running_ahead(opts.run_ahead)))
    }))
}

#[derive(rustler::NifMap)]
struct ProgramOpts {
    output_names: Option<Vec<String>>,
    fuse: bool,
    run_ahead: Option<usize>,
}

/// What the Elixir side keeps of a program.
#[derive(rustler::NifMap)]
#[rustler(encode)]
struct ProgramInfo {
    inputs: InputsTerm,
    output_names: Option<Vec<String>>,
    constants: usize,
    calls: Vec<u64>,
    size: usize,
    is_straight: bool,
}

enum InputsTerm {
    Any(usize),
    Named(Vec<(String, Vec<i32>, Dtype)>),
}

impl Encoder for InputsTerm {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            InputsTerm::Any(count) => count.encode(env),
            InputsTerm::Named(inputs) => inputs.encode(env),
        }
    }
}

#[rustler::nif]
fn program_info(program: Term) -> Answer<ProgramInfo> {
    Answer(guard("program", || {
        let program = decode_program(program)?;
        let named = |input: &program::Input| (input.name.clone(), input.shape.clone(), input.dtype);
        Ok(ProgramInfo {
            inputs: match &program.inputs {
                Inputs::Any(count) => InputsTerm::Any(*count),
                Inputs::Named(inputs) => InputsTerm::Named(inputs.iter().map(named).collect()),
            },
            output_names: program.output_names.clone(),
            constants: program.constants.len(),
            calls: program.calls.clone(),
            size: program.size,
            is_straight: program.is_straight,
        })
    }))
}

/// Shape and type of each output, nil for each of a program whose inputs may have any.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_outputs<'a>(program: Term<'a>, target: Term<'a>) -> Answer<Vec<Option<Signature>>> {
    Answer(guard("outputs", || {
        let program = decode_program(program)?;
        let target = decode_target(target, 1, handles(&program.constants))?;
        Types::of_outputs(&program, target.device, &target.stream)
    }))
}

/// A program as text.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_describe<'a>(program: Term<'a>, target: Term<'a>) -> Answer<String> {
    Answer(guard("inspect", || {
        let program = decode_program(program)?;
        let target = decode_target(target, 1, handles(&program.constants))?;
        program::describe::describe(&program, target.device, &target.stream)
    }))
}

/// `{tag, {:ok, :ok} | {:error, map}}` follows. `names` are the constants'.
#[rustler::nif]
fn program_save<'a>(
    env: Env<'a>,
    program: Term<'a>,
    path: Term<'a>,
    names: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Answer<Queued> {
    Answer(guard("save", || {
        let program = decode_program(program)?;
        let path: String = argument(path, 1, "a path")?;
        let names: Vec<String> = argument(names, 2, "a list of names")?;
        let target = decode_target(target, 3, handles(&program.constants))?;
        let reply = Reply::new(env.pid(), tag);
        let queued = Queued::new(&target, handles(&program.constants));
        target.push(Job::SaveProgram {
            path,
            program,
            names,
            reply,
        })?;
        Ok(queued)
    }))
}

#[rustler::nif(schedule = "DirtyIo")]
fn program_load<'a>(path: Term<'a>, target: Term<'a>) -> Answer<ResourceArc<Program>> {
    Answer(guard("load", || {
        let path: String = argument(path, 0, "a path")?;
        let target = decode_target(target, 1, [])?;
        program::file::load(&path, target.device, &target.stream).map(ResourceArc::new)
    }))
}

/// The outputs of a run at once, and whether the caller should let the queue catch up; or later, by message.
enum Outputs {
    Ready(Vec<ArrayTerm>),
    Behind(Vec<ArrayTerm>),
    Later,
}

impl Encoder for Outputs {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Outputs::Ready(arrays) => (atoms::ok(), arrays).encode(env),
            Outputs::Behind(arrays) => (atoms::wait(), arrays).encode(env),
            Outputs::Later => Done.encode(env),
        }
    }
}

/// `{:ok, [array]}`, or `{:wait, [array]}` where the queue is behind. A program with branches, loops or calls gives `:ok`; then
/// `{tag, {:call, id, [array], suspended}}` may come, which `program_resume` answers, and `{tag, {:ok, [array]} | {:error, map}}`
/// comes once the outputs are submitted.
#[rustler::nif]
fn program_run<'a>(
    env: Env<'a>,
    program: Term<'a>,
    inputs: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    run_program(env, [program, inputs, target, tag])
}

/// The same for programs of so many instructions that building them takes long.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_run_dirty<'a>(
    env: Env<'a>,
    program: Term<'a>,
    inputs: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    run_program(env, [program, inputs, target, tag])
}

fn run_program<'a>(env: Env<'a>, arguments: [Term<'a>; 4]) -> Term<'a> {
    match guard("run", || start_run(env, arguments)) {
        Ok(outputs) => outputs.encode(env),
        Err(error) => (atoms::error(), error).encode(env),
    }
}

fn start_run(env: Env, [program, inputs, target, tag]: [Term; 4]) -> Result<Outputs> {
    let program = decode_program(program)?;
    let inputs = decode_arrays(inputs)?;
    program.check_inputs(&inputs)?;
    let given = handles(&inputs).chain(handles(&program.constants));
    let target = decode_target(target, 2, given)?;
    let inputs = bring_all(inputs, &target)?;
    if !program.is_straight {
        let reply = Reply::new(env.pid(), tag);
        let run = Run::new(&program, inputs, target.device, &target.stream)?;
        let running = Running::new(run, reply, target.own());
        target.push(Job::Run(Box::new(running)))?;
        return Ok(Outputs::Later);
    }
    let outputs = program::run::inline(&program, &inputs, target.device, &target.stream)?;
    let behind = is_behind(&outputs, &target)?;
    let terms = outputs.into_iter().map(ArrayTerm).collect();
    Ok(if behind {
        Outputs::Behind(terms)
    } else {
        Outputs::Ready(terms)
    })
}

/// Answers a question of a run with arrays, or gives the run up with anything else.
#[rustler::nif]
fn program_resume<'a>(suspended: Term<'a>, answer: Term<'a>) -> Answer<Done> {
    Answer(guard("run", || {
        let suspended: ResourceArc<Suspended> = argument(suspended, 0, "a suspended run")?;
        let mut run = suspended.take()?;
        if atoms::error() == answer {
            return Ok(Done);
        }
        let (ok, arrays): (rustler::Atom, Term) = argument(answer, 1, "{:ok, [array]} or :error")?;
        if ok != atoms::ok() {
            return Err(Error::invalid(
                "the answer is neither {:ok, [array]} nor :error",
            ));
        }
        run.answer(decode_arrays(arrays)?)?;
        suspended.queue.push(Job::Run(run))?;
        Ok(Done)
    }))
}

// ---- memory ----

#[derive(rustler::NifUnitEnum)]
enum Figure {
    Active,
    Peak,
    Cached,
    Limit,
    Graphs,
    InGraphs,
}

/// Bytes, or how many graphs there are.
#[rustler::nif]
fn memory(figure: Term) -> Answer<usize> {
    Answer(guard("memory", || {
        mlx::release_pending();
        deallocate::free_waiting();
        match argument(
            figure,
            0,
            ":active, :peak, :cached, :limit, :graphs or :in_graphs",
        )? {
            Figure::Active => mlx::active_memory(),
            Figure::Peak => mlx::peak_memory(),
            Figure::Cached => mlx::cache_memory(),
            Figure::Limit => mlx::memory_limit(),
            Figure::Graphs => Ok(program::graphs().0),
            Figure::InGraphs => Ok(program::graphs().1),
        }
    }))
}

#[derive(rustler::NifUnitEnum)]
enum Limit {
    Memory,
    Cache,
}

/// Sets a limit in bytes; gives the one before. Waits for the CPU's streams.
#[rustler::nif(schedule = "DirtyIo")]
fn set_limit<'a>(limit: Term<'a>, bytes: Term<'a>) -> Answer<usize> {
    Answer(guard("set_limit", || {
        let bytes: usize = argument(bytes, 1, "a number of bytes")?;
        match argument(limit, 0, ":memory or :cache")? {
            Limit::Memory => mlx::set_memory_limit(bytes),
            Limit::Cache => mlx::set_cache_limit(bytes),
        }
    }))
}

#[rustler::nif(schedule = "DirtyIo")]
fn clear_cache() -> Answer<Done> {
    Answer(guard("clear_cache", || {
        program::forget_all();
        deallocate::free_waiting();
        mlx::clear_cache().map(|()| Done)
    }))
}

#[rustler::nif]
fn reset_peak() -> Answer<Done> {
    Answer(guard("reset_peak", || {
        mlx::reset_peak_memory().map(|()| Done)
    }))
}

// ---- files ----

/// The arrays of a file, or those named in `only`.
#[rustler::nif(schedule = "DirtyIo")]
fn load_safetensors<'a>(
    path: Term<'a>,
    only: Term<'a>,
    target: Term<'a>,
) -> Answer<Vec<(String, ArrayTerm)>> {
    Answer(guard("load_safetensors", || {
        let path: String = argument(path, 0, "a path")?;
        let only: Option<Vec<String>> = argument(only, 1, "nil or a list of names")?;
        let target = decode_target(target, 2, [])?;
        let arrays = file::load(&path, only.as_deref())?;
        Ok(arrays
            .into_iter()
            .map(|(name, array)| {
                let stream = target.stream.clone();
                let handle = Handle::ready(array, target.device, stream, Vec::new());
                (name, ArrayTerm(ResourceArc::new(handle)))
            })
            .collect())
    }))
}

/// `entries` is a list of `{name, array}`; `{tag, {:ok, :ok} | {:error, map}}` follows.
#[rustler::nif]
fn save_safetensors<'a>(
    env: Env<'a>,
    path: Term<'a>,
    entries: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Answer<Queued> {
    Answer(guard("save_safetensors", || {
        let path: String = argument(path, 0, "a path")?;
        let list: Vec<(String, Term)> = argument(entries, 1, "a list of {name, array}")?;
        let arrays = list
            .into_iter()
            .map(|(name, array)| Ok((name, decode_valued(array, 1)?)))
            .collect::<Result<Vec<_>>>()?;
        let target = decode_target(target, 2, arrays.iter().map(|(_, array)| &**array))?;
        let reply = Reply::new(env.pid(), tag);
        let queued = Queued::new(&target, arrays.iter().map(|(_, array)| &**array));
        target.push(Job::Save {
            path,
            arrays,
            reply,
        })?;
        Ok(queued)
    }))
}
