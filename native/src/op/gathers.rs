//! Gather, take and take_along_axis by generated kernels for CUDA: where the elements of their results are. Called by
//! indexing.rs.

use super::generated;
use super::generated::gather::{self, Along, Composed, Gather, Index};
use super::shape::broadcast_shape;
use crate::base::Result;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

/// Whether a kernel takes elements of an array by indices.
pub fn takes(a: &Array, indices: &[&Array], s: &Stream) -> bool {
    let fits = |index: &&Array| index.size() > 0 && mlx::dtype(index).is_integer();
    s.is_gpu()
        && a.size() > 0
        && !indices.is_empty()
        && indices.iter().all(fits)
        && generated::unavailable().is_none()
}

fn axes(range: std::ops::Range<usize>) -> impl Iterator<Item = Option<u8>> {
    range.map(|axis| Some(axis as u8))
}

fn none(count: usize) -> impl Iterator<Item = Option<u8>> {
    std::iter::repeat_n(None, count)
}

/// Slices of these sizes, behind the axes that the indices have together. None where these do not broadcast.
pub fn gather(shape: &[i32], indices: &[&[i32]], along: &[i32], sizes: &[i32]) -> Option<Gather> {
    let mut all = Vec::new();
    for index in indices {
        all = broadcast_shape(&all, index)?;
    }
    let own = indices.iter().zip(along).map(|(index, axis)| Index {
        axis: *axis as u8,
        last: shape[*axis as usize] - sizes[*axis as usize],
        along: none(all.len() - index.len())
            .chain(axes(0..index.len()))
            .chain(none(shape.len()))
            .collect(),
    });
    Some(Gather {
        shape: all.iter().chain(sizes).copied().collect(),
        along: none(all.len()).chain(axes(0..shape.len())).collect(),
        indices: own.collect(),
    })
}

/// Slices along an axis, in whose place the axes of the index are.
pub fn take(shape: &[i32], index: &[i32], axis: usize) -> Gather {
    let (before, after) = (&shape[..axis], &shape[axis + 1..]);
    let along: Along = axes(0..axis)
        .chain(none(index.len()))
        .chain(axes(axis + 1..shape.len()))
        .collect();
    let of_index: Along = none(axis)
        .chain(axes(0..index.len()))
        .chain(none(after.len()))
        .collect();
    Gather {
        shape: before.iter().chain(index).chain(after).copied().collect(),
        along,
        indices: one(axis, shape, of_index),
    }
}

/// Elements along an axis. None where the index has not the array's axes, or another size of one than 1 or the array's.
pub fn take_along(shape: &[i32], index: &[i32], axis: usize) -> Option<Gather> {
    if shape.len() != index.len() {
        return None;
    }
    let sizes = shape.iter().zip(index).enumerate();
    let sizes = sizes.map(|(i, (own, index))| match (i == axis, *own, *index) {
        (true, _, index) => Some(index),
        (_, own, index) if own == index || index == 1 => Some(own),
        (_, 1, index) => Some(index),
        _ => None,
    });
    let sizes: SmallVec<[i32; 6]> = sizes.collect::<Option<_>>()?;
    let along: Along = (0..shape.len())
        .map(|i| (i != axis).then_some(i as u8))
        .collect();
    Some(Gather {
        shape: sizes,
        along,
        indices: one(axis, shape, axes(0..index.len()).collect()),
    })
}

fn one(axis: usize, shape: &[i32], along: Along) -> SmallVec<[Index; 2]> {
    let index = Index {
        axis: axis as u8,
        last: shape[axis] - 1,
        along,
    };
    [index].into_iter().collect()
}

/// The result of what [`takes`], by a kernel. None where it is empty.
pub fn by_kernel(
    gather: Gather,
    a: &Array,
    indices: &[&Array],
    composed: Composed,
    s: &Stream,
) -> Result<Option<Array>> {
    if gather.shape.contains(&0) {
        return Ok(None);
    }
    gather::result(gather, a, indices, composed, s).map(Some)
}
