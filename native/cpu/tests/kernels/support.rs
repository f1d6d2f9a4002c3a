//! Arrays in any layout, and numbers from a seed.

use emlx_cpu::internals::element::Element;
use emlx_cpu::View;

/// Whole numbers from a seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// An array that lies in some way in a buffer: axes in any order, turned, with gaps, or repeated.
pub struct Scattered<T> {
    pub data: Vec<T>,
    pub shape: Vec<i32>,
    pub strides: Vec<i64>,
    first: usize,
}

impl<T: Element> Scattered<T> {
    pub fn new(dice: &mut Dice, shape: &[i32], number: impl Fn(&mut Dice) -> f32) -> Scattered<T> {
        Scattered::of(dice, shape, |dice| T::narrow(number(dice)))
    }
}

impl<T: Copy> Scattered<T> {
    pub fn of(dice: &mut Dice, shape: &[i32], number: impl Fn(&mut Dice) -> T) -> Scattered<T> {
        let mut order: Vec<usize> = (0..shape.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, dice.below(i + 1));
        }
        if dice.below(2) == 0 {
            order = (0..shape.len()).rev().collect();
        }
        let (mut strides, mut size, mut first) = (vec![0; shape.len()], 1i64, 0);
        for axis in order {
            let wide = i64::from(shape[axis]);
            let step = match dice.below(8) {
                0 => 0,
                1 => 2 * size,
                2 => -size,
                _ => size,
            };
            strides[axis] = step;
            first += (-step).max(0) * (wide - 1);
            size = (size + step.abs() * (wide - 1)).max(size);
            if step != 0 && dice.below(8) > 0 {
                size = size.max(step.abs() * wide);
            }
        }
        let data = (0..size).map(|_| number(dice)).collect();
        Scattered {
            data,
            shape: shape.to_vec(),
            strides,
            first: first as usize,
        }
    }

    pub fn in_rows(data: Vec<T>, shape: &[i32]) -> Scattered<T> {
        Scattered {
            data,
            shape: shape.to_vec(),
            strides: in_rows(shape),
            first: 0,
        }
    }

    pub fn view(&self) -> View {
        // SAFETY: of arrays of the test's own, which outlive it.
        unsafe { View::of(&self.data[self.first], &self.shape, &self.strides) }
    }

    /// The element at a place.
    pub fn at(&self, place: &[i64]) -> T {
        let offset: i64 = place
            .iter()
            .zip(&self.strides)
            .map(|(i, step)| i * step)
            .sum();
        self.data[(self.first as i64 + offset) as usize]
    }
}

impl<T: Element> Scattered<T> {
    /// Every element with its place, in row-major order.
    pub fn each(&self, mut work: impl FnMut(&[usize], f64)) {
        let mut place = vec![0; self.shape.len()];
        if self.shape.contains(&0) {
            return;
        }
        loop {
            let at = place.iter().zip(&self.strides);
            let at: i64 = at.map(|(i, step)| *i as i64 * step).sum();
            let at = (self.first as i64 + at) as usize;
            work(&place, f64::from(self.data[at].widen()));
            let Some(axis) = (0..place.len())
                .rev()
                .find(|axis| place[*axis] + 1 < self.shape[*axis] as usize)
            else {
                return;
            };
            place[axis] += 1;
            place[axis + 1..].fill(0);
        }
    }
}

/// The strides of an array in rows.
pub fn in_rows(shape: &[i32]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * i64::from(shape[i]);
    }
    strides
}

/// Numbers between -1 and 1 from a seed.
pub fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The indices of each element, in rows.
pub fn each_place(shape: &[i32]) -> Vec<Vec<i64>> {
    let mut all = vec![vec![]];
    for size in shape {
        let longer = all.iter().flat_map(|at: &Vec<i64>| {
            (0..i64::from(*size)).map(|i| [at.clone(), vec![i]].concat())
        });
        all = longer.collect();
    }
    all
}
