//! DHCP by the real dnsmasq, in network namespaces of its own: two machines with a cable between them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::wait;

const IMPRINT: &str = env!("CARGO_BIN_EXE_imprint");

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}; this test needs root");
}

/// Two namespaces, `HERE` with 10.98.0.1 and `THERE` with 10.98.0.2. Removed when dropped.
struct Cable {
    here: String,
    there: String,
    folder: TempDir,
}

impl Drop for Cable {
    fn drop(&mut self) {
        for name in [&self.here, &self.there] {
            // A namespace that is not there need not be removed.
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

impl Cable {
    fn new(name: &str) -> Self {
        let name = format!("ctl-{name}-{}", std::process::id());
        let cable = Self {
            here: format!("{name}-a"),
            there: format!("{name}-b"),
            folder: tempfile::tempdir().unwrap(),
        };
        let (a, b) = (&cable.here, &cable.there);
        ip(&format!("netns add {a}"));
        ip(&format!("netns add {b}"));
        ip(&format!("-n {a} link add eth0 type veth peer name eth0 netns {b}"));
        for (end, last) in [(a, 1), (b, 2)] {
            ip(&format!("-n {end} addr add 10.98.0.{last}/24 dev eth0"));
            ip(&format!("-n {end} link set eth0 up"));
            ip(&format!("-n {end} link set lo up"));
        }
        // dnsmasq and its files are read by an unprivileged user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(cable.folder.path(), open).unwrap();
        cable
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that runs at one end.
    fn at(end: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", end, program]).stdin(Stdio::null());
        command
    }

    /// `imprint serve` at one end, with its log in a file.
    fn serve(&self, end: &str, folder: &Path) -> Serving {
        fs::create_dir_all(folder).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let child = Self::at(end, IMPRINT)
            .args(["serve", "--interface", "eth0", "--no-ra", "--data"])
            .arg(folder.join("data"))
            .arg("--run-dir")
            .arg(folder.join("run"))
            .env("IMPRINT_LOG", "debug")
            .stderr(log)
            .spawn()
            .unwrap();
        Serving { child, folder: folder.to_owned(), end: end.to_owned() }
    }
}

struct Serving {
    child: Child,
    folder: PathBuf,
    end: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            // Asked to end, it ends its dnsmasq first; the port is free afterwards.
            let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            self.child.wait().unwrap();
        }
        // A killed controller leaves its dnsmasq behind.
        if let Some(pid) = self.dnsmasq() {
            // It may end this very moment.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Serving {
    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    async fn ready(&mut self) {
        wait("dnsmasq serves", async || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", self.log());
            (self.log().contains(" serving boot=") && self.dnsmasq().is_some()).then_some(())
        })
        .await;
    }

    fn run_dir(&self) -> Option<PathBuf> {
        fs::read_dir(self.folder.join("run")).ok()?.next().map(|entry| entry.unwrap().path())
    }

    fn dnsmasq(&self) -> Option<nix::unistd::Pid> {
        let text = fs::read_to_string(self.run_dir()?.join("dnsmasq.pid")).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        let alive = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.contains("dnsmasq");
        alive.then(|| nix::unistd::Pid::from_raw(pid))
    }

    fn imprint(&self, args: &[&str]) -> Output {
        Cable::at(&self.end, IMPRINT)
            .args(args)
            .arg("--config")
            .arg(self.folder.join("data/client.json"))
            .output()
            .unwrap()
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.imprint(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn entries(&self) -> Vec<String> {
        let folder = self.run_dir().unwrap().join("hosts");
        let read = |entry: std::io::Result<fs::DirEntry>| {
            fs::read_to_string(entry.unwrap().path()).unwrap()
        };
        fs::read_dir(folder).unwrap().map(read).collect()
    }
}

/// A DHCP server that is none of ours.
struct Rival(Child);

impl Drop for Rival {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_rival_that_answers_anybody_is_refused_and_one_that_knows_its_machines_is_not() {
    let cable = Cable::new("rival");
    let mut ours = cable.serve(&cable.here, &cable.path("ours"));
    ours.ready().await;
    // Ours answers known machines only, so a second one at the other end of the cable finds nobody.
    let mut second = cable.serve(&cable.there, &cable.path("second"));
    second.ready().await;
    // The machine in whose name it looked for rivals is no host of ours: whoever enters machines finds its address.
    wait("who asked is noted", async || {
        let seen = ours.json(&["host", "list", "--seen", "--json"]);
        seen.as_array().unwrap().first().map(|machine| assert!(machine["mac"].is_string()))
    })
    .await;
    drop(second);

    let lease_file = cable.path("leases");
    let _rival = Rival(
        Cable::at(&cable.there, "dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0"])
            .args([
                "--dhcp-range=10.98.0.200,10.98.0.250",
                "--no-ping",
                "--user=root",
                "--pid-file=",
            ])
            .arg(format!("--dhcp-leasefile={}", lease_file.display()))
            .stderr(Stdio::null())
            .spawn()
            .expect("dnsmasq is installed (apt-get install dnsmasq-base)"),
    );
    wait("the rival serves", async || lease_file.exists().then_some(())).await;
    drop(ours);
    let mut refused = cable.serve(&cable.here, &cable.path("ours"));
    let status = wait("serve gives up", async || {
        assert!(!refused.log().contains("serving"), "it serves beside a rival: {}", refused.log());
        refused.child.try_wait().unwrap()
    })
    .await;
    assert_eq!(status.code(), Some(1));
    let log = refused.log();
    assert!(log.contains("a DHCP server at 10.98.0.2 answers on interface eth0"), "{log}");
}

#[tokio::test]
async fn entries_follow_the_hosts_and_a_left_over_child_is_ended() {
    let cable = Cable::new("hosts");
    let mut serving = cable.serve(&cable.here, &cable.path("ours"));
    serving.ready().await;
    let mac = "52:54:00:77:00:01";
    let host = serving.json(&["host", "add", "node7", "--mac", mac, "--json"]);
    let address: Ipv4Addr = host["ip"].as_str().unwrap().parse().unwrap();
    assert_eq!(address, Ipv4Addr::new(10, 98, 0, 100), "the first of the pool");
    assert_eq!(serving.entries(), [format!("{mac},{address}\n")]);
    for wrong in ["10.98.0.1", "10.98.0.0", "10.98.0.255", "10.99.0.5"] {
        let args = ["host", "add", "x", "--mac", "52:54:00:77:00:02", "--ip", wrong];
        assert_eq!(serving.imprint(&args).status.code(), Some(1), "{wrong}");
    }
    let first = serving.dnsmasq().unwrap();

    // Killed: its dnsmasq lives on, and is ended by the next one before that starts its own.
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    assert_eq!(serving.dnsmasq(), Some(first), "dnsmasq outlives a killed controller");
    let mut again = cable.serve(&cable.here, &cable.path("ours"));
    again.ready().await;
    wait("another dnsmasq", async || again.dnsmasq().filter(|pid| *pid != first)).await;
    assert_eq!(again.entries().len(), 1, "entries are made anew from the database");

    // One that dies is started again.
    let second = again.dnsmasq().unwrap();
    nix::sys::signal::kill(second, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait("a third dnsmasq", async || again.dnsmasq().filter(|pid| *pid != second)).await;

    assert!(again.imprint(&["host", "rm", "node7"]).status.success());
    assert_eq!(again.entries(), Vec::<String>::new());
    assert_eq!(again.json(&["host", "list", "--json"]), json!([]));
}
