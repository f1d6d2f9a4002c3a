//! Brings nodes that stand beside each other into segments.

use super::{Code, Node, Work};
use crate::program::engine::Segment;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// How nodes are brought together.
pub struct Grouping<'a> {
    /// Whether a node may be in a segment: an operation.
    pub is_part: &'a dyn Fn(&Node) -> bool,
    /// Whether these are to be one.
    pub pays: &'a mut dyn FnMut(&[Node]) -> bool,
    pub segment: &'a dyn Fn(Code) -> Arc<dyn Segment>,
}

/// The code with its longest runs of parts as segments.
pub fn grouped(code: Code, how: Grouping) -> Code {
    let last_use = code.last_uses();
    let mut nodes = Vec::new();
    let mut rest = &code.nodes[..];
    while !rest.is_empty() {
        let parts = rest.iter().take_while(|node| (how.is_part)(node)).count();
        let (run, after) = rest.split_at(parts.max(1));
        let end = code.nodes.len() - after.len();
        if parts > 0 && (how.pays)(run) {
            nodes.push(node_of(run, end, &last_use, how.segment));
        } else {
            nodes.extend(run.iter().cloned());
        }
        rest = after;
    }
    Code { nodes, ..code }
}

/// One node for a run that ends before place `end`.
fn node_of(
    run: &[Node],
    end: usize,
    last_use: &[usize],
    segment: &dyn Fn(Code) -> Arc<dyn Segment>,
) -> Node {
    let made: Vec<u32> = run.iter().flat_map(|node| &node.outputs).copied().collect();
    let own: HashSet<u32> = made.iter().copied().collect();
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    // What it takes comes first, as the inputs of a block do.
    let mut taken: Vec<u32> = run
        .iter()
        .flat_map(|node| node.inputs.iter().flatten().copied())
        .filter(|value| !own.contains(value))
        .collect();
    taken.sort_unstable();
    taken.dedup();
    for value in taken.iter().chain(&made) {
        let next = numbers.len() as u32;
        numbers.insert(*value, next);
    }
    let nodes = run.iter().map(|node| Node {
        inputs: node
            .inputs
            .iter()
            .map(|value| value.map(|value| numbers[&value]))
            .collect(),
        outputs: node.outputs.iter().map(|value| numbers[value]).collect(),
        ..node.clone()
    });
    // What is needed afterwards comes out.
    let needed: SmallVec<[u32; 2]> = made
        .iter()
        .copied()
        .filter(|value| last_use[*value as usize] >= end)
        .collect();
    let code = Code {
        inputs: taken.len(),
        values: numbers.len(),
        nodes: nodes.collect(),
        outputs: needed.iter().map(|value| numbers[value]).collect(),
    };
    Node {
        work: Work::Segment(segment(code)),
        inputs: taken.into_iter().map(Some).collect(),
        outputs: needed,
        label: None,
        at: run.first().map_or(0, |node| node.at),
        spent: SmallVec::new(),
    }
}
