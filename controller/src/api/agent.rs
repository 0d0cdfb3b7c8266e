//! What agents ask and say. The messages are those of [`agent_api`].

use std::sync::Arc;
use std::time::Duration;

use agent_api::{
    Finish as Leave, Heartbeat, Note, Orders, Outcome, Redeem, Report, Session as Granted, Stage,
    Summary, WORK_WAIT_SECS, Work,
};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use tokio::time::{Instant, timeout_at};

use super::ApiError;
use crate::clock::now_ms;
use crate::context::Controller;
use crate::db::{BmcRow, DbError, Host, JOB_PAUSED, Redemption, Session};
use crate::host::Finish;
use crate::job::{Action, Job, State as JobState};
use crate::names::{DiskSelector, Mac, machine_uuid, printable};
use crate::reconcile::is_boot_disk_done;
use crate::secret::{Secret, is_hex, sha256};

/// How often an agent is to send a heartbeat, in seconds.
const HEARTBEAT_SECS: u64 = 10;
/// How much of an agent's log one request may bring, in bytes.
const LOG_MAX: usize = 64 * 1024;
/// Longest line of an agent's log that is kept, in characters.
const LOG_LINE_MAX: usize = 400;

/// Longest message of a failure, in characters.
const MESSAGE_MAX: usize = 4000;
/// Longest image id, in characters: a UUID's.
const IMAGE_ID_MAX: usize = 36;
/// Length of a root hash in hex.
const ROOT_LEN: usize = 64;
/// Lines of a plan that are kept: more than a partition table has entries, and what is around them.
const PLAN_LINES_MAX: usize = 1000;
/// Reasons for raw partitions that are kept: more than a partition table has entries.
const RAW_MAX: usize = 256;

type Answer<T> = Result<Json<T>, ApiError>;

fn forbidden(code: &'static str, detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, code, detail)
}

/// Exchanges a ticket for a credential.
#[utoipa::path(
    post, path = "/v1/agent/redeem", tag = "agent", security(()),
    request_body(content = Object, description = "agent_api::Redeem"),
    responses(
        (status = 200, description = "agent_api::Session", body = Object),
        (status = 403, description = "Unknown ticket, wrong machine, or no agent wanted"),
        (status = 409, description = "Redeemed before, by another boot"),
    )
)]
pub(super) async fn redeem(
    State(controller): State<Arc<Controller>>,
    body: Result<Json<Redeem>, JsonRejection>,
) -> Answer<Granted> {
    let Json(redeem) = body?;
    if !is_hex(&redeem.secret, 64) || !is_hex(&redeem.boot_id, 32) {
        return Err(ApiError::invalid("secret must be 64 and boot_id 32 lower-case hex digits"));
    }
    let hash = sha256(redeem.secret.as_bytes());
    let unknown = || {
        forbidden(
            "ticket_unknown",
            "this ticket is unknown, too old, or was replaced by a newer one",
        )
    };
    let job = controller.db.job_of_ticket(&hash).await?.ok_or_else(unknown)?;
    let host_id = job.host_id.ok_or_else(unknown)?;
    let host = controller.db.host_by_id(host_id).await?;
    check_machine(&controller, &job, &host, &redeem).await?;
    let credential = Secret::random();
    let redemption =
        controller.db.redeem(&hash, &redeem.boot_id, &credential.hash(), &redeem.machine).await?;
    controller.live.ring(job.id);
    match redemption {
        Redemption::Granted => {}
        Redemption::Unknown => return Err(unknown()),
        Redemption::NotWanted => {
            return Err(forbidden("not_wanted", format!("job {} wants no agent now", job.id)));
        }
        Redemption::UsedBefore => {
            tracing::warn!(job = job.id, host = host.name, "ticket redeemed a second time");
            return Err(ApiError::conflict(
                "ticket_used",
                "another boot redeemed this ticket before: the job is paused",
            ));
        }
    }
    controller.live.heard(job.id);
    if let Some(uuid) = redeem.machine.uuid.as_deref().and_then(machine_uuid) {
        controller.db.learn_uuid(host.id, &uuid).await?;
    }
    tracing::info!(
        job = job.id,
        host = host.name,
        agent = redeem.machine.agent_version,
        "agent checked in"
    );
    Ok(Json(Granted {
        credential: credential.expose().to_owned(),
        host: host.name,
        unix_time_secs: u64::try_from(now_ms() / 1000).unwrap_or(0),
        heartbeat_secs: HEARTBEAT_SECS,
    }))
}

