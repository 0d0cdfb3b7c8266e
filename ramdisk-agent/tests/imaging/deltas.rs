//! Delta images as a user has them: captured on a base, restored, flattened, and refused without their base.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use image_format::{FrameBase, FrameEntry, FrameKind, ImageReader};
use serde_json::Value;

use crate::agent::{Ran, agent, capture, peak, restore, try_capture, try_restore};
use crate::disks::{self, noise, noise_file};
use crate::tools::{run, status};

/// A disk in three states, captured: whole, as the difference to that, and as the difference to that one.
struct Rig {
    dir: tempfile::TempDir,
    len: u64,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = disks::system(dir.path(), "gpt");
        let rig = Self { dir, len: disk.len };
        let partition = rig.path("root");
        let text = partition.to_str().unwrap();
        fs::copy(&disk.path, rig.path("d0")).unwrap();
        capture(&rig.path("d0"), &rig.path("d0.img.zst"), &[]);
        for step in 1..=2_u64 {
            disks::take(&disk.path, disk.root, &partition);
            let new = rig.path("new");
            fs::write(&new, noise(1_500_000, 500 + step)).unwrap();
            let command = format!("write {} /home/new{step}", new.display());
            run("e2fsprogs", "debugfs", &["-w", "-R", &command, text]);
            run("e2fsprogs", "debugfs", &["-w", "-R", &format!("rm /etc/file{step}"), text]);
            let file = File::options().write(true).open(&disk.path).unwrap();
            file.write_all_at(&fs::read(&partition).unwrap(), disk.root.start).unwrap();
            fs::copy(&disk.path, rig.path(&format!("d{step}"))).unwrap();
            let base = [rig.path("d0.img.zst"), rig.path("d1.imgd")];
            let base = base[step as usize - 1].to_str().unwrap().to_owned();
            let (from, to) = (rig.path(&format!("d{step}")), rig.path(&format!("d{step}.imgd")));
            capture(&from, &to, &["--base", &base]);
        }
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn len_of(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().len()
    }

    /// What a whole image of this state restores to, on a disk of zeros.
    fn expected(&self, state: u64) -> Vec<u8> {
        let image = self.path(&format!("whole{state}.img.zst"));
        capture(&self.path(&format!("d{state}")), &image, &[]);
        self.content(&image, &[])
    }

    fn content(&self, image: &Path, flags: &[&str]) -> Vec<u8> {
        let target = self.path("target");
        noise_file(&target, self.len, 3);
        restore(image, &target, &[&["--scrub-free"], flags].concat());
        fs::read(&target).unwrap()
    }
}

fn words(args: &[&dyn AsRef<Path>]) -> Ran {
    agent(&args.iter().map(|arg| arg.as_ref().as_os_str()).collect::<Vec<_>>())
}

