//! What Clonezilla's `savedisk` leaves, after its own scripts (`ocs-functions`).

use super::super::error::{ForeignError, Result};
use super::super::saved_table::{check_gpt, check_mbr, len_by_gpt, primary_gpt};
use super::super::sfdisk::Dump;
use super::super::source::Source;
use super::lvm::Groups;
use super::{Folder, ForeignDisk, Parts, Place, SECTOR, len_by_partitions};

/// How the names of compressed images end, in front of the piece's letters if there are several.
const COMPRESSIONS: [&str; 11] =
    ["gz", "bz2", "lzo", "lzma", "xz", "lzip", "lz", "lrz", "lz4", "zst", "uncomp"];

/// An image of Clonezilla.
pub(super) struct Clonezilla<'a> {
    pub folder: &'a Folder<'a>,
}

impl Clonezilla<'_> {
    pub const FORMAT: &'static str = "Clonezilla";

    /// Puts the disk together.
    pub fn open(&self) -> Result<ForeignDisk> {
        let refused = |reason: &str| Err(ForeignError::refused(Self::FORMAT, reason));
        let names = &self.folder.names;
        if names.contains("ecryptfs.info") {
            return refused("it is encrypted: restore it with Clonezilla and capture that disk");
        }
        if !names.contains("disk") {
            return refused("single partitions were saved: restore each by its own file");
        }
        let disks = self.folder.text("disk", Self::FORMAT)?;
        let mut disks = disks.split_ascii_whitespace();
        let (Some(disk), None) = (disks.next(), disks.next()) else {
            return refused("several disks, or none, were saved: one is read");
        };
        if names.iter().any(|name| name.starts_with("luks")) {
            return refused("LUKS in it: restore it with Clonezilla and capture that disk");
        }
        let mut parts = Parts::new(Self::FORMAT);
        let list = self.list_of_groups()?;
        let (dump, disk_len) = match self.whole_disk(disk, &list)? {
            Some(whole) => whole,
            None => self.add_table(&mut parts, disk)?,
        };
        let groups = Groups::parse(&list, disk, &dump)?;
        self.add_groups(&mut parts, &groups, &dump)?;
        for partition in dump.partitions.iter().filter(|partition| !groups.are_on(partition)) {
            self.add_saved(&mut parts, &partition.name, &Place::of(partition))?;
        }
        // Last, as the partitions in a slice of BSD, which is refused by its name, are in no list.
        self.check_list(&dump)?;
        parts.finish(disk_len, dump.sector_bytes)
    }

    /// The partitions and the disk's length, behind the tables.
    fn add_table(&self, parts: &mut Parts, disk: &str) -> Result<(Dump, u64)> {
        let text = self.folder.text(&format!("{disk}-pt.sf"), Self::FORMAT)?;
        let dump = Dump::parse(&text, Self::FORMAT)?;
        let disk_len = self.add_tables(parts, disk, &dump)?;
        let ebr = dump.extended.as_ref().map(|extended| format!("{}-ebr", extended.name));
        parts.add_logical_tables(&dump, self.folder.saved_table(ebr, Self::FORMAT)?)?;
        Ok((dump, disk_len))
    }

    /// Refuses a list that lacks a partition which was saved: what `parts` names.
    fn check_list(&self, dump: &Dump) -> Result<()> {
        if !self.folder.names.contains("parts") {
            return Ok(());
        }
        let saved = self.folder.text("parts", Self::FORMAT)?;
        let lacks = |name: &&str| dump.partitions.iter().all(|p| p.name != **name);
        match saved.split_ascii_whitespace().find(lacks) {
            None => Ok(()),
            Some(name) => Err(ForeignError::damaged(
                Self::FORMAT,
                format!(
                    "{} was saved, and the list of partitions has none of that name: one of them was changed",
                    name.escape_debug()
                ),
            )),
        }
    }

    /// The tables and what was kept behind the MBR; the disk's length.
    fn add_tables(&self, parts: &mut Parts, disk: &str, dump: &Dump) -> Result<u64> {
        let first = dump.first();
        let optional = |suffix: &str| {
            let name = format!("{disk}-{suffix}");
            let there = self.folder.names.contains(&name);
            there.then(|| self.folder.bytes(&name, Self::FORMAT)).transpose()
        };
        let cut = |bytes: &[u8], room: u64| {
            bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))].to_vec()
        };
        let by_parted = match optional("pt.parted")? {
            Some(text) => len_by_parted(&String::from_utf8_lossy(&text), dump.sector_bytes),
            None => None,
        };
        if dump.gpt {
            let Some(head) = optional("gpt-1st")? else {
                let fault = format!("{disk}-gpt-1st is missing");
                return Err(ForeignError::damaged(Self::FORMAT, fault));
            };
            let len = by_parted.or_else(|| len_by_gpt(&head, dump.sector_bytes));
            let len = len.unwrap_or_else(|| len_by_partitions(dump));
            let (header, entries) = primary_gpt(&head, dump.sector_bytes);
            check_gpt(header, entries, dump, &format!("{disk}-gpt-1st"), Self::FORMAT)?;
            parts.add_bytes(0, &cut(&head, first));
            if let Some(tail) = optional("gpt-2nd")? {
                let start = len.saturating_sub(tail.len() as u64);
                let end = dump.end();
                // What of it reaches into the last partition is that partition's.
                let skip = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
                parts.add_bytes(start + skip as u64, tail.get(skip..).unwrap_or_default());
            }
            return Ok(len);
        }
        let Some(mbr) = optional("mbr")? else {
            return Err(ForeignError::damaged(Self::FORMAT, format!("{disk}-mbr is missing")));
        };
        check_mbr(&mbr, dump, &format!("{disk}-mbr"), Self::FORMAT)?;
        parts.add_bytes(0, &cut(&mbr, SECTOR));
        let hidden = format!("{disk}-hidden-data-after-mbr");
        if self.folder.names.contains(&hidden) {
            let source = self.folder.source(std::slice::from_ref(&hidden), Self::FORMAT)?;
            check_hidden(&source, &hidden, dump)?;
            parts.add_gap(&hidden, SECTOR, first, source);
        }
        Ok(by_parted.unwrap_or_else(|| len_by_partitions(dump)))
    }

    /// The volume whose files begin with this name, at its place.
    pub fn add_saved(&self, parts: &mut Parts, stem: &str, place: &Place<'_>) -> Result<()> {
        let name = place.name;
        let swap = format!("swappt-{stem}.info");
        if self.folder.names.contains(&swap) {
            let text = self.folder.text(&swap, Self::FORMAT)?;
            let value = |key: &str| {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(key));
                line.unwrap_or_default().trim().trim_matches('"').to_owned()
            };
            parts.take(name, &[swap])?;
            return parts.add_swap(place, &value("UUID="), &value("LABEL="));
        }
        let note = format!("{stem}.dd-img.info");
        let is_slice = |text: &str| text.contains("BSD_slice");
        if self.folder.names.contains(&note) && is_slice(&self.folder.text(&note, Self::FORMAT)?) {
            let reason = format!(
                "{name} is a slice of BSD, of which only the label was saved, beside its partitions; restore it with Clonezilla and \
                 capture that disk"
            );
            return Err(ForeignError::refused(Self::FORMAT, reason));
        }
        let prefix = format!("{stem}.");
        let own = self.folder.names.range(prefix.clone()..).take_while(|n| n.starts_with(&prefix));
        let files: Vec<String> = own
            .filter(|n| {
                // Names of logical volumes may have dots: what follows is another one's, then.
                let next = n[prefix.len()..].split('.').next().unwrap_or_default();
                next == "dd-img" || next.ends_with("-ptcl-img")
            })
            .filter(|n| !n.ends_with(".info"))
            .cloned()
            .collect();
        if files.is_empty() {
            let reason = format!(
                "no image of {name} that is read: it was not saved, or by partimage or ntfsclone; restore it with Clonezilla \
                 and capture that disk"
            );
            return Err(ForeignError::refused(Self::FORMAT, reason));
        }
        check_pieces(&files, Self::FORMAT)?;
        parts.take(name, &files)?;
        let source = self.folder.source(&files, Self::FORMAT)?;
        parts.add_volume(place, source)
    }
}

