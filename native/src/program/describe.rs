//! A program as text, for `EMLX.Program.inspect/2`: one line an instruction, blocks inside it indented.

use super::types::Types;
use super::{shown, Block, Inputs, Instruction, Program, Step};
use crate::base::{Device, Result, Signature};
use crate::mlx::Stream;
use crate::op::Op;
use serde_json::Value;
use std::fmt::Write;

/// What of an attribute's value is shown.
const MAX_VALUE: usize = 60;

pub fn describe(program: &Program, device: Device, stream: &Stream) -> Result<String> {
    // A program whose instructions do not fit can be looked at all the same: that is how one finds out.
    let types = match Types::of(program, device, stream) {
        Ok(types) => types.ok_or(None),
        Err(error) => Err(Some(error)),
    };
    let mut text = String::new();
    let written = Description {
        text: &mut text,
        constants: program.inputs.len()..program.body.inputs,
    }
    .program(program, types.as_ref().ok());
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    if let Err(Some(error)) = types {
        text.push_str(&format!("does not fit: {error}\n"));
    }
    Ok(text)
}

struct Description<'a> {
    text: &'a mut String,
    /// The numbers of the top block's values that are constants.
    constants: std::ops::Range<usize>,
}

impl Description<'_> {
    fn program(&mut self, program: &Program, types: Option<&Types>) -> std::fmt::Result {
        writeln!(self.text, "inputs")?;
        match &program.inputs {
            Inputs::Any(count) => {
                for i in 0..*count {
                    writeln!(self.text, "  %{i} any")?;
                }
            }
            Inputs::Named(inputs) => {
                for (i, input) in inputs.iter().enumerate() {
                    let signature = shown(&(input.shape.clone(), input.dtype));
                    writeln!(self.text, "  %{i} = {:?} {signature}", input.name)?;
                }
            }
        }
        if !program.constants.is_empty() {
            writeln!(self.text, "constants")?;
        }
        for (i, constant) in program.constants.iter().enumerate() {
            writeln!(self.text, "  %c{i} {}", shown(&constant.signature()))?;
        }
        let fused = if program.options.fuse { ", fused" } else { "" };
        writeln!(self.text, "instructions{fused}")?;
        self.block(&program.body, types, 1, true)?;
        writeln!(self.text, "outputs")?;
        for (i, value) in program.body.outputs.iter().enumerate() {
            let name = match &program.output_names {
                Some(names) => format!("{:?} = ", names[i]),
                None => String::new(),
            };
            let typed = typed(types, *value);
            writeln!(self.text, "  {name}{}{typed}", self.value(*value, true))?;
        }
        Ok(())
    }

    fn value(&self, value: u32, is_top: bool) -> String {
        let value = value as usize;
        match is_top && self.constants.contains(&value) {
            true => format!("%c{}", value - self.constants.start),
            false => format!("%{value}"),
        }
    }

    fn block(
        &mut self,
        block: &Block,
        types: Option<&Types>,
        depth: usize,
        is_top: bool,
    ) -> std::fmt::Result {
        let indent = "  ".repeat(depth);
        let mut next = block.inputs as u32;
        for (i, instruction) in block.instructions.iter().enumerate() {
            let outputs: Vec<u32> = (next..next + instruction.outputs as u32).collect();
            next += instruction.outputs as u32;
            let mut arguments: Vec<String> = instruction
                .inputs
                .iter()
                .map(|value| value.map_or("nil".into(), |value| self.value(value, is_top)))
                .collect();
            let name = self.step(instruction, &mut arguments);
            let list = |separator: &str, of: &dyn Fn(&u32) -> String| {
                outputs.iter().map(of).collect::<Vec<_>>().join(separator)
            };
            let values = list(", ", &|value| format!("%{value}"));
            let signatures = match types {
                Some(types) => list(", ", &|value| shown(&types.values[*value as usize])),
                None => String::new(),
            };
            let equals = if outputs.is_empty() { "" } else { " = " };
            let label = match &instruction.label {
                Some(label) => format!(" [{label}]"),
                None => String::new(),
            };
            let arguments = arguments.join(", ");
            let line = format!("{values}{equals}{name}({arguments}) {signatures}");
            writeln!(self.text, "{indent}{}{label}", line.trim_end())?;
            for (j, inside) in instruction.blocks().enumerate() {
                let name = match (&instruction.step, j) {
                    (Step::If { .. }, 0) => "then",
                    (Step::If { .. }, _) => "else",
                    (_, 0) => "condition",
                    _ => "body",
                };
                let types = types.map(|types| &types.inside[i][j]);
                let inputs: Vec<String> = (0..inside.inputs as u32)
                    .map(|value| format!("%{value}{}", typed(types, value)))
                    .collect();
                writeln!(self.text, "{indent}  {name}({})", inputs.join(", "))?;
                self.block(inside, types, depth + 2, false)?;
                let outputs: Vec<String> = inside
                    .outputs
                    .iter()
                    .map(|value| format!("%{value}"))
                    .collect();
                writeln!(self.text, "{indent}    give {}", outputs.join(", "))?;
            }
        }
        Ok(())
    }

    /// The name; attributes go behind the arguments.
    fn step(&self, instruction: &Instruction, arguments: &mut Vec<String>) -> String {
        match &instruction.step {
            Step::Op(op) => arguments.extend(attributes(op)),
            Step::Call { id, .. } => {
                arguments.push(format!("id: {id}"));
                return "call".into();
            }
            _ => {}
        }
        instruction.step.name()
    }
}

fn typed(types: Option<&Types>, value: u32) -> String {
    let of = |types: &Types| {
        types
            .values
            .get(value as usize)
            .map(|s: &Signature| shown(s))
    };
    types
        .and_then(of)
        .map_or(String::new(), |text| format!(" {text}"))
}

/// `axes: [0], keepdims: true`, from what a file holds; what is absent is left out.
fn attributes(op: &Op) -> Vec<String> {
    let Ok(Value::Object(op)) = serde_json::to_value(op) else {
        return Vec::new();
    };
    let Some(Value::Object(attributes)) = op.into_iter().next().map(|(_, value)| value) else {
        return Vec::new();
    };
    let shown = attributes.into_iter().filter(|(_, value)| !value.is_null());
    shown
        .map(|(name, value)| {
            let mut text = match value {
                Value::String(text) => text,
                Value::Array(list) => {
                    let list: Vec<String> = list.iter().map(Value::to_string).collect();
                    format!("[{}]", list.join(", "))
                }
                other => other.to_string(),
            };
            if let Some((end, _)) = text.char_indices().nth(MAX_VALUE) {
                text.replace_range(end.., "…");
            }
            format!("{name}: {text}")
        })
        .collect()
}
