//! Element types: their names on the Elixir side and their sizes.

use rustler::NifUnitEnum;
use serde::{Deserialize, Serialize};

/// Every type an array can have. The Elixir atoms are the lower-case names (`:f32`, `:bf16`, `:s64`, `:bool`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, NifUnitEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    Bool,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F32,
    F64,
    C64,
}

/// One row a type: bytes an element, name.
const TABLE: [(Dtype, usize, &str); 14] = [
    (Dtype::Bool, 1, "bool"),
    (Dtype::U8, 1, "u8"),
    (Dtype::U16, 2, "u16"),
    (Dtype::U32, 4, "u32"),
    (Dtype::U64, 8, "u64"),
    (Dtype::S8, 1, "s8"),
    (Dtype::S16, 2, "s16"),
    (Dtype::S32, 4, "s32"),
    (Dtype::S64, 8, "s64"),
    (Dtype::F16, 2, "f16"),
    (Dtype::Bf16, 2, "bf16"),
    (Dtype::F32, 4, "f32"),
    (Dtype::F64, 8, "f64"),
    (Dtype::C64, 8, "c64"),
];

impl Dtype {
    /// The table is in the order of the enum, which a unit test checks.
    fn row(self) -> &'static (Dtype, usize, &'static str) {
        &TABLE[self as usize]
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Dtype> {
        TABLE.iter().map(|row| row.0)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        self.row().1
    }

    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// A floating-point type of 16 bits, whose products MLX's CPU path does not hand to BLAS.
    pub fn is_half(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::Bf16)
    }

    pub fn is_float(self) -> bool {
        self.is_half() || matches!(self, Dtype::F32 | Dtype::F64)
    }

    pub fn is_signed_integer(self) -> bool {
        matches!(self, Dtype::S8 | Dtype::S16 | Dtype::S32 | Dtype::S64)
    }

    pub fn is_unsigned_integer(self) -> bool {
        matches!(self, Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64)
    }

    pub fn is_integer(self) -> bool {
        self.is_signed_integer() || self.is_unsigned_integer()
    }

    /// Whether an element, given by its bytes, is other than zero. NaN is, -0.0 is not.
    pub fn is_nonzero(self, bytes: &[u8]) -> bool {
        let sign_at = match self {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 | Dtype::C64 => 4,
            Dtype::F64 => 8,
            _ => return bytes.iter().any(|byte| *byte != 0),
        };
        bytes.chunks(sign_at).any(|part| {
            let (last, rest) = part.split_last().unwrap_or((&0, &[]));
            last & 0x7f != 0 || rest.iter().any(|byte| *byte != 0)
        })
    }

    /// The unsigned type of the same width, for work on bits.
    pub fn unsigned_of_same_size(self) -> Dtype {
        match self.size() {
            1 => Dtype::U8,
            2 => Dtype::U16,
            4 => Dtype::U32,
            _ => Dtype::U64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
        }
    }

    #[test]
    fn zero_is_zero_in_every_type() {
        for (dtype, size, _) in TABLE {
            assert!(!dtype.is_nonzero(&vec![0; size]), "{}", dtype.name());
            for i in 0..size {
                let mut bytes = vec![0; size];
                bytes[i] = 1;
                assert!(dtype.is_nonzero(&bytes), "{}", dtype.name());
            }
        }
        assert!(!Dtype::F32.is_nonzero(&(-0.0f32).to_ne_bytes()));
        assert!(Dtype::F32.is_nonzero(&f32::NAN.to_ne_bytes()));
        assert!(!Dtype::F64.is_nonzero(&(-0.0f64).to_ne_bytes()));
        assert!(Dtype::S16.is_nonzero(&i16::MIN.to_ne_bytes()));
        assert!(!Dtype::C64.is_nonzero(&[0, 0, 0, 0x80, 0, 0, 0, 0x80]));
    }
}
