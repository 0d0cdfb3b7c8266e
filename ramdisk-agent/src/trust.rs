//! Signatures of images: who vouches for an image, and how a restore insists on it.
//!
//! A signature is of `NAME.root`, a small text beside the image that gives its root, its length and its name ([`RootFile`]); the
//! root pins every byte of the image. `NAME.root.minisig` is the signature, in minisign's format, so that stock `minisign` makes
//! and checks the same files. [`require`] is the whole check: key, signature, and that what was signed is the image at hand, under
//! this very name, so that an older image that was signed too cannot be put in its place under the newer one's name.
//!
//! Deliberately absent: lists of keys, chains, expiry. Which key is the right one is for whoever asks for the restore.

mod minisign;
mod password;
mod root_file;
mod secret_key;

use image_format::Root;
use uuid::Uuid;

pub use minisign::{PublicKey, Signature, TrustError};
pub use password::{PasswordFrom, give_back_terminal};
pub use root_file::RootFile;
pub use secret_key::SecretKey;

use agent_api::ErrorKind;

use crate::error::{Error, Result};
use crate::store::{self, StoreError, StoreUrl};

/// What is added to an image's name for the text that is signed.
pub const ROOT_SUFFIX: &str = ".root";
/// What is added to a file's name for its signature; minisign's own.
pub const SIGNATURE_SUFFIX: &str = ".minisig";

/// No root file, signature or key is longer.
const MAX_FILE_LEN: u64 = 8 << 10;

/// Refuses the image at `url` unless this key has signed it.
///
/// # Errors
/// `refused` without a signature, `image_corrupt` if it is another's, of something else, or damaged.
pub fn require(
    key: &PublicKey,
    url: &StoreUrl,
    root: Root,
    stored_len: u64,
    options: &store::Options,
) -> Result<()> {
    let (root_url, signature_url) = urls(url)?;
    let wanted = |url: &StoreUrl| -> Result<Vec<u8>> {
        read_small(url, options).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::refused(format!(
                "the image must be signed, and {url} is not there: sign the image, or restore without --require-signature"
            )),
            _ => error.context(format!("reading {url}")),
        })
    };
    let (text, signature) = (wanted(&root_url)?, wanted(&signature_url)?);
    let bad = |url: &StoreUrl, error: TrustError| {
        Error::new(ErrorKind::ImageCorrupt, format!("{url} does not vouch for the image"))
            .because(error)
    };
    Signature::parse(&signature)
        .and_then(|signature| key.verify(&text, &signature))
        .map_err(|error| bad(&signature_url, error))?;
    RootFile::parse(&text)
        .and_then(|signed| signed.check(&of_image(url, root, stored_len)?))
        .map_err(|error| bad(&root_url, error))
}

/// Signs the image at `url`: writes `NAME.root` and its signature beside it.
///
/// A root file that is there already must say the same, and a signature must not be there: neither is overwritten.
///
/// # Errors
/// If the store fails, or holds other files of these names.
pub fn sign(
    key: &SecretKey,
    url: &StoreUrl,
    root: Root,
    stored_len: u64,
    options: &store::Options,
) -> Result<StoreUrl> {
    let (root_url, signature_url) = urls(url)?;
    let signed =
        of_image(url, root, stored_len).map_err(|e| Error::refused("signing").because(e))?;
    let text = signed.encode();
    match read_small(&root_url, options) {
        Ok(found) if found == text.as_bytes() => {}
        Ok(_) => {
            return Err(Error::refused(format!(
                "{root_url} is there and belongs to another image; remove it and its signature first"
            )));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            write_small(&root_url, text.as_bytes(), options)?;
        }
        Err(error) => return Err(error.context(format!("reading {root_url}"))),
    }
    let comment = format!(
        "timestamp:{}\tfile:{}\thashed",
        jiff::Timestamp::now().as_second(),
        root_url.file_name().unwrap_or_default()
    );
    write_small(&signature_url, key.sign(text.as_bytes(), &comment).as_bytes(), options)?;
    Ok(signature_url)
}

