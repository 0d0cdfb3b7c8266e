//! Who uses a disk, as sysfs and procfs have it: by whatever node they use its bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::ground::{Ground, Place, node_of};
use super::inventory::{read_text, sysfs_dir};
use super::mounts::{is_of_kernel, mount_tables, unescaped};
use crate::error::{IoContext, Result};

/// Who uses the disk or disk file: mounts, swap, LVM, md of itself, of its partitions, of the disk that it is a partition of, and of loop devices
/// over or beside it, as far as they have bytes in common with it. Empty if nobody does. Each entry is a phrase such as `/dev/sda2 is mounted at /home`; read-only mounts are left out when `writers_only`
/// is set.
pub fn in_use(path: &Path, writers_only: bool) -> Result<Vec<String>> {
    let meta = fs::metadata(path).on_disk(|| format!("looking at {}", path.display()))?;
    let place = Place::of(path, &meta)?;
    let nodes = place.nodes()?;
    let swaps = swaps();
    let mut users = swap_file(&place, &swaps);
    if nodes.is_empty() {
        return Ok(users);
    }
    for node in &nodes {
        for holder in fs::read_dir(node.dir.join("holders")).into_iter().flatten().flatten() {
            let (path, name) = (node.path(), holder.file_name());
            users.push(format!("{} is held by {}{}", path.display(), name.display(), node.through));
        }
    }
    let devices = nodes.iter().filter_map(|node| Some((read_text(&node.dir.join("dev"))?, node)));
    let devices: Devices<'_> =
        devices.map(|(number, node)| (number, (node.path(), &*node.through))).collect();
    let (tables, btrfs) = (mount_tables()?, mounted_btrfs());
    for (whose, mounts) in &tables {
        let mount_of = |line| mount_of(line, whose, &devices, &btrfs, writers_only);
        users.extend(mounts.lines().filter_map(mount_of));
    }
    let lines: Vec<&str> = tables.iter().flat_map(|(_, mounts)| mounts.lines()).collect();
    users.extend(unnamed(&lines, &devices, &btrfs));
    for swap in &swaps {
        if let Some(node) = nodes.iter().find(|node| node.path() == *swap) {
            users.push(format!("{} is in use as swap{}", swap.display(), node.through));
        }
    }
    Ok(users)
}

/// What is mounted and in no line of the tables of mounts: a btrfs as `/dev/root`, or what was taken off its folder and is still in use.
fn unnamed(lines: &[&str], devices: &Devices<'_>, btrfs: &[Vec<PathBuf>]) -> Vec<String> {
    let mut users = Vec::new();
    let named: Vec<PathBuf> = lines.iter().filter_map(|line| btrfs_source(line)).collect();
    for members in btrfs.iter().filter(|members| !members.iter().any(|m| named.contains(m))) {
        if let Some((path, through)) = member_of(members, devices) {
            users.push(format!("{} is part of a mounted btrfs{through}", path.display()));
        }
    }
    let numbers: Vec<&str> = lines.iter().filter_map(|line| line.split(' ').nth(2)).collect();
    for (_, (path, through)) in devices.iter().filter(|(number, _)| !numbers.contains(&&***number))
    {
        if let Some(kind) = mounted_as(path) {
            users.push(format!("{} is a mounted {kind}{through}", path.display()));
        }
    }
    users
}

/// The first of these devices that is of a filesystem with these members.
fn member_of<'a, 'b>(
    members: &[PathBuf],
    devices: &'a Devices<'b>,
) -> Option<&'a (PathBuf, &'b str)> {
    devices.values().find(|(path, _)| members.contains(path))
}

/// The filesystem that a device is mounted as, as far as those tell which they are (`/sys/fs/ext4/sda2`).
fn mounted_as(device: &Path) -> Option<&'static str> {
    let name = device.strip_prefix("/dev").ok()?.to_string_lossy().replace('/', "!");
    ["ext4", "xfs", "f2fs"]
        .into_iter()
        .find(|kind| Path::new("/sys/fs").join(kind).join(&name).exists())
}

