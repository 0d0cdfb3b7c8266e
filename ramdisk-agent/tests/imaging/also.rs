//! One image from several places.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::agent::{agent, capture, restore, try_restore, worker};
use crate::disks::noise_file;

const MIB: u64 = 1 << 20;
const DISK_LEN: u64 = 64 * MIB;

struct Bench {
    folder: tempfile::TempDir,
    disk: PathBuf,
    image: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (disk, image) = (folder.path().join("disk"), folder.path().join("a.img.zst"));
        noise_file(&disk, DISK_LEN, 51);
        capture(&disk, &image, &[]);
        File::create(folder.path().join("target")).unwrap().set_len(DISK_LEN).unwrap();
        Self { folder, disk, image }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn copy(&self, name: &str) -> PathBuf {
        fs::copy(&self.image, self.path(name)).unwrap();
        self.path(name)
    }

    /// A copy with a wrong bit in every frame from `start` on; the index stays.
    fn damaged(&self, name: &str, start: u64) -> PathBuf {
        let path = self.copy(name);
        let file = File::options().write(true).open(&path).unwrap();
        for at in (start..60 * MIB).step_by(1 << 20) {
            file.write_all_at(&[0x55; 64], at).unwrap();
        }
        path
    }

    fn target(&self) -> PathBuf {
        self.path("target")
    }

    fn assert_restored(&self) {
        assert!(fs::read(&self.disk).unwrap() == fs::read(self.target()).unwrap());
    }
}

fn flags(also: &[&Path]) -> Vec<String> {
    also.iter().flat_map(|path| ["--also".to_owned(), path.to_str().unwrap().to_owned()]).collect()
}

fn as_strs(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

fn bytes_of(source: &Value) -> u64 {
    source["bytes"].as_u64().unwrap()
}

#[test]
fn all_good_places_are_used_and_the_others_are_named() {
    let bench = Bench::new();
    let good = bench.copy("good.img.zst");
    let damaged = bench.damaged("damaged.img.zst", MIB);
    let other = bench.path("other.img.zst");
    noise_file(&bench.path("disk2"), 8 * MIB, 52);
    capture(&bench.path("disk2"), &other, &[]);
    let missing = bench.path("missing.img.zst");

    let also = flags(&[&good, &damaged, &other, &missing, &bench.disk]);
    let summary = restore(&bench.image, &bench.target(), &as_strs(&also));
    bench.assert_restored();
    let sources = summary["sources"].as_array().unwrap();
    assert_eq!(sources.len(), 6, "{sources:?}");
    let why = |index: usize| sources[index]["left_out"].as_str().unwrap_or_default();
    assert_eq!((why(0), why(1)), ("", ""));
    assert!(bytes_of(&sources[0]) > 0 && bytes_of(&sources[1]) > 0, "{sources:?}");
    assert!(why(2).contains("is not the image's"), "{sources:?}");
    assert!(why(3).contains("it holds another image: its root is"), "{sources:?}");
    assert!(why(4).contains("does not exist"), "{sources:?}");
    assert!(why(5).contains("not a complete Imprint image"), "{sources:?}");
    let all: u64 = sources.iter().map(bytes_of).sum();
    assert!(all >= summary["fetched_bytes"].as_u64().unwrap(), "{all} of {summary}");

    let verify = ["verify", bench.image.to_str().unwrap()].map(str::to_owned);
    let ran = agent(&[&verify[..], &also[..]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("\nfrom       "), "{}", ran.stdout);
    assert!(
        ran.stderr.contains("note: ") && ran.stderr.contains("is left out: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_image_may_be_anywhere_but_where_it_was_looked_for_first() {
    let bench = Bench::new();
    let (missing, good) = (bench.path("missing.img.zst"), bench.copy("good.img.zst"));
    restore(&missing, &bench.target(), &as_strs(&flags(&[&good])));
    bench.assert_restored();
    let ran = try_restore(&missing, &bench.target(), &as_strs(&flags(&[&bench.path("none")])));
    ran.refused("not_found", &["none of the 2 sources", "missing.img.zst", "/none"]);
    let ran = try_restore(&good, &good, &[]);
    ran.refused("refused", &["is the image itself"]);
    let ran = try_restore(&missing, &good, &as_strs(&flags(&[&good])));
    ran.refused("refused", &["is the image itself"]);
}

#[test]
fn a_root_that_is_asked_for_decides_which_image_it_is() {
    let bench = Bench::new();
    let other = bench.path("other.img.zst");
    noise_file(&bench.path("disk2"), 8 * MIB, 53);
    capture(&bench.path("disk2"), &other, &[]);
    let root = agent(&["inspect", bench.image.to_str().unwrap(), "--json"]).json()["root"].clone();
    let mut more = flags(&[&bench.image]);
    more.extend(["--expect-root".to_owned(), root.as_str().unwrap().to_owned()]);
    let summary = restore(&other, &bench.target(), &as_strs(&more));
    bench.assert_restored();
    assert_eq!(summary["root"], root);
}

#[test]
fn places_that_are_damaged_in_different_frames_make_a_whole_image_only_while_one_is_left() {
    let bench = Bench::new();
    let damaged = bench.damaged("damaged.img.zst", MIB);
    let again = bench.damaged("again.img.zst", 30 * MIB);
    let ran = try_restore(&damaged, &bench.target(), &as_strs(&flags(&[&again])));
    ran.refused("image_corrupt", &["frame", "stored bytes do not match their hash"]);
}

#[test]
fn a_job_has_it_too() {
    let bench = Bench::new();
    let good = bench.copy("good.img.zst");
    let job = json!({
        "id": "j", "disk": bench.target(), "image_url": bench.path("missing.img.zst"),
        "action": "restore", "options": { "also": [good] },
    });
    let output = worker(&job).wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"left_out\":"));
    bench.assert_restored();
}
