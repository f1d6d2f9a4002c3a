//! Programs from Elixir terms, as `EMLX.Program.new/4` documents them. Called by the border. Nothing here trusts a
//! number: the counts are checked by [`Block::new`], the depth here.

use super::decode::{argument, decode_op, shown};
use crate::base::{Dtype, Error, Result, Signature};
use crate::handle::array::shape_of;
use crate::program::{Block, Input, Inputs, Instruction, Step, MAX_DEPTH};
use rustler::{ListIterator, Term, TermType};
use std::sync::Arc;

const INSTRUCTION: &str =
    "{op, [value number | nil], number of outputs} or the same with a label, a binary";

mod atoms {
    rustler::atoms! {
        if_ = "if", while_ = "while", call, then, else_ = "else", condition, body, id, outputs, nil,
    }
}

/// A count of inputs, or a list of `{name, shape, dtype}`.
pub fn inputs(term: Term) -> Result<Inputs> {
    if term.get_type() != TermType::List {
        return argument(
            term,
            0,
            "a number of inputs, or a list of {name, shape, dtype}",
        )
        .map(Inputs::Any);
    }
    list(term, 0, "a list of {name, shape, dtype}")?
        .map(|input| {
            let (name, shape, dtype): (String, Vec<i64>, Dtype) = argument(
                input,
                0,
                "{name, shape, dtype} with a binary, a list and a type",
            )?;
            let shape = shape_of(&shape)?;
            Ok(Input { name, shape, dtype })
        })
        .collect::<Result<_>>()
        .map(Inputs::Named)
}

/// The top block: its number of inputs is that of the program's inputs and constants.
pub fn top(inputs: usize, instructions: Term, outputs: Term) -> Result<Block> {
    parts(inputs, instructions, outputs, 0)
}

fn list<'a>(term: Term<'a>, position: usize, expected: &'static str) -> Result<ListIterator<'a>> {
    // A list that does not end in [] has no length.
    match (term.list_length(), term.decode()) {
        (Ok(_), Ok(list)) => Ok(list),
        _ => argument::<ListIterator>(term, position, expected).and(Err(Error::invalid(format!(
            "improper list {}",
            shown(term)
        )))),
    }
}

fn parts(inputs: usize, instructions: Term, outputs: Term, depth: usize) -> Result<Block> {
    if depth > MAX_DEPTH {
        return Err(Error::invalid(format!(
            "blocks stand more than {MAX_DEPTH} deep in one another"
        )));
    }
    let instructions = list(instructions, 1, "a list of instructions")?
        .enumerate()
        .map(|(i, term)| {
            instruction(term, depth).map_err(|error| error.within(&format!("instruction {i}")))
        })
        .collect::<Result<Vec<_>>>()?;
    let outputs = list(outputs, 2, "a list of value numbers")?
        .map(|value| argument(value, 2, "a value number"))
        .collect::<Result<Vec<u32>>>()?;
    Block::new(inputs, instructions, outputs)
}

fn block(term: Term, depth: usize) -> Result<Arc<Block>> {
    let expected = "a block {number of inputs, [instruction], [value number]}";
    match rustler::types::tuple::get_tuple(term).as_deref() {
        Ok([inputs, instructions, outputs]) => {
            let inputs = argument(*inputs, 0, "a number of inputs")?;
            parts(inputs, *instructions, *outputs, depth).map(Arc::new)
        }
        _ => Err(Error::invalid(format!("{} is not {expected}", shown(term)))),
    }
}

fn instruction(term: Term, depth: usize) -> Result<Instruction> {
    let elements = rustler::types::tuple::get_tuple(term).unwrap_or_default();
    let (op, inputs, outputs, label) = match elements[..] {
        [op, inputs, outputs] => (op, inputs, outputs, None),
        [op, inputs, outputs, label] => {
            let label = argument(label, 3, "nil or a label, a binary")?;
            (op, inputs, outputs, label)
        }
        _ => {
            return Err(Error::invalid(format!(
                "{} is not {INSTRUCTION}",
                shown(term)
            )))
        }
    };
    let inputs = list(inputs, 1, "a list of value numbers")?
        .map(|value| argument(value, 1, "a value number or nil"))
        .collect::<Result<Vec<Option<u32>>>>()?;
    let outputs = argument(outputs, 2, "a number of outputs")?;
    Ok(Instruction::new(step(op, depth)?, inputs, outputs, label))
}

fn step(term: Term, depth: usize) -> Result<Step> {
    let elements = rustler::types::tuple::get_tuple(term).unwrap_or_default();
    let [name, attributes] = elements[..] else {
        return decode_op(term).map(Step::Op);
    };
    let inside = |key: rustler::Atom, name: &str| match attributes.map_get(key) {
        Ok(term) => {
            let place = format!("{name} block");
            block(term, depth + 1).map_err(|error| error.within(&place))
        }
        Err(_) => Err(Error::invalid(format!(
            "has no {name} block in {}",
            shown(term)
        ))),
    };
    if atoms::if_() == name {
        Ok(Step::If {
            then: inside(atoms::then(), "then")?,
            otherwise: inside(atoms::else_(), "else")?,
        })
    } else if atoms::while_() == name {
        Ok(Step::While {
            condition: inside(atoms::condition(), "condition")?,
            body: inside(atoms::body(), "body")?,
        })
    } else if atoms::call() == name {
        let expected = "{:call, %{id: non-negative integer, outputs: [{shape, dtype}]}}";
        let of = |key: rustler::Atom| {
            let missing = |_| Error::invalid(format!("{} is not {expected}", shown(term)));
            attributes.map_get(key).map_err(missing)
        };
        let outputs = list(of(atoms::outputs())?, 0, "a list of {shape, dtype}")?
            .map(|output| {
                let (shape, dtype): (Vec<i64>, Dtype) =
                    argument(output, 0, "{shape, dtype} with a list and a type")?;
                Ok((shape_of(&shape)?, dtype))
            })
            .collect::<Result<Vec<Signature>>>()?;
        Ok(Step::Call {
            id: argument(of(atoms::id())?, 0, "a non-negative integer as id")?,
            outputs,
        })
    } else {
        decode_op(term).map(Step::Op)
    }
}
