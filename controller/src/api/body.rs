//! Bodies that may be left out.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::ApiError;

/// A JSON body all of whose members may be left out; so may be the body itself, and with it its `Content-Type`.
pub(super) struct OptionalJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Of the body's limit the request's extensions know.
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts.clone(), body);
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            let is_long = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
            let code = if is_long { "too_large" } else { "invalid" };
            ApiError::new(rejection.status(), code, rejection.body_text())
        })?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        let request = Request::from_parts(parts, Body::from(body));
        let Json(value) = Json::from_request(request, state).await?;
        Ok(Self(value))
    }
}
