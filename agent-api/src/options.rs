//! What can be chosen for a capture and for a restore, defined once: the command lines of both programs, the body of
//! `POST /v1/jobs` and the job that an agent gets all have these fields under these names.
//!
//! Each field has a default, is in the JSON whatever its value (the controller tells a misspelt option by that), and says here
//! what `--help` says. Values that clap refuses on a command line are refused by [`CaptureOptions::check`] elsewhere.

mod bases;
mod content;
mod customisation;
mod layout;
mod unknown;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Rate;
use crate::text_or_number::TextOrNumber;

pub use content::{CloudInitSeed, Content, FileMode, MAX_CONTENT, NewFile};
pub use customisation::{BootOrder, Customisation};
pub use layout::{
    Layout, LayoutFormat, LayoutPartition, LayoutSize, LayoutTable, MAX_GPT_PARTITIONS,
    MAX_MBR_PARTITIONS,
};
pub use unknown::Unknown;

/// Reads the options of an action, each of which has a default.
///
/// # Errors
/// A sentence that names the option whose value is none. Serde itself names none here, where structs are flattened into another.
pub fn read_options<T: DeserializeOwned>(given: Map<String, Value>) -> Result<T, String> {
    let all = Value::Object(given.clone());
    serde_json::from_value(all).map_err(|error: serde_json::Error| {
        let alone = |(name, value): (String, Value)| {
            let member = Value::Object(Map::from_iter([(name.clone(), value)]));
            serde_json::from_value::<T>(member).err().map(|error| format!("{name}: {error}"))
        };
        given.into_iter().find_map(alone).unwrap_or_else(|| error.to_string())
    })
}

/// The lowest zstd level that is offered; negative levels trade too much size.
pub const MIN_LEVEL: i32 = 1;
/// The highest; 20 to 22 need windows that the reader's memory limit forbids.
pub const MAX_LEVEL: i32 = 19;
/// The most places that one image is read from.
pub const MAX_SOURCES: usize = 16;
/// The most images that can lie beneath a delta image.
pub const MAX_BASES: usize = 15;
/// What is fast enough for two cores to follow a disk.
const DEFAULT_LEVEL: i32 = 3;

/// Options of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct CaptureOptions {
    /// zstd level, 1 (fast) to 19 (small)
    #[arg(long, default_value_t = DEFAULT_LEVEL, value_parser = level())]
    pub level: i32,
    /// What to do with a filesystem that was not shut down cleanly
    #[arg(long, value_enum, default_value_t)]
    pub dirty: DirtyPolicy,
    /// Go on behind sectors that cannot be read; the image is then marked as damaged, with a map of them
    #[arg(long)]
    pub rescue: bool,
    /// Go on with a capture to this image that was cut off, once what it stored was found to be what the disk still holds; and keep what is
    /// stored if this one is cut off as well
    #[arg(long)]
    pub resume: bool,
    /// A text kept in the image's manifest
    #[arg(long)]
    pub description: Option<String>,
    /// Keep only the difference to this image, which a restore then needs too; the image's name ends in .imgd. Given again: where those
    /// beneath it are, if not each beside its delta
    #[arg(long, value_name = "IMAGE")]
    #[serde(with = "bases")]
    pub base: Vec<String>,
    /// Move no more bytes a second to and from stores than this: K, M and G are powers of 1024, as in 400M
    #[arg(long, value_name = "RATE")]
    pub limit: Option<Rate>,
    /// What else was asked for, and is refused.
    #[serde(flatten)]
    #[arg(skip)]
    pub unknown: Unknown,
}

fn level() -> clap::builder::RangedI64ValueParser<i32> {
    clap::value_parser!(i32).range(i64::from(MIN_LEVEL)..=i64::from(MAX_LEVEL))
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            level: DEFAULT_LEVEL,
            dirty: DirtyPolicy::default(),
            rescue: false,
            resume: false,
            description: None,
            base: Vec::new(),
            limit: None,
            unknown: Unknown::default(),
        }
    }
}

