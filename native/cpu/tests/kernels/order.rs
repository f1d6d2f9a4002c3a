//! The kernels that compare numbers, in every type and every form that the machine has, against plain loops.

use crate::support::{in_rows, Dice, Scattered};
use emlx_cpu::internals::{arg_extreme, extreme, keys::Number, select_top, simd::Level, sort};
use emlx_cpu::{Type, View};
use half::{bf16, f16};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Debug;

trait Case: Number + PartialOrd + Debug {
    const OF: Type;
    /// What is special, and what is not.
    fn draw(dice: &mut Dice) -> Self;
    fn bits(self) -> u64;
    /// Between -8 and 8, or any.
    fn noise(dice: &mut Dice) -> Self;

    fn is_nan(self) -> bool {
        self.partial_cmp(&self).is_none()
    }

    fn is_same(self, other: Self) -> bool {
        self == other || self.is_nan() && other.is_nan()
    }
}

macro_rules! integers {
    ($($t:ty => $of:ident),+) => { $(
        impl Case for $t {
            const OF: Type = Type::$of;
            fn draw(dice: &mut Dice) -> $t {
                match dice.below(8) {
                    0 => <$t>::MIN,
                    1 => <$t>::MAX,
                    2..4 => dice.below(4) as $t,
                    _ => (dice.below(1 << 31) as i64 - (1 << 30)).wrapping_mul(0x1_0001_0101) as $t,
                }
            }
            fn noise(dice: &mut Dice) -> $t {
                Self::draw(dice)
            }
            fn bits(self) -> u64 {
                self as u64
            }
        }
    )+ };
}

integers!(u8 => U8, u16 => U16, u32 => U32, u64 => U64, i8 => S8, i16 => S16, i32 => S32, i64 => S64);

macro_rules! floats {
    ($($t:ty => $of:ident),+) => { $(
        impl Case for $t {
            const OF: Type = Type::$of;
            fn draw(dice: &mut Dice) -> $t {
                let special = [<$t>::NAN, -<$t>::NAN, <$t>::INFINITY, <$t>::NEG_INFINITY, <$t>::MAX, <$t>::MIN];
                let zero = <$t>::from_bits(0);
                match dice.below(400) {
                    i @ 0..6 => special[i],
                    6..20 => zero,
                    20..40 => -zero,
                    i @ 40..50 => <$t>::from_bits(i as _),
                    _ => {
                        // Of 16 bits, so that it is the same in every type.
                        let x = (dice.below(400) as f32 - 200.0) / 16.0;
                        let half = bf16::from_f32(x);
                        Self::from_bits(floats!(@bits half, $of))
                    }
                }
            }
            fn noise(dice: &mut Dice) -> $t {
                let x = dice.below(1 << 24) as f32 - (1 << 23) as f32;
                floats!(@of x / (1 << 20) as f32, $of)
            }
            fn bits(self) -> u64 {
                self.to_bits().into()
            }
        }
    )+ };
    (@of $x:expr, F32) => { $x };
    (@of $x:expr, F64) => { f64::from($x) };
    (@of $x:expr, F16) => { f16::from_f32($x) };
    (@of $x:expr, Bf16) => { bf16::from_f32($x) };
    (@bits $half:ident, F16) => { f16::from_f32($half.to_f32()).to_bits() };
    (@bits $half:ident, Bf16) => { $half.to_bits() };
    (@bits $half:ident, F32) => { $half.to_f32().to_bits() };
    (@bits $half:ident, F64) => { f64::from($half.to_f32()).to_bits() };
}

floats!(f16 => F16, bf16 => Bf16, f32 => F32, f64 => F64);

/// An array of any type that lies in some way.
struct Array<T> {
    data: Vec<T>,
    shape: Vec<i32>,
    strides: Vec<i64>,
    first: usize,
    /// Every element with its place, in row-major order.
    each: Vec<(Vec<usize>, T)>,
}

