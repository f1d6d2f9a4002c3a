//! CUDA's compiler, and the folder that keeps what it made. The compiler and the driver are those that libmlx has
//! loaded. Called by the engines that have kernels of their own, and by op/cuda/chain.

use crate::base::{Error, Reason, Result};
use cudarc::driver::{result as driver, sys};
use cudarc::nvrtc;
use once_cell::sync::OnceCell;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A failed call of CUDA's driver.
pub fn failed(call: &str, error: driver::DriverError) -> Error {
    let words = error
        .error_string()
        .map(|words| words.to_string_lossy().into_owned());
    let words = words.unwrap_or_else(|_| "an error without words".into());
    let text = format!("{call} failed: {words}");
    Reason::of_mlx(text, crate::mlx::memory_figures).into()
}

/// The version of what the first device computes with: (9, 0) of an H200.
pub fn capability() -> Result<(i32, i32)> {
    static KNOWN: OnceCell<(i32, i32)> = OnceCell::new();
    let ask = || {
        let device = driver::device::get(0).map_err(|error| failed("cuDeviceGet", error))?;
        let version = |attribute| {
            // SAFETY: the device is there.
            unsafe { driver::device::get_attribute(device, attribute) }
                .map_err(|error| failed("cuDeviceGetAttribute", error))
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        Ok((version(MAJOR)?, version(MINOR)?))
    };
    KNOWN.get_or_try_init(ask).copied()
}

/// `sm_90`.
pub fn architecture() -> Result<String> {
    let (major, minor) = capability()?;
    Ok(format!("sm_{major}{minor}"))
}

/// Whether the compiler can be loaded.
pub fn is_there() -> bool {
    // SAFETY: only looks for the library.
    unsafe { nvrtc::sys::is_culib_present() }
}

/// A kernel's machine code: as it was kept, or compiled now.
pub fn image(name: &str, source: &str, options: &[&str]) -> Result<Vec<u8>> {
    if !is_there() {
        return Err(Error::invalid("CUDA's compiler, libnvrtc, is not there"));
    }
    let architecture = format!("--gpu-architecture={}", architecture()?);
    let (mut major, mut minor) = (0, 0);
    // SAFETY: fills in both.
    unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }
        .result()
        .map_err(|error| Error::invalid(format!("nvrtcVersion failed: {error:?}")))?;
    let mut options: Vec<String> = options.iter().map(|option| (*option).into()).collect();
    options.push(architecture);
    let folder = folder();
    let version = format!("{major}.{minor} {}", options.join(" "));
    let file = folder.map(|folder| folder.join(file_name(&version, source)));
    kept_or(file.as_deref(), || compile(name, source, &options))
}

/// Where a kernel is kept, by all that its code depends on.
fn file_name(version: &str, source: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [version, source] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    format!("emlx-{}.kernel", &hasher.finalize().to_hex()[..32])
}

/// The folder where MLX keeps its compiled kernels, if the user names one; else one in EMLX's cache folder. None where
/// neither can be.
fn folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let of_mlx = variable("MLX_PTX_CACHE_DIR").map(PathBuf::from);
    if let Some(folder) = of_mlx.filter(|folder| folder.is_dir()) {
        return Some(folder);
    }
    let home = || variable("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = match variable("EMLX_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(home)?
            .join("emlx"),
    };
    let folder = cache.join("kernels");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder)
}

/// What the file has; else what is made, which the file has from then on. A file that is not whole is made anew, and
/// one that cannot be written is left out.
fn kept_or(file: Option<&Path>, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    static PARTS: AtomicU64 = AtomicU64::new(0);
    let Some(file) = file else { return make() };
    let kept = std::fs::read(file).ok();
    if let Some(image) = kept.as_deref().and_then(checked) {
        return Ok(image.into());
    }
    let image = make()?;
    let whole = [blake3::hash(&image).as_bytes(), image.as_slice()].concat();
    // Whole or not at all: other threads and processes read it too.
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = file.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = std::fs::write(&part, whole).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    Ok(image)
}

/// An image that stands behind its digest, as a file has it; None where it is another one.
fn checked(file: &[u8]) -> Option<&[u8]> {
    let (digest, image) = file.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(image).as_bytes() == digest).then_some(image)
}

/// A kernel's machine code. There is a compiler.
pub fn compile(name: &str, source: &str, options: &[String]) -> Result<Vec<u8>> {
    let refused = |words: &str| {
        Error::invalid(format!(
            "CUDA's compiler refuses the kernel {name}: {words}"
        ))
    };
    let source = CString::new(source).map_err(|_| refused("it has a NUL"))?;
    let program = nvrtc::result::create_program(&source, None)
        .map_err(|error| refused(&format!("{error:?}")))?;
    // SAFETY: the program was made above and is destroyed once, below.
    unsafe {
        let result = nvrtc::result::compile_program(program, options);
        let image = match result {
            Ok(()) => {
                let mut size = 0;
                let mut status = nvrtc::sys::nvrtcGetCUBINSize(program, &mut size).result();
                let mut image = vec![0u8; size];
                if status.is_ok() {
                    status = nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result();
                }
                status
                    .map(|()| image)
                    .map_err(|error| refused(&format!("{error:?}")))
            }
            Err(_) => {
                let log = nvrtc::result::get_program_log(program).unwrap_or_default();
                let log: Vec<u8> = log.iter().map(|byte| *byte as u8).collect();
                Err(refused(
                    String::from_utf8_lossy(&log).trim_end_matches('\0'),
                ))
            }
        };
        let _ = nvrtc::result::destroy_program(program);
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A folder of this test's own.
    fn of_test(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("emlx-kept-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn a_kernel_is_compiled_once_and_anew_where_its_file_is_broken() {
        let folder = of_test("once");
        let file = folder.join(file_name("13.0 sm_90", "text"));
        let made = Cell::new(0);
        let get = |file: Option<&Path>| {
            let make = || {
                made.set(made.get() + 1);
                Ok(vec![7, 8, made.get()])
            };
            kept_or(file, make).expect("made")
        };
        assert_eq!(get(Some(&file)), [7, 8, 1]);
        assert_eq!(get(Some(&file)), [7, 8, 1]);
        let names = std::fs::read_dir(&folder).expect("a folder");
        assert_eq!(names.count(), 1, "a part is left");
        let whole = std::fs::read(&file).expect("is kept");
        let mut changed = whole.clone();
        *changed.last_mut().expect("not empty") ^= 1;
        for (broken, number) in [(&changed[..], 2), (&whole[..20], 3), (&[], 4)] {
            std::fs::write(&file, broken).expect("is written");
            assert_eq!(get(Some(&file)), [7, 8, number]);
            assert_eq!(get(Some(&file)), [7, 8, number]);
        }
        // Without a place for it, each time.
        assert_eq!(get(None), [7, 8, 5]);
        assert_eq!(get(Some(&folder.join("none/file"))), [7, 8, 6]);
        std::fs::remove_dir_all(&folder).expect("is removed");
    }

    #[test]
    fn a_kernel_is_kept_by_its_text_and_by_what_compiles_it() {
        let name = file_name("13.0 sm_90", "text");
        assert_eq!(name, file_name("13.0 sm_90", "text"));
        assert_ne!(name, file_name("13.1 sm_90", "text"));
        assert_ne!(name, file_name("13.0 sm_90", "texts"));
        assert_ne!(name, file_name("13.0 sm_90t", "ext"));
    }
}
