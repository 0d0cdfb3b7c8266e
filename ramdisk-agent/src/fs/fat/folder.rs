//! What lies in a folder of a FAT filesystem, by its path. Names are long ones where there are any (the specification's section 7), and
//! are compared without regard to the case of letters, as firmware does.

use std::io::{self, Read, Seek};

use super::Doubt;
use super::boot::{self, Boot, ENTRY_LEN, FIRST_CLUSTER};
use super::table::{self, Next, Table};
use crate::fs::FsKind;
use crate::fs::bytes::{le16, read_at};

/// The most that a folder may have (the specification's section 6.4): 65,536 entries.
const MAX_FOLDER: usize = 65_536 * ENTRY_LEN;
const DELETED: u8 = 0xe5;
const ATTR_LABEL: u8 = 0x08;
const ATTR_FOLDER: u8 = 0x10;
const ATTR_LONG_NAME: u8 = 0x0f;
const LAST_PIECE: u8 = 0x40;
const PIECE_CHARS: usize = 13;
/// Bits that say that a short name's parts are shown in small letters.
const SMALL_BASE: u8 = 0x08;
const SMALL_EXTENSION: u8 = 0x10;

/// A file or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub is_folder: bool,
    first_cluster: u32,
}

/// What lies in a folder; `None` if there is no such folder.
pub fn folder(
    src: &mut (impl Read + Seek),
    len_bytes: u64,
    path: &[&str],
) -> io::Result<Result<Option<Vec<Entry>>, Doubt>> {
    if len_bytes < boot::LEN as u64 {
        return Ok(Err("it is too small for a FAT".into()));
    }
    let mut sector = [0_u8; boot::LEN];
    read_at(src, 0, &mut sector)?;
    let Some(boot) = Boot::parse(&sector) else { return Ok(Err("it is no FAT".into())) };
    if let Err(doubt) = boot.check(len_bytes) {
        return Ok(Err(doubt));
    }
    let table = match table::read(src, &boot)? {
        Ok(table) => table,
        Err(doubt) => return Ok(Err(doubt)),
    };
    let mut bytes = match root(src, &boot, &table)? {
        Ok(bytes) => bytes,
        Err(doubt) => return Ok(Err(doubt)),
    };
    for name in path {
        let found = entries(&bytes, &boot)
            .into_iter()
            .find(|entry| entry.is_folder && entry.name.eq_ignore_ascii_case(name));
        let Some(entry) = found else { return Ok(Ok(None)) };
        bytes = match content(src, &boot, &table, entry.first_cluster)? {
            Ok(bytes) => bytes,
            Err(doubt) => return Ok(Err(doubt)),
        };
    }
    Ok(Ok(Some(entries(&bytes, &boot))))
}

fn root(
    src: &mut (impl Read + Seek),
    boot: &Boot,
    table: &Table,
) -> io::Result<Result<Vec<u8>, Doubt>> {
    if boot.kind == FsKind::Fat32 {
        return content(src, boot, table, boot.root_cluster);
    }
    let (offset, len) = boot.fixed_root();
    let mut bytes = vec![0; usize::try_from(len).expect("at most 65535 entries")];
    read_at(src, offset, &mut bytes)?;
    Ok(Ok(bytes))
}

/// The bytes of a chain of clusters that is a folder.
fn content(
    src: &mut (impl Read + Seek),
    boot: &Boot,
    table: &Table,
    first: u32,
) -> io::Result<Result<Vec<u8>, Doubt>> {
    let cluster_len = usize::try_from(boot.cluster_bytes()).expect("at most 512 KiB");
    let mut bytes = Vec::new();
    let mut next = Next::Cluster(first);
    while let Next::Cluster(first) = next {
        if !(FIRST_CLUSTER..boot.end_cluster()).contains(&first) {
            return Ok(Err(format!("a folder at cluster {first}")));
        }
        let run = match table.run_at(first) {
            Ok(index) => table.runs[index],
            Err(doubt) => return Ok(Err(doubt)),
        };
        for cluster in run.first..run.first + run.count {
            let at = bytes.len();
            // A chain that leads back to itself ends here, too.
            if at + cluster_len > MAX_FOLDER.max(cluster_len) {
                return Ok(Err("a folder has more than 65,536 entries".into()));
            }
            bytes.resize(at + cluster_len, 0);
            read_at(src, boot.cluster_offset(cluster), &mut bytes[at..])?;
        }
        next = run.next;
    }
    Ok(Ok(bytes))
}

fn entries(bytes: &[u8], boot: &Boot) -> Vec<Entry> {
    let (raw, _) = bytes.as_chunks::<ENTRY_LEN>();
    let mut found = Vec::new();
    let mut long = LongName::default();
    for entry in raw {
        let attributes = entry[11];
        match entry[0] {
            0 => break,
            DELETED => long = LongName::default(),
            _ if attributes & 0x3f == ATTR_LONG_NAME => long.add(entry),
            _ if attributes & ATTR_LABEL != 0 => long = LongName::default(),
            _ => {
                let name = std::mem::take(&mut long).name_of(entry);
                let high = if boot.kind == FsKind::Fat32 { le16(entry, 20) } else { 0 };
                found.push(Entry {
                    name: name.unwrap_or_else(|| short_name(entry)),
                    is_folder: attributes & ATTR_FOLDER != 0,
                    first_cluster: u32::from(high) << 16 | u32::from(le16(entry, 26)),
                });
            }
        }
    }
    found
}

