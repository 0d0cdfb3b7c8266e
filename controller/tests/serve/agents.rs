//! The agent's side of the API, message for message, and a job's way from planned to succeeded.

use std::io::Read;

use agent_api::{Redeem, Session, Ticket};
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{MAC, Served, answer};

/// An agent that has checked in.
pub struct Agent<'a> {
    served: &'a Served,
    pub credential: String,
}

/// The ticket in the segment that the boot script names.
pub async fn fetch_ticket(served: &Served) -> Ticket {
    fetch_ticket_of(served, MAC).await
}

async fn fetch_ticket_of(served: &Served, mac: &str) -> Ticket {
    let response = served.boot_file(&format!("/boot/ticket?mac={mac}")).await;
    assert_eq!(response.status(), 200);
    ticket_of(&response.bytes().await.unwrap())
}

pub fn ticket_of(segment: &[u8]) -> Ticket {
    let mut reader = cpio::newc::Reader::new(segment).unwrap();
    while format!("/{}", reader.entry().name()) != agent_api::TICKET_PATH {
        assert!(!reader.entry().is_trailer(), "no ticket in the segment");
        reader = cpio::newc::Reader::new(reader.finish().unwrap()).unwrap();
    }
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// What an agent on the machine with this MAC address sends first.
pub fn redemption(ticket: &Ticket, boot: u128, mac: &str) -> Value {
    let mut machine = agent_api::Machine { firmware: "bios".into(), ..Default::default() };
    machine.nics.push(agent_api::Nic { mac: mac.into(), ..Default::default() });
    let redeem = Redeem { secret: ticket.secret.clone(), boot_id: format!("{boot:032x}"), machine };
    serde_json::to_value(redeem).unwrap()
}

pub async fn redeem(served: &Served, body: &Value) -> (u16, Value) {
    answer(served.send(Method::POST, "/v1/agent/redeem", "", Some(body)).await).await
}

impl<'a> Agent<'a> {
    /// Fetches a ticket and redeems it.
    pub async fn check_in(served: &'a Served, boot: u128) -> Self {
        Self::check_in_as(served, boot, MAC).await
    }

    /// The same on the machine with this MAC address.
    pub async fn check_in_as(served: &'a Served, boot: u128, mac: &str) -> Self {
        let ticket = fetch_ticket_of(served, mac).await;
        let (status, value) = redeem(served, &redemption(&ticket, boot, mac)).await;
        assert_eq!(status, 200, "{value}");
        let session: Session = serde_json::from_value(value).unwrap();
        Self { served, credential: session.credential }
    }

    /// The agent that was granted this credential before.
    pub fn with(served: &'a Served, credential: String) -> Self {
        Self { served, credential }
    }

    pub async fn work(&self) -> Value {
        let response =
            self.served.send(Method::GET, "/v1/agent/work", &self.credential, None).await;
        let (status, value) = answer(response).await;
        assert_eq!(status, 200, "{value}");
        value
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let path = format!("/v1/agent/{path}");
        answer(self.served.send(Method::POST, &path, &self.credential, Some(&body)).await).await
    }

    pub async fn report(&self, job: i64, sequence: u64, stage: &str) -> (u16, Value) {
        let progress = json!({"stage": stage, "done_bytes": sequence, "total_bytes": 100, "stored_bytes": 0, "elapsed_ms": 1});
        let report = json!({"sequence": sequence, "progress": progress});
        self.post(&format!("jobs/{job}/report"), report).await
    }

    pub async fn outcome(&self, job: i64, outcome: Value) -> (u16, Value) {
        self.post(&format!("jobs/{job}/outcome"), outcome).await
    }
}

/// The outcome of a capture that went well.
pub fn captured() -> Value {
    json!({"result": "succeeded", "action": "capture", "root": "ab".repeat(32), "image_id": "i", "disk_bytes": 100, "used_bytes": 50, "stored_bytes": 20})
}

#[tokio::test]
async fn a_capture_and_a_restore_from_planned_to_succeeded() {
    let served = Served::start().await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let work = agent.work().await;
    assert_eq!(work["kind"], "job");
    assert_eq!(work["id"], job.to_string());
    assert_eq!(work["image_url"], "nfs://10.0.0.5/images/debian.img.zst");
    assert_eq!(served.state(job).await, "running");

    for (sequence, (stage, state)) in [
        ("planning", "running"),
        ("capturing", "running"),
        ("flushing", "running"),
        ("verifying", "verifying"),
        ("committing", "finalizing"),
        // Late news changes nothing.
        ("capturing", "finalizing"),
    ]
    .into_iter()
    .enumerate()
    {
        let sequence = u64::try_from(sequence).unwrap();
        assert_eq!(agent.report(job, sequence, stage).await.0, 200);
        assert_eq!(served.state(job).await, state, "{stage}");
    }
    // Said twice, as an agent does whose answer got lost.
    for _ in 0..2 {
        assert_eq!(agent.outcome(job, captured()).await.0, 200);
    }
    assert_eq!(agent.work().await, json!({"kind": "finish", "how": "reboot"}));
    served.wait_state(job, "succeeded").await;
    assert!(served.script(MAC).await.ends_with("exit 1\n"), "the machine boots its disk");

    let image = served.get("/v1/images/debian").await;
    assert_eq!(image["root"], "ab".repeat(32));
    assert_eq!(image["host"], "node7");
    let detail = served.get(&format!("/v1/jobs/{job}")).await;
    let path: Vec<&str> = detail["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["kind"] == "transition")
        .map(|event| event["to"].as_str().unwrap())
        .collect();
    let states = ["planned", "armed", "powering", "booting", "running"];
    let ends = ["verifying", "finalizing", "succeeded"];
    assert_eq!(path, [&states[..], &ends[..]].concat());

    // The catalogue's root hash goes with the restore.
    let wish = json!({"action": "restore", "host": "node7", "image": "debian", "disk": "serial=X"});
    let (status, value) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{value}");
    let job = value["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 2).await;
    let work = agent.work().await;
    assert_eq!(work["options"]["expect_root"], "ab".repeat(32));
    assert_eq!(work["disk"], "serial=X");
    assert_eq!(work["options"]["delta"], false);
    // Whoever asks again has been interrupted: what is on the disk by now need not be fetched again.
    assert_eq!(agent.work().await["options"]["delta"], true);
    let failure = json!({"result": "failed", "kind": "no_space", "message": "the disk is too small by 7 bytes"});
    assert_eq!(agent.outcome(job, failure).await.0, 200);
    served.wait_state(job, "failed").await;
    let view = served.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(view["failure"]["kind"], "no_space");
    assert_eq!(view["failure"]["retryable"], false);
}

/// A host that starts what it has restored by kexec: after a restore only, and what its agent says of that is in the job's history.
#[tokio::test]
async fn a_restored_system_is_started_by_kexec_and_a_captured_one_is_not() {
    let served = Served::start().await;
    served.add_node7().await;
    let (status, host) =
        served.ask(Method::PATCH, "/v1/hosts/node7", Some(&json!({"finish": "kexec"}))).await;
    assert_eq!((status, &host["finish"]), (200, &json!("kexec")));
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    agent.work().await;
    let note = |text: &str| json!({ "text": text });
    let (status, refused) = agent.post(&format!("jobs/{job}/note"), note("too early")).await;
    assert_eq!((status, &refused["code"]), (409, &json!("not_done")));
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    assert_eq!(agent.work().await, json!({"kind": "finish", "how": "reboot"}));
    served.wait_state(job, "succeeded").await;

    let wish = json!({"action": "restore", "host": "node7", "image": "debian"});
    let job = served.post("/v1/jobs", wish).await.1["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 2).await;
    agent.work().await;
    let done = json!({"result": "succeeded", "action": "restore", "root": "ab".repeat(32)});
    assert_eq!(agent.outcome(job, done).await.0, 200);
    assert_eq!(agent.work().await, json!({"kind": "finish", "how": "kexec"}));
    served.wait_state(job, "succeeded").await;
    // Its job is over by then.
    let path = format!("jobs/{job}/note");
    assert_eq!(agent.post(&path, note("the machine starts /k\u{1b}[1m, by kexec")).await.0, 204);
    let detail = served.get(&format!("/v1/jobs/{job}")).await;
    let events = detail["events"].as_array().unwrap();
    let causes: Vec<&str> = events.iter().filter_map(|event| event["cause"].as_str()).collect();
    assert!(causes.contains(&"the machine is to start the restored system's kernel"), "{causes:?}");
    let said = events.last().unwrap();
    assert_eq!((&said["kind"], &said["actor"]), (&json!("note"), &json!("agent")), "{said}");
    let text = said["cause"].as_str().unwrap();
    assert!(text.starts_with("the machine starts /k") && !text.contains('\u{1b}'), "{text}");
    for _ in 0..20 {
        agent.post(&path, note("again")).await;
    }
    assert_eq!(agent.post(&path, note("again")).await.1["code"], "too_many_notes");
}

#[tokio::test]
async fn a_cancelled_job_is_called_back_from_its_agent() {
    let served = Served::start().await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    agent.work().await;
    assert_eq!(agent.report(job, 1, "capturing").await.1["cancel_job"], Value::Null);
    let (status, value) = served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!((status, &value["state"]), (202, &json!("running")));
    assert_eq!(agent.report(job, 2, "capturing").await.1["cancel_job"], job.to_string());
    let outcome = json!({"result": "failed", "kind": "cancelled", "message": "as asked"});
    assert_eq!(agent.outcome(job, outcome).await.0, 200);
    served.wait_state(job, "cancelled").await;
    // A terminal state stays, whoever says what.
    assert_eq!(agent.report(job, 3, "verifying").await.0, 200);
    assert_eq!(agent.outcome(job, captured()).await.0, 200);
    assert_eq!(served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await.0, 409);
    assert_eq!(served.state(job).await, "cancelled");
    assert_eq!(served.get("/v1/images").await, json!([]));
}

#[tokio::test]
async fn an_agent_has_no_say_in_another_job() {
    let served = Served::start().await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let other = job + 1;
    assert_eq!(agent.report(other, 1, "verifying").await.0, 403);
    assert_eq!(agent.outcome(other, captured()).await.0, 403);
    let mut rootless = captured();
    rootless["root"] = json!("\u{1b}[2J");
    for nonsense in [json!({"result": "dance"}), rootless] {
        let (status, value) = agent.outcome(job, nonsense).await;
        assert_eq!((status, &value["code"]), (422, &json!("invalid")));
    }
    agent.work().await;
    let mut restored = captured();
    restored["action"] = json!("restore");
    let (status, value) = agent.outcome(job, restored).await;
    assert_eq!((status, &value["code"]), (409, &json!("wrong_outcome")));
    let failure = json!({"result": "failed", "kind": "disk", "message": "bad\u{1b}[2J\nnews"});
    assert_eq!(agent.outcome(job, failure).await.0, 200);
    let view = served.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(view["failure"]["message"], "bad[2J news", "nothing for a terminal to obey");
}
