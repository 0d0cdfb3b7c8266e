//! What other tools make and is not read here, told by its bytes: each would be restored as garbage if it were taken for a raw disk.
//!
//! A mark is believed where no disk begins with it: those of less than four bytes count only without a boot sector's signature, and
//! the one of `.lzma`, which has no magic, is as strict as xz itself. Most stand at the beginning. A fixed VHD and a dmg have theirs
//! in the last sector: that is looked at where a file is meant to be a disk, never on a device, whose last sector holds whatever it
//! holds. Deliberately absent: telling more of such a file than its name and what to do with it.
//!
//! The marks are those of each format's own description or source, and of the magic file of `file`.

use std::fmt;

use super::error::{ForeignError, Result};
use super::stream::Codec;
use super::walk::{Piece, Walk};

/// How much of the end of a file is looked at.
pub const TAIL_LEN: usize = 512;

/// A format that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    /// What it is, with its article.
    pub what: &'static str,
    /// What to do with it, as an order.
    pub advice: &'static str,
}

const UNPACK: &str = "unpack it first";
const DECRYPT: &str = "decrypt it first";
const QEMU: &str = "make an image of it that is read, with `qemu-img convert -O qcow2`";
const OWN_TOOL: &str = "restore it with the tool that made it, and capture that disk";

