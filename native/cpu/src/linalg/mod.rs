//! Factorizations of matrices of f32 and f64, and what is computed of the factors. Matrices of a batch go one to a
//! thread; of few and large ones the work on each is shared.
//!
//! | file | has |
//! |---|---|
//! | `real` | the numbers, and vectors of them |
//! | `tile` | products in registers, updates and substitution made of them |
//! | `lu`, `cholesky` | the factorizations, in blocks |

mod cholesky;
mod lu;
mod real;
mod tile;

use super::gemm::Matrix;
use super::pool;
use super::simd::Level;
use super::{Type, View};
use lu::{Order, Own};
pub use real::Real;
use std::ffi::CStr;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use tile::{Strip, Triangle};

/// What is computed of matrices, on the last two axes. Other axes are a batch, and are broadcast where there are two
/// inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Linear {
    /// The factor of `a`, of which one triangle is read. Where a pivot is not positive, it stays on the diagonal, and what
    /// is behind it is not defined; where `is_semidefinite`, columns are 0 for pivots that are 0, and of an indefinite
    /// matrix NaN.
    Cholesky { upper: bool, is_semidefinite: bool },
    /// 0 of a singular matrix.
    Determinant,
    /// Its sign and the logarithm of its magnitude: two results.
    LogDeterminant,
    /// Fails for a singular matrix.
    Inverse,
    /// a·x = b for a {…, n, n} and b {…, n, m}. Of a singular matrix NaN, or a failure.
    Solve { nan_if_singular: bool },
    /// The same for a matrix of which only one triangle is read. Fails where its diagonal has a 0.
    Triangular { upper: bool },
}

impl Linear {
    /// The operation that it computes.
    pub fn name(&self) -> &'static CStr {
        match self {
            Linear::Cholesky { .. } => c"cholesky",
            Linear::Determinant => c"det",
            Linear::LogDeterminant => c"slogdet",
            // Failures carry the name that MLX's have.
            Linear::Inverse | Linear::Solve { .. } | Linear::Triangular { .. } => {
                c"Inverse::eval_cpu"
            }
        }
    }

    /// Whether it may fail while it runs.
    pub fn may_fail(&self) -> bool {
        match self {
            Linear::Inverse | Linear::Triangular { .. } => true,
            Linear::Solve { nan_if_singular } => !nan_if_singular,
            _ => false,
        }
    }
}

/// The first singular matrix of a batch, and its first pivot of 0.
struct Singular(AtomicU64);

impl Singular {
    fn none() -> Singular {
        Singular(AtomicU64::new(u64::MAX))
    }

    fn add(&self, matrix: usize, pivot: usize) {
        let found = (matrix as u64) << 32 | (pivot as u64 + 1);
        self.0.fetch_min(found, Ordering::Relaxed);
    }

    /// Ends the kernel if there is one. Its node then fails with LAPACK's number of the pivot, as MLX's does.
    fn check(&self, step: &str) {
        let found = self.0.load(Ordering::Relaxed);
        if found != u64::MAX {
            let text = format!("{step} failed with error code {}", found as u32);
            resume_unwind(Box::new(text));
        }
    }
}

/// Right sides of a system.
enum Right<T> {
    Matrix(Matrix<T>),
    Identity,
}

/// Strips that a thread solves for at a time: as many as stay in the second cache with a block of rows.
const STRIPS: usize = 8;
/// Numbers of the matrices that a thread takes at a time.
const PART: usize = 8_192;

/// The matrices of a batch, some of which may be the same.
struct Batch<'a, T> {
    view: &'a View,
    /// The shape before the last two axes that all inputs are broadcast to.
    shape: &'a [i32],
    number: std::marker::PhantomData<T>,
}

