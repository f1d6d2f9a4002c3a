//! Factorizations and linear systems. LAPACK is kept from arguments on which it ends the process.
//! Called by [`Op::apply`] for operations of [`Class::LinearAlgebra`](super::Class::LinearAlgebra).

use super::creation::constant;
use super::table::{family, others};
use super::{check, double, one, shape, Inputs, Number, Op, Outputs};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Linear};
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;

family! { LinearAlgebra, takes(1):
    // On the last two axes, inputs: a.
    /// Where `semidefinite`, columns are 0 for pivots that are 0 up to rounding, and an indefinite matrix's factor is NaN.
    /// Otherwise such a pivot stays on the diagonal.
    Cholesky { upper: bool, semidefinite: Option<bool> },
    CholeskyInv { upper: bool },
    /// Outputs: q, r.
    Qr => outputs(2),
    /// Outputs: u, s, vt; only s without `compute_uv`.
    Svd { compute_uv: bool } => any_outputs(),
    /// Outputs: eigenvalues, eigenvectors.
    Eigh { upper: bool } => outputs(2),
    Eigvalsh { upper: bool },
    Eig => outputs(2).cpu_only(),
    Eigvals => cpu_only(),
    /// Outputs: row order, l, u.
    Lu => outputs(3),
    /// Outputs: packed lu, pivots.
    LuFactor => outputs(2),
    Inv,
    TriInv { upper: bool },
    Pinv,
    Det,
    /// Outputs: sign, logarithm of the absolute determinant.
    Slogdet => outputs(2),
    /// Inputs: a, b.
    Solve => takes(2),
    /// Inputs: a, b. The solution of a singular system is NaN, and no failure.
    SolveOrNan => takes(2),
    /// Inputs: a, of which one triangle is read, and b.
    SolveTriangular { upper: bool } => takes(2),
}

/// Builds an operation of the class.
pub fn apply(op: &Op, inputs: &Inputs, s: &Stream) -> Result<Outputs> {
    let matrix = || {
        let [a] = inputs.exactly()?;
        check::matrix(a).map(|()| a)
    };
    let square = || {
        let [a] = inputs.exactly()?;
        check::square(a).map(|()| a)
    };
    match op {
        Op::Cholesky {
            upper,
            semidefinite,
        } => cholesky(square()?, *upper, *semidefinite == Some(true), s).map(one),
        Op::CholeskyInv { upper } => mlx::cholesky_inv(square()?, *upper, s).map(one),
        Op::Qr => mlx::qr(matrix()?, s).map(Outputs::from_vec),
        Op::Svd { compute_uv } => svd(matrix()?, *compute_uv, s).map(Outputs::from_vec),
        Op::Eigh { upper } => eigh(square()?, *upper, s).map(Outputs::from_vec),
        Op::Eigvalsh { upper } => eigvalsh(square()?, *upper, s).map(Outputs::from_vec),
        Op::Eig => eig(square()?, s).map(Outputs::from_vec),
        Op::Eigvals => eigvals(square()?, s).map(Outputs::from_vec),
        Op::Lu => lu(matrix()?, s).map(Outputs::from_vec),
        Op::LuFactor => lu_factor(matrix()?, s).map(Outputs::from_vec),
        Op::Inv => inv(square()?, s).map(one),
        Op::TriInv { upper } => mlx::tri_inv(square()?, *upper, s).map(one),
        Op::Pinv => pinv(matrix()?, s).map(Outputs::from_vec),
        Op::Det => det(square()?, s).map(Outputs::from_vec),
        Op::Slogdet => slogdet(square()?, s).map(Outputs::from_vec),
        Op::Solve => {
            let [a, b] = inputs.exactly()?;
            check_system(a, b)?;
            solve(a, b, s).map(one)
        }
        Op::SolveOrNan => {
            let [a, b] = inputs.exactly()?;
            check_system(a, b)?;
            solve_or_nan(a, b, s).map(one)
        }
        Op::SolveTriangular { upper } => {
            let [a, b] = inputs.exactly()?;
            check_system(a, b)?;
            solve_triangular(a, b, *upper, s).map(one)
        }
        others!(LinearAlgebra) => Err(super::no_case(op)),
    }
}

/// MLX gives the conjugates of a complex matrix's eigenvectors.
pub fn eig(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| {
        let mut parts = mlx::eig(a, s)?;
        if mlx::dtype(a) == Dtype::C64 {
            parts[1] = mlx::conjugate(&parts[1], s)?;
        }
        Ok(parts)
    })
}

