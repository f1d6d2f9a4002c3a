//! A small chain's calls, found once.

use super::{Axes, Call, Layout, Link, Scratch, BLOCK, WORTH_SHARING};
use crate::simd::Level;
use crate::View;

/// The calls of a small chain whose arrays stay where they are.
pub struct Prepared {
    level: Level,
    calls: Vec<Call>,
    axes: Axes,
    /// What the calls keep between them.
    _scratch: Box<[u64]>,
}

// SAFETY: the calls go to arrays that whoever prepared them keeps, and to the scratch memory.
unsafe impl Send for Prepared {}

/// Calls of a prepared chain, at most: from there on its work takes longer than finding the calls.
const MAX_CALLS: usize = 512;

impl Prepared {
    /// None for a chain that several threads share, and for one of too many calls.
    ///
    /// # Safety
    /// As for [`super::run`], and nobody moves the arrays as long as the calls are run.
    pub unsafe fn new(links: &[Link], inputs: &[View], outs: &[View]) -> Option<Prepared> {
        let layout = Layout::new(links, inputs, outs);
        if layout.size >= WORTH_SHARING {
            return None;
        }
        let block = layout.size.clamp(1, BLOCK);
        let mut memory = vec![0; links.len() + layout.numbers(block)].into_boxed_slice();
        let elements = memory.as_mut_ptr();
        let scratch = Scratch {
            elements,
            blocks: elements.add(links.len()),
            block,
            length: block,
        };
        let rows = match layout.flat.is_some() || layout.axes.is_short() {
            true => layout.size.div_ceil(block),
            false => layout.size / layout.axes.count().max(1),
        };
        if rows * links.len() > MAX_CALLS {
            return None;
        }
        let mut calls = Vec::new();
        layout.singles(scratch, |call| calls.push(call));
        layout.part(0, layout.size, scratch, |call| calls.push(call));
        (calls.len() <= MAX_CALLS).then_some(Prepared {
            level: Level::best(),
            calls,
            axes: layout.axes,
            _scratch: memory,
        })
    }

    /// Computes the chain, from what its inputs hold now.
    ///
    /// # Safety
    /// Nobody else reads or writes the arrays meanwhile.
    pub unsafe fn run(&self) {
        for call in &self.calls {
            call.run(self.level, &self.axes);
        }
    }
}
