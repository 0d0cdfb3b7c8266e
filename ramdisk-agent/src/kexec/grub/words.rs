//! GRUB's configuration as words and blocks: what its lexer does (`grub-core/script/yylex.l`), no more.
//!
//! Nothing is evaluated here. Variables stay as they are written, since what is unknown is for the reader of the menu to refuse.

/// Words of one command; a command of a configuration has a few dozen at most.
const MAX_WORDS: usize = 4096;

/// A part of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// A variable's value. Without quotes the value's blanks separate words.
    Variable {
        /// Its name.
        name: String,
        /// Whether it stands in double quotes.
        quoted: bool,
    },
}

/// A word of a command.
pub type Word = Vec<Piece>;

/// What a configuration consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// A command with its words.
    Command(Vec<Word>),
    /// The head of a block in braces: `menuentry … {`.
    Open(Vec<Word>),
    /// The end of such a block.
    Close,
}

/// The text of a word without variables.
#[must_use]
pub fn literal(word: &Word) -> Option<String> {
    word.iter()
        .map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Variable { .. } => None,
        })
        .collect()
}

/// Splits a configuration into statements.
///
/// # Errors
/// If a quote or a variable's brace is not closed, or braces stand where none can.
pub fn statements(text: &str) -> Result<Vec<Statement>, String> {
    let mut lexer = Lexer { rest: text, words: Vec::new(), word: None, found: Vec::new() };
    lexer.run()?;
    Ok(lexer.found)
}

struct Lexer<'a> {
    rest: &'a str,
    words: Vec<Word>,
    /// The word that is being read, and whether anything of it was quoted.
    word: Option<(Word, bool)>,
    found: Vec<Statement>,
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), String> {
        while let Some(c) = self.next() {
            match c {
                ' ' | '\t' | '\r' => self.end_word()?,
                '\n' | ';' => self.end_command()?,
                '#' if self.word.is_none() => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                }
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(c) => self.put(c, true),
                },
                '\'' => {
                    let (text, rest) =
                        self.rest.split_once('\'').ok_or("a single quote is not closed")?;
                    self.rest = rest;
                    self.text(text);
                }
                '"' => self.double_quoted()?,
                '$' => self.variable(false)?,
                c => self.put(c, false),
            }
        }
        self.end_command()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn double_quoted(&mut self) -> Result<(), String> {
        self.text("");
        loop {
            match self.next().ok_or("a double quote is not closed")? {
                '"' => return Ok(()),
                '$' => self.variable(true)?,
                '\\' => match self.next() {
                    Some('\n') | None => {}
                    Some(c @ ('"' | '\\' | '$')) => self.put(c, true),
                    Some(c) => {
                        self.put('\\', true);
                        self.put(c, true);
                    }
                },
                c => self.put(c, true),
            }
        }
    }

    /// A variable behind its dollar sign.
    fn variable(&mut self, quoted: bool) -> Result<(), String> {
        let braced = self.rest.strip_prefix('{');
        let rest = braced.unwrap_or(self.rest);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        if end == 0 && rest.starts_with(['?', '@', '#', '*']) {
            end = 1;
        }
        let (name, rest) = rest.split_at(end);
        if name.is_empty() {
            if braced.is_some() {
                return Err("a variable has no name".into());
            }
            self.put('$', quoted);
            return Ok(());
        }
        self.rest = match braced {
            Some(_) => rest.strip_prefix('}').ok_or("a variable's brace is not closed")?,
            None => rest,
        };
        let (word, _) = self.word.get_or_insert_default();
        word.push(Piece::Variable { name: name.to_owned(), quoted });
        Ok(())
    }

    fn put(&mut self, c: char, quoted: bool) {
        let (word, was_quoted) = self.word.get_or_insert_default();
        *was_quoted |= quoted;
        match word.last_mut() {
            Some(Piece::Text(text)) => text.push(c),
            _ => word.push(Piece::Text(c.into())),
        }
    }

    /// Quoted text, which makes a word even if it is empty.
    fn text(&mut self, text: &str) {
        let (word, quoted) = self.word.get_or_insert_default();
        *quoted = true;
        match word.last_mut() {
            Some(Piece::Text(before)) => before.push_str(text),
            _ => word.push(Piece::Text(text.to_owned())),
        }
    }

    fn end_word(&mut self) -> Result<(), String> {
        let Some((word, quoted)) = self.word.take() else { return Ok(()) };
        let brace = if quoted { None } else { literal(&word) };
        match brace.as_deref() {
            Some("{") if self.words.is_empty() => Err("a block without a head".into()),
            Some("{") => {
                self.found.push(Statement::Open(std::mem::take(&mut self.words)));
                Ok(())
            }
            Some("}") if !self.words.is_empty() => {
                Err("a closing brace in the middle of a command".into())
            }
            Some("}") => {
                self.found.push(Statement::Close);
                Ok(())
            }
            _ if self.words.len() == MAX_WORDS => Err("a command with too many words".into()),
            _ => {
                self.words.push(word);
                Ok(())
            }
        }
    }

    fn end_command(&mut self) -> Result<(), String> {
        self.end_word()?;
        if !self.words.is_empty() {
            self.found.push(Statement::Command(std::mem::take(&mut self.words)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    fn variable(name: &str, quoted: bool) -> Piece {
        Piece::Variable { name: name.into(), quoted }
    }

    #[test]
    fn words_are_those_of_the_shell() {
        let found = statements(
            "menuentry 'a {b} $c' --class \"d e\" {\n\tlinux /x\\ y root=$r\"${s} \\\" z\" ; # no\n}\nset a=\"\" #b\necho a#b \\\n c",
        )
        .unwrap();
        let linux = Statement::Command(vec![
            vec![text("linux")],
            vec![text("/x y")],
            vec![text("root="), variable("r", false), text(""), variable("s", true), text(" \" z")],
        ]);
        assert_eq!(found[1], linux);
        assert!(matches!(&found[0], Statement::Open(words) if words.len() == 4));
        assert_eq!(found[2], Statement::Close);
        assert_eq!(found[3], Statement::Command(vec![vec![text("set")], vec![text("a=")]]));
        assert!(matches!(&found[4], Statement::Command(words) if words.len() == 3));
        assert_eq!(found.len(), 5);
    }

    #[test]
    fn what_is_not_closed_is_refused() {
        for bad in ["'a", "\"a", "a ${b", "${}", "{", "a }"] {
            assert!(statements(bad).is_err(), "{bad}");
        }
        assert_eq!(statements("").unwrap(), vec![]);
        assert_eq!(statements("'}' '{'").unwrap().len(), 1);
    }
}
