//! Which modules go into an image when nobody says more.
//!
//! `default` is for servers of unknown make: every Ethernet card, every disk controller, the buses they hang on, and the
//! paravirtual devices of the common hypervisors. `minimal` is for virtual machines: virtio, NVMe, ext4 and FAT. A set is a wish
//! list: what a kernel does not have, or has built in, is left out without a word.

use std::collections::BTreeSet;

use crate::module_tree::ModuleTree;

/// A set of modules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleSet {
    /// Drivers for servers: network, disks, their buses
    #[default]
    Default,
    /// Drivers for virtual machines: virtio, NVMe, ext4
    Minimal,
    /// Only what --module names
    None,
}

/// What every image with a set has. The names of the filesystems serve customising restored disks, and growing them; that of NFS
/// version 4, with what it needs, images on servers that have no other.
const MINIMAL: &[&str] = &[
    "drivers/virtio",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "virtio_console",
    "virtio-rng",
    "nvme",
    "sd_mod",
    "af_packet",
    "ext4",
    "xfs",
    "btrfs",
    "loop",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859-1",
    "nls_utf8",
    "efivarfs",
    "nfsv4",
];

const SERVER: &[&str] = &[
    // Network cards, the PHYs that some of them load by alias, and those of hypervisors.
    "drivers/net/ethernet",
    "drivers/net/phy",
    "drivers/net/mdio",
    "drivers/net/pcs",
    "drivers/net/hyperv",
    "drivers/net/vmxnet3",
    "drivers/net/usb",
    "xen-netfront",
    // Disks.
    "drivers/ata",
    "drivers/scsi",
    "drivers/nvme/host",
    "drivers/message/fusion",
    "drivers/block/xen-blkfront.ko",
    "drivers/block/mtip32xx",
    "drivers/mmc",
    "drivers/ufs",
    "drivers/usb/storage",
    // Buses.
    "drivers/usb/host",
    "drivers/hv",
    "drivers/xen",
    "drivers/pci",
    "drivers/misc/eeprom/eeprom_93cx6.ko",
    // Checksums that filesystems and drivers ask the kernel's crypto for.
    "crypto-crc32c",
    "crypto-crct10dif",
];

/// Folders and modules below a folder of [`SERVER`] that no server boots from: test drivers and targets.
const NOT_NEEDED: &[&str] =
    &["scsi_debug", "tcm_qla2xxx", "netdevsim", "uas_test", "mmc_test", "pktgen"];

impl ModuleSet {
    /// The modules of the set that the tree has, without their dependencies.
    #[must_use]
    pub fn modules(self, tree: &ModuleTree) -> BTreeSet<String> {
        let lists: &[&[&str]] = match self {
            Self::Default => &[MINIMAL, SERVER],
            Self::Minimal => &[MINIMAL],
            Self::None => &[],
        };
        lists
            .iter()
            .flat_map(|list| list.iter())
            .flat_map(|text| tree.find(text).unwrap_or_default())
            .filter(|name| !NOT_NEEDED.contains(&name.as_str()))
            .collect()
    }
}
