//! How vectors of 8-bit integers are multiplied: by VPDPBUSD, or, where the processor lacks it, as integers of 16 bits.
//! VPMADDUBSW, which AVX2 has for 8 bits, saturates, so no form uses it: every form has the same sums.

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Level, Portable, Simd};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Which instructions multiply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with VPDPBUSD.
    #[cfg(target_arch = "x86_64")]
    Vnni,
}

impl Form {
    /// All that this machine can run, the best one last.
    pub fn all() -> Vec<Form> {
        let mut all = Vec::new();
        for level in Level::all() {
            match level {
                Level::Portable => all.push(Form::Portable),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => all.push(Form::Avx2),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 => {
                    all.push(Form::Avx512);
                    if is_x86_feature_detected!("avx512vnni") {
                        all.push(Form::Vnni);
                    }
                }
                // Products of bf16 are not needed here.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16 => {}
            }
        }
        all
    }

    pub fn best() -> Form {
        static BEST: once_cell::sync::OnceCell<Form> = once_cell::sync::OnceCell::new();
        *BEST.get_or_init(|| Form::all().pop().unwrap_or(Form::Portable))
    }

    /// Terms of a unit.
    pub fn terms(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni => Vnni::TERMS,
            _ => 2,
        }
    }
}

/// Vectors of 32-bit lanes, each of which is a sum or a *unit*: as many terms of an operand as are multiplied at once.
/// All functions are unsafe to call where the machine lacks the form's instructions.
pub trait Integers: Copy + 'static {
    type S: Simd;
    type I: Copy;
    /// Terms of a unit: 4 of 8 bits, or 2 of 16.
    const TERMS: usize;
    /// What is added to the numbers of columns, since VPDPBUSD takes one operand without a sign.
    const OFFSET: i32;

    unsafe fn splat(x: i32) -> Self::I;
    unsafe fn load(from: *const i32) -> Self::I;
    unsafe fn store(to: *mut i32, x: Self::I);
    unsafe fn add(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub(a: Self::I, b: Self::I) -> Self::I;
    /// `sum` plus the products of the terms of units of columns, made [`unsigned`](Integers::unsigned), and of rows.
    /// Wraps.
    unsafe fn dot(sum: Self::I, columns: Self::I, rows: Self::I) -> Self::I;
    /// Units with the offset added to each term.
    #[inline(always)]
    unsafe fn unsigned(x: Self::I) -> Self::I {
        x
    }
    unsafe fn float(x: Self::I) -> <Self::S as Simd>::V;
    unsafe fn sum(x: Self::I) -> i32;
    #[inline(always)]
    unsafe fn four_sums(x: [Self::I; 4]) -> [i32; 4] {
        std::array::from_fn(|i| Self::sum(x[i]))
    }
    /// Rounds a vector of numbers up to ±127 to integers, halves to the even one, and writes them as terms.
    unsafe fn round(to: *mut u8, x: <Self::S as Simd>::V);
    /// A vector of units: `TERMS` times `LANES` integers.
    unsafe fn units(from: *const i8) -> Self::I;
    /// Of each lane's four terms of 8 bits the first two, and the last two, in 16 bits each.
    unsafe fn halves(quads: Self::I) -> [Self::I; 2];
}

const WIDTH: usize = Portable::LANES;

fn terms_of(unit: i32) -> [i32; 2] {
    [i32::from(unit as i16), unit >> 16]
}

