//! A rate of bytes, as people write it on a command line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text_or_number::TextOrNumber;

/// Bytes per second; in text a whole number with `K`, `M` or `G` for powers of 1024, as curl, rsync and pv have it: `400M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber", into = "String")]
pub struct Rate(u64);

impl Rate {
    /// Slower than this no job ends.
    pub const MIN_BYTES_PER_SECOND: u64 = 64 << 10;

    /// The number of bytes in a second; never less than [`Rate::MIN_BYTES_PER_SECOND`].
    #[must_use]
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shift = match text.bytes().last() {
            Some(b'K' | b'k') => 10,
            Some(b'M' | b'm') => 20,
            Some(b'G' | b'g') => 30,
            _ => 0,
        };
        let digits = if shift == 0 { text } else { &text[..text.len() - 1] };
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let bytes = is_number
            .then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift))
            .flatten()
            .ok_or_else(|| {
                format!(
                    "'{}' is no rate: a whole number of bytes per second, with K, M or G for powers of 1024, such as 400M",
                    text.escape_debug()
                )
            })?;
        if bytes < Self::MIN_BYTES_PER_SECOND {
            return Err(format!("{text} is too slow: 64K bytes per second is the least"));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<TextOrNumber> for Rate {
    type Error = String;

    fn try_from(given: TextOrNumber) -> Result<Self, String> {
        given.to_string().parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        match units.into_iter().find(|(shift, _)| self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bytes_in_powers_of_1024() {
        for (text, bytes, shown) in [
            ("65536", 64 << 10, "64K"),
            ("400M", 400 << 20, "400M"),
            ("1024k", 1 << 20, "1M"),
            ("2g", 2 << 30, "2G"),
            ("1000000", 1_000_000, "1000000"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.bytes_per_second(), bytes, "{text}");
            assert_eq!(rate.to_string(), shown);
            assert_eq!(serde_json::to_string(&rate).unwrap(), format!("\"{shown}\""));
            assert_eq!(serde_json::from_str::<Rate>(&format!("\"{text}\"")).unwrap(), rate);
        }
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for text in [
            "",
            "M",
            "0",
            "1K",
            "-1M",
            "+1M",
            "1.5M",
            "4 M",
            "400Mbit",
            "18446744073709551615G",
            "é",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
