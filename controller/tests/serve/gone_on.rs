//! Captures into the controller's own store that are cut off and go on: who may, from where, and what becomes of who wrote before.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fault_proxy::{Proxy, Way};
use futures_util::future::join_all;
use ramdisk_agent::store::{self, Options, ReadAt, StoreError};
use reqwest::Method;
use reqwest::header::CONTENT_LENGTH;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use crate::agent_store::{Store, blocking, content, job_of, work, worker_on};
use crate::agents::Agent;
use crate::files::{Client, ID, OTHER_ID, fed_body, of_job, received};
use crate::rig::{Served, answer, wait};

const FILE: &str = "debian.img.zst";
const PARTIAL: &str = "images/debian.img.zst.partial";
/// A page of an index is of 256 spans of 4 MiB; a disk with something in each of these has more.
const SPANS: u64 = 480;
const PAGE: u64 = 256 << 22;
/// The agent sends pieces of 8 MiB: the third one has the page, the last one ends with the capture, which is long after at this limit.
const KILLED_AT: u64 = 24 << 20;
const LIMIT: &str = "16M";

impl Client<'_> {
    /// What can be gone on with.
    async fn begun(&self, file: &str) -> (u16, Value) {
        let path = format!("/{file}/uploads");
        answer(self.request(Method::GET, &path).send().await.unwrap()).await
    }

    async fn go_on(&self, file: &str, old: &str, next: &str, len: usize) -> (u16, Value) {
        let path = format!("/{file}/uploads/{old}/go-on/{next}");
        let request = self.request(Method::POST, &path).header("upload-offset", len.to_string());
        answer(request.send().await.unwrap()).await
    }
}

/// The agent of a capture of `image` on this machine, at work; and what it was handed out.
async fn capturing<'a>(served: &'a Served, host: &str, mac: &str, image: &str) -> Agent<'a> {
    let host_of = json!({"name": host, "macs": [mac]});
    assert_eq!(served.post("/v1/hosts", host_of).await.0, 201);
    let wish = json!({"action": "capture", "host": host, "image": image});
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    served.wait_state(job["id"].as_i64().unwrap(), "booting").await;
    Agent::check_in_as(served, 1, mac).await
}

async fn capturing_debian(served: &Served) -> Agent<'_> {
    capturing(served, "node7", crate::rig::MAC, "debian").await
}

#[tokio::test]
async fn what_an_agent_left_is_gone_on_with_by_its_job_only() {
    let served = Served::start_with(&[]).await;
    let person = Client::person(&served);
    let agent = capturing_debian(&served).await;
    let other = capturing(&served, "node8", "52:54:00:77:00:02", "other").await;
    let client = of_job(&served, &agent.work().await);
    let stranger = of_job(&served, &other.work().await);
    let data = content(3_000_000, 1);
    assert_eq!(client.begun(FILE).await, (200, Value::Null));
    client.upload(Method::PUT, FILE, ID, "").await;
    let (_, view) = client.append(FILE, ID, 0, &data[..2_500_000]).await;
    assert_eq!(received(&view), (2_500_000, 0));

    // The next hand-out's agent finds all that came, by then durable.
    let client = of_job(&served, &agent.work().await);
    let (status, view) = client.begun(FILE).await;
    assert_eq!((status, received(&view)), (200, (2_500_000, 2_500_000)), "{view}");
    assert_eq!(view["upload_id"], ID);
    assert_eq!(client.bytes("debian.img.zst.partial").await, data[..2_500_000]);
    // Nobody else sees it, or gets hold of it.
    assert_eq!(person.begun(FILE).await.1["code"], "being_written");
    assert_eq!(person.go_on(FILE, ID, OTHER_ID, 0).await.1["code"], "being_written");
    for (status, problem) in
        [stranger.begun(FILE).await, stranger.go_on(FILE, ID, OTHER_ID, 0).await]
    {
        assert_eq!((status, &problem["code"]), (403, &json!("wrong_file")));
    }
    // More than there is, of nothing, and nonsense.
    let (status, problem) = client.go_on(FILE, ID, OTHER_ID, 2_500_001).await;
    assert_eq!((status, &problem["code"]), (409, &json!("wrong_offset")), "{problem}");
    let nobody = Uuid::new_v4().to_string();
    assert_eq!(client.go_on(FILE, &nobody, OTHER_ID, 0).await.1["code"], "no_upload");
    assert_eq!(client.go_on(FILE, ID, "next", 0).await.0, 422);
    let path = format!("/{FILE}/uploads/{ID}/go-on/{OTHER_ID}");
    let nowhere = answer(client.request(Method::POST, &path).send().await.unwrap()).await;
    assert_eq!(nowhere.0, 422, "without Upload-Offset");
    assert_eq!(received(&client.upload(Method::GET, FILE, ID, "").await.1).0, 2_500_000);

    for _ in 0..2 {
        let (status, view) = client.go_on(FILE, ID, OTHER_ID, 2_000_000).await;
        assert_eq!((status, received(&view)), (200, (2_000_000, 2_000_000)), "{view}");
        assert_eq!(view["upload_id"], OTHER_ID);
    }
    assert_eq!(fs::metadata(served.data().join(PARTIAL)).unwrap().len(), 2_000_000);
    // Whoever wrote it before comes too late with whatever it is.
    for offset in [0, 2_000_000, 2_500_000] {
        let late = client.append(FILE, ID, offset, b"late").await;
        assert_eq!((late.0, &late.1["code"]), (404, &json!("no_upload")));
    }
    for (method, what) in [
        (Method::POST, "/commit"),
        (Method::POST, "/publish"),
        (Method::GET, ""),
        (Method::DELETE, ""),
    ] {
        let (status, problem) = client.upload(method, FILE, ID, what).await;
        assert_eq!((status, &problem["code"]), (404, &json!("no_upload")), "{what}");
    }
    assert_eq!(received(&client.upload(Method::GET, FILE, OTHER_ID, "").await.1).0, 2_000_000);
    assert_eq!(client.append(FILE, OTHER_ID, 2_000_000, &data[2_000_000..]).await.0, 200);
    assert_eq!(client.upload(Method::POST, FILE, OTHER_ID, "/publish").await.0, 200);
    assert!(fs::read(served.data().join("images").join(FILE)).unwrap() == data);
    let (status, problem) = client.begun(FILE).await;
    assert_eq!((status, &problem["code"]), (409, &json!("file_exists")), "it is published");
    assert_eq!(client.go_on(FILE, OTHER_ID, ID, 0).await.1["code"], "no_upload");
}

