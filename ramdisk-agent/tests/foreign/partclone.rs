//! partclone's images: what comes out is what partclone itself restores.

use std::fs::{self, File};
use std::path::Path;

use agent_api::ErrorKind;
use image_format::RunKind;
use ramdisk_agent::image::DiskImage;

use crate::agent::{agent, restore};
use crate::disks::{noise_file, plant};
use crate::support::{convert, cuts, refused_when_cut, same, survey_bytes};
use crate::tools::run;

const LEN: u64 = 40 << 20;
/// XFS takes no less.
const XFS_LEN: u64 = 320 << 20;

/// A filesystem with a few files, and the name of its partclone.
fn volume(folder: &Path, kind: &str) {
    let path = folder.join("volume");
    let _ = fs::remove_file(&path);
    File::create(&path).unwrap().set_len(if kind == "xfs" { XFS_LEN } else { LEN }).unwrap();
    let tree = folder.join("tree");
    if !tree.exists() {
        plant(&tree);
    }
    let (path, tree) = (path.to_str().unwrap(), tree.to_str().unwrap());
    match kind {
        "ext4" => run("e2fsprogs", "mkfs.ext4", &["-q", "-F", "-d", tree, path]),
        "vfat" => run("dosfstools", "mkfs.vfat", &["-F", "32", "-s", "1", path]),
        "ntfs" => run("ntfs-3g", "mkfs.ntfs", &["-q", "-F", "-f", path]),
        "xfs" => run("xfsprogs", "mkfs.xfs", &["-q", "-f", path]),
        _ => unreachable!(),
    };
}

fn shell(folder: &Path, command: &str) {
    run("partclone", "sh", &["-c", &format!("cd {} && {command}", folder.display())]);
}

/// Restores by us onto noise and by partclone onto zeros: wherever the image has something, the two are equal.
fn as_partclone_restores_it(folder: &Path, image: &str, plain: &str) {
    let (ours, theirs) = (folder.join("ours"), folder.join("theirs"));
    let len = fs::metadata(folder.join("volume")).unwrap().len();
    File::create(&theirs).unwrap().set_len(len).unwrap();
    shell(folder, &format!("partclone.restore -q -C -L log -s {plain} -O theirs 2> log2"));
    noise_file(&ours, len, 8);
    let restored = restore(&folder.join(image), &ours, &[]);
    assert_eq!(restored["disk_bytes"].as_u64().unwrap(), len);
    let bytes = (fs::read(&ours).unwrap(), fs::read(&theirs).unwrap());
    let known = survey_bytes(image, fs::read(folder.join(image)).unwrap(), LEN * 10).unwrap();
    for frame in known.frames().map(|frame| frame.unwrap()) {
        for (kind, range) in frame.runs.byte_ranges(frame.logical_len) {
            let base = frame.logical_offset as usize;
            let range = base + range.start as usize..base + range.end as usize;
            if kind != RunKind::Free {
                assert!(bytes.0[range.clone()] == bytes.1[range.clone()], "{image}: {range:?}");
            }
        }
    }
}

#[test]
fn every_filesystem_and_mode_restores_as_partclone_does() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, flags) in [
        ("ext4", "-a1"),
        ("ext4", "-a0"),
        ("ext4", "-a1 -k 64"),
        ("ext4", "-a1 -K"),
        ("vfat", "-a1"),
        ("ntfs", "-a1"),
        ("xfs", "-a1"),
    ] {
        volume(dir.path(), kind);
        shell(
            dir.path(),
            &format!("partclone.{kind} -q -c {flags} -L log -s volume -O image 2> log2 > log3"),
        );
        as_partclone_restores_it(dir.path(), "image", "image");
        if kind == "ext4" {
            run("e2fsprogs", "e2fsck", &["-fn", dir.path().join("ours").to_str().unwrap()]);
        }
        fs::remove_file(dir.path().join("image")).unwrap();
    }
}

