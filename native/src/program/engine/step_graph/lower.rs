//! What a loop's step is as launches of kernels: the operations of its two blocks, brought into an order in which
//! operations on a few elements go together. It knows shapes, types and layouts, and no addresses.

use super::text::{self, Elements};
use crate::base::{Dtype, Signature};
use crate::mlx::{self, Launch};
use crate::op::decode::{self, Call, Heads, Operand};
use crate::op::{Op, Products};
use crate::program::plan::{Code, Node};
use crate::program::shown;
use mlx_rs::Array;
use smallvec::SmallVec;

/// Elements up to which one block of threads does an operation on elements.
const MAX_ELEMENTS: i64 = 1 << 16;
/// Bytes up to which what the loop only reads is copied beside its state.
const MAX_COPIED: usize = 4096;
/// Every value begins at a multiple of this.
const ALIGNED: usize = 256;

/// Where a value's elements lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// The step's own memory.
    Arena,
    /// An array that the loop only reads, by its place among the loop's inputs.
    Input(usize),
}

/// Elements of an array, with any strides. `offset` is in bytes, strides are in elements.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub base: Base,
    pub offset: usize,
    pub shape: SmallVec<[i32; 4]>,
    pub strides: SmallVec<[i64; 4]>,
    pub dtype: Dtype,
}

impl Operand for View {
    fn shape(&self) -> &[i32] {
        &self.shape
    }

    fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// The strides of an array in rows.
pub fn rows(shape: &[i32]) -> SmallVec<[i64; 4]> {
    let mut strides: SmallVec<[i64; 4]> = SmallVec::from_elem(1, shape.len());
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * i64::from(shape[axis].max(1));
    }
    strides
}

impl View {
    pub fn size(&self) -> i64 {
        self.shape.iter().map(|size| i64::from(*size)).product()
    }

    pub fn bytes(&self) -> usize {
        self.size() as usize * self.dtype.size()
    }

    /// Whether the elements lie in rows; axes of one element may have any stride.
    pub fn is_in_rows(&self) -> bool {
        let mut axes = self.shape.iter().zip(&self.strides).zip(rows(&self.shape));
        axes.all(|((size, stride), own)| *size == 1 || *stride == own)
    }

    fn moved(&self, elements: i64) -> usize {
        self.offset + elements as usize * self.dtype.size()
    }
}

/// How an input of the loop lies.
pub struct Layout {
    pub shape: Vec<i32>,
    pub strides: Vec<i64>,
    pub dtype: Dtype,
}

impl Layout {
    /// Of an array that was submitted.
    pub fn of(array: &Array) -> Layout {
        Layout {
            shape: array.shape().to_vec(),
            // SAFETY: MLX lays arrays out as it submits them.
            strides: unsafe { mlx::strides(array) },
            dtype: mlx::dtype(array),
        }
    }

    pub fn in_rows((shape, dtype): &Signature) -> Layout {
        Layout {
            shape: shape.clone(),
            strides: rows(shape).into_vec(),
            dtype: *dtype,
        }
    }
}

/// An argument of a kernel: an address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    Arena(usize),
    Input(usize, usize),
    /// Two numbers that the host reads: the steps begun, and whether there was one too many.
    Told,
}

/// A kernel: its text, in which it is called `name`, and what it is launched with.
#[derive(Debug)]
pub struct Kernel {
    pub name: &'static str,
    pub text: String,
    pub arguments: Vec<Argument>,
    pub launch: (i32, i32),
}

/// All that a step launches.
pub struct StepKernels {
    /// Bytes of the step's own memory.
    pub bytes: usize,
    /// Inputs of the loop that are copied into it before the first step, the state among them.
    pub copies: Vec<(usize, View)>,
    pub kernels: Vec<Kernel>,
}

/// A launch by kernels of few rows, or of `text.rs`.
enum Heavy {
    Call(Box<Call<View>>, SmallVec<[View; 3]>),
    /// Writes updates over values of the state, from `start` on.
    Update {
        start: View,
        axes: Vec<i32>,
        pairs: Vec<(View, View)>,
    },
    Argmax {
        from: View,
        to: View,
        last_nan: bool,
    },
}

