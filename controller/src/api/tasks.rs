//! Tasks: images copied and checked by the controller itself.

use std::sync::Arc;

use agent_api::{DELTA_SUFFIX, IMAGE_SUFFIX, Rate, RestoreOptions, StoreAccess};
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::{ApiError, OptionalJson};
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{CHECK_TOKEN_PREFIX, Image, LOCAL, StoreRow};
use crate::names::{FileName, ImageName, StoreName};
use crate::secret::{Secret, hex, random_bytes};
use crate::store::{Place, below};
use crate::tasks::{NewTask, Outcome, Task, TaskError, Tasks, Work};

/// A copy or a check of an image.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TaskView {
    /// Number, from 1 at each start of the controller.
    pub id: u64,
    /// `copy` or `verify`.
    pub action: String,
    /// The image.
    pub image: String,
    /// Name of the copy.
    pub copy: Option<String>,
    /// Store of the copy.
    pub store: Option<String>,
    /// `running`, `succeeded` or `failed`.
    pub state: String,
    /// What it is doing.
    pub stage: Option<String>,
    /// Bytes of that stage that are done.
    pub done_bytes: u64,
    /// Bytes of that stage; 0 if it does not count.
    pub total_bytes: u64,
    /// What it waits for.
    pub stalled: Option<String>,
    /// Kind of failure; `cancelled` too.
    pub failure_kind: Option<String>,
    /// Why it failed.
    pub failure_message: Option<String>,
    /// What `imprint-agent copy --json` or `verify --json` said.
    #[schema(value_type = Option<Object>)]
    pub result: Option<serde_json::Value>,
    /// Who asked for it.
    pub by: String,
    /// When it began.
    pub started: String,
    /// When it ended.
    pub finished: Option<String>,
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        let (action, copy, store) = match task.work {
            Work::Copy { name, store, .. } => ("copy", Some(name), Some(store)),
            Work::Verify { .. } => ("verify", None, None),
        };
        let (state, failure, result) = match task.outcome {
            Outcome::Running => ("running", None, None),
            Outcome::Succeeded(result) => ("succeeded", None, Some(result)),
            Outcome::Failed(failure) => ("failed", Some(failure), None),
        };
        let progress = task.progress;
        Self {
            id: task.id,
            action: action.to_owned(),
            image: task.image,
            copy,
            store,
            state: state.to_owned(),
            stage: progress.as_ref().map(|progress| progress.stage.as_str().to_owned()),
            done_bytes: progress.as_ref().map_or(0, |progress| progress.done_bytes),
            total_bytes: progress.as_ref().map_or(0, |progress| progress.total_bytes),
            stalled: progress.and_then(|progress| progress.stalled),
            failure_kind: failure.as_ref().map(|failure| failure.kind.to_string()),
            failure_message: failure.map(|failure| failure.message),
            result,
            by: task.by,
            started: rfc3339(task.started_ms),
            finished: task.finished_ms.map(rfc3339),
        }
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> Self {
        let text = error.to_string();
        match error {
            TaskError::NotFound(_) => Self::not_found(text),
            TaskError::Ended(_) => Self::conflict("task_ended", text),
            TaskError::TooMany => Self::conflict("too_many_tasks", text),
            TaskError::InUse { .. } => Self::conflict("in_use_by_task", text),
        }
    }
}

/// Where an image is copied to.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyImage {
    /// The store.
    pub store: StoreName,
    /// Name of the copy, and of its file. Left out: `IMAGE-STORE`, and the file's own name, of which its signature is.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub name: Option<ImageName>,
    /// A delta image may go where its base is not.
    #[serde(default)]
    pub without_base: bool,
    /// The most bytes a second to and from stores, such as `400M`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub limit: Option<Rate>,
}

/// How an image is checked.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerifyImage {
    /// Decompress as well, and compare the hashes of the content.
    pub deep: bool,
    /// The most bytes a second from stores, such as `400M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub limit: Option<Rate>,
    /// Of a delta image, those beneath it that do not lie beside their deltas: images of the catalogue.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub base: Vec<ImageName>,
    /// A minisign public key that must have signed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_signature: Option<String>,
}

/// The URLs of places, and what lets the agent's program in there.
pub(super) struct Reached {
    pub(super) urls: Vec<String>,
    pub(super) access: Vec<StoreAccess>,
    pub(super) stores: Vec<String>,
    /// As the catalogue has them.
    pub(super) places: Vec<String>,
    /// Name of an API token that was made for it.
    pub(super) token: Option<String>,
}

