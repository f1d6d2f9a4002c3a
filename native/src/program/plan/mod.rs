//! Plans: what runs in place of a program on a device. A plan is made once by one ordered list of passes, [`PASSES`];
//! nothing decides elsewhere. Each pass notes what it takes and what it leaves, which `EMLX.Program.explain/2` shows.
//! ARCHITECTURE.md has the table of passes.

mod capture;
mod chains;
mod code;
mod compile;
mod composed;
pub mod explain;
mod facts;
mod group;
mod loops;
mod masked;
mod merge;
mod notes;
mod rows;
mod together;
mod turned;

pub use code::{Code, Node, Work};
use notes::Notes;

use super::engine::{captured, step_graph};
use super::program::{Options, Program};
use super::types::Types;
use crate::base::{Device, Result};
use crate::cpu;
use crate::op::generated;
use std::sync::Arc;

/// Code without blocks inside, with operations on few rows merged.
#[cfg(test)]
pub fn merged(code: &Code, types: Vec<crate::base::Signature>) -> Code {
    let inside = code.nodes.iter().map(|_| Vec::new()).collect();
    let (target, types) = (
        Target::of_test(Device::Gpu),
        Types {
            values: types,
            inside,
        },
    );
    let scope = Scope::of_test(&target, &types, "merge");
    let mut code = merge::Merge.run(code.clone(), &scope).expect("merged");
    code.settle().expect("well-formed");
    code
}

#[cfg(test)]
impl Target {
    /// A device with all that there is for it.
    pub fn of_test(device: Device) -> Target {
        let is_gpu = device == Device::Gpu;
        Target {
            merge: is_gpu,
            fuse: false,
            run_ahead: None,
            kernels: !is_gpu,
            generated: if is_gpu { Ok(()) } else { Err(KERNELS_OF_CPU) },
            graphs: is_gpu,
            step_graphs: is_gpu,
        }
    }
}

#[cfg(test)]
impl<'a> Scope<'a> {
    fn of_test(target: &'a Target, types: &'a Types, pass: &'static str) -> Scope<'a> {
        Scope {
            target,
            types: Some(types),
            pass,
            place: String::new(),
            notes: Box::leak(Box::new(Notes::off())),
        }
    }
}

/// The passes in their order. Each sees what those before it made.
static PASSES: [&dyn Pass; 10] = [
    &merge::Merge,
    &loops::Loops,
    &masked::MaskedPass,
    &turned::Turned,
    &rows::RowsPass,
    &composed::Composed,
    &chains::Chains,
    &together::Together,
    &compile::Compile,
    &capture::Capture,
];

/// Rewrites code into code that does the same, faster.
trait Pass: Sync {
    fn name(&self) -> &'static str;
    /// Why it does nothing on a target; None where it works.
    fn is_off(&self, target: &Target) -> Option<&'static str>;
    /// Whether it needs shapes and types.
    fn needs_types(&self, target: &Target) -> bool;
    /// One block's code; the blocks inside it are rewritten already.
    fn run(&self, code: Code, scope: &Scope) -> Result<Code>;
}

const KERNELS_OF_CPU: &str = "its kernels are the CPU's, on Linux";

/// What a plan is made for.
#[derive(Clone, Debug)]
pub struct Target {
    pub merge: bool,
    pub fuse: bool,
    pub run_ahead: Option<usize>,
    /// Whether there are kernels of our own for the CPU.
    pub kernels: bool,
    /// Whether there are generated kernels for CUDA, or why not.
    pub generated: std::result::Result<(), &'static str>,
    /// Whether segments can be captured as CUDA graphs.
    pub graphs: bool,
    /// Whether a loop's step can be one.
    pub step_graphs: bool,
}

impl Target {
    /// The machine's device, for a program with these options.
    pub fn of(device: Device, options: &Options) -> Target {
        let is_gpu = device == Device::Gpu;
        Target {
            merge: options.merge.unwrap_or(is_gpu),
            fuse: options.fuse,
            run_ahead: options.run_ahead,
            kernels: !is_gpu && cpu::are_there(),
            generated: match is_gpu {
                true => generated::unavailable().map_or(Ok(()), Err),
                false => Err(KERNELS_OF_CPU),
            },
            graphs: is_gpu && captured::is_on(),
            step_graphs: is_gpu && step_graph::is_there(),
        }
    }

