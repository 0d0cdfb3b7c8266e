//! A machine's serial console: what it printed, and waiting for what it will print.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::wait;

/// How much of the end is shown when a marker does not come.
const SHOWN_LINES: usize = 25;

/// The log of a console, read from some point on.
#[derive(Debug, Clone)]
pub struct Console {
    path: PathBuf,
    from: u64,
}

impl Console {
    /// The console from its first line.
    #[must_use]
    pub fn from_start(path: &Path) -> Self {
        Self { path: path.to_owned(), from: 0 }
    }

    /// The console from now on.
    #[must_use]
    pub fn from_now(path: &Path) -> Self {
        let from = std::fs::metadata(path).map_or(0, |meta| meta.len());
        Self { path: path.to_owned(), from }
    }

    /// What was printed so far, without escape sequences and carriage returns.
    ///
    /// # Errors
    /// If the log cannot be read; one that does not exist yet is empty.
    pub fn text(&self) -> Result<String> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(self.from))
                    .and_then(|_| file.read_to_end(&mut bytes))
                    .with_context(|| format!("reading {}", self.path.display()))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("opening {}", self.path.display()));
            }
        }
        Ok(plain(&String::from_utf8_lossy(&bytes)))
    }

    /// Waits for a text.
    ///
    /// # Errors
    /// If it does not come within `limit`, or one of `bad` comes first; the error shows the last lines.
    pub fn wait_for(&self, marker: &str, bad: &[&str], limit: Duration) -> Result<()> {
        let what = format!("'{marker}' on the console");
        let result = wait::until(&what, limit, || {
            let text = self.text()?;
            if let Some(word) = bad.iter().find(|word| text.contains(**word)) {
                anyhow::bail!("'{word}' came on the console, not '{marker}'");
            }
            Ok(text.contains(marker).then_some(()))
        });
        result.with_context(|| format!("the end of {}:\n{}", self.path.display(), self.tail()))
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = self.text().unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }
}

/// Takes escape sequences and carriage returns out.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {}
            '\u{1b}' => {
                // CSI sequences end with a letter; the others that consoles print have one more character.
                if chars.next() == Some('[') {
                    chars.by_ref().find(char::is_ascii_alphabetic);
                }
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_among_colours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        std::fs::write(&path, "\u{1b}[2J\u{1b}[01;01Hearlier\r\n").unwrap();
        let console = Console::from_now(&path);
        assert_eq!(console.text().unwrap(), "");
        std::fs::write(
            &path,
            "\u{1b}[2J\u{1b}[01;01Hearlier\r\n\u{1b}[0mtemplate \u{1b}[1mlogin: ",
        )
        .unwrap();
        console.wait_for("template login:", &[], Duration::ZERO).unwrap();
        let error = console.wait_for("panic", &[], Duration::ZERO).unwrap_err();
        assert!(format!("{error:#}").contains("template login:"));
        let error =
            Console::from_start(&path).wait_for("panic", &["earlier"], Duration::ZERO).unwrap_err();
        assert!(format!("{error:#}").contains("'earlier' came on the console"));
    }
}
