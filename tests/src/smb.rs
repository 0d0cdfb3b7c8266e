//! Another image store: smbd, which wants a password and speaks to nobody without encryption.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::net::{ADDRESS, Network};
use crate::process::{Server, tail};

/// The account of the share: smbd wants one that the system has, and every Debian has this one.
pub const USER: &str = "games";
/// Its password, with what a careless quoting would break.
pub const PASSWORD: &str = "lab's secret; $HOME is \"not\" one";
/// The share.
const SHARE: &str = "images";
const PORT: u16 = 445;
/// How long smbd may take to listen: five times what was measured.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// What protects messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// Nothing: anybody is let in as a guest, and guests cannot sign.
    None,
    /// Every message is signed, none encrypted.
    Signed,
    /// Every message is encrypted.
    Encrypted,
}

/// A running SMB server.
#[derive(Debug)]
pub struct SmbServer {
    folder: PathBuf,
    _server: Server,
}

impl SmbServer {
    /// Starts the server, which wants encryption. `folder` gets its configuration and state, and `images` in it is what is shared.
    ///
    /// # Errors
    /// If smbd does not come up.
    pub fn start(network: &Network, folder: &Path) -> Result<Self> {
        Self::start_with(network, folder, Protection::Encrypted)
    }

    /// The same with this protection.
    ///
    /// # Errors
    /// If smbd does not come up.
    pub fn start_with(network: &Network, folder: &Path, protection: Protection) -> Result<Self> {
        let shared = folder.join("images");
        std::fs::create_dir_all(&shared).with_context(|| format!("making {}", shared.display()))?;
        let config = folder.join("smb.conf");
        std::fs::write(&config, configuration(folder, protection)?)
            .with_context(|| format!("writing {}", config.display()))?;
        let mut smbpasswd = network
            .command("smbpasswd")
            .arg("-c")
            .arg(&config)
            .args(["-s", "-a", USER])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("starting smbpasswd")?;
        let mut input = smbpasswd.stdin.take().context("smbpasswd has no standard input")?;
        writeln!(input, "{PASSWORD}\n{PASSWORD}").context("telling smbpasswd the password")?;
        drop(input);
        ensure!(smbpasswd.wait().context("waiting for smbpasswd")?.success(), "smbpasswd failed");
        let mut smbd = network.command("smbd");
        smbd.args(["--foreground", "--no-process-group", "-s"]).arg(&config);
        // At its end it signals its whole group.
        smbd.process_group(0);
        let mut server = Server::start("smbd", &mut smbd, &folder.join("smbd.out"))?;
        server
            .wait_ready(READY_LIMIT, || network.is_listening(PORT))
            .with_context(|| format!("its own log ends so:\n{}", tail(&folder.join("smbd.log"))))?;
        Ok(Self { folder: folder.to_owned(), _server: server })
    }

    /// The shared folder, as this machine sees it.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    /// The hash of the password, as good as the password itself: what smbd has in its file, in hexadecimal digits.
    ///
    /// # Errors
    /// If the file is not as smbpasswd writes it.
    pub fn password_hash(&self) -> Result<String> {
        let path = self.folder.join("private/smbpasswd");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let hash = text.trim().split(':').nth(3).context("smbpasswd's fourth field")?;
        ensure!(hash.len() == 32, "{hash:?} is no hash of a password");
        Ok(hash.to_owned())
    }

    /// The share's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("smb://{ADDRESS}/{SHARE}")
    }
}

fn configuration(folder: &Path, protection: Protection) -> Result<String> {
    let mut text = String::from("[global]\n");
    for (key, name) in [
        ("private dir", "private"),
        ("state directory", "state"),
        ("cache directory", "cache"),
        ("lock directory", "lock"),
        ("pid directory", "pid"),
        ("ncalrpc dir", "ncalrpc"),
    ] {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        writeln!(text, "{key} = {}", folder.display())?;
    }
    let who = match protection {
        Protection::None => "guest ok = yes".to_owned(),
        _ => format!("valid users = {USER}"),
    };
    let protection = match protection {
        Protection::None => "map to guest = Bad User\nserver smb encrypt = off",
        Protection::Signed => "server signing = mandatory\nserver smb encrypt = off",
        Protection::Encrypted => "server smb encrypt = required",
    };
    write!(
        text,
        "smb ports = {PORT}\ninterfaces = {ADDRESS}\nbind interfaces only = yes\nlog file = {log}\n\
         passdb backend = smbpasswd:{passwords}\ndisable netbios = yes\ndisable spoolss = yes\nload printers = no\n\
         server role = standalone server\n{protection}\n\
         [{SHARE}]\npath = {shared}\nread only = no\nforce user = root\n{who}\n",
        log = folder.join("smbd.log").display(),
        passwords = folder.join("private/smbpasswd").display(),
        shared = folder.join("images").display(),
    )?;
    Ok(text)
}
