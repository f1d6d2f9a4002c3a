//! What the BEAM holds: arrays, and how they come from files and go there.

pub mod array;
pub mod deallocate;
pub mod safetensors;
pub mod small;
pub mod weight;
