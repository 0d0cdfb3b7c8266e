//! What the measured disks hold: this machine's own files.
//!
//! Zeros or noise would measure neither a compressor nor a map. The files are those of `/usr`, of cargo's registry and of the Rust
//! toolchains, in the order of their names, and a twentieth of media that does not compress. Every other one is deleted again:
//! free space then holds old bytes, and the used blocks lie in many extents, as on a disk that has been in use.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// One file of media, in bytes.
const MEDIA_LEN: u64 = 8 << 20;
/// After so many bytes of other content comes one file of media.
const MEDIA_EVERY: u64 = 19 * MEDIA_LEN;

/// Fills a mounted filesystem with `kept` bytes of files, and frees `freed` bytes of others.
///
/// # Errors
/// If this machine has not as many files, or they cannot be copied.
pub fn fill(mounted: &Path, kept: u64, freed: u64) -> Result<()> {
    let (keep, junk) = (mounted.join("kept"), mounted.join("freed"));
    let mut filler =
        Filler { keep: Folder::new(keep), junk: Folder::new(junk.clone()), kept, freed };
    let mut files = Vec::new();
    for source in sources() {
        list(&source, &mut files)?;
    }
    for file in &files {
        if filler.is_full() {
            break;
        }
        filler.add(file)?;
    }
    ensure!(
        filler.is_full(),
        "this machine has too few files of its own to fill the disk: give a smaller --size"
    );
    fs::remove_dir_all(&junk).with_context(|| format!("removing {}", junk.display()))
}

/// Changes a filled filesystem as an update of a system does: of a hundred files 8 are replaced by changed ones, 1 grows, 2 go, and 1
/// is new.
///
/// # Errors
/// If a file cannot be read or written.
pub fn update(mounted: &Path) -> Result<()> {
    let mut files = Vec::new();
    list(&mounted.join("kept"), &mut files)?;
    files.retain(|file| !file.is_symlink());
    for (number, file) in files.iter().enumerate() {
        let updating = || format!("updating {}", file.display());
        let new = file.with_extension("imprint-new");
        match number % 100 {
            0..8 => write_changed(file, &new)
                .and_then(|()| fs::rename(&new, file))
                .with_context(updating)?,
            8 => {
                let mut file =
                    fs::File::options().append(true).open(file).with_context(updating)?;
                file.write_all(&b"a line that an update adds\n".repeat(150))
                    .with_context(updating)?;
            }
            9 | 10 => fs::remove_file(file).with_context(updating)?,
            11 => write_changed(file, &new).with_context(updating)?,
            _ => {}
        }
    }
    Ok(())
}

/// Writes a file with 37 bytes more in front and a change every 64 KiB.
fn write_changed(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut bytes = fs::read(from)?;
    bytes.iter_mut().step_by(64 << 10).for_each(|byte| *byte ^= 0x55);
    let mut file = fs::File::create(to)?;
    file.write_all(&[b'#'; 37])?;
    file.write_all(&bytes)
}

/// A folder that is being filled.
struct Folder {
    path: PathBuf,
    bytes: u64,
    media_at: u64,
}

impl Folder {
    fn new(path: PathBuf) -> Self {
        Self { path, bytes: 0, media_at: MEDIA_EVERY }
    }

    /// Copies a file or a symbolic link.
    fn copy(&mut self, from: &Path) -> Result<()> {
        let copying = || format!("copying {} to {}", from.display(), self.path.display());
        let to = self.path.join(from.strip_prefix("/").unwrap_or(from));
        fs::create_dir_all(to.parent().unwrap_or(&self.path)).with_context(copying)?;
        if from.is_symlink() {
            symlink(fs::read_link(from).with_context(copying)?, to).with_context(copying)?;
        } else {
            self.bytes += fs::copy(from, to).with_context(copying)?;
        }
        if self.bytes >= self.media_at {
            self.media_at += MEDIA_EVERY;
            let path = self.path.join(format!("media-{}", self.bytes));
            let writing = || format!("writing {}", path.display());
            let noise = fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
            let mut file = fs::File::create(&path).with_context(writing)?;
            self.bytes +=
                std::io::copy(&mut noise.take(MEDIA_LEN), &mut file).with_context(writing)?;
        }
        Ok(())
    }
}

struct Filler {
    keep: Folder,
    junk: Folder,
    kept: u64,
    freed: u64,
}

impl Filler {
    fn is_full(&self) -> bool {
        self.keep.bytes >= self.kept && self.junk.bytes >= self.freed
    }

    /// Adds a file to the folder that lags behind.
    fn add(&mut self, file: &Path) -> Result<()> {
        let lag = u128::from(self.keep.bytes) * u128::from(self.freed)
            > u128::from(self.junk.bytes) * u128::from(self.kept);
        if lag { self.junk.copy(file) } else { self.keep.copy(file) }
    }
}

/// Where the files come from, in this order.
fn sources() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    let of = |name: &str, default: &str| {
        std::env::var_os(name).map_or_else(|| home.join(default), PathBuf::from)
    };
    vec![
        "/usr/bin".into(),
        "/usr/share".into(),
        of("CARGO_HOME", ".cargo").join("registry"),
        "/usr/lib".into(),
        of("RUSTUP_HOME", ".rustup").join("toolchains"),
    ]
}

/// Adds the files and symbolic links beneath `folder`, in the order of their names.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    // Not every machine has every source.
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut entries: Vec<fs::DirEntry> = entries
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("listing {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind =
            entry.file_type().with_context(|| format!("looking at {}", entry.path().display()))?;
        if kind.is_dir() {
            list(&entry.path(), files)?;
        } else if kind.is_file() || kind.is_symlink() {
            files.push(entry.path());
        }
    }
    Ok(())
}
