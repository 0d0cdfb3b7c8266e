//! What the tests of all formats share.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::ErrorKind;
use image_format::ReadAt;
use ramdisk_agent::error::Error;
use ramdisk_agent::foreign::{self, ForeignImage, Limit, Source};
use ramdisk_agent::image::DiskImage;
use ramdisk_agent::progress::Progress;

use crate::agent::{Ran, agent};
use crate::disks::{noise, noise_file};

/// A disk with an MBR of one partition, some data, and much that is zero: `len` bytes, no filesystem.
pub fn small_disk(path: &Path, len: u64) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    let mut mbr = [0; 512];
    mbr[..440].copy_from_slice(&noise(440, 9));
    mbr[440..444].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    mbr[446 + 12..446 + 16]
        .copy_from_slice(&u32::try_from(len / 512 - 2048).unwrap().to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    file.write_all_at(&mbr, 0).unwrap();
    // Noise, text, and single sectors, also at the very end and across the spans' grid.
    file.write_all_at(&noise(300_000, 1), 1 << 20).unwrap();
    file.write_all_at("all work and no play ".repeat(20_000).as_bytes(), (2 << 20) + 5120).unwrap();
    for at in [(4 << 20) - 512, len / 2, len / 2 + 70_000, len - 512] {
        file.write_all_at(&noise(512, at), at).unwrap();
    }
}

/// `convert SOURCE TARGET --json …`.
pub fn convert(source: &Path, target: &Path, flags: &[&str]) -> Ran {
    let mut args = vec!["convert", source.to_str().unwrap(), target.to_str().unwrap(), "--json"];
    args.extend(flags);
    agent(&args)
}

/// Converts to a raw disk and compares it with the original; then restores onto a disk full of noise, and compares that.
pub fn same_both_ways(image: &Path, original: &Path, folder: &Path) {
    let raw = folder.join("converted.raw");
    let ran = convert(image, &raw, &[]);
    assert_eq!(ran.code, 0, "{}: {}", image.display(), ran.stderr);
    assert!(same(&raw, original), "{} converts to other bytes", image.display());
    fs::remove_file(&raw).unwrap();
    let target = folder.join("target");
    noise_file(&target, fs::metadata(original).unwrap().len(), 77);
    let summary = crate::agent::restore(image, &target, &[]);
    assert!(same(&target, original), "{} restores to other bytes: {summary:#}", image.display());
    fs::remove_file(&target).unwrap();
}

/// Whether two files hold the same bytes.
pub fn same(a: &Path, b: &Path) -> bool {
    let hash = |path: &Path| {
        blake3::Hasher::new().update_reader(File::open(path).unwrap()).unwrap().finalize()
    };
    hash(a) == hash(b)
}

/// Surveys bytes in memory as if they were a file of this name.
pub fn survey_bytes(name: &str, bytes: Vec<u8>, limit: u64) -> Result<ForeignImage, Error> {
    survey_source(name, Arc::new(bytes), limit)
}

pub fn survey_source(name: &str, file: Arc<dyn ReadAt>, limit: u64) -> Result<ForeignImage, Error> {
    let source = Source::new(vec![file]).unwrap();
    let limit = Limit { bytes: limit, reason: "the test allows no more".into() };
    let beside = |_: &str| panic!("no file beside it");
    foreign::survey(foreign::detect(source, name, &beside)?, limit, &Arc::new(Progress::default()))
}

/// Asserts that an image is refused as damaged at each of these lengths.
pub fn refused_when_cut(name: &str, whole: &[u8], lens: impl Iterator<Item = usize>) {
    for len in lens {
        let error = match survey_bytes(name, whole[..len].to_vec(), 1 << 30) {
            Ok(image) => panic!("{name} cut to {len} of {}: {}", whole.len(), image.disk_len()),
            Err(error) => error,
        };
        let kind = error.kind();
        // What is cut to nothing that is known is not called damaged.
        let fits = kind == ErrorKind::ImageCorrupt || len < 64 && kind == ErrorKind::Refused;
        assert!(fits, "{name} cut to {len} of {}: {}", whole.len(), error.chain());
    }
}

/// Lengths at which to cut: a spread of them, and all near the end.
pub fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..9).map(move |i| len * i / 9).chain(len.saturating_sub(9)..len)
}

/// A folder that is removed at the end, and a small disk in it.
pub fn folder_with_disk(len: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    small_disk(&disk, len);
    (dir, disk)
}
