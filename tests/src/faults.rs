//! `cargo xtask test --faults`: every scenario of the fault suite, and what they came to.
//!
//! The scenarios are tests of the agent (`ramdisk-agent/tests/faults`), and of the controller for its own store; each leaves a line in a folder, and here those are added up.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{packages, project};

const WORDS: [&str; 2] = [
    "nextest run --profile long -p ramdisk-agent --test faults",
    "nextest run --profile long -p controller --test serve agent_store",
];

/// What the scenarios of one store and group came to.
#[derive(Debug, Default)]
struct Group {
    count: usize,
    /// How many ended how.
    ends: BTreeMap<String, usize>,
    longest_ms: u64,
}

/// Runs them all and prints a table.
///
/// # Errors
/// If one did not end as it should, or cargo-nextest is not installed: the limits are in its profile `long`.
pub fn run() -> Result<()> {
    packages::ensure(&[packages::TESTS])?;
    if !crate::suite::has("nextest") {
        bail!("the fault suite needs cargo-nextest: cargo install --locked cargo-nextest");
    }
    let folder = tempfile::tempdir().context("making a folder for the results")?;
    let start = Instant::now();
    let mut succeeded = true;
    for words in WORDS {
        let mut cargo = Command::new("cargo");
        cargo
            .args(words.split(' '))
            .env("IMPRINT_FAULTS", "all")
            .env("IMPRINT_FAULT_REPORT", folder.path())
            .current_dir(project::root());
        let status = cargo.status().with_context(|| format!("starting cargo {words}"))?;
        succeeded &= status.success();
    }
    let groups = read(folder.path())?;
    print!("{}", table(&groups));
    let count: usize = groups.values().map(|group| group.count).sum();
    println!("{count} scenarios in {} s", start.elapsed().as_secs());
    if !succeeded {
        bail!("some scenarios did not end as they should");
    }
    Ok(())
}

fn read(folder: &Path) -> Result<BTreeMap<(String, String), Group>> {
    let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
    for entry in folder.read_dir().context("listing the results")? {
        let path = entry.context("listing the results")?.path();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        for line in text.lines() {
            let [store, group, _, end, ms] = line.split('\t').collect::<Vec<_>>()[..] else {
                bail!("{} has a line that is not a result: {line}", path.display());
            };
            let group = groups.entry((store.to_owned(), group.to_owned())).or_default();
            group.count += 1;
            *group.ends.entry(end.to_owned()).or_default() += 1;
            let ms = ms.parse().with_context(|| format!("the time of {line}"))?;
            group.longest_ms = group.longest_ms.max(ms);
        }
    }
    Ok(groups)
}

/// In the form that `docs/testing.md` has it.
fn table(groups: &BTreeMap<(String, String), Group>) -> String {
    let mut text =
        "| store | faults | scenarios | ended in | longest |\n|---|---|---|---|---|\n".to_owned();
    for ((store, name), group) in groups {
        let ends: Vec<String> = group.ends.iter().map(|(end, n)| format!("{n} {end}")).collect();
        text.push_str(&format!(
            "| {store} | {name} | {} | {} | {}.{} s |\n",
            group.count,
            ends.join(", "),
            group.longest_ms / 1000,
            group.longest_ms % 1000 / 100
        ));
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("a"),
            "nfs\tcuts\tx\tsuccess\t120\nnfs\tcuts\ty\tnetwork\t3456\n",
        )
        .unwrap();
        std::fs::write(folder.path().join("b"), "nfs\tcuts\tz\tsuccess\t7\n").unwrap();
        let groups = read(folder.path()).unwrap();
        assert!(table(&groups).ends_with("| nfs | cuts | 3 | 1 network, 2 success | 3.4 s |\n"));
        std::fs::write(folder.path().join("c"), "nfs\n").unwrap();
        assert!(read(folder.path()).is_err());
    }
}
