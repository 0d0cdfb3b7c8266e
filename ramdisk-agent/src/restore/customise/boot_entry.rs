//! A boot entry of UEFI firmware for the restored disk, and the end of those that led to what was on it.
//!
//! What the entry starts is found by the plan, on the image's EFI system partition. Firmware is changed last of all before the commit; an
//! entry that cannot be made leaves firmware as it was, and fails the restore. Should the commit itself fail, the new entry leads to a disk that
//! does not boot, and firmware goes on to the next one.
//!
//! Which entries led to what was on the disk is told by the GUIDs in its table. A target without one may be blank, or a restore that was
//! interrupted has wiped it: its entries are then those that no disk of the machine has the partition for. The disk of such an entry may
//! also have been unplugged, so that only one that is the new one's twin goes: the same label, the same loader.

use std::fs::File;
use std::io;
use std::path::Path;

use agent_api::{BootOrder, ErrorKind};
use serde::Serialize;
use uuid::Uuid;

use crate::disk::{self, Disk};
use crate::efi::load_option::{self, LoadOption};
use crate::efi::loader;
use crate::efi::variables::{EFIVARS, Variables};
use crate::error::{Error, IoContext, Result};
use crate::image::{ImageDisk, disk_error};
use crate::probe;
use crate::restore::arrangement::Arrangement;
use crate::table::{self, Partition, Table, TableKind, TableOutcome};

/// The type of an EFI system partition.
const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// A boot entry to make.
#[derive(Debug, Clone, Serialize)]
pub struct BootEntry {
    label: String,
    order: BootOrder,
    partition: u32,
    first_lba: u64,
    sectors: u64,
    guid: Uuid,
    loader: String,
    /// The partitions whose entries lead nowhere from now on: those that were on the target, and those that will be.
    stale: Vec<Uuid>,
    /// Partitions on none of the machine's disks, where the target has none either: entries for them that are this one's twins go, too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<Uuid>,
    /// What is known of firmware's entries when the plan is made: those that go, and why.
    #[serde(skip)]
    removes: Vec<String>,
}

/// The entry for an image with this table on this target. Refuses where none can be made.
pub fn plan(
    image: &mut ImageDisk<'_>,
    table: &Table,
    arranged: &Arrangement,
    target: &Disk,
    label: &str,
    order: BootOrder,
) -> Result<BootEntry> {
    let refused = |why: String| {
        Error::refused(format!("no EFI boot entry can be made: {why}; nothing was written"))
    };
    if table.kind != TableKind::Gpt {
        return Err(refused("the image has no GPT".into()));
    }
    let variables = Variables::new(Path::new(EFIVARS));
    let known = variables.entries().map_err(|e| {
        refused("this machine was not booted by UEFI, or its variables cannot be read".into())
            .because(e)
    })?;
    rustix::fs::access(EFIVARS, rustix::fs::Access::WRITE_OK).map_err(|e| {
        refused(format!("firmware's variables in {EFIVARS} cannot be changed"))
            .because(io::Error::from(e))
    })?;
    let (partition, loader) = esp(image, table, label)?.map_err(refused)?;
    let slot = arranged.slots.iter().find(|slot| slot.number == partition.number);
    let slot = slot.ok_or_else(|| refused("its partition is not restored".into()))?;
    let guid = guid(partition).ok_or_else(|| refused("its partition has no GUID".into()))?;
    let sector = u64::from(arranged.sector_bytes);
    let mut stale: Vec<Uuid> = table.partitions.iter().filter_map(guid_of).collect();
    let before = on_target(target);
    stale.extend(before.iter().filter_map(guid_of));
    let mut entry = BootEntry {
        label: label.to_owned(),
        order,
        partition: partition.number,
        first_lba: slot.start_bytes / sector,
        sectors: slot.len_bytes / sector,
        guid,
        loader,
        stale,
        missing: Vec::new(),
        removes: Vec::new(),
    };
    if before.is_empty() {
        entry.missing = entry.twins_without_a_disk(&known, || on_other_disks(target));
    }
    entry.removes =
        known.iter().filter_map(|(number, option)| entry.removal(*number, option)).collect();
    Ok(entry)
}

