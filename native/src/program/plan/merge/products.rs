//! Products of a few rows with matrices: with the norm before them, the gate or the sum after them, and up to three of
//! one input.

use super::Change;
use crate::op::decode::MAX_ROWS;
use crate::op::{Op, QuantMode};
use crate::program::plan::facts::{either, inputs, is_float, output, Facts};
use crate::program::plan::{Node, Work};
use smallvec::{smallvec, SmallVec};

/// Products that one node has.
const MAX_PRODUCTS: usize = 3;

/// A product of few rows with a matrix. The matrix is one array, or three where it is quantized.
#[derive(Clone, Debug, PartialEq)]
struct Product {
    x: u32,
    /// The weight of an RMS norm of x, and its epsilon.
    norm: Option<(u32, f64)>,
    matrix: SmallVec<[u32; 3]>,
    packing: Option<Packing>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Packing {
    bits: i32,
    group_size: i32,
}

impl Product {
    /// Whether both can be one node: they differ in their matrices alone.
    fn goes_with(&self, other: &Product) -> bool {
        self.x == other.x && self.norm == other.norm && self.packing == other.packing
    }

    /// The node of products of this one's input.
    fn node(
        &self,
        residual: Option<u32>,
        matrices: &[u32],
        gated: bool,
        shape: Option<Vec<i32>>,
    ) -> Node {
        let (weight, eps) = match self.norm {
            Some((weight, eps)) => (Some(weight), Some(eps)),
            None => (None, None),
        };
        let op = match self.packing {
            None => Op::Products { eps, gated, shape },
            Some(Packing { bits, group_size }) => Op::QuantizedProducts {
                eps,
                gated,
                shape,
                bits,
                group_size,
            },
        };
        let mut inputs: SmallVec<[Option<u32>; 4]> = smallvec![Some(self.x), weight, residual];
        inputs.extend(matrices.iter().copied().map(Some));
        Node {
            work: Work::Op(op),
            inputs,
            outputs: SmallVec::new(),
            label: None,
            at: 0,
            spent: SmallVec::new(),
        }
    }
}

fn change(facts: &Facts, at: usize, node: Node, outputs: SmallVec<[u32; 2]>) -> Change {
    let number = facts.code.nodes[at].at;
    Change {
        at,
        node: Node {
            outputs,
            at: number,
            ..node
        },
    }
}

/// silu(x·gate) · (x·up)
pub fn gates(facts: &Facts) -> Vec<Change> {
    let of = |(at, node): (usize, &Node)| {
        let (Some(Op::Multiply), [p, q]) = (node.op(), inputs(node)?) else {
            return None;
        };
        let (gate, up) = either(p, q, |p, q| {
            let gate = silu(facts, p)?;
            facts.has_one_use(q).then_some((gate, q))
        })?;
        let (gate, up) = (product(facts, gate).ok()?, product(facts, up).ok()?);
        let mut pairs = gate.matrix.iter().zip(&up.matrix);
        let is_alike = gate.goes_with(&up)
            && pairs.all(|(a, b)| facts.shape(*a) == facts.shape(*b))
            && facts.shape(p) == facts.shape(q);
        let output = is_alike.then(|| output(node))??;
        let matrices = [&gate.matrix[..], &up.matrix[..]].concat();
        let shape = facts.shape(output).to_vec();
        let node = gate.node(None, &matrices, true, Some(shape));
        Some(change(facts, at, node, smallvec![output]))
    };
    facts.code.nodes.iter().enumerate().filter_map(of).collect()
}

/// x·w + residual
pub fn sums(facts: &Facts) -> Vec<Change> {
    let of = |(at, node): (usize, &Node)| {
        let (Some(Op::Add), [p, q]) = (node.op(), inputs(node)?) else {
            return None;
        };
        if p == q || facts.shape(p) != facts.shape(q) || facts.dtype(p) != facts.dtype(q) {
            return None;
        }
        let (product, residual) = either(p, q, |p, q| {
            let product = facts.has_one_use(p).then(|| product(facts, p))?.ok()?;
            Some((product, q))
        })?;
        let output = output(node)?;
        let shape = facts.shape(output).to_vec();
        let node = product.node(Some(residual), &product.matrix, false, Some(shape));
        Some(change(facts, at, node, smallvec![output]))
    };
    facts.code.nodes.iter().enumerate().filter_map(of).collect()
}

/// The products that are left, up to three of one input together.
pub fn products(facts: &Facts) -> Vec<Change> {
    let mut groups: Vec<Vec<(usize, u32, Product)>> = Vec::new();
    for (at, node) in facts.code.nodes.iter().enumerate() {
        let is_product = node.op().is_some_and(is_product);
        let Some(output) = output(node).filter(|_| is_product) else {
            continue;
        };
        let Ok(product) = product(facts, output) else {
            continue;
        };
        let own = groups
            .iter_mut()
            .find(|group| group[0].2.goes_with(&product));
        match own {
            Some(group) => group.push((at, output, product)),
            None => groups.push(vec![(at, output, product)]),
        }
    }
    let chunks = groups.iter().flat_map(|group| group.chunks(MAX_PRODUCTS));
    let of = |chunk: &[(usize, u32, Product)]| {
        let at = chunk[0].0;
        let matrices = chunk.iter().flat_map(|(_, _, product)| &product.matrix);
        let matrices: Vec<u32> = matrices.copied().collect();
        if !matrices.iter().all(|matrix| facts.is_before(*matrix, at)) {
            return None;
        }
        let outputs = chunk.iter().map(|(_, output, _)| *output).collect();
        let node = chunk[0].2.node(None, &matrices, false, None);
        Some(change(facts, at, node, outputs))
    };
    chunks.filter_map(of).collect()
}

/// Products that stay as they are, and why.
pub fn left(facts: &Facts) -> Vec<(usize, String)> {
    let nodes = facts.code.nodes.iter();
    let products = nodes.filter(|node| node.op().is_some_and(is_product));
    products
        .filter_map(|node| {
            let reason = output(node).map(|output| product(facts, output))?;
            let reason = match reason {
                Ok(_) => "its matrix comes after the products that it would go with".to_string(),
                Err(reason) => reason,
            };
            Some((node.at, format!("{}: {reason}", node.name())))
        })
        .collect()
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Matmul | Op::QuantizedMatmul { .. })
}

