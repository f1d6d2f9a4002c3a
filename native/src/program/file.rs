//! Saved programs: one header line (format, version, digest of the body), then the body as JSON; small constants in it,
//! large ones by name in a safetensors file beside it. `guides/programs.md` has the format field by field. Called by
//! the border and, to save, by queues.
//!
//! A file is data of whoever wrote it. Reading one creates no atom and runs no code, every number in it is checked
//! before anything follows from it, and what comes out is checked as a program made from terms is.

use super::types::Types;
use super::{Block, Input, Inputs, Instruction, Options, Program, Step, MAX_DEPTH};
use crate::base::{Device, Dtype, Error, Reason, Result, Signature};
use crate::handle::array::{byte_size, Handle};
use crate::handle::safetensors::{self as file, failed};
use crate::mlx::{self, Stream};
use crate::op::Op;
use base64::engine::general_purpose::STANDARD as BASE64;
use base64::Engine;
use mlx_rs::Array;
use rustler::ResourceArc;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

const FORMAT: &str = "emlx-program";
const VERSION: u64 = 1;
/// Bytes up to which a constant stands in the program itself.
const MAX_INLINE: usize = 1024;
/// No program's description is longer; constants are apart.
const MAX_FILE: u64 = 1 << 30;
/// What is shown of a parser's words, which may list every operation there is.
const MAX_WORDS: usize = 200;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    constants: Vec<Constant>,
    /// The safetensors file beside this one, where a constant is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<String>,
    /// Whether segments are to be compiled.
    fuse: bool,
    /// Whether operations on few rows are to be merged; without it the device decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    merge: Option<bool>,
    /// A block stands after those inside it; the last one is the program.
    blocks: Vec<BlockForm>,
}

/// An input or an output; of an unchecked input, and of an output that follows from one, shape and type are not known.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    name: Option<String>,
    shape: Option<Vec<i32>>,
    dtype: Option<Dtype>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Constant {
    name: String,
    shape: Vec<i32>,
    dtype: Dtype,
    /// Either the bytes in base64, or the digest of those in the safetensors file.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlockForm {
    inputs: usize,
    instructions: Vec<InstructionForm>,
    outputs: Vec<u32>,
}

/// Exactly one of `op`, `if` and `while`.
#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct InstructionForm {
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<Op>,
    #[serde(rename = "if", skip_serializing_if = "Option::is_none")]
    branch: Option<BranchForm>,
    #[serde(rename = "while", skip_serializing_if = "Option::is_none")]
    repeat: Option<LoopForm>,
    inputs: Vec<Option<u32>>,
    outputs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
}

/// Blocks by their place in `blocks`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BranchForm {
    then: usize,
    #[serde(rename = "else")]
    otherwise: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoopForm {
    condition: usize,
    body: usize,
}

// ---- saving ----

