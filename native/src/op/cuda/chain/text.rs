//! The text of a kernel in CUDA's C++ for links on elements, a line for each link. One text serves all shapes of a
//! structure: sizes and strides are arguments.

use super::layout::{Kind, Structure, THREADS};
use crate::cpu::{Action, Bits, Comparison, Division, Function, Link, Operand, Pair, Test, Type};
use std::fmt::Write;

/// What stands before each kernel.
pub const PRELUDE: &str = include_str!("prelude.cu");

/// Stands for the kernel's name, which is made of the text.
pub const NAME: &str = "EMLX_CHAIN";

/// How an element lies in memory.
pub fn stored(of: Type) -> &'static str {
    match of {
        Type::Bool | Type::U8 => "u8",
        Type::U16 | Type::F16 | Type::Bf16 => "u16",
        Type::U32 => "u32",
        Type::U64 => "u64",
        Type::S8 => "s8",
        Type::S16 => "s16",
        Type::S32 => "s32",
        Type::S64 => "s64",
        Type::F32 => "float",
        // The GPU has none; see `takes`.
        Type::F64 => "double",
    }
}

/// What an element is computed with.
pub fn register(of: Type) -> &'static str {
    match of.is_float() {
        true => "float",
        false => stored(of),
    }
}

/// The unsigned integer of as many bits.
fn unsigned(of: Type) -> &'static str {
    match of.size() {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        _ => "u64",
    }
}

/// The unsigned integer that numbers are added and multiplied in, and so wrap around.
fn wide(of: Type) -> &'static str {
    match of.size() {
        8 => "u64",
        _ => "u32",
    }
}

pub fn is_signed(of: Type) -> bool {
    matches!(of, Type::S8 | Type::S16 | Type::S32 | Type::S64)
}

/// An element as it was read.
pub fn widened(of: Type, element: &str) -> String {
    match of {
        Type::F16 => format!("of_f16({element})"),
        Type::Bf16 => format!("of_bf16({element})"),
        _ => element.into(),
    }
}

/// An element to be written.
pub fn narrowed(of: Type, number: &str) -> String {
    match of {
        Type::F16 => format!("to_f16({number})"),
        Type::Bf16 => format!("to_bf16({number})"),
        _ => number.into(),
    }
}

/// A float that was computed, as one of the type.
fn rounded(of: Type, number: String) -> String {
    match of {
        Type::F16 => format!("round_f16({number})"),
        Type::Bf16 => format!("round_bf16({number})"),
        _ => number,
    }
}

/// A link's value from its operands', which are names or constants. None where there is none on a GPU.
pub fn expression(link: &Link, operands: &[String]) -> Option<String> {
    let (from, to) = (link.from, link.to);
    if from == Type::F64 || to == Type::F64 || !link.action.takes(from, to) {
        return None;
    }
    let a = operands.first()?;
    let b = || operands.get(1).cloned();
    Some(match link.action {
        Action::Unary(function) if from.is_float() => float_function(function, from, a),
        Action::Unary(function) => whole_function(function, from, a)?,
        Action::Binary(pair) if from.is_float() => float_pair(pair, from, a, &b()?),
        Action::Binary(pair) => whole_pair(pair, from, a, &b()?)?,
        Action::Bits(bits) => bitwise(bits, from, a, &b()?),
        Action::Not if from == Type::Bool => format!("u8({a} ^ 1)"),
        Action::Not => format!("{}(~{a})", register(from)),
        Action::Division(division) => {
            let name = match division {
                Division::Quotient => "quotient",
                Division::Floor => "floor_divide",
                Division::Fmod => "int_fmod",
                Division::Remainder => "remainder_of",
            };
            format!("{name}<{}>({a}, {})", register(from), b()?)
        }
        Action::Compare(comparison) => {
            let sign = match comparison {
                Comparison::Equal => "==",
                Comparison::NotEqual => "!=",
                Comparison::Less => "<",
                Comparison::LessEqual => "<=",
                Comparison::Greater => ">",
                Comparison::GreaterEqual => ">=",
                Comparison::And => "&",
                Comparison::Or => "|",
                Comparison::Xor => "!=",
            };
            let is_logic = matches!(
                comparison,
                Comparison::And | Comparison::Or | Comparison::Xor
            );
            match is_logic {
                true => format!("u8(({a} != 0) {sign} ({} != 0))", b()?),
                false => format!("u8({a} {sign} {})", b()?),
            }
        }
        Action::Test(test) => match test {
            Test::Nan => format!("u8({a} != {a})"),
            Test::Infinite => format!("u8(fabsf({a}) == infinity())"),
            Test::PositiveInfinity => format!("u8({a} == infinity())"),
            Test::NegativeInfinity => format!("u8({a} == -infinity())"),
            Test::Finite => format!("u8(fabsf({a}) < infinity())"),
        },
        Action::Select => format!("{a} != 0 ? {} : {}", b()?, operands.get(2)?),
        Action::Cast => cast(from, to, a),
        Action::ToInteger => {
            let (own, (low, high)) = (register(to), limits(to));
            format!("to_integer<{own}>({a}, {low}, {high})")
        }
    })
}

