//! Folders of Clonezilla and FOG, made as their scripts make them: by sfdisk, dd, sgdisk and partclone.

use std::fs;
use std::path::Path;

use crate::agent::{agent, restore};
use crate::disks::{TestDisk, dump, identity, judge, noise_file, system, take};
use crate::support::convert;
use crate::tools::run;

fn shell(folder: &Path, command: &str) {
    run("partclone", "sh", &["-ec", &format!("cd {} && {command}", folder.display())]);
}

/// The partitions of a disk as files, `1` to `3`.
fn split(disk: &TestDisk, folder: &Path) {
    for (number, part) in [disk.esp, disk.root, disk.swap].into_iter().enumerate() {
        take(&disk.path, part, &folder.join((number + 1).to_string()));
    }
}

/// What Clonezilla's `savedisk` leaves in its folder.
fn clonezilla(disk: &TestDisk, folder: &Path, gpt: bool) {
    let image = folder.join("img");
    let _ = fs::remove_dir_all(&image);
    fs::create_dir(&image).unwrap();
    split(disk, folder);
    let sectors = disk.len / 512;
    let uuid = "$(blkid -p -s UUID -o value 3)";
    let dir = folder.display();
    let tables = if gpt {
        format!(
            "dd if=disk of=img/sda-gpt-1st bs=512 count=34; dd if=disk of=img/sda-gpt-2nd bs=512 skip={} count=33",
            sectors - 32
        )
    } else {
        "dd if=disk of=img/sda-hidden-data-after-mbr skip=1 bs=512 count=2047".into()
    };
    shell(
        folder,
        &format!(
            "ln -sf {} disk; exec 2> log; echo sda > img/disk; echo sda1 sda2 sda3 > img/parts; \
             sfdisk -d disk | sed 's,^{dir}/disk,/dev/sda,; s,^disk,/dev/sda,' > img/sda-pt.sf; \
             printf 'Model: x\\nDisk /dev/sda: {sectors}s\\nSector size (logical/physical): 512B/512B\\n' > img/sda-pt.parted; \
             dd if=disk of=img/sda-mbr bs=512 count=1; {tables}; \
             partclone.vfat -q -c -L l -s 1 | gzip -c > img/sda1.vfat-ptcl-img.gz.aa; \
             partclone.ext4 -q -c -L l -s 2 | zstd -q -c | split -b 400000 - img/sda2.ext4-ptcl-img.zst.; \
             printf 'UUID=\"%s\"\\nLABEL=\"swappy\"\\n' {uuid} > img/swappt-sda3.info",
            disk.path.display()
        ),
    );
}

/// What FOG's capture leaves in its folder.
fn fog(disk: &TestDisk, folder: &Path, gpt: bool) {
    let image = folder.join("img");
    let _ = fs::remove_dir_all(&image);
    fs::create_dir(&image).unwrap();
    split(disk, folder);
    let table = if gpt {
        "sgdisk -b img/d1.mbr disk > log2"
    } else {
        "dd if=disk of=img/d1.mbr bs=512 count=2048"
    };
    shell(
        folder,
        &format!(
            "ln -sf {} disk; exec 2> log; sfdisk -d disk | sed 's,^disk,/dev/sda,' > img/d1.partitions; {table}; \
             partclone.vfat -q -c -a0 -L l -s 1 | gzip -c > img/d1p1.img; \
             partclone.ext4 -q -c -a0 -L l -s 2 | zstd -q -c | split -a 3 -d -b 400000 - img/d1p2.img.; \
             echo \"3 $(blkid -p -s UUID -o value 3)\" > img/d1.original.swapuuids",
            disk.path.display()
        ),
    );
}

fn comes_back(disk: &TestDisk, folder: &Path, gpt: bool) {
    let (image, target) = (folder.join("img"), folder.join("target"));
    noise_file(&target, disk.len + (4 << 20), 6);
    restore(&image, &target, &[]);
    judge(disk, &target, folder);
    assert_eq!(dump(&target), dump(&disk.path));
    if gpt {
        let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
        assert!(verdict.contains("No problems found"), "{verdict}");
    }
    for (number, part) in [disk.esp, disk.root].into_iter().enumerate() {
        let (a, b) = (folder.join("a"), folder.join("b"));
        take(&disk.path, part, &a);
        take(&target, part, &b);
        assert_eq!(identity(&a), identity(&b), "{number}");
    }
    let (a, b) = (folder.join("a"), folder.join("b"));
    take(&disk.path, disk.swap, &a);
    take(&target, disk.swap, &b);
    let uuid = |path: &Path| {
        run("util-linux", "blkid", &["-p", "-s", "UUID", "-o", "value", path.to_str().unwrap()])
    };
    assert_eq!(uuid(&a), uuid(&b));
    let shown = agent(&["inspect", "--json", image.to_str().unwrap()]).json();
    let volumes = shown["manifest"]["volumes"].as_array().unwrap();
    let kinds: Vec<_> = volumes.iter().map(|v| v["filesystem"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["fat32", "ext4", "swap"]);
}

#[test]
fn disks_saved_by_clonezilla_and_fog_come_back() {
    for label in ["gpt", "dos"] {
        let dir = tempfile::tempdir().unwrap();
        let disk = system(dir.path(), label);
        clonezilla(&disk, dir.path(), label == "gpt");
        comes_back(&disk, dir.path(), label == "gpt");
        fog(&disk, dir.path(), label == "gpt");
        comes_back(&disk, dir.path(), label == "gpt");
    }
}

#[test]
fn what_a_folder_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    clonezilla(&disk, dir.path(), true);
    let (image, out) = (dir.path().join("img"), dir.path().join("out.raw"));
    let without = |name: &str, kind: &str, words: &str| {
        let (path, kept) = (image.join(name), dir.path().join("kept"));
        fs::rename(&path, &kept).unwrap();
        convert(&image, &out, &[]).refused(kind, &[words]);
        fs::rename(&kept, &path).unwrap();
    };
    without("sda2.ext4-ptcl-img.zst.ab", "image_corrupt", "are missing");
    without("sda2.ext4-ptcl-img.zst.aa", "image_corrupt", "are missing");
    without("sda1.vfat-ptcl-img.gz.aa", "refused", "no image of sda1");
    without("sda-gpt-1st", "image_corrupt", "sda-gpt-1st is missing");
    without("disk", "refused", "single partitions");
    fs::write(image.join("lvm_vg_dev.list"), "vg /dev/sda2").unwrap();
    convert(&image, &out, &[]).refused("refused", &["LVM"]);
    fs::remove_file(image.join("lvm_vg_dev.list")).unwrap();
    fs::write(image.join("disk"), "sda sdb").unwrap();
    convert(&image, &out, &[]).refused("refused", &["several disks"]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    convert(&empty, &out, &[]).refused("refused", &["no image of Clonezilla or FOG"]);
}
