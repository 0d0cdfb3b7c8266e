//! Images that are a folder: of Clonezilla and of FOG. Both keep the partition table beside one image for each partition.

mod clonezilla;
mod fog;
mod lvm;

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;

use image_format::ReadAt;

use self::clonezilla::Clonezilla;
use self::fog::Fog;
use super::assembled::{Assembled, Content, Segment, in_order, swap_header};
use super::error::{ForeignError, Result};
use super::logical::{self, Saved};
use super::sfdisk::{Dump, DumpedPartition};
use super::source::Source;
use super::volume::{Start, Volume};
use super::walk::{ReadWalk, Walk};
use super::{Access, ForeignDisk};
use crate::extents::{Extent, Extents};

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

/// Where on the disk the bytes of a volume lie, piece by piece.
struct Place<'a> {
    /// The volume's name for errors.
    name: &'a str,
    /// What it lies in, for errors.
    within: &'static str,
    pieces: Vec<Extent>,
}

impl<'a> Place<'a> {
    fn of(partition: &'a DumpedPartition) -> Self {
        let DumpedPartition { name, start, len, .. } = partition;
        Self { name, within: "partition", pieces: vec![Extent { start: *start, len: *len }] }
    }

    /// No more than the disk has.
    fn len(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}

/// The pieces of a disk as they are found.
struct Parts {
    format: &'static str,
    segments: Vec<Segment>,
    sources: Vec<Source>,
    mapped: Vec<Extent>,
    /// How many volumes do not say themselves what is in use.
    volumes_without_map: usize,
    /// The most memory that a volume's decoder takes.
    window_bytes: u64,
    /// The files whose volumes have their place.
    taken: BTreeSet<String>,
}

impl Parts {
    fn new(format: &'static str) -> Self {
        let (segments, sources, mapped) = (Vec::new(), Vec::new(), Vec::new());
        let taken = BTreeSet::new();
        let (volumes_without_map, window_bytes) = (0, 0);
        Self { format, segments, sources, mapped, volumes_without_map, window_bytes, taken }
    }

    fn damaged<T>(&self, fault: impl Into<String>) -> Result<T> {
        Err(ForeignError::damaged(self.format, fault))
    }

    fn add_bytes(&mut self, start: u64, bytes: &[u8]) {
        let content = Content::Bytes(bytes.into());
        self.segments.push(Segment { start, len: bytes.len() as u64, content });
    }

    fn add_zeros(&mut self, start: u64, end: u64) {
        let len = end.saturating_sub(start);
        self.segments.push(Segment { start, len, content: Content::Zero });
    }

    /// What lies at `start`, in front of the first partition at `end`. Clonezilla keeps up to a GiB of that.
    fn add_gap(&mut self, name: &str, start: u64, end: u64, source: Source) {
        let (format, len) = (self.format, source.len().min(end.saturating_sub(start)));
        let gap = source.clone();
        let begin: Start = Arc::new(move || -> Result<Box<dyn Walk>> {
            Ok(Box::new(ReadWalk::new(gap.stream().take(len), format)))
        });
        let volume = Volume {
            name: name.to_owned(),
            within: "place",
            len,
            start: begin,
            is_raw: true,
            window_bytes: 0,
        };
        let content = Content::Volume { volume: Arc::new(volume), from: 0 };
        self.segments.push(Segment { start, len, content });
        self.sources.push(source);
    }

    fn add_logical_tables(&mut self, dump: &Dump, saved: Option<Saved>) -> Result<()> {
        for table in logical::tables(dump, saved, self.format)? {
            self.add_bytes(table.offset, &table.bytes);
        }
        Ok(())
    }

    /// Takes files for one volume: none is another's as well.
    fn take(&mut self, name: &str, files: &[String]) -> Result<()> {
        match files.iter().find(|file| !self.taken.insert((*file).clone())) {
            None => Ok(()),
            Some(file) => {
                self.damaged(format!("{file} is of {name} and of another volume, by its name"))
            }
        }
    }

    /// The volume in these files, at its place.
    fn add_volume(&mut self, place: &Place<'_>, source: Source) -> Result<()> {
        let Place { name, within, pieces } = place;
        let len = place.len();
        let disk = super::volume_of(source.clone())
            .map_err(|e| ForeignError::damaged(self.format, format!("the image of {name}: {e}")))?;
        if disk.declared_len.is_some_and(|volume| volume > len) {
            return self.damaged(format!("the image of {name} is longer than its {within}"));
        }
        if disk.mapped.is_empty() {
            self.volumes_without_map += 1;
        } else {
            self.mapped.extend(pieces);
        }
        let (is_raw, window_bytes) = (disk.declared_len.is_none(), disk.window_bytes);
        self.window_bytes = self.window_bytes.max(window_bytes);
        let start: Start = Arc::new(move || disk.walk());
        let name = (*name).to_owned();
        let volume = Arc::new(Volume { name, within, len, start, is_raw, window_bytes });
        let mut from = 0;
        for Extent { start, len } in pieces {
            let content = Content::Volume { volume: Arc::clone(&volume), from };
            self.segments.push(Segment { start: *start, len: *len, content });
            from += len;
        }
        self.sources.push(source);
        Ok(())
    }

    fn add_swap(&mut self, place: &Place<'_>, uuid: &str, label: &str) -> Result<()> {
        let (name, len) = (place.name, place.len());
        let Ok(uuid) = uuid::Uuid::parse_str(uuid) else {
            return self.damaged(format!("the swap of {name} has no UUID"));
        };
        let header = swap_header(len, *uuid.as_bytes(), label);
        let mut rest = &header[..];
        if rest.len() as u64 > len {
            return self.damaged(format!("{name} is too small for swap"));
        }
        for piece in &place.pieces {
            let here = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at(here);
            self.add_bytes(piece.start, now);
            rest = later;
        }
        self.mapped.extend(&place.pieces);
        Ok(())
    }

    fn finish(self, disk_len: u64, sector_bytes: u64) -> Result<ForeignDisk> {
        let Self { format, segments, sources, mut mapped, window_bytes, .. } = self;
        let segments: Arc<[Segment]> = in_order(segments, disk_len, format)?.into();
        mapped.sort_unstable_by_key(|extent| extent.start);
        let mut known = Extents::new();
        mapped.iter().for_each(|extent| known.push(extent.start, extent.len));
        let start = move || -> Result<Box<dyn Walk>> {
            Ok(Box::new(Assembled::new(Arc::clone(&segments), disk_len, format)))
        };
        Ok(ForeignDisk {
            format: format!("{format} image"),
            declared_len: Some(disk_len),
            sector_bytes: u32::try_from(sector_bytes).ok(),
            sources,
            mapped: known,
            window_bytes,
            access: Access::Stream(Arc::new(start)),
        })
    }
}

/// Where the last partition ends, and a little more.
fn len_by_partitions(dump: &Dump) -> u64 {
    let end = dump.end();
    end.checked_next_multiple_of(MIB).unwrap_or(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_of_one_volume() {
        let mut parts = Parts::new("x");
        let files = ["a-b-c.ext4-ptcl-img.gz.aa".to_owned()];
        parts.take("a-b/c", &files).unwrap();
        let error = parts.take("a/b-c", &files).unwrap_err().to_string();
        assert!(error.contains("a-b-c.ext4-ptcl-img.gz.aa is of a/b-c and of another"), "{error}");
    }
}