/// The machine must be the host: one of its MAC addresses, and the UUID that is known of it.
async fn check_machine(
    controller: &Controller,
    job: &Job,
    host: &Host,
    redeem: &Redeem,
) -> Result<(), ApiError> {
    let macs: Vec<Mac> =
        redeem.machine.nics.iter().filter_map(|nic| nic.mac.parse().ok()).collect();
    let uuid = redeem.machine.uuid.as_deref().and_then(machine_uuid);
    let wrong = if !macs.iter().any(|mac| host.macs.contains(mac)) {
        format!("a machine without any MAC address of host {} came with its ticket", host.name)
    } else if host.uuid.is_some() && host.uuid != uuid {
        format!(
            "the machine that came as host {0} has the UUID {1}, not {2}: if its board was exchanged, `imprint host set {0} --uuid forget`",
            host.name,
            uuid.as_deref().unwrap_or("(none)"),
            host.uuid.as_deref().unwrap_or_default(),
        )
    } else {
        return Ok(());
    };
    tracing::warn!(job = job.id, "{wrong}");
    if !job.state.is_terminal() {
        controller.db.note(job.id, "alarm", "controller", &wrong).await?;
        controller.live.ring(job.id);
    }
    Err(forbidden("wrong_machine", wrong))
}

/// What the agent is to do. Held open while there is nothing.
#[utoipa::path(
    get, path = "/v1/agent/work", tag = "agent",
    responses((status = 200, description = "agent_api::Work", body = Object), (status = 401, description = "Credential not valid"))
)]
pub(super) async fn work(
    State(controller): State<Arc<Controller>>,
    Extension(session): Extension<Session>,
) -> Answer<Work> {
    let deadline = Instant::now() + Duration::from_secs(WORK_WAIT_SECS);
    loop {
        let mut bell = controller.live.listen(session.job_id);
        let work = work_now(&controller, &session).await?;
        if work != Work::Idle || timeout_at(deadline, bell.changed()).await.is_err() {
            return Ok(Json(work));
        }
    }
}

async fn work_now(controller: &Controller, session: &Session) -> Result<Work, ApiError> {
    let job = controller.db.job(session.job_id).await?;
    let finish = match job.host_id {
        Some(id) => controller.db.host_by_id(id).await.map(|host| (host.finish, host.bmc)).ok(),
        None => None,
    };
    let (finish, bmc) = finish.unwrap_or((Finish::Disk, BmcRow::Manual));
    let leave = |how| Work::Finish { how };
    let work = match (job.state, job.action()) {
        (JobState::Succeeded, action) => leave(finish.for_agent(action)),
        // The disk of a failed capture is as it was. That of a failed restore does not boot: the machine stays, so that it can be
        // looked at.
        (JobState::Failed | JobState::Cancelled, Action::Capture) => {
            leave(finish.for_agent(Action::Capture))
        }
        (JobState::Failed, Action::Restore) => Work::Idle,
        (JobState::Cancelled, Action::Restore) => leave(Leave::PowerOff),
        (JobState::Finalizing, action) if job.outcome.is_some() => {
            let ready = bmc == BmcRow::Manual
                || finish == Finish::Off
                || is_boot_disk_done(controller, &job).await?;
            if !ready {
                return Ok(Work::Idle);
            }
            controller.db.set_dismissed(job.id).await?;
            controller.live.ring(job.id);
            leave(finish.for_agent(action))
        }
        (JobState::AwaitingApproval, _) => Work::Idle,
        _ if job.needs_attention.is_some() || job.cancel_asked_ms.is_some() => Work::Idle,
        _ => {
            controller.db.start_work(job.id).await?;
            controller.live.ring(job.id);
            let spec = controller.stores.hand_out(&job, job.spec()).await?;
            Work::Job(Box::new(spec))
        }
    };
    Ok(work)
}

