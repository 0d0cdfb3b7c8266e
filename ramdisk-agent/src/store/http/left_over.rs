//! Going on with what an agent of the same job has written to the controller's own store.
//!
//! The controller finds it by the file's name and by whose it is, and makes durable what it received before it tells of it. Going on makes it
//! another upload: from then on requests of whoever wrote it before lead nowhere, so that two writers cannot mix. Of people's writers the
//! controller knows only what it heard of them last, so one that is gone shows as [`StoreError::Busy`] for a while.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::super::{HttpUrl, ImageFile, LeftOver, Options, Result, StoreError, StoreWriter};
use super::client::{Client, Request};
use super::controller::{Refusal, UPLOAD_OFFSET, Upload, call, only_read};
use super::reader::HttpImage;
use super::status::Place;
use super::writer::{HttpWriter, partial_of, upload_of};

/// Longer than the controller believes that a writer which says nothing is still there.
const LINGERS: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What a writer of the image at `url` has left behind.
pub(super) fn find(url: &HttpUrl, options: &Options) -> Result<Option<Box<dyn LeftOver>>> {
    let client = Client::new(url, options)?;
    let uploads = url.join("uploads");
    let place = Place { doing: "opening", url };
    let request = Request { method: "GET", url: &uploads, fields: &[], body: &[] };
    let until = Instant::now() + LINGERS;
    let found: Option<Begun> = loop {
        match call(&client, place.doing, &request) {
            Err(Refusal::Code(code)) if code == "being_written" && Instant::now() < until => {
                std::thread::sleep(LOOK_AGAIN);
            }
            // Also a controller of before that knew how to go on.
            Err(Refusal::Code(code))
                if matches!(code.as_str(), "not_found" | "method_not_allowed") =>
            {
                return Err(only_read(url));
            }
            found => break found.map_err(|refusal| refusal.into_error(place))?,
        }
    };
    let Some(Begun { upload_id, durable_bytes }) = found else { return Ok(None) };
    let (url, options) = (url.clone(), options.clone());
    Ok(Some(Box::new(HttpLeftOver { client, url, options, id: upload_id, durable_bytes })))
}

/// An upload that was begun.
#[derive(Debug, Clone, Copy, serde::Deserialize)]
struct Begun {
    upload_id: Uuid,
    durable_bytes: u64,
}

struct HttpLeftOver {
    client: Client,
    url: HttpUrl,
    options: Options,
    id: Uuid,
    durable_bytes: u64,
}

impl LeftOver for HttpLeftOver {
    fn reader(&self) -> Result<Box<dyn ImageFile>> {
        Ok(Box::new(HttpImage::open(&partial_of(&self.url)?, &self.options)?))
    }

    fn go_on(self: Box<Self>, len_bytes: u64) -> Result<Box<dyn StoreWriter>> {
        let Self { client, url, options, id, durable_bytes } = *self;
        let place = Place { doing: "cutting off", url: &url };
        if len_bytes > durable_bytes {
            return Err(StoreError::Replaced { url: url.to_string() });
        }
        let next = Uuid::new_v4();
        let asked = upload_of(&url, id).join("go-on").join(&next.to_string());
        let fields = [(UPLOAD_OFFSET, len_bytes.to_string())];
        let request = Request { method: "POST", url: &asked, fields: &fields, body: &[] };
        let upload: Upload =
            call(&client, place.doing, &request).map_err(|refusal| refusal.into_error(place))?;
        if upload.received_bytes != len_bytes || upload.durable_bytes != len_bytes {
            return Err(place.protocol("it says that it goes on elsewhere than it was told"));
        }
        let upload = upload_of(&url, next);
        Ok(Box::new(HttpWriter::behind(client, &url, upload, len_bytes, &options)))
    }
}
