//! Rows that a mask fills with one number but in few places, and what is computed of them up to one number for each
//! row: the logits of a text model of which all but the largest are minus infinity, up to the token that is drawn.
//!
//! A row is kept as runs, each with the one number that it has: a run of a single place for each that the mask leaves,
//! and longer ones between these. Functions of elements, sums, sorting and running sums then cost as much as there are
//! runs, and only the mask itself is computed place by place. What a mask leaves is data: where it leaves all of a row,
//! or a running sum rises within a run, the runs are single places, and the result is the same.

use super::chain::{Link, Links, Operand, MAX_LINKS};
use super::elementwise::{self, Argument};
use super::gather::of_size;
use super::keys::{with_type, Key, Number, Place};
use super::pool::{self, Shared, WORTH_SHARING};
use super::simd::{dispatch, Level, Simd};
use super::sort::sort_items;
use super::{Type, View};
use half::{bf16, f16};
use smallvec::SmallVec;

/// Elements of a mask that are computed at a time.
const BLOCK: usize = 1024;
/// Elements of a row that a thread searches for what the mask leaves, at least.
const PIECE: usize = 16_384;

/// Steps of [`Masked`], at most.
pub const MAX_STEPS: usize = 120;

/// How a row becomes one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Total {
    Largest,
    Smallest,
    /// Of floats of at most 32 bits, added in f64.
    Sum,
}

/// What is computed of a row. Values are numbered: 0 is the masked row, n what step n - 1 gives. A value is a row, with
/// one number for each place, or one number. A row lies in its own order, or in the one that a step gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Of values ([`Operand::Link`]) and of inputs that have one number for each row, or one ([`Operand::Input`]).
    Link(Link),
    Total {
        total: Total,
        value: u8,
        of: Type,
    },
    /// The order that sorts a row which lies in its own, stable, NaN last.
    Order {
        value: u8,
        of: Type,
    },
    /// Running sums in an order, of floats of at most 32 bits.
    Sums {
        value: u8,
        of: Type,
        order: Option<u8>,
    },
    /// The number at a place in an order.
    At {
        value: u8,
        of: Type,
        order: Option<u8>,
        place: u32,
    },
    /// The place of the largest or smallest in an order, as u32: of the first of several, or of the last of several NaN.
    Extreme {
        is_max: bool,
        is_last_nan: bool,
        value: u8,
        of: Type,
        order: Option<u8>,
    },
}

impl Step {
    /// The type of what it gives; places are u32.
    pub fn to(&self) -> Type {
        match self {
            Step::Link(link) => link.to,
            Step::Total { of, .. } | Step::Sums { of, .. } | Step::At { of, .. } => *of,
            Step::Order { .. } | Step::Extreme { .. } => Type::U32,
        }
    }

    /// The values that it takes.
    pub fn takes(&self) -> SmallVec<[u8; 3]> {
        let (value, order) = match self {
            Step::Link(link) => {
                let values = link.operands().iter().filter_map(|operand| match operand {
                    Operand::Link(value) => Some(*value),
                    Operand::Input(_) => None,
                });
                return values.collect();
            }
            Step::Total { value, .. } | Step::Order { value, .. } => (*value, None),
            Step::Sums { value, order, .. }
            | Step::At { value, order, .. }
            | Step::Extreme { value, order, .. } => (*value, *order),
        };
        [Some(value), order].into_iter().flatten().collect()
    }
}

/// Rows of arrays of `shape`, whose last axis a row goes along.
#[derive(Clone, Debug, PartialEq)]
pub struct Masked {
    pub shape: SmallVec<[i32; 6]>,
    /// From arrays that broadcast to `shape` to the masked row. The last one is a choice between numbers and `fill`.
    pub mask: Links,
    /// The input, one number for each row or one, that is where the mask leaves nothing.
    pub fill: u8,
    /// The last one gives a number for each row: the result.
    pub steps: Vec<Step>,
}

impl Masked {
    fn count(&self) -> usize {
        self.shape.last().map_or(1, |size| *size as usize)
    }

