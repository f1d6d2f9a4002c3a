//! The arrays of one call, as [`Op::apply`](super::Op::apply) hands them to each operation.

use super::{check, one, Outputs};
use crate::base::{Reason, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;

/// The arrays of one call, asked for by position.
pub struct Inputs<'a>(pub &'a [Option<&'a Array>]);

impl<'a> Inputs<'a> {
    pub fn arity(&self, expected: usize) -> Result<()> {
        if self.0.len() == expected {
            return Ok(());
        }
        Err(Reason::Arity {
            expected: expected.to_string(),
            found: self.0.len(),
        }
        .into())
    }

    pub fn required(&self, position: usize) -> Result<&'a Array> {
        self.0[position].ok_or_else(|| {
            Reason::BadTerm {
                position,
                expected: "an array",
                found: "nil".into(),
            }
            .into()
        })
    }

    /// Exactly N arrays, none of them nil.
    pub fn exactly<const N: usize>(&self) -> Result<[&'a Array; N]> {
        self.arity(N)?;
        let mut arrays = [None; N];
        for (i, slot) in arrays.iter_mut().enumerate() {
            *slot = Some(self.required(i)?);
        }
        Ok(arrays.map(|array| array.expect("filled above")))
    }

    /// N arrays, then M that may be nil.
    pub fn with_optional<const N: usize, const M: usize>(
        &self,
    ) -> Result<([&'a Array; N], [Option<&'a Array>; M])> {
        self.arity(N + M)?;
        let mut optional = [None; M];
        optional.copy_from_slice(&self.0[N..]);
        Ok((Inputs(&self.0[..N]).exactly()?, optional))
    }

    /// N arrays, M that may be nil, and at least one array more.
    #[allow(clippy::type_complexity)]
    pub fn with_optional_and_more<const N: usize, const M: usize>(
        &self,
    ) -> Result<([&'a Array; N], [Option<&'a Array>; M], Vec<&'a Array>)> {
        if self.0.len() <= N + M {
            return Err(Reason::Arity {
                expected: format!("at least {}", N + M + 1),
                found: self.0.len(),
            }
            .into());
        }
        let (fixed, more) = self.0.split_at(N + M);
        let ([], more) = Inputs(more).and_more()?;
        let (arrays, optional) = Inputs(fixed).with_optional()?;
        Ok((arrays, optional, more))
    }

    /// N arrays, then at least one more.
    pub fn and_more<const N: usize>(&self) -> Result<([&'a Array; N], Vec<&'a Array>)> {
        if self.0.len() <= N {
            return Err(Reason::Arity {
                expected: format!("at least {}", N + 1),
                found: self.0.len(),
            }
            .into());
        }
        let more = (N..self.0.len())
            .map(|i| self.required(i))
            .collect::<Result<_>>()?;
        Ok((Inputs(&self.0[..N]).exactly()?, more))
    }

    /// The output of a function of one array.
    pub fn unary(
        &self,
        s: &Stream,
        f: impl FnOnce(&Array, &Stream) -> Result<Array>,
    ) -> Result<Outputs> {
        let [a] = self.exactly()?;
        f(a, s).map(one)
    }

    /// The output of a function of two arrays.
    pub fn binary(
        &self,
        s: &Stream,
        f: impl FnOnce(&Array, &Array, &Stream) -> Result<Array>,
    ) -> Result<Outputs> {
        let [a, b] = self.exactly()?;
        f(a, b, s).map(one)
    }

    /// The output of a function of three arrays.
    pub fn ternary(
        &self,
        s: &Stream,
        f: impl FnOnce(&Array, &Array, &Array, &Stream) -> Result<Array>,
    ) -> Result<Outputs> {
        let [a, b, c] = self.exactly()?;
        f(a, b, c, s).map(one)
    }

    /// The output of a function of one array over the axes asked for, or all of them.
    pub fn over(
        &self,
        axes: &Option<Vec<i32>>,
        f: impl FnOnce(&Array, &[i32]) -> Result<Array>,
    ) -> Result<Outputs> {
        let [a] = self.exactly()?;
        f(a, &check::axes_or_all(a, axes)?).map(one)
    }

    /// The output of a function of one array along an axis. MLX divides by the length of the axis, so an array without
    /// elements is returned as it is.
    pub fn along(
        &self,
        axis: i32,
        f: impl FnOnce(&Array, i32) -> Result<Array>,
    ) -> Result<Outputs> {
        let [a] = self.exactly()?;
        let axis = check::axis(a, axis)? as i32;
        match a.size() {
            0 => mlx::share(a).map(one),
            _ => f(a, axis).map(one),
        }
    }
}
