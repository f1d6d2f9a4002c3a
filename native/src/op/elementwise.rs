//! Operations on elements as actions of the CPU's kernels: [`links`] says of which actions an operation consists, for
//! eager calls here and for the pass `chains`, which puts the links of several operations together.

use super::cuda::chain as generated;
use super::{Binary, Inputs, Op, Unary};
use crate::base::{Device, Dtype, Error, Result};
use crate::cpu::{
    self, Action, Bits, Comparison, Division, Function, Link, Links, Operand, Pair, Test, Type,
};
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use smallvec::SmallVec;

/// The operation's actions on inputs of these types (nil for those that are left out), each operand first cast to the
/// type that the action takes. None where the kernels have no such action, or an input is complex.
pub fn links(op: &Op, given: &[Option<Dtype>]) -> Option<Links> {
    let mut links = Builder {
        links: Links::new(),
        given,
    };
    links.operation(op)?;
    Some(links.links)
}

struct Builder<'a> {
    links: Links,
    given: &'a [Option<Dtype>],
}

impl Builder<'_> {
    fn operation(&mut self, op: &Op) -> Option<()> {
        // Another number of inputs is an error, which the file of the operation's class returns.
        let count = self.given.len();
        match (op.unary(), op.binary()) {
            (Some(unary), _) if count == 1 => return self.unary(unary),
            (_, Some(binary)) if count == 2 => return self.binary(binary),
            _ => {}
        }
        match op {
            Op::Astype { dtype } if count == 1 => {
                let to = cpu::type_of(*dtype)?;
                let from = cpu::type_of(self.dtype(0)?)?;
                self.push(Action::Cast, from, to, &[Operand::Input(0)])
            }
            Op::ToInteger { dtype } if count == 1 => {
                let to = cpu::type_of(*dtype)?;
                let from = cpu::type_of(self.dtype(0)?)?;
                let action = if from.is_float() {
                    Action::ToInteger
                } else {
                    Action::Cast
                };
                self.push(action, from, to, &[Operand::Input(0)])
            }
            Op::Where if count == 3 => {
                let both = self.promoted(1, 2)?;
                let operands = [
                    self.choice(0)?,
                    self.operand(1, both)?,
                    self.operand(2, both)?,
                ];
                self.push(Action::Select, both, both, &operands)
            }
            Op::Clip if count == 3 => self.clip(),
            _ => None,
        }
    }

    fn dtype(&self, input: usize) -> Option<Dtype> {
        self.given.get(input).copied().flatten()
    }

    fn promoted(&self, a: usize, b: usize) -> Option<Type> {
        promoted(self.dtype(a)?, self.dtype(b)?)
    }

    fn push(&mut self, action: Action, from: Type, to: Type, operands: &[Operand]) -> Option<()> {
        if !action.takes(from, to) {
            return None;
        }
        self.links.push(Link::new(action, from, to, operands));
        Some(())
    }

    /// An input as a type: by a cast where it is of another.
    fn operand(&mut self, input: usize, wanted: Type) -> Option<Operand> {
        let own = cpu::type_of(self.dtype(input)?)?;
        let operand = Operand::Input(input as u8);
        if own == wanted {
            return Some(operand);
        }
        self.push(Action::Cast, own, wanted, &[operand])?;
        Some(Operand::Link(self.links.len() as u8 - 1))
    }

    /// An input as what a choice goes by: any byte, of which zero stands for false.
    fn choice(&mut self, input: usize) -> Option<Operand> {
        match cpu::type_of(self.dtype(input)?)? {
            own if cpu::is_as_boolean(own) => Some(Operand::Input(input as u8)),
            _ => self.operand(input, Type::Bool),
        }
    }

    fn one(&mut self, action: Action, from: Type, to: Type) -> Option<()> {
        let operand = self.operand(0, from)?;
        self.push(action, from, to, &[operand])
    }

    fn two(&mut self, action: Action, from: Type, to: Type) -> Option<()> {
        let operands = [self.operand(0, from)?, self.operand(1, from)?];
        self.push(action, from, to, &operands)
    }

    fn unary(&mut self, op: Unary) -> Option<()> {
        let own = cpu::type_of(self.dtype(0)?)?;
        if let Some(function) = op.kernel() {
            // What integers have a function of their own for; else it is one of f32.
            let action = Action::Unary(function);
            let is_exact = matches!(op, Unary::Negative | Unary::Abs | Unary::Square);
            let from = match own.is_float() || is_exact {
                true => own,
                false if changes_integers(op) => Type::F32,
                false => return None,
            };
            return self.one(action, from, from);
        }
        let test = match op {
            Unary::LogicalNot => return self.one(Action::Not, Type::Bool, Type::Bool),
            Unary::BitwiseInvert if own.is_integer() => return self.one(Action::Not, own, own),
            Unary::Isnan => Test::Nan,
            Unary::Isinf => Test::Infinite,
            Unary::Isposinf => Test::PositiveInfinity,
            Unary::Isneginf => Test::NegativeInfinity,
            Unary::Isfinite => Test::Finite,
            _ => return None,
        };
        self.one(Action::Test(test), own, Type::Bool)
    }

    fn binary(&mut self, op: Binary) -> Option<()> {
        let both = self.promoted(0, 1)?;
        if let Some(action) = comparison(op) {
            return self.two(Action::Compare(action), both, Type::Bool);
        }
        if let Some((of_bits, of_numbers)) = logic(op) {
            return match self.dtype(0) == self.dtype(1) && both != Type::Bool {
                true => self.two(Action::Compare(of_numbers), both, Type::Bool),
                false => self.two(Action::Bits(of_bits), Type::Bool, Type::Bool),
            };
        }
        if let Some(bits) = bits(op) {
            return self.two(Action::Bits(bits), both, both);
        }
        // Booleans are divided as the integers that they are counted in.
        let counted = match both {
            Type::Bool => Type::S32,
            other => other,
        };
        match division(op) {
            // Refused where it is built.
            Some(Division::Quotient) if both == Type::Bool => return None,
            Some(division) if counted.is_integer() => {
                return self.two(Action::Division(division), counted, counted)
            }
            _ => {}
        }
        // Of integers MLX divides as floats, and has powers of its own.
        let is_float = both.is_float();
        match op.kernel()? {
            Pair::Divide if !is_float => {
                self.two(Action::Binary(Pair::Divide), Type::F32, Type::F32)
            }
            pair => self.two(Action::Binary(pair), both, both),
        }
    }

    fn clip(&mut self) -> Option<()> {
        let mut own = self.dtype(0)?;
        for bound in [1, 2] {
            if let Some(dtype) = self.dtype(bound) {
                own = cpu::dtype_of(promoted(own, dtype)?);
            }
        }
        let own = cpu::type_of(own)?;
        let mut value = self.operand(0, own)?;
        for (bound, pair) in [(1, Pair::Maximum), (2, Pair::Minimum)] {
            if self.dtype(bound).is_some() {
                let operands = [value, self.operand(bound, own)?];
                self.push(Action::Binary(pair), own, own, &operands)?;
                value = Operand::Link(self.links.len() as u8 - 1);
            }
        }
        matches!(value, Operand::Link(_)).then_some(())
    }
}

