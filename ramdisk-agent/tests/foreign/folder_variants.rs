//! Folders of Clonezilla and FOG that are not of the plainest kind: what their scripts do with other settings, and what is missing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::agent::{agent, restore};
use crate::disks::{TestDisk, dump, noise, noise_file, put, system, take};
use crate::folders::{clonezilla, comes_back, fog, numbers, shell};
use crate::support::convert;
use crate::tools::run;

/// Makes the root filesystem and its partition smaller, as FOG does before it saves a *resizable* image.
fn shrink(disk: &mut TestDisk, folder: &Path, label: &str) {
    let small = folder.join("small");
    take(&disk.path, disk.root, &small);
    disk.root.len = 70 << 20;
    run("e2fsprogs", "e2fsck", &["-fp", small.to_str().unwrap()]);
    run("e2fsprogs", "resize2fs", &[small.to_str().unwrap(), "70M"]);
    File::options().write(true).open(&small).unwrap().set_len(disk.root.len).unwrap();
    put(&disk.path, &small, disk.root.start);
    let (sectors, number) = (disk.root.len / 512, numbers(label)[1]);
    shell(
        folder,
        &format!(
            "echo ',{sectors}' | sfdisk -q --no-reread -N {number} {} 2> log",
            disk.path.display()
        ),
    );
}

#[test]
fn resizable_images_of_fog_come_back_as_they_were_saved() {
    for label in ["gpt", "logical"] {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = system(dir.path(), label);
        fog(&disk, dir.path(), label);
        let image = dir.path().join("img");
        let before = fs::read(image.join("d1.partitions")).unwrap();
        shrink(&mut disk, dir.path(), label);
        fog(&disk, dir.path(), label);
        fs::rename(image.join("d1.partitions"), image.join("d1.minimum.partitions")).unwrap();
        fs::write(image.join("d1.partitions"), &before).unwrap();
        assert_ne!(fs::read(image.join("d1.minimum.partitions")).unwrap(), before);
        comes_back(&disk, dir.path(), label);
        // Without the list of the saved table no list fits it. A logical partition is in no table that was saved.
        if label != "logical" {
            fs::remove_file(image.join("d1.minimum.partitions")).unwrap();
            let out = dir.path().join("out.raw");
            convert(&image, &out, &[]).refused("image_corrupt", &["another place for"]);
        }
    }
}

#[test]
fn a_list_that_lacks_a_partition_is_refused() {
    for label in ["gpt", "dos", "logical"] {
        let dir = tempfile::tempdir().unwrap();
        let disk = system(dir.path(), label);
        let (image, out) = (dir.path().join("img"), dir.path().join("out.raw"));
        let makers =
            [(clonezilla as fn(&_, &_, &_), "sda-pt.sf"), (fog as fn(&_, &_, &_), "d1.partitions")];
        for (make, list) in makers {
            make(&disk, dir.path(), label);
            let path = image.join(list);
            let text = fs::read_to_string(&path).unwrap();
            // The last partition is swap, of which FOG has no image. In front of it is the root.
            let cut = |partitions: usize| {
                let lines: Vec<&str> = text.trim_end().lines().collect();
                fs::write(&path, lines[..lines.len() - partitions].join("\n")).unwrap();
            };
            if label == "logical" {
                // What leads to the last one was not saved, so that only its image tells of it.
                cut(2);
                convert(&image, &out, &[]).refused("image_corrupt", &["list of partitions"]);
                continue;
            }
            cut(1);
            let _ = fs::remove_file(image.join("parts"));
            let words = ["has a partition 3", "list is cut off"];
            convert(&image, &out, &[]).refused("image_corrupt", &words);
        }
        assert!(!out.exists());
    }
}

/// A disk with an MBR whose first partition begins at 6 MiB, and something all the way to it; an empty folder for its image, and where
/// that is to be restored.
fn far_disk(folder: &Path) -> [PathBuf; 3] {
    let paths = ["disk", "img", "target"].map(|name| folder.join(name));
    File::create(&paths[0]).unwrap().set_len(16 << 20).unwrap();
    fs::create_dir(&paths[1]).unwrap();
    fs::write(folder.join("script"), "label: dos\nstart=12288,size=16384,type=83\n").unwrap();
    shell(folder, "sfdisk -q --no-reread disk < script 2> log");
    let file = File::options().write(true).open(&paths[0]).unwrap();
    file.write_all_at(&noise((14 << 20) - 512, 4), 512).unwrap();
    paths
}

