//! Images that are a folder: of Clonezilla and of FOG. Both keep the partition table beside one image for each partition.

mod clonezilla;
mod fog;

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use image_format::ReadAt;

use self::clonezilla::Clonezilla;
use self::fog::Fog;
use super::assembled::{Assembled, Content, Segment, Start, in_order, swap_header};
use super::error::{ForeignError, Result};
use super::logical::{self, Saved};
use super::sfdisk::{Dump, DumpedPartition};
use super::source::Source;
use super::walk::{ReadWalk, Walk};
use super::{Access, ForeignDisk};
use crate::extents::Extents;

/// Texts and tables are a few KiB, an MBR with what FOG keeps behind it a MiB.
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

    /// What lies at `start`, in front of the first partition at `end`. Clonezilla keeps up to a GiB of that.
    fn add_gap(&mut self, name: &str, start: u64, end: u64, source: Source) {
        let (format, len) = (self.format, source.len().min(end.saturating_sub(start)));
        let gap = source.clone();
        let begin: Start = Arc::new(move || -> Result<Box<dyn Walk>> {
            Ok(Box::new(ReadWalk::new(gap.stream().take(len), format)))
        });
        let content = Content::Volume { name: name.to_owned(), start: begin, is_raw: true };
        self.segments.push(Segment { start, len, content });
        self.sources.push(source);
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
