//! Images copied, checked and removed in stores, by the real agent's code as the controller starts it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use ramdisk_agent::cli::{Cli, main};
use ramdisk_agent::image::open;
use ramdisk_agent::store::{self, Options, StoreUrl};
use reqwest::Method;
use serde_json::{Value, json};

use crate::agent_store::{agent_program, content};
use crate::rig::{Served, wait, write_program};

const MIB: usize = 1 << 20;

/// Captures a disk file as an image; its root.
pub fn image(disk: &Path, image: &Path, more: &[&str]) -> String {
    let paths = [disk, image].map(|path| path.to_str().unwrap());
    let args = [&["imprint-agent", "capture", "--progress", "none"], &paths[..], more].concat();
    assert_eq!(main(&Cli::parse_from(args)), 0);
    let url = StoreUrl::File(image.to_owned());
    let urls = std::slice::from_ref(&url);
    let opened =
        open(store::open(&url).unwrap(), urls, &[], &Options::default(), &Arc::default()).unwrap();
    opened.root().to_string()
}

async fn ended(served: &Served, (status, task): (u16, Value)) -> Value {
    assert_eq!(status, 202, "{task}");
    let path = format!("/v1/tasks/{}", task["id"]);
    wait("the task ends", async || {
        let task = served.get(&path).await;
        (task["state"] != "running").then_some(task)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_from_store_to_store() {
    let tools = tempfile::tempdir().unwrap();
    let program = agent_program(tools.path());
    let served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    let (nas, own) = (served.path("nas"), served.data().join("images"));
    fs::create_dir(&nas).unwrap();
    let disk = served.path("disk");
    let mut data = content(12 * MIB, 4);
    fs::write(&disk, &data).unwrap();
    let root = image(&disk, &nas.join("gold.img.zst"), &[]);
    data[5 * MIB] ^= 1;
    fs::write(&disk, &data).unwrap();
    let base = nas.join("gold.img.zst");
    let delta = image(&disk, &nas.join("new.imgd"), &["--base", base.to_str().unwrap()]);
    assert_eq!(served.post("/v1/stores", json!({"name": "nas", "url": nas})).await.0, 201);
    for (name, file, root) in [("gold", "gold.img.zst", &root), ("new", "new.imgd", &delta)] {
        let image = json!({"name": name, "store": "nas", "file": file, "root": root});
        assert_eq!(served.post("/v1/images", image).await.0, 201);
    }
    let gold = fs::read(nas.join("gold.img.zst")).unwrap();

    // A delta image does not go where its base is not.
    let begun = served.post("/v1/images/new/copy", json!({"store": "local"})).await;
    let task = ended(&served, begun).await;
    assert_eq!((&task["state"], &task["failure_kind"]), (&json!("failed"), &json!("refused")));
    assert!(task["failure_message"].as_str().unwrap().contains("copy that one first"), "{task}");
    // Where it does go without its base, the base is named to check it.
    let wish = json!({"store": "local", "as": "alone", "without_base": true});
    let task = ended(&served, served.post("/v1/images/new/copy", wish).await).await;
    assert_eq!(task["state"], "succeeded", "{task}");
    let task = ended(&served, served.post("/v1/images/alone/verify", json!({})).await).await;
    assert_eq!(task["failure_kind"], "not_found", "{task}");
    let verify = ["image", "verify", "alone", "--deep", "--base", "gold"];
    let output = served.imprint_beside(&verify).await;
    assert!(output.status.success(), "{output:?}");
    for wrong in [json!({"base": ["nope"]}), json!({"require_signature": "key"})] {
        let (status, problem) = served.post("/v1/images/alone/verify", wrong).await;
        assert!([404, 422].contains(&status), "{problem}");
    }
    let unsigned = json!({"base": ["gold"], "require_signature": format!("RW{}", "A".repeat(54))});
    let task = ended(&served, served.post("/v1/images/alone/verify", unsigned).await).await;
    assert_eq!(task["state"], "failed", "{task}");
    assert_eq!(served.ask(Method::DELETE, "/v1/images/alone", None).await.0, 204);
    let output = served.imprint_beside(&["image", "copy", "gold", "local"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains("image    gold-local"), "{said}");
    assert!(fs::read(own.join("gold.img.zst")).unwrap() == gold);
    let copy = served.get("/v1/images/gold-local").await;
    assert_eq!((&copy["store"], &copy["root"]), (&json!("local"), &json!(root)));
    assert_eq!(copy["disk_bytes"], 12 * MIB);
    let (status, problem) = served.post("/v1/images/gold/copy", json!({"store": "local"})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_exists")));
    // In our own store, too, nothing is overwritten; and from there to the other.
    let wish = json!({"store": "local", "as": "twin"});
    let task = ended(&served, served.post("/v1/images/gold-local/copy", wish).await).await;
    assert_eq!(task["state"], "succeeded", "{task}");
    assert!(fs::read(own.join("twin.img.zst")).unwrap() == gold);
    let wish = json!({"store": "nas", "as": "gold-back"});
    let task = ended(&served, served.post("/v1/images/twin/copy", wish).await).await;
    assert_eq!(task["result"]["root"], json!(root), "{task}");
    let task = ended(&served, served.post("/v1/images/new/copy", json!({"store": "local"})).await);
    assert_eq!(task.await["result"]["parent_root"], json!(root));

    // What they hold, as their files say.
    let content = served.get("/v1/images/new-local/content").await;
    assert_eq!(content["manifest"]["parent"]["root"], json!(root), "{content}");
    assert_eq!(content["disk_bytes"], 12 * MIB);
    let output = served.imprint_beside(&["image", "inspect", "gold"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && said.contains(&format!("root       {root}\n")), "{said}");
    let wrong = json!({"name": "wrong", "url": nas.join("gold.img.zst?"), "root": delta});
    assert_eq!(served.post("/v1/images", wrong).await.0, 201);
    fs::copy(&base, nas.join("gold.img.zst?")).unwrap();
    let (status, problem) = served.ask(Method::GET, "/v1/images/wrong/content", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("other_root")), "{problem}");
    fs::remove_file(nas.join("gold.img.zst?")).unwrap();
    let (status, problem) = served.ask(Method::GET, "/v1/images/wrong/content", None).await;
    assert_eq!((status, &problem["code"]), (502, &json!("not_read")), "{problem}");
    let forgotten = served.ask(Method::DELETE, "/v1/images/wrong?keep_file=true", None).await;
    assert_eq!(forgotten.0, 204);

    // What is checked, and what a check finds.
    for deep in [false, true] {
        let wish = json!({"deep": deep});
        let task = ended(&served, served.post("/v1/images/new-local/verify", wish).await).await;
        assert_eq!(task["state"], "succeeded", "{task}");
        assert_eq!(task["result"]["verified"]["content_bytes"].as_u64().unwrap() > 0, deep);
    }
    let file = File::options().write(true).open(nas.join("gold-back.img.zst")).unwrap();
    file.write_all_at(&[0x55; 64], 5 * MIB as u64).unwrap();
    let output = served.imprint_beside(&["image", "verify", "gold-back"]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("[image_corrupt]"), "{said}");
    let wish = json!({"store": "local", "as": "bad"});
    let task = ended(&served, served.post("/v1/images/gold-back/copy", wish).await).await;
    assert_eq!(task["failure_kind"], "image_corrupt", "{task}");
    let files = served.get("/v1/stores/local/files").await;
    let names: Vec<&Value> = files.as_array().unwrap().iter().map(|file| &file["name"]).collect();
    assert_eq!(names, ["gold.img.zst", "new.imgd", "twin.img.zst"]);
    assert_eq!(served.get("/v1/tokens").await.as_array().unwrap().len(), 1, "no token is left");

    // The base of a delta image stays, but for where the same image is there twice.
    let remove = async |name: &str| {
        let (status, problem) =
            served.ask(Method::DELETE, &format!("/v1/images/{name}"), None).await;
        (status, problem["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(remove("gold-local").await, (204, String::new()));
    assert_eq!(remove("twin").await, (409, "image_is_base".to_owned()));
    assert_eq!(remove("new-local").await, (204, String::new()));
    assert_eq!(remove("twin").await, (204, String::new()));
    assert_eq!(fs::read_dir(&own).unwrap().count(), 0);
    // The catalogue knows of no delta image here, the agent sees it.
    assert_eq!(remove("gold").await, (502, "not_removed".to_owned()));
    assert!(nas.join("gold.img.zst").exists());
    assert_eq!(served.get("/v1/images/gold").await["root"], json!(root), "the entry is back");
    assert_eq!(remove("new").await, (204, String::new()));
    assert!(!nas.join("new.imgd").exists());
    assert_eq!(remove("gold").await, (204, String::new()));
    assert!(!nas.join("gold.img.zst").exists());
    // A path of another machine, perhaps: nobody claims that the file is gone.
    fs::remove_file(nas.join("gold-back.img.zst")).unwrap();
    assert_eq!(remove("gold-back").await, (502, "not_removed".to_owned()));
    let forgotten = served.ask(Method::DELETE, "/v1/images/gold-back?keep_file=true", None).await;
    assert_eq!(forgotten.0, 204);
    assert_eq!(served.get("/v1/images").await, json!([]));
}

#[tokio::test]
async fn what_a_task_works_with_stays_until_it_ends() {
    let tools = tempfile::tempdir().unwrap();
    let program = tools.path().join("imprint-agent");
    let text = "#!/bin/sh\ntrap 'echo \"imprint-agent: cancelled [cancelled]\" >&2; exit 1' TERM\n\
                echo '{\"stage\":\"copying\",\"done_bytes\":7,\"total_bytes\":9,\"stored_bytes\":7,\"elapsed_ms\":1}' >&2\n\
                while :; do /bin/sleep 0.05; done\n";
    write_program(&program, text);
    let served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    let password = "canary-77c1-copy";
    let nas = json!({"name": "nas", "url": "smb://nas/images", "user": "u", "password": password});
    assert_eq!(served.post("/v1/stores", nas).await.0, 201);
    let image = json!({"name": "gold", "url": "nfs://h/i/gold.img.zst", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    for (wish, status) in [
        (json!({"store": "none"}), 404),
        (json!({"store": "nas", "as": "../x"}), 422),
        (json!({"store": "nas", "name": "x"}), 422),
    ] {
        assert_eq!(served.post("/v1/images/gold/copy", wish).await.0, status);
    }
    let (status, task) = served.post("/v1/images/gold/copy", json!({"store": "nas"})).await;
    assert_eq!((status, &task["copy"]), (202, &json!("gold-nas")), "{task}");
    let path = format!("/v1/tasks/{}", task["id"]);
    wait("its progress is seen", async || {
        (served.get(&path).await["done_bytes"] == 7).then_some(())
    })
    .await;
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/gold", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("in_use_by_task")), "{problem}");
    let (status, problem) = served.ask(Method::DELETE, "/v1/stores/nas", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("in_use_by_task")), "{problem}");
    let again = served.post("/v1/images/gold/copy", json!({"store": "nas"})).await;
    assert_eq!((again.0, &again.1["code"]), (409, &json!("in_use_by_task")));
    for _ in 0..3 {
        assert_eq!(served.post("/v1/images/gold/verify", json!({})).await.0, 202);
    }
    let fifth = served.post("/v1/images/gold/verify", json!({})).await;
    assert_eq!((fifth.0, &fifth.1["code"]), (409, &json!("too_many_tasks")));
    let tasks = served.get("/v1/tasks").await;
    assert_eq!(tasks.as_array().unwrap().len(), 4);
    for task in tasks.as_array().unwrap() {
        let id = task["id"].to_string();
        assert!(served.imprint_beside(&["image", "cancel", &id]).await.status.success());
        wait("the task ends", async || {
            let task = served.get(&format!("/v1/tasks/{id}")).await;
            (task["failure_kind"] == "cancelled").then_some(())
        })
        .await;
    }
    let (status, problem) = served.ask(Method::DELETE, &path, None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("task_ended")));
    assert_eq!(served.ask(Method::DELETE, "/v1/tasks/99", None).await.0, 404);
    let signed = json!({"name": "signed", "url": "https://h/a.img.zst?X-Sig=5ecre7", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", signed).await.0, 201);
    let (status, problem) = served.post("/v1/images/signed/verify", json!({})).await;
    assert_eq!((status, &problem["code"]), (409, &json!("secret_url")));
    fs::remove_file(&program).unwrap();
    let (status, problem) = served.ask(Method::DELETE, "/v1/images/gold", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("no_agent_program")), "{problem}");
    assert_eq!(served.get("/v1/images/gold").await["url"], "nfs://h/i/gold.img.zst");
    assert!(!served.log_text().contains(password));
}

#[tokio::test]
async fn what_tasks_have_begun_is_removed_before_the_controller_has_ended() {
    let tools = tempfile::tempdir().unwrap();
    let (program, begun) = (tools.path().join("imprint-agent"), tools.path().join("begun"));
    // Asked once more it would end where it is.
    let text = format!(
        "#!/bin/sh\ntrap 'trap \"exit 1\" TERM; /bin/sleep 0.5; rm {begun}; exit 1' TERM\n\
         echo $$ > {begun}.new; mv {begun}.new {begun}\nwhile :; do /bin/sleep 0.05; done\n",
        begun = begun.display()
    );
    write_program(&program, &text);
    let mut served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    let nas = json!({"name": "nas", "url": "nfs://nas/images"});
    assert_eq!(served.post("/v1/stores", nas).await.0, 201);
    let image = json!({"name": "gold", "url": "nfs://h/i/gold.img.zst", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    assert_eq!(served.post("/v1/images/gold/copy", json!({"store": "nas"})).await.0, 202);
    let pid = wait("it begins", async || fs::read_to_string(&begun).ok()).await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    // Ctrl-C is for those of one group.
    assert_eq!(nix::unistd::getpgid(Some(pid)).unwrap(), pid);
    served.end().await;
    assert!(!begun.exists());
}
