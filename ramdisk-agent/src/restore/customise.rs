//! Changes to the restored system, before the disk can boot: all of them, or the restore fails.
//!
//! They are made after everything was written, read back and grown, through the kernel's own filesystems on a mount that nobody else
//! sees, and before the commit; only a volume without a partition table is changed behind it, as there is nothing to mount before, and
//! is destroyed again where that fails. An image is not trusted: see [`system`]. What can be refused is refused by the plan, which
//! has a line for every change.

mod boot_entry;
mod fstab;
mod hosts;
mod identity;
mod paths;
mod places;
mod replaced;
mod root;
pub mod script;
mod seed;
mod system;
mod volumes;

use std::time::Duration;

use agent_api::{Customisation, ErrorKind};
use rustix::fs::Mode;
use serde::Serialize;

pub use self::boot_entry::{BootEntry, plan as plan_boot_entry};
use self::root::Place;
use self::system::System;
use self::volumes::Volumes;
use crate::disk::Disk;
use crate::error::{Error, IoContext, Result};
use crate::fs::FsKind;
use crate::progress::Progress;

pub(crate) use self::paths::{names_in, resolve};
pub use self::places::volumes_of;
pub use self::root::Place as Volume;
pub(crate) use self::root::SUBVOLUMES;
pub use self::system::Done;

/// What is to be changed, and where that may be.
#[derive(Debug, Clone, Serialize)]
pub struct Changes {
    /// All volumes of the target.
    #[serde(skip)]
    volumes: Vec<Place>,
    /// Those that may hold the system.
    candidates: Vec<Place>,
    /// What is to be done, in words.
    steps: Vec<String>,
    /// The boot entry to make in firmware.
    boot_entry: Option<BootEntry>,
}

/// What a restore is asked to change in an image with these volumes and, if a boot entry is asked for, with the one that `boot_entry` finds;
/// `None`: nothing. Refuses what is known to be impossible.
pub fn plan(
    volumes: Vec<Place>,
    asked: &Customisation,
    boot_entry: impl FnOnce(&str) -> Result<BootEntry>,
) -> Result<Option<Changes>> {
    asked.check().map_err(|e| Error::refused(format!("{e}; nothing was written")))?;
    if asked.is_empty() {
        return Ok(None);
    }
    let candidates = match asked.changes_files() {
        true => root::candidates(&volumes, asked.root_partition)?,
        false => Vec::new(),
    };
    let boot_entry = asked.efi_boot_entry.as_deref().map(boot_entry).transpose()?;
    Ok(Some(Changes { volumes, candidates, steps: steps(asked), boot_entry }))
}

fn steps(asked: &Customisation) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(name) = &asked.hostname {
        steps.push(format!("the system is named {name}"));
    }
    if asked.clear_machine_id {
        steps.push("the machine-id is emptied".into());
    }
    if asked.remove_ssh_host_keys {
        steps.push("SSH host keys are removed".into());
    }
    if let Some(seed) = &asked.cloud_init_seed {
        let names: Vec<&str> = seed
            .files()
            .iter()
            .filter(|(_, content)| content.is_some())
            .map(|(name, _)| *name)
            .collect();
        steps.push(format!("cloud-init starts afresh with {}", names.join(", ")));
    }
    for file in &asked.file {
        let mode = file.mode.map(|mode| format!(", mode {mode}")).unwrap_or_default();
        steps.push(format!("{} gets {} bytes{mode}", file.path, file.content.bytes().len()));
    }
    if let Some(script) = &asked.post_script {
        steps.push(format!("a script of {} bytes runs as root", script.bytes().len()));
    }
    steps
}

impl Changes {
    /// Lines for people: what is changed, and where.
    pub fn lines(&self) -> Vec<String> {
        let names: Vec<String> = self.candidates.iter().map(Place::name).collect();
        let place = match names.as_slice() {
            [only] => format!("in {only}"),
            _ => format!("in whichever of {} holds the system", names.join(", ")),
        };
        let steps = self.steps.iter().map(|step| format!("{step}, {place}"));
        steps.chain(self.boot_entry.iter().flat_map(BootEntry::lines)).collect()
    }

