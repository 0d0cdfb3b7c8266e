//! Whole images of a random filesystem through every kind of store, with other people's clients as witnesses: `nfs-cat`, `nfs-ls` and
//! `nfs-cp` of libnfs, smbclient, curl, and stock zstd.
//!
//! The program captures a disk to the real server; the witness lists and reads the same bytes; stock zstd makes the same disk of
//! them; the program restores the disk. Then the witness stores the image again, and the program verifies and restores that. The
//! controller's own store has the same with the controller (`controller/tests/serve/witness.rs`). `IMPRINT_WITNESS_MIB` is how much of
//! the disk does not compress: 64 in ordinary tests, more than 2 GiB in the long form.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod disk;

#[path = "../store_nfs/ganesha.rs"]
#[allow(dead_code, reason = "its own tests use more of it")]
mod ganesha;

#[path = "../store_http/nginx.rs"]
#[allow(dead_code, reason = "its own tests use more of it")]
mod nginx;

#[path = "../real_servers/mod.rs"]
#[allow(dead_code, reason = "tests of one store use more of it")]
mod real_servers;

#[path = "../store_smb/samba.rs"]
#[allow(dead_code, reason = "its own tests use more of it")]
mod samba;

use std::path::Path;
use std::process::Command;

use disk::{Disk, assert_same, open, prints, run};
use ganesha::Ganesha;
use nginx::Nginx;
use real_servers::RealServer as _;
use samba::{PASSWORD, Samba, USER};

const IMAGE: &str = "debian 12.img.zst";
const THEIRS: &str = "theirs.img.zst";

/// The program, with what it needs to be let in.
struct Agent<'a> {
    disk: &'a Disk,
    more: &'a [&'a str],
    environment: &'a [(&'a str, &'a str)],
}

impl Agent<'_> {
    fn run(&self, args: &[&str]) -> String {
        let mut agent = Command::new(env!("CARGO_BIN_EXE_imprint-agent"));
        agent.args(args).args(["--progress", "none"]).args(self.more);
        run(agent.envs(self.environment.iter().copied()), "ours")
    }

    /// Captures the disk.
    fn capture(&self, to: &str) {
        self.run(&["capture", self.disk.path().to_str().unwrap(), to]);
    }

    /// Restores an image and compares the disk.
    fn restore(&self, from: &str) {
        let target = self.disk.target();
        self.run(&["restore", "--yes", from, target.to_str().unwrap()]);
        self.disk.check(&target);
    }
}

/// Checks the image in the server's folder; how long it is.
fn check_stored(disk: &Disk, folder: &Path) -> String {
    let names: Vec<_> =
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [IMAGE]);
    disk.check_unpacked(&folder.join(IMAGE));
    folder.join(IMAGE).metadata().unwrap().len().to_string()
}

#[test]
fn a_folder() {
    let disk = Disk::new(1);
    let folder = disk.file("images");
    std::fs::create_dir(&folder).unwrap();
    let agent = Agent { disk: &disk, more: &[], environment: &[] };
    let url = format!("file://{}/debian%2012.img.zst", folder.display());
    agent.capture(&url);
    check_stored(&disk, &folder);
    agent.restore(&url);
    run(Command::new("cp").arg(folder.join(IMAGE)).arg(folder.join(THEIRS)), "coreutils");
    agent.restore(folder.join(THEIRS).to_str().unwrap());
}

#[test]
fn nfs_ganesha() {
    let disk = Disk::new(2);
    let server = Ganesha::start();
    let agent = Agent { disk: &disk, more: &[], environment: &[] };
    agent.capture("nfs://127.0.0.1/images/debian%2012.img.zst");
    let len = check_stored(&disk, server.folder());
    let listed =
        run(Command::new("nfs-ls").arg("nfs://127.0.0.1/images?version=3"), "libnfs-utils");
    assert!(listed.contains(IMAGE) && listed.contains(&len), "{listed}");
    let image = server.folder().join(IMAGE);
    let url = format!("nfs://127.0.0.1/images/{IMAGE}?version=3");
    prints(Command::new("nfs-cat").arg(&url), open(&image));
    agent.restore("nfs://127.0.0.1/images/debian%2012.img.zst");

    let to = format!("nfs://127.0.0.1/images/{THEIRS}?version=3");
    run(Command::new("nfs-cp").arg(&image).arg(to), "libnfs-utils");
    agent.run(&["verify", &format!("nfs://127.0.0.1/images/{THEIRS}")]);
    agent.restore(&format!("nfs://127.0.0.1/images/{THEIRS}"));
}

/// A round trip of a user, or of a guest.
fn smbd(seed: u64, global: &str, query: &str, is_user: bool) {
    let disk = Disk::new(seed);
    let server = Samba::start_with(global, "", None);
    let credentials = disk.file("credentials");
    std::fs::write(&credentials, format!("user={USER}\npassword={PASSWORD}\n")).unwrap();
    let with = ["--credentials", credentials.to_str().unwrap()];
    let more: &[&str] = if is_user { &with } else { &[] };
    let agent = Agent { disk: &disk, more, environment: &[] };
    let url = format!("smb://127.0.0.1/images/debian%2012.img.zst{query}");
    agent.capture(&url);
    let len = check_stored(&disk, server.folder());
    let listed = server.smbclient("ls", is_user);
    assert!(listed.contains(IMAGE) && listed.contains(&len), "{listed}");
    let (image, copy) = (server.folder().join(IMAGE), disk.file("copy"));
    server.smbclient(&format!("get \"{IMAGE}\" {}", copy.display()), is_user);
    assert_same("what smbclient reads", open(&copy), open(&image));
    agent.restore(&url);

    server.smbclient(&format!("put {} {THEIRS}", copy.display()), is_user);
    let theirs = format!("smb://127.0.0.1/images/{THEIRS}{query}");
    agent.run(&["verify", &theirs]);
    agent.restore(&theirs);
}

#[test]
fn smbd_as_a_guest() {
    smbd(3, "", "", false);
}

#[test]
fn smbd_signed() {
    smbd(4, "server signing = mandatory", "", true);
}

#[test]
fn smbd_encrypted() {
    smbd(5, "smb encrypt = required", "?encrypt=yes", true);
}

#[test]
fn nginx_with_and_without_tls() {
    let disk = Disk::new(6);
    let server = Nginx::start();
    let authority = server.path("ca.pem");
    let authority = authority.to_str().unwrap();
    let agent = Agent { disk: &disk, more: &[], environment: &[("IMPRINT_CA_FILE", authority)] };
    // It is only read from: the image comes there as a file.
    agent.capture(server.served(IMAGE).to_str().unwrap());
    let len = check_stored(&disk, &server.served(""));
    for url in [server.http("debian%2012.img.zst"), server.https("debian%2012.img.zst")] {
        let curl = || {
            let mut curl = Command::new("curl");
            // Whose server it is matters to us, not to a witness: rcgen calls the server as it calls its authority.
            curl.args(["-sSfk", &url]);
            curl
        };
        let head = run(curl().arg("-I"), "curl");
        assert!(head.contains(&format!("Content-Length: {len}")), "{head}");
        prints(&mut curl(), open(&server.served(IMAGE)));
        agent.run(&["verify", &url]);
        agent.restore(&url);
    }
}
