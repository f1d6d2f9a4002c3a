//! Operations on small arrays that the calling thread has met before, with these attributes and layouts.

use super::decode::{decode_op, WordHasher};
use crate::base::Dtype;
use crate::handle::array::Handle;
use crate::handle::small::{Layout, Small};
use crate::mlx::Stream;
use crate::program::Repeated;
use rustler::sys::{enif_is_identical, ErlNifTerm};
use rustler::{Env, OwnedEnv, Term};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::mem::ManuallyDrop;

/// Calls that a thread remembers. Then it forgets all of them.
const MAX_CALLS: usize = 2048;
/// Bytes of the arrays of recordings, from which on it does so too.
const MAX_BYTES: usize = 8 << 20;

thread_local! {
    /// The VM's threads live as long as the process, and MLX is not taken down before it.
    static CALLS: RefCell<ManuallyDrop<Calls>> = RefCell::new(ManuallyDrop::new(Calls::new()));
}

/// Calls by a hash of their keys.
struct Calls {
    /// Has the operations' terms.
    terms: OwnedEnv,
    calls: HashMap<usize, SmallVec<[Call; 1]>, BuildHasherDefault<WordHasher>>,
    count: usize,
    bytes: usize,
}

struct Call {
    op: ErlNifTerm,
    /// The type that the result is cast to, an atom.
    to: Option<ErlNifTerm>,
    inputs: SmallVec<[Option<&'static Layout>; 4]>,
    state: State,
}

enum State {
    New,
    /// Met once. It may have been the last time, so the recording was not kept.
    Met,
    Recorded(Box<Repeated>),
    /// Not all of it is computed on the spot.
    Left,
}

/// What a call is found by.
struct Key<'t, 'i> {
    op: Term<'t>,
    to: Option<Term<'t>>,
    inputs: &'i [Option<&'i Small>],
}

impl Key<'_, '_> {
    fn hash(&self) -> usize {
        let op = match self.op.is_atom() {
            true => word(self.op.as_c_arg()),
            false => self.op.hash_internal(0) as usize,
        };
        let to = self.to.map_or(0, |to| word(to.as_c_arg()));
        let mix = |hash: usize, word: usize| (hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9);
        self.inputs.iter().fold(mix(op, to), |hash, input| {
            mix(
                hash,
                input.map_or(1, |small| std::ptr::from_ref(small.layout) as usize),
            )
        })
    }

    fn is_of(&self, call: &Call) -> bool {
        let is_same =
            |(input, layout): (&Option<&Small>, &Option<&'static Layout>)| match (input, layout) {
                (Some(small), Some(layout)) => std::ptr::eq(small.layout, *layout),
                (None, None) => true,
                _ => false,
            };
        call.to == self.to.map(|to| to.as_c_arg())
            && call.inputs.len() == self.inputs.len()
            && self.inputs.iter().zip(&call.inputs).all(is_same)
            // SAFETY: both terms are live.
            && unsafe { enif_is_identical(call.op, self.op.as_c_arg()) } == 1
    }
}

fn word(term: ErlNifTerm) -> usize {
    BuildHasherDefault::<WordHasher>::default().hash_one(term) as usize
}

impl Calls {
    fn new() -> Calls {
        Calls {
            terms: OwnedEnv::new(),
            calls: HashMap::default(),
            count: 0,
            bytes: 0,
        }
    }

    fn results(&mut self, key: &Key, stream: &Stream) -> Option<SmallVec<[Small; 1]>> {
        let hash = key.hash();
        let known = self.calls.get(&hash);
        let place = known.and_then(|calls| calls.iter().position(|call| key.is_of(call)));
        let place = place.unwrap_or_else(|| self.add(hash, key));
        let call = self.calls.get_mut(&hash)?.get_mut(place)?;
        if let State::Recorded(repeated) = &mut call.state {
            return Some(repeated.run(key.inputs));
        }
        let (results, bytes) = call.record(key, stream)?;
        self.bytes += bytes;
        if self.bytes > MAX_BYTES {
            *self = Calls::new();
        }
        Some(results)
    }

    /// Adds a call. Its place among those of its hash.
    #[cold]
    fn add(&mut self, hash: usize, key: &Key) -> usize {
        if self.count >= MAX_CALLS {
            *self = Calls::new();
        }
        self.count += 1;
        let op = self.terms.run(|env: Env| key.op.in_env(env).as_c_arg());
        let inputs = key.inputs.iter();
        let inputs = inputs.map(|input| input.map(|small| small.layout));
        let calls = self.calls.entry(hash).or_default();
        calls.push(Call {
            op,
            to: key.to.map(|to| to.as_c_arg()),
            inputs: inputs.collect(),
            state: State::New,
        });
        calls.len() - 1
    }
}

impl Call {
    /// The results, and the bytes of what is kept.
    #[cold]
    fn record(&mut self, key: &Key, stream: &Stream) -> Option<(SmallVec<[Small; 1]>, usize)> {
        if matches!(self.state, State::Left) {
            return None;
        }
        let Some(mut repeated) = record(key, stream) else {
            self.state = State::Left;
            return None;
        };
        let results = repeated.run(key.inputs);
        let (state, bytes) = match self.state {
            State::New => (State::Met, 0),
            _ => {
                let bytes = repeated.nbytes();
                (State::Recorded(Box::new(repeated)), bytes)
            }
        };
        self.state = state;
        Some((results, bytes))
    }
}

/// What cannot be recorded is an ordinary call, which returns the errors too.
#[cold]
fn record(key: &Key, stream: &Stream) -> Option<Repeated> {
    let op = decode_op(key.op).ok()?;
    let to = key.to.map(|to| to.decode::<Dtype>()).transpose().ok()?;
    Repeated::record(&op, to, key.inputs, stream).ok()?
}

fn is_constant(op: Term) -> bool {
    let elements = rustler::types::tuple::get_tuple(op).unwrap_or_default();
    elements
        .first()
        .is_some_and(|name| atoms::constant() == *name)
}

mod atoms {
    rustler::atoms! { constant }
}

/// The results of an operation on small arrays, `to` the type that its result is cast to. None where it has to be
/// applied.
pub fn results<'a>(
    op: Term<'a>,
    to: Option<Term<'a>>,
    inputs: &[Option<&Handle>],
    stream: &Stream,
) -> Option<SmallVec<[Small; 1]>> {
    // A constant may be another one each time.
    if inputs.is_empty() && is_constant(op) {
        return None;
    }
    let mut smalls: SmallVec<[Option<&Small>; 4]> = SmallVec::new();
    for input in inputs {
        smalls.push(match input {
            Some(handle) => {
                handle.refuse_deallocated().ok()?;
                Some(handle.as_small()?)
            }
            None => None,
        });
    }
    let inputs = &smalls;
    let key = Key { op, to, inputs };
    CALLS.with_borrow_mut(|calls| calls.results(&key, stream))
}
