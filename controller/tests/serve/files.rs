//! The controller's own store: files in pieces, cut off and gone on with, and who may touch them.

use std::fs;
use std::process::Command;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG};
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};

use crate::agents::{Agent, captured};
use crate::rig::{Served, answer, wait};

pub const ID: &str = "6e1c3b52-35c5-4d38-9d9c-3f61a3a0a001";
pub const OTHER_ID: &str = "6e1c3b52-35c5-4d38-9d9c-3f61a3a0a002";

/// Bytes that are the same nowhere.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Somebody who writes and reads files of the store.
pub struct Client<'a> {
    pub served: &'a Served,
    pub token: String,
}

impl Client<'_> {
    pub fn person(served: &Served) -> Client<'_> {
        Client { served, token: served.token.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/v1/stores/local/files{path}", self.served.api_url);
        self.served.client().request(method, url).bearer_auth(&self.token)
    }

    pub async fn upload(&self, method: Method, file: &str, id: &str, what: &str) -> (u16, Value) {
        let path = format!("/{file}/uploads/{id}{what}");
        answer(self.request(method, &path).send().await.unwrap()).await
    }

    pub async fn append(&self, file: &str, id: &str, offset: usize, data: &[u8]) -> (u16, Value) {
        let request = self.request(Method::PATCH, &format!("/{file}/uploads/{id}"));
        let request = request.header("upload-offset", offset.to_string()).body(data.to_vec());
        answer(request.send().await.unwrap()).await
    }

    pub async fn put_whole(&self, file: &str, id: &str, data: &[u8]) {
        assert_eq!(self.upload(Method::PUT, file, id, "").await.0, 200);
        assert_eq!(self.append(file, id, 0, data).await.0, 200);
        assert_eq!(self.upload(Method::POST, file, id, "/publish").await.0, 200);
    }

    pub async fn read(&self, file: &str, headers: &[(&str, &str)]) -> Response {
        let mut request = self.request(Method::GET, &format!("/{file}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub async fn bytes(&self, file: &str) -> Vec<u8> {
        let response = self.read(file, &[]).await;
        assert_eq!(response.status(), 200);
        response.bytes().await.unwrap().to_vec()
    }
}

/// A request's body, and where to put what is in it, on a connection that stays while nothing comes.
pub fn fed_body() -> (tokio::io::DuplexStream, reqwest::Body) {
    use tokio::io::AsyncReadExt;
    let (feed, body) = tokio::io::duplex(1 << 16);
    let stream = futures_util::stream::try_unfold(body, async |mut body| {
        let mut chunk = vec![0; 1 << 16];
        let n = body.read(&mut chunk).await?;
        chunk.truncate(n);
        Ok::<_, std::io::Error>((n > 0).then_some((chunk, body)))
    });
    (feed, reqwest::Body::wrap_stream(stream))
}

pub fn received(view: &Value) -> (u64, u64) {
    (view["received_bytes"].as_u64().unwrap(), view["durable_bytes"].as_u64().unwrap())
}

#[tokio::test]
async fn a_file_in_pieces_each_sent_twice() {
    let served = Served::start_with(&[]).await;
    let client = Client::person(&served);
    let data = content(5_000_000);
    let file = "a.img.zst";
    for _ in 0..2 {
        let (status, view) = client.upload(Method::PUT, file, ID, "").await;
        assert_eq!((status, received(&view)), (200, (0, 0)), "{view}");
    }
    for piece in [0..3_000_000, 2_500_000..5_000_000] {
        for _ in 0..2 {
            let (status, view) = client.append(file, ID, piece.start, &data[piece.clone()]).await;
            assert_eq!((status, received(&view).0), (200, piece.end as u64), "{view}");
        }
        let (_, view) = client.upload(Method::POST, file, ID, "/commit").await;
        assert_eq!(received(&view), (piece.end as u64, piece.end as u64));
    }
    // Not yet an image, for anybody.
    assert_eq!(client.read(file, &[]).await.status(), 404);
    assert_eq!(client.bytes("a.img.zst.partial").await, data, "for its writer");
    let listed = served.get("/v1/stores/local/files").await;
    assert_eq!((&listed[0]["name"], &listed[0]["is_partial"]), (&json!(file), &json!(true)));
    for _ in 0..2 {
        let (status, view) = client.upload(Method::POST, file, ID, "/publish").await;
        assert_eq!((status, &view["is_published"]), (200, &json!(true)), "{view}");
    }
    assert_eq!(client.upload(Method::PUT, file, ID, "").await.1["is_published"], true);
    assert_eq!(client.bytes(file).await, data);
    assert_eq!(fs::read(served.data().join("images").join(file)).unwrap(), data);
    assert_eq!(fs::read_dir(served.data().join("images")).unwrap().count(), 1, "no .partial");

    // Its end is its end: nothing is appended, and no other image takes the name.
    assert_eq!(client.append(file, ID, data.len(), b"more").await.1["code"], "no_upload");
    let (status, problem) = client.upload(Method::PUT, file, OTHER_ID, "").await;
    assert_eq!((status, &problem["code"]), (409, &json!("file_exists")));
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let served = Served::start_with(&[]).await;
    let client = Client::person(&served);
    let file = "a.img.zst";
    assert_eq!(client.append(file, ID, 0, b"x").await.1["code"], "no_upload");
    assert_eq!(client.upload(Method::POST, file, ID, "/commit").await.1["code"], "no_upload");
    assert_eq!(client.upload(Method::POST, file, ID, "/publish").await.1["code"], "no_upload");
    assert_eq!(client.upload(Method::DELETE, file, ID, "").await.1["code"], "no_upload");
    assert_eq!(client.upload(Method::PUT, file, "7", "").await.0, 422, "not a UUID");
    assert_eq!(client.upload(Method::PUT, file, ID, "").await.0, 200);
    let (status, problem) = client.upload(Method::PUT, file, OTHER_ID, "").await;
    assert_eq!((status, &problem["code"]), (409, &json!("being_written")));
    assert!(problem["detail"].as_str().unwrap().contains(ID), "{problem}");
    assert_eq!(client.append(file, ID, 1, b"x").await.1["code"], "wrong_offset");
    assert_eq!(client.append(file, OTHER_ID, 0, b"x").await.1["code"], "no_upload");
    let path = format!("/{file}/uploads/{ID}");
    let no_offset = client.request(Method::PATCH, &path).body("x").send().await.unwrap();
    assert_eq!(no_offset.status(), 422);
    let huge = client.request(Method::PATCH, &path).header("upload-offset", "0");
    let huge = huge.body(vec![0; (64 << 20) + 1]).send().await;
    // Answered before the body is read: the client sees the answer, or the connection's end.
    assert!(huge.is_err() || huge.unwrap().status() == 413);
    assert_eq!(received(&client.upload(Method::GET, file, ID, "").await.1), (0, 0));

    for name in [
        "..",
        "../imprint.db",
        "%2e%2e%2fimprint.db",
        "..%2fimprint.db",
        "%2fetc%2fpasswd",
        "a%00b",
        ".hidden",
        "a%2fb",
        "-a",
        "a.partial",
    ] {
        let response = client.read(name, &[]).await;
        assert!([404, 422].contains(&response.status().as_u16()), "{name}: {}", response.status());
        let (status, _) = client.upload(Method::PUT, name, ID, "").await;
        assert!([404, 405, 422].contains(&status), "{name}: {status}");
    }
    // Nothing but regular files is served, whoever put it there.
    let folder = served.data().join("images");
    std::os::unix::fs::symlink("../imprint.db", folder.join("link.img.zst")).unwrap();
    fs::create_dir(folder.join("folder.img.zst")).unwrap();
    nix::unistd::mkfifo(&folder.join("pipe.img.zst"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["link.img.zst", "folder.img.zst", "pipe.img.zst"] {
        let response = client.read(name, &[]).await;
        assert_eq!(response.status(), 409, "{name}");
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], "not_a_file", "{name}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(name) && detail.contains("imprint store add"), "{detail}");
    }
    assert_eq!(client.upload(Method::DELETE, file, ID, "").await.0, 204);
    assert!(!folder.join("a.img.zst.partial").exists());
}

#[tokio::test]
async fn ranges_as_curl_asks_for_them() {
    let served = Served::start_with(&[]).await;
    let client = Client::person(&served);
    let data = content(3_000_000);
    client.put_whole("a.img.zst", ID, &data).await;
    let whole = client.read("a.img.zst", &[]).await;
    assert_eq!(whole.headers()["accept-ranges"], "bytes");
    let etag = whole.headers()[ETAG].to_str().unwrap().to_owned();
    assert!(etag.starts_with('"'), "strong: {etag}");
    let head = client.request(Method::HEAD, "/a.img.zst").send().await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], "3000000");
    assert_eq!(head.headers()[ETAG], etag.as_str());

    let part =
        client.read("a.img.zst", &[("range", "bytes=1048570-1048580"), ("if-match", &etag)]).await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()[CONTENT_RANGE], "bytes 1048570-1048580/3000000");
    assert_eq!(part.bytes().await.unwrap(), data[1_048_570..=1_048_580]);
    let none = client.read("a.img.zst", &[("range", "bytes=3000000-")]).await;
    assert_eq!(none.status(), 416);
    assert_eq!(none.headers()[CONTENT_RANGE], "bytes */3000000");
    let other =
        client.read("a.img.zst", &[("range", "bytes=0-0"), ("if-match", "\"other\"")]).await;
    assert_eq!(other.status(), 412);
    let other =
        client.read("a.img.zst", &[("range", "bytes=0-0"), ("if-range", "\"other\"")]).await;
    assert_eq!((other.status().as_u16(), other.bytes().await.unwrap().len()), (200, 3_000_000));
    let same = client.read("a.img.zst", &[("if-none-match", &etag)]).await;
    assert_eq!(same.status(), 304);

    let curl = |args: &[&str], token: &str| {
        let pin = fs::read_to_string(served.data().join("client.json")).unwrap();
        let pin: Value = serde_json::from_str(&pin).unwrap();
        let pin = pin["pin"].as_str().unwrap();
        let bytes: Vec<u8> = (0..pin.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&pin[i..i + 2], 16).unwrap())
            .collect();
        let url = format!("{}/v1/stores/local/files/a.img.zst", served.api_url);
        let output = Command::new("curl")
            .args(["-sS", "-k", "--fail", "--pinnedpubkey", &format!("sha256//{}", base64(&bytes))])
            .args(["-H", &format!("Authorization: Bearer {token}"), &url])
            .args(args)
            .output()
            .expect("the package curl");
        (output.status.code(), output.stdout)
    };
    assert_eq!(curl(&[], &served.token), (Some(0), data.clone()));
    assert_eq!(curl(&["-r", "5-2999998"], &served.token), (Some(0), data[5..=2_999_998].to_vec()));
    assert_eq!(curl(&["-r", "-7"], &served.token), (Some(0), data[data.len() - 7..].to_vec()));
    assert_eq!(curl(&[], &"0".repeat(64)).0, Some(22), "401");
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three
            .iter()
            .chain([0; 2].iter())
            .take(3)
            .fold(0_usize, |word, b| word << 8 | usize::from(*b));
        for digit in 0..4 {
            let shown = digit <= three.len();
            text.push(if shown { char::from(DIGITS[word >> (18 - 6 * digit) & 63]) } else { '=' });
        }
    }
    text
}

