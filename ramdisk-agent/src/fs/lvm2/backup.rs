//! A volume group from what `vgcfgbackup` keeps of it: where its volumes lie, and the label and the metadata made anew.
//!
//! They are made as `pvcreate --restorefile` and `vgcfgrestore` do: the label in the second sector, one metadata area between the first
//! 4 KiB and the first extent, the text at its beginning. In a metadata area the group stands in front of the rest: LVM looks for
//! its name in the first bytes (`read_metadata_location_summary`). Beyond what is asked of a group that is mapped, all must be there without
//! which LVM refuses the text (`import_vsn1.c`): nothing protects such a file, and what LVM does not take does not boot.

use std::collections::BTreeSet;

use super::group::{Group, Physical, Place, Volume, bytes_of};
use super::label::{
    AREA_HEADER_LEN, AREA_MAGIC, AREA_VERSION, HEADER_AT, LISTS_AT, SECTOR, TEXTS_AT,
};
use super::text::{self, Section, Value};
use crate::extents::Extent;
use crate::fs::failure::{Failure, doubt};
use crate::probe::lvm_crc;

/// Where LVM puts its first metadata area.
const AREA_AT: u64 = 4096;
/// Where the physical volume's header is in the label's sector.
const HEADER: u8 = 32;
/// Of the header's extension; the flag says that the volume is in a group.
const EXTENSION_VERSION: u32 = 2;
const IN_USE: u32 = 1;
const MAX_NAME_LEN: usize = 127;

/// A volume group that is to be made anew.
#[derive(Debug)]
pub struct Backup {
    /// Its name.
    pub group: String,
    /// What is made anew of each physical volume, in the order of their places.
    pub physical: Vec<Made>,
    /// The logical volumes.
    pub volumes: Vec<Volume>,
}

/// A physical volume made anew.
#[derive(Debug)]
pub struct Made {
    /// What it begins with; up to the first extent there is nothing else.
    pub head: Vec<u8>,
    /// Where its extents are.
    pub extents: Extent,
}

