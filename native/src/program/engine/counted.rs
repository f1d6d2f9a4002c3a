//! How often a loop turns, found before it runs where its condition hangs on whole numbers alone that count by
//! themselves: then no step waits for an answer.

use crate::base::Dtype;
use crate::op::{Number, Op};
use crate::program::plan::Code;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Steps that are counted ahead, at most; a loop of more is asked after each.
const MAX_STEPS: usize = 1 << 24;
/// Operations for that, at most: some milliseconds.
const MAX_WORK: usize = 1 << 20;

/// A single whole number, of a type that i64 can hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Whole {
    value: i64,
    dtype: Dtype,
}

impl Whole {
    /// None for other types.
    pub fn new(value: i64, dtype: Dtype) -> Option<Whole> {
        let value = match dtype {
            Dtype::Bool => i64::from(value != 0),
            Dtype::U8 => i64::from(value as u8),
            Dtype::U16 => i64::from(value as u16),
            Dtype::U32 => i64::from(value as u32),
            Dtype::S8 => i64::from(value as i8),
            Dtype::S16 => i64::from(value as i16),
            Dtype::S32 => i64::from(value as i32),
            Dtype::S64 => value,
            _ => return None,
        };
        Some(Whole { value, dtype })
    }

    /// From the bytes of an array of one element.
    pub fn read(bytes: &[u8], dtype: Dtype) -> Option<Whole> {
        let mut wide = [0; 8];
        wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Whole::new(i64::from_ne_bytes(wide), dtype)
    }
}

/// The part of a loop that counts.
#[derive(Debug)]
pub struct Counters {
    /// The numbers of the state and of the captured values that it hangs on, by their places among a block's inputs.
    pub inputs: Vec<usize>,
    /// Which of these are of the state, and the instructions for their next values.
    state: Vec<usize>,
    condition: Part,
    body: Part,
}

/// The nodes of a block that count.
#[derive(Debug)]
struct Part {
    code: Arc<Code>,
    nodes: Vec<usize>,
}

impl Counters {
    /// The other side gives the operation that it cannot count with. `state` is how many of the blocks' inputs are the
    /// loop's state.
    pub fn of(condition: &Arc<Code>, body: &Arc<Code>, state: usize) -> Result<Counters, String> {
        let (mut inputs, of_condition) = needs(condition, condition.outputs.first().copied())?;
        loop {
            let counters: Vec<usize> = inputs.iter().copied().filter(|i| *i < state).collect();
            let (more, of_body) = needs(body, counters.iter().map(|i| body.outputs[*i]))?;
            if more.is_subset(&inputs) {
                let part = |code: &Arc<Code>, nodes| Part {
                    code: code.clone(),
                    nodes,
                };
                return Ok(Counters {
                    inputs: inputs.into_iter().collect(),
                    state: counters,
                    condition: part(condition, of_condition),
                    body: part(body, of_body),
                });
            }
            inputs.extend(more);
        }
    }

    /// The number of steps from these values of [`Counters::inputs`] on. None where it is not to be found this way.
    pub fn steps(&self, given: &[Whole]) -> Option<usize> {
        let (condition, body) = (&self.condition.code, &self.body.code);
        let mut inputs = vec![None; condition.inputs];
        for (input, value) in self.inputs.iter().zip(given) {
            inputs[*input] = Some(*value);
        }
        let work = self.condition.nodes.len() + self.body.nodes.len();
        let most = MAX_STEPS.min(MAX_WORK / work.max(1));
        for steps in 0..most {
            let values = self.condition.run(&inputs)?;
            if values[*condition.outputs.first()? as usize]?.value == 0 {
                return Some(steps);
            }
            let values = self.body.run(&inputs)?;
            for input in &self.state {
                inputs[*input] = values[body.outputs[*input] as usize];
            }
        }
        None
    }
}

/// The inputs and the nodes that values of a block hang on. The other side gives a node of another kind that is among
/// them.
fn needs(
    code: &Code,
    values: impl IntoIterator<Item = u32>,
) -> Result<(BTreeSet<usize>, Vec<usize>), String> {
    let mut needed: BTreeSet<usize> = values.into_iter().map(|value| value as usize).collect();
    let mut nodes = Vec::new();
    for (i, node) in code.nodes.iter().enumerate().rev() {
        let mut outputs = node.outputs.iter();
        if !outputs.any(|value| needed.contains(&(*value as usize))) {
            continue;
        }
        if !node.op().is_some_and(is_known) || node.outputs.len() != 1 {
            return Err(node.name());
        }
        let inputs = node.inputs.iter().flatten();
        needed.extend(inputs.map(|value| *value as usize));
        nodes.push(i);
    }
    nodes.reverse();
    Ok((needed.range(..code.inputs).copied().collect(), nodes))
}

/// What [`apply`] knows.
fn is_known(op: &Op) -> bool {
    op.traits().simple || matches!(op, Op::Constant { .. })
}

impl Part {
    fn run(&self, inputs: &[Option<Whole>]) -> Option<Vec<Option<Whole>>> {
        let mut values = vec![None; self.code.values];
        values[..inputs.len()].copy_from_slice(inputs);
        for i in &self.nodes {
            let node = &self.code.nodes[*i];
            let mut operands = node.inputs.iter().map(|input| values[(*input)? as usize]);
            let (a, b) = (operands.next().flatten(), operands.next().flatten());
            values[*node.outputs.first()? as usize] = Some(apply(node.op()?, a, b)?);
        }
        Some(values)
    }
}

