//! Whether Windows shut the volume down: its version and flags, its log, the file in which it hibernates.

use std::io::{Read, Seek};

use super::record::{Attribute, DATA, FILE_NAME, Place, VOLUME_INFORMATION, referenced};
use super::table::{Stream, Table};
use crate::fs::Clean;
use crate::fs::bytes::{le16, le32, le64};
use crate::fs::failure::{Failure, doubt};

const LOG_RECORD: u64 = 2;
const VOLUME_RECORD: u64 = 3;
const ROOT_RECORD: u64 = 5;
const VERSIONS: [[u8; 2]; 3] = [[1, 2], [3, 0], [3, 1]];
const DIRTY: u16 = 0x0001;
const CHKDSK_UNDERWAY: u16 = 0x4000;
/// The log begins with two restart pages of at least this size.
const LOG_PAGE: u64 = 4096;
const LOG_CLEAN: u16 = 0x0002;
/// No client in a list of the log.
const NO_CLIENT: u16 = 0xFFFF;
const HIBERNATION_FILE: &str = "hiberfil.sys";

/// By the volume's flags and the log.
pub fn of_volume(src: &mut (impl Read + Seek), table: &Table) -> Result<Clean, Failure> {
    let record = table.record(src, VOLUME_RECORD)?;
    let attributes = record.attributes()?;
    let information = attributes.iter().find_map(|attribute| match attribute.place {
        Place::Here(bytes) if attribute.kind == VOLUME_INFORMATION => bytes.get(..12),
        _ => None,
    });
    let Some(information) = information else {
        return Err(doubt("$Volume does not tell its version"));
    };
    let version = [information[8], information[9]];
    if !VERSIONS.contains(&version) {
        let [major, minor] = version;
        return Err(doubt(format!("it is of version {major}.{minor}, which is not known here")));
    }
    let log = table.stream(src, LOG_RECORD, DATA)?;
    let flags = le16(information, 10);
    let reason = if flags & DIRTY != 0 {
        "its dirty flag is set; it needs chkdsk"
    } else if flags & CHKDSK_UNDERWAY != 0 {
        "chkdsk did not finish"
    } else if is_log_closed(src, &log)? {
        return Ok(Clean::Clean);
    } else {
        "$LogFile was not closed"
    };
    Ok(Clean::NotClean { reason: reason.into() })
}

/// An empty log has nothing but ones in it; otherwise the later of the two restart pages tells.
fn is_log_closed(src: &mut (impl Read + Seek), log: &Stream) -> Result<bool, Failure> {
    if log.initialized_bytes < 2 * LOG_PAGE {
        return Ok(false);
    }
    let first = log.read(src, 0, LOG_PAGE)?;
    if first.iter().all(|byte| *byte == 0xFF) || first.starts_with(b"CHKD") {
        return Ok(true);
    }
    let page_bytes = u64::from(le32(&first, 16));
    let second_at = if page_bytes.is_power_of_two() { page_bytes.max(LOG_PAGE) } else { LOG_PAGE };
    let mut pages = vec![first];
    if second_at + LOG_PAGE <= log.initialized_bytes {
        pages.push(log.read(src, second_at, LOG_PAGE)?);
    }
    let areas = pages.iter().filter_map(|page| restart_area(page));
    Ok(areas.max_by_key(|(sequence, _)| *sequence).is_some_and(|(_, closed)| closed))
}

/// Its place in the log's sequence, and whether it says that the log is closed.
fn restart_area(page: &[u8]) -> Option<(u64, bool)> {
    if !page.starts_with(b"RSTR") {
        return None;
    }
    // Pages are longer than what is read of them: the area lies in the first sector, before its mark.
    let at = usize::from(le16(page, 24));
    let area = page.get(..510)?.get(at..at + 16)?;
    let closed = le16(area, 12) == NO_CLIENT || le16(area, 14) & LOG_CLEAN != 0;
    Some((le64(area, 0), closed))
}

/// Whether an attribute is the name of the file in the root folder in which Windows hibernates.
pub fn is_hibernation_file(attribute: &Attribute<'_>) -> bool {
    let Place::Here(bytes) = attribute.place else { return false };
    if attribute.kind != FILE_NAME || bytes.len() < 66 {
        return false;
    }
    let name = bytes[66..].chunks_exact(2).take(usize::from(bytes[64]));
    let expected = HIBERNATION_FILE.encode_utf16();
    referenced(le64(bytes, 0)) == ROOT_RECORD
        && usize::from(bytes[64]) == HIBERNATION_FILE.len()
        && name.zip(expected).all(|(unit, expected)| {
            let unit = le16(unit, 0);
            u8::try_from(unit).map_or(unit, |byte| byte.to_ascii_lowercase().into()) == expected
        })
}

/// By what the file begins with.
pub fn of_hibernation_file(
    src: &mut (impl Read + Seek),
    table: &Table,
    record: u64,
) -> Result<Clean, Failure> {
    let file = table.stream(src, record, DATA)?;
    if file.initialized_bytes < 4 {
        return Ok(Clean::Clean);
    }
    let mark = file.read(src, 0, 4)?;
    if mark.eq_ignore_ascii_case(b"hibr") {
        let reason = "Windows is hibernated in it, as a shutdown with fast startup leaves it; shut down with `shutdown /s /t 0`";
        return Ok(Clean::NotClean { reason: reason.into() });
    }
    Ok(Clean::Clean)
}
