//! The place of the largest or the smallest number along an axis. Along a row the largest of each block is found first,
//! and then its place in one block; across columns places are kept beside the numbers.

use super::keys::{largest, with_type, Key, Number};
use super::lines::{Kept, Lines};
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::{dispatch, Level, Simd};
use super::{Type, View};

/// Numbers of a row whose largest is found before its place is.
const BLOCK: usize = 2048;
/// Numbers of a line beside each other from which it is taken as a row.
const SHORTEST_ROW: usize = 16;
/// Columns beside each other, or not, from which they are taken together.
const FEWEST_COLUMNS: usize = 4;
/// Columns of a strip.
const STRIP: usize = 512;
/// Columns of a vector, and columns that rows of few are taken together to.
const LANES: usize = 32;
const WIDE: usize = 128;

/// What is looked for.
#[derive(Clone, Copy)]
pub struct How {
    pub is_max: bool,
    pub axis: usize,
    /// Of several NaN the last wins. Of other numbers the first of those that are equal does.
    pub is_last_nan: bool,
}

/// How numbers are ranked, and which take the place of the best so far.
#[derive(Clone, Copy)]
struct Rank<K> {
    is_max: bool,
    /// What is above this is above every other number, be it as large.
    cap: K,
}

impl<K: Key> Rank<K> {
    fn of<T: Number<Key = K>>(how: &How) -> Rank<K> {
        Rank {
            is_max: how.is_max,
            cap: match how.is_last_nan && T::IS_FLOAT {
                true => K::NEXT_TO_MAX,
                false => K::MAX,
            },
        }
    }

    /// A number's key, or, where the smallest is looked for, its key in the opposite order; that of NaN stays the
    /// largest.
    #[inline(always)]
    fn rank<T: Number<Key = K>>(&self, x: T) -> K {
        let key = x.key();
        let turned = if self.is_max { key } else { key.reversed() };
        match T::IS_FLOAT {
            true => turned.or_max(key == K::MAX),
            false => turned,
        }
    }

    /// Whether a number further on takes the place of the best so far.
    #[inline(always)]
    fn beats(&self, new: K, best: K) -> bool {
        new > best.min(self.cap)
    }

    /// Whether a number does that lies anywhere.
    #[inline(always)]
    fn beats_from(&self, new: (K, u32), best: (K, u32)) -> bool {
        match new.1 > best.1 {
            true => self.beats(new.0, best.0),
            false => !self.beats(best.0, new.0),
        }
    }
}

struct Plan<T: Number> {
    x: Shared<T>,
    out: Shared<u32>,
    rank: Rank<T::Key>,
    lines: Lines,
    /// An axis that is kept, whose lines are taken together.
    columns: Option<Kept>,
    strips: usize,
    strip: usize,
    units: usize,
    /// Parts that each line is cut into where there are few.
    pieces: usize,
}

impl<T: Number> Plan<T> {
    fn new(how: &How, x: &View, out: &View) -> Plan<T> {
        let mut lines = Lines::new(x, how.axis, 1);
        let mut columns = None;
        if lines.step != 1 || lines.count < SHORTEST_ROW {
            // Those beside each other, or else the most.
            let chosen = (0..lines.kept.len())
                .filter(|i| lines.kept[*i].size >= FEWEST_COLUMNS)
                .max_by_key(|i| (lines.kept[*i].step == 1, lines.kept[*i].size));
            columns = chosen.map(|i| lines.kept.remove(i));
        }
        let (strip, strips) = columns.map_or((1, 1), |columns| {
            (columns.size.min(STRIP), columns.size.div_ceil(STRIP))
        });
        let units = lines.number() * strips;
        let mut pieces = 1;
        let wanted = 2 * pool::threads();
        if units < wanted && x.size() >= WORTH_SHARING {
            let most = (x.size() / units / PART).clamp(1, lines.count);
            pieces = wanted.div_ceil(units).min(most);
        }
        Plan {
            x: Shared(x.data.cast()),
            out: Shared(out.data.cast()),
            rank: Rank::of::<T>(how),
            lines,
            columns,
            strips,
            strip,
            units,
            pieces,
        }
    }

    /// Where a unit begins, in the array and in the result, and its columns.
    fn unit(&self, unit: usize) -> (isize, isize, usize) {
        let (from, to) = self.lines.place(unit / self.strips);
        let Some(columns) = self.columns else {
            return (from, to, 1);
        };
        let first = unit % self.strips * STRIP;
        let at = first as isize;
        let count = self.strip.min(columns.size - first);
        (from + at * columns.step, to + at * columns.to, count)
    }

