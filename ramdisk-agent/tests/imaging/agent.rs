//! The program under test.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// What a run of the agent came to.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }

    /// Asserts that it failed with this kind, and says all of these words.
    pub fn refused(&self, kind: &str, words: &[&str]) {
        assert_ne!(self.code, 0, "it succeeded:\n{}", self.stdout);
        for word in words.iter().chain([&format!("[{kind}]").as_str()]) {
            assert!(self.stderr.contains(word), "no {word:?} in: {}", self.stderr);
        }
    }
}

pub fn agent(args: &[impl AsRef<OsStr>]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran {
        code: output.status.code().expect("no signal ended it"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The same with a standard output that takes nothing.
pub fn agent_unheard(args: &[impl AsRef<OsStr>]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(std::fs::File::options().write(true).open("/dev/full").unwrap())
        .output()
        .unwrap();
    Ran {
        code: output.status.code().expect("no signal ended it"),
        stdout: String::new(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The most anonymous memory that a command was seen to have, in bytes.
pub fn peak(args: &[&str]) -> u64 {
    let mut child = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous.map_or(0, |kib| kib.trim_end_matches("kB").trim().parse().unwrap());
        peak = peak.max(kib * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert!(ended.success(), "{args:?}");
    peak
}

/// The program as the supervisor starts it, with this job; its lines are read from its standard output.
pub fn worker(job: &Value) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["run", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
    child
}

fn with_paths(words: &[&str], paths: &[&Path]) -> Ran {
    let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    args.splice(1..1, paths.iter().map(|p| p.as_os_str()));
    agent(&args)
}

/// `capture DISK IMAGE --json …`; the summary.
pub fn capture(disk: &Path, image: &Path, flags: &[&str]) -> Value {
    try_capture(disk, image, flags).json()
}

pub fn try_capture(disk: &Path, image: &Path, flags: &[&str]) -> Ran {
    with_paths(&[&["capture", "--json"], flags].concat(), &[disk, image])
}

/// `restore IMAGE DISK --yes --json …`; the summary.
pub fn restore(image: &Path, disk: &Path, flags: &[&str]) -> Value {
    try_restore(image, disk, flags).json()
}

pub fn try_restore(image: &Path, disk: &Path, flags: &[&str]) -> Ran {
    with_paths(&[&["restore", "--yes", "--json"], flags].concat(), &[image, disk])
}
