//! Images that are a folder: of Clonezilla and of FOG. Both keep the partition table beside one image for each partition.

use std::collections::BTreeSet;
use std::sync::Arc;

use image_format::ReadAt;

use super::assembled::{Assembled, Content, Segment, Start, in_order, swap_header};
use super::error::{ForeignError, Result};
use super::logical::{self, Saved};
use super::saved_table::{check_gpt, check_mbr, len_by_gpt, primary_gpt};
use super::sfdisk::{Dump, DumpedPartition};
use super::source::Source;
use super::walk::Walk;
use super::{Access, ForeignDisk};
use crate::extents::Extents;
use crate::fs::bytes::le64;

/// Texts and tables are a few KiB, what was saved of the gap behind the MBR a MiB.
const MAX_SMALL_FILE: u64 = 4 << 20;
/// More files than an image has.
const MAX_FILES: usize = 100_000;
const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

/// A folder of a store.
pub struct Folder<'a> {
    /// The names of its files.
    pub names: BTreeSet<String>,
    /// Opens one of them.
    pub open: &'a dyn Fn(&str) -> Result<Arc<dyn ReadAt>>,
}

impl std::fmt::Debug for Folder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Tells whose image a folder is, and puts its disk together.
pub fn open(folder: &Folder<'_>) -> Result<ForeignDisk> {
    if folder.names.len() > MAX_FILES {
        return Err(ForeignError::refused("folder", "it has more files than an image has"));
    }
    if folder.names.contains("disk") || folder.names.contains("parts") {
        return Clonezilla { folder }.open();
    }
    if folder.names.iter().any(|name| name.starts_with('d') && name.ends_with(".partitions")) {
        return Fog { folder }.open();
    }
    Err(ForeignError::refused("folder", "this folder is no image of Clonezilla or FOG"))
}

impl Folder<'_> {
    fn bytes(&self, name: &str, format: &'static str) -> Result<Vec<u8>> {
        let source = self.source(&[name.to_owned()], format)?;
        if source.len() > MAX_SMALL_FILE {
            let fault = format!("{name} has {} bytes", source.len());
            return Err(ForeignError::damaged(format, fault));
        }
        source
            .head(usize::try_from(source.len()).expect("4 MiB"))
            .map_err(ForeignError::read(format))
    }

    fn text(&self, name: &str, format: &'static str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.bytes(name, format)?).into_owned())
    }

    /// What was saved of the extended partition under this name. FOG makes an empty file where it has nothing.
    fn saved_table(&self, name: Option<String>, format: &'static str) -> Result<Option<Saved>> {
        let Some(name) = name.filter(|name| self.names.contains(name)) else { return Ok(None) };
        let bytes = self.bytes(&name, format)?;
        Ok((!bytes.is_empty()).then_some(Saved { name, bytes }))
    }

    fn source(&self, names: &[String], format: &'static str) -> Result<Source> {
        if let Some(missing) = names.iter().find(|name| !self.names.contains(*name)) {
            return Err(ForeignError::damaged(format, format!("{missing} is missing")));
        }
        let files = names.iter().map(|name| (self.open)(name)).collect::<Result<Vec<_>>>()?;
        Source::new(files).map_err(ForeignError::read(format))
    }
}

/// The pieces of a disk as they are found.
struct Parts {
    format: &'static str,
    segments: Vec<Segment>,
    sources: Vec<Source>,
    mapped: Extents,
}

impl Parts {
    fn new(format: &'static str) -> Self {
        Self { format, segments: Vec::new(), sources: Vec::new(), mapped: Extents::new() }
    }

    fn add_bytes(&mut self, start: u64, bytes: &[u8]) {
        let content = Content::Bytes(bytes.into());
        self.segments.push(Segment { start, len: bytes.len() as u64, content });
    }

    fn add_logical_tables(&mut self, dump: &Dump, saved: Option<Saved>) -> Result<()> {
        for table in logical::tables(dump, saved, self.format)? {
            self.add_bytes(table.offset, &table.bytes);
        }
        Ok(())
    }

