//! The store that is a share of an NFS server, spoken to in user space (NFS version 3 over TCP).
//!
//! The kernel of a small initramfs need not know NFS, and its client cannot say what is durable, how long it will wait, or that
//! it is waiting. From the wire up: [`xdr`] and [`rpc`] are pure codecs; [`connect`](super::connect) makes sockets; [`lane`] is one connection
//! with many calls in flight that heals itself, within what [`watch`](super::watch) allows; [`mount`] finds ports and exports; [`client`] makes
//! calls over several lanes; [`session`] is a folder; [`reader`] and [`writer`] (with
//! its [`window`](super::window)) are what the engine sees, [`publish`] their end.
//! Threads, not an async runtime: a few sockets with few, large messages.

mod anything;
mod client;
mod identity;
mod lane;
mod left_over;
mod mount;
mod proto;
mod publish;
mod reader;
mod rpc;
mod session;
mod writer;
mod xdr;

use std::sync::Arc;

use agent_api::StoreFacts;
pub use anything::read_anything;
use uuid::Uuid;

use super::{
    Entry, ImageFile, LeftOver, NfsUrl, Options, Result, StoreError, StoreUrl, StoreWriter,
};
use client::Place;
use reader::NfsImage;
use session::Session;
use writer::NfsWriter;

/// Opens an image for reading.
pub(super) fn open(url: &NfsUrl, options: &Options) -> Result<Box<dyn ImageFile>> {
    let (folder, name) = folder_of(url)?;
    let session = Session::open(folder, options)?;
    let opened = session.find_file(Place { doing: "opening", url }, &name)?;
    Ok(Box::new(NfsImage::new(Arc::new(session), url.clone(), name, opened)))
}

/// Starts to write an image.
pub(super) fn create(
    url: &NfsUrl,
    image_id: Uuid,
    options: &Options,
) -> Result<Box<dyn StoreWriter>> {
    let (folder, name) = folder_of(url)?;
    let session = Session::open(folder, options)?;
    Ok(Box::new(NfsWriter::create(session, url, &name, image_id, options)?))
}

/// What a writer of this image has left behind.
pub(super) fn left_over(url: &NfsUrl, options: &Options) -> Result<Option<Box<dyn LeftOver>>> {
    let (folder, name) = folder_of(url)?;
    let session = Session::open(folder, options)?;
    left_over::find(session, url, &name, options)
}

/// What is known of the share.
pub(super) fn facts(folder: &NfsUrl, options: &Options) -> Result<StoreFacts> {
    let session = Session::open(folder.clone(), options)?;
    // Some servers do not tell; everything else works without.
    let space = session.space(Place { doing: "opening", url: folder }).ok();
    Ok(StoreFacts {
        protocol: "NFS 3".to_owned(),
        identity: Some(format!("uid {}, gid {}", folder.uid, folder.gid)),
        protection: Some("not at all".to_owned()),
        max_read_bytes: Some(session.client.read_bytes.into()),
        max_write_bytes: Some(session.client.write_bytes.into()),
        free_bytes: space.map(|space| space.available_bytes),
        total_bytes: space.map(|space| space.total_bytes),
    })
}

/// Lists a folder's regular files.
pub(super) fn list(folder: &NfsUrl, options: &Options) -> Result<Vec<Entry>> {
    let session = Session::open(folder.clone(), options)?;
    let files = session.list()?;
    Ok(files.into_iter().map(|(name, len_bytes)| Entry { name, len_bytes }).collect())
}

/// Removes an image.
pub(super) fn remove(url: &NfsUrl, options: &Options) -> Result<()> {
    let (folder, name) = folder_of(url)?;
    let session = Session::open(folder, options)?;
    if session.remove(Place { doing: "removing", url }, &name)? {
        Ok(())
    } else {
        Err(StoreError::NotFound { url: url.to_string() })
    }
}

/// The folder that an image is in, and its name there.
fn folder_of(url: &NfsUrl) -> Result<(NfsUrl, String)> {
    let whole = StoreUrl::Nfs(url.clone());
    match (whole.parent(), whole.file_name()) {
        (Some(StoreUrl::Nfs(folder)), Some(name)) => Ok((folder, name.to_owned())),
        _ => Err(StoreError::NotFound { url: url.to_string() }),
    }
}
