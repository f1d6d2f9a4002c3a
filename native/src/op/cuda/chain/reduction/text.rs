//! The text of a reduction in CUDA's C++. The folds that need no others are computed in a first loop over the elements,
//! those that need these in a second one, and so on; results with an element for each that is read in a last one. What
//! depends on no element is computed between the loops.

use super::super::layout::THREADS;
use super::super::text::{expression, narrowed, register, stored, widened, Arguments, NAME};
use super::layout::{Form, Kind, Structure, WARP};
use super::{Fold, Kept, Step};
use crate::cpu::{Operand, Type};

/// What stands before each kernel, behind the chains' own.
pub const PRELUDE: &str = include_str!("prelude.cu");

/// What a thread keeps of the elements that it has seen.
fn state(fold: Fold, of: Type) -> String {
    let own = register(of);
    let single = |name: &str| format!("Single<{own}, {name}<{own}>>");
    match fold {
        Fold::Sum if of.is_float() => "FloatSum".into(),
        Fold::Sum => single("Sum"),
        Fold::Product => single("Product"),
        Fold::Max => single("Max"),
        Fold::Min => single("Min"),
        Fold::All => single("All"),
        Fold::Any => single("Any"),
        Fold::Place {
            is_max,
            is_last_nan,
        } => format!("Place<{own}, {is_max}, {is_last_nan}>"),
    }
}

fn name(operand: Operand) -> String {
    match operand {
        Operand::Input(input) => format!("x{input}"),
        Operand::Link(step) => format!("l{step}"),
    }
}

/// What a loop over the elements is for.
enum Aim<'a> {
    /// Folds, by their numbers.
    Folds(&'a [usize]),
    /// Results with an element for each that is read.
    Results,
}

struct Writer<'a> {
    of: &'a Structure,
    index: &'static str,
    step: &'static str,
    /// Whether a step's value has an element for each that is read.
    is_wide: Vec<bool>,
    levels: Vec<u8>,
    code: String,
}

