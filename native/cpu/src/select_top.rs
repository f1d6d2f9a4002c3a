//! The k largest of each line, in descending order: NaN first, and of those that are equal the first. A line is read
//! once, and what is above the k-th largest so far is put aside; what is not is passed over in vectors.

use super::keys::{with_type, Key, Number, Place};
use super::lines::Lines;
use super::pool::{self, Shared, PART, WORTH_SHARING};
use super::simd::{dispatch, Level, Simd};
use super::{Type, View};

/// Numbers that are passed over together, and of those among which there is one to put aside.
const BLOCK: usize = 128;
const FEW: usize = 16;
/// Candidates that are put aside at least before they are sorted out.
const FEWEST: usize = 64;

/// A key in the opposite order, with its place: what is wanted first is the smallest.
type Candidate<T> = <<T as Number>::Key as Key>::Placed;

/// What is selected.
#[derive(Clone, Copy)]
pub struct How {
    pub k: usize,
    pub axis: usize,
    /// The places of the numbers instead of these.
    pub is_place: bool,
}

/// The first k candidates, in no order.
#[inline(always)]
fn thin_out<C: Place>(found: &mut Vec<C>, k: usize) {
    if k > 0 && found.len() > k {
        found.select_nth_unstable(k - 1);
        found.truncate(k);
    }
}

/// The first k from element `first` to `end`, or all where there are fewer, in no order.
#[inline(always)]
unsafe fn select<T: Number>(
    lines: &Lines,
    k: usize,
    line: *const T,
    (first, end): (usize, usize),
    found: &mut Vec<Candidate<T>>,
    scratch: &mut Vec<T>,
) {
    let most = (2 * k).max(FEWEST);
    // What all are above of which there are k.
    let mut least = None;
    found.clear();
    let mut start = first;
    while start < end {
        let count = BLOCK.min(end - start);
        let from = line.offset(start as isize * lines.step);
        let block = lines.read(from, count, scratch);
        let is_any = |numbers: &[T]| match least {
            None => true,
            Some(least) => {
                let numbers = numbers.iter();
                numbers.fold(false, |any, x: &T| any | x.may_be_above(least))
            }
        };
        if is_any(block) {
            let is_above = |x: &T| least.is_none_or(|least: T| x.key() > least.key());
            for (part, numbers) in block.chunks(FEW).enumerate() {
                if !is_any(numbers) {
                    continue;
                }
                for (i, x) in numbers.iter().enumerate().filter(|(_, x)| is_above(x)) {
                    let place = (start + part * FEW + i) as u32;
                    found.push(Place::new(x.key().reversed(), place));
                }
            }
            if found.len() >= most {
                thin_out(found, k);
                // Which is the last of them.
                let last = found[k - 1].place() as usize;
                least = Some(*line.offset(last as isize * lines.step));
            }
        }
        start += count;
    }
    thin_out(found, k);
}

struct Plan<T: Number> {
    x: Shared<T>,
    /// Of u32 or of x's type.
    out: *mut std::ffi::c_void,
    how: How,
    lines: Lines,
}

// SAFETY: each thread writes lines of its own.
unsafe impl<T: Number> Sync for Plan<T> {}

impl<T: Number> Plan<T> {
    /// A line's result. `found` has all of its candidates.
    ///
    /// # Safety
    /// Only one thread writes the line.
    unsafe fn write(&self, line: usize, found: &mut Vec<Candidate<T>>) {
        let (from, to) = self.lines.place(line);
        thin_out(found, self.how.k);
        found.sort_unstable();
        for (i, candidate) in found.iter().enumerate() {
            let place = candidate.place();
            let to = to + i as isize * self.lines.to_step;
            if self.how.is_place {
                self.out.cast::<u32>().offset(to).write(place);
            } else {
                let x = *self.x.offset(from + place as isize * self.lines.step);
                self.out.cast::<T>().offset(to).write(x);
            }
        }
    }
}

#[inline(always)]
unsafe fn lines_body<S: Simd, T: Number>(plan: &Plan<T>, first: usize, end: usize) {
    let (mut found, mut scratch) = (Vec::new(), Vec::new());
    for line in first..end {
        let from = plan.x.offset(plan.lines.place(line).0);
        let range = (0, plan.lines.count);
        select(
            &plan.lines,
            plan.how.k,
            from,
            range,
            &mut found,
            &mut scratch,
        );
        plan.write(line, &mut found);
    }
}

#[inline(always)]
unsafe fn piece_body<S: Simd, T: Number>(
    plan: &Plan<T>,
    line: usize,
    range: (usize, usize),
    found: &mut Vec<Candidate<T>>,
) {
    let from = plan.x.offset(plan.lines.place(line).0);
    select(&plan.lines, plan.how.k, from, range, found, &mut Vec::new());
}

dispatch! {
    fn run_lines<T: Number>(plan: &Plan<T>, first: usize, end: usize) = lines_body
}

dispatch! {
    fn run_piece<T: Number>(
        plan: &Plan<T>, line: usize, range: (usize, usize), found: &mut Vec<Candidate<T>>,
    ) = piece_body
}

unsafe fn run_as<T: Number>(level: Level, how: &How, x: &View, out: &View) {
    let plan = Plan::<T> {
        x: Shared(x.data.cast()),
        out: out.data,
        how: *how,
        lines: Lines::new(x, how.axis, how.k),
    };
    let (number, count) = (plan.lines.number(), plan.lines.count);
    let share = x.size() >= WORTH_SHARING;
    let pieces = (2 * pool::threads()).min(count / PART.max(4 * how.k));
    if !share || number >= pool::threads() || pieces < 2 {
        let together = (PART / count.max(1)).max(1);
        return pool::parallel(number.div_ceil(together), share, &|part| {
            let (first, end) = (part * together, number.min((part + 1) * together));
            // SAFETY: within both arrays; lines that are this part's alone.
            unsafe { run_lines::<T>(level, &plan, first, end) }
        });
    }
    let mut found: Vec<Vec<Candidate<T>>> = vec![Vec::new(); number * pieces];
    let to = Shared(found.as_mut_ptr());
    pool::parallel(number * pieces, true, &|part| {
        let (line, piece) = (part / pieces, part % pieces);
        let range = (count * piece / pieces, count * (piece + 1) / pieces);
        // SAFETY: within the array; candidates that are this part's alone.
        unsafe { run_piece::<T>(level, &plan, line, range, &mut *to.at(part)) }
    });
    for (line, pieces) in found.chunks(pieces).enumerate() {
        plan.write(line, &mut pieces.concat());
    }
}

/// # Safety
/// The views are of live arrays: x of numbers `of` one type, `out` in rows, of x's shape but for the axis, which has k
/// elements there and no fewer in x, and of x's type or of u32.
pub unsafe fn run(level: Level, of: Type, how: &How, x: &View, out: &View) {
    with_type!(of, T => run_as::<T>(level, how, x, out))
}
