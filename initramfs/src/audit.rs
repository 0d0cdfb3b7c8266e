//! Compares an image with a machine: which of its devices could it not drive?
//!
//! The machine is a list of modaliases, one a line, as any running Linux prints them with
//! `cat /sys/bus/*/devices/*/modalias`. Every machine has devices that no driver of any kernel wants (host bridges, ACPI
//! objects), and many that the agent has no use for (sound, graphics). So a finding is *needed* only if the device is a network
//! card, a disk controller or a bus that such hang on, by its driver's place in the kernel's source or by its PCI or USB class;
//! the others are listed as well, and do not count.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::build::Built;

/// The result of an audit.
#[derive(Debug, Clone, Serialize)]
pub struct Audit {
    /// Different modaliases looked at.
    pub devices: usize,
    /// Those with a driver in the image or in the kernel, and no firmware missing.
    pub covered: usize,
    /// The others: needed ones first.
    pub findings: Vec<Finding>,
}

/// A device that the image cannot drive, or perhaps not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Whether the agent has a use for such a device.
    #[serde(skip)]
    not_needed: bool,
    /// The same, the other way round, for readers.
    pub needed: bool,
    /// The device.
    pub modalias: String,
    /// What is missing.
    #[serde(flatten)]
    pub problem: Problem,
}

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// The kernel has a driver, the image does not.
    NotInside {
        /// The drivers that would do.
        modules: BTreeSet<String>,
    },
    /// This kernel has no driver for it.
    NoDriver {
        /// The kernel's version.
        kernel: String,
    },
    /// The driver is inside and names firmware that is not.
    NoFirmware {
        /// The driver.
        module: String,
        /// The files. The device may want one of them, or none.
        files: BTreeSet<String>,
    },
}

impl Audit {
    /// Whether something is missing that the agent needs.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        self.findings.iter().any(|f| f.needed)
    }
}

/// Audits an image for a machine.
#[must_use]
pub fn audit(built: &Built, modaliases: &str) -> Audit {
    let inside: BTreeSet<&str> = built.manifest.modules.iter().map(String::as_str).collect();
    let mut missing_firmware: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for missing in &built.manifest.missing_firmware {
        for module in &missing.modules {
            missing_firmware.entry(module).or_default().insert(missing.name.clone());
        }
    }
    let devices: BTreeSet<&str> =
        modaliases.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let mut findings = Vec::new();
    for modalias in &devices {
        let drivers: BTreeSet<&str> = built.tree.by_alias(modalias).collect();
        let mut present = drivers.iter().filter(|name| inside.contains(**name)).peekable();
        let mut found = |needed: bool, problem| {
            let modalias = (*modalias).to_owned();
            findings.push(Finding { not_needed: !needed, needed, modalias, problem });
        };
        if present.peek().is_some() {
            for module in present {
                if let Some(files) = missing_firmware.get(module) {
                    let needed = is_needed_driver(built, module);
                    found(
                        needed,
                        Problem::NoFirmware { module: (*module).to_owned(), files: files.clone() },
                    );
                }
            }
        } else if built.tree.builtin_by_alias(modalias).next().is_some() {
            // The kernel drives it by itself.
        } else if drivers.is_empty() {
            let kernel = built.tree.version().to_owned();
            found(is_needed_class(modalias), Problem::NoDriver { kernel });
        } else {
            let needed = drivers.iter().any(|name| is_needed_driver(built, name));
            let modules = drivers.iter().map(|name| (*name).to_owned()).collect();
            found(needed, Problem::NotInside { modules });
        }
    }
    findings.sort_unstable();
    let uncovered: BTreeSet<&str> = findings.iter().map(|f| f.modalias.as_str()).collect();
    let covered = devices.len() - uncovered.len();
    Audit { devices: devices.len(), covered, findings }
}

