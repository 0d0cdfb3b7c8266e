//! What an image becomes on one target: where its partitions go, which filesystems grow, what is made anew, and the pieces that the
//! commit writes. [`layout`](super::layout) does the arithmetic; here image and target are looked at.

use std::io;
use std::ops::Range;

use agent_api::RestoreOptions;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::extents::{Extent, Extents};
use crate::fs::{self, FsKind};
use crate::image::{ImageDisk, disk_error};
use crate::probe;
use crate::restore::commit::Piece;
use crate::restore::customise::{self, Volume};
use crate::restore::gaps;
use crate::restore::grow::{self, Growth};
use crate::restore::layout::{self, Holds, Movable};
use crate::restore::placement::{Placement, Segment};
use crate::restore::retargeting::{self, Retargeting, Sectors};
use crate::table::{self, LOGICAL_TABLES, Slot, Table, TableKind, TablePiece};
use crate::words::size;

/// What is withheld at the start of a disk or a volume until everything else is on it, at most; partitions that begin earlier are
/// not withheld.
pub const HEAD_LEN: u64 = 1 << 20;
/// Of a bare volume this comes last of all: every filesystem but btrfs has what makes it one there.
const FIRST_SECTORS_LEN: u64 = 4096;

/// An image on a target.
#[derive(Debug)]
pub struct Arrangement {
    /// The partitions' places; none where there is no table.
    pub slots: Vec<Slot>,
    /// The size of logical sectors that the table and the volumes are made for.
    pub sector_bytes: u32,
    pub placement: Placement,
    /// Written last, in this order.
    pub commit: Vec<Piece>,
    /// Written beside the frames.
    pub fresh: Vec<Piece>,
    pub growths: Vec<Growth>,
    /// What is not as in the image, in sentences without a full stop.
    pub notes: Vec<String>,
}

