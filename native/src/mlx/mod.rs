//! The one place that sees MLX: mlx-c's functions (mlx-sys), the C++ in native/cpp and CUDA's driver. Everything here
//! is safe to call unless it says otherwise, and gives MLX's words as an error.
//!
//! mlx-rs gives the array handle. Its operations are not used: they take their stream from a type that cannot hold
//! a stream which is usable from any thread, and every operation here needs one.

mod array;
mod compile;
pub mod cuda;
mod custom_op;
mod device;
mod dtype;
mod error;
mod eval;
mod lock;
mod memory;
#[allow(dead_code, reason = "bound before an operation uses them")]
mod ops;
mod private;
mod process;
mod stream;
mod tape;
mod vector;

pub use array::*;
pub use compile::*;
#[cfg(emlx_kernels)]
pub use cuda::graph as captured;
pub use cuda::kernel::*;
pub use custom_op::*;
pub use device::*;
pub use error::thread_is_spent;
pub use eval::*;
pub use lock::*;
pub use memory::*;
pub use ops::*;
pub use private::unknown_version;
pub use process::*;
pub use stream::Stream;
pub use tape::{elements, Elements, Recorded, Tape};
pub use vector::Vector;
