//! Products of few rows: the right operand is read where it lies, and reading it is most of the work.

use super::form::{in_form, Integers};
use super::quantize::{quantize_rows, stored_terms};
use super::{by_columns, Left, LeftRoom, Part, Product, LEFT, ROOMS};
use crate::element::Element;
use crate::gemm::{room, Matrix};
use crate::pool;
use crate::simd::Simd;

/// Rows up to which a product reads its right operand so (`bench/cpu_kernels.exs`).
pub const FEW_ROWS: usize = 4;
/// Columns that are summed side by side.
const SIDE: usize = 4;
/// Numbers of the right operand in a part.
const PART: usize = 65_536;

/// `R` rows times `C` columns, each of which lies in one piece.
#[inline(always)]
unsafe fn dots<F: Integers, const R: usize, const C: usize>(
    rows: *const i32,
    w: Matrix<i8>,
    terms: usize,
) -> [[i32; C]; R] {
    let lanes = <F::S as Simd>::LANES;
    let (size, step) = (stored_terms(terms) / F::TERMS, lanes * F::TERMS);
    let whole = terms / step * step;
    let mut sums = [[F::splat(0); C]; R];
    let mut columns = [std::ptr::null(); C];
    for (j, column) in columns.iter_mut().enumerate() {
        *column = w.at(j, 0);
    }
    for k in (0..whole).step_by(step) {
        let mut x = [F::splat(0); R];
        for (i, x) in x.iter_mut().enumerate() {
            *x = F::load(rows.add(i * size + k / F::TERMS));
        }
        for (j, column) in columns.iter().enumerate() {
            let column: *const i8 = column.add(k);
            F::S::prefetch(column.wrapping_offset(C as isize * w.row));
            let column = F::unsigned(F::units(column));
            for (i, sums) in sums.iter_mut().enumerate() {
                sums[j] = F::dot(sums[j], column, x[i]);
            }
        }
    }
    if whole < terms {
        for (j, column) in columns.iter().enumerate() {
            let mut rest = [0i8; 64];
            std::ptr::copy_nonoverlapping(column.add(whole), rest.as_mut_ptr(), terms - whole);
            let column = F::unsigned(F::units(rest.as_ptr()));
            for (i, sums) in sums.iter_mut().enumerate() {
                let x = F::load(rows.add(i * size + whole / F::TERMS));
                sums[j] = F::dot(sums[j], column, x);
            }
        }
    }
    let mut totals = [[0; C]; R];
    for (sums, totals) in sums.iter().zip(&mut totals) {
        if let [a, b, c, d] = sums[..] {
            totals.copy_from_slice(&F::four_sums([a, b, c, d]));
        } else {
            for (sum, total) in sums.iter().zip(totals) {
                *total = F::sum(*sum);
            }
        }
    }
    totals
}

/// [`dots`] of a part's columns from `j` on, to the result.
#[inline(always)]
unsafe fn some_dots<F: Integers, T: Element, const R: usize, const C: usize>(
    part: &Part<T>,
    i: usize,
    j: usize,
) {
    let of = part.of;
    let rows = part.left.units.add(i * stored_terms(of.terms) / F::TERMS);
    let totals = dots::<F, R, C>(rows, of.w.columns(part.first + j), of.terms);
    for (row, totals) in totals.iter().enumerate() {
        for (column, total) in totals.iter().enumerate() {
            let number = part.first + j + column;
            let scale = *part.left.scales.add(i + row) * of.scales[number];
            let sum = total.wrapping_sub(*part.left.excess.add(i + row));
            let x = sum as f32 * scale + of.biases[number];
            let to = part.out.add((i + row) * of.columns + j + column);
            to.write(T::narrow(x));
        }
    }
}

#[inline(always)]
unsafe fn few_body<F: Integers, T: Element>(part: &Part<T>) {
    let mut j = 0;
    while j < part.columns {
        let side = SIDE.min(part.columns - j);
        match (part.of.rows, side) {
            (1, SIDE) => some_dots::<F, T, 1, SIDE>(part, 0, j),
            (2, SIDE) => some_dots::<F, T, 2, SIDE>(part, 0, j),
            (3, SIDE) => some_dots::<F, T, 3, SIDE>(part, 0, j),
            (4, SIDE) => some_dots::<F, T, 4, SIDE>(part, 0, j),
            (rows, side) => {
                for i in 0..rows {
                    for j in j..j + side {
                        some_dots::<F, T, 1, 1>(part, i, j);
                    }
                }
            }
        }
        j += side;
    }
}

in_form! {
    fn run_few<T: Element>(part: &Part<T>) = few_body
}

pub unsafe fn few<T: Element>(of: &Product, out: *mut T) {
    let size = stored_terms(of.terms) / of.form.terms();
    LEFT.with_borrow_mut(|(units, scales, excess)| {
        let left = LeftRoom {
            units: room(units, of.rows * size),
            scales: room(scales, of.rows),
            excess: room(excess, of.rows),
        };
        ROOMS.with_borrow_mut(|rooms| {
            quantize_rows::<T>(of.form, of, 0, of.rows, left, &mut rooms.row)
        });
        let parts = of
            .columns
            .div_ceil(16)
            .min((of.terms * of.columns).div_ceil(PART))
            .max(pool::threads().min(of.columns.div_ceil(64)));
        let left = Left {
            units: left.units,
            scales: left.scales,
            excess: left.excess,
        };
        let size = of.columns.div_ceil(parts).next_multiple_of(16);
        by_columns(of, left, out, size, |part, _| {
            // SAFETY: within the operands, and columns that are this part's alone.
            unsafe { run_few::<T>(of.form, part) }
        });
    })
}
