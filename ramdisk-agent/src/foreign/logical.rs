//! The tables of logical partitions in folders of Clonezilla and FOG.
//!
//! Both keep the partitions as sfdisk lists them, and of the tables that lead to logical ones the first sector of the extended partition,
//! which is the first table: `sda2-ebr`, `d1p2.ebr`. Their own restore lets sfdisk make new tables of the list and takes the boot code of
//! that sector; so does this. FOG's `.ebr` of a logical partition is the partition's own first sector, which is in its image, too.

use super::error::{ForeignError, Result};
use super::sfdisk::Dump;
use crate::table::{self, FreshLogical, MBR_LEN, Slot, TablePiece};

/// The first table as it was saved, with the file's name.
#[derive(Debug)]
pub struct Saved {
    /// The file.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The tables that lead to the logical partitions of a disk; an empty one where an extended partition has none.
pub fn tables(dump: &Dump, saved: Option<Saved>, format: &'static str) -> Result<Vec<TablePiece>> {
    let logical = dump.logical();
    let damaged = |fault: String| ForeignError::damaged(format, fault);
    let Some(extended) = &dump.extended else {
        return match logical.first() {
            None => Ok(Vec::new()),
            Some(first) => Err(damaged(format!(
                "its list of partitions has a logical one, {}, and no extended one: where its table was nobody can tell",
                first.name
            ))),
        };
    };
    let is_numbered = logical.iter().zip(5..).all(|(p, number)| p.number == number);
    if !is_numbered {
        let names: Vec<&str> = logical.iter().map(|p| p.name.as_str()).collect();
        return Err(damaged(format!(
            "its list of partitions lacks a logical one: it has {}, and systems count from 5",
            names.join(", ")
        )));
    }
    let saved = saved.map(|saved| checked(saved, format)).transpose()?;
    let fresh: Vec<FreshLogical> = logical
        .iter()
        .map(|p| FreshLogical {
            slot: Slot { number: p.number, start_bytes: p.start, len_bytes: p.len },
            kind: p.kind,
            bootable: p.bootable,
        })
        .collect();
    let sector_bytes = u32::try_from(dump.sector_bytes).expect("512 or 4096");
    table::logical_pieces(&(extended.start..extended.end()), &fresh, saved.as_ref(), sector_bytes)
        .map_err(|e| damaged(format!("the tables of its logical partitions cannot be made: {e}")))
}

fn checked(saved: Saved, format: &'static str) -> Result<[u8; MBR_LEN]> {
    let Saved { name, bytes } = saved;
    let fault = match <[u8; MBR_LEN]>::try_from(bytes) {
        Ok(table) if table.ends_with(&[0x55, 0xAA]) => return Ok(table),
        Ok(_) => format!("{name} is no table of logical partitions: it does not end in 55 AA"),
        Err(bytes) => format!("{name} has {} bytes in place of {MBR_LEN}", bytes.len()),
    };
    Err(ForeignError::damaged(format, fault))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "label: dos\n/dev/sda1 : start=2048, size=100, type=83\n\
                        /dev/sda2 : start=4096, size=9000, type=5\n\
                        /dev/sda5 : start=6144, size=1000, type=83\n";

    fn refused(list: &str, saved: Option<&[u8]>, words: &str) {
        let dump = Dump::parse(list, "x").unwrap();
        let saved = saved.map(|bytes| Saved { name: "sda2-ebr".into(), bytes: bytes.to_vec() });
        let error = tables(&dump, saved, "x").unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let dump = Dump::parse(LIST, "x").unwrap();
        assert_eq!(tables(&dump, None, "x").unwrap()[0].offset, 4096 * 512);
        refused(LIST, Some(&[0; 511]), "sda2-ebr has 511 bytes");
        refused(LIST, Some(&[0; 512]), "sda2-ebr is no table");
        refused(&LIST.replace("sda5", "sda6"), None, "it has sda6");
        refused(&LIST.replace("type=5", "type=83"), None, "a logical one, sda5, and no extended");
        refused(&LIST.replace("6144", "4096"), None, "5 does not lie in");
        let none = Dump::parse("label: gpt\n/dev/sda5 : start=1, size=2, type=X\n", "x").unwrap();
        assert_eq!(tables(&none, None, "x").unwrap(), []);
    }
}
