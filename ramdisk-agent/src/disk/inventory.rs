//! What sysfs says of disks: identity, size, position. No udev is asked.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_api::DiskInfo;

pub(super) const SYS_BLOCK: &str = "/sys/block";

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
    let whole = if is_partition(&dir) { dir.parent()?.to_owned() } else { dir.clone() };
    let mut info = describe(&whole, &name);
    info.size_bytes = read_u64(&dir.join("size")).unwrap_or(0) * 512;
    Some(info)
}

/// Whether this folder of sysfs is a partition's, and not a whole disk's.
pub(super) fn is_partition(dir: &Path) -> bool {
    dir.join("partition").exists()
}

pub(super) fn sysfs_dir(rdev: u64) -> Option<PathBuf> {
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

pub(super) fn read_text(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn read_u64(path: &Path) -> Option<u64> {
    read_text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regular_file_has_no_identity() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(inventory_of(file.path()).is_none());
    }
}
