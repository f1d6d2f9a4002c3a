//! Functions of two arrays, element by element, a row at a time.

use super::element::Element;
use super::math;
use super::simd::dispatch;
use super::simd::{load_part, store_part, Level, Simd};
use super::unary::{self, BLOCK};
use std::any::TypeId;
use std::ffi::CStr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pair {
    Add,
    Subtract,
    Multiply,
    Divide,
    Maximum,
    Minimum,
    Power,
    /// Of the point whose height is the first and whose width the second.
    Atan2,
    /// With the sign of the first, as C has it.
    Fmod,
    /// With the sign of the second, as Python has it.
    FloorMod,
}

impl Pair {
    /// Whether it takes no longer than to read and write the numbers.
    pub fn is_simple(self) -> bool {
        use Pair::*;
        matches!(self, Add | Subtract | Multiply | Maximum | Minimum)
    }

    pub fn name(self) -> &'static CStr {
        match self {
            Pair::Add => c"add",
            Pair::Subtract => c"subtract",
            Pair::Multiply => c"multiply",
            Pair::Divide => c"divide",
            Pair::Maximum => c"maximum",
            Pair::Minimum => c"minimum",
            Pair::Power => c"power",
            Pair::Atan2 => c"atan2",
            Pair::Fmod => c"fmod",
            Pair::FloorMod => c"floor_mod",
        }
    }
}

/// `count` elements of which each operand has as many, or one for all.
///
/// # Safety
/// `to` holds `count` elements, an operand `count`, or one where it is marked so.
#[allow(clippy::too_many_arguments)]
pub unsafe fn apply<T: Element>(
    level: Level,
    pair: Pair,
    a: *const T,
    a_is_one: bool,
    b: *const T,
    b_is_one: bool,
    to: *mut T,
    count: usize,
) {
    // A square is a product; math/power.rs computes it so too.
    if pair == Pair::Power && b_is_one && b.read().widen() == 2.0 {
        return apply::<T>(level, Pair::Multiply, a, a_is_one, a, a_is_one, to, count);
    }
    macro_rules! each {
        ([$($case:ident = $f:ident),*], [$($long_case:ident = $long:ident),*]) => {
            match pair {
                $(Pair::$case => {
                    #[inline(always)]
                    unsafe fn body<S: Simd, T: Element>(
                        a: *const T, a_is_one: bool, b: *const T, b_is_one: bool, to: *mut T, count: usize,
                    ) {
                        let one_a = if a_is_one { S::splat(a.read().widen()) } else { S::splat(0.0) };
                        let one_b = if b_is_one { S::splat(b.read().widen()) } else { S::splat(0.0) };
                        let mut i = 0;
                        while i + S::LANES <= count {
                            let x = if a_is_one { one_a } else { T::load::<S>(a.add(i)) };
                            let y = if b_is_one { one_b } else { T::load::<S>(b.add(i)) };
                            T::store::<S>(to.add(i), math::$f::<S>(x, y));
                            i += S::LANES;
                        }
                        if i < count {
                            let rest = count - i;
                            let x = if a_is_one { one_a } else { load_part::<S, T>(a.add(i), rest, 1.0) };
                            let y = if b_is_one { one_b } else { load_part::<S, T>(b.add(i), rest, 1.0) };
                            store_part::<S, T>(to.add(i), rest, math::$f::<S>(x, y));
                        }
                    }
                    dispatch!(fn run<T: Element>(
                        a: *const T, a_is_one: bool, b: *const T, b_is_one: bool, to: *mut T, count: usize,
                    ) = body);
                    run::<T>(level, a, a_is_one, b, b_is_one, to, count)
                })*
                $(Pair::$long_case => {
                    #[inline(always)]
                    unsafe fn body<S: Simd>(
                        a: *const f32, a_is_one: bool, b: *const f32, b_is_one: bool, to: *mut f32, count: usize,
                    ) {
                        let one_a = if a_is_one { S::splat(a.read()) } else { S::splat(0.0) };
                        let one_b = if b_is_one { S::splat(b.read()) } else { S::splat(0.0) };
                        let mut i = 0;
                        while i < count {
                            let rest = count - i;
                            let (mut x, mut y) = (one_a, one_b);
                            if rest < S::LANES {
                                if !a_is_one { x = load_part::<S, f32>(a.add(i), rest, 1.0) }
                                if !b_is_one { y = load_part::<S, f32>(b.add(i), rest, 1.0) }
                            } else {
                                if !a_is_one { x = S::load(a.add(i)) }
                                if !b_is_one { y = S::load(b.add(i)) }
                            }
                            let value = math::$long::<S>(x, y);
                            if rest < S::LANES {
                                store_part::<S, f32>(to.add(i), rest, value);
                            } else {
                                S::store(to.add(i), value);
                            }
                            i += S::LANES;
                        }
                    }
                    dispatch!(fn run(
                        a: *const f32, a_is_one: bool, b: *const f32, b_is_one: bool, to: *mut f32, count: usize,
                    ) = body);
                    in_f32::<T>(level, run, (a, a_is_one), (b, b_is_one), to, count)
                })*
            }
        };
    }
    // Those of the second kind are long. They stand once in their loop, not once more for the rest of the elements, and
    // are compiled for f32 alone.
    each!(
        [
            Add = add,
            Subtract = subtract,
            Multiply = multiply,
            Divide = divide,
            Maximum = maximum,
            Minimum = minimum
        ],
        [
            Power = power,
            Atan2 = atan2,
            Fmod = fmod,
            FloorMod = floor_mod
        ]
    )
}

type OfF32 = unsafe fn(Level, *const f32, bool, *const f32, bool, *mut f32, usize);

/// # Safety
/// `to` holds `count` elements, an operand `count`, or one where it is marked so.
unsafe fn in_f32<T: Element>(
    level: Level,
    run: OfF32,
    (a, a_is_one): (*const T, bool),
    (b, b_is_one): (*const T, bool),
    to: *mut T,
    count: usize,
) {
    if TypeId::of::<T>() == TypeId::of::<f32>() {
        let (a, b) = (a.cast(), b.cast());
        return run(level, a, a_is_one, b, b_is_one, to.cast(), count);
    }
    let (mut x, mut y) = ([0f32; BLOCK], [0f32; BLOCK]);
    let (x, y) = (x.as_mut_ptr(), y.as_mut_ptr());
    for i in (0..count).step_by(BLOCK) {
        let size = BLOCK.min(count - i);
        if !a_is_one {
            unary::widen(level, a.add(i), x, size);
        } else {
            x.write(a.read().widen());
        }
        if !b_is_one {
            unary::widen(level, b.add(i), y, size);
        } else {
            y.write(b.read().widen());
        }
        run(level, x, a_is_one, y, b_is_one, x, size);
        unary::narrow(level, x, to.add(i), size);
    }
}