/// Writes a program, and its large constants beside it. `rows` gives a constant's values computed, in row-major order.
pub fn save(
    path: &str,
    program: &Program,
    names: &[String],
    device: Device,
    stream: &Stream,
    rows: impl Fn(&Handle) -> Result<Array>,
) -> Result<()> {
    if !program.calls.is_empty() {
        return Err(Error::invalid(format!(
            "the program calls functions of the calling process ({:?}), which no file can hold; save a program without :call \
             (hooks and runtime_call make them)",
            program.calls
        )));
    }
    if names.len() != program.constants.len() {
        return Err(Error::invalid(format!(
            "{} names for {} constants",
            names.len(),
            program.constants.len()
        )));
    }
    super::program::check_names("constants", names)?;
    let outputs = Types::of_outputs(program, device, stream)?;
    let tensors_path = Path::new(path).with_extension("safetensors");
    let tensors_name = tensors_path
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|_| tensors_path != Path::new(path))
        .ok_or_else(|| failed(path, "is no name for a program; use one such as model.emlx"))?;

    let mut constants = Vec::with_capacity(names.len());
    let mut large: Vec<(String, Array)> = Vec::new();
    for (name, constant) in names.iter().zip(&program.constants) {
        let rows = rows(constant)?;
        let (shape, dtype) = constant.signature();
        let mut form = Constant {
            name: name.clone(),
            shape,
            dtype,
            data: None,
            blake3: None,
        };
        let is_large = {
            let _lock = mlx::graph_lock();
            // SAFETY: computed, and alive beyond the slice.
            let bytes = unsafe { mlx::bytes(&rows) }
                .ok_or_else(|| Error::invalid("a constant is not laid out in rows"))?;
            let is_large = bytes.len() > MAX_INLINE;
            if is_large {
                form.blake3 = Some(digest(bytes));
            } else {
                form.data = Some(BASE64.encode(bytes));
            }
            is_large
        };
        if is_large {
            large.push((name.clone(), rows));
        }
        constants.push(form);
    }

    let mut blocks = Vec::new();
    flatten(&program.body, &mut blocks)?;
    let body = Body {
        inputs: match &program.inputs {
            Inputs::Any(count) => (0..*count).map(|_| port(None, None)).collect(),
            Inputs::Named(inputs) => inputs
                .iter()
                .map(|input| {
                    let signature = (input.shape.clone(), input.dtype);
                    port(Some(&input.name), Some(signature))
                })
                .collect(),
        },
        outputs: outputs
            .into_iter()
            .enumerate()
            .map(|(i, signature)| {
                let names = program.output_names.as_ref();
                port(names.map(|names| &names[i]), signature)
            })
            .collect(),
        constants,
        tensors: (!large.is_empty()).then(|| tensors_name.to_string()),
        fuse: program.options.fuse,
        merge: program.options.merge,
        blocks,
    };
    let body = serde_json::to_vec(&body).map_err(|error| failed(path, error))?;
    if !large.is_empty() {
        file::save(&tensors_path.to_string_lossy(), &large)?;
    }
    file::write_whole(path, |unfinished| {
        let header = format!("{FORMAT} {VERSION} {}\n", digest(&body));
        std::fs::File::create(unfinished)
            .and_then(|mut file| {
                file.write_all(header.as_bytes())?;
                file.write_all(&body)
            })
            .map_err(|error| failed(path, error))
    })
}

fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn port(name: Option<&String>, signature: Option<Signature>) -> Port {
    let (shape, dtype) = signature.unzip();
    Port {
        name: name.cloned(),
        shape,
        dtype,
    }
}

/// Puts a block behind those inside it; gives its place.
fn flatten(block: &Block, blocks: &mut Vec<BlockForm>) -> Result<usize> {
    let mut instructions = Vec::with_capacity(block.instructions.len());
    for instruction in &block.instructions {
        let mut form = InstructionForm {
            inputs: instruction.inputs.to_vec(),
            outputs: instruction.outputs,
            label: instruction.label.clone(),
            ..InstructionForm::default()
        };
        match &instruction.step {
            Step::Op(op) => form.op = Some(op.clone()),
            Step::If { then, otherwise } => {
                form.branch = Some(BranchForm {
                    then: flatten(then, blocks)?,
                    otherwise: flatten(otherwise, blocks)?,
                });
            }
            Step::While { condition, body } => {
                form.repeat = Some(LoopForm {
                    condition: flatten(condition, blocks)?,
                    body: flatten(body, blocks)?,
                });
            }
            Step::Call { .. } => {
                let message = format!("{} cannot be saved", instruction.step.name());
                return Err(Error::invalid(message));
            }
        }
        instructions.push(form);
    }
    blocks.push(BlockForm {
        inputs: block.inputs,
        instructions,
        outputs: block.outputs.clone(),
    });
    Ok(blocks.len() - 1)
}

// ---- loading ----

