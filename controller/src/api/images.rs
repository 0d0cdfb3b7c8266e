//! The catalogue of images.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::ApiError;
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{Image, NewImage};
use crate::names::{ImageName, ImageUrl};
use crate::secret::is_hex;

/// An image.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImageView {
    /// Name.
    pub name: String,
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

impl From<Image> for ImageView {
    fn from(image: Image) -> Self {
        Self {
            name: image.name,
            url: image.url,
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
    /// Where it lies.
    pub url: ImageUrl,
    /// Root hash, 64 hex digits, as `imprint-agent inspect` prints it.
    pub root: String,
}

/// Lists the images.
#[utoipa::path(get, path = "/v1/images", tag = "images", responses((status = 200, description = "All images", body = Vec<ImageView>)))]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
) -> Result<Json<Vec<ImageView>>, ApiError> {
    Ok(Json(controller.db.images().await?.into_iter().map(ImageView::from).collect()))
}

/// Enters an image that exists already.
#[utoipa::path(
    post, path = "/v1/images", tag = "images", request_body = AddImage,
    responses((status = 201, description = "Entered", body = ImageView), (status = 409, description = "image_exists"), (status = 422, description = "invalid"))
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
    let image = NewImage {
        name: new.name.to_string(),
        url: new.url.to_string(),
        root,
        ..NewImage::default()
    };
    controller.db.add_image(&image).await?;
    let image = controller.db.image(new.name.as_str()).await?;
    Ok((StatusCode::CREATED, Json(image.into())))
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
    Ok(Json(controller.db.image(&name).await?.into()))
}

/// Takes an image out of the catalogue. Its file stays where it is.
#[utoipa::path(
    delete, path = "/v1/images/{name}", tag = "images", params(("name" = String, Path, description = "The image")),
    responses((status = 204, description = "Taken out"), (status = 404, description = "No such image"), (status = 409, description = "image_in_use"))
)]
pub(super) async fn remove(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    controller.db.remove_image(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
