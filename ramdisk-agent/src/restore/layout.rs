//! Where the partitions of an image lie on the target: as captured, with one of them grown, or with less swap.
//!
//! Pure: tables, sizes and what the volumes hold go in; places come out, or a refusal that names what is missing. Partitions keep
//! their numbers and their order. One that grows takes the space behind it, and those behind it go to the end. Where the target is
//! too small, swap gives way, down to [`MIN_SWAP`], so that whoever names it in `fstab` still finds it; nothing else is made smaller.

use std::ops::Range;

use agent_api::Grow;

use crate::error::{Error, Result};
use crate::restore::gaps::{self, LeftOut};
use crate::restore::placement::Segment;
use crate::table::{Partition, Slot, Table};
use crate::words::size;

/// Partitions begin and end at multiples of this where they may.
pub const ALIGNMENT: u64 = 1 << 20;
/// What is left of a swap partition at least.
const MIN_SWAP: u64 = 1 << 20;

/// A partition of the image, and how it may be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Movable {
    pub slot: Slot,
    /// So much in front of it moves with it: the table of a logical partition.
    pub front_bytes: u64,
    pub holds: Holds,
}

/// What matters of a partition's content to its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Swap that is not in use, so that its header is all there is to it.
    Swap,
    /// Swap that something is in, such as a hibernated system.
    SwapInUse,
    Other,
}

impl Movable {
    /// Whether it may become smaller, or another one with a new header.
    pub fn is_free_swap(&self) -> bool {
        self.holds == Holds::Swap
    }

    fn first(&self) -> u64 {
        self.slot.start_bytes - self.front_bytes
    }
}

/// The partitions of a table in the order of the disk.
pub fn movables(
    table: &Table,
    mut holds: impl FnMut(&Partition) -> Result<Holds>,
) -> Result<Vec<Movable>> {
    let movable = |partition: &Partition| {
        let slot = Slot {
            number: partition.number,
            start_bytes: partition.start_bytes,
            len_bytes: partition.len_bytes,
        };
        let front_bytes = table.front_bytes(partition);
        Ok(Movable { slot, front_bytes, holds: holds(partition)? })
    };
    table.partitions.iter().map(movable).collect()
}

/// Which partition is to grow. `last` is the last one that holds something else than swap.
pub fn chosen(partitions: &[Movable], grow: Grow) -> Result<usize> {
    let found = match grow {
        Grow::Last => {
            let is_system = |p: &Movable| p.holds == Holds::Other;
            partitions.iter().rposition(is_system).or_else(|| partitions.len().checked_sub(1))
        }
        Grow::Partition(number) => partitions.iter().position(|p| p.slot.number == number),
    };
    found.ok_or_else(|| {
        let numbers: Vec<_> = partitions.iter().map(|p| p.slot.number.to_string()).collect();
        let there = match numbers.as_slice() {
            [] => "the image has no partitions".to_owned(),
            _ => format!("the image's partitions are {}", numbers.join(", ")),
        };
        Error::refused(format!("there is no partition to grow: {there}; nothing was written"))
    })
}

/// Where the last one ends.
pub fn end_of(partitions: &[Movable]) -> u64 {
    partitions.iter().map(|p| p.slot.end_bytes()).max().unwrap_or(0)
}

/// The places on a target whose space for partitions ends at `room_end`, in the order of `partitions`.
pub fn places(partitions: &[Movable], room_end: u64, grow: Option<usize>) -> Result<Vec<Slot>> {
    let mut places: Vec<Movable> = partitions.to_vec();
    let end = end_of(&places);
    if end > room_end {
        give_way(&mut places, end - room_end)?;
    } else if let Some(index) = grow {
        grow_into_rest(&mut places, room_end, index);
    }
    Ok(places.into_iter().map(|p| p.slot).collect())
}

