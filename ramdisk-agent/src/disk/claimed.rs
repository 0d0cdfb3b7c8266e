//! Devices that somebody has claimed and that no table names: a member of an imported ZFS pool, the journal of a filesystem on another device,
//! a disk that is exported to other machines, or that a program has opened exclusively.
//!
//! All that the kernel says of those is that it refuses an exclusive open, so that one is tried; of reading only, and closed at once.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ground::Place;
use super::users::in_use;
use crate::error::{Error, IoContext, Result};

/// Whoever only looks what a new device is (mdadm, another agent) has it for a moment.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// Refuses a disk or disk file of which a node is claimed and [`in_use`] does not know by whom: its own, one of its partitions, or of a loop device
/// over it.
///
/// # Errors
/// `refused` with these nodes.
pub fn refuse_claimed(path: &Path, why: &str) -> Result<()> {
    let claimed = claimed(path)?;
    if claimed.is_empty() {
        return Ok(());
    }
    let nodes: Vec<String> = claimed.iter().map(|node| node.display().to_string()).collect();
    Err(Error::refused(format!(
        "{} {why}: somebody has opened {} exclusively, as members of an imported ZFS pool are, a filesystem's journal on a device of its own, and \
         disks that are exported to other machines; export that pool, unmount that filesystem, or end that program",
        path.display(),
        nodes.join(", ")
    )))
}

fn claimed(path: &Path) -> Result<Vec<PathBuf>> {
    let meta = fs::metadata(path).on_disk(|| format!("looking at {}", path.display()))?;
    let place = Place::of(path, &meta)?;
    let mut claimed = Vec::new();
    for node in place.nodes()? {
        // Of what surrounds it another part may be claimed.
        let is_within = place.range.start <= node.range.start && node.range.end <= place.range.end;
        let path = node.path();
        if is_within && is_claimed(&path) && in_use(&path, false)?.is_empty() {
            claimed.push(path);
        }
    }
    for _ in 0..ATTEMPTS {
        if claimed.is_empty() {
            break;
        }
        std::thread::sleep(PAUSE);
        claimed.retain(|node| is_claimed(node));
    }
    Ok(claimed)
}

fn is_claimed(node: &Path) -> bool {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(node);
    // Any other error is for whoever opens it to read.
    opened.is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
}
