//! NFS version 3 (RFC 1813): the procedures, statuses and results that a store needs.
//!
//! Arguments are written and results read with the codec of [`super::xdr`]; the names are the RFC's.

use super::super::window::Written;
use super::rpc::Procedure;
use super::xdr::{Decoder, Encoder, XdrError};

/// The longest file handle.
const MAX_HANDLE_BYTES: u32 = 64;
/// The longest name in a folder that is accepted.
const MAX_NAME_BYTES: u32 = 1024;

const fn nfs(number: u32) -> Procedure {
    Procedure { program: 100_003, version: 3, number }
}

pub(super) const GETATTR: Procedure = nfs(1);
pub(super) const SETATTR: Procedure = nfs(2);
pub(super) const LOOKUP: Procedure = nfs(3);
pub(super) const READ: Procedure = nfs(6);
pub(super) const WRITE: Procedure = nfs(7);
pub(super) const CREATE: Procedure = nfs(8);
pub(super) const REMOVE: Procedure = nfs(12);
pub(super) const RENAME: Procedure = nfs(14);
pub(super) const LINK: Procedure = nfs(15);
pub(super) const READDIRPLUS: Procedure = nfs(17);
pub(super) const FSSTAT: Procedure = nfs(18);
pub(super) const FSINFO: Procedure = nfs(19);
pub(super) const COMMIT: Procedure = nfs(21);

/// `nfsstat3` other than OK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Perm,
    NoEnt,
    Io,
    Acces,
    Exist,
    NotDir,
    Inval,
    NoSpc,
    Rofs,
    NameTooLong,
    DQuot,
    Stale,
    BadHandle,
    NotSupp,
    ServerFault,
    Jukebox,
    Other(u32),
}

impl Status {
    fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::Perm,
            2 => Self::NoEnt,
            5 => Self::Io,
            13 => Self::Acces,
            17 => Self::Exist,
            20 => Self::NotDir,
            22 => Self::Inval,
            28 => Self::NoSpc,
            30 => Self::Rofs,
            63 => Self::NameTooLong,
            69 => Self::DQuot,
            70 => Self::Stale,
            10001 => Self::BadHandle,
            10004 => Self::NotSupp,
            10006 => Self::ServerFault,
            10008 => Self::Jukebox,
            other => Self::Other(other),
        }
    }

    /// The handle means nothing to the server any more.
    pub(super) fn is_stale(self) -> bool {
        matches!(self, Self::Stale | Self::BadHandle)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Perm => "\"not owner\" (NFS3ERR_PERM)",
            Self::NoEnt => "\"no such file or folder\" (NFS3ERR_NOENT)",
            Self::Io => "\"input/output error\" (NFS3ERR_IO): look at its log and its disk",
            Self::Acces => "\"permission denied\" (NFS3ERR_ACCES)",
            Self::Exist => "\"file exists\" (NFS3ERR_EXIST)",
            Self::NotDir => {
                "\"not a folder\" (NFS3ERR_NOTDIR); a symbolic link is not followed: give the path that it leads to"
            }
            Self::Inval => "\"invalid argument\" (NFS3ERR_INVAL)",
            Self::NoSpc => "\"no space\" (NFS3ERR_NOSPC)",
            Self::Rofs => "\"read-only file system\" (NFS3ERR_ROFS)",
            Self::NameTooLong => "\"name too long\" (NFS3ERR_NAMETOOLONG)",
            Self::DQuot => "\"quota exceeded\" (NFS3ERR_DQUOT)",
            Self::Stale => "\"stale file handle\" (NFS3ERR_STALE)",
            Self::BadHandle => "\"bad file handle\" (NFS3ERR_BADHANDLE)",
            Self::NotSupp => "\"not supported\" (NFS3ERR_NOTSUPP)",
            Self::ServerFault => "\"server fault\" (NFS3ERR_SERVERFAULT): look at its log",
            Self::Jukebox => "\"try later\" (NFS3ERR_JUKEBOX)",
            Self::Other(code) => return write!(f, "status {code}"),
        };
        f.write_str(text)
    }
}

/// A result: OK with what was asked for, or a status. (What the RFC adds to a failure is not looked at.)
pub(super) type Outcome<T> = Result<T, Status>;

/// Reads the status, then the result if it is OK.
pub(super) fn outcome<'a, T>(
    results: &'a [u8],
    read: impl FnOnce(&mut Decoder<'a>) -> Result<T, XdrError>,
) -> Result<Outcome<T>, XdrError> {
    let mut decoder = Decoder::new(results);
    match decoder.u32()? {
        0 => read(&mut decoder).map(Ok),
        status => Ok(Err(Status::from_wire(status))),
    }
}

