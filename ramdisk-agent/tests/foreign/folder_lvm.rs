//! Folders of Clonezilla with LVM: the volume group made by LVM's tools, saved by `vgcfgbackup` and partclone as `save_logv` in
//! Clonezilla's `ocs-functions` does it. What comes back is judged by LVM's tools and those of the filesystems.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::agent::{agent, restore};
use crate::device::Device;
use crate::disks::{self, Part, dump, noise_file, put, take};
use crate::folders::shell;
use crate::support::convert;
use crate::tools::run;

const MIB: u64 = 1 << 20;
const DISK_LEN: u64 = 256 * MIB;
const BOOT: Part = Part { start: MIB, len: 24 * MIB };
const PHYSICAL: Part = Part { start: 25 * MIB, len: 230 * MIB };
/// Where pvcreate begins its extents, and how long vgcreate makes them.
const EXTENTS_AT: u64 = MIB;
const EXTENT: u64 = 4 * MIB;
/// Extents of each logical volume, in its order: first and number. One is extended behind another's, and one in front of itself too.
const ROOT: &[(u64, u64)] = &[(6, 5), (0, 3), (30, 12)];
const HOME: &[(u64, u64)] = &[(11, 3), (20, 2), (22, 1)];
const SWAP: &[(u64, u64)] = &[(14, 2)];
const DATA: &[(u64, u64)] = &[(16, 1), (3, 1)];

struct Folder {
    dir: tempfile::TempDir,
}

/// LVM's tools on one device, which they take for all there is.
fn lvm(device: &Device, folder: &Path, command: &str) -> String {
    lvm_on(device.path(), folder, command)
}

/// The same on several, with commas.
fn lvm_on(devices: &str, folder: &Path, command: &str) -> String {
    let system = format!("LVM_SYSTEM_DIR={}", folder.display());
    let mut args = vec![system.as_str(), "LVM_SUPPRESS_FD_WARNINGS=1"];
    args.extend(command.split(' '));
    args.extend(["--devices", devices, "--driverloaded", "n"]);
    args.extend(["--config", "backup{backup=0 archive=0}"]);
    run("lvm2", "env", &args)
}

/// A logical volume in a physical one, to be taken out or put in.
fn inside(extents: &[(u64, u64)], mut each: impl FnMut(u64, u64)) {
    for (first, many) in extents {
        each(EXTENTS_AT + first * EXTENT, many * EXTENT);
    }
}

fn taken(physical: &Path, extents: &[(u64, u64)], to: &Path) {
    let file = File::open(physical).unwrap();
    let mut bytes = Vec::new();
    inside(extents, |start, len| {
        let mut piece = vec![0; len as usize];
        file.read_exact_at(&mut piece, start).unwrap();
        bytes.extend(piece);
    });
    fs::write(to, bytes).unwrap();
}

fn filled(physical: &Path, extents: &[(u64, u64)], from: &Path) {
    let file = File::options().write(true).open(physical).unwrap();
    let bytes = fs::read(from).unwrap();
    let mut at = 0;
    inside(extents, |start, len| {
        file.write_all_at(&bytes[at..at + len as usize], start).unwrap();
        at += len as usize;
    });
    assert_eq!(at, bytes.len());
}

fn len(extents: &[(u64, u64)]) -> u64 {
    extents.iter().map(|(_, many)| many * EXTENT).sum()
}

