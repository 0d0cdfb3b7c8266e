//! A limit on what a job moves to and from its stores.

use std::io::Read as _;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::agent::{agent, capture, restore, worker};
use crate::disks::noise_file;

const MIB: u64 = 1 << 20;
const LIMIT: &str = "4M";
const LIMIT_BYTES: f64 = 4.0 * 1_048_576.0;
/// Incompressible, so that it is stored as it is: four seconds.
const DISK_LEN: u64 = 16 * MIB;

#[allow(clippy::cast_precision_loss, reason = "some MiB and some seconds")]
fn share_of_limit(bytes: &Value, ms: u64) -> f64 {
    bytes.as_u64().unwrap() as f64 * 1000.0 / ms as f64 / LIMIT_BYTES
}

/// Too fast is wrong at once; too slow may be this machine's load, so that is tried again.
fn holds_the_limit(what: &str, mut measure: impl FnMut() -> f64) {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let share = measure();
        assert!(share < 1.1, "{what}: {share:.3} of the limit");
        seen.push(share);
        if share > 0.9 {
            return;
        }
    }
    panic!("{what}: {seen:?} of the limit");
}

fn is_said(summary: &Value) {
    let limited_by = summary["limited_by"].as_str().unwrap();
    assert!(limited_by.starts_with("the limit that was given: "), "{limited_by}");
}

fn ms(summary: &Value, name: &str) -> u64 {
    summary[name].as_u64().unwrap()
}

#[test]
fn jobs_keep_to_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let disk = path("disk");
    noise_file(&disk, DISK_LEN, 41);

    let image = path("x.img.zst");
    holds_the_limit("capture", || {
        // Those of earlier rounds are not overwritten.
        let _ = std::fs::remove_file(&image);
        let summary = capture(&disk, &image, &["--limit", LIMIT]);
        is_said(&summary);
        let reread = share_of_limit(&summary["reread_bytes"], ms(&summary, "verify_ms"));
        assert!(reread < 1.1, "re-read: {reread:.3} of the limit");
        share_of_limit(&summary["stored_bytes"], ms(&summary, "capture_ms"))
    });

    let target = path("target");
    std::fs::File::create(&target).unwrap().set_len(DISK_LEN).unwrap();
    holds_the_limit("restore", || {
        let summary = restore(&image, &target, &["--limit", LIMIT]);
        is_said(&summary);
        share_of_limit(&summary["fetched_bytes"], ms(&summary, "restore_ms"))
    });
    assert!(std::fs::read(&disk).unwrap() == std::fs::read(&target).unwrap());

    holds_the_limit("verify", || {
        let start = Instant::now();
        let image = image.to_str().unwrap();
        let verified = agent(&["verify", image, "--json", "--limit", LIMIT]).json();
        let took = u64::try_from(start.elapsed().as_millis()).unwrap();
        share_of_limit(&verified["verified"]["stored_bytes"], took)
    });
}

#[test]
fn a_job_has_it_too_and_hears_at_once_that_it_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    noise_file(&disk, DISK_LEN, 42);
    let image = folder.path().join("x.img.zst");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let job = json!({
        "id": "j", "disk": text(&disk), "image_url": text(&image),
        "action": "capture", "options": { "limit": "64K" },
    });
    let mut child = worker(&job);
    let mut out = child.stdout.take().unwrap();
    // It has begun to work once it reports; at this limit it takes four minutes.
    let mut text = vec![0; 1 << 16];
    let mut got = 0;
    while !String::from_utf8_lossy(&text[..got]).contains("capturing") {
        let count = out.read(&mut text[got..]).unwrap();
        assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&text[..got]));
        got += count;
    }
    let cancelled = Instant::now();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(!child.wait().unwrap().success());
    assert!(cancelled.elapsed().as_secs() < 30, "{:?}", cancelled.elapsed());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the disk is left");
}

#[test]
fn what_is_no_rate_is_refused() {
    for limit in ["0", "1K", "400Mbit", "1.5M"] {
        let ran = agent(&["verify", "/x.img.zst", "--limit", limit]);
        assert_eq!(ran.code, 2, "{limit}: {}", ran.stderr);
    }
}

/// What lies beneath a delta is fetched, too, and that is not the processors' time.
#[test]
fn fetching_the_base_of_a_delta_is_not_decompressing() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (disk, base, delta) = (path("disk"), path("x.img.zst"), path("y.imgd"));
    noise_file(&disk, 8 * MIB, 43);
    capture(&disk, &base, &[]);
    for at in [0, 4 * MIB] {
        let file = std::fs::File::options().write(true).open(&disk).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"changed", at).unwrap();
    }
    let limit = ["--limit", "16M"];
    let of_base = [&limit[..], &["--base", base.to_str().unwrap()]].concat();
    let captured = capture(&disk, &delta, &of_base);
    let target = path("target");
    std::fs::File::create(&target).unwrap().set_len(8 * MIB).unwrap();
    let restored = restore(&delta, &target, &limit);
    for (summary, stage, part) in
        [(captured, "capturing", "compress"), (restored, "restoring", "decompress")]
    {
        let find = |list: &Value, key: &str, name: &str| {
            let list = list.as_array().unwrap().iter();
            list.clone().find(|one| one[key] == name).cloned().unwrap_or(Value::Null)
        };
        let stage = find(&summary["stages"], "stage", stage);
        let busy = |name: &str| find(&stage["parts"], "part", name)["busy_ms"].as_u64();
        let (worked, waited) = (busy(part).unwrap(), busy("limit").unwrap());
        assert!(worked < waited, "{stage:#}");
    }
}
