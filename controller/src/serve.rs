//! `imprint serve`: puts the parts together and runs them until it is told to end.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use axum_server::Handle;
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::bmc::Bmcs;
use crate::cli::connect::ClientFile;
use crate::context::{BootFiles, BootSettings, Controller};
use crate::data_dir::{DataDir, write_private};
use crate::db::{Db, LOCAL};
use crate::dhcp::{self, Dhcp};
use crate::live::Live;
use crate::names::{KernelArgs, StoreName};
use crate::net::{Subnet, interface_of_address, subnet_of_interface};
use crate::secret::{Secret, hex, is_hex, sha256};
use crate::store::agent_program::AgentProgram;
use crate::store::{DefaultStore, Stores};
use crate::tasks::Tasks;
use crate::tls::Identity;
use crate::{api, boot, reconcile};

/// Where state is kept unless told otherwise.
pub const DEFAULT_DATA: &str = "/var/lib/imprint";
/// Name of the token that the first start makes.
const ADMIN: &str = "admin";
/// A client has so long to send a request's head, or to finish its TLS handshake.
const SLOW_CLIENT: Duration = Duration::from_secs(15);
/// Open answers have so long to end.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// How long the programs that work in stores may take at the end to remove what they have begun: with what follows, less than systemd gives.
const LAST_PROGRAMS: Duration = Duration::from_secs(9);

/// Runs the controller.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Folder for everything that the controller remembers; made if need be
    #[arg(long, env = "IMPRINT_DATA", default_value = DEFAULT_DATA)]
    data: PathBuf,
    /// Network interface towards the machines; its IPv4 address is served on
    #[arg(long, required_unless_present = "address")]
    interface: Option<String>,
    /// IPv4 address to serve on [default: the interface's first]
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Port of the boot files (plain HTTP); 0 takes any
    #[arg(long, default_value_t = 8080)]
    http_port: u16,
    /// Port of API and agents (HTTPS); 0 takes any
    #[arg(long, default_value_t = 8443)]
    https_port: u16,
    /// Folder with `kernel` and `initrd`, as `imprint initramfs build` writes it
    #[arg(long, conflicts_with_all = ["kernel", "initrd"])]
    boot_dir: Option<PathBuf>,
    /// The agent's kernel
    #[arg(long, requires = "initrd")]
    kernel: Option<PathBuf>,
    /// The agent's initramfs
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Arguments for the agent's kernel on every machine, such as console=ttyS0
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    kernel_args: KernelArgs,
    /// Where captures go that name no URL, such as nfs://10.0.0.5/images
    #[arg(long, conflicts_with = "default_store")]
    store_url: Option<String>,
    /// Store of images whose capture names none (see `imprint store list`)
    #[arg(long, value_name = "NAME", default_value = LOCAL)]
    default_store: StoreName,
    /// Serve no DHCP and TFTP: another server sends machines to the boot script
    #[arg(long)]
    no_dhcp: bool,
    /// Addresses for hosts that are entered without one, FIRST-LAST [default: .100-.199 of the interface's network]
    #[arg(long, value_parser = parse_pool)]
    pool: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Default gateway that machines are told
    #[arg(long)]
    gateway: Option<Ipv4Addr>,
    /// Name server that machines are told
    #[arg(long)]
    dns: Option<Ipv4Addr>,
    /// Send no IPv6 router advertisements (iPXE may then wait for one for 13 s at every boot)
    #[arg(long)]
    no_ra: bool,
    /// Start although another DHCP server answers on the interface
    #[arg(long)]
    allow_rival_dhcp: bool,
    /// imprint-agent for this machine, which tries stores out [default: beside this program]
    #[arg(long)]
    agent: Option<PathBuf>,
    /// dnsmasq
    #[arg(long, default_value = "/usr/sbin/dnsmasq")]
    dnsmasq: PathBuf,
    /// ipmitool
    #[arg(long, default_value = "/usr/bin/ipmitool")]
    ipmitool: PathBuf,
    /// Folder with iPXE's undionly.kpxe, snponly.efi and ipxe.efi
    #[arg(long, default_value = "/usr/lib/ipxe")]
    ipxe_dir: PathBuf,
    /// Folder for what dnsmasq reads; made anew at every start
    #[arg(long, env = "RUNTIME_DIRECTORY", default_value = "/run/imprint")]
    run_dir: PathBuf,
}