impl<T: Case> Array<T> {
    fn new(dice: &mut Dice, shape: &[i32], is_in_rows: bool) -> Array<T> {
        let layout = match is_in_rows {
            true => {
                let size: i32 = shape.iter().product();
                Scattered::<f32>::in_rows(vec![0.0; size as usize], shape)
            }
            false => Scattered::<f32>::new(dice, shape, |_| 0.0),
        };
        let data = layout.data.iter().map(|_| T::draw(dice)).collect();
        Array::of(layout, data)
    }

    fn of(mut layout: Scattered<f32>, data: Vec<T>) -> Array<T> {
        for (i, slot) in layout.data.iter_mut().enumerate() {
            *slot = i as f32;
        }
        let (mut first, mut each) = (None, Vec::new());
        layout.each(|place, at| {
            first.get_or_insert(at as usize);
            each.push((place.to_vec(), data[at as usize]));
        });
        Array {
            data,
            shape: layout.shape.clone(),
            strides: layout.strides.clone(),
            first: first.unwrap_or(0),
            each,
        }
    }

    fn view(&self) -> View {
        // SAFETY: of an array of the test's own, which outlives it.
        unsafe { View::of(&self.data[self.first], &self.shape, &self.strides) }
    }

    /// The elements that become one, in row-major order of what they become.
    fn groups(&self, axes: &[u8]) -> Vec<Vec<T>> {
        let mut groups: BTreeMap<Vec<usize>, Vec<T>> = BTreeMap::new();
        for (place, x) in &self.each {
            let mut place = place.clone();
            axes.iter().for_each(|axis| place[usize::from(*axis)] = 0);
            groups.entry(place).or_default().push(*x);
        }
        groups.into_values().collect()
    }

    /// What a kernel that changes the size of `axes` to `size` makes of it.
    fn computed<O: Copy>(
        &self,
        axes: &[u8],
        size: usize,
        none: O,
        work: impl Fn(&View, &View),
    ) -> Vec<O> {
        let mut shape = self.shape.clone();
        axes.iter()
            .for_each(|axis| shape[usize::from(*axis)] = size as i32);
        let out = vec![none; shape.iter().product::<i32>() as usize];
        let strides = in_rows(&shape);
        // SAFETY: of an array of the test's own, which outlives it.
        let to = unsafe { View::of(out.as_ptr(), &shape, &strides) };
        work(&self.view(), &to);
        out
    }

    /// What a kernel along an axis makes of each line.
    fn lines<O: Copy>(
        &self,
        axis: u8,
        size: usize,
        none: O,
        work: impl Fn(&View, &View),
    ) -> Vec<Vec<O>> {
        let all = self.computed(&[axis], size, none, work);
        let inner: usize = self.shape[usize::from(axis) + 1..]
            .iter()
            .map(|n| *n as usize)
            .product();
        let lines = all.len() / size;
        let line = |n: usize| {
            (0..size)
                .map(|i| all[(n / inner * size + i) * inner + n % inner])
                .collect()
        };
        (0..lines).map(line).collect()
    }
}

fn best<T: Case>(group: &[T], is_max: bool) -> T {
    let join = |a: T, b: T| {
        let beats = if is_max { b > a } else { b < a };
        if !a.is_nan() && (b.is_nan() || beats) {
            b
        } else {
            a
        }
    };
    group.iter().copied().reduce(join).expect("an element")
}

/// Ascending, NaN last.
fn compare<T: Case>(a: T, b: T) -> Ordering {
    a.partial_cmp(&b).unwrap_or(a.is_nan().cmp(&b.is_nan()))
}

fn order<T: Case>(line: &[T]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..line.len() as u32).collect();
    order.sort_by(|a, b| compare(line[*a as usize], line[*b as usize]));
    order
}

