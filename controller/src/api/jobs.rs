//! Captures and restores.

use std::sync::Arc;

use agent_api::{
    CaptureOptions, ErrorKind, LayoutPartition, Outcome, PlanSummary, RestoreOptions,
    StageProgress, Summary,
};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ApiError;
use super::auth::Caller;
use crate::bmc::Power;
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{BmcRow, Event, Host, Idempotency, JobFilter, NewJobOutcome, PowerAction};
use crate::job::{Action, Job, NewJob, Options, Shutdown, State as JobState};
use crate::names::{DiskSelector, FreeText, HostName, ImageName, ImageUrl, StoreName};
use crate::reconcile;
use crate::secret::is_hex;
use crate::store::{DELTA_SUFFIX, IMAGE_SUFFIX, Place, Places};

/// Longest list of jobs in one answer.
const LIST_MAX: u32 = 1000;
/// Longest Idempotency-Key in bytes.
const KEY_MAX: usize = 255;

/// A job that is wanted.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NewJobRequest {
    /// Capture or restore.
    pub action: Action,
    /// Which host.
    pub host: HostName,
    /// Which image: a new name for a capture, one of the catalogue for a restore.
    pub image: ImageName,
    /// Which store a capture puts the image into. Left out: the default one, which is the controller's own unless it was started
    /// with another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreName>,
    /// Where a capture puts the image, in place of a store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<ImageUrl>,
    /// Which disk: a device path or a selector. Left out: the machine's only fixed disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskSelector>,
    /// What to do with a machine that runs its own system.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// Restore: make the plan, then wait until somebody has approved it.
    #[serde(default)]
    pub approval: bool,
    /// The options of the action, beside the other members and under the names that they have on the command line of
    /// `imprint-agent`, with `_` for `-`.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub options: Map<String, Value>,
}

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
    fn new(job: Job, controller: &Controller, places: &Places) -> Self {
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

async fn view(controller: &Controller, id: i64) -> Result<JobView, ApiError> {
    let places = controller.stores.places().await?;
    Ok(JobView::new(controller.db.job(id).await?, controller, &places))
}

/// An approval of a plan.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// The hash of the plan that is approved, as the job shows it.
    pub plan: String,
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

/// Which jobs to list.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Of this host only.
    host: Option<String>,
    /// Only those that have not ended.
    #[serde(default)]
    active: bool,
    /// At most so many (default 100, up to 1000), the newest first.
    limit: Option<u32>,
}

/// Lists jobs, the newest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", params(ListQuery), responses((status = 200, description = "Jobs", body = Vec<JobView>)))]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Vec<JobView>>, ApiError> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(100).min(LIST_MAX);
    let filter = JobFilter { host: query.host, active: query.active, limit };
    let jobs = controller.db.jobs(&filter).await?;
    let places = controller.stores.places().await?;
    Ok(Json(jobs.into_iter().map(|job| JobView::new(job, &controller, &places)).collect()))
}

/// Starts a capture or a restore.
#[utoipa::path(
    post, path = "/v1/jobs", tag = "jobs", request_body = NewJobRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body again answer with the same job")),
    responses(
        (status = 202, description = "Accepted; Location names the job", body = JobView),
        (status = 200, description = "The job that this Idempotency-Key made before", body = JobView),
        (status = 404, description = "No such host or image"),
        (status = 409, description = "host_busy, host_is_on, other_root, image_exists, image_in_use, place_taken, in_use_by_task, no_agent, idempotency_key_reused, bmc_refused"),
        (status = 422, description = "invalid"),
        (status = 502, description = "bmc_unreachable, bmc_failed"),
    )
)]
pub(super) async fn create(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Result<Json<NewJobRequest>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(request) = body?;
    let key = headers.get("idempotency-key").map(|value| value.to_str().unwrap_or_default());
    if key.is_some_and(|key| key.is_empty() || key.len() > KEY_MAX) {
        return Err(ApiError::invalid("Idempotency-Key must be 1 to 255 printable characters"));
    }
    let body = serde_json::to_string(&request).expect("a request is plain data");
    let idempotency = key.map(|key| Idempotency { token_id: caller.token_id, key, body: &body });
    let (status, id) = match create_once(&controller, &caller, request, idempotency).await? {
        NewJobOutcome::Repeated(id) => (StatusCode::OK, id),
        NewJobOutcome::Created(id) => (StatusCode::ACCEPTED, id),
    };
    let view = view(&controller, id).await?;
    Ok((status, [(header::LOCATION, format!("/v1/jobs/{id}"))], Json(view)).into_response())
}

