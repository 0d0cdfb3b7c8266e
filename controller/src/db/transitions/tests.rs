//! Whatever anybody wants of a job, and in whatever order: its history is a legal one.

use super::*;
use crate::db::{NewJobOutcome, samples};
use crate::job::{NewJob, Options, Shutdown};
use crate::secret::{KEY_LEN, Sealer};
use agent_api::{CaptureOptions, CaptureSummary, Failure};
use proptest::prelude::*;

/// Anything that anybody may want of a job, at any time.
#[derive(Debug, Clone)]
enum Wish {
    Advance(State, State),
    Fail,
    StartWork,
    Stage(State),
    Done,
    NotDone,
    Cancel,
    Mint,
    Redeem(u8),
    Pause,
    Resume,
}

fn any_wish() -> impl Strategy<Value = Wish> {
    let state = || prop::sample::select(State::ALL.to_vec());
    prop_oneof![
        6 => (state(), state()).prop_map(|(from, to)| Wish::Advance(from, to)),
        // The way that jobs usually go, so that all of it is seen.
        9 => prop::sample::select(vec![
            Wish::Advance(State::Planned, State::Armed),
            Wish::Advance(State::Armed, State::Powering),
            Wish::Advance(State::Powering, State::Booting),
            Wish::Advance(State::Finalizing, State::Succeeded),
        ]),
        4 => Just(Wish::StartWork),
        4 => state().prop_map(Wish::Stage),
        3 => Just(Wish::Done),
        1 => Just(Wish::NotDone),
        1 => Just(Wish::Fail),
        1 => Just(Wish::Cancel),
        3 => Just(Wish::Mint),
        3 => (0..3_u8).prop_map(Wish::Redeem),
        1 => Just(Wish::Pause),
        1 => Just(Wish::Resume),
    ]
}

async fn grant(db: &Db, id: i64, wish: Wish) -> Result<()> {
    match wish {
        Wish::Advance(from, to) => db.advance(id, from, to, "test", "").await.map(drop),
        Wish::Fail => db.fail_job(id, ErrorKind::Disk, "", "test").await.map(drop),
        Wish::StartWork => db.start_work(id).await,
        Wish::Stage(to) => db.follow_stage(id, to, "").await.map(drop),
        Wish::Done => {
            let summary = Summary::Capture(CaptureSummary::default());
            db.store_outcome(id, &Outcome::Succeeded(Box::new(summary))).await.map(drop)
        }
        Wish::NotDone => {
            let failure = Failure { kind: ErrorKind::Store, message: String::new() };
            db.store_outcome(id, &Outcome::Failed(failure)).await.map(drop)
        }
        Wish::Cancel => db.cancel_job(id, "test").await.map(drop),
        Wish::Mint => db.mint_ticket(id, b"ticket").await.map(drop),
        Wish::Redeem(boot) => {
            let machine = agent_api::Machine::default();
            db.redeem(b"ticket", &boot.to_string(), b"credential", &machine).await.map(drop)
        }
        Wish::Pause => db.set_attention(id, Some("why"), "test").await.map(drop),
        Wish::Resume => db.resume_job(id, "test").await,
    }
}

async fn job_under_test(db: &Db) -> i64 {
    let job = NewJob {
        host_id: db.add_host(&samples::host()).await.unwrap(),
        host: "node7".parse().unwrap(),
        image: "debian".parse().unwrap(),
        place: "/debian.img.zst".parse().unwrap(),
        disk: None,
        options: Options::Capture(CaptureOptions::default()),
        shutdown: Shutdown::Refuse,
        approval: false,
        created_by: "test".into(),
    };
    match db.create_job(&job, None).await.unwrap() {
        NewJobOutcome::Created(id) | NewJobOutcome::Repeated(id) => id,
    }
}

/// The history is a legal way, ends where the job stands, and the job's other columns fit it.
async fn check(wishes: Vec<Wish>) {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&folder.path().join("db"), Sealer::new(&[7; KEY_LEN])).await.unwrap();
    let id = job_under_test(&db).await;
    let mut ended = None;
    for wish in wishes {
        // What is not possible is refused; what is refused changes nothing, which is seen below.
        let _ = grant(&db, id, wish.clone()).await;
        let state = db.job(id).await.unwrap().state;
        if let Some(ended) = ended {
            assert_eq!(state, ended, "a terminal state changed by {wish:?}");
        }
        ended = Some(state).filter(|state| state.is_terminal());
    }
    let job = db.job(id).await.unwrap();
    let mut here = None;
    for event in db.events(id, 0).await.unwrap() {
        if event.kind != "transition" {
            continue;
        }
        let to: State = event.to_state.unwrap().parse().unwrap();
        let from = event.from_state.map(|text| text.parse::<State>().unwrap());
        assert_eq!(from, here, "a gap in the history");
        assert!(from.is_none_or(|from| from.may_become(to)), "{from:?} to {to}");
        here = Some(to);
    }
    assert_eq!(here, Some(job.state), "the history ends where the job stands");
    assert_eq!(job.finished_ms.is_some(), job.state.is_terminal());
    assert_eq!(job.failure.is_some(), job.state == State::Failed);
    assert!(job.boots <= job.boot_budget);
    if job.state == State::Succeeded {
        assert!(matches!(job.outcome, Some(Outcome::Succeeded(_))), "success without work");
    }
    let images = db.images().await.unwrap().len();
    let captured = matches!(job.outcome, Some(Outcome::Succeeded(_)));
    assert_eq!(images, usize::from(captured), "one image for one capture");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_is_wished_the_history_is_legal(wishes in prop::collection::vec(any_wish(), 0..60)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(check(wishes));
    }
}
