//! safetensors files, read and written through the format's own crate. MLX reads lazily, and gives whatever its buffer
//! held where the file has become shorter meanwhile; here every array is read when it is asked for, one after another.
//! Files are not mapped (the crate memmap2): reading a mapping of a file that has become shorter ends the process.

use crate::base::{Dtype, Error, Reason, Result};
use crate::mlx;
use mlx_rs::Array;
use safetensors::tensor::{Metadata, TensorView};
use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The limit of the format's own crate.
const MAX_HEADER: u64 = 100_000_000;
/// The header's entry that is no array.
const METADATA: &str = "__metadata__";

pub fn failed(path: &str, reason: impl ToString) -> Error {
    Reason::File {
        path: path.into(),
        reason: reason.to_string(),
    }
    .into()
}

/// Our types and the file's.
const TYPES: [(Dtype, safetensors::Dtype); 14] = [
    (Dtype::Bool, safetensors::Dtype::BOOL),
    (Dtype::U8, safetensors::Dtype::U8),
    (Dtype::U16, safetensors::Dtype::U16),
    (Dtype::U32, safetensors::Dtype::U32),
    (Dtype::U64, safetensors::Dtype::U64),
    (Dtype::S8, safetensors::Dtype::I8),
    (Dtype::S16, safetensors::Dtype::I16),
    (Dtype::S32, safetensors::Dtype::I32),
    (Dtype::S64, safetensors::Dtype::I64),
    (Dtype::F16, safetensors::Dtype::F16),
    (Dtype::Bf16, safetensors::Dtype::BF16),
    (Dtype::F32, safetensors::Dtype::F32),
    (Dtype::F64, safetensors::Dtype::F64),
    (Dtype::C64, safetensors::Dtype::C64),
];

fn stored(dtype: Dtype) -> safetensors::Dtype {
    let row = TYPES.iter().find(|(ours, _)| *ours == dtype);
    row.map_or(safetensors::Dtype::U8, |(_, theirs)| *theirs)
}

/// 8-bit floats have no type here; they come as the bytes they are, for `from_fp8`.
fn held(dtype: safetensors::Dtype) -> Option<Dtype> {
    if matches!(
        dtype,
        safetensors::Dtype::F8_E4M3 | safetensors::Dtype::F8_E8M0
    ) {
        return Some(Dtype::U8);
    }
    let row = TYPES.iter().find(|(_, theirs)| *theirs == dtype);
    row.map(|(ours, _)| *ours)
}

/// A file to read. Pipes and devices are refused: waiting for one of them, or for its end, may take for ever.
pub fn open(path: &str) -> Result<File> {
    let kind = std::fs::metadata(path).map_err(|error| failed(path, error))?;
    if !kind.is_file() {
        let what = if kind.is_dir() {
            "is a folder"
        } else {
            "is no regular file"
        };
        return Err(failed(path, what));
    }
    File::open(path).map_err(|error| failed(path, error))
}

/// The arrays of a file by name, or those of `only`. A file that is not exactly what its header says is refused.
pub fn load(path: &str, only: Option<&[String]>) -> Result<Vec<(String, Array)>> {
    load_seen(path, only, |_, _| Ok(()))
}