    /// Whether each value is a row.
    fn are_rows(&self) -> Vec<bool> {
        let mut are_rows = vec![true];
        for step in &self.steps {
            let is_row = match step {
                Step::Link(_) => step
                    .takes()
                    .iter()
                    .any(|value| are_rows[usize::from(*value)]),
                Step::Order { .. } | Step::Sums { .. } => true,
                Step::Total { .. } | Step::At { .. } | Step::Extreme { .. } => false,
            };
            are_rows.push(is_row);
        }
        are_rows
    }
}

/// An input, as it is read for a row: the elements from one axis of `shape` to the next, and bytes of an element.
struct Input {
    data: Shared<u8>,
    steps: SmallVec<[isize; 6]>,
    size: usize,
}

struct Plan<'a> {
    level: Level,
    masked: &'a Masked,
    inputs: Vec<Input>,
    are_rows: Vec<bool>,
    /// The room of each value, and how many rooms there are.
    rooms: Vec<usize>,
    number: usize,
    count: usize,
}

impl Plan<'_> {
    fn new<'a>(level: Level, masked: &'a Masked, views: &[View]) -> Plan<'a> {
        let mut sizes = vec![1; views.len()];
        let mut see = |link: &Link| {
            for (place, operand) in link.operands().iter().enumerate() {
                if let Operand::Input(input) = operand {
                    sizes[usize::from(*input)] = link.action.operand(place, link.from).size();
                }
            }
        };
        masked.mask.iter().for_each(&mut see);
        for step in &masked.steps {
            if let Step::Link(link) = step {
                see(link);
            }
        }
        let inputs = views.iter().zip(sizes).map(|(view, size)| Input {
            data: Shared(view.data.cast()),
            steps: steps_of(view, &masked.shape),
            size,
        });
        let (rooms, number) = rooms(masked);
        Plan {
            level,
            masked,
            inputs: inputs.collect(),
            are_rows: masked.are_rows(),
            rooms,
            number,
            count: masked.count(),
        }
    }

    /// Where an input's row begins.
    unsafe fn row(&self, input: u8, mut row: usize) -> *const u8 {
        let input = &self.inputs[usize::from(input)];
        let outer = self.masked.shape.len() - 1;
        let mut offset = 0;
        for axis in (0..outer).rev() {
            let size = self.masked.shape[axis] as usize;
            offset += (row % size) as isize * input.steps[axis];
            row /= size;
        }
        input.data.offset(offset * input.size as isize)
    }
}

/// The elements of an array from one place of an axis of `shape` to the next. An array with one number for each row may
/// have other axes of a single place than `shape`.
fn steps_of(view: &View, shape: &[i32]) -> SmallVec<[isize; 6]> {
    let own = |axis: usize| view.strides()[axis] as isize;
    let mut steps = SmallVec::from_elem(0, shape.len());
    let outer = &shape[..shape.len() - 1];
    let rows: i32 = outer.iter().product();
    if view.size() == rows as usize && view.shape().last() != shape.last() || view.size() == 1 {
        let long = |shape: &[i32]| -> SmallVec<[usize; 6]> {
            (0..shape.len()).filter(|axis| shape[*axis] != 1).collect()
        };
        for (to, from) in long(outer).iter().zip(long(view.shape())) {
            steps[*to] = own(from);
        }
        return steps;
    }
    let missing = shape.len() - view.shape().len();
    for (axis, size) in view.shape().iter().enumerate() {
        if *size != 1 {
            steps[missing + axis] = own(axis);
        }
    }
    steps
}

/// A room for each value, which is another's once nothing takes it any more.
fn rooms(masked: &Masked) -> (Vec<usize>, usize) {
    let mut last_use = vec![0; masked.steps.len() + 1];
    for (i, step) in masked.steps.iter().enumerate() {
        for value in step.takes() {
            last_use[usize::from(value)] = i;
        }
    }
    let (mut rooms, mut owners) = (vec![0], vec![0usize]);
    for i in 0..masked.steps.len() {
        let free = owners
            .iter()
            .position(|owner| last_use[*owner] < i && *owner <= i);
        let room = free.unwrap_or(owners.len());
        match owners.get_mut(room) {
            Some(owner) => *owner = i + 1,
            None => owners.push(i + 1),
        }
        rooms.push(room);
    }
    (rooms, owners.len())
}

