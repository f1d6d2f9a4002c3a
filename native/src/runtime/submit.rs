//! Jobs that are submitted and answered by the stream's thread, so that nobody waits for what is computed; small ones
//! by their caller.

use super::evaluate::make_room;
use super::guard;
use super::queue::{Job, Shared};
use super::reply::{Done, Reply};
use crate::base::{Device, Error, Result};
use crate::handle::array::{outcomes_of, refuse_deallocated, BinaryTerm, Buffer, Handle};
use crate::mlx::{self, GraphLock};
use mlx_rs::Array;
use parking_lot::RwLockReadGuard;
use rustler::ResourceArc;
use smallvec::SmallVec;
use std::slice;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Nodes that a caller submits itself, a scheduler of the VM's: at 2 to 4 µs each, and so few that MLX does not have it
/// wait.
const MAX_AT_ONCE: usize = 32;
/// Bytes that these nodes may take.
const MAX_BYTES_AT_ONCE: usize = 4 << 20;

impl Shared {
    pub(super) fn eval(self: &Arc<Self>, arrays: Vec<ResourceArc<Handle>>, reply: Option<Reply>) {
        if let Some(_first) = self.first_of(&arrays) {
            return self.eval_then(arrays, reply, mlx::graph_lock());
        }
        let outcomes = outcomes_of(arrays.iter().map(|array| &**array));
        let streams = self.streams_of(&arrays);
        let result = guard("eval", || {
            let refs = arrays.iter().map(|array| array.live());
            let refs = refs.collect::<Result<Vec<&Array>>>()?;
            let submitted = self.submit(&refs, &outcomes)?;
            self.finish(submitted, &refs, &streams, &outcomes, reply.is_some())
        });
        if let Some(reply) = reply {
            reply.send(result.map(|()| Done));
        }
    }

    /// Does a job where it is small, from the thread that brings it. It is taken then.
    pub(super) fn do_at_once(self: &Arc<Self>, job: &mut Option<Job>) {
        let arrays = match job {
            Some(Job::Eval { arrays, .. }) => arrays.as_slice(),
            Some(Job::Read { array, .. }) => slice::from_ref(array),
            _ => return,
        };
        let Some(_first) = self.first_of(arrays) else {
            return;
        };
        // A scheduler waits for nobody.
        let Some(lock) = mlx::try_graph_lock() else {
            return;
        };
        let refs: SmallVec<[&Array; 4]> = arrays.iter().map(|array| array.array()).collect();
        if !mlx::is_small(&refs, &self.stream, MAX_AT_ONCE, MAX_BYTES_AT_ONCE, &lock)
            || !mlx::takes_more(MAX_BYTES_AT_ONCE)
            || self.device.enter(&self.stream).is_err()
        {
            return;
        }
        drop(refs);
        match job.take() {
            Some(Job::Eval { arrays, reply }) => self.eval_then(arrays, reply, lock),
            Some(Job::Read { array, reply }) => self.read_then(&array, reply, lock),
            other => *job = other,
        }
    }

