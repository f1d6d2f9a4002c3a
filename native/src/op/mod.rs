//! Operations: the table (table.rs), which each family's file has a part of, and [`Op::apply`], which builds their
//! nodes. An eager call applies one; a program applies many. Nothing else in the crate knows what an operation does.

mod arg_reduce;
mod attention;
pub mod attributes;
mod binary;
mod blocks;
mod cast;
mod check;
mod conv;
mod creation;
mod cuda;
mod double;
mod einsum;
mod elementwise;
mod fft;
mod folds;
mod fused;
mod gathers;
mod gpu;
mod indexing;
mod inputs;
mod int8;
mod integer_matmul;
mod linalg;
mod matmul;
mod norm;
mod quantized;
mod random;
mod reduce;
mod rope;
mod scan;
mod select;
mod shape;
mod slicing;
mod softmax;
mod sort;
mod table;
#[cfg(test)]
mod tests;
mod traits;
mod unary;
mod values;
mod window;

use crate::base::{Device, Dtype, Error, Result};
use crate::mlx::{self, Stream};
pub use cuda::{chain as generated, decode};
pub use elementwise::links;
pub use folds::{axes as folded_axes, steps as fold_steps};
pub use fused::Products;
pub use gpu::Crossed;
pub use inputs::Inputs;
use mlx_rs::Array;
use smallvec::{smallvec, SmallVec};
pub use table::{Binary, Op, Unary};
pub use traits::{Class, View};
pub use values::{
    AttentionLayout, MaskMode, Negative, NonFinite, Number, PadMode, QuantMode, Side, Which,
};
pub use window::Reduction;

/// What an operation gives: nearly always one array, which then needs no allocation.
pub type Outputs = SmallVec<[Array; 2]>;

/// The arrays that an operation made, and those among what they depend on that the CPU computes for the GPU.
pub struct Applied {
    pub outputs: Outputs,
    pub crossed: Crossed,
}

/// Elements of an array up to which it is made by the caller where that takes no node, so that what follows can be
/// computed at once.
const SMALL: usize = 4096;

fn one(array: Array) -> Outputs {
    smallvec![array]
}

/// The failure of an operation that its class's file does not build. The compiler finds it (`others!` in table.rs), in
/// reduce.rs a test does.
#[cold]
fn no_case(op: &Op) -> Error {
    Error::invalid(format!(
        "{} has no case in the file of its class",
        op.name()
    ))
}

impl Op {
    /// Builds the operation's nodes. Nothing is computed.
    pub fn apply(&self, inputs: &Inputs, device: Device, stream: &Stream) -> Result<Applied> {
        let mut crossed = Crossed::default();
        let outputs = self.apply_within(inputs, device, stream, &mut crossed)?;
        Ok(Applied { outputs, crossed })
    }

    /// The operation and a cast of its one result.
    pub fn apply_and_cast(
        &self,
        to: Dtype,
        inputs: &Inputs,
        device: Device,
        stream: &Stream,
    ) -> Result<Applied> {
        if let Some(output) = self.by_kernel(inputs, Some(to), device, stream)? {
            return Ok(Applied {
                outputs: one(output),
                crossed: Crossed::default(),
            });
        }
        let mut applied = self.apply(inputs, device, stream)?;
        let [output] = applied.outputs.as_slice() else {
            return Err(Error::invalid("has several results, and one is cast"));
        };
        let cast = Op::Astype { dtype: to };
        let given = [Some(output)];
        applied.outputs =
            cast.apply_within(&Inputs(&given), device, stream, &mut applied.crossed)?;
        Ok(applied)
    }

