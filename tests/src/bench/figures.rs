//! What is not a race: a partition's fixed cost, what a restore of the same fetches, memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::block::{LoopDevice, allocate};
use super::filesystem::Filesystem;
use super::peers::OUR_IMAGE;
use super::report::{Figure, Table, mega};
use super::run::{Contender, Entry, race, remove, timed};
use super::stats::Spread;
use super::{Bench, content, file_len};
use crate::command;

/// The disks for the fixed cost have one and so many partitions.
const PARTITIONS: u32 = 17;
const PARTITION_LEN: u64 = 64 << 20;
/// What they begin at, and leave free at the end.
const MARGIN: u64 = 1 << 20;
/// How much of each is used.
const SMALL_CONTENT: u64 = 4 << 20;
const HUGE_LEN: u64 = 1 << 40;
const SMALL_MACHINE_BYTES: u64 = 512 << 20;
/// Memory of ours at most, in MiB: 200 MB.
const MEMORY_GOAL_MIB: f64 = 190.0;

impl Bench<'_> {
    /// Restore of what is there already, beside a restore of everything.
    pub(super) fn delta_restore(&self) -> Result<Table> {
        let images = self.images(Filesystem::Ext4, &[OUR_IMAGE])?;
        let image = images.join(OUR_IMAGE);
        let target = self.subfolder("targets")?.join("disk.img");
        allocate(&target, file_len(&self.input(Filesystem::Ext4)?)?)?;
        let device = LoopDevice::attach(&target, true)?;
        let restore = |more: &str| {
            let (agent, image, to) =
                (self.agent.display(), image.display(), device.path().display());
            format!("{agent} restore --yes --json --progress none {more} {image} {to}")
        };
        // The first makes the disk what the image says.
        timed(self.memory.path(), &restore(""))?;
        let contenders = [
            Contender::new("restore --delta", restore("--delta")),
            Contender::new("restore", restore("")).goal(0.30),
        ];
        let entries = race(self.memory.path(), &contenders, self.options.rounds, || Ok(()))?;
        let (_, said) = timed(self.memory.path(), &restore("--delta"))?;
        let summary: serde_json::Value =
            serde_json::from_str(&said).context("reading what the agent said")?;
        let bytes = |name: &str| {
            summary[name]
                .as_u64()
                .with_context(|| format!("no {name} in the agent's summary: {said}"))
        };
        let fetched = mega(bytes("fetched_bytes")?) / mega(file_len(&image)?);
        drop(device);
        remove(&target)?;
        Ok(Table {
            title: "Restore of ext4 onto a disk that holds it already".into(),
            conditions: self.conditions(&format!(
                "{} GiB of ext4; the image is in memory, the target a loop device over a file.",
                self.options.size
            ))?,
            entries,
            figures: vec![
                Figure::new("fetched, of the image", 100.0 * fetched, "%", Some(1.0)),
                Figure::new("written", mega(bytes("written_bytes")?), "MB", None),
            ],
        })
    }

    /// Disks with one partition and with many, and what each more costs.
    pub(super) fn fixed_cost(&self) -> Result<Table> {
        let inputs = self.subfolder("inputs")?;
        let mut figures = Vec::new();
        let (mut captures, mut restores) = (Vec::new(), Vec::new());
        for partitions in [1, PARTITIONS] {
            let disk = inputs.join(format!("{partitions}-partitions.img"));
            make_partitioned(&disk, partitions)?;
            let target = self.subfolder("targets")?.join("partitioned.img");
            allocate(&target, file_len(&disk)?)?;
            let source = LoopDevice::attach_warm(&disk)?;
            let target_device = LoopDevice::attach(&target, true)?;
            let image = self.memory.path().join(OUR_IMAGE);
            let (agent, from, to) =
                (self.agent.display(), source.path().display(), target_device.path().display());
            for _ in 0..self.options.rounds {
                remove(&image)?;
                let capture = format!("{agent} capture --progress none {from} {}", image.display());
                captures.push((partitions, timed(self.memory.path(), &capture)?.0.wall_s));
                let restore =
                    format!("{agent} restore --yes --progress none {} {to}", image.display());
                restores.push((partitions, timed(self.memory.path(), &restore)?.0.wall_s));
            }
            remove(&image)?;
            drop((source, target_device));
            remove(&disk)?;
            remove(&target)?;
        }
        for (what, runs) in [("capture", &captures), ("restore", &restores)] {
            let median = |wanted: u32| {
                let of =
                    runs.iter().filter(|(partitions, _)| *partitions == wanted).map(|(_, s)| *s);
                Spread::of(of).map_or(0.0, |s| s.median)
            };
            let (one, many) = (median(1), median(PARTITIONS));
            figures.push(Figure::new(format!("{what}, disk with 1 partition"), one, "s", None));
            figures.push(Figure::new(format!("{what}, disk with {PARTITIONS}"), many, "s", None));
            let each = (many - one) / f64::from(PARTITIONS - 1);
            figures.push(Figure::new(format!("{what}, each more"), each, "s", Some(0.1)));
        }
        Ok(Table {
            title: "Fixed cost of a partition".into(),
            conditions: self.conditions(
                "GPT disks with ext4 partitions of 64 MiB, 4 MiB used, on loop devices.",
            )?,
            entries: Vec::new(),
            figures,
        })
    }

    /// Peak memory of captures and restores, also of a huge disk, and of a small machine.
    pub(super) fn memory(&self) -> Result<Table> {
        let inputs = self.subfolder("inputs")?;
        let huge = inputs.join("huge.img");
        Filesystem::Ext4.format(&huge, HUGE_LEN)?;
        Filesystem::Ext4.with_mounted(&huge, |at| content::fill(at, 64 << 20, 16 << 20))?;
        let target = self.subfolder("targets")?.join("memory.img");
        let small = SmallMachine::new(SMALL_MACHINE_BYTES)?;
        let input = self.input(Filesystem::Ext4)?;
        let image = self.subfolder("images")?.join("memory.img.zst");
        let mut figures = Vec::new();
        let cases = [
            (format!("{} GiB of ext4", self.options.size), &input, String::new()),
            ("1 TiB of ext4, sparse".to_owned(), &huge, String::new()),
            (format!("{} GiB of ext4, 512 MiB machine", self.options.size), &input, small.enter()),
        ];
        for (what, source, enter) in cases {
            remove(&image)?;
            File::create(&target)?.set_len(file_len(source)?)?;
            let agent = self.agent.display();
            for (verb, args) in [
                ("capture", format!("{} {}", source.display(), image.display())),
                ("restore", format!("--yes {} {}", image.display(), target.display())),
            ] {
                let script = format!("{enter} {agent} {verb} --progress none {args}");
                let (run, _) = timed(self.memory.path(), &script)?;
                let name = format!("{verb}, {what} ({:.1} s)", run.wall_s);
                figures.push(Figure::new(name, run.peak_mib, "MiB", Some(MEMORY_GOAL_MIB)));
            }
            remove(&target)?;
        }
        remove(&image)?;
        remove(&huge)?;
        Ok(Table {
            title: "Memory".into(),
            conditions: self.conditions(
                "Largest resident size of the agent. The machine of 512 MiB is a control group of that size, page cache included. One run each, instead of",
            )?,
            entries: Vec::<Entry>::new(),
            figures,
        })
    }
}

