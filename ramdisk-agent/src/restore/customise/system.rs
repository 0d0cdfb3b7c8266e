//! The restored system's files, read and changed without trust in what the image made of them.
//!
//! Every path is resolved by the kernel inside of the system's root folder (`openat2` with `RESOLVE_IN_ROOT`): symbolic links,
//! absolute ones and `..` included, lead nowhere else, and neither do the magic links of a `/proc`. A link at the path itself is
//! replaced or removed, never followed. What is read must be a regular file within a limit. A file is replaced whole or not at all:
//! written beside it, flushed, and renamed over it, with the owner, the mode and the labels of what was there.
//!
//! Paths are absolute ones of the restored system. What its `fstab` mounts over a path is not looked for: a change beneath it
//! would not be seen, and is refused.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use agent_api::{ErrorKind, FileAction, FileChange};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::fstab;
use crate::error::{Error, IoContext, Result};

/// How often a path is resolved again when something was renamed or mounted on this machine meanwhile (`openat2(2)`, EAGAIN).
const RESOLVE_ATTEMPTS: u32 = 1000;
/// A configuration file is a few kilobytes.
pub const MAX_READ: u64 = 1 << 20;
/// How many files one removal may take away, and how deep folders may lie.
const MAX_REMOVED: usize = 4096;
const MAX_DEPTH: usize = 16;
/// The most that Linux lets a list of attributes or a value have.
const MAX_XATTR: usize = 64 << 10;

/// A new file, where none is replaced.
const NEW_FILE: Mode = Mode::from_raw_mode(0o644);
const NEW_FOLDER: Mode = Mode::from_raw_mode(0o755);

/// The system in a mounted filesystem.
#[derive(Debug)]
pub struct System {
    root: OwnedFd,
    /// Where its fstab mounts other filesystems.
    mount_points: Vec<String>,
    done: Done,
}

/// What was done with a system.
#[derive(Debug, Default)]
pub struct Done {
    /// File by file.
    pub files: Vec<FileChange>,
    /// What else there is to say.
    pub notes: Vec<String>,
}

impl System {
    /// The system whose root folder this is.
    pub fn new(root: OwnedFd) -> Result<Self> {
        let mut system = Self { root, mount_points: Vec::new(), done: Done::default() };
        if let Some(text) = system.read("/etc/fstab")? {
            system.mount_points = fstab::mount_points(&String::from_utf8_lossy(&text));
        }
        Ok(system)
    }

    /// What was done so far.
    pub fn into_done(self) -> Done {
        self.done
    }

    /// Its root folder.
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Something that whoever asked should know.
    pub fn note(&mut self, text: &str) {
        self.done.notes.push(text.to_owned());
    }

    /// Whether anything lies at a path.
    pub fn is_there(&self, path: &str) -> bool {
        kind_below(&self.root, path).is_some()
    }

