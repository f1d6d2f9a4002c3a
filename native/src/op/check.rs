//! What MLX takes for granted: an axis, a size or a stride outside what an array has can end the process there. These
//! checks come before MLX is called, and their errors say what was given.

use crate::base::{Dtype, Error, Result};
use crate::mlx;
use mlx_rs::Array;

/// The non-negative form of an axis.
pub fn axis(array: &Array, axis: i32) -> Result<usize> {
    let rank = array.ndim() as i32;
    if axis < -rank || axis >= rank {
        return Err(Error::invalid(format!(
            "axis {axis} is out of range for shape {:?}",
            array.shape()
        )));
    }
    Ok(axis.rem_euclid(rank) as usize)
}

/// Axes in range, none of them twice, in their non-negative form.
pub fn axes(array: &Array, list: &[i32]) -> Result<Vec<i32>> {
    distinct(list, array.ndim(), || format!("shape {:?}", array.shape()))
}

/// The axes asked for, or all of them.
pub fn axes_or_all(array: &Array, list: &Option<Vec<i32>>) -> Result<Vec<i32>> {
    match list {
        Some(list) => axes(array, list),
        None => Ok((0..array.ndim() as i32).collect()),
    }
}

/// Axes of a result of `rank` axes, for operations that add some.
pub fn new_axes(list: &[i32], rank: usize) -> Result<Vec<i32>> {
    distinct(list, rank, || format!("a result of {rank} axes"))
}

fn distinct(list: &[i32], rank: usize, of: impl Fn() -> String) -> Result<Vec<i32>> {
    let rank = rank as i32;
    let mut seen = Vec::with_capacity(list.len());
    for axis in list {
        if *axis < -rank || *axis >= rank {
            return Err(Error::invalid(format!(
                "axis {axis} is out of range for {}",
                of()
            )));
        }
        let axis = axis.rem_euclid(rank);
        if seen.contains(&axis) {
            return Err(Error::invalid(format!(
                "axis {axis} is named twice in {list:?}"
            )));
        }
        seen.push(axis);
    }
    Ok(seen)
}

/// What attention takes has four axes, in the order that `axes` says.
pub fn heads([q, k, v]: [&Array; 3], axes: &str) -> Result<()> {
    for (name, array) in [("q", q), ("k", k), ("v", v)] {
        if array.ndim() != 4 {
            return Err(Error::invalid(format!(
                "{name} must be {{{axes}}}, got {:?}",
                array.shape()
            )));
        }
    }
    Ok(())
}

/// No negative sizes.
pub fn shape(shape: &[i32]) -> Result<&[i32]> {
    if shape.iter().any(|size| *size < 0) {
        return Err(Error::invalid(format!(
            "shape {shape:?} has a negative size"
        )));
    }
    Ok(shape)
}

/// A shape that holds `size` elements, where one size may be left open with -1.
pub fn reshape(from: &[i32], shape: &[i32]) -> Result<()> {
    let size: i128 = from.iter().map(|d| i128::from(*d)).product();
    let open = shape.iter().filter(|d| **d == -1).count();
    let known = shape
        .iter()
        .filter(|d| **d != -1)
        .try_fold(1i128, |n, d| n.checked_mul(i128::from(*d)));
    let fits = match (open, known) {
        (0, Some(known)) => known == size,
        (1, Some(known)) => known > 0 && size % known == 0,
        _ => false,
    };
    if fits && shape.iter().all(|d| *d >= -1) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "shape {from:?} cannot become {shape:?}"
    )))
}

/// Starts, stops and strides that MLX can count with, meaning the same slice.
pub fn slice(
    array: &Array,
    start: &[i32],
    stop: &[i32],
    strides: &[i32],
) -> Result<(Vec<i32>, Vec<i32>, Vec<i32>)> {
    let rank = array.ndim();
    for (name, list) in [("start", start), ("stop", stop), ("strides", strides)] {
        length(name, list.len(), rank)?;
    }
    if strides.contains(&0) {
        return Err(Error::invalid(format!(
            "strides must not be 0, got {strides:?}"
        )));
    }
    let within = |list: &[i32]| -> Vec<i32> {
        list.iter()
            .zip(array.shape())
            .map(|(value, size)| (*value).clamp(-size - 1, *size))
            .collect()
    };
    let reach = |(stride, size): (&i32, &i32)| (*stride).clamp(-size - 1, *size + 1);
    let strides = strides.iter().zip(array.shape()).map(reach).collect();
    Ok((within(start), within(stop), strides))
}

pub fn length(name: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} has {found} entries, expected {expected}"
    )))
}

pub fn lengths(lists: &[(&str, usize)], expected: usize) -> Result<()> {
    lists
        .iter()
        .try_for_each(|(name, found)| length(name, *found, expected))
}

pub fn at_least(name: &str, value: i32, least: i32) -> Result<()> {
    if value >= least {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} must be at least {least}, got {value}"
    )))
}

