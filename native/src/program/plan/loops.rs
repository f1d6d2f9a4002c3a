//! Finds how each loop runs: its step recorded and repeated, its steps counted before they run, all steps by an engine,
//! or asked for one by one.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::base::Result;
use crate::program::engine::captured_loop::CapturedLoop;
use crate::program::engine::counted::Counters;
use crate::program::engine::recorded::Recordings;
use crate::program::engine::step_graph::StepGraph;
use crate::program::engine::{LoopEngine, LoopPlan};
use std::sync::Arc;

pub struct Loops;

impl Pass for Loops {
    fn name(&self) -> &'static str {
        "loops"
    }

    fn is_off(&self, _: &Target) -> Option<&'static str> {
        None
    }

    fn needs_types(&self, _: &Target) -> bool {
        false
    }

    fn run(&self, mut code: Code, scope: &Scope) -> Result<Code> {
        for node in &mut code.nodes {
            let planned = planned(node, scope);
            if let (Work::While { plan, .. }, Some(own)) = (&mut node.work, planned) {
                *plan = Arc::new(own);
            }
        }
        Ok(code)
    }
}

fn planned(node: &Node, scope: &Scope) -> Option<LoopPlan> {
    let Work::While {
        condition, body, ..
    } = &node.work
    else {
        return None;
    };
    let at = node.at;
    let is_plain = condition.is_plain() && body.is_plain();
    let counters = match Counters::of(condition, body, node.outputs.len()) {
        Ok(counters) => {
            scope.took(|| format!("loop {at}: its steps are counted where its numbers are whole"));
            Some(counters)
        }
        Err(op) => {
            scope.left(|| {
                format!("loop {at}: its steps are not counted, since its condition hangs on {op}")
            });
            None
        }
    };
    let (engines, reasons) = engines(node, condition, body, scope);
    for engine in &engines {
        scope.took(|| format!("loop {at}: its step is one {}", engine.name()));
    }
    if engines.is_empty() {
        scope.left(|| format!("loop {at} runs on the host: {}", reasons.join("; ")));
    }
    match (scope.target.run_ahead, is_plain) {
        (None, _) => {}
        (Some(steps), true) => scope.took(|| {
            format!("loop {at}: after {steps} steps the next one is submitted before the condition is known")
        }),
        (Some(_), false) => scope.left(|| {
            format!("loop {at}: a step with branches, loops or calls does not run ahead")
        }),
    }
    Some(LoopPlan {
        counters,
        engines,
        is_plain,
    })
}

/// The engines for a loop, and why others take none like it.
fn engines(
    node: &Node,
    condition: &Arc<Code>,
    body: &Arc<Code>,
    scope: &Scope,
) -> (Vec<Arc<dyn LoopEngine>>, Vec<String>) {
    if scope.target.kernels {
        return match condition.has_effect() || body.has_effect() {
            true => (vec![], vec!["a step with calls is not recorded".into()]),
            false => (vec![Arc::new(Recordings::of(body))], vec![]),
        };
    }
    if !scope.target.step_graphs {
        let reason = "a step as one graph is CUDA's, and steps are recorded by kernels of our own";
        return (vec![], vec![reason.into()]);
    }
    let types = scope.types.and_then(|types| {
        let inputs = node.inputs.iter().flatten();
        let inputs = inputs.map(|value| types.values.get(*value as usize).cloned());
        let inside = types.inside.get(node.at)?;
        Some((inputs.collect::<Option<Vec<_>>>()?, inside))
    });
    let (mut engines, mut reasons): (Vec<Arc<dyn LoopEngine>>, _) = (vec![], vec![]);
    match StepGraph::of(condition, body, node.outputs.len(), types) {
        Ok(engine) => engines.push(Arc::new(engine)),
        Err(reason) => reasons.push(reason),
    }
    match scope.target.graphs {
        true => match CapturedLoop::of(condition, body) {
            Ok(engine) => engines.push(Arc::new(engine)),
            Err(reason) => reasons.push(reason),
        },
        false => reasons.push("nothing is captured here".into()),
    }
    (engines, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Device;
    use crate::op::Op;
    use crate::program::plan::Notes;
    use crate::program::{Block, Instruction, Step};

    /// What the pass makes of a loop over one value and a last one that it reads, and what it says.
    fn planned(device: Device, condition: Op, body: Op) -> (LoopPlan, Vec<String>) {
        let block = |op, inputs: &[u32]| {
            let inputs = inputs.iter().copied().map(Some);
            let block = Block::new(
                2,
                vec![Instruction::new(Step::Op(op), inputs, 1, None)],
                vec![2],
            );
            Arc::new(block.expect("well-formed"))
        };
        let step = Step::While {
            condition: block(condition, &[0, 1]),
            body: block(body, &[0, 0]),
        };
        let inputs = [Some(0), Some(1)];
        let block = Block::new(2, vec![Instruction::new(step, inputs, 1, None)], vec![2]);
        let (target, notes) = (Target::of_test(device), Notes::on());
        let scope = Scope {
            target: &target,
            types: None,
            pass: "loops",
            place: String::new(),
            notes: &notes,
        };
        let mut code = Loops
            .run(Code::of(&block.expect("well-formed")), &scope)
            .expect("planned");
        let Work::While { plan, .. } = code.nodes.remove(0).work else {
            panic!("no loop")
        };
        let texts = notes.into_vec().into_iter().map(|note| note.text);
        (Arc::into_inner(plan).expect("its own"), texts.collect())
    }

    #[test]
    fn loops_are_counted_where_whole_numbers_say_how_often_they_turn() {
        let (plan, notes) = planned(Device::Cpu, Op::Less, Op::Add);
        assert!(plan.counters.is_some() && plan.is_plain);
        assert!(notes[0].contains("its steps are counted"), "{notes:?}");
        let (plan, notes) = planned(Device::Cpu, Op::Arctan2, Op::Add);
        assert!(plan.counters.is_none());
        assert!(notes[0].contains("hangs on arctan2"), "{notes:?}");
    }

    #[test]
    fn a_loop_has_an_engine_or_a_reason() {
        let (plan, notes) = planned(Device::Cpu, Op::Less, Op::Add);
        let names = |plan: &LoopPlan| -> Vec<_> {
            let engines = plan.engines.iter();
            engines.map(|engine| engine.name()).collect()
        };
        assert_eq!(names(&plan), ["recorded step"]);
        assert!(
            notes[1].contains("its step is one recorded step"),
            "{notes:?}"
        );
        let (plan, notes) = planned(Device::Gpu, Op::Less, Op::Add);
        assert_eq!(names(&plan), ["captured step"]);
        assert!(
            notes[1].contains("its step is one captured step"),
            "{notes:?}"
        );
        let (plan, notes) = planned(Device::Gpu, Op::Less, Op::Eigvals);
        assert!(plan.engines.is_empty());
        assert!(
            notes[1].contains("its body has no merged operations; its step is not one graph"),
            "{notes:?}"
        );
    }
}
