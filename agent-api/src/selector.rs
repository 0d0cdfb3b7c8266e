//! Selectors: which disk of a machine is meant. Device names move between boots; a selector must match exactly one disk or nothing happens.
//!
//! `serial=VBLK01`, `wwn=…`, `model=…`, `transport=nvme`, `by-path=pci-0000:00:04.0`, `size>=100G`, `size<=2T`, several of them
//! joined with commas, or `smallest>=100G`. Anything that starts with `/` or `./` is a path. Only how they are written is here, so that a
//! selector that no agent understands is refused before a machine was restarted for it; what they fit is the agent's to know.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') || text.starts_with("./") {
            return Ok(Self::Path(PathBuf::from(text)));
        }
        let terms = text.split(',').map(Term::parse).collect::<Option<Vec<_>>>();
        terms.filter(|t| !t.is_empty()).map(Self::Terms).ok_or_else(|| {
            format!(
                "'{}' names no disk: give a path (/dev/sda, ./disk.raw) or terms such as serial=…, wwn=…, model=…, \
                 transport=…, by-path=…, size>=100G, smallest>=100G, joined with commas",
                text.escape_debug()
            )
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
