//! A kernel with its arrays, which is run many times on the same memory.

use super::{chain, ElementType, Kernel, View};
use smallvec::SmallVec;

/// A kernel with its arrays. Of a chain, what to do with each block is found once.
pub struct Prepared(Work);

enum Work {
    Calls(chain::Prepared),
    Kernel {
        kernel: Kernel,
        element: ElementType,
        inputs: SmallVec<[View; 4]>,
        outs: SmallVec<[View; 1]>,
    },
}

impl Prepared {
    /// # Safety
    /// As for [`Kernel::run`]; the arrays live as long as this does, and stay where they are.
    pub unsafe fn new(
        kernel: Kernel,
        element: ElementType,
        inputs: SmallVec<[View; 4]>,
        outs: SmallVec<[View; 1]>,
    ) -> Prepared {
        if let Kernel::Chain(links) = &kernel {
            if let Some(calls) = chain::Prepared::new(links, &inputs, &outs) {
                return Prepared(Work::Calls(calls));
            }
        }
        Prepared(Work::Kernel {
            kernel,
            element,
            inputs,
            outs,
        })
    }

    /// Computes it, from what its inputs hold now.
    ///
    /// # Safety
    /// Nobody else reads or writes the arrays meanwhile.
    pub unsafe fn run(&self) {
        match &self.0 {
            Work::Calls(calls) => calls.run(),
            Work::Kernel {
                kernel,
                element,
                inputs,
                outs,
            } => kernel.run_all(*element, inputs, outs),
        }
    }
}
