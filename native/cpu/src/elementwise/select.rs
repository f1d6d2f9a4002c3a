//! Choices between elements, which go by their size alone.

use super::cell::choose;
use super::Argument;
use crate::simd::{dispatch, Level, Simd};

macro_rules! of_size {
    ($name:ident, $body:ident, $T:ty) => {
        #[inline(always)]
        unsafe fn $body<S: Simd>(
            c: Argument,
            x: Argument,
            y: Argument,
            to: *mut u8,
            count: usize,
        ) {
            choose::<S, $T>(c, x, y, to, count)
        }
        dispatch!(fn $name(c: Argument, x: Argument, y: Argument, to: *mut u8, count: usize) = $body);
    };
}

of_size!(one, one_body, u8);
of_size!(two, two_body, u16);
of_size!(four, four_body, u32);
of_size!(eight, eight_body, u64);

pub unsafe fn select(
    level: Level,
    size: usize,
    c: Argument,
    x: Argument,
    y: Argument,
    to: *mut u8,
    count: usize,
) {
    match size {
        1 => one(level, c, x, y, to, count),
        2 => two(level, c, x, y, to, count),
        4 => four(level, c, x, y, to, count),
        _ => eight(level, c, x, y, to, count),
    }
}
