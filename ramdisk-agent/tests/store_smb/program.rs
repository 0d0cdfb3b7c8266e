//! The built program, with credentials from a file and from the environment.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use fault_proxy::{Proxy, Way};
use serde_json::Value;

use crate::real_servers::{RealServer as _, pattern, wait_until};
use crate::samba::{PASSWORD, Samba, USER};

fn agent(arguments: &[&str], environment: &[(&str, &str)]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_disk_goes_to_a_share_and_comes_back() {
    let server = Samba::start_with("smb encrypt = required", "", None);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [disk, back, credentials] = ["disk", "back", "credentials"].map(|n| folder.path().join(n));
    let mut data = pattern(24 << 20, 1);
    data[4 << 20..12 << 20].fill(0);
    std::fs::write(&disk, &data).unwrap();
    std::fs::write(&back, pattern(24 << 20, 2)).unwrap();
    std::fs::write(&credentials, format!("user={USER}\npassword={PASSWORD}\n")).unwrap();
    let (url, with) = ("smb://127.0.0.1/images/x.img.zst", path(&credentials));

    let succeeds = |arguments: &[&str], environment: &[(&str, &str)]| {
        let (done, text) = agent(arguments, environment);
        assert!(done, "{arguments:?}: {text}");
        assert!(!text.contains(PASSWORD), "{text}");
        text
    };
    succeeds(&["capture", path(&disk), url, "--credentials", with], &[]);
    let listed = succeeds(&["ls", "smb://127.0.0.1/images", "--credentials", with], &[]);
    assert!(listed.contains("x.img.zst"), "{listed}");
    let environment = [("IMPRINT_STORE_USER", USER), ("IMPRINT_STORE_PASSWORD", PASSWORD)];
    succeeds(&["verify", url], &environment);
    succeeds(&["restore", url, path(&back), "--yes", "--credentials", with], &[]);
    assert!(std::fs::read(&back).unwrap() == data);

    let (done, text) = agent(&["verify", url], &[]);
    assert!(
        !done && text.contains("give user and password") && text.contains("[refused]"),
        "{text}"
    );
    let wrong = [("IMPRINT_STORE_USER", USER), ("IMPRINT_STORE_PASSWORD", "not that one")];
    let proxy = Proxy::start(server.address(), []).unwrap();
    let (done, text) =
        agent(&["verify", &server.url_at(proxy.port(), "x.img.zst").to_string()], &wrong);
    assert!(!done && text.contains("tried once"), "{text}");
    assert!(!text.contains("not that one"), "{text}");
    assert_eq!(proxy.connections(), 1, "it was tried more than once");
    drop(server);
}

/// A page of an index is of 256 spans of 4 MiB; this disk has more of them, with something in each.
const SPANS: u64 = 330;

#[test]
fn a_killed_capture_goes_on_in_the_share() {
    let server = Samba::start();
    let proxy = Proxy::start(server.address(), []).unwrap();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("disk");
    let file = std::fs::File::create(&disk).unwrap();
    file.set_len(SPANS << 22).unwrap();
    for span in 0..SPANS {
        file.write_all_at(&pattern(64 << 10, span), span << 22).unwrap();
    }
    let environment = [("IMPRINT_STORE_USER", USER), ("IMPRINT_STORE_PASSWORD", PASSWORD)];
    let port = proxy.address().port();
    let url = |name: &str| format!("smb://127.0.0.1:{port}/images/{name}");
    let captured = |name: &str, flags: &[&str]| {
        let before = proxy.bytes(Way::ToServer);
        let url = url(name);
        let arguments = [&["capture", path(&disk), &url, "--json"], flags].concat();
        let (done, text) = agent(&arguments, &environment);
        assert!(done, "{text}");
        // Behind it is what was said beside.
        let summary = serde_json::Deserializer::from_str(&text).into_iter::<Value>().next();
        let summary = summary.unwrap().unwrap();
        (summary, proxy.bytes(Way::ToServer) - before)
    };
    let (whole, sent_whole) = captured("whole.img.zst", &[]);
    let len = whole["stored_bytes"].as_u64().unwrap();

    // At the limit it takes more than a second: it is not done before it is killed.
    let mut killed = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["capture", path(&disk), &url("x.img.zst"), "--limit", "16M"])
        .envs(environment)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = server.folder().join("x.img.zst.partial");
    wait_until("most of the image", Duration::from_secs(120), || {
        assert!(killed.try_wait().unwrap().is_none(), "it ended before");
        std::fs::metadata(&partial).is_ok_and(|found| found.len() >= len * 93 / 100)
    });
    killed.kill().unwrap();
    killed.wait().unwrap();

    let (resumed, sent) = captured("x.img.zst", &["--resume"]);
    assert_eq!(resumed["resumed_bytes"], 256 << 22, "{resumed}");
    assert_eq!(resumed["stored_bytes"], len, "an image of the same disk has the same length");
    assert!(sent < sent_whole / 2, "{sent} of {sent_whole} bytes");
    println!("{sent} bytes were sent, {sent_whole} for a whole image");
    let (done, text) = agent(&["verify", "--deep", &url("x.img.zst")], &environment);
    assert!(done, "{text}");
    let image = server.folder().join("x.img.zst");
    let compare = format!("zstd -dcq {} | cmp - {}", image.display(), disk.display());
    assert!(Command::new("sh").args(["-c", &compare]).status().unwrap().success());
    assert!(!partial.exists());
}

