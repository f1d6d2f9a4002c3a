//! Operations by the libraries' calls, with a library for the CPU's memory (stand_in.cpp), against MLX's LAPACK.

use super::*;
use crate::op::tests::bytes;
use once_cell::sync::Lazy;
use std::process::Command;

/// What order.cu does, on the host.
pub fn order_of(pivots: &[i32], order: &mut [i32], inverse: bool) {
    for (i, row) in order.iter_mut().enumerate() {
        *row = i as i32;
    }
    let mut exchange = |j: usize| order.swap(j, pivots[j] as usize - 1);
    match inverse {
        true => (0..pivots.len()).rev().for_each(&mut exchange),
        false => (0..pivots.len()).for_each(&mut exchange),
    }
}

fn libraries() -> &'static Libraries {
    static LOADED: Lazy<Libraries> = Lazy::new(|| {
        let folder = std::env::temp_dir().join(format!("emlx-solver-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (source, library) = (folder.join("stand_in.cpp"), folder.join("stand_in.so"));
        std::fs::write(&source, include_str!("stand_in.cpp")).expect("is written");
        let status = Command::new(env!("EMLX_CXX"))
            .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status();
        assert!(status.expect("a compiler").success());
        let loaded = Libraries::of_host(&library).expect("is loaded");
        let _ = std::fs::remove_dir_all(&folder);
        loaded
    });
    &LOADED
}

fn stream() -> &'static Stream {
    mlx::init();
    Device::Cpu.stream().expect("the CPU is there")
}

fn cholesky(upper: bool) -> Op {
    Op::Cholesky {
        upper,
        semidefinite: None,
    }
}

/// Numbers between -1 and 1 from a seed.
struct Dice(u64);

impl Dice {
    fn number(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn array(&mut self, shape: &[i32], dtype: Dtype) -> Array {
        let size: i32 = shape.iter().product();
        let count = size as usize * dtype.size() / 4;
        let bytes: Vec<u8> = (0..count)
            .flat_map(|_| self.number().to_ne_bytes())
            .collect();
        mlx::from_bytes(&bytes, shape, dtype).expect("bytes of the shape")
    }
}

fn floats(array: &Array) -> Vec<f32> {
    let bytes = bytes(array);
    let words = bytes
        .chunks(4)
        .map(|word| word.try_into().expect("four bytes"));
    words.map(f32::from_ne_bytes).collect()
}

fn assert_close(what: &str, a: &Array, b: &Array, tolerance: f32) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    assert_eq!(mlx::dtype(a), mlx::dtype(b), "{what}");
    let (of_a, of_b) = (floats(a), floats(b));
    let largest = of_b
        .iter()
        .filter(|x| x.is_finite())
        .fold(1f32, |m, x| m.max(x.abs()));
    for (i, (x, y)) in of_a.iter().zip(&of_b).enumerate() {
        let is_close = (x - y).abs() <= tolerance * largest || x == y || x.is_nan() && y.is_nan();
        assert!(
            is_close,
            "{what}: number {i} of {:?} is {x}, not {y}",
            a.shape()
        );
    }
}

/// By the libraries.
fn made(op: &Op, inputs: &[&Array]) -> Made {
    let given: Vec<Option<&Array>> = inputs.iter().map(|array| Some(*array)).collect();
    assert!(takes(op, &Inputs(&given)), "{}", op.name());
    let on = On {
        libraries: libraries(),
        s: stream(),
        name: op.name(),
    };
    on.apply(op, &Inputs(&given)).expect("well-formed")
}

fn outputs(op: &Op, inputs: &[&Array]) -> Outputs {
    let (outputs, fault) = made(op, inputs);
    if let Some(fault) = fault {
        assert_eq!(floats(&fault.sound), [1.0], "{}", op.name());
    }
    outputs
}

/// By MLX on the CPU.
fn expected(op: &Op, inputs: &[&Array]) -> Outputs {
    let given: Vec<Option<&Array>> = inputs.iter().map(|array| Some(*array)).collect();
    linalg::apply(op, &Inputs(&given), stream()).expect("well-formed")
}

