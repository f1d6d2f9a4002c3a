//! A row as runs, and the steps that are computed of them.

use super::left::Left;
use super::{Plan, Step, Total};
use crate::chain::{Link, Operand};
use crate::element::Element;
use crate::elementwise::{self, Argument};
use crate::gather::of_size;
use crate::keys::{with_type, Key, Number, Place};
use crate::sort::sort_items;
use crate::Type;
use half::{bf16, f16};

/// A row in runs: where each begins, and, of every value, the number of each run.
pub struct Runs<'a> {
    plan: &'a Plan<'a>,
    row: usize,
    starts: Vec<u32>,
    rooms: Vec<Vec<u64>>,
}

/// A running sum rises within a run.
pub struct Rises;

impl<'a> Runs<'a> {
    /// Runs of the places that the mask leaves and of those between them; or single places.
    pub unsafe fn new(plan: &'a Plan<'a>, row: usize, left: &[Left], is_single: bool) -> Runs<'a> {
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
    pub unsafe fn numbers<T>(&self, value: u8) -> &[T] {
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
    pub unsafe fn step(&mut self, value: usize) -> Result<(), Rises> {
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

    unsafe fn sum<T: Element>(&mut self, from: u8, value: usize) {
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

    unsafe fn sums<T: Element>(
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
