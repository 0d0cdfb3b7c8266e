//! Types and attributes of partitions by their names.
//!
//! GUIDs from the UEFI specification, the Discoverable Partitions Specification and Microsoft's `PARTITION_INFORMATION_GPT`; the bytes of an MBR
//! are those of everybody's fdisk.

use std::fmt;

use uuid::Uuid;

use super::TableKind;

/// The type of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeId {
    /// In a GPT.
    Guid(Uuid),
    /// In an MBR.
    Byte(u8),
}

impl fmt::Display for TypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guid(guid) => write!(f, "{guid}"),
            Self::Byte(byte) => write!(f, "{byte:#04x}"),
        }
    }
}

/// Name, GUID, byte in an MBR.
type Known = (&'static str, &'static str, Option<u8>);

const KNOWN: [Known; 22] = [
    ("esp", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", Some(0xEF)),
    ("linux", "0fc63daf-8483-4772-8e79-3d69d8477de4", Some(0x83)),
    ("swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", Some(0x82)),
    ("lvm", "e6d6d379-f507-44c2-a23c-238f2a3df928", Some(0x8E)),
    ("raid", "a19d880f-05fc-4d3b-a006-743f0f84911e", Some(0xFD)),
    ("fat32", "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", Some(0x0C)),
    ("basic-data", "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", Some(0x07)),
    ("bios-boot", "21686148-6449-6e6f-744e-656564454649", None),
    ("prep", "9e1a2d38-c612-4316-aa26-8b49521e5a8b", Some(0x41)),
    ("xbootldr", "bc13c2ff-59e6-4262-a352-b275fd6f7172", Some(0xEA)),
    ("home", "933ac7e1-2eb4-4f13-b844-0e14e2aef915", None),
    ("srv", "3b8f8425-20e0-4f3b-907f-1a25a76f98e8", None),
    ("var", "4d21b016-b534-45c2-a9fb-5c16e091fd2d", None),
    ("tmp", "7ec6f557-3bc5-4aca-b293-16ef5df639d1", None),
    ("luks", "ca7d7ccb-63ed-4c53-861c-1742536059cc", None),
    ("root-x86-64", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", None),
    ("root-arm64", "b921b045-1df0-41c3-af44-4c6f280d3fae", None),
    ("root-riscv64", "72ec70a6-cf74-40e6-bd49-4bda08e8f224", None),
    ("usr-x86-64", "8484680c-9521-48c6-9c11-b0720656f69e", None),
    ("usr-arm64", "b0e01050-ee5f-4390-949a-9101b17104e9", None),
    ("msr", "e3c9e316-0b5c-4db8-817d-f92df00215ae", None),
    ("windows-recovery", "de94bba4-06d1-4d40-a16a-bfd50179d6ac", Some(0x27)),
];

/// The type that a text names for a table of this kind; `None`: none.
#[must_use]
pub fn type_of(text: &str, table: TableKind) -> Option<TypeId> {
    let known = KNOWN.iter().find(|(name, ..)| *name == text);
    match table {
        TableKind::Gpt => {
            let guid = known.map_or(text, |(_, guid, _)| guid);
            let hyphenated = guid.len() == 36;
            Uuid::parse_str(guid).ok().filter(|id| hyphenated && !id.is_nil()).map(TypeId::Guid)
        }
        TableKind::Mbr => {
            let number = || u8::from_str_radix(text.strip_prefix("0x")?, 16).ok();
            let byte = known.map_or_else(number, |(_, _, byte)| *byte);
            // 0 is none; 05, 0f and 85 lead to logical partitions, ee to a GPT.
            byte.filter(|b| !matches!(b, 0 | 0x05 | 0x0F | 0x85 | 0xEE)).map(TypeId::Byte)
        }
        TableKind::None => None,
    }
}

/// The type that a partition of either kind of table has in one of this kind; `None` if it has no counterpart there, or several: basic data
/// may be FAT or NTFS.
#[must_use]
pub fn type_in(own: &str, table: TableKind) -> Option<TypeId> {
    if let Some(same) = type_of(own, table) {
        return Some(same);
    }
    let is_own = |(_, guid, byte): &&Known| {
        own.eq_ignore_ascii_case(guid) || byte.is_some_and(|b| own == TypeId::Byte(b).to_string())
    };
    let mut names = KNOWN.iter().filter(is_own).map(|(name, ..)| *name);
    let name = names.next().filter(|_| names.next().is_none())?;
    type_of(name, table)
}

/// The names that [`type_of`] knows, for a message.
#[must_use]
pub fn type_names() -> String {
    KNOWN.map(|(name, ..)| name).join(", ")
}

/// The bit of a GPT's attribute that a text names: a name, or a number.
#[must_use]
pub fn attribute_of(text: &str) -> Option<u64> {
    let bit = match text {
        "required" => 0,
        "no-block-io" => 1,
        "legacy-boot" => 2,
        "grow-file-system" => 59,
        "read-only" => 60,
        "hidden" => 62,
        "no-auto" => 63,
        number => number.parse::<u32>().ok().filter(|bit| *bit < 64)?,
    };
    Some(1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_type() {
        for (name, guid, byte) in KNOWN {
            assert_eq!(type_of(name, TableKind::Gpt), Some(TypeId::Guid(guid.parse().unwrap())));
            assert_eq!(type_of(name, TableKind::Mbr), byte.map(TypeId::Byte), "{name}");
        }
        assert_eq!(type_of("0xc", TableKind::Mbr), Some(TypeId::Byte(12)));
        for bad in ["", "0x", "0x00", "0x05", "0xee", "0x100", "83", "ext4"] {
            assert_eq!(type_of(bad, TableKind::Mbr), None, "{bad}");
        }
        for bad in ["", "ext4", "00000000-0000-0000-0000-000000000000", "0x83"] {
            assert_eq!(type_of(bad, TableKind::Gpt), None, "{bad}");
        }
    }

    #[test]
    fn types_have_counterparts_in_the_other_table() {
        let [esp, lvm, basic, root] = ["esp", "lvm", "basic-data", "root-x86-64"]
            .map(|name| type_of(name, TableKind::Gpt).unwrap().to_string());
        let byte = |own: &str| type_in(own, TableKind::Mbr);
        assert_eq!([byte(&esp), byte(&lvm)], [Some(TypeId::Byte(0xEF)), Some(TypeId::Byte(0x8E))]);
        assert_eq!([byte(&basic), byte(&root), byte("0x05")], [None; 3]);
        assert_eq!(byte("0x0e"), Some(TypeId::Byte(0x0E)));
        let guid = |own: &str| type_in(own, TableKind::Gpt).map(|id| id.to_string());
        assert_eq!([guid("0xef"), guid(&esp.to_uppercase())], [Some(esp.clone()), Some(esp)]);
        assert_eq!([guid("0x07"), guid("0x0e")], [Some(basic), None]);
    }

    #[test]
    fn attributes_have_bits() {
        assert_eq!(attribute_of("legacy-boot"), Some(4));
        assert_eq!(attribute_of("63"), attribute_of("no-auto"));
        assert_eq!(attribute_of("64"), None);
        assert_eq!(attribute_of("bold"), None);
    }
}
