//! Chains whose inputs are rows, columns and arrays in another order, alone and several at once.

use emlx_cpu::internals::chain::{run, run_all, Task};
use emlx_cpu::internals::simd::Level;
use emlx_cpu::{Action, Function, Link, Operand, Pair, Type, View};

/// A step of an optimizer, whose gradient is a column times a row: the moment 0.9 · m + column · row, and the weight
/// w - moment / √v.
fn links() -> Vec<Link> {
    let (input, link) = (Operand::Input, Operand::Link);
    let float = |pair, operands: &[Operand]| {
        Link::new(Action::Binary(pair), Type::F32, Type::F32, operands)
    };
    let root = Action::Unary(Function::Sqrt);
    let mut links = vec![
        float(Pair::Multiply, &[input(0), input(1)]),
        float(Pair::Multiply, &[input(2), input(5)]),
        float(Pair::Add, &[link(0), link(1)]),
        Link::new(root, Type::F32, Type::F32, &[input(3)]),
        float(Pair::Divide, &[link(2), link(3)]),
        float(Pair::Multiply, &[link(4), input(5)]),
        float(Pair::Subtract, &[input(4), link(5)]),
        float(Pair::Subtract, &[link(6), input(1)]),
        float(Pair::Add, &[link(7), input(0)]),
    ];
    links[2].is_kept = true;
    links
}

struct Arrays {
    column: Vec<f32>,
    row: Vec<f32>,
    moment: Vec<f32>,
    squares: Vec<f32>,
    weight: Vec<f32>,
    decay: f32,
    shape: [i32; 2],
    /// Of the squares, which may lie column by column.
    strides: [i64; 2],
    results: [Vec<f32>; 2],
}

impl Arrays {
    fn new(rows: usize, columns: usize, is_turned: bool) -> Arrays {
        let numbers = |count: usize, step: usize| -> Vec<f32> {
            let number = |i| ((i * step) % 251) as f32 * 0.37 + 0.5;
            (0..count).map(number).collect()
        };
        let size = rows * columns;
        Arrays {
            column: numbers(rows, 7),
            row: numbers(columns, 3),
            moment: numbers(size, 11),
            squares: numbers(size, 13),
            weight: numbers(size, 17),
            decay: 0.9,
            shape: [rows as i32, columns as i32],
            strides: match is_turned {
                true => [1, rows as i64],
                false => [columns as i64, 1],
            },
            results: [vec![0.0; size], vec![0.0; size]],
        }
    }

    fn views(&mut self) -> ([View; 6], [View; 2]) {
        let in_rows = vec![i64::from(self.shape[1]), 1].leak();
        let shape = self.shape.to_vec().leak();
        let column = vec![self.shape[0], 1].leak();
        // SAFETY: of arrays that live on.
        let whole = |numbers: &[f32]| unsafe { View::of(numbers.as_ptr(), shape, in_rows) };
        // SAFETY: of arrays that live on.
        let inputs = unsafe {
            [
                View::of(self.column.as_ptr(), column, &[1, 1]),
                View::of(self.row.as_ptr(), &shape[1..], &[1]),
                whole(&self.moment),
                View::of(self.squares.as_ptr(), shape, self.strides.to_vec().leak()),
                whole(&self.weight),
                View::of(&self.decay, &[], &[]),
            ]
        };
        // SAFETY: as above.
        let result = |numbers: &mut Vec<f32>| unsafe {
            View::of(numbers.as_mut_ptr().cast_const(), shape, in_rows)
        };
        let [moment, weight] = &mut self.results;
        (inputs, [result(moment), result(weight)])
    }

    fn check(&self, case: &str) {
        let columns = self.shape[1] as usize;
        for i in 0..self.moment.len() {
            let (row, column) = (i / columns, i % columns);
            let square = row * self.strides[0] as usize + column * self.strides[1] as usize;
            let moment = self.column[row] * self.row[column] + self.moment[i] * self.decay;
            let step = moment / self.squares[square].sqrt() * self.decay;
            let weight = self.weight[i] - step - self.row[column] + self.column[row];
            assert_eq!(self.results[0][i], moment, "{case}, moment {i}");
            assert_eq!(self.results[1][i], weight, "{case}, weight {i}");
        }
    }
}

const SHAPES: [(usize, usize); 8] = [
    (1, 1),
    (5, 7),
    (300, 10),
    (1, 3000),
    (3000, 1),
    (50, 1000),
    (70, 2100),
    (301, 129),
];

#[test]
fn rows_and_columns_are_links_operands() {
    let links = links();
    for level in Level::all() {
        for (rows, columns) in SHAPES {
            for is_turned in [false, true] {
                let mut arrays = Arrays::new(rows, columns, is_turned);
                let (inputs, outs) = arrays.views();
                // SAFETY: of arrays that live on; nobody else has the results.
                unsafe { run(level, &links, &inputs, &outs) };
                arrays.check(&format!("{level:?}, {rows} × {columns}, {is_turned}"));
            }
        }
    }
}

#[test]
fn chains_that_run_together_have_shapes_of_their_own() {
    let links = links();
    let mut all = SHAPES.map(|(rows, columns)| Arrays::new(rows, columns, rows % 2 == 0));
    let views: Vec<_> = all.iter_mut().map(Arrays::views).collect();
    let tasks: Vec<Task> = views
        .iter()
        .map(|(inputs, outs)| Task {
            links: &links,
            inputs,
            outs,
        })
        .collect();
    // SAFETY: of arrays that live on; nobody else has the results.
    unsafe { run_all(Level::best(), &tasks) };
    for (arrays, shape) in all.iter().zip(SHAPES) {
        arrays.check(&format!("{shape:?}"));
    }
    // SAFETY: there is nothing to compute.
    unsafe { run_all(Level::best(), &[]) };
}
