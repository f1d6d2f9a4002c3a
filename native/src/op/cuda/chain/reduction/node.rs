//! Generated reductions as nodes of MLX's graph.

use super::super::layout::THREADS;
use super::super::{links, node as kernels};
use super::layout::{Frame, Launch, Structure};
use super::{text, Fold, Kept, Rows, Step};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{self, Operand, Type};
use crate::mlx::cuda::generated::{self, Generating, Launched, Node};
use crate::mlx::{self, Stream, Vector};
use crate::op::arg_reduce;
use crate::op::creation::constant;
use crate::op::{Number, Which};
use emlx_cpu::View;
use mlx_rs::Array;
use smallvec::SmallVec;

/// A kernel's name and its text.
pub fn source(structure: &Structure) -> Option<(String, String)> {
    kernels::named("emlx_rows", text::PRELUDE, text::kernel(structure)?)
}

/// A node's work.
struct Reduction {
    rows: Rows,
    /// That elements are read in.
    shape: SmallVec<[i32; 6]>,
    axes: SmallVec<[u8; 4]>,
    parts: usize,
    stream: Stream,
}

impl Generating for Reduction {
    fn launch(&self, inputs: &[View], _: &View, found: &mut dyn FnMut(Launched)) {
        let frame = Frame {
            shape: &self.shape,
            axes: &self.axes,
            parts: self.parts,
        };
        let Some(launch) = Launch::new(&self.rows, frame, inputs) else {
            return;
        };
        if let Ok(image) = kernels::reduction(&launch.structure) {
            found(Launched {
                image,
                arguments: &launch.arguments,
                blocks: launch.blocks,
                threads: THREADS,
            });
        }
    }

    fn build(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Device::Gpu.enter(&self.stream)?;
        composed(
            &self.rows,
            inputs,
            &self.shape,
            &self.axes,
            self.parts,
            Device::Gpu,
            &self.stream,
        )
    }
}

/// The results by MLX's own kernels. Where they are parts, the first one has all.
pub fn composed(
    rows: &Rows,
    inputs: &[Array],
    shape: &[i32],
    axes: &[u8],
    parts: usize,
    device: Device,
    s: &Stream,
) -> Result<Vec<Array>> {
    let mut made: Vec<Array> = Vec::with_capacity(rows.steps.len());
    for step in &rows.steps {
        let of = |operand: Operand| {
            let array = match operand {
                Operand::Input(input) => inputs.get(usize::from(input)),
                Operand::Link(step) => made.get(usize::from(step)),
            };
            array.ok_or_else(|| Error::invalid("a step has no operand"))
        };
        let value = match step {
            Step::Link(link) => {
                let operands = link.operands().iter().map(|operand| of(*operand));
                links::link(link, &operands.collect::<Result<Vec<_>>>()?, device, s)?
            }
            Step::Fold {
                fold,
                of: own,
                operand,
                places,
            } => {
                let array = mlx::broadcast_to(of(*operand)?, shape, s)?;
                let array = mlx::astype(&array, cpu::dtype_of(*own), s)?;
                let places = places.map(of).transpose()?;
                let places = places
                    .map(|places| mlx::broadcast_to(places, shape, s))
                    .transpose()?;
                folded(*fold, *own, &array, places.as_ref(), axes, s)?
            }
        };
        made.push(value);
    }
    let of_one = narrow_shape(shape, axes);
    let results = rows.results.iter().map(|kept| {
        let step = usize::from(kept.step);
        let value = &made[step];
        match kept.is_wide {
            true => mlx::broadcast_to(value, shape, s),
            false if parts == 1 => mlx::broadcast_to(value, &of_one, s),
            false => {
                let value = mlx::broadcast_to(value, &of_one, s)?;
                in_parts(&value, &rows.steps[step], parts, s)
            }
        }
    });
    results.collect()
}