#[derive(Default)]
struct Level {
    elements: Elements,
    heavy: Vec<Heavy>,
}

/// A value: where it lies, and when it is there. Each level has operations on elements first, then others.
#[derive(Clone)]
struct Value {
    view: View,
    level: usize,
    is_heavy: bool,
}

impl Value {
    /// The first level whose operations on elements may take it.
    fn for_elements(&self) -> usize {
        self.level + usize::from(self.is_heavy)
    }
}

struct Lowering {
    bytes: usize,
    levels: Vec<Level>,
    go: usize,
}

impl StepKernels {
    /// The step of a loop with a state of `state` values. `types` are those of the values of the condition and of the
    /// body. The other side says which operation has no kernel here.
    pub fn of(
        condition: &Code,
        body: &Code,
        state: usize,
        inputs: &[Layout],
        types: [&[Signature]; 2],
    ) -> Result<StepKernels, String> {
        check_gain(body)?;
        let mut lowering = Lowering {
            bytes: 0,
            levels: vec![Level::default()],
            go: 0,
        };
        let go = lowering.room(&[2], Dtype::U32);
        lowering.go = go.offset;
        let mut copies = Vec::new();
        let mut values = Vec::with_capacity(inputs.len());
        for (i, layout) in inputs.iter().enumerate() {
            let view = lowering.input(i, layout, i < state, &mut copies)?;
            values.push(Value {
                view,
                level: 0,
                is_heavy: false,
            });
        }
        let within = |block: &'static str| move |reason| format!("{block}, {reason}");
        let goes_on = lowering
            .block(condition, &values, types[0], state)
            .map_err(within("condition"))?;
        let goes_on = condition
            .outputs
            .first()
            .and_then(|value| goes_on[*value as usize].as_ref());
        let is_known = match goes_on {
            Some(goes_on) if goes_on.for_elements() == 0 && lowering.levels.len() == 1 => {
                lowering.levels[0].elements.go(&goes_on.view, go.offset)
            }
            _ => None,
        };
        is_known.ok_or("the condition needs more than operations on a few elements")?;
        let made = lowering
            .block(body, &values, types[1], state)
            .map_err(within("body"))?;
        lowering.commit(body, &values[..state], &made)?;
        Ok(lowering.kernels(copies))
    }
}

impl Lowering {
    fn room(&mut self, shape: &[i32], dtype: Dtype) -> View {
        let view = View {
            base: Base::Arena,
            offset: self.bytes,
            shape: shape.iter().copied().collect(),
            strides: rows(shape),
            dtype,
        };
        self.bytes = (self.bytes + view.bytes()).next_multiple_of(ALIGNED);
        view
    }

    fn level(&mut self, level: usize) -> &mut Level {
        while self.levels.len() <= level {
            self.levels.push(Level::default());
        }
        &mut self.levels[level]
    }

    /// Where an input lies: the state and small arrays are copied into the step's own memory.
    fn input(
        &mut self,
        i: usize,
        layout: &Layout,
        is_state: bool,
        copies: &mut Vec<(usize, View)>,
    ) -> Result<View, String> {
        let own = View {
            base: Base::Input(i),
            offset: 0,
            shape: layout.shape.iter().copied().collect(),
            strides: layout.strides.iter().copied().collect(),
            dtype: layout.dtype,
        };
        if own.size() == 0 || matches!(own.dtype, Dtype::F64 | Dtype::C64) {
            return Err(format!(
                "input {i} is {} of no elements, or f64 or c64",
                own.dtype.name()
            ));
        }
        let is_small = own.is_in_rows() && own.bytes() <= MAX_COPIED;
        if !is_state && !is_small {
            return Ok(own);
        }
        let copy = self.room(&own.shape, own.dtype);
        copies.push((i, copy.clone()));
        Ok(copy)
    }

