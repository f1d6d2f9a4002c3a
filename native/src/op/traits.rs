//! Facts about operations, each stated once: [`Op::traits`]. The interpreters of programs, the GPU's paths and, through
//! `EMLX.OpTable`, Elixir read them here. A new operation does not compile before it has its row.

use super::table::{binary_operations, unary_operations};
use super::Op;
use rustler::NifUnitEnum;

/// What an operation does. [`Op::apply`] goes by it to the file that builds the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, NifUnitEnum)]
pub enum Class {
    /// A function of each element of one array.
    Unary,
    /// A function of pairs of elements of two arrays, broadcast together.
    Binary,
    /// A choice between elements of several arrays, broadcast together.
    Select,
    /// The elements as another type.
    Cast,
    /// Axes, or all of an array, to one element.
    Reduction,
    /// Running reductions along an axis.
    Scan,
    Order,
    /// The elements in another shape or at other places.
    Shape,
    /// Parts at places that attributes or one index for each axis name.
    Slice,
    /// Elements at places that arrays of indices or a mask name.
    Index,
    Product,
    /// Convolutions and sliding windows.
    Window,
    Spectrum,
    LinearAlgebra,
    Random,
    Creation,
    /// What would be several operations, as one kernel.
    Fused,
    Quantized,
}

/// How an operation mostly gives another look at its input's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, NifUnitEnum)]
pub enum View {
    /// The elements in their row-major order.
    Reshape,
    /// Some of the elements, or in another order, by strides.
    Strided,
}

/// How many arrays an operation takes: some that are required, some that may be nil, and, where `more`, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arity {
    pub required: u8,
    pub optional: u8,
    pub more: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Traits {
    pub class: Class,
    pub arity: Arity,
    /// None where attributes or inputs decide.
    pub outputs: Option<u8>,
    pub view: Option<View>,
    /// Changes shape or type and nothing else, so that it is the identity where both stay.
    pub converts: bool,
    /// Arithmetic, comparisons and logic on elements, and casts: what a program's own interpreters know
    /// (program/engine/counted.rs, program/engine/step_graph/text.rs).
    pub simple: bool,
    /// MLX has it for the CPU only.
    pub cpu_only: bool,
    /// May fail while it is computed, not only while it is built: its result carries the failure on to what uses it.
    pub late_failure: bool,
    /// CUDA's kernel takes elements to lie in rows.
    pub row_major_on_gpu: bool,
    /// Positions of inputs of which CUDA has no 64-bit types: there are no atomic operations on them.
    pub narrow_on_gpu: &'static [u8],
}

impl Traits {
    const fn new(class: Class, required: u8) -> Traits {
        let is_linear_algebra = matches!(class, Class::LinearAlgebra);
        Traits {
            class,
            arity: Arity {
                required,
                optional: 0,
                more: false,
            },
            outputs: Some(1),
            view: None,
            converts: false,
            simple: false,
            cpu_only: is_linear_algebra,
            late_failure: is_linear_algebra,
            row_major_on_gpu: false,
            narrow_on_gpu: &[],
        }
    }

    const fn optional(mut self, count: u8) -> Traits {
        self.arity.optional = count;
        self
    }

    const fn more(mut self) -> Traits {
        self.arity.more = true;
        self
    }

    const fn outputs(mut self, count: u8) -> Traits {
        self.outputs = Some(count);
        self
    }

    const fn any_outputs(mut self) -> Traits {
        self.outputs = None;
        self
    }

    const fn view(mut self, view: View) -> Traits {
        self.view = Some(view);
        self
    }

    const fn converts(mut self) -> Traits {
        self.converts = true;
        self
    }

    const fn simple(mut self) -> Traits {
        self.simple = true;
        self
    }

    const fn row_major_on_gpu(mut self) -> Traits {
        self.row_major_on_gpu = true;
        self
    }

    const fn narrow_on_gpu(mut self, positions: &'static [u8]) -> Traits {
        self.narrow_on_gpu = positions;
        self
    }

    /// Each element of the result is a function of the elements at its place, broadcast together.
    pub const fn is_elementwise(&self) -> bool {
        use Class::*;
        matches!(self.class, Unary | Binary | Select | Cast)
    }
}

