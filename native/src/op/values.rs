//! What an attribute of an operation can be, besides numbers, lists and strings. Read by the table of operations
//! (table.rs) and by the operations themselves.

use rustler::{NifUnitEnum, NifUntaggedEnum};
use serde::{Deserialize, Serialize};

/// A number as Elixir writes it; `:nan`, `:infinity` and `:neg_infinity` as Nx does.
#[derive(Clone, Copy, Debug, PartialEq, NifUntaggedEnum, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    Int(i64),
    Uint(u64),
    Float(f64),
    Complex((f64, f64)),
    NonFinite(NonFinite),
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    Nan,
    Infinity,
    NegInfinity,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskMode {
    None,
    Causal,
    Array,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionLayout {
    /// {batch, heads, length, size}
    Bhsd,
    /// {batch, length, heads, size}
    Bshd,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PadMode {
    Constant,
    Edge,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    First,
    Last,
}

/// What a negative index means. MLX's counts from the end; Nx's is clamped as one beyond the end is.
#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Negative {
    FromEnd,
    First,
}

#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Left,
    Right,
}

/// The formats of quantized weights that MLX has.
#[derive(Clone, Copy, Debug, PartialEq, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantMode {
    Affine,
    Mxfp4,
    Mxfp8,
    Nvfp4,
}

impl QuantMode {
    pub fn name(self) -> &'static str {
        match self {
            QuantMode::Affine => "affine",
            QuantMode::Mxfp4 => "mxfp4",
            QuantMode::Mxfp8 => "mxfp8",
            QuantMode::Nvfp4 => "nvfp4",
        }
    }
}
