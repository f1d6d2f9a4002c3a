//! Reductions as generated kernels for CUDA: of which steps they consist, for operations here and for the pass `rows`,
//! which brings the steps of several together. Called by [`Op::apply`] and by softmax.rs.

use super::creation::constant;
use super::cuda::chain as generated;
use super::generated::reduction::{self, Fold, Rows, Step};
use super::reduce::Reducing;
use super::{Inputs, Number, Op, Which};
use crate::base::{Dtype, Result};
use crate::cpu::{self, Action, Function, Link, Operand, Pair, Test, Type};
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

/// Steps while they are put together.
#[derive(Default)]
pub struct Builder(pub SmallVec<[Step; 8]>);

impl Builder {
    fn push(&mut self, step: Step) -> Operand {
        self.0.push(step);
        Operand::Link(self.0.len() as u8 - 1)
    }

    fn cast(&mut self, from: Type, to: Type, operand: Operand) -> Operand {
        match from == to {
            true => operand,
            false => self.push(Step::Link(Link::new(Action::Cast, from, to, &[operand]))),
        }
    }

    fn fold(&mut self, fold: Fold, of: Type, operand: Operand) -> Operand {
        self.push(Step::fold(fold, of, operand))
    }

    fn unary(&mut self, function: Function, operand: Operand) -> Operand {
        let action = Action::Unary(function);
        self.push(Step::Link(Link::new(
            action,
            Type::F32,
            Type::F32,
            &[operand],
        )))
    }

    fn pair(&mut self, pair: Pair, a: Operand, b: Operand) -> Operand {
        let action = Action::Binary(pair);
        self.push(Step::Link(Link::new(action, Type::F32, Type::F32, &[a, b])))
    }

    /// The sum of the squared distances from the mean, over how many that stands for.
    fn variance(&mut self, x: Operand, count: Operand, free: Operand) -> Operand {
        let mean = self.mean(x, count);
        self.spread(x, mean, free)
    }

    fn mean(&mut self, x: Operand, count: Operand) -> Operand {
        let sum = self.fold(Fold::Sum, Type::F32, x);
        self.pair(Pair::Divide, sum, count)
    }

    fn spread(&mut self, x: Operand, mean: Operand, free: Operand) -> Operand {
        let distance = self.pair(Pair::Subtract, x, mean);
        let square = self.unary(Function::Square, distance);
        self.mean(square, free)
    }

    /// e^(x − max), and its sum.
    fn exponentials(&mut self, x: Operand, top: Operand) -> (Operand, Operand) {
        let below = self.pair(Pair::Subtract, x, top);
        let exps = self.unary(Function::Exp, below);
        (exps, self.fold(Fold::Sum, Type::F32, exps))
    }

    /// log Σ e^x of what these are; an infinite maximum is the result.
    fn logarithm(&mut self, sum: Operand, top: Operand) -> Operand {
        let log = self.unary(Function::Log, sum);
        let all = self.pair(Pair::Add, log, top);
        let test = Action::Test(Test::Infinite);
        let is_infinite = self.push(Step::Link(Link::new(test, Type::F32, Type::Bool, &[top])));
        let operands = [is_infinite, top, all];
        self.push(Step::Link(Link::new(
            Action::Select,
            Type::F32,
            Type::F32,
            &operands,
        )))
    }
}

