//! How many numbers become one: what a reduction keeps of the numbers that it has seen. Sums are kept in f64, to which
//! at most eight numbers at a time are added as f32 in pairs, so that the error does not grow with the length. Driven
//! by reduce.rs.

use super::element::Element;
use super::rows;
use super::simd::{load_part, Simd};

/// Numbers of a row that a fold is given at a time; they stay in the first cache.
pub const BLOCK: usize = 4096;
/// Columns are folded in groups of so many, which is what a line of memory holds: rooms for columns are a multiple of
/// it.
pub const GROUP: usize = 16;

/// A reduction. States of parts are joined in an order that the sizes alone determine, so the result does not depend
/// on the threads.
pub trait Fold: Copy + Send + Sync + 'static {
    type State: Copy + Send + Sync;
    /// Of no numbers.
    const NONE: Self::State;
    /// Whether columns are read once, and so where they lie, and how many of them go together.
    const READS_ONCE: bool;
    const STRIP: usize;

    /// Adds `count` numbers beside each other, at most [`BLOCK`], to a state of `seen` numbers.
    ///
    /// # Safety
    /// `x` holds as many, and the machine has S's instructions.
    unsafe fn row<S: Simd, T: Element>(
        state: &mut Self::State,
        seen: usize,
        x: *const T,
        count: usize,
    );

    /// Adds a tile's columns to as many states of `seen` numbers.
    ///
    /// # Safety
    /// The tile is as it says, there are states for whole groups of columns, and the machine has S's instructions.
    unsafe fn columns<S: Simd, T: Element>(states: *mut Self::State, seen: usize, tile: &Tile<T>);

    /// Adds a state of `more` numbers to one of `seen`.
    fn join(state: &mut Self::State, seen: usize, other: &Self::State, more: usize);

    /// What `count` numbers come to.
    fn result(self, state: &Self::State, count: usize) -> f64;
}

/// Rows of columns beside each other, `step` elements apart.
pub struct Tile<T> {
    pub x: *const T,
    pub step: isize,
    pub rows: usize,
    pub columns: usize,
    /// The first rows, of which whole groups of columns can be read, whatever stands behind the columns.
    pub whole_rows: usize,
}

impl<T: Element> Tile<T> {
    /// The vector that begins at a column; what is behind the columns means nothing.
    #[inline(always)]
    unsafe fn at<S: Simd>(&self, row: usize, column: usize) -> S::V {
        let from = self.x.offset(row as isize * self.step).wrapping_add(column);
        if row < self.whole_rows || column + S::LANES <= self.columns {
            T::load::<S>(from)
        } else {
            load_part::<S, T>(from, self.columns.saturating_sub(column), 0.0)
        }
    }
}

/// The sum of a value of each of eight vectors, in pairs.
macro_rules! pairs {
    ($S:ident, |$i:ident| $value:expr) => {{
        macro_rules! of {
            ($n:expr) => {{
                let $i: usize = $n;
                $value
            }};
        }
        let (a, b) = ($S::add(of!(0), of!(1)), $S::add(of!(2), of!(3)));
        let (c, d) = ($S::add(of!(4), of!(5)), $S::add(of!(6), of!(7)));
        $S::add($S::add(a, b), $S::add(c, d))
    }};
}

/// The sums, in f64, of values of each of `count` numbers; a value of `fill` is 0.
macro_rules! sums {
    ($S:ident, $T:ty, $x:expr, $count:expr, $fill:expr, |$v:ident| [$($name:ident: $value:expr),+]) => {{
        let (x, count): (*const $T, usize) = ($x, $count);
        $(let mut $name = $S::wide_splat(0.0);)+
        let mut i = 0;
        while i + 8 * $S::LANES <= count {
            $({
                let sum = $crate::fold::pairs!($S, |j| {
                    let $v = <$T>::load::<$S>(x.add(i + j * $S::LANES));
                    $value
                });
                $name = $S::wide_add($name, $S::widen(sum));
            })+
            i += 8 * $S::LANES;
        }
        while i < count {
            let $v = if i + $S::LANES <= count {
                <$T>::load::<$S>(x.add(i))
            } else {
                load_part::<$S, $T>(x.add(i), count - i, $fill)
            };
            $($name = $S::wide_add($name, $S::widen($value));)+
            i += $S::LANES;
        }
        ($($S::wide_sum($name)),+)
    }};
}