fn parse_pool(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), String> {
    let (first, last) = text.split_once('-').ok_or("it must be FIRST-LAST")?;
    let parse = |text: &str| text.trim().parse::<Ipv4Addr>().map_err(|e| e.to_string());
    let (first, last) = (parse(first)?, parse(last)?);
    if first > last {
        Err("the first address is behind the last".to_owned())
    } else {
        Ok((first, last))
    }
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the controller cannot start, or a listener fails.
pub fn run(args: ServeArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let (interface, subnet) = place(&args)?;
    for tool in [&args.ipmitool, &args.dnsmasq] {
        ensure!(tool.is_absolute(), "{} must be an absolute path", tool.display());
    }
    // dnsmasq reads its files as another user. What is private is made so file by file.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let data = DataDir::open(&args.data)?;
    let identity = Identity::load_or_make(&data)?;
    let db = Db::open(&data.database()?, data.sealer()?).await?;
    db.remove_tokens_of_checks().await?;
    let http = listen(subnet.address, args.http_port)?;
    let https = listen(subnet.address, args.https_port)?;
    let url = |scheme: &str, listener: &TcpListener| -> anyhow::Result<String> {
        Ok(format!("{scheme}://{}", listener.local_addr().context("asking for our own address")?))
    };
    let (http_url, https_url) = (url("http", &http)?, url("https", &https)?);
    write_client_file(&data, &db, &https_url, &identity.pin).await?;

    let dhcp = if args.no_dhcp {
        None
    } else {
        let interface = interface
            .context("finding the interface of --address; give --interface, or --no-dhcp")?;
        let settings = dhcp_settings(&args, interface, subnet, &data, &http_url, &identity.pin);
        if !args.allow_rival_dhcp {
            crate::dhcp::rival::refuse_rivals(&settings.interface, subnet.address).await?;
        }
        Some(Dhcp::prepare(settings, &db.hosts().await?)?)
    };
    let boot = BootSettings {
        http_url: http_url.clone(),
        https_url: https_url.clone(),
        pin: identity.pin.clone(),
        kernel_args: args.kernel_args.clone(),
        files: boot_files(&args)?,
        loader_dir: Some(dhcp.as_ref().map_or_else(|| args.ipxe_dir.clone(), Dhcp::loader_dir)),
    };
    if boot.files.is_none() {
        tracing::warn!("no --boot-dir: jobs are refused; see `imprint initramfs build`");
    }
    let dhcp = dhcp.map(Arc::new);
    let default = match &args.store_url {
        Some(url) => DefaultStore::Url(url.clone()),
        None => DefaultStore::Named(args.default_store.clone()),
    };
    db.store(args.default_store.as_str()).await.context("looking for the --default-store")?;
    let stores = Stores::new(
        data.images(),
        db.clone(),
        data.sealer()?,
        https_url.clone(),
        identity.pin.clone(),
        default,
    )
    .with_context(|| format!("making the folder {}", data.images().display()))?;
    stores.embedded.sweep(true).await.context("tidying up the store")?;
    let controller = Arc::new(Controller {
        bmcs: Bmcs::new(args.ipmitool.clone(), db.clone(), data.sealer()?),
        db: db.clone(),
        live: Live::default(),
        boot,
        dhcp: dhcp.clone(),
        stores,
        tasks: Tasks::default(),
        agent: AgentProgram::new(agent_program(&args)?),
        limits: reconcile::Limits::default(),
    });

    let (stop, stopped) = watch::channel(false);
    let http_handle = Handle::new();
    let https_handle = Handle::new();
    let http_task = {
        let mut server = axum_server::from_tcp(http)?
            .acceptor(NoDelayAcceptor::new())
            .handle(http_handle.clone());
        server
            .http_builder()
            .http1()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(SLOW_CLIENT);
        let router = boot::router(Arc::clone(&controller))
            .into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { server.serve(router).await })
    };
    let https_task = {
        let acceptor = RustlsAcceptor::new(RustlsConfig::from_config(Arc::clone(&identity.server)))
            .handshake_timeout(SLOW_CLIENT)
            // An answer's last segment would wait for the client to acknowledge the others, which it does when it has the answer.
            .acceptor(NoDelayAcceptor::new());
        let mut server =
            axum_server::from_tcp(https)?.acceptor(acceptor).handle(https_handle.clone());
        server
            .http_builder()
            .http1()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(SLOW_CLIENT);
        let router = api::router(Arc::clone(&controller));
        tokio::spawn(async move { server.serve(router.into_make_service()).await })
    };
    let dhcp_task = dhcp.map(|dhcp| {
        let mut stopped = stopped.clone();
        tokio::spawn(dhcp::supervise(dhcp, controller.db.clone(), async move {
            // A sender that is gone means the same as `true`.
            let _ = stopped.wait_for(|stop| *stop).await;
        }))
    });
    reconcile::resume_all(&controller).await?;
    tracing::info!(boot = http_url, api = https_url, pin = identity.pin, data = %data.path().display(), "serving");

    let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        result = http_task => result.context("serving boot files").and_then(|r| r.context("serving boot files")),
        result = https_task => result.context("serving the API").and_then(|r| r.context("serving the API")),
    };
    tracing::info!("ending");
    // Those that write to our own store are still answered. Whoever asks for the end again does not get to wait.
    tokio::select! {
        () = controller.agent.end() => {}
        () = tokio::time::sleep(LAST_PROGRAMS) => tracing::warn!("programs that work in stores did not end: .partial files may be left"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Whoever listened to the channel has ended already.
    let _ = stop.send(true);
    http_handle.graceful_shutdown(Some(LAST_ANSWERS));
    https_handle.graceful_shutdown(Some(LAST_ANSWERS));
    if let Some(task) = dhcp_task {
        task.await.context("ending dnsmasq")?;
    }
    db.close().await;
    ended
}

/// The interface and address to serve on.
fn place(args: &ServeArgs) -> anyhow::Result<(Option<String>, Subnet)> {
    match (&args.interface, args.address) {
        (Some(name), wish) => {
            let mut subnet = subnet_of_interface(name)
                .context("listing the network interfaces")?
                .ok_or_else(|| anyhow!("interface {name} does not exist or has no IPv4 address: `ip addr add … dev {name}`"))?;
            subnet.address = wish.unwrap_or(subnet.address);
            Ok((Some(name.clone()), subnet))
        }
        (None, Some(address)) => {
            match interface_of_address(address).context("listing the network interfaces")? {
                Some((name, subnet)) => Ok((Some(name), subnet)),
                None => Ok((None, Subnet { address, prefix: 32 })),
            }
        }
        (None, None) => bail!("give --interface or --address"),
    }
}

fn listen(address: Ipv4Addr, port: u16) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(IpAddr::V4(address), port);
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => {
            anyhow!("listening on {address}: something else does so already (`ss -ltnp`)")
        }
        _ => anyhow::Error::new(error).context(format!("listening on {address}")),
    })?;
    listener.set_nonblocking(true).context("setting up a listener")?;
    Ok(listener)
}

