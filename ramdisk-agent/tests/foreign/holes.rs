//! What `convert` writes into a folder for what a disk does not have.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::disks::noise;
use crate::support::{convert, same};
use crate::tools::run;

/// Off the grid of 4 KiB, so that the last sector is written for itself.
const LEN: u64 = (256 << 20) + 512;

/// A tmpfs; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(folder: &Path, mib: u32) -> Self {
        fs::create_dir(folder).unwrap();
        let size = format!("size={mib}m");
        run("mount", "mount", &["-t", "tmpfs", "-o", &size, "tmpfs", folder.to_str().unwrap()]);
        Self(folder.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("mount", "umount", &[self.0.to_str().unwrap()]);
    }
}

#[test]
fn holes_stay_holes_and_what_has_no_room_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    let file = File::create(&disk).unwrap();
    file.set_len(LEN).unwrap();
    for (at, len) in [(0, 512), (70 << 20, 100_000), (200 << 20, 4096)] {
        file.write_all_at(&noise(len, at + 1), at).unwrap();
    }
    let qcow2 = dir.path().join("disk.qcow2");
    let names = [disk.to_str().unwrap(), qcow2.to_str().unwrap()];
    run("qemu-utils", "qemu-img", &[&["convert", "-f", "raw", "-O", "qcow2"][..], &names].concat());

    // A disk of 256 MiB goes into 40 MiB, in place of what a dead run has left behind.
    let small = Small::new(&dir.path().join("small"), 40);
    let out = small.0.join("out.raw");
    fs::write(small.0.join("out.raw.partial"), noise(30 << 20, 7)).unwrap();
    convert(&qcow2, &out, &[]).json();
    assert!(same(&out, &disk));
    let taken = fs::metadata(&out).unwrap().blocks() * 512;
    assert!(taken <= 13 << 20, "{taken} bytes for three frames of 4 MiB");
    // An image of ours too, whose holes are holes again.
    let own = dir.path().join("own.img.zst");
    convert(&qcow2, &own, &[]).json();
    fs::remove_file(&out).unwrap();
    convert(&own, &out, &[]).json();
    assert!(same(&out, &disk) && fs::metadata(&out).unwrap().blocks() * 512 <= 13 << 20);
    fs::remove_file(&out).unwrap();

    file.write_all_at(&noise(60 << 20, 3), 100 << 20).unwrap();
    convert(&disk, &out, &[]).refused("no_space", &["are missing", "nothing was written"]);
    assert_eq!(fs::read_dir(&small.0).unwrap().count(), 0);
}