async fn create_once(
    controller: &Arc<Controller>,
    caller: &Caller,
    request: NewJobRequest,
    idempotency: Option<Idempotency<'_>>,
) -> Result<NewJobOutcome, ApiError> {
    let before = async || match idempotency {
        Some(idempotency) => controller.db.job_of_key(idempotency).await,
        None => Ok(None),
    };
    if let Some(id) = before().await? {
        return Ok(NewJobOutcome::Repeated(id));
    }
    let new = match plan(controller, caller, request).await {
        Ok(new) => new,
        // A repeated request must not fail because the first one has changed the world meanwhile.
        Err(error) => return before().await?.map(NewJobOutcome::Repeated).ok_or(error),
    };
    let held = controller.tasks.catalogue.lock().await;
    if new.options.action() == Action::Capture {
        let spots = controller.db.spots().await?;
        controller.tasks.refuse_place(&spots, &new.place.to_string(), "this file")?;
    }
    let outcome = controller.db.create_job(&new, idempotency).await?;
    drop(held);
    if let NewJobOutcome::Created(id) = outcome {
        tracing::info!(job = id, host = %new.host, image = %new.image, by = caller.name, "new job");
        reconcile::start(controller, id);
    }
    Ok(outcome)
}

/// Checks a request and turns it into a job.
async fn plan(
    controller: &Controller,
    caller: &Caller,
    request: NewJobRequest,
) -> Result<NewJob, ApiError> {
    if !controller.boots_agents() {
        return Err(ApiError::conflict(
            "no_agent",
            "this controller has no agent to boot: start it with --boot-dir (see `imprint initramfs build`)",
        ));
    }
    let host = controller.db.host(request.host.as_str()).await?;
    let (options, place) = match request.action {
        Action::Capture => {
            if request.approval {
                return Err(ApiError::invalid(
                    "approval is for restores: a capture changes nothing",
                ));
            }
            let mut options: CaptureOptions = options_of(request.action, request.options)?;
            options.check().map_err(ApiError::invalid)?;
            if let Some(description) = &options.description {
                description.parse::<FreeText>()?;
            }
            options.base = base_place(controller, options.base).await?;
            let suffix = if options.base.is_some() { DELTA_SUFFIX } else { IMAGE_SUFFIX };
            let place = match (request.url, request.store) {
                (Some(_), Some(_)) => {
                    return Err(ApiError::invalid("give store or url, not both"));
                }
                (Some(url), None) => controller.stores.known(url),
                (None, store) => {
                    controller.stores.place(store, &format!("{}{suffix}", request.image)).await?
                }
            };
            (Options::Capture(options), place)
        }
        Action::Restore => {
            if request.url.is_some() || request.store.is_some() {
                return Err(ApiError::invalid(
                    "url and store are for captures; the catalogue knows where an image lies",
                ));
            }
            let mut options: RestoreOptions = options_of(request.action, request.options)?;
            options.check().map_err(ApiError::invalid)?;
            options.base = base_place(controller, options.base).await?;
            let image = controller.db.image(request.image.as_str()).await?;
            match &options.expect_root {
                Some(wanted) if !wanted.eq_ignore_ascii_case(&image.root) => {
                    return Err(ApiError::conflict(
                        "other_root",
                        format!("image {} has the root {}", image.name, image.root),
                    ));
                }
                _ => options.expect_root = Some(image.root),
            }
            for also in &mut options.also {
                *also = also_place(controller, also, &image.url).await?;
            }
            for partition in options.layout.iter_mut().flat_map(|layout| &mut layout.partitions) {
                layout_place(controller, partition).await?;
            }
            (Options::Restore(options), image.url.parse()?)
        }
    };
    if let Some(job) = controller.db.active_job_of(host.id).await? {
        return Err(ApiError::conflict(
            "host_busy",
            format!("job {} is under way on host {}", job.id, host.name),
        ));
    }
    check_power(controller, &host, request.shutdown).await?;
    Ok(NewJob {
        host_id: host.id,
        host: request.host,
        image: request.image,
        place,
        disk: request.disk,
        options,
        shutdown: request.shutdown,
        approval: request.approval,
        created_by: caller.name.clone(),
    })
}

/// The place of the base of a delta image: the catalogue knows it by its name.
async fn base_place(
    controller: &Controller,
    base: Option<String>,
) -> Result<Option<String>, ApiError> {
    let Some(name) = base else { return Ok(None) };
    Ok(Some(controller.db.image(name.parse::<ImageName>()?.as_str()).await?.url))
}

/// A place that somebody wrote.
fn place_of(controller: &Controller, text: &str) -> Result<Place, ApiError> {
    Ok(match text.parse()? {
        Place::Url(url) => controller.stores.known(url),
        place @ Place::Store { .. } => place,
    })
}

/// Another place of an image: a URL, a file of a store (`store:NAME/FILE`), or a store that has it under the same file name.
async fn also_place(controller: &Controller, also: &str, image: &str) -> Result<String, ApiError> {
    let place = match also.parse::<StoreName>() {
        Ok(store) => {
            let path = image.split('?').next().unwrap_or_default();
            let file = path.rsplit('/').next().unwrap_or_default();
            Place::Store { store, file: file.parse()? }
        }
        Err(_) => place_of(controller, also)?,
    };
    if let Some(store) = place.store() {
        controller.db.store(store.as_str()).await?;
    }
    Ok(place.to_string())
}

