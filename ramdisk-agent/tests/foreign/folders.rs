//! Folders of Clonezilla and FOG, made as their scripts make them: by sfdisk, dd, sgdisk and partclone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::agent::{agent, restore};
use crate::disks::{TestDisk, dump, identity, judge, noise, noise_file, system, take};
use crate::support::convert;
use crate::tools::run;

pub fn shell(folder: &Path, command: &str) {
    run("partclone", "sh", &["-ec", &format!("cd {} && {command}", folder.display())]);
}

/// The partitions of a disk as files, `1` to `3`.
fn split(disk: &TestDisk, folder: &Path) {
    for (number, part) in [disk.esp, disk.root, disk.swap].into_iter().enumerate() {
        take(&disk.path, part, &folder.join((number + 1).to_string()));
    }
}

/// The numbers that the three partitions have in a table of this kind. Of a `logical` one the second is the extended one.
pub fn numbers(label: &str) -> [u32; 3] {
    if label == "logical" { [1, 5, 6] } else { [1, 2, 3] }
}

/// Where the extended partition of a `logical` disk begins, in sectors.
const EXTENDED: u64 = 41 * 2048;

/// What Clonezilla's `savedisk` leaves in its folder.
pub fn clonezilla(disk: &TestDisk, folder: &Path, label: &str) {
    let image = folder.join("img");
    let _ = fs::remove_dir_all(&image);
    fs::create_dir(&image).unwrap();
    split(disk, folder);
    let sectors = disk.len / 512;
    let uuid = "$(blkid -p -s UUID -o value 3)";
    let dir = folder.display();
    let [esp, root, swap] = numbers(label);
    let behind_mbr = "dd if=disk of=img/sda-hidden-data-after-mbr skip=1 bs=512 count=2047";
    let tables = match label {
        "gpt" => format!(
            "dd if=disk of=img/sda-gpt-1st bs=512 count=34; dd if=disk of=img/sda-gpt-2nd bs=512 skip={} count=33",
            sectors - 32
        ),
        "logical" => {
            format!("{behind_mbr}; dd if=disk of=img/sda2-ebr bs=512 skip={EXTENDED} count=1")
        }
        _ => behind_mbr.into(),
    };
    shell(
        folder,
        &format!(
            "ln -sf {} disk; exec 2> log; echo sda > img/disk; echo sda{esp} sda{root} sda{swap} > img/parts; \
             sfdisk -d disk | sed 's,^{dir}/disk,/dev/sda,; s,^disk,/dev/sda,' > img/sda-pt.sf; \
             printf 'Model: x\\nDisk /dev/sda: {sectors}s\\nSector size (logical/physical): 512B/512B\\n' > img/sda-pt.parted; \
             dd if=disk of=img/sda-mbr bs=512 count=1; {tables}; \
             partclone.vfat -q -c -L l -s 1 | gzip -c > img/sda{esp}.vfat-ptcl-img.gz.aa; \
             partclone.ext4 -q -c -L l -s 2 | zstd -q -c | split -b 400000 - img/sda{root}.ext4-ptcl-img.zst.; \
             printf 'UUID=\"%s\"\\nLABEL=\"swappy\"\\n' {uuid} > img/swappt-sda{swap}.info",
            disk.path.display()
        ),
    );
}

/// What FOG's capture leaves in its folder. Of each logical partition it keeps the first sector as well, under the name of a table.
pub fn fog(disk: &TestDisk, folder: &Path, label: &str) {
    let image = folder.join("img");
    let _ = fs::remove_dir_all(&image);
    fs::create_dir(&image).unwrap();
    split(disk, folder);
    let [esp, root, swap] = numbers(label);
    let gap = "dd if=disk of=img/d1.mbr bs=512 count=2048";
    let table = match label {
        "gpt" => "sgdisk -b img/d1.mbr disk > log2".into(),
        "logical" => format!(
            "{gap}; dd if=disk of=img/d1p2.ebr bs=512 skip={EXTENDED} count=1; \
             dd if=2 of=img/d1p5.ebr bs=512 count=1; dd if=3 of=img/d1p6.ebr bs=512 count=1"
        ),
        _ => gap.into(),
    };
    shell(
        folder,
        &format!(
            "ln -sf {} disk; exec 2> log; sfdisk -d disk | sed 's,^disk,/dev/sda,' > img/d1.partitions; {table}; \
             partclone.vfat -q -c -a0 -L l -s 1 | gzip -c > img/d1p{esp}.img; \
             partclone.ext4 -q -c -a0 -L l -s 2 | zstd -q -c | split -a 3 -d -b 400000 - img/d1p{root}.img.; \
             echo \"{swap} $(blkid -p -s UUID -o value 3)\" > img/d1.original.swapuuids",
            disk.path.display()
        ),
    );
}

