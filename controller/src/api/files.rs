//! Files of the controller's own store: read by anybody with a token of ours, with ranges, as from any web server.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::ApiError;
use super::auth::{Caller, StoreCaller};
use super::range::{Wanted, wanted};
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{LOCAL, UploadRow};
use crate::names::{FileName, PARTIAL_SUFFIX, StoreName};
use crate::store::embedded::{Entry, Opened};

/// Bytes that are read from the disk at once.
const READ_BYTES: u64 = 1 << 20;

/// A file of a store.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileView {
    /// Its name; of one that is being written the name that it will have.
    pub name: String,
    /// Its length.
    pub len_bytes: u64,
    /// When it was last written to.
    pub modified: String,
    /// It is being written, or its writer was cut off.
    pub is_partial: bool,
    /// Then: the id of its upload, by which it can be given up.
    #[serde(default)]
    pub upload: Option<String>,
    /// Since when it is written.
    #[serde(default)]
    pub begun: Option<String>,
    /// The job whose agent writes it, if it is one.
    #[serde(default)]
    pub job: Option<i64>,
}

impl FileView {
    fn new(entry: Entry, uploads: &[UploadRow]) -> Self {
        let is_of = |row: &&UploadRow| entry.is_partial && !row.published && row.file == entry.name;
        let upload = uploads.iter().find(is_of);
        Self {
            upload: upload.map(|row| row.upload_id.clone()),
            begun: upload.map(|row| rfc3339(row.created_ms)),
            job: upload.and_then(|row| row.job_id),
            name: entry.name,
            len_bytes: entry.len_bytes,
            modified: rfc3339(entry.modified_ms),
            is_partial: entry.is_partial,
        }
    }
}

/// Refuses other stores than our own.
pub(super) async fn own_store(controller: &Controller, store: &str) -> Result<(), ApiError> {
    let store: StoreName = store.parse()?;
    if store.as_str() == LOCAL {
        return Ok(());
    }
    controller.db.store(store.as_str()).await?;
    Err(ApiError::conflict(
        "not_our_store",
        format!(
            "the files of store {store} are on another server: ask that one, for instance with `imprint-agent ls`"
        ),
    ))
}

/// Lists the files of the controller's own store.
#[utoipa::path(
    get, path = "/v1/stores/{store}/files", tag = "stores", params(("store" = String, Path, description = "The store")),
    responses((status = 200, description = "All files", body = Vec<FileView>), (status = 404, description = "No such store"), (status = 409, description = "not_our_store"))
)]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
    Path(store): Path<String>,
) -> Result<Json<Vec<FileView>>, ApiError> {
    own_store(&controller, &store).await?;
    let entries = controller.stores.embedded.list().await?;
    let uploads = controller.db.uploads().await?;
    Ok(Json(entries.into_iter().map(|entry| FileView::new(entry, &uploads)).collect()))
}

/// Reads a file: whole, or one range. Its entity tag is strong. An agent reads what belongs to its job; `NAME.partial` is for its writer only.
#[utoipa::path(
    get, path = "/v1/stores/{store}/files/{name}", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file")),
    responses(
        (status = 200, description = "The file", content_type = "application/octet-stream"),
        (status = 206, description = "The range that was asked for", content_type = "application/octet-stream"),
        (status = 304, description = "The client has it (If-None-Match)"),
        (status = 403, description = "wrong_file"), (status = 404, description = "No such file"),
        (status = 409, description = "not_a_file, not_our_store"), (status = 412, description = "changed: it is not the file of If-Match"), (status = 416, description = "no_such_range"),
    )
)]
pub(super) async fn read(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<StoreCaller>,
    Path((store, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    own_store(&controller, &store).await?;
    let embedded = &controller.stores.embedded;
    let opened = if let Some(name) = name.strip_suffix(PARTIAL_SUFFIX) {
        let file: FileName = name.parse()?;
        caller.may_write(&file)?;
        let (opened, upload) = embedded.open_partial(&file).await?;
        caller.is_writer(upload.job())?;
        opened
    } else {
        let file: FileName = name.parse()?;
        caller.may_read(&file)?;
        embedded.open(&file).await?
    };
    let wanted = wanted(&headers, opened.len_bytes, &opened.etag);
    answer(opened, wanted)
}

fn answer(opened: Opened, wanted: Wanted) -> Result<Response, ApiError> {
    let Opened { file, len_bytes, etag } = opened;
    let (status, range) = match wanted {
        Wanted::All => (StatusCode::OK, 0..len_bytes),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Same => (StatusCode::NOT_MODIFIED, 0..0),
        Wanted::Changed => {
            return Err(ApiError::new(
                StatusCode::PRECONDITION_FAILED,
                "changed",
                "another file has this name by now",
            ));
        }
        Wanted::Nothing => {
            let error = ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "no_such_range",
                format!("the file has {len_bytes} bytes"),
            );
            let mut response = error.into_response();
            response
                .headers_mut()
                .insert(header::CONTENT_RANGE, value(format!("bytes */{len_bytes}")));
            return Ok(response);
        }
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::ETAG, value(etag));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, value((range.end - range.start).to_string()));
    if status == StatusCode::PARTIAL_CONTENT {
        let text = format!("bytes {}-{}/{len_bytes}", range.start, range.end - 1);
        headers.insert(header::CONTENT_RANGE, value(text));
    }
    *response.body_mut() = body(file, range);
    Ok(response)
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("digits and quotes are a header's value")
}

/// The bytes of a range, read while they are sent. A file that got shorter meanwhile breaks the connection off.
fn body(file: File, range: Range<u64>) -> Body {
    let file = Arc::new(file);
    Body::from_stream(stream::try_unfold(range, move |rest| {
        let file = Arc::clone(&file);
        async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let next = (rest.start + READ_BYTES).min(rest.end);
            let read = move || -> std::io::Result<Bytes> {
                let len = usize::try_from(next - rest.start).expect("READ_BYTES is small");
                let mut data = vec![0; len];
                file.read_exact_at(&mut data, rest.start)?;
                Ok(data.into())
            };
            let data = tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)??;
            Ok::<_, std::io::Error>(Some((data, next..rest.end)))
        }
    }))
}

/// Removes a file that is no image of the catalogue, such as one whose entry was taken out.
#[utoipa::path(
    delete, path = "/v1/stores/{store}/files/{name}", tag = "stores",
    params(("store" = String, Path, description = "The store"), ("name" = String, Path, description = "The file")),
    responses((status = 204, description = "Removed"), (status = 404, description = "No such file"), (status = 409, description = "file_in_use, in_use_by_task"))
)]
pub(super) async fn remove(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path((store, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    own_store(&controller, &store).await?;
    let file: FileName = name.parse()?;
    let place = format!("store:{LOCAL}/{file}");
    let _held = controller.tasks.catalogue.lock().await;
    controller.tasks.refuse_place(&controller.db.spots().await?, &place, file.as_str())?;
    controller.db.refuse_used_file(&place, file.as_str()).await?;
    controller.stores.embedded.remove(&file).await?;
    tracing::info!(file = file.as_str(), by = caller.name, "file removed");
    Ok(StatusCode::NO_CONTENT)
}
