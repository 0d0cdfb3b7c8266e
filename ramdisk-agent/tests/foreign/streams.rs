//! gzip, xz, bzip2 and zstd streams, and raw disks.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agent_api::ErrorKind;
use image_format::{FrameKind, ReadAt};
use ramdisk_agent::image::DiskImage;

use crate::agent::{agent, capture, peak, restore, try_restore};
use crate::device::Device;
use crate::disks::{dump, identity, judge, noise, noise_file, system, take};
use crate::support::{
    convert, cuts, folder_with_disk, refused_when_cut, same, same_both_ways, survey_bytes,
    survey_source,
};
use crate::tools::run;

const LEN: u64 = 19 << 20;

/// How each tool makes a stream out of `disk`, several ones behind one another included.
const MAKERS: [(&str, &str, &str); 11] = [
    ("gzip", "a.gz", "gzip -c disk.raw > a.gz"),
    ("pigz", "b.gz", "pigz -c -b 128 disk.raw > b.gz"),
    (
        "gzip",
        "c.gz",
        "(head -c 5000000 disk.raw | gzip -1; tail -c +5000001 disk.raw | gzip) > c.gz",
    ),
    ("xz-utils", "a.xz", "xz -0 -c disk.raw > a.xz"),
    ("xz-utils", "b.xz", "xz -1 -T2 --block-size=1MiB -c disk.raw > b.xz"),
    (
        "xz-utils",
        "c.xz",
        "(head -c 9MB disk.raw | xz -0; head -c 8 /dev/zero; tail -c +9000001 disk.raw | xz -0 -C crc32) > c.xz",
    ),
    ("bzip2", "a.bz2", "bzip2 -c disk.raw > a.bz2"),
    ("bzip2", "c.bz2", "(head -c 9MB disk.raw | bzip2; tail -c +9000001 disk.raw | bzip2) > c.bz2"),
    ("zstd", "a.zst", "zstd -q -c disk.raw > a.zst"),
    ("zstd", "b.zst", "zstd -q --long=27 --no-check -c < disk.raw > b.zst"),
    (
        "zstd",
        "c.zst",
        "(head -c 9MB disk.raw | zstd -q; tail -c +9000001 disk.raw | zstd -q -9) > c.zst",
    ),
];

fn make(package: &str, folder: &Path, command: &str) {
    let command = format!("cd {} && {command}", folder.display());
    run(package, "sh", &["-c", &command]);
}

#[test]
fn every_tools_streams_come_out_as_they_went_in() {
    let (dir, disk) = folder_with_disk(LEN);
    for (package, name, command) in MAKERS {
        make(package, dir.path(), command);
        same_both_ways(&dir.path().join(name), &disk, dir.path());
    }
    same_both_ways(&disk, &disk, dir.path());
}

#[test]
fn what_is_cut_off_lengthened_or_changed_is_refused() {
    let len = 4 << 20;
    let (dir, _) = folder_with_disk(len);
    for (package, name, command) in MAKERS {
        // The places where streams are joined, moved into the smaller disk.
        make(
            package,
            dir.path(),
            &command.replace("9MB", "2MB").replace("9000001", "2000001").replace("5000", "1000"),
        );
        let whole = fs::read(dir.path().join(name)).unwrap();
        let root = survey_bytes(name, whole.clone(), len).unwrap().root();
        // zstd's and bzip2's decoders do not tell one from the other.
        let tells = name.ends_with(".gz") || name.ends_with(".xz");
        // A cut between two members leaves a sound stream, of a disk that is too short to be one.
        refused_when_cut(name, &whole, cuts(whole.len()));
        for garbage in
            [&b"x"[..], &[0; 511], &noise(5000, 3), b"\x1f\x8b", b"BZh9", b"\x28\xb5\x2f\xfd"]
        {
            let error = survey_bytes(name, [&whole, garbage].concat(), len).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ImageCorrupt, "{name}: {}", error.chain());
            let told = error.chain().contains("something stands behind");
            assert!(told, "{name}: {}", error.chain());
            assert!(!tells || !error.chain().contains("cut off"), "{name}: {}", error.chain());
        }
        for len in [whole.len() - 1, whole.len() / 2, whole.len() - 5].into_iter().filter(|_| tells)
        {
            let chain = survey_bytes(name, whole[..len].to_vec(), 4 << 20).unwrap_err().chain();
            assert!(chain.contains("stream is cut off"), "{name} cut to {len}: {chain}");
            assert!(!chain.contains("behind"), "{name} cut to {len}: {chain}");
        }
        // zstd without its checksum has nothing to tell by.
        let checked = name != "b.zst";
        for at in (0..whole.len()).step_by(whole.len() / 12).filter(|_| checked) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            // Times, names and operating systems in headers mean nothing.
            if let Ok(image) = survey_bytes(name, bytes, len) {
                assert_eq!(image.root(), root, "{name}: byte {at}");
            }
        }
    }
}

