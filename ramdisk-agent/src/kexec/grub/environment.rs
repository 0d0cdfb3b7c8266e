//! GRUB's environment block, `grubenv`: what it keeps from one start to the next (`grub-core/lib/envblk.c`).

use std::collections::BTreeMap;

/// What every such block begins with.
const SIGNATURE: &str = "# GRUB Environment Block\n";

/// Variables that GRUB sets from its environment block.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// Reads a block.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body = text.strip_prefix(SIGNATURE).ok_or("grubenv is no GRUB environment block")?;
        let mut found = BTreeMap::new();
        let mut chars = body.chars();
        let mut line = String::new();
        loop {
            match chars.next() {
                // An escaped character, be it the end of a line, belongs to the value.
                Some('\\') => line.extend(chars.next()),
                Some(c) if c != '\n' => line.push(c),
                end => {
                    let text = std::mem::take(&mut line);
                    if !text.starts_with('#')
                        && let Some((name, value)) = text.split_once('=')
                    {
                        found.insert(name.to_owned(), value.to_owned());
                    }
                    if end.is_none() {
                        return Ok(Self(found));
                    }
                }
            }
        }
    }

    /// A variable's value; an empty one counts as none.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_names_and_values() {
        let block = format!(
            "{SIGNATURE}# WARNING: Do not edit\nsaved_entry=abc-6.1\nkernelopts=root=UUID=1 ro\nempty=\nodd=a\\\\b\n{}",
            "#".repeat(900)
        );
        let env = Environment::parse(&block).unwrap();
        assert_eq!(env.get("saved_entry"), Some("abc-6.1"));
        assert_eq!(env.get("kernelopts"), Some("root=UUID=1 ro"));
        assert_eq!(env.get("odd"), Some("a\\b"));
        assert_eq!((env.get("empty"), env.get("other")), (None, None));
        Environment::parse("saved_entry=0").unwrap_err();
    }
}
