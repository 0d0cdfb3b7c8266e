//! How scenarios ended: a line each in the folder that `IMPRINT_FAULT_REPORT` names, for `cargo xtask test --faults` to add up.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use agent_api::ErrorKind;

/// Whether all scenarios run.
pub fn all() -> bool {
    std::env::var_os("IMPRINT_FAULTS").is_some_and(|value| value == "all")
}

/// All of a list, or `few` of it, evenly spread.
pub fn chosen<T>(list: Vec<T>, few: usize) -> Vec<T> {
    let step = if all() { 1 } else { list.len().div_ceil(few).max(1) };
    list.into_iter().step_by(step).collect()
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// All bytes are the same.
    Same,
    /// It said what went wrong.
    Failed(ErrorKind, String),
}

/// What a scenario may end in.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    pub same: bool,
    pub kinds: &'static [ErrorKind],
}

/// Nothing but success.
pub const SAME: Expected = Expected { same: true, kinds: &[] };

/// The scenarios of one group.
pub struct Report {
    store: &'static str,
    group: &'static str,
    lines: String,
    count: usize,
}

impl Report {
    pub fn new(store: &'static str, group: &'static str) -> Self {
        Self { store, group, lines: String::new(), count: 0 }
    }

    /// Runs one scenario and checks how it ends, and when.
    pub fn scenario(
        &mut self,
        what: &str,
        expected: Expected,
        limit: Duration,
        run: impl FnOnce() -> Ended,
    ) {
        let start = Instant::now();
        let ended = run();
        let took = start.elapsed();
        let (store, group) = (self.store, self.group);
        let right = match &ended {
            Ended::Same => expected.same,
            Ended::Failed(kind, _) => expected.kinds.contains(kind),
        };
        assert!(right, "{store}, {group}, {what}: {ended:?}, wanted {expected:?}");
        assert!(took <= limit, "{store}, {group}, {what}: took {took:?}, may take {limit:?}");
        let word = match ended {
            Ended::Same => "success".to_owned(),
            Ended::Failed(kind, _) => kind.to_string(),
        };
        writeln!(self.lines, "{store}\t{group}\t{what}\t{word}\t{}", took.as_millis()).unwrap();
        self.count += 1;
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        println!("{}, {}: {} scenarios", self.store, self.group, self.count);
        let Some(folder) = std::env::var_os("IMPRINT_FAULT_REPORT") else { return };
        let name = format!("{}-{}.tsv", self.store, self.group.replace(' ', "-"));
        let path = std::path::Path::new(&folder).join(name);
        let file = std::fs::File::options().create(true).append(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(self.lines.as_bytes())) {
            // A failed scenario has the word.
            eprintln!("writing the report: {error}");
        }
    }
}
