//! Hosts and their power.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use agent_api::SecretText;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::ApiError;
use super::auth::Caller;
use crate::bmc::{Command, Power};
use crate::clock::rfc3339;
use crate::context::Controller;
use crate::db::{BmcRow, Host, HostChange, NewHost, SeenMachine};
use crate::host::{Finish, Firmware};
use crate::names::{FreeText, HostName, KernelArgs, Mac, machine_uuid};
use crate::secret::Secret;

/// UDP port of IPMI.
pub const IPMI_PORT: u16 = 623;
/// MAC addresses that one host may have.
const MACS_MAX: usize = 16;
/// Longest password that IPMI 2.0 knows.
const PASSWORD_MAX: usize = 20;

/// How to reach a host's BMC.
#[derive(Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "driver", rename_all = "snake_case", deny_unknown_fields)]
pub enum BmcRequest {
    /// Somebody presses the button. With braces, without which serde refuses no other member here.
    Manual {},
    /// IPMI 2.0.
    Ipmi {
        /// Address or name of the BMC.
        host: String,
        /// UDP port; left out: 623.
        #[serde(default)]
        port: Option<u16>,
        /// User.
        user: String,
        /// Password. Never shown again. Left out when a host is changed: stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>, write_only)]
        password: Option<SecretText>,
    },
}

impl std::fmt::Debug for BmcRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Manual {} => f.write_str("Manual"),
            Self::Ipmi { host, port, user, .. } => f
                .debug_struct("Ipmi")
                .field("host", host)
                .field("port", port)
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// A host to be.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AddHost {
    /// Name.
    pub name: HostName,
    /// MAC addresses; the first is the one that it usually boots from.
    pub macs: Vec<Mac>,
    /// Address that DHCP gives it. Left out: one of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub ip: Option<Ipv4Addr>,
    /// SMBIOS UUID. Left out: learned at the first check-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// BIOS or UEFI.
    #[serde(default)]
    pub firmware: Firmware,
    /// What it does after a job.
    #[serde(default)]
    pub finish: Finish,
    /// Added to the agent's kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_args: Option<KernelArgs>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<FreeText>,
    /// BMC. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<BmcRequest>,
}

/// What is to change of a host; what is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeHost {
    /// SMBIOS UUID; `forget` believes the machine's next check-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// BIOS or UEFI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// What it does after a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// Added to the agent's kernel command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_args: Option<KernelArgs>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<FreeText>,
    /// BMC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<BmcRequest>,
}

/// A host's BMC, without its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "driver", rename_all = "snake_case")]
pub enum BmcView {
    /// Somebody presses the button.
    Manual,
    /// IPMI 2.0.
    Ipmi {
        /// Address or name.
        host: String,
        /// UDP port.
        port: u16,
        /// User.
        user: String,
        /// Cipher suite that worked.
        cipher: Option<u8>,
        /// It refused user or password: nothing is sent until they change.
        refused: bool,
    },
}

/// A host.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostView {
    /// Name.
    pub name: String,
    /// MAC addresses.
    pub macs: Vec<Mac>,
    /// Address that DHCP gives it.
    #[schema(value_type = Option<String>)]
    pub ip: Option<Ipv4Addr>,
    /// SMBIOS UUID, given or learned.
    pub uuid: Option<String>,
    /// BIOS or UEFI.
    pub firmware: Firmware,
    /// What it does after a job.
    pub finish: Finish,
    /// Added to the agent's kernel command line.
    pub kernel_args: String,
    /// For people.
    pub notes: String,
    /// BMC.
    pub bmc: BmcView,
    /// The job that is under way on it.
    pub job: Option<i64>,
    /// When it was entered.
    pub created: String,
}

impl HostView {
    async fn new(controller: &Controller, host: Host) -> Result<Self, ApiError> {
        let job = controller.db.active_job_of(host.id).await?.map(|job| job.id);
        Ok(Self {
            name: host.name,
            macs: host.macs,
            ip: host.ip,
            uuid: host.uuid,
            firmware: host.firmware,
            finish: host.finish,
            kernel_args: host.kernel_args,
            notes: host.notes,
            bmc: match host.bmc {
                BmcRow::Manual => BmcView::Manual,
                BmcRow::Ipmi { host, port, user, cipher, refused, .. } => {
                    BmcView::Ipmi { host, port, user, cipher, refused }
                }
            },
            job,
            created: rfc3339(host.created_ms),
        })
    }
}

/// A machine that asked for an address or a boot script and is no host.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SeenView {
    /// MAC address.
    pub mac: String,
    /// SMBIOS UUID.
    pub uuid: Option<String>,
    /// When it was first seen.
    pub first: String,
    /// When it was last seen.
    pub last: String,
    /// How often.
    pub times: i64,
}

