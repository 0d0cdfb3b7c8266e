//! Which of the restored filesystems holds the system, and where in it.
//!
//! What can be said before the first write is said by the plan: which volumes the running kernel could mount, and which could hide a
//! system from it. What is in them is known when they are on the disk: the root filesystem is the one that has what every Linux system
//! has, and exactly one must.

use std::os::fd::{AsFd, OwnedFd};

use agent_api::ErrorKind;
use rustix::fs::{FileType, OFlags};
use serde::Serialize;

use super::super::grow::as_text;
use super::paths::kind_below;
use crate::disk::Disk;
use crate::error::{Error, IoContext, Result};
use crate::fs::FsKind;
use crate::mounted::{self, Access, Mounted};

/// Where systems have their root in a btrfs whose default is its top: Debian's installer, Ubuntu and Arch, Fedora, openSUSE.
pub const SUBVOLUMES: [&str; 5] = [".", "@rootfs", "@", "root", "@/.snapshots/1/snapshot"];

/// A volume that is on the target when its system is to be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The partition's number; `None`: the whole target.
    pub number: Option<u32>,
    /// A logical volume in that: the names of its group and its own, `vg/root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical: Option<String>,
    /// What it holds.
    #[serde(serialize_with = "as_text")]
    pub kind: FsKind,
    /// Where it starts on the target.
    pub start_bytes: u64,
    /// Its length.
    pub len_bytes: u64,
    /// A logical volume whose extents do not lie together; start and length are those of the first.
    #[serde(skip)]
    pub is_scattered: bool,
    /// The filesystem's UUID, as blkid prints it.
    #[serde(skip)]
    pub uuid: Option<String>,
    /// The filesystem's label.
    #[serde(skip)]
    pub label: Option<String>,
    /// The partition's UUID, as blkid prints it.
    #[serde(skip)]
    pub part_uuid: Option<String>,
}

impl Place {
    /// A volume of which nothing but its kind and its place is known.
    pub fn new(number: Option<u32>, kind: FsKind, start_bytes: u64, len_bytes: u64) -> Self {
        Self {
            number,
            logical: None,
            kind,
            start_bytes,
            len_bytes,
            is_scattered: false,
            uuid: None,
            label: None,
            part_uuid: None,
        }
    }

    pub fn name(&self) -> String {
        let Self { logical, number, kind, .. } = self;
        match (logical, number) {
            (Some(name), Some(number)) => format!("{name} in partition {number} ({kind})"),
            (Some(name), None) => format!("{name} ({kind})"),
            (None, Some(number)) => format!("partition {number} ({kind})"),
            (None, None) => format!("the {kind}"),
        }
    }

    fn can_be_changed(&self) -> bool {
        mounted::is_mountable(self.kind) && !self.is_scattered
    }

    /// Mounts it.
    pub fn mount(&self, target: &Disk, access: Access) -> Result<Mounted> {
        Mounted::new(target, self.start_bytes, self.len_bytes, self.kind, access)
    }
}

/// The volumes that may hold the system, among all of an image. Refuses where no change could be made.
pub fn candidates(volumes: &[Place], chosen: Option<u32>) -> Result<Vec<Place>> {
    let found = match chosen {
        Some(number) => named(volumes, number)?,
        None => unnamed(volumes)?,
    };
    for place in &found {
        mounted::check(place.kind).map_err(|e| {
            e.context(format!(
                "what {} holds could not be changed; leave that to the restored system; nothing was written",
                place.name()
            ))
        })?;
    }
    Ok(found)
}

fn named(volumes: &[Place], number: u32) -> Result<Vec<Place>> {
    let there: Vec<&Place> = volumes.iter().filter(|place| place.number == Some(number)).collect();
    if there.is_empty() {
        return Err(Error::refused(format!(
            "there is no partition {number} to change a system in: the image has {}; nothing was written",
            list(volumes)
        )));
    }
    let found: Vec<Place> = there.into_iter().filter(|p| p.can_be_changed()).cloned().collect();
    if found.is_empty() {
        return Err(cannot_hold_a_system(volumes));
    }
    Ok(found)
}

fn cannot_hold_a_system(volumes: &[Place]) -> Error {
    Error::refused(format!(
        "a system can be changed in an ext, XFS or btrfs, or in a logical volume with one whose extents lie together; the image has {}; \
         nothing was written",
        list(volumes)
    ))
}

