//! Products of integers and convolutions in every form that the machine has, against sums over all terms.

use crate::support::{each_place, in_rows, Dice, Scattered};
use emlx_cpu::internals::{conv, element::Element, integers, simd::Level};
use emlx_cpu::{Conv, Type, View};
use half::{bf16, f16};
use smallvec::SmallVec;

/// A view of an array in rows, whose strides outlive it.
fn rows<'a, T>(data: &'a [T], shape: &'a [i32], strides: &'a [i64]) -> View {
    // SAFETY: of arrays of the test's own, which outlive it.
    unsafe { View::of(data.as_ptr(), shape, strides) }
}

macro_rules! integer_products {
    ($dice:ident, $shapes:expr, $($t:ty, $of:ident;)+) => {
        for (batch_a, batch_b, [n, k, m]) in $shapes { $({
            let number = |dice: &mut Dice| (dice.below(1 << 30) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) as $t;
            let a = Scattered::of($dice, &[&batch_a[..], &[n, k]].concat(), number);
            let b = Scattered::of($dice, &[&batch_b[..], &[k, m]].concat(), number);
            let batch: Vec<i32> = batch_a.iter().zip(&batch_b).map(|(a, b)| *a.max(b)).collect();
            let shape = [&batch[..], &[n, m]].concat();
            let strides = in_rows(&shape);
            for level in Level::all() {
                let out = vec![7 as $t; shape.iter().product::<i32>() as usize];
                let view = rows(&out, &shape, &strides);
                // SAFETY: arrays of these shapes.
                unsafe { integers::run(level, Type::$of, &a.view(), &b.view(), &view) };
                for (got, place) in out.iter().zip(each_place(&shape)) {
                    let (at, [i, j]) = (&place[..batch.len()], [place[batch.len()], place[batch.len() + 1]]);
                    let within = |sizes: &[i32]| -> Vec<i64> {
                        at.iter().zip(sizes).map(|(i, size)| (*i).min(i64::from(*size) - 1)).collect()
                    };
                    let want = (0..i64::from(k)).fold(0 as $t, |sum, k| {
                        let x = a.at(&[within(&batch_a), vec![i, k]].concat());
                        let y = b.at(&[within(&batch_b), vec![k, j]].concat());
                        sum.wrapping_add(x.wrapping_mul(y))
                    });
                    assert_eq!(*got, want, "{level:?} {:?} {shape:?} of {k} terms at {place:?}", Type::$of);
                }
            }
        })+ }
    };
}

#[test]
fn products_of_integers_wrap_round_in_every_type_and_layout() {
    let dice = &mut Dice::new(11);
    let mut shapes = vec![
        (vec![], vec![], [13, 400, 70]),
        (vec![], vec![], [30, 33, 3]),
        (vec![3], vec![1], [5, 17, 40]),
        (vec![1, 4], vec![3, 1], [6, 9, 7]),
    ];
    for _ in 0..12 {
        let sizes = [0, 1, 2].map(|_| 1 + dice.below(40) as i32);
        shapes.push((vec![], vec![], sizes));
    }
    integer_products! { dice, shapes.clone(),
        u8, U8; u16, U16; u32, U32; u64, U64; i8, S8; i16, S16; i32, S32; i64, S64;
    }
}

#[test]
fn products_of_integers_are_shared_out_by_rows_and_columns() {
    let dice = &mut Dice::new(12);
    let shapes = [
        (vec![], vec![], [230, 60, 300]),
        (vec![], vec![], [700, 50, 20]),
        (vec![], vec![], [2, 300, 900]),
    ];
    integer_products! { dice, shapes.clone(), i32, S32; u8, U8; }
}