/// Whether MLX computes the function of an integer in f32. Of those that it leaves as they are there is nothing to do.
fn changes_integers(op: Unary) -> bool {
    !matches!(
        op,
        Unary::Ceil
            | Unary::Floor
            | Unary::Trunc
            | Unary::Round { .. }
            | Unary::RoundAway
            | Unary::Sign
    )
}

fn comparison(op: Binary) -> Option<Comparison> {
    Some(match op {
        Binary::Equal => Comparison::Equal,
        Binary::NotEqual => Comparison::NotEqual,
        Binary::Less => Comparison::Less,
        Binary::LessEqual => Comparison::LessEqual,
        Binary::Greater => Comparison::Greater,
        Binary::GreaterEqual => Comparison::GreaterEqual,
        _ => return None,
    })
}

/// Of booleans, and of numbers of one type.
fn logic(op: Binary) -> Option<(Bits, Comparison)> {
    Some(match op {
        Binary::LogicalAnd => (Bits::And, Comparison::And),
        Binary::LogicalOr => (Bits::Or, Comparison::Or),
        Binary::LogicalXor => (Bits::Xor, Comparison::Xor),
        _ => return None,
    })
}

fn bits(op: Binary) -> Option<Bits> {
    Some(match op {
        Binary::BitwiseAnd => Bits::And,
        Binary::BitwiseOr => Bits::Or,
        Binary::BitwiseXor => Bits::Xor,
        Binary::LeftShift => Bits::ShiftLeft,
        Binary::RightShift => Bits::ShiftRight,
        _ => return None,
    })
}

