//! Planted secrets are looked for wherever they must not be.

use std::fs;
use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};

use crate::agents::{Agent, captured, fetch_ticket, redemption};
use crate::rig::{MAC, Served, wait, write_program};

const PASSWORD: &str = "canary-7f3a91-bmc";
/// What jobs bring along, and the queries of presigned URLs: nothing in base64 or in a URL has to be written otherwise.
const USER_DATA: &str = "canary-51c0ffee-user-data-";
const SCRIPT: &str = "canary-8badf00d-post-script";
const FILE: &str = "canary-0ddba11-file-";
const IMAGE_QUERY: &str = "X-Amz-Signature=canary-1ce-image";
const ALSO_QUERY: &str = "X-Amz-Signature=canary-1ce-also";
const STORE_QUERY: &str = "sig=canary-1ce-store";

/// Notes its own command line and environment, as any user of the machine and as root could read them.
const IPMITOOL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
cat /proc/$$/cmdline >> cmdline
cat /proc/$$/environ >> environ
case "$*" in
    *"power status") echo "Chassis Power is $(cat power)" ;;
    *"power on") echo on > power ;;
    *bootdev*) echo "Set Boot Device" ;;
    *) echo "RAKP 2 HMAC is invalid" >&2; exit 1 ;;
esac
"#;

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

fn holds(bytes: &[u8], secret: &str) -> bool {
    bytes.windows(secret.len()).any(|window| window == secret.as_bytes())
}

/// In base64, as jobs have files.
fn base64(text: &str) -> String {
    let content = agent_api::Content::from(text.as_bytes().to_vec());
    content.into()
}