    /// The values of a block, by number.
    fn block(
        &mut self,
        code: &Code,
        inputs: &[Value],
        types: &[Signature],
        state: usize,
    ) -> Result<Vec<Option<Value>>, String> {
        let mut values: Vec<Option<Value>> = inputs.iter().cloned().map(Some).collect();
        values.resize_with(code.values, || None);
        for (at, node) in code.nodes.iter().enumerate() {
            let absent = || {
                format!(
                    "instruction {}: {} has no step kernel",
                    node.at,
                    node.name()
                )
            };
            let op = node.op().ok_or_else(absent)?;
            let outputs = node
                .outputs
                .iter()
                .map(|value| types.get(*value as usize).cloned());
            let outputs: Vec<Signature> = outputs.collect::<Option<_>>().ok_or_else(absent)?;
            let fits = |(shape, dtype): &Signature| {
                !shape.contains(&0) && !matches!(dtype, Dtype::F64 | Dtype::C64)
            };
            if !outputs.iter().all(fits) {
                return Err(absent() + " for f64, c64 and arrays without elements");
            }
            let inputs: Option<SmallVec<[Option<Value>; 6]>> = node
                .inputs
                .iter()
                .map(|input| match input {
                    Some(value) => values.get(*value as usize)?.clone().map(Some),
                    None => Some(None),
                })
                .collect();
            // A value of the state that only this node reads, and that is nothing else afterwards.
            let own = node
                .inputs
                .first()
                .copied()
                .flatten()
                .filter(|value| (*value as usize) < state && is_only_use(code, at, *value));
            let made = inputs
                .and_then(|inputs| self.operation(op, &inputs, own.is_some(), &outputs))
                .ok_or_else(|| absent() + &shapes(node, types))?;
            for (value, made) in node.outputs.iter().zip(made) {
                values[*value as usize] = Some(made);
            }
        }
        Ok(values)
    }

    fn operation(
        &mut self,
        op: &Op,
        inputs: &[Option<Value>],
        is_own: bool,
        types: &[Signature],
    ) -> Option<Vec<Value>> {
        let (shape, dtype) = types.first()?;
        if let Some(value) = view_of(op, inputs, shape) {
            return Some(vec![value]);
        }
        let views = |inputs: &[Option<Value>]| -> Option<SmallVec<[View; 6]>> {
            let mut all = inputs.iter();
            all.try_fold(SmallVec::new(), |mut views, value| {
                views.push(value.as_ref()?.view.clone());
                Some(views)
            })
        };
        let optional = |i: usize| inputs.get(i).cloned().flatten().map(|value| value.view);
        let heavy_level = inputs.iter().flatten().map(|value| value.level).max();
        let heavy_level = heavy_level.unwrap_or(0);
        match op {
            Op::Products { .. } | Op::QuantizedProducts { .. } => {
                let matrices = views(&inputs[3..])?;
                let wanted = Products::of(op, optional(0)?, optional(1), optional(2), &matrices)?;
                let call = decode::call_of_products(&wanted)?;
                Some(self.call(call, heavy_level, types))
            }
            Op::RopeHeads { .. } => {
                let how = Heads::of(op, optional(4), optional(5))?;
                let qkv = [optional(0)?, optional(1)?, optional(2)?];
                let call = decode::call_of_heads(qkv, &how, optional(3)?, optional(6))?;
                Some(self.call(call, heavy_level, types))
            }
            Op::CacheAttention {
                scale,
                shape: given,
            } => {
                let qkv = [optional(0)?, optional(1)?, optional(2)?];
                let call = decode::call_of_attention(qkv, optional(3), *scale, given)?;
                Some(self.call(call, heavy_level, types))
            }
            Op::SliceUpdateDynamic { axes } if is_own => {
                let [to, update, start] = <[View; 3]>::try_from(views(inputs)?.into_vec()).ok()?;
                if update.dtype != to.dtype || !text::is_update(&to, &update, &start, axes) {
                    return None;
                }
                self.update(heavy_level, to.clone(), update, start, axes);
                Some(vec![Value {
                    view: to,
                    level: heavy_level,
                    is_heavy: true,
                }])
            }
            Op::Argmax { axis, nan, .. } => {
                let from = optional(0)?;
                let last = from.shape.len() as i32 - 1;
                let is_last = axis.is_some_and(|axis| axis == last || axis == -1)
                    || (axis.is_none() && from.size() == i64::from(*from.shape.last()?));
                if !is_last || !from.is_in_rows() || !is_number(from.dtype) {
                    return None;
                }
                let to = self.room(shape, *dtype);
                let heavy = Heavy::Argmax {
                    from,
                    to: to.clone(),
                    last_nan: *nan == crate::op::Which::Last,
                };
                self.level(heavy_level).heavy.push(heavy);
                Some(vec![Value {
                    view: to,
                    level: heavy_level,
                    is_heavy: true,
                }])
            }
            _ => {
                let size: i64 = shape.iter().map(|size| i64::from(*size)).product();
                if size > MAX_ELEMENTS {
                    return None;
                }
                let to = self.room(shape, *dtype);
                let levels = inputs.iter().flatten().map(Value::for_elements);
                let level = levels.max().unwrap_or(0);
                // What is absent at the end is none of the operation's operands.
                let present = inputs.iter().rposition(Option::is_some);
                let views = views(&inputs[..present.map_or(0, |last| last + 1)])?;
                self.level(level).elements.add(op, &views, &to)?;
                Some(vec![Value {
                    view: to,
                    level,
                    is_heavy: false,
                }])
            }
        }
    }