#[tokio::test]
async fn a_controller_that_was_killed_believes_what_it_flushed() {
    let mut served = Served::start_with(&[]).await;
    let data = content(3_000_000);
    let file = "a.img.zst";
    {
        let client = Client::person(&served);
        client.upload(Method::PUT, file, ID, "").await;
        client.append(file, ID, 0, &data[..1_000_000]).await;
        client.upload(Method::POST, file, ID, "/commit").await;
        let (_, view) = client.append(file, ID, 1_000_000, &data[1_000_000..2_000_000]).await;
        assert_eq!(received(&view), (2_000_000, 1_000_000));
    }
    served.restart().await;
    let partial = served.data().join("images/a.img.zst.partial");
    assert_eq!(fs::metadata(&partial).unwrap().len(), 2_000_000);
    {
        let client = Client::person(&served);
        let (_, view) = client.upload(Method::GET, file, ID, "").await;
        assert_eq!(received(&view), (1_000_000, 1_000_000));
        assert_eq!(fs::metadata(&partial).unwrap().len(), 1_000_000, "the rest is not believed");
        assert_eq!(
            client.append(file, ID, 2_000_000, &data[2_000_000..]).await.1["code"],
            "wrong_offset"
        );
        assert_eq!(client.append(file, ID, 1_000_000, &data[1_000_000..]).await.0, 200);
        assert_eq!(client.upload(Method::POST, file, ID, "/publish").await.0, 200);
    }
    served.restart().await;
    let client = Client::person(&served);
    assert_eq!(client.bytes(file).await, data);
    assert_eq!(client.upload(Method::POST, file, ID, "/publish").await.0, 200, "asked again");
    assert!(!partial.exists());
}