/// A saved program. Whatever is wrong with the file is an error of kind `:file`.
pub fn load(path: &str, device: Device, stream: &Stream) -> Result<Program> {
    let text = read(path)?;
    let body = checked_body(path, &text)?;
    let in_file = |error: Error| match *error.reason {
        Reason::File { .. } => error,
        _ => failed(
            path,
            format!("does not hold a program that can run: {error}"),
        ),
    };
    let body: Body = serde_json::from_slice(body).map_err(|error| {
        let mut words = error.to_string();
        if let Some((end, _)) = words.char_indices().nth(MAX_WORDS) {
            words.replace_range(end.., "…");
        }
        failed(path, format!("does not hold a program: {words}"))
    })?;
    assemble(path, body, device, stream).map_err(in_file)
}

/// A saved program's instructions and constants, for tests without a VM.
#[cfg(test)]
pub fn parts(path: &str) -> Result<(Block, Vec<Array>)> {
    let text = read(path)?;
    let form: Body = serde_json::from_slice(checked_body(path, &text)?)
        .map_err(|error| failed(path, error.to_string()))?;
    let constants = constants(path, form.constants, form.tensors.as_deref())?;
    Ok((unflatten(form.blocks)?, constants.into_iter().collect()))
}

fn read(path: &str) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = file::open(path)?;
    let mut limited = file.take(MAX_FILE + 1);
    limited
        .read_to_end(&mut text)
        .map_err(|error| failed(path, error))?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(path, format!("is longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// What comes after the header, once the header is found to be right.
fn checked_body<'a>(path: &str, text: &'a [u8]) -> Result<&'a [u8]> {
    let foreign = || {
        let expected = format!("{FORMAT} {VERSION}");
        failed(
            path,
            format!("is not a saved program; one begins with {expected:?}"),
        )
    };
    let cut = || {
        failed(
            path,
            "is cut short; copy it again, or save the program again",
        )
    };
    let start = format!("{FORMAT} ").into_bytes();
    if !text.starts_with(&start) {
        return Err(match !text.is_empty() && start.starts_with(text) {
            true => cut(),
            false => foreign(),
        });
    }
    // Three short words: a newline that comes late is not the header's.
    let Some(end) = text.iter().take(128).position(|byte| *byte == b'\n') else {
        return Err(if text.len() < 128 { cut() } else { foreign() });
    };
    let header = std::str::from_utf8(&text[..end]).map_err(|_| foreign())?;
    let (version, expected) = match header.split(' ').collect::<Vec<_>>()[..] {
        [_, version, digest] => (version, Some(digest)),
        [_, version, ..] => (version, None),
        _ => return Err(foreign()),
    };
    let version: u64 = version.parse().map_err(|_| foreign())?;
    if version > VERSION {
        return Err(failed(
            path,
            format!(
                "is of version {version} of the format, and this release reads {VERSION}; a newer release of EMLX reads it"
            ),
        ));
    }
    let (VERSION, Some(expected)) = (version, expected) else {
        return Err(foreign());
    };
    let body = &text[end + 1..];
    let found = digest(body);
    if expected != found {
        return Err(failed(
            path,
            format!(
                "is damaged or cut short: its digest is {found}, the header says {expected:?}; copy it again, or save the \
                 program again"
            ),
        ));
    }
    Ok(body)
}

