//! Where the boot loader's configuration lies on a disk, and what it would start.
//!
//! What is on the disk is not trusted: every path is resolved by the kernel inside of its filesystem, what is read must be a regular
//! file within a limit, and folders are not gone through but looked into at the places where boot loaders look. There must be one
//! configuration: where two are found, which of them firmware takes is not for this program to guess.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Entry;
use super::bls::{self, BlsEntry};
use super::grub::environment::Environment;
use super::grub::{self, What};
use crate::restore::{SUBVOLUMES, names_in, resolve};

/// A configuration has some kilobytes, one with many kernels tens of them.
const MAX_CONFIG: u64 = 1 << 20;
/// Entries of the Boot Loader Specification, and what each may have.
const MAX_ENTRIES: usize = 256;
/// Where GRUB's configuration is, and beside it its environment block: on a system's root, and on a filesystem of its own for /boot.
const GRUB_FOLDERS: [&str; 4] = ["/boot/grub", "/boot/grub2", "/grub", "/grub2"];
/// Where entries of the Boot Loader Specification are: on the ESP, XBOOTLDR or a /boot of its own, and on a system's root.
const LOADER_FOLDERS: [&str; 2] = ["/loader", "/boot/loader"];

/// A filesystem that was found on the disk.
#[derive(Debug)]
pub struct Volume {
    /// `partition 2 (ext4)`.
    pub name: String,
    /// Its UUID, as blkid prints it.
    pub uuid: Option<String>,
    /// Whether it has subvolumes, any of which may be a system's root.
    pub is_btrfs: bool,
    /// Its root folder.
    pub root: OwnedFd,
}

/// What would be started, and from where.
#[derive(Debug)]
pub struct Found<'a> {
    /// The filesystem that its files are in.
    pub volume: &'a Volume,
    /// What.
    pub entry: Entry,
}

/// Finds what the disk's boot loader would start.
///
/// # Errors
/// If that cannot be said for sure; a sentence.
pub fn find(volumes: &[Volume]) -> Result<Found<'_>, String> {
    let mut configs = Vec::new();
    for volume in volumes {
        for prefix in volume.prefixes() {
            for folder in GRUB_FOLDERS {
                let folder = format!("{prefix}{folder}");
                if let Some(text) = volume.read(&format!("{folder}/grub.cfg"))? {
                    configs.push((volume, prefix.clone(), folder, text));
                }
            }
        }
    }
    match configs.as_slice() {
        [] => by_specification(volumes),
        [(volume, prefix, folder, text)] => {
            let path = format!("{folder}/grub.cfg of {}", volume.name);
            by_grub(volumes, volume, prefix, folder, text).map_err(|e| format!("{path}: {e}"))
        }
        several => {
            let names = several
                .iter()
                .map(|(volume, _, folder, _)| format!("{folder}/grub.cfg of {}", volume.name));
            Err(format!(
                "which of these its boot loader reads is not known: {}",
                names.collect::<Vec<_>>().join(", ")
            ))
        }
    }
}

fn by_grub<'a>(
    volumes: &'a [Volume],
    volume: &'a Volume,
    prefix: &str,
    folder: &str,
    text: &str,
) -> Result<Found<'a>, String> {
    if volume.is_there(&format!("{folder}/custom.cfg")) {
        return Err("a custom.cfg beside it may say otherwise".into());
    }
    let env = match volume.read(&format!("{folder}/grubenv"))? {
        Some(text) => Environment::parse(&text)?,
        None => Environment::default(),
    };
    let config = grub::parse(text)?;
    let choice = config.choose(&env)?;
    let root = match &choice.root_uuid {
        None => volume,
        Some(wanted) => {
            let is_it = |volume: &&Volume| {
                volume.uuid.as_ref().is_some_and(|uuid| uuid.eq_ignore_ascii_case(wanted))
            };
            let mut found = volumes.iter().filter(is_it);
            match (found.next(), found.next()) {
                (Some(volume), None) => volume,
                (None, _) => {
                    return Err(format!(
                        "no filesystem of this disk that can be read has the UUID {}",
                        wanted.escape_debug()
                    ));
                }
                _ => {
                    return Err(format!("two filesystems have the UUID {}", wanted.escape_debug()));
                }
            }
        }
    };
    let default = match choice.what {
        What::Menu(entry) => return Ok(Found { volume: root, entry }),
        What::Bls(default) => default,
    };
    let (_, mut entries) = LOADER_FOLDERS
        .iter()
        .map(|folder| format!("{prefix}{folder}"))
        .find_map(|folder| match entries(root, &folder) {
            Ok(entries) if entries.is_empty() => None,
            entries => Some(entries.map(|entries| (folder, entries))),
        })
        .ok_or_else(|| {
            format!("it has no entries of the Boot Loader Specification in {}", root.name)
        })??;
    bls::sort_for_grub(&mut entries);
    let place = match default.parse::<usize>() {
        Ok(number) => Some(number),
        Err(_) => entries.iter().position(|entry| entry.id == default || entry.title == default),
    };
    let entry = place.and_then(|place| entries.get(place)).ok_or_else(|| {
        format!("it has no Boot Loader Specification entry '{}'", default.escape_debug())
    })?;
    let expand = |text: &str| config.expand_text(text, &env);
    Ok(Found { volume: root, entry: start(entry, expand)? })
}

