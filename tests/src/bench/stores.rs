//! Rates of stores: the agent beside other people's clients, on the same servers, in turn.
//!
//! The servers are those of the lab, in its network namespace, on filesystems in memory. Ours is `imprint-agent store-check --probe`,
//! which writes, commits, reads and compares, and reads again by the published name; the peers do the same with the same amount, those of
//! NFS with the same request sizes as well.

mod embedded;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::filesystem::Filesystem;
use super::report::{Figure, Table, mega};
use super::run::timed;
use super::stats::Spread;
use super::{Bench, file_len};
use crate::net::{ADDRESS, Network};
use crate::nfs::{EXPORT, NfsServer};
use crate::process::Server;
use crate::smb::{PASSWORD, Protection, SmbServer, USER};
use crate::{command, project};

/// At least so much of the others' rate is ours: our time is at most so much of theirs.
const TIME_GOAL: f64 = 1.0 / 0.8;
/// The same with one request of 64 KiB at a time over a path of 1 ms.
const DELAYED_GOAL: f64 = 1.0 / 5.0;
/// Processor time for a byte.
const CPU_GOAL: f64 = 1.5;
/// Half of the delay, in µs.
const DELAY_US: u32 = 500;
/// Over a delayed path one request at a time takes long: so much less is transferred.
const DELAYED_PART: u64 = 8;

/// What one run came to; of reads, the faster of two.
#[derive(Debug, Clone, Copy)]
struct Rates {
    write: f64,
    read: f64,
    /// Seconds for one writing and two readings.
    cpu_s: f64,
}

const WRITES: usize = 0;

impl Rates {
    fn get(&self, what: usize) -> f64 {
        [self.write, self.read][what]
    }
}

/// Two contenders on one server.
struct Pair<'a> {
    what: &'a str,
    peer: &'a str,
    goal: f64,
    has_write: bool,
}

