//! Actions on elements of any type: what a link of a chain computes. Floats of 32 and 16 bits have functions of
//! vectors (`unary`, `binary`); here are the other types, comparisons, choices and casts, written once over [`Cell`] in
//! chunks that the compiler turns into vectors.

mod cast;
mod cell;
mod compare;
mod numbers;
mod select;
mod whole;

use super::simd::Level;
use super::{binary, unary, Function, Pair, Type};
pub use compare::{Comparison, Test};
use half::{bf16, f16};
pub use numbers::{Bits, Division};
use std::ffi::CStr;

/// What is computed of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Unary(Function),
    Binary(Pair),
    /// Of integers and booleans.
    Bits(Bits),
    /// The bits turned over; of booleans the opposite.
    Not,
    /// Of integers.
    Division(Division),
    /// To booleans.
    Compare(Comparison),
    /// Of floats, to booleans.
    Test(Test),
    /// Of a boolean, and of two elements of one type.
    Select,
    Cast,
    /// Of floats, to integers: beyond the type they wrap around, NaN is 0, and an infinity the largest or smallest.
    ToInteger,
}

impl Action {
    pub fn name(self) -> &'static CStr {
        match self {
            Action::Unary(function) => function.name(),
            Action::Binary(pair) => pair.name(),
            Action::Bits(bits) => bits.name(),
            Action::Not => c"bitwise_invert",
            Action::Division(division) => division.name(),
            Action::Compare(comparison) => comparison.name(),
            Action::Test(test) => test.name(),
            Action::Select => c"where",
            Action::Cast => c"astype",
            Action::ToInteger => c"to_integer",
        }
    }

    /// How many operands it has.
    pub fn arity(self) -> usize {
        match self {
            Action::Unary(_) | Action::Not | Action::Test(_) | Action::Cast | Action::ToInteger => {
                1
            }
            Action::Select => 3,
            _ => 2,
        }
    }

    /// The type of operand number `place` of an action on elements of type `from`.
    pub fn operand(self, place: usize, from: Type) -> Type {
        match (self, place) {
            (Action::Select, 0) => Type::Bool,
            _ => from,
        }
    }

    /// Whether there is a kernel from elements of one type to another.
    pub fn takes(self, from: Type, to: Type) -> bool {
        let is_narrow = from.is_float() && from != Type::F64;
        match self {
            Action::Unary(function) => {
                from == to && (is_narrow || numbers::has_function(function, from))
            }
            Action::Binary(pair) => from == to && (is_narrow || numbers::has_pair(pair, from)),
            Action::Bits(bits) => {
                let is_shift = matches!(bits, Bits::ShiftLeft | Bits::ShiftRight);
                from == to && (from.is_integer() || from == Type::Bool && !is_shift)
            }
            Action::Not => from == to && !from.is_float(),
            Action::Division(_) => from == to && from.is_integer(),
            Action::Compare(_) => to == Type::Bool,
            Action::Test(_) => from.is_float() && to == Type::Bool,
            Action::Select => from == to,
            Action::Cast => true,
            Action::ToInteger => from.is_float() && to.is_integer(),
        }
    }
}

/// Elements of an operand, or one that stands for all.
#[derive(Clone, Copy)]
pub struct Argument {
    pub at: *const u8,
    pub is_one: bool,
}

/// `count` elements of an action that [`Action::takes`] the types.
///
/// # Safety
/// `to` holds `count` elements of the type `into`, and each argument of the action's `count` of its own type, or one
/// where it is marked so. `to` may be an argument of the same size of element.
pub unsafe fn apply(
    level: Level,
    action: Action,
    from: Type,
    into: Type,
    arguments: [Argument; 3],
    to: *mut u8,
    count: usize,
) {
    let [a, b, c] = arguments;
    match action {
        Action::Unary(function) => match from {
            Type::F32 => unary::apply::<f32>(level, function, a.at.cast(), to.cast(), count),
            Type::F16 => unary::apply::<f16>(level, function, a.at.cast(), to.cast(), count),
            Type::Bf16 => unary::apply::<bf16>(level, function, a.at.cast(), to.cast(), count),
            _ => numbers::function(level, function, from, a, to, count),
        },
        Action::Binary(pair) => {
            macro_rules! narrow {
                ($T:ty) => {
                    binary::apply::<$T>(
                        level,
                        pair,
                        a.at.cast(),
                        a.is_one,
                        b.at.cast(),
                        b.is_one,
                        to.cast(),
                        count,
                    )
                };
            }
            match from {
                Type::F32 => narrow!(f32),
                Type::F16 => narrow!(f16),
                Type::Bf16 => narrow!(bf16),
                _ => numbers::pair(level, pair, from, a, b, to, count),
            }
        }
        Action::Bits(bits) => numbers::bits(level, bits, from, a, b, to, count),
        Action::Not => numbers::not(level, from, a, to, count),
        Action::Division(division) => numbers::divide(level, division, from, a, b, to, count),
        Action::Compare(comparison) => compare::compare(level, comparison, from, a, b, to, count),
        Action::Test(test) => compare::test(level, test, from, a, to, count),
        Action::Select => select::select(level, from.size(), a, b, c, to, count),
        Action::Cast => cast::cast(level, from, into, a, to, count),
        Action::ToInteger => whole::to_integer(level, from, into, a, to, count),
    }
}
