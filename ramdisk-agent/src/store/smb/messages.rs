//! Bodies of the requests that files need, and their replies (MS-SMB2, section 2.2; MS-FSCC, section 2.4).
//!
//! Replies are read from the whole message, as their offsets count from the header. Every reader is total.

use super::header::HEADER_BYTES;
use super::wire::{Cursor, Put as _, WireError, len16, part, text, utf16};

/// What a handle is called on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(pub(super) [u8; 16]);

// Access masks (MS-SMB2 2.2.13.1).
pub(super) const READ_DATA: u32 = 1;
pub(super) const WRITE_DATA: u32 = 2;
pub(super) const READ_ATTRIBUTES: u32 = 0x80;
pub(super) const DELETE: u32 = 0x1_0000;
pub(super) const SYNCHRONIZE: u32 = 0x10_0000;

/// What others may do while the file is open.
pub(super) const SHARE_READ: u32 = 1;
pub(super) const SHARE_WRITE: u32 = 2;
pub(super) const SHARE_DELETE: u32 = 4;

/// What a CREATE does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Disposition {
    /// Opens what is there.
    Open = 1,
    /// Makes what is not there.
    Create = 2,
}

/// What a CREATE is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Folder = 1,
    File = 0x40,
}

const IMPERSONATION: u32 = 2;
const ATTRIBUTE_NORMAL: u32 = 0x80;
const ATTRIBUTE_DIRECTORY: u32 = 0x10;
const ATTRIBUTE_REPARSE: u32 = 0x400;

pub(super) fn create(
    path: &str,
    access: u32,
    share: u32,
    disposition: Disposition,
    kind: Kind,
) -> Vec<u8> {
    let name = utf16(path);
    let mut out = Vec::with_capacity(64 + name.len());
    // No oplock: nothing is cached here.
    out.u16(57).u8(0).u8(0).u32(IMPERSONATION).u64(0).u64(0);
    out.u32(access | SYNCHRONIZE).u32(if kind == Kind::File { ATTRIBUTE_NORMAL } else { 0 });
    out.u32(share).u32(disposition as u32).u32(kind as u32);
    out.u16(len16(HEADER_BYTES + 56)).u16(len16(name.len())).u32(0).u32(0);
    out.bytes(&name);
    if name.is_empty() {
        // The buffer may not be empty.
        out.u8(0);
    }
    out
}

/// What a CREATE opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Created {
    pub(super) id: FileId,
}

pub(super) fn read_create(message: &[u8]) -> Result<Created, WireError> {
    let mut cursor = body(message)?;
    cursor.structure(89)?.skip(2 + 4 + 4 * 8 + 8 + 8 + 4 + 4)?;
    Ok(Created { id: FileId(cursor.array()?) })
}

pub(super) fn close(id: FileId) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    out.u16(24).u16(0).u32(0).bytes(&id.0);
    out
}

pub(super) fn flush(id: FileId) -> Vec<u8> {
    let mut out = Vec::with_capacity(24);
    out.u16(24).u16(0).u32(0).bytes(&id.0);
    out
}

pub(super) fn read(id: FileId, offset: u64, len: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(49);
    out.u16(49).u8(0).u8(0).u32(len).u64(offset).bytes(&id.0);
    // At least one byte; the data of the reply come right after its fields.
    out.u32(1).u32(0).u32(0).u16(0).u16(0).u8(0);
    out
}

/// The data of a READ, at most `limit` bytes.
pub(super) fn read_data(message: &[u8], limit: u32) -> Result<&[u8], WireError> {
    let mut cursor = body(message)?;
    let offset = cursor.structure(17)?.u8()?;
    let len = cursor.skip(1)?.u32()?;
    if len > limit {
        return Err(WireError::Value { field: "data length", value: len.into() });
    }
    part(message, offset.into(), len)
}

/// A WRITE but for its data, which follow.
pub(super) fn write(id: FileId, offset: u64, len: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    out.u16(49).u16(len16(HEADER_BYTES + 48)).u32(len).u64(offset).bytes(&id.0);
    out.u32(0).u32(0).u16(0).u16(0).u32(0);
    out
}

/// How much a WRITE wrote.
pub(super) fn read_written(message: &[u8]) -> Result<u32, WireError> {
    body(message)?.structure(17)?.skip(2)?.u32()
}

const INFO_FILE: u8 = 1;
const INFO_FILESYSTEM: u8 = 2;
const FULL_SIZE: u8 = 7;

/// What is asked of a file, and said to it.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum FileInfo {
    Standard = 5,
    Internal = 6,
    Rename = 10,
    Disposition = 13,
    EndOfFile = 20,
}