/// Where the mark is, the mark, what it stands for, and what to do.
type Mark = (usize, &'static [u8], &'static str, &'static str);

const MARKS: [Mark; 58] = [
    // Virtual machines' disks. The first three are read, but not in a stream.
    (0, b"QFI\xfb", "a qcow2 image", UNPACK),
    (0, b"KDMV", "a VMDK image", UNPACK),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor", UNPACK),
    (0, b"COWD", "a VMDK image of an ESX redo log", QEMU),
    (0, b"vhdxfile", "a VHDX image", QEMU),
    (0, b"conectix", "a VHD image", QEMU),
    (0, b"<<< ", "a VDI image", QEMU),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", QEMU),
    (0, b"QED\0", "a QED image", QEMU),
    (0, b"WithoutFreeSpace", "a Parallels image", QEMU),
    (0, b"WithouFreSpacExt", "a Parallels image", QEMU),
    (0, b"Bochs Virtual HD Image", "a Bochs image", QEMU),
    (0, b"#!/bin/sh\n#V2.0 Format", "a cloop image", QEMU),
    (0, b"VMA\0", "a backup of Proxmox (VMA)", "make raw disks of it, with `vma extract`"),
    (0, b"MComprHD", "a CHD image", "make a raw disk of it, with `chdman extracthd`"),
    (0, b"sprs", "a sparse image of macOS", "make a raw disk of it, with `hdiutil convert`"),
    (0, b"encrcdsa", "an encrypted image of macOS", DECRYPT),
    // Imaging and backup.
    (0, b"partclone-image", "a partclone image", UNPACK),
    (0, b"\0ntfsclone-image", "an ntfsclone image", OWN_TOOL),
    (0, b"PaRtImAgE-VoLuMe", "a partimage image", OWN_TOOL),
    (0, b"FsA0", "an fsarchiver archive", OWN_TOOL),
    (0, b"FsArCh_", "an fsarchiver archive", OWN_TOOL),
    (0, b"\xfe\xef\x01", "a Ghost image", OWN_TOOL),
    (0, b"\xce\x24\xb9\xa2", "a backup of Acronis", OWN_TOOL),
    (0, b"MSWIM\0\0\0", "a WIM image", OWN_TOOL),
    (0, b"WLPWM\0\0\0", "a WIM image", OWN_TOOL),
    (4, b"SignedImage ", "an FFU image", OWN_TOOL),
    (0, b"btrfs-stream\0", "a stream of btrfs send", OWN_TOOL),
    (0, b"xFSdump0", "a dump of xfsdump", OWN_TOOL),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image", "make a raw disk of it, with `simg2img`"),
    // Forensics.
    (0, b"EVF\x09\x0d\x0a\xff\0", "an EWF image (E01)", EWF),
    (0, b"LVF\x09\x0d\x0a\xff\0", "an EWF image (L01)", EWF),
    (0, b"EVF2\x0d\x0a\x81\0", "an EWF image (Ex01)", EWF),
    (0, b"AFF10\r\n\0", "an AFF image", "make a raw disk of it, with `affconvert -r`"),
    // Streams.
    (0, b"\x04\x22\x4d\x18", "an lz4 stream", UNPACK),
    (0, b"\x02\x21\x4c\x18", "an lz4 stream", UNPACK),
    (0, b"LZIP", "an lzip stream", UNPACK),
    (0, b"\x89LZO", "an lzop stream", UNPACK),
    (0, b"LRZI", "an lrzip stream", UNPACK),
    (0, b"RZIP", "an rzip stream", UNPACK),
    (0, b"BZ3v1", "a bzip3 stream", UNPACK),
    (0, b"\xff\x06\0\0sNaPpY", "a snappy stream", UNPACK),
    (0, b"7kSt\xa01\x83\xd3", "a zpaq archive", UNPACK),
    (0, b"zPQ\x01", "a zpaq stream", UNPACK),
    (0, b"zPQ\x02", "a zpaq stream", UNPACK),
    (0, b"Salted__", "something that openssl has encrypted", DECRYPT),
    (0, b"age-encryption.org/", "something that age has encrypted", DECRYPT),
    // Archives.
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (0, b"PK\x07\x08", "a zip archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a rar archive", UNPACK),
    (0, b"xar!", "a xar archive", UNPACK),
    (0, b"MSCF\0\0\0\0", "a cabinet archive", UNPACK),
    (0, b"!<arch>\n", "an ar archive", UNPACK),
    (0, b"070701", "a cpio archive", UNPACK),
    (0, b"070702", "a cpio archive", UNPACK),
    (0, b"070707", "a cpio archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
];
const EWF: &str = "make a raw disk of it, with `ewfexport`";

const ENDS: [(&[u8], Other); 2] = [
    // qemu-img takes one for raw, too, unless told.
    (
        b"conectix",
        Other {
            what: "a fixed VHD image",
            advice: "make an image of it that is read, with `qemu-img convert -f vpc -O qcow2`",
        },
    ),
    // Version 4, a trailer of 512 bytes.
    (
        b"koly\0\0\0\x04\0\0\x02\0",
        Other {
            what: "an image of macOS (dmg)",
            advice: "make an image of it that is read, with `qemu-img convert -f dmg -O qcow2`",
        },
    ),
];

impl Other {
    /// Told by the first bytes of a file or a stream, of which there should be 512 if it has so many.
    #[must_use]
    pub fn by_head(head: &[u8]) -> Option<Self> {
        let unpack = |what| Some(Self { what, advice: UNPACK });
        match Codec::detect(head) {
            Some(Codec::Gzip) => return unpack("a gzip stream"),
            Some(Codec::Xz) => return unpack("an xz stream"),
            Some(Codec::Bzip2) => return unpack("a bzip2 stream"),
            Some(Codec::Zstd) => return unpack("a zstd stream"),
            None => {}
        }
        let bootable = head.get(510..512) == Some(&[0x55, 0xAA]);
        if is_compress(head) && !bootable {
            return unpack("a stream of compress (.Z)");
        }
        if is_lzma(head) {
            return unpack("an lzma stream");
        }
        let found = MARKS.iter().find(|(at, mark, ..)| {
            head.get(*at..).is_some_and(|there| there.starts_with(mark))
                && !(mark.len() < 4 && bootable)
        });
        found.map(|(_, _, what, advice)| Self { what, advice })
    }

    /// Told by the last 512 bytes of a file or a stream.
    #[must_use]
    pub fn by_tail(tail: &[u8]) -> Option<Self> {
        let found = ENDS.iter().find(|(mark, _)| tail.len() == TAIL_LEN && tail.starts_with(mark));
        found.map(|(_, other)| *other)
    }

    /// Why it is not read, where it is the file.
    #[must_use]
    pub fn refused(self) -> ForeignError {
        ForeignError::refused("not read", self.to_string())
    }

    /// Why it is not read, where it is in a stream.
    #[must_use]
    pub fn refused_in(self, stream: &'static str) -> ForeignError {
        let Self { what, advice } = self;
        let then = if advice == UNPACK { String::new() } else { format!(", then {advice}") };
        let reason = format!("{what} is in this stream, not a disk: unpack it first{then}");
        ForeignError::refused(stream, reason)
    }
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this is {}: {}", self.what, self.advice)
    }
}

/// A walk over the disk in a stream, that looks at its last bytes when it is there.
pub struct EndChecked {
    walk: Box<dyn Walk>,
    stream: &'static str,
    /// The last bytes that came, if they were data.
    tail: Vec<u8>,
}

impl EndChecked {
    /// `stream` is its name for errors.
    #[must_use]
    pub fn new(walk: Box<dyn Walk>, stream: &'static str) -> Self {
        Self { walk, stream, tail: Vec::new() }
    }
}

impl Walk for EndChecked {
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<Piece>> {
        let piece = self.walk.next(buf)?;
        match piece {
            Some(Piece::Data(len)) => {
                let new = &buf[len.saturating_sub(TAIL_LEN)..len];
                let kept = TAIL_LEN - new.len();
                self.tail.drain(..self.tail.len().saturating_sub(kept));
                self.tail.extend_from_slice(new);
            }
            Some(Piece::Zero(_) | Piece::Free(_)) => self.tail.clear(),
            None => {
                if let Some(other) = Other::by_tail(&self.tail) {
                    return Err(other.refused_in(self.stream));
                }
            }
        }
        Ok(piece)
    }
}

/// compress(1): codes of 9 to 16 bits, and two reserved bits that are zero.
fn is_compress(head: &[u8]) -> bool {
    matches!(head, [0x1F, 0x9D, flags, ..] if flags & 0x60 == 0 && (9..=16).contains(&(flags & 0x1F)))
}

/// The header of LZMA alone, by the rules of xz (`lzma-file-format.txt`): properties, a dictionary of 2^n or 2^n + 2^(n-1) bytes, a size
/// below 256 GiB or none; then the range coder's first byte, which is always zero.
fn is_lzma(head: &[u8]) -> bool {
    let Some((header, [0, ..])) = head.split_first_chunk::<13>() else { return false };
    let [properties, dictionary @ ..] = header;
    let (dictionary, size) = dictionary.split_at(4);
    let dictionary = dictionary.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    let size = size.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
    // As (pb * 5 + lp) * 9 + lc.
    let (lc, lp, pb) = (properties % 9, properties / 9 % 5, properties / 45);
    let in_steps = dictionary.is_power_of_two()
        || dictionary.is_multiple_of(3) && (dictionary / 3).is_power_of_two();
    pb <= 4
        && lc + lp <= 4
        && (4096..=3 << 30).contains(&dictionary)
        && in_steps
        && (size == u64::MAX || (1..1 << 38).contains(&size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_found_by_itself() {
        for (at, mark, what, advice) in MARKS {
            let mut head = vec![0; 4096];
            head[at..at + mark.len()].copy_from_slice(mark);
            assert_eq!(Other::by_head(&head), Some(Other { what, advice }));
            // Whatever the length, nothing panics, and it is not taken for something else.
            for len in 0..600 {
                let short = Other::by_head(&head[..len]);
                assert!(short.is_none_or(|other| other.what == what), "{what} cut to {len}");
            }
        }
        for (mark, other) in ENDS {
            let mut tail = vec![0; TAIL_LEN];
            tail[..mark.len()].copy_from_slice(mark);
            assert_eq!(Other::by_tail(&tail), Some(other));
            assert_eq!(Other::by_tail(&tail[..TAIL_LEN - 1]), None);
        }
    }

    #[test]
    fn a_streams_end_is_found_however_it_is_cut_into_pieces() {
        use super::super::walk::ReadWalk;
        let mut disk = vec![7; 2048];
        disk[1536..1544].copy_from_slice(b"conectix");
        for (len, piece, refused) in [
            (2048, 1, true),
            (2048, 511, true),
            (2048, 512, true),
            (2048, 900, true),
            (2048, 4096, true),
            (2047, 900, false),
            (1536, 7, false),
        ] {
            let bytes = std::io::Cursor::new(disk[..len].to_vec());
            let mut walk = EndChecked::new(Box::new(ReadWalk::new(bytes, "gzip")), "gzip");
            let mut buf = vec![0; piece];
            let end = loop {
                match walk.next(&mut buf) {
                    Ok(Some(_)) => {}
                    Ok(None) => break false,
                    Err(error) => break error.to_string().contains("a fixed VHD image is in"),
                }
            };
            assert_eq!(end, refused, "{len} bytes by {piece}");
        }
    }

    /// What disks and partitions begin with.
    #[test]
    fn disks_are_not_taken_for_something_else() {
        let beginnings: [&[u8]; 18] = [
            b"",                                                         // no boot code
            b"\xeb\x63\x90",                                             // GRUB
            b"\x33\xc0\x8e\xd0\xbc\x00\x7c\x8e\xc0\x8e\xd8\xbe\x00\x7c", // Windows
            b"\x33\xc0\xfa\x8e\xd8\x8e\xd0\xbc",                         // SYSLINUX
            b"\xfa\xb8\x00\x10\x8e\xd0",                                 // sfdisk's and LILO's
            b"\xfa\x31\xc0\x8e\xd8",
            b"\xfc\x31\xc0\x8e\xc0", // FreeBSD
            b"\x0e\x1f\xbe\x5b\x7c", // mkfs.fat
            b"\x45\x52\x08\x00",     // ISO 9660 with an Apple map
            b"\xeb\x3c\x90MSDOS5.0",
            b"\xeb\x58\x90mkfs.fat",
            b"\xeb\x52\x90NTFS    ",
            b"\xeb\x76\x90EXFAT   ",
            b"\xe9\x00\x00\x00",
            b"XFSB\0\0\x10\0",
            b"LUKS\xba\xbe\0\x02",
            b"hsqs\x07\0\0\0",
            b"\x5d\0\0\0\0\0\0\0",
        ];
        for begin in beginnings {
            let mut head = vec![0; 4096];
            head[..begin.len()].copy_from_slice(begin);
            for signature in [[0, 0], [0x55, 0xAA]] {
                head[510..512].copy_from_slice(&signature);
                assert_eq!(Other::by_head(&head), None, "{begin:x?}");
            }
        }
        // Marks of two and three bytes do not outweigh a boot sector.
        for mark in [b"\x1f\x9d\x90", b"\xfe\xef\x01"] {
            let mut head = vec![0; 512];
            head[..mark.len()].copy_from_slice(mark);
            assert!(Other::by_head(&head).is_some());
            head[510..].copy_from_slice(&[0x55, 0xAA]);
            assert_eq!(Other::by_head(&head), None);
        }
    }

    #[test]
    fn headers_of_lzma_are_told_from_anything_near() {
        let header = |properties: u8, dictionary: u32, size: u64, next: u8| {
            let mut head = vec![properties];
            head.extend(dictionary.to_le_bytes());
            head.extend(size.to_le_bytes());
            head.extend([next, 1, 2, 3]);
            is_lzma(&head)
        };
        assert!(header(0x5D, 8 << 20, u64::MAX, 0));
        assert!(header(0x5D, 12 << 20, 19 << 20, 0));
        assert!(!header(0x5D, (8 << 20) + 1, u64::MAX, 0));
        assert!(!header(0x5D, 0, u64::MAX, 0));
        assert!(!header(0xEB, 8 << 20, u64::MAX, 0));
        assert!(!header(0x5D, 8 << 20, 1 << 60, 0));
        assert!(!header(0x5D, 8 << 20, u64::MAX, 1));
        assert!(!is_lzma(&[0x5D, 0, 0, 0x80]));
    }
}
