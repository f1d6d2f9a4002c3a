//! The text of a step's kernels in CUDA's C++: operations on few elements, which one block of threads does one after
//! the other, what goes around the kernels of op/cuda, and what writes a cache or finds the largest element. The text
//! has no addresses, so that equal steps have equal kernels.

use super::lower::{rows, Argument, Base, Kernel, View};
use crate::base::Dtype;
use crate::op::decode::Call;
use crate::op::{Number, Op, QuantMode};
use std::fmt::Write;

/// Threads of the block that does operations on elements.
const THREADS: i32 = 512;

/// What stands before each kernel: the types, without CUDA's headers, which take a second to compile.
pub const PRELUDE: &str = include_str!("prelude.cu");

fn type_of(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "bool",
        Dtype::U8 => "unsigned char",
        Dtype::U16 => "unsigned short",
        Dtype::U32 => "unsigned int",
        Dtype::U64 => "unsigned long long",
        Dtype::S8 => "signed char",
        Dtype::S16 => "short",
        Dtype::S32 => "int",
        Dtype::S64 => "long long",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
        Dtype::F32 => "float",
        // Plans have none of these.
        Dtype::F64 => "double",
        Dtype::C64 => "float2",
    }
}

/// Types whose elements `<` puts into an order.
pub fn is_ordered(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::F64 | Dtype::C64 | Dtype::Bool)
}

/// A number of one type in another. Half types are computed with as f32.
fn cast(number: &str, to: Dtype) -> String {
    match to {
        Dtype::Bool => format!("(({number}) != 0)"),
        Dtype::F16 | Dtype::Bf16 => format!("{}(static_cast<float>({number}))", type_of(to)),
        _ => format!("static_cast<{}>({number})", type_of(to)),
    }
}

/// Operations on few elements, one after the other.
#[derive(Default)]
pub struct Elements {
    code: String,
    /// Arrays that the loop only reads, in the order in which they are named.
    inputs: Vec<usize>,
    told: bool,
    count: usize,
}

impl Elements {
    fn address(&mut self, base: Base) -> String {
        match base {
            Base::Arena => "arena".into(),
            Base::Input(input) => {
                let known = self.inputs.iter().position(|known| *known == input);
                let at = known.unwrap_or_else(|| {
                    self.inputs.push(input);
                    self.inputs.len() - 1
                });
                format!("in{at}")
            }
        }
    }

    /// The element of a view at a place in elements, in the type that it is computed with.
    fn element(&mut self, view: &View, place: &str) -> String {
        let address = self.address(view.base);
        let read = format!(
            "reinterpret_cast<const {}*>({address} + {})[{place}]",
            type_of(view.dtype),
            view.offset
        );
        match view.dtype {
            Dtype::F16 | Dtype::Bf16 => format!("static_cast<float>({read})"),
            _ => read,
        }
    }

    fn write(&mut self, view: &View, place: &str, number: &str) {
        let number = cast(number, view.dtype);
        let kind = type_of(view.dtype);
        let offset = view.offset;
        let _ = writeln!(
            self.code,
            "    reinterpret_cast<{kind}*>(arena + {offset})[{place}] = {number};"
        );
    }

    /// Begins a loop over so many elements in rows, whose indices are `d0`, `d1` …
    fn each(&mut self, shape: &[i32]) {
        let size: i64 = shape.iter().map(|size| i64::from(*size)).product();
        let _ = writeln!(
            self.code,
            "  for (int i = threadIdx.x; i < {size}; i += {THREADS}) {{"
        );
        self.code.push_str(&indices(shape));
    }

    fn end(&mut self) {
        self.code.push_str("  }\n");
    }

    fn wait(&mut self) {
        self.code.push_str("  __syncthreads();\n");
        self.count += 1;
    }