impl CaptureOptions {
    /// Refuses what no agent would do.
    ///
    /// # Errors
    /// A sentence that names the option and what it may be.
    pub fn check(&self) -> Result<(), String> {
        self.unknown.check()?;
        check_bases(&self.base)?;
        if (MIN_LEVEL..=MAX_LEVEL).contains(&self.level) {
            return Ok(());
        }
        Err(format!("level {} is not between {MIN_LEVEL} and {MAX_LEVEL}", self.level))
    }
}

/// Refuses more bases than any chain has.
fn check_bases(bases: &[String]) -> Result<(), String> {
    if bases.len() <= MAX_BASES {
        return Ok(());
    }
    Err(format!("base names {} images: no more than {MAX_BASES} lie beneath a delta", bases.len()))
}

/// What to do with a filesystem that was not shut down cleanly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DirtyPolicy {
    /// End with source_not_clean
    #[default]
    Refuse,
    /// Copy that partition whole, every block
    Raw,
}

/// Options of a restore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default)]
pub struct RestoreOptions {
    /// Refuse the image unless its root hash is this
    #[arg(long, value_name = "HEX")]
    pub expect_root: Option<String>,
    /// Refuse to write unless the plan's hash is this, as `plan restore` printed it
    #[arg(long, value_name = "HEX")]
    pub expect_plan: Option<String>,
    /// Refuse the image unless this minisign public key has signed it: the key, or the file that it is in
    #[arg(long, value_name = "KEY")]
    pub require_signature: Option<String>,
    /// Where an image beneath a delta image is, if not beside its delta; may be given several times
    #[arg(long, value_name = "IMAGE")]
    #[serde(with = "bases")]
    pub base: Vec<String>,
    /// Write zeros to free space, so that a previous owner's data do not stay
    #[arg(long)]
    pub scrub_free: bool,
    /// Compare the target with the image first, then fetch and write only what differs
    #[arg(long)]
    pub delta: bool,
    /// Restore an image that lacks sectors which could not be read when it was made; they become zeros
    #[arg(long)]
    pub accept_bad_sectors: bool,
    /// Restore only this partition of the image, onto a target that becomes that volume
    #[arg(long, value_name = "N", value_parser = partition_number())]
    pub partition: Option<u32>,
    /// Write to this partition of the disk, and leave its table and all other partitions as they are
    #[arg(long, value_name = "N", value_parser = partition_number())]
    pub into_partition: Option<u32>,
    /// Make a new partition table and fill it with volumes out of images, as this TOML file says
    #[arg(long, value_name = "FILE", value_parser = Layout::read)]
    pub layout: Option<Box<Layout>>,
    /// Grow a partition, and its filesystem, into the space of a larger disk: `last` (the last one but swap) or a number
    #[arg(long, value_name = "last|N")]
    pub grow: Option<Grow>,
    /// Give the partition table identities of its own: the GPT's disk and partition GUIDs, or the MBR's signature, are not the image's
    #[arg(long)]
    pub fresh_ids: bool,
    /// Move no more bytes a second to and from stores than this: K, M and G are powers of 1024, as in 400M
    #[arg(long, value_name = "RATE")]
    pub limit: Option<Rate>,
    /// Another place of the same image, to read from as well; may be given several times
    #[arg(long, value_name = "URL")]
    pub also: Vec<String>,
    /// What to change in the restored system.
    #[serde(flatten)]
    #[command(flatten)]
    pub customise: Box<Customisation>,
    /// What else was asked for, and is refused.
    #[serde(flatten)]
    #[arg(skip)]
    pub unknown: Unknown,
}

fn partition_number() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

/// Which partition is to take the space of a larger disk; in text `last` or the partition's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber", into = "String")]
pub enum Grow {
    /// The last one that is not swap.
    Last,
    /// The one with this number.
    Partition(u32),
}

