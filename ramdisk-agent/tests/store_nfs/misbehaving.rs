//! What a server may do wrong, one thing at a time.

use std::time::Duration;

use agent_api::ErrorKind;
use nfs3_types::nfs3::{NFS_PROGRAM, nfsstat3};
use ramdisk_agent::store::{
    self, LeftOver, Options, ReadAt as _, Result, StoreError, StoreUrl, StoreWriter,
};
use uuid::Uuid;

use crate::fake::{Fake, Faults};
use crate::real_servers::{pattern, write_pieces};

/// Patience that a test has.
pub fn options() -> Options {
    Options {
        budget: Duration::from_secs(30),
        connect_budget: Duration::from_secs(10),
        silence: Duration::from_secs(2),
        ..Options::default()
    }
}

/// Writes in small pieces; how much had to be sent again.
pub fn write(url: &StoreUrl, data: &[u8], options: &Options) -> Result<u64> {
    write_pieces(url, data, options, 300_001)
}

/// Writes to a server with these faults, and checks what it has on its disk in the end.
fn survives(faults: Faults) -> (Fake, u64) {
    survives_over(2, faults.clone());
    survives_over(1, faults)
}

fn survives_over(connections: usize, faults: Faults) -> (Fake, u64) {
    let options = Options { connections, ..options() };
    let server = Fake::start(faults.clone());
    let url = server.url("x.img.zst");
    let data = pattern(3_000_000, 3);
    let resent =
        write(&url, &data, &options).unwrap_or_else(|error| panic!("{faults:?}: {error:?}"));
    assert_eq!(server.names(), ["x.img.zst"], "{faults:?}");
    assert!(server.stable("x.img.zst").unwrap() == data, "{faults:?}: stored bytes differ");
    if connections == 1 {
        // Over several, replies pass each other, and what the server sees is not what the client knows.
        let again = server.state.lock().unwrap().committed_bytes_written_again;
        assert_eq!(again, 0, "{faults:?}");
    }
    let image = store::open_with(&url, &options).unwrap();
    let mut back = vec![0; data.len()];
    image.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data, "{faults:?}: read bytes differ");
    (server, resent)
}

#[test]
fn a_healthy_server() {
    let (server, resent) = survives(Faults::default());
    assert_eq!((resent, server.state.lock().unwrap().bytes_written), (0, 3_000_000));
}

#[test]
fn restarts_lose_nothing_and_cost_no_committed_byte() {
    for every in [1, 3, 20] {
        let (_, resent) = survives(Faults { restart_every: Some(every), ..Faults::default() });
        assert!(resent > 0);
    }
    let (_, resent) = survives(Faults { restart_at_commit: 3, ..Faults::default() });
    assert!(resent > 0);
    survives(Faults { restart_at_commit: 2, restart_every: Some(5), ..Faults::default() });
}

#[test]
fn a_server_that_never_keeps_anything_is_given_up() {
    let server = Fake::start(Faults { restart_at_commit: u32::MAX, ..Faults::default() });
    let error = write(&server.url("x"), &pattern(1_000_000, 1), &options()).unwrap_err();
    assert!(matches!(error, StoreError::KeepsForgetting { .. }), "{error:?}");
    assert!(server.names().is_empty());
}

#[test]
fn a_lying_server_is_found_out_by_reading_again() {
    let server = Fake::start(Faults { forget_silently_every: Some(40), ..Faults::default() });
    let data = pattern(5_000_000, 4);
    let mut writer = store::create(&server.url("x"), Uuid::new_v4(), &options()).unwrap();
    writer.append(&data).unwrap();
    writer.commit().unwrap();
    let mut back = vec![0; data.len()];
    let read = writer.reader().unwrap().read_exact_at(&mut back, 0);
    assert!(read.is_err() || back != data, "the server forgot data and nobody noticed");
}

#[test]
fn short_writes_and_reads_are_continued() {
    survives(Faults { short_writes: true, short_reads: true, ..Faults::default() });
    survives(Faults { short_writes: true, restart_every: Some(40), ..Faults::default() });
}

#[test]
fn stable_replies_need_no_commit() {
    let (server, resent) = survives(Faults { file_sync: true, ..Faults::default() });
    assert_eq!((resent, server.state.lock().unwrap().commits), (0, 0));
}

#[test]
fn replies_in_fragments() {
    for bytes in [41, 1000, 65_000] {
        survives(Faults { fragment_bytes: Some(bytes), ..Faults::default() });
    }
}

#[test]
fn small_requests() {
    survives(Faults { request_bytes: 8192, ..Faults::default() });
}

