//! An operation on small arrays, written down once and repeated: the kernels that it is computed by on the spot, with
//! the memory that they read and write. A repetition copies the elements in, runs the kernels and copies the results
//! out. It builds no arrays, checks nothing and takes no lock.

use super::build;
use crate::base::{Device, Dtype, Result};
use crate::handle::small::{Layout, Small};
use crate::mlx::{self, Elements, Quiet, Recorded, Stream, Tape};
use crate::op::Op;
use mlx_rs::Array;
use smallvec::SmallVec;

/// An operation of certain layouts. Its memory is its own, so one thread repeats it at a time.
pub struct Repeated {
    /// Where the kernels read the inputs that are not nil.
    inputs: SmallVec<[*mut u8; 4]>,
    kernels: Vec<Recorded>,
    outputs: SmallVec<[(&'static Layout, Elements); 1]>,
    /// What has the memory.
    held: Held,
}

/// Arrays that are given up as all nodes are.
struct Held(Vec<Array>);

impl Drop for Held {
    fn drop(&mut self) {
        mlx::release_all(std::mem::take(&mut self.0).into());
    }
}

impl Repeated {
    /// None where not all of it is computed on the spot.
    pub fn record(
        op: &Op,
        to: Option<Dtype>,
        inputs: &[Option<&Small>],
        stream: &Stream,
    ) -> Result<Option<Repeated>> {
        if op.can_fail_late() {
            return Ok(None);
        }
        let mut held = Held(Vec::new());
        for input in inputs.iter().flatten() {
            held.0.push(input.to_mlx()?);
        }
        let given = held.0.len();
        let tape = Tape::of_call();
        let recording = stream.recording(&tape);
        let applied = {
            let mut copies = held.0.iter();
            let arrays = inputs.iter().map(|input| input.and_then(|_| copies.next()));
            let arrays: SmallVec<[Option<&Array>; 4]> = arrays.collect();
            match to {
                None => build::build(op, &arrays, Device::Cpu, &recording),
                Some(to) => build::build_and_cast(op, to, &arrays, Device::Cpu, &recording),
            }?
        };
        held.0.extend(applied.outputs);
        let quiet = Quiet::private();
        if !applied.crossed.is_empty() {
            return Ok(None);
        }
        let (inputs, outputs) = held.0.split_at(given);
        let inputs = inputs.iter().map(|array| {
            let elements = mlx::elements(array, &quiet)?;
            Some(elements.data.cast_mut())
        });
        let outputs = outputs.iter().map(|array| {
            let layout = Layout::of(array.shape(), mlx::dtype(array))?;
            Some((layout, mlx::elements(array, &quiet)?))
        });
        let places = inputs
            .collect::<Option<_>>()
            .zip(outputs.collect::<Option<_>>());
        Ok(places.map(|(inputs, outputs)| Repeated {
            inputs,
            outputs,
            kernels: tape.take(),
            held,
        }))
    }

    /// Bytes of its arrays.
    pub fn nbytes(&self) -> usize {
        let own: usize = self.held.0.iter().map(Array::nbytes).sum();
        own + self.kernels.iter().map(Recorded::nbytes).sum::<usize>()
    }

    /// The results for inputs of the layouts that it was recorded with.
    pub fn run(&mut self, inputs: &[Option<&Small>]) -> SmallVec<[Small; 1]> {
        let pairs = self.inputs.iter().zip(inputs.iter().flatten());
        // SAFETY: the memory is held, is this operation's alone, and has the sizes of the layouts.
        unsafe {
            for (place, input) in pairs {
                let bytes = input.bytes();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), *place, bytes.len());
            }
            self.kernels.iter().for_each(|kernel| kernel.run());
            let results = self.outputs.iter();
            results
                .map(|(layout, elements)| Small::gather(layout, elements))
                .collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(shape: &[i32], numbers: &[f32]) -> Small {
        let layout = Layout::of(shape, Dtype::F32).expect("a small array of the CPU");
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        Small::new(layout, &bytes)
    }

    fn recorded(op: &Op, input: &Small) -> Option<Repeated> {
        let stream = Device::Cpu.stream().expect("the CPU has one");
        Repeated::record(op, None, &[Some(input)], stream).expect("the call is right")
    }

    #[test]
    fn a_view_and_a_kernel_are_repeated_on_other_elements() {
        if !mlx::has_tasks() {
            return;
        }
        let (first, second) = (
            small(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            small(&[2, 3], &[7.5, 8.0, 9.0, -1.0, 0.0, f32::NAN]),
        );
        let op = Op::Transpose { axes: vec![1, 0] };
        let mut transposed = recorded(&op, &first).expect("a view is recorded");
        for _ in 0..2 {
            let results = transposed.run(&[Some(&second)]);
            let expected = small(&[3, 2], &[7.5, -1.0, 8.0, 0.0, 9.0, f32::NAN]);
            assert_eq!(results[0].bytes(), expected.bytes());
            assert!(std::ptr::eq(results[0].layout, expected.layout));
        }
        let op = Op::Astype { dtype: Dtype::S32 };
        let mut cast = recorded(&op, &first).expect("a kernel is recorded");
        let results = cast.run(&[Some(&small(&[2, 3], &[7.0, 8.0, 9.0, -1.0, 0.0, 2.0]))]);
        let expected: Vec<u8> = [7, 8, 9, -1, 0, 2]
            .iter()
            .flat_map(|n: &i32| n.to_ne_bytes())
            .collect();
        assert_eq!(results[0].bytes(), expected);
    }

    #[test]
    fn an_operation_without_kernel_is_not_recorded() {
        let op = Op::Roll {
            shift: vec![1],
            axes: vec![0],
        };
        if mlx::has_tasks() {
            assert!(recorded(&op, &small(&[2], &[1.0, 2.0])).is_none());
        }
    }

    #[test]
    fn large_results_are_not_recorded() {
        let op = Op::BroadcastTo {
            shape: vec![1024, 1],
        };
        if mlx::has_tasks() {
            assert!(recorded(&op, &small(&[1], &[1.0])).is_none());
        }
    }
}
