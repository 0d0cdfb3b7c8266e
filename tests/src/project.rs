//! Where things are: the checkout, and the folders under its target folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The checkout: of the cargo that runs this program, since a checkout that was moved keeps programs that were built at its old place.
#[must_use]
pub fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().expect("this package lies in the workspace").to_owned()
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// What is kept between runs of the lab: kernels, the template's tree, finished disks.
#[must_use]
pub fn cache() -> PathBuf {
    target().join("lab")
}

/// What `xtask` built and the lab uses: the agent, boot folders.
#[must_use]
pub fn artifacts() -> PathBuf {
    target().join("imprint")
}

/// How many bytes are free where a folder is.
///
/// # Errors
/// If it does not exist.
pub fn free_bytes(folder: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .with_context(|| format!("asking how much room {} has", folder.display()))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Refuses to begin what would end in the middle for want of room under [`cache`].
///
/// # Errors
/// If fewer than `bytes` are free.
pub fn ensure_room(bytes: u64) -> Result<()> {
    let folder = cache();
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let free = free_bytes(&folder)?;
    ensure!(
        free >= bytes,
        "{} MiB are free at {}, and its machines' disks take {} MiB: make room, or set CARGO_TARGET_DIR to a folder that has it",
        free >> 20,
        folder.display(),
        bytes >> 20
    );
    Ok(())
}
