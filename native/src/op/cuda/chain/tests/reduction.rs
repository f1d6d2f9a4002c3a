//! Generated reductions, run on the CPU, against plain loops in f64.

use super::super::reduction::layout::{Form, Launch, Structure};
use super::super::reduction::{node, parts, text, Fold, Kept, Rows, Step};
use super::super::text::NAME;
use super::emulated::{runner, Library};
use super::reference::Case;
use super::*;

/// Numbers of a kernel's arguments.
fn numbers_of(structure: &Structure) -> usize {
    use super::super::reduction::layout::Kind as Along;
    let narrow = structure
        .kinds
        .iter()
        .filter(|kind| **kind == Along::Narrow);
    let strided = structure.kinds.len() - narrow.count();
    let split = if structure.is_split { 2 } else { 0 };
    let all =
        2 + split + structure.kept * (1 + structure.kinds.len()) + structure.folded * (1 + strided);
    if structure.is_wide {
        2 * all
    } else {
        all
    }
}

fn library(structures: &[Structure], name: &str) -> Option<Library> {
    let mut source = String::from(text::PRELUDE);
    for (i, structure) in structures.iter().enumerate() {
        let kernel = text::kernel(structure).expect("has a text");
        source.push_str(&kernel.replace(NAME, &format!("k{i}")));
        let arrays = structure.types.len() + structure.rows.results.len();
        source.push_str(&runner(i, arrays, numbers_of(structure), "launch"));
    }
    Library::of_text(&source, name)
}

/// Each result of each case.
fn run(cases: &[Case], name: &str) -> Option<Vec<Vec<Vec<u8>>>> {
    let launches: Vec<Launch> = cases.iter().map(Case::launch).collect();
    let mut structures: Vec<Structure> = Vec::new();
    let mut known: HashMap<Structure, usize> = HashMap::new();
    let number_of = launches.iter().map(|launch| {
        assert_eq!(launch.arguments.len(), numbers_of(&launch.structure));
        *known.entry(launch.structure.clone()).or_insert_with(|| {
            structures.push(launch.structure.clone());
            structures.len() - 1
        })
    });
    let number_of: Vec<usize> = number_of.collect();
    let library = library(&structures, name)?;
    let all = cases.iter().zip(&launches).zip(number_of);
    let all = all.map(|((case, launch), i)| {
        let results = case.rows.results.iter();
        let mut results: Vec<Vec<u8>> = results
            .map(|kept| {
                let of = case.rows.steps[usize::from(kept.step)].to();
                vec![0xab; case.count(kept) * of.size()]
            })
            .collect();
        let blocks = launch.blocks;
        library.call(i, &case.inputs, &mut results, &launch.arguments, blocks);
        results
    });
    Some(all.collect())
}

/// Whether a value is what it should be: exactly, or within so much of it.
fn is_near(of: Type, have: &[u8], want: &[u8], error: f64) -> bool {
    if !of.is_float() || have == want {
        return have == want;
    }
    let (a, b) = (number(of, have), number(of, want));
    let unit = match of {
        Type::F16 => 2f64.powi(-10),
        Type::Bf16 => 2f64.powi(-7),
        _ => 0.0,
    };
    a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= error.max(unit * b.abs())
}

/// Compares with `expected`, each element within an error relative to it and one that is absolute.
fn compare(case: &Case, have: &[Vec<u8>], relative: f64, absolute: f64, wrong: &mut Vec<String>) {
    let steps = case.expected();
    let places = case.results();
    for (kept, have) in case.rows.results.iter().zip(have) {
        let of = case.rows.steps[usize::from(kept.step)].to();
        let size = of.size();
        let all = &steps[usize::from(kept.step)];
        for (at, place) in places.iter().enumerate() {
            let place = if kept.is_wide { at } else { *place };
            let have = &have[place * size..(place + 1) * size];
            let want = &all[at * size..(at + 1) * size];
            let error = match of.is_float() {
                true => relative * number(of, want).abs() + absolute,
                false => 0.0,
            };
            if !is_near(of, have, want, error) {
                wrong.push(format!(
                    "{:?} of {:?} over {:?} ({:?}), result {place}: {have:?}, not {want:?}",
                    case.rows.steps,
                    case.shape,
                    case.axes,
                    case.launch().structure.form
                ));
                break;
            }
        }
    }
}

