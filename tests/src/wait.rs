//! Waiting for a condition, with a deadline: the only place that lets time pass.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGINT, SIGTERM};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

/// Set by SIGINT and SIGTERM.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Makes SIGINT and SIGTERM end every wait with an error instead of the process at once, so that what was started is ended too.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn catch_interrupts() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&INTERRUPTED))
            .context("installing a signal handler")?;
    }
    Ok(())
}

/// Waits until `condition` gives a value. `what` ends the sentence "gave up waiting for …".
///
/// # Errors
/// When the condition itself fails, or nothing came within `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            bail!("interrupted while waiting for {what}");
        }
        if Instant::now() >= deadline {
            bail!("gave up waiting for {what} after {} s", limit.as_secs());
        }
        std::thread::park_timeout(INTERVAL);
    }
}
