//! The opening frame: what the file is, who made it, of which disk.
//!
//! It is a skippable frame at byte 0 that carries its own hash, so that a file whose writer was cut off can still be told
//! apart. The feature words let later versions add things: unknown compatible bits are ignored, an unknown incompatible
//! bit is a reason not to read the file.

use uuid::Uuid;

use crate::error::{FormatError, Part, Result};
use crate::fields::{Fields, SKIPPABLE_MAGIC, open_skippable, seal, unseal_magic};
use crate::{Hash, MAX_DISK_LEN, MAX_PRODUCER_LEN, MAX_SPAN_LEN, UNIT_LEN, VERSION};

pub(crate) const OPENING_KIND: &[u8; 8] = b"IMPRINTO";

/// From the magic number to the end of the producer string's length.
const FIXED_LEN: usize = 68;

/// The shortest and the longest opening frame.
pub(crate) const MIN_OPENING_LEN: u32 = 100;
pub(crate) const MAX_OPENING_LEN: u32 = 356;

/// Incompatible feature bit of images that refer to a parent image: delta images.
pub const INCOMPATIBLE_DELTA: u64 = 1;

/// The incompatible features that this reader knows.
const KNOWN_INCOMPATIBLE: u64 = INCOMPATIBLE_DELTA;

/// A delta image starts with this, `IMGD`, in place of a magic number that zstd knows: stock tools would otherwise unpack
/// what is no disk.
pub(crate) const DELTA_MAGIC: u32 = u32::from_le_bytes(*b"IMGD");

/// What an image says of itself before its first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The image's identity, chosen by its maker.
    pub image_id: Uuid,
    /// The program that made the image, with its version.
    pub producer: String,
    /// Features that a reader may ignore.
    pub compatible: u64,
    /// Features that a reader must know.
    pub incompatible: u64,
}

impl Header {
    /// A header without optional features.
    #[must_use]
    pub fn new(image_id: Uuid, producer: impl Into<String>) -> Self {
        Self { image_id, producer: producer.into(), compatible: 0, incompatible: 0 }
    }

    /// The header of a delta image.
    #[must_use]
    pub fn delta(image_id: Uuid, producer: impl Into<String>) -> Self {
        Self { incompatible: INCOMPATIBLE_DELTA, ..Self::new(image_id, producer) }
    }

    /// Whether the image refers to a parent.
    #[must_use]
    pub fn is_delta(&self) -> bool {
        self.incompatible & INCOMPATIBLE_DELTA != 0
    }

    fn magic(&self) -> u32 {
        if self.is_delta() { DELTA_MAGIC } else { SKIPPABLE_MAGIC }
    }
}

/// The opening frame's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) header: Header,
    pub(crate) disk_len: u64,
    pub(crate) span_len: u32,
}

/// Whether a file that begins with these bytes is meant to be an image of this format, or of one of its kin: whether they begin
/// with one of the magic numbers of opening frames, or name it. Either is enough, so that damage to one does not make it
/// something else.
#[must_use]
pub fn is_image(head: &[u8]) -> bool {
    [SKIPPABLE_MAGIC, DELTA_MAGIC].iter().any(|magic| head.starts_with(&magic.to_le_bytes()))
        || head.get(8..15) == Some(&OPENING_KIND[..7])
}

