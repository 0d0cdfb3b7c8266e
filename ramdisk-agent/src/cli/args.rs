//! What can be said on the command line of `imprint-agent`: its commands, their arguments and options.

use std::path::PathBuf;

use agent_api::{CaptureOptions, Rate, RestoreOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{copies, credentials, trust, wrong_places};
use crate::convert::ConvertOptions;
use crate::error::Result;
use crate::opening::parse_url;
use crate::store::StoreUrl;
use crate::store_check;

const CAPTURE_USAGE: &str = "imprint-agent capture [OPTIONS] DISK IMAGE
       imprint-agent capture [OPTIONS] --disk DISK IMAGE";
const RESTORE_USAGE: &str = "imprint-agent restore [OPTIONS] IMAGE DISK
       imprint-agent restore [OPTIONS] [IMAGE] DISK --layout FILE";
const PLAN_RESTORE_USAGE: &str = "imprint-agent plan restore [OPTIONS] IMAGE DISK
       imprint-agent plan restore [OPTIONS] [IMAGE] DISK --layout FILE";
/// Where `--help` has the options of all commands: behind a command's own, and before itself.
const LAST: usize = 998;

/// Captures disks to images and imprints images on disks.
#[derive(Debug, Parser)]
#[command(name = "imprint-agent", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
    /// Print results as JSON on standard output
    #[arg(long, global = true, display_order = LAST)]
    pub(super) json: bool,
    /// How to show progress
    #[arg(long, global = true, value_enum, default_value_t = ProgressFace::Auto, display_order = LAST)]
    pub(super) progress: ProgressFace,
    /// A file with user=, password=, domain= or token= for the store, under [URL] lines for several
    #[arg(long, global = true, value_name = "FILE", env = credentials::FILE_VARIABLE, display_order = LAST)]
    pub(super) credentials: Option<PathBuf>,
    /// Cancel the work when nobody reads standard error any more, as whoever started it has ended
    #[arg(long, global = true, hide = true)]
    pub(super) attached: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressFace {
    /// A bar, if standard error is a terminal
    Auto,
    /// A bar
    Bar,
    /// JSON lines on standard error
    Json,
    /// Nothing
    None,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Save a disk, a partition or a disk file as an image; never writes to it
    #[command(override_usage = CAPTURE_USAGE)]
    Capture(CaptureArgs),
    /// Write an image to a disk: shows the plan, asks, writes, reads back, and makes it bootable last
    #[command(override_usage = RESTORE_USAGE)]
    Restore(RestoreArgs),
    /// Make an image, a raw disk or a gzip stream of one out of an image of any format that is read
    Convert(ConvertArgs),
    /// Make one whole image of a delta image and those beneath it
    Flatten(FlattenArgs),
    /// Show what a capture or a restore would do
    #[command(subcommand)]
    Plan(PlanCommand),
    /// Check every stored byte of an image against its hashes
    Verify(VerifyArgs),
    /// Make a pair of keys to sign images with, in minisign's format
    Keygen(trust::KeygenArgs),
    /// Sign an image: writes NAME.root and NAME.root.minisig beside it
    Sign(trust::SignArgs),
    /// Copy an image to another store, byte for byte: every hash is compared on the way and when the copy is read again
    Copy(copies::CopyArgs),
    /// Remove an image and its signature; not if a delta image beside it needs it
    Rm(copies::RmArgs),
    /// Show what an image holds
    Inspect {
        /// URL or path of the image
        image: String,
    },
    /// List the images of a folder
    Ls {
        /// URL or path of the folder
        folder: String,
    },
    /// Write, read, publish and remove a probe: does a store do what captures and restores need, and how fast
    StoreCheck {
        /// URL or path of the folder
        folder: String,
        /// How much is written and read, in MiB
        #[arg(long, default_value_t = store_check::PROBE_BYTES >> 20, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
        probe: u64,
    },
    /// List the disks of this machine
    Disks,
    /// Run the post-script that is the standard input inside of a restored system; for the agent itself
    #[command(hide = true)]
    InSystem {
        /// The mount that it is in, by a descriptor
        mount: String,
        /// Its root folder, by a descriptor
        folder: String,
        /// What is mounted over that: descriptor, colon, place
        others: Vec<String>,
    },
    /// Load the kernel of the system on the disk of the job that is the standard input; for the supervisor
    #[command(hide = true)]
    LoadKernel {
        /// Only `-`: standard input
        #[arg(value_parser = ["-"])]
        job: String,
    },
    /// Do one job given as JSON on standard input; for the supervisor
    #[command(hide = true)]
    Run {
        /// Only `-`: standard input
        #[arg(value_parser = ["-"])]
        job: String,
    },
}

impl Command {
    /// The images and folders that the command line names by themselves, which credentials without a server are for.
    pub(super) fn images(&self) -> Vec<&str> {
        match self {
            Self::Capture(args) => args.places.last().map(String::as_str).into_iter().collect(),
            Self::Restore(RestoreArgs { what, .. }) => what.images(),
            Self::Convert(ConvertArgs { source, target, .. })
            | Self::Flatten(FlattenArgs { source, target, .. })
            | Self::Copy(copies::CopyArgs { source, target, .. }) => vec![source, target],
            Self::Plan(PlanCommand::Restore(what)) => what.images(),
            Self::Verify(VerifyArgs { image, .. })
            | Self::Sign(trust::SignArgs { image, .. })
            | Self::Rm(copies::RmArgs { image, .. })
            | Self::Inspect { image }
            | Self::StoreCheck { folder: image, .. }
            | Self::Ls { folder: image } => vec![image],
            Self::Plan(PlanCommand::Capture { .. })
            | Self::Keygen(_)
            | Self::Disks
            | Self::InSystem { .. }
            | Self::LoadKernel { .. }
            | Self::Run { .. } => Vec::new(),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// The disk (a path, or terms such as serial=…, wwn=…, size>=100G that fit exactly one disk), unless --disk names it, and where
    /// the image goes: a path or nfs://host/export/name.img.zst that does not exist yet
    #[arg(required = true, num_args = 1..=2, value_names = ["DISK", "IMAGE"])]
    pub(super) places: Vec<String>,
    /// The disk, as an option
    #[arg(long = "disk", value_name = "DISK")]
    pub(super) disk: Option<String>,
    #[command(flatten)]
    pub(super) options: CaptureOptions,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    #[command(flatten)]
    pub(super) what: RestoreWhat,
}

/// What is restored where.
#[derive(Debug, Args)]
pub(super) struct RestoreWhat {
    /// URL or path of the image, unless a layout names all there are, and the target (a path, or terms such as serial=…, wwn=…,
    /// smallest>=100G that fit exactly one disk) unless --disk names it
    #[arg(num_args = 0..=2, value_names = ["IMAGE", "DISK"])]
    pub(super) places: Vec<String>,
    /// The target, as an option
    #[arg(long = "disk", value_name = "DISK")]
    pub(super) disk: Option<String>,
    #[command(flatten)]
    pub(super) options: RestoreOptions,
}

impl RestoreWhat {
    /// The image and the target; with a layout there may be no image.
    pub(super) fn image_and_disk(&self) -> (Option<&str>, Option<&str>) {
        let has_layout = self.options.layout.is_some();
        match (self.places.as_slice(), self.disk.as_deref()) {
            ([image, disk], None) => (Some(image), Some(disk)),
            ([image], Some(disk)) => (Some(image), Some(disk)),
            ([disk], None) if has_layout => (None, Some(disk)),
            ([], Some(disk)) if has_layout => (None, Some(disk)),
            _ => (None, None),
        }
    }

    pub(super) fn places(&self, verb: &str) -> Result<(Option<StoreUrl>, &str)> {
        match self.image_and_disk() {
            (image, Some(disk)) => Ok((image.map(parse_url).transpose()?, disk)),
            _ => wrong_places(&format!("{verb} IMAGE DISK, or {verb} IMAGE --disk DISK")),
        }
    }

    /// All images that it reads.
    pub(super) fn images(&self) -> Vec<&str> {
        let of_layout = self.options.layout.iter().flat_map(|layout| &layout.partitions);
        let own = self.image_and_disk().0.into_iter();
        own.chain(of_layout.filter_map(|p| p.image.as_deref())).collect()
    }
}

#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// URL or path of the image, in any format that is read; of a folder for Clonezilla and FOG
    pub(super) source: String,
    /// What to make: a path or URL that ends in .img.zst, .img, .raw, .dd or .gz; must not exist
    pub(super) target: String,
    #[command(flatten)]
    pub(super) options: ConvertOptions,
}

#[derive(Debug, Args)]
pub(super) struct FlattenArgs {
    /// URL or path of the delta image
    pub(super) source: String,
    /// Where the whole image goes: a path or URL that ends in .img.zst; must not exist
    pub(super) target: String,
    /// zstd level, 1 to 19, 3 unless given
    #[arg(long)]
    pub(super) level: Option<i32>,
    /// Where an image beneath the delta image is, if not beside its delta; may be given several times
    #[arg(long, value_name = "IMAGE")]
    pub(super) base: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum PlanCommand {
    /// What a capture of this disk would keep
    Capture {
        /// The disk
        disk: String,
        #[command(flatten)]
        options: CaptureOptions,
    },
    /// What a restore would destroy and write
    #[command(override_usage = PLAN_RESTORE_USAGE)]
    Restore(RestoreWhat),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// URL or path of the image
    pub(super) image: String,
    /// Decompress too, and check the content hashes
    #[arg(long)]
    pub(super) deep: bool,
    /// Refuse the image unless its root hash is this
    #[arg(long, value_name = "HEX")]
    pub(super) expect_root: Option<String>,
    /// Refuse the image unless this minisign public key has signed it: the key, or the file that it is in
    #[arg(long, value_name = "KEY")]
    pub(super) require_signature: Option<String>,
    /// Where an image beneath a delta image is, if not beside its delta; may be given several times
    #[arg(long, value_name = "IMAGE")]
    pub(super) base: Vec<String>,
    /// Read no more bytes a second than this: K, M and G are powers of 1024, as in 400M
    #[arg(long, value_name = "RATE")]
    pub(super) limit: Option<Rate>,
    /// Another place of the same image, to read from as well; may be given several times
    #[arg(long, value_name = "URL")]
    pub(super) also: Vec<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_says_what_is_typed_and_has_the_options_of_a_command_together() {
        let help = |words: &[&str]| {
            let mut command = &mut Cli::command();
            command.build();
            for word in words {
                command = command.find_subcommand_mut(word).unwrap();
            }
            command.render_long_help().to_string()
        };
        for words in [&["capture"][..], &["restore"], &["plan", "restore"]] {
            let text = help(words);
            let typed = format!("imprint-agent {} [OPTIONS] ", words.join(" "));
            assert!(text.contains(&format!("Usage: {typed}")), "{text}");
            assert!(!text.contains("]...\n\nArguments"), "{text}");
            let place = |option: &str| text.rfind(&format!("\n      {option}")).expect(option);
            let own = ["--description", "--limit", "--hostname", "--root-partition"];
            let own = own.iter().filter(|option| text.contains(&format!("\n      {option} ")));
            let last = own.map(|option| place(option)).max().unwrap();
            for option in ["--json", "--progress", "--credentials"] {
                assert!(place(option) > last, "{option} in:\n{text}");
            }
        }
    }
}
