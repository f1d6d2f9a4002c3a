//! Functions of one array, element by element.

use super::element::Element;
use super::math;
use super::simd::dispatch;
use super::simd::{load_part, store_part, Level, Simd};
use std::ffi::CStr;

#[derive(Clone, Copy, Debug, PartialEq)]
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
                    unsafe fn body<S: Simd, T: Element>(from: *const T, to: *mut T, count: usize) {
                        let mut i = 0;
                        while i < count {
                            let rest = count - i;
                            let x = if rest < S::LANES {
                                load_part::<S, T>(from.add(i), rest, 0.0)
                            } else {
                                T::load::<S>(from.add(i))
                            };
                            let value = math::$long::<S>(x);
                            if rest < S::LANES {
                                store_part::<S, T>(to.add(i), rest, value);
                            } else {
                                T::store::<S>(to.add(i), value);
                            }
                            i += S::LANES;
                        }
                    }
                    dispatch!(fn run<T: Element>(from: *const T, to: *mut T, count: usize) = body);
                    run::<T>(level, from, to, count)
                })*
            }
        };
    }
    // The second kind stands once in its loop, not once more for the rest of the elements: it is long, and there are nine forms of each.
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
