//! Compression of the finished archive, and decompression of modules and firmware.
//!
//! Always on one thread: the output of a parallel compressor may depend on timing, and two builds must be identical.

use std::io::{Read, Write};
use std::path::Path;

use crate::{Error, Result};

/// How the initramfs is compressed. The kernel must have the matching decompressor (`CONFIG_RD_ZSTD`, `CONFIG_RD_GZIP`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// zstd: small and quick to unpack; kernels since 5.9
    #[default]
    Zstd,
    /// gzip: every kernel
    Gzip,
    /// Not compressed
    None,
}

/// A level beyond which the default image shrinks by less than one per cent and takes several times as long.
const ZSTD_LEVEL: i32 = 12;
/// The kernel's decompressor refuses windows above 8 MiB (`lib/decompress_unzstd.c`).
const ZSTD_WINDOW_LOG: u32 = 23;
/// The largest module or firmware file that is believed: real ones stay far below.
const MAX_UNPACKED_LEN: u64 = 512 << 20;

impl Compression {
    /// Compresses a whole archive.
    pub(crate) fn pack(self, archive: Vec<u8>) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Zstd => {
                let mut encoder = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW_LOG)?;
                encoder.include_checksum(true)?;
                encoder.write_all(&archive)?;
                encoder.finish()
            }
            Self::Gzip => {
                let mut encoder =
                    flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::best());
                encoder.write_all(&archive)?;
                encoder.finish()
            }
            Self::None => Ok(archive),
        }
    }
}

/// The suffixes of compressed modules and firmware files.
pub(crate) const SUFFIXES: [&str; 3] = [".xz", ".zst", ".gz"];

/// Reads a file, unpacked if its name says that it is compressed.
pub(crate) fn read_unpacked(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(Error::reading(path))?;
    let mut bytes = Vec::new();
    let limit = MAX_UNPACKED_LEN + 1;
    let read = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => {
            liblzma::read::XzDecoder::new_multi_decoder(file).take(limit).read_to_end(&mut bytes)
        }
        Some("gz") => flate2::read::MultiGzDecoder::new(file).take(limit).read_to_end(&mut bytes),
        Some("zst") => zstd::Decoder::new(file).and_then(|d| d.take(limit).read_to_end(&mut bytes)),
        _ => std::io::BufReader::new(file).take(limit).read_to_end(&mut bytes),
    };
    read.map_err(Error::reading(path))?;
    if bytes.len() as u64 > MAX_UNPACKED_LEN {
        let why = format!("is larger than {MAX_UNPACKED_LEN} bytes unpacked");
        return Err(Error::BadModule { path: path.to_owned(), why });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suffix_unpacks() {
        let dir = tempfile::tempdir().unwrap();
        let content = b"imprint".repeat(5000);
        let packed = [
            ("a.ko", content.clone()),
            ("a.ko.zst", Compression::Zstd.pack(content.clone()).unwrap()),
            ("a.ko.gz", Compression::Gzip.pack(content.clone()).unwrap()),
            ("a.ko.xz", {
                let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
                encoder.write_all(&content).unwrap();
                encoder.finish().unwrap()
            }),
        ];
        for (name, bytes) in packed {
            let path = dir.path().join(name);
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(read_unpacked(&path).unwrap(), content, "{name}");
            if name != "a.ko" {
                std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
                assert!(read_unpacked(&path).is_err(), "{name} cut short");
            }
        }
    }

    #[test]
    fn the_window_is_one_that_the_kernel_accepts() {
        let packed = Compression::Zstd.pack(vec![7; 40 << 20]).unwrap();
        let descriptor = packed[5];
        assert_eq!(packed[4] & 0x20, 0, "not single-segment: the window would be the whole file");
        assert!(10 + u32::from(descriptor >> 3) <= ZSTD_WINDOW_LOG);
    }
}
