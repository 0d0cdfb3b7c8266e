//! Against nginx, with curl as the other client.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_api::{ErrorKind, StoreAccess};
use ramdisk_agent::store::{self, Access, Options, ReadAt as _, StoreError, StoreUrl};
use uuid::Uuid;

use crate::nginx::{Certificate, Nginx, Setup};
use crate::options;
use crate::real_servers::pattern;

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn with_access(url: &StoreUrl, access: StoreAccess) -> Options {
    let access = Access::new(vec![access], std::slice::from_ref(url)).unwrap();
    Options { access: Arc::new(access), ..options() }
}

/// Reads all of it, in pieces of `len`, with `threads` threads.
fn read(url: &StoreUrl, options: &Options, len: usize, threads: usize) -> Vec<u8> {
    let image = store::open_with(url, options).unwrap();
    let mut all = vec![0; usize::try_from(image.len_bytes()).unwrap()];
    let pieces: Vec<_> = all.chunks_mut(len).enumerate().collect();
    let pieces = Mutex::new(pieces);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some((index, piece)) = pieces.lock().unwrap().pop() else { break };
                    image.read_exact_at(piece, (index * len) as u64).unwrap();
                }
            });
        }
    });
    drop(pieces);
    all
}

#[test]
fn reads_what_curl_reads() {
    let server = Nginx::start();
    let data = pattern((24 << 20) + 12_345, 1);
    server.put("debian 12.img.zst", &data);
    let curl = run(Command::new("curl").args(["-sf", &server.http("debian%2012.img.zst")]));
    assert!(curl == data, "curl reads other bytes");
    let url = server.url("debian%2012.img.zst");
    for (len, threads) in [(1 << 20, 5), (data.len(), 1), (9_999_999, 2)] {
        assert!(read(&url, &options(), len, threads) == data, "{len} bytes, {threads} threads");
    }
    let image = store::open(&url).unwrap();
    for (offset, len) in [(0, 1), (data.len() - 1, 1), (data.len(), 0), (4095, 2)] {
        let mut some = vec![0; len];
        image.read_exact_at(&mut some, offset as u64).unwrap();
        assert_eq!(some, &data[offset..offset + len]);
    }
    let error = image.read_exact_at(&mut [0; 2], data.len() as u64 - 1).unwrap_err();
    assert!(matches!(StoreError::find(&error), Some(StoreError::PastEnd { .. })), "{error}");
}

#[test]
fn over_tls_from_the_server_with_the_key() {
    let server = Nginx::start();
    let data = pattern((8 << 20) + 1, 2);
    server.put("x.img.zst", &data);
    let url: StoreUrl = server.https("x.img.zst").parse().unwrap();
    let with_key = |key: &str| {
        with_access(&url, StoreAccess { tls_key: Some(key.to_owned()), ..StoreAccess::default() })
    };
    assert!(read(&url, &with_key(&server.pin), 1 << 20, 4) == data);
    let error = store::open_with(&url, &with_key(&"0".repeat(64))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains(&server.pin), "{error}");
    let error = store::open_with(&url, &with_key("nonsense")).err().unwrap();
    assert!(error.to_string().contains("64 hexadecimal digits"), "{error}");
    let error = store::open_with(&url, &options()).err().unwrap();
    assert!(error.to_string().contains("IMPRINT_CA_FILE"), "{error}");
    // No TLS there, and no plain HTTP here.
    let plain = format!("https://127.0.0.1:{}/x", server.port).parse().unwrap();
    let error = store::open_with(&plain, &options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Store, "{error}");
    let tls = format!("http://127.0.0.1:{}/x", server.tls_port).parse().unwrap();
    let error = store::open_with(&tls, &options()).err().unwrap();
    assert!(error.to_string().contains("400 Bad Request"), "{error}");
}

