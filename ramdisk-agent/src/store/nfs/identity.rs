//! Which file is ours.
//!
//! A file number tells one file from another only while both exist: filesystems give the number of a removed file to the next one, and
//! the next one may be what another writer of the same name has begun. A handle tells them apart for good, but a server may have
//! another one for the same file after a restart. Then what is in the file decides: an image begins with an identity of its own, so that the
//! first bytes of two images differ; and a file that has nothing of ours yet must be as untouched as we made it.

use super::super::{Result, StoreError};
use super::client::Place;
use super::proto::{self, Attributes, Handle, Status};
use super::session::{Found, Session};
use super::xdr::Encoder;

/// How much of the front is compared, and how much of that says which image it is: its opening frame has the image's identity in
/// bytes 40 to 55 (docs/image-format.md).
const HEAD_BYTES: usize = 4096;
const MARK_BYTES: usize = 56;

/// A file that we write, or go on with.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// Its handle as of now.
    pub(super) handle: Handle,
    /// As it was found.
    attributes: Attributes,
    /// What we wrote there first, or found there.
    head: Vec<u8>,
}

impl Identity {
    /// A file that we have just made.
    pub(super) fn new(found: Found) -> Self {
        Self { handle: found.handle, attributes: found.attributes, head: Vec::new() }
    }

    /// A file that is there, with what it begins with.
    pub(super) fn of(session: &Session, place: Place<'_>, found: &Found) -> Result<Self> {
        let head = front(session, place, found, HEAD_BYTES)?.ok_or_else(|| {
            let url = place.url.to_string();
            StoreError::Replaced { url }
        })?;
        Ok(Self { head, ..Self::new(found.clone()) })
    }

    /// These bytes go behind all others.
    pub(super) fn appends(&mut self, data: &[u8]) {
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// The file has no more than so many bytes now.
    pub(super) fn cut_off(&mut self, len_bytes: u64) {
        self.head.truncate(usize::try_from(len_bytes).unwrap_or(usize::MAX));
    }

    /// Whether somebody has written to the file since it was found.
    pub(super) fn has_changed(&self, now: &Found) -> bool {
        let was = &self.attributes;
        now.attributes.len_bytes != was.len_bytes || now.attributes.modified > was.modified
    }

    /// Whether that is our file, of which so many bytes are durable.
    pub(super) fn is(
        &self,
        session: &Session,
        place: Place<'_>,
        found: &Found,
        durable_bytes: u64,
    ) -> Result<bool> {
        if found.attributes.id != self.attributes.id {
            return Ok(false);
        }
        if found.handle == self.handle {
            return Ok(true);
        }
        let Some(there) = front(session, place, found, self.head.len())? else { return Ok(false) };
        let durable = usize::try_from(durable_bytes).unwrap_or(usize::MAX).min(self.head.len());
        let has_mark = there.len() >= MARK_BYTES && there.iter().any(|byte| *byte != 0);
        if has_mark {
            return Ok(there.len() >= durable && self.head.starts_with(&there));
        }
        // Nothing of ours, or what we wrote behind the front: then nobody may have written to it since it was made.
        Ok(durable == 0 && found.attributes.modified == self.attributes.modified)
    }
}

/// The first bytes of a file, as many as it has; `None` if it is gone.
fn front(
    session: &Session,
    place: Place<'_>,
    found: &Found,
    len: usize,
) -> Result<Option<Vec<u8>>> {
    let limit = u32::try_from(len.min(HEAD_BYTES)).expect("a few kilobytes");
    let arguments = |call: &mut Encoder| {
        call.opaque(&found.handle.0).u64(0).u32(limit);
    };
    let read = session.client.call(place, proto::READ, arguments, |decoder| {
        proto::read_data(decoder, limit).map(|got| got.data.to_vec())
    });
    match read?.0 {
        Ok(bytes) => Ok(Some(bytes)),
        Err(status) if status == Status::NoEnt || status.is_stale() => Ok(None),
        Err(status) => Err(session.client.refused(place, status)),
    }
}
