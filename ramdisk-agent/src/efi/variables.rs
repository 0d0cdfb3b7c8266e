//! The boot entries that firmware keeps, through a folder in which the kernel shows its variables: efivarfs.
//!
//! A variable is a file of its attributes, in four bytes, and its value, and is written by one write (`fs/efivarfs`). Firmware's memory is
//! small and wears out, so nothing is written that is there already.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::load_option::{self, LoadOption};

/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Kept over a reset, for boot services and the system.
const ATTRIBUTES: u32 = 7;
/// Longer values are not those of boot entries.
const MAX_VALUE: u64 = 64 << 10;
/// How many entries are looked at; firmware has room for some dozens.
const MAX_ENTRIES: usize = 1024;

/// Where the kernel shows firmware's variables.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";

/// Firmware's variables.
#[derive(Debug)]
pub struct Variables {
    folder: PathBuf,
}

impl Variables {
    /// Those that a folder shows.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The boot entries by number, whether or not the boot order has them.
    pub fn entries(&self) -> io::Result<Vec<(u16, LoadOption)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let Some(number) = name.to_str().and_then(number_of) else { continue };
            if let Some(option) = self.read(&boot(number))?.and_then(|v| load_option::decode(&v)) {
                entries.push((number, option));
            }
            if entries.len() > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} boot entries")));
            }
        }
        entries.sort_by_key(|(number, _)| *number);
        Ok(entries)
    }

    /// The entries' numbers in the order in which firmware tries them.
    pub fn order(&self) -> io::Result<Vec<u16>> {
        let value = self.read("BootOrder")?.unwrap_or_default();
        let (pairs, _) = value.as_chunks::<2>();
        Ok(pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect())
    }

    /// Sets the order.
    pub fn set_order(&self, order: &[u16]) -> io::Result<()> {
        let value: Vec<u8> = order.iter().copied().flat_map(u16::to_le_bytes).collect();
        if self.read("BootOrder")?.as_deref() == Some(&value) {
            return Ok(());
        }
        self.write("BootOrder", &value)
    }

    /// The lowest number that no variable has.
    pub fn free_number(&self) -> io::Result<u16> {
        let free = (0..=u16::MAX).find(|number| !self.path(&boot(*number)).exists());
        free.ok_or_else(|| io::Error::other("all 65,536 boot entries are taken"))
    }

    /// Makes a boot entry.
    pub fn make(&self, number: u16, option: &[u8]) -> io::Result<()> {
        self.write(&boot(number), option)
    }

    /// Removes a boot entry.
    pub fn remove(&self, number: u16) -> io::Result<()> {
        fs::remove_file(self.path(&boot(number)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{GLOBAL}"))
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_VALUE).read_to_end(&mut bytes)?;
        Ok(bytes.get(4..).map(<[u8]>::to_vec))
    }

    fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let bytes = [&ATTRIBUTES.to_le_bytes(), value].concat();
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).open(self.path(name))?;
        // One write is one call of the firmware.
        let written = file.write(&bytes)?;
        if written != bytes.len() {
            return Err(io::Error::other(format!("{name} was written in part")));
        }
        Ok(())
    }
}

fn boot(number: u16) -> String {
    format!("Boot{number:04X}")
}

/// The number in `Boot0001-8be4df61-…`.
fn number_of(name: &str) -> Option<u16> {
    let digits = name.strip_prefix("Boot")?.strip_suffix(GLOBAL)?.strip_suffix('-')?;
    let is_hex = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| is_hex)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn entries_and_their_order_in_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Variables::new(dir.path());
        assert_eq!(variables.order().unwrap(), [0_u16; 0]);
        assert_eq!(variables.free_number().unwrap(), 0);
        let option = load_option::encode("a", 1, 2, 3, Uuid::nil(), "\\x");
        variables.make(0, &option).unwrap();
        variables.make(0x1A, &option).unwrap();
        variables.set_order(&[0x1A, 0]).unwrap();
        assert_eq!(variables.free_number().unwrap(), 1);
        assert_eq!(variables.order().unwrap(), [0x1A, 0]);
        for (name, bytes) in
            [("BootCurrent", &[6, 0, 0, 0, 1, 0][..]), ("Boot0003", &[7, 0]), ("Bootx", &[])]
        {
            fs::write(dir.path().join(format!("{name}-{GLOBAL}")), bytes).unwrap();
        }
        let entries = variables.entries().unwrap();
        assert_eq!(entries.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 0x1A]);
        assert_eq!(entries[1].1.label, "a");
        let raw = fs::read(dir.path().join(format!("Boot001A-{GLOBAL}"))).unwrap();
        assert_eq!((&raw[..4], &raw[4..]), (&[7, 0, 0, 0][..], &option[..]));
        variables.remove(0x1A).unwrap();
        assert_eq!(variables.entries().unwrap().len(), 1);
        variables.remove(0x1A).unwrap_err();
    }
}