/// The sums, in f64, of values of each number of some columns of a tile, as many as a vector has.
macro_rules! sums_down {
    ($S:ident, $tile:expr, $column:expr, |$v:ident| [$($name:ident: $value:expr),+]) => {{
        let (tile, column) = ($tile, $column);
        $(let mut $name = $S::wide_splat(0.0);)+
        let mut row = 0;
        while row + 8 <= tile.rows {
            $({
                let sum = pairs!($S, |i| {
                    let $v = tile.at::<$S>(row + i, column);
                    $value
                });
                $name = $S::wide_add($name, $S::widen(sum));
            })+
            row += 8;
        }
        while row < tile.rows {
            let $v = tile.at::<$S>(row, column);
            $($name = $S::wide_add($name, $S::widen($value));)+
            row += 1;
        }
        ($($name),+)
    }};
}

pub(super) use {pairs, sums};

/// The sum, or the mean.
#[derive(Clone, Copy)]
pub struct Sum {
    pub is_mean: bool,
}

impl Fold for Sum {
    type State = f64;
    const NONE: f64 = 0.0;
    const READS_ONCE: bool = true;
    const STRIP: usize = 512;

    #[inline(always)]
    unsafe fn row<S: Simd, T: Element>(state: &mut f64, _seen: usize, x: *const T, count: usize) {
        *state += sums!(S, T, x, count, 0.0, |v| [total: v]);
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, T: Element>(states: *mut f64, _seen: usize, tile: &Tile<T>) {
        let mut row = 0;
        while row + 8 <= tile.rows {
            for column in (0..tile.columns).step_by(S::LANES) {
                let state = states.add(column);
                let sum = pairs!(S, |i| tile.at::<S>(row + i, column));
                S::wide_store(state, S::wide_add(S::wide_load(state), S::widen(sum)));
            }
            row += 8;
        }
        if row == tile.rows {
            return;
        }
        for column in (0..tile.columns).step_by(S::LANES) {
            let mut sum = S::wide_load(states.add(column));
            for row in row..tile.rows {
                sum = S::wide_add(sum, S::widen(tile.at::<S>(row, column)));
            }
            S::wide_store(states.add(column), sum);
        }
    }

    #[inline(always)]
    fn join(state: &mut f64, _seen: usize, other: &f64, _more: usize) {
        *state += other;
    }

    #[inline(always)]
    fn result(self, state: &f64, count: usize) -> f64 {
        match self.is_mean {
            true => state / count as f64,
            false => *state,
        }
    }
}

/// The product. Kept in f64 throughout, whose range the parts of a product that fits f32 may need.
#[derive(Clone, Copy)]
pub struct Product;

impl Fold for Product {
    type State = f64;
    const NONE: f64 = 1.0;
    const READS_ONCE: bool = true;
    const STRIP: usize = 512;

