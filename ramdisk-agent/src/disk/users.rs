//! Who uses a disk, as sysfs and procfs have it: by whatever node they use its bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::ground::Place;
use super::inventory::read_text;
use super::mounts::mount_tables;
use crate::error::{IoContext, Result};

/// Who uses the disk or disk file: mounts, swap, LVM, md of itself, of its partitions, of the disk that it is a partition of, and of loop devices
/// over or beside it, as far as they have bytes in common with it. Empty if nobody does. Each entry is a phrase such as `/dev/sda2 is mounted at /home`; read-only mounts are left out when `writers_only`
/// is set.
pub fn in_use(path: &Path, writers_only: bool) -> Result<Vec<String>> {
    let meta = fs::metadata(path).on_disk(|| format!("looking at {}", path.display()))?;
    let nodes = Place::of(path, &meta)?.nodes()?;
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let mut users = Vec::new();
    for node in &nodes {
        for holder in fs::read_dir(node.dir.join("holders")).into_iter().flatten().flatten() {
            let (path, name) = (node.path(), holder.file_name());
            users.push(format!("{} is held by {}{}", path.display(), name.display(), node.through));
        }
    }
    let devices = nodes.iter().filter_map(|node| Some((read_text(&node.dir.join("dev"))?, node)));
    let devices: Devices<'_> =
        devices.map(|(number, node)| (number, (node.path(), &*node.through))).collect();
    for (whose, mounts) in mount_tables()? {
        let found =
            mounts.lines().filter_map(|line| mount_of(line, &whose, &devices, writers_only));
        users.extend(found);
    }
    for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let swap = line.split_whitespace().next().unwrap_or_default();
        if let Some(node) = nodes.iter().find(|node| node.path() == Path::new(swap)) {
            users.push(format!("{swap} is in use as swap{}", node.through));
        }
    }
    Ok(users)
}

/// Device numbers, each with the path of its node and the loop devices that it goes through.
type Devices<'a> = BTreeMap<String, (PathBuf, &'a str)>;

/// One line of `/proc/self/mountinfo`: `36 35 98:0 /root /mnt rw,noatime - ext4 /dev/sda1 rw,errors=continue` (proc(5)).
fn mount_of(line: &str, whose: &str, devices: &Devices<'_>, writers_only: bool) -> Option<String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let separator = fields.iter().position(|f| *f == "-")?;
    let (number, target) = (fields.get(2)?, fields.get(4)?);
    let source = fields.get(separator + 2)?;
    let options = fields.get(separator + 3)?;
    // btrfs mounts have an anonymous device number: the source's name tells.
    let by_name = || devices.values().find(|(path, _)| path == Path::new(source));
    let (device, through) = devices.get(*number).or_else(by_name)?;
    let read_only = options.split(',').any(|o| o == "ro");
    if writers_only && read_only {
        return None;
    }
    Some(format!("{} is mounted at {target}{whose}{through}", device.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_device_number_or_name() {
        let devices = Devices::from([("8:1".to_owned(), ("/dev/sda1".into(), "; x"))]);
        let mount_of = |line, writers_only| mount_of(line, " of y", &devices, writers_only);
        let rw = "36 35 8:1 / /mnt rw,noatime shared:1 - ext4 /dev/root rw,errors=continue";
        assert_eq!(mount_of(rw, true).unwrap(), "/dev/sda1 is mounted at /mnt of y; x");
        let ro = "36 35 8:1 / /mnt ro - ext4 /dev/root ro";
        assert_eq!(mount_of(ro, true), None);
        assert!(mount_of(ro, false).is_some());
        let btrfs = "36 35 0:44 / /data rw - btrfs /dev/sda1 rw";
        assert!(mount_of(btrfs, true).is_some());
        assert_eq!(mount_of("36 35 0:44 / /x rw - tmpfs tmpfs rw", true), None);
        assert_eq!(mount_of("nonsense", true), None);
    }

    #[test]
    fn a_file_of_nobody_has_no_users() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(in_use(file.path(), false).unwrap().is_empty());
    }
}
