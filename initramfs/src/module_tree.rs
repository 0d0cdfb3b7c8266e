//! A kernel's module tree: `/lib/modules/VERSION`, read without kmod.
//!
//! What `depmod` wrote there is read as text: `modules.dep`, `modules.alias`, `modules.softdep`, `modules.builtin` and
//! `modules.builtin.modinfo` (the aliases of what is built in). Names are the kernel's: without suffix, with underscores.
//! See kmod's man pages modules.dep(5) and modprobe.d(5) for the formats.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::alias;
use crate::compress::{SUFFIXES, read_unpacked};
use crate::elf::Elf;
use crate::{Error, Result};

/// One loadable module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Path below the tree, as in `modules.dep`: `kernel/fs/ext4/ext4.ko`, or with a suffix of compression.
    pub path: String,
    /// The modules that must be loaded first, nearest first, as in `modules.dep`.
    pub needs: Vec<String>,
}

impl Module {
    /// The path without a suffix of compression, as it is in the initramfs.
    #[must_use]
    pub fn plain_path(&self) -> &str {
        SUFFIXES.iter().find_map(|s| self.path.strip_suffix(s)).unwrap_or(&self.path)
    }
}

/// A module tree.
#[derive(Debug, Clone)]
pub struct ModuleTree {
    dir: PathBuf,
    version: String,
    modules: BTreeMap<String, Module>,
    /// Pattern and module, in the order of the file.
    aliases: Vec<(String, String)>,
    softdeps: BTreeMap<String, SoftDeps>,
    /// Name and path of what is built in.
    builtin: BTreeMap<String, String>,
    builtin_aliases: Vec<(String, String)>,
}

/// Modules or aliases that should be loaded with another, if they exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SoftDeps {
    pub(crate) pre: Vec<String>,
    pub(crate) post: Vec<String>,
}

/// A module's own description.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModInfo {
    /// What the module's ELF header says it runs on.
    pub(crate) machine: &'static str,
    /// Names of firmware files.
    pub(crate) firmware: Vec<String>,
    /// Kernel version it was built for.
    pub(crate) version: Option<String>,
}