/// Where the drivers of disks, network cards and their buses lie in the kernel's source.
const NEEDED_FOLDERS: [&str; 14] = [
    "drivers/net/",
    "drivers/ata/",
    "drivers/scsi/",
    "drivers/nvme/host/",
    "drivers/block/",
    "drivers/message/",
    "drivers/mmc/",
    "drivers/ufs/",
    "drivers/usb/storage/",
    "drivers/virtio/",
    "drivers/hv/",
    "drivers/xen/",
    "drivers/pci/controller/",
    "drivers/nvdimm/",
];
/// The agent speaks Ethernet only.
const NOT_NEEDED_FOLDER: &str = "drivers/net/wireless/";

fn is_needed_driver(built: &Built, module: &str) -> bool {
    built.tree.modules().get(module).is_some_and(|module| {
        let path = module.path.strip_prefix("kernel/").unwrap_or(&module.path);
        NEEDED_FOLDERS.iter().any(|folder| path.starts_with(folder))
            && !path.starts_with(NOT_NEEDED_FOLDER)
    })
}

/// Whether a device without any driver says by its class that it is a disk controller or a wired network card.
fn is_needed_class(modalias: &str) -> bool {
    let field = |key: &str, len: usize| {
        let at = modalias.rfind(key)? + key.len();
        modalias.get(at..at + len)
    };
    match modalias.split(':').next() {
        Some("pci") => match (field("bc", 2), field("sc", 2)) {
            // Mass storage; network except "other", which is wireless; fibre channel.
            (Some("01"), _) => true,
            (Some("02"), subclass) => subclass != Some("80"),
            (Some("0C" | "0c"), subclass) => subclass == Some("04"),
            _ => false,
        },
        Some("usb") => field("ic", 2) == Some("08"),
        Some("virtio") => {
            ["00000001", "00000002", "00000008"].iter().any(|id| field("d", 8) == Some(id))
        }
        Some("nvme" | "vmbus" | "xen") => true,
        _ => false,
    }
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let needed = self.findings.iter().filter(|finding| finding.needed).count();
        writeln!(
            f,
            "audit: {} devices, {} covered, {needed} missing, {} that the agent does not need",
            self.devices,
            self.covered,
            self.findings.len() - needed
        )?;
        for finding in &self.findings {
            let word = if finding.needed { "MISSING" } else { "unneeded" };
            write!(f, "{word:8}  {}: ", finding.modalias)?;
            match &finding.problem {
                Problem::NotInside { modules } => {
                    let options: Vec<String> =
                        modules.iter().map(|m| format!("--module {m}")).collect();
                    writeln!(
                        f,
                        "the kernel has a driver, the initramfs does not: {}",
                        options.join(" or ")
                    )?;
                }
                Problem::NoDriver { kernel } => {
                    writeln!(f, "kernel {kernel} has no driver for it")?
                }
                Problem::NoFirmware { module, files } => {
                    let names: Vec<&str> = files.iter().map(String::as_str).collect();
                    writeln!(
                        f,
                        "{module} may ask for firmware that is not inside: {}",
                        names.join(" ")
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_needed_class;

    #[test]
    fn classes() {
        for (modalias, needed) in [
            ("pci:v00008086d00001533sv00008086sd00001533bc02sc00i00", true),
            ("pci:v00008086d0000A370sv00008086sd00000034bc02sc80i00", false),
            ("pci:v00001000d00000097sv00001000sd00003090bc01sc07i00", true),
            ("pci:v00001077d00002532sv0sd0bc0Csc04i00", true),
            ("pci:v00008086d0000A348sv0sd0bc04sc03i00", false),
            ("usb:v0951p1666d0110dc00dsc00dp00ic08isc06ip50in00", true),
            ("usb:v046DpC31Cd6400dc00dsc00dp00ic03isc01ip01in00", false),
            ("virtio:d00000001v00001AF4", true),
            ("virtio:d00000004v00001AF4", false),
            ("acpi:PNP0C0C:", false),
            ("", false),
        ] {
            assert_eq!(is_needed_class(modalias), needed, "{modalias}");
        }
    }
}
