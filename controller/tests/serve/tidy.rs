//! What is refused before an agent meets it, changed in place, and tidied up after writers that are gone.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::agents::Agent;
use crate::files::{Client, ID, OTHER_ID};
use crate::rig::{Served, answer, wait, write_program};

const ROOT: &str = "abababababababababababababababababababababababababababababababab";

#[tokio::test]
async fn what_no_agent_could_use_is_refused_at_once() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    for (url, why) in [
        ("nfs://h/images/../x", "'..'"),
        ("smb://h/guest?encrypt=maybe", "encrypt=yes"),
        ("nfs://h/images?foo=1", "mountport=PORT"),
        ("nfs://h/", "needs a folder"),
        ("smb://h/", "needs a share"),
    ] {
        let (status, problem) = served.post("/v1/stores", json!({"name": "s", "url": url})).await;
        assert_eq!((status, &problem["code"]), (422, &json!("invalid")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    let url = "nfs://h/images/../x.img.zst";
    let wish = json!({"action": "capture", "host": "node7", "image": "x", "url": url});
    assert_eq!(served.post("/v1/jobs", wish).await.0, 422);
    let image = json!({"name": "x", "url": "smb://h/s/x.img.zst?encrypt=maybe", "root": ROOT});
    assert_eq!(served.post("/v1/images", image).await.0, 422);
    // A web server's root is a folder.
    let web = json!({"name": "web", "url": "http://h:8088/"});
    assert_eq!(served.post("/v1/stores", web).await.0, 201);
    let image = json!({"name": "x", "store": "web", "root": ROOT});
    assert_eq!(served.post("/v1/images", image).await.1["url"], "http://h:8088/x.img.zst");
}

#[tokio::test]
async fn a_password_is_changed_where_images_lie() {
    let mut served = Served::start_with(&[]).await;
    served.add_node7().await;
    let [old, new, newest] = ["canary-old-31", "canary-new-32", "canary-newest-33"];
    let nas = json!({"name": "nas", "url": "smb://nas/images", "user": "u", "domain": "LAB", "password": old});
    assert_eq!(served.post("/v1/stores", nas).await.0, 201);
    let image = json!({"name": "gold", "store": "nas", "root": ROOT});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    let change = async |store: &str, change: Value| {
        let path = format!("/v1/stores/{store}");
        served.ask(Method::PATCH, &path, Some(&change)).await
    };
    for (refused, why) in [
        (json!({}), "nothing is changed"),
        (json!({"user": "v"}), "belong together"),
        (json!({"token": new}), "not token"),
        (json!({"tls_key": "ab".repeat(32)}), "https://"),
        (json!({"url": "smb://other/images"}), "url"),
    ] {
        let (status, problem) = change("nas", refused.clone()).await;
        assert_eq!(status, 422, "{refused}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    let (status, problem) = change("local", json!({"password": new})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("store_built_in")));
    assert_eq!(change("none", json!({"password": new})).await.0, 404);
    let (status, store) = change("nas", json!({"password": new})).await;
    assert_eq!((status, &store["user"], &store["domain"]), (200, &json!("u"), &json!("LAB")));
    assert!(!store.to_string().contains(new));

    let wish = json!({"action": "restore", "host": "node7", "image": "gold"});
    let job = served.post("/v1/jobs", wish).await.1["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let access = agent.work().await["access"][0].clone();
    assert_eq!((&access["user"], &access["password"]), (&json!("u"), &json!(new)), "{access}");
    // By the command line, as somebody else.
    let file = served.path("credentials");
    fs::write(&file, format!("# of the NAS\nuser=v\npassword={newest}\n")).unwrap();
    let args = ["store", "set", "nas", "--credentials", file.to_str().unwrap()];
    let output = served.imprint_beside(&args).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("user v"), "{said}");
    assert_eq!(served.get("/v1/stores/nas").await["domain"], json!(null), "v is of no domain");
    let access = agent.work().await["access"][0].clone();
    assert_eq!((&access["user"], &access["password"]), (&json!("v"), &json!(newest)), "{access}");
    fs::write(&file, "user=v\nhunter2\n").unwrap();
    let output = served.imprint_beside(&args).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("line 2 of"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
    assert!([old, new, newest].iter().all(|secret| !served.log_text().contains(secret)));
    served.kill();
    for entry in fs::read_dir(served.data()).unwrap().map(|entry| entry.unwrap().path()) {
        let bytes = if entry.is_file() { fs::read(&entry).unwrap() } else { Vec::new() };
        assert!(!String::from_utf8_lossy(&bytes).contains("canary"), "{entry:?}");
    }
}

#[tokio::test]
async fn a_check_needs_no_body_and_has_a_limit() {
    let tools = tempfile::tempdir().unwrap();
    let program = tools.path().join("imprint-agent");
    let noted = tools.path().join("args");
    let text = format!("#!/bin/sh\necho \"$@\" >> {}\necho '{{}}'\n", noted.display());
    write_program(&program, &text);
    let served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    let image = json!({"name": "gold", "url": "nfs://h/i/gold.img.zst", "root": ROOT});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    let url = format!("{}/v1/images/gold/verify", served.api_url);
    let ended = async |task: Value| {
        let path = format!("/v1/tasks/{}", task["id"]);
        wait("the task ends", async || {
            (served.get(&path).await["state"] == "succeeded").then_some(())
        })
        .await;
        let text = fs::read_to_string(&noted).unwrap();
        text.lines().last().unwrap().to_owned()
    };
    let request = || served.client().post(&url).bearer_auth(&served.token);
    for request in [request(), request().header("content-type", "application/json").body("")] {
        let (status, task) = answer(request.send().await.unwrap()).await;
        assert_eq!(status, 202, "{task}");
        let args = ended(task).await;
        assert!(!args.contains("--deep") && !args.contains("--limit"), "{args}");
    }
    let (status, task) = served.post("/v1/images/gold/verify", json!({"limit": "400M"})).await;
    assert_eq!(status, 202, "{task}");
    assert!(ended(task).await.contains("--limit 400M"));
    let copied =
        served.imprint_beside(&["image", "copy", "gold", "local", "--limit", "1G", "--no-wait"]);
    assert!(copied.await.status.success());
    wait("the copy was begun with its limit", async || {
        fs::read_to_string(&noted).unwrap().contains("--limit 1G").then_some(())
    })
    .await;
    for wish in [json!({"limit": "fast"}), json!({"depp": true})] {
        let (status, problem) = served.post("/v1/images/gold/verify", wish).await;
        assert_eq!((status, &problem["code"]), (422, &json!("invalid")), "{problem}");
    }
    for method in [Method::GET, Method::DELETE] {
        let (status, problem) = served.ask(method, "/v1/tasks/-1", None).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid")), "{problem}");
    }
}

#[tokio::test]
async fn what_a_writer_by_hand_has_left_is_listed_and_can_be_ended() {
    let served = Served::start_with(&[]).await;
    let client = Client::person(&served);
    let file = "x.img.zst";
    assert_eq!(client.upload(Method::PUT, file, ID, "").await.0, 200);
    assert_eq!(client.append(file, ID, 0, b"half").await.0, 200);
    let listed = served.get("/v1/stores/local/files").await;
    assert_eq!((&listed[0]["is_partial"], &listed[0]["upload"]), (&json!(true), &json!(ID)));
    assert!(listed[0]["begun"].as_str().unwrap().ends_with('Z'), "{listed}");
    let (status, problem) = client.upload(Method::PUT, file, OTHER_ID, "").await;
    assert_eq!((status, &problem["code"]), (409, &json!("being_written")));
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("imprint store rm-file {file} --upload {ID}")), "{detail}");
    let output = served.imprint_beside(&["store", "files"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("UPLOAD") && said.contains(ID), "{said}");
    let output = served.imprint_beside(&["store", "rm-file", file, "--upload", ID]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(served.data().join("images")).unwrap().count(), 0);
    client.put_whole(file, OTHER_ID, b"whole").await;
    assert_eq!(served.get("/v1/stores/local/files").await[0]["upload"], json!(null));
    assert!(served.imprint_beside(&["store", "rm-file", file]).await.status.success());
    assert_eq!(served.get("/v1/stores/local/files").await, json!([]));
}

#[tokio::test]
async fn what_a_copy_has_left_goes_when_the_controller_starts_again() {
    let tools = tempfile::tempdir().unwrap();
    let program = tools.path().join("imprint-agent");
    let credentials = tools.path().join("credentials");
    let text = format!(
        "#!/bin/sh\n/bin/cat > {0}.new\n/bin/mv {0}.new {0}\nexec /bin/sleep 20\n",
        credentials.display()
    );
    write_program(&program, &text);
    let mut served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    let image = json!({"name": "gold", "url": "nfs://h/i/gold.img.zst", "root": ROOT});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    assert_eq!(served.post("/v1/images/gold/copy", json!({"store": "local"})).await.0, 202);
    let text =
        wait("the program has its token", async || fs::read_to_string(&credentials).ok()).await;
    let token = text.lines().find_map(|line| line.strip_prefix("token=")).unwrap().to_owned();
    let copy = Client { served: &served, token };
    assert_eq!(copy.upload(Method::PUT, "gold.img.zst", ID, "").await.0, 200);
    assert_eq!(copy.append("gold.img.zst", ID, 0, b"half").await.0, 200);
    let person = Client::person(&served);
    assert_eq!(person.upload(Method::PUT, "own.img.zst", OTHER_ID, "").await.0, 200);
    let images = served.data().join("images");
    assert!(images.join("gold.img.zst.partial").exists());
    served.restart().await;
    assert!(!images.join("gold.img.zst.partial").exists(), "nobody goes on with it");
    assert!(images.join("own.img.zst.partial").exists(), "somebody may go on with it");
    let listed = served.get("/v1/stores/local/files").await;
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["upload"]), (1, &json!(OTHER_ID)));
}
