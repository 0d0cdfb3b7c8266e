//! The filesystems that are measured: how they are made, and mounted to be filled.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{command, wait};

use super::content;

/// Of the size, how much is used and how much was used once: in parts of 1000.
const USED: u64 = 395;
const FREED: u64 = 330;

/// A filesystem to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Filesystem {
    /// ext4
    Ext4,
    /// XFS
    Xfs,
    /// NTFS
    Ntfs,
    /// btrfs
    Btrfs,
}

impl Filesystem {
    /// Its name in commands.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Ntfs => "ntfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Makes a filesystem of `len` bytes in `file`, filled; an unfinished one does not get the name.
    ///
    /// # Errors
    /// If it cannot be made, mounted or filled.
    pub fn make(self, file: &Path, len: u64) -> Result<()> {
        let partial = file.with_extension("partial");
        self.format(&partial, len)?;
        self.with_mounted(&partial, |mounted| {
            content::fill(mounted, len / 1000 * USED, len / 1000 * FREED)
        })?;
        fs::rename(&partial, file).with_context(|| format!("naming {}", file.display()))
    }

    /// Makes an empty filesystem of `len` bytes.
    ///
    /// # Errors
    /// If mkfs fails.
    pub fn format(self, file: &Path, len: u64) -> Result<()> {
        let making = || format!("making {}", file.display());
        File::create(file).and_then(|f| f.set_len(len)).with_context(making)?;
        let args: &[&str] = match self {
            Self::Ext4 => &["-q", "-F"],
            Self::Xfs => &["-q", "-f"],
            Self::Ntfs => &["--quiet", "--fast", "--force"],
            Self::Btrfs => &["--quiet", "--force"],
        };
        let mut mkfs = Command::new(format!("mkfs.{}", self.name()));
        command::output(mkfs.args(args).arg(file)).with_context(making).map(drop)
    }

    /// Runs `work` with the filesystem mounted; it is clean afterwards.
    ///
    /// # Errors
    /// If it cannot be mounted or unmounted, or the work fails.
    pub fn with_mounted(self, file: &Path, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let folder = tempfile::tempdir().context("making a mount point")?;
        let mut mount = Mount::new(self, file, folder.path())?;
        let done = work(folder.path());
        mount.end()?;
        done
    }
}

/// A mounted filesystem. Dropping it unmounts it.
struct Mount<'a> {
    at: &'a Path,
    /// NTFS is mounted by a program, which has written everything when it ends.
    driver: Option<Child>,
    mounted: bool,
}

impl<'a> Mount<'a> {
    fn new(filesystem: Filesystem, file: &Path, at: &'a Path) -> Result<Self> {
        let mut mount = Self { at, driver: None, mounted: false };
        if filesystem == Filesystem::Ntfs {
            let mut ntfs = Command::new("ntfs-3g");
            ntfs.args(["-o", "no_detach,big_writes"]).args([file, at]).stdin(Stdio::null());
            mount.driver = Some(ntfs.spawn().context("starting ntfs-3g")?);
            let name = at.to_string_lossy();
            wait::until("ntfs-3g to mount", Duration::from_secs(30), || {
                let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
                Ok(mounts.lines().any(|l| l.split(' ').nth(1) == Some(&name)).then_some(()))
            })?;
        } else {
            let words =
                ["-t".as_ref(), filesystem.name().as_ref(), "-o".as_ref(), "loop,noatime".as_ref()];
            command::run("mount", words.into_iter().chain([file.as_os_str(), at.as_os_str()]))?;
        }
        mount.mounted = true;
        Ok(mount)
    }

    fn end(&mut self) -> Result<()> {
        if std::mem::take(&mut self.mounted) {
            command::run("umount", [self.at])?;
        }
        if let Some(mut driver) = self.driver.take() {
            let status = driver.wait().context("waiting for ntfs-3g")?;
            ensure!(status.success(), "ntfs-3g ended: {status}");
        }
        Ok(())
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        if !self.mounted {
            if let Some(driver) = &mut self.driver {
                // It never mounted: there is nothing to lose.
                let _ = driver.kill();
            }
            return;
        }
        // The error on the way out is the one that matters.
        let _ = self.end();
    }
}
