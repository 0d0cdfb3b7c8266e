//! Where the bytes of a disk are in the end, and what else leads there.
//!
//! A partition is a range of its disk, a loop device one of its file, which may be a device again. The disk or the file that is at the
//! bottom is the *ground*: two nodes have bytes in common if and only if their ranges of one ground overlap. What device mapper and
//! MD make of disks is not followed: whatever they are made of is held by them, and refused for that.

use std::fs::{self, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::inventory::{SYS_BLOCK, is_partition, read_text, read_u64, sysfs_dir};
use super::mounts::{own_mounts, served_by};
use crate::error::Result;
use crate::sys;

/// Loop devices over files in loop devices over files: more is nobody's.
const MAX_DEPTH: u32 = 4;

/// What is beneath everything else.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ground {
    /// A whole device, by its folder in sysfs.
    Device(PathBuf),
    /// A file, by device number and inode.
    File(PathBuf, (u64, u64)),
    /// A file beneath a loop device, which is known by its path alone: a server or a program answers for it, so that merely looking at it can
    /// take for ever.
    Served(PathBuf),
}

/// A range of a ground.
#[derive(Debug)]
pub(super) struct Place {
    pub ground: Ground,
    pub range: Range<u64>,
    /// Whether this is the ground itself, and not a partition or a loop device on it.
    pub is_ground: bool,
    /// The sysfs folder of the disk that it is a partition of.
    pub whole: Option<PathBuf>,
}

/// A device with bytes of a ground.
#[derive(Debug)]
pub(super) struct Node {
    pub dir: PathBuf,
    pub range: Range<u64>,
    /// The loop devices that it goes through, as the end of a phrase.
    pub through: String,
}

impl Node {
    /// What the kernel calls it.
    pub fn path(&self) -> PathBuf {
        node_of(&self.dir)
    }
}

/// The device node of a sysfs folder. In names of directories of sysfs `/` is written as `!`.
pub(super) fn node_of(dir: &Path) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().replace('!', "/");
    Path::new("/dev").join(name)
}

impl Place {
    /// Where the bytes of a device or a disk file are.
    pub fn of(path: &Path, meta: &fs::Metadata) -> Result<Self> {
        let Some(own) = sysfs_dir(meta.rdev()) else {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            let ground = Ground::File(path, (meta.dev(), meta.ino()));
            return Ok(Self { ground, range: 0..u64::MAX, is_ground: true, whole: None });
        };
        let mounts = own_mounts()?;
        let (mut dir, mut range) = (own.clone(), 0..size_of(&own));
        let mut whole = None;
        for _ in 0..2 * MAX_DEPTH {
            if let Some(disk) = disk_of(&dir) {
                let start = start_of(&dir);
                range = range.start + start..range.end + start;
                whole = whole.or((dir == own).then(|| disk.clone()));
                dir = disk;
                continue;
            }
            let Some(found) = Loop::at(&dir, &mounts) else { break };
            range = range.start + found.offset..range.end + found.offset;
            let ground = match found.backing {
                Backing::Device(below) => {
                    dir = below;
                    continue;
                }
                Backing::File(id) => Ground::File(found.path, id),
                Backing::Unseen => Ground::Served(found.path),
            };
            return Ok(Self { ground, range, is_ground: false, whole });
        }
        let is_ground = dir == own;
        Ok(Self { ground: Ground::Device(dir), range, is_ground, whole })
    }

    /// Whether there are bytes that this and the other one have in common.
    pub fn meets(&self, other: &Self) -> bool {
        let same = match (&self.ground, &other.ground) {
            // A file may have several names.
            (Ground::File(_, own), Ground::File(_, other)) => own == other,
            (own, other) => own == other,
        };
        same && self.range.start < other.range.end && other.range.start < self.range.end
    }