fn unnamed(volumes: &[Place]) -> Result<Vec<Place>> {
    let hides = |place: &&Place| {
        matches!(place.kind, FsKind::Lvm2 | FsKind::Luks | FsKind::MdRaid | FsKind::Zfs)
            || (place.is_scattered && mounted::is_mountable(place.kind))
    };
    if let Some(place) = volumes.iter().find(hides) {
        let why = match place.is_scattered {
            true => "its extents do not lie together, so that",
            false => "in there",
        };
        return Err(Error::refused(format!(
            "{} may hold the system, and {why} it cannot be changed before the disk can boot; name the partition that holds the system \
             by --root-partition if another volume does; nothing was written",
            place.name()
        )));
    }
    let found: Vec<Place> = volumes.iter().filter(|p| p.can_be_changed()).cloned().collect();
    if found.is_empty() {
        return Err(cannot_hold_a_system(volumes));
    }
    Ok(found)
}

fn list(volumes: &[Place]) -> String {
    match volumes {
        [] => "no partitions".to_owned(),
        _ => volumes.iter().map(Place::name).collect::<Vec<_>>().join(", "),
    }
}

/// Mounts the one volume that holds the system, for writing; with it the system's root folder.
pub fn mount<'a>(target: &Disk, candidates: &'a [Place]) -> Result<(&'a Place, Mounted, OwnedFd)> {
    let mut found = Vec::new();
    if let [only] = candidates {
        found.push(only);
    } else {
        for place in candidates {
            let mounted = place.mount(target, Access::Read)?;
            let is_system = folder(&mounted, is_system)?.is_some();
            mounted.close()?;
            if is_system {
                found.push(place);
            }
        }
    }
    let [place] = found.as_slice() else {
        let names = list(candidates);
        return Err(Error::new(
            ErrorKind::Refused,
            match found.len() {
                0 => format!("none of {names} holds a system: /etc, and /usr or /sbin/init"),
                _ => format!(
                    "{} each hold a system; say by --root-partition which is to be changed",
                    found.iter().map(|place| place.name()).collect::<Vec<_>>().join(" and ")
                ),
            },
        ));
    };
    let mounted = place.mount(target, Access::Write)?;
    // Where there is no choice, what a small system may lack is not asked for.
    let folder = match folder(&mounted, is_system)? {
        None => folder(&mounted, |at| is_folder(at, "etc"))?,
        found => found,
    };
    let folder = folder.ok_or_else(|| {
        Error::new(
            ErrorKind::Refused,
            format!("{} holds no system: it has no folder /etc", place.name()),
        )
    })?;
    Ok((place, mounted, folder))
}

/// The folder of a filesystem that the test fits, of those where a system may have its root: the default subvolume before all others, and a
/// snapshot, which may be of one of them, behind them. Refuses several of those between, since nothing says which of them starts.
fn folder(mounted: &Mounted, fits: impl Fn(&OwnedFd) -> bool) -> Result<Option<OwnedFd>> {
    let top = mounted.open_root()?;
    let [default, equals @ .., snapshot] = SUBVOLUMES;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open = |name: &str| super::paths::resolve(&top, name, flags);
    let found = open(default).map_err(std::io::Error::from);
    let found = found.on_disk(|| "opening the root".into())?;
    if fits(&found) {
        return Ok(Some(found));
    }
    let fitting = |name: &&str| Some((name.to_string(), open(name).ok().filter(&fits)?));
    let mut found: Vec<_> = equals.iter().filter_map(fitting).collect();
    if found.len() > 1 {
        let names: Vec<String> = found.into_iter().map(|(name, _)| name).collect();
        return Err(Error::refused(format!(
            "the subvolumes {} each hold a system; make the one that is meant the template's default (btrfs subvolume set-default)",
            names.join(" and ")
        )));
    }
    Ok(found.pop().or_else(|| fitting(&snapshot)).map(|(_, folder)| folder))
}

fn is_system(at: &OwnedFd) -> bool {
    is_folder(at, "etc") && (is_folder(at, "usr") || kind_below(at, "sbin/init").is_some())
}

fn is_folder(at: impl AsFd, path: &str) -> bool {
    kind_below(at, path) == Some(FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u32, kind: FsKind) -> Place {
        Place::new(Some(number), kind, 0, 1)
    }

    #[test]
    fn a_system_that_nobody_can_reach_is_refused() {
        for (volumes, chosen, words) in [
            (vec![], None, "no partitions"),
            (
                vec![place(1, FsKind::Fat32), place(2, FsKind::Swap)],
                None,
                "fat32), partition 2 (swap",
            ),
            (
                vec![place(1, FsKind::Ext4), place(2, FsKind::Lvm2)],
                None,
                "partition 2 (lvm2) may hold",
            ),
            (vec![place(1, FsKind::Luks)], None, "--root-partition"),
            (vec![place(1, FsKind::Luks)], Some(1), "ext, XFS or btrfs"),
            (vec![place(1, FsKind::Ext4)], Some(2), "no partition 2"),
        ] {
            let error = candidates(&volumes, chosen).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
