//! The plan of a capture: what the disk holds, and which of its bytes the image keeps.

use std::fmt;
use std::io;

use agent_api::{CaptureOptions, DirtyPolicy, DiskInfo, ErrorKind};
use serde::Serialize;

use super::logical::PlannedLogicalVolume;
use crate::disk::{Disk, Unreadable};
use crate::error::{Error, Result};
use crate::extents::{Extent, Extents, MAX_PIECES};
use crate::fs::{self, Clean, FsKind, Taken, VolumeMap};
use crate::probe::{self, FirmwareRaid};
use crate::table::{self, Partition, Table, TableKind, TableOutcome, TableRefusal};
use crate::words::size;

/// The gap before the first partition is kept whole up to this size: boot loaders live there.
const MAX_BOOT_GAP: u64 = 64 << 20;
/// Of every other gap between partitions, and of the unpartitioned end of the disk, this much is kept at both ends: firmware
/// RAID and other labels live there.
const GAP_MARGIN: u64 = 1 << 20;

/// What to do about a sector that cannot be read.
pub const BAD_SECTOR_ADVICE: &str =
    "check the drive and its cable, or save what can be read with --rescue";

/// What a capture will keep, and why.
#[derive(Debug, Clone, Serialize)]
pub struct CapturePlan {
    /// The disk.
    pub disk: DiskInfo,
    /// Its size.
    pub disk_bytes: u64,
    /// Its partition table's kind: `gpt`, `mbr` or `none`.
    pub table_kind: String,
    /// The partitions, or the one bare filesystem, in the order of the disk.
    pub volumes: Vec<PlannedVolume>,
    /// What was odd but not wrong.
    pub warnings: Vec<String>,
    /// Bytes that the image keeps, tables and gaps included.
    pub kept_bytes: u64,
    /// Those bytes.
    #[serde(skip)]
    pub used: Extents,
    #[serde(skip)]
    pub(super) table: Table,
}

/// A partition, or the bare filesystem of a disk without a table.
#[derive(Debug, Clone, Serialize)]
pub struct PlannedVolume {
    /// Its number; `None` without a table.
    pub number: Option<u32>,
    /// Where it starts on the disk.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// `ext4`, `fat32`, `swap`, `unknown` …
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
    /// What is in it, if it is a physical volume of LVM that has a map.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logical_volumes: Vec<PlannedLogicalVolume>,
    #[serde(skip)]
    pub(super) partition: Option<Partition>,
}

/// Reads tables and maps. Refuses tables that cannot be trusted, and filesystems that were not shut down cleanly unless they
/// are to be copied whole. With `rescue`, what cannot be read is got around: by the other copy of a table, by copying a volume
/// whole.
pub fn make(disk: &Disk, options: &CaptureOptions) -> Result<CapturePlan> {
    let path = disk.path().display();
    let len = disk.len_bytes();
    let mut whole = disk.window(0, len);
    if options.rescue {
        whole = whole.with_zeros_for_bad_sectors();
    }
    let outcome = table::read_table(&mut whole, len, disk.logical_sector_bytes())
        .map_err(|e| read_error(e, "reading the partition table"))?;
    let zeroed = whole.zeroed();
    let mut table = match outcome {
        TableOutcome::Table(table) => table,
        // What makes no sense may do so only because of what cannot be read.
        TableOutcome::Refused(refusal) if !zeroed.is_empty() => {
            return Ok(without_table(disk, &refusal));
        }
        TableOutcome::Refused(refusal) => {
            return Err(Error::refused(format!(
                "the partition table of {path} cannot be captured"
            ))
            .because(refusal));
        }
    };
    let raid = probe::firmware(&mut whole, len);
    table.warnings.extend(raid.map(of_firmware_raid));
    let mut used = table.metadata.clone();
    for gap in gaps(&table, len) {
        used.insert(gap.start, gap.len);
    }
    let mut volumes = Vec::new();
    let mut dirty = Vec::new();
    let parts: Vec<Option<&Partition>> = if table.partitions.is_empty() {
        vec![None]
    } else {
        table.partitions.iter().map(Some).collect()
    };
    for partition in parts {
        let (start, volume_len) = partition.map_or((0, len), |p| (p.start_bytes, p.len_bytes));
        let name = partition
            .map_or_else(|| "the filesystem".into(), |p| format!("partition {}", p.number));
        let mut map = match raid {
            Some(raid) if raid.is_striped => {
                // What looks like a filesystem is the first of its stripes.
                VolumeMap::raw(
                    FsKind::Unknown,
                    volume_len,
                    format!("the disk is a member of {raid}"),
                )
            }
            _ => match fs::map_volume(&mut disk.window(start, volume_len), volume_len) {
                Err(error) if options.rescue => without_metadata(disk, start, volume_len, &error)?,
                mapped => mapped.map_err(|e| read_error(e, &format!("mapping {name}")))?,
            },
        };
        if partition.is_none() && table.kind != TableKind::None {
            // It may be left over from other days, with data in use behind it that no table knows of.
            map.take_whole(volume_len, "its partition table has no partitions");
        }
        dirty.extend(not_clean(&mut map, volume_len, &name, options.dirty == DirtyPolicy::Raw));
        if zeroed.contains_range(0, 1) || (partition.is_none() && !zeroed.is_empty()) {
            // Whatever was found may be left over from other days, and the valid table may be what cannot be read.
            let reason = "sectors cannot be read that may hold the partition table";
            map.take_whole(volume_len, reason);
        }
        let mapped = map.used.shifted(start);
        volumes.push(planned(partition, start, volume_len, map));
        used = used.union(&mapped);
        used.close_gaps(MAX_PIECES);
    }
    check_clean(&path.to_string(), &dirty)?;
    if zeroed.contains_range(0, 1) {
        used = Extents::single(0, len);
    }
    Ok(CapturePlan::new(disk.info(), len, table, volumes, used))
}