impl<'a, T> Batch<'a, T> {
    fn of(view: &'a View, shape: &'a [i32]) -> Batch<'a, T> {
        Batch {
            view,
            shape,
            number: std::marker::PhantomData,
        }
    }

    /// Whether all are one matrix.
    fn is_one(&self) -> bool {
        let shape = self.view.shape();
        shape[..shape.len() - 2].iter().all(|size| *size == 1)
    }

    /// The matrix of a number.
    unsafe fn at(&self, mut number: usize) -> Matrix<T> {
        let (sizes, strides) = (self.view.shape(), self.view.strides());
        let rank = sizes.len();
        let mut offset = 0;
        for axis in (0..self.shape.len()).rev() {
            let size = self.shape[axis] as usize;
            let own = (axis + rank - 2).checked_sub(self.shape.len());
            if let Some(own) = own.filter(|own| sizes[*own] != 1) {
                offset += (number % size) as isize * strides[own] as isize;
            }
            number /= size;
        }
        Matrix {
            data: self.view.data.cast::<T>().cast_const().offset(offset),
            row: strides[rank - 2] as isize,
            column: strides[rank - 1] as isize,
        }
    }
}

fn last(view: &View) -> usize {
    view.shape().last().map_or(1, |size| *size as usize)
}

/// What calls of a thread share.
#[derive(Default)]
struct Rooms<T> {
    matrix: Vec<T>,
    panel: Vec<T>,
    strips: Vec<T>,
    order: Order,
}

/// Calls `work` for each matrix of a batch.
fn each<T: Real>(count: usize, numbers: usize, work: &(dyn Fn(usize, &mut Rooms<T>) + Sync)) {
    let threads = pool::threads();
    if count < threads {
        let mut rooms = Rooms::default();
        return (0..count).for_each(|number| work(number, &mut rooms));
    }
    let part = (PART / numbers.max(1)).clamp(1, count.div_ceil(threads));
    let is_worth_it = count * numbers >= 2 * PART;
    pool::parallel(count.div_ceil(part), is_worth_it, &|at| {
        let mut rooms = Rooms::default();
        let end = count.min((at + 1) * part);
        (at * part..end).for_each(|number| work(number, &mut rooms));
    });
}

/// A copy of a matrix, to be factored.
unsafe fn own<T: Real>(
    level: Level,
    from: Matrix<T>,
    (rows, columns): (usize, usize),
    numbers: &mut Vec<T>,
) -> Own<T> {
    let stride = tile::stride::<T>(columns, tile::width::<T>(level));
    let a = Own {
        data: lu::at_least(numbers, rows * stride),
        stride,
        rows,
        columns,
    };
    tile::load(level, from, (rows, columns), a.data, stride);
    a
}

/// # Safety
/// The views are of live arrays of `of`, as many and of the shapes that the computation names, and with as many axes;
/// results lie in rows.
pub unsafe fn run(level: Level, of: Type, linear: Linear, inputs: &[View], outs: &[View]) {
    match of {
        Type::F32 => run_as::<f32>(level, linear, inputs, outs),
        Type::F64 => run_as::<f64>(level, linear, inputs, outs),
        _ => {}
    }
}

unsafe fn run_as<T: Real>(level: Level, linear: Linear, inputs: &[View], outs: &[View]) {
    let [a, ..] = inputs else { return };
    let Some(out) = outs.first().filter(|out| out.size() > 0) else {
        return;
    };
    let n = last(a);
    match linear {
        Linear::Cholesky {
            upper,
            is_semidefinite,
        } => factors::<T>(level, upper, is_semidefinite, a, out),
        Linear::Determinant => determinants::<T>(level, a, n, &|number, pivots| {
            *out.data.cast::<T>().add(number) = T::of(pivots.determinant());
        }),
        Linear::LogDeterminant => {
            let Some(logarithms) = outs.get(1) else {
                return;
            };
            determinants::<T>(level, a, n, &|number, pivots| {
                let (sign, logarithm) = pivots.logarithm();
                *out.data.cast::<T>().add(number) = T::of(sign);
                *logarithms.data.cast::<T>().add(number) = T::of(logarithm);
            });
        }
        Linear::Inverse => solutions::<T>(level, a, None, out).check("LU factorization"),
        Linear::Solve { nan_if_singular } => {
            let singular = solutions::<T>(level, a, inputs.get(1), out);
            if !nan_if_singular {
                singular.check("triangular inversion");
            }
        }
        Linear::Triangular { upper } => {
            if let Some(b) = inputs.get(1) {
                substituted::<T>(level, upper, a, b, out).check("triangular inversion");
            }
        }
    }
}

