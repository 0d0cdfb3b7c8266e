//! Where the fuzzers of disks begin: small filesystems and partition tables, made by their own tools, as sparse disks.
//!
//! Needs e2fsprogs, xfsprogs, btrfs-progs, ntfs-3g, exfatprogs, dosfstools, mtools, util-linux and fdisk. Identities and times differ from run to run; nothing else does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::disk::{Sparse, lvm2_sum};

const EXT: [&str; 8] = [
    "-t ext2 -b 1024 @ 256",
    "-t ext2 -b 1024 -g 256 -O meta_bg,^resize_inode @ 1100",
    "-t ext4 -b 1024 -O ^has_journal @ 300",
    "-t ext4 -b 1024 -g 256 -G 4 -O ^has_journal,^resize_inode @ 1500",
    "-t ext4 -b 4096 -O ^has_journal,bigalloc -C 16384 @ 200",
    "-t ext4 -b 1024 -O ^has_journal,^metadata_csum,uninit_bg,^64bit @ 400",
    "-t ext4 -b 1024 -g 512 -O ^has_journal,sparse_super2,^resize_inode,metadata_csum_seed @ 1600",
    "-t ext4 -b 1024 @ 2100",
];
const XFS: [&str; 4] = [
    "-d size=20m",
    "-b size=1024 -m rmapbt=1 -d size=36m,agsize=16m",
    "-m crc=0 -b size=512 -d size=18m",
    "-b size=8192 -s size=4096 -d size=40m",
];
const BTRFS: [&str; 3] = ["-d single -m single", "-R quota", "-O ^no-holes -R ^free-space-tree"];
const NTFS: [(&str, u64); 3] =
    [("-c 512", 2 << 20), ("-c 4096", 6 << 20), ("-s 4096 -c 16384", 20 << 20)];
const EXFAT: [(&str, u64); 3] =
    [("-c 512 -b 65536", 2 << 20), ("-c 4096", 6 << 20), ("-c 32768 --pack-bitmap", 20 << 20)];
const FAT: [(&str, u64); 4] = [
    ("-F 12 -s 1", 360 << 10),
    ("-F 16 -s 1 -f 1", 3 << 20),
    ("-F 16 -s 4 -S 1024", 20 << 20),
    ("-F 32 -s 1", 34 << 20),
];
const SWAP: [(&str, u64); 3] =
    [("-p 4096", 40 << 10), ("-p 65536", 700 << 10), ("-p 8192", 100_000)];
const TABLES: [&str; 5] = [
    "label: dos\nlabel-id: 0x5eed5eed\nstart=63, size=1000, type=83\nstart=2048, type=f\nstart=3000, size=900, type=83\n\
     start=4096, size=1000, type=82\n",
    "label: gpt\nstart=2048, size=2048, type=U, name=ESP\nstart=4096, type=L\n",
    "label: gpt\ntable-length: 8\nfirst-lba: 40\nstart=40, size=8\nstart=48, size=8\n",
    "label: dos\nstart=63, size=1000, type=83, bootable\nstart=2048, type=82\n",
    "label: dos\n",
];

/// The seeds of a target of this name.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "ext_map" => EXT.iter().map(|options| ext(options)).chain([cut_off_ext()]).collect(),
        "xfs_map" => XFS.iter().map(|options| xfs(options)).collect(),
        "btrfs_map" => BTRFS.iter().map(|options| btrfs(options)).collect(),
        "ntfs_map" => NTFS.iter().map(|(options, len)| ntfs(options, *len)).collect(),
        "exfat_map" => EXFAT.iter().map(|(options, len)| exfat(options, *len)).collect(),
        "lvm2_map" => vec![lvm2(&[(100, 300), (0, 100)]), lvm2(&[(0, 400)])],
        "fat_map" => FAT.iter().map(|(options, len)| fat(options, *len)).collect(),
        "swap_map" => SWAP.iter().map(|(options, len)| swap(options, *len)).collect(),
        "table" => tables(),
        "probe" => [EXT.iter().take(2).map(|options| ext(options)).collect(), tables(), written()]
            .into_iter()
            .chain([vec![fat(FAT[0].0, FAT[0].1), swap(SWAP[0].0, SWAP[0].1)]])
            .flatten()
            .collect(),
        other => panic!("there is no disk target {other}"),
    }
}

