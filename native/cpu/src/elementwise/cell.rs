//! Numbers of any type in chunks: read into registers, computed with, and written. A chunk is whole even where fewer
//! elements are left, so that no loop over single elements remains, and it is read before it is written, so that a
//! result may replace its operand.

use super::Argument;
use crate::element::Element;
use crate::simd::Simd;
use half::{bf16, f16};

/// Elements of a chunk: two vectors of f32 with AVX-512.
pub const CHUNK: usize = 32;

/// An element as it lies in memory, and the type that is computed in.
pub trait Cell: Copy + 'static {
    type Wide: Copy + Default + 'static;

    /// # Safety
    /// `CHUNK` elements can be read, and the machine has S's instructions.
    unsafe fn load<S: Simd>(from: *const Self) -> [Self::Wide; CHUNK];
    /// # Safety
    /// `CHUNK` elements can be written, and the machine has S's instructions.
    unsafe fn store<S: Simd>(chunk: &[Self::Wide; CHUNK], to: *mut Self);
}

macro_rules! plain {
    ($($T:ty),*) => {
        $(impl Cell for $T {
            type Wide = $T;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const $T) -> [$T; CHUNK] {
                from.cast::<[$T; CHUNK]>().read_unaligned()
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(chunk: &[$T; CHUNK], to: *mut $T) {
                to.cast::<[$T; CHUNK]>().write_unaligned(*chunk);
            }
        })*
    };
}

plain!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

