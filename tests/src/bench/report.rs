//! The results: kept as JSON, so that measures may be taken one by one, and shown as `docs/performance.md` and its plot.
//!
//! The document's own text stays; what stands between a pair of marks in it is replaced.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::plot;
use super::run::Entry;
use super::stats::{Spread, ratio};
use crate::project;

const BEGIN: &str = "<!-- results of cargo xtask bench -->";
const END: &str = "<!-- end of results -->";
/// Where the document has none yet.
const HEAD: &str = "# Performance\n\n";

/// Everything measured so far, in the order of its keys.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Results(BTreeMap<String, Table>);

/// One measure.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    /// What was done.
    pub title: String,
    /// Machine, sizes, state of the caches.
    pub conditions: String,
    /// What took part; ours first.
    pub entries: Vec<Entry>,
    /// Single figures.
    pub figures: Vec<Figure>,
}

/// A single figure, and what was asked of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub what: String,
    /// Its value.
    pub value: f64,
    /// The unit of both.
    pub unit: String,
    /// What it is to be at most.
    pub goal: Option<f64>,
}

impl Figure {
    /// A figure.
    #[must_use]
    pub fn new(what: impl Into<String>, value: f64, unit: &str, goal: Option<f64>) -> Self {
        Self { what: what.into(), value, unit: unit.to_owned(), goal }
    }
}

impl Results {
    /// Those of earlier runs.
    ///
    /// # Errors
    /// If they are there but cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            text => text.with_context(|| format!("reading {}", path.display()))?,
        };
        serde_json::from_str(&text)
            .with_context(|| format!("{} is of another version: remove it", path.display()))
    }

    /// Puts a measure in, in place of an earlier one of this key, and writes everything.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn put(&mut self, path: &Path, key: &str, table: Table) -> Result<()> {
        println!("{}", table.markdown());
        self.0.insert(key.to_owned(), table);
        write(path, &serde_json::to_string_pretty(self).context("writing results as JSON")?)?;
        let docs = project::root().join("docs");
        let document = docs.join("performance.md");
        let before = fs::read_to_string(&document).unwrap_or_else(|_| HEAD.to_owned());
        write(&document, &self.insert_into(&before))?;
        write(&docs.join("performance.svg"), &plot::svg(self.0.values()))
    }

    fn insert_into(&self, document: &str) -> String {
        let (head, rest) = document.split_once(BEGIN).unwrap_or((document, ""));
        let tail = rest.split_once(END).map_or("\n", |(_, tail)| tail);
        let tables: Vec<String> = self.0.values().map(Table::markdown).collect();
        format!("{head}{BEGIN}\n{}{END}{tail}", tables.concat())
    }
}

impl Table {
    fn markdown(&self) -> String {
        let mut text = format!("\n### {}\n\n{}\n\n", self.title, self.conditions);
        if let Some(ours) = self.entries.first() {
            text += "| | s | CPU s | image MB | memory MiB | our time ÷ its | our CPU ÷ its | our image ÷ its |\n";
            text += "|---|---|---|---|---|---|---|---|\n";
            for entry in &self.entries {
                text += &row(ours, entry);
            }
            text += "\n";
        }
        if !self.figures.is_empty() {
            text += "| | | goal |\n|---|---|---|\n";
            for Figure { what, value, unit, goal } in &self.figures {
                let goal =
                    goal.map_or_else(String::new, |goal| format!("≤ {} {unit}", short(goal)));
                text += &format!("| {what} | {} {unit} | {goal} |\n", short(*value));
            }
            text += "\n";
        }
        text
    }
}

fn row(ours: &Entry, entry: &Entry) -> String {
    let figure = |get: fn(&super::run::Run) -> f64| Spread::of(entry.runs.iter().map(get));
    let wall = figure(|run| run.wall_s).map_or_else(String::new, |s| {
        if entry.runs.len() > 1 {
            format!("{:.2} ({:.2}–{:.2})", s.median, s.min, s.max)
        } else {
            format!("{:.2}", s.median)
        }
    });
    let median = |s: Option<Spread>, digits| {
        s.map_or_else(String::new, |s| format!("{:.digits$}", s.median))
    };
    let size = |entry: &Entry| entry.runs.first().and_then(|run| run.output_bytes).map(mega);
    let size_text = size(entry).map_or_else(String::new, |size| format!("{size:.0}"));
    let (mut time, mut cpu, mut sizes) = Default::default();
    if !std::ptr::eq(ours, entry) {
        time = ratio(ours, entry, |run| run.wall_s).map_or_else(String::new, |s| {
            let goal = entry.goal.map_or_else(String::new, |goal| format!(", goal ≤ {goal:.2}"));
            format!("**{:.2}** ({:.2}–{:.2}{goal})", s.median, s.min, s.max)
        });
        cpu = median(ratio(ours, entry, |run| run.cpu_s), 2);
        sizes = match (size(ours), size(entry)) {
            (Some(our), Some(its)) => format!("{:.3}", our / its),
            _ => String::new(),
        };
    }
    let cpu_s = median(figure(|run| run.cpu_s), 2);
    let peak = figure(|run| run.peak_mib).map_or_else(String::new, |s| format!("{:.0}", s.max));
    format!(
        "| {} | {wall} | {cpu_s} | {size_text} | {peak} | {time} | {cpu} | {sizes} |\n",
        entry.name
    )
}

/// Bytes as MB.
#[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
pub fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Three digits, as far as they say something.
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 || v == 0.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.1 => format!("{v:.2}"),
        v => format!("{v:.4}"),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let mut results = Results::default();
        let table = |title: &str| Table {
            title: title.into(),
            conditions: String::new(),
            entries: Vec::new(),
            figures: vec![Figure::new("bytes", 12.0, "MB", Some(20.0))],
        };
        results.0.insert("a".into(), table("first"));
        let once = results.insert_into("# Title\n\ntext\n");
        assert!(once.starts_with("# Title\n\ntext\n") && once.contains("### first"), "{once}");
        assert!(once.contains("| bytes | 12.0 MB | ≤ 20.0 MB |"), "{once}");
        results.0.insert("a".into(), table("second"));
        let again = results.insert_into(&(once + "after\n"));
        assert!(again.contains("### second") && !again.contains("### first"), "{again}");
        assert!(again.ends_with("after\n"), "{again}");
    }
}