fn division(op: Binary) -> Option<Division> {
    Some(match op {
        Binary::Quotient => Division::Quotient,
        Binary::FloorDivide => Division::Floor,
        Binary::Fmod => Division::Fmod,
        Binary::Remainder => Division::Remainder,
        _ => return None,
    })
}

/// The type that MLX promotes two types to. None where it is complex.
fn promoted(a: Dtype, b: Dtype) -> Option<Type> {
    let dtype = if a == b { a } else { mlx::promoted(a, b) };
    cpu::type_of(dtype)
}

/// Whether MLX does it as well in the time that memory takes, so that only threads pay.
fn is_simple(link: &Link) -> bool {
    match link.action {
        Action::Unary(function) => function.is_simple(),
        Action::Binary(pair) => pair != Pair::Power && link.from == Type::F32,
        Action::Cast | Action::Compare(_) | Action::Bits(_) | Action::Not => true,
        Action::Test(_) | Action::Division(_) | Action::Select | Action::ToInteger => false,
    }
}

/// Elements from which a single link has a generated kernel on a GPU.
const LARGE: i64 = 1 << 21;

/// Whether MLX's form of it on a GPU is several kernels, one after another, or means something else than the CPU's.
fn is_composed(link: &Link) -> bool {
    match link.action {
        Action::Unary(function) => matches!(
            function,
            Function::Cbrt | Function::RoundAway | Function::Erfc
        ),
        Action::Binary(pair) => pair == Pair::Fmod,
        Action::Bits(bits) => matches!(bits, Bits::ShiftLeft | Bits::ShiftRight),
        Action::Test(test) => matches!(test, Test::Infinite | Test::Finite),
        // Numbers are cast to booleans first.
        Action::Compare(comparison) => matches!(
            comparison,
            Comparison::And | Comparison::Or | Comparison::Xor
        ),
        Action::Division(_) | Action::ToInteger => true,
        // MLX's is one kernel, and leaves open what is beyond the integers.
        Action::Cast => link.from.is_float() && link.to.is_integer(),
        Action::Not | Action::Select => false,
    }
}

/// The last link's value by a generated kernel, of arrays of the GPU. None where there is none for them.
fn by_links(links: Links, arrays: &[&Array], s: &Stream) -> Result<Option<Array>> {
    if generated::unavailable().is_some() || !generated::takes(&links) {
        return Ok(None);
    }
    match cpu::broadcast(arrays.iter().map(|array| array.shape())) {
        Some(shape) if !shape.contains(&0) => {
            Ok(generated::results(links, false, arrays, &shape, s)?.pop())
        }
        _ => Ok(None),
    }
}

/// Operations on elements, one after another. Each takes inputs, and, as links, what operations before it give.
pub type Steps = SmallVec<[(Op, SmallVec<[Operand; 3]>); 8]>;

/// A step of [`Steps`].
pub fn step(op: Op, operands: &[Operand]) -> (Op, SmallVec<[Operand; 3]>) {
    (op, operands.into())
}

