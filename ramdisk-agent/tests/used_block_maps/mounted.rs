//! ext4 as the running kernel leaves it: mounted from a loop device, used, unmounted.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ramdisk_agent::fs::{Clean, FsKind, Taken};

use crate::ext::{EXT4, Ext};
use crate::noise::{Noise, seeds};
use crate::oracle::look;
use crate::tools::run;
use crate::tree::{Shape, plant};

/// A mounted filesystem.
struct Mounted<'a> {
    at: PathBuf,
    what: &'a str,
}

impl<'a> Mounted<'a> {
    fn new(ext: &'a Ext, at: &Path) -> Self {
        assert_eq!(
            run("coreutils", "id", &["-u"]).trim(),
            "0",
            "mounting needs root: run the tests as root"
        );
        fs::create_dir_all(at).unwrap();
        let (volume, at_text) = (ext.volume.to_str().unwrap(), at.to_str().unwrap());
        run("mount", "mount", &["-t", "ext4", "-o", "loop", volume, at_text]);
        Self { at: at.to_owned(), what: &ext.what }
    }

    /// Fills, thins out and fragments it.
    fn live(&self, noise: &mut Noise, round: u64) {
        const SHAPE: Shape = Shape { bytes: 2 << 20, files: 50, unix: true };
        let left = rustix::fs::statvfs(&self.at).unwrap();
        // Attributes, links and folders take room beside the files' own.
        if left.f_bavail * left.f_frsize < 2 * SHAPE.bytes || left.f_ffree < 4 * SHAPE.files {
            return;
        }
        let tree = self.at.join(format!("lived{round}"));
        fs::create_dir(&tree).unwrap();
        let files = plant(&tree, &SHAPE, noise);
        for file in files {
            match noise.below(5) {
                0 => fs::remove_file(tree.join(file)).unwrap(),
                1 => {
                    let file = File::options().append(true).open(tree.join(file)).unwrap();
                    let len = noise.below(200_000) as usize;
                    if_room((&file).write_all(&noise.bytes(len)));
                    // Other files grow between its parts.
                    if_room(file.sync_data());
                }
                2 => {
                    let file = File::options().write(true).open(tree.join(file)).unwrap();
                    file.set_len(noise.below(10_000)).unwrap();
                    if_room(file.write_all_at(b"far", noise.below(1 << 24)));
                }
                3 => {
                    let path = tree.join(file);
                    let len = noise.below(300_000).max(1).to_string();
                    let args = ["-n", "-l", &len, path.to_str().unwrap()];
                    crate::tools::status("util-linux", "fallocate", &args);
                }
                _ => {}
            }
        }
    }
}

/// A filesystem that is full is one more state to be in.
fn if_room(result: std::io::Result<()>) {
    assert!(
        result.as_ref().err().is_none_or(|e| e.kind() == std::io::ErrorKind::StorageFull),
        "{result:?}"
    );
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        run("mount", "umount", &[self.at.to_str().unwrap()]);
        // Other tests may have made the kernel hold it a moment longer; nothing here depends on when it lets go.
        assert!(fs::remove_dir(&self.at).is_ok(), "{}: still mounted", self.what);
    }
}

/// The kernel's pages have 4 KiB, so it mounts nothing with larger blocks, and not every kernel knows quotas; debugfs
/// cannot read the other features' files.
fn mountable(options: &str) -> bool {
    !["-b 8192", "-b 65536", "quota", "encrypt", "casefold"].iter().any(|not| options.contains(not))
}

#[test]
fn a_filesystem_that_the_kernel_used_survives_noise_in_its_free_space() {
    let recipes: Vec<_> = EXT4.iter().filter(|recipe| mountable(recipe.options)).collect();
    // Each is mounted, filled and synchronised twice: a quarter of the others' number takes as long as they do.
    for (seed, recipe) in seeds(7).step_by(4).zip(recipes.iter().cycle()) {
        let mut noise = Noise::new(seed);
        let ext = Ext::make(recipe, 30_000, &mut noise, seed);
        let folder = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let mounted = Mounted::new(&ext, &folder.path().join("mnt"));
            mounted.live(&mut noise, round);
            drop(mounted);
        }
        ext.oracle(&mut noise);
    }
}

#[test]
fn a_mounted_filesystem_is_not_clean() {
    let mut noise = Noise::new(8);
    let mut ext = Ext::make(&EXT4[0], 30_000, &mut noise, 8);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    {
        let mounted = Mounted::new(&ext, &folder.path().join("mnt"));
        mounted.live(&mut noise, 0);
        run("coreutils", "sync", &["-f", mounted.at.to_str().unwrap()]);
        fs::copy(&ext.volume, &copy).unwrap();
    }
    ext.compare();
    let map = look(&copy);
    assert_eq!(map.kind, FsKind::Ext4);
    assert_eq!(map.clean, Clean::NotClean { reason: "the journal needs recovery".into() });
    assert!(map.uuid.is_some());

    // Once the journal is replayed there is nothing against it.
    ext.volume = copy;
    let replay =
        crate::tools::status("e2fsprogs", "e2fsck", &["-fy", ext.volume.to_str().unwrap()]);
    assert!(matches!(replay.status.code(), Some(0 | 1)));
    assert_eq!(ext.compare().taken, Taken::Map);
}
