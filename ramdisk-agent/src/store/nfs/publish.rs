//! Giving a finished image its name on an NFS share, never over another one.
//!
//! NFSv3 has no rename that spares its target. LINK fails by itself when the name is taken, so it comes first, then the partial
//! name is removed; where the server has no hard links, the name is looked up and the file renamed. The answer to either may
//! be lost: a name that has our file is our own work.

use super::super::{Result, StoreError};
use super::client::Place;
use super::proto::Status;
use super::session::{Found, Session};
use super::writer::partial_url;

/// Renames `partial` to `name`, if that is the file that `is_ours` says.
pub(super) fn publish(
    session: &Session,
    place: Place<'_>,
    partial: &str,
    name: &str,
    is_ours: &dyn Fn(&Found) -> Result<bool>,
) -> Result<()> {
    let ours = |name: &str| -> Result<Option<bool>> {
        session.find(place, name)?.map(|found| is_ours(&found)).transpose()
    };
    let exists = || StoreError::Exists { url: place.url.to_string() };
    let lost = || StoreError::Lost { url: partial_url(place.url).to_string() };

    let file = match session.find(place, partial)? {
        Some(found) if is_ours(&found)? => found,
        _ => return Err(lost()),
    };
    match session.link(place, &file.handle, name)? {
        Ok(()) => {}
        Err(Status::Exist) if ours(name)? == Some(true) => {}
        Err(Status::Exist) => return Err(exists()),
        Err(
            Status::NotSupp
            | Status::Perm
            | Status::Acces
            | Status::Inval
            | Status::ServerFault
            | Status::Other(_),
        ) => return rename(session, place, partial, name, &ours),
        Err(status) => return Err(session.client.refused(place, status)),
    }
    session.remove(place, partial)?;
    Ok(())
}

fn rename(
    session: &Session,
    place: Place<'_>,
    partial: &str,
    name: &str,
    ours: &dyn Fn(&str) -> Result<Option<bool>>,
) -> Result<()> {
    if ours(name)?.is_some() {
        return Err(StoreError::Exists { url: place.url.to_string() });
    }
    match session.rename(place, partial, name)? {
        Ok(()) => Ok(()),
        // Carried out before, its answer lost.
        Err(Status::NoEnt) if ours(name)? == Some(true) => Ok(()),
        Err(Status::NoEnt) => Err(StoreError::Lost { url: partial_url(place.url).to_string() }),
        Err(status) => Err(session.client.refused(place, status)),
    }
}
