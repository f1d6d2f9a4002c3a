//! Matrix products in every form that the machine has, against f64: sizes on either side of tiles, panels and blocks and
//! all layouts.

use crate::support::{each_place, in_rows, noise, Dice, Scattered};
use emlx_cpu::internals::gemm::{self, Matrix};
use emlx_cpu::internals::{attention, element::Element, product, simd::Level};
use emlx_cpu::{Mask, View};
use half::{bf16, f16};

fn products_of<T: Element>(exact: fn(f32) -> f32, allowed: f64) {
    let few = (1..=9).flat_map(|rows| [(rows, 77, 1037), (rows, 16, 64), (rows, 3, 5)]);
    let sizes = [
        (1, 1, 1),
        (13, 37, 45),
        (12, 385, 32),
        (97, 5, 33),
        (200, 770, 300),
        (64, 64, 64),
    ];
    for level in Level::all() {
        for (rows, terms, columns) in few.clone().chain(sizes) {
            let narrow = |xs: Vec<f32>| xs.into_iter().map(T::narrow).collect::<Vec<T>>();
            let a = narrow(noise(rows * terms, 3));
            let b = narrow(noise(terms * columns, 4));
            // Each once in rows, once in columns; b also with every other column left out.
            for (left_turned, right_turned, step) in [
                (false, false, 1),
                (false, true, 1),
                (true, false, 1),
                (true, true, 1),
                (false, false, 2),
            ] {
                let columns = columns.div_ceil(step);
                let matrix = |data: &Vec<T>, turned: bool, rows: usize, columns: usize| Matrix {
                    data: data.as_ptr(),
                    row: if turned { 1 } else { columns as isize },
                    column: if turned { rows as isize } else { 1 },
                };
                let left = matrix(&a, left_turned, rows, terms);
                let mut right = matrix(&b, right_turned, terms, columns);
                if step == 2 {
                    right.column = 2;
                    right.row = (2 * columns - 1).min(b.len() / terms) as isize;
                }
                let mut out = vec![T::narrow(f32::NAN); rows * columns];
                // SAFETY: as large as the sizes say.
                unsafe {
                    gemm::product(level, left, right, out.as_mut_ptr(), (rows, terms, columns))
                };
                let wide = |x: *const T| unsafe { exact((*x).widen()) as f64 };
                let pairs = |n, m| (0..n).flat_map(move |i| (0..m).map(move |k| (i, k)));
                // SAFETY: within both.
                let rows_of_left: Vec<f64> = pairs(rows, terms)
                    .map(|(i, k)| wide(unsafe { left.at(i, k) }))
                    .collect();
                let columns_of_right: Vec<f64> = pairs(columns, terms)
                    .map(|(j, k)| wide(unsafe { right.at(k, j) }))
                    .collect();
                for (n, got) in out.iter().enumerate() {
                    let (i, j) = (n / columns, n % columns);
                    let (a, b) = (&rows_of_left[i * terms..], &columns_of_right[j * terms..]);
                    let want: f64 = a[..terms].iter().zip(b).map(|(a, b)| a * b).sum();
                    let off = (got.widen() as f64 - want).abs();
                    assert!(
                        off <= allowed * (terms as f64).max(want.abs()),
                        "{level:?} {rows}×{terms}×{columns}, {left_turned} {right_turned} {step}, \
                         at {i}, {j}: {}, not {want}",
                        got.widen()
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_any_size_and_layout() {
    products_of::<f32>(|x| x, 1e-6);
    products_of::<bf16>(|x| x, 1e-2);
    products_of::<f16>(|x| x, 1e-3);
}

#[test]
fn products_of_sixteen_bits_are_added_up_in_f32() {
    let (rows, terms, columns) = (9, 1_000, 40);
    let one = bf16::from_f32(1.0);
    let ones = vec![one; terms * columns.max(rows)];
    let matrix = |row| Matrix {
        data: ones.as_ptr(),
        row,
        column: 1,
    };
    for level in Level::all() {
        let mut out = vec![one; rows * columns];
        let (a, b) = (matrix(terms as isize), matrix(columns as isize));
        // SAFETY: as large as the sizes say.
        unsafe { gemm::product(level, a, b, out.as_mut_ptr(), (rows, terms, columns)) };
        assert!(out.iter().all(|x| x.to_f32() == 1_000.0), "{level:?}");
    }
}

/// The product of `a` in rows and `b` in rows, or in columns where it is turned.
fn float_product(
    level: Level,
    a: &[f32],
    b: &[f32],
    (rows, terms, columns): (usize, usize, usize),
    turned: bool,
) -> Vec<f32> {
    assert!(a.len() >= rows * terms && b.len() >= terms * columns);
    let left = Matrix {
        data: a.as_ptr(),
        row: terms as isize,
        column: 1,
    };
    let right = Matrix {
        data: b.as_ptr(),
        row: if turned { 1 } else { columns as isize },
        column: if turned { terms as isize } else { 1 },
    };
    let mut out = vec![f32::NAN; rows * columns];
    let sizes = (rows, terms, columns);
    // SAFETY: as large as the sizes say.
    unsafe { gemm::product(level, left, right, out.as_mut_ptr(), sizes) };
    out
}

#[test]
fn products_of_a_million_terms_do_not_drift() {
    let terms = 1_000_000;
    let (tenths, ones) = (vec![0.1f32; 14 * terms], vec![1f32; 40 * terms]);
    let want = f64::from(0.1f32) * terms as f64;
    for level in Level::all() {
        for (rows, columns) in [(1, 1), (1, 40), (5, 3), (14, 33)] {
            for turned in [false, true] {
                for got in float_product(level, &tenths, &ones, (rows, terms, columns), turned) {
                    let off = (f64::from(got) / want - 1.0).abs();
                    assert!(
                        off < 1e-5,
                        "{level:?} {rows} × {columns} {turned}: off by {off}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_are_right_on_either_side_of_what_is_added_up_at_a_time() {
    for level in Level::all() {
        for terms in [511, 512, 513, 777, 2_047, 2_049, 3_072, 3_073, 3_500, 7_000] {
            for (rows, columns) in [(1, 1), (2, 37), (13, 41)] {
                for turned in [false, true] {
                    let (a, b) = (noise(rows * terms, 3), noise(terms * columns, 4));
                    let sizes = (rows, terms, columns);
                    let out = float_product(level, &a, &b, sizes, turned);
                    for (n, got) in out.iter().enumerate() {
                        let (row, column) = (n / columns, n % columns);
                        let term = |k: usize| {
                            let place = if turned {
                                column * terms + k
                            } else {
                                k * columns + column
                            };
                            f64::from(a[row * terms + k]) * f64::from(b[place])
                        };
                        let want: f64 = (0..terms).map(term).sum();
                        assert!(
                            (f64::from(*got) - want).abs() < 1e-3,
                            "{level:?} {sizes:?} {turned} at {n}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}

/// From 1 to one of these.
fn size(dice: &mut Dice, most: [usize; 4]) -> i32 {
    let most = most[dice.below(4)];
    1 + dice.below(most) as i32
}

#[test]
fn random_products_of_sixteen_bits_are_those_of_their_numbers() {
    fn all<T: Element>(unit: f64) {
        let mut dice = Dice::new(7);
        for level in Level::all() {
            for _ in 0..60 {
                let batch = 1 + dice.below(3) as i32;
                let rows = size(&mut dice, [3, 13, 40, 80]);
                let terms = size(&mut dice, [4, 40, 800, 1700]);
                let columns = size(&mut dice, [3, 33, 66, 300]);
                let number = |dice: &mut Dice| dice.below(2001) as f32 / 1000.0 - 1.0;
                let a = Scattered::<T>::new(&mut dice, &[batch, rows, terms], number);
                let b = Scattered::<T>::new(&mut dice, &[batch, terms, columns], number);
                let shape = [batch, rows, columns];
                let count = (batch * rows * columns) as usize;
                let strides = in_rows(&shape);
                let mut out = vec![T::narrow(f32::NAN); count];
                // SAFETY: as large as the shapes say.
                unsafe {
                    let to = View::of(out.as_mut_ptr().cast_const(), &shape, &strides);
                    product::run::<T>(level, &a.view(), &b.view(), &to);
                }
                // Some places of all tiles, and the last.
                let step = 1 + count / 400;
                for i in (0..count).step_by(step).chain([count - 1]) {
                    let (got, i) = (out[i], i as i64);
                    let (rows, columns) = (i64::from(rows), i64::from(columns));
                    let at = [i / (rows * columns), i / columns % rows, i % columns];
                    let wide = |x: f32| f64::from(x);
                    let (mut want, mut sum) = (0.0, 0.0);
                    for k in 0..i64::from(terms) {
                        let x = wide(a.at(&[at[0], at[1], k]).widen());
                        let y = wide(b.at(&[at[0], k, at[2]]).widen());
                        want += x * y;
                        sum += (x * y).abs();
                    }
                    let off = (wide(got.widen()) - want).abs();
                    assert!(
                        off <= unit * want.abs() + 1e-6 * sum,
                        "{level:?} {shape:?} of {terms} at {at:?}: {}, not {want}",
                        got.widen()
                    );
                }
            }
        }
    }
    all::<bf16>(1.0 / 256.0);
    all::<f16>(1.0 / 2048.0);
}

#[test]
fn products_of_infinities_nan_and_small_numbers() {
    let (rows, terms, columns) = (14, 6, 33);
    let cases = [
        (f32::INFINITY, 1.0, f32::INFINITY),
        (f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY),
        (f32::INFINITY, 0.0, f32::NAN),
        (f32::NAN, 1.0, f32::NAN),
        (1e30, 1e30, f32::INFINITY),
        (1e-30, 1e-5, 1e-35),
    ];
    for level in Level::all() {
        for (x, y, want) in cases {
            let (mut a, b) = (
                vec![bf16::ZERO; rows * terms],
                vec![bf16::from_f32(y); terms * columns],
            );
            for row in 0..rows {
                a[row * terms + 5 - row % 6] = bf16::from_f32(x);
            }
            let matrix = |data: &Vec<bf16>, row: usize| Matrix {
                data: data.as_ptr(),
                row: row as isize,
                column: 1,
            };
            let mut out = vec![bf16::ZERO; rows * columns];
            let sizes = (rows, terms, columns);
            let (a, b) = (matrix(&a, terms), matrix(&b, columns));
            // SAFETY: as large as the sizes say.
            unsafe { gemm::product(level, a, b, out.as_mut_ptr(), sizes) };
            for got in out {
                let got = got.to_f32();
                let is_right = match want.is_finite() {
                    true => (got / want - 1.0).abs() < 0.02,
                    false => got == want || got.is_nan() && want.is_nan(),
                };
                assert!(is_right, "{level:?}: {x} · {y} is {got}, not {want}");
            }
        }
    }
}

#[test]
fn attention_is_that_of_its_numbers() {
    fn all<T: Element>(unit: f64) {
        let mut dice = Dice::new(5);
        let number = |dice: &mut Dice| dice.below(2001) as f32 / 1000.0 - 1.0;
        // Head sizes of whole pairs and not, queries of several blocks, one block and few.
        let sizes = [
            (50, 70, 33),
            (7, 7, 1),
            (13, 40, 64),
            (3, 35, 18),
            (60, 60, 31),
        ];
        for level in Level::all() {
            for (queries, keys, size) in sizes {
                let (heads, value_size) = (2, 21);
                let q = Scattered::<T>::new(&mut dice, &[2, heads, queries, size], number);
                let k = Scattered::<T>::new(&mut dice, &[2, heads, keys, size], number);
                let v = Scattered::<T>::new(&mut dice, &[2, heads, keys, value_size], number);
                let shape = [2, heads, queries, value_size];
                let (count, strides) = (shape.iter().product::<i32>(), in_rows(&shape));
                let of_mask = [2, heads, queries, keys];
                let seen =
                    Scattered::<u8>::of(&mut dice, &of_mask, |dice| [0, 1, 255][dice.below(3)]);
                let added = Scattered::<T>::new(&mut dice, &of_mask, number);
                for mask in [Mask::Causal, Mask::None, Mask::Seen, Mask::Added] {
                    let mut out = vec![T::narrow(f32::NAN); count as usize];
                    let more = match mask {
                        Mask::Seen => vec![seen.view()],
                        Mask::Added => vec![added.view()],
                        _ => Vec::new(),
                    };
                    let inputs: Vec<View> = [q.view(), k.view(), v.view()]
                        .into_iter()
                        .chain(more)
                        .collect();
                    // SAFETY: as large as the shapes say.
                    unsafe {
                        let to = View::of(out.as_mut_ptr().cast_const(), &shape, &strides);
                        attention::run::<T>(level, &inputs, mask, 0.5, &to);
                    }
                    for (place, got) in each_place(&shape).iter().zip(&out) {
                        let [b, h, i, j] = place[..] else { continue };
                        let wide = |x: T| f64::from(x.widen());
                        let score = |key: i64| {
                            let terms = (0..i64::from(size))
                                .map(|t| wide(q.at(&[b, h, i, t])) * wide(k.at(&[b, h, key, t])));
                            let score = 0.5 * terms.sum::<f64>();
                            match mask {
                                Mask::Seen if seen.at(&[b, h, i, key]) == 0 => f64::from(f32::MIN),
                                Mask::Added => score + wide(added.at(&[b, h, i, key])),
                                _ => score,
                            }
                        };
                        let last = match mask {
                            Mask::Causal => i + 1 + i64::from(keys - queries),
                            _ => i64::from(keys),
                        };
                        let scores: Vec<f64> = (0..last).map(score).collect();
                        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let (mut total, mut sum) = (0.0, 0.0);
                        for (key, score) in scores.iter().enumerate() {
                            let weight = (score - most).exp();
                            total += weight;
                            sum += weight * wide(v.at(&[b, h, key as i64, j]));
                        }
                        let (want, got) = (sum / total, wide(*got));
                        assert!(
                            (got - want).abs() <= unit * want.abs() + 1e-5,
                            "{level:?} {mask:?} {queries} × {keys} × {size} at {place:?}: \
                             {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
    all::<f32>(1e-6);
    all::<bf16>(1.0 / 256.0);
    all::<f16>(1.0 / 2048.0);
}