    /// Says on the device and to the host whether there is this step.
    pub fn go(&mut self, goes_on: &View, own: usize) -> Option<()> {
        if goes_on.size() != 1 {
            return None;
        }
        let goes_on = self.element(goes_on, "0");
        let _ = write!(
            self.code,
            "  if (threadIdx.x == 0) {{
    unsigned int* own = reinterpret_cast<unsigned int*>(arena + {own});
    own[0] = ({goes_on}) != 0;
    own[1] += 1;
    if (own[0] == 0) told[1] = 1;
    __threadfence_system();
    told[0] = own[1];
  }}
"
        );
        self.told = true;
        self.count += 1;
        Some(())
    }

    /// What follows is done if there is this step.
    pub fn when(&mut self, own: usize) {
        let _ = writeln!(
            self.code,
            "  if (*reinterpret_cast<const unsigned int*>(arena + {own}) == 0) return;"
        );
    }

    /// Adds an operation. None for one that is not known here.
    pub fn add(&mut self, op: &Op, inputs: &[View], to: &View) -> Option<()> {
        if is_pointwise(op) {
            self.pointwise(op, inputs, to)?;
        } else {
            self.other(op, inputs, to)?;
        }
        self.wait();
        Some(())
    }

    fn pointwise(&mut self, op: &Op, inputs: &[View], to: &View) -> Option<()> {
        self.each(&to.shape);
        let values: Vec<String> = inputs
            .iter()
            .map(|view| {
                let place = broadcast(view, &to.shape);
                self.element(view, &place)
            })
            .collect();
        let number = number(op, inputs, &values, to.dtype)?;
        self.write(to, "i", &number);
        self.end();
        Some(())
    }

    fn other(&mut self, op: &Op, inputs: &[View], to: &View) -> Option<()> {
        match op {
            Op::Any { .. } | Op::All { .. } => {
                let [from] = inputs else { return None };
                let is_any = matches!(op, Op::Any { .. });
                self.reduced(from, to, is_any)
            }
            Op::Stack { axis } => {
                let rank = to.shape.len() as i32;
                let axis = if *axis < 0 { axis + rank } else { *axis } as usize;
                for (at, from) in inputs.iter().enumerate() {
                    let mut wider = from.clone();
                    wider.shape.insert(axis, 1);
                    wider.strides.insert(axis, 0);
                    self.part(&wider, to, axis, at as i64)?;
                }
                Some(())
            }
            Op::Concatenate { axis } => {
                let rank = to.shape.len() as i32;
                let axis = if *axis < 0 { axis + rank } else { *axis } as usize;
                let mut at = 0;
                for from in inputs {
                    self.part(from, to, axis, at)?;
                    at += i64::from(*from.shape.get(axis)?);
                }
                Some(())
            }
            Op::Take { axis } => {
                let [from, indices] = inputs else { return None };
                let rank = from.shape.len() as i32;
                let axis = if *axis < 0 { axis + rank } else { *axis } as usize;
                if axis >= from.shape.len() || !indices.dtype.is_integer() {
                    return None;
                }
                self.each(&to.shape);
                let count = indices.shape.len();
                let place =
                    sum((0..count).map(|i| (axis + i, indices.shape[i], indices.strides[i])));
                let index = self.element(indices, &place);
                let length = from.shape[axis];
                let _ = write!(
                    self.code,
                    "    long long at = static_cast<long long>({index});
    if (at < 0) at += {length};
    at = at < 0 ? 0 : at >= {length} ? {} : at;
",
                    length - 1
                );
                let others = (0..from.shape.len()).filter(|own| *own != axis).map(|own| {
                    let at = if own < axis { own } else { own + count - 1 };
                    (at, from.shape[own], from.strides[own])
                });
                let place = format!("{} + at * {}", sum(others), from.strides[axis]);
                let number = self.element(from, &place);
                self.write(to, "i", &number);
                self.end();
                Some(())
            }
            Op::Dequantize {
                group_size,
                bits,
                mode: QuantMode::Affine,
                dtype,
            } => {
                let [words, scales, biases] = inputs else {
                    return None;
                };
                let (bits, group) = (bits.unwrap_or(4), group_size.unwrap_or(64));
                let last = to.shape.len().checked_sub(1)?;
                let fits = matches!(bits, 4 | 8)
                    && group > 0
                    && words.dtype == Dtype::U32
                    && dtype.is_none_or(|dtype| dtype == scales.dtype)
                    && [words, scales, biases].iter().all(|view| {
                        view.shape.len() == last + 1 && view.shape[..last] == to.shape[..last]
                    });
                if !fits {
                    return None;
                }
                self.each(&to.shape);
                let _ = writeln!(self.code, "    const int k = i % {};", to.shape[last]);
                // Where the element is whose last index is k / `by`.
                let place = |view: &View, by: i32| {
                    let lead = (0..last).map(|axis| (axis, view.shape[axis], view.strides[axis]));
                    format!("{} + k / {by} * {}ll", sum(lead), view.strides[last])
                };
                let per = 32 / bits;
                let word = self.element(words, &place(words, per));
                let scale = self.element(scales, &place(scales, group));
                let bias = self.element(biases, &place(biases, group));
                let number = format!(
                    "({scale}) * static_cast<float>({word} >> (k % {per} * {bits}) & {}u) + ({bias})",
                    (1u32 << bits) - 1
                );
                self.write(to, "i", &number);
                self.end();
                Some(())
            }
            Op::SliceUpdateDynamic { axes } => {
                let [from, update, start] = inputs else {
                    return None;
                };
                if !is_update(to, update, start, axes) {
                    return None;
                }
                self.pointwise(&Op::Copy, std::slice::from_ref(from), to)?;
                self.wait();
                self.each(&update.shape);
                let place = updated(update, to, start, axes, |place| self.element(start, place));
                let own = broadcast(update, &update.shape);
                let number = self.element(update, &own);
                self.write(to, &place, &number);
                self.end();
                Some(())
            }
            Op::Constant { value, .. } => {
                let number = literal(value)?;
                self.each(&to.shape);
                self.write(to, "i", &number);
                self.end();
                Some(())
            }
            _ => None,
        }
    }

    /// Writes a view into a part of `to`, `at` elements along an axis.
    fn part(&mut self, from: &View, to: &View, axis: usize, at: i64) -> Option<()> {
        if from.shape.len() != to.shape.len() {
            return None;
        }
        self.each(&from.shape);
        let own = broadcast(from, &from.shape);
        let number = self.element(from, &own);
        let places = from.shape.iter().zip(&to.strides).enumerate();
        let place = sum(places.map(|(axis, (size, stride))| (axis, *size, *stride)));
        let place = format!("{place} + {}", at * to.strides[axis]);
        self.write(to, &place, &number);
        self.end();
        Some(())
    }

    fn reduced(&mut self, from: &View, to: &View, any: bool) -> Option<()> {
        // Over everything alone, as conditions are.
        if to.size() != 1 {
            return None;
        }
        let size = from.size();
        let _ = writeln!(
            self.code,
            "  if (threadIdx.x == 0) {{\n    bool found = {};\n    for (int i = 0; i < {size}; i++) {{",
            !any
        );
        self.code.push_str(&indices(&from.shape));
        let place = broadcast(from, &from.shape.clone());
        let element = self.element(from, &place);
        let joined = if any { "||" } else { "&&" };
        let _ = writeln!(
            self.code,
            "      found = found {joined} ({element}) != 0;\n    }}"
        );
        self.write(to, "0", "found");
        self.end();
        Some(())
    }

    /// None where there is nothing to do.
    pub fn kernel(self) -> Option<Kernel> {
        if self.count == 0 {
            return None;
        }
        let mut parameters = String::from("unsigned char* arena");
        let mut arguments = vec![Argument::Arena(0)];
        for (at, input) in self.inputs.iter().enumerate() {
            let _ = write!(parameters, ", const unsigned char* in{at}");
            arguments.push(Argument::Input(*input, 0));
        }
        if self.told {
            parameters.push_str(", volatile unsigned int* told");
            arguments.push(Argument::Told);
        }
        Some(kernel(
            "emlx_elements",
            &parameters,
            &self.code,
            arguments,
            (1, THREADS),
        ))
    }
}