/// What is to be known of a capture of one disk of several.
fn of_firmware_raid(raid: FirmwareRaid) -> String {
    let holds =
        if raid.is_striped { "a part of what the RAID holds" } else { "what is on this disk" };
    format!(
        "the disk is a member of {raid}, and captured is {holds}; capture the RAID's own device where its system runs, or, if \
         there is no RAID any more, erase its signature (wipefs)"
    )
}

/// The plan of a disk whose table cannot be made out, since sectors of it cannot be read: all of it.
fn without_table(disk: &Disk, refusal: &TableRefusal) -> CapturePlan {
    let len = disk.len_bytes();
    let reason = format!(
        "sectors of the partition table cannot be read, and nothing is known of its partitions ({refusal})"
    );
    let map = VolumeMap::raw(FsKind::Unknown, len, reason);
    let table = Table::none(disk.logical_sector_bytes());
    let volumes = vec![planned(None, 0, len, map)];
    CapturePlan::new(disk.info(), len, table, volumes, Extents::single(0, len))
}

/// Refuses a disk with volumes that were not shut down cleanly.
pub fn check_clean(disk: &str, dirty: &[String]) -> Result<()> {
    if dirty.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::SourceNotClean,
        format!(
            "{disk} was not shut down cleanly: {}; start the system and shut it down (not hibernate), or check the filesystem, \
             or copy such partitions whole with --dirty raw",
            dirty.join("; ")
        ),
    ))
}

/// The map of a volume whose metadata cannot be read: all of it, under the name that can still be found.
fn without_metadata(disk: &Disk, start: u64, len: u64, error: &io::Error) -> Result<VolumeMap> {
    let mut window = disk.window(start, len).with_zeros_for_bad_sectors();
    let found =
        fs::identify(&mut window, len).map_err(|e| read_error(e, "identifying a volume"))?;
    let reason = format!("its metadata cannot be read ({error})");
    let map = VolumeMap::raw(found.as_ref().map_or(FsKind::Unknown, |f| f.kind), len, reason);
    let (uuid, label) = found.map_or((None, None), |f| (f.uuid, f.label));
    Ok(VolumeMap { uuid, label, ..map })
}

/// What a parser could not read, with the sector if it was a bad one.
fn read_error(error: io::Error, doing: &str) -> Error {
    match error.downcast::<Unreadable>() {
        Ok(bad) => Error::from(bad).context(format!("{doing} failed; {BAD_SECTOR_ADVICE}")),
        Err(error) => Error::new(ErrorKind::Disk, doing).because(error),
    }
}

fn kind_name(kind: TableKind) -> &'static str {
    match kind {
        TableKind::Gpt => "gpt",
        TableKind::Mbr => "mbr",
        TableKind::None => "none",
    }
}

/// What was not shut down cleanly, each with its name; with `whole`, all of it is kept instead, and nothing is said.
pub fn not_clean(map: &mut VolumeMap, len: u64, name: &str, whole: bool) -> Vec<String> {
    let mut dirty = Vec::new();
    let taken_whole =
        |reason: &str| format!("not shut down cleanly ({reason}), taken whole as asked");
    if let Clean::NotClean { reason } = map.clean.clone() {
        if whole {
            map.take_whole(len, taken_whole(&reason));
        } else {
            dirty.push(format!("{name} ({}): {reason}", map.kind));
        }
    }
    for index in 0..map.logical_volumes.len() {
        let volume = &map.logical_volumes[index];
        let Clean::NotClean { reason } = volume.map.clean.clone() else { continue };
        if whole {
            map.take_logical_volume_whole(index, taken_whole(&reason));
        } else {
            dirty.push(format!("{name}, {} ({}): {reason}", volume.name, volume.map.kind));
        }
    }
    dirty
}

