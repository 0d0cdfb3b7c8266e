//! What this machine is: firmware tables, memory, network cards and disks, from sysfs and procfs.
//!
//! Everything is optional: a machine with an empty or lying firmware table is still a machine. Nothing here opens a disk.

use std::fs;
use std::path::Path;

use agent_api::{Machine, Nic};

use super::net::{self, Mac};

/// Placeholders that vendors leave in firmware tables.
const PLACEHOLDERS: &[&str] = &[
    "",
    "none",
    "not specified",
    "to be filled by o.e.m.",
    "default string",
    "system serial number",
    "0",
];

/// Looks at this machine. `boot_mac` marks the card that it booted from.
#[must_use]
pub fn inventory(boot_mac: Option<Mac>) -> Machine {
    let root = Path::new("/");
    let dmi = |name: &str| dmi_field(root, name);
    Machine {
        uuid: dmi("product_uuid").map(|u| u.to_lowercase()),
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        serial: dmi("product_serial"),
        firmware: firmware(root).to_owned(),
        memory_bytes: memory_bytes(root),
        cpus: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        nics: nics(boot_mac),
        disks: crate::disk::inventory(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn dmi_field(root: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(root.join("sys/class/dmi/id").join(name)).ok()?;
    let text = text.trim();
    (!PLACEHOLDERS.contains(&text.to_lowercase().as_str())).then(|| text.to_owned())
}

fn firmware(root: &Path) -> &'static str {
    if root.join("sys/firmware/efi").is_dir() { "uefi" } else { "bios" }
}

fn memory_bytes(root: &Path) -> u64 {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    text.lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .and_then(|kib| kib.checked_mul(1024))
        .unwrap_or(0)
}

fn nics(boot_mac: Option<Mac>) -> Vec<Nic> {
    net::cards()
        .into_iter()
        .map(|card| Nic {
            link: card.has_carrier(),
            addresses: card.addresses(),
            driver: card.driver(),
            booted: Some(card.mac) == boot_mac,
            mac: card.mac.to_string(),
            name: card.name,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firmware_table_is_read_without_its_placeholders() {
        let dir = tempfile::tempdir().unwrap();
        let id = dir.path().join("sys/class/dmi/id");
        fs::create_dir_all(&id).unwrap();
        fs::write(id.join("sys_vendor"), "QEMU\n").unwrap();
        fs::write(id.join("product_serial"), "To Be Filled By O.E.M.\n").unwrap();
        assert_eq!(dmi_field(dir.path(), "sys_vendor").as_deref(), Some("QEMU"));
        assert_eq!(dmi_field(dir.path(), "product_serial"), None);
        assert_eq!(dmi_field(dir.path(), "product_uuid"), None);
        assert_eq!(firmware(dir.path()), "bios");
        fs::create_dir_all(dir.path().join("sys/firmware/efi")).unwrap();
        assert_eq!(firmware(dir.path()), "uefi");
    }

    #[test]
    fn memory_is_counted_in_bytes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/meminfo"), "MemTotal:        2035084 kB\nMemFree: 1 kB\n")
            .unwrap();
        assert_eq!(memory_bytes(dir.path()), 2_035_084 * 1024);
    }

    #[test]
    fn this_machine_has_memory_and_processors() {
        let machine = inventory(None);
        assert!(machine.memory_bytes > 1 << 20 && machine.cpus > 0);
    }
}
