//! Numbers as unsigned integers in the same order, which vectors compare in one instruction and which radix sorts take
//! apart.

use half::{bf16, f16};
use std::marker::PhantomData;

/// An unsigned integer as large as the number that it is the key of.
pub trait Key: Copy + Ord + Send + Sync + 'static {
    /// With a place.
    type Placed: Place<Key = Self>;
    const MIN: Self;
    const MAX: Self;
    const BITS: u32;
    const NEXT_TO_MAX: Self;
    /// In the opposite order.
    fn reversed(self) -> Self;
    /// The largest where `is_it`, without a branch, which would keep a loop from being vectorised.
    fn or_max(self, is_it: bool) -> Self;
    fn wide(self) -> u64;
}

macro_rules! keys {
    ($($key:ty => $placed:ty),+) => { $(
        impl Key for $key {
            type Placed = $placed;
            const MIN: $key = <$key>::MIN;
            const MAX: $key = <$key>::MAX;
            const BITS: u32 = <$key>::BITS;
            const NEXT_TO_MAX: $key = <$key>::MAX - 1;
            #[inline(always)]
            fn or_max(self, is_it: bool) -> $key {
                self | (is_it as $key).wrapping_neg()
            }
            #[inline(always)]
            fn reversed(self) -> $key {
                !self
            }
            #[inline(always)]
            fn wide(self) -> u64 {
                self.into()
            }
        }
    )+ };
}

keys!(u8 => Placed<u8>, u16 => Placed<u16>, u32 => Placed<u32>, u64 => PlacedWide);

/// What is sorted: a key, with or without its place.
pub trait Item: Copy + Ord + Send + Sync + 'static {
    /// Bits of the key.
    const BITS: u32;
    fn key(self) -> u64;
}

impl<K: Key> Item for K {
    const BITS: u32 = K::BITS;
    #[inline(always)]
    fn key(self) -> u64 {
        self.wide()
    }
}

/// A key with its place. In order of the keys, and of the places where these are equal.
pub trait Place: Item {
    type Key: Key;
    fn new(key: Self::Key, place: u32) -> Self;
    fn place(self) -> u32;
}

/// A key of up to 32 bits before its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Placed<K>(u64, PhantomData<K>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlacedWide(u64, u32);

impl<K: Key> Item for Placed<K> {
    const BITS: u32 = K::BITS;
    #[inline(always)]
    fn key(self) -> u64 {
        self.0 >> 32
    }
}

impl<K: Key> Place for Placed<K> {
    type Key = K;
    #[inline(always)]
    fn new(key: K, place: u32) -> Self {
        Placed(key.wide() << 32 | u64::from(place), PhantomData)
    }
    #[inline(always)]
    fn place(self) -> u32 {
        self.0 as u32
    }
}

impl Item for PlacedWide {
    const BITS: u32 = 64;
    #[inline(always)]
    fn key(self) -> u64 {
        self.0
    }
}

impl Place for PlacedWide {
    type Key = u64;
    #[inline(always)]
    fn new(key: u64, place: u32) -> Self {
        PlacedWide(key, place)
    }
    #[inline(always)]
    fn place(self) -> u32 {
        self.1
    }
}

/// A number that has an order. NaN is above all others, and the zeros are the same.
pub trait Number: Copy + Send + Sync + 'static {
    type Key: Key;
    const IS_FLOAT: bool;
    /// Of NaN, and of nothing else where the type has NaN, the largest.
    fn key(self) -> Self::Key;
    /// A number that has this key.
    fn of_key(key: Self::Key) -> Self;
    fn is_negative_zero(self) -> bool;
    /// Whether its key is larger than another's; true also where the other is NaN.
    #[inline(always)]
    fn may_be_above(self, other: Self) -> bool {
        self.key() > other.key()
    }
}

macro_rules! integers {
    ($($number:ty => $key:ty),+) => { $(
        impl Number for $number {
            type Key = $key;
            const IS_FLOAT: bool = false;
            #[inline(always)]
            fn key(self) -> $key {
                // Of signed types the smallest becomes zero.
                (self ^ <$number>::MIN) as $key
            }
            #[inline(always)]
            fn of_key(key: $key) -> $number {
                key as $number ^ <$number>::MIN
            }
            #[inline(always)]
            fn is_negative_zero(self) -> bool {
                false
            }
        }
    )+ };
}