/// Of sigmoid(x) · x, used once, x.
fn silu(facts: &Facts, value: u32) -> Option<u32> {
    let (Op::Multiply, node) = facts.operation(value)? else {
        return None;
    };
    let [p, q] = inputs(node)?;
    let sigmoid = |value: u32| match facts.operation(value)? {
        (Op::Sigmoid, node) if facts.has_one_use(value) => inputs::<1>(node).map(|[x]| x),
        _ => None,
    };
    let x = either(p, q, |p, q| sigmoid(p).filter(|x| *x == q))?;
    (facts.has_one_use(value) && facts.users(x).len() == 2).then_some(x)
}

/// A value that is, seen through reshapes, a product of few rows with a matrix: what it is a product of. Besides the
/// uses of `value` there are none. The other side says why it is none.
fn product(facts: &Facts, value: u32) -> Result<Product, String> {
    let none = || "is no product with a matrix".to_string();
    let (op, node) = facts.through_reshapes(value).ok_or_else(none)?;
    let own = output(node).filter(|_| is_product(op)).ok_or_else(none)?;
    if own != value && !facts.has_one_use(own) {
        return Err("is used more than once".into());
    }
    let Some(Some(left)) = node.inputs.first().copied() else {
        return Err(none());
    };
    let ([rows, k], dtype) = (facts.shape(left), facts.dtype(left)) else {
        return Err("has more axes than a row and a column".into());
    };
    if *rows > MAX_ROWS {
        return Err(format!("{rows} rows are more than {MAX_ROWS}"));
    }
    if !is_float(dtype) {
        return Err(format!("is of {}", dtype.name()));
    }
    let packing =
        packing(facts, op, node, *k, left).ok_or("its matrix does not lie as a kernel takes it")?;
    let (x, norm) = normed(facts, left, *k);
    let matrix = node.inputs[1..].iter().copied().flatten().collect();
    Ok(Product {
        x: before_reshapes(facts, x, *rows, *k),
        norm,
        matrix,
        packing,
    })
}

/// How a matrix that fits `k` columns of x is packed; the inner None is for one that is not.
fn packing(facts: &Facts, op: &Op, node: &Node, k: i32, x: u32) -> Option<Option<Packing>> {
    let dtype = facts.dtype(x);
    match op {
        Op::Matmul => {
            let [_, matrix] = inputs(node)?;
            let fits = matches!(facts.shape(matrix), [own, _] if *own == k);
            (fits && facts.dtype(matrix) == dtype).then_some(None)
        }
        Op::QuantizedMatmul {
            transpose: true,
            group_size: Some(group_size @ (32 | 64 | 128)),
            bits: Some(bits @ (4 | 8)),
            mode: QuantMode::Affine,
        } => {
            let [_, words, scales, biases] = inputs(node)?;
            let [n, _] = *facts.shape(words) else {
                return None;
            };
            let fits = k % group_size == 0
                && facts.is(words, &[n, k * bits / 32], crate::base::Dtype::U32)
                && [scales, biases]
                    .iter()
                    .all(|value| facts.is(*value, &[n, k / group_size], dtype));
            fits.then_some(Some(Packing {
                bits: *bits,
                group_size: *group_size,
            }))
        }
        _ => None,
    }
}

/// Below a norm over the last axis: what is normed, and the weight with epsilon.
fn normed(facts: &Facts, value: u32, k: i32) -> (u32, Option<(u32, f64)>) {
    let norm = || {
        let (Op::RmsNorm { eps }, node) = facts.through_reshapes(value)? else {
            return None;
        };
        let [x, weight] = inputs(node)?;
        let output = output(node)?;
        let dtype = facts.dtype(output);
        let fits = facts.shape(output).last() == Some(&k)
            && facts.is(weight, &[k], dtype)
            && facts.dtype(x) == dtype;
        fits.then_some((x, (weight, *eps)))
    };
    match norm() {
        Some((x, norm)) => (x, Some(norm)),
        None => (value, None),
    }
}

/// The same rows before they were reshaped, where they lay one after the other there too.
fn before_reshapes(facts: &Facts, value: u32, rows: i32, k: i32) -> u32 {
    let source = || {
        let (Op::Reshape { .. }, node) = facts.operation(value)? else {
            return None;
        };
        let [source] = inputs(node)?;
        let (last, before) = facts.shape(source).split_last()?;
        let (own, leading) = before.split_last().unwrap_or((&1, &[]));
        let is_same = *last == k && *own == rows && leading.iter().all(|size| *size == 1);
        is_same.then_some(source)
    };
    match source() {
        Some(source) => before_reshapes(facts, source, rows, k),
        None => value,
    }
}