#[tokio::test]
async fn of_several_who_go_on_one_does() {
    let served = Served::start_with(&[]).await;
    let agent = capturing_debian(&served).await;
    let client = of_job(&served, &agent.work().await);
    let data = content(1_000_000, 2);
    client.upload(Method::PUT, FILE, ID, "").await;
    client.append(FILE, ID, 0, &data).await;
    assert_eq!(client.begun(FILE).await.0, 200);
    let ids: Vec<String> = (0..12).map(|_| Uuid::new_v4().to_string()).collect();
    let asked = ids.iter().enumerate().map(|(n, id)| client.go_on(FILE, ID, id, 900_000 + n));
    let answers = join_all(asked).await;
    let won: Vec<usize> = (0..12).filter(|n| answers[*n].0 == 200).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    let lost = answers.iter().filter(|(status, _)| *status != 200);
    assert!(lost.into_iter().all(|(_, problem)| problem["code"] == "no_upload"), "{answers:?}");
    let (winner, len) = (&ids[won[0]], 900_000 + won[0]);
    let (_, view) = client.upload(Method::GET, FILE, winner, "").await;
    assert_eq!(received(&view), (len as u64, len as u64));
    assert_eq!(client.append(FILE, winner, len, &data[len..]).await.0, 200);
    assert_eq!(client.upload(Method::POST, FILE, winner, "/publish").await.0, 200);
    assert!(client.bytes(FILE).await == data);
}

