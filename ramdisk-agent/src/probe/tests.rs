//! What is found in volumes made by their own tools, beside what blkid finds; and in volumes that were made twice.

use std::fs::{self, File};
use std::io::{Cursor, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::fs::{Taken, VolumeMap, map_volume};

/// mkfs.xfs makes nothing smaller.
const VOLUME_BYTES: u64 = 320 << 20;

/// Runs a tool of a Debian package, which must succeed, with some standard input.
fn tool(package: &str, args: &[&str], stdin: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("env")
        .args([&format!("PATH={path}"), "LC_ALL=C.UTF-8", "LVM_SUPPRESS_FD_WARNINGS=1"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A tool that reads nothing may have ended.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert_ne!(
        output.status.code(),
        Some(127),
        "{} is missing: apt-get install {package}",
        args[0]
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {text}{errors}");
    text
}

/// What libblkid says of a volume; nothing if it says nothing.
fn blkid(volume: &Path, tag: &str) -> Option<String> {
    let script = "blkid -p -o value -s \"$1\" \"$2\" || test $? = 2";
    let args = ["sh", "-c", script, "sh", tag, volume.to_str().unwrap()];
    let value = tool("util-linux", &args, "").trim_end().to_owned();
    (!value.is_empty()).then_some(value)
}

/// How a kind is made: package, command, standard input, what it is called here and by blkid.
struct Maker {
    kind: FsKind,
    blkid: &'static str,
    package: &'static str,
    command: &'static str,
    stdin: &'static str,
    label: Option<&'static str>,
}

const fn maker(
    kind: FsKind,
    blkid: &'static str,
    package: &'static str,
    command: &'static str,
    label: Option<&'static str>,
) -> Maker {
    Maker { kind, blkid, package, command, stdin: "a passphrase", label }
}

const MAKERS: [Maker; 13] = [
    maker(FsKind::Ext2, "ext2", "e2fsprogs", "mke2fs -q -F -t ext2 -L second", Some("second")),
    maker(FsKind::Ext4, "ext4", "e2fsprogs", "mke2fs -q -F -t ext4 -L fourth", Some("fourth")),
    maker(FsKind::Fat16, "vfat", "dosfstools", "mkfs.fat -F 16 -n SIXTEEN", Some("SIXTEEN")),
    maker(FsKind::Fat32, "vfat", "dosfstools", "mkfs.fat -F 32 -n ESP", Some("ESP")),
    maker(FsKind::Swap, "swap", "util-linux", "mkswap -q -f -L swap", Some("swap")),
    maker(FsKind::Xfs, "xfs", "xfsprogs", "mkfs.xfs -q -f -L twelve_bytes", Some("twelve_bytes")),
    maker(FsKind::Btrfs, "btrfs", "btrfs-progs", "mkfs.btrfs -q -f -L tree", Some("tree")),
    maker(FsKind::Ntfs, "ntfs", "ntfs-3g", "mkntfs -Q -q -F -L Fenêtres", Some("Fenêtres")),
    maker(FsKind::Ntfs, "ntfs", "ntfs-3g", "mkntfs -Q -q -F -c 65536", None),
    maker(FsKind::Exfat, "exfat", "exfatprogs", "mkfs.exfat -L clé", Some("clé")),
    maker(
        FsKind::Luks,
        "crypto_LUKS",
        "cryptsetup-bin",
        "cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000",
        None,
    ),
    maker(
        FsKind::Luks,
        "crypto_LUKS",
        "cryptsetup-bin",
        "cryptsetup -q luksFormat --type luks2 --label sealed --pbkdf pbkdf2 --pbkdf-force-iterations 1000",
        Some("sealed"),
    ),
    maker(FsKind::Unknown, "", "coreutils", "truncate -c -s +0", None),
];

fn has_map(kind: FsKind) -> bool {
    !matches!(kind, FsKind::Luks | FsKind::Unknown)
}

impl Maker {
    fn make(&self, volume: &Path) {
        let mut args: Vec<_> = self.command.split(' ').collect();
        args.push(volume.to_str().unwrap());
        tool(self.package, &args, self.stdin);
    }
}

fn look(volume: &Path) -> VolumeMap {
    let mut file = File::open(volume).unwrap();
    let len = file.metadata().unwrap().len();
    map_volume(&mut file, len).unwrap()
}

fn listed(volume: &Path) -> Vec<Signature> {
    let mut file = File::open(volume).unwrap();
    let len = file.metadata().unwrap().len();
    signatures(&mut file, len).unwrap()
}

fn empty(folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(VOLUME_BYTES).unwrap();
    path
}

/// Name, identity and kind are those of blkid.
fn agrees_with_blkid(volume: &Path, kind: FsKind, type_name: &str) -> VolumeMap {
    let map = look(volume);
    assert_eq!(map.kind, kind);
    assert_eq!(blkid(volume, "TYPE").as_deref(), Some(type_name).filter(|name| !name.is_empty()));
    assert_eq!(map.uuid, blkid(volume, "UUID"), "{kind}");
    assert_eq!(map.label, blkid(volume, "LABEL"), "{kind}");
    map
}

#[test]
fn every_kind_is_told_as_blkid_tells_it() {
    let folder = tempfile::tempdir().unwrap();
    for maker in &MAKERS {
        let volume = empty(folder.path(), "volume");
        maker.make(&volume);
        let map = agrees_with_blkid(&volume, maker.kind, maker.blkid);
        assert_eq!(map.label.as_deref(), maker.label, "{}", maker.command);
        match map.taken {
            Taken::Map => assert!(has_map(maker.kind), "{}", maker.command),
            Taken::Raw { reason } => {
                assert!(!has_map(maker.kind), "{}: {reason}", maker.command);
                assert_eq!(map.used, crate::extents::Extents::single(0, VOLUME_BYTES));
            }
        }
        let all = listed(&volume);
        if maker.kind == FsKind::Unknown {
            assert_eq!(all, []);
            continue;
        }
        let kind = SignatureKind::Volume(maker.kind);
        assert!(all.iter().any(|s| s.kind == kind), "{}: {all:?}", maker.command);
        // Without the bytes that make it recognisable it is gone.
        let file = File::options().write(true).open(&volume).unwrap();
        for signature in &all {
            let zeros = vec![0; usize::try_from(signature.len).unwrap()];
            file.write_all_at(&zeros, signature.offset).unwrap();
        }
        // A boot sector's last two bytes are those of an MBR.
        let mut left = listed(&volume);
        left.retain(|s| s.what != "MBR without partitions");
        assert_eq!(left, [], "{}", maker.command);
        assert_eq!(look(&volume).kind, FsKind::Unknown, "{}", maker.command);
    }
}

/// Each kind made over each other: the later one is in use, whatever is left of the earlier.
#[test]
fn a_volume_that_was_made_twice_is_what_was_made_last() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for (number, before) in MAKERS.iter().enumerate() {
        for after in MAKERS.iter().filter(|after| after.kind != FsKind::Unknown) {
            let volume = empty(folder.path(), &format!("volume{number}"));
            before.make(&volume);
            after.make(&volume);
            let map = look(&volume);
            if map.kind != after.kind || map.label.as_deref() != after.label {
                wrong.push(format!("{} after {}: {map:?}", after.command, before.command));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong: {wrong:#?}", wrong.len());
}

/// A physical volume must be a device for LVM's tools.
#[test]
fn an_lvm_physical_volume() {
    let folder = tempfile::tempdir().unwrap();
    let volume = empty(folder.path(), "pv");
    let device = tool("mount", &["losetup", "--find", "--show", volume.to_str().unwrap()], "");
    let device = device.trim_end();
    let made = std::panic::catch_unwind(|| {
        tool("lvm2", &["pvcreate", "-q", "--devices", device, device], "");
    });
    tool("mount", &["losetup", "--detach", device], "");
    made.unwrap();
    agrees_with_blkid(&volume, FsKind::Lvm2, "LVM2_member");
    assert_eq!(listed(&volume).len(), 1);
}

/// A superblock of Linux's software RAID, which mdadm makes only where the kernel has the driver.
fn md_1(offset: u64) -> [u8; 256] {
    md_1_of_level(offset, 1)
}

fn md_1_of_level(offset: u64, level: u32) -> [u8; 256] {
    let mut bytes = [0; 256];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &0xa92b_4efc_u32.to_le_bytes());
    put(4, &1_u32.to_le_bytes());
    put(16, &[0x5a; 16]);
    put(32, b"host:0");
    put(72, &level.to_le_bytes());
    put(144, &(offset / 512).to_le_bytes());
    let words = bytes.chunks_exact(4).map(|w| u64::from(le32(w, 0).unwrap())).sum::<u64>();
    let sum = u32::try_from((words & 0xffff_ffff) + (words >> 32)).unwrap();
    bytes[216..220].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn a_member_of_a_software_raid() {
    let folder = tempfile::tempdir().unwrap();
    for offset in [0, 4096, (VOLUME_BYTES / 512 - 16) * 512] {
        let volume = empty(folder.path(), "member");
        let file = File::options().write(true).open(&volume).unwrap();
        file.write_all_at(&md_1(offset), offset).unwrap();
        let map = agrees_with_blkid(&volume, FsKind::MdRaid, "linux_raid_member");
        assert!(map.uuid.is_some() && map.label.is_some());
    }
    // mdadm leaves an older filesystem's superblock and bitmaps as they are; a formatter leaves nothing of the RAID.
    for maker in MAKERS.iter().filter(|maker| maker.kind != FsKind::Unknown) {
        for offset in [0, 4096] {
            let volume = empty(folder.path(), "both");
            let file = File::options().write(true).open(&volume).unwrap();
            file.write_all_at(&md_1(offset), offset).unwrap();
            maker.make(&volume);
            assert_eq!(look(&volume).kind, maker.kind, "{} after md at {offset}", maker.command);
            if has_map(maker.kind) {
                file.write_all_at(&md_1(offset), offset).unwrap();
                let map = look(&volume);
                assert_eq!(map.kind, FsKind::MdRaid, "md at {offset} after {}", maker.command);
                assert_eq!(map.used.total_bytes(), VOLUME_BYTES);
            }
        }
    }
    // One whose checksum is wrong says nothing of what lies before it; who writes to the volume is told of it.
    let volume = empty(folder.path(), "mirror");
    MAKERS[1].make(&volume);
    let mut wrong = md_1(MD_1_AT);
    wrong[200] ^= 1;
    let file = File::options().write(true).open(&volume).unwrap();
    file.write_all_at(&wrong, MD_1_AT).unwrap();
    assert_eq!(look(&volume).taken, Taken::Map);
    let all = listed(&volume);
    assert!(all.iter().any(|s| s.kind == SignatureKind::Volume(FsKind::MdRaid)), "{all:?}");
}

const MD_1_AT: u64 = (VOLUME_BYTES / 512 - 16) * 512;
const MD_0_AT: u64 = VOLUME_BYTES - (64 << 10);

/// A superblock of version 0.90, of a RAID 10 on disks of so many bytes.
fn md_0(size_bytes: u64, is_little: bool) -> Vec<u8> {
    let mut words = [0_u32; 1024];
    words[0] = 0xa92b_4efc;
    words[2] = 90;
    words[5] = 0x5a5a_5a5a;
    words[7] = 10;
    words[8] = u32::try_from(size_bytes >> 10).unwrap();
    words[10] = 2;
    words[65] = 512 << 10;
    let sum = words.iter().map(|word| u64::from(*word)).sum::<u64>();
    words[38] = u32::try_from((sum & 0xffff_ffff) + (sum >> 32)).unwrap();
    let bytes = |word: &u32| if is_little { word.to_le_bytes() } else { word.to_be_bytes() };
    words.iter().flat_map(bytes).collect()
}

/// A filesystem in the first stripe of an array may pass every check, and its map is not one of this disk.
#[test]
fn a_member_that_is_told_by_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let superblocks = [
        (MD_1_AT, md_1(MD_1_AT).to_vec()),
        (MD_0_AT, md_0(MD_0_AT, true)),
        (MD_0_AT, md_0(MD_0_AT, false)),
    ];
    let volume = folder.path().join("member");
    for (at, superblock) in &superblocks {
        for maker in MAKERS.iter().filter(|maker| maker.kind != FsKind::Unknown) {
            let volume = empty(folder.path(), "member");
            let file = File::options().read(true).write(true).open(&volume).unwrap();
            file.write_all_at(superblock, *at).unwrap();
            maker.make(&volume);
            let mut there = vec![0; superblock.len()];
            file.read_exact_at(&mut there, *at).unwrap();
            let map = look(&volume);
            // Some makers clear it, and some filesystems reach over it.
            if there == *superblock && map.kind == FsKind::MdRaid {
                assert_eq!(map.used.total_bytes(), VOLUME_BYTES);
            } else {
                assert_eq!(map.kind, maker.kind, "{} over md at {at}", maker.command);
                assert_eq!(map.taken == Taken::Map, has_map(maker.kind), "{}", maker.command);
            }
        }
        // A filesystem that ends before it.
        let file = File::create(&volume).unwrap();
        file.set_len(VOLUME_BYTES).unwrap();
        let blocks = (*at / 4096).to_string();
        tool(
            "e2fsprogs",
            &["mkfs.ext4", "-q", "-F", "-b", "4096", volume.to_str().unwrap(), &blocks],
            "",
        );
        file.write_all_at(superblock, *at).unwrap();
        let map = agrees_with_blkid(&volume, FsKind::MdRaid, "linux_raid_member");
        assert_eq!(map.used.total_bytes(), VOLUME_BYTES);
    }
}

/// The table in the first stripe of an array is not one of this disk.
#[test]
fn a_disk_that_is_a_member_has_no_partitions() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let table = |superblock: &[u8], at: u64| {
        let file = File::create(&disk).unwrap();
        file.set_len(VOLUME_BYTES).unwrap();
        tool("fdisk", &["sfdisk", "-q", disk.to_str().unwrap()], "label: dos\nstart=2048\n");
        let file = File::options().read(true).write(true).open(&disk).unwrap();
        file.write_all_at(superblock, at).unwrap();
        match table::read_table(&mut &file, VOLUME_BYTES, 512).unwrap() {
            TableOutcome::Table(table) => table.partitions.len(),
            TableOutcome::Refused(refusal) => panic!("{refusal}"),
        }
    };
    assert_eq!(table(&md_1_of_level(MD_1_AT, 10), MD_1_AT), 0);
    assert_eq!(table(&md_1(MD_1_AT), MD_1_AT), 1, "a mirror's table is that of each disk");
    assert_eq!(table(&md_0(MD_0_AT, true), MD_0_AT), 0);
    // This one is of the partition, which ends with the disk.
    assert_eq!(table(&md_0(MD_0_AT - (1 << 20), true), MD_0_AT), 1);
    assert_eq!(table(&[0; 256], MD_1_AT), 1);
}

/// ReFS, APFS and VMFS may leave the superblock and the bitmaps of what was there before.
#[test]
fn a_filesystem_without_a_map_over_one_that_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let marks: [(&str, u64, &[u8]); 3] = [
        ("ReFS", 0, b"\0\0\0ReFS\0"),
        ("APFS", 32, b"NXSB"),
        ("VMFS", 1 << 20, &[0x0d, 0xd0, 0x01, 0xc0]),
    ];
    for maker in MAKERS.iter().filter(|maker| has_map(maker.kind)) {
        for (name, at, mark) in marks {
            let volume = empty(folder.path(), "both");
            let file = File::options().write(true).open(&volume).unwrap();
            file.write_all_at(mark, at).unwrap();
            maker.make(&volume);
            // Nothing but VMFS has a mark that far behind, which makers need not overwrite.
            if name != "VMFS" {
                assert_eq!(look(&volume).taken, Taken::Map, "{} over {name}", maker.command);
            }
            file.write_all_at(mark, at).unwrap();
            let map = look(&volume);
            let Taken::Raw { reason } = map.taken else { panic!("{name} over {}", maker.command) };
            assert!(reason.contains(name), "{reason}");
            assert_eq!((map.kind, map.used.total_bytes()), (FsKind::Unknown, VOLUME_BYTES));
        }
    }
}

#[test]
fn what_a_whole_disk_would_lose() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let (start, end) = (1 << 20, 1 << 20);
    File::create(&disk).unwrap().set_len(2 * VOLUME_BYTES + start + end).unwrap();
    let sectors = VOLUME_BYTES / 512;
    let script = format!(
        "label: gpt\nstart=2048, size={sectors}, type=U\nstart={}, size={}, type=L\n",
        2048 + sectors,
        sectors - 4096
    );
    tool("fdisk", &["sfdisk", "-q", "--no-reread", disk.to_str().unwrap()], &script);
    assert_eq!(listed(&disk).len(), 4, "{:?}", listed(&disk));
    let volume = empty(folder.path(), "volume");
    MAKERS[3].make(&volume);
    let file = File::options().write(true).open(&disk).unwrap();
    let mut head = vec![0; 4 << 20];
    File::open(&volume).unwrap().read_exact(&mut head).unwrap();
    file.write_all_at(&head, start).unwrap();
    let what: Vec<_> = listed(&disk).into_iter().map(|s| s.what).collect();
    assert_eq!(what[0], "GPT with 2 partitions");
    assert_eq!(what[1], "more sectors of the GPT");
    assert!(what[2].starts_with("partition 1: fat32 'ESP' (uuid "), "{what:?}");
    assert_eq!(what[3], "partition 2: nothing that is known");
    // Without LBA 0 and the primary there still is the backup.
    file.write_all_at(&[0; 34 * 512], 0).unwrap();
    let what: Vec<_> = listed(&disk).into_iter().map(|s| s.what).collect();
    assert_eq!(what, ["a left-over backup GPT"]);
}

fn seeds() -> Vec<Vec<u8>> {
    static HEADS: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let heads = MAKERS.iter().map(|maker| {
            let volume = empty(folder.path(), "volume");
            maker.make(&volume);
            let mut head = vec![0; 128 << 10];
            File::open(&volume).unwrap().read_exact(&mut head).unwrap();
            fs::remove_file(volume).unwrap();
            head
        });
        heads.collect()
    };
    HEADS.get_or_init(make).clone()
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at_without_harm(
        seed in 0..MAKERS.len(),
        places in prop::collection::vec((0..(128_usize << 10), any::<u8>()), 0..20),
        near in prop::collection::vec((0..4096_usize, any::<u8>()), 0..20),
        len in 0..(128_usize << 10),
    ) {
        let mut bytes = seeds()[seed].clone();
        for (at, value) in places.into_iter().chain(near) {
            bytes[at] = value;
        }
        for len in [len, len % 4096, bytes.len()] {
            let mut disk = Cursor::new(&bytes[..len]);
            for signature in signatures(&mut disk, len as u64).unwrap() {
                prop_assert!(signature.offset + signature.len <= len as u64, "{signature:?}");
            }
            let map = map_volume(&mut disk, len as u64).unwrap();
            prop_assert!(map.used.iter().all(|e| e.end() <= len as u64));
        }
    }
}
