//! What an image of a disk with bad sectors lacks, for people: by volume, with the LBAs.
//!
//! Such an image is *damaged*: what could not be read is zero in it. Everything that shows an image says so with these lines, and
//! a restore of it is refused unless that was accepted.

use std::fmt::Write;

use image_format::{BadSectors, Manifest, Volume};

/// How many areas of a volume are listed.
const LISTED: usize = 8;

/// One line for each volume, and for the space outside of them, that has bad sectors. Empty: the image is whole.
#[must_use]
pub fn describe(manifest: &Manifest) -> Vec<String> {
    let bad = &manifest.bad_sectors;
    let mut lines: Vec<String> = manifest
        .volumes
        .iter()
        .filter_map(|volume| line(&name(volume), bad.iter().filter(|b| is_in(b, volume)), manifest))
        .collect();
    let outside = bad.iter().filter(|b| !manifest.volumes.iter().any(|volume| is_in(b, volume)));
    lines.extend(line("outside of partitions", outside, manifest));
    lines
}

/// How many bytes could not be read.
#[must_use]
pub fn bytes(manifest: &Manifest) -> u64 {
    manifest.bad_sectors.iter().fold(0, |sum, bad| sum.saturating_add(bad.len_bytes))
}

/// `partition 2 (ext4 'root')`.
fn name(volume: &Volume) -> String {
    let mut text = volume.number.map_or_else(|| "the disk".into(), |n| format!("partition {n}"));
    let label = volume.fs_label.as_deref().map(|l| format!(" '{}'", l.escape_debug()));
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        " ({}{})",
        volume.filesystem.as_deref().unwrap_or("unknown"),
        label.unwrap_or_default()
    );
    text
}

/// Whether they share a byte. The numbers are an image's, and may be any.
fn is_in(bad: &BadSectors, volume: &Volume) -> bool {
    bad.start_bytes < volume.start_bytes.saturating_add(volume.len_bytes)
        && volume.start_bytes < bad.start_bytes.saturating_add(bad.len_bytes)
}

fn line<'a>(
    place: &str,
    areas: impl Iterator<Item = &'a BadSectors>,
    manifest: &Manifest,
) -> Option<String> {
    let sector = u64::from(manifest.disk.logical_sector_bytes.max(1));
    let (mut sectors, mut count, mut list) = (0_u64, 0_usize, String::new());
    for area in areas {
        let len = area.len_bytes.div_ceil(sector).max(1);
        let first = area.start_bytes / sector;
        if count < LISTED {
            let separator = if count == 0 { "" } else { ", " };
            // As above.
            let _ = match len {
                1 => write!(list, "{separator}{first}"),
                _ => write!(list, "{separator}{first}-{}", first.saturating_add(len - 1)),
            };
        }
        sectors = sectors.saturating_add(len);
        count += 1;
    }
    if count == 0 {
        return None;
    }
    let more =
        if count > LISTED { format!(" and {} more areas", count - LISTED) } else { String::new() };
    let plural = if sectors == 1 { "" } else { "s" };
    Some(format!("{place}: {sectors} sector{plural} could not be read, LBA {list}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(bad: &[(u64, u64)]) -> Manifest {
        let text = r#"{
            "format_version": 1, "image_id": "00000000-0000-0000-0000-000000000001", "created": "", "producer": "p",
            "span_len": 4096, "compression": {"method": "zstd", "level": 3},
            "disk": {"size_bytes": 1000000, "logical_sector_bytes": 512}, "table": {"kind": "gpt"},
            "volumes": [
                {"number": 1, "start_bytes": 51200, "len_bytes": 51200, "used_bytes": 1, "taken": "map"},
                {"number": 2, "start_bytes": 102400, "len_bytes": 18446744073709551615, "used_bytes": 1, "taken": "map",
                 "filesystem": "ext4", "fs_label": "a\u001bb"}
            ]
        }"#;
        let mut manifest: Manifest = serde_json::from_str(text).unwrap();
        manifest.bad_sectors = bad
            .iter()
            .map(|(start_bytes, len_bytes)| BadSectors {
                start_bytes: *start_bytes,
                len_bytes: *len_bytes,
            })
            .collect();
        manifest
    }

    #[test]
    fn each_volume_has_its_line() {
        assert_eq!(describe(&manifest(&[])), Vec::<String>::new());
        let bad = [(512, 512), (51200, 1024), (60_416, 512), (204_800, 512)];
        assert_eq!(
            describe(&manifest(&bad)),
            [
                "partition 1 (unknown): 3 sectors could not be read, LBA 100-101, 118",
                "partition 2 (ext4 'a\\u{1b}b'): 1 sector could not be read, LBA 400",
                "outside of partitions: 1 sector could not be read, LBA 1",
            ]
        );
        assert_eq!(bytes(&manifest(&bad)), 2560);
    }

    #[test]
    fn long_lists_and_numbers_that_cannot_be_are_cut() {
        let bad: Vec<(u64, u64)> = (0..20).map(|n| (n * 1024, 512)).collect();
        let lines = describe(&manifest(&bad));
        assert!(lines[0].ends_with("LBA 0, 2, 4, 6, 8, 10, 12, 14 and 12 more areas"), "{lines:?}");
        let lines = describe(&manifest(&[(u64::MAX, u64::MAX), (u64::MAX - 1, 0)]));
        assert_eq!(lines.len(), 2);
        assert_eq!(bytes(&manifest(&[(0, u64::MAX), (0, u64::MAX)])), u64::MAX);
    }
}
