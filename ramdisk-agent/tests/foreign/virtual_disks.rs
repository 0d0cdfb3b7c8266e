//! qcow2 and VMDK, as qemu-img makes them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use agent_api::ErrorKind;
use ramdisk_agent::image::DiskImage;

use crate::agent::{capture, try_restore};
use crate::disks::{noise, system};
use crate::support::{
    convert, cuts, folder_with_disk, refused_when_cut, same, same_both_ways, survey_bytes,
};
use crate::tools::{run, status};

const LEN: u64 = 9 << 20;

/// Options of `qemu-img convert`, and whether the file can be surveyed alone.
const VARIANTS: [&str; 12] = [
    "-O qcow2",
    "-O qcow2 -o compat=0.10",
    "-O qcow2 -c",
    "-O qcow2 -c -o compression_type=zstd",
    "-O qcow2 -o cluster_size=512",
    "-O qcow2 -c -o cluster_size=4k",
    "-O qcow2 -c -o cluster_size=2M",
    "-O qcow2 -o extended_l2=on,cluster_size=128k",
    "-O qcow2 -o preallocation=metadata",
    "-O qcow2 -o lazy_refcounts=on",
    "-O vmdk",
    "-O vmdk -o subformat=streamOptimized",
];

fn qemu_img(folder: &Path, command: &str) {
    let command = format!("cd {} && qemu-img {command}", folder.display());
    // For LUKS it measures how fast it derives keys, and gives up where the processor's time seems to stand still.
    for _ in 0..9 {
        let output = status("qemu-utils", "sh", &["-c", &command]);
        if !String::from_utf8_lossy(&output.stderr).contains("accurate CPU usage") {
            assert!(output.status.success(), "{command}: {output:?}");
            return;
        }
    }
    run("qemu-utils", "sh", &["-c", &command]);
}

#[test]
fn every_variant_comes_out_as_it_went_in() {
    let (dir, disk) = folder_with_disk(LEN);
    for variant in VARIANTS {
        qemu_img(dir.path(), &format!("convert -q -f raw {variant} disk.raw a"));
        same_both_ways(&dir.path().join("a"), &disk, dir.path());
        let whole = fs::read(dir.path().join("a")).unwrap();
        let root = survey_bytes("a", whole.clone(), LEN).unwrap().root();
        // What is cut off behind the last cluster in use changes nothing; everything else is noticed.
        for len in cuts(whole.len()).step_by(3) {
            if let Ok(image) = survey_bytes("a", whole[..len].to_vec(), LEN) {
                let cut = image.root() == root && len + (2 << 20) > whole.len();
                assert!(cut, "{variant} cut to {len} of {}", whole.len());
            }
        }
        refused_when_cut("a", &whole, (1..4).map(|n| n * whole.len() / 5));
    }
}

#[test]
fn a_disk_of_several_files_is_read_by_its_descriptor() {
    let (dir, disk) = folder_with_disk(LEN);
    for format in ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
        qemu_img(
            dir.path(),
            &format!("convert -q -f raw -O vmdk -o subformat={format} disk.raw a.vmdk"),
        );
        same_both_ways(&dir.path().join("a.vmdk"), &disk, dir.path());
    }
    let flat = dir.path().join("a-flat.vmdk");
    File::options().write(true).open(&flat).unwrap().set_len(LEN - 512).unwrap();
    qemu_img(dir.path(), "create -q -f vmdk -o subformat=monolithicFlat b.vmdk 8M");
    let short = dir.path().join("b-flat.vmdk");
    File::options().write(true).open(&short).unwrap().set_len((8 << 20) - 512).unwrap();
    let out = dir.path().join("out.raw");
    convert(&dir.path().join("b.vmdk"), &out, &[])
        .refused("image_corrupt", &["b-flat.vmdk", "truncated"]);
    fs::remove_file(&short).unwrap();
    convert(&dir.path().join("b.vmdk"), &out, &[]).refused("not_found", &["b-flat.vmdk"]);
}