/// A stack of matrices with at least one element each.
pub fn matrix(array: &Array) -> Result<()> {
    let shape = array.shape();
    if shape.len() < 2 || shape[shape.len() - 2..].contains(&0) {
        return Err(Error::invalid(format!(
            "takes matrices {{…, rows, columns}} that are not empty, got shape {shape:?}"
        )));
    }
    Ok(())
}

pub fn square(array: &Array) -> Result<()> {
    matrix(array)?;
    let shape = array.shape();
    if shape[shape.len() - 2] == shape[shape.len() - 1] {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "takes square matrices, got shape {shape:?}"
    )))
}

pub fn not_empty(name: &str, array: &Array) -> Result<()> {
    if array.size() > 0 {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name} has shape {:?}, which holds no elements",
        array.shape()
    )))
}

/// The axis is there and has elements.
pub fn filled_axis(array: &Array, axis: i32) -> Result<usize> {
    let axis = self::axis(array, axis)?;
    if array.shape()[axis] > 0 {
        return Ok(axis);
    }
    Err(Error::invalid(format!(
        "axis {axis} of shape {:?} is empty",
        array.shape()
    )))
}

/// A product of sizes that stays within what MLX counts in.
pub fn product(sizes: &[i32]) -> Result<i32> {
    sizes
        .iter()
        .try_fold(1i32, |n, size| n.checked_mul(*size))
        .ok_or_else(|| Error::invalid(format!("sizes {sizes:?} are too large together")))
}

/// An n × m matrix within the memory limit, and a diagonal that need not be counted beyond it.
pub fn matrix_size(n: i32, m: i32, k: i32, dtype: Dtype) -> Result<i32> {
    shape(&[n, m])?;
    mlx::check_bytes(n as u128 * m as u128 * dtype.size() as u128)?;
    Ok(k.clamp(-n, m))
}

/// The formats of packed weights that MLX has.
pub fn packing(group_size: Option<i32>, bits: Option<i32>) -> Result<()> {
    if let Some(size) = group_size {
        if ![16, 32, 64, 128].contains(&size) {
            return Err(Error::invalid(format!(
                "group_size must be 16, 32, 64 or 128, got {size}"
            )));
        }
    }
    if let Some(bits) = bits {
        if ![2, 3, 4, 5, 6, 8].contains(&bits) {
            return Err(Error::invalid(format!(
                "bits must be 2, 3, 4, 5, 6 or 8, got {bits}"
            )));
        }
    }
    Ok(())
}

pub fn key(key: &Array) -> Result<()> {
    if mlx::dtype(key) == Dtype::U32 && key.shape() == [2] {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "a key is u32[2], as random_key gives it; got {}{:?}",
        mlx::dtype(key).name(),
        key.shape()
    )))
}

/// Equations whose parts fit the operands: letters, commas, at most one `->`, an ellipsis.
pub fn einsum(subscripts: &str, operands: &[&Array]) -> Result<()> {
    let bad = |reason: String| Err(Error::invalid(format!("{subscripts:?}: {reason}")));
    let clean: String = subscripts.chars().filter(|c| *c != ' ').collect();
    let (inputs, output) = clean
        .split_once("->")
        .map_or((clean.as_str(), None), |(i, o)| (i, Some(o)));
    let letters = |term: &str| term.replacen("...", "", 1);
    let terms: Vec<&str> = inputs.split(',').collect();
    for term in terms.iter().copied().chain(output) {
        if !letters(term).chars().all(|c| c.is_ascii_alphabetic()) {
            return bad(format!("{term:?} is not made of letters"));
        }
    }
    if terms.len() != operands.len() {
        return bad(format!(
            "names {} operands, got {}",
            terms.len(),
            operands.len()
        ));
    }
    let mut sizes: Vec<(char, i32)> = Vec::new();
    for (term, operand) in terms.iter().zip(operands) {
        let named = letters(term).len();
        let fits = if term.contains("...") {
            named <= operand.ndim()
        } else {
            named == operand.ndim()
        };
        if !fits {
            return bad(format!(
                "{term:?} does not name the axes of shape {:?}",
                operand.shape()
            ));
        }
        if term.contains("...") {
            continue;
        }
        for (label, size) in term.chars().zip(operand.shape()) {
            match sizes.iter_mut().find(|(known, _)| *known == label) {
                None => sizes.push((label, *size)),
                Some((_, known)) if *known == 1 => *known = *size,
                Some((_, known)) if *known == *size || *size == 1 => {}
                Some((_, known)) => {
                    return bad(format!("axis {label} has sizes {known} and {size}"));
                }
            }
        }
    }
    if let Some(output) = output {
        let output = letters(output);
        for (i, label) in output.char_indices() {
            if !inputs.contains(label) || output[i + 1..].contains(label) {
                return bad(format!(
                    "the result's axis {label} is not one of the operands', or named twice"
                ));
            }
        }
    }
    Ok(())
}
