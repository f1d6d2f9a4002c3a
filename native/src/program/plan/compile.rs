//! With `fuse: true`, segments of two operations and more are compiled by MLX (`mx.compile`).

use super::group::{grouped, Grouping};
use super::{Code, Pass, Scope, Target};
use crate::base::Result;
use crate::program::engine::compiled::Fused;
use std::sync::Arc;

pub struct Compile;

impl Pass for Compile {
    fn name(&self) -> &'static str {
        "compile"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        (!target.fuse).then_some("fuse: false")
    }

    fn needs_types(&self, _: &Target) -> bool {
        false
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        let how =
            Grouping {
                is_part: &|node| node.op().is_some(),
                pays: &mut |run| {
                    let pays = run.len() >= 2;
                    let at = run[0].at;
                    match pays {
                        true => scope
                            .took(|| format!("{} operations from instruction {at} on", run.len())),
                        false => scope
                            .left(|| format!("instruction {at}: {} stands alone", run[0].name())),
                    }
                    pays
                },
                segment: &|code| Arc::new(Fused::new(code)),
            };
        Ok(grouped(code, how))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Device;
    use crate::op::Op;
    use crate::program::plan::Work;
    use crate::program::types::Types;
    use crate::program::{Block, Instruction, Step};

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    #[test]
    fn segments_keep_what_is_needed_after_them() {
        // 0, 1 | 2 = 0+1, 3 = 2*2, 4 = -1 | 5 = call(3) | 6 = 5+4 (alone) | outputs 6, 3
        let call = Step::Call {
            id: 0,
            outputs: vec![(vec![], crate::base::Dtype::F32)],
        };
        let instructions = vec![
            op(Op::Add, &[0, 1]),
            op(Op::Multiply, &[2, 2]),
            op(Op::Negative, &[1]),
            Instruction::new(call, [Some(3)], 1, None),
            op(Op::Add, &[5, 4]),
        ];
        let block = Block::new(2, instructions, vec![6, 3]).expect("well-formed");
        let (target, types) = (Target::of_test(Device::Cpu), Types::default());
        let scope = Scope::of_test(&target, &types, "compile");
        let mut code = Compile.run(Code::of(&block), &scope).expect("compiled");
        code.settle().expect("well-formed");
        assert_eq!(code.nodes.len(), 3);
        assert_eq!(code.nodes[0].outputs[..], [3, 4]);
        assert_eq!(code.nodes[0].inputs[..], [Some(0), Some(1)]);
        assert_eq!(code.nodes[2].inputs[..], [Some(5), Some(4)]);
        assert_eq!(code.outputs, [6, 3]);
        let Work::Segment(segment) = &code.nodes[0].work else {
            panic!("not compiled")
        };
        assert_eq!((segment.name(), segment.operations()), ("fused", 3));
    }
}
