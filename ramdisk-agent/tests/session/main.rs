//! The supervisor's life with a controller, over real TLS and with real worker processes; only being PID 1 is left out.
//!
//! Jobs named `real` are done by the program itself. The others are shell scripts that behave badly on purpose.

#![allow(clippy::unwrap_used, reason = "a failed precondition ends the test")]

mod server;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::{
    ErrorKind, Failure, Finish, JobSpec, Outcome, RestoreOptions, StageProgress, Summary, Ticket,
    Work,
};
use axum::http::StatusCode;
use ramdisk_agent::init::console::Log;
use ramdisk_agent::init::controller::{CallError, Controller, Pin};
use ramdisk_agent::init::session::{Refusal, Session};
use ramdisk_agent::init::worker::WorkerCommand;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use server::{SECRET, Server};

const LIMIT: Duration = Duration::from_secs(60);
const REBOOT: Work = Work::Finish { how: Finish::Reboot };

/// What each bad worker does, told by the job's id; `$dir` is the test's folder.
const WORKER: &str = r#"
job=$(cat)
case "$job" in
*'"id":"capture"'*) echo "$job" >> "$dir/jobs"; kill -KILL $$ ;;
*'"id":"crash"'*) echo 'about to fall' >&2; kill -SEGV $$ ;;
*'"id":"wait"'*)
    echo '{"progress":{"stage":"restoring","done_bytes":1,"total_bytes":9,"stored_bytes":0,"elapsed_ms":1}}'
    until [ -e "$dir/go" ]; do sleep 0.05; done
    echo '{"outcome":{"result":"failed","kind":"disk","message":"waited long enough"}}' ;;
*'"id":"seen"'*)
    tr '\0' '\n' < /proc/$$/cmdline > "$dir/seen"
    tr '\0' '\n' < /proc/$$/environ >> "$dir/seen"
    echo "$job" > "$dir/told"
    echo '{"outcome":{"result":"failed","kind":"disk","message":"all seen"}}' ;;
*'"id":"restored"'*) echo '{"outcome":{"result":"succeeded","action":"restore"}}' ;;
*'"id":"deaf"'*) trap '' TERM; touch "$dir/deaf"; while :; do sleep 0.1; done ;;
*'"id":"chatty"'*)
    i=0
    while [ $i -lt 500 ]; do
        i=$((i + 1))
        echo '{"progress":{"stage":"restoring","done_bytes":'$i',"total_bytes":500,"stored_bytes":0,"elapsed_ms":1}}'
    done
    until [ -e "$dir/go" ]; do sleep 0.05; done
    echo '{"outcome":{"result":"failed","kind":"disk","message":"all said"}}' ;;
esac
"#;

fn job(id: &str) -> Work {
    Work::Job(Box::new(JobSpec {
        id: id.into(),
        disk: None,
        image_url: "/nowhere/a.img.zst".into(),
        image_id: None,
        access: Vec::new(),
        action: agent_api::JobAction::Restore(RestoreOptions::default()),
        unknown: agent_api::Unknown::default(),
    }))
}

/// A session with the bad worker, not yet begun.
fn session(server: &Server, dir: &Path) -> Session {
    let script = format!("dir='{}'\n{WORKER}", dir.display());
    Session {
        controller: Controller::new(&server.url(), server.pin).unwrap(),
        ticket: Ticket { host: "node7".into(), secret: SECRET.into() },
        redeem_limit: LIMIT,
        boot_mac: None,
        hooks: dir.join("hooks.d"),
        worker: WorkerCommand { program: "/bin/sh".into(), args: vec!["-c".into(), script.into()] },
        kernel_loader: WorkerCommand { program: "/nonsuch".into(), args: Vec::new() },
        log: Log::to(Vec::new()),
    }
}

type Life = JoinHandle<Result<Finish, Refusal>>;

fn begin(session: Session) -> Life {
    tokio::spawn(session.live())
}

async fn end(life: Life) -> Result<Finish, Refusal> {
    timeout(LIMIT, life).await.expect("the session does not end").unwrap()
}

fn failure(server: &Server, at: usize) -> (String, Failure) {
    server.read(|b| match &b.outcomes[at] {
        (id, Outcome::Failed(failure)) => (id.clone(), failure.clone()),
        (id, Outcome::Succeeded(_)) => panic!("{id} succeeded"),
    })
}

