//! What FOG's capture leaves, after its own scripts (`fog.upload`, `funcs.sh`).

use super::super::error::{ForeignError, Result};
use super::super::saved_table::{check_gpt, check_mbr, len_by_gpt, primary_gpt};
use super::super::sfdisk::{Dump, DumpedPartition};
use super::{Folder, ForeignDisk, MIB, Parts, Place, SECTOR, len_by_partitions};
use crate::fs::bytes::le64;

/// The lists of partitions that there may be. Of a *resizable* image, FOG's usual kind, filesystems and partitions are made as small as
/// they can be before they are saved: the first list and `d1.mbr` are of then, and the second of before. The third is what old versions call
/// the second.
const LISTS: [&str; 3] = ["d1.minimum.partitions", "d1.partitions", "d1.original.partitions"];

/// An image of FOG.
pub(super) struct Fog<'a> {
    pub folder: &'a Folder<'a>,
}

impl Fog<'_> {
    const FORMAT: &'static str = "FOG";

    /// Puts the disk together.
    pub fn open(&self) -> Result<ForeignDisk> {
        let refused = |reason: &str| Err(ForeignError::refused(Self::FORMAT, reason));
        let names = &self.folder.names;
        if names.contains("d2.partitions") {
            return refused("several disks were saved: one is read");
        }
        if names.iter().any(|name| name.to_ascii_lowercase().contains("lvm")) {
            return refused("LVM in it: restore it with FOG and capture that disk");
        }
        let head = self.folder.bytes("d1.mbr", Self::FORMAT)?;
        let dump = self.list(&head)?;
        self.check_list(&dump)?;
        let mut parts = Parts::new(Self::FORMAT);
        let disk_len = self.add_tables(&mut parts, &head, &dump)?;
        let ebr = dump.extended.as_ref().map(|extended| format!("d1p{}.ebr", extended.number));
        parts.add_logical_tables(&dump, self.folder.saved_table(ebr, Self::FORMAT)?)?;
        for partition in &dump.partitions {
            self.add_partition(&mut parts, partition)?;
        }
        parts.finish(disk_len, dump.sector_bytes)
    }

    /// The list that says what the saved table says.
    fn list(&self, head: &[u8]) -> Result<Dump> {
        let there = LISTS.iter().filter(|name| self.folder.names.contains(**name));
        let mut first = None;
        for name in there {
            let list = self.folder.text(name, Self::FORMAT);
            let dump = list.and_then(|text| Dump::parse(&text, Self::FORMAT));
            match dump.and_then(|dump| check_table(head, &dump).map(|()| dump)) {
                Ok(dump) => return Ok(dump),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first
            .unwrap_or_else(|| ForeignError::damaged(Self::FORMAT, "d1.partitions is missing")))
    }

    /// Refuses a list that lacks a partition which was saved.
    fn check_list(&self, dump: &Dump) -> Result<()> {
        let number = |name: &String| -> Option<u32> {
            let (number, kind) = name.strip_prefix("d1p")?.split_once('.')?;
            (kind == "img" || kind.starts_with("img.")).then(|| number.parse().ok()).flatten()
        };
        let listed = |number| {
            dump.partitions.iter().chain(&dump.extended).any(|partition| partition.number == number)
        };
        let mut saved = self.folder.names.iter().filter_map(|name| Some((name, number(name)?)));
        match saved.find(|(_, number)| !listed(*number)) {
            None => Ok(()),
            Some((name, number)) => Err(ForeignError::damaged(
                Self::FORMAT,
                format!(
                    "there is {name}, and the list of partitions has no partition {number}: one of them was changed"
                ),
            )),
        }
    }

    /// The tables; the disk's length.
    fn add_tables(&self, parts: &mut Parts, head: &[u8], dump: &Dump) -> Result<u64> {
        let first = dump.first();
        let by_size = match self.folder.names.contains("d1.size") {
            true => len_by_size(&self.folder.text("d1.size", Self::FORMAT)?),
            false => None,
        };
        let len = by_size.or_else(|| len_by_gpt(head, dump.sector_bytes));
        let len = len.unwrap_or_else(|| len_by_partitions(dump));
        let Some(backup) = SgdiskBackup::of(head, dump) else {
            let room = usize::try_from(first).unwrap_or(usize::MAX);
            parts.add_bytes(0, &head[..head.len().min(room)]);
            return Ok(len);
        };
        let place = |header: &[u8], field: usize| {
            le64(header, field).checked_mul(dump.sector_bytes).ok_or_else(|| {
                ForeignError::damaged(Self::FORMAT, "the GPT in d1.mbr is beyond any disk")
            })
        };
        let SgdiskBackup { primary, backup, entries } = backup;
        parts.add_bytes(0, &head[..2 * backup.len()]);
        parts.add_bytes(place(primary, 72)?, entries);
        parts.add_bytes(place(backup, 72)?, entries);
        parts.add_bytes(place(backup, 24)?, backup);
        Ok(len)
    }

    fn add_partition(&self, parts: &mut Parts, partition: &DumpedPartition) -> Result<()> {
        let name = format!("d1p{}.img", partition.number);
        let numbered = format!("{name}.");
        let mut files: Vec<String> = self
            .folder
            .names
            .range(numbered.clone()..)
            .take_while(|n| n.starts_with(&numbered))
            .cloned()
            .collect();
        if self.folder.names.contains(&name) {
            files = vec![name.clone()];
        }
        if files.is_empty() {
            if let Some(uuid) = self.swap_uuid(partition.number)? {
                return parts.add_swap(&Place::of(partition), &uuid, "");
            }
            let reason = format!("partition {} was not saved", partition.number);
            return Err(ForeignError::refused(Self::FORMAT, reason));
        }
        let is_piece = |(i, file): (usize, &String)| file.ends_with(&format!(".{i:03}"));
        let in_order = files == [name.as_str()] || files.iter().enumerate().all(is_piece);
        if !in_order {
            let fault = format!("pieces of {} are missing", files[0]);
            return Err(ForeignError::damaged(Self::FORMAT, fault));
        }
        parts.add_volume(&Place::of(partition), self.folder.source(&files, Self::FORMAT)?)
    }

    /// `2 0c8d…`, older ones `/dev/sda2 0c8d…`
    fn swap_uuid(&self, number: u32) -> Result<Option<String>> {
        if !self.folder.names.contains("d1.original.swapuuids") {
            return Ok(None);
        }
        let text = self.folder.text("d1.original.swapuuids", Self::FORMAT)?;
        Ok(text.lines().find_map(|line| {
            let (part, uuid) = line.trim().split_once(' ')?;
            let digits = part.trim_start_matches(|c: char| !c.is_ascii_digit());
            let digits = digits.rsplit('p').next()?;
            (digits.parse() == Ok(number)).then(|| uuid.trim().to_owned())
        }))
    }
}

