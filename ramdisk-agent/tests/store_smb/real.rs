//! Round trips.

use ramdisk_agent::store::{self, Options, ReadAt as _, Result, StoreError, StoreUrl};
use uuid::Uuid;

use crate::real_servers::{self, RealServer as _, pattern, write_pieces};
use crate::samba::{Samba, as_guest, as_user};

pub fn write(url: &StoreUrl, data: &[u8], options: &Options) -> Result<u64> {
    write_pieces(url, data, options, 3_300_001)
}

pub fn read(url: &StoreUrl, len: usize, options: &Options) -> Vec<u8> {
    let image = store::open_with(url, options).unwrap();
    assert_eq!(image.len_bytes(), len as u64);
    let mut back = vec![0; len];
    image.read_exact_at(&mut back, 0).unwrap();
    back
}

fn round_trip(server: &Samba, options: &Options, user: bool) {
    let url = server.url("debian 12.img.zst");
    let data = pattern((48 << 20) + 12_345, 1);
    let mut writer = store::create(&url, Uuid::new_v4(), options).unwrap();
    for piece in data.chunks(3_333_333) {
        writer.append(piece).unwrap();
    }
    assert_eq!(writer.commit().unwrap(), writer.len());
    assert_eq!(writer.resent_bytes(), 0);
    let mut back = vec![0; data.len()];
    writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
    assert!(back == data, "what is stored differs before it is published");
    assert!(matches!(store::open_with(&url, options), Err(StoreError::NotFound { .. })));
    writer.publish().unwrap();

    assert!(std::fs::read(server.folder().join("debian 12.img.zst")).unwrap() == data);
    let entries = store::list(&url.parent().unwrap(), options).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(
        (entries[0].name.as_str(), entries[0].len_bytes),
        ("debian 12.img.zst", data.len() as u64)
    );
    let error = store::create(&url, Uuid::new_v4(), options).err().unwrap();
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");

    let copy = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    server.smbclient(&format!("get \"debian 12.img.zst\" {}", copy.path().display()), user);
    assert!(std::fs::read(copy.path()).unwrap() == data, "smbclient reads other bytes");
    let theirs = pattern((9 << 20) + 1, 2);
    std::fs::write(copy.path(), &theirs).unwrap();
    server.smbclient(&format!("put {} theirs", copy.path().display()), user);
    assert!(read(&server.url("theirs"), theirs.len(), options) == theirs);
    for name in ["debian 12.img.zst", "theirs"] {
        store::remove(&server.url(name), options).unwrap();
    }
    assert!(matches!(store::remove(&url, options), Err(StoreError::NotFound { .. })));
    assert_eq!(std::fs::read_dir(server.folder()).unwrap().count(), 0);
}

#[test]
fn round_trip_of_a_user_with_smbclient_as_witness() {
    let server = Samba::start();
    round_trip(&server, &as_user(&server.url("x")), true);
}

#[test]
fn round_trip_of_a_guest() {
    let server = Samba::start();
    round_trip(&server, &as_guest(), false);
}

#[test]
fn every_dialect_and_protection() {
    let cases = [
        ("server max protocol = SMB2_10", "SMB 2.1", "signed with HMAC-SHA256"),
        ("server max protocol = SMB3_00", "SMB 3.0", "signed with AES-128-CMAC"),
        ("server max protocol = SMB3_02", "SMB 3.0.2", "signed with AES-128-CMAC"),
        ("server max protocol = SMB3_11", "SMB 3.1.1", "signed with AES-128-GMAC"),
        ("server smb3 signing algorithms = AES-128-CMAC", "SMB 3.1.1", "signed with AES-128-CMAC"),
        ("server smb3 signing algorithms = HMAC-SHA256", "SMB 3.1.1", "signed with HMAC-SHA256"),
        ("server signing = mandatory", "SMB 3.1.1", "signed with AES-128-GMAC"),
        ("smb encrypt = required", "SMB 3.1.1", "encrypted with AES-128-GCM"),
        (
            "smb encrypt = required\nserver smb3 encryption algorithms = AES-256-GCM",
            "SMB 3.1.1",
            "encrypted with AES-256-GCM",
        ),
        (
            "smb encrypt = required\nserver smb3 encryption algorithms = AES-128-CCM",
            "SMB 3.1.1",
            "encrypted with AES-128-CCM",
        ),
        (
            "smb encrypt = required\nserver max protocol = SMB3_00",
            "SMB 3.0",
            "encrypted with AES-128-CCM",
        ),
    ];
    for (global, dialect, protection) in cases {
        let what = format!("{global}: {dialect}, {protection}");
        let server = Samba::start_with(global, "", None);
        let url = server.url("x");
        let options = as_user(&url);
        let facts = store::facts(&url.parent().unwrap(), &options).unwrap();
        assert_eq!(facts.protocol, dialect, "{what}");
        assert_eq!(facts.protection.as_deref(), Some(protection), "{what}");
        assert!(facts.max_read_bytes.unwrap() >= 64 << 10, "{facts:?}");
        let held = rustix::fs::statvfs(server.folder()).unwrap();
        assert_eq!(facts.total_bytes, Some(held.f_blocks * held.f_frsize), "{what}");
        let data = pattern((1 << 20) + 70_007, 3);
        write(&url, &data, &options).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(std::fs::read(server.folder().join("x")).unwrap() == data, "{what}");
        assert!(read(&url, data.len(), &options) == data, "{what}");
    }
}

#[test]
fn several_threads_read_at_once() {
    let server = Samba::start();
    let folder = server.folder().join("a/b c");
    std::fs::create_dir_all(&folder).unwrap();
    let url = server.url("a/b%20c/x");
    real_servers::several_threads_read_at_once(&server, &url, &folder.join("x"));
}

#[test]
fn a_long_folder_is_listed_whole() {
    let server = Samba::start();
    for number in 0..1500 {
        std::fs::write(server.folder().join(format!("image number {number:04} é.img.zst")), b"x")
            .unwrap();
    }
    std::fs::create_dir(server.folder().join("folder")).unwrap();
    let folder = server.url("").to_string().trim_end_matches('/').parse().unwrap();
    let entries = store::list(&folder, &as_guest()).unwrap();
    assert_eq!(entries.len(), 1500);
    assert_eq!(entries[1499].name, "image number 1499 é.img.zst");
}

#[test]
fn an_empty_image_and_small_requests() {
    let server = Samba::start();
    let url = server.url("x");
    let options = Options { request_bytes: 5000, requests_in_flight: 3, ..as_user(&url) };
    let data = pattern(1_000_003, 9);
    write(&url, &data, &options).unwrap();
    assert!(read(&url, data.len(), &options) == data);
    let url = server.url("empty");
    store::create(&url, Uuid::new_v4(), &options).unwrap().publish().unwrap();
    assert!(read(&url, 0, &options).is_empty());
}
