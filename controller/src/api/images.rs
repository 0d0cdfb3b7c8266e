//! The catalogue of images.

use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorKind, IMAGE_SUFFIX};
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::tasks::{Reached, own_file, reach};
use super::{ApiError, to_its_end};
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{DbError, Image, NewImage};
use crate::names::{FileName, ImageName, ImageUrl, StoreName};
use crate::secret::is_hex;
use crate::store::agent_program::{self, ProgramError};
use crate::store::embedded::EmbeddedError;
use crate::store::{BESIDE_IMAGE, Place, Places};

/// How long a store may take to remove a file: less than an answer of the API may take, with the time to end the program.
const REMOVE_LIMIT: Duration = Duration::from_secs(110);

/// An image.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImageView {
    /// Name.
    pub name: String,
    /// The store that it lies in, if that has a name.
    pub store: Option<String>,
    /// Where it lies.
    pub url: String,
    /// Root hash, hex: a restore accepts nothing else.
    pub root: String,
    /// Image id.
    pub image_id: Option<String>,
    /// Size of the disk in bytes.
    pub disk_bytes: Option<i64>,
    /// Bytes that its filesystems use.
    pub used_bytes: Option<i64>,
    /// Size of the image in bytes.
    pub stored_bytes: Option<i64>,
    /// Host that it was captured from.
    pub host: Option<String>,
    /// Job that captured it.
    pub job: Option<i64>,
    /// When it was captured or entered.
    pub created: String,
}

impl ImageView {
    fn new(image: Image, places: &Places) -> Self {
        let (store, url) = places.locate(&image.url);
        Self {
            name: image.name,
            store,
            url,
            root: image.root,
            image_id: image.image_id,
            disk_bytes: image.disk_bytes,
            used_bytes: image.used_bytes,
            stored_bytes: image.stored_bytes,
            host: image.host,
            job: image.job_id,
            created: rfc3339(image.created_ms),
        }
    }
}

/// An image that was not captured by a job.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddImage {
    /// Name.
    pub name: ImageName,
    /// Where it lies; or `store` and `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<ImageUrl>,
    /// The store that it lies in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreName>,
    /// Its file there. Left out: `NAME.img.zst`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileName>,
    /// Root hash, 64 hex digits, as `imprint-agent inspect` prints it.
    pub root: String,
}

async fn view(controller: &Controller, name: &str) -> Result<ImageView, ApiError> {
    let image = controller.db.image(name).await?;
    Ok(ImageView::new(image, &controller.stores.places().await?))
}

/// Lists the images.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, description = "All images", body = Vec<ImageView>)))]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
) -> Result<Json<Vec<ImageView>>, ApiError> {
    let places = controller.stores.places().await?;
    let images = controller.db.images().await?.into_iter();
    Ok(Json(images.map(|image| ImageView::new(image, &places)).collect()))
}

/// Enters an image that exists already.
#[utoipa::path(
    post, path = "/v1/images", tag = "images", request_body = AddImage,
    responses((status = 201, description = "Entered", body = ImageView), (status = 409, description = "image_exists, place_taken, in_use_by_task"), (status = 422, description = "invalid"))
)]
pub(super) async fn add(
    State(controller): State<Arc<Controller>>,
    body: Result<Json<AddImage>, JsonRejection>,
) -> Result<(StatusCode, Json<ImageView>), ApiError> {
    let Json(new) = body?;
    let root = new.root.to_ascii_lowercase();
    if !is_hex(&root, 64) {
        return Err(ApiError::invalid(
            "root must be 64 hex digits, as `imprint-agent inspect` prints it",
        ));
    }
    let place = match (new.url, new.store, new.file) {
        (Some(url), None, None) => controller.stores.known(url),
        (None, Some(store), file) => {
            let file = file.map_or_else(|| format!("{}{IMAGE_SUFFIX}", new.name), String::from);
            controller.stores.place(Some(store), &file).await?
        }
        _ => return Err(ApiError::invalid("give url, or store and perhaps file")),
    };
    if let Some(file) = own_file(&place) {
        controller.stores.embedded.open(file).await?;
    }
    let image = NewImage {
        name: new.name.to_string(),
        url: place.to_string(),
        root,
        ..NewImage::default()
    };
    let _held = controller.tasks.catalogue.lock().await;
    let spots = controller.db.spots().await?;
    controller.tasks.refuse_place(&spots, &image.url, "this file")?;
    controller.db.add_image(&image).await?;
    Ok((StatusCode::CREATED, Json(view(&controller, new.name.as_str()).await?)))
}

/// Shows an image.
#[utoipa::path(
    get, path = "/v1/images/{name}", tag = "images", params(("name" = String, Path, description = "The image")),
    responses((status = 200, description = "The image", body = ImageView), (status = 404, description = "No such image"))
)]
pub(super) async fn show(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<Json<ImageView>, ApiError> {
    Ok(Json(view(&controller, &name).await?))
}

/// What becomes of the file.
#[derive(Debug, Clone, Copy, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Only take the image out of the catalogue.
    #[serde(default)]
    keep_file: bool,
}

