//! Reading an image from a share.
//!
//! A read is split into requests that are all in flight at once (within a limit), over all connections; several threads may read at
//! the same time. Short answers are continued. Each connection has its own handle; when a session ends, the name is opened again on
//! the next one, and it has to be the same file: its number, its length and its first bytes. What was asked for on a session that ended
//! is queued and asked for again, one request at a time while sessions end again and again, and all at once when one has answered.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::watch::Patience;
use super::super::{ImageFile, ReadAt, Result, SmbUrl, StoreError};
use super::file::{self, How, Opened};
use super::header::Command;
use super::link::{Answer, Link, Request};
use super::messages::{self, FileId};
use super::share::{Failure, Losses, Place, Share};
use super::status::Status;

/// More than this in flight brings nothing (docs/stores.md).
const IN_FLIGHT_BYTES: u32 = 8 << 20;
const MIN_IN_FLIGHT: usize = 4;

/// An image, opened.
pub(super) struct SmbImage {
    share: Share,
    url: SmbUrl,
    how: How,
    number: u64,
    len_bytes: u64,
    head: Vec<u8>,
    /// The handle of each slot, with the life of the connection that it belongs to.
    handles: Vec<Mutex<Option<(u64, FileId)>>>,
}

/// A part of a read: where it goes in the caller's buffer.
#[derive(Debug, Clone, Copy)]
struct Part {
    slot: usize,
    start: usize,
    len: usize,
}

impl SmbImage {
    /// Opens an image; `number` is the file that it has to be, if that is known.
    pub(super) fn open(share: Share, url: &SmbUrl, how: How, number: Option<u64>) -> Result<Self> {
        let place = Place { doing: "opening", url };
        let (life, opened, head) = share.until_done(place, |link, _| {
            let opened = file::open(link, url, how)?;
            let head = file::head(link, &opened)?;
            Ok((link.life, opened, head))
        })?;
        if number.is_some_and(|number| number != opened.number) {
            return Err(StoreError::Replaced { url: url.to_string() });
        }
        let mut handles: Vec<Mutex<Option<(u64, FileId)>>> = Vec::new();
        handles.resize_with(share.slots(), Mutex::default);
        handles[0] = Mutex::new(Some((life, opened.id)));
        let Opened { number, len_bytes, .. } = opened;
        Ok(Self { share, url: url.clone(), how, number, len_bytes, head, handles })
    }

