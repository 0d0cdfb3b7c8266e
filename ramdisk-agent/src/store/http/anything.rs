//! Every reader of what a web server says about its answer, over any bytes: for the fuzz target, and for a property test here.

use jiff::Timestamp;

use super::head::{self, ContentRange, Framing, Head, MAX_HEAD_LEN};

/// Reads `data` as the head of an answer, arriving at once and in two parts, and as the lines of a chunked body. Whatever it is, each
/// is a value or an error.
pub fn read_anything(data: &[u8]) {
    let whole = Head::parse(data);
    if let Ok(Some((head, len))) = &whole {
        assert!(*len <= data.len(), "a head ends within what has come");
        // The same bytes are the same head however they are cut: what is behind it is not looked at.
        assert_eq!(Head::parse(&data[..*len]), whole);
        assert!(!matches!(Head::parse(&data[..len / 2]), Ok(Some(_))), "half of it is not one");
        read_fields(head);
    } else if whole == Ok(None) {
        assert!(data.len() < MAX_HEAD_LEN, "a head ends some time");
    }
    for line in data.split(|&byte| byte == b'\n') {
        let _ = head::chunk_len(line);
    }
}

fn read_fields(head: &Head) {
    if let Ok(Framing::Length(len)) = head.framing() {
        assert!(head.status / 100 == 1 || len == 0 || head.field("content-length").is_some());
    }
    if let Some(Ok(ContentRange { range: Some((first, last)), total })) = head.content_range() {
        assert!(first <= last && total.is_none_or(|total| last < total));
    }
    let _ = (head.keeps_connection(), head.content_coding(), head.status_text());
    let _ = head.retry_after(Timestamp::UNIX_EPOCH);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_answer_is_a_value_or_an_error(
            status in "HTTP/1\\.[01] [1-9]{3}( [ -~]{0,10})?",
            fields in prop::collection::vec(
                ("(content-range|content-length|transfer-encoding|retry-after|connection|content-encoding|etag|[!-~]{1,9})",
                 "(bytes )?[0-9*/ -]{0,24}|chunked|close|[\\x00-\\xff]{0,12}"),
                0..8
            ),
            tail in prop::collection::vec(any::<u8>(), 0..40)
        ) {
            let fields: String = fields.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
            read_anything(&[format!("{status}{fields}\r\n\r\n").as_bytes(), &tail].concat());
            read_anything(&tail);
        }
    }
}
