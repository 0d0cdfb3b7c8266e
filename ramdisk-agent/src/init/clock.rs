//! The machine's clock, set from the controller's: old machines come up in 1970 or 2099, and the times of logs and images would
//! be nonsense.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

/// A difference up to this is left as it is.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Sets the clock if it is off by more than a minute; how far it was off, in seconds.
pub fn set_if_off(unix_secs: u64) -> Result<Option<u64>, nix::errno::Errno> {
    let Some(off) = difference(SystemTime::now(), unix_secs) else { return Ok(None) };
    let secs = i64::try_from(unix_secs).map_err(|_| nix::errno::Errno::EOVERFLOW)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(secs, 0))?;
    Ok(Some(off))
}

fn difference(now: SystemTime, unix_secs: u64) -> Option<u64> {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let off = now.abs_diff(unix_secs);
    (off > TOLERANCE.as_secs()).then_some(off)
}

/// Seconds since the kernel started.
#[must_use]
pub fn uptime_secs() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |t| u64::try_from(t.tv_sec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_tolerated() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(difference(now, 1_000_060), None);
        assert_eq!(difference(now, 1_000_061), Some(61));
        assert_eq!(difference(now, 900_000), Some(100_000));
    }

    #[test]
    fn the_kernel_has_been_up_for_a_while() {
        assert!(uptime_secs() > 0);
    }
}
