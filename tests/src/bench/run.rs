//! Running programs in turn, and the clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use agent_api::RestoreSummary;
use anyhow::{Context, Result, bail};

use crate::command;

/// What one run of a program took.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Time on the clock, in seconds.
    pub wall_s: f64,
    /// User and system time of all its processes, in seconds.
    pub cpu_s: f64,
    /// Resident memory of the largest of its processes, in MiB.
    pub peak_mib: f64,
    /// How long the file is that it wrote, in bytes.
    pub output_bytes: Option<u64>,
}

/// Which seconds of a program count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// All.
    Wall,
    /// It says in its last line how many: `SECONDS CPU-SECONDS`.
    Own,
    /// All but those of the read-back, in a restore of ours whose summary is JSON. Its processor time is still all of it.
    ButReadBack,
}

/// A program that takes part.
#[derive(Debug, Clone)]
pub struct Contender {
    /// What the table calls it.
    pub name: &'static str,
    /// What bash runs.
    pub script: String,
    /// The file that it writes, which is removed after each run.
    pub output: Option<PathBuf>,
    /// It takes so long that one run must do.
    pub once: bool,
    /// Our time is to be at most so much of its own.
    pub goal: Option<f64>,
    /// Which seconds count.
    pub clock: Clock,
}

impl Contender {
    /// One that runs in each round and has no goal.
    #[must_use]
    pub fn new(name: &'static str, script: String) -> Self {
        Self { name, script, output: None, once: false, goal: None, clock: Clock::Wall }
    }

    /// Writes this file.
    #[must_use]
    pub fn writes(mut self, output: &Path) -> Self {
        self.output = Some(output.to_owned());
        self
    }

    /// Runs in the first round only.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// Has this clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sets the goal.
    #[must_use]
    pub fn goal(mut self, ratio: f64) -> Self {
        self.goal = Some(ratio);
        self
    }
}

/// A contender and its runs, one for each round in which it took part.
#[derive(Debug, Clone)]
pub struct Entry {
    /// [`Contender::name`].
    pub name: String,
    /// [`Contender::goal`].
    pub goal: Option<f64>,
    /// In the order of the rounds.
    pub runs: Vec<Run>,
}

/// Runs all contenders in turn, `rounds` times, every other round backwards: neighbours in time are what is compared.
/// The first is ours. `before` makes the conditions equal before each run, outside of the time.
///
/// # Errors
/// If one fails.
pub fn race(
    scratch: &Path,
    contenders: &[Contender],
    rounds: u32,
    mut before: impl FnMut() -> Result<()>,
) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = contenders
        .iter()
        .map(|c| Entry { name: c.name.to_owned(), goal: c.goal, runs: Vec::new() })
        .collect();
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for n in order {
            let contender = &contenders[n];
            if contender.once && round > 0 {
                continue;
            }
            before()?;
            let (mut run, said) = timed(scratch, &contender.script)?;
            match contender.clock {
                Clock::Wall => {}
                Clock::Own => {
                    (run.wall_s, run.cpu_s) = own_clock(&said).context(contender.name)?;
                }
                Clock::ButReadBack => {
                    run.wall_s -= read_back_s(&said).context(contender.name)?;
                }
            }
            if let Some(output) = &contender.output {
                run.output_bytes = Some(len(output)?);
                remove(output)?;
            }
            eprintln!(
                "  {:50} {:7.2} s  {:7.2} s CPU  {:5.0} MiB",
                contender.name, run.wall_s, run.cpu_s, run.peak_mib
            );
            entries[n].runs.push(run);
        }
    }
    Ok(entries)
}

/// Runs a script with bash, where a failure in the middle of a pipe is one; also what it said on standard output.
///
/// # Errors
/// If it fails: with what it said last.
pub fn timed(scratch: &Path, script: &str) -> Result<(Run, String)> {
    let figures = scratch.join("time");
    let mut time = Command::new("time");
    time.args(["--format", "%U %S %M", "--output"]).arg(&figures);
    time.args(["bash", "-e", "-o", "pipefail", "-c", script]);
    let start = Instant::now();
    let said = command::output(&mut time)?;
    let wall_s = start.elapsed().as_secs_f64();
    let text = fs::read_to_string(&figures).context("reading what time(1) wrote")?;
    let numbers = numbers(&text)?;
    let [user, system, peak_kib] = numbers[..] else {
        bail!("time(1) wrote {text:?} instead of three numbers");
    };
    let run = Run { wall_s, cpu_s: user + system, peak_mib: peak_kib / 1024.0, output_bytes: None };
    Ok((run, said))
}

fn own_clock(said: &str) -> Result<(f64, f64)> {
    let last = said.lines().last().unwrap_or_default();
    let [wall_s, cpu_s] = numbers(last)?[..] else { bail!("{last:?} is not two numbers") };
    Ok((wall_s, cpu_s))
}

fn read_back_s(said: &str) -> Result<f64> {
    let start = said.find('{').context("no summary")?;
    let summary: RestoreSummary =
        serde_json::from_str(&said[start..]).context("reading its summary")?;
    Ok(Duration::from_millis(summary.verify_ms).as_secs_f64())
}

fn numbers(text: &str) -> Result<Vec<f64>> {
    let parse = |word: &str| word.parse().with_context(|| format!("{word:?} is not a number"));
    text.split_whitespace().map(parse).collect()
}

/// Removes a file, if it is there.
///
/// # Errors
/// If it stays.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn len(path: &PathBuf) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?.len())
}