    fn call(&mut self, call: Call<View>, level: usize, types: &[Signature]) -> Vec<Value> {
        let outputs: SmallVec<[View; 3]> = types
            .iter()
            .map(|(shape, dtype)| self.room(shape, *dtype))
            .collect();
        let made = outputs.iter().map(|view| Value {
            view: view.clone(),
            level,
            is_heavy: true,
        });
        let made = made.collect();
        let heavy = Heavy::Call(Box::new(call), outputs);
        self.level(level).heavy.push(heavy);
        made
    }

    /// Two updates at one place go together, as keys and values do.
    fn update(&mut self, level: usize, to: View, update: View, start: View, axes: &[i32]) {
        let heavy = &mut self.level(level).heavy;
        if let Some(Heavy::Update {
            start: before,
            axes: own,
            pairs,
        }) = heavy.last_mut()
        {
            let alike = pairs.len() == 1
                && *before == start
                && own == axes
                && pairs[0].0.shape == to.shape
                && pairs[0].0.dtype == to.dtype
                && pairs[0].1.shape == update.shape
                && pairs[0].1.strides == update.strides;
            if alike {
                pairs.push((to, update));
                return;
            }
        }
        heavy.push(Heavy::Update {
            start,
            axes: axes.to_vec(),
            pairs: vec![(to, update)],
        });
    }

    /// The state becomes what the body gave, if there is this step.
    fn commit(
        &mut self,
        body: &Code,
        state: &[Value],
        values: &[Option<Value>],
    ) -> Result<(), String> {
        let mut last = Elements::default();
        let mut moved = Vec::new();
        for (i, (own, output)) in state.iter().zip(&body.outputs).enumerate() {
            let refused = || {
                format!("value {i} of the state is copied in each step, and has too many elements")
            };
            let from = values[*output as usize].as_ref().ok_or_else(refused)?;
            let from = &from.view;
            if *from == own.view {
                continue;
            }
            if from.size() > MAX_ELEMENTS || from.shape != own.view.shape {
                return Err(refused());
            }
            // What is to be read may be part of the state itself, which others are written to.
            let is_of_state = |view: &View| {
                let of = |value: &Value| {
                    let own = value.view.offset;
                    (own..own + value.view.bytes()).contains(&view.offset)
                };
                view.base == Base::Arena && state.iter().any(of)
            };
            let from = match is_of_state(from) {
                true => {
                    let copy = self.room(&from.shape, from.dtype);
                    last.add(&Op::Copy, std::slice::from_ref(from), &copy)
                        .ok_or_else(refused)?;
                    copy
                }
                false => from.clone(),
            };
            moved.push((from, own.view.clone()));
        }
        last.when(self.go);
        for (from, to) in moved {
            last.add(&Op::Copy, &[from], &to)
                .ok_or("a value of the state is not copied")?;
        }
        let level = self.levels.len();
        self.level(level).elements = last;
        Ok(())
    }

