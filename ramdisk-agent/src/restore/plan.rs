//! The plan of a restore: what is on the target now, what is destroyed, what is written, in which order. A value: it is made
//! whole, shown, and only then acted on.

use std::fmt;
use std::ops::Range;

use agent_api::{DiskInfo, ErrorKind, RestoreOptions, is_hash};
use image_format::Manifest;
use serde::Serialize;

use crate::damage;
use crate::disk::{self, Disk, PartOf};
use crate::error::{Error, IoContext, Result};
use crate::image::{DiskImage, ImageDisk, disk_error};
use crate::probe;
use crate::restore::approval;
use crate::restore::arrangement::{self, Arrangement, HEAD_LEN};
use crate::restore::commit::Piece;
use crate::restore::customise::{self, Changes};
use crate::restore::grow::Growth;
use crate::restore::ids::{self, FreshId};
use crate::restore::placement::Placement;
use crate::table::{self, Partition, Slot, Table, TableKind, TableOutcome, TableRefusal};
use crate::words::size;

/// What a restore will do.
#[derive(Debug, Clone, Serialize)]
pub struct RestorePlan {
    /// What an approval quotes: see `approval`.
    pub hash: String,
    /// Root hash of the image.
    pub root: String,
    /// Size of the disk in the image.
    pub image_bytes: u64,
    /// The target.
    pub target: DiskInfo,
    /// The partition of the target that is written; `None`: all of it.
    pub into: Option<PartOf>,
    /// The partition of the image that is restored; `None`: all of it.
    pub from: Option<PlannedPartition>,
    /// What was found on the target: all of it will be destroyed.
    pub destroys: Vec<String>,
    /// The partition table that will be there: `gpt`, `mbr` or `none`.
    pub table_kind: String,
    /// The partitions that will be there.
    pub partitions: Vec<PlannedPartition>,
    /// What will be there instead, without partitions.
    pub whole: Option<String>,
    /// What the image lacks because it could not be read, a line for each partition.
    pub damaged: Vec<String>,
    /// The identities that are made new on request.
    pub fresh_ids: Vec<FreshId>,
    /// What is not as in the image, such as a moved backup GPT.
    pub notes: Vec<String>,
    /// The partition table that is on the target now, in full.
    #[serde(skip)]
    pub held_table: Option<String>,
    /// Zeroed before the first frame is written.
    #[serde(skip)]
    pub wipes: Vec<Range<u64>>,
    /// Where something recognisable is on the target now. Sorted, without overlaps.
    #[serde(skip)]
    pub found: Vec<Range<u64>>,
    /// What of the layout is not as in the image; they are among the notes.
    #[serde(skip)]
    pub changes: Vec<String>,
    /// The filesystems that the kernel is to grow.
    #[serde(rename = "grows")]
    pub growths: Vec<Growth>,
    /// What is to be changed in the restored system.
    pub customises: Option<Changes>,
    /// Made anew and written beside the frames.
    pub fresh: Vec<Piece>,
    /// Written last, in this order.
    pub commit: Vec<Piece>,
    /// Which bytes of the image go where.
    #[serde(skip)]
    pub placement: Placement,
}

/// A partition of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPartition {
    /// Its number.
    pub number: u32,
    /// Where it starts.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// Its name, or its filesystem.
    pub what: String,
}

/// What is to be done with a disk whose table could not be read when it was captured.
const WITHOUT_ITS_TABLE: &str = "sectors of the partition table could not be read: the disk becomes what could be read of it, and does not start before \
                                 its table is made anew (gdisk, testdisk)";

/// Whether an image was taken whole because sectors of the partition table could not be read.
fn lacks_its_table(manifest: &Manifest) -> bool {
    manifest.table.kind == image_format::TableKind::None && !manifest.bad_sectors.is_empty()
}

/// Refuses an image whose root is not the one that was asked for.
pub fn check_root(image: &dyn DiskImage, expected: Option<&str>) -> Result<()> {
    match expected.map(str::trim) {
        Some(text) if !is_hash(text) => Err(Error::refused(format!(
            "'{text}' is no root hash: those are 64 hexadecimal digits, as inspect prints them"
        ))),
        Some(expected) if !expected.eq_ignore_ascii_case(&image.root().to_string()) => {
            Err(Error::new(
                ErrorKind::ImageCorrupt,
                format!(
                    "the image's root hash is {}, and {expected} was asked for: it is another image",
                    image.root()
                ),
            ))
        }
        _ => Ok(()),
    }
}