impl Bench<'_> {
    /// NFS, SMB and HTTP.
    pub(super) fn stores(&self) -> Result<Table> {
        let network = Network::create()?;
        let mut figures = Vec::new();
        self.nfs(&network, &mut figures)?;
        for (protection, name) in [
            (Protection::None, "guest"),
            (Protection::Signed, "sign"),
            (Protection::Encrypted, "encrypt"),
        ] {
            self.smb(&network, protection, name, &mut figures)?;
        }
        self.http(&network, &mut figures)?;
        self.embedded(&network, &mut figures)?;
        Ok(Table {
            title: "Stores, on loopback".into(),
            conditions: self.conditions(&format!(
                "Real servers on filesystems in memory; {} MiB written and committed, and read twice, {} MiB where there is a delay. Rates are \
                 medians, ratios medians of pairs in turn.",
                self.probe_mib(),
                self.probe_mib() / DELAYED_PART,
            ))?,
            entries: Vec::new(),
            figures,
        })
    }

    fn probe_mib(&self) -> u64 {
        if self.options.quick { 256 } else { 1024 }
    }

    /// Runs a pair in turn and adds its figures.
    fn pair(
        &self,
        pair: &Pair<'_>,
        ours: &dyn Fn() -> Result<Rates>,
        theirs: &dyn Fn() -> Result<Rates>,
        figures: &mut Vec<Figure>,
    ) -> Result<()> {
        let mut rounds = Vec::new();
        for round in 0..self.options.rounds {
            let both = if round % 2 == 0 {
                let our = ours()?;
                (our, theirs()?)
            } else {
                let their = theirs()?;
                (ours()?, their)
            };
            eprintln!("  {} {both:?}", pair.what);
            rounds.push(both);
        }
        let median = |of: &dyn Fn(&(Rates, Rates)) -> f64| {
            Spread::of(rounds.iter().map(of)).map_or(0.0, |spread| spread.median)
        };
        let Pair { what, peer, goal, has_write } = *pair;
        for (index, verb) in ["writing", "reading"].into_iter().enumerate() {
            if index == WRITES && !has_write {
                continue;
            }
            let mut add = |name: String, value, unit: &str, goal| {
                figures.push(Figure::new(format!("{what}, {verb}: {name}"), value, unit, goal));
            };
            let mib = f64::from(1 << 20);
            add("ours".into(), median(&|both| both.0.get(index)) / mib, "MiB/s", None);
            add(peer.to_owned(), median(&|both| both.1.get(index)) / mib, "MiB/s", None);
            let ratio = median(&|both| both.1.get(index) / both.0.get(index));
            add("our time ÷ its".into(), ratio, "", Some(goal));
        }
        let ratio = median(&|both| both.0.cpu_s / both.1.cpu_s);
        figures.push(Figure::new(
            format!("{what}: our processor time ÷ its"),
            ratio,
            "",
            Some(CPU_GOAL),
        ));
        Ok(())
    }

    /// `store-check` of ours.
    fn ours(&self, network: &Network, url: &str, mib: u64, more: &str) -> Result<Rates> {
        let script = format!(
            "ip netns exec {} {} store-check --json --progress none --probe {mib} {more} '{url}'",
            network.name(),
            self.agent.display()
        );
        let (run, said) = timed(self.memory.path(), &script)?;
        let report: serde_json::Value =
            serde_json::from_str(&said).context("reading what store-check said")?;
        ensure!(report["failure"].is_null(), "store-check of {url}: {}", report["failure"]);
        let rate = |name: &str| {
            report[name].as_f64().with_context(|| format!("store-check says no {name}: {said}"))
        };
        Ok(Rates {
            write: rate("write_bytes_per_second")?,
            read: rate("read_bytes_per_second")?,
            cpu_s: run.cpu_s,
        })
    }

    fn nfs(&self, network: &Network, figures: &mut Vec<Figure>) -> Result<()> {
        let peer = build_peer()?;
        let disk = self.memory.path().join("nfs.img");
        // Room for two, since what was removed is given back a little later.
        Filesystem::Ext4.format(&disk, (self.probe_mib() * 2 + 512) << 20)?;
        let measure = |at: &Path| {
            let server = NfsServer::start(network, at)?;
            let mib = self.probe_mib();
            let nfs3 = |host: &str, connections: u32, more: &str, mib: u64| {
                let script = format!(
                    "ip netns exec {} {} nfs3 {host} {EXPORT} peer {mib} connections={connections} {more}",
                    network.name(),
                    peer.display(),
                );
                let (run, said) = timed(self.memory.path(), &script)?;
                let rates: Vec<f64> =
                    said.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
                let [write, read] = rates[..] else { bail!("the NFS peer said {said:?}") };
                Ok(Rates { write, read, cpu_s: run.cpu_s })
            };
            let mut best = (1, 0.0);
            for connections in [1, 2, 4, 8] {
                let rates = nfs3(ADDRESS, connections, "", mib)?;
                eprintln!("  nfs3_client over {connections}: {rates:?}");
                if rates.write + rates.read > best.1 {
                    best = (connections, rates.write + rates.read);
                }
            }
            let url = server.url("");
            let pair = Pair {
                what: "NFS",
                peer: &format!("nfs3_client, 1 MiB over {} connections", best.0),
                goal: TIME_GOAL,
                has_write: true,
            };
            let ours = || self.ours(network, url.trim_end_matches('/'), mib, "");
            self.pair(&pair, &ours, &|| nfs3(ADDRESS, best.0, "", mib), figures)?;

            let proxy = DelayProxy::start(network, &peer, &format!("{ADDRESS}:2049"), DELAY_US)?;
            // MOUNT is asked for on the same address.
            let mount = DelayProxy::start(network, &peer, &format!("{ADDRESS}:20048"), 0)?;
            let pair = Pair {
                what: "NFS, 1 ms",
                peer: "nfs3_client, 64 KiB over one connection",
                goal: DELAYED_GOAL,
                has_write: true,
            };
            let url = format!("nfs://127.0.0.1:{}{EXPORT}?mountport={}", proxy.port, mount.port);
            let mib = mib / DELAYED_PART;
            let more = format!("port={} mountport={} request_kib=64", proxy.port, mount.port);
            let ours = || self.ours(network, &url, mib, "");
            self.pair(&pair, &ours, &|| nfs3("127.0.0.1", 1, &more, mib), figures)
        };
        Filesystem::Ext4.with_mounted(&disk, measure)?;
        super::run::remove(&disk)
    }

    fn smb(
        &self,
        network: &Network,
        protection: Protection,
        name: &str,
        figures: &mut Vec<Figure>,
    ) -> Result<()> {
        let folder = tempfile::tempdir_in("/dev/shm").context("making a folder in memory")?;
        let server = SmbServer::start_with(network, folder.path(), protection)?;
        let (ours_file, theirs_file) = (folder.path().join("ours"), folder.path().join("theirs"));
        write_secret(&ours_file, &format!("user={USER}\npassword={PASSWORD}\n"))?;
        write_secret(&theirs_file, &format!("username={USER}\npassword={PASSWORD}\n"))?;
        let mib = self.probe_mib();
        let probe = folder.path().join("probe");
        noise(&probe, mib)?;
        let who = match protection {
            Protection::None => "-N".to_owned(),
            _ => format!("-A {} --client-protection={name}", theirs_file.display()),
        };
        let smbclient = |command: &str| {
            let script = format!(
                "ip netns exec {} smbclient //{ADDRESS}/images {who} -c '{command}'",
                network.name(),
            );
            timed(self.memory.path(), &script).map(|(run, _)| run)
        };
        let theirs = || {
            let put = smbclient(&format!("put {} peer", probe.display()))?;
            let gets = [smbclient("get peer /dev/null")?, smbclient("get peer /dev/null")?];
            smbclient("del peer")?;
            let bytes = mega(mib << 20) * 1e6;
            let get = gets[0].wall_s.min(gets[1].wall_s);
            let cpu_s = put.cpu_s + gets[0].cpu_s + gets[1].cpu_s;
            Ok(Rates { write: bytes / put.wall_s, read: bytes / get, cpu_s })
        };
        let query = if protection == Protection::Encrypted { "?encrypt=yes" } else { "" };
        let url = format!("{}{query}", server.url());
        let with = match protection {
            Protection::None => String::new(),
            _ => format!("--credentials {}", ours_file.display()),
        };
        let what = format!("SMB, {name}");
        let pair = Pair { what: &what, peer: "smbclient", goal: TIME_GOAL, has_write: true };
        self.pair(&pair, &|| self.ours(network, &url, mib, &with), &theirs, figures)
    }

    fn http(&self, network: &Network, figures: &mut Vec<Figure>) -> Result<()> {
        let folder = tempfile::tempdir_in("/dev/shm").context("making a folder in memory")?;
        let disk = folder.path().join("disk");
        noise(&disk, self.probe_mib())?;
        let image = folder.path().join("x.img.zst");
        let capture = format!(
            "{} capture --progress none {} {}",
            self.agent.display(),
            disk.display(),
            image.display()
        );
        timed(self.memory.path(), &capture)?;
        super::run::remove(&disk)?;
        let _server = start_nginx(network, folder.path())?;
        let url = format!("http://{ADDRESS}/x.img.zst");
        let bytes = mega(file_len(&image)?) * 1e6;
        let run = |program: &str| {
            let script = format!("ip netns exec {} {program} {url}", network.name());
            let runs =
                [timed(self.memory.path(), &script)?.0, timed(self.memory.path(), &script)?.0];
            let wall_s = runs[0].wall_s.min(runs[1].wall_s);
            let cpu_s = runs[0].cpu_s + runs[1].cpu_s;
            Ok(Rates { write: 0.0, read: bytes / wall_s, cpu_s })
        };
        let verify = format!("{} verify --progress none", self.agent.display());
        let pair = Pair {
            what: "HTTP (verify, hashes included)",
            peer: "curl",
            goal: TIME_GOAL,
            has_write: false,
        };
        self.pair(&pair, &|| run(&verify), &|| run("curl -sSf -o /dev/null"), figures)
    }
}

