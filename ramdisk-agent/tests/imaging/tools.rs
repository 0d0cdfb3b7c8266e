//! Running programs.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Runs a tool of a Debian package, whatever it says in the end.
pub fn status(package: &str, tool: &str, args: &[impl AsRef<OsStr>]) -> Output {
    // Not every user has the folders of administration in PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("env")
        .arg(format!("PATH={path}"))
        .args(["LC_ALL=C", "MTOOLS_SKIP_CHECK=1", "MTOOLSRC=/dev/null"])
        .arg(tool)
        .args(args)
        .output()
        .expect("env can be started");
    assert_ne!(output.status.code(), Some(127), "{tool} is missing: apt-get install {package}");
    output
}

/// Runs a tool that must succeed; what it printed.
pub fn run(package: &str, tool: &str, args: &[impl AsRef<OsStr>]) -> String {
    let output = status(package, tool, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} failed ({}):\n{text}{errors}", output.status);
    text
}