#[test]
fn a_bomb_ends_at_the_targets_size_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    noise_file(&target, 8 << 20, 1);
    let before = fs::read(&target).unwrap();
    for (package, name, command) in [
        ("gzip", "bomb.gz", "head -c 100M /dev/zero | gzip -1 > bomb.gz"),
        ("zstd", "bomb.zst", "truncate -s 1025M zeros; zstd -q -c zeros > bomb.zst; rm zeros"),
        ("xz-utils", "bomb.xz", "head -c 100M /dev/zero | xz -0 > bomb.xz"),
        ("bzip2", "bomb.bz2", "head -c 100M /dev/zero | bzip2 > bomb.bz2"),
    ] {
        make(package, dir.path(), command);
        let bomb = dir.path().join(name);
        try_restore(&bomb, &target, &[])
            .refused("refused", &["has no more", "nothing was written"]);
        assert!(fs::read(&target).unwrap() == before);
    }
    let out = dir.path().join("out.raw");
    convert(&dir.path().join("bomb.zst"), &out, &["--max-size", "1"])
        .refused("refused", &["--max-size allows no more"]);
    assert!(!out.exists() && !dir.path().join("out.raw.partial").exists());
}

#[test]
fn a_window_beyond_any_use_is_refused() {
    let (dir, _) = folder_with_disk(5 << 20);
    // By the first frame's header, by the length of its only segment, and by what the decoder meets in a later frame.
    for (package, command, words) in [
        ("zstd", "zstd -q --ultra -1 --long=30 -c < disk.raw > w", "its window is 1.00 GiB"),
        (
            "zstd",
            "truncate -s 200M zeros; zstd -q -1 --long=28 -c zeros > w; rm zeros",
            "its window is 200.00 MiB",
        ),
        (
            "zstd",
            "(zstd -q -c disk.raw; zstd -q -1 --long=28 -c < disk.raw) > w",
            "its window is larger",
        ),
        ("zstd", "zstd -q --ultra -1 --long=28 -c < disk.raw > w", "`zstd --long=27`"),
        ("xz-utils", "xz -0 --lzma2=preset=0,dict=512MiB -c < disk.raw > w", "`xz -9`"),
    ] {
        make(package, dir.path(), command);
        let bytes = fs::read(dir.path().join("w")).unwrap();
        let error = survey_bytes("w", bytes, LEN).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{command}: {}", error.chain());
        assert!(error.chain().contains(words), "{command}: {}", error.chain());
    }
}

#[test]
fn the_largest_window_leaves_room_for_little_else() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, target) = (dir.path().join("disk.raw"), dir.path().join("target"));
    noise_file(&disk, 160 << 20, 5);
    make("zstd", dir.path(), "zstd -q -1 --long=27 -c < disk.raw > w.zst");
    let image = dir.path().join("w.zst");
    let image = image.to_str().unwrap();
    File::create(&target).unwrap().set_len(160 << 20).unwrap();
    let target = target.to_str().unwrap();
    let made = ["made.img.zst", "made.raw", "made.gz"].map(|name| dir.path().join(name));
    let [ours, raw, gzip] = made.each_ref().map(|path| path.to_str().unwrap());
    for args in [
        &["verify", "--deep", image][..],
        &["restore", "--yes", image, target],
        &["convert", image, ours],
        &["convert", image, raw],
        &["convert", image, gzip],
    ] {
        let peak = peak(args);
        println!("{args:?}: {peak} bytes");
        assert!(peak > 128 << 20, "{args:?}: {peak} bytes: without the window?");
        // What docs/foreign-images.md promises.
        let most = if args[0] == "convert" { 210_000_000 } else { 200_000_000 };
        assert!(peak < most, "{args:?}: {peak} bytes");
    }
    assert!(same(&made[1], &disk));
}

