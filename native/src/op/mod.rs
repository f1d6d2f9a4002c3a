//! The one table of operations. [`Op`] is decoded from the Elixir term and from a file's JSON by derive; [`Op::apply`] builds its
//! nodes.
//! An eager call applies one; a program applies many. Nothing else in the crate knows what an operation does.

pub mod attributes;
mod blocks;
mod check;
mod compose;
mod cuda;
mod double;
mod einsum;
mod fused;
mod gpu;
mod linear;
mod reduce;
#[cfg(test)]
mod tests;
mod traits;
mod window;

use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Reason, Result};
use crate::kernels::{self, Reduction as Fold, Scan};
use crate::mlx::{self, FftNorm, Stream, Vector};
pub use cuda::decode;
pub use fused::Products;
pub use gpu::Crossed;
use mlx_rs::Array;
use rustler::{NifTaggedEnum, NifUnitEnum, NifUntaggedEnum};
use serde::{Deserialize, Serialize};
use smallvec::{smallvec, SmallVec};
use strum::{IntoStaticStr, VariantNames};
pub use traits::{Class, OfElements, View};
pub use window::Reduction;

/// What an operation gives: nearly always one array, which then needs no allocation.
pub type Outputs = SmallVec<[Array; 2]>;

/// The arrays that an operation made, and those among what they depend on that the CPU computes for the GPU.
pub struct Applied {
    pub outputs: Outputs,
    pub crossed: Crossed,
}

fn one(array: Array) -> Outputs {
    smallvec![array]
}

/// A number as Elixir writes it; `:nan`, `:infinity` and `:neg_infinity` as Nx does.
#[derive(Clone, Copy, Debug, PartialEq, NifUntaggedEnum, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    Int(i64),
    Uint(u64),
    Float(f64),
    Complex((f64, f64)),
    NonFinite(NonFinite),
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    Nan,
    Infinity,
    NegInfinity,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskMode {
    None,
    Causal,
    Array,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadMode {
    Constant,
    Edge,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    First,
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Left,
    Right,
}

/// The formats of quantized weights that MLX has.
#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantMode {
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl QuantMode {
    fn name(self) -> &'static str {
        match self {
            QuantMode::Affine => "affine",
            QuantMode::Mxfp4 => "mxfp4",
            QuantMode::Mxfp8 => "mxfp8",
            QuantMode::Nvfp4 => "nvfp4",
        }
    }
}

/// Every operation with its attributes. Arrays are not here: they are the inputs, in the order of each variant's comment.
/// A variant without attributes is an atom in Elixir (`:add`), one with attributes a pair (`{:sum, %{axes: …}}`).
/// `axes: nil` means all axes; a negative axis counts from the end.
///
/// What is true of an operation whatever its arrays are stands in [`traits`].
#[derive(Clone, Debug, NifTaggedEnum, Serialize, Deserialize, IntoStaticStr, VariantNames)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[strum(serialize_all = "snake_case")]
pub enum Op {
    // Elementwise, inputs: a
    Abs,
    Negative,
    Sign,
    Ceil,
    Floor,
    Trunc,
    Round {
        decimals: i32,
    },
    Exp,
    Expm1,
    Log,
    Log1p,
    Log2,
    Log10,
    Sin,
    Cos,
    Tan,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Arcsinh,
    Arccosh,
    Arctanh,
    Erf,
    Erfc,
    Erfinv,
    Sqrt,
    Rsqrt,
    Cbrt,
    Square,
    Reciprocal,
    Sigmoid,
    Degrees,
    Radians,
    LogicalNot,
    BitwiseInvert,
    PopulationCount,
    CountLeadingZeros,
    Isnan,
    Isinf,
    Isposinf,
    Isneginf,
    Isfinite,
    Real,
    Imag,
    Conjugate,
    Copy,
    NanToNum {
        nan: f32,
        posinf: Option<f32>,
        neginf: Option<f32>,
    },
    HadamardTransform {
        scale: Option<f32>,
    },

    // Elementwise with broadcasting, inputs: a, b
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    /// Quotient rounded toward zero, integers only.
    Quotient,
    /// Remainder with the sign of b (Python's).
    Remainder,
    /// Remainder with the sign of a (C's, Erlang's).
    Fmod,
    Power,
    Maximum,
    Minimum,
    Arctan2,
    Logaddexp,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    LogicalAnd,
    LogicalOr,
    LogicalXor,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    LeftShift,
    RightShift,
    /// Outputs: floor quotient, remainder.
    Divmod,
    Isclose {
        rtol: f64,
        atol: f64,
        equal_nan: bool,
    },
    Allclose {
        rtol: f64,
        atol: f64,
        equal_nan: bool,
    },
    ArrayEqual {
        equal_nan: bool,
    },

    // Types, inputs: a
    Astype {
        dtype: Dtype,
    },
    /// The same bits read as another type; the last axis grows or shrinks with the size.
    View {
        dtype: Dtype,
    },
    /// To 8-bit floats (E4M3), as u8.
    ToFp8,
    FromFp8 {
        dtype: Dtype,
    },

