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
        ($($case:ident = $f:ident),*) => {
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
            }
        };
    }
    each!(
        Exp = exp,
        Sigmoid = sigmoid,
        Tanh = tanh,
        Erf = erf,
        Sqrt = sqrt,
        Rsqrt = rsqrt,
        Negative = negative,
        Abs = abs,
        Square = square
    )
}