#[test]
fn what_is_no_disk_is_named() {
    let (dir, disk) = folder_with_disk(5 << 20);
    let raw = fs::read(&disk).unwrap();
    for (name, bytes, words) in [
        ("odd", raw[..raw.len() - 1].to_vec(), "whole number of sectors"),
        ("empty", Vec::new(), "whole number of sectors"),
        ("renamed.gz", raw.clone(), "does not begin as one"),
        ("a.zip", [b"PK\x03\x04", &raw[4..]].concat(), "a zip archive"),
        ("a.e01", [b"EVF\x09\x0d\x0a\xff\0", &raw[8..]].concat(), "ewfexport"),
        ("a.simg", [b"\x3a\xff\x26\xed", &raw[4..]].concat(), "simg2img"),
    ] {
        let error = survey_bytes(name, bytes, LEN).unwrap_err();
        assert!(error.chain().contains(words), "{name}: {}", error.chain());
    }
    make("gzip", dir.path(), "gzip -c disk.raw | gzip > twice.gz");
    let error = survey_bytes("twice.gz", fs::read(dir.path().join("twice.gz")).unwrap(), LEN);
    assert!(error.unwrap_err().chain().contains("unpack it first"));
}

/// Each made by the tool that owns it, padded to whole sectors where it is not, so that only its marks tell that it is no disk.
#[test]
fn what_other_tools_make_is_named_and_not_restored() {
    let (dir, disk) = folder_with_disk(5 << 20);
    let target = dir.path().join("target");
    noise_file(&target, 6 << 20, 3);
    let before = fs::read(&target).unwrap();
    let qemu = "qemu-img convert -q -f raw -O";
    for (package, name, command, words) in [
        ("qemu-utils", "a.vhd", "vpc -o subformat=dynamic,force_size disk.raw", "a VHD image"),
        ("qemu-utils", "fixed.vhd", "vpc -o subformat=fixed,force_size disk.raw", "-f vpc"),
        ("qemu-utils", "fixed.img", "vpc -o subformat=fixed disk.raw", "a fixed VHD image"),
        ("qemu-utils", "a.vhdx", "vhdx disk.raw", "a VHDX image"),
        ("qemu-utils", "a.vdi", "vdi disk.raw", "a VDI image"),
        ("qemu-utils", "a.qed", "qed disk.raw", "`qemu-img convert -O qcow2`"),
        ("qemu-utils", "a.hdd", "parallels disk.raw", "a Parallels image"),
        ("xz-utils", "a.lzma", "xz --format=lzma -0 -c disk.raw > a.lzma", "an lzma stream"),
        ("xz-utils", "b.lzma", "xz --format=lzma -9 -c < disk.raw > b.lzma", "an lzma stream"),
        ("zstd", "a.vhd.zst", "zstd -q fixed.vhd -o a.vhd.zst", "a fixed VHD image is in this"),
        ("gzip", "a.vhd.gz", "gzip -c fixed.vhd > a.vhd.gz", "a fixed VHD image is in this"),
        ("xz-utils", "a.qed.xz", "xz -0 -c a.qed > a.qed.xz", "then make an image of it"),
        (
            "ntfs-3g",
            "a.ntfsclone",
            "truncate -s 5M ntfs; mkntfs -qFf ntfs > /dev/null 2>&1; \
             ntfsclone -q --save-image -o a.ntfsclone ntfs",
            "an ntfsclone image",
        ),
    ] {
        let path = dir.path().join(name);
        if package == "qemu-utils" {
            make(package, dir.path(), &format!("{qemu} {command} {name}"));
        } else {
            make(package, dir.path(), command);
        }
        let padded = fs::metadata(&path).unwrap().len().next_multiple_of(512);
        if !name.ends_with("z") && !name.ends_with("zst") {
            File::options().write(true).open(&path).unwrap().set_len(padded).unwrap();
        }
        try_restore(&path, &target, &[]).refused("refused", &[words]);
        assert!(fs::read(&target).unwrap() == before, "{name}: something was written");
    }
    // What the last sector of a device holds is the disk's; the same bytes in a file are a fixed VHD.
    let mut raw = fs::read(&disk).unwrap();
    let end = raw.len() - 512;
    raw[end..end + 8].copy_from_slice(b"conectix");
    fs::write(&disk, &raw).unwrap();
    try_restore(&disk, &target, &[]).refused("refused", &["-f vpc"]);
    let device = Device::new(&disk, 512);
    let copy = dir.path().join("copy.raw");
    assert_eq!(convert(Path::new(device.path()), &copy, &[]).code, 0);
    assert!(same(&copy, &disk));
}