    /// Every device that has bytes of this in it, itself among them.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        let mounts = own_mounts()?;
        let mut found = Vec::new();
        if let Ground::Device(dir) = &self.ground {
            found.extend(with_partitions(dir.clone(), 0, ""));
        }
        // They are links to the folders that device numbers lead to.
        let dirs = fs::read_dir(SYS_BLOCK).into_iter().flatten().flatten();
        let dirs = dirs.filter_map(|entry| fs::canonicalize(entry.path()).ok());
        let mut loops: Vec<Loop> = dirs.filter_map(|dir| Loop::at(&dir, &mounts)).collect();
        for _ in 0..MAX_DEPTH {
            let mut others = Vec::new();
            for device in loops {
                match device.base(&self.ground, &found, &mounts) {
                    Some((start, through)) => {
                        let (name, file) = (node_of(&device.dir), &device.path);
                        let through =
                            format!("; {} is {}{through}", name.display(), file.display());
                        found.extend(with_partitions(device.dir, start + device.offset, &through));
                    }
                    None => others.push(device),
                }
            }
            loops = others;
        }
        found.retain(|node| node.range.start < self.range.end && self.range.start < node.range.end);
        Ok(found)
    }
}

/// A device and its partitions, where the device starts at this byte.
fn with_partitions(dir: PathBuf, start: u64, through: &str) -> Vec<Node> {
    let children = fs::read_dir(&dir).into_iter().flatten().filter_map(|c| Some(c.ok()?.path()));
    let node = |dir: PathBuf, start: u64| {
        let range = start..start.saturating_add(size_of(&dir));
        Node { dir, range, through: through.to_owned() }
    };
    let partitions = children.filter(|c| is_partition(c));
    let partitions: Vec<_> = partitions.map(|c| node(c.clone(), start + start_of(&c))).collect();
    std::iter::once(node(dir, start)).chain(partitions).collect()
}

/// What a loop device is over.
#[derive(Debug, PartialEq, Eq)]
enum Backing {
    Device(PathBuf),
    File((u64, u64)),
    /// Not looked at.
    Unseen,
}

#[derive(Debug)]
struct Loop {
    dir: PathBuf,
    /// The path of its file as the kernel has it.
    path: PathBuf,
    offset: u64,
    backing: Backing,
}

impl Loop {
    /// The loop device of this sysfs folder, if it is one and has a file.
    fn at(dir: &Path, mounts: &str) -> Option<Self> {
        let path = PathBuf::from(read_text(&dir.join("loop/backing_file"))?);
        let offset = read_u64(&dir.join("loop/offset"))?;
        let backing = match served_by(mounts, &path) {
            Some(_) => Backing::Unseen,
            None => Backing::of(dir, &path),
        };
        Some(Self { dir: dir.to_owned(), path, offset, backing })
    }

    /// Where in the ground its file starts, if that is there, and the loop devices between.
    fn base(&self, ground: &Ground, found: &[Node], mounts: &str) -> Option<(u64, String)> {
        let on_ground = match (&self.backing, ground) {
            (Backing::Device(dir), _) => {
                let node = found.iter().find(|node| node.dir == *dir)?;
                return Some((node.range.start, node.through.clone()));
            }
            (Backing::File(id), Ground::File(_, ground)) => id == ground,
            (Backing::Unseen, Ground::Served(path)) => self.path == *path,
            // The ground was looked at, so that its neighbour can be, too.
            (Backing::Unseen, Ground::File(path, id)) => {
                served_by(mounts, &self.path) == served_by(mounts, path)
                    && fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == *id)
            }
            _ => false,
        };
        on_ground.then(|| (0, String::new()))
    }
}

impl Backing {
    /// The device itself is asked: its file may be removed, or be in another mount namespace, where the path leads elsewhere. Who may not
    /// ask has the path.
    fn of(dir: &Path, path: &Path) -> Self {
        let asked = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(node_of(dir));
        let told = asked.and_then(|device| sys::loops::backing(&device)).or_else(|_| {
            let meta = fs::metadata(path)?;
            Ok::<_, std::io::Error>(sys::loops::Backing {
                device: meta.dev(),
                inode: meta.ino(),
                rdevice: meta.rdev(),
            })
        });
        let Ok(told) = told else { return Self::Unseen };
        match sysfs_dir(told.rdevice) {
            Some(dir) => Self::Device(dir),
            None => Self::File((told.device, told.inode)),
        }
    }
}

/// The disk of a partition.
fn disk_of(dir: &Path) -> Option<PathBuf> {
    is_partition(dir).then(|| dir.parent().map(Path::to_owned))?
}

/// In bytes; sysfs counts in 512 whatever the sectors are.
fn start_of(partition: &Path) -> u64 {
    read_u64(&partition.join("start")).unwrap_or(0).saturating_mul(512)
}

fn size_of(device: &Path) -> u64 {
    read_u64(&device.join("size")).unwrap_or(0).saturating_mul(512)
}