fn check_reductions<T: Case>(x: &Array<T>, axes: &[u8], case: &str) {
    let groups = x.groups(axes);
    let none = x.data[0];
    for level in Level::all() {
        for is_yes in [true, false] {
            // SAFETY: views of one type and of shapes that fit.
            let got = x.computed(axes, 1, none, |x, out| unsafe {
                extreme::extreme(level, T::OF, is_yes, axes, x, out)
            });
            for (group, got) in groups.iter().zip(&got) {
                let want = best(group, is_yes);
                assert!(
                    want.is_same(*got),
                    "{case} {level:?} max {is_yes}: {got:?}, not {want:?}"
                );
            }
            // SAFETY: views of one type and of shapes that fit.
            let got = x.computed(axes, 1, 7u8, |x, out| unsafe {
                extreme::truth(level, T::OF, is_yes, axes, x, out)
            });
            let is_set = |x: &T| {
                if T::OF.is_float() {
                    !x.is_same(T::of_key(zero_key::<T>()))
                } else {
                    x.bits() != 0
                }
            };
            for (group, got) in groups.iter().zip(&got) {
                let want = if is_yes {
                    group.iter().all(is_set)
                } else {
                    group.iter().any(is_set)
                };
                assert_eq!(*got, u8::from(want), "{case} {level:?} all {is_yes}");
            }
            if T::OF.is_float() {
                continue;
            }
            let fold = |group: &[T]| match is_yes {
                true => group.iter().fold(1u64, |all, x| all.wrapping_mul(x.bits())),
                false => group.iter().fold(0u64, |all, x| all.wrapping_add(x.bits())),
            };
            // SAFETY: views of one type and of shapes that fit.
            let work = |x: &View, out: &View| unsafe {
                extreme::total(level, T::OF, is_yes, axes, x, out)
            };
            let wide: Vec<u64> = match T::OF.size() {
                8 => x.computed(axes, 1, 7u64, work),
                _ => x
                    .computed(axes, 1, 7u32, work)
                    .into_iter()
                    .map(u64::from)
                    .collect(),
            };
            for (group, got) in groups.iter().zip(wide) {
                let want = fold(group);
                let want = if T::OF.size() == 8 {
                    want
                } else {
                    want & 0xffff_ffff
                };
                assert_eq!(got, want, "{case} {level:?} product {is_yes}");
            }
        }
    }
}

fn zero_key<T: Case>() -> T::Key {
    // Halfway up, where the type has a sign, as floats have.
    let top = 1u64 << (T::OF.size() * 8 - 1);
    assert!(T::OF.is_float());
    // SAFETY: an unsigned integer of that size, little-endian.
    unsafe { std::mem::transmute_copy::<u64, T::Key>(&top) }
}

