//! DHCP, TFTP and router advertisements, by a dnsmasq that runs as our child.
//!
//! Entries are about hosts, never about jobs: a host has its address from the day it is entered, and what it boots is decided by
//! the boot script alone. Machines that are no hosts get no answer. The folder with the child's files is made anew at every start
//! from the database; it lies outside the private data folder, because dnsmasq reads it as an unprivileged user.

mod child;
mod config;
pub mod rival;

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::unistd::User;

use crate::db::Host;
use crate::net::Subnet;

pub use child::supervise;

/// iPXE's files: for BIOS, for UEFI with the firmware's own driver, for UEFI with iPXE's drivers.
pub const LOADERS: [&str; 3] = ["undionly.kpxe", "snponly.efi", "ipxe.efi"];

/// How DHCP is served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// dnsmasq.
    pub dnsmasq: PathBuf,
    /// The network interface.
    pub interface: String,
    /// Its address and network.
    pub subnet: Subnet,
    /// First and last address for hosts without one.
    pub pool: (Ipv4Addr, Ipv4Addr),
    /// Default gateway that hosts are told.
    pub gateway: Option<Ipv4Addr>,
    /// Name server that hosts are told.
    pub dns: Option<Ipv4Addr>,
    /// Whether to send router advertisements, without which Debian's iPXE waits 13 s.
    pub router_advertisements: bool,
    /// Where iPXE's files are taken from.
    pub ipxe_dir: PathBuf,
    /// Folder for the child's files.
    pub run_dir: PathBuf,
    /// `http://A:P` of the boot files.
    pub http_url: String,
    /// Pin of the controller's key; the private IPv6 prefix is derived from it.
    pub pin: String,
}

/// Why DHCP cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// A file operation failed.
    #[error("{doing} {path}", path = path.display())]
    Io {
        /// What was tried, as a gerund.
        doing: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// iPXE is not installed.
    #[error("{path} is missing: install Debian's package ipxe, or give --ipxe-dir", path = .0.display())]
    NoIpxe(PathBuf),
    /// No address is left.
    #[error(
        "no address is free between {0} and {1}: give the host one with --ip, or serve with a larger --pool"
    )]
    PoolEmpty(Ipv4Addr, Ipv4Addr),
    /// An address that cannot be given.
    #[error("{0} is not an address for a host on {1}")]
    Address(Ipv4Addr, Subnet),
    /// An older dnsmasq of ours does not end.
    #[error("the dnsmasq with process id {0}, left over from an earlier run, does not end")]
    Stale(i32),
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DhcpError {
    let path = path.to_owned();
    move |source| DhcpError::Io { doing, path, source }
}

/// The DHCP entries and the child that serves them.
#[derive(Debug)]
pub struct Dhcp {
    settings: Settings,
    // Process id of the running child.
    child: Mutex<Option<i32>>,
}

impl Dhcp {
    /// Ends a child of an earlier run and writes everything that a new one needs.
    ///
    /// # Errors
    /// When files cannot be written or iPXE is missing.
    pub fn prepare(settings: Settings, hosts: &[Host]) -> Result<Self, DhcpError> {
        let dir = settings.run_dir.clone();
        fs::create_dir_all(&dir).map_err(io_error("making the folder", &dir))?;
        fs::set_permissions(&dir, Permissions::from_mode(0o755))
            .map_err(io_error("opening", &dir))?;
        child::end_stale(&dir)?;
        let user = nix::unistd::geteuid().is_root().then(unprivileged).flatten();
        let tftp = dir.join("tftp");
        let entries = dir.join("hosts");
        for folder in [&tftp, &entries] {
            match fs::remove_dir_all(folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("emptying", folder)(e));
                }
                _ => {}
            }
            fs::create_dir(folder).map_err(io_error("making the folder", folder))?;
        }
        for name in LOADERS {
            let (from, to) = (settings.ipxe_dir.join(name), tftp.join(name));
            if !from.exists() {
                return Err(DhcpError::NoIpxe(from));
            }
            fs::copy(&from, &to).map_err(io_error("copying", &from))?;
            fs::set_permissions(&to, Permissions::from_mode(0o644))
                .map_err(io_error("opening", &to))?;
            if let Some(user) = &user {
                // `tftp-secure` serves only what belongs to the user that dnsmasq runs as.
                chown(&to, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                    .map_err(io_error("giving to dnsmasq", &to))?;
            }
        }
        let config = dir.join("dnsmasq.conf");
        let text = config::render(&settings, user.as_ref().map(|user| user.name.as_str()));
        fs::write(&config, text).map_err(io_error("writing", &config))?;
        let dhcp = Self { settings, child: Mutex::new(None) };
        for host in hosts {
            dhcp.write_entry(host)?;
        }
        Ok(dhcp)
    }

    /// Where iPXE's files lie.
    #[must_use]
    pub fn loader_dir(&self) -> PathBuf {
        self.settings.run_dir.join("tftp")
    }

    /// The address for a new host: the one that is wished, or a free one of the pool.
    ///
    /// # Errors
    /// When the wish cannot be granted, or nothing is free.
    pub fn choose_ip(&self, wish: Option<Ipv4Addr>, hosts: &[Host]) -> Result<Ipv4Addr, DhcpError> {
        let subnet = &self.settings.subnet;
        if let Some(ip) = wish {
            return if subnet.is_host(ip) && ip != subnet.address {
                Ok(ip)
            } else {
                Err(DhcpError::Address(ip, *subnet))
            };
        }
        let taken: HashSet<Ipv4Addr> = hosts.iter().filter_map(|host| host.ip).collect();
        let (first, last) = self.settings.pool;
        (u32::from(first)..=u32::from(last))
            .map(Ipv4Addr::from)
            .find(|ip| !taken.contains(ip) && subnet.is_host(*ip) && *ip != subnet.address)
            .ok_or(DhcpError::PoolEmpty(first, last))
    }

    /// Makes a host known.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn set_host(&self, host: &Host) -> Result<(), DhcpError> {
        self.write_entry(host)?;
        self.reread();
        Ok(())
    }

    /// Makes a host unknown. dnsmasq keeps what it read from a file that is gone until it is told to read all anew, so the entry is
    /// first turned into a refusal.
    ///
    /// # Errors
    /// When its file cannot be changed.
    pub fn remove_host(&self, host: &Host) -> Result<(), DhcpError> {
        let path = self.entry_path(host);
        let refusal: String = host.macs.iter().map(|mac| format!("{mac},ignore\n")).collect();
        self.put(&path, &refusal)?;
        fs::remove_file(&path).map_err(io_error("removing", &path))?;
        self.reread();
        Ok(())
    }

    fn entry_path(&self, host: &Host) -> PathBuf {
        self.settings.run_dir.join("hosts").join(&host.name)
    }

    fn write_entry(&self, host: &Host) -> Result<(), DhcpError> {
        self.put(&self.entry_path(host), &config::entry(host))
    }

    fn put(&self, path: &Path, text: &str) -> Result<(), DhcpError> {
        // Written elsewhere and moved in: dnsmasq never sees half an entry.
        let partial = self.settings.run_dir.join("entry.partial");
        fs::write(&partial, text).map_err(io_error("writing", &partial))?;
        fs::set_permissions(&partial, Permissions::from_mode(0o644))
            .map_err(io_error("opening", &partial))?;
        fs::rename(&partial, path).map_err(io_error("writing", path))
    }
}

/// The user that a dnsmasq started by root becomes.
fn unprivileged() -> Option<User> {
    ["dnsmasq", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten())
}