/// The one EFI system partition of an image that has a boot loader.
fn esp<'a>(
    disk: &mut ImageDisk<'_>,
    table: &'a Table,
    label: &str,
) -> Result<std::result::Result<(&'a Partition, String), String>> {
    let mut found = Vec::new();
    let mut why = "the image has no EFI system partition".to_owned();
    for partition in table.partitions.iter().filter(|p| p.type_id.eq_ignore_ascii_case(ESP)) {
        let (start, len) = (partition.start_bytes, partition.len_bytes);
        let loader = loader::find(&mut probe::Part::new(disk, start, len), len, label);
        match loader.map_err(disk_error)? {
            Ok(loader) => found.push((partition, loader)),
            Err(reason) => why = format!("partition {}: {reason}", partition.number),
        }
    }
    Ok(match found.len() {
        0 => Err(why),
        1 => Ok(found.remove(0)),
        _ => Err("the image has several EFI system partitions with boot loaders".into()),
    })
}

fn guid(partition: &Partition) -> Option<Uuid> {
    Uuid::parse_str(partition.uuid.as_deref()?).ok()
}

fn guid_of(partition: &Partition) -> Option<Uuid> {
    guid(partition).filter(|guid| !guid.is_nil())
}

/// The partitions that are on the target now. A table that cannot be read has no entries that lead to it.
fn on_target(target: &Disk) -> Vec<Partition> {
    let len = target.len_bytes();
    match table::read_table(&mut target.window(0, len), len, target.logical_sector_bytes()) {
        Ok(TableOutcome::Table(table)) => table.partitions,
        _ => Vec::new(),
    }
}

/// The partitions on the machine's disks but for the target. `None` if one of them cannot be read, or has a table that cannot be trusted:
/// anything may be on it.
fn on_other_disks(target: &Disk) -> Option<Vec<Uuid>> {
    let mut guids = Vec::new();
    for other in disk::inventory() {
        let path = Path::new(&other.path);
        if target.is_at(path) {
            continue;
        }
        let mut file = File::open(path).ok()?;
        match table::read_table(&mut file, other.size_bytes, other.logical_sector_bytes).ok()? {
            TableOutcome::Table(table) => guids.extend(table.partitions.iter().filter_map(guid_of)),
            TableOutcome::Refused(_) => return None,
        }
    }
    Some(guids)
}

/// The partition that an entry boots from.
fn guid_in(option: &LoadOption) -> Option<Uuid> {
    option.partition.and_then(|partition| partition.guid)
}

impl BootEntry {
    /// Lines for people.
    pub fn lines(&self) -> Vec<String> {
        let place = match self.order {
            BootOrder::First => "first in the boot order",
            BootOrder::Last => "last in the boot order",
            BootOrder::Keep => "at its old place in the boot order, or last",
        };
        let Self { label, partition, loader, .. } = self;
        let made =
            format!("EFI boot entry '{label}' for {loader} on partition {partition}, {place}");
        std::iter::once(made).chain(self.removes.iter().cloned()).collect()
    }

    /// The partitions of entries with this one's label and loader that are neither on the target nor on the `others`.
    fn twins_without_a_disk(
        &self,
        known: &[(u16, LoadOption)],
        others: impl FnOnce() -> Option<Vec<Uuid>>,
    ) -> Vec<Uuid> {
        let twins = known.iter().map(|(_, option)| option).filter(|option| self.is_twin(option));
        let mut guids: Vec<Uuid> = twins
            .filter_map(guid_in)
            .filter(|guid| !guid.is_nil() && !self.stale.contains(guid))
            .collect();
        // Disks are not looked at for nothing.
        if guids.is_empty() {
            return guids;
        }
        let Some(others) = others() else { return Vec::new() };
        guids.retain(|guid| !others.contains(guid));
        guids.sort_unstable();
        guids.dedup();
        guids
    }

    fn is_twin(&self, option: &LoadOption) -> bool {
        let same_loader = |path: &String| path.eq_ignore_ascii_case(&self.loader);
        option.label == self.label && option.path.as_ref().is_some_and(same_loader)
    }

    fn is_missing(&self, option: &LoadOption) -> bool {
        self.is_twin(option) && guid_in(option).is_some_and(|guid| self.missing.contains(&guid))
    }

    /// Whether an entry of firmware's goes.
    fn replaces(&self, option: &LoadOption) -> bool {
        guid_in(option).is_some_and(|guid| self.stale.contains(&guid)) || self.is_missing(option)
    }

    /// The line for people about an entry that goes.
    fn removal(&self, number: u16, option: &LoadOption) -> Option<String> {
        let why = match self.is_missing(option) {
            true => ": the partition that it is for is on no disk of this machine",
            false => "",
        };
        let line = format!("EFI boot entry Boot{number:04X} '{}' is removed{why}", option.label);
        self.replaces(option).then_some(line)
    }

