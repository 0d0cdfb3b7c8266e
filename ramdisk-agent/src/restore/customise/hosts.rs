//! A machine's own name in `/etc/hosts`: Debian and its kin give it the address 127.0.1.1. Pure.

/// The address of a machine's own name where it has no fixed one (Debian Reference, section 5.1.1).
const OWN_ADDRESS: &str = "127.0.1.1";

/// The text with the machine's old name replaced by the new one where that has the address for a machine's own name; `None` if it is not
/// there. A name with a domain keeps it, unless the new name brings its own.
pub fn renamed(text: &str, old: &str, new: &str) -> Option<String> {
    if old.is_empty() {
        return None;
    }
    let lines: Vec<String> = text.split_inclusive('\n').map(|l| line(l, old, new)).collect();
    let changed = lines.concat();
    (changed != text).then_some(changed)
}

fn line(line: &str, old: &str, new: &str) -> String {
    let content = line.split('#').next().unwrap_or_default();
    if content.split_ascii_whitespace().next() != Some(OWN_ADDRESS) {
        return line.to_owned();
    }
    let mut text = String::new();
    for piece in content.split_inclusive(|c: char| c.is_ascii_whitespace()) {
        let name = piece.trim_end_matches(|c: char| c.is_ascii_whitespace());
        text.push_str(&replaced(name, old, new).unwrap_or_else(|| name.to_owned()));
        text.push_str(&piece[name.len()..]);
    }
    text + &line[content.len()..]
}

fn replaced(name: &str, old: &str, new: &str) -> Option<String> {
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    if name == old {
        return Some(new.to_owned());
    }
    if name == short(old) {
        return Some(short(new));
    }
    let domain = name.strip_prefix(old)?.strip_prefix('.')?;
    Some(if new.contains('.') { new.to_owned() } else { format!("{new}.{domain}") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_own_name_is_replaced_and_nothing_else() {
        let text = "127.0.0.1\tlocalhost old\n\
                    127.0.1.1\told.example.com\told # old\n\
                    10.0.0.1 old\n# 127.0.1.1 old\n127.0.1.1 older old-2";
        assert_eq!(
            renamed(text, "old", "new").unwrap(),
            "127.0.0.1\tlocalhost old\n\
             127.0.1.1\tnew.example.com\tnew # old\n\
             10.0.0.1 old\n# 127.0.1.1 old\n127.0.1.1 older old-2"
        );
        assert_eq!(renamed("127.0.0.1 old\n", "old", "new"), None);
        assert_eq!(renamed(text, "", "new"), None);
    }

    #[test]
    fn names_with_domains() {
        let own = |names: &str| format!("127.0.1.1 {names}\n");
        for (text, old, new, wanted) in [
            ("a.x a", "a", "b.y", "b.y b.y"),
            ("a.x a", "a.x", "b.y", "b.y b"),
            ("a.x a", "a.x", "b", "b b"),
        ] {
            assert_eq!(renamed(&own(text), old, new), Some(own(wanted)));
        }
    }

    proptest! {
        #[test]
        fn other_lines_stay(text in "[127.0 ao#\n\tb]{0,60}", old in "[ab.]{0,4}") {
            if let Some(changed) = renamed(&text, &old, "new") {
                prop_assert_eq!(changed.lines().count(), text.lines().count());
                for (was, is) in text.lines().zip(changed.lines()) {
                    prop_assert!(was == is || was.trim_start().starts_with(OWN_ADDRESS));
                }
            }
        }
    }
}
