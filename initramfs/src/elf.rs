//! The little of ELF that the builder needs: machine, interpreter, one section by name.
//!
//! Only 64-bit little-endian files, which is what the supported kernels run. Any bytes in: a value or `None` out.

/// A 64-bit little-endian ELF file.
#[derive(Debug, Clone, Copy)]
pub struct Elf<'a> {
    bytes: &'a [u8],
}

const HEADER_LEN: usize = 64;
const PT_INTERP: u32 = 3;

impl<'a> Elf<'a> {
    /// Looks at the header.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let class_and_order = bytes.get(4..6)?;
        let known = bytes.starts_with(b"\x7fELF") && class_and_order == [2, 1];
        (known && bytes.len() >= HEADER_LEN).then_some(Self { bytes })
    }

    /// The name of the machine, as `uname -m` gives it.
    pub fn machine(self) -> &'static str {
        match u16_at(self.bytes, 18) {
            Some(62) => "x86_64",
            Some(183) => "aarch64",
            Some(243) => "riscv64",
            _ => "an unknown machine",
        }
    }

    /// The program's interpreter: there is one if it is linked dynamically.
    pub fn interpreter(self) -> Option<&'a [u8]> {
        let header = self.table(32, 54, 56).find(|h| u32_at(h, 0) == Some(PT_INTERP))?;
        let path = slice(self.bytes, u64_at(header, 8)?, u64_at(header, 32)?)?;
        Some(path.split(|b| *b == 0).next().unwrap_or(path))
    }

    /// The bytes of the section called `name`.
    pub fn section(self, name: &[u8]) -> Option<&'a [u8]> {
        let names_index = usize::from(u16_at(self.bytes, 62)?);
        let sections = || self.table(40, 58, 60);
        let content = |s: &'a [u8]| slice(self.bytes, u64_at(s, 24)?, u64_at(s, 32)?);
        let names = content(sections().nth(names_index)?)?;
        sections().find_map(|section| {
            let at = usize::try_from(u32_at(section, 0)?).ok()?;
            let own = names.get(at..)?.split(|b| *b == 0).next()?;
            (own == name).then(|| content(section))?
        })
    }

    /// The entries of a table whose offset, entry length and count lie at the given places of the header.
    fn table(
        self,
        offset_at: usize,
        len_at: usize,
        count_at: usize,
    ) -> impl Iterator<Item = &'a [u8]> {
        let bytes = self.bytes;
        let offset = u64_at(bytes, offset_at).unwrap_or(0);
        let len = u64::from(u16_at(bytes, len_at).unwrap_or(0));
        let count = u64::from(u16_at(bytes, count_at).unwrap_or(0));
        (0..count).map_while(move |i| slice(bytes, offset.checked_add(i * len)?, len))
    }
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    bytes.get(usize::try_from(offset).ok()?..end)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Elf;

    fn this_test() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn this_very_program() {
        let bytes = this_test();
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.machine(), std::env::consts::ARCH);
        assert!(elf.interpreter().unwrap().starts_with(b"/lib"));
        assert!(elf.section(b".text").unwrap().len() > 1000);
        assert!(elf.section(b".modinfo").is_none());
    }

    #[test]
    fn other_files() {
        assert!(Elf::parse(b"").is_none());
        assert!(Elf::parse(b"#!/bin/sh\n").is_none());
        assert!(Elf::parse(b"\x7fELF\x02\x01").is_none());
    }

    proptest! {
        #[test]
        fn damaged_headers_do_no_harm(at in 0usize..64, byte: u8, len in 0usize..4096) {
            let mut bytes = this_test();
            bytes[at] = byte;
            for bytes in [&bytes[..], &bytes[..len]] {
                if let Some(elf) = Elf::parse(bytes) {
                    elf.interpreter();
                    elf.section(b".modinfo");
                }
            }
        }
    }
}