/// Runs a tool that must succeed.
fn tool(package: &str, args: &[&str], stdin: &str) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("env")
        .args([&format!("PATH={path}"), "LC_ALL=C", "MTOOLS_SKIP_CHECK=1"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("env can be started");
    // A tool that reads nothing may have ended.
    let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it was started");
    assert_ne!(
        output.status.code(),
        Some(127),
        "{} is missing: apt-get install {package}",
        args[0]
    );
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A volume of `len` bytes that `make` fills, beside a folder with two files.
fn volume(len: u64, make: impl FnOnce(&str, &str)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("there is room for files");
    let volume = folder.path().join("volume");
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("dir")).expect("the folder is new");
    fs::write(tree.join("dir/long file name.txt"), [7; 5000]).expect("the folder is new");
    fs::write(tree.join("short"), "short").expect("the folder is new");
    let file = fs::File::create(&volume).expect("the folder is new");
    file.set_len(len).expect("it is sparse");
    let text = |path: &Path| path.to_str().expect("temporary names are text").to_owned();
    make(&text(&volume), &text(&tree));
    let bytes = fs::read(volume).expect("it was just made");
    Sparse::encode(bytes.len() as u64, &[(0, &bytes)])
}

fn ext(options: &str) -> Vec<u8> {
    volume(0, |path, tree| {
        holes(Path::new(tree)).expect("the folder is new");
        let mut args = vec!["mke2fs", "-q", "-F", "-N", "32", "-L", "seed", "-d", tree];
        args.extend(options.split(' ').map(|option| if option == "@" { path } else { option }));
        tool("e2fsprogs", &args, "");
    })
}

/// Files whose maps need blocks of their own: of three levels, and of an extent tree; and a link that is one.
fn holes(tree: &Path) -> std::io::Result<()> {
    let far = fs::File::create(tree.join("far"))?;
    for block in [11, 12, 12 + 256, 12 + 256 + 65536] {
        far.write_all_at(b"far", block << 10)?;
    }
    let comb = fs::File::create(tree.join("comb"))?;
    for tooth in 0..9 {
        comb.write_all_at(b"tooth", tooth << 14)?;
    }
    std::os::unix::fs::symlink("y/".repeat(50), tree.join("link"))
}

/// With a transaction in the journal, which has no checksums.
fn cut_off_ext() -> Vec<u8> {
    volume(0, |path, tree| {
        let options = ["-q", "-F", "-N", "16", "-t", "ext4", "-b", "1024", "-O", "^metadata_csum"];
        tool("e2fsprogs", &[&["mke2fs"][..], &options, &["-d", tree, path, "2100"]].concat(), "");
        let write = format!("journal_write -b 2000,2001 -r 2002 \"{tree}/dir/long file name.txt\"");
        let script = format!("journal_open\n{write}\njournal_close\n");
        tool("e2fsprogs", &["debugfs", "-w", "-f", "-", path], &script);
    })
}

fn xfs(options: &str) -> Vec<u8> {
    volume(64 << 20, |path, _| {
        let mut args = vec!["mkfs.xfs", "--unsupported", "-q", "-f", "-L", "seed"];
        args.extend(options.split(' '));
        tool("xfsprogs", &[&args[..], &[path]].concat(), "");
    })
}

fn btrfs(options: &str) -> Vec<u8> {
    volume(64 << 20, |path, tree| {
        let mut args =
            vec!["mkfs.btrfs", "-q", "-f", "--mixed", "-s", "4096", "-n", "4096", "-L", "seed"];
        args.extend(options.split(' '));
        tool("btrfs-progs", &[&args[..], &["--rootdir", tree, path]].concat(), "");
    })
}

fn ntfs(options: &str, len: u64) -> Vec<u8> {
    volume(len, |path, tree| {
        let mut args =
            vec!["mkntfs", "-q", "-F", "-Q", "-L", "seed", "-H", "16", "-S", "63", "-p", "0"];
        args.extend(options.split(' '));
        tool("ntfs-3g", &[&args[..], &[path]].concat(), "");
        let file = format!("{tree}/dir/long file name.txt");
        tool("ntfs-3g", &["ntfscp", path, &file, "file"], "");
        // An empty log is megabytes of ones, of which only the first page is looked at.
        let mut bytes = fs::read(path).expect("it was just made");
        let (mut run, ones) = (0, [0xFF; 512]);
        for sector in bytes.chunks_exact_mut(512) {
            run = if *sector == ones { run + 1 } else { 0 };
            if run > 8 {
                sector.fill(0);
            }
        }
        fs::write(path, bytes).expect("it is ours");
    })
}

/// mkfs.exfat writes no files, so a folder in one piece with a file in two is put in here.
fn exfat(options: &str, len: u64) -> Vec<u8> {
    volume(len, |path, _| {
        let mut args = vec!["mkfs.exfat", "-L", "seed"];
        args.extend(options.split(' '));
        tool("exfatprogs", &[&args[..], &[path]].concat(), "");
        let mut bytes = fs::read(path).expect("it was just made");
        let index = |number: u32| usize::try_from(number).expect("small");
        let le32 =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let (sector, cluster) = (1 << bytes[108], 1 << (bytes[108] + bytes[109]));
        let (fat, heap) = (index(le32(80)) * sector, index(le32(88)) * sector);
        let (clusters, root) = (le32(92), le32(96));
        let place = |number: u32| heap + index(number - 2) * cluster;
        let (folder, first, second) = (clusters / 2, clusters / 2 + 1, clusters - 3);
        for (number, next) in [(first, second), (second, u32::MAX)] {
            bytes[fat + index(number) * 4..][..4].copy_from_slice(&next.to_le_bytes());
        }
        for number in [folder, first, second] {
            bytes[place(2) + index(number - 2) / 8] |= 1 << ((number - 2) % 8);
        }
        let set = |name: u8, attributes: u8, flags: u8, first: u32, len: usize| {
            let mut set = [0; 96];
            (set[0], set[1], set[4]) = (0x85, 2, attributes);
            (set[32], set[33], set[35], set[64], set[66]) = (0xC0, flags, 1, 0xC1, name);
            set[52..56].copy_from_slice(&first.to_le_bytes());
            for at in [40, 56] {
                set[at..at + 8].copy_from_slice(&(len as u64).to_le_bytes());
            }
            let covered = set[..2].iter().chain(&set[4..]);
            let sum = covered.fold(0_u16, |sum, b| sum.rotate_right(1).wrapping_add((*b).into()));
            set[2..4].copy_from_slice(&sum.to_le_bytes());
            set
        };
        let root_end = place(root) + 3 * 32;
        bytes[root_end..root_end + 96].copy_from_slice(&set(b'D', 0x10, 3, folder, cluster));
        bytes[place(folder)..][..96].copy_from_slice(&set(b'F', 0, 1, first, cluster + 1));
        fs::write(path, bytes).expect("it is ours");
    })
}

/// An ext2 in a logical volume of these segments, first extent and count; pvcreate wants a device, so LVM's part is put in here.
fn lvm2(segments: &[(usize, usize)]) -> Vec<u8> {
    const ID: &str = "b3qKA0-0wQO-e69G-rGCH-7so6-yeqd-WHcUOF";
    const EXTENT: usize = 1024;
    const START: usize = 64 << 10;
    const LEN: usize = 1 << 20;
    const AREA: usize = 4096;
    const AREA_LEN: usize = 32 << 10;
    volume(0, |path, tree| {
        let options = ["-q", "-F", "-N", "16", "-t", "ext2", "-b", "1024", "-d"];
        tool("e2fsprogs", &[&["mke2fs"][..], &options, &[tree, path, "400"]].concat(), "");
        let inside = fs::read(path).expect("it was just made");
        let mut bytes = vec![0; LEN];
        let (mut list, mut before) = (String::new(), 0);
        for (number, (first, count)) in segments.iter().enumerate() {
            let to = START + first * EXTENT;
            bytes[to..to + count * EXTENT]
                .copy_from_slice(&inside[before * EXTENT..][..count * EXTENT]);
            list += &format!(
                "segment{} {{\nstart_extent = {before}\nextent_count = {count}\ntype = \"striped\"\nstripe_count = 1\n\
                 stripes = [\n\"pv0\", {first}\n]\n}}\n",
                number + 1
            );
            before += count;
        }
        let text = format!(
            "vg {{\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = {}\nphysical_volumes {{\npv0 {{\n\
             id = \"{ID}\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = {}\npe_start = {}\npe_count = 900\n}}\n}}\n\
             logical_volumes {{\nroot {{\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nsegment_count = {}\n{list}}}\n}}\n}}\n\
             contents = \"Text Format Volume Group\"\nversion = 1\n\0",
            EXTENT / 512,
            LEN / 512,
            START / 512,
            segments.len()
        );
        let mut put = |at: usize, piece: &[u8]| bytes[at..at + piece.len()].copy_from_slice(piece);
        let number = |n: usize| (n as u64).to_le_bytes();
        let mut label = b"LABELONE".to_vec();
        label.extend([number(1), [0, 0, 0, 0, 32, 0, 0, 0], *b"LVM2 001"].concat());
        label.extend(ID.bytes().filter(|b| *b != b'-'));
        label.extend([LEN, START, 0, 0, 0, AREA, AREA_LEN, 0, 0].map(number).concat());
        label.resize(512, 0);
        let sum = lvm2_sum(&label[20..]).to_le_bytes();
        label[16..20].copy_from_slice(&sum);
        put(512, &label);
        let mut header = b"\0\0\0\0 LVM2 x[5A%r0N*>\x01\0\0\0".to_vec();
        header.extend([AREA, AREA_LEN, 512, text.len()].map(number).concat());
        header.extend(lvm2_sum(text.as_bytes()).to_le_bytes());
        header.resize(512, 0);
        let sum = lvm2_sum(&header[4..]).to_le_bytes();
        header[..4].copy_from_slice(&sum);
        put(AREA, &header);
        put(AREA + 512, text.as_bytes());
        fs::write(path, bytes).expect("it is ours");
    })
}

fn fat(options: &str, len: u64) -> Vec<u8> {
    volume(len, |path, tree| {
        let mut args = vec!["mkfs.fat", "-n", "SEED"];
        args.extend(options.split(' '));
        tool("dosfstools", &[&args[..], &[path]].concat(), "");
        let (dir, file) = (format!("{tree}/dir"), format!("{tree}/short"));
        tool("mtools", &["mcopy", "-i", path, "-s", &dir, &file, "::"], "");
    })
}

fn swap(options: &str, len: u64) -> Vec<u8> {
    volume(len, |path, _| {
        let mut args = vec!["mkswap", "-q", "-f", "-L", "seed"];
        args.extend(options.split(' '));
        tool("util-linux", &[&args[..], &[path]].concat(), "");
    })
}

fn tables() -> Vec<Vec<u8>> {
    let partition = |script: &&str| {
        volume(4 << 20, |path, _| {
            tool("fdisk", &["sfdisk", "-q", "--no-reread", path], script);
        })
    };
    TABLES.iter().map(partition).chain([gpt_4096()]).collect()
}

/// With sectors of 4096 bytes, without checksums: the target makes them right.
fn gpt_4096() -> Vec<u8> {
    const LAST: u64 = 1023;
    let mut mbr = [0; 512];
    mbr[450] = 0xEE;
    mbr[454] = 1;
    mbr[458..462].copy_from_slice(&1023_u32.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    let header = |own: u64, other: u64, entries: u64| {
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
        header.extend([0; 8]);
        for number in [own, other, 6, LAST - 5] {
            header.extend(number.to_le_bytes());
        }
        header.extend([9; 16]);
        header.extend(entries.to_le_bytes());
        header.extend([128_u32.to_le_bytes(), 128_u32.to_le_bytes(), [0; 4]].concat());
        header
    };
    let mut entry = vec![1; 32];
    entry.extend([6_u64.to_le_bytes(), 20_u64.to_le_bytes()].concat());
    entry.resize(128, 0);
    let lba = |number: u64| number * 4096;
    let (primary, backup) = (header(1, LAST, 2), header(LAST, 1, LAST - 4));
    Sparse::encode(
        lba(LAST + 1),
        &[
            (0, &mbr),
            (lba(1), &primary),
            (lba(2), &entry),
            (lba(LAST - 4), &entry),
            (lba(LAST), &backup),
        ],
    )
}

/// Signatures of what other tools make, as far as they are checked.
fn written() -> Vec<Vec<u8>> {
    let at = |place: u64, bytes: &[u8]| Sparse::encode(4 << 20, &[(place, bytes)]);
    let mut btrfs = vec![0; 600];
    btrfs[48..56].copy_from_slice(&(64_u64 << 10).to_le_bytes());
    btrfs[64..72].copy_from_slice(b"_BHRfS_M");
    btrfs[299..304].copy_from_slice(b"label");
    let mut md = vec![0; 256];
    md[..8].copy_from_slice(&[0xFC, 0x4E, 0x2B, 0xA9, 1, 0, 0, 0]);
    md[32..36].copy_from_slice(b"host");
    md[144..152].copy_from_slice(&8_u64.to_le_bytes());
    let mut iso = vec![0; 2048];
    iso[..6].copy_from_slice(b"\x01CD001");
    iso[40..44].copy_from_slice(b"DISC");
    iso[813..829].copy_from_slice(b"2026010100000000");
    let mut ntfs = vec![0; 512];
    ntfs[..11].copy_from_slice(b"\xEB\x52\x90NTFS    ");
    ntfs[11..14].copy_from_slice(&[0, 2, 8]);
    ntfs[48] = 4;
    ntfs[64] = 0xF6;
    let mut exfat = vec![0; 512];
    exfat[..11].copy_from_slice(b"\xEB\x76\x90EXFAT   ");
    exfat[88] = 32;
    exfat[96] = 4;
    exfat[108..110].copy_from_slice(&[9, 3]);
    let mut luks = vec![0; 512];
    luks[..8].copy_from_slice(b"LUKS\xBA\xBE\0\x02");
    let mut xfs = vec![0; 512];
    xfs[..8].copy_from_slice(b"XFSB\0\0\x10\0");
    // The name-value list of a ZFS label: version, name, pool_guid.
    let mut zfs = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for (name, kind, value) in [
        ("version", 8_u32, 5000_u64.to_be_bytes().to_vec()),
        ("name", 9, b"\0\0\0\x04pool".to_vec()),
        ("pool_guid", 8, 77_u64.to_be_bytes().to_vec()),
    ] {
        let padded = name.len().next_multiple_of(4);
        let len = 4 + 4 + 4 + padded + 4 + 4 + value.len();
        for number in [len, 0, name.len()] {
            zfs.extend(u32::try_from(number).expect("small").to_be_bytes());
        }
        zfs.extend(name.bytes().chain(std::iter::repeat_n(0, padded - name.len())));
        zfs.extend([kind.to_be_bytes(), 1_u32.to_be_bytes()].concat());
        zfs.extend(value);
    }
    // A member of a DDF RAID whose header is at the first MiB, and its array 162 sectors behind that.
    let ddf = include_bytes!("../../ramdisk-agent/src/probe/firmware/samples/ddf-stripes.bin");
    let (mut anchor, header, array) = (ddf[..512].to_vec(), &ddf[512..1024], &ddf[1024..]);
    anchor[96..104].copy_from_slice(&2048_u64.to_be_bytes());
    let len = 4 << 20;
    let ddf = [(1 << 20, header), ((1 << 20) + 162 * 512, array), (len - 512, anchor.as_slice())];
    let intel =
        include_bytes!("../../ramdisk-agent/src/probe/firmware/samples/intel-two-volumes.bin");
    vec![
        Sparse::encode(len, &ddf),
        at(len - 1536, intel),
        at(64 << 10, &btrfs),
        at(4096, &md),
        at(32 << 10, &iso),
        at(0, &ntfs),
        at(0, &exfat),
        at(0, &luks),
        at(0, &xfs),
        at(16 << 10, &zfs),
    ]
}
