//! Who asks: an API token, an agent's credential, or the store token of an agent's job, all as `Authorization: Bearer`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiError;
use crate::context::Controller;
use crate::db::{CHECK_TOKEN_PREFIX, JOB_PAUSED, Writer};
use crate::job::Job;
use crate::names::FileName;
use crate::secret::{Secret, is_hex};
use crate::store::rights;

/// How often a session's last sign of life is stored, in ms.
const TOUCH_MS: i64 = 30_000;

/// The API token of a request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Its row.
    pub token_id: i64,
    /// Its name.
    pub name: String,
}

impl Caller {
    /// As an actor in a job's history.
    pub(super) fn actor(&self) -> String {
        format!("api:{}", self.name)
    }
}

/// Who asks for a file of the controller's own store.
#[derive(Debug, Clone)]
pub(super) enum StoreCaller {
    /// Somebody with an API token, who may do everything.
    Person,
    /// The controller itself, in a task. It may do the same.
    Task,
    /// The agent of a job that is under way.
    Agent(Arc<Job>),
}

impl StoreCaller {
    /// The agent's job.
    pub(super) fn job(&self) -> Option<i64> {
        match self {
            Self::Person | Self::Task => None,
            Self::Agent(job) => Some(job.id),
        }
    }

    /// As whom the store knows it.
    pub(super) fn writer(&self) -> Writer {
        match self {
            Self::Person => Writer::Person,
            Self::Task => Writer::Task,
            Self::Agent(job) => Writer::Job(job.id),
        }
    }

    /// Refuses an agent whose job has nothing to do with this file.
    pub(super) fn may_read(&self, file: &FileName) -> Result<(), ApiError> {
        match self {
            Self::Agent(job) if !rights(job, file).read => Err(wrong_file(job, file)),
            _ => Ok(()),
        }
    }

    /// Refuses an agent whose job does not capture this file.
    pub(super) fn may_write(&self, file: &FileName) -> Result<(), ApiError> {
        match self {
            Self::Agent(job) if !rights(job, file).write => Err(wrong_file(job, file)),
            _ => Ok(()),
        }
    }

    /// Refuses everybody but the one who began an upload: the agent of this job, or somebody with an API token.
    pub(super) fn is_writer(&self, of_job: Option<i64>) -> Result<(), ApiError> {
        if self.job() == of_job {
            return Ok(());
        }
        let whose = of_job.map_or_else(
            || "somebody with an API token".into(),
            |job| format!("the agent of job {job}"),
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "wrong_file", format!("{whose} writes this file")))
    }
}

fn wrong_file(job: &Job, file: &FileName) -> ApiError {
    let text = format!("job {} may not do this with {file}", job.id);
    ApiError::new(StatusCode::FORBIDDEN, "wrong_file", text)
}

fn bearer(headers: &HeaderMap) -> Result<Secret, ApiError> {
    let refuse = |detail| ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    let value = headers
        .get(header::AUTHORIZATION)
        .ok_or_else(|| refuse("this needs Authorization: Bearer TOKEN"))?;
    let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
    match token {
        Some(token) if is_hex(token, 64) => Ok(Secret::new(token.to_owned())),
        _ => Err(refuse("the Authorization header holds no token of this controller")),
    }
}

/// Lets requests with a valid API token through.
pub(super) async fn require_token(
    State(controller): State<Arc<Controller>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let secret = bearer(request.headers())?;
    let Some(token) = controller.db.token_by_hash(&secret.hash()).await? else {
        return Err(unknown_token());
    };
    request.extensions_mut().insert(Caller { token_id: token.id, name: token.name });
    Ok(next.run(request).await)
}

fn unknown_token() -> ApiError {
    let detail = "this token is unknown or was removed";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
}

/// Lets through who has an API token, or the store token of a job that is under way.
pub(super) async fn require_store_caller(
    State(controller): State<Arc<Controller>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let hash = bearer(request.headers())?.hash();
    let caller = match controller.db.job_of_store_token(&hash).await? {
        Some(job) if job.state.is_terminal() || job.outcome.is_some() => {
            return Err(unknown_token());
        }
        Some(job) => {
            // Who has the token may not be the machine that was meant. An agent asks again after 503.
            if let Some(why) = &job.needs_attention {
                let text = format!("job {} is paused: {why}", job.id);
                return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, JOB_PAUSED, text));
            }
            StoreCaller::Agent(Arc::new(job))
        }
        None => {
            let token = controller.db.token_by_hash(&hash).await?.ok_or_else(unknown_token)?;
            match token.name.starts_with(CHECK_TOKEN_PREFIX) {
                true => StoreCaller::Task,
                false => StoreCaller::Person,
            }
        }
    };
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Lets requests of agents with a valid credential through.
pub(super) async fn require_session(
    State(controller): State<Arc<Controller>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let secret = bearer(request.headers())?;
    let session = controller.db.session_by_credential(&secret.hash()).await?;
    let Some(session) = session.filter(|session| !session.revoked) else {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "this credential is not, or no longer, valid",
        ));
    };
    controller.live.heard(session.job_id);
    if crate::clock::now_ms() - session.last_seen_ms > TOUCH_MS {
        controller.db.touch_session(session.id).await?;
    }
    request.extensions_mut().insert(session);
    Ok(next.run(request).await)
}
