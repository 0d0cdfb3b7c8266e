//! What other people's tools say of a restored disk.

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::command::{output, run};

/// Number of the ESP and of the root among the template's partitions.
const ESP: u32 = 2;
const ROOT: u32 = 3;

/// A loop device over a disk's file, read-only, with its partitions.
struct Attached(PathBuf);

impl Attached {
    fn new(disk: &Path) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--read-only"]).arg(disk);
        let attached = Self(output(&mut losetup).unwrap().trim().into());
        run("partx", ["--update".as_ref(), attached.0.as_os_str()]).unwrap();
        attached
    }

    fn partition(&self, number: u32) -> String {
        format!("{}p{number}", self.0.display())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = run("partx", ["--delete".as_ref(), self.0.as_os_str()]);
        let _ = run("losetup", ["--detach".as_ref(), self.0.as_os_str()]);
    }
}

/// All files, or those that [`check_changed`] expects to be as they were.
const ALL: &str = ".";
const UNCHANGED: &str = "--anchored --exclude=./etc --exclude=./var/lib/dbus . \
    etc/!(hostname|hosts|issue|machine-id)";

/// Looks into a disk's root filesystem.
fn with_root<T>(disk: &Attached, look: impl FnOnce(&Path) -> T) -> T {
    let at = tempfile::tempdir().unwrap();
    run("mount", ["-o", "ro,noload", &disk.partition(ROOT), at.path().to_str().unwrap()]).unwrap();
    let seen = look(at.path());
    run("umount", [at.path()]).unwrap();
    seen
}

/// The root filesystem's files with owner, mode, times, links and extended attributes, as one hash.
fn files(disk: &Attached, which: &str) -> String {
    let mut tar = Command::new("bash");
    tar.args(["-O", "extglob", "-O", "dotglob", "-c"]).arg(format!(
        "set -o pipefail; cd \"$0\" && tar --sort=name --numeric-owner --xattrs --acls --format=posix \
         --pax-option=delete=atime -cf - {which} | sha256sum",
    ));
    with_root(disk, |root| output(tar.arg(root))).unwrap()
}

/// A sound disk, and the template.
fn both(disk: &Path, template: &Path) -> (Attached, Attached) {
    let verdict = output(Command::new("sgdisk").arg("-v").arg(disk)).unwrap();
    assert!(verdict.contains("No problems found"), "{verdict}");
    let (restored, original) = (Attached::new(disk), Attached::new(template));
    run("e2fsck", ["-fn", &restored.partition(ROOT)]).unwrap();
    run("fsck.vfat", ["-n", &restored.partition(ESP)]).unwrap();
    (restored, original)
}

/// What blkid says of ESP, root and swap.
fn values(disk: &Attached, tags: &[&str]) -> Vec<String> {
    let value = |number, tag| {
        let mut blkid = Command::new("blkid");
        blkid.args(["-p", "-s", tag, "-o", "value", &disk.partition(number)]);
        output(&mut blkid).unwrap()
    };
    tags.iter().flat_map(|tag| [ESP, ROOT, 4].map(|n| value(n, tag))).collect()
}

fn have_same_files(restored: &Attached, original: &Attached, which: &str) {
    let hash = files(original, which);
    assert_eq!(hash.split_whitespace().next().unwrap().len(), 64);
    assert_eq!(files(restored, which), hash);
}

/// Checks a disk that was restored from the template's image.
pub fn check_restored(disk: &Path, template: &Path) {
    let (restored, original) = both(disk, template);
    let tags = ["UUID", "TYPE", "PART_ENTRY_UUID", "PART_ENTRY_TYPE", "PART_ENTRY_OFFSET"];
    assert_eq!(values(&restored, &tags), values(&original, &tags));
    have_same_files(&restored, &original, ALL);
}

/// The size of a disk's root filesystem as `df` tells it, in MiB.
pub fn root_mib(disk: &Path) -> u64 {
    let size = with_root(&Attached::new(disk), |root| {
        output(Command::new("df").args(["--output=size", "-BM"]).arg(root)).unwrap()
    });
    size.lines().last().unwrap().trim().trim_end_matches('M').parse().unwrap()
}

/// Checks one with a root that grew, swap behind it, new identities of its partitions and changed files.
pub fn check_changed(disk: &Path, template: &Path) {
    let (restored, original) = both(disk, template);
    let tags = ["UUID", "TYPE", "PART_ENTRY_TYPE"];
    assert_eq!(values(&restored, &tags), values(&original, &tags));
    let [new, old] = [&restored, &original].map(|disk| values(disk, &["PART_ENTRY_UUID"]));
    assert!(new.iter().all(|id| !id.is_empty() && !old.contains(id)), "{new:?} {old:?}");
    have_same_files(&restored, &original, UNCHANGED);
    // Empty: systemd makes one when the system starts.
    let machine_id = with_root(&restored, |root| std::fs::read(root.join("etc/machine-id")));
    assert_eq!(machine_id.unwrap(), b"");
}

/// Checks that stock zstd unpacks the image to the disk that was captured: same table, clean filesystems, same files.
pub fn check_unpacked(image: &Path, template: &Path, scratch: &Path) {
    let raw = scratch.join("unpacked.img");
    let args = ["-d", "-q", "-f", "--sparse", "-o"].map(std::ffi::OsStr::new);
    run("zstd", args.iter().copied().chain([raw.as_os_str(), image.as_os_str()])).unwrap();
    check_restored(&raw, template);
    std::fs::remove_file(raw).unwrap();
}
