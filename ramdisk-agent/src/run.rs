//! `imprint-agent run -`: one job, as the supervisor hands it over. The job comes as JSON on standard input, so that nothing of
//! it shows in a process list; progress and, last, the outcome leave as JSON lines on standard output.

use std::io::{Read, Write};
use std::sync::Arc;

use agent_api::{ErrorKind, Failure, JobAction, JobSpec, Outcome, PlanSummary, Selector, Summary};

use crate::disk::{self, Disk};
use crate::error::{Error, IoContext, Result};
use crate::opening::{open_target, parse_url, part_of, plan_restore};
use crate::progress::{Face, Progress, Ticker};
use crate::store::Access;
use crate::{capture, restore};

/// A job's text is a few hundred bytes; more than this is not a job.
const MAX_JOB_LEN: u64 = 1 << 20;

/// Reads a job from standard input, does it, prints its outcome. Whether it succeeded.
pub fn run_stdin(progress: &Arc<Progress>) -> Result<bool> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_JOB_LEN)
        .read_to_string(&mut text)
        .internal(|| "reading the job from standard input".into())?;
    let ticker = Ticker::start(progress, Face::Worker);
    let result = JobSpec::read(&text)
        .map_err(|e| Error::refused(format!("the job on standard input: {e}")))
        .and_then(|job| run_job(&job, progress));
    ticker.finish();
    // From here on a signal does not make another outcome of it.
    let _ = progress.begin_work();
    print_outcome(result)
}

/// Prints what a job came to, for the supervisor. Whether it succeeded.
pub fn print_outcome(result: Result<Summary>) -> Result<bool> {
    let outcome = match result {
        Ok(summary) => Outcome::Succeeded(Box::new(summary)),
        Err(error) => Outcome::Failed(Failure { kind: error.kind(), message: error.chain() }),
    };
    let line = serde_json::json!({ "outcome": outcome });
    writeln!(std::io::stdout().lock(), "{line}").internal(|| "writing the outcome".into())?;
    Ok(matches!(outcome, Outcome::Succeeded(_)))
}

fn run_job(job: &JobSpec, progress: &Arc<Progress>) -> Result<Summary> {
    job.unknown.check().map_err(Error::refused)?;
    let selector = match &job.disk {
        Some(text) => disk::selector(text)?,
        None => Selector::Only,
    };
    let path = disk::resolve(&selector, &disk::inventory())?;
    let url = parse_url(&job.image_url)?;
    progress.set_access(Access::new(job.access.clone(), std::slice::from_ref(&url))?);
    match &job.action {
        JobAction::Capture(options) => {
            progress.set_limit(options.limit);
            let disk = progress.open(&path, Disk::open_source)?;
            let plan = capture::plan(&disk, options)?;
            let id = job.image_id.as_deref().map(image_id).transpose()?;
            Ok(Summary::Capture(capture::run(&disk, &url, &plan, options, id, progress)?))
        }
        JobAction::Restore(options) => {
            options.unknown.check().map_err(Error::refused)?;
            progress.set_limit(options.limit);
            let target = progress.open(&path, |path| open_target(path, Some(&url), options))?;
            let (image, plan) = plan_restore(Some(&url), &target, options, progress)?;
            Ok(Summary::Restore(restore::run(&*image, &target, &plan, options, progress)?))
        }
        JobAction::Plan(options) => {
            options.unknown.check().map_err(Error::refused)?;
            progress.set_limit(options.limit);
            let target = progress.open(&path, |path| part_of(Disk::open_source(path)?, options))?;
            let (_, plan) = plan_restore(Some(&url), &target, options, progress)?;
            Ok(Summary::Plan(PlanSummary {
                hash: plan.hash.clone(),
                text: plan.to_string(),
                plan: serde_json::to_value(&plan)
                    .map_err(|e| Error::new(ErrorKind::Internal, "writing the plan").because(e))?,
                disk: disk::identity(&plan.target),
            }))
        }
    }
}

fn image_id(text: &str) -> Result<uuid::Uuid> {
    text.parse()
        .map_err(|e: uuid::Error| Error::refused("the job's image_id is no UUID").because(e))
}
