//! Faults of the server: it goes away and comes back, or not; its disk fills up; its files change beneath a job.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use agent_api::ErrorKind;
use fault_proxy::{Ending, Proxy, Script, Way};
use ramdisk_agent::store::{self, Options, ReadAt as _};

use crate::job::{FRAME, Numbers, check_folder, compare, new_name, pattern, read, write};
use crate::report::{Ended, Expected, Report, SAME, chosen};
use crate::store::Store;

const LIMIT: Duration = Duration::from_secs(60);
const NETWORK: Expected = Expected { same: false, kinds: &[ErrorKind::Network] };

/// Waits for a condition of another thread's making; the scenario's own limit ends what never comes.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a job whose server is killed when the proxy has come to its fault, and started again.
fn with_a_kill<S: Store>(
    store: &mut S,
    proxy: &Proxy,
    job: impl FnOnce() -> Ended + Send,
) -> Ended {
    std::thread::scope(|scope| {
        let job = scope.spawn(job);
        until("the fault", || proxy.faults() > 0 || job.is_finished());
        store.kill();
        store.restart();
        job.join().unwrap()
    })
}

/// The server is killed and started again in the middle of a job; is away for longer than that; or stays away.
pub fn outages<S: Store>() {
    let mut store = S::start(None);
    let data = pattern(4 << 20, 3);
    let mut numbers = Numbers::new("outages");
    let mut report = Report::new(S::NAME, "outages");
    let folder = store.folder();

    let places: Vec<u64> = (0..20).map(|_| numbers.up_to(data.len() as u64)).collect();
    for at in chosen(places, 2) {
        let script = Script::ends(Way::ToClient, at, Ending::Silence);
        let proxy = Proxy::start(store.address(), [script]).unwrap();
        let name = new_name();
        let (url, options) = (store.url(proxy.port(), &name), store.options());
        std::fs::write(folder.join(&name), &data).unwrap();
        report.scenario(&format!("Read: killed after {at} bytes"), SAME, LIMIT, || {
            with_a_kill(&mut store, &proxy, || read(&url, &data, &options))
        });
    }

    for refused_ms in chosen(vec![300, 1000, 2500, 4000], 1) {
        let proxy = Proxy::start(store.address(), []).unwrap();
        let name = new_name();
        let (url, options) = (store.url(proxy.port(), &name), store.options());
        std::fs::write(folder.join(&name), &data).unwrap();
        report.scenario(&format!("Read: refused for {refused_ms} ms"), SAME, LIMIT, || {
            let image = store::open_with(&url, &options).unwrap();
            proxy.set_refusing(true);
            proxy.end_all(Ending::Reset);
            std::thread::scope(|scope| {
                let job = scope.spawn(|| compare(&*image, &data));
                std::thread::sleep(Duration::from_millis(refused_ms));
                proxy.set_refusing(false);
                job.join().unwrap()
            })
        });
    }

    // Away for good: the budget ends it.
    let budget = Duration::from_secs(3);
    for silent in chosen(vec![true, false], 1) {
        let proxy = Proxy::start(store.address(), []).unwrap();
        let name = new_name();
        let options = Options { budget, ..store.options() };
        let how = if silent { "silent" } else { "refused" };
        let go_away = || {
            if silent {
                proxy.set_silent(true);
            } else {
                proxy.set_refusing(true);
                proxy.end_all(Ending::Reset);
            }
        };
        std::fs::write(folder.join(&name), &data).unwrap();
        report.scenario(&format!("Read: {how} for good"), NETWORK, budget * 5, || {
            let image = store::open_with(&store.url(proxy.port(), &name), &options).unwrap();
            go_away();
            compare(&*image, &data)
        });
        if S::WRITES {
            let name = new_name();
            let url = store.url(proxy.port(), &name);
            proxy.set_silent(false);
            proxy.set_refusing(false);
            report.scenario(&format!("Write: {how} for good"), NETWORK, budget * 8, || {
                let (ended, _) = write_until(&url, &data, &options, go_away);
                check_folder(&folder, &name, &data, &ended);
                ended
            });
        }
    }
    // Nobody there at all.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let options = Options { connect_budget: Duration::from_secs(2), ..store.options() };
    let url = store.url(port, &new_name());
    report.scenario("Read: nobody there", NETWORK, Duration::from_secs(15), || {
        read(&url, &data, &options)
    });
}

