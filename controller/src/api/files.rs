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
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};

use super::ApiError;
use super::auth::{Caller, StoreCaller};
use super::range::{Wanted, wanted};
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{LOCAL, UploadRow};
use crate::names::{FileName, PARTIAL_SUFFIX, StoreName};
use crate::store::embedded::{EmbeddedError, Entry, Opened};

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
        (status = 500, description = "its beginning cannot be read: store_failed"),
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
    answer(&name, opened, wanted).await
}

async fn answer(name: &str, opened: Opened, wanted: Wanted) -> Result<Response, ApiError> {
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
    // What cannot be read is an error with words, as long as nothing was said yet. So is what breaks off in the middle, for a client
    // that goes on behind the last byte that it got.
    let file = Arc::new(file);
    let first = range.start..(range.start + READ_BYTES).min(range.end);
    let rest = first.end..range.end;
    let first = read_block(&file, first).await.map_err(|source| EmbeddedError::Io {
        doing: "reading",
        file: name.to_owned(),
        source,
    })?;
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
    *response.body_mut() = body(name, file, first, rest);
    Ok(response)
}

fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("digits and quotes are a header's value")
}

/// Reads at most [`READ_BYTES`].
async fn read_block(file: &Arc<File>, range: Range<u64>) -> std::io::Result<Bytes> {
    let file = Arc::clone(file);
    let read = move || {
        let len = usize::try_from(range.end - range.start).expect("READ_BYTES is small");
        let mut data = vec![0; len];
        file.read_exact_at(&mut data, range.start)?;
        Ok(data.into())
    };
    tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?
}

/// The first block and the rest of a range, which is read while it is sent. A file that cannot be read any more, or got shorter
/// meanwhile, breaks the connection off.
fn body(name: &str, file: Arc<File>, first: Bytes, rest: Range<u64>) -> Body {
    let name = name.to_owned();
    let rest = stream::try_unfold(rest, move |rest| {
        let (file, name) = (Arc::clone(&file), name.clone());
        async move {
            if rest.is_empty() {
                return Ok(None);
            }
            let next = (rest.start + READ_BYTES).min(rest.end);
            let data = read_block(&file, rest.start..next).await.inspect_err(|error| {
                let (error, offset) = (error.to_string(), rest.start);
                tracing::error!(error, file = name, offset, "store: reading broke off");
            })?;
            Ok::<_, std::io::Error>(Some((data, next..rest.end)))
        }
    });
    Body::from_stream(stream::once(async { Ok(first) }).chain(rest))
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn code_of(file: File, len_bytes: u64, range: Range<u64>) -> String {
        let opened = Opened { file, len_bytes, etag: "\"1\"".to_owned() };
        let response = match answer("x.img.zst", opened, Wanted::Part(range)).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        };
        let status = response.status();
        let Ok(body) = axum::body::to_bytes(response.into_body(), 4 << 20).await else {
            return format!("{status}, broken off");
        };
        match serde_json::from_slice::<crate::api::Problem>(&body) {
            Ok(problem) => format!("{status}, {}: {}", problem.code, problem.detail),
            Err(_) => format!("{status}, {} bytes", body.len()),
        }
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_said_as_long_as_nothing_else_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, vec![7; 3 << 20]).unwrap();
        let read = || File::open(&path).unwrap();
        let len_bytes = 3 << 20;
        assert_eq!(
            code_of(read(), len_bytes, 5..len_bytes).await,
            format!("206 Partial Content, {} bytes", len_bytes - 5)
        );
        // A disk that fails: here a file that is not open for reading.
        let blind = File::options().append(true).open(&path).unwrap();
        let failed = code_of(blind, len_bytes, 5..len_bytes).await;
        let words = "500 Internal Server Error, store_failed: reading x.img.zst in the controller's store: ";
        assert!(failed.starts_with(words), "{failed}");
        // Only its end fails: whoever goes on from where the answer broke off is told.
        let lost = len_bytes + (2 << 20);
        assert_eq!(code_of(read(), lost, 0..lost).await, "206 Partial Content, broken off");
        let failed = code_of(read(), lost, len_bytes - 5..lost).await;
        assert!(failed.starts_with(words), "{failed}");
    }
}
