//! Reductions over the same axes of one shape become one kernel for CUDA, with the operations on elements that stand
//! before them, between them and behind them: a softmax, a variance, a norm, a loss.

use super::chains::links;
use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::Result;
use crate::cpu::Operand;
use crate::op::generated::reduction::{parts, Kept, Rows, Step};
use crate::op::{self, Op};
use crate::program::engine::rows::Reduced;
use crate::program::types::Types;
use smallvec::SmallVec;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

pub struct RowsPass;

impl Pass for RowsPass {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        match target.generated {
            Ok(()) => target.fuse.then_some("fuse: true has MLX compile them"),
            Err(super::KERNELS_OF_CPU) => Some("its kernels are generated for CUDA"),
            Err(reason) => Some(reason),
        }
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        scope.rewritten(code, |code, types| reduced(code, types, scope))
    }
}

/// Steps of a kernel, at most: what a byte numbers, with room for casts.
const MAX_STEPS: usize = 96;
/// Arrays that a kernel takes, and that it gives, at most.
const MAX_INPUTS: usize = 12;
const MAX_RESULTS: usize = 6;
/// Nodes that are looked at for one kernel: what lies between its first and its last.
const MAX_SPAN: usize = 512;

fn reduced(mut code: Code, types: &Types, scope: &Scope) -> Code {
    let mut seen: HashSet<u32> = HashSet::new();
    loop {
        let next = code.nodes.iter().position(|node| {
            let output = node.outputs.first();
            let is_new = output.is_some_and(|value| !seen.contains(value));
            is_new && Frame::of(node, types).is_some()
        });
        let Some(first) = next else { return code };
        seen.extend(code.nodes[first].outputs.first());
        let Some(frame) = Frame::of(&code.nodes[first], types) else {
            return code;
        };
        let mut group = Group::new(&code, types, frame, first);
        group.grow();
        if group.members.len() < 2 {
            continue;
        }
        if let Some(node) = group.node() {
            let members = group.members.clone();
            scope.took(|| {
                let names = members.iter().map(|i| code.nodes[*i].name());
                let names = names.collect::<Vec<_>>().join(", ");
                format!("instruction {}: {names}", node.at)
            });
            code = replaced(&code, &members, node);
        }
    }
}

/// The code with one node in the place of the last of several. What depends on them comes after it.
fn replaced(code: &Code, members: &BTreeSet<usize>, node: Node) -> Code {
    let last = members.last().copied().unwrap_or(0);
    let dependent = dependent(code, members);
    let is_left = |i: &usize| !members.contains(i);
    let before = (0..=last).filter(|i| is_left(i) && !dependent.contains(i));
    let between = (0..=last).filter(|i| is_left(i) && dependent.contains(i));
    let after = last + 1..code.nodes.len();
    let mut nodes: Vec<Node> = before.map(|i| code.nodes[i].clone()).collect();
    nodes.push(node);
    nodes.extend(between.chain(after).map(|i| code.nodes[i].clone()));
    Code {
        nodes,
        inputs: code.inputs,
        values: code.values,
        outputs: code.outputs.clone(),
    }
}

/// The nodes between the first and the last member that depend on members and are none.
fn dependent(code: &Code, members: &BTreeSet<usize>) -> HashSet<usize> {
    let (Some(first), Some(last)) = (members.first(), members.last()) else {
        return HashSet::new();
    };
    let mut values: HashSet<u32> = HashSet::new();
    let mut nodes = HashSet::new();
    for i in *first..=*last {
        let node = &code.nodes[i];
        let is_member = members.contains(&i);
        let depends = node
            .inputs
            .iter()
            .flatten()
            .any(|value| values.contains(value));
        if is_member || depends {
            values.extend(node.outputs.iter().copied());
        }
        if depends && !is_member {
            nodes.insert(i);
        }
    }
    nodes
}

/// What is folded: some axes of a shape.
#[derive(Clone, Debug, PartialEq)]
struct Frame {
    shape: Vec<i32>,
    axes: SmallVec<[u8; 4]>,
}

fn count(shape: &[i32]) -> i64 {
    shape.iter().map(|size| i64::from(*size)).product()
}

