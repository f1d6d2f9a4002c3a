use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::{element::Element, reduce::run, simd::Level};
use emlx_cpu::{Reduction, View};
use half::{bf16, f16};

/// What the numbers of a result come to in f64, and how far off their sum may be.
fn exact(reduction: Reduction, xs: &[f64], unit: f64) -> (f64, f64) {
    let n = xs.len() as f64;
    let sum = |xs: &mut dyn Iterator<Item = f64>| xs.sum::<f64>();
    let mean = sum(&mut xs.iter().copied()) / n;
    let sizes = sum(&mut xs.iter().map(|x| x.abs()));
    let squares = sum(&mut xs.iter().map(|x| (x - mean) * (x - mean)));
    let top = xs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    // Three additions of f32, a deviation that is rounded, an exponential within two units.
    let (want, slack) = match reduction {
        Reduction::Sum => (mean * n, 2e-7 * sizes),
        Reduction::Mean => (mean, 2e-7 * sizes / n),
        Reduction::Product => (xs.iter().product(), 0.0),
        Reduction::Variance { ddof } => {
            let variance = squares / (n - f64::from(ddof)).max(0.0);
            (variance, 1e-6 * variance)
        }
        Reduction::Deviation { ddof } => {
            let deviation = (squares / (n - f64::from(ddof)).max(0.0)).sqrt();
            (deviation, 1e-6 * deviation)
        }
        Reduction::LogSum => {
            let sum = sum(&mut xs.iter().map(|x| (x - top).exp()));
            (top + sum.ln(), 1e-6)
        }
    };
    // Half of the smallest number of f16.
    (want, slack + want.abs() * unit + 3e-8)
}

const REDUCTIONS: [Reduction; 8] = [
    Reduction::Sum,
    Reduction::Mean,
    Reduction::Product,
    Reduction::Variance { ddof: 0 },
    Reduction::Variance { ddof: 1 },
    Reduction::Deviation { ddof: 0 },
    Reduction::Deviation { ddof: 2 },
    Reduction::LogSum,
];

fn reduced<T: Element>(
    level: Level,
    reduction: Reduction,
    axes: &[u8],
    x: &Scattered<T>,
) -> Vec<T> {
    let kept = x.shape.iter().enumerate();
    let shape: Vec<i32> = kept
        .map(|(i, size)| if axes.contains(&(i as u8)) { 1 } else { *size })
        .collect();
    let size: i32 = shape.iter().product();
    let out = vec![T::narrow(f32::NAN); size as usize];
    let strides = in_rows(&shape);
    // SAFETY: of arrays of the test's own, which outlive it.
    let to = unsafe { View::of(out.as_ptr(), &shape, &strides) };
    // SAFETY: the views of arrays that live, of which `out` is as large as the result.
    unsafe { run::<T>(level, reduction, axes, false, &x.view(), &to) };
    out
}

fn check<T: Element>(seed: u64, shape: &[i32], axes: &[u8], unit: f64) {
    let mut dice = Dice::new(seed);
    let offset = [0.0, 0.0, 1000.0, -30.0][dice.below(4)];
    let number = |dice: &mut Dice| (dice.below(2000) as f32 - 1000.0) / 500.0 + offset;
    // Products stay within the range of 16 bits.
    let near_one = |dice: &mut Dice| 1.0 + (dice.below(100) as f32 - 50.0) / 1e4;
    let x = Scattered::<T>::new(&mut dice, shape, number);
    let factors = Scattered::<T>::new(&mut dice, shape, near_one);
    for reduction in REDUCTIONS {
        let x = match reduction {
            Reduction::Product => &factors,
            _ => &x,
        };
        let mut parts: std::collections::BTreeMap<Vec<usize>, Vec<f64>> = Default::default();
        x.each(|place, number| {
            let mut place = place.to_vec();
            axes.iter().for_each(|axis| place[*axis as usize] = 0);
            parts.entry(place).or_default().push(number);
        });
        let want: Vec<_> = parts
            .values()
            .map(|xs| exact(reduction, xs, unit))
            .collect();
        for level in Level::all() {
            let out = reduced(level, reduction, axes, x);
            assert_eq!(out.len(), want.len());
            for (i, (got, (want, slack))) in out.iter().zip(&want).enumerate() {
                let got = f64::from(got.widen());
                let is_near = (got - want).abs() <= *slack
                    || got.is_nan() && want.is_nan()
                    || got.is_infinite() && want.abs() > 65_000.0;
                assert!(
                    is_near,
                    "seed {seed}: {level:?} {reduction:?} of {shape:?} {:?} over {axes:?} at {i}: \
                     {got}, not {want}",
                    x.strides
                );
            }
        }
    }
}

#[test]
fn reductions_are_right_whatever_the_axes_and_the_layout() {
    let sizes = [1, 1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 33, 64, 65, 130];
    for seed in 0..300 {
        let mut dice = Dice::new(seed + 1000);
        let rank = dice.below(6);
        let mut shape: Vec<i32> = (0..rank).map(|_| sizes[dice.below(15)]).collect();
        while shape.iter().product::<i32>() > 20_000 {
            let largest = (0..rank).max_by_key(|i| shape[*i]).unwrap_or(0);
            shape[largest] = 1 + shape[largest] / 4;
        }
        let axes: Vec<u8> = (0..rank as u8).filter(|_| dice.below(2) == 0).collect();
        check::<f32>(seed, &shape, &axes, 6e-8);
        check::<bf16>(seed, &shape, &axes, 4e-3);
        check::<f16>(seed, &shape, &axes, 5e-4);
    }
}

