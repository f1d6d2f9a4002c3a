//! Reductions by plain loops in f64.

use super::super::reduction::layout::{Frame, Launch};
use super::super::reduction::{Fold, Kept, Rows, Step};
use super::emulated::{bytes, Held};
use super::{number, Link, Links, Operand, Type};
use emlx_cpu::{ElementType, Kernel, View};

/// Rows over arrays, with what plain loops come to.
pub struct Case {
    pub rows: Rows,
    pub inputs: Vec<Held>,
    pub shape: Vec<i32>,
    pub axes: Vec<u8>,
    pub parts: usize,
    pub most: usize,
}

impl Case {
    pub fn new(rows: Rows, inputs: Vec<Held>, shape: &[i32], axes: &[u8]) -> Case {
        Case {
            rows,
            inputs,
            shape: shape.to_vec(),
            axes: axes.to_vec(),
            parts: 1,
            most: usize::MAX,
        }
    }

    pub fn frame(&self) -> Frame<'_> {
        Frame {
            shape: &self.shape,
            axes: &self.axes,
            parts: self.parts,
        }
    }

    pub fn launch(&self) -> Launch {
        let views: Vec<View> = self.inputs.iter().map(Held::view).collect();
        Launch::within(self.most, &self.rows, self.frame(), &views).expect("has a kernel")
    }

    pub fn size(&self) -> usize {
        self.shape.iter().map(|size| *size as usize).product()
    }

    /// Elements of a result.
    pub fn count(&self, kept: &Kept) -> usize {
        match kept.is_wide {
            true => self.size(),
            false => self.frame().counts().1 * self.parts,
        }
    }

    /// For each element of the shape, the number of its result.
    pub fn results(&self) -> Vec<usize> {
        let mut places = vec![0; self.size()];
        for (at, place) in places.iter_mut().enumerate() {
            let mut rest = at;
            let mut step = 1;
            for axis in (0..self.shape.len()).rev() {
                let size = self.shape[axis] as usize;
                if !self.axes.contains(&(axis as u8)) {
                    *place += rest % size * step;
                    step *= size;
                }
                rest /= size;
            }
        }
        places
    }

    /// An input's elements in the order of the shape.
    fn spread(&self, input: &Held, size: usize) -> Vec<u8> {
        let rank = self.shape.len();
        let mut all = Vec::with_capacity(self.size() * size);
        for at in 0..self.size() {
            let (mut rest, mut place) = (at, 0i64);
            for axis in (0..rank).rev() {
                let index = rest % self.shape[axis] as usize;
                rest /= self.shape[axis] as usize;
                let own = (axis + input.shape.len()).checked_sub(rank);
                if let Some(own) = own.filter(|own| input.shape[*own] != 1) {
                    place += index as i64 * input.strides[own];
                }
            }
            let from = (input.offset as i64 + place * size as i64) as usize;
            all.extend(&input.memory[from..from + size]);
        }
        all
    }

    /// Each step's values, in the order of the shape.
    pub fn expected(&self) -> Vec<Vec<u8>> {
        let mut made: Vec<Vec<u8>> = Vec::new();
        for step in &self.rows.steps {
            let operands = step.operands();
            let operands = operands.iter().enumerate().map(|(place, operand)| {
                let size = step.from(place).size();
                match *operand {
                    Operand::Input(input) => self.spread(&self.inputs[usize::from(input)], size),
                    Operand::Link(step) => made[usize::from(step)].clone(),
                }
            });
            let operands: Vec<Vec<u8>> = operands.collect();
            let value = match step {
                Step::Link(link) => self.link(link, &operands),
                Step::Fold { fold, of, .. } => self.fold(*fold, *of, &operands),
            };
            made.push(value);
        }
        made
    }

    fn link(&self, link: &Link, operands: &[Vec<u8>]) -> Vec<u8> {
        let shape = [self.size() as i32];
        let mut memory = vec![0u8; self.size() * link.to.size()];
        let inputs = [0, 1, 2].map(Operand::Input);
        let alone = Link::new(link.action, link.from, link.to, &inputs[..operands.len()]);
        // SAFETY: as large as the shape says.
        unsafe {
            let views: Vec<View> = operands
                .iter()
                .map(|operand| View::of(operand.as_ptr(), &shape, &[1]))
                .collect();
            let out = View::of(memory.as_mut_ptr(), &shape, &[1]);
            Kernel::Chain(Links::from_iter([alone])).run(ElementType::F32, &views, &out);
        }
        memory
    }

    fn fold(&self, fold: Fold, of: Type, operands: &[Vec<u8>]) -> Vec<u8> {
        let results = self.results();
        let mut all: Vec<Vec<usize>> = vec![Vec::new(); self.frame().counts().1];
        results
            .iter()
            .enumerate()
            .for_each(|(at, result)| all[*result].push(at));
        let size = of.size();
        let element = |at: usize| &operands[0][at * size..(at + 1) * size];
        let values: Vec<Vec<u8>> = all
            .iter()
            .map(|places| match of.is_float() {
                true => {
                    let numbers: Vec<f64> =
                        places.iter().map(|at| number(of, element(*at))).collect();
                    of_floats(fold, of, &numbers, |i| self.place(i, places, operands))
                }
                false => {
                    let numbers: Vec<i128> =
                        places.iter().map(|at| whole(of, element(*at))).collect();
                    of_wholes(fold, of, &numbers, |i| self.place(i, places, operands))
                }
            })
            .collect();
        let values = results.iter().flat_map(|result| values[*result].clone());
        values.collect()
    }

    /// The place that an operand names for element `i` of those that are folded, or `i`.
    fn place(&self, i: usize, places: &[usize], operands: &[Vec<u8>]) -> u32 {
        match operands.get(1) {
            None => i as u32,
            Some(named) => {
                let at = places[i] * 4;
                u32::from_ne_bytes(named[at..at + 4].try_into().expect("four bytes"))
            }
        }
    }
}

