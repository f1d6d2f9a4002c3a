//! Rows that a mask fills with one number, as a selection with a scalar does, become one kernel of our own for the CPU
//! where all that is computed of them comes down to one number for each row. The kernel goes along the runs of a row,
//! so that it takes as long as the mask leaves numbers.

use super::facts::{output, Facts};
use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::{Dtype, Result, Signature};
use crate::cpu::{self, Link, Links, Masked, Operand, RowStep, Total, Type};
use crate::op::{self, Op, Which};
use crate::program::engine::masked::MaskedRows;
use smallvec::{smallvec, SmallVec};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub struct MaskedPass;

/// Elements of a row from which it is worth a kernel that looks for what the mask leaves.
const SHORTEST_ROW: i32 = 256;

impl Pass for MaskedPass {
    fn name(&self) -> &'static str {
        "masked"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        target.lacks_kernels()
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        scope.rewritten(code, |code, types| rewritten(code, &types.values, scope))
    }
}

fn rewritten(mut code: Code, types: &[Signature], scope: &Scope) -> Code {
    let mut found: Vec<Rows> = Vec::new();
    {
        let facts = Facts::of(&code, types);
        for seed in 0..code.nodes.len() {
            let is_taken = found.iter().any(|rows| rows.nodes.contains(&seed));
            if is_taken || !matches!(code.nodes[seed].op(), Some(Op::Where)) {
                continue;
            }
            match rows(&facts, seed) {
                Ok(rows) => {
                    let at = code.nodes[seed].at;
                    scope.took(|| format!("instruction {at}: {}", rows.title(&code)));
                    found.push(rows);
                }
                Err(Some(reason)) => {
                    scope.left(|| format!("instruction {}: {reason}", code.nodes[seed].at))
                }
                Err(None) => {}
            }
        }
    }
    if found.is_empty() {
        return code;
    }
    let old = std::mem::take(&mut code.nodes);
    for (i, node) in old.into_iter().enumerate() {
        match found.iter_mut().find(|rows| rows.nodes.contains(&i)) {
            None => code.nodes.push(node),
            Some(rows) if rows.last == i => code.nodes.extend(rows.node.take()),
            Some(_) => {}
        }
    }
    code.retain_needed();
    code
}

/// The operations on rows that a mask fills, and the node in their place.
struct Rows {
    nodes: HashSet<usize>,
    last: usize,
    node: Option<Node>,
}

impl Rows {
    fn title(&self, code: &Code) -> String {
        let mut nodes: Vec<usize> = self.nodes.iter().copied().collect();
        nodes.sort_unstable();
        let names: Vec<String> = nodes.iter().map(|i| code.nodes[*i].name()).collect();
        names.join(", ")
    }
}

/// Why a selection is left; None where it is nothing that the pass looks for.
type Refused = Option<String>;

/// What is known of a value: the number that it has in the kernel.
#[derive(Clone, Copy)]
enum Known {
    /// A number for each place of a row, which lies in an order.
    Row { value: u8, order: Option<u8> },
    /// A number for each row.
    One { value: u8 },
    /// An order of a row's places.
    Order { value: u8 },
}

struct Builder<'a> {
    facts: &'a Facts<'a>,
    rows: usize,
    count: i32,
    known: HashMap<u32, Known>,
    inputs: Vec<u32>,
    steps: Vec<RowStep>,
    nodes: HashSet<usize>,
}

/// What a selection fills, and all that is computed of it.
fn rows(facts: &Facts, seed: usize) -> std::result::Result<Rows, Refused> {
    let node = &facts.code.nodes[seed];
    let row = output(node).ok_or(None)?;
    let shape = facts.shape(row);
    let count = *shape.last().ok_or(None)?;
    if count < SHORTEST_ROW || facts.dtype(row) == Dtype::C64 {
        return Err(None);
    }
    let mut builder = Builder {
        facts,
        rows: (facts.size(row) / count as usize).max(1),
        count,
        known: HashMap::new(),
        inputs: Vec::new(),
        steps: Vec::new(),
        nodes: HashSet::new(),
    };
    let (mask, fill) = builder.mask(seed).ok_or(None)?;
    let first = Known::Row {
        value: 0,
        order: None,
    };
    builder.known.insert(row, first);
    for i in seed + 1..facts.code.nodes.len() {
        let node = &facts.code.nodes[i];
        let takes = node.inputs.iter().flatten();
        if takes.clone().any(|value| builder.known.contains_key(value)) {
            let before = (builder.steps.len(), builder.inputs.len());
            match builder.node(node) {
                Some(known) if builder.steps.len() <= cpu::MAX_STEPS => {
                    builder.known.insert(output(node).ok_or(None)?, known);
                    builder.nodes.insert(i);
                }
                _ => {
                    builder.steps.truncate(before.0);
                    builder.inputs.truncate(before.1);
                }
            }
        }
    }
    builder.finish(seed, mask, fill)
}