    /// What lies at a path itself, be it a link; `None` if nothing does.
    pub fn link_kind(&self, path: &str) -> Option<FileType> {
        let found = resolve(&self.root, path, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
        Some(file_type(&rustix::fs::fstat(found).ok()?))
    }

    /// The content of a file; `None` if it does not exist.
    pub fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let doing = || format!("reading {path}");
        // Without NONBLOCK a pipe in place of the file would wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match resolve(&self.root, path, flags) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(e) => return Err(io::Error::from(e)).on_disk(doing),
        };
        if !file.metadata().on_disk(doing)?.is_file() {
            return Err(refused(format!("{path} is no regular file")));
        }
        let mut bytes = Vec::new();
        (&file).take(MAX_READ + 1).read_to_end(&mut bytes).on_disk(doing)?;
        if bytes.len() as u64 > MAX_READ {
            return Err(refused(format!("{path} has more than {MAX_READ} bytes")));
        }
        Ok(Some(bytes))
    }

    /// Writes a file, with its folders. With no mode it gets that of what it replaces, or that of most files.
    pub fn write(&mut self, path: &str, content: &[u8], mode: Option<Mode>) -> Result<()> {
        self.refuse_hidden(path)?;
        let (folder, name) = split(path)?;
        let parent = self.make_folders(folder)?;
        let old = entry(&parent, name).on_disk(|| format!("looking at {path}"))?;
        if old.as_ref().is_some_and(|stat| file_type(stat) == FileType::Directory) {
            return Err(refused(format!("{path} is a folder")));
        }
        replace(&parent, name, content, mode, old.as_ref())
            .on_disk(|| format!("writing {path}"))?;
        self.record(path, if old.is_some() { FileAction::Replaced } else { FileAction::Created });
        Ok(())
    }

    /// Removes a file or a link, or a folder with all that is in it. What is not there is no error.
    pub fn remove(&mut self, path: &str) -> Result<()> {
        self.refuse_hidden(path)?;
        let (folder, name) = split(path)?;
        let doing = || format!("removing {path}");
        let Some(parent) = self.folder(folder).on_disk(doing)? else { return Ok(()) };
        let Some(stat) = entry(&parent, name).on_disk(doing)? else { return Ok(()) };
        if file_type(&stat) == FileType::Directory {
            self.remove_folder(&parent, name, path, 0)?;
        } else {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())
                .map_err(io::Error::from)
                .on_disk(doing)?;
            self.record(path, FileAction::Removed);
        }
        rustix::fs::fsync(&parent).map_err(io::Error::from).on_disk(doing)
    }

    /// The names in a folder, sorted; none if it does not exist.
    pub fn names(&self, path: &str) -> Result<Vec<String>> {
        let doing = || format!("looking into {path}");
        let Some(folder) = self.folder(path).on_disk(doing)? else { return Ok(Vec::new()) };
        let names = names_in(&folder).on_disk(doing)?;
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
            .on_disk(doing)?;
        for name in names_in(&folder).on_disk(doing)? {
            let name = OsStr::from_bytes(&name);
            let below = format!("{path}/{}", name.to_string_lossy());
            let Some(stat) = entry(&folder, name).on_disk(doing)? else { continue };
            if file_type(&stat) == FileType::Directory {
                self.remove_folder(&folder, name, &below, depth + 1)?;
            } else {
                rustix::fs::unlinkat(&folder, name, AtFlags::empty())
                    .map_err(io::Error::from)
                    .on_disk(|| format!("removing {below}"))?;
                self.record(&below, FileAction::Removed);
            }
            if self.done.files.len() > MAX_REMOVED {
                return Err(refused(format!("{path} holds more than {MAX_REMOVED} files")));
            }
        }
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
            .map_err(io::Error::from)
            .on_disk(doing)?;
        self.record(&format!("{path}/"), FileAction::Removed);
        Ok(())
    }

    /// A folder, if it exists.
    fn folder(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        match resolve(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(folder) => Ok(Some(folder)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// A folder, made with those above it where it does not exist.
    fn make_folders(&mut self, path: &str) -> Result<OwnedFd> {
        let doing = || format!("making the folder {path}");
        if let Some(folder) = self.folder(path).on_disk(doing)? {
            return Ok(folder);
        }
        let (above, name) = split(path)?;
        let parent = self.make_folders(above)?;
        if entry(&parent, name).on_disk(doing)?.is_some() {
            return Err(refused(format!("{path} is no folder")));
        }
        let made = rustix::fs::mkdirat(&parent, name, NEW_FOLDER)
            .and_then(|()| self.resolve_made(path))
            .and_then(|folder| {
                // The mode is not for the umask of this process to say.
                rustix::fs::fchmod(&folder, NEW_FOLDER)?;
                inherit_label(&folder, &parent)?;
                rustix::fs::fsync(&parent)?;
                Ok(folder)
            });
        let folder = made.map_err(io::Error::from).on_disk(doing)?;
        self.record(&format!("{path}/"), FileAction::Created);
        Ok(folder)
    }

    fn resolve_made(&self, path: &str) -> rustix::io::Result<OwnedFd> {
        resolve(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn refuse_hidden(&self, path: &str) -> Result<()> {
        match self.mount_points.iter().find(|point| fstab::is_below(path, point)) {
            None => Ok(()),
            Some(point) => Err(refused(format!(
                "{path} would not be seen in the restored system: its fstab mounts another filesystem on {point}, and only its \
                 root filesystem is changed"
            ))),
        }
    }

    fn record(&mut self, path: &str, action: FileAction) {
        self.done.files.push(FileChange { path: path.to_owned(), action });
    }
}

/// What lies at a path below a folder, if anything does; links are followed, below that folder.
pub fn kind_below(root: impl AsFd, path: &str) -> Option<FileType> {
    let found = resolve(root, path, OFlags::PATH).ok()?;
    Some(file_type(&rustix::fs::fstat(found).ok()?))
}

/// Opens a path below a folder, and nothing that is not below it.
pub fn resolve(root: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::CLOEXEC;
    let mut attempts = RESOLVE_ATTEMPTS;
    loop {
        match rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), within) {
            Err(Errno::AGAIN | Errno::INTR) if attempts > 0 => attempts -= 1,
            result => return result,
        }
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

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// What a folder has under a name, links not followed.
fn entry(folder: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names in a folder, sorted.
pub fn names_in(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut names = Vec::new();
    let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if names.len() > MAX_REMOVED {
            return Err(io::Error::other(format!("it holds more than {MAX_REMOVED} files")));
        }
    }
    names.sort();
    Ok(names)
}

/// Puts a file beside its place, complete and flushed, and then in its place.
fn replace(
    folder: &OwnedFd,
    name: &OsStr,
    content: &[u8],
    mode: Option<Mode>,
    old: Option<&Stat>,
) -> io::Result<()> {
    let beside = format!(".imprint-{}", uuid::Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, &beside, flags, Mode::RUSR | Mode::WUSR)?;
    let mut file = File::from(file);
    let put = || -> io::Result<()> {
        file.write_all(content)?;
        let old = old.filter(|stat| file_type(stat) == FileType::RegularFile);
        if let Some(stat) = old {
            let owner = rustix::fs::Uid::from_raw(stat.st_uid);
            let group = rustix::fs::Gid::from_raw(stat.st_gid);
            rustix::fs::fchown(&file, Some(owner), Some(group))?;
        }
        let kept = old.map(|stat| Mode::from_raw_mode(stat.st_mode));
        rustix::fs::fchmod(&file, mode.or(kept).unwrap_or(NEW_FILE))?;
        if old.is_some() {
            keep_attributes(&file, folder, name, mode.is_none())?;
        } else {
            inherit_label(&file, folder)?;
        }
        file.sync_all()?;
        rustix::fs::renameat(folder, &beside, folder, name)?;
        Ok(rustix::fs::fsync(folder)?)
    };
    let done = { put }();
    if done.is_err() {
        // The error is what matters; the restore fails, and with it goes whatever is left here.
        let _ = rustix::fs::unlinkat(folder, &beside, AtFlags::empty());
    }
    done
}

/// The label that a security module knows a file by.
const LABELS: [&str; 2] = ["security.selinux", "security.SMACK64"];
const ACL: &str = "system.posix_acl_access";

/// Gives a file the attributes of the one that it replaces, but for those that vouch for the old content.
fn keep_attributes(file: &File, folder: &OwnedFd, name: &OsStr, with_acl: bool) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let old = rustix::fs::openat(folder, name, flags, Mode::empty())?;
    let mut list = vec![0_u8; MAX_XATTR];
    let len = match rustix::fs::flistxattr(&old, &mut list[..]) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        len => len?,
    };
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    for name in names.filter_map(|name| std::str::from_utf8(name).ok()) {
        if LABELS.contains(&name) || name.starts_with("user.") || (with_acl && name == ACL) {
            copy_attribute(&old, file, name)?;
        }
    }
    Ok(())
}

/// A new file gets the label of the folder that it is in, as most do.
fn inherit_label(file: impl AsFd, folder: &OwnedFd) -> rustix::io::Result<()> {
    LABELS.iter().try_for_each(|name| match copy_attribute(folder, file.as_fd(), name) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        copied => copied,
    })
}

fn copy_attribute(from: impl AsFd, to: impl AsFd, name: &str) -> rustix::io::Result<()> {
    let mut value = vec![0_u8; MAX_XATTR];
    let len = rustix::fs::fgetxattr(from, name, &mut value[..])?;
    rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn system(at: &std::path::Path) -> System {
        System::new(File::open(at).unwrap().into()).unwrap()
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
        let changes = system.into_done().files;
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
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let pipe = dir.path().join("etc/hosts");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        let system = system(dir.path());
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
