//! The promise of the format: tools that have never heard of Imprint read its images.
//!
//! Debian's `zstd` must give the exact disk, and third-party readers of the seekable format (from PyPI, installed into a
//! virtual environment under `target/`) must read a range from the middle.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use image_format::{MAX_HOLE_LEN, RunKind};
use support::{Piece, content, disk_len, image, noise, text};

const SPAN: u32 = 256 << 10;

/// A name and a disk for every shape that a reader might stumble over.
fn disks() -> Vec<(&'static str, Vec<Piece>)> {
    vec![
        ("empty", vec![]),
        ("one byte", vec![Piece::data(vec![7])]),
        ("one sector", vec![Piece::data(text(1, 512))]),
        ("one zero sector", vec![Piece::Hole(512, RunKind::Zero)]),
        (
            "odd last unit in data",
            vec![Piece::Hole(8192, RunKind::Free), Piece::data(noise(2, 4096 + 512))],
        ),
        (
            "odd last unit in a hole",
            vec![Piece::data(noise(3, 4096)), Piece::Hole((1 << 20) + 512, RunKind::Zero)],
        ),
        ("not even whole sectors", vec![Piece::data(text(4, 12_345))]),
        (
            "data, zero and free in one span",
            vec![
                Piece::mixed(5, [3, 20, 9]),
                Piece::mixed(6, [1, 1, 1]),
                Piece::mixed(7, [0, 5, 0]),
            ],
        ),
        (
            "several pages",
            (0..700)
                .map(|i| {
                    if i % 3 == 0 {
                        Piece::Hole(4096, RunKind::Free)
                    } else {
                        Piece::data(text(i, 4096))
                    }
                })
                .collect(),
        ),
        (
            "holes of more than 1 GiB",
            vec![
                Piece::data(text(8, SPAN as usize)),
                Piece::Hole(MAX_HOLE_LEN + (77 << 20) + 4096, RunKind::Free),
                Piece::data(noise(9, SPAN as usize)),
                Piece::Hole(MAX_HOLE_LEN, RunKind::Zero),
                Piece::data(noise(10, 512)),
            ],
        ),
    ]
}

fn need(program: &str, package: &str) {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(
        found.is_ok(),
        "this test needs `{program}`: install it with `apt-get install {package}`"
    );
}

/// Compares what a command prints with the content of a disk, piece by piece, so that no disk has to fit into memory.
fn assert_prints(command: &mut Command, name: &str, pieces: &[Piece]) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut buf = vec![0; 1 << 20];
    for piece in pieces {
        let mut done = 0;
        while done < piece.len() {
            let len = usize::try_from((piece.len() - done).min(1 << 20)).unwrap();
            stdout.read_exact(&mut buf[..len]).unwrap_or_else(|error| panic!("{name}: {error}"));
            let start = usize::try_from(done).unwrap();
            let equal = match piece {
                Piece::Span(bytes, _) => buf[..len] == bytes[start..start + len],
                Piece::Hole(..) => image_format::is_zero(&buf[..len]),
            };
            assert!(equal, "{name}: content differs within a piece at {done}");
            done += len as u64;
        }
    }
    assert_eq!(stdout.read(&mut buf).unwrap(), 0, "{name}: more content than the disk has");
    assert!(child.wait().unwrap().success(), "{name}: the tool failed");
}