#[test]
fn a_product_of_booleans_is_whether_any_term_is_true() {
    let dice = &mut Dice::new(13);
    for [n, k, m] in [[9, 30, 20], [2, 70_000, 6], [6, 70_000, 5], [3, 1, 40]] {
        let number = |dice: &mut Dice| u8::from(dice.below(4) == 0) * 3;
        let (a, mut b) = (
            Scattered::of(dice, &[n, k], number),
            Scattered::of(dice, &[k, m], number),
        );
        if k > 1000 {
            // As many true terms as 16 bits cannot count.
            b.data.fill(1);
        }
        let (shape, strides) = ([n, m], in_rows(&[n, m]));
        for level in Level::all() {
            let out = vec![7u8; (n * m) as usize];
            // SAFETY: arrays of these shapes.
            unsafe {
                integers::run(
                    level,
                    Type::Bool,
                    &a.view(),
                    &b.view(),
                    &rows(&out, &shape, &strides),
                )
            };
            for (got, place) in out.iter().zip(each_place(&shape)) {
                let is_true = |k| a.at(&[place[0], k]) != 0 && b.at(&[k, place[1]]) != 0;
                let want = u8::from((0..i64::from(k)).any(is_true));
                assert_eq!(*got, want, "{level:?} {n} × {k} × {m} at {place:?}");
            }
        }
    }
}

/// A convolution, with the size of the result.
struct Case {
    conv: Conv,
    input: Vec<i32>,
    weight: Vec<i32>,
    out: Vec<i32>,
}

impl Case {
    fn random(dice: &mut Dice) -> Option<Case> {
        let space = 1 + dice.below(3);
        let most = [40, 14, 7][space - 1];
        let mut list = |low: i32, count: usize| -> Vec<i32> {
            (0..space).map(|_| low + dice.below(count) as i32).collect()
        };
        let (sizes, kernel) = (list(1, most), list(1, 5));
        let (stride, dilations) = (list(1, 3), [list(1, 3), list(1, 3)]);
        let paddings = [list(-2, 6), list(-2, 6)];
        let groups = [1, 1, 2, 3, 20][dice.below(5)];
        let inside = 1 + dice.below(5) as i32;
        let outside = 1 + dice.below(if groups == 1 { 40 } else { 12 }) as i32;
        let batch = 1 + dice.below(3) as i32;
        Case::new(
            &[&[batch], &sizes[..], &[inside * groups]].concat(),
            &[&[outside * groups], &kernel[..], &[inside]].concat(),
            [
                &stride,
                &paddings[0],
                &paddings[1],
                &dilations[0],
                &dilations[1],
            ],
            (groups, dice.below(2) == 0),
        )
    }

    /// The lists are strides, padding before and behind, and the dilations of kernel and input.
    fn new(
        input: &[i32],
        weight: &[i32],
        [stride, low, high, of_kernel, of_input]: [&[i32]; 5],
        (groups, is_flipped): (i32, bool),
    ) -> Option<Case> {
        let space = stride.len();
        let mut out = vec![input[0]];
        for i in 0..space {
            let size = (input[i + 1] - 1) * of_input[i] + 1 + low[i] + high[i];
            let reach = (weight[i + 1] - 1) * of_kernel[i] + 1;
            out.push((size - reach).div_euclid(stride[i]) + 1);
        }
        out.push(weight[0]);
        let conv = Conv {
            stride: stride.into(),
            low: low.into(),
            kernel_dilation: of_kernel.into(),
            input_dilation: of_input.into(),
            groups,
            is_flipped,
        };
        let case = Case {
            conv,
            input: input.into(),
            weight: weight.into(),
            out,
        };
        case.out.iter().all(|size| *size > 0).then_some(case)
    }

    /// `allowed` is how far a sum of one term may be off, and others grow by the root of their number.
    fn check<T: Element>(&self, dice: &mut Dice, allowed: f64) {
        let terms: i32 = self.weight[1..].iter().product();
        let allowed = allowed * f64::from(terms).sqrt();
        let number = |dice: &mut Dice| dice.below(2001) as f32 / 1000.0 - 1.0;
        let a = Scattered::<T>::new(dice, &self.input, number);
        let weight = Scattered::<T>::new(dice, &self.weight, number);
        let strides = in_rows(&self.out);
        let want = self.sums(&a, &weight);
        for level in Level::all() {
            let out = vec![T::narrow(f32::NAN); want.len()];
            let view = rows(&out, &self.out, &strides);
            // SAFETY: arrays of these shapes.
            unsafe { conv::run::<T>(level, &self.conv, &a.view(), &weight.view(), &view) };
            for (i, (got, want)) in out.iter().zip(&want).enumerate() {
                let off = (f64::from(got.widen()) - want).abs();
                assert!(
                    off <= allowed * want.abs().max(1.0),
                    "{level:?} {:?} of {:?} with {:?}, number {i}: {}, not {want}",
                    self.conv,
                    self.input,
                    self.weight,
                    got.widen()
                );
            }
        }
    }

