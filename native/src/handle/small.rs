//! Small computed arrays of the CPU. Their handle has the elements itself, in rows, and MLX is given a copy when it
//! needs one: an MLX array takes longer to make and to free than a small operation to compute.

use crate::base::{Dtype, Result};
use crate::handle::weight::MIN_BYTES;
use crate::mlx::{self, Elements, Quiet};
use mlx_rs::Array;
use parking_lot::RwLock;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Layouts that a process has at most. A program with ever new shapes should not fill the memory.
const MAX_LAYOUTS: usize = 1 << 16;

type Layouts = HashMap<(Dtype, SmallVec<[i32; 4]>), &'static Layout>;

/// A shape and a type, of which there is one in the process: equal ones are at the same address.
#[derive(Debug)]
pub struct Layout {
    pub dtype: Dtype,
    pub shape: Box<[i32]>,
    pub bytes: usize,
}

impl Layout {
    /// None for arrays that are not small, and where arrays are not held this way: beside a GPU.
    pub fn of(shape: &[i32], dtype: Dtype) -> Option<&'static Layout> {
        static LAYOUTS: LazyLock<RwLock<Layouts>> = LazyLock::new(RwLock::default);
        static SCALARS: LazyLock<Vec<Layout>> = LazyLock::new(|| {
            let scalar = |dtype: Dtype| Layout {
                dtype,
                shape: [].into(),
                bytes: dtype.size(),
            };
            Dtype::all().map(scalar).collect()
        });
        let mut elements = shape.iter().map(|size| *size as usize);
        let bytes = elements.try_fold(dtype.size(), usize::checked_mul)?;
        if bytes >= MIN_BYTES || !mlx::has_tasks() {
            return None;
        }
        if shape.is_empty() {
            return SCALARS.get(dtype as usize);
        }
        let key = (dtype, SmallVec::from_slice(shape));
        if let Some(layout) = LAYOUTS.read().get(&key) {
            return Some(layout);
        }
        let mut layouts = LAYOUTS.write();
        if layouts.len() >= MAX_LAYOUTS {
            return layouts.get(&key).copied();
        }
        let layout = || -> &'static Layout {
            Box::leak(Box::new(Layout {
                dtype,
                shape: shape.into(),
                bytes,
            }))
        };
        Some(layouts.entry(key).or_insert_with(layout))
    }
}

/// The elements of a small array, in rows.
#[derive(Clone, Debug)]
pub struct Small {
    pub layout: &'static Layout,
    bytes: SmallVec<[u8; 64]>,
}

impl Small {
    /// `bytes` are as many as the layout says.
    pub fn new(layout: &'static Layout, bytes: &[u8]) -> Small {
        debug_assert_eq!(layout.bytes, bytes.len());
        Small {
            layout,
            bytes: SmallVec::from_slice(bytes),
        }
    }

    /// # Safety
    /// The elements are computed, are there, and are as many as the layout says.
    pub unsafe fn gather(layout: &'static Layout, elements: &Elements) -> Small {
        let data = elements.data;
        let Some(places) = &elements.places else {
            return Small::new(layout, std::slice::from_raw_parts(data, layout.bytes));
        };
        let mut bytes = SmallVec::with_capacity(layout.bytes);
        macro_rules! gather {
            ($($size:literal)*) => {
                match layout.dtype.size() {
                    $($size => for place in places {
                        let element = data.add(*place as usize).cast::<[u8; $size]>();
                        bytes.extend_from_slice(&element.read());
                    },)*
                    size => unreachable!("no type has {size} bytes"),
                }
            };
        }
        gather!(1 2 4 8);
        Small { layout, bytes }
    }

    /// The elements of an array of the CPU that can have no failure, if it is small and computed. None also where that
    /// is not known without waiting. A private array is one that no other thread has.
    pub fn of(array: &Array, is_private: bool) -> Option<Small> {
        let layout = Layout::of(array.shape(), mlx::dtype(array))?;
        let quiet = match is_private {
            true => Quiet::private(),
            false => Quiet::now()?,
        };
        let elements = mlx::elements(array, &quiet)?;
        // SAFETY: of this array, which is computed.
        Some(unsafe { Small::gather(layout, &elements) })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The array in MLX, which copies the elements.
    pub fn to_mlx(&self) -> Result<Array> {
        mlx::from_bytes(&self.bytes, &self.layout.shape, self.layout.dtype)
    }
}
