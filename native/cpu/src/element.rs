//! The types that the kernels read and write: f32, and the two of 16 bits, which are widened in registers.

use super::simd::Simd;
use half::{bf16, f16};

/// Of which type a kernel's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// Or pairs of f32, or, where numbers are only moved, any type as large.
    F32,
    F16,
    Bf16,
}

pub trait Element: Copy + Send + Sync + 'static {
    fn widen(self) -> f32;
    fn narrow(x: f32) -> Self;
    /// # Safety
    /// `S::LANES` elements can be read, and the machine has S's instructions.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// # Safety
    /// `S::LANES` elements can be written, and the machine has S's instructions.
    unsafe fn store<S: Simd>(to: *mut Self, x: S::V);
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        S::load(from)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f32, x: S::V) {
        S::store(to, x)
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        let bits = x.to_bits();
        if x.is_nan() {
            return bf16::from_bits((bits >> 16) as u16 | 0x40);
        }
        bf16::from_bits(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16) -> S::V {
        S::load_bf16(from.cast())
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut bf16, x: S::V) {
        S::store_bf16(to.cast(), x)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> f16 {
        f16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f16) -> S::V {
        S::load_f16(from.cast())
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f16, x: S::V) {
        S::store_f16(to.cast(), x)
    }
}
