//! A volume group, as far as it is nothing but linear volumes on physical volumes whose places are known.

use std::collections::BTreeMap;

use super::text::{self, Section, Value};
use crate::extents::{Extent, Extents};
use crate::fs::failure::{Failure, doubt};

const SECTOR: u64 = 512;
/// Flags that do not change where a volume's bytes are (`lib/format_text/flags.c`). `WRITE_LOCKED` stands for `WRITE` in a group with
/// a system id, so that old programs keep their hands off.
const GROUP_FLAGS: &[&str] = &["RESIZEABLE", "READ", "WRITE", "WRITE_LOCKED", "NOAUTOACTIVATE"];
const PHYSICAL_FLAGS: &[&str] = &["ALLOCATABLE"];
const LOGICAL_FLAGS: &[&str] = &[
    "READ",
    "WRITE",
    "WRITE_LOCKED",
    "VISIBLE",
    "FIXED_MINOR",
    "ACTIVATION_SKIP",
    "NOAUTOACTIVATE",
];
/// A linear volume is one with a single stripe.
const LINEAR: [&str; 2] = ["striped", "linear"];

/// Where a physical volume is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its UUID as LVM shows it.
    pub id: &'a str,
    pub start: u64,
    pub len: u64,
}

/// What was found in the text, checked.
#[derive(Debug)]
pub struct Group {
    pub name: String,
    /// In the order of their places.
    pub physical: Vec<Physical>,
    pub volumes: Vec<Volume>,
    extent_bytes: u64,
}

/// A physical volume.
#[derive(Debug)]
pub struct Physical {
    /// How many bytes of the device it knows of.
    pub device_bytes: u64,
    /// Where the first extent begins in it.
    pub data_offset: u64,
    /// Where its extents are.
    pub extents: Extent,
    extent_count: u64,
}

/// A logical volume.
#[derive(Debug)]
pub struct Volume {
    pub name: String,
    /// Where its bytes are, in order.
    pub pieces: Vec<Extent>,
}

impl Group {
    /// Parses the text of the physical volume `id`, whose header says where its extents begin.
    pub fn parse(
        text: &[u8],
        id: Option<&str>,
        data_offset: u64,
        len_bytes: u64,
    ) -> Result<Self, Failure> {
        let root = text::parse(text).ok_or_else(|| doubt("its metadata is not LVM2's text"))?;
        // A place without a UUID is that of no group.
        let place = Place { id: id.unwrap_or_default(), start: 0, len: len_bytes };
        let group = Self::of(&root, &[place])?;
        if group.physical[0].data_offset != data_offset {
            return Err(contradiction());
        }
        Ok(group)
    }

