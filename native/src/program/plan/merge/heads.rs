//! Of three products of one input: two whose heads are turned alike, queries and keys, and one whose heads are not,
//! values; those of keys and values are each repeated.

use super::Change;
use crate::op::Op;
use crate::program::plan::facts::{inputs, is_float, output, Facts};
use crate::program::plan::{Node, Work};
use smallvec::{smallvec, SmallVec};

/// What turns heads.
#[derive(Clone, Debug, PartialEq)]
struct Rotation {
    offset: u32,
    freqs: Option<u32>,
    base: Option<f32>,
    scale: f32,
}

/// What becomes of a product, as far as it is reshapes, one norm, one rotation and one repetition that nothing else
/// uses.
#[derive(Clone, Debug)]
struct Heads {
    value: u32,
    last: u32,
    /// The place of the last node.
    at: Option<usize>,
    norm: Option<(u32, f64)>,
    rotation: Option<Rotation>,
    repeat: i32,
    /// The size of a head. Where heads are not turned, it is that of the axis that they are reshaped to.
    size: Option<i32>,
}

pub fn heads(facts: &Facts) -> Vec<Change> {
    let nodes = facts.code.nodes.iter().enumerate();
    nodes
        .filter_map(|(at, node)| of_products(facts, at, node))
        .collect()
}

fn of_products(facts: &Facts, at: usize, node: &Node) -> Option<Change> {
    let is_of_three = matches!(
        node.op()?,
        Op::Products {
            gated: false,
            shape: None,
            ..
        } | Op::QuantizedProducts {
            gated: false,
            shape: None,
            ..
        }
    );
    let x = node.inputs.first().copied().flatten()?;
    let [a, b, c] = node.outputs[..] else {
        return None;
    };
    if !is_of_three || !is_float(facts.dtype(x)) {
        return None;
    }
    let all = [a, b, c].map(|value| Heads::of(facts, value));
    let [Some(a), Some(b), Some(c)] = all else {
        return None;
    };
    let (turned, plain): (Vec<Heads>, Vec<Heads>) = [a, b, c]
        .into_iter()
        .partition(|heads| heads.rotation.is_some());
    let (Ok([first, second]), Ok([v])) = (
        <[Heads; 2]>::try_from(turned),
        <[Heads; 1]>::try_from(plain),
    ) else {
        return None;
    };
    let (q, k) = match first.repeat {
        1 => (first, second),
        _ => (second, first),
    };
    let rotation = q.rotation.clone()?;
    let is_alike = k.rotation.as_ref() == Some(&rotation)
        && q.repeat == 1
        && k.repeat == v.repeat
        && k.size == v.size
        && q.norm.map(|(_, eps)| eps) == k.norm.map(|(_, eps)| eps)
        && v.norm.is_none();
    if !is_alike {
        return None;
    }
    let lead = q.lead(facts)?;
    if k.lead(facts)? != lead || v.lead(facts)? != lead {
        return None;
    }
    let place = [&q, &k, &v].iter().filter_map(|heads| heads.at).min()?;
    let weights = [q.norm, k.norm].map(|norm| norm.map(|(weight, _)| weight));
    let needed = [
        Some(rotation.offset),
        rotation.freqs,
        weights[0],
        weights[1],
    ];
    let mut needed = needed.iter().flatten();
    if place <= at || !needed.all(|value| facts.is_before(*value, place)) {
        return None;
    }
    let op = Op::RopeHeads {
        lead,
        size: q.size?,
        repeat: k.repeat,
        eps: q.norm.map(|(_, eps)| eps),
        base: rotation.base,
        scale: rotation.scale,
    };
    let node = Node {
        work: Work::Op(op),
        inputs: smallvec![
            Some(q.value),
            Some(k.value),
            Some(v.value),
            Some(rotation.offset),
            weights[0],
            weights[1],
            rotation.freqs
        ],
        outputs: smallvec![q.last, k.last, v.last],
        label: None,
        at: facts.code.nodes[place].at,
        spent: SmallVec::new(),
    };
    Some(Change { at: place, node })
}

