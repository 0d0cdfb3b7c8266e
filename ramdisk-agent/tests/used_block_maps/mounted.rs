//! ext4 as the running kernel leaves it: mounted from a loop device, used, unmounted.

use std::path::Path;

use crate::ext::{EXT4, Ext};
use crate::live::Mounted;
use crate::noise::{Noise, seeds};

/// Mounts it in a folder.
pub fn mount<'a>(ext: &'a Ext, folder: &Path) -> Mounted<'a> {
    Mounted::new(&ext.volume, &["-t", "ext4"], &folder.join("mnt"), &ext.what)
}

/// The kernel's pages have 4 KiB, so it mounts nothing with larger blocks, and not every kernel knows quotas; debugfs
/// cannot read the other features' files.
pub fn mountable(options: &str) -> bool {
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