fn assemble(path: &str, form: Body, device: Device, stream: &Stream) -> Result<Program> {
    let inputs = inputs(&form.inputs)?;
    let declared = form
        .outputs
        .iter()
        .map(|port| (port.shape.clone(), port.dtype));
    let declared: Vec<(Option<Vec<i32>>, Option<Dtype>)> = declared.collect();
    let names: Vec<Option<String>> = form.outputs.into_iter().map(|port| port.name).collect();
    let output_names: Option<Vec<String>> = names.iter().cloned().collect();
    if output_names.is_none() && names.iter().any(Option::is_some) {
        return Err(Error::invalid("some outputs have names and some have none"));
    }
    super::program::check_names(
        "constants",
        form.constants.iter().map(|constant| &constant.name),
    )?;
    // The instructions before the constants: they take no memory to speak of.
    let body = unflatten(form.blocks)?;
    let given = inputs.len() + form.constants.len();
    if body.inputs != given || body.outputs.len() != names.len() {
        return Err(Error::invalid(format!(
            "{given} inputs and constants and {} outputs are described, the last block has {} and {}",
            names.len(),
            body.inputs,
            body.outputs.len()
        )));
    }
    let constants = constants(path, form.constants, form.tensors.as_deref())?
        .into_iter()
        .map(|array| ResourceArc::new(Handle::ready(array, device, stream.clone(), Vec::new())))
        .collect();
    let program = Program::new(
        inputs,
        constants,
        body,
        output_names.filter(|names| !names.is_empty()),
        Options {
            fuse: form.fuse,
            merge: form.merge,
            ..Options::default()
        },
    )?;
    if let Some(types) = Types::of(&program, device, stream)? {
        for (i, (shape, dtype)) in types.outputs(&program.body).into_iter().enumerate() {
            let (said_shape, said_dtype) = &declared[i];
            let shape_fits = said_shape.as_ref().is_none_or(|said| *said == shape);
            if !shape_fits || said_dtype.is_some_and(|said| said != dtype) {
                return Err(Error::invalid(format!(
                    "output {i} is described otherwise than {}, which the instructions give",
                    super::shown(&(shape, dtype))
                )));
            }
        }
    }
    Ok(program)
}

fn inputs(ports: &[Port]) -> Result<Inputs> {
    if ports
        .iter()
        .all(|port| port.name.is_none() && port.shape.is_none() && port.dtype.is_none())
    {
        return Ok(Inputs::Any(ports.len()));
    }
    ports
        .iter()
        .enumerate()
        .map(|(i, port)| match (&port.name, &port.shape, port.dtype) {
            (Some(name), Some(shape), Some(dtype)) => {
                check_shape(shape)?;
                Ok(Input {
                    name: name.clone(),
                    shape: shape.clone(),
                    dtype,
                })
            }
            _ => Err(Error::invalid(format!(
                "input {i} lacks its name, shape or type, and another input has one"
            ))),
        })
        .collect::<Result<_>>()
        .map(Inputs::Named)
}

fn check_shape(shape: &[i32]) -> Result<()> {
    match shape.iter().find(|size| **size < 0) {
        Some(size) => Err(Error::invalid(format!("a shape has size {size}"))),
        None => Ok(()),
    }
}

fn unflatten(forms: Vec<BlockForm>) -> Result<Block> {
    // A block is taken by the one instruction that it stands in: nothing is shared, nothing goes in circles.
    let mut blocks: Vec<Option<(Arc<Block>, usize)>> = Vec::with_capacity(forms.len());
    for form in forms {
        let mut depth = 0;
        let mut instructions = Vec::with_capacity(form.instructions.len());
        for (i, instruction) in form.instructions.into_iter().enumerate() {
            let mut inside = |place: usize| {
                let taken = blocks.get_mut(place).and_then(Option::take);
                let (block, below) = taken.ok_or_else(|| {
                    let message =
                        format!("block {place} does not stand before it, or stands in two places");
                    Error::invalid(message).within(&format!("instruction {i}"))
                })?;
                depth = depth.max(below + 1);
                Ok::<_, Error>(block)
            };
            let step = match (instruction.op, instruction.branch, instruction.repeat) {
                (Some(op), None, None) => Step::Op(op),
                (None, Some(branch), None) => Step::If {
                    then: inside(branch.then)?,
                    otherwise: inside(branch.otherwise)?,
                },
                (None, None, Some(repeat)) => Step::While {
                    condition: inside(repeat.condition)?,
                    body: inside(repeat.body)?,
                },
                _ => {
                    return Err(Error::invalid("has to have one of op, if and while")
                        .within(&format!("instruction {i}")));
                }
            };
            let (inputs, outputs) = (instruction.inputs, instruction.outputs);
            instructions.push(Instruction::new(step, inputs, outputs, instruction.label));
        }
        if depth > MAX_DEPTH {
            return Err(Error::invalid(format!(
                "blocks stand more than {MAX_DEPTH} deep in one another"
            )));
        }
        let block = Block::new(form.inputs, instructions, form.outputs)?;
        blocks.push(Some((Arc::new(block), depth)));
    }
    let top = blocks.pop().flatten();
    let (top, _) = top.ok_or_else(|| Error::invalid("there is no block"))?;
    if blocks.iter().any(Option::is_some) {
        return Err(Error::invalid("a block stands nowhere"));
    }
    Arc::try_unwrap(top).map_err(|_| Error::invalid("the program stands in itself"))
}

