//! Writes the seeds of every target to `corpus/TARGET/` beside this package.

use std::fs;
use std::io;
use std::path::Path;

use imprint_fuzz::{disk_seeds, foreign, http, image_seeds, nfs, smb};

fn main() -> io::Result<()> {
    for target in ["image_open", "image_page", "manifest"] {
        write(target, &image_seeds::seeds(target))?;
    }
    for target in [
        "ext_map",
        "xfs_map",
        "btrfs_map",
        "ntfs_map",
        "exfat_map",
        "lvm2_map",
        "fat_map",
        "swap_map",
        "table",
        "probe",
    ] {
        write(target, &disk_seeds::seeds(target))?;
    }
    write("foreign", &foreign::seeds())?;
    write("folder", &foreign::folder_seeds())?;
    write("http_head", &http::seeds())?;
    write("nfs_reply", &nfs::seeds())?;
    write("smb_reply", &smb::seeds())
}

fn write(target: &str, seeds: &[Vec<u8>]) -> io::Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir)?;
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(dir.join(format!("seed-{number:02}")), seed)?;
    }
    println!("{}: {} seeds", dir.display(), seeds.len());
    Ok(())
}
