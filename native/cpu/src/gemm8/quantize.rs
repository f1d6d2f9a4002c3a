//! Rows of the left operand as integers of 8 bits: one after another, or in panels.

use super::form::{in_form, Integers};
use super::{offsets, LeftRoom, Product, Rooms};
use crate::element::Element;
use crate::gemm::{room, Matrix};
use crate::panels::{self, Singles};
use crate::simd::{load_part, Simd};

/// A row whose numbers are all smaller becomes zeros: 127 over them has to be finite.
pub const SMALLEST: f32 = 1.0e-30;

/// Terms as they are stored: whole vectors of every form.
pub fn stored_terms(terms: usize) -> usize {
    terms.next_multiple_of(64)
}

/// Rounds a row to integers from -127 to 127, in whole vectors with zeros behind it. Returns the row's scale, which is
/// NaN where a number is not finite.
#[inline(always)]
unsafe fn quantize<F: Integers, T: Element>(
    from: *const T,
    step: isize,
    terms: usize,
    row: &mut Vec<f32>,
    to: *mut u8,
) -> f32 {
    if step == 1 {
        return quantize_row::<F, T>(from, terms, to);
    }
    let row = room(row, terms);
    for k in 0..terms {
        row.add(k)
            .write(from.offset(k as isize * step).read().widen());
    }
    quantize_row::<F, f32>(row, terms, to)
}

#[inline(always)]
unsafe fn quantize_row<F: Integers, T: Element>(from: *const T, terms: usize, to: *mut u8) -> f32 {
    let lanes = <F::S as Simd>::LANES;
    let whole = terms / lanes * lanes;
    let zero = F::S::splat(0.0);
    // x · 0 is NaN where x is not finite.
    let (mut most, mut odd) = (zero, zero);
    for k in (0..whole).step_by(lanes) {
        let x = T::load::<F::S>(from.add(k));
        most = F::S::max(F::S::abs(x), most);
        odd = F::S::fma(x, zero, odd);
    }
    if whole < terms {
        let x = load_part::<F::S, T>(from.add(whole), terms - whole, 0.0);
        most = F::S::max(F::S::abs(x), most);
        odd = F::S::fma(x, zero, odd);
    }
    let most = F::S::largest(most);
    let is_finite = !F::S::sum(odd).is_nan();
    let bytes = lanes * 4 / F::TERMS;
    let mut to = to;
    let mut left = 0;
    if is_finite && most >= SMALLEST {
        let factor = F::S::splat(127.0 / most);
        for k in (0..whole).step_by(lanes) {
            F::round(to, F::S::mul(T::load::<F::S>(from.add(k)), factor));
            to = to.add(bytes);
        }
        left = whole;
        if whole < terms {
            let x = load_part::<F::S, T>(from.add(whole), terms - whole, 0.0);
            F::round(to, F::S::mul(x, factor));
            to = to.add(bytes);
            left += lanes;
        }
    }
    for _ in (left..stored_terms(terms)).step_by(lanes) {
        F::round(to, zero);
        to = to.add(bytes);
    }
    match is_finite {
        true => most / 127.0,
        false => f32::NAN,
    }
}

/// Rows from `first` on, one after another.
#[inline(always)]
unsafe fn quantize_rows_body<F: Integers, T: Element>(
    of: &Product,
    first: usize,
    count: usize,
    to: LeftRoom,
    row: &mut Vec<f32>,
) {
    let size = stored_terms(of.terms) / F::TERMS;
    let (from, step) = (of.x.data.cast::<T>().cast_const(), of.x.step());
    for i in 0..count {
        let from = from.offset(of.x.row(first + i));
        let units = to.units.add(i * size);
        let scale = quantize::<F, T>(from, step, of.terms, row, units.cast());
        to.scales.add(i).write(scale);
        let mut sum = F::splat(0);
        for k in (0..if F::OFFSET == 0 { 0 } else { size }).step_by(F::S::LANES) {
            sum = F::dot(sum, offsets::<F>(), F::load(units.add(k)));
        }
        to.excess.add(i).write(F::sum(sum));
    }
}

in_form! {
    pub fn quantize_rows<T: Element>(
        of: &Product, first: usize, count: usize, to: LeftRoom, row: &mut Vec<f32>,
    ) = quantize_rows_body
}

/// Rows from `first` on, a multiple of a panel's height, in panels of all their units.
#[inline(always)]
unsafe fn quantize_panels_body<F: Integers, T: Element>(
    of: &Product,
    first: usize,
    count: usize,
    to: LeftRoom,
    rooms: &mut Rooms,
) {
    let size = stored_terms(of.terms) / F::TERMS;
    let used = of.terms.div_ceil(F::TERMS);
    let height = panels::tile_rows(F::S::LANES);
    let taken = room(&mut rooms.units, height * size);
    for start in (0..count).step_by(height) {
        let count = height.min(count - start);
        let own = LeftRoom {
            units: taken,
            scales: to.scales.add(start),
            excess: to.excess.add(start),
        };
        quantize_rows_body::<F, T>(of, first + start, count, own, &mut rooms.row);
        // Units are moved as what has their size.
        let rows = Matrix {
            data: taken.cast::<f32>().cast_const(),
            row: size as isize,
            column: 1,
        };
        let to = to.units.add(start * used).cast();
        panels::pack_rows::<F::S, Singles, f32>(rows, count, used, to);
    }
}

in_form! {
    pub fn quantize_panels<T: Element>(
        of: &Product, first: usize, count: usize, to: LeftRoom, rooms: &mut Rooms,
    ) = quantize_panels_body
}
