//! Rotary position embedding: pairs of a row's elements turned by position · frequency.

use super::element::Element;
use super::pool::{self, Shared, WORTH_SHARING};
use super::rows::at;
use super::simd::dispatch;
use super::simd::{store_part, Level, Simd};
use super::View;
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    pub dims: usize,
    /// Neighbours make a pair, rather than halves.
    pub traditional: bool,
    /// Used where no frequencies are given.
    pub base: f32,
    pub scale: f32,
}

/// What a table of cosines and sines was made of.
#[derive(Clone, PartialEq)]
struct Key {
    offset: i32,
    length: usize,
    scale: f32,
    frequencies: Vec<f32>,
}

/// For each position the cosines of all pairs, then the sines.
type Table = Arc<Vec<f32>>;

/// Numbers of the largest table that is kept.
const MAX_KEPT: usize = 1 << 22;

/// A model turns queries and keys of every layer by the same angles, so the last tables are kept.
fn table(key: Key) -> Table {
    static KEPT: Mutex<Vec<(Key, Table)>> = Mutex::new(Vec::new());
    let lock = || KEPT.lock();
    if let Some((_, table)) = lock().iter().find(|(other, _)| *other == key) {
        return table.clone();
    }
    let half = key.frequencies.len();
    let mut values = vec![0f32; key.length * 2 * half];
    let to = Shared(values.as_mut_ptr());
    let parts = key.length.div_ceil(16);
    pool::parallel(parts, key.length * half >= 2_048, &|part| {
        for i in part * 16..key.length.min((part + 1) * 16) {
            let position = (key.offset as f32 + i as f32) * key.scale;
            for (j, frequency) in key.frequencies.iter().enumerate() {
                let (sin, cos) = (position * frequency).sin_cos();
                // SAFETY: this part's own positions.
                unsafe {
                    to.at(i * 2 * half + j).write(cos);
                    to.at(i * 2 * half + half + j).write(sin);
                }
            }
        }
    });
    let table = Arc::new(values);
    if table.len() <= MAX_KEPT {
        let mut kept = lock();
        if kept.len() >= 4 {
            kept.remove(0);
        }
        kept.push((key, table.clone()));
    }
    table
}

#[inline(always)]
unsafe fn row_body<S: Simd, T: Element>(
    x: *const T,
    out: *mut T,
    count: usize,
    half: usize,
    traditional: bool,
    angles: *const f32,
) {
    let (cos, sin) = (angles, angles.add(half));
    if traditional {
        for j in 0..half {
            let (a, b) = (x.add(2 * j).read().widen(), x.add(2 * j + 1).read().widen());
            let (c, s) = (*cos.add(j), *sin.add(j));
            out.add(2 * j).write(T::narrow(a * c - b * s));
            out.add(2 * j + 1).write(T::narrow(a * s + b * c));
        }
    } else {
        let mut j = 0;
        while j < half {
            let rest = S::LANES.min(half - j);
            let whole = rest == S::LANES;
            let (a, b) = (at::<S, T>(x, j, rest), at::<S, T>(x, half + j, rest));
            let (c, s) = (at::<S, f32>(cos, j, rest), at::<S, f32>(sin, j, rest));
            let first = S::sub(S::mul(a, c), S::mul(b, s));
            let second = S::add(S::mul(a, s), S::mul(b, c));
            if whole {
                T::store::<S>(out.add(j), first);
                T::store::<S>(out.add(half + j), second);
            } else {
                store_part::<S, T>(out.add(j), rest, first);
                store_part::<S, T>(out.add(half + j), rest, second);
            }
            j += S::LANES;
        }
    }
    if !std::ptr::eq(x, out) {
        for j in 2 * half..count {
            out.add(j).write(x.add(j).read());
        }
    }
}

dispatch! {
    fn turn<T: Element>(
        x: *const T, out: *mut T, count: usize, half: usize, traditional: bool, angles: *const f32,
    ) = row_body
}

/// x is {batch, …, length, size}, offsets s32 {} or {batch}, frequencies' reciprocals f32 {dims / 2} or not there.
///
/// # Safety
/// The views are of live arrays of these shapes and types.
pub unsafe fn run<T: Element>(level: Level, rope: &Rope, inputs: &[View], out: &View) {
    let x = &inputs[0];
    let shape = x.shape();
    let (batch, length) = (shape[0] as usize, shape[shape.len() - 2] as usize);
    let half = rope.dims / 2;
    let frequencies: Vec<f32> = match inputs.get(2) {
        Some(view) => (0..half)
            .map(|j| {
                1.0 / view
                    .data
                    .cast::<f32>()
                    .offset(j as isize * view.strides()[0] as isize)
                    .read()
            })
            .collect(),
        None => {
            let step = rope.base.ln() / half as f32;
            (0..half).map(|j| (-(j as f32) * step).exp()).collect()
        }
    };
    let offsets: Vec<i32> = match inputs[1].strides() {
        [step] if inputs[1].size() > 1 => (0..batch)
            .map(|b| {
                inputs[1]
                    .data
                    .cast::<i32>()
                    .offset(b as isize * *step as isize)
                    .read()
            })
            .collect(),
        _ => vec![inputs[1].data.cast::<i32>().read()],
    };
    let tables: Vec<Table> = offsets
        .iter()
        .map(|offset| {
            table(Key {
                offset: *offset,
                length,
                scale: rope.scale,
                frequencies: frequencies.clone(),
            })
        })
        .collect();
    let (rows, count) = x.rows();
    let (from, to) = (Shared(x.data.cast::<T>()), Shared(out.data.cast::<T>()));
    let (step, out_step) = (x.step(), out.step());
    let parts = (rows * count).div_ceil(8_192).min(rows);
    pool::parallel(parts, rows * count >= WORTH_SHARING, &|part| {
        let mut copy: Vec<T> = Vec::new();
        for row in rows * part / parts..rows * (part + 1) / parts {
            let table = if tables.len() == 1 {
                &tables[0]
            } else {
                &tables[row / (rows / batch)]
            };
            // SAFETY: the views' own shapes and strides.
            unsafe {
                let angles = table.as_ptr().add(row % length * 2 * half);
                let (from, to) = (from.offset(x.row(row)), to.offset(out.row(row)));
                if step == 1 && out_step == 1 {
                    turn::<T>(level, from, to, count, half, rope.traditional, angles);
                } else {
                    copy.clear();
                    copy.extend((0..count as isize).map(|i| from.offset(i * step).read()));
                    turn::<T>(
                        level,
                        copy.as_ptr(),
                        copy.as_mut_ptr(),
                        count,
                        half,
                        rope.traditional,
                        angles,
                    );
                    for (i, value) in copy.iter().enumerate() {
                        to.offset(i as isize * out_step).write(*value);
                    }
                }
            }
        }
    });
}
