//! How a convolution is cut up: into pieces, whose places meet elements of the input with the same taps of the kernel,
//! and pieces into blocks, whose part of the input stays in the second cache.

use crate::gemm;
use crate::panels;
use crate::pool;
use crate::View;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::ops::Range;

/// Axes of space. Fewer are preceded by axes of size 1.
pub const SPACE: usize = 3;

/// A convolution of {batch, space…, channels} with {output channels, space…, channels / groups}. One entry an axis of
/// space, of which there are up to three.
#[derive(Clone, Debug, PartialEq)]
pub struct Conv {
    pub stride: SmallVec<[i32; SPACE]>,
    /// What precedes the input, once it is dilated; less than 0 where that is cut off.
    pub low: SmallVec<[i32; SPACE]>,
    pub kernel_dilation: SmallVec<[i32; SPACE]>,
    pub input_dilation: SmallVec<[i32; SPACE]>,
    pub groups: i32,
    /// Whether the kernel is turned round along the axes of space.
    pub is_flipped: bool,
}

/// An array's axes: the first, three of space, the last.
#[derive(Clone, Copy)]
pub struct Axes {
    pub size: [usize; 2 + SPACE],
    pub step: [isize; 2 + SPACE],
}

impl Axes {
    pub fn of(view: &View) -> Axes {
        let (shape, strides) = (view.shape(), view.strides());
        let mut axes = Axes {
            size: [1; 2 + SPACE],
            step: [0; 2 + SPACE],
        };
        for (i, (size, step)) in shape.iter().zip(strides).enumerate() {
            let axis = if i == 0 {
                0
            } else {
                i + 2 + SPACE - shape.len()
            };
            axes.size[axis] = *size as usize;
            axes.step[axis] = *step as isize;
        }
        axes
    }
}

/// Places of the result along an axis that meet elements of the input with the same taps: `count` of them, `step` apart
/// from `first` on. From one to the next they advance by so many elements of the input; their taps lie `spacing`
/// elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    pub first: usize,
    pub step: usize,
    pub count: usize,
    pub advance: usize,
    pub taps: usize,
    /// The input's element that the first place meets with the first tap, which may be in the padding.
    pub start: isize,
    pub spacing: usize,
    /// The first tap's place in the kernel, and from one to the next.
    pub kernel_first: isize,
    pub kernel_step: isize,
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}

/// An axis: the result's size, the kernel's, the stride, what precedes the input, and the dilations.
struct Line {
    output: usize,
    kernel: usize,
    stride: usize,
    low: isize,
    kernel_dilation: usize,
    input_dilation: usize,
    is_flipped: bool,
}

impl Line {
    /// All places of the result, in as many steps as the input's dilation asks for.
    fn steps(&self) -> Vec<Steps> {
        let dilation = self.input_dilation;
        let step = dilation / gcd(dilation, self.stride);
        let every = dilation / gcd(dilation, self.kernel_dilation);
        let place = |first: usize| {
            // In the dilated input.
            let at =
                |tap: usize| (first * self.stride + tap * self.kernel_dilation) as isize - self.low;
            let meets = |tap: &usize| at(*tap).rem_euclid(dilation as isize) == 0;
            let tap = (0..every.min(self.kernel)).find(meets);
            let taps = tap.map_or(0, |tap| (self.kernel - tap).div_ceil(every));
            let tap = tap.unwrap_or(0);
            let (kernel_first, kernel_step) = match self.is_flipped {
                true => ((self.kernel - 1 - tap) as isize, -(every as isize)),
                false => (tap as isize, every as isize),
            };
            Steps {
                first,
                step,
                count: (self.output - first).div_ceil(step),
                advance: self.stride * step / dilation,
                taps,
                start: at(tap).div_euclid(dilation as isize),
                spacing: every * self.kernel_dilation / dilation,
                kernel_first,
                kernel_step,
            }
        };
        (0..step.min(self.output)).map(place).collect()
    }
}

/// What a block is cut along: batch, places along three axes, taps along three axes, channels.
pub const CUTS: usize = 2 + 2 * SPACE;
/// Batch and places of a block, or taps and channels of a chunk.
pub type Ranges = [Range<usize>; 1 + SPACE];

const TAPS: usize = 1 + SPACE;
const CHANNELS: usize = CUTS - 1;

/// Numbers of the input that a block takes: so many stay in the second cache.
const REGION: usize = 64 << 10;
/// Sums that a block keeps, where it keeps them apart from the result.
const SUMS: usize = 128 << 10;
/// Rows and terms below which a block is not cut without need.
const ROWS: usize = 96;
const TERMS: usize = 128;
/// Rows that a thread has at least.
const FEWEST_ROWS: usize = 24;
/// Blocks below which the terms of one are shared out, too.
const BLOCKS: usize = 8;
/// Terms that are not shared out further.
const SHARED_TERMS: usize = 512;

