//! `imprint images` and `imprint image`.

use clap::{Args, Subcommand};
use reqwest::Method;

use super::connect::{Client, segment};
use super::table;
use crate::api::images::{AddImage, ImageView};

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Show an image
    Show {
        /// Which
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Enter an image that exists already
    Add {
        /// What it is called
        name: String,
        /// Where it lies [default: NAME.img.zst in --store]
        #[arg(required_unless_present = "store", conflicts_with = "store")]
        url: Option<String>,
        /// The store that it lies in
        #[arg(long)]
        store: Option<String>,
        /// Its file in that store
        #[arg(long, requires = "store")]
        file: Option<String>,
        /// Its root hash, as `imprint-agent inspect` prints it
        #[arg(long)]
        root: String,
    },
    /// Remove an image, and its file if that is in the controller's own store
    Rm {
        /// Which
        name: String,
        /// Only take it out of the catalogue
        #[arg(long)]
        keep_file: bool,
    },
}

pub(super) async fn list(client: &Client, args: &ListArgs) -> anyhow::Result<()> {
    let images: Vec<ImageView> = client.get("/v1/images").await?;
    if args.json {
        return table::json(&images);
    }
    let size = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), table::bytes);
    let row = |image: ImageView| {
        vec![
            image.name,
            size(image.disk_bytes),
            size(image.used_bytes),
            size(image.stored_bytes),
            image.host.unwrap_or_else(|| "-".into()),
            image.created,
            image.store.unwrap_or(image.url),
        ]
    };
    let header = ["NAME", "DISK", "USED", "IMAGE", "HOST", "CREATED", "STORE"];
    table::print(&header, &images.into_iter().map(row).collect::<Vec<_>>())
}

pub(super) async fn run(client: &Client, command: ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Show { name, json } => {
            let image: ImageView = client.get(&format!("/v1/images/{}", segment(&name)?)).await?;
            if json {
                return table::json(&image);
            }
            let size = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), table::bytes);
            let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
            table::put(&format!(
                "name     {}\nstore    {}\nurl      {}\nroot     {}\nid       {}\ndisk     {}\nused     {}\nimage    {}\nhost     {}\njob      {}\ncreated  {}\n",
                image.name,
                text(image.store),
                image.url,
                image.root,
                text(image.image_id),
                size(image.disk_bytes),
                size(image.used_bytes),
                size(image.stored_bytes),
                text(image.host),
                text(image.job.map(|job| job.to_string())),
                image.created,
            ))
        }
        ImageCommand::Add { name, url, store, file, root } => {
            let image = AddImage {
                name: name.parse()?,
                url: url.map(|url| url.parse()).transpose()?,
                store: store.map(|store| store.parse()).transpose()?,
                file: file.map(|file| file.parse()).transpose()?,
                root,
            };
            client.done(client.request(Method::POST, "/v1/images").json(&image)).await
        }
        ImageCommand::Rm { name, keep_file } => {
            let path = format!("/v1/images/{}?keep_file={keep_file}", segment(&name)?);
            client.done(client.request(Method::DELETE, &path)).await
        }
    }
}
