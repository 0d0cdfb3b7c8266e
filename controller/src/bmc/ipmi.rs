//! IPMI 2.0 through `ipmitool -I lanplus`.
//!
//! The password goes to the child by environment, never by argument; the rest of the environment is empty. Cipher suite 17 is tried
//! first, then 3; weaker ones never. ipmitool exits with 1 whatever went wrong, so `-v` and its texts tell a wrong password (stop
//! for good) from a BMC that does not answer (try again).

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::secret::Secret;

/// Cipher suites that are acceptable, the better one first.
const CIPHERS: [u8; 2] = [17, 3];
/// A child that takes longer is killed.
const LIMIT: Duration = Duration::from_secs(30);
/// As much of ipmitool's text as an error message carries, in bytes.
const DETAIL_MAX: usize = 200;

/// A BMC and who we are to it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Address or name.
    pub host: String,
    /// UDP port.
    pub port: u16,
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// Why a command did not work.
#[derive(Debug)]
pub enum Failure {
    /// Wrong user or password.
    Refused,
    /// No answer to the very first request, which is the same for every cipher suite, or nobody to ask.
    NoAnswer(String),
    /// No session.
    Unreachable(String),
    /// Anything else.
    Other(String),
    /// ipmitool could not be started.
    Tool(io::Error),
}

/// Runs one command. Returns what it printed and the cipher suite that worked.
///
/// # Errors
/// When the BMC or the tool does not do it.
pub async fn run(
    tool: &Path,
    target: &Target,
    cipher: Option<u8>,
    args: &[&str],
) -> Result<(String, u8), Failure> {
    let known = cipher.filter(|c| CIPHERS.contains(c));
    let mut last = None;
    for cipher in known.map_or(CIPHERS.to_vec(), |c| vec![c]) {
        match run_with(tool, target, cipher, args).await {
            Ok(said) => return Ok((said, cipher)),
            Err(failure @ (Failure::Refused | Failure::NoAnswer(_) | Failure::Tool(_))) => {
                return Err(failure);
            }
            Err(failure) => last = Some(failure),
        }
    }
    Err(last.unwrap_or_else(|| Failure::Other("no cipher suite was tried".to_owned())))
}

async fn run_with(
    tool: &Path,
    target: &Target,
    cipher: u8,
    args: &[&str],
) -> Result<String, Failure> {
    let child = Command::new(tool)
        .args(["-v", "-I", "lanplus", "-N", "2", "-R", "3", "-E"])
        .args(["-C", &cipher.to_string()])
        .args(["-H", &target.host, "-p", &target.port.to_string(), "-U", &target.user])
        .args(args)
        .env_clear()
        .env("IPMITOOL_PASSWORD", target.password.expose())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(Failure::Tool)?;
    let output = match timeout(LIMIT, child.wait_with_output()).await {
        Ok(output) => output.map_err(Failure::Tool)?,
        Err(_) => {
            return Err(Failure::Unreachable(format!("no end after {} s", LIMIT.as_secs())));
        }
    };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        // `-v` may print its own lines first; the answer is the last.
        let answer = stdout.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        return Ok(answer.to_owned());
    }
    Err(judge(&stdout, &stderr))
}

fn judge(stdout: &str, stderr: &str) -> Failure {
    let said = |text: &str| stderr.contains(text) || stdout.contains(text);
    if said("RAKP 2 HMAC is invalid")
        || said("RAKP 2 message indicates an error : unauthorized name")
        || said("unauthorized name")
    {
        return Failure::Refused;
    }
    let detail: String = stderr
        .lines()
        .chain(stdout.lines())
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .take(DETAIL_MAX)
        .collect();
    if said("Get Auth Capabilities error") || said("Address lookup for") {
        Failure::NoAnswer(detail)
    } else if said("Unable to establish") {
        Failure::Unreachable(detail)
    } else {
        Failure::Other(detail)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn texts_of_ipmitool() {
        let bad = "> RAKP 2 HMAC is invalid\nError: Unable to establish IPMI v2 / RMCP+ session\n";
        assert!(matches!(judge("", bad), Failure::Refused));
        let user = "RAKP 2 message indicates an error : unauthorized name\n";
        assert!(matches!(judge("", user), Failure::Refused));
        let dead =
            "Get Auth Capabilities error\nError: Unable to establish IPMI v2 / RMCP+ session\n";
        assert!(matches!(judge("", dead), Failure::NoAnswer(_)));
        let suite = "Error in open session response message : no matching cipher suite\nError: Unable to establish IPMI v2 / RMCP+ session\n";
        assert!(matches!(judge("", suite), Failure::Unreachable(_)));
        let busy = "Set Chassis Power Control to Up/On failed: Node busy\n";
        assert!(matches!(judge("", busy), Failure::Other(_)));
    }

    /// Each run takes 18 s, and a caller waits for four rounds of them.
    #[tokio::test]
    async fn a_bmc_that_does_not_answer_is_not_asked_for_another_cipher_suite() {
        let folder = tempfile::tempdir().unwrap();
        let runs_of = async |says: &str| {
            let (tool, runs) = (folder.path().join("ipmitool"), folder.path().join("runs"));
            let script =
                format!("#!/bin/sh\necho >> {}\necho '{says}' >&2\nexit 1\n", runs.display());
            std::fs::write(&tool, script).unwrap();
            std::fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
            let target = Target {
                host: "10.0.0.7".to_owned(),
                port: 623,
                user: "admin".to_owned(),
                password: Secret::random(),
            };
            run(&tool, &target, None, &["chassis", "power", "status"]).await.unwrap_err();
            let count = std::fs::read_to_string(&runs).unwrap().lines().count();
            std::fs::remove_file(&runs).unwrap();
            count
        };
        assert_eq!(runs_of("Get Auth Capabilities error").await, 1);
        assert_eq!(runs_of("Error: Unable to establish IPMI v2 / RMCP+ session").await, 2);
    }
}
