//! Writing files of the controller's own store, in pieces that survive broken connections.
//!
//! An upload is a file and a UUID that its writer chose: every request can be sent again. PUT begins,
//! PATCH appends at `Upload-Offset`, `commit` makes durable what came, `publish` gives the file its name, DELETE gives up. What a writer
//! has left behind is found by its file's name, and gone on with as another upload, so that the first writer is out. Every
//! answer says how much was received and how much of it is durable.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::{Extension, Json};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use uuid::Uuid;

use super::auth::StoreCaller;
use super::files::own_store;
use super::{ApiError, to_its_end};
use crate::context::Controller;
use crate::names::FileName;
use crate::store::embedded::{APPEND_MAX, Upload, UploadState};

/// Where the first byte of a PATCH belongs.
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");

/// A client that sends nothing for so long is not waited for to see why it was refused.
const DRAIN_IDLE: Duration = Duration::from_secs(5);

/// How far an upload is.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UploadView {
    /// The file's name when it is finished.
    pub file: String,
    /// What its writer calls it.
    pub upload_id: String,
    /// So many bytes came; the next one belongs there.
    pub received_bytes: u64,
    /// So many of them are on stable storage.
    pub durable_bytes: u64,
    /// It has its name.
    pub is_published: bool,
}

impl From<UploadState> for UploadView {
    fn from(state: UploadState) -> Self {
        Self {
            file: state.file,
            upload_id: state.upload_id,
            received_bytes: state.received_bytes,
            durable_bytes: state.durable_bytes,
            is_published: state.is_published,
        }
    }
}

type Answer = Result<Json<UploadView>, ApiError>;
type Names = Path<(String, String, String)>;

/// File and upload of a request, from somebody who may write it.
async fn target(
    controller: &Controller,
    caller: &StoreCaller,
    Path((store, name, upload_id)): Names,
) -> Result<(FileName, String), ApiError> {
    own_store(controller, &store).await?;
    let file: FileName = name.parse()?;
    let id: Uuid =
        upload_id.parse().map_err(|_| ApiError::invalid("the id of an upload is a UUID"))?;
    caller.may_write(&file)?;
    Ok((file, id.to_string()))
}

/// The upload of a request, from the one who began it.
async fn own_upload(
    controller: &Controller,
    caller: &StoreCaller,
    names: Names,
) -> Result<Arc<Upload>, ApiError> {
    let (file, upload_id) = target(controller, caller, names).await?;
    let upload = controller.stores.embedded.upload(&file, &upload_id).await?;
    caller.is_writer(upload.job())?;
    Ok(upload)
}

/// Begins an upload, or says how far it is if it was begun before.
#[utoipa::path(
    put, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID")),
    responses(
        (status = 200, description = "How far it is", body = UploadView), (status = 403, description = "wrong_file"),
        (status = 409, description = "file_exists, being_written"), (status = 507, description = "no_space"),
    )
)]
pub(super) async fn begin(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    names: Names,
) -> Answer {
    let (file, upload_id) = target(&controller, &caller, names).await?;
    let writer = caller.writer();
    let state =
        to_its_end(
            async move { controller.stores.embedded.begin(&file, &upload_id, writer).await },
        );
    Ok(Json(state.await?.into()))
}

/// Says what an agent of the same job has begun to write under this name; null if nothing.
#[utoipa::path(
    get, path = "/v1/stores/{store}/files/{name}/uploads", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file")),
    responses(
        (status = 200, description = "How far it is", body = Option<UploadView>), (status = 403, description = "wrong_file"),
        (status = 409, description = "file_exists, being_written"),
    )
)]
pub(super) async fn begun(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    Path((store, name)): Path<(String, String)>,
) -> Result<Json<Option<UploadView>>, ApiError> {
    own_store(&controller, &store).await?;
    let file: FileName = name.parse()?;
    caller.may_write(&file)?;
    let begun = controller.stores.embedded.begun(&file, caller.job()).await?;
    Ok(Json(begun.map(UploadView::from)))
}

/// Goes on with what an agent of the same job has written, as another upload: `Upload-Offset` says how much of what is durable counts, and the first one is over.
#[utoipa::path(
    post, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}/go-on/{next}", tag = "stores",
    params(
        ("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID"),
        ("next" = String, Path, description = "A UUID"), ("Upload-Offset" = u64, Header, description = "How much of it counts"),
    ),
    responses(
        (status = 200, description = "How far it is", body = UploadView), (status = 403, description = "wrong_file"), (status = 404, description = "No such upload"),
        (status = 409, description = "being_written, wrong_offset"),
    )
)]
pub(super) async fn go_on(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    Path((store, name, upload_id, next)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Answer {
    let (file, next) =
        target(&controller, &caller, Path((store.clone(), name.clone(), next))).await?;
    let (_, upload_id) = target(&controller, &caller, Path((store, name, upload_id))).await?;
    let len_bytes = number(&headers, UPLOAD_OFFSET)
        .ok_or_else(|| ApiError::invalid("Upload-Offset must say how much of it counts"))?;
    let job = caller.job();
    let state = to_its_end(async move {
        controller.stores.embedded.go_on(&file, &upload_id, &next, len_bytes, job).await
    });
    Ok(Json(state.await?.into()))
}

/// Says how far an upload is.
#[utoipa::path(
    get, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID")),
    responses((status = 200, description = "How far it is", body = UploadView), (status = 403, description = "wrong_file"), (status = 404, description = "No such upload"))
)]
pub(super) async fn state(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    names: Names,
) -> Answer {
    let (file, upload_id) = target(&controller, &caller, names).await?;
    Ok(Json(controller.stores.embedded.state(&file, &upload_id).await?.into()))
}