fn check_order<T: Case>(dice: &mut Dice, x: &Array<T>, axis: u8, case: &str) {
    let lines = x.groups(&[axis]);
    let count = x.shape[usize::from(axis)] as usize;
    for level in Level::all() {
        for (is_max, is_last_nan) in [(true, true), (true, false), (false, true), (false, false)] {
            let how = arg_extreme::How {
                is_max,
                axis: axis.into(),
                is_last_nan,
            };
            // SAFETY: views of the types and shapes that the kernel wants.
            let got = x.computed(&[axis], 1, u32::MAX, |x, out| unsafe {
                arg_extreme::run(level, T::OF, &how, x, out)
            });
            for (line, got) in lines.iter().zip(got) {
                let top = best(line, is_max);
                let is_it = |x: &T| x.is_same(top);
                let want = match top.is_nan() && is_last_nan {
                    true => line.iter().rposition(is_it),
                    false => line.iter().position(is_it),
                };
                assert_eq!(
                    Some(got as usize),
                    want,
                    "{case} {level:?} max {is_max} last {is_last_nan}"
                );
            }
        }
        let most = if dice.below(2) == 0 { 9 } else { count };
        let k = 1 + dice.below(count.min(most));
        let how = |is_place| select_top::How {
            k,
            axis: axis.into(),
            is_place,
        };
        // SAFETY: views of the types and shapes that the kernel wants.
        let places = x.lines(axis, k, u32::MAX, |x, out| unsafe {
            select_top::run(level, T::OF, &how(true), x, out)
        });
        // SAFETY: views of the types and shapes that the kernel wants.
        let values = x.lines(axis, k, x.data[0], |x, out| unsafe {
            select_top::run(level, T::OF, &how(false), x, out)
        });
        for ((line, places), values) in lines.iter().zip(places).zip(values) {
            let mut want: Vec<u32> = (0..count as u32).collect();
            want.sort_by(|a, b| compare(line[*b as usize], line[*a as usize]));
            want.truncate(k);
            assert_eq!(places, want, "{case} {level:?} top {k}");
            let is_right =
                |(place, value): (&u32, &T)| line[*place as usize].bits() == value.bits();
            assert!(
                want.iter().zip(&values).all(is_right),
                "{case} {level:?} top {k}"
            );
        }
    }
    // SAFETY: views of the types and shapes that the kernel wants.
    let places = x.lines(axis, count, u32::MAX, |x, out| unsafe {
        sort::argsort(T::OF, axis.into(), x, out)
    });
    // SAFETY: views of the types and shapes that the kernel wants.
    let sorted = x.lines(axis, count, x.data[0], |x, out| unsafe {
        sort::sort(T::OF, axis.into(), x, out)
    });
    for ((line, places), sorted) in lines.iter().zip(places).zip(sorted) {
        let want = order(line);
        assert!(places == want, "{case} argsort");
        let is_right = |(place, x): (&u32, &T)| line[*place as usize].bits() == x.bits();
        assert!(want.iter().zip(&sorted).all(is_right), "{case} sort");
    }
}

fn check_shapes<T: Case>() {
    let sizes = [1, 2, 3, 5, 8, 17, 33, 64, 130, 600];
    for seed in 0..60 {
        let mut dice = Dice::new(seed + 77);
        let rank = 1 + dice.below(4);
        let shape: Vec<i32> = (0..rank).map(|_| sizes[dice.below(10)]).collect();
        if shape.iter().product::<i32>() > 12_000 {
            continue;
        }
        let is_in_rows = dice.below(3) == 0;
        let x = Array::<T>::new(&mut dice, &shape, is_in_rows);
        let axes: Vec<u8> = (0..rank as u8).filter(|_| dice.below(2) == 0).collect();
        let case = format!(
            "seed {seed}: {:?} of {shape:?} {:?} over {axes:?}",
            T::OF,
            x.strides
        );
        check_reductions(&x, &axes, &case);
        let axis = dice.below(rank) as u8;
        check_order(&mut dice, &x, axis, &format!("{case}, along {axis}"));
    }
}

#[test]
fn integers_are_compared_whatever_the_axes_and_the_layout() {
    check_shapes::<u8>();
    check_shapes::<u16>();
    check_shapes::<u32>();
    check_shapes::<u64>();
    check_shapes::<i8>();
    check_shapes::<i16>();
    check_shapes::<i32>();
    check_shapes::<i64>();
}

#[test]
fn floats_are_compared_whatever_the_axes_and_the_layout() {
    check_shapes::<f16>();
    check_shapes::<bf16>();
    check_shapes::<f32>();
    check_shapes::<f64>();
}

/// Rows of which most is the smallest number, or another.
fn check_common<T: Case>() {
    for (seed, count) in [600, 601, 5_000, 70_000].into_iter().enumerate() {
        let mut dice = Dice::new(seed as u64);
        let drawn = Array::<T>::new(&mut dice, &[2, count], true).data;
        let sorted = order(&drawn);
        for common in [sorted[0], sorted[sorted.len() / 2]] {
            let data = drawn.iter().map(|x| match dice.below(10) {
                0 => *x,
                _ => drawn[common as usize],
            });
            let layout = Scattered::in_rows(vec![0.0; drawn.len()], &[2, count]);
            let x = Array::of(layout, data.collect());
            check_order(&mut dice, &x, 1, &format!("{:?} of 2 x {count}", T::OF));
        }
    }
}

