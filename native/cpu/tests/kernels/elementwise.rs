//! Each action on each type in every form that the machine has, against the same on i128 and f64.

use crate::support::Dice;
use emlx_cpu::internals::elementwise::{apply, Argument};
use emlx_cpu::internals::{chain, simd::Level};
use emlx_cpu::{
    Action, Bits, Comparison, Division, Function, Link, Operand, Pair, Test, Type, View,
};
use half::{bf16, f16};

const TYPES: [Type; 13] = [
    Type::Bool,
    Type::U8,
    Type::U16,
    Type::U32,
    Type::U64,
    Type::S8,
    Type::S16,
    Type::S32,
    Type::S64,
    Type::F16,
    Type::Bf16,
    Type::F32,
    Type::F64,
];

/// A number of any type.
#[derive(Clone, Copy, Debug)]
enum Value {
    Whole(i128),
    Float(f64),
}

impl Value {
    fn float(self) -> f64 {
        match self {
            Value::Whole(x) => x as f64,
            Value::Float(x) => x,
        }
    }

    fn whole(self) -> i128 {
        match self {
            Value::Whole(x) => x,
            Value::Float(x) => x as i128,
        }
    }
}

fn bits(of: Type) -> u32 {
    8 * of.size() as u32
}

fn is_signed(of: Type) -> bool {
    matches!(of, Type::S8 | Type::S16 | Type::S32 | Type::S64)
}

/// The whole number that is left of one in a type.
fn wrapped(x: i128, of: Type) -> i128 {
    let low = x & ((1i128 << bits(of)) - 1);
    match is_signed(of) && low >> (bits(of) - 1) == 1 {
        true => low - (1i128 << bits(of)),
        false => low,
    }
}

fn write(x: Value, of: Type, to: &mut Vec<u8>) {
    match of {
        Type::Bool => to.push((x.float() != 0.0) as u8),
        Type::F16 => to.extend(f16::from_f64(x.float()).to_le_bytes()),
        Type::Bf16 => to.extend(bf16::from_f64(x.float()).to_le_bytes()),
        Type::F32 => to.extend((x.float() as f32).to_le_bytes()),
        Type::F64 => to.extend(x.float().to_le_bytes()),
        _ => to.extend(&wrapped(x.whole(), of).to_le_bytes()[..of.size()]),
    }
}

fn read(bytes: &[u8], of: Type) -> Value {
    let mut wide = [0u8; 16];
    wide[..bytes.len()].copy_from_slice(bytes);
    match of {
        Type::F16 => Value::Float(f16::from_le_bytes([wide[0], wide[1]]).to_f64()),
        Type::Bf16 => Value::Float(bf16::from_le_bytes([wide[0], wide[1]]).to_f64()),
        Type::F32 => Value::Float(f32::from_le_bytes(wide[..4].try_into().unwrap()).into()),
        Type::F64 => Value::Float(f64::from_le_bytes(wide[..8].try_into().unwrap())),
        _ => Value::Whole(wrapped(i128::from_le_bytes(wide), of)),
    }
}

fn random(dice: &mut Dice, of: Type) -> Value {
    let small = dice.below(7) as i128 - 3;
    if of == Type::Bool {
        return Value::Whole(dice.below(2) as i128);
    }
    let special = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        -0.0,
        300.7,
        -70_000.4,
        3e9,
        -1.2e19,
        1.5e19,
        4e19,
        -1.5,
    ];
    match (of.is_float(), dice.below(4)) {
        (true, 0) => Value::Float(special[dice.below(special.len())]),
        (true, 1) => Value::Float(small as f64),
        (true, _) => Value::Float((dice.below(2_000_001) as f64 - 1e6) / 997.0),
        (false, 0) => Value::Whole(small),
        (false, 1) => {
            let edge = [0, -1, 1i128 << (bits(of) - 1), (1i128 << bits(of)) - 1];
            Value::Whole(wrapped(edge[dice.below(4)], of))
        }
        (false, _) => {
            let high = (dice.below(1 << 31) as i128) << 32 | dice.below(1 << 31) as i128;
            Value::Whole(wrapped(high >> dice.below(60), of))
        }
    }
}

