//! A disk with a random filesystem through the controller's own store, by the agent's command line, with curl and stock zstd as
//! witnesses; what `ramdisk-agent/tests/witness` does with other stores.

use std::process::Command;

use serde_json::Value;

use crate::rig::Served;

#[path = "../../../ramdisk-agent/tests/witness/disk.rs"]
mod disk;

use disk::{Disk, open, prints, run};

const IMAGE: &str = "debian-12.img.zst";

/// The agent's command line: this test program, started once more.
fn agent(words: &str) {
    let mut agent = Command::new(std::env::current_exe().unwrap());
    agent.args(["--exact", "agent_store::agent", "--nocapture"]);
    run(agent.env("IMPRINT_TEST_AGENT", format!("{words} --progress none")), "ours");
}

fn round_trip(served: &Served) {
    let disk = Disk::new(7);
    let [credentials, header] = ["credentials", "header"].map(|name| disk.file(name));
    let file = std::fs::read(served.data().join("client.json")).unwrap();
    let file: Value = serde_json::from_slice(&file).unwrap();
    let (token, pin) = (file["token"].as_str().unwrap(), file["pin"].as_str().unwrap());
    std::fs::write(&credentials, format!("token={token}\ntls_key={pin}\n")).unwrap();
    std::fs::write(&header, format!("Authorization: Bearer {token}\n")).unwrap();
    let url = format!("{}/v1/stores/local/files/{IMAGE}", served.api_url);
    let (with, path) = (credentials.display(), disk.path());
    agent(&format!("capture {} {url} --credentials {with}", path.display()));

    let stored = served.data().join("images").join(IMAGE);
    disk.check_unpacked(&stored);
    let mut curl = Command::new("curl");
    curl.args(["-sSfk", "-H"]).arg(format!("@{}", header.display())).arg(&url);
    prints(&mut curl, open(&stored));
    agent(&format!("verify {url} --credentials {with}"));
    let target = disk.target();
    agent(&format!("restore --yes {url} {} --credentials {with}", target.display()));
    disk.check(&target);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_there_and_back_with_witnesses() {
    let served = Served::start_with(&[]).await;
    tokio::task::spawn_blocking(move || round_trip(&served)).await.unwrap();
}
