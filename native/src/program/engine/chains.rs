//! Chains that do not depend on one another, as one kernel of our own: threads share the work of all of them, and small
//! ones have no node each.

use super::{Given, Segment};
use crate::base::{Device, Error, Result};
use crate::cpu::{self, ChainOf};
use crate::mlx::Stream;
use crate::op::{Applied, Crossed};
use crate::program::ir::place;
use mlx_rs::Array;
use smallvec::SmallVec;
use std::sync::Arc;

/// A chain, and where among the inputs its own are.
#[derive(Debug)]
pub struct Member {
    pub segment: Arc<dyn Segment>,
    pub inputs: SmallVec<[usize; 8]>,
}

#[derive(Debug)]
pub struct Chains {
    pub members: Vec<Member>,
}

impl Segment for Chains {
    fn name(&self) -> &'static str {
        "chains"
    }

    fn place(&self, at: usize) -> String {
        place(at, self.name(), None)
    }

    fn operations(&self) -> usize {
        let own = |member: &Member| member.segment.operations();
        self.members.iter().map(own).sum()
    }

    fn build(&self, inputs: &Given, device: Device, stream: &Stream) -> Result<Applied> {
        let of = |member: &Member| -> SmallVec<[Option<&Array>; 8]> {
            let own = member.inputs.iter();
            own.map(|i| inputs.arrays.get(*i).copied().flatten())
                .collect()
        };
        // A recording has kernels that are computed on the spot.
        if stream.tape().is_some() {
            let mut outputs = SmallVec::new();
            for member in &self.members {
                let arrays = of(member);
                let own = |i: usize| (inputs.number)(*member.inputs.get(i)?);
                let given = Given {
                    arrays: &arrays,
                    number: &own,
                };
                outputs.extend(member.segment.build(&given, device, stream)?.outputs);
            }
            return Ok(Applied {
                outputs,
                crossed: Crossed::default(),
            });
        }
        let mut taken = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let chain = member.segment.as_chain();
            let chain = chain.ok_or_else(|| Error::invalid("a member is no chain"))?;
            let present: SmallVec<[&Array; 8]> = of(member).into_iter().flatten().collect();
            let reshaped = chain.reshaped(&present, stream)?;
            taken.push((chain, present, reshaped));
        }
        let chains = taken.iter().map(|(chain, present, reshaped)| ChainOf {
            links: &chain.links,
            inputs: super::chain::Chain::taken(present, reshaped),
            shape: &chain.signature.0,
        });
        let chains: Vec<ChainOf> = chains.collect();
        Ok(Applied {
            outputs: cpu::chains(&chains, stream)?,
            crossed: Crossed::default(),
        })
    }
}
