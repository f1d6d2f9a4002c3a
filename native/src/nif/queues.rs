//! Queues of the caller's own, and submission.

use super::answer::{Answer, Awaited, Queued};
use super::decode::{argument, decode_arrays, decode_target, handles};
use crate::base::Device;
use crate::handle::array::{self};
use crate::runtime::{guard, Done, Job, Queue, Reply, Shared};
use rustler::{Env, ResourceArc, Term};

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

/// Submits arrays. With a tag, `{tag, {:ok, :ok} | {:error, map}}` follows once they are computed, unless they are
/// already: then `:ok`.
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
