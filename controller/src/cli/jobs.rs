//! `imprint capture`, `restore`, `jobs`, `job`.

use std::process::ExitCode;

use agent_api::{CaptureOptions, RestoreOptions, StageProgress, Summary};
use anyhow::Context;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value};

use super::connect::{Client, segment};
use super::{table, watch};
use crate::api::jobs::{Approve, JobDetail, JobView, NewJobRequest};
use crate::job::{Action, Shutdown};
use crate::secret::Secret;

#[derive(Debug, Args)]
struct CommonArgs {
    /// Which disk: a device path or a selector such as serial=… [default: the machine's only fixed disk]
    #[arg(long)]
    disk: Option<String>,
    /// What to do when the machine runs its own system
    #[arg(long, value_enum, default_value_t)]
    shutdown: Shutdown,
    /// Follow the job until it ends; exit code 1 if it did not succeed
    #[arg(long)]
    wait: bool,
    /// Print JSON; with --wait one line for each event
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// Whose disk
    host: String,
    /// What the image is to be called
    image: String,
    /// Which store the image is put into [default: the controller's own, unless it was started with another]
    #[arg(long, value_name = "NAME", conflicts_with = "url")]
    store: Option<String>,
    /// Where the image is put, in place of a store
    #[arg(long)]
    url: Option<String>,
    #[command(flatten)]
    options: CaptureOptions,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Whose disk
    host: String,
    /// Which image
    image: String,
    /// Make the plan on the machine, then wait until somebody has approved it (`imprint job approve`)
    #[arg(long)]
    approval: bool,
    #[command(flatten)]
    options: RestoreOptions,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Of this host only
    #[arg(long)]
    host: Option<String>,
    /// Only those that have not ended
    #[arg(long)]
    active: bool,
    /// At most so many, the newest first
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Show a job with its history
    Show {
        /// Which
        id: i64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Cancel a job
    Cancel {
        /// Which
        id: i64,
    },
    /// Show the plan of a restore that waits for approval, and approve it
    Approve {
        /// Which
        id: i64,
        /// The plan's hash; left out: show the plan and approve nothing
        #[arg(long, value_name = "HASH")]
        plan: Option<String>,
    },
    /// Let a job go on that needed attention
    Resume {
        /// Which
        id: i64,
    },
}

pub(super) async fn capture(client: &Client, args: CaptureArgs) -> anyhow::Result<ExitCode> {
    let request = NewJobRequest {
        action: Action::Capture,
        host: args.host.parse()?,
        image: args.image.parse()?,
        store: args.store.map(|store| store.parse()).transpose()?,
        url: args.url.map(|url| url.parse()).transpose()?,
        disk: args.common.disk.as_deref().map(str::parse).transpose()?,
        approval: false,
        shutdown: args.common.shutdown,
        options: members(&args.options)?,
    };
    start(client, request, &args.common).await
}

pub(super) async fn restore(client: &Client, mut args: RestoreArgs) -> anyhow::Result<ExitCode> {
    if let Some(key) = &mut args.options.require_signature {
        *key = public_key(key)?;
    }
    let request = NewJobRequest {
        action: Action::Restore,
        host: args.host.parse()?,
        image: args.image.parse()?,
        store: None,
        url: None,
        disk: args.common.disk.as_deref().map(str::parse).transpose()?,
        approval: args.approval,
        shutdown: args.common.shutdown,
        options: members(&args.options)?,
    };
    start(client, request, &args.common).await
}

/// A minisign public key, or the one in the file of that name: agents have no files of ours.
pub(super) fn public_key(text: &str) -> anyhow::Result<String> {
    let is_key = |text: &str| {
        let key = Some(text.to_owned());
        RestoreOptions { require_signature: key, ..RestoreOptions::default() }.check().is_ok()
    };
    if is_key(text) {
        return Ok(text.to_owned());
    }
    let file = std::fs::read_to_string(text)
        .with_context(|| format!("reading the public key in {text}"))?;
    let key = file.lines().find(|line| is_key(line));
    Ok(key.with_context(|| format!("{text} holds no minisign public key"))?.to_owned())
}

/// Options as members of a request.
fn members(options: &impl serde::Serialize) -> anyhow::Result<Map<String, Value>> {
    Ok(serde_json::from_value(serde_json::to_value(options)?)?)
}

async fn start(
    client: &Client,
    request: NewJobRequest,
    args: &CommonArgs,
) -> anyhow::Result<ExitCode> {
    let key = Secret::random();
    let post = client
        .request(Method::POST, "/v1/jobs")
        .header("idempotency-key", key.expose())
        .json(&request);
    let job: JobView = client.json(post).await?;
    if !args.wait {
        if args.json {
            table::json(&job)?;
        } else {
            table::put(&format!(
                "job {}: {} {} {}; `imprint watch {0}` follows it\n",
                job.id,
                job.action.as_str(),
                job.host,
                job.image
            ))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    watch::follow(client, job.id, args.json).await
}

/// `restoring 42 %`.
fn stage_text(progress: &StageProgress) -> String {
    let stage = progress.stage.as_str();
    match progress.done_bytes.saturating_mul(100).checked_div(progress.total_bytes) {
        Some(percent) => format!("{stage} {} %", percent.min(100)),
        None => stage.to_owned(),
    }
}

pub(super) fn state_text(job: &JobView) -> String {
    let mut text = job.state.to_string();
    if let Some(progress) = job.progress.as_ref().filter(|_| !job.state.is_terminal()) {
        text = format!("{text}: {}", stage_text(progress));
    }
    if job.stalled {
        text.push_str(", stalled");
    }
    if job.needs_attention.is_some() {
        text.push_str(", needs attention");
    }
    if let Some(failure) = &job.failure {
        text = format!("{text}: {}", failure.kind);
    }
    text
}

pub(super) async fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let mut path = format!("/v1/jobs?limit={}&active={}", args.limit, args.active);
    if let Some(host) = &args.host {
        path.push_str("&host=");
        path.push_str(segment(host)?);
    }
    let jobs: Vec<JobView> = client.get(&path).await?;
    if args.json {
        return table::json(&jobs);
    }
    let row = |job: JobView| {
        let state = state_text(&job);
        vec![
            job.id.to_string(),
            job.action.as_str().to_owned(),
            job.host,
            job.image,
            state,
            job.state_since,
        ]
    };
    table::print(
        &["JOB", "ACTION", "HOST", "IMAGE", "STATE", "SINCE"],
        &jobs.into_iter().map(row).collect::<Vec<_>>(),
    )
}

pub(super) async fn run(client: &Client, command: JobCommand) -> anyhow::Result<()> {
    match command {
        JobCommand::Show { id, json } => {
            let detail: JobDetail = client.get(&format!("/v1/jobs/{id}")).await?;
            if json { table::json(&detail) } else { show(&detail) }
        }
        JobCommand::Cancel { id } => {
            let job: JobView =
                client.json(client.request(Method::POST, &format!("/v1/jobs/{id}/cancel"))).await?;
            table::put(&format!(
                "job {id}: {}{}\n",
                job.state,
                if job.state.is_terminal() { "" } else { ", being cancelled" }
            ))
        }
        JobCommand::Approve { id, plan: None } => {
            let detail: JobDetail = client.get(&format!("/v1/jobs/{id}")).await?;
            let plan = detail.plan.with_context(|| {
                format!("job {id} is {} and has no plan to approve", detail.job.state)
            })?;
            let approve = format!("imprint job approve {id} --plan {}", plan.hash);
            table::put(&format!("{}\n\nto approve it: {approve}\n", plan.text))
        }
        JobCommand::Approve { id, plan: Some(plan) } => {
            let post = client.request(Method::POST, &format!("/v1/jobs/{id}/approve"));
            let job: JobView = client.json(post.json(&Approve { plan })).await?;
            table::put(&format!("job {id}: {}\n", job.state))
        }
        JobCommand::Resume { id } => {
            let job: JobView =
                client.json(client.request(Method::POST, &format!("/v1/jobs/{id}/resume"))).await?;
            table::put(&format!("job {id}: {}\n", job.state))
        }
    }
}

fn show(detail: &JobDetail) -> anyhow::Result<()> {
    let job = &detail.job;
    let mut text = format!(
        "job      {} {}\nhost     {}\nimage    {}\nurl      {}\ndisk     {}\nstate    {} since {}\nboots    {}\nby       {} at {}\n",
        job.id,
        job.action.as_str(),
        job.host,
        job.image,
        job.url,
        job.disk.as_deref().unwrap_or("(the only one)"),
        state_text(job),
        job.state_since,
        job.boots,
        job.created_by,
        job.created,
    );
    if let Some(why) = &job.needs_attention {
        text.push_str(&format!("needs attention: {why}\n"));
    }
    if let Some(failure) = &job.failure {
        text.push_str(&format!(
            "failed   {}: {}{}\n",
            failure.kind,
            failure.message,
            if failure.retryable { " (trying again may help)" } else { "" }
        ));
    }
    if let Some(summary) = &job.summary {
        text.push_str(&summary_text(summary));
    }
    text.push('\n');
    for event in &detail.events {
        let what = match (&event.from, &event.to) {
            (Some(from), Some(to)) => format!("{from} → {to}"),
            (None, Some(to)) => to.clone(),
            _ => event.kind.clone(),
        };
        text.push_str(&format!("{}  {:<24} {:<12} {}\n", event.at, what, event.actor, event.cause));
    }
    table::put(&text)
}

pub(super) fn summary_text(summary: &Summary) -> String {
    let size = |bytes: u64| indicatif::DecimalBytes(bytes).to_string();
    let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
    let limited = |by: &Option<String>| {
        by.as_ref().map(|what| format!("limited  by {what}\n")).unwrap_or_default()
    };
    match summary {
        Summary::Capture(done) => {
            let mut text = format!(
                "captured {} of {} used on a disk of {} into {} in {} (reading {}, flushing {}, re-reading {})\nroot     {}\n",
                size(done.data_bytes),
                size(done.used_bytes),
                size(done.disk_bytes),
                size(done.stored_bytes),
                seconds(done.total_ms),
                seconds(done.capture_ms),
                seconds(done.flush_ms),
                seconds(done.verify_ms),
                done.root,
            );
            text.push_str(&limited(&done.limited_by));
            if done.resumed_bytes > 0 {
                text.push_str(&format!("resumed  at {} of the disk\n", size(done.resumed_bytes)));
            }
            if let Some(why) = &done.not_resumed {
                text.push_str(&format!("note     {why}\n"));
            }
            for raw in &done.raw {
                text.push_str(&format!("raw      {raw}\n"));
            }
            for lacking in &done.damaged {
                text.push_str(&format!("DAMAGED  {lacking}\n"));
            }
            text
        }
        Summary::Plan(plan) => format!("{}\n", plan.text),
        Summary::Restore(done) => {
            let mut text = format!(
                "restored {} onto a disk of {}: fetched {}, read back {} in {} (writing {}, flushing {}, reading back {})\nroot     {}\n{}",
                size(done.written_bytes),
                size(done.target_bytes),
                size(done.fetched_bytes),
                size(done.readback_bytes),
                seconds(done.total_ms),
                seconds(done.restore_ms),
                seconds(done.flush_ms),
                seconds(done.verify_ms),
                done.root,
                limited(&done.limited_by),
            );
            for source in &done.sources {
                let why = source.left_out.as_ref().map(|why| format!(", then left out: {why}"));
                let (bytes, why) = (size(source.bytes), why.unwrap_or_default());
                text.push_str(&format!("from     {}: {bytes}{why}\n", source.url));
            }
            for change in &done.changes {
                text.push_str(&format!("changed  {change}\n"));
            }
            for file in &done.files {
                text.push_str(&format!("{:8} {}\n", file.action.as_str(), file.path));
            }
            text
        }
    }
}
