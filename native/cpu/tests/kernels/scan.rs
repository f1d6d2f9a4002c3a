use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::scan::{run, How};
use emlx_cpu::internals::{element::Element, simd::Level};
use emlx_cpu::{Scan, View};
use half::bf16;

const SCANS: [Scan; 3] = [Scan::Sum, Scan::Product, Scan::LogSum];

fn scanned<T: Element>(level: Level, how: &How, x: &Scattered<T>) -> Vec<T> {
    let size: i32 = x.shape.iter().product();
    let out = vec![T::narrow(f32::NAN); size as usize];
    let strides = in_rows(&x.shape);
    // SAFETY: of arrays of the test's own, which outlive it.
    let to = unsafe { View::of(out.as_ptr(), &x.shape, &strides) };
    // SAFETY: the views of arrays that live, both of one shape.
    unsafe { run::<T>(level, how, &x.view(), &to) };
    out
}

/// A line scanned in f64.
fn exact(how: &How, line: &[f64]) -> Vec<f64> {
    let mut line = line.to_vec();
    if how.is_reverse {
        line.reverse();
    }
    let join = |a: f64, b: f64| match how.scan {
        Scan::Sum => a + b,
        Scan::Product => a * b,
        Scan::LogSum => {
            let top = a.max(b);
            match top == f64::NEG_INFINITY {
                true => top,
                false => top + ((a - top).exp() + (b - top).exp()).ln(),
            }
        }
    };
    let mut state = match how.scan {
        Scan::Sum => 0.0,
        Scan::Product => 1.0,
        Scan::LogSum => f64::NEG_INFINITY,
    };
    for x in &mut line {
        let next = join(state, *x);
        *x = if how.is_inclusive { next } else { state };
        state = next;
    }
    if how.is_reverse {
        line.reverse();
    }
    line
}

fn check<T: Element>(seed: u64, shape: &[i32], axis: usize, unit: f64) {
    let mut dice = Dice::new(seed);
    let number = |dice: &mut Dice| 1.0 + (dice.below(2000) as f32 - 1000.0) / 1e5;
    let x = Scattered::<T>::new(&mut dice, shape, number);
    let mut lines: std::collections::BTreeMap<Vec<usize>, Vec<f64>> = Default::default();
    x.each(|place, number| {
        let mut place = place.to_vec();
        place[axis] = 0;
        lines.entry(place).or_default().push(number);
    });
    let inner: usize = shape[axis + 1..].iter().map(|n| *n as usize).product();
    let count = shape[axis] as usize;
    for scan in SCANS {
        let how = How {
            scan,
            axis,
            is_reverse: dice.below(2) == 0,
            is_inclusive: dice.below(2) == 0,
            is_pair: false,
        };
        let want: Vec<_> = lines.values().map(|line| exact(&how, line)).collect();
        for level in Level::all() {
            for (n, got) in scanned(level, &how, &x).iter().enumerate() {
                let line = n / (inner * count) * inner + n % inner;
                let want = want[line][n / inner % count];
                let got = f64::from(got.widen());
                assert!(
                    got == want || (got - want).abs() <= unit * want.abs() + 1e-7,
                    "seed {seed}: {level:?} {scan:?} of {shape:?} {:?} along {axis} at {n}: {got}, not {want}",
                    x.strides
                );
            }
        }
    }
}

#[test]
fn scans_are_right_whatever_the_axis_and_the_layout() {
    let sizes = [1, 2, 3, 5, 7, 8, 9, 16, 17, 33, 130];
    for seed in 0..100 {
        let mut dice = Dice::new(seed + 1000);
        let rank = 1 + dice.below(4);
        let shape: Vec<i32> = (0..rank).map(|_| sizes[dice.below(11)]).collect();
        if shape.iter().product::<i32>() > 20_000 {
            continue;
        }
        let axis = dice.below(rank);
        check::<f32>(seed, &shape, axis, 1.3e-7);
        check::<bf16>(seed, &shape, axis, 4e-3);
    }
}

#[test]
fn long_scans_are_right_too() {
    for (seed, shape) in [
        [200_003, 1],
        [1, 200_003],
        [3, 140_001],
        [140_001, 3],
        [300, 700],
    ]
    .iter()
    .enumerate()
    {
        for axis in 0..2 {
            check::<f32>(seed as u64, shape, axis, 1.3e-7);
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let cases = [
        (Scan::Sum, [-0.0, 1.0, inf, -inf], [-0.0, 1.0, inf, nan]),
        (
            Scan::LogSum,
            [-inf, -inf, 2.0, -inf],
            [-inf, -inf, 2.0, 2.0],
        ),
        (Scan::LogSum, [1.0, inf, inf, 0.0], [1.0, inf, inf, inf]),
        (Scan::LogSum, [1.0, nan, inf, 0.0], [1.0, nan, nan, nan]),
    ];
    for level in Level::all() {
        for (scan, x, want) in &cases {
            let how = How {
                scan: *scan,
                axis: 0,
                is_reverse: false,
                is_inclusive: true,
                is_pair: false,
            };
            let got = scanned(level, &how, &Scattered::in_rows(x.to_vec(), &[4]));
            for (got, want) in got.iter().zip(want) {
                let is_same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(is_same, "{level:?} {scan:?} of {x:?} has {got}, not {want}");
            }
        }
    }
}

#[test]
fn a_million_tenths_are_counted_to_the_end() {
    for shape in [&[1_000_000][..], &[1_000_000, 9]] {
        let size: i32 = shape.iter().product();
        let x = Scattered::in_rows(vec![0.1f32; size as usize], shape);
        for level in Level::all() {
            let how = How {
                scan: Scan::Sum,
                axis: 0,
                is_reverse: false,
                is_inclusive: true,
                is_pair: false,
            };
            let last = *scanned(level, &how, &x).last().expect("a million");
            assert!((last - 100_000.0).abs() < 0.1, "{level:?}: {last}");
        }
    }
}
