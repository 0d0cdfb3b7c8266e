//! A FAT for sectors of another size: the same clusters and tables in the same places, told by other boot sectors.
//!
//! Everything that a boot sector counts in sectors is counted anew, and FSInfo and the backup boot sector move to where the new counts
//! say. That works where tables, root directory and clusters begin at multiples of both sizes and no cluster is smaller than a sector; the
//! number of clusters, and with it the kind of FAT, stays. Boot code for a BIOS is not taken along: it reads sectors of 512 bytes. Fields as in
//! Microsoft's "FAT: General Overview of On-Disk Format" (version 1.03).

use std::io::{self, Read, Seek};

use super::boot::{self, Boot};
use crate::fs::FsKind;
use crate::fs::bytes::{le16, le32, read, read_at};
use crate::fs::sectors::Fits;

/// No boot loader keeps so much in front of the tables.
const MAX_RESERVED_BYTES: u64 = 1 << 20;
/// Where the fields end that all kinds have, and those of FAT32.
const FIELDS_END: usize = 62;
const FIELDS_END_32: usize = 90;
/// The places of FSInfo and of the backup that Microsoft's formatters use.
const FSINFO_SECTOR: u16 = 1;
const BACKUP_SECTOR: u16 = 6;

/// The reserved sectors of a FAT for sectors of `sector` bytes; or why it cannot be told so, and what to do, in a phrase.
pub fn for_sectors(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    sector: u32,
) -> io::Result<Result<Fits, String>> {
    let mut first = [0_u8; boot::LEN];
    read_at(src, 0, &mut first)?;
    let Some(boot) = Boot::parse(&first) else {
        return Ok(Err("its boot sector is not one of FAT".into()));
    };
    if let Err(doubt) = boot.check(len_bytes) {
        return Ok(Err(doubt));
    }
    let (old, new) = (boot.sector_bytes, u64::from(sector));
    if old == new {
        return Ok(Ok(Fits::AsItIs));
    }
    let fsinfo = match (boot.kind, le16(&first, 48)) {
        (FsKind::Fat32, at) if at != 0 && u64::from(at) < boot.reserved_sectors => {
            Some(read(src, u64::from(at) * old, 512)?)
        }
        _ => None,
    };
    Ok(rewritten(&boot, &first, fsinfo.as_deref(), new).map(Fits::WithHead))
}