impl Writer<'_> {
    fn inputs(&self) -> usize {
        self.of.types.len()
    }

    fn is_wide(&self, operand: Operand) -> bool {
        match operand {
            Operand::Input(input) => self.of.kinds[usize::from(input)] != Kind::Narrow,
            Operand::Link(step) => self.is_wide[usize::from(step)],
        }
    }

    /// The results with an element for each that is read, and the numbers of their arrays among all that have steps.
    fn wide_results(&self) -> impl Iterator<Item = (usize, usize, Kept)> + '_ {
        let results = self.of.rows.results.iter().enumerate();
        let wide = results.filter(|(_, kept)| kept.is_wide);
        let inputs = self.inputs();
        wide.enumerate()
            .map(move |(place, (result, kept))| (inputs + place, result, *kept))
    }

    fn line(&mut self, depth: usize, line: &str) {
        self.code.push_str(&"  ".repeat(depth));
        self.code.push_str(line);
        self.code.push('\n');
    }

    /// The steps that a loop needs whose values are elements', in their order, and which inputs it reads.
    fn needed(&self, aim: &Aim) -> (Vec<usize>, Vec<usize>) {
        let steps = &self.of.rows.steps;
        let mut is_needed = vec![false; steps.len()];
        let mut is_read = vec![false; self.inputs()];
        let mut need = |operand: Operand, is_needed: &mut Vec<bool>| match operand {
            _ if !self.is_wide(operand) => {}
            Operand::Link(step) => is_needed[usize::from(step)] = true,
            Operand::Input(input) => is_read[usize::from(input)] = true,
        };
        match aim {
            Aim::Folds(folds) => {
                for fold in *folds {
                    let operands = steps[*fold].operands();
                    operands
                        .iter()
                        .for_each(|operand| need(*operand, &mut is_needed));
                }
            }
            Aim::Results => {
                for (_, _, kept) in self.wide_results() {
                    need(Operand::Link(kept.step), &mut is_needed);
                }
            }
        }
        for i in (0..steps.len()).rev() {
            if is_needed[i] {
                let operands = steps[i].operands();
                operands
                    .iter()
                    .for_each(|operand| need(*operand, &mut is_needed));
            }
        }
        let all = |is: Vec<bool>| {
            let numbers = is.into_iter().enumerate().filter(|(_, is)| *is);
            numbers.map(|(i, _)| i).collect()
        };
        (all(is_needed), all(is_read))
    }

    /// The value of a link.
    fn link(&mut self, depth: usize, i: usize) -> Option<()> {
        let Step::Link(link) = self.of.rows.steps[i] else {
            return None;
        };
        let operands: Vec<String> = link.operands().iter().copied().map(name).collect();
        let value = expression(&link, &operands)?;
        self.line(
            depth,
            &format!("const {} l{i} = {value};", register(link.to)),
        );
        Some(())
    }

    /// The places of element `k` in arrays that are neither in order nor one element.
    fn places(&mut self, depth: usize, arrays: &[usize]) {
        let strided = arrays
            .iter()
            .copied()
            .filter(|i| self.of.kinds[*i] == Kind::Strided);
        let strided: Vec<usize> = strided.collect();
        if strided.is_empty() {
            return;
        }
        let (folded, index, step) = (self.of.folded, self.index, self.step);
        if folded > 1 {
            self.line(depth, &format!("{index} rest = k;"));
            for axis in (1..folded).rev() {
                self.line(depth, &format!("const {index} c{axis} = rest % m{axis};"));
                self.line(depth, &format!("rest /= m{axis};"));
            }
            self.line(depth, &format!("const {index} c0 = rest;"));
        } else {
            self.line(depth, &format!("const {index} c0 = k;"));
        }
        for i in strided {
            let terms = (0..folded).map(|axis| format!("{step}(c{axis}) * t{i}_{axis}"));
            let terms = terms.collect::<Vec<_>>().join(" + ");
            self.line(depth, &format!("const {step} o{i} = b{i} + {terms};"));
        }
    }

    /// What is done with one element, whose inputs are there.
    fn element(&mut self, depth: usize, steps: &[usize], aim: &Aim, is_packed: bool) -> Option<()> {
        for i in steps {
            self.link(depth, *i)?;
        }
        match aim {
            Aim::Folds(folds) => {
                for i in *folds {
                    let Step::Fold {
                        fold,
                        operand,
                        places,
                        ..
                    } = self.of.rows.steps[*i]
                    else {
                        return None;
                    };
                    let value = name(operand);
                    let line = match (fold, places) {
                        (Fold::Place { .. }, None) if is_packed => {
                            format!("f{i}.add({value}, u32(k + j));")
                        }
                        (Fold::Place { .. }, None) => format!("f{i}.add({value}, u32(k));"),
                        (Fold::Place { .. }, Some(places)) => {
                            format!("f{i}.add({value}, {});", name(places))
                        }
                        _ if is_packed => format!("v{i}[j] = {value};"),
                        _ => format!("f{i}.add({value});"),
                    };
                    self.line(depth, &line);
                }
            }
            Aim::Results => {
                for (array, result, kept) in self.wide_results().collect::<Vec<_>>() {
                    let of = self.of.rows.steps[usize::from(kept.step)].to();
                    let value = narrowed(of, &format!("l{}", kept.step));
                    let line = match (self.of.kinds[array], is_packed) {
                        (Kind::Whole, true) => format!("w{result}.v[j] = {value};"),
                        (Kind::Whole, false) => format!("r{result}[b{array} + k] = {value};"),
                        (_, false) => format!("r{result}[o{array}] = {value};"),
                        (_, true) => {
                            format!(
                                "r{result}[b{array} + {}(k + j) * t{array}_0] = {value};",
                                self.step
                            )
                        }
                    };
                    self.line(depth, &line);
                }
            }
        }
        Some(())
    }

    /// A loop over the elements, in packs as far as addresses and the end allow that.
    fn each(&mut self, aim: &Aim) -> Option<()> {
        let (steps, reads) = self.needed(aim);
        let (index, pack) = (self.index, self.of.pack);
        let written: Vec<usize> = match aim {
            Aim::Results => self.wide_results().map(|(array, _, _)| array).collect(),
            Aim::Folds(_) => Vec::new(),
        };
        let arrays: Vec<usize> = reads.iter().chain(&written).copied().collect();
        let is_there = match aim {
            Aim::Results => " && is_there",
            Aim::Folds(_) => "",
        };
        let threads = self.of.form.threads();
        self.line(2, "{");
        self.line(3, &format!("{index} rest_from = from;"));
        let wholes: Vec<usize> = arrays
            .iter()
            .copied()
            .filter(|i| self.of.kinds[*i] == Kind::Whole)
            .collect();
        if pack > 1 && !wholes.is_empty() {
            let address = |i: &usize| match i.checked_sub(self.inputs()) {
                None => format!("u64(p{i} + b{i} + from)"),
                Some(_) => {
                    let result = self.wide_results().find(|(array, _, _)| array == i);
                    let result = result.map_or(0, |(_, result, _)| result);
                    format!("u64(r{result} + b{i} + from)")
                }
            };
            let addresses: Vec<String> = wholes.iter().map(address).collect();
            self.line(
                3,
                &format!("if ((({}) & 15) == 0{is_there}) {{", addresses.join(" | ")),
            );
            self.line(
                4,
                &format!("rest_from = from + (end - from) / {pack} * {pack};"),
            );
            self.code.push_str("#pragma unroll 4\n");
            self.line(
                4,
                &format!(
                    "for ({index} k = from + lane * {pack}; k < rest_from; k += {}) {{",
                    threads * pack
                ),
            );
            self.packed(&steps, &reads, aim)?;
            self.line(4, "}");
            self.line(3, "}");
        }
        self.code.push_str("#pragma unroll 4\n");
        self.line(
            3,
            &format!("for ({index} k = rest_from + lane; k < end{is_there}; k += {threads}) {{"),
        );
        self.places(4, &arrays);
        for i in &reads {
            let of = self.of.types[*i];
            let element = match self.of.kinds[*i] {
                Kind::Whole => format!("p{i}[b{i} + k]"),
                _ => format!("p{i}[o{i}]"),
            };
            let element = widened(of, &element);
            self.line(4, &format!("const {} x{i} = {element};", register(of)));
        }
        self.element(4, &steps, aim, false)?;
        self.line(3, "}");
        self.line(2, "}");
        Some(())
    }

    /// What is done with a pack of elements, from `k` on.
    fn packed(&mut self, steps: &[usize], reads: &[usize], aim: &Aim) -> Option<()> {
        let pack = self.of.pack;
        for i in reads {
            let own = stored(self.of.types[*i]);
            if self.of.kinds[*i] == Kind::Whole {
                let read = format!("read_pack<{own}, {pack}>(p{i} + b{i} + k, {pack}, true)");
                self.line(5, &format!("const Pack<{own}, {pack}> q{i} = {read};"));
            }
        }
        let results: Vec<(usize, usize, Kept)> = match aim {
            Aim::Results => self.wide_results().collect(),
            Aim::Folds(_) => Vec::new(),
        };
        let whole = |(array, _, _): &&(usize, usize, Kept)| self.of.kinds[*array] == Kind::Whole;
        let whole: Vec<(usize, usize, Kept)> = results.iter().filter(whole).copied().collect();
        for (_, result, kept) in &whole {
            let own = stored(self.of.rows.steps[usize::from(kept.step)].to());
            self.line(5, &format!("Pack<{own}, {pack}> w{result};"));
        }
        let mut sums = Vec::new();
        if let Aim::Folds(folds) = aim {
            for i in *folds {
                if let Step::Fold { fold, of, .. } = self.of.rows.steps[*i] {
                    if !matches!(fold, Fold::Place { .. }) {
                        self.line(5, &format!("{} v{i}[{pack}];", register(of)));
                        sums.push(*i);
                    }
                }
            }
        }
        self.code.push_str("#pragma unroll\n");
        self.line(5, &format!("for (int j = 0; j < {pack}; ++j) {{"));
        for i in reads {
            let of = self.of.types[*i];
            let element = match self.of.kinds[*i] {
                Kind::Whole => format!("q{i}.v[j]"),
                _ => format!("p{i}[b{i} + {}(k + j) * t{i}_0]", self.step),
            };
            let element = widened(of, &element);
            self.line(6, &format!("const {} x{i} = {element};", register(of)));
        }
        self.element(6, steps, aim, true)?;
        self.line(5, "}");
        for i in sums {
            self.line(5, &format!("f{i}.add_all(v{i});"));
        }
        for (array, result, kept) in whole {
            let own = stored(self.of.rows.steps[usize::from(kept.step)].to());
            self.line(
                5,
                &format!(
                    "write_pack<{own}, {pack}>(w{result}, r{result} + b{array} + k, {pack}, true);"
                ),
            );
        }
        Some(())
    }

    /// Folds of one level, and what depends on them and on no element.
    fn level(&mut self, level: u8) -> Option<()> {
        let steps = self.of.rows.steps.clone();
        let is_fold = |i: &usize| matches!(steps[*i], Step::Fold { .. });
        let folds: Vec<usize> = (0..steps.len())
            .filter(|i| is_fold(i) && self.levels[*i] == level)
            .collect();
        for i in &folds {
            if let Step::Fold { fold, of, .. } = steps[*i] {
                let state = state(fold, of);
                self.line(2, &format!("{state} f{i} = {state}::none();"));
            }
        }
        if !folds.is_empty() {
            self.each(&Aim::Folds(&folds))?;
        }
        for i in &folds {
            let Step::Fold { fold, of, .. } = steps[*i] else {
                return None;
            };
            let join = match self.of.form {
                Form::Warps => Some(format!("join_warp(f{i});")),
                Form::Blocks => Some(format!("join_block(f{i}, s{i});")),
                Form::Columns => Some(format!("join_columns<{WARP}>(f{i}, s{i});")),
                Form::Threads => None,
            };
            if let Some(join) = join {
                self.line(2, &join);
            }
            let own = register(fold.result(of));
            self.line(2, &format!("const {own} l{i} = f{i}.value();"));
        }
        for i in 0..steps.len() {
            if !is_fold(&i) && !self.is_wide[i] && self.levels[i] == level {
                self.link(2, i)?;
            }
        }
        Some(())
    }

    /// The indices of a result along each axis, and where its elements begin in each array.
    fn begin(&mut self) {
        let (kept, index, step) = (self.of.kept, self.index, self.step);
        self.line(2, &format!("{index} along = own;"));
        for axis in (1..kept).rev() {
            self.line(2, &format!("const {index} d{axis} = along % n{axis};"));
            self.line(2, &format!("along /= n{axis};"));
        }
        for i in 0..self.of.kinds.len() {
            let terms = (0..kept).map(|axis| match axis {
                0 => format!("{step}(along) * s{i}_0"),
                _ => format!("{step}(d{axis}) * s{i}_{axis}"),
            });
            let terms = terms.collect::<Vec<_>>().join(" + ");
            self.line(2, &format!("const {step} b{i} = {terms};"));
        }
        for i in 0..self.inputs() {
            if self.of.kinds[i] == Kind::Narrow {
                let of = self.of.types[i];
                let element = widened(of, &format!("p{i}[b{i}]"));
                self.line(2, &format!("const {} x{i} = {element};", register(of)));
            }
        }
    }

    fn arguments(&mut self) -> usize {
        let mut arguments = Arguments {
            is_wide: self.of.is_wide,
            count: 0,
            code: String::new(),
        };
        arguments.take(self.index, "results");
        arguments.take(self.index, "count");
        if self.of.is_split {
            arguments.take(self.index, "piece");
            arguments.take(self.index, "parts");
        }
        for axis in 0..self.of.kept {
            arguments.take(self.index, &format!("n{axis}"));
        }
        for axis in 0..self.of.folded {
            arguments.take(self.index, &format!("m{axis}"));
        }
        for (i, kind) in self.of.kinds.iter().enumerate() {
            for axis in 0..self.of.kept {
                arguments.take(self.step, &format!("s{i}_{axis}"));
            }
            if *kind != Kind::Narrow {
                for axis in 0..self.of.folded {
                    arguments.take(self.step, &format!("t{i}_{axis}"));
                }
            }
        }
        self.code.push_str(&arguments.code);
        arguments.count
    }

    fn kernel(&mut self) -> Option<String> {
        let of = self.of;
        let index = self.index;
        let mut parameters: Vec<String> = of
            .types
            .iter()
            .enumerate()
            .map(|(i, of)| format!("const {}* __restrict__ p{i}", stored(*of)))
            .collect();
        for (i, kept) in of.rows.results.iter().enumerate() {
            let own = stored(of.rows.steps.get(usize::from(kept.step))?.to());
            parameters.push(format!("{own}* __restrict__ r{i}"));
        }
        let count = self.arguments();
        parameters.extend((0..count).map(|i| format!("int a{i}")));
        let room = match of.form {
            Form::Blocks => Some(THREADS / WARP),
            Form::Columns => Some(THREADS),
            Form::Warps | Form::Threads => None,
        };
        for (i, step) in of.rows.steps.iter().enumerate() {
            if let (Step::Fold { fold, of, .. }, Some(room)) = (step, room) {
                let state = state(*fold, *of);
                self.line(1, &format!("__shared__ {state} s{i}[{room}];"));
            }
        }
        let results = of.form.results();
        let (own, lane) = match of.form {
            Form::Warps => (
                format!("{index}(threadIdx.x) / {WARP}"),
                format!("{index}(threadIdx.x) % {WARP}"),
            ),
            Form::Blocks => ("0".into(), format!("{index}(threadIdx.x)")),
            Form::Columns => (
                format!("{index}(threadIdx.x) % {WARP}"),
                format!("{index}(threadIdx.x) / {WARP}"),
            ),
            Form::Threads => (format!("{index}(threadIdx.x)"), "0".into()),
        };
        self.line(1, &format!("const {index} lane = {lane};"));
        self.line(
            1,
            &format!(
                "const {index} tiles = (results + {}) / {results};",
                results - 1
            ),
        );
        let all = if of.is_split {
            "tiles * parts"
        } else {
            "tiles"
        };
        self.line(
            1,
            &format!("for ({index} tile = blockIdx.x; tile < {all}; tile += gridDim.x) {{"),
        );
        let (tile, from, end) = match of.is_split {
            true => (
                "tile % tiles",
                "tile / tiles * piece < count ? tile / tiles * piece : count",
                "count - from < piece ? count : from + piece",
            ),
            false => ("tile", "0", "count"),
        };
        self.line(
            2,
            &format!("const {index} result = {tile} * {results} + {own};"),
        );
        self.line(2, "const bool is_there = result < results;");
        // Threads beyond the last result go along with it.
        self.line(
            2,
            &format!("const {index} own = is_there ? result : results - 1;"),
        );
        self.line(2, &format!("const {index} from = {from};"));
        self.line(2, &format!("const {index} end = {end};"));
        self.begin();
        let last = self.levels.iter().copied().max().unwrap_or(0);
        for level in 0..=last {
            self.level(level)?;
        }
        if self.wide_results().next().is_some() {
            self.each(&Aim::Results)?;
        }
        for (i, kept) in of.rows.results.iter().enumerate() {
            if !kept.is_wide {
                let value = narrowed(
                    of.rows.steps[usize::from(kept.step)].to(),
                    &format!("l{}", kept.step),
                );
                let place = match of.is_split {
                    true => "tile / tiles * results + own",
                    false => "own",
                };
                self.line(2, "if (is_there && lane == 0) {");
                self.line(3, &format!("r{i}[{place}] = {value};"));
                self.line(2, "}");
            }
        }
        self.line(1, "}");
        Some(format!(
            "extern \"C\" __global__ void __launch_bounds__({THREADS}) {NAME}({}) {{\n{}}}\n",
            parameters.join(", "),
            self.code
        ))
    }
}

/// The kernel, whose name is [`NAME`]. None where a step has no text.
pub fn kernel(structure: &Structure) -> Option<String> {
    let (index, step) = match structure.is_wide {
        true => ("u64", "s64"),
        false => ("u32", "s32"),
    };
    let mut writer = Writer {
        of: structure,
        index,
        step,
        is_wide: Vec::new(),
        levels: structure.rows.levels().to_vec(),
        code: String::new(),
    };
    for step in &structure.rows.steps {
        let is_wide = match step {
            Step::Link(link) => link
                .operands()
                .iter()
                .any(|operand| writer.is_wide(*operand)),
            Step::Fold { .. } => false,
        };
        writer.is_wide.push(is_wide);
    }
    let results = &structure.rows.results;
    let is_fine = |kept: &Kept| kept.is_wide || !writer.is_wide[usize::from(kept.step)];
    // A step of elements gives no single result, nor do parts give elements.
    let fits = results.iter().all(is_fine)
        && !(structure.is_split && results.iter().any(|kept| kept.is_wide));
    if !fits {
        return None;
    }
    writer.kernel()
}
