//! Generated kernels that take elements by indices: gather, take and take_along_axis as one launch each, which reads
//! indices in their own type, brings them into the array, and moves rows in packs. Called by `op/indexing.rs`.

#[cfg(emlx_kernels)]
pub(super) mod kernel;
#[cfg(emlx_kernels)]
mod node;

use crate::base::Result;
use crate::mlx::Stream;
use mlx_rs::Array;
use smallvec::SmallVec;

/// For each axis of the result the axis of another array that goes along with it, if one does.
pub type Along = SmallVec<[Option<u8>; 6]>;

/// An array of indices.
#[derive(Clone, Debug, PartialEq)]
pub struct Index {
    /// What it is an index along.
    pub axis: u8,
    /// The last place that it may name.
    pub last: i32,
    pub along: Along,
}

/// Where the elements of a result are.
#[derive(Clone, Debug, PartialEq)]
pub struct Gather {
    pub shape: SmallVec<[i32; 6]>,
    /// Axes of the array.
    pub along: Along,
    pub indices: SmallVec<[Index; 2]>,
}

/// What computes the same from the array and the indices by MLX's kernels.
pub type Composed = Box<dyn Fn(&[Array]) -> Result<Array> + Send + Sync>;

/// The elements of an array that indices, which are integers, name: negative ones count from the end, and what is
/// outside is clamped. Nothing is empty, and there are generated kernels.
pub fn result(
    gather: Gather,
    a: &Array,
    indices: &[&Array],
    composed: Composed,
    s: &Stream,
) -> Result<Array> {
    #[cfg(emlx_kernels)]
    {
        node::result(gather, a, indices, composed, s)
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (gather, a, indices, composed, s);
        Err(crate::base::Error::invalid(
            "generated kernels are not built here",
        ))
    }
}
