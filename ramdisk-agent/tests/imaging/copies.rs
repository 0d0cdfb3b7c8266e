//! Images copied from folder to folder, and removed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::agent::{Ran, agent, capture, try_restore};
use crate::disks::noise_file;

const LEN: u64 = 40 << 20;

/// A folder with an image and a delta image on it, and an empty one.
struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rig = Self { dir };
        for folder in ["here", "there"] {
            fs::create_dir(rig.path(folder)).unwrap();
        }
        noise_file(&rig.path("disk"), LEN, 5);
        capture(&rig.path("disk"), &rig.path("here/a.img.zst"), &[]);
        let disk = File::options().write(true).open(rig.path("disk")).unwrap();
        disk.write_all_at(&[7; 1000], 20 << 20).unwrap();
        let base = rig.text("here/a.img.zst");
        capture(&rig.path("disk"), &rig.path("here/b.imgd"), &["--base", &base]);
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Runs the program; arguments with a slash or a dot are files of this rig.
    fn agent(&self, arguments: &[&str]) -> Ran {
        let is_file = |text: &str| text.contains('/') || text.contains('.');
        let arguments: Vec<String> = arguments
            .iter()
            .map(|text| if is_file(text) { self.text(text) } else { (*text).to_owned() })
            .collect();
        agent(&arguments)
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn is_same(&self, one: &str, other: &str) -> bool {
        fs::read(self.path(one)).unwrap() == fs::read(self.path(other)).unwrap()
    }
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

#[test]
fn a_copy_is_the_same_bytes_and_overwrites_nothing() {
    let rig = Rig::new();
    let root = rig.agent(&["inspect", "--json", "here/a.img.zst"]).json()["root"].clone();
    let root = root.as_str().unwrap();
    let summary =
        rig.agent(&["copy", "here/a.img.zst", "there/x.img.zst", "--json", "--expect-root", root]);
    let summary = summary.json();
    assert!(rig.is_same("here/a.img.zst", "there/x.img.zst"));
    assert_eq!(summary["root"], root);
    assert_eq!(summary["disk_bytes"], LEN);
    let len = fs::metadata(rig.path("there/x.img.zst")).unwrap().len();
    assert_eq!(summary["stored_bytes"], len);
    assert!(summary["reread_bytes"].as_u64().unwrap() > LEN);
    // Again: it is there.
    let before = fs::metadata(rig.path("there/x.img.zst")).unwrap().modified().unwrap();
    rig.agent(&["copy", "here/a.img.zst", "there/x.img.zst"]).refused("refused", &["x.img.zst"]);
    assert_eq!(fs::metadata(rig.path("there/x.img.zst")).unwrap().modified().unwrap(), before);
    // Another root, a name that is no image's, a folder that is not there.
    let other = "0".repeat(64);
    rig.agent(&["copy", "here/a.img.zst", "there/y.img.zst", "--expect-root", &other])
        .refused("image_corrupt", &[root, &other]);
    rig.agent(&["copy", "here/a.img.zst", "there/y.imgd"]).refused("refused", &[".img.zst"]);
    rig.agent(&["copy", "here/a.img.zst", "nowhere/y.img.zst"]).refused("not_found", &["nowhere"]);
    rig.agent(&["copy", "disk.raw", "there/y.img.zst"]).refused("not_found", &["disk.raw"]);
    fs::copy(rig.path("disk"), rig.path("disk.raw")).unwrap();
    rig.agent(&["copy", "disk.raw", "there/y.img.zst"]).refused("refused", &["convert"]);
    assert_eq!(rig.names("there"), ["x.img.zst"]);
}

#[test]
fn a_damaged_image_is_not_copied_wherever_the_damage_is() {
    let rig = Rig::new();
    let len = fs::metadata(rig.path("here/a.img.zst")).unwrap().len();
    // In the opening frame, the first frame of data, one in the middle, the index, the seek table.
    for at in [60, 4 << 20, len / 2, len - 3000, len - 40] {
        fs::copy(rig.path("here/a.img.zst"), rig.path("here/bad.img.zst")).unwrap();
        flip(&rig.path("here/bad.img.zst"), at);
        let ran = rig.agent(&["copy", "here/bad.img.zst", "there/bad.img.zst"]);
        assert_ne!(ran.code, 0, "a flip at {at} was copied");
        assert!(ran.stderr.contains("[image_corrupt]"), "at {at}: {}", ran.stderr);
        assert!(rig.names("there").is_empty(), "at {at}: {:?}", rig.names("there"));
    }
    fs::copy(rig.path("here/a.img.zst"), rig.path("here/bad.img.zst")).unwrap();
    File::options()
        .write(true)
        .open(rig.path("here/bad.img.zst"))
        .unwrap()
        .set_len(len - 1)
        .unwrap();
    rig.agent(&["copy", "here/bad.img.zst", "there/bad.img.zst"]).refused("image_corrupt", &[]);
    assert!(rig.names("there").is_empty());
}

#[test]
fn a_delta_goes_where_its_base_is() {
    let rig = Rig::new();
    rig.agent(&["copy", "here/b.imgd", "there/b.imgd"])
        .refused("refused", &["a.img.zst", "copy that one first", "--without-base"]);
    assert!(rig.names("there").is_empty());
    assert_eq!(rig.agent(&["copy", "here/b.imgd", "there/b.imgd", "--without-base"]).code, 0);
    fs::remove_file(rig.path("there/b.imgd")).unwrap();
    // The base may have another name there.
    assert_eq!(rig.agent(&["copy", "here/a.img.zst", "there/base.img.zst"]).code, 0);
    let summary = rig.agent(&["copy", "here/b.imgd", "there/b.imgd", "--json"]).json();
    let root = rig.agent(&["inspect", "--json", "here/a.img.zst"]).json()["root"].clone();
    assert_eq!(summary["parent_root"], root);
    assert!(rig.is_same("here/b.imgd", "there/b.imgd"));
    fs::write(rig.path("target"), vec![0; usize::try_from(LEN).unwrap()]).unwrap();
    try_restore(&rig.path("there/b.imgd"), &rig.path("target"), &[]).json();
    assert!(rig.is_same("disk", "target"));
}

#[test]
fn a_signature_goes_along_with_the_name_it_is_of() {
    let rig = Rig::new();
    assert_eq!(rig.agent(&["keygen", "-W", "-s", "our.key", "-p", "our.pub"]).code, 0);
    assert_eq!(rig.agent(&["sign", "here/a.img.zst", "-s", "our.key"]).code, 0);
    let summary = rig.agent(&["copy", "here/a.img.zst", "there/a.img.zst", "--json"]).json();
    assert_eq!(summary["signature"], true);
    let verified = rig.agent(&["verify", "there/a.img.zst", "--require-signature", "our.pub"]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    let summary = rig.agent(&["copy", "here/a.img.zst", "there/b.img.zst", "--json"]).json();
    assert_eq!(summary["signature"], false);
    assert_eq!(
        rig.names("there"),
        ["a.img.zst", "a.img.zst.root", "a.img.zst.root.minisig", "b.img.zst"]
    );
    assert_eq!(rig.agent(&["rm", "there/a.img.zst"]).code, 0);
    assert_eq!(rig.names("there"), ["b.img.zst"]);
    // A text of that name that is another image's is not replaced, and nothing is left.
    fs::write(rig.path("there/a.img.zst.root"), "another").unwrap();
    rig.agent(&["copy", "here/a.img.zst", "there/a.img.zst"])
        .refused("refused", &["a.img.zst.root"]);
    assert_eq!(rig.names("there"), ["a.img.zst.root", "b.img.zst"]);
}

#[test]
fn an_image_that_a_delta_needs_stays() {
    let rig = Rig::new();
    rig.agent(&["rm", "here/a.img.zst"]).refused("refused", &["b.imgd", "nothing was removed"]);
    // Under another name it is still the one; another image that has its name is not.
    fs::rename(rig.path("here/a.img.zst"), rig.path("here/c.img.zst")).unwrap();
    rig.agent(&["rm", "here/c.img.zst"]).refused("refused", &["b.imgd"]);
    noise_file(&rig.path("disk"), LEN, 6);
    capture(&rig.path("disk"), &rig.path("here/a.img.zst"), &[]);
    assert_eq!(rig.agent(&["rm", "here/a.img.zst"]).code, 0);
    // What cannot be read might need it.
    fs::copy(rig.path("here/b.imgd"), rig.path("there/b.imgd")).unwrap();
    flip(&rig.path("here/b.imgd"), 60);
    rig.agent(&["rm", "here/c.img.zst"]).refused("refused", &["b.imgd", "--force"]);
    rig.agent(&["rm", "disk"]).refused("refused", &["no image by its name"]);
    // Only the one that is meant, unless it is damaged: then it has no root.
    let root = rig.agent(&["inspect", "here/c.img.zst", "--json"]).json()["root"].to_string();
    let expect = ["--force", "--expect-root", root.trim_matches('"')];
    capture(&rig.path("disk"), &rig.path("there/other.img.zst"), &[]);
    rig.agent(&[&["rm", "there/other.img.zst"], &expect[..]].concat())
        .refused("refused", &["holds another image", "nothing was removed"]);
    rig.agent(&["rm", "here/c.img.zst", "--expect-root", "x"]).refused("refused", &["64"]);
    flip(&rig.path("there/other.img.zst"), 60);
    assert_eq!(rig.agent(&[&["rm", "there/other.img.zst"], &expect[..]].concat()).code, 0);
    rig.agent(&["rm", "here/d.img.zst"]).refused("not_found", &["d.img.zst"]);
    assert_eq!(rig.names("here"), ["b.imgd", "c.img.zst"]);
    assert_eq!(rig.agent(&[&["rm", "here/c.img.zst"], &expect[..]].concat()).code, 0);
    assert_eq!(rig.agent(&["rm", "here/b.imgd"]).code, 0);
    assert!(rig.names("here").is_empty());
}

#[test]
fn a_copy_has_a_limit() {
    let rig = Rig::new();
    let start = Instant::now();
    // 40 MiB are read, written, and read again.
    assert_eq!(rig.agent(&["copy", "here/a.img.zst", "there/a.img.zst", "--limit", "60M"]).code, 0);
    assert!(start.elapsed().as_secs_f64() > 1.7, "{:?}", start.elapsed());
}

#[test]
fn a_copy_ends_with_the_program_that_waits_for_it() {
    let rig = Rig::new();
    let (image, copy) = (rig.text("here/a.img.zst"), rig.text("there/a.img.zst"));
    // At this limit it takes over two minutes.
    let mut child = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["--attached", "--progress", "json", "copy", &image, &copy, "--limit", "256K"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("copying")));
    let left = Instant::now();
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(11));
    assert!(left.elapsed().as_secs() < 60, "{:?}", left.elapsed());
    assert!(rig.names("there").is_empty());
}
