//! What is on the disk in a foreign image, and what of it is kept: the plan of a capture, made without a disk.

use agent_api::{DirtyPolicy, DiskInfo};
use image_format::RunKind;

use super::image::ForeignImage;
use super::walk::{Cursor, RandomDisk};
use crate::capture::CapturePlan;
use crate::capture::plan::{check_clean, gaps, not_clean, planned};
use crate::error::{Error, Result};
use crate::extents::Extents;
use crate::fs::{self, Clean, FsKind, Taken, VolumeMap};
use crate::image::{DiskImage, ImageDisk, disk_error};
use crate::table::{self, Partition, Table, TableKind, TableOutcome};

/// The sector size of disks whose image does not tell.
const SECTOR_BYTES: u32 = 512;

/// The plan from what the survey knows: what is in use by the image's own word, and what the volumes are by the bytes that were
/// kept of them.
pub fn by_survey(image: &ForeignImage) -> Result<CapturePlan> {
    let table = table_of(image)?;
    let used = used(image);
    let kept = image.survey().kept.disk(image.disk_len());
    let mut volumes = Vec::new();
    for (partition, start, len) in parts(&table, image.disk_len()) {
        let found = fs::identify(&mut kept.part(start, len), len).map_err(disk_error)?;
        let mut own = Extents::new();
        used.overlapping(start, len).for_each(|e| own.push(e.start - start, e.len));
        let taken = if image.disk().mapped.contains_range(start, len) {
            Taken::Map
        } else {
            let reason = format!("a {} does not say what is in use", image.disk().format);
            Taken::Raw { reason }
        };
        let map = VolumeMap {
            kind: found.as_ref().map_or(FsKind::Unknown, |found| found.kind),
            uuid: found.as_ref().and_then(|found| found.uuid.clone()),
            label: found.and_then(|found| found.label),
            block_bytes: 0,
            fs_bytes: len,
            used_bytes_claimed: own.total_bytes(),
            used: own,
            taken,
            clean: Clean::Unknown,
            note: None,
            logical_volumes: Vec::new(),
        };
        volumes.push(planned(partition, start, len, map));
    }
    Ok(CapturePlan::new(info(image), image.disk_len(), table, volumes, used))
}

/// The plan by the maps of the filesystems, as a capture makes it.
pub fn by_maps(
    image: &ForeignImage,
    disk: &dyn RandomDisk,
    dirty: DirtyPolicy,
) -> Result<CapturePlan> {
    let table = table_of(image)?;
    let len = image.disk_len();
    let mut used = table.metadata.clone();
    gaps(&table, len).into_iter().for_each(|gap| used.insert(gap.start, gap.len));
    let (mut volumes, mut found_dirty) = (Vec::new(), Vec::new());
    for (partition, start, volume_len) in parts(&table, len) {
        let name = partition
            .map_or_else(|| "the filesystem".into(), |p| format!("partition {}", p.number));
        let mut map = fs::map_volume(&mut Cursor::new(disk, start, volume_len), volume_len)
            .map_err(disk_error)?;
        if partition.is_none() && table.kind != TableKind::None {
            map.take_whole(volume_len, "its partition table has no partitions");
        }
        found_dirty.extend(not_clean(&mut map, volume_len, &name, dirty == DirtyPolicy::Raw));
        used = used.union(&map.used.shifted(start));
        volumes.push(planned(partition, start, volume_len, map));
    }
    check_clean("the disk in the image", &found_dirty)?;
    Ok(CapturePlan::new(info(image), len, table, volumes, used))
}

fn table_of(image: &ForeignImage) -> Result<Table> {
    let mut disk = ImageDisk::new(image)?;
    match table::read_table(&mut disk, image.disk_len(), sector_bytes(image)).map_err(disk_error)? {
        TableOutcome::Table(table) => Ok(table),
        TableOutcome::Refused(refusal) => {
            Err(Error::refused("the partition table in the image cannot be used").because(refusal))
        }
    }
}

/// The partitions, or the whole disk where there are none, each with its place.
fn parts(table: &Table, disk_len: u64) -> Vec<(Option<&Partition>, u64, u64)> {
    if table.partitions.is_empty() {
        return vec![(None, 0, disk_len)];
    }
    table.partitions.iter().map(|p| (Some(p), p.start_bytes, p.len_bytes)).collect()
}

/// Everything that is not free.
fn used(image: &ForeignImage) -> Extents {
    let mut used = Extents::new();
    for entry in (0..image.survey().frames()).filter_map(|index| image.survey().entry(index)) {
        for (kind, range) in entry.runs.byte_ranges(entry.logical_len) {
            if kind != RunKind::Free {
                used.push(entry.logical_offset + range.start, range.end - range.start);
            }
        }
    }
    used
}

fn sector_bytes(image: &ForeignImage) -> u32 {
    // A GPT says it itself, also on a disk that it was copied to.
    image.survey().gpt_sector_bytes.or(image.disk().sector_bytes).unwrap_or(SECTOR_BYTES)
}

fn info(image: &ForeignImage) -> DiskInfo {
    DiskInfo {
        path: image.disk().format.clone(),
        size_bytes: image.disk_len(),
        logical_sector_bytes: sector_bytes(image),
        ..DiskInfo::default()
    }
}
