//! `imprint watch`: a job's events as they happen.
//!
//! Survives a controller that is restarted: the stream is opened again after the last event that was seen.

use std::process::ExitCode;
use std::time::Duration;

use agent_api::StageProgress;
use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::connect::Client;
use super::jobs::summary_text;
use super::table;
use crate::api::jobs::{EventView, JobDetail};
use crate::job::State;

/// The server sends something every 15 s; a stream that is silent for longer is dead.
const SILENCE: Duration = Duration::from_secs(45);
/// How long a controller may be away before `watch` gives up.
const AWAY: Duration = Duration::from_secs(15 * 60);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(1);
/// Longest event that is read, in bytes.
const EVENT_MAX: usize = 1024 * 1024;

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// Which job
    job: i64,
    /// Print one line of JSON for each event: {"event":…,"data":…}
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, args: &WatchArgs) -> anyhow::Result<ExitCode> {
    follow(client, args.job, args.json).await
}

/// Shows a job until it ends: success if it succeeded.
pub(super) async fn follow(client: &Client, job: i64, json: bool) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new(json);
    let mut last_id: Option<i64> = None;
    // The first connection must work; later ones may wait for a controller that comes back.
    let mut away_since: Option<Instant> = None;
    loop {
        let mut request = client.request(Method::GET, &format!("/v1/jobs/{job}/events"));
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        match client.send(request).await {
            Ok(response) => {
                away_since = Some(Instant::now());
                read_stream(response, &mut screen, &mut last_id).await?;
            }
            Err(error) => match away_since {
                Some(since) if since.elapsed() < AWAY => {
                    screen.say("the controller does not answer; trying again")
                }
                _ => return Err(error),
            },
        }
        if screen.over {
            break;
        }
        sleep(RETRY).await;
    }
    screen.bar.finish_and_clear();
    let detail: JobDetail = client.get(&format!("/v1/jobs/{job}")).await?;
    if json {
        let line = serde_json::json!({"event": "end", "data": detail.job});
        table::put(&format!("{line}\n"))?;
    } else if let Some(summary) = &detail.job.summary {
        table::put(&summary_text(summary))?;
    }
    match (detail.job.state, &detail.job.failure) {
        (State::Succeeded, _) => Ok(ExitCode::SUCCESS),
        (State::Failed, Some(failure)) => {
            eprintln!("imprint: job {job} failed ({}): {}", failure.kind, failure.message);
            Ok(ExitCode::FAILURE)
        }
        (state, _) => {
            eprintln!("imprint: job {job} is {state}");
            Ok(ExitCode::FAILURE)
        }
    }
}

async fn read_stream(
    mut response: reqwest::Response,
    screen: &mut Screen,
    last_id: &mut Option<i64>,
) -> anyhow::Result<()> {
    let mut buffer = Vec::new();
    // An error or silence ends this stream, not the watch.
    while let Ok(Ok(Some(chunk))) = timeout(SILENCE, response.chunk()).await {
        buffer.extend_from_slice(&chunk);
        anyhow::ensure!(
            buffer.len() <= EVENT_MAX,
            "the controller sent an event that does not end"
        );
        while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = buffer.drain(..end + 2).collect();
            let event = Event::parse(&String::from_utf8_lossy(&block));
            if event.id.is_some() {
                *last_id = event.id;
            }
            screen.show(&event)?;
        }
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    id: Option<i64>,
    name: String,
    data: String,
}

impl Event {
    fn parse(block: &str) -> Self {
        let mut event = Self::default();
        for line in block.lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => event.id = value.parse().ok(),
                "event" => value.clone_into(&mut event.name),
                "data" => {
                    if !event.data.is_empty() {
                        event.data.push('\n');
                    }
                    event.data.push_str(value);
                }
                // Comments keep the connection alive; other fields are not for us.
                _ => {}
            }
        }
        event
    }
}

struct Screen {
    json: bool,
    bar: ProgressBar,
    stage: Option<agent_api::Stage>,
    said: String,
    over: bool,
}

impl Screen {
    fn new(json: bool) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .expect("the template is a constant that parses"),
        );
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { json, bar, stage: None, said: String::new(), over: false }
    }

    fn say(&mut self, text: &str) {
        if !self.json && self.said != text {
            if self.bar.is_hidden() {
                eprintln!("{text}");
            } else {
                self.bar.println(text);
            }
        }
        text.clone_into(&mut self.said);
    }

    fn show(&mut self, event: &Event) -> anyhow::Result<()> {
        if event.data.is_empty() {
            return Ok(());
        }
        if self.json {
            let data: Value = serde_json::from_str(&event.data).context("reading an event")?;
            let line = serde_json::json!({"event": event.name, "id": event.id, "data": data});
            table::put(&format!("{line}\n"))?;
        }
        if event.name == "progress" {
            let progress: StageProgress =
                serde_json::from_str(&event.data).context("reading progress")?;
            self.progress(&progress);
            return Ok(());
        }
        let view: EventView = serde_json::from_str(&event.data).context("reading an event")?;
        let to = view.to.as_deref().and_then(|to| to.parse::<State>().ok());
        match to {
            Some(state) => {
                self.say(&format!("{}  {state}: {}", view.at, view.cause));
                self.over = state.is_terminal();
            }
            None => self.say(&format!("{}  {}: {}", view.at, view.kind, view.cause)),
        }
        Ok(())
    }

    fn progress(&mut self, progress: &StageProgress) {
        if self.stage != Some(progress.stage) {
            self.stage = Some(progress.stage);
            let template = if progress.total_bytes == 0 {
                "{spinner} {msg}"
            } else {
                "{spinner} {prefix:<10} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {msg}"
            };
            self.bar.set_style(
                ProgressStyle::with_template(template)
                    .expect("the template is a constant that parses"),
            );
            self.bar.set_prefix(progress.stage.as_str());
        }
        self.bar.set_length(progress.total_bytes);
        self.bar.set_position(progress.done_bytes);
        let rate =
            progress.done_bytes.saturating_mul(1000).checked_div(progress.elapsed_ms).unwrap_or(0);
        self.bar.set_message(match &progress.stalled {
            Some(why) => why.clone(),
            None if progress.total_bytes == 0 => progress.stage.as_str().to_owned(),
            None => format!("{}/s", indicatif::DecimalBytes(rate)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn server_sent_events() {
        let event = Event::parse("id: 7\nevent: transition\ndata: {\"a\":\ndata: 1}\n\n");
        assert_eq!(
            event,
            Event { id: Some(7), name: "transition".into(), data: "{\"a\":\n1}".into() }
        );
        assert_eq!(Event::parse(":\n\n"), Event::default());
    }
}
