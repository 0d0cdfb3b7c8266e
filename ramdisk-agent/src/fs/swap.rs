//! Linux swap: the header page is kept, the rest is free.
//!
//! Follows the kernel's `union swap_header` (`include/linux/swap.h`) and `read_swap_header` (`mm/swapfile.c`); hibernation marks
//! are those of `kernel/power/swap.c`, uswsusp and TuxOnIce. The signature stands in the last ten bytes of the first page, so the
//! page size of the machine that made it tells itself. A header that the kernel would not accept, and a hibernated system, whose
//! memory lies in these pages, are taken raw. Swap files and the old version 0 format are not mapped.

use std::io::{self, Read, Seek, SeekFrom};

use super::{Clean, FsKind, Taken, VolumeMap};
use crate::extents::{Extent, Extents};
use crate::fs::bytes::le32;

/// The page sizes of Linux, smallest first: `mkswap` clears the places of smaller pages, but not of larger ones.
const PAGE_LENS: [usize; 5] = [4096, 8192, 16384, 32768, 65536];
/// The largest header.
pub const HEAD_LEN: u64 = 65536;
/// `mkswap` makes none of fewer than ten pages.
const MIN_LAST_PAGE: u32 = 9;
const SIGNATURE_LEN: usize = 10;
/// The header's fields, behind the boot block.
const VERSION: usize = 1024;
const LAST_PAGE: usize = 1028;
const BAD_PAGE_COUNT: usize = 1032;
const UUID: usize = 1036;
const LABEL: usize = 1052;
const LABEL_LEN: usize = 16;
const BAD_PAGES: usize = 1536;

/// What software writes over the signature when it suspends to disk.
const HIBERNATION_MARKS: [&[u8]; 6] = [
    b"S1SUSPEND\0",
    b"S2SUSPEND\0",
    b"ULSUSPEND\0",
    b"LINHIB0001",
    // TuxOnIce
    b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c",
    b"HIBERFILE\0",
];

enum Signature {
    Version1,
    Version0,
    Hibernated,
}

/// The map of a swap volume, or `None` if it is not one.
pub fn map(src: &mut (impl Read + Seek), len_bytes: u64) -> io::Result<Option<VolumeMap>> {
    let longest = PAGE_LENS[PAGE_LENS.len() - 1];
    let want = usize::try_from(len_bytes).unwrap_or(longest).min(longest);
    let mut head = vec![0; want];
    src.seek(SeekFrom::Start(0))?;
    src.read_exact(&mut head)?;
    let Some((page, signature)) = PAGE_LENS
        .into_iter()
        .filter_map(|len| head.get(..len))
        .find_map(|page| signature(&page[page.len() - SIGNATURE_LEN..]).map(|s| (page, s)))
    else {
        return Ok(None);
    };
    let page_bytes = page.len() as u64;
    let raw = |reason: String| VolumeMap::raw(FsKind::Swap, len_bytes, reason);
    let mut map = match (&signature, header(page, len_bytes)) {
        (Signature::Version0, _) => raw("swap of version 0 has no header to go by".into()),
        (Signature::Hibernated, _) => raw("a hibernated system's memory is in it".into()),
        (Signature::Version1, Err(doubt)) => raw(doubt),
        (Signature::Version1, Ok(swap_bytes)) => {
            let mut used = Extents::single(0, page_bytes);
            // What lies behind the last page is not swap's own.
            used.push(swap_bytes, len_bytes - swap_bytes);
            VolumeMap {
                kind: FsKind::Swap,
                uuid: None,
                label: None,
                block_bytes: 0,
                fs_bytes: swap_bytes,
                used,
                used_bytes_claimed: page_bytes,
                taken: Taken::Map,
                clean: Clean::Clean,
                note: None,
                logical_volumes: Vec::new(),
            }
        }
    };
    map.block_bytes = u32::try_from(page_bytes).expect("a page has at most 64 KiB");
    if matches!(signature, Signature::Hibernated) {
        map.clean = Clean::NotClean { reason: "a system is hibernated in it".into() };
    }
    if !matches!(signature, Signature::Version0) {
        map.uuid = uuid(page);
        map.label = label(page);
    }
    Ok(Some(map))
}

