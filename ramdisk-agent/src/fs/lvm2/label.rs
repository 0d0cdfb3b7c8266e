//! The label, the physical volume's header and its metadata areas (`lib/format_text/layout.h`).

use std::io::{Read, Seek};

use crate::fs::bytes::{self, le32, le64};
use crate::fs::failure::{Failure, doubt};
use crate::probe::lvm_crc;

pub const SECTOR: u64 = 512;
/// Where the label says that the header is, behind which are the lists of areas.
pub const HEADER_AT: usize = 20;
/// An identity and the device's size.
pub const LISTS_AT: usize = 40;
/// An offset and a size; a list ends with an offset of zero.
const LOCATION_LEN: usize = 16;
/// The header of a metadata area, behind which the text goes round and round.
pub const AREA_HEADER_LEN: u64 = 512;
pub const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
pub const AREA_VERSION: u32 = 1;
pub const TEXTS_AT: usize = 40;
const TEXT_LOCATION_LEN: usize = 24;
const TEXT_IGNORED: u32 = 1;
/// Thousands of logical volumes need some hundred KiB.
const MAX_TEXT_LEN: u64 = 16 << 20;

/// What the volume says of itself outside of the text.
#[derive(Debug)]
pub struct Header {
    /// Where the first extent begins.
    pub data_offset: u64,
    /// The volume group, the same in all metadata areas.
    pub text: Vec<u8>,
}

/// Reads the header behind a label whose checksum was found right.
pub fn read(src: &mut (impl Read + Seek), len_bytes: u64, label: u64) -> Result<Header, Failure> {
    let sector = bytes::read(src, label, SECTOR)?;
    let broken = || doubt("the header of the physical volume is broken");
    let header = usize::try_from(le32(&sector, HEADER_AT)).ok();
    let header = header.and_then(|at| sector.get(at..)).filter(|h| h.len() >= LISTS_AT);
    let Some(header) = header else { return Err(broken()) };
    let device_bytes = le64(header, LISTS_AT - 8);
    if device_bytes > len_bytes {
        return Err(doubt(format!(
            "it claims {device_bytes} bytes, more than the {len_bytes} bytes that hold it"
        )));
    }
    let mut rest = &header[LISTS_AT..];
    let data = list(&mut rest).ok_or_else(broken)?;
    let areas = list(&mut rest).ok_or_else(broken)?;
    let &[(data_offset, _)] = &data[..] else {
        return Err(doubt(format!("it has {} data areas", data.len())));
    };
    let mut text: Option<Vec<u8>> = None;
    for (start, len) in areas {
        if start.checked_add(len).is_none_or(|end| end > len_bytes) || len < 2 * AREA_HEADER_LEN {
            return Err(doubt("a metadata area lies outside of it"));
        }
        let Some(new) = read_area(src, start, len)? else { continue };
        if text.as_ref().is_some_and(|text| *text != new) {
            return Err(doubt("its metadata areas say different things"));
        }
        text = Some(new);
    }
    let text = text.ok_or_else(|| doubt("it is in no volume group that it knows of"))?;
    Ok(Header { data_offset, text })
}

/// A list of places; `None` if it has no end.
fn list(rest: &mut &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut list = Vec::new();
    loop {
        let (location, more) = rest.split_at_checked(LOCATION_LEN)?;
        *rest = more;
        match (le64(location, 0), le64(location, 8)) {
            (0, _) => return Some(list),
            place => list.push(place),
        }
    }
}

/// The text of a metadata area, if it is in use and has one.
fn read_area(
    src: &mut (impl Read + Seek),
    start: u64,
    len: u64,
) -> Result<Option<Vec<u8>>, Failure> {
    let header = bytes::read(src, start, AREA_HEADER_LEN)?;
    let sound = le32(&header, 0) == lvm_crc(&header[4..])
        && &header[4..20] == AREA_MAGIC
        && le32(&header, 20) == AREA_VERSION
        && le64(&header, 24) == start
        && le64(&header, 32) == len;
    if !sound {
        return Err(doubt(format!("the metadata area at byte {start} is broken")));
    }
    let location = &header[TEXTS_AT..];
    let (offset, text_len) = (le64(location, 0), le64(location, 8));
    let (sum, flags) = (le32(location, 16), le32(location, 20));
    if offset == 0 || flags & TEXT_IGNORED != 0 {
        return Ok(None);
    }
    if flags != 0 || le64(location, TEXT_LOCATION_LEN) != 0 {
        return Err(doubt("a change of its volume group was begun and not ended"));
    }
    let room = len - AREA_HEADER_LEN;
    if !(AREA_HEADER_LEN..len).contains(&offset) || text_len > room.min(MAX_TEXT_LEN) {
        return Err(doubt(format!("the text in the metadata area at byte {start} is not there")));
    }
    // What does not fit the area's end goes on behind its header.
    let first = text_len.min(len - offset);
    let mut text = bytes::read(src, start + offset, first)?;
    text.extend(bytes::read(src, start + AREA_HEADER_LEN, text_len - first)?);
    if lvm_crc(&text) != sum {
        return Err(doubt(format!(
            "the checksum of the text in the metadata area at byte {start} is wrong"
        )));
    }
    Ok(Some(text))
}
