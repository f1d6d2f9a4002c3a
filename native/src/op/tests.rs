//! What can be tested without the BEAM: the table's names, the checks, and a few operations end to end.

use super::*;
use crate::base::{Device, Dtype, Reason};
use crate::mlx;
use strum::VariantNames;

fn run(op: Op, inputs: &[&Array]) -> Result<Outputs> {
    mlx::init();
    let inputs: Vec<Option<&Array>> = inputs.iter().map(|array| Some(*array)).collect();
    crate::program::build(&op, &inputs, Device::Cpu, Device::Cpu.stream()?)
        .map(|applied| applied.outputs)
}

fn one(op: Op, inputs: &[&Array]) -> Array {
    let mut outputs = run(op, inputs).expect("the operation is well-formed");
    outputs.pop().expect("one output")
}

/// The bytes of a computed array, in rows.
pub fn bytes(array: &Array) -> Vec<u8> {
    let stream = Device::Cpu.stream().expect("the CPU is there");
    let rows = mlx::contiguous(array, false, stream).expect("a copy");
    mlx::async_eval(&[&rows], &mlx::graph_lock()).expect("submitted");
    stream.synchronize().expect("computed");
    // SAFETY: computed, and held until they are copied.
    unsafe { mlx::bytes(&rows) }.expect("in rows").to_vec()
}

/// The values of a computed array of s32.
fn values(array: &Array) -> Vec<i32> {
    bytes(array)
        .chunks(4)
        .map(|word| i32::from_ne_bytes(word.try_into().expect("four bytes")))
        .collect()
}

fn ints(list: &[i32], shape: &[i32]) -> Array {
    mlx::init();
    let bytes: Vec<u8> = list.iter().flat_map(|n| n.to_ne_bytes()).collect();
    mlx::from_bytes(&bytes, shape, Dtype::S32).expect("bytes of the shape")
}

