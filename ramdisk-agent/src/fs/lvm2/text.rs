//! LVM2's configuration text (`lib/config/config.c`): sections, numbers, strings, lists, comments.

use std::iter::Peekable;
use std::str::CharIndices;

/// Volume groups have three levels.
const MAX_DEPTH: usize = 16;
/// A logical volume has some thirty values, and thousands of volumes are many. So a text that means harm gets no more than some
/// ten MiB of them.
const MAX_VALUES: usize = 1 << 18;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An integer.
    Number(i64),
    /// Text; a number with a fraction is one too.
    Text(String),
    /// Values of any kind.
    List(Vec<Value>),
    /// Names in order.
    Section(Section),
}

/// Names with their values, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section(pub Vec<(String, Value)>);

impl Section {
    /// The value of a name; `None` if it is not there, or twice.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let mut values = self.0.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        let first = values.next();
        first.filter(|_| values.next().is_none())
    }

    /// Whether the name is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// A number that is not negative.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Number(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// Text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A list.
    pub fn list(&self, name: &str) -> Option<&[Value]> {
        match self.get(name)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The section of a name.
    pub fn section(&self, name: &str) -> Option<&Self> {
        match self.get(name)? {
            Value::Section(section) => Some(section),
            _ => None,
        }
    }

    /// All sections in it.
    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }
}

/// Parses a text, which ends with its first NUL; `None` if it is none.
pub fn parse(bytes: &[u8]) -> Option<Section> {
    let text = std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()?;
    let mut parser = Parser { text, chars: text.char_indices().peekable(), values: 0 };
    let section = parser.section(0)?;
    parser.blank();
    parser.chars.peek().is_none().then_some(section)
}

/// A text that [`parse`] reads as these values, laid out as LVM does in a metadata area.
pub fn write(root: &Section) -> String {
    let mut text = String::new();
    write_section(&mut text, root);
    text
}

fn write_section(text: &mut String, section: &Section) {
    for (name, value) in &section.0 {
        text.push_str(name);
        match value {
            Value::Section(inner) => {
                text.push_str(" {\n");
                write_section(text, inner);
                text.push('}');
            }
            value => {
                text.push_str(" = ");
                write_value(text, value);
            }
        }
        text.push('\n');
    }
}

fn write_value(text: &mut String, value: &Value) {
    match value {
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::Text(string) => {
            text.push('"');
            for c in string.chars() {
                if matches!(c, '"' | '\\') {
                    text.push('\\');
                }
                text.push(c);
            }
            text.push('"');
        }
        Value::List(list) => {
            text.push('[');
            for (i, value) in list.iter().enumerate() {
                text.push_str(if i == 0 { "" } else { ", " });
                write_value(text, value);
            }
            text.push(']');
        }
        Value::Section(_) => unreachable!("the grammar has no sections in values"),
    }
}

struct Parser<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    /// How many were read.
    values: usize,
}

impl<'a> Parser<'a> {
    /// Skips blanks and comments.
    fn blank(&mut self) {
        while let Some((_, c)) = self.chars.peek() {
            match c {
                '#' => while self.chars.next_if(|(_, c)| *c != '\n').is_some() {},
                c if c.is_whitespace() => {}
                _ => return,
            }
            self.chars.next();
        }
    }

    /// Takes a character, behind blanks, if it is the next.
    fn take(&mut self, wanted: char) -> bool {
        self.blank();
        self.chars.next_if(|(_, c)| *c == wanted).is_some()
    }