impl Folder {
    /// A disk with a GPT, `/boot` and a volume group, and what Clonezilla's `savedisk` keeps of it.
    fn make() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        let folder = made.dir.path();
        made.make_physical();
        let disk = made.path("disk");
        File::create(&disk).unwrap().set_len(DISK_LEN).unwrap();
        let entry = |part: Part, kind| {
            format!("start={}, size={}, type={kind}\n", part.start / 512, part.len / 512)
        };
        let script = format!("label: gpt\n{}{}", entry(BOOT, "L"), entry(PHYSICAL, "V"));
        fs::write(made.path("script"), script).unwrap();
        shell(folder, "sfdisk -q --no-reread disk < script 2> log");
        disks::ext4(&made.path("boot"), BOOT.len, folder);
        put(&disk, &made.path("boot"), BOOT.start);
        put(&disk, &made.path("pv"), PHYSICAL.start);
        made.save();
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make_physical(&self) {
        let (folder, physical) = (self.dir.path(), self.path("pv"));
        noise_file(&physical, PHYSICAL.len, 3);
        let device = Device::new(&physical, 512);
        let path = device.path();
        let mut commands =
            vec![format!("pvcreate -y {path}"), format!("vgcreate ubuntu-vg {path}")];
        let volumes = [("ubuntu-lv", ROOT), ("home.2", HOME), ("swap_1", SWAP), ("raw", DATA)];
        for (name, extents) in volumes {
            for (i, (first, many)) in extents.iter().enumerate() {
                let command = match i {
                    0 => format!("lvcreate -y -an -Zn -Wn -n {name} -l {many} ubuntu-vg"),
                    _ => format!("lvextend -y -l +{many} ubuntu-vg/{name}"),
                };
                commands.push(format!("{command} {path}:{first}-{}", first + many - 1));
            }
        }
        for command in &commands {
            lvm(&device, folder, command);
        }
        disks::ext4(&self.path("root"), len(ROOT), folder);
        disks::fat(&self.path("home"), len(HOME), "16");
        disks::swap(&self.path("swap"), len(SWAP));
        noise_file(&self.path("raw"), len(DATA), 8);
        drop(device);
        for (extents, name) in [(ROOT, "root"), (HOME, "home"), (SWAP, "swap"), (DATA, "raw")] {
            filled(&physical, extents, &self.path(name));
        }
    }

    /// What `savedisk` leaves. A logical volume of unknown content goes through `partclone.dd`.
    fn save(&self) {
        fs::create_dir(self.path("img")).unwrap();
        let device = Device::new(&self.path("pv"), 512);
        let conf = self.path("img/lvm_ubuntu-vg.conf");
        lvm(&device, self.dir.path(), &format!("vgcfgbackup -f {} ubuntu-vg", conf.display()));
        let id = lvm(&device, self.dir.path(), "pvs --noheadings -o pv_uuid");
        fs::write(self.path("img/lvm_vg_dev.list"), format!("ubuntu-vg /dev/sda2 {}\n", id.trim()))
            .unwrap();
        let (sectors, dir) = (DISK_LEN / 512, self.dir.path().display());
        shell(
            self.dir.path(),
            &format!(
                "exec 2> log; echo sda > img/disk; echo sda1 sda2 > img/parts; \
                 sfdisk -d disk | sed 's,^{dir}/disk,/dev/sda,; s,^disk,/dev/sda,' > img/sda-pt.sf; \
                 printf 'Disk /dev/sda: {sectors}s\\n' > img/sda-pt.parted; \
                 dd if=disk of=img/sda-mbr bs=512 count=1; dd if=disk of=img/sda-gpt-1st bs=512 count=34; \
                 dd if=disk of=img/sda-gpt-2nd bs=512 skip={} count=33; \
                 partclone.ext4 -q -c -L l -s boot | gzip -c > img/sda1.ext4-ptcl-img.gz.aa; \
                 partclone.ext4 -q -c -L l -s root | gzip -c | split -b 900000 - img/ubuntu-vg-ubuntu-lv.ext4-ptcl-img.gz.; \
                 partclone.vfat -q -c -L l -s home | zstd -q -c > img/ubuntu-vg-home.2.vfat-ptcl-img.zst; \
                 gzip -c raw > img/ubuntu-vg-raw.dd-ptcl-img.gz.aa; \
                 for v in ubuntu-lv:root home.2:home swap_1:swap raw:raw; do \
                   echo \"/dev/ubuntu-vg/${{v%:*}}  $(file -Ls ${{v#*:}} | cut -d: -f2-)\" >> img/lvm_logv.list; done; \
                 printf 'UUID=\"%s\"\\nLABEL=\"swap\"\\n' $(blkid -p -s UUID -o value swap) > img/swappt-ubuntu-vg-swap_1.info",
                sectors - 33
            ),
        );
    }