impl From<SeenMachine> for SeenView {
    fn from(seen: SeenMachine) -> Self {
        Self {
            mac: seen.mac,
            uuid: seen.uuid,
            first: rfc3339(seen.first_ms),
            last: rfc3339(seen.last_ms),
            times: seen.times,
        }
    }
}

/// Checks a BMC and seals its password; `before` is what is stored now.
fn bmc_row(
    controller: &Controller,
    name: &str,
    request: BmcRequest,
    before: Option<&BmcRow>,
) -> Result<BmcRow, ApiError> {
    let BmcRequest::Ipmi { host, port, user, password } = request else {
        return Ok(BmcRow::Manual);
    };
    let is_name = |text: &str| {
        !text.is_empty()
            && text.len() <= 253
            && !text.starts_with(['-', '.'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
    };
    if host.parse::<IpAddr>().is_err() && !is_name(&host) {
        return Err(ApiError::invalid(format!(
            "{host:?} is neither an address nor a name of a BMC"
        )));
    }
    let plain = |text: &str| !text.is_empty() && !text.chars().any(char::is_control);
    if !plain(&user) || user.len() > 16 || user.starts_with('-') {
        return Err(ApiError::invalid(
            "the BMC's user must be 1 to 16 characters, without control characters, not beginning with '-'",
        ));
    }
    let password = match (password, before) {
        (Some(password), _)
            if plain(password.expose()) && password.expose().len() <= PASSWORD_MAX =>
        {
            controller.bmcs.sealer().seal(name, &Secret::new(password.expose().to_owned()))
        }
        (Some(_), _) => {
            return Err(ApiError::invalid(
                "the BMC's password must be 1 to 20 characters (IPMI's limit), without control characters",
            ));
        }
        (None, Some(BmcRow::Ipmi { password, .. })) => password.clone(),
        (None, _) => return Err(ApiError::invalid("the BMC needs a password")),
    };
    Ok(BmcRow::Ipmi {
        host,
        port: port.unwrap_or(IPMI_PORT),
        user,
        password,
        cipher: None,
        refused: false,
    })
}

fn checked_uuid(text: &str) -> Result<String, ApiError> {
    machine_uuid(text)
        .ok_or_else(|| ApiError::invalid(format!("{text:?} is not the UUID of a machine")))
}

/// Lists the hosts.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts", responses((status = 200, description = "All hosts", body = Vec<HostView>)))]
pub(super) async fn list(
    State(controller): State<Arc<Controller>>,
) -> Result<Json<Vec<HostView>>, ApiError> {
    let mut views = Vec::new();
    for host in controller.db.hosts().await? {
        views.push(HostView::new(&controller, host).await?);
    }
    Ok(Json(views))
}

/// Enters a host.
#[utoipa::path(
    post, path = "/v1/hosts", tag = "hosts", request_body = AddHost,
    responses((status = 201, description = "Entered", body = HostView), (status = 409, description = "host_exists, mac_in_use, ip_in_use, pool_empty"), (status = 422, description = "invalid"))
)]
pub(super) async fn add(
    State(controller): State<Arc<Controller>>,
    body: Result<Json<AddHost>, JsonRejection>,
) -> Result<(StatusCode, Json<HostView>), ApiError> {
    let Json(new) = body?;
    if new.macs.is_empty() || new.macs.len() > MACS_MAX {
        return Err(ApiError::invalid("a host has 1 to 16 MAC addresses"));
    }
    let bmc = match new.bmc {
        Some(request) => bmc_row(&controller, new.name.as_str(), request, None)?,
        None => BmcRow::Manual,
    };
    let ip = match &controller.dhcp {
        Some(dhcp) => Some(dhcp.choose_ip(new.ip, &controller.db.hosts().await?)?),
        None => new.ip,
    };
    let host = NewHost {
        name: new.name.to_string(),
        macs: new.macs,
        ip,
        firmware: new.firmware,
        finish: new.finish,
        kernel_args: new.kernel_args.map(String::from).unwrap_or_default(),
        notes: new.notes.map(String::from).unwrap_or_default(),
        uuid: new.uuid.as_deref().map(checked_uuid).transpose()?,
        bmc,
    };
    let id = controller.db.add_host(&host).await?;
    let host = controller.db.host_by_id(id).await?;
    if let Some(dhcp) = &controller.dhcp {
        dhcp.set_host(&host)?;
    }
    tracing::info!(host = host.name, "host entered");
    Ok((StatusCode::CREATED, Json(HostView::new(&controller, host).await?)))
}