    // Reductions, inputs: a
    Sum {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Prod {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Max {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Min {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    All {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Any {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Mean {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Median {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Var {
        axes: Option<Vec<i32>>,
        keepdims: bool,
        ddof: i32,
    },
    Std {
        axes: Option<Vec<i32>>,
        keepdims: bool,
        ddof: i32,
    },
    Logsumexp {
        axes: Option<Vec<i32>>,
        keepdims: bool,
    },
    Softmax {
        axes: Option<Vec<i32>>,
        precise: bool,
    },
    /// The first of equals; NaN, of which `nan` says which one, before all. `axis: nil` looks at the flattened array.
    Argmax {
        axis: Option<i32>,
        keepdims: bool,
        nan: Which,
    },
    Argmin {
        axis: Option<i32>,
        keepdims: bool,
        nan: Which,
    },
    Cumsum {
        axis: i32,
        reverse: bool,
        inclusive: bool,
    },
    Cumprod {
        axis: i32,
        reverse: bool,
        inclusive: bool,
    },
    Cummax {
        axis: i32,
        reverse: bool,
        inclusive: bool,
    },
    Cummin {
        axis: i32,
        reverse: bool,
        inclusive: bool,
    },
    Logcumsumexp {
        axis: i32,
        reverse: bool,
        inclusive: bool,
    },

    // Order, inputs: a
    Sort {
        axis: i32,
    },
    /// Stable.
    Argsort {
        axis: i32,
    },
    Partition {
        kth: i32,
        axis: i32,
    },
    Argpartition {
        kth: i32,
        axis: i32,
    },
    /// The k largest, in no order.
    Topk {
        k: i32,
        axis: i32,
    },
    /// Inputs: sorted (one axis), values.
    Searchsorted {
        side: Side,
    },

    // Shapes, inputs: a
    Reshape {
        shape: Vec<i32>,
    },
    Flatten {
        start_axis: i32,
        end_axis: i32,
    },
    Unflatten {
        axis: i32,
        shape: Vec<i32>,
    },
    Squeeze {
        axes: Vec<i32>,
    },
    ExpandDims {
        axes: Vec<i32>,
    },
    Transpose {
        axes: Vec<i32>,
    },
    Swapaxes {
        axis1: i32,
        axis2: i32,
    },
    Moveaxis {
        source: i32,
        destination: i32,
    },
    BroadcastTo {
        shape: Vec<i32>,
    },
    /// Inputs: any number of arrays.
    Concatenate {
        axis: i32,
    },
    /// Inputs: any number of arrays.
    Stack {
        axis: i32,
    },
    /// Outputs: one more than there are indices.
    Split {
        indices: Vec<i32>,
        axis: i32,
    },
    Repeat {
        repeats: i32,
        axis: i32,
    },
    Tile {
        repetitions: Vec<i32>,
    },
    Flip {
        axes: Vec<i32>,
    },
    Roll {
        shift: Vec<i32>,
        axes: Vec<i32>,
    },
    /// Inputs: a, value. Negative widths crop.
    Pad {
        axes: Vec<i32>,
        low: Vec<i32>,
        high: Vec<i32>,
        mode: PadMode,
    },
    /// Inputs: a, value. `interior[i]` values between neighbours.
    PadInterior {
        low: Vec<i32>,
        high: Vec<i32>,
        interior: Vec<i32>,
    },
    AsStrided {
        shape: Vec<i32>,
        strides: Vec<i64>,
        offset: u64,
    },
    Contiguous,
    Diag {
        k: i32,
    },
    Diagonal {
        offset: i32,
        axis1: i32,
        axis2: i32,
    },
    Tril {
        k: i32,
    },
    Triu {
        k: i32,
    },
    Trace {
        offset: i32,
        axis1: i32,
        axis2: i32,
    },

    // Parts
    /// Inputs: a.
    Slice {
        start: Vec<i32>,
        stop: Vec<i32>,
        strides: Vec<i32>,
    },
    /// Inputs: a, update.
    SliceUpdate {
        start: Vec<i32>,
        stop: Vec<i32>,
        strides: Vec<i32>,
    },
    SliceUpdateAdd {
        start: Vec<i32>,
        stop: Vec<i32>,
        strides: Vec<i32>,
    },
    SliceUpdateMax {
        start: Vec<i32>,
        stop: Vec<i32>,
        strides: Vec<i32>,
    },
    SliceUpdateMin {
        start: Vec<i32>,
        stop: Vec<i32>,
        strides: Vec<i32>,
    },
    SliceUpdateProd {
        start: Vec<i32>,
        stop: Vec<i32>,
        strides: Vec<i32>,
    },
    /// Inputs: a, start (one integer an axis); starts are clamped so that the slice fits.
    SliceDynamic {
        axes: Vec<i32>,
        sizes: Vec<i32>,
    },
    /// Inputs: a, update, start; starts are clamped so that the update fits.
    SliceUpdateDynamic {
        axes: Vec<i32>,
    },
    /// Inputs: a, indices. Indices out of range are clamped, negative ones count from the end.
    Take {
        axis: i32,
    },
    TakeAlongAxis {
        axis: i32,
    },
    /// Inputs: a, indices, values.
    PutAlongAxis {
        axis: i32,
    },
    ScatterAddAxis {
        axis: i32,
    },
    /// Inputs: a, then one index array an axis of `axes`. Indices out of range are clamped.
    Gather {
        axes: Vec<i32>,
        slice_sizes: Vec<i32>,
    },
    /// Inputs: a, updates, then one index array an axis of `axes`. Updates out of range are dropped.
    Scatter {
        axes: Vec<i32>,
    },
    ScatterAdd {
        axes: Vec<i32>,
    },
    ScatterMax {
        axes: Vec<i32>,
    },
    ScatterMin {
        axes: Vec<i32>,
    },
    ScatterProd {
        axes: Vec<i32>,
    },
    /// Inputs: a, mask, values.
    MaskedScatter,
    /// Inputs: condition, a, b.
    Where,
    /// Inputs: a, low or nil, high or nil.
    Clip,

    // Products
    /// Inputs: a, b.
    Matmul,
    /// Inputs: c, a, b; alpha·(a·b) + beta·c.
    Addmm {
        alpha: f32,
        beta: f32,
    },
    Tensordot {
        axes_a: Vec<i32>,
        axes_b: Vec<i32>,
    },
    /// Inputs: any number of arrays.
    Einsum {
        subscripts: String,
    },
    Inner,
    Outer,
    Kron,
    Vecdot {
        axis: i32,
    },
    /// Inputs: a, b, lhs_indices or nil, rhs_indices or nil.
    GatherMm {
        sorted: bool,
    },

    // Convolutions and windows. Layout: batch, space…, channels; weights: out, space…, in / groups.
    /// Inputs: a, weight.
    Conv {
        stride: Vec<i32>,
        padding_low: Vec<i32>,
        padding_high: Vec<i32>,
        kernel_dilation: Vec<i32>,
        input_dilation: Vec<i32>,
        groups: i32,
        flip: bool,
    },
    ConvTranspose {
        stride: Vec<i32>,
        padding: Vec<i32>,
        dilation: Vec<i32>,
        output_padding: Vec<i32>,
        groups: i32,
    },
    /// Inputs: a. One entry an axis of a.
    WindowReduce {
        reduction: Reduction,
        window: Vec<i32>,
        strides: Vec<i32>,
        padding_low: Vec<i32>,
        padding_high: Vec<i32>,
        dilation: Vec<i32>,
    },
    /// Inputs: a, source, init. Adds each source element at its window's first maximum (minimum).
    WindowScatter {
        reduction: Reduction,
        window: Vec<i32>,
        strides: Vec<i32>,
        padding_low: Vec<i32>,
        padding_high: Vec<i32>,
    },
    /// Inputs: a. All windows as an array: output axes, then window axes.
    WindowView {
        window: Vec<i32>,
        strides: Vec<i32>,
        dilation: Vec<i32>,
    },

    // Spectra, inputs: a
    Fft {
        sizes: Vec<i32>,
        axes: Vec<i32>,
        norm: FftNorm,
    },
    Ifft {
        sizes: Vec<i32>,
        axes: Vec<i32>,
        norm: FftNorm,
    },
    Rfft {
        sizes: Vec<i32>,
        axes: Vec<i32>,
        norm: FftNorm,
    },
    Irfft {
        sizes: Vec<i32>,
        axes: Vec<i32>,
        norm: FftNorm,
    },
    Fftshift {
        axes: Vec<i32>,
    },
    Ifftshift {
        axes: Vec<i32>,
    },

    // Linear algebra on the last two axes, inputs: a. On the CPU also where the arrays are the GPU's.
    Cholesky {
        upper: bool,
    },
    CholeskyInv {
        upper: bool,
    },
    /// Outputs: q, r.
    Qr,
    /// Outputs: u, s, vt; only s without `compute_uv`.
    Svd {
        compute_uv: bool,
    },
    /// Outputs: eigenvalues, eigenvectors.
    Eigh {
        upper: bool,
    },
    Eigvalsh {
        upper: bool,
    },
    Eig,
    Eigvals,
    /// Outputs: row order, l, u.
    Lu,
    /// Outputs: packed lu, pivots.
    LuFactor,
    Inv,
    TriInv {
        upper: bool,
    },
    Pinv,
    Det,
    /// Outputs: sign, logarithm of the absolute determinant.
    Slogdet,
    /// Inputs: a, b.
    Solve,
    SolveTriangular {
        upper: bool,
    },
    Cross {
        axis: i32,
    },

    // Random numbers
    /// Inputs: none.
    RandomKey {
        seed: u64,
    },
    /// Inputs: key.
    RandomSplit {
        num: i32,
    },
    RandomBits {
        shape: Vec<i32>,
        width: i32,
    },
    /// Inputs: low, high, key.
    RandomUniform {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    /// Inputs: key.
    RandomNormal {
        shape: Vec<i32>,
        dtype: Dtype,
        loc: f32,
        scale: f32,
    },
    /// Inputs: low, high, key.
    RandomRandint {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    /// Inputs: p, key.
    RandomBernoulli {
        shape: Vec<i32>,
    },
    /// Inputs: low, high, key.
    RandomTruncatedNormal {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    /// Inputs: key.
    RandomGumbel {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    RandomLaplace {
        shape: Vec<i32>,
        dtype: Dtype,
        loc: f32,
        scale: f32,
    },
    /// Inputs: logits, key.
    RandomCategorical {
        axis: i32,
        shape: Vec<i32>,
    },
    /// Inputs: a, key.
    RandomPermutation {
        axis: i32,
    },

    // Creation, inputs: none (Full: value)
    Constant {
        value: Number,
        dtype: Dtype,
    },
    Full {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    Zeros {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    Ones {
        shape: Vec<i32>,
        dtype: Dtype,
    },
    Arange {
        start: f64,
        stop: f64,
        step: f64,
        dtype: Dtype,
    },
    Linspace {
        start: f64,
        stop: f64,
        num: i32,
        dtype: Dtype,
    },
    /// Counts along one axis; `axis: nil` counts the elements in row-major order.
    Iota {
        shape: Vec<i32>,
        axis: Option<i32>,
        dtype: Dtype,
    },
    Eye {
        n: i32,
        m: i32,
        k: i32,
        dtype: Dtype,
    },
    Tri {
        n: i32,
        m: i32,
        k: i32,
        dtype: Dtype,
    },

    // Fused
    /// Inputs: x, weight or nil.
    RmsNorm {
        eps: f64,
    },
    /// Inputs: x, weight or nil, bias or nil.
    LayerNorm {
        eps: f64,
    },
    /// Inputs: x, offset (scalar or one a batch row), freqs or nil (then `base` is given).
    Rope {
        dims: i32,
        traditional: bool,
        base: Option<f32>,
        scale: f32,
    },
    /// Inputs: q, k, v, mask or nil, sinks or nil.
    ScaledDotProductAttention {
        scale: f32,
        mask: MaskMode,
    },
    /// Products of one x. Inputs: x {…, k}, the weight of an RMS norm of x or nil, what is added to the only product {…, n} or nil, then
    /// matrices {k, n}. Outputs {rows, n}: one for each matrix; where `gated`, silu of the first product times the second. A `shape` is
    /// that of the only output.
    Products {
        eps: Option<f64>,
        gated: bool,
        shape: Option<Vec<i32>>,
    },
    /// [`Op::Products`] with quantized matrices (mode affine), three inputs each: words {n, k · bits / 32}, scales and biases
    /// {n, k / group_size}.
    QuantizedProducts {
        eps: Option<f64>,
        gated: bool,
        shape: Option<Vec<i32>>,
        bits: i32,
        group_size: i32,
    },
    /// What attention takes of one row a position. Inputs: q, k, v {rows, heads * size}, offsets {rows}, the weights of the RMS norms of heads
    /// of q and of k or nil, freqs or nil (then `base` is given). Outputs {…lead, heads, size}, q and k normed and turned, and
    /// heads of k and v `repeat` times each; `lead` multiplies to the rows.
    RopeHeads {
        lead: Vec<i32>,
        size: i32,
        repeat: i32,
        eps: Option<f64>,
        base: Option<f32>,
        scale: f32,
    },
    /// Attention of one position on a cache. Inputs: q {batch, 1, heads, size}, k, v {batch, length, kv_heads, size}, a mask of booleans
    /// {batch | 1, heads | 1, 1, length} or nil. The output has the elements of {batch, 1, heads, size} in `shape`.
    CacheAttention {
        scale: f32,
        shape: Vec<i32>,
    },
    /// Inputs: logits, targets.
    CrossEntropy,

    // Quantized
    /// Inputs: w, global_scale or nil. Outputs: packed w, scales, and biases in mode affine.
    Quantize {
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
    },
    /// Inputs: w, scales, biases or nil, global_scale or nil.
    Dequantize {
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
        dtype: Option<Dtype>,
    },
    /// Inputs: x, w, scales, biases or nil.
    QuantizedMatmul {
        transpose: bool,
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
    },
    /// Inputs: x, w, scales or nil, global_scale_x or nil, global_scale_w or nil.
    Qqmm {
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
    },
    /// Inputs: x, w, scales, biases or nil, lhs_indices or nil, rhs_indices or nil.
    GatherQmm {
        transpose: bool,
        group_size: Option<i32>,
        bits: Option<i32>,
        mode: QuantMode,
        sorted: bool,
    },
}

/// The arrays of one call, asked for by position.
pub struct Inputs<'a>(pub &'a [Option<&'a Array>]);

impl<'a> Inputs<'a> {
    fn arity(&self, expected: usize) -> Result<()> {
        if self.0.len() == expected {
            return Ok(());
        }
        Err(Reason::Arity {
            expected: expected.to_string(),
            found: self.0.len(),
        }
        .into())
    }

    fn required(&self, position: usize) -> Result<&'a Array> {
        self.0[position].ok_or_else(|| {
            Reason::BadTerm {
                position,
                expected: "an array",
                found: "nil".into(),
            }
            .into()
        })
    }

    /// Exactly N arrays, none of them nil.
    fn exactly<const N: usize>(&self) -> Result<[&'a Array; N]> {
        self.arity(N)?;
        let mut arrays = [None; N];
        for (i, slot) in arrays.iter_mut().enumerate() {
            *slot = Some(self.required(i)?);
        }
        Ok(arrays.map(|array| array.expect("filled above")))
    }

    /// N arrays, then M that may be nil.
    fn with_optional<const N: usize, const M: usize>(
        &self,
    ) -> Result<([&'a Array; N], [Option<&'a Array>; M])> {
        self.arity(N + M)?;
        let mut optional = [None; M];
        optional.copy_from_slice(&self.0[N..]);
        Ok((Inputs(&self.0[..N]).exactly()?, optional))
    }

    /// N arrays, M that may be nil, and at least one array more.
    #[allow(clippy::type_complexity)]
    fn with_optional_and_more<const N: usize, const M: usize>(
        &self,
    ) -> Result<([&'a Array; N], [Option<&'a Array>; M], Vec<&'a Array>)> {
        if self.0.len() <= N + M {
            return Err(Reason::Arity {
                expected: format!("at least {}", N + M + 1),
                found: self.0.len(),
            }
            .into());
        }
        let (fixed, more) = self.0.split_at(N + M);
        let ([], more) = Inputs(more).and_more()?;
        let (arrays, optional) = Inputs(fixed).with_optional()?;
        Ok((arrays, optional, more))
    }

    /// N arrays, then at least one more.
    fn and_more<const N: usize>(&self) -> Result<([&'a Array; N], Vec<&'a Array>)> {
        if self.0.len() <= N {
            return Err(Reason::Arity {
                expected: format!("at least {}", N + 1),
                found: self.0.len(),
            }
            .into());
        }
        let more = (N..self.0.len())
            .map(|i| self.required(i))
            .collect::<Result<_>>()?;
        Ok((Inputs(&self.0[..N]).exactly()?, more))
    }
}

/// The axes asked for, or all of them.
fn axes_of(array: &Array, axes: &Option<Vec<i32>>) -> Result<Vec<i32>> {
    match axes {
        Some(axes) => check::axes(array, axes),
        None => Ok((0..array.ndim() as i32).collect()),
    }
}

impl Op {
    /// The node of a kernel of ours, for the types and sizes that it is for.
    fn by_elements(&self, inputs: &Inputs, device: Device, s: &Stream) -> Result<Option<Array>> {
        match self.of_elements() {
            Some(OfElements::Unary(function)) => {
                let [a] = inputs.exactly()?;
                kernels::unary(function, a, device, s)
            }
            Some(OfElements::Binary(pair)) => {
                let [a, b] = inputs.exactly()?;
                kernels::binary(pair, a, b, device, s)
            }
            None => Ok(None),
        }
    }

    /// Builds the operation's nodes. Nothing is computed.
    pub fn apply(&self, inputs: &Inputs, device: Device, stream: &Stream) -> Result<Applied> {
        let mut crossed = Crossed::default();
        let outputs = self.apply_within(inputs, device, stream, &mut crossed)?;
        Ok(Applied { outputs, crossed })
    }

    /// [`Op::apply`] as a part of another operation, which collects what crosses between devices.
    fn apply_within(
        &self,
        inputs: &Inputs,
        device: Device,
        stream: &Stream,
        crossed: &mut Crossed,
    ) -> Result<Outputs> {
        if device == Device::Cpu {
            return self.apply_on(inputs, device, stream, crossed);
        }
        if self.is_for_cpu_only() || gpu::lacks(self, inputs) {
            let copies = gpu::copies_for_cpu(inputs, stream)?;
            let arrays: Vec<Option<&Array>> = copies.iter().map(Option::as_ref).collect();
            let (inputs, cpu) = (Inputs(&arrays), Device::Cpu);
            let outputs = self.apply_on(&inputs, cpu, cpu.stream()?, crossed)?;
            crossed.add(&outputs)?;
            return Ok(outputs);
        }
        let arrays = gpu::as_its_kernels_take(self, inputs, stream)?;
        match arrays {
            None => self.apply_on(inputs, device, stream, crossed),
            Some(arrays) => {
                let arrays: Vec<Option<&Array>> = arrays.iter().map(Option::as_ref).collect();
                self.apply_on(&Inputs(&arrays), device, stream, crossed)
            }
        }
    }

    fn apply_on(
        &self,
        inputs: &Inputs,
        device: Device,
        s: &Stream,
        crossed: &mut Crossed,
    ) -> Result<Outputs> {
        if let Some(output) = self.by_elements(inputs, device, s)? {
            return Ok(one(output));
        }
        // Most operations are one call with the inputs first, then the attributes.
        macro_rules! unary {
            ($f:path $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                $f(a, $($arg,)* s).map(one)
            }};
        }
        macro_rules! binary {
            ($f:path $(, $arg:expr)*) => {{
                let [a, b] = inputs.exactly()?;
                $f(a, b, $($arg,)* s).map(one)
            }};
        }
        macro_rules! ternary {
            ($f:path $(, $arg:expr)*) => {{
                let [a, b, c] = inputs.exactly()?;
                $f(a, b, c, $($arg,)* s).map(one)
            }};
        }
        macro_rules! reduce {
            ($f:path, $axes:expr $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                $f(a, &axes_of(a, $axes)?, $($arg,)* s).map(one)
            }};
        }
        // A reduction that has a value for no elements at all.
        macro_rules! total {
            ($of_none:expr, $f:path, $axes:expr, $keepdims:expr) => {{
                let [a] = inputs.exactly()?;
                let axes = axes_of(a, $axes)?;
                let reduce = |a: &Array| $f(a, &axes, *$keepdims, s);
                compose::total(a, &axes, *$keepdims, $of_none, s, reduce).map(one)
            }};
        }
        // One that adds up, or multiplies.
        macro_rules! fold {
            ($of_none:expr, $fold:expr, $axes:expr, $keepdims:expr) => {{
                let [a] = inputs.exactly()?;
                let axes = axes_of(a, $axes)?;
                let reduce = |a: &Array| reduce::reduce($fold, a, &axes, *$keepdims, device, s);
                compose::total(a, &axes, *$keepdims, $of_none, s, reduce).map(one)
            }};
        }
        // One axis, which must be there.
        macro_rules! along {
            ($f:path, $axis:expr $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                let axis = check::axis(a, $axis)? as i32;
                // MLX divides by the length of the axis.
                if a.size() == 0 {
                    return mlx::share(a).map(one);
                }
                compose::in_single(a, device, s, |a| $f(a, axis, $($arg,)* s)).map(one)
            }};
        }
        macro_rules! scan {
            ($scan:expr, $axis:expr, $reverse:expr, $inclusive:expr) => {{
                let [a] = inputs.exactly()?;
                let axis = check::axis(a, *$axis)? as i32;
                if a.size() == 0 {
                    return mlx::share(a).map(one);
                }
                reduce::scan($scan, a, axis, *$reverse, *$inclusive, device, s).map(one)
            }};
        }
        // Matrices that are not empty.
        macro_rules! matrix {
            ($check:path, $f:path $(, $arg:expr)*) => {{
                let [a] = inputs.exactly()?;
                $check(a)?;
                $f(a, $($arg,)* s)
            }};
        }
        macro_rules! several {
            ($check:path, $f:path $(, $arg:expr)*) => {
                matrix!($check, $f $(, $arg)*).map(Outputs::from_vec)
            };
        }
        macro_rules! single {
            ($check:path, $f:path $(, $arg:expr)*) => {
                matrix!($check, $f $(, $arg)*).map(one)
            };
        }
        macro_rules! sliced {
            ($f:path, $start:expr, $stop:expr, $strides:expr) => {{
                let [a, update] = inputs.exactly()?;
                let (start, stop, strides) = check::slice(a, $start, $stop, $strides)?;
                $f(a, update, &start, &stop, &strides, s).map(one)
            }};
        }
        macro_rules! transform {
            ($f:path, $sizes:expr, $axes:expr, $norm:expr) => {{
                let [a] = inputs.exactly()?;
                let axes = compose::transform_axes(a, $sizes, $axes)?;
                let is_half = matches!(self, Op::Irfft { .. });
                let a = compose::fit_spectrum(a, $sizes, &axes, is_half, s)?;
                $f(&a, $sizes, &axes, *$norm, s).map(one)
            }};
        }
        macro_rules! scatter {
            ($f:path, $axes:expr) => {{
                let ([a, updates], indices) = inputs.and_more()?;
                compose::scatter(a, updates, &indices, $axes, $f, s).map(one)
            }};
        }
        macro_rules! keyed {
            ($f:path $(, $arg:expr)*) => {{
                let [key] = inputs.exactly()?;
                check::key(key)?;
                $f($($arg,)* Some(key), s).map(one)
            }};
        }
        macro_rules! created {
            ($call:expr) => {{
                inputs.arity(0)?;
                $call.map(one)
            }};
        }

        match self {
            Op::Abs => unary!(mlx::abs),
            Op::Negative => unary!(gpu::negative, device),
            Op::Sign => unary!(mlx::sign),
            Op::Ceil => unary!(mlx::ceil),
            Op::Floor => unary!(mlx::floor),
            Op::Trunc => unary!(mlx::trunc),
            Op::Round { decimals } => unary!(double::round, *decimals),
            Op::Exp => unary!(double::either, double::exp, mlx::exp),
            Op::Expm1 => unary!(compose::expm1),
            Op::Log => unary!(mlx::log),
            Op::Log1p => unary!(mlx::log1p),
            Op::Log2 => unary!(mlx::log2),
            Op::Log10 => unary!(mlx::log10),
            Op::Sin => unary!(double::either, double::sin, mlx::sin),
            Op::Cos => unary!(double::either, double::cos, mlx::cos),
            Op::Tan => unary!(mlx::tan),
            Op::Arcsin => unary!(mlx::arcsin),
            Op::Arccos => unary!(mlx::arccos),
            Op::Arctan => unary!(mlx::arctan),
            Op::Sinh => unary!(mlx::sinh),
            Op::Cosh => unary!(mlx::cosh),
            Op::Tanh => unary!(mlx::tanh),
            Op::Arcsinh => unary!(mlx::arcsinh),
            Op::Arccosh => unary!(mlx::arccosh),
            Op::Arctanh => unary!(mlx::arctanh),
            Op::Erf => unary!(double::either, double::erf, mlx::erf),
            Op::Erfc => unary!(double::either, double::erfc, compose::erfc),
            Op::Erfinv => unary!(double::either, double::erfinv, mlx::erfinv),
            Op::Sqrt => unary!(mlx::sqrt),
            Op::Rsqrt => unary!(mlx::rsqrt),
            Op::Cbrt => unary!(compose::cbrt),
            Op::Square => unary!(mlx::square),
            Op::Reciprocal => unary!(mlx::reciprocal),
            Op::Sigmoid => unary!(double::either, double::sigmoid, compose::sigmoid),
            Op::Degrees => unary!(mlx::degrees),
            Op::Radians => unary!(mlx::radians),
            Op::LogicalNot => unary!(compose::logical_not),
            Op::BitwiseInvert => unary!(mlx::bitwise_invert),
            Op::PopulationCount => unary!(compose::population_count),
            Op::CountLeadingZeros => unary!(compose::count_leading_zeros),
            Op::Isnan => unary!(mlx::isnan),
            Op::Isinf => unary!(mlx::isinf),
            Op::Isposinf => unary!(mlx::isposinf),
            Op::Isneginf => unary!(mlx::isneginf),
            Op::Isfinite => unary!(mlx::isfinite),
            Op::Real => unary!(mlx::real),
            Op::Imag => unary!(mlx::imag),
            Op::Conjugate => unary!(mlx::conjugate),
            Op::Copy => unary!(mlx::copy),
            Op::NanToNum {
                nan,
                posinf,
                neginf,
            } => unary!(mlx::nan_to_num, *nan, *posinf, *neginf),
            Op::HadamardTransform { scale } => unary!(compose::hadamard_transform, *scale),

            Op::Add => binary!(mlx::add),
            Op::Subtract => binary!(mlx::subtract),
            Op::Multiply => binary!(mlx::multiply),
            Op::Divide => binary!(mlx::divide),
            Op::FloorDivide => binary!(compose::floor_divide),
            Op::Quotient => binary!(compose::quotient),
            Op::Remainder => binary!(compose::remainder),
            Op::Fmod => binary!(compose::fmod),
            Op::Power => binary!(mlx::power),
            Op::Maximum => binary!(mlx::maximum),
            Op::Minimum => binary!(mlx::minimum),
            Op::Arctan2 => binary!(mlx::arctan2),
            Op::Logaddexp => binary!(double::logaddexp),
            Op::Equal => binary!(mlx::equal),
            Op::NotEqual => binary!(mlx::not_equal),
            Op::Less => binary!(mlx::less),
            Op::LessEqual => binary!(mlx::less_equal),
            Op::Greater => binary!(mlx::greater),
            Op::GreaterEqual => binary!(mlx::greater_equal),
            Op::LogicalAnd => binary!(compose::logical_and),
            Op::LogicalOr => binary!(compose::logical_or),
            Op::LogicalXor => binary!(compose::logical_xor),
            Op::BitwiseAnd => binary!(mlx::bitwise_and),
            Op::BitwiseOr => binary!(mlx::bitwise_or),
            Op::BitwiseXor => binary!(compose::bitwise_xor),
            Op::LeftShift => binary!(compose::left_shift),
            Op::RightShift => binary!(compose::right_shift),
            Op::Divmod => {
                let [a, b] = inputs.exactly()?;
                Ok(smallvec![
                    compose::floor_divide(a, b, s)?,
                    compose::remainder(a, b, s)?,
                ])
            }
            Op::Isclose {
                rtol,
                atol,
                equal_nan,
            } => binary!(mlx::isclose, *rtol, *atol, *equal_nan),
            Op::Allclose {
                rtol,
                atol,
                equal_nan,
            } => binary!(mlx::allclose, *rtol, *atol, *equal_nan),
            Op::ArrayEqual { equal_nan } => binary!(mlx::array_equal, *equal_nan),

            Op::Astype { dtype } => unary!(compose::astype, *dtype),
            Op::View { dtype } => unary!(mlx::view, *dtype),
            Op::ToFp8 => unary!(compose::to_fp8),
            Op::FromFp8 { dtype } => unary!(compose::from_fp8, *dtype),

            Op::Sum { axes, keepdims } => fold!(0.0, Fold::Sum, axes, keepdims),
            Op::Prod { axes, keepdims } => fold!(1.0, Fold::Product, axes, keepdims),
            Op::Max { axes, keepdims } => reduce!(mlx::max, axes, *keepdims),
            Op::Min { axes, keepdims } => reduce!(mlx::min, axes, *keepdims),
            Op::All { axes, keepdims } => total!(1.0, compose::all, axes, keepdims),
            Op::Any { axes, keepdims } => total!(0.0, compose::any, axes, keepdims),
            Op::Mean { axes, keepdims } => fold!(f64::NAN, Fold::Mean, axes, keepdims),
            Op::Median { axes, keepdims } => reduce!(gpu::median, axes, *keepdims, device),
            Op::Var {
                axes,
                keepdims,
                ddof,
            } => fold!(f64::NAN, Fold::Variance { ddof: *ddof }, axes, keepdims),
            Op::Std {
                axes,
                keepdims,
                ddof,
            } => fold!(f64::NAN, Fold::Deviation { ddof: *ddof }, axes, keepdims),
            Op::Logsumexp { axes, keepdims } => {
                let [a] = inputs.exactly()?;
                let axes = axes_of(a, axes)?;
                reduce::logsumexp(a, &axes, *keepdims, device, s).map(one)
            }
            Op::Softmax { axes, precise } => reduce!(linear::softmax, axes, *precise, device),
            Op::Argmax {
                axis,
                keepdims,
                nan,
            } => unary!(compose::arg_reduce, *axis, *keepdims, *nan, mlx::argmax),
            Op::Argmin {
                axis,
                keepdims,
                nan,
            } => unary!(compose::arg_reduce, *axis, *keepdims, *nan, mlx::argmin),
            Op::Cumsum {
                axis,
                reverse,
                inclusive,
            } => scan!(Scan::Sum, axis, reverse, inclusive),
            Op::Cumprod {
                axis,
                reverse,
                inclusive,
            } => scan!(Scan::Product, axis, reverse, inclusive),
            Op::Cummax {
                axis,
                reverse,
                inclusive,
            } => along!(
                gpu::running,
                *axis,
                Reduction::Max,
                *reverse,
                *inclusive,
                device
            ),
            Op::Cummin {
                axis,
                reverse,
                inclusive,
            } => along!(
                gpu::running,
                *axis,
                Reduction::Min,
                *reverse,
                *inclusive,
                device
            ),
            Op::Logcumsumexp {
                axis,
                reverse,
                inclusive,
            } => scan!(Scan::LogSum, axis, reverse, inclusive),

            Op::Sort { axis } => along!(gpu::sort, *axis, device),
            Op::Argsort { axis } => unary!(compose::argsort, *axis, device),
            Op::Partition { kth, axis } => {
                unary!(compose::partition, *kth, *axis, mlx::partition, device)
            }
            Op::Argpartition { kth, axis } => {
                unary!(compose::partition, *kth, *axis, mlx::argpartition, device)
            }
            Op::Topk { k, axis } => unary!(compose::topk, *k, *axis, device),
            Op::Searchsorted { side } => binary!(compose::searchsorted, *side),

            Op::Reshape { shape } => unary!(compose::reshape, shape),
            Op::Flatten {
                start_axis,
                end_axis,
            } => unary!(mlx::flatten, *start_axis, *end_axis),
            Op::Unflatten { axis, shape } => unary!(compose::unflatten, *axis, shape),
            Op::Squeeze { axes } => {
                let [a] = inputs.exactly()?;
                mlx::squeeze(a, &check::axes(a, axes)?, s).map(one)
            }
            Op::ExpandDims { axes } => {
                let [a] = inputs.exactly()?;
                let axes = check::new_axes(axes, a.ndim() + axes.len())?;
                mlx::expand_dims(a, &axes, s).map(one)
            }
            Op::Transpose { axes } => {
                let [a] = inputs.exactly()?;
                check::length("axes", axes.len(), a.ndim())?;
                gpu::transpose(a, &check::axes(a, axes)?, device, s).map(one)
            }
            Op::Swapaxes { axis1, axis2 } => unary!(gpu::swapaxes, *axis1, *axis2, device),
            Op::Moveaxis {
                source,
                destination,
            } => unary!(gpu::moveaxis, *source, *destination, device),
            Op::BroadcastTo { shape } => unary!(mlx::broadcast_to, check::shape(shape)?),
            Op::Concatenate { axis } => {
                let ([], arrays) = inputs.and_more()?;
                // MLX gives one array back as it is, whatever the axis.
                if let [a] = arrays[..] {
                    check::axis(a, *axis)?;
                }
                mlx::concatenate(&Vector::new(arrays), *axis, s).map(one)
            }
            Op::Stack { axis } => {
                let ([], arrays) = inputs.and_more()?;
                mlx::stack(&Vector::new(arrays), *axis, s).map(one)
            }
            Op::Split { indices, axis } => {
                let [a] = inputs.exactly()?;
                compose::split(a, indices, *axis, s).map(Outputs::from_vec)
            }
            Op::Repeat { repeats, axis } => {
                let [a] = inputs.exactly()?;
                check::at_least("repeats", *repeats, 0)?;
                let axis = check::axis(a, *axis)? as i32;
                mlx::repeat(a, *repeats, axis, s).map(one)
            }
            Op::Tile { repetitions } => unary!(mlx::tile, check::shape(repetitions)?),
            Op::Flip { axes } => {
                let [a] = inputs.exactly()?;
                let flipped = mlx::flip(a, &check::axes(a, axes)?, s)?;
                gpu::without_negative_strides(flipped, true, device, s).map(one)
            }
            Op::Roll { shift, axes } => unary!(compose::roll, shift, axes),
            Op::Pad {
                axes,
                low,
                high,
                mode,
            } => binary!(compose::pad, axes, low, high, *mode),
            Op::PadInterior {
                low,
                high,
                interior,
            } => binary!(compose::pad_interior, low, high, interior),
            Op::AsStrided {
                shape,
                strides,
                offset,
            } => unary!(compose::as_strided, shape, strides, *offset),
            Op::Contiguous => unary!(mlx::contiguous, false),
            Op::Diag { k } => unary!(compose::diag, *k),
            Op::Diagonal {
                offset,
                axis1,
                axis2,
            } => unary!(compose::diagonal, *offset, *axis1, *axis2),
            Op::Tril { k } => unary!(compose::triangle, *k, mlx::tril),
            Op::Triu { k } => unary!(compose::triangle, *k, mlx::triu),
            Op::Trace {
                offset,
                axis1,
                axis2,
            } => {
                let [a] = inputs.exactly()?;
                let diagonal = compose::diagonal(a, *offset, *axis1, *axis2, s)?;
                let last = [diagonal.ndim() as i32 - 1];
                reduce::sum(&diagonal, &last, false, device, s).map(one)
            }

            Op::Slice {
                start,
                stop,
                strides,
            } => {
                let [a] = inputs.exactly()?;
                let (start, stop, strides) = check::slice(a, start, stop, strides)?;
                let slice = mlx::slice(a, &start, &stop, &strides, s)?;
                let turned = strides.iter().any(|stride| *stride < 0);
                gpu::without_negative_strides(slice, turned, device, s).map(one)
            }
            Op::SliceUpdate {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update, start, stop, strides),
            Op::SliceUpdateAdd {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_add, start, stop, strides),
            Op::SliceUpdateMax {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_max, start, stop, strides),
            Op::SliceUpdateMin {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_min, start, stop, strides),
            Op::SliceUpdateProd {
                start,
                stop,
                strides,
            } => sliced!(mlx::slice_update_prod, start, stop, strides),
            Op::SliceDynamic { axes, sizes } => {
                binary!(compose::slice_dynamic, axes, sizes, device)
            }
            Op::SliceUpdateDynamic { axes } => {
                ternary!(compose::slice_update_dynamic, axes, device)
            }
            Op::Take { axis } => binary!(compose::take, *axis),
            Op::TakeAlongAxis { axis } => binary!(compose::take_along_axis, *axis),
            Op::PutAlongAxis { axis } => ternary!(compose::put_along_axis, *axis),
            Op::ScatterAddAxis { axis } => ternary!(compose::scatter_add_axis, *axis, device),
            Op::Gather { axes, slice_sizes } => {
                let ([a], indices) = inputs.and_more()?;
                compose::gather(a, &indices, axes, slice_sizes, s).map(one)
            }
            Op::Scatter { axes } => scatter!(mlx::scatter, axes),
            Op::ScatterAdd { axes } => {
                let ([a, updates], indices) = inputs.and_more()?;
                compose::scatter_add(a, updates, &indices, axes, device, s).map(one)
            }
            Op::ScatterMax { axes } => scatter!(mlx::scatter_max, axes),
            Op::ScatterMin { axes } => scatter!(mlx::scatter_min, axes),
            Op::ScatterProd { axes } => {
                let ([a, updates], indices) = inputs.and_more()?;
                compose::scatter_prod(a, updates, &indices, axes, s).map(one)
            }
            Op::MaskedScatter => ternary!(compose::masked_scatter),
            Op::Where => ternary!(mlx::where_),
            Op::Clip => {
                let ([a], [low, high]) = inputs.with_optional()?;
                mlx::clip(a, low, high, s).map(one)
            }

            Op::Matmul => binary!(linear::matmul, device),
            Op::Addmm { alpha, beta } => ternary!(linear::addmm, *alpha, *beta, device),
            Op::Tensordot { axes_a, axes_b } => binary!(linear::tensordot, axes_a, axes_b, device),
            Op::Einsum { subscripts } => {
                let ([], operands) = inputs.and_more()?;
                einsum::einsum(subscripts, &operands, device, s).map(one)
            }
            Op::Inner => binary!(linear::inner, device),
            Op::Outer => binary!(mlx::outer),
            Op::Kron => binary!(mlx::kron),
            Op::Vecdot { axis } => binary!(linear::vecdot, *axis, device),
            Op::GatherMm { sorted } => {
                let ([a, b], [lhs, rhs]) = inputs.with_optional()?;
                linear::gather_mm(a, b, lhs, rhs, *sorted, device, s).map(one)
            }

            Op::Conv {
                stride,
                padding_low,
                padding_high,
                kernel_dilation,
                input_dilation,
                groups,
                flip,
            } => binary!(
                linear::conv,
                stride,
                padding_low,
                padding_high,
                kernel_dilation,
                input_dilation,
                *groups,
                *flip,
                device
            ),
            Op::ConvTranspose {
                stride,
                padding,
                dilation,
                output_padding,
                groups,
            } => binary!(
                linear::conv_transpose,
                stride,
                padding,
                dilation,
                output_padding,
                *groups,
                device
            ),
            Op::WindowReduce {
                reduction,
                window,
                strides,
                padding_low,
                padding_high,
                dilation,
            } => unary!(
                window::reduce,
                *reduction,
                &window::Windows {
                    window,
                    strides,
                    padding_low,
                    padding_high,
                    dilation
                }
            ),
            Op::WindowScatter {
                reduction,
                window,
                strides,
                padding_low,
                padding_high,
            } => ternary!(
                window::scatter,
                *reduction,
                &window::Windows {
                    window,
                    strides,
                    padding_low,
                    padding_high,
                    dilation: &vec![1; window.len()],
                },
                device
            ),
            Op::WindowView {
                window,
                strides,
                dilation,
            } => unary!(window::view, window, strides, dilation),

            Op::Fft { sizes, axes, norm } => transform!(mlx::fft, sizes, axes, norm),
            Op::Ifft { sizes, axes, norm } => transform!(mlx::ifft, sizes, axes, norm),
            Op::Rfft { sizes, axes, norm } => transform!(mlx::rfft, sizes, axes, norm),
            Op::Irfft { sizes, axes, norm } => transform!(mlx::irfft, sizes, axes, norm),
            Op::Fftshift { axes } => unary!(compose::shift_spectrum, axes, mlx::fftshift),
            Op::Ifftshift { axes } => unary!(compose::shift_spectrum, axes, mlx::ifftshift),

            Op::Cholesky { upper } => single!(check::square, mlx::cholesky, *upper),
            Op::CholeskyInv { upper } => single!(check::square, mlx::cholesky_inv, *upper),
            Op::Qr => several!(check::matrix, mlx::qr),
            Op::Svd { compute_uv } => several!(check::matrix, linear::svd, *compute_uv),
            Op::Eigh { upper } => several!(check::square, linear::eigh, *upper),
            Op::Eigvalsh { upper } => several!(check::square, linear::eigvalsh, *upper),
            Op::Eig => several!(check::square, linear::eig),
            Op::Eigvals => several!(check::square, linear::eigvals),
            Op::Lu => several!(check::matrix, linear::lu),
            Op::LuFactor => several!(check::matrix, linear::lu_factor),
            Op::Inv => single!(check::square, mlx::inv),
            Op::TriInv { upper } => single!(check::square, mlx::tri_inv, *upper),
            Op::Pinv => several!(check::matrix, linear::pinv),
            Op::Det => several!(check::square, linear::det),
            Op::Slogdet => several!(check::square, linear::slogdet),
            Op::Solve => {
                let [a, b] = inputs.exactly()?;
                linear::check_system(a, b)?;
                linear::solve(a, b, s).map(one)
            }
            Op::SolveTriangular { upper } => {
                let [a, b] = inputs.exactly()?;
                linear::check_system(a, b)?;
                linear::solve_triangular(a, b, *upper, s).map(one)
            }
            Op::Cross { axis } => binary!(compose::cross, *axis),

            Op::RandomKey { seed } => created!(mlx::random_key(*seed)),
            Op::RandomSplit { num } => {
                let [key] = inputs.exactly()?;
                check::key(key)?;
                check::at_least("num", *num, 1)?;
                mlx::random_split(key, *num, s).map(one)
            }
            Op::RandomBits { shape, width } => {
                if ![1, 2, 4].contains(width) {
                    return Err(Error::invalid(format!(
                        "width must be 1, 2 or 4, got {width}"
                    )));
                }
                keyed!(mlx::random_bits, check::shape(shape)?, *width)
            }
            Op::RandomUniform { shape, dtype } => {
                let [low, high, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_uniform(low, high, shape, *dtype, Some(key), s).map(one)
            }
            Op::RandomNormal {
                shape,
                dtype,
                loc,
                scale,
            } => keyed!(
                mlx::random_normal,
                check::shape(shape)?,
                *dtype,
                *loc,
                *scale
            ),
            Op::RandomRandint { shape, dtype } => {
                let [low, high, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_randint(low, high, shape, *dtype, Some(key), s).map(one)
            }
            Op::RandomBernoulli { shape } => {
                let [p, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_bernoulli(p, shape, Some(key), s).map(one)
            }
            Op::RandomTruncatedNormal { shape, dtype } => {
                let [low, high, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                mlx::random_truncated_normal(low, high, shape, *dtype, Some(key), s).map(one)
            }
            Op::RandomGumbel { shape, dtype } => {
                keyed!(mlx::random_gumbel, check::shape(shape)?, *dtype)
            }
            Op::RandomLaplace {
                shape,
                dtype,
                loc,
                scale,
            } => keyed!(
                mlx::random_laplace,
                check::shape(shape)?,
                *dtype,
                *loc,
                *scale
            ),
            Op::RandomCategorical { axis, shape } => {
                let [logits, key] = inputs.exactly()?;
                check::key(key)?;
                check::shape(shape)?;
                check::filled_axis(logits, *axis)?;
                mlx::random_categorical(logits, *axis, shape, Some(key), s).map(one)
            }
            Op::RandomPermutation { axis } => {
                let [a, key] = inputs.exactly()?;
                check::key(key)?;
                check::axis(a, *axis)?;
                // MLX divides by the length of the axis.
                if a.size() == 0 {
                    return mlx::share(a).map(one);
                }
                mlx::random_permutation(a, *axis, Some(key), s).map(one)
            }

            Op::Constant { value, dtype } => created!(compose::constant(*value, *dtype)),
            Op::Full { shape, dtype } => {
                let [value] = inputs.exactly()?;
                mlx::full(check::shape(shape)?, value, *dtype, s).map(one)
            }
            Op::Zeros { shape, dtype } => created!(mlx::zeros(check::shape(shape)?, *dtype, s)),
            Op::Ones { shape, dtype } => created!(mlx::ones(check::shape(shape)?, *dtype, s)),
            Op::Arange {
                start,
                stop,
                step,
                dtype,
            } => created!(compose::arange(*start, *stop, *step, *dtype, s)),
            Op::Linspace {
                start,
                stop,
                num,
                dtype,
            } => {
                check::at_least("num", *num, 0)?;
                created!(compose::linspace(*start, *stop, *num, *dtype, s))
            }
            Op::Iota { shape, axis, dtype } => {
                created!(compose::iota(check::shape(shape)?, *axis, *dtype, s))
            }
            Op::Eye { n, m, k, dtype } => {
                let k = check::matrix_size(*n, *m, *k, *dtype)?;
                created!(gpu::eye(*n, *m, k, *dtype, device, s))
            }
            Op::Tri { n, m, k, dtype } => {
                let k = check::matrix_size(*n, *m, *k, *dtype)?;
                created!(gpu::tri(*n, *m, k, *dtype, device, s))
            }

            Op::RmsNorm { eps } => {
                let ([x], [weight]) = inputs.with_optional()?;
                linear::rms_norm(x, weight, *eps, device, s).map(one)
            }
            Op::LayerNorm { eps } => {
                let ([x], [weight, bias]) = inputs.with_optional()?;
                linear::layer_norm(x, weight, bias, *eps, device, s).map(one)
            }
            Op::Rope {
                dims,
                traditional,
                base,
                scale,
            } => {
                let ([x, offset], [freqs]) = inputs.with_optional()?;
                linear::rope(
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
            Op::Products { .. } | Op::QuantizedProducts { .. } => {
                let ([x], [weight, residual], matrices) = inputs.with_optional_and_more()?;
                let wanted = Products::of(self, x, weight, residual, &matrices)
                    .ok_or_else(|| Error::invalid("eps goes with the weight of a norm"))?;
                fused::products(wanted, device, s, crossed)
            }
            Op::RopeHeads { .. } => {
                let (arrays, [q_norm, k_norm, freqs]) = inputs.with_optional()?;
                let how = decode::Heads::of(self, q_norm, k_norm)
                    .ok_or_else(|| Error::invalid("eps goes with a weight for q and one for k"))?;
                fused::rope_heads(arrays, freqs, &how, device, s, crossed)
            }
            Op::CacheAttention { scale, shape } => {
                let (arrays, [mask]) = inputs.with_optional()?;
                fused::cache_attention(arrays, mask, *scale, shape, device, s, crossed).map(one)
            }
            Op::ScaledDotProductAttention { scale, mask: mode } => {
                let ([q, k, v], [mask, sinks]) = inputs.with_optional()?;
                linear::attention(q, k, v, mask, sinks, *scale, *mode, device, s).map(one)
            }
            Op::CrossEntropy => binary!(linear::cross_entropy, device),

            Op::Quantize {
                group_size,
                bits,
                mode,
            } => {
                let ([w], [global_scale]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                mlx::quantize(w, *group_size, *bits, mode.name(), global_scale, s)
                    .map(Outputs::from_vec)
            }
            Op::Dequantize {
                group_size,
                bits,
                mode,
                dtype,
            } => {
                let ([w, scales], [biases, global_scale]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                mlx::dequantize(
                    w,
                    scales,
                    biases,
                    *group_size,
                    *bits,
                    mode.name(),
                    global_scale,
                    *dtype,
                    s,
                )
                .map(one)
            }
            Op::QuantizedMatmul {
                transpose,
                group_size,
                bits,
                mode,
            } => {
                let ([x, w, scales], [biases]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                if *transpose && mode.name() == "affine" {
                    let (group, bits) = (*group_size, *bits);
                    let weights = [w, scales];
                    if let Some(own) =
                        linear::quantized_product(x, weights, biases, group, bits, device, s)
                    {
                        return own.map(one);
                    }
                }
                gpu::of_rows(x, device, s, |x| {
                    compose::quantized_in_single(
                        x,
                        scales,
                        biases,
                        device,
                        s,
                        |x, scales, biases| {
                            mlx::quantized_matmul(
                                x,
                                w,
                                scales,
                                biases,
                                *transpose,
                                *group_size,
                                *bits,
                                mode.name(),
                                s,
                            )
                        },
                    )
                })
                .map(one)
            }
            Op::Qqmm {
                group_size,
                bits,
                mode,
            } => {
                let ([x, w], [scales, scale_x, scale_w]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                compose::in_single(x, device, s, |x| {
                    mlx::qqmm(
                        x,
                        w,
                        scales,
                        *group_size,
                        *bits,
                        mode.name(),
                        scale_x,
                        scale_w,
                        s,
                    )
                })
                .map(one)
            }
            Op::GatherQmm {
                transpose,
                group_size,
                bits,
                mode,
                sorted,
            } => {
                let ([x, w, scales], [biases, lhs, rhs]) = inputs.with_optional()?;
                check::packing(*group_size, *bits)?;
                let (lhs, rhs) = linear::matrix_indices(x, w, lhs, rhs, s)?;
                compose::quantized_in_single(x, scales, biases, device, s, |x, scales, biases| {
                    mlx::gather_qmm(
                        x,
                        w,
                        scales,
                        biases,
                        lhs.as_ref(),
                        rhs.as_ref(),
                        *transpose,
                        *group_size,
                        *bits,
                        mode.name(),
                        *sorted,
                        s,
                    )
                })
                .map(one)
            }
        }
    }
}
