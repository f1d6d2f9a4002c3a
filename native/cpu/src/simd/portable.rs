//! The form of [`Simd`] that any machine has.

use super::Simd;
use crate::element::Element;
use half::{bf16, f16};

/// The form that any machine has; the compiler makes of it what the target allows.
#[derive(Clone, Copy)]
pub struct Portable;

const WIDTH: usize = 8;

/// x86-64's baseline has no such instruction, and the C library's function is slow.
const HAS_FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// To the nearest integer, halves to the even one. From 2²³ on there are no fractions; below, adding 2²³ leaves no
/// room for one.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    let whole = ((x.abs() + 8_388_608.0) - 8_388_608.0).copysign(x);
    if x.abs() < 8_388_608.0 {
        whole
    } else {
        x
    }
}

macro_rules! lanes {
    (|$i:ident| $value:expr) => {{
        let mut out = [0f32; WIDTH];
        for ($i, slot) in out.iter_mut().enumerate() {
            *slot = $value;
        }
        out
    }};
}

impl Simd for Portable {
    type V = [f32; WIDTH];
    type M = [bool; WIDTH];
    type Wide = [f64; WIDTH];
    const LANES: usize = WIDTH;
    const HAS_FMA: bool = HAS_FMA;

    #[inline(always)]
    unsafe fn wide_splat(x: f64) -> Self::Wide {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn wide_load(from: *const f64) -> Self::Wide {
        from.cast::<Self::Wide>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn wide_store(to: *mut f64, x: Self::Wide) {
        to.cast::<Self::Wide>().write_unaligned(x)
    }
    #[inline(always)]
    unsafe fn widen(x: Self::V) -> Self::Wide {
        x.map(f64::from)
    }
    #[inline(always)]
    unsafe fn narrow(x: Self::Wide) -> Self::V {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn wide_add(a: Self::Wide, b: Self::Wide) -> Self::Wide {
        let mut out = a;
        out.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        out
    }
    #[inline(always)]
    unsafe fn wide_sub(a: Self::Wide, b: Self::Wide) -> Self::Wide {
        let mut out = a;
        out.iter_mut().zip(b).for_each(|(a, b)| *a -= b);
        out
    }
    #[inline(always)]
    unsafe fn wide_fma(a: Self::Wide, b: Self::Wide, c: Self::Wide) -> Self::Wide {
        let mut out = c;
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = if HAS_FMA {
                a[i].mul_add(b[i], *slot)
            } else {
                a[i] * b[i] + *slot
            };
        }
        out
    }
    #[inline(always)]
    unsafe fn wide_mul(a: Self::Wide, b: Self::Wide) -> Self::Wide {
        let mut out = a;
        out.iter_mut().zip(b).for_each(|(a, b)| *a *= b);
        out
    }

    #[inline(always)]
    unsafe fn wide_div(a: Self::Wide, b: Self::Wide) -> Self::Wide {
        let mut out = a;
        out.iter_mut().zip(b).for_each(|(a, b)| *a /= b);
        out
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; WIDTH]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        from.cast::<Self::V>().read_unaligned()
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::V) {
        to.cast::<Self::V>().write_unaligned(x)
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        lanes!(|i| bf16::widen(bf16::from_bits(from.add(i).read_unaligned())))
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: Self::V) {
        for (i, value) in x.iter().enumerate() {
            to.add(i).write(bf16::narrow(*value).to_bits());
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        lanes!(|i| f16::widen(f16::from_bits(from.add(i).read_unaligned())))
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self::V {
        lanes!(|i| f32::from(*from.add(i)))
    }
    #[inline(always)]
    unsafe fn load_u4(from: *const u8) -> Self::V {
        lanes!(|i| f32::from((*from.add(i / 2) >> (i % 2 * 4)) & 15))
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::V) {
        for (i, value) in x.iter().enumerate() {
            to.add(i).write(f16::narrow(*value).to_bits());
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if HAS_FMA {
            lanes!(|i| a[i].mul_add(b[i], c[i]))
        } else {
            lanes!(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn fused(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        if HAS_FMA {
            return Self::fma(a, b, c);
        }
        lanes!(|i| (f64::from(a[i]) * f64::from(b[i]) + f64::from(c[i])) as f32)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn sqrt(x: Self::V) -> Self::V {
        lanes!(|i| x[i].sqrt())
    }
    #[inline(always)]
    unsafe fn round(x: Self::V) -> Self::V {
        lanes!(|i| nearest(x[i]))
    }
    #[inline(always)]
    unsafe fn floor(x: Self::V) -> Self::V {
        lanes!(|i| {
            let whole = nearest(x[i]);
            let whole = if whole > x[i] { whole - 1.0 } else { whole };
            whole.copysign(x[i])
        })
    }
    #[inline(always)]
    unsafe fn ceil(x: Self::V) -> Self::V {
        lanes!(|i| {
            let whole = nearest(x[i]);
            let whole = if whole < x[i] { whole + 1.0 } else { whole };
            whole.copysign(x[i])
        })
    }
    #[inline(always)]
    unsafe fn trunc(x: Self::V) -> Self::V {
        lanes!(|i| {
            let whole = nearest(x[i].abs());
            let whole = if whole > x[i].abs() {
                whole - 1.0
            } else {
                whole
            };
            whole.copysign(x[i])
        })
    }
    #[inline(always)]
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V {
        lanes!(|i| {
            let n = n[i] as i32;
            let half = n >> 1;
            let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
            x[i] * power(half) * power(n - half)
        })
    }
    #[inline(always)]
    unsafe fn split(x: Self::V) -> (Self::V, Self::V) {
        let half = std::f32::consts::FRAC_1_SQRT_2.to_bits();
        let power = |x: f32| (x.to_bits().wrapping_sub(half)) as i32 >> 23;
        (
            lanes!(|i| f32::from_bits(x[i].to_bits().wrapping_sub((power(x[i]) << 23) as u32))),
            lanes!(|i| power(x[i]) as f32),
        )
    }
    #[inline(always)]
    unsafe fn shift_left<const N: u32>(x: Self::V) -> Self::V {
        lanes!(|i| f32::from_bits(x[i].to_bits() << N))
    }
    #[inline(always)]
    unsafe fn abs(x: Self::V) -> Self::V {
        lanes!(|i| x[i].abs())
    }
    #[inline(always)]
    unsafe fn copysign(x: Self::V, sign: Self::V) -> Self::V {
        lanes!(|i| x[i].copysign(sign[i]))
    }
    #[inline(always)]
    unsafe fn flip(x: Self::V, sign: Self::V) -> Self::V {
        lanes!(|i| f32::from_bits(x[i].to_bits() ^ sign[i].to_bits() & 0x8000_0000))
    }
    #[inline(always)]
    unsafe fn is_nan(x: Self::V) -> Self::M {
        x.map(f32::is_nan)
    }
    #[inline(always)]
    unsafe fn less(a: Self::V, b: Self::V) -> Self::M {
        let mut out = [false; WIDTH];
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = a[i] < b[i];
        }
        out
    }
    #[inline(always)]
    unsafe fn equal(a: Self::V, b: Self::V) -> Self::M {
        let mut out = [false; WIDTH];
        for (i, slot) in out.iter_mut().enumerate() {
            *slot = a[i] == b[i];
        }
        out
    }
    #[inline(always)]
    unsafe fn is_signed(x: Self::V) -> Self::M {
        x.map(f32::is_sign_negative)
    }
    #[inline(always)]
    unsafe fn all(mask: Self::M) -> bool {
        mask.iter().all(|lane| *lane)
    }
    #[inline(always)]
    unsafe fn select(mask: Self::M, yes: Self::V, no: Self::V) -> Self::V {
        lanes!(|i| if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    unsafe fn sum(x: Self::V) -> f32 {
        ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]))
    }
    #[inline(always)]
    unsafe fn largest(x: Self::V) -> f32 {
        x.iter().fold(x[0], |a, b| if a > *b { a } else { *b })
    }
    #[inline(always)]
    unsafe fn turn(square: &mut [Self::V; 16]) {
        let from = *square;
        for (i, row) in square.iter_mut().enumerate().take(WIDTH) {
            *row = lanes!(|j| from[j][i]);
        }
    }
}
