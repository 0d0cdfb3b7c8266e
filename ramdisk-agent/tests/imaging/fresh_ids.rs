//! `--fresh-ids`: a partition table with other identities than the image's, the same ones each time for one disk.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::agent::{agent, capture, restore, try_restore, worker};
use crate::devices::Loop;
use crate::disks::{self, dump, judge};
use crate::round_trip::restored;
use crate::tools::run;

const FRESH: &[&str] = &["--fresh-ids"];

/// A disk of zeros.
fn empty(path: &Path, len: u64) {
    File::create_new(path).unwrap().set_len(len).unwrap();
}

fn plan(image: &Path, target: &Path, flags: &[&str]) -> Value {
    let paths = [image.to_str().unwrap(), target.to_str().unwrap()];
    agent(&[&["plan", "restore", "--json"], &paths[..], flags].concat()).json()
}

/// The identities of a disk and its partitions, as sfdisk sees them.
fn ids(disk: &Path) -> Vec<String> {
    let text = run("fdisk", "sfdisk", &["--json", disk.to_str().unwrap()]);
    let table = serde_json::from_str::<Value>(&text).unwrap()["partitiontable"].clone();
    let partitions = table["partitions"].as_array().unwrap().iter().map(|p| &p["uuid"]);
    let all = std::iter::once(&table["id"]).chain(partitions).filter_map(Value::as_str);
    all.map(str::to_lowercase).collect()
}

/// The table without identities: places, types, names, attributes, usable range.
fn rest(disk: &Path) -> String {
    let lines = dump(disk);
    let lines = lines.lines().filter(|line| !line.starts_with("label-id:"));
    let fields = lines.map(|line| {
        let fields = line.split(", ").filter(|field| !field.trim().starts_with("uuid="));
        fields.collect::<Vec<_>>().join(", ")
    });
    fields.collect::<Vec<_>>().join("\n")
}

fn all_differ(lists: &[&Vec<String>]) {
    let mut all: Vec<&String> = lists.iter().flat_map(|list| list.iter()).collect();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "{lists:?}");
}

#[test]
fn every_disk_gets_its_own_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let (target, other) = (dir.path().join("t"), dir.path().join("other"));
    empty(&target, disk.len);
    let planned = plan(&image, &target, FRESH);
    let hash = planned["hash"].as_str().unwrap();
    assert_ne!(plan(&image, &target, &[])["hash"], hash);
    let flags = [FRESH, &["--expect-plan", hash]].concat();
    let done = restore(&image, &target, &flags);
    assert!(done["changes"].to_string().contains("PARTUUID"), "{done:#}");
    let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let (old, new) = (ids(&disk.path), ids(&target));
    assert_eq!((old.len(), new.len()), (4, 4));
    all_differ(&[&old, &new]);
    assert_eq!(rest(&target), rest(&disk.path));
    judge(&disk, &target, dir.path());
    let said: Vec<_> = planned["fresh_ids"].as_array().unwrap().iter().collect();
    for (said, (old, new)) in said.iter().zip(old.iter().zip(&new)) {
        assert_eq!((said["old"].as_str(), said["new"].as_str()), (Some(&**old), Some(&**new)));
    }

    // Once more, under another name: all of it is there. And a restore that was cut off goes on with the same.
    let renamed = dir.path().join("renamed");
    fs::rename(&target, &renamed).unwrap();
    assert_eq!(restore(&image, &renamed, &["--delta", "--fresh-ids"])["written_bytes"], 0);
    let file = File::options().write(true).open(&renamed).unwrap();
    file.write_all_at(&[0; 512], 0).unwrap();
    file.write_all_at(&[0x55; 5000], disk.root.start + (10 << 20)).unwrap();
    // Through a loop device it is the same disk.
    let device = Loop::new(&renamed, &[]);
    restore(&image, device.path(), &["--delta", "--fresh-ids"]);
    drop(device);
    assert_eq!(ids(&renamed), new);
    judge(&disk, &renamed, dir.path());

    // A disk that has the place of the first one now, and a larger one.
    empty(&target, disk.len);
    empty(&other, disk.len + (8 << 20));
    restore(&image, &target, FRESH);
    restore(&image, &other, &["--fresh-ids", "--grow", "3"]);
    let verdict = run("gdisk", "sgdisk", &["-v", other.to_str().unwrap()]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    all_differ(&[&old, &new, &ids(&target), &ids(&other)]);
}

#[test]
fn the_signature_of_an_mbr_and_all_that_is_named_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = disks::system(dir.path(), "logical");
    let (image, target) = (dir.path().join("a.img.zst"), dir.path().join("t"));
    capture(&disk.path, &image, &[]);
    empty(&target, disk.len);
    let done = restore(&image, &target, FRESH);
    assert!(done["changes"].to_string().contains("signature is new"), "{done:#}");
    let id =
        |disk: &Path| dump(disk).lines().find(|l| l.starts_with("label-id:")).map(str::to_owned);
    assert_ne!(id(&target).unwrap(), id(&disk.path).unwrap());
    assert_eq!(rest(&target), rest(&disk.path));
    judge(&disk, &target, dir.path());
    assert_eq!(restore(&image, &target, &["--delta", "--fresh-ids"])["written_bytes"], 0);
}

#[test]
fn in_a_layout_and_in_a_job() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let target = dir.path().join("t");
    empty(&target, disk.len);
    let layout = dir.path().join("layout.toml");
    fs::write(&layout, "[[partition]]\nimage-partition = 1\n[[partition]]\nimage-partition = 3\n")
        .unwrap();
    let flags = ["--layout", layout.to_str().unwrap(), "--fresh-ids"];
    let planned = plan(&image, &target, &flags);
    assert_eq!(planned["fresh_ids"].as_array().unwrap().len(), 2, "{planned:#}");
    restore(&image, &target, &flags);
    all_differ(&[&ids(&disk.path), &ids(&target)]);

    let hash = plan(&image, &target, FRESH)["hash"].clone();
    let mut child = worker(&json!({
        "id": "1", "disk": target, "image_url": image, "action": "restore",
        "options": { "fresh_ids": true, "expect_plan": hash },
    }));
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let outcome = lines.map(Result::unwrap).last().unwrap();
    child.wait().unwrap();
    assert!(outcome.contains("written_bytes") && outcome.contains("PARTUUID"), "{outcome}");
    let new = ids(&target);
    all_differ(&[&ids(&disk.path), &new]);
}

#[test]
fn what_has_no_table_has_nothing_to_make_new() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = restored(dir.path());
    let (volume, bare) = (dir.path().join("v"), dir.path().join("v.img.zst"));
    disks::swap(&volume, 8 << 20);
    capture(&volume, &bare, &[]);
    let before = blake3::hash(&fs::read(&volume).unwrap());
    try_restore(&bare, &volume, FRESH).refused("refused", &["no partition table"]);
    let one = [FRESH, &["--partition", "3"]].concat();
    try_restore(&image, &volume, &one)
        .refused("refused", &["fresh_ids is for the partition table"]);
    assert_eq!(blake3::hash(&fs::read(&volume).unwrap()), before);
    let into = [FRESH, &["--into-partition", "3"]].concat();
    try_restore(&bare, &disk.path, &into).refused("refused", &["fresh_ids"]);
}
