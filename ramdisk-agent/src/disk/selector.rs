//! Selectors: which disk is meant. Device names move between boots; a selector must match exactly one disk or nothing happens.
//!
//! `serial=VBLK01`, `wwn=…`, `model=…`, `transport=nvme`, `by-path=pci-0000:00:04.0`, `size>=100G`, `size<=2T`, several of them
//! joined with commas, or `smallest>=100G`. Anything that starts with `/` is a path. Removable and read-only disks never match
//! a selector; name them by path.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use agent_api::{DiskInfo, ErrorKind};

use crate::error::{Error, Result};

/// A parsed selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// This very path.
    Path(PathBuf),
    /// The disk that fits all terms.
    Terms(Vec<Term>),
    /// The machine's only fixed disk.
    Only,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Term {
    /// Serial number, exactly.
    Serial(String),
    /// World wide name, exactly, with or without its `naa.`/`eui.` prefix.
    Wwn(String),
    /// Model, exactly.
    Model(String),
    /// Transport.
    Transport(String),
    /// Position.
    ByPath(String),
    /// At least so many bytes.
    SizeAtLeast(u64),
    /// At most so many bytes.
    SizeAtMost(u64),
    /// Of those with at least so many bytes, the smallest; it must be the only one of its size.
    SmallestAtLeast(u64),
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.starts_with('/') || text.starts_with("./") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        let terms = text.split(',').map(Term::parse).collect::<Option<Vec<_>>>();
        terms.filter(|t| !t.is_empty()).map(Self::Terms).ok_or_else(|| {
            Error::refused(format!(
                "'{text}' names no disk: give a path (/dev/sda, ./disk.raw) or terms such as serial=…, wwn=…, model=…, \
                 transport=…, by-path=…, size>=100G, smallest>=100G, joined with commas"
            ))
        })
    }
}

impl Term {
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        for (key, make) in [
            ("size>=", Self::SizeAtLeast as fn(u64) -> Self),
            ("size<=", Self::SizeAtMost),
            ("smallest>=", Self::SmallestAtLeast),
        ] {
            if let Some(size) = text.strip_prefix(key) {
                return parse_size(size).map(make);
            }
        }
        let (key, value) = text.split_once('=')?;
        if value.is_empty() {
            return None;
        }
        let value = value.to_owned();
        Some(match key {
            "serial" => Self::Serial(value),
            "wwn" => Self::Wwn(value),
            "model" => Self::Model(value),
            "transport" => Self::Transport(value),
            "by-path" => Self::ByPath(value),
            _ => return None,
        })
    }

    fn fits(&self, disk: &DiskInfo) -> bool {
        let is = |have: &Option<String>, want: &String| have.as_ref() == Some(want);
        match self {
            Self::Serial(s) => is(&disk.serial, s),
            Self::Model(s) => is(&disk.model, s),
            Self::Transport(s) => is(&disk.transport, s),
            Self::ByPath(s) => is(&disk.by_path, s),
            Self::Wwn(s) => disk.wwn.as_ref().is_some_and(|have| bare_wwn(have) == bare_wwn(s)),
            Self::SizeAtLeast(n) | Self::SmallestAtLeast(n) => disk.size_bytes >= *n,
            Self::SizeAtMost(n) => disk.size_bytes <= *n,
        }
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
    terms.iter().all(|term| term.fits(disk)).then_some(text)
}

fn bare_wwn(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let bare = ["naa.", "eui.", "0x"].iter().find_map(|p| text.strip_prefix(p));
    bare.map_or_else(|| text.clone(), str::to_owned)
}

/// `512`, `100M`, `1.5T`; powers of 1024.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches("iB").trim_end_matches('B');
    let (number, shift) = match text.chars().last()?.to_ascii_uppercase() {
        'K' => (&text[..text.len() - 1], 10),
        'M' => (&text[..text.len() - 1], 20),
        'G' => (&text[..text.len() - 1], 30),
        'T' => (&text[..text.len() - 1], 40),
        'P' => (&text[..text.len() - 1], 50),
        _ => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 6 || (shift == 0 && !fraction.is_empty()) {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let digits = u32::try_from(fraction.len()).ok()?;
    let part = u128::from(fraction.parse::<u64>().ok()?) * (1_u128 << shift) / 10_u128.pow(digits);
    whole.checked_add(u64::try_from(part).ok()?)
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
        .filter(|d| !d.removable && !d.read_only && terms.iter().all(|t| t.fits(d)))
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

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Only => f.write_str("'the only fixed disk'"),
            Self::Terms(terms) => {
                let terms: Vec<String> = terms.iter().map(ToString::to_string).collect();
                write!(f, "'{}'", terms.join(","))
            }
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(s) => write!(f, "serial={s}"),
            Self::Wwn(s) => write!(f, "wwn={s}"),
            Self::Model(s) => write!(f, "model={s}"),
            Self::Transport(s) => write!(f, "transport={s}"),
            Self::ByPath(s) => write!(f, "by-path={s}"),
            Self::SizeAtLeast(n) => write!(f, "size>={n}"),
            Self::SizeAtMost(n) => write!(f, "size<={n}"),
            Self::SmallestAtLeast(n) => write!(f, "smallest>={n}"),
        }
    }
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
        resolve(&text.parse()?, disks)
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

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "sda", "serial=", "size>=ten", "colour=red", "serial=a,", "size>=1.5"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512"), Some(512));
        assert_eq!(parse_size("1.5G"), Some(3 << 29));
        assert_eq!(parse_size("2TiB"), Some(2 << 40));
        assert_eq!(parse_size("99999999999P"), None);
        assert_eq!(parse_size(""), None);
    }
}
