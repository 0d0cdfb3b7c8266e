//! A ticket is worth one boot of one machine for one job, and nothing more.

use std::collections::HashSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::agents::{Agent, captured, fetch_ticket, redeem, redemption};
use crate::rig::{MAC, Served, answer};

/// A controller with a job that waits for its machine.
async fn booting() -> (Served, i64) {
    let served = Served::start().await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    (served, job)
}

async fn alarms(served: &Served, job: i64) -> Vec<String> {
    let detail = served.get(&format!("/v1/jobs/{job}")).await;
    let events = detail["events"].as_array().unwrap().iter();
    events
        .filter(|event| event["kind"] == "alarm")
        .map(|event| event["cause"].as_str().unwrap().to_owned())
        .collect()
}

async fn work_status(served: &Served, credential: &str) -> u16 {
    served.send(Method::GET, "/v1/agent/work", credential, None).await.status().as_u16()
}

#[tokio::test]
async fn the_same_boot_may_ask_again_and_gets_another_credential() {
    let (served, _) = booting().await;
    let ticket = fetch_ticket(&served).await;
    let body = redemption(&ticket, 1, MAC);
    let (_, first) = redeem(&served, &body).await;
    let (status, second) = redeem(&served, &body).await;
    assert_eq!(status, 200, "{second}");
    assert_ne!(first["credential"], second["credential"]);
    assert_eq!(work_status(&served, first["credential"].as_str().unwrap()).await, 401);
    assert_eq!(work_status(&served, second["credential"].as_str().unwrap()).await, 200);
}

#[tokio::test]
async fn another_boot_pauses_the_job_and_raises_an_alarm() {
    let (served, job) = booting().await;
    let ticket = fetch_ticket(&served).await;
    assert_eq!(redeem(&served, &redemption(&ticket, 1, MAC)).await.0, 200);
    let (status, problem) = redeem(&served, &redemption(&ticket, 2, MAC)).await;
    assert_eq!((status, &problem["code"]), (409, &json!("ticket_used")));
    let view = served.get(&format!("/v1/jobs/{job}")).await;
    assert!(view["needs_attention"].as_str().unwrap().contains("second time"), "{view}");
    assert_eq!(alarms(&served, job).await.len(), 1);
    assert!(served.script(MAC).await.ends_with("exit 1\n"), "a paused job boots nothing");
}

