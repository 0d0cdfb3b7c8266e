//! One file under several names: nobody removes, or writes, what somebody else needs.

use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use crate::agent_store::{agent_program, content};
use crate::copies::image;
use crate::files::{Client, ID};
use crate::rig::{Served, wait, write_program};

const ROOT: &str = "abababababababababababababababababababababababababababababababab";
const NODE8_MAC: &str = "52:54:00:77:00:02";

fn entry(name: &str, at: Value) -> Value {
    let mut entry = json!({"name": name, "root": ROOT});
    entry.as_object_mut().unwrap().extend(at.as_object().unwrap().clone());
    entry
}

/// The stores `nas` and `again`, which are one folder, and the image `job1` in it.
async fn with_image(served: &Served) {
    for (name, url) in [("nas", "nfs://nas/images"), ("again", "nfs://NAS:2049/images/?uid=7")] {
        assert_eq!(served.post("/v1/stores", json!({"name": name, "url": url})).await.0, 201);
    }
    let job1 = entry("job1", json!({"store": "nas", "file": "job.img.zst"}));
    assert_eq!(served.post("/v1/images", job1).await.0, 201);
}

/// Enters an image as versions did that let two entries have one file.
async fn enter_as_before(served: &mut Served, name: &str, place: &str) {
    served.kill();
    let path = served.data().join("imprint.db");
    let db = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
    sqlx::query("INSERT INTO images (name, url, root, created_ms) VALUES (?, ?, ?, 1)")
        .bind(name)
        .bind(place)
        .bind(ROOT)
        .execute(&db)
        .await
        .unwrap();
    db.close().await;
    served.restart().await;
}

async fn refused(served: &Served, path: &str) -> (u16, String, String) {
    let (status, problem) = served.ask(Method::DELETE, path, None).await;
    let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
    (status, text("code"), text("detail"))
}

#[tokio::test]
async fn a_file_has_one_entry() {
    let served = Served::start_with(&[]).await;
    with_image(&served).await;
    for at in [
        json!({"store": "nas", "file": "job.img.zst"}),
        json!({"store": "again", "file": "job.img.zst"}),
        json!({"url": "nfs://nas/images/job.img.zst"}),
        json!({"url": "nfs4://nas:2049//images/%6aob.img.zst?gid=1"}),
    ] {
        let (status, problem) = served.post("/v1/images", entry("job2", at)).await;
        assert_eq!((status, &problem["code"]), (409, &json!("place_taken")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("image job1"), "{problem}");
    }
    assert_eq!(served.get("/v1/images").await.as_array().unwrap().len(), 1);
    let other = entry("job2", json!({"store": "again", "file": "job2.img.zst"}));
    assert_eq!(served.post("/v1/images", other).await.0, 201);
    // A URL of the controller's own store is a file of that.
    Client::person(&served).put_whole("own.img.zst", ID, b"image").await;
    let url = format!("{}/v1/stores/local/files/own.img.zst", served.api_url);
    let (status, own) = served.post("/v1/images", entry("own", json!({"url": url}))).await;
    assert_eq!((status, &own["store"]), (201, &json!("local")), "{own}");
    let twin = entry("twin", json!({"store": "local", "file": "own.img.zst"}));
    assert_eq!(served.post("/v1/images", twin).await.1["code"], "place_taken");
}

#[tokio::test]
async fn a_file_that_a_job_reads_stays_by_whatever_name_it_is_meant() {
    let mut served = Served::start_with(&[]).await;
    served.add_node7().await;
    with_image(&served).await;
    enter_as_before(&mut served, "job2", "nfs://nas/images/job.img.zst").await;
    enter_as_before(&mut served, "job3", "store:again/job.img.zst").await;
    let wish = json!({"action": "restore", "host": "node7", "image": "job1"});
    let job = served.post("/v1/jobs", wish).await.1["id"].as_i64().unwrap();
    for name in ["job1", "job2", "job3"] {
        let (status, code, detail) = refused(&served, &format!("/v1/images/{name}")).await;
        assert_eq!((status, code.as_str()), (409, "image_in_use"), "{name}: {detail}");
        assert!(detail.contains(&format!("job {job} ")), "{detail}");
    }
    assert_eq!(served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await.0, 202);
    served.wait_state(job, "cancelled").await;
    // The other entries need it.
    let (status, code, detail) = refused(&served, "/v1/images/job2").await;
    assert_eq!((status, code.as_str()), (409, "file_in_use"), "{detail}");
    assert!(detail.contains("image job1 is the same file"), "{detail}");
    for name in ["job2", "job3"] {
        assert_eq!(refused(&served, &format!("/v1/images/{name}?keep_file=true")).await.0, 204);
    }
    assert_eq!(served.get("/v1/images/job1").await["store"], "nas");
}

#[tokio::test]
async fn a_file_of_the_own_store_that_a_job_reads_by_its_url_stays() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    with_image(&served).await;
    Client::person(&served).put_whole("own.img.zst", ID, b"image").await;
    let url = format!("{}/v1/stores/local/files/own.img.zst", served.api_url);
    let wish = json!({"action": "restore", "host": "node7", "image": "job1", "also": [url]});
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    let path = "/v1/stores/local/files/own.img.zst";
    let (status, code, detail) = refused(&served, path).await;
    assert_eq!((status, code.as_str()), (409, "file_in_use"));
    assert!(detail.contains(&format!("job {} ", job["id"])), "{detail}");
    assert_eq!(served.post(&format!("/v1/jobs/{}/cancel", job["id"]), json!({})).await.0, 202);
    assert_eq!(refused(&served, path).await.0, 204);
}

