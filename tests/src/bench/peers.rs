//! The command lines that are compared: ours, and those that Clonezilla, FOG and others run.
//!
//! partclone sleeps 1 to 5 s per partition, waiting for its own progress display. A comparison with that would be too easy: here
//! its `sleep` is made short (see [`Sleepless`]), unless a row says "as shipped".

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::filesystem::Filesystem;
use super::run::Contender;
use crate::command;

/// Makes `sleep` return after 10 ms. Not at once: partclone's progress thread would spin on it and take time from its work.
const SHIM: &str = r"
#include <time.h>
#include <unistd.h>
static void rest(void) { struct timespec t = {0, 10 * 1000 * 1000}; nanosleep(&t, 0); }
unsigned sleep(unsigned seconds) { (void)seconds; rest(); return 0; }
int usleep(useconds_t useconds) { (void)useconds; rest(); return 0; }
";

/// A library that takes partclone's sleeps away.
#[derive(Debug)]
pub struct Sleepless {
    library: PathBuf,
}

impl Sleepless {
    /// Compiles it.
    ///
    /// # Errors
    /// If gcc does not.
    pub fn build(folder: &Path) -> Result<Self> {
        let (source, library) = (folder.join("sleepless.c"), folder.join("sleepless.so"));
        fs::write(&source, SHIM).with_context(|| format!("writing {}", source.display()))?;
        let flags = ["-O2", "-shared", "-fPIC", "-o"].map(AsRef::as_ref);
        command::run("gcc", flags.into_iter().chain([library.as_os_str(), source.as_os_str()]))?;
        Ok(Self { library })
    }
}

/// What the command lines are about.
#[derive(Debug)]
pub struct Peers<'a> {
    /// Our program.
    pub agent: &'a Path,
    /// Takes partclone's sleeps away.
    pub sleepless: &'a Sleepless,
    /// What is captured or restored.
    pub filesystem: Filesystem,
    /// Where images go.
    pub images: &'a Path,
}

