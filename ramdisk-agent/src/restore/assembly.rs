//! A layout: several volumes out of images, put into a partition table that is made anew.
//!
//! What the layout says, what the images hold and the target's size become a plan like any other: same order of writes, same
//! read-back, same refusals before the first write. A partition out of a GPT keeps its identity in a new one, so that a system finds it by
//! PARTUUID as before. The other identities of the new table and of fresh swap are derived from the images, the layout, the disk and the machine: they are the same when the same restore runs again, so that it can be approved, compared and gone on with, and
//! different on any other disk. Boot code outside of partitions is not taken along.

mod places;

use agent_api::{Layout, LayoutFormat, LayoutPartition, LayoutSize, LayoutTable, RestoreOptions};
use uuid::Uuid;

use self::places::places;
use crate::damage;
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::foreign;
use crate::fs::FsKind;
use crate::image::{DiskImage, ImageDisk, Joined, disk_error};
use crate::restore::approval;
use crate::restore::arrangement::{self, Arrangement};
use crate::restore::commit::Piece;
use crate::restore::customise::{self, Volume};
use crate::restore::ids::{self, FreshId, Ids};
use crate::restore::layout;
use crate::restore::placement::{Placement, Segment};
use crate::restore::plan::{self, PlannedPartition, RestorePlan};
use crate::restore::retargeting::{self, Sectors};
use crate::table::{
    self, FreshPartition, Partition, Slot, Table, TableKind, TableOutcome, TypeId, attribute_of,
    type_in, type_names, type_of,
};
use crate::words::size;

/// The images of a layout.
#[derive(Debug)]
pub struct Assembly {
    /// All of them.
    pub image: Joined,
    /// For each partition of the layout the number of the image whose content goes into it.
    pub members: Vec<Option<usize>>,
}

/// What goes into a partition.
#[derive(Debug)]
struct Content {
    /// Its number in its image, 0 if that is of a single volume; its place in all images together.
    slot: Slot,
    /// Where its image's disk begins in all images together.
    base: u64,
    /// The size of logical sectors of the disk that it was taken from.
    sector_bytes: u32,
    kind: FsKind,
    /// That, or the logical volumes in it.
    volumes: Vec<Volume>,
    is_swap: bool,
    /// The type that its partition had, if the new table can say it.
    type_id: Option<TypeId>,
    name: Option<String>,
    /// The identity that its partition had, if the new table can say it.
    uuid: Option<Uuid>,
    /// Filesystem and label, for people.
    what: String,
}