fn constants(path: &str, forms: Vec<Constant>, tensors: Option<&str>) -> Result<Vec<Array>> {
    let large: Vec<String> = forms
        .iter()
        .filter(|form| form.data.is_none())
        .map(|form| form.name.clone())
        .collect();
    let mut loaded = match (tensors, large.is_empty()) {
        (_, true) => HashMap::new(),
        (None, false) => {
            return Err(Error::invalid(
                "constants are apart, but no file is named for them",
            ))
        }
        (Some(name), false) => load_tensors(path, name, &large, &forms)?,
    };
    forms
        .into_iter()
        .map(|form| {
            check_shape(&form.shape)?;
            let bad = |what: &str| Error::invalid(format!("constant {:?} {what}", form.name));
            let Some(data) = &form.data else {
                let array = loaded
                    .remove(&form.name)
                    .ok_or_else(|| bad("was not read"))?;
                if array.shape() != form.shape || mlx::dtype(&array) != form.dtype {
                    return Err(bad("has another shape or type in the file of constants"));
                }
                return Ok(array);
            };
            if form.blake3.is_some() {
                return Err(bad("has both its bytes and a digest"));
            }
            let bytes = BASE64.decode(data).map_err(|_| bad("is not in base64"))?;
            let size = byte_size(form.shape.iter().map(|size| i64::from(*size)), form.dtype);
            if size != Some(bytes.len() as u128) {
                return Err(bad("has not the bytes that its shape and type take"));
            }
            mlx::from_bytes(&bytes, &form.shape, form.dtype)
        })
        .collect()
}

