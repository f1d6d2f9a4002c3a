//! What every other layer stands on: element types, devices and errors.

pub mod device;
pub mod dtype;
pub mod error;
pub mod settings;

pub use device::Device;
pub use dtype::Dtype;
pub use error::{Error, Reason, Result, Signature};
pub use settings::Settings;