    /// The volume in these files, at its partition's place.
    fn add_volume(&mut self, partition: &DumpedPartition, source: Source) -> Result<()> {
        let DumpedPartition { name, start, len, .. } = partition;
        let volume = super::volume_of(source.clone())
            .map_err(|e| ForeignError::damaged(self.format, format!("the image of {name}: {e}")))?;
        if volume.declared_len.is_some_and(|volume| volume > *len) {
            let fault = format!("the image of {name} is longer than its partition");
            return Err(ForeignError::damaged(self.format, fault));
        }
        if !volume.mapped.is_empty() {
            self.mapped.insert(*start, *len);
        }
        let is_raw = volume.declared_len.is_none();
        let begin: Start = Arc::new(move || volume.walk());
        let content = Content::Volume { name: name.clone(), start: begin, is_raw };
        self.segments.push(Segment { start: *start, len: *len, content });
        self.sources.push(source);
        Ok(())
    }

    fn add_swap(&mut self, partition: &DumpedPartition, uuid: &str, label: &str) -> Result<()> {
        let uuid = uuid::Uuid::parse_str(uuid).map_err(|_| {
            let fault = format!("the swap of {} has no UUID", partition.name);
            ForeignError::damaged(self.format, fault)
        })?;
        let header = swap_header(partition.len, *uuid.as_bytes(), label);
        if <[u8]>::len(&header) as u64 > partition.len {
            let fault = format!("{} is too small for swap", partition.name);
            return Err(ForeignError::damaged(self.format, fault));
        }
        self.add_bytes(partition.start, &header);
        self.mapped.insert(partition.start, partition.len);
        Ok(())
    }

    fn finish(self, disk_len: u64, sector_bytes: u64) -> Result<ForeignDisk> {
        let Self { format, segments, sources, mapped } = self;
        let segments: Arc<[Segment]> = in_order(segments, disk_len, format)?.into();
        let start = move || -> Result<Box<dyn Walk>> {
            Ok(Box::new(Assembled::new(Arc::clone(&segments), disk_len, format)))
        };
        Ok(ForeignDisk {
            format: format!("{format} image"),
            declared_len: Some(disk_len),
            sector_bytes: u32::try_from(sector_bytes).ok(),
            sources,
            mapped,
            window_bytes: 0,
            access: Access::Stream(Arc::new(start)),
        })
    }
}

/// Where the last partition ends, and a little more.
fn len_by_partitions(dump: &Dump) -> u64 {
    let end = dump.end();
    end.checked_next_multiple_of(MIB).unwrap_or(end)
}

struct Clonezilla<'a> {
    folder: &'a Folder<'a>,
}