    fn kernels(self, copies: Vec<(usize, View)>) -> StepKernels {
        let mut kernels = Vec::new();
        for level in self.levels {
            kernels.extend(level.elements.kernel());
            for heavy in level.heavy {
                kernels.push(match heavy {
                    Heavy::Call(call, outputs) => text::of_call(&call, &outputs),
                    Heavy::Update { start, axes, pairs } => {
                        text::of_update(self.go, &start, &axes, &pairs)
                    }
                    Heavy::Argmax { from, to, last_nan } => text::of_argmax(&from, &to, last_nan),
                });
            }
        }
        StepKernels {
            bytes: self.bytes,
            copies,
            kernels,
        }
    }
}

/// Whether a step gains by this: the body has what a model computes for a token.
pub fn check_gain(body: &Code) -> Result<(), String> {
    let is_merged = |node: &Node| {
        matches!(
            node.op(),
            Some(Op::Products { .. } | Op::QuantizedProducts { .. } | Op::CacheAttention { .. })
        )
    };
    match body.nodes.iter().any(is_merged) {
        true => Ok(()),
        false => Err("its body has no merged operations".into()),
    }
}

/// ` of f32[2][3], s32[2]`.
fn shapes(node: &Node, types: &[Signature]) -> String {
    let inputs = node.inputs.iter().flatten();
    let known = inputs.filter_map(|value| types.get(*value as usize));
    let known: Vec<String> = known.map(shown).collect();
    format!(" for {}", known.join(", "))
}

fn is_number(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// Whether nothing but one node takes a value.
fn is_only_use(code: &Code, at: usize, value: u32) -> bool {
    let uses = code.nodes.iter().enumerate().map(|(i, other)| {
        let count = other.inputs.iter().filter(|input| **input == Some(value));
        (i, count.count())
    });
    let mut others = uses.filter(|(_, count)| *count > 0);
    others.next() == Some((at, 1)) && others.next().is_none() && !code.outputs.contains(&value)
}

/// What is no more than another look at a value's elements.
fn view_of(op: &Op, inputs: &[Option<Value>], shape: &[i32]) -> Option<Value> {
    let value = inputs.first()?.as_ref()?;
    let view = &value.view;
    let as_it_is = || view.is_in_rows().then(|| (view.offset, rows(shape)));
    let (offset, strides) = match op {
        Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Unflatten { .. }
        | Op::Squeeze { .. }
        | Op::ExpandDims { .. } => as_it_is()?,
        Op::Transpose { axes } => {
            let axes = axes.iter().map(|axis| view.strides.get(*axis as usize));
            (
                view.offset,
                axes.map(|s| s.copied()).collect::<Option<_>>()?,
            )
        }
        Op::BroadcastTo { .. } => {
            let more = shape.len().checked_sub(view.shape.len())?;
            let strides = shape.iter().enumerate().map(|(axis, size)| {
                let own = axis.checked_sub(more).map(|axis| (view.shape[axis], axis));
                match own {
                    Some((own, axis)) if own == *size => view.strides[axis],
                    _ => 0,
                }
            });
            (view.offset, strides.collect())
        }
        Op::Slice {
            start,
            stop,
            strides: steps,
        } => {
            let rank = view.shape.len();
            let mut from = 0;
            let mut strides = SmallVec::new();
            if [start.len(), stop.len(), steps.len()] != [rank; 3] {
                return None;
            }
            for axis in 0..rank {
                let inside = (0..view.shape[axis]).contains(&start[axis])
                    && stop[axis] > start[axis]
                    && stop[axis] <= view.shape[axis];
                if !inside || steps[axis] < 1 {
                    return None;
                }
                from += i64::from(start[axis]) * view.strides[axis];
                strides.push(i64::from(steps[axis]) * view.strides[axis]);
            }
            (view.moved(from), strides)
        }
        _ => return None,
    };
    Some(Value {
        view: View {
            base: view.base,
            offset,
            shape: shape.iter().copied().collect(),
            strides,
            dtype: view.dtype,
        },
        ..value.clone()
    })
}

impl From<&Launch> for (i32, i32) {
    fn from(launch: &Launch) -> (i32, i32) {
        (launch.blocks, launch.threads)
    }
}
