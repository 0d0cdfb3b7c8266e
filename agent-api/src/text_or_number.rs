//! A value that command lines have as text and that JSON may have as a number: `"2"` and `2`.

use std::fmt;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a whole number is wanted")]
pub enum TextOrNumber {
    Number(u64),
    Text(String),
}

impl fmt::Display for TextOrNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}