#[test]
fn garbage_lengths_cost_a_connection_each() {
    survives(Faults { garbage_lengths: 5, ..Faults::default() });
    let server = Fake::start(Faults { garbage_lengths: u32::MAX, ..Faults::default() });
    let error = store::open_with(&server.url("x"), &options()).err().unwrap();
    assert!(matches!(error, StoreError::Protocol { .. }), "{error:?}");
}

#[test]
fn try_later_is_waited_out() {
    survives(Faults { jukebox: 4, ..Faults::default() });
}

#[test]
fn a_server_that_always_says_later_is_given_up() {
    let server = Fake::start(Faults { jukebox: u32::MAX, ..Faults::default() });
    let options = Options { budget: Duration::from_secs(2), ..options() };
    let error = write(&server.url("x"), &pattern(100_000, 1), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error:?}");
}

#[test]
fn lost_answers_to_changes_of_names() {
    use NFS_PROGRAM::{
        NFSPROC3_COMMIT as COMMIT, NFSPROC3_CREATE as CREATE, NFSPROC3_LINK as LINK,
        NFSPROC3_REMOVE as REMOVE, NFSPROC3_RENAME as RENAME, NFSPROC3_SETATTR as SETATTR,
        NFSPROC3_WRITE as WRITE,
    };
    for no_link in [false, true] {
        for no_exclusive in [false, true] {
            let lose_reply_of = vec![CREATE, SETATTR, WRITE, COMMIT, LINK, RENAME, REMOVE];
            survives(Faults { no_link, no_exclusive, lose_reply_of, ..Faults::default() });
        }
    }
}

#[test]
fn publishing_never_overwrites() {
    for no_link in [false, true] {
        let server = Fake::start(Faults { no_link, ..Faults::default() });
        let url = server.url("x");
        let mut writer = store::create(&url, Uuid::new_v4(), &options()).unwrap();
        writer.append(b"new").unwrap();
        server.put("x", b"old");
        assert!(matches!(writer.publish(), Err(StoreError::Exists { .. })));
        assert_eq!(server.stable("x").unwrap(), b"old");
        assert_eq!(server.names(), ["x"], "the partial file is gone");
        assert!(matches!(
            store::create(&url, Uuid::new_v4(), &options()),
            Err(StoreError::Exists { .. })
        ));
    }
}

#[test]
fn a_writer_that_lost_its_file_does_not_publish_anothers() {
    let server = Fake::start(Faults::default());
    let url = server.url("x");
    let mut first = store::create(&url, Uuid::new_v4(), &options()).unwrap();
    first.append(b"first").unwrap();
    first.commit().unwrap();
    let mut second = store::create(&server.url_elsewhere("x"), Uuid::new_v4(), &options()).unwrap();
    second.append(b"second").unwrap();
    assert!(matches!(first.publish(), Err(StoreError::Lost { .. })));
    second.publish().unwrap();
    assert_eq!(server.stable("x").unwrap(), b"second");
}

/// As ext4 does it: what the second one makes has the number of the file that it has removed.
#[test]
fn a_writer_does_not_take_a_new_file_of_the_same_number_for_its_own() {
    let faults = Faults { reuses_numbers: true, ..Faults::default() };
    let data = |seed| pattern(20 << 20, seed);
    for (first_committed, second_wrote) in [(true, true), (true, false), (false, true)] {
        let server = Fake::start(faults.clone());
        let url = server.url("x");
        let mut first = store::create(&url, Uuid::new_v4(), &options()).unwrap();
        first.append(&data(1)).unwrap();
        if first_committed {
            first.commit().unwrap();
        }
        let mut second =
            store::create(&server.url_elsewhere("x"), Uuid::new_v4(), &options()).unwrap();
        if second_wrote {
            second.append(&data(2)).unwrap();
            second.commit().unwrap();
        }
        let lost = first.append(&data(1)).and_then(|()| first.commit()).unwrap_err();
        assert!(matches!(lost, StoreError::Lost { .. }), "{lost}");
        // Tidies up, and leaves the other one's file.
        drop(first);
        if !second_wrote {
            second.append(&data(2)).unwrap();
        }
        second.publish().unwrap();
        assert!(server.stable("x").unwrap() == data(2), "{first_committed} {second_wrote}");
        assert_eq!(server.names(), ["x"]);
    }
}

