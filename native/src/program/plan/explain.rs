//! A plan as text, for `EMLX.Program.explain/2`: what runs and by which engine, then what each pass took and left, with
//! the reasons.

use super::notes::{Note, Notes};
use super::{Code, Node, Plan, Target, Work, PASSES};
use crate::base::{Device, Result};
use crate::program::Program;
use std::fmt::Write;

/// Names of operations that a line shows.
const MAX_NAMES: usize = 24;

/// The plan of a program for a device. Where the machine has no GPU, it is that of a GPU with CUDA.
pub fn explain(program: &Program, device: Device) -> Result<String> {
    let is_here = device.is_available();
    let target = match is_here {
        true => Target::of(device, &program.options),
        false => Target {
            generated: Ok(()),
            graphs: true,
            step_graphs: true,
            ..Target::of(device, &program.options)
        },
    };
    let notes = Notes::on();
    let noted = Plan::noted(program, &target, &notes)?;
    // What runs here has learnt from its runs.
    let body = match is_here {
        true => program.plan(device)?.body.clone(),
        false => noted.body,
    };
    let mut text = String::new();
    let place = match is_here {
        true => device.name().to_string(),
        false => format!("{}, which this machine lacks: as with CUDA", device.name()),
    };
    let _ = writeln!(text, "plan for {place}");
    code(&mut text, &body, 1);
    passes(&mut text, &notes.into_vec());
    Ok(text)
}

fn code(text: &mut String, code: &Code, depth: usize) {
    let indent = "  ".repeat(depth);
    let mut rest = &code.nodes[..];
    while let Some(first) = rest.first() {
        let operations = rest.iter().take_while(|node| node.op().is_some()).count();
        let (nodes, after) = rest.split_at(operations.max(1));
        rest = after;
        let _ = match operations {
            0 => writeln!(text, "{indent}{}: {}", first.at, title(first)),
            _ => writeln!(
                text,
                "{indent}{}: node by node: {}",
                range(nodes),
                names(nodes)
            ),
        };
        for (inside, name) in first
            .work
            .blocks()
            .into_iter()
            .zip(first.work.block_names())
        {
            let _ = writeln!(text, "{indent}  {name}");
            self::code(text, inside, depth + 2);
        }
    }
    if code.nodes.is_empty() {
        let _ = writeln!(text, "{indent}nothing to run");
    }
}

/// What a node that is no operation of MLX's is, and how it runs.
fn title(node: &Node) -> String {
    let label = node.label.iter().map(|label| format!(" [{label}]"));
    let label: String = label.collect();
    let how = match &node.work {
        Work::Segment(segment) => {
            let state = segment.state().map(|state| format!(" ({state})"));
            let count = segment.operations();
            format!(": {count} operations{}", state.unwrap_or_default())
        }
        Work::While { plan, .. } => {
            let mut ways = Vec::new();
            let engine = plan.engines.iter().map(|engine| match engine.state() {
                Some(state) => format!("{} ({state})", engine.name()),
                None => engine.name().to_string(),
            });
            let counted = "steps counted before they run".to_string();
            ways.extend(plan.counters.is_some().then_some(counted));
            ways.extend(engine);
            if plan.engines.iter().any(|engine| engine.takes_first(&[])) {
                ways.rotate_right(1);
            }
            ways.push("steps asked for one by one".to_string());
            format!(": {}", ways.join(", else "))
        }
        _ => String::new(),
    };
    format!("{}{label}{how}", node.name())
}

/// `3` or `3–7`.
fn range(nodes: &[Node]) -> String {
    let places = || nodes.iter().map(|node| node.at);
    match (places().min(), places().max()) {
        (Some(first), Some(last)) if first != last => format!("{first}–{last}"),
        (first, _) => first.unwrap_or_default().to_string(),
    }
}

/// `add, exp ×3, …`
fn names(nodes: &[Node]) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for node in nodes {
        let name = node.name();
        match counted.last_mut() {
            Some((last, count)) if *last == name => *count += 1,
            _ => counted.push((name, 1)),
        }
    }
    let more = counted.len() > MAX_NAMES;
    counted.truncate(MAX_NAMES);
    let texts = counted.into_iter().map(|(name, count)| match count {
        1 => name,
        _ => format!("{name} ×{count}"),
    });
    let mut texts: Vec<String> = texts.collect();
    if more {
        texts.push("…".into());
    }
    texts.join(", ")
}

fn passes(text: &mut String, notes: &[Note]) {
    for pass in PASSES {
        let _ = writeln!(text, "{}", pass.name());
        let own = notes.iter().filter(|note| note.pass == pass.name());
        let mut is_silent = true;
        for note in own {
            is_silent = false;
            let sign = if note.is_taken { "took" } else { "left" };
            let place = match note.place.is_empty() {
                true => String::new(),
                false => format!("{}, ", note.place),
            };
            let _ = writeln!(text, "  {sign} {place}{}", note.text);
        }
        if is_silent {
            let _ = writeln!(text, "  found nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::program::{Block, Inputs, Instruction, Options, Step};
    use std::sync::Arc;

    fn op(op: Op, inputs: &[u32]) -> Instruction {
        Instruction::new(Step::Op(op), inputs.iter().copied().map(Some), 1, None)
    }

    #[test]
    fn every_pass_says_what_it_did() {
        crate::mlx::init();
        let condition = Block::new(2, vec![op(Op::Less, &[0, 1])], vec![2]);
        let body = Block::new(2, vec![op(Op::Cos, &[0])], vec![2]);
        let step = Step::While {
            condition: Arc::new(condition.expect("well-formed")),
            body: Arc::new(body.expect("well-formed")),
        };
        let instructions = vec![
            op(Op::Exp, &[0]),
            op(Op::Exp, &[2]),
            Instruction::new(step, [Some(3), Some(1)], 1, None),
        ];
        let block = Block::new(2, instructions, vec![4]).expect("well-formed");
        let options = Options {
            merge: Some(false),
            ..Options::default()
        };
        let program = Program::new(Inputs::Any(2), vec![], block, None, options);
        let text = explain(&program.expect("made"), Device::Cpu).expect("explained");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[0], "plan for cpu");
        assert_eq!(lines[1], "0–1: node by node: exp ×2");
        assert_eq!(
            lines[2],
            "2: while: recorded step, else steps asked for one by one"
        );
        assert_eq!(
            lines[3..7],
            [
                "condition",
                "0: node by node: less",
                "body",
                "0: node by node: cos"
            ]
        );
        for pass in PASSES {
            assert!(lines.contains(&pass.name()), "{text}");
        }
        assert!(
            lines
                .iter()
                .any(|line| line.contains("its condition hangs on cos")),
            "{text}"
        );
    }
}
