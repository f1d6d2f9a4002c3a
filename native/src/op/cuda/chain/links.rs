//! Links as operations of the table, one by one: what a chain is where there is no kernel for it.

use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Action, Bits, Comparison, Division, Function, Link, Operand, Pair, Test};
use crate::mlx::{self, Stream};
use crate::op::{Inputs, Op};
use mlx_rs::Array;
use smallvec::SmallVec;

/// The results of links over arrays, by MLX's own kernels.
pub fn composed(
    links: &[Link],
    inputs: &[Array],
    shape: &[i32],
    device: Device,
    s: &Stream,
) -> Result<Vec<Array>> {
    let mut made: Vec<Array> = Vec::with_capacity(links.len());
    for link in links {
        let value = {
            let operand = |operand: &Operand| {
                let array = match *operand {
                    Operand::Input(input) => inputs.get(usize::from(input)),
                    Operand::Link(link) => made.get(usize::from(link)),
                };
                array.ok_or_else(|| Error::invalid("a link has no operand"))
            };
            let operands = link.operands().iter().map(operand);
            self::link(link, &operands.collect::<Result<Vec<_>>>()?, device, s)?
        };
        made.push(value);
    }
    let results = super::text::results(links);
    results
        .map(|(i, _)| mlx::broadcast_to(&made[i], shape, s))
        .collect()
}

/// What a link gives of its operands.
pub fn link(link: &Link, operands: &[&Array], device: Device, s: &Stream) -> Result<Array> {
    let operand = |(place, array): (usize, &&Array)| {
        // A link takes booleans for bytes.
        let taken = cpu::dtype_of(link.action.operand(place, link.from));
        match mlx::dtype(array) == Dtype::Bool {
            true => mlx::astype(array, taken, s),
            false => mlx::share(array),
        }
    };
    let operands = operands.iter().enumerate().map(operand);
    let operands = operands.collect::<Result<SmallVec<[Array; 3]>>>()?;
    let operands: SmallVec<[Option<&Array>; 3]> = operands.iter().map(Some).collect();
    let outputs = operation(link).composed(&Inputs(&operands), device, s)?;
    let output = outputs.into_iter().next();
    let output = output.ok_or_else(|| Error::invalid("a link has no result"))?;
    // MLX counts booleans, among others.
    mlx::astype(&output, cpu::dtype_of(link.to), s)
}

fn operation(link: &Link) -> Op {
    let is_truth = link.from == cpu::Type::Bool;
    match link.action {
        Action::Unary(function) => unary(function),
        Action::Binary(pair) => match pair {
            Pair::Add => Op::Add,
            Pair::Subtract => Op::Subtract,
            Pair::Multiply => Op::Multiply,
            Pair::Divide => Op::Divide,
            Pair::Maximum => Op::Maximum,
            Pair::Minimum => Op::Minimum,
            Pair::Power => Op::Power,
            Pair::Atan2 => Op::Arctan2,
            Pair::Fmod => Op::Fmod,
            Pair::FloorMod => Op::Remainder,
        },
        Action::Bits(bits) => match bits {
            Bits::And => Op::BitwiseAnd,
            Bits::Or => Op::BitwiseOr,
            Bits::Xor => Op::BitwiseXor,
            Bits::ShiftLeft => Op::LeftShift,
            Bits::ShiftRight => Op::RightShift,
        },
        Action::Not if is_truth => Op::LogicalNot,
        Action::Not => Op::BitwiseInvert,
        Action::Division(division) => match division {
            Division::Quotient => Op::Quotient,
            Division::Floor => Op::FloorDivide,
            Division::Fmod => Op::Fmod,
            Division::Remainder => Op::Remainder,
        },
        Action::Compare(comparison) => match comparison {
            Comparison::Equal => Op::Equal,
            Comparison::NotEqual => Op::NotEqual,
            Comparison::Less => Op::Less,
            Comparison::LessEqual => Op::LessEqual,
            Comparison::Greater => Op::Greater,
            Comparison::GreaterEqual => Op::GreaterEqual,
            Comparison::And => Op::LogicalAnd,
            Comparison::Or => Op::LogicalOr,
            Comparison::Xor => Op::LogicalXor,
        },
        Action::Test(test) => match test {
            Test::Nan => Op::Isnan,
            Test::Infinite => Op::Isinf,
            Test::PositiveInfinity => Op::Isposinf,
            Test::NegativeInfinity => Op::Isneginf,
            Test::Finite => Op::Isfinite,
        },
        Action::Select => Op::Where,
        Action::Cast => Op::Astype {
            dtype: cpu::dtype_of(link.to),
        },
        Action::ToInteger => Op::ToInteger {
            dtype: cpu::dtype_of(link.to),
        },
    }
}

fn unary(function: Function) -> Op {
    match function {
        Function::Exp => Op::Exp,
        Function::Sigmoid => Op::Sigmoid,
        Function::Tanh => Op::Tanh,
        Function::Erf => Op::Erf,
        Function::Sqrt => Op::Sqrt,
        Function::Rsqrt => Op::Rsqrt,
        Function::Negative => Op::Negative,
        Function::Abs => Op::Abs,
        Function::Square => Op::Square,
        Function::Floor => Op::Floor,
        Function::Ceil => Op::Ceil,
        Function::Trunc => Op::Trunc,
        Function::Round => Op::Round { decimals: 0 },
        Function::RoundAway => Op::RoundAway,
        Function::Sign => Op::Sign,
        Function::Log => Op::Log,
        Function::Log1p => Op::Log1p,
        Function::Expm1 => Op::Expm1,
        Function::Sin => Op::Sin,
        Function::Cos => Op::Cos,
        Function::Tan => Op::Tan,
        Function::Sinh => Op::Sinh,
        Function::Cosh => Op::Cosh,
        Function::Asin => Op::Arcsin,
        Function::Acos => Op::Arccos,
        Function::Atan => Op::Arctan,
        Function::Asinh => Op::Arcsinh,
        Function::Acosh => Op::Arccosh,
        Function::Atanh => Op::Arctanh,
        Function::Log2 => Op::Log2,
        Function::Log10 => Op::Log10,
        Function::Cbrt => Op::Cbrt,
        Function::Erfc => Op::Erfc,
        Function::Erfinv => Op::Erfinv,
        Function::Reciprocal => Op::Reciprocal,
    }
}