fn float_function(function: Function, of: Type, x: &str) -> String {
    let name = match function {
        // Exact, so that nothing is rounded.
        Function::Negative => return format!("-{x}"),
        Function::Abs => return format!("fabsf({x})"),
        Function::Sign => return format!("sign({x})"),
        Function::Rsqrt => return rounded(of, format!("1.0f / sqrtf({x})")),
        Function::Square => return rounded(of, format!("{x} * {x}")),
        Function::Reciprocal => return rounded(of, format!("1.0f / {x}")),
        Function::Exp => "expf",
        Function::Sigmoid => "sigmoid",
        Function::Tanh => "tanhf",
        Function::Erf => "erff",
        Function::Sqrt => "sqrtf",
        Function::Floor => "floorf",
        Function::Ceil => "ceilf",
        Function::Trunc => "truncf",
        Function::Round => "rintf",
        Function::RoundAway => "round_away",
        Function::Log => "logf",
        Function::Log1p => "log1pf",
        Function::Expm1 => "expm1f",
        Function::Sin => "sinf",
        Function::Cos => "cosf",
        Function::Tan => "tanf",
        Function::Sinh => "sinhf",
        Function::Cosh => "coshf",
        Function::Asin => "asinf",
        Function::Acos => "acosf",
        Function::Atan => "atanf",
        Function::Asinh => "asinhf",
        Function::Acosh => "acoshf",
        Function::Atanh => "atanhf",
        Function::Log2 => "log2f",
        Function::Log10 => "log10f",
        Function::Cbrt => "cbrtf",
        Function::Erfc => "erfcf",
        Function::Erfinv => "erfinvf",
    };
    rounded(of, format!("{name}({x})"))
}

fn whole_function(function: Function, of: Type, x: &str) -> Option<String> {
    let (own, wide) = (register(of), wide(of));
    Some(match function {
        Function::Negative => format!("{own}({wide}(0) - {wide}({x}))"),
        Function::Abs if is_signed(of) => {
            format!("{x} < 0 ? {own}({wide}(0) - {wide}({x})) : {x}")
        }
        Function::Abs => x.into(),
        Function::Square => format!("{own}({wide}({x}) * {wide}({x}))"),
        _ => return None,
    })
}

fn float_pair(pair: Pair, of: Type, a: &str, b: &str) -> String {
    let number = match pair {
        // Exact.
        Pair::Maximum => return format!("larger({a}, {b})"),
        Pair::Minimum => return format!("smaller({a}, {b})"),
        Pair::Add => format!("{a} + {b}"),
        Pair::Subtract => format!("{a} - {b}"),
        Pair::Multiply => format!("{a} * {b}"),
        Pair::Divide => format!("{a} / {b}"),
        Pair::Power => format!("power({a}, {b})"),
        Pair::Atan2 => format!("atan2f({a}, {b})"),
        Pair::Fmod => format!("fmodf({a}, {b})"),
        Pair::FloorMod => format!("floor_mod({a}, {b})"),
    };
    rounded(of, number)
}

fn whole_pair(pair: Pair, of: Type, a: &str, b: &str) -> Option<String> {
    let (own, wide) = (register(of), wide(of));
    Some(match pair {
        Pair::Add => format!("{own}({wide}({a}) + {wide}({b}))"),
        Pair::Subtract => format!("{own}({wide}({a}) - {wide}({b}))"),
        Pair::Multiply => format!("{own}({wide}({a}) * {wide}({b}))"),
        Pair::Maximum => format!("{a} > {b} ? {a} : {b}"),
        Pair::Minimum => format!("{a} < {b} ? {a} : {b}"),
        _ => return None,
    })
}

fn bitwise(bits: Bits, of: Type, a: &str, b: &str) -> String {
    let (own, wide, count) = (register(of), wide(of), 8 * of.size());
    // A negative number of bits is a large one without its sign.
    let is_near = format!("{}({b}) < {count}", unsigned(of));
    match bits {
        Bits::And => format!("{own}({a} & {b})"),
        Bits::Or => format!("{own}({a} | {b})"),
        Bits::Xor => format!("{own}({a} ^ {b})"),
        Bits::ShiftLeft => format!("{is_near} ? {own}({wide}({a}) << {b}) : {own}(0)"),
        Bits::ShiftRight => {
            let gone = match is_signed(of) {
                true => format!("{a} >> {}", count - 1),
                false => "0".into(),
            };
            format!("{is_near} ? {own}({a} >> {b}) : {own}({gone})")
        }
    }
}