unsafe fn factors<T: Real>(level: Level, upper: bool, is_semidefinite: bool, a: &View, out: &View) {
    let n = last(a);
    let shape = &a.shape()[..a.shape().len() - 2];
    let matrices = Batch::<T>::of(a, shape);
    each::<T>(out.size() / (n * n), n * n, &|number, rooms| {
        // SAFETY: matrices of the inputs, and one of the results that is this call's alone.
        unsafe {
            let matrix = matrices.at(number);
            let rows = if upper { matrix } else { matrix.turned() };
            let factor = own(level, rows, (n, n), &mut rooms.matrix);
            let is_failed = cholesky::factor(level, factor).is_some();
            if is_failed && is_semidefinite {
                tile::load(level, rows, (n, n), factor.data, factor.stride);
                let diagonal: Vec<T> = (0..n).map(|i| *rows.at(i, i)).collect();
                cholesky::factor_semidefinite(level, factor, &diagonal);
            }
            let to = out.data.cast::<T>().add(number * n * n);
            let from = match upper {
                true => factor.matrix(),
                false => factor.matrix().turned(),
            };
            tile::copy(level, from, (n, n), to, n);
            for i in 0..n {
                let beside = if upper { 0..i } else { i + 1..n };
                let row = std::slice::from_raw_parts_mut(to.add(i * n), n);
                row[beside].fill(T::ZERO);
            }
        }
    });
}

/// The pivots of a matrix, and whether its rows changed places an odd number of times.
struct Pivots<T> {
    factors: Own<T>,
    is_odd: bool,
}

unsafe fn determinants<T: Real>(
    level: Level,
    a: &View,
    n: usize,
    write: &(dyn Fn(usize, Pivots<T>) + Sync),
) {
    let shape = &a.shape()[..a.shape().len() - 2];
    let matrices = Batch::<T>::of(a, shape);
    let count: usize = shape.iter().map(|size| *size as usize).product();
    each::<T>(count, n * n, &|number, rooms| {
        // SAFETY: within the array, and a result that is this call's alone.
        unsafe {
            let factors = own(level, matrices.at(number), (n, n), &mut rooms.matrix);
            lu::factor(level, factors, false, &mut rooms.order, &mut rooms.panel);
            let is_odd = rooms.order.is_odd;
            write(number, Pivots { factors, is_odd });
        }
    });
}

impl<T: Real> Pivots<T> {
    fn each(&self) -> impl Iterator<Item = f64> + '_ {
        // SAFETY: within the factors.
        (0..self.factors.rows).map(|i| unsafe { *self.factors.at(i, i) }.into())
    }

    fn sign(&self) -> f64 {
        if self.is_odd {
            -1.0
        } else {
            1.0
        }
    }

    /// The product of the pivots, in f64: one of many may be too large or too small on the way.
    fn determinant(&self) -> f64 {
        let mut product = self.sign();
        for pivot in self.each() {
            if pivot == 0.0 {
                return 0.0;
            }
            product *= pivot;
        }
        product
    }

    /// The determinant's sign and the logarithm of its magnitude.
    fn logarithm(&self) -> (f64, f64) {
        let (mut sign, mut logarithm) = (self.sign(), 0.0);
        for pivot in self.each() {
            if pivot == 0.0 {
                return (0.0, f64::NEG_INFINITY);
            }
            sign *= if pivot.is_nan() {
                pivot
            } else {
                pivot.signum()
            };
            logarithm += pivot.abs().ln();
        }
        (sign, logarithm)
    }
}