#[test]
fn a_file_that_qemu_has_written_to_is_read() {
    let (dir, disk) = folder_with_disk(LEN);
    qemu_img(dir.path(), "convert -q -f raw -O qcow2 disk.raw a");
    let script = "qemu-io -f qcow2 -c 'write -P 7 1M 300k' -c 'write -z 3M 1M' -c 'discard 5M 1M' -c 'write -P 9 8M 4k' a > /dev/null; \
                  qemu-img snapshot -c one a; qemu-io -f qcow2 -c 'write -P 5 2M 64k' a > /dev/null; rm disk.raw; \
                  qemu-img convert -f qcow2 -O raw a disk.raw";
    run("qemu-utils", "sh", &["-c", &format!("cd {} && {script}", dir.path().display())]);
    same_both_ways(&dir.path().join("a"), &disk, dir.path());
}

#[test]
fn what_needs_more_than_its_own_file_is_refused() {
    let (dir, _) = folder_with_disk(LEN);
    let target = dir.path().join("target");
    fs::write(&target, noise(LEN as usize, 1)).unwrap();
    for (command, word) in [
        ("create -q -f qcow2 -b disk.raw -F raw a", "backing file"),
        ("create -q -f qcow2 -o data_file=data.raw,data_file_raw=on a 9M", "another file"),
        (
            "create -q -f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 a 9M",
            "encrypted",
        ),
        ("create -q -f vmdk -b base.vmdk -F vmdk a", "another image"),
    ] {
        if command.contains("base.vmdk") {
            qemu_img(dir.path(), "convert -q -f raw -O vmdk disk.raw base.vmdk");
        }
        qemu_img(dir.path(), command);
        try_restore(&dir.path().join("a"), &target, &[]).refused("refused", &[word]);
        fs::remove_file(dir.path().join("a")).unwrap();
    }
    assert!(fs::read(&target).unwrap() == noise(LEN as usize, 1));
}

#[test]
fn headers_that_lie_are_refused_before_anything_is_made_of_them() {
    let (dir, _) = folder_with_disk(LEN);
    qemu_img(dir.path(), "create -q -f qcow2 huge 64T");
    qemu_img(dir.path(), "create -q -f qcow2 q 9M");
    let whole = fs::read(dir.path().join("q")).unwrap();
    let change = |at: usize, bytes: &[u8]| {
        let mut changed = whole.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        survey_bytes("q", changed, LEN).unwrap_err()
    };
    for (at, bytes, kind) in [
        (4, &[0, 0, 0, 9][..], ErrorKind::Refused),
        (20, &[0, 0, 0, 40], ErrorKind::ImageCorrupt),
        (24, &[0, 0, 4, 0, 0, 0, 0, 0], ErrorKind::ImageCorrupt),
        (24, &[0xFF; 8], ErrorKind::ImageCorrupt),
        (40, &[0xFF; 8], ErrorKind::ImageCorrupt),
        (72, &[0, 0, 0, 0, 0, 0, 0, 2], ErrorKind::Refused),
        (72, &[0, 0, 0, 0, 0, 0, 0x80, 0], ErrorKind::Refused),
    ] {
        let error = change(at, bytes);
        assert_eq!(error.kind(), kind, "{at}: {}", error.chain());
    }
    // Sound, but larger than there is room for: nothing is walked.
    let target = dir.path().join("target");
    File::create(&target).unwrap().set_len(LEN).unwrap();
    try_restore(&dir.path().join("huge"), &target, &[])
        .refused("refused", &["64.00 TiB", "has no more"]);
}

#[test]
fn filesystems_in_a_qcow2_are_mapped() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    // Garbage in free space, which a map leaves out.
    let file = File::options().write(true).open(&disk.path).unwrap();
    file.write_all_at(&noise(4096, 3), disk.root.start + disk.root.len - (1 << 20)).unwrap();
    qemu_img(dir.path(), &format!("convert -q -f raw -O qcow2 -c {} a.qcow2", disk.path.display()));
    let (own, direct) = (dir.path().join("own.img.zst"), dir.path().join("direct.img.zst"));
    let converted = convert(&dir.path().join("a.qcow2"), &own, &[]).json();
    let captured = capture(&disk.path, &direct, &[]);
    assert_eq!(converted["raw"].as_array().unwrap().len(), 0);
    assert_eq!(converted["data_bytes"], captured["data_bytes"]);
    let unpack = format!(
        "cd {} && zstd -dc -q own.img.zst > own && zstd -dc -q direct.img.zst > direct",
        dir.path().display()
    );
    run("zstd", "sh", &["-c", &unpack]);
    assert!(same(&dir.path().join("own"), &dir.path().join("direct")));
}
