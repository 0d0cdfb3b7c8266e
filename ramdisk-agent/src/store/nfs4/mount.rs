//! A folder of a server, mounted by the kernel where nobody else sees it.
//!
//! A thread of its own has a mount namespace in which the mount has a place; everybody else in this process reaches it by a descriptor
//! (`/proc/self/fd/N`). The place is needed for one thing: `umount2(MNT_FORCE)` fails what waits for a silent server. With the thread,
//! or the process, mount and namespace are gone. The thread has a host name of its own too, since the client is known to
//! the server by it, and machines without a name would be taken for one another and lose each other's open files.
//!
//! Options are set one by one (`fsopen(2)`, Linux 5.2), in the words of nfs(5). Every image has a mount to itself (`nosharecache`), whose names are asked for each
//! time (`lookupcache=none`): nothing that this machine saw earlier, or that others do on it, plays a part.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, unmount,
};

use super::super::connect::{connect, resolve};
use super::super::watch::{Watch, pause};
use super::super::{Nfs4Url, Options, Result, StoreError};
use super::refusal::{At, Failed, in_words, is_silence};
use super::share::{Unanswered, answer_of};
use crate::mounted;

/// The newest first, as mount.nfs(8) does it.
const VERSIONS: [&str; 3] = ["4.2", "4.1", "4.0"];
const PORT: u16 = 2049;
/// A folder that every system has, for the mount to be on in its own namespace.
const PLACE: &str = "/sys";
/// How often a request is tried; all of it takes as long as the budget.
const TRIES: u32 = 10;
/// Longer values are refused by fsconfig(2) (fs/fsopen.c), with an error that says nothing.
const MAX_VALUE_BYTES: usize = 255;
/// How long the end of a mount is waited for. It tells the server; one that does not answer finds out by itself.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// How often what waits is made to fail: one call may be many requests.
const FORCE_EVERY: Duration = Duration::from_millis(500);

/// Who the agent is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    uid: u32,
    gid: u32,
}

impl Nfs4Url {
    pub(super) fn identity(&self) -> Identity {
        Identity { uid: self.uid, gid: self.gid }
    }
}

impl Identity {
    /// Makes this thread act on file systems as that user, for the rest of its life; what else root may, it still may.
    pub(super) fn assume(self) {
        if self == (Self { uid: 0, gid: 0 }) {
            return;
        }
        // Supplementary groups are of use to a server that squashes root only; if they stay, no harm is done.
        let _ = rustix::thread::set_thread_groups(&[]);
        setfsgid(Gid::from_raw(self.gid));
        setfsuid(Uid::from_raw(self.uid));
    }
}

/// The root of a mount.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    /// Keeps the path valid.
    _descriptor: OwnedFd,
}

impl Root {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// A mount. It is gone with this value and the last use of its root.
#[derive(Debug)]
pub(super) struct Mounted {
    /// The protocol's version: `4.2`.
    pub(super) version: String,
    /// The largest requests, as agreed with the server.
    pub(super) read_bytes: Option<u64>,
    pub(super) write_bytes: Option<u64>,
    // Before its keeper, which waits for the mount's end.
    root: Arc<Root>,
    keeper: Keeper,
}

impl Mounted {
    pub(super) fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// Makes everything fail that waits for the server, now and from now on.
    pub(super) fn fail_what_waits(&self) {
        if let Some(orders) = &self.keeper.orders {
            // Without a keeper there is no mount to wait for.
            let _ = orders.send(FailWhatWaits(Arc::downgrade(&self.root)));
        }
    }
}

/// The thread in whose namespace the mount is.
#[derive(Debug)]
struct Keeper {
    /// `None` once it is to end.
    orders: Option<Sender<FailWhatWaits>>,
    /// Closed when it has ended.
    end: crossbeam_channel::Receiver<()>,
}

struct FailWhatWaits(Weak<Root>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        // Whether it has ended or takes longer: there is nothing else to do.
        let _ = self.end.recv_timeout(UNMOUNT_PATIENCE);
    }
}

/// What came of it.
struct Made {
    root: OwnedFd,
    version: String,
    read_bytes: Option<u64>,
    write_bytes: Option<u64>,
}

/// What is mounted, and how.
#[derive(Debug, Clone)]
struct Target {
    source: String,
    address: IpAddr,
    port: Option<u16>,
    identity: Identity,
    timeout: Duration,
}