#[tokio::test]
async fn a_job_is_done_by_the_program_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, image) = (dir.path().join("disk"), dir.path().join("a.img.zst"));
    fs::write(&disk, noise(3 << 20)).unwrap();
    let capture: JobSpec = serde_json::from_value(serde_json::json!({
        "id": "real", "disk": disk, "image_url": image, "action": "capture", "options": {},
    }))
    .unwrap();
    let server =
        Server::start([Work::Job(Box::new(capture)), Work::Finish { how: Finish::PowerOff }]);
    let worker = WorkerCommand {
        program: env!("CARGO_BIN_EXE_imprint-agent").into(),
        ..WorkerCommand::this_binary()
    };
    let life = begin(Session { worker, ..session(&server, dir.path()) });
    assert_eq!(end(life).await.unwrap(), Finish::PowerOff);
    let summary = server.read(|b| match &b.outcomes[..] {
        [(id, Outcome::Succeeded(summary))] if id == "real" => summary.clone(),
        other => panic!("{other:?}"),
    });
    let Summary::Capture(summary) = *summary else { panic!("{summary:?}") };
    assert_eq!(summary.disk_bytes, 3 << 20);
    assert_eq!(summary.stored_bytes, image.metadata().unwrap().len());
    let (machine, log) = server.read(|b| (b.redemptions[0].machine.clone(), b.log.clone()));
    assert!(machine.memory_bytes > 0 && machine.cpus > 0, "{machine:?}");
    assert!(log.contains("job real is done"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
}

const KEXEC: Work = Work::Finish { how: Finish::Kexec };

/// What it can start is looked for on the disk of the job that was done, by a child; where there is nothing the machine reboots, and
/// the controller knows why.
#[tokio::test]
async fn a_system_that_cannot_be_started_by_kexec_is_rebooted_into() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, noise(3 << 20)).unwrap();
    let Work::Job(mut restore) = job("restored") else { unreachable!("it is a job") };
    restore.disk = Some(disk.to_str().unwrap().to_owned());
    let server = Server::start([Work::Job(restore), KEXEC]);
    let kernel_loader = WorkerCommand {
        program: env!("CARGO_BIN_EXE_imprint-agent").into(),
        ..WorkerCommand::this_binary_as_kernel_loader()
    };
    let life = begin(Session { kernel_loader, ..session(&server, dir.path()) });
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    let (notes, log) = server.read(|b| (b.notes.clone(), b.log.clone()));
    let why = "the restored system is not started by kexec: there is neither a grub.cfg nor an entry of the Boot Loader \
               Specification in the disk, which has no filesystem that can be read; the machine reboots";
    assert_eq!(notes, [("restored".to_owned(), why.to_owned())]);
    assert!(log.contains(why), "{log}");
    assert_eq!(fs::read(&disk).unwrap(), noise(3 << 20));

    // What a child says is not believed while the kernel says otherwise.
    let server = Server::start([job("restored"), KEXEC]);
    let kernel_loader = WorkerCommand { program: "/bin/true".into(), args: Vec::new() };
    let life = begin(Session { kernel_loader, ..session(&server, dir.path()) });
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    assert!(server.read(|b| b.notes[0].1.contains("says that none is loaded")));

    // A job that failed leaves nothing to start.
    fs::write(dir.path().join("go"), "").unwrap();
    let server = Server::start([job("restored"), job("wait"), KEXEC]);
    assert_eq!(end(begin(session(&server, dir.path()))).await.unwrap(), Finish::Reboot);
    assert_eq!(server.read(|b| b.notes.len()), 0);
}

/// Bytes that no filesystem has.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn another_key_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([REBOOT]);
    let wrong: Pin = "00".repeat(32).parse().unwrap();
    let session = Session {
        controller: Controller::new(&server.url(), wrong).unwrap(),
        redeem_limit: Duration::from_secs(1),
        ..session(&server, dir.path())
    };
    let log = session.log.clone();
    let refusal = end(begin(session)).await.unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Unreachable { source: CallError::WrongKey { found, .. }, .. } if *found == server.pin),
        "{refusal:?}"
    );
    assert!(server.read(|b| b.redemptions.is_empty()));
    assert!(log.take(usize::MAX).unwrap().contains("not the pinned one"));
}

#[tokio::test]
async fn a_controller_that_is_not_there_is_given_up_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([]);
    server.stop().await;
    let session = Session { redeem_limit: Duration::from_secs(1), ..session(&server, dir.path()) };
    let refusal = end(begin(session)).await.unwrap_err();
    let is_so =
        matches!(refusal, Refusal::Unreachable { source: CallError::Unreachable { .. }, .. });
    assert!(is_so, "{refusal:?}");
}

