//! The cache folder of `prepare`, shared by all checkouts of a user. An entry is created in a temporary folder and
//! renamed when it is complete, so that an interrupted run leaves no incomplete entry.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{env, process};

use anyhow::{Context, Result};

pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub fn open() -> Result<Self> {
        let folder = folder()?;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the cache folder {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        Ok(Self { folder })
    }

    /// Returns the entry `name`. If it does not exist, calls `make` to create its contents in the given folder.
    pub fn entry(&self, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let entry = self.folder.join(name);
        if entry.is_dir() {
            return Ok(entry);
        }
        // Without the lock, concurrent runs would download the same gigabytes twice.
        let lock_path = self.folder.join(".lock");
        let lock = File::create(&lock_path)
            .with_context(|| format!("cannot write {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            eprintln!("prepare: waiting for another run to finish");
            lock.lock()?;
        }
        if entry.is_dir() {
            return Ok(entry);
        }
        self.remove_parts()?;
        // The children of a killed run may still be writing, so each run has its own folder.
        let temporary = self.folder.join(format!(".{name}.{}.part", process::id()));
        fs::create_dir_all(&temporary)?;
        make(&temporary)?;
        fs::rename(&temporary, &entry)
            .with_context(|| format!("cannot make {}", entry.display()))?;
        Ok(entry)
    }

    /// Removes the folders of interrupted runs. The caller holds the lock, so no other run uses them.
    fn remove_parts(&self) -> Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "part")
            {
                remove_folder(&path)?;
            }
        }
        Ok(())
    }
}

fn folder() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = variable("EMLX_CACHE") {
        return Ok(folder.into());
    }
    if let Some(folder) = variable("XDG_CACHE_HOME") {
        return Ok(Path::new(&folder).join("emlx"));
    }
    let home = variable("HOME")
        .context("neither EMLX_CACHE nor HOME is set: set EMLX_CACHE to a folder")?;
    Ok(Path::new(&home).join(".cache/emlx"))
}

/// Makes `link` point to `target`, whatever it was before. An existing link is replaced atomically.
pub fn link(target: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|current| current == target) {
        return Ok(());
    }
    let parent = link.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    if link.is_dir() && !link.is_symlink() {
        // `link` is a copied folder, from a release or a container image.
        remove_folder(link)?;
    }
    let temporary = parent.join(format!(".mlx.{}", process::id()));
    remove_file(&temporary)?;
    std::os::unix::fs::symlink(target, &temporary)
        .and_then(|()| fs::rename(&temporary, link))
        .with_context(|| format!("cannot link {} to {}", link.display(), target.display()))
}

/// Writes `text` to `path` atomically, and only if it differs, so that Cargo does not rebuild without a change.
pub fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|current| current == text) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension(format!("{}.part", process::id()));
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
