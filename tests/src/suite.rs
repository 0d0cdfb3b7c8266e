//! `cargo xtask test`: everything that CI runs, in order of cost.
//!
//! First what needs only a compiler (format, lints, documentation, licences), then unit and property tests, then the lab. All of
//! them run even if one fails, so that a run shows everything there is to mend; what failed is listed at the end. What the lab
//! needs and keeps (the static agent, the template) is made before it, so that its tests' limits are those of tests.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::lab::Prepared;
use crate::{command, packages, project};

/// Which part of the tests to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Format, lints, documentation, licences
    Checks,
    /// Unit and property tests, and tests against other people's tools and servers
    Unit,
    /// Virtual machines
    Lab,
}

/// Runs all of the tests, or one part of them. `xtask` is the path of the running program.
///
/// # Errors
/// If a step failed: its output has the reason, the error lists all that did.
pub fn run(xtask: &Path, only: Option<Part>) -> Result<()> {
    let mut passed = 0;
    let mut failed = Vec::new();
    let start = Instant::now();
    let lists: &[&[packages::Package]] = match only {
        Some(Part::Checks) => &[],
        Some(Part::Unit) => &[packages::TESTS],
        Some(Part::Lab) => &[packages::LAB],
        None => &[packages::TESTS, packages::LAB],
    };
    let mut say = |text: &str| eprintln!("[{:4} s] {text}", start.elapsed().as_secs());
    packages::ensure(lists)?;
    for step in steps() {
        if only.is_some_and(|part| part != step.part) {
            continue;
        }
        if step.part == Part::Lab
            && let Err(error) = Prepared::new(xtask, &mut say)
        {
            failed.push(format!("making what the lab needs: {error:#}"));
            continue;
        }
        say(&command::line(&step.command));
        let mut command = step.command;
        if !command
            .status()
            .with_context(|| format!("starting {}", command::line(&command)))?
            .success()
        {
            failed.push(command::line(&command));
            continue;
        }
        passed += 1;
    }
    say("done");
    println!("steps: {passed} passed, {} failed", failed.len());
    if !failed.is_empty() {
        bail!("these failed:\n  {}", failed.join("\n  "));
    }
    Ok(())
}

/// The suites that have a long form: what asks for it, and cargo's words.
const LONG: [(&str, &str, &str); 7] = [
    (
        "IMPRINT_MAP_ROUNDS",
        "300",
        "nextest run --profile long -p ramdisk-agent --test used_block_maps -E not(test(/^mutation::/))",
    ),
    // The tests say how many there were and how they ended.
    (
        "IMPRINT_MAP_MUTATIONS",
        "100000",
        "nextest run --profile long -p ramdisk-agent --test used_block_maps --success-output final mutation::",
    ),
    // Of each seed; a kind of filesystem has two at least.
    (
        "IMPRINT_MUTATIONS",
        "50000",
        "nextest run --profile long -p ramdisk-agent --test hostile_disks",
    ),
    (
        "IMPRINT_POWER_CUTS",
        "all",
        "nextest run --profile long -p ramdisk-agent --test imaging power_cut::",
    ),
    // Beyond what 31 bits count.
    (
        "IMPRINT_WITNESS_MIB",
        "2100",
        "nextest run --profile long -p ramdisk-agent --test witness -j 2",
    ),
    (
        "IMPRINT_WITNESS_MIB",
        "2100",
        "nextest run --profile long -p controller --test serve witness::",
    ),
    (
        "IMPRINT_PAYLOAD_FLIPS",
        "10000",
        "nextest run --profile long -p ramdisk-agent --test imaging every_flipped_bit_of_a_captured_frame",
    ),
];

/// How long each target is fuzzed.
const FUZZED: &str = "-max_total_time=300";

/// Runs the long forms of the suites and the fuzzers, one after the other, and prints what ran, how long, and how it ended.
///
/// # Errors
/// If one failed, or cargo-nextest or cargo-fuzz is not installed: the limits of the suites are in the former's profile `long`.
pub fn run_long() -> Result<()> {
    packages::ensure(&[packages::TESTS])?;
    for subcommand in ["nextest", "fuzz"] {
        if !has(subcommand) {
            bail!(
                "the long suites need cargo-{subcommand}: cargo install --locked cargo-{subcommand}"
            );
        }
    }
    let mut lines = Vec::new();
    let mut failed = 0;
    let all: Vec<Long> = LONG.into_iter().map(Long::suite).chain(fuzzers()?).collect();
    let count = all.len();
    for Long { name, mut command } in all {
        let start = Instant::now();
        let status = command.status().with_context(|| format!("starting {name}"))?;
        let result = if status.success() { "passed" } else { "FAILED" };
        failed += usize::from(!status.success());
        lines.push(format!("{result}  {:>6} s  {name}", start.elapsed().as_secs()));
    }
    println!("{}", lines.join("\n"));
    println!("steps: {} passed, {failed} failed", count - failed);
    if failed > 0 {
        bail!("{failed} of the long suites failed");
    }
    Ok(())
}

