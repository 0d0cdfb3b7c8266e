//! One partition of a disk, opened as if it were a disk of its own.
//!
//! The whole disk is what is open and claimed: nobody can mount another partition of it meanwhile, and neither the kernel's partition
//! nodes nor a kernel that knows the table are needed. Nothing outside the partition can be reached by what this gives: every access is
//! counted from its first byte and ends at its last.

use std::os::unix::fs::MetadataExt as _;

use serde::Serialize;

use super::inventory::{is_partition, sysfs_dir};
use super::{Disk, Window};
use crate::error::{Error, IoContext, Result};
use crate::table::{self, Partition, Table, TableOutcome};

/// Of what an open disk is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PartOf {
    /// The partition's number.
    pub number: u32,
    /// Where it starts on the disk, in bytes.
    pub start_bytes: u64,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// Size of the whole disk in bytes.
    pub disk_bytes: u64,
}

impl Disk {
    /// This partition of the disk. Reads the disk's table; writes nothing.
    ///
    /// # Errors
    /// If there is no such partition, or a table that must not be acted on.
    pub fn into_partition(self, number: u32) -> Result<Self> {
        let path = self.path.display();
        let refused = |why: String| Error::refused(format!("{path} {why}; nothing was written"));
        self.forget_cache();
        let table = match self.table()? {
            TableOutcome::Table(table) => table,
            TableOutcome::Refused(refusal) => {
                let text = format!(
                    "the partition table of {path} cannot be relied on; nothing was written"
                );
                return Err(Error::refused(text).because(refusal));
            }
        };
        let Some(partition) = table.partitions.iter().find(|p| p.number == number) else {
            return Err(refused(format!("has no partition {number}: {}", list_of(&table))));
        };
        let Partition { start_bytes, len_bytes, .. } = *partition;
        let part_of = PartOf { number, start_bytes, len_bytes, disk_bytes: self.len };
        Ok(Self { origin: start_bytes, len: len_bytes, part_of: Some(part_of), ..self })
    }

    /// The partition table that is on it now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn table(&self) -> Result<TableOutcome> {
        let mut whole: Window<'_> = self.window(0, self.len);
        table::read_table(&mut whole, self.len, self.logical_sector_bytes)
            .on_disk(|| format!("reading the partition table of {}", self.path.display()))
    }

    /// What it is called in messages: its path, or which partition of it.
    #[must_use]
    pub fn name(&self) -> String {
        match self.part_of {
            Some(part) => format!("partition {} of {}", part.number, self.path.display()),
            None => self.path.display().to_string(),
        }
    }

    /// Of what it is a part; `None`: it was opened whole.
    #[must_use]
    pub fn part_of(&self) -> Option<PartOf> {
        self.part_of
    }

    /// Whether it is the node of a partition.
    #[must_use]
    pub fn is_partition(&self) -> bool {
        let dir = self.file.metadata().ok().and_then(|meta| sysfs_dir(meta.rdev()));
        dir.is_some_and(|dir| is_partition(&dir))
    }

    /// Where its first byte is in [`Disk::file`].
    #[must_use]
    pub fn origin(&self) -> u64 {
        self.origin
    }
}

/// The partitions of a table, for a message.
#[must_use]
pub fn list_of(table: &Table) -> String {
    let numbers: Vec<String> = table.partitions.iter().map(|p| p.number.to_string()).collect();
    match numbers.as_slice() {
        [] => "there is no partition table with partitions".into(),
        [only] => format!("there is only partition {only}"),
        _ => format!("there are the partitions {}", numbers.join(", ")),
    }
}