#[test]
fn frames_come_out_in_any_order() {
    let (dir, disk) = folder_with_disk(61 << 20);
    // Data everywhere, so that every span is a frame.
    noise_file(&disk, 61 << 20, 5);
    make("zstd", dir.path(), "zstd -q -1 -c disk.raw > a.zst");
    let whole = fs::read(&disk).unwrap();
    let image =
        survey_bytes("a.zst", fs::read(dir.path().join("a.zst")).unwrap(), 1 << 30).unwrap();
    let frames: Vec<_> = image.frames().map(|frame| frame.unwrap()).collect();
    assert_eq!(frames.len(), 16);
    let mut fetcher = image.fetcher().unwrap();
    for index in [3, 2, 9, 8, 15, 0, 14, 13, 1, 7, 7, 12] {
        let frame = &frames[index];
        let mut content = vec![0; frame.logical_len as usize];
        fetcher.fetch(frame, &mut content).unwrap();
        let start = frame.logical_offset as usize;
        assert!(content == whole[start..start + content.len()], "frame {index}");
    }
}

#[test]
fn an_image_that_changes_after_it_was_checked_is_noticed() {
    struct Changing(Vec<u8>, Vec<u8>, AtomicBool);
    impl ReadAt for Changing {
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<()> {
            let bytes = if self.2.load(Ordering::Relaxed) { &self.1 } else { &self.0 };
            ReadAt::read_exact_at(bytes, buf, offset)
        }
        fn len(&self) -> std::io::Result<u64> {
            Ok(self.0.len() as u64)
        }
    }
    let first = noise(24 << 20, 1);
    let mut second = first.clone();
    second[(13 << 20) + 5] ^= 1;
    let pack = |bytes: &[u8]| {
        let mut packed = zstd::bulk::compress(bytes, 1).unwrap();
        packed.resize(25 << 20, 0);
        // What is left is a skippable frame, so that both have one length.
        let len = zstd::zstd_safe::find_frame_compressed_size(&packed).unwrap();
        let rest = u32::try_from(packed.len() - len - 8).unwrap();
        packed[len..len + 4].copy_from_slice(&0x184D_2A50_u32.to_le_bytes());
        packed[len + 4..len + 8].copy_from_slice(&rest.to_le_bytes());
        packed
    };
    for (name, a, b) in
        [("a.raw", first.clone(), second.clone()), ("a.zst", pack(&first), pack(&second))]
    {
        let file = Arc::new(Changing(a, b, AtomicBool::new(false)));
        let image = survey_source(name, file.clone(), 1 << 30).unwrap();
        file.2.store(true, Ordering::Relaxed);
        let mut fetcher = image.fetcher().unwrap();
        let mut wrong = Vec::new();
        for frame in image.frames().map(|frame| frame.unwrap()) {
            assert_eq!(frame.kind, FrameKind::Data);
            let mut content = vec![0; frame.logical_len as usize];
            if let Err(error) = fetcher.fetch(&frame, &mut content) {
                assert_eq!(error.kind(), ErrorKind::ImageCorrupt);
                wrong.push(frame.logical_offset);
            }
        }
        assert_eq!(wrong, [12 << 20], "{name}");
    }
}

