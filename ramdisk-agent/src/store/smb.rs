//! The store that is a share of an SMB server, spoken to in user space (SMB 2.1 to 3.1.1 over TCP).
//!
//! A client of our own for the dozen requests that an image needs, because the crates there are hide what was durable, do not
//! announce encryption, or do not open guest shares (docs/stores.md). From the wire up: [`wire`], [`header`], [`status`],
//! [`messages`], [`negotiate`], [`ntlm`] and [`spnego`] are pure codecs; [`crypto`] has keys, signatures and ciphers; [`frame`] puts
//! messages on the wire and takes them off, protected; [`login`] leads from a socket to a share; [`link`] is one logged-in connection
//! with many requests in flight, for as long as it lives; [`share`] makes links anew within what [`watch`](super::watch) allows;
//! [`file`](self::file) is what is done to files by handle; [`reader`] and [`writer`] are what the engine sees.
//! Deliberately absent: SMB 1, Kerberos, DFS, several channels of one session, oplocks and leases (nothing is cached), durable handles
//! (a writer opens its file again and knows what is missing).

mod anything;
mod crypto;
mod file;
mod frame;
mod gmac;
mod header;
mod left_over;
mod link;
mod login;
mod messages;
mod negotiate;
mod ntlm;
mod reader;
mod share;
mod spnego;
mod status;
mod wire;
mod writer;

pub use anything::read_anything;

use agent_api::StoreFacts;

use super::{Entry, ImageFile, LeftOver, Options, Result, SmbUrl, StoreError, StoreWriter};
use file::How;
use reader::SmbImage;
use share::Share;
use writer::SmbWriter;

/// Opens an image for reading.
pub(super) fn open(url: &SmbUrl, options: &Options) -> Result<Box<dyn ImageFile>> {
    let share = Share::open(named(url)?, options, options.connections)?;
    Ok(Box::new(SmbImage::open(share, url, How::READ, None)?))
}

/// Starts to write an image.
pub(super) fn create(url: &SmbUrl, options: &Options) -> Result<Box<dyn StoreWriter>> {
    // One session: a FLUSH speaks for the handle that it came through, and no other.
    let share = Share::open(named(url)?, options, 1)?;
    Ok(Box::new(SmbWriter::create(share, url)?))
}

/// What a writer of an image has left behind.
pub(super) fn left_over(url: &SmbUrl, options: &Options) -> Result<Option<Box<dyn LeftOver>>> {
    left_over::find(Share::open(named(url)?, options, 1)?, url)
}

/// What is known of the share.
pub(super) fn facts(folder: &SmbUrl, options: &Options) -> Result<StoreFacts> {
    let share = Share::open(folder, options, 1)?;
    let space = file::space(&share, folder)?;
    let link = share.link(0)?;
    Ok(StoreFacts {
        protocol: link.dialect.to_string(),
        identity: Some(share.account_name()),
        protection: Some(link.protection.clone()),
        max_read_bytes: Some(link.limits.read_bytes.into()),
        max_write_bytes: Some(link.limits.write_bytes.into()),
        free_bytes: space.map(|space| space.available_bytes),
        total_bytes: space.map(|space| space.total_bytes),
    })
}

/// Lists a folder's regular files.
pub(super) fn list(folder: &SmbUrl, options: &Options) -> Result<Vec<Entry>> {
    let files = file::list(&Share::open(folder, options, 1)?, folder)?;
    Ok(files.into_iter().map(|(name, len_bytes)| Entry { name, len_bytes }).collect())
}

/// Removes an image.
pub(super) fn remove(url: &SmbUrl, options: &Options) -> Result<()> {
    file::remove_image(&Share::open(named(url)?, options, 1)?, url)
}

/// A URL that names a file in a share.
fn named(url: &SmbUrl) -> Result<&SmbUrl> {
    if url.below_share().is_empty() {
        return Err(StoreError::NotFound { url: url.to_string() });
    }
    Ok(url)
}
