//! How the maps of filesystems with many structures fail: the source cannot be read, or what was read cannot be believed.

use std::io;

use super::{Clean, Taken, VolumeMap};
use crate::extents::Extents;
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

/// A reason to take the volume raw.
pub fn doubt(reason: impl Into<String>) -> Failure {
    Failure::Doubt(reason.into())
}

/// What a filesystem that can be believed says of itself; the fields are those of [`VolumeMap`].
pub struct Believed {
    pub block_bytes: u64,
    pub fs_bytes: u64,
    pub used: Extents,
    pub used_bytes_claimed: u64,
}

/// The map of a volume that was recognised: as `look` finds it, or raw for its doubt. `look` sets whether the filesystem was shut
/// down cleanly as soon as that is known, so that it is said of a volume that is taken raw as well.
pub fn map_or_raw(
    found: Found,
    len_bytes: u64,
    look: impl FnOnce(&mut Clean) -> Result<Believed, Failure>,
) -> io::Result<VolumeMap> {
    let mut clean = Clean::Unknown;
    let map = match look(&mut clean) {
        Ok(believed) => VolumeMap {
            kind: found.kind,
            uuid: None,
            label: None,
            block_bytes: u32::try_from(believed.block_bytes).expect("at most 32 MiB"),
            fs_bytes: believed.fs_bytes,
            used: believed.used,
            used_bytes_claimed: believed.used_bytes_claimed,
            taken: Taken::Map,
            clean: Clean::Unknown,
            note: None,
            logical_volumes: Vec::new(),
        },
        Err(Failure::Doubt(reason)) => VolumeMap::raw(found.kind, len_bytes, reason),
        Err(Failure::Read(error)) => return Err(error),
    };
    Ok(VolumeMap { uuid: found.uuid, label: found.label, clean, ..map })
}
