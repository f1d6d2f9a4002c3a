//! Convolutions as products of matrices: a row for each place of the result, a term for each tap of the kernel and each
//! channel, a column for each output channel. The matrix of rows and terms is nowhere: a tile reads its numbers from the
//! input, where tables of rows and of terms say they are. For that, a block of rows has its part of the input copied to
//! where it stays in the cache, with its padding.
//!
//! A dilated input is not filled up with zeros. Places that meet its elements with the same taps are a piece of their
//! own ([`plan`]), which is a convolution without dilation. Groups of few output channels are multiplied together, each
//! column with numbers of its own. Gradients are convolutions with other sizes: the taps of one by the kernel are the
//! places of the result, so its terms are shared out where its rows are few.

mod plan;
mod region;
mod tile;

use super::element::Element;
use super::gemm::{self, room};
use super::panels;
use super::pool::{self, Shared};
use super::simd::Level;
use super::View;
pub use plan::Conv;
use plan::{Piece, Plan, Ranges, SPACE};
use std::cell::RefCell;
use tile::{Block, Weights};

/// Blocks of terms whose products are added up in f32; what these come to is added up in f64.
const BLOCKS: usize = 8;
/// Numbers that a thread keeps room for.
const MOST_KEPT: usize = 4 << 20;

/// Rooms of a thread.
#[derive(Default)]
struct Rooms {
    region: Vec<f32>,
    weights: Vec<f32>,
    sums: Vec<f32>,
    wide: Vec<f64>,
    rows: Vec<usize>,
    to: Vec<isize>,
    /// Where rows of sums are that are kept apart from the result.
    apart: Vec<isize>,
    terms: Vec<usize>,
    offsets: Vec<isize>,
}