/// Shows a host.
#[utoipa::path(
    get, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path, description = "The host")),
    responses((status = 200, description = "The host", body = HostView), (status = 404, description = "No such host"))
)]
pub(super) async fn show(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<Json<HostView>, ApiError> {
    let host = controller.db.host(&name).await?;
    Ok(Json(HostView::new(&controller, host).await?))
}

/// Changes a host.
#[utoipa::path(
    patch, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path, description = "The host")), request_body = ChangeHost,
    responses((status = 200, description = "Changed", body = HostView), (status = 404, description = "No such host"), (status = 422, description = "invalid"))
)]
pub(super) async fn change(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
    body: Result<Json<ChangeHost>, JsonRejection>,
) -> Result<Json<HostView>, ApiError> {
    let Json(change) = body?;
    let before = controller.db.host(&name).await?;
    let uuid = match change.uuid.as_deref() {
        None => None,
        Some("forget") => Some(None),
        Some(text) => Some(Some(checked_uuid(text)?)),
    };
    let bmc =
        change.bmc.map(|bmc| bmc_row(&controller, &name, bmc, Some(&before.bmc))).transpose()?;
    let change = HostChange {
        firmware: change.firmware,
        finish: change.finish,
        kernel_args: change.kernel_args.map(String::from),
        notes: change.notes.map(String::from),
        uuid,
        bmc,
    };
    controller.db.change_host(&name, &change).await?;
    let host = controller.db.host(&name).await?;
    Ok(Json(HostView::new(&controller, host).await?))
}

/// Removes a host.
#[utoipa::path(
    delete, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path, description = "The host")),
    responses((status = 204, description = "Removed"), (status = 404, description = "No such host"), (status = 409, description = "host_busy"))
)]
pub(super) async fn remove(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let host = controller.db.host(&name).await?;
    controller.db.remove_host(&name).await?;
    if let Some(dhcp) = &controller.dhcp {
        dhcp.remove_host(&host)?;
    }
    tracing::info!(host = name, "host removed");
    Ok(StatusCode::NO_CONTENT)
}

/// Lists machines that asked for an address or a boot script and are no hosts, the newest first.
#[utoipa::path(get, path = "/v1/seen", tag = "hosts", responses((status = 200, description = "Machines", body = Vec<SeenView>)))]
pub(super) async fn seen(
    State(controller): State<Arc<Controller>>,
) -> Result<Json<Vec<SeenView>>, ApiError> {
    Ok(Json(controller.db.seen_machines().await?.into_iter().map(SeenView::from).collect()))
}

/// A host's power.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PowerView {
    /// `on` or `off`, as its BMC says.
    pub power: String,
}

/// What to do with a host's power.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum PowerVerb {
    /// Give power.
    On,
    /// Cut power.
    Off,
    /// Press the power button.
    Soft,
    /// Cut power and give it again.
    Cycle,
}

/// A wish for a host's power.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerRequest {
    /// What to do.
    pub action: PowerVerb,
}

/// Asks the BMC whether the host is on.
#[utoipa::path(
    get, path = "/v1/hosts/{name}/power", tag = "hosts", params(("name" = String, Path, description = "The host")),
    responses((status = 200, description = "Its power", body = PowerView), (status = 404, description = "No such host"), (status = 409, description = "no_bmc, bmc_refused"), (status = 502, description = "bmc_unreachable, bmc_failed"))
)]
pub(super) async fn power_status(
    State(controller): State<Arc<Controller>>,
    Path(name): Path<String>,
) -> Result<Json<PowerView>, ApiError> {
    let host = controller.db.host(&name).await?;
    let power = controller.bmcs.power(&host).await?;
    Ok(Json(PowerView { power: power.as_str().to_owned() }))
}

/// Switches a host. Refused while a job is under way on it.
#[utoipa::path(
    post, path = "/v1/hosts/{name}/power", tag = "hosts", params(("name" = String, Path, description = "The host")), request_body = PowerRequest,
    responses((status = 204, description = "The BMC took the command"), (status = 404, description = "No such host"), (status = 409, description = "host_busy, no_bmc, bmc_refused"), (status = 502, description = "bmc_unreachable, bmc_failed"))
)]
pub(super) async fn power(
    State(controller): State<Arc<Controller>>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Result<Json<PowerRequest>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(request) = body?;
    let host = controller.db.host(&name).await?;
    if let Some(job) = controller.db.active_job_of(host.id).await? {
        return Err(ApiError::conflict(
            "host_busy",
            format!("job {} is under way on host {name}: cancel it first", job.id),
        ));
    }
    let command = match request.action {
        PowerVerb::On => Command::On,
        PowerVerb::Off => Command::Off,
        PowerVerb::Soft => Command::Soft,
        // A cycle of a machine that is off does nothing on most BMCs.
        PowerVerb::Cycle if controller.bmcs.power(&host).await? == Power::Off => Command::On,
        PowerVerb::Cycle => Command::Cycle,
    };
    tracing::info!(host = name, by = caller.name, command = command.as_str(), "power");
    let action = controller.db.intend_power(host.id, None, 0, command.as_str()).await?;
    controller.bmcs.command(&host, command).await?;
    controller.db.power_done(action, "taken by the BMC").await?;
    Ok(StatusCode::NO_CONTENT)
}
