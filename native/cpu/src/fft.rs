//! Fourier transforms along an axis: lines go to the crates rustfft and realfft, which have transforms of any size and
//! pick the machine's vectors. Lines are cut, filled up with zeros and scaled on the way.

use super::lines::Lines;
use super::pool::{self, Shared};
use super::View;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::num_complex::Complex;
use rustfft::FftPlanner;
use std::ffi::CStr;
use std::sync::Arc;

type Pair = Complex<f32>;

/// What goes into a transform and comes out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Complex numbers to as many.
    Complex,
    /// Real numbers to as many complex ones.
    Real,
    /// Real numbers to the first half of their spectrum.
    ToHalf,
    /// Half a spectrum to real numbers.
    FromHalf,
}

/// A transform along an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fft {
    pub form: Form,
    pub axis: u8,
    /// Numbers of a whole line. Shorter lines are filled up with zeros, longer ones are cut.
    pub size: i32,
    pub is_inverse: bool,
    /// What results are multiplied by.
    pub scale: f32,
    /// Parts of results that are no larger become 0.
    pub least: Option<f32>,
}

impl Fft {
    /// The operation that it computes.
    pub fn name(&self) -> &'static CStr {
        match self.form {
            Form::Complex | Form::Real if self.is_inverse => c"ifft",
            Form::Complex | Form::Real => c"fft",
            Form::ToHalf => c"rfft",
            Form::FromHalf => c"irfft",
        }
    }

    /// Numbers of a line of the result.
    pub fn results(&self) -> i32 {
        match self.form {
            Form::ToHalf => self.size / 2 + 1,
            _ => self.size,
        }
    }
}

/// What a size's transform is computed with.
enum Plan {
    Complex(Arc<dyn rustfft::Fft<f32>>),
    ToHalf(Arc<dyn RealToComplex<f32>>),
    FromHalf(Arc<dyn ComplexToReal<f32>>),
}

struct Planners {
    complex: FftPlanner<f32>,
    real: RealFftPlanner<f32>,
    /// Numbers of all lines that were planned.
    numbers: usize,
}

impl Planners {
    fn new() -> Planners {
        Planners {
            complex: FftPlanner::new(),
            real: RealFftPlanner::new(),
            numbers: 0,
        }
    }
}

/// Planners keep what they planned. Beyond so many numbers they are begun anew.
const MOST_KEPT: usize = 16 << 20;

fn plan(fft: &Fft) -> Plan {
    static PLANNERS: Lazy<Mutex<Planners>> = Lazy::new(|| Mutex::new(Planners::new()));
    let size = fft.size as usize;
    let mut planners = PLANNERS.lock();
    // What a known size adds is overestimated, so that a planner is begun anew now and then.
    planners.numbers += size / 16 + 1;
    if planners.numbers > MOST_KEPT / 16 {
        *planners = Planners::new();
    }
    match fft.form {
        Form::Complex if fft.is_inverse => Plan::Complex(planners.complex.plan_fft_inverse(size)),
        Form::Complex => Plan::Complex(planners.complex.plan_fft_forward(size)),
        Form::Real | Form::ToHalf => Plan::ToHalf(planners.real.plan_fft_forward(size)),
        Form::FromHalf => Plan::FromHalf(planners.real.plan_fft_inverse(size)),
    }
}

/// Lines beside each other that are read and written together where they lie across rows: some lines of the cache of
/// each row, so that pages of memory are looked up less often.
const TOGETHER: usize = 32;
/// What lines that are read together lie apart beyond their length, so that they do not compete for the same lines of
/// the cache.
const APART: usize = 8;
/// Numbers that a thread takes at a time.
const PART: usize = 8_192;

/// # Safety
/// The views are of live arrays, of f32 or of pairs of f32 as the form says, with the axis. They agree in the other
/// axes, and the result has [`Fft::results`] along it and lies in rows.
pub unsafe fn run(fft: &Fft, x: &View, out: &View) {
    if x.size() == 0 || out.size() == 0 {
        return;
    }
    let plan = plan(fft);
    match plan {
        Plan::Complex(plan) => lines(fft, x, out, &|| {
            let mut scratch = vec![Pair::default(); plan.get_inplace_scratch_len()];
            let plan = &plan;
            move |from: &[Pair], to: &mut [Pair]| {
                fill(to, from);
                plan.process_with_scratch(to, &mut scratch);
            }
        }),
        Plan::ToHalf(plan) => lines(fft, x, out, &|| {
            let mut scratch = plan.make_scratch_vec();
            let mut line = plan.make_input_vec();
            let (size, is_whole) = (fft.size as usize, fft.form == Form::Real);
            let plan = &plan;
            move |from: &[f32], to: &mut [Pair]| {
                fill(&mut line, from);
                let half = &mut to[..size / 2 + 1];
                // The lengths are the plan's own.
                let _ = plan.process_with_scratch(&mut line, half, &mut scratch);
                if !is_whole {
                    return;
                }
                if fft.is_inverse {
                    half.iter_mut().for_each(|x| *x = x.conj());
                }
                for i in size / 2 + 1..size {
                    to[i] = to[size - i].conj();
                }
            }
        }),
        Plan::FromHalf(plan) => lines(fft, x, out, &|| {
            let mut scratch = plan.make_scratch_vec();
            let mut line = plan.make_input_vec();
            let is_even = fft.size % 2 == 0;
            let plan = &plan;
            move |from: &[Pair], to: &mut [f32]| {
                fill(&mut line, from);
                // Of the spectrum of real numbers these are real.
                line[0].im = 0.0;
                if let (true, Some(last)) = (is_even, line.last_mut()) {
                    last.im = 0.0;
                }
                let _ = plan.process_with_scratch(&mut line, to, &mut scratch);
            }
        }),
    }
}

