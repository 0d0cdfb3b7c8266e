//! The races: capture and restore, ours and the peers'.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::block::{LoopDevice, allocate};
use super::filesystem::Filesystem;
use super::peers::{CLONEZILLA, OUR_IMAGE, Peers};
use super::report::Table;
use super::run::{self, Clock, Contender, race};
use super::{Bench, file_len};

impl Bench<'_> {
    fn peers<'a>(&'a self, filesystem: Filesystem, images: &'a Path) -> Peers<'a> {
        Peers { agent: &self.agent, sleepless: &self.sleepless, filesystem, images }
    }

    /// All but those that take long, if it is to be quick.
    fn chosen(&self, mut contenders: Vec<Contender>) -> Vec<Contender> {
        contenders.retain(|contender| !(contender.once && self.options.quick));
        contenders
    }

    /// Capture; with nothing of the disk in memory if it is to be cold.
    pub(super) fn capture(&self, filesystem: Filesystem, cold: bool) -> Result<Table> {
        let input = self.input(filesystem)?;
        let device = if cold {
            LoopDevice::attach(&input, false)?
        } else {
            LoopDevice::attach_warm(&input)?
        };
        let peers = self.peers(filesystem, self.memory.path());
        let mut contenders = peers.captures(device.path());
        if cold {
            contenders.retain(|contender| !contender.once);
            set_goals(&mut contenders, &[(CLONEZILLA, 0.75)]);
        } else {
            let limit = self.image_for_limit(&peers, device.path())?;
            let script = format!("{} {}", self.limit.display(), limit.display());
            contenders.push(Contender::new(LIMIT, script).clock(Clock::Own).goal(1.25));
        }
        let entries =
            race(self.memory.path(), &self.chosen(contenders), self.options.rounds, || {
                if cold { device.cool() } else { Ok(()) }
            })?;
        let state =
            if cold { "nothing of it is in memory" } else { "all of its file is in memory" };
        let name = filesystem.name();
        Ok(Table {
            title: format!("Capture of {name}, {}", if cold { "cold" } else { "warm" }),
            conditions: self.conditions(&format!(
                "{} GiB of {name} on a loop device, {state}; the image goes to a tmpfs. zstd at level 3, on all cores.",
                self.options.size
            ))?,
            entries,
            figures: Vec::new(),
        })
    }

    /// An image whose content the limit is measured with.
    fn image_for_limit(&self, peers: &Peers, device: &Path) -> Result<PathBuf> {
        let image = self.subfolder("images")?.join("limit.img.zst");
        run::remove(&image)?;
        let capture = Peers { images: self.memory.path(), ..*peers }.our_capture(device);
        run::timed(self.memory.path(), &capture.script)?;
        let made = self.memory.path().join(OUR_IMAGE);
        std::fs::copy(&made, &image)?;
        run::remove(&made)?;
        Ok(image)
    }

    /// Makes the images that `contenders` read, unless they are there; all of them are in memory then.
    pub(super) fn images(&self, filesystem: Filesystem, names: &[&str]) -> Result<PathBuf> {
        let images = self.subfolder("images")?;
        let device = LoopDevice::attach_warm(&self.input(filesystem)?)?;
        let peers = self.peers(filesystem, &images);
        for capture in peers.captures(device.path()) {
            let Some(image) = &capture.output else { continue };
            if names.iter().any(|name| image.ends_with(name)) {
                eprintln!("  making {}", image.display());
                run::remove(image)?;
                run::timed(self.memory.path(), &capture.script)?;
                // Ours went past the page cache.
                std::io::copy(&mut std::fs::File::open(image)?, &mut std::io::sink())?;
            }
        }
        Ok(images)
    }

    /// Restore onto a disk.
    pub(super) fn restore(&self, filesystem: Filesystem) -> Result<Table> {
        let target = self.subfolder("targets")?.join("disk.img");
        let images = self.restored_images(filesystem)?;
        allocate(&target, file_len(&self.input(filesystem)?)?)?;
        let device = LoopDevice::attach(&target, true)?;
        let contenders = self.chosen(self.peers(filesystem, &images).restores(device.path()));
        let entries = race(self.memory.path(), &contenders, self.options.rounds, || Ok(()))?;
        drop(device);
        run::remove(&target)?;
        let name = filesystem.name();
        Ok(Table {
            title: format!("Restore of {name} onto a disk"),
            conditions: self.conditions(&format!(
                "{} GiB of {name}; the image is in memory, the target a loop device over a file that has its blocks. Until \
                 everything is on the disk; ours also reads everything back.",
                self.options.size
            ))?,
            entries,
            figures: Vec::new(),
        })
    }

    fn restored_images(&self, filesystem: Filesystem) -> Result<PathBuf> {
        let mut names = vec![OUR_IMAGE, "clonezilla", "unchecked", "fog"];
        if !self.options.quick {
            names.extend(["lz4", "pigz", "qcow2"]);
        }
        if filesystem == Filesystem::Ntfs {
            names.push("ntfsclone");
        }
        self.images(filesystem, &names)
    }

    /// Restore onto a loop device over a file in memory, whose pages are there already. What our read-back takes does not count.
    pub(super) fn restore_into_memory(&self) -> Result<Table> {
        let images =
            self.images(Filesystem::Ext4, &[OUR_IMAGE, "clonezilla", "unchecked", "fog"])?;
        let target = self.memory.path().join("disk.img");
        allocate(&target, file_len(&self.input(Filesystem::Ext4)?)?)?;
        // partclone writes into no file that is there already.
        let device = LoopDevice::attach(&target, true)?;
        let mut contenders = self.peers(Filesystem::Ext4, &images).restores(device.path());
        contenders.retain(|contender| !contender.once);
        if let Some(ours) = contenders.first_mut() {
            ours.script.push_str(" --json");
            ours.clock = Clock::ButReadBack;
        }
        set_goals(&mut contenders, &[(CLONEZILLA, 0.30)]);
        let entries = race(self.memory.path(), &contenders, self.options.rounds, || Ok(()))?;
        drop(device);
        run::remove(&target)?;
        Ok(Table {
            title: "Restore of ext4 into memory, without the read-back".into(),
            conditions: self.conditions(&format!(
                "{} GiB of ext4; the image is in memory, the target a loop device over a file of a tmpfs. Ours reads everything back \
                 here too: that is in its processor time, and not in its seconds.",
                self.options.size
            ))?,
            entries,
            figures: Vec::new(),
        })
    }
}

/// Other goals than the usual ones.
fn set_goals(contenders: &mut [Contender], goals: &[(&str, f64)]) {
    for contender in contenders {
        contender.goal =
            goals.iter().find(|(name, _)| *name == contender.name).map(|(_, goal)| *goal);
    }
}

const LIMIT: &str = "the limit: BLAKE3 and zstd -3, from memory to nowhere";
