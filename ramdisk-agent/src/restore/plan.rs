//! The plan of a restore: what is on the target now, what is destroyed, what is written, in which order. A value: it is made
//! whole, shown, and only then acted on.

use std::fmt;
use std::ops::Range;

use agent_api::{DiskInfo, ErrorKind, RestoreOptions};
use serde::Serialize;

use crate::damage;
use crate::disk::Disk;
use crate::error::{Error, IoContext, Result};
use crate::image::{DiskImage, ImageDisk, disk_error};
use crate::probe;
use crate::restore::approval;
use crate::restore::commit::Piece;
use crate::run::size;
use crate::table::{self, Partition, Table, TableKind, TableOutcome};

/// What is withheld at the start of the disk until everything else is on it, at most; partitions that begin earlier are not
/// withheld. Also how much is zeroed at both ends of the target before the first write.
const HEAD_LEN: u64 = 1 << 20;

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
    /// What is not as in the image, such as a moved backup GPT.
    pub notes: Vec<String>,
    /// Zeroed before the first frame is written.
    #[serde(skip)]
    pub wipes: Vec<Range<u64>>,
    /// Where something recognisable is on the target now. Sorted, without overlaps.
    #[serde(skip)]
    pub found: Vec<Range<u64>>,
    /// Written last, in this order.
    pub commit: Vec<Piece>,
    /// Byte ranges of the image that the frames do not write, with the image's bytes there. Sorted.
    #[serde(skip)]
    withheld: Vec<(Range<u64>, Vec<u8>)>,
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

