//! A system that has too little of something left for all that a job would like to have.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};

use crate::agent::capture;
use crate::disks::noise_file;

/// Fewer threads do, and without any the job fails as every other that fails.
#[test]
fn a_system_with_few_threads_left() {
    let dir = tempfile::tempdir().unwrap();
    let [source, image, target] = ["s", "s.img.zst", "t"].map(|name| dir.path().join(name));
    noise_file(&source, 9 << 20, 1);
    let before = fs::read(&source).unwrap();
    // Address space for so many stacks of a GiB, and for the program.
    let with_room_for = |threads: u64, args: &[&OsStr]| {
        let output = Command::new("prlimit")
            .arg(format!("--as={}", (threads << 30) + (700 << 20)))
            .arg(env!("CARGO_BIN_EXE_imprint-agent"))
            .args(args)
            .env("RUST_MIN_STACK", (1 << 30).to_string())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut done = [0; 2];
    for threads in 1..=8 {
        let (code, said) =
            with_room_for(threads, &["capture".as_ref(), source.as_ref(), image.as_ref()]);
        let names = fs::read_dir(dir.path()).unwrap().count();
        match code {
            Some(0) => done[0] += 1,
            Some(1 | 7) => assert!(said.contains("Resource temporarily") && names == 1, "{said}"),
            _ => panic!("{threads}: {code:?}: {said}"),
        }
        if code == Some(0) {
            fs::remove_file(&image).unwrap();
        }
    }
    capture(&source, &image, &[]);
    for threads in 1..=8 {
        noise_file(&target, 9 << 20, 2);
        let args = ["restore".as_ref(), "--yes".as_ref(), image.as_ref(), target.as_ref()];
        let (code, said) = with_room_for(threads, &args);
        match code {
            Some(0) => {
                assert!(fs::read(&target).unwrap() == before);
                done[1] += 1;
            }
            Some(1) => assert!(said.contains("[internal]"), "{said}"),
            _ => panic!("{threads}: {code:?}: {said}"),
        }
    }
    // From three on: who waits for signals, the feeder, a worker.
    assert!(done.iter().all(|&done| (4..8).contains(&done)), "{done:?}");
}
