//! Against nfs-ganesha, with libnfs as the independent witness.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::ErrorKind;
use fault_proxy::{Ending, Proxy, Script, Way};
use ramdisk_agent::store::{self, Limiter, Options, ReadAt as _, StoreError};
use uuid::Uuid;

use crate::ganesha::{Ganesha, MOUNT_PORT, NFS_PORT, isolate};
use crate::misbehaving::{options, write};
use crate::real_servers::{self, RealServer as _, pattern};

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn round_trip_of_256_mib_and_libnfs_sees_the_same() {
    let server = Ganesha::start();
    let url = server.url("debian-12.img.zst");
    let data = pattern((256 << 20) + 12_345, 1);
    let mut writer = store::create(&url, Uuid::new_v4(), &Options::default()).unwrap();
    for piece in data.chunks(3_333_333) {
        writer.append(piece).unwrap();
    }
    assert_eq!(writer.commit().unwrap(), writer.len());
    assert_eq!(writer.resent_bytes(), 0);
    let mut back = vec![0; data.len()];
    writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
    assert!(back == data, "what is stored differs before it is published");
    assert!(matches!(store::open(&url), Err(StoreError::NotFound { .. })));
    writer.publish().unwrap();

    assert!(std::fs::read(server.folder().join("debian-12.img.zst")).unwrap() == data);
    let entries = store::list(&url.parent().unwrap(), &options()).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(
        (entries[0].name.as_str(), entries[0].len_bytes),
        ("debian-12.img.zst", data.len() as u64)
    );

    let facts = store::facts(&url.parent().unwrap(), &options()).unwrap();
    assert_eq!((facts.protocol.as_str(), facts.max_write_bytes), ("NFS 3", Some(1 << 20)));
    let (free, total) = (facts.free_bytes.unwrap(), facts.total_bytes.unwrap());
    let held = rustix::fs::statvfs(server.folder()).unwrap();
    assert_eq!(total, held.f_blocks * held.f_frsize);
    assert!(0 < free && free < total, "{facts:?}");

    let listed = run(Command::new("nfs-ls").arg("nfs://127.0.0.1/images?version=3"));
    assert!(
        listed.contains("debian-12.img.zst") && listed.contains(&data.len().to_string()),
        "{listed}"
    );
    let copy = server.folder().with_file_name("copy");
    run(Command::new("nfs-cp")
        .arg("nfs://127.0.0.1/images/debian-12.img.zst?version=3")
        .arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == data, "libnfs reads other bytes");
    store::remove(&url, &options()).unwrap();
    assert!(matches!(store::remove(&url, &options()), Err(StoreError::NotFound { .. })));
}

#[test]
fn what_a_writer_leaves_is_gone_on_with() {
    let server = Ganesha::start();
    real_servers::what_a_writer_leaves_is_gone_on_with(&server);
    // Replaced by another writer: that is not what was looked at.
    let (url, data) = (server.url("x.img.zst"), pattern(8 << 20, 18));
    let mut writer = store::create(&url, Uuid::new_v4(), &options()).unwrap();
    writer.append(&data).unwrap();
    writer.commit().unwrap();
    writer.keep().unwrap();
    let left = store::left_over(&url, &options()).unwrap().unwrap();
    let elsewhere = "nfs://localhost/images/x.img.zst".parse().unwrap();
    let other = store::create(&elsewhere, Uuid::new_v4(), &options()).unwrap();
    assert!(matches!(left.go_on(2 << 20), Err(StoreError::Replaced { .. })));
    other.abort().unwrap();
}

#[test]
fn several_threads_read_at_once() {
    let server = Ganesha::start();
    let path = server.folder().join("x");
    real_servers::several_threads_read_at_once(&server, &server.url("x"), &path);
}