/// Refuses an image whose root is not the one that was asked for.
pub fn check_root(image: &dyn DiskImage, expected: Option<&str>) -> Result<()> {
    match expected.map(str::trim) {
        Some(text) if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Err(Error::refused(format!(
                "'{text}' is no root hash: those are 64 hexadecimal digits, as inspect prints them"
            )))
        }
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
    check_target(image, target)?;
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
    let table = match outcome {
        TableOutcome::Table(table) => table,
        TableOutcome::Refused(refusal) => {
            return Err(Error::refused("the partition table in the image cannot be restored")
                .because(refusal));
        }
    };
    let withheld_ranges = withheld_ranges(&table, image.disk_len());
    let withheld = withheld_ranges
        .iter()
        .map(|range| {
            let len =
                usize::try_from(range.end - range.start).expect("heads and tables are a few MiB");
            Ok((range.clone(), disk.bytes(range.start, len)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let commit = commit_pieces(&table, &mut disk, &withheld_ranges, target.len_bytes())?;
    let found = found_on(target)?;
    let wipes = wipes(image, target.len_bytes(), &withheld_ranges, &found);
    let mut notes = table.warnings.clone();
    if table.kind == TableKind::Gpt && target.len_bytes() != image.disk_len() {
        notes.push(
            "the backup GPT goes to the end of the target; the space between is left unpartitioned"
                .into(),
        );
    }
    let mut plan = RestorePlan {
        hash: String::new(),
        root: image.root().to_string(),
        image_bytes: image.disk_len(),
        target: target.info(),
        found: found_ranges(&found, target.len_bytes()),
        destroys: found.into_iter().map(|signature| signature.what).collect(),
        table_kind: format!("{:?}", table.kind).to_lowercase(),
        partitions: planned_partitions(image, &table.partitions),
        whole: whole(image, &table.partitions),
        damaged,
        notes,
        wipes,
        commit,
        withheld,
    };
    plan.hash = approval::hash(&plan, options);
    Ok(plan)
}

/// The safety rules about the target itself.
fn check_target(image: &dyn DiskImage, target: &Disk) -> Result<()> {
    let path = target.path().display();
    let users = crate::disk::in_use(target.path(), false)?;
    if !users.is_empty() {
        return Err(Error::refused(format!(
            "{path} is in use: {}; nothing was written",
            users.join(", ")
        )));
    }
    if target.info().read_only {
        return Err(Error::refused(format!("{path} is write-protected; nothing was written")));
    }
    if target.len_bytes() < image.disk_len() {
        return Err(Error::refused(format!(
            "{path} has {} bytes and the image's disk {}: {} bytes are missing; nothing was written",
            target.len_bytes(),
            image.disk_len(),
            image.disk_len() - target.len_bytes()
        )));
    }
    let sector = image.manifest().disk.logical_sector_bytes;
    if target.is_block() && target.logical_sector_bytes() != sector {
        return Err(Error::refused(format!(
            "{path} has logical sectors of {} bytes and the image's disk had {sector}: tables and filesystems made for \
             one do not work on the other; nothing was written",
            target.logical_sector_bytes()
        )));
    }
    Ok(())
}

/// What the frames leave out: the table's own sectors and the boot gap; or the head of a bare filesystem.
fn withheld_ranges(table: &Table, disk_bytes: u64) -> Vec<Range<u64>> {
    let first = table.partitions.iter().map(|p| p.start_bytes).min();
    let head = match (table.kind, first) {
        (TableKind::None, _) | (_, None) => HEAD_LEN,
        (_, Some(first)) => first.min(HEAD_LEN),
    };
    let head = 0..head.min(disk_bytes);
    let mut ranges = Vec::from([head]);
    ranges.extend(table.metadata.iter().map(|e| e.start..(e.start + e.len).min(disk_bytes)));
    ranges.sort_by_key(|r| r.start);
    super::ranges::bridged(&ranges, 0)
}

fn commit_pieces(
    table: &Table,
    disk: &mut ImageDisk<'_>,
    withheld: &[Range<u64>],
    target_bytes: u64,
) -> Result<Vec<Piece>> {
    let head = withheld.first().map_or(0, |r| r.end);
    let mut tables: Vec<Piece> = table::relocate_backup(disk, table, target_bytes)
        .map_err(disk_error)?
        .into_iter()
        .map(|p| Piece { name: p.name.to_string(), offset: p.offset, bytes: p.bytes })
        .collect();
    if tables.is_empty() {
        // A bare volume: its first sectors, where every filesystem but btrfs has what makes it one, come last.
        let split = 4096.min(head);
        tables.push(Piece {
            name: "first sectors of the volume".into(),
            offset: 0,
            bytes: bytes_at(disk, 0..split)?,
        });
    }
    let mut head_tables: Vec<Range<u64>> = tables
        .iter()
        .map(|p| p.offset..p.offset + p.bytes.len() as u64)
        .filter(|r| r.start < head)
        .collect();
    head_tables.sort_by_key(|r| r.start);
    let mut pieces = Vec::new();
    for gap in super::ranges::gaps(&head_tables, 0..head) {
        pieces.push(Piece {
            name: if table.kind == TableKind::None { "head of the volume" } else { "boot gap" }
                .into(),
            offset: gap.start,
            bytes: bytes_at(disk, gap)?,
        });
    }
    pieces.append(&mut tables);
    Ok(pieces)
}

fn bytes_at(disk: &mut ImageDisk<'_>, range: Range<u64>) -> Result<Vec<u8>> {
    disk.bytes(range.start, usize::try_from(range.end - range.start).expect("at most the head"))
}

fn found_on(target: &Disk) -> Result<Vec<probe::Signature>> {
    probe::signatures(&mut target.window(0, target.len_bytes()), target.len_bytes())
        .on_disk(|| format!("looking at what is on {}", target.path().display()))
}

/// What an image without partitions holds.
fn whole(image: &dyn DiskImage, partitions: &[Partition]) -> Option<String> {
    let volume = image.manifest().volumes.first().filter(|_| partitions.is_empty())?;
    let label = volume.fs_label.as_deref().unwrap_or_default();
    let filesystem = volume.filesystem.as_deref().unwrap_or("unknown");
    Some(format!("{filesystem} {label}").trim_end().to_owned())
}

fn planned_partitions(image: &dyn DiskImage, partitions: &[Partition]) -> Vec<PlannedPartition> {
    let what = |p: &Partition| {
        let volume = image.manifest().volumes.iter().find(|v| v.number == Some(p.number));
        let filesystem =
            volume.and_then(|v| v.filesystem.clone()).unwrap_or_else(|| "unknown".into());
        let label =
            volume.and_then(|v| v.fs_label.clone()).or_else(|| p.name.clone()).unwrap_or_default();
        format!("{filesystem} {label}").trim_end().to_owned()
    };
    partitions
        .iter()
        .map(|p| PlannedPartition {
            number: p.number,
            start_bytes: p.start_bytes,
            len_bytes: p.len_bytes,
            what: what(p),
        })
        .collect()
}

/// What is zeroed first, so that nothing boots from now on, and so that nothing of the old system is recognised later in space
/// that the image leaves free: both ends of the target and of every volume of the image, every place where the image has a
/// table, and all that was found on the target.
fn wipes(
    image: &dyn DiskImage,
    target_bytes: u64,
    withheld: &[Range<u64>],
    found: &[probe::Signature],
) -> Vec<Range<u64>> {
    let mut wipes: Vec<Range<u64>> = withheld.to_vec();
    let mut both_ends = |start: u64, len: u64| {
        let end = start.saturating_add(len).min(target_bytes);
        wipes.push(start..end.min(start.saturating_add(HEAD_LEN)));
        wipes.push(start.max(end.saturating_sub(HEAD_LEN))..end);
    };
    both_ends(0, image.disk_len());
    both_ends(0, target_bytes);
    for volume in &image.manifest().volumes {
        both_ends(volume.start_bytes, volume.len_bytes);
    }
    wipes.extend(found_ranges(found, target_bytes));
    wipes.retain(|range| !range.is_empty());
    wipes.sort_by_key(|r| r.start);
    super::ranges::bridged(&wipes, 0)
}

fn found_ranges(found: &[probe::Signature], target_bytes: u64) -> Vec<Range<u64>> {
    let mut list: Vec<Range<u64>> =
        found.iter().map(|s| s.offset..s.offset.saturating_add(s.len).min(target_bytes)).collect();
    list.retain(|range| !range.is_empty());
    list.sort_by_key(|range| range.start);
    super::ranges::bridged(&list, 0)
}

impl RestorePlan {
    /// The ranges that the frames do not write, in order.
    pub fn withheld_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.withheld.iter().map(|(range, _)| range.clone())
    }

    /// The parts of a range that the frames may write.
    pub fn outside_withheld(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let held: Vec<Range<u64>> = self.withheld_ranges().collect();
        super::ranges::gaps(&held, range)
    }

    /// Puts the image's withheld bytes into a span's content that was read from the disk, where they are not yet.
    pub fn fill_withheld(&self, base: u64, content: &mut [u8]) {
        let end = base + content.len() as u64;
        for (range, bytes) in &self.withheld {
            let (from, to) = (range.start.max(base), range.end.min(end));
            if from < to {
                let index = |n: u64| usize::try_from(n).expect("within a span or a head");
                content[index(from - base)..index(to - base)]
                    .copy_from_slice(&bytes[index(from - range.start)..index(to - range.start)]);
            }
        }
    }
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
        if let Some(what) = &self.whole {
            writeln!(f, "writes     the whole   {:>12}  {what}", size(self.image_bytes))?;
        }
        for lacking in &self.damaged {
            writeln!(f, "DAMAGED    {lacking}")?;
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
