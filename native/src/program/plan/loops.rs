//! Finds how each loop runs: its steps counted before they run, all steps by an engine, or asked for one by one.

use super::{Code, Node, Pass, Scope, Target, Work};
use crate::error::Result;
use crate::program::engine::counted::Counters;
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
    let engine = match engine(node, condition, body, scope) {
        Ok(engine) => {
            scope.took(|| format!("loop {at}: its step is one {}", engine.name()));
            Some(engine)
        }
        Err(reason) => {
            scope.left(|| format!("loop {at} runs on the host: {reason}"));
            None
        }
    };
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
        engine,
        is_plain,
    })
}

/// The engine that takes a loop, or why none does.
fn engine(
    node: &Node,
    condition: &Arc<Code>,
    body: &Arc<Code>,
    scope: &Scope,
) -> std::result::Result<Arc<dyn LoopEngine>, String> {
    if !scope.target.step_graphs {
        return Err("engines for whole loops are CUDA's".into());
    }
    let types = scope.types.and_then(|types| {
        let inputs = node.inputs.iter().flatten();
        let inputs = inputs.map(|value| types.values.get(*value as usize).cloned());
        let inside = types.inside.get(node.at)?;
        Some((inputs.collect::<Option<Vec<_>>>()?, inside))
    });
    StepGraph::of(condition, body, node.outputs.len(), types).map(|engine| Arc::new(engine) as _)
}