/// The places of one [`Steps`] for each axis.
pub struct Piece {
    pub steps: [Steps; SPACE],
    total: [usize; CUTS],
    size: [usize; CUTS],
    parts: [usize; CUTS],
    /// The region's elements are so many of the input's apart, along each axis of space.
    pub unit: [usize; SPACE],
    /// A region's axes: batch, space, channels.
    pub region: Axes,
    /// Numbers of a region.
    pub room: usize,
    /// The rows' axes (batch, places) and the terms' (taps, channels), in the order in which they are counted.
    row_order: [usize; 1 + SPACE],
    term_order: [usize; 1 + SPACE],
    /// Terms before each chunk, and in all.
    pub starts: Vec<usize>,
}

impl Piece {
    fn rows_of(size: &[usize; CUTS]) -> usize {
        size[..TAPS].iter().product()
    }

    fn terms_of(size: &[usize; CUTS]) -> usize {
        size[TAPS..].iter().product()
    }

    /// Terms of a result.
    pub fn terms(&self) -> usize {
        Piece::terms_of(&self.total)
    }

    /// Rows of a block, at most.
    pub fn rows(&self) -> usize {
        Piece::rows_of(&self.size)
    }

    /// How many elements a region has along an axis of space.
    fn extent(&self, size: &[usize; CUTS], axis: usize) -> usize {
        let (steps, unit) = (&self.steps[axis], self.unit[axis]);
        let places = (size[1 + axis] - 1) * (steps.advance / unit);
        places + (size[TAPS + axis].max(1) - 1) * (steps.spacing / unit) + 1
    }

    fn numbers(&self, size: &[usize; CUTS], lanes: usize) -> usize {
        let space: usize = (0..SPACE).map(|axis| self.extent(size, axis)).product();
        size[0] * space * size[CHANNELS] * lanes
    }

    fn new(steps: [Steps; SPACE], batch: usize, channels: usize) -> Piece {
        let mut total = [1; CUTS];
        (total[0], total[CHANNELS]) = (batch, channels);
        let mut unit = [1; SPACE];
        for (axis, steps) in steps.iter().enumerate() {
            (total[1 + axis], total[TAPS + axis]) = (steps.count, steps.taps);
            unit[axis] = match (steps.count, steps.taps) {
                (_, 0 | 1) => steps.advance,
                (1, _) => steps.spacing,
                _ => gcd(steps.advance, steps.spacing),
            };
        }
        Piece {
            steps,
            total,
            size: total,
            parts: [1; CUTS],
            unit,
            region: Axes {
                size: [1; 2 + SPACE],
                step: [0; 2 + SPACE],
            },
            room: 0,
            row_order: [0; 1 + SPACE],
            term_order: [0; 1 + SPACE],
            starts: Vec::new(),
        }
    }

    /// Halves a block along one of the axes of `range`, the one that makes regions grow least.
    fn halve(&mut self, range: Range<usize>, lanes: usize) -> bool {
        let now = self.numbers(&self.size, lanes);
        let (rows, terms) = (Piece::rows_of(&self.size), Piece::terms_of(&self.size));
        let halved = |axis: usize| {
            let mut size = self.size;
            size[axis] = size[axis].div_ceil(2);
            size
        };
        let cost = |axis: usize| {
            let grown = 200 * self.numbers(&halved(axis), lanes) / now.max(1);
            let worse = match axis < TAPS {
                true if rows < 2 * ROWS => 50,
                false if terms < 2 * TERMS => 55,
                false => 5,
                true => 0,
            };
            grown + worse
        };
        let axes = range.filter(|axis| self.size[*axis] > 1);
        match axes.min_by_key(|axis| cost(*axis)) {
            Some(axis) => {
                self.size = halved(axis);
                true
            }
            None => false,
        }
    }

    /// Cuts blocks to what the caches hold.
    fn cut(&mut self, lanes: usize, sums: usize) {
        while self.numbers(&self.size, lanes) > REGION && self.halve(0..CUTS, lanes) {}
        while Piece::rows_of(&self.size) * sums > SUMS
            && Piece::rows_of(&self.size) > 2 * FEWEST_ROWS
            && self.halve(0..TAPS, lanes)
        {}
    }

    /// Blocks of rows.
    pub fn blocks(&self) -> usize {
        self.parts[..TAPS].iter().product()
    }

    /// Parts of the terms of each block.
    pub fn chunks(&self) -> usize {
        self.parts[TAPS..].iter().product()
    }

    fn divide(&mut self) {
        for axis in 0..CUTS {
            self.parts[axis] = self.total[axis].div_ceil(self.size[axis].max(1));
        }
    }

