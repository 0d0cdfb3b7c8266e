//! Servers and connections that end in the middle.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent_api::ErrorKind;
use fault_proxy::{Ending, Proxy, Script, Way};
use nix::sys::signal::Signal;
use ramdisk_agent::store::{self, Options, ReadAt as _, StoreError};
use ramdisk_agent::store_check;
use uuid::Uuid;

use crate::real::write;
use crate::real_servers::{self, RealServer as _, is_cancelled_soon, isolate, pattern, wait_until};
use crate::refusals::names;
use crate::samba::{Samba, as_guest, as_user};

#[test]
fn writing_goes_on_after_the_server_was_killed() {
    real_servers::writing_goes_on_after_kills(&mut Samba::start(), 16);
}

#[test]
fn reading_goes_on_after_the_server_was_killed() {
    real_servers::reading_goes_on_after_kills(&mut Samba::start());
}

#[test]
fn sessions_that_the_server_ends() {
    let server = Samba::start();
    let url = server.url("x");
    let data = pattern(48 << 20, 5);
    let mut writer = store::create(&url, Uuid::new_v4(), &as_user(&url)).unwrap();
    for piece in data.chunks(8 << 20) {
        writer.append(piece).unwrap();
        // Whatever is under way then: the handle is gone, the connection stays.
        server.control(&["close-share", "images"]);
    }
    writer.publish().unwrap();
    assert!(std::fs::read(server.folder().join("x")).unwrap() == data);
    let image = store::open_with(&url, &as_user(&url)).unwrap();
    let mut back = vec![0; data.len()];
    for (index, piece) in back.chunks_mut(8 << 20).enumerate() {
        server.control(&["close-share", "images"]);
        image.read_exact_at(piece, index as u64 * (8 << 20)).unwrap();
    }
    assert!(back == data);
}

#[test]
fn a_server_that_stays_down_ends_the_budget() {
    real_servers::a_server_that_stays_down_ends_the_budget(&mut Samba::start());
}

