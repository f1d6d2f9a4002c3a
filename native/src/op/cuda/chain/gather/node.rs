//! Kernels that take elements by indices as nodes of MLX's graph.

use super::super::layout::THREADS;
use super::super::node::gather as image;
use super::kernel::Launch;
use super::{Composed, Gather};
use crate::base::{Device, Error, Result};
use crate::cpu::{self, Type};
use crate::mlx::cuda::generated::{self, Generating, Launched, Node};
use crate::mlx::{self, Stream};
use emlx_cpu::View;
use mlx_rs::Array;
use smallvec::SmallVec;

/// A node's work.
struct Gathering {
    gather: Gather,
    /// Bytes of an element.
    size: usize,
    types: SmallVec<[Type; 2]>,
    composed: Composed,
    stream: Stream,
}

impl Generating for Gathering {
    fn launch(&self, inputs: &[View], _: &View, found: &mut dyn FnMut(Launched)) {
        let Some((a, indices)) = inputs.split_first() else {
            return;
        };
        let Some(launch) = Launch::new(&self.gather, self.size, &self.types, a, indices) else {
            return;
        };
        if let Ok(image) = image(&launch.structure) {
            found(Launched {
                image,
                arguments: &launch.arguments,
                blocks: launch.blocks,
                threads: THREADS,
            });
        }
    }

    fn build(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Device::Gpu.enter(&self.stream)?;
        Ok(vec![(self.composed)(inputs)?])
    }
}

pub fn result(
    gather: Gather,
    a: &Array,
    indices: &[&Array],
    composed: Composed,
    s: &Stream,
) -> Result<Array> {
    let of = |index: &&Array| cpu::type_of(mlx::dtype(index)).filter(|of| of.is_integer());
    let types: Option<SmallVec<[Type; 2]>> = indices.iter().map(of).collect();
    let types = types.ok_or_else(|| Error::invalid("indices are integers"))?;
    let shape = gather.shape.clone();
    let gathering = Gathering {
        gather,
        size: mlx::dtype(a).size(),
        types,
        composed,
        stream: s.clone(),
    };
    let node = Node {
        generating: Box::new(gathering),
        keeps_layout: false,
    };
    let inputs: SmallVec<[&Array; 4]> = std::iter::once(a).chain(indices.iter().copied()).collect();
    let outputs = [(&shape[..], mlx::dtype(a))];
    let made = generated::nodes(node, &inputs, &outputs, s)?.pop();
    made.ok_or_else(|| Error::invalid("a gather has no result"))
}
