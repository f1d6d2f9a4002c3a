//! Segments that MLX compiles into fewer kernels (`mx.compile`).

use super::{Given, Segment};
use crate::base::{Device, Error, Result};
use crate::mlx::{self, Compiled, Stream};
use crate::op::{Applied, Crossed};
use crate::program::build::outputs_of_device;
use crate::program::plan::Code;
use mlx_rs::Array;
use once_cell::sync::OnceCell;
use parking_lot::Mutex;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::ThreadId;

/// Queues whose compiled form is kept; MLX keeps one for each thread.
const MAX_THREADS: usize = 8;

/// Operations, and what MLX made of them on each queue's thread. So it runs on queues' threads alone.
#[derive(Debug)]
pub struct Fused {
    pub code: Arc<Code>,
    compiled: Mutex<Vec<(ThreadId, Arc<Compiled>)>>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("Compiled")
    }
}

impl Fused {
    pub fn new(code: Code) -> Fused {
        Fused {
            code: Arc::new(code),
            compiled: Mutex::new(Vec::new()),
        }
    }

    fn compiled(&self, device: Device, stream: &Stream) -> Result<Arc<Compiled>> {
        let thread = std::thread::current().id();
        let mut all = self.compiled.lock();
        if let Some((_, compiled)) = all.iter().find(|(owner, _)| *owner == thread) {
            return Ok(compiled.clone());
        }
        if device == Device::Cpu && !has_compiler() {
            return Err(Error::invalid(
                "fusing on the CPU takes the C++ compiler g++, which does not run here; install it, or make the program with \
                 fuse: false",
            ));
        }
        let (code, stream) = (self.code.clone(), stream.clone());
        let trace = move |inputs: &[Array]| {
            let placeholders = inputs.iter().map(mlx::share).collect::<Result<_>>()?;
            outputs_of_device(&code, placeholders, device, &stream)
        };
        let compiled = Arc::new(mlx::compile(Box::new(trace))?);
        if all.len() >= MAX_THREADS {
            all.remove(0);
        }
        all.push((thread, compiled.clone()));
        Ok(compiled)
    }
}

impl Segment for Fused {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn place(&self, _: usize) -> String {
        self.name().into()
    }

    fn operations(&self) -> usize {
        self.code.nodes.len()
    }

    /// The first time on each thread and for each set of shapes it is traced.
    fn build(&self, inputs: &Given, device: Device, stream: &Stream) -> Result<Applied> {
        device.enter(stream)?;
        let outputs = self.compiled(device, stream)?.call(&inputs.present())?;
        Ok(Applied {
            outputs: outputs.into(),
            crossed: Crossed::default(),
        })
    }
}

/// Whether the command that MLX compiles with runs. MLX asks the same once, and does without fusion where it does not.
fn has_compiler() -> bool {
    static HAS: OnceCell<bool> = OnceCell::new();
    *HAS.get_or_init(|| {
        let mut command = Command::new("g++");
        command.arg("--version");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::program::{Block, Instruction, Step};

    #[test]
    fn a_closure_goes_with_its_program() {
        mlx::init();
        let op = |op, input| Instruction::new(Step::Op(op), [Some(input)], 1, None);
        let block = Block::new(1, vec![op(Op::Abs, 0), op(Op::Square, 1)], vec![2]);
        let segment = Fused::new(Code::of(&block.expect("well-formed")));
        let inner = segment.code.clone();
        let stream = Device::Cpu.stream().expect("the CPU is there");
        let input = mlx::zeros(&[2], crate::base::Dtype::F32, stream).expect("zeros");
        let given = Given {
            arrays: &[Some(&input)],
            number: &|_| None,
        };
        for _ in 0..3 {
            segment.build(&given, Device::Cpu, stream).expect("built");
        }
        // This one, the segment's, and the closure's.
        assert_eq!(Arc::strong_count(&inner), 3);
        drop(segment);
        assert_eq!(Arc::strong_count(&inner), 1);
    }
}
