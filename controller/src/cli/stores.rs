//! `imprint store`.

use std::path::{Path, PathBuf};

use agent_api::{SecretText, StoreReport};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use reqwest::Method;

use super::connect::{Client, segment};
use super::table;
use crate::api::files::FileView;
use crate::api::stores::{NewStore, StoreChange, StoreView};

#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Give a name to a folder on a server, with what lets agents in
    Add(Box<AddArgs>),
    /// List stores
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a store
    Show {
        /// Which
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write, read, publish and remove a probe, from the controller's machine; exit code 1 if that fails
    Check {
        /// Which
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the files of the controller's own store, those that are being written too
    Files {
        /// Which
        #[arg(default_value = crate::db::LOCAL)]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change what lets agents into a store: a new password, another user, a token or a key
    Set {
        /// Which
        name: String,
        /// File with what changes: lines of user=, domain=, password=, token= or tls_key=, as for `imprint-agent --credentials`
        #[arg(long, value_name = "FILE")]
        credentials: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a file of the controller's own store, or with --upload one that is being written
    RmFile {
        /// Which file, as `imprint store files` shows it
        file: String,
        /// End this writing of it: what was written is removed, and its writer fails
        #[arg(long, value_name = "UPLOAD")]
        upload: Option<String>,
        /// In which store
        #[arg(long, default_value = crate::db::LOCAL)]
        store: String,
    },
    /// Forget a store and its credentials; its files stay
    Rm {
        /// Which
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// What it is called
    name: String,
    /// Where it is: nfs://HOST/EXPORT/FOLDER (nfs4:// for servers without version 3), smb://HOST/SHARE/FOLDER, http(s)://HOST/FOLDER
    url: String,
    /// Who agents are there (smb, https)
    #[arg(long)]
    user: Option<String>,
    /// The user's Windows domain (smb)
    #[arg(long, requires = "user")]
    domain: Option<String>,
    /// File with the user's password (first line)
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// File with a bearer token (https), in place of user and password
    // Not `--token-file`: that is the controller's own, for every command, and clap would give both the same value.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    store_token_file: Option<PathBuf>,
    /// The server is the one with this key, whoever vouches for it: SHA-256 in 64 hex digits (https)
    #[arg(long, value_name = "PIN")]
    tls_key: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The first line of a file with a secret.
fn first_line(path: &Path) -> anyhow::Result<SecretText> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    match text.lines().next().unwrap_or_default() {
        "" => bail!("the first line of {} is empty", path.display()),
        line => Ok(SecretText::from(line.to_owned())),
    }
}

/// What a file of credentials says. Messages name its lines by number: what is in them may be a secret.
fn change_of(path: &Path) -> anyhow::Result<StoreChange> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut change = StoreChange::default();
    // Editors of Windows put a mark before the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = format!("line {} of {}", number + 1, path.display());
        let Some((key, value)) = line.split_once('=') else {
            bail!("{at} is not KEY=VALUE; a file for one store has no sections");
        };
        let value = value.to_owned();
        let is_new = match key.trim_end() {
            "user" | "username" => change.user.replace(value).is_none(),
            "domain" | "dom" | "workgroup" => change.domain.replace(value).is_none(),
            "password" | "pass" => change.password.replace(SecretText::from(value)).is_none(),
            "token" => change.token.replace(SecretText::from(value)).is_none(),
            "tls_key" => change.tls_key.replace(value).is_none(),
            _ => bail!("{at} begins with none of user=, domain=, password=, token=, tls_key="),
        };
        if !is_new {
            bail!("{at} says a second time what another line says");
        }
    }
    Ok(change)
}

pub(super) async fn run(client: &Client, command: StoreCommand) -> anyhow::Result<()> {
    match command {
        StoreCommand::Add(args) => {
            let secret = |path: Option<PathBuf>| path.as_deref().map(first_line).transpose();
            let store = NewStore {
                name: args.name.parse()?,
                url: args.url.parse()?,
                user: args.user,
                domain: args.domain,
                password: secret(args.password_file)?,
                token: secret(args.store_token_file)?,
                tls_key: args.tls_key,
            };
            let made: StoreView =
                client.json(client.request(Method::POST, "/v1/stores").json(&store)).await?;
            if args.json { table::json(&made) } else { show(&made) }
        }
        StoreCommand::List { json } => {
            let stores: Vec<StoreView> = client.get("/v1/stores").await?;
            if json {
                return table::json(&stores);
            }
            let row = |store: StoreView| {
                vec![store.name.clone(), kind(&store), credentials(&store), store.url]
            };
            let header = ["NAME", "KIND", "CREDENTIALS", "URL"];
            table::print(&header, &stores.into_iter().map(row).collect::<Vec<_>>())
        }
        StoreCommand::Show { name, json } => {
            let store: StoreView = client.get(&format!("/v1/stores/{}", segment(&name)?)).await?;
            if json { table::json(&store) } else { show(&store) }
        }
        StoreCommand::Check { name, json } => {
            let path = format!("/v1/stores/{}/check", segment(&name)?);
            let report: StoreReport = client.json(client.request(Method::POST, &path)).await?;
            if json {
                table::json(&report)?;
            } else {
                table::put(&check_text(&report))?;
            }
            match report.failure {
                Some(failure) => bail!("store {name} failed ({})", failure.kind),
                None => Ok(()),
            }
        }
        StoreCommand::Files { name, json } => {
            let path = format!("/v1/stores/{}/files", segment(&name)?);
            let files: Vec<FileView> = client.get(&path).await?;
            if json {
                return table::json(&files);
            }
            let row = |file: FileView| {
                let state = if file.is_partial { "being written" } else { "finished" };
                let size = i64::try_from(file.len_bytes).unwrap_or(i64::MAX);
                let upload = file.upload.unwrap_or_else(|| "-".to_owned());
                let since = file.begun.unwrap_or_else(|| "-".to_owned());
                vec![file.name, table::bytes(size), state.to_owned(), file.modified, since, upload]
            };
            let header = ["FILE", "SIZE", "STATE", "MODIFIED", "BEGUN", "UPLOAD"];
            table::print(&header, &files.into_iter().map(row).collect::<Vec<_>>())
        }
        StoreCommand::Set { name, credentials, json } => {
            let change = change_of(&credentials)?;
            let path = format!("/v1/stores/{}", segment(&name)?);
            let store: StoreView =
                client.json(client.request(Method::PATCH, &path).json(&change)).await?;
            if json { table::json(&store) } else { show(&store) }
        }
        StoreCommand::RmFile { file, upload, store } => {
            let mut path = format!("/v1/stores/{}/files/{}", segment(&store)?, segment(&file)?);
            if let Some(upload) = upload {
                path.push_str(&format!("/uploads/{}", segment(&upload)?));
            }
            client.done(client.request(Method::DELETE, &path)).await
        }
        StoreCommand::Rm { name } => {
            client
                .done(client.request(Method::DELETE, &format!("/v1/stores/{}", segment(&name)?)))
                .await
        }
    }
}

fn kind(store: &StoreView) -> String {
    if store.is_embedded {
        return "own".to_owned();
    }
    store.url.split_once("://").map_or("path", |(scheme, _)| scheme).to_owned()
}

fn credentials(store: &StoreView) -> String {
    match (&store.user, store.has_credentials) {
        (Some(user), _) => format!("user {user}"),
        (None, true) => "token".to_owned(),
        (None, false) => "-".to_owned(),
    }
}

fn check_text(report: &StoreReport) -> String {
    let size = |bytes: u64| table::bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
    let mut text = String::new();
    for line in report.facts.iter().flat_map(|facts| facts.lines(size)) {
        text.push_str(&format!("store    {line}\n"));
    }
    for done in &report.done {
        text.push_str(&format!("ok       {done}\n"));
    }
    let rate = |bytes: Option<u64>| {
        bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{}/s", size(bytes)))
    };
    text.push_str(&format!(
        "probe    {}, written at {}, read at {}\n",
        size(report.probe_bytes),
        rate(report.write_bytes_per_second),
        rate(report.read_bytes_per_second),
    ));
    if let (Some(step), Some(failure)) = (&report.failed_at, &report.failure) {
        text.push_str(&format!("FAILED   {step}: {} [{}]\n", failure.message, failure.kind));
    }
    text
}

fn show(store: &StoreView) -> anyhow::Result<()> {
    let mut text = format!(
        "name         {}\nkind         {}\nurl          {}\ncredentials  {}\ncreated      {}\n",
        store.name,
        kind(store),
        store.url,
        credentials(store),
        store.created,
    );
    if let Some(domain) = &store.domain {
        text.push_str(&format!("domain       {domain}\n"));
    }
    if let Some(key) = &store.tls_key {
        text.push_str(&format!("tls key      {key}\n"));
    }
    if let Some(bytes) = store.available_bytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        text.push_str(&format!("room         {}\n", table::bytes(bytes)));
    }
    table::put(&text)
}