#[test]
fn nobody_there_and_somebody_else_there() {
    isolate();
    let options = Options { connect_budget: Duration::from_secs(2), ..as_guest() };
    let error =
        store::open_with(&"smb://127.0.0.1/images/x".parse().unwrap(), &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");

    // A web server that answers everything with its own words.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            use std::io::Write as _;
            let _ =
                stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let url = format!("smb://127.0.0.1:{port}/images/x").parse().unwrap();
    let error = store::open_with(&url, &as_guest()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
    assert!(error.to_string().contains("not valid"), "{error}");
}

#[test]
fn connections_cut_anywhere() {
    let server = Samba::start();
    let data = pattern(24 << 20, 6);
    // In the login, around lengths and headers, in the middle of data, and again and again in a row.
    let mut cuts = Vec::new();
    for (index, after_bytes) in
        [3_u64, 4, 68, 300, 700, 1_100, 1_500, 2_000, 66_000, 1_048_576, 2_500_001]
            .into_iter()
            .enumerate()
    {
        for way in [Way::ToServer, Way::ToClient] {
            // Replies to writes are short.
            let after_bytes =
                if way == Way::ToClient { after_bytes % 3_001 + 1 } else { after_bytes };
            let ending = if index % 2 == 0 { Ending::Close } else { Ending::Reset };
            cuts.push(Script::ends(way, after_bytes + index as u64, ending));
            // One that lives long enough to make progress.
            cuts.push(Script::ends(Way::ToServer, 3_000_000, ending));
        }
    }
    let proxy = Proxy::start(server.address(), cuts).unwrap();
    let url = server.url_at(proxy.port(), "x");
    write(&url, &data, &as_user(&url)).unwrap();
    assert!(std::fs::read(server.folder().join("x")).unwrap() == data);
    assert!(proxy.faults() >= 10, "only {} cuts happened", proxy.faults());
    assert_eq!(names(server.folder()), ["x"]);

    let cuts = (0..50_u64).map(|n| {
        let after_bytes = if n % 2 == 0 { 7 + n * n * 503 } else { 1_000_000 + n };
        Script::ends(Way::ToClient, after_bytes, Ending::Close)
    });
    let proxy = Proxy::start(server.address(), cuts).unwrap();
    let url = server.url_at(proxy.port(), "x");
    let options = Options { request_bytes: 256 << 10, ..as_user(&url) };
    let image = store::open_with(&url, &options).unwrap();
    let mut back = vec![0; data.len()];
    for (index, piece) in back.chunks_mut(2 << 20).enumerate() {
        image.read_exact_at(piece, index as u64 * (2 << 20)).unwrap();
    }
    assert!(back == data);
    assert!(proxy.faults() > 20, "only {} cuts happened", proxy.faults());
}

/// How many READs of more than a file's first bytes went over each connection, by what one connection after the other sent.
fn reads(mut sent: &[u8]) -> Vec<usize> {
    let mut reads = Vec::new();
    while let Some((length, rest)) = sent.split_first_chunk() {
        let len = u32::from_be_bytes(*length) as usize;
        let Some((message, rest)) = rest.split_at_checked(len) else { break };
        sent = rest;
        match u16::from_le_bytes([message[12], message[13]]) {
            // NEGOTIATE begins a connection.
            0 => reads.push(0),
            8 if u32::from_le_bytes(message[68..72].try_into().unwrap()) > 512 => {
                *reads.last_mut().unwrap() += 1;
            }
            _ => {}
        }
    }
    reads
}

#[test]
fn reading_asks_for_less_while_sessions_end_and_for_all_again_afterwards() {
    const REQUEST: u32 = 256 << 10;
    let server = Samba::start();
    let data = pattern(8 << 20, 9);
    std::fs::write(server.folder().join("x"), &data).unwrap();
    let options = Options {
        connections: 1,
        request_bytes: REQUEST,
        silence: Duration::from_secs(3),
        ..as_guest()
    };
    // What the server says until the first part of a read could come.
    let proxy = Proxy::start(server.address(), []).unwrap();
    drop(store::open_with(&server.url_at(proxy.port(), "x"), &options).unwrap());
    let opened = proxy.bytes(Way::ToClient);
    // Within an answer, even if the server says "I work on it" to some requests.
    let within = 2_000;
    let early = Script::ends(Way::ToClient, opened + within, Ending::Close);
    // Held back for long enough that all that may be asked for has been before an answer comes.
    let delay = Duration::from_millis(25);
    let answer = u64::from(REQUEST) + 84;
    let late = Script::ends(Way::ToClient, opened + answer + within, Ending::Silence);
    let (early_delayed, late) = (Script { delay, ..early }, Script { delay, ..late });
    let proxy = Proxy::start(server.address(), [early, early, early_delayed, late]).unwrap();
    proxy.record();
    let image = store::open_with(&server.url_at(proxy.port(), "x"), &options).unwrap();
    let mut back = vec![0; data.len()];
    image.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data);
    assert_eq!(proxy.faults(), 4);
    let reads = reads(&proxy.recorded(Way::ToServer));
    assert_eq!(reads.len(), 5, "{reads:?}");
    assert_eq!(reads[2], 1, "after two sessions of no use one request at a time: {reads:?}");
    assert!(reads[3] > 8, "after an answer there were not many at once: {reads:?}");
}

#[test]
fn an_answer_that_is_lost_when_the_name_is_given() {
    let server = Samba::start();
    let data = pattern(100_000, 8);
    // How much goes to the client until the image has its name; the next ones end before that, more and more of it. (What the
    // server says in between, "I work on it", is not always the same: a few do not end.)
    let proxy = Proxy::start(server.address(), []).unwrap();
    let url = server.url_at(proxy.port(), "counted");
    write(&url, &data, &as_user(&url)).unwrap();
    let whole = proxy.bytes(Way::ToClient);
    let mut ended = 0;
    for (index, before_end) in (1..1_400).step_by(53).enumerate() {
        let ends = Script::ends(Way::ToClient, whole - before_end, Ending::Reset);
        let proxy = Proxy::start(server.address(), [ends]).unwrap();
        let name = format!("x{index:06}");
        let url = server.url_at(proxy.port(), &name);
        write(&url, &data, &as_user(&url))
            .unwrap_or_else(|e| panic!("{before_end} bytes early: {e}"));
        assert!(std::fs::read(server.folder().join(&name)).unwrap() == data);
        assert!(!server.folder().join(format!("{name}.partial")).exists());
        ended += proxy.faults();
    }
    assert!(ended > 15, "only {ended} connections ended");
}

#[test]
fn a_silent_connection_is_replaced() {
    let server = Samba::start();
    let proxy = Proxy::start(server.address(), []).unwrap();
    let data = pattern(4 << 20, 7);
    let url = server.url_at(proxy.port(), "x");
    let mut writer = store::create(&url, Uuid::new_v4(), &as_user(&url)).unwrap();
    let before = proxy.connections();
    std::thread::scope(|scope| {
        proxy.set_silent(true);
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(6));
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
    let server = Samba::start();
    let proxy = Proxy::start(server.address(), []).unwrap();
    real_servers::who_is_cancelled_does_not_wait_for_a_server_that_hangs(
        &server,
        &proxy,
        |name| server.url_at(proxy.port(), name),
        &server.options(),
    );
}

#[test]
fn what_a_cancelled_writer_wrote_is_removed_by_a_server_that_wakes_up() {
    let server = Samba::start();
    let url = server.url("x");
    for options in [server.options(), as_guest()] {
        let mut writer = store::create(&url, Uuid::new_v4(), &options).unwrap();
        writer.append(&pattern(4 << 20, 7)).unwrap();
        writer.commit().unwrap();
        server.signal(Signal::SIGSTOP);
        is_cancelled_soon(&options.cancelled, || {
            writer.append(&pattern(4 << 20, 8))?;
            writer.commit()
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_secs(1));
                server.signal(Signal::SIGCONT);
            });
            writer.abort().unwrap();
        });
        assert!(!server.folder().join("x.partial").exists());
    }
}

