//! Physical volumes made by LVM's tools, with filesystems put into the logical volumes.
//!
//! The tools write metadata without a device mapper; what is in a logical volume is put there, and taken out, by the ranges that
//! `lvs` prints.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ramdisk_agent::extents::{Extent, Extents};
use ramdisk_agent::fs::{Clean, FsKind, Taken};

use crate::device::Device;
use crate::ext::{EXT2, EXT4, Ext, Recipe};
use crate::fat::Fat;
use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free, look};
use crate::tools::run;
use crate::tree::{Node, assert_same};

/// For what LVM keeps for itself.
const ROOM: u64 = 8 << 20;
/// What pvcreate and vgcreate are told.
const PHYSICAL: [&str; 5] = [
    "--metadatacopies 1",
    "--metadatacopies 2",
    "--metadatacopies 2 --metadatasize 2m --dataalignment 4m",
    "--metadatacopies 1 --bootloaderareasize 1m",
    "--metadatacopies 1 --metadatasize 64k --dataalignment 512k",
];
const EXTENT_KIB: [u64; 6] = [64, 128, 256, 256, 1024, 4096];

/// What is put into a logical volume.
enum Content {
    Ext(Ext),
    Fat(Fat),
    /// Swap, or bytes that nobody knows.
    Bytes(Vec<u8>),
}

