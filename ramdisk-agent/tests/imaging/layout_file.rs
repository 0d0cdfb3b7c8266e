//! Layout files: volumes out of several images in a partition table that is made anew.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::agent::{agent, capture, restore, try_restore, worker};
use crate::devices::Loop;
use crate::disks::{Part, TestDisk, ext4, identity, noise_file, take};
use crate::grow::may_grow_ext;
use crate::round_trip::{restored, unpack};
use crate::tools::{run, status};

const MIB: u64 = 1 << 20;

/// A system's image, one of a single volume, and both with zeros where they are free.
struct Bench {
    dir: tempfile::TempDir,
    disk: TestDisk,
    image: PathBuf,
    data: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (disk, image) = restored(dir.path());
        let (volume, data) = (dir.path().join("volume"), dir.path().join("data.img.zst"));
        ext4(&volume, 32 * MIB, dir.path());
        capture(&volume, &data, &[]);
        Self { dir, disk, image, data }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn layout(&self, text: &str) -> String {
        let path = self.path("layout.toml");
        let text = text.replace("DATA", self.data.to_str().unwrap());
        fs::write(&path, text.replace("SYSTEM", self.image.to_str().unwrap())).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn bytes(&self, disk: &Path, start: u64, len: u64) -> Vec<u8> {
        let file = self.path("taken");
        take(disk, Part { start, len }, &file);
        fs::read(file).unwrap()
    }
}

/// The partitions as sfdisk sees them.
fn table(disk: &Path) -> Value {
    let text = run("fdisk", "sfdisk", &["--json", disk.to_str().unwrap()]);
    serde_json::from_str::<Value>(&text).unwrap()["partitiontable"].clone()
}

fn places(table: &Value) -> Vec<(u64, u64)> {
    let mib = |p: &Value, key: &str| p[key].as_u64().unwrap() * 512 / MIB;
    let list = table["partitions"].as_array().unwrap();
    list.iter().map(|p| (mib(p, "start"), mib(p, "size"))).collect()
}

fn hash_of(path: &Path) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path).unwrap()).unwrap();
    hasher.finalize()
}

const SYSTEM: &str = r#"
[[partition]]
image-partition = 1
name = "EFI system"

[[partition]]
type = "root-x86-64"
name = "root A"
size = "104M"
image-partition = 2

[[partition]]
name = "root B"
attributes = ["read-only", "no-auto"]
image-partition = 2

[[partition]]
type = "home"
image = "DATA"

[[partition]]
size = "rest"

[[partition]]
format = "swap"
label = "scratch"
size = "16M"
"#;

#[test]
fn the_image_that_is_damaged_is_named() {
    let bench = Bench::new();
    let file = File::options().write(true).open(&bench.data).unwrap();
    file.write_all_at(&[0x55; 64], file.metadata().unwrap().len() / 2).unwrap();
    let target = bench.path("t");
    File::create(&target).unwrap().set_len(320 * MIB).unwrap();
    let layout = bench.layout(SYSTEM);
    let data = bench.data.to_str().unwrap();
    try_restore(&bench.image, &target, &["--layout", &layout])
        .refused("image_corrupt", &[&format!("reading {data}: "), "do not match their hash"]);
}