    /// What LVM says of a physical volume, whatever device it is on.
    fn said(&self, physical: &Path) -> String {
        let device = Device::new(physical, 512);
        let commands = [
            "pvs --noheadings -o pv_uuid,pv_size,pv_used,pe_start,pv_mda_count,pv_mda_size,dev_size,pv_in_use,pv_ba_size",
            "vgs --noheadings -o vg_name,vg_uuid,vg_attr,vg_extent_count,vg_free_count,vg_seqno,vg_mda_count",
            "lvs --noheadings --segments -o lv_name,lv_uuid,lv_attr,lv_size,lv_time,seg_pe_ranges",
            "vgck ubuntu-vg",
        ];
        let said = commands.map(|command| lvm(&device, self.dir.path(), command)).concat();
        said.replace(device.path(), "")
    }

    /// Whether a disk holds what was saved.
    fn judge(&self, disk: &Path) {
        assert_eq!(dump(disk), dump(&self.path("disk")));
        let back = self.path("back");
        take(disk, PHYSICAL, &back);
        assert_eq!(self.said(&back), self.said(&self.path("pv")));
        // What partclone takes of each filesystem is the same, and so are its bytes.
        let (a, b) = (self.path("a"), self.path("b"));
        for (extents, name, kind) in [(ROOT, "root", "ext4"), (HOME, "home", "vfat")] {
            taken(&back, extents, &a);
            let save = |from: &str, to: &str| {
                shell(
                    self.dir.path(),
                    &format!("partclone.{kind} -q -c -L l -s {from} -o - > {to} 2> log"),
                );
            };
            save("a", "a.ptcl");
            save(name, "b.ptcl");
            let [a, b] = ["a.ptcl", "b.ptcl"].map(|name| fs::read(self.path(name)).unwrap());
            assert!(a == b, "{name} came back as something else");
        }
        taken(&back, ROOT, &a);
        run("e2fsprogs", "e2fsck", &["-fn", a.to_str().unwrap()]);
        taken(&back, HOME, &a);
        run("dosfstools", "fsck.vfat", &["-n", a.to_str().unwrap()]);
        taken(&back, DATA, &a);
        assert!(fs::read(&a).unwrap() == fs::read(self.path("raw")).unwrap());
        taken(&back, SWAP, &a);
        taken(&self.path("pv"), SWAP, &b);
        assert_eq!(disks::identity(&a), disks::identity(&b));
    }
}