/// Finds out where these places are. The token that it makes, if one of them is in our own store, is the caller's to remove.
pub(super) async fn reach(controller: &Controller, places: &[&Place]) -> Result<Reached, ApiError> {
    let mut reached = Reached {
        urls: Vec::new(),
        access: Vec::new(),
        stores: Vec::new(),
        places: places.iter().map(ToString::to_string).collect(),
        token: None,
    };
    let mut rows = Vec::new();
    for place in places {
        let url = match place {
            Place::Url(url) => url.to_string(),
            Place::Store { store, file } => {
                let row = controller.db.store(store.as_str()).await?;
                let url = below(&controller.stores.url(&row), file.as_str());
                if !reached.stores.contains(&row.name) {
                    reached.stores.push(row.name.clone());
                    rows.push(row);
                }
                url
            }
        };
        if url.starts_with("http") && url.contains('?') {
            // Its query may be a secret, and would be in a process list.
            return Err(ApiError::conflict(
                "secret_url",
                "a web server's URL with a query is for the agents of jobs only: run `imprint-agent` by hand",
            ));
        }
        reached.urls.push(url);
    }
    // Last the store of ours: behind its token nothing can fail.
    rows.sort_by_key(|row| row.url.is_none());
    for row in rows {
        if row.url.is_some() {
            reached.access.push(controller.stores.credentials(row)?);
            continue;
        }
        let (token, access) = let_in(controller, &row).await?;
        reached.access.push(access);
        reached.token = Some(token);
    }
    Ok(reached)
}

/// The name of a new token for our own store, which is the caller's to remove, and what lets the agent's program in with it.
pub(super) async fn let_in(
    controller: &Controller,
    store: &StoreRow,
) -> Result<(String, StoreAccess), ApiError> {
    let token = Secret::random();
    let name = format!("{CHECK_TOKEN_PREFIX}{}", hex(&random_bytes::<8>()));
    controller.db.add_token(&name, &token.hash()).await?;
    Ok((name, controller.stores.own_access(store, &token)))
}

/// The file's name in a place.
fn file_of(place: &Place) -> Result<FileName, ApiError> {
    let name = place.file_name();
    name.parse().map_err(|_| {
        ApiError::invalid(format!("{name:?} is no name for a file of a store: give `as`"))
    })
}

/// Copies an image into a store, as another image of the catalogue: byte for byte, every hash compared, nothing overwritten.
#[utoipa::path(
    post, path = "/v1/images/{name}/copy", tag = "images", params(("name" = String, Path, description = "The image")), request_body = CopyImage,
    responses(
        (status = 202, description = "Begun: look at the task", body = TaskView), (status = 404, description = "No such image or store"),
        (status = 409, description = "image_exists, place_taken, in_use_by_task, too_many_tasks, secret_url"),
    )
)]
pub(super) async fn copy(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Result<Json<CopyImage>, JsonRejection>,
) -> Result<(StatusCode, Json<TaskView>), ApiError> {
    let Json(wish) = body?;
    let _held = controller.tasks.catalogue.lock().await;
    let image = controller.db.image(&name).await?;
    let source: Place = image.url.parse()?;
    let file = match &wish.name {
        Some(name) => {
            let is_delta = file_of(&source)?.as_str().ends_with(DELTA_SUFFIX);
            format!("{name}{}", if is_delta { DELTA_SUFFIX } else { IMAGE_SUFFIX })
        }
        None => file_of(&source)?.to_string(),
    };
    let made: ImageName = match wish.name {
        Some(name) => name,
        None => format!("{name}-{}", wish.store).parse()?,
    };
    if controller.db.image(made.as_str()).await.is_ok() {
        return Err(ApiError::conflict(
            "image_exists",
            format!("image {made} is in the catalogue: give the copy another name (`--as`)"),
        ));
    }
    controller.tasks.refuse_image(made.as_str())?;
    controller.tasks.refuse_another()?;
    let target = controller.stores.place(Some(wish.store.clone()), &file).await?;
    let (spots, at) = (controller.db.spots().await?, target.to_string());
    controller.tasks.refuse_place(&spots, &at, "the file of the copy")?;
    controller.db.refuse_taken_place(&at).await?;
    let reached = reach(&controller, &[&source, &target]).await?;
    let option = wish.without_base.then_some("--without-base");
    let work =
        Work::Copy { name: made.into(), store: wish.store.into(), place: target.to_string() };
    let options = options(option, wish.limit);
    Ok(begin(&controller, caller, image, work, reached, "copy", options))
}