macro_rules! narrow {
    ($($T:ty),*) => {
        $(impl Cell for $T {
            type Wide = f32;
            #[inline(always)]
            unsafe fn load<S: Simd>(from: *const $T) -> [f32; CHUNK] {
                let mut chunk = [0f32; CHUNK];
                let mut i = 0;
                while i < CHUNK {
                    S::store(chunk.as_mut_ptr().add(i), <$T as Element>::load::<S>(from.add(i)));
                    i += S::LANES;
                }
                chunk
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(chunk: &[f32; CHUNK], to: *mut $T) {
                let mut i = 0;
                while i < CHUNK {
                    <$T as Element>::store::<S>(to.add(i), S::load(chunk.as_ptr().add(i)));
                    i += S::LANES;
                }
            }
        })*
    };
}

narrow!(f16, bf16);

/// The elements from number `at` on; the one of a repeated argument in every place.
#[inline(always)]
pub unsafe fn read<S: Simd, T: Cell>(
    argument: Argument,
    one: T::Wide,
    at: usize,
    count: usize,
) -> [T::Wide; CHUNK] {
    if argument.is_one {
        return [one; CHUNK];
    }
    let from = argument.at.cast::<T>().add(at);
    if count - at >= CHUNK {
        return T::load::<S>(from);
    }
    let mut part = std::mem::MaybeUninit::<[T; CHUNK]>::zeroed();
    std::ptr::copy_nonoverlapping(from, part.as_mut_ptr().cast::<T>(), count - at);
    T::load::<S>(part.as_ptr().cast())
}

/// What a repeated argument has in every place; anything of others.
#[inline(always)]
pub unsafe fn single<S: Simd, T: Cell>(argument: Argument) -> T::Wide {
    if !argument.is_one {
        return T::Wide::default();
    }
    let mut part = std::mem::MaybeUninit::<[T; CHUNK]>::zeroed();
    std::ptr::copy_nonoverlapping(argument.at.cast::<T>(), part.as_mut_ptr().cast::<T>(), 1);
    T::load::<S>(part.as_ptr().cast())[0]
}

#[inline(always)]
unsafe fn write<S: Simd, T: Cell>(chunk: &[T::Wide; CHUNK], to: *mut T, at: usize, count: usize) {
    let to = to.add(at);
    if count - at >= CHUNK {
        return T::store::<S>(chunk, to);
    }
    let mut part = std::mem::MaybeUninit::<[T; CHUNK]>::zeroed();
    T::store::<S>(chunk, part.as_mut_ptr().cast::<T>());
    std::ptr::copy_nonoverlapping(part.as_ptr().cast::<T>(), to, count - at);
}

/// A function of each element of one argument.
#[inline(always)]
pub unsafe fn map<S: Simd, A: Cell, O: Cell>(
    a: Argument,
    to: *mut u8,
    count: usize,
    f: impl Fn(A::Wide) -> O::Wide,
) {
    let one = single::<S, A>(a);
    let mut at = 0;
    while at < count {
        let x = read::<S, A>(a, one, at, count);
        let mut out = [O::Wide::default(); CHUNK];
        for i in 0..CHUNK {
            out[i] = f(x[i]);
        }
        write::<S, O>(&out, to.cast(), at, count);
        at += CHUNK;
    }
}

/// A function of chunks of one argument.
#[inline(always)]
pub unsafe fn map_chunks<S: Simd, A: Cell, O: Cell>(
    a: Argument,
    to: *mut u8,
    count: usize,
    f: impl Fn(&[A::Wide; CHUNK], &mut [O::Wide; CHUNK]),
) {
    let one = single::<S, A>(a);
    let mut at = 0;
    while at < count {
        let x = read::<S, A>(a, one, at, count);
        let mut out = [O::Wide::default(); CHUNK];
        f(&x, &mut out);
        write::<S, O>(&out, to.cast(), at, count);
        at += CHUNK;
    }
}

/// A function of pairs of elements of two arguments.
#[inline(always)]
pub unsafe fn map_pairs<S: Simd, A: Cell, O: Cell>(
    a: Argument,
    b: Argument,
    to: *mut u8,
    count: usize,
    f: impl Fn(A::Wide, A::Wide) -> O::Wide,
) {
    let (one_a, one_b) = (single::<S, A>(a), single::<S, A>(b));
    let mut at = 0;
    while at < count {
        let x = read::<S, A>(a, one_a, at, count);
        let y = read::<S, A>(b, one_b, at, count);
        let mut out = [O::Wide::default(); CHUNK];
        for i in 0..CHUNK {
            out[i] = f(x[i], y[i]);
        }
        write::<S, O>(&out, to.cast(), at, count);
        at += CHUNK;
    }
}

/// A choice between elements of two arguments.
#[inline(always)]
pub unsafe fn choose<S: Simd, T: Cell>(
    which: Argument,
    yes: Argument,
    no: Argument,
    to: *mut u8,
    count: usize,
) {
    let one_which = single::<S, u8>(which);
    let (one_yes, one_no) = (single::<S, T>(yes), single::<S, T>(no));
    let mut at = 0;
    while at < count {
        let c = read::<S, u8>(which, one_which, at, count);
        let x = read::<S, T>(yes, one_yes, at, count);
        let y = read::<S, T>(no, one_no, at, count);
        let mut out = [T::Wide::default(); CHUNK];
        for i in 0..CHUNK {
            out[i] = if c[i] != 0 { x[i] } else { y[i] };
        }
        write::<S, T>(&out, to.cast(), at, count);
        at += CHUNK;
    }
}

/// Calls a macro with the Rust type of elements of a [`Type`](crate::Type).
macro_rules! by_type {
    ($value:expr, $call:ident: $($which:ident)*) => {
        match $value {
            $(crate::Type::$which => by_type!(@ $call $which),)*
            #[allow(unreachable_patterns)]
            other => unreachable!("no kernel for {other:?}"),
        }
    };
    (@ $call:ident Bool) => { $call!(u8) };
    (@ $call:ident U8) => { $call!(u8) };
    (@ $call:ident U16) => { $call!(u16) };
    (@ $call:ident U32) => { $call!(u32) };
    (@ $call:ident U64) => { $call!(u64) };
    (@ $call:ident S8) => { $call!(i8) };
    (@ $call:ident S16) => { $call!(i16) };
    (@ $call:ident S32) => { $call!(i32) };
    (@ $call:ident S64) => { $call!(i64) };
    (@ $call:ident F16) => { $call!(half::f16) };
    (@ $call:ident Bf16) => { $call!(half::bf16) };
    (@ $call:ident F32) => { $call!(f32) };
    (@ $call:ident F64) => { $call!(f64) };
}

pub(super) use by_type;
