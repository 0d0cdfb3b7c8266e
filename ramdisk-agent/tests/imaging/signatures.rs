//! Signatures, with stock minisign as the other side in both directions, and everything that must be refused.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::agent::{Ran, agent, capture, try_restore};
use crate::disks::{ext4, noise_file};
use crate::tools::status;

const LEN: u64 = 24 << 20;

/// A folder with an image of a small filesystem, a target full of noise, and a pair of keys.
struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rig = Self { dir };
        ext4(&rig.path("disk"), LEN, rig.dir.path());
        capture(&rig.path("disk"), &rig.path("a.img.zst"), &[]);
        noise_file(&rig.path("target"), LEN, 1);
        rig.agent(&["keygen", "-W", "-s", "our.key", "-p", "our.pub"]);
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Runs the program with these arguments, of which those that name files are files of the folder.
    fn try_agent(&self, args: &[&str]) -> Ran {
        let args: Vec<PathBuf> = args
            .iter()
            .map(|arg| if arg.contains('.') { self.path(arg) } else { arg.into() })
            .collect();
        agent(&args)
    }

    fn agent(&self, args: &[&str]) -> Ran {
        let ran = self.try_agent(args);
        assert_eq!(ran.code, 0, "{args:?}: {}", ran.stderr);
        ran
    }

    fn minisign(&self, args: &[&str]) -> bool {
        let folder = self.dir.path().to_str().unwrap();
        let all = [&["-C", folder, "minisign"], args].concat();
        status("minisign", "env", &all).status.success()
    }

    /// Verify and restore must both refuse, and the target stays as it is.
    fn refused(&self, key: &str, kind: &str, words: &[&str]) {
        self.try_agent(&["verify", "a.img.zst", "--require-signature", key]).refused(kind, words);
        let before = blake3::hash(&fs::read(self.path("target")).unwrap());
        let key = if key.contains('.') {
            self.path(key).to_str().unwrap().to_owned()
        } else {
            key.into()
        };
        let flags = ["--require-signature", &key];
        try_restore(&self.path("a.img.zst"), &self.path("target"), &flags).refused(kind, words);
        assert_eq!(
            blake3::hash(&fs::read(self.path("target")).unwrap()),
            before,
            "it was written to"
        );
    }

    /// Puts another root file in place of the one that is there, signed by our key.
    fn forge(&self, text: &str) {
        fs::write(self.path("a.img.zst.root"), text).unwrap();
        fs::remove_file(self.path("a.img.zst.root.minisig")).unwrap();
        assert!(self.minisign(&["-S", "-s", "our.key", "-m", "a.img.zst.root"]));
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn stock_minisign_verifies_ours_and_we_verify_its() {
    let rig = Rig::new();
    rig.agent(&["sign", "a.img.zst", "-s", "our.key"]);
    assert_eq!(mode(&rig.path("our.key")), 0o600);
    let public = rig.text("our.pub").lines().nth(1).unwrap().to_owned();
    assert!(rig.minisign(&["-V", "-p", "our.pub", "-m", "a.img.zst.root"]));
    assert!(rig.minisign(&["-V", "-P", &public, "-m", "a.img.zst.root"]));
    rig.agent(&["verify", "a.img.zst", "--require-signature", "our.pub"]);
    rig.agent(&["verify", "a.img.zst", "--require-signature", &public]);

    // Stock minisign with our key, prehashed and legacy, and with a comment of its own.
    for flags in [&["-t", "for node 7"][..], &["-l"], &["-H"]] {
        fs::remove_file(rig.path("a.img.zst.root.minisig")).unwrap();
        let all = [&["-S", "-s", "our.key", "-m", "a.img.zst.root"], flags].concat();
        assert!(rig.minisign(&all), "{flags:?}");
        rig.agent(&["verify", "a.img.zst", "--require-signature", "our.pub"]);
    }

    // And stock minisign's own key, used by both.
    assert!(rig.minisign(&["-G", "-W", "-s", "its.key", "-p", "its.pub"]));
    fs::remove_file(rig.path("a.img.zst.root.minisig")).unwrap();
    rig.agent(&["sign", "a.img.zst", "-s", "its.key"]);
    assert!(rig.minisign(&["-V", "-p", "its.pub", "-m", "a.img.zst.root"]));
    let flags = ["--require-signature", rig.path("its.pub").to_str().unwrap()].map(str::to_owned);
    let ran = try_restore(&rig.path("a.img.zst"), &rig.path("target"), &[&flags[0], &flags[1]]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    rig.refused("our.pub", "image_corrupt", &["was asked for"]);
}

#[test]
fn encrypted_keys_go_both_ways_and_no_password_is_an_argument() {
    let rig = Rig::new();
    fs::write(rig.path("pass.txt"), "correct horse\n").unwrap();
    let with_stdin = |args: &[&str], input: &str| {
        let mut child = Command::new("minisign")
            .args(args)
            .current_dir(rig.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("minisign is missing: apt-get install minisign");
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{args:?}");
    };
    rig.agent(&["keygen", "-s", "enc.key", "-p", "enc.pub", "--password-file", "pass.txt"]);
    assert!(rig.text("enc.key").contains("encrypted"));
    fs::write(rig.path("a.img.zst.root"), "text").unwrap();
    with_stdin(&["-S", "-s", "enc.key", "-m", "a.img.zst.root"], "correct horse\n");
    assert!(rig.minisign(&["-V", "-p", "enc.pub", "-m", "a.img.zst.root"]));

    // scrypt at minisign's own cost takes seconds, so a wrong password is tried in the unit tests.
    with_stdin(&["-G", "-s", "stock.key", "-p", "stock.pub"], "correct horse\ncorrect horse\n");
    fs::remove_file(rig.path("a.img.zst.root")).unwrap();
    fs::remove_file(rig.path("a.img.zst.root.minisig")).unwrap();
    rig.agent(&["sign", "a.img.zst", "-s", "stock.key", "--password-file", "pass.txt"]);
    assert!(rig.minisign(&["-V", "-p", "stock.pub", "-m", "a.img.zst.root"]));
}

#[test]
fn what_is_not_signed_or_signed_for_another_image_is_refused() {
    let rig = Rig::new();
    rig.refused("our.pub", "refused", &["must be signed", "a.img.zst.root"]);
    rig.agent(&["sign", "a.img.zst", "-s", "our.key"]);
    rig.refused("nothing.pub", "not_found", &["nothing.pub"]);
    rig.refused("RWnonsense", "not_found", &["RWnonsense"]);

    let good = rig.text("a.img.zst.root");
    let root = good.lines().nth(1).unwrap();
    rig.forge(&good.replace(root, &format!("root {}", "0".repeat(64))));
    rig.refused("our.pub", "image_corrupt", &["image of root"]);
    rig.forge(&good.replace("size ", "size 1"));
    rig.refused("our.pub", "image_corrupt", &["image of size"]);
    rig.forge(&good.replace("name a", "name b"));
    rig.refused("our.pub", "image_corrupt", &["image of name b.img.zst"]);
    rig.forge(&format!("{good}more\n"));
    rig.refused("our.pub", "image_corrupt", &["no root file"]);
    rig.forge(&good);
    rig.agent(&["verify", "a.img.zst", "--require-signature", "our.pub"]);

    // Changed after it was signed.
    fs::write(rig.path("a.img.zst.root"), good.replace("name a", "name b")).unwrap();
    rig.refused("our.pub", "image_corrupt", &["not of this file"]);
    fs::write(rig.path("a.img.zst.root"), &good).unwrap();
    let signature = rig.text("a.img.zst.root.minisig");
    fs::write(rig.path("a.img.zst.root.minisig"), signature.replace("timestamp:", "timestamp:9"))
        .unwrap();
    rig.refused("our.pub", "image_corrupt", &["trusted comment"]);
    fs::remove_file(rig.path("a.img.zst.root.minisig")).unwrap();
    rig.refused("our.pub", "refused", &["must be signed", "a.img.zst.root.minisig"]);
}

#[test]
fn a_job_insists_on_a_signature_as_the_command_does() {
    let rig = Rig::new();
    let job = |key: &str| {
        let job = serde_json::json!({
            "id": "1", "disk": rig.path("target"), "image_url": rig.path("a.img.zst"),
            "action": "restore", "options": {"require_signature": key},
        });
        let mut child = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
            .args(["run", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), job.to_string().as_bytes())
            .unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let public = rig.text("our.pub").lines().nth(1).unwrap().to_owned();
    let before = fs::read(rig.path("target")).unwrap();
    assert!(job(&public).contains(r#""kind":"refused""#));
    assert!(fs::read(rig.path("target")).unwrap() == before, "it was written to");
    rig.agent(&["sign", "a.img.zst", "-s", "our.key"]);
    assert!(job(&public).contains(r#""result":"succeeded""#));
}

#[test]
fn keys_and_signatures_are_never_overwritten() {
    let rig = Rig::new();
    let key = rig.text("our.key");
    for (secret, public) in [("our.key", "new.pub"), ("new.key", "our.pub")] {
        rig.try_agent(&["keygen", "-W", "-s", secret, "-p", public])
            .refused("refused", &["never overwritten"]);
    }
    assert_eq!(rig.text("our.key"), key);
    assert!(!rig.path("new.key").exists() && !rig.path("new.pub").exists());
    rig.agent(&["sign", "a.img.zst", "-s", "our.key"]);
    rig.try_agent(&["sign", "a.img.zst", "-s", "our.key"]).refused("refused", &["exists"]);
    fs::remove_file(rig.path("a.img.zst.root.minisig")).unwrap();
    let text = rig.text("a.img.zst.root");
    fs::write(rig.path("a.img.zst.root"), text.replace("size ", "size 1")).unwrap();
    rig.try_agent(&["sign", "a.img.zst", "-s", "our.key"])
        .refused("refused", &["belongs to another image"]);
    fs::write(rig.path("a.img.zst.root"), text).unwrap();
    rig.agent(&["sign", "a.img.zst", "-s", "our.key"]);
    rig.try_agent(&["keygen", "-s", "new.key", "-p", "new.pub"])
        .refused("refused", &["password", "IMPRINT_KEY_PASSWORD"]);
}