/// `nfs_fh3`: opaque to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handle(pub(super) Vec<u8>);

impl Handle {
    pub(super) fn read(decoder: &mut Decoder<'_>) -> Result<Self, XdrError> {
        Ok(Self(decoder.opaque(MAX_HANDLE_BYTES)?.to_vec()))
    }

    fn read_optional(decoder: &mut Decoder<'_>) -> Result<Option<Self>, XdrError> {
        if decoder.bool()? { Self::read(decoder).map(Some) } else { Ok(None) }
    }
}

/// `ftype3`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Regular,
    Folder,
    Link,
    Special,
}

/// `fattr3`, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) kind: FileKind,
    pub(super) len_bytes: u64,
    /// File system and file number: which file it is, whatever its name and handle.
    pub(super) id: (u64, u64),
    /// Seconds and nanoseconds.
    pub(super) modified: (u32, u32),
}

impl Attributes {
    pub(super) fn read(decoder: &mut Decoder<'_>) -> Result<Self, XdrError> {
        let kind = match decoder.u32()? {
            1 => FileKind::Regular,
            2 => FileKind::Folder,
            5 => FileKind::Link,
            _ => FileKind::Special,
        };
        let (_mode, _links, _uid, _gid) =
            (decoder.u32()?, decoder.u32()?, decoder.u32()?, decoder.u32()?);
        let len_bytes = decoder.u64()?;
        let (_used, _device) = (decoder.u64()?, decoder.u64()?);
        let id = (decoder.u64()?, decoder.u64()?);
        let _accessed = decoder.u64()?;
        let modified = (decoder.u32()?, decoder.u32()?);
        let _changed = decoder.u64()?;
        Ok(Self { kind, len_bytes, id, modified })
    }

    /// `post_op_attr`.
    pub(super) fn read_optional(decoder: &mut Decoder<'_>) -> Result<Option<Self>, XdrError> {
        if decoder.bool()? { Self::read(decoder).map(Some) } else { Ok(None) }
    }
}

/// Skips `wcc_data`.
fn skip_wcc(decoder: &mut Decoder<'_>) -> Result<(), XdrError> {
    if decoder.bool()? {
        let (_size, _modified, _changed) = (decoder.u64()?, decoder.u64()?, decoder.u64()?);
    }
    Attributes::read_optional(decoder)?;
    Ok(())
}

/// `diropargs3`.
pub(super) fn put_name(call: &mut Encoder, folder: &Handle, name: &str) {
    call.opaque(&folder.0).opaque(name.as_bytes());
}

/// `LOOKUP3resok`.
pub(super) fn read_lookup(
    decoder: &mut Decoder<'_>,
) -> Result<(Handle, Option<Attributes>), XdrError> {
    Ok((Handle::read(decoder)?, Attributes::read_optional(decoder)?))
}

/// How a file is created.
#[derive(Debug, Clone, Copy)]
pub(super) enum CreateHow {
    /// Fails if the name is taken.
    Guarded,
    /// The same, but a repetition with the same verifier succeeds.
    Exclusive([u8; 8]),
}

const FILE_MODE: u32 = 0o640;

/// `CREATE3args`.
pub(super) fn put_create(call: &mut Encoder, folder: &Handle, name: &str, how: CreateHow) {
    put_name(call, folder, name);
    match how {
        CreateHow::Guarded => {
            call.u32(1);
            put_mode(call);
        }
        CreateHow::Exclusive(verifier) => {
            call.u32(2).fixed(&verifier);
        }
    }
}

/// `sattr3` with a mode and with the server's time, which an exclusive create used for its verifier.
fn put_mode(call: &mut Encoder) {
    const SERVER_TIME: u32 = 1;
    call.u32(1).u32(FILE_MODE).u32(0).u32(0).u32(0).u32(SERVER_TIME).u32(SERVER_TIME);
}

/// `SETATTR3args` that give a new file its mode and times.
pub(super) fn put_settle(call: &mut Encoder, file: &Handle) {
    call.opaque(&file.0);
    put_mode(call);
    call.u32(0);
}

/// `SETATTR3args` that give a file another length and nothing else.
pub(super) fn put_len(call: &mut Encoder, file: &Handle, len_bytes: u64) {
    call.opaque(&file.0).u32(0).u32(0).u32(0).u32(1).u64(len_bytes).u32(0).u32(0);
    call.u32(0);
}

/// `CREATE3resok`: the handle may be missing.
pub(super) fn read_create(decoder: &mut Decoder<'_>) -> Result<Option<Handle>, XdrError> {
    Handle::read_optional(decoder)
}

