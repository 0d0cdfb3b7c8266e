//! The controller's own store as the agent's code uses it: round trips, broken connections, a controller that is killed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorKind, JobSpec, StoreAccess, Work};
use fault_proxy::{Ending, Proxy, Script, Way};
use ramdisk_agent::progress::Progress;
use ramdisk_agent::store::{self, Access, Options, ReadAt, StoreError, StoreUrl};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::agents::Agent;
use crate::rig::{Served, wait, write_program};

const MIB: usize = 1 << 20;

/// Bytes that are the same nowhere.
pub fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}

/// The store, seen through an address.
pub struct Store {
    base: String,
    pub options: Options,
}

impl Store {
    /// With the administrator's token.
    pub fn at(served: &Served, server: &str) -> Self {
        Self::with(served, server, &served.token)
    }

    pub fn with(served: &Served, server: &str, token: &str) -> Self {
        let file = fs::read(served.data().join("client.json")).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let base = format!("https://{server}/v1/stores/local/files");
        let access = StoreAccess {
            prefix: base.clone(),
            token: Some(token.to_owned().into()),
            tls_key: Some(file["pin"].as_str().unwrap().to_owned()),
            ..StoreAccess::default()
        };
        let access = Arc::new(Access::new(vec![access], &[]).unwrap());
        // Long enough for a restart of the controller on a busy machine.
        let budget = Duration::from_secs(60);
        let options = Options { access, budget, connect_budget: budget, ..Options::default() };
        Self { base, options }
    }

    fn of(served: &Served) -> Self {
        Self::at(served, served.api_url.strip_prefix("https://").unwrap())
    }

    pub fn url(&self, name: &str) -> StoreUrl {
        format!("{}/{name}", self.base).parse().unwrap()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        let image = store::open_with(&self.url(name), &self.options).unwrap();
        let mut data = vec![0; usize::try_from(image.len_bytes()).unwrap()];
        image.read_exact_at(&mut data, 0).unwrap();
        data
    }

    /// Writes an image as a capture does, reads it again, publishes it. How much was sent more than once.
    fn write(&self, name: &str, data: &[u8]) -> Result<u64, StoreError> {
        let mut writer = store::create(&self.url(name), Uuid::new_v4(), &self.options)?;
        for (n, piece) in data.chunks(MIB + 4321).enumerate() {
            writer.append(piece)?;
            if n % 16 == 15 {
                writer.commit()?;
            }
        }
        assert_eq!(writer.commit()?, data.len() as u64);
        let reader = writer.reader()?;
        let mut again = vec![0; data.len()];
        reader.read_exact_at(&mut again, 0).unwrap();
        assert!(again == data, "what is read again before publishing");
        let resent = writer.resent_bytes();
        writer.publish()?;
        Ok(resent)
    }
}