/// Refuses what was kept behind the MBR if it is cut off: Clonezilla keeps everything up to the first partition, or nothing. It counts
/// in sectors of 512 bytes whatever the disk's are, so that of a disk with others there is less.
fn check_hidden(source: &Source, name: &str, dump: &Dump) -> Result<()> {
    let whole = dump.first().saturating_sub(SECTOR);
    if source.len() >= whole || dump.sector_bytes != SECTOR {
        return Ok(());
    }
    let fault = format!(
        "{name} has {} of the {whole} bytes between the MBR and the first partition: it is cut off",
        source.len()
    );
    Err(ForeignError::damaged(Clonezilla::FORMAT, fault))
}

/// The pieces that `split` makes are named in order, with two letters or, of images for servers of WebDAV, S3 and Swift, three: one that
/// is missing in between shows.
fn check_pieces(files: &[String], format: &'static str) -> Result<()> {
    let sound = match files {
        [one] => {
            let words: Vec<&str> = words_behind(one).collect();
            match words[..] {
                [] => true,
                [compression] if COMPRESSIONS.contains(&compression) => true,
                [.., piece] => number_of(piece) == Some(0),
            }
        }
        several => several.iter().enumerate().all(|(i, name)| {
            words_behind(name).last().is_some_and(|piece| number_of(piece) == Some(i))
        }),
    };
    if sound {
        return Ok(());
    }
    Err(ForeignError::damaged(format, format!("pieces of {} are missing", files[0])))
}

