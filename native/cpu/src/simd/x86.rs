//! The forms of [`Simd`] with AVX2 and AVX-512.

use super::Simd;
use std::arch::x86_64::*;

/// 8 lanes: AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

impl Simd for Avx2 {
    #[inline(always)]
    unsafe fn prefetch<T>(from: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_second<T>(from: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    type V = __m256;
    type M = __m256;
    type Wide = [__m256d; 2];
    const LANES: usize = 8;
    const HAS_FMA: bool = true;

    #[inline(always)]
    unsafe fn wide_splat(x: f64) -> [__m256d; 2] {
        [_mm256_set1_pd(x); 2]
    }
    #[inline(always)]
    unsafe fn wide_load(from: *const f64) -> [__m256d; 2] {
        [_mm256_loadu_pd(from), _mm256_loadu_pd(from.add(4))]
    }
    #[inline(always)]
    unsafe fn wide_store(to: *mut f64, x: [__m256d; 2]) {
        _mm256_storeu_pd(to, x[0]);
        _mm256_storeu_pd(to.add(4), x[1]);
    }
    #[inline(always)]
    unsafe fn widen(x: __m256) -> [__m256d; 2] {
        [
            _mm256_cvtps_pd(_mm256_castps256_ps128(x)),
            _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)),
        ]
    }
    #[inline(always)]
    unsafe fn narrow(x: [__m256d; 2]) -> __m256 {
        let low = _mm256_castps128_ps256(_mm256_cvtpd_ps(x[0]));
        _mm256_insertf128_ps(low, _mm256_cvtpd_ps(x[1]), 1)
    }
    #[inline(always)]
    unsafe fn wide_add(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] {
        [_mm256_add_pd(a[0], b[0]), _mm256_add_pd(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn wide_sub(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] {
        [_mm256_sub_pd(a[0], b[0]), _mm256_sub_pd(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn wide_fma(a: [__m256d; 2], b: [__m256d; 2], c: [__m256d; 2]) -> [__m256d; 2] {
        [
            _mm256_fmadd_pd(a[0], b[0], c[0]),
            _mm256_fmadd_pd(a[1], b[1], c[1]),
        ]
    }
    #[inline(always)]
    unsafe fn wide_mul(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] {
        [_mm256_mul_pd(a[0], b[0]), _mm256_mul_pd(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn wide_div(a: [__m256d; 2], b: [__m256d; 2]) -> [__m256d; 2] {
        [_mm256_div_pd(a[0], b[0]), _mm256_div_pd(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m256) {
        _mm256_storeu_ps(to, x)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: __m256) {
        let bits = _mm256_castps_si256(x);
        let even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
        // Rounding could make an infinity of a NaN.
        let nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let bits = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
        let packed = _mm_packus_epi32(
            _mm256_castsi256_si128(bits),
            _mm256_extracti128_si256(bits, 1),
        );
        _mm_storeu_si128(to.cast(), packed)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_u4(from: *const u8) -> __m256 {
        // All eight in every lane, each moved down to the lowest bits of its own.
        let all = _mm256_set1_epi32(from.cast::<i32>().read_unaligned());
        let places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        let numbers = _mm256_and_si256(_mm256_srlv_epi32(all, places), _mm256_set1_epi32(15));
        _mm256_cvtepi32_ps(numbers)
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: __m256) {
        _mm_storeu_si128(to.cast(), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT))
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn fused(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sqrt(x: __m256) -> __m256 {
        _mm256_sqrt_ps(x)
    }
    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn floor(x: __m256) -> __m256 {
        _mm256_round_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn ceil(x: __m256) -> __m256 {
        _mm256_round_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn trunc(x: __m256) -> __m256 {
        _mm256_round_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn scale(x: __m256, n: __m256) -> __m256 {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32(n, 1);
        let rest = _mm256_sub_epi32(n, half);
        let bias = _mm256_set1_epi32(127);
        let first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
        let second = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
        let x = _mm256_mul_ps(x, _mm256_castsi256_ps(first));
        _mm256_mul_ps(x, _mm256_castsi256_ps(second))
    }
    #[inline(always)]
    unsafe fn split(x: __m256) -> (__m256, __m256) {
        let bits = _mm256_castps_si256(x);
        let half = _mm256_set1_epi32(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32);
        let power = _mm256_srai_epi32(_mm256_sub_epi32(bits, half), 23);
        let rest = _mm256_sub_epi32(bits, _mm256_slli_epi32(power, 23));
        (_mm256_castsi256_ps(rest), _mm256_cvtepi32_ps(power))
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(x: __m256) -> __m256 {
        let places = _mm_cvtsi32_si128(N as i32);
        _mm256_castsi256_ps(_mm256_sll_epi32(_mm256_castps_si256(x), places))
    }
    #[inline(always)]
    unsafe fn abs(x: __m256) -> __m256 {
        _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
    }
    #[inline(always)]
    unsafe fn copysign(x: __m256, sign: __m256) -> __m256 {
        let bit = _mm256_set1_ps(-0.0);
        _mm256_or_ps(_mm256_andnot_ps(bit, x), _mm256_and_ps(bit, sign))
    }
    #[inline(always)]
    unsafe fn flip(x: __m256, sign: __m256) -> __m256 {
        _mm256_xor_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0), sign))
    }
    #[inline(always)]
    unsafe fn is_nan(x: __m256) -> __m256 {
        _mm256_cmp_ps(x, x, _CMP_UNORD_Q)
    }
    #[inline(always)]
    unsafe fn less(a: __m256, b: __m256) -> __m256 {
        _mm256_cmp_ps(a, b, _CMP_LT_OQ)
    }
    #[inline(always)]
    unsafe fn equal(a: __m256, b: __m256) -> __m256 {
        _mm256_cmp_ps(a, b, _CMP_EQ_OQ)
    }
    #[inline(always)]
    unsafe fn is_signed(x: __m256) -> __m256 {
        x
    }
    #[inline(always)]
    unsafe fn all(mask: __m256) -> bool {
        _mm256_movemask_ps(mask) == 0xff
    }
    #[inline(always)]
    unsafe fn select(mask: __m256, yes: __m256, no: __m256) -> __m256 {
        _mm256_blendv_ps(no, yes, mask)
    }
    #[inline(always)]
    unsafe fn sum(x: __m256) -> f32 {
        let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }
    #[inline(always)]
    unsafe fn largest(x: __m256) -> f32 {
        let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
    }
    #[inline(always)]
    unsafe fn turn(square: &mut [__m256; 16]) {
        // Squares of four within half registers, then the halves.
        for four in 0..2 {
            let (a, b) = (square[4 * four], square[4 * four + 1]);
            let (c, d) = (square[4 * four + 2], square[4 * four + 3]);
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            square[4 * four] = _mm256_shuffle_ps(ab, cd, 0x44);
            square[4 * four + 1] = _mm256_shuffle_ps(ab, cd, 0xee);
            square[4 * four + 2] = _mm256_shuffle_ps(ab_high, cd_high, 0x44);
            square[4 * four + 3] = _mm256_shuffle_ps(ab_high, cd_high, 0xee);
        }
        for i in 0..4 {
            let (a, b) = (square[i], square[4 + i]);
            square[i] = _mm256_permute2f128_ps(a, b, 0x20);
            square[4 + i] = _mm256_permute2f128_ps(a, b, 0x31);
        }
    }
}

/// 16 lanes: AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub struct Avx512;

impl Simd for Avx512 {
    #[inline(always)]
    unsafe fn prefetch<T>(from: *const T) {
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_second<T>(from: *const T) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    type V = __m512;
    type M = __mmask16;
    type Wide = [__m512d; 2];
    const LANES: usize = 16;
    const HAS_FMA: bool = true;

    #[inline(always)]
    unsafe fn wide_splat(x: f64) -> [__m512d; 2] {
        [_mm512_set1_pd(x); 2]
    }
    #[inline(always)]
    unsafe fn wide_load(from: *const f64) -> [__m512d; 2] {
        [_mm512_loadu_pd(from), _mm512_loadu_pd(from.add(8))]
    }
    #[inline(always)]
    unsafe fn wide_store(to: *mut f64, x: [__m512d; 2]) {
        _mm512_storeu_pd(to, x[0]);
        _mm512_storeu_pd(to.add(8), x[1]);
    }
    #[inline(always)]
    unsafe fn widen(x: __m512) -> [__m512d; 2] {
        [
            _mm512_cvtps_pd(_mm512_castps512_ps256(x)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)),
        ]
    }
    #[inline(always)]
    unsafe fn narrow(x: [__m512d; 2]) -> __m512 {
        let low = _mm512_castps256_ps512(_mm512_cvtpd_ps(x[0]));
        _mm512_insertf32x8(low, _mm512_cvtpd_ps(x[1]), 1)
    }
    #[inline(always)]
    unsafe fn wide_add(a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        [_mm512_add_pd(a[0], b[0]), _mm512_add_pd(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn wide_sub(a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        [_mm512_sub_pd(a[0], b[0]), _mm512_sub_pd(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn wide_fma(a: [__m512d; 2], b: [__m512d; 2], c: [__m512d; 2]) -> [__m512d; 2] {
        [
            _mm512_fmadd_pd(a[0], b[0], c[0]),
            _mm512_fmadd_pd(a[1], b[1], c[1]),
        ]
    }
    #[inline(always)]
    unsafe fn wide_mul(a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        [_mm512_mul_pd(a[0], b[0]), _mm512_mul_pd(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn wide_div(a: [__m512d; 2], b: [__m512d; 2]) -> [__m512d; 2] {
        [_mm512_div_pd(a[0], b[0]), _mm512_div_pd(a[1], b[1])]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        _mm512_storeu_ps(to, x)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: __m512) {
        let bits = _mm512_castps_si512(x);
        let even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
        // Rounding could make an infinity of a NaN.
        let nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let bits = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
        _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(bits))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
    }
    #[inline(always)]
    unsafe fn load_u4(from: *const u8) -> __m512 {
        // Eight in every lane of a half, each moved down to the lowest bits of its own.
        let low = _mm512_set1_epi32(from.cast::<i32>().read_unaligned());
        let high = from.add(4).cast::<i32>().read_unaligned();
        let all = _mm512_mask_set1_epi32(low, 0xff00, high);
        let places = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
        let numbers = _mm512_and_si512(_mm512_srlv_epi32(all, places), _mm512_set1_epi32(15));
        _mm512_cvtepi32_ps(numbers)
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: __m512) {
        let half = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(to.cast(), half)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn fused(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sqrt(x: __m512) -> __m512 {
        _mm512_sqrt_ps(x)
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn floor(x: __m512) -> __m512 {
        _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn ceil(x: __m512) -> __m512 {
        _mm512_roundscale_ps(x, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn trunc(x: __m512) -> __m512 {
        _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
    }
    #[inline(always)]
    unsafe fn scale(x: __m512, n: __m512) -> __m512 {
        _mm512_scalef_ps(x, n)
    }
    #[inline(always)]
    unsafe fn split(x: __m512) -> (__m512, __m512) {
        let bits = _mm512_castps_si512(x);
        let half = _mm512_set1_epi32(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32);
        let power = _mm512_srai_epi32(_mm512_sub_epi32(bits, half), 23);
        let rest = _mm512_sub_epi32(bits, _mm512_slli_epi32(power, 23));
        (_mm512_castsi512_ps(rest), _mm512_cvtepi32_ps(power))
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(x: __m512) -> __m512 {
        let places = _mm_cvtsi32_si128(N as i32);
        _mm512_castsi512_ps(_mm512_sll_epi32(_mm512_castps_si512(x), places))
    }
    #[inline(always)]
    unsafe fn abs(x: __m512) -> __m512 {
        _mm512_abs_ps(x)
    }
    #[inline(always)]
    unsafe fn copysign(x: __m512, sign: __m512) -> __m512 {
        let bit = _mm512_set1_ps(-0.0);
        _mm512_or_ps(_mm512_andnot_ps(bit, x), _mm512_and_ps(bit, sign))
    }
    #[inline(always)]
    unsafe fn flip(x: __m512, sign: __m512) -> __m512 {
        _mm512_xor_ps(x, _mm512_and_ps(_mm512_set1_ps(-0.0), sign))
    }
    #[inline(always)]
    unsafe fn is_nan(x: __m512) -> __mmask16 {
        _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)
    }
    #[inline(always)]
    unsafe fn less(a: __m512, b: __m512) -> __mmask16 {
        _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ)
    }
    #[inline(always)]
    unsafe fn equal(a: __m512, b: __m512) -> __mmask16 {
        _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ)
    }
    #[inline(always)]
    unsafe fn is_signed(x: __m512) -> __mmask16 {
        _mm512_movepi32_mask(_mm512_castps_si512(x))
    }
    #[inline(always)]
    unsafe fn all(mask: __mmask16) -> bool {
        mask == u16::MAX
    }
    #[inline(always)]
    unsafe fn select(mask: __mmask16, yes: __m512, no: __m512) -> __m512 {
        _mm512_mask_blend_ps(mask, no, yes)
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        _mm512_reduce_add_ps(x)
    }
    #[inline(always)]
    unsafe fn largest(x: __m512) -> f32 {
        _mm512_reduce_max_ps(x)
    }
    #[inline(always)]
    unsafe fn turn(square: &mut [__m512; 16]) {
        // Squares of four within quarter registers, then the quarters.
        for four in 0..4 {
            let (a, b) = (square[4 * four], square[4 * four + 1]);
            let (c, d) = (square[4 * four + 2], square[4 * four + 3]);
            let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
            square[4 * four] = _mm512_shuffle_ps(ab, cd, 0x44);
            square[4 * four + 1] = _mm512_shuffle_ps(ab, cd, 0xee);
            square[4 * four + 2] = _mm512_shuffle_ps(ab_high, cd_high, 0x44);
            square[4 * four + 3] = _mm512_shuffle_ps(ab_high, cd_high, 0xee);
        }
        for i in 0..4 {
            let (a, b, c, d) = (square[i], square[4 + i], square[8 + i], square[12 + i]);
            // Quarters 0 and 2 of two registers, then 1 and 3.
            let (ab, cd) = (
                _mm512_shuffle_f32x4(a, b, 0x88),
                _mm512_shuffle_f32x4(c, d, 0x88),
            );
            let (ab_odd, cd_odd) = (
                _mm512_shuffle_f32x4(a, b, 0xdd),
                _mm512_shuffle_f32x4(c, d, 0xdd),
            );
            square[i] = _mm512_shuffle_f32x4(ab, cd, 0x88);
            square[8 + i] = _mm512_shuffle_f32x4(ab, cd, 0xdd);
            square[4 + i] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88);
            square[12 + i] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0xdd);
        }
    }
}
