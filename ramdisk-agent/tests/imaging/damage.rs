//! Damaged images: refused, the frame named, and the target plainly not bootable.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use image_format::{FrameEntry, FrameKind, ImageReader};

use crate::agent::{agent, capture, try_restore};
use crate::disks::{dump, noise, noise_file};
use crate::round_trip::restored;
use crate::tools::status;

/// Whether firmware or a kernel would find anything to boot on a disk.
pub fn is_bootable(disk: &Path) -> bool {
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

/// The frames of an image.
fn frames(image: &Path) -> Vec<FrameEntry> {
    let reader = ImageReader::open(File::open(image).unwrap()).unwrap();
    reader.frames().map(Result::unwrap).collect()
}

/// Restores and verifies an image of which a frame is damaged: that frame is named, and nothing of it reaches the disk.
fn is_refused(bad: &Path, frame: &FrameEntry, target: &Path, noise_seed: u64) {
    let words = [&*format!("frame {} ", frame.index), "stored bytes do not match their hash"];
    agent(&["verify", bad.to_str().unwrap()]).refused("image_corrupt", &words);
    noise_file(target, fs::metadata(target).unwrap().len(), noise_seed);
    let file = File::open(target).unwrap();
    let span = || {
        let mut bytes = vec![0; frame.logical_len.min(8 << 20) as usize];
        file.read_exact_at(&mut bytes, frame.logical_offset).unwrap();
        bytes
    };
    let before = span();
    try_restore(bad, target, &[]).refused("image_corrupt", &words);
    assert!(!is_bootable(target));
    // The head and the tail of the disk are wiped before anything is written.
    if frame.index > 0 && frame.logical_offset > 64 << 20 {
        assert!(before == span(), "frame {} was written", frame.index);
    }
}

#[test]
fn a_frame_that_is_damaged_is_named_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let (bad, target) = (dir.path().join("bad.img.zst"), dir.path().join("t"));
    noise_file(&target, disk.len, 1);
    let good = fs::read(&image).unwrap();
    let all = frames(&image);
    for kind in [FrameKind::Data, FrameKind::Hole] {
        let of_kind: Vec<&FrameEntry> = all.iter().filter(|f| f.kind == kind).collect();
        for frame in [of_kind[0], of_kind[of_kind.len() / 2], of_kind[of_kind.len() - 1]] {
            // The magic number; a bit of zstd's frame header that zstd does not look at; the middle; zstd's checksum.
            let len = u64::from(frame.stored_len);
            for (at, flip) in [(0, 1), (4, 0x10), (len / 2, 0x80), (len - 1, 1)] {
                let mut bytes = good.clone();
                bytes[(frame.stored_offset + at) as usize] ^= flip;
                fs::write(&bad, bytes).unwrap();
                is_refused(&bad, frame, &target, 2);
            }
        }
    }
}

/// `IMPRINT_PAYLOAD_FLIPS` says how many bits.
#[test]
fn every_flipped_bit_of_a_captured_frame_is_noticed() {
    let flips = std::env::var("IMPRINT_PAYLOAD_FLIPS").map_or(200, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (_, image) = restored(dir.path());
    let mut bytes = fs::read(&image).unwrap();
    let all = frames(&image);
    let numbers = noise(flips * 16, 21);
    let mut numbers =
        numbers.chunks(8).map(|c| usize::try_from(u64::from_le_bytes(c.try_into().unwrap())));
    let mut below = |limit: usize| numbers.next().unwrap().unwrap() % limit;
    let payload: u64 = all.iter().map(|frame| u64::from(frame.stored_len)).sum();
    let mut stored = Vec::new();
    for flip in 0..flips {
        // One time any byte is as likely as another, the other time any frame: holes are short and many.
        let (frame, bit) = if flip % 2 == 0 {
            let mut at = below(payload as usize);
            let hit = all.iter().find(|frame| {
                let within = at < frame.stored_len as usize;
                at -= if within { 0 } else { frame.stored_len as usize };
                within
            });
            (hit.unwrap(), at * 8 + below(8))
        } else {
            let frame = &all[below(all.len())];
            (frame, below(frame.stored_len as usize * 8))
        };
        let at = frame.stored_offset as usize + bit / 8;
        bytes[at] ^= 1 << (bit % 8);
        let reader = ImageReader::open(bytes.as_slice()).unwrap();
        let error = reader.read_stored(frame, &mut stored).unwrap_err().to_string();
        assert!(error.contains(&format!("frame {} ", frame.index)), "bit {bit}: {error}");
        assert!(error.contains("stored bytes do not match their hash"), "bit {bit}: {error}");
        bytes[at] ^= 1 << (bit % 8);
    }
    // Every bit is as it was, or the errors above prove nothing.
    assert!(bytes == fs::read(&image).unwrap());
    all.iter().for_each(|frame| {
        let reader = ImageReader::open(bytes.as_slice()).unwrap();
        reader.read_stored(frame, &mut stored).unwrap();
    });
}

#[test]
fn a_frame_that_was_exchanged_for_another_is_named_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (source, image, bad, target) = (
        dir.path().join("s"),
        dir.path().join("a.img.zst"),
        dir.path().join("bad.img.zst"),
        dir.path().join("t"),
    );
    // Noise is stored as it is, so that frames are of the same length.
    noise_file(&source, 100 << 20, 3);
    capture(&source, &image, &[]);
    let all = frames(&image);
    let (one, two) = (&all[20], &all[21]);
    assert_eq!(one.stored_len, two.stored_len);
    let range = |f: &FrameEntry| {
        f.stored_offset as usize..(f.stored_offset + u64::from(f.stored_len)) as usize
    };
    let mut bytes = fs::read(&image).unwrap();
    bytes.copy_within(range(two), range(one).start);
    fs::write(&bad, bytes).unwrap();
    noise_file(&target, 100 << 20, 4);
    is_refused(&bad, one, &target, 5);
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