/// Runs what blocks.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_there_and_back() {
    let served = Served::start_with(&[]).await;
    let store = Store::of(&served);
    blocking(move || {
        let data = content(90 * MIB + 17, 1);
        assert_eq!(store.write("a.img.zst", &data).unwrap(), 0);
        assert!(store.read("a.img.zst") == data);
        store.write("empty.img.zst", b"").unwrap();
        assert!(store.read("empty.img.zst").is_empty());

        let folder: StoreUrl = store.base.parse().unwrap();
        let listed = |options| {
            let list = store::list(&folder, options).unwrap();
            list.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
        };
        assert_eq!(listed(&store.options), ["a.img.zst", "empty.img.zst"]);
        let kind = |result: Result<u64, StoreError>| result.unwrap_err().kind();
        assert_eq!(kind(store.write("a.img.zst", b"x")), ErrorKind::Refused, "it exists");

        let odd = store::create(&store.url("a%20b"), Uuid::new_v4(), &store.options).err().unwrap();
        assert_eq!(odd.kind(), ErrorKind::Refused, "{odd}");
        assert!(odd.to_string().contains("does not take this name: it has 1 to 128"), "{odd}");

        // Of two writers the second one is refused; a writer that goes leaves nothing.
        let mut first = store::create(&store.url("b"), Uuid::new_v4(), &store.options).unwrap();
        first.append(b"half").unwrap();
        first.commit().unwrap();
        let second = store::create(&store.url("b"), Uuid::new_v4(), &store.options);
        let busy = second.err().expect("another one writes it");
        assert!(matches!(busy, StoreError::BeingWritten { .. }), "{busy}");
        assert!(busy.to_string().contains("`imprint store rm-file b --upload UPLOAD`"), "{busy}");
        assert!(listed(&store.options).contains(&"b.partial".to_owned()));
        drop(first);
        let third = store::create(&store.url("b"), Uuid::new_v4(), &store.options).unwrap();
        third.abort().unwrap();
        assert_eq!(listed(&store.options), ["a.img.zst", "empty.img.zst"]);

        store::remove(&store.url("empty.img.zst"), &store.options).unwrap();
        let gone = store::remove(&store.url("empty.img.zst"), &store.options).unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound);

        // Without the token, and with another key, nothing goes.
        let nobody = Options { access: Arc::default(), ..store.options.clone() };
        let error = store::create(&store.url("c"), Uuid::new_v4(), &nobody).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
        let wrong = StoreAccess {
            prefix: store.base.clone(),
            token: Some("0".repeat(64).into()),
            tls_key: Some("ab".repeat(32)),
            ..StoreAccess::default()
        };
        let access = Arc::new(Access::new(vec![wrong], &[]).unwrap());
        let wrong = Options { access, ..store.options.clone() };
        let error = store::create(&store.url("c"), Uuid::new_v4(), &wrong).err().unwrap();
        assert!(matches!(error, StoreError::Untrusted { .. }), "{error}");
        // Other paths of the controller are no store.
        let odd: StoreUrl =
            store.base.replace("/v1/stores/local/files", "/v1/nothing/x").parse().unwrap();
        let error = store::create(&odd, Uuid::new_v4(), &store.options).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_gone_is_told_at_once() {
    let served = Served::start_with(&[]).await;
    let store = Store::of(&served);
    let images = served.data().join("images");
    fs::rename(&images, served.data().join("gone")).unwrap();
    blocking(move || {
        let start = std::time::Instant::now();
        let folder: StoreUrl = store.base.parse().unwrap();
        for error in [
            store::list(&folder, &store.options).unwrap_err(),
            store.write("a.img.zst", b"x").unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Store, "{error}");
            let text = error.to_string();
            assert!(text.contains("in the controller's store: No such file"), "{text}");
        }
        assert!(start.elapsed() < store.options.budget / 2, "{:?}", start.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_anywhere_cost_nothing() {
    let served = Served::start_with(&[]).await;
    let server = served.api_url.strip_prefix("https://").unwrap().parse().unwrap();
    // From the handshake to the middle of the data, and in answers; always the same places.
    let mut state = 7_u64;
    let mut any = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let scripts: Vec<Script> = (0..50)
        .map(|n| {
            let ending = if n % 2 == 0 { Ending::Close } else { Ending::Reset };
            match n % 5 {
                0 => Script::ends(Way::ToServer, any(2000), ending),
                1 => Script::ends(Way::ToClient, any(1500), ending),
                _ => Script::ends(Way::ToServer, any(3 * MIB as u64), ending),
            }
        })
        .collect();
    let proxy = Proxy::start(server, scripts).unwrap();
    let store = Store::at(&served, &proxy.address().to_string());
    let (proxy, resent, sent) = blocking(move || {
        let data = content(40 * MIB, 2);
        let resent = store.write("a.img.zst", &data).unwrap();
        let sent = proxy.bytes(Way::ToServer);
        assert!(store.read("a.img.zst") == data);
        (proxy, resent, sent)
    })
    .await;
    assert!(proxy.faults() >= 12, "{} faults", proxy.faults());
    assert_eq!(resent, 0, "a controller that lives forgets nothing");
    assert!(sent < 80 * MIB as u64, "{sent} bytes went out for 40 MiB");
}

/// One break in a capture's or a restore's connections: which of them, where, and how, of two ways.
fn breaks(count: u64, endings: [Ending; 2]) -> Vec<(usize, Script)> {
    let mut state = 11_u64;
    let mut any = |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mib = MIB as u64;
    let script = |n: u64| {
        let ending = endings[usize::from(n / 4 % 2 == 1)];
        match n % 4 {
            // Heads, handshakes and the ends of pieces; data; answers; what is read.
            0 => (any(3), Script::ends(Way::ToServer, any(3000), ending)),
            1 => (0, Script::ends(Way::ToServer, any(17 * mib), ending)),
            2 => (any(3), Script::ends(Way::ToClient, any(5000), ending)),
            _ => (any(8), Script::ends(Way::ToClient, any(9 * mib), ending)),
        }
    };
    (0..count).map(script).map(|(at, script)| (usize::try_from(at).unwrap(), script)).collect()
}

/// How many faults of a kind: those of an ordinary run, or all.
fn how_many(some: u64, all: u64) -> u64 {
    let is_all = std::env::var_os("IMPRINT_FAULTS").is_some_and(|value| value == "all");
    if is_all { all } else { some }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_break_at_any_byte_of_any_connection() {
    let faults = breaks(how_many(16, 400), [Ending::Close, Ending::Reset]);
    one_fault_at_a_time("breaks", faults, Options::default().silence).await;
}

/// A hung controller, a firewall that forgets, a half-open connection: nothing says that it is over.
#[tokio::test(flavor = "multi_thread")]
async fn one_silence_at_any_byte_of_any_connection() {
    let slow = Ending::SlowClose(Duration::from_millis(300));
    let mut faults = breaks(how_many(8, 64), [Ending::Silence, slow]);
    // A black hole: what is sent there never arrives, from the first byte on.
    let holes = if how_many(0, 1) == 1 { 0..6 } else { 0..2 };
    faults.extend(holes.map(|at| (at, Script::ends(Way::ToServer, 0, Ending::Silence))));
    one_fault_at_a_time("silence", faults, Duration::from_secs(2)).await;
}

async fn one_fault_at_a_time(what: &str, faults: Vec<(usize, Script)>, silence: Duration) {
    let served = Served::start_with(&[]).await;
    let server = served.api_url.strip_prefix("https://").unwrap().parse().unwrap();
    let data = Arc::new(content(17 * MIB + 333, 6));
    let mut report = String::new();
    for (connection, script) in faults {
        let began = std::time::Instant::now();
        let scripts = std::iter::repeat_n(Script::default(), connection).chain([script]);
        let proxy = Proxy::start(server, scripts).unwrap();
        let mut store = Store::at(&served, &proxy.address().to_string());
        store.options.silence = silence;
        let data = Arc::clone(&data);
        let sent = blocking(move || {
            let resent = store.write("a.img.zst", &data).unwrap();
            assert_eq!(resent, 0);
            let sent = proxy.bytes(Way::ToServer);
            assert!(store.read("a.img.zst") == **data, "bit for bit");
            store::remove(&store.url("a.img.zst"), &store.options).unwrap();
            sent
        })
        .await;
        // Only what was on its way when a connection broke goes out twice: a request.
        assert!(sent < (17 + 8 + 1) * MIB as u64, "{sent} bytes for {script:?}");
        let ms = began.elapsed().as_millis();
        report += &format!("controller\t{what}\t{connection} {script:?}\tsuccess\t{ms}\n");
    }
    if let Some(folder) = std::env::var_os("IMPRINT_FAULT_REPORT") {
        fs::write(Path::new(&folder).join(format!("controller-{what}")), report).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_again_and_again() {
    let mut served = Served::start_with(&[]).await;
    let server = served.api_url.strip_prefix("https://").unwrap().parse().unwrap();
    let proxy = Arc::new(Proxy::start(server, []).unwrap());
    let store = Store::at(&served, &proxy.address().to_string());
    let writing = tokio::task::spawn_blocking(move || {
        let data = content(60 * MIB, 3);
        let resent = store.write("a.img.zst", &data).unwrap();
        assert!(store.read("a.img.zst") == data);
        resent
    });
    let mut kills = 0;
    for at in [3, 9, 20, 31, 55, 70] {
        wait("so much went out", async || {
            (writing.is_finished() || proxy.bytes(Way::ToServer) > at * MIB as u64).then_some(())
        })
        .await;
        if writing.is_finished() {
            break;
        }
        served.restart_at_its_port().await;
        kills += 1;
    }
    let resent = writing.await.unwrap();
    assert!(kills >= 4, "{kills}");
    assert!(resent <= kills * 64 * MIB as u64, "{resent}");
    let names: Vec<_> = fs::read_dir(served.data().join("images")).unwrap().collect();
    assert_eq!(names.len(), 1);
}

/// The agent's worker, `imprint-agent run -`, in a process of its own: this test program, started once more.
#[test]
fn worker() {
    if std::env::var_os("IMPRINT_TEST_WORKER").is_some() {
        ramdisk_agent::run::run_stdin(&Arc::new(Progress::default())).unwrap();
    }
}

/// The agent's command line, in a process of its own.
#[test]
fn agent() {
    use clap::Parser;

    if let Ok(args) = std::env::var("IMPRINT_TEST_AGENT") {
        let args = std::iter::once("imprint-agent").chain(args.split_whitespace());
        let code = ramdisk_agent::cli::main(&ramdisk_agent::cli::Cli::parse_from(args));
        std::process::exit(code.into());
    }
}

/// A program that is `imprint-agent`, for `--agent`: this test program, without what its harness says. Its command line is noted.
pub fn agent_program(folder: &Path) -> PathBuf {
    let path = folder.join("imprint-agent");
    let own = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ > {noted}\nPATH=/usr/bin:/bin\nIMPRINT_TEST_AGENT=\"$*\" {own} --exact agent_store::agent --nocapture |\n\
         sed -e 's/^test .* \\.\\.\\. *//' | sed -n '/^{{/,/^}}/p'\n",
        noted = folder.join("noted").display(),
        own = own.display(),
    );
    write_program(&path, &text);
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_are_tried_out() {
    let tools = tempfile::tempdir().unwrap();
    let program = agent_program(tools.path());
    let authority = tools.path().join("authority.pem");
    let certified = rcgen::generate_simple_self_signed(vec!["authority".to_owned()]).unwrap();
    fs::write(&authority, certified.cert.pem()).unwrap();
    let environment = [("IMPRINT_CA_FILE", authority.as_path()), ("HOME", tools.path())];
    let args = ["--agent", program.to_str().unwrap()];
    let served = Served::start_in(&args, &environment).await;
    let (status, report) = served.post("/v1/stores/local/check", json!({})).await;
    assert_eq!((status, &report["failure"]), (200, &Value::Null), "{report}");
    let noted = fs::read(tools.path().join("noted")).unwrap();
    let noted = String::from_utf8_lossy(&noted);
    let handed_on = format!("\0IMPRINT_CA_FILE={}\0", authority.display());
    assert!(noted.contains(&handed_on) && !noted.contains("HOME="), "{noted}");
    assert!(report["write_bytes_per_second"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["done"].as_array().unwrap().len(), 6, "{report}");
    assert_eq!(served.get("/v1/stores/local/files").await, json!([]), "nothing is left");
    assert_eq!(served.get("/v1/tokens").await.as_array().unwrap().len(), 1, "no token either");

    // A server that is there and wants something else, and one that is not.
    let password = "canary-99d0-check";
    let other = served.api_url.clone();
    let web = json!({"name": "web", "url": format!("{other}/v1/stores"), "user": "u", "password": password});
    assert_eq!(served.post("/v1/stores", web).await.0, 201);
    let (status, report) = served.post("/v1/stores/web/check", json!({})).await;
    assert_eq!((status, &report["failed_at"]), (200, &json!("making a file")), "{report}");
    assert_eq!(report["failure"]["kind"], "refused", "its key is nobody's: {report}");
    let noted = fs::read(tools.path().join("noted")).unwrap();
    assert!(!noted.windows(password.len()).any(|window| window == password.as_bytes()));
    assert!(!report.to_string().contains(password));
    let output = served.imprint_beside(&["store", "check", "local"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("ok       it is not overwritten"), "{text}");
    assert!(text.starts_with("store    HTTPS, protected: by TLS\n"), "{text}");
    let output = served.imprint_beside(&["store", "check", "web"]).await;
    assert_eq!(output.status.code(), Some(1));

    let path = json!({"name": "path", "url": "/srv/images"});
    assert_eq!(served.post("/v1/stores", path).await.0, 201);
    let (status, problem) = served.post("/v1/stores/path/check", json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_checkable")));
    let signed = json!({"name": "signed", "url": "https://h/images?X-Sig=5ecre7"});
    assert_eq!(served.post("/v1/stores", signed).await.0, 201);
    let (status, problem) = served.post("/v1/stores/signed/check", json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_checkable")), "not in a process list");
    fs::remove_file(&program).unwrap();
    let (status, problem) = served.post("/v1/stores/local/check", json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("no_agent_program")));
    write_program(&program, "#!/bin/sh\necho odd >&2\n");
    let (status, problem) = served.post("/v1/stores/local/check", json!({})).await;
    assert_eq!((status, &problem["code"]), (502, &json!("check_failed")), "{problem}");
    assert_eq!(served.get("/v1/tokens").await.as_array().unwrap().len(), 1);
}

/// The job that an agent is told to do.
pub fn job_of(work: Value) -> JobSpec {
    match serde_json::from_value(work).unwrap() {
        Work::Job(spec) => *spec,
        other => panic!("{other:?} is no job"),
    }
}

/// Does a job as it was handed out, on this disk; its outcome.
pub fn work(job: &JobSpec) -> Value {
    outcome(worker_on(job))
}

/// The worker, which has its job.
pub fn worker_on(job: &JobSpec) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "agent_store::worker", "--nocapture"])
        .env("IMPRINT_TEST_WORKER", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_vec(job).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    child
}

/// How it ended.
fn outcome(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let outcome = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let outcome = outcome.filter_map(|line| line.get("outcome").cloned()).next_back();
    outcome.unwrap_or_else(|| panic!("no outcome: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_through_jobs_and_nothing_but_the_controller() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    let (source, target) = (served.path("source.img"), served.path("target.img"));
    // Half of it data, half of it zeros, as a disk without a table.
    let mut disk = content(20 * MIB, 4);
    disk.resize(40 * MIB, 0);
    fs::write(&source, &disk).unwrap();
    fs::write(&target, content(40 * MIB, 5)).unwrap();
    for (boot, action, path) in [(1, "capture", &source), (2, "restore", &target)] {
        let wish = json!({"action": action, "host": "node7", "image": "debian", "disk": path});
        let (status, job) = served.post("/v1/jobs", wish).await;
        assert_eq!(status, 202, "{job}");
        let job = job["id"].as_i64().unwrap();
        served.wait_state(job, "booting").await;
        let agent = Agent::check_in(&served, boot).await;
        let spec = job_of(agent.work().await);
        let outcome = blocking(move || work(&spec)).await;
        assert_eq!(outcome["result"], "succeeded", "{outcome}");
        let (status, said) = agent.outcome(job, outcome).await;
        assert_eq!(status, 200, "{said}");
        agent.work().await;
        served.wait_state(job, "succeeded").await;
    }
    assert!(fs::read(&target).unwrap() == disk, "bit for bit");
    // Stock zstd reads what the store serves.
    let image = served.data().join("images/debian.img.zst");
    let output = Command::new("zstd").arg("-dc").arg(&image).output().expect("the package zstd");
    assert!(output.stdout == disk);
}
