//! Files of a share by handle: open, tell one from another, rename, remove, list.
//!
//! Each is one step on one session; [`Share::until_done`] repeats them. A step whose session ended may have been carried out: the
//! callers know what that would look like.

use super::super::{PARTIAL_SUFFIX, Result, SmbUrl, StoreError};
use super::frame::Reply;
use super::header::Command;
use super::link::{Link, Request};
use super::messages::{self, DELETE, Disposition, FileId, FileInfo, Kind, READ_ATTRIBUTES, Space};
use super::messages::{READ_DATA, SHARE_DELETE, SHARE_READ, SHARE_WRITE, WRITE_DATA};
use super::share::{Failure, Place, Share, call};
use super::status::Status;

/// The most entries of a folder that are listed.
const MAX_ENTRIES: usize = 100_000;
const FOLDER_PAGE_BYTES: u32 = 64 << 10;
/// A file's first bytes, by which it is known again.
pub(super) const HEAD_BYTES: usize = 512;

/// How a file is opened, and what others may do meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    access: u32,
    share: u32,
    disposition: Disposition,
    kind: Kind,
}

impl How {
    /// A writer makes its file: others may look at it, but neither write nor remove it.
    pub(super) const CREATE: Self = Self {
        access: READ_DATA | WRITE_DATA | READ_ATTRIBUTES,
        share: SHARE_READ,
        disposition: Disposition::Create,
        kind: Kind::File,
    };
    /// A writer opens its file again.
    pub(super) const WRITE: Self = Self { disposition: Disposition::Open, ..Self::CREATE };
    /// To give a file a name or remove it, while others may read it.
    pub(super) const OWN: Self = Self {
        access: READ_DATA | WRITE_DATA | READ_ATTRIBUTES | DELETE,
        share: SHARE_READ,
        disposition: Disposition::Open,
        kind: Kind::File,
    };
    /// To remove a file that nobody uses.
    pub(super) const REMOVE: Self =
        Self { access: READ_ATTRIBUTES | DELETE, share: 0, ..Self::WRITE };
    /// A finished image: nobody may change it while it is read.
    pub(super) const READ: Self =
        Self { access: READ_DATA | READ_ATTRIBUTES, share: SHARE_READ, ..Self::WRITE };
    /// One that is still being written, by ourselves.
    pub(super) const READ_PARTIAL: Self =
        Self { share: SHARE_READ | SHARE_WRITE | SHARE_DELETE, ..Self::READ };
    /// To see whether a name is there, whatever it is.
    pub(super) const LOOK: Self = Self { access: READ_ATTRIBUTES, ..Self::READ_PARTIAL };
    const LIST: Self = Self { kind: Kind::Folder, ..Self::READ_PARTIAL };
    /// To ask about a folder, which need not be one that we may list.
    const ASK: Self = Self { kind: Kind::Folder, ..Self::LOOK };
}

/// An open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) id: FileId,
    /// The file's number on the server.
    pub(super) number: u64,
    pub(super) len_bytes: u64,
}

/// The path of a URL as it stands in a CREATE: below the share, with backslashes.
pub(super) fn wire_path(url: &SmbUrl) -> String {
    url.below_share().replace('/', "\\")
}

/// The URL of what a writer writes.
pub(super) fn partial_of(url: &SmbUrl) -> SmbUrl {
    SmbUrl { path: format!("{}{PARTIAL_SUFFIX}", url.path), ..url.clone() }
}

fn simple(link: &Link, command: Command, body: Vec<u8>) -> Result<Reply, Failure> {
    call(link, Request { command, body, payload: None, data_bytes: 0 })
}

pub(super) fn open(link: &Link, url: &SmbUrl, how: How) -> Result<Opened, Failure> {
    let body = messages::create(&wire_path(url), how.access, how.share, how.disposition, how.kind);
    let reply = simple(link, Command::Create, body)?;
    let id = messages::read_create(reply.message())?.id;
    match identify(link, id) {
        Ok((number, len_bytes)) => Ok(Opened { id, number, len_bytes }),
        Err(failure) => {
            // The first failure is the one to tell.
            let _ = close(link, id);
            Err(failure)
        }
    }
}

fn identify(link: &Link, id: FileId) -> Result<(u64, u64), Failure> {
    let ask = |class| simple(link, Command::QueryInfo, messages::query_info(id, class));
    let (len_bytes, _) = messages::read_standard(ask(FileInfo::Standard)?.message())?;
    Ok((messages::read_internal(ask(FileInfo::Internal)?.message())?, len_bytes))
}

pub(super) fn close(link: &Link, id: FileId) -> Result<(), Failure> {
    simple(link, Command::Close, messages::close(id)).map(drop)
}

pub(super) fn flush(link: &Link, id: FileId) -> Result<(), Failure> {
    simple(link, Command::Flush, messages::flush(id)).map(drop)
}