/// A fold over axes, which stay as axes of 1.
fn folded(
    fold: Fold,
    of: Type,
    array: &Array,
    places: Option<&Array>,
    axes: &[u8],
    s: &Stream,
) -> Result<Array> {
    let axes: Vec<i32> = axes.iter().map(|axis| i32::from(*axis)).collect();
    let single = |a: &Array| match of.is_float() {
        true => mlx::astype(a, Dtype::F32, s),
        false => mlx::share(a),
    };
    let value = match fold {
        Fold::Sum => mlx::sum(&single(array)?, &axes, true, s)?,
        Fold::Product => mlx::prod(&single(array)?, &axes, true, s)?,
        Fold::Max => mlx::max(array, &axes, true, s)?,
        Fold::Min => mlx::min(array, &axes, true, s)?,
        Fold::All => mlx::all(array, &axes, true, s)?,
        Fold::Any => mlx::any(array, &axes, true, s)?,
        Fold::Place {
            is_max,
            is_last_nan,
        } => {
            let axis = *axes
                .first()
                .ok_or_else(|| Error::invalid("a place is one along an axis"))?;
            let nan = match is_last_nan {
                true => Which::Last,
                false => Which::First,
            };
            let place = arg_reduce::composed(is_max, array, axis, true, nan, s)?;
            match places {
                None => place,
                Some(places) => mlx::take_along_axis(places, &place, axis, s)?,
            }
        }
    };
    mlx::astype(&value, cpu::dtype_of(fold.result(of)), s)
}

/// A fold's results as the first of several parts, of which the others change nothing.
fn in_parts(value: &Array, step: &Step, parts: usize, s: &Stream) -> Result<Array> {
    let value = mlx::reshape(value, &[1, value.size() as i32], s)?;
    let nothing = match step {
        Step::Fold {
            fold: Fold::Sum, ..
        } => Some(0),
        Step::Fold {
            fold: Fold::Product,
            ..
        } => Some(1),
        _ => None,
    };
    let others = [parts as i32 - 1, value.size() as i32];
    let others = match nothing {
        Some(number) => {
            let number = constant(Number::Int(number), mlx::dtype(&value))?;
            mlx::broadcast_to(&number, &others, s)?
        }
        None => mlx::broadcast_to(&value, &others, s)?,
    };
    mlx::concatenate(&Vector::new(&[value, others]), 0, s)
}

fn narrow_shape(shape: &[i32], axes: &[u8]) -> SmallVec<[i32; 6]> {
    let sizes = shape.iter().enumerate();
    sizes
        .map(|(axis, size)| match axes.contains(&(axis as u8)) {
            true => 1,
            false => *size,
        })
        .collect()
}

/// Rows as two launches, of which the first one folds parts, and the second one what these came to.
pub struct Halves {
    pub first: Rows,
    pub second: Rows,
    /// The inputs that the second one takes behind the first one's results: single elements.
    pub others: SmallVec<[u8; 2]>,
}

