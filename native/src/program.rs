//! A list of operations over numbered values, replayed on new inputs. An eager call is the program of one.

use crate::array::{check_size, Outcome, Outcomes};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::mlx::{self, Stream};
use crate::op::{Inputs, Op, Outputs};
use mlx_rs::Array;
use rustler::Resource;
use std::sync::Arc;

/// One operation on values by number; the outputs take the next free numbers.
pub struct Instruction {
    pub op: Op,
    pub inputs: Vec<Option<usize>>,
    pub outputs: usize,
}

/// Values are numbered: first the inputs, then every instruction's outputs in order.
pub struct Program {
    inputs: usize,
    instructions: Vec<Instruction>,
    outputs: Vec<usize>,
    /// For every instruction, the values that nothing after it needs.
    last_uses: Vec<Vec<usize>>,
}

#[rustler::resource_impl]
impl Resource for Program {}

impl Program {
    pub fn new(
        inputs: usize,
        instructions: Vec<Instruction>,
        outputs: Vec<usize>,
    ) -> Result<Program> {
        let mut known = inputs;
        let mut last_use = vec![0usize; inputs];
        for (i, instruction) in instructions.iter().enumerate() {
            for value in instruction.inputs.iter().flatten() {
                if *value >= known {
                    return Err(Error::invalid(format!(
                        "instruction {i} ({}) takes value {value}, but only {known} are known there",
                        instruction.op.name()
                    )));
                }
                last_use[*value] = i;
            }
            known += instruction.outputs;
            last_use.resize(known, i);
        }
        if let Some(value) = outputs.iter().find(|value| **value >= known) {
            return Err(Error::invalid(format!(
                "output {value} is not one of the {known} values"
            )));
        }
        let mut last_uses = vec![Vec::new(); instructions.len()];
        for (value, last) in last_use.iter().enumerate() {
            if !outputs.contains(&value) && *last < last_uses.len() {
                last_uses[*last].push(value);
            }
        }
        Ok(Program {
            inputs,
            instructions,
            outputs,
            last_uses,
        })
    }

    /// Builds the nodes of every instruction and gives the outputs. Nothing is computed.
    pub fn replay(&self, inputs: &[&Array], device: Device, stream: &Stream) -> Result<Vec<Array>> {
        if inputs.len() != self.inputs {
            return Err(Error::invalid(format!(
                "the program takes {} inputs, got {}",
                self.inputs,
                inputs.len()
            )));
        }
        let mut values: Vec<Option<Array>> =
            Vec::with_capacity(self.inputs + self.instructions.len());
        for input in inputs {
            values.push(Some(mlx::share(input)?));
        }
        for (i, instruction) in self.instructions.iter().enumerate() {
            let arrays: Vec<Option<&Array>> = instruction
                .inputs
                .iter()
                .map(|value| value.and_then(|value| values[value].as_ref()))
                .collect();
            let outputs = build(&instruction.op, &arrays, device, stream).map_err(|error| {
                error.of(&format!("instruction {i}, {}", instruction.op.name()))
            })?;
            if outputs.len() != instruction.outputs {
                return Err(Error::invalid(format!(
                    "instruction {i} ({}) has {} outputs, the program says {}",
                    instruction.op.name(),
                    outputs.len(),
                    instruction.outputs
                )));
            }
            values.extend(outputs.into_iter().map(Some));
            // A buffer that nothing needs any more can be written over by MLX.
            for value in &self.last_uses[i] {
                values[*value] = None;
            }
        }
        self.outputs
            .iter()
            .map(|value| match &values[*value] {
                Some(array) => mlx::share(array),
                None => Err(Error::invalid(format!("value {value} was given up"))),
            })
            .collect()
    }

    /// What the outputs depend on besides their inputs' outcomes.
    pub fn new_outcomes(&self, device: Device, stream: &Stream) -> Result<Outcomes> {
        if self.instructions.iter().any(|i| i.op.can_fail_late()) {
            Ok(vec![Arc::new(Outcome::of_call(device, stream)?)])
        } else {
            Ok(Outcomes::new())
        }
    }
}

/// Applies one operation and checks what came out.
pub fn build(
    op: &Op,
    inputs: &[Option<&Array>],
    device: Device,
    stream: &Stream,
) -> Result<Outputs> {
    device.enter(stream)?;
    let mut outputs = op.apply(&Inputs(inputs), device, stream)?;
    for output in &mut outputs {
        check_size(output)?;
        // MLX's CUDA kernels end the process on many results without elements, and there is nothing to compute.
        if output.size() == 0 {
            *output = mlx::from_bytes(&[], output.shape(), mlx::dtype(output))?;
        }
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(op: Op, inputs: &[usize], outputs: usize) -> Instruction {
        Instruction {
            op,
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs,
        }
    }

    #[test]
    fn values_are_given_up_after_their_last_use() {
        let instructions = vec![
            instruction(Op::Add, &[0, 1], 1),
            instruction(Op::Multiply, &[2, 0], 1),
            instruction(Op::Abs, &[3], 1),
        ];
        let program = Program::new(2, instructions, vec![4, 2]).expect("well-formed");
        // Value 2 is an output, value 4 too; 1 goes after the first instruction, 0 after the second.
        assert_eq!(program.last_uses, vec![vec![1], vec![0], vec![3]]);
    }

    #[test]
    fn values_from_the_future_are_refused() {
        let instructions = vec![instruction(Op::Abs, &[1], 1)];
        let error = Program::new(1, instructions, vec![1])
            .err()
            .expect("refused");
        assert!(error.to_string().contains("takes value 1"));
    }
}