/// A request that hangs in the middle of its data when the other one goes on, and brings more of them later.
#[tokio::test]
async fn a_write_that_is_under_way_does_not_come_behind_the_cut() {
    let served = Served::start_with(&[]).await;
    let agent = capturing_debian(&served).await;
    let client = of_job(&served, &agent.work().await);
    let data = content(8_000_000, 3);
    client.upload(Method::PUT, FILE, ID, "").await;
    let (mut feed, body) = fed_body();
    let hanging = client
        .request(Method::PATCH, &format!("/{FILE}/uploads/{ID}"))
        .header("upload-offset", "0")
        .header(CONTENT_LENGTH, data.len().to_string())
        .body(body)
        .send();
    let hanging = async { answer(hanging.await.unwrap()).await };
    let others = async {
        feed.write_all(&data[..4_000_000]).await.unwrap();
        wait("the first request writes", async || {
            let (_, view) = client.upload(Method::GET, FILE, ID, "").await;
            (received(&view).0 > 2_000_000).then_some(())
        })
        .await;
        let (_, view) = client.begun(FILE).await;
        assert!(received(&view).1 > 2_000_000, "{view}");
        let (status, view) = client.go_on(FILE, ID, OTHER_ID, 1_234_567).await;
        assert_eq!((status, received(&view)), (200, (1_234_567, 1_234_567)), "{view}");
        // What it still brings goes nowhere. Its client may have the answer by now, and bring no more.
        let _ = feed.write_all(&data[4_000_000..]).await;
        drop(feed);
    };
    let ((status, problem), ()) = tokio::join!(hanging, others);
    let code = problem["code"].as_str().unwrap();
    assert!([(409, "superseded"), (404, "no_upload")].contains(&(status, code)), "{problem}");
    assert_eq!(fs::metadata(served.data().join(PARTIAL)).unwrap().len(), 1_234_567);
    client.append(FILE, OTHER_ID, 1_234_567, &data[1_234_567..]).await;
    assert_eq!(client.upload(Method::POST, FILE, OTHER_ID, "/publish").await.0, 200);
    assert!(client.bytes(FILE).await == data);
}

/// A late request of the writer before must not open its upload again in the place of the one that counts.
#[tokio::test]
async fn late_requests_do_not_bring_a_replaced_upload_back() {
    let served = Served::start_with(&[]).await;
    let agent = capturing_debian(&served).await;
    let client = of_job(&served, &agent.work().await);
    let (before, data) = (content(300_000, 4), content(200_000, 5));
    for round in 0..12 {
        let [old, new] = [(); 2].map(|()| Uuid::new_v4().to_string());
        assert_eq!(client.upload(Method::PUT, FILE, &old, "").await.0, 200);
        client.append(FILE, &old, 0, &before).await;
        client.upload(Method::POST, FILE, &old, "/commit").await;
        let late = join_all((0..16).map(|n| {
            let (client, old) = (&client, &old);
            async move {
                match n % 2 {
                    0 => client.upload(Method::GET, FILE, old, "").await,
                    _ => client.append(FILE, old, 300_000, b"late").await,
                }
            }
        }));
        let replaced = async {
            assert_eq!(client.upload(Method::PUT, FILE, &new, "").await.0, 200);
            let (status, view) = client.append(FILE, &new, 0, &data).await;
            assert_eq!((status, received(&view).0), (200, 200_000), "round {round}: {view}");
            client.upload(Method::POST, FILE, &new, "/commit").await
        };
        let (late, (status, view)) = tokio::join!(late, replaced);
        assert_eq!((status, received(&view)), (200, (200_000, 200_000)), "round {round}: {view}");
        assert!(late.iter().all(|(status, _)| [200, 404, 409].contains(status)), "{late:?}");
        assert!(client.bytes("debian.img.zst.partial").await == data, "round {round}");
    }
}

