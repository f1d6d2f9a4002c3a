//! Einstein's sums as matrix products of pairs of operands. MLX contracts floats only, and on the CPU adds up what is
//! not a matrix product one number after the other.

use super::{cast, check, matmul, reduce};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu;
use crate::mlx::{self, Stream, Vector};
use mlx_rs::Array;

/// An operand with a label for each axis, none of them twice.
struct Term {
    array: Array,
    labels: Vec<char>,
}

pub fn einsum(subscripts: &str, operands: &[&Array], device: Device, s: &Stream) -> Result<Array> {
    check::einsum(subscripts, operands)?;
    let clean: String = subscripts.chars().filter(|c| !c.is_whitespace()).collect();
    let is_whole = operands.len() > 1 && operands.iter().all(|array| matmul::is_integral(array));
    let has_ellipsis = clean.contains('.');
    if is_whole && has_ellipsis {
        return Err(Error::invalid(
            "an ellipsis is not supported for integers; name every axis",
        ));
    }
    let is_off = cpu::are_built() && !cpu::are_there();
    if is_whole || device == Device::Cpu && !has_ellipsis && !is_off {
        return in_pairs(&clean, operands, device, s);
    }
    // An upper bound of the work: no contraction has more terms than all elements multiplied.
    let work = operands
        .iter()
        .fold(1u64, |n, array| n.saturating_mul(array.size() as u64));
    match matmul::widened(operands, work, device, s)? {
        Some((wide, dtype)) => {
            let product = mlx::einsum(subscripts, &Vector::new(&wide), s)?;
            mlx::astype(&product, dtype, s)
        }
        None => mlx::einsum(subscripts, &Vector::new(operands.iter().copied()), s),
    }
}

fn in_pairs(equation: &str, operands: &[&Array], device: Device, s: &Stream) -> Result<Array> {
    let (inputs, output) = parts(equation);
    let mut dtype = mlx::dtype(operands[0]);
    for operand in operands {
        dtype = cast::promoted_type(dtype, mlx::dtype(operand), s)?;
    }
    let wide = if dtype.is_half() { Dtype::F32 } else { dtype };
    let mut terms = inputs
        .iter()
        .zip(operands)
        .map(|(labels, operand)| term(labels, &mlx::astype(operand, wide, s)?, s))
        .collect::<Result<Vec<Term>>>()?;
    spread(&mut terms, s)?;
    for i in 0..terms.len() {
        let needed = needed(&terms, &[i], &output);
        terms[i] = summed(&terms[i], &needed, device, s)?;
    }
    while terms.len() > 1 {
        let (i, j) = smallest_pair(&terms, &output);
        let needed = needed(&terms, &[i, j], &output);
        let product = product(&terms[i], &terms[j], &needed, device, s)?;
        terms.remove(j);
        terms[i] = product;
    }
    let last = terms
        .pop()
        .ok_or_else(|| Error::invalid("needs an operand"))?;
    mlx::astype(&arranged(&last, &output, s)?, dtype, s)
}

/// The labels of each operand, and of the result: in alphabetical order those that occur once, if it names none.
fn parts(equation: &str) -> (Vec<Vec<char>>, Vec<char>) {
    let (inputs, output) = match equation.split_once("->") {
        Some((inputs, output)) => (inputs, output.chars().collect()),
        None => {
            let mut letters: Vec<char> = equation.chars().filter(|c| *c != ',').collect();
            letters.sort_unstable();
            let once = |c: &&char| letters.iter().filter(|other| other == c).count() == 1;
            (equation, letters.iter().filter(once).copied().collect())
        }
    };
    let inputs = inputs.split(',').map(|term| term.chars().collect());
    (inputs.collect(), output)
}

/// A label twice in one operand is its diagonal.
fn term(labels: &[char], operand: &Array, s: &Stream) -> Result<Term> {
    let mut labels = labels.to_vec();
    let mut array = mlx::share(operand)?;
    while let Some((i, j)) = repeated(&labels) {
        array = mlx::diagonal(&array, 0, i as i32, j as i32, s)?;
        let label = labels.remove(j);
        labels.remove(i);
        labels.push(label);
    }
    Ok(Term { array, labels })
}

fn repeated(labels: &[char]) -> Option<(usize, usize)> {
    labels.iter().enumerate().find_map(|(i, label)| {
        let later = labels[i + 1..].iter().position(|other| other == label)?;
        Some((i, i + 1 + later))
    })
}

/// Axes of size 1 as long as those of their label in other operands.
fn spread(terms: &mut [Term], s: &Stream) -> Result<()> {
    let mut sizes: Vec<(char, i32)> = Vec::new();
    for term in terms.iter() {
        for (label, size) in term.labels.iter().zip(term.array.shape()) {
            match sizes.iter_mut().find(|(known, _)| known == label) {
                Some((_, known)) if *known == 1 => *known = *size,
                Some(_) => {}
                None => sizes.push((*label, *size)),
            }
        }
    }
    for term in terms {
        let size = |label| sizes.iter().find(|(known, _)| known == label);
        let shape: Vec<i32> = term
            .labels
            .iter()
            .filter_map(size)
            .map(|(_, n)| *n)
            .collect();
        if shape != term.array.shape() {
            term.array = mlx::broadcast_to(&term.array, &shape, s)?;
        }
    }
    Ok(())
}

