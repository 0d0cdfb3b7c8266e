//! A folder of an NFS share, and what is done to the names in it.
//!
//! Operations that change names may be carried out although their answer is lost; each of them recognises its own work when it
//! was sent again. A folder handle that the server no longer knows is looked up anew, once per operation.

use std::sync::{Arc, Mutex, PoisonError};

use super::super::watch::Watch;
use super::super::{NfsUrl, Options, Result, StoreError};
use super::client::{Client, Place};
use super::mount::{Mounted, mount};
use super::proto::{self, Attributes, CreateHow, FileKind, Handle, Outcome, Status};
use super::rpc::Procedure;
use super::xdr::{Decoder, Encoder, XdrError};

/// The most entries of a folder that are listed.
const MAX_ENTRIES: usize = 100_000;
const FOLDER_PAGE_BYTES: u32 = 64 << 10;

/// An open folder.
pub(super) struct Session {
    pub(super) client: Client,
    folder: NfsUrl,
    handle: Mutex<Handle>,
    options: Options,
}

/// A file of the folder.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) handle: Handle,
    pub(super) attributes: Attributes,
}

/// The patience with a folder's server.
fn watch_of(folder: &NfsUrl, options: &Options) -> Watch {
    Watch::new(format!("nfs server {}", folder.server()), options)
}

impl Session {
    /// Mounts the folder of this URL.
    pub(super) fn open(folder: NfsUrl, options: &Options) -> Result<Self> {
        let watch = Arc::new(watch_of(&folder, options));
        let Mounted { address, root, below } = mount(&folder, options, &watch)?;
        let client = Client::start(&folder, address, &root, options, watch)?;
        let session =
            Self { client, handle: Mutex::new(root.clone()), folder, options: options.clone() };
        session.set_handle(session.walk(root, &below)?);
        Ok(session)
    }

    fn walk(&self, root: Handle, below: &[String]) -> Result<Handle> {
        let place = Place { doing: "opening", url: &self.folder };
        below.iter().try_fold(root, |folder, name| {
            let found = self.client.call(
                place,
                proto::LOOKUP,
                |call| proto::put_name(call, &folder, name),
                proto::read_lookup,
            )?;
            found.0.map(|(handle, _)| handle).map_err(|status| self.client.refused(place, status))
        })
    }

    fn handle(&self) -> Handle {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_handle(&self, handle: Handle) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }

