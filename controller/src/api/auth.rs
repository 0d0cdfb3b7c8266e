//! Who asks: an API token or an agent's credential, both as `Authorization: Bearer`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiError;
use crate::context::Controller;
use crate::secret::{Secret, is_hex};

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
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "this token is unknown or was removed",
        ));
    };
    request.extensions_mut().insert(Caller { token_id: token.id, name: token.name });
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
