//! Indices of any integer type, read as 64 bits with signs: those of 64 bits without signs that are beyond these are
//! the largest.

use super::{Type, View};

/// Indices that are read at a time.
pub const BLOCK: usize = 256;

/// `to.len()` indices from number `first` of an array on, in row-major order.
///
/// # Safety
/// The array has them, of the type `of`.
pub unsafe fn read(of: Type, view: &View, first: usize, to: &mut [i64]) {
    let (_, count) = view.rows();
    let mut done = 0;
    while done < to.len() {
        let (row, column) = ((first + done) / count, (first + done) % count);
        let length = (count - column).min(to.len() - done);
        let start = view.row(row) + column as isize * view.step();
        line(of, view, start, view.step(), &mut to[done..done + length]);
        done += length;
    }
}

/// `to.len()` indices that lie `step` elements apart, the first of them `start` elements behind the array's first.
///
/// # Safety
/// The array has them, of the type `of`.
pub unsafe fn line(of: Type, view: &View, start: isize, step: isize, to: &mut [i64]) {
    macro_rules! read {
        ($T:ty, $wide:expr) => {{
            let from = view.data.cast::<$T>().cast_const().offset(start);
            match step {
                1 => (0..to.len()).for_each(|i| to[i] = $wide(from.add(i).read())),
                _ => (0..to.len()).for_each(|i| {
                    to[i] = $wide(from.offset(i as isize * step).read());
                }),
            }
        }};
    }
    match of {
        Type::U8 => read!(u8, i64::from),
        Type::U16 => read!(u16, i64::from),
        Type::U32 => read!(u32, i64::from),
        Type::U64 => read!(u64, |x: u64| x.min(i64::MAX as u64) as i64),
        Type::S8 => read!(i8, i64::from),
        Type::S16 => read!(i16, i64::from),
        Type::S32 => read!(i32, i64::from),
        Type::S64 => read!(i64, |x| x),
        other => unreachable!("indices of {other:?}"),
    }
}

/// Brought into an axis of which `last` is the largest place, negative ones counted from the end.
pub fn bring_within(indices: &mut [i64], length: i64, last: i64) {
    for index in indices {
        let counted = if *index < 0 { *index + length } else { *index };
        *index = counted.clamp(0, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::in_rows;

    #[test]
    fn indices_of_every_type_are_read_in_any_layout() {
        macro_rules! check {
            ($($T:ty, $of:ident;)*) => { $(
                let data: Vec<$T> = (0..40).map(|i| (i * 3) as $T).collect();
                for (shape, strides) in [([5, 8], in_rows(&[5, 8])), ([5, 8], vec![1, 5]), ([4, 5], vec![10, 2])] {
                    // SAFETY: of arrays of the test's own, which outlive it.
                    let view = unsafe { View::of(data.as_ptr(), &shape, &strides) };
                    let mut have = vec![0; view.size() - 3];
                    // SAFETY: so many are there.
                    unsafe { read(Type::$of, &view, 3, &mut have) };
                    let place = |i: usize| i / shape[1] as usize * strides[0] as usize
                        + i % shape[1] as usize * strides[1] as usize;
                    let want: Vec<i64> = (3..view.size()).map(|i| data[place(i)] as i64).collect();
                    assert_eq!(have, want, "{:?}", Type::$of);
                }
            )* };
        }
        check! { u8, U8; u16, U16; u32, U32; u64, U64; i8, S8; i16, S16; i32, S32; i64, S64; }
        let (data, one) = ([u64::MAX, 1 << 63, 7], [1]);
        let mut have = [0; 3];
        // SAFETY: three of them.
        unsafe {
            read(
                Type::U64,
                &View::of(data.as_ptr(), &[3], &one),
                0,
                &mut have,
            )
        };
        assert_eq!(have, [i64::MAX, i64::MAX, 7]);
        bring_within(&mut have, 5, 4);
        assert_eq!(have, [4, 4, 4]);
        let mut have = [-1, -5, -6, i64::MIN, 0];
        bring_within(&mut have, 5, 3);
        assert_eq!(have, [3, 0, 0, 0, 0]);
    }
}
