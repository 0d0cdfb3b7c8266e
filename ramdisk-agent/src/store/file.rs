//! The store that is a folder of this machine.
//!
//! [`partial`] is the file that a [`writer`] writes until the image has its name; [`left_over`] goes on with one that was left behind;
//! [`direct`] goes past the page cache. Reading is here.

mod direct;
mod left_over;
mod partial;
mod room;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use agent_api::StoreFacts;
use rustix::fs::OFlags;

use self::direct::DirectReads;
use self::partial::sync_removed;
use self::writer::FileWriter;
use super::{Entry, ImageFile, ReadAt, Result, StoreError, StoreWriter};
use crate::disk;

pub(super) use self::left_over::left_over;

/// Chunks that may wait for the write thread.
pub(super) const QUEUE_CHUNKS: usize = 4;

/// What a folder is on, as far as it changes what is done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum On {
    /// Whatever this machine has mounted.
    Machine,
    /// A share that was mounted for one image, by NFS version 4. No locks: a server that was away for longer than its lease
    /// has given them up, and then everything behind them fails, though nobody else was there. Reads go past the page cache, so that they
    /// come from the server.
    OwnShare,
}

/// Opens an image (or a disk that holds one) for reading.
pub(super) fn open(path: &Path, on: On) -> Result<Box<dyn ImageFile>> {
    let failed = |source| StoreError::local("opening", path.display(), source);
    let flags = match on {
        On::Machine => OFlags::NONBLOCK,
        // A link that a server made would be followed on this machine.
        On::OwnShare => OFlags::NOFOLLOW | OFlags::NONBLOCK,
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?;
    if kind.is_dir() {
        return Err(StoreError::Folder { url: path.display().to_string() });
    }
    // A pipe would be waited for, and a terminal has no end.
    let is_sound = match on {
        On::Machine => kind.is_file() || kind.file_type().is_block_device(),
        On::OwnShare => kind.is_file(),
    };
    if !is_sound {
        let what = "it is not a regular file";
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, what)));
    }
    if on == On::Machine && kind.is_file() && disk::is_target(path, &file) {
        return Err(StoreError::Target { url: path.display().to_string() });
    }
    let direct = match on {
        On::Machine => None,
        On::OwnShare => direct::open_to_read(&file, path),
    };
    Ok(Box::new(FileImage::new(file, direct, path)?))
}

/// Starts to write an image.
pub(super) fn create(path: &Path, on: On, queue_chunks: usize) -> Result<Box<dyn StoreWriter>> {
    Ok(Box::new(FileWriter::create(path, on, queue_chunks)?))
}

/// Lists a folder's regular files.
pub(super) fn list(folder: &Path) -> Result<Vec<Entry>> {
    let failed = |source| StoreError::local("listing", folder.display(), source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        if metadata.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry { name, len_bytes: metadata.len() });
        }
    }
    Ok(entries)
}

/// Removes an image.
pub(super) fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path)
        .map_err(|source| StoreError::local("removing", path.display(), source))?;
    sync_removed(path)
}

#[derive(Debug)]
struct FileImage {
    file: File,
    /// The same file for reads past the page cache.
    direct: Option<DirectReads>,
    path: PathBuf,
    len_bytes: u64,
}

impl FileImage {
    fn new(mut file: File, direct: Option<File>, path: &Path) -> Result<Self> {
        // Not the metadata: a block device has its length only here.
        let len_bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| StoreError::local("measuring", path.display(), source))?;
        let direct = direct.map(DirectReads::new);
        Ok(Self { file, direct, path: path.to_owned(), len_bytes })
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if let Some(direct) = &self.direct
            && let Some(result) = direct.read_exact_at(buf, offset)
        {
            return result;
        }
        ReadAt::read_exact_at(&self.file, buf, offset)
    }
}

impl ReadAt for FileImage {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(buf, offset).map_err(|source| {
            let url = self.path.display().to_string();
            if source.kind() == io::ErrorKind::UnexpectedEof {
                let wanted = offset.saturating_add(u64::try_from(buf.len()).unwrap_or(u64::MAX));
                return StoreError::PastEnd { url, len_bytes: self.len_bytes, wanted }.into();
            }
            StoreError::Io { doing: "reading", url, source }.into()
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }
}

impl ImageFile for FileImage {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }
}

