use crate::support::{each_place, in_rows, Dice, Scattered};
use emlx_cpu::internals::gather::{along, slices, How};
use emlx_cpu::{Beyond, Type, View};

fn indices(dice: &mut Dice, shape: &[i32]) -> (Vec<i64>, Vec<i64>) {
    let size: i32 = shape.iter().product();
    let data = (0..size).map(|_| dice.below(12) as i64 - 6).collect();
    (data, in_rows(shape))
}

fn how(axes: &[u8]) -> How<'_> {
    How {
        of: Type::S64,
        beyond: Beyond::Nearest,
        axes,
        bytes: 4,
    }
}

fn place(strides: &[i64], at: &[i64]) -> usize {
    strides.iter().zip(at).map(|(s, i)| s * i).sum::<i64>() as usize
}

#[test]
fn slices_begin_where_their_indices_say() {
    let mut dice = Dice::new(3);
    for (shape, axes, sizes) in [
        (vec![5, 4, 3], vec![0u8], vec![1, 4, 3]),
        (vec![5, 4, 3], vec![0, 2], vec![1, 2, 1]),
        (vec![5, 4, 3], vec![1, 2, 0], vec![1, 1, 1]),
        (vec![7], vec![0], vec![3]),
        (vec![3, 8], vec![1], vec![3, 2]),
    ] {
        for _ in 0..20 {
            let a = Scattered::<f32>::new(&mut dice, &shape, |dice| dice.below(1000) as f32);
            let many = [2, 3];
            let tables: Vec<_> = axes.iter().map(|_| indices(&mut dice, &many)).collect();
            let mut out_shape = many.to_vec();
            out_shape.extend(&sizes);
            let strides = in_rows(&out_shape);
            let mut out = vec![0f32; out_shape.iter().product::<i32>() as usize];
            // SAFETY: of arrays that live on.
            unsafe {
                let mut inputs = vec![a.view()];
                inputs.extend(
                    tables
                        .iter()
                        .map(|(data, strides)| View::of(data.as_ptr(), &many, strides)),
                );
                let to = View::of(out.as_mut_ptr().cast_const(), &out_shape, &strides);
                slices(&how(&axes), &sizes, &inputs, &to);
            }
            for at in each_place(&out_shape) {
                let mut from = at[2..].to_vec();
                for (axis, (table, strides)) in axes.iter().zip(&tables) {
                    let axis = usize::from(*axis);
                    let length = i64::from(shape[axis]);
                    let index = table[place(strides, &at[..2])];
                    let index = if index < 0 { index + length } else { index };
                    from[axis] += index.clamp(0, length - i64::from(sizes[axis]));
                }
                assert_eq!(out[place(&strides, &at)], a.at(&from), "{shape:?} {at:?}");
            }
        }
    }
}

#[test]
fn elements_along_an_axis_are_those_of_their_indices() {
    let mut dice = Dice::new(4);
    for (shape, axis) in [
        (vec![5, 4, 3], 0),
        (vec![5, 4, 3], 1),
        (vec![5, 4, 3], 2),
        (vec![7], 0),
    ] {
        for each in [false, true] {
            for _ in 0..20 {
                let a = Scattered::<f32>::new(&mut dice, &shape, |dice| dice.below(1000) as f32);
                let mut out_shape = shape.clone();
                out_shape[axis] = 6;
                let many = if each { out_shape.clone() } else { vec![6] };
                let (table, table_strides) = indices(&mut dice, &many);
                let strides = in_rows(&out_shape);
                let mut out = vec![0f32; out_shape.iter().product::<i32>() as usize];
                // SAFETY: of arrays that live on.
                unsafe {
                    let inputs = [a.view(), View::of(table.as_ptr(), &many, &table_strides)];
                    let to = View::of(out.as_mut_ptr().cast_const(), &out_shape, &strides);
                    along(&how(&[axis as u8]), each, &inputs, &to);
                }
                for at in each_place(&out_shape) {
                    let which = if each {
                        place(&table_strides, &at)
                    } else {
                        at[axis] as usize
                    };
                    let length = i64::from(shape[axis]);
                    let index = table[which];
                    let index = if index < 0 { index + length } else { index };
                    let mut from = at.clone();
                    from[axis] = index.clamp(0, length - 1);
                    assert_eq!(out[place(&strides, &at)], a.at(&from), "{shape:?} {at:?}");
                }
            }
        }
    }
}

#[test]
fn threads_share_many_elements_at_indices_of_any_type() {
    let (rows, columns) = (300, 200);
    let numbers = (0..rows * columns).map(|i| i as f32).collect();
    let x = Scattered::<f32>::in_rows(numbers, &[rows, columns]);
    let number = |i: i32| (i * 7919 % 400) - 100;
    let table: Vec<i16> = (0..rows * columns).map(|i| number(i) as i16).collect();
    let shape = [rows, columns];
    let strides = in_rows(&shape);
    for beyond in [Beyond::Nearest, Beyond::First] {
        let nearest = |index: i32, length: i32| {
            let from_end = if beyond == Beyond::Nearest { length } else { 0 };
            let place = if index < 0 { index + from_end } else { index };
            place.clamp(0, length - 1)
        };
        for axis in [0u8, 1] {
            let how = How {
                of: Type::S16,
                beyond,
                ..how(std::slice::from_ref(&axis))
            };
            let mut out = vec![f32::NAN; (rows * columns) as usize];
            // SAFETY: of arrays that live on, of the shapes that are asked for.
            unsafe {
                let inputs = [x.view(), View::of(table.as_ptr(), &shape, &strides)];
                let to = View::of(out.as_mut_ptr().cast_const(), &shape, &strides);
                along(&how, true, &inputs, &to);
            }
            for (i, have) in out.iter().enumerate() {
                let (row, column) = (i as i32 / columns, i as i32 % columns);
                let index = i32::from(table[i]);
                let want = match axis {
                    0 => nearest(index, rows) * columns + column,
                    _ => row * columns + nearest(index, columns),
                };
                assert_eq!(*have, want as f32, "{axis} {i}");
            }
        }
        // The same numbers as pairs, of which every second one is a row.
        let count = rows * columns / 2;
        let mut out = vec![f32::NAN; count as usize];
        let (one, two) = ([1i64, 1, 1], [2i64]);
        let how = How {
            of: Type::S16,
            beyond,
            ..how(&[0, 1])
        };
        // SAFETY: likewise.
        unsafe {
            let pair =
                |i: usize| View::of(table.as_ptr().add(i), std::slice::from_ref(&count), &two);
            let inputs = [x.view(), pair(0), pair(1)];
            let out_shape = [count, 1, 1];
            let to = View::of(out.as_mut_ptr().cast_const(), &out_shape, &one);
            slices(&how, &[1, 1], &inputs, &to);
        }
        for (i, have) in out.iter().enumerate() {
            let place = |i: usize, length| nearest(i32::from(table[i]), length);
            let want = place(2 * i, rows) * columns + place(2 * i + 1, columns);
            assert_eq!(*have, want as f32, "{i}");
        }
    }
}
