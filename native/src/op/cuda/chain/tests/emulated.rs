//! Arrays and chains of the tests, and kernels as a library for the CPU.

use super::super::layout::{Kind, Launch, Structure, THREADS};
use super::super::text;
use crate::cpu::{Link, Links, Type};
use emlx_cpu::{ElementType, Kernel, View};
use half::{bf16, f16};
use std::path::Path;
use std::process::Command;

/// Whole numbers from a seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// A number's bytes in a type; whole numbers wrap around.
pub fn bytes(of: Type, whole: i128, float: f64) -> Vec<u8> {
    match of {
        Type::Bool => vec![u8::from(whole & 1 == 1)],
        Type::F16 => f16::from_f64(float).to_ne_bytes().to_vec(),
        Type::Bf16 => bf16::from_f64(float).to_ne_bytes().to_vec(),
        Type::F32 => (float as f32).to_ne_bytes().to_vec(),
        _ => whole.to_le_bytes()[..of.size()].to_vec(),
    }
}

/// Numbers at which functions, casts and divisions change, and numbers between them.
pub fn numbers(of: Type, count: usize, is_second: bool, dice: &mut Dice) -> Vec<u8> {
    let tiny = f64::from(f32::MIN_POSITIVE);
    let floats = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        3.0,
        -3.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        0.49999997,
        127.5,
        255.5,
        -128.5,
        300.7,
        -70_000.4,
        65_504.0,
        3e9,
        -2_147_483_648.0,
        2_147_483_648.0,
        4_294_967_296.0,
        9_223_372_036_854_775_808.0,
        -9_223_372_036_854_775_808.0,
        1.5e19,
        4e19,
        -1.2e19,
        1e30,
        0.1,
        -0.7,
        tiny,
        -tiny / 8.0,
        88.5,
        -104.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ];
    let bits = 8 * of.size() as u32;
    let high = 1i128 << (bits - 1);
    let wholes = [
        0,
        1,
        2,
        3,
        5,
        7,
        8,
        31,
        32,
        63,
        64,
        100,
        -1,
        -2,
        -7,
        high,
        high - 1,
        -high,
        1 - high,
    ];
    let mut all = Vec::new();
    let specials = if of.is_float() {
        floats.len()
    } else {
        wholes.len()
    };
    for i in 0..count {
        // All pairs of special numbers first.
        let place = if is_second {
            i / specials
        } else {
            i % specials
        };
        let (whole, float) = match i < specials * specials {
            true => (wholes[place % wholes.len()], floats[place % floats.len()]),
            false => {
                let whole = (dice.next() as i64 as i128) >> dice.below(64);
                let float = (dice.below(2_000_001) as f64 - 1e6) / 997.0;
                let scale = [1.0, 1e-3, 1e-6][dice.below(3) as usize];
                (whole, float * scale)
            }
        };
        all.extend(bytes(of, whole, float));
    }
    all
}

/// An array in memory of its own.
pub struct Held {
    pub memory: Vec<u8>,
    /// Of the first element, in bytes.
    pub offset: usize,
    pub shape: Vec<i32>,
    pub strides: Vec<i64>,
}

impl Held {
    pub fn rows(memory: Vec<u8>, shape: &[i32]) -> Held {
        Held {
            memory,
            offset: 0,
            shape: shape.to_vec(),
            strides: strides(shape),
        }
    }

    pub fn view(&self) -> View {
        // SAFETY: what the test lays out is within the memory, which lives as long.
        unsafe {
            let data = self.memory.as_ptr().add(self.offset);
            View::of(data, &self.shape, &self.strides)
        }
    }
}

pub fn strides(shape: &[i32]) -> Vec<i64> {
    let mut step = 1;
    let steps = shape.iter().rev().map(|size| {
        step *= i64::from(*size);
        step / i64::from((*size).max(1))
    });
    let mut steps: Vec<i64> = steps.collect();
    steps.reverse();
    steps
}

pub struct Case {
    pub links: Links,
    pub is_joined: bool,
    pub inputs: Vec<Held>,
    pub shape: Vec<i32>,
    pub strides: Vec<i64>,
    /// Elements up to which indices have 32 bits.
    pub most: usize,
}

impl Case {
    pub fn size(&self) -> usize {
        self.shape.iter().map(|size| *size as usize).product()
    }

    pub fn launch(&self) -> Launch {
        let views: Vec<View> = self.inputs.iter().map(Held::view).collect();
        // SAFETY: only its shape is looked at.
        let out = unsafe { View::of(std::ptr::null::<u8>(), &self.shape, &self.strides) };
        // Some go past the cache.
        let is_once = (self.links.len() + self.inputs.len()).is_multiple_of(2);
        let cached = if is_once { 0 } else { usize::MAX };
        let limits = (self.most, cached);
        Launch::within(limits, &self.links, self.is_joined, &views, &out).expect("few arguments")
    }

    /// Each result by the CPU's kernels, as it lies.
    pub fn expected(&self) -> Vec<Vec<u8>> {
        let views: Vec<View> = self.inputs.iter().map(Held::view).collect();
        let results = text::results(&self.links);
        results
            .map(|(i, link)| {
                let alone = self.links[..=i]
                    .iter()
                    .map(|link| Link::new(link.action, link.from, link.to, link.operands()));
                let mut memory = vec![0u8; self.size() * link.to.size()];
                // SAFETY: as large as the shape says.
                unsafe {
                    let out = View::of(memory.as_mut_ptr(), &self.shape, &self.strides);
                    Kernel::Chain(alone.collect()).run(ElementType::F32, &views, &out);
                }
                memory
            })
            .collect()
    }
}

