//! FAT12, FAT16 and FAT32: which clusters are in use, by the file allocation table.
//!
//! Follows Microsoft's "FAT: General Overview of On-Disk Format" (version 1.03), with Linux's reading of it (`fs/fat/inode.c`)
//! where volumes in the field differ: FAT32 is told by its own size field, as small EFI system partitions have too few clusters
//! for the specification. Everything before the first cluster and behind the last one is kept. The map is checked: all copies
//! of the table must agree, FAT32's backup boot sector must have the same geometry, and a walk through all directories must find
//! every file in allocated clusters that it shares with no other. Any doubt means raw. The free count of FSInfo is only a hint
//! and is not used.

mod boot;
pub mod folder;
mod sectors;
mod table;
mod tree;

use std::io::{self, Read, Seek};

use super::{Clean, Taken, VolumeMap};
use crate::extents::{Extent, Extents};
use crate::fs::bytes::read_at;
use crate::probe::Found;
use boot::Boot;
pub use sectors::for_sectors;

/// Why a map cannot be believed.
type Doubt = String;

/// The map of a FAT filesystem, or `None` if it is not one.
pub fn map(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<VolumeMap>> {
    if len_bytes < boot::LEN as u64 {
        return Ok(None);
    }
    let mut sector = [0_u8; boot::LEN];
    read_at(src, 0, &mut sector)?;
    let Some(boot) = Boot::parse(&sector) else { return Ok(None) };
    let mut map = VolumeMap::raw(boot.kind, len_bytes, String::new());
    map.uuid = boot.uuid.clone();
    map.label = boot.label.clone();
    map.block_bytes = u32::try_from(boot.cluster_bytes()).unwrap_or(0);
    map.fs_bytes = boot.fs_bytes();
    map.clean = boot.clean();
    if let Err(doubt) = look(src, &boot, len_bytes, &mut map)? {
        map.used = Extents::single(0, len_bytes);
        map.used_bytes_claimed = len_bytes;
        map.taken = Taken::Raw { reason: doubt };
    }
    Ok(Some(map))
}

/// What the boot sector says it is, and where that is.
pub fn recognise(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
) -> io::Result<Option<(Found, Extent)>> {
    if len_bytes < boot::LEN as u64 {
        return Ok(None);
    }
    let mut sector = [0_u8; boot::LEN];
    read_at(src, 0, &mut sector)?;
    let at = Extent { start: 0, len: boot::LEN as u64 };
    let found = |boot: Boot| (Found { kind: boot.kind, uuid: boot.uuid, label: boot.label }, at);
    Ok(Boot::parse(&sector).map(found))
}

fn look(
    src: &mut (impl Read + Seek),
    boot: &Boot,
    len_bytes: u64,
    map: &mut VolumeMap,
) -> io::Result<Result<(), Doubt>> {
    if let Err(doubt) = boot.check(len_bytes) {
        return Ok(Err(doubt));
    }
    if let Some(at) = boot.backup_offset() {
        let mut sector = [0_u8; boot::LEN];
        read_at(src, at, &mut sector)?;
        if let Err(doubt) = boot.check_backup(&sector) {
            return Ok(Err(doubt));
        }
    }
    let table = match table::read(src, boot)? {
        Ok(table) => table,
        Err(doubt) => return Ok(Err(doubt)),
    };
    if map.clean == Clean::Clean {
        map.clean = table.clean.clone();
    }
    let label = match tree::walk(src, boot, &table)? {
        Ok(label) => label,
        Err(doubt) => return Ok(Err(doubt)),
    };
    if label.is_some() {
        map.label = label;
    }
    let mut used = Extents::single(0, boot.data_start());
    map.used_bytes_claimed = boot.data_start();
    for run in &table.runs {
        let len = u64::from(run.count) * boot.cluster_bytes();
        used.push_coarsely(boot.cluster_offset(run.first), len);
        map.used_bytes_claimed += len;
    }
    let end = boot.cluster_offset(boot.end_cluster());
    used.push(end, len_bytes - end);
    map.used = used;
    map.taken = Taken::Map;
    Ok(Ok(()))
}
