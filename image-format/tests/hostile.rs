//! Bytes that mean harm: no panic, no unbounded work, no allocation that the limits do not bound.
//!
//! Runs what the fuzzers run, over their seeds and over mutations of them, the same every time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../../fuzz/src/image.rs"]
mod image;
#[path = "../../fuzz/src/image_seeds.rs"]
mod image_seeds;

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use image_format::{ImageReader, MAX_FRAMES, MAX_MANIFEST_LEN, ReadAt};
use proptest::prelude::*;

/// A generator of numbers that is the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (limit.max(1) as u64)).unwrap()
    }
}

/// Values at the edges of fields of 1, 2, 4 and 8 bytes.
const EDGES: [u64; 12] = [
    0,
    1,
    3,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10_0000,
    0x4000_0000,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    u64::MAX,
];

fn mutate(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(bytes.len());
        let width = (1 << numbers.below(4)).min(bytes.len() - at);
        match numbers.below(8) {
            0..=2 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            3 | 4 => bytes[at..at + width]
                .copy_from_slice(&EDGES[numbers.below(EDGES.len())].to_le_bytes()[..width]),
            5 => bytes.truncate(at),
            6 => {
                let part = bytes[at..(at + numbers.below(64)).min(bytes.len())].to_vec();
                let to = numbers.below(bytes.len());
                bytes.splice(to..to, part);
            }
            _ => drop(bytes.drain(at..at + width)),
        }
    }
}

fn run(target: fn(&[u8]), name: &str, mutations: usize) {
    let mut numbers = Numbers(0x1234_5678_9ABC_DEF1);
    for seed in image_seeds::seeds(name) {
        target(&seed);
        for _ in 0..mutations {
            let mut input = seed.clone();
            mutate(&mut input, &mut numbers);
            target(&input);
        }
    }
}

#[test]
fn mutated_images_are_read_or_refused() {
    run(image::image_open, "image_open", 1000);
}

#[test]
fn mutated_pages_are_read_or_refused() {
    run(image::image_page, "image_page", 1000);
}

#[test]
fn mutated_manifests_are_read_or_refused() {
    run(image::manifest, "manifest", 3000);
}

/// The targets are worth nothing if what they make is refused at the door.
#[test]
fn resealing_makes_images_that_open() {
    for seed in image_seeds::seeds("image_open") {
        assert_eq!(image::resealed(&seed).as_ref(), Some(&seed), "there was nothing to make right");
        let frames = image::read_image(&seed).unwrap();
        // Another content and another manifest, both right again after resealing.
        let mut changed = seed.clone();
        let last = ImageReader::open(seed.as_slice()).unwrap().frames().last().unwrap().unwrap();
        changed[usize::try_from(last.stored_offset).unwrap() + 12] ^= 1;
        let created = changed.windows(5).rposition(|part| part == b"2026-").unwrap();
        changed[created] = b'9';
        assert!(image::read_image(&changed).is_err());
        assert_eq!(image::read_image(&image::resealed(&changed).unwrap()).unwrap(), frames);
    }
}

#[test]
fn the_page_target_reaches_the_entries() {
    let whole: Vec<usize> = image_seeds::seeds("image_page")
        .iter()
        .filter_map(|seed| {
            let image = image::page_image(seed)?;
            let reader = ImageReader::open(image.as_slice()).ok()?;
            reader.frames().collect::<Result<Vec<_>, _>>().ok().map(|frames| frames.len())
        })
        .collect();
    assert_eq!(whole, [1, 2, 6, 8]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(ImageReader::open(bytes.as_slice()).is_err());
        image::image_page(&bytes);
        image::manifest(&bytes);
    }
}

/// A source that claims any length and is zero but for a few parts; remembers the largest read.
struct Claims {
    len: u64,
    parts: BTreeMap<u64, Vec<u8>>,
    largest: Mutex<usize>,
}

impl ReadAt for Claims {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut largest = self.largest.lock().unwrap();
        *largest = buf.len().max(*largest);
        buf.fill(0);
        for (start, part) in &self.parts {
            for (at, byte) in (*start..).zip(part) {
                if let Some(place) =
                    at.checked_sub(offset).and_then(|at| buf.get_mut(usize::try_from(at).ok()?))
                {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

#[test]
fn claimed_sizes_do_not_drive_allocations() {
    let seed = image_seeds::seeds("image_open").remove(1);
    let opening = seed[..200].to_vec();
    for (entries, manifest_len, directory_len) in [
        (MAX_FRAMES, MAX_MANIFEST_LEN, 20 << 20),
        (5, u64::MAX, 120),
        (5, 100, u64::MAX),
        (u32::MAX, 2, 120),
        (5, 1 << 40, 1 << 40),
    ] {
        let len = 1_u64 << 60;
        let table = len - 17 - u64::from(entries) * 8;
        let tail_offset =
            table.wrapping_sub(152).wrapping_sub(manifest_len).wrapping_sub(directory_len);
        let mut trailer = b"IMPRINTE\x01\0\0\0".to_vec();
        trailer.extend(entries.to_le_bytes());
        [tail_offset, manifest_len, directory_len]
            .iter()
            .for_each(|field| trailer.extend(field.to_le_bytes()));
        trailer.extend([0; 48]);
        trailer.extend(blake3::hash(&trailer).as_bytes());
        let payload =
            (152 - 8_u64).wrapping_add(manifest_len).wrapping_add(directory_len).to_le_bytes();
        let lens = [manifest_len.to_le_bytes(), directory_len.to_le_bytes()].concat();
        let tail = [b"\x5B\x2A\x4D\x18".as_slice(), &payload[..4], b"IMPRINTT", &lens].concat();
        let header =
            [0x184D_2A5E_u32.to_le_bytes(), entries.wrapping_mul(8).wrapping_add(9).to_le_bytes()]
                .concat();
        let footer = [entries.to_le_bytes().as_slice(), &[0, 0xB1, 0xEA, 0x92, 0x8F]].concat();
        let parts = [
            (0, opening.clone()),
            (tail_offset, tail),
            (table - 120, trailer),
            (table, header),
            (len - 9, footer),
        ];
        let source = Claims { len, parts: parts.into_iter().collect(), largest: Mutex::new(0) };
        let error = ImageReader::open(&source).unwrap_err();
        let largest = *source.largest.lock().unwrap();
        assert!(largest <= 48 << 20, "{error}: a read of {largest} bytes");
        assert_eq!(
            largest > 1 << 20,
            entries == MAX_FRAMES,
            "only what is within the limits is read at all: {error}"
        );
    }
}
