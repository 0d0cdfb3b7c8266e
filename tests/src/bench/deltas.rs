//! What an update costs: our delta image beside what restic and borg add to their repositories for the same used blocks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::block::{LoopDevice, allocate};
use super::filesystem::Filesystem;
use super::report::{Figure, Table, mega};
use super::run::{remove, timed};
use super::{Bench, content, file_len};
use crate::command;

/// An archiver that knows what it has already.
struct Archiver {
    name: &'static str,
    /// Makes a repository at `$R`.
    init: &'static str,
    /// Adds what comes through a pipe to it, as archive `$A`.
    add: &'static str,
}

const ARCHIVERS: [Archiver; 2] = [
    Archiver {
        name: "restic",
        init: "restic init --quiet --repository-version 2 --repo $R",
        add: "restic backup --quiet --repo $R --stdin --stdin-filename disk",
    },
    Archiver {
        name: "borg",
        init: "borg init --encryption none $R",
        add: "borg create --compression zstd,3 $R::$A -",
    },
];

/// Neither asks for anything, and neither keeps a cache in somebody's home.
const ENVIRONMENT: &str = "export RESTIC_PASSWORD=x HOME=$R.home BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes; mkdir -p $HOME";

impl Bench<'_> {
    /// A delta image of an updated system, and what others add for it. One run each.
    pub(super) fn delta_image(&self) -> Result<Table> {
        let original = self.input(Filesystem::Ext4)?;
        let updated = self.subfolder("inputs")?.join("updated.img");
        command::run(
            "cp",
            ["--sparse=always".as_ref(), original.as_os_str(), updated.as_os_str()],
        )?;
        Filesystem::Ext4.with_mounted(&updated, content::update)?;
        let image = |name: &str| self.memory.path().join(name);
        let (base, full, delta) = (image("base.img.zst"), image("full.img.zst"), image("new.imgd"));
        let mut figures = Vec::new();
        self.captured(&original, &base, "")?;
        let full_s = self.captured(&updated, &full, "")?;
        let delta_s = self.captured(&updated, &delta, &format!("--base {}", base.display()))?;
        remove(&updated)?;
        let (full_mb, delta_mb) = (mega(file_len(&full)?), mega(file_len(&delta)?));
        figures.push(Figure::new("image of its own", full_mb, "MB", None));
        figures.push(Figure::new("image of its own, capture", full_s, "s", None));
        figures.push(Figure::new("delta image", delta_mb, "MB", None));
        figures.push(Figure::new("delta image, capture", delta_s, "s", None));
        for archiver in &ARCHIVERS {
            let (added_mb, seconds) = self.archived(archiver, &base, &full)?;
            let name = archiver.name;
            figures.push(Figure::new(format!("{name} adds"), added_mb, "MB", None));
            figures.push(Figure::new(format!("{name}, backup"), seconds, "s", None));
            let goal = (name == "restic").then_some(1.1);
            figures.push(Figure::new(
                format!("delta image ÷ {name}"),
                delta_mb / added_mb,
                "",
                goal,
            ));
        }
        let target = image("disk.img");
        allocate(&target, file_len(&original)?)?;
        let device = LoopDevice::attach(&target, true)?;
        for (what, image) in [("image of its own", &full), ("delta image and its base", &delta)] {
            let (agent, from, to) =
                (self.agent.display(), image.display(), device.path().display());
            let script = format!("{agent} restore --yes --progress none {from} {to}");
            let seconds = timed(self.memory.path(), &script)?.0.wall_s;
            figures.push(Figure::new(format!("{what}, restore into memory"), seconds, "s", None));
        }
        drop(device);
        for file in [&target, &base, &full, &delta] {
            remove(file)?;
        }
        Ok(Table {
            title: "An update of a tenth of the files".into(),
            conditions: self.conditions(&format!(
                "{} GiB of ext4, of whose files 8 in 100 were replaced by changed ones, 1 grew, 2 went and 1 is new. restic (repository \
                 version 2) and borg (zstd,3) get the used blocks, free ones as zeros, by zstd -dc of our images. One run each, \
                 instead of",
                self.options.size
            ))?,
            entries: Vec::new(),
            figures,
        })
    }

    /// Captures `disk`; how long it took.
    fn captured(&self, disk: &Path, image: &Path, more: &str) -> Result<f64> {
        let (agent, disk, image) = (self.agent.display(), disk.display(), image.display());
        let script = format!("{agent} capture --progress none {more} {disk} {image}");
        Ok(timed(self.memory.path(), &script)?.0.wall_s)
    }

    /// Gives an archiver the content of both images. By how much the second lets its repository grow, in MB, and how long that took.
    fn archived(&self, archiver: &Archiver, base: &Path, full: &Path) -> Result<(f64, f64)> {
        let folder = tempfile::tempdir_in(self.memory.path()).context("making a folder")?;
        let repository = folder.path().join(archiver.name);
        let prepare = format!("R={}; {ENVIRONMENT}", repository.display());
        let add = |archive: &str, image: &Path| {
            let script =
                format!("{prepare}; A={archive}; zstd -dcq {} | {}", image.display(), archiver.add);
            timed(self.memory.path(), &script).map(|(run, _)| run.wall_s)
        };
        timed(self.memory.path(), &format!("{prepare}; {}", archiver.init))?;
        add("base", base)?;
        let before = folder_mb(&repository)?;
        let seconds = add("updated", full)?;
        Ok((folder_mb(&repository)? - before, seconds))
    }
}

/// How much the files of a folder hold, in MB.
fn folder_mb(folder: &Path) -> Result<f64> {
    let said = command::output(Command::new("du").args(["-sb"]).arg(folder))?;
    let bytes = said.split_whitespace().next().unwrap_or_default();
    bytes.parse().map(mega).with_context(|| format!("du said {said:?}"))
}
