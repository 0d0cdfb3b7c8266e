//! The API as a whole: who may do what, what its errors look like, what its description says.

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::agents::Agent;
use crate::rig::{Served, answer};

/// Every operation of the description: method, path with names filled in, and whether it is open to everybody.
fn operations(description: &Value) -> Vec<(Method, String, bool)> {
    let mut found = Vec::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let path = path.replace("{name}", "node7").replace("{id}", "1");
            let open = operation["security"] == json!([{}]);
            found.push((method.to_uppercase().parse().unwrap(), path, open));
        }
    }
    found
}

#[tokio::test]
async fn every_operation_refuses_everybody_it_is_not_for() {
    let served = Served::start().await;
    served.add_node7().await;
    let (_, other) = served.post("/v1/tokens", json!({"name": "gone"})).await;
    let removed = other["token"].as_str().unwrap().to_owned();
    assert_eq!(served.ask(Method::DELETE, "/v1/tokens/gone", None).await.0, 204);
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let agent = Agent::check_in(&served, 1).await;
    let (admin, wrong) = (served.token.clone(), "0".repeat(64));

    let operations = operations(&served.get("/openapi.json").await);
    assert!(operations.len() > 20, "{operations:?}");
    let open: Vec<_> =
        operations.iter().filter(|(.., open)| *open).map(|(_, path, _)| path.as_str()).collect();
    assert_eq!(open, ["/healthz", "/v1/agent/redeem"]);
    for (method, path, open) in &operations {
        let for_agents = path.starts_with("/v1/agent/");
        let foreign = if for_agents { &admin } else { &agent.credential };
        for (who, token) in [
            ("nobody", ""),
            ("malformed", "x"),
            ("wrong", &wrong),
            ("removed", &removed),
            ("of the other kind", foreign),
        ] {
            let response = served.send(method.clone(), path, token, Some(&json!({}))).await;
            let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
            let challenge = response.headers().contains_key("www-authenticate");
            let (status, problem) = answer(response).await;
            if *open {
                assert_ne!(status, 401, "{method} {path} with a token that is {who}");
                continue;
            }
            assert_eq!(status, 401, "{method} {path} with a token that is {who}: {problem}");
            assert_eq!(problem["code"], "unauthorized");
            assert_eq!(kind, "application/problem+json");
            assert!(challenge);
        }
    }
    assert_eq!(served.get("/v1/hosts").await.as_array().unwrap().len(), 1, "nothing was removed");
    // The token also goes by its header only.
    let by_query = format!("/v1/hosts?token={admin}&access_token={admin}");
    assert_eq!(served.send(Method::GET, &by_query, "", None).await.status(), 401);
}

#[tokio::test]
async fn options_that_the_action_does_not_have_are_named() {
    let served = Served::start().await;
    served.add_node7().await;
    for (options, says) in [
        (json!({"levle": 3}), "levle is not an option of a capture; those are"),
        (json!({"scrub_free": true}), "scrub_free is not an option of a capture"),
        (json!({"level": "high"}), "level: invalid type"),
        (json!({"level": 20}), "level 20 is not between 1 and 19"),
        (json!({"disk": "seral=A"}), "by-path=…"),
        (json!({"dirty": "maybe"}), "dirty: unknown variant"),
        (json!({"url": "nfs://h/i/a.raw?uid=7"}), "a.raw is the name of a raw disk"),
        (json!({"url": "nfs://h/i/a.imgd"}), "base"),
    ] {
        let mut body = json!({"action": "capture", "host": "node7", "image": "debian"});
        body.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let (status, problem) = served.post("/v1/jobs", body).await;
        assert_eq!((status, &problem["code"]), (422, &json!("invalid")), "{options}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(says), "{problem}");
    }
    let body = json!({"action": "restore", "host": "node7", "image": "debian", "require_signature": "site.pub"});
    let (status, problem) = served.post("/v1/jobs", body).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("no minisign public key"), "{problem}");
    let body =
        json!({"action": "restore", "host": "node7", "image": "debian", "expect_plan": "zz"});
    let (status, problem) = served.post("/v1/jobs", body).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("no hash of a plan"), "{problem}");
    assert_eq!(served.get("/v1/jobs").await, json!([]));
}

