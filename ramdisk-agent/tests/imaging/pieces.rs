//! A filesystem whose bitmaps say that every other block is in use: four million pieces.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::agent::{agent, peak};
use crate::tools::run;

const BLOCK: u64 = 1024;
const GROUP: u64 = 8192;
const GROUPS: u64 = 1024;

/// Marks every other block of an ext2, and makes the counts right.
fn alternate(volume: &File) -> u64 {
    let mut table = vec![0; (GROUPS * 32) as usize];
    volume.read_exact_at(&mut table, 2 * BLOCK).unwrap();
    let mut all_free = 0;
    let mut bitmap = [0; BLOCK as usize];
    for descriptor in table.chunks_exact_mut(32) {
        let at = u64::from(u32::from_le_bytes(descriptor[..4].try_into().unwrap())) * BLOCK;
        volume.read_exact_at(&mut bitmap, at).unwrap();
        bitmap.iter_mut().for_each(|byte| *byte |= 0x55);
        volume.write_all_at(&bitmap, at).unwrap();
        let free: u32 = bitmap.iter().map(|byte| byte.count_zeros()).sum();
        descriptor[12..14].copy_from_slice(&(free as u16).to_le_bytes());
        all_free += u64::from(free);
    }
    volume.write_all_at(&table, 2 * BLOCK).unwrap();
    volume.write_all_at(&(all_free as u32).to_le_bytes(), 1024 + 12).unwrap();
    all_free
}

#[test]
fn a_map_of_millions_of_pieces_stays_small_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ext2");
    let volume = File::create_new(&path).unwrap();
    let blocks = GROUPS * GROUP;
    volume.set_len(blocks * BLOCK).unwrap();
    let name = path.to_str().unwrap();
    let options = ["-q", "-F", "-t", "ext2", "-b", "1024", "-N", "8192", "-m", "0"];
    run("e2fsprogs", "mke2fs", &[&options[..], &["-O", "^resize_inode", name]].concat());
    let volume = File::options().read(true).write(true).open(&path).unwrap();
    let free = alternate(&volume);
    assert!(free > blocks * 2 / 5);

    let plan = agent(&["plan", "capture", name, "--json"]).json();
    let map = &plan["volumes"][0];
    assert_eq!(map["filesystem"], "ext2");
    assert!(map["raw_reason"].is_null(), "{map:#}");
    let (used, kept) = (map["used_bytes"].as_u64().unwrap(), map["kept_bytes"].as_u64().unwrap());
    assert_eq!(used, (blocks - free) * BLOCK);
    // Gaps were closed, and not all of them.
    assert!(kept > used + (1 << 30) && kept < blocks * BLOCK, "{kept} of {used} bytes");

    // A list of all pieces, and the copies that a plan makes of it, would be several times as much.
    let peak = peak(&["plan", "capture", name]);
    assert!(peak < 120_000_000, "{peak} bytes");
}