    /// Makes the entry and removes the stale ones; what was done.
    pub fn make(&self) -> Result<Vec<String>> {
        self.make_in(&Variables::new(Path::new(EFIVARS)))
    }

    fn make_in(&self, variables: &Variables) -> Result<Vec<String>> {
        let doing = |what: &str| format!("{what} the EFI boot entry '{}'", self.label);
        let entries = variables.entries().on_disk(|| doing("looking for a place for"))?;
        let old_order = variables.order().on_disk(|| doing("looking for a place for"))?;
        let number = variables.free_number().on_disk(|| doing("looking for a place for"))?;
        let Self { label, partition, first_lba, sectors, guid, loader, .. } = self;
        let option = load_option::encode(label, *partition, *first_lba, *sectors, *guid, loader);
        let stale: Vec<&(u16, LoadOption)> =
            entries.iter().filter(|(_, option)| self.replaces(option)).collect();
        let gone: Vec<u16> = stale.iter().map(|(number, _)| *number).collect();
        let made = variables
            .make(number, &option)
            .and_then(|()| variables.set_order(&order(&old_order, number, &gone, self.order)));
        if let Err(error) = made {
            // The first error is the one that matters; an entry that the order lacks is not booted.
            let _ = variables.set_order(&old_order);
            let _ = variables.remove(number);
            return Err(Error::new(
                ErrorKind::Disk,
                format!("{}: the firmware would not do it", doing("making")),
            )
            .because(error));
        }
        let mut done =
            vec![format!("EFI boot entry Boot{number:04X} '{label}' was made for {loader}")];
        for (number, option) in stale {
            let name = format!("EFI boot entry Boot{number:04X} '{}'", option.label);
            // It is out of the order already, so that nothing depends on this.
            done.push(match variables.remove(*number) {
                Ok(()) => format!("{name} was removed"),
                Err(e) => format!("{name} is out of the boot order, but could not be removed: {e}"),
            });
        }
        Ok(done)
    }
}