#[test]
fn a_volume_group_saved_by_clonezilla_comes_back() {
    let made = Folder::make();
    let (image, target) = (made.path("img"), made.path("target"));
    // What was on the target before is in the way of nothing: another physical volume's label, a btrfs behind it.
    noise_file(&target, DISK_LEN, 6);
    let file = File::options().write(true).open(&target).unwrap();
    file.write_all_at(b"_BHRfS_M", PHYSICAL.start + (64 << 10) + 64).unwrap();
    file.write_all_at(b"LABELONE", PHYSICAL.start).unwrap();
    restore(&image, &target, &[]);
    made.judge(&target);
    let known = disks::identity(&made.path("back"));
    assert!(known.contains("TYPE=LVM2_member"), "{known}");

    // The label is to the byte what LVM's own tools make of the same folder, and the metadata are but for what these say of themselves.
    let own = made.path("own");
    File::create(&own).unwrap().set_len(PHYSICAL.len).unwrap();
    let device = Device::new(&own, 512);
    let list = fs::read_to_string(image.join("lvm_vg_dev.list")).unwrap();
    let conf = image.join("lvm_ubuntu-vg.conf").display().to_string();
    let id = list.split_whitespace().last().unwrap();
    let create = format!("pvcreate -ff --yes --uuid {id} --zero y --restorefile {conf}");
    lvm(&device, made.dir.path(), &format!("{create} {}", device.path()));
    lvm(&device, made.dir.path(), &format!("vgcfgrestore --force -f {conf} ubuntu-vg"));
    drop(device);
    let [own, back] = [own, made.path("back")].map(|path| fs::read(path).unwrap());
    assert!(own[..4096] == back[..4096], "the label");
    assert!(own[4100..4096 + 48] == back[4100..4096 + 48], "the metadata area's header");
    let metadata = |bytes: &[u8]| {
        let text = bytes[4096 + 512..].split(|byte| *byte == 0).next().unwrap();
        // Blanks, comments and what says where and when it was written are LVM's.
        let ours = |line: &&str| {
            !["seqno", "device =", "description", "creation_"].iter().any(|w| line.starts_with(w))
        };
        let text = String::from_utf8(text.to_vec()).unwrap();
        let lines = text.lines().map(|line| line.split('\t').next().unwrap());
        let lines: Vec<&str> = lines.filter(|line| !line.starts_with('#')).filter(ours).collect();
        lines.concat().split_whitespace().collect::<String>()
    };
    assert_eq!(metadata(&back), metadata(&own));

    // LVM goes on writing where it left.
    let device = Device::new(&made.path("back"), 512);
    for command in ["lvcreate -y -an -Zn -Wn -n more -l 1 ubuntu-vg", "vgck ubuntu-vg"] {
        lvm(&device, made.dir.path(), command);
    }
    drop(device);

    // As an image of ours, and a disk made of that: mapped like any other.
    let ours = made.path("a.img.zst");
    assert_eq!(convert(&image, &ours, &[]).code, 0);
    let shown = agent(&["inspect", "--json", ours.to_str().unwrap()]).json();
    let volumes = shown["manifest"]["volumes"].as_array().unwrap();
    let kinds: Vec<_> = volumes.iter().map(|v| v["filesystem"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ext4", "lvm2"]);
    noise_file(&target, DISK_LEN, 7);
    restore(&ours, &target, &[]);
    made.judge(&target);
    let plan = agent(&["plan", "capture", target.to_str().unwrap()]).stdout;
    assert!(plan.contains("ubuntu-vg/ubuntu-lv") && plan.contains("ubuntu-vg/home.2"), "{plan}");
}

#[test]
fn a_volume_group_that_cannot_come_back_is_named() {
    let made = Folder::make();
    let (image, out) = (made.path("img"), made.path("out.raw"));
    let (list, conf) = ("lvm_vg_dev.list", "lvm_ubuntu-vg.conf");
    let text = |name: &str| fs::read_to_string(image.join(name)).unwrap();
    let changed = |name: &str, from: &str, to: &str, kind: &str, words: &[&str]| {
        let whole = fs::read(image.join(name)).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        assert!(text.contains(from), "{from} in {name}");
        fs::write(image.join(name), text.replacen(from, to, 1)).unwrap();
        convert(&image, &out, &[]).refused(kind, words);
        fs::write(image.join(name), whole).unwrap();
    };
    let advice = "restore it with Clonezilla and capture that disk";
    // The group.
    changed(conf, "stripe_count = 1", "stripe_count = 2", "refused", &["sda2", "striped", advice]);
    changed(conf, "\"striped\"", "\"thin\"", "refused", &["\"ubuntu-lv\"", "thin", advice]);
    changed(conf, "\"VISIBLE\"", "\"SNAPSHOT\"", "refused", &["SNAPSHOT", advice]);
    changed(conf, "\"pv0\", 0", "\"pv0\", 6", "refused", &["share extents"]);
    changed(conf, "\"pv0\", 30", "\"pv0\", 300", "refused", &["segment 3 is broken"]);
    changed(conf, "pe_count = ", "pe_count = 9", "refused", &["contradict"]);
    changed(conf, "dev_size = ", "dev_size = 9", "refused", &["contradict"]);
    changed(conf, "pe_start = 2048", "pe_start = 8", "refused", &["no room in front"]);
    changed(conf, "extent_size = 8192", "extent_size = 9223372036854775807", "refused", &["sda2"]);
    changed(
        conf,
        "ubuntu-vg {",
        "debian-vg {",
        "image_corrupt",
        &["of a volume group 'debian-vg'"],
    );
    let whole = text(conf);
    for len in [0, 10, 400, whole.len() / 2, whole.trim_end().len() - 1] {
        changed(conf, &whole, &whole[..len], "refused", &[conf]);
    }
    // The list.
    let id = text(list).split_whitespace().last().unwrap().to_owned();
    let other: String = id.chars().rev().collect();
    changed(list, &id, &other, "refused", &["not of this physical volume"]);
    changed(list, &id, "", "image_corrupt", &["makes no sense"]);
    changed(list, "/dev/sda2", "/dev/sdb2", "refused", &["no partition of sda"]);
    changed(list, "/dev/sda2", "/dev/sda", "refused", &["not all of a disk"]);
    changed(list, "ubuntu-vg", "../img/a", "image_corrupt", &["lvm_../img/a.conf is missing"]);
    // A filesystem of that name is no swap.
    changed("lvm_logv.list", "swap file", "swap_1, ext4", "refused", &["taken for swap"]);
    let swap = "swappt-ubuntu-vg-swap_1.info";
    changed(swap, "UUID=", "U=", "image_corrupt", &["swap of ubuntu-vg/swap_1 has no UUID"]);
    // The images.
    let without = |name: &str, kind: &str, words: &[&str]| {
        fs::rename(image.join(name), made.path("kept")).unwrap();
        convert(&image, &out, &[]).refused(kind, words);
        fs::rename(made.path("kept"), image.join(name)).unwrap();
    };
    without(list, "refused", &["no image of sda2"]);
    without(conf, "image_corrupt", &["lvm_ubuntu-vg.conf is missing"]);
    without(swap, "refused", &["no image of ubuntu-vg/swap_1"]);
    without("ubuntu-vg-raw.dd-ptcl-img.gz.aa", "refused", &["no image of ubuntu-vg/raw"]);
    without("ubuntu-vg-ubuntu-lv.ext4-ptcl-img.gz.ab", "image_corrupt", &["are missing"]);
    let with = |name: &str, command: &str, words: &[&str]| {
        fs::rename(image.join(name), made.path("kept")).unwrap();
        shell(made.dir.path(), &format!("({command}) > img/{name} 2> log"));
        convert(&image, &out, &[]).refused("image_corrupt", words);
        let target = made.path("target");
        noise_file(&target, DISK_LEN, 7);
        let before = blake3::hash(&fs::read(&target).unwrap());
        let args = ["restore", image.to_str().unwrap(), target.to_str().unwrap(), "--yes"];
        agent(&args).refused("image_corrupt", words);
        assert_eq!(blake3::hash(&fs::read(&target).unwrap()), before, "the target was written to");
        fs::rename(made.path("kept"), image.join(name)).unwrap();
    };
    let raw = "ubuntu-vg-raw.dd-ptcl-img.gz.aa";
    let words = ["the image of ubuntu-vg/raw is longer than its logical volume"];
    with(raw, "cat raw raw | gzip -c", &words);
    with(raw, "(cat raw; echo) | gzip -c", &words);
    let words = ["the image of ubuntu-vg/raw ends 4194304 bytes before its logical volume does"];
    with(raw, "head -c 4194304 raw | gzip -c", &words);
    let words = ["the image of ubuntu-vg/home.2 is longer than its logical volume"];
    let longer = "(cat home; head -c 1048576 /dev/zero) > longer; partclone.ext4 -q -c -L l -s root -o - | zstd -q -c";
    with("ubuntu-vg-home.2.vfat-ptcl-img.zst", longer, &words);
    assert!(!out.exists());
}

/// As a virtual machine's disk has it that was made larger: the group went on in a new partition.
#[test]
fn a_volume_group_in_two_partitions_comes_back() {
    const PARTS: [Part; 2] =
        [Part { start: MIB, len: 40 * MIB }, Part { start: 41 * MIB, len: 70 * MIB }];
    // Of 4 MiB, from the first MiB of each on: one volume goes from the second into the first, another one lies in both.
    const PIECES: [Part; 3] = [
        Part { start: 42 * MIB, len: 16 * MIB },
        Part { start: 2 * MIB, len: 24 * MIB },
        Part { start: 42 * MIB + 24 * MIB, len: 8 * MIB },
    ];
    const LEN: u64 = 112 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let (folder, path) = (dir.path(), |name: &str| dir.path().join(name));
    noise_file(&path("disk"), LEN, 3);
    let entry =
        |part: Part| format!("start={}, size={}, type=8e\n", part.start / 512, part.len / 512);
    fs::write(path("script"), format!("label: dos\n{}{}", entry(PARTS[0]), entry(PARTS[1])))
        .unwrap();
    shell(folder, "sfdisk -q --no-reread disk < script 2> log; mkdir img");
    let physical = |disk: &Path| {
        PARTS.map(|part| {
            let file = path(&format!("pv{}", part.start));
            take(disk, part, &file);
            Device::new(&file, 512)
        })
    };
    let said = |devices: &[Device; 2]| {
        let both = format!("{},{}", devices[0].path(), devices[1].path());
        let commands = [
            "pvs --noheadings -O pv_uuid -o pv_uuid,pv_size,pv_used,pe_start,pv_mda_size,dev_size,pv_in_use",
            "vgs --noheadings -o vg_name,vg_uuid,vg_attr,vg_extent_count,vg_free_count,vg_seqno,vg_mda_count",
            "lvs --noheadings --segments -o lv_name,lv_uuid,lv_attr,lv_size,seg_pe_ranges",
            "vgck vg",
        ];
        let said = commands.map(|command| lvm_on(&both, folder, command)).concat();
        said.replace(devices[0].path(), "a").replace(devices[1].path(), "b")
    };
    let devices = physical(&path("disk"));
    let [first, second] = [0, 1].map(|i: usize| devices[i].path());
    let both = format!("{first},{second}");
    let conf = path("img/lvm_vg.conf");
    for command in [
        format!("pvcreate -y {first} {second}"),
        format!("vgcreate vg {first} {second}"),
        format!("lvcreate -y -an -Zn -Wn -n root -l 4 vg {second}:0-3"),
        format!("lvextend -y -l +6 vg/root {first}:0-5"),
        format!("lvextend -y -l +2 vg/root {second}:6-7"),
        format!("vgcfgbackup -f {} vg", conf.display()),
    ] {
        lvm_on(&both, folder, &command);
    }
    let before = said(&devices);
    // The other way round than on the disk.
    let list = [(second, "sda2"), (first, "sda1")].map(|(device, name)| {
        let id = lvm_on(&both, folder, &format!("pvs --noheadings -o pv_uuid {device}"));
        format!("vg /dev/{name} {}\n", id.trim())
    });
    fs::write(path("img/lvm_vg_dev.list"), list.concat()).unwrap();
    drop(devices);
    disks::ext4(&path("root"), 48 * MIB, folder);
    shell(
        folder,
        &format!(
            "exec 2> log; echo sda > img/disk; echo sda1 sda2 > img/parts; dd if=disk of=img/sda-mbr bs=512 count=1; \
             sfdisk -d disk | sed 's,^disk,/dev/sda,' > img/sda-pt.sf; printf 'Disk /dev/sda: {}s\n' > img/sda-pt.parted; \
             echo '/dev/vg/root  Linux rev 1.0 ext4 filesystem data' > img/lvm_logv.list; \
             partclone.ext4 -q -c -L l -s root | gzip -c > img/vg-root.ext4-ptcl-img.gz.aa",
            LEN / 512
        ),
    );
    let target = path("target");
    noise_file(&target, LEN, 6);
    restore(&path("img"), &target, &[]);
    assert_eq!(dump(&target), dump(&path("disk")));
    assert_eq!(said(&physical(&target)), before);
    let mut root = Vec::new();
    for piece in PIECES {
        take(&target, piece, &path("piece"));
        root.extend(fs::read(path("piece")).unwrap());
    }
    fs::write(path("back"), root).unwrap();
    run("e2fsprogs", "e2fsck", &["-fn", path("back").to_str().unwrap()]);
    shell(
        folder,
        "for file in root back; do partclone.ext4 -q -c -L l -s $file -o - > $file.ptcl 2> log; done; cmp root.ptcl back.ptcl",
    );
    let shown = agent(&["inspect", "--json", path("img").to_str().unwrap()]).json();
    let volumes = shown["manifest"]["volumes"].as_array().unwrap();
    assert!(
        volumes.iter().all(|v| v["filesystem"] == "lvm2" && v["taken"] == "map"),
        "{volumes:#?}"
    );

    // Where the other half was on another disk, nothing can be put together.
    fs::write(path("img/lvm_vg_dev.list"), &list[1]).unwrap();
    let words = ["LVM on sda1", "several physical volumes", "restore it with Clonezilla"];
    convert(&path("img"), &path("out.raw"), &[]).refused("refused", &words);
}

#[test]
fn a_disk_that_is_a_physical_volume_comes_back() {
    const LEN: u64 = 50 * MIB;
    let dir = tempfile::tempdir().unwrap();
    let (folder, path) = (dir.path(), |name: &str| dir.path().join(name));
    noise_file(&path("disk"), LEN, 3);
    let device = Device::new(&path("disk"), 512);
    shell(folder, "mkdir img");
    let conf = path("img/lvm_data.conf");
    for command in [
        format!("pvcreate -y {}", device.path()),
        format!("vgcreate -s 1m data {}", device.path()),
        "lvcreate -y -an -Zn -Wn -n files -l 20 data".into(),
        format!("vgcfgbackup -f {} data", conf.display()),
    ] {
        lvm(&device, folder, &command);
    }
    let said = |device: &Device| {
        let commands = [
            "vgs --noheadings -o vg_uuid,vg_free",
            "lvs --segments -o lv_uuid,lv_size",
            "vgck data",
        ];
        commands.map(|command| lvm(device, folder, command)).concat()
    };
    let id = lvm(&device, folder, "pvs --noheadings -o pv_uuid");
    fs::write(path("img/lvm_vg_dev.list"), format!("data /dev/sdb {}\n", id.trim())).unwrap();
    let before = said(&device);
    drop(device);
    disks::ext4(&path("files"), 20 * MIB, folder);
    shell(
        folder,
        &format!(
            "exec 2> log; echo sdb > img/disk; echo sdb > img/parts; dd if=disk of=img/sdb-mbr bs=512 count=1; : > img/sdb-pt.sf; \
             printf 'Error: /dev/sdb: unrecognised disk label\nModel: x\nDisk /dev/sdb: {}s\nSector size (logical/physical): 512B/512B\n' \
             > img/sdb-pt.parted; partclone.ext4 -q -c -L l -s files | gzip -c > img/data-files.ext4-ptcl-img.gz.aa",
            LEN / 512
        ),
    );
    let target = path("target");
    noise_file(&target, LEN, 6);
    restore(&path("img"), &target, &[]);
    assert_eq!(said(&Device::new(&target, 512)), before);
    take(&target, Part { start: MIB, len: 20 * MIB }, &path("back"));
    run("e2fsprogs", "e2fsck", &["-fn", path("back").to_str().unwrap()]);
    fs::write(path("img/sdb-pt.parted"), "Model: x\n").unwrap();
    let words = ["sdb-pt.parted does not say how large the disk is"];
    convert(&path("img"), &path("out.raw"), &[]).refused("image_corrupt", &words);
}
