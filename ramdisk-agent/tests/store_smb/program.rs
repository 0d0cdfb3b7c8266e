//! The built program, with credentials from a file and from the environment.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::real_servers::pattern;
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
    let (done, text) = agent(&["verify", url], &wrong);
    assert!(!done && text.contains("tried once"), "{text}");
    assert!(!text.contains("not that one"), "{text}");
    drop(server);
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
