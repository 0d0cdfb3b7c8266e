//! The header of a zstd frame (RFC 8878, section 3.1.1.1), read before the frame is given to zstd.
//!
//! A frame of an image declares its content size and carries zstd's checksum, uses no dictionary, and stays within the
//! window that stock tools accept. The index pins the stored bytes but says nothing of these, so they are looked at here.

use crate::fields::Fields;

const MAGIC: u32 = 0xFD2F_B528;

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ZstdHeader {
    pub(crate) content_len: Option<u64>,
    pub(crate) window_len: u64,
    pub(crate) single_segment: bool,
    pub(crate) checksum: bool,
    pub(crate) dictionary: bool,
}

impl ZstdHeader {
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(frame);
        if fields.u32()? != MAGIC {
            return None;
        }
        let descriptor = fields.u8()?;
        if descriptor & 0b1000 != 0 {
            return None;
        }
        let single_segment = descriptor & 0b10_0000 != 0;
        let window = if single_segment { None } else { Some(fields.u8()?) };
        let dictionary_id_len = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
        let dictionary = fields.bytes(dictionary_id_len)?.iter().any(|byte| *byte != 0);
        let content_len = match (descriptor >> 6, single_segment) {
            (0, false) => None,
            (0, true) => Some(u64::from(fields.u8()?)),
            (1, _) => Some(u64::from(fields.u16()?) + 256),
            (2, _) => Some(u64::from(fields.u32()?)),
            _ => Some(fields.u64()?),
        };
        let window_len = match window {
            Some(byte) => {
                let base = 1_u64 << (10 + (byte >> 3));
                base + base / 8 * u64::from(byte & 0b111)
            }
            None => content_len?,
        };
        let checksum = descriptor & 0b100 != 0;
        Some(Self { content_len, window_len, single_segment, checksum, dictionary })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_what_zstd_writes() {
        for len in [0_usize, 1, 255, 256, 65_791, 65_792, 1 << 20] {
            let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
            compressor.include_checksum(true).unwrap();
            let frame = compressor.compress(&vec![7; len]).unwrap();
            let header = ZstdHeader::parse(&frame).unwrap();
            assert_eq!(header.content_len, Some(len as u64));
            assert!(header.checksum && !header.dictionary);
            (0..6.min(frame.len())).for_each(|cut| {
                ZstdHeader::parse(&frame[..cut]);
            });
        }
        assert_eq!(ZstdHeader::parse(b"\x28\xb5\x2f\xfd"), None);
    }
}