fn kernel(
    name: &'static str,
    parameters: &str,
    code: &str,
    arguments: Vec<Argument>,
    launch: (i32, i32),
) -> Kernel {
    let text = format!(
        "extern \"C\" __global__ void __launch_bounds__({}) {name}({parameters}) {{\n{code}}}\n",
        launch.1
    );
    Kernel {
        name,
        text,
        arguments,
        launch,
    }
}

/// Where a view's element for an element of a wider shape is.
fn broadcast(view: &View, shape: &[i32]) -> String {
    let more = shape.len().saturating_sub(view.shape.len());
    let axes = view.shape.iter().zip(&view.strides).enumerate();
    sum(axes.map(|(axis, (size, stride))| (axis + more, *size, *stride)))
}

/// The sum of indices times strides, given axes with sizes.
fn sum(axes: impl Iterator<Item = (usize, i32, i64)>) -> String {
    let terms: Vec<String> = axes
        .filter(|(_, size, stride)| *size > 1 && *stride != 0)
        .map(|(axis, _, stride)| format!("d{axis} * {stride}ll"))
        .collect();
    if terms.is_empty() {
        return "0".into();
    }
    terms.join(" + ")
}

/// A place clamped into 0..=most.
fn clamped(place: &str, most: i32) -> String {
    let place = format!("static_cast<long long>({place})");
    format!("({place} < 0 ? 0 : {place} > {most} ? {most} : {place})")
}

