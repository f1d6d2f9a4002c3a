//! Arguments of the functions of `EMLX.Native`: plain terms are decoded here, so that a bad one becomes an error that
//! says what was expected instead of a bare ArgumentError.

use super::atoms;
use crate::base::{Device, Dtype, Error, Reason, Result};
use crate::handle::array::Handle;
use crate::op::{self, Op};
use crate::program::Program;
use crate::runtime::{Queue, Shared};
use rustler::sys::ErlNifTerm;
use rustler::{Decoder, ListIterator, ResourceArc, Term, TermType};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// The term as text, cut to a length that an error message can carry.
pub fn shown(term: Term) -> String {
    let text = format!("{term:?}");
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// How deep lists, tuples and maps may stand in one another in what is decoded as a whole.
pub const MAX_NESTING: usize = 32;

/// Whether every list in a term ends in []. Decoding one that does not panics.
pub fn is_proper(term: Term) -> bool {
    is_proper_within(term, MAX_NESTING)
}

pub fn is_proper_within(term: Term, depth: usize) -> bool {
    let Some(depth) = depth.checked_sub(1) else {
        return false;
    };
    let is_proper = |term| is_proper_within(term, depth);
    match term.get_type() {
        TermType::List => {
            term.list_length().is_ok()
                && term
                    .decode::<ListIterator>()
                    .is_ok_and(|mut elements| elements.all(is_proper))
        }
        TermType::Tuple => {
            rustler::types::tuple::get_tuple(term).is_ok_and(|all| all.into_iter().all(is_proper))
        }
        TermType::Map => rustler::types::MapIterator::new(term)
            .is_none_or(|mut pairs| pairs.all(|(_, value)| is_proper(value))),
        _ => true,
    }
}

pub fn argument<'a, T: Decoder<'a>>(
    term: Term<'a>,
    position: usize,
    expected: &'static str,
) -> Result<T> {
    let decoded = if term.is_atom() || is_proper(term) {
        term.decode()
    } else {
        Err(rustler::Error::BadArg)
    };
    decoded.map_err(|_| {
        Reason::BadTerm {
            position,
            expected,
            found: shown(term),
        }
        .into()
    })
}

pub const AN_ARRAY: &str = "an array (the ref of an %EMLX.Array{})";

pub fn decode_array(term: Term, position: usize) -> Result<ResourceArc<Handle>> {
    argument(term, position, AN_ARRAY)
}

/// A list of arrays, where nil stands for one that is absent. They live as long as the call whose arguments they are.
pub fn decode_inputs<'a>(term: Term<'a>) -> Result<SmallVec<[Option<&'a Handle>; 4]>> {
    // Every call of an operation comes here.
    let mut inputs = SmallVec::new();
    let mut rest = term;
    while let Ok((head, tail)) = rest.list_get_cell() {
        inputs.push(match head.try_get_resource() {
            Some(handle) => Some(handle),
            None if head.is_atom() && atoms::nil() == head => None,
            None => {
                is_a_list(term)?;
                argument(head, inputs.len(), AN_ARRAY).map(Some)?
            }
        });
        rest = tail;
    }
    if !rest.is_empty_list() {
        is_a_list(term)?;
    }
    Ok(inputs)
}

/// An error where a term is no list, or one without an end.
#[cold]
fn is_a_list(term: Term) -> Result<()> {
    argument::<ListIterator>(term, 1, "a list of arrays").map(|_| ())
}

/// Arrays that have or will have elements.
pub fn decode_arrays(term: Term) -> Result<Vec<ResourceArc<Handle>>> {
    decode_each(term, decode_valued)
}

/// The same with those that stand for a traced function's values, and those that were given up.
pub fn decode_handles(term: Term) -> Result<Vec<ResourceArc<Handle>>> {
    decode_each(term, decode_array)
}

pub fn decode_each(
    term: Term,
    decode: fn(Term, usize) -> Result<ResourceArc<Handle>>,
) -> Result<Vec<ResourceArc<Handle>>> {
    let list: Vec<Term> = argument(term, 0, "a list of arrays")?;
    list.into_iter()
        .enumerate()
        .map(|(position, term)| decode(term, position))
        .collect()
}