#[tokio::test]
async fn a_newer_request_takes_over_from_one_that_hangs() {
    use tokio::io::AsyncWriteExt;

    let served = Served::start_with(&[]).await;
    let client = Client::person(&served);
    let data = content(4_000_000);
    let file = "a.img.zst";
    client.upload(Method::PUT, file, ID, "").await;
    // A body that stops in the middle, on a connection that stays.
    let (mut feed, body) = fed_body();
    let hanging = client
        .request(Method::PATCH, &format!("/{file}/uploads/{ID}"))
        .header("upload-offset", "0")
        .header(CONTENT_LENGTH, data.len().to_string())
        .body(body)
        .send();
    let hanging = async { answer(hanging.await.unwrap()).await };
    let others = async {
        feed.write_all(&data[..2_000_000]).await.unwrap();
        wait("the first request writes", async || {
            let (_, view) = client.upload(Method::GET, file, ID, "").await;
            (received(&view).0 > 0).then_some(())
        })
        .await;
        // The newer one waits for nothing but the older one's end.
        let (status, view) = client.append(file, ID, 0, &data).await;
        assert_eq!((status, received(&view).0), (200, 4_000_000), "{view}");
        feed
    };
    let ((status, problem), feed) = tokio::join!(hanging, others);
    assert_eq!((status, &problem["code"]), (409, &json!("superseded")));
    drop(feed);
    assert_eq!(client.upload(Method::POST, file, ID, "/publish").await.0, 200);
    assert_eq!(client.bytes(file).await, data);
}

