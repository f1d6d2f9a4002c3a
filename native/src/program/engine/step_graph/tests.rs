//! A saved model's loop, merged, and its step's kernels run on the CPU (test/cuda/emulate.hpp), against the loop run
//! node by node.

use super::lower::{Argument, Layout, StepKernels};
use super::{kernels_of, types_of};
use crate::base::{Device, Dtype};
use crate::mlx;
use crate::program::plan::{self, Code, Work};
use crate::program::{build, file};
use mlx_rs::Array;
use parking_lot::Mutex;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn computed(arrays: &[Array]) {
    let refs: Vec<&Array> = arrays.iter().collect();
    mlx::async_eval(&refs, &mlx::graph_lock()).expect("evaluates");
    let stream = Device::Cpu.stream().expect("a stream");
    stream.synchronize().expect("is computed");
}

/// What code gives.
fn run(code: &Code, inputs: &[Array]) -> Vec<Array> {
    let stream = Device::Cpu.stream().expect("a stream");
    let (outputs, _) =
        build::outputs(code, shared(inputs), Device::Cpu, stream, |_, _| {}).expect("builds");
    computed(&outputs);
    outputs
}

fn shared(arrays: &[Array]) -> Vec<Array> {
    let shared = arrays.iter().map(mlx::share);
    shared.collect::<Result<_, _>>().expect("shares")
}

/// A loop of a program and what it begins with.
struct Case {
    condition: Arc<Code>,
    body: Arc<Code>,
    state: usize,
    inputs: Vec<Array>,
}

fn case(name: &str, inputs: &[Array]) -> Case {
    let path = root().join("test/programs").join(name);
    let (body, constants) = file::parts(path.to_str().expect("UTF-8")).expect("loads");
    let given = shared(inputs).into_iter().chain(shared(&constants));
    let mut code = Code::of(&body);
    let is_loop = |work: &Work| matches!(work, Work::While { .. });
    let at = code.nodes.iter().position(|node| is_loop(&node.work));
    let node = code.nodes.remove(at.expect("a loop"));
    let Work::While {
        condition, body, ..
    } = node.work
    else {
        panic!("no loop");
    };
    // What stands before the loop gives what it begins with.
    code.nodes.truncate(node.at);
    code.outputs = node.inputs.iter().copied().flatten().collect();
    Case {
        condition,
        body,
        state: node.outputs.len(),
        inputs: run(&code, &given.collect::<Vec<_>>()),
    }
}

/// The state after the loop, and the steps, node by node.
fn by_nodes(case: &Case) -> (Vec<Array>, usize) {
    let mut inputs: Vec<Array> = case
        .inputs
        .iter()
        .map(|array| mlx::share(array).expect("shares"))
        .collect();
    for steps in 0.. {
        let goes_on = run(&case.condition, &inputs);
        // SAFETY: computed above.
        if unsafe { mlx::bytes(&goes_on[0]) } == Some(&[0][..]) {
            inputs.truncate(case.state);
            return (inputs, steps);
        }
        let state = run(&case.body, &inputs);
        inputs.splice(..case.state, state);
    }
    unreachable!()
}

/// The kernels as one function of C++: a step.
fn source(plan: &StepKernels) -> String {
    let mut text = String::from(
        "#include \"emulate.hpp\"\n#define __global__\n#define __launch_bounds__(n)\n",
    );
    for (i, kernel) in plan.kernels.iter().enumerate() {
        let own = kernel.text.replace("extern \"C\" ", "");
        let _ = writeln!(text, "namespace k{i} {{\n{own}}}");
    }
    text.push_str("template <class T> struct Any { T at; template <class P> operator P*() const { return (P*)at; } };\n");
    text.push_str("extern \"C\" void step(char* arena, char** in, unsigned int* told) {\n");
    for (i, kernel) in plan.kernels.iter().enumerate() {
        let arguments: Vec<String> = kernel
            .arguments
            .iter()
            .map(|argument| match argument {
                Argument::Arena(offset) => format!("Any<char*>{{arena + {offset}}}"),
                Argument::Input(input, offset) => format!("Any<char*>{{in[{input}] + {offset}}}"),
                Argument::Told => "told".into(),
            })
            .collect();
        let (blocks, threads) = kernel.launch;
        let _ = writeln!(
            text,
            "  emulate::launch({blocks}, {threads}, [&] {{ k{i}::{}({}); }});",
            kernel.name,
            arguments.join(", ")
        );
    }
    text.push_str("}\n");
    text
}

