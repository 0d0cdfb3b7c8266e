//! The ticket: the secret that this boot was given, worth one credential.
//!
//! It arrives as a file of the initramfs and is deleted as soon as it has been read, so that nothing started later can see it.
//! It is never written, logged or passed to another program.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use agent_api::Ticket;

/// A ticket is two short strings.
const MAX_TICKET_LEN: u64 = 4096;

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// The boot gave none.
    #[error("this boot came with no ticket: the controller did not arm a job for this machine")]
    None,
    /// The file cannot be read.
    #[error("cannot read the ticket")]
    Io(#[source] io::Error),
    /// The file is not a ticket.
    #[error("the ticket is damaged (line {line}, column {column})")]
    Damaged {
        /// Line of the JSON text.
        line: usize,
        /// Column in that line.
        column: usize,
    },
}

/// Reads the ticket and deletes its file, whether it is good or not.
pub fn take(path: &Path) -> Result<Ticket, TicketError> {
    let mut text = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_TICKET_LEN).read_to_end(&mut text));
    let removed = fs::remove_file(path);
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(TicketError::None),
        Err(e) => return Err(TicketError::Io(e)),
        Ok(_) => removed.map_err(TicketError::Io)?,
    }
    // The message of a JSON error may quote the text, and the text is the secret: only the position is kept.
    serde_json::from_slice(&text)
        .map_err(|e| TicketError::Damaged { line: e.line(), column: e.column() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_read_once_and_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticket.json");
        fs::write(&path, r#"{"host":"node7","secret":"5ec2e7"}"#).unwrap();
        let ticket = take(&path).unwrap();
        assert_eq!((ticket.host.as_str(), ticket.secret.as_str()), ("node7", "5ec2e7"));
        assert!(!path.exists());
        assert!(matches!(take(&path), Err(TicketError::None)));
        assert!(!format!("{ticket:?}").contains("5ec2e7"));
    }

    #[test]
    fn a_damaged_ticket_is_gone_too_and_not_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticket.json");
        fs::write(&path, r#"{"host":"node7","secret":17171717}"#).unwrap();
        let error = take(&path).unwrap_err();
        assert!(!path.exists());
        let text = format!("{error} {error:?}");
        assert!(text.contains("line 1") && !text.contains("17171717"), "{text}");
    }
}
