//! A restore whose plan somebody approves first.

use reqwest::Method;
use serde_json::{Value, json};

use crate::agents::Agent;
use crate::rig::Served;

fn plan(hash: &str) -> Value {
    json!({
        "result": "succeeded", "action": "plan", "hash": hash, "text": "target     /dev/sda\nplan       …",
        "plan": {"hash": hash}, "disk": "serial=X,size>=1,size<=1",
    })
}

/// A restore that waits for its agent, asked for with this as well.
async fn asked_for(served: &Served, with: Value) -> i64 {
    served.add_node7().await;
    let image =
        json!({"name": "gold", "url": "nfs://10.0.0.5/i/gold.img.zst", "root": "ab".repeat(32)});
    assert_eq!(served.post("/v1/images", image).await.0, 201);
    let mut wish = json!({"action": "restore", "host": "node7", "image": "gold"});
    wish.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
    let (status, job) = served.post("/v1/jobs", wish).await;
    assert_eq!(status, 202, "{job}");
    let job = job["id"].as_i64().unwrap();
    served.wait_state(job, "booting").await;
    job
}

async fn approve(served: &Served, job: i64, hash: &str) -> (u16, Value) {
    served.post(&format!("/v1/jobs/{job}/approve"), json!({"plan": hash})).await
}

#[tokio::test]
async fn nothing_is_written_before_the_plan_was_approved() {
    let served = Served::start().await;
    let job = asked_for(&served, json!({"approval": true})).await;
    let (hash, other) = ("1a".repeat(32), "2b".repeat(32));
    assert_eq!(approve(&served, job, &hash).await.1["code"], "nothing_to_approve");

    let agent = Agent::check_in(&served, 1).await;
    assert_eq!(agent.work().await["action"], "plan");
    assert_eq!(agent.outcome(job, plan(&hash)).await.0, 200);
    assert_eq!(served.state(job).await, "awaiting_approval");
    // An agent that did not hear the answer says it again.
    assert_eq!(agent.outcome(job, plan(&hash)).await.0, 200);
    let shown = served.get(&format!("/v1/jobs/{job}")).await;
    assert_eq!(shown["plan"]["hash"], hash.as_str());
    let text = served.imprint(&["job", "approve", &job.to_string()]);
    assert!(String::from_utf8(text.stdout).unwrap().contains(&hash));

    let (status, problem) = approve(&served, job, &other).await;
    assert_eq!((status, &problem["code"]), (409, &json!("other_plan")), "{problem}");
    assert_eq!(approve(&served, job, "zz").await.0, 422);
    assert_eq!(served.state(job).await, "awaiting_approval");
    let (status, view) = approve(&served, job, &hash).await;
    assert_eq!((status, &view["state"]), (202, &json!("running")), "{view}");
    assert_eq!(approve(&served, job, &hash).await.0, 409, "once is enough");

    let work = agent.work().await;
    assert_eq!((&work["action"], &work["disk"]), (&json!("restore"), &Value::Null));
    assert_eq!(work["options"]["expect_plan"], hash.as_str());
    // A late repetition of the plan does not take the approval back.
    assert_eq!(agent.outcome(job, plan(&hash)).await.0, 200);
    assert_eq!(served.state(job).await, "running");
    // Until something was written the plan must still be the same; from then on it must be the same disk.
    agent.report(job, 1, "comparing").await;
    assert_eq!(agent.work().await["options"]["expect_plan"], hash.as_str());
    agent.report(job, 2, "restoring").await;
    let work = agent.work().await;
    assert_eq!(work["options"]["expect_plan"], Value::Null);
    assert_eq!(work["options"]["delta"], true);
    assert_eq!(work["disk"], "serial=X,size>=1,size<=1");
}

#[tokio::test]
async fn a_plan_that_is_expected_is_demanded_until_something_was_written() {
    let mut served = Served::start().await;
    let (hash, other) = ("1a".repeat(32), "2b".repeat(32));
    let job = asked_for(&served, json!({"expect_plan": hash})).await;
    // The agent makes the plan first, so that the disk is known by which the restore goes on later; it refuses another plan by itself.
    let agent = Agent::check_in(&served, 1).await;
    let work = agent.work().await;
    assert_eq!((&work["action"], &work["disk"]), (&json!("plan"), &Value::Null));
    assert_eq!(work["options"]["expect_plan"], hash.as_str());
    assert_eq!(agent.outcome(job, plan(&hash)).await.0, 200);
    assert_eq!(served.state(job).await, "running", "nobody has to approve it");
    assert_eq!(agent.outcome(job, plan(&hash)).await.0, 200);
    for stage in ["planning", "comparing"] {
        let work = agent.work().await;
        assert_eq!((&work["action"], &work["disk"]), (&json!("restore"), &Value::Null), "{stage}");
        assert_eq!(work["options"]["expect_plan"], hash.as_str(), "{stage}");
        agent.report(job, if stage == "planning" { 1 } else { 2 }, stage).await;
    }
    // The report of the stage in which writing began was lost; what comes later says it as well. It is stored.
    agent.report(job, 3, "verifying").await;
    let credential = agent.credential;
    served.restart().await;
    let work = Agent::with(&served, credential).work().await;
    assert_eq!(work["options"]["expect_plan"], Value::Null);
    assert_eq!(work["options"]["delta"], true);
    assert_eq!(work["disk"], "serial=X,size>=1,size<=1");
    drop(served);

    // Should an agent come with another plan all the same, a person decides.
    let served = Served::start().await;
    let job = asked_for(&served, json!({"expect_plan": hash})).await;
    let agent = Agent::check_in(&served, 1).await;
    agent.work().await;
    assert_eq!(agent.outcome(job, plan(&other)).await.0, 200);
    assert_eq!(served.state(job).await, "awaiting_approval");
}

#[tokio::test]
async fn a_restore_that_waits_can_be_cancelled() {
    let served = Served::start().await;
    let job = asked_for(&served, json!({"approval": true})).await;
    let agent = Agent::check_in(&served, 1).await;
    agent.work().await;
    agent.outcome(job, plan(&"1a".repeat(32))).await;
    assert_eq!(served.ask(Method::POST, &format!("/v1/jobs/{job}/cancel"), None).await.0, 202);
    assert_eq!(served.state(job).await, "cancelled");
    assert_eq!(approve(&served, job, &"1a".repeat(32)).await.1["code"], "nothing_to_approve");
    assert_eq!(agent.work().await["kind"], "finish");
}

#[tokio::test]
async fn plans_are_for_those_who_were_asked() {
    let served = Served::start().await;
    served.add_node7().await;
    let wish = json!({"action": "capture", "host": "node7", "image": "x", "approval": true});
    assert_eq!(served.post("/v1/jobs", wish).await.0, 422);
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    agent.work().await;
    let (status, problem) = agent.outcome(job, plan(&"1a".repeat(32))).await;
    assert_eq!((status, &problem["code"]), (409, &json!("wrong_outcome")), "{problem}");
    assert_eq!(agent.outcome(job, plan("x")).await.0, 422);
    assert_eq!(served.state(job).await, "running");
}