    /// Settles how regions lie: in the order of the input's own axes, `lanes` beside each other.
    fn settle(&mut self, input: &Axes, lanes: usize) {
        self.divide();
        let step = |axis: usize| match axis {
            1..=SPACE => input.step[axis].unsigned_abs() * self.unit[axis - 1],
            _ => input.step[axis].unsigned_abs(),
        };
        let mut order = [0, 1, 2, 3, 4];
        order.sort_by_key(|axis| Reverse(step(*axis)));
        self.region.size = [self.size[0], 1, 1, 1, self.size[CHANNELS]];
        for axis in 0..SPACE {
            self.region.size[1 + axis] = self.extent(&self.size, axis);
        }
        let mut room = lanes;
        for axis in order.into_iter().rev() {
            // Lines that are a page apart share a place in the first cache.
            if room.is_multiple_of(1024) {
                room += 16;
            }
            self.region.step[axis] = room as isize;
            room *= self.region.size[axis];
        }
        self.room = room;
        self.row_order = [0, 1, 2, 3];
        self.term_order = [TAPS, TAPS + 1, TAPS + 2, CHANNELS];
        let (rows, terms) = (self.row_order, self.term_order);
        let sorted = |mut axes: [usize; 1 + SPACE]| {
            axes.sort_by_key(|axis| Reverse(self.step_of(*axis)));
            axes
        };
        (self.row_order, self.term_order) = (sorted(rows), sorted(terms));
        self.starts = vec![0];
        for chunk in 0..self.chunks() {
            let terms: usize = self.chunk(chunk).iter().map(Range::len).product();
            self.starts.push(self.starts[chunk] + terms);
        }
    }

    /// From one place, tap or channel to the next in a region.
    pub fn step_of(&self, cut: usize) -> isize {
        let space = |axis: usize, by: usize| {
            self.region.step[1 + axis] * (by / self.unit[axis].max(1)) as isize
        };
        match cut {
            0 => self.region.step[0],
            CHANNELS => self.region.step[1 + SPACE],
            1..=SPACE => space(cut - 1, self.steps[cut - 1].advance),
            _ => space(cut - TAPS, self.steps[cut - TAPS].spacing),
        }
    }

    fn ranges(&self, first: usize, mut number: usize) -> Ranges {
        let mut ranges = [0..1, 0..1, 0..1, 0..1];
        for (i, range) in ranges.iter_mut().enumerate().rev() {
            let axis = first + i;
            let part = number % self.parts[axis];
            number /= self.parts[axis];
            let from = part * self.size[axis];
            *range = from..(from + self.size[axis]).min(self.total[axis]);
        }
        ranges
    }

    /// Batch and places of a block.
    pub fn block(&self, number: usize) -> Ranges {
        self.ranges(0, number)
    }

    /// Taps and channels of a chunk.
    pub fn chunk(&self, number: usize) -> Ranges {
        self.ranges(TAPS, number)
    }

    /// Calls `each` with the offset of every row of a block in its region, and in an array with such steps.
    pub fn rows_in(
        &self,
        block: &Ranges,
        steps: &[isize; 1 + SPACE],
        each: impl FnMut(usize, isize),
    ) {
        let order = self.row_order;
        self.nested(order, block, 0, steps, each);
    }

    /// The same of every term of a chunk.
    pub fn terms_in(
        &self,
        chunk: &Ranges,
        steps: &[isize; 1 + SPACE],
        each: impl FnMut(usize, isize),
    ) {
        let order = self.term_order;
        self.nested(order, chunk, TAPS, steps, each);
    }

    /// How many terms follow one another with one step, and which of a chunk's axes that is.
    pub fn run(&self, chunk: &Ranges) -> (usize, usize) {
        let axis = self.term_order[SPACE] - TAPS;
        (chunk[axis].len(), axis)
    }

    fn nested(
        &self,
        order: [usize; 1 + SPACE],
        ranges: &Ranges,
        first: usize,
        steps: &[isize; 1 + SPACE],
        mut each: impl FnMut(usize, isize),
    ) {
        let [a, b, c, d] = order.map(|axis| {
            let i = axis - first;
            (ranges[i].clone(), self.step_of(axis), steps[i])
        });
        let line = |(range, region, other): &(Range<usize>, isize, isize)| {
            let (from, region, other) = (range.start, *region, *other);
            range
                .clone()
                .map(move |i| ((i - from) as isize * region, i as isize * other))
        };
        for a in line(&a) {
            for b in line(&b) {
                for c in line(&c) {
                    let (region, other) = (a.0 + b.0 + c.0, a.1 + b.1 + c.1);
                    for d in line(&d) {
                        each((region + d.0) as usize, other + d.1);
                    }
                }
            }
        }
    }
}