/// The state after so many steps, as bytes, and what the host is told.
fn emulated(plan: &StepKernels, case: &Case, steps: usize, name: &str) -> (Vec<Vec<u8>>, [u32; 2]) {
    let folder = std::env::temp_dir().join(format!("emlx-graph-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("step.cpp"), source(plan)).expect("is written");
    let library = folder.join("step.so");
    let status = Command::new(env!("EMLX_CXX"))
        .args(["-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-I"])
        .arg(root().join("test/cuda"))
        .arg(folder.join("step.cpp"))
        .arg("-o")
        .arg(&library)
        .status()
        .expect("the compiler runs");
    assert!(status.success(), "the kernels do not compile");
    type Function = unsafe extern "C" fn(arena: *mut u8, inputs: *const *const u8, told: *mut u32);
    let path = std::ffi::CString::new(library.to_str().expect("UTF-8")).expect("no NUL");
    // Libraries share what emulate.hpp keeps, so that one at a time runs.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    // SAFETY: the library was made above and has this function.
    let step: Function = unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "the kernels do not load");
        std::mem::transmute(libc::dlsym(handle, c"step".as_ptr()))
    };
    let mut memory = vec![0u128; plan.bytes / 16 + 16];
    let arena = memory.as_mut_ptr().cast::<u8>();
    // SAFETY: the inputs are computed, what is copied of them lies in rows, and the copies are in the arena's bounds.
    let inputs: Vec<*const u8> = case
        .inputs
        .iter()
        .map(|array| unsafe { mlx_sys::mlx_array_data_uint8(array.as_ptr()) })
        .collect();
    for (input, copy) in &plan.copies {
        unsafe {
            arena
                .add(copy.offset)
                .copy_from(inputs[*input], copy.bytes())
        };
    }
    let mut told = [0u32; 2];
    for _ in 0..steps {
        // SAFETY: as above.
        unsafe { step(arena, inputs.as_ptr(), told.as_mut_ptr()) };
    }
    let state = plan.copies.iter().filter(|(input, _)| *input < case.state);
    let state = state.map(|(_, copy)| {
        // SAFETY: in the arena's bounds.
        unsafe { std::slice::from_raw_parts(arena.add(copy.offset), copy.bytes()) }.to_vec()
    });
    let state = state.collect();
    let _ = std::fs::remove_dir_all(&folder);
    (state, told)
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|four| f32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
        .collect()
}

#[test]
fn generation_is_as_node_by_node() {
    is_as_node_by_node("qwen3_generation.emlx");
}

#[test]
fn quantized_generation_is_as_node_by_node() {
    is_as_node_by_node("qwen3_quantized_generation.emlx");
}

fn is_as_node_by_node(name: &str) {
    let numbers = |numbers: [i32; 7]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
        mlx::from_bytes(&bytes, &[1, 7], Dtype::S32).expect("an array")
    };
    let case = case(name, &[numbers([1; 7]), numbers([5, 9, 33, 64, 2, 17, 90])]);
    let layouts: Vec<Layout> = case.inputs.iter().map(Layout::of).collect();
    let types = types_of(&case.body, &layouts).expect("has types");
    let body = plan::merged(&case.body, types);
    let plan = kernels_of(&case.condition, &body, case.state, &layouts)
        .expect("has types")
        .expect("has kernels");
    let (want, steps) = by_nodes(&case);
    assert!(steps > 3, "{steps} steps");
    // Two more than there are change nothing.
    for more in [2] {
        let (have, told) = emulated(&plan, &case, steps + more, name);
        assert_eq!(told, [(steps + more) as u32, 1]);
        for (i, (have, want)) in have.iter().zip(&want).enumerate() {
            // SAFETY: computed.
            let bytes = unsafe { mlx::bytes(want) }.expect("in rows");
            match mlx::dtype(want) {
                Dtype::F32 => {
                    for (a, b) in floats(have).iter().zip(floats(bytes)) {
                        assert!(
                            (a - b).abs() <= 1e-4 * b.abs().max(1.0),
                            "state {i}: {a}, {b}"
                        );
                    }
                }
                _ => assert_eq!(have, bytes, "state {i}"),
            }
        }
    }
}
