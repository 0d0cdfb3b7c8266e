//! What the image targets do with their input. Plain functions, so that ordinary tests run them as well.
//!
//! A mutated image fails at its first hash, which tests little of what comes after. So each input is tried as it is, and
//! once more with all its hashes made right again, as a hostile writer would. The offsets here are those of
//! `docs/image-format.md`, written down a second time on purpose.

use image_format::{Decoder, FormatError, ImageReader, Manifest, Partial};

/// Longer frames are not decompressed: the fuzzer's time is better spent elsewhere.
const MAX_DECODED_LEN: u32 = 1 << 20;

/// Opens the input as an image and reads all of it.
pub fn image_open(data: &[u8]) {
    let _ = read_image(data);
    read_partial(data);
    if let Some(image) = resealed(data) {
        let _ = read_image(&image);
        read_partial(&image);
    }
}

/// Reads the input as an image whose writer was cut off.
fn read_partial(data: &[u8]) {
    let Ok(partial) = Partial::open(data) else { return };
    let mut stored = Vec::new();
    for index in 0..partial.pages() {
        let page = partial.page(index).expect("its page was found and checked");
        for frame in page.frames() {
            let _ = partial.read_stored(frame, &mut stored);
        }
    }
    let (covered, len) = (partial.covered(), partial.stored_len());
    let beginning = partial.into_beginning().expect("its pages were found and checked");
    assert_eq!((beginning.covered(), beginning.stored_len()), (covered, len));
}

/// Reads the input as the entries of an index page, in an image that is right in everything else.
pub fn image_page(data: &[u8]) {
    if let Some(image) = page_image(data) {
        let _ = read_image(&image);
    }
}

/// In the sectors of disk of a page's input: the image is the difference to another.
pub const DELTA_FLAG: u32 = 1 << 31;

/// The image around such a page: 2 bytes number of frames, 2 bytes stored length, 4 bytes sectors of disk and [`DELTA_FLAG`], the
/// entries.
pub fn page_image(data: &[u8]) -> Option<Vec<u8>> {
    let (prefix, entries) = data.split_first_chunk::<8>()?;
    let frames = u32::from(u16::from_le_bytes([prefix[0], prefix[1]]));
    let stored_len = u16::from_le_bytes([prefix[2], prefix[3]]);
    let sectors = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    let delta = sectors & DELTA_FLAG != 0;
    let disk_len = u64::from(sectors & !DELTA_FLAG) * 512;
    Some(image_around(frames, stored_len, disk_len, delta, entries))
}

/// Reads the input as a manifest; one that is understood must survive being written.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(data) {
        let json = serde_json::to_vec(&manifest).expect("what was parsed can be written");
        let again: Manifest =
            serde_json::from_slice(&json).expect("what was written can be parsed");
        assert_eq!(manifest, again);
    }
}

/// Reads everything that an image has: index, frames, content. Gives the number of frames.
pub fn read_image(data: &[u8]) -> Result<usize, FormatError> {
    let reader = ImageReader::open(data)?;
    let checked = reader.check_seek_table();
    let mut decoder = Decoder::new().expect("zstd has memory for a context");
    let (mut stored, mut content) = (Vec::new(), Vec::new());
    let (mut frames, mut expected_offset) = (0, 0);
    for entry in reader.frames() {
        let entry = entry?;
        assert_eq!(entry.logical_offset, expected_offset, "frames follow each other");
        expected_offset += u64::from(entry.logical_len);
        assert_eq!(reader.frame_at(entry.logical_offset)?.index, entry.index);
        assert_eq!(reader.frame_at(expected_offset - 1)?.index, entry.index);
        frames += 1;
        let frame = match reader.read_stored(&entry, &mut stored) {
            Ok(frame) => frame,
            Err(FormatError::Frame { .. }) => continue,
            Err(error) => return Err(error),
        };
        if entry.logical_len <= MAX_DECODED_LEN {
            let _ = Decoder::check_zeros(frame);
            content.resize(entry.logical_len as usize, 0);
            // Any bytes are a prefix: those of the frame before this one.
            let prefix = content.clone();
            let _ = Decoder::decode_with_prefix(frame, &prefix, &mut content);
            if decoder.decode(frame, &mut content).is_ok() {
                let _ = Decoder::check_content(&entry, &content);
            }
        }
    }
    assert_eq!(expected_offset, reader.disk_len(), "frames cover the disk");
    checked.map(|()| frames)
}

