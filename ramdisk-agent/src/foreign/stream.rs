//! Compressed streams: gzip, xz, bzip2, zstd, each with any number of members, streams or frames one behind the other.
//!
//! A stream is read to its very end: what is cut off, and what has something else behind its end, is an error. Memory is limited,
//! whatever window a stream asks for.

use std::io::{self, BufRead, Read};

use liblzma::bufread::XzDecoder;

use super::error::{ForeignError, Result};
use super::source::{Source, Stream};
use crate::store::StoreError;
use crate::words::size;

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

    /// The window of a stream of zstd that begins so (RFC 8878, section 3.1.1.1), or the dictionary of one of xz; 0 where that is not told.
    #[must_use]
    pub fn window_bytes(self, head: &[u8]) -> u64 {
        match (self, head) {
            (Self::Zstd, [0x28, 0xB5, 0x2F, 0xFD, flags, window, ..]) if flags & 0x20 == 0 => {
                let base = 1_u64 << (10 + (window >> 3));
                base + base / 8 * u64::from(window & 7)
            }
            // One segment: the window is the content, whose length stands behind the dictionary's number.
            (Self::Zstd, [0x28, 0xB5, 0x2F, 0xFD, flags, rest @ ..]) => {
                let at = [0, 1, 2, 4][usize::from(flags & 3)];
                let len = 1 << (flags >> 6);
                let field = rest.get(at..at + len).unwrap_or_default();
                let content = field.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
                if len == 2 { content + 256 } else { content }
            }
            (Self::Xz, head) => xz_dictionary(head).unwrap_or(0),
            _ => 0,
        }
    }

    /// Refuses a stream that begins with a window larger than is taken.
    pub fn check_window(self, head: &[u8]) -> Result<()> {
        match self.window_bytes(head) {
            window if window > 1 << ZSTD_WINDOW_LOG => Err(self.too_large(&size(window))),
            _ => Ok(()),
        }
    }

    fn too_large(self, window: &str) -> ForeignError {
        let reason = match self {
            Self::Xz => format!(
                "its dictionary takes more than the {} of memory that are given to it: repack it, with `xz -9` at most",
                size(XZ_MEMORY)
            ),
            _ => format!(
                "its window is {window}, and no more than {} is taken, for memory: repack it, with `zstd --long={ZSTD_WINDOW_LOG}` at most",
                size(1 << ZSTD_WINDOW_LOG)
            ),
        };
        ForeignError::refused(self.name(), reason)
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
        let decoder = match self {
            Self::Gzip => {
                Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(stream)), false)
            }
            Self::Xz => Decoder::Xz(Box::new(XzStreams::new(stream).map_err(failed)?)),
            Self::Bzip2 => Decoder::Other(Box::new(bzip2::bufread::MultiBzDecoder::new(stream))),
            Self::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(stream).map_err(failed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
                Decoder::Other(Box::new(decoder))
            }
        };
        Ok(Box::new(Explained { decoder, codec: self }))
    }
}

/// The dictionary that the first block of xz asks for (`xz-file-format.txt`, sections 3.1 and 5.3.1).
fn xz_dictionary(head: &[u8]) -> Option<u64> {
    let (flags, mut rest) = head.get(13..)?.split_first()?;
    // The block's sizes, of which each byte but the last has its highest bit set.
    for size in [0x40, 0x80] {
        if flags & size != 0 {
            let len = 1 + rest.iter().position(|byte| byte & 0x80 == 0)?;
            rest = &rest[len..];
        }
    }
    for _ in 0..=flags & 3 {
        let [filter, len, more @ ..] = rest else { return None };
        if *filter == 0x21 {
            let log = u64::from(more.first()? & 0x3F);
            return (log <= 40).then(|| (2 | log & 1) << (log / 2 + 11));
        }
        rest = more.get(usize::from(*len)..)?;
    }
    None
}

enum Decoder {
    /// With whether anything has come out of it.
    Gzip(Box<flate2::bufread::MultiGzDecoder<Stream>>, bool),
    Xz(Box<XzStreams>),
    Other(Box<dyn Read + Send>),
}

/// Where in a stream a decoder meets what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Within,
    /// Behind a whole member, where a further one may begin.
    Behind,
    Unknown,
}

