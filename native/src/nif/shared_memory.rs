//! Shared memory of POSIX, by which arrays go to other processes of the operating system: a segment is created with an
//! array's bytes under a name of its own, and is unlinked when it is read. Called by `EMLX.SharedMemory`.

use super::answer::Answer;
use super::decode::{argument, decode_made};
use crate::base::{Dtype, Error, Reason, Result};
use crate::handle::array::{self, ArrayTerm};
use crate::runtime::{guard, Done};
use memmap2::MmapOptions;
use rustler::{Binary, ResourceArc, Term};
use std::ffi::CString;
use std::fs::{File, Permissions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};

/// Names tried before it is given up that one is free.
const ATTEMPTS: usize = 8;
/// Longest name that every system takes: macOS has 31 bytes.
const MAX_NAME: usize = 255;

/// A segment under a name, open.
struct Segment {
    name: CString,
    file: File,
}

impl Segment {
    /// A new segment of so many bytes, whose permissions are exactly these.
    fn create(bytes: usize, permissions: u32) -> Result<Segment> {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        let mut attempts = ATTEMPTS;
        let segment = loop {
            let name = free_name()?;
            match open(&name, flags, permissions) {
                Ok(file) => break Segment { name, file },
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempts > 1 => {
                    attempts -= 1;
                }
                Err(error) => return Err(failed("shm_open", &name, &error)),
            }
        };
        segment
            .prepare(bytes, permissions)
            .inspect_err(|_| segment.remove())?;
        Ok(segment)
    }

    /// Gives the segment its size, with memory behind it, and takes the process's umask out of its permissions.
    fn prepare(&self, bytes: usize, permissions: u32) -> Result<()> {
        self.check("ftruncate", self.file.set_len(bytes as u64))?;
        // Without memory behind it, writing would end the process where there is too little.
        #[cfg(target_os = "linux")]
        if bytes > 0 {
            let file = std::os::fd::AsRawFd::as_raw_fd(&self.file);
            // SAFETY: the descriptor is open. The segment has this size, which is a file's then.
            let code = unsafe { libc::posix_fallocate(file, 0, bytes as libc::off_t) };
            if code != 0 {
                self.check("posix_fallocate", Err(io::Error::from_raw_os_error(code)))?;
            }
        }
        if self.permissions()? != permissions {
            let permissions = Permissions::from_mode(permissions);
            self.check("fchmod", self.file.set_permissions(permissions))?;
        }
        Ok(())
    }

    fn open(name: CString) -> Result<Segment> {
        match open(&name, libc::O_RDONLY, 0) {
            Ok(file) => Ok(Segment { name, file }),
            Err(error) => Err(failed("shm_open", &name, &error)),
        }
    }

    fn permissions(&self) -> Result<u32> {
        let status = self.check("fstat", self.file.metadata())?;
        Ok(status.permissions().mode() & 0o777)
    }

    /// The bytes that the segment has.
    fn size(&self) -> Result<usize> {
        let status = self.check("fstat", self.file.metadata())?;
        Ok(usize::try_from(status.len()).unwrap_or_default())
    }

    fn write(&self, data: &[u8]) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the segment has as many bytes, with memory behind them, and nobody else knows its name yet.
        let mapping = unsafe { MmapOptions::new().len(data.len()).map_mut(&self.file) };
        self.check("mmap", mapping)?.copy_from_slice(data);
        Ok(())
    }

    /// The first bytes of the segment. On Linux they are read, since a mapping of a segment that somebody cuts off
    /// meanwhile ends the process; macOS can only map it.
    fn read(&self, count: usize) -> Result<Vec<u8>> {
        let mut data = vec![0u8; count];
        if cfg!(target_os = "linux") {
            self.check("read", self.file.read_exact_at(&mut data, 0))?;
        } else if count > 0 {
            // SAFETY: the segment has as many bytes. They are copied at once.
            let mapping = unsafe { MmapOptions::new().len(count).map(&self.file) };
            data.copy_from_slice(&self.check("mmap", mapping)?);
        }
        Ok(data)
    }

    fn remove(&self) {
        // SAFETY: the name ends in NUL.
        unsafe { libc::shm_unlink(self.name.as_ptr()) };
    }

    fn check<T>(&self, call: &str, result: io::Result<T>) -> Result<T> {
        result.map_err(|error| failed(call, &self.name, &error))
    }
}

fn open(name: &CString, flags: libc::c_int, permissions: u32) -> io::Result<File> {
    // SAFETY: the name ends in NUL.
    let file = unsafe { libc::shm_open(name.as_ptr(), flags, permissions as libc::c_uint) };
    match file {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: just opened, and owned by nobody else.
        file => Ok(unsafe { File::from_raw_fd(file) }),
    }
}

fn failed(call: &str, name: &CString, error: &io::Error) -> Error {
    Reason::File {
        path: format!("shared memory {}", name.to_string_lossy()),
        reason: format!("{call}: {error}"),
    }
    .into()
}