/// A GPT disk whose partitions all hold the same small filesystem.
fn make_partitioned(disk: &Path, partitions: u32) -> Result<()> {
    let making = || format!("making {}", disk.display());
    let small = disk.with_extension("part");
    Filesystem::Ext4.format(&small, PARTITION_LEN)?;
    Filesystem::Ext4.with_mounted(&small, |at| content::fill(at, SMALL_CONTENT, SMALL_CONTENT))?;
    let volume = fs::read(&small).with_context(making)?;
    let file = File::create(disk).with_context(making)?;
    file.set_len(2 * MARGIN + u64::from(partitions) * PARTITION_LEN).with_context(making)?;
    let mut layout = "label: gpt\n".to_owned();
    for n in 0..partitions {
        let start = MARGIN + u64::from(n) * PARTITION_LEN;
        layout += &format!("start={}, size={}\n", start / 512, PARTITION_LEN / 512);
        file.write_all_at(&volume, start).with_context(making)?;
    }
    let script = small.with_extension("sfdisk");
    fs::write(&script, layout).with_context(making)?;
    command::run(
        "bash",
        ["-c", &format!("sfdisk --quiet {} < {}", disk.display(), script.display())],
    )?;
    remove(&small)?;
    remove(&script)
}

/// A control group with little memory. Dropping it removes it.
struct SmallMachine {
    folder: std::path::PathBuf,
}

impl SmallMachine {
    fn new(bytes: u64) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        // Version 1 has a hierarchy for memory, version 2 one for everything.
        let (folder, limit) = if root.join("memory").is_dir() {
            (root.join("memory/imprint-bench"), "memory.limit_in_bytes")
        } else {
            (root.join("imprint-bench"), "memory.max")
        };
        if !folder.is_dir() {
            fs::create_dir(&folder)
                .with_context(|| format!("making the control group {}", folder.display()))?;
        }
        let group = Self { folder };
        let path = group.folder.join(limit);
        fs::write(&path, bytes.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(group)
    }

    /// Shell text that moves the shell into the group.
    fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs;", self.folder.display())
    }
}

impl Drop for SmallMachine {
    fn drop(&mut self) {
        // Nobody to tell; an empty group costs nothing.
        let _ = fs::remove_dir(&self.folder);
    }
}
