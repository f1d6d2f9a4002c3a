//! Products of 8-bit integers in each form that the machine has, against integers that are rounded and added up here.

use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::element::Element;
use emlx_cpu::internals::gemm8::{run_in, Form, BESIDE, QUAD, SMALLEST};
use emlx_cpu::{Type, View, MAX_INT8_TERMS as MAX_TERMS};
use half::{bf16, f16};

/// Rounded as the kernel's documentation says: integers of a row, and its scale.
fn quantized(row: &[f32]) -> (Vec<i64>, f32) {
    if row.iter().any(|x| !x.is_finite()) {
        return (vec![0; row.len()], f32::NAN);
    }
    let most = row.iter().fold(0f32, |most, x| most.max(x.abs()));
    let factor = if most < SMALLEST { 0.0 } else { 127.0 / most };
    let whole = |x: &f32| (x * factor).round_ties_even() as i64;
    (row.iter().map(whole).collect(), most / 127.0)
}

struct Case<T> {
    x: Scattered<T>,
    w: Vec<i8>,
    /// From one column to the next, and from one term to the next.
    steps: [i64; 2],
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl<T: Element + PartialEq + std::fmt::Debug> Case<T> {
    fn new(dice: &mut Dice, lead: &[i32], terms: usize, columns: usize) -> Case<T> {
        let number = |dice: &mut Dice| dice.below(4001) as f32 / 1000.0 - 2.0;
        let shape = [lead, &[terms as i32]].concat();
        let x = Scattered::<T>::new(dice, &shape, number);
        // Rows one after another, with a gap, or terms apart.
        let steps = match dice.below(4) {
            0 => [terms as i64 + 3, 1],
            1 => [1, columns as i64],
            _ => [terms as i64, 1],
        };
        let size = steps[0] * columns as i64 + steps[1] * terms as i64 + 1;
        let w = (0..size).map(|_| dice.below(256) as u8 as i8).collect();
        let scales = (0..columns)
            .map(|_| dice.below(1000) as f32 / 3000.0)
            .collect();
        let bias = (dice.below(3) > 0).then(|| (0..columns).map(|_| number(dice)).collect());
        Case {
            x,
            w,
            steps,
            scales,
            bias,
        }
    }

    /// The columns packed, in rows or with a gap behind each quad.
    fn packed(&self, terms: usize, columns: usize, gap: usize) -> (Vec<i8>, [i32; 4], [i64; 4]) {
        let (panels, quads) = (columns.div_ceil(BESIDE), terms.div_ceil(QUAD));
        let wide = QUAD + gap;
        let mut packed = vec![0; panels * quads * BESIDE * wide];
        for j in 0..columns {
            for k in 0..terms {
                let to = ((j / BESIDE * quads + k / QUAD) * BESIDE + j % BESIDE) * wide + k % QUAD;
                packed[to] = self.w[j * self.steps[0] as usize + k * self.steps[1] as usize];
            }
        }
        let shape = [panels, quads, BESIDE, QUAD].map(|size| size as i32);
        let strides = [quads * BESIDE * wide, BESIDE * wide, wide, 1].map(|step| step as i64);
        (packed, shape, strides)
    }

    fn check(&self, form: Form, rows: usize, terms: usize, columns: usize) {
        let shape = [columns as i32, terms as i32];
        // SAFETY: of the test's own arrays.
        let w = unsafe { View::of(self.w.as_ptr(), &shape, &self.steps) };
        self.check_with(form, rows, terms, columns, w);
        if columns.is_multiple_of(BESIDE) && terms.is_multiple_of(QUAD) {
            let shape = [columns / BESIDE, terms / QUAD, BESIDE, QUAD].map(|size| size as i32);
            let [column, term] = self.steps;
            let strides = [BESIDE as i64 * column, QUAD as i64 * term, column, term];
            // SAFETY: as above.
            let w = unsafe { View::of(self.w.as_ptr(), &shape, &strides) };
            self.check_with(form, rows, terms, columns, w);
        }
        for gap in [0, 1] {
            let (data, shape, strides) = self.packed(terms, columns, gap);
            // SAFETY: as above.
            let w = unsafe { View::of(data.as_ptr(), &shape, &strides) };
            self.check_with(form, rows, terms, columns, w);
        }
    }

    fn check_with(&self, form: Form, rows: usize, terms: usize, columns: usize, w: View) {
        let x = self.x.view();
        let (vector, one) = ([columns as i32], [1i64]);
        let to = [&self.x.shape[..self.x.shape.len() - 1], &vector].concat();
        let steps = in_rows(&to);
        let mut out = vec![T::narrow(7.0); rows * columns];
        // SAFETY: of the test's own arrays.
        unsafe {
            let mut inputs = vec![
                View::of(x.data().cast::<T>(), x.shape(), x.strides()),
                w,
                View::of(self.scales.as_ptr(), &vector, &one),
            ];
            if let Some(bias) = &self.bias {
                inputs.push(View::of(bias.as_ptr(), &vector, &one));
            }
            let bias = self.bias.as_ref().map(|_| Type::F32);
            let result = View::of(out.as_mut_ptr(), &to, &steps);
            run_in::<T>(form, &inputs, Type::F32, bias, &result);
        }
        let mut numbers = vec![];
        self.x.each(|_, x| numbers.push(x as f32));
        for (i, row) in numbers.chunks(terms).enumerate() {
            let (integers, scale) = quantized(row);
            for j in 0..columns {
                let w = |k: usize| self.w[j * self.steps[0] as usize + k * self.steps[1] as usize];
                let products = integers
                    .iter()
                    .enumerate()
                    .map(|(k, q)| q * i64::from(w(k)));
                let sum = i32::try_from(products.sum::<i64>()).expect("within 32 bits");
                let mut want = sum as f32 * (scale * self.scales[j]);
                if let Some(bias) = &self.bias {
                    want += bias[j];
                }
                let (want, got) = (T::narrow(want), out[i * columns + j]);
                let same = want == got || want.widen().is_nan() && got.widen().is_nan();
                assert!(
                    same,
                    "{form:?} {rows}×{terms}×{columns} at {i}, {j}: {got:?}, not {want:?}"
                );
            }
        }
    }
}

fn products_of<T: Element + PartialEq + std::fmt::Debug>() {
    let mut dice = Dice::new(8);
    for form in Form::all() {
        for rows in [1, 2, 3, 4, 5, 6, 11, 12, 13, 25] {
            for (terms, columns) in [
                (1, 1),
                (3, 5),
                (4, 32),
                (63, 33),
                (64, 7),
                (130, 70),
                (384, 97),
            ] {
                Case::<T>::new(&mut dice, &[rows], terms, columns).check(
                    form,
                    rows as usize,
                    terms,
                    columns,
                );
            }
        }
        for (lead, rows) in [(&[][..], 1), (&[2, 3], 6), (&[3, 1, 7], 21), (&[150], 150)] {
            for (terms, columns) in [(70, 45), (1540, 300)] {
                Case::<T>::new(&mut dice, lead, terms, columns).check(form, rows, terms, columns);
            }
        }
    }
}

#[test]
fn products_are_of_the_rounded_rows_in_every_form() {
    products_of::<f32>();
    products_of::<f16>();
    products_of::<bf16>();
}

#[test]
fn sums_of_the_most_terms_stay_within_32_bits() {
    for form in Form::all() {
        for rows in [1, 5] {
            let case = Case {
                x: Scattered::in_rows(
                    vec![-1f32; rows * MAX_TERMS],
                    &[rows as i32, MAX_TERMS as i32],
                ),
                w: vec![-128; 3 * MAX_TERMS],
                steps: [MAX_TERMS as i64, 1],
                scales: vec![1.0, 0.5, 3.0],
                bias: None,
            };
            case.check(form, rows, MAX_TERMS, 3);
        }
    }
}

#[test]
fn rows_that_are_not_finite_are_nan_and_tiny_ones_zero() {
    let (terms, columns) = (70, 40);
    for form in Form::all() {
        for rows in [4, 14] {
            let mut numbers = vec![0.25f32; rows * terms];
            numbers[3] = f32::NAN;
            numbers[terms + 69] = f32::NEG_INFINITY;
            numbers[2 * terms..3 * terms].fill(0.0);
            numbers[3 * terms..4 * terms].fill(1.0e-38);
            let case = Case {
                x: Scattered::in_rows(numbers, &[rows as i32, terms as i32]),
                w: (0..columns * terms)
                    .map(|i| (i % 251) as u8 as i8)
                    .collect(),
                steps: [terms as i64, 1],
                scales: vec![0.5; columns],
                bias: Some(vec![1.5; columns]),
            };
            case.check(form, rows, terms, columns);
        }
    }
}