    fn place(&self) -> Place<'_> {
        Place { doing: "reading", url: &self.url }
    }

    fn replaced(&self) -> StoreError {
        StoreError::Replaced { url: self.url.to_string() }
    }

    fn handle_of(&self, slot: usize) -> MutexGuard<'_, Option<(u64, FileId)>> {
        self.handles[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection of a slot, with a handle of the file on it.
    fn handle(&self, slot: usize) -> Result<(Arc<Link>, FileId)> {
        let (mut patience, mut losses) = (Patience::default(), Losses::default());
        loop {
            let link = self.share.link(slot)?;
            let mut handle = self.handle_of(slot);
            if let Some((life, id)) = *handle
                && life == link.life
            {
                return Ok((link, id));
            }
            match self.reopen(&link) {
                Ok(id) => {
                    *handle = Some((link.life, id));
                    self.share.watch.calm(&mut patience);
                    return Ok((link, id));
                }
                Err(Failure::Lost) => losses.note(&self.share)?,
                Err(Failure::Status(status)) if status.is_session_lost() => {
                    link.end(&format!("the server answered {status}"));
                    losses.note(&self.share)?;
                }
                Err(Failure::Status(status)) if status.is_not_found() => {
                    return Err(self.replaced());
                }
                // Also while the server has not yet noticed that our last session is gone.
                Err(Failure::Status(status))
                    if status.is_passing() || status == Status::SHARING_VIOLATION =>
                {
                    drop(handle);
                    self.share.watch.wait("opening", &mut patience)?;
                }
                Err(failure) => return Err(self.share.words(self.place(), failure)),
            }
        }
    }

    fn reopen(&self, link: &Link) -> Result<FileId, Failure> {
        let opened = file::open(link, &self.url, self.how)?;
        if (opened.number, opened.len_bytes) != (self.number, self.len_bytes)
            || !file::begins_with(link, opened.id, &self.head)?
        {
            return Err(self.replaced().into());
        }
        Ok(opened.id)
    }

    fn request(&self, part: &Part, offset: u64, tag: u64, to: &Sender<Answer>) -> Result<()> {
        let (link, id) = self.handle(part.slot)?;
        let at = offset + u64::try_from(part.start).expect("a buffer's length fits 64 bits");
        let most = usize::try_from(link.limits.read_bytes).expect("u32 fits usize");
        // A connection made anew may take less; the rest is asked for afterwards.
        let data_bytes = part.len.min(most);
        let count = u32::try_from(data_bytes).expect("a part is at most a request long");
        let body = messages::read(id, at, count);
        link.submit(Request { command: Command::Read, body, payload: None, data_bytes }, tag, to);
        Ok(())
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let first = self.share.link(0)?;
        let request_bytes = self.share.request_bytes(first.limits.read_bytes);
        let in_flight = in_flight(request_bytes, self.share.options().requests_in_flight);
        let size = usize::try_from(request_bytes).expect("u32 fits usize on every target");
        let (sender, answers) = channel();
        let slots = self.share.slots();
        let starts = (0..buffer.len()).step_by(size).enumerate();
        let mut queue: VecDeque<Part> = starts
            .map(|(index, start)| Part {
                slot: index % slots,
                start,
                len: size.min(buffer.len() - start),
            })
            .collect();
        let mut parts: HashMap<u64, Part> = HashMap::new();
        let mut next_tag = 0_u64;
        let (mut patience, mut losses) = (Patience::default(), Losses::default());
        loop {
            let most = if losses.are_many() { 1 } else { in_flight };
            while parts.len() < most
                && let Some(part) = queue.pop_front()
            {
                self.request(&part, offset, next_tag, &sender)?;
                parts.insert(next_tag, part);
                next_tag += 1;
            }
            if parts.is_empty() {
                return Ok(());
            }
            let answer = answers.recv().expect("this function holds a sender");
            let Some(mut part) = parts.remove(&answer.tag) else { continue };
            match self.take(&answer, &part) {
                Ok(data) => {
                    self.share.watch.calm(&mut patience);
                    losses.calm();
                    buffer[part.start..part.start + data.len()].copy_from_slice(data);
                    if data.len() == part.len {
                        continue;
                    }
                    if data.is_empty() {
                        return Err(self.replaced());
                    }
                    part.start += data.len();
                    part.len -= data.len();
                }
                Err(Failure::Status(status)) if status.is_passing() => {
                    self.share.watch.wait("reading", &mut patience)?;
                }
                Err(Failure::Status(status)) if status.is_session_lost() => {
                    self.share.end(part.slot, answer.life, status);
                    losses.note_of(&self.share, part.slot, answer.life)?;
                }
                Err(Failure::Lost) => losses.note_of(&self.share, part.slot, answer.life)?,
                Err(Failure::Status(Status::END_OF_FILE)) => return Err(self.replaced()),
                Err(failure) => return Err(self.share.words(self.place(), failure)),
            }
            queue.push_back(part);
        }
    }

    fn take<'a>(&self, answer: &'a Answer, part: &Part) -> Result<&'a [u8], Failure> {
        let reply = answer.reply.as_ref().map_err(|_| Failure::Lost)?;
        match reply.header.status {
            Status::SUCCESS => {}
            status => return Err(Failure::Status(status)),
        }
        let limit = u32::try_from(part.len).expect("a part is at most a request long");
        Ok(messages::read_data(reply.message(), limit)?)
    }
}

/// As many requests of a size as are useful: small ones need more of them to fill a path, large ones only fill memory.
pub(super) fn in_flight(request_bytes: u32, most: usize) -> usize {
    let useful = usize::try_from(IN_FLIGHT_BYTES / request_bytes.max(1)).expect("u32 fits usize");
    useful.max(MIN_IN_FLIGHT).min(most).max(1)
}

impl ReadAt for SmbImage {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len_bytes = self.len_bytes;
        let len = u64::try_from(buffer.len()).expect("a buffer's length fits 64 bits");
        if offset.checked_add(len).is_none_or(|end| end > len_bytes) {
            let (url, wanted) = (self.url.to_string(), offset.saturating_add(len));
            return Err(StoreError::PastEnd { url, len_bytes, wanted }.into());
        }
        Ok(self.read(buffer, offset)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }
}

impl ImageFile for SmbImage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}