/// A name that nobody guesses.
fn free_name() -> Result<CString> {
    let number = RandomState::new().build_hasher().finish();
    decode_name(&format!("/emlx_{number:016x}"))
}

/// A name as systems take it: a slash, and more without one.
fn decode_name(name: &str) -> Result<CString> {
    let rest = name.strip_prefix('/').unwrap_or_default();
    if rest.is_empty() || rest.contains('/') || name.len() > MAX_NAME {
        return Err(Error::invalid(format!(
            "the name of shared memory is a slash and up to {} bytes without one, got {name:?}",
            MAX_NAME - 1
        )));
    }
    CString::new(name).map_err(|_| Error::invalid("the name of shared memory has a zero byte"))
}

/// Copies a binary into a new segment and gives its name.
#[rustler::nif(schedule = "DirtyIo")]
fn shm_create<'a>(data: Term<'a>, permissions: Term<'a>) -> Answer<String> {
    Answer(guard("create", || {
        let data: Binary = argument(data, 0, "a binary")?;
        let permissions: u32 = argument(permissions, 1, "permissions from 0 to 0o777")?;
        let segment = Segment::create(data.len(), permissions & 0o777)?;
        segment.write(&data).inspect_err(|_| segment.remove())?;
        Ok(segment.name.to_string_lossy().into_owned())
    }))
}

/// An array from a segment, which is unlinked then. One of another size stays.
#[rustler::nif(schedule = "DirtyIo")]
fn shm_take<'a>(
    name: Term<'a>,
    shape: Term<'a>,
    dtype: Term<'a>,
    target: Term<'a>,
) -> Answer<ArrayTerm> {
    Answer(guard("take", || {
        let name: String = argument(name, 0, "a name")?;
        let (shape, dtype, target) = decode_made(shape, dtype, target)?;
        let segment = Segment::open(decode_name(&name)?)?;
        let bytes = checked_size(&segment, &shape, dtype)?;
        let data = segment.read(bytes)?;
        let handle = array::from_binary(&data, &shape, dtype, target.device, &target.stream)?;
        segment.remove();
        Ok(ArrayTerm(ResourceArc::new(handle)))
    }))
}

/// The bytes that a shape takes, which are those of the segment.
fn checked_size(segment: &Segment, shape: &[i64], dtype: Dtype) -> Result<usize> {
    let expected = array::byte_size(shape.iter().copied(), dtype);
    let found = segment.size()?;
    // macOS has whole pages.
    let fits = |expected: u128| match cfg!(target_os = "linux") {
        true => expected == found as u128,
        false => expected <= found as u128,
    };
    match expected.filter(|expected| fits(*expected)) {
        Some(expected) => {
            crate::mlx::check_bytes(expected)?;
            Ok(expected as usize)
        }
        None => Err(Error::invalid(format!(
            "shared memory {} has {found} bytes, shape {shape:?} of type {} takes {}",
            segment.name.to_string_lossy(),
            dtype.name(),
            expected.map_or_else(|| "an impossible number".into(), |bytes| bytes.to_string())
        ))),
    }
}

/// Gives a name up. One that is not there is given up already.
#[rustler::nif(schedule = "DirtyIo")]
fn shm_unlink<'a>(name: Term<'a>) -> Answer<Done> {
    Answer(guard("unlink", || {
        let name: String = argument(name, 0, "a name")?;
        let name = decode_name(&name)?;
        // SAFETY: the name ends in NUL.
        if unsafe { libc::shm_unlink(name.as_ptr()) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::NotFound {
                return Err(failed("shm_unlink", &name, &error));
            }
        }
        Ok(Done)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_keeps_its_bytes_and_its_permissions_until_its_name_is_given_up() {
        for permissions in [0o400, 0o600, 0o666] {
            let segment = Segment::create(5, permissions).expect("created");
            segment.write(b"bytes").expect("written");
            let found = Segment::open(segment.name.clone()).expect("opened");
            let mode = found.permissions().expect("known");
            assert_eq!((found.size().expect("known"), mode), (5, permissions));
            assert_eq!(found.read(5).expect("read"), b"bytes");
            found.remove();
            assert!(Segment::open(segment.name.clone()).is_err());
        }
    }

    #[test]
    fn a_segment_of_another_size_is_refused() {
        let segment = Segment::create(8, 0o600).expect("created");
        let error = |shape: &[i64]| checked_size(&segment, shape, Dtype::F32).expect_err("refused");
        assert!(error(&[3]).to_string().contains("has 8 bytes"));
        assert!(error(&[i64::MAX; 3]).to_string().contains("impossible"));
        assert_eq!(checked_size(&segment, &[2], Dtype::F32).expect("fits"), 8);
        segment.remove();
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for name in ["", "/", "name", "/a/b", "/../x", "/a\0b"] {
            assert!(decode_name(name).is_err(), "{name:?}");
        }
        assert!(decode_name("/emlx_1").is_ok());
    }
}
