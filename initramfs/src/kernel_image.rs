//! What a kernel image says of itself: architecture and version.

use std::path::Path;

use crate::{Error, Result};

/// A kernel that a boot loader can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelImage {
    /// As `uname -m` gives it.
    pub machine: &'static str,
    /// As `uname -r` gives it; `None` if the image does not carry it in the open.
    pub version: Option<String>,
}

/// Offsets in the x86 setup header, Linux `Documentation/arch/x86/boot.rst`.
const X86_MAGIC_AT: usize = 0x202;
const X86_VERSION_AT: usize = 0x20e;
const X86_SETUP_AT: usize = 0x200;
/// Linux `Documentation/arch/arm64/booting.rst`.
const ARM64_MAGIC_AT: usize = 56;
/// The longest version text that is looked at.
const MAX_VERSION_LEN: usize = 128;

impl KernelImage {
    /// Looks at an image. `path` is for messages only.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        if bytes.get(X86_MAGIC_AT..X86_MAGIC_AT + 4) == Some(b"HdrS") {
            return Ok(Self { machine: "x86_64", version: x86_version(bytes) });
        }
        if bytes.get(ARM64_MAGIC_AT..ARM64_MAGIC_AT + 4) == Some(b"ARM\x64") {
            return Ok(Self { machine: "aarch64", version: banner(bytes) });
        }
        let why = if bytes.starts_with(b"\x7fELF") {
            "it is an ELF file; iPXE wants the bzImage (vmlinuz)"
        } else if bytes.starts_with(b"\x1f\x8b") {
            "it is compressed as a whole: unpack it with gunzip"
        } else {
            "neither an x86 bzImage nor an arm64 Image"
        };
        Err(Error::NotAKernel { path: path.to_owned(), why })
    }
}

fn x86_version(bytes: &[u8]) -> Option<String> {
    let at = bytes.get(X86_VERSION_AT..X86_VERSION_AT + 2)?;
    match usize::from(u16::from_le_bytes([at[0], at[1]])) {
        0 => None,
        at => first_word(bytes.get(at + X86_SETUP_AT..)?),
    }
}

/// The version in the banner that an uncompressed kernel holds: "Linux version 6.1.0 (…".
fn banner(bytes: &[u8]) -> Option<String> {
    let key = b"Linux version ";
    let at = bytes.windows(key.len()).position(|w| w == key)?;
    first_word(&bytes[at + key.len()..])
}

fn first_word(bytes: &[u8]) -> Option<String> {
    let text = &bytes[..bytes.len().min(MAX_VERSION_LEN)];
    let end = text.iter().position(|b| *b == 0 || *b == b' ')?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    (!word.is_empty()).then(|| word.to_owned())
}

#[cfg(test)]
pub(crate) fn tiny_bzimage(version: &str) -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    bytes[X86_MAGIC_AT..X86_MAGIC_AT + 4].copy_from_slice(b"HdrS");
    bytes[X86_VERSION_AT..X86_VERSION_AT + 2].copy_from_slice(&0x100u16.to_le_bytes());
    bytes[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    bytes[0x300 + version.len()] = b' ';
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<KernelImage> {
        KernelImage::parse(Path::new("vmlinuz"), bytes)
    }

    #[test]
    fn bzimage() {
        let kernel = parse(&tiny_bzimage("6.1.0-56-amd64")).unwrap();
        assert_eq!(kernel.machine, "x86_64");
        assert_eq!(kernel.version.as_deref(), Some("6.1.0-56-amd64"));
    }

    #[test]
    fn arm64_image() {
        let mut bytes = vec![0; 256];
        bytes[56..60].copy_from_slice(b"ARM\x64");
        bytes[100..130].copy_from_slice(b"Linux version 6.12.0-1-arm64 (");
        let kernel = parse(&bytes).unwrap();
        assert_eq!(kernel.machine, "aarch64");
        assert_eq!(kernel.version.as_deref(), Some("6.12.0-1-arm64"));
    }

    #[test]
    fn not_kernels() {
        for (bytes, word) in
            [(&b"\x7fELF..."[..], "ELF"), (b"\x1f\x8b\x08", "gunzip"), (b"", "neither")]
        {
            assert!(parse(bytes).unwrap_err().to_string().contains(word));
        }
    }

    #[test]
    fn a_version_offset_past_the_end_is_no_version() {
        let mut bytes = tiny_bzimage("6.1");
        bytes[X86_VERSION_AT..X86_VERSION_AT + 2].copy_from_slice(&0xffffu16.to_le_bytes());
        assert_eq!(parse(&bytes).unwrap().version, None);
    }
}
