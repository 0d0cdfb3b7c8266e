//! Named stores. What lets an agent in can be set, used and removed, never read.

use std::sync::Arc;

use agent_api::{SecretText, StoreReport};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::tasks::let_in;
use super::{ApiError, to_its_end};
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::StoreRow;
use crate::names::{StoreName, StoreUrl};
use crate::secret::{Secret, is_hex};
use crate::store::{Credentials, check, shown};

/// Longest user, domain or password, in bytes.
const CREDENTIAL_MAX: usize = 256;
/// Longest bearer token, in bytes.
const TOKEN_MAX: usize = 4096;

/// A store.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StoreView {
    /// Name.
    pub name: String,
    /// Where it is; images are `url/FILE`.
    pub url: String,
    /// It is the controller's own.
    pub is_embedded: bool,
    /// Who agents are there.
    pub user: Option<String>,
    /// The user's domain.
    pub domain: Option<String>,
    /// Whether a password or token is known for it. Neither is ever shown.
    pub has_credentials: bool,
    /// SHA-256 of the key that the server must have.
    pub tls_key: Option<String>,
    /// Bytes that images may still take, of the controller's own.
    pub available_bytes: Option<u64>,
    /// When it was entered.
    pub created: String,
}

async fn view(controller: &Controller, store: StoreRow) -> Result<StoreView, ApiError> {
    let is_embedded = store.url.is_none();
    let available_bytes = match is_embedded {
        true => Some(controller.stores.embedded.available().await?),
        false => None,
    };
    Ok(StoreView {
        url: shown(&controller.stores.url(&store)),
        is_embedded,
        has_credentials: store.password.is_some() || store.token.is_some(),
        available_bytes,
        created: rfc3339(store.created_ms),
        name: store.name,
        user: store.user,
        domain: store.domain,
        tls_key: store.tls_key,
    })
}

/// A store to be.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewStore {
    /// Name.
    pub name: StoreName,
    /// Where it is: a folder of a server.
    pub url: StoreUrl,
    /// Who agents are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The user's password. Never shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, write_only)]
    pub password: Option<SecretText>,
    /// A bearer token, in place of user and password. Never shown again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, write_only)]
    pub token: Option<SecretText>,
    /// Of an https:// store: SHA-256 of the key that the server must have, whoever vouches for it, in 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
}

impl NewStore {
    /// What lets agents in, if it fits the kind of store. Messages name members, never their values.
    fn credentials(&self) -> Result<Credentials, ApiError> {
        let scheme = self.url.as_str().split_once("://").map_or("", |(scheme, _)| scheme);
        let fits = |text: Option<&str>, max: usize| {
            text.is_none_or(|text| {
                !text.is_empty() && text.len() <= max && !text.chars().any(char::is_control)
            })
        };
        let password = self.password.as_ref().map(SecretText::expose);
        let token = self.token.as_ref().map(SecretText::expose);
        let texts = [self.user.as_deref(), self.domain.as_deref(), password];
        let refuse = |text: &str| Err(ApiError::invalid(text));
        if !texts.into_iter().all(|text| fits(text, CREDENTIAL_MAX)) {
            return refuse(
                "user, domain and password must be 1 to 256 characters, without control characters",
            );
        }
        if !fits(token, TOKEN_MAX) || token.is_some_and(|token| token.contains(char::is_whitespace))
        {
            return refuse("token must be 1 to 4096 characters without blanks");
        }
        match scheme {
            "smb" if token.is_some() => {
                return refuse("an smb:// store takes user and password, not token");
            }
            "smb" | "https" => {}
            "http" if texts.iter().any(Option::is_some) || token.is_some() => {
                return refuse(
                    "an http:// store takes no credentials, which anybody could read on their way: use https://",
                );
            }
            _ if texts.iter().any(Option::is_some) || token.is_some() => {
                return refuse("this kind of store knows no user, password or token");
            }
            _ => {}
        }
        if password.is_some() != self.user.is_some() || (self.domain.is_some() && scheme != "smb") {
            return refuse("user and password belong together; domain is for smb:// stores");
        }
        if token.is_some() && password.is_some() {
            return refuse("give user and password, or token, not both");
        }
        let tls_key = self.tls_key.as_ref().map(|key| key.to_ascii_lowercase());
        if tls_key.as_ref().is_some_and(|key| scheme != "https" || !is_hex(key, 64)) {
            return refuse(
                "tls_key is for https:// stores: SHA-256 of the server's public key (SubjectPublicKeyInfo), 64 hex digits",
            );
        }
        let secret = |text: &str| Secret::new(text.to_owned());
        Ok(Credentials {
            user: self.user.clone(),
            domain: self.domain.clone(),
            password: password.map(secret),
            token: token.map(secret),
            tls_key,
        })
    }
}

/// What lets agents into a store from now on. What is left out stays, but a login or a token takes the place of all that was before.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StoreChange {
    /// Who agents are there. With it, or alone for the same user: `password`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The user's domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The user's password. Never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, write_only)]
    pub password: Option<SecretText>,
    /// A bearer token, in place of user and password. Never shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, write_only)]
    pub token: Option<SecretText>,
    /// Of an https:// store: SHA-256 of the key that the server must have, in 64 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<String>,
}

impl StoreChange {
    fn has_login(&self) -> bool {
        self.user.is_some() || self.domain.is_some() || self.password.is_some()
    }

    fn has_secret(&self) -> bool {
        self.has_login() || self.token.is_some()
    }

