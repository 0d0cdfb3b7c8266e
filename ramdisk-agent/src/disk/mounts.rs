//! Mount tables: whose they are, and which mounts something outside of the kernel answers for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::inventory::read_text;
use crate::error::{IoContext, Result};

/// Filesystems that something outside of the kernel answers for; `fuse.sshfs` is one of `fuse`.
const SERVED: [&str; 10] =
    ["fuse", "fuseblk", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs"];

/// Whether the kernel itself answers for what is at this path.
pub(super) fn is_of_kernel(path: &Path) -> bool {
    own_mounts().is_ok_and(|mounts| served_by(&mounts, path).is_none())
}

/// The mount that a path is on, if a server or a program answers for it: merely looking at a file there can take for ever, and no
/// disk's or other mount's file is there. `None`: on a filesystem of the kernel's own.
pub(super) fn served_by<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
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

/// A path of mountinfo or of swaps, which have spaces, tabs, newlines and backslashes as three octal digits.
pub(super) fn unescaped(text: &str) -> String {
    let octal = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    octal.iter().fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

pub(super) fn own_mounts() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").internal(|| "reading /proc/self/mountinfo".into())
}

/// The mounts of every mount namespace, ours first, and whose they are as the end of a phrase. Containers keep mounts that are
/// gone from ours, and the filesystem is in use as long as one of them does.
pub(super) fn mount_tables() -> Result<Vec<(String, String)>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