/// The header of a swap area that fills `len_bytes`, made from that of another: same page size, byte order, UUID and label, and no
/// bad pages. `head` is that other's begin, [`HEAD_LEN`] bytes where it is so long. `None` if it has no header to go by, or if
/// swap cannot be so short or so long.
pub fn header_for(head: &[u8], len_bytes: u64) -> Option<Vec<u8>> {
    let mut page = PAGE_LENS
        .into_iter()
        .filter_map(|len| head.get(..len))
        .find(|page| page.ends_with(b"SWAPSPACE2"))?
        .to_vec();
    let pages = u32::try_from(len_bytes / page.len() as u64).ok()?;
    let last_page = pages.checked_sub(1).filter(|last| *last >= MIN_LAST_PAGE)?;
    let last_page = match le32(&page, VERSION) {
        1 => last_page.to_le_bytes(),
        0x0100_0000 => last_page.to_be_bytes(),
        _ => return None,
    };
    page[LAST_PAGE..LAST_PAGE + 4].copy_from_slice(&last_page);
    page[BAD_PAGE_COUNT..BAD_PAGE_COUNT + 4].fill(0);
    let signature = page.len() - SIGNATURE_LEN;
    page[BAD_PAGES..signature].fill(0);
    Some(page)
}

/// Where the signature of a mapped swap volume is.
pub fn signature_place(map: &VolumeMap) -> Extent {
    let len = SIGNATURE_LEN as u64;
    Extent { start: u64::from(map.block_bytes).saturating_sub(len), len }
}

fn signature(bytes: &[u8]) -> Option<Signature> {
    match bytes {
        b"SWAPSPACE2" => Some(Signature::Version1),
        b"SWAP-SPACE" => Some(Signature::Version0),
        _ if HIBERNATION_MARKS.iter().any(|mark| bytes.starts_with(mark)) => {
            Some(Signature::Hibernated)
        }
        _ => None,
    }
}

/// How many bytes the swap space covers, or why the header cannot be believed.
fn header(page: &[u8], len_bytes: u64) -> Result<u64, String> {
    // The header has the byte order of the machine that made it.
    let field: fn(&[u8], usize) -> u32 = match le32(page, VERSION) {
        1 => le32,
        0x0100_0000 => |page, at| le32(page, at).swap_bytes(),
        version => return Err(format!("swap header has version {version}, not 1")),
    };
    let page_bytes = page.len() as u64;
    let last_page = field(page, LAST_PAGE);
    let swap_bytes = (u64::from(last_page) + 1) * page_bytes;
    if last_page == 0 || swap_bytes > len_bytes {
        return Err(format!("swap header claims {swap_bytes} bytes of a volume of {len_bytes}"));
    }
    let bad_pages = field(page, BAD_PAGE_COUNT);
    let room = (page.len() - SIGNATURE_LEN - BAD_PAGES) / 4;
    let bad_pages = usize::try_from(bad_pages).unwrap_or(usize::MAX);
    if bad_pages > room {
        return Err(format!("swap header lists {bad_pages} bad pages, it has room for {room}"));
    }
    for i in 0..bad_pages {
        let bad = field(page, BAD_PAGES + 4 * i);
        if bad == 0 || bad > last_page {
            return Err(format!("swap header lists page {bad} as bad, its last is {last_page}"));
        }
    }
    Ok(swap_bytes)
}

fn uuid(page: &[u8]) -> Option<String> {
    let bytes: [u8; 16] = page[UUID..UUID + 16].try_into().expect("sixteen bytes");
    (bytes != [0; 16]).then(|| uuid::Uuid::from_bytes(bytes).to_string())
}

