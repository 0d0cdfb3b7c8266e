//! The built program, with credentials from a file and from the environment.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::real::pattern;
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
