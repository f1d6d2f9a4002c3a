//! Linear algebra on CUDA by cuSOLVER and cuBLAS. `calls.rs` has the libraries' calls; here an operation is composed of
//! them and of MLX's operations around them. Called by [`Op::apply`](crate::op::Op::apply), which has the CPU compute
//! what is not taken here.

mod calls;
#[cfg(test)]
mod tests;

use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::cuda::cusolver::Libraries;
use crate::mlx::cuda::solver;
use crate::mlx::{self, CudaKernel, Launch, Stream};
use crate::op::creation::{float, int};
use crate::op::shape::broadcast_shape as broadcast;
use crate::op::{check, gpu, linalg, one, Crossed, Inputs, Op, Outputs};
use calls::{Call, Routine, Triangular};
use mlx_rs::Array;
use smallvec::SmallVec;
use std::ffi::CStr;

/// Why the libraries are not there; None where they are.
pub fn unavailable() -> Option<&'static str> {
    libraries().err()
}

fn libraries() -> std::result::Result<&'static Libraries, &'static str> {
    match cpu::are_there() {
        true => Libraries::of_cuda(),
        false => Err("EMLX_KERNELS is mlx"),
    }
}

/// Most matrices of a batch: the kernel of rows' order has a block for each.
const MAX_BATCH: usize = 1 << 23;

/// The outputs, by the libraries; None where the CPU has to compute them.
pub fn apply(
    op: &Op,
    inputs: &Inputs,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Option<Outputs>> {
    let Ok(libraries) = libraries() else {
        return Ok(None);
    };
    if !takes(op, inputs) {
        return Ok(None);
    }
    let name = op.name();
    let (outputs, fault) = On { libraries, s, name }.apply(op, inputs)?;
    if let Some(fault) = fault {
        crossed.add(&[fault.on_the_cpu(s)?])?;
    }
    Ok(Some(outputs))
}

/// Whether the libraries have the operation for such arrays. What is wrong with arguments is the CPU's to say.
fn takes(op: &Op, inputs: &Inputs) -> bool {
    let arrays: SmallVec<[&Array; 2]> = inputs.0.iter().copied().flatten().collect();
    let batch = |array: &Array| -> usize {
        let sizes = array.shape().iter().rev().skip(2);
        sizes.map(|size| *size as usize).product()
    };
    if arrays.iter().any(|a| a.size() == 0 || batch(a) > MAX_BATCH) {
        return false;
    }
    let dtype = |array: &Array| mlx::dtype(array);
    let is_single = |array: &Array| dtype(array) == Dtype::F32;
    let is_square = |array: &Array| check::square(array).is_ok();
    match (op, arrays.as_slice()) {
        (Op::Eig | Op::Eigvals, _) => false,
        (Op::Solve, [a, b]) => {
            // As MLX's, which takes rows of b along its axes.
            let ranks = a.ndim() == b.ndim() || (a.ndim() == 2 && b.ndim() == 1);
            ranks && is_single(a) && is_single(b) && fits(a, b)
        }
        (Op::SolveOrNan, [a, b]) => {
            let ranks = a.ndim() == b.ndim() || a.ndim() == b.ndim() + 1;
            ranks && is_single(a) && is_single(b) && linalg::check_system(a, b).is_ok()
        }
        (Op::SolveTriangular { .. }, [a, b]) => {
            let has_complex = [a, b].iter().any(|array| dtype(array) == Dtype::C64);
            let has_vectors = b.ndim() > 1 && b.ndim() + 1 == a.ndim();
            let is_wide = [a, b].iter().any(|array| dtype(array) == Dtype::F64);
            let is_left = is_wide || has_complex && has_vectors;
            !is_left && fits(a, b)
        }
        (Op::Det | Op::Slogdet, [a]) => {
            is_square(a) && (is_single(a) || !dtype(a).is_float() && dtype(a) != Dtype::C64)
        }
        (Op::Svd { .. }, [a]) => {
            check::matrix(a).is_ok() && (is_single(a) || dtype(a) == Dtype::C64)
        }
        (Op::Eigh { .. } | Op::Eigvalsh { .. }, [a]) => {
            is_square(a) && (is_single(a) || dtype(a) == Dtype::C64)
        }
        (Op::Qr | Op::Lu | Op::LuFactor | Op::Pinv, [a]) => {
            check::matrix(a).is_ok() && is_single(a)
        }
        (_, [a]) => is_square(a) && is_single(a),
        _ => false,
    }
}

/// Whether a·x = b for a vector, or for matrices whose batches broadcast.
fn fits(a: &Array, b: &Array) -> bool {
    if linalg::check_system(a, b).is_err() {
        return false;
    }
    let n = a.shape()[a.ndim() - 1];
    let rows = match b.shape() {
        [rows] => *rows,
        [.., rows, _] => *rows,
        [] => return false,
    };
    rows == n && (b.ndim() == 1 || broadcast(batch_of(a), batch_of(b)).is_some())
}

/// The axes before the matrices.
fn batch_of(a: &Array) -> &[i32] {
    &a.shape()[..a.ndim() - 2]
}

/// For each place of a shape the number of the element that is broadcast to it.
fn numbers(from: &[i32], to: &[i32]) -> Vec<u32> {
    let mut numbers = vec![0u32];
    let mut step = 1u32;
    // From the innermost axis outwards.
    for axis in (0..to.len()).rev() {
        let own = (axis + from.len())
            .checked_sub(to.len())
            .map_or(1, |own| from[own]);
        let step_here = if own == 1 { 0 } else { step };
        let outer = 0..to[axis] as u32;
        numbers = outer
            .flat_map(|i| numbers.iter().map(move |inner| i * step_here + inner))
            .collect();
        step *= own as u32;
    }
    numbers
}

/// What makes the CPU's operation fail when it is computed: {1, 1}, 0 where a matrix has no inverse, else 1.
struct Fault {
    sound: Array,
    is_triangular: bool,
}

impl Fault {
    /// The CPU's operation on one number, which fails as that on the matrices would, and in the same words.
    fn on_the_cpu(&self, s: &Stream) -> Result<Array> {
        let copies = gpu::copies_for_cpu(&Inputs(&[Some(&self.sound)]), s)?;
        let cpu = Device::Cpu.stream()?;
        let copy = copies.into_iter().flatten().next();
        let copy = copy.ok_or_else(|| Error::invalid("there is no copy"))?;
        match self.is_triangular {
            true => mlx::tri_inv(&copy, false, cpu),
            false => mlx::inv(&copy, cpu),
        }
    }
}

/// Outputs, and what may turn out to be wrong with them.
type Made = (Outputs, Option<Fault>);

/// Operations on a stream, by libraries.
struct On<'a> {
    libraries: &'static Libraries,
    s: &'a Stream,
    name: &'static str,
}

