//! The values of a block that is being replayed.

use crate::base::{Error, Result, Signature};
use crate::handle::array::Handle;
use crate::mlx::{self};
use mlx_rs::Array;
use rustler::ResourceArc;
use smallvec::SmallVec;

/// What stands at a value's number.
pub(super) enum Slot {
    /// Nothing needs it any more: a buffer that is given up can be written over by MLX.
    Spent,
    /// A node of this run, or another handle of one.
    Owned(Array),
    /// An array of the caller's, a constant, or one that the caller also has.
    Given(ResourceArc<Handle>),
}

impl Slot {
    pub(super) fn array(&self) -> Result<&Array> {
        match self {
            Slot::Owned(array) => Ok(array),
            Slot::Given(handle) => handle.live(),
            Slot::Spent => Err(Error::invalid("a value was given up before its last use")),
        }
    }

    pub(super) fn share(&self) -> Result<Slot> {
        match self {
            Slot::Given(handle) => Ok(Slot::Given(handle.clone())),
            other => mlx::share(other.array()?).map(Slot::Owned),
        }
    }

    pub(super) fn signature(&self) -> Result<Signature> {
        let array = self.array()?;
        Ok((array.shape().to_vec(), mlx::dtype(array)))
    }
}

/// The values of a block. They are given up under the graph's lock, or by whoever has it: the nodes below may be
/// shared.
#[derive(Default)]
pub(super) struct Values(pub(super) Vec<Slot>);

impl Values {
    /// The array that stands at a number, None where nothing does any more.
    pub(super) fn get(&self, value: u32) -> Result<Option<&Array>> {
        match self.0.get(value as usize) {
            None | Some(Slot::Spent) => Ok(None),
            Some(slot) => slot.array().map(Some),
        }
    }

    /// The number of the handle that a value is, of one that others have too.
    pub(super) fn number(&self, value: Option<u32>) -> Option<u64> {
        match self.0.get(value? as usize)? {
            Slot::Given(handle) => Some(handle.number),
            _ => None,
        }
    }

    pub(super) fn slot(&self, value: u32) -> Result<&Slot> {
        let absent = || Error::invalid(format!("there is no value {value}"));
        self.0.get(value as usize).ok_or_else(absent)
    }

    /// Puts values at their numbers.
    pub(super) fn set(&mut self, numbers: &[u32], slots: impl Iterator<Item = Slot>) {
        for (number, slot) in numbers.iter().zip(slots) {
            if let Some(place) = self.0.get_mut(*number as usize) {
                *place = slot;
            }
        }
    }

    /// Gives values up. The caller's own come back.
    pub(super) fn spend(&mut self, values: &[u32]) -> SmallVec<[ResourceArc<Handle>; 4]> {
        let (mut owned, mut given) = (SmallVec::new(), SmallVec::new());
        for value in values {
            if let Some(slot) = self.0.get_mut(*value as usize) {
                match std::mem::replace(slot, Slot::Spent) {
                    Slot::Owned(array) => owned.push(array),
                    Slot::Given(handle) => given.push(handle),
                    Slot::Spent => {}
                }
            }
        }
        mlx::release_all(owned);
        given
    }

    /// The arrays that others have, too.
    pub(super) fn given(&self) -> impl Iterator<Item = &Handle> {
        self.0.iter().filter_map(|slot| match slot {
            Slot::Given(handle) => Some(&**handle),
            _ => None,
        })
    }

    pub(super) fn share(&self) -> Result<Values> {
        let shared = self.0.iter().map(Slot::share).collect::<Result<_>>()?;
        Ok(Values(shared))
    }

    /// The values of these numbers. Those in `spent` are moved, so that nothing else holds them.
    pub(super) fn take(
        &mut self,
        values: impl Iterator<Item = u32>,
        spent: &[u32],
    ) -> Result<Values> {
        let values: SmallVec<[u32; 8]> = values.collect();
        let mut taken = Values(Vec::with_capacity(values.len()));
        for (i, value) in values.iter().enumerate() {
            let is_last = !values[i + 1..].contains(value) && spent.contains(value);
            taken.0.push(if is_last {
                match self.0.get_mut(*value as usize) {
                    Some(slot) => std::mem::replace(slot, Slot::Spent),
                    None => Slot::Spent,
                }
            } else {
                self.slot(*value)?.share()?
            });
        }
        Ok(taken)
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        let owned = self.0.drain(..).filter_map(|slot| match slot {
            Slot::Owned(array) => Some(array),
            _ => None,
        });
        mlx::release_all(owned.collect());
    }
}
