use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::element::Element;
use emlx_cpu::internals::scatter::{add_slices, put_slices};
use emlx_cpu::{Type, View};
use half::{bf16, f16};

fn added<T: Element>(n: usize, x: f32, start: f32) -> f32 {
    let (shape, one) = ([3], [1i64]);
    let a = Scattered::in_rows(vec![T::narrow(start); 3], &shape);
    let updates = Scattered::in_rows(vec![T::narrow(x); n], &[n as i32, 1]);
    let (index, index_shape) = (vec![1i64; n], [n as i32]);
    let mut out = [T::narrow(f32::NAN); 3];
    let inputs = [
        a.view(),
        updates.view(),
        // SAFETY: of arrays of the test's own, which outlive it.
        unsafe { View::of(index.as_ptr(), &index_shape, &one) },
    ];
    // SAFETY: arrays that live, of the shapes that are asked for.
    unsafe {
        add_slices::<T>(
            &[0],
            Type::S64,
            &inputs,
            &View::of(out.as_mut_ptr(), &shape, &one),
        )
    };
    assert_eq!(out[0].widen(), start);
    out[1].widen()
}

#[test]
fn many_numbers_at_one_place_are_rounded_once() {
    assert_eq!(added::<bf16>(1_000, 1.0, 0.0), 1_000.0);
    assert_eq!(added::<f16>(5_000, 1.0, 0.0), 5_000.0);
    assert!((added::<f32>(1_000_000, 0.1, 1.0) - 100_001.0).abs() < 0.01);
    assert!(added::<f32>(3, f32::NAN, 1.0).is_nan());
}

#[test]
fn slices_go_where_indices_say_and_what_does_not_fit_is_left_out() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let number = |dice: &mut Dice| dice.below(64) as f32 - 32.0;
        let rank = 1 + dice.below(3);
        let shape: Vec<i32> = (0..rank).map(|_| 1 + dice.below(9) as i32).collect();
        let axes: Vec<u8> = (0..rank as u8).filter(|_| dice.below(2) == 0).collect();
        let axes = if axes.is_empty() { vec![0] } else { axes };
        let lead: Vec<i32> = (0..dice.below(3))
            .map(|_| 1 + dice.below(20) as i32)
            .collect();
        let mut wide = lead.clone();
        for (axis, size) in shape.iter().enumerate() {
            let is_indexed = axes.contains(&(axis as u8));
            wide.push(if is_indexed {
                1 + dice.below(2) as i32
            } else {
                *size
            });
            let last = wide.len() - 1;
            wide[last] = wide[last].min(*size);
        }
        let size: i32 = shape.iter().product();
        let a = (0..size).map(|_| number(&mut dice)).collect();
        let a = Scattered::<f32>::in_rows(a, &shape);
        let updates = Scattered::<f32>::new(&mut dice, &wide, number);
        let count: i32 = lead.iter().product();
        let indices: Vec<Vec<i64>> = axes
            .iter()
            .map(|axis| {
                let size = i64::from(shape[usize::from(*axis)]);
                let place = |dice: &mut Dice| dice.below(2 * size as usize + 2) as i64 - size - 1;
                (0..count).map(|_| place(&mut dice)).collect()
            })
            .collect();
        let mut want: Vec<f64> = a.data.iter().map(|x| f64::from(*x)).collect();
        let mut wanted = a.data.clone();
        let (strides, steps) = (in_rows(&shape), in_rows(&lead));
        updates.each(|place, x| {
            let (lead, own) = place.split_at(lead.len());
            let n: usize = lead
                .iter()
                .zip(&steps)
                .map(|(i, step)| i * *step as usize)
                .sum();
            let mut at: Vec<i64> = own.iter().map(|i| *i as i64).collect();
            for (axis, index) in axes.iter().zip(&indices) {
                let axis = usize::from(*axis);
                let (size, slice) = (i64::from(shape[axis]), wide[lead.len() + axis]);
                let start = if index[n] < 0 {
                    index[n] + size
                } else {
                    index[n]
                };
                if start < 0 || start + i64::from(slice) > size {
                    return;
                }
                at[axis] += start;
            }
            let place: i64 = at.iter().zip(&strides).map(|(i, step)| i * step).sum();
            want[place as usize] += x;
            wanted[place as usize] = x as f32;
        });
        let out = vec![f32::NAN; size as usize];
        let mut inputs = vec![a.view(), updates.view()];
        // SAFETY: of arrays of the test's own, which outlive it.
        let index = |index: &Vec<i64>| unsafe { View::of(index.as_ptr(), &lead, &steps) };
        inputs.extend(indices.iter().map(index));
        // SAFETY: arrays that live, of the shapes that are asked for.
        unsafe {
            add_slices::<f32>(
                &axes,
                Type::S64,
                &inputs,
                &View::of(out.as_ptr(), &shape, &strides),
            )
        };
        let got: Vec<f64> = out.iter().map(|x| f64::from(*x)).collect();
        assert_eq!(got, want, "seed {seed}: {shape:?} {wide:?} {axes:?}");
        // SAFETY: as above.
        unsafe {
            put_slices(
                &axes,
                Type::S64,
                4,
                &inputs,
                &View::of(out.as_ptr(), &shape, &strides),
            )
        };
        assert_eq!(out, wanted, "seed {seed}: {shape:?} {wide:?} {axes:?}");
    }
}