fn message(result: Result<Outputs>) -> String {
    match result {
        Ok(_) => panic!("should have been refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn names_are_those_of_elixir() {
    assert_eq!(Op::Add.name(), "add");
    assert_eq!(Op::CountLeadingZeros.name(), "count_leading_zeros");
    assert_eq!(Op::Round { decimals: 1 }.name(), "round");
    let axes = Some(vec![0]);
    let sum = Op::Sum {
        axes,
        keepdims: false,
    };
    assert_eq!(sum.name(), "sum");
}

#[test]
fn integers_divide_without_trapping() {
    let a = ints(&[7, -7, i32::MIN, 5, i32::MIN], &[5]);
    let b = ints(&[2, 2, -1, 0, 3], &[5]);
    assert_eq!(
        values(&one(Op::Quotient, &[&a, &b])),
        [3, -3, i32::MIN, 0, -715_827_882]
    );
    assert_eq!(
        values(&one(Op::FloorDivide, &[&a, &b])),
        [3, -4, i32::MIN, 0, -715_827_883]
    );
    assert_eq!(values(&one(Op::Remainder, &[&a, &b])), [1, 1, 0, 0, 1]);
    assert_eq!(values(&one(Op::Fmod, &[&a, &b])), [1, -1, 0, 0, -2]);
}

#[test]
fn integer_products_are_exact_where_f32_and_f64_are_not() {
    let a = ints(&[0x7fff_fffb; 64 * 64], &[64, 64]);
    let expected = (0..64).fold(0i32, |sum, _| {
        sum.wrapping_add(0x7fff_fffbi32.wrapping_mul(0x7fff_fffb))
    });
    assert!(values(&one(Op::Matmul, &[&a, &a]))
        .iter()
        .all(|value| *value == expected));
}

#[test]
fn updates_outside_are_dropped_and_reads_clamped() {
    let a = ints(&[1, 2, 3], &[3]);
    let index = ints(&[0, 3, -1, -4, i32::MAX], &[5]);
    let updates = ints(&[10, 20, 30, 40, 50], &[5, 1]);
    let added = one(Op::ScatterAdd { axes: vec![0] }, &[&a, &updates, &index]);
    assert_eq!(values(&added), [11, 2, 33]);
    let taken = one(Op::Take { axis: 0 }, &[&a, &index]);
    assert_eq!(values(&taken), [1, 3, 3, 1, 3]);
}

#[test]
fn what_mlx_takes_for_granted_is_refused() {
    let a = ints(&[1, 2, 3, 4], &[2, 2]);
    let strides = Op::Slice {
        start: vec![0, 0],
        stop: vec![2, 2],
        strides: vec![1, 0],
    };
    assert!(message(run(strides, &[&a])).contains("strides must not be 0"));
    let axes = Op::Transpose { axes: vec![0, 0] };
    assert!(message(run(axes, &[&a])).contains("named twice"));
    let shape = Op::Reshape { shape: vec![-1, 0] };
    assert!(message(run(shape, &[&a])).contains("cannot become"));
    let reach = Op::AsStrided {
        shape: vec![3],
        strides: vec![2],
        offset: 0,
    };
    assert!(message(run(reach, &[&a])).contains("reaches outside"));
    assert!(message(run(Op::Add, &[&a])).contains("takes 2 arrays, got 1"));
}

#[test]
fn einsum_equations_are_read_before_mlx_reads_them() {
    let a = ints(&[1, 2, 3, 4], &[2, 2]);
    let equation = |text: &str| Op::Einsum {
        subscripts: text.into(),
    };
    for bad in [
        "ij",
        "ij,jk->ik",
        "i->i",
        "ij->ik",
        "ij->ii",
        "i1->i",
        "ij->i->j",
    ] {
        let inputs: &[&Array] = if bad == "ij" { &[&a, &a] } else { &[&a] };
        assert!(run(equation(bad), inputs).is_err(), "{bad}");
    }
    assert_eq!(values(&one(equation("ii->i"), &[&a])), [1, 4]);
    assert_eq!(values(&one(equation("ij,jk"), &[&a, &a])), [7, 10, 15, 22]);
}

/// Every operation there is, with some attributes.
fn every_op() -> Vec<Op> {
    let entries = attributes::entries().expect("every attribute's type is known");
    entries.into_iter().map(|entry| entry.example).collect()
}

#[test]
fn the_table_has_every_operation_once_and_under_its_own_name() {
    let names: Vec<&str> = every_op().iter().map(Op::name).collect();
    assert_eq!(names, Op::VARIANTS);
    assert!(names.len() > 200);
}

#[test]
fn attributes_are_those_that_are_decoded() {
    use attributes::Kind;
    let entries = attributes::entries().expect("every attribute's type is known");
    let of = |name: &str| {
        let entry = entries.iter().find(|entry| entry.example.name() == name);
        entry.expect("an operation").attributes.clone()
    };
    let axes = Kind::Optional(Box::new(Kind::List(Box::new(Kind::S32))));
    assert_eq!(of("sum"), [("axes", axes), ("keepdims", Kind::Bool)]);
    assert_eq!(
        of("searchsorted"),
        [("side", Kind::OneOf(&["left", "right"]))]
    );
    assert_eq!(of("constant")[0], ("value", Kind::Number));
    assert_eq!(of("add"), []);
}

#[test]
fn arities_are_those_that_are_checked() {
    let a = ints(&[1], &[1]);
    for op in every_op() {
        let traits::Arity {
            required,
            optional,
            more,
        } = op.traits().arity;
        let fixed = (required + optional) as usize;
        for count in 0..9 {
            let fits = if more { count > fixed } else { count == fixed };
            let result = run(op.clone(), &vec![&a; count]);
            let refused = result.is_err_and(|error| matches!(*error.reason, Reason::Arity { .. }));
            assert_eq!(refused, !fits, "{} of {count} arrays", op.name());
        }
    }
}

#[test]
fn every_operation_is_written_and_read_as_it_is() {
    for op in every_op() {
        let text = serde_json::to_string(&op).expect("written");
        let again: Op = serde_json::from_str(&text).expect(&text);
        assert_eq!(format!("{op:?}"), format!("{again:?}"));
        // The name is the one that Elixir and errors have.
        let name = serde_json::to_value(&op).expect("written");
        let name = match &name {
            serde_json::Value::String(name) => name.clone(),
            serde_json::Value::Object(map) => map.keys().next().expect("a name").clone(),
            other => panic!("{other}"),
        };
        assert_eq!(name, op.name());
    }
}

#[test]
fn numbers_survive_being_written() {
    let numbers = [
        Number::Int(i64::MIN),
        Number::Int(-(1 << 53) - 1),
        Number::Int((1 << 53) + 1),
        Number::Uint(u64::MAX),
        Number::Float(-0.0),
        Number::Float(3.0),
        Number::Float(0.1),
        Number::Float(f64::MAX),
        Number::Float(5e-324),
        Number::Float(f64::MIN_POSITIVE),
        Number::Complex((-0.0, 1e-300)),
        Number::NonFinite(NonFinite::Nan),
        Number::NonFinite(NonFinite::Infinity),
        Number::NonFinite(NonFinite::NegInfinity),
    ];
    for number in numbers {
        let text = serde_json::to_string(&number).expect("written");
        let again: Number = serde_json::from_str(&text).expect(&text);
        assert_eq!(format!("{number:?}"), format!("{again:?}"), "{text}");
    }
    // Bits of floats, from a generator with a fixed seed.
    let mut state = 1u64;
    for _ in 0..20_000 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let wide = f64::from_bits(state);
        let narrow = f32::from_bits((state >> 32) as u32);
        if wide.is_finite() {
            let text = serde_json::to_string(&Op::RmsNorm { eps: wide }).expect("written");
            let Ok(Op::RmsNorm { eps }) = serde_json::from_str(&text) else {
                panic!("{text}")
            };
            assert_eq!(eps.to_bits(), wide.to_bits(), "{text}");
        }
        if narrow.is_finite() {
            let op = Op::Addmm {
                alpha: narrow,
                beta: 0.0,
            };
            let text = serde_json::to_string(&op).expect("written");
            let Ok(Op::Addmm { alpha, .. }) = serde_json::from_str(&text) else {
                panic!("{text}")
            };
            assert_eq!(alpha.to_bits(), narrow.to_bits(), "{text}");
        }
    }
}

#[test]
fn the_file_of_its_class_builds_every_operation() {
    mlx::init();
    let stream = Device::Cpu.stream().expect("the CPU is there");
    for op in every_op() {
        let Err(error) = op.apply(&Inputs(&[]), Device::Cpu, stream) else {
            continue;
        };
        assert!(!error.to_string().contains("has no case"), "{error}");
    }
}

/// f32 of a computed array.
fn floats(array: &Array) -> Vec<f32> {
    bytes(array)
        .chunks(4)
        .map(|word| f32::from_ne_bytes(word.try_into().expect("four bytes")))
        .collect()
}

/// Different numbers within -1..1.
fn waves(shape: &[i32], step: f32, s: &Stream) -> Array {
    mlx::init();
    let count: i32 = shape.iter().product();
    let places = mlx::arange(0.0, count.into(), 1.0, Dtype::F32, s).expect("numbers");
    let step = creation::float(step.into(), Dtype::F32).expect("a number");
    let wave = mlx::sin(&mlx::multiply(&places, &step, s).expect("angles"), s).expect("sines");
    mlx::reshape(&wave, shape, s).expect("of that shape")
}

fn assert_near(have: &Array, want: &Array, tolerance: f32) {
    assert_eq!(have.shape(), want.shape());
    for (have, want) in floats(have).iter().zip(floats(want)) {
        assert!((have - want).abs() <= tolerance, "{have} for {want}");
    }
}

#[test]
fn gathered_products_in_parts_are_those_of_whole_matrices() {
    let s = Device::Cpu.stream().expect("the CPU is there");
    let b = waves(&[3, 5, 7], 0.7, s);
    let numbers = |list: &[i32]| {
        let ints = ints(list, &[list.len() as i32]);
        mlx::astype(&ints, Dtype::U32, s).expect("indices")
    };
    for rows in [1, 64, 65, 150] {
        let a = waves(&[2, rows, 5], 0.3, s);
        let (left, right, two) = (numbers(&[1, 1, 0]), numbers(&[2, 0, 1]), numbers(&[2, 1]));
        for (lhs, rhs) in [(Some(&left), &right), (None, &two)] {
            let have = gpu::gather_in_parts(&a, &b, lhs, Some(rhs), false, s).expect("in parts");
            let want = mlx::gather_mm(&a, &b, lhs, Some(rhs), false, s).expect("whole");
            assert_near(&have, &want, 1e-5);
        }
    }
}

#[test]
fn half_a_spectrum_is_transformed_as_by_mlx() {
    let s = Device::Cpu.stream().expect("the CPU is there");
    for (size, shape, sizes, axes) in [
        (16, [3, 9], vec![16], vec![-1]),
        (15, [3, 8], vec![15], vec![-1]),
        (16, [4, 9], vec![4, 16], vec![0, 1]),
    ] {
        let parts = waves(&[shape[0], shape[1] * 2], 0.9, s);
        let half = mlx::view(&parts, Dtype::C64, s).expect("pairs");
        let want = mlx::irfft(&half, &sizes, &axes, mlx::FftNorm::Backward, s).expect("MLX's");
        let axes: Vec<i32> = axes.iter().map(|axis: &i32| axis.rem_euclid(2)).collect();
        let norm = mlx::FftNorm::Backward;
        let have = fft::irfft_of_half(&half, &sizes, &axes, norm, s).expect("ours");
        assert_near(&have, &want, 1e-6);
        assert_eq!(have.shape()[1], size);
    }
}

#[cfg(emlx_kernels)]
#[test]
fn matrices_are_dense_where_they_surely_lie_one_after_another() {
    let s = Device::Cpu.stream().expect("the CPU is there");
    let whole = waves(&[4, 3, 5], 0.3, s);
    let compute = |array: &Array| {
        mlx::async_eval(&[array], &mlx::graph_lock()).expect("submitted");
        mlx::wait(array).expect("computed");
    };
    let lie_densely = |array: &Array| mlx::lie_densely(array, &mlx::graph_lock());
    compute(&whole);
    let row = mlx::reshape(&whole, &[4, 15], s).expect("rows");
    let row = mlx::slice(&row, &[0, 0], &[1, 15], &[1, 1], s).expect("one");
    let one = mlx::reshape(&row, &[1, 3, 5], s).expect("a matrix");
    for (array, is_dense, label) in [
        (mlx::share(&whole), true, "computed"),
        (mlx::transpose(&whole, &[0, 2, 1], s), true, "in columns"),
        (mlx::transpose(&whole, &[1, 0, 2], s), false, "mixed axes"),
        (mlx::broadcast_to(&one, &[4, 3, 5], s), false, "repeated"),
        (mlx::flip(&whole, &[0], s), false, "in reverse"),
        (
            mlx::slice(&whole, &[0, 0, 0], &[4, 3, 5], &[2, 1, 1], s),
            false,
            "every other one",
        ),
    ] {
        let array = array.expect(label);
        assert_eq!(lie_densely(&array), is_dense, "{label}");
        compute(&array);
        assert_eq!(
            mlx::has_dense_matrices(&array),
            is_dense,
            "{label}, computed"
        );
    }
}