fn assert_same(op: &Op, inputs: &[&Array], tolerance: f32) {
    let (a, b) = (outputs(op, inputs), expected(op, inputs));
    assert_eq!(a.len(), b.len());
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert_close(&format!("output {i} of {op:?}"), a, b, tolerance);
    }
}

fn turned(a: &Array) -> Array {
    let mut axes: Vec<i32> = (0..a.ndim() as i32).collect();
    axes.swap(a.ndim() - 2, a.ndim() - 1);
    mlx::transpose(a, &axes, stream()).expect("a view")
}

fn product(a: &Array, b: &Array) -> Array {
    mlx::matmul(a, b, stream()).expect("a product")
}

fn adjoint(a: &Array) -> Array {
    match mlx::dtype(a) {
        Dtype::C64 => mlx::conjugate(&turned(a), stream()).expect("conjugates"),
        _ => turned(a),
    }
}

/// Far from singular.
fn regular(dice: &mut Dice, batch: &[i32], n: i32) -> Array {
    let a = dice.array(&[batch, &[n, n]].concat(), Dtype::F32);
    let eye = mlx::eye(n, n, 0, Dtype::F32, stream()).expect("a matrix");
    let scaled = mlx::multiply(&eye, &float(n as f64 / 2.0, Dtype::F32).unwrap(), stream());
    mlx::add(&a, &scaled.unwrap(), stream()).expect("a sum")
}

/// Hermitian, with positive eigenvalues.
fn definite(dice: &mut Dice, batch: &[i32], n: i32, dtype: Dtype) -> Array {
    let a = dice.array(&[batch, &[n, n]].concat(), dtype);
    let eye = mlx::eye(n, n, 0, dtype, stream()).expect("a matrix");
    mlx::add(&product(&a, &adjoint(&a)), &eye, stream()).expect("a sum")
}

fn triangular(a: &Array, upper: bool) -> Array {
    let triangle = if upper { mlx::triu } else { mlx::tril };
    triangle(a, 0, stream()).expect("a triangle")
}

/// Batches: none, one that takes batched functions, one of two axes.
const BATCHES: [&[i32]; 3] = [&[], &[5], &[2, 3]];
/// Rows: one, few, more than Jacobi's batched methods take.
const SIZES: [i32; 4] = [1, 3, 8, 37];

#[test]
fn factors_of_square_matrices_are_those_of_lapack() {
    let mut dice = Dice(7);
    for batch in BATCHES {
        for n in SIZES {
            let a = regular(&mut dice, batch, n);
            for a in [&a, &turned(&a)] {
                assert_same(&Op::Inv, &[a], 1e-4);
                assert_same(&Op::Lu, &[a], 1e-4);
                assert_same(&Op::Slogdet, &[a], 1e-4);
                assert_same(&Op::Det, &[a], 1e-4);
            }
            for upper in [false, true] {
                let of = definite(&mut dice, batch, n, Dtype::F32);
                let factor = expected(&cholesky(upper), &[&of]);
                assert_same(&cholesky(upper), &[&of], 1e-4);
                // The other triangle is not read.
                assert_same(&cholesky(upper), &[&triangular(&of, upper)], 1e-4);
                assert_same(&Op::CholeskyInv { upper }, &[&factor[0]], 1e-3);
                assert_same(&Op::TriInv { upper }, &[&factor[0]], 1e-3);
                assert_same(
                    &Op::TriInv { upper },
                    &[&regular(&mut dice, batch, n)],
                    1e-3,
                );
            }
        }
    }
}

