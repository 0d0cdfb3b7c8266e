//! The headers of an allocation group: a copy of the superblock, free space (AGF), inodes (AGI), reserve list (AGFL), a sector each.

use std::io::{Read, Seek};

use super::superblock::{Superblock, is_sound};
use crate::fs::bytes::{be32, read};
use crate::fs::failure::{Failure, doubt};

/// AGF and AGI have had one version.
const VERSION: u32 = 1;

/// What a group's headers say, once they agree with each other and with the superblock.
#[derive(Debug)]
pub struct Group {
    pub number: u64,
    /// Where it begins, in bytes.
    pub start: u64,
    pub blocks: u64,
    /// Root block and height of the trees of free space: by place, by length.
    pub roots: [(u32, u32); 2],
    pub free_blocks: u64,
    /// The most free blocks in a row.
    pub longest: u64,
    /// Blocks that the trees have beyond their roots.
    pub tree_blocks: u64,
    /// Blocks kept for the trees' growth.
    pub reserve: Vec<u32>,
}

/// One of the headers.
struct Header<'a> {
    name: &'static str,
    bytes: &'a [u8],
    magic: [u8; 4],
    /// Where the group's number is.
    number_at: usize,
    identity_at: usize,
    crc_at: usize,
}

impl Group {
    pub fn read(
        src: &mut (impl Read + Seek),
        sb: &Superblock,
        number: u64,
    ) -> Result<Self, Failure> {
        let start = number * sb.group_blocks * sb.block_bytes;
        let bytes = read(src, start, sb.header_bytes())?;
        let sector = usize::try_from(sb.sector_bytes).expect("at most 32 KiB");
        let [copy, agf, agi, agfl] = [0, 1, 2, 3].map(|i| &bytes[i * sector..(i + 1) * sector]);
        if !sb.is_copy(copy) {
            return Err(doubt(format!(
                "the superblock's copy in group {number} tells of another geometry"
            )));
        }
        let blocks = sb.blocks_in(number);
        let headers = [
            Header {
                name: "AGF",
                bytes: agf,
                magic: *b"XAGF",
                number_at: 8,
                identity_at: 64,
                crc_at: 216,
            },
            Header {
                name: "AGI",
                bytes: agi,
                magic: *b"XAGI",
                number_at: 8,
                identity_at: 296,
                crc_at: 312,
            },
        ];
        for header in headers {
            header.check(sb, number)?;
            let name = header.name;
            if be32(header.bytes, 4) != VERSION || u64::from(be32(header.bytes, 12)) != blocks {
                return Err(doubt(format!(
                    "the {name} of group {number} has another version or length"
                )));
            }
        }
        Ok(Self {
            number,
            start,
            blocks,
            roots: [(be32(agf, 16), be32(agf, 28)), (be32(agf, 20), be32(agf, 32))],
            free_blocks: u64::from(be32(agf, 52)),
            longest: u64::from(be32(agf, 56)),
            tree_blocks: u64::from(be32(agf, 60)),
            reserve: reserve(sb, number, agf, agfl)?,
        })
    }
}

impl Header<'_> {
    /// Magic number, and in version 5 checksum, identity and group; version 4 has no more than the numbers of AGF and AGI.
    fn check(&self, sb: &Superblock, group: u64) -> Result<(), Failure> {
        let name = self.name;
        if !self.bytes.starts_with(&self.magic) {
            return Err(doubt(format!("group {group} has no {name}")));
        }
        if let Some(identity) = sb.identity {
            if !is_sound(self.bytes, self.crc_at) {
                return Err(doubt(format!("the checksum of the {name} of group {group} is wrong")));
            }
            if self.bytes[self.identity_at..self.identity_at + 16] != identity {
                return Err(doubt(format!("the {name} of group {group} is another filesystem's")));
            }
        }
        if u64::from(be32(self.bytes, self.number_at)) != group {
            return Err(doubt(format!("the {name} of group {group} is another group's")));
        }
        Ok(())
    }
}

/// The blocks in the reserve list, a ring of which the AGF tells first, last and count.
fn reserve(sb: &Superblock, group: u64, agf: &[u8], agfl: &[u8]) -> Result<Vec<u32>, Failure> {
    let list = if sb.identity.is_some() {
        let header = Header {
            name: "AGFL",
            bytes: agfl,
            magic: *b"XAFL",
            number_at: 4,
            identity_at: 8,
            crc_at: 32,
        };
        header.check(sb, group)?;
        &agfl[36..]
    } else {
        agfl
    };
    let size = list.len() / 4;
    let index = |at: usize| usize::try_from(be32(agf, at)).unwrap_or(usize::MAX);
    let (first, last, count) = (index(40), index(44), index(48));
    if first >= size || last >= size || count > size || (first + count + size - 1) % size != last {
        return Err(doubt(format!(
            "the reserve list of group {group} has {count} blocks from {first} to {last}"
        )));
    }
    let blocks: Vec<u32> = (0..count).map(|i| be32(list, (first + i) % size * 4)).collect();
    let allowed = sb.header_blocks()..sb.blocks_in(group);
    if let Some(wrong) = blocks.iter().find(|block| !allowed.contains(&u64::from(**block))) {
        return Err(doubt(format!("the reserve list of group {group} holds block {wrong}")));
    }
    Ok(blocks)
}