#[tokio::test]
async fn a_ticket_that_was_used_ends_the_session() {
    let dir = tempfile::tempdir().unwrap();
    for status in [401, 403, 404, 409].map(|code| StatusCode::from_u16(code).unwrap()) {
        let server = Server::start([REBOOT]);
        server.set(|b| b.redeem_answers.push_back(status));
        let refusal = end(begin(session(&server, dir.path()))).await.unwrap_err();
        let is_so = matches!(&refusal, Refusal::Ticket { source: CallError::Refused { status: s, .. }, .. } if *s == status);
        assert!(is_so, "{refusal:?}");
        assert_eq!(server.read(|b| b.redemptions.len()), 1);
    }
}

#[tokio::test]
async fn a_redemption_is_repeated_as_the_same_boot() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([REBOOT]);
    server.set(|b| {
        b.redeem_answers.extend([StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS]);
    });
    assert_eq!(end(begin(session(&server, dir.path()))).await.unwrap(), Finish::Reboot);
    let ids: Vec<String> =
        server.read(|b| b.redemptions.iter().map(|r| r.boot_id.clone()).collect());
    assert_eq!(ids.len(), 3);
    assert!(ids[0].len() == 32 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn a_crash_is_told_and_the_machine_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("go"), "").unwrap();
    let server = Server::start([job("crash"), Work::Unknown, job("wait"), REBOOT]);
    assert_eq!(end(begin(session(&server, dir.path()))).await.unwrap(), Finish::Reboot);
    let (id, crash) = failure(&server, 0);
    assert_eq!((id.as_str(), crash.kind), ("crash", ErrorKind::Internal));
    assert_eq!(crash.message, "worker ended by signal 11 (SIGSEGV); its last lines: about to fall");
    let (id, next) = failure(&server, 1);
    assert_eq!((id.as_str(), next.message.as_str()), ("wait", "waited long enough"));
}

#[tokio::test]
async fn a_capture_whose_worker_dies_goes_on_a_few_times() {
    let dir = tempfile::tempdir().unwrap();
    let capture: JobSpec = serde_json::from_value(serde_json::json!({
        "id": "capture", "image_url": "/nowhere/a.img.zst", "action": "capture", "options": {},
    }))
    .unwrap();
    let server = Server::start([Work::Job(Box::new(capture)), REBOOT]);
    assert_eq!(end(begin(session(&server, dir.path()))).await.unwrap(), Finish::Reboot);
    assert_eq!(failure(&server, 0).1.kind, ErrorKind::Internal);
    assert_eq!(server.read(|b| b.outcomes.len()), 1, "the controller hears of the last one only");
    let jobs = fs::read_to_string(dir.path().join("jobs")).unwrap();
    let ids: Vec<String> = jobs
        .lines()
        .map(|line| serde_json::from_str::<JobSpec>(line).unwrap().image_id.unwrap())
        .collect();
    assert_eq!(ids.len(), 3, "{jobs}");
    assert!(ids.iter().all(|id| *id == ids[0]), "all of them may go on with the same: {jobs}");
}

#[tokio::test]
async fn a_restart_of_the_controller_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start([job("wait")]);
    let life = begin(session(&server, dir.path()));
    server.until("the job's first report", |b| !b.reports.is_empty()).await;
    server.stop().await;
    let (beats, log) = server.read(|b| (b.heartbeats.len(), b.log.len()));
    // The job ends while nobody listens; then the controller is back, but busy.
    fs::write(dir.path().join("go"), "").unwrap();
    server.set(|b| b.outcome_answers.extend([StatusCode::INTERNAL_SERVER_ERROR; 2]));
    server.listen();
    server.until("the outcome", |b| !b.outcomes.is_empty()).await;
    assert_eq!(failure(&server, 0).1.message, "waited long enough");
    server.until("heartbeats after the restart", |b| b.heartbeats.len() > beats).await;
    server.until("log lines after the restart", |b| b.log.len() > log).await;
    server.set(|b| b.work.push_back(REBOOT));
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    assert_eq!(server.read(|b| (b.redemptions.len(), b.outcomes.len())), (1, 1));
}