impl Content {
    fn make(noise: &mut Noise, seed: u64) -> Self {
        let small: Vec<&Recipe> =
            EXT4.iter().chain(&EXT2).filter(|recipe| recipe.block == 1024).collect();
        match noise.below(5) {
            0 | 1 => {
                let recipe = *noise.pick(&small);
                let ext = Ext::make(recipe, 8_000, noise, seed);
                ext.churn(noise);
                Self::Ext(ext)
            }
            2 => {
                let fat = Fat::make(12, noise, seed);
                fat.populate(noise);
                Self::Fat(fat)
            }
            3 => {
                let file = tempfile::NamedTempFile::new().unwrap();
                fs::write(file.path(), noise.bytes(2 << 20)).unwrap();
                run("util-linux", "mkswap", &["-q", file.path().to_str().unwrap()]);
                Self::Bytes(fs::read(file.path()).unwrap())
            }
            _ => Self::Bytes(noise.bytes(1 << 20)),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ext(ext) => fs::read(&ext.volume).unwrap(),
            Self::Fat(fat) => fs::read(&fat.volume).unwrap(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }

    /// Checks a filesystem that came out of a logical volume, and gives its files.
    fn files(&self, came_out: &[u8], name: &str) -> BTreeMap<PathBuf, Node> {
        match self {
            Self::Ext(ext) => {
                fs::write(&ext.volume, came_out).unwrap();
                ext.check();
                ext.files(name)
            }
            Self::Fat(fat) => {
                fs::write(&fat.volume, came_out).unwrap();
                fat.check();
                fat.files(name)
            }
            Self::Bytes(_) => BTreeMap::new(),
        }
    }
}

/// A physical volume in a folder that goes with it.
pub struct Physical {
    /// LVM reads and writes it past the page cache, so that the file always has what the device has.
    device: Device,
    folder: tempfile::TempDir,
    pub volume: PathBuf,
    pub what: String,
}

impl Physical {
    /// An empty volume group with room for some logical volumes of so many bytes together.
    pub fn make(noise: &mut Noise, content_len: u64, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("pv");
        let options = *noise.pick(&PHYSICAL);
        let extent = *noise.pick(&EXTENT_KIB);
        let len = (content_len + content_len / 4 + (extent << 10) * 12 + ROOM) / 512 * 512;
        File::create(&volume).unwrap().set_len(len + 512 * noise.below(3)).unwrap();
        let what = format!("seed {seed}: pvcreate {options} of {len} bytes, extents of {extent}k");
        let device = Device::new(&volume, 512);
        let path = device.path().to_owned();
        let physical = Self { device, folder, volume, what };
        physical.run(&format!("pvcreate -y {options} {path}"));
        physical.run(&format!("vgcreate -s {extent}k vg-1 {path}"));
        physical
    }

    /// Runs one of LVM's commands, given as words, which sees this volume only; gives what it printed.
    pub fn run(&self, command: &str) -> String {
        let system = format!("LVM_SYSTEM_DIR={}", self.folder.path().display());
        let mut args = vec![system.as_str(), "LVM_SUPPRESS_FD_WARNINGS=1"];
        args.extend(command.split(' '));
        args.extend(["--devices", self.device.path(), "--driverloaded", "n"]);
        args.extend(["--config", "backup{backup=0 archive=0}"]);
        run("lvm2", "env", &args)
    }

    /// Makes a logical volume, which need not be in one piece.
    fn create(&self, name: &str, len: u64, noise: &mut Noise) {
        let quiet = "-y -an -Zn -Wn";
        let extent = self.number("vgs", "vg_extent_size");
        let extents = len.div_ceil(extent);
        let first = 1 + noise.below(extents);
        self.run(&format!("lvcreate {quiet} -n {name} -l {first} vg-1"));
        if first < extents {
            // Something in between, which may go again.
            self.run(&format!("lvcreate {quiet} -n gap-{name} -l 1 vg-1"));
            self.run(&format!("lvextend -y -l {extents} vg-1/{name}"));
            if noise.chance(2) {
                self.run(&format!("lvremove -y vg-1/gap-{name}"));
            }
        }
    }

    fn number(&self, command: &str, field: &str) -> u64 {
        let out = self.run(&format!("{command} --noheadings --units b --nosuffix -o {field}"));
        out.trim().parse().unwrap()
    }

    /// Where the logical volumes are, by what `lvs` says, and where all extents are.
    fn places(&self) -> (BTreeMap<String, Vec<Extent>>, Extent) {
        let start = self.number("pvs", "pe_start");
        let extent = self.number("vgs", "vg_extent_size");
        let mut places: BTreeMap<String, Vec<Extent>> = BTreeMap::new();
        let order = "lvs --noheadings --segments -o lv_name,seg_pe_ranges -O lv_name,seg_start_pe";
        for line in self.run(order).lines() {
            let (name, range) = line.trim().split_once(' ').unwrap();
            let (first, last) = range.rsplit_once(':').unwrap().1.split_once('-').unwrap();
            let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
            let piece = Extent { start: start + first * extent, len: (last - first + 1) * extent };
            places.entry(name.to_owned()).or_default().push(piece);
        }
        (places, Extent { start, len: self.number("pvs", "pv_pe_count") * extent })
    }

    fn put(&self, bytes: &[u8], pieces: &[Extent]) {
        let file = File::options().write(true).open(&self.volume).unwrap();
        let mut rest = bytes;
        for piece in pieces {
            let (now, later) = rest.split_at(rest.len().min(piece.len as usize));
            file.write_all_at(now, piece.start).unwrap();
            rest = later;
        }
        assert!(rest.is_empty());
    }

    fn take(&self, pieces: &[Extent]) -> Vec<u8> {
        let file = File::open(&self.volume).unwrap();
        let take = |piece: &Extent| {
            let mut bytes = vec![0; piece.len as usize];
            file.read_exact_at(&mut bytes, piece.start).unwrap();
            bytes
        };
        pieces.iter().flat_map(take).collect()
    }

    /// The map of a logical volume that was taken out.
    fn used(&self, bytes: &[u8]) -> (FsKind, Extents) {
        let taken = self.folder.path().join("taken");
        fs::write(&taken, bytes).unwrap();
        let map = look(&taken);
        (map.kind, map.used)
    }
}

/// The bytes of a volume that are in use, and zeros.
fn only(bytes: &[u8], used: &Extents) -> Vec<u8> {
    let mut kept = vec![0; bytes.len()];
    for extent in used {
        let range = extent.start as usize..extent.end() as usize;
        kept[range.clone()].copy_from_slice(&bytes[range]);
    }
    kept
}

#[test]
fn noise_in_free_extents_and_in_free_blocks_does_not_matter() {
    for seed in seeds(50) {
        let mut noise = Noise::new(seed);
        let contents: Vec<(String, Content)> = (0..1 + noise.below(4))
            .map(|number| (format!("lv{number}"), Content::make(&mut noise, seed)))
            .collect();
        let total: u64 = contents.iter().map(|(_, content)| content.bytes().len() as u64).sum();
        let physical = Physical::make(&mut noise, total, seed);
        let what = &physical.what;
        for (name, content) in &contents {
            physical.create(name, content.bytes().len() as u64, &mut noise);
        }
        let (places, extents) = physical.places();
        for (name, content) in &contents {
            physical.put(&content.bytes(), &places[name]);
        }
        let map = expect_map(&physical.volume, FsKind::Lvm2, what);
        assert_eq!(map.logical_volumes.len(), places.len(), "{what}");

        // What is used by `lvs` and by the maps of what is taken out, which have tests of their own.
        let len = fs::metadata(&physical.volume).unwrap().len();
        let mut expected =
            Extents::single(0, len).subtract(&Extents::single(extents.start, extents.len));
        let mut before = BTreeMap::new();
        for (name, pieces) in &places {
            let bytes = physical.take(pieces);
            let (kind, used) = physical.used(&bytes);
            let full = format!("vg-1/{name}");
            let mine = map.logical_volumes.iter().find(|v| v.name == full).unwrap();
            assert_eq!((mine.map.kind, &mine.map.used), (kind, &used), "{what}: {name}");
            assert_eq!(&mine.pieces, pieces, "{what}: {name}");
            let mut done = 0;
            for piece in pieces {
                for part in used.overlapping(done, piece.len) {
                    expected.insert(piece.start + part.start - done, part.len);
                }
                done += piece.len;
            }
            before.insert(name.clone(), (only(&bytes, &used), used));
        }
        assert_eq!(map.used, expected, "{what}");
        assert_eq!(map.used_bytes_claimed.max(map.used.total_bytes()), map.used.total_bytes());
        let files: Vec<_> = contents
            .iter()
            .map(|(name, content)| content.files(&physical.take(&places[name]), "before"))
            .collect();

        fill_free(&physical.volume, &map, &mut noise);

        assert_eq!(physical.places().0, places, "{what}");
        physical.run("vgck vg-1");
        for (name, (kept, used)) in &before {
            assert!(only(&physical.take(&places[name]), used) == *kept, "{what}: {name}");
        }
        for ((name, content), files) in contents.iter().zip(&files) {
            let after = content.files(&physical.take(&places[name]), "after");
            assert_same(files, &after, &format!("{what}: {name}"));
        }
    }
}

/// A group with one volume that holds an ext4, and where that is.
pub fn simple(noise: &mut Noise, seed: u64) -> (Physical, Vec<Extent>) {
    let ext = Ext::make(&EXT4[1], 6_000, noise, seed);
    let bytes = fs::read(&ext.volume).unwrap();
    let physical = Physical::make(noise, bytes.len() as u64, seed);
    physical.create("root", bytes.len() as u64, noise);
    let pieces = physical.places().0.remove("root").unwrap();
    physical.put(&bytes, &pieces);
    (physical, pieces)
}

/// What pvresize writes as the size of a device is without what lies in front of the extents.
#[test]
fn a_group_on_a_volume_that_was_resized_is_mapped() {
    // A second copy of the metadata would be behind the extents.
    let mut made = (52..).map(|seed| simple(&mut Noise::new(seed), seed));
    let one_copy = |physical: &Physical| physical.what.contains("metadatacopies 1");
    let (physical, pieces) = made.find(|(physical, _)| one_copy(physical)).unwrap();
    let before = expect_map(&physical.volume, FsKind::Lvm2, &physical.what);
    let extents = physical.places().1;
    let path = physical.device.path();
    physical.run(&format!("pvresize -y --setphysicalvolumesize {}b {path}", extents.end()));
    assert_eq!(physical.places().1, extents);
    let map = expect_map(&physical.volume, FsKind::Lvm2, "resized");
    assert_eq!(map.logical_volumes[0].pieces, pieces);
    assert_eq!(map.logical_volumes[0].map.used, before.logical_volumes[0].map.used);
}

fn raw_reason(physical: &Physical) -> String {
    let map = look(&physical.volume);
    assert_eq!(map.kind, FsKind::Lvm2);
    assert_eq!(map.used, Extents::single(0, fs::metadata(&physical.volume).unwrap().len()));
    match map.taken {
        Taken::Raw { reason } => reason,
        Taken::Map => panic!("mapped"),
    }
}

#[test]
fn groups_that_are_not_linear_on_one_volume_are_taken_raw() {
    let mut noise = Noise::new(51);
    let (physical, _) = simple(&mut noise, 51);
    expect_map(&physical.volume, FsKind::Lvm2, &physical.what);
    // A second volume of the same group.
    let second = physical.folder.path().join("second");
    File::create(&second).unwrap().set_len(32 << 20).unwrap();
    let pristine = fs::read(&physical.volume).unwrap();
    let all = Extent { start: 0, len: pristine.len() as u64 };
    {
        let device = Device::new(&second, 512);
        let more = device.path();
        physical.run(&format!("pvcreate -y --devices {more} {more}"));
        physical.run(&format!("vgextend --devices {more} vg-1 {more}"));
    }
    assert!(raw_reason(&physical).contains("several physical volumes"));
    physical.put(&pristine, &[all]);
    physical.run("vgexport vg-1");
    assert!(raw_reason(&physical).contains("EXPORTED"));
    physical.run("vgimport vg-1");
    expect_map(&physical.volume, FsKind::Lvm2, &physical.what);
    // What says nothing of where bytes are.
    let settings = |name: &str, text: &str| {
        fs::write(physical.folder.path().join(name), text).unwrap();
    };
    settings("lvm.conf", "global { system_id_source = \"lvmlocal\" }");
    settings("lvmlocal.conf", "local { system_id = \"me\" }");
    for change in [
        "vgchange --setautoactivation n vg-1",
        "lvchange --setautoactivation n vg-1/root",
        "lvchange --setactivationskip y vg-1/root",
        "lvchange --permission r --addtag a --readahead 256 vg-1/root",
        "vgchange --alloc cling --addtag b --maxphysicalvolumes 3 vg-1",
        "vgchange -y --systemid me vg-1",
        "vgchange -y --systemid  vg-1",
    ] {
        physical.run(change);
        expect_map(&physical.volume, FsKind::Lvm2, change);
    }
    physical.run("lvremove -y vg-1");
    physical.run("vgremove -y vg-1");
    assert!(raw_reason(&physical).contains("in no volume group"));
}

#[test]
fn what_is_not_clean_inside_is_said_of_the_logical_volume() {
    let mut noise = Noise::new(52);
    let (physical, pieces) = simple(&mut noise, 52);
    let mut map = expect_map(&physical.volume, FsKind::Lvm2, &physical.what);
    assert_eq!(map.logical_volumes[0].map.clean, Clean::Clean);
    // The state of the superblock: not valid, and with it the checksum is wrong; then a guest's disk, and nothing.
    let mut bytes = physical.take(&pieces);
    bytes[1024 + 0x3A] = 0;
    physical.put(&bytes, &pieces);
    map = look(&physical.volume);
    let inside = &map.logical_volumes[0].map;
    assert!(matches!(inside.clean, Clean::NotClean { .. }), "{:?}", inside.clean);
    let len = map.logical_volumes[0].len_bytes();
    map.take_logical_volume_whole(0, "asked");
    assert_eq!(map.logical_volumes[0].map.used, Extents::single(0, len));
    for piece in &pieces {
        assert!(map.used.contains_range(piece.start, piece.len));
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xAA]);
    bytes[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
    physical.put(&bytes, &pieces);
    let map = look(&physical.volume);
    assert_eq!(map.taken, Taken::Map);
    match &map.logical_volumes[0].map.taken {
        Taken::Raw { reason } => assert!(reason.contains("partition table"), "{reason}"),
        Taken::Map => panic!("a guest's disk was mapped as a filesystem"),
    }
}