    #[inline(always)]
    unsafe fn row<S: Simd, T: Element>(state: &mut f64, _seen: usize, x: *const T, count: usize) {
        let mut products = [S::wide_splat(1.0); 4];
        let mut i = 0;
        while i + 4 * S::LANES <= count {
            for (j, product) in products.iter_mut().enumerate() {
                let v = S::widen(T::load::<S>(x.add(i + j * S::LANES)));
                *product = S::wide_mul(*product, v);
            }
            i += 4 * S::LANES;
        }
        while i < count {
            let v = if i + S::LANES <= count {
                T::load::<S>(x.add(i))
            } else {
                load_part::<S, T>(x.add(i), count - i, 1.0)
            };
            products[0] = S::wide_mul(products[0], S::widen(v));
            i += S::LANES;
        }
        let [a, b, c, d] = products;
        *state *= S::wide_product(S::wide_mul(S::wide_mul(a, b), S::wide_mul(c, d)));
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, T: Element>(states: *mut f64, _seen: usize, tile: &Tile<T>) {
        let mut row = 0;
        while row < tile.rows {
            let next = tile.rows.min(row + 8);
            for column in (0..tile.columns).step_by(S::LANES) {
                let mut product = S::wide_load(states.add(column));
                for row in row..next {
                    product = S::wide_mul(product, S::widen(tile.at::<S>(row, column)));
                }
                S::wide_store(states.add(column), product);
            }
            row = next;
        }
    }

    #[inline(always)]
    fn join(state: &mut f64, _seen: usize, other: &f64, _more: usize) {
        *state *= other;
    }

    #[inline(always)]
    fn result(self, state: &f64, _count: usize) -> f64 {
        *state
    }
}

/// The variance, or the standard deviation: squared deviations from the mean of a block, whose own rounding is taken
/// out again, joined over blocks (Chan, Golub and LeVeque, 1983).
#[derive(Clone, Copy)]
pub struct Spread {
    pub ddof: i32,
    pub is_root: bool,
}

/// The mean, and the sum of squared deviations from it.
#[derive(Clone, Copy)]
pub struct Moments {
    mean: f64,
    squares: f64,
}

impl Moments {
    pub fn mean(self) -> f64 {
        self.mean
    }

    pub fn squares(self) -> f64 {
        self.squares
    }

    /// Of a row.
    ///
    /// # Safety
    /// `x` holds `count` numbers, and the machine has S's instructions.
    #[inline(always)]
    pub unsafe fn of_row<S: Simd, T: Element>(x: *const T, count: usize) -> Moments {
        let near = (sums!(S, T, x, count, 0.0, |v| [total: v]) / count as f64) as f32;
        let centre = S::splat(near);
        let (deviations, squares) = sums!(S, T, x, count, near, |v| [
            deviations: S::sub(v, centre),
            squares: S::mul(S::sub(v, centre), S::sub(v, centre))
        ]);
        Moments::of(near, deviations, squares, count)
    }

    /// Of `count` numbers, from sums of deviations from `near` and of their squares.
    #[inline(always)]
    fn of(near: f32, deviations: f64, squares: f64, count: usize) -> Moments {
        let off = deviations / count as f64;
        let rest = squares - deviations * off;
        Moments {
            mean: f64::from(near) + off,
            // NaN stays NaN.
            squares: if rest < 0.0 { 0.0 } else { rest },
        }
    }
}

impl Fold for Spread {
    type State = Moments;
    const NONE: Moments = Moments {
        mean: 0.0,
        squares: 0.0,
    };
    const READS_ONCE: bool = false;
    const STRIP: usize = 128;

    #[inline(always)]
    unsafe fn row<S: Simd, T: Element>(
        state: &mut Moments,
        seen: usize,
        x: *const T,
        count: usize,
    ) {
        let block = Moments::of_row::<S, T>(x, count);
        Self::join(state, seen, &block, count);
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, T: Element>(states: *mut Moments, seen: usize, tile: &Tile<T>) {
        let rows = tile.rows;
        for column in (0..tile.columns).step_by(S::LANES) {
            let total = sums_down!(S, tile, column, |v| [total: v]);
            let centre = S::narrow(S::wide_mul(total, S::wide_splat(1.0 / rows as f64)));
            let sums = sums_down!(S, tile, column, |v| [
                deviations: S::sub(v, centre),
                squares: S::mul(S::sub(v, centre), S::sub(v, centre))
            ]);
            let (mut near, mut deviations, mut squares) = ([0f32; 16], [0f64; 16], [0f64; 16]);
            S::store(near.as_mut_ptr(), centre);
            S::wide_store(deviations.as_mut_ptr(), sums.0);
            S::wide_store(squares.as_mut_ptr(), sums.1);
            for lane in 0..S::LANES {
                let block = Moments::of(near[lane], deviations[lane], squares[lane], rows);
                Self::join(&mut *states.add(column + lane), seen, &block, rows);
            }
        }
    }

    #[inline(always)]
    fn join(state: &mut Moments, seen: usize, other: &Moments, more: usize) {
        if seen == 0 {
            *state = *other;
            return;
        }
        let (seen, more) = (seen as f64, more as f64);
        let share = more / (seen + more);
        let apart = other.mean - state.mean;
        state.mean += apart * share;
        state.squares += other.squares + apart * apart * seen * share;
    }

    #[inline(always)]
    fn result(self, state: &Moments, count: usize) -> f64 {
        let variance = state.squares / (count as f64 - f64::from(self.ddof)).max(0.0);
        match self.is_root {
            true => variance.sqrt(),
            false => variance,
        }
    }
}

/// log Σ e^x.
#[derive(Clone, Copy)]
pub struct LogSum;

/// The largest number, NaN if one was, and the sum of exponentials relative to it where it is finite.
#[derive(Clone, Copy)]
pub struct Exponentials {
    top: f32,
    sum: f64,
}

impl Fold for LogSum {
    type State = Exponentials;
    const NONE: Exponentials = Exponentials {
        top: f32::NEG_INFINITY,
        sum: 0.0,
    };
    const READS_ONCE: bool = false;
    const STRIP: usize = 64;

