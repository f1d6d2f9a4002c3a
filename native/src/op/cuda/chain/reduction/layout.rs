//! How a reduction's arrays lie, as far as a kernel's text depends on it, how its threads share the work, and the
//! arguments that have the rest.

use super::super::layout::{MAX_ARGUMENTS, MAX_BLOCKS, MAX_NARROW, PACK_BYTES, THREADS};
use super::{Fold, Rows, Step};
use crate::cpu::{Operand, Type};
use emlx_cpu::{Axes, View};
use smallvec::SmallVec;

/// Threads of a warp.
pub const WARP: usize = 32;

/// Which threads fold the elements of one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// Those of a warp, along what is folded.
    Warps,
    /// Those of a block.
    Blocks,
    /// Some of a block; threads beside each other have results beside each other.
    Columns,
    /// One.
    Threads,
}

impl Form {
    /// Results of a block.
    pub fn results(self) -> usize {
        match self {
            Form::Warps => THREADS / WARP,
            Form::Blocks => 1,
            Form::Columns => WARP,
            Form::Threads => THREADS,
        }
    }

    /// Threads of a result.
    pub fn threads(self) -> usize {
        THREADS / self.results()
    }
}

/// How an array lies along what is folded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One element for all.
    Narrow,
    /// Element beside element, along the one axis that there is.
    Whole,
    Strided,
}

/// What a kernel's text is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Structure {
    pub rows: Rows,
    /// Of each input.
    pub types: SmallVec<[Type; 4]>,
    /// Of each input and, behind them, of each result that has an element for each that is read.
    pub kinds: SmallVec<[Kind; 4]>,
    /// Axes that are left after joining.
    pub kept: usize,
    pub folded: usize,
    pub form: Form,
    /// Whether several groups of threads fold parts of what becomes one result.
    pub is_split: bool,
    /// Whether indices have 64 bits.
    pub is_wide: bool,
    /// Elements that a thread reads at once.
    pub pack: usize,
}

/// A structure with what one launch of its kernel is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub structure: Structure,
    pub arguments: SmallVec<[i32; 16]>,
    pub blocks: usize,
}

/// What is folded of arrays of a shape, and into how many parts.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pub shape: &'a [i32],
    pub axes: &'a [u8],
    pub parts: usize,
}

impl Frame<'_> {
    pub fn is_folded(&self, axis: usize) -> bool {
        self.axes.contains(&(axis as u8))
    }

    /// Elements of a result, and how many results.
    pub fn counts(&self) -> (usize, usize) {
        let size = |is_folded: bool| {
            let sizes = self.shape.iter().enumerate();
            let own = sizes.filter(|(axis, _)| self.is_folded(*axis) == is_folded);
            own.map(|(_, size)| *size as usize).product()
        };
        (size(true), size(false))
    }
}

/// The types that steps read their inputs as.
pub fn types(rows: &Rows, inputs: usize) -> SmallVec<[Type; 4]> {
    let mut types = SmallVec::from_elem(Type::U8, inputs);
    for step in &rows.steps {
        for (place, operand) in step.operands().iter().enumerate() {
            if let Operand::Input(input) = *operand {
                types[usize::from(input)] = step.from(place);
            }
        }
    }
    types
}

/// Sizes, and for each array steps, of some axes.
type Part = (SmallVec<[i32; 6]>, SmallVec<[SmallVec<[i64; 6]>; 6]>);

/// The axes of a part after joining, in the order of `like`'s steps.
fn joined((sizes, steps): &Part, like: &[i64]) -> Axes {
    // SAFETY: sizes and steps are there, and there is nothing to be read.
    unsafe {
        let nothing = std::ptr::null::<u8>();
        let views: SmallVec<[View; 6]> = steps
            .iter()
            .map(|steps| View::of(nothing, sizes, steps))
            .collect();
        Axes::new(&views, &View::of(nothing, sizes, like))
    }
}

impl Launch {
    /// None where there is no kernel for it, or a launch has no room for the arguments.
    pub fn new(rows: &Rows, frame: Frame, inputs: &[View]) -> Option<Launch> {
        Launch::within(MAX_NARROW, rows, frame, inputs)
    }

