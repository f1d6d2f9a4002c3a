//! Rows that a mask fills, against what the same steps give place by place.

use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::{element::Element, masked, simd::Level};
use emlx_cpu::{
    Action, Comparison, Function, Link, Links, Masked, Operand, Pair, Step, Total, Type, View,
};
use half::{bf16, f16};
use smallvec::smallvec;

/// Fills what is below a row's least number.
fn mask(of: Type) -> Links {
    let (x, least, fill) = (Operand::Input(0), Operand::Input(1), Operand::Input(2));
    let less = Action::Compare(Comparison::Less);
    smallvec![
        Link::new(less, of, Type::Bool, &[x, least]),
        Link::new(Action::Select, of, of, &[Operand::Link(0), fill, x]),
    ]
}

fn link(action: Action, from: Type, to: Type, operands: &[u8]) -> Step {
    let operands: Vec<Operand> = operands.iter().map(|value| Operand::Link(*value)).collect();
    Step::Link(Link::new(action, from, to, &operands))
}

/// The place from which e^(x - max) of the sorted row has come to more than half of its sum.
fn middle(of: Type) -> Vec<Step> {
    let half = Step::Link(Link::new(
        Action::Compare(Comparison::Less),
        of,
        Type::Bool,
        &[Operand::Link(6), Operand::Input(3)],
    ));
    let total = |total, value| Step::Total { total, value, of };
    vec![
        Step::Order { value: 0, of },
        total(Total::Largest, 0),
        link(Action::Binary(Pair::Subtract), of, of, &[0, 2]),
        link(Action::Unary(Function::Exp), of, of, &[3]),
        total(Total::Sum, 4),
        link(Action::Binary(Pair::Divide), of, of, &[4, 5]),
        Step::Sums {
            value: 6,
            of,
            order: Some(1),
        },
        half,
        Step::Extreme {
            is_max: false,
            is_last_nan: true,
            value: 8,
            of: Type::Bool,
            order: Some(1),
        },
    ]
}

fn steps(of: Type) -> Vec<Step> {
    let mut steps = middle(of);
    // What is compared is the running sum.
    steps[7] = Step::Link(Link::new(
        Action::Compare(Comparison::Less),
        of,
        Type::Bool,
        &[Operand::Link(7), Operand::Input(3)],
    ));
    steps
}

/// The same of one row.
fn expected<T: Element>(row: &[f32], half: f32) -> u32 {
    let narrow = |x: f32| T::narrow(x).widen();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*a].partial_cmp(&row[*b]).expect("numbers"));
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = row.iter().map(|x| narrow(narrow(x - top).exp())).collect();
    let sum = narrow(exps.iter().map(|x| f64::from(*x)).sum::<f64>() as f32);
    let mut running = 0f64;
    for (place, at) in order.iter().enumerate() {
        running += f64::from(narrow(exps[*at] / sum));
        if narrow(running as f32) >= half {
            return place as u32;
        }
    }
    0
}

fn rows_of<T: Element>(of: Type, dice: &mut Dice, shape: &[i32], least: f32, fill: f32) {
    let (rows, count) = (shape[0] as usize, shape[1] as usize);
    let x = Scattered::<T>::new(dice, shape, |dice| dice.below(4000) as f32 / 400.0 - 5.0);
    let one = [shape[0], 1];
    let least = Scattered::in_rows(vec![T::narrow(least); rows], &one);
    let fill = Scattered::in_rows(vec![T::narrow(fill); rows], &one);
    let half = Scattered::in_rows(vec![T::narrow(0.5)], &[]);
    let masked = Masked {
        shape: shape.into(),
        mask: mask(of),
        fill: 2,
        steps: steps(of),
    };
    let wanted: Vec<u32> = (0..rows as i64)
        .map(|row| {
            let places = 0..count as i64;
            let filled = places.map(|i| match x.at(&[row, i]).widen() {
                x if x < least.data[0].widen() => fill.data[0].widen(),
                x => x,
            });
            expected::<T>(&filled.collect::<Vec<f32>>(), 0.5)
        })
        .collect();
    for level in Level::all() {
        let out = vec![u32::MAX; rows];
        let (out_shape, out_strides) = ([shape[0]], in_rows(&[shape[0]]));
        let inputs = [x.view(), least.view(), fill.view(), half.view()];
        // SAFETY: of arrays of the test's own, which outlive the views.
        unsafe {
            let to = View::of(out.as_ptr(), &out_shape, &out_strides);
            masked::run(level, &masked, &inputs, &to);
        }
        for (row, (got, want)) in out.iter().zip(&wanted).enumerate() {
            // Sums in another order differ where they are rounded.
            let near = i64::from(*got).abs_diff(i64::from(*want));
            assert!(
                near <= u64::from(of != Type::F32) * 8 + 1,
                "{of:?} {shape:?} row {row}: {got} and {want}"
            );
        }
    }
}