/// A proxy in the lab's network that delays. Dropping it ends it.
struct DelayProxy {
    child: Child,
    port: u16,
}

impl DelayProxy {
    fn start(network: &Network, peer: &Path, server: &str, delay_us: u32) -> Result<Self> {
        let mut command = network.command(&peer.to_string_lossy());
        command.args(["delay", server, &delay_us.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the delaying proxy")?;
        let mut line = String::new();
        let output = child.stdout.take().context("the proxy has no standard output")?;
        BufReader::new(output).read_line(&mut line).context("asking the proxy for its port")?;
        let port = line.trim().parse().with_context(|| format!("the proxy said {line:?}"))?;
        Ok(Self { child, port })
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It ends by itself then; if not, with the namespace.
        let _ = self.child.wait();
    }
}

/// Builds the program of the NFS peer and the proxy.
fn build_peer() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--release", "-p", "fault-proxy", "--example", "store_peer"]);
    command::show(cargo.current_dir(project::root())).context("building the NFS peer")?;
    Ok(project::target().join("release/examples/store_peer"))
}

fn start_nginx(network: &Network, folder: &Path) -> Result<Server> {
    let at = folder.display();
    let config = folder.join("nginx.conf");
    let text = format!(
        "user root; daemon off; pid {at}/pid; error_log {at}/error.log; worker_processes auto;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; sendfile on; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
         fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         server {{ listen {ADDRESS}:80; root {at}; }} }}\n"
    );
    fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    let mut nginx = network.command("nginx");
    nginx.arg("-p").arg(folder).arg("-c").arg(&config);
    let mut server = Server::start("nginx", &mut nginx, &folder.join("nginx.out"))?;
    server.wait_ready(Duration::from_secs(20), || network.is_listening(80))?;
    Ok(server)
}

/// A file that does not compress.
fn noise(path: &Path, mib: u64) -> Result<()> {
    command::run(
        "dd",
        [
            "if=/dev/urandom",
            &format!("of={}", path.display()),
            "bs=1M",
            &format!("count={mib}"),
            "status=none",
        ],
    )
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = fs::File::options().create_new(true).write(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}
