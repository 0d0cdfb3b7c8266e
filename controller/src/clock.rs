//! Wall-clock time as it is stored and shown: milliseconds since 1970 in the database, RFC 3339 for people and in JSON.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `2026-11-23T17:07:52Z`; the empty string for a time that no calendar has.
#[must_use]
pub fn rfc3339(ms: i64) -> String {
    // Whole seconds: what people compare with their own logs.
    jiff::Timestamp::from_second(ms.div_euclid(1000)).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn known_instants() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_795_453_672_345), "2026-11-23T17:07:52Z");
        assert_eq!(rfc3339(i64::MAX), "");
    }
}