#[test]
fn compressed_images_and_conversions() {
    let dir = tempfile::tempdir().unwrap();
    volume(dir.path(), "ext4");
    shell(
        dir.path(),
        "partclone.ext4 -q -c -L log -s volume -O plain 2> log2 > log3 && gzip -c plain > a.gz && zstd -q -c plain > a.zst",
    );
    for name in ["a.gz", "a.zst"] {
        as_partclone_restores_it(dir.path(), name, "plain");
    }
    // The map of partclone is taken over; what it leaves out is zero.
    let own = dir.path().join("own.img.zst");
    let converted = convert(&dir.path().join("a.zst"), &own, &[]).json();
    assert_eq!(converted["raw"].as_array().unwrap().len(), 0, "{converted:#}");
    let zeroed = dir.path().join("zeroed");
    File::create(&zeroed).unwrap().set_len(LEN).unwrap();
    shell(
        dir.path(),
        "partclone.restore -q -C -L log -s plain -O zeroed 2> log2; zstd -dc -q own.img.zst > unpacked",
    );
    assert!(same(&zeroed, &dir.path().join("unpacked")));
    let shown = agent(&["inspect", "--json", dir.path().join("a.gz").to_str().unwrap()]).json();
    assert_eq!(shown["manifest"]["volumes"][0]["filesystem"], "ext4", "{shown:#}");
    assert_eq!(shown["manifest"]["volumes"][0]["taken"], "map");
}

#[test]
fn what_is_cut_off_lengthened_or_changed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    volume(dir.path(), "ext4");
    shell(dir.path(), "partclone.ext4 -q -c -a1 -L log -s volume -O image 2> log2 > log3");
    let whole = fs::read(dir.path().join("image")).unwrap();
    refused_when_cut("image", &whole, cuts(whole.len()).filter(|len| *len > 64));
    let longer = [&whole[..], b"\0"].concat();
    assert_eq!(survey_bytes("image", longer, LEN).unwrap_err().kind(), ErrorKind::ImageCorrupt);
    for at in (0..whole.len()).step_by(whole.len() / 15).chain([36, 60, 84, 96, 100, 105, 106, 200])
    {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        assert!(survey_bytes("image", bytes, LEN).is_err(), "byte {at}");
    }
    // A claim of 1 TiB is refused by its size alone.
    let error = survey_bytes("image", whole.clone(), LEN - 512).unwrap_err();
    assert!(error.chain().contains("the test allows no more"), "{}", error.chain());
}

/// An image of format 0001 of this volume, with the blocks that are not zero: no program writes them any more.
fn format_1(volume: &[u8]) -> Vec<u8> {
    let block = 4096;
    let used: Vec<bool> = volume.chunks(block).map(|b| b.iter().any(|byte| *byte != 0)).collect();
    let mut image = b"partclone-image".to_vec();
    image.extend(b"EXTFS\0\0\0\0\0\0\0\0\0\0");
    image.extend(b"0001\0\0");
    image.extend((block as u32).to_le_bytes());
    for number in [volume.len(), used.len(), used.iter().filter(|used| **used).count()] {
        image.extend((number as u64).to_le_bytes());
    }
    image.resize(4160, 0);
    image.extend(used.iter().map(|used| u8::from(*used)));
    image.extend(b"BiTmAgIc");
    let mut crc = u32::MAX;
    for bytes in volume.chunks(block).zip(&used).filter(|(_, used)| **used).map(|(bytes, _)| bytes)
    {
        // The first byte, as often as there are bytes.
        for _ in 0..block {
            crc ^= u32::from(bytes[0]);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
            }
        }
        image.extend(bytes);
        image.extend(crc.to_le_bytes());
    }
    image
}

#[test]
fn format_1_restores_as_partclone_does() {
    let dir = tempfile::tempdir().unwrap();
    volume(dir.path(), "ext4");
    let image = format_1(&fs::read(dir.path().join("volume")).unwrap());
    fs::write(dir.path().join("image"), &image).unwrap();
    as_partclone_restores_it(dir.path(), "image", "image");
    for (at, what) in
        [(4160 + 3000, "bitmap byte that becomes another number"), (image.len() - 2, "checksum")]
    {
        let mut bytes = image.clone();
        bytes[at] ^= 0xFF;
        assert!(survey_bytes("image", bytes, LEN).is_err(), "{what}");
    }
    refused_when_cut("image", &image, cuts(image.len()).filter(|len| *len > 64));
}