fn cast(from: Type, to: Type, x: &str) -> String {
    let own = register(to);
    match (from.is_float(), to) {
        _ if from == to => x.into(),
        (_, Type::Bool) => format!("u8({x} != 0)"),
        (_, _) if to.is_float() => rounded(to, format!("float({x})")),
        (false, _) => format!("{own}({x})"),
        (true, Type::U64) => format!("to_u64({x})"),
        (true, Type::U32 | Type::S64) => format!("{own}(to_s64({x}))"),
        (true, _) => format!("{own}(to_s32({x}))"),
    }
}

/// The smallest and the largest integer of a type.
fn limits(of: Type) -> (&'static str, &'static str) {
    match of {
        Type::U8 => ("0", "255"),
        Type::U16 => ("0", "65535"),
        Type::U32 => ("0", "0xffffffffu"),
        Type::U64 => ("0", "0xffffffffffffffffull"),
        Type::S8 => ("-128", "127"),
        Type::S16 => ("-32768", "32767"),
        Type::S32 => ("s32(0x80000000u)", "0x7fffffff"),
        _ => ("s64(0x8000000000000000ull)", "0x7fffffffffffffffll"),
    }
}

/// The results' links, in the order of the outputs.
pub fn results(links: &[Link]) -> impl Iterator<Item = (usize, &Link)> + Clone {
    let last = links.len().saturating_sub(1);
    let all = links.iter().enumerate();
    all.filter(move |(i, link)| link.is_kept || *i == last)
}

/// Arguments of a kernel, after its arrays.
pub struct Arguments {
    pub is_wide: bool,
    pub count: usize,
    pub code: String,
}

impl Arguments {
    /// A number of this name, of the type that indices have.
    pub fn take(&mut self, kind: &str, name: &str) {
        let at = self.count;
        let (value, more) = match self.is_wide {
            true => (format!("joined(a{at}, a{})", at + 1), 2),
            false => (format!("a{at}"), 1),
        };
        let _ = writeln!(self.code, "  const {kind} {name} = {value};");
        self.count += more;
    }
}

