//! Jobs as the API shows them: where one stands, what happened to it, and what was asked of its machine.

use agent_api::{ErrorKind, Outcome, PlanSummary, StageProgress, Summary};
use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{Event, PowerAction};
use crate::job::{Action, Job, State as JobState};
use crate::store::Places;

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FailureView {
    /// For programs: `network`, `store`, `disk`, `image_corrupt`, `no_space`, `refused`, `source_not_clean`, `cancelled`,
    /// `not_found`, `internal`.
    #[schema(value_type = String)]
    pub kind: ErrorKind,
    /// Whether the same job may succeed if it is simply tried again.
    pub retryable: bool,
    /// For people.
    pub message: String,
}

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    /// Its number.
    pub id: i64,
    /// Capture or restore.
    pub action: Action,
    /// The host.
    pub host: String,
    /// The image.
    pub image: String,
    /// The store that the image lies in, if that has a name.
    pub store: Option<String>,
    /// Where the image lies.
    pub url: String,
    /// The disk, if one was named.
    pub disk: Option<String>,
    /// Where the job stands.
    pub state: JobState,
    /// Since when.
    pub state_since: String,
    /// Its agent is silent.
    pub stalled: bool,
    /// Why a person has to look at it; the job waits until then.
    pub needs_attention: Option<String>,
    /// Its cancellation was asked for.
    pub cancel_asked: bool,
    /// How far its worker is: stage, done_bytes, total_bytes, stored_bytes, elapsed_ms, stalled.
    #[schema(value_type = Option<Object>)]
    pub progress: Option<StageProgress>,
    /// Why it failed.
    pub failure: Option<FailureView>,
    /// What it did: sizes, times, root hash.
    #[schema(value_type = Option<Object>)]
    pub summary: Option<Summary>,
    /// How often boot files were handed out.
    pub boots: i64,
    /// Who asked for it.
    pub created_by: String,
    /// When.
    pub created: String,
    /// When it ended.
    pub finished: Option<String>,
}

impl JobView {
    pub(super) fn new(job: Job, controller: &Controller, places: &Places) -> Self {
        let (store, url) = places.locate(&job.image_url);
        let summary = match &job.outcome {
            Some(Outcome::Succeeded(summary)) => Some(summary.as_ref().clone()),
            _ => None,
        };
        Self {
            id: job.id,
            action: job.action(),
            state: job.state,
            state_since: rfc3339(job.state_since_ms),
            stalled: job.stalled,
            cancel_asked: job.cancel_asked_ms.is_some(),
            progress: controller.live.progress(job.id),
            failure: job.failure.map(|(kind, message)| FailureView {
                kind,
                retryable: kind.is_retryable(),
                message,
            }),
            summary,
            boots: job.boots,
            created: rfc3339(job.created_ms),
            finished: job.finished_ms.map(rfc3339),
            host: job.host,
            image: job.image,
            store,
            url,
            disk: job.disk,
            needs_attention: job.needs_attention,
            created_by: job.created_by,
        }
    }
}

/// Something that happened to a job.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EventView {
    /// Grows; also the id of the server-sent event.
    pub id: i64,
    /// When.
    pub at: String,
    /// `transition`, `alarm` or `note`.
    pub kind: String,
    /// State before a transition.
    pub from: Option<String>,
    /// State after it.
    pub to: Option<String>,
    /// `api:TOKEN`, `controller` or `agent`.
    pub actor: String,
    /// Why.
    pub cause: String,
}

impl From<Event> for EventView {
    fn from(event: Event) -> Self {
        Self {
            id: event.id,
            at: rfc3339(event.at_ms),
            kind: event.kind,
            from: event.from_state,
            to: event.to_state,
            actor: event.actor,
            cause: event.cause,
        }
    }
}

/// What was asked of the BMC for a job.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PowerActionView {
    /// `on`, `off`, `soft`, `boot_pxe`, `boot_disk`.
    pub action: String,
    /// When it was decided.
    pub intended: String,
    /// When its effect was seen.
    pub done: Option<String>,
    /// How it went.
    pub result: Option<String>,
}

impl From<PowerAction> for PowerActionView {
    fn from(action: PowerAction) -> Self {
        Self {
            action: action.action,
            intended: rfc3339(action.intended_ms),
            done: action.done_ms.map(rfc3339),
            result: action.result,
        }
    }
}

/// A job with its history.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobDetail {
    /// The job.
    #[serde(flatten)]
    pub job: JobView,
    /// What happened, in order.
    pub events: Vec<EventView>,
    /// What was asked of the BMC, in order.
    pub power_actions: Vec<PowerActionView>,
    /// The plan that was made for an approval: its hash, its text, and the plan as `imprint-agent plan restore --json` prints it.
    #[schema(value_type = Option<Object>)]
    pub plan: Option<PlanSummary>,
    /// What the machine said of itself when it checked in.
    #[schema(value_type = Option<Object>)]
    pub machine: Option<agent_api::Machine>,
}