/// What a job of this agent lets it do in the store.
pub fn of_job<'a>(served: &'a Served, work: &Value) -> Client<'a> {
    let access = &work["access"][0];
    assert_eq!(access["prefix"], format!("{}/v1/stores/local/files", served.api_url));
    assert_eq!(access["tls_key"].as_str().unwrap().len(), 64);
    Client { served, token: access["token"].as_str().unwrap().to_owned() }
}

#[tokio::test]
async fn an_agent_touches_what_its_job_is_about_while_it_lasts() {
    let served = Served::start_with(&[]).await;
    let person = Client::person(&served);
    person.put_whole("other.img.zst", OTHER_ID, b"other").await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let first = of_job(&served, &agent.work().await);
    let work = agent.work().await;
    let file = "debian.img.zst";
    assert_eq!(work["image_url"], format!("{}/v1/stores/local/files/{file}", served.api_url));
    let client = of_job(&served, &work);
    assert_ne!(first.token, client.token);
    assert_eq!(first.upload(Method::PUT, file, ID, "").await.0, 401, "handed out anew");
    for token in [&served.token.replace(|_: char| true, "0"), &agent.credential] {
        let client = Client { served: &served, token: token.clone() };
        assert_eq!(client.upload(Method::PUT, file, ID, "").await.0, 401);
        assert_eq!(client.read("other.img.zst", &[]).await.status(), 401);
    }
    // Its own file and no other; nothing else of the API.
    for (status, problem) in [
        client.upload(Method::PUT, "other.img.zst", ID, "").await,
        client.upload(Method::PUT, "new.img.zst", ID, "").await,
        client.upload(Method::DELETE, "other.img.zst", OTHER_ID, "").await,
        answer(client.read("other.img.zst", &[]).await).await,
        answer(client.read("new.img.zst.partial", &[]).await).await,
    ] {
        assert_eq!((status, &problem["code"]), (403, &json!("wrong_file")));
    }
    for path in ["/v1/stores", "/v1/stores/local/files", "/v1/jobs", "/v1/agent/work"] {
        let status = served.send(Method::GET, path, &client.token, None).await.status();
        assert_eq!(status, 401, "{path}");
    }
    assert_eq!(client.upload(Method::PUT, file, ID, "").await.0, 200);
    assert_eq!(client.append(file, ID, 0, b"image").await.0, 200);
    assert_eq!(client.upload(Method::POST, file, ID, "/commit").await.0, 200);
    assert_eq!(client.bytes("debian.img.zst.partial").await, b"image");
    assert_eq!(person.append(file, ID, 5, b"!").await.0, 403, "another's upload");
    assert_eq!(person.read("debian.img.zst.partial", &[]).await.status(), 403);

    // The work begins anew, as another image: the token is new, and the old file gives way.
    let client = of_job(&served, &agent.work().await);
    assert_eq!(client.upload(Method::PUT, file, OTHER_ID, "").await.0, 200);
    assert_eq!(client.append(file, ID, 5, b"!").await.1["code"], "no_upload");
    assert_eq!(client.append(file, OTHER_ID, 0, b"image").await.0, 200);
    assert_eq!(client.upload(Method::POST, file, OTHER_ID, "/publish").await.0, 200);
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    assert_eq!(client.read(file, &[]).await.status(), 401, "the work is done");
    agent.work().await;
    served.wait_state(job, "succeeded").await;
    let image = served.get("/v1/images/debian").await;
    assert_eq!(
        (&image["store"], image["url"].as_str().unwrap().starts_with("https://")),
        (&json!("local"), true)
    );

    // A restore reads.
    let wish = json!({"action": "restore", "host": "node7", "image": "debian"});
    let restore = served.post("/v1/jobs", wish).await.1["id"].as_i64().unwrap();
    served.wait_state(restore, "booting").await;
    let agent = Agent::check_in(&served, 2).await;
    let client = of_job(&served, &agent.work().await);
    assert_eq!(client.bytes(file).await, b"image");
    assert_eq!(
        client.read("debian.img.zst.root", &[]).await.status(),
        404,
        "allowed, but not there"
    );
    assert_eq!(client.read("other.img.zst", &[]).await.status(), 403);
    assert_eq!(client.upload(Method::PUT, file, ID, "").await.0, 403);
    assert_eq!(client.upload(Method::PUT, "debian.img.zst.root", ID, "").await.0, 403);

    // An image that is used stays.
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/debian", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_in_use")));
    assert!(problem["detail"].as_str().unwrap().contains(&format!("job {restore}")), "{problem}");
    let (status, problem) =
        served.ask(Method::DELETE, &format!("/v1/stores/local/files/{file}"), None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("file_in_use")));
    let failure = json!({"result": "failed", "kind": "disk", "message": "gone"});
    assert_eq!(agent.outcome(restore, failure).await.0, 200);
    assert_eq!(client.read(file, &[]).await.status(), 401);
    assert_eq!(served.ask(Method::DELETE, "/v1/images/debian", None).await.0, 204);
    assert!(!served.data().join("images").join(file).exists());
    assert_eq!(
        served.ask(Method::DELETE, "/v1/stores/local/files/other.img.zst", None).await.0,
        204
    );
    assert_eq!(served.get("/v1/stores/local/files").await, json!([]));
}

