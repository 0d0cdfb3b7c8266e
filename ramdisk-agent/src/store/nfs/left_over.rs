//! Going on with a partial file that a writer has left on an NFS share.
//!
//! Whoever wrote it may have had its last data acknowledged and not committed, and a server may have forgotten those since. So all of it is
//! committed before anything is read: what the caller then finds is what stays. NFSv3 has no locks here: another agent of this
//! machine is known by its [`Claim`], and one elsewhere shows when the file changes while it is looked at. One that was silent all the time is
//! told apart by what the file then holds, as in [`writer`](super::writer).

use std::sync::Arc;

use super::super::claim::Claim;
use super::super::{
    ImageFile, LeftOver, NfsUrl, Options, PARTIAL_SUFFIX, Result, StoreError, StoreUrl, StoreWriter,
};
use super::client::Place;
use super::identity::Identity;
use super::proto::{self, FileKind};
use super::reader::NfsImage;
use super::session::Session;
use super::writer::{NfsWriter, partial_url};
use super::xdr::Encoder;

/// What a writer of the image `name` in the session's folder has left behind.
pub(super) fn find(
    session: Session,
    url: &NfsUrl,
    name: &str,
    options: &Options,
) -> Result<Option<Box<dyn LeftOver>>> {
    if session.find(Place { doing: "opening", url }, name)?.is_some() {
        return Err(StoreError::Exists { url: url.to_string() });
    }
    let partial_url = partial_url(url);
    let partial = format!("{name}{PARTIAL_SUFFIX}");
    let place = Place { doing: "opening", url: &partial_url };
    let claim = Claim::of(&StoreUrl::Nfs(partial_url.clone()))?;
    let Some(found) = session.find(place, &partial)? else {
        return Ok(None);
    };
    if found.attributes.kind != FileKind::Regular {
        return Err(StoreError::Exists { url: partial_url.to_string() });
    }
    // From 0, of any length: everything (RFC 1813, 3.3.21).
    let arguments = |call: &mut Encoder| {
        call.opaque(&found.handle.0).u64(0).u32(0);
    };
    let committed = session.client.call(place, proto::COMMIT, arguments, proto::read_committed)?.0;
    committed.map_err(|status| session.client.refused(place, status))?;
    // As it is now that everything of it is durable.
    let found = session.find_file(place, &partial)?;
    let ours = Identity::of(&session, place, &found)?;
    Ok(Some(Box::new(NfsLeftOver {
        session,
        url: url.clone(),
        partial_url,
        name: name.to_owned(),
        ours,
        claim,
        options: options.clone(),
    })))
}

struct NfsLeftOver {
    session: Session,
    url: NfsUrl,
    partial_url: NfsUrl,
    name: String,
    ours: Identity,
    claim: Claim,
    options: Options,
}

impl LeftOver for NfsLeftOver {
    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        let place = Place { doing: "reading", url: &self.partial_url };
        let session = Session::open(super::folder_of(&self.partial_url)?.0, &self.options)?;
        let partial = format!("{}{PARTIAL_SUFFIX}", self.name);
        let found = session.find_file(place, &partial)?;
        if !self.ours.is(&session, place, &found, found.attributes.len_bytes)? {
            return Err(StoreError::Replaced { url: self.partial_url.to_string() });
        }
        Ok(Box::new(NfsImage::new(Arc::new(session), self.partial_url.clone(), partial, found)))
    }

    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>> {
        let Self { session, url, partial_url, name, mut ours, claim, options } = *self;
        let place = Place { doing: "cutting off", url: &partial_url };
        let partial = format!("{name}{PARTIAL_SUFFIX}");
        // Looked up anew: reading it may have taken hours.
        let now = session.find_file(place, &partial)?;
        let is_ours = ours.is(&session, place, &now, len_bytes)?;
        if !is_ours || now.attributes.len_bytes < len_bytes {
            return Err(StoreError::Replaced { url: partial_url.to_string() });
        }
        // Whoever began it is still at it.
        if ours.has_changed(&now) {
            return Err(StoreError::Busy { url: partial_url.to_string() });
        }
        let arguments = |call: &mut Encoder| proto::put_len(call, &now.handle, len_bytes);
        let cut = session.client.call(place, proto::SETATTR, arguments, |_| Ok(()))?.0;
        cut.map_err(|status| session.client.refused(place, status))?;
        ours.handle = now.handle;
        ours.cut_off(len_bytes);
        Ok(Box::new(NfsWriter::behind(session, &url, &name, ours, claim, len_bytes, &options)))
    }
}