impl Integers for Portable {
    type S = Portable;
    type I = [i32; WIDTH];
    const TERMS: usize = 2;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: i32) -> [i32; WIDTH] {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> [i32; WIDTH] {
        from.cast::<[i32; WIDTH]>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, x: [i32; WIDTH]) {
        to.cast::<[i32; WIDTH]>().write_unaligned(x)
    }
    #[inline(always)]
    unsafe fn add(a: [i32; WIDTH], b: [i32; WIDTH]) -> [i32; WIDTH] {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn sub(a: [i32; WIDTH], b: [i32; WIDTH]) -> [i32; WIDTH] {
        std::array::from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn dot(sum: [i32; WIDTH], columns: [i32; WIDTH], rows: [i32; WIDTH]) -> [i32; WIDTH] {
        std::array::from_fn(|i| {
            let ([a, b], [c, d]) = (terms_of(columns[i]), terms_of(rows[i]));
            sum[i].wrapping_add(a * c).wrapping_add(b * d)
        })
    }
    #[inline(always)]
    unsafe fn float(x: [i32; WIDTH]) -> [f32; WIDTH] {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn sum(x: [i32; WIDTH]) -> i32 {
        x.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn round(to: *mut u8, x: [f32; WIDTH]) {
        let whole = <Portable as Simd>::round(x).map(|x| x as i16);
        to.cast::<[i16; WIDTH]>().write_unaligned(whole);
    }
    #[inline(always)]
    unsafe fn units(from: *const i8) -> [i32; WIDTH] {
        std::array::from_fn(|i| {
            let (low, high) = (from.add(2 * i).read(), from.add(2 * i + 1).read());
            i32::from(high) << 16 | i32::from(i16::from(low) as u16)
        })
    }
    #[inline(always)]
    unsafe fn halves(quads: [i32; WIDTH]) -> [[i32; WIDTH]; 2] {
        let mut units = [[0; WIDTH]; 2];
        for (i, quad) in quads.iter().enumerate() {
            let terms = quad.to_le_bytes();
            for (half, unit) in units.iter_mut().enumerate() {
                let (low, high) = (terms[2 * half] as i8, terms[2 * half + 1] as i8);
                unit[i] = i32::from(high) << 16 | i32::from(i16::from(low) as u16);
            }
        }
        units
    }
}

/// Where the bytes of a lane's terms go, so that an arithmetic shift widens them: of its first two terms, and of its
/// last two. Bytes of -1 are zeros.
#[cfg(target_arch = "x86_64")]
const UPPER_BYTES: [[i8; 16]; 2] = [
    [-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13],
    [-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15],
];

#[cfg(target_arch = "x86_64")]
impl Integers for Avx2 {
    type S = Avx2;
    type I = __m256i;
    const TERMS: usize = 2;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn splat(x: i32) -> __m256i {
        _mm256_set1_epi32(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const i32) -> __m256i {
        _mm256_loadu_si256(from.cast())
    }
    #[inline(always)]
    unsafe fn store(to: *mut i32, x: __m256i) {
        _mm256_storeu_si256(to.cast(), x)
    }
    #[inline(always)]
    unsafe fn add(a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m256i, b: __m256i) -> __m256i {
        _mm256_sub_epi32(a, b)
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, columns: __m256i, rows: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(columns, rows))
    }
    #[inline(always)]
    unsafe fn float(x: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(x)
    }
    #[inline(always)]
    unsafe fn sum(x: __m256i) -> i32 {
        let mut lanes = [0; Avx2::LANES];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), x);
        lanes.into_iter().fold(0, i32::wrapping_add)
    }
    #[inline(always)]
    unsafe fn four_sums([a, b, c, d]: [__m256i; 4]) -> [i32; 4] {
        let x = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        let mut sums = [0; 4];
        _mm_storeu_si128(sums.as_mut_ptr().cast(), x);
        sums
    }
    #[inline(always)]
    unsafe fn round(to: *mut u8, x: __m256) {
        let x = _mm256_cvtps_epi32(x);
        let (low, high) = (_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
        _mm_storeu_si128(to.cast(), _mm_packs_epi32(low, high))
    }
    #[inline(always)]
    unsafe fn units(from: *const i8) -> __m256i {
        _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn halves(quads: __m256i) -> [__m256i; 2] {
        let mut units = [quads; 2];
        for (unit, places) in units.iter_mut().zip(&UPPER_BYTES) {
            let places = _mm256_broadcastsi128_si256(_mm_loadu_si128(places.as_ptr().cast()));
            *unit = _mm256_srai_epi16(_mm256_shuffle_epi8(quads, places), 8);
        }
        units
    }
}

/// What AVX-512 does the same way with and without VPDPBUSD.
#[cfg(target_arch = "x86_64")]
macro_rules! of_avx512 {
    () => {
        type S = Avx512;
        type I = __m512i;

        #[inline(always)]
        unsafe fn splat(x: i32) -> __m512i {
            _mm512_set1_epi32(x)
        }
        #[inline(always)]
        unsafe fn load(from: *const i32) -> __m512i {
            _mm512_loadu_si512(from.cast())
        }
        #[inline(always)]
        unsafe fn store(to: *mut i32, x: __m512i) {
            _mm512_storeu_si512(to.cast(), x)
        }
        #[inline(always)]
        unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
            _mm512_add_epi32(a, b)
        }
        #[inline(always)]
        unsafe fn sub(a: __m512i, b: __m512i) -> __m512i {
            _mm512_sub_epi32(a, b)
        }
        #[inline(always)]
        unsafe fn float(x: __m512i) -> __m512 {
            _mm512_cvtepi32_ps(x)
        }
        #[inline(always)]
        unsafe fn sum(x: __m512i) -> i32 {
            _mm512_reduce_add_epi32(x)
        }
        #[inline(always)]
        unsafe fn four_sums([a, b, c, d]: [__m512i; 4]) -> [i32; 4] {
            // Within quarters of the registers, then the quarters.
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            let x = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            let x = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
            let x = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
            let mut sums = [0; 4];
            _mm_storeu_si128(sums.as_mut_ptr().cast(), x);
            sums
        }
        #[inline(always)]
        unsafe fn halves(quads: __m512i) -> [__m512i; 2] {
            let mut units = [quads; 2];
            for (unit, places) in units.iter_mut().zip(&UPPER_BYTES) {
                let places = _mm512_broadcast_i32x4(_mm_loadu_si128(places.as_ptr().cast()));
                *unit = _mm512_srai_epi16(_mm512_shuffle_epi8(quads, places), 8);
            }
            units
        }
    };
}

#[cfg(target_arch = "x86_64")]
impl Integers for Avx512 {
    of_avx512!();
    const TERMS: usize = 2;
    const OFFSET: i32 = 0;

    #[inline(always)]
    unsafe fn dot(sum: __m512i, columns: __m512i, rows: __m512i) -> __m512i {
        _mm512_add_epi32(sum, _mm512_madd_epi16(columns, rows))
    }
    #[inline(always)]
    unsafe fn round(to: *mut u8, x: __m512) {
        _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x)))
    }
    #[inline(always)]
    unsafe fn units(from: *const i8) -> __m512i {
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()))
    }
}