const ORDER: CudaKernel = CudaKernel {
    name: c"emlx_order_of_rows",
    inputs: &[c"pivots"],
    outputs: &[c"out"],
    in_rows: true,
    source: text!("", "order.cu"),
};

/// Rows whose order fits a block's shared memory.
const MAX_SHARED: i32 = 8192;

impl On<'_> {
    fn apply(&self, op: &Op, inputs: &Inputs) -> Result<Made> {
        let sound = |outputs: Vec<Array>| (Outputs::from_vec(outputs), None);
        if let Op::Solve = op {
            let [a, b] = inputs.exactly()?;
            let (x, infos) = self.solve(a, b)?;
            let is_wrong = mlx::not_equal(&infos, &int(0, Dtype::S32)?, self.s)?;
            return Ok((one(x), self.fault(&is_wrong, true)?));
        }
        if let Op::SolveOrNan = op {
            let [a, b] = inputs.exactly()?;
            return self.solve_or_nan(a, b).map(|x| (one(x), None));
        }
        if let Op::SolveTriangular { upper } = op {
            let [a, b] = inputs.exactly()?;
            return self.solve_triangular(a, b, *upper);
        }
        let [a] = inputs.exactly()?;
        match op {
            Op::Cholesky {
                upper,
                semidefinite,
            } => match semidefinite {
                Some(true) => Ok((one(self.semidefinite(a, *upper)?), None)),
                _ => Ok((one(self.cholesky(a, *upper)?), None)),
            },
            Op::CholeskyInv { upper } => self.cholesky_inv(a, *upper),
            Op::TriInv { upper } => self.tri_inv(a, *upper),
            Op::Qr => self.qr(a).map(sound),
            Op::Svd { compute_uv } => self.svd(a, *compute_uv).map(sound),
            Op::Eigh { upper } => self.eigh(a, *upper, true).map(sound),
            Op::Eigvalsh { upper } => {
                let mut parts = self.eigh(a, *upper, false)?;
                parts.truncate(1);
                Ok(sound(parts))
            }
            Op::Lu => self.lu(a).map(sound),
            Op::LuFactor => {
                let lu = self.factors(a)?;
                let from_zero = mlx::subtract(&lu.pivots, &int(1, Dtype::S32)?, self.s)?;
                let pivots = mlx::view(&from_zero, Dtype::U32, self.s)?;
                Ok(sound(vec![lu.packed, pivots]))
            }
            Op::Inv => self.inv(a),
            Op::Pinv => Ok((one(self.pinv(a)?), None)),
            Op::Slogdet => self.slogdet(a).map(sound),
            Op::Det => {
                let lu = self.factors(&mlx::astype(a, Dtype::F32, self.s)?)?;
                Ok((one(self.det(&lu)?), None))
            }
            _ => Err(Error::invalid(format!("{} has no routine", op.name()))),
        }
    }

    /// Arrays of a routine over the matrices of a batch.
    fn call(&self, routine: Routine, inputs: &[&Array], batch: &[i32]) -> Result<Vec<Array>> {
        let rows = inputs
            .iter()
            .map(|array| mlx::contiguous(array, false, self.s));
        let rows = rows.collect::<Result<SmallVec<[Array; 2]>>>()?;
        let own = mlx::dtype(&rows[0]);
        let outputs: SmallVec<[(SmallVec<[i32; 4]>, Dtype); 5]> = routine
            .outputs(own)
            .into_iter()
            .map(|(shape, dtype)| ([batch, &shape[..]].concat().into(), dtype))
            .collect();
        let (count, taken) = routine.inputs();
        assert_eq!(count, rows.len());
        let call = Call {
            name: self.name,
            routine,
            is_complex: own == Dtype::C64,
            batch: batch.iter().map(|size| *size as usize).product(),
            libraries: self.libraries,
        };
        let rows: SmallVec<[&Array; 2]> = rows.iter().collect();
        solver::nodes(Box::new(call), &rows, taken, &outputs, self.s)
    }

    fn turned(&self, a: &Array) -> Result<Array> {
        gpu::swapaxes(a, -2, -1, Device::Gpu, self.s)
    }

    /// The first rows and columns.
    fn corner(&self, a: &Array, rows: i32, columns: i32) -> Result<Array> {
        let rank = a.ndim();
        let stop = [batch_of(a), &[rows, columns]].concat();
        if stop == a.shape() {
            return mlx::share(a);
        }
        mlx::slice(a, &vec![0; rank], &stop, &vec![1; rank], self.s)
    }

    fn triangle(&self, a: &Array, upper: bool) -> Result<Array> {
        match upper {
            true => mlx::triu(a, 0, self.s),
            false => mlx::tril(a, 0, self.s),
        }
    }

    /// Numbers of the matrices whose info is 0, and NaN for the others'.
    fn where_done(&self, numbers: &Array, infos: &Array) -> Result<Array> {
        let done = mlx::equal(infos, &int(0, Dtype::S32)?, self.s)?;
        let axes: &[i32] = match numbers.ndim() - infos.ndim() {
            1 => &[-1],
            _ => &[-2, -1],
        };
        let done = mlx::expand_dims(&done, axes, self.s)?;
        let nan = float(f64::NAN, mlx::dtype(numbers))?;
        mlx::where_(&done, numbers, &nan, self.s)
    }

    /// Fails later where one of these is true.
    fn fault(&self, is_wrong: &Array, is_triangular: bool) -> Result<Option<Fault>> {
        let axes: Vec<i32> = (0..is_wrong.ndim() as i32).collect();
        let any = match axes.is_empty() {
            true => mlx::share(is_wrong)?,
            false => mlx::any(is_wrong, &axes, false, self.s)?,
        };
        let sound = mlx::astype(&mlx::logical_not(&any, self.s)?, Dtype::F32, self.s)?;
        let sound = mlx::reshape(&sound, &[1, 1], self.s)?;
        Ok(Some(Fault {
            sound,
            is_triangular,
        }))
    }

    /// Where the diagonal of a triangular matrix has a 0, it has no inverse.
    fn fault_of_diagonal(&self, a: &Array) -> Result<Option<Fault>> {
        let diagonal = mlx::diagonal(a, 0, -2, -1, self.s)?;
        let is_zero = mlx::equal(&diagonal, &int(0, mlx::dtype(a))?, self.s)?;
        self.fault(&is_zero, true)
    }

    fn cholesky(&self, a: &Array, upper: bool) -> Result<Array> {
        let n = a.shape()[a.ndim() - 1];
        let parts = self.call(Routine::Potrf { n, upper }, &[a], batch_of(a))?;
        self.triangle(&self.where_done(&parts[0], &parts[1])?, upper)
    }

    /// Where a pivot is not positive, the factor of a matrix whose diagonal is enlarged by the possible rounding error.
    /// A pivot that should be 0 is then about as small as this error, and its column is noise.
    fn semidefinite(&self, a: &Array, upper: bool) -> Result<Array> {
        let s = self.s;
        let number = |value| float(value, Dtype::F32);
        let n = a.shape()[a.ndim() - 1];
        let noise = f64::from(n) * f64::from(f32::EPSILON);
        let diagonal = mlx::diagonal(a, 0, -2, -1, s)?;
        let zero = number(0.0)?;
        let largest = mlx::maximum(&mlx::max(&diagonal, &[-1], true, s)?, &zero, s)?;
        // The row and column of a diagonal element that is 0 are 0 in a semidefinite matrix.
        let floor = mlx::multiply(&largest, &number(noise * noise)?, s)?;
        let floor = mlx::where_(&mlx::equal(&largest, &zero, s)?, &number(1.0)?, &floor, s)?;
        let absent = mlx::equal(&diagonal, &zero, s)?;
        let enlarged = mlx::multiply(&diagonal, &number(1.0 + noise)?, s)?;
        let enlarged = mlx::where_(&absent, &floor, &enlarged, s)?;
        let eye = gpu::eye(n, n, 0, Dtype::Bool, Device::Gpu, s)?;
        let given = mlx::where_(&eye, &mlx::expand_dims(&enlarged, &[-1], s)?, a, s)?;
        let factor = self.cholesky(&given, upper)?;
        let pivots = mlx::square(&mlx::diagonal(&factor, 0, -2, -1, s)?, s)?;
        let small = mlx::multiply(&diagonal, &number(8.0 * noise)?, s)?;
        let is_zero = mlx::logical_or(&absent, &mlx::less_equal(&pivots, &small, s)?, s)?;
        // Columns of the lower factor, and rows of the upper one.
        let axis = if upper { -1 } else { -2 };
        let is_zero = mlx::expand_dims(&is_zero, &[axis], s)?;
        let rest = mlx::where_(&is_zero, &zero, &factor, s)?;
        // An indefinite matrix's factor is NaN.
        let rest = mlx::where_(&self.is_sound(&factor)?, &rest, &factor, s)?;
        let alone = self.cholesky(a, upper)?;
        mlx::where_(&self.is_sound(&alone)?, &alone, &rest, s)
    }

    /// Whether all pivots of a factor are positive.
    fn is_sound(&self, factor: &Array) -> Result<Array> {
        let pivots = mlx::diagonal(factor, 0, -2, -1, self.s)?;
        let is_positive = mlx::greater(&pivots, &float(0.0, Dtype::F32)?, self.s)?;
        let all = mlx::all(&is_positive, &[-1], false, self.s)?;
        mlx::expand_dims(&all, &[-2, -1], self.s)
    }

    /// The identity for each matrix.
    fn identities(&self, a: &Array) -> Result<Array> {
        let n = a.shape()[a.ndim() - 1];
        let eye = gpu::eye(n, n, 0, mlx::dtype(a), Device::Gpu, self.s)?;
        mlx::broadcast_to(&eye, a.shape(), self.s)
    }

    fn tri_inv(&self, a: &Array, upper: bool) -> Result<Made> {
        let x = self.triangular(a, &self.identities(a)?, upper, false, false)?;
        let x = self.triangle(&x, upper)?;
        Ok((one(x), self.fault_of_diagonal(a)?))
    }

    fn cholesky_inv(&self, a: &Array, upper: bool) -> Result<Made> {
        let (inverse, fault) = self.tri_inv(a, upper)?;
        let inverse = &inverse[0];
        let turned = self.turned(inverse)?;
        let product = match upper {
            true => mlx::matmul(inverse, &turned, self.s)?,
            false => mlx::matmul(&turned, inverse, self.s)?,
        };
        Ok((one(product), fault))
    }

    /// (a⁻¹)ᵀ = (aᵀ)⁻¹: nothing is transposed.
    fn inv(&self, a: &Array) -> Result<Made> {
        let n = a.shape()[a.ndim() - 1];
        let inputs = [a, &self.identities(a)?];
        let mut parts = self.call(Routine::Inverse { n }, &inputs, batch_of(a))?;
        let is_wrong = mlx::not_equal(&parts[2], &int(0, Dtype::S32)?, self.s)?;
        let fault = self.fault(&is_wrong, false)?;
        Ok((one(parts.swap_remove(1)), fault))
    }

    fn qr(&self, a: &Array) -> Result<Vec<Array>> {
        let (m, n) = matrix_size(a);
        let parts = self.call(Routine::Geqrf { m, n }, &[&self.turned(a)?], batch_of(a))?;
        let r = self.corner(&self.turned(&parts[0])?, m.min(n), n)?;
        Ok(vec![self.turned(&parts[1])?, self.triangle(&r, true)?])
    }

    /// Of aᵀ, which the library sees: aᵀ = u·s·vᴴ, and a = v̄·s·uᵀ.
    fn svd(&self, a: &Array, compute_uv: bool) -> Result<Vec<Array>> {
        let (n, m) = matrix_size(a);
        let vectors = compute_uv;
        linalg::of_finite(a, a, self.s, |a| {
            let parts = self.call(Routine::Svd { m, n, vectors }, &[a], batch_of(a))?;
            let infos = &parts[parts.len() - 1];
            let values = self.where_done(&parts[1], infos)?;
            if !vectors {
                return Ok(vec![values]);
            }
            let vt = self.where_done(&parts[2], infos)?;
            let u = self.where_done(&parts[3], infos)?;
            let u = self.conjugate(&self.turned(&u)?)?;
            Ok(vec![u, values, vt])
        })
    }

    fn conjugate(&self, a: &Array) -> Result<Array> {
        match mlx::dtype(a) {
            Dtype::C64 => mlx::conjugate(a, self.s),
            _ => mlx::share(a),
        }
    }

    /// Of aᵀ, which the library sees: for a Hermitian matrix that is ā, whose vectors are the conjugates. Eigenvalues,
    /// then vectors.
    fn eigh(&self, a: &Array, upper: bool, vectors: bool) -> Result<Vec<Array>> {
        let n = a.shape()[a.ndim() - 1];
        let seen = self.triangle(a, upper)?;
        linalg::of_finite(a, &seen, self.s, |a| {
            let routine = Routine::Eigh { n, upper, vectors };
            let parts = self.call(routine, &[a], batch_of(a))?;
            let values = self.where_done(&parts[1], &parts[2])?;
            if !vectors {
                return Ok(vec![values]);
            }
            let of = self.where_done(&parts[0], &parts[2])?;
            Ok(vec![values, self.conjugate(&self.turned(&of)?)?])
        })
    }

    fn pinv(&self, a: &Array) -> Result<Array> {
        let (m, n) = matrix_size(a);
        let k = m.min(n);
        let parts = self.svd(a, true)?;
        let (u, v) = (
            self.turned(&self.corner(&parts[0], m, k)?)?,
            self.turned(&self.corner(&parts[2], k, n)?)?,
        );
        let values = mlx::expand_dims(&parts[1], &[-2], self.s)?;
        let relative = 10.0 * f64::from(m.max(n)) * f64::from(f32::EPSILON);
        let largest = mlx::max(&values, &[-1], true, self.s)?;
        let least = mlx::multiply(&largest, &float(relative, Dtype::F32)?, self.s)?;
        let is_zero = mlx::less_equal(&values, &least, self.s)?;
        let inverse = mlx::reciprocal(&values, self.s)?;
        let inverse = mlx::where_(&is_zero, &float(0.0, Dtype::F32)?, &inverse, self.s)?;
        mlx::matmul(&mlx::multiply(&v, &inverse, self.s)?, &u, self.s)
    }

    fn factors(&self, a: &Array) -> Result<Factors> {
        let (m, n) = matrix_size(a);
        let parts = self.call(Routine::Getrf { m, n }, &[&self.turned(a)?], batch_of(a))?;
        let [in_columns, pivots, infos] = exactly(parts)?;
        Ok(Factors {
            packed: self.turned(&in_columns)?,
            in_columns,
            pivots,
            infos,
        })
    }

    fn lu(&self, a: &Array) -> Result<Vec<Array>> {
        let (m, n) = matrix_size(a);
        let k = m.min(n);
        let lu = self.factors(a)?;
        let order = self.order(&lu.pivots, m, true)?;
        let l = self.corner(&mlx::tril(&lu.packed, -1, self.s)?, m, k)?;
        let l = mlx::add(
            &l,
            &gpu::eye(m, k, 0, Dtype::F32, Device::Gpu, self.s)?,
            self.s,
        )?;
        let u = self.corner(&self.triangle(&lu.packed, true)?, k, n)?;
        Ok(vec![mlx::view(&order, Dtype::U32, self.s)?, l, u])
    }

    /// The rows of the factored matrix in the order of the factors' rows; `inverse`, where each row went.
    fn order(&self, pivots: &Array, rows: i32, inverse: bool) -> Result<Array> {
        let (k, batch) = (
            pivots.shape()[pivots.ndim() - 1],
            &pivots.shape()[..pivots.ndim() - 1],
        );
        #[cfg(test)]
        if !self.s.is_gpu() {
            let routine = Routine::Order { k, rows, inverse };
            return Ok(self.call(routine, &[pivots], batch)?.swap_remove(1));
        }
        let constants: [(&CStr, i32); 4] = [
            (c"ROWS", rows),
            (c"PIVOTS", k),
            (c"INVERSE", inverse.into()),
            (c"SHARED", (rows <= MAX_SHARED).into()),
        ];
        let launch = Launch {
            blocks: batch.iter().product(),
            threads: 128,
        };
        let shape = [batch, &[rows]].concat();
        let mut order = ORDER.call(&[pivots], &constants, &[(&shape, 0)], launch, self.s)?;
        order.pop().ok_or_else(|| Error::invalid("has no output"))
    }

    /// The sign of the row exchanges: -1 for an odd number of them.
    fn is_odd(&self, lu: &Factors) -> Result<Array> {
        let k = lu.pivots.shape()[lu.pivots.ndim() - 1];
        let own = mlx::arange(1.0, f64::from(k) + 1.0, 1.0, Dtype::S32, self.s)?;
        let moved = mlx::not_equal(&lu.pivots, &own, self.s)?;
        let moved = mlx::astype(&moved, Dtype::S32, self.s)?;
        let count = mlx::sum(&moved, &[-1], false, self.s)?;
        let one = int(1, Dtype::S32)?;
        mlx::equal(&mlx::bitwise_and(&count, &one, self.s)?, &one, self.s)
    }

    fn det(&self, lu: &Factors) -> Result<Array> {
        let diagonal = mlx::diagonal(&lu.packed, 0, -2, -1, self.s)?;
        let product = mlx::prod(&diagonal, &[-1], false, self.s)?;
        let negative = mlx::negative(&product, self.s)?;
        let signed = mlx::where_(&self.is_odd(lu)?, &negative, &product, self.s)?;
        // A product with 0 whose other factors overflow is none.
        let zero = float(0.0, Dtype::F32)?;
        let is_zero = mlx::equal(&diagonal, &zero, self.s)?;
        let is_singular = mlx::any(&is_zero, &[-1], false, self.s)?;
        mlx::where_(&is_singular, &zero, &signed, self.s)
    }

    fn slogdet(&self, a: &Array) -> Result<Vec<Array>> {
        let lu = self.factors(&mlx::astype(a, Dtype::F32, self.s)?)?;
        let diagonal = mlx::diagonal(&lu.packed, 0, -2, -1, self.s)?;
        let signs = mlx::prod(&mlx::sign(&diagonal, self.s)?, &[-1], false, self.s)?;
        let negative = mlx::negative(&signs, self.s)?;
        let sign = mlx::where_(&self.is_odd(&lu)?, &negative, &signs, self.s)?;
        // 0 has no negative zero as its sign.
        let sign = mlx::add(&sign, &float(0.0, Dtype::F32)?, self.s)?;
        let logarithms = mlx::log(&mlx::abs(&diagonal, self.s)?, self.s)?;
        let sum = mlx::sum(&logarithms, &[-1], false, self.s)?;
        Ok(vec![sign, sum])
    }

    /// x with a·x = b, a triangular. Both are of one type; the batches broadcast.
    fn triangular(
        &self,
        a: &Array,
        b: &Array,
        upper: bool,
        unit: bool,
        in_columns: bool,
    ) -> Result<Array> {
        let (n, columns) = matrix_size(b);
        let batch = broadcast(batch_of(a), batch_of(b));
        let batch = batch.ok_or_else(|| Error::invalid("the batches do not broadcast"))?;
        let shape = [&batch[..], &[n, columns]].concat();
        let b = mlx::broadcast_to(b, &shape, self.s)?;
        let of = numbers(batch_of(a), &batch).into();
        let routine = Routine::Trsm(Triangular {
            n,
            columns,
            upper,
            unit,
            in_columns,
            of,
        });
        Ok(self.call(routine, &[&b, a], &batch)?.swap_remove(0))
    }

    /// A vector as a matrix of one column, and back.
    fn of_columns(&self, b: &Array, solve: impl FnOnce(&Array) -> Result<Array>) -> Result<Array> {
        if b.ndim() > 1 {
            return solve(b);
        }
        let x = solve(&mlx::expand_dims(b, &[-1], self.s)?)?;
        mlx::squeeze(&x, &[-1], self.s)
    }

    fn solve_triangular(&self, a: &Array, b: &Array, upper: bool) -> Result<Made> {
        let (of_a, of_b) = (mlx::dtype(a), mlx::dtype(b));
        let dtype = match [of_a, of_b].contains(&Dtype::C64) {
            true => Dtype::C64,
            false => Dtype::F32,
        };
        let a = mlx::astype(a, dtype, self.s)?;
        let b = mlx::astype(b, dtype, self.s)?;
        let x = self.of_columns(&b, |b| self.triangular(&a, b, upper, false, false))?;
        let result = match of_a == of_b && of_a.is_half() {
            true => of_a,
            false => dtype,
        };
        let x = mlx::astype(&x, result, self.s)?;
        Ok((one(x), self.fault_of_diagonal(&a)?))
    }

    /// With NaN for each singular matrix.
    fn solve_or_nan(&self, a: &Array, b: &Array) -> Result<Array> {
        let is_vector = a.ndim() == b.ndim() + 1;
        let b = match is_vector {
            true => mlx::expand_dims(b, &[-1], self.s)?,
            false => mlx::share(b)?,
        };
        let (x, infos) = self.solve(a, &b)?;
        let x = self.where_done(&x, &infos)?;
        match is_vector {
            true => mlx::squeeze(&x, &[-1], self.s),
            false => Ok(x),
        }
    }

    /// The solution, and for each matrix whether a pivot is 0.
    fn solve(&self, a: &Array, b: &Array) -> Result<(Array, Array)> {
        let n = a.shape()[a.ndim() - 1];
        let lu = self.factors(a)?;
        let order = self.order(&lu.pivots, n, false)?;
        let order = mlx::expand_dims(&order, &[-1], self.s)?;
        let x = self.of_columns(b, |b| {
            let (_, columns) = matrix_size(b);
            let batch = broadcast(batch_of(a), batch_of(b));
            let batch = batch.ok_or_else(|| Error::invalid("the batches do not broadcast"))?;
            let shape = [&batch[..], &[n, columns]].concat();
            let order = mlx::broadcast_to(&order, &shape, self.s)?;
            let b = mlx::broadcast_to(b, &shape, self.s)?;
            let b = mlx::take_along_axis(&b, &order, -2, self.s)?;
            let y = self.triangular(&lu.in_columns, &b, false, true, true)?;
            self.triangular(&lu.in_columns, &y, true, false, true)
        })?;
        Ok((x, lu.infos))
    }
}

/// Both factors in one matrix, the rows' exchanges from 1 on, and for each matrix whether a pivot is 0.
struct Factors {
    packed: Array,
    /// The same memory as the library has filled it in.
    in_columns: Array,
    pivots: Array,
    infos: Array,
}

fn exactly<const N: usize>(arrays: Vec<Array>) -> Result<[Array; N]> {
    let arrays = arrays.try_into();
    arrays.map_err(|_| Error::invalid("a routine has another number of outputs"))
}

/// Rows and columns.
fn matrix_size(a: &Array) -> (i32, i32) {
    let rank = a.ndim();
    (a.shape()[rank - 2], a.shape()[rank - 1])
}
