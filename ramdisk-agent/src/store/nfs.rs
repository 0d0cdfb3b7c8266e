//! The store that is a share of an NFS server (version 3), spoken to in user space.

use uuid::Uuid;

use super::{Entry, ImageFile, NfsUrl, Options, Result, StoreError, StoreWriter};

fn absent(url: &NfsUrl) -> StoreError {
    StoreError::Server { doing: "opening", url: url.to_string(), status: "nothing".to_owned() }
}

pub(super) fn open(url: &NfsUrl, _options: &Options) -> Result<Box<dyn ImageFile>> {
    Err(absent(url))
}

pub(super) fn create(
    url: &NfsUrl,
    _image_id: Uuid,
    _options: &Options,
) -> Result<Box<dyn StoreWriter>> {
    Err(absent(url))
}

pub(super) fn list(url: &NfsUrl) -> Result<Vec<Entry>> {
    Err(absent(url))
}

pub(super) fn remove(url: &NfsUrl) -> Result<()> {
    Err(absent(url))
}