/// The boot order with a new entry and without those that are gone.
fn order(old: &[u16], new: u16, gone: &[u16], wanted: BootOrder) -> Vec<u16> {
    let stays = |number: &u16| !gone.contains(number) && *number != new;
    let kept: Vec<u16> = old.iter().copied().filter(stays).collect();
    let place = match wanted {
        BootOrder::First => 0,
        BootOrder::Last => kept.len(),
        BootOrder::Keep => {
            let before = old.iter().take_while(|number| !gone.contains(number));
            before.filter(|number| stays(number)).count()
        }
    };
    [&kept[..place], &[new], &kept[place..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Uuid = Uuid::from_u128(1);
    const NEW: Uuid = Uuid::from_u128(2);
    const OTHER: Uuid = Uuid::from_u128(3);

    fn entry(order: BootOrder) -> BootEntry {
        BootEntry {
            label: "Debian".into(),
            order,
            partition: 1,
            first_lba: 2048,
            sectors: 4096,
            guid: NEW,
            loader: "\\EFI\\debian\\shimx64.efi".into(),
            stale: vec![NEW, OLD],
            missing: Vec::new(),
            removes: Vec::new(),
        }
    }

    #[test]
    fn the_place_in_the_order() {
        for (old, gone, wanted, result) in [
            (&[1, 2, 3][..], &[2][..], BootOrder::First, &[9, 1, 3][..]),
            (&[1, 2, 3], &[2], BootOrder::Last, &[1, 3, 9]),
            (&[1, 2, 3], &[2], BootOrder::Keep, &[1, 9, 3]),
            (&[2, 4, 3], &[2, 4], BootOrder::Keep, &[9, 3]),
            (&[1, 3], &[], BootOrder::Keep, &[1, 3, 9]),
            (&[1, 9, 3], &[], BootOrder::First, &[9, 1, 3]),
            (&[], &[], BootOrder::First, &[9]),
        ] {
            assert_eq!(order(old, 9, gone, wanted), result);
        }
    }

    #[test]
    fn an_entry_replaces_those_of_the_same_disk() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Variables::new(dir.path());
        let make = |number, label: &str, guid| {
            let option = load_option::encode(label, 1, 2, 3, guid, "\\x");
            variables.make(number, &option).unwrap();
        };
        make(0, "PXE", OTHER);
        make(1, "old", OLD);
        make(2, "clone", NEW);
        variables.set_order(&[0, 1, 2]).unwrap();
        let done = entry(BootOrder::Keep).make_in(&variables).unwrap();
        assert_eq!(done.len(), 3, "{done:?}");
        let entries = variables.entries().unwrap();
        assert_eq!(entries.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [0, 3]);
        assert_eq!(variables.order().unwrap(), [0, 3]);
        let option = &entries[1].1;
        assert_eq!(option.path.as_deref(), Some("\\EFI\\debian\\shimx64.efi"));
        assert_eq!(option.partition.unwrap().guid, Some(NEW));
        // Once more: the same, under another number.
        entry(BootOrder::First).make_in(&variables).unwrap();
        assert_eq!(variables.order().unwrap(), [1, 0]);
    }

    /// An entry of firmware's with this label, partition and loader.
    fn option(label: &str, guid: Uuid, loader: &str) -> LoadOption {
        load_option::decode(&load_option::encode(label, 1, 2, 3, guid, loader)).unwrap()
    }

    #[test]
    fn only_twins_of_which_no_disk_is_there_are_taken_for_left_over() {
        let new = entry(BootOrder::Keep);
        let [gone, unplugged, there] = [10, 11, 12].map(Uuid::from_u128);
        let known = [
            (0, option("Debian", gone, "\\efi\\DEBIAN\\shimx64.efi")),
            (1, option("Debian", gone, "\\EFI\\debian\\shimx64.efi")),
            (2, option("Debian", unplugged, "\\EFI\\debian\\grubx64.efi")),
            (3, option("debian", unplugged, "\\EFI\\debian\\shimx64.efi")),
            (4, option("Debian", there, "\\EFI\\debian\\shimx64.efi")),
            (5, option("Debian", Uuid::nil(), "\\EFI\\debian\\shimx64.efi")),
            (6, option("Debian", OLD, "\\EFI\\debian\\shimx64.efi")),
        ];
        let others = || Some(vec![there, OTHER]);
        assert_eq!(new.twins_without_a_disk(&known, others), [gone]);
        // A disk that cannot be read may have any of them.
        assert!(new.twins_without_a_disk(&known, || None).is_empty());
        // Nobody asks for the disks where nothing depends on them.
        let not_asked = || panic!("the disks were looked at");
        assert!(new.twins_without_a_disk(&known[2..4], not_asked).is_empty());

        let new = BootEntry { missing: vec![gone], ..new };
        let lines: Vec<String> =
            known.iter().filter_map(|(number, option)| new.removal(*number, option)).collect();
        let expected = [
            "EFI boot entry Boot0000 'Debian' is removed: the partition that it is for is on no disk of this machine",
            "EFI boot entry Boot0001 'Debian' is removed: the partition that it is for is on no disk of this machine",
            "EFI boot entry Boot0006 'Debian' is removed",
        ];
        assert_eq!(lines, expected);
        // Another loader of a partition that is missing may be all that somebody has to start it by.
        assert!(!new.replaces(&option("Debian rescue", gone, "\\EFI\\debian\\grubx64.efi")));
    }

    #[test]
    fn after_an_interrupted_restore_the_entry_keeps_the_place_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Variables::new(dir.path());
        let gone = Uuid::from_u128(10);
        for (number, label, guid) in [(0, "Debian", gone), (1, "PXE", OTHER), (2, "Windows", gone)]
        {
            let loader = "\\EFI\\debian\\shimx64.efi";
            variables.make(number, &load_option::encode(label, 1, 2, 3, guid, loader)).unwrap();
        }
        variables.set_order(&[0, 1, 2]).unwrap();
        let mut new = entry(BootOrder::Keep);
        new.missing = new.twins_without_a_disk(&variables.entries().unwrap(), || Some(Vec::new()));
        new.make_in(&variables).unwrap();
        assert_eq!(variables.order().unwrap(), [3, 1, 2], "in front of the network, where it was");
        let entries = variables.entries().unwrap();
        assert_eq!(entries.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn firmware_that_says_no_is_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Variables::new(dir.path());
        let option = load_option::encode("old", 1, 2, 3, OLD, "\\x");
        variables.make(1, &option).unwrap();
        // A folder in the order's place: it cannot be read as a variable.
        let order =
            format!("{}/BootOrder-8be4df61-93ca-11d2-aa0d-00e098032b8c", dir.path().display());
        std::fs::create_dir(order).unwrap();
        assert_eq!(
            entry(BootOrder::First).make_in(&variables).unwrap_err().kind(),
            ErrorKind::Disk
        );
        let entries = variables.entries().unwrap();
        assert_eq!(entries.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [1]);
    }
}
