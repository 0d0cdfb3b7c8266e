//! Volume groups of LVM in a folder of Clonezilla (`save_logv` in its `ocs-functions`).
//!
//! Of a partition that is a physical volume there is no image. `lvm_vg_dev.list` names it with its group and its UUID, `lvm_VG.conf` is what
//! `vgcfgbackup` says of the group, and each logical volume has an image or a note of swap as a partition has, whose name
//! begins with `VG-LV`. A dash in a name stays one dash, so that two volumes of two groups may have the same files: those are refused.
//! Label and metadata are made anew of that text, as Clonezilla lets LVM's own tools do it.

use std::collections::BTreeMap;

use super::super::error::{ForeignError, Result};
use super::super::sfdisk::{Dump, DumpedPartition};
use super::clonezilla::{Clonezilla, len_by_parted};
use super::{Parts, Place, SECTOR};
use crate::extents::Extent;
use crate::fs::{Lvm2Backup, Lvm2Place};

const LIST: &str = "lvm_vg_dev.list";
/// What `file` said of each logical volume.
const VOLUMES: &str = "lvm_logv.list";
const ADVICE: &str = "restore it with Clonezilla and capture that disk";

/// The volume groups of a disk, by their names: of each the partitions that hold it, by theirs, with the UUIDs that they have.
#[derive(Debug, Default)]
pub struct Groups(BTreeMap<String, BTreeMap<String, String>>);

impl Groups {
    /// The groups that the list tells of.
    pub fn parse(text: &str, disk: &str, dump: &Dump) -> Result<Self> {
        let mut groups = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let &[group, device, id] = &words[..] else {
                let fault = format!("{LIST}: '{}' makes no sense", line.escape_debug());
                return Err(ForeignError::damaged(Clonezilla::FORMAT, fault));
            };
            let refused = |what: &str| {
                let reason = format!("LVM on {}: {what}; {ADVICE}", device.escape_debug());
                Err(ForeignError::refused(Clonezilla::FORMAT, reason))
            };
            let name = device.strip_prefix("/dev/").unwrap_or(device);
            if group == "/NOT_FOUND" {
                return refused("it is in no volume group, so nothing of it was saved");
            }
            if dump.partitions.iter().all(|partition| partition.name != name) {
                return refused(&format!(
                    "that is no partition of {disk}, or not all of a disk without any"
                ));
            }
            if groups.0.iter().any(|(other, on)| other != group && on.contains_key(name)) {
                return refused("it is in two volume groups");
            }
            // The same may be listed twice.
            let known = groups.0.entry(group.to_owned()).or_default();
            if known.insert(name.to_owned(), id.to_owned()).is_some_and(|known| known != id) {
                return refused("it has two UUIDs");
            }
        }
        Ok(groups)
    }

    /// Whether a partition holds one.
    pub fn are_on(&self, partition: &DumpedPartition) -> bool {
        self.0.values().any(|on| on.contains_key(&partition.name))
    }
}