async fn orders(controller: &Controller, session: &Session) -> Answer<Orders> {
    let job = controller.db.job(session.job_id).await?;
    let wanted = !job.state.is_terminal() && job.cancel_asked_ms.is_none();
    // Also for a job that ended without its agent: whatever that still does is not wanted.
    Ok(Json(Orders { cancel_job: (!wanted && job.outcome.is_none()).then(|| job.id.to_string()) }))
}

/// Says that the agent lives.
#[utoipa::path(
    post, path = "/v1/agent/heartbeat", tag = "agent",
    request_body(content = Object, description = "agent_api::Heartbeat"),
    responses((status = 200, description = "agent_api::Orders", body = Object))
)]
pub(super) async fn heartbeat(
    State(controller): State<Arc<Controller>>,
    Extension(session): Extension<Session>,
    body: Result<Json<Heartbeat>, JsonRejection>,
) -> Answer<Orders> {
    let Json(_) = body?;
    orders(&controller, &session).await
}

fn own_job(session: &Session, id: &str) -> Result<i64, ApiError> {
    if id == session.job_id.to_string() {
        Ok(session.job_id)
    } else {
        Err(forbidden("wrong_job", "this credential is for another job"))
    }
}

/// Says how far the job is.
#[utoipa::path(
    post, path = "/v1/agent/jobs/{id}/report", tag = "agent", params(("id" = String, Path, description = "The job")),
    request_body(content = Object, description = "agent_api::Report"),
    responses((status = 200, description = "agent_api::Orders", body = Object))
)]
pub(super) async fn report(
    State(controller): State<Arc<Controller>>,
    Extension(session): Extension<Session>,
    Path(id): Path<String>,
    body: Result<Json<Report>, JsonRejection>,
) -> Answer<Orders> {
    let id = own_job(&session, &id)?;
    let Json(mut report) = body?;
    report.progress.stalled = report.progress.stalled.map(|text| printable(&text, LOG_LINE_MAX));
    let stage = report.progress.stage;
    if has_written(stage) {
        controller.db.use_approval(id).await?;
    }
    if controller.live.report(id, &session.boot_id, report)
        && let Some(state) = JobState::of_stage(stage)
    {
        controller.db.follow_stage(id, state, stage.as_str()).await?;
    }
    orders(&controller, &session).await
}

/// Whether a restore that is at this stage has begun to write. A report may be lost, so that it is not told by the first such stage alone.
fn has_written(stage: Stage) -> bool {
    match stage {
        Stage::Restoring
        | Stage::Flushing
        | Stage::Verifying
        | Stage::Finishing
        | Stage::Committing => true,
        Stage::Planning | Stage::Comparing | Stage::Capturing | Stage::Copying | Stage::Unknown => {
            false
        }
    }
}

/// Says how the job ended. Saying it again changes nothing.
#[utoipa::path(
    post, path = "/v1/agent/jobs/{id}/outcome", tag = "agent", params(("id" = String, Path, description = "The job")),
    request_body(content = Object, description = "agent_api::Outcome"),
    responses((status = 200, description = "agent_api::Orders", body = Object))
)]
pub(super) async fn outcome(
    State(controller): State<Arc<Controller>>,
    Extension(session): Extension<Session>,
    Path(id): Path<String>,
    body: Result<Json<Outcome>, JsonRejection>,
) -> Answer<Orders> {
    let id = own_job(&session, &id)?;
    let Json(mut outcome) = body?;
    match &mut outcome {
        Outcome::Failed(failure) => failure.message = printable(&failure.message, MESSAGE_MAX),
        Outcome::Succeeded(summary) => check_summary(summary)?,
    }
    match controller.db.store_outcome(id, &outcome).await {
        Ok(true) => tracing::info!(job = id, ?outcome, "outcome"),
        Ok(false) => {}
        // Not now, but later: an agent takes 409 for a final no, and asks again after 503.
        Err(DbError::Conflict { code: code @ JOB_PAUSED, message }) => {
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, code, message));
        }
        Err(error) => return Err(error.into()),
    }
    controller.live.ring(id);
    orders(&controller, &session).await
}

