//! Choices between elements of several arrays, broadcast together.
//! Called by [`Op::apply`] for operations of [`Class::Select`](super::Class::Select).

use super::table::{family, others};
use super::{one, Inputs, Op, Outputs};
use crate::base::Result;
use crate::mlx::{self, Stream};

family! { Select, takes(3):
    /// Inputs: condition, a, b.
    Where,
    /// Inputs: a, low or nil, high or nil.
    Clip => takes(1).optional(2),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, s: &Stream) -> Result<Outputs> {
    match op {
        Op::Where => inputs.ternary(s, mlx::where_),
        Op::Clip => {
            let ([a], [low, high]) = inputs.with_optional()?;
            mlx::clip(a, low, high, s).map(one)
        }
        others!(Select) => Err(super::no_case(op)),
    }
}
