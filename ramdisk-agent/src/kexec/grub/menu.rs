//! What a `grub.cfg` consists of: its menu, and the commands in front of it, each with whether it depends on a condition.

use super::words::{self, Piece, Statement, Word, literal};

/// Blocks and conditions lie no deeper than this.
const MAX_DEPTH: usize = 32;

/// Once GRUB has kept one of these, the next start is another than those after it: that is refused. So what a configuration does if
/// one of them is set need not be looked at.
pub const ONCE: [&str; 4] = ["next_entry", "prev_saved_entry", "initrdfail", "boot_counter"];

/// A configuration that was read.
#[derive(Debug, Default)]
pub struct Config {
    pub top: Vec<Command>,
    pub items: Vec<Item>,
    /// In functions, which may be called or not.
    pub inside_functions: Vec<Command>,
    /// Whether entries of the Boot Loader Specification are in the menu, and how many others come before them.
    pub bls_after: Option<usize>,
}

#[derive(Debug)]
pub struct Command {
    pub words: Vec<Word>,
    pub is_conditional: bool,
}

impl Command {
    pub fn name(&self) -> String {
        self.words.first().and_then(literal).unwrap_or_default()
    }
}

/// An entry or a submenu.
#[derive(Debug)]
pub struct Item {
    pub title: Vec<Piece>,
    pub id: Option<String>,
    pub parent: Option<usize>,
    pub is_menu: bool,
    pub is_conditional: bool,
    pub commands: Vec<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Condition(Branch),
    Function,
    Item(usize),
}

/// A branch of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Branch {
    /// It depends.
    Open,
    /// Not taken, as nothing of [`ONCE`] is set.
    Never,
    /// What is left when no other branch is taken.
    Always,
}

/// Reads a configuration.
///
/// # Errors
/// If it is none that this reader understands.
pub fn parse(text: &str) -> Result<Config, String> {
    let mut config = Config::default();
    let mut blocks: Vec<Block> = Vec::new();
    for statement in words::statements(text)? {
        if blocks.len() > MAX_DEPTH {
            return Err(format!("its blocks lie deeper than {MAX_DEPTH}"));
        }
        match statement {
            Statement::Open(words) => {
                let words = without_keyword(words, &mut blocks)?;
                let is_conditional = is_conditional(&blocks);
                match words.first().and_then(literal).as_deref() {
                    Some("function") => blocks.push(Block::Function),
                    Some(name @ ("menuentry" | "submenu")) => {
                        let parent = enclosing(&blocks);
                        if blocks.contains(&Block::Function) {
                            return Err("a function of it makes menu entries".into());
                        }
                        if parent.is_some_and(|at| !config.items[at].is_menu) {
                            return Err("a menu entry lies in another".into());
                        }
                        let is_menu = name == "submenu";
                        blocks.push(Block::Item(config.items.len()));
                        config.items.push(item(&words, parent, is_menu, is_conditional));
                    }
                    _ => {
                        return Err("it has a block that is neither menu entry nor function".into());
                    }
                }
            }
            Statement::Close => match blocks.pop() {
                Some(Block::Function | Block::Item(_)) => {}
                _ => return Err("it closes a block that is not open".into()),
            },
            Statement::Command(words) => {
                let words = without_keyword(words, &mut blocks)?;
                if words.is_empty() || blocks.contains(&Block::Condition(Branch::Never)) {
                    continue;
                }
                let command = Command { words, is_conditional: is_conditional(&blocks) };
                if blocks.contains(&Block::Function) {
                    config.inside_functions.push(command);
                    continue;
                }
                match enclosing(&blocks) {
                    Some(at) => config.items[at].commands.push(command),
                    None => config.top(command)?,
                }
            }
        }
    }
    if !blocks.is_empty() {
        return Err("a block of it is not closed".into());
    }
    Ok(config)
}

impl Config {
    /// A command outside of entries.
    fn top(&mut self, command: Command) -> Result<(), String> {
        match command.name().as_str() {
            "blscfg" if command.is_conditional => Err("blscfg depends on a condition".into()),
            "blscfg" => {
                self.bls_after =
                    Some(self.items.iter().filter(|item| item.parent.is_none()).count());
                Ok(())
            }
            // What each administrator may add; whoever asks looks whether it is there.
            name @ ("source" | "." | "configfile")
                if !command.words.get(1).is_some_and(is_custom) =>
            {
                Err(format!("it reads in another configuration ({name})"))
            }
            name @ ("linux" | "initrd" | "boot" | "chainloader" | "multiboot" | "multiboot2") => {
                Err(format!("it has {name} outside of a menu entry"))
            }
            _ => {
                self.top.push(command);
                Ok(())
            }
        }
    }
}