#[tokio::test]
async fn a_file_that_a_task_reads_or_writes_stays() {
    let tools = tempfile::tempdir().unwrap();
    let program = tools.path().join("imprint-agent");
    write_program(&program, "#!/bin/sh\ntrap 'exit 1' TERM\nwhile :; do /bin/sleep 0.05; done\n");
    let mut served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    with_image(&served).await;
    enter_as_before(&mut served, "job2", "store:again/job.img.zst").await;
    let (status, task) = served.post("/v1/images/job1/copy", json!({"store": "local"})).await;
    assert_eq!(status, 202, "{task}");
    let (status, code, detail) = refused(&served, "/v1/images/job2").await;
    assert_eq!((status, code.as_str()), (409, "in_use_by_task"), "{detail}");
    let (status, code, _) = refused(&served, "/v1/stores/local/files/job.img.zst").await;
    assert_eq!((status, code.as_str()), (409, "in_use_by_task"));
    // Nor does anything else begin to write there.
    served.add_node7().await;
    let url = format!("{}/v1/stores/local/files/job.img.zst", served.api_url);
    let wish = json!({"action": "capture", "host": "node7", "image": "x", "url": url});
    assert_eq!(served.post("/v1/jobs", wish).await.1["code"], "in_use_by_task");
    let wish = json!({"store": "again", "as": "job"});
    let (status, problem) = served.post("/v1/images/job1/copy", wish).await;
    assert_eq!((status, &problem["code"]), (409, &json!("in_use_by_task")), "{problem}");
    let id = &task["id"];
    assert_eq!(served.ask(Method::DELETE, &format!("/v1/tasks/{id}"), None).await.0, 202);
    wait("the task ends", async || {
        (served.get(&format!("/v1/tasks/{id}")).await["state"] == "failed").then_some(())
    })
    .await;
    let wish = json!({"store": "again", "as": "job"});
    let (status, problem) = served.post("/v1/images/job1/copy", wish).await;
    assert_eq!((status, &problem["code"]), (409, &json!("place_taken")), "{problem}");
}