#[tokio::test]
async fn errors_are_problems_with_a_stable_code() {
    let served = Served::start().await;
    served.add_node7().await;
    for (method, path, body, status, code) in [
        (Method::GET, "/v1/hosts/none", None, 404, "not_found"),
        (Method::GET, "/nowhere", None, 404, "not_found"),
        (Method::PUT, "/v1/hosts", None, 405, "method_not_allowed"),
        (Method::POST, "/v1/hosts", Some(json!({"name": "a"})), 422, "invalid"),
        (Method::POST, "/v1/hosts", Some(json!({"name": "a", "macs": []})), 422, "invalid"),
        (Method::POST, "/v1/jobs", Some(json!({"surprise": 1})), 422, "invalid"),
        (Method::GET, "/v1/jobs?hots=node7", None, 400, "invalid"),
        // A misspelled driver's members do not make a host that somebody switches by hand.
        (
            Method::PATCH,
            "/v1/hosts/node7",
            Some(json!({"bmc": {"driver": "manual", "host": "10.0.0.7"}})),
            422,
            "invalid",
        ),
        (Method::GET, "/v1/jobs/x", None, 400, "invalid"),
        (Method::GET, "/v1/jobs/x/events", None, 400, "invalid"),
        (Method::GET, "/v1/jobs?limit=x", None, 400, "invalid"),
        (Method::GET, "/v1/jobs/99", None, 404, "not_found"),
        (Method::GET, "/v1/hosts/node7/power", None, 409, "no_bmc"),
    ] {
        let response = served.send(method.clone(), path, &served.token, body.as_ref()).await;
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        let (got, problem) = answer(response).await;
        assert_eq!((got, &problem["code"]), (status, &json!(code)), "{method} {path}: {problem}");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_long_body_is_not_read() {
    let served = Served::start().await;
    let request = served
        .client()
        .post(format!("{}/v1/hosts", served.api_url))
        .bearer_auth(&served.token)
        .json(&json!({"name": "x".repeat(64 << 20)}));
    // The answer comes while the body is still being sent: the client may notice only that nobody reads on.
    if let Ok(response) = request.send().await {
        let (status, problem) = answer(response).await;
        assert_eq!((status, &problem["code"]), (413, &json!("too_large")));
    }
    assert_eq!(served.get("/v1/hosts").await, json!([]));
}

#[tokio::test]
async fn one_job_for_each_host_and_each_new_image() {
    let served = Served::start().await;
    served.add_node7().await;
    let other = json!({"name": "node8", "macs": ["52:54:00:77:00:02"]});
    assert_eq!(served.post("/v1/hosts", other).await.0, 201);
    let wish = |host: &str, image: &str| json!({"action": "capture", "host": host, "image": image});
    let posts = (0..10).map(|_| served.post("/v1/jobs", wish("node7", "debian")));
    let answers = join_all(posts).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 202).count(), 1);
    assert_eq!(answers.iter().filter(|(status, _)| *status == 409).count(), 9);
    let (status, problem) = served.post("/v1/jobs", wish("node8", "debian")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("image_in_use")));
    assert_eq!(served.post("/v1/jobs", wish("node8", "other")).await.0, 202);
    let (status, problem) = served.ask(Method::DELETE, "/v1/hosts/node7", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("host_busy")));
}

#[tokio::test]
async fn the_same_idempotency_key_makes_one_job() {
    let served = Served::start().await;
    served.add_node7().await;
    let post = async |key: &str, image: &str| {
        let request = served
            .client()
            .post(format!("{}/v1/jobs", served.api_url))
            .bearer_auth(&served.token)
            .header("idempotency-key", key)
            .json(&json!({"action": "capture", "host": "node7", "image": image}));
        answer(request.send().await.unwrap()).await
    };
    let answers = join_all((0..10).map(|_| post("k1", "debian"))).await;
    let ids: Vec<_> = answers.iter().map(|(_, view)| &view["id"]).collect();
    assert!(ids.iter().all(|id| **id == json!(1)), "{answers:?}");
    assert_eq!(answers.iter().filter(|(status, _)| *status == 202).count(), 1);
    let (status, problem) = post("k1", "another").await;
    assert_eq!((status, &problem["code"]), (409, &json!("idempotency_key_reused")));
    assert_eq!(post("", "x").await.0, 422);
}

#[tokio::test]
async fn the_event_stream_goes_on_where_it_was_left() {
    let served = Served::start().await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    let stream = async |after: &str| {
        let request = served
            .client()
            .get(format!("{}/v1/jobs/{job}/events", served.api_url))
            .bearer_auth(&served.token)
            .header("last-event-id", after);
        request.send().await.unwrap().text().await.unwrap()
    };
    let ids = |text: &str| -> Vec<i64> {
        text.lines()
            .filter_map(|line| line.strip_prefix("id: "))
            .map(|id| id.parse().unwrap())
            .collect()
    };
    let all = stream("0").await;
    assert!(all.contains("event: transition") && all.contains("\"to\":\"cancelled\""), "{all}");
    let all = ids(&all);
    assert_eq!(all.len(), 5);
    assert_eq!(ids(&stream(&all[2].to_string()).await), all[3..]);
    assert_eq!(ids(&stream("junk").await), all);
}

#[tokio::test]
async fn the_service_tells_about_itself() {
    let served = Served::start().await;
    let response = served.send(Method::GET, "/healthz", "", None).await;
    assert_eq!(response.text().await.unwrap(), "ok\n");
    served.add_node7().await;
    served.capture("debian").await;
    let response = served.send(Method::GET, "/metrics", &served.token, None).await;
    let text = response.text().await.unwrap();
    assert!(text.contains("imprint_jobs{action=\"capture\""), "{text}");
    // It was started with --no-dhcp.
    assert!(!text.contains("imprint_dhcp_up"), "{text}");
    let description = served.get("/openapi.json").await;
    assert!(description["openapi"].as_str().unwrap().starts_with("3."), "{description}");
}

#[tokio::test]
async fn the_document_names_every_operation_and_every_code() {
    let document = include_str!("../../../docs/api.md");
    let served = Served::start().await;
    let description = served.get("/openapi.json").await;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            // All that a verification could be told has a default.
            if path.ends_with("/verify") {
                assert_ne!(operation["requestBody"]["required"], true, "{path}");
            }
            let operation_name = format!("`{} {path}", method.to_uppercase());
            assert!(document.contains(&operation_name), "{operation_name}");
            let texts = operation["responses"].as_object().unwrap().values();
            let texts = texts.map(|response| response["description"].as_str().unwrap());
            let is_code = |word: &&str| word.contains('_') && !word.contains("::");
            for code in texts.flat_map(|text| text.split([',', ' ', ';'])).filter(is_code) {
                assert!(document.contains(&format!("`{code}`")), "{code}");
            }
        }
    }
}
