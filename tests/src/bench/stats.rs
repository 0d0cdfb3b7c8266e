//! Medians, and ratios of runs that were neighbours in time.

use super::run::{Entry, Run};

/// A median with the least and the most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The value in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of values in any order; `None` of none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// Our figure by theirs, round for round.
#[must_use]
pub fn ratio(ours: &Entry, theirs: &Entry, figure: impl Fn(&Run) -> f64) -> Option<Spread> {
    Spread::of(ours.runs.iter().zip(&theirs.runs).map(|(our, their)| figure(our) / figure(their)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let entry = |walls: &[f64]| Entry {
            name: String::new(),
            goal: None,
            runs: walls
                .iter()
                .map(|&wall_s| Run { wall_s, cpu_s: 0.0, peak_mib: 0.0, output_bytes: None })
                .collect(),
        };
        // Both got slower in the second round: the ratio did not change.
        let ratio = ratio(&entry(&[1.0, 5.0]), &entry(&[2.0, 10.0]), |run| run.wall_s).unwrap();
        assert_eq!(ratio, Spread { median: 0.5, min: 0.5, max: 0.5 });
    }
}
