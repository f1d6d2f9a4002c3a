//! Shapes and types of a program's values, found by building its operations lazily on placeholders: nothing is
//! computed. For programs whose inputs have shapes; used to describe, save and check them.

use super::build::{build, check_outputs};
use super::{shown, Block, Inputs, Instruction, Program, Step};
use crate::base::{Device, Error, Result, Signature};
use crate::handle::array::check_size;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

/// The types of a block's values by number, and those of the blocks inside each instruction.
#[derive(Debug, Default)]
pub struct Types {
    pub values: Vec<Signature>,
    pub inside: Vec<Vec<Types>>,
}

impl Types {
    /// None where the inputs may have any shapes and types.
    pub fn of(program: &Program, device: Device, stream: &Stream) -> Result<Option<Types>> {
        let Inputs::Named(inputs) = &program.inputs else {
            return Ok(None);
        };
        let mut values = Values::default();
        for input in inputs {
            let signature = (input.shape.clone(), input.dtype);
            values
                .0
                .push(Some(placeholder(&signature, stream).map_err(|error| {
                    error.within(&format!("input {:?}", input.name))
                })?));
        }
        for constant in &program.constants {
            values.0.push(Some(mlx::share(constant.array())?));
        }
        Walk { device, stream }
            .block(&program.body, values)
            .map(Some)
    }

    /// The types of a program's outputs, None for each where the inputs may have any.
    pub fn of_outputs(
        program: &Program,
        device: Device,
        stream: &Stream,
    ) -> Result<Vec<Option<Signature>>> {
        Ok(match Types::of(program, device, stream)? {
            Some(types) => types.outputs(&program.body).into_iter().map(Some).collect(),
            None => vec![None; program.body.outputs.len()],
        })
    }

    pub fn outputs(&self, block: &Block) -> Vec<Signature> {
        let of = |value: &u32| self.values[*value as usize].clone();
        block.outputs.iter().map(of).collect()
    }
}

fn signature(array: &Array) -> Signature {
    (array.shape().to_vec(), mlx::dtype(array))
}

fn placeholder((shape, dtype): &Signature, stream: &Stream) -> Result<Array> {
    let array = mlx::zeros(shape, *dtype, stream)?;
    check_size(&array)?;
    Ok(array)
}

/// Values by number, until their last use. They are given up as all nodes are: below them are the program's constants,
/// which others have too.
#[derive(Default)]
struct Values(Vec<Option<Array>>);

impl Values {
    fn spend(&mut self, values: &[u32]) {
        let spent = values
            .iter()
            .filter_map(|value| self.0[*value as usize].take());
        mlx::release_all(spent.collect());
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        mlx::release_all(self.0.drain(..).flatten().collect());
    }
}

struct Walk<'a> {
    device: Device,
    stream: &'a Stream,
}

impl Walk<'_> {
    fn block(&self, block: &Block, mut values: Values) -> Result<Types> {
        let mut types = Types {
            values: values.0.iter().flatten().map(signature).collect(),
            inside: Vec::with_capacity(block.instructions.len()),
        };
        for (i, instruction) in block.instructions.iter().enumerate() {
            let (outputs, inside) = self
                .instruction(instruction, &values.0)
                .map_err(|error| error.within(&instruction.place(i)))?;
            types.values.extend(outputs.iter().map(signature));
            types.inside.push(inside);
            values.0.extend(outputs.into_iter().map(Some));
            values.spend(&instruction.spent);
        }
        Ok(types)
    }

    fn instruction(
        &self,
        instruction: &Instruction,
        values: &[Option<Array>],
    ) -> Result<(Vec<Array>, Vec<Types>)> {
        let inputs: SmallVec<[Option<&Array>; 6]> = instruction
            .inputs
            .iter()
            .map(|value| value.and_then(|value| values.get(value as usize)?.as_ref()))
            .collect();
        let share = |from: usize| -> Result<Values> {
            let shared = inputs[from..].iter().map(|array| match array {
                Some(array) => mlx::share(array).map(Some),
                None => Ok(None),
            });
            shared.collect::<Result<_>>().map(Values)
        };
        let scalar = |what: &str, signature: &Signature| {
            if signature.0.iter().all(|size| *size == 1) {
                return Ok(());
            }
            Err(Error::invalid(format!(
                "the {what} is {}, it is to be one scalar",
                shown(signature)
            )))
        };
        let same = |what: &str, before: &[Signature], after: &[Signature]| match before
            .iter()
            .zip(after)
            .position(|(a, b)| a != b)
        {
            None => Ok(()),
            Some(i) => Err(Error::invalid(format!(
                "{what} {i} is {} and {}",
                shown(&before[i]),
                shown(&after[i])
            ))),
        };
        let placeholders = |signatures: &[Signature]| -> Result<Vec<Array>> {
            let made = signatures
                .iter()
                .map(|signature| placeholder(signature, self.stream));
            made.collect()
        };
        match &instruction.step {
            Step::Op(op) => {
                let applied = build(op, &inputs, self.device, self.stream)?;
                let outputs = check_outputs(applied.outputs, instruction.outputs)?;
                Ok((outputs.into_vec(), Vec::new()))
            }
            Step::Call { outputs, .. } => Ok((placeholders(outputs)?, Vec::new())),
            Step::If { then, otherwise } => {
                if let Some(Some(predicate)) = inputs.first() {
                    scalar("predicate", &signature(predicate))?;
                }
                let taken = self
                    .block(then, share(1)?)
                    .map_err(|error| error.within("then"))?;
                let other = self
                    .block(otherwise, share(1)?)
                    .map_err(|error| error.within("else"))?;
                let outputs = taken.outputs(then);
                same("the branches' output", &outputs, &other.outputs(otherwise))?;
                Ok((placeholders(&outputs)?, vec![taken, other]))
            }
            Step::While { condition, body } => {
                let state: Vec<Signature> = inputs[..instruction.outputs]
                    .iter()
                    .flatten()
                    .map(|array| signature(array))
                    .collect();
                let goes_on = self
                    .block(condition, share(0)?)
                    .map_err(|error| error.within("condition"))?;
                scalar("condition", &goes_on.outputs(condition)[0])?;
                let step = self
                    .block(body, share(0)?)
                    .map_err(|error| error.within("body"))?;
                same(
                    "before and after the body, value",
                    &state,
                    &step.outputs(body),
                )?;
                Ok((placeholders(&state)?, vec![goes_on, step]))
            }
        }
    }
}
