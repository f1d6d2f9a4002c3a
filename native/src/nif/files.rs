//! Files of weights.

use super::answer::{Answer, Queued};
use super::decode::{argument, decode_target, decode_valued};
use crate::base::Result;
use crate::handle::array::{ArrayTerm, Handle};
use crate::handle::safetensors as file;
use crate::runtime::{guard, Job, Reply};
use rustler::{Env, ResourceArc, Term};

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