integers!(u8 => u8, u16 => u16, u32 => u32, u64 => u64, i8 => u8, i16 => u16, i32 => u32, i64 => u64);

macro_rules! floats {
    ($($number:ty => $key:ty, $signed:ty $(, $above:item)?);+) => { $(
        impl Number for $number {
            type Key = $key;
            const IS_FLOAT: bool = true;
            #[inline(always)]
            fn key(self) -> $key {
                const TOP: $key = 1 << (<$key>::BITS - 1);
                const INFINITY: $key = <$number>::INFINITY.to_bits();
                let bits = self.to_bits();
                let size = bits & !TOP;
                // A sign with a magnitude to a whole number in two's complement, where -0 is 0.
                let sign = bits as $signed >> (<$key>::BITS - 1);
                let whole = (size as $signed ^ sign).wrapping_sub(sign);
                (whole as $key ^ TOP).or_max(size > INFINITY)
            }
            #[inline(always)]
            fn of_key(key: $key) -> $number {
                const TOP: $key = 1 << (<$key>::BITS - 1);
                let whole = (key ^ TOP) as $signed;
                <$number>::from_bits(whole.unsigned_abs() | whole as $key & TOP)
            }
            #[inline(always)]
            fn is_negative_zero(self) -> bool {
                self.to_bits() == 1 << (<$key>::BITS - 1)
            }
            $($above)?
        }
    )+ };
}

floats!(
    f16 => u16, i16;
    bf16 => u16, i16;
    f32 => u32, i32,
    // One comparison, which is false of NaN.
    #[inline(always)]
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    fn may_be_above(self, other: f32) -> bool {
        !(self <= other)
    };
    f64 => u64, i64,
    #[inline(always)]
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    fn may_be_above(self, other: f64) -> bool {
        !(self <= other)
    }
);

#[inline(always)]
fn largest_of_lanes<T: Copy, K: Key, const N: usize>(row: &[T], key: impl Fn(T) -> K) -> K {
    const FEW: usize = 16;
    let (wide, rest) = row.as_chunks::<N>();
    let (few, rest) = rest.as_chunks::<FEW>();
    let mut lanes = [K::MIN; N];
    for wide in wide {
        for (lane, x) in lanes.iter_mut().zip(wide) {
            *lane = (*lane).max(key(*x));
        }
    }
    for few in few {
        for (lane, x) in lanes.iter_mut().zip(few) {
            *lane = (*lane).max(key(*x));
        }
    }
    let mut largest = K::MIN;
    for x in rest {
        largest = largest.max(key(*x));
    }
    for lane in lanes {
        largest = largest.max(lane);
    }
    largest
}

/// The largest key of a row, in vectors: four of the largest where there is enough for them to do.
#[inline(always)]
pub fn largest<T: Copy, K: Key>(row: &[T], key: impl Fn(T) -> K) -> K {
    match K::BITS {
        _ if row.len() < 256 => largest_of_lanes::<T, K, 16>(row, key),
        8 => largest_of_lanes::<T, K, 256>(row, key),
        16 => largest_of_lanes::<T, K, 128>(row, key),
        _ => largest_of_lanes::<T, K, 64>(row, key),
    }
}

/// `$work` with `$T` as the type of Rust that numbers of `$of` are. Booleans are bytes.
macro_rules! with_type {
    ($of:expr, $T:ident => $work:expr) => {{
        macro_rules! as_type {
            ($type:ty) => {{
                type $T = $type;
                $work
            }};
        }
        match $of {
            $crate::Type::Bool | $crate::Type::U8 => as_type!(u8),
            $crate::Type::U16 => as_type!(u16),
            $crate::Type::U32 => as_type!(u32),
            $crate::Type::U64 => as_type!(u64),
            $crate::Type::S8 => as_type!(i8),
            $crate::Type::S16 => as_type!(i16),
            $crate::Type::S32 => as_type!(i32),
            $crate::Type::S64 => as_type!(i64),
            $crate::Type::F16 => as_type!(half::f16),
            $crate::Type::Bf16 => as_type!(half::bf16),
            $crate::Type::F32 => as_type!(f32),
            $crate::Type::F64 => as_type!(f64),
        }
    }};
}

pub(crate) use with_type;
