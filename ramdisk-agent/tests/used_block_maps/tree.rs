//! Random trees of files, and what is in one.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::noise::Noise;

/// What a tree may hold.
pub struct Shape {
    /// All files together.
    pub bytes: u64,
    pub files: u64,
    /// Symbolic and hard links, holes.
    pub unix: bool,
}

/// A file or a link; directories are there by the names in them, or by themselves if empty.
#[derive(Debug, PartialEq, Eq)]
pub enum Node {
    File { len: u64, hash: blake3::Hash, mode: u32 },
    Link(PathBuf),
    Directory,
}

/// Makes a tree; gives the files' paths relative to it.
pub fn plant(at: &Path, shape: &Shape, noise: &mut Noise) -> Vec<String> {
    let mut directories = vec![String::new()];
    let mut files = Vec::new();
    let mut left = shape.bytes;
    for i in 0..shape.files {
        if noise.chance(4) {
            let directory = format!("{}dir{i}/", noise.pick(&directories));
            fs::create_dir(at.join(&directory)).unwrap();
            directories.push(directory);
        }
        // Long names make FAT use several entries, and some directories need more than one block.
        let name = match noise.below(3) {
            0 => format!("f{i}"),
            1 => format!("file number {i}.with a long name"),
            _ => format!("{i}{}", "x".repeat(noise.below(180) as usize)),
        };
        let path = format!("{}{name}", noise.pick(&directories));
        let len = match noise.below(6) {
            0 => 0,
            1 => noise.below(60),
            2 | 3 => noise.below(5_000),
            4 => noise.below(60_000),
            _ => noise.below(shape.bytes / 4 + 1),
        };
        let len = len.min(left);
        left -= len;
        fs::write(at.join(&path), noise.bytes(len as usize)).unwrap();
        if shape.unix {
            decorate(at, &path, i, noise);
        }
        files.push(path);
    }
    files
}

fn decorate(at: &Path, path: &str, i: u64, noise: &mut Noise) {
    match noise.below(8) {
        0 => symlink(format!("../{path}"), at.join(format!("short{i}"))).unwrap(),
        1 => symlink("y/".repeat(100), at.join(format!("long{i}"))).unwrap(),
        2 => fs::hard_link(at.join(path), at.join(format!("hard{i}"))).unwrap(),
        3 => {
            let file = fs::OpenOptions::new().write(true).open(at.join(path)).unwrap();
            file.set_len(noise.below(3_000_000)).unwrap();
        }
        4 => fs::set_permissions(at.join(path), fs::Permissions::from_mode(0o640)).unwrap(),
        _ => {}
    }
}

/// Everything in a folder, by path.
pub fn snapshot(at: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut pending = vec![at.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let node = if kind.is_dir() {
                pending.push(path.clone());
                Node::Directory
            } else if kind.is_symlink() {
                Node::Link(fs::read_link(&path).unwrap())
            } else {
                let bytes = fs::read(&path).unwrap();
                let mode = entry.metadata().unwrap().permissions().mode();
                Node::File { len: bytes.len() as u64, hash: blake3::hash(&bytes), mode }
            };
            nodes.insert(path.strip_prefix(at).unwrap().to_owned(), node);
        }
    }
    nodes
}

/// The same with what `user.noise` holds, a large attribute or a named stream.
pub fn snapshot_with_attributes(at: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = snapshot(at);
    let paths: Vec<_> = nodes.keys().cloned().collect();
    for path in paths {
        let mut value = vec![0; 65536];
        if let Ok(len) = rustix::fs::lgetxattr(at.join(&path), "user.noise", &mut value[..]) {
            let hash = blake3::hash(&value[..len]);
            nodes.insert(path.join("user.noise"), Node::File { len: len as u64, hash, mode: 0 });
        }
    }
    nodes
}

/// Panics with the first differences.
pub fn assert_same(before: &BTreeMap<PathBuf, Node>, after: &BTreeMap<PathBuf, Node>, what: &str) {
    let all: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differ: Vec<_> =
        all.into_iter().filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(
        differ.is_empty(),
        "{what}: {} of {} files differ, first {:?}",
        differ.len(),
        before.len(),
        &differ[..1]
    );
}