/// Writes, with something happening after the first half.
fn write_until(
    url: &store::StoreUrl,
    data: &[u8],
    options: &Options,
    happens: impl FnOnce(),
) -> (Ended, u64) {
    let failed = |error: store::StoreError| Ended::Failed(error.kind(), error.to_string());
    let mut writer = match store::create(url, uuid::Uuid::new_v4(), options) {
        Ok(writer) => writer,
        Err(error) => return (failed(error), 0),
    };
    let (first, second) = data.split_at(data.len() / 2);
    let work = || {
        writer.append(first)?;
        writer.commit()?;
        happens();
        writer.append(second)?;
        writer.commit()
    };
    if let Err(error) = work() {
        // The first error is the one that matters.
        let _ = writer.abort();
        return (failed(error), 0);
    }
    let resent = writer.resent_bytes();
    match writer.publish() {
        Ok(()) => (Ended::Same, resent),
        Err(error) => (failed(error), resent),
    }
}

/// Frames of the image that is written while the server is killed.
const FRAMES: usize = 256;

/// The server is killed after every frame of an image of 256, and before, behind and after the answer to what makes data durable.
pub fn killed_while_writing<S: Store>() {
    if !S::WRITES {
        return;
    }
    let mut store = S::start(None);
    let data = pattern(FRAMES * FRAME, 4);
    let folder = store.folder();
    let mut report = Report::new(S::NAME, "killed while writing");
    let proxy = Proxy::start(store.address(), []).unwrap();
    proxy.record();
    let name = new_name();
    let url = store.url(proxy.port(), &name);
    let (ended, _) = write_until(&url, &data, &store.options(), || ());
    check_folder(&folder, &name, &data, &ended);
    let mut places = Vec::new();
    let stream = proxy.recorded(Way::ToServer);
    let ends = S::message_ends(&stream);
    let starts = std::iter::once(0).chain(ends.iter().copied());
    for (start, end) in starts.zip(ends.iter().copied()) {
        let message = &stream[usize::try_from(start).unwrap()..];
        if S::is_commit(message) {
            places.extend([("before a commit", start + 1), ("behind a commit", end)]);
        } else if end - start > FRAME as u64 {
            places.push(("after a frame", end));
        }
    }
    if ends.is_empty() {
        // Messages cannot be told apart: about where frames end.
        places.extend((1..=FRAMES as u64).map(|frame| ("after a frame", frame * FRAME as u64)));
    }
    drop(proxy);
    let (mut most_resent, mut killed, places) = (0, 0, chosen(places, 4));
    let count = places.len();
    for (what, at) in places {
        let script = Script::ends(Way::ToServer, at, Ending::Silence);
        let proxy = Proxy::start(store.address(), [script]).unwrap();
        let name = new_name();
        let (url, options) = (store.url(proxy.port(), &name), store.options());
        report.scenario(&format!("Write: killed {what}, {at} bytes"), SAME, LIMIT, || {
            let mut resent = 0;
            let ended = with_a_kill(&mut store, &proxy, || {
                let (ended, again) = write(&url, &data, &options, || ());
                resent = again;
                ended
            });
            check_folder(&folder, &name, &data, &ended);
            most_resent = most_resent.max(resent);
            ended
        });
        killed += proxy.faults();
    }
    assert!(killed * 10 >= count * 9, "only {killed} of {count} were killed where they should be");
    assert!(most_resent <= 64 << 20, "{most_resent} bytes were sent again after one restart");
}

/// A small file system of its own, on a loop device.
struct SmallDisk {
    folder: tempfile::TempDir,
}

