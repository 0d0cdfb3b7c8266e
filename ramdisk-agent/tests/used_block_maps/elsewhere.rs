//! Filesystems of which a part is on another device: the journal of ext, the real-time files of XFS.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ramdisk_agent::fs::{Clean, FsKind, Taken, VolumeMap};

use crate::device::Device;
use crate::noise::Noise;
use crate::oracle::{expect_map, fill_free, look};
use crate::tools::{e2fs, run};

fn volume(folder: &Path, name: &str, len: u64) -> (PathBuf, Device) {
    let volume = folder.join(name);
    File::create(&volume).unwrap().set_len(len).unwrap();
    let device = Device::new(&volume, 512);
    (volume, device)
}

fn reason(map: &VolumeMap) -> &str {
    match &map.taken {
        Taken::Raw { reason } => reason,
        Taken::Map => panic!("it was mapped: {map:?}"),
    }
}

#[test]
fn ext_with_its_journal_on_another_device() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, journal_device) = volume(folder.path(), "journal", 8 << 20);
    let (main, main_device) = volume(folder.path(), "main", 40 << 20);
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let mut noise = Noise::new(80);
    fs::write(source.join("file"), noise.bytes(300_000)).unwrap();
    let journal_option = format!("device={}", journal_device.path());
    let source = source.to_str().unwrap();
    for options in ["metadata_csum", "^metadata_csum"] {
        // Made anew, as it belongs to one filesystem only.
        e2fs("mke2fs", &["-q", "-F", "-b", "4096", "-O", "journal_dev", journal_device.path()]);
        let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", options, "-J", &journal_option];
        e2fs("mke2fs", &[&args[..], &["-d", source, main_device.path()]].concat());
        let map = expect_map(&main, FsKind::Ext4, options);
        fill_free(&main, &map, &mut noise);
        e2fs("e2fsck", &["-fn", "-j", journal_device.path(), main_device.path()]);

        e2fs("debugfs", &["-w", "-R", "feature needs_recovery", main_device.path()]);
        match look(&main).clean {
            Clean::NotClean { reason } => {
                assert!(reason.contains("the journal is on another device"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    let map = look(&journal);
    assert_eq!(reason(&map), "it is the journal of another filesystem");
    assert_eq!(map.used.total_bytes(), 8 << 20);
}

#[test]
fn xfs_with_a_real_time_device() {
    let folder = tempfile::tempdir().unwrap();
    let (main, main_device) = volume(folder.path(), "main", 400 << 20);
    let (real_time, real_time_device) = volume(folder.path(), "real-time", 64 << 20);
    let option = format!("rtdev={}", real_time_device.path());
    run("xfsprogs", "mkfs.xfs", &["-q", "-f", "-r", &option, main_device.path()]);
    let map = look(&main);
    assert_eq!(map.kind, FsKind::Xfs);
    assert!(reason(&map).contains("on a real-time device"), "{map:?}");
    // It has no marks of its own.
    let map = look(&real_time);
    assert_eq!((map.kind, reason(&map)), (FsKind::Unknown, "no known filesystem"));
    assert_eq!(map.used.total_bytes(), 64 << 20);
}
