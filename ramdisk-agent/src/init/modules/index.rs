//! What modules there are, what they need, and which devices they are for: `modules.dep`, `.alias`, `.softdep`, `.builtin`.
//!
//! Text in, names out; nothing is loaded here. In names `-` and `_` are the same. Lines that make no sense are skipped, as depmod
//! would never write them.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use super::pattern;

/// The indexes of one kernel's modules.
#[derive(Debug, Default)]
pub struct Index {
    /// Name → path below the modules' folder, and the paths of what it needs.
    modules: HashMap<String, (String, Vec<String>)>,
    /// Bus (the alias up to its colon) → (pattern, name).
    aliases: HashMap<String, Vec<(String, String)>>,
    /// Name → what is to be loaded before it and after it if it is there.
    soft: HashMap<String, (Vec<String>, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Index {
    /// Reads the indexes in a modules' folder. Only `modules.dep` must be there.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let optional = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        Ok(Self::parse(
            &fs::read_to_string(folder.join("modules.dep"))?,
            &optional("modules.alias"),
            &optional("modules.softdep"),
            &optional("modules.builtin"),
        ))
    }

    /// Reads the texts of the four indexes.
    #[must_use]
    pub fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut index = Self::default();
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                index.modules.insert(name_of(path), (path.to_owned(), needs));
            }
        }
        for line in alias.lines() {
            if let ["alias", alias, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
                let entry = (alias.to_owned(), normal(name));
                index.aliases.entry(bus(alias).to_owned()).or_default().push(entry);
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep") {
                continue;
            }
            let Some(name) = words.next() else { continue };
            let (before, after) = index.soft.entry(normal(name)).or_default();
            let mut list = None;
            for word in words {
                match word {
                    "pre:" => list = Some(&mut *before),
                    "post:" => list = Some(&mut *after),
                    name => list.iter_mut().for_each(|l| l.push(normal(name))),
                }
            }
        }
        index.builtin = builtin.lines().map(name_of).collect();
        index
    }

    /// How many modules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Whether the kernel has it built in.
    #[must_use]
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(&normal(name))
    }

    /// The modules for a device's alias, or for any other alias, such as `fs-ext4`.
    #[must_use]
    pub fn for_alias(&self, alias: &str) -> Vec<&str> {
        let bus = bus(alias);
        // Patterns such as `acpi*:…` have no plain bus: they are kept under the empty one.
        let mut names: Vec<&str> = [bus, ""]
            .iter()
            .filter_map(|key| self.aliases.get(*key))
            .flatten()
            .filter(|(pattern, _)| pattern::fits(pattern, alias))
            .map(|(_, name)| name.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The paths to load for a module, in order, its own among them; `None` if there is no such module. Soft dependencies
    /// that are not there are left out.
    #[must_use]
    pub fn load_order(&self, name: &str) -> Option<Vec<&str>> {
        let mut order = Vec::new();
        let found = self.add(&normal(name), &mut order, &mut BTreeSet::new());
        found.then_some(order)
    }

    fn add<'a>(
        &'a self,
        name: &str,
        order: &mut Vec<&'a str>,
        visited: &mut BTreeSet<String>,
    ) -> bool {
        let Some((path, needs)) = self.modules.get(name) else { return false };
        if !visited.insert(name.to_owned()) {
            return true;
        }
        let none = (Vec::new(), Vec::new());
        let (before, after) = self.soft.get(name).unwrap_or(&none);
        for soft in before {
            self.add(soft, order, visited);
        }
        // modules.dep names the nearest first: the farthest must be loaded first.
        for need in needs.iter().rev() {
            self.add(&name_of(need), order, visited);
        }
        order.push(path);
        for soft in after {
            self.add(soft, order, visited);
        }
        true
    }
}

/// The module's name in a path such as `kernel/drivers/net/virtio-net.ko.xz`.
#[must_use]
pub fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// An alias's bus: what stands before its first colon, if that is plain text.
fn bus(alias: &str) -> &str {
    match alias.split_once(':') {
        Some((bus, _)) if !bus.contains(['*', '?', '[']) => bus,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/drivers/virtio/virtio.ko:\n\
        kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_pci_modern_dev.ko \
        kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko\n\
        kernel/drivers/virtio/virtio_pci_modern_dev.ko:\n\
        kernel/drivers/net/virtio_net.ko: kernel/net/core/failover.ko\n\
        kernel/net/core/failover.ko:\n\
        kernel/arch/x86/crypto/crc32c-intel.ko:\n\
        kernel/fs/ext4.ko: kernel/lib/crc16.ko\n\
        kernel/lib/crc16.ko:\n";
    const ALIAS: &str = "# Aliases\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio-pci\nalias virtio:d00000001v* virtio_net\n\
        alias fs-ext4 ext4\nalias acpi*:LNRO0005:* virtio_mmio\nalias crc32c crc32c-intel\n";
    const SOFT: &str = "softdep ext4 pre: crc32c_intel nonsuch post: failover\n";

    fn index() -> Index {
        Index::parse(DEP, ALIAS, SOFT, "kernel/drivers/nvme/host/nvme-core.ko\n")
    }

    #[test]
    fn dependencies_come_first() {
        let index = index();
        let names: Vec<String> =
            index.load_order("virtio-pci").unwrap().into_iter().map(name_of).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci"]);
        assert_eq!(index.load_order("nonsuch"), None);
    }

    #[test]
    fn soft_dependencies_are_loaded_if_they_are_there() {
        let index = index();
        let names: Vec<String> =
            index.load_order("ext4").unwrap().into_iter().map(name_of).collect();
        assert_eq!(names, ["crc32c_intel", "crc16", "ext4", "failover"]);
    }

    #[test]
    fn a_circle_ends() {
        let index = Index::parse(
            "a.ko: b.ko\nb.ko: a.ko\n",
            "",
            "softdep a pre: b\nsoftdep b pre: a\n",
            "",
        );
        assert_eq!(index.load_order("a").unwrap().len(), 2);
    }

    #[test]
    fn aliases_find_modules() {
        let index = index();
        assert_eq!(
            index.for_alias("pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00"),
            ["virtio_pci"]
        );
        assert_eq!(index.for_alias("fs-ext4"), ["ext4"]);
        assert_eq!(index.for_alias("acpi:LNRO0005:"), ["virtio_mmio"]);
        assert_eq!(index.for_alias("pci:v00008086d0000"), Vec::<&str>::new());
        assert!(
            index.is_builtin("nvme_core")
                && index.is_builtin("nvme-core")
                && !index.is_builtin("ext4")
        );
        assert_eq!((index.len(), index.is_empty()), (9, false));
    }
}