/// A convolution of arrays.
pub struct Plan {
    pub input: Axes,
    pub weight: Axes,
    pub out: Axes,
    /// Channels of a group, and output channels.
    pub inside: usize,
    pub outside: usize,
    /// Output channels are multiplied each with input channels of its own, `groups` of them at a time.
    pub is_lanewise: bool,
    /// Groups of a unit, and units.
    pub together: usize,
    pub units: usize,
    pub pieces: Vec<Piece>,
    /// Parts that the terms of each block are shared out in.
    pub splits: usize,
    pub is_shared: bool,
}

/// Output channels of a group below which groups are multiplied together, lane by lane.
const FEW: usize = 8;
/// Output channels that are then multiplied together.
const LANES: usize = 64;

impl Plan {
    /// `width` is a panel's columns. `keeps_sums` says that sums are kept apart from the result.
    pub fn new(conv: &Conv, [a, weight, out]: [&View; 3], width: usize, keeps_sums: bool) -> Plan {
        let (input, weight, out) = (Axes::of(a), Axes::of(weight), Axes::of(out));
        let groups = conv.groups as usize;
        let (inside, outside) = (weight.size[1 + SPACE], weight.size[0] / groups);
        let is_lanewise = groups > 1 && outside < FEW;
        let together = match is_lanewise {
            true => (LANES / outside).min(groups),
            false => 1,
        };
        let units = groups.div_ceil(together);
        let columns = panels::padded(together * outside, width);
        let lanes = if is_lanewise { columns } else { 1 };
        let missing = SPACE - conv.stride.len();
        let along = |axis: usize| {
            let of = |list: &[i32], otherwise: i32| match axis.checked_sub(missing) {
                Some(i) => list[i],
                None => otherwise,
            };
            Line {
                output: out.size[1 + axis],
                kernel: weight.size[1 + axis],
                stride: of(&conv.stride, 1) as usize,
                low: of(&conv.low, 0) as isize,
                kernel_dilation: of(&conv.kernel_dilation, 1) as usize,
                input_dilation: of(&conv.input_dilation, 1) as usize,
                is_flipped: conv.is_flipped,
            }
            .steps()
        };
        let [first, second, third] = [along(0), along(1), along(2)];
        let mut pieces = Vec::with_capacity(first.len() * second.len() * third.len());
        for a in &first {
            for b in &second {
                for c in &third {
                    pieces.push(Piece::new([*a, *b, *c], input.size[0], inside));
                }
            }
        }
        let deepest = pieces.iter().map(Piece::terms).max().unwrap_or(0);
        let keeps_sums = keeps_sums || gemm::is_deep(deepest);
        for piece in &mut pieces {
            piece.cut(lanes, if keeps_sums { columns } else { 0 });
        }
        let rows: usize = pieces
            .iter()
            .map(|piece| Piece::rows_of(&piece.total))
            .sum();
        let work = rows * deepest * together * outside * units;
        let is_shared = work >= gemm::WORTH_SHARING;
        // What is added up apart is the same for every number of threads.
        let fewest: usize = pieces
            .iter()
            .map(|piece| Piece::rows_of(&piece.total).div_ceil(FEWEST_ROWS))
            .sum();
        let mut splits = 1;
        if fewest * units < BLOCKS && is_shared {
            let wanted = BLOCKS / (fewest * units);
            for piece in &mut pieces {
                piece.divide();
                while piece.chunks() < wanted
                    && Piece::terms_of(&piece.size) >= 2 * SHARED_TERMS
                    && piece.halve(TAPS..CUTS, lanes)
                {
                    piece.divide();
                }
                splits = splits.max(piece.chunks().min(wanted));
            }
        }
        let mut plan = Plan {
            input,
            weight,
            out,
            inside,
            outside,
            is_lanewise,
            together,
            units,
            pieces,
            splits,
            is_shared,
        };
        plan.share(lanes);
        for piece in &mut plan.pieces {
            piece.settle(&plan.input, lanes);
        }
        plan
    }

    /// Cuts blocks of rows until every thread has some.
    fn share(&mut self, lanes: usize) {
        let wanted = match self.is_shared {
            true => 2 * pool::threads(),
            false => 1,
        };
        loop {
            self.pieces.iter_mut().for_each(Piece::divide);
            let blocks: usize = self.pieces.iter().map(Piece::blocks).sum();
            let largest = self.pieces.iter_mut().max_by_key(|piece| piece.rows());
            let Some(piece) = largest.filter(|_| blocks * self.units * self.splits < wanted) else {
                return;
            };
            if piece.rows() < 2 * FEWEST_ROWS || !piece.halve(0..TAPS, lanes) {
                return;
            }
        }
    }

    /// The first output channel of a unit, and how many it has.
    pub fn columns(&self, unit: usize) -> (usize, usize) {
        let first = unit * self.together;
        let groups = self.weight.size[0] / self.outside;
        let count = self.together.min(groups - first);
        (first * self.outside, count * self.outside)
    }
}
