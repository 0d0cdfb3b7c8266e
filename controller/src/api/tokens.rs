//! API tokens.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::ApiError;
use super::auth::Caller;
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::CHECK_TOKEN_PREFIX;
use crate::names::ImageName;
use crate::secret::Secret;

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// Name.
    pub name: String,
    /// When it was made.
    pub created: String,
    /// When it was last used, to the minute.
    pub last_used: Option<String>,
}

/// A token to be.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Name.
    pub name: ImageName,
}

/// A new token. Its secret is shown this once.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct MadeToken {
    /// Name.
    pub name: String,
    /// For `Authorization: Bearer`.
    pub token: String,
}

impl std::fmt::Debug for MadeToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeToken").field("name", &self.name).field("token", &"…").finish()
    }
}

/// Lists the tokens.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens", responses((status = 200, description = "All tokens", body = Vec<TokenView>)))]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
) -> Result<Json<Vec<TokenView>>, ApiError> {
    let tokens = controller.db.tokens().await?;
    let view = |token: crate::db::Token| TokenView {
        name: token.name,
        created: rfc3339(token.created_ms),
        last_used: token.last_used_ms.map(rfc3339),
    };
    Ok(Json(tokens.into_iter().map(view).collect()))
}

/// Makes a token.
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens", request_body = NewToken,
    responses((status = 201, description = "Made", body = MadeToken), (status = 409, description = "token_exists"))
)]
pub(super) async fn add(
    State(controller): State<Arc<Controller>>,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    let Json(new) = body?;
    if new.name.as_str().starts_with(CHECK_TOKEN_PREFIX) {
        return Err(ApiError::invalid(format!(
            "names with {CHECK_TOKEN_PREFIX} are the controller's own"
        )));
    }
    let secret = Secret::random();
    controller.db.add_token(new.name.as_str(), &secret.hash()).await?;
    Ok((
        StatusCode::CREATED,
        Json(MadeToken { name: new.name.into(), token: secret.expose().to_owned() }),
    ))
}

/// Removes a token.
#[utoipa::path(
    delete, path = "/v1/tokens/{name}", tag = "tokens", params(("name" = String, Path, description = "The token")),
    responses((status = 204, description = "Removed"), (status = 404, description = "No such token"), (status = 409, description = "own_token"))
)]
pub(super) async fn remove(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    if name == caller.name {
        return Err(ApiError::conflict(
            "own_token",
            "this is the token of this very request: remove it with another one",
        ));
    }
    controller.db.remove_token(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