impl Builder<'_> {
    /// The links from arrays to the row that a selection fills, and the input that it is filled with. Operations on
    /// elements whose values nothing else takes are among them.
    fn mask(&mut self, seed: usize) -> Option<(Links, u8)> {
        let facts = self.facts;
        let node = &facts.code.nodes[seed];
        let row = output(node)?;
        let shape = facts.shape(row);
        let [_, Some(a), Some(b)] = node.inputs[..] else {
            return None;
        };
        let is_fill = |value: u32| self.is_one(value) && facts.dtype(value) == facts.dtype(row);
        let (fill, numbers) = match (is_fill(a), is_fill(b)) {
            (true, false) => (a, b),
            (false, true) => (b, a),
            _ => return None,
        };
        if facts.dtype(numbers) != facts.dtype(row) || facts.shape(numbers) != shape {
            return None;
        }
        self.nodes.insert(seed);
        for i in (0..seed).rev() {
            let node = &facts.code.nodes[i];
            let Some(value) = output(node) else {
                continue;
            };
            let is_inside = !facts.users(value).is_empty()
                && facts
                    .users(value)
                    .iter()
                    .all(|user| user.is_in(&self.nodes));
            let fits = facts.shape(value) == shape && value != fill;
            if is_inside && fits && self.links(node).is_some() {
                self.nodes.insert(i);
            }
        }
        let mut inside: Vec<usize> = self.nodes.iter().copied().collect();
        inside.sort_unstable();
        let (mut mask, mut made) = (Links::new(), HashMap::new());
        for i in inside {
            let node = &facts.code.nodes[i];
            let mut own: SmallVec<[Operand; 4]> = SmallVec::new();
            for link in self.links(node)? {
                let mut operands: SmallVec<[Operand; 3]> = SmallVec::new();
                for operand in link.operands() {
                    operands.push(match *operand {
                        Operand::Link(link) => own[usize::from(link)],
                        Operand::Input(input) => {
                            let value = node.inputs[usize::from(input)]?;
                            match made.get(&value) {
                                Some(operand) => *operand,
                                None => Operand::Input(self.input(value)?),
                            }
                        }
                    });
                }
                own.push(cpu::push_link(&mut mask, link.over(&operands)));
            }
            made.insert(output(node)?, *own.last()?);
        }
        let mask = cpu::needed_links(mask);
        let fits = mask.len() <= cpu::MAX_LINKS && mask.last()?.action == cpu::Action::Select;
        Some((mask, self.input(fill)?)).filter(|_| fits)
    }

    /// The links of an operation on elements.
    fn links(&self, node: &Node) -> Option<Links> {
        let of = |value: &Option<u32>| value.map(|value| self.facts.dtype(value));
        let given: SmallVec<[Option<Dtype>; 3]> = node.inputs.iter().map(of).collect();
        let links = op::links(node.op()?, &given)?;
        let dtype = cpu::type_of(self.facts.dtype(output(node)?))?;
        (links.last()?.to == dtype).then_some(links)
    }

    /// Whether a value has one number for each row, or one.
    fn is_one(&self, value: u32) -> bool {
        let (shape, size) = (self.facts.shape(value), self.facts.size(value));
        size == 1 || size == self.rows && shape.last() != Some(&self.count)
    }

    /// The number of what comes from elsewhere.
    fn input(&mut self, value: u32) -> Option<u8> {
        cpu::type_of(self.facts.dtype(value))?;
        let known = self.inputs.iter().position(|input| *input == value);
        let number = known.unwrap_or(self.inputs.len());
        if known.is_none() {
            self.inputs.push(value);
        }
        u8::try_from(number).ok()
    }

    fn push(&mut self, step: RowStep) -> u8 {
        self.steps.push(step);
        self.steps.len() as u8
    }

    /// What a row is by itself, and its order.
    fn row(&self, value: Option<u32>) -> Option<(u8, Option<u8>)> {
        match self.known.get(&value?)? {
            Known::Row { value, order } => Some((*value, *order)),
            _ => None,
        }
    }

    fn order(&self, value: Option<u32>) -> Option<u8> {
        match self.known.get(&value?)? {
            Known::Order { value } => Some(*value),
            _ => None,
        }
    }

    /// Whether an axis of a value is the one that rows go along.
    fn is_along(&self, value: u32, axis: i32) -> bool {
        let shape = self.facts.shape(value);
        shape.last() == Some(&self.count) && (axis == -1 || axis + 1 == shape.len() as i32)
    }

    /// A node as steps, after which its value is known. None where there is none for it.
    fn node(&mut self, node: &Node) -> Option<Known> {
        let out = output(node)?;
        let of = cpu::type_of(self.facts.dtype(out))?;
        let first = node.inputs.first().copied().flatten()?;
        match node.op()? {
            Op::Reshape { .. } | Op::Squeeze { .. } | Op::ExpandDims { .. } | Op::Copy => {
                self.moved(first, out)
            }
            Op::BroadcastTo { .. } if self.facts.size(first) == self.facts.size(out) => {
                self.moved(first, out)
            }
            Op::Astype { .. } | Op::View { .. } if self.order(Some(first)).is_some() => {
                let is_wide = matches!(of, Type::S32 | Type::S64 | Type::U32 | Type::U64);
                let same = self.facts.size(first) == self.facts.size(out);
                is_wide.then_some(self.known[&first]).filter(|_| same)
            }
            Op::Max { axes, keepdims: _ } => self.total(Total::Largest, first, axes, of),
            Op::Min { axes, keepdims: _ } => self.total(Total::Smallest, first, axes, of),
            Op::Sum { axes, keepdims: _ } if is_narrow(of) => {
                self.total(Total::Sum, first, axes, of)
            }
            Op::Softmax { axes, .. } => self.softmax(first, axes.as_ref()?, of),
            Op::Argsort { axis } if self.is_along(first, *axis) => {
                let (value, None) = self.row(Some(first))? else {
                    return None;
                };
                let of = cpu::type_of(self.facts.dtype(first))?;
                let value = self.push(RowStep::Order { value, of });
                Some(Known::Order { value })
            }
            Op::TakeAlongAxis { axis, .. } if self.is_along(first, *axis) => {
                let (value, None) = self.row(Some(first))? else {
                    return None;
                };
                let order = Some(self.order(node.inputs[1])?);
                let fits = self.facts.shape(first) == self.facts.shape(out);
                fits.then_some(Known::Row { value, order })
            }
            // Each place of the row is written once.
            Op::PutAlongAxis { axis } if self.is_along(first, *axis) => {
                let order = self.order(node.inputs[1])?;
                let (value, own) = self.row(node.inputs[2])?;
                let is_of_type = self.facts.dtype(node.inputs[2]?) == self.facts.dtype(out);
                let whole = Known::Row { value, order: None };
                (own == Some(order) && is_of_type).then_some(whole)
            }
            Op::Cumsum {
                axis,
                reverse: false,
                inclusive: true,
            } if self.is_along(first, *axis) && is_narrow(of) => {
                let (value, order) = self.row(Some(first))?;
                let is_of_type = self.facts.dtype(first) == self.facts.dtype(out);
                let step = RowStep::Sums { value, of, order };
                let value = is_of_type.then(|| self.push(step))?;
                Some(Known::Row { value, order })
            }
            Op::Slice {
                start,
                stop,
                strides,
            } => self.at(first, start, stop, strides, of),
            Op::Argmax { axis, nan, .. } => self.extreme(true, first, *axis, nan),
            Op::Argmin { axis, nan, .. } => self.extreme(false, first, *axis, nan),
            _ => self.elements(node, out),
        }
    }

    /// A value in another shape, with the rows as they are.
    fn moved(&self, from: u32, to: u32) -> Option<Known> {
        let known = *self.known.get(&from)?;
        let is_row = !matches!(known, Known::One { .. });
        let same = self.facts.size(from) == self.facts.size(to);
        let fits = !is_row || self.facts.shape(to).last() == Some(&self.count);
        (same && fits).then_some(known)
    }

    fn total(
        &mut self,
        total: Total,
        from: u32,
        axes: &Option<Vec<i32>>,
        of: Type,
    ) -> Option<Known> {
        let (value, _) = self.row(Some(from))?;
        let is_along = match axes {
            Some(axes) => axes.len() == 1 && self.is_along(from, axes[0]),
            None => self.facts.shape(from).len() == 1,
        };
        let is_of_type = cpu::type_of(self.facts.dtype(from)) == Some(of);
        let step = RowStep::Total { total, value, of };
        let value = (is_along && is_of_type).then(|| self.push(step))?;
        Some(Known::One { value })
    }

    /// In f32, and rounded once.
    fn softmax(&mut self, from: u32, axes: &[i32], of: Type) -> Option<Known> {
        let (value, order) = self.row(Some(from))?;
        let is_along = axes.len() == 1 && self.is_along(from, axes[0]);
        if !is_along || !is_narrow(of) || cpu::type_of(self.facts.dtype(from)) != Some(of) {
            return None;
        }
        let link = |action, from, to, operands: &[u8]| {
            let operands: SmallVec<[Operand; 3]> =
                operands.iter().map(|value| Operand::Link(*value)).collect();
            RowStep::Link(Link::new(action, from, to, &operands))
        };
        let of_f32 = |action, operands: &[u8]| link(action, Type::F32, Type::F32, operands);
        let mut value = value;
        if of != Type::F32 {
            value = self.push(link(cpu::Action::Cast, of, Type::F32, &[value]));
        }
        let total = |total, value| RowStep::Total {
            total,
            value,
            of: Type::F32,
        };
        let top = self.push(total(Total::Largest, value));
        let less = cpu::Action::Binary(cpu::Pair::Subtract);
        let less = self.push(of_f32(less, &[value, top]));
        let exp = self.push(of_f32(cpu::Action::Unary(cpu::Function::Exp), &[less]));
        let sum = self.push(total(Total::Sum, exp));
        let quotient = cpu::Action::Binary(cpu::Pair::Divide);
        let mut value = self.push(of_f32(quotient, &[exp, sum]));
        if of != Type::F32 {
            value = self.push(link(cpu::Action::Cast, Type::F32, of, &[value]));
        }
        Some(Known::Row { value, order })
    }

    /// One place of each row.
    fn at(
        &mut self,
        from: u32,
        start: &[i32],
        stop: &[i32],
        strides: &[i32],
        of: Type,
    ) -> Option<Known> {
        let (value, order) = self.row(Some(from))?;
        let (shape, last) = (self.facts.shape(from), start.len().checked_sub(1)?);
        let is_whole = |axis: usize| start[axis] == 0 && stop[axis] == shape[axis];
        let is_one = (0..self.count).contains(&start[last]) && stop[last] == start[last] + 1;
        let is_plain = strides.iter().all(|step| *step == 1) && (0..last).all(is_whole);
        if !is_one || !is_plain || shape.last() != Some(&self.count) {
            return None;
        }
        let place = start[last] as u32;
        let value = self.push(RowStep::At {
            value,
            of,
            order,
            place,
        });
        Some(Known::One { value })
    }

    fn extreme(
        &mut self,
        is_max: bool,
        from: u32,
        axis: Option<i32>,
        nan: &Which,
    ) -> Option<Known> {
        let (value, order) = self.row(Some(from))?;
        let is_along = match axis {
            Some(axis) => self.is_along(from, axis),
            None => self.facts.shape(from).len() == 1,
        };
        let of = cpu::type_of(self.facts.dtype(from))?;
        let step = RowStep::Extreme {
            is_max,
            is_last_nan: matches!(nan, Which::Last),
            value,
            of,
            order,
        };
        let value = is_along.then(|| self.push(step))?;
        Some(Known::One { value })
    }

    /// An operation on elements: of rows in one order, and of what has one number for each row.
    fn elements(&mut self, node: &Node, out: u32) -> Option<Known> {
        let links = self.links(node)?;
        let (mut orders, mut operands) = (Vec::new(), Vec::new());
        for value in &node.inputs {
            let value = (*value)?;
            operands.push(match self.known.get(&value) {
                Some(Known::Row { value, order }) => {
                    orders.push(*order);
                    Operand::Link(*value)
                }
                Some(Known::One { value: own }) if self.is_one(value) => Operand::Link(*own),
                Some(_) => return None,
                None if self.is_one(value) => Operand::Input(self.input(value)?),
                None => return None,
            });
        }
        let size = match orders.is_empty() {
            true => self.rows,
            false => self.rows * self.count as usize,
        };
        let is_along = orders.is_empty() || self.facts.shape(out).last() == Some(&self.count);
        let is_one_order = orders.windows(2).all(|pair| pair[0] == pair[1]);
        if self.facts.size(out) != size || !is_along || !is_one_order {
            return None;
        }
        let first = self.steps.len() as u8 + 1;
        let mut value = first;
        for link in &links {
            let operand = |operand: &Operand| match *operand {
                Operand::Link(own) => Operand::Link(first + own),
                Operand::Input(input) => operands[usize::from(input)],
            };
            let operands: SmallVec<[Operand; 3]> = link.operands().iter().map(operand).collect();
            value = self.push(RowStep::Link(link.over(&operands)));
        }
        Some(match orders.first() {
            Some(order) => Known::Row {
                value,
                order: *order,
            },
            None => Known::One { value },
        })
    }

    /// The node in the place of all, if one value of theirs is taken elsewhere.
    fn finish(self, seed: usize, mask: Links, fill: u8) -> std::result::Result<Rows, Refused> {
        let is_worth =
            |step: &RowStep| matches!(step, RowStep::Order { .. } | RowStep::Sums { .. });
        if !self.steps.iter().any(is_worth) {
            return Err(None);
        }
        let facts = self.facts;
        let mut nodes: Vec<usize> = self.nodes.iter().copied().collect();
        nodes.sort_unstable();
        let values = nodes.iter().filter_map(|i| output(&facts.code.nodes[*i]));
        let needed: Vec<u32> = values
            .filter(|value| {
                facts
                    .users(*value)
                    .iter()
                    .any(|user| !user.is_in(&self.nodes))
            })
            .collect();
        let [needed] = needed[..] else {
            let count = needed.len();
            return Err(Some(format!(
                "{count} values of its rows are taken elsewhere"
            )));
        };
        let last = nodes[nodes.len() - 1];
        let is_last = match self.known.get(&needed) {
            Some(Known::One { value }) => usize::from(*value) == self.steps.len(),
            _ => return Err(Some("its rows are needed whole".into())),
        };
        let is_later = |user: &super::facts::User| user.is_in(&self.nodes) || user.is_after(last);
        let inputs = self.inputs.iter();
        let are_before = inputs.clone().all(|value| facts.is_before(*value, last));
        if !is_last || !are_before || !facts.users(needed).iter().all(is_later) {
            return Err(Some("its result is taken before the last step".into()));
        }
        let row = output(&facts.code.nodes[seed]).ok_or(None)?;
        let masked = Masked {
            shape: facts.shape(row).into(),
            mask,
            fill,
            steps: self.steps,
        };
        let segment = MaskedRows {
            masked: Arc::new(masked),
            signature: (facts.shape(needed).to_vec(), facts.dtype(needed)),
            operations: nodes.len(),
        };
        let node = Node {
            work: Work::Segment(Arc::new(segment)),
            inputs: inputs.map(|value| Some(*value)).collect(),
            outputs: smallvec![needed],
            label: None,
            at: facts.code.nodes[seed].at,
            spent: SmallVec::new(),
        };
        Ok(Rows {
            nodes: self.nodes,
            last,
            node: Some(node),
        })
    }
}

