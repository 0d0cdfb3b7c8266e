//! The command line of `imprint-agent`.
//!
//! On success a command prints what it did and exits with 0; on failure one line `imprint-agent: …` with the chain of causes on
//! standard error, and an exit code for the kind of failure (`docs/agent-cli.md`). Nothing is written before the plan was shown
//! and agreed to.

mod args;
mod attached;
mod copies;
mod credentials;
mod signals;
mod trust;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_api::{ErrorKind, Selector, Summary};
use clap::CommandFactory;

pub use args::Cli;
use args::{
    CaptureArgs, Command, ConvertArgs, FlattenArgs, PlanCommand, ProgressFace, RestoreArgs,
    VerifyArgs,
};

use crate::convert::{self, ConvertOptions};
use crate::disk::{self, Disk};
use crate::error::{Error, Result};
use crate::opening::{
    Places, check_signature, open_image, open_index, open_own_image, open_target, parse_url,
    part_of, plan_restore,
};
use crate::progress::{Face, Progress, Ticker};
use crate::store_check::{self, Shown};
use crate::words::{describe, describe_sources, size};
use crate::{capture, damage, foreign, kexec, opening, restore, run, store, verify};
use signals::{Listener, cancel_by_signal};

/// Does what the command line says; the exit code.
pub fn main(cli: &Cli) -> u8 {
    let progress = Arc::new(Progress::default());
    let result = dispatch(cli, &progress);
    // It has ended by itself: a signal that comes now does not end it otherwise.
    let _ = progress.begin_work();
    match result {
        Ok(code) => code,
        Err(error) => {
            // With standard error gone there is nobody to tell; the exit code still says it.
            let text = printable(&error.chain());
            let _ = writeln!(std::io::stderr(), "imprint-agent: {text} [{}]", error.kind());
            error.kind().exit_code()
        }
    }
}

fn dispatch(cli: &Cli, progress: &Arc<Progress>) -> Result<u8> {
    signals::unblock()?;
    let face = match cli.progress {
        ProgressFace::Auto => Face::auto(),
        ProgressFace::Bar => Face::Bar,
        ProgressFace::Json => Face::JsonLines,
        ProgressFace::None => Face::Quiet,
    };
    // A job brings its own.
    if !matches!(cli.command, Command::Run { .. }) {
        let access = credentials::read(cli.credentials.as_deref(), &cli.command.images())?;
        progress.set_access(access);
    }
    match &cli.command {
        // Nothing of these takes long; in a restored system somebody else waits for signals.
        Command::Disks | Command::LoadKernel { .. } | Command::InSystem { .. } => {}
        Command::Run { .. } => cancel_by_signal(progress, Listener::Supervisor)?,
        _ => cancel_by_signal(progress, Listener::Person)?,
    }
    if cli.attached {
        attached::watch(progress)?;
    }
    match &cli.command {
        Command::Capture(args) => capture_command(args, cli.json, face, progress)?,
        Command::Restore(args) => restore_command(args, cli.json, face, progress)?,
        Command::Convert(args) => {
            let ConvertArgs { source, target, options } = args;
            convert_command(source, target, options, cli.json, face, progress)?;
        }
        Command::Flatten(args) => {
            let FlattenArgs { source, target, level, base } = args;
            if !target.ends_with(agent_api::IMAGE_SUFFIX) {
                return Err(Error::refused(format!(
                    "{target} does not end in {}, as whole images do",
                    agent_api::IMAGE_SUFFIX
                )));
            }
            let (level, base) = (*level, base.clone());
            let options = ConvertOptions { level, base, ..ConvertOptions::default() };
            convert_command(source, target, &options, cli.json, face, progress)?;
        }
        Command::Plan(PlanCommand::Capture { disk, options }) => {
            let disk = opened(disk, progress, face, Disk::open_source)?;
            let plan = told(progress, face, || capture::plan(&disk, options))?;
            show(cli.json, &plan)?;
        }
        Command::Plan(PlanCommand::Restore(what)) => {
            let options = &what.options;
            progress.set_limit(options.limit);
            let (url, disk) = what.places("plan restore")?;
            let open = |path: &Path| part_of(Disk::open_source(path)?, options);
            let target = opened(disk, progress, face, open)?;
            let planned = || plan_restore(url.as_ref(), &target, options, progress);
            show(cli.json, &told(progress, face, planned)?.1)?;
        }
        Command::Verify(args) => verify_command(args, cli.json, face, progress)?,
        Command::Keygen(args) => trust::keygen(args, cli.json, progress)?,
        Command::Sign(args) => trust::sign(args, cli.json, progress)?,
        Command::Copy(args) => copies::copy(args, cli.json, face, progress)?,
        Command::Rm(args) => copies::rm(args, cli.json, progress)?,
        Command::Inspect { image } => inspect_command(image, cli.json, progress)?,
        Command::Ls { folder } => ls_command(folder, cli.json, progress)?,
        Command::StoreCheck { folder, probe } => {
            progress.begin_work()?;
            let options = opening::store_options(progress);
            let checked = store_check::check(&parse_url(folder)?, probe << 20, &options);
            report(cli.json, &checked, || Shown(&checked).to_string())?;
            return Ok(checked.failure.map_or(0, |failure| failure.kind.exit_code()));
        }
        Command::Disks => disks_command(cli.json)?,
        Command::InSystem { mount, folder, others } => {
            return Ok(restore::inside::main(mount, folder, others));
        }
        Command::LoadKernel { .. } => kexec::load_stdin()?,
        Command::Run { .. } => return Ok(u8::from(!run::run_stdin(progress)?)),
    }
    Ok(0)
}

