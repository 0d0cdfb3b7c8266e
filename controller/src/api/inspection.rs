//! What an image holds, as its file says: read by the agent's program from wherever it lies.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::tasks::reach;
use super::{ApiError, to_its_end};
use crate::context::Controller;
use crate::store::Place;
use crate::store::agent_program::{self, ProgramError};

/// How long a store may take: less than an answer of the API may take, with the time to end the program.
const LIMIT: Duration = Duration::from_secs(110);

/// What an image's file says of itself. Its index was checked against the root; the frames were not read.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ImageContent {
    /// Root hash, hex: the catalogue's.
    pub root: String,
    /// Size of the file in bytes.
    pub stored_bytes: u64,
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// The manifest, as `docs/image-format.md` has it.
    #[schema(value_type = Object)]
    pub manifest: serde_json::Value,
    /// The same for people, in lines.
    pub described: String,
}

/// Says what an image holds: disk, partitions, filesystems, what was captured whole and why. Read from its file, from the controller's machine.
#[utoipa::path(
    get, path = "/v1/images/{name}/content", tag = "images", params(("name" = String, Path, description = "The image")),
    responses(
        (status = 200, description = "What its file says", body = ImageContent), (status = 404, description = "No such image"),
        (status = 409, description = "other_root, secret_url, no_agent_program"), (status = 502, description = "not_read"),
    )
)]
pub(super) async fn content(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<Json<ImageContent>, ApiError> {
    let image = controller.db.image(&name).await?;
    let place: Place = image.url.parse()?;
    // To its end, so that the token goes.
    let work = async move {
        let reached = reach(&controller, &[&place]).await?;
        let args = [&["inspect".to_owned()], reached.urls.as_slice()].concat();
        let limit = tokio::time::sleep(LIMIT);
        let read =
            agent_program::run(&controller.agent, &args, &reached.access, |_| {}, limit).await;
        if let Some(token) = &reached.token {
            controller.db.remove_token(token).await?;
        }
        Ok::<_, ApiError>(read)
    };
    let not_read = |why: String| {
        ApiError::new(StatusCode::BAD_GATEWAY, "not_read", format!("image {name}: {why}"))
    };
    let said = to_its_end(work).await?.map_err(|error| match error {
        ProgramError::Program(..) => {
            ApiError::conflict("no_agent_program", crate::error_chain(&error))
        }
        ProgramError::Failed(failure) => not_read(failure.message),
    })?;
    let content: ImageContent = serde_json::from_value(said)
        .map_err(|error| not_read(format!("imprint-agent said something else ({error})")))?;
    if content.root != image.root {
        return Err(ApiError::conflict(
            "other_root",
            format!(
                "the file of image {name} holds another image, with the root {}; the catalogue has {}",
                content.root, image.root
            ),
        ));
    }
    Ok(Json(content))
}
