//! A controller whose disk hangs or fails, while the controller itself goes on answering.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agent_api::ErrorKind;
use ramdisk_agent::store::{self, Options, ReadAt as _, StoreError};
use uuid::Uuid;

use crate::options;
use crate::real_servers::Told;
use crate::scripted::{Asked, Reply, Scripted};

/// What the controller has of the one upload.
#[derive(Default)]
struct Upload {
    received: u64,
    durable: u64,
    is_published: bool,
}

/// A controller that does what it is asked for, but for the requests that `odd` answers.
fn controller(odd: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Scripted {
    let upload = Mutex::new(Upload::default());
    Scripted::start(Vec::new(), move |asked| {
        if let Some(reply) = odd(asked) {
            return reply;
        }
        let mut upload = upload.lock().unwrap();
        match asked.line.split(' ').next().unwrap() {
            "PATCH" => {
                assert_eq!(asked.field("upload-offset"), Some(&*upload.received.to_string()));
                upload.received += asked.body_len;
            }
            "POST" if asked.line.contains("/commit ") => upload.durable = upload.received,
            "POST" if asked.line.contains("/publish ") => upload.is_published = true,
            "DELETE" => return Reply::Status(204, vec![]),
            _ => {}
        }
        let Upload { received, durable, is_published } = *upload;
        Reply::Json(
            200,
            format!(
                r#"{{"received_bytes":{received},"durable_bytes":{durable},"is_published":{is_published}}}"#
            ),
        )
    })
}

/// Writes an image to it, as a capture does.
fn write(controller: &Scripted, options: &Options) -> Result<(), StoreError> {
    let url = controller.url("/v1/stores/local/files/x.img.zst");
    let mut writer = store::create(&url, Uuid::new_v4(), options)?;
    writer.append(&[7; 100_000])?;
    assert_eq!(writer.commit()?, 100_000);
    writer.publish()
}

/// The writer goes on asking how far it is, and the answers to that are no progress of what hangs.
#[test]
fn a_disk_that_hangs_is_told_and_ended_and_a_slow_one_is_waited_for() {
    let budget = Duration::from_secs(7);
    let hangs = move |request: &'static str, words: &'static str, silence: Duration| {
        let told = Arc::new(Told::default());
        let options =
            Options { budget, silence, observer: Some(Arc::clone(&told) as _), ..options() };
        let controller = controller(move |asked| {
            (asked.line.starts_with("POST") && asked.line.contains(request))
                .then_some(Reply::Silence)
        });
        let start = Instant::now();
        let error = write(&controller, &options).unwrap_err();
        let took = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(took >= budget && took < budget * 3, "{took:?}");
        let stalled = told.stalled.lock().unwrap();
        assert!(stalled[0].contains("answers, but does not do what"), "{stalled:?}");
        let asked = controller.asked();
        assert!(asked.iter().filter(|asked| asked.line.starts_with("GET")).count() >= 2);
        assert!(asked.last().unwrap().line.starts_with("DELETE"), "it does not tidy up");
    };
    let is_slow = || {
        let told = Arc::new(Told::default());
        let options = Options { observer: Some(Arc::clone(&told) as _), ..options() };
        let options = Options { silence: Duration::from_secs(60), ..options };
        let controller = controller(|asked| {
            if asked.line.starts_with("POST") && asked.line.contains("/commit ") {
                std::thread::sleep(Duration::from_secs(8));
            }
            None
        });
        write(&controller, &options).unwrap();
        let stalled = told.stalled.lock().unwrap().len();
        assert_eq!((stalled, told.resumed.load(Ordering::SeqCst)), (1, 1));
        let commits = controller.asked().iter().filter(|a| a.line.contains("/commit ")).count();
        assert_eq!(commits, 1, "it was sent again");
    };
    let (long, short) = (Duration::from_secs(60), Duration::from_secs(1));
    std::thread::scope(|scope| {
        scope.spawn(move || hangs("/commit ", "no progress with flushing, while it answers", long));
        // Each request is given up after a second and sent again.
        scope.spawn(move || hangs("/publish ", "no progress with publishing, while it", short));
        scope.spawn(is_slow);
    });
}

/// A controller's word for a disk that fails.
fn failed() -> Reply {
    let detail = "doing something with x.img.zst in the controller's store: Input/output error";
    let problem = format!(
        r#"{{"status":500,"code":"store_failed","title":"Internal Server Error","detail":"{detail}"}}"#
    );
    Reply::Json(500, problem)
}

#[test]
fn a_disk_that_fails_is_no_trouble_of_the_network() {
    let start = Instant::now();
    let has_failed = |error: StoreError| {
        assert_eq!(error.kind(), ErrorKind::Store, "{error}");
        let words = "Input/output error; look at the controller's disk and its log";
        assert!(error.to_string().contains(words), "{error}");
    };
    for request in ["PUT ", "PATCH ", "/commit ", "/publish "] {
        let controller = controller(move |asked| asked.line.contains(request).then(failed));
        has_failed(write(&controller, &options()).unwrap_err());
        let asked = controller.asked();
        let asked = asked.iter().filter(|asked| asked.line.contains(request)).count();
        assert_eq!(asked, 1, "{request} was sent again");
    }
    let listed = controller(|_| Some(failed()));
    has_failed(store::list(&listed.url("/v1/stores/local/files"), &options()).unwrap_err());

    // It reads on behind what came before the answer broke off.
    let image = Scripted::start(vec![7; 100_000], |asked| match asked.number {
        0 => Reply::Range,
        1 => Reply::CutAt(50_000),
        _ => failed(),
    });
    let reader = store::open_with(&image.url("/v1/stores/local/files/x.img.zst"), &options());
    let error = reader.unwrap().read_exact_at(&mut vec![0; 100_000], 0).unwrap_err();
    assert_eq!(StoreError::find(&error).unwrap().kind(), ErrorKind::Store, "{error}");
    assert!(error.to_string().contains("Input/output error; look at"), "{error}");
    assert_eq!(image.asked().len(), 3);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());

    let read_only = controller(|asked| {
        let problem = r#"{"status":409,"code":"store_read_only","title":"Conflict","detail":"x"}"#;
        asked.line.starts_with("PUT ").then(|| Reply::Json(409, problem.to_owned()))
    });
    let error = write(&read_only, &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("is mounted read-only"), "{error}");
}
