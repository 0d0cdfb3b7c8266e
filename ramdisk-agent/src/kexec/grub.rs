//! Which entry GRUB would start, by its `grub.cfg`.
//!
//! Not an interpreter: the menu is read, the default looked up, and of the default entry only what loads Linux. Whatever could
//! make GRUB do something else than what is read here is refused with its reason: an entry or a variable under a condition that
//! matters, another configuration that is read in, a command that is not known. What only concerns the screen, and modules of GRUB's
//! own, is passed over. Pure.

pub mod environment;
mod menu;
mod words;

use std::collections::BTreeMap;

use environment::Environment;
use menu::{Command, Item, ONCE, assigned, assignments};
pub use menu::{Config, parse};
use words::{Piece, Word, literal};

use super::Entry;

/// Variables that stay empty without GRUB: its frame buffer is not handed over, and what tuned sets goes with its own `set`.
const EMPTY: [&str; 3] = ["vt_handoff", "tuned_params", "tuned_initrd"];
/// Commands that load nothing.
const HARMLESS: [&str; 26] = [
    "[",
    "background_color",
    "background_image",
    "clear",
    "color_normal",
    "echo",
    "export",
    "false",
    "gfxmode",
    "gfxpayload",
    "insmod",
    "load_video",
    "play",
    "recordfail",
    "rmmod",
    "savedefault",
    "save_env",
    "set",
    "sleep",
    "terminal_input",
    "terminal_output",
    "test",
    "true",
    "unset",
    "serial",
    "search",
];

/// What GRUB would start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What.
    pub what: What,
    /// The filesystem that its paths lie in, by its UUID; `None`: that of the configuration.
    pub root_uuid: Option<String>,
}

/// An entry of the menu, or one of the Boot Loader Specification's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// An entry of the configuration itself.
    Menu(Entry),
    /// The entry with this id or title, or at this place in the list.
    Bls(String),
}

impl Config {
    /// What would be started.
    ///
    /// # Errors
    /// If that cannot be said for sure.
    pub fn choose(&self, env: &Environment) -> Result<Choice, String> {
        if let Some(name) = ONCE.iter().find(|name| env.get(name).is_some()) {
            return Err(format!("{name} is set: GRUB is to do something else just once"));
        }
        let all = self.top.iter().chain(self.items.iter().flat_map(|item| &item.commands));
        if let Some(name) =
            ONCE.iter().find(|name| all.clone().any(|c| !assigned(c, name).iter().all(is_empty)))
        {
            return Err(format!("it sets {name} itself"));
        }
        let default = self.default_entry(env)?;
        let top = |n: &usize| self.items[*n].parent.is_none();
        let tops: Vec<usize> = (0..self.items.len()).filter(top).collect();
        if let Some(before) = self.bls_after {
            let is_number = default.parse::<usize>().is_ok();
            if is_number && before > 0 {
                return Err("its menu has entries in front of those of the Boot Loader Specification, and the default is a number".into());
            }
            let first = default.split('>').next().unwrap_or_default();
            if is_number || !tops.iter().any(|n| self.is_called(*n, first)) {
                let root_uuid = self.root_of(&[])?;
                return Ok(Choice { what: What::Bls(default), root_uuid });
            }
        }
        let at = self.look_up(tops, &default)?;
        let item = &self.items[at];
        let root_uuid = self.root_of(&item.commands)?;
        Ok(Choice { what: What::Menu(self.entry(item, env)?), root_uuid })
    }

    fn default_entry(&self, env: &Environment) -> Result<String, String> {
        let mut found: Option<String> = None;
        let all =
            self.top.iter().flat_map(|c| assigned(c, "default").into_iter().map(move |v| (c, v)));
        for (command, value) in all {
            if command.is_conditional {
                return Err("its default depends on a condition".into());
            }
            let mut text = String::new();
            for piece in &value {
                match piece {
                    Piece::Text(piece) => text.push_str(piece),
                    Piece::Variable { name, .. } if name == "saved_entry" => {
                        text.push_str(env.get(name).unwrap_or_default());
                    }
                    Piece::Variable { name, .. } => {
                        return Err(format!("its default depends on ${name}"));
                    }
                }
            }
            found = Some(text);
        }
        Ok(found.filter(|text| !text.is_empty()).unwrap_or_else(|| "0".into()))
    }

