//! Boot scripts: the agent for a machine that a job armed, the disk for everything else.

use serde_json::json;

use crate::rig::{MAC, Served};

/// Things that a hostile firmware, or a hostile administrator, may put into any field.
const HOSTILE: &[&str] = &[
    "",
    " ",
    "\n",
    "x\nboot http://evil/",
    "x\r\nset foo bar",
    "${net0/mac}",
    "${",
    "}",
    "x;reboot",
    "x||reboot",
    "x&&reboot",
    "#!ipxe",
    "x # y",
    "\"",
    "'",
    "`id`",
    "$(id)",
    "\\",
    "\0",
    "\u{1b}[2J",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "<script>",
    "é\u{202e}",
    "-H",
    "--help",
    "imprint.pin=0000",
    "imprint.controller=https://evil",
    "52:54:00:77:00:01\nboot",
    "52:54:00:77:00:01 ",
    "52:54:00:77:00:01;x",
    "'; DROP TABLE hosts; --",
];

#[tokio::test]
async fn the_script_of_an_armed_host_to_the_letter() {
    let served = Served::start().await;
    let host =
        json!({"name": "node7", "macs": [MAC], "kernel_args": "console=ttyS1,115200n8 nomodeset"});
    assert_eq!(served.post("/v1/hosts", host).await.0, 201);
    assert_eq!(
        served.script(MAC).await,
        "#!ipxe\necho imprint: no job is armed: booting from disk\nexit 1\n"
    );
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    let script = served.script(MAC).await;
    let pin = script.split("imprint.pin=").nth(1).unwrap()[..64].to_owned();
    let (http, https) = (&served.boot_url, &served.api_url);
    assert_eq!(
        script,
        format!(
            "#!ipxe\n\
             echo imprint: node7 job {job}\n\
             kernel --name kernel {http}/boot/kernel initrd=ticket initrd=initrd imprint.controller={https} imprint.pin={pin} \
             BOOTIF=01-52-54-00-77-00-01 panic=30 quiet console=ttyS0 console=ttyS1,115200n8 nomodeset || goto failed\n\
             initrd --name ticket {http}/boot/ticket?mac={MAC} || goto failed\n\
             initrd --name initrd {http}/boot/initrd || goto failed\n\
             boot || goto failed\n\
             :failed\n\
             echo imprint: the boot files did not come: booting from disk\n\
             imgfree\n\
             exit 1\n"
        )
    );
    for (name, content) in [("kernel", "the kernel"), ("initrd", "the initramfs")] {
        let file = served.boot_file(&format!("/boot/{name}")).await;
        assert_eq!(file.text().await.unwrap(), content);
    }
    let segment = served.boot_file(&format!("/boot/ticket?mac={MAC}")).await;
    assert_eq!(segment.bytes().await.unwrap().len() % 512, 0);
}

