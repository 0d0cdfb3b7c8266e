//! `docs/image-format.md` says what the code does: its worked example is an image that the writer made, taken apart by the
//! document's own tables, and its limits are the crate's constants.
//!
//! `IMPRINT_BLESS=1 cargo nextest run -p image-format document` puts a new example into the document.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use image_format::{
    DEFAULT_SPAN_LEN, Encoder, FRAMES_PER_PAGE, Header, ImageReader, ImageWriter, MAX_DISK_LEN,
    MAX_FRAMES, MAX_FRAMES_PER_PAGE, MAX_HOLE_LEN, MAX_MANIFEST_LEN, MAX_PAGES, MAX_PRODUCER_LEN,
    MAX_RUNS, MAX_SPAN_LEN, Run, RunKind, Runs, UNIT_LEN,
};
use uuid::Uuid;

const BEGIN: &str = "<!-- The example is written by image-format/tests/document.rs. -->\n```\n";
const END: &str = "```\n<!-- End of the example. -->";

/// 8 KiB of which the first half is data, 1 MiB that is free, and a sector.
fn example() -> Vec<u8> {
    let image_id = Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef);
    let (disk_len, span_len) = (8192 + (1 << 20) + 512, 64 << 10);
    let mut manifest = support::manifest(image_id, disk_len, span_len);
    manifest.volumes.clear();
    let header = Header::new(image_id, support::PRODUCER);
    let mut writer = ImageWriter::create(Vec::new(), header, disk_len, span_len).unwrap();
    let mut encoder = Encoder::new(3).unwrap();
    let mut stored = Vec::new();
    let runs = [Run { kind: RunKind::Data, units: 1 }, Run { kind: RunKind::Zero, units: 1 }];
    let span = [b"imprint\n".repeat(512), vec![0; 4096]].concat();
    let frame = encoder.encode(&span, runs.into_iter().collect(), &mut stored).unwrap();
    writer.append(&frame, &stored).unwrap();
    writer.append_hole(1 << 20, RunKind::Free).unwrap();
    let frame =
        encoder.encode(&[b'.'; 512], Runs::uniform(RunKind::Data, 512), &mut stored).unwrap();
    writer.append(&frame, &stored).unwrap();
    writer.finish(&manifest).unwrap().0
}

/// Prints bytes as `hexdump -C` does, 16 to a line, with the meaning of a field behind its first line.
struct Dump<'a> {
    bytes: &'a [u8],
    at: usize,
    out: String,
}

impl Dump<'_> {
    fn heading(&mut self, heading: &str) {
        let blank = if self.at == 0 { "" } else { "\n" };
        writeln!(self.out, "{blank}{heading}").unwrap();
    }

    fn field(&mut self, len: usize, meaning: &str) -> &[u8] {
        let field = &self.bytes[self.at..self.at + len];
        for (number, line) in field.chunks(16).enumerate() {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let meaning = if number == 0 { meaning } else { "" };
            let line = format!("{:08x}  {:<47}  {meaning}", self.at + number * 16, hex.join(" "));
            writeln!(self.out, "{}", line.trim_end()).unwrap();
        }
        self.at += len;
        field
    }

    /// A field of which the meaning has the value in it.
    fn number(&mut self, len: usize, meaning: &str) -> u64 {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&self.bytes[self.at..self.at + len]);
        let value = u64::from_le_bytes(bytes);
        self.field(len, &format!("{meaning}: {value}"));
        value
    }

    fn text(&mut self, len: usize, meaning: &str) {
        let field = &self.bytes[self.at..self.at + len];
        for (number, line) in field.chunks(16).enumerate() {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = std::str::from_utf8(line).unwrap();
            let meaning = if number == 0 { format!("  {meaning}") } else { String::new() };
            writeln!(
                self.out,
                "{:08x}  {:<47}  |{text}|{meaning}",
                self.at + number * 16,
                hex.join(" ")
            )
            .unwrap();
        }
        self.at += len;
    }

    fn skippable(&mut self, kind: &str) {
        self.field(4, "magic number of Imprint's skippable frames");
        self.number(4, "payload length");
        assert_eq!(self.field(8, &format!("kind: {kind}")), kind.as_bytes());
    }

    /// `from..self.at` is followed by its own hash.
    fn seal(&mut self, from: usize) {
        let hash = blake3::hash(&self.bytes[from..self.at]);
        assert_eq!(self.field(32, "BLAKE3 of the frame up to here"), hash.as_bytes());
    }
}

