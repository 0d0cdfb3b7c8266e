//! A disk with a random filesystem, and comparisons of what is too long to be held in memory.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How much of the disk does not compress, in MiB, when nothing else is asked for.
const USUAL_MIB: u64 = 64;
const PIECE: usize = 1 << 20;

/// Bytes and numbers that look random and are the same for the same seed.
struct Noise(blake3::OutputReader);

impl Noise {
    fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }
}

/// A file that holds an ext4 filesystem; it ends with this.
pub struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// With random files that do not compress (`IMPRINT_WITNESS_MIB` of them, 64 if not said), others that do, and holes.
    pub fn new(seed: u64) -> Self {
        let mebibytes = match std::env::var("IMPRINT_WITNESS_MIB") {
            Ok(text) => text.parse().expect("IMPRINT_WITNESS_MIB is a number"),
            Err(_) => USUAL_MIB,
        };
        let disk = Self { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        let tree = disk.folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        plant(&tree, mebibytes << 20, seed);
        let mut mkfs = Command::new("mke2fs");
        mkfs.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(disk.path());
        run(mkfs.arg(format!("{}M", mebibytes + mebibytes / 4 + 32)), "e2fsprogs");
        fs::remove_dir_all(tree).unwrap();
        disk
    }

    pub fn path(&self) -> PathBuf {
        self.file("disk")
    }

    /// The name of another file in the disk's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An empty disk as large as this one.
    pub fn target(&self) -> PathBuf {
        let path = self.file("target");
        File::create(&path).unwrap().set_len(fs::metadata(self.path()).unwrap().len()).unwrap();
        path
    }

    /// Checks that a disk is this one again, bit for bit, and removes it.
    pub fn check(&self, restored: &Path) {
        let mut fsck = Command::new("e2fsck");
        run(fsck.arg("-fn").arg(restored), "e2fsprogs");
        assert_same("the restored disk", open(restored), open(&self.path()));
        fs::remove_file(restored).unwrap();
    }

    /// Checks that stock zstd makes this disk of an image.
    pub fn check_unpacked(&self, image: &Path) {
        let mut zstd = Command::new("zstd");
        prints(zstd.arg("-dcq").arg(image), open(&self.path()));
    }
}

/// Fills a folder with files until `len` bytes of them do not compress.
fn plant(tree: &Path, len: u64, seed: u64) {
    let mut noise = Noise(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof());
    let (mut folders, mut left, mut number) = (vec![tree.to_owned()], len, 0_u32);
    let mut piece = vec![0; PIECE];
    while left > 0 {
        number += 1;
        let parent = &folders[usize::try_from(noise.below(folders.len() as u64)).unwrap()];
        let path = parent.join(format!("{number} é"));
        if noise.below(8) == 0 {
            fs::create_dir(&path).unwrap();
            folders.push(path);
            continue;
        }
        let mut file = File::create(&path).unwrap();
        let file_len = match noise.below(5) {
            0 => noise.below(5_000),
            1 => noise.below(100_000),
            _ => noise.below(len / 8 + 1),
        };
        let file_len = file_len.min(left);
        match noise.below(6) {
            // A hole, and something at its end.
            0 => file.write_all_at(b"end", file_len).unwrap(),
            1 => {
                let lines = (0..file_len.min(1 << 20) / 10).map(|n| format!("line {n}\n"));
                file.write_all(lines.collect::<String>().as_bytes()).unwrap();
            }
            _ => {
                let mut rest = file_len;
                while rest > 0 {
                    let now = usize::try_from(rest.min(PIECE as u64)).unwrap();
                    noise.0.fill(&mut piece[..now]);
                    file.write_all(&piece[..now]).unwrap();
                    rest -= now as u64;
                }
                left -= file_len;
            }
        }
    }
}

pub fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compares two streams to their ends.
pub fn assert_same(what: &str, mut got: impl Read, mut expected: impl Read) {
    let (mut ours, mut theirs, mut at) = (vec![0; PIECE], vec![0; PIECE], 0);
    loop {
        let len = fill(&mut got, &mut ours);
        assert!(
            len == fill(&mut expected, &mut theirs) && ours[..len] == theirs[..len],
            "{what}: other bytes within the MiB at {at}"
        );
        at += len;
        if len == 0 {
            return;
        }
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..]).unwrap() {
            0 => break,
            read => len += read,
        }
    }
    len
}

/// Runs a program that has to succeed; its output.
pub fn run(command: &mut Command, package: &str) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} ({package}): {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}{errors}");
    text
}

/// Runs a program that has to print exactly these bytes.
pub fn prints(command: &mut Command, expected: impl Read) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let printed = child.stdout.take().unwrap();
    assert_same(&format!("{command:?}"), printed, expected);
    let status = child.wait().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
