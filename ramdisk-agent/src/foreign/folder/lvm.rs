//! Volume groups of LVM in a folder of Clonezilla (`save_logv` in its `ocs-functions`).
//!
//! Of a partition that is a physical volume there is no image. `lvm_vg_dev.list` names it with its group and its UUID, `lvm_VG.conf` is what
//! `vgcfgbackup` says of the group, and each logical volume has an image or a note of swap as a partition has, whose name
//! begins with `VG-LV`. A dash in a name stays one dash, so that two volumes of two groups may have the same files: those are refused.
//! Label and metadata are made anew of that text, as Clonezilla lets LVM's own tools do it.

use std::collections::BTreeMap;

use super::super::error::{ForeignError, Result};
use super::super::sfdisk::{Dump, DumpedPartition};
use super::clonezilla::Clonezilla;
use super::{Parts, Place};
use crate::extents::Extent;
use crate::fs::Lvm2Backup;

const LIST: &str = "lvm_vg_dev.list";
/// What `file` said of each logical volume.
const VOLUMES: &str = "lvm_logv.list";
const ADVICE: &str = "restore it with Clonezilla and capture that disk";

/// A partition that is a physical volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Physical {
    group: String,
    id: String,
}

/// The physical volumes of a disk, by the names of their partitions.
#[derive(Debug)]
pub struct Groups(BTreeMap<String, Physical>);

impl Groups {
    /// Reads the list, if there is one.
    pub fn read(clonezilla: &Clonezilla<'_>, disk: &str, dump: &Dump) -> Result<Self> {
        if !clonezilla.folder.names.contains(LIST) {
            return Ok(Self(BTreeMap::new()));
        }
        let text = clonezilla.folder.text(LIST, Clonezilla::FORMAT)?;
        Self::parse(&text, disk, dump)
    }

    fn parse(text: &str, disk: &str, dump: &Dump) -> Result<Self> {
        let mut groups = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let &[group, device, id] = &words[..] else {
                let fault = format!("{LIST}: '{}' makes no sense", line.escape_debug());
                return Err(ForeignError::damaged(Clonezilla::FORMAT, fault));
            };
            let refused = |what: String| {
                let reason = format!("LVM on {}: {what}; {ADVICE}", device.escape_debug());
                Err(ForeignError::refused(Clonezilla::FORMAT, reason))
            };
            let name = device.strip_prefix("/dev/").unwrap_or(device);
            if group == "/NOT_FOUND" {
                return refused("it is in no volume group, so nothing of it was saved".into());
            }
            if name == disk {
                return refused("it is on the whole disk, without partitions".into());
            }
            if dump.partitions.iter().all(|partition| partition.name != name) {
                return refused(format!("that is no partition of {disk}"));
            }
            let physical = Physical { group: group.to_owned(), id: id.to_owned() };
            // It may be listed twice, but not in two ways.
            let same = groups.get(name).is_none_or(|known| *known == physical);
            if !same
                || groups.iter().any(|(other, known): (&String, &Physical)| {
                    other != name && known.group == physical.group
                })
            {
                return refused(format!(
                    "volume group {} has several physical volumes, or this one several groups",
                    group.escape_debug()
                ));
            }
            groups.insert(name.to_owned(), physical);
        }
        Ok(Self(groups))
    }

    /// What is on a partition.
    pub fn on(&self, partition: &DumpedPartition) -> Option<&Physical> {
        self.0.get(&partition.name)
    }
}