impl Decoder {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder, has_begun) => {
                let read = decoder.read(buf)?;
                *has_begun |= read > 0;
                Ok(read)
            }
            Self::Xz(streams) => streams.read(buf),
            Self::Other(decoder) => decoder.read(buf),
        }
    }

    /// After an error.
    fn place(&self) -> Place {
        match self {
            // It has a header from there on where that was read.
            Self::Gzip(decoder, true) if decoder.header().is_none() => Place::Behind,
            Self::Xz(streams) if streams.is_behind => Place::Behind,
            Self::Gzip(..) | Self::Xz(_) => Place::Within,
            Self::Other(_) => Place::Unknown,
        }
    }
}

/// Streams of xz one behind the other, with zeros between them as the format allows.
struct XzStreams {
    decoder: Option<XzDecoder<Stream>>,
    /// Whether a stream has ended and nothing has come out of a further one yet.
    is_behind: bool,
}

impl XzStreams {
    fn new(source: Stream) -> io::Result<Self> {
        Ok(Self { decoder: Some(Self::begin(source)?), is_behind: false })
    }

    fn begin(source: Stream) -> io::Result<XzDecoder<Stream>> {
        let decoder = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, 0)?;
        Ok(XzDecoder::new_stream(source, decoder))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let read = decoder.read(buf)?;
            if read > 0 || buf.is_empty() {
                self.is_behind = false;
                return Ok(read);
            }
            self.is_behind = true;
            let mut source = self.decoder.take().expect("it is there").into_inner();
            if skip_padding(&mut source)? {
                self.decoder = Some(Self::begin(source)?);
            }
        }
        Ok(0)
    }
}

/// Skips zeros, of which there are four or a multiple of that (section 2.2 of the format). Whether anything else follows.
fn skip_padding(source: &mut Stream) -> io::Result<bool> {
    let mut skipped = 0;
    let more = loop {
        let bytes = source.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let (at_end, all) = (bytes.is_empty(), zeros == bytes.len());
        source.consume(zeros);
        skipped += zeros;
        if at_end || !all {
            break !at_end;
        }
    };
    if skipped % 4 != 0 {
        let fault = format!("{skipped} zeros, which are no padding");
        return Err(io::Error::new(io::ErrorKind::InvalidData, fault));
    }
    Ok(more)
}

/// A decoder whose errors say what is wrong with the stream, and not only with the call that met it.
struct Explained {
    decoder: Decoder,
    codec: Codec,
}

impl Read for Explained {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buf).map_err(|error| explain(self.codec, self.decoder.place(), error))
    }
}

fn explain(codec: Codec, place: Place, error: io::Error) -> io::Error {
    let is_the_sources = StoreError::find(&error).is_some() || error.raw_os_error().is_some();
    if is_the_sources || error.kind() == io::ErrorKind::Interrupted {
        return error;
    }
    let said = error.to_string();
    // The decoders have no other sign for it; the tests hold their words.
    if codec == Codec::Zstd && said.contains("too much memory")
        || codec == Codec::Xz && said.contains("memory limit")
    {
        return io::Error::other(codec.too_large("larger"));
    }
    let name = codec.name();
    let text = match (place, error.kind()) {
        (Place::Behind, _) => format!(
            "something stands behind the end of the {name} stream that is not {name}, or not all of it ({said})"
        ),
        (Place::Within, io::ErrorKind::UnexpectedEof) => {
            format!("the {name} stream is cut off: it ends before its own end ({said})")
        }
        (Place::Within, _) => format!("the {name} stream is damaged ({said})"),
        (Place::Unknown, _) => format!(
            "the {name} stream is cut off or damaged, or something stands behind its end that is not {name} ({said})"
        ),
    };
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries_of_xz_are_told_by_its_first_bytes() {
        let window = |head: &[u8]| Codec::Xz.window_bytes(head);
        let begin = b"\xfd7zXZ\0\0\x04\xe6\xd6\xb4\x46";
        // What xz -0, -9, -T2 -6 and --x86 --lzma2=preset=6 make.
        for (block, len) in [
            (&b"\x02\0\x21\x01\x0c\0\0\0"[..], 256 << 10),
            (b"\x02\0\x21\x01\x1c\0\0\0", 64 << 20),
            (b"\x04\xc0\x0a\x06\x21\x01\x16\0\0\0", 8 << 20),
            (b"\x02\x01\x04\0\x21\x01\x16\0", 8 << 20),
            (b"\x02\0\x21\x01\x29\0\0\0", 0),
            (b"\x02\0\x03\x01\x1c\0\0\0", 0),
        ] {
            let head = [&begin[..], block].concat();
            assert_eq!(window(&head), len, "{block:x?}");
            for cut in 0..head.len() {
                assert!(window(&head[..cut]) == 0 || window(&head[..cut]) == len);
            }
        }
    }
}
