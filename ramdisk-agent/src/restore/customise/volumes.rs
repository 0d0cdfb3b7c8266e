//! The filesystems of the restored disk that the system is spread over: its root, and what its `fstab` mounts over that.
//!
//! A line of `fstab` names a filesystem of this disk by UUID, by label, by the partition's UUID, or as a logical volume. It is mounted
//! when something beneath it is looked at or changed for the first time, like the root where nobody else sees it. What is named in
//! another way (`/dev/sda2`, a server, a folder that is bound), what two volumes go by, and what cannot be mounted for changes here
//! (FAT) stays out of reach, which is said of every path beneath it.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::fstab::{self, Entry};
use super::root::Place;
use crate::disk::Disk;
use crate::error::Result;
use crate::mounted::{self, Access, Mounted};

/// See the module's documentation. The first one is the root's.
#[derive(Debug)]
pub struct Volumes<'a> {
    target: &'a Disk,
    places: &'a [Place],
    open: Vec<(&'a Place, Mounted)>,
}

impl<'a> Volumes<'a> {
    /// Those of a target on which these places are, whose root filesystem is mounted.
    pub fn new(target: &'a Disk, places: &'a [Place], root: (&'a Place, Mounted)) -> Self {
        Self { target, places, open: vec![root] }
    }

    /// A mount of what a line of `fstab` names; or why there can be none.
    fn mount(&mut self, entry: &Entry) -> Result<std::result::Result<OwnedFd, String>> {
        let found: Vec<&Place> =
            self.places.iter().filter(|p| is_named(p, &entry.device)).collect();
        let place = match found.as_slice() {
            [place] => *place,
            [] => {
                return Ok(Err(format!("{}, which is none of this disk's volumes", entry.device)));
            }
            _ => return Ok(Err(format!("{}, which several volumes go by", entry.device))),
        };
        if place.is_scattered {
            return Ok(Err(format!("{}, whose extents do not lie together", place.name())));
        }
        if let Err(e) = mounted::check(place.kind) {
            return Ok(Err(format!("{}: {e}", place.name())));
        }
        let subvolume = match entry.subvolume() {
            Ok(subvolume) => subvolume,
            Err(why) => return Ok(Err(format!("{}, {why}", place.name()))),
        };
        // Mounted twice through two devices, a filesystem would destroy itself.
        let at = match self.open.iter().position(|(open, _)| open.start_bytes == place.start_bytes)
        {
            Some(at) => at,
            None => {
                self.open.push((place, place.mount(self.target, Access::Write)?));
                self.open.len() - 1
            }
        };
        self.open[at].1.again(subvolume).map(Ok)
    }

    /// Unmounts all; the places of those that were mounted.
    pub fn close(self) -> Result<Vec<&'a Place>> {
        let mut places = Vec::new();
        for (place, mounted) in self.open {
            mounted.close()?;
            places.push(place);
        }
        Ok(places)
    }
}

/// Whether a line of `fstab` means that volume.
fn is_named(place: &Place, device: &str) -> bool {
    let is = |own: &Option<String>, name: &str| own.as_deref().is_some_and(|own| own == name);
    let is_id = |own: &Option<String>, id: &str| {
        own.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(id))
    };
    let tagged = |tag: &str, folder: &str| {
        let name = device.strip_prefix(tag).and_then(|rest| rest.strip_prefix('='));
        name.map(|name| name.trim_matches('"')).or_else(|| device.strip_prefix(folder))
    };
    if let Some(id) = tagged("UUID", "/dev/disk/by-uuid/") {
        return is_id(&place.uuid, id);
    }
    if let Some(id) = tagged("PARTUUID", "/dev/disk/by-partuuid/") {
        return is_id(&place.part_uuid, id);
    }
    if let Some(label) = tagged("LABEL", "/dev/disk/by-label/") {
        return is(&place.label, label);
    }
    let Some((group, volume)) = place.logical.as_deref().and_then(|name| name.split_once('/'))
    else {
        return false;
    };
    // The device mapper's names have a dash between the two, and those that are in them twice.
    let mapped = |name: &str| name.replace('-', "--");
    match device.strip_prefix("/dev/mapper/") {
        Some(name) => name == format!("{}-{}", mapped(group), mapped(volume)),
        None => device.strip_prefix("/dev/") == place.logical.as_deref(),
    }
}

/// What an `fstab` mounts over a system's root.
#[derive(Debug)]
pub struct Others<'a> {
    /// None where there is only a folder.
    volumes: Option<Volumes<'a>>,
    list: Vec<Other>,
}

#[derive(Debug)]
struct Other {
    entry: Entry,
    state: State,
}

#[derive(Debug)]
enum State {
    NotLookedAt,
    Mounted(Rc<OwnedFd>),
    OutOfReach(String),
}