    fn word(&mut self, part_of: impl Fn(char) -> bool) -> Option<&'a str> {
        self.blank();
        let (start, _) = *self.chars.peek()?;
        while self.chars.next_if(|(_, c)| part_of(*c)).is_some() {}
        let end = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        (end > start).then(|| &self.text[start..end])
    }

    /// Counts one more value; `None` if they are too many.
    fn count(&mut self) -> Option<()> {
        self.values += 1;
        (self.values <= MAX_VALUES).then_some(())
    }

    /// Up to a closing brace or the end.
    fn section(&mut self, depth: usize) -> Option<Section> {
        let mut section = Section::default();
        loop {
            self.blank();
            if self.chars.peek().is_none_or(|(_, c)| *c == '}') {
                return Some(section);
            }
            self.count()?;
            let name = self.word(|c| c.is_ascii_alphanumeric() || "_-+.".contains(c))?.to_owned();
            let value = if self.take('{') {
                let inner = if depth < MAX_DEPTH { self.section(depth + 1)? } else { return None };
                if !self.take('}') {
                    return None;
                }
                Value::Section(inner)
            } else if self.take('=') {
                self.value(depth)?
            } else {
                return None;
            };
            section.0.push((name, value));
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if self.take('"') {
            return self.string().map(Value::Text);
        }
        if self.take('[') {
            let mut list = Vec::new();
            while !self.take(']') {
                if depth >= MAX_DEPTH || !(list.is_empty() || self.take(',')) {
                    return None;
                }
                self.count()?;
                list.push(self.value(depth + 1)?);
            }
            return Some(Value::List(list));
        }
        let word = self.word(|c| c.is_ascii_digit() || "+-.".contains(c))?;
        Some(word.parse().map_or_else(|_| Value::Text(word.to_owned()), Value::Number))
    }

    /// Behind the opening quote; a backslash takes the next character as it is.
    fn string(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            match self.chars.next()?.1 {
                '"' => return Some(text),
                '\\' => text.push(self.chars.next()?.1),
                c => text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lvm_writes_is_read() {
        let text = b"vg-1 {\n\tid = \"a\\\"b\\\\\"\nseqno = 3\nflags = []\n\nstripes = [\n\"pv0\", 0\n]\t# 0 Megabytes\ninner {\n}\n}\n\
                     # made by \"somebody\" }\nversion = 1\nratio = 0.5\n\0rest";
        let parsed = parse(text).unwrap();
        let group = parsed.section("vg-1").unwrap();
        assert_eq!(group.text("id"), Some("a\"b\\"));
        assert_eq!(group.number("seqno"), Some(3));
        assert_eq!(group.list("flags"), Some(&[][..]));
        let stripes = [Value::Text("pv0".into()), Value::Number(0)];
        assert_eq!(group.list("stripes"), Some(&stripes[..]));
        assert_eq!(group.section("inner"), Some(&Section::default()));
        assert_eq!(parsed.text("ratio"), Some("0.5"));
        assert_eq!(parsed.number("version"), Some(1));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let deep = "a {".repeat(MAX_DEPTH + 2) + &"}".repeat(MAX_DEPTH + 2);
        let lists = format!("a = {}{}", "[".repeat(1000), "]".repeat(1000));
        for text in ["a", "a {", "a }", "= 1", "a = ", "a = \"b", "a = [1 2]", "}", &deep, &lists] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
        let many = "a = 1\n".repeat(MAX_VALUES + 1);
        assert_eq!(parse(many.as_bytes()), None);
        assert!(parse(&many.as_bytes()[6..]).is_some());
        assert_eq!(parse(format!("a = [{}1]", "1,".repeat(MAX_VALUES)).as_bytes()), None);
        let twice = parse(b"a = 1\na = 1").unwrap();
        assert_eq!((twice.number("a"), twice.has("a")), (None, true));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ab{}\\[\\]=\"\\\\,#\n 0-9.-]{0,60}") {
            parse(text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read_as_it_was(
            text in "([ab]( = ([0-9]{1,3}|\"[a\\[{#= ]{0,3}(\\\\\"|\\\\\\\\)?\"|\\[\"x\", 1\\]|\\[\\])\n| \\{\n(a = 1\n)?\\}\n)){0,6}"
        ) {
            let parsed = parse(text.as_bytes()).unwrap();
            prop_assert_eq!(parse(write(&parsed).as_bytes()).unwrap(), parsed);
        }
    }
}