pub fn make(image: &dyn DiskImage, target: &Disk, options: &RestoreOptions) -> Result<RestorePlan> {
    check_root(image, options.expect_root.as_deref())?;
    image.check_index()?;
    check_target(target)?;
    let damaged = damage::describe(image.manifest());
    if !damaged.is_empty() && !options.accept_bad_sectors {
        return Err(Error::refused(format!(
            "the image is damaged, {} of the disk it was taken from could not be read and would be zeros: {}; to restore it \
             all the same give --accept-bad-sectors, then check those filesystems and replace the files; nothing was \
             written",
            size(damage::bytes(image.manifest())),
            damaged.join("; ")
        )));
    }
    let sector = image.manifest().disk.logical_sector_bytes;
    let mut disk = ImageDisk::new(image)?;
    let outcome = table::read_table(&mut disk, image.disk_len(), sector).map_err(disk_error)?;
    let mut table = match outcome {
        TableOutcome::Table(table) => table,
        // So it was captured, and whoever restores it has accepted that.
        TableOutcome::Refused(_) if lacks_its_table(image.manifest()) => {
            let mut table = Table::none(sector);
            table.warnings.push(WITHOUT_ITS_TABLE.into());
            table
        }
        TableOutcome::Refused(refusal) => {
            return Err(Error::refused("the partition table in the image cannot be restored")
                .because(refusal));
        }
    };
    let from = source(image, &table, target, options)?;
    // From here on the table says what the target's will.
    let fresh_ids = match options.fresh_ids {
        true => ids::make_fresh(&mut table, image, target, options)?,
        false => Vec::new(),
    };
    let (mut arranged, volumes) = match from {
        Some(slot) => (
            arrangement::volume(&mut disk, slot, sector, target, options)?,
            arrangement::only_volume(&mut disk, slot, target)?,
        ),
        None => {
            let arranged =
                arrangement::arrange(&mut disk, image.disk_len(), &table, target, options)?;
            let volumes =
                arrangement::volumes(&mut disk, image.disk_len(), &table, &arranged, target)?;
            (arranged, volumes)
        }
    };
    let order = options.customise.efi_boot_order;
    let customises = customise::plan(volumes, &options.customise, |label| match from {
        Some(_) => Err(Error::refused(
            "no EFI boot entry can be made for a single partition; nothing was written",
        )),
        None => customise::plan_boot_entry(&mut disk, &table, &arranged, target, label, order),
    })?;
    let found = found_on(target)?;
    let image_bytes = from.map_or(image.disk_len(), |slot| slot.len_bytes);
    let wipes = wipes(image_bytes, target.len_bytes(), &arranged, &found);
    arranged.notes.extend(ids::note(table.kind, &fresh_ids));
    let mut notes = if from.is_some() { Vec::new() } else { table.warnings.clone() };
    notes.extend(arranged.notes.iter().cloned());
    let mut plan = RestorePlan {
        hash: String::new(),
        root: image.root().to_string(),
        image_bytes: image.disk_len(),
        target: target.info(),
        into: target.part_of(),
        from: from.map(|slot| planned_partitions(image, &table.partitions, &[slot]).remove(0)),
        held_table: held_table(target)?,
        found: found_ranges(&found, target.len_bytes()),
        destroys: found.into_iter().map(|signature| signature.what).collect(),
        table_kind: match from {
            Some(_) => "none".into(),
            None => format!("{:?}", table.kind).to_lowercase(),
        },
        partitions: planned_partitions(image, &table.partitions, &arranged.slots),
        whole: whole(image, &table.partitions),
        damaged,
        fresh_ids,
        notes,
        changes: arranged.notes,
        growths: arranged.growths,
        customises,
        wipes,
        fresh: arranged.fresh,
        commit: arranged.commit,
        placement: arranged.placement,
    };
    plan.hash = approval::hash(&plan, options);
    Ok(plan)
}