pub fn comes_back(disk: &TestDisk, folder: &Path, label: &str) {
    let (image, target) = (folder.join("img"), folder.join("target"));
    noise_file(&target, disk.len + (4 << 20), 6);
    restore(&image, &target, &[]);
    judge(disk, &target, folder);
    assert_eq!(dump(&target), dump(&disk.path));
    if label == "gpt" {
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
        clonezilla(&disk, dir.path(), label);
        comes_back(&disk, dir.path(), label);
        fog(&disk, dir.path(), label);
        comes_back(&disk, dir.path(), label);
    }
}

/// The sectors of a disk that hold its tables: LBA 0, and one in front of each logical partition.
fn tables(disk: &Path, places: &[u64]) -> Vec<[u8; 512]> {
    let file = File::open(disk).unwrap();
    let read = |lba: &u64| {
        let mut sector = [0; 512];
        file.read_exact_at(&mut sector, lba * 512).unwrap();
        sector
    };
    places.iter().map(read).collect()
}

#[test]
fn disks_with_logical_partitions_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "logical");
    // A boot loader in the first table.
    let file = File::options().write(true).open(&disk.path).unwrap();
    file.write_all_at(&noise(400, 8), EXTENDED * 512).unwrap();
    let places = [0, EXTENDED, EXTENDED + 101 * 2048];
    let (image, raw) = (dir.path().join("img"), dir.path().join("out.raw"));
    let whole = tables(&disk.path, &places);
    assert!(whole.iter().all(|sector| sector.ends_with(&[0x55, 0xAA])));
    for (make, ebr) in [(clonezilla as fn(&_, &_, &_), "sda2-ebr"), (fog, "d1p2.ebr")] {
        make(&disk, dir.path(), "logical");
        comes_back(&disk, dir.path(), "logical");
        assert!(tables(&dir.path().join("target"), &places) == whole, "{ebr}");

        // Without what was saved of the tables they are made of the list; only the boot code in them is lost.
        fs::rename(image.join(ebr), dir.path().join("kept")).unwrap();
        let ran = convert(&image, &raw, &[]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(dump(&raw), dump(&disk.path));
        let mut made = tables(&raw, &places);
        fs::remove_file(&raw).unwrap();
        assert!(made[1][..400].iter().all(|b| *b == 0));
        made[1][..400].copy_from_slice(&whole[1][..400]);
        assert!(made == whole, "{ebr}: the tables are not those that sfdisk has made");

        // One that is cut off is damage.
        fs::write(image.join(ebr), &whole[1][..100]).unwrap();
        convert(&image, &raw, &[]).refused("image_corrupt", &[ebr, "100 bytes"]);
        fs::rename(dir.path().join("kept"), image.join(ebr)).unwrap();

        // A list without the extended partition leads nowhere.
        let list = image.join(if ebr == "sda2-ebr" { "sda-pt.sf" } else { "d1.partitions" });
        let text = fs::read_to_string(&list).unwrap();
        let without: String = text
            .lines()
            .filter(|line| !line.starts_with("/dev/sda2"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(without, text);
        fs::write(&list, without).unwrap();
        convert(&image, &raw, &[]).refused("image_corrupt", &["sda5", "no extended one"]);
        assert!(!raw.exists());
    }
}

/// An extended partition that is not aligned: its tables lie right in front of their partitions.
#[test]
fn tables_that_lie_elsewhere_than_usual_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let (disk, image) = (folder.join("disk"), folder.join("img"));
    fs::create_dir(&image).unwrap();
    File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    fs::write(
        folder.join("script"),
        "label: dos\nunit: sectors\nstart=2048,size=18432,type=83\nstart=22526,size=108546,type=5\n\
         start=22528,size=18432,type=83,bootable\nstart=43008,size=18432,type=83\nstart=63488,size=18432,type=7\n",
    )
    .unwrap();
    shell(
        folder,
        "exec 2> log; sfdisk -q --no-reread disk < script; \
         echo sda > img/disk; echo sda1 sda5 sda6 sda7 > img/parts; \
         dd if=disk of=img/sda-mbr bs=512 count=1; dd if=disk of=img/sda-hidden-data-after-mbr skip=1 bs=512 count=2047; \
         dd if=disk of=img/sda2-ebr bs=512 skip=22526 count=1; \
         sfdisk -d disk | sed 's,^disk,/dev/sda,' > img/sda-pt.sf; \
         printf 'Disk /dev/sda: 131072s\\n' > img/sda-pt.parted",
    );
    let starts = [(1, 2048_u64), (5, 22528), (6, 43008), (7, 63488)];
    let file = File::options().write(true).open(&disk).unwrap();
    for (number, start) in starts {
        file.write_all_at(&noise(18432 * 512, start), start * 512).unwrap();
        let command = format!(
            "dd if=disk bs=512 skip={start} count=18432 2> log | gzip -1 -c > img/sda{number}.dd-img.gz.aa"
        );
        shell(folder, &command);
    }
    let target = folder.join("target");
    for saved in [true, false] {
        if !saved {
            fs::remove_file(image.join("sda2-ebr")).unwrap();
        }
        noise_file(&target, 64 << 20, 6);
        restore(&image, &target, &["--scrub-free"]);
        assert_eq!(dump(&target), dump(&disk));
        let verdict = run("fdisk", "sfdisk", &["-V", target.to_str().unwrap()]);
        assert!(verdict.contains("No errors"), "{verdict}");
        let (a, b) = (fs::read(&target).unwrap(), fs::read(&disk).unwrap());
        // With what was saved of the first table it is the same disk in every byte.
        assert_eq!(a == b, saved);
        for (number, start) in starts {
            let part = |bytes: &[u8]| bytes[start as usize * 512..][..18432 * 512].to_vec();
            assert!(part(&a) == part(&b), "partition {number}");
        }
    }
    // A table that is cut off, or says something else than the list, would leave a disk whose partitions nothing leads to.
    let table = image.join("sda-mbr");
    let whole = fs::read(&table).unwrap();
    let mut moved = whole.clone();
    moved[446 + 8] ^= 8;
    for (bytes, words) in [
        (&whole[..0], "sda-mbr has no MBR in its 0 bytes"),
        (&whole[..500], "sda-mbr has no MBR in its 500 bytes"),
        (&moved, "sda-mbr has another place for sda1"),
    ] {
        fs::write(&table, bytes).unwrap();
        convert(&image, &folder.join("out.raw"), &[]).refused("image_corrupt", &[words]);
    }
    fs::write(&table, &whole).unwrap();
    // Nothing in raw bytes says where they end: that they are fewer than the partition has must not become zeros.
    let out = folder.join("out.raw");
    let words = ["the image of sda7 ends 1048576 bytes before its partition does"];
    let whole =
        "dd if=disk bs=512 skip=63488 count=18432 2> log | split -a 2 -b 8M - img/sda7.dd-img.";
    shell(folder, &format!("rm img/sda7.*; {whole}; rm img/sda7.dd-img.ab"));
    convert(&image, &out, &[]).refused("image_corrupt", &words);
    let short =
        "dd if=disk bs=512 skip=63488 count=16384 2> log | gzip -1 -c > img/sda7.dd-img.gz.aa";
    shell(folder, &format!("rm img/sda7.*; {short}"));
    convert(&image, &out, &[]).refused("image_corrupt", &words);
    noise_file(&target, 64 << 20, 7);
    let before = fs::read(&target).unwrap();
    let args = ["restore", image.to_str().unwrap(), target.to_str().unwrap(), "--yes"];
    agent(&args).refused("image_corrupt", &words);
    assert!(fs::read(&target).unwrap() == before, "the target was written to");
}

#[test]
fn what_a_folder_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let disk = system(dir.path(), "gpt");
    clonezilla(&disk, dir.path(), "gpt");
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
    // A table that is cut off, or says something else than the list, would leave a disk whose partitions nothing leads to.
    let table = image.join("sda-gpt-1st");
    let whole = fs::read(&table).unwrap();
    let mut moved = whole.clone();
    moved[1024 + 128 + 32] ^= 8;
    for (bytes, words) in [
        (&whole[..0], "has no GPT, or is cut off"),
        (&whole[..1024 + 128], "the entry of sda2 is missing"),
        (&moved, "sda-gpt-1st has another place for sda2"),
    ] {
        fs::write(&table, bytes).unwrap();
        convert(&image, &out, &[]).refused("image_corrupt", &[words]);
    }
    fs::write(&table, &whole).unwrap();
    fs::write(image.join("lvm_vg_dev.list"), "/NOT_FOUND /dev/sda2 id\n").unwrap();
    convert(&image, &out, &[]).refused("refused", &["LVM on /dev/sda2", "in no volume group"]);
    fs::remove_file(image.join("lvm_vg_dev.list")).unwrap();
    fs::write(image.join("disk"), "sda sdb").unwrap();
    convert(&image, &out, &[]).refused("refused", &["several disks"]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    convert(&empty, &out, &[]).refused("refused", &["no image of Clonezilla or FOG"]);
}
