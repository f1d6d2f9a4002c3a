//! What would be several operations, as one kernel. Norms, softmax, rotation and attention have files of their own.
//! Here are also those that stand for several operations, as a model has them for each token that it generates.
//! The pass `merge` (program/plan/merge) makes them; where there is no kernel for them they are the
//! operations that they stand for. Called by [`Op::apply`] for operations of [`Class::Fused`](super::Class::Fused).

use super::decode::{self, Heads, Operand};
use super::elementwise::{self, step};
use super::table::{family, others};
use super::{
    attention, check, norm, one, rope, softmax, AttentionLayout, Crossed, Inputs, MaskMode, Op,
    Outputs, QuantMode,
};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::Operand as Value;
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

family! { Fused, takes(1):
    Softmax { axes: Option<Vec<i32>>, precise: bool },
    /// Inputs: x, weight or nil.
    RmsNorm { eps: f64 } => optional(1),
    /// Inputs: x, weight or nil, bias or nil.
    LayerNorm { eps: f64 } => optional(2),
    /// Inputs: x, offset (scalar or one a batch row), freqs or nil (then `base` is given).
    Rope { dims: i32, traditional: bool, base: Option<f32>, scale: f32 } => takes(2).optional(1),
    /// Inputs: q, k, v, mask or nil, sinks or nil. q, k, v and the output lie as the layout says; nil is `bhsd`.
    ScaledDotProductAttention { scale: f32, mask: MaskMode, layout: Option<AttentionLayout> } => takes(3).optional(2),
    /// Products of one x. Inputs: x {…, k}, the weight of an RMS norm of x or nil, what is added to the only product
    /// {…, n} or nil, then matrices {k, n}. Outputs {rows, n}: one for each matrix; where `gated`, silu of the first
    /// product times the second. A `shape` is that of the only output.
    Products { eps: Option<f64>, gated: bool, shape: Option<Vec<i32>> } => optional(2).more().any_outputs(),
    /// What attention takes of one row a position. Inputs: q, k, v {rows, heads * size}, offsets {rows}, the weights
    /// of the RMS norms of heads of q and of k or nil, freqs or nil (then `base` is given). Outputs {…lead, heads,
    /// size}, q and k normed and turned, and heads of k and v `repeat` times each; `lead` multiplies to the rows.
    RopeHeads {
        lead: Vec<i32>,
        size: i32,
        repeat: i32,
        eps: Option<f64>,
        base: Option<f32>,
        scale: f32,
    } => takes(4).optional(3).outputs(3),
    /// Attention of one position on a cache. Inputs: q {batch, 1, heads, size}, k, v {batch, length, kv_heads, size},
    /// a mask of booleans {batch | 1, heads | 1, 1, length} or nil. The output has the elements of {batch, 1, heads,
    /// size} in `shape`.
    CacheAttention { scale: f32, shape: Vec<i32> } => takes(3).optional(1),
    /// Inputs: logits, targets.
    CrossEntropy => takes(2),
}

