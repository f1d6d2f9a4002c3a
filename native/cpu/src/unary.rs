//! Functions of one array, element by element.

use super::element::Element;
use super::math;
use super::simd::dispatch;
use super::simd::{load_part, store_part, Level, Simd};
use std::any::TypeId;
use std::ffi::CStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    Exp,
    Sigmoid,
    Tanh,
    Erf,
    Sqrt,
    Rsqrt,
    Negative,
    Abs,
    Square,
    Floor,
    Ceil,
    Trunc,
    /// Halves to the even one.
    Round,
    /// Halves away from zero.
    RoundAway,
    Sign,
    Log,
    Log1p,
    Expm1,
    Sin,
    Cos,
    Tan,
    Sinh,
    Cosh,
    Asin,
    Acos,
    Atan,
    Asinh,
    Acosh,
    Atanh,
    Log2,
    Log10,
    Cbrt,
    Erfc,
    Erfinv,
    Reciprocal,
}

impl Function {
    /// Whether it takes no longer than to read and write the numbers.
    pub fn is_simple(self) -> bool {
        matches!(self, Function::Negative | Function::Abs | Function::Square)
    }

    pub fn name(self) -> &'static CStr {
        match self {
            Function::Exp => c"exp",
            Function::Sigmoid => c"sigmoid",
            Function::Tanh => c"tanh",
            Function::Erf => c"erf",
            Function::Sqrt => c"sqrt",
            Function::Rsqrt => c"rsqrt",
            Function::Negative => c"negative",
            Function::Abs => c"abs",
            Function::Square => c"square",
            Function::Floor => c"floor",
            Function::Ceil => c"ceil",
            Function::Trunc => c"trunc",
            Function::Round => c"round",
            Function::RoundAway => c"round_away",
            Function::Sign => c"sign",
            Function::Log => c"log",
            Function::Log1p => c"log1p",
            Function::Expm1 => c"expm1",
            Function::Sin => c"sin",
            Function::Cos => c"cos",
            Function::Tan => c"tan",
            Function::Sinh => c"sinh",
            Function::Cosh => c"cosh",
            Function::Asin => c"asin",
            Function::Acos => c"acos",
            Function::Atan => c"atan",
            Function::Asinh => c"asinh",
            Function::Acosh => c"acosh",
            Function::Atanh => c"atanh",
            Function::Log2 => c"log2",
            Function::Log10 => c"log10",
            Function::Cbrt => c"cbrt",
            Function::Erfc => c"erfc",
            Function::Erfinv => c"erfinv",
            Function::Reciprocal => c"reciprocal",
        }
    }
}

/// `count` elements from `from` to `to`, which may be the same place.
///
/// # Safety
/// Both can hold `count` elements.
pub unsafe fn apply<T: Element>(
    level: Level,
    function: Function,
    from: *const T,
    to: *mut T,
    count: usize,
) {
    macro_rules! each {
        ([$($case:ident = $f:ident),*], [$($long_case:ident = $long:ident),*]) => {
            match function {
                $(Function::$case => {
                    #[inline(always)]
                    unsafe fn body<S: Simd, T: Element>(from: *const T, to: *mut T, count: usize) {
                        let mut i = 0;
                        while i + S::LANES <= count {
                            T::store::<S>(to.add(i), math::$f::<S>(T::load::<S>(from.add(i))));
                            i += S::LANES;
                        }
                        if i < count {
                            let rest = load_part::<S, T>(from.add(i), count - i, 0.0);
                            store_part::<S, T>(to.add(i), count - i, math::$f::<S>(rest));
                        }
                    }
                    dispatch!(fn run<T: Element>(from: *const T, to: *mut T, count: usize) = body);
                    run::<T>(level, from, to, count)
                })*
                $(Function::$long_case => {
                    #[inline(always)]
                    unsafe fn body<S: Simd>(from: *const f32, to: *mut f32, count: usize) {
                        let mut i = 0;
                        while i < count {
                            let rest = count - i;
                            let x = if rest < S::LANES {
                                load_part::<S, f32>(from.add(i), rest, 0.0)
                            } else {
                                S::load(from.add(i))
                            };
                            let value = math::$long::<S>(x);
                            if rest < S::LANES {
                                store_part::<S, f32>(to.add(i), rest, value);
                            } else {
                                S::store(to.add(i), value);
                            }
                            i += S::LANES;
                        }
                    }
                    dispatch!(fn run(from: *const f32, to: *mut f32, count: usize) = body);
                    in_f32::<T>(level, run, from, to, count)
                })*
            }
        };
    }
    // Those of the second kind are long. They stand once in their loop, not once more for the rest of the elements, and
    // are compiled for f32 alone.
    each!(
        [
            Exp = exp,
            Sigmoid = sigmoid,
            Tanh = tanh,
            Erf = erf,
            Sqrt = sqrt,
            Rsqrt = rsqrt,
            Negative = negative,
            Abs = abs,
            Square = square,
            Floor = floor,
            Ceil = ceil,
            Trunc = trunc,
            Round = round,
            RoundAway = round_away,
            Sign = sign,
            Reciprocal = reciprocal
        ],
        [
            Log = log,
            Log1p = log1p,
            Expm1 = expm1,
            Sin = sin,
            Cos = cos,
            Tan = tan,
            Sinh = sinh,
            Cosh = cosh,
            Asin = asin,
            Acos = acos,
            Atan = atan,
            Asinh = asinh,
            Acosh = acosh,
            Atanh = atanh,
            Log2 = log2,
            Log10 = log10,
            Cbrt = cbrt,
            Erfc = erfc,
            Erfinv = erfinv
        ]
    )
}

/// How many numbers of 16 bits are made f32 at a time, for functions that are compiled for f32 alone.
pub(super) const BLOCK: usize = 256;

dispatch!(
    /// `count` numbers as f32.
    ///
    /// # Safety
    /// Both can hold `count` elements.
    pub(super) fn widen<T: Element>(from: *const T, to: *mut f32, count: usize) = widen_body
);
dispatch!(
    /// `count` numbers of f32 as T.
    ///
    /// # Safety
    /// Both can hold `count` elements.
    pub(super) fn narrow<T: Element>(from: *const f32, to: *mut T, count: usize) = narrow_body
);

#[inline(always)]
unsafe fn widen_body<S: Simd, T: Element>(from: *const T, to: *mut f32, count: usize) {
    let mut i = 0;
    while i + S::LANES <= count {
        S::store(to.add(i), T::load::<S>(from.add(i)));
        i += S::LANES;
    }
    for i in i..count {
        to.add(i).write(from.add(i).read().widen());
    }
}

#[inline(always)]
unsafe fn narrow_body<S: Simd, T: Element>(from: *const f32, to: *mut T, count: usize) {
    let mut i = 0;
    while i + S::LANES <= count {
        T::store::<S>(to.add(i), S::load(from.add(i)));
        i += S::LANES;
    }
    for i in i..count {
        to.add(i).write(T::narrow(from.add(i).read()));
    }
}

type OfF32 = unsafe fn(Level, *const f32, *mut f32, usize);

/// # Safety
/// Both can hold `count` elements.
unsafe fn in_f32<T: Element>(level: Level, run: OfF32, from: *const T, to: *mut T, count: usize) {
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        return run(level, from.cast(), to.cast(), count);
    }
    let mut block = [0f32; BLOCK];
    let block = block.as_mut_ptr();
    for i in (0..count).step_by(BLOCK) {
        let size = BLOCK.min(count - i);
        widen(level, from.add(i), block, size);
        run(level, block, block, size);
        narrow(level, block, to.add(i), size);
    }
}