fn label(page: &[u8]) -> Option<String> {
    let bytes = &page[LABEL..LABEL + LABEL_LEN];
    let len = bytes.iter().position(|b| *b == 0).unwrap_or(LABEL_LEN);
    (len > 0).then(|| String::from_utf8_lossy(&bytes[..len]).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    const PAGES: u32 = 40;

    /// As mkswap writes it, in either byte order.
    fn swap(page_len: usize, order: fn(u32) -> [u8; 4]) -> Vec<u8> {
        let mut disk = vec![0_u8; page_len * PAGES as usize];
        disk[VERSION..VERSION + 4].copy_from_slice(&order(1));
        disk[LAST_PAGE..LAST_PAGE + 4].copy_from_slice(&order(PAGES - 1));
        disk[UUID..UUID + 16].copy_from_slice(&[0x5a; 16]);
        disk[LABEL..LABEL + 4].copy_from_slice(b"swap");
        disk[page_len - SIGNATURE_LEN..page_len].copy_from_slice(b"SWAPSPACE2");
        disk
    }

    fn look(disk: &[u8]) -> Option<VolumeMap> {
        map(&mut Cursor::new(disk), disk.len() as u64).unwrap()
    }

    fn raw_reason(map: &VolumeMap) -> &str {
        match &map.taken {
            Taken::Raw { reason } => reason,
            Taken::Map => panic!("it was not taken raw"),
        }
    }

    #[test]
    fn keeps_the_header_page_at_every_page_size_and_byte_order() {
        for page_len in PAGE_LENS {
            for order in [u32::to_le_bytes, u32::to_be_bytes] {
                let map = look(&swap(page_len, order)).unwrap();
                assert_eq!(map.taken, Taken::Map);
                assert_eq!(map.used, Extents::single(0, page_len as u64));
                assert_eq!(map.fs_bytes, page_len as u64 * u64::from(PAGES));
                assert_eq!(map.uuid.as_deref(), Some("5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a"));
                assert_eq!(map.label.as_deref(), Some("swap"));
                assert_eq!(map.clean, Clean::Clean);
            }
        }
    }

    #[test]
    fn keeps_what_lies_behind_it() {
        let mut disk = swap(4096, u32::to_le_bytes);
        disk.resize(disk.len() + 1000, 7);
        let map = look(&disk).unwrap();
        assert!(map.used.contains_range(4096 * u64::from(PAGES), 1000));
        assert_eq!(map.used.total_bytes(), 4096 + 1000);
    }

    #[test]
    fn a_hibernated_system_is_kept_whole_and_not_clean() {
        for mark in HIBERNATION_MARKS {
            let mut disk = swap(4096, u32::to_le_bytes);
            disk[4096 - SIGNATURE_LEN..][..mark.len()].copy_from_slice(mark);
            let map = look(&disk).unwrap();
            assert!(raw_reason(&map).contains("hibernated"));
            assert_eq!(map.used.total_bytes(), disk.len() as u64);
            assert!(matches!(map.clean, Clean::NotClean { .. }));
        }
    }

    #[test]
    fn headers_that_the_kernel_would_refuse_are_taken_raw() {
        let cases: [(usize, u32, &str); 4] = [
            (VERSION, 2, "version 2"),
            (LAST_PAGE, PAGES, "bytes of a volume"),
            (LAST_PAGE, 0, "bytes of a volume"),
            (BAD_PAGE_COUNT, 700, "room for 637"),
        ];
        for (at, value, reason) in cases {
            let mut disk = swap(4096, u32::to_le_bytes);
            disk[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let map = look(&disk).unwrap();
            assert!(raw_reason(&map).contains(reason), "{}", raw_reason(&map));
        }
        let mut old = swap(4096, u32::to_le_bytes);
        old[4086..4096].copy_from_slice(b"SWAP-SPACE");
        assert!(raw_reason(&look(&old).unwrap()).contains("version 0"));
    }

    #[test]
    fn other_and_short_volumes_are_not_swap() {
        assert_eq!(look(&vec![0; 1 << 20]), None);
        for len in [0, 1, 4085, 4095] {
            assert_eq!(look(&swap(4096, u32::to_le_bytes)[..len]), None);
        }
    }

    proptest! {
        #[test]
        fn any_header_gives_a_map_within_the_volume(header in prop::collection::vec(any::<u8>(), 3062), extra in 0..9000_usize) {
            let mut disk = swap(4096, u32::to_le_bytes);
            disk[1024..4086].copy_from_slice(&header);
            disk.truncate(4096 + extra);
            let map = look(&disk).unwrap();
            prop_assert!(map.used.contains_range(0, 4096));
            prop_assert!(map.used.iter().all(|e| e.end() <= disk.len() as u64));
        }
    }
}