impl Heads {
    fn of(facts: &Facts, value: u32) -> Option<Heads> {
        let mut heads = Heads {
            value,
            last: value,
            at: None,
            norm: None,
            rotation: None,
            repeat: 1,
            size: None,
        };
        while let Some((at, node)) = facts.only_user(heads.last) {
            let Some(last) = heads.link(facts, node) else {
                break;
            };
            heads.last = last;
            heads.at = Some(at);
        }
        let elements =
            |value: u32| -> i64 { facts.shape(value).iter().map(|n| i64::from(*n)).product() };
        // Nothing may be missing of what a repetition comes to.
        let is_whole = elements(heads.last) == elements(value) * i64::from(heads.repeat);
        (heads.size.is_some() && heads.at.is_some() && is_whole).then_some(heads)
    }

    /// Takes a node that is the only one to use what there is by now; gives its output.
    fn link(&mut self, facts: &Facts, node: &Node) -> Option<u32> {
        let (value, output) = (self.last, output(node)?);
        let [_, columns] = *facts.shape(self.value) else {
            return None;
        };
        match node.op()? {
            Op::Reshape { .. } => {
                let last = *facts.shape(output).last()?;
                // The first reshape to heads says how large they are.
                if self.size.is_none() && last < columns {
                    self.size = Some(last);
                }
            }
            Op::RmsNorm { eps } => {
                let [_, weight] = inputs(node)?;
                let size = *facts.shape(output).last()?;
                let fits = self.norm.is_none()
                    && self.rotation.is_none()
                    && self.repeat == 1
                    && self.size == Some(size)
                    && node.inputs[0] == Some(value)
                    && facts.is(weight, &[size], facts.dtype(value));
                if !fits {
                    return None;
                }
                self.norm = Some((weight, *eps));
            }
            Op::Rope {
                dims,
                traditional: false,
                base,
                scale,
            } => {
                let [Some(x), Some(offset), freqs] = node.inputs[..] else {
                    return None;
                };
                let rows = facts.shape(self.value)[0];
                let [own, heads, 1, size] = *facts.shape(x) else {
                    return None;
                };
                let fits = self.rotation.is_none()
                    && self.repeat == 1
                    && x == value
                    && own == rows
                    && heads * size == columns
                    && *dims == size
                    && self.size == Some(size)
                    && facts.shape(offset) == [rows];
                if !fits {
                    return None;
                }
                self.rotation = Some(Rotation {
                    offset,
                    freqs,
                    base: *base,
                    scale: *scale,
                });
            }
            Op::BroadcastTo { .. } if self.repeat == 1 => {
                self.repeat = repetition(facts.shape(value), facts.shape(output), self.size?)?;
            }
            _ => return None,
        }
        Some(output)
    }

    /// The axes before those of the heads and what they hold.
    fn lead(&self, facts: &Facts) -> Option<Vec<i32>> {
        let [rows, columns] = *facts.shape(self.value) else {
            return None;
        };
        let size = self.size?;
        let heads = columns / size * self.repeat;
        match facts.shape(self.last) {
            [lead @ .., own, last] if *last == size && *own == heads => {
                (lead.iter().product::<i32>() == rows).then(|| lead.to_vec())
            }
            _ => None,
        }
    }
}

/// How often one axis is repeated, between the heads and what they hold.
fn repetition(from: &[i32], to: &[i32], size: i32) -> Option<i32> {
    if from.len() != to.len() {
        return None;
    }
    let mut other = (0..from.len()).filter(|axis| from[*axis] != to[*axis]);
    let (axis, None) = (other.next()?, other.next()) else {
        return None;
    };
    let inside: i32 = to[axis + 1..].iter().product();
    (from[axis] == 1 && inside == size).then_some(to[axis])
}
