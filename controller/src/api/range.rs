//! Which bytes of a file an HTTP request wants: conditions and ranges of RFC 9110, sections 13 and 14.
//!
//! One range of bytes; a request for several gets the whole file, as the RFC allows. Dates are not looked at, since files have strong
//! entity tags. Pure: headers in, a decision out.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderName, header};

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// 200 with everything.
    All,
    /// 206 with these bytes; at least one.
    Part(Range<u64>),
    /// 416: nothing of that range is there.
    Nothing,
    /// 412: the file is another one than the client thinks.
    Changed,
    /// 304: the client has it.
    Same,
}

/// What a request with these headers wants of a file with this length and entity tag.
#[must_use]
pub fn wanted(headers: &HeaderMap, len_bytes: u64, etag: &str) -> Wanted {
    let names = |name: HeaderName| {
        let mut values = headers.get_all(&name).iter().peekable();
        values.peek()?;
        let lists = values.filter_map(|value| value.to_str().ok());
        // A comma inside of a tag only makes two tags that match nothing.
        Some(
            lists
                .flat_map(|list| list.split(','))
                .any(|tag| matches!(tag.trim(), "*") || tag.trim() == etag),
        )
    };
    if names(header::IF_MATCH) == Some(false) {
        return Wanted::Changed;
    }
    if names(header::IF_NONE_MATCH) == Some(true) {
        return Wanted::Same;
    }
    // With another entity tag, a weak one or a date the client gets everything.
    if headers.get(header::IF_RANGE).is_some_and(|value| value.as_bytes() != etag.as_bytes()) {
        return Wanted::All;
    }
    let mut ranges = headers.get_all(header::RANGE).iter();
    match (ranges.next().and_then(|value| value.to_str().ok()), ranges.next()) {
        (Some(text), None) => of_range(text, len_bytes),
        _ => Wanted::All,
    }
}

/// A range that is not understood is no range.
fn of_range(text: &str, len_bytes: u64) -> Wanted {
    let Some((first, last)) = text
        .split_once('=')
        .filter(|(unit, _)| unit.trim().eq_ignore_ascii_case("bytes"))
        .and_then(|(_, range)| range.trim().split_once('-'))
    else {
        return Wanted::All;
    };
    let range = match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => return Wanted::All,
        (Some(first), Some(last)) => first..last.saturating_add(1).min(len_bytes),
        (Some(first), None) if last.is_empty() => first..len_bytes,
        (None, Some(last)) if first.is_empty() => len_bytes.saturating_sub(last)..len_bytes,
        _ => return Wanted::All,
    };
    if range.is_empty() { Wanted::Nothing } else { Wanted::Part(range) }
}

/// Digits only; so many of them that no file is as long stand for the end.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAG: &str = "\"a-1\"";

    fn ask(pairs: &[(HeaderName, &str)]) -> Wanted {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value.parse().unwrap());
        }
        wanted(&headers, 100, TAG)
    }

    #[test]
    fn ranges() {
        let range = |text| ask(&[(header::RANGE, text)]);
        for (text, part) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("bytes=0-100", 0..100),
            ("bytes=99-", 99..100),
            ("bytes=-1", 99..100),
            ("bytes=-200", 0..100),
            ("BYTES= 5-6 ", 5..7),
            ("bytes=5-99999999999999999999999", 5..100),
            ("bytes=-18446744073709551615", 0..100),
        ] {
            assert_eq!(range(text), Wanted::Part(part), "{text}");
        }
        for text in ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(range(text), Wanted::Nothing, "{text}");
        }
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=6-5",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=0-1,5-6",
            "lines=0-1",
            "bytes=0x1-2",
            "bytes=1 - 2",
        ] {
            assert_eq!(range(text), Wanted::All, "{text}");
        }
        assert_eq!(ask(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=0-1")]), Wanted::All);
        let empty =
            wanted(&HeaderMap::from_iter([(header::RANGE, "bytes=0-".parse().unwrap())]), 0, TAG);
        assert_eq!(empty, Wanted::Nothing);
    }

    #[test]
    fn conditions() {
        let part = (header::RANGE, "bytes=0-0");
        assert_eq!(ask(&[(header::IF_MATCH, TAG), part.clone()]), Wanted::Part(0..1));
        assert_eq!(ask(&[(header::IF_MATCH, "*"), part.clone()]), Wanted::Part(0..1));
        assert_eq!(ask(&[(header::IF_MATCH, "\"x\", \"a-1\""), part.clone()]), Wanted::Part(0..1));
        assert_eq!(ask(&[(header::IF_MATCH, "\"x\""), part.clone()]), Wanted::Changed);
        assert_eq!(ask(&[(header::IF_MATCH, "W/\"a-1\""), part.clone()]), Wanted::Changed, "weak");
        assert_eq!(ask(&[(header::IF_RANGE, TAG), part.clone()]), Wanted::Part(0..1));
        assert_eq!(ask(&[(header::IF_RANGE, "\"x\""), part.clone()]), Wanted::All);
        assert_eq!(ask(&[(header::IF_RANGE, "Wed, 21 Oct 2015 07:28:00 GMT"), part]), Wanted::All);
        assert_eq!(ask(&[(header::IF_NONE_MATCH, TAG)]), Wanted::Same);
        assert_eq!(ask(&[(header::IF_NONE_MATCH, "\"x\"")]), Wanted::All);
    }

    proptest! {
        #[test]
        fn a_part_lies_in_the_file(text in "(bytes=)?[0-9]{0,22}-?[0-9]{0,22}|.{0,20}", len in any::<u64>()) {
            if let Wanted::Part(part) = of_range(&text, len) {
                prop_assert!(part.start < part.end && part.end <= len);
            }
        }
    }
}