/// An operation as MLX has it on whole numbers. None for what is not one.
fn apply(op: &Op, a: Option<Whole>, b: Option<Whole>) -> Option<Whole> {
    match op {
        Op::Constant {
            value: Number::Int(value),
            dtype,
        } => return Whole::new(*value, *dtype),
        Op::Astype { dtype } => return Whole::new(a?.value, *dtype),
        Op::LogicalNot => return Whole::new(i64::from(a?.value == 0), Dtype::Bool),
        _ => {}
    }
    let (a, b) = (a?, b?);
    let (x, y) = (a.value, b.value);
    let truth = |truth: bool| Whole::new(i64::from(truth), Dtype::Bool);
    match op {
        Op::Less => truth(x < y),
        Op::LessEqual => truth(x <= y),
        Op::Greater => truth(x > y),
        Op::GreaterEqual => truth(x >= y),
        Op::Equal => truth(x == y),
        Op::NotEqual => truth(x != y),
        Op::LogicalAnd => truth(x != 0 && y != 0),
        Op::LogicalOr => truth(x != 0 || y != 0),
        // A truth is no number, and other types have a third one for both.
        _ if a.dtype != b.dtype || a.dtype == Dtype::Bool => None,
        Op::Add => Whole::new(x.wrapping_add(y), a.dtype),
        Op::Subtract => Whole::new(x.wrapping_sub(y), a.dtype),
        Op::Multiply => Whole::new(x.wrapping_mul(y), a.dtype),
        Op::Maximum => Whole::new(x.max(y), a.dtype),
        Op::Minimum => Whole::new(x.min(y), a.dtype),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Block, Instruction, Step};

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn code(inputs: usize, instructions: Vec<Instruction>, outputs: &[u32]) -> Arc<Code> {
        let block = Block::new(inputs, instructions, outputs.to_vec());
        Arc::new(Code::of(&block.expect("well-formed")))
    }

    fn whole(value: i64) -> Whole {
        Whole::new(value, Dtype::S32).expect("whole")
    }

    /// State: an array, and a counter that goes by the third input up to the fourth.
    fn counting(condition: Vec<Instruction>) -> (Arc<Code>, Arc<Code>) {
        let last = 3 + condition.len() as u32;
        let body = vec![op(Op::Cos, &[0]), op(Op::Add, &[1, 2])];
        (code(4, condition, &[last]), code(4, body, &[4, 5]))
    }

    #[test]
    fn a_loop_that_counts_is_counted() {
        let u8 = Op::Astype { dtype: Dtype::U8 };
        let (condition, body) = counting(vec![op(Op::Less, &[1, 3]), op(u8, &[4])]);
        let counters = Counters::of(&condition, &body, 2).expect("counts");
        assert_eq!(counters.inputs, [1, 2, 3]);
        let steps = |given: [i64; 3]| counters.steps(&given.map(whole));
        assert_eq!(steps([0, 1, 10]), Some(10));
        assert_eq!(steps([3, 4, 10]), Some(2));
        assert_eq!(steps([10, 1, 10]), Some(0));
        // Never, and only after the numbers have gone round.
        assert_eq!(steps([0, 0, 10]), None);
        assert_eq!(steps([0, -1, 10]), None);
        assert_eq!(steps([0, i64::from(i32::MIN), 1]), None);
        assert_eq!(
            steps([i64::from(i32::MAX) - 1, 3, i64::from(i32::MAX)]),
            None
        );
    }

    #[test]
    fn a_loop_that_looks_at_what_it_computes_is_not() {
        let (condition, body) = counting(vec![op(Op::Less, &[0, 3])]);
        let error = Counters::of(&condition, &body, 2).expect_err("does not count");
        assert_eq!(error, "cos");
        let (condition, body) = counting(vec![op(Op::Cos, &[1]), op(Op::Less, &[4, 3])]);
        let error = Counters::of(&condition, &body, 2).expect_err("does not count");
        assert_eq!(error, "cos");
    }

    #[test]
    fn types_that_are_mixed_are_left_to_mlx() {
        let (condition, body) = counting(vec![op(Op::Less, &[1, 3])]);
        let counters = Counters::of(&condition, &body, 2).expect("counts");
        let long = Whole::new(1, Dtype::S64).expect("whole");
        let given = [whole(0), long, whole(10)];
        assert_eq!(counters.steps(&given), None);
        // To compare them is the same in every type.
        let given = [
            whole(0),
            whole(1),
            Whole::new(10, Dtype::U8).expect("whole"),
        ];
        assert_eq!(counters.steps(&given), Some(10));
    }

    #[test]
    fn numbers_go_round_as_their_types_do() {
        assert_eq!(
            Whole::new(300, Dtype::U8).map(|whole| whole.value),
            Some(44)
        );
        assert_eq!(
            Whole::new(-1, Dtype::U32).map(|whole| whole.value),
            Some(u32::MAX.into())
        );
        assert_eq!(
            Whole::new(128, Dtype::S8).map(|whole| whole.value),
            Some(-128)
        );
        assert_eq!(
            Whole::read(&[255], Dtype::S8).map(|whole| whole.value),
            Some(-1)
        );
        assert_eq!(Whole::read(&[1, 0, 0, 0], Dtype::F32), None);
    }
}
