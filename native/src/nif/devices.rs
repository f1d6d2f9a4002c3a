//! Devices, and the MLX that is loaded.

use super::answer::Answer;
use super::decode::argument;
use crate::base::{Device, Settings};
use crate::mlx;
use crate::runtime::guard;
use rustler::{Encoder, Env, Term};

/// `{written_for, loaded}` where the libmlx that is loaded is of another version than the one whose private parts are
/// known, else nil.
#[rustler::nif]
fn unknown_mlx() -> Answer<Option<(String, String)>> {
    Answer(guard("unknown_mlx", || Ok(mlx::unknown_version().cloned())))
}

/// What of `config :emlx` the library was loaded with.
#[rustler::nif]
fn settings() -> Answer<Settings> {
    Answer(guard("settings", || Ok(Settings::get().clone())))
}

#[rustler::nif]
fn device_available(device: Term) -> Answer<bool> {
    Answer(guard("device_available", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        Ok(device.is_available())
    }))
}

/// Why a device is not there, nil where it is.
#[rustler::nif(schedule = "DirtyIo")]
fn device_absence(device: Term) -> Answer<Option<String>> {
    Answer(guard("device_absence", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        Ok((!device.is_available()).then(|| device.absence()))
    }))
}

impl Encoder for mlx::InfoValue {
    fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
        match self {
            mlx::InfoValue::Text(text) => text.encode(env),
            mlx::InfoValue::Size(size) => size.encode(env),
        }
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn device_info(device: Term) -> Answer<Vec<(String, mlx::InfoValue)>> {
    Answer(guard("device_info", || {
        let device: Device = argument(device, 0, ":cpu or :gpu")?;
        device.require()?;
        mlx::device_info(device)
    }))
}
