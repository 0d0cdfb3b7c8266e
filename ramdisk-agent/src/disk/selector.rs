//! Which disk of this machine a selector means: it must match exactly one, or nothing happens. Removable and read-only disks never match
//! one; name them by path.

use std::path::PathBuf;

use agent_api::{DiskInfo, ErrorKind, Selector, Term};

use crate::error::{Error, Result};

/// Reads a selector, or a path.
///
/// # Errors
/// `refused` if it is neither.
pub fn selector(text: &str) -> Result<Selector> {
    text.parse().map_err(|e: String| Error::refused(e))
}

/// Whether a disk is as a term says.
fn fits(term: &Term, disk: &DiskInfo) -> bool {
    let is = |have: &Option<String>, want: &String| have.as_ref() == Some(want);
    match term {
        Term::Serial(s) => is(&disk.serial, s),
        Term::Model(s) => is(&disk.model, s),
        Term::Transport(s) => is(&disk.transport, s),
        Term::ByPath(s) => is(&disk.by_path, s),
        Term::Wwn(s) => disk.wwn.as_ref().is_some_and(|have| bare_wwn(have) == bare_wwn(s)),
        Term::SizeAtLeast(n) | Term::SmallestAtLeast(n) => disk.size_bytes >= *n,
        Term::SizeAtMost(n) => disk.size_bytes <= *n,
    }
}

/// The selector that means this very disk wherever it is plugged in; `None` if it has neither a world wide name nor a serial number.
#[must_use]
pub fn identity(disk: &DiskInfo) -> Option<String> {
    let term = match (&disk.wwn, &disk.serial) {
        (Some(wwn), _) => format!("wwn={wwn}"),
        (None, Some(serial)) => format!("serial={serial}"),
        (None, None) => return None,
    };
    let size = disk.size_bytes;
    let text = format!("{term},size>={size},size<={size}");
    // A comma or a space at an end in a serial number cannot be said in a selector.
    let Ok(Selector::Terms(terms)) = text.parse() else { return None };
    terms.iter().all(|term| fits(term, disk)).then_some(text)
}

fn bare_wwn(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let bare = ["naa.", "eui.", "0x"].iter().find_map(|p| text.strip_prefix(p));
    bare.map_or_else(|| text.clone(), str::to_owned)
}

/// Finds the one disk among `disks` that the selector means.
pub fn resolve(selector: &Selector, disks: &[DiskInfo]) -> Result<PathBuf> {
    let terms: &[Term] = match selector {
        Selector::Path(path) => return Ok(path.clone()),
        Selector::Terms(terms) => terms,
        Selector::Only => &[],
    };
    let mut found: Vec<&DiskInfo> = disks
        .iter()
        .filter(|d| !d.removable && !d.read_only && terms.iter().all(|t| fits(t, d)))
        .collect();
    if terms.iter().any(|t| matches!(t, Term::SmallestAtLeast(_))) {
        let smallest = found.iter().map(|d| d.size_bytes).min();
        found.retain(|d| Some(d.size_bytes) == smallest);
    }
    match found[..] {
        [disk] => Ok(PathBuf::from(&disk.path)),
        [] => Err(Error::new(
            ErrorKind::Refused,
            format!("no disk fits {selector}; the machine has {}", listing(disks.iter())),
        )),
        _ => Err(Error::refused(format!(
            "{selector} fits {} disks, and must fit exactly one: {}",
            found.len(),
            listing(found.into_iter())
        ))),
    }
}

fn listing<'a>(disks: impl Iterator<Item = &'a DiskInfo>) -> String {
    let lines: Vec<String> = disks
        .map(|d| {
            let or_none = |s: &Option<String>| s.clone().unwrap_or_else(|| "none".into());
            let size = indicatif::BinaryBytes(d.size_bytes);
            format!("{} (serial {}, wwn {}, {size})", d.path, or_none(&d.serial), or_none(&d.wwn))
        })
        .collect();
    if lines.is_empty() { "no disk at all".into() } else { lines.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &str, serial: &str, gib: u64) -> DiskInfo {
        DiskInfo {
            path: path.into(),
            serial: Some(serial.into()),
            wwn: Some(format!("naa.50{serial}")),
            size_bytes: gib << 30,
            ..DiskInfo::default()
        }
    }

    fn find(text: &str, disks: &[DiskInfo]) -> Result<PathBuf> {
        resolve(&selector(text)?, disks)
    }

    #[test]
    fn exactly_one_or_nothing() {
        let disks =
            [disk("/dev/sda", "a1", 10), disk("/dev/sdb", "b2", 20), disk("/dev/sdc", "c3", 20)];
        assert_eq!(find("serial=b2", &disks).unwrap(), PathBuf::from("/dev/sdb"));
        assert_eq!(find("wwn=0x50A1", &disks).unwrap(), PathBuf::from("/dev/sda"));
        assert_eq!(find("size<=15G", &disks).unwrap(), PathBuf::from("/dev/sda"));
        assert_eq!(find("smallest>=1G", &disks).unwrap(), PathBuf::from("/dev/sda"));
        assert_eq!(find("/dev/anything", &disks).unwrap(), PathBuf::from("/dev/anything"));
        for (text, phrase) in [
            ("serial=zz", "no disk fits"),
            ("size>=15G", "fits 2 disks"),
            ("smallest>=15G", "fits 2 disks"),
        ] {
            let error = find(text, &disks).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(phrase), "{error}");
        }
        assert!(resolve(&Selector::Only, &disks).is_err());
        assert!(resolve(&Selector::Only, &disks[..1]).is_ok());
    }

    #[test]
    fn removable_and_read_only_disks_never_match() {
        let mut stick = disk("/dev/sda", "a1", 10);
        stick.removable = true;
        let mut card = disk("/dev/sdb", "a1", 10);
        card.read_only = true;
        assert!(find("serial=a1", &[stick, card]).is_err());
    }
}
