//! Kernel modules: found by what the devices say they are, loaded with what they need.
//!
//! The initramfs holds unpacked modules and the indexes of depmod, cut down to what is inside. Each module is tried once; a
//! failure is reported once. A module that is not in the initramfs is no error: most devices need none of ours.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

mod index;
mod pattern;

pub use index::Index;

/// Where the builder writes the names of further modules, one a line.
pub const EXTRA_MODULES: &str = "/etc/imprint/modules";
/// Modules that no device asks for: DHCP's packet socket, disks behind host adapters, and loop devices, by which filesystems of a
/// disk are mounted and whose control device is there with the module only.
const ALWAYS: &[&str] = &["af_packet", "sd_mod", "loop"];
/// How often the devices are gone through at most; each round may uncover new buses.
const MAX_ROUNDS: usize = 16;

/// Loads modules and remembers which it has tried.
#[derive(Debug)]
pub struct Loader {
    index: Index,
    folder: PathBuf,
    params: Vec<(String, String)>,
    tried: HashSet<String>,
    seen: HashSet<String>,
    complaints: Vec<String>,
    loaded: usize,
}

impl Loader {
    /// A loader for the running kernel. `params` are (module, `name=value`).
    pub fn for_running_kernel(params: Vec<(String, String)>) -> io::Result<Self> {
        let release = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
        let folder = Path::new("/lib/modules").join(&release);
        let index = Index::read(&folder).map_err(|e| {
            let have = have_folders();
            io::Error::new(
                e.kind(),
                format!("{} ({e}); this initramfs has modules for: {have}", folder.display()),
            )
        })?;
        Ok(Self {
            index,
            folder,
            params,
            tried: HashSet::new(),
            seen: HashSet::new(),
            complaints: Vec::new(),
            loaded: 0,
        })
    }

    /// Loads the modules that every machine gets, and those that the builder's list names.
    pub fn load_listed(&mut self) {
        let extra = fs::read_to_string(EXTRA_MODULES).unwrap_or_default();
        for name in ALWAYS {
            self.load(name);
        }
        for name in extra.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if !self.load(name) && !self.index.is_builtin(name) {
                self.complaints.push(format!(
                    "{EXTRA_MODULES} names the module {name}, which is not in this initramfs"
                ));
            }
        }
    }

    /// Loads what the devices that are here now ask for, until no new ones appear.
    pub fn load_for_devices(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut new = false;
            for alias in modaliases(Path::new("/sys/devices")) {
                new |= self.load_for_alias(&alias);
            }
            if !new {
                return;
            }
        }
    }

    /// Loads what a device asks for; whether its alias is new.
    pub fn load_for_alias(&mut self, alias: &str) -> bool {
        if !self.seen.insert(alias.to_owned()) {
            return false;
        }
        let names: Vec<String> =
            self.index.for_alias(alias).into_iter().map(str::to_owned).collect();
        for name in names {
            self.load(&name);
        }
        true
    }

    /// Loads a module by its name with all it needs; whether there is such a module.
    pub fn load(&mut self, name: &str) -> bool {
        let Some(order) = self.index.load_order(name) else { return false };
        let paths: Vec<String> = order.into_iter().map(str::to_owned).collect();
        for path in paths {
            if self.tried.insert(path.clone()) {
                match self.insert(&path) {
                    Ok(()) => self.loaded += 1,
                    Err(e) => self.complaints.push(format!("cannot load {path}: {e}")),
                }
            }
        }
        true
    }

    /// Loads a module by name or alias, as `modprobe` is asked to; whether all went well.
    fn load_any(&mut self, word: &str) -> bool {
        if self.index.is_builtin(word) || self.load(word) {
            return self.complaints.is_empty();
        }
        let names: Vec<String> =
            self.index.for_alias(word).into_iter().map(str::to_owned).collect();
        let known = !names.is_empty();
        for name in names {
            self.load(&name);
        }
        known && self.complaints.is_empty()
    }

    fn insert(&self, path: &str) -> Result<(), String> {
        if !path.ends_with(".ko") {
            return Err(
                "it is packed, and this agent loads plain .ko files only: build the initramfs anew"
                    .into(),
            );
        }
        let file = File::open(self.folder.join(path)).map_err(|e| e.to_string())?;
        let name = index::name_of(path);
        let params: Vec<&str> =
            self.params.iter().filter(|(m, _)| *m == name).map(|(_, p)| p.as_str()).collect();
        let params = CString::new(params.join(" "))
            .map_err(|_| "its parameters hold a NUL byte".to_owned())?;
        match finit_module(&file, &params, ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            // Drivers answer so when the device turns out not to be theirs.
            Err(Errno::ENODEV) => Ok(()),
            Err(errno) => Err(errno.desc().to_owned()),
        }
    }

    /// How many modules were loaded.
    #[must_use]
    pub fn loaded(&self) -> usize {
        self.loaded
    }

    /// What went wrong since the last time.
    pub fn take_complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }
}

fn have_folders() -> String {
    let names: Vec<String> = fs::read_dir("/lib/modules")
        .map(|entries| {
            entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    if names.is_empty() { "no kernel".to_owned() } else { names.join(", ") }
}

/// The aliases of all devices below a folder of sysfs. Links are not followed: they lead in circles.
fn modaliases(root: &Path) -> Vec<String> {
    let mut aliases = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() && entry.file_name() == "modalias" => {
                    let text = fs::read_to_string(entry.path()).unwrap_or_default();
                    let alias = text.trim();
                    if !alias.is_empty() {
                        aliases.push(alias.to_owned());
                    }
                }
                _ => {}
            }
        }
    }
    aliases
}

/// `modprobe [-q] [--] NAME…`, as the kernel calls it when it wants a module: for a filesystem, a cipher, a protocol. Whether all
/// of them were loaded.
#[must_use]
pub fn modprobe(args: &[String]) -> bool {
    let quiet = args.iter().any(|a| a == "-q" || a == "--quiet");
    let complain = |text: &str| {
        if !quiet {
            use std::io::Write;
            // With standard error closed there is nobody to tell; the exit code still says it.
            let _ = writeln!(io::stderr(), "modprobe: {text}");
        }
    };
    let mut loader = match Loader::for_running_kernel(Vec::new()) {
        Ok(loader) => loader,
        Err(e) => {
            complain(&format!("reading {e}"));
            return false;
        }
    };
    let mut good = true;
    for word in args.iter().filter(|a| !a.starts_with('-')) {
        if !loader.load_any(word) {
            good = false;
            let reasons = loader.take_complaints();
            complain(&if reasons.is_empty() {
                format!("no module {word}")
            } else {
                reasons.join("; ")
            });
        }
    }
    good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_below_a_folder_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("pci0000:00/0000:00:02.0/virtio0");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("modalias"), "virtio:d00000001v00001AF4\n").unwrap();
        fs::write(deep.parent().unwrap().join("modalias"), "pci:v00001AF4d00001041\n").unwrap();
        fs::write(dir.path().join("pci0000:00/modalias"), "\n").unwrap();
        std::os::unix::fs::symlink(dir.path(), deep.join("subsystem")).unwrap();
        let mut aliases = modaliases(dir.path());
        aliases.sort();
        assert_eq!(aliases, ["pci:v00001AF4d00001041", "virtio:d00000001v00001AF4"]);
    }
}
