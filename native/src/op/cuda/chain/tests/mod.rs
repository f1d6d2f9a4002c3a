//! Generated kernels, compiled for the CPU (test/cuda/emulate.hpp) and run there, against the CPU's own chains.

mod emulated;
mod gather;
mod reduction;
mod reference;

use super::layout::{Kind, Launch, Structure};
use super::{links, text};
use crate::base::Device;
use crate::cpu::{
    self, Action, Bits, Comparison, Division, Function, Link, Links, Operand, Pair, Test, Type,
};
use crate::mlx;
use crate::mlx::cuda::compiler;
use emulated::{bytes, numbers, strides, Case, Dice, Held, Library};
use half::{bf16, f16};
use std::collections::HashMap;

/// The types that the GPU has.
const TYPES: [Type; 12] = [
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
];

/// Functions whose last digits are CUDA's own.
const ROUGH: [Function; 23] = [
    Function::Exp,
    Function::Sigmoid,
    Function::Tanh,
    Function::Erf,
    Function::Log,
    Function::Log1p,
    Function::Expm1,
    Function::Sin,
    Function::Cos,
    Function::Tan,
    Function::Sinh,
    Function::Cosh,
    Function::Asin,
    Function::Acos,
    Function::Atan,
    Function::Asinh,
    Function::Acosh,
    Function::Atanh,
    Function::Log2,
    Function::Log10,
    Function::Cbrt,
    Function::Erfc,
    Function::Erfinv,
];

fn actions() -> Vec<Action> {
    let exact = [
        Function::Sqrt,
        Function::Rsqrt,
        Function::Negative,
        Function::Abs,
        Function::Square,
        Function::Floor,
        Function::Ceil,
        Function::Trunc,
        Function::Round,
        Function::RoundAway,
        Function::Sign,
        Function::Reciprocal,
    ];
    let pairs = [
        Pair::Add,
        Pair::Subtract,
        Pair::Multiply,
        Pair::Divide,
        Pair::Maximum,
        Pair::Minimum,
        Pair::Power,
        Pair::Atan2,
        Pair::Fmod,
        Pair::FloorMod,
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
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::Less,
        Comparison::LessEqual,
        Comparison::Greater,
        Comparison::GreaterEqual,
        Comparison::And,
        Comparison::Or,
        Comparison::Xor,
    ];
    let tests = [
        Test::Nan,
        Test::Infinite,
        Test::PositiveInfinity,
        Test::NegativeInfinity,
        Test::Finite,
    ];
    let others = [Action::Not, Action::Select, Action::Cast, Action::ToInteger];
    ROUGH
        .into_iter()
        .chain(exact)
        .map(Action::Unary)
        .chain(pairs.map(Action::Binary))
        .chain(bits.map(Action::Bits))
        .chain(divisions.map(Action::Division))
        .chain(comparisons.map(Action::Compare))
        .chain(tests.map(Action::Test))
        .chain(others)
        .collect()
}

/// Each action with each pair of types that it takes.
fn all_links() -> Vec<Link> {
    let inputs = [0, 1, 2].map(Operand::Input);
    let mut all = Vec::new();
    for action in actions() {
        for from in TYPES {
            let taken = TYPES.into_iter().filter(|to| action.takes(from, *to));
            all.extend(taken.map(|to| Link::new(action, from, to, &inputs[..action.arity()])));
        }
    }
    all
}

fn number(of: Type, bytes: &[u8]) -> f64 {
    match of {
        Type::F16 => f16::from_ne_bytes([bytes[0], bytes[1]]).to_f64(),
        Type::Bf16 => bf16::from_ne_bytes([bytes[0], bytes[1]]).to_f64(),
        _ => f32::from_ne_bytes(bytes.try_into().expect("four bytes")).into(),
    }
}

/// Whether two elements are the same, or nearly where the last digits may differ.
fn agree(of: Type, is_rough: bool, a: &[u8], b: &[u8]) -> bool {
    if a == b || !of.is_float() {
        return a == b;
    }
    let (a, b) = (number(of, a), number(of, b));
    let (unit, smallest) = match of {
        Type::F16 => (2f64.powi(-10), 2f64.powi(-24)),
        Type::Bf16 => (2f64.powi(-7), 2f64.powi(-133)),
        _ => (8.0 * 2f64.powi(-23), 2f64.powi(-147)),
    };
    let is_near = (a - b).abs() <= unit * b.abs().max(a.abs()) + smallest;
    a.is_nan() && b.is_nan() || is_rough && is_near
}

