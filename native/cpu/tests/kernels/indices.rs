use crate::support::in_rows;
use emlx_cpu::internals::indices::{line_in, read, Range, NONE};
use emlx_cpu::internals::simd::Level;
use emlx_cpu::{Beyond, Type, View};

const ALL: [Beyond; 3] = [Beyond::Nearest, Beyond::First, Beyond::Nothing];

fn wanted(index: i128, range: &Range) -> i32 {
    let (length, last) = (i128::from(range.length), i128::from(range.last));
    let counts = range.beyond != Beyond::First;
    let place = if index < 0 && counts {
        index + length
    } else {
        index
    };
    match range.beyond {
        Beyond::Nothing if !(0..=last).contains(&place) => NONE,
        _ => place.clamp(0, last) as i32,
    }
}

#[test]
fn indices_of_every_type_are_read_in_any_layout() {
    macro_rules! check {
        ($($T:ty, $of:ident;)*) => { $(
            let mut data: Vec<$T> = (0..34).map(|i| (i * 3 % 71) as $T).collect();
            data.extend([<$T>::MIN, <$T>::MAX, <$T>::MAX - 1, <$T>::MIN + 1, <$T>::MAX / 2, 0]);
            // Of signed types, small negative ones.
            for (i, x) in data.iter_mut().enumerate().filter(|(i, _)| i % 5 == 3) {
                *x = (0 as $T).wrapping_sub(i as $T);
            }
            for (shape, strides) in [([5, 8], in_rows(&[5, 8])), ([5, 8], vec![1, 5]), ([4, 5], vec![10, 2])] {
                for (length, last, beyond) in [(60, 59), (60, 40), (1, 0), (i32::MAX, i32::MAX - 1)]
                    .into_iter()
                    .flat_map(|(length, last)| ALL.map(|beyond| (length, last, beyond)))
                {
                    let range = Range { length, last, beyond };
                    // SAFETY: of arrays of the test's own, which outlive it.
                    let view = unsafe { View::of(data.as_ptr(), &shape, &strides) };
                    let mut have = vec![0; view.size() - 3];
                    // SAFETY: so many are there.
                    unsafe { read(Type::$of, &view, 3, &range, &mut have) };
                    let place = |i: usize| i / shape[1] as usize * strides[0] as usize
                        + i % shape[1] as usize * strides[1] as usize;
                    let want: Vec<i32> =
                        (3..view.size()).map(|i| wanted(data[place(i)] as i128, &range)).collect();
                    assert_eq!(have, want, "{:?} {length} {last} {beyond:?}", Type::$of);
                }
            }
        )* };
    }
    check! { u8, U8; u16, U16; u32, U32; u64, U64; i8, S8; i16, S16; i32, S32; i64, S64; }
}

#[test]
fn every_level_reads_the_same_places() {
    let data: Vec<i64> = (0..100).map(|i| (i * 37 % 91) - 45).collect();
    for beyond in ALL {
        let range = Range {
            length: 40,
            last: 30,
            beyond,
        };
        let want: Vec<i32> = data
            .iter()
            .map(|x| wanted(i128::from(*x), &range))
            .collect();
        for level in Level::all() {
            let (mut wide, mut narrow) = ([0; 100], [0; 100]);
            let short: Vec<i32> = data.iter().map(|x| *x as i32).collect();
            // SAFETY: a hundred of them, and a level that the machine has.
            unsafe {
                let (x, y) = (
                    View::of(data.as_ptr(), &[100], &[1]),
                    View::of(short.as_ptr(), &[100], &[1]),
                );
                line_in(level, Type::S64, &x, 0, 1, &range, &mut wide);
                line_in(level, Type::S32, &y, 0, 1, &range, &mut narrow);
            }
            assert_eq!(
                (&wide[..], &narrow[..]),
                (&want[..], &want[..]),
                "{level:?}"
            );
        }
    }
}
