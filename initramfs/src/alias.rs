//! Matches module aliases, as `modprobe` does.
//!
//! An alias in `modules.alias` is a shell pattern (`*`, `?`, `[...]`, no escapes); what it is compared with is a device's
//! modalias, or an alias that the kernel asks for by name. Dash and underscore are the same outside brackets.

/// Whether `text` matches the whole of `pattern`.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when the text after the last star turns out not to fit: the star takes one byte more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match bracket(&pattern[p..], text[t]) {
                Some((true, len)) => Some(p + len),
                Some((false, _)) => None,
                None => same(b'[', text[t]).then_some(p + 1),
            },
            Some(&byte) => same(byte, text[t]).then_some(p + 1),
            None => None,
        };
        match (step, retry) {
            (Some(next), _) => (p, t) = (next, t + 1),
            (None, Some((star, from))) => {
                retry = Some((star, from + 1));
                (p, t) = (star + 1, from + 1);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Compares two names in which dash and underscore are the same.
fn same(a: u8, b: u8) -> bool {
    let fold = |byte| if byte == b'-' { b'_' } else { byte };
    fold(a) == fold(b)
}

/// Whether `byte` is in the class that `pattern` begins with, and how long the class is; `None` if it is not closed.
fn bracket(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let first = if negated { 2 } else { 1 };
    let mut at = first;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((found != negated, at + 1));
        }
        if pattern.get(at + 1) == Some(&b'-') && pattern.get(at + 2).is_some_and(|b| *b != b']') {
            found |= (low..=pattern[at + 2]).contains(&byte);
            at += 3;
        } else {
            found |= low == byte;
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::matches;

    #[test]
    fn real_aliases() {
        let e1000 = "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00";
        assert!(matches("pci:v00008086d0000100Esv*sd*bc*sc*i*", e1000));
        assert!(!matches("pci:v00008086d0000100Fsv*sd*bc*sc*i*", e1000));
        assert!(matches("virtio:d00000001v*", "virtio:d00000001v00001AF4"));
        assert!(matches(
            "usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*",
            "usb:v0951p1666d0110dc00dsc00dp00ic08isc06ip50in00"
        ));
        assert!(matches("usb:v04E6p0001d0[0-2]*dc*", "usb:v04E6p0001d0200dc00"));
        assert!(matches("crypto-crc32c", "crypto-crc32c"));
        assert!(matches("nls_cp437", "nls-cp437"));
        assert!(matches("dmi*:rn5[!1-9]*", "dmi:rn50x"));
    }

    #[test]
    fn edges() {
        assert!(matches("", ""));
        assert!(matches("**", ""));
        assert!(!matches("", "a"));
        assert!(!matches("a", ""));
        assert!(matches("[a]", "a") && matches("[]]", "]") && matches("[", "["));
        assert!(matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "a-b-b-d"));
    }

    /// The definition, written as plainly as possible, for patterns without classes.
    fn plain(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.first(), text.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                plain(&pattern[1..], text) || (!text.is_empty() && plain(pattern, &text[1..]))
            }
            (Some(b'?'), Some(_)) => plain(&pattern[1..], &text[1..]),
            (Some(a), Some(b)) if a == b => plain(&pattern[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(matches(&pattern, &text), plain(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn any_pattern_ends(pattern in "\\PC{0,20}", text in "\\PC{0,20}") {
            // Only that it returns: what it says of such patterns means nothing.
            let _ = matches(&pattern, &text);
        }
    }
}