impl std::str::FromStr for Grow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "last" => Ok(Self::Last),
            Ok(number) if number > 0 => Ok(Self::Partition(number)),
            _ => Err(format!("'{text}' is neither 'last' nor the number of a partition")),
        }
    }
}

impl TryFrom<TextOrNumber> for Grow {
    type Error = String;

    fn try_from(given: TextOrNumber) -> Result<Self, String> {
        given.to_string().parse()
    }
}

impl From<Grow> for String {
    fn from(grow: Grow) -> Self {
        match grow {
            Grow::Last => "last".to_owned(),
            Grow::Partition(number) => number.to_string(),
        }
    }
}

impl RestoreOptions {
    /// Refuses what no agent would do.
    ///
    /// # Errors
    /// A sentence that names the option and what it may be.
    pub fn check(&self) -> Result<(), String> {
        match &self.require_signature {
            Some(key) if !looks_like_a_key(key) => Err(format!(
                "require_signature {} is no minisign public key: those are {PUBLIC_KEY_LEN} characters of base64 that begin with RW",
                key.escape_debug()
            )),
            _ if self.partition == Some(0) || self.into_partition == Some(0) => {
                Err("partition and into_partition are numbers of partitions, which begin with 1"
                    .into())
            }
            _ if self.also.len() >= MAX_SOURCES => Err(format!(
                "also names too many places: an image is read from {MAX_SOURCES} at most"
            )),
            _ if self.expect_plan.as_ref().is_some_and(|hash| !is_hash(hash.trim())) => {
                Err("expect_plan is no hash of a plan: those are 64 hexadecimal digits".into())
            }
            _ => self
                .unknown
                .check()
                .and_then(|()| check_bases(&self.base))
                .and_then(|()| self.check_layout())
                .and_then(|()| self.check_fresh_ids())
                .and_then(|()| self.customise.check()),
        }
    }

    /// Refuses new identities for a table that is not written.
    ///
    /// # Errors
    /// A sentence that names the options.
    pub fn check_fresh_ids(&self) -> Result<(), String> {
        if self.fresh_ids && (self.partition.is_some() || self.into_partition.is_some()) {
            return Err("fresh_ids is for the partition table, which partition and into_partition leave as it is: give the \
                        one or the other"
                .into());
        }
        Ok(())
    }

    /// Refuses a layout that no agent would make.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn check_layout(&self) -> Result<(), String> {
        let Some(layout) = &self.layout else { return Ok(()) };
        if self.partition.is_some() || self.into_partition.is_some() || self.grow.is_some() {
            return Err("a layout says itself what goes where and what grows: partition, into_partition and grow do not \
                        go with it"
                .into());
        }
        layout.check()
    }
}

/// Whether a text is the root hash of an image, or the hash of a plan.
#[must_use]
pub fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The length of a minisign public key in base64.
const PUBLIC_KEY_LEN: usize = 56;

