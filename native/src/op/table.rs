//! The one table of operations, put together of a part for each family. [`Op`] is decoded from the Elixir term and from
//! a file's JSON by derive.

use super::traits::{Class, Traits, View};
use super::{
    AttentionLayout, MaskMode, Negative, Number, PadMode, QuantMode, Reduction, Side, Which,
};
use crate::base::Dtype;
use crate::mlx::FftNorm;
use rustler::NifTaggedEnum;
use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantNames};

/// A family's part of the table, at the top of its file: the class, how many arrays its operations take, and each
/// operation with its attributes. Behind `=>` is what else is true of it, by the methods of [`Traits`]:
///
/// ```text
/// family! { Order, takes(1):
///     // Inputs: a.
///     Sort { axis: i32 } => row_major_on_gpu(),
///     /// Inputs: sorted (one axis), values.
///     Searchsorted { side: Side } => takes(2),
/// }
/// ```
///
/// It becomes the file's macro `operations!`, which adds the part to those that its caller brings and goes on to the
/// macro that its caller names, because an enum is one item.
macro_rules! family {
    ($($part:tt)*) => {
        $crate::op::table::part! { ($) $($part)* }
    };
}
pub(super) use family;

macro_rules! part {
    // `$d` is `$`, for the macro that this one defines.
    (($d:tt) $class:ident, takes($required:literal): $($operation:tt)*) => {
        macro_rules! operations {
            ($d next:ident $d parts:tt $d($d rest:tt)*) => {
                $d next! { $d parts { $class, $required: $($operation)* } $d($d rest)* }
            };
        }
        pub(super) use operations;
    };
}
pub(super) use part;

/// Brings the parts of all families to [`table`].
macro_rules! collect {
    ([$($parts:tt)*] $part:tt $($file:ident)*) => {
        collect! { @next [$($parts)* $part] $($file)* }
    };
    (@next [$($parts:tt)*]) => {
        table! { $($parts)* }
    };
    (@next $parts:tt $file:ident $($rest:ident)*) => {
        super::$file::operations! { collect $parts $($rest)* }
    };
}

/// The enum of all operations, and what is true of each.
macro_rules! table {
    ($({
        $class:ident, $required:literal:
        $(
            $(#[$about:meta])*
            $variant:ident $({ $($field:ident: $kind:ty),* $(,)? })?
            $(=> $($fact:ident($($argument:expr),*)).+)?
        ),* $(,)?
    })*) => {
        /// Every operation with its attributes. Arrays are not here: they are the inputs, in the order of each
        /// variant's comment. A variant without attributes is an atom in Elixir (`:add`), one with attributes a pair
        /// (`{:sum, %{axes: …}}`). `axes: nil` means all axes; a negative axis counts from the end.
        #[derive(Clone, Debug, NifTaggedEnum, Serialize, Deserialize, IntoStaticStr, VariantNames)]
        #[serde(rename_all = "snake_case", deny_unknown_fields)]
        #[strum(serialize_all = "snake_case")]
        // Rustler's derive lets the first token of a field decide which variables it sees, and those of the derive are
        // seen from here, not from the file of a family. So each field begins with an attribute that says nothing.
        pub enum Op {
            $($($(#[$about])* $variant $({ $(#[serde()] $field: $kind),* })?,)*)*
        }

        impl Op {
            /// What is true of the operation whatever its arrays are.
            #[inline]
            pub const fn traits(&self) -> Traits {
                match self {
                    $($(Op::$variant { .. } => const {
                        Traits::new(Class::$class, $required)$($(.$fact($($argument),*))+)?
                    },)*)*
                }
            }
        }

        complements! { [] [] $($class { $($variant)* })* }
    };
}

/// `others!(Order)` is a pattern of the operations of all other classes. The file of a class ends its cases with it, so
/// that the compiler asks for the case of each operation of the class.
macro_rules! complements {
    ([$($class:ident { $($other:ident)* })*] [$($before:ident)*]) => {
        macro_rules! others {
            $(($class) => { $(| $crate::op::Op::$other { .. })* };)*
        }
        pub(super) use others;
    };
    (
        [$($done:tt)*] [$($before:ident)*]
        $class:ident { $($own:ident)* } $($next:ident { $($after:ident)* })*
    ) => {
        complements! {
            [$($done)* $class { $($before)* $($($after)*)* }]
            [$($before)* $($own)*]
            $($next { $($after)* })*
        }
    };
}

/// A part of [`Op`] as an enum of its own, whose file builds each operation without another case. Its attributes are
/// [`Copy`].
macro_rules! enum_of_part {
    ([$(#[$doc:meta])* $method:ident] {
        $name:ident, $required:literal:
        $(
            $(#[$about:meta])*
            $variant:ident $({ $($field:ident: $kind:ty),* })?
            $(=> $($fact:ident($($argument:expr),*)).+)?
        ),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum $name {
            $($(#[$about])* $variant $({ $($field: $kind),* })?,)*
        }

        impl Op {
            pub const fn $method(&self) -> Option<$name> {
                match self {
                    $(Op::$variant $({ $($field),* })? => {
                        Some($name::$variant $({ $($field: *$field),* })?)
                    })*
                    _ => None,
                }
            }
        }
    };
}

collect! {
    @next [] unary binary select cast reduce scan sort shape slicing indexing matmul window fft linalg random creation
    fused quantized
}
super::unary::operations! { enum_of_part [
    /// A function of each element of one array.
    unary
] }
super::binary::operations! { enum_of_part [
    /// A function of pairs of elements of two arrays.
    binary
] }
