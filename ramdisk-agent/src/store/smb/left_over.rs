//! Going on with a partial file that a writer has left on a share.
//!
//! It is opened as a writer has it: from then on nobody else writes or removes it, and a writer that is still alive shows as
//! [`StoreError::Busy`]. Whoever wrote it may have had its last data acknowledged and not flushed, so all of it is flushed before
//! anything is read. When the session ends meanwhile, the file is opened again, and has to be the same.

use std::time::{Duration, Instant};

use super::super::{ImageFile, LeftOver, Options, Result, SmbUrl, StoreError, StoreWriter};
use super::file::{self, How, Opened, partial_of};
use super::link::Link;
use super::messages::FileId;
use super::reader::SmbImage;
use super::share::{Failure, Place, Share};
use super::writer::{Begun, SmbWriter};

/// So long a server may take to notice that a writer's connection is gone.
const LINGERS: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What a writer of the image at `url` has left behind.
pub(super) fn find(share: Share, url: &SmbUrl) -> Result<Option<Box<dyn LeftOver>>> {
    let place = Place { doing: "opening", url };
    if share.until_done(place, |link, _| file::exists(link, url))? {
        return Err(StoreError::Exists { url: url.to_string() });
    }
    let partial_url = partial_of(url);
    let until = Instant::now() + LINGERS;
    let found = loop {
        match open(&share, &partial_url) {
            Err(StoreError::Busy { .. }) if Instant::now() < until => {
                std::thread::sleep(LOOK_AGAIN);
            }
            found => break found?,
        }
    };
    let Some((life, opened, head)) = found else { return Ok(None) };
    let url = url.clone();
    Ok(Some(Box::new(SmbLeftOver { share, url, partial_url, life, opened, head })))
}

type Found = (u64, Opened, Vec<u8>);

/// The partial file, flushed; the life of the connection that has it open; its first bytes.
fn open(share: &Share, partial_url: &SmbUrl) -> Result<Option<Found>> {
    let place = Place { doing: "opening", url: partial_url };
    share.until_done(place, |link, _| {
        let opened = match file::open(link, partial_url, How::WRITE) {
            Err(Failure::Status(status)) if status.is_not_found() => return Ok(None),
            opened => opened?,
        };
        file::flush(link, opened.id)?;
        let head = file::head(link, &opened)?;
        Ok(Some((link.life, opened, head)))
    })
}

struct SmbLeftOver {
    share: Share,
    url: SmbUrl,
    partial_url: SmbUrl,
    /// The life of the connection that the handle belongs to.
    life: u64,
    opened: Opened,
    head: Vec<u8>,
}

impl SmbLeftOver {
    fn replaced(&self) -> StoreError {
        StoreError::Replaced { url: self.partial_url.to_string() }
    }

    /// The handle, opened again where it went with its session. The file has at least so many bytes.
    fn handle(&self, link: &Link, len_bytes: u64) -> Result<FileId, Failure> {
        if link.life == self.life {
            return Ok(self.opened.id);
        }
        let again = file::open(link, &self.partial_url, How::WRITE)?;
        let head =
            &self.head[..self.head.len().min(usize::try_from(len_bytes).unwrap_or(usize::MAX))];
        let is_same = again.number == self.opened.number
            && again.len_bytes >= len_bytes
            && file::begins_with(link, again.id, head)?;
        if is_same { Ok(again.id) } else { Err(self.replaced().into()) }
    }
}

impl LeftOver for SmbLeftOver {
    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let options: &Options = self.share.options();
        let share = Share::open(&self.partial_url, options, options.connections)?;
        let (how, number) = (How::READ_PARTIAL, Some(self.opened.number));
        Ok(Box::new(SmbImage::open(share, &self.partial_url, how, number)?))
    }

    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>> {
        if len_bytes > self.opened.len_bytes {
            return Err(self.replaced());
        }
        let place = Place { doing: "cutting off", url: &self.partial_url };
        let handle = self.share.until_done(place, |link, _| {
            let id = self.handle(link, len_bytes)?;
            file::set_len(link, id, len_bytes)?;
            file::flush(link, id)?;
            Ok((link.life, id))
        })?;
        let Self { share, url, opened, mut head, .. } = *self;
        head.truncate(usize::try_from(len_bytes).unwrap_or(usize::MAX));
        let begun = Begun { number: opened.number, head, len_bytes };
        Ok(Box::new(SmbWriter::behind(share, &url, handle, begun)?))
    }
}
