//! The restored system's files, read and changed without trust in what the image made of them.
//!
//! Every path is resolved by the kernel inside of the system's root folder (`openat2` with `RESOLVE_IN_ROOT`): symbolic links,
//! absolute ones and `..` included, lead nowhere else, and neither do the magic links of a `/proc`. A link at the path itself is
//! replaced or removed, never followed. What is read must be a regular file within a limit.
//!
//! Paths are absolute ones of the restored system. What its `fstab` mounts over its root is looked for where it is
//! ([`super::volumes`]); links there must stay in their filesystem, and a link that leads from one into another is refused, as is what
//! lies in a filesystem that is out of reach: a change in the folder beneath it would not be seen.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::rc::Rc;

use agent_api::{ErrorKind, FileAction, FileChange};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::fstab;
use super::paths::{entry, file_type, kind_below, names_in, resolve, resolve_beneath};
use super::replaced::{inherit_label, replace};
use super::volumes::{Others, Over, Volumes};
use crate::error::{Error, IoContext, Result};

/// A configuration file is a few kilobytes.
pub const MAX_READ: u64 = 1 << 20;
/// How many files one removal may take away, and how deep folders may lie.
const MAX_REMOVED: usize = 4096;
const MAX_DEPTH: usize = 16;
/// How long the list of what was done may become, in bytes of JSON: a job's outcome has to hold it (1 MiB).
const MAX_LIST: usize = 512 << 10;
/// What an entry has beside its path.
const ENTRY: usize = 40;

const NEW_FOLDER: Mode = Mode::from_raw_mode(0o755);

/// The system in a mounted filesystem.
#[derive(Debug)]
pub struct System<'a> {
    root: Rc<OwnedFd>,
    others: Others<'a>,
    done: Done,
    list_len: usize,
}

/// A path, and the folder of a filesystem that it begins in.
#[derive(Debug)]
struct Spot {
    top: Rc<OwnedFd>,
    is_root: bool,
    path: String,
}

impl Spot {
    /// Opens what is there, if anything is.
    fn open(&self, flags: OFlags, doing: impl Fn() -> String) -> Result<Option<OwnedFd>> {
        let opened = match self.is_root {
            true => resolve(&self.top, &self.path, flags),
            false => resolve_beneath(&self.top, &self.path, flags),
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::XDEV) => Err(refused(format!(
                "{}: a link there leads out of its filesystem; give the path that it leads to",
                doing()
            ))),
            Err(e) => Err(io::Error::from(e)).in_system(doing),
        }
    }
}

/// What was done with a system.
#[derive(Debug, Default)]
pub struct Done {
    /// File by file.
    pub files: Vec<FileChange>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

impl<'a> System<'a> {
    /// The system whose root folder this is, on these volumes; without any there are only the files below that folder.
    pub fn new(root: OwnedFd, volumes: Option<Volumes<'a>>) -> Result<Self> {
        let (root, done) = (Rc::new(root), Done::default());
        let mut system = Self { root, others: Others::new(None, ""), done, list_len: 0 };
        let text = system.read("/etc/fstab")?.unwrap_or_default();
        system.others = Others::new(volumes, &String::from_utf8_lossy(&text));
        Ok(system)
    }

    /// What was done, and the volumes that it was done on.
    pub fn finish(self) -> (Done, Option<Volumes<'a>>) {
        (self.done, self.others.into_volumes())
    }

    /// Its root folder.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The filesystems that it is on.
    pub fn others(&mut self) -> &mut Others<'a> {
        &mut self.others
    }

    /// Something that whoever asked should know.
    pub fn note(&mut self, text: &str) {
        self.done.notes.push(text.to_owned());
    }

    /// Whether anything lies at a path of the root filesystem.
    pub fn is_there(&self, path: &str) -> bool {
        kind_below(&*self.root, path).is_some()
    }

    /// Where the filesystem is mounted that has a path, if that one is out of reach.
    pub fn hidden_by(&mut self, path: &str) -> Result<Option<String>> {
        Ok(match self.others.over(path)? {
            Over::OutOfReach(point, _) => Some(point),
            Over::Root | Over::Mounted(..) => None,
        })
    }

    /// What lies at a path itself, be it a link; `None` if nothing does.
    pub fn link_kind(&mut self, path: &str) -> Result<Option<FileType>> {
        let doing = || format!("looking at {path}");
        let flags = OFlags::PATH | OFlags::NOFOLLOW;
        let Some(found) = self.spot(path)?.open(flags, doing)? else { return Ok(None) };
        let stat = rustix::fs::fstat(found).map_err(io::Error::from).in_system(doing)?;
        Ok(Some(file_type(&stat)))
    }

