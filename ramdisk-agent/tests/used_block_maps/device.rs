//! A file as a block device, which some tools insist on.

use std::path::{Path, PathBuf};

use crate::tools::run;

/// A loop device; it goes when this does.
pub struct Device(pub PathBuf);

impl Device {
    /// One with sectors of so many bytes.
    pub fn new(volume: &Path, sector: u64) -> Self {
        let sector = sector.to_string();
        let args = ["--find", "--show", "--sector-size", &sector, volume.to_str().unwrap()];
        Self(run("mount", "losetup", &args).trim().into())
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run("mount", "losetup", &["--detach", self.path()]);
    }
}