impl Opening {
    /// Refuses what the format cannot hold.
    pub(crate) fn validate(&self) -> Result<()> {
        let Self { header, disk_len, span_len } = self;
        if header.producer.len() > MAX_PRODUCER_LEN {
            return Err(FormatError::ProducerTooLong { len: header.producer.len() });
        }
        if *disk_len > MAX_DISK_LEN {
            return Err(FormatError::DiskTooLarge { disk_len: *disk_len });
        }
        if !span_len_ok(*span_len) {
            return Err(FormatError::BadSpanLen { span_len: *span_len });
        }
        check_features(header.incompatible)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Hash {
        open_skippable(out, OPENING_KIND);
        out[..4].copy_from_slice(&self.header.magic().to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.span_len.to_le_bytes());
        out.extend_from_slice(&self.header.compatible.to_le_bytes());
        out.extend_from_slice(&self.header.incompatible.to_le_bytes());
        out.extend_from_slice(self.header.image_id.as_bytes());
        out.extend_from_slice(&self.disk_len.to_le_bytes());
        let producer = self.header.producer.as_bytes();
        out.extend_from_slice(
            &u32::try_from(producer.len()).expect("validated: at most 256").to_le_bytes(),
        );
        out.extend_from_slice(producer);
        seal(out)
    }

    /// Takes a whole opening frame apart and gives its hash.
    pub(crate) fn parse(frame: &[u8]) -> Result<(Self, Hash)> {
        let damaged = |fault| FormatError::Damaged { part: Part::Opening, offset: 0, fault };
        let magic = Fields::new(frame).u32().unwrap_or(0);
        let (hash, mut fields) = unseal_magic(frame, magic, OPENING_KIND).map_err(damaged)?;
        check_version(fields.u32().ok_or(damaged("is too short"))?)?;
        let opening = Self::fields(&mut fields).ok_or(damaged("does not hold a header"))?;
        if !fields.rest().is_empty() {
            return Err(damaged("is longer than its fields"));
        }
        check_features(opening.header.incompatible)?;
        if opening.header.magic() != magic {
            return Err(damaged("has the magic number of another kind of image"));
        }
        if opening.disk_len > MAX_DISK_LEN || !span_len_ok(opening.span_len) {
            return Err(damaged("gives a disk or span length beyond the format's limits"));
        }
        Ok((opening, hash))
    }

    fn fields(fields: &mut Fields<'_>) -> Option<Self> {
        let span_len = fields.u32()?;
        let compatible = fields.u64()?;
        let incompatible = fields.u64()?;
        let image_id = Uuid::from_bytes(fields.array()?);
        let disk_len = fields.u64()?;
        let producer_len =
            usize::try_from(fields.u32()?).ok().filter(|len| *len <= MAX_PRODUCER_LEN)?;
        let producer = std::str::from_utf8(fields.bytes(producer_len)?).ok()?.to_owned();
        Some(Self {
            header: Header { image_id, producer, compatible, incompatible },
            disk_len,
            span_len,
        })
    }
}

/// Reads the length and the version out of the first bytes of a file, before anything else of it is believed.
pub(crate) fn opening_len(start: &[u8; 20]) -> Result<u32> {
    const NOT_OURS: FormatError =
        FormatError::NotAnImage { reason: "it does not start with an opening frame" };
    let mut fields = Fields::new(start);
    let magic = fields.u32();
    let payload_len = fields.u32().unwrap_or(0);
    let known = [SKIPPABLE_MAGIC, DELTA_MAGIC].map(Some);
    if !known.contains(&magic) || fields.array() != Some(*OPENING_KIND) {
        return Err(NOT_OURS);
    }
    check_version(fields.u32().unwrap_or(0))?;
    let len =
        payload_len.checked_add(8).filter(|len| (MIN_OPENING_LEN..=MAX_OPENING_LEN).contains(len));
    len.ok_or(FormatError::Damaged {
        part: Part::Opening,
        offset: 0,
        fault: "has an impossible length",
    })
}

pub(crate) fn check_version(found: u32) -> Result<()> {
    if found == VERSION { Ok(()) } else { Err(FormatError::UnsupportedVersion { found }) }
}

fn check_features(incompatible: u64) -> Result<()> {
    match incompatible & !KNOWN_INCOMPATIBLE {
        0 => Ok(()),
        bits => Err(FormatError::UnknownFeatures { bits }),
    }
}

fn span_len_ok(span_len: u32) -> bool {
    (UNIT_LEN..=MAX_SPAN_LEN).contains(&span_len) && span_len.is_multiple_of(UNIT_LEN)
}

const _: () = assert!(MIN_OPENING_LEN as usize == FIXED_LEN + 32);
const _: () = assert!(MAX_OPENING_LEN as usize == FIXED_LEN + MAX_PRODUCER_LEN + 32);

#[cfg(test)]
mod tests {
    use super::*;

    fn opening() -> Opening {
        let header = Header::new(Uuid::from_u128(7), "imprint-agent 0.1.0");
        Opening { header, disk_len: 12_345, span_len: 1 << 20 }
    }

    #[test]
    fn round_trips_and_reports_every_cut() {
        let mut frame = Vec::new();
        let hash = opening().encode(&mut frame);
        assert_eq!(Opening::parse(&frame).unwrap(), (opening(), hash));
        assert_eq!(opening_len(frame.first_chunk().unwrap()).unwrap() as usize, frame.len());
        for len in 0..frame.len() {
            Opening::parse(&frame[..len]).unwrap_err();
        }
    }

    #[test]
    fn an_unknown_incompatible_feature_is_refused_and_a_compatible_one_is_not() {
        let mut frame = Vec::new();
        let mut with = opening();
        with.header.compatible = u64::MAX;
        with.encode(&mut frame);
        assert_eq!(Opening::parse(&frame).unwrap().0, with);
        with.header.incompatible = INCOMPATIBLE_DELTA;
        with.encode(&mut frame);
        assert_eq!(frame[..4], *b"IMGD");
        assert_eq!(Opening::parse(&frame).unwrap().0, with);
        for bit in 1..64 {
            with.header.incompatible = 1 << bit;
            with.encode(&mut frame);
            let error = Opening::parse(&frame).unwrap_err();
            assert!(
                matches!(error, FormatError::UnknownFeatures { bits } if bits == 1 << bit),
                "{error}"
            );
            with.validate().unwrap_err();
        }
    }
}
