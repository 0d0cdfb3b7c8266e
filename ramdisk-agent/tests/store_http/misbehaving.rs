//! Servers that break off, fall silent, are busy, or answer something else than was asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent_api::ErrorKind;
use ramdisk_agent::store::{self, Options, ReadAt as _, Several, StoreError, Tally};

use crate::options;
use crate::real_servers::{Told, fails_to_tidy_up_soon, is_cancelled_soon, pattern};
use crate::scripted::{Asked, ETAG, Reply, Scripted};

const LEN: usize = 300_000;
/// Longer than the heads of the scripted server.
const HEAD_LEN: usize = 200;

/// Reads a file in one request at a time, while the server does `script` from the second request on (the first opens it).
fn read(options: &Options, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Outcome {
    let data = pattern(LEN, 7);
    let server = Scripted::start(data.clone(), move |asked| match asked.number {
        0 => Reply::Range,
        _ => script(asked),
    });
    let image = store::open_with(&server.url("/x?X-Sig=5ecre7"), options).unwrap();
    let mut all = vec![0; LEN];
    let result = image.read_exact_at(&mut all, 0);
    if result.is_ok() {
        assert!(all == data, "other bytes");
    }
    let error = result.err().map(|error| match StoreError::find(&error) {
        Some(found) => (found.kind(), format!("{found}: {found:?}")),
        None => panic!("{error}"),
    });
    if let Some((_, text)) = &error {
        assert!(!text.contains("5ecre7"), "{text}");
    }
    Outcome { error, asked: server.asked() }
}

struct Outcome {
    error: Option<(ErrorKind, String)>,
    asked: Vec<Asked>,
}

impl Outcome {
    fn failed(&self, kind: ErrorKind, words: &str) {
        let (found, text) = self.error.as_ref().expect("it succeeded");
        assert_eq!(*found, kind, "{text}");
        assert!(text.contains(words), "no {words:?} in {text}");
    }

    fn succeeded(&self) {
        assert!(self.error.is_none(), "{:?}", self.error);
    }
}

#[test]
fn what_breaks_off_goes_on_from_the_byte() {
    for at in [0, 1, HEAD_LEN / 2, HEAD_LEN, HEAD_LEN + 1, 5000, LEN / 2, LEN - 1] {
        let outcome = read(&options(), move |asked| match asked.number {
            1 => Reply::CutAt(at),
            _ => Reply::Range,
        });
        outcome.succeeded();
        let last = outcome.asked.last().unwrap();
        let (first, _) = last.range();
        // The head takes some of what came.
        assert!(first <= at && first + HEAD_LEN >= at, "cut at {at}, resumed at {first}");
        assert_eq!(last.field("if-match"), Some(ETAG));
        assert_eq!(last.field("accept-encoding"), Some("identity"));
    }
}

#[test]
fn a_byte_at_a_time_is_no_progress() {
    let start = Instant::now();
    let options = Options { budget: Duration::from_secs(3), ..options() };
    let outcome = read(&options, |_| {
        std::thread::sleep(Duration::from_millis(100));
        Reply::CutAt(HEAD_LEN + 1)
    });
    outcome.failed(ErrorKind::Network, "made no progress");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn fifty_cuts_in_one_read_are_survived() {
    let outcome = read(&options(), |asked| match asked.number {
        1..=50 => Reply::CutAt(6000),
        _ => Reply::Range,
    });
    outcome.succeeded();
    let firsts: Vec<_> = outcome.asked[1..].iter().map(|asked| asked.range().0).collect();
    // No byte that came is asked for again.
    assert!(
        firsts.is_sorted() && firsts.windows(2).all(|pair| pair[1] >= pair[0] + 5000),
        "{firsts:?}"
    );
}

#[test]
fn silence_at_any_place_is_noticed() {
    for at in [0, HEAD_LEN / 2, HEAD_LEN + 1000] {
        let outcome = read(&options(), move |asked| match asked.number {
            1 => Reply::SilentAt(at),
            _ => Reply::Range,
        });
        outcome.succeeded();
    }
}

#[test]
fn a_busy_server_is_waited_for_as_it_says_and_told_of() {
    let told = Arc::new(Told::default());
    let options = Options { observer: Some(Arc::clone(&told) as _), ..options() };
    let start = Instant::now();
    let outcome = read(&options, |asked| match asked.number {
        1 => Reply::Status(503, vec!["Retry-After: 6".into()]),
        2 => Reply::Status(429, vec![]),
        3 => Reply::Status(502, vec!["Retry-After: Fri, 31 Dec 1999 23:59:59 GMT".into()]),
        _ => Reply::Range,
    });
    outcome.succeeded();
    assert!(start.elapsed() >= Duration::from_secs(6), "it did not wait as it was told to");
    let stalled = told.stalled.lock().unwrap();
    assert!(stalled[0].contains("answered 503") && stalled[0].contains(" s)"), "{stalled:?}");
    assert_eq!(told.resumed.load(Ordering::SeqCst), 1);
}

#[test]
fn who_is_cancelled_does_not_wait_for_a_server_that_hangs() {
    let options_of = |cancelled: &Arc<AtomicBool>| Options {
        cancelled: Arc::clone(cancelled),
        budget: Duration::from_secs(30),
        ..options()
    };
    let (with, shared) = (|| options_of(&Arc::default()), Arc::default());
    let server = Scripted::start(pattern(LEN, 7), |asked| match asked.number {
        0 => Reply::Range,
        _ => Reply::SilentAt(HEAD_LEN + 1000),
    });
    let options = with();
    let image = store::open_with(&server.url("/x"), &options).unwrap();
    is_cancelled_soon(&options.cancelled, || {
        let read = image.read_exact_at(&mut vec![0; LEN], 0);
        read.map_err(|error| error.downcast::<StoreError>().unwrap())
    });
    // Of several sources the last one's error is the read's; here none is left out for it.
    let urls = [server.url("/x"), server.url("/y")];
    let sources = urls.each_ref().map(|url| {
        let answers = Scripted::start(pattern(LEN, 7), |asked| match asked.number {
            0 => Reply::Range,
            _ => Reply::SilentAt(HEAD_LEN),
        });
        let opened = store::open_with(&answers.url("/x"), &options_of(&shared)).unwrap();
        (opened, Tally::new(url, None))
    });
    let tallies = sources.each_ref().map(|(_, tally)| Arc::clone(tally));
    let several = Several::new(sources.into(), None);
    is_cancelled_soon(&shared, || {
        let read = several.read_exact_at(&mut vec![0; LEN], 0);
        read.map_err(|error| error.downcast::<StoreError>().unwrap())
    });
    assert!(tallies.iter().all(|tally| tally.left_out().is_none()));
    // One that says "later", for longer than anybody who cancels wants to wait.
    let server =
        Scripted::start(pattern(LEN, 7), |_| Reply::Status(503, vec!["Retry-After: 20".into()]));
    let options = with();
    is_cancelled_soon(&options.cancelled, || store::open_with(&server.url("/x"), &options));
    // A controller that takes the beginning of an upload and hangs then.
    let server = Scripted::start(Vec::new(), |asked| match asked.number {
        0 => {
            let body = r#"{"received_bytes":0,"durable_bytes":0,"is_published":false}"#;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            Reply::Raw((head + body).into_bytes())
        }
        _ => {
            std::thread::sleep(Duration::from_secs(20));
            Reply::Raw(Vec::new())
        }
    });
    let options = with();
    let mut writer =
        store::create(&server.url("/files/x"), uuid::Uuid::new_v4(), &options).unwrap();
    is_cancelled_soon(&options.cancelled, || {
        writer.append(&pattern(1 << 20, 8))?;
        writer.commit()
    });
    fails_to_tidy_up_soon(writer);
}

#[test]
fn the_budget_ends_it() {
    let budget = Duration::from_secs(2);
    for cut in [false, true] {
        let start = Instant::now();
        let outcome = read(&Options { budget, ..options() }, move |_| {
            if cut {
                Reply::CutAt(0)
            } else {
                Reply::Status(500, vec!["Retry-After: 99999".into()])
            }
        });
        outcome.failed(ErrorKind::Network, "made no progress");
        let took = start.elapsed();
        assert!(took >= budget && took < budget + Duration::from_secs(5), "{took:?}");
    }
}

#[test]
fn refusals_come_at_once_and_say_what_to_do() {
    for (status, kind, words) in [
        (401, ErrorKind::Refused, "--credentials"),
        (403, ErrorKind::Refused, "may have expired"),
        (404, ErrorKind::NotFound, "does not exist"),
        (410, ErrorKind::NotFound, "does not exist"),
        (412, ErrorKind::Store, "was replaced"),
        (416, ErrorKind::Store, "was replaced"),
        (501, ErrorKind::Store, "501"),
    ] {
        let outcome = read(&options(), move |_| Reply::Status(status, vec![]));
        outcome.failed(kind, words);
        assert_eq!(outcome.asked.len(), 2, "{status} was tried again");
    }
    let expired = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message><StringToSign>5ecre7</StringToSign></Error>";
    let raw = [b"HTTP/1.1 403 Forbidden\r\n\r\n".as_slice(), expired].concat();
    let outcome = read(&options(), move |_| Reply::Raw(raw.clone()));
    outcome.failed(ErrorKind::Refused, "the presigned URL has expired");
}

#[test]
fn other_bytes_than_asked_for_are_never_taken() {
    let fields = |range: &str, more: &[&str]| {
        let mut fields = vec![format!("Content-Range: bytes {range}"), format!("ETag: {ETAG}")];
        fields.extend(more.iter().map(|field| (*field).to_owned()));
        fields
    };
    let full = format!("0-{}/{LEN}", LEN - 1);
    let length = format!("Content-Length: {LEN}");
    for (fields, kind, words) in [
        (
            fields(&format!("1-{}/{LEN}", LEN - 1), &[&format!("Content-Length: {}", LEN - 1)]),
            ErrorKind::Store,
            "not the range",
        ),
        (
            fields(&format!("0-{}/{}", LEN - 1, LEN + 1), &[&length]),
            ErrorKind::Store,
            "was replaced",
        ),
        (
            fields(&full, &["Content-Length: 5"]),
            ErrorKind::Store,
            "its length is not that of its range",
        ),
        (fields(&full, &[&length, "Content-Encoding: gzip"]), ErrorKind::Refused, "compresses"),
        (
            fields(&full, &[&length, "Content-Type: multipart/byteranges; boundary=x"]),
            ErrorKind::Store,
            "several parts",
        ),
        (
            vec![format!("Content-Range: bytes {full}"), "ETag: \"v2\"".into(), length.clone()],
            ErrorKind::Store,
            "was replaced",
        ),
        (vec![format!("ETag: {ETAG}"), length.clone()], ErrorKind::Store, "which part"),
    ] {
        let outcome = read(&options(), move |_| Reply::Fields(fields.clone(), vec![0; LEN]));
        outcome.failed(kind, words);
        assert_eq!(outcome.asked.len(), 2);
    }
    let whole = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: {ETAG}\r\n\r\n", LEN + 1);
    read(&options(), move |_| Reply::Raw(whole.clone().into_bytes()))
        .failed(ErrorKind::Store, "was replaced");
}

#[test]
fn less_than_asked_for_and_bodies_in_pieces_are_taken() {
    let data = pattern(LEN, 7);
    let served = data.clone();
    let outcome = read(&options(), move |asked| {
        let (first, last) = asked.range();
        let last = last.min(first + 99_999);
        let fields =
            vec![format!("Content-Range: bytes {first}-{last}/*"), format!("ETag: {ETAG}")];
        let body = &served[first..=last];
        if asked.number == 2 {
            // Until the connection ends.
            let head = format!("HTTP/1.0 206 Partial Content\r\n{}\r\n\r\n", fields.join("\r\n"));
            return Reply::Raw([head.as_bytes(), body].concat());
        }
        let mut pieces = Vec::new();
        for piece in body.chunks(7_777) {
            pieces.extend_from_slice(format!("{:x};ext=1\r\n", piece.len()).as_bytes());
            pieces.extend_from_slice(piece);
            pieces.extend_from_slice(b"\r\n");
        }
        pieces.extend_from_slice(b"0\r\nTrailer: x\r\n\r\n");
        Reply::Fields([fields, vec!["Transfer-Encoding: chunked".into()]].concat(), pieces)
    });
    outcome.succeeded();
    assert_eq!(outcome.asked.len(), 4);
}

#[test]
fn bodies_in_pieces_that_lie_are_not_believed() {
    let fields = || {
        vec![
            format!("Content-Range: bytes 0-{}/{LEN}", LEN - 1),
            format!("ETag: {ETAG}"),
            "Transfer-Encoding: chunked".into(),
        ]
    };
    // Too much of it.
    let body =
        [format!("{:x}\r\n", LEN + 1).as_bytes(), &vec![0; LEN + 1], b"\r\n0\r\n\r\n"].concat();
    read(&options(), move |_| Reply::Fields(fields(), body.clone()))
        .failed(ErrorKind::Store, "longer than its range");
    // Too little of it, at first.
    let outcome = read(&options(), move |asked| match asked.number {
        1 => Reply::Fields(fields(), b"0\r\n\r\n".to_vec()),
        2 => Reply::Fields(fields(), b"zz\r\n".to_vec()),
        _ => Reply::Range,
    });
    outcome.succeeded();
}

#[test]
fn what_is_no_http_is_given_up_soon() {
    let start = Instant::now();
    let outcome = read(&options(), |_| Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()));
    outcome.failed(ErrorKind::Store, "this is no HTTP");
    let endless = [b"HTTP/1.1 206 x\r\nA: ".as_slice(), &vec![b'x'; 100 << 10]].concat();
    read(&options(), move |_| Reply::Raw(endless.clone()))
        .failed(ErrorKind::Store, "head is longer");
    assert!(start.elapsed() < Duration::from_secs(25));
    // Once is no reason to give up.
    read(&options(), |asked| match asked.number {
        1 => Reply::Raw(vec![0; 100]),
        _ => Reply::Range,
    })
    .succeeded();
}

#[test]
fn servers_that_know_no_ranges_are_refused() {
    let data = pattern(LEN, 7);
    for fields in [format!("Content-Length: {LEN}\r\n"), String::new()] {
        let raw = [format!("HTTP/1.0 200 OK\r\n{fields}\r\n").as_bytes(), &data].concat();
        let server = Scripted::start(vec![0; 1], move |_| Reply::Raw(raw.clone()));
        let error = store::open_with(&server.url("/x"), &options()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("serves ranges, as nginx"), "{error}");
    }
}

#[test]
fn connections_are_kept_and_closed_ones_cost_nothing() {
    let server = Scripted::start(pattern(LEN, 7), |_| Reply::Range);
    let image = store::open_with(&server.url("/x"), &options()).unwrap();
    for offset in [0, 5000, 100_000] {
        image.read_exact_at(&mut [0; 1000], offset).unwrap();
    }
    assert_eq!(server.connections(), 1, "a connection was not used again");
    // This one closes after each answer, without saying so in the head.
    let data = pattern(LEN, 7);
    let server = Scripted::start(data.clone(), |_| Reply::CutAt(usize::MAX));
    let image = store::open_with(&server.url("/x"), &options()).unwrap();
    let start = Instant::now();
    for (index, piece) in data.chunks(1000).enumerate() {
        let mut some = vec![0; 1000];
        image.read_exact_at(&mut some, index as u64 * 1000).unwrap();
        assert!(some == piece);
    }
    // With the shortest pause after each it would be 15 s.
    assert!(start.elapsed() < Duration::from_secs(12), "it paused: {:?}", start.elapsed());
}
