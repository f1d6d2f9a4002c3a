//! MLX for the BEAM: the native library of EMLX. Its layers, from the bottom to the top, each of which imports only
//! from those below it (`test/core/emlx/layers_test.exs`):
//!
//! | layer | modules | what it is |
//! |---|---|---|
//! | base | `base` | errors, types, devices |
//! | mlx | `mlx` | MLX's C interface, safely |
//! | handle | `handle` | arrays as the BEAM holds them |
//! | cpu | `cpu` | kernels of our own for the CPU |
//! | op | `op` | the table of operations, and what each does |
//! | program | `program` | recorded operations, and how they run |
//! | runtime | `runtime` | threads that compute |
//! | nif | `nif` | the functions of `EMLX.Native` |

mod base;
mod cpu;
mod handle;
mod mlx;
mod nif;
#[cfg(test)]
mod no_vm;
mod op;
mod program;
mod runtime;

use base::Settings;
use rustler::{Env, Term};

rustler::init!("Elixir.EMLX.Native", load = load);

fn load(_env: Env, info: Term) -> bool {
    // What is of a wrong type is told of when the application starts.
    info.decode::<Settings>().unwrap_or_default().set();
    let settings = Settings::get();
    emlx_cpu::configure(settings.threads, settings.spin);
    mlx::init();
    if settings.exit_handler {
        mlx::leave_at_exit(runtime::stop_all);
    }
    true
}
