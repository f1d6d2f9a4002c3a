use crate::support::{each_place, in_rows, Dice, Scattered};
use emlx_cpu::internals::moves::{concatenate, copy, pad, reshape, tile};
use emlx_cpu::View;

fn shape(dice: &mut Dice) -> Vec<i32> {
    let rank = 1 + dice.below(4);
    let large = dice.below(10) == 0;
    (0..rank)
        .map(|_| dice.below(if large { 40 } else { 7 }) as i32)
        .collect()
}

fn array(dice: &mut Dice, shape: &[i32]) -> Scattered<f32> {
    let shape: Vec<i32> = shape.iter().map(|size| *size.max(&1)).collect();
    Scattered::new(dice, &shape, |dice| dice.below(1000) as f32)
}

/// Runs a kernel that writes an array of a shape, and compares each of its elements.
fn check(shape: &[i32], run: impl Fn(&View), want: impl Fn(&[i64]) -> f32) {
    let strides = in_rows(shape);
    let mut out = vec![f32::NAN; shape.iter().product::<i32>() as usize];
    // SAFETY: of arrays of the test's own, which outlive it.
    run(&unsafe { View::of(out.as_mut_ptr().cast_const(), shape, &strides) });
    for (i, at) in each_place(shape).iter().enumerate() {
        assert_eq!(out[i], want(at), "{shape:?} {at:?}");
    }
}

#[test]
fn arrays_of_any_layout_are_copied_into_rows() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let shape = shape(&mut dice);
        let x = array(&mut dice, &shape);
        // SAFETY: arrays that live, of one shape.
        check(
            &x.shape,
            |out| unsafe { copy(4, &x.view(), out) },
            |at| x.at(at),
        );
    }
}

#[test]
fn a_reshaped_array_has_the_elements_of_its_rows_in_order() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let shape = shape(&mut dice);
        let x = array(&mut dice, &shape);
        let size: i32 = x.shape.iter().product();
        let places = each_place(&x.shape);
        // SAFETY: arrays that live, of as many elements.
        check(
            &[size],
            |out| unsafe { reshape(4, &x.view(), out) },
            |at| x.at(&places[at[0] as usize]),
        );
    }
}

#[test]
fn arrays_stand_one_after_another_along_an_axis() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let mut shape = shape(&mut dice);
        let axis = dice.below(shape.len());
        let parts: Vec<_> = (0..1 + dice.below(3))
            .map(|_| {
                shape[axis] = 1 + dice.below(40) as i32;
                array(&mut dice, &shape)
            })
            .collect();
        let mut whole = parts[0].shape.clone();
        whole[axis] = parts.iter().map(|part| part.shape[axis]).sum();
        let views: Vec<View> = parts.iter().map(Scattered::view).collect();
        let want = |at: &[i64]| {
            let mut at = at.to_vec();
            let own = parts.iter().find(|part| {
                let size = i64::from(part.shape[axis]);
                let is_within = at[axis] < size;
                at[axis] -= if is_within { 0 } else { size };
                is_within
            });
            own.expect("within one of them").at(&at)
        };
        // SAFETY: arrays that live, of the shapes that are asked for.
        check(
            &whole,
            |out| unsafe { concatenate(axis, 4, &views, out) },
            want,
        );
    }
}

#[test]
fn arrays_and_elements_are_repeated() {
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let shape = shape(&mut dice);
        let x = array(&mut dice, &shape);
        let times: Vec<i32> = x.shape.iter().map(|_| 1 + dice.below(3) as i32).collect();
        let whole: Vec<i32> = x.shape.iter().zip(&times).map(|(n, k)| n * k).collect();
        for each in [false, true] {
            let own = |at: &[i64]| -> Vec<i64> {
                let axes = at.iter().zip(&times).zip(&x.shape);
                axes.map(|((at, times), size)| match each {
                    true => at / i64::from(*times),
                    false => at % i64::from(*size),
                })
                .collect()
            };
            // SAFETY: arrays that live, of the shapes that are asked for.
            check(
                &whole,
                |out| unsafe { tile(&times, each, 4, &x.view(), out) },
                |at| x.at(&own(at)),
            );
        }
    }
}

#[test]
fn arrays_are_surrounded_by_one_value() {
    for seed in 0..300 {
        let mut dice = Dice::new(seed);
        let shape = shape(&mut dice);
        let x = array(&mut dice, &shape);
        let spread = dice.below(2) * 2 + 1;
        let mut widths = |n| -> Vec<i32> { shape.iter().map(|_| dice.below(n) as i32).collect() };
        let (low, high, interior) = (widths(3), widths(3), widths(spread));
        let axes = x.shape.iter().zip(&interior).zip(low.iter().zip(&high));
        let whole: Vec<i32> = axes
            .map(|((size, between), (low, high))| size + (size - 1) * between + low + high)
            .collect();
        let value = [-7f32];
        let want = |at: &[i64]| {
            let mut own = Vec::new();
            for (i, at) in at.iter().enumerate() {
                let step = i64::from(interior[i]) + 1;
                let from = at - i64::from(low[i]);
                if from < 0 || from % step != 0 || from / step >= i64::from(x.shape[i]) {
                    return value[0];
                }
                own.push(from / step);
            }
            x.at(&own)
        };
        // SAFETY: arrays that live, of the shapes that are asked for.
        unsafe {
            let inputs = [x.view(), View::of(value.as_ptr(), &[], &[])];
            check(&whole, |out| pad(&low, &interior, 4, &inputs, out), want);
        }
    }
}

#[test]
fn threads_share_long_rows_and_many_rows() {
    for shape in [
        vec![100_003],
        vec![5, 20_001],
        vec![20_001, 3],
        vec![300, 257],
    ] {
        let size = shape.iter().product::<i32>();
        let numbers = (0..size).map(|i| i as f32).collect();
        let x = Scattered::<f32>::in_rows(numbers, &shape);
        let times: Vec<i32> = shape.iter().map(|_| 2).collect();
        let whole: Vec<i32> = shape.iter().map(|n| n * 2).collect();
        let own = |at: &[i64]| -> Vec<i64> {
            let axes = at.iter().zip(&shape);
            axes.map(|(at, size)| at % i64::from(*size)).collect()
        };
        // SAFETY: arrays that live, of the shapes that are asked for.
        check(
            &whole,
            |out| unsafe { tile(&times, false, 4, &x.view(), out) },
            |at| x.at(&own(at)),
        );
    }
}