/// The partition of the image that is to be restored, if not all of it. Refuses what would put one thing in the place of another: a
/// disk into a partition, or a volume onto a disk with partitions.
fn source(
    image: &dyn DiskImage,
    table: &Table,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<Option<Slot>> {
    let path = target.name();
    let slots = table.slots();
    let gets_volume = target.part_of().is_some() || target.is_partition();
    let Some(number) = options.partition else {
        if table.kind == TableKind::None {
            refuse_partitions(target)?;
            return Ok(None);
        }
        if gets_volume {
            return Err(Error::refused(format!(
                "the image is of a disk with a partition table, and {path} is a partition, which gets a volume: name one of \
                 the image's partitions with --partition ({}), or the whole disk; nothing was written",
                disk::list_of(table)
            )));
        }
        return Ok(None);
    };
    let Some(slot) = slots.into_iter().find(|slot| slot.number == number) else {
        return Err(Error::refused(format!(
            "the image of {} has no partition {number}: {}; nothing was written",
            size(image.disk_len()),
            disk::list_of(table)
        )));
    };
    refuse_partitions(target)?;
    Ok(Some(slot))
}

/// Refuses a disk with partitions, which is to get a volume. A table that is damaged is nothing to keep.
fn refuse_partitions(target: &Disk) -> Result<()> {
    match (target.part_of(), target.table()?) {
        (None, TableOutcome::Table(held)) if !held.partitions.is_empty() => {
            Err(Error::refused(format!(
                "{} is a disk with partitions, which a single volume would replace: say which partition is meant with \
                 --into-partition, or erase the table first with wipefs; nothing was written",
                target.name()
            )))
        }
        // Its partitions are there, though not where the target's sectors would have them.
        (None, TableOutcome::Refused(TableRefusal::SectorSize { table, .. })) => {
            Err(Error::refused(format!(
                "{} is a disk whose partition table counts in sectors of {table} bytes, which a single volume would replace: erase the table first \
                 with wipefs if that is meant; nothing was written",
                target.name()
            )))
        }
        _ => Ok(()),
    }
}

/// The safety rules about the target itself.
pub fn check_target(target: &Disk) -> Result<()> {
    let path = target.name();
    let users = crate::disk::in_use(target.path(), false)?;
    if !users.is_empty() {
        return Err(Error::refused(format!(
            "{path} is in use: {}; nothing was written",
            users.join(", ")
        )));
    }
    // A device that is to be written is opened exclusively itself.
    if !target.is_block() {
        disk::refuse_claimed(target.path(), "is in use, and nothing was written")?;
    }
    if target.info().read_only {
        return Err(Error::refused(format!("{path} is write-protected; nothing was written")));
    }
    // What is found on it has to be what is on it.
    target.forget_cache();
    Ok(())
}

pub fn found_on(target: &Disk) -> Result<Vec<probe::Signature>> {
    probe::signatures(&mut target.window(0, target.len_bytes()), target.len_bytes())
        .on_disk(|| format!("looking at what is on {}", target.name()))
}

/// The partition table of a target, with all that tells it from another one; `None`: it has none that counts.
pub fn held_table(target: &Disk) -> Result<Option<String>> {
    Ok(match target.table()? {
        TableOutcome::Table(table) if table.kind != TableKind::None => {
            Some(format!("{:?} {:?} {:?}", table.kind, table.disk_id, table.partitions))
        }
        _ => None,
    })
}

/// What an image without partitions holds.
fn whole(image: &dyn DiskImage, partitions: &[Partition]) -> Option<String> {
    let has_volume = partitions.is_empty() && !image.manifest().volumes.is_empty();
    has_volume.then(|| described_volume(image, None))
}

/// Filesystem and label of a partition of an image, or of the volume that the image is of.
pub fn described_volume(image: &dyn DiskImage, partition: Option<&Partition>) -> String {
    let volumes = &image.manifest().volumes;
    let volume = match partition {
        Some(partition) => volumes.iter().find(|v| v.number == Some(partition.number)),
        None => volumes.first(),
    };
    let filesystem = volume.and_then(|v| v.filesystem.as_deref()).unwrap_or("unknown");
    let name = partition.and_then(|p| p.name.as_deref());
    let label = volume.and_then(|v| v.fs_label.as_deref()).or(name).unwrap_or_default();
    // They come from images and go to terminals, where a line's end would make lines of its own.
    format!("{} {}", filesystem.escape_debug(), label.escape_debug()).trim_end().to_owned()
}

fn planned_partitions(
    image: &dyn DiskImage,
    partitions: &[Partition],
    slots: &[Slot],
) -> Vec<PlannedPartition> {
    let what = |p: &Partition| described_volume(image, Some(p));
    let planned = |slot: &Slot| {
        let partition = partitions.iter().find(|p| p.number == slot.number);
        PlannedPartition {
            number: slot.number,
            start_bytes: slot.start_bytes,
            len_bytes: slot.len_bytes,
            what: partition.map(what).unwrap_or_default(),
        }
    };
    slots.iter().map(planned).collect()
}

/// What is zeroed first, so that nothing boots from now on, and so that nothing of the old system is recognised later in space
/// that the image leaves free: both ends of the target and of every volume on it, every place that the commit writes, and all that
/// was found on the target.
pub fn wipes(
    disk_bytes: u64,
    target_bytes: u64,
    arranged: &Arrangement,
    found: &[probe::Signature],
) -> Vec<Range<u64>> {
    let mut wipes = arranged.placement.withheld_on_target();
    wipes.extend(arranged.commit.iter().map(Piece::range));
    let mut both_ends = |start: u64, len: u64| {
        let end = start.saturating_add(len).min(target_bytes);
        wipes.push(start..end.min(start.saturating_add(HEAD_LEN)));
        wipes.push(start.max(end.saturating_sub(HEAD_LEN))..end);
    };
    both_ends(0, disk_bytes);
    both_ends(0, target_bytes);
    for slot in &arranged.slots {
        both_ends(slot.start_bytes, slot.len_bytes);
    }
    wipes.extend(found_ranges(found, target_bytes));
    wipes.retain(|range| !range.is_empty());
    wipes.sort_by_key(|r| r.start);
    super::ranges::bridged(&wipes, 0)
}

pub fn found_ranges(found: &[probe::Signature], target_bytes: u64) -> Vec<Range<u64>> {
    let mut list: Vec<Range<u64>> =
        found.iter().map(|s| s.offset..s.offset.saturating_add(s.len).min(target_bytes)).collect();
    list.retain(|range| !range.is_empty());
    list.sort_by_key(|range| range.start);
    super::ranges::bridged(&list, 0)
}

impl fmt::Display for RestorePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |s: &Option<String>| s.clone().unwrap_or_else(|| "-".into());
        let t = &self.target;
        writeln!(f, "image      {} of disk, root {}", size(self.image_bytes), self.root)?;
        writeln!(
            f,
            "target     {}  {}  model {}  serial {}  wwn {}",
            t.path,
            size(t.size_bytes),
            or_dash(&t.model),
            or_dash(&t.serial),
            or_dash(&t.wwn)
        )?;
        if let Some(part) = &self.into {
            writeln!(
                f,
                "into       partition {}, {} from byte {}; the table and all other partitions stay as they are",
                part.number,
                size(part.len_bytes),
                part.start_bytes
            )?;
        }
        if self.destroys.is_empty() {
            writeln!(f, "destroys   nothing that is known")?;
        }
        for what in &self.destroys {
            writeln!(f, "destroys   {what}")?;
        }
        for p in &self.partitions {
            writeln!(
                f,
                "writes     partition {}  {:>12}  {}",
                p.number,
                size(p.len_bytes),
                p.what
            )?;
        }
        if let Some(from) = &self.from {
            let (number, len) = (from.number, size(from.len_bytes));
            writeln!(
                f,
                "writes     partition {number}  {len:>12}  {}, and nothing else of the image",
                from.what
            )?;
        }
        if let Some(what) = &self.whole {
            writeln!(f, "writes     the whole   {:>12}  {what}", size(self.image_bytes))?;
        }
        for lacking in &self.damaged {
            writeln!(f, "DAMAGED    {lacking}")?;
        }
        for growth in &self.growths {
            let number = growth.number.map(|n| format!("partition {n}: ")).unwrap_or_default();
            let Growth { kind, len_bytes, .. } = growth;
            writeln!(f, "grows      {number}{kind} to {}, by the kernel", size(*len_bytes))?;
        }
        for id in &self.fresh_ids {
            writeln!(f, "identity   {id}")?;
        }
        for line in self.customises.iter().flat_map(Changes::lines) {
            writeln!(f, "changes    {line}")?;
        }
        for note in &self.notes {
            writeln!(f, "note       {note}")?;
        }
        writeln!(
            f,
            "bootable   last: {}",
            self.commit.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")
        )?;
        write!(f, "plan       {}", self.hash)
    }
}