/// Whether the kernel adds numbers of a type.
fn is_narrow(of: Type) -> bool {
    matches!(of, Type::F32 | Type::F16 | Type::Bf16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Device;
    use crate::program::plan::Code;
    use crate::program::types::Types;
    use crate::program::{Block, Instruction, Step};

    type Of = (&'static [i32], Dtype);
    type Line = (Op, &'static [u32], Of);

    const ROWS: Of = (&[2, 300], Dtype::F32);
    const MASK: Of = (&[2, 300], Dtype::Bool);
    const EACH: Of = (&[2, 1], Dtype::F32);
    const PLACE: Of = (&[2], Dtype::U32);
    const ORDER: Of = (&[2, 300], Dtype::U32);

    /// Instructions with what each gives, after x {2, 300} as 0, and the least and the fill {2, 1} as 1 and 2. The mask
    /// is 3, the masked rows are 4.
    fn run(instructions: Vec<Line>, outputs: &[u32], count: i32) -> (Vec<String>, usize) {
        let mut all = vec![
            (Op::Less, &[0, 1][..], MASK),
            (Op::Where, &[3, 2, 0][..], ROWS),
        ];
        all.extend(instructions);
        let values = [ROWS, EACH, EACH]
            .into_iter()
            .chain(all.iter().map(|(.., of)| *of));
        let values: Vec<Signature> = values
            .map(|(shape, dtype)| {
                let sizes = shape
                    .iter()
                    .map(|size| if *size == 300 { count } else { *size });
                (sizes.collect(), dtype)
            })
            .collect();
        let inside = values.iter().map(|_| Vec::new()).collect();
        let types = Types { values, inside };
        let instructions = all.into_iter().map(|(op, inputs, _)| {
            let inputs = inputs.iter().copied().map(Some);
            Instruction::new(Step::Op(op), inputs, 1, None)
        });
        let block = Block::new(3, instructions.collect(), outputs.to_vec()).expect("well-formed");
        let target = Target::of_test(Device::Cpu);
        let scope = Scope::of_test(&target, &types, "masked");
        let mut code = MaskedPass.run(Code::of(&block), &scope).expect("a plan");
        code.settle().expect("well-formed");
        let names = code.nodes.iter().map(Node::name).collect();
        let mut inputs = code.nodes.iter().map(|node| node.inputs.len());
        (names, inputs.next().unwrap_or(0))
    }

    fn sums(value: &'static [u32]) -> Line {
        let (axis, reverse, inclusive) = (1, false, true);
        let op = Op::Cumsum {
            axis,
            reverse,
            inclusive,
        };
        (op, value, ROWS)
    }

    fn argmax(value: &'static [u32]) -> Line {
        let op = Op::Argmax {
            axis: Some(1),
            keepdims: false,
            nan: Which::Last,
        };
        (op, value, PLACE)
    }

    #[test]
    fn rows_become_one_node_up_to_their_number() {
        let along = Op::TakeAlongAxis {
            axis: 1,
            negative: None,
        };
        let instructions = || {
            vec![
                (Op::Argsort { axis: 1 }, &[4][..], ORDER),
                (along.clone(), &[4, 5][..], ROWS),
                sums(&[6]),
                argmax(&[7]),
            ]
        };
        assert_eq!(run(instructions(), &[8], 300), (vec!["masked".into()], 3));
        // A short row, and one that something else takes whole.
        assert_eq!(run(instructions(), &[8], 200).0.len(), 6);
        assert_eq!(run(instructions(), &[8, 7], 300).0.len(), 6);
        assert_eq!(run(instructions(), &[8, 5], 300).0.len(), 6);
        // The mask is taken elsewhere: it stays, and the kernel reads it.
        let (names, _) = run(instructions(), &[8, 3], 300);
        assert_eq!(names, ["less", "masked"]);
    }

    #[test]
    fn rows_in_different_orders_are_not_joined() {
        let along = Op::TakeAlongAxis {
            axis: 1,
            negative: None,
        };
        let instructions = vec![
            (Op::Argsort { axis: 1 }, &[4][..], ORDER),
            (along, &[4, 5][..], ROWS),
            (Op::Add, &[6, 4][..], ROWS),
            sums(&[7]),
            argmax(&[8]),
        ];
        assert!(!run(instructions, &[9], 300).0.contains(&"masked".into()));
    }

    #[test]
    fn other_rows_than_those_of_the_mask_are_no_part() {
        // x itself is added to the masked rows.
        let instructions = vec![(Op::Add, &[4, 0][..], ROWS), sums(&[5]), argmax(&[6])];
        assert!(!run(instructions, &[7], 300).0.contains(&"masked".into()));
        // One number for each row is.
        let instructions = vec![(Op::Add, &[4, 1][..], ROWS), sums(&[5]), argmax(&[6])];
        assert_eq!(run(instructions, &[7], 300).0, ["masked"]);
    }
}
