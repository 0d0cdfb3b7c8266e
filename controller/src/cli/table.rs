//! Listings for people.

use std::io::{self, Write};

/// Columns as wide as their widest cell, two blanks between.
pub(super) fn print(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    put(&text)
}

/// JSON for programs.
pub(super) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    put(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Text to standard output; a reader that went away (`| head`) is no error.
pub(super) fn put(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// `2.54 GB`.
pub(super) fn bytes(value: i64) -> String {
    indicatif::DecimalBytes(u64::try_from(value).unwrap_or(0)).to_string()
}