    /// What the text says of a group that is on these physical volumes.
    pub fn of(root: &Section, places: &[Place<'_>]) -> Result<Self, Failure> {
        if root.text("contents") != Some("Text Format Volume Group")
            || root.number("version") != Some(1)
        {
            return Err(doubt("its metadata is not of version 1"));
        }
        let mut sections = root.sections();
        let (Some((name, group)), None) = (sections.next(), sections.next()) else {
            return Err(doubt("its metadata has not one volume group"));
        };
        let known = ["physical_volumes", "logical_volumes", "historical_logical_volumes"];
        if let Some((other, _)) = group.sections().find(|(name, _)| !known.contains(name)) {
            return Err(doubt(format!("the volume group has {other:?}, which is not known")));
        }
        check_flags(group, GROUP_FLAGS, "the volume group")?;
        let lock = group.text("lock_type").unwrap_or("none");
        if lock != "none" || group.text("format").unwrap_or("lvm2") != "lvm2" {
            return Err(doubt("the volume group is shared, or of another format"));
        }
        let list = group.section("physical_volumes").into_iter().flat_map(Section::sections);
        let list: Vec<(&str, &Section)> = list.collect();
        match list.len() {
            0 => return Err(doubt("the volume group has no physical volume")),
            many if many > places.len() => {
                return Err(doubt(match places {
                    [_] => "the volume group has several physical volumes",
                    _ => "the volume group has other physical volumes, too",
                }));
            }
            _ => {}
        }
        let extent_bytes = bytes_of(group, "extent_size").unwrap_or(0);
        let mut parsed =
            Self { name: name.to_owned(), physical: Vec::new(), volumes: Vec::new(), extent_bytes };
        let mut names = BTreeMap::new();
        for (number, place) in places.iter().enumerate() {
            let of_place = |(_, pv): &&(&str, &Section)| pv.text("id") == Some(place.id);
            let found = list.iter().find(of_place).filter(|_| !place.id.is_empty());
            let Some((name, pv)) = found else {
                return Err(doubt("the volume group is not of this physical volume"));
            };
            if names.insert(*name, number).is_some() {
                return Err(doubt("the volume group has two physical volumes of one name"));
            }
            parsed.physical.push(physical(pv, place, extent_bytes)?);
        }
        parsed.add_volumes(group, &names)?;
        Ok(parsed)
    }

    /// Where all extents are.
    pub fn extents(&self) -> Extents {
        let mut extents = Extents::new();
        for physical in &self.physical {
            extents.insert(physical.extents.start, physical.extents.len);
        }
        extents
    }

    fn add_volumes(
        &mut self,
        group: &Section,
        names: &BTreeMap<&str, usize>,
    ) -> Result<(), Failure> {
        if group.has("logical_volumes") && group.section("logical_volumes").is_none() {
            return Err(doubt("the volume group has two lists of logical volumes"));
        }
        let mut taken: Vec<Extent> = Vec::new();
        for (name, volume) in
            group.section("logical_volumes").into_iter().flat_map(Section::sections)
        {
            let pieces = self.pieces(volume, names).map_err(|failure| match failure {
                Failure::Doubt(reason) => doubt(format!("logical volume {name:?}: {reason}")),
                read => read,
            })?;
            taken.extend(&pieces);
            self.volumes.push(Volume { name: name.to_owned(), pieces });
        }
        taken.sort_unstable_by_key(|piece| piece.start);
        if taken.windows(2).any(|pair| pair[0].end() > pair[1].start) {
            return Err(doubt("two logical volumes share extents"));
        }
        Ok(())
    }

    /// Where a logical volume's bytes are, if it is a linear one.
    fn pieces(
        &self,
        volume: &Section,
        names: &BTreeMap<&str, usize>,
    ) -> Result<Vec<Extent>, Failure> {
        check_flags(volume, LOGICAL_FLAGS, "it")?;
        let visible = Value::Text("VISIBLE".into());
        if !volume.list("status").is_some_and(|flags| flags.contains(&visible)) {
            return Err(doubt("it is a hidden part of something"));
        }
        let count = volume.number("segment_count").unwrap_or(0);
        if count != volume.sections().count() as u64 || count == 0 {
            return Err(doubt("its segments are not all there"));
        }
        let all: u64 = self.physical.iter().map(|physical| physical.extent_count).sum();
        let mut pieces = Vec::new();
        let mut extents = 0_u64;
        // LVM writes them in order. To look each up by its name would take a volume of many segments minutes.
        for (number, (name, segment)) in (1_u64..).zip(volume.sections()) {
            let broken = || doubt(format!("segment {number} is broken"));
            if name.strip_prefix("segment").and_then(|n| n.parse().ok()) != Some(number) {
                return Err(broken());
            }
            let kind = segment.text("type").ok_or_else(broken)?;
            if !LINEAR.contains(&kind) {
                return Err(doubt(format!("it is of type {kind:?}, not linear")));
            }
            if segment.number("stripe_count") != Some(1) {
                return Err(doubt("it is striped"));
            }
            let Some([Value::Text(on), Value::Number(first)]) = segment.list("stripes") else {
                return Err(broken());
            };
            let first = u64::try_from(*first).map_err(|_| broken())?;
            let many =
                segment.number("extent_count").filter(|many| *many > 0).ok_or_else(broken)?;
            let end = first.checked_add(many);
            let on = names.get(on.as_str()).map(|number| &self.physical[*number]);
            let on = on.ok_or_else(broken)?;
            if segment.number("start_extent") != Some(extents)
                || end.is_none_or(|end| end > on.extent_count)
            {
                return Err(broken());
            }
            // No more than the extents of the device, whose bytes were counted.
            let start = on.extents.start + first * self.extent_bytes;
            pieces.push(Extent { start, len: many * self.extent_bytes });
            extents = extents.checked_add(many).filter(|n| *n <= all).ok_or_else(broken)?;
        }
        Ok(pieces)
    }
}

/// What the text says of the physical volume at a place.
fn physical(pv: &Section, place: &Place<'_>, extent_bytes: u64) -> Result<Physical, Failure> {
    check_flags(pv, PHYSICAL_FLAGS, "the physical volume")?;
    let data_offset = bytes_of(pv, "pe_start").ok_or_else(contradiction)?;
    let device_bytes = bytes_of(pv, "dev_size").unwrap_or(u64::MAX);
    let extent_count = pv.number("pe_count").unwrap_or(u64::MAX);
    // `pvresize` writes the size without what lies in front of the extents.
    let len = extent_bytes.checked_mul(extent_count).filter(|len| *len <= device_bytes);
    let end = len.and_then(|len| len.checked_add(data_offset));
    match (len, end.map(|end| end.max(device_bytes))) {
        (Some(len), Some(device_bytes)) if extent_bytes > 0 && device_bytes <= place.len => {
            let extents = Extent { start: place.start + data_offset, len };
            Ok(Physical { device_bytes, data_offset, extents, extent_count })
        }
        _ => Err(contradiction()),
    }
}

fn contradiction() -> Failure {
    doubt("the sizes of the physical volume contradict each other")
}

/// A number of sectors as bytes.
pub fn bytes_of(section: &Section, name: &str) -> Option<u64> {
    section.number(name)?.checked_mul(SECTOR)
}

/// Whether `status` and `flags` have nothing that is not known.
fn check_flags(section: &Section, known: &[&str], what: &str) -> Result<(), Failure> {
    for list in ["status", "flags"] {
        if list == "flags" && !section.has(list) {
            continue;
        }
        let Some(flags) = section.list(list) else {
            return Err(doubt(format!("{what} has no {list}")));
        };
        for flag in flags {
            match flag {
                Value::Text(flag) if known.contains(&flag.as_str()) => {}
                Value::Text(flag) => return Err(doubt(format!("{what} has the flag {flag:?}"))),
                _ => return Err(doubt(format!("{what} has a broken list {list:?}"))),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "b3qKA0-0wQO-e69G-rGCH-7so6-yeqd-WHcUOF";

    /// As lvcreate writes it, with comments left out.
    fn text() -> String {
        format!(
            "vg {{\nstatus = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\nextent_size = 8\nphysical_volumes {{\npv0 {{\n\
             id = \"{ID}\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = 1000\npe_start = 16\npe_count = 100\n}}\n}}\n\
             logical_volumes {{\nroot {{\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\nsegment_count = 2\n\
             segment1 {{\nstart_extent = 0\nextent_count = 10\ntype = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", 5\n]\n}}\n\
             segment2 {{\nstart_extent = 10\nextent_count = 6\ntype = \"striped\"\nstripe_count = 1\nstripes = [\n\"pv0\", 94\n]\n}}\n\
             }}\nhome {{\nstatus = [\"READ\", \"VISIBLE\"]\nsegment_count = 1\nsegment1 {{\nstart_extent = 0\nextent_count = 1\n\
             type = \"linear\"\nstripe_count = 1\nstripes = [\"pv0\", 0]\n}}\n}}\n}}\n}}\n\
             contents = \"Text Format Volume Group\"\nversion = 1\n\0"
        )
    }

    fn parse(text: &str) -> Result<Group, String> {
        Group::parse(text.as_bytes(), Some(ID), 16 * 512, 512_000).map_err(
            |failure| match failure {
                Failure::Doubt(reason) => reason,
                Failure::Read(error) => panic!("{error}"),
            },
        )
    }

    #[test]
    fn linear_volumes_are_where_the_text_says() {
        let group = parse(&text()).unwrap();
        assert_eq!((group.name.as_str(), group.physical[0].device_bytes), ("vg", 512_000));
        assert_eq!(group.extents(), Extents::single(8192, 409_600));
        let place = |first: u64, many: u64| Extent { start: 8192 + first * 4096, len: many * 4096 };
        assert_eq!(group.volumes[0].pieces, [place(5, 10), place(94, 6)]);
        assert_eq!(group.volumes[1].pieces, [place(0, 1)]);
    }

    #[test]
    fn everything_else_is_doubted() {
        let second = "pv1 {\nid = \"x\"\n}\n}\nlogical_volumes {";
        let cases = [
            ("\"RESIZEABLE\"", "\"EXPORTED\"", "EXPORTED"),
            ("\"ALLOCATABLE\"", "\"MISSING\"", "MISSING"),
            ("\"READ\", \"VISIBLE\"", "\"READ\", \"PVMOVE\"", "PVMOVE"),
            ("\"READ\", \"VISIBLE\"", "\"READ\"", "hidden"),
            ("flags = []\nextent_size", "flags = [\"NEW\"]\nextent_size", "NEW"),
            ("\"linear\"", "\"thin\"", "thin"),
            ("\"linear\"", "\"linear+NEW\"", "linear+NEW"),
            ("stripe_count = 1", "stripe_count = 2", "striped"),
            ("[\"pv0\", 0]", "[\"pv0\", 14]", "share extents"),
            ("[\"pv0\", 0]", "[\"pv0\", 100]", "segment 1 is broken"),
            ("[\"pv0\", 0]", "[\"pv1\", 0]", "segment 1 is broken"),
            ("[\"pv0\", 0]", "[\"pv0\", -1]", "segment 1 is broken"),
            ("start_extent = 10", "start_extent = 9", "segment 2 is broken"),
            ("segment_count = 2", "segment_count = 1", "not all there"),
            ("extent_count = 6", "extent_count = 9223372036854775807", "segment 2 is broken"),
            ("}\nlogical_volumes {", second, "several physical volumes"),
            ("WHcUOF", "WHcUO0", "not of this physical volume"),
            ("pe_start = 16", "pe_start = 17", "contradict"),
            ("dev_size = 1000", "dev_size = 1001", "contradict"),
            ("pe_count = 100", "pe_count = 9223372036854775807", "contradict"),
            ("extent_size = 8", "extent_size = 0", "contradict"),
            ("version = 1", "version = 2", "version 1"),
            ("logical_volumes {", "cache_pools {", "cache_pools"),
            ("extent_size = 8", "extent_size = 8\nlock_type = \"sanlock\"", "shared"),
        ];
        for (from, to, reason) in cases {
            assert!(text().contains(from), "{from}");
            let failed = parse(&text().replacen(from, to, 1)).unwrap_err();
            assert!(failed.contains(reason), "{to}: {failed}");
        }
    }
    #[test]
    fn a_volume_of_many_segments_takes_no_minutes() {
        const SEGMENTS: u64 = 30_000;
        let segment = |n: u64| {
            format!(
                "segment{} {{\nstart_extent = {n}\nextent_count = 1\ntype = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", {}]\n}}\n",
                n + 1,
                SEGMENTS - 1 - n
            )
        };
        let segments: String = (0..SEGMENTS).map(segment).collect();
        let volume = format!(
            "many {{\nstatus = [\"READ\", \"VISIBLE\"]\nsegment_count = {SEGMENTS}\n{segments}}}\n"
        );
        let (head, rest) =
            text().split_once("root {").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
        let (_, end) = rest.split_once("}\n}\n}\n}\n").unwrap();
        let text = format!("{head}{volume}}}\n}}\n{end}")
            .replace("dev_size = 1000", "dev_size = 1000000")
            .replace("pe_count = 100", "pe_count = 30000");
        let start = std::time::Instant::now();
        let group = Group::parse(text.as_bytes(), Some(ID), 16 * 512, 512_000_000).unwrap();
        assert_eq!(group.volumes[0].pieces.len() as u64, SEGMENTS);
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}