impl ModuleTree {
    /// Reads the tree of one kernel version. The folder must be named after the version.
    pub fn open(dir: &Path) -> Result<Self> {
        let dep = dir.join("modules.dep");
        if !dep.is_file() {
            return Err(Error::NoModuleTree(dir.to_owned()));
        }
        let resolved = dir.canonicalize().map_err(Error::reading(dir))?;
        let version = resolved
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| Error::NoModuleTree(dir.to_owned()))?
            .to_owned();
        let mut tree = Self {
            dir: resolved,
            version,
            modules: BTreeMap::new(),
            aliases: Vec::new(),
            softdeps: BTreeMap::new(),
            builtin: BTreeMap::new(),
            builtin_aliases: Vec::new(),
        };
        tree.read_dep(&read_text(&dep)?);
        tree.read_alias(&read_optional(&dir.join("modules.alias"))?);
        tree.read_softdep(&read_optional(&dir.join("modules.softdep"))?);
        for path in read_optional(&dir.join("modules.builtin"))?.lines() {
            tree.builtin.insert(name_of(path), path.to_owned());
        }
        tree.read_builtin_modinfo(&read_optional(&dir.join("modules.builtin.modinfo"))?);
        Ok(tree)
    }

    /// The kernel version that the tree is for.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The folder, links resolved.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Every loadable module by name.
    #[must_use]
    pub fn modules(&self) -> &BTreeMap<String, Module> {
        &self.modules
    }

    /// Whether the kernel has the driver in itself.
    #[must_use]
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains_key(&name_of(name))
    }

    /// The loadable modules that answer to an alias or a device's modalias.
    pub fn by_alias<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        matching(&self.aliases, text)
    }

    /// The built-in drivers that answer to an alias or a device's modalias.
    pub fn builtin_by_alias<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> {
        matching(&self.builtin_aliases, text)
    }

    /// The modules that a name stands for: a module, a folder such as `drivers/net/ethernet/`, or an alias. Empty if all of them
    /// are built in; `None` if there is no such thing.
    #[must_use]
    pub fn find(&self, text: &str) -> Option<BTreeSet<String>> {
        // A folder may have the name of a module that is in it, as drivers/virtio has.
        if !is_folder(text) {
            let name = name_of(text);
            if self.modules.contains_key(&name) {
                return Some(BTreeSet::from([name]));
            }
            if self.builtin.contains_key(&name) {
                return Some(BTreeSet::new());
            }
        }
        let found: BTreeSet<String> =
            self.below(text).chain(self.by_alias(text).map(str::to_owned)).collect();
        let exists = !found.is_empty()
            || self.builtin_by_alias(text).next().is_some()
            || (is_folder(text) && self.builtin.values().any(|p| lies_below(p, text)));
        exists.then_some(found)
    }

    fn below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = String> + 'a {
        let modules = self
            .modules
            .iter()
            .filter(move |(_, m)| is_folder(folder) && lies_below(&m.path, folder));
        modules.map(|(name, _)| name.clone())
    }

    /// Names that look like `wanted`, for an error message: at most five, the nearest first.
    #[must_use]
    pub fn near(&self, wanted: &str) -> Vec<&str> {
        /// So many names help; more are a list.
        const MAX_NAMES: usize = 5;
        let wanted = name_of(wanted);
        let mut names: Vec<(usize, &str)> = self
            .modules
            .keys()
            .chain(self.builtin.keys())
            .map(|name| (distance(&wanted, name), name.as_str()))
            .filter(|(d, name)| {
                *d <= 2.min(wanted.len() / 2) || (wanted.len() > 3 && name.contains(&wanted))
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().take(MAX_NAMES).map(|(_, name)| name).collect()
    }

    /// `wanted` with everything that must or should be loaded with it.
    #[must_use]
    pub fn closure(&self, wanted: &BTreeSet<String>) -> BTreeSet<String> {
        let mut done = BTreeSet::new();
        let mut todo: Vec<String> = wanted.iter().cloned().collect();
        while let Some(name) = todo.pop() {
            let Some(module) = self.modules.get(&name) else { continue };
            if !done.insert(name.clone()) {
                continue;
            }
            todo.extend(module.needs.iter().cloned());
            if let Some(soft) = self.softdeps.get(&name) {
                for text in soft.pre.iter().chain(&soft.post) {
                    todo.extend(self.find(text).unwrap_or_default());
                }
            }
        }
        done
    }

    /// A module's file, unpacked.
    pub fn read(&self, module: &Module) -> Result<Vec<u8>> {
        read_unpacked(&self.dir.join(&module.path))
    }

    /// What a module says of itself, out of its bytes.
    pub(crate) fn info(&self, module: &Module, bytes: &[u8]) -> Result<ModInfo> {
        let bad =
            |why: &str| Error::BadModule { path: self.dir.join(&module.path), why: why.to_owned() };
        let elf = Elf::parse(bytes).ok_or_else(|| bad("is not a 64-bit ELF file"))?;
        let section = elf
            .section(b".modinfo")
            .ok_or_else(|| bad("has no .modinfo section: it is not a kernel module"))?;
        let mut info = ModInfo { machine: elf.machine(), ..ModInfo::default() };
        for field in section.split(|b| *b == 0).filter_map(|f| std::str::from_utf8(f).ok()) {
            match field.split_once('=') {
                Some(("firmware", name)) => info.firmware.push(name.to_owned()),
                Some(("vermagic", text)) => {
                    info.version = text.split(' ').next().map(str::to_owned)
                }
                _ => {}
            }
        }
        Ok(info)
    }

    /// `modules.dep` for some of the modules.
    #[must_use]
    pub fn write_dep(&self, inside: &BTreeSet<String>) -> String {
        let plain = |name: &String| self.modules.get(name).map(Module::plain_path);
        let mut lines: Vec<String> = inside
            .iter()
            .filter_map(|name| self.modules.get(name))
            .map(|module| {
                let needs: String =
                    module.needs.iter().filter_map(plain).map(|p| format!(" {p}")).collect();
                format!("{}:{needs}\n", module.plain_path())
            })
            .collect();
        lines.sort_unstable();
        lines.concat()
    }

    /// `modules.alias` for some of the modules.
    #[must_use]
    pub fn write_alias(&self, inside: &BTreeSet<String>) -> String {
        let mut lines: Vec<String> = self
            .aliases
            .iter()
            .filter(|(_, module)| inside.contains(module))
            .map(|(pattern, module)| format!("alias {pattern} {module}\n"))
            .collect();
        lines.sort_unstable();
        lines.dedup();
        lines.concat()
    }

    /// `modules.softdep` for some of the modules.
    #[must_use]
    pub fn write_softdep(&self, inside: &BTreeSet<String>) -> String {
        let part = |key: &str, names: &[String]| match names {
            [] => String::new(),
            names => format!(" {key}: {}", names.join(" ")),
        };
        self.softdeps
            .iter()
            .filter(|(name, _)| inside.contains(*name))
            .map(|(name, soft)| {
                format!("softdep {name}{}{}\n", part("pre", &soft.pre), part("post", &soft.post))
            })
            .collect()
    }

    /// `modules.builtin`, whole: it is the kernel's, whatever the initramfs holds.
    #[must_use]
    pub fn write_builtin(&self) -> String {
        let mut paths: Vec<&str> = self.builtin.values().map(String::as_str).collect();
        paths.sort_unstable();
        paths.iter().map(|path| format!("{path}\n")).collect()
    }

    fn read_dep(&mut self, text: &str) {
        for (path, needs) in text.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(name_of).collect();
            self.modules.insert(name_of(path), Module { path: path.to_owned(), needs });
        }
    }

    fn read_alias(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("alias") {
                continue;
            }
            // The pattern may hold blanks, the module's name never does.
            let words: Vec<&str> = words.collect();
            if let [pattern @ .., module] = words.as_slice()
                && !pattern.is_empty()
            {
                self.aliases.push((pattern.join(" "), name_of(module)));
            }
        }
    }

    fn read_softdep(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some("softdep"), Some(name)) = (words.next(), words.next()) else { continue };
            let soft = self.softdeps.entry(name_of(name)).or_default();
            // Some modules leave "pre:" out; modprobe then ignores the names, but their authors meant it.
            let mut post = false;
            for word in words {
                match word {
                    "pre:" => post = false,
                    "post:" => post = true,
                    word if post => soft.post.push(word.to_owned()),
                    word => soft.pre.push(word.to_owned()),
                }
            }
        }
    }

    fn read_builtin_modinfo(&mut self, text: &str) {
        for field in text.split('\0') {
            if let Some((key, value)) = field.split_once('=')
                && let Some(name) = key.strip_suffix(".alias")
            {
                self.builtin_aliases.push((value.to_owned(), name_of(name)));
            }
        }
    }
}

