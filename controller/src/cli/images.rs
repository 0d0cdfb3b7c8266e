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
        /// Where it lies
        url: String,
        /// Its root hash, as `imprint-agent inspect` prints it
        #[arg(long)]
        root: String,
    },
    /// Take an image out of the catalogue; its file stays
    Rm {
        /// Which
        name: String,
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
            image.url,
        ]
    };
    let header = ["NAME", "DISK", "USED", "IMAGE", "HOST", "CREATED", "URL"];
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
                "name     {}\nurl      {}\nroot     {}\nid       {}\ndisk     {}\nused     {}\nimage    {}\nhost     {}\njob      {}\ncreated  {}\n",
                image.name,
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
        ImageCommand::Add { name, url, root } => {
            let image = AddImage { name: name.parse()?, url: url.parse()?, root };
            client.done(client.request(Method::POST, "/v1/images").json(&image)).await
        }
        ImageCommand::Rm { name } => {
            client
                .done(client.request(Method::DELETE, &format!("/v1/images/{}", segment(&name)?)))
                .await
        }
    }
}
