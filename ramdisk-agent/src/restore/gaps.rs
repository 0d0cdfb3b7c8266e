//! What of an image lies outside of its partitions, where those get other places or sizes.
//!
//! It stays where it was on the disk: who put it there finds it by its sector, such as a boot loader, or by the disk's own layout, and
//! nothing says that it belongs to the partition before it or behind it. What a partition takes the place of, or what lies behind the
//! end of the target, is left out, and the plan says so if there is anything in it.

use std::ops::Range;

use super::layout::Movable;
use super::placement::Segment;
use super::ranges;
use crate::error::Result;
use crate::image::ImageDisk;
use crate::table::{Slot, Table};

/// A stretch of the image outside of partitions that has no place on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Bytes of the image's disk.
    pub image: Range<u64>,
    /// The partition that is there now; `None`: the target ends before it.
    pub covered_by: Option<u32>,
}

/// What of `stretch` belongs to no partition: what of it stays where it is, and what is left out.
pub fn divide(
    partitions: &[Movable],
    places: &[Slot],
    stretch: Range<u64>,
    target_bytes: u64,
) -> (Vec<Segment>, Vec<LeftOut>) {
    let mut own: Vec<Range<u64>> =
        partitions.iter().map(|p| p.slot.start_bytes..p.slot.end_bytes()).collect();
    own.sort_by_key(|range| range.start);
    let mut taken: Vec<(Range<u64>, u32)> = partitions
        .iter()
        .zip(places)
        .map(|(p, place)| (taken_by(p, place), place.number))
        .collect();
    taken.sort_by_key(|(range, _)| range.start);
    let places: Vec<Range<u64>> = taken.iter().map(|(range, _)| range.clone()).collect();
    let (mut kept, mut left_out) = (Vec::new(), Vec::new());
    for gap in ranges::gaps(&own, stretch) {
        let within = gap.start..gap.end.min(target_bytes);
        for (place, number) in &taken {
            let covered = ranges::common(&within, place);
            left_out.extend(covered.map(|image| LeftOut { image, covered_by: Some(*number) }));
        }
        let free = ranges::gaps(&places, within.clone()).into_iter();
        kept.extend(free.map(|image| Segment { target: image.start, image }));
        let behind = gap.start.max(within.end)..gap.end;
        if !behind.is_empty() {
            left_out.push(LeftOut { image: behind, covered_by: None });
        }
    }
    (kept, left_out)
}

/// What a partition needs on the target; one that moves has its table in front of it.
fn taken_by(partition: &Movable, place: &Slot) -> Range<u64> {
    let moves = partition.slot.start_bytes != place.start_bytes;
    let front = if moves { partition.front_bytes } else { 0 };
    place.start_bytes - front..place.end_bytes()
}

/// What is said of it, in sentences without a full stop. The sectors of the table are made anew, and are not lost.
pub fn notes(disk: &mut ImageDisk<'_>, table: &Table, left_out: &[LeftOut]) -> Result<Vec<String>> {
    let metadata: Vec<Range<u64>> =
        table.metadata.iter().map(|extent| extent.start..extent.end()).collect();
    let mut notes = Vec::new();
    for LeftOut { image, covered_by } in left_out {
        let mut found: Option<(u64, Range<u64>)> = None;
        for range in ranges::gaps(&metadata, image.clone()) {
            let Some((count, place)) = disk.not_zero(range)? else { continue };
            let (before, first) = found.map_or((0, place.start), |(n, range)| (n, range.start));
            found = Some((before + count, first..place.end));
        }
        let Some((count, place)) = found else { continue };
        let why = match covered_by {
            Some(number) => format!("partition {number} takes their place"),
            None => "the target ends before them".into(),
        };
        notes.push(format!(
            "{count} bytes other than zero that lie outside of partitions, from byte {} to {} of the image's disk, are not taken along: {why}",
            place.start, place.end
        ));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::layout::Holds;

    fn partition(number: u32, start_bytes: u64, len_bytes: u64, front_bytes: u64) -> Movable {
        let slot = Slot { number, start_bytes, len_bytes };
        Movable { slot, front_bytes, holds: Holds::Other }
    }

    fn place(number: u32, start_bytes: u64, len_bytes: u64) -> Slot {
        Slot { number, start_bytes, len_bytes }
    }

    fn kept(ranges: &[Range<u64>]) -> Vec<Segment> {
        ranges.iter().map(|r| Segment { image: r.clone(), target: r.start }).collect()
    }

    #[test]
    fn what_no_partition_covers_stays_where_it_was() {
        let partitions = [partition(1, 100, 100, 0), partition(2, 300, 100, 0)];
        // The first one grows to 250, the other goes to 600.
        let (stays, left_out) =
            divide(&partitions, &[place(1, 100, 150), place(2, 600, 100)], 100..450, 1000);
        assert_eq!(stays, kept(&[250..300, 400..450]));
        assert_eq!(left_out, [LeftOut { image: 200..250, covered_by: Some(1) }]);
    }

    #[test]
    fn what_the_target_has_no_room_for_is_left_out() {
        let partitions = [partition(1, 100, 100, 0), partition(2, 300, 100, 0)];
        let (stays, left_out) =
            divide(&partitions, &[place(1, 100, 50), place(2, 250, 100)], 100..450, 420);
        assert_eq!(stays, kept(&[200..250, 400..420]));
        assert_eq!(
            left_out,
            [
                LeftOut { image: 250..300, covered_by: Some(2) },
                LeftOut { image: 420..450, covered_by: None },
            ]
        );
    }

    #[test]
    fn the_table_of_a_logical_partition_that_moves_has_its_place_and_one_that_stays_leaves_its_gap()
    {
        let partitions = [partition(5, 120, 100, 20), partition(6, 240, 60, 20)];
        let (stays, left_out) =
            divide(&partitions, &[place(5, 120, 250), place(6, 400, 60)], 100..410, 1000);
        assert_eq!(stays, kept(&[100..120, 370..380]));
        assert_eq!(
            left_out,
            [
                LeftOut { image: 220..240, covered_by: Some(5) },
                LeftOut { image: 300..370, covered_by: Some(5) },
                LeftOut { image: 380..410, covered_by: Some(6) },
            ]
        );
    }
}
