//! The one table of operations. [`Op`] is decoded from the Elixir term and from a file's JSON by derive.

use super::{AttentionLayout, MaskMode, Number, PadMode, QuantMode, Reduction, Side, Which};
use crate::base::Dtype;
use crate::mlx::FftNorm;
use rustler::NifTaggedEnum;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

/// The table, and of its first two parts enums of their own, whose files build each operation without another case.
macro_rules! operations {
    (
        $(#[$attribute:meta])*
        unary { $($unary:tt)* }
        binary { $($binary:tt)* }
        others { $($other:tt)* }
    ) => {
        $(#[$attribute])*
        pub enum Op {
            $($unary)*
            $($binary)*
            $($other)*
        }

        part! {
            /// A function of each element of one array.
            Unary, unary, unary_operations: $($unary)*
        }
        part! {
            /// A function of pairs of elements of two arrays.
            Binary, binary, binary_operations: $($binary)*
        }
    };
}

/// A part of [`Op`]: the enum, the method of [`Op`] that gives it, and a pattern of all its operations.
macro_rules! part {
    (
        $(#[$doc:meta])*
        $name:ident, $method:ident, $pattern:ident:
        $($(#[$about:meta])* $variant:ident $({ $($field:ident: $kind:ty),* })?,)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum $name {
            $($(#[$about])* $variant $({ $($field: $kind),* })?,)*
        }

        impl Op {
            pub const fn $method(&self) -> Option<$name> {
                match self {
                    $(Op::$variant $({ $($field),* })? => {
                        Some($name::$variant $({ $($field: *$field),* })?)
                    })*
                    _ => None,
                }
            }
        }

        macro_rules! $pattern {
            () => { $($crate::op::Op::$variant { .. })|* };
        }
        pub(super) use $pattern;
    };
}

operations! {
    /// Every operation with its attributes. Arrays are not here: they are the inputs, in the order of each variant's
    /// comment. A variant without attributes is an atom in Elixir (`:add`), one with attributes a pair (`{:sum, %{axes:
    /// …}}`). `axes: nil` means all axes; a negative axis counts from the end.
    ///
    /// What is true of an operation whatever its arrays are stands in `traits.rs`.
    #[derive(Clone, Debug, NifTaggedEnum, Serialize, Deserialize, IntoStaticStr, VariantNames)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    #[strum(serialize_all = "snake_case")]
    // Inputs: a.
    unary {
        Abs,
        Negative,
        Sign,
        Ceil,
        Floor,
        Trunc,
        Round { decimals: i32 },
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
        NanToNum { nan: f32, posinf: Option<f32>, neginf: Option<f32> },
    }
    // Inputs: a, b, broadcast.
    binary {
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
        Isclose { rtol: f64, atol: f64, equal_nan: bool },
    }
    others {
        /// Inputs: a.
        HadamardTransform { scale: Option<f32> },
        // Comparisons of whole arrays, inputs: a, b
        Allclose { rtol: f64, atol: f64, equal_nan: bool },
        ArrayEqual { equal_nan: bool },

        // Types, inputs: a
        Astype { dtype: Dtype },
        /// The same bits read as another type; the last axis grows or shrinks with the size.
        View { dtype: Dtype },
        /// To 8-bit floats (E4M3), as u8.
        ToFp8,
        FromFp8 { dtype: Dtype },

        // Reductions, inputs: a
        Sum { axes: Option<Vec<i32>>, keepdims: bool },
        Prod { axes: Option<Vec<i32>>, keepdims: bool },
        Max { axes: Option<Vec<i32>>, keepdims: bool },
        Min { axes: Option<Vec<i32>>, keepdims: bool },
        All { axes: Option<Vec<i32>>, keepdims: bool },
        Any { axes: Option<Vec<i32>>, keepdims: bool },
        Mean { axes: Option<Vec<i32>>, keepdims: bool },
        Median { axes: Option<Vec<i32>>, keepdims: bool },
        Var { axes: Option<Vec<i32>>, keepdims: bool, ddof: i32 },
        Std { axes: Option<Vec<i32>>, keepdims: bool, ddof: i32 },
        Logsumexp { axes: Option<Vec<i32>>, keepdims: bool },
        Softmax { axes: Option<Vec<i32>>, precise: bool },
        /// The first of equals; NaN, of which `nan` says which one, before all. `axis: nil` looks at the flattened
        /// array.
        Argmax { axis: Option<i32>, keepdims: bool, nan: Which },
        Argmin { axis: Option<i32>, keepdims: bool, nan: Which },
        Cumsum { axis: i32, reverse: bool, inclusive: bool },
        Cumprod { axis: i32, reverse: bool, inclusive: bool },
        Cummax { axis: i32, reverse: bool, inclusive: bool },
        Cummin { axis: i32, reverse: bool, inclusive: bool },
        Logcumsumexp { axis: i32, reverse: bool, inclusive: bool },

        // Order, inputs: a
        Sort { axis: i32 },
        /// Stable.
        Argsort { axis: i32 },
        Partition { kth: i32, axis: i32 },
        Argpartition { kth: i32, axis: i32 },
        /// The k largest, in no order.
        Topk { k: i32, axis: i32 },
        /// Inputs: sorted (one axis), values.
        Searchsorted { side: Side },

        // Shapes, inputs: a
        Reshape { shape: Vec<i32> },
        Flatten { start_axis: i32, end_axis: i32 },
        Unflatten { axis: i32, shape: Vec<i32> },
        Squeeze { axes: Vec<i32> },
        ExpandDims { axes: Vec<i32> },
        Transpose { axes: Vec<i32> },
        Swapaxes { axis1: i32, axis2: i32 },
        Moveaxis { source: i32, destination: i32 },
        BroadcastTo { shape: Vec<i32> },
        /// Inputs: any number of arrays.
        Concatenate { axis: i32 },
        /// Inputs: any number of arrays.
        Stack { axis: i32 },
        /// Outputs: one more than there are indices.
        Split { indices: Vec<i32>, axis: i32 },
        Repeat { repeats: i32, axis: i32 },
        Tile { repetitions: Vec<i32> },
        Flip { axes: Vec<i32> },
        Roll { shift: Vec<i32>, axes: Vec<i32> },
        /// Inputs: a, value. Negative widths crop.
        Pad { axes: Vec<i32>, low: Vec<i32>, high: Vec<i32>, mode: PadMode },
        /// Inputs: a, value. `interior[i]` values between neighbours.
        PadInterior { low: Vec<i32>, high: Vec<i32>, interior: Vec<i32> },
        AsStrided { shape: Vec<i32>, strides: Vec<i64>, offset: u64 },
        Contiguous,
        Diag { k: i32 },
        Diagonal { offset: i32, axis1: i32, axis2: i32 },
        Tril { k: i32 },
        Triu { k: i32 },
        Trace { offset: i32, axis1: i32, axis2: i32 },

        // Parts
        /// Inputs: a.
        Slice { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
        /// Inputs: a, update.
        SliceUpdate { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
        SliceUpdateAdd { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
        SliceUpdateMax { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
        SliceUpdateMin { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
        SliceUpdateProd { start: Vec<i32>, stop: Vec<i32>, strides: Vec<i32> },
        /// Inputs: a, start (one integer an axis); starts are clamped so that the slice fits.
        SliceDynamic { axes: Vec<i32>, sizes: Vec<i32> },
        /// Inputs: a, update, start; starts are clamped so that the update fits.
        SliceUpdateDynamic { axes: Vec<i32> },
        /// Inputs: a, indices. Indices out of range are clamped, negative ones count from the end.
        Take { axis: i32 },
        TakeAlongAxis { axis: i32 },
        /// Inputs: a, indices, values.
        PutAlongAxis { axis: i32 },
        ScatterAddAxis { axis: i32 },
        /// Inputs: a, then one index array an axis of `axes`. Indices out of range are clamped.
        Gather { axes: Vec<i32>, slice_sizes: Vec<i32> },
        /// Inputs: a, updates, then one index array an axis of `axes`. Updates out of range are dropped.
        Scatter { axes: Vec<i32> },
        ScatterAdd { axes: Vec<i32> },
        ScatterMax { axes: Vec<i32> },
        ScatterMin { axes: Vec<i32> },
        ScatterProd { axes: Vec<i32> },
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
        Addmm { alpha: f32, beta: f32 },
        Tensordot { axes_a: Vec<i32>, axes_b: Vec<i32> },
        /// Inputs: any number of arrays.
        Einsum { subscripts: String },
        Inner,
        Outer,
        Kron,
        Vecdot { axis: i32 },
        /// Inputs: a, b, lhs_indices or nil, rhs_indices or nil.
        GatherMm { sorted: bool },

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
        ConvTranspose { stride: Vec<i32>, padding: Vec<i32>, dilation: Vec<i32>, output_padding: Vec<i32>, groups: i32 },
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
        WindowView { window: Vec<i32>, strides: Vec<i32>, dilation: Vec<i32> },

        // Spectra, inputs: a
        Fft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
        Ifft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
        Rfft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
        Irfft { sizes: Vec<i32>, axes: Vec<i32>, norm: FftNorm },
        Fftshift { axes: Vec<i32> },
        Ifftshift { axes: Vec<i32> },

        // Linear algebra on the last two axes, inputs: a. On the CPU also where the arrays are the GPU's.
        Cholesky { upper: bool },
        CholeskyInv { upper: bool },
        /// Outputs: q, r.
        Qr,
        /// Outputs: u, s, vt; only s without `compute_uv`.
        Svd { compute_uv: bool },
        /// Outputs: eigenvalues, eigenvectors.
        Eigh { upper: bool },
        Eigvalsh { upper: bool },
        Eig,
        Eigvals,
        /// Outputs: row order, l, u.
        Lu,
        /// Outputs: packed lu, pivots.
        LuFactor,
        Inv,
        TriInv { upper: bool },
        Pinv,
        Det,
        /// Outputs: sign, logarithm of the absolute determinant.
        Slogdet,
        /// Inputs: a, b.
        Solve,
        SolveTriangular { upper: bool },
        Cross { axis: i32 },

        // Random numbers
        /// Inputs: none.
        RandomKey { seed: u64 },
        /// Inputs: key.
        RandomSplit { num: i32 },
        RandomBits { shape: Vec<i32>, width: i32 },
        /// Inputs: low, high, key.
        RandomUniform { shape: Vec<i32>, dtype: Dtype },
        /// Inputs: key.
        RandomNormal { shape: Vec<i32>, dtype: Dtype, loc: f32, scale: f32 },
        /// Inputs: low, high, key.
        RandomRandint { shape: Vec<i32>, dtype: Dtype },
        /// Inputs: p, key.
        RandomBernoulli { shape: Vec<i32> },
        /// Inputs: low, high, key.
        RandomTruncatedNormal { shape: Vec<i32>, dtype: Dtype },
        /// Inputs: key.
        RandomGumbel { shape: Vec<i32>, dtype: Dtype },
        RandomLaplace { shape: Vec<i32>, dtype: Dtype, loc: f32, scale: f32 },
        /// Inputs: logits, key.
        RandomCategorical { axis: i32, shape: Vec<i32> },
        /// Inputs: a, key.
        RandomPermutation { axis: i32 },

        // Creation, inputs: none (Full: value)
        Constant { value: Number, dtype: Dtype },
        Full { shape: Vec<i32>, dtype: Dtype },
        Zeros { shape: Vec<i32>, dtype: Dtype },
        Ones { shape: Vec<i32>, dtype: Dtype },
        Arange { start: f64, stop: f64, step: f64, dtype: Dtype },
        Linspace { start: f64, stop: f64, num: i32, dtype: Dtype },
        /// Counts along one axis; `axis: nil` counts the elements in row-major order.
        Iota { shape: Vec<i32>, axis: Option<i32>, dtype: Dtype },
        Eye { n: i32, m: i32, k: i32, dtype: Dtype },
        Tri { n: i32, m: i32, k: i32, dtype: Dtype },

        // Fused
        /// Inputs: x, weight or nil.
        RmsNorm { eps: f64 },
        /// Inputs: x, weight or nil, bias or nil.
        LayerNorm { eps: f64 },
        /// Inputs: x, offset (scalar or one a batch row), freqs or nil (then `base` is given).
        Rope { dims: i32, traditional: bool, base: Option<f32>, scale: f32 },
        /// Inputs: q, k, v, mask or nil, sinks or nil. q, k, v and the output lie as the layout says; nil is `bhsd`.
        ScaledDotProductAttention { scale: f32, mask: MaskMode, layout: Option<AttentionLayout> },
        /// Products of one x. Inputs: x {…, k}, the weight of an RMS norm of x or nil, what is added to the only
        /// product {…, n} or nil, then matrices {k, n}. Outputs {rows, n}: one for each matrix; where `gated`, silu of
        /// the first product times the second. A `shape` is that of the only output.
        Products { eps: Option<f64>, gated: bool, shape: Option<Vec<i32>> },
        /// [`Op::Products`] with quantized matrices (mode affine), three inputs each: words {n, k · bits / 32}, scales
        /// and biases {n, k / group_size}.
        QuantizedProducts { eps: Option<f64>, gated: bool, shape: Option<Vec<i32>>, bits: i32, group_size: i32 },
        /// What attention takes of one row a position. Inputs: q, k, v {rows, heads * size}, offsets {rows}, the
        /// weights of the RMS norms of heads of q and of k or nil, freqs or nil (then `base` is given). Outputs {…lead,
        /// heads, size}, q and k normed and turned, and heads of k and v `repeat` times each; `lead` multiplies to the
        /// rows.
        RopeHeads { lead: Vec<i32>, size: i32, repeat: i32, eps: Option<f64>, base: Option<f32>, scale: f32 },
        /// Attention of one position on a cache. Inputs: q {batch, 1, heads, size}, k, v {batch, length, kv_heads,
        /// size}, a mask of booleans {batch | 1, heads | 1, 1, length} or nil. The output has the elements of {batch,
        /// 1, heads, size} in `shape`.
        CacheAttention { scale: f32, shape: Vec<i32> },
        /// Inputs: logits, targets.
        CrossEntropy,

        // Quantized
        /// Inputs: w, global_scale or nil. Outputs: packed w, scales, and biases in mode affine.
        Quantize { group_size: Option<i32>, bits: Option<i32>, mode: QuantMode },
        /// Inputs: w, scales, biases or nil, global_scale or nil.
        Dequantize { group_size: Option<i32>, bits: Option<i32>, mode: QuantMode, dtype: Option<Dtype> },
        /// Inputs: x, w, scales, biases or nil.
        QuantizedMatmul { transpose: bool, group_size: Option<i32>, bits: Option<i32>, mode: QuantMode },
        /// Inputs: x, w, scales or nil, global_scale_x or nil, global_scale_w or nil.
        Qqmm { group_size: Option<i32>, bits: Option<i32>, mode: QuantMode },
        /// Inputs: x, w, scales, biases or nil, lhs_indices or nil, rhs_indices or nil.
        GatherQmm { transpose: bool, group_size: Option<i32>, bits: Option<i32>, mode: QuantMode, sorted: bool },
    }
}