/// The image whose disk and table are given, on this target.
pub fn arrange(
    disk: &mut ImageDisk<'_>,
    disk_bytes: u64,
    table: &Table,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<Arrangement> {
    if table.partitions.is_empty() {
        return bare(disk, disk_bytes, table, target, options);
    }
    let retargeting = Retargeting::new(disk, table, target)?;
    let partitions = layout::movables(table, |p| holds(disk, p.start_bytes, p.len_bytes))?;
    let target_bytes = target.len_bytes();
    let grow = options.grow.map(|grow| layout::chosen(&partitions, grow)).transpose()?;
    let room_end =
        retargeting.as_ref().map_or_else(|| table.room_end(target_bytes), |r| r.room_end);
    // A table that has no room to be made anew comes back as it is, onto everything that holds its disk.
    let stays = retargeting.is_none()
        && target_bytes >= disk_bytes
        && layout::end_of(&partitions) > room_end;
    let slots = match stays {
        true => table.slots(),
        false => layout::places(&partitions, room_end, grow)?,
    };
    let mut notes = retargeting.as_ref().map(|r| r.notes.clone()).unwrap_or_default();
    notes.extend(layout::notes(&partitions, &slots));
    let mut growths = Vec::new();
    let mut fresh = Vec::new();
    let mut made_anew = Vec::new();
    for (partition, slot) in partitions.iter().zip(&slots) {
        if partition.slot.len_bytes == slot.len_bytes {
            continue;
        }
        if partition.is_free_swap() {
            fresh.push(swap_header(disk, partition.slot, slot)?);
            made_anew.push(slot.number);
            continue;
        }
        let kind = kind_of(disk, partition.slot.start_bytes, partition.slot.len_bytes)?;
        if let Some(growth) = growth(kind, Some(slot.number), slot.start_bytes, slot.len_bytes)? {
            growths.push(growth);
        } else {
            notes.push(format!(
                "what partition {} holds ({kind}) keeps its size: grow it in the restored system",
                slot.number
            ));
        }
    }
    if stays && target_bytes != disk_bytes && table.kind == TableKind::Gpt {
        notes.push(BACKUP_STAYS.into());
    } else {
        notes.extend(space_note(table, &partitions, &slots, grow, disk_bytes, target_bytes));
    }
    let sector_bytes = retargeting::sector_bytes(target, table.logical_sector_bytes);
    let (segments, withheld, commit) = if let Some(retargeting) = retargeting {
        let segments = layout::contents(&partitions, &slots, &made_anew);
        let (withheld, heads) = retargeting.heads(disk, table, &slots)?;
        fresh.extend(heads);
        (segments, withheld, retargeting.table_pieces(disk, table, &slots, target_bytes)?)
    } else {
        let (segments, left_out) =
            layout::segments(&partitions, &slots, &made_anew, disk_bytes, target_bytes);
        notes.extend(gaps::notes(disk, table, &left_out)?);
        let first = slots.iter().map(|slot| slot.start_bytes).min().unwrap_or(HEAD_LEN);
        let withheld = withheld(disk, table, first.min(HEAD_LEN).min(disk_bytes))?;
        let pieces = table::arrange(disk, table, &slots, target_bytes).map_err(image_error)?;
        notes.extend(extended_note(table, &pieces));
        let commit = commit_pieces(pieces.into_iter().map(Piece::from).collect(), &withheld);
        (segments, withheld, commit)
    };
    let placement = Placement::new(segments, withheld, &places_of(&commit));
    Ok(Arrangement { slots, sector_bytes, placement, commit, fresh, growths, notes })
}

/// One volume that becomes the whole target: an image without a partition table, or one partition of an image.
///
/// `from` is the size of the sectors of the image's disk.
pub fn volume(
    disk: &mut ImageDisk<'_>,
    source: Slot,
    from: u32,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<Arrangement> {
    let target_bytes = target.len_bytes();
    let Slot { number, start_bytes, len_bytes } = source;
    if target_bytes < len_bytes {
        let what = match number {
            0 => "the image's disk".to_owned(),
            number => format!("partition {number} of the image"),
        };
        return Err(Error::refused(format!(
            "{} has {target_bytes} bytes and {what} {len_bytes}: {} bytes are missing; nothing was written",
            target.name(),
            len_bytes - target_bytes
        )));
    }
    let mut growths = Vec::new();
    let mut notes = Vec::new();
    let sector_bytes = retargeting::sector_bytes(target, from);
    let mut begin = None;
    if let Some(sectors) = Sectors::new(from, sector_bytes) {
        let what = match number {
            0 => "the image's volume".to_owned(),
            number => format!("partition {number}"),
        };
        begin = sectors.head_of(disk, 0, source, &what)?;
        notes.extend(begin.as_ref().map(|_| sectors.head_note(&what)));
    }
    if let Some(grow) = options.grow {
        let is_meant = match grow {
            agent_api::Grow::Last => true,
            agent_api::Grow::Partition(grown) => grown == number,
        };
        if !is_meant {
            layout::chosen(&[], grow)?;
        }
        let kind = kind_of(disk, start_bytes, len_bytes)?;
        match growth(kind, None, 0, target_bytes)? {
            Some(_) if target_bytes == len_bytes => {}
            None if is_swap(disk, start_bytes, len_bytes)? => {
                let whole = Slot { number, start_bytes: 0, len_bytes: target_bytes };
                begin = Some(swap_header(disk, source, &whole)?.bytes);
                notes.push(format!(
                    "the swap area gets a new header for {}, with its UUID and label",
                    size(target_bytes)
                ));
            }
            Some(growth) => growths.push(growth),
            None => {
                notes.push(format!("the {kind} keeps its size: grow it in the restored system"))
            }
        }
    }
    let head = start_bytes..start_bytes + HEAD_LEN.min(len_bytes);
    let own = disk.bytes(head.start, index(head.end - head.start))?;
    let mut bytes = begin.unwrap_or_default();
    bytes.extend_from_slice(&own[bytes.len()..]);
    let commit = volume_pieces(&bytes);
    let withheld = vec![(head, own)];
    let segment = Segment { image: start_bytes..source.end_bytes(), target: 0 };
    let placement = Placement::new(vec![segment], withheld, &places_of(&commit));
    let (slots, fresh) = (Vec::new(), Vec::new());
    Ok(Arrangement { slots, sector_bytes, placement, commit, fresh, growths, notes })
}

/// A disk that has no partitions: one filesystem, something that nothing is known of, or an empty table.
fn bare(
    disk: &mut ImageDisk<'_>,
    disk_bytes: u64,
    table: &Table,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<Arrangement> {
    let whole = Slot { number: 0, start_bytes: 0, len_bytes: disk_bytes };
    if table.kind == TableKind::None {
        return volume(disk, whole, table.logical_sector_bytes, target, options);
    }
    let sector_bytes = retargeting::sector_bytes(target, table.logical_sector_bytes);
    if sector_bytes != table.logical_sector_bytes {
        return Err(Error::refused(format!(
            "{} has logical sectors of {sector_bytes} bytes and the image's disk had {}, and there is nothing in its partition table to \
             restore: make a new one with sgdisk -o; nothing was written",
            target.name(),
            table.logical_sector_bytes
        )));
    }
    let target_bytes = target.len_bytes();
    let mut notes = Vec::new();
    if let Some(grow) = options.grow {
        layout::chosen(&[], grow)?;
    }
    if target_bytes < disk_bytes {
        notes.push(format!(
            "the target is {} smaller than the image's disk, which has no partitions; what lies at its end is left out",
            size(disk_bytes - target_bytes)
        ));
    } else if table.kind == TableKind::Gpt && target_bytes != disk_bytes {
        notes.push(BACKUP_MOVES.into());
    }
    let withheld = withheld(disk, table, HEAD_LEN.min(disk_bytes).min(target_bytes))?;
    let pieces = table::arrange(disk, table, &[], target_bytes).map_err(image_error)?;
    notes.extend(extended_note(table, &pieces));
    let commit = commit_pieces(pieces.into_iter().map(Piece::from).collect(), &withheld);
    let whole = Segment { image: 0..disk_bytes.min(target_bytes), target: 0 };
    let placement = Placement::new(vec![whole], withheld, &places_of(&commit));
    let (slots, fresh, growths) = (Vec::new(), Vec::new(), Vec::new());
    Ok(Arrangement { slots, sector_bytes, placement, commit, fresh, growths, notes })
}

const BACKUP_MOVES: &str =
    "the backup GPT goes to the end of the target; the space between is left unpartitioned";

const BACKUP_STAYS: &str = "there is no room for a backup GPT behind the last partition: the table stays as it was captured";

/// An extended partition is written with the tables in it, or not at all.
fn extended_note(table: &Table, pieces: &[TablePiece]) -> Option<String> {
    let is_left_out = table.has_extended() && !pieces.iter().any(|p| p.name == LOGICAL_TABLES);
    is_left_out.then(|| {
        "the extended partition has no logical ones in it and does not fit as it is: it is left out".into()
    })
}

/// What becomes of space that the image's disk has and the target has not, or the other way round.
fn space_note(
    table: &Table,
    partitions: &[Movable],
    slots: &[Slot],
    grow: Option<usize>,
    disk_bytes: u64,
    target_bytes: u64,
) -> Option<String> {
    let changed = partitions.iter().zip(slots).any(|(p, slot)| p.slot != *slot);
    if grow.is_some() && !changed {
        return Some("there is no room to grow into".into());
    }
    if target_bytes < disk_bytes {
        return Some(format!(
            "the target is {} smaller than the image's disk; what lies behind the last partition is left out",
            size(disk_bytes - target_bytes)
        ));
    }
    let moves = table.kind == TableKind::Gpt && target_bytes != disk_bytes && !changed;
    moves.then(|| BACKUP_MOVES.into())
}

/// Whether that part of the image is swap that is not in use.
pub fn is_swap(disk: &mut ImageDisk<'_>, start: u64, len: u64) -> Result<bool> {
    Ok(holds(disk, start, len)? == Holds::Swap)
}

/// What of that part of the image matters to its place.
fn holds(disk: &mut ImageDisk<'_>, start: u64, len: u64) -> Result<Holds> {
    if kind_of(disk, start, len)? != FsKind::Swap {
        return Ok(Holds::Other);
    }
    let map = fs::map_volume(&mut probe::Part::new(disk, start, len), len).map_err(image_error)?;
    let is_free = map.taken == fs::Taken::Map && map.clean == fs::Clean::Clean;
    Ok(if is_free { Holds::Swap } else { Holds::SwapInUse })
}

/// What that part of the image holds.
pub fn kind_of(disk: &mut ImageDisk<'_>, start: u64, len: u64) -> Result<FsKind> {
    let found = probe::whole(&mut probe::Part::new(disk, start, len), len).map_err(image_error)?;
    Ok(found.map_or(FsKind::Unknown, |found| found.kind))
}

/// What lies where on the target, once an image with this table is on it.
pub fn volumes(
    disk: &mut ImageDisk<'_>,
    disk_bytes: u64,
    table: &Table,
    arranged: &Arrangement,
    target: &Disk,
) -> Result<Vec<Volume>> {
    if table.kind == TableKind::None {
        let whole = Slot { number: 0, start_bytes: 0, len_bytes: disk_bytes };
        return only_volume(disk, whole, target);
    }
    let mut volumes = Vec::new();
    for slot in &arranged.slots {
        // What has no place in the image is made anew, and nothing is in it.
        let Some(old) = table.partitions.iter().find(|p| p.number == slot.number) else { continue };
        let inside = customise::volumes_of(disk, old.start_bytes, old.len_bytes);
        let inside = inside.map_err(image_error)?.into_iter();
        volumes.extend(inside.map(|volume| volume.in_partition(slot, old.uuid.clone())));
    }
    Ok(volumes)
}

/// The one volume that a target becomes.
pub fn only_volume(disk: &mut ImageDisk<'_>, source: Slot, target: &Disk) -> Result<Vec<Volume>> {
    let mut volumes =
        customise::volumes_of(disk, source.start_bytes, source.len_bytes).map_err(image_error)?;
    if let [Volume { logical: None, len_bytes, .. }] = volumes.as_mut_slice() {
        *len_bytes = target.len_bytes();
    }
    Ok(volumes)
}

/// `None` if nobody here can grow such a filesystem.
pub fn growth(
    kind: FsKind,
    number: Option<u32>,
    start_bytes: u64,
    len_bytes: u64,
) -> Result<Option<Growth>> {
    if !grow::can_grow(kind, len_bytes) {
        return Ok(None);
    }
    grow::check(kind).map_err(|e| {
        e.context(format!(
            "the {kind} could not be grown; leave --grow (in a layout: grow) out, and grow it in the restored system; nothing was written"
        ))
    })?;
    Ok(Some(Growth { number, kind, start_bytes, len_bytes }))
}

/// The header of a swap area for a partition of another length, with the same UUID and label.
pub fn swap_header(disk: &mut ImageDisk<'_>, old: Slot, slot: &Slot) -> Result<Piece> {
    let head_len = old.len_bytes.min(fs::SWAP_HEAD_LEN);
    let head = disk.bytes(old.start_bytes, index(head_len))?;
    let what = match slot.number {
        0 => "the swap area".to_owned(),
        number => format!("the swap area of partition {number}"),
    };
    let bytes = fs::swap_header(&head, slot.len_bytes).ok_or_else(|| {
        Error::refused(format!(
            "{what} cannot become one of {}: it has 10 pages at least, and 2^32 of them at most (16 TiB of 4 KiB); leave --grow out, or make it \
             anew with mkswap; nothing was written",
            size(slot.len_bytes)
        ))
    })?;
    let name = format!("swap header of partition {}", slot.number);
    Ok(Piece { name, offset: slot.start_bytes, bytes })
}

/// What the frames leave out, and the image's bytes there: the head, and the table's own sectors.
fn withheld(
    disk: &mut ImageDisk<'_>,
    table: &Table,
    head: u64,
) -> Result<Vec<(Range<u64>, Vec<u8>)>> {
    let mut places = Extents::single(0, head);
    for metadata in &table.metadata {
        places.insert(metadata.start, metadata.len);
    }
    let read =
        |place: &Extent| Ok((place.start..place.end(), disk.bytes(place.start, index(place.len))?));
    places.iter().map(read).collect()
}

/// The boot gap in front of the table's pieces.
fn commit_pieces(mut tables: Vec<Piece>, withheld: &[(Range<u64>, Vec<u8>)]) -> Vec<Piece> {
    let Some((head, bytes)) = withheld.first() else { return tables };
    let mut in_head: Vec<Range<u64>> =
        tables.iter().map(Piece::range).filter(|range| range.start < head.end).collect();
    in_head.sort_by_key(|range| range.start);
    let gap = |range: Range<u64>| Piece {
        name: "boot gap".into(),
        offset: range.start,
        bytes: bytes[index(range.start - head.start)..index(range.end - head.start)].to_vec(),
    };
    let mut pieces: Vec<Piece> =
        super::ranges::gaps(&in_head, head.clone()).into_iter().map(gap).collect();
    pieces.append(&mut tables);
    pieces
}

pub fn places_of(pieces: &[Piece]) -> Vec<Range<u64>> {
    let mut places: Vec<Range<u64>> = pieces.iter().map(Piece::range).collect();
    places.sort_by_key(|range| range.start);
    places
}

/// The head of a volume, its first sectors last.
fn volume_pieces(head: &[u8]) -> Vec<Piece> {
    let split = head.len().min(index(FIRST_SECTORS_LEN));
    let piece = |name: &str, offset: usize, bytes: &[u8]| Piece {
        name: name.into(),
        offset: offset as u64,
        bytes: bytes.to_vec(),
    };
    let mut pieces = Vec::new();
    if split < head.len() {
        pieces.push(piece("head of the volume", split, &head[split..]));
    }
    pieces.push(piece("first sectors of the volume", 0, &head[..split]));
    pieces
}

fn index(n: u64) -> usize {
    usize::try_from(n).expect("heads and tables are a few MiB")
}

/// The error of a parser that looks into an image, or of a table that cannot say what it should.
pub fn image_error(e: io::Error) -> Error {
    if e.kind() == io::ErrorKind::InvalidInput {
        return Error::refused("the partition table does not fit the target; nothing was written")
            .because(e);
    }
    disk_error(e)
}