/// As many of `from` as fit, and zeros behind them.
fn fill<T: Copy + Default>(to: &mut [T], from: &[T]) {
    let count = to.len().min(from.len());
    to[..count].copy_from_slice(&from[..count]);
    to[count..].fill(T::default());
}

/// Results that are scaled and cleaned of small parts.
trait Finish {
    fn finish(line: &mut [Self], fft: &Fft)
    where
        Self: Sized;
}

impl Finish for f32 {
    fn finish(line: &mut [f32], fft: &Fft) {
        let Fft { scale, least, .. } = *fft;
        if scale != 1.0 {
            line.iter_mut().for_each(|x| *x *= scale);
        }
        if let Some(least) = least {
            let clean = |x: f32| if x.abs() <= least { 0.0 } else { x };
            line.iter_mut().for_each(|x| *x = clean(*x));
        }
    }
}

impl Finish for Pair {
    fn finish(line: &mut [Pair], fft: &Fft) {
        // SAFETY: a pair is two numbers beside each other.
        let numbers =
            unsafe { std::slice::from_raw_parts_mut(line.as_mut_ptr().cast(), 2 * line.len()) };
        f32::finish(numbers, fft);
    }
}

/// Calls what `worker` makes for each line, on several threads; each makes its own.
unsafe fn lines<A, B, W>(fft: &Fft, x: &View, out: &View, worker: &(dyn Fn() -> W + Sync))
where
    A: Copy + Default,
    B: Copy + Default + Finish,
    W: FnMut(&[A], &mut [B]),
{
    let results = fft.results() as usize;
    let lines = Lines::new(x, fft.axis.into(), results);
    let count = lines.number();
    let given = lines.count.min(match fft.form {
        Form::FromHalf => fft.size as usize / 2 + 1,
        _ => fft.size as usize,
    });
    let (from, to) = (Shared(x.data.cast::<A>()), Shared(out.data.cast::<B>()));
    let is_across = lines.to_step != 1;
    let together = if is_across { TOGETHER } else { 1 };
    let least = PART.div_ceil(fft.size as usize);
    let part = least.min(count.div_ceil(pool::threads()));
    let part = part.max(1).next_multiple_of(together);
    let is_worth_it = count * fft.size as usize >= 2 * PART;
    pool::parallel(count.div_ceil(part), is_worth_it, &|at| {
        let mut work = worker();
        let end = count.min((at + 1) * part);
        let (from_apart, to_apart) = (given + APART, results + APART);
        let mut read = vec![A::default(); together * from_apart];
        let mut made = vec![B::default(); if is_across { together * to_apart } else { 0 }];
        let mut places = [(0, 0); TOGETHER];
        for first in (at * part..end).step_by(together) {
            let number = together.min(end - first);
            for (i, place) in places.iter_mut().enumerate().take(number) {
                *place = lines.place(first + i);
            }
            let places = &places[..number];
            // SAFETY: lines of the array, and lines of the result that are this part's alone.
            unsafe {
                if !is_across {
                    let line = from.offset(places[0].0);
                    let to = std::slice::from_raw_parts_mut(to.offset(places[0].1), results);
                    match lines.step {
                        1 => work(std::slice::from_raw_parts(line, given), to),
                        step => {
                            for (k, x) in read.iter_mut().enumerate().take(given) {
                                *x = *line.offset(k as isize * step);
                            }
                            work(&read[..given], to);
                        }
                    }
                    B::finish(to, fft);
                    continue;
                }
                for k in 0..given {
                    let row = from.offset(k as isize * lines.step);
                    for (i, (place, _)) in places.iter().enumerate() {
                        *read.get_unchecked_mut(i * from_apart + k) = *row.offset(*place);
                    }
                }
                for i in 0..number {
                    let line = &mut made[i * to_apart..][..results];
                    work(&read[i * from_apart..][..given], line);
                    B::finish(line, fft);
                }
                for k in 0..results {
                    let row = to.offset(k as isize * lines.to_step);
                    for (i, (_, place)) in places.iter().enumerate() {
                        *row.offset(*place) = *made.get_unchecked(i * to_apart + k);
                    }
                }
            }
        }
    });
}