    /// # Safety
    /// Only one thread writes the unit's results.
    unsafe fn write(&self, to: isize, places: &[u32]) {
        let step = self.columns.map_or(1, |columns| columns.to);
        for (i, at) in places.iter().enumerate() {
            self.out.offset(to + i as isize * step).write(*at);
        }
    }
}

/// The first number of this rank, or the last where that is what counts; there is one.
#[inline(always)]
fn position<T: Number>(block: &[T], best: T::Key, rank: &Rank<T::Key>) -> usize {
    const CHUNK: usize = 64;
    let is_it = |x: &T| rank.rank(*x) == best;
    if rank.beats(best, best) {
        return block.iter().rposition(is_it).unwrap_or(0);
    }
    let chunk = block
        .chunks(CHUNK)
        .position(|chunk| chunk.iter().fold(false, |any, x| any | is_it(x)));
    let first = chunk.unwrap_or(0) * CHUNK;
    first + block[first..].iter().position(is_it).unwrap_or(0)
}

/// The best of a line from element `first` to `end`, and its place in the line.
#[inline(always)]
unsafe fn best_of_line<T: Number>(
    plan: &Plan<T>,
    line: *const T,
    (first, end): (usize, usize),
    scratch: &mut Vec<T>,
) -> (T::Key, u32) {
    let (lines, rank) = (&plan.lines, plan.rank);
    let (mut best, mut at) = (T::Key::MIN, first);
    let mut start = first;
    while start < end {
        let count = BLOCK.min(end - start);
        let from = line.offset(start as isize * lines.step);
        let block = lines.read(from, count, scratch);
        let largest = largest(block, |x| rank.rank(x));
        if start == first || rank.beats(largest, best) {
            (best, at) = (largest, start);
        }
        start += count;
    }
    let count = BLOCK.min(end - at);
    let from = line.offset(at as isize * lines.step);
    let block = lines.read(from, count, scratch);
    (best, (at + position(block, best, &rank)) as u32)
}

/// Columns of one row, `step` apart. In arrays of its own, which are vectors then.
#[inline(always)]
unsafe fn join_lanes<T: Number, const N: usize>(
    row: *const T,
    step: isize,
    best: &mut [T::Key; N],
    places: &mut [u32; N],
    at: u32,
    rank: &Rank<T::Key>,
) {
    let numbers: [T; N] = match step {
        1 => row.cast::<[T; N]>().read(),
        _ => std::array::from_fn(|i| *row.offset(i as isize * step)),
    };
    let (mut keys, mut found) = (*best, *places);
    for i in 0..N {
        let new = rank.rank(numbers[i]);
        let wins = rank.beats(new, keys[i]);
        keys[i] = if wins { new } else { keys[i] };
        found[i] = if wins { at } else { found[i] };
    }
    (*best, *places) = (keys, found);
}

#[inline(always)]
unsafe fn join_row<T: Number>(
    row: *const T,
    step: isize,
    best: &mut [T::Key],
    places: &mut [u32],
    at: u32,
    rank: &Rank<T::Key>,
) {
    let (best, last_best) = best.as_chunks_mut::<LANES>();
    let (places, last_places) = places.as_chunks_mut::<LANES>();
    let mut row = row;
    for (best, places) in best.iter_mut().zip(places) {
        join_lanes(row, step, best, places, at, rank);
        row = row.offset(LANES as isize * step);
    }
    for (best, place) in last_best.iter_mut().zip(last_places) {
        let new = rank.rank(*row);
        if rank.beats(new, *best) {
            (*best, *place) = (new, at);
        }
        row = row.wrapping_offset(step);
    }
}