#[tokio::test]
async fn what_a_job_leaves_behind_is_removed_with_it() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let client = of_job(&served, &agent.work().await);
    client.upload(Method::PUT, "debian.img.zst", ID, "").await;
    client.append("debian.img.zst", ID, 0, b"half").await;
    let partial = served.data().join("images/debian.img.zst.partial");
    assert!(partial.exists());
    let failure = json!({"result": "failed", "kind": "internal", "message": "the worker died"});
    assert_eq!(agent.outcome(job, failure).await.0, 200);
    wait("the partial file is gone", async || (!partial.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_delta_reads_what_lies_beneath_it() {
    let served = Served::start_with(&[]).await;
    let person = Client::person(&served);
    person.put_whole("gold.img.zst", ID, b"gold").await;
    person.put_whole("notes.txt", OTHER_ID, b"notes").await;
    let image = json!({"name": "gold", "store": "local", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    let missing =
        json!({"name": "x", "store": "local", "file": "x.img.zst", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", missing).await.0, 404);
    served.add_node7().await;
    let wish = json!({"action": "capture", "host": "node7", "image": "new", "base": "gold"});
    let job = served.post("/v1/jobs", wish).await.1["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/gold", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_in_use")));
    let agent = Agent::check_in(&served, 1).await;
    let work = agent.work().await;
    assert_eq!(
        work["options"]["base"],
        format!("{}/v1/stores/local/files/gold.img.zst", served.api_url)
    );
    assert_eq!(work["access"].as_array().unwrap().len(), 1, "one store, one token");
    let client = of_job(&served, &work);
    assert_eq!(client.bytes("gold.img.zst").await, b"gold");
    assert_eq!(client.read("notes.txt", &[]).await.status(), 403);
    assert_eq!(client.upload(Method::PUT, "new.imgd", ID, "").await.0, 200);
    assert_eq!(client.upload(Method::POST, "new.imgd", ID, "/publish").await.0, 200);
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    agent.work().await;
    served.wait_state(job, "succeeded").await;
    // Its base is needed for as long as the delta is there.
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/gold", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_is_base")), "{problem}");
    assert_eq!(served.ask(Method::DELETE, "/v1/images/new", None).await.0, 204);
    // Misspelled, it does not remove the file.
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/gold?keepfile=true", None).await;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid")), "{problem}");
    assert_eq!(served.ask(Method::DELETE, "/v1/images/gold?keep_file=true", None).await.0, 204);
    let names = served.get("/v1/stores/local/files").await;
    assert_eq!(names.as_array().unwrap().len(), 2, "{names}");
}

#[tokio::test]
async fn a_delta_on_a_chain_in_several_folders_reads_all_of_it() {
    let served = Served::start_with(&[]).await;
    let person = Client::person(&served);
    person.put_whole("old.img.zst", ID, b"old").await;
    let images = [
        json!({"name": "old", "store": "local", "root": "ab".repeat(32)}),
        json!({"name": "newer", "url": "https://web/images/newer.imgd", "root": "cd".repeat(32)}),
    ];
    for image in images {
        assert_eq!(served.post("/v1/images", image).await.0, 201);
    }
    served.add_node7().await;
    let wish =
        |base: Value| json!({"action": "capture", "host": "node7", "image": "new", "base": base});
    let (status, problem) = served.post("/v1/jobs", wish(json!(["newer", "missing"]))).await;
    assert_eq!(status, 404, "{problem}");
    let job = served.post("/v1/jobs", wish(json!(["newer", "old"]))).await;
    assert_eq!(job.0, 202, "{}", job.1);
    let job = job.1["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    for image in ["old", "newer"] {
        let (status, problem) =
            served.ask(Method::DELETE, &format!("/v1/images/{image}"), None).await;
        assert_eq!((status, &problem["code"]), (409, &json!("image_in_use")), "{image}");
    }
    let agent = Agent::check_in(&served, 1).await;
    let work = agent.work().await;
    let old = format!("{}/v1/stores/local/files/old.img.zst", served.api_url);
    assert_eq!(work["options"]["base"], json!(["https://web/images/newer.imgd", old]));
    let client = of_job(&served, &work);
    assert_eq!(client.bytes("old.img.zst").await, b"old");
    assert_eq!(client.upload(Method::PUT, "new.imgd", ID, "").await.0, 200);
    assert_eq!(client.upload(Method::POST, "new.imgd", ID, "/publish").await.0, 200);
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    agent.work().await;
    served.wait_state(job, "succeeded").await;
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/old", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_is_base")), "{problem}");
}

