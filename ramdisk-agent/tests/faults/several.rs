//! An image in two places, one of which is a server that goes away in the middle.

use std::process::Command;
use std::time::{Duration, Instant};

use fault_proxy::{Ending, Proxy, Script, Way};

use crate::job::pattern;
use crate::nfs::Nfs;
use crate::store::Store as _;

/// Far below the ten minutes that a store waits when there is no other.
const LIMIT: Duration = Duration::from_secs(40);

fn agent(args: &[&str]) -> serde_json::Value {
    let output = Command::new(env!("CARGO_BIN_EXE_imprint-agent")).args(args).output().unwrap();
    let (out, err) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {err}");
    serde_json::from_slice(out).unwrap()
}

#[test]
fn a_server_that_hangs_or_dies_is_passed_over_within_seconds() {
    let server = Nfs::start(None);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("disk"), pattern(96 << 20, 61)).unwrap();
    agent(&["capture", "--json", &path("disk"), &path("x.img.zst")]);
    std::fs::copy(path("x.img.zst"), server.folder().join("x.img.zst")).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(server.folder().join("x.img.zst"), readable).unwrap();
    // Both of its connections hang after some frames; and so does every other.
    for ending in [Ending::Silence, Ending::Reset] {
        let hang = Script::ends(Way::ToClient, 9 << 20, ending);
        let proxy = Proxy::start(server.address(), []).unwrap();
        proxy.set_rest(hang);
        std::fs::File::create(path("target")).unwrap().set_len(96 << 20).unwrap();
        let nfs = server.url(proxy.port(), "x.img.zst").to_string();
        let start = Instant::now();
        let args =
            ["restore", "--yes", "--json", &nfs, &path("target"), "--also", &path("x.img.zst")];
        let summary = agent(&args);
        let took = start.elapsed();
        assert!(took < LIMIT, "{ending:?}: it took {took:?}");
        assert!(std::fs::read(path("target")).unwrap() == std::fs::read(path("disk")).unwrap());
        let bytes = |index: usize| summary["sources"][index]["bytes"].as_u64().unwrap();
        assert!(bytes(0) > 0 && bytes(1) > 0, "{ending:?}: {}", summary["sources"]);
    }
}
