//! Finds the firmware files that modules name.
//!
//! A module's `.modinfo` lists every file that any of its devices may want; which one a machine needs shows only when the driver
//! starts. So all of them are copied, and those that the folder does not have are listed rather than refused. Compressed files
//! are unpacked: not every kernel can read them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::compress::{SUFFIXES, read_unpacked};
use crate::{Error, Result, alias};

/// Firmware for a set of modules.
#[derive(Debug, Default)]
pub(crate) struct Firmware {
    /// Name below `/lib/firmware`, and content.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Name, and the modules that name it.
    pub(crate) missing: BTreeMap<String, BTreeSet<String>>,
}

impl Firmware {
    /// Looks up every file. `wanted` maps modules to the names in their `.modinfo`; without `dir` all are missing.
    pub(crate) fn collect(
        dir: Option<&Path>,
        wanted: &BTreeMap<String, Vec<String>>,
    ) -> Result<Self> {
        if let Some(dir) = dir
            && !dir.is_dir()
        {
            let value = dir.display().to_string();
            return Err(Error::BadOption {
                option: "--firmware-dir",
                value,
                why: "is not a folder",
            });
        }
        let mut firmware = Self::default();
        for (module, names) in wanted {
            for name in names {
                let found = match dir {
                    Some(dir) if is_inside(name) => find(dir, name)?,
                    _ => Vec::new(),
                };
                if found.is_empty() {
                    firmware.missing.entry(name.clone()).or_default().insert(module.clone());
                }
                for (name, path) in found {
                    if let Entry::Vacant(place) = firmware.files.entry(name) {
                        place.insert(read_unpacked(&path)?);
                    }
                }
            }
        }
        Ok(firmware)
    }
}

/// Whether a name from a module stays below the firmware folder.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// The files that a name stands for: one, or all that match a pattern, or none.
fn find(dir: &Path, name: &str) -> Result<Vec<(String, PathBuf)>> {
    if !name.contains(['*', '?', '[']) {
        let plain = dir.join(name);
        let packed = SUFFIXES.iter().map(|suffix| dir.join(format!("{name}{suffix}")));
        let path = std::iter::once(plain).chain(packed).find(|path| path.is_file());
        return Ok(path.map(|path| (name.to_owned(), path)).into_iter().collect());
    }
    let (folder, pattern) = name.rsplit_once('/').unwrap_or(("", name));
    let folder_path = dir.join(folder);
    if !folder_path.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder_path).map_err(Error::reading(&folder_path))? {
        let entry = entry.map_err(Error::reading(&folder_path))?;
        let file_name = entry.file_name();
        let Some(file) = file_name.to_str().filter(|_| entry.path().is_file()) else { continue };
        let plain = SUFFIXES.iter().find_map(|s| file.strip_suffix(s)).unwrap_or(file);
        if alias::matches(pattern, plain) {
            let inside =
                if folder.is_empty() { plain.to_owned() } else { format!("{folder}/{plain}") };
            found.push((inside, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_packed_patterns_and_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("brcm")).unwrap();
        std::fs::write(dir.path().join("plain.fw"), "p").unwrap();
        std::fs::write(dir.path().join("brcm/a.txt"), "a").unwrap();
        std::fs::write(
            dir.path().join("packed.fw.zst"),
            crate::Compression::Zstd.pack(b"z".to_vec()).unwrap(),
        )
        .unwrap();
        let wanted = BTreeMap::from([
            (
                "m1".to_owned(),
                vec!["plain.fw".to_owned(), "packed.fw".to_owned(), "gone.fw".to_owned()],
            ),
            (
                "m2".to_owned(),
                vec!["gone.fw".to_owned(), "../plain.fw".to_owned(), "brcm/*.txt".to_owned()],
            ),
        ]);
        let firmware = Firmware::collect(Some(dir.path()), &wanted).unwrap();
        let files: Vec<_> =
            firmware.files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        assert_eq!(files, [("brcm/a.txt", &b"a"[..]), ("packed.fw", b"z"), ("plain.fw", b"p")]);
        let missing: Vec<_> = firmware.missing.iter().map(|(n, m)| (n.as_str(), m.len())).collect();
        assert_eq!(missing, [("../plain.fw", 1), ("gone.fw", 2)]);
        assert_eq!(Firmware::collect(None, &wanted).unwrap().missing.len(), 5);
        assert!(Firmware::collect(Some(&dir.path().join("nosuch")), &wanted).is_err());
    }
}
