//! `imprint host`.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use agent_api::SecretText;
use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;

use super::connect::{Client, segment};
use super::table;
use crate::api::hosts::{
    AddHost, BmcRequest, BmcView, ChangeHost, HostView, IPMI_PORT, PowerRequest, PowerVerb,
    PowerView, SeenView,
};
use crate::host::{Finish, Firmware};
use crate::names::Mac;

/// Environment variable with a BMC's password.
const PASSWORD_VARIABLE: &str = "IMPRINT_BMC_PASSWORD";

#[derive(Debug, Subcommand)]
pub(super) enum HostCommand {
    /// Enter a host
    Add(AddArgs),
    /// Change a host; what is not given stays
    Set(SetArgs),
    /// List hosts
    List {
        /// List machines that asked for an address or a boot script and are no hosts
        #[arg(long)]
        seen: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a host
    Show {
        /// Which
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a host
    Rm {
        /// Which
        name: String,
    },
    /// Switch a host, or ask whether it is on
    Power {
        /// Which
        name: String,
        /// What to do
        action: PowerWord,
        /// Print JSON (of status)
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PowerWord {
    /// Give power
    On,
    /// Cut power
    Off,
    /// Press the power button
    Soft,
    /// Cut power and give it again
    Cycle,
    /// Ask
    Status,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// What it is called
    name: String,
    /// MAC address; again for further ones, the one that it boots from first
    #[arg(long, required = true)]
    mac: Vec<Mac>,
    /// Address that DHCP gives it [default: a free one of the pool]
    #[arg(long)]
    ip: Option<Ipv4Addr>,
    /// SMBIOS UUID [default: learned at the first check-in]
    #[arg(long)]
    uuid: Option<String>,
    /// How it boots
    #[arg(long, value_enum, default_value_t)]
    firmware: Firmware,
    /// What it does after a job
    #[arg(long, value_enum, default_value_t)]
    finish: Finish,
    /// Arguments for the agent's kernel, such as console=ttyS1
    #[arg(long, allow_hyphen_values = true)]
    kernel_args: Option<String>,
    /// Notes for people
    #[arg(long)]
    notes: Option<String>,
    #[command(flatten)]
    bmc: BmcArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// Which
    name: String,
    /// SMBIOS UUID; `forget` believes the machine's next check-in
    #[arg(long)]
    uuid: Option<String>,
    /// How it boots
    #[arg(long, value_enum)]
    firmware: Option<Firmware>,
    /// What it does after a job
    #[arg(long, value_enum)]
    finish: Option<Finish>,
    /// Arguments for the agent's kernel
    #[arg(long, allow_hyphen_values = true)]
    kernel_args: Option<String>,
    /// Notes for people
    #[arg(long)]
    notes: Option<String>,
    #[command(flatten)]
    bmc: BmcArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct BmcArgs {
    /// BMC: ipmi://ADDRESS[:PORT], or manual
    #[arg(long)]
    bmc: Option<String>,
    /// User of the BMC
    #[arg(long)]
    bmc_user: Option<String>,
    /// File with the BMC's password (first line); or set IMPRINT_BMC_PASSWORD
    #[arg(long)]
    bmc_password_file: Option<PathBuf>,
}

impl BmcArgs {
    fn password(&self) -> anyhow::Result<Option<SecretText>> {
        if let Some(path) = &self.bmc_password_file {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?;
            return Ok(Some(text.lines().next().unwrap_or_default().to_owned().into()));
        }
        Ok(std::env::var(PASSWORD_VARIABLE).ok().map(SecretText::from))
    }

    /// The BMC that is wanted; `before` fills in what is not given.
    fn request(&self, before: Option<&BmcView>) -> anyhow::Result<Option<BmcRequest>> {
        let given =
            self.bmc.is_some() || self.bmc_user.is_some() || self.bmc_password_file.is_some();
        if !given {
            return Ok(None);
        }
        let (host, port, user_before) = match (self.bmc.as_deref(), before) {
            (Some("manual"), _) => return Ok(Some(BmcRequest::Manual {})),
            (Some(url), before) => {
                let (host, port) = parse_bmc(url)?;
                let user = match before {
                    Some(BmcView::Ipmi { user, .. }) => Some(user.clone()),
                    _ => None,
                };
                (host, port, user)
            }
            (None, Some(BmcView::Ipmi { host, port, user, .. })) => {
                (host.clone(), Some(*port), Some(user.clone()))
            }
            (None, _) => bail!("which BMC? give --bmc ipmi://ADDRESS"),
        };
        let Some(user) = self.bmc_user.clone().or(user_before) else { bail!("give --bmc-user") };
        let password = self.password()?;
        if password.is_none() && before.is_none() {
            bail!("give --bmc-password-file, or set {PASSWORD_VARIABLE}");
        }
        Ok(Some(BmcRequest::Ipmi { host, port, user, password }))
    }
}

fn parse_bmc(url: &str) -> anyhow::Result<(String, Option<u16>)> {
    let Some(rest) = url.strip_prefix("ipmi://") else {
        bail!("--bmc {url:?}: it must be ipmi://ADDRESS[:PORT] or manual");
    };
    let rest = rest.trim_end_matches('/');
    if rest.contains(['@', '/']) {
        bail!("--bmc {url:?}: user and password are given by --bmc-user and --bmc-password-file");
    }
    if let Some(rest) = rest.strip_prefix('[') {
        let (host, tail) = rest.split_once(']').context("--bmc: a '[' without ']'")?;
        let port = tail
            .strip_prefix(':')
            .map(str::parse)
            .transpose()
            .context("--bmc: reading the port")?;
        return Ok((host.to_owned(), port));
    }
    match rest.split_once(':') {
        Some((host, port)) => {
            Ok((host.to_owned(), Some(port.parse().context("--bmc: reading the port")?)))
        }
        None => Ok((rest.to_owned(), None)),
    }
}

pub(super) async fn run(client: &Client, command: HostCommand) -> anyhow::Result<()> {
    match command {
        HostCommand::Add(args) => add(client, args).await,
        HostCommand::Set(args) => set(client, args).await,
        HostCommand::List { seen: true, json } => list_seen(client, json).await,
        HostCommand::List { seen: false, json } => list(client, json).await,
        HostCommand::Show { name, json } => {
            let host: HostView = client.get(&format!("/v1/hosts/{}", segment(&name)?)).await?;
            if json { table::json(&host) } else { show(host) }
        }
        HostCommand::Rm { name } => {
            client
                .done(client.request(Method::DELETE, &format!("/v1/hosts/{}", segment(&name)?)))
                .await
        }
        HostCommand::Power { name, action, json } => power(client, &name, action, json).await,
    }
}

async fn add(client: &Client, args: AddArgs) -> anyhow::Result<()> {
    let host = AddHost {
        name: args.name.parse()?,
        bmc: args.bmc.request(None)?,
        macs: args.mac,
        ip: args.ip,
        uuid: args.uuid,
        firmware: args.firmware,
        finish: args.finish,
        kernel_args: args.kernel_args.map(|text| text.parse()).transpose()?,
        notes: args.notes.map(|text| text.parse()).transpose()?,
    };
    let host: HostView = client.json(client.request(Method::POST, "/v1/hosts").json(&host)).await?;
    if args.json { table::json(&host) } else { show(host) }
}

async fn set(client: &Client, args: SetArgs) -> anyhow::Result<()> {
    let path = format!("/v1/hosts/{}", segment(&args.name)?);
    let before: HostView = client.get(&path).await?;
    let change = ChangeHost {
        uuid: args.uuid,
        firmware: args.firmware,
        finish: args.finish,
        kernel_args: args.kernel_args.map(|text| text.parse()).transpose()?,
        notes: args.notes.map(|text| text.parse()).transpose()?,
        bmc: args.bmc.request(Some(&before.bmc))?,
    };
    let host: HostView = client.json(client.request(Method::PATCH, &path).json(&change)).await?;
    if args.json { table::json(&host) } else { show(host) }
}

fn bmc_text(bmc: &BmcView) -> String {
    match bmc {
        BmcView::Manual => "manual".to_owned(),
        BmcView::Ipmi { host, port, refused, .. } => {
            let port = if *port == IPMI_PORT { String::new() } else { format!(":{port}") };
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            format!("ipmi://{host}{port}{}", if *refused { " (password refused)" } else { "" })
        }
    }
}

fn show(host: HostView) -> anyhow::Result<()> {
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let user = match &host.bmc {
        BmcView::Ipmi { user, .. } => format!(", user {user}"),
        BmcView::Manual => String::new(),
    };
    table::put(&format!(
        "name         {}\nmac          {}\nip           {}\nuuid         {}\nfirmware     {}\nbmc          {}{user}\nfinish       {}\nkernel args  {}\nnotes        {}\njob          {}\ncreated      {}\n",
        host.name,
        macs(&host.macs),
        text(host.ip.map(|ip| ip.to_string())),
        text(host.uuid),
        host.firmware.as_str(),
        bmc_text(&host.bmc),
        host.finish.as_str(),
        text(Some(host.kernel_args).filter(|args| !args.is_empty())),
        text(Some(host.notes).filter(|notes| !notes.is_empty())),
        text(host.job.map(|job| job.to_string())),
        host.created,
    ))
}

fn macs(macs: &[Mac]) -> String {
    macs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

async fn list(client: &Client, json: bool) -> anyhow::Result<()> {
    let hosts: Vec<HostView> = client.get("/v1/hosts").await?;
    if json {
        return table::json(&hosts);
    }
    let row = |host: HostView| {
        vec![
            host.name,
            macs(&host.macs),
            host.ip.map_or_else(|| "-".into(), |ip| ip.to_string()),
            host.firmware.as_str().to_owned(),
            bmc_text(&host.bmc),
            host.job.map_or_else(|| "-".into(), |job| job.to_string()),
        ]
    };
    table::print(
        &["NAME", "MAC", "IP", "FIRMWARE", "BMC", "JOB"],
        &hosts.into_iter().map(row).collect::<Vec<_>>(),
    )
}

async fn list_seen(client: &Client, json: bool) -> anyhow::Result<()> {
    let seen: Vec<SeenView> = client.get("/v1/seen").await?;
    if json {
        return table::json(&seen);
    }
    let row = |seen: SeenView| {
        vec![seen.mac, seen.uuid.unwrap_or_else(|| "-".into()), seen.last, seen.times.to_string()]
    };
    table::print(
        &["MAC", "UUID", "LAST SEEN", "TIMES"],
        &seen.into_iter().map(row).collect::<Vec<_>>(),
    )
}

async fn power(client: &Client, name: &str, action: PowerWord, json: bool) -> anyhow::Result<()> {
    let path = format!("/v1/hosts/{}/power", segment(name)?);
    let action = match action {
        PowerWord::On => PowerVerb::On,
        PowerWord::Off => PowerVerb::Off,
        PowerWord::Soft => PowerVerb::Soft,
        PowerWord::Cycle => PowerVerb::Cycle,
        PowerWord::Status => {
            let power: PowerView = client.get(&path).await?;
            return if json {
                table::json(&power)
            } else {
                table::put(&format!("{}\n", power.power))
            };
        }
    };
    client.done(client.request(Method::POST, &path).json(&PowerRequest { action })).await
}

#[cfg(test)]
mod tests {
    use super::parse_bmc;

    #[test]
    fn bmc_urls() {
        assert_eq!(parse_bmc("ipmi://10.0.0.7").unwrap(), ("10.0.0.7".into(), None));
        assert_eq!(
            parse_bmc("ipmi://bmc-7.example:6230/").unwrap(),
            ("bmc-7.example".into(), Some(6230))
        );
        assert_eq!(parse_bmc("ipmi://[fd00::1]:623").unwrap(), ("fd00::1".into(), Some(623)));
        for text in ["10.0.0.7", "redfish://x", "ipmi://u:p@h", "ipmi://h:x", "ipmi://h/x"] {
            assert!(parse_bmc(text).is_err(), "{text}");
        }
    }
}
