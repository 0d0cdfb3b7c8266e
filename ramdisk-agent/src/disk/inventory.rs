//! What sysfs and procfs say of disks: identity, size, and who uses them. Nothing is opened for writing and no udev is asked.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_api::DiskInfo;

use crate::error::{IoContext, Result};

const SYS_BLOCK: &str = "/sys/block";

/// Every disk that can hold a system: no RAM disks, loop devices without a file, optical drives or device-mapper nodes.
pub fn inventory() -> Vec<DiskInfo> {
    let Ok(entries) = fs::read_dir(SYS_BLOCK) else { return Vec::new() };
    let mut disks: Vec<DiskInfo> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let ignored = ["ram", "zram", "sr", "fd", "dm-", "md", "nbd", "loop"];
            if ignored.iter().any(|prefix| name.starts_with(prefix)) {
                return None;
            }
            let disk = describe(&Path::new(SYS_BLOCK).join(&name), &name);
            (disk.size_bytes > 0).then_some(disk)
        })
        .collect();
    disks.sort_by(|a, b| a.path.cmp(&b.path));
    disks
}

/// What sysfs says of the disk or partition at `path`; `None` for a regular file.
pub fn inventory_of(path: &Path) -> Option<DiskInfo> {
    let meta = fs::metadata(path).ok()?;
    let dir = sysfs_dir(meta.rdev())?;
    let name = dir.file_name()?.to_str()?.to_owned();
    // A partition has its disk's identity.
    let whole = if dir.join("partition").exists() { dir.parent()?.to_owned() } else { dir.clone() };
    let mut info = describe(&whole, &name);
    info.size_bytes = read_u64(&dir.join("size")).unwrap_or(0) * 512;
    Some(info)
}