#[test]
fn volumes_of_several_images_become_a_disk() {
    let bench = Bench::new();
    let target = bench.path("t");
    noise_file(&target, 320 * MIB + 512, 1);
    run("gdisk", "sgdisk", &["-Z", "-o", "-n1:0:0", target.to_str().unwrap()]);
    let layout = bench.layout(SYSTEM);
    let flags = ["--layout", &layout, "--scrub-free"];
    let command = ["plan", "restore", "--json", bench.image.to_str().unwrap()];
    let plan = agent(&[&command[..], &[target.to_str().unwrap()], &flags].concat()).json();
    assert_eq!(plan["partitions"][5]["what"], "new swap scratch", "{plan:#}");
    let hash = plan["hash"].as_str().unwrap();
    let done = restore(&bench.image, &target, &[&flags[..], &["--expect-plan", hash]].concat());
    assert!(done["changes"].to_string().contains("keeps its size of 100.00 MiB"), "{done:#}");

    let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let table = table(&target);
    let expected = [(1, 40), (41, 104), (145, 100), (245, 32), (277, 26), (303, 16)];
    assert_eq!(places(&table), expected, "{table:#}");
    let field = |key: &str| -> Vec<String> {
        let list = table["partitions"].as_array().unwrap().iter();
        list.map(|p| p[key].as_str().unwrap_or_default().to_lowercase()).collect()
    };
    let kinds = field("type");
    assert!(kinds[0].starts_with("c12a7328") && kinds[1].starts_with("4f68bce3"), "{kinds:?}");
    assert!(kinds[2].starts_with("0fc63daf") && kinds[5].starts_with("0657fd6d"), "{kinds:?}");
    assert_eq!(field("name")[..3], ["efi system", "root a", "root b"]);
    assert!(table["partitions"][2]["attrs"].to_string().contains("60"), "{table:#}");
    let mut uuids = field("uuid");
    uuids.push(table["id"].as_str().unwrap().to_lowercase());
    uuids.sort();
    uuids.dedup();
    assert_eq!(uuids.len(), 7);

    let (whole, volume) = (bench.path("whole"), bench.path("unpacked"));
    unpack(&bench.image, &whole);
    unpack(&bench.data, &volume);
    // What a boot loader or fstab may name stays as it was; the second copy of the root is another partition.
    let id_of = |table: &Value, n: usize| table["partitions"][n]["uuid"].clone();
    let captured = self::table(&whole);
    assert_eq!(id_of(&table, 0), id_of(&captured, 0));
    assert_eq!(id_of(&table, 1), id_of(&captured, 1));
    assert_ne!(id_of(&table, 2), id_of(&captured, 1));
    let root = bench.bytes(&whole, bench.disk.root.start, bench.disk.root.len);
    assert!(bench.bytes(&target, MIB, 40 * MIB) == bench.bytes(&whole, MIB, 40 * MIB), "the ESP");
    for at in [41, 145] {
        assert!(bench.bytes(&target, at * MIB, 100 * MIB) == root, "the root at MiB {at}");
        run("e2fsprogs", "e2fsck", &["-fn", bench.path("taken").to_str().unwrap()]);
    }
    assert!(bench.bytes(&target, 245 * MIB, 32 * MIB) == fs::read(&volume).unwrap(), "the data");
    let is_zero = bench.bytes(&target, 277 * MIB, 26 * MIB).iter().all(|b| *b == 0);
    assert!(is_zero, "nothing is in the partition that is empty, and it was to be scrubbed");
    bench.bytes(&target, 303 * MIB, 16 * MIB);
    let swap = identity(&bench.path("taken"));
    assert!(swap.contains("TYPE=swap") && swap.contains("LABEL=scratch"), "{swap}");
    assert!(swap.contains("UUID="), "{swap}");
    let checked = status("util-linux", "swaplabel", &[bench.path("taken").to_str().unwrap()]);
    assert!(checked.status.success(), "{checked:?}");

    // Once more: all of it is there. And where something is not, that alone is written.
    let before = hash_of(&target);
    let again = restore(&bench.image, &target, &[&flags[..], &["--delta"]].concat());
    assert_eq!(
        (again["written_bytes"].as_u64(), again["fetched_bytes"].as_u64()),
        (Some(0), Some(0))
    );
    let cut = File::options().write(true).open(&target).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&cut, &[0x55; 5000], 90 * MIB).unwrap();
    restore(&bench.image, &target, &[&flags[..], &["--delta"]].concat());
    assert_eq!(hash_of(&target), before, "the same identities, the same bytes");
    // Another disk has other identities, but for those that came with the partitions.
    let other = bench.path("other");
    noise_file(&other, 320 * MIB + 512, 1);
    restore(&bench.image, &other, &flags);
    let theirs = self::table(&other);
    assert_ne!(theirs["id"], table["id"]);
    assert_eq!(id_of(&theirs, 0), id_of(&table, 0));
    assert_ne!(id_of(&theirs, 3), id_of(&table, 3));
}

#[test]
fn an_mbr_and_no_image_but_those_of_the_layout() {
    let bench = Bench::new();
    let target = bench.path("t");
    noise_file(&target, 200 * MIB, 1);
    let layout = bench.layout(
        "table = \"mbr\"\n[[partition]]\nimage = \"DATA\"\nbootable = true\n[[partition]]\nimage = \"SYSTEM\"\n\
         image-partition = 3\nsize = \"20M\"\n[[partition]]\ntype = \"0x07\"\nsize = \"rest\"\n[[partition]]\nimage = \"SYSTEM\"\nimage-partition = 1\n",
    );
    let text = target.to_str().unwrap();
    let ran = agent(&["restore", "--yes", "--json", text, "--layout", &layout]);
    let done = ran.json();
    assert!(done["written_bytes"].as_u64().unwrap() > MIB, "{done:#}");
    let table = table(&target);
    assert_eq!(places(&table), [(1, 32), (33, 20), (53, 107), (160, 40)], "{table:#}");
    assert_eq!(table["partitions"][0]["bootable"], true);
    let kinds: Vec<&Value> =
        table["partitions"].as_array().unwrap().iter().map(|p| &p["type"]).collect();
    // What was an EFI system partition in a GPT is one here.
    assert_eq!(kinds, [&json!("83"), &json!("82"), &json!("7"), &json!("ef")]);
    bench.bytes(&target, MIB, 32 * MIB);
    run("e2fsprogs", "e2fsck", &["-fn", bench.path("taken").to_str().unwrap()]);
    // Swap keeps its identity, and is as large as its partition now.
    bench.bytes(&bench.disk.path, bench.disk.swap.start, bench.disk.swap.len);
    let uuid = |text: String| text.lines().find(|l| l.starts_with("UUID=")).unwrap().to_owned();
    let old = uuid(identity(&bench.path("taken")));
    bench.bytes(&target, 33 * MIB, 20 * MIB);
    assert_eq!(uuid(identity(&bench.path("taken"))), old);
    // By --disk, and again.
    let ran =
        agent(&["restore", "--yes", "--json", "--disk", text, "--delta", "--layout", &layout]);
    assert_eq!(ran.json()["written_bytes"], 0);
}