/// How strips of a system are solved for.
struct System<'a, T> {
    level: Level,
    /// Solved for one after the other; the second from the last row to the first.
    lower: Option<Triangle<T>>,
    upper: Option<Triangle<T>>,
    right: Right<T>,
    /// The row of the right side that each row is.
    order: Option<&'a [usize]>,
    to: *mut T,
    columns: usize,
}

// SAFETY: the parts that threads write do not overlap.
unsafe impl<T> Sync for System<'_, T> {}

impl<T: Real> System<'_, T> {
    fn size(&self) -> usize {
        let triangle = self.lower.or(self.upper);
        triangle.map_or(0, |triangle| triangle.size)
    }

    /// Solves for all columns, some strips at a time.
    unsafe fn solve(&self, room: &mut Vec<T>) {
        let (n, width) = (self.size(), tile::width::<T>(self.level));
        let strips = self.columns.div_ceil(width);
        let part = strips.div_ceil(2 * pool::threads()).clamp(1, STRIPS);
        let work = n * n / 2 * strips * width;
        if strips <= part {
            return self.solve_strips(0, strips, width, room);
        }
        pool::parallel(strips.div_ceil(part), work >= lu::WORTH_SHARING, &|at| {
            let first = at * part;
            // SAFETY: columns of this part's own.
            unsafe { self.solve_strips(first, part.min(strips - first), width, &mut Vec::new()) }
        });
    }

    unsafe fn solve_strips(&self, first: usize, strips: usize, width: usize, room: &mut Vec<T>) {
        let n = self.size();
        let distance = n * width;
        room.clear();
        room.resize(strips * distance, T::ZERO);
        let begin = first * width;
        let count = (self.columns - begin).min(strips * width);
        for number in 0..strips {
            let columns = width.min(count - number * width);
            let column = begin + number * width;
            let strip = room.as_mut_ptr().add(number * distance);
            self.read(column, columns, strip, width);
        }
        let data = room.as_mut_ptr();
        let step = width as isize;
        if let Some(lower) = &self.lower {
            tile::substitute(
                self.level,
                lower,
                Strip { data, step },
                distance as isize,
                strips,
            );
        }
        if let Some(upper) = &self.upper {
            let last = Strip {
                data: data.add((n - 1) * width),
                step: -step,
            };
            tile::substitute(self.level, upper, last, distance as isize, strips);
        }
        for number in 0..strips {
            let columns = width.min(count - number * width);
            let to = self.to.add(begin + number * width);
            for i in 0..n {
                let from = room.as_ptr().add(number * distance + i * width);
                copy_row(from, to.add(i * self.columns), columns);
            }
        }
    }

    /// Columns of the right side as a strip.
    unsafe fn read(&self, column: usize, columns: usize, to: *mut T, width: usize) {
        let row = |i: usize| self.order.map_or(i, |order| order[i]);
        match &self.right {
            Right::Identity => {
                for i in 0..self.size() {
                    if (column..column + columns).contains(&row(i)) {
                        *to.add(i * width + row(i) - column) = T::ONE;
                    }
                }
            }
            Right::Matrix(b) if b.column == 1 => {
                for i in 0..self.size() {
                    copy_row(b.at(row(i), column), to.add(i * width), columns);
                }
            }
            Right::Matrix(b) if self.order.is_none() => {
                let sizes = (self.size(), columns);
                tile::copy(self.level, b.from(0, column), sizes, to, width);
            }
            Right::Matrix(b) => {
                for i in 0..self.size() {
                    for j in 0..columns {
                        *to.add(i * width + j) = *b.at(row(i), column + j);
                    }
                }
            }
        }
    }
}

/// Mostly as many numbers as a strip is wide: a few moves then, and no call.
#[inline(always)]
unsafe fn copy_row<T: Real>(from: *const T, to: *mut T, count: usize) {
    match count {
        16 => std::ptr::copy_nonoverlapping(from, to, 16),
        8 => std::ptr::copy_nonoverlapping(from, to, 8),
        _ => std::ptr::copy_nonoverlapping(from, to, count),
    }
}

