//! What tells two terms apart without reading what they hold: a digest of a term in which arrays and large binaries
//! count by identity. The compile cache finds functions by it (`EMLX.Compiler.Identity`), at each call. It also learns
//! here of arrays that go.
//!
//! An array is its number, which no other array ever has. A large binary is its address and size, so the digest is
//! valid for as long as the binary lives; the caller keeps it alive or forgets the digest.
//!
//! Terms share parts, and a term of few parts can have 2^60 of them if shared ones are counted each time. So a term of
//! many parts, counted this way, has a digest of its parts' digests, and each part is visited once. A copy without the
//! sharing has the same digest.

use super::answer::Answer;
use super::decode::{argument, decode_handles, decode_program, handles, WordHasher};
use crate::base::Result;
use crate::handle::array::Handle;
use crate::handle::weight;
use crate::runtime::{guard, Done};
use rustler::sys::ErlNifTerm;
use rustler::types::map::MapIterator;
use rustler::types::tuple;
use rustler::{Binary, Encoder, Env, NewBinary, Term, TermType};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Binaries up to this size count by their bytes: reading those takes no longer than asking for an address, and small
/// tensors that are made anew for each call are often equal.
const MAX_READ: usize = 1 << 10;

/// Parts of a term that are looked at on a scheduler; each takes some 30 ns.
const MAX_PARTS: usize = 1 << 14;

/// Bytes of a shared part that are written again each time: its digest would not be much shorter.
const MAX_REPEATED: usize = 128;

mod atoms {
    rustler::atoms! { long }
}

type Digest = [u8; 32];

/// A term as the digest sees it. Functions are left to the caller, since only the VM reads their environments.
struct Identity<'a> {
    digest: Digest,
    functions: Vec<Term<'a>>,
    /// What counts by identity, where it was asked for: `{number, ref}`.
    arrays: Vec<(u64, Term<'a>)>,
    /// `{address, size, binary}`.
    binaries: Vec<(usize, usize, Term<'a>)>,
}

impl Encoder for Identity<'_> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        let mut digest = NewBinary::new(env, self.digest.len());
        digest.as_mut_slice().copy_from_slice(&self.digest);
        let digest: Term = digest.into();
        (digest, &self.functions, &self.arrays, &self.binaries).encode(env)
    }
}

/// What a term begins with in the digest.
#[repr(u8)]
enum Tag {
    Atom,
    Integer,
    Float,
    Bytes,
    Address,
    Tuple,
    Nil,
    Cell,
    Map,
    Array,
    Function,
    External,
    Digest,
}

/// The identity of a term; `None` if it has more than `limit` parts, shared ones counted each time. Without a limit,
/// shared parts are visited once. `gather` has the arrays and binaries listed that count by identity.
fn of<'a>(term: Term<'a>, gather: bool, limit: Option<usize>) -> Option<Identity<'a>> {
    // A stack of its own: terms may be nested deeper than a scheduler's stack allows.
    let mut pending = Vec::with_capacity(256);
    pending.push(term);
    let mut walk = Walk {
        bytes: Vec::with_capacity(4096),
        pending,
        visited: limit.is_none().then(Visited::default),
        gather,
        functions: Vec::new(),
        arrays: Vec::new(),
        binaries: Vec::new(),
    };
    let mut parts = 0;
    while let Some(term) = walk.pending.pop() {
        parts += 1;
        if limit.is_some_and(|limit| parts > limit) {
            return None;
        }
        walk.visit(term);
        walk.close();
    }
    Some(Identity {
        digest: blake3::hash(&walk.bytes).into(),
        functions: walk.functions,
        arrays: walk.arrays,
        binaries: walk.binaries,
    })
}

/// Takes the number of an atom, which is to be had only by hashing it.
struct Number<'a>(&'a mut Vec<u8>);

impl Hasher for Number<'_> {
    fn write_usize(&mut self, number: usize) {
        append(self.0, number as u64);
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("an atom is hashed as one usize")
    }

    fn finish(&self) -> u64 {
        unreachable!("only what is written counts")
    }
}