#[test]
fn factors_of_any_matrix_are_those_of_lapack() {
    let mut dice = Dice(11);
    for batch in BATCHES {
        for (m, n) in [(1, 1), (1, 4), (4, 1), (5, 3), (3, 5), (33, 7), (7, 33)] {
            let a = dice.array(&[batch, &[m, n]].concat(), Dtype::F32);
            for a in [
                &a,
                &turned(&dice.array(&[batch, &[n, m]].concat(), Dtype::F32)),
            ] {
                assert_same(&Op::Qr, &[a], 1e-4);
                assert_same(&Op::Lu, &[a], 1e-4);
                assert_same(&Op::Svd { compute_uv: false }, &[a], 1e-4);
                assert_same(&Op::Pinv, &[a], 1e-2);
                let (lu, by_cpu) = (outputs(&Op::LuFactor, &[a]), expected(&Op::LuFactor, &[a]));
                assert_close("factors", &lu[0], &by_cpu[0], 1e-4);
                assert_eq!(bytes(&lu[1]), bytes(&by_cpu[1]));
            }
        }
    }
}

#[test]
fn singular_vectors_are_orthonormal_and_make_up_the_matrix() {
    let mut dice = Dice(13);
    for dtype in [Dtype::F32, Dtype::C64] {
        for batch in BATCHES {
            for (m, n) in [(1, 1), (1, 4), (5, 3), (3, 5), (8, 8), (35, 6), (6, 35)] {
                let a = dice.array(&[batch, &[m, n]].concat(), dtype);
                let parts = outputs(&Op::Svd { compute_uv: true }, &[&a]);
                let [u, s, vt] = &parts[..] else {
                    panic!("three outputs")
                };
                let values = expected(&Op::Svd { compute_uv: false }, &[&a]);
                assert_close("values", s, &values[0], 1e-4);
                assert_eq!(u.shape(), [batch, &[m, m]].concat());
                assert_eq!(vt.shape(), [batch, &[n, n]].concat());
                let k = m.min(n);
                let on = On {
                    libraries: libraries(),
                    s: stream(),
                    name: "svd",
                };
                let s = mlx::expand_dims(s, &[-2], stream()).unwrap();
                let s = mlx::astype(&s, dtype, stream()).unwrap();
                let us = mlx::multiply(&on.corner(u, m, k).unwrap(), &s, stream()).unwrap();
                let again = product(&us, &on.corner(vt, k, n).unwrap());
                assert_close("u·s·vᴴ", &again, &a, 1e-4);
                for vectors in [u, vt] {
                    let eye = on.identities(vectors).unwrap();
                    assert_close("vectors", &product(&adjoint(vectors), vectors), &eye, 1e-4);
                }
            }
        }
    }
}

#[test]
fn eigenvectors_are_orthonormal_and_make_up_the_matrix() {
    let mut dice = Dice(17);
    for dtype in [Dtype::F32, Dtype::C64] {
        for batch in BATCHES {
            for n in SIZES {
                for upper in [false, true] {
                    let a = definite(&mut dice, batch, n, dtype);
                    let seen = triangular(&a, upper);
                    let parts = outputs(&Op::Eigh { upper }, &[&seen]);
                    let values = expected(&Op::Eigvalsh { upper }, &[&a]);
                    assert_close("values", &parts[0], &values[0], 1e-4);
                    let alone = outputs(&Op::Eigvalsh { upper }, &[&seen]);
                    assert_close("values alone", &alone[0], &values[0], 1e-4);
                    let scale = mlx::expand_dims(&parts[0], &[-2], stream()).unwrap();
                    let scale = mlx::astype(&scale, dtype, stream()).unwrap();
                    let scaled = mlx::multiply(&parts[1], &scale, stream()).unwrap();
                    assert_close("v·w·vᴴ", &product(&scaled, &adjoint(&parts[1])), &a, 1e-4);
                }
            }
        }
    }
}

