//! What `sfdisk --dump` prints of a partition table: Clonezilla and FOG keep it beside their images.

use super::error::{ForeignError, Result};

/// More partitions than any table has.
const MAX_PARTITIONS: usize = 256;

/// A partition table as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// Whether it is a GPT.
    pub gpt: bool,
    /// Its sector size in bytes.
    pub sector_bytes: u64,
    /// The partitions that have a length, extended ones left out.
    pub partitions: Vec<DumpedPartition>,
    /// Whether there are logical partitions.
    pub logical: bool,
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
        let mut dump = Self { gpt, sector_bytes, partitions: Vec::new(), logical: false };
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
        let extended = !self.gpt && ["5", "05", "f", "F", "0f", "0F", "85"].contains(&kind);
        self.logical |= !self.gpt && number > 4;
        if len > 0 && !extended {
            self.partitions.push(DumpedPartition { name: name.to_owned(), number, start, len });
        }
        Some(())
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
        assert!(dump.gpt && !dump.logical);
        let expected =
            DumpedPartition { name: "nvme0n1p1".into(), number: 1, start: 1 << 20, len: 512 << 20 };
        assert_eq!(dump.partitions, [expected]);
        let old = "# partition table of /dev/sda\nunit: sectors\n\n/dev/sda1 : start=     2048, size= 74838016, Id=83, bootable\n\
                   /dev/sda2 : start= 74842110, size=  3297282, Id= 5\n/dev/sda3 : start=        0, size=        0, Id= 0\n\
                   /dev/sda5 : start= 74842112, size=  3297280, Id=82\n";
        let dump = Dump::parse(old, "x").unwrap();
        assert!(!dump.gpt && dump.logical && dump.partitions.len() == 2);
    }

    proptest! {
        #[test]
        fn any_text_is_a_table_or_an_error(text in "(label: (gpt|dos)\n)?(sector-size: [0-9]{0,5}\n)?(/dev/[a-z]{0,3}[0-9]{0,12} ?:? ?start= ?[0-9]{0,22}, size=[0-9]{0,22}, (type|Id)=.{0,3}\n){0,4}") {
            let _ = Dump::parse(&text, "x");
        }
    }
}