/// The longest answer to a question about a file.
const INFO_BYTES: u32 = 256;

pub(super) fn query_info(id: FileId, class: FileInfo) -> Vec<u8> {
    query(id, INFO_FILE, class as u8)
}

/// How much room there is where an open file is.
pub(super) fn query_space(id: FileId) -> Vec<u8> {
    query(id, INFO_FILESYSTEM, FULL_SIZE)
}

fn query(id: FileId, kind: u8, class: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(41);
    out.u16(41).u8(kind).u8(class).u32(INFO_BYTES);
    out.u16(0).u16(0).u32(0).u32(0).u32(0).bytes(&id.0).u8(0);
    out
}

fn read_info(message: &[u8]) -> Result<Cursor<'_>, WireError> {
    let mut cursor = body(message)?;
    let offset = cursor.structure(9)?.u16()?;
    Ok(Cursor::new(part(message, offset.into(), cursor.u32()?)?))
}

/// `FileStandardInformation`: the length, and whether it is a folder.
pub(super) fn read_standard(message: &[u8]) -> Result<(u64, bool), WireError> {
    let mut info = read_info(message)?;
    let len_bytes = info.skip(8)?.u64()?;
    Ok((len_bytes, info.skip(4 + 1)?.u8()? != 0))
}

/// `FileInternalInformation`: the file's number.
pub(super) fn read_internal(message: &[u8]) -> Result<u64, WireError> {
    read_info(message)?.u64()
}

/// Room in a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) total_bytes: u64,
    /// For us: quotas are taken off.
    pub(super) available_bytes: u64,
}

/// `FileFsFullSizeInformation`.
pub(super) fn read_space(message: &[u8]) -> Result<Space, WireError> {
    let mut info = read_info(message)?;
    let (total, available) = (info.u64()?, info.u64()?);
    let (sectors, sector_bytes) = (info.skip(8)?.u32()?, info.u32()?);
    let unit_bytes = u64::from(sectors) * u64::from(sector_bytes);
    let bytes = |units: u64| {
        units.checked_mul(unit_bytes).ok_or(WireError::Value { field: "size", value: units })
    };
    Ok(Space { total_bytes: bytes(total)?, available_bytes: bytes(available)? })
}

fn set_info(id: FileId, class: FileInfo, info: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + info.len());
    let len = u32::try_from(info.len()).expect("a name and a few fields");
    out.u16(33).u8(INFO_FILE).u8(class as u8).u32(len).u16(len16(HEADER_BYTES + 32)).u16(0).u32(0);
    out.bytes(&id.0).bytes(info);
    out
}

/// Gives a file another name; fails when that is taken.
pub(super) fn rename(id: FileId, path: &str) -> Vec<u8> {
    let name = utf16(path);
    let mut info = Vec::with_capacity(24 + name.len());
    let len = u32::try_from(name.len()).expect("a path is short");
    // Replace nothing.
    info.u64(0).u64(0).u32(len).bytes(&name);
    set_info(id, FileInfo::Rename, &info)
}

/// The file goes when it is closed.
pub(super) fn delete(id: FileId) -> Vec<u8> {
    set_info(id, FileInfo::Disposition, &[1])
}

/// The file has this length from now on.
pub(super) fn end_of_file(id: FileId, len_bytes: u64) -> Vec<u8> {
    set_info(id, FileInfo::EndOfFile, &len_bytes.to_le_bytes())
}

const ID_FULL_DIRECTORY: u8 = 38;

/// A page of a folder.
pub(super) fn query_directory(id: FileId, len: u32) -> Vec<u8> {
    let pattern = utf16("*");
    let mut out = Vec::with_capacity(40);
    out.u16(33).u8(ID_FULL_DIRECTORY).u8(0).u32(0).bytes(&id.0);
    out.u16(len16(HEADER_BYTES + 32)).u16(len16(pattern.len())).u32(len).bytes(&pattern);
    out
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) len_bytes: u64,
    pub(super) is_file: bool,
}

pub(super) fn read_directory(message: &[u8]) -> Result<Vec<Listed>, WireError> {
    let mut cursor = body(message)?;
    let offset = cursor.structure(9)?.u16()?;
    let mut rest = part(message, offset.into(), cursor.u32()?)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let mut entry = Cursor::new(rest);
        let next = entry.u32()?;
        let len_bytes = entry.skip(4 + 4 * 8)?.u64()?;
        let attributes = entry.skip(8)?.u32()?;
        let name_len = entry.u32()?;
        let name = entry
            .skip(4 + 4 + 8)?
            .bytes(usize::try_from(name_len).map_err(|_| WireError::Short)?)?;
        let is_file = attributes & (ATTRIBUTE_DIRECTORY | ATTRIBUTE_REPARSE) == 0;
        entries.push(Listed { name: text(name), len_bytes, is_file });
        if next == 0 {
            break;
        }
        rest =
            usize::try_from(next).ok().and_then(|next| rest.get(next..)).ok_or(WireError::Short)?;
    }
    Ok(entries)
}

