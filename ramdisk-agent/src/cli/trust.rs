//! `keygen` and `sign`: the commands of somebody who vouches for images.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::report;
use crate::error::Result;
use crate::opening::{open_own_image, parse_url, store_options};
use crate::progress::Progress;
use crate::restore;
use crate::trust::{self, PasswordFrom, SecretKey};

#[derive(Debug, Args)]
pub(super) struct KeygenArgs {
    /// Where the secret key goes; must not exist
    #[arg(short, long, value_name = "FILE", default_value = "imprint.key")]
    secret_key: PathBuf,
    /// Where the public key goes; must not exist
    #[arg(short, long, value_name = "FILE", default_value = "imprint.pub")]
    public_key: PathBuf,
    /// Do not encrypt the secret key
    #[arg(short = 'W', long, conflicts_with = "password_file")]
    no_password: bool,
    /// A file whose first line is the password [default: IMPRINT_KEY_PASSWORD, or ask]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// URL or path of the image
    pub(super) image: String,
    /// The secret key
    #[arg(short, long, value_name = "FILE", default_value = "imprint.key")]
    secret_key: PathBuf,
    /// A file whose first line is the key's password [default: IMPRINT_KEY_PASSWORD, or ask]
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Refuse the image unless its root hash is this
    #[arg(long, value_name = "HEX")]
    expect_root: Option<String>,
}

pub(super) fn keygen(args: &KeygenArgs, json: bool, progress: &Arc<Progress>) -> Result<()> {
    SecretKey::refuse_existing(&args.secret_key, &args.public_key)?;
    let from = PasswordFrom { file: args.password_file.as_deref() };
    let password = if args.no_password { None } else { Some(from.new_one()?) };
    let key = SecretKey::generate()?;
    // Both files or none.
    progress.begin_work()?;
    key.save(&args.secret_key, &args.public_key, password.as_deref())?;
    let (id, public) = (key.public_key().id().to_string(), key.public_key().to_string());
    let (secret_file, public_file) = (args.secret_key.display(), args.public_key.display());
    let value = serde_json::json!({
        "key_id": id, "public_key": public,
        "secret_key_file": secret_file.to_string(), "public_key_file": public_file.to_string(),
    });
    report(json, &value, || {
        format!(
            "secret     {secret_file}: keep it to yourself\npublic     {public_file}: restore --require-signature takes it\nkey        {public}"
        )
    })
}

pub(super) fn sign(args: &SignArgs, json: bool, progress: &Arc<Progress>) -> Result<()> {
    let from = PasswordFrom { file: args.password_file.as_deref() };
    let key = SecretKey::load(&args.secret_key, || from.get())?;
    let url = parse_url(&args.image)?;
    let image = open_own_image(&url, progress)?;
    restore::check_root(&*image, args.expect_root.as_deref())?;
    image.check_index()?;
    progress.begin_work()?;
    let signature =
        trust::sign(&key, &url, image.root(), image.stored_len(), &store_options(progress))?;
    let id = key.public_key().id().to_string();
    let root = image.root();
    let value = serde_json::json!({
        "root": root.to_string(), "key_id": id, "signature": signature.to_string(),
    });
    report(json, &value, || {
        format!("signed     {url}\nby         {id}\nsignature  {signature}\nroot       {root}")
    })
}