pub fn whole(of: Type, bytes: &[u8]) -> i128 {
    let mut all = [0u8; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    let number = i128::from_le_bytes(all);
    let bits = 8 * of.size() as u32;
    let is_signed = matches!(of, Type::S8 | Type::S16 | Type::S32 | Type::S64);
    match is_signed && number >> (bits - 1) == 1 {
        true => number - (1 << bits),
        false => number,
    }
}

fn best<T: Copy + PartialOrd>(numbers: &[T], is_max: bool) -> usize {
    let mut best = 0;
    for (i, x) in numbers.iter().enumerate() {
        if is_max && *x > numbers[best] || !is_max && *x < numbers[best] {
            best = i;
        }
    }
    best
}

fn of_floats(fold: Fold, of: Type, x: &[f64], place: impl Fn(usize) -> u32) -> Vec<u8> {
    let nan = x.iter().position(|x| x.is_nan());
    let extreme = |is_max: bool| match nan {
        Some(_) => f64::NAN,
        None => x[best(x, is_max)],
    };
    match fold {
        Fold::Sum => bytes(Type::F32, 0, x.iter().sum()),
        Fold::Product => bytes(Type::F32, 0, x.iter().product()),
        Fold::Max => bytes(of, 0, extreme(true)),
        Fold::Min => bytes(of, 0, extreme(false)),
        Fold::Place {
            is_max,
            is_last_nan,
        } => {
            let last = x.iter().rposition(|x| x.is_nan());
            let nan = if is_last_nan { last } else { nan };
            place(nan.unwrap_or_else(|| best(x, is_max)))
                .to_ne_bytes()
                .to_vec()
        }
        Fold::All | Fold::Any => unreachable!("of booleans"),
    }
}

fn of_wholes(fold: Fold, of: Type, x: &[i128], place: impl Fn(usize) -> u32) -> Vec<u8> {
    let wrapped = |x: i128| x.to_le_bytes()[..of.size()].to_vec();
    match fold {
        Fold::Sum => wrapped(x.iter().fold(0, |a, b| a.wrapping_add(*b))),
        Fold::Product => wrapped(x.iter().fold(1, |a, b| (a * b) & (u64::MAX as i128))),
        Fold::Max => wrapped(x[best(x, true)]),
        Fold::Min => wrapped(x[best(x, false)]),
        Fold::All => vec![u8::from(x.iter().all(|x| *x != 0))],
        Fold::Any => vec![u8::from(x.iter().any(|x| *x != 0))],
        Fold::Place { is_max, .. } => place(best(x, is_max)).to_ne_bytes().to_vec(),
    }
}
