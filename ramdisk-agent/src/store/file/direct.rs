//! Reading and writing an image file past the page cache.
//!
//! A wish throughout: what does not take O_DIRECT (a file system, an odd end) goes through the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fstatfs};

use crate::buffer::{AlignedBuf, DIRECT_ALIGN};

/// What a direct read is worth its setting up for; less (headers, index pages) is read by way of the cache.
const MIN_READ_BYTES: usize = 64 << 10;
/// File systems on disks of this machine, by their number in `statfs(2)`: ext2/3/4, xfs, btrfs, f2fs. A network file system would
/// commit after each direct write.
const ON_DISK: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// Opens the partial file once more, to write and read past the page cache, where its file system is on a disk.
pub(super) fn open(file: &File, partial: &Path) -> Option<File> {
    let kind = u64::try_from(fstatfs(file).ok()?.f_type).ok()?;
    if !ON_DISK.contains(&kind) {
        return None;
    }
    let flags = (OFlags::DIRECT | OFlags::NOFOLLOW).bits().cast_signed();
    let direct =
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(partial).ok()?;
    is_same(file, &direct).then_some(direct)
}

/// Opens a file once more to read it past the page cache, whatever it is on.
pub(super) fn open_to_read(file: &File, path: &Path) -> Option<File> {
    let flags = (OFlags::DIRECT | OFlags::NOFOLLOW).bits().cast_signed();
    let direct = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    is_same(file, &direct).then_some(direct)
}

fn is_same(file: &File, other: &File) -> bool {
    let (Ok(ours), Ok(its)) = (file.metadata(), other.metadata()) else { return false };
    (ours.dev(), ours.ino()) == (its.dev(), its.ino())
}

/// The file that the thread writes.
pub(super) struct Output {
    pub(super) file: Arc<File>,
    /// The same file opened with O_DIRECT, where that is of use.
    pub(super) direct: Option<File>,
}

impl Output {
    /// Writes a chunk; whether it went past the page cache.
    pub(super) fn write(&mut self, chunk: &[u8], offset: u64) -> io::Result<bool> {
        let align = u64::try_from(DIRECT_ALIGN).expect("a sector's length fits 64 bits");
        let len = u64::try_from(chunk.len()).expect("a chunk's length fits 64 bits");
        if offset.is_multiple_of(align)
            && len.is_multiple_of(align)
            && let Some(direct) = &self.direct
        {
            match direct.write_all_at(chunk, offset) {
                Ok(()) => return Ok(true),
                // Opening says nothing about what writing wants (larger sectors, say): the page cache takes everything.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(chunk, offset)?;
        Ok(false)
    }
}

/// Reads of any place and length past the page cache, by way of buffers that are kept.
#[derive(Debug)]
pub(super) struct DirectReads {
    file: File,
    spare: Mutex<Vec<AlignedBuf>>,
}

impl DirectReads {
    pub(super) fn new(file: File) -> Self {
        Self { file, spare: Mutex::default() }
    }

    /// `None` if it is not worth it, or the file does not take such a read.
    pub(super) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<()>> {
        if buf.len() < MIN_READ_BYTES {
            return None;
        }
        let align = u64::try_from(DIRECT_ALIGN).expect("a sector's length fits 64 bits");
        let start = offset / align * align;
        let skipped = usize::try_from(offset - start).expect("less than a sector");
        let wanted = skipped + buf.len();
        let len = wanted.next_multiple_of(DIRECT_ALIGN);
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut aligned = match spare {
            Some(spare) if spare.as_slice().len() >= len => spare,
            _ => AlignedBuf::new(len),
        };
        let mut at = 0;
        while at < wanted {
            let from = start + u64::try_from(at).expect("a buffer's length fits 64 bits");
            match self.file.read_at(&mut aligned.as_mut_slice()[at..len], from) {
                // A part that ends off the sectors is the file's end.
                Ok(n) if n > 0 && (n.is_multiple_of(DIRECT_ALIGN) || at + n >= wanted) => at += n,
                Ok(_) => return Some(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        buf.copy_from_slice(&aligned.as_slice()[skipped..wanted]);
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(aligned);
        Some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_place_reads_as_through_the_page_cache() {
        // Beside the build's output, which is on a disk as a rule: /tmp may be a tmpfs.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("x");
        let data: Vec<u8> =
            (0..3_000_017_u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        std::fs::write(&path, &data).unwrap();
        let file = File::open(&path).unwrap();
        let Some(direct) = open(&file, &path) else {
            let kind = fstatfs(&file).unwrap().f_type;
            assert!(!ON_DISK.contains(&u64::try_from(kind).unwrap()), "refused on {kind:#x}");
            return;
        };
        let reads = DirectReads::new(direct);
        for (offset, len) in [(0, 1 << 20), (1, 70_000), (4095, 1 << 20), (2_900_001, 100_016)] {
            let mut buf = vec![0; len];
            let read = reads.read_exact_at(&mut buf, u64::try_from(offset).unwrap());
            read.unwrap().unwrap();
            assert!(buf == data[offset..offset + len], "{len} bytes at {offset}");
        }
        let mut buf = vec![0; 100_000];
        let error = reads.read_exact_at(&mut buf, 2_900_018).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(reads.read_exact_at(&mut buf[..10], 0).is_none());
    }
}