/// What the last step gives: by one generated kernel where there are any, else by MLX's operations.
pub fn in_one(steps: Steps, arrays: &[&Array], s: &Stream) -> Result<Array> {
    if s.is_gpu() {
        let given: SmallVec<[Dtype; 8]> = arrays.iter().copied().map(mlx::dtype).collect();
        if let Some(links) = links_of_steps(&steps, &given) {
            if let Some(array) = by_links(links, arrays, s)? {
                return Ok(array);
            }
        }
    }
    let device = match s.is_gpu() {
        true => Device::Gpu,
        false => Device::Cpu,
    };
    let mut made: SmallVec<[Array; 8]> = SmallVec::new();
    for (op, operands) in &steps {
        let output = {
            let operand = |operand: &Operand| match *operand {
                Operand::Input(input) => arrays.get(usize::from(input)).copied(),
                Operand::Link(step) => made.get(usize::from(step)),
            };
            let operands: SmallVec<[Option<&Array>; 3]> = operands.iter().map(operand).collect();
            op.composed(&Inputs(&operands), device, s)?.pop()
        };
        made.push(output.ok_or_else(|| super::no_case(op))?);
    }
    made.pop()
        .ok_or_else(|| Error::invalid("there is no operation"))
}

/// The links of steps on inputs of these types. None where an operation has none.
pub fn links_of_steps(steps: &Steps, given: &[Dtype]) -> Option<Links> {
    let mut all = Links::new();
    let mut values: SmallVec<[(Operand, Dtype); 8]> = SmallVec::new();
    for (op, operands) in steps {
        let taken = operands.iter().map(|operand| match *operand {
            Operand::Input(input) => Some((*operand, *given.get(usize::from(input))?)),
            Operand::Link(step) => values.get(usize::from(step)).copied(),
        });
        let taken: SmallVec<[(Operand, Dtype); 3]> = taken.collect::<Option<_>>()?;
        let dtypes: SmallVec<[Option<Dtype>; 3]> =
            taken.iter().map(|(_, dtype)| Some(*dtype)).collect();
        let mut own: SmallVec<[(Operand, Dtype); 4]> = SmallVec::new();
        for link in links(op, &dtypes)? {
            let operand = |operand: &Operand| match *operand {
                Operand::Link(number) => own[usize::from(number)].0,
                Operand::Input(number) => taken[usize::from(number)].0,
            };
            let operands: SmallVec<[Operand; 3]> = link.operands().iter().map(operand).collect();
            let value = cpu::push_link(&mut all, link.over(&operands));
            own.push((value, cpu::dtype_of(link.to)));
        }
        values.push(*own.last()?);
    }
    let is_last = values.last()?.0 == Operand::Link(all.len().checked_sub(1)? as u8);
    is_last.then_some(all)
}

/// Links with a cast of the last one's result behind them, where it is another number in the type. On the GPU also where
/// it is another type alone, since a generated kernel's result has the last link's.
fn cast_to(mut links: Links, to: Option<Dtype>, device: Device) -> Option<Links> {
    let Some(to) = to else { return Some(links) };
    let (to, from) = (cpu::type_of(to)?, links.last()?.to);
    let is_boolean = from == Type::Bool && cpu::is_as_boolean(to);
    let is_same = to == from || device == Device::Cpu && is_boolean;
    if !is_same {
        let operand = Operand::Link(links.len() as u8 - 1);
        let is_taken = Action::Cast.takes(from, to);
        is_taken.then(|| links.push(Link::new(Action::Cast, from, to, &[operand])))?;
    }
    Some(links)
}