#[test]
fn a_second_writer_on_the_same_machine_is_refused() {
    let server = Fake::start(Faults::default());
    let url = server.url("x");
    // By the other version as well; what that needs of the kernel is not asked for before.
    let four = format!("nfs4://127.0.0.1:{}/images/x", server.port).parse().unwrap();
    let refused = || {
        for url in [&url, &four] {
            let created = store::create(url, Uuid::new_v4(), &options()).err();
            let left = store::left_over(url, &options()).err();
            for error in [created, left] {
                let error = error.expect("somebody writes it");
                assert!(matches!(error, StoreError::Busy { .. }), "{error}");
                assert!(error.to_string().contains("x.partial"), "{error}");
            }
        }
    };
    let data = pattern(3_000_000, 6);
    let mut writer = store::create(&url, Uuid::new_v4(), &options()).unwrap();
    writer.append(&data[..2_000_000]).unwrap();
    refused();
    writer.commit().unwrap();
    writer.keep().unwrap();
    let left = store::left_over(&url, &options()).unwrap().unwrap();
    refused();
    let mut writer = left.go_on(1_000_000).unwrap();
    refused();
    writer.append(&data[1_000_000..]).unwrap();
    writer.commit().unwrap();
    assert_eq!(writer.reader().unwrap().len_bytes(), 3_000_000);
    writer.publish().unwrap();
    assert!(server.stable("x").unwrap() == data);
    store::remove(&url, &options()).unwrap();
    assert!(store::left_over(&url, &options()).unwrap().is_none());
    store::create(&url, Uuid::new_v4(), &options()).unwrap().abort().unwrap();
}

/// Writes `data` as far as byte `len` and makes it durable; somebody elsewhere then looks at it.
fn begun_and_found(
    server: &Fake,
    data: &[u8],
    len: usize,
) -> (Box<dyn StoreWriter>, Box<dyn LeftOver>) {
    let mut first = store::create(&server.url("x"), Uuid::new_v4(), &options()).unwrap();
    first.append(&data[..len]).unwrap();
    first.commit().unwrap();
    let left = store::left_over(&server.url_elsewhere("x"), &options()).unwrap().unwrap();
    let mut back = vec![0; len];
    left.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
    assert!(back == data[..len]);
    (first, left)
}

#[test]
fn a_file_that_still_changes_is_not_gone_on_with() {
    let server = Fake::start(Faults::default());
    let data = pattern(3_000_000, 7);
    let (mut first, left) = begun_and_found(&server, &data, 2_000_000);
    first.append(&data[2_000_000..]).unwrap();
    first.commit().unwrap();
    let error = left.go_on(1_000_000).err().expect("its writer lives");
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    first.publish().unwrap();
    assert!(server.stable("x").unwrap() == data);
}

/// A writer that was silent while somebody elsewhere looked at its file, and then is not: neither publishes what it has not read.
#[test]
fn of_two_writers_of_one_file_none_publishes_what_it_did_not_read() {
    let server = Fake::start(Faults::default());
    let data = pattern(2_000_000, 8);
    // The first one has read all of it again when the other goes on, with the same bytes or with others.
    for rest in [data[1_000_000..].to_vec(), pattern(1_000_000, 9)] {
        let (first, left) = begun_and_found(&server, &data, 2_000_000);
        let mut back = vec![0; 2_000_000];
        first.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
        assert!(back == data);
        let mut second = left.go_on(1_000_000).unwrap();
        second.append(&rest).unwrap();
        second.commit().unwrap();
        let error = first.publish().unwrap_err();
        assert!(matches!(error, StoreError::Lost { .. }), "{error}");
        assert_eq!(server.names(), ["x.partial"], "the other's is left alone");
        second.publish().unwrap();
        assert!(server.stable("x").unwrap() == [&data[..1_000_000], &rest].concat());
        store::remove(&server.url("x"), &options()).unwrap();
    }

    // The first one wakes up: what it writes lies behind the other one's end, and after that one has read everything again.
    for read_again in [false, true] {
        let (mut first, left) = begun_and_found(&server, &data, 1_500_000);
        let mut second = left.go_on(1_000_000).unwrap();
        let rest = if read_again { 1_000_000 } else { 3 };
        second.append(&data[1_000_000..][..rest]).unwrap();
        second.commit().unwrap();
        if read_again {
            second.reader().unwrap();
        }
        first.append(&data[1_500_000..]).unwrap();
        first.commit().unwrap();
        let error = second.publish().unwrap_err();
        assert!(matches!(error, StoreError::Lost { .. }), "{error}");
        // It had not read again; its bytes and those of the other are the same here.
        first.abort().unwrap();
        assert!(server.names().is_empty(), "{:?}", server.names());
    }
}