impl Backup {
    /// Reads the text of a group on these physical volumes alone; or tells why it is not taken.
    pub fn parse(text: &[u8], places: &[Place<'_>]) -> Result<Self, String> {
        Self::read(text, places).map_err(|failure| match failure {
            Failure::Doubt(reason) => reason,
            Failure::Read(error) => error.to_string(),
        })
    }

    fn read(text: &[u8], places: &[Place<'_>]) -> Result<Self, Failure> {
        let mut root = text::parse(text)
            .ok_or_else(|| doubt("its metadata is not LVM2's text, or is cut off"))?;
        let group = Group::of(&root, places)?;
        check(&root)?;
        // The group comes first.
        root.0.sort_by_key(|(_, value)| !matches!(value, Value::Section(_)));
        let mut text = text::write(&root).into_bytes();
        text.push(0);
        let mut made = Vec::new();
        for (physical, place) in group.physical.iter().zip(places) {
            made.push(Made { head: head(physical, place.id, &text)?, extents: physical.extents });
        }
        Ok(Self { group: group.name, physical: made, volumes: group.volumes })
    }
}

/// What LVM refuses to be without.
fn check(root: &Section) -> Result<(), Failure> {
    let mut ids = BTreeSet::new();
    let mut check_id = |what: &str, section: &Section| {
        let id = section.text("id").filter(|id| plain_id(id).is_some());
        match id.map(|id| ids.insert(id.to_owned())) {
            Some(true) => Ok(()),
            Some(false) => Err(doubt(format!("{what} has the UUID of something else"))),
            None => Err(doubt(format!("{what} has no UUID"))),
        }
    };
    for (name, group) in root.sections() {
        let is_name = !name.starts_with(['-', '.']) && name.len() <= MAX_NAME_LEN;
        let numbers = ["seqno", "extent_size", "max_lv", "max_pv"];
        let is_number = |name: &&str| group.number(name).is_some_and(|n| u32::try_from(n).is_ok());
        if let Some(lacks) = numbers.iter().find(|name| !is_number(name)) {
            return Err(doubt(format!("the volume group has no {lacks}")));
        }
        if !is_name {
            return Err(doubt("the volume group has a name that LVM does not take"));
        }
        check_id("the volume group", group)?;
        let sections = |list| group.section(list).into_iter().flat_map(Section::sections);
        for list in ["physical_volumes", "logical_volumes"] {
            let in_it = group.section(list).map_or(0, |section| section.0.len());
            if in_it != sections(list).count() {
                return Err(doubt(format!("{list} has something in it that is none")));
            }
        }
        for (_, physical) in sections("physical_volumes") {
            check_id("the physical volume", physical)?;
            if bytes_of(physical, "ba_size").is_some_and(|len| len > 0) {
                return Err(doubt("it has an area for a boot loader, which was not saved"));
            }
            if physical.number("pe_count").is_none_or(|count| u32::try_from(count).is_err()) {
                return Err(doubt("it has more extents than LVM counts"));
            }
        }
        let mut names = BTreeSet::new();
        for (name, logical) in sections("logical_volumes") {
            check_id(&format!("logical volume {name:?}"), logical)?;
            let time = logical.number("creation_time").is_some();
            let host = logical.text("creation_host").is_some();
            let has = |word| logical.has(word);
            if (time, host) != (has("creation_time"), has("creation_host")) || time != host {
                return Err(doubt(format!("logical volume {name:?} was made no time or nowhere")));
            }
            let fixed = Value::Text("FIXED_MINOR".into());
            let is_fixed = logical.list("status").is_some_and(|flags| flags.contains(&fixed));
            if is_fixed && logical.number("minor").is_none() {
                return Err(doubt(format!("logical volume {name:?} has no fixed number")));
            }
            if name.starts_with(['-', '.']) || !names.insert(name) {
                return Err(doubt(format!(
                    "there cannot be a logical volume {name:?}, or not twice"
                )));
            }
        }
    }
    Ok(())
}

/// The 32 characters of a UUID as LVM shows it.
fn plain_id(id: &str) -> Option<Vec<u8>> {
    let is_sound = id.len() == 38
        && id.bytes().enumerate().all(|(i, byte)| match i {
            6 | 11 | 16 | 21 | 26 | 31 => byte == b'-',
            _ => byte.is_ascii_alphanumeric() || b"!#".contains(&byte),
        });
    is_sound.then(|| id.bytes().filter(|byte| *byte != b'-').collect())
}

/// Label, header and the metadata area as far as there is something in it.
fn head(physical: &Physical, id: &str, text: &[u8]) -> Result<Vec<u8>, Failure> {
    let id = plain_id(id).ok_or_else(|| doubt("the physical volume has no UUID"))?;
    // LVM keeps the old text until the new one is written, and both begin with a sector.
    let area_len = physical.data_offset.saturating_sub(AREA_AT);
    let most = (area_len.saturating_sub(AREA_HEADER_LEN) / 2).saturating_sub(SECTOR);
    if text.len() as u64 > most {
        return Err(doubt(
            "its metadata have no room in front of its first extent, where they are put",
        ));
    }
    let area = usize::try_from(AREA_AT).expect("4 KiB");
    let area_header_len = usize::try_from(AREA_HEADER_LEN).expect("512");
    let mut head = vec![0; area + area_header_len];

    let sector = usize::try_from(SECTOR).expect("512");
    let label = &mut head[sector..2 * sector];
    label[..8].copy_from_slice(b"LABELONE");
    label[8..16].copy_from_slice(&1_u64.to_le_bytes());
    label[HEADER_AT..][..4].copy_from_slice(&u32::from(HEADER).to_le_bytes());
    label[24..32].copy_from_slice(b"LVM2 001");
    let header = usize::from(HEADER);
    label[header..][..id.len()].copy_from_slice(&id);
    // Each list ends with a place of zeros: of the data, of the metadata, of the boot loader behind the extension.
    let lists = [physical.device_bytes, physical.data_offset, 0, 0, 0, AREA_AT, area_len, 0, 0];
    let at = header + LISTS_AT - 8;
    for (number, place) in lists.iter().zip(label[at..].chunks_exact_mut(8)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let at = at + 8 * lists.len();
    label[at..][..4].copy_from_slice(&EXTENSION_VERSION.to_le_bytes());
    label[at + 4..][..4].copy_from_slice(&IN_USE.to_le_bytes());
    let sum = lvm_crc(&label[HEADER_AT..]);
    label[16..20].copy_from_slice(&sum.to_le_bytes());

    let header = &mut head[area..];
    header[4..20].copy_from_slice(AREA_MAGIC);
    header[20..24].copy_from_slice(&AREA_VERSION.to_le_bytes());
    let places = [(24, AREA_AT), (32, area_len), (TEXTS_AT, AREA_HEADER_LEN)];
    for (at, number) in places.into_iter().chain([(TEXTS_AT + 8, text.len() as u64)]) {
        header[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    header[TEXTS_AT + 16..][..4].copy_from_slice(&lvm_crc(text).to_le_bytes());
    let sum = lvm_crc(&header[4..]);
    header[..4].copy_from_slice(&sum.to_le_bytes());
    head.extend_from_slice(text);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::label;
    use super::*;
    use crate::probe;

    const ID: &str = "b3qKA0-0wQO-e69G-rGCH-7so6-yeqd-WHcUOF";
    const LEN: u64 = 2_000_000;

    /// As vgcfgbackup writes it, cut short.
    fn text() -> String {
        format!(
            "# made by LVM\ncontents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"vgcfgbackup \\\"x\\\"\"\n\
             vg-1 {{\nid = \"Dc7tlJ-4JTp-Z8rm-eflv-0ZJ7-dlD1-zGVk2y\"\nseqno = 5\nstatus = [\"READ\", \"WRITE\"]\nflags = []\n\
             extent_size = 8\nmax_lv = 0\nmax_pv = 0\nphysical_volumes {{\npv0 {{\nid = \"{ID}\"\nstatus = [\"ALLOCATABLE\"]\n\
             dev_size = 3900\npe_start = 384\npe_count = 100\n}}\n}}\nlogical_volumes {{\nro-ot {{\n\
             id = \"87kxJt-pmJ5-46Cg-wm8h-UTRk-XRxc-98uUj0\"\nstatus = [\"READ\", \"VISIBLE\"]\nsegment_count = 1\n\
             segment1 {{\nstart_extent = 0\nextent_count = 10\ntype = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 5]\n}}\n}}\n}}\n}}\n"
        )
    }

    fn parse(text: &[u8], id: &str) -> Result<Backup, String> {
        Backup::parse(text, &[Place { id, start: 0, len: LEN }])
    }

    #[test]
    fn a_group_on_two_physical_volumes_is_put_on_both() {
        const OTHER: &str = "soJsMC-6Kfa-2nvR-S0mV-Spm0-Oh0I-QLUoFq";
        let second = format!(
            "pv1 {{\nid = \"{OTHER}\"\nstatus = [\"ALLOCATABLE\"]\ndev_size = 3000\npe_start = 768\npe_count = 50\n}}\n}}\nlogical_volumes"
        );
        let more = "segment2 {\nstart_extent = 10\nextent_count = 4\ntype = \"striped\"\nstripe_count = 1\nstripes = [\"pv1\", 5]\n}\n}\n}\n}\n";
        let text = text()
            .replace("}\nlogical_volumes", &second)
            .replace("segment_count = 1", "segment_count = 2")
            .replace("}\n}\n}\n}\n", &format!("}}\n{more}"));
        let places = [
            Place { id: OTHER, start: 5 << 20, len: 3000 * 512 },
            Place { id: ID, start: 1 << 20, len: LEN },
        ];
        let backup = Backup::parse(text.as_bytes(), &places).unwrap();
        let place = |start: u64, first: u64, many: u64| Extent {
            start: start + first * 4096,
            len: many * 4096,
        };
        let begins = [(5 << 20) + 768 * 512, (1 << 20) + 384 * 512];
        assert_eq!(backup.volumes[0].pieces, [place(begins[1], 5, 10), place(begins[0], 5, 4)]);
        for (made, begin) in backup.physical.iter().zip(begins) {
            assert_eq!(made.extents.start, begin);
        }
        assert!(backup.physical[0].head[544..].starts_with(b"soJsMC6Kfa2nvR"));
        assert!(backup.physical[1].head[544..].starts_with(b"b3qKA00wQOe69G"));
        assert!(backup.physical[0].head[4608..] == backup.physical[1].head[4608..]);
        let only = |places: &[Place<'_>]| Backup::parse(text.as_bytes(), places).unwrap_err();
        assert!(only(&places[..1]).contains("several physical volumes"));
        assert!(only(&[places[0], places[0]]).contains("two physical volumes of one name"));
        let third = Place { id: "x", ..places[0] };
        assert!(only(&[places[0], places[1], third]).contains("not of this physical volume"));
        let twice = text.replace("pv1 {", "pv0 {");
        assert!(Backup::parse(twice.as_bytes(), &places).unwrap_err().contains("of one name"));
    }

    #[test]
    fn what_is_made_anew_is_found_and_read() {
        let backup = parse(text().as_bytes(), ID).unwrap();
        let [Made { head: mut bytes, extents }] =
            <[Made; 1]>::try_from(backup.physical).expect("there is one");
        assert_eq!((backup.group.as_str(), extents.start), ("vg-1", 384 * 512));
        assert!(bytes[4096 + 512..].starts_with(b"vg-1 {\n") && bytes.ends_with(&[0]));
        bytes.resize(usize::try_from(LEN).unwrap(), 0);
        let mut src = Cursor::new(bytes);
        let (found, place) = probe::covering(&mut src, LEN).unwrap().unwrap();
        assert_eq!((found.uuid.as_deref(), place.start), (Some(ID), 512));
        let header = label::read(&mut src, LEN, place.start).unwrap();
        let group = Group::parse(&header.text, Some(ID), header.data_offset, LEN).unwrap();
        assert_eq!((group.name.as_str(), group.physical[0].device_bytes), ("vg-1", 3900 * 512));
        assert_eq!(group.volumes[0].pieces, backup.volumes[0].pieces);
        let root = text::parse(&header.text).unwrap();
        assert_eq!(root.text("description"), Some("vgcfgbackup \"x\""));
    }

    #[test]
    fn whatever_is_taken_is_read_as_it_was_written() {
        let whole = text().into_bytes();
        let mut taken = 0;
        for at in 0..whole.len() {
            for byte in [whole[at] ^ 1, whole[at] ^ 0x10, b'9', b'\"', b'}', b' ', 0] {
                let mut text = whole.clone();
                text[at] = byte;
                let Ok(mut backup) = parse(&text, ID) else { continue };
                taken += 1;
                let mut src = Cursor::new(backup.physical.remove(0).head);
                src.get_mut().resize(usize::try_from(LEN).unwrap(), 0);
                let header = label::read(&mut src, LEN, 512).unwrap();
                let group = Group::parse(&header.text, Some(ID), header.data_offset, LEN).unwrap();
                assert_eq!(group.name, backup.group);
                for (a, b) in group.volumes.iter().zip(&backup.volumes) {
                    assert_eq!((&a.name, &a.pieces), (&b.name, &b.pieces));
                }
            }
        }
        assert!(taken > 500, "{taken}");
    }

    #[test]
    fn what_lvm_would_not_take_is_refused() {
        let root_id = "87kxJt-pmJ5-46Cg-wm8h-UTRk-XRxc-98uUj0";
        let long = format!("{} {{", "v".repeat(128));
        let many = format!("tags = [{}\"x\"]\nseqno", "\"x\",".repeat(23_400));
        let cases = [
            ("segment1 {", "segment1 {{", "cut off"),
            ("}\n}\n}\n}\n", "}\n}\n}\n", "cut off"),
            ("seqno = 5", "seqno = 5000000000", "no seqno"),
            ("max_lv = 0\n", "", "no max_lv"),
            (root_id, "87kxJt-pmJ5", "\"ro-ot\" has no UUID"),
            (root_id, ID, "\"ro-ot\" has the UUID of something else"),
            ("Dc7tlJ-4J", "Dc7tlJ_4J", "volume group has no UUID"),
            ("vg-1 {", "-vg {", "a name"),
            ("vg-1 {", long.as_str(), "a name"),
            ("ro-ot {", ".. {", "cannot be"),
            ("ro-ot {", "status = [\"READ\"]\nro-ot {", "logical_volumes has something"),
            ("\"VISIBLE\"]", "\"VISIBLE\"]\ncreation_host = \"x\"", "no time"),
            ("\"VISIBLE\"]", "\"VISIBLE\", \"FIXED_MINOR\"]", "no fixed number"),
            ("pe_start = 384", "pe_start = 384\nba_size = 8", "boot loader"),
            ("pe_start = 384", "pe_start = 8", "no room"),
            ("seqno", many.as_str(), "no room"),
            ("pe_count = 100", "pe_count = 0", "segment 1 is broken"),
            (ID, "b3qKA0-0wQO-e69G-rGCH-7so6-yeqd-WHcUO0", "not of this physical volume"),
        ];
        for (from, to, reason) in cases {
            assert!(text().contains(from), "{from}");
            let failed = parse(text().replacen(from, to, 1).as_bytes(), ID);
            let failed = failed.unwrap_err();
            assert!(failed.contains(reason), "{to}: {failed}");
        }
        // An identity that is none is found in no text that LVM takes.
        let odd = "b3qKA0-0wQO-e69G-rGCH-7so6-yeqd-WHcUO_";
        assert!(parse(text().replace(ID, odd).as_bytes(), odd).is_err());
    }
}