#[test]
fn clonezilla_with_other_settings_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let [disk, image, target] = far_disk(folder);
    shell(
        folder,
        "exec 2> log; echo sda > img/disk; echo sda1 > img/parts; sfdisk -d disk | sed 's,^disk,/dev/sda,' > img/sda-pt.sf; \
         dd if=disk of=img/sda-mbr bs=512 count=1; dd if=disk of=img/sda-hidden-data-after-mbr skip=1 bs=512 count=12287; \
         printf 'Disk /dev/sda: 32768s\\n' > img/sda-pt.parted; dd if=disk of=1 bs=512 skip=12288 count=16384",
    );
    // Not split; split with three letters, as for WebDAV and S3; with the note that is made of what VMware's partitions are.
    for save in [
        "gzip -1 -c 1 > img/sda1.dd-ptcl-img.gz",
        "xz -0 -c 1 > img/sda1.dd-ptcl-img.xz",
        "zstd -q -c 1 > img/sda1.dd-ptcl-img.zst",
        "cp 1 img/sda1.dd-ptcl-img.uncomp",
        "split -a 3 -b 1M 1 img/sda1.dd-ptcl-img.uncomp.",
        "split -a 2 -b 1M 1 img/sda1.dd-img.; echo partition=VMware_vmkcore_partition > img/sda1.dd-img.info",
    ] {
        shell(folder, &format!("rm -f img/sda1.*; {save}"));
        noise_file(&target, 16 << 20, 6);
        restore(&image, &target, &["--scrub-free"]);
        assert!(fs::read(&target).unwrap() == fs::read(&disk).unwrap(), "{save}");
    }
    let out = folder.join("out.raw");
    fs::write(image.join("sda1.dd-img.info"), "partition=BSD_slice\n").unwrap();
    convert(&image, &out, &[]).refused("refused", &["sda1 is a slice of BSD"]);
    fs::remove_file(image.join("sda1.dd-img.info")).unwrap();
    // A boot loader of which the end is missing would not start.
    let hidden = File::options().write(true).open(image.join("sda-hidden-data-after-mbr")).unwrap();
    hidden.set_len(5 << 20).unwrap();
    let words = ["sda-hidden-data-after-mbr has 5242880 of the 6290944 bytes", "cut off"];
    convert(&image, &out, &[]).refused("image_corrupt", &words);
    fs::write(image.join("ecryptfs.info"), "x").unwrap();
    convert(&image, &out, &[]).refused("refused", &["encrypted"]);
    assert!(!out.exists());
}

#[test]
fn what_fog_keeps_of_the_start_is_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let [disk, image, target] = far_disk(folder);
    shell(
        folder,
        "exec 2> log; sfdisk -d disk | sed 's,^disk,/dev/sda,' > img/d1.partitions; dd if=disk of=img/d1.mbr bs=512 count=2048; \
         dd if=disk bs=512 skip=12288 count=16384 | split -a 3 -d -b 3M - img/d1p1.img.",
    );
    noise_file(&target, 16 << 20, 6);
    restore(&image, &target, &["--scrub-free"]);
    let (restored, own) = (fs::read(&target).unwrap(), fs::read(&disk).unwrap());
    // FOG itself keeps no more than a MiB of what lies in front of the first partition.
    assert!(
        restored[..1 << 20] == own[..1 << 20]
            && restored[6 << 20..14 << 20] == own[6 << 20..14 << 20]
    );
    assert_eq!(dump(&target), dump(&disk));
    let mbr = File::options().write(true).open(image.join("d1.mbr")).unwrap();
    mbr.set_len(1000 << 10).unwrap();
    let args = ["restore", image.to_str().unwrap(), target.to_str().unwrap(), "--yes"];
    agent(&args).refused("image_corrupt", &["d1.mbr has 1024000 of the first 1048576 bytes"]);
    assert!(fs::read(&target).unwrap() == restored, "the target was written to");
}