/// Enters an image and a store by presigned URLs, and a restore with files for the restored system; its agent's work, and all answers.
async fn plant_in_a_restore(served: &Served) -> (Value, String) {
    let root = "ab".repeat(32);
    let url = format!("https://10.0.0.9/signed.img.zst?{IMAGE_QUERY}");
    let image = json!({"name": "signed", "url": url, "root": root});
    let (status, mut bodies) = served.post("/v1/images", image).await;
    assert_eq!(status, 201, "{bodies}");
    let store = json!({"name": "bucket", "url": format!("https://10.0.0.9/images?{STORE_QUERY}")});
    let (status, body) = served.post("/v1/stores", store).await;
    assert_eq!(status, 201, "{body}");
    let also =
        [format!("https://10.0.0.8/signed.img.zst?{ALSO_QUERY}"), "store:bucket/x.img.zst".into()];
    let host = json!({"name": "node8", "macs": ["52:54:00:77:00:08"]});
    assert_eq!(served.post("/v1/hosts", host).await.0, 201);
    let mut wish = json!({
        "action": "restore", "host": "node8", "image": "signed", "also": also,
        "cloud_init_seed": {"user-data": base64(USER_DATA), "meta-data": base64("{}")},
        "file": [{"path": "/etc/secret", "content": base64(FILE)}],
        "post_script": base64(&format!("#!/bin/sh\n{SCRIPT}\n")),
        "layout": "no layout",
    });
    // What is refused does not repeat it.
    let (status, refused) = served.post("/v1/jobs", wish.clone()).await;
    assert_eq!(status, 422, "{refused}");
    wish.as_object_mut().unwrap().remove("layout");
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    let id = job["id"].as_i64().unwrap();
    for text in [body, refused, job] {
        bodies = json!([bodies, text]);
    }
    served.wait_state(id, "booting").await;
    let agent = Agent::check_in_as(served, 2, "52:54:00:77:00:08").await;
    let mut said = bodies.to_string();
    for path in ["/v1/images/signed", "/v1/stores/bucket", &format!("/v1/jobs/{id}")] {
        said += &served.get(path).await.to_string();
    }
    let (status, problem) =
        served.ask(Method::DELETE, "/v1/images/signed?keep_file=true", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_in_use")), "{problem}");
    (agent.work().await, said + &problem.to_string())
}

#[tokio::test]
async fn no_secret_is_where_it_can_be_read() {
    let tools = tempfile::tempdir().unwrap();
    let tool = tools.path().join("ipmitool");
    write_program(&tool, IPMITOOL);
    fs::write(tools.path().join("power"), "off").unwrap();
    let args = ["--store-url", "nfs://10.0.0.5/images", "--ipmitool", tool.to_str().unwrap()];
    let mut served = Served::start_with(&args).await;
    let mut bodies = String::new();
    let bmc = json!({"driver": "ipmi", "host": "10.0.0.7", "user": "admin", "password": PASSWORD});
    let host = json!({"name": "node7", "macs": [MAC], "bmc": bmc});
    bodies += &served.post("/v1/hosts", host.clone()).await.1.to_string();
    // Refused requests do not repeat it either.
    bodies += &served.post("/v1/hosts", host).await.1.to_string();
    let long = json!({"name": "n", "macs": ["52:54:00:77:00:02"], "bmc": {"driver": "ipmi", "host": "h", "user": "u", "password": format!("{PASSWORD}-{PASSWORD}")}});
    bodies += &served.post("/v1/hosts", long).await.1.to_string();
    let odd = json!({"name": "n", "macs": ["52:54:00:77:00:02"], "bmc": {"driver": "ipmi", "host": "h", "user": "u", "password": [PASSWORD]}});
    bodies += &served.post("/v1/hosts", odd).await.1.to_string();

    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let unused = fetch_ticket(&served).await.secret;
    let ticket = fetch_ticket(&served).await;
    let (status, session) = crate::agents::redeem(&served, &redemption(&ticket, 1, MAC)).await;
    assert_eq!(status, 200, "{session}");
    let credential = session["credential"].as_str().unwrap().to_owned();
    let agent = Agent::with(&served, credential.clone());
    agent.work().await;
    agent.outcome(job, captured()).await;
    wait("its leave", async || (agent.work().await["kind"] == "finish").then_some(())).await;
    served.wait_state(job, "succeeded").await;
    let (status, _) = served.post("/v1/hosts/node7/power", json!({"action": "soft"})).await;
    assert_eq!(status, 409, "the BMC refused the password");
    let (work, said) = plant_in_a_restore(&served).await;
    bodies += &said;
    // Its agent gets all of it.
    let work = work.to_string();
    for secret in [&base64(USER_DATA), &base64(FILE), IMAGE_QUERY, ALSO_QUERY, STORE_QUERY] {
        assert!(work.contains(secret), "{secret}: {work}");
    }
    let (_, token) = served.post("/v1/tokens", json!({"name": "ci"})).await;
    let token = token["token"].as_str().unwrap().to_owned();

    let description = served.get("/openapi.json").await;
    for (path, methods) in description["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "node7").replace("{id}", &job.to_string());
        if methods.get("get").is_some() && !path.starts_with("/v1/agent/") {
            let response = served.send(Method::GET, &path, &served.token, None).await;
            bodies += &response.text().await.unwrap();
        }
    }
    bodies += &served.script(MAC).await;
    let log = served.log_text();
    // A restart writes and reads everything once more; it also has the log of a start.
    served.restart().await;
    let log = log + &served.log_text();
    served.kill();

    let admin = served.token.clone();
    let [user_data, file] =
        [USER_DATA, FILE].map(|text| base64(text).trim_end_matches('=').to_owned());
    let script = base64(&format!("#!/bin/sh\n{SCRIPT}\n"));
    let secrets = [
        ("user-data", USER_DATA),
        ("user-data in base64", &user_data),
        ("file", FILE),
        ("file in base64", &file),
        ("post-script", SCRIPT),
        ("post-script in base64", &script),
        ("presigned URL of an image", IMAGE_QUERY),
        ("presigned URL of another source", ALSO_QUERY),
        ("presigned URL of a store", STORE_QUERY),
        ("BMC password", PASSWORD),
        ("admin token", &admin),
        ("API token", &token),
        ("ticket", &ticket.secret),
        ("older ticket", &unused),
        ("credential", &credential),
    ];
    for (what, secret) in secrets {
        assert!(!bodies.contains(secret), "{what} in an answer");
        assert!(!log.contains(secret), "{what} in the log");
        for path in files(&served.data()) {
            // The command line's own copy of its token is what this file is for.
            let known = what == "admin token" && path.ends_with("client.json");
            assert!(known || !holds(&fs::read(&path).unwrap(), secret), "{what} in {path:?}");
        }
        let cmdline = fs::read(tools.path().join("cmdline")).unwrap();
        assert!(!holds(&cmdline, secret), "{what} in a command line");
    }
    assert!(log.contains("TRACE"), "the log was kept at its most talkative");
    let environ = fs::read(tools.path().join("environ")).unwrap();
    assert!(holds(&environ, PASSWORD), "the environment is how ipmitool gets the password");
    let names: std::collections::BTreeSet<String> = environ
        .split(|byte| *byte == 0)
        .filter_map(|line| Some(String::from_utf8_lossy(line).split_once('=')?.0.to_owned()))
        .filter(|name| !["PWD", "_", "SHLVL", "OLDPWD"].contains(&name.as_str()))
        .collect();
    assert_eq!(names, ["IPMITOOL_PASSWORD", "LC_ALL"].map(str::to_owned).into(), "and all of it");
}

#[tokio::test]
async fn a_url_with_a_password_is_refused_and_not_kept() {
    let served = Served::start().await;
    served.add_node7().await;
    // A URL with a password is refused before it is stored, by every way in.
    let url = format!("smb://user:{PASSWORD}@10.0.0.5/share/x.img.zst");
    let capture = json!({"action": "capture", "host": "node7", "image": "x", "url": url});
    assert_eq!(served.post("/v1/jobs", capture).await.0, 422);
    let image = json!({"name": "x", "url": url, "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.0, 422);
    for path in files(&served.data()) {
        assert!(!holds(&fs::read(&path).unwrap(), PASSWORD), "{path:?}");
    }
    assert!(!served.log_text().contains(PASSWORD));
}
