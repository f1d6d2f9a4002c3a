//! Softmax that is composed of other operations becomes the operation that it is: a kernel computes it row by row, and
//! no array is made between. For the CPU, over the last axis, which that kernel goes along.

use super::facts::{inputs, is_float, output, Facts};
use super::{Code, Pass, Scope, Target, Work};
use crate::base::Result;
use crate::op::Op;
use crate::program::types::Types;
use smallvec::smallvec;

pub struct Composed;

impl Pass for Composed {
    fn name(&self) -> &'static str {
        "composed"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        target.lacks_kernels()
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        scope.rewritten(code, |code, types| composed(code, types, scope))
    }
}

fn composed(mut code: Code, types: &Types, scope: &Scope) -> Code {
    let mut is_left = vec![false; code.nodes.len()];
    let facts = Facts::of(&code, &types.values);
    let places = 0..code.nodes.len();
    let found: Vec<_> = places
        .filter_map(|at| softmax(&facts, at).map(|found| (at, found)))
        .collect();
    for (at, found) in found {
        let node = &mut code.nodes[at];
        scope.took(|| {
            format!(
                "instruction {}: max, subtract, exp, sum, divide as softmax",
                node.at
            )
        });
        node.work = Work::Op(Op::Softmax {
            axes: Some(vec![-1]),
            precise: false,
        });
        node.inputs = smallvec![Some(found.of)];
        found.inner.iter().for_each(|inner| is_left[*inner] = true);
    }
    let mut is_left = is_left.into_iter();
    code.nodes.retain(|_| is_left.next() != Some(true));
    code
}

/// What a softmax is of, and the nodes that compute it up to the quotient.
struct Found {
    of: u32,
    inner: [usize; 4],
}

/// e^(x - max) / Σ e^(x - max) along the last axis, which the node at a place is the quotient of. Nothing else takes
/// what is computed on the way.
fn softmax(facts: &Facts, at: usize) -> Option<Found> {
    let node = &facts.code.nodes[at];
    let Some(Op::Divide) = node.op() else {
        return None;
    };
    let (quotient, [exps, sum]) = (output(node)?, inputs::<2>(node)?);
    let shape = facts.shape(quotient);
    let is_last = |axes: &Option<Vec<i32>>| {
        let rank = shape.len() as i32;
        matches!(axes.as_deref(), Some([axis]) if *axis == -1 || *axis + 1 == rank)
    };
    let taken_by = |value: u32, users: &[Option<usize>]| {
        let users = users.iter().copied().collect::<Option<Vec<usize>>>();
        users.is_some_and(|users| {
            let own = facts.users(value);
            own.len() == users.len()
                && users
                    .iter()
                    .all(|user| own.contains(&super::facts::User::Node(*user)))
        })
    };
    let (
        Op::Sum {
            axes,
            keepdims: true,
        },
        of_sum,
    ) = facts.operation(sum)?
    else {
        return None;
    };
    let (Op::Exp, of_exp) = facts.operation(exps)? else {
        return None;
    };
    let [less] = inputs::<1>(of_exp)?;
    let (Op::Subtract, of_less) = facts.operation(less)? else {
        return None;
    };
    let [x, top] = inputs::<2>(of_less)?;
    let (
        Op::Max {
            axes: of_axes,
            keepdims: true,
        },
        of_top,
    ) = facts.operation(top)?
    else {
        return None;
    };
    let is_one = inputs::<1>(of_sum)? == [exps] && inputs::<1>(of_top)? == [x];
    let is_along = is_last(axes) && is_last(of_axes);
    let dtype = facts.dtype(x);
    let is_alike = [x, less, exps, quotient]
        .iter()
        .all(|value| facts.is(*value, shape, dtype));
    let is_inside = taken_by(exps, &[facts.place(sum), Some(at)])
        && taken_by(sum, &[Some(at)])
        && taken_by(less, &[facts.place(exps)])
        && taken_by(top, &[facts.place(less)]);
    if !is_one || !is_along || !is_alike || !is_inside || !is_float(dtype) {
        return None;
    }
    Some(Found {
        of: x,
        inner: [
            facts.place(top)?,
            facts.place(less)?,
            facts.place(exps)?,
            facts.place(sum)?,
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::super::Node;
    use super::*;
    use crate::base::{Device, Dtype, Signature};
    use crate::program::{Block, Instruction, Step};

    /// The names of a softmax's nodes with such axes, of which these values are outputs.
    fn names(axes: [i32; 2], dtype: Dtype, outputs: &[u32]) -> Vec<String> {
        let op = |op: Op, inputs: &[u32]| {
            Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
        };
        let (axes, keepdims) = (axes.map(|axis| Some(vec![axis])), true);
        let [of_max, of_sum] = axes;
        let max = Op::Max {
            axes: of_max,
            keepdims,
        };
        let sum = Op::Sum {
            axes: of_sum,
            keepdims,
        };
        let instructions = vec![
            op(max, &[0]),
            op(Op::Subtract, &[0, 1]),
            op(Op::Exp, &[2]),
            op(sum, &[3]),
            op(Op::Divide, &[3, 4]),
        ];
        let block = Block::new(1, instructions, outputs.to_vec()).expect("well-formed");
        let (whole, row): (Vec<i32>, Vec<i32>) = (vec![4, 8], vec![4, 1]);
        let shapes = [&whole, &row, &whole, &whole, &row, &whole];
        let values = shapes.map(|shape| -> Signature { (shape.clone(), dtype) });
        let types = Types {
            values: values.to_vec(),
            inside: (0..5).map(|_| Vec::new()).collect(),
        };
        let target = Target::of_test(Device::Cpu);
        let scope = Scope::of_test(&target, &types, "composed");
        let mut code = Composed.run(Code::of(&block), &scope).expect("found");
        code.settle().expect("well-formed");
        code.nodes.iter().map(Node::name).collect()
    }

    #[test]
    fn a_composed_softmax_is_one_operation() {
        for (axes, dtype) in [
            ([1, 1], Dtype::F32),
            ([-1, 1], Dtype::Bf16),
            ([1, -1], Dtype::F16),
        ] {
            assert_eq!(names(axes, dtype, &[5]), ["softmax"]);
        }
    }

    #[test]
    fn what_is_no_softmax_or_is_needed_on_the_way_stays() {
        let all = ["max", "subtract", "exp", "sum", "divide"];
        assert_eq!(names([1, 1], Dtype::F32, &[5, 3]), all);
        assert_eq!(names([1, 1], Dtype::F32, &[4, 5]), all);
        assert_eq!(names([1, 1], Dtype::F64, &[5]), all);
        assert_eq!(names([0, 1], Dtype::F32, &[5]), all);
        assert_eq!(names([0, 0], Dtype::F32, &[5]), all);
    }
}
