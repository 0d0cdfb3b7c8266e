//! Redirections: how far they are followed, and what does not go along.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_api::{ErrorKind, StoreAccess};
use ramdisk_agent::store::{self, Access, Options, ReadAt as _, StoreUrl};

use crate::nginx::Nginx;
use crate::options;
use crate::real_servers::pattern;
use crate::scripted::{Reply, Scripted};

fn redirect(to: &str) -> Reply {
    Reply::Status(302, vec![format!("Location: {to}")])
}

fn with_token(url: &StoreUrl) -> Options {
    let access = StoreAccess { token: Some("t0ken".to_owned().into()), ..StoreAccess::default() };
    let access = Access::new(vec![access], std::slice::from_ref(url)).unwrap();
    Options { access: Arc::new(access), ..options() }
}

#[test]
fn credentials_stay_with_their_server() {
    let data = pattern(100_000, 8);
    let other = Scripted::start(data.clone(), |_| Reply::Range);
    let to = format!("http://{}/elsewhere?X-Sig=5ecre7", other.address());
    let server = Scripted::start(data.clone(), move |asked| {
        if asked.line.starts_with("GET /a ") { redirect("b") } else { redirect(&to) }
    });
    let url = server.url("/a");
    let image = store::open_with(&url, &with_token(&url)).unwrap();
    let mut all = vec![0; data.len()];
    image.read_exact_at(&mut all, 0).unwrap();
    assert!(all == data);
    let lines: Vec<_> = server.asked().into_iter().map(|asked| asked.line).collect();
    // Followed once, and remembered.
    assert_eq!(lines, ["GET /a HTTP/1.1", "GET /b HTTP/1.1"]);
    for asked in server.asked() {
        assert_eq!(asked.field("authorization"), Some("Bearer t0ken"));
    }
    assert_eq!(other.asked().len(), 2);
    for asked in other.asked() {
        assert_eq!(asked.line, "GET /elsewhere?X-Sig=5ecre7 HTTP/1.1");
        assert_eq!(asked.field("authorization"), None);
    }
}

#[test]
fn where_they_led_to_may_expire() {
    let data = pattern(100_000, 8);
    let other = Scripted::start(data.clone(), |asked| {
        let is_new = asked.line.contains("sig=2");
        // The first URL is good for two requests.
        if is_new || asked.number < 2 { Reply::Range } else { Reply::Status(403, vec![]) }
    });
    let issued = AtomicUsize::new(0);
    let to = format!("http://{}/x", other.address());
    let server = Scripted::start(data.clone(), move |_| {
        redirect(&format!("{to}?sig={}", issued.fetch_add(1, Ordering::SeqCst) + 1))
    });
    let image = store::open_with(&server.url("/x"), &options()).unwrap();
    for _ in 0..3 {
        let mut all = vec![0; data.len()];
        image.read_exact_at(&mut all, 0).unwrap();
        assert!(all == data);
    }
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn one_that_leads_to_a_refusal_is_followed_anew_only_once() {
    let other = Scripted::start(vec![0; 10], |asked| match asked.number {
        0 => Reply::Range,
        _ => Reply::Status(403, vec![]),
    });
    let to = format!("http://{}/x", other.address());
    let server = Scripted::start(vec![0; 10], move |_| redirect(&to));
    let image = store::open_with(&server.url("/x"), &options()).unwrap();
    image.read_exact_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!((server.asked().len(), other.asked().len()), (2, 3));
}

#[test]
fn loops_and_nonsense_end() {
    for (to, kind, words) in [
        ("/x", ErrorKind::Store, "more than 5 times"),
        ("ftp://h/x?5ecre7", ErrorKind::Refused, "redirects to ftp://h/x…: that is no http://"),
        ("http://user:5ecre7@h/x", ErrorKind::Refused, "user or a password"),
        ("http://[", ErrorKind::Refused, "redirects to http://[: that is no address"),
    ] {
        let server = Scripted::start(vec![0; 10], move |_| redirect(to));
        let error = store::open_with(&server.url("/x"), &options()).err().unwrap();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(!error.to_string().contains("5ecre7"), "{error}");
        assert!(server.asked().len() <= 6);
    }
    let server = Scripted::start(vec![0; 10], |_| Reply::Status(301, vec![]));
    let error = store::open_with(&server.url("/x"), &options()).err().unwrap();
    assert!(error.to_string().contains("without saying where"), "{error}");
}

#[test]
fn from_tls_to_none_is_not_followed() {
    let server =
        Nginx::with_lines("location /down { return 302 http://127.0.0.1/x?X-Sig=5ecre7; }");
    let url: StoreUrl = server.https("down").parse().unwrap();
    let access = StoreAccess { tls_key: Some(server.pin.clone()), ..StoreAccess::default() };
    let access = Access::new(vec![access], std::slice::from_ref(&url)).unwrap();
    let options = Options { access: Arc::new(access), ..options() };
    let error = store::open_with(&url, &options).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let text = error.to_string();
    assert!(text.contains("http://127.0.0.1/x?…") && text.contains("not followed"), "{text}");
}