#[test]
fn a_filesystem_grows_into_its_partition() {
    let bench = Bench::new();
    let target = bench.path("t");
    noise_file(&target, 150 * MIB, 1);
    let layout = bench.layout("[[partition]]\nsize = \"rest\"\nimage = \"DATA\"\ngrow = true\n");
    let device = Loop::new(&target, &[]);
    let command = ["restore", "--yes", "--json", device.text(), "--layout", &layout];
    if !may_grow_ext() {
        let before = hash_of(&target);
        agent(&command).refused("refused", &["CAP_SYS_RESOURCE"]);
        assert_eq!(hash_of(&target), before);
        return;
    }
    let done = agent(&command).json();
    assert!(done["changes"].to_string().contains("grown from 32.00 MiB to 148.00 MiB"), "{done:#}");
    drop(device);
    bench.bytes(&target, MIB, 148 * MIB);
    run("e2fsprogs", "e2fsck", &["-fn", bench.path("taken").to_str().unwrap()]);
}

#[test]
fn what_cannot_be_is_refused_before_the_first_write() {
    let bench = Bench::new();
    let target = bench.path("t");
    noise_file(&target, 150 * MIB, 1);
    let part = |lines: &str| format!("[[partition]]\n{lines}\n");
    let root = "00".repeat(32);
    let cases: [(String, &[&str]); 9] = [
        (part("image-partition = 2") + &part("size = \"50M\""), &["1065472 bytes are missing"]),
        (
            part("image-partition = 2\nsize = \"99M\""),
            &["partition 1", "1048576 bytes are missing"],
        ),
        (part("image-partition = 2\nsize = 104857601"), &["no whole sectors of 512"]),
        (part("image-partition = 7"), &["no partition 7", "1, 2, 3"]),
        (part("image = \"SYSTEM\""), &["image-partition has to say"]),
        (part("image-partition = 2\ntype = \"0x83\""), &["type '0x83'", "esp"]),
        (part("image-partition = 2\nattributes = [\"bold\"]"), &["attribute 'bold'"]),
        (part("image = \"DATA\""), &["no partition of the layout comes from"]),
        (part(&format!("image = \"DATA\"\nexpect-root = \"{root}\"")), &["another image"]),
    ];
    let before = hash_of(&target);
    for (text, words) in cases {
        let layout = bench.layout(&text);
        let kind = if text.contains("expect-root") { "image_corrupt" } else { "refused" };
        try_restore(&bench.image, &target, &["--layout", &layout]).refused(kind, words);
    }
    let layout = bench.layout(&part("image-partition = 2"));
    for flags in [["--grow", "last"], ["--partition", "2"]] {
        let flags = [&["--layout", &layout][..], &flags].concat();
        try_restore(&bench.image, &target, &flags).refused("refused", &["do not go with it"]);
    }
    let text = target.to_str().unwrap();
    agent(&["restore", "--yes", text, "--layout", &layout]).refused("refused", &["names no image"]);
    // Mistakes in the file are wrong use of the command line, with the place.
    let layout = bench.layout("[[partition]]\nsice = 1\n");
    let ran = try_restore(&bench.image, &target, &["--layout", &layout]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("sice") && ran.stderr.contains("line 2"), "{}", ran.stderr);
    assert_eq!(hash_of(&target), before);
    let device = Loop::new(&target, &["--sector-size", "4096"]);
    let layout = bench.layout(&part("image-partition = 2"));
    try_restore(&bench.image, device.path(), &["--layout", &layout])
        .refused("refused", &["partition 1 of the layout (ext4)", "sectors of 4096 bytes"]);
    drop(device);
    assert_eq!(hash_of(&target), before);
}

#[test]
fn in_a_job() {
    let bench = Bench::new();
    let target = bench.path("t");
    noise_file(&target, 150 * MIB, 1);
    let layout = json!({ "partition": [
        { "size": "8M", "type": "bios-boot" },
        { "size": "rest", "image-partition": 2, "name": "root" },
        { "size": 8 * MIB, "format": "swap" },
    ]});
    let mut child = worker(&json!({
        "id": "1", "disk": target, "image_url": bench.image, "action": "restore",
        "options": { "layout": layout },
    }));
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.map(Result::unwrap).collect();
    child.wait().unwrap();
    let outcome = lines.last().unwrap();
    assert!(outcome.contains("written_bytes"), "{outcome}");
    assert_eq!(places(&table(&target)), [(1, 8), (9, 132), (141, 8)]);
    bench.bytes(&target, 9 * MIB, 100 * MIB);
    run("e2fsprogs", "e2fsck", &["-fn", bench.path("taken").to_str().unwrap()]);
}
