//! The border to the BEAM: terms in, terms out.

pub mod decode_program;
pub mod identity;
pub mod shared_memory;
