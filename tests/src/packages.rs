//! The Debian packages that Imprint's tasks need, each with its reason, and their installation.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// A package and what it is for.
pub type Package = (&'static str, &'static str);

/// For the static agent, where rustup has the target: C code is compiled against musl.
pub const AGENT_BY_RUSTUP: &[Package] = &[("musl-tools", "musl-gcc for the agent's C code")];

/// For the static agent, where rustup has no such target: a compiler with its standard library's source.
pub const AGENT_BY_ZIG: &[Package] = &[
    ("rustc-web", "compiler whose standard library can be built for musl"),
    ("cargo-web", "cargo that belongs to it"),
    ("rust-web-src", "source of the standard library"),
    ("python3-venv", "holds zig and cargo-zigbuild, from PyPI"),
];

/// For unit and property tests: the programs that images and filesystems are compared with.
pub const TESTS: &[Package] = &[
    ("gcc", "C code of some crates"),
    ("cpio", "lists our archives"),
    ("zstd", "unpacks our images"),
    ("e2fsprogs", "makes and checks ext4"),
    ("dosfstools", "makes and checks FAT"),
    ("mtools", "writes into FAT without mounting"),
    ("fdisk", "sfdisk writes partition tables"),
    ("gdisk", "sgdisk checks them"),
    ("util-linux", "losetup, mkswap, blkid"),
    ("xfsprogs", "makes and checks XFS"),
    ("btrfs-progs", "makes and checks btrfs"),
    ("ntfs-3g", "makes, mounts and checks NTFS"),
    ("exfatprogs", "makes and checks exFAT"),
    ("exfat-fuse", "writes and reads exFAT"),
    ("cryptsetup-bin", "makes LUKS"),
    ("lvm2", "makes physical volumes"),
    ("qemu-system-common", "qemu-storage-daemon: disks that fail as told"),
    ("xz-utils", "makes xz streams"),
    ("bzip2", "makes bzip2 streams"),
    ("pigz", "makes gzip streams in blocks, and checks ours"),
    ("qemu-utils", "qemu-img makes qcow2 and VMDK images"),
    ("partclone", "makes, checks and restores its images"),
    ("python3-venv", "readers of the seekable zstd format, from PyPI"),
    ("busybox-static", "a shell for scripts in restored systems"),
    ("minisign", "makes and checks the signatures that ours are compared with"),
    ("nfs-ganesha", "NFS server"),
    ("nfs-ganesha-vfs", "its access to plain folders"),
    ("rpcbind", "its portmapper"),
    ("libnfs-utils", "nfs-ls, another NFS client"),
    ("nginx-light", "web server"),
    ("curl", "another client of it"),
    ("samba", "SMB server"),
    ("smbclient", "another SMB client"),
    ("openipmi", "ipmi_sim, the BMC"),
    ("ipmitool", "speaks to BMCs"),
    ("dnsmasq-base", "DHCP and TFTP"),
    ("ipxe", "network boot programs that it hands out"),
    ("iproute2", "network namespaces"),
];

/// For the lab: machines, and the system that goes onto them.
pub const LAB: &[Package] = &[
    ("qemu-system-x86", "the machines"),
    ("ovmf", "UEFI firmware"),
    ("ipxe", "network boot programs for UEFI and BIOS"),
    ("ipxe-qemu", "network boot ROMs of QEMU's cards"),
    ("kmod", "depmod for unpacked kernels"),
    ("mmdebstrap", "the template's Debian tree"),
    ("grub-common", "grub-mkimage"),
    ("grub-pc-bin", "GRUB for BIOS"),
    ("grub-efi-amd64-bin", "GRUB for UEFI"),
    ("iproute2", "network namespace, bridge, taps"),
    ("nfs-ganesha", "an image store"),
    ("nfs-ganesha-vfs", "its access to plain folders"),
    ("rpcbind", "its portmapper"),
    ("samba", "another image store"),
    ("openipmi", "ipmi_sim, the machines' BMCs"),
    ("ipmitool", "how the controller speaks to them"),
    ("dnsmasq-base", "DHCP and TFTP"),
    ("e2fsprogs", "the template's root filesystem"),
    ("dosfstools", "its ESP"),
    ("mtools", "files in the ESP"),
    ("fdisk", "its partition table"),
    ("gdisk", "checks the restored one"),
    ("zstd", "unpacks the image independently"),
    ("tcpdump", "what goes over the network"),
];