/// Ends the program as for every other wrong use of the command line.
fn wrong_places(usage: &str) -> ! {
    let message = format!("one disk and one image are wanted: imprint-agent {usage}");
    Cli::command().error(clap::error::ErrorKind::WrongNumberOfValues, message).exit()
}

fn find(text: &str) -> Result<PathBuf> {
    // What reads as a selector is one, whatever files lie around.
    let selector = match disk::selector(text) {
        Err(_) if text.contains('/') || Path::new(text).exists() => {
            Selector::Path(PathBuf::from(text))
        }
        parsed => parsed?,
    };
    disk::resolve(&selector, &disk::inventory())
}

/// Prints something as text, or as JSON.
fn show<T: std::fmt::Display + serde::Serialize>(json: bool, value: &T) -> Result<()> {
    if json { print_json(value) } else { print(&value.to_string()) }
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&json_text(value)?)
}

fn json_text(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|e| Error::new(ErrorKind::Internal, "writing JSON").because(e))
}

/// Prints the plan of what has not begun yet.
fn show_plan(plan: &str) -> Result<()> {
    print(plan).map_err(|e| e.context("showing the plan failed, nothing was begun"))
}

/// Prints what work came to that is done: as text, or as JSON. A standard output that takes nothing (its disk is full) does not undo
/// the work, so that it does not decide about the exit code either.
fn report(json: bool, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<()> {
    let text = if json { json_text(value)? } else { text() };
    if let Err(error) = print(&text) {
        let (why, text) = (printable(&error.chain()), printable(&text));
        let note = format!("note: {why}; the work is done all the same, and came to:\n{text}");
        // With standard error gone as well, the exit code still says it.
        let _ = writeln!(std::io::stderr(), "imprint-agent: {note}");
    }
    Ok(())
}

fn print(text: &str) -> Result<()> {
    use crate::error::IoContext;
    match writeln!(std::io::stdout().lock(), "{}", printable(text)) {
        // Somebody who has read enough does not make the work fail.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.internal(|| "writing to standard output".into()),
    }
}

/// Labels and descriptions come from disks and images: what would steer a terminal becomes a question mark.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// Does something, and shows meanwhile how far it is, or which store or disk does not answer. Nothing is drawn while somebody is asked.
fn told<T>(progress: &Arc<Progress>, face: Face, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ticker = Ticker::start(progress, face);
    let result = work();
    ticker.finish();
    result
}

/// Opens the disk that a text names, and shows meanwhile that it does not answer.
fn opened(
    text: &str,
    progress: &Arc<Progress>,
    face: Face,
    open: impl FnOnce(&Path) -> Result<Disk>,
) -> Result<Disk> {
    let path = find(text)?;
    told(progress, face, || progress.open(&path, open))
}

fn capture_command(
    args: &CaptureArgs,
    json: bool,
    face: Face,
    progress: &Arc<Progress>,
) -> Result<()> {
    let options = &args.options;
    progress.set_limit(options.limit);
    let (disk, image) = match (args.places.as_slice(), &args.disk) {
        ([disk, image], None) | ([image], Some(disk)) => (disk, image),
        _ => wrong_places("capture DISK IMAGE, or capture --disk DISK IMAGE"),
    };
    let url = parse_url(image)?;
    let disk = opened(disk, progress, face, Disk::open_source)?;
    let plan = told(progress, face, || capture::plan(&disk, options))?;
    if !json {
        show_plan(&plan.to_string())?;
    }
    let work = || capture::run(&disk, &url, &plan, options, None, progress);
    finish(json, Summary::Capture(told(progress, face, work)?))
}

fn restore_command(
    args: &RestoreArgs,
    json: bool,
    face: Face,
    progress: &Arc<Progress>,
) -> Result<()> {
    let options = &args.what.options;
    progress.set_limit(options.limit);
    let (url, disk) = args.what.places("restore")?;
    let open = |path: &Path| open_target(path, url.as_ref(), options);
    let target = opened(disk, progress, face, open)?;
    let (image, plan) =
        told(progress, face, || plan_restore(url.as_ref(), &target, options, progress))?;
    if !json {
        show_plan(&plan.to_string())?;
    }
    if !args.yes {
        if json {
            // Nobody agrees to what was not shown; standard output is for the result.
            let _ = writeln!(std::io::stderr(), "{}", printable(&plan.to_string()));
        }
        confirm(&target)?;
    }
    let work = || restore::run(&*image, &target, &plan, options, progress);
    finish(json, Summary::Restore(told(progress, face, work)?))
}

fn convert_command(
    source: &str,
    target: &str,
    options: &ConvertOptions,
    json: bool,
    face: Face,
    progress: &Arc<Progress>,
) -> Result<()> {
    let (source, target) = (parse_url(source)?, parse_url(target)?);
    let summary = told(progress, face, || convert::run(&source, &target, options, progress))?;
    report(json, &summary, || summary.to_string())
}

fn finish(json: bool, summary: Summary) -> Result<()> {
    report(json, &summary, || describe(&summary))
}

fn confirm(target: &Disk) -> Result<()> {
    let path = target.name();
    if !std::io::stdin().is_terminal() {
        return Err(Error::refused(format!(
            "nobody is there to agree to overwriting {path}: standard input is not a terminal; give --yes"
        )));
    }
    let mut stderr = std::io::stderr();
    // A terminal that cannot show the question cannot answer it either: the empty answer below is a no.
    let _ = write!(stderr, "Overwrite {path}? Type yes: ").and_then(|()| stderr.flush());
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if read.is_ok() && answer.trim() == "yes" {
        return Ok(());
    }
    Err(Error::refused(format!("not agreed to; {path} was not touched")))
}

fn verify_command(
    args: &VerifyArgs,
    json: bool,
    face: Face,
    progress: &Arc<Progress>,
) -> Result<()> {
    progress.set_limit(args.limit);
    let url = parse_url(&args.image)?;
    let root = args.expect_root.as_deref();
    let places = Places::new(&url, &args.also, &args.base, root)?;
    let (image, verified) = told(progress, face, || {
        let image = open_image(&places, foreign::any_disk(), progress)?;
        check_signature(&*image, &places, args.require_signature.as_deref(), progress)?;
        restore::check_root(&*image, args.expect_root.as_deref())?;
        let verified = if args.deep {
            verify::contents(&*image, progress)
        } else {
            verify::stored_bytes(&*image, progress)
        };
        verified.map(|verified| (image, verified))
    })?;
    let value = serde_json::json!({
        "root": image.root().to_string(), "verified": verified, "sources": progress.sources(),
    });
    report(json, &value, || {
        format!(
            "{} frames, {} stored, {} decompressed: all hashes right\nroot {}{}",
            verified.frames,
            size(verified.stored_bytes),
            size(verified.content_bytes),
            image.root(),
            describe_sources(&progress.sources())
        )
    })
}

fn inspect_command(image: &str, json: bool, progress: &Arc<Progress>) -> Result<()> {
    let image = open_index(&parse_url(image)?, progress)?;
    let manifest = image.manifest();
    let described = capture::describe_manifest(manifest, image.root(), image.stored_len());
    if json {
        return print_json(&serde_json::json!({
            "root": image.root().to_string(),
            "stored_bytes": image.stored_len(),
            "disk_bytes": image.disk_len(),
            "manifest": manifest,
            "described": printable(&described),
        }));
    }
    print(&described)
}

fn ls_command(folder: &str, json: bool, progress: &Arc<Progress>) -> Result<()> {
    let url = parse_url(folder)?;
    let entries = store::list(&url, &opening::store_options(progress))?;
    let mut rows = Vec::new();
    for entry in entries.iter().filter(|e| crate::image::has_image_name(&e.name)) {
        let image = open_own_image(&url.join(&entry.name), progress);
        rows.push(match &image {
            Ok(image) => serde_json::json!({
                "name": entry.name, "stored_bytes": entry.len_bytes, "disk_bytes": image.disk_len(),
                "root": image.root().to_string(), "created": image.manifest().created,
                "bad_bytes": damage::bytes(image.manifest()),
            }),
            Err(error) => serde_json::json!({
                "name": entry.name, "stored_bytes": entry.len_bytes, "error": error.chain(),
            }),
        });
    }
    if json {
        return print_json(&rows);
    }
    for row in &rows {
        // A name with a line break in it must not make a row of its own.
        let text = |key: &str| row[key].as_str().unwrap_or_default().replace('\n', "?");
        let bytes = |key: &str| row[key].as_u64().map(size).unwrap_or_default();
        let rest = if row["error"].is_null() {
            let damaged = if row["bad_bytes"] == 0 { "" } else { "  DAMAGED" };
            format!(
                "{:>12} of disk  {}  {}{damaged}",
                bytes("disk_bytes"),
                text("created"),
                text("root")
            )
        } else {
            format!("unreadable: {}", text("error"))
        };
        print(&format!("{:40} {:>12}  {rest}", text("name"), bytes("stored_bytes")))?;
    }
    Ok(())
}

fn disks_command(json: bool) -> Result<()> {
    let disks = disk::inventory();
    if json {
        return print_json(&disks);
    }
    for disk in disks {
        let or_dash = |s: Option<String>| s.unwrap_or_else(|| "-".into());
        print(&format!(
            "{:16} {:>12}  {:8} {:24} serial {}  wwn {}  by-path {}",
            disk.path,
            size(disk.size_bytes),
            or_dash(disk.transport),
            or_dash(disk.model),
            or_dash(disk.serial),
            or_dash(disk.wwn),
            or_dash(disk.by_path),
        ))?;
    }
    Ok(())
}
