//! Disks to image: partition tables and filesystems made by their own tools, with files in them.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::tools::run;

const MIB: u64 = 1 << 20;

/// A partition of a disk that was made here, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub start: u64,
    pub len: u64,
}

/// A disk with its parts.
#[derive(Debug)]
pub struct TestDisk {
    pub path: PathBuf,
    pub len: u64,
    pub esp: Part,
    pub root: Part,
    pub swap: Part,
}

/// Bytes that do not repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A file full of noise.
pub fn noise_file(path: &Path, len: u64, seed: u64) {
    let mut file = File::create(path).unwrap();
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut piece = vec![0; MIB as usize];
    let mut left = len;
    while left > 0 {
        let now = left.min(MIB) as usize;
        reader.fill(&mut piece[..now]);
        file.write_all(&piece[..now]).unwrap();
        left -= now as u64;
    }
}

/// A small tree with what a root filesystem has: modes, owners, links, holes, extended attributes.
pub fn plant(at: &Path) {
    fs::create_dir_all(at.join("etc/deep/er")).unwrap();
    fs::create_dir_all(at.join("home")).unwrap();
    for i in 0..60_u64 {
        let text = noise(((i * 7919) % 90_000) as usize, i);
        fs::write(at.join(format!("etc/file{i}")), text).unwrap();
    }
    fs::write(at.join("etc/text"), "the same words again and again\n".repeat(20_000)).unwrap();
    fs::write(at.join("etc/secret"), "x").unwrap();
    fs::set_permissions(at.join("etc/secret"), fs::Permissions::from_mode(0o4600)).unwrap();
    std::os::unix::fs::chown(at.join("etc/secret"), Some(1234), Some(4321)).unwrap();
    symlink("../etc/text", at.join("home/link")).unwrap();
    fs::hard_link(at.join("etc/text"), at.join("etc/deep/er/hard")).unwrap();
    let holes = File::create(at.join("home/holes")).unwrap();
    holes.write_all_at(b"end", 3_000_000).unwrap();
    let path = at.join("etc/file1");
    rustix::fs::setxattr(&path, "user.colour", b"blue", rustix::fs::XattrFlags::empty()).unwrap();
}

/// An ext4 in a file, with files, and with deleted ones whose blocks still hold data.
pub fn ext4(path: &Path, len: u64, scratch: &Path) {
    let tree = scratch.join("tree");
    plant(&tree);
    fs::write(tree.join("home/deleted"), noise(3_000_000, 77)).unwrap();
    File::create(path).unwrap().set_len(len).unwrap();
    let (path, tree_text) = (path.to_str().unwrap(), tree.to_str().unwrap());
    run("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", "-L", "root", "-d", tree_text, path]);
    run("e2fsprogs", "debugfs", &["-w", "-R", "rm /home/deleted", path]);
    fs::remove_dir_all(tree).unwrap();
}

/// A FAT in a file, with a boot loader's files.
pub fn fat(path: &Path, len: u64, kind: &str) {
    File::create(path).unwrap().set_len(len).unwrap();
    let path = path.to_str().unwrap();
    run("dosfstools", "mkfs.vfat", &["-F", kind, "-n", "ESP", path]);
    run("mtools", "mmd", &["-i", path, "::/EFI", "::/EFI/BOOT"]);
    let loader = tempfile::NamedTempFile::new().unwrap();
    fs::write(loader.path(), noise(700_000, 5)).unwrap();
    let from = loader.path().to_str().unwrap();
    run("mtools", "mcopy", &["-i", path, from, "::/EFI/BOOT/BOOTX64.EFI"]);
}

/// A swap area in a file.
pub fn swap(path: &Path, len: u64) {
    fs::write(path, noise(len as usize, 9)).unwrap();
    run("util-linux", "mkswap", &["-L", "swap", path.to_str().unwrap()]);
}

/// Copies a file into a disk.
pub fn put(disk: &Path, from: &Path, offset: u64) {
    let mut to = File::options().write(true).open(disk).unwrap();
    to.seek(SeekFrom::Start(offset)).unwrap();
    std::io::copy(&mut File::open(from).unwrap(), &mut to).unwrap();
}

