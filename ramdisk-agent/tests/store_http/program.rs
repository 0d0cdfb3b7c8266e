//! The built program, from a web server to the disk.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::nginx::{Certificate, GOOD, Nginx, Setup};
use crate::real_servers::pattern;

const QUERY: &str = "X-Amz-Signature=5ecre7";

fn agent(args: &[&str], variables: &[(&str, &Path)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(args)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What it printed, on both streams; no secret is in it.
fn text(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("5ecre7"), "{text}");
    text
}

fn done(args: &[&str], variables: &[(&str, &Path)]) -> String {
    let output = agent(args, variables);
    let text = text(&output);
    assert!(output.status.success(), "{args:?}: {text}");
    text
}

/// A disk with nothing on it that is known, so that all of it is kept.
fn disk(path: &Path, len: usize, seed: u64) -> Vec<u8> {
    let mut data = pattern(len, seed);
    data[1 << 20..3 << 20].fill(0);
    std::fs::write(path, &data).unwrap();
    data
}

#[test]
fn restore_verify_inspect_and_convert_from_a_presigned_url_over_tls() {
    let server = Nginx::start();
    let path = |name: &str| server.path(name).to_str().unwrap().to_owned();
    let data = disk(&server.path("disk"), 40 << 20, 9);
    let image = server.served("a.img.zst");
    done(&["capture", &path("disk"), image.to_str().unwrap()], &[]);
    let url = &format!("{}?{QUERY}", server.https("a.img.zst"));
    let ca = server.path("ca.pem");
    let variables = &[("IMPRINT_CA_FILE", ca.as_path())];
    std::fs::write(server.path("target"), pattern(40 << 20, 10)).unwrap();

    let planned = done(&["plan", "restore", url, &path("target")], variables);
    assert!(planned.contains("40"), "{planned}");
    let shown = done(&["restore", url, &path("target"), "--yes", "--progress", "json"], variables);
    assert!(shown.contains("verifying") || shown.contains("writing"), "{shown}");
    assert!(std::fs::read(server.path("target")).unwrap() == data);
    done(&["verify", "--deep", url], variables);
    done(&["inspect", "--json", url], variables);
    done(&["convert", url, &path("raw.img")], variables);
    assert!(std::fs::read(server.path("raw.img")).unwrap() == data);
    assert!(server.access_log().contains(QUERY), "it never asked with the query");

    // A foreign image: the raw disk itself.
    server.put("raw.img", &data);
    std::fs::write(server.path("target"), pattern(40 << 20, 11)).unwrap();
    done(
        &["restore", &format!("{}?{QUERY}", server.http("raw.img")), &path("target"), "--yes"],
        &[],
    );
    assert!(std::fs::read(server.path("target")).unwrap() == data);
}

#[test]
fn a_delta_with_its_base_beside_it() {
    let server = Nginx::start();
    let path = |name: &str| server.path(name).to_str().unwrap().to_owned();
    let served = |name: &str| server.served(name).to_str().unwrap().to_owned();
    let mut data = disk(&server.path("disk"), 24 << 20, 12);
    done(&["capture", &path("disk"), &served("a.img.zst")], &[]);
    data[9 << 20..(9 << 20) + 5000].fill(7);
    std::fs::write(server.path("disk"), &data).unwrap();
    done(&["capture", &path("disk"), &served("b.imgd"), "--base", &served("a.img.zst")], &[]);
    std::fs::write(server.path("target"), pattern(24 << 20, 13)).unwrap();
    done(&["restore", &server.http("b.imgd"), &path("target"), "--yes"], &[]);
    assert!(std::fs::read(server.path("target")).unwrap() == data);
    done(&["flatten", &server.http("b.imgd"), &path("flat.img.zst")], &[]);
    done(&["verify", "--deep", &path("flat.img.zst")], &[]);
    // Under another name it cannot be looked for: folders of web servers are not listed.
    std::fs::rename(served("a.img.zst"), served("c.img.zst")).unwrap();
    let output = agent(&["verify", &server.http("b.imgd")], &[]);
    let words =
        "is not beside it by that name, and what else is there cannot be listed; give --base";
    assert!(text(&output).contains(words), "{}", text(&output));
    done(&["verify", &server.http("b.imgd"), "--base", &server.http("c.img.zst")], &[]);
}

#[test]
fn servers_that_are_not_trusted_are_named_with_the_reason() {
    let cases: [(Certificate, bool, &str); 4] = [
        (GOOD, false, "IMPRINT_CA_FILE"),
        (Certificate { has_expired: true, ..GOOD }, true, "expired: it was good until 2020-01-02"),
        (Certificate { name: "elsewhere.example", ..GOOD }, true, "for another name"),
        (GOOD, true, ""),
    ];
    for (certificate, is_known, words) in cases {
        let server = Nginx::with(Setup { certificate, ..Setup::default() });
        server.put("x", b"no image");
        let ca = server.path("ca.pem");
        let variables: &[(&str, &Path)] =
            if is_known { &[("SSL_CERT_FILE", ca.as_path())] } else { &[] };
        let url = format!("{}?{QUERY}", server.https("x"));
        let output = agent(&["inspect", &url], variables);
        let text = text(&output);
        assert!(!output.status.success());
        if words.is_empty() {
            assert!(!text.contains("trusted"), "{text}");
        } else {
            assert!(text.contains(words) && text.contains("[refused]"), "no {words:?} in {text}");
        }
    }
    let server = Nginx::start();
    for (content, words) in [("nonsense", "PEM"), ("", "PEM")] {
        std::fs::write(server.path("bad.pem"), content).unwrap();
        let bad = server.path("bad.pem");
        let output = agent(&["inspect", &server.https("x")], &[("IMPRINT_CA_FILE", bad.as_path())]);
        assert!(text(&output).contains(words), "{}", text(&output));
    }
}

#[test]
fn python_s_own_server_knows_no_ranges_and_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.img.zst"), pattern(100_000, 1)).unwrap();
    let program = "import http.server, functools, sys
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()";
    let mut python = Command::new("python3")
        .args(["-c", program])
        .arg(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = python.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    let output = agent(&["verify", &format!("http://127.0.0.1:{}/a.img.zst", line.trim())], &[]);
    python.kill().unwrap();
    python.wait().unwrap();
    let text = text(&output);
    assert!(text.contains("[refused]") && text.contains("only the whole file"), "{text}");
}

#[test]
fn secrets_of_refused_urls_do_not_show() {
    for url in [
        "https://user:5ecre7@h/x",
        "https://h:0/x?5ecre7",
        "htps://h/x?5ecre7",
        "nfs://h/x?password=5ecre7",
        "http://no-such-host.invalid/x?5ecre7",
    ] {
        for verb in [&["verify"][..], &["inspect"], &["ls"], &["restore"]] {
            let mut args = verb.to_vec();
            args.push(url);
            if verb == ["restore"] {
                args.extend(["/nonexistent", "--yes"]);
            }
            let output = agent(&args, &[]);
            assert!(!output.status.success());
            assert!(!text(&output).is_empty());
        }
    }
    // Wherever a URL may stand.
    for url in ["smb://user:5ecre7@nas/images/x.img.zst", "http://user:5ecre7@h/x.img.zst"] {
        for args in [
            &["capture", "/dev/null", url][..],
            &["capture", "/dev/null", "/nonexistent/x.img.zst", "--base", url],
            &["plan", "restore", url, "/nonexistent"],
            &["restore", "/nonexistent", "/nonexistent", "--yes", "--also", url],
            &["verify", "/nonexistent", "--base", url],
            &["copy", url, "/nonexistent/x.img.zst"],
            &["copy", "/nonexistent", url],
            &["convert", "/nonexistent", url],
            &["flatten", url, "/nonexistent/x.img.zst"],
            &["rm", url],
            &["store-check", url],
        ] {
            let output = agent(args, &[]);
            assert!(!output.status.success(), "{args:?}");
            assert!(!text(&output).is_empty());
        }
    }
}

#[test]
fn a_server_that_hangs_is_told_of_before_anything_is_open() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs = format!("http://{}/x.img.zst", silent.local_addr().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("disk");
    std::fs::File::create(&target).unwrap().set_len(8 << 20).unwrap();
    let missing = folder.path().join("missing.img.zst");
    let (target, missing) = (target.to_str().unwrap(), missing.to_str().unwrap());
    let ways: [&[&str]; 3] = [
        &["verify", &hangs],
        &["verify", &hangs, "--also", missing],
        &["restore", "--yes", &hangs, target],
    ];
    std::thread::scope(|scope| {
        for way in ways {
            scope.spawn(move || {
                let mut agent = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
                    .args(["--progress", "json"])
                    .args(way)
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let began = Instant::now();
                let lines = BufReader::new(agent.stderr.take().unwrap()).lines();
                let mut lines = lines.map(Result::unwrap);
                let told = lines.find(|line| line.contains("does not answer"));
                let took = began.elapsed();
                agent.kill().unwrap();
                agent.wait().unwrap();
                let told = told.unwrap_or_else(|| panic!("{way:?} says nothing"));
                assert!(told.contains("\"stalled\":\"http server 127.0.0.1"), "{told}");
                assert!(took < Duration::from_secs(30), "{way:?}: after {took:?}");
            });
        }
    });
}

#[test]
fn a_check_of_a_store_that_is_ended_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_imprint-agent"))
        .args(["store-check", "--probe", "4096"])
        .arg(folder.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let is_empty = || std::fs::read_dir(folder.path()).unwrap().next().is_none();
    let began = Instant::now();
    while is_empty() {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = agent.wait().unwrap();
    assert!(is_empty(), "what it wrote is still there");
    assert_eq!(status.code(), Some(11), "{status}");
}