/// Follows `if … then … fi` and its kin, and takes their words from the front of a command.
fn without_keyword(mut words: Vec<Word>, blocks: &mut Vec<Block>) -> Result<Vec<Word>, String> {
    loop {
        let keyword = words.first().and_then(literal).unwrap_or_default();
        match keyword.as_str() {
            "if" => blocks.push(Block::Condition(branch(&words[1..]))),
            "while" | "until" | "for" => blocks.push(Block::Condition(Branch::Open)),
            "fi" | "done" => match blocks.pop() {
                Some(Block::Condition(_)) => {}
                _ => return Err("it ends a condition that has not begun".into()),
            },
            "else" | "elif" => match blocks.last_mut() {
                Some(Block::Condition(at)) => {
                    *at = match (keyword.as_str(), *at) {
                        ("else", Branch::Never) => Branch::Always,
                        ("elif", Branch::Never) => branch(&words[1..]),
                        _ => Branch::Open,
                    };
                }
                _ => return Err("it goes on with a condition that has not begun".into()),
            },
            "then" | "do" => {}
            _ => return Ok(words),
        }
        words.remove(0);
        if blocks.len() > MAX_DEPTH {
            return Err(format!("its conditions lie deeper than {MAX_DEPTH}"));
        }
    }
}

/// The branch behind a condition: `[ "${next_entry}" ]`, `[ -n "${boot_counter}" -a … ]` and `[ "${initrdfail}" = 2 ]` do not hold.
fn branch(condition: &[Word]) -> Branch {
    let is_once = |word: &Word| matches!(word.as_slice(), [Piece::Text(text), Piece::Variable { name, .. }] if text.is_empty() && ONCE.contains(&name.as_str()));
    let words: Vec<String> =
        condition.iter().map(|word| literal(word).unwrap_or_default()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["[", "", "]"] | ["[", "-n", "", "]"] if condition.iter().any(is_once) => Branch::Never,
        ["[", "", "=", value, "]"] if is_once(&condition[1]) && !value.is_empty() => Branch::Never,
        ["[", "-n", "", "-a", rest @ .., "]"]
            if is_once(&condition[2]) && !rest.contains(&"-o") =>
        {
            Branch::Never
        }
        _ => Branch::Open,
    }
}

/// Whether what stands here is not always done, once its entry is.
fn is_conditional(blocks: &[Block]) -> bool {
    let inner = blocks.iter().rev().take_while(|block| !matches!(block, Block::Item(_)));
    inner.into_iter().any(|b| matches!(b, Block::Condition(Branch::Open | Branch::Never)))
}

fn enclosing(blocks: &[Block]) -> Option<usize> {
    blocks.iter().rev().find_map(|block| match block {
        Block::Item(at) => Some(*at),
        _ => None,
    })
}

fn item(words: &[Word], parent: Option<usize>, is_menu: bool, is_conditional: bool) -> Item {
    let mut id = None;
    for pair in words.windows(2) {
        let is_option = match pair[0].as_slice() {
            [Piece::Variable { name, .. }] => name == "menuentry_id_option",
            _ => literal(&pair[0]).is_some_and(|text| text == "--id"),
        };
        if is_option {
            id = literal(&pair[1]);
        }
        id = id.or_else(|| Some(literal(&pair[0])?.strip_prefix("--id=")?.to_owned()));
    }
    let title = words.get(1).cloned().unwrap_or_default();
    Item { title, id, parent, is_menu, is_conditional, commands: Vec::new() }
}

/// Whether a file that is read in is one of those for administrators, which distributions look for and leave out.
fn is_custom(word: &Word) -> bool {
    matches!(word.last(), Some(Piece::Text(text)) if text.ends_with("custom.cfg") || text.ends_with("user.cfg"))
}

/// What a command sets: `set name=value`, `name=value`.
pub fn assignments(command: &Command) -> Vec<(String, Word)> {
    let words = match command.name().as_str() {
        "set" => &command.words[1..],
        _ => &command.words[..1],
    };
    words.iter().filter_map(assignment).collect()
}

fn assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Piece::Text(first)) = word.first() else { return None };
    let (name, value) = first.split_once('=')?;
    let mut rest = vec![Piece::Text(value.to_owned())];
    rest.extend(word[1..].iter().cloned());
    Some((name.to_owned(), rest))
}

pub fn assigned(command: &Command, name: &str) -> Vec<Word> {
    assignments(command).into_iter().filter(|(n, _)| n == name).map(|(_, value)| value).collect()
}