#[test]
fn a_chain_restores_and_flattens_to_what_was_captured() {
    let rig = Rig::new();
    for (image, state) in [("d1.imgd", 1), ("d2.imgd", 2)] {
        assert!(rig.len_of(image) < rig.len_of("d0.img.zst") / 2, "{}", rig.len_of(image));
        let expected = rig.expected(state);
        assert!(rig.content(&rig.path(image), &[]) == expected, "{image}");
        let flat = rig.path(&format!("flat{state}.img.zst"));
        let ran = words(&[&"flatten", &rig.path(image), &flat]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(rig.content(&flat, &[]) == expected, "{image}, flattened");
        // And stock zstd unpacks what was flattened.
        run("zstd", "zstd", &["-tq", flat.to_str().unwrap()]);
    }
    for flags in [&["verify"][..], &["verify", "--deep"]] {
        let image = rig.path("d2.imgd");
        let all = [flags, &[image.to_str().unwrap()]].concat();
        assert_eq!(agent(&all).code, 0);
    }
    let inspected = words(&[&"inspect", &rig.path("d2.imgd"), &"--json"]).json();
    assert_eq!(inspected["manifest"]["parent"]["name"], "d1.imgd");
    let listed = words(&[&"ls", &rig.dir.path(), &"--json"]).json();
    let names: Vec<&str> =
        listed.as_array().unwrap().iter().filter_map(|row| row["name"].as_str()).collect();
    assert!(names.contains(&"d1.imgd") && names.contains(&"d0.img.zst"), "{names:?}");
    let target = rig.path("target");
    let plan = words(&[&"plan", &"restore", &rig.path("d2.imgd"), &target, &"--json"]).json();
    assert_eq!(plan["root"], inspected["root"]);
}

#[test]
fn restoring_a_delta_onto_its_base_moves_the_difference() {
    let rig = Rig::new();
    let expected = rig.expected(1);
    let target = rig.path("target");
    noise_file(&target, rig.len, 3);
    restore(&rig.path("d0.img.zst"), &target, &["--scrub-free"]);
    let summary: Value = restore(&rig.path("d1.imgd"), &target, &["--scrub-free", "--delta"]);
    assert!(fs::read(&target).unwrap() == expected);
    let whole = rig.len_of("whole1.img.zst");
    assert!(summary["fetched_bytes"].as_u64().unwrap() < whole, "{summary}");
}

#[test]
fn a_base_is_found_by_its_root_and_a_wrong_one_is_refused() {
    let rig = Rig::new();
    let root = |name: &str| {
        let ran = words(&[&"inspect", &rig.path(name), &"--json"]).json();
        ran["root"].as_str().unwrap().to_owned()
    };
    let (wanted, child) = (root("d0.img.zst"), rig.path("d1.imgd"));
    let target = rig.path("target");
    noise_file(&target, rig.len, 3);
    let before = blake3::hash(&fs::read(&target).unwrap());

    // Renamed beside it: found by its root. Another image under its name is not taken for it.
    fs::rename(rig.path("d0.img.zst"), rig.path("other.img.zst")).unwrap();
    assert_eq!(words(&[&"verify", &child]).code, 0);
    capture(&rig.path("d2"), &rig.path("d0.img.zst"), &[]);
    assert_eq!(words(&[&"verify", &child]).code, 0);

    // Elsewhere: where it is said to be, and nowhere else.
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("base.img.zst");
    fs::rename(rig.path("other.img.zst"), &moved).unwrap();
    try_restore(&child, &target, &[]).refused("not_found", &["d0.img.zst", &wanted, "--base"]);
    let wrong = rig.path("d0.img.zst");
    try_restore(&child, &target, &["--base", wrong.to_str().unwrap()])
        .refused("refused", &[&wanted, "not the image that is wanted"]);
    assert_eq!(blake3::hash(&fs::read(&target).unwrap()), before, "it was written to");
    let flags = ["--base", moved.to_str().unwrap()];
    assert!(rig.content(&child, &flags) == rig.expected(1));
    let flat = rig.path("flat.img.zst");
    let ran = words(&[&"flatten", &child, &flat, &"--base", &moved]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    try_restore(&flat, &target, &flags).refused("refused", &["no delta image"]);
}

#[test]
fn every_image_of_a_chain_may_lie_elsewhere() {
    let rig = Rig::new();
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (d1, d0) = (near.path().join("d1.imgd"), far.path().join("renamed.img.zst"));
    fs::rename(rig.path("d1.imgd"), &d1).unwrap();
    fs::rename(rig.path("d0.img.zst"), &d0).unwrap();
    let (child, target) = (rig.path("d2.imgd"), rig.path("target"));
    let (d1, d0) = (d1.to_str().unwrap(), d0.to_str().unwrap());

    // With one base only, the other is looked for beside its own child.
    noise_file(&target, rig.len, 3);
    let before = blake3::hash(&fs::read(&target).unwrap());
    let beside = near.path().to_str().unwrap();
    try_restore(&child, &target, &["--base", d1])
        .refused("not_found", &["d0.img.zst", beside, "--base"]);
    // The order of several does not matter.
    let expected = rig.expected(2);
    for flags in [["--base", d1, "--base", d0], ["--base", d0, "--base", d1]] {
        assert!(rig.content(&child, &flags) == expected, "{flags:?}");
        assert_eq!(agent(&[&["verify", child.to_str().unwrap()][..], &flags].concat()).code, 0);
    }
    let flat = rig.path("flat.img.zst");
    let ran = words(&[&"flatten", &child, &flat, &"--base", &d0, &"--base", &d1]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);

    // What is not needed is told from what is, and what is missing is named.
    noise_file(&target, rig.len, 3);
    let not_needed = |flags: &[&str], words: &[&str]| {
        try_restore(&child, &target, flags).refused("refused", words);
        assert_eq!(blake3::hash(&fs::read(&target).unwrap()), before, "it was written to");
    };
    let other = flat.to_str().unwrap();
    let all = ["--base", d1, "--base", d0, "--base", other];
    not_needed(&all, &["flat.img.zst", "no difference to", "beneath it are"]);
    not_needed(&["--base", d1, "--base", d0, "--base", d0], &["renamed.img.zst", "beneath"]);
    not_needed(&["--base", d1, "--base", other], &["flat.img.zst", "not the image that is wanted"]);
    not_needed(&["--base", d0], &["renamed.img.zst", "not the image that is wanted", "d1.imgd"]);

    // A capture on such a chain: the first base is what it is the difference to.
    let (disk, new) = (rig.path("d2"), rig.path("d3.imgd"));
    let child = child.to_str().unwrap();
    let flags = ["--base", child, "--base", d0, "--base", d1];
    try_capture(&disk, &new, &flags[..2]).refused("not_found", &["d1.imgd"]);
    capture(&disk, &new, &flags);
    let inspected = words(&[&"inspect", &new, &"--json"]).json();
    assert_eq!(inspected["manifest"]["parent"]["name"], "d2.imgd");
    assert!(rig.content(&new, &flags[2..]) == expected);
    try_capture(&disk, &rig.path("d4.imgd"), &["--base", d0, "--base", d1])
        .refused("refused", &["renamed.img.zst", "no delta image"]);

    // A base is not a target.
    let as_target = rig.path("as-target.img.zst");
    fs::copy(d0, &as_target).unwrap();
    let base = ["--base", d1, "--base", as_target.to_str().unwrap()];
    try_restore(&new, &as_target, &base).refused("refused", &["is the image itself"]);
}

#[test]
fn stock_zstd_does_not_take_a_delta_for_a_disk() {
    let rig = Rig::new();
    for flags in [&["-dc"][..], &["-t"], &["-l"]] {
        let image = rig.path("d1.imgd");
        let output = status("zstd", "zstd", &[flags, &[image.to_str().unwrap()]].concat());
        assert!(!output.status.success(), "{flags:?}");
        assert!(output.stdout.len() < 512, "{flags:?}: {} bytes came out", output.stdout.len());
    }
}

#[test]
fn the_highest_level_takes_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (old, new, base) = (at("d0"), at("d1"), at("d0.img.zst"));
    // A quarter of each span that zstd finds nothing in, which takes it seconds, and the same thrice more. Its tables are filled by less.
    for (name, seeds) in [(&old, 0..3), (&new, 3..6)] {
        let spans = seeds.flat_map(|seed| noise(1 << 20, seed).repeat(4));
        fs::write(name, spans.collect::<Vec<u8>>()).unwrap();
    }
    capture(Path::new(&old), Path::new(&base), &[]);
    let peak = peak(&["capture", "--level", "19", "--base", &base, &new, &at("d1.imgd")]);
    // The program itself, some 15 MB, is no anonymous memory.
    assert!(peak < 175_000_000, "{peak} bytes");
}

#[test]
fn names_say_what_an_image_is() {
    let rig = Rig::new();
    let base = rig.path("d0.img.zst");
    let flags = ["--base", base.to_str().unwrap()];
    try_capture(&rig.path("d1"), &rig.path("x.img.zst"), &flags).refused("refused", &[".imgd"]);
    try_capture(&rig.path("d1"), &rig.path("x.imgd"), &[]).refused("refused", &["--base"]);
    for name in ["x.RAW", "x.dd", "x.raw.gz"] {
        let ran = try_capture(&rig.path("d1"), &rig.path(name), &[]);
        ran.refused("refused", &["raw disk", ".img.zst"]);
        assert!(!rig.path(name).exists(), "{name}");
    }
    let ran = words(&[&"flatten", &rig.path("d1.imgd"), &rig.path("x.imgd")]);
    ran.refused("refused", &[".img.zst"]);
    let missing = rig.path("missing.img.zst");
    let flags = ["--base", missing.to_str().unwrap()];
    try_capture(&rig.path("d1"), &rig.path("x.imgd"), &flags).refused("not_found", &["missing"]);
    assert!(!rig.path("x.imgd").exists() && !rig.path("x.imgd.partial").exists());
}

#[test]
fn damage_anywhere_in_a_chain_is_noticed() {
    let rig = Rig::new();
    let target = rig.path("target");
    noise_file(&target, rig.len, 3);
    for name in ["d2.imgd", "d1.imgd", "d0.img.zst"] {
        let good = fs::read(rig.path(name)).unwrap();
        let places = noise(12 * 8, good.len() as u64);
        for at in places.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())) {
            let at = (at % good.len() as u64) as usize;
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(rig.path(name), bad).unwrap();
            let ran = words(&[&"verify", &rig.path("d2.imgd")]);
            // A frame of the base that the deltas have replaced is not needed any more.
            let unneeded = ran.code == 0 && name != "d2.imgd";
            assert!(ran.code != 0 || unneeded, "byte {at} of {name}");
            if unneeded {
                assert!(rig.content(&rig.path("d2.imgd"), &[]).len() as u64 == rig.len);
            }
        }
        fs::write(rig.path(name), good).unwrap();
    }
    assert_eq!(words(&[&"verify", &rig.path("d2.imgd")]).code, 0);
}

