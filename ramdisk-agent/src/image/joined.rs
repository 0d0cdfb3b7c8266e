//! Several images seen as one: their disks lie one behind the other, and frames keep what they are but for their number and place.
//! So whatever works on the frames of an image works on all of them in one pass: a layout is restored, compared and read back like a
//! disk. Where on the target the bytes go is not said here.

use std::fmt;

use image_format::{FrameEntry, Hash, Manifest, Root};

use super::{DiskImage, Fetch};
use crate::error::{Error, Result};

/// Images one behind the other.
pub struct Joined {
    members: Vec<Member>,
    root: Root,
}

struct Member {
    image: Box<dyn DiskImage>,
    /// Where it lies, for people.
    name: String,
    /// Where its first byte is.
    base: u64,
    /// The number that its first frame has.
    first: u64,
}

impl Joined {
    /// Joins at least one image; the texts say where they lie.
    ///
    /// # Errors
    /// If the index of one of them cannot be read.
    pub fn new(images: Vec<(String, Box<dyn DiskImage>)>) -> Result<Self> {
        let (mut members, mut base, mut first) = (Vec::new(), 0, 0);
        let mut roots = b"imprint layout images 1".to_vec();
        for (name, image) in images {
            let (len, last) = (image.disk_len(), image.disk_len().saturating_sub(1));
            let member = Member { image, name, base, first };
            let frames = member.image.frame_at(last).map_err(|e| member.at_fault(e))?.index + 1;
            roots.extend_from_slice(member.image.root().as_bytes());
            members.push(member);
            base += len;
            first += frames;
        }
        Ok(Self { members, root: Root(Hash::of(&roots)) })
    }

    /// Where an image's first byte is, by its number, and the image.
    pub fn member(&self, number: usize) -> (u64, &dyn DiskImage) {
        let member = &self.members[number];
        (member.base, &*member.image)
    }

    /// The images, with the place of the first byte of each.
    pub fn members(&self) -> impl Iterator<Item = (u64, &dyn DiskImage)> {
        self.members.iter().map(|member| (member.base, &*member.image))
    }

    /// The member that a byte is in; one behind the end is the last one's.
    fn at(&self, offset: u64) -> (usize, &Member) {
        let behind = self.members.partition_point(|member| member.base <= offset);
        let number = behind.saturating_sub(1);
        (number, &self.members[number])
    }
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Member {
    /// Says of which image it is what is wrong.
    fn at_fault(&self, error: Error) -> Error {
        error.context(format!("reading {}", self.name))
    }

    fn lifted(&self, entry: FrameEntry) -> FrameEntry {
        FrameEntry {
            index: self.first + entry.index,
            logical_offset: self.base + entry.logical_offset,
            ..entry
        }
    }

    /// A frame as its image knows it.
    fn own(&self, entry: &FrameEntry) -> FrameEntry {
        FrameEntry {
            index: entry.index - self.first,
            logical_offset: entry.logical_offset - self.base,
            ..entry.clone()
        }
    }
}

impl DiskImage for Joined {
    fn root(&self) -> Root {
        self.root
    }

    /// The first image's. The others' are asked for by [`Joined::member`].
    fn manifest(&self) -> &Manifest {
        self.members[0].image.manifest()
    }

    fn disk_len(&self) -> u64 {
        self.members.iter().map(|member| member.image.disk_len()).sum()
    }

    fn span_len(&self) -> u32 {
        self.members.iter().map(|member| member.image.span_len()).max().unwrap_or(0)
    }

    fn stored_len(&self) -> u64 {
        self.members.iter().map(|member| member.image.stored_len()).sum()
    }

    fn check_index(&self) -> Result<()> {
        let check = |member: &Member| member.image.check_index().map_err(|e| member.at_fault(e));
        self.members.iter().try_for_each(check)
    }

    fn frames(&self) -> Box<dyn Iterator<Item = Result<FrameEntry>> + Send + '_> {
        let all = self.members.iter().flat_map(|member| {
            let lift = |entry| member.lifted(entry);
            member.image.frames().map(move |frame| frame.map(lift).map_err(|e| member.at_fault(e)))
        });
        let mut failed = false;
        Box::new(all.take_while(move |frame| {
            let goes_on = !failed;
            failed = frame.is_err();
            goes_on
        }))
    }

    fn frame_at(&self, logical_offset: u64) -> Result<FrameEntry> {
        let (_, member) = self.at(logical_offset);
        let frame = member.image.frame_at(logical_offset - member.base);
        frame.map(|entry| member.lifted(entry)).map_err(|e| member.at_fault(e))
    }

    fn fetcher(&self) -> Result<Box<dyn Fetch + '_>> {
        Ok(Box::new(JoinedFetch {
            image: self,
            fetchers: self.members.iter().map(|_| None).collect(),
        }))
    }
}

/// One thread's way to the content of all images; each is opened when it is first wanted.
struct JoinedFetch<'a> {
    image: &'a Joined,
    fetchers: Vec<Option<Box<dyn Fetch + 'a>>>,
}

impl<'a> JoinedFetch<'a> {
    /// Has the image that a frame is of do this with it.
    fn of<T>(
        &mut self,
        entry: &FrameEntry,
        work: impl FnOnce(&mut (dyn Fetch + 'a), &FrameEntry) -> Result<T>,
    ) -> Result<T> {
        let (number, member) = self.image.at(entry.logical_offset);
        let fetcher = match &mut self.fetchers[number] {
            Some(fetcher) => fetcher,
            none => none.insert(member.image.fetcher().map_err(|e| member.at_fault(e))?),
        };
        work(&mut **fetcher, &member.own(entry)).map_err(|e| member.at_fault(e))
    }
}

impl Fetch for JoinedFetch<'_> {
    fn check(&mut self, entry: &FrameEntry) -> Result<u64> {
        self.of(entry, |fetcher, own| fetcher.check(own))
    }

    fn fetch(&mut self, entry: &FrameEntry, content: &mut [u8]) -> Result<u64> {
        self.of(entry, |fetcher, own| fetcher.fetch(own, content))
    }

    fn check_deeply(&mut self, entry: &FrameEntry, content: &mut Vec<u8>) -> Result<u64> {
        self.of(entry, |fetcher, own| fetcher.check_deeply(own, content))
    }
}
