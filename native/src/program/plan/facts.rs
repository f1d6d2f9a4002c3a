//! What passes know of code: types, what defines a value, and what uses it.

use crate::base::{Dtype, Signature};
use crate::op::Op;
use crate::program::plan::{Code, Node, Work};
use smallvec::SmallVec;
use std::collections::HashSet;

/// What takes a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum User {
    Node(usize),
    /// It is one of the block's outputs.
    Output,
}

impl User {
    /// Whether it is one of these nodes.
    pub fn is_in(&self, nodes: &HashSet<usize>) -> bool {
        matches!(self, User::Node(at) if nodes.contains(at))
    }

    /// Whether it comes after a node.
    pub fn is_after(&self, place: usize) -> bool {
        !matches!(self, User::Node(at) if *at <= place)
    }
}

pub struct Facts<'a> {
    pub code: &'a Code,
    types: &'a [Signature],
    /// The place of the node that gives each value; None for the block's inputs.
    definitions: Vec<Option<usize>>,
    users: Vec<SmallVec<[User; 2]>>,
}

impl<'a> Facts<'a> {
    pub fn of(code: &'a Code, types: &'a [Signature]) -> Facts<'a> {
        let mut definitions = vec![None; code.values];
        let mut users = vec![SmallVec::new(); code.values];
        for (at, node) in code.nodes.iter().enumerate() {
            for value in &node.outputs {
                definitions[*value as usize] = Some(at);
            }
            for value in node.inputs.iter().flatten() {
                users[*value as usize].push(User::Node(at));
            }
        }
        for value in &code.outputs {
            users[*value as usize].push(User::Output);
        }
        Facts {
            code,
            types,
            definitions,
            users,
        }
    }

    pub fn shape(&self, value: u32) -> &'a [i32] {
        &self.types[value as usize].0
    }

    /// How many elements a value has.
    pub fn size(&self, value: u32) -> usize {
        self.shape(value)
            .iter()
            .map(|size| *size as usize)
            .product()
    }

    pub fn dtype(&self, value: u32) -> Dtype {
        self.types[value as usize].1
    }

    pub fn is(&self, value: u32, shape: &[i32], dtype: Dtype) -> bool {
        self.shape(value) == shape && self.dtype(value) == dtype
    }

    /// The place of what gives a value.
    pub fn place(&self, value: u32) -> Option<usize> {
        self.definitions[value as usize]
    }

    /// The operation that gives a value as its only output, and its node.
    pub fn operation(&self, value: u32) -> Option<(&'a Op, &'a Node)> {
        let node = &self.code.nodes[self.place(value)?];
        match &node.work {
            Work::Op(op) => Some((op, node)),
            _ => None,
        }
    }

    /// The operation that gives a value, seen through reshapes.
    pub fn through_reshapes(&self, value: u32) -> Option<(&'a Op, &'a Node)> {
        let (op, node) = self.operation(value)?;
        match (op, node.inputs.first()) {
            (Op::Reshape { .. }, Some(Some(source))) => self.through_reshapes(*source),
            _ => Some((op, node)),
        }
    }

    pub fn users(&self, value: u32) -> &[User] {
        &self.users[value as usize]
    }

    /// Whether one node takes a value, once, or it is an output, once.
    pub fn has_one_use(&self, value: u32) -> bool {
        self.users(value).len() == 1
    }

    /// The only node that takes a value, where nothing else does.
    pub fn only_user(&self, value: u32) -> Option<(usize, &'a Node)> {
        match self.users(value) {
            [User::Node(at)] => Some((*at, &self.code.nodes[*at])),
            _ => None,
        }
    }

    /// Whether a value is there before the node at a place.
    pub fn is_before(&self, value: u32, place: usize) -> bool {
        self.place(value).is_none_or(|at| at < place)
    }
}

/// The inputs of a node that takes no nil, as so many.
pub fn inputs<const N: usize>(node: &Node) -> Option<[u32; N]> {
    let inputs: SmallVec<[u32; 4]> = node.inputs.iter().copied().collect::<Option<_>>()?;
    inputs[..].try_into().ok()
}

/// The only output of a node.
pub fn output(node: &Node) -> Option<u32> {
    match node.outputs[..] {
        [output] => Some(output),
        _ => None,
    }
}

/// What a function gives of two values in one order or the other.
pub fn either<T>(p: u32, q: u32, fun: impl Fn(u32, u32) -> Option<T>) -> Option<T> {
    fun(p, q).or_else(|| fun(q, p))
}

pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}