/// The labels of the result and of all operands but these.
fn needed(terms: &[Term], but: &[usize], output: &[char]) -> Vec<char> {
    let others = terms.iter().enumerate().filter(|(i, _)| !but.contains(i));
    let others = others.flat_map(|(_, term)| term.labels.iter().copied());
    others.chain(output.iter().copied()).collect()
}

/// The operand summed over axes that nothing needs.
fn summed(term: &Term, needed: &[char], device: Device, s: &Stream) -> Result<Term> {
    let is_needed = |label: &char| needed.contains(label);
    let labels = term.labels.iter().copied().filter(is_needed).collect();
    let axes: Vec<i32> = (0..term.labels.len())
        .filter(|axis| !is_needed(&term.labels[*axis]))
        .map(|axis| axis as i32)
        .collect();
    let array = match axes[..] {
        [] => mlx::share(&term.array)?,
        _ => {
            let sum = reduce::sum(&term.array, &axes, false, device, s)?;
            mlx::astype(&sum, mlx::dtype(&term.array), s)?
        }
    };
    Ok(Term { array, labels })
}

/// The two operands whose product is the smallest.
fn smallest_pair(terms: &[Term], output: &[char]) -> (usize, usize) {
    let size = |i: usize, j: usize| {
        let needed = needed(terms, &[i, j], output);
        let axes = |term: &Term| {
            let sizes = term.array.shape().to_vec();
            term.labels.clone().into_iter().zip(sizes)
        };
        let own: Vec<(char, i32)> = axes(&terms[i]).collect();
        let more = axes(&terms[j]).filter(|axis| !own.contains(axis));
        let all = own.iter().copied().chain(more);
        let kept = all.filter(|(label, _)| needed.contains(label));
        kept.map(|(_, size)| f64::from(size)).product::<f64>()
    };
    let pairs = (0..terms.len()).flat_map(|i| (i + 1..terms.len()).map(move |j| (i, j)));
    pairs
        .min_by(|a, b| size(a.0, a.1).total_cmp(&size(b.0, b.1)))
        .unwrap_or((0, 1))
}

/// The operand with its axes in this order.
fn arranged(term: &Term, labels: &[char], s: &Stream) -> Result<Array> {
    let place = |label| term.labels.iter().position(|own| own == label);
    let order: Vec<i32> = labels
        .iter()
        .filter_map(place)
        .map(|axis| axis as i32)
        .collect();
    if order.iter().enumerate().all(|(i, axis)| i as i32 == *axis) {
        return mlx::share(&term.array);
    }
    mlx::transpose(&term.array, &order, s)
}

fn product(a: &Term, b: &Term, needed: &[char], device: Device, s: &Stream) -> Result<Term> {
    let (shared, free_a): (Vec<char>, Vec<char>) =
        a.labels.iter().partition(|label| b.labels.contains(label));
    let free_b: Vec<char> = b
        .labels
        .iter()
        .copied()
        .filter(|l| !shared.contains(l))
        .collect();
    let (batch, inner): (Vec<char>, Vec<char>) =
        shared.iter().partition(|label| needed.contains(label));
    let left = arranged(a, &[&batch[..], &free_a, &inner].concat(), s)?;
    let right = arranged(b, &[&batch[..], &inner, &free_b].concat(), s)?;
    let labels = [&batch[..], &free_a, &free_b].concat();
    let (front, middle) = (batch.len(), batch.len() + free_a.len());
    let shape = [
        &left.shape()[..middle],
        &right.shape()[front + inner.len()..],
    ]
    .concat();
    if inner.is_empty() {
        let narrow = vec![1; free_a.len()];
        let right = [&right.shape()[..front], &narrow, &right.shape()[front..]].concat();
        let right = mlx::reshape(&arranged(b, &[&batch[..], &free_b].concat(), s)?, &right, s)?;
        let narrow = vec![1; free_b.len()];
        let left = mlx::reshape(&left, &[left.shape(), &narrow].concat(), s)?;
        let array = mlx::multiply(&left, &right, s)?;
        return Ok(Term { array, labels });
    }
    let size = |sizes: &[i32]| check::product(sizes);
    let lead = if front > 0 {
        vec![size(&left.shape()[..front])?]
    } else {
        Vec::new()
    };
    let k = size(&left.shape()[middle..])?;
    let n = size(&left.shape()[front..middle])?;
    let m = size(&right.shape()[front + inner.len()..])?;
    let left = mlx::reshape(&left, &[&lead[..], &[n, k]].concat(), s)?;
    let right = mlx::reshape(&right, &[&lead[..], &[k, m]].concat(), s)?;
    let array = mlx::reshape(&matmul::matmul(&left, &right, device, s)?, &shape, s)?;
    Ok(Term { array, labels })
}