#[test]
fn credentials_that_are_none_are_refused_and_never_quoted() {
    use std::os::unix::ffi::OsStringExt as _;
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let with = |content: &[u8]| {
        std::fs::write(&file, content).unwrap();
        let (done, text) =
            agent(&["verify", "smb://127.0.0.1:1/i/x", "--credentials", path(&file)], &[]);
        assert!(!done && text.contains("[refused]"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
        text
    };
    assert!(with(b"hunter2\n").contains("every user of this machine may read"));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(!with(b"hunter2\n").contains("every user"));
    for (content, word) in [
        (b"hunter2\n".as_slice(), "line 1"),
        (b"user=me\npassword=hunter2\n[https://me:hunter2@nas/x]\ntoken=hunter2\n", "no URL"),
        (b"[smb://me:a/hunter2@nas/x]\nuser=me\n", "no URL"),
        (b"password=hunter2\n", "and no user"),
        (b"domain=HOME\n", "and no user"),
        (b"token=hunter2\n", "a token was given"),
        (b"password=\xff\xfehunter2\n", "UTF-8"),
        (b"\xff\xfeh\0u\0n\0", "UTF-8"),
        (&[b'#'; 70_000], "longer than"),
    ] {
        let text = with(content);
        assert!(text.contains(word), "{text}");
    }
    let (done, text) =
        agent(&["verify", "smb://127.0.0.1:1/i/x", "--credentials", path(folder.path())], &[]);
    assert!(!done && text.contains("directory"), "{text}");

    // Nor does a password without a user make a guest, wherever it is from; what the file says, the environment completes.
    std::fs::write(&file, "user=me\n").unwrap();
    let environment = [("IMPRINT_STORE_PASSWORD", "hunter2")];
    let asked = ["verify", "smb://no-such-host.invalid/i/x"];
    let (done, text) = agent(&asked, &environment);
    assert!(!done && text.contains("and no user") && text.contains("[refused]"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let both = [("IMPRINT_STORE_PASSWORD", "hunter2"), ("IMPRINT_STORE_USER", "me")];
    for text in [
        agent(&[&asked[..], &["--credentials", path(&file)]].concat(), &environment).1,
        agent(&asked, &both).1,
    ] {
        // It comes as far as looking for the server.
        assert!(text.contains("[network]") && !text.contains("hunter2"), "{text}");
    }

    // A variable that is no text is not taken for none, which would be a guest.
    let odd = std::ffi::OsString::from_vec(b"hunter2\xff".to_vec());
    let output = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["verify", "smb://127.0.0.1:1/i/x"])
        .env("IMPRINT_STORE_PASSWORD", odd)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("IMPRINT_STORE_PASSWORD is not UTF-8"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}
