//! Running the filesystems' own tools.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool of a Debian package and gives what it printed; its exit status must be 0.
pub fn run(package: &str, tool: &str, args: &[impl AsRef<OsStr>]) -> String {
    let output = status(package, tool, args);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let args: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy().into_owned()).collect();
    assert!(
        output.status.success(),
        "{tool} {} failed ({}):\n{out}{err}",
        args.join(" "),
        output.status
    );
    out.into_owned()
}

/// Runs a tool, whatever it says in the end.
pub fn status(package: &str, tool: &str, args: &[impl AsRef<OsStr>]) -> Output {
    // Not every user has the folders of administration in PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new("env")
        .arg(format!("PATH={path}"))
        .args(["LC_ALL=C", "MTOOLS_SKIP_CHECK=1", "MKE2FS_SKIP_PROGRESS=1", "MTOOLSRC=/dev/null"])
        .arg(tool)
        .args(args)
        .output()
        .inspect(|output| {
            let missing = output.status.code() == Some(127);
            assert!(!missing, "{tool} is missing: apt-get install {package}");
        })
        .expect("env can be started")
}

/// The tools of ext2, ext3 and ext4.
pub fn e2fs(tool: &str, args: &[impl AsRef<OsStr>]) -> String {
    run("e2fsprogs", tool, args)
}

/// What libblkid says of a volume.
pub fn blkid(volume: &Path, tag: &str) -> Option<String> {
    let args = [
        OsStr::new("-p"),
        "-s".as_ref(),
        tag.as_ref(),
        "-o".as_ref(),
        "value".as_ref(),
        volume.as_ref(),
    ];
    let output = status("util-linux", "blkid", &args);
    let value = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    (!value.is_empty()).then_some(value)
}
