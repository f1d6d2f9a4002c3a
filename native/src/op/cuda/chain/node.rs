//! Generated kernels as nodes of MLX's graph, and the kernels that a process has.

use super::layout::{Launch, Structure, THREADS};
use super::{gather, links, reduction, text};
use crate::base::{Device, Error, Result};
use crate::cpu::{self, Action, Function, Link, Links, Operand, Type};
use crate::mlx::cuda::compiler;
use crate::mlx::cuda::generated::{self, Generating, Image, Launched, Node};
use crate::mlx::{self, Stream, Vector};
use emlx_cpu::View;
use mlx_rs::Array;
use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ffi::CString;
use std::hash::Hash;

/// How kernels are compiled. A product and a sum stay two roundings, as on the CPU.
pub const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

pub fn unavailable() -> Option<&'static str> {
    static REASON: OnceCell<Option<String>> = OnceCell::new();
    let find = || {
        if !cpu::are_there() {
            return Some("EMLX_KERNELS is mlx".into());
        }
        if !Device::Gpu.is_available() || mlx::cuda_driver().is_none() {
            return Some("generated kernels are CUDA's".into());
        }
        // Whether there is a compiler, and it knows the device.
        let function = Action::Unary(Function::Negative);
        let link = Link::new(function, Type::F32, Type::F32, &[Operand::Input(0)]);
        let number = [0f32];
        // SAFETY: nothing reads the view's number.
        let view = || unsafe { View::of(number.as_ptr(), &[], &[]) };
        let launch = Launch::new(&Links::from_iter([link]), false, &[view()], &view())?;
        kernel(&launch.structure).err()
    };
    REASON.get_or_init(find).as_deref()
}

/// The kernels of a kind that a process has, by their structures; or why one is not there.
type Known<T> = Mutex<HashMap<T, std::result::Result<&'static Image, String>>>;

/// A structure's kernel, or why there is none: compiled once in a process, and once for all where it is kept.
fn kernel(structure: &Structure) -> std::result::Result<&'static Image, String> {
    static KNOWN: Lazy<Known<Structure>> = Lazy::new(Mutex::default);
    known(&KNOWN, structure, source)
}

/// The same of a reduction.
pub fn reduction(
    structure: &reduction::layout::Structure,
) -> std::result::Result<&'static Image, String> {
    static KNOWN: Lazy<Known<reduction::layout::Structure>> = Lazy::new(Mutex::default);
    known(&KNOWN, structure, reduction::node::source)
}

/// The same of what takes elements by indices.
pub fn gather(
    structure: &gather::kernel::Structure,
) -> std::result::Result<&'static Image, String> {
    static KNOWN: Lazy<Known<gather::kernel::Structure>> = Lazy::new(Mutex::default);
    known(&KNOWN, structure, gather::kernel::source)
}

fn known<T: Clone + Eq + Hash>(
    all: &Known<T>,
    structure: &T,
    source: impl Fn(&T) -> Option<(String, String)>,
) -> std::result::Result<&'static Image, String> {
    if let Some(known) = all.lock().get(structure) {
        return known.clone();
    }
    let made = image(source(structure)).map_err(|error| error.to_string());
    if let Err(reason) = &made {
        // Once for each kernel: the answer is kept.
        eprintln!(
            "emlx: operations run one by one, since a generated kernel is not there: {reason}"
        );
    }
    let made = made.map(|image| &*Box::leak(Box::new(image)));
    all.lock().entry(structure.clone()).or_insert(made).clone()
}

fn image(source: Option<(String, String)>) -> Result<Image> {
    let (name, source) =
        source.ok_or_else(|| Error::invalid("a link has no text in CUDA's C++"))?;
    let compile = || compiler::image(&name, &source, &OPTIONS);
    // Libraries are loaded on the way.
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(compile))
        .map_err(|_| Error::invalid("CUDA's compiler panicked"))??;
    let name = CString::new(name).map_err(|_| Error::invalid("a kernel's name has a NUL"))?;
    Ok(Image { name, code })
}

/// A kernel's name and its text.
pub fn source(structure: &Structure) -> Option<(String, String)> {
    named("emlx_chain", "", text::kernel(structure)?)
}

/// A kernel's name, and its text behind what stands before all and what stands before those of its kind. MLX keeps
/// kernels by their names, so that another text has another name.
pub fn named(kind: &str, prelude: &str, kernel: String) -> Option<(String, String)> {
    let prelude = [text::PRELUDE, prelude].concat();
    let digest = blake3::hash(format!("{prelude}{kernel}").as_bytes());
    let name = format!("{kind}_{}", &digest.to_hex()[..32]);
    let kernel = kernel.replace(text::NAME, &name);
    Some((name, prelude + &kernel))
}

/// A node's work.
struct Chain {
    links: Links,
    is_joined: bool,
    /// Of one result.
    shape: SmallVec<[i32; 6]>,
    stream: Stream,
}

impl Generating for Chain {
    fn launch(&self, inputs: &[View], out: &View, found: &mut dyn FnMut(Launched)) {
        let strides = rows(&self.shape);
        // SAFETY: shape and strides are there, and there is nothing to be read.
        let one = unsafe { View::of(std::ptr::null::<u8>(), &self.shape, &strides) };
        let out = if self.is_joined { &one } else { out };
        let Some(launch) = Launch::new(&self.links, self.is_joined, inputs, out) else {
            return;
        };
        if let Ok(image) = kernel(&launch.structure) {
            found(Launched {
                image,
                arguments: &launch.arguments,
                blocks: launch.blocks,
                threads: THREADS,
            });
        }
    }

    fn build(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        Device::Gpu.enter(&self.stream)?;
        let s = &self.stream;
        let results = links::composed(&self.links, inputs, &self.shape, Device::Gpu, s)?;
        match self.is_joined {
            true => Ok(vec![mlx::concatenate(&Vector::new(&results), 0, s)?]),
            false => Ok(results),
        }
    }
}

/// The strides of an array in rows.
pub fn rows(shape: &[i32]) -> SmallVec<[i64; 6]> {
    let after = |axis: usize| shape[axis + 1..].iter().map(|size| i64::from(*size));
    (0..shape.len()).map(|axis| after(axis).product()).collect()
}

pub fn results(
    links: Links,
    is_joined: bool,
    inputs: &[&Array],
    shape: &[i32],
    s: &Stream,
) -> Result<SmallVec<[Array; 2]>> {
    if let Some(input) = inputs
        .iter()
        .find(|input| !cpu::goes_into(input.shape(), shape))
    {
        return Err(Error::invalid(format!(
            "a chain of shape {shape:?} is given an array of shape {:?}",
            input.shape()
        )));
    }
    let dtypes = text::results(&links).map(|(_, link)| cpu::dtype_of(link.to));
    let mut dtypes: SmallVec<[_; 2]> = dtypes.collect();
    let mut own: SmallVec<[i32; 6]> = shape.into();
    if is_joined {
        let first = own.first_mut();
        let first = first.ok_or_else(|| Error::invalid("scalars are not joined"))?;
        *first *= dtypes.len() as i32;
        dtypes.truncate(1);
    }
    let chain = Chain {
        links,
        is_joined,
        shape: shape.into(),
        stream: s.clone(),
    };
    let outputs: SmallVec<[_; 2]> = dtypes.iter().map(|dtype| (&own[..], *dtype)).collect();
    let node = Node {
        generating: Box::new(chain),
        keeps_layout: true,
    };
    generated::nodes(node, inputs, &outputs, s)
}