    /// Looks an entry up by number, id or title, through submenus by `>`.
    fn look_up(&self, mut level: Vec<usize>, default: &str) -> Result<usize, String> {
        let shown = default.escape_debug();
        let mut steps = default.split('>');
        let mut step = steps.next();
        while let Some(name) = step {
            let place = match name.parse::<usize>() {
                Ok(number) => (number < level.len()).then_some(number),
                Err(_) => level.iter().position(|n| self.is_called(*n, name)),
            };
            let place = place.ok_or_else(|| format!("its menu has no entry '{shown}'"))?;
            // What depends on a condition in front of it moves a numbered one, and hides a named one.
            let by_number = name.parse::<usize>().is_ok();
            let first = if by_number { 0 } else { place };
            if level[first..=place].iter().any(|n| self.items[*n].is_conditional) {
                return Err(format!("whether '{shown}' is in its menu depends on a condition"));
            }
            let at = level[place];
            step = steps.next();
            match (self.items[at].is_menu, step) {
                (false, None) => return Ok(at),
                (true, Some(_)) => {
                    let is_inside = |n: &usize| self.items[*n].parent == Some(at);
                    level = (0..self.items.len()).filter(is_inside).collect();
                }
                (true, None) => return Err(format!("'{shown}' is a submenu")),
                (false, Some(_)) => {
                    return Err(format!("'{shown}' leads through what is no submenu"));
                }
            }
        }
        Err("its default is empty".into())
    }

    fn is_called(&self, at: usize, name: &str) -> bool {
        let item = &self.items[at];
        item.id.as_deref() == Some(name) || literal(&item.title).as_deref() == Some(name)
    }

    /// What Linux is loaded with.
    fn entry(&self, item: &Item, env: &Environment) -> Result<Entry, String> {
        let name = literal(&item.title).unwrap_or_default();
        let (mut linux, mut initrds) = (None, None);
        for command in &item.commands {
            let verb = command.name();
            let slot = match verb.as_str() {
                "linux" | "linuxefi" | "linux16" => &mut linux,
                "initrd" | "initrdefi" | "initrd16" => &mut initrds,
                verb if HARMLESS.contains(&verb) => continue,
                // Its own function, defined above; what it loads would be found missing.
                _ => {
                    return Err(format!(
                        "its entry has a command that is not known: {}",
                        verb.escape_debug()
                    ));
                }
            };
            if command.is_conditional || slot.is_some() {
                return Err(format!(
                    "what its entry loads by {verb} depends on a condition, or is said twice"
                ));
            }
            *slot = Some(self.expand(&command.words[1..], env)?);
        }
        let linux = linux.ok_or("its entry starts no Linux")?;
        let (kernel, options) = linux.split_first().ok_or("its entry names no kernel")?;
        Ok(Entry {
            name,
            kernel: path(kernel)?,
            initrds: initrds
                .unwrap_or_default()
                .iter()
                .map(|p| path(p))
                .collect::<Result<_, _>>()?,
            command_line: options.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        })
    }

    /// The UUID of the filesystem that paths lie in, as `search` says in an entry or, if that has none, in front of the menu.
    fn root_of(&self, commands: &[Command]) -> Result<Option<String>, String> {
        let is_search =
            |command: &&Command| command.name() == "search" && sets_root(&command.words);
        let own = commands.iter().filter(is_search).count() > 0;
        if !own && commands.iter().any(|command| !assigned(command, "root").is_empty()) {
            return Err("its entry names a disk by GRUB's number".into());
        }
        let mut found: Option<String> = None;
        let source = if own { commands } else { &self.top };
        for command in source.iter().filter(is_search) {
            let words: Option<Vec<String>> = command.words.iter().map(literal).collect();
            let uuid = words
                .filter(|words| words.iter().any(|word| word == "--fs-uuid" || word == "-u"))
                .and_then(|words| words.last().cloned())
                .filter(|uuid| !uuid.starts_with('-'));
            let uuid = uuid.ok_or("it looks for its filesystem by something else than a UUID")?;
            if found.as_ref().is_some_and(|before| !before.eq_ignore_ascii_case(&uuid)) {
                return Err("which filesystem it reads from depends on a condition".into());
            }
            found = Some(uuid);
        }
        Ok(found)
    }

