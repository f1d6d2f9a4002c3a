//! Arrays: made of binaries and addresses, looked at, read and given up.

use super::answer::{Answer, Awaited, Queued};
use super::decode::{
    argument, decode_array, decode_dtype, decode_layout, decode_made, decode_target, decode_valued,
    decode_valued_or_deallocated,
};
use crate::base::{Device, Dtype, Result};
use crate::handle::array::{self, ArrayTerm, BinaryTerm, Handle};
use crate::handle::deallocate;
use crate::mlx;
use crate::runtime::{guard, Done, Job, Reply};
use rustler::{Binary, Encoder, Env, ResourceArc, Term};

#[rustler::nif]
fn from_binary<'a>(
    data: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    target: Term<'a>,
) -> Answer<ArrayTerm> {
    Answer(make_array(data, shape, dtype, target))
}

/// The same for an array without axes, of which a bare reference comes back where there is no error.
#[rustler::nif]
fn scalar<'a>(env: Env<'a>, data: Term<'a>, dtype: Term<'a>, target: Term<'a>) -> Term<'a> {
    let made = guard("from_binary", || {
        let bytes: Binary = argument(data, 0, "a binary")?;
        let (dtype, target) = (decode_dtype(dtype, 1)?, decode_target(target, 2, [])?);
        let handle = array::from_binary(&bytes, &[], dtype, target.device, &target.stream)?;
        Ok(ResourceArc::new(handle))
    });
    match made {
        Ok(handle) => handle.encode(env),
        Err(error) => Answer::<Done>(Err(error)).encode(env),
    }
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

pub fn make_array(data: Term, shape: Term, dtype: Term, target: Term) -> Result<ArrayTerm> {
    guard("from_binary", || {
        let data: Binary = argument(data, 0, "a binary")?;
        let (shape, dtype, target) = decode_made(shape, dtype, target)?;
        let handle = array::from_binary(&data, &shape, dtype, target.device, &target.stream)?;
        Ok(ArrayTerm(ResourceArc::new(handle)))
    })
}

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

/// Whether an array stands for a value of a function that is being traced.
#[rustler::nif]
fn is_traced(array: Term) -> Answer<bool> {
    Answer(guard("is_traced", || {
        decode_array(array, 0).map(|array| array.is_traced())
    }))
}

#[derive(rustler::NifUnitEnum)]
pub enum Deallocated {
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

/// The binary of an array that is computed, on the CPU; else nil, also for one that is traced or refused.
#[rustler::nif]
fn computed(array: Term) -> Answer<Option<BinaryTerm>> {
    Answer(guard("to_binary", || {
        let array = decode_valued(array, 0).ok();
        Ok(array.and_then(|array| array::read_now(&array).ok().flatten()))
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