#[test]
fn wide_slices_are_shared() {
    let (shape, strides) = ([4, 1000], [1000, 1]);
    let a = Scattered::in_rows(vec![1f32; 4000], &shape);
    let updates = Scattered::in_rows(vec![0.5f32; 300_000], &[300, 1, 1000]);
    let index: Vec<i64> = (0..300).map(|i| i % 3).collect();
    let (index_shape, index_strides) = ([300], [1]);
    let (out, last) = (vec![f32::NAN; 4000], vec![f32::NAN; 4000]);
    // SAFETY: of arrays of the test's own, which outlive it.
    let index = unsafe { View::of(index.as_ptr(), &index_shape, &index_strides) };
    let inputs = [a.view(), updates.view(), index];
    // SAFETY: arrays that live, of the shapes that are asked for.
    unsafe {
        add_slices::<f32>(
            &[0],
            Type::S64,
            &inputs,
            &View::of(out.as_ptr(), &shape, &strides),
        )
    };
    // SAFETY: likewise.
    unsafe {
        put_slices(
            &[0],
            Type::S64,
            4,
            &inputs,
            &View::of(last.as_ptr(), &shape, &strides),
        )
    };
    assert!(last[..3000].iter().all(|x| *x == 0.5) && last[3000..].iter().all(|x| *x == 1.0));
    assert!(out[..3000].iter().all(|x| *x == 51.0) && out[3000..].iter().all(|x| *x == 1.0));
}

/// Rows added and put while the array is copied, and in place, against one after another.
#[test]
fn whole_rows_are_added_and_put_in_any_layout_and_in_place() {
    fn check<T: Element + PartialEq + std::fmt::Debug>(seed: u64) {
        let mut dice = Dice::new(seed);
        let (rows, size) = (1 + dice.below(40), [33, 64, 100, 20_000][dice.below(4)]);
        let count = dice.below(2 * rows) + 1;
        let number = |dice: &mut Dice| T::narrow(dice.below(16) as f32 - 8.0);
        let mut many = |n: usize| (0..n).map(|_| number(&mut dice)).collect::<Vec<T>>();
        let (a, x) = (many(rows * size), many(count * size));
        let index: Vec<i32> = (0..count)
            .map(|_| dice.below(2 * rows + 3) as i32 - rows as i32 - 1)
            .collect();
        let (shape, wide) = ([rows as i32, size as i32], [count as i32, 1, size as i32]);
        let (strides, wide_strides) = (in_rows(&shape), in_rows(&wide));
        let (mut sums, mut last) = (a.clone(), a.clone());
        for row in 0..rows {
            let own = |i: &i32| {
                let place = if *i < 0 { i + rows as i32 } else { *i };
                place == row as i32
            };
            let froms: Vec<usize> = (0..count).filter(|i| own(&index[*i])).collect();
            for column in 0..size {
                let at = row * size + column;
                let all: f32 = froms
                    .iter()
                    .map(|from| x[from * size + column].widen())
                    .sum();
                if let Some(from) = froms.last() {
                    sums[at] = T::narrow(a[at].widen() + all);
                    last[at] = x[from * size + column];
                }
            }
        }
        let index_shape = [count as i32];
        for is_in_place in [false, true] {
            let mut outs = [a.clone(), a.clone()];
            for (is_sum, out) in [true, false].into_iter().zip(&mut outs) {
                let to = out.as_mut_ptr().cast_const();
                let from = if is_in_place { to } else { a.as_ptr() };
                // SAFETY: of arrays of the test's own, of the shapes that are asked for.
                unsafe {
                    let inputs = [
                        View::of(from, &shape, &strides),
                        View::of(x.as_ptr(), &wide, &wide_strides),
                        View::of(index.as_ptr(), &index_shape, &[1]),
                    ];
                    let out = View::of(to, &shape, &strides);
                    match is_sum {
                        true => add_slices::<T>(&[0], Type::S32, &inputs, &out),
                        false => {
                            put_slices(&[0], Type::S32, std::mem::size_of::<T>(), &inputs, &out)
                        }
                    }
                }
            }
            let what = format!("{seed}: {rows} {size} {count} {is_in_place}");
            assert!(outs[0] == sums, "sums of {what}");
            assert!(outs[1] == last, "last of {what}");
        }
    }
    for seed in 0..12 {
        check::<f32>(seed);
        check::<bf16>(seed);
        check::<f16>(seed);
    }
}

#[test]
fn threads_put_many_single_elements_in_order() {
    let (size, count) = (1000, 70_000);
    let mut out = vec![-1f32; size];
    let x: Vec<f32> = (0..count).map(|i| i as f32).collect();
    let index: Vec<u16> = (0..count).map(|i| (i * 7919 % 1003) as u16).collect();
    let mut want = out.clone();
    for (i, place) in index.iter().enumerate() {
        if usize::from(*place) < size {
            want[usize::from(*place)] = i as f32;
        }
    }
    let (shape, wide, many) = ([size as i32], [count, 1], [count]);
    // SAFETY: of arrays of the test's own, of the shapes that are asked for.
    unsafe {
        let to = View::of(out.as_mut_ptr().cast_const(), &shape, &[1]);
        let inputs = [
            View::of(to.data().cast::<f32>().cast_const(), &shape, &[1]),
            View::of(x.as_ptr(), &wide, &[1, 1]),
            View::of(index.as_ptr(), &many, &[1]),
        ];
        put_slices(&[0], Type::U16, 4, &inputs, &to);
    }
    assert!(out == want);
}