/// What [`decode_target`] looks at.
pub fn handles(arrays: &[ResourceArc<Handle>]) -> impl Iterator<Item = &Handle> {
    arrays.iter().map(|array| &**array)
}

pub fn decode_valued(term: Term, position: usize) -> Result<ResourceArc<Handle>> {
    let array = decode_valued_or_deallocated(term, position)?;
    array.refuse_deallocated()?;
    Ok(array)
}

pub fn decode_valued_or_deallocated(term: Term, position: usize) -> Result<ResourceArc<Handle>> {
    let array = decode_array(term, position)?;
    array.refuse_traced()?;
    Ok(array)
}

thread_local! {
    /// Operations without attributes by their atoms, as they come up.
    static BARE: RefCell<HashMap<ErlNifTerm, Op, BuildHasherDefault<WordHasher>>> = RefCell::default();
}

/// Of the words that the VM refers to terms with: numbers of atoms and addresses, which one multiplication spreads.
#[derive(Default)]
pub struct WordHasher(u64);

impl Hasher for WordHasher {
    // The low bits of words are the same, and so are those of products.
    fn write_usize(&mut self, word: usize) {
        self.0 = (word as u64)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(32);
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a term is hashed as one usize")
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Every eager call comes here, and the derive compares an operation's name with one name after the other.
pub fn decode_op(term: Term) -> Result<Op> {
    if !term.is_atom() {
        return decode_any_op(term);
    }
    let atom = term.as_c_arg();
    if let Some(op) = BARE.with_borrow(|bare| bare.get(&atom).cloned()) {
        return Ok(op);
    }
    let op = decode_any_op(term)?;
    BARE.with_borrow_mut(|bare| bare.insert(atom, op.clone()));
    Ok(op)
}

pub fn decode_any_op(term: Term) -> Result<Op> {
    if !is_proper(term) {
        return Err(Error::invalid(format!("improper list in {}", shown(term))));
    }
    let decoded = term
        .decode::<Op>()
        .or_else(|error| match with_absent(term) {
            Some(whole) => whole.decode::<Op>(),
            None => Err(error),
        });
    decoded.map_err(|error| match error {
        // An attribute is missing or of the wrong type; the derive says which.
        rustler::Error::RaiseTerm(reason) => {
            let env = term.get_env();
            let text: String = reason.encode(env).decode().unwrap_or_default();
            Error::invalid(attribute_refused(term, &text))
        }
        _ => Reason::UnknownOp(shown(term)).into(),
    })
}

/// The operation with nil for each optional attribute that was left out; None where none was.
fn with_absent(term: Term) -> Option<Term> {
    let env = term.get_env();
    let elements = rustler::types::tuple::get_tuple(term).ok()?;
    let [name, attributes] = elements[..] else {
        return None;
    };
    let optional = op::attributes::optional(&name.atom_to_string().ok()?)?;
    let mut whole = attributes;
    let mut is_whole = true;
    for attribute in optional {
        let key = rustler::types::Atom::from_str(env, attribute).ok()?;
        if whole.map_get(key).is_err() {
            whole = whole.map_put(key, rustler::types::atom::nil()).ok()?;
            is_whole = false;
        }
    }
    (!is_whole).then(|| rustler::types::tuple::make_tuple(env, &[name, whole]))
}

/// What is wrong with an operation's attributes, from the derive's words, which have the attribute's name in quotes.
pub fn attribute_refused(term: Term, words: &str) -> String {
    let value = words.split('\'').nth(1).and_then(|name| {
        let elements = rustler::types::tuple::get_tuple(term).ok()?;
        let key = rustler::types::Atom::from_str(term.get_env(), name).ok()?;
        Some((name, elements.get(1)?.map_get(key).ok()))
    });
    match value {
        Some((name, Some(value))) => {
            let why = if name != "value" && is_beyond_i32(value) {
                ", MLX counts with 32 bits, up to 2147483647"
            } else {
                ""
            };
            format!("the attribute {name} cannot be {}{why}", shown(value))
        }
        Some((name, None)) => format!("the attribute {name} is missing in {}", shown(term)),
        None => format!("{words} in {}", shown(term)),
    }
}

/// Whether a term is an integer, or a list with one, that takes more than 32 bits.
pub fn is_beyond_i32(term: Term) -> bool {
    match term.get_type() {
        TermType::Integer => term.decode::<i32>().is_err(),
        TermType::List => term
            .decode::<ListIterator>()
            .is_ok_and(|mut list| list.any(is_beyond_i32)),
        _ => false,
    }
}

/// The operation's name as far as the term shows it.
pub fn op_name(term: Term) -> String {
    let head = rustler::types::tuple::get_tuple(term)
        .ok()
        .and_then(|elements| elements.first().copied())
        .unwrap_or(term);
    head.atom_to_string().unwrap_or_else(|_| "apply".into())
}

/// Where a call goes: a device's default queue or one of the caller's own.
pub enum Target {
    Default(&'static Arc<Shared>),
    Own(ResourceArc<Queue>),
    /// A device's default queue, for a function that is being traced: what grows large is recorded though its inputs
    /// are known.
    Trace(&'static Arc<Shared>),
}

impl Target {
    /// The queue, where it is one of the caller's.
    pub fn own(&self) -> Option<ResourceArc<Queue>> {
        match self {
            Target::Default(_) | Target::Trace(_) => None,
            Target::Own(queue) => Some(queue.clone()),
        }
    }
}

impl std::ops::Deref for Target {
    type Target = Arc<Shared>;

    fn deref(&self) -> &Arc<Shared> {
        match self {
            Target::Default(shared) | Target::Trace(shared) => shared,
            Target::Own(queue) => &queue.0,
        }
    }
}

/// nil is the device of the inputs (the GPU if any is there), an atom names a device, anything else is a queue.
pub fn decode_target<'a>(
    term: Term,
    position: usize,
    inputs: impl IntoIterator<Item = &'a Handle>,
) -> Result<Target> {
    if term.is_atom() {
        let device = if atoms::nil() == term {
            let on_gpu = inputs.into_iter().any(|input| input.device == Device::Gpu);
            if on_gpu {
                Device::Gpu
            } else {
                Device::Cpu
            }
        } else {
            argument(term, position, ":cpu, :gpu or a queue")?
        };
        return Ok(Target::Default(Shared::default(device)?));
    }
    if term.is_tuple() {
        let (tag, device): (rustler::Atom, Device) =
            argument(term, position, "{:trace, :cpu | :gpu}")?;
        if tag != atoms::trace() {
            return Err(Reason::BadTerm {
                position,
                expected: "{:trace, :cpu | :gpu}",
                found: shown(term),
            }
            .into());
        }
        return Ok(Target::Trace(Shared::default(device)?));
    }
    argument(term, position, ":cpu, :gpu or a queue").map(Target::Own)
}

/// A shape and, as the next argument, a type.
pub fn decode_layout(shape: Term, dtype: Term, position: usize) -> Result<(Vec<i64>, Dtype)> {
    let shape = argument(shape, position, "a list of integers")?;
    Ok((shape, decode_dtype(dtype, position + 1)?))
}

/// A type. The derive compares its name with one name after the other.
pub fn decode_dtype(term: Term, position: usize) -> Result<Dtype> {
    thread_local! {
        static DTYPES: RefCell<HashMap<ErlNifTerm, Dtype, BuildHasherDefault<WordHasher>>> = RefCell::default();
    }
    let word = term.as_c_arg();
    if let Some(dtype) = DTYPES.with_borrow(|dtypes| dtypes.get(&word).copied()) {
        return Ok(dtype);
    }
    let dtype = argument(term, position, "a type such as :f32")?;
    DTYPES.with_borrow_mut(|dtypes| dtypes.insert(word, dtype));
    Ok(dtype)
}

/// What an array is made as, behind the argument that says of what: its shape, its type and where.
pub fn decode_made(shape: Term, dtype: Term, target: Term) -> Result<(Vec<i64>, Dtype, Target)> {
    let (shape, dtype) = decode_layout(shape, dtype, 1)?;
    Ok((shape, dtype, decode_target(target, 3, [])?))
}

pub fn decode_program(term: Term) -> Result<ResourceArc<Program>> {
    argument(term, 0, "a program")
}
