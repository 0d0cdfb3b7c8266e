//! What a server refuses, and what is refused of a server, each with its kind and its words.

use std::path::{Path, PathBuf};
use std::process::Command;

use agent_api::ErrorKind;
use fault_proxy::Proxy;
use ramdisk_agent::store::{self, Options, ReadAt as _, StoreError, StoreUrl};
use uuid::Uuid;

use crate::real::{read, write};
use crate::real_servers::{RealServer as _, isolate, pattern};
use crate::samba::{PASSWORD, Samba, as_guest, as_user, with_password};

fn refused(url: &StoreUrl, options: &Options, kind: ErrorKind, words: &[&str]) {
    let error = store::create(url, Uuid::new_v4(), options).err().unwrap();
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = next {
        text += &format!("{error} ");
        next = error.source();
    }
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    for secret in [PASSWORD, "wrong password"] {
        assert!(!format!("{text}{error:?}").contains(secret), "{text}{error:?}");
    }
}

#[test]
fn a_wrong_password_is_tried_once() {
    let server = Samba::start();
    let proxy = Proxy::start(server.address(), []).unwrap();
    let url = server.url_at(proxy.port(), "x");
    let words = ["user games with this password (STATUS_LOGON_FAILURE)", "tried once"];
    refused(&url, &with_password("wrong password", &url), ErrorKind::Refused, &words);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_user_without_a_password_and_one_that_nobody_knows() {
    let server = Samba::start();
    let url: StoreUrl = "smb://games@127.0.0.1/images/x".parse().unwrap();
    refused(
        &url,
        &as_guest(),
        ErrorKind::Refused,
        &["no password for the user games", "--credentials"],
    );
    refused(
        &"smb://somebody@127.0.0.1/images/x".parse().unwrap(),
        &as_user(&url),
        ErrorKind::Refused,
        &["names the user somebody, the credentials games"],
    );
    // The URL names the user, the credentials only have the password; smbd would let a stranger in as a guest.
    let url: StoreUrl = "smb://stranger@127.0.0.1/images/x".parse().unwrap();
    let access = agent_api::StoreAccess {
        password: Some("wrong password".to_owned().into()),
        ..agent_api::StoreAccess::default()
    };
    let access = store::Access::new(vec![access], std::slice::from_ref(&url)).unwrap();
    let options = Options { access: access.into(), ..as_guest() };
    refused(
        &url,
        &options,
        ErrorKind::Refused,
        &["does not know the user stranger", "guest's session"],
    );
    drop(server);
}

#[test]
fn no_such_share_folder_or_name() {
    let server = Samba::start();
    let none: StoreUrl = "smb://127.0.0.1/elsewhere/x".parse().unwrap();
    refused(&none, &as_user(&none), ErrorKind::NotFound, &["127.0.0.1 has no share elsewhere"]);
    let pipes: StoreUrl = "smb://127.0.0.1/IPC$/x".parse().unwrap();
    refused(&pipes, &as_user(&pipes), ErrorKind::Refused, &["IPC$ is no share with files"]);
    let error = store::list(&"smb://127.0.0.1".parse().unwrap(), &as_guest()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("names no share"), "{error}");
    let url = server.url("none/x");
    refused(&url, &as_user(&url), ErrorKind::NotFound, &["does not exist"]);
    // A colon and the like do not get as far.
    let url = server.url("a%01b.img.zst");
    refused(&url, &as_user(&url), ErrorKind::Refused, &["does not take this name", "leave out"]);
    std::fs::create_dir(server.folder().join("folder")).unwrap();
    let url = server.url("folder");
    refused(&url, &as_user(&url), ErrorKind::Refused, &["exists already"]);
    let error = store::open_with(&url, &as_user(&url)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("it is a folder"), "{error}");
    let error = store::remove(&server.url("none"), &as_user(&url)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn shares_that_are_read_only_or_for_others() {
    let server = Samba::start_with("", "read only = yes", None);
    let data = pattern(100_000, 1);
    std::fs::write(server.folder().join("there"), &data).unwrap();
    let url = server.url("x");
    refused(&url, &as_user(&url), ErrorKind::Refused, &["the share may be read-only"]);
    assert!(read(&server.url("there"), data.len(), &as_user(&url)) == data);
    server.reconfigure("read only = yes", "valid users = root");
    refused(
        &url,
        &as_user(&url),
        ErrorKind::Refused,
        &["does not allow the user games on the share images"],
    );
    server.reconfigure("guest ok = yes", "guest ok = no");
    refused(&url, &as_guest(), ErrorKind::Refused, &["does not let guests in", "--credentials"]);
}

#[test]
fn encryption_that_is_required() {
    let server = Samba::start_with("", "smb encrypt = required", None);
    let url = server.url("x");
    refused(&url, &as_guest(), ErrorKind::Refused, &["encryption, which a guest cannot have"]);
    write(&url, &pattern(70_000, 1), &as_user(&url)).unwrap();
    server.reconfigure("smb encrypt = required", "");
    let sealed: StoreUrl = "smb://127.0.0.1/images/y?encrypt=yes".parse().unwrap();
    refused(
        &sealed,
        &as_guest(),
        ErrorKind::Refused,
        &["encryption is required", "a guest cannot have"],
    );
    write(&sealed, &pattern(70_000, 2), &as_user(&url)).unwrap();
    server.reconfigure(
        "disable netbios = yes",
        "disable netbios = yes\nserver max protocol = SMB2_10",
    );
    refused(
        &sealed,
        &as_user(&url),
        ErrorKind::Refused,
        &["encryption is required", "share no cipher"],
    );
}

#[test]
fn a_server_of_smb_1_alone() {
    let server =
        Samba::start_with("server min protocol = NT1\nserver max protocol = NT1", "", None);
    let url = server.url("x");
    refused(&url, &as_user(&url), ErrorKind::Refused, &["speaks", "SMB 1"]);
}

#[test]
fn the_second_writer_of_a_name_is_refused_and_a_left_over_replaced() {
    let server = Samba::start();
    let url = server.url("x");
    let data = pattern(2 << 20, 3);
    let mut first = store::create(&url, Uuid::new_v4(), &as_user(&url)).unwrap();
    first.append(&data).unwrap();
    let error = store::create(&url, Uuid::new_v4(), &as_user(&url)).err().unwrap();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    let error = store::remove(&server.url("x.partial"), &as_user(&url)).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    first.commit().unwrap();
    first.abort().unwrap();
    assert_eq!(names(server.folder()), Vec::<String>::new());
    std::fs::write(server.folder().join("x.partial"), b"of a dead run").unwrap();
    write(&url, &data, &as_user(&url)).unwrap();
    assert_eq!(names(server.folder()), ["x"]);
    assert!(read(&url, data.len(), &as_user(&url)) == data);
}

#[test]
fn a_name_that_is_taken_meanwhile_is_not_overwritten() {
    let server = Samba::start();
    let url = server.url("x");
    let mut writer = store::create(&url, Uuid::new_v4(), &as_user(&url)).unwrap();
    writer.append(b"ours").unwrap();
    std::fs::write(server.folder().join("x"), b"theirs").unwrap();
    let error = writer.publish().unwrap_err();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    assert_eq!(std::fs::read(server.folder().join("x")).unwrap(), b"theirs");
    assert_eq!(names(server.folder()), ["x"], "the partial file is gone");
}

#[test]
fn another_file_under_the_name_is_found() {
    let mut server = Samba::start();
    let (url, at) = (server.url("x"), server.folder().join("x"));
    let data = pattern(8 << 20, 4);
    std::fs::write(&at, &data).unwrap();
    let image = store::open_with(&url, &as_user(&url)).unwrap();
    let mut part = vec![0; 100_000];
    image.read_exact_at(&mut part, 0).unwrap();
    let error = store::remove(&url, &as_user(&url)).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "it is being read: {error}");
    server.kill();
    std::fs::rename(&at, at.with_extension("old")).unwrap();
    std::fs::write(&at, pattern(8 << 20, 5)).unwrap();
    server.restart();
    let error = image.read_exact_at(&mut part, 1 << 20).unwrap_err();
    assert!(matches!(StoreError::find(&error), Some(StoreError::Replaced { .. })), "{error}");
    drop(image);

    // One that is cut short in place.
    let image = store::open_with(&url, &as_user(&url)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&at).unwrap().set_len(1 << 20).unwrap();
    let error = image.read_exact_at(&mut part, 4 << 20).unwrap_err();
    assert!(matches!(StoreError::find(&error), Some(StoreError::Replaced { .. })), "{error}");

    // And a writer whose file was exchanged.
    let url = server.url("y");
    let mut writer = store::create(&url, Uuid::new_v4(), &as_user(&url)).unwrap();
    writer.append(&data).unwrap();
    writer.commit().unwrap();
    server.kill();
    let partial = server.folder().join("y.partial");
    std::fs::rename(&partial, partial.with_extension("old")).unwrap();
    std::fs::write(&partial, &data).unwrap();
    server.restart();
    let error = writer.append(&data).and_then(|()| writer.commit()).unwrap_err();
    assert!(matches!(error, StoreError::Lost { .. }), "{error}");
    drop(writer);
    assert!(partial.exists(), "what is not ours is left alone");
}

#[test]
fn permission_that_is_lost_in_mid_way() {
    let server = Samba::start();
    let url = server.url("x");
    let mut writer = store::create(&url, Uuid::new_v4(), &as_user(&url)).unwrap();
    writer.append(&pattern(3 << 20, 6)).unwrap();
    writer.commit().unwrap();
    server.reconfigure("read only = no", "read only = yes");
    server.control(&["close-share", "images"]);
    let error = writer.append(&pattern(3 << 20, 7)).and_then(|()| writer.commit()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    drop(writer);
    assert_eq!(names(server.folder()), ["x.partial"]);
}

/// A small file system of its own, on a loop device.
struct SmallDisk {
    folder: tempfile::TempDir,
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
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

    fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A failed test has said what went wrong already.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

pub fn names(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    names
}

#[test]
fn a_full_share_is_no_space_and_keeps_nothing() {
    isolate();
    let disk = SmallDisk::new(32);
    let server = Samba::start_with("", "", Some(&disk.path()));
    let url = server.url("x");
    let facts = store::facts(&url.parent().unwrap(), &as_user(&url)).unwrap();
    let held = rustix::fs::statvfs(server.folder()).unwrap();
    assert_eq!(facts.free_bytes, Some(held.f_bavail * held.f_frsize));
    assert_eq!(facts.total_bytes, Some(held.f_blocks * held.f_frsize));
    let missing = store::facts(&server.url("missing"), &as_user(&url)).unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing}");
    let error = write(&url, &pattern(64 << 20, 8), &as_user(&url)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(names(&disk.path()), Vec::<String>::new());
    // And there is room again for one that fits.
    write(&server.url("y"), &pattern(8 << 20, 9), &as_user(&url)).unwrap();
    assert_eq!(names(&disk.path()), ["y"]);
    drop(server);
}
