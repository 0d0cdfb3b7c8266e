//! Against nfs-ganesha, with libnfs as the independent witness.

use ramdisk_agent::store::{self, Options, StoreError};
use uuid::Uuid;

use crate::ganesha::Ganesha;

/// Bytes that do not repeat within a request.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; len];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[test]
fn round_trip_of_256_mib() {
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

    assert!(std::fs::read(server.exported().join("debian-12.img.zst")).unwrap() == data);
    let entries = store::list(&url.parent().unwrap()).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(
        (entries[0].name.as_str(), entries[0].len_bytes),
        ("debian-12.img.zst", data.len() as u64)
    );
}
