//! The text of a kernel that takes elements by indices, and its launches. A thread moves a pack of elements that lie
//! one beside another in the array and in the result, or one element where none do.

use super::super::layout::{MAX_ARGUMENTS, MAX_BLOCKS, MAX_NARROW, PACK_BYTES, THREADS};
use super::super::node::rows;
use super::super::text::{is_signed, stored, Arguments, NAME};
use super::{Along, Gather};
use crate::cpu::Type;
use emlx_cpu::{Axes, View};
use smallvec::SmallVec;
use std::fmt::Write;

/// What a kernel's text is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Structure {
    /// Bytes of an element.
    pub size: usize,
    /// Of each array of indices.
    pub types: SmallVec<[Type; 2]>,
    /// Axes of the result that are left after joining, without that of packs.
    pub rank: usize,
    /// Elements that a thread moves.
    pub pack: usize,
    /// Whether places have 64 bits.
    pub is_wide: bool,
}

/// A structure with what one launch of its kernel is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub structure: Structure,
    pub arguments: SmallVec<[i32; 16]>,
    pub blocks: usize,
}

/// An array's steps along the axes of the result.
fn steps(view: &View, along: &Along) -> SmallVec<[i64; 6]> {
    let step = |axis: &Option<u8>| match *axis {
        Some(axis) if view.shape()[usize::from(axis)] != 1 => view.strides()[usize::from(axis)],
        _ => 0,
    };
    along.iter().map(step).collect()
}

impl Launch {
    /// Of elements of so many bytes. None where a launch has no room for the arguments.
    pub fn new(
        gather: &Gather,
        size: usize,
        types: &[Type],
        a: &View,
        indices: &[View],
    ) -> Option<Launch> {
        Launch::within(MAX_NARROW, gather, size, types, a, indices)
    }

    /// With places of 32 bits up to so many elements.
    pub fn within(
        most: usize,
        gather: &Gather,
        size: usize,
        types: &[Type],
        a: &View,
        indices: &[View],
    ) -> Option<Launch> {
        let shape = &gather.shape;
        let own = indices.iter().zip(&gather.indices);
        let all: SmallVec<[SmallVec<[i64; 6]>; 4]> = std::iter::once(steps(a, &gather.along))
            .chain(own.map(|(view, index)| steps(view, &index.along)))
            .collect();
        // SAFETY: sizes and steps are there, and there is nothing to be read.
        let mut axes = unsafe {
            let nothing = std::ptr::null::<u8>();
            let views: SmallVec<[View; 4]> = all
                .iter()
                .map(|steps| View::of(nothing, shape, steps))
                .collect();
            Axes::new(&views, &View::of(nothing, shape, &rows(shape)))
        };
        // Elements beside each other that all indices take together.
        let last = axes.sizes.len() - 1;
        let is_row =
            axes.steps[0][last] == 1 && axes.steps[1..].iter().all(|steps| steps[last] == 0);
        let mut pack = if is_row { PACK_BYTES / size } else { 1 };
        while axes.sizes[last] % pack != 0 {
            pack /= 2;
        }
        if pack > 1 {
            axes.sizes[last] /= pack;
            axes.steps[0][last] = pack as isize;
        }
        let packs: usize = axes.sizes.iter().product();
        let reach = |steps: &[isize], sizes: &[usize]| -> usize {
            let steps = steps.iter().zip(sizes);
            steps
                .map(|(step, size)| step.unsigned_abs() * (size - 1))
                .sum()
        };
        let whole = |view: &View| -> usize {
            let sizes = view.shape().iter().zip(view.strides());
            sizes
                .map(|(size, step)| {
                    step.unsigned_abs() as usize * (*size as usize).saturating_sub(1)
                })
                .sum()
        };
        let farthest = axes
            .steps
            .iter()
            .map(|steps| reach(steps, &axes.sizes))
            .max();
        let farthest = farthest.unwrap_or(0).max(2 * whole(a));
        let is_wide = farthest.max(packs * pack) > most;
        let mut arguments = SmallVec::new();
        let mut add = |number: i64| {
            arguments.push(number as i32);
            if is_wide {
                arguments.push((number >> 32) as i32);
            }
        };
        add(packs as i64);
        axes.sizes.iter().for_each(|size| add(*size as i64));
        for steps in &axes.steps {
            steps.iter().for_each(|step| add(*step as i64));
        }
        for index in &gather.indices {
            let axis = usize::from(index.axis);
            let length = a.shape()[axis];
            let step = if length == 1 { 0 } else { a.strides()[axis] };
            [length.into(), index.last.into(), step]
                .into_iter()
                .for_each(&mut add);
        }
        if 8 * (indices.len() + 2) + 4 * arguments.len() > MAX_ARGUMENTS {
            return None;
        }
        Some(Launch {
            structure: Structure {
                size,
                types: types.into(),
                rank: axes.sizes.len(),
                pack,
                is_wide,
            },
            arguments,
            blocks: packs.div_ceil(THREADS).min(MAX_BLOCKS),
        })
    }
}