/// For the benchmarks: the programs that we are compared with.
pub const BENCH: &[Package] = &[
    ("partclone", "what Clonezilla and FOG capture with"),
    ("zstd", "how they compress"),
    ("pigz", "how they compressed before"),
    ("lz4", "a faster way"),
    ("qemu-utils", "qemu-img"),
    ("e2fsprogs", "makes ext4; e2image"),
    ("xfsprogs", "makes XFS"),
    ("btrfs-progs", "makes btrfs"),
    ("ntfs-3g", "makes and mounts NTFS; ntfsclone"),
    ("fsarchiver", "saves files instead of blocks"),
    ("restic", "what an update adds to a repository"),
    ("borgbackup", "the same of another"),
    ("fdisk", "sfdisk writes partition tables"),
    ("gcc", "takes partclone's sleeps away"),
    ("time", "what a program used"),
];

/// For the rates of stores.
pub const BENCH_STORES: &[Package] = &[
    ("nfs-ganesha", "NFS server"),
    ("nfs-ganesha-vfs", "its access to plain folders"),
    ("rpcbind", "its portmapper"),
    ("samba", "SMB server"),
    ("smbclient", "another SMB client"),
    ("nginx-light", "web server"),
    ("curl", "another client of it"),
    ("iproute2", "network namespace"),
];

/// How often what is missing is installed: an installation may remove what was there before.
const ROUNDS: usize = 2;

/// Installs what is missing, after saying so, and looks again: where newer packages of a backport were installed, installing those
/// that depend on the older ones removes them without a word (qemu-utils and qemu-system-x86 on Debian 12).
///
/// # Errors
/// If something is missing and we are not root, if `apt-get` fails, or if something is missing still.
pub fn ensure(lists: &[&[Package]]) -> Result<()> {
    for _ in 0..ROUNDS {
        let missing = missing(lists)?;
        if missing.is_empty() {
            return Ok(());
        }
        install(&missing)?;
    }
    let missing = missing(lists)?;
    if let Some((name, reason)) = missing.first() {
        bail!(
            "the Debian package {name} ({reason}) is still missing after {ROUNDS} installations: another of the packages \
             removes it; `apt-get install -s {name}` shows which"
        );
    }
    Ok(())
}

fn install(missing: &[Package]) -> Result<()> {
    eprintln!("installing Debian packages:");
    for (name, reason) in missing {
        eprintln!("  {name:20} {reason}");
    }
    let names = missing.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "not root: run `apt-get install --no-install-recommends {}` as root, then again",
            names.join(" ")
        );
    }
    update_lists()?;
    let mut install = apt_get();
    install.args(["install", "-y", "-q", "--no-install-recommends"]).args(&names);
    command::output(&mut install).context("installing Debian packages")?;
    Ok(())
}

/// Brings apt's lists up to date, so that what is asked for next is there.
///
/// # Errors
/// If `apt-get` fails.
pub fn update_lists() -> Result<()> {
    command::output(apt_get().args(["update", "-q"]))
        .context("updating apt's package lists")
        .map(drop)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn missing(lists: &[&[Package]]) -> Result<Vec<Package>> {
    let mut query = Command::new("dpkg-query");
    query.args(["-W", "-f", "${Package} ${db:Status-Status}\n"]);
    let listing =
        command::output(&mut query).context("asking dpkg: Imprint's tasks run on Debian 12")?;
    let installed = |name: &str| listing.lines().any(|line| line == format!("{name} installed"));
    let mut missing: Vec<Package> = Vec::new();
    for package in lists.iter().flat_map(|list| list.iter()) {
        if !installed(package.0) && !missing.iter().any(|known| known.0 == package.0) {
            missing.push(*package);
        }
    }
    Ok(missing)
}
