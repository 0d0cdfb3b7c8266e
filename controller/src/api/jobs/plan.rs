//! From a request to a job: what it names is looked up, and what could not be done is refused before there is a job.
//!
//! Nothing is changed here.

use agent_api::{
    CaptureOptions, DELTA_SUFFIX, IMAGE_SUFFIX, LayoutPartition, RestoreOptions,
    check_capture_name, read_options,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::NewJobRequest;
use crate::api::ApiError;
use crate::api::auth::Caller;
use crate::bmc::Power;
use crate::context::Controller;
use crate::db::{BmcRow, Host};
use crate::job::{Action, NewJob, Options, Shutdown};
use crate::names::{FreeText, ImageName, StoreName};
use crate::reconcile;
use crate::store::Place;

/// Checks a request and turns it into a job.
pub(super) async fn plan(
    controller: &Controller,
    caller: &Caller,
    request: NewJobRequest,
) -> Result<NewJob, ApiError> {
    if !controller.boots_agents() {
        return Err(ApiError::conflict(
            "no_agent",
            "this controller has no agent to boot: start it with --boot-dir (see `imprint initramfs build`)",
        ));
    }
    let host = controller.db.host(request.host.as_str()).await?;
    let (options, place) = match request.action {
        Action::Capture => {
            if request.approval {
                return Err(ApiError::invalid(
                    "approval is for restores: a capture changes nothing",
                ));
            }
            let mut options: CaptureOptions = options_of(request.action, request.options)?;
            options.check().map_err(ApiError::invalid)?;
            if let Some(description) = &options.description {
                description.parse::<FreeText>()?;
            }
            base_places(controller, &mut options.base).await?;
            let suffix = if options.base.is_empty() { IMAGE_SUFFIX } else { DELTA_SUFFIX };
            let place = match (request.url, request.store) {
                (Some(_), Some(_)) => {
                    return Err(ApiError::invalid("give store or url, not both"));
                }
                (Some(url), None) => {
                    let is_delta = !options.base.is_empty();
                    check_capture_name(url.file_name(), is_delta).map_err(ApiError::invalid)?;
                    controller.stores.known(url)
                }
                (None, store) => {
                    controller.stores.place(store, &format!("{}{suffix}", request.image)).await?
                }
            };
            (Options::Capture(options), place)
        }
        Action::Restore => {
            if request.url.is_some() || request.store.is_some() {
                return Err(ApiError::invalid(
                    "url and store are for captures; the catalogue knows where an image lies",
                ));
            }
            let mut options: RestoreOptions = options_of(request.action, request.options)?;
            options.check().map_err(ApiError::invalid)?;
            base_places(controller, &mut options.base).await?;
            let image = controller.db.image(request.image.as_str()).await?;
            match &options.expect_root {
                Some(wanted) if !wanted.eq_ignore_ascii_case(&image.root) => {
                    return Err(ApiError::conflict(
                        "other_root",
                        format!("image {} has the root {}", image.name, image.root),
                    ));
                }
                _ => options.expect_root = Some(image.root),
            }
            for also in &mut options.also {
                *also = also_place(controller, also, &image.url).await?;
            }
            for partition in options.layout.iter_mut().flat_map(|layout| &mut layout.partitions) {
                layout_place(controller, partition).await?;
            }
            check_own_image(&options, &image.name, &image.url)?;
            (Options::Restore(options), image.url.parse()?)
        }
    };
    if let Some(job) = controller.db.active_job_of(host.id).await? {
        return Err(ApiError::conflict(
            "host_busy",
            format!("job {} is under way on host {}", job.id, host.name),
        ));
    }
    check_power(controller, &host, request.shutdown).await?;
    Ok(NewJob {
        host_id: host.id,
        host: request.host,
        image: request.image,
        place,
        disk: request.disk,
        options,
        shutdown: request.shutdown,
        approval: request.approval,
        created_by: caller.name.clone(),
    })
}

/// The places of the images beneath a delta: the catalogue knows them by their names.
async fn base_places(controller: &Controller, bases: &mut [String]) -> Result<(), ApiError> {
    for base in bases {
        *base = controller.db.image(base.parse::<ImageName>()?.as_str()).await?.url;
    }
    Ok(())
}

/// A place that somebody wrote.
fn place_of(controller: &Controller, text: &str) -> Result<Place, ApiError> {
    Ok(match text.parse()? {
        Place::Url(url) => controller.stores.known(url),
        place @ Place::Store { .. } => place,
    })
}

/// Another place of an image: a URL, a file of a store (`store:NAME/FILE`), or a store that has it under the same file name.
async fn also_place(controller: &Controller, also: &str, image: &str) -> Result<String, ApiError> {
    let place = match also.parse::<StoreName>() {
        Ok(store) => {
            let file = image.parse::<Place>()?.file_name().parse()?;
            Place::Store { store, file }
        }
        Err(_) => place_of(controller, also)?,
    };
    if let Some(store) = place.store() {
        controller.db.store(store.as_str()).await?;
    }
    Ok(place.to_string())
}

/// The image of a partition of a layout: one of the catalogue, whose root is then demanded; a file of a store (`store:NAME/FILE`), or a URL.
async fn layout_place(
    controller: &Controller,
    partition: &mut LayoutPartition,
) -> Result<(), ApiError> {
    let Some(text) = &partition.image else { return Ok(()) };
    let place = match text.parse::<ImageName>() {
        Ok(name) => {
            let image = controller.db.image(name.as_str()).await?;
            if let Some(wanted) = &partition.expect_root
                && !wanted.eq_ignore_ascii_case(&image.root)
            {
                return Err(ApiError::conflict(
                    "other_root",
                    format!("image {} has the root {}", image.name, image.root),
                ));
            }
            partition.expect_root = Some(image.root);
            image.url.parse()?
        }
        Err(_) => place_of(controller, text)?,
    };
    if let Some(store) = place.store() {
        controller.db.store(store.as_str()).await?;
    }
    partition.image = Some(place.to_string());
    Ok(())
}

/// Refuses a layout into which nothing of the job's own image goes, as agents do when the machine has booted into one.
fn check_own_image(options: &RestoreOptions, name: &str, place: &str) -> Result<(), ApiError> {
    let Some(layout) = &options.layout else { return Ok(()) };
    let is_own = |partition: &LayoutPartition| match &partition.image {
        Some(image) => image == place,
        None => partition.has_content(),
    };
    if layout.partitions.iter().any(is_own) {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "no partition of the layout comes from {name}: give one of them image-partition, or make another image of the layout the job's"
    )))
}