    /// Words with the values of variables, as far as those are sure.
    fn expand(&self, words: &[Word], env: &Environment) -> Result<Vec<String>, String> {
        let values = self.values();
        let mut found = Vec::new();
        for word in words {
            let mut text = String::new();
            let mut is_word = false;
            for piece in word {
                let (name, in_quotes) = match piece {
                    Piece::Text(piece) => {
                        text.push_str(piece);
                        is_word = true;
                        continue;
                    }
                    // GRUB's name for the filesystem that paths lie in anyway.
                    Piece::Variable { name, .. } if name == "root" && text == "(" => {
                        text.push_str("root");
                        continue;
                    }
                    Piece::Variable { name, quoted } => (name.as_str(), *quoted),
                };
                let value = match (values.get(name), env.get(name)) {
                    _ if name == "vt_handoff" => "",
                    (Some(Some(value)), _) => value,
                    (None, Some(value)) => value,
                    (None, None) if EMPTY.contains(&name) => "",
                    _ => return Err(format!("the value of ${name} is not sure")),
                };
                if in_quotes {
                    text.push_str(value);
                    is_word = true;
                    continue;
                }
                for (n, part) in value.split([' ', '\t', '\n']).enumerate() {
                    if n > 0 {
                        found.extend((!text.is_empty()).then(|| std::mem::take(&mut text)));
                        is_word = false;
                    }
                    text.push_str(part);
                }
            }
            if is_word || !text.is_empty() {
                found.push(text);
            }
        }
        Ok(found)
    }

    /// The values that variables certainly have; `None` for one that is set in another way.
    fn values(&self) -> BTreeMap<String, Option<String>> {
        let mut values: BTreeMap<String, Option<String>> = BTreeMap::new();
        let in_items = self.items.iter().flat_map(|item| &item.commands);
        let in_items = in_items.chain(&self.inside_functions);
        for (command, is_top) in
            self.top.iter().map(|c| (c, true)).chain(in_items.map(|c| (c, false)))
        {
            for (name, value) in assignments(command) {
                let value = literal(&value).filter(|_| is_top && !command.is_conditional);
                let is_new = !values.contains_key(&name);
                values.insert(name, value.filter(|_| is_new));
            }
        }
        values
    }

    /// Text of a Boot Loader Specification entry, in which GRUB knows its variables.
    ///
    /// # Errors
    /// If one of them is not sure.
    pub fn expand_text(&self, text: &str, env: &Environment) -> Result<Vec<String>, String> {
        let mut words: Vec<Word> = Vec::new();
        for word in text.split_whitespace() {
            match word.strip_prefix('$') {
                Some(name) if name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') => {
                    words.push(vec![Piece::Variable { name: name.to_owned(), quoted: false }]);
                }
                _ if word.contains('$') => {
                    return Err(format!("'{}' has a variable in it", word.escape_debug()));
                }
                _ => words.push(vec![Piece::Text(word.to_owned())]),
            }
        }
        self.expand(&words, env)
    }
}

/// `search … --set=root`, in all ways that it may be written.
fn sets_root(words: &[Word]) -> bool {
    let words: Vec<String> = words.iter().map(|word| literal(word).unwrap_or_default()).collect();
    let set = |word: &String| word == "--set" || word == "-s";
    words.iter().any(|word| word == "--set=root")
        || words.windows(2).any(|pair| set(&pair[0]) && pair[1] == "root")
        // Without a variable it is root, too.
        || words.windows(2).any(|pair| set(&pair[0]) && pair[1].starts_with('-'))
        || words.iter().rev().nth(1).is_some_and(set)
}

fn is_empty(word: &Word) -> bool {
    literal(word).is_some_and(|text| text.is_empty())
}

/// A path in the filesystem that is `$root`.
fn path(text: &str) -> Result<String, String> {
    let path = text.strip_prefix("(root)").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Err(format!("'{}' is no path in the filesystem that it reads from", text.escape_debug()))
}

/// A word of the command line, as GRUB hands it over (`grub-core/lib/cmdline.c`).
fn quoted(word: &str) -> String {
    let mut text = String::new();
    for c in word.chars() {
        if matches!(c, '\\' | '\'' | '"') {
            text.push('\\');
        }
        text.push(c);
    }
    if word.contains(' ') { format!("\"{text}\"") } else { text }
}

#[cfg(test)]
mod tests;