/// Mounts a folder, within the budget of a first contact.
pub(super) fn mount(folder: &Nfs4Url, options: &Options, watch: &Watch) -> Result<Mounted> {
    let host =
        if folder.host.contains(':') { format!("[{}]", folder.host) } else { folder.host.clone() };
    let source = format!("{host}:{}", folder.path);
    if source.len() > MAX_VALUE_BYTES {
        return Err(StoreError::Unsupported {
            url: folder.to_string(),
            reason: format!(
                "host and folder are longer together than the {MAX_VALUE_BYTES} bytes that the kernel takes; export a folder further down"
            ),
        });
    }
    let began = Instant::now();
    let mut failures = 0;
    loop {
        let address = reach(folder, watch)?;
        let target = Target {
            source: source.clone(),
            address,
            port: folder.port,
            identity: folder.identity(),
            timeout: options.budget,
        };
        match attempt(target, watch) {
            Ok(Ok(mounted)) => return Ok(mounted),
            // It may be starting.
            Ok(Err(failed))
                if failed.at == At::Mount && is_silence(failed.errno.raw_os_error()) =>
            {
                if began.elapsed() >= options.connect_budget || watch.is_called_off() {
                    return Err(watch.unreachable(began.elapsed(), Some(failed.errno.into())));
                }
                failures += 1;
                watch.sleep(pause(failures));
            }
            Ok(Err(failed)) => return Err(in_words(folder, failed)),
            Err(Unanswered::Spent(without)) => return Err(watch.unreachable(without, None)),
            Err(Unanswered::Thread(source)) => {
                return Err(StoreError::Io { doing: "mounting", url: folder.to_string(), source });
            }
        }
    }
}

/// An address at which the server takes connections: the kernel's own attempts say less, and later.
fn reach(folder: &Nfs4Url, watch: &Watch) -> Result<IpAddr> {
    let addresses = resolve(&folder.host, watch)?;
    let port = folder.port.unwrap_or(PORT);
    let mut failures = 0;
    watch.began();
    loop {
        let mut last = None;
        for &address in &addresses {
            match connect(SocketAddr::new(address, port), watch) {
                Ok(_) => {
                    watch.answered();
                    return Ok(address);
                }
                Err(error) => last = Some(error),
            }
        }
        // Pauses are none once it is called off.
        if let Some(error) = watch.called_off() {
            watch.gave_up();
            return Err(error);
        }
        if let Some(without) = watch.check() {
            watch.gave_up();
            return Err(watch.unreachable(without, last));
        }
        failures += 1;
        watch.sleep(pause(failures));
    }
}

/// Starts a keeper and waits until it has the mount.
fn attempt(
    target: Target,
    watch: &Watch,
) -> std::result::Result<std::result::Result<Mounted, Failed>, Unanswered> {
    let (ready, answer) = channel();
    let (orders, to_do) = channel();
    let (ended, end) = crossbeam_channel::bounded(0);
    thread::Builder::new()
        .name("store-nfs4-mount".to_owned())
        .spawn(move || {
            let _ended: crossbeam_channel::Sender<()> = ended;
            match make(&target) {
                // Whoever wanted it may have given up; the mount is dropped then.
                Ok(made) => drop(ready.send(Ok(made)).map(|()| keep(&to_do))),
                Err(failed) => drop(ready.send(Err(failed))),
            }
        })
        .map_err(Unanswered::Thread)?;
    let keeper = Keeper { orders: Some(orders), end };
    let made = match answer_of(watch, &answer)? {
        Ok(made) => made,
        Err(failed) => return Ok(Err(failed)),
    };
    let path = PathBuf::from(format!("/proc/self/fd/{}", made.root.as_raw_fd()));
    Ok(Ok(Mounted {
        version: made.version,
        read_bytes: made.read_bytes,
        write_bytes: made.write_bytes,
        root: Arc::new(Root { path, _descriptor: made.root }),
        keeper,
    }))
}