    /// With indices of 32 bits up to so many elements.
    pub fn within(most: usize, rows: &Rows, frame: Frame, inputs: &[View]) -> Option<Launch> {
        let places = rows.steps.iter().any(|step| {
            matches!(
                step,
                Step::Fold {
                    fold: Fold::Place { .. },
                    ..
                }
            )
        });
        if places && frame.axes.len() != 1 {
            return None;
        }
        let types = types(rows, inputs.len());
        let wide_results = rows.results.iter().filter(|kept| kept.is_wide);
        let wide_results: SmallVec<[Type; 2]> = wide_results
            .map(|kept| rows.steps[usize::from(kept.step)].to())
            .collect();
        let (kept, folded) = parts(&frame, inputs, wide_results.len());
        let row_major = super::super::node::rows(&kept.0);
        let kept = joined(&kept, &row_major);
        // What is folded goes in the order of the largest input, as it lies.
        let is_read = |i: &usize| folded.1[*i].iter().any(|step| *step != 0);
        let main = (0..inputs.len()).filter(is_read);
        let main = main.max_by_key(|i| (types[*i].size(), inputs.len() - i));
        let like: SmallVec<[i64; 6]> = match main {
            Some(main) => folded.1[main].iter().map(|step| step.abs()).collect(),
            None => super::super::node::rows(&folded.0),
        };
        let folded = joined(&folded, &like);
        let (count, results) = frame.counts();
        let inner = |axes: &Axes| {
            main.map_or(0, |main| {
                axes.steps[main].last().map_or(0, |s| s.unsigned_abs())
            })
        };
        let form = form(count, results, inner(&folded), inner(&kept));
        let mut pack = match form {
            Form::Warps | Form::Blocks if folded.sizes.len() == 1 && count >= 2 * WARP => {
                let read = types.iter().chain(&wide_results).zip(&folded.steps);
                let read = read.filter(|(_, steps)| steps[0] == 1);
                let largest = read.map(|(of, _)| of.size()).max();
                largest.map_or(1, |size| (PACK_BYTES / size).min(8))
            }
            _ => 1,
        };
        if rows.steps.len() > 24 {
            pack = pack.min(4);
        }
        let kind = |steps: &SmallVec<[isize; 4]>| match steps[..] {
            _ if steps.iter().all(|step| *step == 0) => Kind::Narrow,
            [1] if pack > 1 => Kind::Whole,
            _ => Kind::Strided,
        };
        let mut kinds: SmallVec<[Kind; 4]> = folded.steps.iter().map(kind).collect();
        // An element is written to each place, be there a single one.
        kinds[inputs.len()..]
            .iter_mut()
            .filter(|kind| **kind == Kind::Narrow)
            .for_each(|kind| *kind = Kind::Strided);
        let reach = |axes: &Axes, i: usize| -> usize {
            let steps = axes.steps[i].iter().zip(&axes.sizes);
            steps
                .map(|(step, size)| step.unsigned_abs() * (size - 1))
                .sum()
        };
        let farthest = (0..kinds.len()).map(|i| reach(&kept, i) + reach(&folded, i));
        let most_written = count.max(results * frame.parts);
        let is_wide = most_written.max(farthest.max().unwrap_or(0)) > most;
        let mut arguments = SmallVec::new();
        let mut add = |number: i64| {
            arguments.push(number as i32);
            if is_wide {
                arguments.push((number >> 32) as i32);
            }
        };
        add(results as i64);
        add(count as i64);
        if frame.parts > 1 {
            let unit = form.threads() * pack;
            let piece = count.div_ceil(frame.parts).next_multiple_of(unit);
            add(piece as i64);
            add(frame.parts as i64);
        }
        kept.sizes.iter().for_each(|size| add(*size as i64));
        folded.sizes.iter().for_each(|size| add(*size as i64));
        for (i, kind) in kinds.iter().enumerate() {
            kept.steps[i].iter().for_each(|step| add(*step as i64));
            if *kind != Kind::Narrow {
                folded.steps[i].iter().for_each(|step| add(*step as i64));
            }
        }
        if 8 * (inputs.len() + rows.results.len()) + 4 * arguments.len() > MAX_ARGUMENTS {
            return None;
        }
        let tiles = results.div_ceil(form.results()) * frame.parts;
        Some(Launch {
            structure: Structure {
                rows: rows.clone(),
                types,
                kinds,
                kept: kept.sizes.len(),
                folded: folded.sizes.len(),
                form,
                is_split: frame.parts > 1,
                is_wide,
                pack,
            },
            arguments,
            blocks: tiles.min(MAX_BLOCKS),
        })
    }
}

/// The axes that are kept and those that are folded, of the inputs and of results with an element for each that is
/// read.
fn parts(frame: &Frame, inputs: &[View], results: usize) -> (Part, Part) {
    let rank = frame.shape.len();
    let row_major = super::super::node::rows(frame.shape);
    let step = |input: &View, axis: usize| -> i64 {
        let own = (axis + input.shape().len()).checked_sub(rank);
        match own.filter(|own| input.shape()[*own] != 1) {
            Some(own) => input.strides()[own],
            None => 0,
        }
    };
    let of = |is_folded: bool| -> Part {
        let axes: SmallVec<[usize; 6]> = (0..rank)
            .filter(|axis| frame.is_folded(*axis) == is_folded)
            .collect();
        let mut steps: SmallVec<[SmallVec<[i64; 6]>; 6]> = inputs
            .iter()
            .map(|input| axes.iter().map(|axis| step(input, *axis)).collect())
            .collect();
        let written: SmallVec<[i64; 6]> = axes.iter().map(|axis| row_major[*axis]).collect();
        steps.extend(std::iter::repeat_n(written, results));
        let sizes = axes.iter().map(|axis| frame.shape[*axis]).collect();
        (sizes, steps)
    };
    (of(false), of(true))
}

/// By how many elements become one and how many results there are, and the steps to the next element of what is folded
/// and to that of the next result.
fn form(count: usize, results: usize, folded: usize, kept: usize) -> Form {
    const FEW: usize = 16;
    const LONG: usize = 1024;
    // Blocks that keep all multiprocessors busy.
    const BUSY: usize = 264;
    let in_rows = folded != 0 && (kept == 0 || folded <= kept) || results == 1;
    match in_rows {
        _ if count <= FEW && results > 1 => Form::Threads,
        true if count > LONG || results < LONG && count > LONG / 4 => Form::Blocks,
        true => Form::Warps,
        false if results.div_ceil(THREADS) < BUSY => Form::Columns,
        false => Form::Threads,
    }
}
