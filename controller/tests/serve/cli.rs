//! `imprint` as its users type it.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};

use crate::agents::{Agent, captured};
use crate::rig::{MAC, Served};

fn text(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn done(served: &Served, args: &[&str]) -> String {
    let output = served.imprint(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn json(served: &Served, args: &[&str]) -> Value {
    serde_json::from_str(&done(served, args)).unwrap()
}

#[tokio::test]
async fn hosts_from_entering_to_removing() {
    let served = Served::start().await;
    let password = served.path("password");
    fs::write(&password, "hunter2\n").unwrap();
    let (file, mac) = (password.to_str().unwrap(), "52-54-00-77-00-0A");
    let bmc = ["--bmc", "ipmi://10.0.0.7", "--bmc-user", "admin", "--bmc-password-file", file];
    let args =
        ["host", "add", "node7", "--mac", mac, "--firmware", "uefi", "--notes", "top of rack"];
    let shown = done(&served, &[&args[..], &bmc[..]].concat());
    assert!(shown.contains("ipmi://10.0.0.7, user admin"), "{shown}");
    assert!(!shown.contains("hunter2"));

    let hosts = json(&served, &["host", "list", "--json"]);
    assert_eq!(hosts[0]["macs"], json!(["52:54:00:77:00:0a"]));
    assert_eq!(hosts[0]["bmc"]["port"], 623);
    assert!(done(&served, &["host", "list"]).contains("node7"));
    done(&served, &["host", "set", "node7", "--finish", "off"]);
    let host = json(&served, &["host", "show", "node7", "--json"]);
    assert_eq!((&host["finish"], &host["firmware"]), (&json!("off"), &json!("uefi")));

    let twice = served.imprint(&["host", "add", "node7", "--mac", "52:54:00:77:00:02"]);
    assert_eq!(twice.status.code(), Some(1));
    assert!(text(&twice).contains("host_exists"), "{}", text(&twice));
    let same_mac = served.imprint(&["host", "add", "node8", "--mac", mac]);
    assert!(text(&same_mac).contains("mac_in_use"), "{}", text(&same_mac));
    done(&served, &["host", "rm", "node7"]);
    let gone = served.imprint(&["host", "show", "node7"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone).contains("there is no host node7"), "{}", text(&gone));
}

#[tokio::test]
async fn a_job_that_is_waited_for_decides_the_exit_code() {
    let served = Served::start().await;
    served.add_node7().await;
    for (number, ends_well) in [(1, true), (2, false)] {
        let image = format!("debian-{number}");
        let args = ["capture", "node7", &image, "--level", "5", "--wait", "--json"];
        let job = i64::from(number);
        let play_agent = async {
            crate::rig::wait("the job is there", async || {
                let path = format!("/v1/jobs/{job}");
                let (_, view) = served.ask(reqwest::Method::GET, &path, None).await;
                (view["state"] == "booting").then_some(())
            })
            .await;
            let agent = Agent::check_in(&served, u128::try_from(number).unwrap()).await;
            assert_eq!(agent.work().await["options"]["level"], 5);
            agent.report(job, 50, "capturing").await;
            let failure =
                json!({"result": "failed", "kind": "store", "message": "the store is gone"});
            agent.outcome(job, if ends_well { captured() } else { failure }).await;
            agent.work().await;
        };
        let (waited, ()) = tokio::join!(served.imprint_beside(&args), play_agent);
        assert_eq!(waited.status.success(), ends_well, "{}", text(&waited));
        let out = String::from_utf8(waited.stdout).unwrap();
        let lines: Vec<Value> =
            out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!lines.is_empty());
    }
    let jobs = json(&served, &["jobs", "--json"]);
    assert_eq!(jobs.as_array().unwrap().len(), 2);
    assert!(done(&served, &["jobs"]).contains("failed: store"));
    assert!(done(&served, &["job", "show", "1"]).contains("finalizing → succeeded"));
    assert!(done(&served, &["images"]).contains("debian-1"));
    assert_eq!(served.imprint(&["watch", "1"]).status.code(), Some(0));
    assert_eq!(served.imprint(&["watch", "2"]).status.code(), Some(1));
}

#[tokio::test]
async fn images_and_tokens() {
    let served = Served::start().await;
    let root = "cd".repeat(32);
    done(&served, &["image", "add", "gold", "nfs://10.0.0.5/i/gold.img.zst", "--root", &root]);
    assert_eq!(json(&served, &["images", "--json"])[0]["root"], root.as_str());
    let twice = served.imprint(&["image", "add", "gold", "/x", "--root", &root]);
    assert!(text(&twice).contains("image_exists"), "{}", text(&twice));
    done(&served, &["image", "rm", "gold", "--keep-file"]);
    assert_eq!(json(&served, &["images", "--json"]), json!([]));

    let token = done(&served, &["token", "add", "ci"]);
    let token = token.split_whitespace().find(|word| word.len() == 64).unwrap().to_owned();
    let file = served.path("token");
    fs::write(&file, &token).unwrap();
    let with = ["--token-file", file.to_str().unwrap(), "host", "list"];
    assert!(served.imprint(&with).status.success());
    assert!(done(&served, &["token", "list"]).contains("ci"));
    done(&served, &["token", "rm", "ci"]);
    let refused = served.imprint(&with);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("unauthorized"), "{}", text(&refused));
}

#[tokio::test]
async fn wrong_use_and_wrong_servers_are_told_apart() {
    let served = Served::start().await;
    served.add_node7().await;
    for args in
        [&["capture", "node7"][..], &["fly"], &["host", "add", "x"], &["host", "power", "x", "up"]]
    {
        assert_eq!(served.imprint(args).status.code(), Some(2), "{args:?}");
    }
    for args in [
        &["host", "show", "../hosts"][..],
        &["capture", "node8", "x"],
        &["restore", "node7", "nope"],
        &["capture", "node7", "x", "--url", "smb://u:secret@h/s/x"],
        &["host", "power", "node7", "on"],
        &["image", "add", "x", "/x", "--root", "abc"],
        &["job", "show", "77"],
    ] {
        let output = served.imprint(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output));
        assert!(text(&output).starts_with("imprint: "), "{args:?}: {}", text(&output));
    }
    // Another key than the pinned one is another server, and gets no token.
    let pin = "0".repeat(64);
    let output = served.imprint(&["--pin", &pin, "host", "list"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not the controller that was meant"), "{}", text(&output));
    let shown = done(&served, &["host", "show", "node7"]);
    assert!(shown.contains(MAC));
}

#[tokio::test]
async fn manual_pages_and_completions() {
    let served = Served::start().await;
    let folder = served.path("man");
    done(&served, &["man", folder.to_str().unwrap()]);
    for page in ["imprint.1", "imprint-serve.1", "imprint-host-add.1", "imprint-initramfs-build.1"]
    {
        assert!(fs::metadata(folder.join(page)).unwrap().len() > 100, "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(done(&served, &["completions", shell]).contains("capture"), "{shell}");
    }
}
