//! ext3 and ext4 whose system was cut off: mounted, used, and shut down at once, with transactions in the journal.
//!
//! The oracle: what the map calls free is overwritten with noise; then the kernel or e2fsck replays the journal, of this volume and
//! of an untouched copy. e2fsck must find nothing in both, and every file must be the same.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ramdisk_agent::fs::{Clean, Taken, VolumeMap};

use crate::ext::{EXT3, EXT4, Ext, Recipe};
use crate::live::live;
use crate::mounted::{mount, mountable};
use crate::noise::{Noise, seeds};
use crate::oracle::{fill_free, look};
use crate::tools::{e2fs, run, status};
use crate::tree::assert_same;

/// What begins a block of the journal; a block of a file that begins with it is escaped there.
pub const JOURNAL_MAGIC: [u8; 4] = [0xC0, 0x3B, 0x39, 0x98];

fn recipes() -> impl Iterator<Item = &'static Recipe> + Clone {
    let journalled = |options: &str| {
        // The first is without, of the second the tools wait for others that may have it mounted, the third has a test of its own.
        !["^has_journal", "mmp", "fast_commit"].iter().any(|not| options.contains(not))
    };
    EXT4.iter()
        .chain(&EXT3)
        .filter(move |recipe| mountable(recipe.options) && journalled(recipe.options))
}

/// A filesystem that was cut off.
pub fn crash(recipe: &Recipe, noise: &mut Noise, seed: u64) -> Ext {
    let mut ext = Ext::make(recipe, 30_000, noise, seed);
    let folder = tempfile::tempdir().unwrap();
    {
        let mounted = mount(&ext, folder.path());
        mounted.live(noise, 0);
    }
    let mounted = mount(&ext, folder.path());
    let at = mounted.at.clone();
    let journal_all = noise.chance(3);
    if journal_all {
        run("mount", "mount", &["-o", "remount,commit=1", at.to_str().unwrap()]);
    }
    let held = File::create(at.join("held")).unwrap();
    if_room((&held).write_all(&noise.bytes(50_000)));
    for round in 1..=1 + noise.below(2) {
        live(&at, true, noise, round);
        if journal_all {
            journal_data(&at.join(format!("journalled{round}")), noise);
        }
        if noise.chance(2) {
            run("coreutils", "sync", &["-f", at.to_str().unwrap()]);
        }
        // What was in use gets free, and the other way round.
        let old = at.join(format!("lived{}", round - 1));
        if old.exists() && noise.chance(2) {
            fs::remove_dir_all(old).unwrap();
        }
    }
    // An orphan: deleted and still open.
    fs::remove_file(at.join("held")).unwrap();
    let last = File::create(at.join("last")).unwrap();
    if_room(last.sync_all());
    // Nothing reaches the device any more; with -f what is in the log's memory does first.
    let command = *noise.pick(&["shutdown", "shutdown -f"]);
    run("xfsprogs", "xfs_io", &["-x", "-c", command, at.to_str().unwrap()]);
    drop((held, last));
    drop(mounted);
    ext.what.push_str(&format!(", {command}, files journalled: {journal_all}"));
    ext
}

/// Files whose data go through the journal, some with blocks that look like the journal's own.
fn journal_data(folder: &Path, noise: &mut Noise) {
    fs::create_dir(folder).unwrap();
    status("e2fsprogs", "chattr", &["+j", folder.to_str().unwrap()]);
    for i in 0..3 {
        let mut bytes = noise.bytes(30_000);
        for at in (0..bytes.len() - 4).step_by(1024) {
            if noise.chance(3) {
                bytes[at..at + 4].copy_from_slice(&JOURNAL_MAGIC);
            }
        }
        let file = File::create(folder.join(i.to_string())).unwrap();
        if_room((&file).write_all(&bytes));
        if_room(file.sync_all());
    }
}

fn if_room(result: std::io::Result<()>) {
    let full = |e: &std::io::Error| e.kind() == std::io::ErrorKind::StorageFull;
    assert!(result.as_ref().err().is_none_or(full), "{result:?}");
}

fn expect_recovered(volume: &Path, what: &str) -> VolumeMap {
    let map = look(volume);
    assert_eq!((&map.taken, &map.clean), (&Taken::Map, &Clean::Clean), "{what}");
    assert!(map.note.as_ref().is_some_and(|note| note.contains("journal")), "{what}: {map:?}");
    map
}

fn replay(ext: &Ext, by_kernel: bool) {
    if by_kernel {
        let folder = tempfile::tempdir().unwrap();
        drop(mount(ext, folder.path()));
    } else {
        let args = ["-fy", ext.volume.to_str().unwrap()];
        let output = status("e2fsprogs", "e2fsck", &args);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {output:?}", ext.what);
    }
    ext.check();
}

