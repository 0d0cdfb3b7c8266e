//! `kill -9` at any instant, and on again: no job is lost, no machine is switched twice, nothing is imaged twice.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::agents::{Agent, captured};
use crate::rig::{MAC, Served, answer, wait, write_program};

/// A machine as ipmitool shows it: what is asked goes to `calls`, what is done to `effects`. At the point that `hold` names the
/// program waits until the file is gone; if `drop` is there then, the command had no effect.
const IPMITOOL: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
echo "$*" >> calls
point() {
    [ "$(cat hold 2>/dev/null)" = "$1" ] || return 0
    echo > held
    while [ -e hold ]; do sleep 0.02; done
    [ ! -e drop ] || { rm drop; exit 1; }
}
switch() {
    point "before $1"
    echo "$1" >> effects
    [ "$1" = boot ] || echo "$1" > power
    point "after $1"
}
case "$*" in
    *"chassis power status") point status; echo "Chassis Power is $(cat power)" ;;
    *"chassis power on") switch on ;;
    *"chassis power off") switch off ;;
    *"chassis bootdev "*) switch boot ;;
    *) exit 1 ;;
esac
"#;

struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_program(&folder.path().join("ipmitool"), IPMITOOL);
        fs::write(folder.path().join("power"), "off\n").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Lines of `calls` or `effects` that hold `text`.
    fn count(&self, name: &str, text: &str) -> usize {
        let lines = fs::read_to_string(self.path(name)).unwrap_or_default();
        lines.lines().filter(|line| line.contains(text)).count()
    }

    async fn serve(&self) -> Served {
        let tool = self.path("ipmitool");
        let args = ["--store-url", "nfs://10.0.0.5/images", "--ipmitool", tool.to_str().unwrap()];
        let served = Served::start_with(&args).await;
        let bmc = json!({"driver": "ipmi", "host": "10.0.0.7", "user": "admin", "password": "x"});
        let host = json!({"name": "node7", "macs": [MAC], "bmc": bmc});
        assert_eq!(served.post("/v1/hosts", host).await.0, 201);
        served
    }
}

/// Kills the controller while ipmitool stands at `point`; `late`: what was asked happens only after the next start; `lost`: never.
async fn killed_at(point: &str, late: bool, lost: bool) -> Machine {
    let machine = Machine::new();
    let mut served = machine.serve().await;
    let wish = json!({"action": "capture", "host": "node7", "image": "debian"});
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    machine.put("hold", point);
    wait(point, async || machine.path("held").exists().then_some(())).await;
    served.kill();
    if lost {
        machine.put("drop", "");
    }
    if late {
        served.restart().await;
        fs::remove_file(machine.path("hold")).unwrap();
    } else {
        fs::remove_file(machine.path("hold")).unwrap();
        served.restart().await;
    }
    served.wait_state(job["id"].as_i64().unwrap(), "booting").await;
    assert_eq!(machine.count("effects", "on"), 1, "{point}: switched on once");
    assert_eq!(machine.count("effects", "off"), 0, "{point}: never switched off");
    assert!(machine.count("effects", "boot") >= 1, "{point}: boots from the network");
    machine
}

#[tokio::test]
async fn killed_while_it_speaks_to_a_bmc_it_switches_nothing_twice() {
    let (status, boot, done, late, lost) = tokio::join!(
        killed_at("status", false, false),
        killed_at("before boot", false, false),
        killed_at("after on", false, false),
        killed_at("before on", true, false),
        killed_at("before on", false, true),
    );
    for machine in [status, boot, done, late] {
        assert_eq!(machine.count("calls", "power on"), 1, "its effect was awaited, not repeated");
    }
    assert_eq!(lost.count("calls", "power on"), 2, "a command that was lost is given again");
}

#[tokio::test]
async fn killed_in_mid_job_it_goes_on_with_the_same_agent() {
    let machine = Machine::new();
    let mut served = machine.serve().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    agent.work().await;
    agent.report(job, 1, "capturing").await;
    let credential = agent.credential;
    for stage in ["verifying", "committing"] {
        served.kill();
        served.restart().await;
        let agent = Agent::with(&served, credential.clone());
        assert_eq!(agent.report(job, 2, stage).await.0, 200);
    }
    let agent = Agent::with(&served, credential.clone());
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    served.kill();
    served.restart().await;
    let agent = Agent::with(&served, credential);
    // The answer was lost: it is said again, and is the same outcome.
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    wait("its leave", async || (agent.work().await["kind"] == "finish").then_some(())).await;
    served.wait_state(job, "succeeded").await;
    let view = served.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(view["boots"], 1);
    assert_eq!(served.get("/v1/images").await.as_array().unwrap().len(), 1);
    // It boots its own system now, however lately its agent spoke: the next job does not touch it unasked.
    let wish = json!({"action": "capture", "host": "node7", "image": "another"});
    let (status, problem) = served.post("/v1/jobs", wish).await;
    assert_eq!((status, &problem["code"]), (409, &json!("host_is_on")));
    assert_eq!(machine.count("effects", "on"), 1);
    assert_eq!(machine.count("effects", "off"), 0);
}

#[tokio::test]
async fn killed_while_it_takes_a_job_it_has_it_once_or_not_at_all() {
    let mut served = Served::start().await;
    for round in 0..12_u64 {
        let (host, image) = (format!("node{round}"), format!("image{round}"));
        let mac = format!("52:54:00:77:01:{round:02x}");
        assert_eq!(served.post("/v1/hosts", json!({"name": host, "macs": [mac]})).await.0, 201);
        let post = |served: &Served| {
            let request = served
                .client()
                .post(format!("{}/v1/jobs", served.api_url))
                .bearer_auth(&served.token)
                .header("idempotency-key", &image)
                .json(&json!({"action": "capture", "host": host, "image": image}));
            async move { request.send().await }
        };
        let asked = tokio::spawn(post(&served));
        // Not a wait for anything: the instant of the kill is what is varied.
        tokio::time::sleep(Duration::from_micros(700 * round)).await;
        served.kill();
        // It may have been answered or not.
        let _ = asked.await.unwrap();
        served.restart().await;
        let (status, view) = answer(post(&served).await.unwrap()).await;
        assert!([200, 202].contains(&status), "{view}");
        let path = format!("/v1/jobs?host={host}");
        let jobs = served.get(&path).await;
        assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
        served.wait_state(view["id"].as_i64().unwrap(), "booting").await;
    }
}
