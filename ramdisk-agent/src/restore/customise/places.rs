//! The volumes of an image, and the logical volumes in them, as places on a target.

use std::io;

use super::root::Place;
use crate::fs::{self, FsKind, Linear, Mapped};
use crate::image::ImageDisk;
use crate::probe::{self, Found, Part};
use crate::table::Slot;

/// What a part of an image's disk holds: the volume, or the logical volumes that are in it. Its places are counted from the volume's start.
pub fn volumes_of(disk: &mut ImageDisk<'_>, start: u64, len: u64) -> io::Result<Vec<Place>> {
    let mut part = Part::new(disk, start, len);
    let found = probe::whole(&mut part, len)?;
    let whole = of(found, 0, len);
    let inside = match whole.kind {
        FsKind::Lvm2 => fs::logical_volumes(&mut part, len)?.unwrap_or_default(),
        _ => Vec::new(),
    };
    if inside.is_empty() {
        return Ok(vec![whole]);
    }
    inside.into_iter().map(|volume| logical(&mut part, volume)).collect()
}

fn logical(part: &mut Part<'_, ImageDisk<'_>>, volume: Linear) -> io::Result<Place> {
    let Linear { name, pieces } = volume;
    let mut inside = Mapped::new(part, &pieces);
    let len = inside.len_bytes();
    let found = probe::whole(&mut inside, len)?;
    let is_together = pieces.windows(2).all(|pair| pair[0].end() == pair[1].start);
    // A volume has at least one piece.
    let start = pieces.first().map_or(0, |piece| piece.start);
    Ok(Place { logical: Some(name), is_scattered: !is_together, ..of(found, start, len) })
}

fn of(found: Option<Found>, start: u64, len: u64) -> Place {
    match found {
        Some(Found { kind, uuid, label }) => {
            Place { uuid, label, ..Place::new(None, kind, start, len) }
        }
        None => Place::new(None, FsKind::Unknown, start, len),
    }
}

impl Place {
    /// The same on a target: in a partition there, whose UUID this is.
    pub fn in_partition(self, slot: &Slot, part_uuid: Option<String>) -> Self {
        let is_whole = self.logical.is_none();
        Self {
            number: Some(slot.number),
            start_bytes: slot.start_bytes + self.start_bytes,
            // A partition may be larger than the volume that was put there.
            len_bytes: if is_whole { slot.len_bytes } else { self.len_bytes },
            part_uuid: part_uuid.filter(|_| is_whole),
            ..self
        }
    }
}