#[test]
fn long_reductions_are_right_in_rows_and_in_columns() {
    for (seed, shape) in [
        [1, 70_003],
        [70_003, 1],
        [3, 30_001],
        [30_001, 3],
        [9_000, 17],
        [17, 9_000],
        [300, 300],
    ]
    .iter()
    .enumerate()
    {
        for axes in [&[0][..], &[1], &[0, 1]] {
            check::<f32>(seed as u64, shape, axes, 6e-8);
        }
    }
}

fn ones<T: Element>(shape: &[i32], x: f32) -> Scattered<T> {
    let size = shape.iter().product::<i32>() as usize;
    Scattered::in_rows(vec![T::narrow(x); size], shape)
}

#[test]
fn sums_of_a_million_tenths_are_right_to_the_last_place() {
    for level in Level::all() {
        for (shape, axes) in [
            ([1, 1_000_000], [1]),
            ([1_000_000, 1], [0]),
            ([1_000_000, 3], [0]),
        ] {
            let sums = reduced(level, Reduction::Sum, &axes, &ones::<f32>(&shape, 0.1));
            let want = (f64::from(0.1f32) * 1e6) as f32;
            assert!(sums.iter().all(|sum| (sum - want).abs() < 0.02), "{sums:?}");
        }
        let mean = reduced(level, Reduction::Mean, &[0], &ones::<f16>(&[70_000], 0.5));
        assert_eq!(mean[0].to_f32(), 0.5);
        let sum = reduced(level, Reduction::Sum, &[0], &ones::<bf16>(&[1_000], 1.0));
        assert_eq!(sum[0].to_f32(), 1_000.0);
    }
}

#[test]
fn a_batch_is_reduced_as_its_rows_are() {
    let mut dice = Dice::new(5);
    let numbers: Vec<f32> = (0..70 * 40_000)
        .map(|_| dice.below(2_000_003) as f32 / 1e3)
        .collect();
    let batch = Scattered::in_rows(numbers.clone(), &[70, 40_000]);
    for level in Level::all() {
        for reduction in REDUCTIONS {
            let all = reduced(level, reduction, &[1], &batch);
            for (row, got) in numbers.chunks(40_000).zip(&all) {
                let row = Scattered::in_rows(row.to_vec(), &[1, 40_000]);
                let one = reduced(level, reduction, &[1], &row);
                assert_eq!(got.to_bits(), one[0].to_bits(), "{level:?} {reduction:?}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let log = |xs: &[f32]| {
        let mut at_end = vec![-inf; 100];
        at_end[..xs.len()].copy_from_slice(xs);
        at_end
    };
    let cases: [(Reduction, Vec<f32>, f32); 10] = [
        (Reduction::Sum, vec![1.0, inf, 2.0], inf),
        (Reduction::Sum, vec![inf, -inf, 2.0], nan),
        (Reduction::Mean, vec![1.0, nan, 2.0], nan),
        (Reduction::Product, vec![0.0, inf], nan),
        (Reduction::Variance { ddof: 0 }, vec![1.0, inf, 2.0], nan),
        (Reduction::Variance { ddof: 1 }, vec![3.0], nan),
        (Reduction::LogSum, log(&[-inf]), -inf),
        (Reduction::LogSum, log(&[1.0, inf, -inf]), inf),
        (Reduction::LogSum, log(&[inf, nan, 0.0]), nan),
        (Reduction::LogSum, log(&[f32::MAX, 1.0]), f32::MAX),
    ];
    for level in Level::all() {
        for (reduction, xs, want) in &cases {
            let count = xs.len() as i32;
            let row = Scattered::in_rows(xs.clone(), &[1, count]);
            // Beside twenty columns of others.
            let rows = xs
                .iter()
                .flat_map(|x| (0..20).map(move |i| if i == 7 { *x } else { 1.0 }));
            let column = Scattered::in_rows(rows.collect::<Vec<f32>>(), &[count, 20]);
            let got = [
                reduced(level, *reduction, &[1], &row)[0],
                reduced(level, *reduction, &[0], &column)[7],
            ];
            for got in got {
                let is_same = got == *want || got.is_nan() && want.is_nan();
                assert!(
                    is_same,
                    "{level:?} {reduction:?} of {xs:?} is {got}, not {want}"
                );
            }
        }
    }
}

#[test]
fn complex_numbers_are_summed_by_their_parts() {
    let numbers: Vec<f32> = (0..2 * 5 * 1001).map(|i| i as f32 / 8.0).collect();
    let (shape, strides) = ([5, 1001], in_rows(&[5, 1001]));
    // SAFETY: of arrays of the test's own, which outlive it.
    let x = unsafe { View::of(numbers.as_ptr(), &shape, &strides) };
    for level in Level::all() {
        for axis in [0, 1] {
            let kept = shape[1 - axis] as usize;
            let mut shape = shape;
            shape[axis] = 1;
            let out = vec![0f32; 2 * kept];
            let strides = in_rows(&shape);
            // SAFETY: of arrays of the test's own, which outlive it.
            let to = unsafe { View::of(out.as_ptr(), &shape, &strides) };
            // SAFETY: views of arrays that live, of which `out` is as large as the result.
            unsafe { run::<f32>(level, Reduction::Sum, &[axis as u8], true, &x, &to) };
            for (i, got) in out.iter().enumerate() {
                let mut want = 0.0;
                for (n, number) in numbers.iter().enumerate() {
                    let place = [n / 2 / 1001, n / 2 % 1001];
                    if place[1 - axis] == i / 2 && n % 2 == i % 2 {
                        want += f64::from(*number);
                    }
                }
                let got = f64::from(*got);
                assert!(
                    (got - want).abs() <= 1e-7 * want.abs(),
                    "{level:?}: {got}, not {want}"
                );
            }
        }
    }
}
