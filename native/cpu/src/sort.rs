//! Sorting along an axis, and the order that sorts, both stable; NaN comes last, and the zeros are the same. Short rows
//! are sorted by comparison, long ones by the digits of their keys. In the order, a row's smallest numbers, where they
//! are most of it, are not sorted: their places are the first ones.

use super::keys::{largest, with_type, Item, Key, Number, Place};
use super::lines::Lines;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::{Type, View};

/// Rows from which digits are quicker than comparisons, and from which larger digits are.
const LONG_ROW: usize = 512;
const LONGER_ROW: usize = 32_768;
/// Elements of a row from which threads share it.
const SHARED_ROW: usize = 65_536;

/// The digits of keys of one row: how large, and how many.
#[derive(Clone, Copy)]
struct Digits {
    bits: u32,
    number: u32,
}

impl Digits {
    fn of<I: Item>(count: usize) -> Digits {
        let bits = if count < LONGER_ROW || I::BITS <= 16 {
            8
        } else {
            11
        };
        Digits {
            bits,
            number: I::BITS.div_ceil(bits),
        }
    }

    fn radix(self) -> usize {
        1 << self.bits
    }

    #[inline(always)]
    fn at<I: Item>(self, item: I, number: u32) -> usize {
        (item.key() >> (number * self.bits)) as usize & (self.radix() - 1)
    }
}

/// Sorts by keys, those that are equal in the order in which they are. `other` is as long, of no account.
pub(super) fn sort_items<I: Item>(items: &mut Vec<I>, other: &mut Vec<I>, is_alone: bool) {
    let count = items.len();
    if count < LONG_ROW {
        // Places make them differ; without places nobody tells equal ones apart.
        return items.sort_unstable();
    }
    other.clear();
    other.extend_from_slice(items);
    let digits = Digits::of::<I>(count);
    if is_alone && count >= SHARED_ROW && pool::threads() > 1 {
        return sort_shared(digits, items, other);
    }
    radix_sort(digits, items, other);
}

/// Digit by digit, from the last one on. `other` is as long.
fn radix_sort<I: Item>(digits: Digits, items: &mut Vec<I>, other: &mut Vec<I>) {
    let (count, radix) = (items.len(), digits.radix());
    let mut counts = vec![0u32; radix * digits.number as usize];
    for item in items.iter() {
        for number in 0..digits.number {
            counts[number as usize * radix + digits.at(*item, number)] += 1;
        }
    }
    for (number, counts) in counts.chunks_mut(radix).enumerate() {
        if counts.iter().any(|n| *n as usize == count) {
            continue;
        }
        let mut sum = 0;
        for n in counts.iter_mut() {
            (*n, sum) = (sum, sum + *n);
        }
        let to = other.as_mut_ptr();
        for item in items.iter() {
            let place = &mut counts[digits.at(*item, number as u32)];
            // SAFETY: every item was counted, so that each has a place of its own.
            unsafe { to.add(*place as usize).write(*item) };
            *place += 1;
        }
        std::mem::swap(items, other);
    }
}

/// The same on all threads: each counts the digits of a part and then moves its elements.
fn sort_shared<I: Item>(digits: Digits, items: &mut Vec<I>, other: &mut Vec<I>) {
    let (count, radix, parts) = (items.len(), digits.radix(), pool::threads());
    let range = |part: usize| count * part / parts..count * (part + 1) / parts;
    let mut counts = vec![0u32; radix * parts];
    for number in 0..digits.number {
        counts.fill(0);
        let to = Shared(counts.as_mut_ptr());
        pool::parallel(parts, true, &|part| {
            // SAFETY: counts that are this part's alone.
            let counts = unsafe { std::slice::from_raw_parts_mut(to.at(part * radix), radix) };
            for item in &items[range(part)] {
                counts[digits.at(*item, number)] += 1;
            }
        });
        let (mut sum, mut is_sorted) = (0, false);
        for digit in 0..radix {
            let before = sum;
            for part in 0..parts {
                let n = &mut counts[part * radix + digit];
                (*n, sum) = (sum, sum + *n);
            }
            is_sorted |= (sum - before) as usize == count;
        }
        if is_sorted {
            continue;
        }
        let (places, to) = (Shared(counts.as_mut_ptr()), Shared(other.as_mut_ptr()));
        pool::parallel(parts, true, &|part| {
            // SAFETY: counts that are this part's alone, and places that no other part was counted.
            unsafe {
                let counts = std::slice::from_raw_parts_mut(places.at(part * radix), radix);
                for item in &items[range(part)] {
                    let place = &mut counts[digits.at(*item, number)];
                    to.at(*place as usize).write(*item);
                    *place += 1;
                }
            }
        });
        std::mem::swap(items, other);
    }
}

/// What a thread keeps from line to line.
struct Scratch<T, I> {
    line: Vec<T>,
    items: Vec<I>,
    other: Vec<I>,
}

impl<T, I> Default for Scratch<T, I> {
    fn default() -> Self {
        Scratch {
            line: Vec::new(),
            items: Vec::new(),
            other: Vec::new(),
        }
    }
}