pub fn eigvals(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| Ok(vec![mlx::eigvals(a, s)?]))
}

pub fn svd(a: &Array, compute_uv: bool, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| mlx::svd(a, compute_uv, s))
}

pub fn pinv(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, a, s, |a| Ok(vec![mlx::pinv(a, s)?]))
}

pub fn eigh(a: &Array, upper: bool, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, &triangle(a, upper, s)?, s, |a| {
        mlx::eigh(a, uplo(upper), s)
    })
}

pub fn eigvalsh(a: &Array, upper: bool, s: &Stream) -> Result<Vec<Array>> {
    of_finite(a, &triangle(a, upper, s)?, s, |a| {
        Ok(vec![mlx::eigvalsh(a, uplo(upper), s)?])
    })
}

/// The part of a symmetric matrix that is read.
fn triangle(a: &Array, upper: bool, s: &Stream) -> Result<Array> {
    if upper {
        mlx::triu(a, 0, s)
    } else {
        mlx::tril(a, 0, s)
    }
}

fn uplo(upper: bool) -> &'static str {
    if upper {
        "U"
    } else {
        "L"
    }
}

/// Factors of the matrices that have no NaN and no infinity in `seen`, and NaN for the others. On those LAPACK ends
/// the process or never comes back, and with it the stream.
pub fn of_finite(
    a: &Array,
    seen: &Array,
    s: &Stream,
    factors: impl FnOnce(&Array) -> Result<Vec<Array>>,
) -> Result<Vec<Array>> {
    let ok = mlx::all(&mlx::isfinite(seen, s)?, &[-2, -1], true, s)?;
    let zero = mlx::zeros(&[], mlx::dtype(a), s)?;
    let finite = mlx::where_(&ok, a, &zero, s)?;
    let of_vectors = mlx::squeeze(&ok, &[-1], s)?;
    factors(&finite)?
        .iter()
        .map(|factor| {
            // Eigenvalues and singular values have an axis less.
            let ok = if factor.ndim() < a.ndim() {
                &of_vectors
            } else {
                &ok
            };
            let nan = constant(Number::Float(f64::NAN), mlx::dtype(factor))?;
            mlx::where_(ok, factor, &nan, s)
        })
        .collect()
}

/// Factors and what is made of them, for a single matrix as for a batch of one. MLX says of a single matrix's factors
/// that they have as many elements as bytes and lie without gaps: with one row or column it would write beyond the
/// memory of what it computes of them.
fn in_batch(
    a: &Array,
    s: &Stream,
    factors: impl FnOnce(&Array) -> Result<Vec<Array>>,
) -> Result<Vec<Array>> {
    if a.ndim() != 2 {
        return factors(a);
    }
    let parts = factors(&mlx::expand_dims(a, &[0], s)?)?;
    let single = parts.iter().map(|part| mlx::squeeze(part, &[0], s));
    single.collect()
}

pub fn lu(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    in_batch(a, s, |a| mlx::lu(a, s))
}

/// The factors are copied, for what else is computed of them (see [`in_batch`]).
pub fn lu_factor(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    let mut parts = mlx::lu_factor(a, s)?;
    if let Some(factors) = parts.first_mut() {
        *factors = mlx::contiguous(factors, false, s)?;
    }
    Ok(parts)
}

pub fn slogdet(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    if cpu::has_linear(Device::Cpu, a) {
        return cpu::log_determinant(a, s);
    }
    in_batch(a, s, |a| mlx::slogdet(a, s))
}

pub fn det(a: &Array, s: &Stream) -> Result<Vec<Array>> {
    if cpu::has_linear(Device::Cpu, a) {
        let shape = &a.shape()[..a.ndim() - 2];
        return Ok(vec![cpu::linear(Linear::Determinant, a, shape, s)?]);
    }
    in_batch(a, s, |a| Ok(vec![double::det(a, s)?]))
}

pub fn inv(a: &Array, s: &Stream) -> Result<Array> {
    match cpu::has_linear(Device::Cpu, a) {
        true => cpu::factors(Linear::Inverse, a, s),
        false => mlx::inv(a, s),
    }
}

pub fn cholesky(a: &Array, upper: bool, is_semidefinite: bool, s: &Stream) -> Result<Array> {
    if cpu::has_linear(Device::Cpu, a) {
        let linear = Linear::Cholesky {
            upper,
            is_semidefinite,
        };
        return cpu::factors(linear, a, s);
    }
    let factor = mlx::cholesky(a, upper, s)?;
    match is_semidefinite {
        true => semidefinite(a, &factor, upper, s),
        false => Ok(factor),
    }
}

