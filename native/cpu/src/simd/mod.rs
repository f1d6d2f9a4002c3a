//! Vectors of f32 for the kernels, and of f64 for their sums: one trait, and AVX-512, AVX2 and portable forms of it. A
//! kernel is written once over [`Simd`]; [`dispatch!`] compiles it for each form and calls the best that the machine
//! has.
//!
//! The crate pulp (0.22) has such a trait and picks the form as well. Its trait cannot be extended outside of it, and
//! has no conversion between f32 and bf16, f16, f64 or integers of 8 bits, which nearly every kernel here begins or
//! ends with.

mod portable;
pub mod whole;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::element::Element;
pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// Operations on `LANES` numbers. All are unsafe to call where the machine lacks the form's instructions; `max` and
/// `min` give their second argument where either is NaN.
pub trait Simd: Copy + 'static {
    type V: Copy;
    type M: Copy;
    /// As many numbers of f64, in which sums are kept.
    type Wide: Copy;
    const LANES: usize;
    /// Whether [`fma`](Simd::fma) rounds once.
    const HAS_FMA: bool;

    unsafe fn wide_splat(x: f64) -> Self::Wide;
    unsafe fn wide_load(from: *const f64) -> Self::Wide;
    unsafe fn wide_store(to: *mut f64, x: Self::Wide);
    unsafe fn widen(x: Self::V) -> Self::Wide;
    unsafe fn narrow(x: Self::Wide) -> Self::V;
    unsafe fn wide_add(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    unsafe fn wide_sub(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    unsafe fn wide_mul(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    unsafe fn wide_div(a: Self::Wide, b: Self::Wide) -> Self::Wide;
    /// a · b + c, rounded once where the machine can.
    unsafe fn wide_fma(a: Self::Wide, b: Self::Wide, c: Self::Wide) -> Self::Wide;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, x: Self::V);
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    unsafe fn store_bf16(to: *mut u16, x: Self::V);
    unsafe fn load_f16(from: *const u16) -> Self::V;
    /// Whole numbers of 8 bits.
    unsafe fn load_u8(from: *const u8) -> Self::V;
    /// Whole numbers of 4 bits, the lower half of a byte before the upper one.
    unsafe fn load_u4(from: *const u8) -> Self::V;
    unsafe fn store_f16(to: *mut u16, x: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once where the machine can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// a · b + c, computed in f64 where [`fma`](Simd::fma) rounds twice: for errors of products, which are lost there.
    unsafe fn fused(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(x: Self::V) -> Self::V;
    /// To the nearest integer, halves to the even one.
    unsafe fn round(x: Self::V) -> Self::V;
    unsafe fn floor(x: Self::V) -> Self::V;
    unsafe fn ceil(x: Self::V) -> Self::V;
    unsafe fn trunc(x: Self::V) -> Self::V;
    /// x · 2ⁿ for whole n between -252 and 254, rounded as the exact product is.
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V;
    /// m and n with x = m · 2ⁿ and m from √½ to √2, for positive x that are neither subnormal nor infinite.
    unsafe fn split(x: Self::V) -> (Self::V, Self::V);
    /// The bits of `x`, moved up by `N` places.
    unsafe fn shift_left<const N: u32>(x: Self::V) -> Self::V;
    unsafe fn abs(x: Self::V) -> Self::V;
    /// The magnitude of `x` with the sign of `sign`.
    unsafe fn copysign(x: Self::V, sign: Self::V) -> Self::V;
    /// `x` with its sign turned where `sign` has one.
    unsafe fn flip(x: Self::V, sign: Self::V) -> Self::V;
    unsafe fn less(a: Self::V, b: Self::V) -> Self::M;
    unsafe fn equal(a: Self::V, b: Self::V) -> Self::M;
    /// Whether the sign's bit is set.
    unsafe fn is_signed(x: Self::V) -> Self::M;
    unsafe fn all(mask: Self::M) -> bool;
    unsafe fn is_nan(x: Self::V) -> Self::M;
    unsafe fn select(mask: Self::M, yes: Self::V, no: Self::V) -> Self::V;
    unsafe fn sum(x: Self::V) -> f32;
    unsafe fn largest(x: Self::V) -> f32;
    /// Rows for columns, of the first `LANES` vectors.
    unsafe fn turn(square: &mut [Self::V; 16]);
    /// Asks for a line of memory ahead of its use. Any address will do.
    #[inline(always)]
    unsafe fn prefetch<T>(from: *const T) {
        let _ = from;
    }

    /// The same, into the second cache.
    #[inline(always)]
    unsafe fn prefetch_second<T>(from: *const T) {
        let _ = from;
    }

    #[inline(always)]
    unsafe fn neg(x: Self::V) -> Self::V {
        Self::sub(Self::splat(-0.0), x)
    }

    #[inline(always)]
    unsafe fn wide_sum(x: Self::Wide) -> f64 {
        let mut lanes = [0f64; 16];
        Self::wide_store(lanes.as_mut_ptr(), x);
        let mut count = Self::LANES;
        while count > 1 {
            count /= 2;
            for i in 0..count {
                lanes[i] += lanes[i + count];
            }
        }
        lanes[0]
    }

    #[inline(always)]
    unsafe fn wide_product(x: Self::Wide) -> f64 {
        let mut lanes = [1f64; 16];
        Self::wide_store(lanes.as_mut_ptr(), x);
        lanes.iter().take(Self::LANES).product()
    }
}

/// `x` with zeros, or what `fill` says, beyond the first `count` elements.
#[inline(always)]
pub unsafe fn load_part<S: Simd, T: Element>(from: *const T, count: usize, fill: f32) -> S::V {
    let mut part = [fill; 16];
    for (i, slot) in part.iter_mut().enumerate().take(count) {
        *slot = T::widen(from.add(i).read());
    }
    S::load(part.as_ptr())
}

#[inline(always)]
pub unsafe fn store_part<S: Simd, T: Element>(to: *mut T, count: usize, x: S::V) {
    let mut part = [0f32; 16];
    S::store(part.as_mut_ptr(), x);
    for (i, value) in part.iter().enumerate().take(count) {
        to.add(i).write(T::narrow(*value));
    }
}

/// What the machine has, asked once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with products of bf16, which matrix products and attention take (panels.rs); else as AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Level {
    /// All that this machine can run, the best one last.
    pub fn all() -> Vec<Level> {
        #[allow(unused_mut)]
        let mut all = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 {
                all.push(Level::Avx2);
            }
            if avx512 {
                all.push(Level::Avx512);
            }
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                all.push(Level::Avx512Bf16);
            }
        }
        all
    }

    pub fn best() -> Level {
        static BEST: once_cell::sync::OnceCell<Level> = once_cell::sync::OnceCell::new();
        *BEST.get_or_init(|| Level::all().pop().unwrap_or(Level::Portable))
    }
}

/// Defines `$name`, which runs `$body::<S, …>` in the form that `level` says: the generic function is compiled anew,
/// with all that it inlines, for each.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$($T:ident: $bound:path),+>)? ($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis unsafe fn $name $(<$($T: $bound),+>)? (level: $crate::simd::Level, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512 $(<$($T: $bound),+>)? ($($arg: $type),*) {
                $body::<$crate::simd::Avx512 $($(, $T)+)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2 $(<$($T: $bound),+>)? ($($arg: $type),*) {
                $body::<$crate::simd::Avx2 $($(, $T)+)?>($($arg),*)
            }
            match level {
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 | $crate::simd::Level::Avx512Bf16 => avx512 $(::<$($T),+>)? ($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => avx2 $(::<$($T),+>)? ($($arg),*),
                $crate::simd::Level::Portable => {
                    $body::<$crate::simd::Portable $($(, $T)+)?>($($arg),*)
                }
            }
        }
    };
}

pub(crate) use dispatch;