fn literal(value: &Number) -> Option<String> {
    match value {
        Number::Int(value) if *value > i64::MIN => Some(format!("{value}ll")),
        Number::Uint(value) => Some(format!("{value}ull")),
        Number::Float(value) if value.is_finite() => Some(format!("static_cast<float>({value:e})")),
        _ => None,
    }
}

fn is_pointwise(op: &Op) -> bool {
    op.traits().simple || matches!(op, Op::Copy | Op::Where)
}

/// The indices `d0`, `d1` … of the element `i` of so many in rows.
fn indices(shape: &[i32]) -> String {
    let axes = shape.iter().zip(rows(shape)).enumerate();
    axes.filter(|(_, (size, _))| **size > 1)
        .map(|(axis, (size, stride))| format!("    const int d{axis} = i / {stride} % {size};\n"))
        .collect()
}

/// Where in `to` an element of an update goes, given how a start is read by its place in elements.
fn updated(
    update: &View,
    to: &View,
    start: &View,
    axes: &[i32],
    mut read: impl FnMut(&str) -> String,
) -> String {
    let own: Vec<(usize, i32, i64)> = update
        .shape
        .iter()
        .zip(&to.strides)
        .enumerate()
        .map(|(axis, (size, stride))| (axis, *size, *stride))
        .collect();
    let mut place = sum(own.iter().copied());
    for (at, axis) in axes.iter().enumerate() {
        let (axis, size, stride) = own[*axis as usize];
        let begin = read(&(at as i64 * start.strides[0]).to_string());
        let begin = clamped(&begin, to.shape[axis] - size);
        let _ = write!(place, " + {begin} * {stride}ll");
    }
    place
}

/// Whether an update from `start` on is one that is known here.
pub fn is_update(to: &View, update: &View, start: &View, axes: &[i32]) -> bool {
    let rank = to.shape.len() as i32;
    update.shape.len() == to.shape.len()
        && start.dtype.is_integer()
        && start.shape.len() == 1
        && axes.iter().all(|axis| (0..rank).contains(axis))
}

/// The operation on one element of each input.
fn number(op: &Op, inputs: &[View], values: &[String], dtype: Dtype) -> Option<String> {
    let same = inputs.windows(2).all(|pair| pair[0].dtype == pair[1].dtype);
    let (a, b) = (values.first()?, values.get(1));
    let compared = |sign: &str| {
        let is_ordered = is_ordered(inputs[0].dtype) || sign == "==" || sign == "!=";
        (same && is_ordered).then(|| format!("(({a}) {sign} ({})) ? 1 : 0", values[1]))
    };
    let is_bool = dtype == Dtype::Bool;
    // Whole numbers go round as unsigned ones do.
    let arithmetic = |sign: &str| match dtype {
        _ if is_bool || !same => None,
        Dtype::F16 | Dtype::Bf16 | Dtype::F32 => Some(format!("({a}) {sign} ({})", values[1])),
        _ => Some(format!(
            "static_cast<unsigned long long>({a}) {sign} static_cast<unsigned long long>({})",
            values[1]
        )),
    };
    let extreme = |sign: &str| {
        if is_bool || !same {
            return None;
        }
        let b = &values[1];
        Some(match dtype.is_float() {
            true => format!("({a}) != ({a}) ? ({a}) : ({a}) {sign} ({b}) ? ({a}) : ({b})"),
            false => format!("({a}) {sign} ({b}) ? ({a}) : ({b})"),
        })
    };
    match op {
        Op::Copy | Op::Astype { .. } => Some(a.clone()),
        Op::LogicalNot => Some(format!("({a}) == 0")),
        Op::Where => {
            let (yes, no) = (b?, values.get(2)?);
            let (yes, no) = (cast(yes, dtype), cast(no, dtype));
            let wide = |number: String| match dtype {
                Dtype::F16 | Dtype::Bf16 => format!("static_cast<float>({number})"),
                _ => number,
            };
            Some(format!("({a}) != 0 ? {} : {}", wide(yes), wide(no)))
        }
        Op::LogicalAnd => Some(format!("({a}) != 0 && ({}) != 0", b?)),
        Op::LogicalOr => Some(format!("({a}) != 0 || ({}) != 0", b?)),
        Op::Less => compared("<"),
        Op::LessEqual => compared("<="),
        Op::Greater => compared(">"),
        Op::GreaterEqual => compared(">="),
        Op::Equal => compared("=="),
        Op::NotEqual => compared("!="),
        Op::Add => arithmetic("+"),
        Op::Subtract => arithmetic("-"),
        Op::Multiply => arithmetic("*"),
        Op::Maximum => extreme(">"),
        Op::Minimum => extreme("<"),
        _ => None,
    }
}