/// The fold of an operation that has one, and the steps before and behind it, over elements of a type to those of
/// another: None where there is none on the GPU. It goes over one axis where it says a place.
pub fn steps(op: &Op, from: Dtype, to: Dtype) -> Option<SmallVec<[Step; 8]>> {
    let (from, to) = (cpu::type_of(from)?, cpu::type_of(to)?);
    let fold = match op {
        Op::Argmax { nan, .. } => Fold::Place {
            is_max: true,
            is_last_nan: *nan == Which::Last,
        },
        Op::Argmin { nan, .. } => Fold::Place {
            is_max: false,
            is_last_nan: *nan == Which::Last,
        },
        _ => match op.reducing()?.reducing {
            Reducing::Sum => Fold::Sum,
            Reducing::Prod => Fold::Product,
            Reducing::Max => Fold::Max,
            Reducing::Min => Fold::Min,
            Reducing::All => Fold::All,
            Reducing::Any => Fold::Any,
            _ => return None,
        },
    };
    let of = match fold {
        // Integers are added up in the result's type.
        Fold::Sum | Fold::Product if !from.is_float() && to != Type::Bool => to,
        Fold::All | Fold::Any => Type::Bool,
        _ => from,
    };
    let mut steps = Builder::default();
    let element = steps.cast(from, of, Operand::Input(0));
    let value = steps.fold(fold, of, element);
    steps.cast(fold.result(of), to, value);
    let is_taken = Rows::new(steps.0.iter().copied()).is_taken();
    is_taken.then_some(steps.0)
}

/// The axes of an operation with [`steps`], and whether they stay as axes of 1. None of those that are not there, and
/// of the place in an array of several axes, which is flattened first.
pub fn axes(op: &Op, rank: usize) -> Option<(SmallVec<[u8; 4]>, bool)> {
    let positive = |axis: &i32| {
        let axis = if *axis < 0 { axis + rank as i32 } else { *axis };
        let is_there = (0..rank as i32).contains(&axis);
        is_there.then_some(axis as u8)
    };
    let (mut axes, keeps): (SmallVec<[u8; 4]>, bool) = match op {
        Op::Argmax { axis, keepdims, .. } | Op::Argmin { axis, keepdims, .. } => match axis {
            Some(axis) => ([positive(axis)?].into_iter().collect(), *keepdims),
            None if rank == 1 => ([0].into_iter().collect(), *keepdims),
            None => return None,
        },
        _ => {
            let over = op.reducing()?;
            let axes: Option<_> = match over.axes {
                Some(axes) => axes.iter().map(positive).collect(),
                None => Some((0..rank as u8).collect()),
            };
            (axes?, over.keepdims)
        }
    };
    let count = axes.len();
    axes.sort_unstable();
    axes.dedup();
    (axes.len() == count).then_some((axes, keeps))
}

/// The result without the axes that were folded, where they do not stay.
fn shaped(array: &Array, axes: &[u8], keeps: bool, s: &Stream) -> Result<Array> {
    if keeps {
        return mlx::share(array);
    }
    let axes: Vec<i32> = axes.iter().map(|axis| i32::from(*axis)).collect();
    mlx::squeeze(array, &axes, s)
}

/// The operation by a generated kernel, with its result cast to the type that is given. None where there is none.
pub fn by_kernel(op: &Op, inputs: &Inputs, to: Option<Dtype>, s: &Stream) -> Result<Option<Array>> {
    let &[Some(a)] = inputs.0 else {
        return Ok(None);
    };
    if a.size() == 0 || generated::unavailable().is_some() {
        return Ok(None);
    }
    let Some((axes, keeps)) = axes(op, a.ndim()) else {
        return Ok(None);
    };
    if axes.is_empty() {
        return Ok(None);
    }
    let from = mlx::dtype(a);
    let single = match op.reducing().map(|over| over.reducing) {
        Some(Reducing::Mean) => mean(a, &axes, s)?,
        Some(Reducing::Var { ddof }) => variance(a, &axes, ddof, false, s)?,
        Some(Reducing::Std { ddof }) => variance(a, &axes, ddof, true, s)?,
        Some(Reducing::Logsumexp) => logsumexp(a, &axes, s)?,
        _ => {
            let Some(own) = result_type(op, a, s)? else {
                return Ok(None);
            };
            let Some(mut all) = steps(op, from, own).map(Builder) else {
                return Ok(None);
            };
            let last = Operand::Link(all.0.len() as u8 - 1);
            if let (Some(own), Some(to)) = (cpu::type_of(own), to.and_then(cpu::type_of)) {
                all.cast(own, to, last);
            }
            let rows = Rows::new(all.0);
            let is_cast = to.is_none_or(|to| cpu::type_of(to).is_some());
            match rows.is_taken() && is_cast {
                true => reduction::results(rows, &[a], a.shape(), &axes, s)?.pop(),
                false => None,
            }
        }
    };
    let Some(array) = single else { return Ok(None) };
    let array = shaped(&array, &axes, keeps, s)?;
    let to = to.unwrap_or_else(|| mlx::dtype(&array));
    Ok(Some(mlx::astype(&array, to, s)?))
}

