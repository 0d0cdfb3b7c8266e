//! Running other programs to their end.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's output is shown.
const SHOWN_BYTES: usize = 4000;

/// A command line, for messages.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a program and returns its standard output as text.
///
/// # Errors
/// If it does not start, or ends with anything but 0: with its last words.
pub fn output(command: &mut Command) -> Result<String> {
    let output = raw_output(command)?;
    if !output.status.success() {
        bail!("running {}: {}\n{}", line(command), output.status, last_words(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program and returns whatever came of it.
///
/// # Errors
/// If it does not start.
pub fn raw_output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    command.output().with_context(|| format!("starting {}", line(command)))
}

/// Runs a program for its effect.
///
/// # Errors
/// As [`output`].
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<()> {
    output(Command::new(program).args(args)).map(drop)
}

/// Runs a program that talks to the terminal itself.
///
/// # Errors
/// If it does not start, or ends with anything but 0.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {}", line(command)))?;
    if !status.success() {
        bail!("running {}: {status}", line(command));
    }
    Ok(())
}

/// What a program said at the end, errors last.
#[must_use]
pub fn last_words(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let from = text.len().saturating_sub(SHOWN_BYTES);
    String::from_utf8_lossy(&text[from..]).trim_end().to_owned()
}
