//! Where the partitions of a layout lie on its target.

use agent_api::LayoutSize;

use crate::error::{Error, Result};
use crate::restore::layout::ALIGNMENT;
use crate::table::Slot;

/// Where the partitions lie: one behind the other from the first MiB on, each at a whole MiB. `least` is what each has to have.
pub(super) fn places(
    sizes: &[LayoutSize],
    least: &[u64],
    room_end: u64,
    sector: u64,
) -> Result<Vec<Slot>> {
    let missing = |text: String, bytes: u64| {
        Err(Error::refused(format!("{text}: {bytes} bytes are missing; nothing was written")))
    };
    let fixed = |size: &LayoutSize| match size {
        LayoutSize::Bytes(bytes) => *bytes,
        LayoutSize::Rest => 0,
    };
    let too_large =
        || Error::refused("the layout's sizes are larger than any disk; nothing was written");
    let mut taken = ALIGNMENT;
    for (index, size) in sizes.iter().enumerate() {
        let bytes = fixed(size);
        if !bytes.is_multiple_of(sector) {
            return Err(Error::refused(format!(
                "partition {} of the layout has {bytes} bytes, which are no whole sectors of {sector}; nothing was written",
                index + 1
            )));
        }
        if *size != LayoutSize::Rest && bytes < least[index] {
            let text = format!(
                "partition {} of the layout has {bytes} bytes, and needs {}",
                index + 1,
                least[index]
            );
            return missing(text, least[index] - bytes);
        }
        // The last one need not end at a whole MiB.
        let step = if index + 1 == sizes.len() { Some(bytes) } else { aligned(bytes) };
        taken = step.and_then(|step| taken.checked_add(step)).ok_or_else(too_large)?;
    }
    if taken > room_end {
        return missing("the layout's partitions do not fit the target".into(), taken - room_end);
    }
    let rest = (room_end - taken) / ALIGNMENT * ALIGNMENT;
    let mut at = ALIGNMENT;
    let mut slots = Vec::new();
    for ((size, least), number) in sizes.iter().zip(least).zip(1..) {
        let len_bytes = if *size == LayoutSize::Rest { rest } else { fixed(size) };
        if len_bytes < *least {
            let text = format!(
                "partition {number} of the layout gets the rest, {len_bytes} bytes, and needs {least}"
            );
            return missing(text, least - len_bytes);
        }
        slots.push(Slot { number, start_bytes: at, len_bytes });
        at += aligned(len_bytes).ok_or_else(too_large)?;
    }
    Ok(slots)
}

fn aligned(bytes: u64) -> Option<u64> {
    bytes.checked_next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn mib(sizes: &[u64]) -> (Vec<LayoutSize>, Vec<u64>) {
        let size = |n: &u64| if *n == 0 { LayoutSize::Rest } else { LayoutSize::Bytes(n * MIB) };
        (sizes.iter().map(size).collect(), vec![MIB; sizes.len()])
    }

    fn placed(sizes: &[u64], room_end: u64) -> Result<Vec<(u64, u64)>> {
        let (sizes, least) = mib(sizes);
        let slots = places(&sizes, &least, room_end, 512)?;
        Ok(slots.iter().map(|s| (s.start_bytes / MIB, s.len_bytes / MIB)).collect())
    }

    #[test]
    fn partitions_lie_one_behind_the_other() {
        assert_eq!(placed(&[10, 20], 40 * MIB).unwrap(), [(1, 10), (11, 20)]);
        assert_eq!(placed(&[10, 0, 5], 40 * MIB + 7).unwrap(), [(1, 10), (11, 24), (35, 5)]);
        assert_eq!(placed(&[0], 40 * MIB - 512).unwrap(), [(1, 38)]);
        let odd = [LayoutSize::Bytes(MIB + 512), LayoutSize::Bytes(MIB + 1024)];
        let slots = places(&odd, &[MIB, MIB], 4 * MIB + 1024, 512).unwrap();
        assert_eq!((slots[1].start_bytes, slots[1].len_bytes), (3 * MIB, MIB + 1024));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |sizes: &[u64], room| placed(sizes, room).unwrap_err().to_string();
        assert!(error(&[10, 20], 31 * MIB - 512).contains("target: 512 bytes are missing"));
        assert!(error(&[10, 0], 11 * MIB).contains("needs 1048576: 1048576 bytes are missing"));
        let (sizes, _) = mib(&[3]);
        let small = places(&sizes, &[4 * MIB], 40 * MIB, 512).unwrap_err().to_string();
        assert!(small.contains("1048576 bytes are missing"), "{small}");
        let odd = places(&[LayoutSize::Bytes(5 * MIB + 512)], &[MIB], 40 * MIB, 4096);
        assert!(odd.unwrap_err().to_string().contains("no whole sectors of 4096"));
        let huge = [LayoutSize::Bytes(u64::MAX / 512 * 512), LayoutSize::Bytes(MIB)];
        assert!(places(&huge, &[MIB, MIB], 40 * MIB, 512).is_err());
    }

    proptest! {
        #[test]
        fn places_fit_and_do_not_overlap(
            sizes in proptest::collection::vec(1..5000_u64, 1..9),
            rest in proptest::option::of(0..9_usize),
            room in 0..60_000_u64,
        ) {
            let mut sizes: Vec<LayoutSize> =
                sizes.into_iter().map(|n| LayoutSize::Bytes(n * 4096)).collect();
            if let Some(rest) = rest {
                let rest = rest % sizes.len();
                sizes[rest] = LayoutSize::Rest;
            }
            let least: Vec<u64> = sizes.iter().map(|_| 4096).collect();
            let Ok(slots) = places(&sizes, &least, room * 4096, 4096) else { return Ok(()) };
            let mut end = MIB;
            for (slot, size) in slots.iter().zip(&sizes) {
                prop_assert!(slot.start_bytes >= end && slot.start_bytes.is_multiple_of(MIB));
                prop_assert!(slot.len_bytes >= 4096);
                if let LayoutSize::Bytes(bytes) = size {
                    prop_assert_eq!(slot.len_bytes, *bytes);
                }
                end = slot.end_bytes();
            }
            prop_assert!(end <= room * 4096);
        }
    }
}
