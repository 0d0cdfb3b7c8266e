//! Which bytes of an image go where on the target, and which of them the frames leave to the commit.

use std::ops::Range;

use image_format::FrameEntry;

use super::ranges;

/// A stretch of the image and its place on the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of the image's disk.
    pub image: Range<u64>,
    /// Where the first of them goes.
    pub target: u64,
}

/// A byte range of the image that the frames do not write, and the image's bytes there.
pub type Withheld = (Range<u64>, Vec<u8>);

impl Segment {
    /// The bytes of the target.
    pub fn on_target(&self) -> Range<u64> {
        self.target..self.target + (self.image.end - self.image.start)
    }

    fn cut(&self, image: &Range<u64>) -> Option<Self> {
        let image = ranges::common(&self.image, image)?;
        Some(Self { target: self.target + (image.start - self.image.start), image })
    }
}

/// All that is placed. The segments are sorted by their place in the image and overlap neither there nor on the target.
#[derive(Debug, Clone)]
pub struct Placement {
    segments: Vec<Segment>,
    /// Sorted.
    withheld: Vec<Withheld>,
}

impl Placement {
    /// `commit` are the places on the target that the commit writes, sorted: nothing of the frames goes there.
    pub fn new(segments: Vec<Segment>, withheld: Vec<Withheld>, commit: &[Range<u64>]) -> Self {
        let around = |segment: Segment| {
            let free = ranges::gaps(commit, segment.on_target());
            free.into_iter().map(move |place| {
                let start = segment.image.start + (place.start - segment.target);
                Segment { image: start..start + (place.end - place.start), target: place.start }
            })
        };
        let mut segments: Vec<Segment> = segments.into_iter().flat_map(around).collect();
        segments.sort_by_key(|segment| segment.image.start);
        Self { segments, withheld }
    }

    /// Which bytes of the image go where, those that are withheld included.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether anything of a frame goes to the target.
    pub fn concerns(&self, entry: &FrameEntry) -> bool {
        let frame = entry.logical_offset..entry.logical_offset + u64::from(entry.logical_len);
        self.segments.iter().any(|segment| ranges::common(&segment.image, &frame).is_some())
    }

    /// What of a range of the image the frames write, and where.
    pub fn pieces(&self, image: Range<u64>) -> Vec<Segment> {
        let placed = self.segments.iter().filter_map(|segment| segment.cut(&image));
        let held: Vec<Range<u64>> = self.withheld_in_image().collect();
        placed
            .flat_map(|segment| {
                let free = ranges::gaps(&held, segment.image.clone());
                free.into_iter().filter_map(|range| segment.cut(&range)).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Where on the target the frames write what they have of a range of the image.
    pub fn on_target(&self, image: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.pieces(image).into_iter().map(|piece| piece.on_target())
    }

    /// What of a range of the image is nowhere on the target, not even in the end.
    pub fn left_out(&self, image: Range<u64>) -> Vec<Range<u64>> {
        let mut placed: Vec<Range<u64>> =
            self.segments.iter().map(|segment| segment.image.clone()).collect();
        placed.extend(self.withheld_in_image());
        placed.sort_by_key(|range| range.start);
        ranges::gaps(&placed, image)
    }

    /// What of the target no byte of the image is for.
    pub fn not_covered(&self, target_bytes: u64) -> Vec<Range<u64>> {
        let mut covered: Vec<Range<u64>> = self.segments.iter().map(Segment::on_target).collect();
        covered.sort_by_key(|range| range.start);
        ranges::gaps(&covered, 0..target_bytes)
    }

    /// Where the places are on the target that the frames leave out.
    pub fn withheld_on_target(&self) -> Vec<Range<u64>> {
        self.withheld_in_image()
            .flat_map(|held| self.segments.iter().filter_map(move |segment| segment.cut(&held)))
            .map(|piece| piece.on_target())
            .collect()
    }

    fn withheld_in_image(&self) -> impl Iterator<Item = Range<u64>> {
        self.withheld.iter().map(|(range, _)| range.clone())
    }

    /// Puts the image's withheld bytes into a span's content that was read from the disk, where they are not yet.
    pub fn fill_withheld(&self, base: u64, content: &mut [u8]) {
        let end = base + content.len() as u64;
        for (range, bytes) in &self.withheld {
            if let Some(common) = ranges::common(range, &(base..end)) {
                let index = |n: u64| usize::try_from(n).expect("within a span or a head");
                content[index(common.start - base)..index(common.end - base)].copy_from_slice(
                    &bytes[index(common.start - range.start)..index(common.end - range.start)],
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "lists of ranges of one")]

    use super::*;

    fn placement() -> Placement {
        let segments =
            vec![Segment { image: 300..400, target: 900 }, Segment { image: 0..200, target: 0 }];
        Placement::new(segments, vec![(0..10, vec![7; 10]), (350..360, vec![8; 10])], &[980..990])
    }

    #[test]
    fn ranges_are_cut_moved_and_withheld() {
        let placement = placement();
        let pieces = placement.pieces(0..1000);
        assert_eq!(
            pieces,
            [
                Segment { image: 10..200, target: 10 },
                Segment { image: 300..350, target: 900 },
                Segment { image: 360..380, target: 960 },
                Segment { image: 390..400, target: 990 },
            ]
        );
        assert_eq!(placement.pieces(190..310)[1].on_target(), 900..910);
        assert_eq!(placement.left_out(100..500), [200..300, 380..390, 400..500]);
        assert_eq!(placement.not_covered(1100), [200..900, 980..990, 1000..1100]);
        assert_eq!(placement.withheld_on_target(), [0..10, 950..960]);
        let mut content = vec![0; 20];
        placement.fill_withheld(345, &mut content);
        assert_eq!(content[4..16], [0, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0]);
    }
}