#[tokio::test]
async fn two_captures_do_not_go_to_one_file() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    let node8 = json!({"name": "node8", "macs": [NODE8_MAC]});
    assert_eq!(served.post("/v1/hosts", node8).await.0, 201);
    with_image(&served).await;
    let capture = async |host: &str, image: &str, at: Value| {
        let mut wish = json!({"action": "capture", "host": host, "image": image});
        wish.as_object_mut().unwrap().extend(at.as_object().unwrap().clone());
        served.post("/v1/jobs", wish).await
    };
    let (status, first) = capture("node7", "one", json!({"store": "nas"})).await;
    assert_eq!(status, 202, "{first}");
    for url in ["nfs://nas/images/one.img.zst", "nfs://nas/images/./one.img.zst?uid=1"] {
        let (status, problem) = capture("node8", "two", json!({"url": url})).await;
        assert_eq!((status, &problem["code"]), (409, &json!("place_taken")), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("job {} ", first["id"])), "{problem}");
    }
    let taken = capture("node8", "two", json!({"url": "nfs://nas/images/job.img.zst"})).await;
    assert_eq!((taken.0, &taken.1["code"]), (409, &json!("place_taken")));
    let entered = entry("two", json!({"store": "again", "file": "one.img.zst"}));
    assert_eq!(served.post("/v1/images", entered).await.1["code"], "place_taken");
    assert_eq!(capture("node8", "two", json!({"store": "nas"})).await.0, 202);
    assert_eq!(served.post(&format!("/v1/jobs/{}/cancel", first["id"]), json!({})).await.0, 202);
    served.wait_state(first["id"].as_i64().unwrap(), "cancelled").await;
    let jobs = served.get("/v1/jobs?active=true").await;
    let job = &jobs[0]["id"];
    assert_eq!(served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await.0, 202);
    let url = json!({"url": "nfs://nas/images/one.img.zst"});
    assert_eq!(capture("node8", "three", url).await.0, 202, "its job is over");
    assert!(fs::read_dir(served.data().join("images")).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_in_its_place_stays() {
    let tools = tempfile::tempdir().unwrap();
    let program = agent_program(tools.path());
    let served = Served::start_with(&["--agent", program.to_str().unwrap()]).await;
    let (nas, own) = (served.path("nas"), served.data().join("images"));
    fs::create_dir(&nas).unwrap();
    let disk = served.path("disk");
    let [ours, theirs] = ["ours", "theirs"].map(|name| {
        fs::write(&disk, content(1 << 20, name.len() as u64)).unwrap();
        let file = nas.join(format!("{name}.img.zst"));
        let root = image(&disk, &file, &[]);
        fs::copy(&file, own.join(format!("{name}.img.zst"))).unwrap();
        root
    });
    assert_ne!(ours, theirs);
    fs::write(nas.join("bad.img.zst"), b"no image at all").unwrap();
    fs::write(own.join("bad.img.zst"), b"no image at all").unwrap();
    assert_eq!(served.post("/v1/stores", json!({"name": "nas", "url": nas})).await.0, 201);
    for (store, folder, answer) in
        [("nas", &nas, (502, "not_removed")), ("local", &own, (409, "other_root"))]
    {
        for file in ["ours", "theirs", "bad"] {
            let file = format!("{file}.img.zst");
            let image = json!({"name": format!("{store}-{file}"), "store": store, "file": file, "root": ours});
            assert_eq!(served.post("/v1/images", image).await.0, 201);
        }
        let wrong = format!("/v1/images/{store}-theirs.img.zst");
        let (status, code, detail) = refused(&served, &wrong).await;
        assert_eq!((status, code.as_str()), answer, "{detail}");
        assert!(detail.contains("holds another image"), "{detail}");
        assert!(detail.contains("--keep-file"), "{detail}");
        assert!(folder.join("theirs.img.zst").exists());
        assert_eq!(served.get(&wrong).await["root"], json!(ours), "the entry stays");
        assert_eq!(refused(&served, &format!("{wrong}?keep_file=true")).await.0, 204);
        assert!(folder.join("theirs.img.zst").exists());
        for file in ["bad", "ours"] {
            let path = format!("/v1/images/{store}-{file}.img.zst");
            assert_eq!(refused(&served, &path).await.0, 204, "{file}");
            assert!(!folder.join(format!("{file}.img.zst")).exists());
        }
    }
}