/// Whether the factor of each matrix has a positive diagonal. LAPACK leaves the first pivot that is not positive there,
/// and MLX does not look.
fn is_sound(factor: &Array, s: &Stream) -> Result<Array> {
    let zero = mlx::zeros(&[], mlx::dtype(factor), s)?;
    let positive = mlx::greater(&mlx::diagonal(factor, 0, -2, -1, s)?, &zero, s)?;
    mlx::expand_dims(&mlx::all(&positive, &[-1], false, s)?, &[-2, -1], s)
}

/// The factor of each matrix for which LAPACK stopped. The diagonal is enlarged by the possible rounding error. A pivot
/// that should be 0 is then about as small as this error, and its column (or row) is noise.
fn semidefinite(a: &Array, factor: &Array, upper: bool, s: &Stream) -> Result<Array> {
    let dtype = mlx::dtype(a);
    let n = a.shape()[a.ndim() - 1];
    let epsilon = match dtype {
        Dtype::F64 => f64::EPSILON,
        _ => f64::from(f32::EPSILON),
    };
    let noise = f64::from(n) * epsilon;
    let number = |x: f64| constant(Number::Float(x), dtype);
    let (zero, nan) = (number(0.0)?, number(f64::NAN)?);
    let diagonal = mlx::diagonal(a, 0, -2, -1, s)?;
    let largest = mlx::maximum(&mlx::max(&diagonal, &[-1], true, s)?, &zero, s)?;
    // The row and column of a diagonal element that is 0 are 0 in a semidefinite matrix.
    let least = mlx::multiply(&largest, &number(noise * noise)?, s)?;
    let least = mlx::where_(&mlx::equal(&largest, &zero, s)?, &number(1.0)?, &least, s)?;
    let is_absent = mlx::equal(&diagonal, &zero, s)?;
    let enlarged = mlx::multiply(&diagonal, &number(1.0 + noise)?, s)?;
    let enlarged = mlx::where_(&is_absent, &least, &enlarged, s)?;
    let eye = mlx::eye(n, n, 0, Dtype::Bool, s)?;
    let enlarged = mlx::where_(&eye, &mlx::expand_dims(&enlarged, &[-1], s)?, a, s)?;
    let second = mlx::cholesky(&enlarged, upper, s)?;
    let pivots = mlx::square(&mlx::diagonal(&second, 0, -2, -1, s)?, s)?;
    let limit = mlx::multiply(&diagonal, &number(8.0 * noise)?, s)?;
    let is_zero = mlx::logical_or(&is_absent, &mlx::less_equal(&pivots, &limit, s)?, s)?;
    let is_zero = mlx::expand_dims(&is_zero, &[if upper { -1 } else { -2 }], s)?;
    let columns = mlx::where_(&is_zero, &zero, &second, s)?;
    let triangle = triangle(&mlx::ones(&[n, n], Dtype::Bool, s)?, upper, s)?;
    let is_kept = mlx::logical_or(&is_sound(&second, s)?, &mlx::logical_not(&triangle, s)?, s)?;
    let columns = mlx::where_(&is_kept, &columns, &nan, s)?;
    mlx::where_(&is_sound(factor, s)?, factor, &columns, s)
}

/// Rows up to which triangular systems of f32 are solved in f64, whose time is that of their nodes: all digits are
/// right then.
const WIDE: i32 = 32;

/// A system that a kernel here solves, else None: of one type, and of shapes that broadcast.
fn system(linear: Linear, a: &Array, b: &Array, s: &Stream) -> Result<Option<Array>> {
    let is_vector = b.ndim() + 1 == a.ndim();
    let has_kernel = cpu::has_linear(Device::Cpu, a) && b.size() > 0;
    if !has_kernel || mlx::dtype(a) != mlx::dtype(b) || (!is_vector && b.ndim() < 2) {
        return Ok(None);
    }
    let b = match is_vector {
        true => mlx::expand_dims(b, &[-1], s)?,
        false => mlx::share(b)?,
    };
    let batches = [a, &b].map(|array| &array.shape()[..array.ndim() - 2]);
    let Some(mut shape) = cpu::broadcast(batches.into_iter()) else {
        return Ok(None);
    };
    shape.extend_from_slice(&b.shape()[b.ndim() - 2..]);
    let elements = shape.iter().map(|size| *size as u128).product::<u128>();
    mlx::check_bytes(elements * mlx::dtype(a).size() as u128)?;
    let is_triangular = matches!(linear, Linear::Triangular { .. });
    let is_small = a.shape()[a.ndim() - 1] <= WIDE && mlx::dtype(a) == Dtype::F32;
    let x = match is_triangular && is_small {
        true => {
            let wide = |array: &Array| mlx::astype(array, Dtype::F64, s);
            let x = cpu::solve(linear, &wide(a)?, &wide(&b)?, &shape, s)?;
            mlx::astype(&x, Dtype::F32, s)?
        }
        false => cpu::solve(linear, a, &b, &shape, s)?,
    };
    match is_vector {
        true => mlx::squeeze(&x, &[-1], s).map(Some),
        false => Ok(Some(x)),
    }
}