/// What the mask leaves of a piece of a row: places, and the numbers' bits.
#[derive(Default)]
struct Left {
    places: Vec<u32>,
    bits: Vec<u64>,
}

/// Adds the places of a block from `first` on where the mask leaves a number that is not `fill`.
#[inline(always)]
unsafe fn left_body<S: Simd, T: Bits>(
    mask: &[u8],
    is_filled: bool,
    numbers: *const T,
    step: isize,
    fill: T,
    first: usize,
    left: &mut Left,
) {
    const CHUNK: usize = 64;
    let is_left = |byte: &u8| (*byte != 0) != is_filled;
    for (i, chunk) in mask.chunks(CHUNK).enumerate() {
        if !chunk.iter().fold(false, |any, byte| any | is_left(byte)) {
            continue;
        }
        for (own, _) in chunk.iter().enumerate().filter(|(_, byte)| is_left(byte)) {
            let at = i * CHUNK + own;
            let x = *numbers.offset(at as isize * step);
            if x != fill {
                left.places.push((first + at) as u32);
                left.bits.push(x.into());
            }
        }
    }
}

trait Bits: Copy + PartialEq + Into<u64> + 'static {}
impl<T: Copy + PartialEq + Into<u64> + 'static> Bits for T {}

dispatch! {
    fn find_left<T: Bits>(
        mask: &[u8],
        is_filled: bool,
        numbers: *const T,
        step: isize,
        fill: T,
        first: usize,
        left: &mut Left,
    ) = left_body
}

/// The mask of a row from `first` to `end`, and what it leaves there. The choice itself is not computed: few numbers of
/// what it is made from are read.
unsafe fn search(plan: &Plan, row: usize, first: usize, end: usize, left: &mut Left) {
    let Some((choice, links)) = plan.masked.mask.split_last() else {
        return;
    };
    let last = plan.masked.shape.len() - 1;
    let mut room = vec![0u64; (links.len() + plan.inputs.len() + 1) * BLOCK];
    let room = room.as_mut_ptr();
    let block = |i: usize| room.add(i * BLOCK).cast::<u8>();
    let fill = plan.row(plan.masked.fill, row);
    let [mask, a, b] = [0, 1, 2].map(|i| choice.operands()[i]);
    let is_filled = a == Operand::Input(plan.masked.fill);
    let numbers = if is_filled { b } else { a };
    let mut at = first;
    while at < end {
        let length = BLOCK.min(end - at);
        let mut is_one = [false; MAX_LINKS];
        // Where an operand begins, and how far its elements are apart.
        let place = |operand: Operand, is_one: &[bool]| match operand {
            Operand::Link(link) => {
                let link = usize::from(link);
                (block(link).cast_const(), isize::from(!is_one[link]))
            }
            Operand::Input(number) => {
                let input = &plan.inputs[usize::from(number)];
                let step = input.steps[last];
                let bytes = at as isize * step * input.size as isize;
                (plan.row(number, row).offset(bytes), step)
            }
        };
        let beside = |operand: Operand, is_one: &[bool], size: usize| {
            let (from, step) = place(operand, is_one);
            match (operand, step) {
                (_, 0..=1) => (from, step),
                (Operand::Link(_), _) => (from, step),
                (Operand::Input(input), _) => {
                    let to = block(links.len() + usize::from(input));
                    beside_each_other(size, from, step, to, length);
                    (to.cast_const(), 1)
                }
            }
        };
        for (i, link) in links.iter().enumerate() {
            let mut arguments = [Argument {
                at: std::ptr::null(),
                is_one: true,
            }; 3];
            for (n, operand) in link.operands().iter().enumerate() {
                let size = link.action.operand(n, link.from).size();
                let (at, step) = beside(*operand, &is_one, size);
                arguments[n] = Argument {
                    at,
                    is_one: step == 0,
                };
            }
            is_one[i] = arguments.iter().all(|argument| argument.is_one);
            let count = if is_one[i] { 1 } else { length };
            let (level, action) = (plan.level, link.action);
            elementwise::apply(
                level,
                action,
                link.from,
                link.to,
                arguments,
                block(i),
                count,
            );
        }
        let (bytes, step) = beside(mask, &is_one, 1);
        let bytes = match step {
            0 => {
                let all = block(links.len() + plan.inputs.len());
                all.write_bytes(*bytes, length);
                all.cast_const()
            }
            _ => bytes,
        };
        let bytes = std::slice::from_raw_parts(bytes, length);
        let (from, step) = place(numbers, &is_one);
        macro_rules! call {
            ($T:ty) => {{
                let (level, fill) = (plan.level, *fill.cast::<$T>());
                find_left::<$T>(level, bytes, is_filled, from.cast(), step, fill, at, left)
            }};
        }
        of_size!(choice.to.size(), call);
        at += length;
    }
}

