//! File records and their attributes.

use super::runs::Runs;
use crate::fs::bytes::{le16, le32, le64};
use crate::fs::failure::{Failure, doubt};

/// Sectors are protected in this stride, whatever the disk's are.
const STRIDE: usize = 512;
const IN_USE: u16 = 1;

pub const ATTRIBUTE_LIST: u32 = 0x20;
pub const FILE_NAME: u32 = 0x30;
pub const VOLUME_INFORMATION: u32 = 0x70;
pub const DATA: u32 = 0x80;
pub const BITMAP: u32 = 0xB0;
const END: u32 = 0xFFFF_FFFF;

/// A record in use.
#[derive(Debug, Clone)]
pub struct Record {
    pub number: u64,
    bytes: Vec<u8>,
}

/// An attribute, or the part of it that a record has.
#[derive(Debug)]
pub struct Attribute<'a> {
    pub kind: u32,
    /// In UTF-16; most have none.
    pub name: &'a [u8],
    pub place: Place<'a>,
}

/// Where an attribute's value is.
#[derive(Debug)]
pub enum Place<'a> {
    /// In the record.
    Here(&'a [u8]),
    /// In clusters.
    Runs {
        /// Where they are.
        runs: Runs,
        /// How many bytes of the value mean something; behind them all is zero. Only the first part tells.
        initialized_bytes: u64,
    },
}

/// The number of the record that a reference means; its upper bits are a sequence number.
pub fn referenced(reference: u64) -> u64 {
    reference & ((1 << 48) - 1)
}

/// Checks the mark at the end of each sector and puts the bytes back that stood there.
fn unprotect(bytes: &mut [u8]) -> Option<()> {
    let (list_at, count) = (usize::from(le16(bytes, 4)), usize::from(le16(bytes, 6)));
    if count != bytes.len() / STRIDE + 1 || list_at % 2 != 0 || list_at + 2 * count > STRIDE - 2 {
        return None;
    }
    let list = bytes[list_at..list_at + 2 * count].to_vec();
    let (mark, saved) = list.split_at(2);
    for (sector, saved) in bytes.chunks_exact_mut(STRIDE).zip(saved.chunks_exact(2)) {
        let end = &mut sector[STRIDE - 2..];
        if end != mark {
            return None;
        }
        end.copy_from_slice(saved);
    }
    Some(())
}

impl Record {
    /// `None` if it is not in use. `allocated` says whether the table has it for a file: then it must be sound.
    pub fn parse(
        number: u64,
        mut bytes: Vec<u8>,
        allocated: bool,
    ) -> Result<Option<Self>, Failure> {
        let sound = bytes.starts_with(b"FILE") && unprotect(&mut bytes).is_some();
        if !sound {
            let empty = bytes.iter().all(|byte| *byte == 0);
            return if allocated && !empty {
                Err(doubt(format!("file record {number} is damaged")))
            } else {
                Ok(None)
            };
        }
        Ok((le16(&bytes, 22) & IN_USE != 0).then_some(Self { number, bytes }))
    }

    /// The record that this one continues, or its own number.
    pub fn base(&self) -> u64 {
        // A reference to record 0 is not zero, as it has a sequence number.
        match le64(&self.bytes, 32) {
            0 => self.number,
            base => referenced(base),
        }
    }

    /// Its bytes up to where they are used.
    pub fn used(&self) -> &[u8] {
        let used = usize::try_from(le32(&self.bytes, 24)).unwrap_or(usize::MAX);
        &self.bytes[..used.min(self.bytes.len())]
    }

    /// All attributes; a record in which they do not follow each other up to the end is in doubt.
    pub fn attributes(&self) -> Result<Vec<Attribute<'_>>, Failure> {
        self.try_attributes().ok_or_else(|| {
            doubt(format!("the attributes of file record {} are damaged", self.number))
        })
    }

    fn try_attributes(&self) -> Option<Vec<Attribute<'_>>> {
        let used = self.used();
        let mut at = usize::from(le16(&self.bytes, 20));
        let mut list = Vec::new();
        loop {
            let rest = used.get(at..).filter(|rest| rest.len() >= 4)?;
            if le32(rest, 0) == END {
                return Some(list);
            }
            let len = usize::try_from(le32(rest.get(..8)?, 4)).ok()?;
            let bytes = rest.get(..len).filter(|bytes| bytes.len() >= 24 && len % 8 == 0)?;
            list.push(Attribute::parse(bytes)?);
            at += len;
        }
    }

    /// The part of the unnamed attribute of a kind that has its cluster `first`, if it begins here: its runs, and how many bytes
    /// of the value mean something if this is the first part.
    pub fn part(&self, kind: u32, first: u64) -> Result<Option<(Runs, u64)>, Failure> {
        Ok(self.attributes()?.into_iter().find_map(|attribute| match attribute.place {
            Place::Runs { runs, initialized_bytes }
                if attribute.kind == kind && attribute.name.is_empty() && runs.first == first =>
            {
                Some((runs, initialized_bytes))
            }
            _ => None,
        }))
    }

    /// The unnamed attribute of a kind, if its value is here.
    pub fn value(&self, kind: u32) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.attributes()?.into_iter().find_map(|attribute| match attribute.place {
            Place::Here(bytes) if attribute.kind == kind && attribute.name.is_empty() => {
                Some(bytes.to_vec())
            }
            _ => None,
        }))
    }
}

impl<'a> Attribute<'a> {
    /// From bytes that are as many as it says, at least 24.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let name_at = usize::from(le16(bytes, 10));
        let name = bytes.get(name_at..name_at + 2 * usize::from(bytes[9]))?;
        let place = if bytes[8] == 0 {
            let len = usize::try_from(le32(bytes, 16)).ok()?;
            let at = usize::from(le16(bytes, 20));
            Place::Here(bytes.get(at..at.checked_add(len)?)?)
        } else {
            let fixed = bytes.get(..64)?;
            let (first, last) = (le64(fixed, 16), le64(fixed, 24));
            // Without clusters the last is -1.
            let end = last.wrapping_add(1);
            let runs = Runs::decode(bytes.get(usize::from(le16(fixed, 32))..)?, first, end)?;
            Place::Runs { runs, initialized_bytes: le64(fixed, 56) }
        };
        Some(Self { kind: le32(bytes, 0), name, place })
    }
}