    /// Why passes that bring operations together for kernels of our own do nothing; None where they work.
    fn lacks_kernels(&self) -> Option<&'static str> {
        match self {
            Target { kernels: false, .. } => Some(KERNELS_OF_CPU),
            Target { fuse: true, .. } => Some("fuse: true has MLX compile them"),
            _ => None,
        }
    }
}

/// What runs in place of a program.
#[derive(Debug)]
pub struct Plan {
    pub body: Arc<Code>,
}

impl Plan {
    pub fn of(program: &Program, target: &Target) -> Result<Plan> {
        Plan::noted(program, target, &Notes::off())
    }

    fn noted(program: &Program, target: &Target, notes: &Notes) -> Result<Plan> {
        let is_typed = |pass: &&dyn Pass| pass.is_off(target).is_none() && pass.needs_types(target);
        let types = match PASSES.iter().any(is_typed) {
            true => program.types(),
            false => None,
        };
        let mut body = Code::of(&program.body);
        for pass in PASSES {
            let scope = Scope {
                target,
                types: types.as_ref(),
                pass: pass.name(),
                place: String::new(),
                notes,
            };
            body = match pass.is_off(target) {
                Some(reason) => {
                    scope.left(|| reason.into());
                    body
                }
                None if pass.needs_types(target) && types.is_none() => {
                    scope.left(|| {
                        "shapes and types are not known: give the inputs as {name, shape, type}"
                            .into()
                    });
                    body
                }
                None => applied(pass, body, &scope)?,
            };
        }
        body.settle()?;
        Ok(Plan {
            body: Arc::new(body),
        })
    }
}

/// The code after a pass, the blocks inside first.
fn applied(pass: &dyn Pass, mut code: Code, scope: &Scope) -> Result<Code> {
    for node in &mut code.nodes {
        let at = node.at;
        let name = node.name();
        let names = node.work.block_names();
        for (i, inside) in node.work.blocks_mut().into_iter().enumerate() {
            let own = Arc::unwrap_or_clone(std::mem::take(inside));
            let scope = scope.inside(at, &name, names[i], i);
            *inside = Arc::new(applied(pass, own, &scope)?);
        }
    }
    pass.run(code, scope)
}

/// Where a pass works, and for what.
struct Scope<'a> {
    target: &'a Target,
    /// Of the block's values, by number.
    types: Option<&'a Types>,
    pass: &'static str,
    /// `instruction 3, while, body`; empty at the top.
    place: String,
    notes: &'a Notes,
}

impl<'a> Scope<'a> {
    fn inside(&self, at: usize, name: &str, block: &str, i: usize) -> Scope<'a> {
        let own = match self.notes.is_on() {
            true => format!("instruction {at}, {name}, {block}"),
            false => String::new(),
        };
        Scope {
            types: self.types.and_then(|types| types.inside.get(at)?.get(i)),
            place: match self.place.is_empty() {
                true => own,
                false => format!("{}, {own}", self.place),
            },
            ..*self
        }
    }

    /// The code as `rewrite` makes it of shapes and types; as it is where these are not known.
    fn rewritten(&self, code: Code, rewrite: impl FnOnce(Code, &Types) -> Code) -> Result<Code> {
        Ok(match self.types {
            Some(types) => rewrite(code, types),
            None => code,
        })
    }

    /// Notes what the pass took.
    fn took(&self, text: impl FnOnce() -> String) {
        self.notes.add(self.pass, &self.place, true, text);
    }

    /// Notes what the pass left, and why.
    fn left(&self, text: impl FnOnce() -> String) {
        self.notes.add(self.pass, &self.place, false, text);
    }
}