/// The share encrypts, whatever the session says.
const SHARE_ENCRYPTS: u32 = 0x8000;
const SHARE_IS_DISK: u8 = 1;

pub(super) fn tree_connect(path: &str) -> Vec<u8> {
    let name = utf16(path);
    let mut out = Vec::with_capacity(8 + name.len());
    out.u16(9).u16(0).u16(len16(HEADER_BYTES + 8)).u16(len16(name.len())).bytes(&name);
    out
}

/// A share that was opened.
pub(super) struct Tree {
    /// It has files; others are pipes and printers.
    pub(super) has_files: bool,
    /// It wants encryption.
    pub(super) encrypts: bool,
}

pub(super) fn read_tree_connect(message: &[u8]) -> Result<Tree, WireError> {
    let mut cursor = body(message)?;
    let has_files = cursor.structure(16)?.u8()? == SHARE_IS_DISK;
    let encrypts = cursor.skip(1)?.u32()? & SHARE_ENCRYPTS != 0;
    Ok(Tree { has_files, encrypts })
}

/// SESSION_SETUP with a token; `previous` is a session of ours that the server is to end.
pub(super) fn session_setup(token: &[u8], security_mode: u16, previous: u64) -> Vec<u8> {
    let mode = u8::try_from(security_mode).expect("two bits");
    let mut out = Vec::with_capacity(24 + token.len());
    out.u16(25).u8(0).u8(mode).u32(0).u32(0);
    out.u16(len16(HEADER_BYTES + 24)).u16(len16(token.len())).u64(previous).bytes(token);
    out
}

const SESSION_IS_GUEST: u16 = 1;
const SESSION_IS_NULL: u16 = 2;
const SESSION_ENCRYPTS: u16 = 4;

/// What a SESSION_SETUP said.
#[derive(Debug, Clone, Copy)]
pub(super) struct SessionSetup<'a> {
    pub(super) token: &'a [u8],
    /// A guest's session, or nobody's: without a key.
    pub(super) is_guest: bool,
    pub(super) encrypts: bool,
}

pub(super) fn read_session_setup(message: &[u8]) -> Result<SessionSetup<'_>, WireError> {
    let mut cursor = body(message)?;
    let flags = cursor.structure(9)?.u16()?;
    let (offset, len) = (cursor.u16()?, cursor.u16()?);
    let token = part(message, offset.into(), len.into())?;
    let is_guest = flags & (SESSION_IS_GUEST | SESSION_IS_NULL) != 0;
    Ok(SessionSetup { token, is_guest, encrypts: flags & SESSION_ENCRYPTS != 0 })
}

const VALIDATE_NEGOTIATE: u32 = 0x0014_0204;

/// FSCTL_VALIDATE_NEGOTIATE_INFO: what the NEGOTIATE said, once more and signed.
pub(super) fn validate_negotiate(info: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(56 + info.len());
    let (offset, len) = (u32::from(len16(HEADER_BYTES + 56)), u32::from(len16(info.len())));
    out.u16(57).u16(0).u32(VALIDATE_NEGOTIATE).bytes(&[0xff; 16]);
    out.u32(offset).u32(len).u32(0).u32(0).u32(0).u32(24).u32(1).u32(0).bytes(info);
    out
}

/// Capabilities, number of the server, security mode and dialect.
pub(super) fn read_validated(message: &[u8]) -> Result<(u32, [u8; 16], u16, u16), WireError> {
    let mut cursor = body(message)?;
    cursor.structure(49)?.skip(2 + 4 + 16 + 4 + 4)?;
    let (offset, len) = (cursor.u32()?, cursor.u32()?);
    let mut info = Cursor::new(part(message, offset, len)?);
    Ok((info.u32()?, info.array()?, info.u16()?, info.u16()?))
}

/// ECHO: nothing to say.
pub(super) fn nothing() -> Vec<u8> {
    vec![4, 0, 0, 0]
}

fn body(message: &[u8]) -> Result<Cursor<'_>, WireError> {
    let mut cursor = Cursor::new(message);
    cursor.skip(HEADER_BYTES)?;
    Ok(cursor)
}
