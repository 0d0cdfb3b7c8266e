//! What happens when somebody stays silent. The only tests that run the controller inside themselves: they need short limits.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_api::{CaptureOptions, ErrorKind, Machine, Outcome, Redeem, Ticket};
use controller::bmc::Bmcs;
use controller::context::{BootSettings, Controller};
use controller::data_dir::DataDir;
use controller::db::{BmcRow, Db, NewHost, NewJobOutcome, Redemption};
use controller::host::{Finish, Firmware};
use controller::job::{Job, NewJob, Options, Shutdown, State};
use controller::live::Live;
use controller::reconcile::{Limits, start};
use controller::secret::Secret;
use controller::store::agent_program::AgentProgram;
use controller::store::{DefaultStore, Stores};
use controller::tasks::Tasks;
use tempfile::TempDir;

use crate::rig::{MAC, wait, write_program};

const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(600);

/// Nothing runs out.
fn patient() -> Limits {
    Limits {
        boot: LONG,
        boot_by_hand: LONG,
        stall: LONG,
        lost: LONG,
        soft_off: LONG,
        bmc: LONG,
        obey: LONG,
    }
}

struct Rig {
    controller: Arc<Controller>,
    job: i64,
    _data: (TempDir, DataDir),
}

impl Rig {
    /// A controller with a capture of `node7` under way.
    async fn new(limits: Limits, tool: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let db = Db::open(&data.database().unwrap(), data.sealer().unwrap()).await.unwrap();
        let sealer = data.sealer().unwrap();
        let bmc = tool.map_or(BmcRow::Manual, |_| BmcRow::Ipmi {
            host: "10.0.0.7".into(),
            port: 623,
            user: "admin".into(),
            password: sealer.seal("node7", &Secret::new("x".into())),
            cipher: None,
            refused: false,
        });
        let host = NewHost {
            name: "node7".into(),
            macs: vec![MAC.parse().unwrap()],
            ip: None,
            firmware: Firmware::Bios,
            finish: Finish::Disk,
            kernel_args: String::new(),
            notes: String::new(),
            uuid: None,
            bmc,
        };
        let host_id = db.add_host(&host).await.unwrap();
        let new = NewJob {
            host_id,
            host: "node7".parse().unwrap(),
            image: "debian".parse().unwrap(),
            place: "/images/debian.img.zst".parse().unwrap(),
            disk: None,
            options: Options::Capture(CaptureOptions::default()),
            shutdown: Shutdown::Refuse,
            approval: false,
            created_by: "test".into(),
        };
        let NewJobOutcome::Created(job) = db.create_job(&new, None).await.unwrap() else {
            panic!("no key was given");
        };
        let stores = Stores::new(
            data.images(),
            db.clone(),
            data.sealer().unwrap(),
            "https://127.0.0.1:2".into(),
            "0".repeat(64),
            DefaultStore::Named("local".parse().unwrap()),
        );
        let stores = stores.unwrap();
        let tool = tool.unwrap_or(Path::new("/nonexistent")).to_owned();
        let controller = Arc::new(Controller {
            bmcs: Bmcs::new(tool, db.clone(), sealer),
            db,
            tasks: Tasks::default(),
            live: Live::default(),
            boot: BootSettings {
                http_url: "http://127.0.0.1:1".into(),
                https_url: "https://127.0.0.1:2".into(),
                pin: "0".repeat(64),
                kernel_args: "".parse().unwrap(),
                files: None,
                loader_dir: None,
            },
            dhcp: None,
            stores,
            agent: AgentProgram::new("/nonexistent".into()),
            limits,
        });
        start(&controller, job);
        Self { controller, job, _data: (folder, data) }
    }

    async fn job(&self) -> Job {
        self.controller.db.job(self.job).await.unwrap()
    }

    async fn until(&self, what: &str, is: impl Fn(&Job) -> bool) -> Job {
        wait(what, async || Some(self.job().await).filter(&is)).await
    }

    /// The agent checks in and gets its work; then it says no more.
    async fn work(&self) {
        self.until("booting", |job| job.state == State::Booting).await;
        let db = &self.controller.db;
        let ticket = Ticket { host: "node7".into(), secret: Secret::random().expose().into() };
        let hash = Secret::new(ticket.secret.clone()).hash();
        assert_eq!(db.mint_ticket(self.job, &hash).await.unwrap(), Some(1));
        let redeem =
            Redeem { secret: ticket.secret, boot_id: "0".repeat(32), machine: Machine::default() };
        let credential = Secret::random().hash();
        let granted = db.redeem(&hash, &redeem.boot_id, &credential, &redeem.machine).await;
        assert_eq!(granted.unwrap(), Redemption::Granted);
        self.controller.live.heard(self.job);
        db.start_work(self.job).await.unwrap();
        self.controller.live.ring(self.job);
    }