impl Clonezilla<'_> {
    /// A physical volume at its partition's place: its metadata, and its logical volumes.
    pub fn add_physical(
        &self,
        parts: &mut Parts,
        partition: &DumpedPartition,
        physical: &Physical,
    ) -> Result<()> {
        let Physical { group, id } = physical;
        let conf = format!("lvm_{group}.conf");
        let text = self.folder.bytes(&conf, Self::FORMAT)?;
        let backup = Lvm2Backup::parse(&text, id, partition.len).map_err(|reason| {
            let reason = format!("LVM on {}: {conf}: {reason}; {ADVICE}", partition.name);
            ForeignError::refused(Self::FORMAT, reason)
        })?;
        if backup.group != *group {
            let fault = format!("{conf} is of a volume group '{}'", backup.group.escape_debug());
            return Err(ForeignError::damaged(Self::FORMAT, fault));
        }
        let (start, extents) = (partition.start, backup.extents);
        parts.add_bytes(start, &backup.head);
        // What other systems left there would be found beside LVM, as pvcreate finds it.
        parts.add_zeros(start + backup.head.len() as u64, start + extents.start);
        parts.add_zeros(start + extents.end(), partition.end());
        let before = parts.volumes_without_map;
        for volume in &backup.volumes {
            let mut pieces: Vec<Extent> = Vec::new();
            for Extent { start: at, len } in &volume.pieces {
                match pieces.last_mut() {
                    Some(last) if last.end() == start + at => last.len += len,
                    _ => pieces.push(Extent { start: start + at, len: *len }),
                }
            }
            let name = format!("{group}/{}", volume.name);
            let place = Place { name: &name, within: "logical volume", pieces };
            self.check_swap(group, &volume.name)?;
            self.add_saved(parts, &format!("{group}-{}", volume.name), &place)?;
        }
        if parts.volumes_without_map == before {
            parts.mapped.push(Extent { start, len: partition.len });
        }
        Ok(())
    }

    /// Refuses what Clonezilla took for swap because `file` told of that word, in a filesystem's name as well: of such a volume nothing was
    /// saved.
    fn check_swap(&self, group: &str, volume: &str) -> Result<()> {
        let note = format!("swappt-{group}-{volume}.info");
        if !self.folder.names.contains(&note) || !self.folder.names.contains(VOLUMES) {
            return Ok(());
        }
        let text = self.folder.text(VOLUMES, Self::FORMAT)?;
        let device = format!("/dev/{group}/{volume}");
        let said = text.lines().find_map(|line| {
            let (name, said) = line.trim().split_once(char::is_whitespace)?;
            (name == device).then(|| said.to_ascii_lowercase())
        });
        match said {
            Some(said) if said.contains("swap") && !said.contains("swap file") => {
                let reason = format!(
                    "{group}/{volume} was taken for swap for a word in its description, '{}', and not saved; save that disk again, by \
                     a tool that does",
                    said.trim().escape_debug()
                );
                Err(ForeignError::refused(Self::FORMAT, reason))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_volumes_are_those_of_the_disk() {
        let table = "label: dos\n/dev/sda1 : start=2048, size=100, type=83\n\
                     /dev/sda2 : start=4096, size=9000, type=8e\n\
                     /dev/sda3 : start=20480, size=1000, type=8e\n";
        let dump = Dump::parse(table, "x").unwrap();
        let parse = |text: &str| Groups::parse(text, "sda", &dump);
        let groups = parse("vg-a /dev/sda2 i-d\n\nvg /dev/sda3 i\nvg-a /dev/sda2 i-d\n").unwrap();
        let physical = Physical { group: "vg-a".into(), id: "i-d".into() };
        assert_eq!(groups.on(&dump.partitions[1]), Some(&physical));
        assert_eq!(groups.on(&dump.partitions[0]), None);
        for (text, words) in [
            ("vg /dev/sda2", "makes no sense"),
            ("vg /dev/sda2 a b", "makes no sense"),
            ("/NOT_FOUND /dev/sda2 a", "in no volume group"),
            ("vg /dev/sda a", "whole disk"),
            ("vg /dev/sdb2 a", "no partition of sda"),
            ("vg /dev/sda2 a\nvg /dev/sda3 b", "several physical volumes"),
            ("vg /dev/sda2 a\nvh /dev/sda2 b", "several groups"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
