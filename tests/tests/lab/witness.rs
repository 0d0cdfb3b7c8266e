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

/// The root filesystem's every file with owner, mode, times, links and extended attributes, as one hash.
fn files(disk: &Attached) -> String {
    let at = tempfile::tempdir().unwrap();
    run("mount", ["-o", "ro,noload", &disk.partition(ROOT), at.path().to_str().unwrap()]).unwrap();
    let mut tar = Command::new("bash");
    tar.arg("-c").arg(
        "set -o pipefail; tar -C \"$0\" --sort=name --numeric-owner --xattrs --acls --format=posix \
         --pax-option=delete=atime -cf - . | sha256sum",
    );
    let hash = output(tar.arg(at.path()));
    run("umount", [at.path()]).unwrap();
    hash.unwrap()
}

/// Checks a disk that was restored from the template's image.
pub fn check_restored(disk: &Path, template: &Path) {
    let verdict = output(Command::new("sgdisk").arg("-v").arg(disk)).unwrap();
    assert!(verdict.contains("No problems found"), "{verdict}");
    let (restored, original) = (Attached::new(disk), Attached::new(template));
    run("e2fsck", ["-fn", &restored.partition(ROOT)]).unwrap();
    run("fsck.vfat", ["-n", &restored.partition(ESP)]).unwrap();
    let identity = |disk: &Attached| -> Vec<String> {
        let value = |number, tag| {
            let mut blkid = Command::new("blkid");
            blkid.args(["-p", "-s", tag, "-o", "value", &disk.partition(number)]);
            output(&mut blkid).unwrap()
        };
        let tags = ["UUID", "TYPE", "PART_ENTRY_UUID", "PART_ENTRY_TYPE", "PART_ENTRY_OFFSET"];
        tags.iter().flat_map(|tag| [ESP, ROOT, 4].map(|n| value(n, tag))).collect()
    };
    assert_eq!(identity(&restored), identity(&original));
    let hash = files(&original);
    assert_eq!(hash.split_whitespace().next().unwrap().len(), 64);
    assert_eq!(files(&restored), hash);
}

/// Checks that stock zstd unpacks the image to the disk that was captured: same table, clean filesystems, same files.
pub fn check_unpacked(image: &Path, template: &Path, scratch: &Path) {
    let raw = scratch.join("unpacked.img");
    let args = ["-d", "-q", "-f", "--sparse", "-o"].map(std::ffi::OsStr::new);
    run("zstd", args.iter().copied().chain([raw.as_os_str(), image.as_os_str()])).unwrap();
    check_restored(&raw, template);
    std::fs::remove_file(raw).unwrap();
}
