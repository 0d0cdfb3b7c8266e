//! A boot entry's bytes: `EFI_LOAD_OPTION` and the device paths in it (UEFI specification 2.10, sections 3.1.3, 10.3.5.1 and 10.3.5.4). Pure,
//! and total: firmware writes odd things.

use uuid::Uuid;

use crate::fs::bytes::{le16, le32, le64};

/// `LOAD_OPTION_ACTIVE`: firmware tries it.
const ACTIVE: u32 = 1;
/// A medium's node: a part of a disk, and a file.
const MEDIA: u8 = 4;
const HARD_DRIVE: u8 = 1;
const FILE_PATH: u8 = 4;
const END: [u8; 4] = [0x7f, 0xff, 4, 0];
const NODE_HEAD: usize = 4;
const HARD_DRIVE_LEN: usize = 42;
/// How a partition is identified: by the GUID in a GPT.
const FORMAT_GPT: u8 = 2;
const SIGNATURE_GUID: u8 = 2;

/// A partition, as firmware finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardDrive {
    /// Its number in the table.
    pub number: u32,
    /// Its first sector.
    pub first_lba: u64,
    /// Its length in sectors.
    pub sectors: u64,
    /// Its GUID in the GPT; `None` in an MBR.
    pub guid: Option<Uuid>,
}

/// A boot entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOption {
    /// What the firmware's menu shows.
    pub label: String,
    /// The partition that it boots from, if it says so.
    pub partition: Option<HardDrive>,
    /// The file that it starts, with backslashes.
    pub path: Option<String>,
}

/// The bytes of an entry that starts a file on a partition of a GPT.
pub fn encode(
    label: &str,
    number: u32,
    first_lba: u64,
    sectors: u64,
    guid: Uuid,
    path: &str,
) -> Vec<u8> {
    let mut nodes = node(HARD_DRIVE, |body| {
        body.extend(number.to_le_bytes());
        body.extend(first_lba.to_le_bytes());
        body.extend(sectors.to_le_bytes());
        body.extend(guid.to_bytes_le());
        body.extend([FORMAT_GPT, SIGNATURE_GUID]);
    });
    nodes.extend(node(FILE_PATH, |body| body.extend(text(path))));
    nodes.extend(END);
    let len = u16::try_from(nodes.len()).expect("labels and paths have limits");
    let mut bytes = ACTIVE.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend(text(label));
    bytes.extend(nodes);
    bytes
}

fn node(kind: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = vec![MEDIA, kind, 0, 0];
    fill(&mut bytes);
    let len = u16::try_from(bytes.len()).expect("labels and paths have limits");
    bytes[2..NODE_HEAD].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// What an entry says; `None` if it is none.
pub fn decode(bytes: &[u8]) -> Option<LoadOption> {
    let len = usize::from(le16(bytes.get(..6)?, 4));
    let (label, rest) = take_text(&bytes[6..])?;
    let mut nodes = rest.get(..len)?;
    let mut option = LoadOption { label, partition: None, path: None };
    while let Some(head) = nodes.get(..NODE_HEAD) {
        let len = usize::from(le16(head, 2));
        let Some(node) = nodes.get(..len).filter(|node| node.len() >= NODE_HEAD) else { break };
        match (head[0], head[1]) {
            // The rest are other instances, which are not booted from.
            (0x7f, _) => break,
            (MEDIA, HARD_DRIVE) if node.len() >= HARD_DRIVE_LEN => {
                option.partition = Some(hard_drive(node));
            }
            (MEDIA, FILE_PATH) => {
                option.path = take_text(&node[NODE_HEAD..]).map(|(text, _)| text);
            }
            _ => {}
        }
        nodes = &nodes[len..];
    }
    Some(option)
}

fn hard_drive(node: &[u8]) -> HardDrive {
    let is_guid = node[40] == FORMAT_GPT && node[41] == SIGNATURE_GUID;
    let guid: [u8; 16] = node[24..40].try_into().expect("sixteen bytes");
    HardDrive {
        number: le32(node, 4),
        first_lba: le64(node, 8),
        sectors: le64(node, 16),
        guid: is_guid.then(|| Uuid::from_bytes_le(guid)),
    }
}

/// A text that ends with a zero, and what lies behind it.
fn take_text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (pairs, _) = bytes.as_chunks::<2>();
    let end = pairs.iter().position(|pair| *pair == [0, 0])?;
    let units: Vec<u16> = pairs[..end].iter().map(|pair| u16::from_le_bytes(*pair)).collect();
    Some((String::from_utf16_lossy(&units), &bytes[2 * end + 2..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUID: Uuid = Uuid::from_u128(0x0f63_20a1_4a1d_4c22_9d6b_a3b1_7e5d_9c01);

    /// Put together by hand from the specification's tables.
    #[test]
    fn the_bytes_of_an_entry() {
        let parts: [&[u8]; 13] = [
            &[1, 0, 0, 0],
            // The length of the nodes: 42, 4 + 2 * 6, 4.
            &[62, 0],
            b"H\0i\0\0\0",
            &[4, 1, 42, 0],
            &[1, 0, 0, 0],
            &[0, 8, 0, 0, 0, 0, 0, 0],
            &[0, 0, 16, 0, 0, 0, 0, 0],
            // The first three parts of a GUID have their bytes the other way round.
            &[0xa1, 0x20, 0x63, 0x0f, 0x1d, 0x4a, 0x22, 0x4c],
            &[0x9d, 0x6b, 0xa3, 0xb1, 0x7e, 0x5d, 0x9c, 0x01],
            &[2, 2],
            &[4, 4, 16, 0],
            b"\\\0a\0.\0e\0x\0\0\0",
            &[0x7f, 0xff, 4, 0],
        ];
        assert_eq!(encode("Hi", 1, 2048, 1_048_576, GUID, r"\a.ex"), parts.concat());
    }

    #[test]
    fn entries_of_firmware_are_read() {
        let bytes = encode("Debian", 1, 2048, 1_048_576, GUID, r"\EFI\debian\shimx64.efi");
        let partition =
            HardDrive { number: 1, first_lba: 2048, sectors: 1_048_576, guid: Some(GUID) };
        let read = LoadOption {
            label: "Debian".into(),
            partition: Some(partition),
            path: Some(r"\EFI\debian\shimx64.efi".into()),
        };
        assert_eq!(decode(&bytes), Some(read));
        for cut in 0..bytes.len() {
            if let Some(option) = decode(&bytes[..cut]) {
                assert!(option.partition.is_none(), "{cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn what_was_encoded_is_decoded(
            label in "\\PC{0,40}",
            path in "[\\\\a-zA-Z0-9.]{0,60}",
            numbers in any::<(u32, u64, u64, u128)>(),
        ) {
            let (number, first_lba, sectors, guid) = numbers;
            let guid = Uuid::from_u128(guid);
            let read = decode(&encode(&label, number, first_lba, sectors, guid, &path)).unwrap();
            let partition = HardDrive { number, first_lba, sectors, guid: Some(guid) };
            prop_assert_eq!(read, LoadOption { label, partition: Some(partition), path: Some(path) });
        }
    }
}
