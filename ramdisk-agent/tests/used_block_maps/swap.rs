//! Swap areas made by mkswap.

use std::fs;

use ramdisk_agent::extents::Extents;
use ramdisk_agent::fs::FsKind;

use crate::noise::{Noise, seeds};
use crate::oracle::{expect_map, fill_free};
use crate::tools::{blkid, run};

#[test]
fn a_swap_area_full_of_noise_is_still_the_same_swap_area() {
    for seed in seeds(1) {
        let mut noise = Noise::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("swap");
        let page = *noise.pick(&[4096_u64, 8192, 16384, 32768, 65536]);
        // What was there before must not show through, and the last page may be cut.
        let len = page * (10 + noise.below(200))
            + if noise.chance(2) { 512 * noise.below(page / 512) } else { 0 };
        fs::write(&volume, noise.bytes(len as usize)).unwrap();
        let label = format!("swap {seed}");
        let (page_text, path) = (page.to_string(), volume.to_str().unwrap());
        run("util-linux", "mkswap", &["-q", "-f", "-p", &page_text, "-L", &label, path]);

        let what = format!("seed {seed}: {len} bytes in pages of {page}");
        let map = expect_map(&volume, FsKind::Swap, &what);
        assert_eq!(map.uuid, blkid(&volume, "UUID"), "{what}");
        assert_eq!(map.label.as_deref(), Some(label.as_str()), "{what}");
        let mut expected = Extents::single(0, page);
        expected.push(len / page * page, len % page);
        assert_eq!(map.used, expected, "{what}");

        let before = run("util-linux", "swaplabel", &[path]);
        let header = fs::read(&volume).unwrap()[..page as usize].to_vec();
        assert_eq!(fill_free(&volume, &map, &mut noise), len / page * page - page, "{what}");
        assert_eq!(run("util-linux", "swaplabel", &[path]), before, "{what}");
        assert_eq!(fs::read(&volume).unwrap()[..page as usize], header, "{what}");
    }
}