/// How sure data are.
pub(super) const UNSTABLE: u32 = 0;

/// `WRITE3args` but for the data themselves, which follow.
pub(super) fn put_write(call: &mut Encoder, file: &Handle, offset: u64, count: u32) {
    call.opaque(&file.0).u64(offset).u32(count).u32(UNSTABLE).u32(count);
}

/// `WRITE3resok`.
pub(super) fn read_written(decoder: &mut Decoder<'_>) -> Result<Written, XdrError> {
    skip_wcc(decoder)?;
    let (count, stable) = (decoder.u32()?, decoder.u32()? != UNSTABLE);
    Ok(Written { count, stable, verifier: decoder.verifier()? })
}

/// `COMMIT3resok`.
pub(super) fn read_committed(decoder: &mut Decoder<'_>) -> Result<[u8; 8], XdrError> {
    skip_wcc(decoder)?;
    decoder.verifier()
}

/// `READ3resok`.
#[derive(Debug)]
pub(super) struct ReadResult<'a> {
    pub(super) attributes: Option<Attributes>,
    pub(super) data: &'a [u8],
}

pub(super) fn read_data<'a>(
    decoder: &mut Decoder<'a>,
    limit: u32,
) -> Result<ReadResult<'a>, XdrError> {
    let attributes = Attributes::read_optional(decoder)?;
    let (count, _eof) = (decoder.u32()?, decoder.bool()?);
    let data = decoder.opaque(limit)?;
    if u32::try_from(data.len()) != Ok(count) {
        return Err(XdrError::Value { value: count });
    }
    Ok(ReadResult { attributes, data })
}

/// `FSINFO3resok`, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct FsInfo {
    pub(super) read_max: u32,
    pub(super) write_max: u32,
}

pub(super) fn read_fsinfo(decoder: &mut Decoder<'_>) -> Result<FsInfo, XdrError> {
    Attributes::read_optional(decoder)?;
    let read_max = decoder.u32()?;
    let (_preferred, _multiple) = (decoder.u32()?, decoder.u32()?);
    Ok(FsInfo { read_max, write_max: decoder.u32()? })
}

/// `FSSTAT3resok`, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct FsStat {
    pub(super) total_bytes: u64,
    /// For whoever asks.
    pub(super) available_bytes: u64,
}

pub(super) fn read_fsstat(decoder: &mut Decoder<'_>) -> Result<FsStat, XdrError> {
    Attributes::read_optional(decoder)?;
    let total_bytes = decoder.u64()?;
    let _free = decoder.u64()?;
    Ok(FsStat { total_bytes, available_bytes: decoder.u64()? })
}

/// One entry of `READDIRPLUS3resok`.
#[derive(Debug)]
pub(super) struct FolderEntry {
    pub(super) name: Vec<u8>,
    pub(super) attributes: Option<Attributes>,
}

/// One page of a folder.
#[derive(Debug)]
pub(super) struct FolderPage {
    pub(super) entries: Vec<FolderEntry>,
    pub(super) last_cookie: Option<u64>,
    pub(super) verifier: [u8; 8],
    pub(super) end: bool,
}

pub(super) fn read_folder(decoder: &mut Decoder<'_>) -> Result<FolderPage, XdrError> {
    Attributes::read_optional(decoder)?;
    let verifier = decoder.verifier()?;
    let (mut entries, mut last_cookie) = (Vec::new(), None);
    while decoder.bool()? {
        let _number = decoder.u64()?;
        let name = decoder.opaque(MAX_NAME_BYTES)?.to_vec();
        last_cookie = Some(decoder.u64()?);
        let attributes = Attributes::read_optional(decoder)?;
        Handle::read_optional(decoder)?;
        entries.push(FolderEntry { name, attributes });
    }
    Ok(FolderPage { entries, last_cookie, verifier, end: decoder.bool()? })
}

#[cfg(test)]
mod tests {
    use nfs3_types::nfs3 as theirs;
    use nfs3_types::xdr_codec::{List, Opaque, Pack};
    use proptest::prelude::*;

    use super::*;

    fn attributes() -> theirs::fattr3 {
        let time = |seconds| theirs::nfstime3 { seconds, nseconds: seconds + 1 };
        theirs::fattr3 {
            type_: theirs::ftype3::NF3REG,
            mode: 0o640,
            nlink: 1,
            uid: 2,
            gid: 3,
            size: 1 << 40,
            used: 5,
            rdev: theirs::specdata3::default(),
            fsid: 77,
            fileid: 88,
            atime: time(10),
            mtime: time(20),
            ctime: time(30),
        }
    }

