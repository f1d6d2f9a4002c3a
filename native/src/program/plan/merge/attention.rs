//! Attention of one query a head on keys and values that lie by position, as what comes out does.

use super::Change;
use crate::base::Dtype;
use crate::op::{AttentionLayout, MaskMode, Op};
use crate::program::plan::facts::{is_float, output, Facts};
use crate::program::plan::{Node, Work};
use smallvec::{smallvec, SmallVec};

pub fn attention(facts: &Facts) -> Vec<Change> {
    let nodes = facts.code.nodes.iter();
    nodes.filter_map(|node| of_attention(facts, node)).collect()
}

fn of_attention(facts: &Facts, node: &Node) -> Option<Change> {
    let Op::ScaledDotProductAttention {
        scale,
        mask: mode,
        layout: Some(AttentionLayout::Bshd),
    } = node.op()?
    else {
        return None;
    };
    let [Some(q), Some(k), Some(v), mask, None] = node.inputs[..] else {
        return None;
    };
    let dtype = facts.dtype(q);
    let ([_, 1, _, _], [_, length, _, _]) = (facts.shape(q), facts.shape(k)) else {
        return None;
    };
    let has_mask = match (mode, mask) {
        (MaskMode::None, None) => true,
        (MaskMode::Array, Some(mask)) => {
            let fits = matches!(facts.shape(mask), [_, _, 1, own] if own == length);
            fits && facts.dtype(mask) == Dtype::Bool
        }
        _ => false,
    };
    let keys = facts.shape(k);
    if !has_mask || !is_float(dtype) || !facts.is(k, keys, dtype) || !facts.is(v, keys, dtype) {
        return None;
    }
    // What comes out is mostly taken in another shape.
    let mut last = output(node)?;
    if let Some((_, reshaped)) = facts.only_user(last) {
        if let (Some(Op::Reshape { .. }), Some(output)) = (reshaped.op(), output(reshaped)) {
            last = output;
        }
    }
    let at = facts.place(last)?;
    let op = Op::CacheAttention {
        scale: *scale,
        shape: facts.shape(last).to_vec(),
    };
    let node = Node {
        work: Work::Op(op),
        inputs: smallvec![Some(q), Some(k), Some(v), mask],
        outputs: smallvec![last],
        label: node.label.clone(),
        at: node.at,
        spent: SmallVec::new(),
    };
    Some(Change { at, node })
}