/// The type that MLX has a result in.
fn result_type(op: &Op, a: &Array, s: &Stream) -> Result<Option<Dtype>> {
    let dtype = mlx::dtype(a);
    let is_whole = !dtype.is_float();
    Ok(match op {
        _ if dtype == Dtype::C64 || dtype == Dtype::F64 => None,
        Op::Argmax { .. } | Op::Argmin { .. } => Some(Dtype::U32),
        // Of which only the type is looked at.
        Op::Sum { .. } if is_whole => Some(mlx::dtype(&mlx::sum(a, &[0], false, s)?)),
        Op::Prod { .. } if is_whole => Some(mlx::dtype(&mlx::prod(a, &[0], false, s)?)),
        Op::All { .. } | Op::Any { .. } => Some(Dtype::Bool),
        _ => Some(dtype),
    })
}

fn number(value: f64) -> Result<Array> {
    constant(Number::Float(value), Dtype::F32)
}

fn count(a: &Array, axes: &[u8]) -> f64 {
    let sizes = axes
        .iter()
        .map(|axis| f64::from(a.shape()[usize::from(*axis)]));
    sizes.product()
}

/// The element as f32, and the type of the result. None of complex numbers and f64.
fn single(a: &Array) -> Option<(Builder, Operand, Type)> {
    let own = cpu::type_of(mlx::dtype(a)).filter(|own| *own != Type::F64)?;
    let mut steps = Builder::default();
    let element = steps.cast(own, Type::F32, Operand::Input(0));
    let to = if own.is_float() { own } else { Type::F32 };
    Some((steps, element, to))
}

/// The last step's value, which is cast to a type.
fn finished(
    mut steps: Builder,
    value: Operand,
    to: Type,
    inputs: &[&Array],
    axes: &[u8],
    s: &Stream,
) -> Result<Option<Array>> {
    steps.cast(Type::F32, to, value);
    let rows = Rows::new(steps.0);
    Ok(reduction::results(rows, inputs, inputs[0].shape(), axes, s)?.pop())
}

fn mean(a: &Array, axes: &[u8], s: &Stream) -> Result<Option<Array>> {
    let Some((mut steps, x, to)) = single(a) else {
        return Ok(None);
    };
    let mean = steps.mean(x, Operand::Input(1));
    let count = number(count(a, axes))?;
    finished(steps, mean, to, &[a, &count], axes, s)
}

fn variance(a: &Array, axes: &[u8], ddof: i32, is_root: bool, s: &Stream) -> Result<Option<Array>> {
    let Some((mut steps, x, to)) = single(a) else {
        return Ok(None);
    };
    let all = count(a, axes);
    let (count, free) = (number(all)?, number((all - f64::from(ddof)).max(0.0))?);
    let third = Operand::Input(2);
    let (variance, mean) = match reduction::parts(a.shape(), axes) == 1 {
        true => (steps.variance(x, Operand::Input(1), third), count),
        false => {
            let Some((mut first, x, _)) = single(a) else {
                return Ok(None);
            };
            let mean = first.mean(x, Operand::Input(1));
            let Some(mean) = finished(first, mean, Type::F32, &[a, &count], axes, s)? else {
                return Ok(None);
            };
            (steps.spread(x, Operand::Input(1), third), mean)
        }
    };
    let value = match is_root {
        true => steps.unary(Function::Sqrt, variance),
        false => variance,
    };
    finished(steps, value, to, &[a, &mean, &free], axes, s)
}