/// A library of kernels, compiled for the CPU.
pub struct Library(*mut libc::c_void);

/// What stands before kernels and the functions that run them.
const HEAD: &str = "#include \"emulate.hpp\"\n#define __global__\n#define __launch_bounds__(n)\n";
const ARRAYS: &str =
    "struct Arrays { char* at; template <class P> operator P*() const { return (P*)at; } };\n";

/// The function that runs kernel number `i` of so many arrays and numbers, by `emulate::each` or `emulate::launch`.
pub fn runner(i: usize, arrays: usize, numbers: usize, by: &str) -> String {
    let arrays = (0..arrays).map(|i| format!("Arrays{{arrays[{i}]}}"));
    let numbers = (0..numbers).map(|i| format!("numbers[{i}]"));
    let arguments: Vec<String> = arrays.chain(numbers).collect();
    format!(
        "extern \"C\" __attribute__((visibility(\"default\")))
void run{i}(char** arrays, const int* numbers, int blocks) {{
  emulate::{by}(blocks, {THREADS}, [&] {{ k{i}({}); }});\n}}\n",
        arguments.join(", ")
    )
}

impl Library {
    /// Kernels of chains. None where there is no compiler.
    pub fn new(structures: &[Structure], name: &str) -> Option<Library> {
        let mut source = String::new();
        for (i, structure) in structures.iter().enumerate() {
            let kernel = text::kernel(structure).expect("has a text");
            source.push_str(&kernel.replace(text::NAME, &format!("k{i}")));
            let results = match structure.is_joined {
                true => 1,
                false => text::results(&structure.links).count(),
            };
            let arrays = structure.kinds.len() + results;
            let count = 1 + match structure.rank {
                0 => 0,
                rank => {
                    let kinds = structure.kinds.iter();
                    rank * (1 + kinds.filter(|kind| **kind == Kind::Strided).count())
                }
            };
            let count = if structure.is_wide { 2 * count } else { count };
            source.push_str(&runner(i, arrays, count, "each"));
        }
        Library::of_text(&source, name)
    }

    /// Of kernels and runners.
    pub fn of_text(source: &str, name: &str) -> Option<Library> {
        let source = [HEAD, text::PRELUDE, ARRAYS, source].concat();
        let own = format!("emlx-chain-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(own);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("chain.cpp"), source).expect("is written");
        let library = folder.join("chain.so");
        // What emulate.hpp keeps is each library's own, so that several run side by side.
        let status = Command::new(env!("EMLX_CXX"))
            .args([
                "-std=c++20",
                "-O1",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-w",
            ])
            .args(["-shared", "-fPIC", "-fvisibility=hidden", "-I"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../test/cuda"))
            .arg(folder.join("chain.cpp"))
            .arg("-o")
            .arg(&library)
            .status();
        let Ok(status) = status else {
            println!("skipped: {} does not run: {status:?}", env!("EMLX_CXX"));
            return None;
        };
        assert!(status.success(), "the kernels do not compile");
        let path = library.to_str().expect("UTF-8").to_owned();
        let path = std::ffi::CString::new(path).expect("no NUL");
        // SAFETY: the library was made above.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "the kernels do not load");
        let _ = std::fs::remove_dir_all(&folder);
        Some(Library(handle))
    }

    /// Runs kernel number `i` over inputs and results.
    pub fn call(
        &self,
        i: usize,
        inputs: &[Held],
        results: &mut [Vec<u8>],
        numbers: &[i32],
        blocks: usize,
    ) {
        type Run = unsafe extern "C" fn(arrays: *const *const u8, numbers: *const i32, blocks: i32);
        let name = std::ffi::CString::new(format!("run{i}")).expect("no NUL");
        let mut arrays: Vec<*const u8> = Vec::new();
        for input in inputs {
            // SAFETY: within the memory.
            arrays.push(unsafe { input.memory.as_ptr().add(input.offset) });
        }
        arrays.extend(
            results
                .iter_mut()
                .map(|result| result.as_mut_ptr().cast_const()),
        );
        // SAFETY: the library has the function, for as many arrays and numbers.
        unsafe {
            let run: Run = std::mem::transmute(libc::dlsym(self.0, name.as_ptr()));
            run(arrays.as_ptr(), numbers.as_ptr(), blocks as i32);
        }
    }

    /// Each result of a launch of kernel number `i`.
    pub fn run(&self, i: usize, case: &Case, launch: &Launch) -> Vec<Vec<u8>> {
        let results = text::results(&case.links);
        let mut sizes: Vec<usize> = results
            .map(|(_, link)| case.size() * link.to.size())
            .collect();
        let count = sizes.len();
        if case.is_joined {
            sizes = vec![sizes.iter().sum()];
        }
        let mut results: Vec<Vec<u8>> = sizes.iter().map(|size| vec![0xab; *size]).collect();
        self.call(
            i,
            &case.inputs,
            &mut results,
            &launch.arguments,
            launch.blocks,
        );
        match case.is_joined {
            true => {
                let parts = results[0].chunks_exact(sizes[0] / count);
                parts.map(<[u8]>::to_vec).collect()
            }
            false => results,
        }
    }
}
