//! Block devices over files, and what of them is in memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// A loop device over a file. Dropping it detaches it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`, to be read only or to be written too, past its page cache.
    ///
    /// # Errors
    /// If losetup fails, which without root it does.
    pub fn attach(file: &Path, writable: bool) -> Result<Self> {
        let read_only = if writable { None } else { Some("--read-only") };
        Self::with(file, &["--direct-io=on"].into_iter().chain(read_only).collect::<Vec<_>>())
    }

    /// Attaches `file` to be read, all of it in memory: in the page cache of the file, where it stays, while the device's own goes with whoever
    /// has it open.
    ///
    /// # Errors
    /// If losetup fails, or the file cannot be read.
    pub fn attach_warm(file: &Path) -> Result<Self> {
        let device = Self::with(file, &["--direct-io=off", "--read-only"])?;
        let reading = || format!("reading {}", file.display());
        let mut file = File::open(file).with_context(reading)?;
        std::io::copy(&mut file, &mut std::io::sink()).with_context(reading)?;
        Ok(device)
    }

    fn with(file: &Path, flags: &[&str]) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).args(flags).arg(file);
        let path = command::output(&mut losetup).context("making a loop device")?;
        Ok(Self { path: PathBuf::from(path.trim()), file: file.to_owned() })
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Drops what memory has of the device and of its file, which our capture reads.
    ///
    /// # Errors
    /// If blockdev or dd fails.
    pub fn cool(&self) -> Result<()> {
        command::run("blockdev", ["--flushbufs".as_ref(), self.path.as_os_str()])?;
        let of = format!("of={}", self.file.display());
        let nothing = ["oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"];
        command::run("dd", [&*of].into_iter().chain(nothing))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Nobody to tell; `losetup -a` shows what stayed.
        let _ = command::run("losetup", ["--detach".as_ref(), self.path.as_os_str()]);
    }
}

/// Makes `path` a file of `len` bytes that has its blocks already, as a disk has: a restore then allocates none.
///
/// # Errors
/// If there is no room.
pub fn allocate(path: &Path, len: u64) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let mut file = File::create(path).with_context(writing)?;
    let mut zeros = std::io::Read::take(std::io::repeat(0), len);
    std::io::copy(&mut zeros, &mut file).with_context(writing)?;
    file.sync_all().with_context(writing)
}
