//! A filesystem that a driver outside of the kernel has mounted, and files for it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::noise::Noise;
use crate::tools::run;

/// For a driver to mount, or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A volume that its driver, a process of ours, has mounted.
pub struct Driven {
    driver: Child,
    pub at: PathBuf,
}

impl Driven {
    /// Runs a driver, which stays in the foreground, with these arguments, the volume and the folder.
    pub fn new(package: &str, driver: &str, args: &[&str], volume: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let device = |path: &Path| fs::metadata(path).unwrap().dev();
        let before = device(at);
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let mut process = Command::new("env")
            .args([&format!("PATH={path}"), driver])
            .args(args)
            .args([volume, at])
            // Some tell of every call.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("env can be started");
        let start = Instant::now();
        while device(at) == before {
            assert!(start.elapsed() < PATIENCE, "{driver} does not mount {}", volume.display());
            let ended = process.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{driver} refuses {}, or is missing: apt-get install {package}",
                volume.display()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { driver: process, at: at.to_owned() }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        run("mount", "umount", &[self.at.to_str().unwrap()]);
        // It writes until it ends.
        assert!(self.driver.wait().unwrap().success());
        fs::remove_dir(&self.at).unwrap();
    }
}

/// Small files with every other one removed, files that grow in turns, a folder with many names.
pub fn pepper(at: &Path, noise: &mut Noise) {
    let left = rustix::fs::statvfs(at).unwrap();
    // Every file takes a cluster.
    if left.f_bavail * left.f_frsize < (10 << 20) + 700 * left.f_bsize {
        return;
    }
    let files = 100 + noise.below(200);
    for i in 0..files {
        fs::write(at.join(i.to_string()), noise.bytes(small(i))).unwrap();
    }
    for i in (0..files).step_by(2) {
        fs::remove_file(at.join(i.to_string())).unwrap();
    }
    let mut pair = ["one", "two"].map(|name| File::create(at.join(name)).unwrap());
    for _ in 0..noise.below(600) {
        for file in &mut pair {
            file.write_all(&noise.bytes(1300)).unwrap();
            file.sync_data().unwrap();
        }
    }
    fs::create_dir(at.join("many")).unwrap();
    for i in 0..noise.below(300) {
        File::create(at.join(format!("many/{i} with a name that makes the folder's index grow")))
            .unwrap();
    }
}

fn small(i: u64) -> usize {
    (i * 37 % 9000) as usize
}