#[test]
fn folders_below_the_export_and_a_name_as_host() {
    let server = Ganesha::start();
    std::fs::create_dir_all(server.folder().join("a/b c")).unwrap();
    let data = pattern(100_000, 5);
    let url = "nfs://localhost/images/a/b%20c/x.img.zst".parse().unwrap();
    write(&url, &data, &options()).unwrap();
    assert!(std::fs::read(server.folder().join("a/b c/x.img.zst")).unwrap() == data);
    let error = store::open(&"nfs://localhost/images/a/none/x".parse().unwrap()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    std::os::unix::fs::symlink("a", server.folder().join("link")).unwrap();
    let error = store::open(&"nfs://localhost/images/link/x".parse().unwrap()).err().unwrap();
    assert!(error.to_string().contains("a symbolic link is not followed"), "{error}");
    let error = store::open(&"nfs://localhost/elsewhere/x".parse().unwrap()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("exports are /images"), "{error}");
}

#[test]
fn a_limit_is_kept_over_the_wire() {
    const RATE: u64 = 4 << 20;
    let server = Ganesha::start();
    let limiter = Limiter::new(RATE, Arc::default(), Box::new(|_, _| {}));
    let options = Options { limiter: Some(Arc::new(limiter)), ..options() };
    let data = pattern(12 << 20, 12);
    // Never faster; slower may be this machine's load.
    let shortest = Duration::from_secs_f64(data.len() as f64 / RATE as f64 / 1.1);
    let start = Instant::now();
    let mut writer = store::create(&server.url("x"), Uuid::new_v4(), &options).unwrap();
    data.chunks(1_000_000).for_each(|piece| writer.append(piece).unwrap());
    writer.commit().unwrap();
    assert!(start.elapsed() >= shortest, "written in {:?}", start.elapsed());
    let image = writer.reader().unwrap();
    let mut back = vec![0; data.len()];
    let start = Instant::now();
    image.read_exact_at(&mut back, 0).unwrap();
    assert!(start.elapsed() >= shortest, "read in {:?}", start.elapsed());
    assert!(start.elapsed() < shortest * 2, "read in {:?}", start.elapsed());
    assert!(back == data);
    writer.publish().unwrap();
}

#[test]
fn writing_goes_on_after_the_server_was_killed() {
    real_servers::writing_goes_on_after_kills(&mut Ganesha::start(), 18);
}

#[test]
fn reading_goes_on_after_the_server_was_killed() {
    real_servers::reading_goes_on_after_kills(&mut Ganesha::start());
}

#[test]
fn a_server_that_stays_down_ends_the_budget() {
    real_servers::a_server_that_stays_down_ends_the_budget(&mut Ganesha::start());
}

#[test]
fn nobody_there_is_said_within_the_first_budget() {
    isolate();
    let options = Options { connect_budget: Duration::from_secs(2), ..options() };
    let error =
        store::open_with(&"nfs://127.0.0.1/images/x".parse().unwrap(), &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
}

#[test]
fn connections_cut_anywhere() {
    let server = Ganesha::start();
    let data = pattern(24 << 20, 6);
    // Around record marks and headers, in the middle of data, and again and again in a row.
    let mut cuts = Vec::new();
    for (index, after_bytes) in
        [3, 4, 44, 150, 65_536, 1_048_576, 2_500_001].into_iter().enumerate()
    {
        for way in [Way::ToServer, Way::ToClient] {
            // Replies to writes are short.
            let after_bytes =
                if way == Way::ToClient { after_bytes % 1_021 + 1 } else { after_bytes };
            cuts.push(Script::ends(way, (after_bytes + index) as u64, Ending::Close));
        }
    }
    let count = cuts.len();
    let proxy = Proxy::start(server.address(), cuts).unwrap();
    let options = Options { budget: Duration::from_secs(120), ..options() };
    let url = server.url_at(proxy.port(), "x");
    write(&url, &data, &options).unwrap();
    assert!(std::fs::read(server.folder().join("x")).unwrap() == data);
    assert_eq!(proxy.faults(), count, "not all cuts happened");
    assert!(proxy.connections() > count);

    let cuts = (0..30).map(|n| Script::ends(Way::ToClient, 7 + n * n * 2_003, Ending::Close));
    let proxy = Proxy::start(server.address(), cuts).unwrap();
    let image = store::open_with(&server.url_at(proxy.port(), "x"), &options).unwrap();
    let mut back = vec![0; data.len()];
    image.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data);
    assert!(proxy.faults() > 20, "only {} cuts happened", proxy.faults());
}

#[test]
fn a_silent_connection_is_replaced() {
    let server = Ganesha::start();
    let proxy = Proxy::start(server.address(), []).unwrap();
    let data = pattern(4 << 20, 7);
    let mut writer =
        store::create(&server.url_at(proxy.port(), "x"), Uuid::new_v4(), &options()).unwrap();
    let before = proxy.connections();
    std::thread::scope(|scope| {
        proxy.set_silent(true);
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(5));
            proxy.set_silent(false);
        });
        writer.append(&data).unwrap();
        writer.commit().unwrap();
    });
    assert!(proxy.connections() > before);
    writer.publish().unwrap();
    assert!(std::fs::read(server.folder().join("x")).unwrap() == data);
}

#[test]
fn who_is_cancelled_does_not_wait_for_a_server_that_hangs() {
    let server = Ganesha::start();
    let proxy = Proxy::start(server.address(), []).unwrap();
    real_servers::who_is_cancelled_does_not_wait_for_a_server_that_hangs(
        &server,
        &proxy,
        |name| server.url_at(proxy.port(), name),
        &options(),
    );
}

#[test]
fn a_read_only_export_is_refused_in_words() {
    let server = Ganesha::start_with("RO", None);
    let error = store::create(&server.url("x"), Uuid::new_v4(), &options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("exports it read-only to this address"), "{error}");
}

#[test]
fn another_user_is_refused_in_words() {
    let server = Ganesha::start();
    let url =
        format!("nfs://127.0.0.1:{NFS_PORT}/images/x?mountport={MOUNT_PORT}&uid=12345&gid=12345");
    let error = store::create(&url.parse().unwrap(), Uuid::new_v4(), &options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("does not allow it to uid 12345"), "{error}");
    drop(server);
}

/// A small file system of its own, on a loop device.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new(mebibytes: u64) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = folder.path().join("disk");
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        let at = folder.path().join("mounted");
        std::fs::create_dir(&at).unwrap();
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { folder }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A failed test has said what went wrong already.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|n| n != "lost+found")
        .collect()
}

#[test]
fn a_full_share_is_no_space_and_keeps_nothing() {
    isolate();
    let disk = SmallDisk::new(32);
    let server = Ganesha::start_with("RW", Some(&disk.path()));
    let error = write(&server.url("x"), &pattern(64 << 20, 8), &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(names(&disk.path()), Vec::<String>::new());
    // And there is room again for one that fits.
    write(&server.url("y"), &pattern(8 << 20, 9), &options()).unwrap();
    assert_eq!(names(&disk.path()), ["y"]);
    drop(server);
}
