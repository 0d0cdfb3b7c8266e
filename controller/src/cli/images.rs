//! `imprint images` and `imprint image`.

use std::time::Duration;

use agent_api::Rate;
use anyhow::bail;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;

use super::connect::{Client, segment};
use super::jobs::public_key;
use super::table;
use crate::api::images::{AddImage, ImageView};
use crate::api::inspection::ImageContent;
use crate::api::tasks::{CopyImage, TaskView, VerifyImage};
use crate::names::ImageName;

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
    /// Say what an image holds, as its file says: disk, partitions, filesystems
    Inspect {
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
    /// Copy an image into a store, as another image of the catalogue; waits for the end
    Copy {
        /// Which
        name: String,
        /// The store
        store: String,
        /// Name of the copy, and of its file [default: IMAGE-STORE, and the file's own name, of which its signature is]
        #[arg(long = "as", value_name = "NAME")]
        copy: Option<String>,
        /// Copy a delta image to where its base is not
        #[arg(long)]
        without_base: bool,
        /// Read and write no more bytes a second than this: K, M and G are powers of 1024, as in 400M
        #[arg(long, value_name = "RATE")]
        limit: Option<Rate>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Read all of an image from the controller's machine and compare its hashes; waits for the end
    Verify {
        /// Which
        name: String,
        /// Decompress too, and check the content hashes
        #[arg(long)]
        deep: bool,
        /// Read and write no more bytes a second than this: K, M and G are powers of 1024, as in 400M
        #[arg(long, value_name = "RATE")]
        limit: Option<Rate>,
        /// An image of the catalogue that is beneath this delta image and does not lie beside its delta; may be given several times
        #[arg(long, value_name = "IMAGE")]
        base: Vec<ImageName>,
        /// Refuse the image unless this minisign public key has signed it: the key, or the file that it is in
        #[arg(long, value_name = "KEY")]
        require_signature: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List copies and checks, those that have ended too
    Tasks {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a copy or a check
    Cancel {
        /// Number of the task
        task: u64,
    },
    /// Remove an image and its file; not while a job, a task or a delta image needs it
    Rm {
        /// Which
        name: String,
        /// Only take it out of the catalogue
        #[arg(long)]
        keep_file: bool,
    },
}

/// What is done while a task runs.
#[derive(Debug, Args)]
pub(super) struct Waiting {
    /// Do not wait: print the task
    #[arg(long)]
    no_wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How often a task is asked for.
const POLL: Duration = Duration::from_millis(300);

/// Waits for the end of a task, and shows how far it is.
async fn follow(client: &Client, mut task: TaskView, waiting: &Waiting) -> anyhow::Result<()> {
    let bar = ProgressBar::with_draw_target(
        None,
        if waiting.json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() },
    );
    let template = "{spinner} {prefix:<10} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {msg}";
    bar.set_style(
        ProgressStyle::with_template(template).expect("the template is a constant that parses"),
    );
    while task.state == "running" && !waiting.no_wait {
        bar.set_prefix(task.stage.clone().unwrap_or_default());
        bar.set_length(task.total_bytes);
        bar.set_position(task.done_bytes);
        bar.set_message(task.stalled.clone().unwrap_or_default());
        tokio::time::sleep(POLL).await;
        task = client.get(&format!("/v1/tasks/{}", task.id)).await?;
    }
    bar.finish_and_clear();
    if waiting.json {
        table::json(&task)?;
    }
    if let Some(why) = &task.failure_message {
        let kind = task.failure_kind.as_deref().unwrap_or("unknown");
        bail!("task {} ({}) failed: {why} [{kind}]", task.id, task.action);
    }
    if waiting.json {
        return Ok(());
    }
    let number = |key: &str| {
        let result = task.result.as_ref();
        let bytes = result.and_then(|result| result.pointer(key)?.as_i64());
        bytes.map_or_else(|| "-".to_owned(), table::bytes)
    };
    let text = match (&task.copy, task.state.as_str()) {
        (_, "running") => format!("task     {}\n", task.id),
        (Some(copy), _) => format!(
            "copied   {}, read again {}: all hashes right\nimage    {copy}\n{}",
            number("/stored_bytes"),
            number("/reread_bytes"),
            match task.result.as_ref().and_then(|result| result.get("signature")?.as_bool()) {
                Some(false) =>
                    "note     the signature was not copied: it is of the old name as well\n",
                _ => "",
            },
        ),
        (None, _) => format!("read     {}: all hashes right\n", number("/verified/stored_bytes")),
    };
    table::put(&text)
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
        ImageCommand::Inspect { name, json } => {
            let path = format!("/v1/images/{}/content", segment(&name)?);
            let content: ImageContent = client.get(&path).await?;
            if json {
                table::json(&content)
            } else {
                table::put(&format!("{}\n", content.described))
            }
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
        ImageCommand::Copy { name, store, copy, without_base, limit, waiting } => {
            let wish = CopyImage {
                store: store.parse()?,
                name: copy.map(|name| name.parse()).transpose()?,
                without_base,
                limit,
            };
            let path = format!("/v1/images/{}/copy", segment(&name)?);
            let task = client.json(client.request(Method::POST, &path).json(&wish)).await?;
            follow(client, task, &waiting).await
        }
        ImageCommand::Verify { name, deep, limit, base, require_signature, waiting } => {
            let path = format!("/v1/images/{}/verify", segment(&name)?);
            let require_signature = require_signature.as_deref().map(public_key).transpose()?;
            let wish = VerifyImage { deep, limit, base, require_signature };
            let task = client.json(client.request(Method::POST, &path).json(&wish)).await?;
            follow(client, task, &waiting).await
        }
        ImageCommand::Tasks { json } => {
            let tasks: Vec<TaskView> = client.get("/v1/tasks").await?;
            if json {
                return table::json(&tasks);
            }
            let row = |task: TaskView| {
                let share = match task.total_bytes {
                    0 => String::new(),
                    total => format!(" {} %", task.done_bytes.saturating_mul(100) / total),
                };
                let how = match (task.failure_kind, task.stage) {
                    (Some(kind), _) => kind,
                    (None, Some(stage)) if task.state == "running" => format!("{stage}{share}"),
                    _ => String::new(),
                };
                let copy = task.copy.unwrap_or_else(|| "-".into());
                vec![task.id.to_string(), task.action, task.image, copy, task.state, how]
            };
            let header = ["TASK", "ACTION", "IMAGE", "COPY", "STATE", "PROGRESS"];
            table::print(&header, &tasks.into_iter().map(row).collect::<Vec<_>>())
        }
        ImageCommand::Cancel { task } => {
            client.done(client.request(Method::DELETE, &format!("/v1/tasks/{task}"))).await
        }
        ImageCommand::Rm { name, keep_file } => {
            let path = format!("/v1/images/{}?keep_file={keep_file}", segment(&name)?);
            client.done(client.request(Method::DELETE, &path)).await
        }
    }
}
