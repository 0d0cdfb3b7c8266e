//! Captures that are cut off and go on.
//!
//! The program is killed, or its store's power is cut, at many places; what it leaves is gone on with, changed, cut and damaged. The judge is
//! what a whole capture would be: `verify --deep`, and the disk itself byte for byte by stock zstd.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::agent::{agent, capture, try_capture, worker};
use crate::disks::noise_file;
use crate::tools::run;

const MIB: u64 = 1 << 20;
const SPAN: u64 = 4 * MIB;
/// What an index page covers where there is something in every span.
const PAGE: u64 = 256 * SPAN;
/// Somewhat more than a page, and than the chunk of the file that its end is in. Most of every span is zero, so that this takes a second and not a minute.
const SPANS: u64 = 330;
const LIMIT: Duration = Duration::from_secs(120);

/// A disk with something in every span, and without a filesystem, so that all of it counts.
fn disk(folder: &Path, spans: u64) -> PathBuf {
    let path = folder.join("disk");
    let file = File::create(&path).unwrap();
    file.set_len(spans * SPAN).unwrap();
    let mut bytes = vec![0; 64 << 10];
    let mut noise = blake3::Hasher::new().update(b"disk").finalize_xof();
    for span in 0..spans {
        noise.fill(&mut bytes);
        file.write_all_at(&bytes, span * SPAN + span % 50 * 4096).unwrap();
    }
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn partial_of(image: &Path) -> PathBuf {
    PathBuf::from(format!("{}.partial", image.display()))
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Captures and kills the program once the partial file has this length.
fn killed_at(disk: &Path, image: &Path, len: u64, flags: &[&str]) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["capture", text(disk), text(image)])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while bytes_of(&partial_of(image)) < len {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it had {len} bytes");
        assert!(start.elapsed() < LIMIT, "{} bytes", bytes_of(&partial_of(image)));
        std::thread::sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

/// The image is whole, and the disk's.
fn is_of(image: &Path, disk: &Path) {
    let verified = agent(&["verify", "--deep", text(image)]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    unpacks_to(image, disk);
}

/// Stock zstd makes this disk of it.
fn unpacks_to(image: &Path, disk: &Path) {
    let command = format!("zstd -dcq {} | cmp - {}", image.display(), disk.display());
    run("zstd", "sh", &["-c", &command]);
    assert!(!partial_of(image).exists());
}

fn stored_bytes(summary: &Value) -> u64 {
    summary["stored_bytes"].as_u64().unwrap()
}

fn resumed(summary: &Value) -> u64 {
    summary["resumed_bytes"].as_u64().unwrap()
}

#[test]
fn a_killed_capture_goes_on_behind_its_last_page() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = disk(folder.path(), 420);
    let image = folder.path().join("x.img.zst");
    let len = stored_bytes(&capture(&disk, &image, &[]));
    let mut pages = Vec::new();
    for share in [1, 40, 75] {
        fs::remove_file(&image).unwrap();
        // What is left takes a third of a second at the limit: it is not done before it is killed, on a busy machine either.
        killed_at(&disk, &image, len * share / 100, &["--limit", "16M"]);
        let summary = capture(&disk, &image, &["--resume"]);
        pages.push(resumed(&summary) / PAGE);
        assert_eq!(resumed(&summary) % PAGE, 0, "{summary}");
        assert_eq!(stored_bytes(&summary), len, "an image of the same disk has the same length");
        is_of(&image, &disk);
    }
    // A page is 6/10 of the file, which grows in chunks of 4 MiB.
    assert_eq!(pages, [0, 0, 1]);
}

#[test]
fn a_damaged_page_is_captured_again_with_all_behind_it() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = disk(folder.path(), 600);
    let image = folder.path().join("x.img.zst");
    killed_at(&disk, &image, 36 << 20, &["--limit", "24M"]);
    // Of a frame in the second page.
    flip(&partial_of(&image), 400 * (64 << 10));
    let summary = capture(&disk, &image, &["--resume"]);
    assert_eq!(resumed(&summary), PAGE, "{summary}");
    assert!(why(&summary).contains("damaged at byte"), "{summary}");
    is_of(&image, &disk);
}

fn why(summary: &Value) -> String {
    summary["not_resumed"].as_str().unwrap_or_default().to_owned()
}

fn flip(path: &Path, at: u64) {
    let file = File::options().write(true).read(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

#[test]
fn a_partial_that_does_not_hold_is_not_used() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = disk(folder.path(), SPANS);
    let image = folder.path().join("x.img.zst");
    let len = stored_bytes(&capture(&disk, &image, &[]));
    fs::remove_file(&image).unwrap();
    killed_at(&disk, &image, len * 92 / 100, &["--limit", "16M"]);
    let partial = partial_of(&image);
    let kept = folder.path().join("kept");
    fs::copy(&partial, &kept).unwrap();
    let again = |flags: &[&str]| {
        let summary = capture(&disk, &image, flags);
        unpacks_to(&image, &disk);
        fs::remove_file(&image).unwrap();
        fs::copy(&kept, &partial).unwrap();
        summary
    };

    // Who does not ask gets what always was: another capture.
    let summary = again(&[]);
    assert_eq!((resumed(&summary), why(&summary).as_str()), (0, ""));
    let summary = again(&["--resume"]);
    assert_eq!((resumed(&summary), why(&summary).as_str()), (PAGE, ""));

    // One byte of the disk changed since, in the first page and behind it; behind what is stored it may.
    let file = File::options().write(true).read(true).open(&disk).unwrap();
    for (span, offset) in [(7, 999), (250, 77_777)] {
        let at = span * SPAN + offset;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let summary = again(&["--resume"]);
        let said = why(&summary);
        assert_eq!(resumed(&summary), 0);
        assert!(said.contains(&format!("from byte {at} on ")), "{said}");
        assert!(said.contains("started over"), "{said}");
        file.write_all_at(&byte, at).unwrap();
    }
    file.write_all_at(b"later", (SPANS - 1) * SPAN).unwrap();
    assert_eq!(resumed(&again(&["--resume"])), PAGE);

    // A bit of a stored frame; the file cut off within its first page.
    flip(&partial, len / 2);
    let summary = again(&["--resume"]);
    assert_eq!(resumed(&summary), 0);
    assert!(why(&summary).contains("damaged at byte"), "{summary}");
    for short in [50, len / 2] {
        File::options().write(true).open(&partial).unwrap().set_len(short).unwrap();
        let summary = again(&["--resume"]);
        assert_eq!(resumed(&summary), 0);
        assert!(why(&summary).contains("started over"), "{summary}");
    }

    // Of another disk: another size, or the same with other content.
    let other = folder.path().join("other");
    noise_file(&other, 3 * MIB, 5);
    let summary = capture(&other, &image, &["--resume"]);
    assert_eq!(resumed(&summary), 0);
    assert!(why(&summary).contains("is of a disk of"), "{summary}");
    is_of(&image, &other);
    fs::remove_file(&image).unwrap();
    fs::copy(&kept, &partial).unwrap();
    // An image that is there is not overwritten, whatever lies beside it.
    fs::write(&image, "here").unwrap();
    try_capture(&disk, &image, &["--resume"]).refused("refused", &["exists already"]);
    assert_eq!(fs::read(&image).unwrap(), b"here");
}

#[test]
fn a_job_goes_straight_on_in_the_same_boot_and_compares_in_another() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = disk(folder.path(), SPANS);
    let image = folder.path().join("x.img.zst");
    let partial = partial_of(&image);
    let job = |id: &str, options: Value| {
        json!({
            "id": "j", "disk": text(&disk), "image_url": text(&image), "image_id": id,
            "action": "capture", "options": options,
        })
    };
    let boots = ["6f2f6a26-7e0c-4b51-9a7e-1f0f6f0f2a01", "6f2f6a26-7e0c-4b51-9a7e-1f0f6f0f2a02"];
    let whole = stored_bytes(&capture(&disk, &image, &[]));
    fs::remove_file(&image).unwrap();
    let kept = folder.path().join("kept");
    let mut child = worker(&job(boots[0], json!({ "limit": "16M" })));
    let start = Instant::now();
    while bytes_of(&partial) < whole * 92 / 100 {
        assert!(start.elapsed() < LIMIT && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fs::copy(&partial, &kept).unwrap();
    let outcome = |id: &str, options: Value| {
        let child = worker(&job(id, options));
        let output = child.wait_with_output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        let line: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        assert_eq!(line["outcome"]["result"], "succeeded", "{line}");
        unpacks_to(&image, &disk);
        fs::remove_file(&image).unwrap();
        fs::copy(&kept, &partial).unwrap();
        line["outcome"].clone()
    };
    let done = outcome(boots[0], json!({}));
    assert_eq!(resumed(&done), PAGE);
    // Another boot, another level, or other used blocks: not the same attempt any more.
    let done = outcome(boots[1], json!({}));
    assert_eq!(resumed(&done), 0);
    let done = outcome(boots[0], json!({ "level": 4 }));
    assert_eq!(resumed(&done), 0);
    let done = outcome(boots[1], json!({ "resume": true }));
    assert_eq!(resumed(&done), PAGE);
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(b"booted since", 9 * SPAN + 1).unwrap();
    let done = outcome(boots[1], json!({ "resume": true }));
    assert_eq!(resumed(&done), 0);
    assert!(done["not_resumed"].as_str().unwrap().contains("from byte"), "{done}");
}