#[test]
fn errors_have_their_kind_and_leave_nothing() {
    let cases = [
        (
            Faults { write_error: Some((5, nfsstat3::NFS3ERR_NOSPC)), ..Faults::default() },
            ErrorKind::NoSpace,
        ),
        (
            Faults { commit_error: Some(nfsstat3::NFS3ERR_DQUOT), ..Faults::default() },
            ErrorKind::NoSpace,
        ),
        (
            Faults { write_error: Some((3, nfsstat3::NFS3ERR_IO)), ..Faults::default() },
            ErrorKind::Store,
        ),
        (
            Faults { write_error: Some((3, nfsstat3::NFS3ERR_ACCES)), ..Faults::default() },
            ErrorKind::Refused,
        ),
        (
            Faults { create_error: Some(nfsstat3::NFS3ERR_ROFS), ..Faults::default() },
            ErrorKind::Refused,
        ),
        (
            Faults { create_error: Some(nfsstat3::NFS3ERR_NAMETOOLONG), ..Faults::default() },
            ErrorKind::Refused,
        ),
    ];
    for (faults, kind) in cases {
        let server = Fake::start(faults.clone());
        let error = write(&server.url("x"), &pattern(2_000_000, 1), &options()).unwrap_err();
        assert_eq!(error.kind(), kind, "{faults:?}: {error}");
        assert!(server.names().is_empty(), "{faults:?}: {:?}", server.names());
        let words = match faults.create_error {
            Some(nfsstat3::NFS3ERR_ROFS) => "exports it read-only to this address",
            Some(_) => "choose one of at most 247 bytes",
            None => "",
        };
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_name_that_has_no_room_for_the_suffix_is_refused_before_anything_is_written() {
    let server = Fake::start(Faults::default());
    write(&server.url(&"x".repeat(247)), &pattern(1000, 1), &options()).unwrap();
    let url = server.url(&"y".repeat(248));
    let refused = [
        store::create(&url, Uuid::new_v4(), &options()).err().unwrap(),
        store::left_over(&url, &options()).err().unwrap(),
    ];
    for error in refused {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("choose one of at most 247 bytes"), "{error}");
    }
    assert_eq!(server.names().len(), 1);
}

#[test]
fn a_writer_whose_file_was_removed_says_so() {
    let lost = |error: StoreError| {
        assert!(matches!(error, StoreError::Lost { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Store);
        let text = error.to_string();
        assert!(text.contains("x.partial") && text.contains("was removed, replaced"), "{text}");
    };
    let server = Fake::start(Faults::default());
    let url = server.url("x");
    let partial = format!("nfs://127.0.0.1:{0}/images/x.partial?mountport={0}", server.port);
    let mut writer = store::create(&url, Uuid::new_v4(), &options()).unwrap();
    writer.append(&pattern(100_000, 1)).unwrap();
    writer.commit().unwrap();
    store::remove(&partial.parse().unwrap(), &options()).unwrap();
    lost(writer.reader().err().unwrap());
    lost(writer.publish().unwrap_err());
    assert!(server.names().is_empty());
}

#[test]
fn stale_handles_are_looked_up_again_and_another_file_is_an_error() {
    let server = Fake::start(Faults::default());
    let (url, data) = (server.url("x"), pattern(1_000_000, 9));
    server.put("x", &data);
    let image = store::open_with(&url, &options()).unwrap();
    let mut back = vec![0; data.len()];
    server.state.lock().unwrap().generation += 1;
    image.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data);
    server.put("x", &data);
    server.state.lock().unwrap().generation += 1;
    let error = image.read_exact_at(&mut back, 0).unwrap_err();
    assert!(matches!(StoreError::find(&error), Some(StoreError::Replaced { .. })), "{error}");

    let mut writer = store::create(&server.url("y"), Uuid::new_v4(), &options()).unwrap();
    writer.append(&data).unwrap();
    server.state.lock().unwrap().generation += 1;
    writer.append(&data).unwrap();
    writer.publish().unwrap();
    assert!(server.stable("y").unwrap() == [&data[..], &data[..]].concat());
}

#[test]
fn a_front_that_comes_late_does_not_make_the_file_somebody_elses() {
    let faults = Faults { late_front: true, request_bytes: 4096, ..Faults::default() };
    let server = Fake::start(faults);
    let data = pattern(1_000_000, 3);
    let mut writer = store::create(&server.url("x"), Uuid::new_v4(), &options()).unwrap();
    writer.append(&data).unwrap();
    writer.publish().unwrap();
    assert!(!server.state.lock().unwrap().faults.late_front, "it was late");
    assert!(server.stable("x").unwrap() == data);
}

#[test]
fn a_folder_that_does_not_end_and_names_that_lead_elsewhere() {
    let server = Fake::start(Faults { endless_folder: true, ..Faults::default() });
    let folder = server.url("x").parent().unwrap();
    let error = store::list(&folder, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Store);
    assert!(error.to_string().contains("too many"), "{error}");

    let server = Fake::start(Faults::default());
    server.put("x.img.zst", b"1");
    let entries = store::list(&server.url("x").parent().unwrap(), &options()).unwrap();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["x.img.zst"]);
}