pub fn solve(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let linear = Linear::Solve {
        nan_if_singular: false,
    };
    if let Some(x) = system(linear, a, b, s)? {
        return Ok(x);
    }
    if a.ndim() != 2 || b.ndim() > 2 {
        return mlx::solve(a, b, s);
    }
    let axes: &[i32] = if b.ndim() == 1 { &[0, -1] } else { &[0] };
    let (a, b) = (mlx::expand_dims(a, &[0], s)?, mlx::expand_dims(b, axes, s)?);
    mlx::squeeze(&mlx::solve(&a, &b, s)?, axes, s)
}

pub fn solve_or_nan(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let linear = Linear::Solve {
        nan_if_singular: true,
    };
    match system(linear, a, b, s)? {
        Some(x) => Ok(x),
        None => solve_without_singular(a, b, s),
    }
}

/// The solution for the identity in place of each singular matrix, and then NaN.
fn solve_without_singular(a: &Array, b: &Array, s: &Stream) -> Result<Array> {
    let parts = lu_factor(a, s)?;
    let zero = mlx::zeros(&[], mlx::dtype(a), s)?;
    let pivots = mlx::diagonal(&parts[0], 0, -2, -1, s)?;
    let is_singular = mlx::any(&mlx::equal(&pivots, &zero, s)?, &[-1], false, s)?;
    let of_matrix = mlx::expand_dims(&is_singular, &[-2, -1], s)?;
    let n = a.shape()[a.ndim() - 1];
    let eye = mlx::eye(n, n, 0, mlx::dtype(a), s)?;
    let x = solve(&mlx::where_(&of_matrix, &eye, a, s)?, b, s)?;
    let of_solution = match b.ndim() + 1 == a.ndim() {
        true => mlx::expand_dims(&is_singular, &[-1], s)?,
        false => of_matrix,
    };
    let nan = constant(Number::Float(f64::NAN), mlx::dtype(&x))?;
    mlx::where_(&of_solution, &nan, &x, s)
}

/// a·x = b: a is {…, n, n}, b {…, n} or {…, n, m}.
pub fn check_system(a: &Array, b: &Array) -> Result<()> {
    check::square(a)?;
    let n = a.shape()[a.ndim() - 1];
    let rows = match (a.ndim(), b.ndim()) {
        (_, 0) => None,
        (rank, other) if rank == other + 1 => b.shape().last(),
        (_, rank) if rank >= 2 => b.shape().get(rank - 2),
        _ => b.shape().last(),
    };
    if rows != Some(&n) {
        return Err(Error::invalid(format!(
            "a is {:?}, b is {:?}: b must have {n} rows",
            a.shape(),
            b.shape()
        )));
    }
    Ok(())
}