fn is_rough(links: &[Link]) -> bool {
    links.iter().any(|link| match link.action {
        Action::Unary(function) => ROUGH.contains(&function),
        Action::Binary(pair) => matches!(pair, Pair::Power | Pair::Atan2),
        _ => false,
    })
}

/// Runs each case on both sides.
fn check(cases: &[Case], name: &str) {
    let launches: Vec<Launch> = cases.iter().map(Case::launch).collect();
    let mut structures: Vec<Structure> = Vec::new();
    let mut known: HashMap<Structure, usize> = HashMap::new();
    let number_of = launches.iter().map(|launch| {
        *known.entry(launch.structure.clone()).or_insert_with(|| {
            structures.push(launch.structure.clone());
            structures.len() - 1
        })
    });
    let number_of: Vec<usize> = number_of.collect();
    let Some(library) = Library::new(&structures, name) else {
        return;
    };
    let mut wrong = Vec::new();
    for ((case, launch), i) in cases.iter().zip(&launches).zip(number_of) {
        let have = library.run(i, case, launch);
        let results = text::results(&case.links).zip(have.iter().zip(case.expected()));
        for ((_, link), (have, want)) in results {
            let size = link.to.size();
            let pairs = have.chunks_exact(size).zip(want.chunks_exact(size));
            let is_rough = is_rough(&case.links);
            let mut pairs = pairs.enumerate();
            if let Some((at, (have, want))) =
                pairs.find(|(_, (have, want))| !agree(link.to, is_rough, have, want))
            {
                let given: Vec<&[u8]> = case
                    .inputs
                    .iter()
                    .map(|input| {
                        let size = input.memory.len() / case.size().max(1);
                        input.memory.get(at * size..(at + 1) * size).unwrap_or(&[])
                    })
                    .collect();
                wrong.push(format!(
                    "{:?} at {at} of {given:?}: {have:?}, not {want:?}",
                    case.links
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_action_of_every_type_means_what_it_means_on_the_cpu() {
    const COUNT: usize = 38 * 38 + 601;
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let cases = all_links().into_iter().map(|link| {
        let place = |place| link.action.operand(place, link.from);
        let inputs = (0..link.action.arity()).map(|i| {
            let numbers = numbers(place(i), COUNT, i == 1, &mut dice);
            Held::rows(numbers, &[COUNT as i32])
        });
        Case {
            inputs: inputs.collect(),
            links: Links::from_iter([link]),
            shape: vec![COUNT as i32],
            strides: vec![1],
            most: usize::MAX,
            is_joined: false,
        }
    });
    check(&cases.collect::<Vec<_>>(), "actions");
}

/// a·b + c, and whether that is less than a, of f32 or of 8-bit integers.
fn sample(of: Type) -> Links {
    let pair = |pair, operands: &[Operand]| Link::new(Action::Binary(pair), of, of, operands);
    let (a, b, c) = (Operand::Input(0), Operand::Input(1), Operand::Input(2));
    let less = Action::Compare(Comparison::Less);
    let mut links = Links::from_iter([
        pair(Pair::Multiply, &[a, b]),
        pair(Pair::Add, &[Operand::Link(0), c]),
        Link::new(less, of, Type::Bool, &[Operand::Link(1), a]),
    ]);
    links[1].is_kept = true;
    links
}

/// An array of `shape` in one of several layouts.
fn laid_out(of: Type, shape: &[i32], layout: usize, dice: &mut Dice) -> Held {
    let size = of.size();
    let rank = shape.len();
    let count: usize = shape.iter().map(|size| *size as usize).product();
    let all = |count: usize, dice: &mut Dice| numbers(of, count, false, dice);
    let mut held = Held::rows(all(count + 8, dice), shape);
    match layout {
        // Rows, from an address that no pack begins at.
        0 => held.offset = size,
        // One element, as a scalar and as an array of shape {1, 1}.
        1 => held = Held::rows(all(1, dice), &[]),
        2 => held = Held::rows(all(1, dice), &[1, 1][..rank.min(2)]),
        // A row for all rows, and an element for each row.
        3 => {
            let last = shape[rank - 1];
            held = Held::rows(all(last as usize, dice), &[last]);
        }
        4 => {
            let mut column = shape.to_vec();
            column[rank - 1] = 1;
            held = Held::rows(all(count, dice), &column);
        }
        // The axes the other way round in memory.
        5 => {
            let turned: Vec<i32> = shape.iter().rev().copied().collect();
            held.strides = strides(&turned);
            held.strides.reverse();
        }
        // Backwards.
        6 => {
            held.offset = (count - 1) * size;
            held.strides.iter_mut().for_each(|step| *step = -*step);
        }
        // Every third element.
        7 => {
            held = Held::rows(all(3 * count, dice), shape);
            held.strides.iter_mut().for_each(|step| *step *= 3);
        }
        _ => {}
    }
    held
}

#[test]
fn arrays_may_lie_in_any_way() {
    const LAYOUTS: usize = 9;
    let mut dice = Dice(77);
    let shapes: [&[i32]; 9] = [
        &[1],
        &[7],
        &[2049],
        &[3, 5],
        &[64, 33],
        &[1, 300],
        &[4, 1, 9],
        &[5, 6, 7],
        &[3, 2, 4, 5],
    ];
    let mut cases = Vec::new();
    for of in [Type::F32, Type::U8] {
        for shape in shapes {
            for first in 0..LAYOUTS {
                for second in [first, (first + 1) % LAYOUTS, (first + 4) % LAYOUTS] {
                    let layouts = [first, second, (2 * first + second) % LAYOUTS];
                    let inputs = layouts.map(|layout| laid_out(of, shape, layout, &mut dice));
                    cases.push(Case {
                        links: sample(of),
                        inputs: inputs.into(),
                        shape: shape.to_vec(),
                        strides: strides(shape),
                        // Of those alike, one has indices of 64 bits.
                        most: if first == second { 0 } else { usize::MAX },
                        is_joined: false,
                    });
                }
            }
        }
    }
    check(&cases, "layouts");
}

#[test]
fn results_may_lie_as_their_inputs_do() {
    let mut dice = Dice(5);
    let shape = [6, 35];
    let inputs = [5, 5, 3].map(|layout| laid_out(Type::F32, &shape, layout, &mut dice));
    let case = Case {
        links: sample(Type::F32),
        strides: inputs[0].strides.clone(),
        inputs: inputs.into(),
        shape: shape.to_vec(),
        most: usize::MAX,
        is_joined: false,
    };
    let kinds = case.launch().structure.kinds;
    assert_eq!(kinds[..], [Kind::Whole, Kind::Whole, Kind::Strided]);
    check(&[case], "transposed");
}

#[test]
fn results_may_be_one_array() {
    let mut dice = Dice(11);
    // a·b + c is a result besides what is less of it and a.
    let mut links = sample(Type::F32);
    let less = Action::Binary(Pair::Minimum);
    let operands = [Operand::Link(1), Operand::Input(0)];
    links[2] = Link::new(less, Type::F32, Type::F32, &operands);
    let shapes: [&[i32]; 4] = [&[1], &[2049], &[5, 6, 7], &[64, 32]];
    let cases = shapes
        .into_iter()
        .flat_map(|shape| [0, usize::MAX].map(|most| (shape, most)));
    let cases = cases.map(|(shape, most)| Case {
        links: links.clone(),
        inputs: [8, 5, 4]
            .map(|layout| laid_out(Type::F32, shape, layout, &mut dice))
            .into(),
        shape: shape.to_vec(),
        strides: strides(shape),
        most,
        is_joined: true,
    });
    check(&cases.collect::<Vec<_>>(), "joined");
}

#[test]
fn a_structure_has_one_kernel_for_all_shapes() {
    let launch = |shape: &[i32], layout| {
        let mut dice = Dice(3);
        let inputs = [0, layout, 1].map(|layout| laid_out(Type::F32, shape, layout, &mut dice));
        let case = Case {
            links: sample(Type::F32),
            inputs: inputs.into(),
            shape: shape.to_vec(),
            strides: strides(shape),
            most: usize::MAX,
            is_joined: false,
        };
        case.launch()
    };
    let (small, large) = (launch(&[3, 5], 3), launch(&[700, 41], 3));
    assert_eq!(small.structure, large.structure);
    assert_ne!(small.arguments, large.arguments);
    assert_eq!(small.structure.rank, 2);
    assert_ne!(small.structure, launch(&[3, 5], 0).structure);
    let names = [3, 0].map(|layout| super::node::source(&launch(&[3, 5], layout).structure));
    let [Some((strided, text)), Some((whole, _))] = names else {
        panic!("no text")
    };
    assert!(strided != whole && text.contains(&format!("{strided}(const float*")));
}

#[test]
fn large_arrays_have_indices_of_64_bits() {
    let shape = [1 << 16, 1 << 15];
    let held = Held {
        memory: Vec::new(),
        offset: 0,
        shape: shape.to_vec(),
        strides: vec![1, 1 << 16],
    };
    let case = Case {
        links: Links::from_iter([Link::new(
            Action::Not,
            Type::U8,
            Type::U8,
            &[Operand::Input(0)],
        )]),
        inputs: vec![held],
        shape: shape.to_vec(),
        strides: strides(&shape),
        most: 1 << 30,
        is_joined: false,
    };
    let launch = case.launch();
    assert!(launch.structure.is_wide && launch.structure.rank == 2);
    assert_eq!(launch.arguments[..4], [i32::MIN, 0, 1 << 16, 0]);
    assert_eq!(launch.blocks, 1 << 20);
}

/// Links one by one, by MLX's own kernels for the CPU, of numbers that no type is too small for.
#[test]
fn links_one_by_one_are_the_same() {
    mlx::init();
    let stream = Device::Cpu.stream().expect("a stream");
    let mut wrong = Vec::new();
    for link in all_links() {
        let count = 60;
        let inputs: Vec<Held> = (0..link.action.arity())
            .map(|i| {
                let of = link.action.operand(i, link.from);
                let numbers = (0..count).flat_map(|n| {
                    let whole = (n * (i + 3)) as i128 % 7 + i as i128;
                    bytes(of, whole, 0.11 * whole as f64 + 0.05)
                });
                Held::rows(numbers.collect(), &[count as i32])
            })
            .collect();
        let arrays = inputs.iter().enumerate().map(|(i, input)| {
            let of = link.action.operand(i, link.from);
            let dtype = cpu::dtype_of(of);
            mlx::from_bytes(&input.memory, &input.shape, dtype).expect("an array")
        });
        let arrays: Vec<_> = arrays.collect();
        let made = links::composed(&[link], &arrays, &[count as i32], Device::Cpu, stream);
        let made = made.expect("composed");
        mlx::async_eval(&[&made[0]], &mlx::graph_lock()).expect("evaluates");
        mlx::wait(&made[0]).expect("is computed");
        // SAFETY: computed.
        let have = unsafe { mlx::bytes(&made[0]) }.expect("in rows");
        let case = Case {
            links: Links::from_iter([link]),
            inputs,
            shape: vec![count as i32],
            strides: vec![1],
            most: usize::MAX,
            is_joined: false,
        };
        let want = &case.expected()[0];
        let size = link.to.size();
        let mut pairs = have.chunks_exact(size).zip(want.chunks_exact(size));
        // MLX has coarser functions, and rounds some of 16-bit floats more than once.
        let is_near = |have: &[u8], want: &[u8]| {
            let of_f32 = || (number(link.to, have) - number(link.to, want)).abs() < 1e-5;
            agree(link.to, true, have, want) || link.to == Type::F32 && of_f32()
        };
        if !pairs.all(|(have, want)| is_near(have, want)) {
            wrong.push(format!("{link:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// Needs CUDA's compiler in the library path, and no GPU.
#[test]
fn cudas_compiler_takes_every_text() {
    if !compiler::is_there() {
        println!("skipped: libnvrtc is not there");
        return;
    }
    let mut dice = Dice(9);
    let mut source = String::from(text::PRELUDE);
    let mut add = |links: Links, layouts: [usize; 3], most: usize| {
        let types = super::layout::types(&links, links[0].operands().len().max(links.len()));
        let inputs = types.iter().zip(layouts);
        let case = Case {
            inputs: inputs
                .map(|(of, layout)| laid_out(*of, &[6, 35], layout, &mut dice))
                .collect(),
            links,
            shape: vec![6, 35],
            strides: strides(&[6, 35]),
            most,
            is_joined: false,
        };
        let kernel = text::kernel(&case.launch().structure).expect("has a text");
        let name = format!("k{}", source.len());
        source.push_str(&kernel.replace(text::NAME, &name));
    };
    for link in all_links() {
        add(Links::from_iter([link]), [8; 3], usize::MAX);
    }
    for of in [Type::F32, Type::U8] {
        for most in [0, usize::MAX] {
            add(sample(of), [0, 1, 3], most);
            add(sample(of), [5, 4, 8], most);
        }
    }
    source.push_str(&reduction::texts());
    source.push_str(&gather::texts());
    let options = super::node::OPTIONS.map(String::from);
    let options = [&options[..], &["--gpu-architecture=sm_90".into()]].concat();
    let code = compiler::compile("all", &source, &options).expect("compiles");
    assert!(code.starts_with(b"\x7fELF"));
}