fn reference(action: Action, from: Type, to: Type, x: [Value; 3]) -> Value {
    let [a, b, c] = x;
    let truth = |is: bool| Value::Whole(is as i128);
    match action {
        Action::Unary(function) => match (function, from.is_float()) {
            (Function::Negative, true) => Value::Float(-a.float()),
            (Function::Abs, true) => Value::Float(a.float().abs()),
            (Function::Square, true) => Value::Float(a.float() * a.float()),
            (Function::Sqrt, _) => Value::Float(a.float().sqrt()),
            (Function::Negative, _) => Value::Whole(-a.whole()),
            (Function::Abs, _) => Value::Whole(a.whole().abs()),
            (Function::Square, _) => Value::Whole(a.whole().wrapping_mul(a.whole())),
            _ => panic!("no reference"),
        },
        Action::Binary(pair) if from.is_float() => {
            let (a, b) = (a.float(), b.float());
            let nan = a.is_nan() || b.is_nan();
            Value::Float(match pair {
                Pair::Add => a + b,
                Pair::Subtract => a - b,
                Pair::Multiply => a * b,
                Pair::Divide => a / b,
                Pair::Maximum | Pair::Minimum if nan => f64::NAN,
                Pair::Maximum => a.max(b),
                Pair::Minimum => a.min(b),
                _ => panic!("no reference"),
            })
        }
        Action::Binary(pair) => {
            let (a, b) = (a.whole(), b.whole());
            Value::Whole(match pair {
                Pair::Add => a + b,
                Pair::Subtract => a - b,
                Pair::Multiply => a.wrapping_mul(b),
                Pair::Maximum => a.max(b),
                Pair::Minimum => a.min(b),
                _ => panic!("no reference"),
            })
        }
        Action::Bits(kind) => {
            let (a, b) = (a.whole(), b.whole());
            let is_far = b < 0 || b >= i128::from(bits(from));
            Value::Whole(match kind {
                Bits::And => a & b,
                Bits::Or => a | b,
                Bits::Xor => a ^ b,
                Bits::ShiftLeft if is_far => 0,
                Bits::ShiftLeft => a << b,
                Bits::ShiftRight if is_far => -((a < 0) as i128),
                Bits::ShiftRight => a >> b,
            })
        }
        Action::Not if from == Type::Bool => Value::Whole(1 - a.whole()),
        Action::Not => Value::Whole(!a.whole()),
        Action::Division(division) => {
            let (a, b) = (a.whole(), b.whole());
            Value::Whole(match division {
                _ if b == 0 => 0,
                Division::Quotient => a / b,
                Division::Fmod => a % b,
                Division::Floor => a / b - i128::from(a % b != 0 && (a < 0) != (b < 0)),
                Division::Remainder => (a % b + b) % b,
            })
        }
        Action::Compare(comparison) => {
            let order = match from.is_float() {
                true => a.float().partial_cmp(&b.float()),
                false => Some(a.whole().cmp(&b.whole())),
            };
            use std::cmp::Ordering::*;
            let [x, y] = [a, b].map(|x| match from.is_float() {
                true => x.float() != 0.0,
                false => x.whole() != 0,
            });
            truth(match comparison {
                Comparison::And => x && y,
                Comparison::Or => x || y,
                Comparison::Xor => x != y,
                Comparison::Equal => order == Some(Equal),
                Comparison::NotEqual => order != Some(Equal),
                Comparison::Less => order == Some(Less),
                Comparison::LessEqual => matches!(order, Some(Less | Equal)),
                Comparison::Greater => order == Some(Greater),
                Comparison::GreaterEqual => matches!(order, Some(Greater | Equal)),
            })
        }
        Action::Test(test) => truth(match test {
            Test::Nan => a.float().is_nan(),
            Test::Infinite => a.float().is_infinite(),
            Test::PositiveInfinity => a.float() == f64::INFINITY,
            Test::NegativeInfinity => a.float() == f64::NEG_INFINITY,
            Test::Finite => a.float().is_finite(),
        }),
        Action::Select => match a.whole() {
            0 => c,
            _ => b,
        },
        Action::Cast => cast(a, from, to),
        Action::ToInteger => to_integer(a.float(), to),
    }
}

fn to_integer(x: f64, to: Type) -> Value {
    let (low, high) = match is_signed(to) {
        true => (-(1i128 << (bits(to) - 1)), (1i128 << (bits(to) - 1)) - 1),
        false => (0, (1i128 << bits(to)) - 1),
    };
    let edge = 2f64.powi(63);
    Value::Whole(match x {
        _ if x.is_nan() => 0,
        _ if x == f64::INFINITY => high,
        _ if x == f64::NEG_INFINITY => low,
        _ if to == Type::U64 && x >= edge => match x < 2.0 * edge {
            true => x as i128,
            false => 0,
        },
        _ if x < -edge || x >= edge => -(1i128 << 63),
        _ => x.trunc() as i128,
    })
}

