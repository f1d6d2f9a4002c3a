//! Programs: made, described, saved, loaded and run.

use super::answer::{Answer, Queued};
use super::atoms;
use super::decode::{argument, decode_arrays, decode_program, decode_target, handles};
use super::decode_program;
use super::operations::{bring_all, is_behind};
use crate::base::{Device, Dtype, Error, Result, Signature};
use crate::handle::array::ArrayTerm;
use crate::program::run::Run;
use crate::program::types::Types;
use crate::program::{self, Inputs, Options, Program};
use crate::runtime::{guard, Done, Job, Reply, Running, Suspended};
use rustler::{Encoder, Env, ResourceArc, Term};

/// `inputs` is a count or a list of `{name, shape, dtype}`, `constants` a list of arrays; the rest as
/// `EMLX.Program.new/4` has it.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_new<'a>(
    inputs: Term<'a>,
    constants: Term<'a>,
    instructions: Term<'a>,
    outputs: Term<'a>,
    opts: Term<'a>,
) -> Answer<ResourceArc<Program>> {
    Answer(guard("program", || {
        let opts: ProgramOpts = argument(
            opts,
            4,
            "%{output_names: nil | [name], fuse: boolean, merge: nil | boolean, run_ahead: nil | steps, device: device}",
        )?;
        let inputs = decode_program::inputs(inputs)?;
        // Its own: they outlive their deallocation elsewhere, and the compile cache learns by the handles of whoever
        // made them what is still in use.
        let constants = handles(&decode_arrays(constants)?)
            .map(|constant| constant.another().map(ResourceArc::new))
            .collect::<Result<Vec<_>>>()?;
        let count = inputs.len().saturating_add(constants.len());
        let body = decode_program::top(count, instructions, outputs)?;
        let options = Options {
            fuse: opts.fuse,
            merge: opts.merge,
            run_ahead: opts.run_ahead,
        };
        let program = Program::new(inputs, constants, body, opts.output_names, options)?;
        // Here, where it may take its time, rather than in the first run.
        program.plan(opts.device)?;
        Ok(ResourceArc::new(program))
    }))
}

#[derive(rustler::NifMap)]
pub struct ProgramOpts {
    pub output_names: Option<Vec<String>>,
    pub fuse: bool,
    pub merge: Option<bool>,
    pub run_ahead: Option<usize>,
    pub device: Device,
}

/// What the Elixir side keeps of a program.
#[derive(rustler::NifMap)]
#[rustler(encode)]
pub struct ProgramInfo {
    pub inputs: InputsTerm,
    pub output_names: Option<Vec<String>>,
    pub constants: usize,
    pub calls: Vec<u64>,
    pub size: usize,
    pub is_straight: bool,
    is_long: bool,
}

pub enum InputsTerm {
    Any(usize),
    Named(Vec<(String, Vec<i32>, Dtype)>),
}

impl Encoder for InputsTerm {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            InputsTerm::Any(count) => count.encode(env),
            InputsTerm::Named(inputs) => inputs.encode(env),
        }
    }
}

#[rustler::nif]
fn program_info(program: Term) -> Answer<ProgramInfo> {
    Answer(guard("program", || {
        let program = decode_program(program)?;
        let named = |input: &program::Input| (input.name.clone(), input.shape.clone(), input.dtype);
        Ok(ProgramInfo {
            inputs: match &program.inputs {
                Inputs::Any(count) => InputsTerm::Any(*count),
                Inputs::Named(inputs) => InputsTerm::Named(inputs.iter().map(named).collect()),
            },
            output_names: program.output_names.clone(),
            constants: program.constants.len(),
            calls: program.calls.clone(),
            size: program.size,
            is_straight: program.is_straight,
            is_long: program.is_long(),
        })
    }))
}

/// Shape and type of each output, nil for each of a program whose inputs may have any.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_outputs<'a>(program: Term<'a>, target: Term<'a>) -> Answer<Vec<Option<Signature>>> {
    Answer(guard("outputs", || {
        let program = decode_program(program)?;
        let target = decode_target(target, 1, handles(&program.constants))?;
        Types::of_outputs(&program, target.device, &target.stream)
    }))
}

/// A program as text.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_describe<'a>(program: Term<'a>, target: Term<'a>) -> Answer<String> {
    Answer(guard("inspect", || {
        let program = decode_program(program)?;
        let target = decode_target(target, 1, handles(&program.constants))?;
        program::describe::describe(&program, target.device, &target.stream)
    }))
}

/// How a program runs on a device, as text.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_explain<'a>(program: Term<'a>, device: Term<'a>) -> Answer<String> {
    Answer(guard("explain", || {
        let program = decode_program(program)?;
        let device = argument(device, 1, ":cpu or :gpu")?;
        program::plan::explain::explain(&program, device)
    }))
}