impl Frame {
    /// That of a reduction that there is a kernel for.
    fn of(node: &Node, types: &Types) -> Option<Frame> {
        let op = node.op()?;
        let &[Some(input)] = &node.inputs[..] else {
            return None;
        };
        let (shape, from) = types.values.get(input as usize)?;
        let (_, to) = types.values.get(*node.outputs.first()? as usize)?;
        op::fold_steps(op, *from, *to)?;
        let (axes, _) = op::folded_axes(op, shape.len())?;
        let frame = Frame {
            shape: shape.clone(),
            axes,
        };
        let folded = frame.axes.iter().map(|axis| shape[usize::from(*axis)]);
        // Of one element each, results and elements have one shape.
        (count(shape) > 0 && folded.map(i64::from).product::<i64>() > 1).then_some(frame)
    }

    /// The shape of results whose folded axes stay.
    fn kept(&self) -> Vec<i32> {
        let sizes = self.shape.iter().enumerate();
        sizes
            .map(|(axis, size)| match self.axes.contains(&(axis as u8)) {
                true => 1,
                false => *size,
            })
            .collect()
    }

    fn squeezed(&self) -> Vec<i32> {
        let sizes = self.shape.iter().enumerate();
        let kept = sizes.filter(|(axis, _)| !self.axes.contains(&(*axis as u8)));
        kept.map(|(_, size)| *size).collect()
    }

    /// Whether a shape is that of results.
    fn is_narrow(&self, shape: &[i32]) -> bool {
        shape == self.kept() || shape == self.squeezed()
    }
}

/// `shape` with axes of 1 in front.
fn padded(shape: &[i32], rank: usize) -> Vec<i32> {
    let missing = rank.saturating_sub(shape.len());
    [vec![1; missing], shape.to_vec()].concat()
}

/// What a node is beside the folds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    Fold,
    /// Its value has the elements' shape.
    Wide,
    /// Its value has a result's shape.
    Narrow,
    /// The same results in the other shape that they may have.
    Reshape,
}

/// Whether two launches have the results, of which the second one knows single elements beside what the first one
/// gives.
fn is_halved(rows: &Rows, inputs: &[(u32, Vec<i32>)]) -> bool {
    let levels = rows.levels();
    let is_single = |operand: &Operand| match *operand {
        Operand::Input(input) => count(&inputs[usize::from(input)].1) == 1,
        Operand::Link(step) => levels[usize::from(step)] > 0,
    };
    let mut steps = rows.steps.iter().zip(&levels);
    let is_known = steps.all(|(step, level)| match step {
        Step::Link(link) if *level > 0 => link.operands().iter().all(is_single),
        _ => *level <= 1,
    });
    is_known && rows.results.iter().all(|kept| !kept.is_wide)
}

/// Nodes that become one kernel, while they are found.
struct Group<'a> {
    code: &'a Code,
    types: &'a Types,
    frame: Frame,
    /// In their order.
    members: BTreeSet<usize>,
    /// The node that makes a value, and those that take it.
    maker: Vec<Option<usize>>,
    takers: Vec<SmallVec<[usize; 4]>>,
    is_output: Vec<bool>,
    /// Nodes that do not fit.
    refused: HashSet<usize>,
    /// Whether one launch folds all.
    is_whole: bool,
}