    const ATTRIBUTES: Attributes = Attributes {
        kind: FileKind::Regular,
        len_bytes: 1 << 40,
        id: (77, 88),
        modified: (20, 21),
    };

    fn packed(value: &impl Pack) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.pack(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn results_of_an_independent_codec() {
        let wcc = || theirs::wcc_data {
            before: theirs::Nfs3Option::Some(theirs::wcc_attr {
                size: 1,
                mtime: theirs::nfstime3::default(),
                ctime: theirs::nfstime3::default(),
            }),
            after: theirs::Nfs3Option::Some(attributes()),
        };
        let found: theirs::LOOKUP3res = theirs::Nfs3Result::Ok(theirs::LOOKUP3resok {
            object: theirs::nfs_fh3 { data: Opaque::borrowed(b"handle") },
            obj_attributes: theirs::Nfs3Option::Some(attributes()),
            dir_attributes: theirs::Nfs3Option::None,
        });
        let found = outcome(&packed(&found), read_lookup).unwrap().unwrap();
        assert_eq!(found, (Handle(b"handle".to_vec()), Some(ATTRIBUTES)));

        let written: theirs::WRITE3res = theirs::Nfs3Result::Ok(theirs::WRITE3resok {
            file_wcc: wcc(),
            count: 9,
            committed: theirs::stable_how::DATA_SYNC,
            verf: theirs::writeverf3([6; 8]),
        });
        let written = outcome(&packed(&written), read_written).unwrap().unwrap();
        assert_eq!((written.count, written.stable, written.verifier), (9, true, [6; 8]));

        let committed: theirs::COMMIT3res = theirs::Nfs3Result::Ok(theirs::COMMIT3resok {
            file_wcc: wcc(),
            verf: theirs::writeverf3([7; 8]),
        });
        assert_eq!(outcome(&packed(&committed), read_committed), Ok(Ok([7; 8])));

        let page: theirs::READDIRPLUS3res<'_> = theirs::Nfs3Result::Ok(theirs::READDIRPLUS3resok {
            dir_attributes: theirs::Nfs3Option::None,
            cookieverf: theirs::cookieverf3([8; 8]),
            reply: theirs::dirlistplus3 {
                entries: List(vec![theirs::entryplus3 {
                    fileid: 88,
                    name: b"x.img.zst"[..].into(),
                    cookie: 3,
                    name_attributes: theirs::Nfs3Option::Some(attributes()),
                    name_handle: theirs::Nfs3Option::None,
                }]),
                eof: true,
            },
        });
        let page = outcome(&packed(&page), read_folder).unwrap().unwrap();
        assert_eq!((page.verifier, page.last_cookie, page.end), ([8; 8], Some(3), true));
        assert_eq!(page.entries[0].name, b"x.img.zst");
        assert_eq!(page.entries[0].attributes, Some(ATTRIBUTES));
    }

    #[test]
    fn data_must_be_as_long_as_said_and_as_asked() {
        let data = |count| {
            packed(&theirs::READ3res::Ok(theirs::READ3resok {
                file_attributes: theirs::Nfs3Option::None,
                count,
                eof: false,
                data: Opaque::borrowed(b"12345"),
            }))
        };
        let read = |count, limit| {
            let bytes = data(count);
            outcome(&bytes, |decoder| read_data(decoder, limit).map(|got| got.data.len()))
        };
        assert_eq!(read(5, 5), Ok(Ok(5)));
        assert_eq!(read(4, 5), Err(XdrError::Value { value: 4 }));
        assert_eq!(read(5, 4), Err(XdrError::TooLong { len: 5, limit: 4 }));
    }

    #[test]
    fn every_status_has_words() {
        for code in [1, 2, 5, 13, 17, 20, 22, 28, 30, 69, 70, 10_001, 10_004, 10_006, 10_008] {
            assert!(!matches!(Status::from_wire(code), Status::Other(_)), "{code}");
            assert!(Status::from_wire(code).to_string().contains("NFS3ERR_"));
        }
        assert_eq!(Status::from_wire(12_345).to_string(), "status 12345");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_result_or_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), ok in any::<bool>()) {
            if ok && bytes.len() > 8 {
                bytes[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
            }
            let _ = outcome(&bytes, read_lookup);
            let _ = outcome(&bytes, read_create);
            let _ = outcome(&bytes, read_written);
            let _ = outcome(&bytes, read_committed);
            let _ = outcome(&bytes, read_fsinfo);
            let _ = outcome(&bytes, read_fsstat);
            let _ = outcome(&bytes, read_folder);
            let _ = outcome(&bytes, |decoder| read_data(decoder, 100).map(|got| got.data.len()));
        }
    }
}
