//! The real ipmitool against OpenIPMI's `ipmi_sim`.

use std::fs;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tempfile::TempDir;

use crate::rig::{MAC, Served, wait, write_program};

/// What `ipmi_sim` runs for every chassis command: keeps the power in a file and notes what was set.
const CHASSIS: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
    get) shift; for what; do
        case "$what" in power) echo "power:$(cat power)" ;; boot) echo "boot:default" ;; esac
    done ;;
    set) shift; while [ $# -ge 2 ]; do
        echo "$1 $2" >> done
        case "$1" in power) echo "$2" > power ;; shutdown) echo 0 > power ;; esac
        shift 2
    done ;;
esac
"#;

const EMULATION: &str = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n";

struct Bmc {
    folder: TempDir,
    port: u16,
    child: Child,
}

impl Drop for Bmc {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Bmc {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let port = {
            let free = UdpSocket::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        write_program(&path("chassis"), CHASSIS);
        fs::write(path("power"), "0").unwrap();
        fs::write(path("done"), "").unwrap();
        fs::create_dir(path("state")).unwrap();
        fs::write(path("bmc.emu"), EMULATION).unwrap();
        let auths: String = ["callback", "user", "operator", "admin"]
            .map(|level| format!("allowed_auths_{level} none md2 md5 straight\n"))
            .concat();
        let conf = format!(
            "name \"bmc\"\nset_working_mc 0x20\nstartlan 1\naddr 127.0.0.1 {port}\npriv_limit admin\n{auths}\
             guid a123456789abcdefa123456789abcd01\nendlan\nchassis_control \"{}\"\n\
             user 2 true \"admin\" \"right\" admin 10 none md2 md5 straight\n",
            path("chassis").display()
        );
        fs::write(path("lan.conf"), conf).unwrap();
        let child = Command::new("ipmi_sim")
            .arg("-n")
            .arg("-c")
            .arg(path("lan.conf"))
            .arg("-f")
            .arg(path("bmc.emu"))
            .arg("-s")
            .arg(path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ipmi_sim is installed (apt-get install openipmi)");
        Self { folder, port, child }
    }

    fn done(&self) -> String {
        fs::read_to_string(self.folder.path().join("done")).unwrap()
    }

    async fn enter(&self, served: &Served, password: &str) {
        let bmc = json!({"driver": "ipmi", "host": "127.0.0.1", "port": self.port, "user": "admin", "password": password});
        let host = json!({"name": "node7", "macs": [MAC], "bmc": bmc});
        let (status, value) = served.post("/v1/hosts", host).await;
        assert_eq!(status, 201, "{value}");
    }
}

#[tokio::test]
async fn power_and_boot_device_by_the_real_tool() {
    let bmc = Bmc::start();
    let served = Served::start().await;
    bmc.enter(&served, "right").await;
    let power = async || served.get("/v1/hosts/node7/power").await["power"].clone();
    assert_eq!(power().await, "off");
    // ipmi_sim knows suite 3 and not 17: found once, remembered.
    assert_eq!(served.get("/v1/hosts/node7").await["bmc"]["cipher"], 3);
    let job = served.capture("debian").await;
    served.wait_state(job, "booting").await;
    assert_eq!(bmc.done(), "boot pxe\npower 1\n");
    assert_eq!(served.post("/v1/hosts/node7/power", json!({"action": "off"})).await.0, 409);
    served.post(&format!("/v1/jobs/{job}/cancel"), json!({})).await;
    assert_eq!(power().await, "on");

    // On, and in its own system as far as anybody knows: not touched unless asked to.
    let wish = |shutdown: &str| json!({"action": "capture", "host": "node7", "image": "debian", "shutdown": shutdown});
    let (status, problem) = served.post("/v1/jobs", wish("refuse")).await;
    assert_eq!((status, &problem["code"]), (409, &json!("host_is_on")));
    let (status, job) = served.post("/v1/jobs", wish("soft")).await;
    assert_eq!(status, 202, "{job}");
    served.wait_state(job["id"].as_i64().unwrap(), "booting").await;
    let done = bmc.done();
    let asked: Vec<&str> = done.lines().skip(2).collect();
    assert_eq!(asked, ["shutdown 1", "boot pxe", "power 1"]);
}

#[tokio::test]
async fn one_wrong_password_ends_all_tries_until_it_is_corrected() {
    let bmc = Bmc::start();
    let served = Served::start().await;
    bmc.enter(&served, "wrong").await;
    let (status, problem) = served.ask(reqwest::Method::GET, "/v1/hosts/node7/power", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("bmc_refused")), "{problem}");
    let runs = || served.log_text().matches("ipmitool").count();
    let (before, started) = (runs(), std::time::Instant::now());
    for _ in 0..5 {
        let (status, _) = served.ask(reqwest::Method::GET, "/v1/hosts/node7/power", None).await;
        assert_eq!(status, 409);
    }
    assert!(started.elapsed().as_secs() < 1, "nothing was asked: a command has a pause of 1 s");
    assert_eq!(runs(), before);
    assert_eq!(served.get("/v1/hosts/node7").await["bmc"]["refused"], true);

    let correct = json!({"bmc": {"driver": "ipmi", "host": "127.0.0.1", "port": bmc.port, "user": "admin", "password": "right"}});
    let (status, value) =
        served.ask(reqwest::Method::PATCH, "/v1/hosts/node7", Some(&correct)).await;
    assert_eq!((status, &value["bmc"]["refused"]), (200, &json!(false)));
    wait("the BMC answers", async || {
        let (status, _) = served.ask(reqwest::Method::GET, "/v1/hosts/node7/power", None).await;
        (status == 200).then_some(())
    })
    .await;
}
