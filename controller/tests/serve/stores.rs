//! Named stores: what is said of them, what is kept of their secrets, and what an agent gets.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::agents::Agent;
use crate::rig::Served;

const PASSWORD: &str = "canary-5b20c7-share";
const TOKEN: &str = "canary-e91f44-bearer";

fn nas() -> Value {
    json!({"name": "nas", "url": "smb://nas/images", "user": "imprint", "domain": "LAB", "password": PASSWORD})
}

#[tokio::test]
async fn a_store_from_entering_to_removing() {
    let served = Served::start_with(&[]).await;
    let own = served.get("/v1/stores/local").await;
    assert_eq!((&own["is_embedded"], &own["has_credentials"]), (&json!(true), &json!(false)));
    assert_eq!(own["url"], format!("{}/v1/stores/local/files", served.api_url));

    let (status, made) = served.post("/v1/stores", nas()).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["user"], &made["domain"]), (&json!("imprint"), &json!("LAB")));
    assert_eq!(made["has_credentials"], true);
    assert!(made.get("password").is_none());
    let (status, again) = served.post("/v1/stores", nas()).await;
    assert_eq!((status, &again["code"]), (409, &json!("store_exists")));
    assert_eq!(served.get("/v1/stores").await.as_array().unwrap().len(), 2);

    served.add_node7().await;
    let wish = json!({"action": "capture", "host": "node7", "image": "a", "store": "nas"});
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    assert_eq!((&job["store"], &job["url"]), (&json!("nas"), &json!("smb://nas/images/a.img.zst")));
    let (status, problem) = served.ask(Method::DELETE, "/v1/stores/nas", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("store_in_use")));
    assert!(problem["detail"].as_str().unwrap().starts_with("job 1 uses"), "{problem}");
    assert_eq!(served.post("/v1/jobs/1/cancel", json!({})).await.0, 202);
    served.wait_state(1, "cancelled").await;

    let image = json!({"name": "b", "store": "nas", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.1["url"], "smb://nas/images/b.img.zst");
    let (_, problem) = served.ask(Method::DELETE, "/v1/stores/nas", None).await;
    assert!(problem["detail"].as_str().unwrap().starts_with("image b lies in"), "{problem}");
    assert_eq!(served.ask(Method::DELETE, "/v1/images/b?keep_file=true", None).await.0, 204);
    assert_eq!(served.ask(Method::DELETE, "/v1/stores/nas", None).await.0, 204);
    assert_eq!(served.ask(Method::GET, "/v1/stores/nas", None).await.0, 404);
    let (status, problem) = served.ask(Method::DELETE, "/v1/stores/local", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("store_built_in")));
    let wish = json!({"action": "capture", "host": "node7", "image": "a", "store": "nas"});
    assert_eq!(served.post("/v1/jobs", wish).await.0, 404);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_not_repeated() {
    let served = Served::start_with(&[]).await;
    let with = |url: &str, more: Value| {
        let mut store = json!({"name": "s", "url": url});
        store.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        store
    };
    let login = json!({"user": "u", "password": PASSWORD});
    for store in [
        with("nfs://h/e", login.clone()),
        with("http://h/e", login.clone()),
        with("http://h/e", json!({"token": TOKEN})),
        with("smb://h/e", json!({"token": TOKEN})),
        with("smb://h/e", json!({"password": PASSWORD})),
        with("smb://h/e", json!({"user": "u"})),
        with("https://h/e", json!({"user": "u", "password": PASSWORD, "token": TOKEN})),
        with("https://h/e", json!({"user": "u", "password": PASSWORD, "domain": "d"})),
        with("https://h/e", json!({"tls_key": "abc"})),
        with("nfs://h/e", json!({"tls_key": "ab".repeat(32)})),
        with("smb://h/e", json!({"user": "u", "password": format!("{PASSWORD}\n")})),
        with("smb://u:canary-5b20c7-share@h/e", json!({})),
        with("smb://h/e", json!({"user": "u", "password": [PASSWORD]})),
        with("smb://h/e", json!({"name": "../x"})),
        with("ftp://h/e", json!({})),
    ] {
        let (status, problem) = served.post("/v1/stores", store.clone()).await;
        assert_eq!(status, 422, "{store}: {problem}");
        if !store["url"].as_str().unwrap().contains("canary") {
            assert!(!problem.to_string().contains("canary"), "{problem}");
        }
    }
    for store in [
        with("https://h/e", json!({"name": "a", "token": TOKEN, "tls_key": "AB".repeat(32)})),
        with("https://h/e", json!({"name": "b", "user": "u", "password": PASSWORD})),
        with("nfs://h/e?uid=7", json!({"name": "c"})),
        with("/srv/images", json!({"name": "d"})),
    ] {
        let (status, made) = served.post("/v1/stores", store.clone()).await;
        assert_eq!(status, 201, "{store}: {made}");
    }
}