/// The options of an action. A name that is not known is a mistake of the caller. Agents refuse those, too, and it would not be noticed
/// before the machine had booted into one.
fn options_of<T: Default + Serialize + DeserializeOwned>(
    action: Action,
    given: Map<String, Value>,
) -> Result<T, ApiError> {
    let known = serde_json::to_value(T::default()).expect("options are plain data");
    if let Some(name) = given.keys().find(|name| known.get(name).is_none()) {
        let names: Vec<&str> =
            known.as_object().into_iter().flat_map(Map::keys).map(String::as_str).collect();
        return Err(ApiError::invalid(format!(
            "{} is not an option of a {}; those are {}",
            name.escape_debug(),
            action.as_str(),
            names.join(", ")
        )));
    }
    read_options(given).map_err(ApiError::invalid)
}

/// Says no at once to what the job's first step would refuse.
async fn check_power(
    controller: &Controller,
    host: &Host,
    shutdown: Shutdown,
) -> Result<(), ApiError> {
    let asks = host.bmc != BmcRow::Manual && shutdown == Shutdown::Refuse;
    if asks
        && !reconcile::is_in_agent(controller, host).await?
        && controller.bmcs.power(host).await? == Power::On
    {
        let text = format!(
            "host {} is on and runs its own system: shut it down, or give shutdown soft (presses its power button) or force (cuts its power)",
            host.name
        );
        return Err(ApiError::conflict("host_is_on", text));
    }
    Ok(())
}
