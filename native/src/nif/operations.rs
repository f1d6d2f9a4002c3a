//! Single operations: [`apply`] records one of the table ([`Op`]) on arrays.

use super::answer::Answer;
use super::atoms;
use super::decode::{
    argument, decode_dtype, decode_inputs, decode_op, decode_target, op_name, Target,
};
use super::repeated;
use crate::base::{Device, Error, Result};
use crate::handle::array::{self, outcomes_of, ArrayTerm, Handle, Outcome};
use crate::handle::deallocate;
use crate::handle::small::Small;
use crate::mlx;
use crate::op::{self, Applied};
use crate::program;
use crate::runtime::{guard, Done, Job, Pushed, Shared};
use mlx_rs::Array;
use rustler::{Encoder, Env, ResourceArc, Term};
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// The result of an operation: its arrays, and whether the caller should let the queue catch up.
pub enum AppliedTerm {
    Ready(SmallVec<[ArrayTerm; 1]>),
    Behind(SmallVec<[ArrayTerm; 1]>),
    Traced(SmallVec<[ArrayTerm; 1]>),
    /// An operation with a cast is two of a traced function.
    Apart,
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
            AppliedTerm::Apart => return atoms::apart().encode(env),
        };
        match arrays.as_slice() {
            [one] => (tag, one).encode(env),
            many => (tag, many).encode(env),
        }
    }
}

/// Most bytes of a result that a traced function takes as a constant, where everything it is made of is known.
pub const MAX_FOLDED: usize = 1 << 20;

/// A bare reference for the one array of an operation, so that the most frequent answer is the cheapest to make and to
/// read; else `{:ok | :wait, array | [array]}` or `{:error, map}`. In debugging modes, answers that are no error are
/// `{:check, answer}`.
#[rustler::nif]
fn apply<'a>(env: Env<'a>, op: Term<'a>, inputs: Term<'a>, target: Term<'a>) -> Term<'a> {
    answer(env, op, guard("", || apply_op(op, inputs, None, target)))
}

/// The same with the operation's one result cast to a type; `:apart` while a function is traced, which takes the cast
/// as an operation of its own.
#[rustler::nif]
fn apply_and_cast<'a>(
    env: Env<'a>,
    op: Term<'a>,
    inputs: Term<'a>,
    dtype: Term<'a>,
    target: Term<'a>,
) -> Term<'a> {
    answer(
        env,
        op,
        guard("", || apply_op(op, inputs, Some(dtype), target)),
    )
}

fn answer<'a>(env: Env<'a>, op: Term<'a>, applied: Result<AppliedTerm>) -> Term<'a> {
    match applied {
        Ok(AppliedTerm::Apart) => AppliedTerm::Apart.encode(env),
        Ok(applied) if CHECKS_RESULTS.load(Ordering::Relaxed) => {
            (atoms::check(), applied).encode(env)
        }
        Ok(applied) => applied.encode(env),
        Err(error) => (atoms::error(), error.of(&op_name(op))).encode(env),
    }
}

/// Whether `EMLX.Debug` looks at what operations give.
pub static CHECKS_RESULTS: AtomicBool = AtomicBool::new(false);

/// Has `apply` give `{:check, result}` from now on, or its result alone.
#[rustler::nif]
fn check_results(on: Term) -> Answer<Done> {
    Answer(guard("check_results", || {
        CHECKS_RESULTS.store(argument(on, 0, "a boolean")?, Ordering::Relaxed);
        Ok(Done)
    }))
}

pub fn apply_op<'a>(
    op: Term<'a>,
    inputs: Term<'a>,
    to: Option<Term<'a>>,
    target: Term<'a>,
) -> Result<AppliedTerm> {
    let inputs = decode_inputs(inputs)?;
    let position = if to.is_some() { 3 } else { 2 };
    let target = decode_target(target, position, inputs.iter().flatten().copied())?;
    if target.device == Device::Cpu && !matches!(target, Target::Trace(_)) {
        if let Some(results) = repeated::results(op, to, &inputs, &target.stream) {
            let handles = results
                .into_iter()
                .map(|small| Handle::small(small, target.stream.clone()));
            let terms = handles.map(|handle| ArrayTerm(ResourceArc::new(handle)));
            return Ok(AppliedTerm::Ready(terms.collect()));
        }
    }
    let op = decode_op(op)?;
    let to = to.map(|to| decode_dtype(to, 2)).transpose()?;
    let mut given = inputs.iter().flatten();
    if to.is_some() && (matches!(target, Target::Trace(_)) || given.any(|input| input.is_traced()))
    {
        return Ok(AppliedTerm::Apart);
    }
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
    } = match to {
        None => program::build(&op, &arrays, target.device, &target.stream),
        Some(to) => program::build_and_cast(&op, to, &arrays, target.device, &target.stream),
    }
    .map_err(describe)?;
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
    let is_known = target.device == Device::Cpu
        && outcomes.is_empty()
        && !inputs.iter().flatten().any(|input| input.is_traced());
    let handles: SmallVec<[ResourceArc<Handle>; 1]> = outputs
        .into_iter()
        .map(|array| {
            if let Some(small) = is_known
                .then(|| Small::of(&array, inputs.is_empty()))
                .flatten()
            {
                mlx::release(array);
                return ResourceArc::new(Handle::small(small, target.stream.clone()));
            }
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
pub fn is_behind(arrays: &[ResourceArc<Handle>], target: &Arc<Shared>) -> Result<bool> {
    arrays.iter().for_each(|array| array.mark_submitted());
    let job = Job::Eval {
        arrays: arrays.to_vec(),
        reply: None,
    };
    Ok(matches!(target.push(job)?, Pushed::Behind))
}

/// Copies of the GPU's arrays for the CPU, by their positions: it must not read what the GPU computes from.
pub fn bring(inputs: &[Option<&Handle>], device: Device) -> Result<SmallVec<[(usize, Array); 2]>> {
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
pub fn bring_all(
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

/// Every operation as a map: its name, its attributes, and what is true of it ([`Op::traits`](op::Op::traits)).
#[rustler::nif]
fn op_table(env: Env) -> Answer<Vec<Term>> {
    Answer(guard("op_table", || {
        op::attributes::table(env).map_err(|error| Error::invalid(format!("{error:?}")))
    }))
}

/// Whether products of f32 on NVIDIA GPUs may round their operands to 10 bits (TF32), for the speed of it. MLX reads
/// this once.
#[rustler::nif]
fn allow_tf32(allowed: Term) -> Answer<Done> {
    Answer(guard("allow_tf32", || {
        let allowed: bool = argument(allowed, 0, "a boolean")?;
        let value = if allowed { "1" } else { "0" };
        mlx::set_default_variable("MLX_ENABLE_TF32", value).map(|()| Done)
    }))
}