/// The devices of each btrfs that is mounted.
fn mounted_btrfs() -> Vec<Vec<PathBuf>> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let of_one = |filesystem: fs::DirEntry| {
        let dirs = entries(&filesystem.path().join("devices"));
        let dirs = dirs.filter_map(|entry| fs::canonicalize(entry.path()).ok());
        dirs.map(|dir| node_of(&dir)).collect()
    };
    entries(Path::new("/sys/fs/btrfs")).map(of_one).collect()
}

/// The device that a line of a table of mounts names for a btrfs, by its own node: it may be a link of udev's or of device mapper's, or
/// a node that somebody has made.
fn btrfs_source(line: &str) -> Option<PathBuf> {
    let (_, after) = line.split_once(" - ")?;
    let source = after.strip_prefix("btrfs ")?.split(' ').next()?;
    let path = PathBuf::from(unescaped(source));
    let number = is_of_kernel(&path).then(|| fs::metadata(&path).ok()).flatten();
    let dir = number.and_then(|meta| sysfs_dir(meta.rdev()));
    Some(dir.map_or(path, |dir| node_of(&dir)))
}

/// A disk file, or the file beneath a loop device, that is swapped to.
fn swap_file(place: &Place, swaps: &[PathBuf]) -> Vec<String> {
    let Ground::File(_, id) = &place.ground else { return Vec::new() };
    let is_it = |path: &&PathBuf| {
        // A file on a share is another one's business, and might be waited for.
        is_of_kernel(path) && fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == *id)
    };
    let found = swaps.iter().filter(is_it);
    found.map(|path| format!("{} is in use as swap", path.display())).collect()
}

/// What this system swaps to: devices and files, in the first column of `/proc/swaps`.
fn swaps() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let paths = text.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    paths.map(|path| PathBuf::from(unescaped(path))).collect()
}

/// Device numbers, each with the path of its node and the loop devices that it goes through.
type Devices<'a> = BTreeMap<String, (PathBuf, &'a str)>;

/// One line of `/proc/self/mountinfo`: `36 35 98:0 /root /mnt rw,noatime - ext4 /dev/sda1 rw,errors=continue` (proc(5)).
fn mount_of(
    line: &str,
    whose: &str,
    devices: &Devices<'_>,
    btrfs: &[Vec<PathBuf>],
    writers_only: bool,
) -> Option<String> {
    let fields: Vec<&str> = line.split(' ').collect();
    let separator = fields.iter().position(|f| *f == "-")?;
    let (number, target) = (fields.get(2)?, fields.get(4)?);
    let source = fields.get(separator + 2)?;
    let options = fields.get(separator + 3)?;
    // btrfs mounts have an anonymous device number: the source's name tells, and of several devices it is one.
    let by_name = || devices.values().find(|(path, _)| path == Path::new(source));
    let as_member = || {
        let device = btrfs_source(line)?;
        member_of(btrfs.iter().find(|members| members.contains(&device))?, devices)
    };
    let (device, through) = devices.get(*number).or_else(by_name).or_else(as_member)?;
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
        let mount_of = |line, writers_only| mount_of(line, " of y", &devices, &[], writers_only);
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
    fn a_file_that_is_swapped_to_is_in_use_by_any_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let [file, other, link] = ["swap", "other", "link"].map(|name| dir.path().join(name));
        fs::write(&file, "x").unwrap();
        fs::write(&other, "x").unwrap();
        fs::hard_link(&file, &link).unwrap();
        let users = |path: &Path| {
            let place = Place::of(path, &fs::metadata(path).unwrap()).unwrap();
            swap_file(&place, &[dir.path().join("gone"), file.clone()])
        };
        assert_eq!(users(&link), [format!("{} is in use as swap", file.display())]);
        assert!(users(&other).is_empty());
    }

    #[test]
    fn a_file_of_nobody_has_no_users() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(in_use(file.path(), false).unwrap().is_empty());
    }
}
