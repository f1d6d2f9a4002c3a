//! Sums of products of a region's numbers, which lie where two tables say, with packed weights.

use crate::element::Element;
use crate::gemm;
use crate::panels::{self, Matrix, Singles};
use crate::rows;
use crate::simd::{dispatch, Simd};

/// Vectors of a tile's row.
pub const VECTORS: usize = 2;
/// Rows of a tile, at most. Each has a pointer of its own, and the compiler reads the numbers of all rows before it
/// multiplies them: with as many rows as gemm.rs has, neither kind of registers suffices.
const ROWS: usize = 8;
/// Rows where there are 16 vector registers.
const FEW_ROWS: usize = 6;
/// Numbers of a tile, at most.
const TILE: usize = ROWS * VECTORS * 16;

/// Rows of a region with packed weights.
pub struct Block<'a> {
    pub region: *const f32,
    /// Where each row begins in the region, and in the result.
    pub rows: &'a [usize],
    pub to: &'a [isize],
    /// Where each term is, from a row's beginning on.
    pub terms: &'a [usize],
    /// For each panel of columns, for each term the panel's columns side by side.
    pub weights: *const f32,
    pub out: *mut f32,
    pub columns: usize,
    /// Whether there is room for whole panels in the result.
    pub is_padded: bool,
    /// Whether each column has numbers of its own, beside each other in the region.
    pub is_lanewise: bool,
    pub add: bool,
}

#[inline(always)]
unsafe fn tile<S: Simd, const R: usize, const V: usize, const LANEWISE: bool>(
    a: &[*const f32; R],
    terms: &[usize],
    b: *const f32,
    c: &[*mut f32; R],
    add: bool,
) {
    let mut sums = [[S::splat(0.0); V]; R];
    let (a, mut b) = (*a, b);
    for term in terms {
        let mut row = [S::splat(0.0); V];
        for (v, x) in row.iter_mut().enumerate() {
            *x = S::load(b.add(v * S::LANES));
        }
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = a[i].add(*term);
            if LANEWISE {
                for (v, sum) in sum.iter_mut().enumerate() {
                    *sum = S::fma(S::load(x.add(v * S::LANES)), row[v], *sum);
                }
            } else {
                let x = S::splat(*x);
                for (v, sum) in sum.iter_mut().enumerate() {
                    *sum = S::fma(x, row[v], *sum);
                }
            }
        }
        b = b.add(VECTORS * S::LANES);
    }
    for (i, sum) in sums.iter().enumerate() {
        for (v, sum) in sum.iter().enumerate() {
            let to = c[i].add(v * S::LANES);
            S::store(to, if add { S::add(S::load(to), *sum) } else { *sum });
        }
    }
}

