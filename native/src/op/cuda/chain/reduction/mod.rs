//! Generated reductions for CUDA: links on elements, folds of what they give over some axes, and links on what these
//! give, as one kernel ([`text`]). A softmax is two folds one after another, and a variance too. Called by the
//! operations of `op/reduce.rs` and by the engine `rows`.

#[cfg(emlx_kernels)]
pub(super) mod layout;
#[cfg(emlx_kernels)]
pub(super) mod node;
#[cfg(emlx_kernels)]
pub(super) mod text;

use crate::base::Result;
use crate::cpu::{Link, Operand, Type};
use crate::mlx::Stream;
use mlx_rs::Array;
use smallvec::SmallVec;

/// How elements become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fold {
    Sum,
    Product,
    Max,
    Min,
    All,
    Any,
    /// Of one axis: the place of the first of equals, and of NaN, which is before all, the first or the last.
    Place {
        is_max: bool,
        is_last_nan: bool,
    },
}

impl Fold {
    /// The type of the result for elements of a type. Floats are added up and multiplied as f32.
    pub fn result(self, of: Type) -> Type {
        match self {
            Fold::Sum | Fold::Product if of.is_float() => Type::F32,
            Fold::Sum | Fold::Product | Fold::Max | Fold::Min => of,
            Fold::All | Fold::Any => Type::Bool,
            Fold::Place { .. } => Type::U32,
        }
    }

    fn takes(self, of: Type) -> bool {
        match self {
            _ if of == Type::F64 => false,
            Fold::Sum | Fold::Product => of != Type::Bool,
            Fold::All | Fold::Any => of == Type::Bool,
            Fold::Max | Fold::Min | Fold::Place { .. } => true,
        }
    }
}

/// What is done with elements, or with what folds gave. Operands that are links name steps, folds among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Link(Link),
    Fold {
        fold: Fold,
        of: Type,
        operand: Operand,
        /// Of [`Fold::Place`]: what has the places of the elements, where these are not the places along the axis.
        places: Option<Operand>,
    },
}

impl Step {
    pub fn fold(fold: Fold, of: Type, operand: Operand) -> Step {
        Step::Fold {
            fold,
            of,
            operand,
            places: None,
        }
    }

    pub fn operands(&self) -> SmallVec<[Operand; 3]> {
        match self {
            Step::Link(link) => link.operands().into(),
            Step::Fold {
                operand, places, ..
            } => [Some(*operand), *places].into_iter().flatten().collect(),
        }
    }

    /// The type of its value.
    pub fn to(&self) -> Type {
        match self {
            Step::Link(link) => link.to,
            Step::Fold { fold, of, .. } => fold.result(*of),
        }
    }

    /// The type that it takes an operand as.
    pub fn from(&self, place: usize) -> Type {
        match self {
            Step::Link(link) => link.action.operand(place, link.from),
            Step::Fold { of, .. } if place == 0 => *of,
            Step::Fold { .. } => Type::U32,
        }
    }
}

/// A step whose value is a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kept {
    pub step: u8,
    /// Whether it has an element for each that is read, and not one for all that are folded.
    pub is_wide: bool,
}

/// Steps over the elements of arrays that broadcast to one shape, some of whose axes are folded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rows {
    pub steps: SmallVec<[Step; 4]>,
    pub results: SmallVec<[Kept; 2]>,
}

impl Rows {
    /// With the last step's value as the one result, which the folds alone determine.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Rows {
        let steps: SmallVec<[Step; 4]> = steps.into_iter().collect();
        let last = steps.len().saturating_sub(1) as u8;
        Rows {
            steps,
            results: [Kept {
                step: last,
                is_wide: false,
            }]
            .into_iter()
            .collect(),
        }
    }

    /// For each step how many folds, one after another, come before its value: its own too.
    pub fn levels(&self) -> SmallVec<[u8; 16]> {
        let mut levels: SmallVec<[u8; 16]> = SmallVec::new();
        for step in &self.steps {
            let operands = step.operands();
            let own = operands.iter().map(|operand| match *operand {
                Operand::Input(_) => 0,
                Operand::Link(step) => levels[usize::from(step)],
            });
            let own = own.max().unwrap_or(0);
            levels.push(own + u8::from(matches!(step, Step::Fold { .. })));
        }
        levels
    }

    /// Whether the GPU has a kernel for it: there is no f64 there.
    pub fn is_taken(&self) -> bool {
        let is_taken = |step: &Step| match step {
            Step::Link(link) => super::takes(std::slice::from_ref(link)),
            Step::Fold { fold, of, .. } => fold.takes(*of),
        };
        !self.steps.is_empty() && self.steps.iter().all(is_taken)
    }
}

/// Into how many parts a fold is cut, so that all multiprocessors have work. 1 where they have it anyway; then folds
/// one after another can be one kernel, which reads the elements once more for each, mostly from a cache.
pub fn parts(shape: &[i32], axes: &[u8]) -> usize {
    /// Threads beside each other that fold columns.
    const COLUMNS: usize = 32;
    const BLOCKS: usize = 1056;
    let size = |is_folded: bool| -> usize {
        let sizes = shape.iter().enumerate();
        let own = sizes.filter(|(axis, _)| axes.contains(&(*axis as u8)) == is_folded);
        own.map(|(_, size)| *size as usize).product()
    };
    let is_last = |axis: usize| shape[axis + 1..].iter().all(|size| *size == 1);
    let in_rows = axes.iter().any(|axis| is_last(usize::from(*axis)));
    let (blocks, least) = match in_rows {
        true => (size(false), 4096),
        false => (size(false).div_ceil(COLUMNS), 256),
    };
    match (BLOCKS / blocks.max(1)).min(size(true) / least) {
        0..4 => 1,
        parts => parts,
    }
}

/// The results of rows that are taken, over arrays of the GPU that broadcast to `shape`, which is not empty. Those that
/// have an element for each that is read are of this shape; the others have axes of 1 in the place of those that are
/// folded. There are generated kernels.
pub fn results(
    rows: Rows,
    inputs: &[&Array],
    shape: &[i32],
    axes: &[u8],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    #[cfg(emlx_kernels)]
    {
        node::results(rows, inputs, shape, axes, s)
    }
    #[cfg(not(emlx_kernels))]
    {
        let _ = (rows, inputs, shape, axes, s);
        Err(crate::base::Error::invalid(
            "generated kernels are not built here",
        ))
    }
}

/// The results by MLX's kernels for the CPU.
#[cfg(all(test, emlx_kernels))]
pub fn composed(
    rows: &Rows,
    inputs: &[Array],
    shape: &[i32],
    axes: &[u8],
    s: &Stream,
) -> Result<Vec<Array>> {
    node::composed(rows, inputs, shape, axes, 1, crate::base::Device::Cpu, s)
}
