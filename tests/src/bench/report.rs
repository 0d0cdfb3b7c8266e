//! The results: `docs/performance.md` and its plot.
//!
//! The document is where results are kept, so that measures may be taken one by one, on any checkout: a measure's section replaces the
//! one of its key and nothing else. What stands outside the pair of marks is left alone; the plot is drawn of the document's tables.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::plot;
use super::run::Entry;
use super::stats::{Spread, ratio};
use crate::project;

const BEGIN: &str = "<!-- results of cargo xtask bench -->";
const END: &str = "<!-- end of results -->";
/// Stands before each section, with its key. Sections are in the order of their keys.
const KEY: &str = "\n<!-- measure: ";
const KEY_END: &str = " -->\n";
/// What a table of a race begins with.
const RACE: &str = "| | s | CPU s |";

/// The document, taken apart.
#[derive(Debug)]
pub struct Results {
    head: String,
    sections: BTreeMap<String, String>,
    tail: String,
}

/// One measure.
#[derive(Debug)]
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
#[derive(Debug)]
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
    /// If the document cannot be read or has no place for results.
    pub fn load() -> Result<Self> {
        let path = document();
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("taking {} apart", path.display()))
    }

    /// Puts a measure in, in place of an earlier one of this key, and writes everything.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn put(&mut self, key: &str, table: &Table) -> Result<()> {
        let markdown = table.markdown();
        println!("{markdown}");
        self.sections.insert(key.to_owned(), markdown);
        let path = document();
        write(&path.with_extension("svg"), &plot::svg(&self.races()))?;
        write(&path, &self.text())
    }

    fn parse(document: &str) -> Result<Self> {
        let Some((head, (results, tail))) =
            document.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?)))
        else {
            bail!("it lacks the lines {BEGIN:?} and {END:?}");
        };
        let mut parts = results.split(KEY);
        if parts.next().is_some_and(|first| !first.trim().is_empty()) {
            bail!("something stands before the first line {:?}", KEY.trim());
        }
        let section = |part: &str| {
            let (key, section) = part
                .split_once(KEY_END)
                .with_context(|| format!("a key without an end: {part:?}"))?;
            Ok((key.to_owned(), section.to_owned()))
        };
        let sections = parts.map(section).collect::<Result<_>>()?;
        Ok(Self { head: head.to_owned(), sections, tail: tail.to_owned() })
    }

    fn text(&self) -> String {
        let sections: String =
            self.sections.iter().map(|(key, text)| format!("{KEY}{key}{KEY_END}{text}")).collect();
        format!("{}{BEGIN}\n{sections}{END}{}", self.head, self.tail)
    }

    /// Of each race its title, and who took part with their medians in seconds.
    fn races(&self) -> Vec<plot::Race<'_>> {
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let name = cells.next()?;
            let seconds = cells.next()?.split(' ').next()?.parse().ok()?;
            Some((name.to_owned(), seconds))
        };
        let race = |section| {
            let (title, table) = str::split_once(section, RACE)?;
            let title = title.trim_start().strip_prefix("### ")?.lines().next()?;
            let rows = table.lines().skip(2).map_while(row).collect();
            Some(plot::Race { title, rows })
        };
        self.sections.values().filter_map(|section| race(section)).collect()
    }
}

fn document() -> PathBuf {
    project::root().join("docs/performance.md")
}

impl Table {
    fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}\n\n", self.title, self.conditions);
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
    use crate::bench::run::Run;

    fn table(title: &str, entries: Vec<Entry>) -> Table {
        let figures = vec![Figure::new("bytes", 12.0, "MB", Some(20.0))];
        Table { title: title.into(), conditions: "here".into(), entries, figures }
    }

    fn entry(name: &str, wall_s: f64) -> Entry {
        let run = Run { wall_s, cpu_s: 1.0, peak_mib: 2.0, output_bytes: None };
        Entry { name: name.into(), goal: None, runs: vec![run; 3] }
    }

    #[test]
    fn a_measure_replaces_the_one_of_its_key_and_nothing_else() {
        let empty = format!("# Title\n\ntext\n\n{BEGIN}\n{END}\nafter\n");
        let mut results = Results::parse(&empty).unwrap();
        let mut put = |key: &str, table: &Table| {
            results.sections.insert(key.to_owned(), table.markdown());
            let text = results.text();
            assert_eq!(Results::parse(&text).unwrap().text(), text);
            results = Results::parse(&text).unwrap();
            text
        };
        put("2 b", &table("stays", Vec::new()));
        let race = table("a race", vec![entry("ours", 1.5), entry("its: a, b", 3.25)]);
        let once = put("1 a", &race);
        assert!(once.starts_with("# Title\n\ntext\n") && once.ends_with("after\n"), "{once}");
        assert!(once.contains("| bytes | 12.0 MB | ≤ 20.0 MB |"), "{once}");
        let again = put("1 a", &table("another race", race.entries));
        assert!(!again.contains("### a race") && again.contains("### stays"), "{again}");
        assert!(again.find("### another race") < again.find("### stays"), "{again}");
        let races = results.races();
        let [race] = &races[..] else { panic!("{races:?}") };
        let rows = [("ours".to_owned(), 1.5), ("its: a, b".to_owned(), 3.25)];
        assert_eq!((race.title, &race.rows[..]), ("another race", &rows[..]));
    }

    #[test]
    fn the_document_that_is_there_is_taken_apart_and_its_plot_is_of_it() {
        let text = fs::read_to_string(document()).unwrap();
        let results = Results::parse(&text).unwrap();
        assert_eq!(results.text(), text);
        let plot = fs::read_to_string(document().with_extension("svg")).unwrap();
        assert!(plot == plot::svg(&results.races()), "the plot is not of this document's tables");
        assert!(Results::parse("# Title\n").is_err());
    }
}