#[test]
fn systems_are_solved_for_vectors_and_for_batches_that_broadcast() {
    let mut dice = Dice(19);
    let cases: [(&[i32], &[i32]); 7] = [
        (&[], &[]),
        (&[4], &[4]),
        (&[4], &[1]),
        (&[1], &[4]),
        (&[2, 1], &[2, 3]),
        (&[2, 3], &[1, 3]),
        (&[1, 1], &[2, 3]),
    ];
    for (of_a, of_b) in cases {
        for (n, columns) in [(1, 1), (3, 2), (8, 1), (5, 40)] {
            let a = regular(&mut dice, of_a, n);
            let b = dice.array(&[of_b, &[n, columns]].concat(), Dtype::F32);
            assert_same(&Op::Solve, &[&a, &b], 1e-3);
            assert_same(&Op::Solve, &[&turned(&a), &b], 1e-3);
            for upper in [false, true] {
                assert_same(&Op::SolveTriangular { upper }, &[&a, &b], 1e-4);
                assert_same(&Op::SolveTriangular { upper }, &[&turned(&a), &b], 1e-4);
            }
        }
    }
    let vector = dice.array(&[6], Dtype::F32);
    let a = regular(&mut dice, &[], 6);
    assert_same(&Op::Solve, &[&a, &vector], 1e-3);
    let of_batch = regular(&mut dice, &[3], 6);
    assert_same(
        &Op::SolveTriangular { upper: true },
        &[&of_batch, &vector],
        1e-4,
    );
    // A matrix with axes that others have and it has not.
    let b = dice.array(&[3, 6, 2], Dtype::F32);
    assert_same(&Op::SolveTriangular { upper: false }, &[&a, &b], 1e-4);
    let complex = |a: &Array| mlx::astype(a, Dtype::C64, stream()).expect("a cast");
    let other = dice.array(&[6, 2], Dtype::C64);
    let upper = triangular(&complex(&a), true);
    assert_same(
        &Op::SolveTriangular { upper: true },
        &[&upper, &other],
        1e-4,
    );
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let half = |array: &Array| mlx::astype(array, dtype, stream()).expect("a cast");
        let of = outputs(
            &Op::SolveTriangular { upper: true },
            &[&half(&a), &half(&b)],
        );
        assert_eq!(mlx::dtype(&of[0]), dtype);
    }
}