fn cast(a: Value, from: Type, to: Type) -> Value {
    match (from.is_float(), to) {
        (_, Type::Bool) => Value::Whole((a.float() != 0.0) as i128),
        (false, _) if to.is_float() => Value::Float(a.float()),
        (false, _) => a,
        (true, _) if to.is_float() => a,
        (true, _) => {
            let x = a.float().trunc();
            let is_wide = matches!(to, Type::U32 | Type::U64 | Type::S64);
            let edge = if is_wide { 63 } else { 31 };
            let high = 2f64.powi(edge + i32::from(to == Type::U64));
            Value::Whole(match x >= -2f64.powi(edge) && x < high {
                true => x as i128,
                false if to == Type::U64 && x >= high => 0,
                false => -(1i128 << edge),
            })
        }
    }
}

fn actions() -> Vec<Action> {
    use Comparison::{And, Equal, Greater, GreaterEqual, Less, LessEqual, NotEqual, Or, Xor};
    let functions = [
        Function::Negative,
        Function::Abs,
        Function::Square,
        Function::Sqrt,
    ];
    let pairs = [
        Pair::Add,
        Pair::Subtract,
        Pair::Multiply,
        Pair::Divide,
        Pair::Maximum,
        Pair::Minimum,
    ];
    let bits = [
        Bits::And,
        Bits::Or,
        Bits::Xor,
        Bits::ShiftLeft,
        Bits::ShiftRight,
    ];
    let divisions = [
        Division::Quotient,
        Division::Floor,
        Division::Fmod,
        Division::Remainder,
    ];
    let comparisons = [
        Equal,
        NotEqual,
        Less,
        LessEqual,
        Greater,
        GreaterEqual,
        And,
        Or,
        Xor,
    ];
    let tests = [
        Test::Nan,
        Test::Infinite,
        Test::PositiveInfinity,
        Test::NegativeInfinity,
        Test::Finite,
    ];
    functions
        .map(Action::Unary)
        .into_iter()
        .chain(pairs.map(Action::Binary))
        .chain(bits.map(Action::Bits))
        .chain(divisions.map(Action::Division))
        .chain(comparisons.map(Action::Compare))
        .chain(tests.map(Action::Test))
        .chain([Action::Not, Action::Select, Action::Cast, Action::ToInteger])
        .collect()
}

/// Equal as numbers of a type, NaN to NaN, and both zeros; floats within the rounding of a narrow type.
fn is_same(have: Value, want: Value, of: Type) -> bool {
    let mut bytes = Vec::new();
    write(want, of, &mut bytes);
    match (have, read(&bytes, of)) {
        (Value::Whole(x), Value::Whole(y)) => x == y,
        (x, y) => {
            let (x, y) = (x.float(), y.float());
            x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= 1e-7 * y.abs() && of == Type::F32
        }
    }
}

#[test]
fn every_action_is_the_same_on_every_type_and_count() {
    let mut dice = Dice::new(5);
    for level in Level::all() {
        for action in actions() {
            for from in TYPES {
                for to in TYPES {
                    if action.takes(from, to) {
                        compare_with_reference(&mut dice, level, action, from, to);
                    }
                }
            }
        }
    }
}

fn compare_with_reference(dice: &mut Dice, level: Level, action: Action, from: Type, to: Type) {
    for count in [1, 7, 32, 95] {
        let one = dice.below(4);
        let mut arrays: Vec<Vec<u8>> = Vec::new();
        let mut values: Vec<Vec<Value>> = Vec::new();
        for place in 0..3 {
            let of = action.operand(place, from);
            let size = of.size();
            let mut bytes = Vec::new();
            for _ in 0..count {
                write(random(dice, of), of, &mut bytes);
            }
            values.push(bytes.chunks(size).map(|bytes| read(bytes, of)).collect());
            arrays.push(bytes);
        }
        let argument = |place: usize| Argument {
            at: arrays[place].as_ptr(),
            is_one: place == one,
        };
        let arguments = [0, 1, 2].map(argument);
        let mut out = vec![0u8; count * to.size()];
        unsafe { apply(level, action, from, to, arguments, out.as_mut_ptr(), count) };
        for i in 0..count {
            let own = [0, 1, 2].map(|place| values[place][if place == one { 0 } else { i }]);
            // Of a repeated operand of one alone the caller asks for one element.
            if action.arity() == 1 && one == 0 && i > 0 {
                continue;
            }
            let have = read(&out[i * to.size()..(i + 1) * to.size()], to);
            let want = reference(action, from, to, own);
            assert!(
                is_same(have, want, to),
                "{level:?} {action:?} {from:?} to {to:?} of {own:?}: {have:?} for {want:?}"
            );
        }
    }
}