fn run(package: &str, command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} ({package}): {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl SmallDisk {
    fn new(mebibytes: u64) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = folder.path().join("disk");
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        run("e2fsprogs", Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        let at = folder.path().join("mounted");
        std::fs::create_dir(&at).unwrap();
        run("mount", Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
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

fn image_like(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".img.zst")).collect()
}

/// Takes a file away from everybody but root.
fn forbid(path: &Path) {
    std::os::unix::fs::chown(path, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o0)).unwrap();
}

/// What happens to a file.
type Change<'a> = &'a dyn Fn(&Path);

/// A full share; images that are replaced, cut short or removed under a reader; a server that loses what it said was durable.
pub fn shares_that_change<S: Store>() {
    let mut report = Report::new(S::NAME, "shares that change");
    let store = S::start(None);
    let data = pattern(12 << 20, 5);
    let other = pattern(12 << 20, 6);
    let folder = store.folder();
    let port = store.address().port();
    let options = Options { budget: Duration::from_secs(10), ..store.options() };
    // Its bytes, or a word; never other bytes.
    let same_or_said = Expected {
        same: true,
        kinds: &[ErrorKind::Store, ErrorKind::ImageCorrupt, ErrorKind::NotFound],
    };
    let said = Expected { same: false, ..same_or_said };

    let same_or_refused = Expected { same: true, kinds: &[ErrorKind::Refused] };
    let changes: [(&str, Expected, Change<'_>); 4] = [
        ("not permitted any more", same_or_refused, &forbid),
        ("replaced by another", same_or_said, &|path| {
            std::fs::write(folder.join("other"), &other).unwrap();
            std::fs::rename(folder.join("other"), path).unwrap();
        }),
        ("removed", same_or_said, &|path| std::fs::remove_file(path).unwrap()),
        ("cut short", said, &|path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(5 << 20).unwrap();
        }),
    ];
    for (what, expected, change) in changes {
        let name = new_name();
        let (url, path) = (store.url(port, &name), folder.join(&name));
        std::fs::write(&path, &data).unwrap();
        report.scenario(&format!("Read: {what} under the reader"), expected, LIMIT, || {
            let image = store::open_with(&url, &options).unwrap();
            image.read_exact_at(&mut [0; FRAME], 0).unwrap();
            change(&path);
            compare(&*image, &data)
        });
    }
    if !S::WRITES {
        return;
    }

    let name = new_name();
    let (url, partial) = (store.url(port, &name), folder.join(format!("{name}.partial")));
    report.scenario("Write: not permitted any more", same_or_refused, LIMIT, || {
        let (ended, _) = write_until(&url, &data, &options, || forbid(&partial));
        check_folder(&folder, &name, &data, &ended);
        ended
    });

    let lies: [(&str, Change<'_>); 2] = [
        ("the end is lost", &|partial| {
            std::fs::File::options().write(true).open(partial).unwrap().set_len(7 << 20).unwrap();
        }),
        ("a block is lost", &|partial| {
            let file = std::fs::File::options().write(true).open(partial).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 3 << 20).unwrap();
        }),
    ];
    for (what, lie) in lies {
        let name = new_name();
        let (url, partial) = (store.url(port, &name), folder.join(format!("{name}.partial")));
        report.scenario(&format!("Write: committed, then {what}"), said, LIMIT, || {
            let (ended, _) = write(&url, &data, &options, || lie(&partial));
            check_folder(&folder, &name, &data, &ended);
            ended
        });
    }
    drop(store);

    let full = Expected { same: false, kinds: &[ErrorKind::NoSpace] };
    let disk = SmallDisk::new(32);
    let store = S::start(Some(&disk.path()));
    let port = store.address().port();
    let much = pattern(48 << 20, 7);
    for round in 0..2 {
        report.scenario(&format!("Write: a full share, {round}"), full, LIMIT, || {
            let (ended, _) = write(&store.url(port, &new_name()), &much, &options, || ());
            assert_eq!(image_like(&store.folder()), Vec::<String>::new());
            ended
        });
    }
    report.scenario("Write: room again", SAME, LIMIT, || {
        let name = new_name();
        let (ended, _) = write(&store.url(port, &name), &data, &options, || ());
        check_folder(&store.folder(), &name, &data, &ended);
        ended
    });
    drop(store);
}
