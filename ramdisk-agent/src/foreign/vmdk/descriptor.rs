//! The text that describes a VMDK: what it is made of.

use super::FORMAT;
use crate::foreign::error::{ForeignError, Result};

/// VMDK counts in these.
const SECTOR: u64 = 512;
const NO_PARENT: u32 = u32::MAX;

/// What a descriptor says, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The parts of the disk, in order.
    pub extents: Vec<Extent>,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// How it is stored.
    pub kind: ExtentKind,
    /// Its length in bytes.
    pub len: u64,
    /// The name of its file, in the folder of the descriptor; empty for zeros.
    pub file: String,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
}

/// How a part of a disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Byte for byte.
    Flat,
    /// In a sparse file.
    Sparse,
    /// Not at all: it is zeros.
    Zero,
}

impl Descriptor {
    /// Any bytes in, a descriptor or the reason against it out.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = std::str::from_utf8(text)
            .map_err(|_| ForeignError::damaged(FORMAT, "its descriptor is not text"))?;
        let mut extents = Vec::new();
        for line in text.lines().map(str::trim) {
            // A file's name may have a '=' in it.
            if ["RW ", "RDONLY ", "NOACCESS "].iter().any(|word| line.starts_with(word)) {
                extents.push(parse_extent(line)?);
            } else if let Some((key, value)) = line.split_once('=') {
                check_setting(key.trim(), value.trim().trim_matches('"'))?;
            }
        }
        Ok(Self { extents })
    }
}

fn check_setting(key: &str, value: &str) -> Result<()> {
    let parent = match key {
        "parentCID" => u32::from_str_radix(value, 16) != Ok(NO_PARENT),
        "parentFileNameHint" => true,
        _ => false,
    };
    if parent {
        let reason =
            "it holds only what differs from another image: join them with `qemu-img convert`";
        return Err(ForeignError::refused(FORMAT, reason));
    }
    Ok(())
}

fn parse_extent(line: &str) -> Result<Extent> {
    let damaged = || ForeignError::damaged(FORMAT, format!("its extent '{line}' makes no sense"));
    let (before, rest) = line.split_once('"').unwrap_or((line, ""));
    let mut words = before.split_ascii_whitespace();
    if words.next() != Some("RW") && !line.starts_with("RDONLY") {
        let reason = format!("its extent '{line}' is not accessible");
        return Err(ForeignError::refused(FORMAT, reason));
    }
    let bytes = |word: Option<&str>| {
        word.and_then(|word| word.parse::<u64>().ok()).and_then(|n| n.checked_mul(SECTOR))
    };
    let len = bytes(words.next()).filter(|len| *len > 0).ok_or_else(damaged)?;
    let kind = match words.next() {
        Some("FLAT" | "VMFS") => ExtentKind::Flat,
        Some("SPARSE") => ExtentKind::Sparse,
        Some("ZERO") => ExtentKind::Zero,
        Some(kind) => {
            let reason = format!("extents of the kind {kind} are not read");
            return Err(ForeignError::refused(FORMAT, reason));
        }
        None => return Err(damaged()),
    };
    if kind == ExtentKind::Zero {
        return Ok(Extent { kind, len, file: String::new(), offset: 0 });
    }
    let (file, after) = rest.split_once('"').ok_or_else(damaged)?;
    // Nothing but a file beside the descriptor.
    if file.is_empty() || file.contains(['/', '\\', '\0']) || file == "." || file == ".." {
        let reason = format!("its file '{}' is not in its own folder", file.escape_debug());
        return Err(ForeignError::refused(FORMAT, reason));
    }
    let offset = match after.split_ascii_whitespace().next() {
        Some(word) if kind == ExtentKind::Flat => bytes(Some(word)).ok_or_else(damaged)?,
        _ => 0,
    };
    Ok(Extent { kind, len, file: file.to_owned(), offset })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn extents_are_read_and_what_is_not_read_is_named() {
        let text = "# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n\
                    RW 4192256 FLAT \"a b-f001.vmdk\" 0\nRW 63 ZERO\nRDONLY 2 SPARSE \"c.vmdk\"\n\0\0";
        let extents = Descriptor::parse(text.as_bytes()).unwrap().extents;
        assert_eq!(extents.len(), 3);
        assert_eq!((extents[0].file.as_str(), extents[0].len), ("a b-f001.vmdk", 4_192_256 * 512));
        assert_eq!((extents[1].kind, extents[2].kind), (ExtentKind::Zero, ExtentKind::Sparse));
        let named = Descriptor::parse(b"CID=1\nRW 2 FLAT \"vm=1-flat.vmdk\" 0\n").unwrap();
        assert_eq!(named.extents.len(), 1);
        assert_eq!(named.extents[0].file, "vm=1-flat.vmdk");
        for (line, word) in [
            ("parentCID=12345678", "differs"),
            ("RW 1 VMFSSPARSE \"a\"", "VMFSSPARSE"),
            ("RW 1 FLAT \"../a\" 0", "own folder"),
            ("RW 1 FLAT \"/etc/passwd\" 0", "own folder"),
            ("RW 0 FLAT \"a\" 0", "no sense"),
            ("RW 99999999999999999999 FLAT \"a\" 0", "no sense"),
            ("NOACCESS 1 FLAT \"a\" 0", "accessible"),
        ] {
            let error = Descriptor::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_descriptor_or_an_error(text in "(RW |RDONLY |[a-z=]{0,9})[0-9]{0,22} ?(FLAT|SPARSE)? ?\"?[a-z/.]{0,6}\"?.{0,9}") {
            let _ = Descriptor::parse(text.as_bytes());
        }
    }
}