/// x with a·x = b for a triangular matrix, of which the other triangle is not read. Without a kernel in f64: MLX
/// multiplies by the inverse, which in f32 loses digits that substitution keeps. Complex numbers a + bi, which MLX does
/// not solve for, as the real matrix [[a, -b], [b, a]].
pub fn solve_triangular(a: &Array, b: &Array, upper: bool, s: &Stream) -> Result<Array> {
    if let Some(x) = system(Linear::Triangular { upper }, a, b, s)? {
        return Ok(x);
    }
    let a = &triangle(a, upper, s)?;
    let dtypes = (mlx::dtype(a), mlx::dtype(b));
    let wide = |array: &Array| mlx::astype(array, Dtype::F64, s);
    if dtypes.0 != Dtype::C64 && dtypes.1 != Dtype::C64 {
        let x = mlx::solve_triangular(&wide(a)?, &wide(b)?, upper, s)?;
        let either = |dtype| dtypes.0 == dtype || dtypes.1 == dtype;
        let dtype = if either(Dtype::F64) {
            Dtype::F64
        } else if dtypes.0 == dtypes.1 && dtypes.0.is_half() {
            dtypes.0
        } else {
            Dtype::F32
        };
        return mlx::astype(&x, dtype, s);
    }
    let parts = |array: &Array| -> Result<(Array, Array)> {
        let complex = mlx::astype(array, Dtype::C64, s)?;
        Ok((
            wide(&mlx::real(&complex, s)?)?,
            wide(&mlx::imag(&complex, s)?)?,
        ))
    };
    let join = |arrays: [&Array; 2], axis| mlx::concatenate(&Vector::new(arrays), axis, s);
    let (re, im) = parts(a)?;
    let top = join([&re, &mlx::negative(&im, s)?], -1)?;
    let bottom = join([&im, &re], -1)?;
    let (right_re, right_im) = parts(b)?;
    let is_vector = b.ndim() + 1 == a.ndim();
    let axis = if is_vector { -1 } else { -2 };
    let right = join([&right_re, &right_im], axis)?;
    let x = solve(&join([&top, &bottom], -2)?, &right, s)?;
    let n = a.shape()[a.ndim() - 1];
    let halves = shape::split(&x, &[n], axis, s)?;
    let single = |array: &Array| mlx::astype(array, Dtype::F32, s);
    let i = mlx::from_bytes(
        &[0.0f32, 1.0].map(f32::to_ne_bytes).concat(),
        &[],
        Dtype::C64,
    )?;
    mlx::add(
        &single(&halves[0])?,
        &mlx::multiply(&single(&halves[1])?, &i, s)?,
        s,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(numbers: &[f32], shape: &[i32]) -> Array {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
        mlx::from_bytes(&bytes, shape, Dtype::F32).expect("an array")
    }

    fn numbers(a: &Array, s: &Stream) -> Vec<f32> {
        let rows = mlx::contiguous(a, false, s).expect("a copy");
        mlx::async_eval(&[&rows], &mlx::graph_lock()).expect("submitted");
        s.synchronize().expect("computed");
        // SAFETY: computed.
        let bytes = unsafe { mlx::bytes(&rows) }.expect("in rows").to_vec();
        let number = |bytes: &[u8]| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        bytes.chunks_exact(4).map(number).collect()
    }

    fn same(ours: &[f32], mlx: &[f32]) {
        assert_eq!(ours.len(), mlx.len());
        for (a, b) in ours.iter().zip(mlx) {
            let is_near = (a - b).abs() < 1e-5 || (a.is_nan() && b.is_nan());
            assert!(is_near, "{ours:?}, {mlx:?}");
        }
    }

    #[test]
    fn what_mlx_composes_is_what_kernels_compute() {
        mlx::init();
        let s = Device::Cpu.stream().expect("the CPU is there");
        let a = array(
            &[
                4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 2.0, 1.0, 3.0, //
                4.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 0.0, 1.0, //
                1.0, 2.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0, //
                4.0, 2.0, 1.0, 2.0, 5.0, 3.0, 1.0, 3.0, 6.0,
            ],
            &[4, 3, 3],
        );
        for upper in [false, true] {
            let factor = mlx::cholesky(&a, upper, s).expect("factors");
            let composed = semidefinite(&a, &factor, upper, s).expect("factors");
            let ours = cholesky(&a, upper, true, s).expect("factors");
            same(&numbers(&ours, s), &numbers(&composed, s));
        }
        for b in [array(&[1.0; 12], &[4, 3]), array(&[2.0; 24], &[4, 3, 2])] {
            let composed = solve_without_singular(&a, &b, s).expect("solutions");
            let ours = solve_or_nan(&a, &b, s).expect("solutions");
            same(&numbers(&ours, s), &numbers(&composed, s));
        }
        let lower = array(&[2.0, 9.0, 1.0, 4.0], &[2, 2]);
        let b = array(&[2.0, 5.0], &[2, 1]);
        let wide = |a: &Array| mlx::astype(a, Dtype::F64, s).expect("a cast");
        let x = solve_triangular(&lower, &b, false, s).expect("a solution");
        assert_eq!(numbers(&x, s), [1.0, 1.0]);
        // Of two types there is no kernel.
        let x = solve_triangular(&wide(&lower), &b, false, s).expect("a solution");
        let x = mlx::astype(&x, Dtype::F32, s).expect("a cast");
        same(&numbers(&x, s), &[1.0, 1.0]);
    }
}