/// Makes the plan. Writes nothing.
pub fn make(
    assembly: &Assembly,
    layout: &Layout,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<RestorePlan> {
    let refused = |text: String| Error::refused(format!("{text}; nothing was written"));
    options.check_layout().map_err(refused)?;
    let image = &assembly.image;
    image.check_index()?;
    let sector = sector_of(assembly, target);
    plan::check_target(target)?;
    if target.is_partition() {
        let text = format!("{} is a partition, and a layout is of a whole disk", target.name());
        return Err(refused(text));
    }
    let damaged = damaged(assembly, options)?;
    let table_kind = match layout.table {
        LayoutTable::Gpt => TableKind::Gpt,
        LayoutTable::Mbr => TableKind::Mbr,
    };
    let contents = contents(assembly, layout, table_kind)?;
    let lens: Vec<Option<u64>> =
        contents.iter().map(|c| c.as_ref().map(|c| c.slot.len_bytes)).collect();
    let sizes: Vec<LayoutSize> = layout
        .partitions
        .iter()
        .zip(&lens)
        .map(|(p, len)| p.size.unwrap_or(LayoutSize::Bytes(len.unwrap_or(0))))
        .collect();
    // Of swap only the header counts, and that is made for any size.
    let least: Vec<u64> = contents
        .iter()
        .map(|c| c.as_ref().filter(|c| !c.is_swap).map_or(layout::ALIGNMENT, |c| c.slot.len_bytes))
        .collect();
    let room_end = table::room_end(table_kind, target.len_bytes(), sector)
        .map_err(|e| refused("the disk's sectors cannot be handled".into()).because(e))?;
    let slots = places(&sizes, &least, room_end, u64::from(sector))?;

    let mut disk = ImageDisk::new(image)?;
    let ids = Ids::new(image, Some(layout), target);
    let mut notes = Vec::new();
    let (mut growths, mut fresh, mut segments) = (Vec::new(), Vec::new(), Vec::new());
    let mut withheld = Vec::new();
    for ((partition, content), slot) in layout.partitions.iter().zip(&contents).zip(&slots) {
        let number = slot.number;
        if partition.format == Some(LayoutFormat::Swap) {
            let label = partition.label.as_deref().unwrap_or_default();
            let uuid = ids.uuid("swap", number);
            let bytes = foreign::swap_header(slot.len_bytes, *uuid.as_bytes(), label).to_vec();
            let name = format!("swap header of partition {number}");
            fresh.push(Piece { name, offset: slot.start_bytes, bytes });
        }
        let Some(content) = content else { continue };
        if let Some(sectors) = Sectors::new(content.sector_bytes, sector) {
            let what = format!("partition {number} of the layout");
            if let Some(head) = sectors.head_of(&mut disk, content.base, content.slot, &what)? {
                notes.push(sectors.head_note(&what));
                let start = content.slot.start_bytes;
                let own = disk.bytes(start, head.len())?;
                withheld.push((start..start + head.len() as u64, own));
                fresh.push(retargeting::head_piece(number, slot.start_bytes, head));
            }
        }
        if content.is_swap && content.slot.len_bytes != slot.len_bytes {
            fresh.push(arrangement::swap_header(&mut disk, content.slot, slot)?);
            continue;
        }
        let place = content.slot.start_bytes..content.slot.end_bytes();
        segments.push(Segment { image: place, target: slot.start_bytes });
        if slot.len_bytes == content.slot.len_bytes {
            continue;
        }
        let growth = match partition.grow {
            true => {
                let (start, len) = (slot.start_bytes, slot.len_bytes);
                arrangement::growth(content.kind, Some(number), start, len)?
            }
            false => None,
        };
        if growth.is_none() {
            notes.push(format!(
                "what partition {number} holds ({}) keeps its size of {}: grow it in the restored system",
                content.kind,
                size(content.slot.len_bytes)
            ));
        }
        growths.extend(growth);
    }
    let identities = identities(&contents, &ids, options.fresh_ids);
    let fresh_ids = fresh_ids(&contents, &identities, options.fresh_ids);
    notes.extend(ids::note(table_kind, &fresh_ids));
    let fresh_partitions = layout
        .partitions
        .iter()
        .zip(&contents)
        .zip(slots.iter().zip(identities))
        .map(|((p, content), (slot, uuid))| {
            fresh_partition(p, content.as_ref(), *slot, table_kind, uuid)
        })
        .collect::<Result<Vec<_>>>()?;
    let disk_id = ids.uuid("disk", 0);
    let pieces =
        table::fresh_pieces(table_kind, disk_id, &fresh_partitions, target.len_bytes(), sector)
            .map_err(|e| refused("the new partition table cannot be made".into()).because(e))?;
    let commit: Vec<Piece> = pieces.into_iter().map(Piece::from).collect();
    withheld.sort_by_key(|(range, _)| range.start);
    // The same volume may go into several partitions.
    withheld.dedup_by(|a, b| a.0 == b.0);
    let placement = Placement::new(segments, withheld, &arrangement::places_of(&commit));
    let arranged =
        Arrangement { slots, sector_bytes: sector, placement, commit, fresh, growths, notes };

    let volumes = volumes(&contents, &fresh_partitions, table_kind);
    let described = described(table_kind, sector, &fresh_partitions, &contents);
    let order = options.customise.efi_boot_order;
    let customises = customise::plan(volumes, &options.customise, |label| {
        customise::plan_boot_entry(&mut disk, &described, &arranged, target, label, order)
    })?;
    let found = plan::found_on(target)?;
    let wipes = plan::wipes(target.len_bytes(), target.len_bytes(), &arranged, &found);
    let partitions = layout
        .partitions
        .iter()
        .zip(&contents)
        .zip(&arranged.slots)
        .map(|((p, content), slot)| PlannedPartition {
            number: slot.number,
            start_bytes: slot.start_bytes,
            len_bytes: slot.len_bytes,
            what: what(p, content.as_ref()),
        })
        .collect();
    let mut plan = RestorePlan {
        hash: String::new(),
        root: image.root().to_string(),
        image_bytes: image.disk_len(),
        target: target.info(),
        into: None,
        from: None,
        held_table: plan::held_table(target)?,
        found: plan::found_ranges(&found, target.len_bytes()),
        destroys: found.into_iter().map(|signature| signature.what).collect(),
        table_kind: format!("{table_kind:?}").to_lowercase(),
        partitions,
        whole: None,
        damaged,
        fresh_ids,
        changes: arranged.notes.clone(),
        notes: arranged.notes,
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

/// The sector size that the table is made for: the device's; for a disk file that of the disk in the first image.
fn sector_of(assembly: &Assembly, target: &Disk) -> u32 {
    let first = assembly.image.members().next().map(|(_, image)| sector_bytes(image));
    retargeting::sector_bytes(target, first.unwrap_or_else(|| target.logical_sector_bytes()))
}

fn sector_bytes(image: &dyn DiskImage) -> u32 {
    image.manifest().disk.logical_sector_bytes
}

fn damaged(assembly: &Assembly, options: &RestoreOptions) -> Result<Vec<String>> {
    let damaged: Vec<String> = assembly
        .image
        .members()
        .flat_map(|(_, image)| damage::describe(image.manifest()))
        .collect();
    if damaged.is_empty() || options.accept_bad_sectors {
        return Ok(damaged);
    }
    Err(Error::refused(format!(
        "the layout's images are damaged, what could not be read would be zeros: {}; to restore them all the same give \
         --accept-bad-sectors; nothing was written",
        damaged.join("; ")
    )))
}

/// What goes into each partition of a layout.
fn contents(
    assembly: &Assembly,
    layout: &Layout,
    table_kind: TableKind,
) -> Result<Vec<Option<Content>>> {
    let mut tables = Vec::new();
    for (_, image) in assembly.image.members() {
        let mut disk = ImageDisk::new(image)?;
        let outcome = table::read_table(&mut disk, image.disk_len(), sector_bytes(image));
        tables.push(outcome.map_err(disk_error)?);
    }
    let content = |(partition, member): (&LayoutPartition, &Option<usize>), number: u32| {
        let Some(member) = *member else { return Ok(None) };
        let table = match &tables[member] {
            TableOutcome::Table(table) => table,
            TableOutcome::Refused(refusal) => {
                let text = format!(
                    "the partition table in the image of partition {number} of the layout cannot be relied on; nothing was written"
                );
                return Err(Error::refused(text).because(refusal.clone()));
            }
        };
        content_of(assembly, partition, member, table, number, table_kind).map(Some)
    };
    let all = layout.partitions.iter().zip(&assembly.members).zip(1..);
    all.map(|(pair, number)| content(pair, number)).collect()
}

fn content_of(
    assembly: &Assembly,
    partition: &LayoutPartition,
    member: usize,
    table: &Table,
    number: u32,
    table_kind: TableKind,
) -> Result<Content> {
    let refused = |text: String| {
        Error::refused(format!("partition {number} of the layout: {text}; nothing was written"))
    };
    let (base, image) = assembly.image.member(member);
    let found = partition
        .image_partition
        .map(|wanted| table.partitions.iter().find(|p| p.number == wanted).ok_or(wanted))
        .transpose()
        .map_err(|wanted| {
            refused(format!("its image has no partition {wanted}: {}", disk::list_of(table)))
        })?;
    if found.is_none() && table.kind != TableKind::None {
        return Err(refused(format!(
            "its image is of a disk with a partition table, so that image-partition has to say which is meant: {}",
            disk::list_of(table)
        )));
    }
    let own = found.map_or(Slot { number: 0, start_bytes: 0, len_bytes: image.disk_len() }, |p| {
        Slot { number: p.number, start_bytes: p.start_bytes, len_bytes: p.len_bytes }
    });
    let mut disk = ImageDisk::new(image)?;
    let kind = arrangement::kind_of(&mut disk, own.start_bytes, own.len_bytes)?;
    let volumes = customise::volumes_of(&mut disk, own.start_bytes, own.len_bytes)
        .map_err(arrangement::image_error)?;
    let is_swap = arrangement::is_swap(&mut disk, own.start_bytes, own.len_bytes)?;
    let both_gpt = table.kind == TableKind::Gpt && table_kind == TableKind::Gpt;
    Ok(Content {
        slot: Slot { start_bytes: base + own.start_bytes, ..own },
        base,
        sector_bytes: sector_bytes(image),
        kind,
        volumes,
        is_swap,
        type_id: found.and_then(|p| type_in(&p.type_id, table_kind)),
        name: found.and_then(|p| p.name.clone()),
        uuid: found.filter(|_| both_gpt).and_then(|p| p.uuid.as_ref()?.parse().ok()),
        what: plan::described_volume(image, found),
    })
}

/// The identity of each partition: that of the partition which it comes from, the first time that it goes somewhere, unless all are to be
/// `fresh`.
fn identities(contents: &[Option<Content>], ids: &Ids, fresh: bool) -> Vec<Uuid> {
    let mut given: Vec<Uuid> = Vec::new();
    for (content, number) in contents.iter().zip(1..) {
        let kept = content.as_ref().and_then(|content| content.uuid);
        let kept = kept.filter(|uuid| !fresh && !uuid.is_nil() && !given.contains(uuid));
        given.push(kept.unwrap_or_else(|| ids.uuid("partition", number)));
    }
    given
}

/// The identities that would have been kept and are not, if that is asked for.
fn fresh_ids(contents: &[Option<Content>], given: &[Uuid], asked: bool) -> Vec<FreshId> {
    let all = contents.iter().zip(given).zip(1..).filter(|_| asked);
    all.filter_map(|((content, new), number)| {
        let old = content.as_ref()?.uuid?.to_string();
        Some(FreshId { partition: Some(number), old: Some(old), new: new.to_string() })
    })
    .collect()
}

/// The entry of a partition in the new table.
fn fresh_partition(
    partition: &LayoutPartition,
    content: Option<&Content>,
    slot: Slot,
    table_kind: TableKind,
    uuid: Uuid,
) -> Result<FreshPartition> {
    let number = slot.number;
    let unknown = |what: String| {
        Error::refused(format!("partition {number} of the layout {what}; nothing was written"))
    };
    let usual = match (content.map(|c| c.kind), partition.format) {
        (Some(FsKind::Swap), _) | (_, Some(LayoutFormat::Swap)) => "swap",
        (Some(FsKind::Fat12 | FsKind::Fat16 | FsKind::Fat32), _) => "fat32",
        (Some(FsKind::Ntfs | FsKind::Exfat), _) => "basic-data",
        _ => "linux",
    };
    let type_id = match &partition.kind {
        Some(text) => type_of(text, table_kind).ok_or_else(|| {
            let kind = format!("{table_kind:?}").to_uppercase();
            unknown(format!(
                "has the type '{}', which is none of a {kind}: those are a GUID in a GPT, 0x83 in an MBR, or {}",
                text.escape_debug(),
                type_names()
            ))
        })?,
        None => content
            .and_then(|c| c.type_id)
            .or_else(|| type_of(usual, table_kind))
            .ok_or_else(|| unknown("has no type".into()))?,
    };
    let mut attributes = 0;
    for text in &partition.attributes {
        attributes |= attribute_of(text).ok_or_else(|| {
            unknown(format!(
                "has the attribute '{}', which is none: those are required, no-block-io, legacy-boot, grow-file-system, read-only, \
                 hidden, no-auto, or the number of a bit",
                text.escape_debug()
            ))
        })?;
    }
    let name = partition.name.clone().or_else(|| content.and_then(|c| c.name.clone()));
    Ok(FreshPartition {
        slot,
        type_id,
        uuid,
        name: name.filter(|_| table_kind == TableKind::Gpt).unwrap_or_default(),
        attributes,
        bootable: partition.bootable,
    })
}

/// What will be where on the target.
fn volumes(
    contents: &[Option<Content>],
    fresh: &[FreshPartition],
    table_kind: TableKind,
) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for (content, partition) in contents.iter().zip(fresh) {
        let id = (table_kind == TableKind::Gpt).then(|| partition.uuid.to_string());
        let inside = content.iter().flat_map(|content| &content.volumes).cloned();
        volumes.extend(inside.map(|volume| volume.in_partition(&partition.slot, id.clone())));
    }
    volumes
}

/// The new table, with its partitions where their content is in the images.
fn described(
    table_kind: TableKind,
    sector: u32,
    fresh: &[FreshPartition],
    contents: &[Option<Content>],
) -> Table {
    let partitions = fresh.iter().zip(contents).filter_map(|(partition, content)| {
        let content = content.as_ref()?;
        Some(Partition {
            number: partition.slot.number,
            start_bytes: content.slot.start_bytes,
            len_bytes: content.slot.len_bytes,
            type_id: partition.type_id.to_string(),
            uuid: Some(partition.uuid.to_string()),
            name: None,
            attributes: partition.attributes,
            bootable: partition.bootable,
        })
    });
    table::described(table_kind, sector, partitions.collect())
}

fn what(partition: &LayoutPartition, content: Option<&Content>) -> String {
    match (content, partition.format) {
        (Some(content), _) => match partition.image_partition {
            Some(number) => format!("{}, from partition {number} of its image", content.what),
            None => content.what.clone(),
        },
        (None, Some(LayoutFormat::Swap)) => {
            format!("new swap {}", partition.label.as_deref().unwrap_or_default()).trim().to_owned()
        }
        (None, None) => "nothing".into(),
    }
}