/// Removes an open file, which goes when it is closed here.
pub(super) fn remove(link: &Link, id: FileId) -> Result<(), Failure> {
    let removed = simple(link, Command::SetInfo, messages::delete(id)).map(drop);
    let closed = close(link, id);
    removed.and(closed)
}

/// Gives an open file another name in its share.
pub(super) fn rename(link: &Link, id: FileId, to: &SmbUrl) -> Result<(), Failure> {
    simple(link, Command::SetInfo, messages::rename(id, &wire_path(to))).map(drop)
}

/// Makes an open file so long.
pub(super) fn set_len(link: &Link, id: FileId, len_bytes: u64) -> Result<(), Failure> {
    simple(link, Command::SetInfo, messages::end_of_file(id, len_bytes)).map(drop)
}

/// Whether a file begins with these bytes.
pub(super) fn begins_with(link: &Link, id: FileId, head: &[u8]) -> Result<bool, Failure> {
    match begin(link, id, head.len()) {
        Ok(found) => Ok(found == head),
        Err(Failure::Status(Status::END_OF_FILE)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// The first bytes of an open file.
fn begin(link: &Link, id: FileId, len: usize) -> Result<Vec<u8>, Failure> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let len = u32::try_from(len).expect("a head is short");
    let reply = simple(link, Command::Read, messages::read(id, 0, len))?;
    Ok(messages::read_data(reply.message(), len)?.to_vec())
}

/// What an open file is known by: its first bytes, as many as it has.
pub(super) fn head(link: &Link, opened: &Opened) -> Result<Vec<u8>, Failure> {
    begin(link, opened.id, usize::try_from(opened.len_bytes).unwrap_or(HEAD_BYTES).min(HEAD_BYTES))
}

/// Whether the name is taken.
pub(super) fn exists(link: &Link, url: &SmbUrl) -> Result<bool, Failure> {
    match open(link, url, How::LOOK) {
        Ok(found) => close(link, found.id).map(|()| true),
        Err(Failure::Status(status)) if status.is_not_found() => Ok(false),
        // Something is there, whatever it is.
        Err(Failure::Status(
            Status::FILE_IS_A_DIRECTORY | Status::SHARING_VIOLATION | Status::DELETE_PENDING,
        )) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// Removes an image that nobody uses.
pub(super) fn remove_image(share: &Share, url: &SmbUrl) -> Result<()> {
    let place = Place { doing: "removing", url };
    share.until_done(place, |link, lost| match open(link, url, How::REMOVE) {
        Ok(found) => remove(link, found.id),
        // An earlier session has done it.
        Err(Failure::Status(status)) if status.is_not_found() && lost => Ok(()),
        Err(failure) => Err(failure),
    })
}

fn open_folder(link: &Link, folder: &SmbUrl, how: How) -> Result<FileId, Failure> {
    let How { access, share, disposition, kind } = how;
    let body = messages::create(&wire_path(folder), access, share, disposition, kind);
    Ok(messages::read_create(simple(link, Command::Create, body)?.message())?.id)
}

/// How much room there is in a folder, if the server tells.
pub(super) fn space(share: &Share, folder: &SmbUrl) -> Result<Option<Space>> {
    let place = Place { doing: "opening", url: folder };
    share.until_done(place, |link, _| {
        let id = open_folder(link, folder, How::ASK)?;
        let space = match simple(link, Command::QueryInfo, messages::query_space(id)) {
            Ok(reply) => Some(messages::read_space(reply.message())?),
            Err(Failure::Status(status)) if !status.is_session_lost() && !status.is_passing() => {
                None
            }
            Err(failure) => return Err(failure),
        };
        close(link, id)?;
        Ok(space)
    })
}

/// A folder's regular files with their lengths.
pub(super) fn list(share: &Share, folder: &SmbUrl) -> Result<Vec<(String, u64)>> {
    let place = Place { doing: "listing", url: folder };
    share.until_done(place, |link, _| {
        let id = open_folder(link, folder, How::LIST)?;
        // Of everything in the folder: a server may go round in circles with names that are no files.
        let (mut files, mut seen) = (Vec::new(), 0);
        loop {
            let body = messages::query_directory(id, FOLDER_PAGE_BYTES);
            let data_bytes = usize::try_from(FOLDER_PAGE_BYTES).expect("64 KiB");
            let request =
                Request { command: Command::QueryDirectory, body, payload: None, data_bytes };
            let page = match call(link, request) {
                Ok(page) => messages::read_directory(page.message())?,
                Err(Failure::Status(Status::NO_MORE_FILES | Status::NO_SUCH_FILE)) => break,
                Err(failure) => return Err(failure),
            };
            seen += page.len();
            if page.is_empty() || seen > MAX_ENTRIES {
                return Err(Failure::Store(StoreError::Protocol {
                    doing: "listing",
                    url: folder.to_string(),
                    reason: "the folder does not end".to_owned(),
                }));
            }
            files.extend(page.into_iter().filter(|e| e.is_file).map(|e| (e.name, e.len_bytes)));
        }
        close(link, id)?;
        Ok(files)
    })
}
