//! Segments of many operations are launched as one CUDA graph.

use super::group::{grouped, Grouping};
use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::{Device, Result};
use crate::program::engine::captured::Captures;

/// Operations from which launching them together pays for copying inputs and outputs.
const MIN_OPERATIONS: usize = 8;

pub struct Capture;

impl Pass for Capture {
    fn name(&self) -> &'static str {
        "capture"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        (!target.graphs).then_some("there is no CUDA here, or EMLX_CUDA_GRAPHS is 0")
    }

    fn needs_types(&self, _: &Target) -> bool {
        false
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        let is_other = |node: &Node| match &node.work {
            Work::Segment(segment) => !segment.is_capturable(),
            _ => false,
        };
        if code.nodes.iter().any(is_other) {
            scope.left(|| "another engine has segments here".into());
            return Ok(code);
        }
        let how = Grouping {
            is_part: &|node| match &node.work {
                Work::Op(op) => !op.can_fail_late(),
                Work::Segment(segment) => segment.is_capturable(),
                _ => false,
            },
            pays: &mut |run| {
                let launches = run.iter().filter(|node| is_launched(node)).count();
                let pays = launches >= MIN_OPERATIONS;
                let (at, all) = (run[0].at, run.len());
                match pays {
                    true => scope.took(|| format!("{all} operations from instruction {at} on")),
                    false => scope.left(|| {
                        format!(
                            "instruction {at}: {launches} launches are fewer than {MIN_OPERATIONS}"
                        )
                    }),
                }
                pays
            },
            segment: &|code| Captures::new(code),
        };
        for node in &code.nodes {
            let Some(op) = node.op().filter(|op| op.can_fail_late()) else {
                continue;
            };
            scope.left(|| {
                let (at, name) = (node.at, node.name());
                // Of a GPU that is not there, what it would do is said.
                let reason = op
                    .reason_for_cpu()
                    .filter(|_| op.is_for_cpu_only() || Device::Gpu.is_available());
                let reason = reason.map(|reason| format!(", and the CPU computes it: {reason}"));
                format!(
                    "instruction {at}: {name} may fail late{}",
                    reason.unwrap_or_default()
                )
            });
        }
        Ok(grouped(code, how))
    }
}

fn is_launched(node: &Node) -> bool {
    match &node.work {
        Work::Op(op) => op.traits().view.is_none(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Dtype;
    use crate::mlx::Stream;
    use crate::op::{Applied, Op};
    use crate::program::engine::{Given, Segment};
    use crate::program::types::Types;
    use crate::program::{Block, Instruction, Step};
    use std::sync::Arc;

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    fn long(count: u32) -> Vec<Instruction> {
        (0..count).map(|i| op(Op::Abs, &[i])).collect()
    }

    fn captured(instructions: Vec<Instruction>, output: u32) -> Code {
        let block = Block::new(1, instructions, vec![output]).expect("well-formed");
        let (target, types) = (Target::of_test(Device::Gpu), Types::default());
        let scope = Scope::of_test(&target, &types, "capture");
        let mut code = Capture.run(Code::of(&block), &scope).expect("captured");
        code.settle().expect("well-formed");
        code
    }

    fn names(code: &Code) -> Vec<String> {
        code.nodes.iter().map(Node::name).collect()
    }

    #[test]
    fn only_long_segments_are_launched_together() {
        let least = MIN_OPERATIONS as u32;
        let few = captured(long(least - 1), least - 1);
        assert_eq!(few.nodes.len(), MIN_OPERATIONS - 1);
        assert_eq!(names(&captured(long(least), least)), ["captured"]);
        // Looks at the same elements take no launches.
        let mut looks = long(least - 1);
        let flatten = Op::Flatten {
            start_axis: 0,
            end_axis: -1,
        };
        looks.push(op(flatten, &[least - 1]));
        assert_eq!(captured(looks, least).nodes.len(), MIN_OPERATIONS);
    }

    #[test]
    fn what_others_do_in_between_stays_by_itself() {
        let least = MIN_OPERATIONS as u32;
        let mut instructions = long(least);
        let call = Step::Call {
            id: 0,
            outputs: vec![(vec![], Dtype::F32)],
        };
        instructions.push(Instruction::new(call, [Some(least)], 1, None));
        instructions.push(op(Op::Add, &[least + 1, 2]));
        let code = captured(instructions, least + 2);
        assert_eq!(names(&code), ["captured", "call 0", "add"]);
        // Value 2 comes out of the segment, for the addition.
        assert_eq!(code.nodes[0].outputs[..], [2, least]);
        assert_eq!(code.nodes[2].inputs[..], [Some(least + 1), Some(2)]);
    }

    /// A segment of another engine.
    #[derive(Debug)]
    struct Part(bool);

    impl Segment for Part {
        fn name(&self) -> &'static str {
            "part"
        }
        fn place(&self, _: usize) -> String {
            String::new()
        }
        fn operations(&self) -> usize {
            2
        }
        fn build(&self, _: &Given, _: Device, _: &Stream) -> Result<Applied> {
            unreachable!("is not run")
        }
        fn is_capturable(&self) -> bool {
            self.0
        }
    }

    #[test]
    fn a_chain_is_a_launch_among_others() {
        let least = MIN_OPERATIONS as u32;
        for is_capturable in [true, false] {
            let block = Block::new(1, long(least), vec![least]).expect("well-formed");
            let mut code = Code::of(&block);
            code.nodes[2].work = Work::Segment(Arc::new(Part(is_capturable)));
            let (target, types) = (Target::of_test(Device::Gpu), Types::default());
            let scope = Scope::of_test(&target, &types, "capture");
            let code = Capture.run(code, &scope).expect("captured");
            match is_capturable {
                true => assert_eq!(names(&code), ["captured"]),
                false => assert_eq!(code.nodes.len(), MIN_OPERATIONS),
            }
        }
    }
}
