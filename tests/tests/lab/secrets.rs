//! Secrets of a whole run, looked for wherever something of the run is left: packets on the lab's network, every process's command
//! line and environment on the controller's machine, the controller's files and its log at its most talkative, answers of its
//! API, boot files, consoles, images.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tests::net::Network;
use tests::process::Server;

/// How often all processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long tcpdump may take to begin.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// Something that nobody may find, in the forms in which it would be found.
pub struct Secret {
    what: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    /// A text; also as UTF-16, as SMB has it, and in base64, as HTTP has it.
    pub fn text(what: &str, text: &str) -> Self {
        let wide = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        // Each of the three ways in which it can lie in a longer text, without the characters that its neighbours share.
        let encoded = (0..3).map(|before| {
            let all = STANDARD.encode([&vec![0; before], text.as_bytes()].concat());
            let whole = (before + text.len()) / 3 * 4;
            all.as_bytes()[(before * 8).div_ceil(6)..whole].to_vec()
        });
        let forms = [text.as_bytes().to_vec(), wide].into_iter().chain(encoded).collect();
        Self { what: what.to_owned(), forms }
    }

    /// Bytes, given in hexadecimal digits; also those digits.
    pub fn hex(what: &str, digits: &str) -> Self {
        let nibble = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let raw = (0..digits.len()).step_by(2).map(nibble).collect();
        let forms = vec![
            raw,
            digits.to_ascii_lowercase().into_bytes(),
            digits.to_ascii_uppercase().into_bytes(),
        ];
        Self { what: what.to_owned(), forms }
    }
}

/// Watches the network and all processes until it is asked what it saw.
pub struct Watch {
    packets: PathBuf,
    tcpdump: Server,
    stop: Arc<AtomicBool>,
    looking: JoinHandle<BTreeSet<Vec<u8>>>,
}

impl Watch {
    /// Begins; `folder` gets what it sees.
    pub fn start(network: &Network, folder: &Path) -> Self {
        let packets = folder.join("packets.pcap");
        let mut tcpdump = network.command("tcpdump");
        tcpdump.args(["-i", "any", "-U", "-s", "0", "-Z", "root", "-w"]).arg(&packets);
        // What SMB sends of an image is encrypted and gigabytes; a login is in small packets.
        tcpdump.arg("not tcp port 445 or less 1400");
        let mut tcpdump =
            Server::start("tcpdump", &mut tcpdump, &folder.join("tcpdump.log")).unwrap();
        tcpdump.wait_ready(READY_LIMIT, || packets.is_file()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        // Other labs may be at work, with the same secrets.
        let namespace = fs::metadata(Path::new("/run/netns").join(network.name())).unwrap().ino();
        let looking = spawn(move || {
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                look(namespace, &mut seen);
                sleep(LOOK_EVERY);
            }
            seen
        });
        Self { packets, tcpdump, stop, looking }
    }

    /// Ends, and writes what processes had beside the packets; the files.
    pub fn end(self) -> Vec<PathBuf> {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.looking.join().unwrap();
        drop(self.tcpdump);
        let processes = self.packets.with_file_name("processes");
        fs::write(&processes, seen.into_iter().collect::<Vec<_>>().join(&b'\n')).unwrap();
        vec![self.packets, processes]
    }
}

/// What every process of a network namespace shows of its arguments and its environment.
fn look(namespace: u64, seen: &mut BTreeSet<Vec<u8>>) {
    for process in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let path = process.path();
        // What is no process has none, and a process may have ended meanwhile.
        if fs::metadata(path.join("ns/net")).is_ok_and(|net| net.ino() == namespace) {
            // In this order: it may become another program in between.
            let [environ, cmdline] =
                ["environ", "cmdline"].map(|file| fs::read(path.join(file)).unwrap_or_default());
            // The one whose environment is how it gets the BMC's password.
            if !cmdline.split(|byte| *byte == 0).next().unwrap().ends_with(b"ipmitool") {
                seen.insert(environ);
            }
            seen.insert(cmdline);
        }
    }
}

/// The files below these places that hold these bytes.
fn holders(bytes: &[u8], places: &[PathBuf]) -> Vec<String> {
    let pattern: String = bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect();
    let mut grep = Command::new("grep");
    grep.env("LC_ALL", "C").args(["--recursive", "--text", "--files-with-matches", "-P", "-e"]);
    let found = grep.arg(pattern).args(places).output().unwrap();
    // 1: nothing found.
    assert!(matches!(found.status.code(), Some(0 | 1)), "{found:?}");
    String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Checks that what nobody hides is found in each of these files, and no secret anywhere.
pub fn check(secrets: &[Secret], places: &[PathBuf], known: &[(&[u8], &Path)]) {
    for (bytes, file) in known {
        let found = holders(bytes, &[file.to_path_buf()]);
        assert!(!found.is_empty(), "{bytes:?} is not in {}: was it watched?", file.display());
    }
    for secret in secrets {
        for form in &secret.forms {
            let found = holders(form, places);
            assert!(found.is_empty(), "{} ({form:?}) is in {found:?}", secret.what);
        }
    }
}