fn logsumexp(a: &Array, axes: &[u8], s: &Stream) -> Result<Option<Array>> {
    let Some((mut steps, x, to)) = single(a) else {
        return Ok(None);
    };
    if reduction::parts(a.shape(), axes) == 1 {
        let top = steps.fold(Fold::Max, Type::F32, x);
        let (_, sum) = steps.exponentials(x, top);
        let value = steps.logarithm(sum, top);
        return finished(steps, value, to, &[a], axes, s);
    }
    let top = steps.fold(Fold::Max, Type::F32, x);
    let Some(top) = finished(steps, top, Type::F32, &[a], axes, s)? else {
        return Ok(None);
    };
    let Some((mut steps, x, _)) = single(a) else {
        return Ok(None);
    };
    let (_, sum) = steps.exponentials(x, Operand::Input(1));
    let Some(sum) = finished(steps, sum, Type::F32, &[a, &top], axes, s)? else {
        return Ok(None);
    };
    let mut steps = Builder::default();
    let value = steps.logarithm(Operand::Input(0), Operand::Input(1));
    steps.cast(Type::F32, to, value);
    let links = steps.0.iter().filter_map(|step| match step {
        Step::Link(link) => Some(*link),
        Step::Fold { .. } => None,
    });
    let shape = sum.shape();
    Ok(generated::results(links.collect(), false, &[&sum, &top], shape, s)?.pop())
}

/// The softmax of a float array that has elements, over axes that are not negative. None where there is no kernel for
/// it.
pub fn softmax(a: &Array, axes: &[i32], s: &Stream) -> Result<Option<Array>> {
    if generated::unavailable().is_some() {
        return Ok(None);
    }
    let axes: SmallVec<[u8; 4]> = axes.iter().map(|axis| *axis as u8).collect();
    let Some((mut steps, x, to)) = single(a) else {
        return Ok(None);
    };
    if reduction::parts(a.shape(), &axes) > 1 {
        return Ok(None);
    }
    let top = steps.fold(Fold::Max, Type::F32, x);
    let (exps, sum) = steps.exponentials(x, top);
    let share = steps.pair(Pair::Divide, exps, sum);
    steps.cast(Type::F32, to, share);
    let mut rows = Rows::new(steps.0);
    rows.results[0].is_wide = true;
    Ok(reduction::results(rows, &[a], a.shape(), &axes, s)?.pop())
}

#[cfg(all(test, emlx_kernels))]
mod tests {
    use super::*;
    use crate::base::Device;

    fn values(array: &Array, s: &Stream) -> Vec<f32> {
        let array = mlx::contiguous(&mlx::astype(array, Dtype::F32, s).expect("cast"), false, s);
        let array = array.expect("in rows");
        mlx::async_eval(&[&array], &mlx::graph_lock()).expect("submitted");
        mlx::wait(&array).expect("computed");
        // SAFETY: computed.
        let bytes = unsafe { mlx::bytes(&array) }.expect("in rows");
        let numbers = bytes
            .chunks_exact(4)
            .map(|four| four.try_into().expect("four"));
        numbers.map(f32::from_ne_bytes).collect()
    }

    fn near(have: &Array, want: &Array, s: &Stream) {
        let (have, want) = (values(have, s), values(want, s));
        let is_near = |(a, b): (&f32, &f32)| {
            (a - b).abs() <= 1e-5 * b.abs().max(1.0) || a == b || a.is_nan() && b.is_nan()
        };
        assert!(
            have.len() == want.len() && have.iter().zip(&want).all(is_near),
            "{have:?}, not {want:?}"
        );
    }

    fn given(dtype: Dtype, s: &Stream) -> Array {
        let numbers = (0..24).flat_map(|i| ((i * 7 % 11) as f32 * 0.5 - 2.0).to_ne_bytes());
        let numbers = numbers.collect::<Vec<u8>>();
        let array = mlx::from_bytes(&numbers, &[4, 6], Dtype::F32).expect("an array");
        mlx::astype(&array, dtype, s).expect("cast")
    }

