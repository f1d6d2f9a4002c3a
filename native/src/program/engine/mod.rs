//! Engines: how what a plan has brought together runs. A segment is a part of a program without branches, loops and
//! calls; an engine for segments builds its nodes as one. An engine for loops runs all steps of a loop. Which engine
//! takes what, the passes decide (`plan/`).

pub mod captured;
pub mod captured_loop;
pub mod chain;
pub mod chains;
pub mod compiled;
pub mod counted;
pub mod masked;
pub mod recorded;
pub mod rows;
pub mod step_graph;
pub mod turned;

use crate::base::{Device, Result, Signature};
use crate::mlx::Stream;
use crate::op::Applied;
use crate::program::plan::Code;
use counted::Counters;
use mlx_rs::Array;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// Operations that run as one.
pub trait Segment: Debug + Send + Sync {
    /// The engine, for errors and `EMLX.Program.explain/2`.
    fn name(&self) -> &'static str;
    /// Where it stands, for errors; empty where its errors say it.
    fn place(&self, at: usize) -> String;
    /// How many operations of the program it has.
    fn operations(&self) -> usize;
    /// The nodes of its outputs.
    fn build(&self, inputs: &Given, device: Device, stream: &Stream) -> Result<Applied>;
    /// How it runs by now, where it learns.
    fn state(&self) -> Option<String> {
        None
    }
    /// Whether it can be a part of a segment that is captured as a CUDA graph.
    fn is_capturable(&self) -> bool {
        false
    }
    /// Its operations, where they mean the same node by node.
    fn inside(&self) -> Option<&Code> {
        None
    }
    /// The chain that it is.
    fn as_chain(&self) -> Option<&chain::Chain> {
        None
    }
    /// Whether it is a product whose operands are taken with their last two axes exchanged.
    fn is_turned_product(&self) -> bool {
        false
    }
}

/// What a segment is given.
pub struct Given<'a> {
    pub arrays: &'a [Option<&'a Array>],
    /// The number of the handle that an input comes from, by its place; None for what is computed anew.
    pub number: &'a dyn Fn(usize) -> Option<u64>,
}

impl Given<'_> {
    /// The arrays, of a segment that takes no nil.
    pub fn present(&self) -> Vec<&Array> {
        self.arrays.iter().copied().flatten().collect()
    }
}

/// Runs whole loops.
pub trait LoopEngine: Debug + Send + Sync {
    fn name(&self) -> &'static str;
    /// Whether it takes a loop before its first condition is known, and of a state like this. Else the loop is counted
    /// where that can be, and the engine is asked once there is a first step.
    fn takes_first(&self, _state: &[Signature]) -> bool {
        false
    }
    /// Steps from which it pays, where their number is known before.
    fn min_steps(&self) -> usize {
        usize::MAX
    }
    /// Takes a loop over. None where the engine has nothing for arrays that lie as these do.
    fn start(&self, given: &Begun) -> Result<Option<Box<dyn RunningLoop>>>;
    /// How it runs by now, where it learns.
    fn state(&self) -> Option<String> {
        None
    }
}

/// A loop as its engine is given it.
pub struct Begun<'a> {
    pub condition: &'a Code,
    pub body: &'a Code,
    /// How many of the inputs are its state: the first ones.
    pub state: usize,
    /// They have been submitted, and on the CPU they are computed.
    pub inputs: &'a [&'a Array],
    pub stream: &'a Stream,
}

/// A loop that an engine runs. It is used by one thread at a time.
pub trait RunningLoop: Send {
    /// Goes on until there is no further step, for some time at most.
    fn advance(&mut self, time: Duration) -> Result<Progress>;
    /// The state, where it is needed; of other values there is nothing.
    fn state(&self, needed: &[bool]) -> Result<Vec<Option<Array>>>;
}

/// How far a loop has come.
pub enum Progress {
    /// There is no further step.
    Ended,
    /// The time is over.
    Going,
}

/// How a loop is to run. The first that can takes it: an engine that takes loops first, or that pays for as many steps
/// as were counted; steps that are counted before they run; another engine; and steps that are asked one by one, which
/// may run ahead of the answer.
#[derive(Debug, Default)]
pub struct LoopPlan {
    pub counters: Option<Counters>,
    /// In the order in which they are asked.
    pub engines: Vec<Arc<dyn LoopEngine>>,
    /// Whether the condition and the body have operations alone.
    pub is_plain: bool,
}