impl Peers<'_> {
    /// The image of this name.
    #[must_use]
    pub fn image(&self, name: &str) -> PathBuf {
        self.images.join(name)
    }

    fn partclone(&self, program: &str, args: &str) -> String {
        let (library, log) = (self.sleepless.library.display(), self.image("partclone.log"));
        format!("LD_PRELOAD={library} partclone.{program} -L {} {args}", log.display())
    }

    fn clone(&self, device: &Path, args: &str) -> String {
        let args = format!("-c -z 10485760 {args} -s {} -o -", device.display());
        self.partclone(self.filesystem.name(), &args)
    }

    /// All that make an image of `device`, ours first.
    #[must_use]
    pub fn captures(&self, device: &Path) -> Vec<Contender> {
        let dev = device.display();
        let pipe = |name, clone: String, compress: &str, file: &str| {
            let image = self.image(file);
            let script = format!("{clone} | {compress} > {}", image.display());
            Contender::new(name, script).writes(&image)
        };
        let plain = |name, program: &str, file: &str| {
            let image = self.image(file);
            Contender::new(name, format!("{program} {}", image.display())).writes(&image)
        };
        let mut all = vec![
            self.our_capture(device),
            pipe(CLONEZILLA, self.clone(device, ""), "zstd -q -c -T0 -3", "clonezilla").goal(0.60),
            pipe(UNCHECKED, self.clone(device, "-a0"), "zstd -q -c -T0 -3", "unchecked"),
            pipe(FOG, self.clone(device, "-a0"), "zstd -q -c -T0 --rsyncable -3", "fog"),
            pipe("partclone -a0, lz4", self.clone(device, "-a0"), "lz4 -q -c", "lz4").once(),
            pipe("partclone -a0, pigz", self.clone(device, "-a0"), "pigz -c", "pigz").once(),
            pipe(
                "Clonezilla's, with partclone's sleeps",
                self.clone(device, "").split_once(' ').unwrap_or_default().1.to_owned(),
                "zstd -q -c -T0 -3",
                "sleeps",
            )
            .once(),
            pipe(
                "dd, zstd -3",
                format!("dd if={dev} bs=4M status=none"),
                "zstd -q -c -T0 -3",
                "dd",
            )
            .once(),
            plain(
                "qemu-img, qcow2 with zstd",
                &format!(
                    "qemu-img convert -W -m 16 -c -o compression_type=zstd -f raw -O qcow2 {dev}"
                ),
                "qcow2",
            )
            .once(),
        ];
        match self.filesystem {
            Filesystem::Ext4 => all.push(
                plain("e2image -Qa, not compressed", &format!("e2image -Qa {dev}"), "e2image")
                    .once(),
            ),
            Filesystem::Ntfs => all.push(pipe(
                "ntfsclone, zstd -3",
                format!("ntfsclone --quiet --save-image --output - {dev}"),
                "zstd -q -c -T0 -3",
                "ntfsclone",
            )),
            Filesystem::Xfs | Filesystem::Btrfs => {}
        }
        if self.filesystem != Filesystem::Ntfs {
            let image = self.image("fsarchiver.fsa");
            let script = format!("fsarchiver -Z3 -j2 savefs {} {dev}", image.display());
            all.push(Contender::new("fsarchiver -Z3 -j2 (files)", script).writes(&image).once());
        }
        all
    }

    /// Our capture of `device`.
    #[must_use]
    pub fn our_capture(&self, device: &Path) -> Contender {
        let image = self.image(OUR_IMAGE);
        let (agent, dev) = (self.agent.display(), device.display());
        let script = format!("{agent} capture --progress none {dev} {}", image.display());
        Contender::new(OURS, script).writes(&image)
    }

    /// All that write the images of [`Peers::captures`] to `target`, ours first. Each ends when everything is on the medium.
    #[must_use]
    pub fn restores(&self, target: &Path) -> Vec<Contender> {
        let to = target.display();
        let fs = self.filesystem.name();
        let unpack = |program: &str, file: &str| {
            format!("{program} -q -d -c {}", self.image(file).display())
        };
        let clone = |name, unpack: String, program: &str, args: &str| {
            let write = self.partclone(program, &format!("{args} -s - -o {to}"));
            Contender::new(name, format!("{unpack} | {write}; sync {to}"))
        };
        let restore = "-r -z 10485760";
        let mut all = vec![
            self.our_restore(target),
            clone(CLONEZILLA, unpack("zstd", "clonezilla"), fs, restore).goal(0.40),
            clone(UNCHECKED, unpack("zstd", "unchecked"), fs, restore),
            clone(FOG, unpack("zstd", "fog"), "restore", "--ignore_crc").goal(0.55),
            clone("partclone -a0, lz4", unpack("lz4", "lz4"), "restore", "--ignore_crc").once(),
            clone("partclone -a0, pigz", unpack("pigz", "pigz"), "restore", "--ignore_crc").once(),
            Contender::new(
                "our image by zstd -dc and dd",
                format!(
                    "{} | dd of={to} bs=4M conv=sparse,notrunc,fsync iflag=fullblock status=none",
                    unpack("zstd", OUR_IMAGE)
                ),
            )
            .once(),
            Contender::new(
                "qemu-img, qcow2 with zstd",
                format!(
                    "qemu-img convert -n -W -m 16 -f qcow2 -O raw {} {to}; sync {to}",
                    self.image("qcow2").display()
                ),
            )
            .once(),
        ];
        if self.filesystem == Filesystem::Ntfs {
            let script = format!(
                "{} | ntfsclone --quiet --restore-image --overwrite {to} -; sync {to}",
                unpack("zstd", "ntfsclone")
            );
            all.push(Contender::new("ntfsclone, zstd -3", script));
        }
        all
    }

    /// Our restore onto `target`.
    #[must_use]
    pub fn our_restore(&self, target: &Path) -> Contender {
        let (agent, image) = (self.agent.display(), self.image(OUR_IMAGE));
        let (image, to) = (image.display(), target.display());
        Contender::new(OURS, format!("{agent} restore --yes --progress none {image} {to}"))
    }
}

/// What the tables call our program.
pub const OURS: &str = "Imprint";
/// Its image.
pub const OUR_IMAGE: &str = "imprint.img.zst";
/// The peer that matters most.
pub const CLONEZILLA: &str = "Clonezilla's: partclone, zstd -3";
const UNCHECKED: &str = "the same without checksums (-a0)";
const FOG: &str = "FOG's: partclone -a0, zstd -3 --rsyncable";