    /// What operations are by their steps, and by MLX.
    #[test]
    fn steps_are_the_operations() {
        mlx::init();
        let s = Device::Cpu.stream().expect("a stream");
        let over = || (Some(vec![-1]), true);
        let places = |is_max: bool, nan| match is_max {
            true => Op::Argmax {
                axis: Some(1),
                keepdims: true,
                nan,
            },
            false => Op::Argmin {
                axis: Some(1),
                keepdims: true,
                nan,
            },
        };
        let (axes, keepdims) = over();
        let all = [
            Op::Sum {
                axes: axes.clone(),
                keepdims,
            },
            Op::Prod {
                axes: axes.clone(),
                keepdims,
            },
            Op::Max {
                axes: axes.clone(),
                keepdims,
            },
            Op::Min {
                axes: axes.clone(),
                keepdims,
            },
            Op::All {
                axes: axes.clone(),
                keepdims,
            },
            Op::Any { axes, keepdims },
            places(true, Which::First),
            places(false, Which::Last),
        ];
        for dtype in [Dtype::F32, Dtype::S32, Dtype::U8, Dtype::S8, Dtype::Bool] {
            let a = given(dtype, s);
            for op in &all {
                let inputs = [Some(&a)];
                let want = op
                    .composed(&Inputs(&inputs), Device::Cpu, s)
                    .expect("built");
                let own = result_type(op, &a, s).expect("known").expect("a type");
                assert_eq!(own, mlx::dtype(&want[0]), "{op:?} of {dtype:?}");
                let rows = Rows::new(steps(op, dtype, own).expect("has steps"));
                let (axes, keeps) = self::axes(op, 2).expect("has axes");
                assert_eq!((&axes[..], keeps), (&[1][..], true));
                let shape = a.shape();
                let have =
                    reduction::composed(&rows, &[mlx::share(&a).expect("shared")], shape, &axes, s);
                near(&have.expect("composed")[0], &want[0], s);
            }
        }
        for dtype in [Dtype::F64, Dtype::C64] {
            assert!(steps(&all[0], dtype, dtype).is_none());
        }
    }

    #[test]
    fn axes_are_those_that_are_there() {
        let sum = |axes| Op::Sum {
            axes,
            keepdims: false,
        };
        let of = |axes, rank| axes_of(&sum(axes), rank);
        assert_eq!(of(None, 2), Some(vec![0, 1]));
        assert_eq!(of(Some(vec![-1, 0]), 3), Some(vec![0, 2]));
        assert_eq!(of(Some(vec![2]), 2), None);
        assert_eq!(of(Some(vec![1, -1]), 2), None);
        let place = |axis| Op::Argmax {
            axis,
            keepdims: false,
            nan: Which::First,
        };
        assert_eq!(axes_of(&place(None), 2), None);
        assert_eq!(axes_of(&place(None), 1), Some(vec![0]));
        assert_eq!(axes_of(&place(Some(-2)), 2), Some(vec![0]));
    }

    fn axes_of(op: &Op, rank: usize) -> Option<Vec<u8>> {
        axes(op, rank).map(|(axes, _)| axes.to_vec())
    }

    #[test]
    fn variances_and_logarithms_of_sums_are_mlxs() {
        mlx::init();
        let s = Device::Cpu.stream().expect("a stream");
        let a = given(Dtype::F32, s);
        let run = |steps: Builder, others: &[f64]| {
            let rows = Rows::new(steps.0);
            let mut inputs = vec![mlx::share(&a).expect("shared")];
            inputs.extend(others.iter().map(|other| number(*other).expect("a number")));
            let made = reduction::composed(&rows, &inputs, a.shape(), &[1], s);
            made.expect("composed").pop().expect("a result")
        };
        let [_, second, third] = [0, 1, 2].map(Operand::Input);
        let (mut steps, x, _) = single(&a).expect("of floats");
        steps.variance(x, second, third);
        near(
            &run(steps, &[6.0, 5.0]),
            &mlx::var(&a, &[1], true, 1, s).expect("built"),
            s,
        );
        let (mut steps, x, _) = single(&a).expect("of floats");
        let top = steps.fold(Fold::Max, Type::F32, x);
        let (_, sum) = steps.exponentials(x, top);
        steps.logarithm(sum, top);
        let want = mlx::logsumexp(&a, &[1], true, s).expect("built");
        near(&run(steps, &[]), &want, s);
    }
}
