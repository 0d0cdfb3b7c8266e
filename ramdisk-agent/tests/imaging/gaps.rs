//! What lies outside of partitions where those grow, shrink or move: it stays where it was, or the plan says what is lost.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::agent::{agent, capture, restore};
use crate::disks::{self, noise, noise_file};
use crate::grow::{layout, words};
use crate::tools::run;

const MIB: u64 = 1 << 20;
const MARK: u8 = 0xA7;

/// A disk with a GPT and partitions of noise at these places, in MiB.
fn disk(path: &Path, mib: u64, partitions: &[(u64, u64)]) -> File {
    File::create(path).unwrap().set_len(mib * MIB).unwrap();
    let mut args = vec!["-o".to_owned()];
    for ((start, len), number) in partitions.iter().zip(1..) {
        args.push(format!("-n{number}:{}:+{len}M", start * 2048));
    }
    args.push(path.to_str().unwrap().to_owned());
    run("gdisk", "sgdisk", &args.iter().map(String::as_str).collect::<Vec<_>>());
    let file = File::options().read(true).write(true).open(path).unwrap();
    for (start, len) in partitions {
        file.write_all_at(&noise((len * MIB) as usize, *start), start * MIB).unwrap();
    }
    file
}

fn mark(file: &File, at: u64, len: usize) {
    file.write_all_at(&vec![MARK; len], at).unwrap();
}

fn bytes(path: &Path, at: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
    bytes
}

fn is_marked(path: &Path, at: u64, len: u64) -> bool {
    bytes(path, at, len).iter().all(|b| *b == MARK)
}

/// A plan and a restore, and once more with nothing to do; both say all of this, and say nothing else of what is lost.
fn restored(image: &Path, target: &Path, flags: &[&str], lost: &[String]) {
    let paths = [image.to_str().unwrap(), target.to_str().unwrap()];
    let command = [&["plan", "restore"], &paths[..], flags].concat();
    let text = agent(&command).stdout;
    let plan = agent(&[&command[..], &["--json"]].concat()).json();
    let summary = restore(image, target, flags);
    for told in [text, words(&plan["notes"]), words(&summary["changes"])] {
        assert!(lost.iter().all(|words| told.contains(words.as_str())), "{lost:?} in {told}");
        assert_eq!(told.matches("not taken along").count(), lost.len(), "{told}");
    }
    let again = restore(image, target, &[flags, &["--delta"]].concat());
    assert_eq!(again["written_bytes"], 0, "{again:#}");
}

fn said(count: u64, at: u64, why: &str) -> String {
    format!(
        "{count} bytes other than zero that lie outside of partitions, from byte {at} to {} of the image's disk, are not taken along: {why}",
        at + count
    )
}

fn paths(dir: &Path) -> [PathBuf; 3] {
    ["source", "a.img.zst", "target"].map(|name| dir.join(name))
}

#[test]
fn what_a_grown_or_moved_partition_leaves_free_stays_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = paths(dir.path());
    let file = disk(&source, 20, &[(1, 1), (2, 8), (12, 2)]);
    let (lost_gap, kept_gap) = (10 * MIB + 4096, 11 * MIB + MIB / 2);
    let (lost_tail, lost_end) = (14 * MIB + 8192, 19 * MIB + MIB / 2);
    for (at, len) in [(lost_gap, 600), (kept_gap, 500), (lost_tail, 400), (lost_end, 300)] {
        mark(&file, at, len);
    }
    capture(&source, &image, &[]);
    // One MiB of room: every partition behind the first moves by that.
    noise_file(&target, 16 * MIB, 3);
    let lost = [
        said(600, lost_gap, "partition 2 takes their place"),
        said(400, lost_tail, "partition 3 takes their place"),
        said(300, lost_end, "the target ends before them"),
    ];
    restored(&image, &target, &["--grow", "1"], &lost);
    assert_eq!(layout(&target), [(1, 2), (3, 8), (13, 2)]);
    assert!(is_marked(&target, kept_gap, 500));
    for (from, to, len) in [(1, 1, 1), (2, 3, 8), (12, 13, 2)] {
        assert!(bytes(&source, from * MIB, len * MIB) == bytes(&target, to * MIB, len * MIB));
    }
    let verdict = run("gdisk", "sgdisk", &["-v", target.to_str().unwrap()]);
    assert!(verdict.contains("No problems found"), "{verdict}");

    // With much room the first one takes all of it.
    noise_file(&target, 64 * MIB, 3);
    let is_first = "partition 1 takes their place";
    let both = kept_gap + 500 - lost_gap;
    let gap = format!(
        "1100 bytes other than zero that lie outside of partitions, from byte {lost_gap} to {}",
        lost_gap + both
    );
    let tail =
        format!("700 bytes other than zero that lie outside of partitions, from byte {lost_tail}");
    restored(&image, &target, &["--grow", "1"], &[gap, tail]);
    let plan = agent(&[
        "plan",
        "restore",
        image.to_str().unwrap(),
        target.to_str().unwrap(),
        "--grow",
        "1",
    ]);
    assert!(plan.stdout.contains(is_first), "{}", plan.stdout);

    // Where nothing moves everything is taken along.
    noise_file(&target, 64 * MIB, 3);
    restored(&image, &target, &[], &[]);
    for (at, len) in [(lost_gap, 600), (kept_gap, 500), (lost_tail, 400), (lost_end, 300)] {
        assert!(is_marked(&target, at, len), "byte {at}");
    }
}

#[test]
fn where_swap_gives_way_what_lies_behind_it_stays_too() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = paths(dir.path());
    let file = disk(&source, 16, &[(1, 2), (3, 8), (13, 2)]);
    let swap = dir.path().join("swap");
    disks::swap(&swap, 8 * MIB);
    file.write_all_at(&fs::read(&swap).unwrap(), 3 * MIB).unwrap();
    let (lost, kept) = (11 * MIB + 4096, 12 * MIB + MIB / 4);
    mark(&file, lost, 250);
    mark(&file, kept, 200);
    capture(&source, &image, &[]);
    noise_file(&target, 13 * MIB, 3);
    restored(&image, &target, &[], &[said(250, lost, "partition 3 takes their place")]);
    assert_eq!(layout(&target), [(1, 2), (3, 5), (10, 2)]);
    assert!(is_marked(&target, kept, 200));
    assert!(bytes(&source, 13 * MIB, 2 * MIB) == bytes(&target, 10 * MIB, 2 * MIB));
}

/// A disk with sectors of 4096 bytes, read as a file, and nothing in it that says so.
#[test]
fn an_mbr_that_may_count_in_larger_sectors_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    noise_file(&at("disk"), 96 * MIB, 5);
    let script = "printf 'label: dos\nstart=256,size=1024\nstart=20480,size=2048\n' | sfdisk -q";
    let script = format!("{script} --wipe-partitions never {}", at("disk").display());
    run("fdisk", "sh", &["-c", &script]);
    let plan = agent(&["plan", "capture", "--json", at("disk").to_str().unwrap()]).json();
    assert!(words(&plan["warnings"]).contains("what sectors it counts in"), "{plan:#}");
    capture(&at("disk"), &at("a.img.zst"), &[]);
    noise_file(&at("target"), 96 * MIB, 6);
    restore(&at("a.img.zst"), &at("target"), &[]);
    assert!(fs::read(at("disk")).unwrap() == fs::read(at("target")).unwrap());
}