/// Keeps the namespace until the mount is not wanted any more.
fn keep(orders: &Receiver<FailWhatWaits>) {
    if let Ok(FailWhatWaits(root)) = orders.recv() {
        while root.strong_count() > 0 {
            // Busy as it is, it stays; the kernel has failed the requests before it says so.
            let _ = unmount(PLACE, UnmountFlags::FORCE);
            match orders.recv_timeout(FORCE_EVERY) {
                // Dropped: what hangs still holds the root.
                Err(RecvTimeoutError::Disconnected) => thread::sleep(FORCE_EVERY),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
    // It would go with the namespace as well.
    let _ = unmount(PLACE, UnmountFlags::DETACH);
}

/// Mounts in a new namespace of this thread.
fn make(target: &Target) -> std::result::Result<Made, Failed> {
    let in_namespace = |errno| Failed { at: At::Namespace, errno, said: String::new() };
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .map_err(|errno| in_namespace(Errno::from_raw_os_error(errno as i32)))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(in_namespace)?;
    if let Some(name) = own_name(Path::new("/sys/class/net")) {
        // Without it the server knows the machine by the name that it has.
        let _ = nix::unistd::sethostname(name);
    }
    target.identity.assume();
    let mut result = None;
    for version in VERSIONS {
        match attach(target, version) {
            // The server or this kernel does not know that version.
            Err(failed)
                if failed.at == At::Mount
                    && matches!(failed.errno, Errno::PROTONOSUPPORT | Errno::INVAL) =>
            {
                // What is said of the newest is said of the others, or less.
                result.get_or_insert(Err(failed));
            }
            done => {
                result = Some(done);
                break;
            }
        }
    }
    let root = result.expect("one version was tried at least")?;
    move_mount(&root, "", CWD, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(in_namespace)?;
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let agreed = agreed_in(&table);
    let number = |name: &str| option_in(&agreed, name)?.parse().ok();
    Ok(Made {
        root,
        version: option_in(&agreed, "vers").unwrap_or("4").to_owned(),
        read_bytes: number("rsize"),
        write_bytes: number("wsize"),
    })
}

/// Mounts without a place in the tree.
fn attach(target: &Target, version: &str) -> std::result::Result<OwnedFd, Failed> {
    let context = fsopen("nfs4", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| Failed {
        at: At::FileSystem,
        errno,
        said: String::new(),
    })?;
    // In tenths of a second.
    let each = (target.timeout.as_millis() / 100 / u128::from(TRIES)).max(1).to_string();
    let retrans = (TRIES - 1).to_string();
    let (address, port) = (target.address.to_string(), target.port.map(|port| port.to_string()));
    let mut settings = vec![
        ("source", target.source.as_str()),
        ("vers", version),
        ("addr", &address),
        ("sec", "sys"),
        ("timeo", &each),
        ("retrans", &retrans),
        ("lookupcache", "none"),
        ("acdirmin", "0"),
        ("acdirmax", "0"),
    ];
    settings.extend(port.as_deref().map(|port| ("port", port)));
    // ETIMEDOUT for what takes too long, instead of waiting for ever; as old as fsopen itself.
    let flags = ["softerr", "nosharecache"];
    let made = settings
        .iter()
        .try_for_each(|(name, value)| fsconfig_set_string(context.as_fd(), *name, *value))
        .and_then(|()| flags.iter().try_for_each(|flag| fsconfig_set_flag(context.as_fd(), *flag)))
        .and_then(|()| fsconfig_create(context.as_fd()))
        .and_then(|()| {
            let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        });
    made.map_err(|errno| Failed { at: At::Mount, errno, said: mounted::said(&context) })
}

/// The options of the mount on [`PLACE`] in a thread's `mountinfo`, as the kernel has settled them.
fn agreed_in(table: &str) -> String {
    let ours = table.lines().rev().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mut tail = tail.split(' ');
        (head.split(' ').nth(4) == Some(PLACE) && tail.next() == Some("nfs4")).then_some(())?;
        tail.nth(1)
    });
    ours.unwrap_or_default().to_owned()
}

fn option_in<'a>(options: &'a str, name: &str) -> Option<&'a str> {
    options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// A name for this machine that no other has and that it has again when it has restarted, so that the server then knows that
/// what it had open is not open any more: by the lowest address of its network cards.
fn own_name(cards: &Path) -> Option<String> {
    let addresses = fs::read_dir(cards).ok()?.flatten().filter_map(|card| {
        // Bridges and tunnels have random ones.
        card.path().join("device").exists().then_some(())?;
        let address = fs::read_to_string(card.path().join("address")).ok()?;
        let digits: String = address.chars().filter(char::is_ascii_hexdigit).collect();
        (digits.len() == 12 && digits.bytes().any(|digit| digit != b'0')).then_some(digits)
    });
    addresses.min().map(|address| format!("imprint-{address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_agreed_is_read_from_the_last_mount_on_the_place() {
        let table = "\
            22 1 0:20 / /sys rw - sysfs sysfs rw\n\
            60 1 0:50 / /mnt rw - nfs4 a:/ rw,vers=4.0,rsize=1,wsize=2\n\
            61 22 0:51 / /sys rw,nosuid - nfs4 nas:/a\\040b rw,vers=4.2,rsize=1048576,wsize=524288,namlen=255\n";
        let agreed = agreed_in(table);
        assert_eq!(option_in(&agreed, "vers"), Some("4.2"));
        assert_eq!(option_in(&agreed, "rsize"), Some("1048576"));
        assert_eq!(option_in(&agreed, "size"), None);
        assert_eq!(agreed_in("22 1 0:20 / /sys rw - sysfs sysfs rw\n"), "");
    }

    #[test]
    fn a_machine_is_known_by_its_lowest_real_address() {
        let cards = tempfile::tempdir().unwrap();
        let card = |name: &str, address: &str, is_real: bool| {
            let path = cards.path().join(name);
            fs::create_dir_all(path.join(if is_real { "device" } else { "bridge" })).unwrap();
            fs::write(path.join("address"), format!("{address}\n")).unwrap();
        };
        assert_eq!(own_name(cards.path()), None);
        card("br0", "02:00:00:00:00:01", false);
        card("lo", "00:00:00:00:00:00", true);
        card("eth1", "52:54:00:aa:00:02", true);
        card("eth0", "52:54:00:aa:00:10", true);
        assert_eq!(own_name(cards.path()).unwrap(), "imprint-525400aa0002");
    }
}
