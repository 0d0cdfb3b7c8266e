//! Reading an image from an NFS share.
//!
//! A read is split into requests of the server's size that are all in flight at once (within a limit), over all connections;
//! several threads may read at the same time. Short replies are continued. When the server has forgotten the handle, the name
//! is looked up again, and it must be the same file: another one under that name is an error, not other bytes.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::super::watch::Patience;
use super::super::{ImageFile, NfsUrl, ReadAt, Result, StoreError};
use super::client::Place;
use super::lane::Answer;
use super::proto::{self, Handle, Status};
use super::session::{Found, Session};

/// An image, opened.
pub(super) struct NfsImage {
    session: Arc<Session>,
    url: NfsUrl,
    name: String,
    opened: Found,
    /// The handle in use, and how often it was looked up again.
    handle: Mutex<(Handle, u32)>,
}

/// A part of a read: where it goes in the caller's buffer, and which handle it was asked for with.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    len: usize,
    lookups: u32,
}

/// How often a handle may go stale within one read.
const MAX_LOOKUPS: u32 = 3;

impl NfsImage {
    pub(super) fn new(session: Arc<Session>, url: NfsUrl, name: String, opened: Found) -> Self {
        let handle = Mutex::new((opened.handle.clone(), 0));
        Self { session, url, name, opened, handle }
    }

    fn place(&self) -> Place<'_> {
        Place { doing: "reading", url: &self.url }
    }

    fn replaced(&self) -> StoreError {
        StoreError::Replaced { url: self.url.to_string() }
    }

    fn handle(&self) -> (Handle, u32) {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Finds the file again after the server forgot the handle that had been looked up `lookups` times.
    fn look_up_again(&self, lookups: u32) -> Result<()> {
        if self.handle().1 != lookups {
            // Somebody else did.
            return Ok(());
        }
        let found = self.session.find(self.place(), &self.name)?.ok_or_else(|| self.replaced())?;
        let (now, then) = (&found.attributes, &self.opened.attributes);
        if (now.id, now.len_bytes, now.modified) != (then.id, then.len_bytes, then.modified) {
            return Err(self.replaced());
        }
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.1 == lookups {
            *handle = (found.handle, lookups + 1);
        }
        Ok(())
    }

    fn request(&self, part: &mut Part, offset: u64, tag: u64, answers: &Sender<Answer>) {
        let (handle, lookups) = self.handle();
        part.lookups = lookups;
        let at = offset + u64::try_from(part.start).expect("a buffer's length fits 64 bits");
        let count = u32::try_from(part.len).expect("a part is at most a request long");
        let arguments = |call: &mut super::xdr::Encoder| {
            call.opaque(&handle.0).u64(at).u32(count);
        };
        self.session.client.submit(proto::READ, arguments, None, tag, answers);
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let client = &self.session.client;
        let size = usize::try_from(client.read_bytes).expect("u32 fits usize on every target");
        let (sender, answers) = channel();
        let mut parts: HashMap<u64, Part> = HashMap::new();
        let (mut asked, mut next_tag) = (0, 0_u64);
        let mut patience = Patience::default();
        let first_lookups = self.handle().1;
        loop {
            while asked < buffer.len() && parts.len() < client.reads_in_flight {
                let len = size.min(buffer.len() - asked);
                let mut part = Part { start: asked, len, lookups: 0 };
                self.request(&mut part, offset, next_tag, &sender);
                parts.insert(next_tag, part);
                asked += part.len;
                next_tag += 1;
            }
            if parts.is_empty() {
                return Ok(());
            }
            let answer = answers.recv().expect("this function holds a sender");
            let Some(mut part) = parts.remove(&answer.tag) else { continue };
            let limit = u32::try_from(part.len).expect("a part is at most a request long");
            let outcome = client
                .results(self.place(), &answer, |decoder| proto::read_data(decoder, limit))?;
            match outcome {
                Ok(got) => {
                    client.calm(&mut patience);
                    let then = &self.opened.attributes;
                    if got
                        .attributes
                        .is_some_and(|now| now.id != then.id || now.len_bytes < then.len_bytes)
                    {
                        return Err(self.replaced());
                    }
                    buffer[part.start..part.start + got.data.len()].copy_from_slice(got.data);
                    if got.data.len() == part.len {
                        continue;
                    }
                    if got.data.is_empty() {
                        return Err(self.replaced());
                    }
                    part.start += got.data.len();
                    part.len -= got.data.len();
                }
                Err(Status::Jukebox) => client.wait(self.place(), &mut patience)?,
                Err(status)
                    if status.is_stale()
                        && part.lookups.wrapping_sub(first_lookups) < MAX_LOOKUPS =>
                {
                    self.look_up_again(part.lookups)?;
                }
                Err(status) if status.is_stale() => return Err(self.replaced()),
                Err(status) => return Err(client.refused(self.place(), status)),
            }
            self.request(&mut part, offset, answer.tag, &sender);
            parts.insert(answer.tag, part);
        }
    }
}

impl ReadAt for NfsImage {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let len_bytes = self.opened.attributes.len_bytes;
        let len = u64::try_from(buffer.len()).expect("a buffer's length fits 64 bits");
        let wanted = offset.checked_add(len).filter(|&end| end <= len_bytes);
        if wanted.is_none() {
            let (url, wanted) = (self.url.to_string(), offset.saturating_add(len));
            return Err(StoreError::PastEnd { url, len_bytes, wanted }.into());
        }
        Ok(self.read(buffer, offset)?)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.opened.attributes.len_bytes)
    }
}

impl ImageFile for NfsImage {
    fn len_bytes(&self) -> u64 {
        self.opened.attributes.len_bytes
    }
}