#[test]
fn stock_zstd_gives_the_exact_disk_and_counts_its_frames() {
    need("zstd", "zstd");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, pieces) in disks() {
        let (bytes, summary) = image(&pieces, SPAN);
        let path = dir.path().join("disk.img.zst");
        fs::write(&path, &bytes).unwrap();
        assert_prints(Command::new("zstd").args(["-dcq"]).arg(&path), name, &pieces);
        // As in `zstd -dc image | dd`, with the image itself from a pipe.
        let from_pipe = File::open(&path).unwrap();
        assert_prints(Command::new("zstd").args(["-dcq"]).stdin(from_pipe), name, &pieces);
        assert!(Command::new("zstd").args(["-tq"]).arg(&path).status().unwrap().success());

        if summary.data_frames + summary.hole_frames == 0 {
            continue;
        }
        let listing = Command::new("zstd").args(["-lv"]).arg(&path).output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        let field = |label: &str| {
            let line = listing.lines().find(|line| line.contains(label));
            let value = line
                .and_then(|line| line.split(':').nth(1))
                .unwrap_or_else(|| panic!("{name}: {listing}"));
            value.trim().to_owned()
        };
        assert_eq!(
            field("# Zstandard Frames"),
            (summary.data_frames + summary.hole_frames).to_string(),
            "{name}"
        );
        assert!(
            field("Decompressed Size").contains(&format!("({} B)", summary.disk_len)),
            "{name}: {listing}"
        );
        assert!(field("Check").starts_with("XXH64"), "{name}: {listing}");
        let pages = image_format::ImageReader::open(bytes).unwrap().pages() as u64;
        // The opening frame, the pages, the tail and the seek table.
        assert_eq!(field("# Skippable Frames"), (pages + 3).to_string(), "{name}");
    }
}

#[test]
fn stock_zstd_needs_no_more_memory_for_holes_than_for_data() {
    need("zstd", "zstd");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pieces = [Piece::Hole(MAX_HOLE_LEN, RunKind::Free)];
    let path = dir.path().join("hole.img.zst");
    fs::write(&path, image(&pieces, SPAN).0).unwrap();
    let start = Instant::now();
    assert_prints(
        Command::new("zstd").args(["-dcq", "--memory=128KB"]).arg(&path),
        "a hole",
        &pieces,
    );
    let rate = (1 << 30) / start.elapsed().as_millis().max(1) / 1000;
    println!("zstd -dc of a hole: {rate} MB/s");
}

/// A virtual environment with the third-party readers; made once.
fn python() -> PathBuf {
    let requirements =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/third_party/requirements.txt");
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seekable-readers");
    let python = venv.join("bin/python");
    let done = venv.join("done");
    if fs::read(&done).ok() == Some(fs::read(&requirements).unwrap()) {
        return python;
    }
    let run = |command: &mut Command, what: &str| {
        let output = command
            .output()
            .unwrap_or_else(|error| panic!("{what}: {error} (apt-get install python3-venv)"));
        assert!(
            output.status.success(),
            "{what} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv),
        "making a virtual environment",
    );
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
    run(
        Command::new(&python).args(install).arg(&requirements),
        "installing the third-party readers from PyPI",
    );
    fs::copy(&requirements, &done).unwrap();
    python
}

#[test]
fn third_party_readers_of_the_seekable_format_read_from_the_middle() {
    let python = python();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/third_party/read_range.py");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img.zst");
    let mut pieces: Vec<Piece> = (0..300).map(|i| Piece::data(text(i, 8192))).collect();
    pieces.push(Piece::Hole(90 << 20, RunKind::Free));
    pieces.extend((0..300).map(|i| Piece::data(noise(i, 8192))));
    fs::write(&path, image(&pieces, SPAN).0).unwrap();
    let disk = content(&pieces);
    let (first_half, hole_end) = (300 * 8192, 300 * 8192 + (90 << 20));
    assert_eq!(disk_len(&pieces), disk.len() as u64);
    for library in ["pyzstd", "indexed_zstd"] {
        for (offset, len) in [
            (12_345, 100_000),
            (first_half - 5000, 20_000),
            (hole_end - 7, 300_000),
            (disk.len() - 9, 9),
        ] {
            let mut command = Command::new(&python);
            command
                .arg(&script)
                .arg(library)
                .arg(&path)
                .arg(offset.to_string())
                .arg(len.to_string());
            let output = command.output().unwrap();
            let (stdout, stderr) =
                (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
            assert!(output.status.success(), "{library} at {offset}: {stderr}");
            assert!(
                stdout == disk[offset..offset + len],
                "{library} gives other bytes at {offset}"
            );
        }
    }
}