    /// A call with the folder's handle.
    fn call<T>(
        &self,
        place: Place<'_>,
        procedure: Procedure,
        arguments: impl Fn(&mut Encoder, &Handle),
        read: impl Fn(&mut Decoder<'_>) -> Result<T, XdrError>,
    ) -> Result<(Outcome<T>, bool)> {
        let folder = self.handle();
        let first = self.client.call(place, procedure, |call| arguments(call, &folder), &read)?;
        if !matches!(first.0, Err(status) if status.is_stale()) {
            return Ok(first);
        }
        let watch = watch_of(&self.folder, &self.options);
        let Mounted { root, below, .. } = mount(&self.folder, &self.options, &watch)?;
        let folder = self.walk(root, &below)?;
        self.set_handle(folder.clone());
        self.client.call(place, procedure, |call| arguments(call, &folder), &read)
    }

    pub(super) fn attributes(
        &self,
        place: Place<'_>,
        file: &Handle,
    ) -> Result<Outcome<Attributes>> {
        let arguments = |call: &mut Encoder| {
            call.opaque(&file.0);
        };
        Ok(self.client.call(place, proto::GETATTR, arguments, Attributes::read)?.0)
    }

    /// How much room there is.
    pub(super) fn space(&self, place: Place<'_>) -> Result<proto::FsStat> {
        let arguments = |call: &mut Encoder, folder: &Handle| {
            call.opaque(&folder.0);
        };
        let space = self.call(place, proto::FSSTAT, arguments, proto::read_fsstat)?.0;
        space.map_err(|status| self.client.refused(place, status))
    }

    /// Looks a name up; `None`: it is not there.
    pub(super) fn find(&self, place: Place<'_>, name: &str) -> Result<Option<Found>> {
        let arguments = |call: &mut Encoder, folder: &Handle| proto::put_name(call, folder, name);
        let found = self.call(place, proto::LOOKUP, arguments, proto::read_lookup)?.0;
        let (handle, attributes) = match found {
            Ok(found) => found,
            Err(Status::NoEnt) => return Ok(None),
            Err(status) => return Err(self.client.refused(place, status)),
        };
        if let Some(attributes) = attributes {
            return Ok(Some(Found { handle, attributes }));
        }
        match self.attributes(place, &handle)? {
            Ok(attributes) => Ok(Some(Found { handle, attributes })),
            Err(status) if status == Status::NoEnt || status.is_stale() => Ok(None),
            Err(status) => Err(self.client.refused(place, status)),
        }
    }

    /// The same, for a regular file that has to be there.
    pub(super) fn find_file(&self, place: Place<'_>, name: &str) -> Result<Found> {
        let url = || place.url.to_string();
        let found = self.find(place, name)?.ok_or_else(|| StoreError::NotFound { url: url() })?;
        let is = match found.attributes.kind {
            FileKind::Regular => return Ok(found),
            FileKind::Folder => return Err(StoreError::Folder { url: url() }),
            FileKind::Link => "a symbolic link; give the name of the file itself",
            FileKind::Special => "not a regular file",
        };
        Err(StoreError::Denied { doing: place.doing, url: url(), reason: format!("it is {is}") })
    }

    /// Creates a file that is not there; a repetition with the same verifier succeeds.
    pub(super) fn create(&self, place: Place<'_>, name: &str, verifier: [u8; 8]) -> Result<Found> {
        let create = |how| {
            let arguments = move |call: &mut Encoder, folder: &Handle| {
                proto::put_create(call, folder, name, how)
            };
            self.call(place, proto::CREATE, arguments, proto::read_create)
        };
        let (created, exclusive) = match create(CreateHow::Exclusive(verifier))? {
            (Err(Status::NotSupp | Status::Inval), _) => {
                let (created, resent) = create(CreateHow::Guarded)?;
                // Its first sending may have made the file: nobody else makes an empty one of this name just now.
                let own = resent
                    && created == Err(Status::Exist)
                    && self.find(place, name)?.is_some_and(|found| found.attributes.len_bytes == 0);
                (if own { Ok(None) } else { created }, false)
            }
            (created, _) => (created, true),
        };
        let handle = created.map_err(|status| self.client.refused(place, status))?;
        let found = match handle {
            Some(handle) => {
                let attributes = self.attributes(place, &handle)?;
                let attributes = attributes.map_err(|status| self.client.refused(place, status))?;
                Found { handle, attributes }
            }
            None => self.find_file(place, name)?,
        };
        if exclusive {
            // An exclusive create sets no mode, and leaves its verifier in the times.
            let arguments = |call: &mut Encoder| proto::put_settle(call, &found.handle);
            let settled = self.client.call(place, proto::SETATTR, arguments, |_| Ok(()))?.0;
            settled.map_err(|status| self.client.refused(place, status))?;
        }
        Ok(found)
    }

    /// Removes a name; that it is not there (any more) is fine.
    pub(super) fn remove(&self, place: Place<'_>, name: &str) -> Result<bool> {
        let arguments = |call: &mut Encoder, folder: &Handle| proto::put_name(call, folder, name);
        match self.call(place, proto::REMOVE, arguments, |_| Ok(()))? {
            (Ok(()), _) | (Err(Status::NoEnt), true) => Ok(true),
            (Err(Status::NoEnt), false) => Ok(false),
            (Err(status), _) => Err(self.client.refused(place, status)),
        }
    }

    /// Gives a file a second name; fails if that is taken.
    pub(super) fn link(&self, place: Place<'_>, file: &Handle, name: &str) -> Result<Outcome<()>> {
        let arguments = |call: &mut Encoder, folder: &Handle| {
            call.opaque(&file.0);
            proto::put_name(call, folder, name);
        };
        Ok(self.call(place, proto::LINK, arguments, |_| Ok(()))?.0)
    }

    /// Renames within the folder, over whatever has the new name.
    pub(super) fn rename(&self, place: Place<'_>, from: &str, to: &str) -> Result<Outcome<()>> {
        let arguments = |call: &mut Encoder, folder: &Handle| {
            proto::put_name(call, folder, from);
            proto::put_name(call, folder, to);
        };
        Ok(self.call(place, proto::RENAME, arguments, |_| Ok(()))?.0)
    }

    /// The folder's regular files with their lengths.
    pub(super) fn list(&self) -> Result<Vec<(String, u64)>> {
        let place = Place { doing: "listing", url: &self.folder };
        let (mut files, mut cookie, mut verifier) = (Vec::new(), 0_u64, [0; 8]);
        // Of everything in the folder: a server may go round in circles with names that are no files.
        let mut seen = 0;
        loop {
            let arguments = |call: &mut Encoder, folder: &Handle| {
                call.opaque(&folder.0).u64(cookie).fixed(&verifier);
                call.u32(FOLDER_PAGE_BYTES / 4).u32(FOLDER_PAGE_BYTES);
            };
            let page = self.call(place, proto::READDIRPLUS, arguments, proto::read_folder)?.0;
            let page = page.map_err(|status| self.client.refused(place, status))?;
            seen += page.entries.len();
            for entry in page.entries {
                let name = String::from_utf8_lossy(&entry.name).into_owned();
                let attributes = match entry.attributes {
                    Some(attributes) => Some(attributes),
                    None if name == "." || name == ".." => None,
                    None => self.find(place, &name)?.map(|found| found.attributes),
                };
                if let Some(attributes) = attributes.filter(|a| a.kind == FileKind::Regular) {
                    files.push((name, attributes.len_bytes));
                }
            }
            let protocol = |reason: &str| StoreError::Protocol {
                doing: "listing",
                url: self.folder.to_string(),
                reason: reason.to_owned(),
            };
            match page.last_cookie {
                _ if page.end => return Ok(files),
                Some(last) if last != cookie => cookie = last,
                _ => return Err(protocol("a page of the folder is empty, and it is not the last")),
            }
            if seen > MAX_ENTRIES {
                return Err(protocol("the folder has too many files"));
            }
            verifier = page.verifier;
        }
    }
}