fn agent_program(args: &ServeArgs) -> anyhow::Result<PathBuf> {
    if let Some(agent) = &args.agent {
        return std::path::absolute(agent).context("resolving --agent");
    }
    let own = std::env::current_exe().context("looking for this program's own file")?;
    Ok(own.with_file_name("imprint-agent"))
}

fn boot_files(args: &ServeArgs) -> anyhow::Result<Option<BootFiles>> {
    let files = match (&args.boot_dir, &args.kernel, &args.initrd) {
        (Some(dir), _, _) => BootFiles { kernel: dir.join("kernel"), initrd: dir.join("initrd") },
        (None, Some(kernel), Some(initrd)) => {
            BootFiles { kernel: kernel.clone(), initrd: initrd.clone() }
        }
        _ => return Ok(None),
    };
    let absolute = |path: &Path| -> anyhow::Result<PathBuf> {
        std::fs::File::open(path)
            .with_context(|| format!("opening the boot file {}", path.display()))?;
        std::path::absolute(path).with_context(|| format!("resolving {}", path.display()))
    };
    Ok(Some(BootFiles { kernel: absolute(&files.kernel)?, initrd: absolute(&files.initrd)? }))
}

fn dhcp_settings(
    args: &ServeArgs,
    interface: String,
    subnet: Subnet,
    data: &DataDir,
    http_url: &str,
    pin: &str,
) -> dhcp::Settings {
    // Several controllers on one machine, each with its own data folder, keep apart.
    let own = hex(&sha256(data.path().as_os_str().as_encoded_bytes()));
    dhcp::Settings {
        dnsmasq: args.dnsmasq.clone(),
        interface,
        subnet,
        pool: args.pool.unwrap_or_else(|| subnet.default_pool()),
        gateway: args.gateway,
        dns: args.dns,
        router_advertisements: !args.no_ra,
        ipxe_dir: args.ipxe_dir.clone(),
        run_dir: args.run_dir.join(&own[..12]),
        http_url: http_url.to_owned(),
        pin: pin.to_owned(),
    }
}

/// Writes `client.json` with a token that works: the one in it, or a new one in place of a lost one.
async fn write_client_file(data: &DataDir, db: &Db, url: &str, pin: &str) -> anyhow::Result<()> {
    let path = data.path().join("client.json");
    let before =
        std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<ClientFile>(&text).ok());
    let mut token = before.map(|file| file.token).filter(|token| is_hex(token, 64));
    if let Some(text) = &token
        && db.token_by_hash(&Secret::new(text.clone()).hash()).await?.is_none()
    {
        token = None;
    }
    let token = match token {
        Some(token) => token,
        None => {
            let secret = Secret::random();
            if db.tokens().await?.iter().any(|token| token.name == ADMIN) {
                db.remove_token(ADMIN).await?;
            }
            db.add_token(ADMIN, &secret.hash()).await?;
            secret.expose().to_owned()
        }
    };
    let file = ClientFile { url: url.to_owned(), pin: pin.to_owned(), token };
    let text = serde_json::to_vec_pretty(&file).expect("three strings are plain data");
    Ok(write_private(&path, &text)?)
}