fn matching<'a>(aliases: &'a [(String, String)], text: &'a str) -> impl Iterator<Item = &'a str> {
    aliases
        .iter()
        .filter(move |(pattern, _)| alias::matches(pattern, text))
        .map(|(_, name)| name.as_str())
}

/// A module's name from a path, a file name or a name.
pub(crate) fn name_of(text: &str) -> String {
    let file = text.rsplit('/').next().unwrap_or(text);
    let file = SUFFIXES.iter().find_map(|s| file.strip_suffix(s)).unwrap_or(file);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

fn is_folder(text: &str) -> bool {
    let file = SUFFIXES.iter().find_map(|s| text.strip_suffix(s)).unwrap_or(text);
    text.contains('/') && !file.ends_with(".ko")
}

fn lies_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_matches('/');
    let path = path.strip_prefix("kernel/").unwrap_or(path);
    let folder = folder.strip_prefix("kernel/").unwrap_or(folder);
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// How many letters differ (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::reading(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read_optional(path: &Path) -> Result<String> {
    if path.exists() { read_text(path) } else { Ok(String::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn tree() -> (tempfile::TempDir, ModuleTree) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("6.1.0-test");
        std::fs::create_dir(&root).unwrap();
        for (name, text) in [
            (
                "modules.dep",
                "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko\nkernel/fs/jbd2/jbd2.ko.xz:\n\
                 kernel/lib/crc16.ko:\nkernel/crypto/crc32c_generic.ko:\nkernel/arch/x86/crypto/crc32c-intel.ko:\n\
                 kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko\nkernel/net/core/failover.ko:\n\
                 kernel/drivers/net/ethernet/intel/e1000/e1000.ko.zst:\n\
                 kernel/drivers/virtio/virtio.ko:\nkernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko\n",
            ),
            (
                "modules.alias",
                "# Aliases\nalias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\nalias virtio:d00000001v* virtio_net\n\
                 alias pci:v00008086d0000100Esv*sd*bc*sc*i* e1000\nalias dmi:svn Some vendor* e1000\n",
            ),
            (
                "modules.softdep",
                "softdep ext4 pre: crypto-crc32c nosuch\nsoftdep e1000 crc16 post: failover\n",
            ),
            ("modules.builtin", "kernel/drivers/nvme/host/nvme.ko\nkernel/drivers/pci/vmd.ko\n"),
            (
                "modules.builtin.modinfo",
                "nvme.license=GPL\0nvme.alias=pci:v*d*sv*sd*bc01sc08i02*\0",
            ),
        ] {
            std::fs::write(root.join(name), text).unwrap();
        }
        let tree = ModuleTree::open(&root).unwrap();
        (dir, tree)
    }

    #[test]
    fn closure_follows_hard_and_soft_dependencies() {
        let (_dir, tree) = tree();
        assert_eq!(
            tree.closure(&set(&["ext4"])),
            set(&["ext4", "jbd2", "crc16", "crc32c_generic", "crc32c_intel"])
        );
        assert_eq!(tree.closure(&set(&["e1000"])), set(&["e1000", "crc16", "failover"]));
        assert_eq!(tree.version(), "6.1.0-test");
    }

    #[test]
    fn names_folders_and_aliases_are_found() {
        let (_dir, tree) = tree();
        assert_eq!(tree.find("crc32c-intel"), Some(set(&["crc32c_intel"])));
        assert_eq!(tree.find("drivers/net"), Some(set(&["e1000", "virtio_net"])));
        assert_eq!(tree.find("kernel/drivers/net/ethernet/"), Some(set(&["e1000"])));
        assert_eq!(tree.find("virtio:d00000001v00001AF4"), Some(set(&["virtio_net"])));
        assert_eq!(tree.find("nvme"), Some(set(&[])));
        assert_eq!(tree.find("drivers/pci"), Some(set(&[])));
        assert_eq!(tree.find("pci:v00001B36d00000010sv0sd0bc01sc08i02"), Some(set(&[])));
        assert_eq!(tree.find("drivers/virtio"), Some(set(&["virtio", "virtio_pci"])));
        assert_eq!(tree.find("kernel/drivers/virtio/virtio.ko"), Some(set(&["virtio"])));
        assert_eq!(tree.find("drivers/ne"), None);
        assert_eq!(tree.find("e100"), None);
        assert_eq!(tree.near("e100"), ["e1000"]);
        assert_eq!(tree.near("virtio-nte"), ["virtio_net"]);
        assert!(tree.near("zzzzzz").is_empty());
    }

    #[test]
    fn cut_down_files_name_plain_modules_only() {
        let (_dir, tree) = tree();
        let inside = tree.closure(&set(&["ext4"]));
        assert_eq!(
            tree.write_dep(&inside),
            "kernel/arch/x86/crypto/crc32c-intel.ko:\nkernel/crypto/crc32c_generic.ko:\n\
             kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\nkernel/fs/jbd2/jbd2.ko:\nkernel/lib/crc16.ko:\n"
        );
        assert_eq!(
            tree.write_alias(&inside),
            "alias crypto-crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\n"
        );
        assert_eq!(tree.write_softdep(&inside), "softdep ext4 pre: crypto-crc32c nosuch\n");
        assert_eq!(
            tree.write_builtin(),
            "kernel/drivers/nvme/host/nvme.ko\nkernel/drivers/pci/vmd.ko\n"
        );
        assert_eq!(tree.write_alias(&set(&["e1000"])).lines().count(), 2);
    }

    #[test]
    fn a_folder_without_depmod_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ModuleTree::open(dir.path()), Err(Error::NoModuleTree(_))));
    }

    #[test]
    fn distances() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