thread_local! {
    static ROOMS: RefCell<Rooms> = RefCell::default();
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Job<T> {
    level: Level,
    plan: Plan,
    a: *const T,
    weight: *const T,
    out: Shared<T>,
    /// Columns of a unit, in whole panels.
    columns: usize,
    /// The packed weights of each piece; None where a block packs them.
    packed: Vec<Option<usize>>,
    weights: Shared<f32>,
    /// What each split of each block comes to, where there are several.
    partial: Shared<f32>,
}

// SAFETY: the arrays are only read, the result is written in parts that do not overlap.
unsafe impl<T> Sync for Job<T> {}

/// A block of rows of a piece and a unit.
#[derive(Clone, Copy)]
struct Task {
    piece: usize,
    unit: usize,
    block: usize,
    /// Where its partial results are.
    place: usize,
}

impl<T: Element> Job<T> {
    fn is_deep(&self, piece: &Piece) -> bool {
        gemm::is_deep(piece.terms())
    }

    /// Where a tap of the kernel is, or a channel: from one to the next.
    fn kernel_steps(&self, piece: &Piece) -> [isize; 1 + SPACE] {
        let step = &self.plan.weight.step;
        let along = |axis: usize| piece.steps[axis].kernel_step * step[1 + axis];
        [along(0), along(1), along(2), step[1 + SPACE]]
    }

    /// The tables of a chunk's terms: where they are in a region, and in the weights.
    fn tables(
        &self,
        piece: &Piece,
        chunk: &Ranges,
        terms: &mut Vec<usize>,
        offsets: &mut Vec<isize>,
    ) {
        terms.clear();
        offsets.clear();
        let first: isize = (0..SPACE)
            .map(|axis| piece.steps[axis].kernel_first * self.plan.weight.step[1 + axis])
            .sum();
        piece.terms_in(chunk, &self.kernel_steps(piece), |region, weight| {
            terms.push(region);
            offsets.push(first + weight);
        });
    }

    /// Packs the weights of the terms of a chunk from `first` on.
    ///
    /// # Safety
    /// There is room for whole panels.
    unsafe fn pack(
        &self,
        piece: &Piece,
        unit: usize,
        chunk: &Ranges,
        (first, offsets): (usize, &[isize]),
        to: *mut f32,
    ) {
        let (run, axis) = piece.run(chunk);
        let (column, columns) = self.plan.columns(unit);
        let step = self.plan.weight.step[0];
        let weights = Weights {
            data: self.weight.offset(column as isize * step),
            column: step,
            columns,
            offsets,
            run,
            skipped: first,
            step: self.kernel_steps(piece)[axis],
        };
        tile::pack::<T>(self.level, &weights, to);
    }

    /// Packs all weights of pieces with several blocks, which then share them.
    unsafe fn pack_all(&self) {
        let mut parts = Vec::new();
        for (number, piece) in self.plan.pieces.iter().enumerate() {
            if self.packed[number].is_none() {
                continue;
            }
            for unit in 0..self.plan.units {
                for chunk in 0..piece.chunks() {
                    parts.push((number, unit, chunk));
                }
            }
        }
        pool::parallel(parts.len(), self.plan.is_shared, &|part| {
            let (number, unit, chunk) = parts[part];
            let piece = &self.plan.pieces[number];
            ROOMS.with_borrow_mut(|rooms| {
                let ranges = piece.chunk(chunk);
                self.tables(piece, &ranges, &mut rooms.terms, &mut rooms.offsets);
                let step = panels::block_cells(rooms.offsets.len());
                for first in (0..rooms.offsets.len()).step_by(step) {
                    let end = (first + step).min(rooms.offsets.len());
                    let offsets = (first, &rooms.offsets[first..end]);
                    // SAFETY: this part's own place.
                    unsafe {
                        let to = self.weights_of(number, unit, piece.starts[chunk] + first);
                        self.pack(piece, unit, &ranges, offsets, to);
                    }
                }
            })
        });
    }

    /// The packed weights of a shared piece, from a term on.
    unsafe fn weights_of(&self, piece: usize, unit: usize, term: usize) -> *mut f32 {
        let start = self.packed[piece].unwrap_or(0);
        let terms = self.plan.pieces[piece].terms();
        self.weights
            .at(start + (unit * terms + term) * self.columns)
    }

    /// Computes a block of rows, or a split of its terms.
    ///
    /// # Safety
    /// The rows, or the place for what the split comes to, are this call's alone.
    unsafe fn block(&self, task: Task, split: usize, rooms: &mut Rooms) {
        let (plan, level) = (&self.plan, self.level);
        let piece = &plan.pieces[task.piece];
        let block = piece.block(task.block);
        let (column, columns) = plan.columns(task.unit);
        let Rooms {
            region,
            weights,
            sums,
            wide,
            rows,
            to,
            apart,
            terms,
            offsets,
        } = rooms;
        self.places(piece, &block, rows, to);
        let out = self.out.at(column * plan.out.step[1 + SPACE] as usize);
        let chunks = piece.chunks();
        let (is_deep, is_split) = (self.is_deep(piece), plan.splits > 1);
        let size = rows.len() * self.columns;
        let is_direct = gemm::is::<T, f32>() && !is_deep && !is_split;
        apart.clear();
        apart.extend((0..rows.len()).map(|i| (i * self.columns) as isize));
        let (c, places) = match is_direct {
            true => (out.cast::<f32>(), &to[..]),
            false => (room(sums, size), &apart[..]),
        };
        let wide = room(wide, if is_deep { size } else { 0 });
        let region = room(region, piece.room + 64);
        let mut number = 0;
        let mut is_kept = false;
        for chunk in chunks * split / plan.splits..chunks * (split + 1) / plan.splits {
            let ranges = piece.chunk(chunk);
            self.tables(piece, &ranges, terms, offsets);
            region::fill::<T>(
                level,
                plan,
                piece,
                task.unit,
                (&block, &ranges),
                self.a,
                region,
            );
            let step = panels::block_cells(terms.len());
            for first in (0..terms.len()).step_by(step) {
                let end = (first + step).min(terms.len());
                let weights = match self.packed[task.piece] {
                    Some(_) => self.weights_of(task.piece, task.unit, piece.starts[chunk] + first),
                    None => {
                        let to = room(weights, step * self.columns);
                        let offsets = (first, &offsets[first..end]);
                        self.pack(piece, task.unit, &ranges, offsets, to);
                        to
                    }
                };
                let add = match is_deep {
                    true => number % BLOCKS > 0,
                    false => number > 0,
                };
                let block = Block {
                    region,
                    rows,
                    to: places,
                    terms: &terms[first..end],
                    weights,
                    out: c,
                    columns,
                    is_padded: !is_direct,
                    is_lanewise: plan.is_lanewise,
                    add,
                };
                tile::multiply(level, &block);
                number += 1;
                if is_deep && number % BLOCKS == 0 {
                    tile::add_wide(level, c, wide, size, is_kept);
                    is_kept = true;
                }
            }
        }
        if number == 0 {
            // There are fewer chunks than splits.
            std::slice::from_raw_parts_mut(c, size).fill(0.0);
        }
        if is_deep && number == 0 {
            tile::add_wide(level, c, wide, size, false);
        } else if is_deep && number % BLOCKS > 0 {
            tile::add_wide(level, c, wide, size, is_kept);
        }
        if is_deep {
            tile::narrow_wide(level, wide, c, size);
        }
        if is_split {
            let partial = self.partial.at(task.place + split * size);
            std::ptr::copy_nonoverlapping(c, partial, size);
        } else if !is_direct {
            tile::write::<T>(level, c, self.columns, columns, out, to);
        }
    }

    /// Adds up what the splits of a block come to.
    ///
    /// # Safety
    /// The splits are computed, and the rows this call's alone.
    unsafe fn join(&self, task: Task, rooms: &mut Rooms) {
        let (column, columns) = self.located(task, rooms);
        let size = rooms.rows.len() * self.columns;
        let (sums, wide) = (room(&mut rooms.sums, size), room(&mut rooms.wide, size));
        for split in 0..self.plan.splits {
            let partial = self.partial.at(task.place + split * size);
            tile::add_wide(self.level, partial, wide, size, split > 0);
        }
        tile::narrow_wide(self.level, wide, sums, size);
        let out = self.out.at(column * self.plan.out.step[1 + SPACE] as usize);
        tile::write::<T>(self.level, sums, self.columns, columns, out, &rooms.to);
    }

    /// The columns of a task: the first, and how many. The tables of its rows are then in the rooms.
    fn located(&self, task: Task, rooms: &mut Rooms) -> (usize, usize) {
        let piece = &self.plan.pieces[task.piece];
        let block = piece.block(task.block);
        self.places(piece, &block, &mut rooms.rows, &mut rooms.to);
        self.plan.columns(task.unit)
    }

    /// The tables of a block's rows: where they are in the region, and in the result.
    fn places(&self, piece: &Piece, block: &Ranges, rows: &mut Vec<usize>, to: &mut Vec<isize>) {
        rows.clear();
        to.clear();
        let step = &self.plan.out.step;
        let along = |axis: usize| piece.steps[axis].step as isize * step[1 + axis];
        let steps = [step[0], along(0), along(1), along(2)];
        let first: isize = (0..SPACE)
            .map(|axis| piece.steps[axis].first as isize * step[1 + axis])
            .sum();
        piece.rows_in(block, &steps, |region, out| {
            rows.push(region);
            to.push(first + out);
        });
    }

    /// Zeros for places that meet nothing of the input.
    ///
    /// # Safety
    /// The rows are this call's alone.
    unsafe fn clear(&self, task: Task, rooms: &mut Rooms) {
        let (column, columns) = self.located(task, rooms);
        for to in &rooms.to {
            let to = self.out.at(column).offset(*to);
            std::slice::from_raw_parts_mut(to, columns).fill(T::narrow(0.0));
        }
    }
}

fn with_rooms(work: impl FnOnce(&mut Rooms)) {
    ROOMS.with_borrow_mut(|rooms| {
        work(rooms);
        if rooms.sums.len() + rooms.weights.len() + rooms.region.len() > MOST_KEPT {
            *rooms = Rooms::default();
        }
    })
}

/// # Safety
/// The views are of live arrays of three to five axes whose sizes fit: the input and the weights have elements, and the
/// result lies in rows.
pub unsafe fn run<T: Element>(level: Level, conv: &Conv, a: &View, weight: &View, out: &View) {
    let mut width = 0;
    tile::width(level, &mut width);
    let plan = Plan::new(conv, [a, weight, out], width, !gemm::is::<T, f32>());
    let columns = panels::padded(plan.together * plan.outside, width);
    let (mut tasks, mut packed, mut partial, mut weights) = (Vec::new(), Vec::new(), 0, 0);
    for (number, piece) in plan.pieces.iter().enumerate() {
        let is_shared = piece.blocks() > 1;
        packed.push(is_shared.then_some(weights));
        if is_shared {
            weights += plan.units * piece.terms() * columns;
        }
        for unit in 0..plan.units {
            for block in 0..piece.blocks() {
                tasks.push(Task {
                    piece: number,
                    unit,
                    block,
                    place: partial,
                });
                if plan.splits > 1 {
                    partial += plan.splits * piece.rows() * columns;
                }
            }
        }
    }
    let mut partial = vec![0f32; partial];
    PACKED.with_borrow_mut(|room_for_weights| {
        let job = Job {
            level,
            a: a.data.cast::<T>().cast_const(),
            weight: weight.data.cast::<T>().cast_const(),
            out: Shared(out.data.cast::<T>()),
            columns,
            packed,
            weights: Shared(room(room_for_weights, weights)),
            partial: Shared(partial.as_mut_ptr()),
            plan,
        };
        job.pack_all();
        let splits = job.plan.splits;
        pool::parallel(tasks.len() * splits, job.plan.is_shared, &|part| {
            let task = tasks[part / splits];
            with_rooms(|rooms| {
                // SAFETY: this part's own rows, or place.
                unsafe {
                    match job.plan.pieces[task.piece].terms() {
                        0 if part % splits == 0 => job.clear(task, rooms),
                        0 => {}
                        _ => job.block(task, part % splits, rooms),
                    }
                }
            })
        });
        if splits > 1 {
            pool::parallel(tasks.len(), true, &|part| {
                if job.plan.pieces[tasks[part].piece].terms() > 0 {
                    // SAFETY: this part's own rows.
                    with_rooms(|rooms| unsafe { job.join(tasks[part], rooms) });
                }
            });
        }
        if room_for_weights.len() > MOST_KEPT {
            *room_for_weights = Vec::new();
        }
    })
}