#[test]
fn what_has_no_factor_is_nan_or_a_late_failure() {
    let zeros = mlx::zeros(&[2, 3, 3], Dtype::F32, stream()).unwrap();
    let inverses = [
        Op::Inv,
        Op::TriInv { upper: false },
        Op::CholeskyInv { upper: true },
    ];
    for op in &inverses {
        let fault = made(op, &[&zeros]).1.expect("may fail");
        assert_eq!(floats(&fault.sound), [0.0], "{op:?}");
        let late = match fault.is_triangular {
            true => mlx::tri_inv(&fault.sound, false, stream()),
            false => mlx::inv(&fault.sound, stream()),
        };
        let late = late.expect("built");
        mlx::async_eval(&[&late], &mlx::graph_lock()).expect("submitted");
        let error = stream().synchronize().expect_err("fails");
        assert!(error.to_string().contains("Inverse"), "{error}");
    }
    for op in [Op::Solve, Op::SolveTriangular { upper: true }] {
        let fault = made(&op, &[&zeros, &zeros]).1.expect("may fail");
        assert_eq!(floats(&fault.sound), [0.0], "{op:?}");
    }
    // One matrix of the batch is indefinite, the other is not.
    let eye = mlx::eye(3, 3, 0, Dtype::F32, stream()).unwrap();
    let signs = mlx::from_bytes(
        &[-1f32, 1.0].map(f32::to_ne_bytes).concat(),
        &[2, 1, 1],
        Dtype::F32,
    );
    let both = mlx::multiply(&eye, &signs.unwrap(), stream()).unwrap();
    let factors = floats(&outputs(&cholesky(false), &[&both])[0]);
    assert!(factors[0].is_nan() && factors[1] == 0.0);
    assert_eq!(factors[9..], floats(&eye));
    let values: [[f32; 4]; 5] = [
        [4.0, 2.0, 2.0, 3.0],
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 4.0],
        [1.0, 2.0, 2.0, 1.0],
        [0.0, 1.0, 1.0, 5.0],
    ];
    let values = values.concat().into_iter().flat_map(f32::to_ne_bytes);
    let values: Vec<u8> = values.collect();
    let values = mlx::from_bytes(&values, &[5, 2, 2], Dtype::F32).unwrap();
    for upper in [false, true] {
        let op = Op::Cholesky {
            upper,
            semidefinite: Some(true),
        };
        let factors = floats(&outputs(&op, &[&values])[0]);
        let (zero, one) = if upper { (2, 1) } else { (1, 2) };
        assert_eq!(factors[zero], 0.0);
        assert!((factors[one] - 1.0).abs() < 1e-5, "{factors:?}");
        let semidefinite = if upper {
            [1.0, 1.0, 0.0, 0.0]
        } else {
            [1.0, 0.0, 1.0, 0.0]
        };
        let wanted = semidefinite.into_iter().chain([0.0, 0.0, 0.0, 2.0]);
        for (have, want) in factors[4..12].iter().zip(wanted) {
            assert!((have - want).abs() < 1e-5, "{factors:?}");
        }
        assert!(factors[12].is_nan() && factors[16].is_nan());
    }
    let some = mlx::eye(3, 3, 0, Dtype::F32, stream()).unwrap();
    let some = mlx::concatenate(
        &mlx::Vector::new([
            &mlx::expand_dims(&some, &[0], stream()).unwrap(),
            &mlx::zeros(&[1, 3, 3], Dtype::F32, stream()).unwrap(),
        ]),
        0,
        stream(),
    )
    .unwrap();
    for b in [vec![2, 3], vec![2, 3, 4]] {
        let size = b.iter().product::<i32>() as usize;
        let b = mlx::ones(&b, Dtype::F32, stream()).unwrap();
        let x = floats(&outputs(&Op::SolveOrNan, &[&some, &b])[0]);
        assert_eq!(x[..size / 2], vec![1.0; size / 2]);
        assert!(x[size / 2..].iter().all(|x| x.is_nan()));
    }
    assert_eq!(floats(&outputs(&Op::Det, &[&zeros])[0]), [0.0, 0.0]);
    assert_same(&Op::Slogdet, &[&zeros], 0.0);
    // NaN and infinities never reach a method that iterates.
    let bad = [
        f32::NAN,
        1.0,
        1.0,
        2.0,
        1.0,
        0.0,
        0.0,
        f32::INFINITY,
        1.0,
        0.0,
        0.0,
        1.0,
    ];
    let bad = mlx::from_bytes(&bad.map(f32::to_ne_bytes).concat(), &[3, 2, 2], Dtype::F32).unwrap();
    assert_same(&Op::Svd { compute_uv: false }, &[&bad], 1e-5);
    assert_same(&Op::Eigvalsh { upper: true }, &[&bad], 1e-5);
    let vectors = outputs(&Op::Svd { compute_uv: true }, &[&bad]);
    assert!(floats(&vectors[0])[..8]
        .iter()
        .all(|number| number.is_nan()));
}

#[test]
fn what_the_libraries_lack_is_left_to_the_cpu() {
    let of = |shape: &[i32], dtype| mlx::zeros(shape, dtype, stream()).unwrap();
    let left = |op: Op, inputs: &[&Array]| {
        let given: Vec<Option<&Array>> = inputs.iter().map(|array| Some(*array)).collect();
        assert!(!takes(&op, &Inputs(&given)), "{op:?}");
    };
    let square = of(&[3, 3], Dtype::F32);
    left(Op::Eig, &[&square]);
    left(Op::Inv, &[&of(&[0, 0], Dtype::F32)]);
    left(Op::Inv, &[&of(&[2, 3], Dtype::F32)]);
    left(Op::Inv, &[&of(&[3, 3], Dtype::F16)]);
    left(Op::Qr, &[&of(&[3], Dtype::F32)]);
    left(Op::Qr, &[&of(&[3, 3], Dtype::C64)]);
    left(cholesky(false), &[&of(&[3, 3], Dtype::F64)]);
    left(Op::Solve, &[&square, &of(&[2, 3, 3], Dtype::F32)]);
    left(Op::Solve, &[&square, &of(&[2], Dtype::F32)]);
    left(
        Op::SolveTriangular { upper: true },
        &[&of(&[2, 3, 3], Dtype::F32), &of(&[3, 3, 1], Dtype::F32)],
    );
}