/// How many numbers a kernel takes.
#[cfg(test)]
pub fn numbers(structure: &Structure) -> usize {
    let indices = structure.types.len();
    let all = 1 + structure.rank * (2 + indices) + 3 * indices;
    if structure.is_wide {
        2 * all
    } else {
        all
    }
}

/// The kernel, whose name is [`NAME`].
pub fn text(structure: &Structure) -> String {
    let Structure {
        size,
        types,
        rank,
        pack,
        is_wide,
    } = structure;
    let (index, step) = match is_wide {
        true => ("u64", "s64"),
        false => ("u32", "s32"),
    };
    let own = match size {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        _ => "u64",
    };
    let mut arguments = Arguments {
        is_wide: *is_wide,
        count: 0,
        code: String::new(),
    };
    arguments.take(index, "packs");
    for axis in 0..*rank {
        arguments.take(index, &format!("n{axis}"));
    }
    for array in 0..=types.len() {
        for axis in 0..*rank {
            arguments.take(step, &format!("s{array}_{axis}"));
        }
    }
    for i in 1..=types.len() {
        arguments.take(step, &format!("length{i}"));
        arguments.take(step, &format!("last{i}"));
        arguments.take(step, &format!("step{i}"));
    }
    let mut code = std::mem::take(&mut arguments.code);
    let _ = write!(
        code,
        "  const {index} stride = {index}(gridDim.x) * {THREADS};
  for ({index} at = {index}(blockIdx.x) * {THREADS} + threadIdx.x; at < packs; at += stride) {{
    {index} rest = at;
"
    );
    for axis in (1..*rank).rev() {
        let _ = writeln!(
            code,
            "    const {index} c{axis} = rest % n{axis};\n    rest /= n{axis};"
        );
    }
    let _ = writeln!(code, "    const {index} c0 = rest;");
    let place = |array: usize| {
        let terms = (0..*rank).map(|axis| format!("{step}(c{axis}) * s{array}_{axis}"));
        terms.collect::<Vec<_>>().join(" + ")
    };
    let _ = writeln!(code, "    {step} from = {};", place(0));
    for (i, of) in types.iter().enumerate() {
        let i = i + 1;
        let read = format!("p{i}[{}]", place(i));
        let (wide, below) = match of {
            // As a signed one it would be negative.
            Type::U64 => (
                format!("s64({read} < 0x7fffffffull ? {read} : 0x7fffffffull)"),
                "",
            ),
            _ if is_signed(*of) => (format!("s64({read})"), "i < 0 ? i + length : "),
            _ => (format!("s64({read})"), ""),
        };
        let _ = write!(
            code,
            "    {{
      const s64 length = length{i};
      s64 i = {wide};
      i = {below}i;
      i = i < 0 ? 0 : i;
      from += {step}(i > last{i} ? s64(last{i}) : i) * step{i};
    }}
"
        );
    }
    let _ = match pack {
        1 => writeln!(code, "    r0[at] = p0[from];\n  }}"),
        _ => writeln!(
            code,
            "    const bool is_aligned = ((u64(p0 + from) | u64(r0 + at * {pack})) & {}) == 0;
    const Pack<{own}, {pack}> moved = read_pack<{own}, {pack}>(p0 + from, {pack}, is_aligned);
    write_pack<{own}, {pack}>(moved, r0 + at * {pack}, {pack}, is_aligned);
  }}",
            pack * size - 1
        ),
    };
    let mut parameters = vec![format!("const {own}* __restrict__ p0")];
    let indices = types.iter().enumerate();
    parameters
        .extend(indices.map(|(i, of)| format!("const {}* __restrict__ p{}", stored(*of), i + 1)));
    parameters.push(format!("{own}* __restrict__ r0"));
    parameters.extend((0..arguments.count).map(|i| format!("int a{i}")));
    format!(
        "extern \"C\" __global__ void __launch_bounds__({THREADS}) {NAME}({}) {{\n{code}}}\n",
        parameters.join(", ")
    )
}

/// A kernel's name and its text.
pub fn source(structure: &Structure) -> Option<(String, String)> {
    super::super::node::named("emlx_gather", "", text(structure))
}
