//! What `sfdisk --dump` prints of a partition table: Clonezilla and FOG keep it beside their images.

use super::error::{ForeignError, Result};
use crate::table;

/// More partitions than any table has.
const MAX_PARTITIONS: usize = 256;

/// The largest number of a partition in an MBR itself.
const LAST_PRIMARY: u32 = 4;

/// A partition table as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// Whether it is a GPT.
    pub gpt: bool,
    /// Its sector size in bytes.
    pub sector_bytes: u64,
    /// The partitions that have a length, an extended one left out, in the order of the disk.
    pub partitions: Vec<DumpedPartition>,
    /// The extended partition.
    pub extended: Option<DumpedPartition>,
}

/// A partition of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedPartition {
    /// The name of its device: `sda1`, `nvme0n1p2`.
    pub name: String,
    /// Its number.
    pub number: u32,
    /// Where it starts, in bytes.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its type in an MBR; 0 in a GPT.
    pub kind: u8,
    /// Whether an MBR marks it as active.
    pub bootable: bool,
}

impl DumpedPartition {
    /// The first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

impl Dump {
    /// Any text in, a table or the reason against it out. `format` is the name for errors.
    pub fn parse(text: &str, format: &'static str) -> Result<Self> {
        let setting = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix(':'))
                .map(str::trim)
        };
        let sector_bytes = match setting("sector-size") {
            None | Some("512") => 512,
            Some("4096") => 4096,
            Some(other) => {
                let fault = format!("sectors of '{}' bytes cannot be", other.escape_debug());
                return Err(ForeignError::damaged(format, fault));
            }
        };
        let gpt = setting("label") == Some("gpt");
        let mut dump = Self { gpt, sector_bytes, partitions: Vec::new(), extended: None };
        for line in text.lines().filter(|line| line.starts_with("/dev/")) {
            dump.add(line).ok_or_else(|| {
                let fault = format!("its partition '{}' makes no sense", line.escape_debug());
                ForeignError::damaged(format, fault)
            })?;
        }
        if dump.partitions.is_empty() || dump.partitions.len() > MAX_PARTITIONS {
            return Err(ForeignError::damaged(format, "its partition table has no partitions"));
        }
        dump.partitions.sort_by_key(|partition| partition.start);
        Ok(dump)
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let (device, rest) = line.split_once(':')?;
        let name = device.trim().strip_prefix("/dev/")?;
        let mut fields = rest.split(',').filter_map(|field| field.split_once('='));
        let mut field = |keys: &[&str]| {
            fields.find(|(key, _)| keys.contains(&key.trim())).map(|(_, value)| value.trim())
        };
        let bytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(self.sector_bytes);
        let (start, len) = (bytes(field(&["start"])?)?, bytes(field(&["size"])?)?);
        let kind = field(&["type", "Id"])?;
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let number: u32 = name[name.len() - digits..].parse().ok()?;
        start.checked_add(len)?;
        let kind = if self.gpt { 0 } else { u8::from_str_radix(kind, 16).ok()? };
        let bootable = !self.gpt && rest.split(',').any(|word| word.trim() == "bootable");
        let partition =
            DumpedPartition { name: name.to_owned(), number, start, len, kind, bootable };
        if len == 0 {
            return Some(());
        }
        if !table::is_extended(kind) {
            self.partitions.push(partition);
            return Some(());
        }
        // No system reads two of them.
        self.extended.replace(partition).is_none().then_some(())
    }

    /// The logical partitions, in the order of their numbers.
    #[must_use]
    pub fn logical(&self) -> Vec<&DumpedPartition> {
        let mut logical: Vec<_> =
            self.partitions.iter().filter(|p| !self.gpt && p.number > LAST_PRIMARY).collect();
        logical.sort_by_key(|partition| partition.number);
        logical
    }

    /// Where the first partition begins, be it the extended one.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.partitions.iter().chain(&self.extended).map(|p| p.start).min().unwrap_or(0)
    }

    /// Where the last partition ends, be it the extended one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.partitions.iter().chain(&self.extended).map(DumpedPartition::end).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn old_and_new_dumps_are_read() {
        let new = "label: gpt\nlabel-id: X\ndevice: /dev/nvme0n1\nunit: sectors\nsector-size: 512\n\n\
                   /dev/nvme0n1p1 : start=        2048, size=     1048576, type=C12A, uuid=Y, name=\"a b\"\n";
        let dump = Dump::parse(new, "x").unwrap();
        assert!(dump.gpt && dump.logical().is_empty());
        let (start, len) = (1 << 20, 512 << 20);
        let (kind, bootable) = (0, false);
        let expected =
            DumpedPartition { name: "nvme0n1p1".into(), number: 1, start, len, kind, bootable };
        assert_eq!(dump.partitions, [expected]);
        let old = "# partition table of /dev/sda\nunit: sectors\n\n/dev/sda1 : start=     2048, size= 74838016, Id=83, bootable\n\
                   /dev/sda2 : start= 74842110, size=  3297282, Id= 5\n/dev/sda3 : start=        0, size=        0, Id= 0\n\
                   /dev/sda5 : start= 74842112, size=  3297280, Id=82\n";
        let dump = Dump::parse(old, "x").unwrap();
        assert!(!dump.gpt && dump.partitions.len() == 2 && dump.partitions[0].bootable);
        assert_eq!(dump.extended.as_ref().map(|p| p.start), Some(74_842_110 * 512));
        let logical = dump.logical();
        assert_eq!((logical.len(), logical[0].number, logical[0].kind), (1, 5, 0x82));
        assert_eq!(dump.first(), 1 << 20);
        assert_eq!(dump.end(), (74_842_110 + 3_297_282) * 512);
        assert!(Dump::parse(&format!("{old}/dev/sda4 : start=9, size=9, type=f\n"), "x").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_table_or_an_error(text in "(label: (gpt|dos)\n)?(sector-size: [0-9]{0,5}\n)?(/dev/[a-z]{0,3}[0-9]{0,12} ?:? ?start= ?[0-9]{0,22}, size=[0-9]{0,22}, (type|Id)=.{0,3}\n){0,4}") {
            let _ = Dump::parse(&text, "x");
        }
    }
}
