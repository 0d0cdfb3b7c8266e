//! The image store: nfs-ganesha, a real NFS server in user space, exporting one folder as `/images`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::net::{ADDRESS, Network};
use crate::process::{self, Server};

/// What clients mount.
pub const EXPORT: &str = "/images";
/// The NFS port, the standard one.
const PORT: u16 = 2049;
/// Ganesha does not start without a portmapper. The first argument is the file for the portmapper's number.
const START: &str = "\
set -e
mount -t tmpfs tmpfs /run
mkdir /run/ganesha /run/rpcbind
rpcbind -f &
echo $! > \"$1\"
shift
until ss -Hlnt sport = :111 | grep -q .; do sleep 0.05; done
exec ganesha.nfsd -F \"$@\"
";
/// How long ganesha may take to listen: five times what was measured.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// A running NFS server.
#[derive(Debug)]
pub struct NfsServer {
    server: Option<Server>,
    folder: PathBuf,
}

impl NfsServer {
    /// Starts the server. `folder` gets its configuration and state, and `images` in it is what is exported.
    ///
    /// # Errors
    /// If ganesha does not come up.
    pub fn start(network: &Network, folder: &Path) -> Result<Self> {
        let mut nfs = Self { server: None, folder: folder.to_owned() };
        for folder in [nfs.images(), folder.join("recovery")] {
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("making {}", folder.display()))?;
        }
        nfs.restart(network)?;
        Ok(nfs)
    }

    /// The exported folder, as this machine sees it.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    /// The URL of a file in the export.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("nfs://{ADDRESS}{EXPORT}/{name}")
    }

    /// The same by version 4 of the protocol, for the kernel's client.
    #[must_use]
    pub fn url_of_version_4(&self, name: &str) -> String {
        format!("nfs4://{ADDRESS}{EXPORT}/{name}")
    }

    /// Kills the server, as a crash would.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn crash(&mut self) -> Result<()> {
        self.end_rpcbind();
        self.server.take().map_or(Ok(()), Server::kill)
    }

    /// Starts the server, again after a [`crash`](Self::crash).
    ///
    /// # Errors
    /// If ganesha does not come up.
    pub fn restart(&mut self, network: &Network) -> Result<()> {
        let config = self.folder.join("ganesha.conf");
        std::fs::write(&config, self.config())
            .with_context(|| format!("writing {}", config.display()))?;
        // `ip netns exec` gives a mount namespace of its own; a private /run keeps the sockets of both out of the host's.
        let mut ganesha = network.command("sh");
        ganesha.args(["-c", START, "sh"]).arg(self.rpcbind_pid());
        ganesha.arg("-f").arg(&config).arg("-p").arg(self.folder.join("ganesha.pid"));
        ganesha.arg("-L").arg(self.folder.join("ganesha.log")).args(["-N", "NIV_EVENT"]);
        let mut server =
            Server::start("ganesha.nfsd", &mut ganesha, &self.folder.join("ganesha.out"))?;
        server.wait_ready(READY_LIMIT, || network.is_listening(PORT))?;
        self.server = Some(server);
        Ok(())
    }

    fn rpcbind_pid(&self) -> PathBuf {
        self.folder.join("rpcbind.pid")
    }

    /// Ends the portmapper, if it is still ours.
    fn end_rpcbind(&self) {
        let pid = std::fs::read_to_string(self.rpcbind_pid()).ok();
        let pid = pid.and_then(|text| text.trim().parse::<u32>().ok());
        let ours = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "rpcbind")
        };
        process::end_all(&Vec::from_iter(pid.filter(ours)));
    }

    fn config(&self) -> String {
        let images = self.images();
        let (images, recovery) = (images.display(), self.folder.join("recovery"));
        let recovery = recovery.display();
        format!(
            "NFS_CORE_PARAM {{\n  Protocols = 3, 4;\n  NFS_Port = {PORT};\n  MNT_Port = 20048;\n  Bind_addr = {ADDRESS};\n  \
             Enable_NLM = false;\n  Enable_RQUOTA = false;\n  Enable_UDP = false;\n  Plugins_Dir = /usr/lib/x86_64-linux-gnu/ganesha;\n  \
             mount_path_pseudo = true;\n}}\n\
             NFSv4 {{\n  Graceless = true;\n  Only_Numeric_Owners = true;\n  RecoveryBackend = fs;\n  RecoveryRoot = {recovery};\n}}\n\
             EXPORT {{\n  Export_Id = 1;\n  Path = {images};\n  Pseudo = {EXPORT};\n  Access_Type = RW;\n  \
             Squash = No_Root_Squash;\n  SecType = sys;\n  Protocols = 3, 4;\n  Transports = TCP;\n  FSAL {{ Name = VFS; }}\n}}\n\
             LOG {{ Default_Log_Level = EVENT; }}\n"
        )
    }
}

impl Drop for NfsServer {
    fn drop(&mut self) {
        self.end_rpcbind();
    }
}
