//! A boot entry of UEFI firmware for the restored disk, and the end of those that led to what was on it.
//!
//! What the entry starts is found by the plan, on the image's EFI system partition. Firmware is changed last of all before the commit; an
//! entry that cannot be made leaves firmware as it was, and fails the restore. Should the commit itself fail, the new entry leads to a disk that
//! does not boot, and firmware goes on to the next one.

use std::io;
use std::path::Path;

use agent_api::{BootOrder, ErrorKind};
use serde::Serialize;
use uuid::Uuid;

use crate::disk::Disk;
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
    /// What is known of firmware's entries when the plan is made: those that go.
    #[serde(skip)]
    removes: Vec<String>,
}

/// The entry for an image with this table on this target. Refuses where none can be made.
pub fn plan(
    disk: &mut ImageDisk<'_>,
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
    let (partition, loader) = esp(disk, table, label)?.map_err(refused)?;
    let slot = arranged.slots.iter().find(|slot| slot.number == partition.number);
    let slot = slot.ok_or_else(|| refused("its partition is not restored".into()))?;
    let guid = guid(partition).ok_or_else(|| refused("its partition has no GUID".into()))?;
    let sector = u64::from(arranged.sector_bytes);
    let mut stale: Vec<Uuid> = table.partitions.iter().filter_map(guid_of).collect();
    stale.extend(on_target(target).iter().filter_map(guid_of));
    let removes = of_partitions(&known, &stale)
        .map(|(number, option)| format!("Boot{number:04X} '{}'", option.label))
        .collect();
    Ok(BootEntry {
        label: label.to_owned(),
        order,
        partition: partition.number,
        first_lba: slot.start_bytes / sector,
        sectors: slot.len_bytes / sector,
        guid,
        loader,
        stale,
        removes,
    })
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

/// The entries that boot from one of these partitions.
fn of_partitions<'a>(
    entries: &'a [(u16, LoadOption)],
    guids: &'a [Uuid],
) -> impl Iterator<Item = &'a (u16, LoadOption)> {
    let leads_there = |option: &LoadOption| {
        option
            .partition
            .and_then(|partition| partition.guid)
            .is_some_and(|guid| guids.contains(&guid))
    };
    entries.iter().filter(move |(_, option)| leads_there(option))
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
        let removed = self.removes.iter().map(|entry| format!("EFI boot entry {entry} is removed"));
        std::iter::once(made).chain(removed).collect()
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
        let stale: Vec<&(u16, LoadOption)> = of_partitions(&entries, &self.stale).collect();
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