    /// The content of a file; `None` if it does not exist.
    pub fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let doing = || format!("reading {path}");
        // Without NONBLOCK a pipe in place of the file would wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Some(file) = self.spot(path)?.open(flags, doing)? else { return Ok(None) };
        let file = File::from(file);
        if !file.metadata().in_system(doing)?.is_file() {
            return Err(refused(format!("{path} is no regular file")));
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_READ + 1).read_to_end(&mut bytes).in_system(doing)?;
        if bytes.len() as u64 > MAX_READ {
            return Err(refused(format!("{path} has more than {MAX_READ} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Writes a file, with its folders. With no mode it gets that of what it replaces, or that of most files.
    pub fn write(&mut self, path: &str, content: &[u8], mode: Option<Mode>) -> Result<()> {
        let (folder, name) = split(path)?;
        self.refuse_mount_point(path)?;
        let parent = self.make_folders(folder)?;
        self.refuse_elsewhere(&parent, path)?;
        let old = entry(&parent, name).in_system(|| format!("looking at {path}"))?;
        if old.as_ref().is_some_and(|stat| file_type(stat) == FileType::Directory) {
            return Err(refused(format!("{path} is a folder")));
        }
        replace(&parent, name, content, mode, old.as_ref())
            .in_system(|| format!("writing {path}"))?;
        self.record(path, if old.is_some() { FileAction::Replaced } else { FileAction::Created });
        Ok(())
    }

    /// Removes a file or a link, or a folder with all that is in it. What is not there is no error.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        let (folder, name) = split(path)?;
        self.refuse_mount_point(path)?;
        let doing = || format!("removing {path}");
        let Some(parent) = self.folder(folder)? else { return Ok(()) };
        self.refuse_elsewhere(&parent, path)?;
        let Some(stat) = entry(&parent, name).in_system(doing)? else { return Ok(()) };
        if file_type(&stat) == FileType::Directory {
            self.remove_folder(&parent, name, path, 0)?;
        } else {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                .map_err(io::Error::from)
                .in_system(doing)?;
            self.record(path, FileAction::Removed);
        }
        rustix::fs::fsync(&parent).map_err(io::Error::from).in_system(doing)
    }

    /// The names in a folder, sorted; none if it does not exist.
    pub fn names(&mut self, path: &str) -> Result<Vec<String>> {
        let Some(folder) = self.folder(path)? else { return Ok(Vec::new()) };
        self.refuse_elsewhere(&folder, path)?;
        let names = names_in(&folder).in_system(|| format!("looking into {path}"))?;
        // What is no text has no name that anybody here looks for.
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
    }

    fn remove_folder(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &str,
        depth: usize,
    ) -> Result<()> {
        let doing = || format!("removing {path}");
        if depth > MAX_DEPTH {
            return Err(refused(format!("{path} lies deeper than {MAX_DEPTH} folders")));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(io::Error::from)
            .in_system(doing)?;
        for name in names_in(&folder).in_system(doing)? {
            let name = OsStr::from_bytes(&name);
            let below = format!("{path}/{}", name.to_string_lossy());
            let Some(stat) = entry(&folder, name).in_system(doing)? else { continue };
            if file_type(&stat) == FileType::Directory {
                self.remove_folder(&folder, name, &below, depth + 1)?;
            } else {
                rustix::fs::unlinkat(&folder, name, AtFlags::empty())
                    .map_err(io::Error::from)
                    .in_system(|| format!("removing {below}"))?;
                self.record(&below, FileAction::Removed);
            }
            if self.done.files.len() > MAX_REMOVED || self.list_len > MAX_LIST {
                return Err(refused(format!(
                    "{path} holds more than {MAX_REMOVED} files, or more than {} KiB of their names",
                    MAX_LIST >> 10
                )));
            }
        }
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(io::Error::from)
            .in_system(doing)?;
        self.record(&format!("{path}/"), FileAction::Removed);
        Ok(())
    }

    /// Where a path begins. Refuses one in a filesystem that is out of reach.
    fn spot(&mut self, path: &str) -> Result<Spot> {
        match self.others.over(path)? {
            Over::Root => {
                Ok(Spot { top: Rc::clone(&self.root), is_root: true, path: path.to_owned() })
            }
            Over::Mounted(top, path) => Ok(Spot { top, is_root: false, path }),
            Over::OutOfReach(point, why) => Err(refused(format!(
                "{path} would not be seen in the restored system: its fstab mounts another filesystem on {point}, and that cannot be \
                 changed here: {why}"
            ))),
        }
    }

    /// A folder, if it exists.
    fn folder(&mut self, path: &str) -> Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.spot(path)?.open(flags, || format!("opening the folder {path}"))
    }

    /// A folder, made with those above it where it does not exist.
    fn make_folders(&mut self, path: &str) -> Result<OwnedFd> {
        let doing = || format!("making the folder {path}");
        if let Some(folder) = self.folder(path)? {
            return Ok(folder);
        }
        let (above, name) = split(path)?;
        let parent = self.make_folders(above)?;
        self.refuse_elsewhere(&parent, path)?;
        if entry(&parent, name).in_system(doing)?.is_some() {
            return Err(refused(format!("{path} is no folder")));
        }
        rustix::fs::mkdirat(&parent, name, NEW_FOLDER).map_err(io::Error::from).in_system(doing)?;
        let gone =
            || Error::new(ErrorKind::Internal, format!("the new folder {path} is not there"));
        let folder = self.folder(path)?.ok_or_else(gone)?;
        // The mode is not for the umask of this process to say.
        let made = rustix::fs::fchmod(&folder, NEW_FOLDER)
            .and_then(|()| inherit_label(&folder, &parent))
            .and_then(|()| rustix::fs::fsync(&parent));
        made.map_err(io::Error::from).in_system(doing)?;
        self.record(&format!("{path}/"), FileAction::Created);
        Ok(folder)
    }

    /// Refuses to put something in place of what another filesystem is mounted on, or to take that away.
    fn refuse_mount_point(&mut self, path: &str) -> Result<()> {
        // What is out of reach is refused by its whole path.
        self.spot(path)?;
        match self.others.point_over(path) {
            Some(point) if fstab::path_below(path, point) == "." => Err(refused(format!(
                "{path} would not be seen in the restored system: its fstab mounts another filesystem on {point}"
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses what links lead to another place for than where the path says that it is, if that place is in another filesystem when
    /// the system runs.
    fn refuse_elsewhere(&mut self, folder: &OwnedFd, path: &str) -> Result<()> {
        let top = self.spot(path)?.top;
        let doing = || format!("asking where the folder of {path} is");
        let (top, folder) =
            (real_path(&top).in_system(doing)?, real_path(folder).in_system(doing)?);
        let outside = || refused(format!("the folder of {path} is nowhere in its filesystem"));
        let inside = folder.strip_prefix(top.trim_end_matches('/')).ok_or_else(outside)?;
        let point = self.others.point_over(path).unwrap_or_default();
        let real = format!("{point}{inside}");
        match self.others.point_over(&real).unwrap_or_default() {
            there if there == point => Ok(()),
            there => Err(refused(format!(
                "{path} would not be seen in the restored system: a link leads it to {real}, and its fstab mounts another filesystem \
                 on {there}; give the path that it leads to"
            ))),
        }
    }

    fn record(&mut self, path: &str, action: FileAction) {
        let escaped = |c: char| match c {
            '"' | '\\' => 2,
            c if c.is_control() => 6,
            c => c.len_utf8(),
        };
        self.list_len += path.chars().map(escaped).sum::<usize>() + ENTRY;
        self.done.files.push(FileChange { path: path.to_owned(), action });
    }
}

/// The kernel's path of an open folder, from the root of its mount on.
fn real_path(folder: &OwnedFd) -> io::Result<String> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))?;
    // What is no text is below no mount point of a text.
    Ok(path.to_string_lossy().into_owned())
}

/// What the files of a system make of a change.
trait InSystem<T> {
    /// A failure with a sentence that says what was being done: what the image has there is no fault of the disk's.
    fn in_system(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> InSystem<T> for io::Result<T> {
    fn in_system(self, doing: impl FnOnce() -> String) -> Result<T> {
        let why = match &self {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                " is not allowed: it or its folder is immutable or append-only (lsattr), or it is a device"
            }
            Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                " is not possible: the image has its filesystem or subvolume read-only, or the kernel has found errors in it and made it so"
            }
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => " leads through too many links",
            // Something of ours that there is too much of.
            Err(e) if e.raw_os_error().is_none() => " is not done",
            _ => return self.on_disk(doing),
        };
        self.map_err(|e| refused(format!("{}{why}", doing())).because(e))
    }
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::Refused, why)
}

/// The folder and the name of an absolute path.
fn split(path: &str) -> Result<(&str, &OsStr)> {
    match path.rsplit_once('/') {
        Some((folder, name)) if path.starts_with('/') && !matches!(name, "" | "." | "..") => {
            Ok((if folder.is_empty() { "/" } else { folder }, OsStr::new(name)))
        }
        _ => Err(refused(format!("'{path}' is no absolute path of a file"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn system(at: &std::path::Path) -> System<'static> {
        System::new(File::open(at).unwrap().into(), None).unwrap()
    }

    #[test]
    fn files_are_replaced_whole_and_keep_what_they_had() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("motd"), "old").unwrap();
        fs::set_permissions(path.join("motd"), fs::Permissions::from_mode(0o640)).unwrap();
        let inode = fs::metadata(path.join("motd")).unwrap().ino();
        let mut system = system(dir.path());
        system.write("/etc/motd", b"new", None).unwrap();
        system.write("/etc/a/b/new", b"1", Some(Mode::from_raw_mode(0o600))).unwrap();
        system.remove("/etc/nothing").unwrap();
        let mode = |name: &str| fs::metadata(path.join(name)).unwrap().mode() & 0o7777;
        assert_eq!(fs::read(path.join("motd")).unwrap(), b"new");
        assert_ne!(fs::metadata(path.join("motd")).unwrap().ino(), inode);
        assert_eq!((mode("motd"), mode("a/b/new"), mode("a/b")), (0o640, 0o600, 0o755));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        system.remove("/etc/a").unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
        assert!(system.write("/etc", b"", None).unwrap_err().to_string().contains("is a folder"));
        assert!(
            system.write("/etc/motd/x", b"", None).unwrap_err().to_string().contains("no folder")
        );
        for bad in ["etc/x", "/etc/", "/etc/..", "/", ""] {
            assert!(system.write(bad, b"", None).is_err(), "{bad}");
        }
        let changes = system.finish().0.files;
        let text: Vec<_> =
            changes.iter().map(|c| format!("{} {}", c.action.as_str(), c.path)).collect();
        assert_eq!(
            text,
            [
                "replaced /etc/motd",
                "created /etc/a/",
                "created /etc/a/b/",
                "created /etc/a/b/new",
                "removed /etc/a/b/new",
                "removed /etc/a/b/",
                "removed /etc/a/",
            ]
        );
    }

    #[test]
    fn links_lead_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, root) = (dir.path().join("outside"), dir.path().join("root"));
        fs::create_dir_all(outside.join("etc")).unwrap();
        fs::create_dir_all(root.join("real")).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        symlink(&outside, root.join("absolute")).unwrap();
        symlink("../../../../outside", root.join("real/up")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink(outside.join("secret"), root.join("real/file")).unwrap();
        symlink("/real", root.join("inside")).unwrap();
        let mut system = system(&root);
        assert_eq!(system.read("/absolute/secret").unwrap(), None);
        assert_eq!(system.read("/real/up/secret").unwrap(), None);
        assert_eq!(system.read("/real/file").unwrap(), None);
        for path in ["/absolute/new", "/real/up/new", "/magic/new"] {
            // A link that leads to nothing is no folder, and nothing is made in its place.
            system.write(path, b"x", None).unwrap_err();
        }
        system.write("/inside/new", b"x", None).unwrap();
        system.write("/real/file", b"mine", None).unwrap();
        system.remove("/real/up").unwrap();
        assert_eq!(fs::read(root.join("real/new")).unwrap(), b"x");
        assert!(!root.join("real/file").is_symlink());
        assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 2);
        // A folder that is removed with a link in it.
        symlink(&outside, root.join("real/up")).unwrap();
        system.remove("/real").unwrap();
        assert!(outside.join("secret").exists() && !root.join("real").exists());
    }

    #[test]
    fn more_names_than_an_outcome_can_hold_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = ["x", &"y".repeat(250), &"z".repeat(250), &"z".repeat(250)];
        let folder = dir.path().join(folder.join("/"));
        fs::create_dir_all(&folder).unwrap();
        for number in 0..600 {
            fs::write(folder.join(format!("{number:0>200}")), "").unwrap();
        }
        let mut system = system(dir.path());
        let error = system.remove("/x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("512 KiB of their names"), "{error}");
        let (done, _) = system.finish();
        assert!(serde_json::to_string(&done.files).unwrap().len() < MAX_LIST + 4096);
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let pipe = dir.path().join("etc/hosts");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        let mut system = system(dir.path());
        for path in ["/etc/hosts", "/etc"] {
            assert!(system.read(path).unwrap_err().to_string().contains("no regular file"));
        }
        File::create(dir.path().join("etc/big")).unwrap().set_len(MAX_READ + 1).unwrap();
        assert!(system.read("/etc/big").unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn what_a_mount_would_hide_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/fstab"), "UUID=1 / ext4\nUUID=2 /var ext4\n").unwrap();
        let mut system = system(dir.path());
        for path in ["/var/lib/x", "/var"] {
            let error = system.write(path, b"", None).unwrap_err().to_string();
            assert!(error.contains("on /var,"), "{error}");
        }
        system.remove("/var/lib/x").unwrap_err();
        system.write("/variable", b"", None).unwrap();
    }
}
