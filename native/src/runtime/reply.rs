//! Whom a queue answers, by message.

use super::suspended::Suspended;
use crate::base::Result;
use crate::handle::array::{ArrayTerm, Handle};
use rustler::{Encoder, Env, LocalPid, OwnedEnv, ResourceArc, Term};

/// Whom to answer, and with which tag.
pub struct Reply {
    pid: LocalPid,
    env: OwnedEnv,
    tag: rustler::env::SavedTerm,
}

impl Reply {
    pub fn new(pid: LocalPid, tag: Term) -> Reply {
        let env = OwnedEnv::new();
        let tag = env.save(tag);
        Reply { pid, env, tag }
    }

    /// Whether the caller is still there.
    pub fn is_awaited(&self) -> bool {
        self.env.run(|env| self.pid.is_alive(env))
    }

    /// Another message to the same caller with the same tag.
    pub(super) fn again(&self) -> Reply {
        let env = OwnedEnv::new();
        let tag = self.env.run(|own| env.save(self.tag.load(own)));
        let pid = self.pid;
        Reply { pid, env, tag }
    }

    /// Sends `{tag, {:call, id, [array], suspended}}`.
    pub(super) fn ask(
        mut self,
        id: u64,
        arrays: Vec<ResourceArc<Handle>>,
        run: ResourceArc<Suspended>,
    ) {
        let tag = self.tag;
        let pid = self.pid;
        let _ = self.env.send_and_clear(&pid, |env| {
            let arrays: Vec<ArrayTerm> = arrays.into_iter().map(ArrayTerm).collect();
            (tag.load(env), (atoms::call(), id, arrays, run)).encode(env)
        });
    }

    /// Sends `{tag, {:ok, value} | {:error, error}}`. A caller that is gone is no failure.
    pub(super) fn send<T: Encoder>(mut self, result: Result<T>) {
        let tag = self.tag;
        let pid = self.pid;
        let _ = self.env.send_and_clear(&pid, |env| {
            (tag.load(env), outcome(env, result)).encode(env)
        });
    }
}

mod atoms {
    rustler::atoms! { call }
}

/// The value of a job that has none: `:ok`.
pub struct Done;

impl Encoder for Done {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        rustler::types::atom::ok().encode(env)
    }
}

pub(super) fn outcome<T: Encoder>(env: Env, result: Result<T>) -> Term {
    match result {
        Ok(value) => (rustler::types::atom::ok(), value).encode(env),
        Err(error) => (rustler::types::atom::error(), error).encode(env),
    }
}
