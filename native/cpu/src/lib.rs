//! EMLX's kernels for the CPU: vectorised, on all cores, 16-bit floats in f32. The crate knows neither MLX nor the
//! BEAM. The NIF runs them as nodes of MLX's graph (`native/src/cpu`).
//!
//! A [`Kernel`] says what is computed and names its inputs. [`Kernel::run`] computes it on [`View`]s: pointers with a
//! shape and strides, of numbers of one [`ElementType`], or of the [`Type`] that the kernel names. The result's view
//! has its memory already. Inputs may be strided in any way; which shapes fit is the caller's to check.
//!
//! | modules | what they have |
//! |---|---|
//! | `kernel`, `prepared`, `view`, `element`, `types` | the kernels, and what they run on |
//! | `elementwise`, `unary`, `binary` | actions on elements of every type |
//! | `chain` | such actions, one after another |
//! | `by_rows`, `rows`, `rope` | softmax, norms and rotary embeddings, by rows |
//! | `product`, `gemm`, `panels`, `few`, `quantized`, `attention` | matrix products, what their panels hold, skinny ones, those of quantized weights, attention |
//! | `integers`, `gemm8` | matrix products of integers; those of matrices of 8-bit integers with rows that are rounded |
//! | `conv`, `windows` | convolutions; reductions of sliding windows and their gradients |
//! | `axes`, `reduce`, `scan`, `fold` | reductions and running reductions, and what both keep of numbers |
//! | `extreme`, `arg_extreme` | the largest and the smallest, their places, and other reductions that are exact |
//! | `sort`, `select_top`, `keys`, `lines` | sorting and the k largest, and the keys that all of these compare |
//! | `linalg` | factorizations, and systems that are solved with them |
//! | `fft` | Fourier transforms of lines |
//! | `masked` | rows that a mask fills with one number but in few places |
//! | `slices`, `gather`, `scatter`, `indices` | slices and elements at positions that are data, read, written and added |
//! | `moves` | arrays beside each other, repeated and padded |
//! | `simd`, `math` | vectors, and functions of them |
//! | `pool`, `cpu_core` | the threads that share a kernel's work |
//! | `internals` | what the tests in `tests/kernels` call besides |
//!
//! `unsafe` is everywhere here: pointers come from the caller, and vector instructions are unsafe where a machine may
//! lack them.

mod arg_extreme;
mod attention;
mod axes;
mod binary;
mod by_rows;
mod chain;
mod conv;
pub mod cpu_core;
mod element;
mod elementwise;
mod extreme;
mod few;
mod fft;
mod fold;
mod gather;
mod gemm;
mod gemm8;
mod indices;
mod integers;
#[doc(hidden)]
pub mod internals;
mod kernel;
mod keys;
mod linalg;
mod lines;
mod masked;
mod math;
mod moves;
mod panels;
mod pool;
mod prepared;
mod product;
mod quantized;
mod reduce;
mod rope;
mod rows;
mod scan;
mod scatter;
mod select_top;
mod simd;
mod slices;
mod sort;
mod types;
mod unary;
mod view;
mod windows;

pub use attention::Mask;
pub use binary::Pair;
pub use chain::axes::Axes;
pub use chain::{results, takers, Link, Links, Operand, MAX_LINKS};
pub use conv::Conv;
pub use element::ElementType;
pub use elementwise::{Action, Bits, Comparison, Division, Test};
pub use fft::{Fft, Form};
pub use gemm8::MAX_TERMS as MAX_INT8_TERMS;
pub use indices::Beyond;
pub use kernel::{ChainPart, Kernel};
pub use linalg::Linear;
pub use masked::{Masked, Step, Total, MAX_STEPS};
pub use pool::{configure, WORTH_SHARING};
pub use prepared::Prepared;
pub use reduce::Reduction;
pub use rope::Rope;
pub use scan::Scan;
pub use types::Type;
pub use unary::Function;
pub use view::View;
pub use windows::{Choice, Total as WindowTotal, Windows};

/// Whether the machine has the vector instructions that products here are written for; without them BLAS is quicker.
pub fn has_vectors() -> bool {
    simd::Level::best() != simd::Level::Portable
}