/// A number in as many bytes as it needs, seven bits in each; the last byte is below 128.
fn append(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 128 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// What was visited, by the words that the VM refers to terms with. They do not change while a NIF runs.
#[derive(Default)]
struct Visited {
    /// The terms whose parts are being visited, from the outermost to the innermost.
    open: Vec<Open>,
    digests: HashMap<ErlNifTerm, Digest, BuildHasherDefault<WordHasher>>,
    /// The positions of functions in their list.
    functions: HashMap<ErlNifTerm, usize, BuildHasherDefault<WordHasher>>,
}

struct Open {
    word: ErlNifTerm,
    /// Where it begins in the bytes.
    start: usize,
    /// How many terms are pending when all its parts were visited.
    pending: usize,
}

struct Walk<'a> {
    bytes: Vec<u8>,
    pending: Vec<Term<'a>>,
    visited: Option<Visited>,
    gather: bool,
    functions: Vec<Term<'a>>,
    arrays: Vec<(u64, Term<'a>)>,
    binaries: Vec<(usize, usize, Term<'a>)>,
}

impl<'a> Walk<'a> {
    fn visit(&mut self, term: Term<'a>) {
        let kind = term.get_type();
        let has_parts = matches!(kind, TermType::Tuple | TermType::List | TermType::Map);
        if has_parts && self.recall(term) {
            return;
        }
        match kind {
            // The VM numbers its atoms.
            TermType::Atom => {
                self.bytes.push(Tag::Atom as u8);
                term.as_c_arg().hash(&mut Number(&mut self.bytes));
            }
            TermType::Integer => match term.decode::<i64>() {
                // The sign is the last bit, so that small negative integers are short, too.
                Ok(integer) => self.put(Tag::Integer, (integer << 1 ^ integer >> 63) as u64),
                Err(_) => self.external(term),
            },
            TermType::Float => match term.decode::<f64>() {
                Ok(float) => self.put(Tag::Float, float.to_bits()),
                Err(_) => self.external(term),
            },
            TermType::Binary => self.binary(term),
            TermType::Tuple => self.tuple(term),
            TermType::List => self.list(term),
            TermType::Map => self.map(term),
            TermType::Ref => self.reference(term),
            TermType::Fun => self.function(term),
            _ => self.external(term),
        }
    }

    /// Writes the digest of a term that was visited before. Of any other it is made when its parts were visited.
    fn recall(&mut self, term: Term<'a>) -> bool {
        let Some(visited) = &mut self.visited else {
            return false;
        };
        let word = term.as_c_arg();
        let known = visited.digests.get(&word).copied();
        match known {
            Some(digest) => self.digest(&digest),
            None => visited.open.push(Open {
                word,
                start: self.bytes.len(),
                pending: self.pending.len(),
            }),
        }
        known.is_some()
    }

    /// Makes the digests of terms whose parts all were visited.
    fn close(&mut self) {
        let pending = self.pending.len();
        while let Some(visited) = &mut self.visited {
            let Some(Open { word, start, .. }) =
                visited.open.pop_if(|open| open.pending == pending)
            else {
                return;
            };
            if self.bytes.len() - start > MAX_REPEATED {
                let digest = blake3::hash(&self.bytes[start..]).into();
                visited.digests.insert(word, digest);
                self.bytes.truncate(start);
                self.digest(&digest);
            }
        }
    }

    fn digest(&mut self, digest: &Digest) {
        self.bytes.push(Tag::Digest as u8);
        self.bytes.extend_from_slice(digest);
    }

    fn put(&mut self, tag: Tag, value: u64) {
        self.bytes.push(tag as u8);
        append(&mut self.bytes, value);
    }

    fn bytes(&mut self, tag: Tag, bytes: &[u8]) {
        self.put(tag, bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Process identifiers, ports, references of others, long integers and bitstrings, as the VM sends them to other
    /// nodes.
    fn external(&mut self, term: Term<'a>) {
        let external = term.to_binary();
        self.bytes(Tag::External, external.as_slice());
    }

    fn binary(&mut self, term: Term<'a>) {
        let Ok(binary) = Binary::from_term(term) else {
            return self.external(term);
        };
        let (address, size) = (binary.as_ptr() as usize, binary.len());
        if size <= MAX_READ {
            return self.bytes(Tag::Bytes, binary.as_slice());
        }
        self.put(Tag::Address, address as u64);
        append(&mut self.bytes, size as u64);
        // The binary beside an array would keep the array.
        if self.gather && !weight::is_one(&binary) {
            self.binaries.push((address, size, term));
        }
    }

    /// Where shared parts are visited once, a function is listed once. A copy in which it is no longer shared has
    /// another digest, and is compiled once more.
    fn function(&mut self, term: Term<'a>) {
        let next = self.functions.len();
        let position = match &mut self.visited {
            Some(visited) => *visited.functions.entry(term.as_c_arg()).or_insert(next),
            None => next,
        };
        if position == next {
            self.functions.push(term);
        }
        self.put(Tag::Function, position as u64);
    }

    fn tuple(&mut self, term: Term<'a>) {
        let elements = tuple::get_tuple(term).unwrap_or_default();
        self.put(Tag::Tuple, elements.len() as u64);
        self.pending.extend(elements.into_iter().rev());
    }

    fn list(&mut self, term: Term<'a>) {
        match term.list_get_cell() {
            Ok((head, tail)) => {
                self.bytes.push(Tag::Cell as u8);
                self.pending.push(tail);
                self.pending.push(head);
            }
            Err(_) => self.bytes.push(Tag::Nil as u8),
        }
    }

    fn map(&mut self, term: Term<'a>) {
        self.put(Tag::Map, term.map_size().unwrap_or_default() as u64);
        for (key, value) in MapIterator::new(term).into_iter().flatten() {
            self.pending.push(key);
            self.pending.push(value);
        }
    }

    fn reference(&mut self, term: Term<'a>) {
        let Some(handle) = term.try_get_resource::<Handle>() else {
            return self.external(term);
        };
        self.put(Tag::Array, handle.number);
        if self.gather {
            self.arrays.push((handle.number, term));
        }
    }
}

enum Identified<'a> {
    Here(Identity<'a>),
    /// Has more parts than a scheduler should be held for.
    Long,
}

impl Encoder for Identified<'_> {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            Identified::Here(identity) => identity.encode(env),
            Identified::Long => atoms::long().encode(env),
        }
    }
}

/// `{digest, functions, [{number, array}], [{address, size, binary}]}`, or `:long`. The last two are filled where
/// `gather` is true.
#[rustler::nif]
fn identify<'a>(term: Term<'a>, gather: Term<'a>) -> Answer<Identified<'a>> {
    Answer(guard("identify", || {
        identified(term, gather, Some(MAX_PARTS))
    }))
}

/// The same for terms of many parts: of any number where the limit is `nil`.
#[rustler::nif(schedule = "DirtyCpu")]
fn identify_long<'a>(term: Term<'a>, gather: Term<'a>, limit: Term<'a>) -> Answer<Identified<'a>> {
    Answer(guard("identify", || {
        let limit = argument(limit, 2, "nil or a number of parts")?;
        identified(term, gather, limit)
    }))
}

