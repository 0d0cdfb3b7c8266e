//! Signals, and the end of who waits for us: both cancel the work.
//!
//! Until work has begun ([`Progress::begin_work`]) nothing was written and there is nothing to clean up, and what goes on may take long
//! and cannot be called off: a disk is looked at, a server is waited for, somebody is asked. So the first signal ends the program then, with
//! the message and the exit code that every cancelled command has. Later the first one cancels, with whatever has to be cleaned up, and the
//! second ends the program wherever it is; but not the terminal's end, which shells send once more to what they have started. Who started the
//! program so that it outlives its terminal (`nohup`) is not disturbed by that.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use agent_api::ErrorKind;
use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::{run, trust};

const MESSAGE: &str = "cancelled before anything was changed";

/// Who hears of it that the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listener {
    /// People, by standard error and the exit code.
    Person,
    /// The supervisor, by the outcome of its job.
    Supervisor,
}

/// Lets signals come as they usually do. An agent blocks them, and what it starts inherits that: itself again, for a script in a restored system.
///
/// # Errors
/// If the kernel does not know these signals, which it does.
pub(super) fn unblock() -> Result<()> {
    ours().thread_unblock().map_err(|e| failed(e.into()))
}

fn ours() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Whether whoever started the program has it ignore the end of its terminal. Where that cannot be found out nothing is changed about it.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (SIGHUP - 1) & 1 == 1)
}

fn failed(error: io::Error) -> Error {
    Error::new(ErrorKind::Internal, "installing a signal handler").because(error)
}

/// From here on signals cancel.
///
/// # Errors
/// If the kernel lets no handlers be installed, or there can be no thread that waits for signals.
pub(super) fn cancel_by_signal(progress: &Arc<Progress>, listener: Listener) -> Result<()> {
    let mut signals = vec![SIGINT, SIGTERM];
    // They are for the thread below alone: one that waits for a disk in the kernel would take a signal and not get to it. And one that comes
    // before all of this is in place waits until it is.
    ours().thread_block().map_err(|e| failed(e.into()))?;
    for &signal in &signals {
        let (flag, code) = (progress.cancel_flag(), ErrorKind::Cancelled.exit_code().into());
        signal_hook::flag::register_conditional_shutdown(signal, code, flag).map_err(failed)?;
        signal_hook::flag::register(signal, progress.cancel_flag()).map_err(failed)?;
    }
    if !ignores_hangup() {
        signal_hook::flag::register(SIGHUP, progress.cancel_flag()).map_err(failed)?;
        signals.push(SIGHUP);
    }
    let mut signals = Signals::new(signals).map_err(failed)?;
    let progress = Arc::clone(progress);
    let wait = move || {
        ours().thread_unblock().expect("signals that were blocked can be unblocked");
        for _ in signals.forever() {
            cancel(&progress, listener);
        }
    };
    // It waits for as long as there is a program.
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop).map_err(failed)
}

/// Cancels the work; ends the program if none has begun.
pub(super) fn cancel(progress: &Progress, listener: Listener) {
    progress.cancel(|| {
        let code = match listener {
            Listener::Person => {
                let kind = ErrorKind::Cancelled;
                let mut stderr = io::stderr();
                // The line that a terminal is in has ^C in it, a question, or a bar.
                let begin = if stderr.is_terminal() { "\n" } else { "" };
                // With nobody to tell, the exit code still says it.
                let _ = writeln!(stderr, "{begin}imprint-agent: {MESSAGE} [{kind}]");
                i32::from(kind.exit_code())
            }
            Listener::Supervisor => {
                // Without it the supervisor still knows that it has stopped the worker.
                let _ = run::print_outcome(Err(Error::new(ErrorKind::Cancelled, MESSAGE)));
                1
            }
        };
        // Somebody may just have been asked for a password.
        trust::give_back_terminal();
        // Other threads are at work, so what would run at a regular exit must not.
        signal_hook::low_level::exit(code);
    });
}