#[tokio::test]
async fn an_agent_gets_what_lets_it_in_and_nobody_else_does() {
    let mut served = Served::start_with(&["--default-store", "local"]).await;
    let mut bodies = served.post("/v1/stores", nas()).await.1.to_string();
    let https = json!({"name": "web", "url": "https://web/images/", "token": TOKEN, "tls_key": "cd".repeat(32)});
    bodies += &served.post("/v1/stores", https).await.1.to_string();
    let image = json!({"name": "base", "store": "web", "root": "ab".repeat(32)});
    bodies += &served.post("/v1/images", image).await.1.to_string();
    served.add_node7().await;
    let wish =
        json!({"action": "capture", "host": "node7", "image": "a", "store": "nas", "base": "base"});
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    let job = job["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let work = agent.work().await;
    assert_eq!(work["image_url"], "smb://nas/images/a.imgd");
    assert_eq!(work["options"]["base"], "https://web/images/base.img.zst");
    let access = [
        json!({"prefix": "smb://nas/images", "user": "imprint", "domain": "LAB", "password": PASSWORD}),
        json!({"prefix": "https://web/images", "token": TOKEN, "tls_key": "cd".repeat(32)}),
    ];
    assert_eq!(work["access"], json!(access));

    for path in
        ["/v1/stores", "/v1/stores/nas", "/v1/stores/web", "/v1/jobs", "/v1/images", "/metrics"]
    {
        let response = served.send(Method::GET, path, &served.token, None).await;
        bodies += &response.text().await.unwrap();
    }
    let log = served.log_text();
    served.restart().await;
    let log = log + &served.log_text();
    // The same passwords again: sealed with another nonce, and opened by the same key.
    assert_eq!(agent_access(&served, job).await, json!(access));
    served.kill();
    for secret in [PASSWORD, TOKEN] {
        assert!(!bodies.contains(secret));
        assert!(!log.contains(secret) && log.contains("TRACE"));
        for name in ["imprint.db", "imprint.db-wal", "client.json"] {
            let bytes = fs::read(served.data().join(name)).unwrap_or_default();
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(!found, "{secret} in {name}");
        }
    }
}

#[tokio::test]
async fn an_image_is_read_from_other_stores_as_well() {
    let served = Served::start_with(&[]).await;
    served.post("/v1/stores", nas()).await;
    let image =
        json!({"name": "a", "url": "nfs://h/images/a.img.zst?uid=7", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    served.add_node7().await;
    let wish =
        |also: Value| json!({"action": "restore", "host": "node7", "image": "a", "also": also});
    for (also, status) in [("none", 404), ("store:none/a", 404), ("store:nas/../a", 422)] {
        let (got, problem) = served.post("/v1/jobs", wish(json!([also]))).await;
        assert_eq!(got, status, "{also}: {problem}");
    }
    let also = json!(["nas", "store:local/b.img.zst", "nfs://other/a.img.zst"]);
    let (status, job) = served.post("/v1/jobs", wish(also)).await;
    assert_eq!(status, 202, "{job}");
    let job = job["id"].as_i64().unwrap();
    let (status, problem) = served.ask(Method::DELETE, "/v1/stores/nas", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("store_in_use")));
    served.wait_state(job, "booting").await;
    let work = Agent::check_in(&served, 1).await.work().await;
    let local = format!("{}/v1/stores/local/files", served.api_url);
    let also = json!([
        "smb://nas/images/a.img.zst",
        format!("{local}/b.img.zst"),
        "nfs://other/a.img.zst"
    ]);
    assert_eq!(work["options"]["also"], also);
    let prefixes: Vec<&Value> =
        work["access"].as_array().unwrap().iter().map(|access| &access["prefix"]).collect();
    assert_eq!(prefixes, [&json!("smb://nas/images"), &json!(local)]);
    // Its token is for that file: there is none, but it may ask.
    let token = work["access"][1]["token"].as_str().unwrap();
    for (file, status) in [("b.img.zst", 404), ("c.img.zst", 403)] {
        let path = format!("/v1/stores/local/files/{file}");
        assert_eq!(served.send(Method::GET, &path, token, None).await.status(), status, "{file}");
    }
}

#[tokio::test]
async fn the_images_of_a_layout_come_from_the_catalogue_and_from_stores() {
    let served = Served::start_with(&[]).await;
    served.post("/v1/stores", nas()).await;
    let (a, b) = ("ab".repeat(32), "cd".repeat(32));
    for image in [
        json!({"name": "a", "url": "nfs://h/images/a.img.zst", "root": a}),
        json!({"name": "b", "store": "nas", "root": b}),
    ] {
        assert_eq!(served.post("/v1/images", image).await.0, 201);
    }
    served.add_node7().await;
    let wish = |layout: Value| json!({"action": "restore", "host": "node7", "image": "a", "layout": layout});
    let of = |image: &str| json!({"partition": [{"image": image, "size": "1G"}]});
    let wrong = json!({"partition": [{"image": "b", "expect-root": a}]});
    let empty = json!({"partition": []});
    let without_a = json!({"partition": [{"image": "b"}, {"size": "1G"}]});
    for (layout, status) in [
        (without_a, 422),
        (of("none"), 404),
        (of("store:none/a"), 404),
        (of("store:nas/../a"), 422),
        (wrong, 409),
        (empty, 422),
    ] {
        let (got, problem) = served.post("/v1/jobs", wish(layout.clone())).await;
        assert_eq!(got, status, "{layout}: {problem}");
    }
    let layout = json!({"partition": [
        {"image-partition": 1},
        {"image": "b", "grow": true, "size": "rest"},
        {"image": "store:local/c.img.zst"},
        {"format": "swap", "size": "1G"},
    ]});
    let (status, job) = served.post("/v1/jobs", wish(of("a"))).await;
    assert_eq!(status, 202, "{job}");
    let named = job["id"].as_i64().unwrap();
    served.post(&format!("/v1/jobs/{named}/cancel"), json!({})).await;
    served.wait_state(named, "cancelled").await;
    let (status, job) = served.post("/v1/jobs", wish(layout)).await;
    assert_eq!(status, 202, "{job}");
    let job = job["id"].as_i64().unwrap();
    for path in ["/v1/images/b", "/v1/stores/nas"] {
        let (status, problem) = served.ask(Method::DELETE, path, None).await;
        assert_eq!(status, 409, "{path}: {problem}");
    }
    served.wait_state(job, "booting").await;
    let work = Agent::check_in(&served, 1).await.work().await;
    let list = &work["options"]["layout"]["partition"];
    assert_eq!(list[0], json!({"image-partition": 1}));
    assert_eq!(list[1]["image"], "smb://nas/images/b.img.zst");
    assert_eq!((&list[1]["expect-root"], &list[1]["size"]), (&json!(b), &json!("rest")));
    let local = format!("{}/v1/stores/local/files", served.api_url);
    assert_eq!(list[2]["image"], format!("{local}/c.img.zst"));
    let access = work["access"].as_array().unwrap();
    assert_eq!(access.len(), 2, "{access:?}");
    let token = access[1]["token"].as_str().unwrap();
    for (file, status) in [("c.img.zst", 404), ("d.img.zst", 403)] {
        let path = format!("/v1/stores/local/files/{file}");
        assert_eq!(served.send(Method::GET, &path, token, None).await.status(), status, "{file}");
    }
}

/// What the agent of a job gets after a restart of the controller.
async fn agent_access(served: &Served, job: i64) -> Value {
    // The agent is known still, but its credential is only in the test that got it: it boots again.
    assert_eq!(served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await.0, 202);
    let outcome = async || served.state(job).await;
    assert!(["running", "cancelled"].contains(&outcome().await.as_str()));
    let wish =
        json!({"action": "capture", "host": "node8", "image": "z", "store": "nas", "base": "base"});
    let host = json!({"name": "node8", "macs": ["52:54:00:77:00:02"]});
    assert_eq!(served.post("/v1/hosts", host).await.0, 201);
    let (status, other) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{other}");
    let other = other["id"].as_i64().unwrap();
    served.wait_state(other, "booting").await;
    Agent::check_in_as(served, 9, "52:54:00:77:00:02").await.work().await["access"].clone()
}

#[tokio::test]
async fn the_command_line_of_stores() {
    let served = Served::start_with(&[]).await;
    let file = served.path("pw");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let run = |args: &[&str]| {
        let output = served.imprint(args);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let login = ["--user", "imprint", "--domain", "LAB", "--password-file", file.to_str().unwrap()];
    let (code, said) = run(&[&["store", "add", "nas", "smb://nas/images"][..], &login].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("user imprint") && !said.contains(PASSWORD), "{said}");
    let (_, said) = run(&["store", "list"]);
    assert!(said.contains("nas") && said.contains("local") && said.contains("smb"), "{said}");
    let (_, said) = run(&["store", "show", "local"]);
    assert!(said.contains("own") && said.contains("room"), "{said}");
    let (_, said) = run(&["store", "files", "--json"]);
    assert_eq!(said, "[]\n");
    let (code, said) = run(&["store", "files", "nas"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("not_our_store"), "{said}");
    assert_eq!(run(&["store", "rm", "nas"]).0, Some(0));
    assert_eq!(run(&["store", "rm", "nas"]).0, Some(1));
    assert_eq!(run(&["store", "add", "x", "smb://h/s", "--password-file", "pw"]).0, Some(2));
}