    /// The store as if it were entered now, to be checked as a whole.
    fn applied_to(self, store: &StoreRow) -> Result<NewStore, ApiError> {
        if !self.has_secret() && self.tls_key.is_none() {
            return Err(ApiError::invalid(
                "nothing is changed: give user and password, password, token or tls_key",
            ));
        }
        let url = store.url.as_deref().unwrap_or_default();
        let keeps_user = self.has_login() && self.user.is_none();
        let domain = store.domain.clone().filter(|_| keeps_user);
        let user = store.user.clone().filter(|_| keeps_user);
        Ok(NewStore {
            name: store.name.parse()?,
            url: url.parse()?,
            user: self.user.or(user),
            domain: self.domain.or(domain),
            password: self.password,
            token: self.token,
            tls_key: self.tls_key,
        })
    }
}

/// Changes what lets agents into a store; agents get it with their next work. Nothing else of a store can be changed.
#[utoipa::path(
    patch, path = "/v1/stores/{store}", tag = "stores", params(("store" = String, Path, description = "The store")), request_body = StoreChange,
    responses((status = 200, description = "Changed", body = StoreView), (status = 404, description = "No such store"), (status = 409, description = "store_built_in"), (status = 422, description = "invalid"))
)]
pub(super) async fn change(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Result<Json<StoreChange>, JsonRejection>,
) -> Result<Json<StoreView>, ApiError> {
    let Json(change) = body?;
    let store = controller.db.store(&name).await?;
    if store.url.is_none() {
        return Err(ApiError::conflict(
            "store_built_in",
            "this is the controller's own store: it makes its tokens by itself",
        ));
    }
    let replaces_secret = change.has_secret();
    let credentials = change.applied_to(&store)?.credentials()?;
    controller.stores.set_credentials(store, credentials, replaces_secret).await?;
    tracing::info!(store = name, by = caller.name, "credentials of store changed");
    let store = controller.db.store(&name).await?;
    Ok(Json(view(&controller, store).await?))
}

/// Lists the stores.
#[utoipa::path(get, path = "/v1/stores", tag = "stores", responses((status = 200, description = "All stores", body = Vec<StoreView>)))]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
) -> Result<Json<Vec<StoreView>>, ApiError> {
    let mut views = Vec::new();
    for store in controller.db.stores().await? {
        views.push(view(&controller, store).await?);
    }
    Ok(Json(views))
}

/// Enters a store. Nothing is asked of its server. Later only its credentials can be changed.
#[utoipa::path(
    post, path = "/v1/stores", tag = "stores", request_body = NewStore,
    responses((status = 201, description = "Entered", body = StoreView), (status = 409, description = "store_exists"), (status = 422, description = "invalid"))
)]
pub(super) async fn add(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    body: Result<Json<NewStore>, JsonRejection>,
) -> Result<(StatusCode, Json<StoreView>), ApiError> {
    let Json(new) = body?;
    let credentials = new.credentials()?;
    controller.stores.add(&new.name, new.url.as_str(), credentials).await?;
    tracing::info!(store = %new.name, url = shown(new.url.as_str()), by = caller.name, "store entered");
    let store = controller.db.store(new.name.as_str()).await?;
    Ok((StatusCode::CREATED, Json(view(&controller, store).await?)))
}

/// Shows a store.
#[utoipa::path(
    get, path = "/v1/stores/{store}", tag = "stores", params(("store" = String, Path, description = "The store")),
    responses((status = 200, description = "The store", body = StoreView), (status = 404, description = "No such store"))
)]
pub(super) async fn show(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<Json<StoreView>, ApiError> {
    let store = controller.db.store(&name).await?;
    Ok(Json(view(&controller, store).await?))
}

/// Forgets a store and its credentials. Its files stay.
#[utoipa::path(
    delete, path = "/v1/stores/{store}", tag = "stores", params(("store" = String, Path, description = "The store")),
    responses((status = 204, description = "Forgotten"), (status = 404, description = "No such store"), (status = 409, description = "store_in_use, in_use_by_task, store_built_in"))
)]
pub(super) async fn remove(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let _held = controller.tasks.catalogue.lock().await;
    controller.tasks.refuse_store(&name)?;
    controller.db.remove_store(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tries a store out from the controller's machine: a probe is written, read, published and removed. `failure` says what is wrong.
#[utoipa::path(
    post, path = "/v1/stores/{store}/check", tag = "stores", params(("store" = String, Path, description = "The store")),
    responses(
        (status = 200, description = "agent_api::StoreReport", body = Object), (status = 404, description = "No such store"),
        (status = 409, description = "no_agent_program, not_checkable"), (status = 502, description = "check_failed"),
    )
)]
pub(super) async fn check(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<Json<StoreReport>, ApiError> {
    let store = controller.db.store(&name).await?;
    let url = controller.stores.url(&store);
    if !url.contains("://") || url.starts_with("file:") {
        return Err(ApiError::conflict(
            "not_checkable",
            format!(
                "{url} is a folder of whichever machine the agent runs on: run `imprint-agent store-check` there"
            ),
        ));
    }
    if url.starts_with("http") && url.contains('?') {
        // Its query may be a secret, and would be in a process list.
        return Err(ApiError::conflict(
            "not_checkable",
            "a web server's URL with a query is only read from: a probe cannot be written there",
        ));
    }
    // To its end, so that the probe is removed.
    let work = async move {
        if store.url.is_some() {
            let access = controller.stores.credentials(store)?;
            return Ok(check::check(&controller.agent, &url, &access).await?);
        }
        // Of our own store: with a token that lives as long as this.
        let (token, access) = let_in(&controller, &store).await?;
        let report = check::check(&controller.agent, &url, &access).await;
        controller.db.remove_token(&token).await?;
        Ok::<_, ApiError>(report?)
    };
    to_its_end(work).await.map(Json)
}