/// How large the file system is that a folder is in.
pub(super) fn facts(folder: &Path) -> Result<StoreFacts> {
    let space = rustix::fs::statvfs(folder)
        .map_err(|e| StoreError::local("looking at", folder.display(), e.into()))?;
    let bytes = |blocks: u64| Some(blocks.saturating_mul(space.f_frsize));
    Ok(StoreFacts {
        protocol: "folder".to_owned(),
        free_bytes: bytes(space.f_bavail),
        total_bytes: bytes(space.f_blocks),
        ..StoreFacts::default()
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::{Options, StoreUrl};
    use super::writer::CHUNK_BYTES;
    use super::*;

    fn pattern(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            out.extend_from_slice(&state.to_be_bytes());
        }
        out.truncate(len);
        out
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = list(folder).unwrap().into_iter().map(|entry| entry.name).collect();
        names.sort();
        names
    }

    fn create(path: &Path, on: On) -> Result<Box<dyn StoreWriter>> {
        super::create(path, on, QUEUE_CHUNKS)
    }

    #[test]
    fn what_was_written_is_read_back_and_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.img.zst");
        let data = pattern(5 * CHUNK_BYTES + 4321, 7);
        let mut writer = create(&path, On::Machine).unwrap();
        for piece in data.chunks(777_777) {
            writer.append(piece).unwrap();
        }
        assert_eq!(writer.commit().unwrap(), writer.len());
        let mut back = vec![0; data.len()];
        writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
        assert!(back == data);
        assert_eq!(names(folder.path()), ["x.img.zst.partial"]);
        writer.append(b"tail").unwrap();
        writer.publish().unwrap();
        assert_eq!(names(folder.path()), ["x.img.zst"]);
        let image = open(&path, On::Machine).unwrap();
        assert_eq!(image.len_bytes(), u64::try_from(data.len() + 4).unwrap());
        let mut tail = [0; 4];
        image.read_exact_at(&mut tail, image.len_bytes() - 4).unwrap();
        assert_eq!(&tail, b"tail");
        let error = image.read_exact_at(&mut tail, image.len_bytes() - 3).unwrap_err();
        assert!(matches!(StoreError::find(&error), Some(StoreError::PastEnd { .. })), "{error}");
        remove(&path).unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn an_existing_image_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "old").unwrap();
        assert!(matches!(create(&path, On::Machine), Err(StoreError::Exists { .. })));
        fs::remove_file(&path).unwrap();
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"new").unwrap();
        // Somebody was faster.
        fs::write(&path, "old").unwrap();
        assert!(matches!(writer.publish(), Err(StoreError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["x"]);
    }

    /// What is complete has its name: that its folder cannot be opened is no reason to say that it was refused.
    #[test]
    fn a_folder_that_may_be_written_to_and_not_read() {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        const NOBODY: u32 = 65534;
        let folder = tempfile::tempdir().unwrap();
        let set_mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode));
        if rustix::process::geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), None).unwrap();
        }
        set_mode(0o300).unwrap();
        let path = folder.path().join("x.img.zst");
        // A thread has rights of its own, and so have those that it starts.
        let as_nobody = std::thread::scope(|scope| {
            let work = || {
                nix::unistd::setfsuid(NOBODY.into());
                assert!(fs::read_dir(folder.path()).is_err());
                let mut writer = create(&path, On::Machine)?;
                writer.append(b"content")?;
                writer.publish()?;
                assert_eq!(fs::read(&path).unwrap(), b"content");
                remove(&path)
            };
            scope.spawn(work).join().unwrap()
        });
        set_mode(0o700).unwrap();
        as_nobody.unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_name_with_a_slash_behind_it_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x/", "x//", ".."] {
            let error = create(&folder.path().join(name), On::Machine).err().unwrap();
            assert_eq!(error.kind(), agent_api::ErrorKind::Refused, "{name}: {error}");
        }
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_left_over_is_replaced_but_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(folder.path().join("x.partial"), "of a dead run").unwrap();
        let mut writer = create(&path, On::Machine).unwrap();
        assert!(matches!(create(&path, On::Machine), Err(StoreError::Busy { .. })));
        writer.append(b"new").unwrap();
        writer.publish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_was_kept_is_gone_on_with_at_any_byte() {
        // On a disk, as a rule, so that writes go past the page cache.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("x");
        let data = pattern(2 * CHUNK_BYTES + 4321, 11);
        assert!(left_over(&path, On::Machine).unwrap().is_none());
        for cut in [0, 1, 4095, 4096, 4097, CHUNK_BYTES, CHUNK_BYTES + 777, 2 * CHUNK_BYTES - 1] {
            let mut writer = create(&path, On::Machine).unwrap();
            writer.append(&data).unwrap();
            assert!(matches!(left_over(&path, On::Machine), Err(StoreError::Busy { .. })));
            writer.commit().unwrap();
            writer.keep().unwrap();
            let left = left_over(&path, On::Machine).unwrap().unwrap();
            assert!(matches!(create(&path, On::Machine), Err(StoreError::Busy { .. })));
            let mut back = vec![0; data.len()];
            left.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
            assert!(back == data);
            let mut writer = left.go_on(u64::try_from(cut).unwrap()).unwrap();
            assert_eq!(writer.len(), u64::try_from(cut).unwrap());
            writer.append(&data[cut..]).unwrap();
            assert_eq!(writer.commit().unwrap(), u64::try_from(data.len()).unwrap());
            writer.publish().unwrap();
            assert!(fs::read(&path).unwrap() == data, "cut at {cut}");
            remove(&path).unwrap();
        }
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"a").unwrap();
        writer.keep().unwrap();
        let left = left_over(&path, On::Machine).unwrap().unwrap();
        assert!(matches!(left.go_on(2), Err(StoreError::Replaced { .. })));
        assert_eq!(names(folder.path()), ["x.partial"], "it stays as it is");
    }

    #[test]
    fn abort_and_drop_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(&pattern(3 * CHUNK_BYTES, 1)).unwrap();
        drop(writer);
        assert!(names(folder.path()).is_empty());
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"a").unwrap();
        writer.abort().unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_symlink_in_the_partials_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, folder.path().join("x.partial")).unwrap();
        assert!(create(&folder.path().join("x"), On::Machine).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_name_without_room_for_the_suffix_is_refused_and_says_how_long_it_may_be() {
        let folder = tempfile::tempdir().unwrap();
        let url = |len| StoreUrl::File(folder.path().join("x".repeat(len)));
        let create = |len| crate::store::create(&url(len), Uuid::new_v4(), &Options::default());
        create(247).unwrap().publish().unwrap();
        // What only the file system knows is said in the same words.
        for error in [
            create(248).err().unwrap(),
            super::create(&folder.path().join("y".repeat(250)), On::Machine, 1).err().unwrap(),
        ] {
            assert!(matches!(error, StoreError::NameTooLong { .. }), "{error:?}");
            assert_eq!(error.kind(), agent_api::ErrorKind::Refused);
            assert!(error.to_string().contains("at most 247 bytes"), "{error}");
        }
        assert_eq!(names(folder.path()).len(), 1);
    }

    #[test]
    fn a_name_that_the_next_writer_would_replace_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["x.img.zst.partial", "x.PARTIAL", ".partial"] {
            let url = StoreUrl::File(folder.path().join(name));
            let options = Options::default();
            let created = crate::store::create(&url, Uuid::new_v4(), &options).map(drop);
            let found = crate::store::left_over(&url, &options).map(drop);
            for error in [created.unwrap_err(), found.unwrap_err()] {
                assert_eq!(error.kind(), agent_api::ErrorKind::Refused);
                assert!(error.to_string().contains("not finished yet"), "{error}");
            }
        }
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_partial_file_that_is_gone_was_lost_to_somebody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut writer = create(&path, On::Machine).unwrap();
        writer.append(b"new").unwrap();
        writer.commit().unwrap();
        fs::remove_file(folder.path().join("x.partial")).unwrap();
        for error in [writer.reader().err().unwrap(), writer.publish().unwrap_err()] {
            assert!(matches!(error, StoreError::Lost { .. }), "{error:?}");
            assert!(error.to_string().contains("x.partial was removed"), "{error}");
        }
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn nothing_is_waited_for_that_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("x.img.zst");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&*pipe, Path::new("/dev/zero")] {
            for on in [On::Machine, On::OwnShare] {
                let error = format!("{:?}", open(path, on).err().unwrap());
                assert!(error.contains("not a regular file"), "{error}");
            }
        }
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = create(Path::new("/nonexistent/x"), On::Machine).err().unwrap();
        assert!(error.to_string().starts_with("/nonexistent does not exist"), "{error}");
        assert_eq!(error.kind(), agent_api::ErrorKind::NotFound);
    }
}