const SKIPPABLE: u32 = 0x184D_2A5B;

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    usize::try_from(u32::from_le_bytes(field.try_into().ok()?)).ok()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(field.try_into().ok()?)).ok()
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(field.len())?)?.copy_from_slice(field);
    Some(())
}

/// Ends the skippable frame `start..end` with the hash of what is before it.
fn seal(bytes: &mut [u8], start: usize, end: usize) -> Option<[u8; 32]> {
    let body_end = end.checked_sub(32)?;
    let hash = *blake3::hash(bytes.get(start..body_end)?).as_bytes();
    put(bytes, body_end, &hash)?;
    Some(hash)
}

fn root(manifest: &[u8], directory: &[u8]) -> [u8; 32] {
    let manifest_len = (manifest.len() as u64).to_le_bytes();
    let directory_len = (directory.len() as u64).to_le_bytes();
    let label = b"imprint root v1\0".as_slice();
    *blake3::hash(&[label, &manifest_len, manifest, &directory_len, directory].concat()).as_bytes()
}

/// The image with every hash in it recomputed, if its parts can be found at all.
pub fn resealed(data: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let entries = u32_at(&bytes, bytes.len().checked_sub(9)?)?;
    let table_len = entries.checked_mul(8)?.checked_add(17)?;
    let trailer = bytes.len().checked_sub(table_len)?.checked_sub(120)?;
    let manifest = u64_at(&bytes, trailer + 16)?.checked_add(32)?;
    let directory = manifest.checked_add(u64_at(&bytes, trailer + 24)?)?;
    let opening_len = u32_at(&bytes, 4)?.checked_add(8)?;
    let opening_hash = seal(&mut bytes, 0, opening_len)?;
    put(&mut bytes, directory.checked_add(48)?, &opening_hash)?;
    let mut frame_start = opening_len;
    let mut at = directory.checked_add(120)?;
    while at.checked_add(56)? <= trailer {
        let page = u64_at(&bytes, at)?;
        let page_end = page.checked_add(u32_at(&bytes, at + 8)?)?;
        rehash_frames(&mut bytes, page, page_end, frame_start);
        let hash = seal(&mut bytes, page, page_end)?;
        put(&mut bytes, at + 24, &hash)?;
        frame_start = page_end;
        at += 56;
    }
    let root = root(bytes.get(manifest..directory)?, bytes.get(directory..trailer)?);
    put(&mut bytes, trailer + 56, &root)?;
    seal(&mut bytes, trailer, trailer + 120)?;
    Some(bytes)
}

/// Puts the hash of what is stored into each entry of a page, as far as its entries make sense.
fn rehash_frames(bytes: &mut [u8], page: usize, page_end: usize, first_frame: usize) -> Option<()> {
    let (mut at, mut stored) = (page.checked_add(64)?, first_frame);
    while at.checked_add(84 + 32)? <= page_end {
        let stored_end = stored.checked_add(u32_at(bytes, at + 16)?)?;
        // Of a reference nothing is stored, and its hash is zero.
        if bytes.get(at) != Some(&3) {
            let hash = *blake3::hash(bytes.get(stored..stored_end)?).as_bytes();
            put(bytes, at + 20, &hash)?;
        }
        stored = stored_end;
        at = at.checked_add(84 + 4 * usize::from(*bytes.get(at + 1)?))?;
    }
    Some(())
}