fn argument(view: &View) -> Argument {
    match view.base {
        Base::Arena => Argument::Arena(view.offset),
        Base::Input(input) => Argument::Input(input, view.offset),
    }
}

/// A kernel of op/cuda with its arrays.
pub fn of_call(call: &Call<View>, outputs: &[View]) -> Kernel {
    let mut parameters = Vec::new();
    let mut arguments = Vec::new();
    let mut code = String::new();
    let name = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let _ = writeln!(code, "  using T = {};", type_of(call.inputs[0].dtype));
    for (constant, value) in &call.constants {
        let _ = writeln!(code, "  constexpr int {} = {value};", name(constant));
    }
    for (input, view) in call.kernel.inputs.iter().zip(&call.inputs) {
        let input = name(input);
        parameters.push(format!("const {}* {input}", type_of(view.dtype)));
        arguments.push(argument(view));
        let mut strides: Vec<String> = view.strides.iter().map(i64::to_string).collect();
        if strides.is_empty() {
            strides.push("0".into());
        }
        let _ = writeln!(
            code,
            "  constexpr int64_t {input}_strides[] = {{{}}};",
            strides.join(", ")
        );
    }
    for (output, view) in call.kernel.outputs.iter().zip(outputs) {
        parameters.push(format!("{}* {}", type_of(view.dtype), name(output)));
        arguments.push(argument(view));
    }
    code.push_str(&call.kernel.source.to_string_lossy());
    kernel(
        "emlx_few_rows",
        &parameters.join(", "),
        &code,
        arguments,
        (&call.launch).into(),
    )
}

/// Writes updates into values of the state, if there is this step.
pub fn of_update(go: usize, start: &View, axes: &[i32], pairs: &[(View, View)]) -> Kernel {
    const THREADS: i32 = 256;
    let (to, update) = &pairs[0];
    let (kind, begin) = (type_of(to.dtype), type_of(start.dtype));
    let mut parameters = format!("const unsigned int* go, const {begin}* start");
    let mut arguments = vec![Argument::Arena(go), argument(start)];
    for (i, (to, update)) in pairs.iter().enumerate() {
        let _ = write!(parameters, ", {kind}* to{i}, const {kind}* from{i}");
        arguments.extend([argument(to), argument(update)]);
    }
    let mut code = String::from("  if (*go == 0) return;\n");
    let _ = match pairs.len() {
        1 => writeln!(code, "  {kind}* to = to0;\n  const {kind}* from = from0;"),
        _ => writeln!(
            code,
            "  {kind}* to = blockIdx.x == 0 ? to0 : to1;\n  const {kind}* from = blockIdx.x == 0 ? from0 : from1;"
        ),
    };
    let place = updated(update, to, start, axes, |place| format!("start[{place}]"));
    let _ = writeln!(
        code,
        "  for (int i = threadIdx.x; i < {}; i += {THREADS}) {{",
        update.size()
    );
    code.push_str(&indices(&update.shape));
    let own = broadcast(update, &update.shape.clone());
    let _ = writeln!(code, "    to[{place}] = from[{own}];\n  }}");
    kernel(
        "emlx_update",
        &parameters,
        &code,
        arguments,
        (pairs.len() as i32, THREADS),
    )
}

/// The place of the largest element of each row, the first of equals; of NaN, the first or the last.
pub fn of_argmax(from: &View, to: &View, last_nan: bool) -> Kernel {
    const THREADS: i32 = 1024;
    let length = from.shape.last().copied().unwrap_or(1);
    let count = from.size() / i64::from(length.max(1));
    let code = format!(
        "  constexpr int LENGTH = {length}, THREADS = {THREADS};\n  constexpr bool LAST = {last_nan};\n  using T = {};\n{}",
        type_of(from.dtype),
        include_str!("argmax.cu"),
    );
    kernel(
        "emlx_argmax",
        &format!(
            "const {}* from, {}* to",
            type_of(from.dtype),
            type_of(to.dtype)
        ),
        &code,
        vec![argument(from), argument(to)],
        (count as i32, THREADS),
    )
}
