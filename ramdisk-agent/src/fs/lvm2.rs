//! An LVM2 physical volume: which of its extents are in use, and what is used in the logical volumes.
//!
//! Follows LVM2's own headers and code: `lib/format_text/layout.h` and `format-text.c` for label and metadata areas,
//! `import_vsn1.c` and `flags.c` for the text. A volume group on this one physical volume whose logical volumes are all linear is
//! mapped: each logical volume is looked at as a partition would be, and what it uses is mapped back to the extents that hold it.
//! Free extents are free; everything outside of the extents (label, metadata areas, boot loader area, the rest of the device) is
//! kept. The map is checked: the checksums of label, metadata area headers and text, all copies of the text against each other,
//! header against text, extents within the volume and none in two logical volumes. Everything else is taken raw, with the reason:
//! several physical volumes, stripes, mirrors, raid, snapshots, thin and cache pools, hidden volumes, flags that are not known.

mod backup;
mod group;
mod label;
mod mapped;
mod text;

use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, map_or_raw};
use super::{Clean, FsKind, LogicalVolume, VolumeMap, without_lvm};
use crate::extents::{Extent, Extents, MAX_PIECES};
use crate::probe::{self, Found};
use crate::table::{self, TableKind, TableOutcome};
pub use backup::Backup;
use group::Group;
pub use group::{Place, Volume as Linear};
pub use mapped::Mapped;

/// A guest's disk in a logical volume has sectors of this size.
const GUEST_SECTOR_BYTES: u32 = 512;
/// A logical volume's map may always have so many pieces, however many logical volumes there are.
const LEAST_PIECES: usize = 1 << 12;

/// The map of a volume with a label at a place.
pub fn map(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    found: Found,
    label: Extent,
) -> io::Result<VolumeMap> {
    let id = found.uuid.clone();
    let mut logical_volumes = Vec::new();
    let map = map_or_raw(found, len_bytes, |clean| {
        let header = label::read(src, len_bytes, label.start)?;
        let group = Group::parse(&header.text, id.as_deref(), header.data_offset, len_bytes)?;
        // What is not clean is said of each logical volume.
        *clean = Clean::Clean;
        logical_volumes = look_into(src, &group)?;
        Ok(believe(&group, len_bytes, &logical_volumes))
    })?;
    Ok(VolumeMap { logical_volumes, ..map })
}

/// The logical volumes of a physical one, each by its group's name and its own (`vg/root`), without a look at what is in them; `None` if that
/// is not a physical volume that [`map`] would map.
pub fn logical_volumes(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<Vec<Linear>>> {
    let Some((found, label)) = probe::covering(src, len_bytes)? else { return Ok(None) };
    if found.kind != FsKind::Lvm2 {
        return Ok(None);
    }
    let group = label::read(src, len_bytes, label.start).and_then(|header| {
        Group::parse(&header.text, found.uuid.as_deref(), header.data_offset, len_bytes)
    });
    match group {
        Ok(Group { name, volumes, .. }) => {
            let named =
                |volume: Linear| Linear { name: format!("{name}/{}", volume.name), ..volume };
            Ok(Some(volumes.into_iter().map(named).collect()))
        }
        Err(Failure::Doubt(_)) => Ok(None),
        Err(Failure::Read(e)) => Err(e),
    }
}

fn look_into(src: &mut (impl Read + Seek), group: &Group) -> Result<Vec<LogicalVolume>, Failure> {
    let mut list = Vec::new();
    for volume in &group.volumes {
        let mut inside = Mapped::new(src, &volume.pieces);
        let len = inside.len_bytes();
        let mut map = match table::read_table(&mut inside, len, GUEST_SECTOR_BYTES)? {
            TableOutcome::Table(table) if table.kind == TableKind::None => {
                without_lvm(&mut inside, len)?
            }
            // What a filesystem left behind there would say nothing of what is in the partitions.
            _ => VolumeMap::raw(FsKind::Unknown, len, "it has a partition table of its own"),
        };
        // The maps of all are kept for the plan.
        map.used.close_gaps((MAX_PIECES / group.volumes.len().max(1)).max(LEAST_PIECES));
        list.push(LogicalVolume {
            name: format!("{}/{}", group.name, volume.name),
            pieces: volume.pieces.clone(),
            map,
        });
    }
    Ok(list)
}

fn believe(group: &Group, len_bytes: u64, volumes: &[LogicalVolume]) -> Believed {
    let mut used = group.extents().invert(Extent { start: 0, len: len_bytes });
    let mut used_bytes_claimed = used.total_bytes();
    for volume in volumes {
        used = used.union(&volume.used());
        used.close_gaps(MAX_PIECES);
        used_bytes_claimed += volume.map.used_bytes_claimed;
    }
    Believed {
        block_bytes: 0,
        fs_bytes: group.physical.iter().map(|physical| physical.device_bytes).sum(),
        used,
        used_bytes_claimed,
    }
}

impl LogicalVolume {
    /// Where the bytes that are in use lie in the physical volume.
    pub(crate) fn used(&self) -> Extents {
        let mut before = 0;
        let mut places = Vec::new();
        for piece in &self.pieces {
            places.push((*piece, before));
            before += piece.len;
        }
        // In the order of the device: what is added behind the others costs nothing, however much they are.
        places.sort_unstable_by_key(|(piece, _)| piece.start);
        let mut used = Extents::new();
        for (piece, before) in places {
            for part in self.map.used.overlapping(before, piece.len) {
                used.push(piece.start + (part.start - before), part.len);
            }
        }
        used
    }
}
