//! Who uses a disk, as sysfs and procfs have it. Nothing is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::inventory::{SYS_BLOCK, read_text, sysfs_dir};
use crate::error::{IoContext, Result};

/// Loop devices over files in loop devices over files: more is nobody's.
const MAX_DEPTH: u32 = 4;

/// Filesystems that something outside of the kernel answers for; `fuse.sshfs` is one of `fuse`.
const SERVED: [&str; 9] = ["fuse", "fuseblk", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs"];

/// Who uses the disk, one of its partitions or the disk file: mounts, swap, LVM, md, and the same of loop devices over it. Empty if
/// nobody does. Each entry is a phrase such as `/dev/sda2 is mounted at /home`; read-only mounts are left out when `writers_only`
/// is set.
pub fn in_use(path: &Path, writers_only: bool) -> Result<Vec<String>> {
    users(path, writers_only, 0)
}

fn users(path: &Path, writers_only: bool, depth: u32) -> Result<Vec<String>> {
    let meta = fs::metadata(path).on_disk(|| format!("looking at {}", path.display()))?;
    let nodes = sysfs_dir(meta.rdev()).map(nodes).unwrap_or_default();
    let mut found = device_users(&nodes, writers_only)?;
    if depth < MAX_DEPTH {
        let mounts = own_mounts()?;
        let asked = |backing: &Path| {
            let served = served_by(&mounts, backing);
            served.is_none()
                || served == fs::canonicalize(path).ok().and_then(|path| served_by(&mounts, &path))
        };
        for (name, backing) in
            loops().filter(|(_, backing)| asked(backing) && is_beneath(&meta, &nodes, backing))
        {
            let backing = backing.display();
            let above = users(&Path::new("/dev").join(&name), writers_only, depth + 1)?;
            found.extend(above.into_iter().map(|user| format!("{user}; /dev/{name} is {backing}")));
        }
    }
    Ok(found)
}

/// Whether the kernel itself answers for what is at this path.
pub(super) fn is_of_kernel(path: &Path) -> bool {
    own_mounts().is_ok_and(|mounts| served_by(&mounts, path).is_none())
}

/// The sysfs folders of a device and of its partitions.
fn nodes(dir: PathBuf) -> Vec<PathBuf> {
    let children = fs::read_dir(&dir).into_iter().flatten().filter_map(|c| Some(c.ok()?.path()));
    let partitions = children.filter(|c| c.join("partition").exists()).collect();
    [vec![dir], partitions].concat()
}

/// Every loop device that has a file, with the path of that file.
fn loops() -> impl Iterator<Item = (String, PathBuf)> {
    fs::read_dir(SYS_BLOCK).into_iter().flatten().filter_map(|entry| {
        let entry = entry.ok()?;
        let backing = read_text(&entry.path().join("loop/backing_file"))?;
        Some((entry.file_name().into_string().ok()?, PathBuf::from(backing)))
    })
}

/// The mount that a path is on, if a server or a program answers for it: merely looking at a file there can take for ever, and no
/// disk's or other mount's file is there. `None`: on a filesystem of the kernel's own.
fn served_by<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let of_line = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let at = PathBuf::from(unescaped(before.split(' ').nth(4)?));
        path.starts_with(&at).then_some((at.as_os_str().len(), line, after.split(' ').next()?))
    };
    // Of those at one place, the last was mounted over the others.
    let (_, line, kind) = mounts.lines().filter_map(of_line).max_by_key(|(len, ..)| *len)?;
    let is_served = SERVED.iter().any(|name| {
        kind.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    is_served.then_some(line)
}

/// A path of mountinfo, which has spaces, tabs, newlines and backslashes as three octal digits.
fn unescaped(text: &str) -> String {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    octal.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn own_mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").internal(|| "reading /proc/self/mountinfo".into())
}

/// Whether a loop device's file is this file, this device, or one of its partitions.
fn is_beneath(meta: &fs::Metadata, nodes: &[PathBuf], backing: &Path) -> bool {
    let Ok(other) = fs::metadata(backing) else { return false };
    if nodes.is_empty() {
        return (other.dev(), other.ino()) == (meta.dev(), meta.ino());
    }
    sysfs_dir(other.rdev()).is_some_and(|dir| nodes.contains(&dir))
}

fn device_users(nodes: &[PathBuf], writers_only: bool) -> Result<Vec<String>> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let devices: BTreeMap<String, String> = nodes
        .iter()
        .filter_map(|node| {
            let name = node.file_name()?.to_str()?;
            Some((read_text(&node.join("dev"))?, format!("/dev/{name}")))
        })
        .collect();
    let mut users = Vec::new();
    for node in nodes {
        let name = node.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Ok(holders) = fs::read_dir(node.join("holders")) {
            for holder in holders.filter_map(std::result::Result::ok) {
                users.push(format!("/dev/{name} is held by {}", holder.file_name().display()));
            }
        }
    }
    for (whose, mounts) in mount_tables()? {
        let found = mounts.lines().filter_map(|line| mount_of(line, &devices, writers_only));
        users.extend(found.map(|user| format!("{user}{whose}")));
    }
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

/// The mounts of every mount namespace, ours first, and whose they are as the end of a phrase. Containers keep mounts that are
/// gone from ours, and the filesystem is in use as long as one of them does.
fn mount_tables() -> Result<Vec<(String, String)>> {
    let ours = own_mounts()?;
    let namespace = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut seen: BTreeSet<_> = namespace(Path::new("/proc/self")).into_iter().collect();
    let mut tables = vec![(String::new(), ours)];
    for process in fs::read_dir("/proc").into_iter().flatten().filter_map(|e| Some(e.ok()?.path()))
    {
        // Processes end meanwhile, and those of others are not to be seen without root.
        if namespace(&process).is_none_or(|namespace| !seen.insert(namespace)) {
            continue;
        }
        let Ok(mounts) = fs::read_to_string(process.join("mountinfo")) else { continue };
        let number = process.file_name().unwrap_or_default().display();
        let name = read_text(&process.join("comm")).unwrap_or_default();
        tables.push((format!(" in the mount namespace of process {number} ({name})"), mounts));
    }
    Ok(tables)
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
    fn files_that_a_program_answers_for_are_told_by_their_mount() {
        let mounts = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            21 20 0:50 / /a\\040b rw shared:3 - fuse.sshfs host: rw\n\
            22 20 0:51 / /a\\040b/local rw - tmpfs tmpfs rw\n\
            23 20 0:52 / /export/disk rw - fuse /dev/fuse rw";
        let served = |path: &str| served_by(mounts, Path::new(path)).map(|line| &line[..2]);
        assert_eq!(served("/a b/disk.img"), Some("21"));
        assert_eq!(served("/a bc/disk.img"), None);
        assert_eq!(served("/a b/local/disk.img"), None);
        assert_eq!(served("/export/disk"), Some("23"));
        assert_eq!(served("/dev/sda"), None);
    }

    #[test]
    fn a_file_of_nobody_has_no_users() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(in_use(file.path(), false).unwrap().is_empty());
    }
}
