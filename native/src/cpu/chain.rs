//! Chains as nodes of MLX's graph.

use super::node::{self, Layout};
use super::{dtype_of, goes_into, Links};
use crate::base::{Dtype, Error, Result};
use crate::mlx::{self, Outputs, Stream};
use emlx_cpu::{ChainPart, Kernel};
use mlx_rs::Array;
use smallvec::SmallVec;

/// Links over arrays that broadcast to `shape`, whose types are those that the links take. Each result is of the type of
/// its link.
pub fn chain(
    links: Links,
    inputs: &[&Array],
    shape: &[i32],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    let last = links.len().saturating_sub(1);
    let results = links.iter().enumerate();
    let results = results.filter(|(i, link)| link.is_kept || *i == last);
    let dtypes: SmallVec<[Dtype; 4]> = results.map(|(_, link)| dtype_of(link.to)).collect();
    chain_of(links, inputs, shape, &dtypes, s)
}

/// The same with results of these types, whose elements are those that the links give.
pub fn chain_of(
    links: Links,
    inputs: &[&Array],
    shape: &[i32],
    dtypes: &[Dtype],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    check_chain(inputs, shape)?;
    let takers = match dtypes.len() {
        1 => SmallVec::new(),
        _ => emlx_cpu::takers(&links, inputs.len()),
    };
    let outputs = Outputs {
        shape,
        dtypes,
        takers: &takers,
    };
    node::several(Kernel::Chain(links), inputs, outputs, s)
}

/// The same with several results of one type as one array, one behind the other along a first axis of its own.
pub fn joined_chain(
    links: Links,
    inputs: &[&Array],
    shape: &[i32],
    dtype: Dtype,
    s: &Stream,
) -> Result<Array> {
    check_chain(inputs, shape)?;
    let shape = [&[emlx_cpu::results(&links) as i32], shape].concat();
    node::typed(Kernel::Chain(links), Layout::Rows, inputs, &shape, dtype, s)
}

/// A chain of [`chains`]: what it takes, and the shape of what it gives.
pub struct ChainOf<'a> {
    pub links: &'a Links,
    pub inputs: SmallVec<[&'a Array; 4]>,
    pub shape: &'a [i32],
}

/// The results of chains that do not depend on one another, by one kernel.
pub fn chains(chains: &[ChainOf], s: &Stream) -> Result<SmallVec<[Array; 2]>> {
    let mut inputs: SmallVec<[&Array; 16]> = SmallVec::new();
    let mut dtypes: SmallVec<[Dtype; 16]> = SmallVec::new();
    let mut takers: SmallVec<[u8; 16]> = SmallVec::new();
    let mut parts = Vec::with_capacity(chains.len());
    let mut kernels = Vec::with_capacity(chains.len());
    for chain in chains {
        check_chain(&chain.inputs, chain.shape)?;
        let last = chain.links.len().saturating_sub(1);
        let results = chain.links.iter().enumerate();
        let results = results.filter(|(i, link)| link.is_kept || *i == last);
        let before = dtypes.len();
        dtypes.extend(results.map(|(_, link)| dtype_of(link.to)));
        takers.extend(emlx_cpu::takers(chain.links, chain.inputs.len()));
        inputs.extend(chain.inputs.iter().copied());
        let (own, results) = (chain.inputs.len(), dtypes.len() - before);
        parts.push(mlx::Part {
            inputs: own,
            outputs: results,
            shape: chain.shape,
        });
        kernels.push(ChainPart {
            links: chain.links.clone(),
            inputs: own,
            results,
        });
    }
    let kernel = Kernel::Chains(kernels.into());
    node::of_parts(kernel, &inputs, &parts, &dtypes, &takers, s)
}

fn check_chain(inputs: &[&Array], shape: &[i32]) -> Result<()> {
    match inputs.iter().find(|input| !goes_into(input.shape(), shape)) {
        None => Ok(()),
        Some(input) => Err(Error::invalid(format!(
            "a chain of shape {shape:?} is given an array of shape {:?}",
            input.shape()
        ))),
    }
}
