//! Attention of one query a head on keys and values that lie by position, as what comes out does.

use super::facts::{inputs, is_float, output, Facts};
use super::Change;
use crate::dtype::Dtype;
use crate::op::{MaskMode, Op};
use crate::program::plan::{Node, Work};
use smallvec::{smallvec, SmallVec};

pub fn attention(facts: &Facts) -> Vec<Change> {
    let nodes = facts.code.nodes.iter();
    nodes.filter_map(|node| of_attention(facts, node)).collect()
}

fn of_attention(facts: &Facts, node: &Node) -> Option<Change> {
    let Op::ScaledDotProductAttention { scale, mask: mode } = node.op()? else {
        return None;
    };
    let [Some(q), Some(k), Some(v), mask, None] = node.inputs[..] else {
        return None;
    };
    let [q, k, v] = [
        by_position(facts, q)?,
        by_position(facts, k)?,
        by_position(facts, v)?,
    ];
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
    // What comes out lies by position again, mostly in another shape.
    let (_, transposed) = facts.only_user(output(node)?)?;
    let mut last = output(transposed).filter(|_| is_by_head(transposed.op()))?;
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

fn is_by_head(op: Option<&Op>) -> bool {
    matches!(op, Some(Op::Transpose { axes }) if axes[..] == [0, 2, 1, 3])
}

/// What a value by head was by position.
fn by_position(facts: &Facts, value: u32) -> Option<u32> {
    let (op, node) = facts.operation(value)?;
    is_by_head(Some(op))
        .then(|| inputs(node))?
        .map(|[source]| source)
}
