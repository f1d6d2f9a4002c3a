//! MLX's memory: figures and limits.

use super::answer::Answer;
use super::decode::argument;
use crate::handle::deallocate;
use crate::mlx;
use crate::program;
use crate::runtime::{guard, Done};
use rustler::Term;

#[derive(rustler::NifUnitEnum)]
pub enum Figure {
    Active,
    Peak,
    Cached,
    Limit,
    Graphs,
    InGraphs,
}

/// Bytes, or how many graphs there are.
#[rustler::nif]
fn memory(figure: Term) -> Answer<usize> {
    Answer(guard("memory", || {
        mlx::release_pending();
        deallocate::free_waiting();
        match argument(
            figure,
            0,
            ":active, :peak, :cached, :limit, :graphs or :in_graphs",
        )? {
            Figure::Active => mlx::active_memory(),
            Figure::Peak => mlx::peak_memory(),
            Figure::Cached => mlx::cache_memory(),
            Figure::Limit => mlx::memory_limit(),
            Figure::Graphs => Ok(program::graphs().0),
            Figure::InGraphs => Ok(program::graphs().1),
        }
    }))
}

#[derive(rustler::NifUnitEnum)]
pub enum Limit {
    Memory,
    Cache,
}

/// Sets a limit in bytes; gives the one before. Waits for the CPU's streams.
#[rustler::nif(schedule = "DirtyIo")]
fn set_limit<'a>(limit: Term<'a>, bytes: Term<'a>) -> Answer<usize> {
    Answer(guard("set_limit", || {
        let bytes: usize = argument(bytes, 1, "a number of bytes")?;
        match argument(limit, 0, ":memory or :cache")? {
            Limit::Memory => mlx::set_memory_limit(bytes),
            Limit::Cache => mlx::set_cache_limit(bytes),
        }
    }))
}

#[rustler::nif(schedule = "DirtyIo")]
fn clear_cache() -> Answer<Done> {
    Answer(guard("clear_cache", || {
        program::forget_all();
        deallocate::free_waiting();
        mlx::clear_cache().map(|()| Done)
    }))
}

#[rustler::nif]
fn reset_peak() -> Answer<Done> {
    Answer(guard("reset_peak", || {
        mlx::reset_peak_memory().map(|()| Done)
    }))
}