#[tokio::test]
async fn a_paused_job_takes_no_outcome_until_it_is_resumed() {
    let (served, job) = booting().await;
    let ticket = fetch_ticket(&served).await;
    let (_, session) = redeem(&served, &redemption(&ticket, 1, MAC)).await;
    let credential = session["credential"].as_str().unwrap();
    assert_eq!(work_status(&served, credential).await, 200);
    assert_eq!(redeem(&served, &redemption(&ticket, 2, MAC)).await.0, 409);
    let tell = async || {
        let path = format!("/v1/agent/jobs/{job}/outcome");
        answer(served.send(Method::POST, &path, credential, Some(&captured())).await).await
    };
    let (status, problem) = tell().await;
    assert_eq!((status, &problem["code"]), (503, &json!("job_paused")));
    assert_eq!(served.get("/v1/images").await, json!([]));
    assert_eq!(served.post(&format!("/v1/jobs/{job}/resume"), json!({})).await.0, 202);
    assert_eq!(tell().await.0, 200);
    assert_eq!(served.get("/v1/images").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn of_many_at_once_exactly_one_wins() {
    let (served, job) = booting().await;
    let ticket = fetch_ticket(&served).await;
    let bodies: Vec<Value> = (0..40).map(|boot| redemption(&ticket, boot, MAC)).collect();
    let answers = join_all(bodies.iter().map(|body| redeem(&served, body))).await;
    let granted: Vec<_> = answers.iter().filter(|(status, _)| *status == 200).collect();
    assert_eq!(granted.len(), 1);
    assert!(answers.iter().all(|(status, _)| [200, 409].contains(status)));
    assert_eq!(alarms(&served, job).await.len(), 1, "one alarm, not one for each");
}

#[tokio::test]
async fn only_the_newest_ticket_counts() {
    let (served, _) = booting().await;
    let old = fetch_ticket(&served).await;
    let new = fetch_ticket(&served).await;
    let (status, problem) = redeem(&served, &redemption(&old, 1, MAC)).await;
    assert_eq!((status, &problem["code"]), (403, &json!("ticket_unknown")));
    assert_eq!(redeem(&served, &redemption(&new, 1, MAC)).await.0, 200);
}

#[tokio::test]
async fn a_ticket_is_not_for_another_machine() {
    let (served, job) = booting().await;
    let ticket = fetch_ticket(&served).await;
    let stranger = redemption(&ticket, 1, "52:54:00:77:00:99");
    let (status, problem) = redeem(&served, &stranger).await;
    assert_eq!((status, &problem["code"]), (403, &json!("wrong_machine")));
    assert_eq!(alarms(&served, job).await.len(), 1);
    // The UUID of the first check-in is remembered, and another one is another machine.
    let uuid = |last: &str| json!(format!("4c4c4544-0000-2010-8020-80c04f20202{last}"));
    let mut right = redemption(&ticket, 2, MAC);
    right["machine"]["uuid"] = uuid("0");
    assert_eq!(redeem(&served, &right).await.0, 200);
    assert_eq!(served.get("/v1/hosts/node7").await["uuid"], uuid("0"));
    let mut other = redemption(&ticket, 2, MAC);
    other["machine"]["uuid"] = uuid("1");
    assert_eq!(redeem(&served, &other).await.1["code"], "wrong_machine");
}

#[tokio::test]
async fn garbage_is_no_ticket() {
    let (served, _) = booting().await;
    let ticket = fetch_ticket(&served).await;
    let good = redemption(&ticket, 1, MAC);
    let upper = ticket.secret.to_ascii_uppercase();
    let guess = "0".repeat(64);
    for secret in ["", "x", &ticket.secret[..63], upper.as_str()] {
        let mut body = good.clone();
        body["secret"] = json!(secret);
        assert_eq!(redeem(&served, &body).await.0, 422, "{secret:?}");
    }
    let mut body = good.clone();
    body["secret"] = json!(guess);
    assert_eq!(redeem(&served, &body).await.0, 403);
    let mut body = good.clone();
    body["boot_id"] = json!("../../x");
    assert_eq!(redeem(&served, &body).await.0, 422);
    assert_eq!(redeem(&served, &good).await.0, 200, "none of it used the ticket up");
}

#[tokio::test]
async fn boot_files_are_handed_out_three_times_only() {
    let (served, job) = booting().await;
    let mut secrets = HashSet::new();
    for _ in 0..3 {
        assert!(served.script(MAC).await.contains("/boot/ticket?"));
        assert!(secrets.insert(fetch_ticket(&served).await.secret));
    }
    assert!(served.script(MAC).await.ends_with("exit 1\n"));
    assert_eq!(served.boot_file(&format!("/boot/ticket?mac={MAC}")).await.status(), 404);
    assert_eq!(served.get(&format!("/v1/jobs/{job}")).await["boots"], 3);
}

#[tokio::test]
async fn while_an_agent_speaks_nobody_else_gets_a_ticket() {
    let (served, job) = booting().await;
    let agent = Agent::check_in(&served, 1).await;
    // Before it asked for work, and after.
    for _ in 0..2 {
        assert_eq!(served.boot_file(&format!("/boot/ticket?mac={MAC}")).await.status(), 404);
        agent.work().await;
    }
    assert_eq!(served.state(job).await, "running");
}

#[tokio::test]
async fn the_ticket_of_a_cancelled_job_opens_nothing() {
    let (served, job) = booting().await;
    let ticket = fetch_ticket(&served).await;
    assert_eq!(served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await.0, 202);
    assert_eq!(served.state(job).await, "cancelled");
    let (status, problem) = redeem(&served, &redemption(&ticket, 1, MAC)).await;
    assert_eq!((status, &problem["code"]), (403, &json!("not_wanted")));
}
