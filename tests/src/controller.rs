//! The real controller in the lab: `imprint serve` on the lab's bridge, spoken to by the real `imprint` command.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Programs;
use crate::net::{BRIDGE, Network};
use crate::process::Server;
use crate::{command, project};

/// How long the controller may take to listen: five times what was measured, and a look for rival DHCP servers.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// The port of its API.
const HTTPS_PORT: u16 = 8443;

/// Builds the `imprint` program; its path.
///
/// # Errors
/// If it does not compile.
pub fn build() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--package", "controller"]).current_dir(project::root());
    command::show(cargo.env("CARGO_TARGET_DIR", project::target())).context("building imprint")?;
    Ok(project::target().join("debug/imprint"))
}

/// A controller. Its data folder outlives its process, so that it can be killed and started again.
#[derive(Debug)]
pub struct Controller {
    server: Option<Server>,
    programs: Programs,
    store_url: String,
    folder: PathBuf,
    log_filter: &'static str,
}

impl Controller {
    /// Starts a controller with all of its state in `folder`. `store_url` is where captures go.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start(
        network: &Network,
        programs: &Programs,
        store_url: &str,
        folder: &Path,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let mut controller = Self {
            server: None,
            programs: programs.clone(),
            store_url: store_url.to_owned(),
            folder: folder.to_owned(),
            log_filter: "info,sqlx=warn",
        };
        controller.restart(network)?;
        Ok(controller)
    }

    /// Starts it, again after [`kill`](Self::kill) or [`stop`](Self::stop).
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart(&mut self, network: &Network) -> Result<()> {
        let mut serve = network.command(&self.programs.imprint.to_string_lossy());
        serve.args(["serve", "--interface", BRIDGE, "--kernel-args", "console=ttyS0"]);
        serve.arg("--data").arg(self.data()).arg("--boot-dir").arg(&self.programs.boot);
        serve.arg("--agent").arg(&self.programs.agent);
        serve.args(["--store-url", &self.store_url]);
        serve.arg("--run-dir").arg(self.folder.join("run")).env("IMPRINT_LOG", self.log_filter);
        let mut server = Server::start("imprint serve", &mut serve, &self.log())?;
        server.wait_ready(READY_LIMIT, || {
            self.client_file().is_file() && network.is_listening(HTTPS_PORT)
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// Stops it and starts it again, with all that it can say in its log.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn restart_talkative(&mut self, network: &Network) -> Result<()> {
        self.stop();
        self.log_filter = "trace";
        self.restart(network)
    }

    /// Kills it as kill -9 does.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().map_or(Ok(()), Server::kill)
    }

    /// Ends it as an administrator would.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("serve.log")
    }

    /// The folder of its own image store.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data().join("images")
    }

    /// The folder of everything that it keeps, its log among it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The file with which its own machine's administrator gets in.
    #[must_use]
    pub fn client_file(&self) -> PathBuf {
        self.data().join("client.json")
    }

    /// An `imprint` command against this controller.
    #[must_use]
    pub fn imprint(&self, network: &Network, args: &[&str]) -> Command {
        let mut imprint = network.command(&self.programs.imprint.to_string_lossy());
        imprint.args(args).arg("--config").arg(self.client_file());
        imprint
    }

    /// Runs an `imprint` command and returns what it prints.
    ///
    /// # Errors
    /// If its exit code is not 0.
    pub fn ask(&self, network: &Network, args: &[&str]) -> Result<String> {
        command::output(&mut self.imprint(network, args))
    }

    /// Runs an `imprint … --json` command.
    ///
    /// # Errors
    /// If its exit code is not 0, or it prints anything but JSON.
    pub fn ask_json(&self, network: &Network, args: &[&str]) -> Result<Value> {
        let text = self.ask(network, &[args, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("reading JSON from imprint {args:?}"))
    }
}