/// The upper triangle of a matrix, from the last row to the first.
unsafe fn upper_of<T>(a: Matrix<T>, size: usize) -> Triangle<T> {
    Triangle {
        a: Matrix {
            data: a.at(size - 1, size - 1),
            row: -a.row,
            column: -a.column,
        },
        size,
        has_ones: false,
    }
}

/// Solves for `b`, or for the identity. The solution of a singular matrix is NaN.
unsafe fn solutions<T: Real>(level: Level, a: &View, b: Option<&View>, out: &View) -> Singular {
    let (n, columns) = (last(a), last(out));
    let shape = &out.shape()[..out.shape().len() - 2];
    let matrices = Batch::<T>::of(a, shape);
    let rights = b.map(|b| Batch::<T>::of(b, shape));
    let singular = Singular::none();
    let factored = |number: usize, rooms: &mut Rooms<T>| {
        let factors = own(level, matrices.at(number), (n, n), &mut rooms.matrix);
        lu::factor(level, factors, true, &mut rooms.order, &mut rooms.panel);
        let zero = (0..n).find(|i| *factors.at(*i, *i) == T::ZERO);
        if let Some(pivot) = zero {
            singular.add(number, pivot);
        }
        (factors, zero.is_some())
    };
    let solve = |number: usize, factors: Own<T>, order: &Order, is_bad, room: &mut Vec<T>| {
        let to = out.data.cast::<T>().add(number * n * columns);
        if is_bad {
            return std::slice::from_raw_parts_mut(to, n * columns).fill(T::NAN);
        }
        let lower = Triangle {
            a: factors.matrix(),
            size: n,
            has_ones: true,
        };
        let system = System {
            level,
            lower: Some(lower),
            upper: Some(upper_of(factors.matrix(), n)),
            right: match &rights {
                Some(rights) => Right::Matrix(rights.at(number)),
                None => Right::Identity,
            },
            order: Some(&order.rows),
            to,
            columns,
        };
        system.solve(room);
    };
    let count = out.size() / (n * columns);
    if matrices.is_one() {
        let mut rooms = Rooms::default();
        let (factors, is_bad) = factored(0, &mut rooms);
        let order = &rooms.order;
        each::<T>(count, n * columns, &|number, rooms| {
            solve(number, factors, order, is_bad, &mut rooms.strips)
        });
    } else {
        each::<T>(count, n * n.max(columns), &|number, rooms| {
            let (factors, is_bad) = factored(number, rooms);
            solve(number, factors, &rooms.order, is_bad, &mut rooms.strips);
        });
    }
    singular
}

unsafe fn substituted<T: Real>(
    level: Level,
    upper: bool,
    a: &View,
    b: &View,
    out: &View,
) -> Singular {
    let singular = Singular::none();
    let (n, columns) = (last(a), last(out));
    let shape = &out.shape()[..out.shape().len() - 2];
    let (matrices, rights) = (Batch::<T>::of(a, shape), Batch::<T>::of(b, shape));
    let count = out.size() / (n * columns);
    each::<T>(count, n * n.max(columns), &|number, rooms| {
        // SAFETY: matrices of the inputs, and one of the results that is this call's alone.
        unsafe {
            let a = matrices.at(number);
            if let Some(pivot) = (0..n).find(|i| *a.at(*i, *i) == T::ZERO) {
                return singular.add(number, pivot);
            }
            let lower = Triangle {
                a,
                size: n,
                has_ones: false,
            };
            let system = System {
                level,
                lower: (!upper).then_some(lower),
                upper: upper.then(|| upper_of(a, n)),
                right: Right::Matrix(rights.at(number)),
                order: None,
                to: out.data.cast::<T>().add(number * n * columns),
                columns,
            };
            system.solve(&mut rooms.strips);
        }
    });
    singular
}
