//! Trying again: pauses that grow, within the watch's budget.

use std::io;
use std::time::{Duration, Instant};

use super::super::Result;
use super::super::watch::{Watch, pause};
use super::status::{Place, Trouble};

/// The longest that a server's own idea of when to come back is followed; the budget ends it anyway.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);
/// How often the watch may speak in a pause.
const TICK: Duration = Duration::from_millis(250);
/// So many answers in a row that are no HTTP, and the server is none.
const MAX_GARBAGE: u32 = 6;

/// What has gone wrong since the last byte that came well.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failures: u32,
    garbage: u32,
    /// Whether a redirection was already followed anew.
    pub(super) has_restarted: bool,
}

impl Attempts {
    /// Pauses after a trouble that may pass. Fails with one that will not, or with what the budget's end calls for.
    pub(super) fn pause(
        &mut self,
        watch: &Watch,
        place: Place<'_>,
        trouble: Trouble,
    ) -> Result<()> {
        let (error, after) = match trouble {
            Trouble::Final(error) => return Err(error),
            Trouble::Passing { error, after } => (error, after),
        };
        self.failures = self.failures.saturating_add(1);
        if error.kind() == io::ErrorKind::InvalidData {
            self.garbage += 1;
            if self.garbage >= MAX_GARBAGE {
                return Err(place.protocol(error.to_string()));
            }
        }
        if let Some(what) = error.to_string().strip_prefix("the server ") {
            watch.troubled(what.to_owned());
        }
        let wanted = after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        let until = Instant::now() + pause(self.failures).max(wanted);
        loop {
            if let Some(without) = watch.check() {
                return Err(watch.unreachable_with(place.doing, without, Some(error)));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}