    async fn causes(&self) -> Vec<String> {
        let events = self.controller.db.events(self.job, 0).await.unwrap();
        events.into_iter().map(|event| event.cause).collect()
    }
}

async fn a_silent_agent_stalls_its_job_until_it_speaks() {
    let rig = Rig::new(Limits { stall: Duration::from_secs(2), ..patient() }, None).await;
    rig.work().await;
    assert!(rig.until("stalled", |job| job.stalled).await.state == State::Running);
    rig.controller.live.heard(rig.job);
    rig.controller.live.ring(rig.job);
    rig.until("not stalled", |job| !job.stalled).await;
    assert!(rig.causes().await.contains(&"the agent is heard of again".to_owned()));
}

async fn a_lost_agent_fails_its_job() {
    let rig = Rig::new(Limits { stall: SHORT, lost: SHORT * 2, ..patient() }, None).await;
    rig.work().await;
    let job = rig.until("failed", |job| job.state == State::Failed).await;
    let (kind, message) = job.failure.unwrap();
    assert_eq!((kind, kind.is_retryable()), (ErrorKind::Network, true));
    assert!(message.contains("not heard of"), "{message}");
}

async fn a_machine_that_nobody_switches_on_fails_its_job() {
    let rig = Rig::new(Limits { boot_by_hand: SHORT, ..patient() }, None).await;
    let job = rig.until("failed", |job| job.state == State::Failed).await;
    assert!(job.failure.unwrap().1.contains("did not check in"));
}

async fn a_cancelled_job_whose_agent_is_silent_ends() {
    let rig = Rig::new(Limits { obey: SHORT, ..patient() }, None).await;
    rig.work().await;
    let after = rig.controller.db.cancel_job(rig.job, "api:test").await.unwrap();
    assert_eq!(after, State::Running, "its agent is asked first");
    rig.controller.live.ring(rig.job);
    rig.until("cancelled", |job| job.state == State::Cancelled).await;
}

async fn work_that_is_done_is_done_even_if_nobody_comes_for_its_leave() {
    let rig = Rig::new(Limits { obey: SHORT, ..patient() }, None).await;
    rig.work().await;
    let summary = agent_api::Summary::Capture(agent_api::CaptureSummary::default());
    let outcome = Outcome::Succeeded(Box::new(summary));
    assert!(rig.controller.db.store_outcome(rig.job, &outcome).await.unwrap());
    rig.controller.live.ring(rig.job);
    rig.until("succeeded", |job| job.state == State::Succeeded).await;
    assert!(rig.causes().await.iter().any(|cause| cause.contains("did not come for its leave")));
}

/// A machine that never gets as far as the agent is switched off and on twice more, and then left alone.
async fn a_machine_that_does_not_boot_is_switched_on_three_times() {
    let tools = tempfile::tempdir().unwrap();
    let tool = tools.path().join("ipmitool");
    write_program(
        &tool,
        "#!/bin/sh\ncd \"$(dirname \"$0\")\" || exit 1\ncase \"$*\" in\n*status) echo \"Chassis Power is $(cat power)\" ;;\n\
         *\"power on\") echo on > power; echo on >> done ;;\n*\"power off\") echo off > power; echo off >> done ;;\n\
         *bootdev*) echo boot >> done ;;\nesac\n",
    );
    std::fs::write(tools.path().join("power"), "off").unwrap();
    let rig = Rig::new(Limits { boot: SHORT, ..patient() }, Some(&tool)).await;
    let job = rig.until("failed", |job| job.state == State::Failed).await;
    assert_eq!(job.failure.unwrap().0, ErrorKind::Network);
    let done = std::fs::read_to_string(tools.path().join("done")).unwrap();
    let done: Vec<&str> = done.lines().collect();
    assert_eq!(done, ["boot", "on", "off", "boot", "on", "off", "boot", "on"]);
}

#[tokio::test]
async fn silence() {
    // Together, since they mostly wait.
    tokio::join!(
        a_silent_agent_stalls_its_job_until_it_speaks(),
        a_lost_agent_fails_its_job(),
        a_machine_that_nobody_switches_on_fails_its_job(),
        a_cancelled_job_whose_agent_is_silent_ends(),
        work_that_is_done_is_done_even_if_nobody_comes_for_its_leave(),
        a_machine_that_does_not_boot_is_switched_on_three_times(),
    );
}