    #[inline(always)]
    unsafe fn row<S: Simd, T: Element>(
        state: &mut Exponentials,
        seen: usize,
        x: *const T,
        count: usize,
    ) {
        let mut room = std::mem::MaybeUninit::<[f32; BLOCK]>::uninit();
        let row = room.as_mut_ptr().cast::<f32>();
        rows::widen::<S, T>(x, row, count);
        let top = rows::largest::<S>(row, count);
        let sum = match top.is_finite() {
            true => rows::exponents::<S>(row, count, top),
            false => 0.0,
        };
        Self::join(state, seen, &Exponentials { top, sum }, count);
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, T: Element>(states: *mut Exponentials, seen: usize, tile: &Tile<T>) {
        use super::math::exp;
        let (zero, infinity) = (S::splat(0.0), S::splat(f32::INFINITY));
        for column in (0..tile.columns).step_by(S::LANES) {
            let (mut top, mut bad) = (S::splat(f32::NEG_INFINITY), zero);
            for row in 0..tile.rows {
                let x = tile.at::<S>(row, column);
                top = S::max(x, top);
                // Stays NaN once it is.
                bad = S::select(S::is_nan(x), x, bad);
            }
            top = S::select(S::is_nan(bad), bad, top);
            // Of those that are not finite nothing is summed.
            let is_finite = S::less(S::abs(top), infinity);
            let near = S::select(is_finite, top, zero);
            let sum = sums_down!(S, tile, column, |v| [sum: exp::<S>(S::sub(v, near))]);
            let (mut tops, mut sums) = ([0f32; 16], [0f64; 16]);
            S::store(tops.as_mut_ptr(), top);
            S::wide_store(sums.as_mut_ptr(), sum);
            for lane in 0..S::LANES {
                let (top, sum) = (tops[lane], sums[lane]);
                let block = Exponentials { top, sum };
                Self::join(&mut *states.add(column + lane), seen, &block, tile.rows);
            }
        }
    }

    #[inline(always)]
    fn join(state: &mut Exponentials, _seen: usize, other: &Exponentials, _more: usize) {
        let (a, b) = (state.top, other.top);
        if a.is_finite() && b.is_finite() {
            let apart = (f64::from(a) - f64::from(b)).abs();
            let (low, high) = if a < b {
                (*state, *other)
            } else {
                (*other, *state)
            };
            state.top = high.top;
            state.sum = high.sum
                + if apart == 0.0 {
                    low.sum
                } else {
                    low.sum * (-apart).exp()
                };
        } else if !a.is_nan() && (b.is_nan() || b > a) {
            *state = *other;
        }
    }

    #[inline(always)]
    fn result(self, state: &Exponentials, _count: usize) -> f64 {
        match state.top.is_finite() {
            true => f64::from(state.top) + state.sum.ln(),
            false => f64::from(state.top),
        }
    }
}