/// The same, and shows each array's name and bytes to `see`, which may refuse them.
pub fn load_seen(
    path: &str,
    only: Option<&[String]>,
    see: impl Fn(&str, &[u8]) -> Result<()>,
) -> Result<Vec<(String, Array)>> {
    let mut file = open(path)?;
    let (start, metadata) = header(path, &mut file)?;
    let mut names = metadata.offset_keys();
    if let Some(only) = only {
        if let Some(name) = only.iter().find(|name| !names.contains(name)) {
            return Err(failed(path, format!("has no array named {name:?}")));
        }
        names.retain(|name| only.contains(name));
    }
    let mut buffer: Vec<u64> = Vec::new();
    let mut arrays = Vec::with_capacity(names.len());
    for name in names {
        let Some(info) = metadata.info(&name) else {
            continue;
        };
        let dtype = held(info.dtype)
            .ok_or_else(|| failed(path, format!("{name:?} has type {:?}", info.dtype)))?;
        let shape = info
            .shape
            .iter()
            .map(|size| i32::try_from(*size))
            .collect::<std::result::Result<Vec<i32>, _>>()
            .map_err(|_| failed(path, format!("{name:?} has shape {:?}", info.shape)))?;
        let (begin, end) = info.data_offsets;
        let size = end - begin;
        mlx::check_bytes(size as u128)?;
        // Words rather than bytes, for the alignment that MLX reads with.
        buffer.resize(size.div_ceil(8), 0);
        let bytes = &mut bytemuck::cast_slice_mut(&mut buffer)[..size];
        file.seek(SeekFrom::Start(start + begin as u64))
            .and_then(|_| file.read_exact(bytes))
            .map_err(|error| failed(path, error))?;
        see(&name, bytes)?;
        arrays.push((name, mlx::from_bytes(bytes, &shape, dtype)?));
    }
    Ok(arrays)
}

/// Where the data begins, and what the header says of it.
fn header(path: &str, file: &mut File) -> Result<(u64, Metadata)> {
    let size = file.metadata().map_err(|error| failed(path, error))?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length)
        .map_err(|_| failed(path, format!("{size} bytes are too few for a header")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > size - 8 {
        return Err(failed(
            path,
            format!("the header would take {length} bytes of a file of {size}"),
        ));
    }
    let mut text = vec![0u8; length as usize];
    file.read_exact(&mut text)
        .map_err(|error| failed(path, error))?;
    // The names' order, overlaps, gaps and sizes are checked by the crate as it decodes.
    let metadata: Metadata = serde_json::from_slice(&text).map_err(|error| failed(path, error))?;
    let (described, there) = (metadata.data_len() as u64, size - 8 - length);
    if described != there {
        return Err(failed(
            path,
            format!("the header describes {described} bytes of data, the file has {there}"),
        ));
    }
    Ok((8 + length, metadata))
}

/// Writes beside the target and renames, so that a reader never sees half a file.
pub fn save(path: &str, arrays: &[(String, Array)]) -> Result<()> {
    let mut names = HashSet::new();
    for (name, _) in arrays {
        if name == METADATA {
            return Err(failed(
                path,
                format!("{name:?} is not a name for an array, the format has another use for it"),
            ));
        }
        if !names.insert(name) {
            return Err(failed(path, format!("two arrays are named {name:?}")));
        }
    }
    let views = {
        let _lock = mlx::graph_lock();
        arrays
            .iter()
            .map(|(name, array)| {
                // SAFETY: computed by the queue; `arrays` outlives the views.
                let bytes = unsafe { mlx::bytes(array) }
                    .ok_or_else(|| Error::invalid("the array is not laid out in rows"))?;
                let shape = array.shape().iter().map(|d| *d as usize).collect();
                let view = TensorView::new(stored(mlx::dtype(array)), shape, bytes)
                    .map_err(|error| failed(path, error))?;
                Ok((name.clone(), view))
            })
            .collect::<Result<Vec<_>>>()?
    };
    write_whole(path, |unfinished| {
        // The crate makes files that only their owner may read; this one is for whoever may read a file that is made
        // here.
        let permissions = File::create(unfinished)
            .and_then(|file| file.metadata())
            .map_err(|error| failed(path, error))?
            .permissions();
        safetensors::serialize_to_file(views, None, unfinished)
            .map_err(|error| failed(path, error))?;
        std::fs::set_permissions(unfinished, permissions).map_err(|error| failed(path, error))
    })
}

/// Has a file written under another name, which it loses only once it is whole. Of several that are written for one
/// path at a time each has a name of its own.
pub fn write_whole(path: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let unfinished = format!("{path}.{}.{number}.partial", std::process::id());
    let result = write(Path::new(&unfinished))
        .and_then(|()| std::fs::rename(&unfinished, path).map_err(|error| failed(path, error)));
    if result.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    result
}