/// A tile of up to eight rows and two vectors of columns.
#[inline(always)]
unsafe fn tile_of<S: Simd, const V: usize, const LANEWISE: bool>(
    block: &Block,
    first: usize,
    count: usize,
    column: usize,
) {
    let width = VECTORS * S::LANES;
    let left = block.columns - column;
    let is_whole = block.is_padded || left >= V * S::LANES;
    let mut edge = [0f32; TILE];
    let b = block.weights.add(column * block.terms.len());
    let from = block.region.add(if LANEWISE { column } else { 0 });
    macro_rules! tiles {
        ($($rows:literal)+) => {
            match count {
                $($rows => {
                    let (mut a, mut c) = ([from; $rows], [edge.as_mut_ptr(); $rows]);
                    for i in 0..$rows {
                        a[i] = from.add(block.rows[first + i]);
                        c[i] = match is_whole {
                            true => block.out.offset(block.to[first + i]).add(column),
                            false => edge.as_mut_ptr().add(i * width),
                        };
                    }
                    let add = block.add && is_whole;
                    tile::<S, $rows, V, LANEWISE>(&a, block.terms, b, &c, add);
                })+
                _ => unreachable!("tiles of {count} rows"),
            }
        };
    }
    tiles!(1 2 3 4 5 6 7 8);
    if !is_whole {
        for i in 0..count {
            let to = block.out.offset(block.to[first + i]).add(column);
            for j in 0..left {
                let (to, value) = (to.add(j), edge[i * width + j]);
                *to = if block.add { *to + value } else { value };
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_body<S: Simd>(block: &Block) {
    let count = block.rows.len();
    // Tiles as tall as each other.
    let height = if S::LANES == 16 { ROWS } else { FEW_ROWS };
    let tiles = count.div_ceil(height);
    for number in 0..tiles {
        let (first, end) = (count * number / tiles, count * (number + 1) / tiles);
        for column in (0..block.columns).step_by(VECTORS * S::LANES) {
            let is_narrow = block.columns - column <= S::LANES;
            match (is_narrow, block.is_lanewise) {
                (false, false) => tile_of::<S, VECTORS, false>(block, first, end - first, column),
                (true, false) => tile_of::<S, 1, false>(block, first, end - first, column),
                (false, true) => tile_of::<S, VECTORS, true>(block, first, end - first, column),
                (true, true) => tile_of::<S, 1, true>(block, first, end - first, column),
            }
        }
    }
}

dispatch! {
    /// # Safety
    /// All that the tables name is there.
    pub fn multiply(block: &Block<'_>) = multiply_body
}

/// Weights of some terms in panels: `offsets` say where each term's is, of which so many as `run` follow one another
/// `step` elements apart; `skipped` precede the first in its run. Columns are `column` elements apart.
pub struct Weights<'a, T> {
    pub data: *const T,
    pub column: isize,
    pub columns: usize,
    pub offsets: &'a [isize],
    pub run: usize,
    pub skipped: usize,
    pub step: isize,
}

#[inline(always)]
unsafe fn pack_body<S: Simd, T: Element>(weights: &Weights<T>, to: *mut f32) {
    let width = VECTORS * S::LANES;
    let mut to = to;
    for column in (0..weights.columns).step_by(width) {
        let count = width.min(weights.columns - column);
        let from = weights.data.offset(column as isize * weights.column);
        let mut term = 0;
        while term < weights.offsets.len() {
            let left = weights.run - (weights.skipped + term) % weights.run;
            let length = left.min(weights.offsets.len() - term);
            let matrix = Matrix {
                data: from.offset(weights.offsets[term]),
                row: weights.step,
                column: weights.column,
            };
            panels::pack_columns::<S, Singles, T>(matrix, length, count, to);
            to = to.add(width * length);
            term += length;
        }
    }
}

dispatch! {
    /// # Safety
    /// The weights are there, and room for whole panels.
    pub fn pack<T: Element>(weights: &Weights<'_, T>, to: *mut f32) = pack_body
}

#[inline(always)]
unsafe fn width_body<S: Simd>(to: &mut usize) {
    *to = VECTORS * S::LANES;
}

dispatch! {
    /// Columns of a panel.
    pub fn width(to: &mut usize) = width_body
}

#[inline(always)]
unsafe fn add_wide_body<S: Simd>(from: *const f32, to: *mut f64, count: usize, add: bool) {
    gemm::add_wide::<S>(from, to, count, add)
}

dispatch! {
    /// # Safety
    /// Both have room for whole vectors.
    pub fn add_wide(from: *const f32, to: *mut f64, count: usize, add: bool) = add_wide_body
}

#[inline(always)]
unsafe fn narrow_wide_body<S: Simd>(from: *const f64, to: *mut f32, count: usize) {
    gemm::narrow_wide::<S>(from, to, count)
}

dispatch! {
    /// # Safety
    /// Both have room for whole vectors.
    pub fn narrow_wide(from: *const f64, to: *mut f32, count: usize) = narrow_wide_body
}

#[inline(always)]
unsafe fn write_body<S: Simd, T: Element>(
    sums: *const f32,
    stride: usize,
    columns: usize,
    out: *mut T,
    to: &[isize],
) {
    for (i, to) in to.iter().enumerate() {
        rows::narrow::<S, T>(sums.add(i * stride), out.offset(*to), columns);
    }
}

dispatch! {
    /// Rows of sums, `stride` apart, to where they belong.
    ///
    /// # Safety
    /// There are as many columns in each.
    pub fn write<T: Element>(
        sums: *const f32, stride: usize, columns: usize, out: *mut T, to: &[isize],
    ) = write_body
}