/// `zst` and `ab` of `sda1.ext4-ptcl-img.zst.ab`.
fn words_behind(name: &str) -> impl Iterator<Item = &str> {
    name.rsplit_once("-img").map_or("", |(_, behind)| behind).split('.').skip(1)
}

/// The number of a piece by its letters: `aa` and `aaa` are 0.
fn number_of(letters: &str) -> Option<usize> {
    let is_one =
        (2..=6).contains(&letters.len()) && letters.bytes().all(|b| b.is_ascii_lowercase());
    is_one.then(|| letters.bytes().fold(0, |n, b| n * 26 + usize::from(b - b'a')))
}

/// `Disk /dev/sda: 41943040s`
pub(super) fn len_by_parted(text: &str, sector_bytes: u64) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("Disk /dev/"))?;
    let size = line.rsplit(':').next()?.trim().strip_suffix('s')?;
    size.parse::<u64>().ok()?.checked_mul(sector_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_told_from_the_names_of_compressions() {
        let sound = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| format!("sda1.{name}")).collect();
            check_pieces(&names, "x").is_ok()
        };
        for name in ["gz", "xz", "zst", "lzo", "uncomp", "gz.aa", "zst.aaa"] {
            assert!(sound(&[&format!("ext4-ptcl-img.{name}")]), "{name}");
        }
        assert!(sound(&["dd-img"]) && sound(&["dd-img.aa"]) && sound(&["dd-img.aaa"]));
        assert!(
            sound(&["dd-img.aa", "dd-img.ab"])
                && sound(&["a-ptcl-img.gz.aaa", "a-ptcl-img.gz.aab"])
        );
        assert!(!sound(&["a-ptcl-img.gz.ab"]) && !sound(&["dd-img.aab"]));
        assert!(!sound(&["a-ptcl-img.gz.aa", "a-ptcl-img.gz.ac"]));
        assert!(!sound(&["a-ptcl-img.gz.aa", "a-ptcl-img.zst.aa"]));
        assert!(!sound(&["a-ptcl-img.gz", "a-ptcl-img.zst"]));
        // A piece whose letters are the name of a compression: 6 * 26 + 25.
        let many: Vec<String> = (0..=181_u8)
            .map(|n| format!("dd-img.{}{}", char::from(b'a' + n / 26), char::from(b'a' + n % 26)))
            .collect();
        assert_eq!(many[181], "dd-img.gz");
        assert!(sound(&many.iter().map(String::as_str).collect::<Vec<_>>()));
    }
}
