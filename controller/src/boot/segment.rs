//! The ticket as an initrd segment of its own: an uncompressed newc archive that the kernel unpacks before the initramfs proper.

use agent_api::{TICKET_PATH, Ticket};
use cpio::newc::{Builder, ModeFileType, trailer};

/// The segment's length is a multiple of this, so that whatever follows it is aligned for every boot loader.
const BLOCK: usize = 512;

/// The archive with the ticket, owner root, mode 0600.
#[must_use]
pub fn ticket(ticket: &Ticket) -> Vec<u8> {
    let path = TICKET_PATH.trim_start_matches('/');
    let (folder, _) = path.split_once('/').expect("TICKET_PATH has one folder");
    let content = serde_json::to_vec(ticket).expect("a ticket is plain data");
    let mut archive = Vec::new();
    append(
        &mut archive,
        Builder::new(folder)
            .ino(1)
            .mode(0o700)
            .set_mode_file_type(ModeFileType::Directory)
            .nlink(2),
        &[],
    );
    append(
        &mut archive,
        Builder::new(path).ino(2).mode(0o600).set_mode_file_type(ModeFileType::Regular),
        &content,
    );
    archive = trailer(archive).expect("writing to memory does not fail");
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
    archive
}

fn append(archive: &mut Vec<u8>, entry: Builder, content: &[u8]) {
    let len = u32::try_from(content.len()).expect("a ticket is short");
    let mut writer = entry.write(archive, len);
    std::io::Write::write_all(&mut writer, content).expect("writing to memory does not fail");
    writer.finish().expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn stock_cpio_reads_it() {
        let value = Ticket { host: "node7".into(), secret: "ab".repeat(32) };
        let bytes = ticket(&value);
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut child = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed (apt-get install cpio)");
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 2, "{listing}");
        assert!(lines[0].starts_with("drwx------") && lines[0].ends_with(" imprint"), "{listing}");
        assert!(
            lines[1].starts_with("-rw-------") && lines[1].ends_with(" imprint/ticket.json"),
            "{listing}"
        );

        let mut reader = cpio::newc::Reader::new(&bytes[..]).unwrap();
        reader = cpio::newc::Reader::new(reader.finish().unwrap()).unwrap();
        assert_eq!(reader.entry().name(), "imprint/ticket.json");
        assert_eq!(reader.entry().uid(), 0);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let back: Ticket = serde_json::from_str(&text).unwrap();
        assert_eq!(back.secret, value.secret);
    }
}