/// As systemd-boot and its kin do, where there is no GRUB.
fn by_specification(volumes: &[Volume]) -> Result<Found<'_>, String> {
    let mut found = Vec::new();
    for volume in volumes {
        if volume.is_there("/EFI/Linux") && !volume.names("/EFI/Linux")?.is_empty() {
            return Err(format!(
                "{} has unified kernel images, which cannot be started by another kernel",
                volume.name
            ));
        }
        for folder in LOADER_FOLDERS {
            let entries = entries(volume, folder)?;
            if !entries.is_empty() {
                found.push((volume, folder, entries));
            }
        }
    }
    let (volume, folder, mut entries) = match found.len() {
        0 => {
            let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
            return Err(format!(
                "there is neither a grub.cfg nor an entry of the Boot Loader Specification in {}",
                match names.as_slice() {
                    [] => "the disk, which has no filesystem that can be read".to_owned(),
                    names => names.join(", "),
                }
            ));
        }
        1 => found.remove(0),
        _ => {
            let names: Vec<&str> = found.iter().map(|(v, ..)| v.name.as_str()).collect();
            return Err(format!(
                "entries of the Boot Loader Specification are in several places: {}",
                names.join(", ")
            ));
        }
    };
    bls::sort_by_specification(&mut entries);
    let default = default_of_loader(volumes)?;
    let place = match &default {
        None => 0,
        Some(pattern) => entries
            .iter()
            .position(|e| {
                bls::fits(pattern, &e.id) || bls::fits(pattern, &format!("{}.conf", e.id))
            })
            .ok_or_else(|| format!("no entry fits '{}' of loader.conf", pattern.escape_debug()))?,
    };
    let words = |text: &str| Ok(text.split_whitespace().map(str::to_owned).collect());
    let entry = start(&entries[place], words)
        .map_err(|e| format!("{folder}/entries of {}: {e}", volume.name))?;
    Ok(Found { volume, entry })
}

/// The default in the only `loader.conf`, which may be on the ESP while the entries are on XBOOTLDR.
fn default_of_loader(volumes: &[Volume]) -> Result<Option<String>, String> {
    let mut found = None;
    for volume in volumes {
        if let Some(text) = volume.read("/loader/loader.conf")? {
            if found.is_some() {
                return Err("two filesystems have a loader.conf".into());
            }
            found = Some(bls::loader_default(&text)?);
        }
    }
    Ok(found.flatten())
}

fn entries(volume: &Volume, folder: &str) -> Result<Vec<BlsEntry>, String> {
    let folder = format!("{folder}/entries");
    let names = volume.names(&folder)?;
    if names.len() > MAX_ENTRIES {
        return Err(format!("{folder} of {} holds more than {MAX_ENTRIES} files", volume.name));
    }
    let mut found = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".conf")) {
        let text = volume.read(&format!("{folder}/{name}"))?.unwrap_or_default();
        found.extend(BlsEntry::parse(name, &text).filter(BlsEntry::is_usable));
    }
    Ok(found)
}

fn start(
    entry: &BlsEntry,
    expand: impl Fn(&str) -> Result<Vec<String>, String>,
) -> Result<Entry, String> {
    let id = entry.id.escape_debug();
    if let Some(what) = entry.beyond {
        return Err(format!("entry '{id}' {what}, which cannot be done without a boot loader"));
    }
    let one = |text: &str| match expand(text)?.as_slice() {
        [path] if path.starts_with('/') => Ok(path.clone()),
        _ => Err(format!("'{}' of entry '{id}' is no path", text.escape_debug())),
    };
    let linux = entry.linux.as_deref().ok_or_else(|| format!("entry '{id}' names no kernel"))?;
    let mut initrds = Vec::new();
    for text in &entry.initrd {
        // A variable may be empty.
        if !expand(text)?.is_empty() {
            initrds.push(one(text)?);
        }
    }
    let name = if entry.title.is_empty() { &entry.id } else { &entry.title };
    Ok(Entry {
        name: name.clone(),
        kernel: one(linux)?,
        initrds,
        command_line: expand(&entry.options)?.join(" "),
    })
}

impl Volume {
    /// What may stand in front of a path where a system has its root.
    fn prefixes(&self) -> Vec<String> {
        let all: &[&str] = if self.is_btrfs { &SUBVOLUMES } else { &["."] };
        all.iter()
            .map(|name| if *name == "." { String::new() } else { format!("/{name}") })
            .collect()
    }

    fn is_there(&self, path: &str) -> bool {
        resolve(&self.root, path, OFlags::PATH).is_ok()
    }

    /// The text of a small file; `None` if there is no such file.
    fn read(&self, path: &str) -> Result<Option<String>, String> {
        let failed = |e: io::Error| format!("{path} of {}: {e}", self.name);
        let Some(file) = self.open(path).map_err(failed)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_CONFIG + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(format!("{path} of {} has more than {MAX_CONFIG} bytes", self.name));
        }
        let text = String::from_utf8(bytes);
        text.map(Some).map_err(|_| format!("{path} of {} is no text", self.name))
    }

    /// A regular file; `None` if nothing lies there.
    ///
    /// # Errors
    /// If something else lies there, or it cannot be opened.
    pub fn open(&self, path: &str) -> io::Result<Option<File>> {
        // Without NONBLOCK a pipe in place of the file would wait for somebody to write to it.
        let file = match resolve(&self.root, path, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        match file.metadata()?.is_file() {
            true => Ok(Some(file)),
            false => Err(io::Error::other("it is no regular file")),
        }
    }

    fn names(&self, path: &str) -> Result<Vec<String>, String> {
        let failed = |e: io::Error| format!("{path} of {}: {e}", self.name);
        let folder = match resolve(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
            Err(e) => return Err(failed(e.into())),
        };
        let names = names_in(&folder).map_err(failed)?;
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
    }
}

#[cfg(test)]
mod tests;
