//! ext4 as the running kernel leaves it: mounted from a loop device, used, unmounted.

use std::fs;
use std::path::Path;

use ramdisk_agent::fs::{Clean, FsKind, Taken};

use crate::ext::{EXT4, Ext};
use crate::live::Mounted;
use crate::noise::{Noise, seeds};
use crate::oracle::look;
use crate::tools::run;

fn mount<'a>(ext: &'a Ext, folder: &Path) -> Mounted<'a> {
    Mounted::new(&ext.volume, &["-t", "ext4"], &folder.join("mnt"), &ext.what)
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
            let mounted = mount(&ext, folder.path());
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
        let mounted = mount(&ext, folder.path());
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