/// The image of a partition of a layout: one of the catalogue, whose root is then demanded; a file of a store (`store:NAME/FILE`), or a URL.
async fn layout_place(
    controller: &Controller,
    partition: &mut LayoutPartition,
) -> Result<(), ApiError> {
    let Some(text) = &partition.image else { return Ok(()) };
    let place = match text.parse::<ImageName>() {
        Ok(name) => {
            let image = controller.db.image(name.as_str()).await?;
            if let Some(wanted) = &partition.expect_root
                && !wanted.eq_ignore_ascii_case(&image.root)
            {
                return Err(ApiError::conflict(
                    "other_root",
                    format!("image {} has the root {}", image.name, image.root),
                ));
            }
            partition.expect_root = Some(image.root);
            image.url.parse()?
        }
        Err(_) => place_of(controller, text)?,
    };
    if let Some(store) = place.store() {
        controller.db.store(store.as_str()).await?;
    }
    partition.image = Some(place.to_string());
    Ok(())
}

/// The options of an action. Agents ignore what they do not know; here a name that is not known is a mistake of the caller, and
/// one that would not be noticed before a disk was overwritten.
fn options_of<T: Default + Serialize + DeserializeOwned>(
    action: Action,
    given: Map<String, Value>,
) -> Result<T, ApiError> {
    let known = serde_json::to_value(T::default()).expect("options are plain data");
    if let Some(name) = given.keys().find(|name| known.get(name).is_none()) {
        let names: Vec<&str> =
            known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        return Err(ApiError::invalid(format!(
            "{} is not an option of a {}; those are {}",
            name.escape_debug(),
            action.as_str(),
            names.join(", ")
        )));
    }
    serde_json::from_value(Value::Object(given)).map_err(|error| {
        ApiError::invalid(format!("the options of the {}: {error}", action.as_str()))
    })
}

/// Says no at once to what the job's first step would refuse.
async fn check_power(
    controller: &Controller,
    host: &Host,
    shutdown: Shutdown,
) -> Result<(), ApiError> {
    let asks = host.bmc != BmcRow::Manual && shutdown == Shutdown::Refuse;
    if asks
        && !reconcile::is_in_agent(controller, host).await?
        && controller.bmcs.power(host).await? == Power::On
    {
        let text = format!(
            "host {} is on and runs its own system: shut it down, or give shutdown soft (presses its power button) or force (cuts its power)",
            host.name
        );
        return Err(ApiError::conflict("host_is_on", text));
    }
    Ok(())
}

/// Shows a job with its history.
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = i64, Path, description = "The job")),
    responses((status = 200, description = "The job", body = JobDetail), (status = 404, description = "No such job"))
)]
pub(super) async fn show(
    State(controller): State<Arc<Controller>>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Json<JobDetail>, ApiError> {
    let Path(id) = id?;
    let mut job = controller.db.job(id).await?;
    let plan = job.plan.take();
    let job = JobView::new(job, &controller, &controller.stores.places().await?);
    let events = controller.db.events(id, 0).await?.into_iter().map(EventView::from).collect();
    let power_actions =
        controller.db.power_actions(id).await?.into_iter().map(PowerActionView::from).collect();
    let machine = controller.db.session_of_job(id).await?.map(|session| session.machine);
    Ok(Json(JobDetail { job, events, power_actions, plan, machine }))
}

/// Cancels a job. Before its agent works it ends at once; later when its agent has stopped.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = i64, Path, description = "The job")),
    responses((status = 202, description = "The job", body = JobView), (status = 404, description = "No such job"), (status = 409, description = "job_over"))
)]
pub(super) async fn cancel(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<(StatusCode, Json<JobView>), ApiError> {
    let Path(id) = id?;
    controller.db.cancel_job(id, &caller.actor()).await?;
    controller.live.ring(id);
    Ok((StatusCode::ACCEPTED, Json(view(&controller, id).await?)))
}

/// Approves the plan of a restore that waits for it: the agent makes the plan again, and restores if it is still the same.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/approve", tag = "jobs", params(("id" = i64, Path, description = "The job")), request_body = Approve,
    responses((status = 202, description = "The job", body = JobView), (status = 404, description = "No such job"), (status = 409, description = "nothing_to_approve, other_plan"))
)]
pub(super) async fn approve(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<i64>, PathRejection>,
    body: Result<Json<Approve>, JsonRejection>,
) -> Result<(StatusCode, Json<JobView>), ApiError> {
    let (Path(id), Json(approve)) = (id?, body?);
    if !is_hex(approve.plan.trim(), 64) {
        return Err(ApiError::invalid("plan must be the plan's hash: 64 lower-case hex digits"));
    }
    controller.db.approve(id, &approve.plan, &caller.actor()).await?;
    controller.live.ring(id);
    Ok((StatusCode::ACCEPTED, Json(view(&controller, id).await?)))
}

/// Lets a job go on that needed attention. Its old ticket is void.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/resume", tag = "jobs", params(("id" = i64, Path, description = "The job")),
    responses((status = 202, description = "The job", body = JobView), (status = 404, description = "No such job"), (status = 409, description = "job_over"))
)]
pub(super) async fn resume(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<(StatusCode, Json<JobView>), ApiError> {
    let Path(id) = id?;
    controller.db.resume_job(id, &caller.actor()).await?;
    controller.live.ring(id);
    Ok((StatusCode::ACCEPTED, Json(view(&controller, id).await?)))
}