/// Calls `work` with every line, on several threads, and whether these may share the line.
fn each_line<T, I>(lines: &Lines, work: impl Fn(isize, isize, bool, &mut Scratch<T, I>) + Sync) {
    let number = lines.number();
    let is_alone = number < pool::threads() && lines.count >= SHARED_ROW;
    if is_alone {
        let mut scratch = Scratch::default();
        for line in 0..number {
            let (from, to) = lines.place(line);
            work(from, to, true, &mut scratch);
        }
        return;
    }
    // Sorting is more work than most of what is done with elements.
    let together = (PART / 4 / lines.count.max(1)).max(1);
    let share = number * lines.count >= WORTH_SHARING / 4;
    pool::parallel(number.div_ceil(together), share, &|part| {
        let mut scratch = Scratch::default();
        for line in part * together..number.min((part + 1) * together) {
            let (from, to) = lines.place(line);
            work(from, to, false, &mut scratch);
        }
    });
}

unsafe fn sort_as<T: Number>(axis: usize, x: &View, out: &View) {
    let lines = Lines::new(x, axis, x.shape()[axis] as usize);
    let (x, out) = (Shared(x.data.cast::<T>()), Shared(out.data.cast::<T>()));
    each_line::<T, T::Key>(&lines, |from, to, is_alone, scratch| {
        // SAFETY: within both arrays; a line that is this call's alone.
        unsafe {
            let line = lines.read(x.offset(from), lines.count, &mut scratch.line);
            scratch.items.clear();
            scratch.items.extend(line.iter().map(|x| x.key()));
            sort_items(&mut scratch.items, &mut scratch.other, is_alone);
            let at = |i: usize| out.offset(to + i as isize * lines.to_step);
            for (i, key) in scratch.items.iter().enumerate() {
                at(i).write(T::of_key(*key));
            }
            if !T::IS_FLOAT {
                return;
            }
            // What has one key in common is written as it was, in its order.
            let again = |key: T::Key| {
                let first = scratch.items.partition_point(|other| *other < key);
                let same = line.iter().filter(|x| x.key() == key);
                same.enumerate().for_each(|(i, x)| at(first + i).write(*x));
            };
            let negative_zero = line.iter().find(|x| x.is_negative_zero());
            if let Some(zero) = negative_zero {
                again(zero.key());
            }
            if scratch.items.last() == Some(&T::Key::MAX) {
                again(T::Key::MAX);
            }
        }
    });
}

/// The smallest key of a row and how many numbers have it, if these are most of a long row.
fn most_common_least<T: Number>(line: &[T]) -> Option<(T::Key, usize)> {
    const FEW: usize = 64;
    if line.len() < LONG_ROW {
        return None;
    }
    // A few numbers tell of most rows that it is not so.
    let few = || line.iter().step_by(line.len() / FEW).map(|x| x.key());
    let likely = few().min()?;
    if few().filter(|key| *key == likely).count() < FEW / 4 {
        return None;
    }
    let least = largest(line, |x: T| x.key().reversed()).reversed();
    let many = line.iter().filter(|x| x.key() == least).count();
    (many > line.len() / 2).then_some((least, many))
}

unsafe fn argsort_as<T: Number>(axis: usize, x: &View, out: &View) {
    let lines = Lines::new(x, axis, x.shape()[axis] as usize);
    let (x, out) = (Shared(x.data.cast::<T>()), Shared(out.data.cast::<u32>()));
    each_line::<T, <T::Key as Key>::Placed>(&lines, |from, to, is_alone, scratch| {
        // SAFETY: within both arrays; a line that is this call's alone.
        unsafe {
            let line = lines.read(x.offset(from), lines.count, &mut scratch.line);
            let at = |i: usize| out.offset(to + i as isize * lines.to_step);
            let placed = |(i, x): (usize, &T)| <T::Key as Key>::Placed::new(x.key(), i as u32);
            scratch.items.clear();
            let mut first = 0;
            match most_common_least(line) {
                None => scratch.items.extend(line.iter().enumerate().map(placed)),
                Some((least, many)) => {
                    scratch.items.reserve(line.len() - many);
                    for (i, x) in line.iter().enumerate() {
                        if x.key() == least {
                            at(first).write(i as u32);
                            first += 1;
                        } else {
                            scratch.items.push(placed((i, x)));
                        }
                    }
                }
            }
            sort_items(&mut scratch.items, &mut scratch.other, is_alone);
            for (i, item) in scratch.items.iter().enumerate() {
                at(first + i).write(item.place());
            }
        }
    });
}

/// # Safety
/// The views are of live arrays of one shape and of numbers `of` one type, `out` in rows.
pub unsafe fn sort(of: Type, axis: usize, x: &View, out: &View) {
    with_type!(of, T => sort_as::<T>(axis, x, out))
}

/// The places of a stable sort.
///
/// # Safety
/// The views are of live arrays of one shape: x of numbers `of` one type, `out` in rows and of u32.
pub unsafe fn argsort(of: Type, axis: usize, x: &View, out: &View) {
    with_type!(of, T => argsort_as::<T>(axis, x, out))
}