fn check(cases: &[Case], name: &str, relative: f64, absolute: f64) {
    let Some(all) = run(cases, name) else { return };
    let mut wrong = Vec::new();
    for (case, have) in cases.iter().zip(&all) {
        compare(case, have, relative, absolute, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

const A: Operand = Operand::Input(0);
const B: Operand = Operand::Input(1);

fn folds(of: Type) -> Vec<Fold> {
    let mut all = vec![Fold::Max, Fold::Min];
    for (is_max, is_last_nan) in [(true, false), (true, true), (false, false), (false, true)] {
        all.push(Fold::Place {
            is_max,
            is_last_nan,
        });
    }
    match of {
        Type::Bool => all.extend([Fold::All, Fold::Any]),
        _ => all.extend([Fold::Sum, Fold::Product]),
    }
    all
}

/// Numbers whose sums and products stay near 1.
fn mild(of: Type, count: usize, dice: &mut Dice) -> Vec<u8> {
    let numbers = (0..count).flat_map(|_| {
        let float = 0.9 + dice.below(1000) as f64 / 5000.0;
        bytes(of, dice.below(5) as i128 - 2, float)
    });
    numbers.collect()
}

#[test]
fn every_fold_of_every_type_is_that_of_a_loop() {
    let mut dice = Dice(0x51ed_270b);
    let mut cases = Vec::new();
    for of in TYPES {
        for fold in folds(of) {
            let adds = matches!(fold, Fold::Sum | Fold::Product) && of.is_float();
            for (shape, axes) in [
                (&[7, 100][..], &[1][..]),
                (&[3, 2077], &[1]),
                (&[300, 5], &[0]),
                (&[3, 40, 6], &[1]),
                (&[300, 9], &[1]),
            ] {
                let count: usize = shape.iter().map(|size| *size as usize).product();
                let memory = match adds {
                    true => mild(of, count, &mut dice),
                    // With NaN in the first rows.
                    false => numbers(of, count, false, &mut dice),
                };
                let held = Held::rows(memory, shape);
                let rows = Rows::new([Step::fold(fold, of, A)]);
                cases.push(Case::new(rows, vec![held], shape, axes));
            }
        }
    }
    check(&cases, "folds", 2e-5, 0.0);
}

#[test]
fn sums_do_not_drift() {
    let mut dice = Dice(1);
    let count = 1 << 18;
    let memory = |of: Type| -> Vec<u8> { (0..count).flat_map(|_| bytes(of, 0, 0.1)).collect() };
    let mut cases = Vec::new();
    for (shape, axes) in [([1, count], [1]), ([count / 4, 4], [0])] {
        for of in [Type::F32, Type::Bf16] {
            let rows = Rows::new([Step::fold(Fold::Sum, of, A)]);
            cases.push(Case::new(
                rows,
                vec![Held::rows(memory(of), &shape)],
                &shape,
                &axes,
            ));
        }
    }
    check(&cases, "drift", 2e-7, 0.0);
    // An infinity stays one.
    let mut infinite = mild(Type::F32, 600, &mut dice);
    infinite[40..44].copy_from_slice(&f32::INFINITY.to_ne_bytes());
    let rows = Rows::new([Step::fold(Fold::Sum, Type::F32, A)]);
    let case = Case::new(rows, vec![Held::rows(infinite, &[2, 300])], &[2, 300], &[1]);
    check(&[case], "infinite", 1e-6, 0.0);
}

fn link(action: Action, operands: &[Operand]) -> Step {
    Step::Link(Link::new(action, Type::F32, Type::F32, operands))
}

fn pair(pair: Pair, a: Operand, b: Operand) -> Step {
    link(Action::Binary(pair), &[a, b])
}

fn cast(from: Type, to: Type, operand: Operand) -> Step {
    Step::Link(Link::new(Action::Cast, from, to, &[operand]))
}

fn l(step: u8) -> Operand {
    Operand::Link(step)
}

/// e^(x − max) / Σ e^(x − max) of elements of a type, as results of it, with the sum as another result.
fn softmax(of: Type) -> Rows {
    let steps = [
        cast(of, Type::F32, A),
        Step::fold(Fold::Max, Type::F32, l(0)),
        pair(Pair::Subtract, l(0), l(1)),
        link(Action::Unary(Function::Exp), &[l(2)]),
        Step::fold(Fold::Sum, Type::F32, l(3)),
        pair(Pair::Divide, l(3), l(4)),
        cast(Type::F32, of, l(5)),
    ];
    let mut rows = Rows::new(steps);
    rows.results[0].is_wide = true;
    rows.results.push(Kept {
        step: 4,
        is_wide: false,
    });
    rows
}

/// The mean squared distance of a·b from its mean, where b is a scale, and its root over what a row of b says.
fn spread(count: i32) -> (Rows, Held) {
    let steps = [
        pair(Pair::Multiply, A, B),
        Step::fold(Fold::Sum, Type::F32, l(0)),
        pair(Pair::Divide, l(1), Operand::Input(2)),
        pair(Pair::Subtract, l(0), l(2)),
        link(Action::Unary(Function::Square), &[l(3)]),
        Step::fold(Fold::Sum, Type::F32, l(4)),
        pair(Pair::Divide, l(5), Operand::Input(2)),
        link(Action::Unary(Function::Sqrt), &[l(6)]),
    ];
    let count = Held::rows((count as f32).to_ne_bytes().to_vec(), &[]);
    (Rows::new(steps), count)
}

const SHAPES: [(&[i32], &[u8]); 16] = [
    (&[1], &[0]),
    (&[37], &[0]),
    (&[5000], &[0]),
    (&[5, 64], &[1]),
    (&[5, 64], &[0]),
    (&[6, 1300], &[1]),
    (&[1300, 6], &[0]),
    (&[9, 3], &[1]),
    (&[300, 4], &[1]),
    (&[3, 1, 70], &[2]),
    (&[4, 50, 6], &[1]),
    (&[4, 20, 6], &[0, 2]),
    (&[2, 3, 4, 45], &[1, 3]),
    (&[2, 3, 40, 5], &[0, 1, 2, 3]),
    (&[2, 40, 3, 5], &[1, 2]),
    (&[3, 4, 1], &[2]),
];

#[test]
fn folds_of_folds_are_those_of_loops_in_any_layout() {
    let mut dice = Dice(99);
    let mut cases = Vec::new();
    for (i, (shape, axes)) in SHAPES.into_iter().enumerate() {
        for layout in 0..9 {
            let tame = |held: &mut Held, of: Type, dice: &mut Dice| {
                let count = held.memory.len() / of.size();
                held.memory = mild(of, count, dice);
            };
            let of = [Type::F32, Type::Bf16, Type::F16][layout % 3];
            let mut held = laid_out(of, shape, layout, &mut dice);
            tame(&mut held, of, &mut dice);
            let mut case = Case::new(softmax(of), vec![held], shape, axes);
            case.most = if (i + layout) % 2 == 0 { 0 } else { usize::MAX };
            cases.push(case);
            let mut inputs = [layout, (layout + 3) % 9]
                .map(|layout| laid_out(Type::F32, shape, layout, &mut dice));
            inputs
                .iter_mut()
                .for_each(|held| tame(held, Type::F32, &mut dice));
            let count: i32 = axes.iter().map(|axis| shape[usize::from(*axis)]).product();
            let (rows, count) = spread(count);
            let inputs = inputs.into_iter().chain([count]).collect();
            let mut case = Case::new(rows, inputs, shape, axes);
            case.most = if (i + layout) % 2 == 1 { 0 } else { usize::MAX };
            cases.push(case);
        }
    }
    let forms: std::collections::HashSet<Form> = cases
        .iter()
        .map(|case| case.launch().structure.form)
        .collect();
    assert_eq!(forms.len(), 4, "{forms:?}");
    check(&cases, "levels", 2e-5, 2e-6);
}

fn again(case: &Case) -> Case {
    let inputs = case.inputs.iter().map(|held| Held {
        memory: held.memory.clone(),
        offset: held.offset,
        shape: held.shape.clone(),
        strides: held.strides.clone(),
    });
    Case {
        rows: case.rows.clone(),
        inputs: inputs.collect(),
        shape: case.shape.clone(),
        axes: case.axes.clone(),
        ..*case
    }
}

/// Cases by two launches.
fn check_halves(cases: Vec<Case>, name: &str, relative: f64) {
    let halves = |case: &Case| node::halves(&case.rows).expect("has halves");
    let firsts = cases.iter().map(|case| Case {
        rows: halves(case).first,
        ..again(case)
    });
    let firsts: Vec<Case> = firsts.collect();
    let Some(parts) = run(&firsts, &format!("{name}-parts")) else {
        return;
    };
    let seconds: Vec<Case> = cases
        .iter()
        .zip(parts)
        .map(|(case, parts)| {
            let shape = [case.parts as i32, case.frame().counts().1 as i32];
            let halves = halves(case);
            let parts = parts.into_iter().map(|part| Held::rows(part, &shape));
            let others = halves.others.iter();
            let others =
                others.map(|i| Held::rows(case.inputs[usize::from(*i)].memory.clone(), &[]));
            Case {
                most: case.most,
                ..Case::new(halves.second, parts.chain(others).collect(), &shape, &[0])
            }
        })
        .collect();
    let Some(all) = run(&seconds, name) else {
        return;
    };
    let mut wrong = Vec::new();
    for (case, have) in cases.iter().zip(&all) {
        let whole = Case {
            parts: 1,
            ..again(case)
        };
        compare(&whole, have, relative, 0.0, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn long_folds_are_two_launches() {
    let mut dice = Dice(4);
    let mut cases = Vec::new();
    for of in [Type::F32, Type::F16, Type::S16, Type::U64, Type::Bool] {
        for fold in folds(of) {
            let adds = matches!(fold, Fold::Sum | Fold::Product) && of.is_float();
            for (shape, axes, parts) in [
                (&[2, 3000][..], &[1][..], 5),
                (&[1000, 3], &[0], 7),
                // The last parts have nothing.
                (&[300], &[0], 4),
            ] {
                let count: usize = shape.iter().map(|size| *size as usize).product();
                let memory = match adds {
                    true => mild(of, count, &mut dice),
                    false => numbers(of, count, false, &mut dice),
                };
                let inputs = vec![Held::rows(memory, shape)];
                let rows = Rows::new([Step::fold(fold, of, A)]);
                cases.push(Case {
                    parts,
                    most: if parts == 7 { 0 } else { usize::MAX },
                    ..Case::new(rows, inputs, shape, axes)
                });
            }
        }
    }
    // Links before and behind.
    let memory = mild(Type::F32, 6000, &mut dice);
    let rows = Rows::new([
        link(Action::Unary(Function::Square), &[A]),
        Step::fold(Fold::Sum, Type::F32, l(0)),
        link(Action::Unary(Function::Sqrt), &[l(1)]),
        pair(Pair::Divide, l(2), B),
        cast(Type::F32, Type::Bf16, l(3)),
    ]);
    let inputs = vec![
        Held::rows(memory, &[6000]),
        Held::rows(3f32.to_ne_bytes().to_vec(), &[]),
    ];
    cases.push(Case {
        parts: 6,
        ..Case::new(rows, inputs, &[6000], &[0])
    });
    check_halves(cases, "halves", 2e-5);
}

#[test]
fn folds_one_after_another_or_results_of_elements_are_not_halved() {
    assert!(node::halves(&softmax(Type::F32)).is_none());
    let (rows, _) = spread(3);
    assert!(node::halves(&rows).is_none());
    // An array beside what is folded goes to the second one.
    let rows = Rows::new([
        Step::fold(Fold::Sum, Type::F32, A),
        pair(Pair::Divide, l(0), B),
    ]);
    let halves = node::halves(&rows).expect("has halves");
    assert_eq!(halves.others[..], [1]);
    assert_eq!(halves.second.steps[1], pair(Pair::Divide, l(0), B));
    // Few results of many elements are made by all multiprocessors, and many results by one launch.
    assert!(parts(&[1 << 24], &[0]) > 100);
    assert!(parts(&[4096, 4096], &[0]) > 4);
    assert_eq!(parts(&[4096, 4096], &[1]), 1);
    assert_eq!(parts(&[100], &[0]), 1);
}

/// By MLX's own kernels for the CPU.
#[test]
fn steps_one_by_one_are_the_same() {
    mlx::init();
    let stream = Device::Cpu.stream().expect("a stream");
    let mut dice = Dice(12);
    let (variance, count) = spread(40);
    let mild_of = |of: Type, shape: &[i32], dice: &mut Dice| {
        let count = shape.iter().product::<i32>() as usize;
        Held::rows(mild(of, count, dice), shape)
    };
    let mut cases = vec![
        Case::new(
            softmax(Type::F32),
            vec![mild_of(Type::F32, &[3, 40], &mut dice)],
            &[3, 40],
            &[1],
        ),
        Case::new(
            variance,
            vec![
                mild_of(Type::F32, &[40, 5], &mut dice),
                mild_of(Type::F32, &[5], &mut dice),
                count,
            ],
            &[40, 5],
            &[0],
        ),
    ];
    for of in [Type::Bool, Type::S16, Type::F32] {
        for fold in folds(of) {
            let rows = Rows::new([Step::fold(fold, of, A)]);
            let held = Held::rows(
                (0..120i128)
                    .flat_map(|i| bytes(of, i * 7 % 5, ((i * 7) % 11) as f64 * 0.1 + 0.6))
                    .collect(),
                &[3, 40],
            );
            cases.push(Case::new(rows, vec![held], &[3, 40], &[1]));
        }
    }
    let mut wrong = Vec::new();
    for case in &cases {
        let types = super::super::reduction::layout::types(&case.rows, case.inputs.len());
        let arrays = case.inputs.iter().zip(&types);
        let arrays = arrays.map(|(held, of)| {
            mlx::from_bytes(&held.memory, &held.shape, cpu::dtype_of(*of)).expect("an array")
        });
        let arrays: Vec<_> = arrays.collect();
        for parts in [1, 3] {
            if parts > 1 && case.rows.results.len() + case.rows.steps.len() > 2 {
                continue;
            }
            let made = node::composed(
                &case.rows,
                &arrays,
                &case.shape,
                &case.axes,
                parts,
                Device::Cpu,
                stream,
            )
            .expect("composed");
            let have: Vec<Vec<u8>> = made
                .iter()
                .map(|array| {
                    let array = mlx::contiguous(array, false, stream).expect("in rows");
                    mlx::async_eval(&[&array], &mlx::graph_lock()).expect("evaluates");
                    mlx::wait(&array).expect("is computed");
                    // SAFETY: computed.
                    unsafe { mlx::bytes(&array) }.expect("in rows").to_vec()
                })
                .collect();
            // Of parts the first one has all.
            compare(case, &have, 1e-5, 1e-6, &mut wrong);
            if parts > 1 {
                assert_eq!(have[0].len() % 3, 0);
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

/// The texts of all folds and forms, for [`super::cudas_compiler_takes_every_text`].
pub fn texts() -> String {
    let mut dice = Dice(8);
    let mut source = String::from(text::PRELUDE);
    let mut structures: Vec<Structure> = Vec::new();
    let mut add = |case: Case| {
        let structure = case.launch().structure;
        if !structures.contains(&structure) {
            structures.push(structure);
        }
    };
    for of in TYPES {
        for fold in folds(of) {
            for (shape, axes) in [
                (&[7, 100][..], &[1][..]),
                (&[3, 2077], &[1]),
                (&[300, 5], &[0]),
            ] {
                let rows = Rows::new([Step::fold(fold, of, A)]);
                let inputs = vec![laid_out(of, shape, 8, &mut dice)];
                add(Case::new(rows, inputs, shape, axes));
            }
        }
    }
    for (shape, axes) in SHAPES {
        for (layout, most) in [(8, usize::MAX), (5, 0)] {
            let inputs = vec![laid_out(Type::Bf16, shape, layout, &mut dice)];
            add(Case {
                most,
                ..Case::new(softmax(Type::Bf16), inputs, shape, axes)
            });
        }
    }
    let rows = node::halves(&Rows::new([Step::fold(Fold::Sum, Type::F32, A)])).expect("halves");
    add(Case {
        parts: 5,
        ..Case::new(
            rows.first,
            vec![laid_out(Type::F32, &[9000], 8, &mut dice)],
            &[9000],
            &[0],
        )
    });
    for (i, structure) in structures.iter().enumerate() {
        let kernel = text::kernel(structure).expect("has a text");
        source.push_str(&kernel.replace(NAME, &format!("reduction{i}")));
    }
    source
}
