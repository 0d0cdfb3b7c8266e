//! Compressed streams: gzip, xz, bzip2, zstd, each with any number of members, streams or frames one behind the other.
//!
//! A stream is read to its very end: what is cut off, and what has something else behind its end, is an error. Memory is limited,
//! whatever window a stream asks for.

use std::io::Read;

use super::error::{ForeignError, Result};
use super::source::Source;

/// `zstd --ultra -22` needs so much, and no stock tool makes more unless told to, with `--long`.
const ZSTD_WINDOW_LOG: u32 = 27;
/// `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 100 << 20;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// gzip, pigz, bgzip
    Gzip,
    /// xz
    Xz,
    /// bzip2
    Bzip2,
    /// zstd
    Zstd,
}

impl Codec {
    /// Told by the first bytes.
    #[must_use]
    pub fn detect(head: &[u8]) -> Option<Self> {
        let magic = head.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        match head {
            [0x1F, 0x8B, 8, ..] => Some(Self::Gzip),
            [0xFD, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => {
                Some(Self::Bzip2)
            }
            // An empty one.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90, ..] => {
                Some(Self::Bzip2)
            }
            // A frame, or a skippable one.
            _ if matches!(magic, Some(0xFD2F_B528 | 0x184D_2A50..=0x184D_2A5F)) => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The window of a stream of zstd that begins so (RFC 8878, section 3.1.1.1), 0 where that is not told.
    #[must_use]
    pub fn window_bytes(self, head: &[u8]) -> u64 {
        match (self, head) {
            (Self::Zstd, [0x28, 0xB5, 0x2F, 0xFD, flags, window, ..]) if flags & 0x20 == 0 => {
                let base = 1_u64 << (10 + (window >> 3));
                base + base / 8 * u64::from(window & 7)
            }
            _ => 0,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Zstd => "zstd",
        }
    }

    /// Decompresses from the start.
    pub fn decode(self, source: &Source) -> Result<Box<dyn Read + Send>> {
        let failed = |source| ForeignError::Read { format: self.name(), source };
        let stream = source.stream();
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
            Self::Xz => {
                let flags = liblzma::stream::CONCATENATED;
                let decoder = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, flags)
                    .map_err(|e| failed(e.into()))?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(stream, decoder))
            }
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(stream).map_err(failed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
                Box::new(decoder)
            }
        })
    }
}
