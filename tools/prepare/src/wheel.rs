//! Installs MLX from its wheels: libmlx, its headers, and the libraries that it loads, in the layout of its RPATH.

use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, Context, Result};

use crate::cache::Cache;

#[derive(Clone, Copy, PartialEq)]
pub enum Variant {
    Cpu,
    Cuda12,
    Cuda13,
}

impl Variant {
    pub fn from_env() -> Result<Self> {
        match env::var("EMLX_MLX").unwrap_or_default().as_str() {
            "" | "cpu" => Ok(Self::Cpu),
            "cuda12" => Ok(Self::Cuda12),
            "cuda13" => Ok(Self::Cuda13),
            other => bail!("EMLX_MLX is {other:?}; it can be cpu, cuda12 or cuda13"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda12 => "cuda12",
            Self::Cuda13 => "cuda13",
        }
    }

    /// Returns the pinned wheels: pip's requirements file, the only place for versions and hashes.
    fn requirements(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("../mlx/cpu.txt"),
            Self::Cuda12 => include_str!("../mlx/cuda12.txt"),
            Self::Cuda13 => include_str!("../mlx/cuda13.txt"),
        }
    }

    /// Returns MLX's version, which is that of the first wheel.
    pub fn version(self) -> Result<&'static str> {
        self.requirements()
            .lines()
            .find_map(|line| {
                line.strip_prefix("mlx-")?
                    .split_once("==")?
                    .1
                    .split(' ')
                    .next()
            })
            .with_context(|| {
                format!(
                    "tools/prepare/mlx/{}.txt pins no version of MLX",
                    self.name()
                )
            })
    }
}

/// Returns the folder of the wheels of `variant`. Installs them if necessary.
pub fn ready(cache: &Cache, variant: Variant) -> Result<PathBuf> {
    let requirements = variant.requirements();
    let mut hasher = DefaultHasher::new();
    requirements.hash(&mut hasher);
    let name = format!(
        "mlx-{}-{}-{:08x}",
        variant.name(),
        variant.version()?,
        hasher.finish() as u32
    );
    cache.entry(&name, |folder| {
        eprintln!(
            "prepare: installing MLX {} for {}",
            variant.version()?,
            variant.name()
        );
        let file = folder.join("requirements.txt");
        std::fs::write(&file, requirements)?;
        install(&file, folder)
    })
}

fn install(requirements: &Path, folder: &Path) -> Result<()> {
    let pip = |arguments: &[&str]| {
        let mut command = Command::new("python3");
        command
            .args(["-m", "pip", "--disable-pip-version-check"])
            .args(arguments);
        command
    };
    match pip(&["--version"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(_) => bail!(
            "python3 has no pip, which installs MLX's wheels: install it (Debian: python3-pip)"
        ),
        Err(error) => bail!(
            "python3 does not run ({error}); its pip installs MLX's wheels: install Python and pip"
        ),
    }
    let status = pip(&[
        "install",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--no-compile",
    ])
    .args(["--no-warn-conflicts", "--root-user-action=ignore"])
    .arg("--target")
    .arg(folder)
    .arg("-r")
    .arg(requirements)
    .status()?;
    if !status.success() {
        bail!(
            "pip could not install MLX's wheels (see above). Where it found no matching distribution, the machine or its \
             pip is not one that MLX has wheels for: they need glibc 2.35 and pip 20.3 or newer. Where it could not \
             connect, check the network or pip's configuration (`python3 -m pip config list`); then run this again"
        );
    }
    if !folder.join("mlx/lib/libmlx.so").is_file() {
        bail!(
            "MLX's wheel has no mlx/lib/libmlx.so: its layout is not the one that this tool knows"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Variant;

    #[test]
    fn every_wheel_is_pinned_with_a_hash_for_each_architecture() {
        for variant in [Variant::Cpu, Variant::Cuda12, Variant::Cuda13] {
            let text = variant.requirements();
            let pins = text.lines().filter(|line| line.contains("==")).count();
            let hashes = text
                .lines()
                .filter(|line| line.contains("--hash=sha256:"))
                .count();
            assert!(pins > 0);
            assert_eq!(hashes, 2 * pins, "{}", variant.name());
        }
    }

    #[test]
    fn all_variants_are_one_version_of_mlx() {
        let version = |variant: Variant| variant.version().unwrap();
        assert_eq!(version(Variant::Cuda12), version(Variant::Cpu));
        assert_eq!(version(Variant::Cuda13), version(Variant::Cpu));
    }
}
