//! What a machine fetches before its agent runs: script, kernel, initramfs, ticket. Plain HTTP, since firmware speaks no more.
//!
//! Nothing here is worth stealing for long: the script holds the controller's address and pin, the ticket one redemption for one job.
//! Only a host with a job that wants its agent gets either; every other machine, and every doubt, gets a script that boots locally.

pub mod script;
pub mod segment;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;
use tower_http::services::ServeFile;

use crate::context::Controller;
use crate::db::{DbError, Host};
use crate::job::Job;
use crate::names::{Mac, machine_uuid};
use crate::secret::Secret;
use agent_api::Ticket;

/// A machine whose agent was heard of within this time is not booting: it runs. Two heartbeats and a half.
pub const SILENCE_BEFORE_REBOOT: Duration = Duration::from_secs(25);

/// The routes of the HTTP listener.
pub fn router(controller: Arc<Controller>) -> Router {
    Router::new()
        .route("/boot/ipxe", get(ipxe))
        .route("/boot/ticket", get(ticket))
        .route("/boot/kernel", get(kernel))
        .route("/boot/initrd", get(initrd))
        .route("/boot/{loader}", get(loader))
        .route("/enrol", get(enrol))
        .with_state(controller)
}

/// Who asks. Both come from iPXE and may be anything.
#[derive(Debug, Deserialize)]
struct Asker {
    #[serde(default)]
    mac: String,
    #[serde(default)]
    uuid: String,
}

/// What the asker is to us.
enum Verdict {
    /// No host of ours.
    Stranger,
    /// A host that has nothing to do here.
    Local(&'static str),
    /// A host whose job wants its agent now.
    Agent(Box<Host>, Box<Job>),
}

async fn judge(controller: &Controller, asker: &Asker, patient: bool) -> Result<Verdict, DbError> {
    let Ok(mac) = asker.mac.parse::<Mac>() else {
        return Ok(Verdict::Local("no MAC address was given"));
    };
    let Some(host) = controller.db.host_by_mac(mac).await? else {
        controller.db.see_machine(mac, machine_uuid(&asker.uuid).as_deref()).await?;
        return Ok(Verdict::Stranger);
    };
    let Some(mut job) = controller.db.active_job_of(host.id).await? else {
        return Ok(Verdict::Local("no job is armed"));
    };
    if !job.may_boot() || !controller.boots_agents() {
        return Ok(Verdict::Local("its job does not want the agent now"));
    }
    if controller.db.session_of_job(job.id).await?.is_some() {
        // An agent has checked in. Either the machine rebooted or somebody else asks in its name: the silence of its agent tells.
        let asked = controller.live.heard_count(job.id);
        loop {
            let silence = controller.live.silence(job.id);
            if silence >= SILENCE_BEFORE_REBOOT {
                break;
            }
            if !patient {
                return Ok(Verdict::Local("its agent is running"));
            }
            tokio::time::sleep(SILENCE_BEFORE_REBOOT.saturating_sub(silence)).await;
            if controller.live.heard_count(job.id) != asked {
                let alarm = "boot files were asked for in this host's name while its agent runs";
                controller.db.note(job.id, "alarm", "controller", alarm).await?;
                controller.live.ring(job.id);
                return Ok(Verdict::Local("its agent is running"));
            }
        }
        job = controller.db.job(job.id).await?;
        if !job.may_boot() {
            return Ok(Verdict::Local("its job does not want the agent now"));
        }
    }
    Ok(Verdict::Agent(Box::new(host), Box::new(job)))
}

async fn ipxe(State(controller): State<Arc<Controller>>, Query(asker): Query<Asker>) -> Response {
    let text = match judge(&controller, &asker, true).await {
        Ok(Verdict::Agent(host, job)) => {
            tracing::info!(host = host.name, job = job.id, "boot script: agent");
            let mac = asker.mac.parse().unwrap_or(host.macs[0]);
            script::agent(&controller.boot, &host, &job, mac).unwrap_or_else(|error| {
                tracing::error!(host = host.name, %error, "no boot script");
                script::local("the controller has a problem")
            })
        }
        Ok(Verdict::Stranger) => script::local("imprint does not know this machine"),
        Ok(Verdict::Local(why)) => script::local(why),
        Err(error) => {
            tracing::error!(error = %crate::error_chain(&error), "no boot script");
            script::local("the controller has a problem")
        }
    };
    plain(text)
}

async fn enrol(State(controller): State<Arc<Controller>>, Query(asker): Query<Asker>) -> Response {
    if let Ok(mac) = asker.mac.parse::<Mac>() {
        let known = controller.db.host_by_mac(mac).await;
        let uuid = machine_uuid(&asker.uuid);
        if matches!(known, Ok(None))
            && let Err(error) = controller.db.see_machine(mac, uuid.as_deref()).await
        {
            tracing::error!(error = %crate::error_chain(&error), "machine not remembered");
        }
    }
    plain(script::local("this machine was noted"))
}

async fn ticket(State(controller): State<Arc<Controller>>, Query(asker): Query<Asker>) -> Response {
    let minted = async {
        let Verdict::Agent(host, job) = judge(&controller, &asker, false).await? else {
            return Ok(None);
        };
        let secret = Secret::random();
        let minted = controller.db.mint_ticket(job.id, &secret.hash()).await?;
        controller.live.ring(job.id);
        Ok::<_, DbError>(minted.map(|boot| {
            tracing::info!(host = host.name, job = job.id, boot, "ticket minted");
            segment::ticket(&Ticket { host: host.name.clone(), secret: secret.expose().to_owned() })
        }))
    };
    match minted.await {
        Ok(Some(bytes)) => (
            [
                (header::CONTENT_TYPE, "application/octet-stream"),
                (header::CACHE_CONTROL, "no-store"),
            ],
            bytes,
        )
            .into_response(),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            tracing::error!(error = %crate::error_chain(&error), "no ticket");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn kernel(State(controller): State<Arc<Controller>>, request: Request) -> Response {
    serve(controller.boot.files.as_ref().map(|files| files.kernel.clone()), request).await
}

async fn initrd(State(controller): State<Arc<Controller>>, request: Request) -> Response {
    serve(controller.boot.files.as_ref().map(|files| files.initrd.clone()), request).await
}

/// iPXE itself, for UEFI HTTP boot. Refused to a host without a job: its firmware goes on to the disk at once then, and needs no
/// iPXE for it. (Debian 12's, which stays the firmware's network driver while it leaves, was seen to hang the machine in doing so.)
async fn loader(
    State(controller): State<Arc<Controller>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    axum::extract::Path(name): axum::extract::Path<String>,
    request: Request,
) -> Response {
    let idle = match peer.ip().to_canonical() {
        IpAddr::V4(ip) => controller.db.is_idle_address(ip).await,
        IpAddr::V6(_) => Ok(false),
    };
    match idle {
        Ok(false) => {}
        Ok(true) => return (StatusCode::NOT_FOUND, "no job is armed\n").into_response(),
        Err(error) => {
            tracing::error!(error = %crate::error_chain(&error), "no loader");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    }
    let known = crate::dhcp::LOADERS.contains(&name.as_str());
    serve(controller.boot.loader_dir.as_ref().filter(|_| known).map(|dir| dir.join(name)), request)
        .await
}

async fn serve(path: Option<std::path::PathBuf>, request: Request) -> Response {
    let Some(path) = path else { return StatusCode::NOT_FOUND.into_response() };
    match ServeFile::new(path).try_call(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            tracing::error!(%error, "boot file not readable");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

fn plain(text: String) -> Response {
    let mut response = text.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=us-ascii"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
