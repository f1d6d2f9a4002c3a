//! What can be true of an operation. Each operation states it in its family's part of the table (table.rs).
//! [`Op::traits`] returns it to the interpreters of programs, the GPU's paths and, through `EMLX.OpTable`, to Elixir.

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
    /// Computed on the CPU also for arrays of the GPU. So is other linear algebra where cuSOLVER is not there.
    pub cpu_only: bool,
    /// May fail while it is computed, not only while it is built: its result carries the failure on to what uses it.
    pub late_failure: bool,
    /// CUDA's kernel takes elements to lie in rows.
    pub row_major_on_gpu: bool,
    /// Positions of inputs of which CUDA has no 64-bit types: there are no atomic operations on them.
    pub narrow_on_gpu: &'static [u8],
}

impl Traits {
    pub(super) const fn new(class: Class, required: u8) -> Traits {
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
            cpu_only: false,
            late_failure: matches!(class, Class::LinearAlgebra),
            row_major_on_gpu: false,
            narrow_on_gpu: &[],
        }
    }

    pub(super) const fn takes(mut self, required: u8) -> Traits {
        self.arity.required = required;
        self
    }

    pub(super) const fn optional(mut self, count: u8) -> Traits {
        self.arity.optional = count;
        self
    }

    pub(super) const fn more(mut self) -> Traits {
        self.arity.more = true;
        self
    }

    pub(super) const fn outputs(mut self, count: u8) -> Traits {
        self.outputs = Some(count);
        self
    }

    pub(super) const fn any_outputs(mut self) -> Traits {
        self.outputs = None;
        self
    }

    pub(super) const fn view(mut self, view: View) -> Traits {
        self.view = Some(view);
        self
    }

    pub(super) const fn converts(mut self) -> Traits {
        self.converts = true;
        self
    }

    pub(super) const fn simple(mut self) -> Traits {
        self.simple = true;
        self
    }

    pub(super) const fn cpu_only(mut self) -> Traits {
        self.cpu_only = true;
        self
    }

    pub(super) const fn row_major_on_gpu(mut self) -> Traits {
        self.row_major_on_gpu = true;
        self
    }

    pub(super) const fn narrow_on_gpu(mut self, positions: &'static [u8]) -> Traits {
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
