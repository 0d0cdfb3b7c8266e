//! The HTTPS interface: `/v1/…` for people and programs, `/v1/agent/…` for agents.
//!
//! Handlers check and store, then ring a job's bell; they never talk to a machine, except that a new job and `power` ask a BMC.
//! Every answer that is not a success is an RFC 9457 problem with a stable `code`. Bodies are JSON and at most 1 MiB,
//! but for the files of the controller's own store.

pub mod agent;
mod auth;
mod body;
mod error;
pub mod events;
pub mod files;
pub mod hosts;
pub mod images;
pub mod inspection;
pub mod jobs;
mod range;
pub mod stores;
pub mod tasks;
pub mod tokens;
pub mod uploads;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use error::{ApiError, Problem};

use body::OptionalJson;

use crate::context::Controller;

/// Longest body in bytes.
const BODY_MAX: usize = 1024 * 1024;
/// Longest time for an answer. Work is held open for 25 s, and a BMC may need three tries of 30 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(150);

/// Does something to its end, whether or not its client still listens.
async fn to_its_end<T: Send + 'static, E: Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, E> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Imprint",
        description = "Captures machines' disks as images and writes images to machines. Errors are application/problem+json with a stable `code`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    security(("token" = [])),
    tags(
        (name = "hosts", description = "Machines and their power"),
        (name = "images", description = "The catalogue"),
        (name = "stores", description = "Where images lie; files of the controller's own store"),
        (name = "jobs", description = "Captures and restores"),
        (name = "tokens", description = "Who may use this interface"),
        (name = "agent", description = "For agents only; messages are those of the crate agent-api"),
        (name = "service", description = "State of the controller itself"),
    ),
)]
struct Description;

/// Everything that is answered within [`ANSWER_LIMIT`].
fn routes(controller: Arc<Controller>) -> OpenApiRouter {
    let people = OpenApiRouter::new()
        .routes(routes!(hosts::list, hosts::add))
        .routes(routes!(hosts::show, hosts::change, hosts::remove))
        .routes(routes!(hosts::power_status, hosts::power))
        .routes(routes!(hosts::seen))
        .routes(routes!(images::list, images::add))
        .routes(routes!(images::show, images::remove))
        .routes(routes!(inspection::content))
        .routes(routes!(tasks::copy))
        .routes(routes!(tasks::verify))
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::show, tasks::cancel))
        .routes(routes!(jobs::list, jobs::create))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::approve))
        .routes(routes!(jobs::resume))
        .routes(routes!(events::stream))
        .routes(routes!(stores::list, stores::add))
        .routes(routes!(stores::show, stores::change, stores::remove))
        .routes(routes!(stores::check))
        .routes(routes!(files::list))
        .routes(routes!(files::remove))
        .routes(routes!(tokens::list, tokens::add))
        .routes(routes!(tokens::remove))
        .routes(routes!(metrics))
        .layer(middleware::from_fn_with_state(Arc::clone(&controller), auth::require_token));
    let agents = OpenApiRouter::new()
        .routes(routes!(agent::work))
        .routes(routes!(agent::heartbeat))
        .routes(routes!(agent::report))
        .routes(routes!(agent::outcome))
        .routes(routes!(agent::note))
        .routes(routes!(agent::log))
        .layer(middleware::from_fn_with_state(Arc::clone(&controller), auth::require_session));
    let open = OpenApiRouter::new().routes(routes!(agent::redeem)).routes(routes!(healthz));
    OpenApiRouter::with_openapi(Description::openapi())
        .merge(people)
        .merge(agents)
        .merge(open)
        .with_state(controller)
}

/// Files of the controller's own store, which take as long as they take: what has to move is watched where it moves.
fn file_routes(controller: Arc<Controller>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(files::read))
        .routes(routes!(uploads::begin, uploads::state, uploads::append, uploads::abort))
        .routes(routes!(uploads::begun))
        .routes(routes!(uploads::go_on))
        .routes(routes!(uploads::commit))
        .routes(routes!(uploads::publish))
        .layer(middleware::from_fn_with_state(Arc::clone(&controller), auth::require_store_caller))
        .with_state(controller)
}

/// The routes of the HTTPS listener.
pub fn router(controller: Arc<Controller>) -> Router {
    let (files, description) = file_routes(Arc::clone(&controller)).split_for_parts();
    let (router, mut all) = routes(controller).split_for_parts();
    all.merge(description);
    let description = with_security(all);
    router
        .layer(middleware::from_fn(limit_time))
        .merge(files)
        .route(
            "/openapi.json",
            axum::routing::get(move || std::future::ready(Json(description.clone()))),
        )
        .fallback(|| {
            std::future::ready(ApiError::not_found("there is no such path; see /openapi.json"))
        })
        .method_not_allowed_fallback(|| {
            std::future::ready(ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path takes other methods; see /openapi.json",
            ))
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(forbid_caches))
}

fn with_security(mut description: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let scheme =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("An API token")).build();
    description
        .components
        .get_or_insert_default()
        .add_security_scheme("token", SecurityScheme::Http(scheme));
    description
}

async fn limit_time(request: Request, next: Next) -> Response {
    // Event streams answer at once and then go on: only the time to the first byte is limited.
    match tokio::time::timeout(ANSWER_LIMIT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "the controller did not answer in time",
        )
        .into_response(),
    }
}

async fn forbid_caches(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(no_store);
    response
}

/// Says that the controller runs and its database answers.
#[utoipa::path(get, path = "/healthz", tag = "service", security(()), responses((status = 200, description = "It runs", body = String)))]
async fn healthz(State(controller): State<Arc<Controller>>) -> Result<&'static str, ApiError> {
    controller.db.count_jobs().await?;
    Ok("ok\n")
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "service", responses((status = 200, description = "Counters", body = String)))]
async fn metrics(State(controller): State<Arc<Controller>>) -> Result<String, ApiError> {
    use std::fmt::Write;

    let mut text = String::from("# TYPE imprint_jobs gauge\n");
    for (action, state, count) in controller.db.count_jobs().await? {
        // Writing to a String does not fail.
        let _ = writeln!(text, "imprint_jobs{{action=\"{action}\",state=\"{state}\"}} {count}");
    }
    // Where another server does DHCP nothing is known of it.
    if let Some(dhcp) = &controller.dhcp {
        let up = i32::from(dhcp.is_running());
        let _ = writeln!(text, "# TYPE imprint_dhcp_up gauge\nimprint_dhcp_up {up}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(
        text,
        "# TYPE imprint_build_info gauge\nimprint_build_info{{version=\"{version}\"}} 1"
    );
    Ok(text)
}