/// The data frames whose bytes are in this file.
fn stored_frames(image: &Path) -> Vec<FrameEntry> {
    let reader = ImageReader::open(File::open(image).unwrap()).unwrap();
    let all = reader.frames().map(Result::unwrap);
    all.filter(|f| f.kind == FrameKind::Data && f.base != FrameBase::Reference).collect()
}

/// Flips a bit in the middle of these frames of a file, does something, and flips them back.
fn with_damage(image: &Path, frames: &[FrameEntry], work: impl FnOnce()) {
    let flip = || {
        let mut bytes = fs::read(image).unwrap();
        for frame in frames {
            bytes[frame.stored_offset as usize + frame.stored_len as usize / 2] ^= 0x10;
        }
        fs::write(image, bytes).unwrap();
    };
    flip();
    work();
    flip();
}

#[test]
fn the_file_of_a_chain_that_is_damaged_is_named() {
    let rig = Rig::new();
    let (newest, target) = (rig.path("d2.imgd"), rig.path("target"));
    let (verify, flat) = (newest.to_str().unwrap(), rig.path("flat.img.zst"));
    let all = ["d2.imgd", "d1.imgd", "d0.img.zst"];
    for name in all {
        let image = rig.path(name);
        let frames = stored_frames(&image);
        assert!(!frames.is_empty(), "{name} holds nothing");
        with_damage(&image, &frames, || {
            let advice = if name == "d2.imgd" { "capture it again" } else { "in its place" };
            let path = format!("{}", image.display());
            let is = ["is damaged", advice, "frame ", "stored bytes do not match their hash"];
            let judge = |ran: &Ran| {
                ran.refused("image_corrupt", &is);
                // What is in front of "is damaged" is one file, or that and the delta that needs it.
                let (front, _) = ran.stderr.split_once("is damaged").unwrap();
                let named = front.rsplit(": ").next().unwrap();
                assert!(named.contains(&path), "{name}: {}", ran.stderr);
                let first = all.iter().min_by_key(|n| named.find(*n).unwrap_or(usize::MAX));
                assert_eq!(first, Some(&name), "{}", ran.stderr);
            };
            judge(&agent(&["verify", verify]));
            judge(&agent(&["verify", "--deep", verify]));
            judge(&words(&[&"flatten", &newest, &flat]));
            assert!(!flat.exists());
            noise_file(&target, rig.len, 3);
            judge(&try_restore(&newest, &target, &[]));
            assert!(!crate::damage::is_bootable(&target));
        });
    }
    assert_eq!(agent(&["verify", "--deep", verify]).code, 0);

    // One that cannot even be opened is named too, and so is what is wrong with it.
    let parent = rig.path("d1.imgd");
    let good = fs::read(&parent).unwrap();
    fs::write(&parent, &good[..good.len() - 9]).unwrap();
    let path = format!("{} cannot be opened", parent.display());
    let wanted = [path.as_str(), "d2.imgd is the difference to", "--base"];
    agent(&["verify", verify]).refused("image_corrupt", &wanted);
    // Under another name it is found all the same.
    fs::write(rig.path("copy.imgd"), &good).unwrap();
    assert_eq!(agent(&["verify", verify]).code, 0);
}