#[test]
fn a_result_may_replace_its_operand() {
    let a: Vec<i32> = (-50..50).collect();
    for level in Level::all() {
        let mut x = a.clone();
        let at = |x: &[i32]| Argument {
            at: x.as_ptr().cast(),
            is_one: false,
        };
        let action = Action::Binary(Pair::Multiply);
        let to = x.as_mut_ptr().cast();
        let arguments = [at(&x), at(&x), at(&x)];
        unsafe { apply(level, action, Type::S32, Type::S32, arguments, to, 100) };
        assert!(a.iter().zip(&x).all(|(a, x)| a * a == *x));
    }
}

#[test]
fn a_chain_goes_through_several_types() {
    // where(x < y, x as f32 / 2, row) as u8
    let (rows, columns) = (3, 1100);
    let x: Vec<i32> = (0..rows * columns).map(|i| i % 250).collect();
    let y: Vec<i32> = vec![100];
    let half: Vec<f32> = vec![0.5];
    let row: Vec<f32> = (0..columns).map(|i| (i % 200) as f32).collect();
    let mut out = vec![0u8; x.len()];
    let (input, link) = (Operand::Input, Operand::Link);
    let links = [
        Link::new(
            Action::Compare(Comparison::Less),
            Type::S32,
            Type::Bool,
            &[input(0), input(1)],
        ),
        Link::new(Action::Cast, Type::S32, Type::F32, &[input(0)]),
        Link::new(
            Action::Binary(Pair::Multiply),
            Type::F32,
            Type::F32,
            &[link(1), input(2)],
        ),
        Link::new(
            Action::Select,
            Type::F32,
            Type::F32,
            &[link(0), link(2), input(3)],
        ),
        Link::new(Action::Cast, Type::F32, Type::U8, &[link(3)]),
    ];
    for level in Level::all() {
        let strides = [i64::from(columns), 1];
        let whole = [rows, columns];
        // SAFETY: of arrays that live on.
        unsafe {
            let views = [
                View::of(x.as_ptr(), &whole, &strides),
                View::of(y.as_ptr(), &[1], &[1]),
                View::of(half.as_ptr(), &[], &[]),
                View::of(row.as_ptr(), &[columns], &[1]),
            ];
            let to = View::of(out.as_mut_ptr().cast_const(), &whole, &strides);
            chain::run(level, &links, &views, &[to]);
        }
        for (i, x) in x.iter().enumerate() {
            let want = match *x < 100 {
                true => x / 2,
                false => (i as i32 % columns) % 200,
            };
            assert_eq!(i32::from(out[i]), want, "{level:?}, element {i}");
        }
    }
}

/// A chain with every kind of input (in rows, transposed, a row, a number), a link with a single element and two
/// results, computed and computed again after the inputs have changed, as `run` computes it.
#[test]
fn a_prepared_chain_computes_what_its_inputs_hold() {
    let (input, link) = (Operand::Input, Operand::Link);
    let float = |pair, operands: &[Operand]| {
        Link::new(Action::Binary(pair), Type::F32, Type::F32, operands)
    };
    let mut links = [
        float(Pair::Add, &[input(3), input(3)]),
        float(Pair::Multiply, &[input(0), link(0)]),
        float(Pair::Add, &[link(1), input(1)]),
        float(Pair::Subtract, &[link(2), input(2)]),
    ];
    links[1].is_kept = true;
    for (rows, columns) in [(1, 1), (1, 7), (5, 3), (3, 1100), (40, 1), (700, 2)] {
        let size = rows * columns;
        let mut x: Vec<f32> = (0..size).map(|i| i as f32).collect();
        let turned: Vec<f32> = (0..size).map(|i| (i % 13) as f32).collect();
        let row: Vec<f32> = (0..columns).map(|i| i as f32 * 0.5).collect();
        let mut number = 0f32;
        let [mut out, mut again] = [(); 2].map(|()| vec![0f32; 2 * size]);
        let shape = [rows as i32, columns as i32];
        let results = [2, rows as i32, columns as i32];
        let (strides, other) = ([columns as i64, 1], [1, rows as i64]);
        let (x, number) = (x.as_mut_ptr(), &raw mut number);
        // SAFETY: of arrays that live on and stay where they are.
        unsafe {
            let views = [
                View::of(x.cast_const(), &shape, &strides),
                View::of(turned.as_ptr(), &shape, &other),
                View::of(row.as_ptr(), &shape[1..], &[1]),
                View::of(number.cast_const(), &[], &[]),
            ];
            let strides = [size as i64, columns as i64, 1];
            let to = View::of(again.as_mut_ptr().cast_const(), &results, &strides);
            let prepared = chain::Prepared::new(&links, &views, &[to]).expect("a small chain");
            for value in [3.0, -1.5] {
                number.write(value);
                (0..size).for_each(|i| x.add(i).write(x.add(i).read() + 1.0));
                let to = View::of(out.as_mut_ptr().cast_const(), &results, &strides);
                chain::run(Level::best(), &links, &views, &[to]);
                prepared.run();
                assert!(out == again, "{rows} × {columns}");
                assert_eq!(again[size - 1], x.add(size - 1).read() * 2.0 * value);
            }
        }
    }
}

