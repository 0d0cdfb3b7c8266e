//! What can be wrong with an image, or with the way it is being written.
//!
//! Every variant names the place: the byte of the file, the index page, or the frame and its offset on the disk. A
//! [`FormatError::Read`] or [`FormatError::Write`] is the source's or the sink's failure and may go away on a retry;
//! everything else is a property of the bytes.

use std::fmt;
use std::io;

use crate::{
    MAX_DISK_LEN, MAX_HOLE_LEN, MAX_MANIFEST_LEN, MAX_PRODUCER_LEN, MAX_SPAN_LEN, UNIT_LEN, VERSION,
};

/// The result of reading or writing an image.
pub type Result<T> = std::result::Result<T, FormatError>;

/// A part of the file that is not a frame of the disk's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The skippable frame at byte 0.
    Opening,
    /// The index page of this number.
    Page(u32),
    /// The skippable frame that holds manifest, directory and trailer.
    Tail,
    /// The JSON manifest.
    Manifest,
    /// The directory of index pages.
    Directory,
    /// The fixed-size end of the tail.
    Trailer,
    /// The seekable format's table.
    SeekTable,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opening => f.write_str("the opening frame"),
            Self::Page(index) => write!(f, "index page {index}"),
            Self::Tail => f.write_str("the tail frame"),
            Self::Manifest => f.write_str("the manifest"),
            Self::Directory => f.write_str("the page directory"),
            Self::Trailer => f.write_str("the trailer"),
            Self::SeekTable => f.write_str("the seek table"),
        }
    }
}

/// Why an image could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The source could not be read. Says nothing about the image itself.
    #[error("reading {len} bytes at byte {offset} of the image")]
    Read {
        /// Where in the file.
        offset: u64,
        /// How many bytes were wanted.
        len: u64,
        /// The source's own error.
        #[source]
        source: io::Error,
    },
    /// The sink could not be written.
    #[error("writing byte {offset} of the image")]
    Write {
        /// Where in the file.
        offset: u64,
        /// The sink's own error.
        #[source]
        source: io::Error,
    },
    /// The file does not start or end like an image.
    #[error("not a complete Imprint image: {reason}")]
    NotAnImage {
        /// What was missed.
        reason: &'static str,
    },
    /// The file is of another version of the format.
    #[error(
        "the image has format version {found}, this program reads version {VERSION}; use a newer Imprint"
    )]
    UnsupportedVersion {
        /// The version that the file names.
        found: u32,
    },
    /// The file cannot be understood without features that this program does not have.
    #[error(
        "the image needs features that this program does not know (bits {bits:#018x}); use a newer Imprint"
    )]
    UnknownFeatures {
        /// The unknown bits of the incompatible feature word.
        bits: u64,
    },
    /// The opening frame, an index page, the tail or the seek table is damaged.
    #[error(
        "{part} at byte {offset} of the image: {fault}; the file is damaged, fetch or capture it again"
    )]
    Damaged {
        /// Which part.
        part: Part,
        /// Where the part starts in the file.
        offset: u64,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The manifest is not the JSON that it should be.
    #[error("the manifest at byte {offset} of the image cannot be understood")]
    Manifest {
        /// Where the manifest starts in the file.
        offset: u64,
        /// The JSON parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// A frame, or what the index says of it, is damaged.
    #[error(
        "frame {index} at image offset {logical_offset} (byte {stored_offset} of the file): {fault}"
    )]
    Frame {
        /// The frame's number, from 0, counting data and hole frames.
        index: u64,
        /// Where on the disk the frame's content starts.
        logical_offset: u64,
        /// Where in the file the frame's stored bytes start.
        stored_offset: u64,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A frame whose stored bytes are intact does not decompress.
    #[error(
        "frame {index} at image offset {logical_offset} (byte {stored_offset} of the file): does not decompress"
    )]
    Decompress {
        /// The frame's number, from 0, counting data and hole frames.
        index: u64,
        /// Where on the disk the frame's content starts.
        logical_offset: u64,
        /// Where in the file the frame's stored bytes start.
        stored_offset: u64,
        /// zstd's error.
        #[source]
        source: io::Error,
    },
    /// An offset that the disk does not have was asked for.
    #[error("offset {offset} is beyond the end of the imaged disk ({disk_len} bytes)")]
    BeyondEnd {
        /// The offset asked for.
        offset: u64,
        /// The length of the imaged disk.
        disk_len: u64,
    },
    /// A page of a number that the image does not have was asked for.
    #[error("index page {index} was asked for, the image has {pages}")]
    NoSuchPage {
        /// The page asked for.
        index: usize,
        /// How many there are.
        pages: usize,
    },
    /// zstd refused a compression level or failed.
    #[error("compressing with zstd at level {level}")]
    Compress {
        /// The level asked for.
        level: i32,
        /// zstd's error.
        #[source]
        source: io::Error,
    },
    /// A disk larger than the format can describe.
    #[error("a disk of {disk_len} bytes is larger than an image can hold ({MAX_DISK_LEN} bytes)")]
    DiskTooLarge {
        /// The disk's length.
        disk_len: u64,
    },
    /// A span length that the format does not allow.
    #[error(
        "span length {span_len} is not a multiple of {UNIT_LEN} from {UNIT_LEN} to {MAX_SPAN_LEN}"
    )]
    BadSpanLen {
        /// The span length asked for.
        span_len: u32,
    },
    /// A producer string that is too long.
    #[error("the producer string has {len} bytes, the limit is {MAX_PRODUCER_LEN}")]
    ProducerTooLong {
        /// Its length.
        len: usize,
    },
    /// A manifest that is too long.
    #[error("the manifest has {len} bytes, the limit is {MAX_MANIFEST_LEN}")]
    ManifestTooLong {
        /// Its length.
        len: u64,
    },
    /// The caller of the writer described a frame wrongly.
    #[error("the frame for image offset {logical_offset}: {fault}")]
    BadFrame {
        /// Where on the disk the frame would start.
        logical_offset: u64,
        /// What is wrong with the request.
        fault: &'static str,
    },
    /// A span to be compressed and the runs that came with it contradict each other.
    #[error("byte {offset} of the span: {fault}")]
    BadSpan {
        /// Where in the span.
        offset: u64,
        /// What is wrong with the request.
        fault: &'static str,
    },
    /// The frames do not cover the disk.
    #[error("the image covers {covered} of the disk's {disk_len} bytes")]
    Incomplete {
        /// How far the frames reach.
        covered: u64,
        /// The disk's length.
        disk_len: u64,
    },
    /// The manifest contradicts what was written.
    #[error("the manifest says another {field} than the image")]
    ManifestMismatch {
        /// The field's name in the manifest.
        field: &'static str,
    },
    /// More frames or pages than the format allows.
    #[error("the image would need more than {limit} {what}; choose a longer span")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// The limit.
        limit: u32,
    },
    /// A hole of a length that the format cannot hold in one frame.
    #[error("a hole of {len} bytes does not fit into one frame (at most {MAX_HOLE_LEN})")]
    HoleTooLong {
        /// The length asked for.
        len: u64,
    },
}
