//! The border to the BEAM: the functions of `EMLX.Native`, terms in and terms out. `{:ok, value}` or `{:error, map}`
//! comes back; no panic crosses.

mod answer;
mod arrays;
mod decode;
mod decode_program;
mod devices;
mod files;
mod identity;
mod memory;
mod operations;
mod programs;
mod queues;
mod repeated;
mod shared_memory;

mod atoms {
    rustler::atoms! { ok, error, wait, check, queued, traced, trace, apart, nil }
}