/// The operation as a kernel of ours, where there is one for its inputs and it pays, with its result cast to the type
/// that is given. Else None.
pub fn by_kernel(
    op: &Op,
    inputs: &Inputs,
    to: Option<Dtype>,
    device: Device,
    s: &Stream,
) -> Result<Option<Array>> {
    let is_there = match device {
        Device::Cpu => cpu::are_there(),
        Device::Gpu => generated::unavailable().is_none(),
    };
    if !is_there {
        return Ok(None);
    }
    let given: SmallVec<[Option<Dtype>; 3]> =
        inputs.0.iter().map(|array| array.map(mlx::dtype)).collect();
    let Some(links) = links(op, &given).and_then(|links| cast_to(links, to, device)) else {
        return Ok(None);
    };
    let arrays: SmallVec<[&Array; 3]> = inputs.0.iter().flatten().copied().collect();
    let shapes = arrays.iter().map(|array| array.shape());
    let Some(shape) = cpu::broadcast(shapes) else {
        return Ok(None);
    };
    let size: i64 = shape.iter().map(|size| i64::from(*size)).product();
    if device == Device::Gpu {
        // MLX has a kernel for one link, whose blocks of 1,024 threads take a third longer where it is memory that
        // takes the time.
        let is_whole = |array: &&Array| array.size() == 1 || array.shape() == &shape[..];
        let is_large = size >= LARGE && arrays.iter().all(is_whole);
        if links.len() == 1 && !is_composed(&links[0]) && !is_large {
            return Ok(None);
        }
        let links = cpu::renumbered(links, |input| given[..input].iter().flatten().count());
        return by_links(links, &arrays, s);
    }
    let casts = links.iter().filter(|link| link.action == Action::Cast);
    let is_worth = size >= cpu::WORTH_SHARING as i64
        || !links.iter().all(is_simple)
        || links.len() > casts.count() + 1;
    if size == 0 {
        return Ok(None);
    }
    let Some(dtype) = to.or_else(|| links.last().map(|link| cpu::dtype_of(link.to))) else {
        return Ok(None);
    };
    // An input that is left out has no number.
    let links = cpu::renumbered(links, |input| given[..input].iter().flatten().count());
    match is_worth {
        true => Ok(cpu::chain_of(links, &arrays, &shape, &[dtype], s)?.pop()),
        // As a node, MLX's own does as well, and is one that MLX compiles with others.
        false => cpu::chain_at_once(links, &arrays, &shape, dtype, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_the_same_by_links_and_one_by_one() {
        mlx::init();
        let stream = Device::Cpu.stream().expect("a stream");
        let [a, b] = [0, 1].map(Operand::Input);
        let [first, second, third] = [0, 1, 2].map(Operand::Link);
        let steps = || -> Steps {
            let steps = [
                step(Op::Log, &[a]),
                step(Op::Add, &[first, b]),
                step(Op::Isinf, &[b]),
                step(Op::Where, &[third, b, second]),
            ];
            steps.into_iter().collect()
        };
        let floats = |numbers: [f32; 4]| {
            let bytes = numbers.map(f32::to_ne_bytes).concat();
            mlx::from_bytes(&bytes, &[4], Dtype::F32).expect("an array")
        };
        let x = floats([1.0, 3.5, 0.25, 7.0]);
        let y = floats([2.0, f32::INFINITY, f32::NEG_INFINITY, -0.5]);
        let links = links_of_steps(&steps(), &[Dtype::F32; 2]).expect("has links");
        assert_eq!(links.len(), 4);
        let chained = cpu::chain(links, &[&x, &y], &[4], stream).expect("built");
        let arrays = [
            mlx::share(&chained[0]).expect("shared"),
            in_one(steps(), &[&x, &y], stream).expect("built"),
        ];
        mlx::async_eval(&[&arrays[0], &arrays[1]], &mlx::graph_lock()).expect("submitted");
        let [have, want] = arrays.each_ref().map(|array| {
            mlx::wait(array).expect("computed");
            // SAFETY: computed.
            let bytes = unsafe { mlx::bytes(array) }.expect("in rows");
            let numbers = bytes
                .chunks_exact(4)
                .map(|four| four.try_into().expect("four"));
            numbers.map(f32::from_ne_bytes).collect::<Vec<f32>>()
        });
        let is_near = |(a, b): (&f32, &f32)| a == b || (a - b).abs() < 1e-6;
        assert!(have.iter().zip(&want).all(is_near), "{have:?}, {want:?}");
        // Complex numbers have no links, and an input that is not there none either.
        assert_eq!(links_of_steps(&steps(), &[Dtype::C64; 2]), None);
        assert_eq!(links_of_steps(&steps(), &[Dtype::F32]), None);
    }
}
