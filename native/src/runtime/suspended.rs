//! Runs of programs on a queue, which pause where they call into the process that started them.

use super::evaluate::OfRun;
use super::guard;
use super::queue::{Job, Queue, Shared};
use super::reply::Reply;
use crate::base::{Error, Result};
use crate::handle::array::{ArrayTerm, Handle};
use crate::mlx::{self, GraphLock};
use crate::program::run::{Pause, Run};
use mlx_rs::Array;
use parking_lot::Mutex;
use rustler::{Resource, ResourceArc};
use std::sync::Arc;

/// A run with whom it answers.
pub struct Running {
    pub(super) run: Run,
    pub(super) reply: Reply,
    /// Keeps a queue of the caller's own from closing meanwhile.
    pub(super) _queue: Option<ResourceArc<Queue>>,
}

impl Running {
    pub fn new(run: Run, reply: Reply, queue: Option<ResourceArc<Queue>>) -> Running {
        Running {
            run,
            reply,
            _queue: queue,
        }
    }

    /// Goes on after a question.
    pub fn answer(&mut self, arrays: Vec<ResourceArc<Handle>>) -> Result<()> {
        self.run.answer(arrays)
    }
}

/// A run that waits for its caller's answer, held by the caller alone: it ends with the last reference to it.
pub struct Suspended {
    pub(super) run: Mutex<Option<Box<Running>>>,
    pub queue: Arc<Shared>,
}

#[rustler::resource_impl]
impl Resource for Suspended {}

impl std::panic::RefUnwindSafe for Suspended {}

impl Suspended {
    pub fn new(run: Box<Running>, queue: Arc<Shared>) -> Suspended {
        Suspended {
            run: Mutex::new(Some(run)),
            queue,
        }
    }

    /// The run, once.
    pub fn take(&self) -> Result<Box<Running>> {
        let mut run = self.run.lock();
        run.take()
            .ok_or_else(|| Error::invalid("the run was already answered"))
    }
}

impl Shared {
    pub(super) fn go_on(self: &Arc<Self>, mut running: Box<Running>) {
        let advanced = {
            let Running { run, reply, .. } = &mut *running;
            let of_run = OfRun {
                shared: self,
                reply,
            };
            guard("run", || run.advance(&of_run))
        };
        match advanced {
            Ok(Pause::Finished(outputs)) => self.end(*running, outputs),
            Ok(Pause::Turn) => self.push_back(running),
            Ok(Pause::Call { id, arrays }) => {
                let question = running.reply.again();
                let suspended = ResourceArc::new(Suspended::new(running, self.clone()));
                question.ask(id, arrays, suspended);
            }
            Ok(Pause::Abandoned) => {}
            Err(error) => Job::Run(running).refuse(error),
        }
    }

    /// Submits a run's outputs, answers, and sees what becomes of them.
    pub(super) fn end(self: &Arc<Self>, running: Running, outputs: Vec<ResourceArc<Handle>>) {
        let refs: Vec<&Array> = outputs.iter().map(|output| output.array()).collect();
        let Running { run, reply, _queue } = running;
        let outcomes = run.outcomes.clone();
        let terms: Vec<ArrayTerm> = outputs.iter().cloned().map(ArrayTerm).collect();
        if let Some(_first) = self.first_of(&outputs) {
            let held = outputs.clone();
            let submit = |lock: &GraphLock| mlx::async_eval(&refs, lock);
            let then = move |_: Result<()>| drop(held);
            let submitted = self.submit_then("run", mlx::graph_lock(), submit, then);
            return reply.send(submitted.map(|()| terms).map_err(|(error, _)| error));
        }
        let submitted = match guard("run", || self.submit(&refs, &outcomes)) {
            Ok(submitted) => submitted,
            // The failure is in the outcomes, and is their readers' whether it is met now or later.
            Err(error) if !outcomes.is_empty() => {
                outcomes.iter().for_each(|outcome| outcome.fail(&error));
                return reply.send(Ok(terms));
            }
            Err(error) => return reply.send::<()>(Err(error)),
        };
        reply.send(Ok(terms));
        // Nobody waits for this result; a failure is kept in the outcomes.
        let _ = guard("run", || {
            self.finish(submitted, &refs, &self.streams(), &outcomes, false)
        });
    }

    /// Lets the others go first.
    pub(super) fn push_back(&self, run: Box<Running>) {
        let mut state = self.state();
        state.jobs.push_back(Job::Run(run));
    }
}