/// Appends up to 64 MiB at `Upload-Offset`. What is there already is passed over; what came before a connection broke is kept.
#[utoipa::path(
    patch, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}", tag = "stores",
    params(
        ("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID"),
        ("Upload-Offset" = u64, Header, description = "Where the first byte belongs"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "How far it is", body = UploadView), (status = 403, description = "wrong_file"), (status = 404, description = "No such upload"),
        (status = 409, description = "wrong_offset, superseded, upload_broken"), (status = 411, description = "length_required"),
        (status = 413, description = "too_large"), (status = 507, description = "no_space"),
    )
)]
pub(super) async fn append(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    names: Names,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let offset = number(&headers, UPLOAD_OFFSET)
        .ok_or_else(|| ApiError::invalid("Upload-Offset must say where the first byte belongs"))?;
    let len_bytes = number(&headers, header::CONTENT_LENGTH).ok_or_else(|| {
        ApiError::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "Content-Length must say how much comes",
        )
    })?;
    if len_bytes > APPEND_MAX {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("at most {APPEND_MAX} bytes at a time"),
        ));
    }
    let work = async move {
        let mut body = body.into_data_stream();
        let result = take(&controller, &caller, names, offset, len_bytes, &mut body).await;
        if result.as_ref().is_err_and(ApiError::is_of_client_that_sends) {
            drain(&mut body).await;
        }
        result
    };
    to_its_end(work).await
}

async fn take(
    controller: &Controller,
    caller: &StoreCaller,
    names: Names,
    offset: u64,
    len_bytes: u64,
    body: &mut BodyDataStream,
) -> Answer {
    let upload = own_upload(controller, caller, names).await?;
    controller.stores.embedded.append(&upload, offset, len_bytes, body).await?;
    Ok(Json(upload.state().into()))
}

/// Reads what is refused to its end: a client that still sends would see its connection break instead of the answer.
async fn drain(body: &mut BodyDataStream) {
    while let Ok(Some(Ok(_))) = timeout(DRAIN_IDLE, body.next()).await {}
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// Makes durable what was received until now.
#[utoipa::path(
    post, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}/commit", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID")),
    responses(
        (status = 200, description = "How far it is", body = UploadView), (status = 403, description = "wrong_file"), (status = 404, description = "No such upload"),
        (status = 409, description = "upload_broken"), (status = 507, description = "no_space"),
    )
)]
pub(super) async fn commit(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    names: Names,
) -> Answer {
    let upload = own_upload(&controller, &caller, names).await?;
    let state = to_its_end(async move { controller.stores.embedded.commit(&upload).await });
    Ok(Json(state.await?.into()))
}

/// Makes everything durable and gives the file its name, never over another one. Asked again, it says that this is done.
#[utoipa::path(
    post, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}/publish", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID")),
    responses(
        (status = 200, description = "It has its name", body = UploadView), (status = 403, description = "wrong_file"), (status = 404, description = "No such upload"),
        (status = 409, description = "file_exists, upload_broken"), (status = 507, description = "no_space"),
    )
)]
pub(super) async fn publish(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    names: Names,
) -> Answer {
    let (file, upload_id) = target(&controller, &caller, names).await?;
    caller.is_writer(controller.stores.embedded.job_of(&file, &upload_id).await?)?;
    let state =
        to_its_end(async move { controller.stores.embedded.publish(&file, &upload_id).await });
    Ok(Json(state.await?.into()))
}

/// Gives an upload up: what was written is removed.
#[utoipa::path(
    delete, path = "/v1/stores/{store}/files/{name}/uploads/{upload_id}", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file"), ("upload_id" = String, Path, description = "A UUID")),
    responses((status = 204, description = "Given up"), (status = 403, description = "wrong_file"), (status = 404, description = "No such upload"))
)]
pub(super) async fn abort(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    names: Names,
) -> Result<StatusCode, ApiError> {
    let (file, upload_id) = target(&controller, &caller, names).await?;
    // People may also clear away what an agent left.
    if caller.job().is_some() {
        caller.is_writer(controller.stores.embedded.job_of(&file, &upload_id).await?)?;
    }
    to_its_end(async move { controller.stores.embedded.abort(&file, &upload_id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
