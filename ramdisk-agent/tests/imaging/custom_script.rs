//! Scripts in a chroot of the restored system.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::{try_restore, worker};
use crate::custom::{Custom, EXT4, done, plant};
use crate::devices::{Loop, Mounted};
use crate::tools::run;

/// A system with a shell.
pub fn with_shell(at: &Path) {
    plant(at);
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(at.join(folder)).unwrap();
    }
    let busybox = "/bin/busybox";
    fs::copy(busybox, at.join("bin/busybox")).expect("apt-get install busybox-static");
    symlink("busybox", at.join("bin/sh")).unwrap();
}

pub fn script(custom: &Custom, text: &str) -> String {
    let path = custom.dir.path().join("script.sh");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    format!("--post-script={}", path.display())
}

#[test]
fn a_script_changes_the_system_and_nothing_of_it_stays_behind() {
    let custom = Custom::new(&[(EXT4, 40, &with_shell)]);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    // Its files come first; what it leaves running ends with it; what it mounts is not there any more.
    let flag = script(
        &custom,
        "b=/bin/busybox; set -e
         $b test -c /dev/null; $b test -d /sys/class; $b test -e /proc/self/status
         $b id -u; echo \"name $($b cat /etc/hostname)\" >&2; $b echo \"$IMPRINT_TARGET\" >/etc/target
         $b mkdir /mnt; $b mount -t tmpfs none /mnt; echo x >/mnt/x
         $b hostname inside; read line || echo no input
         $b sleep 1000 & ",
    );
    let paths = ["--hostname", "node7", &flag];
    let start = Instant::now();
    let ran = try_restore(&custom.image, &custom.target, &paths);
    assert!(start.elapsed() < Duration::from_secs(60));
    for line in ["post-script: 0", "post-script: name node7", "post-script: no input"] {
        assert!(ran.stderr.contains(line), "{}", ran.stderr);
    }
    let summary = ran.json();
    assert_eq!(done(&summary)["/etc/hostname"], "replaced");
    assert!(summary["changes"].to_string().contains("post-script ran"), "{summary:#}");
    custom.check(1, &["e2fsck", "-fn"]);
    custom.look(1, "ro,noload", |at| {
        let target = fs::read_to_string(at.join("etc/target")).unwrap();
        assert_eq!(target.trim_end(), custom.target.to_str().unwrap());
        assert!(!at.join("mnt/x").exists());
    });
    let ours = |text: &str| {
        let path = custom.dir.path().to_str().unwrap().to_owned();
        text.lines().filter(|line| line.contains(&path)).count()
    };
    assert_eq!(ours(&fs::read_to_string("/proc/self/mounts").unwrap()), ours(&mounts));
}

#[test]
fn a_script_that_fails_or_does_not_end() {
    let custom = Custom::new(&[(EXT4, 40, &with_shell)]);
    let flag = script(&custom, "echo one; echo two >&2; exit 3");
    custom.fails(&[&flag], "refused", &["post-script failed (exit status: 3)", "two"]);
    let flag = script(&custom, "/bin/busybox sleep 1000");
    let start = Instant::now();
    custom.fails(&[&flag, "--post-script-limit=1"], "refused", &["still running after 1 s"]);
    assert!(start.elapsed() < Duration::from_secs(60));
    // Nothing to run it with; no place for the devices; a place that leads elsewhere.
    let no_shell = Custom::new(&[(EXT4, 40, &|at: &Path| {
        with_shell(at);
        fs::remove_file(at.join("bin/sh")).unwrap();
    })]);
    no_shell.fails(&[&flag], "refused", &["could not be run: starting it: No such file"]);
    let no_place = Custom::new(&[(EXT4, 40, &|at: &Path| {
        with_shell(at);
        fs::remove_dir(at.join("dev")).unwrap();
        symlink("/etc", at.join("dev")).unwrap();
    })]);
    no_place.fails(&[&flag], "refused", &["attaching /dev"]);
    fs::write(custom.dir.path().join("text"), "true\n").unwrap();
    let flag = format!("--post-script={}", custom.dir.path().join("text").display());
    let ran = try_restore(&custom.image, &custom.target, &[&flag]);
    assert!(ran.code == 2 && ran.stderr.contains("#!/"), "{}", ran.stderr);
}

#[test]
fn a_script_that_ends_its_process_group_ends_nothing_of_ours() {
    let custom = Custom::new(&[(EXT4, 40, &with_shell)]);
    let flag = script(
        &custom,
        "/bin/busybox sleep 1000 & kill -9 0; kill -9 $PPID; kill -9 -1; wait
         echo still here; (exec 3</dev/tty) 2>/dev/null && echo a terminal; exit 0",
    );
    let ran = try_restore(&custom.image, &custom.target, &[&flag]);
    assert!(done(&ran.json()).is_empty());
    assert!(ran.stderr.contains("post-script: still here"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("a terminal"), "{}", ran.stderr);
}

fn by_and_by(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "not so: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_job_is_cancelled_while_its_script_runs() {
    let custom = Custom::new(&[(EXT4, 40, &with_shell)]);
    let (volume, at) = (custom.dir.path().join("volume"), custom.dir.path().join("volume-mnt"));
    File::create(&volume).unwrap().set_len(8 << 20).unwrap();
    run("e2fsprogs", "mke2fs", &["-q", volume.to_str().unwrap()]);
    let device = Loop::new(&volume, &[]);
    let mounted = Mounted::new(device.text(), &at, "rw");
    // `#!/bin/sh`, and a sleep of 1,000 seconds.
    let script = "IyEvYmluL3NoCi9iaW4vYnVzeWJveCBzbGVlcCAxMDAwCg==";
    let mut child = worker(&json!({
        "id": "1", "disk": custom.target, "image_url": custom.image, "action": "restore",
        "options": {"post_script": script},
    }));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    while next()["progress"]["stage"] != "finishing" {}
    by_and_by("the script runs", || {
        let processes = fs::read_dir("/proc").unwrap();
        processes
            .filter_map(|process| fs::read(process.ok()?.path().join("cmdline")).ok())
            .any(|command| command == b"/bin/busybox\0sleep\x001000\0")
    });
    // What this machine has mounted is not kept in use by the script.
    drop(mounted);
    by_and_by("it is unmounted", || {
        let claim = File::options().read(true).custom_flags(libc::O_EXCL).open(device.path());
        claim.is_ok()
    });
    let pid = i32::try_from(child.id()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    let outcome = loop {
        let line = next();
        if line["outcome"].is_object() {
            break line["outcome"].clone();
        }
    };
    assert_eq!(outcome["kind"], "cancelled", "{outcome:#}");
    child.wait().unwrap();
}
