//! What the functions of `EMLX.Native` give back.

use super::atoms;
use crate::base::{Device, Result};
use crate::handle::array::Handle;
use crate::runtime::Shared;
use rustler::{Encoder, Env, Term};

/// What a function gives back: a value, or an error as a map.
pub struct Answer<T>(pub Result<T>);

impl<T: Encoder> Encoder for Answer<T> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match &self.0 {
            Ok(value) => (atoms::ok(), value).encode(env),
            Err(error) => (atoms::error(), error).encode(env),
        }
    }
}

/// What a queue has been given to do: `{:queued, device, bytes}` with the bytes of the arrays it is about. The answer
/// follows by message.
pub struct Queued {
    pub device: Device,
    pub bytes: usize,
}

impl Queued {
    pub fn new<'a>(target: &Shared, arrays: impl IntoIterator<Item = &'a Handle>) -> Queued {
        let bytes = arrays.into_iter().map(Handle::nbytes);
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
pub enum Awaited<T> {
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