#[test]
fn a_failed_call_names_the_function_and_the_operation() {
    let call = Call {
        name: "cholesky",
        // The stand-in has no such triangle.
        routine: Routine::Geqrf { m: -1, n: 2 },
        is_complex: false,
        batch: 1,
        libraries: libraries(),
    };
    use solver::Solving;
    // SAFETY: the call is refused before memory is looked at.
    let error = unsafe { call.run(std::ptr::null_mut(), &[0], &[0, 0], 0) };
    let error = error.expect_err("is refused").to_string();
    assert!(
        error.contains("cusolverDnSgeqrf failed") && error.contains("of cholesky"),
        "{error}"
    );
}

#[test]
fn elements_are_numbered_as_they_broadcast() {
    assert_eq!(numbers(&[2, 1], &[2, 3]), [0, 0, 0, 1, 1, 1]);
    assert_eq!(numbers(&[3], &[2, 3]), [0, 1, 2, 0, 1, 2]);
    assert_eq!(numbers(&[], &[2]), [0, 0]);
    assert_eq!(numbers(&[], &[]), [0]);
    assert_eq!(broadcast(&[2, 1], &[3]).unwrap()[..], [2, 3]);
    assert!(broadcast(&[2], &[3]).is_none());
}

/// order.cu, compiled for the CPU with one thread in a block.
#[test]
fn the_kernel_of_rows_order_exchanges_them_as_pivots_say() {
    let folder = std::env::temp_dir().join(format!("emlx-order-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut dice = Dice(23);
    for (rows, k, inverse, shared) in [(5, 5, true, true), (7, 4, false, true), (6, 6, true, false)]
    {
        let pivots: Vec<i32> = (0..2 * k)
            .map(|i| {
                let j = (i % k) as f32;
                1 + (j + (dice.number().abs() * (rows as f32 - j)).floor()).min(rows as f32 - 1.0)
                    as i32
            })
            .collect();
        let list: Vec<String> = pivots.iter().map(i32::to_string).collect();
        let source = format!(
            "#include <cstdio>\n#include <cstddef>\n#define __shared__ static\nusing T = int;\n\
             struct {{ int x; }} threadIdx{{0}}, blockIdx{{0}}, blockDim{{1}};\nvoid __syncthreads() {{}}\n\
             constexpr int ROWS = {rows}, PIVOTS = {k}, INVERSE = {}, SHARED = {};\n\
             void kernel(const T* pivots, T* out) {{ {} }}\n\
             int main() {{ T p[] = {{{}}}, out[2 * ROWS];\n\
             for (int b = 0; b < 2; b++) {{ blockIdx.x = b; kernel(p, out); }}\n\
             for (T x : out) printf(\"%d \", x); }}\n",
            i32::from(inverse),
            i32::from(shared),
            include_str!("order.cu"),
            list.join(", ")
        );
        let (file, program) = (folder.join("order.cpp"), folder.join("order"));
        std::fs::write(&file, source).expect("is written");
        let compiler = Command::new(env!("EMLX_CXX"))
            .args(["-std=c++17", "-o"])
            .args([&program, &file])
            .status();
        assert!(compiler.expect("a compiler").success());
        let output = Command::new(&program).output().expect("runs").stdout;
        let output = String::from_utf8(output).expect("text");
        let found: Vec<i32> = output
            .split_whitespace()
            .map(|n| n.parse().expect("a number"))
            .collect();
        let mut expected = vec![0; 2 * rows];
        for (pivots, order) in pivots.chunks(k).zip(expected.chunks_mut(rows)) {
            order_of(pivots, order, inverse);
        }
        assert_eq!(found, expected);
    }
    let _ = std::fs::remove_dir_all(&folder);
}