/// AVX-512 with VPDPBUSD.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub struct Vnni;

#[cfg(target_arch = "x86_64")]
impl Integers for Vnni {
    of_avx512!();
    const TERMS: usize = 4;
    const OFFSET: i32 = 128;

    #[inline(always)]
    unsafe fn dot(sum: __m512i, columns: __m512i, rows: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sum, columns, rows)
    }
    #[inline(always)]
    unsafe fn unsigned(x: __m512i) -> __m512i {
        _mm512_xor_si512(x, _mm512_set1_epi8(i8::MIN))
    }
    #[inline(always)]
    unsafe fn round(to: *mut u8, x: __m512) {
        _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)))
    }
    #[inline(always)]
    unsafe fn units(from: *const i8) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }
}

/// Defines `$name`, which runs `$body::<F, …>` in a form: as `dispatch!` of simd does in a level.
macro_rules! in_form {
    ($vis:vis fn $name:ident $(<$T:ident: $bound:path>)? ($($arg:ident: $type:ty),* $(,)?) = $body:ident) => {
        $vis unsafe fn $name $(<$T: $bound>)? (form: $crate::gemm8::form::Form, $($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn vnni $(<$T: $bound>)? ($($arg: $type),*) {
                $body::<$crate::gemm8::form::Vnni $(, $T)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            unsafe fn avx512 $(<$T: $bound>)? ($($arg: $type),*) {
                $body::<$crate::simd::Avx512 $(, $T)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2 $(<$T: $bound>)? ($($arg: $type),*) {
                $body::<$crate::simd::Avx2 $(, $T)?>($($arg),*)
            }
            match form {
                #[cfg(target_arch = "x86_64")]
                $crate::gemm8::form::Form::Vnni => vnni $(::<$T>)? ($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::gemm8::form::Form::Avx512 => avx512 $(::<$T>)? ($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::gemm8::form::Form::Avx2 => avx2 $(::<$T>)? ($($arg),*),
                $crate::gemm8::form::Form::Portable => {
                    $body::<$crate::simd::Portable $(, $T)?>($($arg),*)
                }
            }
        }
    };
}

pub(super) use in_form;
