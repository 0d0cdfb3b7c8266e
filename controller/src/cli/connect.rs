//! The client's side of the API: where the controller is, how it is known, who we are.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use key_pin::WrongKey;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::Problem;
use crate::serve::DEFAULT_DATA;
use crate::tls::pinned_client;

/// A controller that takes no connection for so long is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// An answer may need a BMC's.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(160);

/// What `imprint serve` writes to `client.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct ClientFile {
    /// `https://A:P`.
    pub url: String,
    /// Pin of the controller's key.
    pub pin: String,
    /// API token.
    pub token: String,
}

impl std::fmt::Debug for ClientFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientFile")
            .field("url", &self.url)
            .field("pin", &self.pin)
            .field("token", &"…")
            .finish()
    }
}

/// How to reach the controller.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// File with url, pin and token, as the controller writes it to its data folder [default: /var/lib/imprint/client.json]
    #[arg(long, global = true, env = "IMPRINT_CONFIG")]
    config: Option<PathBuf>,
    /// URL of the controller, in place of the file's
    #[arg(long, global = true, value_name = "URL", env = "IMPRINT_CONTROLLER")]
    controller: Option<String>,
    /// Pin of the controller's key, in place of the file's
    #[arg(long, global = true, env = "IMPRINT_PIN")]
    pin: Option<String>,
    /// File with the API token, in place of the file's
    #[arg(long, global = true, env = "IMPRINT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

/// A connection to the controller.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    file: ClientFile,
    /// The key of a server that is not the controller.
    wrong_key: WrongKey,
}

impl Client {
    /// From flags, environment and file, in this order.
    ///
    /// # Errors
    /// When something is missing or malformed. Nothing is sent.
    pub fn new(connection: &Connection) -> anyhow::Result<Self> {
        let default = Path::new(DEFAULT_DATA).join("client.json");
        let path = connection.config.as_ref().unwrap_or(&default);
        let complete = connection.controller.is_some()
            && connection.pin.is_some()
            && connection.token_file.is_some();
        let mut file = if complete {
            ClientFile { url: String::new(), pin: String::new(), token: String::new() }
        } else {
            let text = std::fs::read(path).with_context(|| {
                format!(
                    "reading {} (give --config FILE, or --controller, --pin and --token-file)",
                    path.display()
                )
            })?;
            serde_json::from_slice(&text).with_context(|| {
                format!("reading {}: it must be JSON with url, pin and token", path.display())
            })?
        };
        if let Some(url) = &connection.controller {
            file.url.clone_from(url);
        }
        if let Some(pin) = &connection.pin {
            file.pin.clone_from(pin);
        }
        if let Some(path) = &connection.token_file {
            let token = std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?;
            token.trim().clone_into(&mut file.token);
        }
        if !file.url.starts_with("https://") {
            bail!("the controller's URL must begin with https://, not {:?}", file.url);
        }
        let wrong_key = WrongKey::default();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(pinned_client(&file.pin, &wrong_key)?)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .build()
            .context("setting up the connection")?;
        Ok(Self { http, file, wrong_key })
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.file.url.trim_end_matches('/'));
        self.http.request(method, url).bearer_auth(&self.file.token)
    }

    pub(super) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let response = request.send().await.map_err(|error| {
            let cause = match *self.wrong_key.lock().unwrap_or_else(PoisonError::into_inner) {
                Some(found) => format!(
                    "its key has the pin {found}, not {}: this is not the controller that was meant",
                    self.file.pin
                ),
                None => crate::error_chain(&error.without_url()),
            };
            anyhow!("asking the controller at {}: {cause}", self.file.url)
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        match response.json::<Problem>().await {
            Ok(problem) => bail!("{} ({})", problem.detail, problem.code),
            Err(_) => bail!("the controller answered {status}"),
        }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(self.request(Method::GET, path)).await
    }

    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> anyhow::Result<T> {
        let response = self.send(request.timeout(ANSWER_LIMIT)).await?;
        response.json().await.context("reading the controller's answer (is it of another version?)")
    }

    pub(super) async fn done(&self, request: RequestBuilder) -> anyhow::Result<()> {
        self.send(request.timeout(ANSWER_LIMIT)).await.map(drop)
    }
}

/// A name as a path segment: what names may hold needs no escaping, anything else cannot be one.
pub(super) fn segment(name: &str) -> anyhow::Result<&str> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || !name.bytes().all(fine) || name.contains("..") {
        bail!("{name:?} is not a name: a-z, 0-9, '.', '_' and '-'");
    }
    Ok(name)
}