impl Clonezilla<'_> {
    const FORMAT: &'static str = "Clonezilla";

    fn open(&self) -> Result<ForeignDisk> {
        let refused = |reason: &str| Err(ForeignError::refused(Self::FORMAT, reason));
        let names = &self.folder.names;
        if !names.contains("disk") {
            return refused("single partitions were saved: restore each by its own file");
        }
        let disks = self.folder.text("disk", Self::FORMAT)?;
        let mut disks = disks.split_ascii_whitespace();
        let (Some(disk), None) = (disks.next(), disks.next()) else {
            return refused("several disks, or none, were saved: one is read");
        };
        if names.contains("lvm_vg_dev.list") {
            return refused("LVM in it: restore it with Clonezilla and capture that disk");
        }
        if names.iter().any(|name| name.starts_with("luks")) {
            return refused("LUKS in it: restore it with Clonezilla and capture that disk");
        }
        let dump =
            Dump::parse(&self.folder.text(&format!("{disk}-pt.sf"), Self::FORMAT)?, Self::FORMAT)?;
        let mut parts = Parts::new(Self::FORMAT);
        let disk_len = self.add_tables(&mut parts, disk, &dump)?;
        let ebr = dump.extended.as_ref().map(|extended| format!("{}-ebr", extended.name));
        parts.add_logical_tables(&dump, self.folder.saved_table(ebr, Self::FORMAT)?)?;
        for partition in &dump.partitions {
            self.add_partition(&mut parts, partition)?;
        }
        parts.finish(disk_len, dump.sector_bytes)
    }

    /// The tables and what was kept behind the MBR; the disk's length.
    fn add_tables(&self, parts: &mut Parts, disk: &str, dump: &Dump) -> Result<u64> {
        let first = dump.first();
        let optional = |suffix: &str| {
            let name = format!("{disk}-{suffix}");
            let there = self.folder.names.contains(&name);
            there.then(|| self.folder.bytes(&name, Self::FORMAT)).transpose()
        };
        let cut = |bytes: &[u8], room: u64| {
            bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))].to_vec()
        };
        let by_parted = match optional("pt.parted")? {
            Some(text) => len_by_parted(&String::from_utf8_lossy(&text), dump.sector_bytes),
            None => None,
        };
        if dump.gpt {
            let Some(head) = optional("gpt-1st")? else {
                let fault = format!("{disk}-gpt-1st is missing");
                return Err(ForeignError::damaged(Self::FORMAT, fault));
            };
            let len = by_parted.or_else(|| len_by_gpt(&head, dump.sector_bytes));
            let len = len.unwrap_or_else(|| len_by_partitions(dump));
            let (header, entries) = primary_gpt(&head, dump.sector_bytes);
            check_gpt(header, entries, dump, &format!("{disk}-gpt-1st"), Self::FORMAT)?;
            parts.add_bytes(0, &cut(&head, first));
            if let Some(tail) = optional("gpt-2nd")? {
                let start = len.saturating_sub(tail.len() as u64);
                let end = dump.end();
                // What of it reaches into the last partition is that partition's.
                let skip = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
                parts.add_bytes(start + skip as u64, tail.get(skip..).unwrap_or_default());
            }
            return Ok(len);
        }
        let Some(mbr) = optional("mbr")? else {
            return Err(ForeignError::damaged(Self::FORMAT, format!("{disk}-mbr is missing")));
        };
        check_mbr(&mbr, dump, &format!("{disk}-mbr"), Self::FORMAT)?;
        parts.add_bytes(0, &cut(&mbr, SECTOR));
        if let Some(hidden) = optional("hidden-data-after-mbr")? {
            parts.add_bytes(SECTOR, &cut(&hidden, first.saturating_sub(SECTOR)));
        }
        Ok(by_parted.unwrap_or_else(|| len_by_partitions(dump)))
    }

    fn add_partition(&self, parts: &mut Parts, partition: &DumpedPartition) -> Result<()> {
        let name = &partition.name;
        let swap = format!("swappt-{name}.info");
        if self.folder.names.contains(&swap) {
            let text = self.folder.text(&swap, Self::FORMAT)?;
            let value = |key: &str| {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
                line.unwrap_or_default().trim().trim_matches('"').to_owned()
            };
            return parts.add_swap(partition, &value("UUID="), &value("LABEL="));
        }
        let prefix = format!("{name}.");
        let own = self.folder.names.range(prefix.clone()..).take_while(|n| n.starts_with(&prefix));
        let files: Vec<String> =
            own.filter(|n| n.contains("-ptcl-img") || n.contains(".dd-img")).cloned().collect();
        if files.is_empty() {
            let reason = format!(
                "no image of {name} that is read: it was not saved, or by partimage or ntfsclone; restore it with Clonezilla \
                 and capture that disk"
            );
            return Err(ForeignError::refused(Self::FORMAT, reason));
        }
        check_pieces(&files, Self::FORMAT)?;
        let source = self.folder.source(&files, Self::FORMAT)?;
        parts.add_volume(partition, source)
    }
}

/// The pieces that `split` makes are named in order: one that is missing in between shows.
fn check_pieces(files: &[String], format: &'static str) -> Result<()> {
    let suffix = |name: &String| {
        let suffix = name.rsplit('.').next().unwrap_or_default();
        let letters = suffix.len() == 2 && suffix.bytes().all(|b| b.is_ascii_lowercase());
        let value = |b: u8| usize::from(b - b'a');
        let bytes = suffix.as_bytes();
        letters.then(|| value(bytes[0]) * 26 + value(bytes[1]))
    };
    let sound = match files {
        [one] => suffix(one).is_none_or(|number| number == 0),
        several => several.iter().enumerate().all(|(i, name)| suffix(name) == Some(i)),
    };
    if sound {
        return Ok(());
    }
    Err(ForeignError::damaged(format, format!("pieces of {} are missing", files[0])))
}

/// `Disk /dev/sda: 41943040s`
fn len_by_parted(text: &str, sector_bytes: u64) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("Disk /dev/"))?;
    let size = line.rsplit(':').next()?.trim().strip_suffix('s')?;
    size.parse::<u64>().ok()?.checked_mul(sector_bytes)
}

struct Fog<'a> {
    folder: &'a Folder<'a>,
}