/// The kernel, whose name is [`NAME`]. None where a link has no text.
pub fn kernel(structure: &Structure) -> Option<String> {
    let Structure {
        links,
        types,
        kinds,
        rank,
        is_joined,
        is_wide,
        pack,
        is_once,
    } = structure;
    let (index, step) = match is_wide {
        true => ("u64", "s64"),
        false => ("u32", "s32"),
    };
    let inputs = || types.iter().zip(kinds).enumerate();
    let of_kind = |wanted: Kind| inputs().filter(move |(_, (_, kind))| **kind == wanted);
    let mut parameters: Vec<String> = types
        .iter()
        .enumerate()
        .map(|(i, of)| format!("const {}* __restrict__ p{i}", stored(*of)))
        .collect();
    let mut arguments = Arguments {
        is_wide: *is_wide,
        count: 0,
        code: String::new(),
    };
    arguments.take(index, "size");
    let is_strided = kinds.contains(&Kind::Strided);
    if is_strided {
        for axis in 0..*rank {
            arguments.take(index, &format!("n{axis}"));
        }
        for (i, _) in of_kind(Kind::Strided) {
            for axis in 0..*rank {
                arguments.take(step, &format!("s{i}_{axis}"));
            }
        }
    }
    let mut code = std::mem::take(&mut arguments.code);
    let outputs = results(links).enumerate();
    for (i, (_, link)) in outputs.clone() {
        let own = stored(link.to);
        match (*is_joined, i) {
            (true, 1..) => {
                let _ = writeln!(code, "  {own}* __restrict__ r{i} = r0 + {i} * size;");
            }
            _ => parameters.push(format!("{own}* __restrict__ r{i}")),
        }
    }
    for (i, (of, _)) in of_kind(Kind::One) {
        let element = widened(*of, &format!("p{i}[0]"));
        let _ = writeln!(code, "  const {} x{i} = {element};", register(*of));
    }
    let wholes = of_kind(Kind::Whole).map(|(i, _)| format!("u64(p{i})"));
    let written = outputs.clone().map(|(i, _)| format!("u64(r{i})"));
    let addresses: Vec<String> = wholes.chain(written).collect();
    let _ = write!(
        code,
        "  const bool is_aligned = (({}) & 15) == 0;
  const {index} stride = {index}(gridDim.x) * {};
  for ({index} at = ({index}(blockIdx.x) * {THREADS} + threadIdx.x) * {pack}; at < size; at += stride) {{
    const int count = size - at < {pack} ? int(size - at) : {pack};
    const bool is_whole = is_aligned && count == {pack};
",
        addresses.join(" | "),
        THREADS * pack,
    );
    for (i, (of, _)) in of_kind(Kind::Whole) {
        let own = stored(*of);
        let _ = writeln!(
            code,
            "    const Pack<{own}, {pack}> q{i} = read_pack<{own}, {pack}, {is_once}>(p{i} + at, count, is_whole);"
        );
    }
    for (i, (_, link)) in outputs.clone() {
        let own = stored(link.to);
        let _ = writeln!(code, "    Pack<{own}, {pack}> w{i};");
    }
    let strided: Vec<usize> = of_kind(Kind::Strided).map(|(i, _)| i).collect();
    if is_strided {
        code.push_str(&places(*rank, &strided, index, step));
    }
    let _ = writeln!(
        code,
        "#pragma unroll\n    for (int j = 0; j < {pack}; ++j) {{"
    );
    for (i, (of, kind)) in inputs() {
        let element = match kind {
            Kind::One => continue,
            Kind::Whole => format!("q{i}.v[j]"),
            Kind::Strided => format!("(j < count ? p{i}[o{i}] : {}(0))", stored(*of)),
        };
        let element = widened(*of, &element);
        let _ = writeln!(code, "      const {} x{i} = {element};", register(*of));
    }
    for (i, link) in links.iter().enumerate() {
        let names = link.operands().iter().map(|operand| match operand {
            Operand::Input(input) => format!("x{input}"),
            Operand::Link(link) => format!("l{link}"),
        });
        let value = expression(link, &names.collect::<Vec<_>>())?;
        let _ = writeln!(code, "      const {} l{i} = {value};", register(link.to));
    }
    for (i, (link, of)) in outputs.clone() {
        let value = narrowed(of.to, &format!("l{link}"));
        let _ = writeln!(code, "      w{i}.v[j] = {value};");
    }
    if is_strided {
        code.push_str(&next(*rank, &strided));
    }
    code.push_str("    }\n");
    for (i, (_, link)) in outputs {
        let own = stored(link.to);
        let _ = writeln!(
            code,
            "    write_pack<{own}, {pack}, {is_once}>(w{i}, r{i} + at, count, is_whole);"
        );
    }
    code.push_str("  }\n");
    parameters.extend((0..arguments.count).map(|i| format!("int a{i}")));
    Some(format!(
        "extern \"C\" __global__ void __launch_bounds__({THREADS}) {NAME}({}) {{\n{code}}}\n",
        parameters.join(", ")
    ))
}

/// The indices of the element `at` along each axis, and where it is in each strided input.
fn places(rank: usize, strided: &[usize], index: &str, step: &str) -> String {
    let mut code = format!("    {index} rest = at;\n");
    for axis in (1..rank).rev() {
        let _ = writeln!(
            code,
            "    {index} c{axis} = rest % n{axis};\n    rest /= n{axis};"
        );
    }
    let _ = writeln!(code, "    {index} c0 = rest;");
    for i in strided {
        let terms = (0..rank).map(|axis| format!("{step}(c{axis}) * s{i}_{axis}"));
        let terms = terms.collect::<Vec<_>>().join(" + ");
        let _ = writeln!(code, "    {step} o{i} = {terms};");
    }
    code
}

/// Goes on to the next element, along the last axis and, at its end, along those before it.
fn next(rank: usize, strided: &[usize]) -> String {
    let mut code = String::new();
    for axis in (0..rank).rev() {
        let depth = rank - 1 - axis;
        let indent = "  ".repeat(3 + depth);
        for i in strided {
            let _ = writeln!(code, "{indent}o{i} += s{i}_{axis};");
        }
        if axis == 0 {
            let _ = writeln!(code, "{indent}++c0;");
            break;
        }
        let _ = writeln!(code, "{indent}if (++c{axis} == n{axis}) {{");
        let _ = writeln!(code, "{indent}  c{axis} = 0;");
        for i in strided {
            let _ = writeln!(code, "{indent}  o{i} -= s{i}_{axis} * n{axis};");
        }
    }
    for depth in (0..rank.saturating_sub(1)).rev() {
        let _ = writeln!(code, "{}}}", "  ".repeat(3 + depth));
    }
    code
}