/// The best of columns `step` apart from row `first` to `end`, and their places.
#[inline(always)]
unsafe fn best_of_columns<T: Number>(
    plan: &Plan<T>,
    from: *const T,
    step: isize,
    (first, end): (usize, usize),
    best: &mut [T::Key],
    places: &mut [u32],
) {
    let (columns, rank, down) = (best.len(), plan.rank, plan.lines.step);
    let begin = |best: &mut [T::Key], row: *const T| {
        for (i, best) in best.iter_mut().enumerate() {
            // SAFETY: an element of the row.
            *best = unsafe { rank.rank(*row.offset(i as isize * step)) };
        }
    };
    let row = |i: usize| from.wrapping_offset(i as isize * down);
    let group = WIDE / columns;
    let (mut next, count) = (first + 1, end - first);
    begin(best, row(first));
    places.fill(first as u32);
    if step == 1 && down == columns as isize && group > 1 && count >= 2 * group {
        // Rows that follow one another as one of as many columns.
        let (mut keys, mut found) = ([T::Key::MIN; WIDE], [0; WIDE]);
        let wide = group * columns;
        let (keys, found) = (&mut keys[..wide], &mut found[..wide]);
        begin(keys, row(first));
        for i in 1..count / group {
            join_row(row(first + i * group), 1, keys, found, i as u32, &rank);
        }
        for (i, (key, found)) in keys.iter().zip(found).enumerate() {
            let column = i % columns;
            let new = (*key, (first + *found as usize * group + i / columns) as u32);
            if rank.beats_from(new, (best[column], places[column])) {
                (best[column], places[column]) = new;
            }
        }
        next = first + count / group * group;
    }
    for i in next..end {
        join_row(row(i), step, best, places, i as u32, &rank);
    }
}

/// Pieces of units, by number. `partial` has a strip of what is found for each piece where there are several of a unit.
#[inline(always)]
unsafe fn tasks_body<S: Simd, T: Number>(
    plan: &Plan<T>,
    first: usize,
    end: usize,
    partial: &(Shared<T::Key>, Shared<u32>),
) {
    let (mut best, mut places) = (vec![T::Key::MIN; plan.strip], vec![0; plan.strip]);
    let mut scratch = Vec::new();
    for task in first..end {
        let (from, to, count) = plan.unit(task / plan.pieces);
        let piece = task % plan.pieces;
        let at = |piece: usize| plan.lines.count * piece / plan.pieces;
        let range = (at(piece), at(piece + 1));
        let from = plan.x.offset(from);
        let (best, places) = (&mut best[..count], &mut places[..count]);
        match plan.columns {
            None => (best[0], places[0]) = best_of_line(plan, from, range, &mut scratch),
            Some(columns) => best_of_columns(plan, from, columns.step, range, best, places),
        }
        if plan.pieces == 1 {
            plan.write(to, places);
        } else {
            let (keys, found) = (
                partial.0.at(task * plan.strip),
                partial.1.at(task * plan.strip),
            );
            std::ptr::copy_nonoverlapping(best.as_ptr(), keys, count);
            std::ptr::copy_nonoverlapping(places.as_ptr(), found, count);
        }
    }
}

dispatch! {
    fn run_tasks<T: Number>(
        plan: &Plan<T>, first: usize, end: usize, partial: &(Shared<T::Key>, Shared<u32>),
    ) = tasks_body
}

unsafe fn run_as<T: Number>(level: Level, how: &How, x: &View, out: &View) {
    let plan = Plan::<T>::new(how, x, out);
    let tasks = plan.units * plan.pieces;
    let kept = if plan.pieces == 1 {
        0
    } else {
        tasks * plan.strip
    };
    let (mut keys, mut places) = (vec![T::Key::MIN; kept], vec![0u32; kept]);
    let partial = (Shared(keys.as_mut_ptr()), Shared(places.as_mut_ptr()));
    let together = (PART * tasks / x.size().max(1)).max(1);
    let share = x.size() >= WORTH_SHARING;
    pool::parallel(tasks.div_ceil(together), share, &|part| {
        let (first, end) = (part * together, tasks.min((part + 1) * together));
        // SAFETY: within both arrays; units or pieces that are this part's alone.
        unsafe { run_tasks::<T>(level, &plan, first, end, &partial) }
    });
    if plan.pieces == 1 {
        return;
    }
    let length = plan.strip * plan.pieces;
    for (unit, (keys, places)) in keys
        .chunks_mut(length)
        .zip(places.chunks_mut(length))
        .enumerate()
    {
        let (_, to, count) = plan.unit(unit);
        for i in 0..count {
            for other in (i + plan.strip..length).step_by(plan.strip) {
                if plan.rank.beats(keys[other], keys[i]) {
                    (keys[i], places[i]) = (keys[other], places[other]);
                }
            }
        }
        plan.write(to, &places[..count]);
    }
}

/// # Safety
/// The views are of live arrays: x of numbers `of` one type, `out` in rows, of u32, and of x's shape but for the axis,
/// which is not empty.
pub unsafe fn run(level: Level, of: Type, how: &How, x: &View, out: &View) {
    with_type!(of, T => run_as::<T>(level, how, x, out))
}