fn give_way(places: &mut [Movable], missing: u64) -> Result<()> {
    let mut left = missing;
    for index in
        (0..places.len()).rev().filter(|index| places[*index].is_free_swap()).collect::<Vec<_>>()
    {
        let to_give = places[index].slot.len_bytes.saturating_sub(MIN_SWAP);
        let given = left.next_multiple_of(ALIGNMENT).min(to_give / ALIGNMENT * ALIGNMENT);
        places[index].slot.len_bytes -= given;
        for behind in &mut places[index + 1..] {
            behind.slot.start_bytes -= given;
        }
        left = left.saturating_sub(given);
        if left == 0 {
            return Ok(());
        }
    }
    let tried = if left < missing { " even with the least of swap" } else { "" };
    Err(Error::refused(format!(
        "the image's partitions do not fit the target{tried}: {left} bytes are missing; shrink the last partition of the \
         template, or take a larger disk; nothing was written"
    )))
}

fn grow_into_rest(places: &mut [Movable], room_end: u64, index: usize) {
    let end = end_of(places);
    // Those behind it move by whole alignments, so that they stay as well aligned as they were.
    let by = (room_end - end) / ALIGNMENT * ALIGNMENT;
    for behind in &mut places[index + 1..] {
        behind.slot.start_bytes += by;
    }
    let limit = places.get(index + 1).map_or(room_end, Movable::first);
    let slot = &mut places[index].slot;
    let aligned = limit / ALIGNMENT * ALIGNMENT;
    slot.len_bytes = slot.len_bytes.max(aligned.saturating_sub(slot.start_bytes));
}

/// Which bytes of the image go where, and what of it has no place any more. Partitions' contents go with them; a partition in
/// `made_anew` is not taken at all. What lies outside of partitions stays where it was, as [`gaps`] says.
pub fn segments(
    partitions: &[Movable],
    places: &[Slot],
    made_anew: &[u32],
    image_bytes: u64,
    target_bytes: u64,
) -> (Vec<Segment>, Vec<LeftOut>) {
    let whole = |image: Range<u64>| Segment { target: image.start, image };
    let changed = partitions.iter().zip(places).position(|(p, place)| p.slot != *place);
    let Some(changed) = changed else {
        let behind = gaps::divide(partitions, places, target_bytes..image_bytes, target_bytes);
        return (vec![whole(0..image_bytes.min(target_bytes))], behind.1);
    };
    let first = partitions[changed].first();
    let mut segments = vec![whole(0..first)];
    segments.extend(contents(&partitions[changed..], &places[changed..], made_anew));
    let (kept, left_out) = gaps::divide(partitions, places, first..image_bytes, target_bytes);
    segments.extend(kept);
    (segments, left_out)
}

/// Which bytes of the image go where without anything outside of partitions.
pub fn contents(partitions: &[Movable], places: &[Slot], made_anew: &[u32]) -> Vec<Segment> {
    let taken = partitions.iter().zip(places).filter(|(p, _)| !made_anew.contains(&p.slot.number));
    taken
        .map(|(partition, place)| {
            let Slot { start_bytes, len_bytes, .. } = partition.slot;
            let image = start_bytes..start_bytes + len_bytes.min(place.len_bytes);
            Segment { image, target: place.start_bytes }
        })
        .collect()
}

