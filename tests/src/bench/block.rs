//! Block devices over files, and what of them is in memory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// A loop device over a file, past the page cache of the file beneath. Dropping it detaches it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    /// A block device's pages go when nobody has it open any more.
    held: Option<File>,
}

impl LoopDevice {
    /// Attaches `file`, to be read only or to be written too.
    ///
    /// # Errors
    /// If losetup fails, which without root it does.
    pub fn attach(file: &Path, writable: bool) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--direct-io=on"]);
        if !writable {
            losetup.arg("--read-only");
        }
        let path = command::output(losetup.arg(file)).context("making a loop device")?;
        Ok(Self { path: PathBuf::from(path.trim()), held: None })
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all of the device into memory, and keeps it there.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn warm(&mut self) -> Result<()> {
        let reading = || format!("reading {}", self.path.display());
        let mut file = File::open(&self.path).with_context(reading)?;
        std::io::copy(&mut file, &mut std::io::sink()).with_context(reading)?;
        self.held = Some(file);
        Ok(())
    }

    /// Drops what memory has of the device.
    ///
    /// # Errors
    /// If blockdev fails.
    pub fn cool(&self) -> Result<()> {
        command::run("blockdev", ["--flushbufs".as_ref(), self.path.as_os_str()])
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        self.held = None;
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
