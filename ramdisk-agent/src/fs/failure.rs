//! How the maps of filesystems with many structures fail: the source cannot be read, or what was read cannot be believed.

use std::io::{self, Read, Seek, SeekFrom};

use super::{Clean, VolumeMap};
use crate::probe::Found;

/// Why there is no map.
#[derive(Debug)]
pub enum Failure {
    /// The source cannot be read.
    Read(io::Error),
    /// The volume is to be taken raw, for this reason.
    Doubt(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl Failure {
    /// The volume taken raw, if it can be read.
    pub fn into_raw(self, found: Found, len_bytes: u64, clean: Clean) -> io::Result<VolumeMap> {
        match self {
            Self::Read(error) => Err(error),
            Self::Doubt(reason) => {
                let map = VolumeMap::raw(found.kind, len_bytes, reason);
                Ok(VolumeMap { uuid: found.uuid, label: found.label, clean, ..map })
            }
        }
    }
}

/// A reason to take the volume raw.
pub fn doubt(reason: impl Into<String>) -> Failure {
    Failure::Doubt(reason.into())
}

/// Reads bytes whose number was checked.
pub fn read(src: &mut (impl Read + Seek), offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).expect("it was checked")];
    src.seek(SeekFrom::Start(offset))?;
    src.read_exact(&mut bytes)?;
    Ok(bytes)
}