fn load_tensors(
    path: &str,
    name: &str,
    large: &[String],
    forms: &[Constant],
) -> Result<HashMap<String, Array>> {
    // A file beside this one, and no other: the name comes from the file.
    if Path::new(name).file_name().and_then(|own| own.to_str()) != Some(name) {
        return Err(Error::invalid(format!(
            "{name:?} is not the name of a file beside it"
        )));
    }
    let digests: HashMap<&str, &str> = forms
        .iter()
        .filter_map(|form| Some((form.name.as_str(), form.blake3.as_deref()?)))
        .collect();
    let tensors = Path::new(path).with_file_name(name);
    let tensors = tensors.to_string_lossy();
    let see = |name: &str, bytes: &[u8]| {
        let found = digest(bytes);
        if digests.get(name) == Some(&found.as_str()) {
            return Ok(());
        }
        Err(failed(
            &tensors,
            format!(
                "{name:?} is not what the program {path} was saved with: its digest is {found}; copy both files again, or \
                 save the program again"
            ),
        ))
    };
    let loaded = file::load_seen(&tensors, Some(large), see)?;
    Ok(loaded.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(blocks: &str) -> Result<Block> {
        let forms: Vec<BlockForm> = serde_json::from_str(blocks).expect("well-formed");
        unflatten(forms)
    }

    fn refused(blocks: &str) -> String {
        body(blocks).expect_err("refused").to_string()
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        let text = r#"[{"inputs":1,"instructions":[],"outputs":[0]},
            {"inputs":1,"instructions":[{"op":"abs","inputs":[0],"outputs":1,"label":"here"}],"outputs":[1]},
            {"inputs":2,"instructions":[{"if":{"then":0,"else":1},"inputs":[0,1],"outputs":1},
              {"op":{"sum":{"axes":null,"keepdims":false}},"inputs":[2],"outputs":1}],"outputs":[3]}]"#;
        let block = body(text).expect("a block");
        let mut again = Vec::new();
        assert_eq!(flatten(&block, &mut again).expect("flat"), 2);
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        let again = serde_json::to_string(&again).expect("JSON");
        assert_eq!(value(&again), value(text));
    }

    #[test]
    fn blocks_stand_in_one_place_each() {
        let inner = r#"{"inputs":0,"instructions":[],"outputs":[]}"#;
        let outer = |then: usize, other: usize| {
            format!(
                r#"{{"inputs":1,"instructions":[{{"if":{{"then":{then},"else":{other}}},"inputs":[0],"outputs":0}}],"outputs":[]}}"#
            )
        };
        assert!(body(&format!("[{inner},{inner},{}]", outer(0, 1))).is_ok());
        assert!(refused(&format!("[{inner},{}]", outer(0, 0))).contains("two places"));
        assert!(refused(&format!("[{inner},{}]", outer(0, 1))).contains("does not stand before"));
        assert!(refused(&format!("[{inner},{}]", outer(0, usize::MAX))).contains("does not stand"));
        assert!(refused(&format!("[{inner},{inner},{inner},{}]", outer(0, 1))).contains("nowhere"));
        assert!(refused("[]").contains("no block"));
    }

    #[test]
    fn depth_is_bounded() {
        let leaf = r#"{"inputs":0,"instructions":[],"outputs":[]}"#.to_string();
        let mut blocks = vec![leaf.clone()];
        for _ in 0..=MAX_DEPTH {
            blocks.push(leaf.clone());
            let (then, other) = (blocks.len() - 2, blocks.len() - 1);
            let constant =
                r#"{"op":{"constant":{"value":1,"dtype":"bool"}},"inputs":[],"outputs":1}"#;
            blocks.push(format!(
                r#"{{"inputs":0,"instructions":[{constant},{{"if":{{"then":{then},"else":{other}}},"inputs":[0],"outputs":0}}],"outputs":[]}}"#
            ));
        }
        assert!(refused(&format!("[{}]", blocks.join(","))).contains("deep"));
        blocks.truncate(blocks.len() - 2);
        assert!(body(&format!("[{}]", blocks.join(","))).is_ok());
    }

    #[test]
    fn an_instruction_is_one_thing() {
        let block = |what: &str| {
            format!(
                r#"[{{"inputs":0,"instructions":[{{{what}"inputs":[],"outputs":0}}],"outputs":[]}}]"#
            )
        };
        assert!(refused(&block("")).contains("one of op, if and while"));
        let both = r#""op":"abs","if":{"then":0,"else":0},"#;
        assert!(refused(&block(both)).contains("one of op, if and while"));
    }

    #[test]
    fn headers_are_read_strictly() {
        let message = |text: &str| {
            let result = checked_body("x", text.as_bytes());
            result.expect_err("refused").to_string()
        };
        let right = format!("{FORMAT} 1 {}\n{{}}", digest(b"{}"));
        assert_eq!(checked_body("x", right.as_bytes()).expect("a body"), b"{}");
        assert!(message("").contains("not a saved program"));
        assert!(message("emlx-pro").contains("cut short"));
        assert!(message("emlx-program 1 ab").contains("cut short"));
        assert!(message("PK\x03\x04").contains("not a saved program"));
        assert!(message(&right[..right.len() - 1]).contains("digest"));
        assert!(message(&right.replace("emlx-program 1", "emlx-program 2")).contains("version 2"));
        assert!(message("emlx-program 7 something else entirely\n").contains("version 7"));
        assert!(message(&right.replace("emlx-program 1", "emlx-program 0")).contains("not a saved"));
        assert!(
            message(&right.replace("emlx-program 1", "emlx-program -1")).contains("not a saved")
        );
        assert!(message("emlx-program 1\n{}").contains("not a saved program"));
    }
}
