//! Random numbers from keys.
//! Called by [`Op::apply`] for operations of [`Class::Random`](super::Class::Random).

use super::table::{family, others};
use super::{check, one, Inputs, Op, Outputs};
use crate::base::{Error, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

family! { Random, takes(1):
    // Inputs: key.
    /// Inputs: none.
    RandomKey { seed: u64 } => takes(0),
    RandomSplit { num: i32 },
    RandomBits { shape: Vec<i32>, width: i32 },
    /// Inputs: low, high, key.
    RandomUniform { shape: Vec<i32>, dtype: Dtype } => takes(3),
    /// Inputs: key.
    RandomNormal { shape: Vec<i32>, dtype: Dtype, loc: f32, scale: f32 },
    /// Inputs: low, high, key.
    RandomRandint { shape: Vec<i32>, dtype: Dtype } => takes(3),
    /// Inputs: p, key.
    RandomBernoulli { shape: Vec<i32> } => takes(2),
    /// Inputs: low, high, key.
    RandomTruncatedNormal { shape: Vec<i32>, dtype: Dtype } => takes(3),
    /// Inputs: key.
    RandomGumbel { shape: Vec<i32>, dtype: Dtype },
    RandomLaplace { shape: Vec<i32>, dtype: Dtype, loc: f32, scale: f32 },
    /// Inputs: logits, key.
    RandomCategorical { axis: i32, shape: Vec<i32> } => takes(2),
    /// Inputs: a, key.
    RandomPermutation { axis: i32 } => takes(2),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, s: &Stream) -> Result<Outputs> {
    match op {
        Op::RandomKey { seed } => {
            inputs.arity(0)?;
            mlx::random_key(*seed).map(one)
        }
        Op::RandomSplit { num } => {
            let [key] = inputs.exactly()?;
            check::key(key)?;
            check::at_least("num", *num, 1)?;
            mlx::random_split(key, *num, s).map(one)
        }
        Op::RandomBits { shape, width } => {
            if ![1, 2, 4].contains(width) {
                return Err(Error::invalid(format!(
                    "width must be 1, 2 or 4, got {width}"
                )));
            }
            keyed(inputs, |key| {
                mlx::random_bits(check::shape(shape)?, *width, key, s)
            })
        }
        Op::RandomUniform { shape, dtype } => {
            let [low, high, key] = inputs.exactly()?;
            check::key(key)?;
            check::shape(shape)?;
            mlx::random_uniform(low, high, shape, *dtype, Some(key), s).map(one)
        }
        Op::RandomNormal {
            shape,
            dtype,
            loc,
            scale,
        } => keyed(inputs, |key| {
            mlx::random_normal(check::shape(shape)?, *dtype, *loc, *scale, key, s)
        }),
        Op::RandomRandint { shape, dtype } => {
            let [low, high, key] = inputs.exactly()?;
            check::key(key)?;
            check::shape(shape)?;
            mlx::random_randint(low, high, shape, *dtype, Some(key), s).map(one)
        }
        Op::RandomBernoulli { shape } => {
            let [p, key] = inputs.exactly()?;
            check::key(key)?;
            check::shape(shape)?;
            mlx::random_bernoulli(p, shape, Some(key), s).map(one)
        }
        Op::RandomTruncatedNormal { shape, dtype } => {
            let [low, high, key] = inputs.exactly()?;
            check::key(key)?;
            check::shape(shape)?;
            mlx::random_truncated_normal(low, high, shape, *dtype, Some(key), s).map(one)
        }
        Op::RandomGumbel { shape, dtype } => keyed(inputs, |key| {
            mlx::random_gumbel(check::shape(shape)?, *dtype, key, s)
        }),
        Op::RandomLaplace {
            shape,
            dtype,
            loc,
            scale,
        } => keyed(inputs, |key| {
            mlx::random_laplace(check::shape(shape)?, *dtype, *loc, *scale, key, s)
        }),
        Op::RandomCategorical { axis, shape } => {
            let [logits, key] = inputs.exactly()?;
            check::key(key)?;
            check::shape(shape)?;
            check::filled_axis(logits, *axis)?;
            mlx::random_categorical(logits, *axis, shape, Some(key), s).map(one)
        }
        Op::RandomPermutation { axis } => {
            let [a, key] = inputs.exactly()?;
            check::key(key)?;
            check::axis(a, *axis)?;
            // MLX divides by the length of the axis.
            if a.size() == 0 {
                return mlx::share(a).map(one);
            }
            mlx::random_permutation(a, *axis, Some(key), s).map(one)
        }
        others!(Random) => Err(super::no_case(op)),
    }
}

/// One array of the key alone.
fn keyed(inputs: &Inputs, f: impl FnOnce(Option<&Array>) -> Result<Array>) -> Result<Outputs> {
    let [key] = inputs.exactly()?;
    check::key(key)?;
    f(Some(key)).map(one)
}
