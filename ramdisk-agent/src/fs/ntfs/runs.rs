//! Run lists: where the clusters of an attribute are.

/// So many clusters from one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// `None`: a hole.
    pub cluster: Option<u64>,
    pub count: u64,
}

/// The clusters of an attribute, or of the part of it that a record has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// Which of the attribute's clusters is the first here.
    pub first: u64,
    pub list: Vec<Run>,
}

impl Runs {
    /// Decodes pairs of lengths and differences of places, which must give the clusters from `first` to before `end`.
    /// `None` if they do not.
    pub fn decode(mut bytes: &[u8], first: u64, end: u64) -> Option<Self> {
        let mut list = Vec::new();
        let (mut at, mut cluster) = (first, 0_i64);
        loop {
            let (head, rest) = bytes.split_first()?;
            if *head == 0 {
                return (at == end).then_some(Self { first, list });
            }
            let (count_len, place_len) = (usize::from(head & 0xF), usize::from(head >> 4));
            let count = u64::try_from(number(rest.get(..count_len)?)?).ok()?;
            let place = rest.get(count_len..count_len + place_len)?;
            bytes = &rest[count_len + place_len..];
            at = at.checked_add(count).filter(|at| *at <= end && count > 0)?;
            let cluster = if place.is_empty() {
                None
            } else {
                cluster = cluster.checked_add(number(place)?)?;
                // Version 1.2 has holes at -1.
                if cluster == -1 { None } else { Some(u64::try_from(cluster).ok()?) }
            };
            list.push(Run { cluster, count });
        }
    }
}

/// A signed number of up to eight bytes.
fn number(bytes: &[u8]) -> Option<i64> {
    let last = *bytes.last()?;
    if bytes.len() > 8 {
        return None;
    }
    let mut all = [if last & 0x80 == 0 { 0 } else { 0xFF }; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cluster: Option<u64>, count: u64) -> Run {
        Run { cluster, count }
    }

    #[test]
    fn places_are_differences_and_may_be_missing() {
        let bytes = [0x21, 0x18, 0x34, 0x56, 0x11, 0x04, 0xF0, 0x01, 0x03, 0x00];
        let runs = Runs::decode(&bytes, 5, 5 + 0x18 + 4 + 3).unwrap();
        let list = [run(Some(0x5634), 0x18), run(Some(0x5624), 4), run(None, 3)];
        assert_eq!(runs, Runs { first: 5, list: list.into() });
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        for bytes in [
            &[][..],
            &[0x11, 4, 1],
            &[0x11, 4],
            &[0x11, 5, 1, 0],
            &[0x11, 3, 1, 0],
            &[0x11, 0x84, 1, 0],
            &[0x11, 4, 0xF0, 0],
            &[0x10, 4, 0],
            &[0x91, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
            &[0x11, 0, 1, 0x11, 4, 1, 0],
        ] {
            assert_eq!(Runs::decode(bytes, 0, 4), None, "{bytes:x?}");
        }
    }
}