/// Results of three types, of inputs in rows and of one that lies otherwise, each with memory of its own or over an
/// input that no later link takes.
#[test]
fn results_of_a_chain_have_types_and_memory_of_their_own() {
    let (input, link) = (Operand::Input, Operand::Link);
    let float = |pair, operands: &[Operand]| {
        Link::new(Action::Binary(pair), Type::F32, Type::F32, operands)
    };
    let mut links = [
        float(Pair::Add, &[input(0), input(1)]),
        Link::new(
            Action::Compare(Comparison::Less),
            Type::F32,
            Type::Bool,
            &[input(0), input(2)],
        ),
        Link::new(Action::Cast, Type::F32, Type::Bf16, &[link(0)]),
        float(Pair::Multiply, &[link(0), input(0)]),
    ];
    links[..3].iter_mut().for_each(|link| link.is_kept = true);
    assert_eq!(emlx_cpu::takers(&links, 3)[..], [3, 0, 1]);
    for level in Level::all() {
        for (rows, columns) in [(1, 1), (3, 5), (2, 1500), (300, 200), (70_001, 1)] {
            for (is_turned, is_over) in [(false, false), (false, true), (true, false)] {
                let size = rows * columns;
                let x: Vec<f32> = (0..size).map(|i| (i % 257) as f32 * 0.37 - 20.0).collect();
                let y: Vec<f32> = (0..size).map(|i| (i % 101) as f32 * 1.3).collect();
                let half = 0.5f32;
                let (mut left, mut right) = (x.clone(), y.clone());
                let mut sums = vec![0f32; size];
                let mut products = sums.clone();
                let (mut less, mut narrow) = (vec![9u8; size], vec![bf16::ZERO; size]);
                let shape = [rows as i32, columns as i32];
                let in_rows = [columns as i64, 1];
                let other = if is_turned { [1, rows as i64] } else { in_rows };
                let (left, right) = (left.as_mut_ptr(), right.as_mut_ptr());
                let (sum, product) = match is_over {
                    true => (right, left),
                    false => (sums.as_mut_ptr(), products.as_mut_ptr()),
                };
                // SAFETY: of arrays that live on; what is written over is not taken by later links.
                unsafe {
                    let views = [
                        View::of(left.cast_const(), &shape, &in_rows),
                        View::of(right.cast_const(), &shape, &other),
                        View::of(&half, &[], &[]),
                    ];
                    let outs = [
                        View::of(sum.cast_const(), &shape, &in_rows),
                        View::of(less.as_mut_ptr().cast_const(), &shape, &in_rows),
                        View::of(narrow.as_mut_ptr().cast_const(), &shape, &in_rows),
                        View::of(product.cast_const(), &shape, &in_rows),
                    ];
                    chain::run(level, &links, &views, &outs);
                    for i in 0..size {
                        let (row, column) = (i / columns, i % columns);
                        let at = row * other[0] as usize + column * other[1] as usize;
                        let want = x[i] + y[at];
                        let case = format!("{level:?}, {rows} × {columns}, element {i}");
                        assert_eq!(sum.add(i).read(), want, "{case}");
                        assert_eq!(less[i], u8::from(x[i] < half), "{case}");
                        assert_eq!(narrow[i], bf16::from_f32(want), "{case}");
                        assert_eq!(product.add(i).read(), want * x[i], "{case}");
                    }
                }
            }
        }
    }
}