/// A step of the long run.
struct Long {
    name: String,
    command: Command,
}

impl Long {
    fn suite((variable, value, words): (&str, &str, &str)) -> Self {
        let mut command = Command::new("cargo");
        command.args(words.split(' ')).env(variable, value).current_dir(project::root());
        Self { name: format!("{variable}={value} cargo {words}"), command }
    }

    fn fuzz(words: &str) -> Self {
        let mut command = Command::new("cargo");
        command
            .args(words.split(' '))
            // The fuzzers' coverage is a nightly feature, which this allows on stable; sanitizers would need nightly itself.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", project::target())
            .current_dir(project::root().join("fuzz"));
        Self { name: format!("cargo {words}"), command }
    }
}

/// The seeds, then every target.
fn fuzzers() -> Result<Vec<Long>> {
    let folder = project::root().join("fuzz/fuzz_targets");
    let reading = || format!("reading {}", folder.display());
    let mut targets = Vec::new();
    for entry in folder.read_dir().with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    targets.sort();
    let fuzz = |target: &String| Long::fuzz(&format!("fuzz run -s none {target} -- {FUZZED}"));
    Ok(std::iter::once(Long::fuzz("run --bin corpus")).chain(targets.iter().map(fuzz)).collect())
}

struct Step {
    part: Part,
    command: Command,
}

fn steps() -> Vec<Step> {
    let step = |part, words: &str| {
        let mut command = Command::new("cargo");
        command.args(words.split(' ')).current_dir(project::root());
        Step { part, command }
    };
    let nextest = has("nextest");
    let tests = |what: &str| {
        match (nextest, what) {
            (true, "lab") => "nextest run -p tests --test lab".to_owned(),
            (true, "maps") => "nextest run -p ramdisk-agent --test used_block_maps".to_owned(),
            (true, _) => format!(
                "nextest run --workspace -j {} -E not(binary_id(tests::lab)+binary_id(ramdisk-agent::used_block_maps))",
                waiting_threads()
            ),
            // Without nextest each test of a machine would run beside the others.
            (false, "lab") => "test -p tests --test lab -- --test-threads=1".to_owned(),
            (false, _) => "test --workspace --lib --bins".to_owned(),
        }
    };
    let mut steps = vec![
        step(Part::Checks, "fmt --check"),
        step(Part::Checks, "clippy --workspace --all-targets --quiet -- -D warnings"),
    ];
    // Its own workspace, because cargo-fuzz wants that.
    steps.push(step(Part::Checks, "fmt --manifest-path fuzz/Cargo.toml --check"));
    let mut fuzz =
        step(Part::Checks, "clippy --manifest-path fuzz/Cargo.toml --quiet -- -D warnings");
    fuzz.command.env("CARGO_TARGET_DIR", project::target());
    steps.push(fuzz);
    let mut doc = step(Part::Checks, "doc --workspace --no-deps --quiet");
    doc.command.env("RUSTDOCFLAGS", "-D warnings");
    steps.push(doc);
    if has("deny") {
        steps.push(step(Part::Checks, "deny --log-level error check"));
    }
    steps.push(step(Part::Unit, &tests("unit")));
    if nextest {
        steps.push(in_memory(step(Part::Unit, &tests("maps"))));
    } else {
        // Servers and namespaces belong to a process: these run one after the other.
        for test in INTEGRATION {
            steps.push(step(Part::Unit, &format!("test {test} -- --test-threads=1")));
        }
    }
    steps.push(step(Part::Unit, "test --workspace --doc --quiet"));
    steps.push(step(Part::Lab, &tests("lab")));
    steps
}

/// How many tests run at once where they wait for disks, servers and each other's silence for half of their time.
fn waiting_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    cores + cores.div_ceil(2)
}

/// A tmpfs that most machines have, and how much of it has to be free: twice what the maps' tests need.
const MEMORY: &str = "/dev/shm";
const MEMORY_BYTES: u64 = 4 << 30;

/// A step whose temporary files are in memory if there is enough of it and nobody said where else: the filesystems that the maps' tests make
/// and fill with noise are read and written all the time.
fn in_memory(mut step: Step) -> Step {
    let is_free = project::free_bytes(Path::new(MEMORY)).is_ok_and(|free| free >= MEMORY_BYTES);
    if is_free && std::env::var_os("TMPDIR").is_none() {
        step.command.env("TMPDIR", MEMORY);
    }
    step
}

/// Test programs beside the unit tests.
const INTEGRATION: [&str; 6] = [
    "-p image-format --tests",
    "-p initramfs --tests",
    "-p controller --tests",
    "-p ramdisk-agent --tests",
    "-p agent-api --tests",
    "-p fault-proxy --tests",
];

/// Whether cargo has a subcommand.
pub(crate) fn has(subcommand: &str) -> bool {
    let mut cargo = Command::new("cargo");
    command::output(cargo.args([subcommand, "--version"]).current_dir(project::root())).is_ok()
}