/// None where rows are no two launches: folds need one another, or elements are a result.
pub fn halves(rows: &Rows) -> Option<Halves> {
    let levels = rows.levels();
    let is_wide = |kept: &Kept| kept.is_wide;
    if levels.iter().any(|level| *level > 1) || rows.results.iter().any(is_wide) {
        return None;
    }
    let parts = rows.steps.iter().map(|step| match step {
        Step::Link(_) => 0,
        // What is at a place goes with it.
        Step::Fold {
            fold: Fold::Place { .. },
            ..
        } => 2,
        Step::Fold { .. } => 1,
    });
    let parts: u8 = parts.sum();
    let mut halves = Halves {
        first: rows.clone(),
        second: Rows::default(),
        others: SmallVec::new(),
    };
    let Halves {
        first,
        second,
        others,
    } = &mut halves;
    first.results.clear();
    let mut numbers: SmallVec<[Option<u8>; 16]> = SmallVec::new();
    let single = |step: usize| Kept {
        step: step as u8,
        is_wide: false,
    };
    for (i, step) in rows.steps.iter().enumerate() {
        let own = match step {
            Step::Fold { fold, of, .. } => {
                let part = Operand::Input(first.results.len() as u8);
                first.results.push(single(i));
                match fold {
                    Fold::Place { is_max, .. } => {
                        let best = if *is_max { Fold::Max } else { Fold::Min };
                        let number = Operand::Input(first.results.len() as u8);
                        first.results.push(single(first.steps.len()));
                        let operand = step.operands()[0];
                        first.steps.push(Step::fold(best, *of, operand));
                        Some(Step::Fold {
                            fold: *fold,
                            of: *of,
                            operand: number,
                            places: Some(part),
                        })
                    }
                    _ => Some(Step::fold(*fold, fold.result(*of), part)),
                }
            }
            Step::Link(link) if levels[i] > 0 => {
                let operands = link.operands().iter().map(|operand| match *operand {
                    Operand::Link(step) => numbers[usize::from(step)].map(Operand::Link),
                    Operand::Input(input) => {
                        let known = others.iter().position(|other| *other == input);
                        if known.is_none() {
                            others.push(input);
                        }
                        let place = known.unwrap_or(others.len() - 1) as u8;
                        Some(Operand::Input(parts + place))
                    }
                });
                let operands: SmallVec<[Operand; 3]> = operands.collect::<Option<_>>()?;
                Some(Step::Link(link.over(&operands)))
            }
            Step::Link(_) => None,
        };
        numbers.push(own.map(|step| {
            second.steps.push(step);
            second.steps.len() as u8 - 1
        }));
    }
    let results = rows.results.iter();
    let results =
        results.map(|kept| numbers[usize::from(kept.step)].map(|step| single(step.into())));
    second.results = results.collect::<Option<_>>()?;
    Some(halves)
}

pub fn results(
    rows: Rows,
    inputs: &[&Array],
    shape: &[i32],
    axes: &[u8],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    if let Some(input) = inputs
        .iter()
        .find(|input| !cpu::goes_into(input.shape(), shape))
    {
        return Err(Error::invalid(format!(
            "a reduction of shape {shape:?} is given an array of shape {:?}",
            input.shape()
        )));
    }
    let of_one = narrow_shape(shape, axes);
    let parts = super::parts(shape, axes);
    let is_single = |input: &u8| inputs[usize::from(*input)].size() == 1;
    let halves = if parts > 1 { halves(&rows) } else { None };
    if let Some(halves) = halves.filter(|halves| halves.others.iter().all(is_single)) {
        let count = of_one.iter().product::<i32>();
        let parts_shape = [parts as i32, count];
        let made = node(halves.first, inputs, shape, axes, parts, &[&parts_shape], s)?;
        let others = halves.others.iter();
        let others = others.map(|input| mlx::reshape(inputs[usize::from(*input)], &[], s));
        let others: SmallVec<[Array; 2]> = others.collect::<Result<_>>()?;
        let made: SmallVec<[&Array; 4]> = made.iter().chain(&others).collect();
        let of_parts = [1, count];
        let results = node(halves.second, &made, &parts_shape, &[0], 1, &[&of_parts], s)?;
        let results = results.iter();
        return results
            .map(|result| mlx::reshape(result, &of_one, s))
            .collect();
    }
    node(rows, inputs, shape, axes, 1, &[&of_one, shape], s)
}

/// One launch. `shapes` has that of results that the folds determine, and that of those with an element for each that
/// is read.
fn node(
    rows: Rows,
    inputs: &[&Array],
    shape: &[i32],
    axes: &[u8],
    parts: usize,
    shapes: &[&[i32]],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    let outputs: SmallVec<[(&[i32], Dtype); 2]> = rows
        .results
        .iter()
        .map(|kept| {
            let step = &rows.steps[usize::from(kept.step)];
            (shapes[usize::from(kept.is_wide)], cpu::dtype_of(step.to()))
        })
        .collect();
    let reduction = Reduction {
        rows,
        shape: shape.into(),
        axes: axes.into(),
        parts,
        stream: s.clone(),
    };
    generated::nodes(
        Node {
            generating: Box::new(reduction),
            keeps_layout: false,
        },
        inputs,
        &outputs,
        s,
    )
}