fn of_image(
    url: &StoreUrl,
    root: Root,
    stored_len: u64,
) -> std::result::Result<RootFile, TrustError> {
    RootFile::new(root, stored_len, url.file_name().unwrap_or_default())
}

/// Where root file and signature of an image are.
fn urls(image: &StoreUrl) -> Result<(StoreUrl, StoreUrl)> {
    let beside = || {
        let name = image.file_name()?;
        let folder = image.parent()?;
        let root = format!("{name}{ROOT_SUFFIX}");
        Some((folder.join(&root), folder.join(&format!("{root}{SIGNATURE_SUFFIX}"))))
    };
    beside().ok_or_else(|| {
        Error::refused(format!("{image} has no name that a signature could be found by"))
    })
}

/// What lies beside a signed image: the text that is signed, and the signature. Neither was checked.
#[derive(Debug)]
pub struct Beside {
    root: Vec<u8>,
    signature: Vec<u8>,
}

/// Reads what lies beside an image, if it is signed.
///
/// # Errors
/// If the store fails.
pub fn read_beside(image: &StoreUrl, options: &store::Options) -> Result<Option<Beside>> {
    let (root_url, signature_url) = urls(image)?;
    let read = |url: &StoreUrl| match read_small(url, options) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.context(format!("reading {url}"))),
    };
    let Some(signature) = read(&signature_url)? else { return Ok(None) };
    Ok(read(&root_url)?.map(|root| Beside { root, signature }))
}

impl Beside {
    /// Writes the same beside another image of the same name. What was written.
    ///
    /// # Errors
    /// If the store fails, or holds other files of these names.
    pub fn write(&self, image: &StoreUrl, options: &store::Options) -> Result<Vec<StoreUrl>> {
        let (root_url, signature_url) = urls(image)?;
        let mut written = Vec::new();
        for (url, bytes) in [(root_url, &self.root), (signature_url, &self.signature)] {
            let result = match read_small(&url, options) {
                Ok(found) if found == *bytes => continue,
                Ok(_) => Err(Error::refused(format!(
                    "{url} is there and belongs to another image; remove it first"
                ))),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    write_small(&url, bytes, options)
                }
                Err(error) => Err(error.context(format!("reading {url}"))),
            };
            if let Err(error) = result {
                for url in written {
                    // The first error is the one that matters; what stays is a text that belongs to no image.
                    let _ = store::remove(&url, &options.to_tidy_up());
                }
                return Err(error);
            }
            written.push(url);
        }
        Ok(written)
    }
}

/// Removes what lies beside an image, if it is signed.
///
/// # Errors
/// If the store fails.
pub fn remove_beside(image: &StoreUrl, options: &store::Options) -> Result<()> {
    let (root_url, signature_url) = urls(image)?;
    for url in [signature_url, root_url] {
        match store::remove(&url, options).map_err(Error::from) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.context(format!("removing {url}"))),
        }
    }
    Ok(())
}

fn read_small(url: &StoreUrl, options: &store::Options) -> Result<Vec<u8>> {
    let file = store::open_with(url, options)?;
    let len = file.len_bytes();
    if len > MAX_FILE_LEN {
        return Err(Error::new(
            ErrorKind::ImageCorrupt,
            format!("{url} has {len} bytes, the limit is {MAX_FILE_LEN}"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).expect("at most 8 KiB")];
    file.read_exact_at(&mut bytes, 0).map_err(|e| {
        let kind = StoreError::find(&e).map_or(ErrorKind::Store, StoreError::kind);
        Error::new(kind, format!("reading {url}")).because(e)
    })?;
    Ok(bytes)
}

fn write_small(url: &StoreUrl, bytes: &[u8], options: &store::Options) -> Result<()> {
    let write = || -> store::Result<()> {
        let mut writer = store::create(url, Uuid::new_v4(), options)?;
        if let Err(error) = writer.append(bytes) {
            // The first error is the one that matters.
            let _ = writer.abort();
            return Err(error);
        }
        writer.publish()
    };
    write().map_err(|e| Error::from(e).context(format!("writing {url}")))
}

#[cfg(test)]
mod tests;
