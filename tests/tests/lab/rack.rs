//! A lab with a source machine and a target, as most tests want it.

use std::path::{Path, PathBuf};

use tests::lab::{self, Lab, Prepared};
use tests::machine::{Firmware, Machine};
use tests::{project, template};

pub const SOURCE: &str = "template";
pub const TARGET: &str = "node1";
pub const IMAGE: &str = "debian-12";

/// A lab in a folder of its own, which goes with it.
pub struct Rack {
    pub lab: Lab,
    pub source: Machine,
    pub target: Machine,
    pub template: PathBuf,
    // After the lab, which writes into it.
    pub folder: tempfile::TempDir,
}

/// What takes long, done once for all tests.
pub fn prepared() -> Prepared {
    let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
    Prepared::new(xtask, &mut |text| eprintln!("{text}")).unwrap()
}

/// The template as source, switched off after its capture, and a target full of noise, which powers off after its restore, so that
/// its disk can be looked at before anything boots from it.
pub fn rack(firmware: Firmware) -> Rack {
    let prepared = prepared();
    let folder = tempfile::tempdir_in(project::cache()).unwrap();
    let (source_disk, target_disk) = (folder.path().join("s.img"), folder.path().join("t.img"));
    template::copy_disk(&prepared.template, &source_disk).unwrap();
    lab::noise_disk(&target_disk, template::DISK_BYTES + (64 << 20)).unwrap();
    let mut lab = Lab::start(&prepared, folder.path()).unwrap();
    let source = lab.add_machine(SOURCE, 1, firmware, &source_disk).unwrap();
    let target = lab.add_machine(TARGET, 2, firmware, &target_disk).unwrap();
    lab.enter_host(&source, "off").unwrap();
    lab.enter_host(&target, "off").unwrap();
    Rack { lab, source, target, template: prepared.template, folder }
}

impl Rack {
    /// The image that the capture makes.
    pub fn image(&self) -> PathBuf {
        self.lab.nfs.images().join(format!("{IMAGE}.img.zst"))
    }

    /// Switches a machine on by its BMC, as an administrator would.
    pub fn power_on(&self, machine: &Machine) {
        let lab = &self.lab;
        lab.controller.ask(&lab.network, &["host", "power", &machine.name, "on"]).unwrap();
    }
}
