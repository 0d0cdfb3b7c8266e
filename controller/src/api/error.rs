//! Answers that are not successes: RFC 9457 problems.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::bmc::BmcError;
use crate::db::DbError;
use crate::dhcp::DhcpError;
use crate::error_chain;
use crate::names::NameError;
use crate::store::StoreError;
use crate::store::check::CheckError;
use crate::store::embedded::{EmbeddedError, may_pass};

/// The body of an error.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// Stable name of the error, for programs.
    pub code: String,
    /// The status in words.
    pub title: String,
    /// What happened and what to do, for people.
    pub detail: String,
}

/// Why a request was not done.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    detail: String,
}

impl ApiError {
    /// An error.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    /// 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", detail)
    }

    /// 409.
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, detail)
    }

    /// 422.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
    }
}

impl ApiError {
    /// Whether the client of an upload may still send the body that is refused.
    pub(super) fn is_of_client_that_sends(&self) -> bool {
        !matches!(self.code, "superseded" | "timeout")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            title: self.status.canonical_reason().unwrap_or_default().to_owned(),
            detail: self.detail,
        };
        let mut response = (self.status, Json(problem)).into_response();
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if self.status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        match error {
            DbError::NotFound { .. } => Self::not_found(error.to_string()),
            DbError::Conflict { code, message } => Self::conflict(code, message),
            DbError::Unseal(error) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "key_file", error_chain(&error))
            }
            other => {
                let text = error_chain(&other);
                tracing::error!(error = text, "database");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", text)
            }
        }
    }
}

impl From<BmcError> for ApiError {
    fn from(error: BmcError) -> Self {
        let text = error_chain(&error);
        match error {
            BmcError::Manual(_) => Self::conflict("no_bmc", text),
            BmcError::Refused(_) => Self::conflict("bmc_refused", text),
            BmcError::Unreachable { .. } => {
                Self::new(StatusCode::BAD_GATEWAY, "bmc_unreachable", text)
            }
            BmcError::Failed { .. } => Self::new(StatusCode::BAD_GATEWAY, "bmc_failed", text),
            BmcError::Tool { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "no_ipmitool", text)
            }
            BmcError::Unseal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "key_file", text),
            BmcError::Db(error) => error.into(),
        }
    }
}

impl From<EmbeddedError> for ApiError {
    fn from(error: EmbeddedError) -> Self {
        let text = error_chain(&error);
        match error {
            EmbeddedError::NotFound(_) => Self::not_found(text),
            EmbeddedError::NoUpload { .. } => Self::new(StatusCode::NOT_FOUND, "no_upload", text),
            EmbeddedError::NotRegular(_) => Self::conflict("not_a_file", text),
            EmbeddedError::Exists(_) => Self::conflict("file_exists", text),
            EmbeddedError::BeingWritten { .. } => Self::conflict("being_written", text),
            EmbeddedError::Gap { .. } => Self::conflict("wrong_offset", text),
            EmbeddedError::Superseded(_) => Self::conflict("superseded", text),
            EmbeddedError::Broken(_) => Self::conflict("upload_broken", text),
            EmbeddedError::Lost(_) => {
                tracing::error!(error = text, "store");
                Self::conflict("upload_broken", text)
            }
            EmbeddedError::Full { .. } => {
                tracing::warn!(error = text, "store");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "no_space", text)
            }
            EmbeddedError::Body(..) => Self::new(StatusCode::BAD_REQUEST, "invalid", text),
            EmbeddedError::Idle(_) => Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", text),
            EmbeddedError::ReadOnly { .. } => {
                tracing::error!(error = text, "store");
                Self::conflict("store_read_only", text)
            }
            EmbeddedError::Io { source, .. } if may_pass(&source) => {
                tracing::warn!(error = text, "store");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_busy", text)
            }
            EmbeddedError::Io { .. } => {
                tracing::error!(error = text, "store");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", text)
            }
            EmbeddedError::Db(error) => error.into(),
        }
    }
}

impl From<CheckError> for ApiError {
    fn from(error: CheckError) -> Self {
        let text = error_chain(&error);
        match error {
            CheckError::Program(..) => Self::conflict("no_agent_program", text),
            CheckError::Slow | CheckError::NoReport(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "check_failed", text)
            }
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let text = error_chain(&error);
        match error {
            StoreError::Db(error) => error.into(),
            StoreError::Name(error) => error.into(),
            StoreError::Unseal(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "key_file", text),
        }
    }
}

impl From<DhcpError> for ApiError {
    fn from(error: DhcpError) -> Self {
        let text = error_chain(&error);
        match error {
            DhcpError::PoolEmpty(..) => Self::conflict("pool_empty", text),
            DhcpError::Address(..) => Self::invalid(text),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "dhcp", text),
        }
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            "too_large"
        } else {
            "invalid"
        };
        Self::new(rejection.status(), code, rejection.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "invalid", rejection.body_text())
    }
}
