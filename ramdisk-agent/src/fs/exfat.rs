//! exFAT: which clusters are in use, by the allocation bitmap.
//!
//! Follows Microsoft's "exFAT file system specification" (sections 3 to 7). The map is checked: the checksums of the main and the
//! backup boot region and the geometry in both (3), the checksum of the up-case table (7.2) and of every set of directory entries
//! (6.3.3), and a walk through all directories, which must find every allocation, by FAT chain (4.1) or contiguous (6.3.4.2), in
//! clusters that the bitmap (7.1) marks as used and that no other has. Clusters that are marked and belong to nobody are kept, and
//! so is everything before the first cluster and behind the last. `PercentInUse` is only a hint and is not used. Any doubt means
//! raw; so does TexFAT, with its two tables and bitmaps of which transactions make one or the other the right one.

mod allocation;
mod boot;
mod directory;

use std::io::{self, Read, Seek};

use super::failure::{Believed, Failure, doubt, map_or_raw};
use crate::extents::Extents;
use crate::fs::bytes::read;
use crate::fs::{Clean, VolumeMap};
use crate::probe::Found;
use allocation::{Allocation, Claims, Fat};
use boot::Boot;
use directory::Root;

/// Allocation bitmap and directories are read in pieces of this size.
const READ_LEN: u64 = 64 << 10;

/// The map of a volume whose first sector says that it is an exFAT.
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
    *clean = boot.clean();
    let mut fat = Fat::new(&boot);
    let chain = fat.root(src).map_err(|failure| failure.of("the root directory"))?;
    let root = Root::read(src, &boot, &chain)?;
    let bitmap = fat
        .chain(src, root.bitmap.0, root.bitmap.1)
        .map_err(|failure| failure.of("the allocation bitmap"))?;
    let (marked, marked_bytes) = bitmap_of(src, &boot, &bitmap)?;
    let mut claims = Claims::new(&boot, &marked, marked_bytes);
    claims.add(&bitmap).map_err(|failure| failure.of("the allocation bitmap"))?;
    directory::walk(src, &boot, &mut fat, &mut claims, &root, chain)?;
    claims.settle()?;
    // What lies before the first cluster and behind the last is kept.
    let used_bytes_claimed = boot.heap_offset + marked_bytes;
    let mut used = marked;
    used.insert(0, boot.heap_offset);
    let end = boot.heap_end();
    used.push(end, len_bytes - end);
    Ok(Believed {
        block_bytes: boot.cluster_bytes,
        fs_bytes: boot.volume_bytes,
        used,
        used_bytes_claimed,
    })
}

/// Clusters that are marked as used, in bytes of the volume, and how many bytes they are: where they are in very many pieces, what
/// is kept is more.
fn bitmap_of(
    src: &mut (impl Read + Seek),
    boot: &Boot,
    bitmap: &Allocation,
) -> Result<(Extents, u64), Failure> {
    let mut marked = Extents::new();
    let mut marked_bytes = 0;
    let mut first = 0;
    for extent in bitmap.pieces(boot, READ_LEN) {
        let bytes = read(src, extent.start, extent.len)?;
        marked_bytes += add_set(&bytes, first, boot, &mut marked);
        first += extent.len * 8;
    }
    Ok((marked, marked_bytes))
}

/// Adds the clusters whose bits are set, least significant first; `first` counts clusters from the heap's start. Gives how many
/// bytes they are.
fn add_set(bytes: &[u8], first: u64, boot: &Boot, marked: &mut Extents) -> u64 {
    let clusters = u64::from(boot.clusters);
    let mut marked_bytes = 0;
    let mut add = |cluster: u64, count: u64| {
        let count = count.min(clusters.saturating_sub(cluster));
        marked_bytes += count * boot.cluster_bytes;
        marked.push_coarsely(
            boot.heap_offset + cluster * boot.cluster_bytes,
            count * boot.cluster_bytes,
        );
    };
    for (cluster, byte) in (first..clusters).step_by(8).zip(bytes) {
        match byte {
            0x00 => {}
            0xFF => add(cluster, 8),
            byte => (0..8).filter(|bit| byte >> bit & 1 == 1).for_each(|bit| add(cluster + bit, 1)),
        }
    }
    marked_bytes
}

/// The 32-bit sum of boot regions and up-case tables: rotated right by one, then the byte is added (figures 1 and 3).
fn sum32(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, byte| sum.rotate_right(1).wrapping_add(u32::from(*byte)))
}

/// The 16-bit sum of a set of directory entries (figure 2).
fn sum16(sum: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(sum, |sum, byte| sum.rotate_right(1).wrapping_add(u16::from(*byte)))
}

/// A doubt about something that has a name.
trait Of {
    fn of(self, what: &str) -> Self;
}

impl Of for Failure {
    fn of(self, what: &str) -> Self {
        match self {
            Self::Doubt(reason) => doubt(format!("{what}: {reason}")),
            Self::Read(_) => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extents::MAX_PIECES;

    #[test]
    fn bits_become_clusters_up_to_the_last() {
        let boot = Boot::of_clusters(21);
        let mut marked = Extents::new();
        add_set(&[0xFF, 0b1000_0001], 0, &boot, &mut marked);
        add_set(&[0b1111_0011, 0xFF], 16, &boot, &mut marked);
        let runs: Vec<_> = marked
            .iter()
            .map(|e| {
                ((e.start - boot.heap_offset) / boot.cluster_bytes, e.len / boot.cluster_bytes)
            })
            .collect();
        assert_eq!(runs, [(0, 9), (15, 3), (20, 1)]);
    }

    #[test]
    fn a_bitmap_of_too_many_pieces_is_kept_in_larger_ones() {
        let bytes = MAX_PIECES as u64 / 4 + READ_LEN;
        let boot = Boot::of_clusters(u32::try_from(bytes * 8).unwrap());
        let bitmap = Allocation::contiguous(&boot, 2, bytes).unwrap();
        let look = |byte: u8| {
            let disk = vec![byte; usize::try_from(boot.heap_offset + bytes).unwrap()];
            bitmap_of(&mut io::Cursor::new(disk), &boot, &bitmap).unwrap()
        };
        assert_eq!(look(0xFF).0.len(), 1);
        let (kept, marked) = look(0x55);
        assert_eq!(marked, bytes * 4 * boot.cluster_bytes);
        assert!(kept.len() <= MAX_PIECES && kept.total_bytes() >= marked);
        for cluster in (0..bytes * 8).step_by(2) {
            let at = boot.heap_offset + cluster * boot.cluster_bytes;
            assert!(kept.contains_range(at, boot.cluster_bytes), "{cluster}");
        }
    }

    #[test]
    fn sums_are_those_of_the_specification() {
        // By hand: each byte is added after a rotation.
        assert_eq!(sum32(0, &[1, 0]), 0x8000_0000);
        assert_eq!(sum32(0, &[1, 2, 3]), 0x4000_0004);
        assert_eq!(sum16(0, &[1, 2, 3]), 0x4004);
    }
}