/// Takes a part of a disk out into a file, for tools that want one.
pub fn take(disk: &Path, part: Part, to: &Path) {
    let mut from = File::open(disk).unwrap();
    from.seek(SeekFrom::Start(part.start)).unwrap();
    std::io::copy(&mut from.take(part.len), &mut File::create(to).unwrap()).unwrap();
}

/// A disk with boot code, ESP, ext4 root and swap; `label` is `gpt`, `dos`, or `logical` for an MBR with the last two inside an
/// extended partition.
pub fn system(folder: &Path, label: &str) -> TestDisk {
    let path = folder.join(format!("{label}.disk"));
    let len = 160 * MIB;
    // In front of each logical partition is room for the table that leads to it.
    let room = if label == "logical" { MIB } else { 0 };
    let esp = Part { start: MIB, len: 40 * MIB };
    let root = Part { start: 41 * MIB + room, len: 100 * MIB };
    let swap_part = Part { start: 141 * MIB + 2 * room, len: 16 * MIB };
    File::create(&path).unwrap().set_len(len).unwrap();
    let entry = |part: Part, kind: &str| {
        format!("start={}, size={}, type={kind}\n", part.start / 512, part.len / 512)
    };
    let kinds = if label == "gpt" { ["U", "L", "S"] } else { ["ef", "83", "82"] };
    let extended = Part { start: 41 * MIB, len: len - 41 * MIB };
    let script = [
        format!("label: {}\nunit: sectors\n", if label == "gpt" { "gpt" } else { "dos" }),
        entry(esp, kinds[0]),
        if label == "logical" { entry(extended, "5") } else { String::new() },
        entry(root, kinds[1]),
        entry(swap_part, kinds[2]),
    ]
    .concat();
    let script_file = folder.join("sfdisk");
    fs::write(&script_file, script).unwrap();
    let command = format!("sfdisk -q --no-reread {} < {}", path.display(), script_file.display());
    run("fdisk", "sh", &["-c", &command]);
    // Boot code, and something in the gap that a boot loader would have put there.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&noise(440, 1), 0).unwrap();
    file.write_all_at(&noise(30_000, 2), 64 << 10).unwrap();
    let part = folder.join("part");
    fat(&part, esp.len, "32");
    put(&path, &part, esp.start);
    ext4(&part, root.len, folder);
    put(&path, &part, root.start);
    swap(&part, swap_part.len);
    put(&path, &part, swap_part.start);
    TestDisk { path, len, esp, root, swap: swap_part }
}

/// What the tools of each part say: clean, and who they are.
pub fn judge(disk: &TestDisk, at: &Path, folder: &Path) {
    let part = folder.join("judged");
    let text = part.to_str().unwrap();
    take(at, disk.esp, &part);
    run("dosfstools", "fsck.vfat", &["-n", text]);
    take(at, disk.root, &part);
    run("e2fsprogs", "e2fsck", &["-fn", text]);
    take(at, disk.swap, &part);
    assert!(run("util-linux", "blkid", &["-p", text]).contains("TYPE=\"swap\""));
}

/// Everything that libblkid knows of a file: UUIDs, labels, types.
pub fn identity(file: &Path) -> String {
    let text = run("util-linux", "blkid", &["-p", "-o", "export", file.to_str().unwrap()]);
    text.lines().filter(|line| !line.starts_with("DEVNAME=")).collect::<Vec<_>>().join("\n")
}

/// The partition table as sfdisk dumps it, without the file's name and the disk's size.
pub fn dump(disk: &Path) -> String {
    let text = run("fdisk", "sfdisk", &["-d", disk.to_str().unwrap()]);
    let name = disk.to_str().unwrap();
    let lines = text.lines().filter(|l| !l.starts_with("device:") && !l.starts_with("last-lba:"));
    lines.map(|l| l.replace(name, "")).collect::<Vec<_>>().join("\n")
}
