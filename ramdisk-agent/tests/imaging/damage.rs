//! Damaged images: refused, the frame named, and the target plainly not bootable.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::agent::try_restore;
use crate::disks::{dump, noise, noise_file};
use crate::round_trip::restored;
use crate::tools::status;

/// Whether firmware or a kernel would find anything to boot on a disk.
fn is_bootable(disk: &Path) -> bool {
    let mut head = [0; 1024];
    File::open(disk).unwrap().read_exact_at(&mut head, 0).unwrap();
    let text = disk.to_str().unwrap();
    let kernel_sees = status("util-linux", "blkid", &["-p", text]).status.code() == Some(0);
    head[510..512] == [0x55, 0xAA] || &head[512..520] == b"EFI PART" || kernel_sees
}

#[test]
fn a_flipped_byte_anywhere_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let good = fs::read(&image).unwrap();
    let (bad, target) = (dir.path().join("bad.img.zst"), dir.path().join("t"));
    noise_file(&target, disk.len, 1);
    let places = noise(40 * 8, 11);
    let random = places.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap()) as usize);
    let ends = [0, 5, 100, good.len() - 1, good.len() - 9, good.len() - 40];
    for at in random.map(|n| n % good.len()).chain(ends) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&bad, bytes).unwrap();
        let ran = try_restore(&bad, &target, &[]);
        ran.refused("image_corrupt", &[]);
        assert!(!is_bootable(&target), "byte {at} flipped: {}", ran.stderr);
    }
}

#[test]
fn a_frame_that_is_damaged_is_named_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    noise_file(&target, disk.len, 1);
    // A little behind the opening frame lies the first data frame.
    let file = File::options().write(true).read(true).open(&image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], 5000).unwrap();
    try_restore(&image, &target, &[]).refused("image_corrupt", &["frame"]);
    assert!(!is_bootable(&target));
}

#[test]
fn truncations_are_refused_before_the_first_write() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let len = fs::metadata(&image).unwrap().len();
    let target = dir.path().join("t");
    noise_file(&target, disk.len, 1);
    let before = blake3::hash(&fs::read(&target).unwrap());
    for cut in [1, 9, 17, 100, 5000, len / 2, len - 1, len] {
        File::options().write(true).open(&image).unwrap().set_len(len - cut).unwrap();
        try_restore(&image, &target, &[]).refused("image_corrupt", &[]);
    }
    assert_eq!(blake3::hash(&fs::read(&target).unwrap()), before);
}

#[test]
fn an_aborted_restore_is_made_good_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    noise_file(&target, disk.len, 1);
    let bad = dir.path().join("bad.img.zst");
    let mut bytes = fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bad, bytes).unwrap();
    try_restore(&bad, &target, &[]).refused("image_corrupt", &[]);
    assert!(!is_bootable(&target));
    crate::agent::restore(&image, &target, &[]);
    assert_eq!(dump(&target), dump(&disk.path));
}
