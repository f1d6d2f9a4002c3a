//! What the user lets the library change in the VM's process: `config :emlx`, as it was when the library was loaded.

use once_cell::sync::OnceCell;
use rustler::NifMap;

#[derive(Clone, Debug, NifMap)]
pub struct Settings {
    /// Whether the C library's allocator is set up for arrays.
    pub malloc: bool,
    /// Whether the process ends without taking MLX down.
    pub exit_handler: bool,
    /// Whether the garbage collector counts arrays by address space.
    pub address_space: bool,
    /// Whether threads turn round for a moment before they sleep.
    pub spin: bool,
    /// Threads of the CPU's kernels, the calling one among them; None is one for each core.
    pub threads: Option<usize>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            malloc: true,
            exit_handler: true,
            address_space: true,
            spin: true,
            threads: None,
        }
    }
}

static SETTINGS: OnceCell<Settings> = OnceCell::new();

impl Settings {
    /// Those of the process: what was given first, or the defaults.
    pub fn get() -> &'static Settings {
        SETTINGS.get_or_init(Settings::default)
    }

    /// Has no effect once they were read.
    pub fn set(self) {
        let _ = SETTINGS.set(self);
    }
}