impl Fog<'_> {
    const FORMAT: &'static str = "FOG";

    fn open(&self) -> Result<ForeignDisk> {
        let refused = |reason: &str| Err(ForeignError::refused(Self::FORMAT, reason));
        let names = &self.folder.names;
        if names.contains("d2.partitions") {
            return refused("several disks were saved: one is read");
        }
        if names.iter().any(|name| name.to_ascii_lowercase().contains("lvm")) {
            return refused("LVM in it: restore it with FOG and capture that disk");
        }
        let dump = Dump::parse(&self.folder.text("d1.partitions", Self::FORMAT)?, Self::FORMAT)?;
        let mut parts = Parts::new(Self::FORMAT);
        let disk_len = self.add_tables(&mut parts, &dump)?;
        let ebr = dump.extended.as_ref().map(|extended| format!("d1p{}.ebr", extended.number));
        parts.add_logical_tables(&dump, self.folder.saved_table(ebr, Self::FORMAT)?)?;
        for partition in &dump.partitions {
            self.add_partition(&mut parts, partition)?;
        }
        parts.finish(disk_len, dump.sector_bytes)
    }

    fn add_tables(&self, parts: &mut Parts, dump: &Dump) -> Result<u64> {
        let first = dump.first();
        let head = self.folder.bytes("d1.mbr", Self::FORMAT)?;
        let sector = usize::try_from(dump.sector_bytes).expect("512 or 4096");
        let is_header =
            |at: usize| head.get(at..).is_some_and(|bytes| bytes.starts_with(b"EFI PART"));
        let by_size = match self.folder.names.contains("d1.size") {
            true => len_by_size(&self.folder.text("d1.size", Self::FORMAT)?),
            false => None,
        };
        let len = by_size.or_else(|| len_by_gpt(&head, dump.sector_bytes));
        let len = len.unwrap_or_else(|| len_by_partitions(dump));
        if dump.gpt && !is_header(sector) {
            return Err(ForeignError::damaged(Self::FORMAT, "d1.mbr has no GPT"));
        }
        if dump.gpt && is_header(2 * sector) {
            // What `sgdisk --backup` writes: MBR, both headers, the entries.
            if head.len() < 3 * sector + 92 {
                return Err(ForeignError::damaged(Self::FORMAT, "d1.mbr is cut off"));
            }
            let entries = &head[3 * sector..];
            let place = |header: usize, field: usize| {
                le64(&head[header..], field).checked_mul(dump.sector_bytes)
            };
            let places = (place(sector, 72), place(2 * sector, 24), place(2 * sector, 72));
            let (Some(primary), Some(backup), Some(backup_entries)) = places else {
                return Err(ForeignError::damaged(
                    Self::FORMAT,
                    "the GPT in d1.mbr is beyond any disk",
                ));
            };
            check_gpt(&head[sector..], entries, dump, "d1.mbr", Self::FORMAT)?;
            parts.add_bytes(0, &head[..2 * sector]);
            parts.add_bytes(primary, entries);
            parts.add_bytes(backup_entries, entries);
            parts.add_bytes(backup, &head[2 * sector..3 * sector]);
            return Ok(len);
        }
        if dump.gpt {
            let (header, entries) = primary_gpt(&head, dump.sector_bytes);
            check_gpt(header, entries, dump, "d1.mbr", Self::FORMAT)?;
        } else {
            check_mbr(&head, dump, "d1.mbr", Self::FORMAT)?;
        }
        let room = usize::try_from(first).unwrap_or(usize::MAX);
        parts.add_bytes(0, &head[..head.len().min(room)]);
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
            files = vec![name];
        }
        if files.is_empty() {
            if let Some(uuid) = self.swap_uuid(partition.number)? {
                return parts.add_swap(partition, &uuid, "");
            }
            let reason = format!("partition {} was not saved", partition.number);
            return Err(ForeignError::refused(Self::FORMAT, reason));
        }
        let in_order = files.len() == 1
            || files.iter().enumerate().all(|(i, name)| name.ends_with(&format!(".{i:03}")));
        if !in_order {
            let fault = format!("pieces of {} are missing", files[0]);
            return Err(ForeignError::damaged(Self::FORMAT, fault));
        }
        parts.add_volume(partition, self.folder.source(&files, Self::FORMAT)?)
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

/// `1:500107862016`
fn len_by_size(text: &str) -> Option<u64> {
    text.lines().next()?.rsplit(':').next()?.trim().parse().ok().filter(|len| len % SECTOR == 0)
}
