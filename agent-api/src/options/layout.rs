//! A layout: a partition table to make, and what goes into each partition. A TOML file where a command line names one; the same
//! members in the JSON of a job.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Content, is_hash};

/// The most partitions of a GPT that is made anew, as all tools make them.
pub const MAX_GPT_PARTITIONS: usize = 128;
/// The most of an MBR: logical partitions are not made.
pub const MAX_MBR_PARTITIONS: usize = 4;
/// The longest name of a partition of a GPT, in UTF-16 units.
const MAX_NAME: usize = 36;
/// The longest label of a swap area, in bytes; the sixteenth is its end.
const MAX_SWAP_LABEL: usize = 15;

/// A partition table to make, and what goes into it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Layout {
    /// The kind of table.
    #[serde(default)]
    pub table: LayoutTable,
    /// The partitions, in the order of the disk and of their numbers, from 1.
    #[serde(rename = "partition")]
    pub partitions: Vec<LayoutPartition>,
}

/// The kind of a table that is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutTable {
    /// A GUID partition table.
    #[default]
    Gpt,
    /// A master boot record with primary partitions.
    Mbr,
}

/// A partition to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LayoutPartition {
    /// How large it is; `None`: as large as what goes into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<LayoutSize>,
    /// Its type: a well-known name, a GUID, or `0x83` for an MBR; `None`: that of the partition in the image, or what fits the content.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its name, in a GPT; `None`: that of the partition in the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Attributes of a GPT: names, or numbers of bits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<String>,
    /// The active flag of an MBR.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bootable: bool,
    /// The image whose content goes into it: a place as the restore's own image has one. `None`, with a partition: that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The root that this image has to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_root: Option<String>,
    /// Which partition of the image; `None`: it is of a single volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_partition: Option<u32>,
    /// Grow the filesystem to the partition's size.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub grow: bool,
    /// Make something new in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LayoutFormat>,
    /// The label of what is made new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// What can be made new in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayoutFormat {
    /// A swap area.
    Swap,
}

/// The size of a partition: `rest`, or bytes; in text with K, M, G and T as powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SizeText", into = "String")]
pub enum LayoutSize {
    /// What the others leave.
    Rest,
    /// So many.
    Bytes(u64),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "the size of a partition is bytes, 512M, 20G or 'rest'")]
enum SizeText {
    Number(u64),
    Text(String),
}

impl FromStr for LayoutSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "rest" {
            return Ok(Self::Rest);
        }
        let bare = text.trim_end_matches("iB");
        let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
        let unit = units.into_iter().find(|(unit, _)| bare.ends_with(*unit));
        let (digits, shift) = unit.map_or((bare, 0), |(_, shift)| (&bare[..bare.len() - 1], shift));
        let is_number = digits.bytes().all(|b| b.is_ascii_digit()) && (shift > 0 || bare == text);
        let bytes = digits.parse::<u64>().ok().filter(|_| is_number);
        bytes
            .and_then(|n| n.checked_mul(1 << shift))
            .filter(|n| *n > 0)
            .map(Self::Bytes)
            .ok_or_else(|| {
                format!(
                    "'{}' is no size of a partition: those are bytes, 512M, 20G or 'rest'",
                    text.escape_debug()
                )
            })
    }
}

impl TryFrom<SizeText> for LayoutSize {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Number(n) => n.to_string().parse(),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl fmt::Display for LayoutSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rest => f.write_str("rest"),
            Self::Bytes(n) => write!(f, "{n}"),
        }
    }
}

impl From<LayoutSize> for String {
    fn from(size: LayoutSize) -> Self {
        size.to_string()
    }
}

impl LayoutPartition {
    /// Whether the content of an image goes into it.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.image.is_some() || self.image_partition.is_some()
    }
}

impl Layout {
    /// Reads a layout from a TOML file.
    ///
    /// # Errors
    /// A sentence that names the file and the place in it.
    pub fn read(path: &str) -> Result<Box<Self>, String> {
        let content = Content::read(Path::new(path))?;
        let text = std::str::from_utf8(content.bytes())
            .map_err(|_| format!("{path} is no text in UTF-8"))?;
        let layout: Self = toml::from_str(text).map_err(|e| format!("{path}: {e}"))?;
        layout.check().map_err(|e| format!("{path}: {e}"))?;
        Ok(Box::new(layout))
    }

    /// Refuses what no agent would do. Types and attributes are for the agent to know.
    ///
    /// # Errors
    /// A sentence that names the partition, counted from 1.
    pub fn check(&self) -> Result<(), String> {
        let most = match self.table {
            LayoutTable::Gpt => MAX_GPT_PARTITIONS,
            LayoutTable::Mbr => MAX_MBR_PARTITIONS,
        };
        if self.partitions.is_empty() || self.partitions.len() > most {
            return Err(format!(
                "the layout has {} partitions, and such a table has 1 to {most}",
                self.partitions.len()
            ));
        }
        let rests = self.partitions.iter().filter(|p| p.size == Some(LayoutSize::Rest)).count();
        if rests > 1 {
            return Err("only one partition of a layout can have the rest".into());
        }
        let is_mbr = self.table == LayoutTable::Mbr;
        if is_mbr && self.partitions.iter().filter(|p| p.bootable).count() > 1 {
            return Err(
                "only one partition of an MBR can be bootable: boot code stops at two".into()
            );
        }
        let numbered = self.partitions.iter().zip(1..);
        let faults = numbered.filter_map(|(p, n)| self.fault(p).map(|f| (n, f)));
        match faults.collect::<Vec<(u32, &str)>>().first() {
            Some((number, fault)) => Err(format!("partition {number} of the layout {fault}")),
            None => Ok(()),
        }
    }

