//! Vectors of whole numbers of 16, 32 and 64 bits, whose arithmetic wraps round, in the forms of [`Simd`].

#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
use super::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Operations on `COUNT` whole numbers. As unsafe to call as those of [`Simd`].
pub trait Whole<T>: Simd {
    type W: Copy;
    const COUNT: usize;

    unsafe fn whole_splat(x: T) -> Self::W;
    unsafe fn whole_load(from: *const T) -> Self::W;
    unsafe fn whole_store(to: *mut T, x: Self::W);
    unsafe fn whole_add(a: Self::W, b: Self::W) -> Self::W;
    unsafe fn whole_mul(a: Self::W, b: Self::W) -> Self::W;
}

macro_rules! portable {
    ($($t:ty => $count:literal),+) => { $(
        impl Whole<$t> for Portable {
            type W = [$t; $count];
            const COUNT: usize = $count;
            #[inline(always)]
            unsafe fn whole_splat(x: $t) -> Self::W {
                [x; $count]
            }
            #[inline(always)]
            unsafe fn whole_load(from: *const $t) -> Self::W {
                from.cast::<Self::W>().read_unaligned()
            }
            #[inline(always)]
            unsafe fn whole_store(to: *mut $t, x: Self::W) {
                to.cast::<Self::W>().write_unaligned(x)
            }
            #[inline(always)]
            unsafe fn whole_add(a: Self::W, b: Self::W) -> Self::W {
                let mut out = a;
                out.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_add(b));
                out
            }
            #[inline(always)]
            unsafe fn whole_mul(a: Self::W, b: Self::W) -> Self::W {
                let mut out = a;
                out.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_mul(b));
                out
            }
        }
    )+ };
}

portable!(u16 => 8, u32 => 4, u64 => 2);

#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($($form:ident, $t:ty as $as:ty: $vector:ty, $count:literal,
       $splat:ident, $load:ident, $store:ident, $add:ident, $mul:ident;)+) => { $(
        impl Whole<$t> for $form {
            type W = $vector;
            const COUNT: usize = $count;
            #[inline(always)]
            unsafe fn whole_splat(x: $t) -> $vector {
                $splat(x as $as)
            }
            #[inline(always)]
            unsafe fn whole_load(from: *const $t) -> $vector {
                $load(from.cast())
            }
            #[inline(always)]
            unsafe fn whole_store(to: *mut $t, x: $vector) {
                $store(to.cast(), x)
            }
            #[inline(always)]
            unsafe fn whole_add(a: $vector, b: $vector) -> $vector {
                $add(a, b)
            }
            #[inline(always)]
            unsafe fn whole_mul(a: $vector, b: $vector) -> $vector {
                $mul(a, b)
            }
        }
    )+ };
}

/// The lower 64 bits of products, of three products of halves: AVX2 has none of 64 bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn mul_64(a: __m256i, b: __m256i) -> __m256i {
    let first = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), b);
    let second = _mm256_mul_epu32(a, _mm256_srli_epi64(b, 32));
    let upper = _mm256_slli_epi64(_mm256_add_epi64(first, second), 32);
    _mm256_add_epi64(_mm256_mul_epu32(a, b), upper)
}

#[cfg(target_arch = "x86_64")]
x86! {
    Avx2, u16 as i16: __m256i, 16,
        _mm256_set1_epi16, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi16, _mm256_mullo_epi16;
    Avx2, u32 as i32: __m256i, 8,
        _mm256_set1_epi32, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi32, _mm256_mullo_epi32;
    Avx2, u64 as i64: __m256i, 4,
        _mm256_set1_epi64x, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_add_epi64, mul_64;
    Avx512, u16 as i16: __m512i, 32,
        _mm512_set1_epi16, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_add_epi16, _mm512_mullo_epi16;
    Avx512, u32 as i32: __m512i, 16,
        _mm512_set1_epi32, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_add_epi32, _mm512_mullo_epi32;
    Avx512, u64 as i64: __m512i, 8,
        _mm512_set1_epi64, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_add_epi64, _mm512_mullo_epi64;
}
