//! VMware's VMDK, after "Virtual Disk Format 5.0": sparse files, and descriptors with flat, sparse and zero extents.
//!
//! A single file is `monolithicSparse` or `streamOptimized`. A descriptor lists the files that lie beside it: `monolithicFlat`,
//! `vmfs`, `twoGbMaxExtentFlat`, `twoGbMaxExtentSparse`. Refused are images that need a parent, and the copy-on-write kinds of ESX.

mod descriptor;
mod sparse;

use std::sync::Arc;

use image_format::ReadAt;

use super::error::{ForeignError, Result};
use super::source::Source;
use super::walk::{RandomDisk, Stretch};

pub use descriptor::{Descriptor, Extent, ExtentKind};
pub use sparse::Sparse;

pub(super) const FORMAT: &str = "VMDK";
/// A descriptor is a page of text.
const MAX_DESCRIPTOR_LEN: u64 = 64 << 10;
/// Files of one disk: 2 GiB each make 8 TiB.
const MAX_EXTENTS: usize = 4096;

/// Opens a file that lies beside the image.
pub type Beside<'a> = dyn Fn(&str) -> Result<Source> + 'a;

/// What a file that may be a VMDK begins as.
#[must_use]
pub fn is_sparse(head: &[u8]) -> bool {
    head.starts_with(b"KDMV")
}

/// As [`is_sparse`], for a descriptor.
#[must_use]
pub fn is_descriptor(head: &[u8]) -> bool {
    head.starts_with(b"# Disk DescriptorFile")
}

/// Opens a sparse file with the descriptor in it.
pub fn open_sparse(source: Source) -> Result<Sparse> {
    let sparse = Sparse::open(source)?;
    if let Some(text) = sparse.descriptor()? {
        let descriptor = Descriptor::parse(&text)?;
        if descriptor.extents.len() != 1 {
            let reason = "it lists other files: open the descriptor, not one of them";
            return Err(ForeignError::refused(FORMAT, reason));
        }
    }
    Ok(sparse)
}

/// A disk of several extents.
pub struct Extents {
    /// Each with its place on the disk.
    parts: Vec<(u64, Part)>,
    len: u64,
}

enum Part {
    /// A file, from a place in it on.
    Flat(Source, u64),
    Sparse(Arc<Sparse>),
    Zero,
}

impl std::fmt::Debug for Extents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extents").field("parts", &self.parts.len()).finish_non_exhaustive()
    }
}

/// Opens a descriptor and the files that it lists; these come back as well.
pub fn open_descriptor(source: &Source, beside: &Beside<'_>) -> Result<(Extents, Vec<Source>)> {
    if source.len() > MAX_DESCRIPTOR_LEN {
        return Err(ForeignError::damaged(FORMAT, "its descriptor is longer than a page of text"));
    }
    let mut text = vec![0; usize::try_from(source.len()).expect("64 KiB")];
    source.read_exact_at(&mut text, 0).map_err(ForeignError::read(FORMAT))?;
    let descriptor = Descriptor::parse(&text)?;
    if descriptor.extents.is_empty() || descriptor.extents.len() > MAX_EXTENTS {
        let fault = format!("it lists {} extents", descriptor.extents.len());
        return Err(ForeignError::damaged(FORMAT, fault));
    }
    let (mut disk, mut files) = (Extents { parts: Vec::new(), len: 0 }, vec![source.clone()]);
    for extent in descriptor.extents {
        let short = |has: u64| {
            let (name, len) = (&extent.file, extent.len);
            let fault = format!("{name} has {has} bytes and must have {len}: it is truncated");
            ForeignError::damaged(FORMAT, fault)
        };
        let part = match extent.kind {
            ExtentKind::Zero => Part::Zero,
            ExtentKind::Flat => {
                let file = beside(&extent.file)?;
                let has = file.len().saturating_sub(extent.offset);
                if has < extent.len {
                    return Err(short(has));
                }
                files.push(file.clone());
                Part::Flat(file, extent.offset)
            }
            ExtentKind::Sparse => {
                let file = beside(&extent.file)?;
                files.push(file.clone());
                let sparse = Sparse::open(file)?;
                if sparse.len() < extent.len {
                    return Err(short(sparse.len()));
                }
                Part::Sparse(Arc::new(sparse))
            }
        };
        disk.parts.push((disk.len, part));
        disk.len = disk
            .len
            .checked_add(extent.len)
            .ok_or_else(|| ForeignError::damaged(FORMAT, "its extents are longer than any disk"))?;
    }
    Ok((disk, files))
}

impl Extents {
    /// The part that holds a byte, that byte's place in it, and how many bytes follow there.
    fn part(&self, offset: u64) -> (&Part, u64, u64) {
        let index = self.parts.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let (start, part) = &self.parts[index];
        let end = self.parts.get(index + 1).map_or(self.len, |(next, _)| *next);
        (part, offset - start, end - offset)
    }
}

impl RandomDisk for Extents {
    fn len(&self) -> u64 {
        self.len
    }

    fn stretch(&self, offset: u64) -> Result<(Stretch, u64)> {
        let (part, within, left) = self.part(offset);
        Ok(match part {
            Part::Flat(..) => (Stretch::Data, left),
            Part::Zero => (Stretch::Zero, left),
            Part::Sparse(sparse) => {
                let (kind, len) = sparse.stretch(within)?;
                (kind, len.min(left))
            }
        })
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let (part, within, left) = self.part(at);
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match part {
                Part::Flat(file, start) => {
                    file.read_exact_at(now, start + within).map_err(ForeignError::read(FORMAT))?;
                }
                Part::Zero => now.fill(0),
                Part::Sparse(sparse) => sparse.read(within, now)?,
            }
            at += len as u64;
            rest = later;
        }
        Ok(())
    }
}