    /// Why the CPU computes the operation for arrays of the GPU, if it always does.
    pub fn reason_for_cpu(&self) -> Option<&'static str> {
        if self.traits().class != Class::LinearAlgebra {
            return None;
        }
        if self.is_for_cpu_only() {
            return Some("cuSOLVER is not used for matrices that are not symmetric");
        }
        #[cfg(emlx_kernels)]
        {
            cuda::linalg::unavailable()
        }
        #[cfg(not(emlx_kernels))]
        {
            Some("MLX has it for the CPU only")
        }
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
            let outputs = self.apply_on(inputs, device, stream, crossed)?;
            // A view of a computed array is one, so that what follows can be computed at once. Operations of which
            // some end with a view of what they compute are looked at where they are small.
            if mlx::has_tasks() {
                let is_view = self.traits().view.is_some();
                let looked = |output: &&Array| is_view || output.size() <= SMALL;
                outputs.iter().filter(looked).for_each(|output| {
                    mlx::look(output, stream);
                });
            }
            return Ok(outputs);
        }
        let is_linear_algebra = self.traits().class == Class::LinearAlgebra;
        #[cfg(emlx_kernels)]
        if is_linear_algebra {
            if let Some(outputs) = cuda::linalg::apply(self, inputs, stream, crossed)? {
                return Ok(outputs);
            }
        }
        if is_linear_algebra || self.is_for_cpu_only() || gpu::lacks(self, inputs) {
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

    /// [`elementwise::by_kernel`] and [`folds::by_kernel`], of the classes that they are for.
    fn by_kernel(
        &self,
        inputs: &Inputs,
        to: Option<Dtype>,
        device: Device,
        s: &Stream,
    ) -> Result<Option<Array>> {
        match self.traits().class {
            Class::Unary | Class::Binary | Class::Select | Class::Cast => {
                elementwise::by_kernel(self, inputs, to, device, s)
            }
            Class::Reduction if device == Device::Gpu => folds::by_kernel(self, inputs, to, s),
            _ => Ok(None),
        }
    }

    /// By the family that its class names.
    fn apply_on(
        &self,
        inputs: &Inputs,
        device: Device,
        s: &Stream,
        crossed: &mut Crossed,
    ) -> Result<Outputs> {
        match self.by_kernel(inputs, None, device, s)? {
            Some(output) => Ok(one(output)),
            None => self.by_family(inputs, device, s, crossed),
        }
    }

    /// [`Op::apply_on`] without kernels for elements of our own.
    fn composed(&self, inputs: &Inputs, device: Device, s: &Stream) -> Result<Outputs> {
        self.by_family(inputs, device, s, &mut Crossed::default())
    }

    fn by_family(
        &self,
        inputs: &Inputs,
        device: Device,
        s: &Stream,
        crossed: &mut Crossed,
    ) -> Result<Outputs> {
        match self.traits().class {
            Class::Unary => {
                let op = self.unary().ok_or_else(|| no_case(self))?;
                unary::apply(op, inputs, device, s)
            }
            Class::Binary => {
                let op = self.binary().ok_or_else(|| no_case(self))?;
                binary::apply(op, inputs, s)
            }
            Class::Select => select::apply(self, inputs, s),
            Class::Cast => cast::apply(self, inputs, s),
            Class::Reduction => reduce::apply(self, inputs, device, s),
            Class::Scan => scan::apply(self, inputs, device, s),
            Class::Order => sort::apply(self, inputs, device, s),
            Class::Shape => shape::apply(self, inputs, device, s),
            Class::Slice => slicing::apply(self, inputs, device, s),
            Class::Index => indexing::apply(self, inputs, device, s),
            Class::Product => matmul::apply(self, inputs, device, s),
            Class::Window => window::apply(self, inputs, device, s),
            Class::Spectrum => fft::apply(self, inputs, device, s),
            Class::LinearAlgebra => linalg::apply(self, inputs, s),
            Class::Random => random::apply(self, inputs, s),
            Class::Creation => creation::apply(self, inputs, device, s),
            Class::Fused => fused::apply(self, inputs, device, s, crossed),
            Class::Quantized => quantized::apply(self, inputs, device, s, crossed),
        }
    }
}
