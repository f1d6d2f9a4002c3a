//! Sliding windows in every form that the machine has, against one window after another.

use crate::support::{each_place, in_rows, Dice, Scattered};
use emlx_cpu::internals::{simd::Level, windows};
use emlx_cpu::{Choice, Type, View, WindowTotal as Total, Windows};

/// Windows over an array, and how many there are along each axis.
struct Case {
    windows: Windows,
    shape: Vec<i32>,
    out: Vec<i32>,
}

impl Case {
    fn random(dice: &mut Dice, most_low: usize) -> Option<Case> {
        let rank = 1 + dice.below(4);
        let mut list = |low: i32, count: usize| -> Vec<i32> {
            (0..rank).map(|_| low + dice.below(count) as i32).collect()
        };
        let shape = list(1, [70, 20, 9, 6][rank - 1]);
        let (sizes, strides, dilation) = (list(1, 3), list(1, 3), list(1, 2));
        let (low, high) = (list(-1, most_low), list(-1, most_low));
        let mut out = Vec::new();
        for i in 0..rank {
            let room = shape[i] + low[i] + high[i] - (sizes[i] - 1) * dilation[i] - 1;
            out.push(room.div_euclid(strides[i]) + 1);
        }
        let windows = Windows {
            sizes: sizes.into(),
            strides: strides.into(),
            low: low.into(),
            dilation: dilation.into(),
        };
        out.iter().all(|size| *size > 0).then_some(Case {
            windows,
            shape,
            out,
        })
    }

    /// The elements of the window at a place; None where there is padding.
    fn elements(&self, place: &[i64]) -> Vec<Option<Vec<i64>>> {
        let taps = each_place(&self.windows.sizes);
        let element = |tap: &Vec<i64>| {
            let along = |i: usize| {
                let first = place[i] * i64::from(self.windows.strides[i]);
                let at = first + tap[i] * i64::from(self.windows.dilation[i])
                    - i64::from(self.windows.low[i]);
                (0..i64::from(self.shape[i])).contains(&at).then_some(at)
            };
            (0..place.len()).map(along).collect()
        };
        taps.iter().map(element).collect()
    }
}

fn view<T>(data: &[T], shape: &[i32], strides: &[i64]) -> View {
    // SAFETY: of arrays of the test's own, which outlive it.
    unsafe { View::of(data.as_ptr(), shape, strides) }
}

macro_rules! numbers {
    ($t:ty, $dice:expr, $shape:expr) => {
        Scattered::of($dice, $shape, |dice: &mut Dice| match dice.below(60) {
            0 => (0.0 / (dice.below(2) as f64)) as $t,
            1 => f64::NEG_INFINITY as $t,
            _ => (dice.below(6) as i64 - 2) as $t,
        })
    };
}

macro_rules! totals {
    ($dice:ident, $case:ident, $($t:ty, $of:ident, |$a:ident, $b:ident| $sum:expr, $product:expr;)+) => { $({
        let x = numbers!($t, $dice, &$case.shape);
        let strides = in_rows(&$case.out);
        let larger = |a: $t, b: $t| if a > b || a != a { a } else { b };
        let smaller = |a: $t, b: $t| if a < b || a != a { a } else { b };
        #[allow(clippy::type_complexity)]
        let totals: [(Total, Option<$t>, &dyn Fn($t, $t) -> $t); 4] = [
            (Total::Sum, Some(0 as $t), &|$a, $b| $sum),
            (Total::Product, Some(1 as $t), &|$a, $b| $product),
            (Total::Max, None, &larger),
            (Total::Min, None, &smaller),
        ];
        for level in Level::all() {
            for (total, none, join) in totals {
                let out = vec![9 as $t; $case.out.iter().product::<i32>() as usize];
                let to = view(&out, &$case.out, &strides);
                // SAFETY: arrays of these shapes.
                unsafe { windows::run(level, Type::$of, total, &$case.windows, &x.view(), &to) };
                for (got, place) in out.iter().zip(each_place(&$case.out)) {
                    let own = $case.elements(&place).into_iter().flatten();
                    let want = own.map(|at| x.at(&at)).reduce(join).or(none);
                    // A window of padding alone has a limit of the type.
                    let is_same = want.is_none_or(|want| *got == want || want != want && got != got);
                    assert!(is_same, "{level:?} {total:?} {:?} {:?} at {place:?}: {got}, not {want:?}",
                        $case.windows, $case.shape);
                }
            }
        }
    })+ };
}