impl Clonezilla<'_> {
    /// The list of physical volumes; empty if there is none.
    pub fn list_of_groups(&self) -> Result<String> {
        self.text_if_there(LIST)
    }

    fn text_if_there(&self, name: &str) -> Result<String> {
        let is_there = self.folder.names.contains(name);
        if is_there { self.folder.text(name, Self::FORMAT) } else { Ok(String::new()) }
    }

    /// A disk that is a physical volume itself, as its only partition, with its length.
    pub fn whole_disk(&self, disk: &str, list: &str) -> Result<Option<(Dump, u64)>> {
        let device = format!("/dev/{disk}");
        let is_listed = list.lines().any(|line| {
            line.split_ascii_whitespace().nth(1).is_some_and(|listed| listed == device)
        });
        if !is_listed {
            return Ok(None);
        }
        let table = self.text_if_there(&format!("{disk}-pt.sf"))?;
        if table.lines().any(|line| line.starts_with("/dev/")) {
            return Ok(None);
        }
        let name = format!("{disk}-pt.parted");
        let shown = self.folder.text(&name, Self::FORMAT)?;
        let sector_bytes =
            if shown.contains("Sector size (logical/physical): 4096B/") { 4096 } else { SECTOR };
        let Some(len) = len_by_parted(&shown, sector_bytes) else {
            let fault = format!("{name} does not say how large the disk is");
            return Err(ForeignError::damaged(Self::FORMAT, fault));
        };
        let name = disk.to_owned();
        let whole = DumpedPartition { name, number: 0, start: 0, len, kind: 0, bootable: false };
        let (partitions, extended) = (vec![whole], None);
        Ok(Some((Dump { gpt: false, sector_bytes, partitions, extended }, len)))
    }

    /// The volume groups at their partitions' places.
    pub fn add_groups(&self, parts: &mut Parts, groups: &Groups, dump: &Dump) -> Result<()> {
        for (group, ids) in &groups.0 {
            let partitions: Vec<_> =
                dump.partitions.iter().filter(|p| ids.contains_key(&p.name)).collect();
            self.add_group(parts, group, &partitions, ids)?;
        }
        Ok(())
    }

    fn add_group(
        &self,
        parts: &mut Parts,
        group: &str,
        partitions: &[&DumpedPartition],
        ids: &BTreeMap<String, String>,
    ) -> Result<()> {
        let conf = format!("lvm_{group}.conf");
        let text = self.folder.bytes(&conf, Self::FORMAT)?;
        let place =
            |p: &&DumpedPartition| Lvm2Place { id: &ids[&p.name], start: p.start, len: p.len };
        let places: Vec<_> = partitions.iter().map(place).collect();
        let backup = Lvm2Backup::parse(&text, &places).map_err(|reason| {
            let names: Vec<&str> = partitions.iter().map(|p| p.name.as_str()).collect();
            let reason = format!("LVM on {}: {conf}: {reason}; {ADVICE}", names.join(", "));
            ForeignError::refused(Self::FORMAT, reason)
        })?;
        if backup.group != group {
            let fault = format!("{conf} is of a volume group '{}'", backup.group.escape_debug());
            return Err(ForeignError::damaged(Self::FORMAT, fault));
        }
        for (made, partition) in backup.physical.iter().zip(partitions) {
            parts.add_bytes(partition.start, &made.head);
            // What other systems left there would be found beside LVM, as pvcreate finds it.
            parts.add_zeros(partition.start + made.head.len() as u64, made.extents.start);
            parts.add_zeros(made.extents.end(), partition.end());
        }
        let before = parts.volumes_without_map;
        for volume in &backup.volumes {
            let mut pieces: Vec<Extent> = Vec::new();
            for piece in &volume.pieces {
                match pieces.last_mut() {
                    Some(last) if last.end() == piece.start => last.len += piece.len,
                    _ => pieces.push(*piece),
                }
            }
            let name = format!("{group}/{}", volume.name);
            let place = Place { name: &name, within: "logical volume", pieces };
            self.check_swap(group, &volume.name)?;
            self.add_saved(parts, &format!("{group}-{}", volume.name), &place)?;
        }
        if parts.volumes_without_map == before {
            let whole = partitions.iter().map(|p| Extent { start: p.start, len: p.len });
            parts.mapped.extend(whole);
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
        let text = "vg-a /dev/sda2 i-d\n\nvg /dev/sda3 i\nvg-a /dev/sda2 i-d\nvg-a /dev/sda1 j\n";
        let groups = parse(text).unwrap();
        let own = |(name, id): (&String, &String)| format!("{name} {id}");
        assert_eq!(groups.0["vg-a"].iter().map(own).collect::<Vec<_>>(), ["sda1 j", "sda2 i-d"]);
        assert_eq!(groups.0["vg"].iter().map(own).collect::<Vec<_>>(), ["sda3 i"]);
        assert!(groups.are_on(&dump.partitions[0]));
        assert!(!parse("vg /dev/sda3 i").unwrap().are_on(&dump.partitions[0]));
        for (text, words) in [
            ("vg /dev/sda2", "makes no sense"),
            ("vg /dev/sda2 a b", "makes no sense"),
            ("/NOT_FOUND /dev/sda2 a", "in no volume group"),
            ("vg /dev/sda a", "no partition of sda, or not all"),
            ("vg /dev/sdb2 a", "no partition of sda"),
            ("vg /dev/sda2 a\nvg /dev/sda2 b", "two UUIDs"),
            ("vg /dev/sda2 a\nvh /dev/sda2 a", "two volume groups"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