#[test]
fn a_probe_that_has_its_name_is_removed_after_a_cancellation() {
    let server = Samba::start();
    let folder = "smb://127.0.0.1/images".parse().unwrap();
    let is_there = |end: &str| names(server.folder()).iter().any(|name| name.ends_with(end));
    let options = server.options();
    let report = std::thread::scope(|scope| {
        let check = scope.spawn(|| store_check::check(&folder, 64 << 20, &options));
        wait_until("it is published", Duration::from_secs(60), || is_there(".probe"));
        server.signal(Signal::SIGSTOP);
        options.cancelled.store(true, Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(2));
        server.signal(Signal::SIGCONT);
        check.join().unwrap()
    });
    let failure = report.failure.expect("it is cancelled");
    assert_eq!(failure.kind, ErrorKind::Cancelled, "{failure:?}");
    assert!(!is_there(".probe") && !is_there(".partial"), "{failure:?}");
}

#[test]
fn what_a_writer_leaves_is_gone_on_with() {
    let mut server = Samba::start();
    real_servers::what_a_writer_leaves_is_gone_on_with(&server);
    let (url, options) = (server.url("x.img.zst"), server.options());
    let data = pattern(8 << 20, 18);
    let mut writer = store::create(&url, Uuid::new_v4(), &options).unwrap();
    writer.append(&data).unwrap();
    writer.commit().unwrap();
    writer.keep().unwrap();
    // Whoever goes on with it is its writer: another one is refused.
    let left = store::left_over(&url, &options).unwrap().unwrap();
    let error = store::create(&url, Uuid::new_v4(), &options).err().unwrap();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    // The server restarts while it is looked at, and once it is gone on with.
    server.restart();
    let mut writer = left.go_on(3 << 20).unwrap();
    writer.append(&data[3 << 20..6 << 20]).unwrap();
    server.restart();
    writer.append(&data[6 << 20..]).unwrap();
    writer.publish().unwrap();
    assert!(std::fs::read(server.folder().join("x.img.zst")).unwrap() == data);
    store::remove(&url, &options).unwrap();

    // Replaced meanwhile, while the server was away: that is not what was looked at.
    let mut writer = store::create(&url, Uuid::new_v4(), &options).unwrap();
    writer.append(&data).unwrap();
    writer.commit().unwrap();
    writer.keep().unwrap();
    let left = store::left_over(&url, &options).unwrap().unwrap();
    server.kill();
    let partial = server.folder().join("x.img.zst.partial");
    std::fs::remove_file(&partial).unwrap();
    std::fs::write(&partial, pattern(8 << 20, 19)).unwrap();
    server.restart();
    assert!(matches!(left.go_on(3 << 20), Err(StoreError::Replaced { .. })));
}