    /// Whether the target has no partition table: then the volume is complete only behind the commit.
    pub fn is_bare(&self) -> bool {
        self.candidates.iter().any(|place| place.number.is_none())
    }
}

/// Makes all changes. The filesystem is unmounted and on the medium afterwards.
pub fn carry_out(
    target: &Disk,
    changes: &Changes,
    asked: &Customisation,
    progress: &Progress,
) -> Result<Done> {
    let mut done = Done::default();
    if !changes.candidates.is_empty() {
        done = change_files(target, changes, asked, progress)?;
    }
    if let Some(entry) = &changes.boot_entry {
        progress.check()?;
        done.notes.extend(entry.make()?);
    }
    Ok(done)
}

fn change_files(
    target: &Disk,
    changes: &Changes,
    asked: &Customisation,
    progress: &Progress,
) -> Result<Done> {
    let failed = |e: Error| e.context("changing the restored system failed");
    let (place, mounted, folder) = root::mount(target, &changes.candidates).map_err(failed)?;
    let inside = |e: Error| e.context(format!("changing the restored system in {}", place.name()));
    let mount = mounted.mount().try_clone().internal(|| "keeping the mount".into())?;
    let volumes = Volumes::new(target, &changes.volumes, (place, mounted));
    let mut system = System::new(folder, Some(volumes)).map_err(inside)?;
    change(&mut system, asked).map_err(inside)?;
    if let Some(content) = &asked.post_script {
        let others = system.others().mount_all().map_err(inside)?;
        let tree = script::Tree { mount: &mount, folder: system.root(), others: &others };
        let limit = asked.post_script_limit.map(|secs| Duration::from_secs(secs.into()));
        let limit = limit.unwrap_or(script::DEFAULT_LIMIT);
        script::run(&tree, content, limit, target, progress).map_err(inside)?;
        system.note("the post-script ran in the restored system; what it changed is not listed");
    }
    // Nothing of ours may have the filesystems in use when they are unmounted.
    drop(mount);
    let (done, volumes) = system.finish();
    let changed = volumes.map(Volumes::close).transpose().map_err(inside)?.unwrap_or_default();
    target.flush()?;
    target.drop_cache();
    for place in changed {
        check_clean(target, place)
            .map_err(|e| e.context(format!("changing the restored system in {}", place.name())))?;
    }
    Ok(done)
}

fn change(system: &mut System<'_>, asked: &Customisation) -> Result<()> {
    if asked.clear_machine_id {
        identity::clear_machine_id(system)?;
    }
    if asked.remove_ssh_host_keys {
        identity::remove_ssh_host_keys(system)?;
    }
    if let Some(name) = &asked.hostname {
        identity::set_host_name(system, name)?;
    }
    if let Some(seed) = &asked.cloud_init_seed {
        seed::plant(system, seed)?;
    }
    for file in &asked.file {
        let mode = file.mode.map(|mode| Mode::from_raw_mode(mode.bits()));
        system.write(&file.path, file.content.bytes(), mode)?;
    }
    Ok(())
}

/// Where an ext's superblock has its state and the features that a journal in use is one of (`fs/ext4/ext4.h`).
const EXT_STATE: u64 = 1024 + 0x3A;
const EXT_INCOMPAT: u64 = 1024 + 0x60;
const EXT_VALID: u16 = 1;
const EXT_ERROR: u16 = 2;
const EXT_RECOVER: u32 = 4;

/// An ext says of itself that it was unmounted in order; XFS and btrfs are consistent at any time.
fn check_clean(target: &Disk, place: &Place) -> Result<()> {
    if !matches!(place.kind, FsKind::Ext2 | FsKind::Ext3 | FsKind::Ext4) {
        return Ok(());
    }
    let (mut state, mut features) = ([0; 2], [0; 4]);
    target.read_exact_at(&mut state, place.start_bytes + EXT_STATE)?;
    target.read_exact_at(&mut features, place.start_bytes + EXT_INCOMPAT)?;
    let (state, features) = (u16::from_le_bytes(state), u32::from_le_bytes(features));
    if state & EXT_VALID != 0 && state & EXT_ERROR == 0 && features & EXT_RECOVER == 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Disk,
        "the filesystem says that it was not unmounted cleanly, or that the kernel found errors in it; check it on the machine that \
         the image was taken from",
    ))
}