#[test]
fn rows_are_computed_by_their_runs() {
    let mut dice = Dice::new(7);
    let lowest = f32::NEG_INFINITY;
    for shape in [
        [1, 300],
        [3, 257],
        [2, 1024],
        [5, 5000],
        [1, 40_000],
        [3, 20_000],
    ] {
        // A few numbers are left, or none, or all.
        for least in [4.9, 4.0, 100.0, -100.0] {
            if least < 50.0 {
                rows_of::<f32>(Type::F32, &mut dice, &shape, least, lowest);
            }
            if shape[1] < 1000 && least < 50.0 && least > 0.0 {
                rows_of::<bf16>(Type::Bf16, &mut dice, &shape, least, lowest);
                rows_of::<f16>(Type::F16, &mut dice, &shape, least, lowest);
            }
        }
    }
}

#[test]
fn a_sum_that_rises_within_a_run_is_computed_place_by_place() {
    let mut dice = Dice::new(8);
    for fill in [0.0, 1.0, 4.5] {
        rows_of::<f32>(Type::F32, &mut dice, &[3, 2000], 4.8, fill);
    }
}

/// One row of these numbers, of which those below 0 are filled with -1.
fn one_row(numbers: &[f32], steps: Vec<Step>) -> [u8; 4] {
    let shape = [1, numbers.len() as i32];
    let x = Scattered::in_rows(numbers.to_vec(), &shape);
    let (least, fill) = (
        Scattered::in_rows(vec![0f32], &[]),
        Scattered::in_rows(vec![-1f32], &[1, 1]),
    );
    let masked = Masked {
        shape: shape[..].into(),
        mask: mask(Type::F32),
        fill: 2,
        steps,
    };
    let (out, out_shape, out_strides) = (vec![0u32], [1], [1]);
    // SAFETY: of arrays of the test's own, which outlive the views.
    unsafe {
        let to = View::of(out.as_ptr(), &out_shape, &out_strides);
        let inputs = [x.view(), least.view(), fill.view()];
        masked::run(Level::best(), &masked, &inputs, &to);
    }
    out[0].to_ne_bytes()
}

#[test]
fn totals_and_places_of_a_row_count_each_place_of_a_run() {
    let of = Type::F32;
    let row = [-5.0, -7.0, 3.0, -2.0, 8.0, 3.0, -9.0, -9.0];
    let number = |steps| f32::from_ne_bytes(one_row(&row, steps));
    let place = |steps| u32::from_ne_bytes(one_row(&row, steps));
    let total = |total| {
        vec![Step::Total {
            total,
            value: 0,
            of,
        }]
    };
    assert_eq!(number(total(Total::Sum)), 14.0 - 5.0);
    assert_eq!(number(total(Total::Largest)), 8.0);
    assert_eq!(number(total(Total::Smallest)), -1.0);
    let at = |place, order| Step::At {
        value: 0,
        of,
        order,
        place,
    };
    let order = || Step::Order { value: 0, of };
    // Sorted: five times -1, 3, 3, 8.
    for (i, x) in [-1.0, -1.0, 3.0, -1.0, 8.0, 3.0, -1.0, -1.0]
        .iter()
        .enumerate()
    {
        assert_eq!(number(vec![at(i as u32, None)]), *x);
    }
    for (i, x) in [-1.0, -1.0, -1.0, -1.0, -1.0, 3.0, 3.0, 8.0]
        .iter()
        .enumerate()
    {
        assert_eq!(number(vec![order(), at(i as u32, Some(1))]), *x);
    }
    let extreme = |is_max, order| Step::Extreme {
        is_max,
        is_last_nan: false,
        value: 0,
        of,
        order,
    };
    assert_eq!(place(vec![extreme(true, None)]), 4);
    assert_eq!(place(vec![extreme(false, None)]), 0);
    assert_eq!(place(vec![order(), extreme(true, Some(1))]), 7);
    let nan = [1.0, f32::NAN, -1.0, f32::NAN, 2.0];
    let last = Step::Extreme {
        is_max: true,
        is_last_nan: true,
        value: 0,
        of,
        order: None,
    };
    assert_eq!(
        u32::from_ne_bytes(one_row(&nan, vec![extreme(true, None)])),
        1
    );
    assert_eq!(
        u32::from_ne_bytes(one_row(&nan, vec![extreme(false, None)])),
        1
    );
    assert_eq!(u32::from_ne_bytes(one_row(&nan, vec![last])), 3);
    let smallest = f32::from_ne_bytes(one_row(&nan, total(Total::Smallest)));
    assert!(smallest.is_nan());
}