/// The pieces of a long name, the last of which comes first.
#[derive(Debug, Default)]
struct LongName {
    chars: Vec<u16>,
    /// The number of the piece that was read last; 0 if none was.
    number: u8,
    checksum: u8,
}

impl LongName {
    fn add(&mut self, entry: &[u8; ENTRY_LEN]) {
        let number = entry[0] & !LAST_PIECE;
        if entry[0] & LAST_PIECE != 0 {
            *self = Self { chars: Vec::new(), number, checksum: entry[13] };
        } else if number == 0 || number + 1 != self.number || entry[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.number = number;
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        let mut chars: Vec<u16> = places.map(|at| le16(entry, at)).collect();
        debug_assert_eq!(chars.len(), PIECE_CHARS);
        chars.append(&mut self.chars);
        self.chars = chars;
    }

    /// The name, if all of its pieces were there and belong to this entry.
    fn name_of(self, entry: &[u8; ENTRY_LEN]) -> Option<String> {
        let sum = entry[..11].iter().fold(0_u8, |sum, b| sum.rotate_right(1).wrapping_add(*b));
        if self.number != 1 || self.checksum != sum {
            return None;
        }
        let end = self.chars.iter().position(|c| *c == 0).unwrap_or(self.chars.len());
        String::from_utf16(&self.chars[..end]).ok()
    }
}

fn short_name(entry: &[u8; ENTRY_LEN]) -> String {
    let part = |bytes: &[u8], small: u8| {
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let text = text.trim_end().to_owned();
        if entry[12] & small != 0 { text.to_ascii_lowercase() } else { text }
    };
    let (base, extension) = (part(&entry[..8], SMALL_BASE), part(&entry[8..11], SMALL_EXTENSION));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::process::Command;

    use super::*;

    fn run(tool: &str, args: &[&str]) {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(tool);
        command.args(args).env("PATH", path).env("MTOOLS_SKIP_CHECK", "1");
        let output = command.output().expect("apt-get install mtools dosfstools");
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A FAT with a folder of long and short names.
    fn fat(kind: &str, mib: u64) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(mib << 20).unwrap();
        let path = file.path().to_str().unwrap();
        run("mkfs.vfat", &["-F", kind, "-n", "ESP", path]);
        run("mmd", &["-i", path, "::/EFI", "::/EFI/BOOT", "::/EFI/a vendor with a long name"]);
        for i in 0..40 {
            run("mmd", &["-i", path, &format!("::/EFI/BOOT/a folder with number {i}")]);
        }
        let empty = tempfile::NamedTempFile::new().unwrap();
        let from = empty.path().to_str().unwrap();
        for name in ["EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/shimx64.efi", "EFI/BOOT/grubx64.efi.signed"]
        {
            run("mcopy", &["-i", path, from, &format!("::/{name}")]);
        }
        std::fs::read(path).unwrap()
    }

    fn names(bytes: &[u8], path: &[&str]) -> Option<Vec<String>> {
        let entries =
            folder(&mut Cursor::new(bytes), bytes.len() as u64, path).unwrap().unwrap()?;
        Some(entries.into_iter().map(|entry| entry.name).collect())
    }

    #[test]
    fn folders_of_every_kind_of_fat() {
        for (kind, mib) in [("12", 2), ("16", 20), ("32", 40)] {
            let bytes = fat(kind, mib);
            assert_eq!(names(&bytes, &[]).unwrap(), ["EFI"]);
            let efi = names(&bytes, &["efi"]).unwrap();
            assert_eq!(efi[2..], ["BOOT", "a vendor with a long name"]);
            let boot = names(&bytes, &["EFI", "Boot"]).unwrap();
            assert_eq!(boot.len(), 2 + 40 + 3);
            for name in
                ["a folder with number 39", "BOOTX64.EFI", "shimx64.efi", "grubx64.efi.signed"]
            {
                assert!(boot.iter().any(|n| n == name), "{boot:?}");
            }
            assert_eq!(names(&bytes, &["EFI", "nothing"]), None);
        }
        assert!(folder(&mut Cursor::new([0_u8; 4096]), 4096, &[]).unwrap().is_err());
    }

    /// Damage gives an answer or a doubt, and an end.
    #[test]
    fn any_damage_ends() {
        let good = fat("12", 2);
        let mut random = blake3::Hasher::new().update(b"fat").finalize_xof();
        for _ in 0..300 {
            let mut bytes = good.clone();
            let mut noise = [0_u8; 40];
            random.fill(&mut noise);
            for piece in noise.as_chunks::<5>().0 {
                let at = u32::from_le_bytes([piece[0], piece[1], piece[2], 0]) as usize;
                let at = at % (64 << 10);
                bytes[at] = piece[4];
            }
            let _ = folder(&mut Cursor::new(&bytes), bytes.len() as u64, &["EFI", "BOOT"]);
        }
    }
}
