//! Products with matrices of 4 or 8 bits a number (MLX's affine quantization): number i of a row is scale · q + bias, q
//! its bits, scale and bias those of its group. Some rows at a time are widened to f32 and multiplied while the cache
//! has them.

use super::element::Element;
use super::gemm::{self, Matrix, Right};
use super::simd::dispatch;
use super::simd::{Level, Simd};
use super::View;

/// A matrix whose rows are a product's columns.
struct Weights<T> {
    packed: Matrix<u32>,
    scales: Matrix<T>,
    biases: Matrix<T>,
    group: usize,
    bits: usize,
}

/// Rows that are to be widened.
struct Rows<'a, T> {
    weights: &'a Weights<T>,
    first: usize,
    count: usize,
    terms: usize,
}

#[inline(always)]
unsafe fn open_body<S: Simd, T: Element>(rows: &Rows<T>, to: *mut f32) {
    if rows.weights.bits == 4 {
        open_bits::<S, T, 4>(rows, to);
    } else {
        open_bits::<S, T, 8>(rows, to);
    }
}

#[inline(always)]
unsafe fn open_bits<S: Simd, T: Element, const BITS: usize>(rows: &Rows<T>, to: *mut f32) {
    let of = rows.weights;
    for i in 0..rows.count {
        let row = rows.first + i;
        let from = of.packed.at(row, 0).cast::<u8>();
        let to = to.add(i * rows.terms);
        for group in 0..rows.terms / of.group {
            let scale = S::splat(of.scales.at(row, group).read().widen());
            let bias = S::splat(of.biases.at(row, group).read().widen());
            let start = group * of.group;
            for k in (start..start + of.group).step_by(S::LANES) {
                let from = from.add(k * BITS / 8);
                let x = if BITS == 4 {
                    S::load_u4(from)
                } else {
                    S::load_u8(from)
                };
                S::store(to.add(k), S::fma(x, scale, bias));
            }
        }
    }
}

dispatch! {
    fn open<T: Element>(rows: &Rows<T>, to: *mut f32) = open_body
}

impl<T: Element> Right for Weights<T> {
    type T = f32;

    fn pieces(&self) -> (bool, bool) {
        (true, false)
    }

    unsafe fn columns(
        &self,
        level: Level,
        terms: usize,
        first: usize,
        count: usize,
        room: &mut Vec<f32>,
    ) -> Matrix<f32> {
        let to = gemm::room(room, count * terms);
        let rows = Rows {
            weights: self,
            first,
            count,
            terms,
        };
        open::<T>(level, &rows, to);
        Matrix {
            data: to,
            row: 1,
            column: terms as isize,
        }
    }
}

/// x is {rows, terms}, weights {columns, terms · bits / 32} of 32-bit words, scales and biases {columns, terms / group}
/// of x's type.
///
/// # Safety
/// The views are of live arrays of these shapes, and `group` is a multiple of 16.
pub unsafe fn run<T: Element>(
    level: Level,
    inputs: &[View],
    group: usize,
    bits: usize,
    out: &View,
) {
    let sides = |view: &View| (view.shape()[0] as usize, view.shape()[1] as usize);
    let ((rows, terms), (columns, words)) = (sides(&inputs[0]), sides(&inputs[1]));
    let mut packed: Matrix<u32> = inputs[1].matrix();
    let mut copy = Vec::new();
    if packed.column != 1 {
        // Rows are read as they lie, byte after byte.
        for i in 0..columns {
            copy.extend((0..words).map(|j| packed.at(i, j).read()));
        }
        packed = Matrix {
            data: copy.as_ptr(),
            row: words as isize,
            column: 1,
        };
    }
    let weights = Weights {
        packed,
        scales: inputs[2].matrix::<T>(),
        biases: inputs[3].matrix(),
        group,
        bits,
    };
    let (x, to) = (inputs[0].matrix(), out.data.cast());
    gemm::product_with::<T, _>(level, x, &weights, to, (rows, terms, columns));
    drop(copy);
}