/// Removes an image: its entry, and its file with what lies beside it. In stores on servers `imprint-agent` does that from the controller's machine.
#[utoipa::path(
    delete, path = "/v1/images/{name}", tag = "images", params(("name" = String, Path, description = "The image"), RemoveQuery),
    responses(
        (status = 204, description = "Removed"), (status = 404, description = "No such image"),
        (status = 409, description = "image_in_use, file_in_use, other_root, image_is_base, in_use_by_task, secret_url, no_agent_program"),
        (status = 502, description = "not_removed, the store refuses; the entry stays"),
    )
)]
pub(super) async fn remove(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    query: Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(RemoveQuery { keep_file }) = query?;
    let held = controller.tasks.catalogue.lock().await;
    controller.tasks.refuse_image(&name)?;
    let image = match controller.db.image(&name).await {
        // Nothing of its URL is needed.
        Err(DbError::Unseal(_)) if keep_file => None,
        image => Some(image?),
    };
    let url = image.as_ref().filter(|_| !keep_file).map(|image| &image.url);
    let place = url.and_then(|url| url.parse::<Place>().ok());
    if let Some(place) = &place {
        let spots = controller.db.spots().await?;
        controller.tasks.refuse_place(&spots, &place.to_string(), &format!("image {name}"))?;
    }
    // Looked at before the entry goes: what cannot be reached cannot be removed.
    let outside = match &place {
        Some(place) if own_file(place).is_none() => Some(reach(&controller, &[place]).await?),
        _ => None,
    };
    if let (Some(image), Some(file)) = (&image, place.as_ref().and_then(own_file)) {
        refuse_other(&controller, image, file).await?;
    }
    controller.db.remove_image(&name, place.is_none()).await?;
    drop(held);
    tracing::info!(image = name, keep_file, by = caller.name, "image removed");
    match (&place, image.zip(outside)) {
        (_, Some((image, reached))) => {
            // To its end, whether or not its client still listens: the entry comes back if the file stays.
            to_its_end(async move { remove_outside(&controller, image, reached).await }).await?;
        }
        (Some(place), None) => {
            if let Some(file) = own_file(place) {
                remove_file(&controller, &name, file).await?;
            }
        }
        (None, None) => {}
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Refuses a file of our own store that is another image than the entry says. A damaged one is known by its name only.
async fn refuse_other(
    controller: &Controller,
    image: &Image,
    file: &FileName,
) -> Result<(), ApiError> {
    match controller.stores.embedded.root_of(file).await {
        Ok(Some(root)) if root != image.root => Err(ApiError::conflict(
            "other_root",
            format!(
                "the file of image {0} was not removed, the entry stays: {file} holds another image, with the root {root} (`imprint image rm --keep-file {0}` removes the entry alone)",
                image.name
            ),
        )),
        Ok(_) | Err(EmbeddedError::NotFound(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Has the agent's program remove the file of an image that is in the catalogue no more. While the file stays, so does the entry.
async fn remove_outside(
    controller: &Controller,
    image: Image,
    reached: Reached,
) -> Result<(), ApiError> {
    let _held = controller.agent.hold();
    let mut args = [&["rm".to_owned()], reached.urls.as_slice()].concat();
    args.extend(["--expect-root".to_owned(), image.root.clone()]);
    let ended = agent_program::run(
        &controller.agent,
        &args,
        &reached.access,
        |_| {},
        tokio::time::sleep(REMOVE_LIMIT),
    );
    let error = match ended.await {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    let failure = error.failure();
    let is_path = !reached.urls.iter().all(|url| url.contains("://") && !url.starts_with("file:"));
    if failure.kind == ErrorKind::NotFound && !is_path {
        tracing::warn!(image = image.name, error = failure.message, "its file was gone already");
        return Ok(());
    }
    let name = image.name.clone();
    let stays = match controller.db.put_image_back(image).await {
        Ok(()) => "the entry stays".to_owned(),
        Err(error) => format!("the entry is gone ({})", crate::error_chain(&error)),
    };
    tracing::error!(image = name, error = failure.message, stays, "file not removed");
    let (status, code) = match error {
        ProgramError::Program(..) => (StatusCode::CONFLICT, "no_agent_program"),
        ProgramError::Failed(_) => (StatusCode::BAD_GATEWAY, "not_removed"),
    };
    Err(ApiError::new(
        status,
        code,
        format!(
            "the file of image {name} was not removed, {stays}: {} (`imprint image rm --keep-file {name}` removes the entry alone)",
            failure.message
        ),
    ))
}

/// Removes the file of an image that is in the catalogue no more.
async fn remove_file(
    controller: &Controller,
    image: &str,
    file: &FileName,
) -> Result<(), ApiError> {
    let beside = BESIDE_IMAGE.iter().map(|suffix| format!("{file}{suffix}"));
    for name in std::iter::once(file.to_string()).chain(beside) {
        // Of the longest file names the ones beside are no names any more, so they are not there.
        let Ok(file) = name.parse() else { continue };
        match controller.stores.embedded.remove(&file).await {
            Ok(()) | Err(EmbeddedError::NotFound(_)) => {}
            Err(error) => {
                let cause = crate::error_chain(&error);
                tracing::error!(image, file = name, error = cause, "file not removed");
                return Err(ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "store_failed",
                    format!("image {image} is out of the catalogue, but its file stays: {cause}"),
                ));
            }
        }
    }
    Ok(())
}
