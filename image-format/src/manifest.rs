//! The manifest: what was imaged, as JSON.
//!
//! It says which disk it was, how it was partitioned, and what is on each volume; people and programs read it without
//! touching a frame. Readers ignore fields that they do not know, and optional fields may be missing. Sizes are in
//! bytes, times are RFC 3339 text. The content of the disk, its partition table included, is in the frames: the
//! manifest describes, it is not what a restore writes.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Root;

/// What an image says of the disk it was taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format's version; equal to the opening frame's.
    pub format_version: u32,
    /// The image's identity; equal to the opening frame's.
    pub image_id: Uuid,
    /// When the capture began, RFC 3339.
    pub created: String,
    /// The program that made the image; equal to the opening frame's.
    pub producer: String,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A description for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The image that this one is the difference to; of delta images, and only of those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// The disk.
    pub disk: Disk,
    /// The span of disk that a data frame covers; equal to the opening frame's.
    pub span_len: u32,
    /// How the data frames are compressed.
    pub compression: Compression,
    /// The disk's partition table.
    pub table: PartitionTable,
    /// The volumes by their place on the disk. An image of one partition or of a bare filesystem has one.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Parts of the disk that could not be read, in order; they are zero in the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad_sectors: Vec<BadSectors>,
}

/// The image that a delta image is the difference to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its root: it is this image and no other.
    pub root: Root,
    /// Its identity.
    pub image_id: Uuid,
    /// The file name that it had.
    pub name: String,
}

/// The disk, or the partition or file that was imaged in place of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The model as the drive reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The serial number as the drive reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The world-wide name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// The length; equal to the opening frame's.
    pub size_bytes: u64,
    /// The unit in which the partition table counts.
    pub logical_sector_bytes: u32,
    /// The unit in which the drive writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_sector_bytes: Option<u32>,
}

/// How the data frames are compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compression {
    /// The method: `zstd`.
    pub method: String,
    /// The level.
    pub level: i32,
}

impl Compression {
    /// zstd at this level.
    #[must_use]
    pub fn zstd(level: i32) -> Self {
        Self { method: "zstd".to_owned(), level }
    }
}

/// The kind of partition table on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    /// A GUID partition table.
    Gpt,
    /// A master boot record.
    Mbr,
    /// None: a bare filesystem, or nothing that is known.
    #[default]
    None,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The partition table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionTable {
    /// Its kind.
    pub kind: TableKind,
    /// The disk GUID, or the MBR's disk signature as 8 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_id: Option<String>,
    /// The first logical block that partitions may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_usable_lba: Option<u64>,
    /// The last logical block that partitions may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_usable_lba: Option<u64>,
    /// The first logical block of the primary table's entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries_lba: Option<u64>,
    /// How many entries the table has room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_count: Option<u32>,
    /// The size of one entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_bytes: Option<u32>,
    /// Whether boot code and the gap before the first partition are in the image as data.
    #[serde(default)]
    pub boot_code_kept: bool,
    /// What was odd about the table, such as a damaged primary copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// How a volume was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Taken {
    /// By its filesystem's map of used blocks.
    Map,
    /// Every block, for the reason in [`Volume::raw_reason`].
    Raw,
    /// In a way that this version does not know.
    #[serde(other)]
    Unknown,
}

/// A partition, or the one filesystem of a disk without a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The partition's number, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Where it starts on the disk.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// The partition type: a GUID, or an MBR type byte as `0x83`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub type_id: Option<String>,
    /// The partition's own GUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_uuid: Option<String>,
    /// The partition's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_name: Option<String>,
    /// The GPT attribute bits.
    #[serde(default)]
    pub attributes: u64,
    /// The MBR's active flag, or GPT's legacy-boot attribute.
    #[serde(default)]
    pub bootable: bool,
    /// The filesystem as `blkid` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// The filesystem's UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_uuid: Option<String>,
    /// The filesystem's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_label: Option<String>,
    /// The filesystem's block size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// How much of the volume is in use.
    pub used_bytes: u64,
    /// How it was taken.
    pub taken: Taken,
    /// Why it was taken raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_reason: Option<String>,
    /// What is worth knowing of a map: that the journal was not replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The logical volumes in it, whose used bytes are among its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logical_volumes: Vec<LogicalVolume>,
}

/// A logical volume in a volume that is a physical volume of LVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalVolume {
    /// The volume group's name and its own: `vg/root`.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// Where its bytes are on the disk, in order.
    #[serde(default)]
    pub segments: Vec<Segment>,
    /// The filesystem as `blkid` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// The filesystem's UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_uuid: Option<String>,
    /// The filesystem's label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_label: Option<String>,
    /// The filesystem's block size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_bytes: Option<u32>,
    /// How much of it is in use.
    pub used_bytes: u64,
    /// How it was taken.
    pub taken: Taken,
    /// Why it was taken raw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_reason: Option<String>,
    /// What is worth knowing of a map: that the journal was not replayed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A part of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where it starts on the disk.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

/// A part of the disk that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadSectors {
    /// Where it starts on the disk.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"{
        "format_version": 1, "image_id": "00000000-0000-0000-0000-000000000001", "created": "2026-11-23T12:00:00Z",
        "producer": "p", "span_len": 4096, "compression": {"method": "zstd", "level": 3, "dictionary": null},
        "disk": {"size_bytes": 18446744073709551615, "logical_sector_bytes": 512, "colour": "grey"},
        "table": {"kind": "amiga"}, "invented": [{"later": true}],
        "volumes": [{"start_bytes": 0, "len_bytes": 1, "used_bytes": 1, "taken": "delta"}]
    }"#;

    #[test]
    fn later_fields_are_ignored_and_later_kinds_are_unknown() {
        let manifest: Manifest = serde_json::from_str(LEAST).unwrap();
        assert_eq!(manifest.table.kind, TableKind::Unknown);
        assert_eq!(manifest.volumes[0].taken, Taken::Unknown);
        assert_eq!(manifest.disk.size_bytes, u64::MAX);
        assert_eq!(manifest.disk.model, None);
    }

    #[test]
    fn what_is_absent_is_not_written() {
        let mut manifest: Manifest = serde_json::from_str(LEAST).unwrap();
        let json = serde_json::to_string(&manifest).unwrap();
        assert!(!json.contains("null") && !json.contains("bad_sectors"), "{json}");
        manifest.bad_sectors.push(BadSectors { start_bytes: 512, len_bytes: 4096 });
        manifest.volumes[0].raw_reason = Some("xfs: \u{1F4BE} no map".to_owned());
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }
}
