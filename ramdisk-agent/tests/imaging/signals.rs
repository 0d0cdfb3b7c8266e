//! Signals while nothing has been written yet: a plan is made, a server or a disk is waited for. The program ends at once, as cancelled.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::agent::{capture, worker};
use crate::disks::noise_file;
use crate::faulty::FaultyDisk;

const MIB: u64 = 1 << 20;
/// A store's own patience is longer, and a program that waits for it does not end by itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A web server that takes connections and never says anything.
struct Mute {
    listener: TcpListener,
}

impl Mute {
    fn new() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.listener.local_addr().unwrap())
    }

    /// Returns when it has been asked for something.
    fn asked(&self) -> TcpStream {
        let (mut connection, _) = self.listener.accept().unwrap();
        assert_eq!(connection.read(&mut [0]).unwrap(), 1);
        connection
    }
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_imprint-agent"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Sends a signal; the exit code, and what was said.
fn end(mut child: Child, signal: Signal) -> (Option<i32>, String, String) {
    assert_eq!(child.try_wait().unwrap(), None, "it has ended before");
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    let until = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() >= until {
            child.kill().unwrap();
            panic!("it has not ended {LIMIT:?} after {signal}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn is_cancelled((code, stdout, stderr): (Option<i32>, String, String)) {
    assert_eq!(code, Some(11), "{stderr}");
    assert_eq!(stderr.trim(), "imprint-agent: cancelled before anything was changed [cancelled]");
    assert_eq!(stdout, "");
}

#[test]
fn a_signal_ends_what_waits_for_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    noise_file(&target, 8 * MIB, 7);
    let before = fs::read(&target).unwrap();
    let target = target.to_str().unwrap();
    let server = Mute::new();
    let url = server.url("a.img.zst");
    let copy = dir.path().join("copy.img.zst");
    let commands: [&[&str]; 5] = [
        &["restore", &url, target, "--yes"],
        &["restore", &url, target, "--yes", "--json", "--progress", "json"],
        &["plan", "restore", &url, target],
        &["verify", &url],
        &["convert", &url, copy.to_str().unwrap()],
    ];
    for args in commands {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let child = start(args);
            let _connection = server.asked();
            let ended = end(child, signal);
            // Reports of a stage are no part of the message.
            let stderr = ended.2.lines().filter(|line| !line.starts_with('{'));
            let stderr = stderr.collect::<Vec<_>>().join("\n");
            is_cancelled((ended.0, ended.1, stderr));
        }
    }
    assert!(fs::read(target).unwrap() == before, "the target was written to");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the target is there");
}

#[test]
fn a_worker_says_what_its_job_came_to() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("target");
    noise_file(&target, 8 * MIB, 7);
    let server = Mute::new();
    let job = json!({
        "id": "1", "disk": target, "image_url": server.url("a.img.zst"), "action": "restore", "options": {},
    });
    let child = worker(&job);
    let _connection = server.asked();
    let (code, stdout, _) = end(child, Signal::SIGTERM);
    assert_eq!(code, Some(1));
    let lines: Vec<Value> =
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let outcomes: Vec<&Value> = lines.iter().filter(|line| line["outcome"].is_object()).collect();
    assert_eq!(outcomes.len(), 1, "{stdout}");
    assert_eq!(outcomes[0]["outcome"]["kind"], "cancelled", "{stdout}");
}

/// Whether a process does something of its own when this signal comes.
fn catches(child: &Child, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() >> (signal as u64 - 1) & 1 == 1
}

#[test]
fn a_signal_ends_what_waits_for_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    noise_file(&source, 8 * MIB, 7);
    let disk = FaultyDisk::slow(&source, dir.path(), 64 * MIB);
    // From here on it does not answer, so that no plan is ever made.
    disk.signal(Signal::SIGSTOP);
    let image = dir.path().join("a.img.zst");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let child = start(&["capture", disk.path().to_str().unwrap(), image.to_str().unwrap()]);
        let until = Instant::now() + LIMIT;
        while !catches(&child, signal) {
            assert!(Instant::now() < until, "it does not catch {signal}");
            std::thread::sleep(Duration::from_millis(5));
        }
        is_cancelled(end(child, signal));
    }
    disk.signal(Signal::SIGCONT);
    assert!(!image.exists() && !Path::new(&format!("{}.partial", image.display())).exists());
    capture(disk.path(), &image, &[]);
}

/// Reads until a disk is said not to answer.
fn is_told_of(disk: &str, from: impl Read) {
    let mut told = String::new();
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        told.push_str(&line);
        if told.contains(&format!("{disk} does not answer: ")) {
            return;
        }
    }
    panic!("{told}");
}