fn rewritten(
    boot: &Boot,
    first: &[u8; boot::LEN],
    fsinfo: Option<&[u8]>,
    new: u64,
) -> Result<Vec<u8>, String> {
    let old = boot.sector_bytes;
    let anew = "make the template's with mkfs.fat -s 8, which works for both";
    if boot.cluster_bytes() < new {
        return Err(format!(
            "its clusters have {} bytes, and cannot be smaller than a sector; {anew}",
            boot.cluster_bytes()
        ));
    }
    let places = [boot.table_offset(0), boot.table_sectors * old, boot.fixed_root().1];
    if places.iter().any(|place| !place.is_multiple_of(new)) {
        return Err(format!("its tables do not lie on whole sectors of {new} bytes; {anew}"));
    }
    let counted = |bytes: u64| bytes / new;
    let uncountable = || "its numbers cannot be counted in such sectors".to_owned();
    let byte = |n: u64| u8::try_from(n).ok().filter(|n| n.is_power_of_two());
    let short = |n: u64| u16::try_from(n).map_err(|_| uncountable());
    let long = |n: u64| u32::try_from(n).map_err(|_| uncountable());
    let is_32 = boot.kind == FsKind::Fat32;
    let reserved = short(counted(boot.table_offset(0)))?;

    let mut sector = [0_u8; boot::LEN];
    let end = if is_32 { FIELDS_END_32 } else { FIELDS_END };
    sector[..end].copy_from_slice(&first[..end]);
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    let mut put = |at: usize, bytes: &[u8]| sector[at..at + bytes.len()].copy_from_slice(bytes);
    put(11, &short(new)?.to_le_bytes());
    put(13, &[byte(counted(boot.cluster_bytes())).ok_or_else(uncountable)?]);
    put(14, &reserved.to_le_bytes());
    let total = counted(boot.fs_bytes());
    let is_short = !is_32 && total <= u64::from(u16::MAX);
    put(19, &(if is_short { short(total)? } else { 0 }).to_le_bytes());
    put(32, &(if is_short { 0 } else { long(total)? }).to_le_bytes());
    // What lies in front of the partition, counted by whoever formatted it.
    put(28, &long(counted(u64::from(le32(first, 28)) * old))?.to_le_bytes());
    let table = counted(boot.table_sectors * old);
    if !is_32 {
        put(22, &short(table)?.to_le_bytes());
    }
    let mut copies = vec![0_u16];
    if is_32 {
        put(36, &long(table)?.to_le_bytes());
        let backup = [BACKUP_SECTOR, reserved.saturating_sub(2)]
            .into_iter()
            .find(|at| *at > FSINFO_SECTOR && at + 1 < reserved);
        let info = fsinfo.filter(|_| reserved > FSINFO_SECTOR).map_or(0, |_| FSINFO_SECTOR);
        put(48, &info.to_le_bytes());
        put(50, &backup.unwrap_or(0).to_le_bytes());
        copies.extend(backup);
    }
    let len = boot.table_offset(0);
    if len > MAX_RESERVED_BYTES {
        return Err(format!("it has {len} bytes in front of its tables; {anew}"));
    }
    let mut head = vec![0; usize::try_from(len).map_err(|_| uncountable())?];
    let at = |n: u16| usize::try_from(u64::from(n) * new).map_err(|_| uncountable());
    for copy in copies {
        let (here, behind) = (at(copy)?, at(copy + 1)?);
        head[here..here + boot::LEN].copy_from_slice(&sector);
        if let Some(info) = fsinfo.filter(|_| is_32 && copy + 1 < reserved) {
            head[behind..behind + info.len()].copy_from_slice(info);
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::process::Command;

    use super::*;
    use crate::fs::{Taken, map_volume};

    /// What mkfs.fat makes, with these options.
    fn made(len: u64, options: &[&str]) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut mkfs = Command::new("env");
        mkfs.args([&format!("PATH={path}"), "mkfs.fat", "-n", "LABEL"]).args(options);
        let output = mkfs.arg(file.path()).output().unwrap();
        assert!(output.status.success(), "mkfs.fat (package dosfstools): {output:?}");
        std::fs::read(file.path()).unwrap()
    }

    fn to(disk: &[u8], sector: u32) -> Result<Fits, String> {
        for_sectors(&mut Cursor::new(disk), disk.len() as u64, sector).unwrap()
    }

    fn changed(disk: &[u8], sector: u32) -> Vec<u8> {
        let Ok(Fits::WithHead(head)) = to(disk, sector) else { panic!("{:?}", to(disk, sector)) };
        let mut changed = disk.to_vec();
        changed[..head.len()].copy_from_slice(&head);
        changed
    }

    /// Everything of the boot sector but its code, the places of FSInfo and the backup, and a last sector that is in no cluster.
    fn fields(disk: &[u8]) -> Vec<u8> {
        [&disk[3..19], &disk[21..32], &disk[36..48], &disk[52..62]].concat()
    }

    #[test]
    fn there_and_back_it_is_the_same() {
        for (mib, options) in [
            (40, &["-s", "8"][..]),
            (270, &["-F", "32", "-s", "8"]),
            (70, &["-F", "16", "-s", "16"]),
        ] {
            let old = made(mib << 20, options);
            let new = changed(&old, 4096);
            let [a, b] = [&old, &new]
                .map(|disk| map_volume(&mut Cursor::new(disk), disk.len() as u64).unwrap());
            assert_eq!((&b.taken, b.kind), (&Taken::Map, a.kind));
            assert_eq!(
                (b.uuid, b.label, b.used_bytes_claimed),
                (a.uuid, a.label, a.used_bytes_claimed)
            );
            assert_eq!(a.used, b.used);
            assert_eq!(to(&new, 4096), Ok(Fits::AsItIs));
            let back = changed(&new, 512);
            assert_eq!(fields(&back), fields(&old));
            let [a, b] = [&old, &back].map(|disk| {
                let boot = Boot::parse(disk.first_chunk().unwrap()).unwrap();
                (boot.end_cluster(), boot.data_start())
            });
            assert_eq!(a, b);
        }
    }

    #[test]
    fn what_cannot_be_told_so_is_refused() {
        let small = to(&made(40 << 20, &["-F", "32", "-s", "1"]), 4096).unwrap_err();
        assert!(small.contains("clusters have 512 bytes"), "{small}");
        let odd = to(&made(40 << 20, &["-a", "-s", "8"]), 4096).unwrap_err();
        assert!(odd.contains("do not lie on whole sectors"), "{odd}");
        assert!(to(&vec![0; 1 << 20], 4096).is_err());
        // Clusters of 128 sectors are the largest there are.
        assert!(to(&made(270 << 20, &["-S", "4096", "-s", "32"]), 512).is_err());
    }
}
