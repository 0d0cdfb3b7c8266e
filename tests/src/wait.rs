//! Waiting for a condition, with a deadline: the only place that lets time pass.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(50);

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
        if Instant::now() >= deadline {
            bail!("gave up waiting for {what} after {} s", limit.as_secs());
        }
        std::thread::park_timeout(INTERVAL);
    }
}
