//! NTFS: which clusters are in use, by `$Bitmap`.
//!
//! Follows what is publicly documented: Microsoft's descriptions of the boot sector and the master file table, the Linux-NTFS
//! project's documentation, and the kernel's `fs/ntfs3/ntfs.h` for offsets; versions 1.2, 3.0 and 3.1. NTFS has no checksums but
//! the mark at the end of each sector of a record, so the bitmap is checked against all files: every run of clusters of every
//! record in use, also of records that only continue others, must be marked as used, and all together must not be more than is
//! marked. A cleared bit is thus noticed unless the file that it belongs to vanished as well. Clusters that are marked and belong
//! to nobody are kept. `$MFTMirr` must repeat the first records. The copy of the boot sector lies behind the last cluster, and is
//! kept as everything there; it is not compared, since not everybody keeps it up to date.
//!
//! Not clean: a volume with its dirty flag set, with a log that was not closed, or of a hibernated Windows, which a shutdown with
//! fast startup leaves. The log is not replayed here. A bitmap that is continued in other records than its own is followed.

mod boot;
mod record;
mod runs;
mod state;
mod table;

use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, doubt, map_or_raw};
use crate::extents::Extents;
use crate::fs::{Clean, VolumeMap};
use crate::probe::Found;
use boot::Boot;
use record::{DATA, Place};
use table::Table;

const BITMAP_RECORD: u64 = 6;
/// The bitmap is read in pieces of this size.
const BITMAP_READ_LEN: u64 = 1 << 20;

/// The map of a volume whose first sector says that it is an NTFS.
pub fn map(src: &mut (impl Read + Seek), len_bytes: u64, found: Found) -> io::Result<VolumeMap> {
    map_or_raw(found, len_bytes, |clean| used(src, len_bytes, clean))
}

/// See [`map_or_raw`].
fn used(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    clean: &mut Clean,
) -> Result<Believed, Failure> {
    let boot = Boot::read(src, len_bytes)?;
    let table = Table::open(src, &boot)?;
    table.compare_mirror(src)?;
    *clean = state::of_volume(src, &table)?;
    let (mut used, marked) = bitmap(src, &table)?;
    let mut owned = 0_u64;
    let mut hibernation = None;
    table.walk(src, |record| {
        for attribute in record.attributes()? {
            if let Place::Runs { runs, .. } = &attribute.place {
                owned = owned.saturating_add(check_runs(runs, record.number, &boot, &used)?);
            }
            if state::is_hibernation_file(&attribute) {
                hibernation = Some(record.base());
            }
        }
        Ok(())
    })?;
    if owned > marked {
        return Err(doubt(format!(
            "its files have {owned} bytes of clusters, more than the {marked} that are marked as used"
        )));
    }
    if let (Clean::Clean, Some(number)) = (&*clean, hibernation) {
        *clean = state::of_hibernation_file(src, &table, number)?;
    }
    // What lies behind the last cluster, with the copy of the boot sector, is kept.
    let fs_bytes = boot.clusters * boot.cluster_bytes;
    used.push(fs_bytes, len_bytes - fs_bytes);
    Ok(Believed { block_bytes: boot.cluster_bytes, fs_bytes, used, used_bytes_claimed: marked })
}

/// Clusters that are marked as used, in bytes of the volume, and how many bytes they are: where they are in very many pieces, what
/// is kept is more.
fn bitmap(src: &mut (impl Read + Seek), table: &Table) -> Result<(Extents, u64), Failure> {
    let boot = table.boot();
    let stream = table.stream(src, BITMAP_RECORD, DATA)?;
    let need = boot.clusters.div_ceil(8);
    if stream.initialized_bytes < need {
        return Err(doubt(format!(
            "$Bitmap has {} bytes, {} clusters need {need}",
            stream.initialized_bytes, boot.clusters
        )));
    }
    let mut used = Extents::new();
    let mut marked = 0;
    let mut at = 0;
    while at < need {
        let len = BITMAP_READ_LEN.min(need - at);
        let bytes = stream.read(src, at, len)?;
        marked += add_set(&bytes, at * 8, boot, &mut used);
        at += len;
    }
    Ok((used, marked))
}

/// Adds the clusters whose bits are set, least significant first, from cluster `first` on; gives how many bytes they are.
fn add_set(bytes: &[u8], first: u64, boot: &Boot, used: &mut Extents) -> u64 {
    let mut marked = 0;
    let mut add = |cluster: u64, count: u64| {
        let count = count.min(boot.clusters.saturating_sub(cluster));
        marked += count * boot.cluster_bytes;
        used.push_coarsely(cluster * boot.cluster_bytes, count * boot.cluster_bytes);
    };
    for (cluster, byte) in (first..).step_by(8).zip(bytes) {
        match byte {
            0x00 => {}
            0xFF => add(cluster, 8),
            byte => (0..8).filter(|bit| byte >> bit & 1 == 1).for_each(|bit| add(cluster + bit, 1)),
        }
    }
    marked
}

/// Whether a record's clusters are marked as used; gives how many bytes they are.
fn check_runs(runs: &runs::Runs, record: u64, boot: &Boot, used: &Extents) -> Result<u64, Failure> {
    let mut owned = 0_u64;
    for run in &runs.list {
        let Some(cluster) = run.cluster else { continue };
        if cluster.checked_add(run.count).is_none_or(|end| end > boot.clusters) {
            return Err(doubt(format!(
                "file record {record} has {} clusters at {cluster}, beyond the last",
                run.count
            )));
        }
        let len = run.count * boot.cluster_bytes;
        if !used.contains_range(cluster * boot.cluster_bytes, len) {
            return Err(doubt(format!(
                "clusters of file record {record} at {cluster} are marked as free"
            )));
        }
        owned = owned.saturating_add(len);
    }
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_clusters_up_to_the_last() {
        let boot = Boot {
            cluster_bytes: 4096,
            clusters: 21,
            table_cluster: 0,
            mirror_cluster: 0,
            record_bytes: 1024,
        };
        let mut used = Extents::new();
        let marked = add_set(&[0xFF, 0b1000_0001], 0, &boot, &mut used)
            + add_set(&[0b1111_0011], 16, &boot, &mut used);
        assert_eq!(marked, used.total_bytes());
        let runs: Vec<_> = used.iter().map(|e| (e.start / 4096, e.len / 4096)).collect();
        assert_eq!(runs, [(0, 9), (15, 3), (20, 1)]);
    }
}