/// Says something about the job whose work is done, for its history.
#[utoipa::path(
    post, path = "/v1/agent/jobs/{id}/note", tag = "agent", params(("id" = String, Path, description = "The job")),
    request_body(content = Object, description = "agent_api::Note"),
    responses((status = 204, description = "Taken"), (status = 409, description = "Its work is not done, or it has too many notes"))
)]
pub(super) async fn note(
    State(controller): State<Arc<Controller>>,
    Extension(session): Extension<Session>,
    Path(id): Path<String>,
    body: Result<Json<Note>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let id = own_job(&session, &id)?;
    let Json(note) = body?;
    controller.db.note_of_agent(id, &printable(&note.text, MESSAGE_MAX)).await?;
    controller.live.ring(id);
    Ok(StatusCode::NO_CONTENT)
}

/// A summary goes into the catalogue and to terminals: its texts must be what they say.
fn check_summary(summary: &mut Summary) -> Result<(), ApiError> {
    let limited = |by: Option<String>| by.map(|text| printable(&text, LOG_LINE_MAX));
    match summary {
        Summary::Capture(done) => {
            done.image_id = printable(&done.image_id, IMAGE_ID_MAX);
            done.limited_by = limited(done.limited_by.take());
            done.not_resumed = limited(done.not_resumed.take());
            done.raw.truncate(RAW_MAX);
            for reason in &mut done.raw {
                *reason = printable(reason, LOG_LINE_MAX);
            }
            if !is_hex(&done.root, ROOT_LEN) {
                return Err(ApiError::invalid("root must be 64 lower-case hex digits"));
            }
        }
        Summary::Restore(done) => {
            done.root = printable(&done.root, ROOT_LEN);
            done.limited_by = limited(done.limited_by.take());
            done.sources.truncate(agent_api::MAX_SOURCES);
            for source in &mut done.sources {
                source.url = printable(&source.url, LOG_LINE_MAX);
                source.left_out = source.left_out.take().map(|why| printable(&why, LOG_LINE_MAX));
            }
        }
        Summary::Plan(plan) => {
            if !is_hex(&plan.hash, ROOT_LEN) {
                return Err(ApiError::invalid("hash must be 64 lower-case hex digits"));
            }
            let lines: Vec<String> = plan
                .text
                .lines()
                .take(PLAN_LINES_MAX)
                .map(|line| printable(line, LOG_LINE_MAX))
                .collect();
            plan.text = lines.join("\n");
            plan.disk = plan.disk.take().filter(|disk| disk.parse::<DiskSelector>().is_ok());
        }
    }
    Ok(())
}

/// Takes lines of the agent's log into the controller's.
#[utoipa::path(
    post, path = "/v1/agent/log", tag = "agent",
    request_body(content = String, content_type = "text/plain"),
    responses((status = 204, description = "Taken"))
)]
pub(super) async fn log(
    State(controller): State<Arc<Controller>>,
    Extension(session): Extension<Session>,
    body: String,
) -> Result<StatusCode, ApiError> {
    if body.len() > LOG_MAX {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "at most 64 KiB of log at a time",
        ));
    }
    let job = controller.db.job(session.job_id).await?;
    for line in body.lines() {
        let line = printable(line, LOG_LINE_MAX);
        tracing::info!(target: "imprint::agent", host = job.host, job = job.id, "{line}");
    }
    Ok(StatusCode::NO_CONTENT)
}