#[test]
#[allow(clippy::eq_op)]
fn windows_are_reduced_whatever_their_sizes_steps_and_paddings() {
    let dice = &mut Dice::new(31);
    for _ in 0..150 {
        let Some(case) = Case::random(dice, 4) else {
            continue;
        };
        totals! { dice, case,
            f32, F32, |a, b| a + b, a * b;
            f64, F64, |a, b| a + b, a * b;
            u8, U8, |a, b| a.wrapping_add(b), a.wrapping_mul(b);
            i16, S16, |a, b| a.wrapping_add(b), a.wrapping_mul(b);
            u32, U32, |a, b| a.wrapping_add(b), a.wrapping_mul(b);
            i64, S64, |a, b| a.wrapping_add(b), a.wrapping_mul(b);
        }
    }
}

macro_rules! scatters {
    ($dice:ident, $case:ident, $($t:ty, $of:ident, |$a:ident, $b:ident| $sum:expr;)+) => { $({
        let x = numbers!($t, $dice, &$case.shape);
        let source = Scattered::of($dice, &$case.out, |dice: &mut Dice| dice.below(9) as $t);
        let init = [$dice.below(4) as $t];
        let strides = in_rows(&$case.shape);
        let numbers = (0..8).map(|i| (i & 1 == 0, i & 2 == 0, i & 4 == 0));
        for (is_max, is_last, is_padding_chosen) in numbers {
            let choice = Choice { is_max, is_last, is_padding_chosen };
            let mut want = vec![init[0]; $case.shape.iter().product::<i32>() as usize];
            for place in each_place(&$case.out) {
                let mut best: Option<($t, Option<Vec<i64>>)> = None;
                for at in $case.elements(&place) {
                    let number = match &at {
                        Some(at) => x.at(at),
                        None if is_padding_chosen => init[0],
                        None => continue,
                    };
                    let is_better = best.as_ref().is_none_or(|(than, _)| {
                        let before = if is_max { number > *than } else { number < *than };
                        let nan = (number != number, *than != *than);
                        match nan {
                            (true, other) => is_last || !other,
                            (false, other) => !other && (before || is_last && number == *than),
                        }
                    });
                    if is_better {
                        best = Some((number, at));
                    }
                }
                if let Some((_, Some(at))) = best {
                    let to: i64 = at.iter().zip(&strides).map(|(i, step)| i * step).sum();
                    let ($a, $b) = (want[to as usize], source.at(&place));
                    want[to as usize] = $sum;
                }
            }
            for level in Level::all() {
                let out = vec![9 as $t; want.len()];
                let one = view(&init, &[], &[]);
                let inputs = [x.view(), source.view(), one];
                let to = view(&out, &$case.shape, &strides);
                // SAFETY: arrays of these shapes.
                unsafe { windows::scatter(level, Type::$of, choice, &$case.windows, &inputs, &to) };
                assert_eq!(out, want, "{level:?} {choice:?} {:?} {:?}", $case.windows, $case.shape);
            }
        }
    })+ };
}

#[test]
#[allow(clippy::eq_op)]
fn sources_go_where_their_windows_have_their_extremes() {
    let dice = &mut Dice::new(37);
    for _ in 0..150 {
        let Some(mut case) = Case::random(dice, 3) else {
            continue;
        };
        case.windows.dilation.fill(1);
        for (i, size) in case.out.iter_mut().enumerate() {
            *size = (*size)
                .min((case.shape[i] + 1 - case.windows.sizes[i]) / case.windows.strides[i] + 1);
        }
        if case.out.iter().any(|size| *size < 1) {
            continue;
        }
        scatters! { dice, case,
            f32, F32, |a, b| a + b;
            f64, F64, |a, b| a + b;
            u8, U8, |a, b| a.wrapping_add(b);
            i32, S32, |a, b| a.wrapping_add(b);
        }
    }
}

#[test]
fn many_sources_at_one_place_do_not_drift() {
    let (count, size) = ([3000], [5999]);
    let mut x = vec![0f32; 5999];
    x[2999] = 1.0;
    let (sources, init) = (vec![0.1f32; 3000], [0f32]);
    let windows = Windows {
        sizes: [3000].into_iter().collect(),
        strides: [1].into_iter().collect(),
        low: [0].into_iter().collect(),
        dilation: [1].into_iter().collect(),
    };
    let choice = Choice {
        is_max: true,
        is_last: false,
        is_padding_chosen: false,
    };
    let inputs = [
        view(&x, &size, &[1]),
        view(&sources, &count, &[1]),
        view(&init, &[], &[]),
    ];
    for level in Level::all() {
        let out = vec![0f32; 5999];
        let to = view(&out, &size, &[1]);
        // SAFETY: arrays of these shapes.
        unsafe { windows::scatter(level, Type::F32, choice, &windows, &inputs, &to) };
        assert_eq!(out[2999], (f64::from(0.1f32) * 3000.0) as f32, "{level:?}");
    }
}