/// An image that is right in everything but, perhaps, its one index page.
fn image_around(
    frames: u32,
    stored_len: u16,
    disk_len: u64,
    delta: bool,
    entries: &[u8],
) -> Vec<u8> {
    const SPAN_LEN: u32 = 64 << 10;
    let id = [7; 16];
    let mut out = Vec::new();
    let skippable = |kind: &[u8; 8], payload: &[&[u8]]| {
        let payload = payload.concat();
        let len = u32::try_from(payload.len() + 8).expect("fuzz inputs are small");
        [&SKIPPABLE.to_le_bytes(), &len.to_le_bytes(), kind.as_slice(), &payload].concat()
    };
    let version = 1_u32.to_le_bytes();
    let (span, disk) = (SPAN_LEN.to_le_bytes(), disk_len.to_le_bytes());
    out.extend(skippable(
        b"IMPRINTO",
        &[
            &version,
            &span,
            &[0; 8],
            &u64::from(delta).to_le_bytes(),
            &id,
            &disk,
            &1_u32.to_le_bytes(),
            b"f",
            &[0; 32],
        ],
    ));
    if delta {
        out[..4].copy_from_slice(b"IMGD");
    }
    let opening_len = out.len();
    let opening_hash = seal(&mut out, 0, opening_len).expect("it was just laid out");
    let stored_offset = opening_len as u64;
    out.resize(opening_len + usize::from(stored_len), 0x28);
    let page = out.len();
    let (zero, frames) = ([0; 12], frames.to_le_bytes());
    out.extend(skippable(
        b"IMPRINTP",
        &[
            &zero[..4],
            &frames,
            &zero,
            &zero[..4],
            &stored_offset.to_le_bytes(),
            &id,
            entries,
            &[0; 32],
        ],
    ));
    let page_end = out.len();
    let page_hash = seal(&mut out, page, page_end).expect("it was just laid out");
    let page_len = u32::try_from(page_end - page).expect("fuzz inputs are small").to_le_bytes();
    let directory = [
        b"IMPRINTD".as_slice(),
        &version,
        &1_u32.to_le_bytes(),
        &u32::try_from(opening_len).expect("about 100").to_le_bytes(),
        &span,
        &disk,
        &id,
        &opening_hash,
        &u64::from(u32::from_le_bytes(frames)).to_le_bytes(),
        &[0; 8],
        &disk,
        &[0; 16],
        &(page as u64).to_le_bytes(),
        &page_len,
        &frames,
        &disk,
        &page_hash,
    ]
    .concat();
    let parent = if delta {
        format!(
            r#""parent":{{"root":"{:064}","image_id":"{}","name":""}},"#,
            0, "07070707-0707-0707-0707-070707070707"
        )
    } else {
        String::new()
    };
    let manifest = format!(
        r#"{{"format_version":1,"image_id":"07070707-0707-0707-0707-070707070707","created":"","producer":"f",{parent}
        "disk":{{"size_bytes":{disk_len},"logical_sector_bytes":512}},"span_len":{SPAN_LEN},
        "compression":{{"method":"zstd","level":3}},"table":{{"kind":"none"}}}}"#
    );
    let entries = u32::from_le_bytes(frames) + 3;
    let trailer = [
        b"IMPRINTE".as_slice(),
        &version,
        &entries.to_le_bytes(),
        &(out.len() as u64).to_le_bytes(),
        &(manifest.len() as u64).to_le_bytes(),
        &(directory.len() as u64).to_le_bytes(),
        &id,
        &root(manifest.as_bytes(), &directory),
        &[0; 32],
    ]
    .concat();
    let tail_start = out.len();
    let lens =
        [(manifest.len() as u64).to_le_bytes(), (directory.len() as u64).to_le_bytes()].concat();
    out.extend(skippable(b"IMPRINTT", &[&lens, manifest.as_bytes(), &directory, &trailer]));
    let tail_end = out.len();
    seal(&mut out, tail_end - 120, tail_end).expect("it was just laid out");
    let seek_entry = |stored: usize, logical: u32| {
        let stored = u32::try_from(stored).expect("fuzz inputs are small");
        [stored.to_le_bytes(), logical.to_le_bytes()].concat()
    };
    out.extend(0x184D_2A5E_u32.to_le_bytes());
    out.extend((entries * 8 + 9).to_le_bytes());
    out.extend(seek_entry(opening_len, 0));
    let mut listed = entries_of(&out[page + 64..page_end - 32]);
    listed.resize(u32::from_le_bytes(frames) as usize, (0, 0));
    listed.iter().for_each(|(stored, logical)| {
        out.extend([stored.to_le_bytes(), logical.to_le_bytes()].concat())
    });
    out.extend(seek_entry(page_end - page, 0));
    out.extend(seek_entry(tail_end - tail_start, 0));
    out.extend(entries.to_le_bytes());
    out.push(0);
    out.extend(if delta { *b"IMGD" } else { [0xB1, 0xEA, 0x92, 0x8F] });
    out
}

/// Stored and logical length of each entry, as far as the entries make sense.
fn entries_of(mut entries: &[u8]) -> Vec<(u32, u32)> {
    let mut out = Vec::new();
    while let (Some(logical), Some(stored)) = (u32_at(entries, 4), u32_at(entries, 16)) {
        let field = |value| u32::try_from(value).expect("it was read from four bytes");
        out.push((field(stored), field(logical)));
        let Some(rest) = entries.get(84 + 4 * usize::from(entries[1])..) else { break };
        entries = rest;
    }
    out
}
