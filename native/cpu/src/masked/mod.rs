//! Rows that a mask fills with one number but in few places, and what is computed of them up to one number for each
//! row: the logits of a text model of which all but the largest are minus infinity, up to the token that is drawn.
//!
//! A row is kept as runs, each with the one number that it has: a run of a single place for each that the mask leaves,
//! and longer ones between these. Functions of elements, sums, sorting and running sums then cost as much as there are
//! runs, and only the mask itself is computed place by place. What a mask leaves is data: where it leaves all of a row,
//! or a running sum rises within a run, the runs are single places, and the result is the same.

mod left;
mod runs;

use super::chain::{Link, Links, Operand};
use super::pool::{self, Shared, WORTH_SHARING};
use super::simd::Level;
use super::{Type, View};
use left::{search, Left};
use runs::{Rises, Runs};
use smallvec::SmallVec;

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
    /// The place of the largest or smallest in an order, as u32: of the first of several, or of the last of several
    /// NaN.
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
