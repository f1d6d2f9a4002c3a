//! Where a program computes a few rows, as a model does for each token that it generates, launching kernels takes
//! longer than running them. Here runs of operations become one that the GPU has a kernel for (`op/fused.rs`):
//! [`products`] of one input, with the norm before them and the gate or the sum after them; the norm, the rotation and
//! the repetition of [`heads`]; [`attention`] of one position on a cache, as both lie. All but the last round where the
//! operations that they stand for round.

mod attention;

mod heads;
mod products;
#[cfg(test)]
mod tests;

use super::facts::Facts;
use super::{Code, Node, Pass, Scope, Target};
use crate::base::{Result, Signature};
use crate::op::Op;

pub struct Merge;

/// A node that comes before the one at a place, instead of those that define the same values.
struct Change {
    at: usize,
    node: Node,
}

/// What of the code can be merged in one way.
type Rule = fn(&Facts) -> Vec<Change>;

/// What came of one rule is looked at anew by the next.
const RULES: [Rule; 5] = [
    products::gates,
    products::sums,
    products::products,
    heads::heads,
    attention::attention,
];

impl Pass for Merge {
    fn name(&self) -> &'static str {
        "merge"
    }

    fn is_off(&self, target: &Target) -> Option<&'static str> {
        (!target.merge).then_some("merge: false, which is the default on the CPU")
    }

    fn needs_types(&self, _: &Target) -> bool {
        true
    }

    fn run(&self, code: Code, scope: &Scope) -> Result<Code> {
        match scope.types {
            Some(types) => Ok(merged(code, &types.values, scope)),
            None => Ok(code),
        }
    }
}

fn merged(mut code: Code, types: &[Signature], scope: &Scope) -> Code {
    for rule in RULES {
        let changes = rule(&Facts::of(&code, types));
        for change in &changes {
            scope.took(|| format!("instruction {}: {}", change.node.at, title(&change.node)));
        }
        code = changed(code, changes);
    }
    let facts = Facts::of(&code, types);
    for (at, reason) in products::left(&facts) {
        scope.left(|| format!("instruction {at}: {reason}"));
    }
    code
}

/// `products, 2 of one input, gated, with the norm before them`
fn title(node: &Node) -> String {
    let mut text = node.name();
    let Some(Op::Products { eps, gated, .. } | Op::QuantizedProducts { eps, gated, .. }) =
        node.op()
    else {
        return text;
    };
    let count = if *gated { 2 } else { node.outputs.len() };
    text += &format!(", {count} of one input");
    for (is, word) in [
        (*gated, ", gated"),
        (eps.is_some(), ", with the norm before"),
        (node.inputs[2].is_some(), ", with the sum after"),
    ] {
        text += if is { word } else { "" };
    }
    text
}

fn changed(mut code: Code, changes: Vec<Change>) -> Code {
    if changes.is_empty() {
        return code;
    }
    let mut is_defined = vec![false; code.values];
    let mut before: Vec<Vec<Node>> = (0..code.nodes.len()).map(|_| Vec::new()).collect();
    for Change { at, node } in changes {
        for value in &node.outputs {
            is_defined[*value as usize] = true;
        }
        before[at].push(node);
    }
    let old = std::mem::take(&mut code.nodes);
    for (node, new) in old.into_iter().zip(before) {
        code.nodes.extend(new);
        if !node.outputs.iter().any(|value| is_defined[*value as usize]) {
            code.nodes.push(node);
        }
    }
    code.retain_needed();
    code
}