/// What is not as in the image, for people.
pub fn notes(partitions: &[Movable], places: &[Slot]) -> Vec<String> {
    let note = |(partition, place): (&Movable, &Slot)| {
        let Slot { number, start_bytes, len_bytes } = partition.slot;
        let mut changes = Vec::new();
        if place.len_bytes != len_bytes {
            let how = if place.len_bytes > len_bytes { "grows" } else { "shrinks" };
            changes.push(format!("{how} from {} to {}", size(len_bytes), size(place.len_bytes)));
        }
        if place.start_bytes != start_bytes {
            changes.push(format!("moves from byte {start_bytes} to {}", place.start_bytes));
        }
        (!changes.is_empty()).then(|| format!("partition {number} {}", changes.join(" and ")))
    };
    partitions.iter().zip(places).filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Start, length and front in MiB; a length below 10 is swap.
    fn disk(list: &[(u64, u64, u64)]) -> Vec<Movable> {
        let movable = |((start, len, front), number): (&(u64, u64, u64), u32)| Movable {
            slot: Slot { number, start_bytes: start * MIB, len_bytes: len * MIB },
            front_bytes: front * MIB,
            holds: if *len < 10 { Holds::Swap } else { Holds::Other },
        };
        list.iter().zip(1..).map(movable).collect()
    }

    fn mib(places: &[Slot]) -> Vec<(u64, u64)> {
        places.iter().map(|p| (p.start_bytes / MIB, p.len_bytes / MIB)).collect()
    }

    #[test]
    fn the_last_one_grows_to_the_end_and_swap_stays_behind_it() {
        let plain = disk(&[(1, 10, 0), (11, 20, 0)]);
        assert_eq!(chosen(&plain, Grow::Last).unwrap(), 1);
        let grown = places(&plain, 100 * MIB + 5000, Some(1)).unwrap();
        assert_eq!(mib(&grown), [(1, 10), (11, 89)]);
        assert_eq!(grown[1].end_bytes(), 100 * MIB);

        let swap = disk(&[(1, 10, 0), (11, 20, 0), (31, 4, 0)]);
        assert_eq!(chosen(&swap, Grow::Last).unwrap(), 1);
        let grown = places(&swap, 100 * MIB + 5000, Some(1)).unwrap();
        assert_eq!(mib(&grown), [(1, 10), (11, 85), (96, 4)]);
        let (segments, left_out) = segments(&swap, &grown, &[], 40 * MIB, 101 * MIB);
        let part = |image: Range<u64>, target: u64| Segment {
            image: image.start * MIB..image.end * MIB,
            target: target * MIB,
        };
        assert_eq!(segments, [part(0..11, 0), part(11..31, 11), part(31..35, 96)]);
        assert_eq!(left_out, [LeftOut { image: 35 * MIB..40 * MIB, covered_by: Some(2) }]);
        let notes = notes(&swap, &grown);
        assert_eq!(notes.len(), 2);
        assert!(notes[1].starts_with("partition 3 moves"), "{notes:?}");
    }

    #[test]
    fn swap_that_is_in_use_is_not_the_last_one_and_does_not_give_way() {
        let mut swap = disk(&[(1, 10, 0), (11, 20, 0), (31, 4, 0)]);
        swap[2].holds = Holds::SwapInUse;
        assert_eq!(chosen(&swap, Grow::Last).unwrap(), 1);
        assert_eq!(chosen(&swap, Grow::Partition(3)).unwrap(), 2);
        assert_eq!(chosen(&swap[2..], Grow::Last).unwrap(), 0);
        assert!(places(&swap, 34 * MIB, None).is_err());
    }

    #[test]
    fn a_logical_partition_takes_its_table_along() {
        let logical = disk(&[(1, 10, 0), (13, 20, 2), (34, 4, 1)]);
        let grown = places(&logical, 100 * MIB, Some(0)).unwrap();
        assert_eq!(mib(&grown), [(1, 72), (75, 20), (96, 4)]);
    }

    #[test]
    fn nothing_grows_where_there_is_no_room() {
        let odd = [Movable {
            slot: Slot { number: 1, start_bytes: 63 * 512, len_bytes: 20 * MIB + 512 },
            front_bytes: 0,
            holds: Holds::Other,
        }];
        for room in [20 * MIB + 64 * 512, 20 * MIB + 64 * 512 + 4096] {
            assert_eq!(places(&odd, room, Some(0)).unwrap(), [odd[0].slot]);
        }
        let (whole, left_out) = segments(&odd, &[odd[0].slot], &[], 40 * MIB, 90 * MIB);
        assert_eq!(whole, [Segment { image: 0..40 * MIB, target: 0 }]);
        assert_eq!(left_out, []);
        let (cut, left_out) = segments(&odd, &[odd[0].slot], &[], 40 * MIB, 30 * MIB);
        assert_eq!(cut, [Segment { image: 0..30 * MIB, target: 0 }]);
        assert_eq!(left_out, [LeftOut { image: 30 * MIB..40 * MIB, covered_by: None }]);
    }

    #[test]
    fn swap_gives_way_and_nothing_else() {
        let swap = disk(&[(1, 10, 0), (11, 9, 0), (20, 20, 0), (40, 8, 0)]);
        assert_eq!(
            mib(&places(&swap, 45 * MIB - 1, None).unwrap()),
            [(1, 10), (11, 9), (20, 20), (40, 4)]
        );
        // The last one as far as it may, then the other; what lies behind that one moves.
        assert_eq!(
            mib(&places(&swap, 38 * MIB, Some(2)).unwrap()),
            [(1, 10), (11, 6), (17, 20), (37, 1)]
        );
        let error = places(&swap, 33 * MIB - 7, None).unwrap_err().to_string();
        assert!(error.contains("least of swap: 7 bytes are missing"), "{error}");
        let error = places(&disk(&[(1, 10, 0)]), 10 * MIB, None).unwrap_err().to_string();
        assert!(error.contains("target: 1048576 bytes are missing"), "{error}");
        let error = chosen(&swap, Grow::Partition(9)).unwrap_err().to_string();
        assert!(error.contains("1, 2, 3, 4"), "{error}");
    }

    proptest! {
        #[test]
        fn places_keep_order_and_fit(
            list in proptest::collection::vec((1..40_u64, 0..3_u64, 0..3_u64), 1..7),
            room in 0..300_u64,
            grow in proptest::option::of(0..7_usize),
        ) {
            let mut at = 1;
            let list: Vec<_> = list.into_iter().map(|(len, front, gap)| {
                let start = at + front;
                at = start + len + gap;
                (start, len, front)
            }).collect();
            let partitions = disk(&list);
            let grow = grow.map(|index| index % partitions.len());
            let Ok(places) = places(&partitions, room * MIB, grow) else { return Ok(()) };
            let mut end = 0;
            for (partition, place) in partitions.iter().zip(&places) {
                prop_assert!(place.start_bytes - partition.front_bytes >= end);
                prop_assert!(partition.is_free_swap() || place.len_bytes >= partition.slot.len_bytes);
                prop_assert!(place.len_bytes >= MIN_SWAP);
                end = place.end_bytes();
            }
            prop_assert!(end <= room * MIB);
            let (mut taken, left_out) = segments(&partitions, &places, &[], 400 * MIB, room * MIB);
            taken.sort_by_key(|segment| segment.target);
            prop_assert!(taken.windows(2).all(|w| w[0].on_target().end <= w[1].target));
            prop_assert!(taken.iter().all(|segment| segment.on_target().end <= room * MIB));
            // Every byte of the image is taken along once, or left out once, but for the rest of swap that gave way.
            let mut all: Vec<_> = taken.iter().map(|segment| segment.image.clone()).collect();
            all.extend(left_out.iter().map(|left| left.image.clone()));
            all.sort_by_key(|range| range.start);
            prop_assert!(all.windows(2).all(|w| w[0].end <= w[1].start));
            let given: u64 = partitions
                .iter()
                .zip(&places)
                .map(|(p, place)| p.slot.len_bytes.saturating_sub(place.len_bytes))
                .sum();
            let total: u64 = all.iter().map(|range| range.end - range.start).sum();
            prop_assert_eq!(total + given, 400 * MIB);
            // Of what lies outside of partitions nothing has moved.
            let is_outside = |at: u64| {
                !partitions.iter().any(|p| (p.slot.start_bytes..p.slot.end_bytes()).contains(&at))
            };
            let moved = taken.iter().filter(|s| s.target != s.image.start);
            prop_assert!(moved.into_iter().all(|s| !is_outside(s.image.start)));
        }
    }
}
