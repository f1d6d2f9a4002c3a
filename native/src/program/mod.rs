//! Programs: operations over numbered values, with branches, loops and questions to the calling process, replayed on
//! new inputs. An eager call is the program of one operation.
//!
//! | file | holds |
//! |---|---|
//! | [`ir`] | what is written: operations, branches, loops, calls |
//! | [`program`] | a program: its instructions, inputs, outputs, and its plans |
//! | [`types`] | shapes and types of its values |
//! | [`file`], [`describe`] | a program as a file, and as text |
//! | [`plan`] | what runs in place of a program on a device, made by an ordered list of passes |
//! | [`engine`] | how segments and loops of a plan run |
//! | [`run`] | runs plans |
//! | [`evaluator`] | what a run needs of whoever evaluates its graphs |
//! | [`build`] | nodes of MLX's graph |
//! | [`repeated`] | an eager operation on small arrays, written down |

mod build;
pub mod describe;
mod engine;
pub mod evaluator;
pub mod file;
mod ir;
pub mod plan;
#[allow(clippy::module_inception)]
mod program;
mod repeated;
pub mod run;
pub mod types;

pub use build::{build, build_and_cast};
pub use engine::captured::{forget_all, graphs};
pub use engine::counted::Whole;
pub use ir::{Block, Instruction, Step, MAX_DEPTH};
pub use program::{shown, Input, Inputs, Options, Program};
pub use repeated::Repeated;