/// A path in one of the filesystems.
#[derive(Debug)]
pub enum Over {
    /// In the root's.
    Root,
    /// In one that is mounted over it: that filesystem's root, and the path from there.
    Mounted(Rc<OwnedFd>, String),
    /// In one that cannot be had: where it is mounted, and why.
    OutOfReach(String, String),
}

impl<'a> Others<'a> {
    /// Those in the text of an `fstab`.
    pub fn new(volumes: Option<Volumes<'a>>, fstab: &str) -> Self {
        let other = |entry| Other { entry, state: State::NotLookedAt };
        Self { volumes, list: fstab::entries(fstab).into_iter().map(other).collect() }
    }

    /// Where the filesystem is mounted that a path would be in; `None`: that is the root's.
    pub fn point_over(&self, path: &str) -> Option<&str> {
        self.index_over(path).map(|index| self.list[index].entry.point.as_str())
    }

    fn index_over(&self, path: &str) -> Option<usize> {
        let over =
            self.list.iter().enumerate().filter(|(_, o)| fstab::is_below(path, &o.entry.point));
        // The innermost, and of two on one place the later.
        over.max_by_key(|(index, o)| (o.entry.point.len(), *index)).map(|(index, _)| index)
    }

    /// Which filesystem a path is in; mounts it if it is not yet.
    pub fn over(&mut self, path: &str) -> Result<Over> {
        let Some(index) = self.index_over(path) else { return Ok(Over::Root) };
        self.look_at(index)?;
        let Other { entry, state } = &self.list[index];
        Ok(match state {
            State::Mounted(root) => {
                Over::Mounted(Rc::clone(root), fstab::path_below(path, &entry.point))
            }
            State::OutOfReach(why) => Over::OutOfReach(entry.point.clone(), why.clone()),
            State::NotLookedAt => unreachable!("it was looked at above"),
        })
    }

    fn look_at(&mut self, index: usize) -> Result<()> {
        let Other { entry, state } = &mut self.list[index];
        if let State::NotLookedAt = state {
            let mounted = match &mut self.volumes {
                Some(volumes) => volumes.mount(entry)?,
                None => Err(format!("{}, which is not here", entry.device)),
            };
            *state = match mounted {
                Ok(root) => State::Mounted(Rc::new(root)),
                Err(why) => State::OutOfReach(why),
            };
        }
        Ok(())
    }

    /// All that can be mounted, those first that others lie beneath, with their places.
    pub fn mount_all(&mut self) -> Result<Vec<(String, Rc<OwnedFd>)>> {
        let mut all = Vec::new();
        for index in 0..self.list.len() {
            self.look_at(index)?;
            if let Other { entry, state: State::Mounted(root) } = &self.list[index] {
                all.push((entry.point.clone(), Rc::clone(root)));
            }
        }
        all.sort_by_key(|(point, _)| point.len());
        Ok(all)
    }

    /// The volumes, which nothing of this uses any more.
    pub fn into_volumes(self) -> Option<Volumes<'a>> {
        self.volumes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::FsKind;

    #[test]
    fn a_volume_is_known_by_its_names() {
        let place = Place {
            logical: Some("my-vg/var-1".into()),
            uuid: Some("2c9f7d3a-57f2-4a6e-9d7f-0f1d1a6b6c11".into()),
            label: Some("Var".into()),
            part_uuid: Some("0f6f3d0a-03".into()),
            ..Place::new(Some(3), FsKind::Ext4, 0, 1)
        };
        for (device, is) in [
            ("UUID=2C9F7D3A-57f2-4a6e-9d7f-0f1d1a6b6c11", true),
            ("UUID=\"2c9f7d3a-57f2-4a6e-9d7f-0f1d1a6b6c11\"", true),
            ("/dev/disk/by-uuid/2c9f7d3a-57f2-4a6e-9d7f-0f1d1a6b6c11", true),
            ("UUID=2c9f7d3a", false),
            ("UUID=", false),
            ("LABEL=Var", true),
            ("LABEL=var", false),
            ("PARTUUID=0F6F3D0A-03", true),
            ("/dev/mapper/my--vg-var--1", true),
            ("/dev/mapper/my-vg-var-1", false),
            ("/dev/my-vg/var-1", true),
            ("/dev/sda3", false),
            ("tmpfs", false),
            ("my-vg/var-1", false),
        ] {
            assert_eq!(is_named(&place, device), is, "{device}");
        }
        let unnamed = Place::new(Some(3), FsKind::Ext4, 0, 1);
        for device in ["UUID=", "LABEL=", "PARTUUID=", "/dev/", "/dev/mapper/", ""] {
            assert!(!is_named(&unnamed, device), "{device}");
        }
    }
}