/// A disk that hangs already while the plan is made, or while it is opened.
#[test]
fn a_disk_that_does_not_answer_is_told_of_before_there_is_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    noise_file(&source, 8 * MIB, 7);
    let disk = FaultyDisk::source(&source, dir.path(), &[], &[]);
    // Whoever is the last to close a device waits in the kernel for what was read ahead of it; a program is not gone until then.
    let _held = fs::File::open(disk.path()).unwrap();
    disk.signal(Signal::SIGSTOP);
    let (disk_path, image) = (disk.path().to_str().unwrap(), dir.path().join("a.img.zst"));
    let export = dir.path().join("export");
    let export = export.to_str().unwrap();
    let commands: [(&str, &[&str]); 4] = [
        (disk_path, &["capture", "--progress", "json", disk_path, image.to_str().unwrap()]),
        (disk_path, &["plan", "capture", "--progress", "json", disk_path]),
        (export, &["plan", "capture", "--progress", "json", export]),
        (export, &["plan", "restore", "--progress", "json", image.to_str().unwrap(), export]),
    ];
    for (disk, mut child) in commands.map(|(disk, args)| (disk, start(args))) {
        is_told_of(disk, child.stderr.take().unwrap());
        assert_eq!(end(child, Signal::SIGTERM).0, Some(11));
    }
    let whole = dir.path().join("whole.img.zst");
    capture(&source, &whole, &[]);
    let job = json!({
        "id": "1", "disk": disk_path, "image_url": whole, "action": "plan", "options": {},
    });
    let mut child = worker(&job);
    is_told_of(disk_path, child.stdout.take().unwrap());
    assert_eq!(end(child, Signal::SIGTERM).0, Some(1));
    disk.signal(Signal::SIGCONT);
}

/// A shell sends it once more to what it has started.
#[test]
fn the_end_of_the_terminal_cancels_and_what_was_begun_is_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    noise_file(&source, 64 * MIB, 7);
    let image = dir.path().join("a.img.zst");
    let partial = dir.path().join("a.img.zst.partial");
    let args = ["capture", source.to_str().unwrap(), image.to_str().unwrap(), "--limit", "1M"];
    let begun = |child: &Child| {
        let until = Instant::now() + LIMIT;
        while !partial.exists() {
            assert!(Instant::now() < until, "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        catches(child, Signal::SIGHUP)
    };
    let child = start(&args);
    assert!(begun(&child));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGHUP).unwrap();
    let (code, _, stderr) = end(child, Signal::SIGHUP);
    assert_eq!(code, Some(11), "{stderr}");
    assert!(!partial.exists() && !image.exists());

    // As nohup starts it.
    let line =
        format!("trap '' HUP; exec {} {}", env!("CARGO_BIN_EXE_imprint-agent"), args.join(" "));
    let child = Command::new("sh")
        .args(["-c", &line])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(!begun(&child));
    assert_eq!(end(child, Signal::SIGTERM).0, Some(11));
    assert!(!partial.exists());
}

#[test]
fn a_terminal_shows_again_what_is_typed_after_a_signal_at_the_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (key, image) = (at("k"), at("a.img.zst"));
    let agent = env!("CARGO_BIN_EXE_imprint-agent");
    // An encrypted key as far as its first bytes go (Ed, Sc, B2): its password is asked for before anything else is looked at.
    let text = format!("untrusted comment: a key\nRWRTY0Iy{}=\n", "A".repeat(203));
    fs::write(&key, text).unwrap();
    let asking = [
        ("Password for the new", format!("{agent} keygen -s {} -p {}", at("k2"), at("p2"))),
        ("Password of the", format!("{agent} sign {image} -s {key}")),
    ];
    for (prompt, command) in asking {
        // A shell on a terminal of its own, which says at the end how it is.
        let line = format!("trap : INT; {command}; echo it ended with $?; stty -a");
        let mut child = Command::new("script")
            .args(["-qec", &format!("sh -c '{line}'"), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is missing: apt-get install bsdutils");
        let (mut keys, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut shown = String::new();
        let mut see = |until: &str| {
            let mut piece = [0; 512];
            while !shown.contains(until) {
                let len = screen.read(&mut piece).unwrap();
                assert_ne!(len, 0, "no {until:?} in: {shown}");
                shown.push_str(&String::from_utf8_lossy(&piece[..len]));
            }
            shown.clone()
        };
        see(prompt);
        keys.write_all(b"\x03").unwrap();
        let shown = see("echok");
        assert!(shown.contains("it ended with 11"), "{shown}");
        assert!(!shown.contains("-echo "), "{shown}");
        drop(keys);
        child.wait().unwrap();
    }
    assert!(!Path::new(&at("k2")).exists());
}

#[test]
fn a_job_that_misspells_its_disk_is_for_none() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, [0; 1 << 20]).unwrap();
    // Only a plan: it would be of this machine's only disk.
    let job = json!({
        "id": "1", "Disk": disk, "image_url": folder.path().join("x.img.zst"), "action": "plan", "options": {},
    });
    let output = worker(&job).wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("refused") && said.contains("Disk that this version"), "{said}");
}

#[test]
fn what_is_wrong_with_a_job_is_named() {
    let job = json!({
        "id": "1", "disk": "/nonsuch", "image_url": "/x", "action": "plan", "options": {"grow": true},
    });
    let output = worker(&job).wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(r#""kind":"refused""#) && said.contains("grow: a text or"), "{said}");
}