#[test]
fn with_a_password_or_a_token() {
    let lines = "location /basic/ { auth_basic here; auth_basic_user_file users; }
                 location /token/ { if ($http_authorization != 'Bearer t0ken') { return 401; } }";
    let server = Nginx::with_lines(lines);
    std::fs::write(server.path("users"), "imprint:{PLAIN}päss wörd\n").unwrap();
    for folder in ["basic", "token"] {
        std::fs::create_dir(server.served(folder)).unwrap();
        server.put(&format!("{folder}/x"), b"content");
    }
    let open = |path: &str, user: Option<&str>, secret: &str| {
        let secret = Some(secret.to_owned().into());
        let mut access = StoreAccess { user: user.map(str::to_owned), ..StoreAccess::default() };
        *(if user.is_some() { &mut access.password } else { &mut access.token }) = secret;
        let url = server.url(path);
        store::open_with(&url, &with_access(&url, access)).map(|image| image.len_bytes())
    };
    assert_eq!(open("basic/x", Some("imprint"), "päss wörd").unwrap(), 7);
    assert_eq!(open("token/x", None, "t0ken").unwrap(), 7);
    for error in [
        open("basic/x", Some("imprint"), "wr0ng").unwrap_err(),
        open("token/x", None, "wr0ng").unwrap_err(),
        store::open_with(&server.url("basic/x"), &options()).err().unwrap(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("401 Unauthorized"), "{error}");
        assert!(!error.to_string().contains("wr0ng"), "{error}");
    }
}

#[test]
fn what_is_not_there_or_not_possible_is_said() {
    let server = Nginx::with_lines("location = /secret { deny all; }");
    server.put("empty", b"");
    assert_eq!(store::open(&server.url("empty")).unwrap().len_bytes(), 0);
    server.put("secret", b"x");
    let error = store::open(&server.url("secret")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    let missing = server.url("none.img.zst?X-Sig=5ecre7");
    let error = store::open(&missing).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let errors = [
        error,
        store::create(&missing, Uuid::new_v4(), &options()).err().unwrap(),
        store::list(&missing, &options()).err().unwrap(),
        store::remove(&missing, &options()).err().unwrap(),
    ];
    for error in &errors {
        assert!(!error.to_string().contains("5ecre7"), "{error}");
    }
    for error in &errors[1..] {
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("only read from"), "{error}");
    }
    let nobody: StoreUrl = "http://no-such-host.invalid/x".parse().unwrap();
    assert_eq!(store::open(&nobody).err().unwrap().kind(), ErrorKind::Network);
}

#[test]
fn an_image_that_is_replaced_is_an_error() {
    let server = Nginx::start();
    let data = pattern(3 << 20, 3);
    server.put("x", &data);
    let image = store::open_with(&server.url("x"), &options()).unwrap();
    let mut some = vec![0; 1 << 20];
    image.read_exact_at(&mut some, 0).unwrap();
    // As a publisher does it: another file takes the name. Its length, and so its ETag, differs.
    server.put("y", &pattern((3 << 20) + 1, 4));
    std::fs::rename(server.served("y"), server.served("x")).unwrap();
    let error = image.read_exact_at(&mut some, 1 << 20).unwrap_err();
    let error = StoreError::find(&error).unwrap();
    assert!(matches!(error, StoreError::Replaced { .. }), "{error}");
    std::fs::remove_file(server.served("x")).unwrap();
    let error = image.read_exact_at(&mut some, 1 << 20).unwrap_err();
    assert_eq!(StoreError::find(&error).unwrap().kind(), ErrorKind::NotFound);
}

#[test]
fn a_server_that_is_killed_and_comes_back_is_waited_for() {
    const PIECE_LEN: usize = 6 << 20;
    // The first 4 MiB of an answer come at once, the rest takes half a second: most kills are in the middle of one.
    let mut server = Nginx::with_lines("limit_rate 4m;");
    let data = pattern(4 * PIECE_LEN, 5);
    server.put("x", &data);
    let one = Options { http_connections: 1, ..options() };
    let image = store::open_with(&server.url("x"), &one).unwrap();
    let mut all = vec![0; data.len()];
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            for (index, piece) in all.chunks_mut(PIECE_LEN).enumerate() {
                image.read_exact_at(piece, (index * PIECE_LEN) as u64).unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
        for kill_after in [1, 2] {
            let start = Instant::now();
            while done.load(Ordering::SeqCst) < kill_after {
                assert!(start.elapsed() < Duration::from_secs(30), "no piece came");
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!reading.is_finished());
            server.kill();
            server.run();
        }
        reading.join().unwrap();
    });
    assert!(all == data);
}

#[test]
fn with_the_right_key_name_and_dates_do_not_matter() {
    let expired = Certificate { name: "elsewhere.example", has_expired: true };
    let server = Nginx::with(Setup { certificate: expired, ..Setup::default() });
    server.put("x", b"content");
    let url: StoreUrl = server.https("x").parse().unwrap();
    let access = StoreAccess { tls_key: Some(server.pin.clone()), ..StoreAccess::default() };
    assert_eq!(store::open_with(&url, &with_access(&url, access)).unwrap().len_bytes(), 7);
}