fn sysfs_dir(rdev: u64) -> Option<PathBuf> {
    if rdev == 0 {
        return None;
    }
    let link =
        format!("/sys/dev/block/{}:{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    fs::canonicalize(link).ok()
}

fn describe(dir: &Path, name: &str) -> DiskInfo {
    let text = |file: &str| read_text(&dir.join(file));
    let queue =
        |file: &str| read_u64(&dir.join("queue").join(file)).and_then(|n| u32::try_from(n).ok());
    DiskInfo {
        path: format!("/dev/{name}"),
        size_bytes: read_u64(&dir.join("size")).unwrap_or(0) * 512,
        logical_sector_bytes: queue("logical_block_size").unwrap_or(512),
        physical_sector_bytes: queue("physical_block_size").unwrap_or(512),
        model: text("device/model"),
        serial: text("serial").or_else(|| text("device/serial")).or_else(|| vpd_serial(dir)),
        wwn: text("wwid").or_else(|| text("device/wwid")),
        transport: transport(dir, name),
        by_path: by_path(dir),
        rotational: queue("rotational") == Some(1),
        removable: read_u64(&dir.join("removable")) == Some(1),
        read_only: read_u64(&dir.join("ro")) == Some(1),
    }
}

/// Serial number of a SCSI disk: VPD page 0x80, four bytes of header, then text (SPC-4, 7.8.16).
fn vpd_serial(dir: &Path) -> Option<String> {
    let page = fs::read(dir.join("device/vpd_pg80")).ok()?;
    let text = String::from_utf8_lossy(page.get(4..)?);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

fn transport(dir: &Path, name: &str) -> Option<String> {
    let real = fs::canonicalize(dir).ok()?;
    let real = real.to_str()?;
    let kind = if name.starts_with("nvme") {
        "nvme"
    } else if name.starts_with("mmcblk") {
        "mmc"
    } else if name.starts_with("loop") {
        "loop"
    } else if real.contains("/usb") {
        "usb"
    } else if real.contains("/session") {
        "iscsi"
    } else if real.contains("/rport-") {
        "fc"
    } else if real.contains("/end_device-") {
        "sas"
    } else if real.contains("/ata") {
        "sata"
    } else if real.contains("/virtio") {
        "virtio"
    } else {
        return None;
    };
    Some(kind.to_owned())
}

/// The position of the disk in the machine, as in `/dev/disk/by-path`, for PCI devices: `pci-0000:00:04.0`.
fn by_path(dir: &Path) -> Option<String> {
    let real = fs::canonicalize(dir).ok()?;
    let address = real
        .components()
        .filter_map(|c| c.as_os_str().to_str())
        .rfind(|c| c.len() == 12 && c.as_bytes()[4] == b':' && c.as_bytes()[10] == b'.')?;
    Some(format!("pci-{address}"))
}

fn read_text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

fn read_u64(path: &Path) -> Option<u64> {
    read_text(path)?.parse().ok()
}

/// Who uses the disk or one of its partitions: mounts, swap, LVM, md, loop devices. Empty if nobody does. Each entry is a phrase
/// such as `/dev/sda2 is mounted at /home`; `read_only` mounts are left out when `writers_only` is set.
pub fn in_use(path: &Path, writers_only: bool) -> Result<Vec<String>> {
    let meta = fs::metadata(path).on_disk(|| format!("looking at {}", path.display()))?;
    let Some(dir) = sysfs_dir(meta.rdev()) else { return Ok(Vec::new()) };
    let mut nodes = vec![dir.clone()];
    if let Ok(children) = fs::read_dir(&dir) {
        nodes.extend(
            children.filter_map(|c| Some(c.ok()?.path())).filter(|c| c.join("partition").exists()),
        );
    }
    let devices: BTreeMap<String, String> = nodes
        .iter()
        .filter_map(|node| {
            let name = node.file_name()?.to_str()?;
            Some((read_text(&node.join("dev"))?, format!("/dev/{name}")))
        })
        .collect();
    let mut users = Vec::new();
    for node in &nodes {
        let name = node.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Ok(holders) = fs::read_dir(node.join("holders")) {
            for holder in holders.filter_map(std::result::Result::ok) {
                users.push(format!("/dev/{name} is held by {}", holder.file_name().display()));
            }
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .internal(|| "reading /proc/self/mountinfo".into())?;
    users.extend(mounts.lines().filter_map(|line| mount_of(line, &devices, writers_only)));
    if let Ok(swaps) = fs::read_to_string("/proc/swaps") {
        for line in swaps.lines().skip(1) {
            let node = line.split_whitespace().next().unwrap_or_default();
            if devices.values().any(|d| d == node) {
                users.push(format!("{node} is in use as swap"));
            }
        }
    }
    Ok(users)
}

/// One line of `/proc/self/mountinfo`: `36 35 98:0 /root /mnt rw,noatime - ext4 /dev/sda1 rw,errors=continue` (proc(5)).
fn mount_of(line: &str, devices: &BTreeMap<String, String>, writers_only: bool) -> Option<String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let separator = fields.iter().position(|f| *f == "-")?;
    let (number, target) = (fields.get(2)?, fields.get(4)?);
    let source = fields.get(separator + 2)?;
    let options = fields.get(separator + 3)?;
    // btrfs mounts have an anonymous device number: the source's name tells.
    let device = devices.get(*number).or_else(|| devices.values().find(|d| d == source))?;
    let read_only = options.split(',').any(|o| o == "ro");
    if writers_only && read_only {
        return None;
    }
    Some(format!("{device} is mounted at {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_device_number_or_name() {
        let devices = BTreeMap::from([("8:1".to_owned(), "/dev/sda1".to_owned())]);
        let rw = "36 35 8:1 / /mnt rw,noatime shared:1 - ext4 /dev/root rw,errors=continue";
        assert_eq!(mount_of(rw, &devices, true).unwrap(), "/dev/sda1 is mounted at /mnt");
        let ro = "36 35 8:1 / /mnt ro - ext4 /dev/root ro";
        assert_eq!(mount_of(ro, &devices, true), None);
        assert!(mount_of(ro, &devices, false).is_some());
        let btrfs = "36 35 0:44 / /data rw - btrfs /dev/sda1 rw";
        assert!(mount_of(btrfs, &devices, true).is_some());
        assert_eq!(mount_of("36 35 0:44 / /x rw - tmpfs tmpfs rw", &devices, true), None);
        assert_eq!(mount_of("nonsense", &devices, true), None);
    }

    #[test]
    fn a_regular_file_has_no_users_and_no_identity() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(in_use(file.path(), false).unwrap().is_empty());
        assert!(inventory_of(file.path()).is_none());
    }
}
