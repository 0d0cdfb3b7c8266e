//! The store that is a share of an NFS server of version 4, mounted by the kernel.
//!
//! For servers without version 3; where there is a choice, [`nfs`](super::nfs) knows more of what goes on. [`mount`] mounts the folder
//! that an image is in where nobody else sees it; [`share`] does things on it in threads that may be left behind, since the
//! kernel's client cannot be told how long to wait; what is done is what is done in [a folder](super::file), and [`files`]
//! puts the two together. Errors say the URL and not the path, in the words of [`refusal`]. Deliberately absent: Kerberos, pNFS, locks.

mod files;
mod mount;
mod refusal;
mod share;

use agent_api::StoreFacts;

use super::claim::Claim;
use super::file::{self, On};
use super::{
    Entry, ImageFile, LeftOver, Nfs4Url, Options, PARTIAL_SUFFIX, Result, StoreError, StoreUrl,
    StoreWriter,
};
use share::Share;

/// Opens an image for reading.
pub(super) fn open(url: &Nfs4Url, options: &Options) -> Result<Box<dyn ImageFile>> {
    let (share, name) = share_of(url, options)?;
    let image = share.run(move |root| file::open(&root.join(name), On::OwnShare))?;
    Ok(files::image(share, image))
}

/// Starts to write an image.
pub(super) fn create(url: &Nfs4Url, options: &Options) -> Result<Box<dyn StoreWriter>> {
    let claim = claim(url)?;
    let (share, name) = share_of(url, options)?;
    let writer =
        share.run(move |root| file::create(&root.join(name), On::OwnShare, file::QUEUE_CHUNKS))?;
    Ok(files::writer(share, writer, url, claim))
}

/// What a writer of this image has left behind.
pub(super) fn left_over(url: &Nfs4Url, options: &Options) -> Result<Option<Box<dyn LeftOver>>> {
    let claim = claim(url)?;
    let (share, name) = share_of(url, options)?;
    let found = share.run(move |root| file::left_over(&root.join(name), On::OwnShare))?;
    Ok(found.map(|found| files::left_over(share, found, url, claim)))
}

/// What is known of the share.
pub(super) fn facts(folder: &Nfs4Url, options: &Options) -> Result<StoreFacts> {
    let share = Share::open(folder, options)?;
    // Some servers do not tell; everything else works without.
    let space = share.run(file::facts).unwrap_or_default();
    let mounted = share.mounted();
    Ok(StoreFacts {
        protocol: format!("NFS {}", mounted.version),
        identity: Some(format!("uid {}, gid {}", folder.uid, folder.gid)),
        protection: Some("not at all".to_owned()),
        max_read_bytes: mounted.read_bytes,
        max_write_bytes: mounted.write_bytes,
        free_bytes: space.free_bytes,
        total_bytes: space.total_bytes,
    })
}

/// Lists a folder's regular files.
pub(super) fn list(folder: &Nfs4Url, options: &Options) -> Result<Vec<Entry>> {
    Share::open(folder, options)?.run(file::list)
}

/// Removes an image.
pub(super) fn remove(url: &Nfs4Url, options: &Options) -> Result<()> {
    let (share, name) = share_of(url, options)?;
    share.run(move |root| file::remove(&root.join(name)))
}

/// Keeps other agents of this machine from the partial file of this image.
fn claim(url: &Nfs4Url) -> Result<Claim> {
    let path = format!("{}{PARTIAL_SUFFIX}", url.path);
    Claim::of(&StoreUrl::Nfs4(Nfs4Url { path, ..url.clone() }))
}

/// The folder that an image is in, mounted, and its name there.
fn share_of(url: &Nfs4Url, options: &Options) -> Result<(Share, String)> {
    let whole = StoreUrl::Nfs4(url.clone());
    match (whole.parent(), whole.file_name()) {
        (Some(StoreUrl::Nfs4(folder)), Some(name)) => {
            Ok((Share::open(&folder, options)?, name.to_owned()))
        }
        _ => Err(StoreError::NotFound { url: url.to_string() }),
    }
}