    fn fault(&self, p: &LayoutPartition) -> Option<&'static str> {
        let is_mbr = self.table == LayoutTable::Mbr;
        let name_len = p.name.as_ref().map_or(0, |name| name.encode_utf16().count());
        let has_controls =
            |text: &Option<String>| text.iter().any(|text| text.chars().any(char::is_control));
        if p.has_content() && p.format.is_some() {
            Some("has both an image and a format")
        } else if p.size.is_none() && !p.has_content() {
            Some("has no size, and nothing that goes into it: give it one, or 'rest'")
        } else if p.grow && !p.has_content() {
            Some("is to grow, and nothing goes into it")
        } else if p.expect_root.is_some() && p.image.is_none() {
            Some("has expect-root and no image of its own")
        } else if p.expect_root.as_ref().is_some_and(|root| !is_hash(root.trim())) {
            Some("has an expect-root that is no root hash: those are 64 hexadecimal digits")
        } else if p.image_partition == Some(0) {
            Some("has image-partition 0, and those begin with 1")
        } else if p.label.is_some() && p.format.is_none() {
            Some("has a label and no format")
        } else if p.label.as_ref().is_some_and(|label| label.len() > MAX_SWAP_LABEL) {
            Some("has a label of more than 15 bytes, which swap cannot have")
        } else if name_len > MAX_NAME {
            Some("has a name of more than 36 characters")
        } else if has_controls(&p.name) || has_controls(&p.label) {
            Some("has a name or a label with control characters")
        } else if is_mbr && (p.name.is_some() || !p.attributes.is_empty()) {
            Some("has a name or attributes, which only a GPT has")
        } else if !is_mbr && p.bootable {
            Some("is bootable, which only an MBR says: a GPT has the attribute legacy-boot")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Layout, String> {
        let layout: Layout = toml::from_str(text).map_err(|e| e.to_string())?;
        layout.check().map(|()| layout)
    }

    #[test]
    fn a_layout_is_toml_and_json() {
        let text = r#"
            [[partition]]
            type = "esp"
            size = "512M"
            image = "esp.img.zst"
            [[partition]]
            size = "rest"
            name = "root"
            image-partition = 2
            grow = true
            [[partition]]
            size = 2147483648
            format = "swap"
            label = "swap"
        "#;
        let layout = parse(text).unwrap();
        assert_eq!(layout.partitions[0].size, Some(LayoutSize::Bytes(512 << 20)));
        assert_eq!(layout.partitions[2].size, Some(LayoutSize::Bytes(2 << 30)));
        let json = serde_json::to_string(&layout).unwrap();
        assert_eq!(serde_json::from_str::<Layout>(&json).unwrap(), layout);
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("4K", 4096), ("1MiB", 1 << 20), ("3T", 3 << 40)] {
            assert_eq!(text.parse(), Ok(LayoutSize::Bytes(bytes)), "{text}");
        }
        assert_eq!("rest".parse(), Ok(LayoutSize::Rest));
        for bad in ["", "0", "0G", "-1", "+1M", "1.5G", "M", "5iB", "1 G", "99999999999T", "Rest"] {
            assert!(bad.parse::<LayoutSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_partition() {
        let one = |line: &str| parse(&format!("[[partition]]\nsize = \"1G\"\n{line}\n"));
        one("").unwrap();
        for (line, words) in [
            ("image = \"a\"\nformat = \"swap\"", "both an image and a format"),
            ("grow = true", "nothing goes into it"),
            ("label = \"x\"", "no format"),
            ("format = \"swap\"\nlabel = \"0123456789abcdef\"", "15 bytes"),
            ("bootable = true", "only an MBR"),
            ("image-partition = 0", "begin with 1"),
            ("expect-root = \"00\"", "no image"),
            ("image = \"a\"\nexpect-root = \"00\"", "no root hash"),
            ("name = \"a\\tb\"", "control"),
            ("sise = 1", "unknown field"),
            ("[[partition]]", "partition 2 of the layout has no size"),
            ("[[partition]]\nsize=\"rest\"\n[[partition]]\nsize=\"rest\"", "only one"),
        ] {
            let error = one(line).unwrap_err();
            assert!(error.contains(words), "{line}: {error}");
        }
        let mbr = |line: &str| parse(&format!("table=\"mbr\"\n[[partition]]\nsize=\"1G\"\n{line}"));
        mbr("bootable = true").unwrap();
        let two = "bootable = true\n[[partition]]\nsize=\"1G\"\nbootable = true";
        assert!(mbr(two).unwrap_err().contains("only one partition"));
        assert!(mbr("name = \"x\"").unwrap_err().contains("only a GPT"));
        assert!(mbr(&"[[partition]]\nsize=1\n".repeat(4)).unwrap_err().contains("1 to 4"));
        assert!(parse("partition = []").unwrap_err().contains("1 to 128"));
    }

    #[test]
    fn what_is_no_size_is_told_in_words() {
        for size in ["-5", "1.5", "true"] {
            let error = parse(&format!("[[partition]]\nsize = {size}")).unwrap_err();
            assert!(error.contains("the size of a partition is bytes, 512M"), "{error}");
        }
    }
}