/// Reads all of an image from the controller's machine and compares its hashes.
#[utoipa::path(
    post, path = "/v1/images/{name}/verify", tag = "images", params(("name" = String, Path, description = "The image")), request_body = Option<VerifyImage>,
    responses(
        (status = 202, description = "Begun: look at the task", body = TaskView), (status = 404, description = "No such image"),
        (status = 409, description = "too_many_tasks, secret_url"),
    )
)]
pub(super) async fn verify(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Result<OptionalJson<VerifyImage>, ApiError>,
) -> Result<(StatusCode, Json<TaskView>), ApiError> {
    let OptionalJson(VerifyImage { deep, limit, base, require_signature }) = body?;
    RestoreOptions {
        require_signature: require_signature.clone(),
        base: base.iter().map(ToString::to_string).collect(),
        ..RestoreOptions::default()
    }
    .check()
    .map_err(ApiError::invalid)?;
    let _held = controller.tasks.catalogue.lock().await;
    let image = controller.db.image(&name).await?;
    controller.tasks.refuse_another()?;
    let mut places: Vec<Place> = vec![image.url.parse()?];
    for base in &base {
        places.push(controller.db.image(base.as_str()).await?.url.parse()?);
    }
    let mut reached = reach(&controller, &places.iter().collect::<Vec<_>>()).await?;
    let mut options = options(deep.then_some("--deep"), limit);
    for base in reached.urls.split_off(1) {
        options.extend(["--base".to_owned(), base]);
    }
    if let Some(key) = require_signature {
        options.extend(["--require-signature".to_owned(), key]);
    }
    Ok(begin(&controller, caller, image, Work::Verify { deep }, reached, "verify", options))
}

fn options(option: Option<&str>, limit: Option<Rate>) -> Vec<String> {
    let limit = limit.into_iter().flat_map(|limit| ["--limit".to_owned(), limit.to_string()]);
    option.map(str::to_owned).into_iter().chain(limit).collect()
}

/// Has the agent's program begin, with this command and options, on an image and the places that were reached.
fn begin(
    controller: &Arc<Controller>,
    caller: Caller,
    image: Image,
    work: Work,
    reached: Reached,
    command: &str,
    options: Vec<String>,
) -> (StatusCode, Json<TaskView>) {
    let mut args = vec![command.to_owned()];
    args.extend(reached.urls);
    args.extend(["--expect-root".to_owned(), image.root.clone()]);
    args.extend(options);
    let task = NewTask {
        work,
        image,
        stores: reached.stores,
        places: reached.places,
        by: caller.name,
        args,
        access: reached.access,
        token: reached.token,
    };
    (StatusCode::ACCEPTED, Json(Tasks::start(controller, task).into()))
}

/// Whether a place is our own store.
pub(super) fn own_file(place: &Place) -> Option<&FileName> {
    match place {
        Place::Store { store, file } if store.as_str() == LOCAL => Some(file),
        _ => None,
    }
}

/// Lists the tasks: those at work, and the last hundred that have ended since the controller was started.
#[utoipa::path(get, path = "/v1/tasks", tag = "images", responses((status = 200, description = "All tasks", body = Vec<TaskView>)))]
pub(super) async fn list(State(controller): State<Arc<Controller>>) -> Json<Vec<TaskView>> {
    Json(controller.tasks.list().into_iter().map(TaskView::from).collect())
}

/// Shows a task.
#[utoipa::path(
    get, path = "/v1/tasks/{id}", tag = "images", params(("id" = u64, Path, description = "The task")),
    responses((status = 200, description = "The task", body = TaskView), (status = 404, description = "No such task"))
)]
pub(super) async fn show(
    State(controller): State<Arc<Controller>>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Json<TaskView>, ApiError> {
    let Path(id) = id?;
    Ok(Json(controller.tasks.get(id)?.into()))
}

/// Asks a task to end; it removes what it has begun to write.
#[utoipa::path(
    delete, path = "/v1/tasks/{id}", tag = "images", params(("id" = u64, Path, description = "The task")),
    responses((status = 202, description = "Asked", body = TaskView), (status = 404, description = "No such task"), (status = 409, description = "task_ended"))
)]
pub(super) async fn cancel(
    State(controller): State<Arc<Controller>>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<(StatusCode, Json<TaskView>), ApiError> {
    let Path(id) = id?;
    controller.tasks.cancel(id)?;
    Ok((StatusCode::ACCEPTED, Json(controller.tasks.get(id)?.into())))
}