impl<'a> Group<'a> {
    fn new(code: &'a Code, types: &'a Types, frame: Frame, first: usize) -> Group<'a> {
        let mut maker = vec![None; code.values];
        let mut takers = vec![SmallVec::new(); code.values];
        for (i, node) in code.nodes.iter().enumerate() {
            for value in &node.outputs {
                maker[*value as usize] = Some(i);
            }
            for value in node.inputs.iter().flatten() {
                takers[*value as usize].push(i);
            }
        }
        let mut is_output = vec![false; code.values];
        for value in &code.outputs {
            is_output[*value as usize] = true;
        }
        let is_whole = parts(&frame.shape, &frame.axes) == 1;
        Group {
            code,
            types,
            frame,
            members: BTreeSet::from([first]),
            maker,
            takers,
            is_output,
            refused: HashSet::new(),
            is_whole,
        }
    }

    fn shape(&self, value: u32) -> &'a [i32] {
        &self.types.values[value as usize].0
    }

    fn output(&self, node: usize) -> Option<u32> {
        self.code.nodes[node].outputs.first().copied()
    }

    fn is_made_here(&self, value: u32) -> bool {
        self.maker[value as usize].is_some_and(|maker| self.members.contains(&maker))
    }

    /// Takes in what stands before and behind, as long as there is something.
    fn grow(&mut self) {
        loop {
            let candidates = self.candidates();
            let Some(next) = candidates.into_iter().find(|i| self.fits(*i)) else {
                return;
            };
            self.members.insert(next);
        }
    }

    /// Nodes beside the members, those that make what they take first.
    fn candidates(&mut self) -> Vec<usize> {
        let mut makers = BTreeSet::new();
        let mut takers = BTreeSet::new();
        for i in &self.members {
            let node = &self.code.nodes[*i];
            let taken = node.inputs.iter().flatten();
            makers.extend(taken.filter_map(|value| self.maker[*value as usize]));
            for value in &node.outputs {
                takers.extend(self.takers[*value as usize].iter().copied());
            }
        }
        let is_new = |i: &usize| !self.members.contains(i) && !self.refused.contains(i);
        let makers = makers.iter().rev().copied().filter(is_new);
        let all = makers.chain(takers.iter().copied().filter(is_new));
        all.collect()
    }

    /// Whether a node can be one of the members. One that never can is not asked again.
    fn fits(&mut self, i: usize) -> bool {
        let Some(role) = self.role(i) else {
            self.refused.insert(i);
            return false;
        };
        let Some(value) = self.output(i) else {
            return false;
        };
        let takes = |group: &Group| {
            let inputs = group.code.nodes[i].inputs.iter().flatten();
            inputs.copied().any(|value| group.is_made_here(value))
        };
        if !takes(self) {
            // What is needed elsewhere too stays by itself.
            let mut takers = self.takers[value as usize].iter();
            let is_alone = takers.all(|taker| self.members.contains(taker));
            if role != Role::Wide || !is_alone || self.is_output[value as usize] {
                return false;
            }
        }
        let mut members = self.members.clone();
        members.insert(i);
        let (Some(first), Some(last)) = (members.first(), members.last()) else {
            return false;
        };
        if last - first > MAX_SPAN {
            return false;
        }
        let dependent = dependent(self.code, &members);
        // Nothing goes out and comes back, and what has an effect keeps its place.
        let made: HashSet<u32> = dependent
            .iter()
            .flat_map(|i| self.code.nodes[*i].outputs.iter().copied())
            .collect();
        let comes_back = members.iter().any(|i| {
            let mut taken = self.code.nodes[*i].inputs.iter().flatten();
            taken.any(|value| made.contains(value))
        });
        let has_effect = dependent.iter().any(|i| self.code.nodes[*i].has_effect());
        if comes_back || has_effect {
            return false;
        }
        std::mem::swap(&mut self.members, &mut members);
        let rows = self.rows();
        if rows.is_none() {
            // Nor with further members.
            self.refused.insert(i);
        }
        let is_fine = rows.is_some_and(|(rows, inputs, results)| {
            rows.steps.len() <= MAX_STEPS
                && inputs.len() <= MAX_INPUTS
                && results.len() <= MAX_RESULTS
                && (self.is_whole || is_halved(&rows, &inputs))
        });
        if !is_fine {
            std::mem::swap(&mut self.members, &mut members);
        }
        is_fine
    }

    fn role(&self, i: usize) -> Option<Role> {
        let node = &self.code.nodes[i];
        if let Some(frame) = Frame::of(node, self.types) {
            return (frame == self.frame).then_some(Role::Fold);
        }
        let shape = self.shape(self.output(i)?);
        let is_reshape = matches!(
            node.op(),
            Some(Op::Reshape { .. } | Op::Squeeze { .. } | Op::ExpandDims { .. })
        );
        if is_reshape {
            let from = self.shape(node.inputs.first().copied().flatten()?);
            let is_narrow = self.frame.is_narrow(shape) && self.frame.is_narrow(from);
            return is_narrow.then_some(Role::Reshape);
        }
        links(node, self.types)?;
        match () {
            _ if shape == self.frame.shape => Some(Role::Wide),
            _ if self.frame.is_narrow(shape) => Some(Role::Narrow),
            _ => None,
        }
    }

    /// The shape that a member takes a value in beside the elements; None where it is another one than the kernel's.
    fn taken_shape(&self, value: u32, by: Role, of: &[i32]) -> Option<Vec<i32>> {
        let (own, rank) = (self.shape(value), self.frame.shape.len());
        let kept = self.frame.kept();
        match by {
            Role::Fold => (own == self.frame.shape).then(|| own.to_vec()),
            // As it is broadcast.
            Role::Wide => {
                let own = padded(own, rank);
                let is_made = self.is_made_here(value);
                let fits = own == self.frame.shape || own == kept;
                (!is_made || fits).then_some(own)
            }
            Role::Narrow if count(own) == 1 && !self.is_made_here(value) => Some(vec![1; rank]),
            // Beside results of one shape.
            Role::Narrow => (own == of || padded(own, of.len()) == of).then_some(kept),
            Role::Reshape => self.frame.is_narrow(own).then_some(kept),
        }
    }

    /// The steps, the values that they take in the shapes that they take them in, and the values that they give.
    #[allow(clippy::type_complexity)]
    fn rows(&self) -> Option<(Rows, Vec<(u32, Vec<i32>)>, Vec<u32>)> {
        let mut rows = Rows::default();
        let mut inputs: Vec<(u32, Vec<i32>)> = Vec::new();
        let mut made: Vec<(u32, Operand)> = Vec::new();
        let mut results = Vec::new();
        for i in &self.members {
            let node = &self.code.nodes[*i];
            let (role, value) = (self.role(*i)?, self.output(*i)?);
            let shape = self.shape(value);
            let taken = node.inputs.iter().map(|input| {
                let Some(input) = *input else {
                    return Some(None);
                };
                let wanted = self.taken_shape(input, role, shape)?;
                if let Some((_, operand)) = made.iter().find(|(of, _)| *of == input) {
                    return Some(Some(*operand));
                }
                let taken = (input, wanted);
                let known = inputs.iter().position(|other| *other == taken);
                let number = known.unwrap_or(inputs.len());
                if known.is_none() {
                    inputs.push(taken);
                }
                Some(Some(Operand::Input(number as u8)))
            });
            let taken: Vec<Option<Operand>> = taken.collect::<Option<_>>()?;
            let first = rows.steps.len() as u8;
            let moved = |operand: &Operand| match *operand {
                Operand::Link(step) => Some(Operand::Link(step + first)),
                Operand::Input(input) => taken.get(usize::from(input)).copied().flatten(),
            };
            if rows.steps.len() > MAX_STEPS || inputs.len() > MAX_INPUTS {
                return None;
            }
            let operand = match role {
                Role::Reshape => taken.first().copied().flatten()?,
                Role::Fold => {
                    let dtype = |value: u32| self.types.values[value as usize].1;
                    let from = dtype(node.inputs.first().copied().flatten()?);
                    for step in op::fold_steps(node.op()?, from, dtype(value))? {
                        let step = match step {
                            Step::Link(link) => {
                                let operands = link.operands().iter().map(moved);
                                let operands: SmallVec<[Operand; 3]> =
                                    operands.collect::<Option<_>>()?;
                                Step::Link(link.over(&operands))
                            }
                            Step::Fold {
                                fold, of, operand, ..
                            } => Step::fold(fold, of, moved(&operand)?),
                        };
                        rows.steps.push(step);
                    }
                    Operand::Link(rows.steps.len() as u8 - 1)
                }
                Role::Wide | Role::Narrow => {
                    for link in links(node, self.types)? {
                        let operands = link.operands().iter().map(moved);
                        let operands: SmallVec<[Operand; 3]> = operands.collect::<Option<_>>()?;
                        rows.steps.push(Step::Link(link.over(&operands)));
                    }
                    Operand::Link((rows.steps.len() as u8).checked_sub(1)?)
                }
            };
            made.push((value, operand));
            let mut takers = self.takers[value as usize].iter();
            let is_taken = takers.any(|taker| !self.members.contains(taker));
            if is_taken || self.is_output[value as usize] {
                let Operand::Link(step) = operand else {
                    return None;
                };
                rows.results.push(Kept {
                    step,
                    is_wide: role == Role::Wide,
                });
                results.push(value);
            }
        }
        rows.is_taken().then_some((rows, inputs, results))
    }

    fn node(&self) -> Option<Node> {
        let (rows, inputs, results) = self.rows()?;
        let shapes = inputs.iter().map(|(value, wanted)| {
            let is_own = padded(self.shape(*value), wanted.len()) == *wanted;
            (!is_own).then(|| wanted.clone())
        });
        let outputs = results.iter().map(|value| self.shape(*value).to_vec());
        let reduced = Reduced {
            rows,
            shape: self.frame.shape.clone(),
            axes: self.frame.axes.clone(),
            inputs: shapes.collect(),
            outputs: outputs.collect(),
            operations: self.members.len(),
        };
        let first = &self.code.nodes[*self.members.first()?];
        Some(Node {
            work: Work::Segment(Arc::new(reduced)),
            inputs: inputs.iter().map(|(value, _)| Some(*value)).collect(),
            outputs: results.into_iter().collect(),
            ..first.clone()
        })
    }
}

#[cfg(test)]
mod tests;