    /// In f64, in row-major order.
    fn sums<T: Element>(&self, a: &Scattered<T>, weight: &Scattered<T>) -> Vec<f64> {
        let (conv, space) = (&self.conv, self.out.len() - 2);
        let inside = i64::from(self.weight[space + 1]);
        let outside = i64::from(self.weight[0] / conv.groups);
        let taps = each_place(&self.weight[1..=space]);
        let sum = |place: &Vec<i64>| {
            let filter = place[space + 1];
            let mut sum = 0.0;
            for tap in &taps {
                let mut at: SmallVec<[i64; 5]> = SmallVec::from_slice(&[place[0]]);
                let mut of: SmallVec<[i64; 5]> = SmallVec::from_slice(&[filter]);
                for i in 0..space {
                    let step = i64::from(conv.input_dilation[i]);
                    let x = place[i + 1] * i64::from(conv.stride[i]) - i64::from(conv.low[i])
                        + tap[i] * i64::from(conv.kernel_dilation[i]);
                    if x % step != 0 || x < 0 || x / step >= i64::from(self.input[i + 1]) {
                        break;
                    }
                    at.push(x / step);
                    of.push(match conv.is_flipped {
                        true => i64::from(self.weight[i + 1]) - 1 - tap[i],
                        false => tap[i],
                    });
                }
                if at.len() <= space {
                    continue;
                }
                for channel in 0..inside {
                    let own = filter / outside * inside + channel;
                    let x = a.at(&[&at[..], &[own]].concat()).widen();
                    let y = weight.at(&[&of[..], &[channel]].concat()).widen();
                    sum += f64::from(x) * f64::from(y);
                }
            }
            sum
        };
        each_place(&self.out).iter().map(sum).collect()
    }
}

#[test]
fn convolutions_of_any_sizes_steps_paddings_and_groups() {
    let mut dice = Dice::new(17);
    let mut count = 0;
    while count < 200 {
        if let Some(case) = Case::random(&mut dice) {
            case.check::<f32>(&mut dice, 1e-6);
            count += 1;
        }
    }
    while count < 220 {
        if let Some(case) = Case::random(&mut dice) {
            case.check::<bf16>(&mut dice, 4e-3);
            case.check::<f16>(&mut dice, 1e-3);
            count += 1;
        }
    }
}

const ONES: &[i32] = &[1, 1];
const NONE: &[i32] = &[0, 0];

#[test]
fn convolutions_are_cut_into_blocks_and_their_terms_shared_out() {
    let mut dice = Dice::new(19);
    let plain = [ONES, ONES, ONES, ONES, ONES];
    let valid = [ONES, NONE, NONE, ONES, ONES];
    for (input, weight, steps, groups) in [
        // Several blocks of places, several of channels.
        ([3, 40, 37, 33], [40, 3, 3, 33], plain, 1),
        ([1, 12, 13, 700], [21, 3, 3, 700], plain, 1),
        // As a gradient by the kernel: few places, many taps, more terms than f32 adds up.
        ([5, 30, 31, 9], [33, 28, 29, 9], valid, 1),
        ([1, 60, 61, 9], [17, 58, 59, 9], valid, 1),
        ([1, 40, 41, 6], [6, 38, 39, 1], valid, 6),
        // Groups of few channels and of many.
        ([2, 20, 21, 70], [70, 3, 3, 1], plain, 70),
        ([2, 17, 15, 48], [96, 3, 3, 4], plain, 12),
        ([2, 17, 15, 48], [30, 3, 3, 24], plain, 2),
    ] {
        let case = Case::new(&input, &weight, steps, (groups, false));
        case.expect("it fits").check::<f32>(&mut dice, 1e-6);
    }
}

#[test]
fn places_that_meet_nothing_of_a_dilated_input_are_zero() {
    let mut dice = Dice::new(23);
    let three = &[3, 3];
    let case = Case::new(
        &[1, 5, 6, 2],
        &[4, 1, 2, 2],
        [ONES, NONE, NONE, ONES, three],
        (1, false),
    );
    case.expect("it fits").check::<f32>(&mut dice, 1e-6);
}
