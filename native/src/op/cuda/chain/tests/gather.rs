//! Generated kernels that take elements by indices, run on the CPU, against plain loops.

use super::super::gather::kernel::{self, Launch, Structure};
use super::super::gather::{Along, Gather};
use super::super::text::NAME;
use super::emulated::{runner, Library};
use super::*;
use crate::op::gathers;
use emlx_cpu::View;

struct Case {
    gather: Gather,
    size: usize,
    types: Vec<Type>,
    /// The array and the indices.
    inputs: Vec<Held>,
    most: usize,
}

impl Case {
    fn launch(&self) -> Launch {
        let views: Vec<View> = self.inputs.iter().map(Held::view).collect();
        let (a, indices) = views.split_first().expect("an array");
        Launch::within(self.most, &self.gather, self.size, &self.types, a, indices)
            .expect("few arguments")
    }

    fn count(&self) -> usize {
        self.gather
            .shape
            .iter()
            .map(|size| *size as usize)
            .product()
    }

    fn expected(&self) -> Vec<u8> {
        let a = &self.inputs[0];
        let mut all = Vec::new();
        for at in 0..self.count() {
            let mut rest = at;
            let mut places = vec![0i64; self.gather.shape.len()];
            for (place, size) in places.iter_mut().zip(&self.gather.shape).rev() {
                *place = (rest % *size as usize) as i64;
                rest /= *size as usize;
            }
            let place = |held: &Held, along: &Along| -> i64 {
                let axes = along.iter().zip(&places);
                let own = axes.map(|(axis, place)| match *axis {
                    Some(axis) if held.shape[usize::from(axis)] != 1 => {
                        place * held.strides[usize::from(axis)]
                    }
                    _ => 0,
                });
                own.sum()
            };
            let mut from = place(a, &self.gather.along);
            for (i, index) in self.gather.indices.iter().enumerate() {
                let (of, held) = (self.types[i], &self.inputs[i + 1]);
                let at = held.offset as i64 + place(held, &index.along) * of.size() as i64;
                let named = reference::whole(of, &held.memory[at as usize..][..of.size()]);
                let axis = usize::from(index.axis);
                let length = i128::from(a.shape[axis]);
                let named = if named < 0 { named + length } else { named };
                from += named.clamp(0, index.last.into()) as i64 * a.strides[axis];
            }
            let from = (a.offset as i64 + from * self.size as i64) as usize;
            all.extend(&a.memory[from..from + self.size]);
        }
        all
    }
}

fn check(cases: &[Case], name: &str) {
    let launches: Vec<Launch> = cases.iter().map(Case::launch).collect();
    let mut structures: Vec<Structure> = Vec::new();
    let mut source = String::new();
    let numbers = launches.iter().map(|launch| {
        assert_eq!(launch.arguments.len(), kernel::numbers(&launch.structure));
        let known = structures.iter().position(|own| *own == launch.structure);
        known.unwrap_or_else(|| {
            let (i, structure) = (structures.len(), launch.structure.clone());
            source.push_str(&kernel::text(&structure).replace(NAME, &format!("k{i}")));
            let arrays = structure.types.len() + 2;
            source.push_str(&runner(i, arrays, kernel::numbers(&structure), "each"));
            structures.push(structure);
            i
        })
    });
    let numbers: Vec<usize> = numbers.collect();
    let Some(library) = Library::of_text(&source, name) else {
        return;
    };
    for ((case, launch), i) in cases.iter().zip(&launches).zip(numbers) {
        let mut results = [vec![0xab; case.count() * case.size]];
        library.call(
            i,
            &case.inputs,
            &mut results,
            &launch.arguments,
            launch.blocks,
        );
        assert!(
            results[0] == case.expected(),
            "{:?} of {:?}: {:?}",
            case.gather,
            case.inputs[0].shape,
            launch.structure
        );
    }
}

/// Indices within and outside of what they name.
fn indices(of: Type, shape: &[i32], layout: usize, dice: &mut Dice) -> Held {
    let mut held = laid_out(of, shape, layout, dice);
    let count = held.memory.len() / of.size();
    let numbers = (0..count).flat_map(|_| {
        let number = match dice.below(12) {
            0 => i128::from(dice.next() as i64),
            _ => i128::from(dice.below(40)) - 15,
        };
        bytes(of, number, 0.0)
    });
    held.memory = numbers.collect();
    held
}

const OF_INDICES: [Type; 8] = [
    Type::S32,
    Type::U8,
    Type::S64,
    Type::U64,
    Type::S8,
    Type::U32,
    Type::U16,
    Type::S16,
];