    /// Whether what becomes of these arrays can be told by the stream's thread: they are this stream's own and cannot
    /// fail late, and as long as the result lives nothing is submitted that can. A stream tells of a failure once,
    /// whoever asks.
    pub(super) fn first_of(
        &self,
        arrays: &[ResourceArc<Handle>],
    ) -> Option<RwLockReadGuard<'static, ()>> {
        let is_own = |array: &ResourceArc<Handle>| array.stream.is_same(&self.stream);
        let can_tell = self.device == Device::Cpu
            && mlx::has_tasks()
            && arrays.iter().all(is_own)
            && outcomes_of(arrays.iter().map(|array| &**array)).is_empty();
        match can_tell {
            true => mlx::LATE.try_read(),
            false => None,
        }
    }

    pub(super) fn eval_then(
        self: &Arc<Self>,
        arrays: Vec<ResourceArc<Handle>>,
        reply: Option<Reply>,
        lock: GraphLock,
    ) {
        let held = arrays.clone();
        let refs: SmallVec<[&Array; 4]> = arrays.iter().map(|array| array.array()).collect();
        let submit = |lock: &GraphLock| mlx::async_eval(&refs, lock);
        let then = move |result: Result<()>| {
            // MLX's tasks do not keep the results that they write.
            drop(held);
            if let Some(reply) = reply {
                reply.send(result.map(|()| Done));
            }
        };
        if let Err((error, then)) = self.submit_then("eval", lock, submit, then) {
            self.tell(error, then);
        }
    }

    pub(super) fn read_then(self: &Arc<Self>, array: &Handle, reply: Reply, lock: GraphLock) {
        array.mark_submitted();
        let submit = |lock: &GraphLock| {
            let mut rows = mlx::share(array.live()?)?;
            mlx::async_eval(&[&rows], lock)?;
            // How its elements lie is known once it is submitted.
            if !mlx::is_in_rows(&rows) {
                rows = mlx::contiguous(&rows, false, &self.stream)?;
                mlx::async_eval(&[&rows], lock)?;
            }
            BinaryTerm::submitted(Buffer::new(rows), lock)
        };
        let then = move |result: Result<BinaryTerm>| reply.send(result);
        if let Err((error, then)) = self.submit_then("to_binary", lock, submit, then) {
            self.tell(error, then);
        }
    }

    /// Has the stream's thread say that something was not submitted: the VM's own threads cannot send as other threads
    /// do.
    pub(super) fn tell<T>(&self, error: Error, then: impl FnOnce(Result<T>) + Send + 'static) {
        mlx::then(&self.stream, false, Box::new(move |_| then(Err(error))));
    }

    /// Calls `submit`; once all of it is computed the stream's thread calls `then`. An error of `submit` comes back
    /// with it.
    pub(super) fn submit_then<T: Send + 'static, F: FnOnce(Result<T>) + Send + 'static>(
        self: &Arc<Self>,
        op: &'static str,
        lock: GraphLock,
        submit: impl FnOnce(&GraphLock) -> Result<T>,
        then: F,
    ) -> std::result::Result<(), (Error, F)> {
        let submitting = self.pace.begin(&lock);
        let value = match guard(op, || submit(&lock)) {
            Ok(value) => value,
            Err(error) => {
                make_room(&error);
                return Err((error, then));
            }
        };
        self.unfinished.fetch_add(1, Ordering::Relaxed);
        let (shared, turn) = (self.clone(), submitting.turn());
        let task = move |result: Result<()>| {
            let _ = guard(op, || {
                then(result.map(|()| value).map_err(|error| error.of(op)));
                Ok(())
            });
            shared.unfinished.fetch_sub(1, Ordering::Relaxed);
            shared.pace.linger(turn);
        };
        mlx::then(&self.stream, true, Box::new(task));
        Ok(())
    }

    /// A private handle of the array's values in row-major order, computed.
    pub(super) fn computed_rows(&self, array: &Handle) -> Result<Array> {
        let outcomes = outcomes_of([array]);
        let rows = self.rows_to_read(array.live()?)?;
        refuse_deallocated([array])?;
        let submitted = self.submit(&[&rows], &outcomes)?;
        array.mark_submitted();
        let streams = match self.device {
            Device::Cpu => vec![self.stream.clone()],
            Device::Gpu => Vec::new(),
        };
        let waited = match self.device {
            Device::Cpu => Ok(()),
            Device::Gpu => self.wait_for_own(&rows),
        };
        if let Err(error) = &waited {
            outcomes.iter().for_each(|outcome| outcome.fail(error));
        }
        waited.and(self.finish(submitted, &[&rows], &streams, &outcomes, false))?;
        Ok(rows)
    }

    /// A node of the array's values in row-major order, for the CPU to read.
    pub(super) fn rows_to_read(&self, array: &Array) -> Result<Array> {
        match self.device {
            // Metal's memory is the CPU's.
            Device::Gpu if cfg!(target_os = "linux") => mlx::copy_apart(array, &self.stream),
            _ => mlx::contiguous(array, false, &self.stream),
        }
    }

    pub(super) fn read(&self, array: &Handle) -> Result<BinaryTerm> {
        BinaryTerm::new(Buffer::new(self.computed_rows(array)?))
    }
}