impl Op {
    // A row for what several operations have in common, which rustfmt would spread over lines.
    #[rustfmt::skip]
    #[inline]
    pub const fn traits(&self) -> Traits {
        match self {
            unary_operations!() => Traits {
                simple: matches!(self, Op::LogicalNot),
                ..Traits::new(Class::Unary, 1)
            },
            binary_operations!() => Traits {
                outputs: Some(if matches!(self, Op::Divmod) { 2 } else { 1 }),
                simple: matches!(
                    self,
                    Op::Add | Op::Subtract | Op::Multiply | Op::Maximum | Op::Minimum | Op::Equal | Op::NotEqual
                    | Op::Less | Op::LessEqual | Op::Greater | Op::GreaterEqual | Op::LogicalAnd | Op::LogicalOr
                ),
                ..Traits::new(Class::Binary, 2)
            },
            Op::Where => Traits::new(Class::Select, 3),
            Op::Clip => Traits::new(Class::Select, 1).optional(2),
            Op::Astype { .. } => Traits::new(Class::Cast, 1).converts().simple(),
            Op::ToFp8 | Op::FromFp8 { .. } => Traits::new(Class::Cast, 1),
            Op::Sum { .. } | Op::Prod { .. } | Op::Max { .. } | Op::Min { .. } | Op::All { .. } | Op::Any { .. }
            | Op::Mean { .. } | Op::Median { .. } | Op::Var { .. } | Op::Std { .. } | Op::Logsumexp { .. }
            | Op::Argmax { .. } | Op::Argmin { .. } | Op::Trace { .. } => Traits::new(Class::Reduction, 1),
            Op::Allclose { .. } | Op::ArrayEqual { .. } => Traits::new(Class::Reduction, 2),
            Op::Cumsum { .. } | Op::Cumprod { .. } | Op::Cummax { .. } | Op::Cummin { .. } | Op::Logcumsumexp { .. }
            => Traits::new(Class::Scan, 1),
            Op::Sort { .. } | Op::Argsort { .. } | Op::Partition { .. } | Op::Argpartition { .. } | Op::Topk { .. }
            => Traits::new(Class::Order, 1).row_major_on_gpu(),
            Op::Searchsorted { .. } => Traits::new(Class::Order, 2),
            Op::Reshape { .. } | Op::Flatten { .. } | Op::Unflatten { .. } | Op::Squeeze { .. }
            | Op::ExpandDims { .. } => Traits::new(Class::Shape, 1).view(View::Reshape).converts(),
            Op::View { .. } => Traits::new(Class::Shape, 1).view(View::Reshape).converts(),
            Op::BroadcastTo { .. } => Traits::new(Class::Shape, 1).view(View::Strided).converts(),
            Op::Transpose { .. } | Op::Swapaxes { .. } | Op::Moveaxis { .. } | Op::Diagonal { .. }
            | Op::AsStrided { .. } => Traits::new(Class::Shape, 1).view(View::Strided),
            Op::Split { .. } => Traits::new(Class::Shape, 1).view(View::Strided).any_outputs(),
            Op::Repeat { .. } | Op::Tile { .. } | Op::Flip { .. } | Op::Roll { .. } | Op::Contiguous
            | Op::Tril { .. } | Op::Triu { .. } => Traits::new(Class::Shape, 1),
            Op::Diag { .. } => Traits::new(Class::Shape, 1).narrow_on_gpu(&[0]),
            Op::Pad { .. } | Op::PadInterior { .. } => Traits::new(Class::Shape, 2),
            Op::Concatenate { .. } | Op::Stack { .. } => Traits::new(Class::Shape, 0).more(),
            Op::Slice { .. } => Traits::new(Class::Slice, 1).view(View::Strided),
            Op::SliceUpdate { .. } | Op::SliceUpdateAdd { .. } | Op::SliceUpdateMax { .. }
            | Op::SliceUpdateMin { .. } | Op::SliceUpdateProd { .. } | Op::SliceDynamic { .. }
            => Traits::new(Class::Slice, 2),
            Op::SliceUpdateDynamic { .. } => Traits::new(Class::Slice, 3),
            Op::Take { .. } | Op::TakeAlongAxis { .. } => Traits::new(Class::Index, 2),
            Op::PutAlongAxis { .. } | Op::MaskedScatter => Traits::new(Class::Index, 3),
            Op::ScatterAddAxis { .. } => Traits::new(Class::Index, 3).narrow_on_gpu(&[0, 2]),
            Op::Gather { .. } => Traits::new(Class::Index, 1).more(),
            Op::Scatter { .. } | Op::ScatterAdd { .. } | Op::ScatterMax { .. } | Op::ScatterMin { .. }
            | Op::ScatterProd { .. } => Traits::new(Class::Index, 2).more().narrow_on_gpu(&[0, 1]),
            Op::Matmul | Op::Tensordot { .. } | Op::Inner | Op::Outer | Op::Kron | Op::Vecdot { .. }
            | Op::Cross { .. } => Traits::new(Class::Product, 2),
            Op::Addmm { .. } => Traits::new(Class::Product, 3),
            Op::Einsum { .. } => Traits::new(Class::Product, 0).more(),
            Op::GatherMm { .. } => Traits::new(Class::Product, 2).optional(2),
            Op::Conv { .. } | Op::ConvTranspose { .. } => Traits::new(Class::Window, 2),
            Op::WindowReduce { .. } => Traits::new(Class::Window, 1),
            Op::WindowScatter { .. } => Traits::new(Class::Window, 3).narrow_on_gpu(&[0, 2]),
            Op::WindowView { .. } => Traits::new(Class::Window, 1).view(View::Strided),
            Op::Fft { .. } | Op::Ifft { .. } | Op::Rfft { .. } | Op::Irfft { .. } | Op::Fftshift { .. }
            | Op::Ifftshift { .. } | Op::HadamardTransform { .. } => Traits::new(Class::Spectrum, 1),
            Op::Cholesky { .. } | Op::CholeskyInv { .. } | Op::Eigvalsh { .. } | Op::Eigvals | Op::Inv
            | Op::TriInv { .. } | Op::Pinv | Op::Det => Traits::new(Class::LinearAlgebra, 1),
            Op::Qr | Op::Eigh { .. } | Op::Eig | Op::LuFactor | Op::Slogdet
            => Traits::new(Class::LinearAlgebra, 1).outputs(2),
            Op::Lu => Traits::new(Class::LinearAlgebra, 1).outputs(3),
            Op::Svd { .. } => Traits::new(Class::LinearAlgebra, 1).any_outputs(),
            Op::Solve | Op::SolveTriangular { .. } => Traits::new(Class::LinearAlgebra, 2),
            Op::RandomKey { .. } => Traits::new(Class::Random, 0),
            Op::RandomSplit { .. } | Op::RandomBits { .. } | Op::RandomNormal { .. } | Op::RandomGumbel { .. }
            | Op::RandomLaplace { .. } => Traits::new(Class::Random, 1),
            Op::RandomBernoulli { .. } | Op::RandomCategorical { .. } | Op::RandomPermutation { .. }
            => Traits::new(Class::Random, 2),
            Op::RandomUniform { .. } | Op::RandomRandint { .. } | Op::RandomTruncatedNormal { .. }
            => Traits::new(Class::Random, 3),
            Op::Constant { .. } | Op::Zeros { .. } | Op::Ones { .. } | Op::Arange { .. } | Op::Linspace { .. }
            | Op::Iota { .. } | Op::Eye { .. } | Op::Tri { .. } => Traits::new(Class::Creation, 0),
            Op::Full { .. } => Traits::new(Class::Creation, 1),
            Op::Softmax { .. } => Traits::new(Class::Fused, 1),
            Op::RmsNorm { .. } => Traits::new(Class::Fused, 1).optional(1),
            Op::LayerNorm { .. } => Traits::new(Class::Fused, 1).optional(2),
            Op::Rope { .. } => Traits::new(Class::Fused, 2).optional(1),
            Op::ScaledDotProductAttention { .. } => Traits::new(Class::Fused, 3).optional(2),
            Op::Products { .. } => Traits::new(Class::Fused, 1).optional(2).more().any_outputs(),
            Op::RopeHeads { .. } => Traits::new(Class::Fused, 4).optional(3).outputs(3),
            Op::CacheAttention { .. } => Traits::new(Class::Fused, 3).optional(1),
            Op::CrossEntropy => Traits::new(Class::Fused, 2),
            Op::QuantizedProducts { .. } => Traits::new(Class::Quantized, 1).optional(2).more().any_outputs(),
            Op::Quantize { .. } => Traits::new(Class::Quantized, 1).optional(1).any_outputs().row_major_on_gpu(),
            Op::Dequantize { .. } => Traits::new(Class::Quantized, 2).optional(2).row_major_on_gpu(),
            Op::QuantizedMatmul { .. } => Traits::new(Class::Quantized, 3).optional(1).row_major_on_gpu(),
            Op::Qqmm { .. } => Traits::new(Class::Quantized, 2).optional(3).row_major_on_gpu(),
            Op::GatherQmm { .. } => Traits::new(Class::Quantized, 3).optional(3).row_major_on_gpu(),
        }
    }

    /// The Elixir name.
    pub fn name(&self) -> &'static str {
        self.into()
    }

    /// See [`Traits::cpu_only`].
    pub const fn is_for_cpu_only(&self) -> bool {
        self.traits().cpu_only
    }

    /// See [`Traits::late_failure`].
    pub const fn can_fail_late(&self) -> bool {
        self.traits().late_failure
    }
}