unsafe fn beside_each_other(size: usize, from: *const u8, step: isize, to: *mut u8, count: usize) {
    macro_rules! call {
        ($T:ty) => {{
            let (from, to) = (from.cast::<$T>(), to.cast::<$T>());
            (0..count).for_each(|i| to.add(i).write(from.offset(i as isize * step).read()))
        }};
    }
    of_size!(size, call)
}

/// A row in runs: where each begins, and, of every value, the number of each run.
struct Runs<'a> {
    plan: &'a Plan<'a>,
    row: usize,
    starts: Vec<u32>,
    rooms: Vec<Vec<u64>>,
}

/// A running sum rises within a run.
struct Rises;

impl<'a> Runs<'a> {
    /// Runs of the places that the mask leaves and of those between them; or single places.
    unsafe fn new(plan: &'a Plan<'a>, row: usize, left: &[Left], is_single: bool) -> Runs<'a> {
        let many: usize = left.iter().map(|left| left.places.len()).sum();
        let most = if is_single { plan.count } else { 2 * many + 1 };
        let mut starts = Vec::with_capacity(most);
        let size = plan.masked.mask.last().map_or(1, |link| link.to.size());
        let fill = plan.row(plan.masked.fill, row);
        let mut first = vec![0u64; (most * size).div_ceil(8)];
        let to = first.as_mut_ptr().cast::<u8>();
        macro_rules! call {
            ($T:ty) => {{
                let (to, fill) = (to.cast::<$T>(), *fill.cast::<$T>());
                let mut push = |start: usize, x: $T| {
                    to.add(starts.len()).write(x);
                    starts.push(start as u32);
                };
                let mut next = 0;
                let between =
                    |next: usize, end: usize, push: &mut dyn FnMut(usize, $T)| match is_single {
                        true => (next..end).for_each(|at| push(at, fill)),
                        false if next < end => push(next, fill),
                        false => {}
                    };
                for left in left {
                    for (place, bits) in left.places.iter().zip(&left.bits) {
                        between(next, *place as usize, &mut push);
                        push(*place as usize, *bits as $T);
                        next = *place as usize + 1;
                    }
                }
                between(next, plan.count, &mut push);
            }};
        }
        of_size!(size, call);
        let mut rooms = vec![Vec::new(); plan.number];
        rooms[plan.rooms[0]] = first;
        Runs {
            plan,
            row,
            starts,
            rooms,
        }
    }

    fn length(&self, run: usize) -> usize {
        let end = self
            .starts
            .get(run + 1)
            .map_or(self.plan.count, |start| *start as usize);
        end - self.starts[run] as usize
    }

    /// The numbers of a value.
    unsafe fn numbers<T>(&self, value: u8) -> &[T] {
        let value = usize::from(value);
        let count = if self.plan.are_rows[value] {
            self.starts.len()
        } else {
            1
        };
        let from = self.rooms[self.plan.rooms[value]].as_ptr();
        std::slice::from_raw_parts(from.cast(), count)
    }

    /// Room for the numbers of a value.
    fn room<T>(&mut self, value: usize) -> *mut T {
        let count = if self.plan.are_rows[value] {
            self.starts.len()
        } else {
            1
        };
        let room = &mut self.rooms[self.plan.rooms[value]];
        let words = (count * size_of::<T>()).div_ceil(8);
        if room.len() < words {
            room.resize(words, 0);
        }
        room.as_mut_ptr().cast()
    }

    /// Calls `work` with each run, in an order, and the place there that it begins at, until it gives something.
    unsafe fn in_order<R>(
        &self,
        order: Option<u8>,
        mut work: impl FnMut(usize, usize) -> Option<R>,
    ) -> Option<R> {
        let Some(order) = order else {
            return (0..self.starts.len()).find_map(|run| work(run, self.starts[run] as usize));
        };
        let mut place = 0;
        self.numbers::<u32>(order).iter().find_map(|run| {
            let found = work(*run as usize, place);
            place += self.length(*run as usize);
            found
        })
    }

    /// Computes the step that gives a value.
    unsafe fn step(&mut self, value: usize) -> Result<(), Rises> {
        let plan = self.plan;
        match plan.masked.steps[value - 1] {
            Step::Link(ref link) => self.link(link, value),
            Step::Total {
                total: Total::Sum,
                value: from,
                of,
            } => match of {
                Type::F16 => self.sum::<f16>(from, value),
                Type::Bf16 => self.sum::<bf16>(from, value),
                _ => self.sum::<f32>(from, value),
            },
            Step::Total {
                total,
                value: from,
                of,
            } => with_type!(of, T => self.extreme::<T>(total == Total::Largest, from, value)),
            Step::Order { value: from, of } => with_type!(of, T => self.sort::<T>(from, value)),
            Step::Sums {
                value: from,
                of,
                order,
            } => match of {
                Type::F16 => self.sums::<f16>(from, order, value)?,
                Type::Bf16 => self.sums::<bf16>(from, order, value)?,
                _ => self.sums::<f32>(from, order, value)?,
            },
            Step::At {
                value: from,
                of,
                order,
                place,
            } => with_type!(of, T => {
                let run = self.in_order(order, |run, start| {
                    let end = start + self.length(run);
                    ((place as usize) < end).then_some(run)
                });
                let x = self.numbers::<T>(from)[run.unwrap_or(0)];
                self.room::<T>(value).write(x);
            }),
            Step::Extreme {
                is_max,
                is_last_nan,
                value: from,
                of,
                order,
            } => with_type!(of, T => {
                let place = self.place::<T>(is_max, is_last_nan, from, order);
                self.room::<u32>(value).write(place);
            }),
        }
        Ok(())
    }

    unsafe fn link(&mut self, link: &Link, value: usize) {
        macro_rules! call {
            ($T:ty) => {
                self.room::<$T>(value).cast::<u8>()
            };
        }
        let to = of_size!(link.to.size(), call);
        let mut arguments = [Argument {
            at: std::ptr::null(),
            is_one: true,
        }; 3];
        for (own, operand) in arguments.iter_mut().zip(link.operands()) {
            *own = match *operand {
                Operand::Link(value) => Argument {
                    at: self.numbers::<u8>(value).as_ptr(),
                    is_one: !self.plan.are_rows[usize::from(value)],
                },
                Operand::Input(input) => Argument {
                    at: self.plan.row(input, self.row),
                    is_one: true,
                },
            };
        }
        let count = if self.plan.are_rows[value] {
            self.starts.len()
        } else {
            1
        };
        let (level, action) = (self.plan.level, link.action);
        elementwise::apply(level, action, link.from, link.to, arguments, to, count);
    }

    unsafe fn sum<T: super::element::Element>(&mut self, from: u8, value: usize) {
        let numbers = self.numbers::<T>(from).iter().enumerate();
        let parts = numbers.map(|(run, x)| match self.length(run) {
            1 => f64::from(x.widen()),
            length => f64::from(x.widen()) * length as f64,
        });
        let sum: f64 = parts.sum();
        self.room::<T>(value).write(T::narrow(sum as f32));
    }

    unsafe fn extreme<T: Number>(&mut self, is_max: bool, from: u8, value: usize) {
        let numbers = self.numbers::<T>(from);
        let is_nan = |x: &&T| T::IS_FLOAT && x.key() == T::Key::MAX;
        let extreme = match is_max {
            true => numbers.iter().max_by_key(|x| x.key()),
            false => match numbers.iter().find(is_nan) {
                None => numbers.iter().min_by_key(|x| x.key()),
                nan => nan,
            },
        };
        if let Some(extreme) = extreme.copied() {
            self.room::<T>(value).write(extreme);
        }
    }

    unsafe fn sort<T: Number>(&mut self, from: u8, value: usize) {
        let numbers = self.numbers::<T>(from).iter().enumerate();
        let placed = numbers.map(|(run, x)| Place::new(x.key(), run as u32));
        let mut items: Vec<<T::Key as Key>::Placed> = placed.collect();
        sort_items(&mut items, &mut Vec::new(), false);
        let to = self.room::<u32>(value);
        for (i, item) in items.iter().enumerate() {
            to.add(i).write(item.place());
        }
    }

    unsafe fn sums<T: super::element::Element>(
        &mut self,
        from: u8,
        order: Option<u8>,
        value: usize,
    ) -> Result<(), Rises> {
        let to = self.room::<T>(value);
        let numbers = self.numbers::<T>(from);
        // So that -0.0 stays what it is.
        let mut sum = -0.0f64;
        let rises = self.in_order(order, |run, _| {
            let x = f64::from(numbers[run].widen());
            sum += x;
            to.add(run).write(T::narrow(sum as f32));
            let rises = self.length(run) > 1 && sum + x != sum && !sum.is_nan();
            rises.then_some(Rises)
        });
        rises.map_or(Ok(()), Err)
    }

    unsafe fn place<T: Number>(
        &self,
        is_max: bool,
        is_last_nan: bool,
        from: u8,
        order: Option<u8>,
    ) -> u32 {
        let numbers = self.numbers::<T>(from);
        let (mut best, mut at) = (None, 0);
        self.in_order(order, |run, start| {
            let key = numbers[run].key();
            let is_nan = T::IS_FLOAT && key == T::Key::MAX;
            let rank = if is_max || is_nan {
                key
            } else {
                key.reversed()
            };
            if is_nan && is_last_nan {
                (best, at) = (Some(T::Key::MAX), start + self.length(run) - 1);
            } else if best.is_none_or(|best| rank > best) {
                (best, at) = (Some(rank), start);
            }
            None::<()>
        });
        at as u32
    }
}