#[test]
fn a_system_is_restored_from_a_stream_and_becomes_an_image() {
    for label in ["gpt", "logical"] {
        let dir = tempfile::tempdir().unwrap();
        let disk = system(dir.path(), label);
        let path = disk.path.display();
        make("gzip", dir.path(), &format!("gzip -1 -c {path} > a.gz"));
        let (packed, target) = (dir.path().join("a.gz"), dir.path().join("target"));
        noise_file(&target, disk.len + (8 << 20), 4);
        let plan = agent(&[
            "plan",
            "restore",
            "--json",
            packed.to_str().unwrap(),
            target.to_str().unwrap(),
        ]);
        let plan = plan.json();
        let names: Vec<_> = plan["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["what"].as_str().unwrap())
            .collect();
        assert!(
            names[0].starts_with("fat32")
                && names[1].starts_with("ext4")
                && names[2].starts_with("swap"),
            "{names:?}"
        );
        let restored = restore(&packed, &target, &[]);
        judge(&disk, &target, dir.path());
        assert_eq!(dump(&target), dump(&disk.path));
        let inspected = agent(&["inspect", "--json", packed.to_str().unwrap()]).json();
        assert_eq!(inspected["root"], restored["root"]);
        agent(&["verify", "--json", packed.to_str().unwrap()]).json();
        agent(&["verify", "--json", "--deep", packed.to_str().unwrap()]).json();
        if label == "logical" {
            continue;
        }

        // A raw disk is mapped as in a capture: the same root content, by stock zstd.
        let (own, direct) = (dir.path().join("own.img.zst"), dir.path().join("direct.img.zst"));
        let converted = convert(&disk.path, &own, &[]).json();
        let captured = capture(&disk.path, &direct, &[]);
        assert_eq!(converted["data_bytes"], captured["data_bytes"], "{converted:#}");
        make(
            "zstd",
            dir.path(),
            "zstd -dc -q own.img.zst > own; zstd -dc -q direct.img.zst > direct",
        );
        assert!(same(&dir.path().join("own"), &dir.path().join("direct")));
        // A stream keeps everything.
        let streamed = dir.path().join("streamed.img.zst");
        let converted = convert(&packed, &streamed, &[]).json();
        assert_eq!(converted["raw"].as_array().unwrap().len(), 3, "{converted:#}");
        make("zstd", dir.path(), "zstd -dc -q streamed.img.zst > streamed");
        assert!(same(&dir.path().join("streamed"), &disk.path));
        // And back.
        let back = dir.path().join("back.gz");
        convert(&streamed, &back, &["--level", "1"]).json();
        make("gzip", dir.path(), "gzip -t back.gz && gzip -dc back.gz > back && pigz -t back.gz");
        assert!(same(&dir.path().join("back"), &disk.path));
        for (number, part) in [disk.esp, disk.root, disk.swap].into_iter().enumerate() {
            let (a, b) = (dir.path().join("a"), dir.path().join("b"));
            take(&disk.path, part, &a);
            take(&dir.path().join("back"), part, &b);
            assert_eq!(identity(&a), identity(&b), "{number}");
        }
    }
}

#[test]
fn a_target_is_never_overwritten_and_its_name_says_what_it_becomes() {
    let (dir, disk) = folder_with_disk(5 << 20);
    let target = dir.path().join("there.raw");
    fs::write(&target, "mine").unwrap();
    convert(&disk, &target, &[]).refused("refused", &["exists already"]);
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    convert(&disk, &dir.path().join("a.qcow2"), &[])
        .refused("refused", &["does not say what to make"]);
    convert(&disk, &dir.path().join("a.raw"), &["--level", "3"])
        .refused("refused", &["no compression level"]);
    convert(&disk, &dir.path().join("a.gz"), &["--level", "12"])
        .refused("refused", &["between 1 and 9"]);
    assert!(!dir.path().join("a.raw").exists());
}