/// `{tag, {:ok, :ok} | {:error, map}}` follows. `names` are the constants'.
#[rustler::nif]
fn program_save<'a>(
    env: Env<'a>,
    program: Term<'a>,
    path: Term<'a>,
    names: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Answer<Queued> {
    Answer(guard("save", || {
        let program = decode_program(program)?;
        let path: String = argument(path, 1, "a path")?;
        let names: Vec<String> = argument(names, 2, "a list of names")?;
        let target = decode_target(target, 3, handles(&program.constants))?;
        let reply = Reply::new(env.pid(), tag);
        let queued = Queued::new(&target, handles(&program.constants));
        target.push(Job::SaveProgram {
            path,
            program,
            names,
            reply,
        })?;
        Ok(queued)
    }))
}

#[rustler::nif(schedule = "DirtyIo")]
fn program_load<'a>(path: Term<'a>, target: Term<'a>) -> Answer<ResourceArc<Program>> {
    Answer(guard("load", || {
        let path: String = argument(path, 0, "a path")?;
        let target = decode_target(target, 1, [])?;
        let program = program::file::load(&path, target.device, &target.stream)?;
        program.plan(target.device)?;
        Ok(ResourceArc::new(program))
    }))
}

/// The outputs of a run at once, and whether the caller should let the queue catch up; or later, by message.
pub enum Outputs {
    Ready(Vec<ArrayTerm>),
    Behind(Vec<ArrayTerm>),
    Later,
}

impl Encoder for Outputs {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Outputs::Ready(arrays) => (atoms::ok(), arrays).encode(env),
            Outputs::Behind(arrays) => (atoms::wait(), arrays).encode(env),
            Outputs::Later => Done.encode(env),
        }
    }
}

/// `{:ok, [array]}`, or `{:wait, [array]}` where the queue is behind. A program with branches, loops or calls gives
/// `:ok`; then `{tag, {:call, id, [array], suspended}}` may come, which `program_resume` answers, and
/// `{tag, {:ok, [array]} | {:error, map}}` comes once the outputs are submitted.
#[rustler::nif]
fn program_run<'a>(
    env: Env<'a>,
    program: Term<'a>,
    inputs: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    run_program(env, [program, inputs, target, tag])
}

/// The same for programs that take long to build.
#[rustler::nif(schedule = "DirtyCpu")]
fn program_run_dirty<'a>(
    env: Env<'a>,
    program: Term<'a>,
    inputs: Term<'a>,
    target: Term<'a>,
    tag: Term<'a>,
) -> Term<'a> {
    run_program(env, [program, inputs, target, tag])
}

pub fn run_program<'a>(env: Env<'a>, arguments: [Term<'a>; 4]) -> Term<'a> {
    match guard("run", || start_run(env, arguments)) {
        Ok(outputs) => outputs.encode(env),
        Err(error) => (atoms::error(), error).encode(env),
    }
}

pub fn start_run(env: Env, [program, inputs, target, tag]: [Term; 4]) -> Result<Outputs> {
    let program = decode_program(program)?;
    let inputs = decode_arrays(inputs)?;
    program.check_inputs(&inputs)?;
    let given = handles(&inputs).chain(handles(&program.constants));
    let target = decode_target(target, 2, given)?;
    let inputs = bring_all(inputs, &target)?;
    if !program.is_straight {
        let reply = Reply::new(env.pid(), tag);
        let run = Run::new(&program, inputs, target.device, &target.stream)?;
        let running = Running::new(run, reply, target.own());
        target.push(Job::Run(Box::new(running)))?;
        return Ok(Outputs::Later);
    }
    let outputs = program::run::inline(&program, &inputs, target.device, &target.stream)?;
    let behind = is_behind(&outputs, &target)?;
    let terms = outputs.into_iter().map(ArrayTerm).collect();
    Ok(if behind {
        Outputs::Behind(terms)
    } else {
        Outputs::Ready(terms)
    })
}

/// Answers a question of a run with arrays, or gives the run up with anything else.
#[rustler::nif]
fn program_resume<'a>(suspended: Term<'a>, answer: Term<'a>) -> Answer<Done> {
    Answer(guard("run", || {
        let suspended: ResourceArc<Suspended> = argument(suspended, 0, "a suspended run")?;
        let mut run = suspended.take()?;
        if atoms::error() == answer {
            return Ok(Done);
        }
        let (ok, arrays): (rustler::Atom, Term) = argument(answer, 1, "{:ok, [array]} or :error")?;
        if ok != atoms::ok() {
            return Err(Error::invalid(
                "the answer is neither {:ok, [array]} nor :error",
            ));
        }
        run.answer(decode_arrays(arrays)?)?;
        suspended.queue.push(Job::Run(run))?;
        Ok(Done)
    }))
}