#[test]
fn elements_are_those_that_indices_name() {
    let mut dice = Dice(31);
    let mut cases = Vec::new();
    let mut next = 0;
    let shapes: [&[i32]; 6] = [&[9], &[7, 16], &[7, 12], &[5, 3], &[4, 5, 6], &[3, 1, 8]];
    for of in [Type::U8, Type::F16, Type::F32, Type::S64] {
        for shape in shapes {
            for layout in [0, 5, 6, 7, 8] {
                for axis in 0..shape.len() {
                    next += 1;
                    let kind = OF_INDICES[next % 8];
                    let mut add = |gather: Gather, index: &[i32], dice: &mut Dice| {
                        let layouts = if index.len() > 1 { [8, 5] } else { [8, 7] };
                        cases.push(Case {
                            gather,
                            size: of.size(),
                            types: vec![kind],
                            inputs: vec![
                                laid_out(of, shape, layout, dice),
                                indices(kind, index, layouts[next % 2], dice),
                            ],
                            most: if next % 3 == 0 { 0 } else { usize::MAX },
                        });
                    };
                    add(gathers::take(shape, &[11], axis), &[11], &mut dice);
                    add(gathers::take(shape, &[2, 3], axis), &[2, 3], &mut dice);
                    let mut index = shape.to_vec();
                    index[axis] = 13;
                    let along = gathers::take_along(shape, &index, axis).expect("fits");
                    add(along, &index, &mut dice);
                    index[(axis + 1) % shape.len()] = 1;
                    let along = gathers::take_along(shape, &index, axis).expect("fits");
                    add(along, &index, &mut dice);
                }
            }
        }
    }
    check(&cases, "take");
}

#[test]
fn slices_begin_where_several_indices_name() {
    let mut dice = Dice(6);
    let mut cases = Vec::new();
    let shape = [6, 5, 8];
    for of in [Type::U8, Type::Bf16, Type::F32, Type::S64] {
        for layout in [0, 5, 6, 7, 8] {
            for (sizes, axes) in [
                ([1, 1, 8], vec![0, 1]),
                ([2, 5, 3], vec![2, 0]),
                ([1, 1, 1], vec![0, 1, 2]),
                ([6, 2, 8], vec![1]),
            ] {
                // The first index is broadcast over the others' axes.
                let shapes: Vec<Vec<i32>> = (0..axes.len())
                    .map(|i| if i == 0 { vec![4] } else { vec![3, 4] })
                    .collect();
                let given: Vec<&[i32]> = shapes.iter().map(Vec::as_slice).collect();
                let gather = gathers::gather(&shape, &given, &axes, &sizes).expect("fits");
                let types: Vec<Type> = (0..axes.len())
                    .map(|i| OF_INDICES[i + layout % 3])
                    .collect();
                let own = shapes.iter().zip(&types);
                let own = own.map(|(shape, of)| indices(*of, shape, 8, &mut dice));
                let own: Vec<Held> = own.collect();
                let a = laid_out(of, &shape, layout, &mut dice);
                cases.push(Case {
                    gather,
                    size: of.size(),
                    types,
                    inputs: std::iter::once(a).chain(own).collect(),
                    most: if layout == 6 { 0 } else { usize::MAX },
                });
            }
        }
    }
    check(&cases, "gather");
}

#[test]
fn rows_are_moved_in_packs() {
    let launch = |of: Type, shape: &[i32], axis| {
        let mut dice = Dice(2);
        let case = Case {
            gather: gathers::take(shape, &[5], axis),
            size: of.size(),
            types: vec![Type::S64],
            inputs: vec![
                laid_out(of, shape, 8, &mut dice),
                indices(Type::S64, &[5], 8, &mut dice),
            ],
            most: usize::MAX,
        };
        case.launch().structure
    };
    assert_eq!(launch(Type::F32, &[7, 64], 0).pack, 4);
    assert_eq!(launch(Type::F16, &[7, 3, 64], 0).pack, 8);
    assert_eq!(launch(Type::F16, &[7, 6], 0).pack, 2);
    assert_eq!(launch(Type::F32, &[7, 64], 1).pack, 1);
    // What one index takes is a row, be it of several axes.
    assert_eq!(launch(Type::F16, &[7, 3, 64], 0).rank, 2);
    assert_eq!(gathers::take_along(&[3, 4], &[3], 0), None);
    assert_eq!(gathers::take_along(&[3, 4], &[2, 2], 0), None);
}

/// The texts, for [`super::cudas_compiler_takes_every_text`].
pub fn texts() -> String {
    let mut source = String::new();
    for (i, of) in OF_INDICES.into_iter().enumerate() {
        for (size, pack, rank) in [(1, 16, 1), (2, 8, 2), (4, 4, 3), (8, 1, 2)] {
            let structure = Structure {
                size,
                types: [of, Type::S32][..1 + i % 2].into(),
                rank,
                pack,
                is_wide: i % 3 == 0,
            };
            let name = format!("gather{i}_{size}");
            source.push_str(&kernel::text(&structure).replace(NAME, &name));
        }
    }
    source
}