/// Whether a text can be a minisign public key: its form. The agent looks closer.
fn looks_like_a_key(text: &str) -> bool {
    text.len() == PUBLIC_KEY_LEN
        && text.starts_with("RW")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(options: &impl Serialize) -> usize {
        serde_json::to_value(options).unwrap().as_object().unwrap().len()
    }

    #[test]
    fn every_option_is_in_the_json_and_on_the_command_line() {
        fn flags<T: clap::Args>() -> usize {
            T::augment_args(clap::Command::new("x")).get_arguments().count()
        }
        assert_eq!(names(&CaptureOptions::default()), flags::<CaptureOptions>());
        assert_eq!(names(&RestoreOptions::default()), flags::<RestoreOptions>());
    }

    #[test]
    fn a_command_line_without_flags_gives_the_defaults() {
        #[derive(Debug, PartialEq, clap::Parser)]
        enum Line {
            Capture(CaptureOptions),
            Restore(RestoreOptions),
        }
        let parse = |verb| <Line as clap::Parser>::parse_from(["x", verb]);
        assert_eq!(parse("capture"), Line::Capture(CaptureOptions::default()));
        assert_eq!(parse("restore"), Line::Restore(RestoreOptions::default()));
    }

    #[test]
    fn what_is_no_public_key_is_refused_with_its_name() {
        let key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
        let with = |key: &str| RestoreOptions {
            require_signature: Some(key.to_owned()),
            ..RestoreOptions::default()
        };
        with(key).check().unwrap();
        for bad in ["", "imprint.pub", &key[1..], &format!("{key} "), &key.replace("RW", "Rw")] {
            let error = with(bad).check().unwrap_err();
            assert!(error.starts_with("require_signature "), "{error}");
        }
    }

    #[test]
    fn partitions_are_counted_from_one() {
        let (one, none) = (Some(1), Some(0));
        let with = |partition, into_partition| {
            RestoreOptions { partition, into_partition, ..RestoreOptions::default() }.check()
        };
        with(one, one).unwrap();
        assert!(with(none, one).unwrap_err().contains("begin with 1"));
        assert!(with(one, none).unwrap_err().contains("begin with 1"));
    }

    #[test]
    fn a_table_that_stays_gets_no_new_identities() {
        let with = |partition, into_partition| {
            let options = RestoreOptions { partition, into_partition, ..RestoreOptions::default() };
            RestoreOptions { fresh_ids: true, ..options }.check()
        };
        with(None, None).unwrap();
        assert!(with(Some(1), None).unwrap_err().contains("fresh_ids"));
        assert!(with(None, Some(1)).unwrap_err().contains("fresh_ids"));
    }

    #[test]
    fn an_option_whose_value_is_none_is_named() {
        let read = |text: &str| {
            read_options::<RestoreOptions>(serde_json::from_str(text).unwrap()).unwrap_err()
        };
        for (text, words) in [
            (r#"{"delta":true,"partition":"2"}"#, "partition: invalid type"),
            (r#"{"grow":true}"#, "grow: a text or a whole number"),
            (r#"{"limit":"1K","delta":false}"#, "limit: 1K is too slow"),
            (r#"{"post_script":"@"}"#, "post_script: the content"),
            (r#"{"layout":{"partitions":[]}}"#, "layout: unknown field"),
        ] {
            assert!(read(text).starts_with(words), "{text}: {}", read(text));
        }
        let options: RestoreOptions =
            read_options(serde_json::from_str(r#"{"limit":1048576,"grow":2}"#).unwrap()).unwrap();
        assert_eq!(options.grow, Some(Grow::Partition(2)));
        assert_eq!(options.limit.unwrap().to_string(), "1M");
    }

    #[test]
    fn what_is_no_hash_of_a_plan_is_refused() {
        let with = |hash: &str| RestoreOptions {
            expect_plan: Some(hash.to_owned()),
            ..RestoreOptions::default()
        };
        with(&"aB".repeat(32)).check().unwrap();
        for bad in ["", "zz", &"ab".repeat(31), &"gg".repeat(32)] {
            assert!(with(bad).check().unwrap_err().starts_with("expect_plan "), "{bad}");
        }
    }

    #[test]
    fn what_grows_is_named_in_text() {
        for (text, grow) in [("\"last\"", Grow::Last), ("\"3\"", Grow::Partition(3))] {
            assert_eq!(serde_json::from_str::<Grow>(text).unwrap(), grow);
            assert_eq!(serde_json::to_string(&grow).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<Grow>("3").unwrap(), Grow::Partition(3));
        for wrong in ["\"0\"", "\"\"", "\"first\"", "\"-1\"", "0", "-1", "true"] {
            assert!(serde_json::from_str::<Grow>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn levels_outside_of_the_range_are_refused() {
        for (level, good) in [(0, false), (1, true), (19, true), (20, false)] {
            let options = CaptureOptions { level, ..CaptureOptions::default() };
            assert_eq!(options.check().is_ok(), good, "{level}");
        }
    }
}