fn identified<'a>(
    term: Term<'a>,
    gather: Term<'a>,
    limit: Option<usize>,
) -> Result<Identified<'a>> {
    let gather = argument(gather, 1, "a boolean")?;
    Ok(of(term, gather, limit).map_or(Identified::Long, Identified::Here))
}

/// Has the calling process told when nothing refers to an array any more: `{:emlx_array_gone, number}`. One process
/// is told of an array, the last one that asked.
#[rustler::nif]
fn watch<'a>(env: Env<'a>, arrays: Term<'a>) -> Answer<Done> {
    Answer(guard("watch", || {
        let process = env.pid();
        decode_handles(arrays)?
            .iter()
            .for_each(|array| array.watch(process));
        Ok(Done)
    }))
}

/// `{number, bytes}` of each array.
#[rustler::nif]
fn sizes(arrays: Term) -> Answer<Vec<(u64, usize)>> {
    Answer(guard("sizes", || {
        Ok(handles(&decode_handles(arrays)?).map(size).collect())
    }))
}

/// The same of a program's constants, which have the numbers of the arrays that it was made with.
#[rustler::nif]
fn program_constants(program: Term) -> Answer<Vec<(u64, usize)>> {
    Answer(guard("program", || {
        let program = decode_program(program)?;
        Ok(handles(&program.constants).map(size).collect())
    }))
}

fn size(handle: &Handle) -> (u64, usize) {
    (handle.number, handle.nbytes())
}