#[tokio::test]
async fn an_unknown_machine_boots_its_disk_and_is_noted() {
    let served = Served::start().await;
    let stranger = "52:54:00:77:00:99";
    for _ in 0..2 {
        assert_eq!(
            served.script(stranger).await,
            "#!ipxe\necho imprint: imprint does not know this machine: booting from disk\nexit 1\n"
        );
    }
    let seen = served.get("/v1/seen").await;
    assert_eq!(seen[0]["mac"], stranger);
    assert_eq!(seen[0]["times"], 2);
    assert_eq!(seen[0]["uuid"], "4c4c4544-0000-2010-8020-80c04f202020");
    assert_eq!(served.boot_file(&format!("/boot/ticket?mac={stranger}")).await.status(), 404);
    let enrol = served.boot_file("/enrol?mac=52:54:00:77:00:98&uuid=").await;
    assert!(enrol.text().await.unwrap().ends_with("exit 1\n"));
    assert_eq!(served.get("/v1/seen").await.as_array().unwrap().len(), 2);
    // A machine that was entered is no stranger any more.
    served.post("/v1/hosts", json!({"name": "new", "macs": [stranger]})).await;
    assert_eq!(served.get("/v1/seen").await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_flood_of_strangers_is_bounded() {
    let served = Served::start().await;
    for number in 0..1020_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        served.boot_file(&format!("/enrol?mac=52:54:00:99:{high:02x}:{low:02x}")).await;
    }
    let seen = served.get("/v1/seen").await.as_array().unwrap().len();
    assert_eq!(seen, 1000);
}

#[tokio::test]
async fn hostile_queries_get_a_harmless_script() {
    let served = Served::start().await;
    served.add_node7().await;
    served.capture("debian").await;
    for text in HOSTILE {
        let script = served.script(text).await;
        assert!(
            script.starts_with("#!ipxe\necho imprint: ") && script.ends_with("\nexit 1\n"),
            "{text:?}: {script:?}"
        );
        assert_eq!(script.lines().count(), 3, "{text:?}: {script:?}");
        let body = script.trim_start_matches("#!ipxe\necho imprint: ");
        assert!(text.trim().len() < 3 || !body.contains(text.trim()), "{text:?}: {script:?}");
    }
}

#[tokio::test]
async fn hostile_values_get_into_no_field() {
    let served = Served::start_with(&[]).await;
    served.add_node7().await;
    let mut passed = Vec::new();
    for (number, text) in HOSTILE.iter().enumerate() {
        let mac = format!("52:54:00:78:00:{number:02x}");
        let name = format!("n{number}");
        let ipmi = |host: &str, user: &str| json!({"driver": "ipmi", "host": host, "user": user, "password": "x"});
        for (field, host) in [
            ("name", json!({"name": text, "macs": [mac]})),
            ("mac", json!({"name": name, "macs": [text]})),
            ("ip", json!({"name": name, "macs": [mac], "ip": text})),
            ("uuid", json!({"name": name, "macs": [mac], "uuid": text})),
            ("args", json!({"name": name, "macs": [mac], "kernel_args": text})),
            ("firmware", json!({"name": name, "macs": [mac], "firmware": text})),
            ("bmc", json!({"name": name, "macs": [mac], "bmc": ipmi(text, "u")})),
            ("user", json!({"name": name, "macs": [mac], "bmc": ipmi("10.0.0.7", text)})),
        ] {
            let (status, problem) = served.post("/v1/hosts", host).await;
            match status {
                422 => assert_eq!(problem["code"], "invalid"),
                _ => passed.push((field, *text)),
            }
        }
        for (field, wish) in [
            ("image", json!({"action": "capture", "host": "node7", "image": text, "url": "/x"})),
            ("url", json!({"action": "capture", "host": "node7", "image": "a", "url": text})),
        ] {
            let (status, _) = served.post("/v1/jobs", wish).await;
            assert_eq!(status, 422, "{field} {text:?}");
        }
    }
    // An IPMI user is a word of argv and may hold what a shell would mind. To a kernel these are words like any other.
    let words = ["", "../../etc/passwd", "-H", "--help"];
    passed.retain(|(field, text)| *field != "user" && !(*field == "args" && words.contains(text)));
    assert_eq!(passed, []);
}

#[tokio::test]
async fn firmware_that_boots_by_http_gets_a_loader_only_for_a_job() {
    let served = Served::start().await;
    let status = async || served.boot_file("/boot/ipxe.efi").await.status().as_u16();
    // An address that is no host's may be one behind a relay.
    assert_eq!(status().await, 200);
    let host = json!({"name": "node7", "macs": [MAC], "ip": "127.0.0.1", "firmware": "uefi"});
    assert_eq!(served.post("/v1/hosts", host).await.0, 201);
    assert_eq!(status().await, 404);
    let job = served.capture("debian").await;
    assert_eq!(status().await, 200);
    served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    served.wait_state(job, "cancelled").await;
    assert_eq!(status().await, 404);
}

#[tokio::test]
async fn there_is_nothing_else_to_fetch() {
    let served = Served::start().await;
    let paths =
        ["/", "/boot", "/boot/", "/boot/../data/secret.key", "/boot/..%2fdata%2fsecret.key"];
    let more =
        ["/boot/secret.key", "/v1/hosts", "/boot/kernel/..", "/boot/%2e%2e/log", "//etc/passwd"];
    for path in paths.iter().chain(&more) {
        let response = served.boot_file(path).await;
        assert_eq!(response.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn without_the_boot_budget_or_with_the_controller_gone_nothing_leads_to_the_agent() {
    let mut served = Served::start().await;
    served.add_node7().await;
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    assert!(served.script(MAC).await.contains("kernel"));
    served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    assert!(!served.script(MAC).await.contains("kernel"), "cancelled");
    served.kill();
    let url = format!("{}/boot/ipxe?mac={MAC}", served.boot_url);
    assert!(served.client().get(url).send().await.is_err(), "nothing listens any more");
}
