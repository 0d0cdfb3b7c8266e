//! A job's events as they happen: server-sent events.
//!
//! `event: transition`, `alarm` or `note` come with an `id`; a client that reconnects sends the last one as `Last-Event-ID` and
//! misses nothing. `event: progress` has no id: only the newest counts. The stream ends after the job did.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use agent_api::StageProgress;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream};
use tokio::time::timeout;

use super::ApiError;
use super::jobs::EventView;
use crate::context::Controller;
use crate::db::DbError;

/// How often a stream looks even when nothing rings.
const LOOK: Duration = Duration::from_secs(15);

struct Follower {
    controller: Arc<Controller>,
    job: i64,
    after: i64,
    progress: Option<StageProgress>,
    ready: VecDeque<Event>,
    over: bool,
}

/// Follows a job until it ends.
#[utoipa::path(
    get, path = "/v1/jobs/{id}/events", tag = "jobs",
    params(("id" = i64, Path, description = "The job"), ("Last-Event-ID" = Option<i64>, Header, description = "Go on after this event")),
    responses((status = 200, description = "Server-sent events", content_type = "text/event-stream", body = String), (status = 404, description = "No such job"))
)]
pub(super) async fn stream(
    State(controller): State<Arc<Controller>>,
    job: Result<Path<i64>, PathRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let Path(job) = job?;
    controller.db.job(job).await?;
    let after = headers
        .get("last-event-id")
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    let follower =
        Follower { controller, job, after, progress: None, ready: VecDeque::new(), over: false };
    let events = stream::unfold(follower, |mut follower| async move {
        loop {
            if let Some(event) = follower.ready.pop_front() {
                return Some((Ok(event), follower));
            }
            if follower.over {
                return None;
            }
            let mut bell = follower.controller.live.listen(follower.job);
            if let Err(error) = follower.look().await {
                // The client comes back and goes on after the last event it got.
                tracing::error!(error = %crate::error_chain(&error), "event stream ends early");
                return None;
            }
            if follower.ready.is_empty() && !follower.over {
                // Time is up or the bell rang: look again either way.
                let _ = timeout(LOOK, bell.changed()).await;
            }
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

impl Follower {
    async fn look(&mut self) -> Result<(), DbError> {
        // The state first: events up to a terminal one are then all there.
        let job = self.controller.db.job(self.job).await?;
        for event in self.controller.db.events(self.job, self.after).await? {
            self.after = event.id;
            let (id, kind) = (event.id, event.kind.clone());
            let view = EventView::from(event);
            self.push(Event::default().id(id.to_string()).event(kind).json_data(view));
        }
        let progress = self.controller.live.progress(self.job);
        if progress.is_some() && progress != self.progress {
            if let Some(progress) = &progress {
                self.push(Event::default().event("progress").json_data(progress));
            }
            self.progress = progress;
        }
        self.over = job.state.is_terminal();
        Ok(())
    }

    fn push(&mut self, event: Result<Event, axum::Error>) {
        match event {
            Ok(event) => self.ready.push_back(event),
            Err(error) => tracing::error!(%error, "event not sent"),
        }
    }
}