#[tokio::test]
async fn what_lets_a_job_in_is_in_no_process_list_and_no_log() {
    let dir = tempfile::tempdir().unwrap();
    let access = serde_json::json!([
        {"prefix": "smb://nas/images/", "user": "u", "password": "canary-1", "token": "canary-2"},
    ]);
    let Work::Job(mut seen) = job("seen") else { unreachable!() };
    seen.access = serde_json::from_value(access).unwrap();
    let server = Server::start([Work::Job(seen), REBOOT]);
    let hooks = dir.path().join("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let hook = hooks.join("10-look");
    let script = format!(
        "#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ > {}/hook\n",
        dir.path().display()
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let life = begin(session(&server, dir.path()));
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    assert_eq!(failure(&server, 0).1.message, "all seen");
    let read = |name: &str| {
        String::from_utf8_lossy(&fs::read(dir.path().join(name)).unwrap()).into_owned()
    };
    let told = read("told");
    assert!(told.contains("canary-1") && told.contains("canary-2"), "{told}");
    let log = server.read(|b| b.log.clone());
    for shown in [read("seen"), read("hook"), log] {
        assert!(shown.len() > 10 && !shown.contains("canary"), "{shown}");
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[tokio::test]
async fn heartbeats_go_on_and_a_cancelled_worker_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([job("wait"), REBOOT]);
    let life = begin(session(&server, dir.path()));
    let is_busy = |b: &server::Book| {
        b.heartbeats.iter().filter(|h| h.job.as_deref() == Some("wait")).count() >= 3
    };
    server.until("three heartbeats of a busy machine", is_busy).await;
    server.set(|b| b.cancel_job = Some("another".into()));
    let seen = server.read(|b| b.heartbeats.len());
    server.until("a heartbeat", |b| b.heartbeats.len() > seen + 1).await;
    assert!(server.read(|b| b.outcomes.is_empty()), "another job's cancellation counted");
    server.set(|b| b.cancel_job = Some("wait".into()));
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    assert_eq!(failure(&server, 0).1.kind, ErrorKind::Cancelled);
}

#[tokio::test]
async fn a_worker_that_will_not_end_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([job("deaf"), REBOOT]);
    let life = begin(session(&server, dir.path()));
    let deaf = dir.path().join("deaf");
    server
        .until("a heartbeat of the deaf worker", |b| !b.heartbeats.is_empty() && deaf.exists())
        .await;
    let began = Instant::now();
    server.set(|b| b.cancel_job = Some("deaf".into()));
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    assert_eq!(failure(&server, 0).1.kind, ErrorKind::Cancelled);
    assert!(began.elapsed() >= Duration::from_secs(10), "it was not asked first");
}

#[tokio::test]
async fn a_void_credential_ends_the_worker_and_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([job("wait")]);
    let life = begin(session(&server, dir.path()));
    server.until("the job's first report", |b| !b.reports.is_empty()).await;
    server.set(|b| b.is_revoked = true);
    let refusal = end(life).await.unwrap_err();
    assert!(matches!(refusal, Refusal::Revoked { .. }), "{refusal:?}");
    assert!(server.read(|b| b.outcomes.is_empty()));
}

#[tokio::test]
async fn progress_is_thinned_and_the_newest_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start([job("chatty"), REBOOT]);
    let life = begin(session(&server, dir.path()));
    let is_last = |p: &StageProgress| p.done_bytes == 500;
    server.until("the last progress", |b| b.reports.iter().any(|r| is_last(&r.progress))).await;
    fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(end(life).await.unwrap(), Finish::Reboot);
    let reports = server.read(|b| b.reports.clone());
    assert!(reports.len() < 20, "{} reports of 500", reports.len());
    assert!(reports.windows(2).all(|w| w[0].sequence < w[1].sequence), "{reports:?}");
}

#[tokio::test]
async fn a_hook_that_fails_fails_the_jobs_unless_it_is_optional() {
    let dir = tempfile::tempdir().unwrap();
    let hooks = dir.path().join("hooks.d");
    fs::create_dir(&hooks).unwrap();
    let hook = |name: &str, text: &str, mode: u32| {
        let path = hooks.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    hook("10-first", "echo prepared", 0o755);
    hook("15-notes", "exit 9", 0o644);
    hook("optional-20", "exit 5", 0o755);
    fs::write(dir.path().join("go"), "").unwrap();
    let server = Server::start([job("wait"), REBOOT]);
    assert_eq!(end(begin(session(&server, dir.path()))).await.unwrap(), Finish::Reboot);
    assert_eq!(failure(&server, 0).1.message, "waited long enough");
    let log = server.read(|b| b.log.clone());
    assert!(log.contains("prepared") && log.contains("hook optional-20"), "{log}");

    hook("30-raid", "echo no array >&2; exit 5", 0o755);
    let server = Server::start([job("wait"), REBOOT]);
    assert_eq!(end(begin(session(&server, dir.path()))).await.unwrap(), Finish::Reboot);
    let message = failure(&server, 0).1.message;
    assert!(message.starts_with("hook 30-raid "), "{message}");
}