/// A file system of this size at the controller's folder of images, until it is dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn at(path: std::path::PathBuf, len_bytes: u64) -> Self {
        let size = format!("size={len_bytes}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&path).status();
        assert!(done.unwrap().success(), "mounting a tmpfs needs root");
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_store_says_so_and_the_controller_goes_on() {
    let served = Served::start_with(&[]).await;
    let room = 4 << 20;
    let reserve = controller::store::embedded::RESERVE_BYTES;
    let _tmpfs = Tmpfs::at(served.data().join("images"), reserve + room);
    let client = Client::person(&served);
    assert!(served.get("/v1/stores/local").await["available_bytes"].as_u64().unwrap() <= room);
    let file = "a.img.zst";
    assert_eq!(client.upload(Method::PUT, file, ID, "").await.0, 200);
    let data = content(3 << 20);
    assert_eq!(client.append(file, ID, 0, &data).await.0, 200);
    let (status, problem) = client.append(file, ID, data.len(), &data).await;
    assert_eq!((status, &problem["code"]), (507, &json!("no_space")), "{problem}");
    assert_eq!(received(&client.upload(Method::GET, file, ID, "").await.1).0, data.len() as u64);
    assert_eq!(client.upload(Method::DELETE, file, ID, "").await.0, 204);
    client.put_whole("b.img.zst", OTHER_ID, &data).await;
}
