//! Shell patterns, as `modules.alias` uses them: `*`, `?`, and sets such as `[0-9A-F]` or `[!x]`. Like fnmatch(3) without flags.

/// Whether `text` fits `pattern`.
#[must_use]
pub fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star if what follows it does not fit here: one step further in the text.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                retry = Some((p, t));
                continue;
            }
            Some(&c) => {
                if let Some(len) = one(c, &pattern[p..], text[t]) {
                    p += len;
                    t += 1;
                    continue;
                }
            }
            None => {}
        }
        let Some((star, at)) = retry else { return false };
        p = star;
        t = at + 1;
        retry = Some((star, t));
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// The length of the pattern's first element if it fits `byte`.
fn one(first: u8, pattern: &[u8], byte: u8) -> Option<usize> {
    match first {
        b'?' => Some(1),
        b'[' => match set(pattern, byte) {
            Some((len, fits)) => fits.then_some(len),
            // No closing bracket: a bracket like any other character.
            None => (byte == b'[').then_some(1),
        },
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        c => (c == byte).then_some(1),
    }
}

/// The length of a set and whether `byte` is in it.
fn set(pattern: &[u8], byte: u8) -> Option<(usize, bool)> {
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let start = if negated { 2 } else { 1 };
    let mut at = start;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > start {
            return Some((at + 1, found != negated));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                found |= (low..=high).contains(&byte);
                at += 3;
            }
            _ => {
                found |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fits;

    #[test]
    fn aliases_of_real_devices() {
        let virtio_pci = "pci:v00001AF4d*sv*sd*bc*sc*i*";
        assert!(fits(virtio_pci, "pci:v00001AF4d00001041sv00001AF4sd00001100bc02sc00i00"));
        assert!(!fits(virtio_pci, "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00"));
        assert!(fits("virtio:d00000001v*", "virtio:d00000001v00001AF4"));
        assert!(fits(
            "usb:v0421p042Fd*dc*dsc*dp*ic02isc06ip[0-9A-F]*in*",
            "usb:v0421p042Fd0100dc02dsc00dp00ic02isc06ipFEin00"
        ));
        assert!(fits("acpi*:PNP0A0[38]:*", "acpi:PNP0A03:PNP0A05:"));
        assert!(!fits("acpi*:PNP0A0[38]:*", "acpi:PNP0A04:"));
        assert!(fits("scsi:t-0x00*", "scsi:t-0x00"));
    }

    #[test]
    fn the_corners_of_fnmatch() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("*", "", true),
            ("**a", "bba", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("[!a]x", "bx", true),
            ("[!a]x", "ax", false),
            ("[]a]", "]", true),
            ("[a-]", "-", true),
            ("[a", "[a", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_fits_itself_and_a_star(text in "[a-z0-9:]{0,40}", at in 0_usize..40) {
            prop_assert!(fits(&text, &text));
            let cut = at.min(text.len());
            let pattern = format!("{}*", &text[..cut]);
            prop_assert!(fits(&pattern, &text));
        }

        #[test]
        fn no_pattern_is_too_strange(pattern in "[\\[\\]!^a*?\\\\-]{0,12}", text in "[a\\[\\]-]{0,12}") {
            let _ = fits(&pattern, &text);
        }
    }
}
