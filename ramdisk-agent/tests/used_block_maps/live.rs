//! A filesystem that the running kernel has mounted from a loop device, and that is used.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::noise::Noise;
use crate::tools::run;
use crate::tree::{Shape, plant};

/// How long others may hold what was unmounted here.
const PATIENCE: Duration = Duration::from_secs(300);

/// A mounted filesystem.
pub struct Mounted<'a> {
    pub at: PathBuf,
    volume: &'a Path,
    what: &'a str,
}

impl<'a> Mounted<'a> {
    /// Mounts `volume`, which `what` describes; `options` are mount's, besides `loop`.
    pub fn new(volume: &'a Path, options: &[&str], at: &Path, what: &'a str) -> Self {
        assert_eq!(
            run("coreutils", "id", &["-u"]).trim(),
            "0",
            "mounting needs root: run the tests as root"
        );
        fs::create_dir_all(at).unwrap();
        let places = ["-o", "loop", volume.to_str().unwrap(), at.to_str().unwrap()];
        run("mount", "mount", &[options, &places].concat());
        Self { at: at.to_owned(), volume, what }
    }

    /// See [`live`].
    pub fn live(&self, noise: &mut Noise, round: u64) {
        live(&self.at, true, noise, round);
    }
}

/// Fills, thins out and fragments what is mounted at a folder; `unix` says whether it knows links and holes.
pub fn live(at: &Path, unix: bool, noise: &mut Noise, round: u64) {
    let shape = Shape { bytes: 2 << 20, files: 50, unix };
    let left = rustix::fs::statvfs(at).unwrap();
    // Attributes, links and folders take room beside the files' own.
    if left.f_bavail * left.f_frsize < 2 * shape.bytes || left.f_ffree < 4 * shape.files {
        return;
    }
    let tree = at.join(format!("lived{round}"));
    fs::create_dir(&tree).unwrap();
    let files = plant(&tree, &shape, noise);
    for file in files {
        match noise.below(5) {
            0 => fs::remove_file(tree.join(file)).unwrap(),
            1 => {
                let file = File::options().append(true).open(tree.join(file)).unwrap();
                let len = noise.below(200_000) as usize;
                if_room((&file).write_all(&noise.bytes(len)));
                // Other files grow between its parts.
                if_room(file.sync_data());
            }
            2 => {
                let file = File::options().write(true).open(tree.join(file)).unwrap();
                file.set_len(noise.below(10_000)).unwrap();
                let far = noise.below(if unix { 1 << 24 } else { 1 << 18 });
                if_room(file.write_all_at(b"far", far));
            }
            3 => {
                let path = tree.join(file);
                let len = noise.below(300_000).max(1).to_string();
                let args = ["-n", "-l", &len, path.to_str().unwrap()];
                crate::tools::status("util-linux", "fallocate", &args);
            }
            _ => {}
        }
    }
}

/// A filesystem that is full is one more state to be in.
fn if_room(result: std::io::Result<()>) {
    assert!(
        result.as_ref().err().is_none_or(|e| e.kind() == std::io::ErrorKind::StorageFull),
        "{result:?}"
    );
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        run("mount", "umount", &[self.at.to_str().unwrap()]);
        assert!(fs::remove_dir(&self.at).is_ok(), "{}: still mounted", self.what);
        // A mount namespace that was made meanwhile, by another test's say, has a copy of the mount as long as it lives.
        let start = Instant::now();
        while !run("util-linux", "losetup", &["--associated", self.volume.to_str().unwrap()])
            .is_empty()
        {
            assert!(start.elapsed() < PATIENCE, "{}: still in use by something", self.what);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