#[tokio::test]
async fn what_is_gone_or_cut_off_by_hand_is_not_gone_on_with() {
    let mut served = Served::start_with(&[]).await;
    let agent = capturing_debian(&served).await;
    let work = agent.work().await;
    let credential = agent.credential.clone();
    let data = content(1_000_000, 6);
    {
        let client = of_job(&served, &work);
        client.upload(Method::PUT, FILE, ID, "").await;
        client.append(FILE, ID, 0, &data[..600_000]).await;
        client.upload(Method::POST, FILE, ID, "/commit").await;
        client.append(FILE, ID, 600_000, &data[600_000..]).await;
    }
    let partial = served.data().join(PARTIAL);
    // What was not flushed when the controller was killed is not believed.
    served.restart_at_its_port().await;
    assert_eq!(fs::metadata(&partial).unwrap().len(), 1_000_000);
    let (_, view) = of_job(&served, &work).begun(FILE).await;
    assert_eq!(received(&view), (600_000, 600_000), "{view}");

    for (len, next) in [(Some(599_999), OTHER_ID), (None, ID)] {
        served.restart_at_its_port().await;
        match len {
            Some(len) => fs::File::options().write(true).open(&partial).unwrap().set_len(len),
            None => fs::remove_file(&partial),
        }
        .unwrap();
        let client = of_job(&served, &work);
        assert_eq!(client.begun(FILE).await, (200, Value::Null));
        let current = if next == ID { OTHER_ID } else { ID };
        for _ in 0..2 {
            let (status, problem) = client.go_on(FILE, current, next, 600_000).await;
            assert_eq!((status, &problem["code"]), (409, &json!("upload_broken")), "{problem}");
        }
        let (status, problem) = client.append(FILE, current, 0, b"x").await;
        assert_eq!((status, &problem["code"]), (409, &json!("upload_broken")), "{problem}");
        // It begins anew.
        let id = Uuid::new_v4().to_string();
        let (status, view) = client.upload(Method::PUT, FILE, &id, "").await;
        assert_eq!((status, received(&view)), (200, (0, 0)), "{view}");
        client.append(FILE, &id, 0, &data[..600_000]).await;
        client.upload(Method::POST, FILE, &id, "/commit").await;
        client.go_on(FILE, &id, next, 600_000).await;
    }
    // What is left of a job that is over is nobody's, and goes with it.
    let agent = Agent::with(&served, credential);
    let job: i64 = work["id"].as_str().unwrap().parse().unwrap();
    let failed = json!({"result": "failed", "kind": "disk", "message": "gone"});
    assert_eq!(agent.outcome(job, failed).await.0, 200);
    served.wait_state(job, "failed").await;
    wait("what was left is removed", async || (!partial.exists()).then_some(())).await;
    assert_eq!(Client::person(&served).begun(FILE).await, (200, Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_goes_on_behind_any_byte() {
    let served = Served::start_with(&[]).await;
    let agent = capturing_debian(&served).await;
    let work = agent.work().await;
    let server = served.api_url.strip_prefix("https://").unwrap();
    let store = Store::with(&served, server, work["access"][0]["token"].as_str().unwrap());
    let partial = served.data().join(PARTIAL);
    let url = store.url(FILE);
    blocking(move || {
        let options: &Options = &store.options;
        let data = content((12 << 20) + 321, 7);
        assert!(store::left_over(&url, options).unwrap().is_none());
        let mut writer = store::create(&url, Uuid::new_v4(), options).unwrap();
        writer.append(&data).unwrap();
        writer.commit().unwrap();
        writer.keep().unwrap();
        for cut in [data.len(), 5_345_678, 1, 0] {
            let left = store::left_over(&url, options).unwrap().unwrap();
            let reader = left.reader().unwrap();
            let mut back = vec![0; usize::try_from(reader.len_bytes()).unwrap()];
            reader.read_exact_at(&mut back, 0).unwrap();
            assert!(back == data);
            let mut writer = left.go_on(cut as u64).unwrap();
            assert_eq!(writer.len(), cut as u64);
            writer.append(&data[cut..]).unwrap();
            assert_eq!(writer.commit().unwrap(), data.len() as u64);
            writer.reader().unwrap().read_exact_at(&mut back, 0).unwrap();
            assert!(back == data, "{cut}");
            assert_eq!(writer.resent_bytes(), 0);
            writer.keep().unwrap();
        }
        assert!(fs::read(&partial).unwrap() == data);

        // Two found it; the second one to go on is told so, and the first one's image is whole.
        let [first, second] = [(); 2].map(|()| store::left_over(&url, options).unwrap().unwrap());
        let mut first = first.go_on(4_000_000).unwrap();
        let late = second.go_on(data.len() as u64).err().unwrap();
        assert!(matches!(late, StoreError::Lost { .. }), "{late}");
        first.append(&data[4_000_000..]).unwrap();
        // A writer that is replaced learns it when it next writes, and its going takes nothing with it.
        let third = store::left_over(&url, options).unwrap().unwrap();
        let mut third = third.go_on(4_000_000).unwrap();
        // An answer may come in while it still appends, or not before it commits.
        let replaced = first.append(&data).and_then(|()| first.commit()).unwrap_err();
        assert!(matches!(replaced, StoreError::Lost { .. }), "{replaced}");
        drop(first);
        third.append(&data[4_000_000..]).unwrap();
        third.publish().unwrap();
        assert!(fs::read(partial.with_extension("")).unwrap() == data);
        let taken = store::left_over(&url, options).err().unwrap();
        assert!(matches!(taken, StoreError::Exists { .. }), "{taken}");
    })
    .await;
}

/// A disk with something in every span, and without a filesystem, so that all of it counts.
fn disk(path: &Path) {
    let file = fs::File::create(path).unwrap();
    file.set_len(SPANS << 22).unwrap();
    for span in 0..SPANS {
        file.write_all_at(&content(64 << 10, span), span << 22).unwrap();
    }
}

/// Stock zstd makes this disk of the image.
fn is_of(image: &Path, disk: &Path) {
    let compare = format!("zstd -dcq {} | cmp - {}", image.display(), disk.display());
    assert!(Command::new("sh").args(["-c", &compare]).status().unwrap().success());
}

/// The agent's command line: this test program, started once more.
fn agent(words: &str) -> Command {
    let mut agent = Command::new(std::env::current_exe().unwrap());
    agent.args(["--exact", "agent_store::agent", "--nocapture"]);
    agent.env("IMPRINT_TEST_AGENT", words).stdin(Stdio::null());
    agent
}

fn summary(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{said}");
    let json = &text[text.find('{').unwrap()..];
    serde_json::Deserializer::from_str(json).into_iter().next().unwrap().unwrap()
}

fn bytes_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// Ends a capture as `kill -9` does once so much of its image is in the store.
fn kill_with_most_stored(capture: &mut Child, partial: &Path) {
    let until = Instant::now() + Duration::from_secs(240);
    while bytes_of(partial) < KILLED_AT {
        assert!(capture.try_wait().unwrap().is_none(), "it ended before");
        assert!(Instant::now() < until, "{} bytes", bytes_of(partial));
        std::thread::sleep(Duration::from_millis(1));
    }
    capture.kill().unwrap();
    capture.wait().unwrap();
}

/// By hand: killed with nearly all of the image stored, then gone on with from the last page.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_capture_goes_on_by_hand() {
    let served = Served::start_with(&[]).await;
    let [disk_path, credentials] = ["disk", "credentials"].map(|name| served.path(name));
    disk(&disk_path);
    let file = fs::read(served.data().join("client.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let (token, pin) = (file["token"].as_str().unwrap(), file["pin"].as_str().unwrap());
    fs::write(&credentials, format!("token={token}\ntls_key={pin}\n")).unwrap();
    let server = served.api_url.strip_prefix("https://").unwrap().parse().unwrap();
    let proxy = Proxy::start(server, []).unwrap();
    let url = |name: &str| {
        format!(
            "https://{}/v1/stores/local/files/{name} --credentials {} ",
            proxy.address(),
            credentials.display()
        )
    };
    let capture = format!("capture {} {} --json", disk_path.display(), url("x.img.zst"));
    let verify = format!("verify --deep {}", url("x.img.zst"));
    let images = served.data().join("images");
    blocking(move || {
        let mut killed = agent(&format!("{capture} --limit {LIMIT}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let partial = images.join("x.img.zst.partial");
        kill_with_most_stored(&mut killed, &partial);
        // Asked for at once, it waits until the controller takes the one that was killed for gone.
        let before = proxy.bytes(Way::ToServer);
        let resumed = summary(&agent(&format!("{capture} --resume")).output().unwrap());
        let sent = proxy.bytes(Way::ToServer) - before;
        let len = resumed["stored_bytes"].as_u64().unwrap();
        assert_eq!(resumed["resumed_bytes"], PAGE, "{resumed}");
        assert!(sent < len / 2, "{sent} of {len} bytes");
        println!("{before} bytes were sent before it was killed, then {sent} of {len}");
        let verified = agent(&verify).output().unwrap();
        assert!(verified.status.success());
        is_of(&images.join("x.img.zst"), &disk_path);
        assert!(!partial.exists());
    })
    .await;
}

/// In a job, in the same boot: a new worker goes on without comparing anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_capture_goes_on_in_its_job() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    let disk_path = served.path("disk");
    disk(&disk_path);
    let wish = json!({"action": "capture", "host": "node7", "image": "debian", "disk": disk_path, "limit": LIMIT});
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    let job = job["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let partial = served.data().join(PARTIAL);
    let mut spec = job_of(agent.work().await);
    // As the agent's session does for all attempts of one boot.
    spec.image_id = Some(Uuid::new_v4().to_string());
    let mut worker = worker_on(&spec);
    let partial = blocking(move || {
        kill_with_most_stored(&mut worker, &partial);
        partial
    })
    .await;
    let outcome = blocking(move || work(&spec)).await;
    assert_eq!(outcome["result"], "succeeded", "{outcome}");
    assert_eq!(outcome["resumed_bytes"], PAGE, "{outcome}");
    assert_eq!(agent.outcome(job, outcome).await.0, 200);
    agent.work().await;
    served.wait_state(job, "succeeded").await;
    let image = served.data().join("images").join(FILE);
    blocking(move || is_of(&image, &disk_path)).await;
    assert!(!partial.exists());
}