/// A volume as the plan shows it.
pub fn planned(
    partition: Option<&Partition>,
    start: u64,
    len: u64,
    map: VolumeMap,
) -> PlannedVolume {
    PlannedVolume {
        number: partition.map(|p| p.number),
        start_bytes: start,
        len_bytes: len,
        filesystem: map.kind.to_string(),
        uuid: map.uuid,
        label: map.label,
        block_bytes: map.block_bytes,
        used_bytes: map.used_bytes_claimed,
        kept_bytes: map.used.total_bytes(),
        raw_reason: match map.taken {
            Taken::Map => None,
            Taken::Raw { reason } => Some(reason),
        },
        note: map.note,
        logical_volumes: map
            .logical_volumes
            .into_iter()
            .map(|volume| PlannedLogicalVolume::new(volume, start))
            .collect(),
        partition: partition.cloned(),
    }
}

/// What is kept of the space that belongs to no partition.
pub fn gaps(table: &Table, disk_bytes: u64) -> Vec<Extent> {
    if table.partitions.is_empty() {
        return Vec::new();
    }
    let mut partitions = Extents::new();
    for partition in &table.partitions {
        partitions.insert(partition.start_bytes, partition.len_bytes);
    }
    let mut kept = Vec::new();
    let between = partitions.invert(Extent { start: 0, len: disk_bytes });
    if table.may_lie_elsewhere {
        return between.iter().copied().collect();
    }
    for gap in between.iter() {
        let limit = if gap.start == 0 { MAX_BOOT_GAP } else { 2 * GAP_MARGIN };
        if gap.len <= limit {
            kept.push(*gap);
        } else {
            let head = if gap.start == 0 { MAX_BOOT_GAP } else { GAP_MARGIN };
            kept.push(Extent { start: gap.start, len: head });
            kept.push(Extent { start: gap.start + gap.len - GAP_MARGIN, len: GAP_MARGIN });
        }
    }
    kept
}

impl CapturePlan {
    /// A plan that keeps the bytes in `used`.
    pub(crate) fn new(
        disk: DiskInfo,
        disk_bytes: u64,
        table: Table,
        volumes: Vec<PlannedVolume>,
        used: Extents,
    ) -> Self {
        Self {
            disk,
            disk_bytes,
            table_kind: kind_name(table.kind).into(),
            volumes,
            warnings: table.warnings.clone(),
            kept_bytes: used.total_bytes(),
            used,
            table,
        }
    }

    /// Bytes that the filesystems say they use, plus what is taken raw.
    #[must_use]
    pub fn used_bytes_claimed(&self) -> u64 {
        self.volumes.iter().map(|v| v.used_bytes).sum()
    }

    /// The volumes that are taken raw, each with its reason.
    #[must_use]
    pub fn taken_raw(&self) -> Vec<String> {
        let mut list = Vec::new();
        for volume in &self.volumes {
            let name =
                volume.number.map_or_else(|| "the disk".into(), |n| format!("partition {n}"));
            list.extend(volume.raw_reason.iter().map(|reason| format!("{name}: {reason}")));
            for inside in &volume.logical_volumes {
                let named = |reason| format!("{name}, {}: {reason}", inside.name);
                list.extend(inside.raw_reason.iter().map(named));
            }
        }
        list
    }

    /// What is at a byte of the disk, for people: `partition 2 (ext4 'root')`.
    #[must_use]
    pub fn place(&self, offset: u64) -> String {
        let within = |v: &&PlannedVolume| {
            (v.start_bytes..v.start_bytes.saturating_add(v.len_bytes)).contains(&offset)
        };
        match self.volumes.iter().find(within) {
            Some(volume) => {
                let name =
                    volume.number.map_or_else(|| "the disk".into(), |n| format!("partition {n}"));
                // Labels come from disks and go to terminals.
                let label = volume.label.as_deref().map(str::escape_debug);
                let label = label.map(|l| format!(" '{l}'")).unwrap_or_default();
                format!("{name} ({}{label})", volume.filesystem)
            }
            None if self.table.metadata.contains_range(offset, 1) => "the partition table".into(),
            None => "the space outside of partitions".into(),
        }
    }
}

impl fmt::Display for CapturePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "disk       {}  {}  table {}",
            self.disk.path,
            size(self.disk_bytes),
            self.table_kind
        )?;
        for v in &self.volumes {
            let name = v.number.map_or_else(|| "whole".into(), |n| n.to_string());
            let label = v.label.as_deref().unwrap_or("-").escape_debug().to_string();
            write!(
                f,
                "{name:>9}  {:8} {label:16} {:>12} of {:>12} kept",
                v.filesystem,
                size(v.kept_bytes),
                size(v.len_bytes)
            )?;
            writeln!(f, "{}", remarks(&v.raw_reason, &v.note))?;
            for inside in &v.logical_volumes {
                writeln!(f, "{inside}")?;
            }
        }
        for warning in &self.warnings {
            writeln!(f, "warning    {warning}")?;
        }
        write!(f, "keeps      {}", size(self.kept_bytes))
    }
}

/// What stands behind a volume's sizes.
pub(super) fn remarks(raw_reason: &Option<String>, note: &Option<String>) -> String {
    let raw = raw_reason.iter().map(|reason| format!(", raw: {reason}"));
    raw.chain(note.iter().map(|note| format!(", {note}"))).collect()
}