/// Builds an operation of the class.
pub fn apply(
    op: &Op,
    inputs: &Inputs,
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Outputs> {
    match op {
        Op::Softmax { axes, precise } => inputs.over(axes, |a, axes| {
            softmax::softmax(a, axes, *precise, device, s)
        }),
        Op::RmsNorm { eps } => {
            let ([x], [weight]) = inputs.with_optional()?;
            norm::rms_norm(x, weight, *eps, device, s).map(one)
        }
        Op::LayerNorm { eps } => {
            let ([x], [weight, bias]) = inputs.with_optional()?;
            norm::layer_norm(x, weight, bias, *eps, device, s).map(one)
        }
        Op::Rope {
            dims,
            traditional,
            base,
            scale,
        } => {
            let ([x, offset], [freqs]) = inputs.with_optional()?;
            rope::rope(
                x,
                *dims,
                *traditional,
                *base,
                *scale,
                offset,
                freqs,
                device,
                s,
            )
            .map(one)
        }
        Op::Products { .. } => {
            let ([x], [weight, residual], matrices) = inputs.with_optional_and_more()?;
            let wanted = Products::of(op, x, weight, residual, &matrices)
                .ok_or_else(|| Error::invalid("eps goes with the weight of a norm"))?;
            products(wanted, device, s, crossed)
        }
        Op::RopeHeads { .. } => {
            let (arrays, [q_norm, k_norm, freqs]) = inputs.with_optional()?;
            let how = decode::Heads::of(op, q_norm, k_norm)
                .ok_or_else(|| Error::invalid("eps goes with a weight for q and one for k"))?;
            rope_heads(arrays, freqs, &how, device, s, crossed)
        }
        Op::CacheAttention { scale, shape } => {
            let (arrays, [mask]) = inputs.with_optional()?;
            cache_attention(arrays, mask, *scale, shape, device, s, crossed).map(one)
        }
        Op::ScaledDotProductAttention {
            scale,
            mask: mode,
            layout,
        } => {
            let ([q, k, v], [mask, sinks]) = inputs.with_optional()?;
            let attend = |q: &Array, k: &Array, v: &Array| {
                attention::attention(q, k, v, mask, sinks, *scale, *mode, device, s)
            };
            match layout {
                Some(AttentionLayout::Bshd) => attention::by_length([q, k, v], attend, s).map(one),
                Some(AttentionLayout::Bhsd) | None => attend(q, k, v).map(one),
            }
        }
        Op::CrossEntropy => inputs.binary(s, |a, b, s| softmax::cross_entropy(a, b, device, s)),
        others!(Fused) => Err(super::no_case(op)),
    }
}

/// The output of one of the operations that another stands for.
fn output_of(
    op: Op,
    inputs: &[&Array],
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Array> {
    let inputs: SmallVec<[Option<&Array>; 4]> = inputs.iter().copied().map(Some).collect();
    let mut outputs = op.apply_within(&Inputs(&inputs), device, s, crossed)?;
    outputs
        .pop()
        .ok_or_else(|| Error::invalid("the operation gives nothing"))
}

/// `array` as rows of so many numbers.
fn rows(array: &Array, size: i32, s: &Stream) -> Result<Array> {
    match array.shape() {
        [_, last] if *last == size => mlx::share(array),
        _ => mlx::reshape(array, &[-1, size], s),
    }
}

/// How quantized matrices are packed (MLX's affine format).
#[derive(Clone, Copy)]
pub struct Packing {
    pub bits: i32,
    pub group_size: i32,
}

/// Products of x {…, k}, normed first if there is a weight, with matrices {k, n}: one of each, or silu(x·w0)·(x·w1);
/// `residual` {…, n} is added to the only one, whose shape may be given. With a packing each matrix is three arrays,
/// of its n rows: words {n, k · bits / 32}, scales and biases {n, k / group_size}.
#[derive(Clone, Copy)]
pub struct Products<'a, A = &'a Array> {
    pub x: A,
    pub norm: Option<(A, f64)>,
    pub residual: Option<A>,
    pub matrices: &'a [A],
    pub packing: Option<Packing>,
    pub gated: bool,
    pub shape: Option<&'a [i32]>,
}

impl<'a, A> Products<'a, A> {
    /// What [`Op::Products`] or [`Op::QuantizedProducts`] says of these. None for another operation, and where a
    /// weight comes without eps or eps without one.
    pub fn of(
        op: &'a Op,
        x: A,
        weight: Option<A>,
        residual: Option<A>,
        matrices: &'a [A],
    ) -> Option<Self> {
        let (eps, gated, shape, packing) = match op {
            Op::Products { eps, gated, shape } => (eps, gated, shape, None),
            Op::QuantizedProducts {
                eps,
                gated,
                shape,
                bits,
                group_size,
            } => {
                let (bits, group_size) = (*bits, *group_size);
                (eps, gated, shape, Some(Packing { bits, group_size }))
            }
            _ => return None,
        };
        let norm = match (weight, eps) {
            (Some(weight), Some(eps)) => Some((weight, *eps)),
            (None, None) => None,
            _ => return None,
        };
        Some(Products {
            x,
            norm,
            residual,
            matrices,
            packing,
            gated: *gated,
            shape: shape.as_deref(),
        })
    }

    /// Arrays that a matrix is.
    pub fn each(&self) -> usize {
        match self.packing {
            Some(_) => 3,
            None => 1,
        }
    }
}

impl<A: Operand> Products<'_, A> {
    /// The columns of each product. None where a matrix does not fit x.
    pub fn columns(&self) -> Option<SmallVec<[i32; 3]>> {
        let k = self.x.shape().last().copied().unwrap_or(0);
        let of = |matrix: &[A]| match (self.packing, matrix) {
            (None, [matrix]) => match matrix.shape() {
                [rows, n] if *rows == k => Some(*n),
                _ => None,
            },
            (Some(Packing { bits, group_size }), [words, scales, biases]) => {
                let (n, per_row) = match words.shape() {
                    [n, per_row] => (*n, *per_row),
                    _ => return None,
                };
                let fits = matches!(bits, 4 | 8)
                    && matches!(group_size, 32 | 64 | 128)
                    && words.dtype() == Dtype::U32
                    && k % group_size == 0
                    && i64::from(per_row) * 32 == i64::from(k) * i64::from(bits)
                    && [scales, biases]
                        .iter()
                        .all(|array| array.shape() == [n, k / group_size]);
                fits.then_some(n)
            }
            _ => None,
        };
        self.matrices.chunks(self.each()).map(of).collect()
    }

    /// Whether the numbers of the matrices have a type.
    pub fn are_of(&self, dtype: Dtype) -> bool {
        let mut arrays = self.matrices.iter().enumerate();
        arrays.all(|(i, array)| (self.packing.is_some() && i % 3 == 0) || array.dtype() == dtype)
    }
}

/// See [`Op::Products`] and [`Op::QuantizedProducts`].
pub fn products(
    wanted: Products,
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Outputs> {
    let Products {
        x,
        norm,
        residual,
        matrices,
        packing,
        gated,
        shape,
    } = wanted;
    let k = x.shape().last().copied().unwrap_or(0);
    if k == 0 {
        return Err(Error::invalid(format!(
            "x must be {{…, k}} with k from 1, got {:?}",
            x.shape()
        )));
    }
    let Some(all) = wanted.columns() else {
        let shapes: Vec<&[i32]> = matrices.iter().map(|array| array.shape()).collect();
        return Err(Error::invalid(match packing {
            None => format!(
                "x is {:?}, so every matrix must be {{{k}, n}}, got {shapes:?}",
                x.shape()
            ),
            Some(Packing { bits, group_size }) => format!(
                "x is {:?}, so every matrix must be words {{n, {k} * bits / 32}} of u32, scales and biases \
                 {{n, {k} / group_size}}, bits being 4 or 8 and group_size 32, 64 or 128; \
                 got {shapes:?}, {bits} and {group_size}",
                x.shape()
            ),
        }));
    };
    match (&all[..], gated, residual) {
        ([], ..) => return Err(Error::invalid("there is no matrix")),
        ([a, b], true, None) if a == b => {}
        (_, true, _) => {
            return Err(Error::invalid(
                "a gate takes two matrices of one shape, and nothing is added to it",
            ))
        }
        ([_], false, _) | (_, false, None) => {}
        _ => return Err(Error::invalid("something is added to one product only")),
    }
    let columns = all[0];
    let size = x.size() as i64 / i64::from(k) * i64::from(columns);
    if let Some(shape) = shape {
        let given: i64 = shape.iter().map(|n| i64::from(*n)).product();
        if given != size || (all.len() > 1 && !gated) {
            return Err(Error::invalid(format!(
                "shape is that of the only output, which has {size} elements, got {shape:?}"
            )));
        }
    }
    if residual.is_some_and(|added| added.size() as i64 != size) {
        return Err(Error::invalid(format!(
            "what is added must have the {size} elements of the product"
        )));
    }
    if device == Device::Gpu {
        if let Some(outputs) = decode::products(wanted, s)? {
            return Ok(outputs);
        }
    }
    let x = rows(x, k, s)?;
    let residual = match residual {
        Some(added) => Some(rows(added, columns, s)?),
        None => None,
    };
    let x = match norm {
        Some((weight, eps)) => output_of(Op::RmsNorm { eps }, &[&x, weight], device, s, crossed)?,
        None => x,
    };
    let mut product = |matrix: &[&Array]| {
        let op = match packing {
            None => Op::Matmul,
            Some(Packing { bits, group_size }) => Op::QuantizedMatmul {
                transpose: true,
                group_size: Some(group_size),
                bits: Some(bits),
                mode: QuantMode::Affine,
            },
        };
        output_of(op, &[&[&x], matrix].concat(), device, s, crossed)
    };
    let products = matrices.chunks(wanted.each()).map(&mut product);
    let mut outputs = products.collect::<Result<Outputs>>()?;
    if let (true, [gate, up]) = (gated, &outputs[..]) {
        let gated = gated_by(gate, up, device, s, crossed)?;
        outputs = std::iter::once(gated).collect();
    }
    if let Some(added) = residual {
        outputs = std::iter::once(output_of(
            Op::Add,
            &[&outputs[0], &added],
            device,
            s,
            crossed,
        )?)
        .collect();
    }
    if let Some(shape) = shape {
        outputs = std::iter::once(mlx::reshape(&outputs[0], shape, s)?).collect();
    }
    Ok(outputs)
}

/// silu(gate) · up.
fn gated_by(
    gate: &Array,
    up: &Array,
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Array> {
    if device == Device::Gpu {
        let [a, b] = [0, 1].map(Value::Input);
        let steps = [
            step(Op::Sigmoid, &[a]),
            step(Op::Multiply, &[Value::Link(0), a]),
            step(Op::Multiply, &[Value::Link(1), b]),
        ];
        return elementwise::in_one(steps.into_iter().collect(), &[gate, up], s);
    }
    let sigmoid = output_of(Op::Sigmoid, &[gate], device, s, crossed)?;
    let silu = output_of(Op::Multiply, &[&sigmoid, gate], device, s, crossed)?;
    output_of(Op::Multiply, &[&silu, up], device, s, crossed)
}

/// See [`Op::RopeHeads`].
pub fn rope_heads(
    [q, k, v, offset]: [&Array; 4],
    freqs: Option<&Array>,
    how: &Heads<&Array>,
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Outputs> {
    let Heads { size, repeat, .. } = *how;
    for (name, array) in [("q", q), ("k", k), ("v", v)] {
        let fits = array.ndim() == 2 && size > 0 && array.shape()[1] % size == 0;
        if !fits || array.shape()[0] != q.shape()[0] {
            return Err(Error::invalid(format!(
                "{name} must be {{rows, heads * {size}}} with as many rows as q, got {:?}",
                array.shape()
            )));
        }
    }
    let lead: i64 = how.lead.iter().map(|n| i64::from(*n)).product();
    if lead != i64::from(q.shape()[0]) {
        return Err(Error::invalid(format!(
            "lead must multiply to the {} rows of q, got {:?}",
            q.shape()[0],
            how.lead
        )));
    }
    if repeat < 1 || offset.shape() != [q.shape()[0]] {
        return Err(Error::invalid(format!(
            "there must be one offset a row of q {:?} and repeat must be from 1, got {:?} and {repeat}",
            q.shape(),
            offset.shape()
        )));
    }
    if device == Device::Gpu {
        if let Some(outputs) = decode::heads([q, k, v], how, offset, freqs, s)? {
            return Ok(outputs);
        }
    }
    let mut turned = |x: &Array, norm: Option<(&Array, f64)>| {
        let heads = mlx::reshape(x, &[x.shape()[0], -1, 1, size], s)?;
        let heads = match norm {
            Some((weight, eps)) => {
                output_of(Op::RmsNorm { eps }, &[&heads, weight], device, s, crossed)?
            }
            None => heads,
        };
        let rope = Op::Rope {
            dims: size,
            traditional: false,
            base: how.base,
            scale: how.scale,
        };
        let outputs = rope.apply_within(
            &Inputs(&[Some(&heads), Some(offset), freqs]),
            device,
            s,
            crossed,
        )?;
        mlx::share(&outputs[0])
    };
    let heads = |x: &Array, repeat: i32| {
        let shape = |heads: i32| [how.lead, &[heads, size]].concat();
        if repeat == 1 {
            return mlx::reshape(x, &shape(-1), s);
        }
        let count = x.shape()[0];
        let heads = mlx::reshape(x, &[count, -1, 1, size], s)?;
        let copies = [count, heads.shape()[1], repeat, size];
        let repeated = mlx::broadcast_to(&heads, &copies, s)?;
        mlx::reshape(&repeated, &shape(copies[1] * repeat), s)
    };
    let q_norm = how.norm.map(|(weight, _, eps)| (weight, eps));
    let k_norm = how.norm.map(|(_, weight, eps)| (weight, eps));
    let queries = heads(&turned(q, q_norm)?, 1)?;
    let keys = heads(&turned(k, k_norm)?, repeat)?;
    Ok([queries, keys, heads(v, repeat)?].into_iter().collect())
}

/// See [`Op::CacheAttention`].
pub fn cache_attention(
    [q, k, v]: [&Array; 3],
    mask: Option<&Array>,
    scale: f32,
    shape: &[i32],
    device: Device,
    s: &Stream,
    crossed: &mut Crossed,
) -> Result<Array> {
    check::heads([q, k, v], "batch, length, heads, size")?;
    let [batch, length, kv_heads, size] = [0, 1, 2, 3].map(|axis| k.shape()[axis]);
    let heads = q.shape()[2];
    let fits = q.shape() == [batch, 1, heads, size]
        && v.shape() == k.shape()
        && kv_heads > 0
        && heads % kv_heads == 0;
    if !fits {
        return Err(Error::invalid(format!(
            "q is {:?}, k is {:?}, v is {:?}: they must be {{batch, 1, heads, size}} and twice \
             {{batch, length, kv_heads, size}}, heads being a multiple of kv_heads",
            q.shape(),
            k.shape(),
            v.shape()
        )));
    }
    let fits = |mask: &Array| {
        mlx::dtype(mask) == Dtype::Bool
            && matches!(mask.shape(), [b, h, 1, l]
                if [1, batch].contains(b) && [1, heads].contains(h) && *l == length)
    };
    if let Some(mask) = mask.filter(|mask| !fits(mask)) {
        return Err(Error::invalid(format!(
            "the mask must be booleans {{{batch} | 1, {heads} | 1, 1, {length}}}, got {:?}",
            mask.shape()
        )));
    }
    let given: i64 = shape.iter().map(|n| i64::from(*n)).product();
    if given != q.size() as i64 {
        return Err(Error::invalid(format!(
            "shape must have the {} elements of q, got {shape:?}",
            q.size()
        )));
    }
    if device == Device::Gpu {
        if let Some(out) = decode::attention([q, k, v], mask, scale, shape, s)? {
            return Ok(out);
        }
    }
    let op = Op::ScaledDotProductAttention {
        scale,
        mask: match mask {
            Some(_) => MaskMode::Array,
            None => MaskMode::None,
        },
        layout: Some(AttentionLayout::Bshd),
    };
    let inputs = [Some(q), Some(k), Some(v), mask, None];
    let outputs = op.apply_within(&Inputs(&inputs), device, s, crossed)?;
    mlx::reshape(&outputs[0], shape, s)
}