#[test]
fn rows_of_mostly_one_number_are_ordered() {
    check_common::<u8>();
    check_common::<i64>();
    check_common::<bf16>();
    check_common::<f32>();
    check_common::<f64>();
}

fn check_long<T: Case>() {
    for (seed, shape) in [
        [1, 70_003],
        [70_003, 1],
        [30_001, 3],
        [300, 700],
        [2, 66_000],
    ]
    .iter()
    .enumerate()
    {
        let mut dice = Dice::new(seed as u64);
        let x = Array::<T>::new(&mut dice, shape, true);
        for axis in 0..2 {
            let case = format!("{:?} of {shape:?} along {axis}", T::OF);
            check_reductions(&x, &[axis], &case);
            check_order(&mut dice, &x, axis, &case);
        }
        check_reductions(&x, &[0, 1], &format!("{:?} of all of {shape:?}", T::OF));
    }
}

#[test]
fn what_threads_share_is_put_together_again() {
    check_long::<u8>();
    check_long::<i64>();
    check_long::<bf16>();
    check_long::<f32>();
}

/// `cargo test --release -p emlx_cpu times_of_order -- --ignored --nocapture`, with a thread for each core.
#[test]
#[ignore = "measures"]
fn times_of_order() {
    fn time(name: &str, work: impl Fn()) {
        let mut best = f64::INFINITY;
        for _ in 0..9 {
            let start = std::time::Instant::now();
            work();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name}: {:.0} us", best * 1e6);
    }
    fn all<T: Case>() {
        let level = Level::best();
        for shape in [[1, 1 << 20], [1000, 1000], [1 << 17, 8], [8, 1 << 17]] {
            let mut dice = Dice::new(5);
            let size = shape[0] * shape[1];
            let data: Vec<T> = (0..size).map(|_| T::noise(&mut dice)).collect();
            let out = vec![0u64; size as usize];
            let strides = in_rows(&shape);
            // SAFETY: of arrays that outlive them; the result has room for any.
            let (x, to) = unsafe {
                (
                    View::of(data.as_ptr(), &shape, &strides),
                    View::of(out.as_ptr(), &shape, &strides),
                )
            };
            for axis in 0..2u8 {
                let name = |of: &str| format!("{:?} {shape:?} axis {axis} {of}", T::OF);
                let how = arg_extreme::How {
                    is_max: true,
                    axis: axis.into(),
                    is_last_nan: true,
                };
                let top = select_top::How {
                    k: 10.min(shape[usize::from(axis)] as usize),
                    axis: axis.into(),
                    is_place: true,
                };
                // SAFETY: views of shapes that fit.
                unsafe {
                    time(&name("max"), || {
                        extreme::extreme(level, T::OF, true, &[axis], &x, &to)
                    });
                    time(&name("any"), || {
                        extreme::truth(level, T::OF, false, &[axis], &x, &to)
                    });
                    if !T::OF.is_float() {
                        time(&name("sum"), || {
                            extreme::total(level, T::OF, false, &[axis], &x, &to)
                        });
                    }
                    time(&name("argmax"), || {
                        arg_extreme::run(level, T::OF, &how, &x, &to)
                    });
                    time(&name("top 10"), || {
                        select_top::run(level, T::OF, &top, &x, &to)
                    });
                    time(&name("sort"), || sort::sort(T::OF, axis.into(), &x, &to));
                    time(&name("argsort"), || {
                        sort::argsort(T::OF, axis.into(), &x, &to)
                    });
                }
            }
        }
    }
    emlx_cpu::configure(
        std::env::var("THREADS").ok().and_then(|n| n.parse().ok()),
        true,
    );
    all::<f32>();
    all::<bf16>();
    all::<u8>();
    all::<i32>();
}