/// # Safety
/// The inputs are live arrays that broadcast to the masked rows or have one number for each of them, of the types that
/// the links take; `out` has a number for each row, lies in rows, and is of the type that the last step gives.
pub unsafe fn run(level: Level, masked: &Masked, inputs: &[View], out: &View) {
    let plan = Plan::new(level, masked, inputs);
    let rows = out.size();
    let pieces = (2 * pool::threads()).min(plan.count.div_ceil(PIECE)).max(1);
    let share = rows * plan.count >= WORTH_SHARING;
    let mut left: Vec<Left> = (0..rows * pieces).map(|_| Left::default()).collect();
    let to = Shared(left.as_mut_ptr());
    pool::parallel(rows * pieces, share, &|part| {
        let (row, piece) = (part / pieces, part % pieces);
        let at = |piece: usize| plan.count * piece / pieces;
        // SAFETY: within the row; what is left of a piece is this part's alone.
        unsafe { search(&plan, row, at(piece), at(piece + 1), &mut *to.at(part)) }
    });
    let size = masked.steps.last().map_or(1, |step| step.to().size());
    let to = Shared(out.data.cast::<u8>());
    pool::parallel(rows, share && rows > 1, &|row| {
        let left = &left[row * pieces..(row + 1) * pieces];
        // SAFETY: the row's element of the result is this part's alone.
        unsafe {
            let compute = |is_single: bool| -> Result<(), Rises> {
                let mut runs = Runs::new(&plan, row, left, is_single);
                (1..=masked.steps.len()).try_for_each(|value| runs.step(value))?;
                let from = runs.numbers::<u8>(masked.steps.len() as u8).as_ptr();
                std::ptr::copy_nonoverlapping(from, to.at(row * size), size);
                Ok(())
            };
            if compute(false).is_err() {
                // Of single places it never fails.
                let _ = compute(true);
            }
        }
    });
}
