//! The controller's own store beside curl, which speaks to the same server by the same requests: the upload in pieces of 64 MiB over one
//! connection, `commit`, and reading by one GET. So both pay for the same TLS and the same `fsync`; the difference is the client's.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;

use super::super::Bench;
use super::super::report::{Figure, mega};
use super::super::run::timed;
use super::{Pair, Rates, TIME_GOAL, noise, write_secret};
use crate::net::{ADDRESS, BRIDGE, Network};
use crate::process::Server;
use crate::{command, project};

const HTTPS_PORT: u16 = 8443;
/// The most that one request appends.
const PIECE_MIB: u64 = 64;
/// How long the controller may take to listen.
const READY_LIMIT: Duration = Duration::from_secs(30);

impl Bench<'_> {
    /// The controller's own store.
    pub(super) fn embedded(&self, network: &Network, figures: &mut Vec<Figure>) -> Result<()> {
        let folder = tempfile::tempdir_in("/dev/shm").context("making a folder in memory")?;
        let folder = folder.path();
        let (_server, token, pin) = start(network, &self.agent, folder)?;
        let files = format!("https://{ADDRESS}:{HTTPS_PORT}/v1/stores/local/files");
        let ours_file = folder.join("ours");
        write_secret(&ours_file, &format!("token={token}\ntls_key={pin}\n"))?;
        let header = folder.join("header");
        write_secret(&header, &format!("Authorization: Bearer {token}\n"))?;

        let mib = self.probe_mib();
        let pieces: Vec<PathBuf> =
            (0..mib / PIECE_MIB).map(|number| folder.join(format!("piece{number}"))).collect();
        ensure!(!pieces.is_empty(), "the probe is shorter than a piece");
        for piece in &pieces {
            noise(piece, PIECE_MIB)?;
        }
        let curl = format!(
            "curl -sSfk --pinnedpubkey sha256//{} -H @{}",
            base64_of(&pin)?,
            header.display()
        );
        let run = |words: &str| {
            let script = format!("ip netns exec {} {words}", network.name());
            timed(self.memory.path(), &script).map(|(run, _)| run)
        };
        let theirs = || {
            let id = uuid::Uuid::new_v4();
            let upload = format!("{files}/peer/uploads/{id}");
            let mut put = format!("{curl} -o /dev/null -X PUT {upload}");
            for (number, piece) in pieces.iter().enumerate() {
                let offset = (number as u64 * PIECE_MIB) << 20;
                let again = next(&curl);
                write!(
                    put,
                    " {again} -X PATCH -H 'Upload-Offset: {offset}' -H Expect: -T {} {upload}",
                    piece.display()
                )?;
            }
            write!(put, " {} -X POST {upload}/commit", next(&curl))?;
            let put = run(&put)?;
            run(&format!("{curl} -o /dev/null -X POST {upload}/publish"))?;
            let get = || run(&format!("{curl} -o /dev/null {files}/peer"));
            let gets = [get()?, get()?];
            run(&format!("{curl} -o /dev/null -X DELETE {files}/peer"))?;
            let bytes = mega(mib << 20) * 1e6;
            Ok(Rates {
                write: bytes / put.wall_s,
                read: bytes / gets[0].wall_s.min(gets[1].wall_s),
                cpu_s: put.cpu_s + gets[0].cpu_s + gets[1].cpu_s,
            })
        };
        let with = format!("--credentials {}", ours_file.display());
        let pair = Pair {
            what: "The controller's own store",
            peer: "curl, by the same requests",
            goal: TIME_GOAL,
            has_write: true,
        };
        self.pair(&pair, &|| self.ours(network, &files, mib, &with), &theirs, figures)
    }
}

/// The same program's next request, over the same connection: options do not carry over.
fn next(curl: &str) -> String {
    let options = curl.strip_prefix("curl ").unwrap_or(curl);
    format!("--next {options} -o /dev/null")
}

/// A controller without machines, its images in memory; with it the token and the pin that let a client in.
fn start(network: &Network, agent: &Path, folder: &Path) -> Result<(Server, String, String)> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "--package", "controller"]);
    cargo.current_dir(project::root()).env("CARGO_TARGET_DIR", project::target());
    command::show(&mut cargo).context("building imprint")?;
    let imprint = project::target().join("release/imprint");
    let mut serve = network.command(&imprint.to_string_lossy());
    serve.args(["serve", "--interface", BRIDGE, "--no-dhcp", "--http-port", "8080"]);
    serve.arg("--data").arg(folder.join("data")).arg("--run-dir").arg(folder.join("run"));
    serve.arg("--agent").arg(agent).env("IMPRINT_LOG", "warn");
    let client = folder.join("data/client.json");
    let mut server = Server::start("imprint serve", &mut serve, &folder.join("serve.log"))?;
    server.wait_ready(READY_LIMIT, || client.is_file() && network.is_listening(HTTPS_PORT))?;
    let text = fs::read(&client).with_context(|| format!("reading {}", client.display()))?;
    let client: serde_json::Value =
        serde_json::from_slice(&text).context("reading the controller's client file")?;
    let member = |name: &str| {
        let value = client[name].as_str().map(str::to_owned);
        value.with_context(|| format!("the controller's client file has no {name}"))
    };
    Ok((server, member("token")?, member("pin")?))
}

/// A pin as curl takes it.
fn base64_of(hex: &str) -> Result<String> {
    let digits =
        hex.as_bytes().chunks(2).map(std::str::from_utf8).collect::<Result<Vec<_>, _>>()?;
    let bytes: Vec<u8> = digits
        .into_iter()
        .map(|pair| u8::from_str_radix(pair, 16))
        .collect::<Result<_, _>>()
        .with_context(|| format!("{hex:?} is no hash"))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}
