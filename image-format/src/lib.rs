//! Imprint's image format, version 1: a plain `.img.zst` that is also an index.
//!
//! An image is a sequence of standard zstd frames that decompress to the whole disk, free blocks as zeros, with skippable
//! frames between them that stock tools pass over: an opening frame, index pages, and a tail that holds the manifest and
//! the directory of the pages. The published seekable-format table comes last. `docs/image-format.md` is the normative
//! description; this crate is its writer and its reader.
//!
//! The writer only appends. The reader is total: any bytes in, a value or an error out, with no panic and no allocation
//! driven by an unchecked size. Everything that the file says is pinned by the [`Root`], and the hash of a frame's stored
//! bytes is checked before a byte of it is decompressed.
//!
//! A delta image (`.imgd`) is the same with frames that refer to a parent image; its first and last magic numbers are not
//! zstd's, so that nobody takes it for a disk. Finding and reading the parent is the caller's part.
//!
//! Deliberately absent: devices, paths, threads, network. Bytes come in through [`ReadAt`] and go out through
//! [`std::io::Write`]; [`Encoder`] and [`Decoder`] are made once per worker thread by whoever owns the threads.

mod decoder;
mod directory;
mod encoder;
mod error;
mod fields;
mod hash;
mod header;
mod hole;
mod manifest;
mod page;
mod partial;
mod read_at;
mod reader;
mod runs;
mod seek_table;
mod writer;
mod zeros;
mod zstd_header;

pub use decoder::{Decoder, StoredFrame};
pub use directory::Totals;
pub use encoder::{EncodedFrame, Encoder, working_memory};
pub use error::{FormatError, Part, Result};
pub use hash::{Hash, ParseHashError, Root};
pub use header::{Header, INCOMPATIBLE_DELTA, is_image};
pub use manifest::{
    BadSectors, Compression, Disk, LogicalVolume, Manifest, Parent, PartitionTable, Segment,
    TableKind, Taken, Volume,
};
pub use page::{FrameBase, FrameEntry, FrameKind, Page};
pub use partial::{Beginning, Partial};
pub use read_at::ReadAt;
pub use reader::{Frames, ImageReader};
pub use runs::{Run, RunKind, Runs};
pub use writer::{ImageWriter, Summary};
pub use zeros::is_zero;

/// The version of the format that this crate writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// Runs are counted in units of this many bytes; the last unit of a disk may be short.
pub const UNIT_LEN: u32 = 4096;

/// The span of disk that a data frame covers unless the caller chooses otherwise.
pub const DEFAULT_SPAN_LEN: u32 = 4 << 20;

/// The longest span that a data frame may cover. Stock zstd refuses windows above 128 MiB.
pub const MAX_SPAN_LEN: u32 = 64 << 20;

/// The longest stretch of disk that one hole frame covers: the seekable format's own limit for a frame.
pub const MAX_HOLE_LEN: u64 = 1 << 30;

/// The most runs that one frame's entry lists; finer maps are merged into data.
pub const MAX_RUNS: usize = 64;

/// An index page follows after this many data frames.
pub const FRAMES_PER_PAGE: u32 = 256;

/// An index page lists no more frames than this, data and holes together.
pub const MAX_FRAMES_PER_PAGE: u32 = 1024;

/// The most frames of all kinds in a file: the seekable format's own limit.
pub const MAX_FRAMES: u32 = 1 << 27;

/// The most index pages in a file.
pub const MAX_PAGES: u32 = 1 << 19;

/// The longest manifest.
pub const MAX_MANIFEST_LEN: u64 = 16 << 20;

/// The longest producer string, in bytes.
pub const MAX_PRODUCER_LEN: usize = 256;

/// The largest disk: as many frames as a file may hold, each as long as a hole may be.
pub const MAX_DISK_LEN: u64 = (MAX_FRAMES as u64) * MAX_HOLE_LEN;

#[cfg(test)]
mod tests {
    use super::{Decoder, Encoder, FormatError};

    #[test]
    fn workers_can_own_both() {
        fn assert_send<T: Send>() {}
        assert_send::<Encoder>();
        assert_send::<Decoder>();
        assert_send::<super::ImageWriter<Vec<u8>>>();
        assert_send::<super::ImageReader<std::fs::File>>();
        assert_send::<FormatError>();
    }
}