/// What `sgdisk --backup` writes: MBR, both headers, the entries.
struct SgdiskBackup<'a> {
    /// A sector each.
    primary: &'a [u8],
    backup: &'a [u8],
    entries: &'a [u8],
}

impl<'a> SgdiskBackup<'a> {
    /// `None` if a GPT was saved in another way, or if it is none.
    fn of(head: &'a [u8], dump: &Dump) -> Option<Self> {
        let sector = usize::try_from(dump.sector_bytes).ok()?;
        let (headers, entries) = head.split_at_checked(3 * sector)?;
        let (primary, backup) = headers[sector..].split_at(sector);
        let is_one = |header: &[u8]| header.starts_with(b"EFI PART");
        (dump.gpt && is_one(primary) && is_one(backup)).then_some(Self { primary, backup, entries })
    }
}

/// Refuses a table that is cut off, or says something else than the list.
fn check_table(head: &[u8], dump: &Dump) -> Result<()> {
    const NAME: &str = "d1.mbr";
    if let Some(SgdiskBackup { primary, entries, .. }) = SgdiskBackup::of(head, dump) {
        return check_gpt(primary, entries, dump, NAME, Fog::FORMAT);
    }
    if dump.gpt {
        let (header, entries) = primary_gpt(head, dump.sector_bytes);
        return check_gpt(header, entries, dump, NAME, Fog::FORMAT);
    }
    check_mbr(head, dump, NAME, Fog::FORMAT)?;
    // Everything up to the first partition, which a boot loader is in, but no more than a MiB; and counted in sectors of 512 bytes whatever
    // the disk's are.
    let whole = dump.first().min(MIB);
    if (head.len() as u64) < whole && dump.sector_bytes == SECTOR {
        let fault = format!(
            "{NAME} has {} of the first {whole} bytes of the disk: it is cut off",
            head.len()
        );
        return Err(ForeignError::damaged(Fog::FORMAT, fault));
    }
    Ok(())
}

/// `1:500107862016`
fn len_by_size(text: &str) -> Option<u64> {
    text.lines().next()?.rsplit(':').next()?.trim().parse().ok().filter(|len| len % SECTOR == 0)
}
