//! safetensors files. Their headers are checked by the format's own crate before MLX, which trusts them, sees them.

use crate::array::{Handle, Outcome};
use crate::device::Device;
use crate::dtype::Dtype;
use crate::error::{Error, Reason, Result};
use crate::mlx::{self, Stream};
use mlx_rs::Array;
use safetensors::tensor::{SafeTensors, TensorView};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

fn failed(path: &str, reason: impl ToString) -> Error {
    Reason::File {
        path: path.into(),
        reason: reason.to_string(),
    }
    .into()
}

fn stored(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::Bool => safetensors::Dtype::BOOL,
        Dtype::U8 => safetensors::Dtype::U8,
        Dtype::U16 => safetensors::Dtype::U16,
        Dtype::U32 => safetensors::Dtype::U32,
        Dtype::U64 => safetensors::Dtype::U64,
        Dtype::S8 => safetensors::Dtype::I8,
        Dtype::S16 => safetensors::Dtype::I16,
        Dtype::S32 => safetensors::Dtype::I32,
        Dtype::S64 => safetensors::Dtype::I64,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F64 => safetensors::Dtype::F64,
        Dtype::C64 => safetensors::Dtype::C64,
    }
}

/// The arrays of a file by name. The data is read when an array is first evaluated.
pub fn load(path: &str, device: Device, stream: &Stream) -> Result<Vec<(String, Handle)>> {
    check(path)?;
    let arrays = mlx::load_safetensors(path, stream).map_err(|error| failed(path, error.reason))?;
    let handles = arrays
        .into_iter()
        .map(|(name, array)| {
            // The file may shrink between now and then.
            let outcome = Arc::new(Outcome::default());
            (
                name,
                Handle::ready(array, device, stream.clone(), vec![outcome]),
            )
        })
        .collect();
    Ok(handles)
}

/// Refuses a file whose header does not describe exactly the bytes that follow it.
fn check(path: &str) -> Result<()> {
    let file = File::open(path).map_err(|error| failed(path, error))?;
    let size = file.metadata().map_err(|error| failed(path, error))?.len();
    if size < 8 {
        return Err(failed(
            path,
            format!("{size} bytes are too few for a header"),
        ));
    }
    // SAFETY: the map is read once, here; a file cut short meanwhile would end in SIGBUS, so only its header is touched,
    // which the size check above and the crate's own keep inside the file as it is now.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| failed(path, error))?;
    SafeTensors::read_metadata(&map)
        .and_then(|(header, metadata)| {
            let data = map.len() - 8 - header;
            if metadata.data_len() == data {
                Ok(())
            } else {
                Err(safetensors::SafeTensorError::MetadataIncompleteBuffer)
            }
        })
        .map_err(|error| failed(path, error))
}

/// Writes beside the target and renames, so that a reader never sees half a file.
pub fn save(path: &str, arrays: &[(String, Array)]) -> Result<()> {
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
    let unfinished = format!("{path}.{}.partial", std::process::id());
    let result = safetensors::serialize_to_file(views, None, Path::new(&unfinished))
        .map_err(|error| failed(path, error))
        .and_then(|()| std::fs::rename(&unfinished, path).map_err(|error| failed(path, error)));
    if result.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    result
}
