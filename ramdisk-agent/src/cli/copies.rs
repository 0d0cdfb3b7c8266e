//! `copy` and `rm`: images as files of stores.

use std::sync::Arc;

use agent_api::Rate;
use clap::Args;

use super::report;
use crate::copy::{self, CopyOptions, Shown};
use crate::error::Result;
use crate::opening::parse_url;
use crate::progress::{Face, Progress, Ticker};

#[derive(Debug, Args)]
pub(super) struct CopyArgs {
    /// URL or path of the image
    pub(super) source: String,
    /// URL or path of the copy; must not exist
    pub(super) target: String,
    /// Refuse the image unless its root hash is this
    #[arg(long, value_name = "HEX")]
    expect_root: Option<String>,
    /// Copy a delta image to a folder that its base is not in
    #[arg(long)]
    without_base: bool,
    /// Read and write no more bytes a second than this: K, M and G are powers of 1024, as in 400M
    #[arg(long, value_name = "RATE")]
    limit: Option<Rate>,
}

#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// URL or path of the image
    pub(super) image: String,
    /// Leave it alone if it is an image with another root hash; a damaged file, which has none, is removed
    #[arg(long, value_name = "HEX")]
    expect_root: Option<String>,
    /// Remove it even if a delta image needs it
    #[arg(long)]
    force: bool,
}

pub(super) fn copy(
    args: &CopyArgs,
    json: bool,
    face: Face,
    progress: &Arc<Progress>,
) -> Result<()> {
    progress.set_limit(args.limit);
    let (source, target) = (parse_url(&args.source)?, parse_url(&args.target)?);
    let options =
        CopyOptions { expect_root: args.expect_root.clone(), without_base: args.without_base };
    let ticker = Ticker::start(progress, face);
    let result = copy::copy(&source, &target, &options, progress);
    ticker.finish();
    let summary = result?;
    report(json, &summary, || Shown(&summary).to_string())
}

pub(super) fn rm(args: &RmArgs, json: bool, progress: &Arc<Progress>) -> Result<()> {
    let url = parse_url(&args.image)?;
    copy::remove(&url, args.expect_root.as_deref(), args.force, progress)?;
    let removed = serde_json::json!({ "removed": url.to_string() });
    report(json, &removed, || format!("removed    {url}"))
}