/// The example, field by field, by the tables of the document and not by the reader.
fn dump(bytes: &[u8]) -> String {
    let mut dump = Dump { bytes, at: 0, out: String::new() };
    dump.heading("Opening frame");
    dump.skippable("IMPRINTO");
    dump.number(4, "version");
    dump.number(4, "span length");
    dump.number(8, "compatible features");
    dump.number(8, "incompatible features");
    dump.field(16, "image id");
    dump.number(8, "disk length");
    let producer = dump.number(4, "length of the producer string");
    dump.text(usize::try_from(producer).unwrap(), "producer");
    dump.seal(0);

    let lens: Vec<usize> = ImageReader::open(bytes)
        .unwrap()
        .frames()
        .map(|entry| entry.unwrap().stored_len as usize)
        .collect();
    let opening_len = dump.at;
    dump.heading("Frame 0: data, 8192 bytes");
    dump.field(lens[0], "zstd frame");
    dump.heading("Frame 1: hole, 1 MiB");
    dump.field(4, "zstd's magic number");
    dump.field(1, "descriptor: content size of 4 bytes, checksum");
    dump.field(1, "window: 128 KiB");
    dump.number(4, "content size");
    dump.field(lens[1] - 14, "blocks: 128 KiB of zero each, the last one marked");
    dump.field(4, "zstd's checksum");
    dump.heading("Frame 2: data, 512 bytes");
    dump.field(lens[2], "zstd frame");

    let page = dump.at;
    dump.heading("Index page 0");
    dump.skippable("IMPRINTP");
    dump.number(4, "page number");
    dump.number(4, "number of frames");
    dump.number(8, "number of the first frame");
    dump.number(8, "its logical offset");
    assert_eq!(dump.number(8, "its stored offset"), opening_len as u64);
    dump.field(16, "image id");
    let mut stored = opening_len;
    for (frame, len) in lens.iter().enumerate() {
        dump.heading(&format!("  entry of frame {frame}"));
        dump.number(1, "kind");
        let runs = dump.number(1, "number of runs");
        dump.number(2, "reserved");
        dump.number(4, "logical length");
        dump.number(8, "logical offset");
        assert_eq!(dump.number(4, "stored length"), *len as u64);
        let hash = blake3::hash(&bytes[stored..stored + len]);
        assert_eq!(dump.field(32, "BLAKE3 of the stored bytes"), hash.as_bytes());
        dump.field(32, "BLAKE3 of the content");
        for _ in 0..runs {
            let word = u32::from_le_bytes(bytes[dump.at..dump.at + 4].try_into().unwrap());
            let kind = ["", "data", "zero", "free"][(word >> 30) as usize];
            dump.field(4, &format!("run: {kind}, units: {}", word & 0x3FFF_FFFF));
        }
        stored += len;
    }
    dump.heading("  end of the page");
    dump.seal(page);

    let tail = dump.at;
    dump.heading("Tail");
    dump.skippable("IMPRINTT");
    let manifest_len = usize::try_from(dump.number(8, "manifest length")).unwrap();
    let directory_len = usize::try_from(dump.number(8, "directory length")).unwrap();
    dump.heading("  manifest");
    let manifest = dump.at;
    dump.text(manifest_len, "");
    dump.heading("  directory");
    let directory = dump.at;
    dump.field(8, "kind: IMPRINTD");
    dump.number(4, "version");
    let pages = dump.number(4, "number of pages");
    dump.number(4, "length of the opening frame");
    dump.number(4, "span length");
    dump.number(8, "disk length");
    dump.field(16, "image id");
    dump.field(32, "hash of the opening frame");
    for total in ["data frames", "hole frames", "data bytes", "zero bytes", "free bytes"] {
        dump.number(8, total);
    }
    for _ in 0..pages {
        assert_eq!(dump.number(8, "page: its offset"), page as u64);
        dump.number(4, "its length");
        dump.number(4, "its number of frames");
        dump.number(8, "bytes of disk that it covers");
        dump.field(32, "its hash");
    }
    assert_eq!(dump.at, directory + directory_len);
    dump.heading("  trailer");
    let trailer = dump.at;
    dump.field(8, "kind: IMPRINTE");
    dump.number(4, "version");
    let entries = dump.number(4, "number of entries in the seek table");
    assert_eq!(dump.number(8, "offset of the tail"), tail as u64);
    dump.number(8, "manifest length");
    dump.number(8, "directory length");
    dump.field(16, "image id");
    let lens = [(manifest_len as u64).to_le_bytes(), (directory_len as u64).to_le_bytes()];
    let (manifest, directory) = (&bytes[manifest..directory], &bytes[directory..trailer]);
    let input = [b"imprint root v1\0".as_slice(), &lens[0], manifest, &lens[1], directory].concat();
    assert_eq!(dump.field(32, "root"), blake3::hash(&input).as_bytes());
    let hash = blake3::hash(&bytes[trailer..dump.at]);
    assert_eq!(dump.field(32, "BLAKE3 of the trailer up to here"), hash.as_bytes());

    dump.heading("Seek table");
    dump.field(4, "magic number of the seekable format's skippable frame");
    dump.number(4, "payload length");
    for frame in ["opening frame", "frame 0", "frame 1", "frame 2", "index page 0", "tail"] {
        let stored = u32::from_le_bytes(bytes[dump.at..dump.at + 4].try_into().unwrap());
        let logical = u32::from_le_bytes(bytes[dump.at + 4..dump.at + 8].try_into().unwrap());
        dump.field(8, &format!("{frame}: stored {stored}, decompressed {logical}"));
    }
    assert_eq!(dump.number(4, "number of entries"), entries);
    dump.field(1, "descriptor: no checksums");
    dump.field(4, "magic number of the footer");
    assert_eq!(dump.at, bytes.len());
    dump.out
}

