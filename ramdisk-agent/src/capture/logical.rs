//! Logical volumes in the plan of a capture, each with what it holds, below the physical volume that they lie in.

use std::fmt;

use serde::Serialize;

use super::plan::remarks;
use crate::extents::Extent;
use crate::fs::{LogicalVolume, Taken};
use crate::words::size;

/// A logical volume of a volume group that lies in one partition, or on one disk.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedLogicalVolume {
    /// The volume group's name and its own: `vg/root`.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// `ext4`, `swap`, `unknown` …
    pub filesystem: String,
    /// The filesystem's UUID.
    pub uuid: Option<String>,
    /// The filesystem's label.
    pub label: Option<String>,
    /// The filesystem's block size, 0 if there is none.
    pub block_bytes: u32,
    /// Bytes that the filesystem says it uses; its whole length if it is taken raw.
    pub used_bytes: u64,
    /// Bytes of it that the image keeps.
    pub kept_bytes: u64,
    /// Why every block is taken; `None` if the map of used blocks is.
    pub raw_reason: Option<String>,
    /// What is worth knowing of its map: that the journal was not replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Where its bytes are on the disk, in order.
    #[serde(skip)]
    pieces: Vec<Extent>,
}

impl PlannedLogicalVolume {
    /// One in a physical volume that starts at a byte of the disk.
    pub fn new(volume: LogicalVolume, start: u64) -> Self {
        let len_bytes = volume.len_bytes();
        let pieces = volume.pieces.iter().map(|p| Extent { start: start + p.start, len: p.len });
        Self {
            name: volume.name,
            len_bytes,
            filesystem: volume.map.kind.to_string(),
            uuid: volume.map.uuid,
            label: volume.map.label,
            block_bytes: volume.map.block_bytes,
            used_bytes: volume.map.used_bytes_claimed,
            kept_bytes: volume.map.used.total_bytes(),
            raw_reason: match volume.map.taken {
                Taken::Map => None,
                Taken::Raw { reason } => Some(reason),
            },
            note: volume.map.note,
            pieces: pieces.collect(),
        }
    }

    /// What the manifest says of it.
    pub fn manifest(&self) -> image_format::LogicalVolume {
        image_format::LogicalVolume {
            name: self.name.clone(),
            len_bytes: self.len_bytes,
            segments: self
                .pieces
                .iter()
                .map(|p| image_format::Segment { start_bytes: p.start, len_bytes: p.len })
                .collect(),
            filesystem: Some(self.filesystem.clone()),
            fs_uuid: self.uuid.clone(),
            fs_label: self.label.clone(),
            block_bytes: Some(self.block_bytes).filter(|n| *n > 0),
            used_bytes: self.used_bytes,
            taken: if self.raw_reason.is_some() {
                image_format::Taken::Raw
            } else {
                image_format::Taken::Map
            },
            raw_reason: self.raw_reason.clone(),
            note: self.note.clone(),
        }
    }
}

impl fmt::Display for PlannedLogicalVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = self.label.as_deref().unwrap_or("-").escape_debug().to_string();
        write!(
            f,
            "{:>12}  {:8} {label:13} {:>12} of {:>12} kept",
            self.name,
            self.filesystem,
            size(self.kept_bytes),
            size(self.len_bytes)
        )?;
        f.write_str(&remarks(&self.raw_reason, &self.note))
    }
}