fn oracle(mut ext: Ext, noise: &mut Noise) {
    let report = e2fs("dumpe2fs", &["-h", ext.volume.to_str().unwrap()]);
    assert!(report.contains("needs_recovery"), "{}", ext.what);
    let folder = tempfile::tempdir().unwrap();
    let untouched: PathBuf = folder.path().join("untouched");
    fs::copy(&ext.volume, &untouched).unwrap();
    let map = expect_recovered(&ext.volume, &ext.what);
    fill_free(&ext.volume, &map, noise);
    // What is kept beyond what the filesystem uses: blocks that the log frees.
    assert!(map.used.total_bytes() >= map.used_bytes_claimed, "{}", ext.what);
    let by_kernel = noise.chance(2);
    replay(&ext, by_kernel);
    let after = ext.files("noisy");
    ext.volume = untouched;
    replay(&ext, by_kernel);
    assert_same(&ext.files("untouched"), &after, &ext.what);
    // Both are clean now, with all that they use kept.
    let clean = look(&ext.volume);
    assert_eq!((&clean.taken, &clean.clean, &clean.note), (&Taken::Map, &Clean::Clean, &None));
}

#[test]
fn noise_in_what_is_free_before_and_after_a_replay_does_not_matter() {
    for (seed, recipe) in seeds(60).zip(recipes().cycle()) {
        let mut noise = Noise::new(seed);
        let ext = crash(recipe, &mut noise, seed);
        oracle(ext, &mut noise);
    }
}

/// The reason for which a filesystem is not clean.
fn not_clean(volume: &Path) -> String {
    match look(volume).clean {
        Clean::NotClean { reason } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_replayed_here_is_not_clean() {
    let mut noise = Noise::new(61);
    let fast = EXT4.iter().find(|recipe| recipe.options.contains("fast_commit")).unwrap();
    let ext = crash(fast, &mut noise, 61);
    let reason = not_clean(&ext.volume);
    assert!(reason.contains("the journal needs recovery (it has fast commits)"), "{reason}");

    // Changed bytes in a transaction, and in the journal's superblock.
    let ext = Ext::make(&EXT4[0], 6_000, &mut noise, 62);
    journal_by_debugfs(&ext, "-c -v 3", &mut noise);
    expect_recovered(&ext.volume, &ext.what);
    let journal = journal_at(&ext);
    let file = File::options().read(true).write(true).open(&ext.volume).unwrap();
    let flip = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
    };
    let mut start = [0; 4];
    file.read_exact_at(&mut start, journal + 0x1C).unwrap();
    let first = journal + u64::from(u32::from_be_bytes(start)) * ext.block;
    for (at, reason) in [
        (first + ext.block + 100, "a checksum in transaction"),
        (first + 20, "a checksum in transaction"),
        (journal + 0x18, "the checksum of the journal's superblock"),
    ] {
        flip(at);
        let found = not_clean(&ext.volume);
        assert!(found.contains(reason), "{found}");
        flip(at);
        expect_recovered(&ext.volume, &ext.what);
    }
}

/// Where the journal begins, which mke2fs puts in one piece.
pub fn journal_at(ext: &Ext) -> u64 {
    let blocks = e2fs("debugfs", &["-R", "blocks <8>", ext.volume.to_str().unwrap()]);
    blocks.split_whitespace().next().unwrap().parse::<u64>().unwrap() * ext.block
}

/// Has debugfs write to the journal: a file's blocks, then a revoke of the first, and the second again; a replay changes data only.
pub fn journal_by_debugfs(ext: &Ext, options: &str, noise: &mut Noise) {
    let folder = tempfile::tempdir().unwrap();
    let (data, script) = (folder.path().join("data"), folder.path().join("script"));
    // Two blocks at least, also of 4 KiB.
    let mut bytes = noise.bytes(8 * 1024);
    bytes[4096..4100].copy_from_slice(&JOURNAL_MAGIC);
    fs::write(&data, &bytes).unwrap();
    let (volume, data) = (ext.volume.to_str().unwrap(), data.to_str().unwrap());
    e2fs("debugfs", &["-w", "-R", &format!("write {data} target"), volume]);
    let blocks = e2fs("debugfs", &["-R", "blocks /target", volume]);
    let blocks: Vec<&str> = blocks.split_whitespace().collect();
    let (all, first, second) = (blocks.join(","), blocks[0], blocks[1]);
    let commands = format!(
        "journal_open {options}\njournal_write -b {all} {data}\njournal_write -b {second} -r {first} {data}\njournal_close\n"
    );
    fs::write(&script, commands).unwrap();
    let said = e2fs("debugfs", &["-w", "-f", script.to_str().unwrap(), volume]);
    let report = e2fs("dumpe2fs", &["-h", volume]);
    assert!(report.contains("needs_recovery"), "{said}{report}");
}

/// Among them those that only older kernels made.
#[test]
fn journals_with_checksums_of_version_2_and_3_and_with_none_are_replayed() {
    let mut noise = Noise::new(63);
    let plain = EXT4.iter().find(|r| r.options.contains("^metadata_csum,^uninit_bg")).unwrap();
    for (recipe, options) in [(&EXT4[1], "-c -v 2"), (&EXT4[1], "-c -v 3"), (plain, "")] {
        let mut ext = Ext::make(recipe, 6_000, &mut noise, 63);
        journal_by_debugfs(&ext, options, &mut noise);
        ext.what.push_str(options);
        oracle(ext, &mut noise);
    }
    // Checksums of version 1, over a whole transaction.
    let ext = Ext::make(plain, 6_000, &mut noise, 64);
    journal_by_debugfs(&ext, "", &mut noise);
    let file = File::options().write(true).open(&ext.volume).unwrap();
    file.write_all_at(&[1], journal_at(&ext) + 0x27).unwrap();
    let reason = not_clean(&ext.volume);
    assert!(reason.contains("features that are not known"), "{reason}");
}