fn document() -> (std::path::PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/image-format.md");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

#[test]
fn the_document_shows_what_the_writer_writes() {
    let (path, text) = document();
    let (before, rest) = text.split_once(BEGIN).expect("the document has a place for the example");
    let (shown, after) = rest.split_once(END).expect("the example ends");
    let made = dump(&example());
    if std::env::var_os("IMPRINT_BLESS").is_some() {
        fs::write(path, [before, BEGIN, &made, END, after].concat()).unwrap();
        return;
    }
    assert!(shown == made, "the example differs; it is now:\n{made}");
}

#[test]
fn the_documents_commands_print_the_manifest() {
    let (_, text) = document();
    let script = text
        .split_once("```sh\nf=NAME.img.zst; ")
        .and_then(|(_, rest)| rest.split_once("```"))
        .unwrap()
        .0;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("example.img.zst");
    fs::write(&path, example()).unwrap();
    let output = Command::new("sh")
        .args(["-euc", &format!("f=$1; {script}"), "sh"])
        .arg(&path)
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let expected = ImageReader::open(example()).unwrap().manifest_json().to_vec();
    assert_eq!(printed.as_bytes(), expected, "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_document_gives_the_limits_of_the_code() {
    let (_, text) = document();
    let limits = [
        ("UNIT_LEN", u64::from(UNIT_LEN)),
        ("DEFAULT_SPAN_LEN", u64::from(DEFAULT_SPAN_LEN)),
        ("MAX_SPAN_LEN", u64::from(MAX_SPAN_LEN)),
        ("MAX_HOLE_LEN", MAX_HOLE_LEN),
        ("MAX_RUNS", MAX_RUNS as u64),
        ("FRAMES_PER_PAGE", u64::from(FRAMES_PER_PAGE)),
        ("MAX_FRAMES_PER_PAGE", u64::from(MAX_FRAMES_PER_PAGE)),
        ("MAX_FRAMES", u64::from(MAX_FRAMES)),
        ("MAX_PAGES", u64::from(MAX_PAGES)),
        ("MAX_MANIFEST_LEN", MAX_MANIFEST_LEN),
        ("MAX_PRODUCER_LEN", MAX_PRODUCER_LEN as u64),
        ("MAX_DISK_LEN", MAX_DISK_LEN),
    ];
    for (name, value) in limits {
        assert!(text.contains(&format!("| `{name}` | {value} |")), "`{name}` is {value}");
    }
}
