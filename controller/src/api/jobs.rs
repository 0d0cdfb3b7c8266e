//! Captures and restores.

mod plan;
mod view;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use plan::plan;
pub use view::{EventView, FailureView, JobDetail, JobView, PowerActionView};

use super::ApiError;
use super::auth::Caller;
use crate::context::Controller;
use crate::db::{Idempotency, JobFilter, NewJobOutcome};
use crate::job::{Action, Shutdown};
use crate::names::{DiskSelector, HostName, ImageName, ImageUrl, StoreName};
use crate::reconcile;
use crate::secret::is_hex;

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

/// Which jobs to list.
#[derive(Debug, Clone, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
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
