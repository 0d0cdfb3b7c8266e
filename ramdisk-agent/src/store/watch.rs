//! How long a server may make no progress, who is told, and how long to pause before it is tried again.
//!
//! One watch belongs to all connections of an open image or writer: an answer on any of them is progress. It runs only while
//! requests are outstanding.
//!
//! Whoever is cancelled does not wait for a server that says nothing. One that answers is left to: the work looks at the flag itself, between
//! two answers, and tidies up as after every other end. What tidies up after a cancellation has little time for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Observer, Options, Result, StoreError};

/// Silence that is worth telling, and how often it is told again.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// A server that answered a question is taken for alive for so long.
const LIVES: Duration = Duration::from_secs(10);
/// Fewer bytes of an answer within a budget than these are none: a server that sends one a second would keep a job for years.
const PROGRESS_BYTES: usize = 4 << 10;
/// Once the work is cancelled, a silence of this length is none of a server that answers.
const CANCELLED_SILENCE: Duration = Duration::from_secs(1);
/// So long a server that does answer may take to let cancelled work come to its end.
const CANCELLED_PATIENCE: Duration = Duration::from_secs(5);
/// How long tidying up after a failure may take without progress, and after a cancellation, where somebody waits for the end.
const TIDY_BUDGET: Duration = Duration::from_secs(10);
const TIDY_CANCELLED: Duration = Duration::from_secs(4);
/// How soon a pause ends once the work is cancelled.
const TICK: Duration = Duration::from_millis(250);
/// Pauses before a connection is tried again: doubled each time between these two.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// So long tidying up may take without progress.
pub(super) fn tidy_budget(is_cancelled: bool) -> Duration {
    if is_cancelled { TIDY_CANCELLED } else { TIDY_BUDGET }
}

pub(super) struct Watch {
    /// Who is waited for: "nfs server 10.0.0.5".
    server: String,
    observer: Option<Arc<dyn Observer>>,
    cancelled: Arc<AtomicBool>,
    cancelled_silence: Duration,
    state: Mutex<State>,
}

struct State {
    budget: Duration,
    outstanding: usize,
    /// Questions whether the server lives.
    asking: usize,
    /// When it last answered one of these, unless something got further since.
    lived: Option<Instant>,
    progress: Instant,
    /// What came since.
    dripped: usize,
    told: Option<Instant>,
    trouble: Option<String>,
    /// When it was first seen that the work is cancelled.
    cancelled: Option<Instant>,
    /// What is done now has to be done after a cancellation, too.
    tidies: bool,
}

impl State {
    /// Whether it answers, and does not do what it was asked for.
    fn lives(&self) -> bool {
        self.lived.is_some_and(|lived| lived.elapsed() < LIVES)
    }
}

/// Waiting for a server that says "try later".
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    told: Option<Instant>,
    pauses: u32,
}

impl Watch {
    pub(super) fn new(server: String, options: &Options) -> Self {
        let state = State {
            budget: options.connect_budget,
            outstanding: 0,
            asking: 0,
            lived: None,
            progress: Instant::now(),
            dripped: 0,
            told: None,
            trouble: None,
            cancelled: None,
            tidies: false,
        };
        Self {
            server,
            observer: options.observer.clone(),
            cancelled: Arc::clone(&options.cancelled),
            cancelled_silence: CANCELLED_SILENCE,
            state: Mutex::new(state),
        }
    }

    /// For a server that cannot be asked to tidy up once a wait for it was ended: it may be silent for longer.
    pub(super) fn patient_when_cancelled(self) -> Self {
        Self { cancelled_silence: CANCELLED_PATIENCE, ..self }
    }

    pub(super) fn set_budget(&self, budget: Duration) {
        self.lock().budget = budget;
    }

    /// From now on only what is left behind is tidied up: within less time, and whether the work is cancelled or not.
    pub(super) fn tidy(&self, budget: Duration) {
        let most = tidy_budget(self.is_cancelled());
        let mut state = self.lock();
        state.budget = budget.min(most);
        state.progress = Instant::now();
        state.tidies = true;
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether the work is cancelled, and what is done now not needed any more.
    pub(super) fn is_called_off(&self) -> bool {
        self.is_cancelled() && !self.lock().tidies
    }

    /// What whoever is called off fails with: nothing is begun any more.
    pub(super) fn called_off(&self) -> Option<StoreError> {
        let without = self.lock().progress.elapsed();
        self.is_called_off().then(|| self.unreachable(without, None))
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// A request waits for its answer from now on.
    pub(super) fn began(&self) {
        let mut state = self.lock();
        if state.outstanding == 0 {
            state.progress = Instant::now();
        }
        state.outstanding += 1;
    }

    /// A request was answered by the server.
    pub(super) fn answered(&self) {
        let mut state = self.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        self.note_progress(state);
    }

    /// A question is asked by which nothing gets further, and which shows that the server lives.
    pub(super) fn asks(&self) {
        let mut state = self.lock();
        if state.outstanding + state.asking == 0 {
            state.progress = Instant::now();
        }
        state.asking += 1;
    }

    /// Such a question was answered, or given up. That the server lives is progress only where no request waits for it.
    pub(super) fn asked(&self, is_answered: bool) {
        let mut state = self.lock();
        state.asking = state.asking.saturating_sub(1);
        if !is_answered {
            return;
        }
        if state.outstanding == 0 {
            return self.note_progress(state);
        }
        state.lived = Some(Instant::now());
    }

    /// So many bytes of an answer came that need not be asked for again. A drip of them is no progress.
    pub(super) fn progressed(&self, bytes: usize) {
        let mut state = self.lock();
        state.dripped = state.dripped.saturating_add(bytes);
        if state.dripped >= PROGRESS_BYTES {
            self.note_progress(state);
        }
    }

    fn note_progress(&self, mut state: MutexGuard<'_, State>) {
        state.progress = Instant::now();
        state.dripped = 0;
        state.lived = None;
        state.trouble = None;
        let was_told = state.told.take().is_some();
        drop(state);
        if was_told && let Some(observer) = &self.observer {
            observer.resumed();
        }
    }

    /// What the server does instead of answering, for those who are told of it: "answered 503".
    pub(super) fn troubled(&self, what: String) {
        self.lock().trouble = Some(what);
    }

    /// A request was given up.
    pub(super) fn gave_up(&self) {
        let mut state = self.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
    }

    /// Pauses because the server said "try later"; fails when it has said nothing else for longer than the budget.
    pub(super) fn wait(&self, doing: &str, patience: &mut Patience) -> Result<()> {
        let without = patience.since.get_or_insert_with(Instant::now).elapsed();
        if without >= TELL_AFTER && patience.told.is_none_or(|told| told.elapsed() >= TELL_AFTER) {
            patience.told = Some(Instant::now());
            if let Some(observer) = &self.observer {
                let seconds = without.as_secs();
                observer.stalled(&format!("{} says \"try later\" ({seconds} s)", self.server));
            }
        }
        if self.is_called_off() {
            return Err(self.unreachable(without, None));
        }
        if without >= self.lock().budget {
            let what = format!("{} says \"try later\" to {doing}", self.server);
            return Err(StoreError::Unreachable { what, seconds: without.as_secs(), source: None });
        }
        patience.pauses += 1;
        self.sleep(pause(patience.pauses));
        Ok(())
    }

    /// Pauses, unless the work is called off.
    pub(super) fn sleep(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_called_off() {
                return;
            }
            std::thread::sleep(left.min(TICK));
        }
    }

    /// The server did what it was asked for.
    pub(super) fn calm(&self, patience: &mut Patience) {
        if std::mem::take(patience).told.is_some()
            && let Some(observer) = &self.observer
        {
            observer.resumed();
        }
    }

    /// What is said when the budget is spent, or the work was cancelled before.
    pub(super) fn unreachable(
        &self,
        without: Duration,
        source: Option<std::io::Error>,
    ) -> StoreError {
        if self.is_called_off() {
            let (server, seconds) = (self.server.clone(), without.as_secs());
            return StoreError::Cancelled { server, seconds, source };
        }
        let what = format!("{} made no progress", self.server);
        StoreError::Unreachable { what, seconds: without.as_secs(), source }
    }

    /// The same, with what was asked for: a gerund. A server may live and still not do that.
    pub(super) fn unreachable_with(
        &self,
        doing: &str,
        without: Duration,
        source: Option<std::io::Error>,
    ) -> StoreError {
        if self.is_called_off() {
            return self.unreachable(without, source);
        }
        let lives = match self.lock().lives() {
            true => ", while it answers other requests (look at its disk and its log),",
            false => "",
        };
        let what = format!("{} made no progress with {doing}{lives}", self.server);
        StoreError::Unreachable { what, seconds: without.as_secs(), source }
    }

    /// Tells the observer if it is time; `Some` with the time without progress once that is above the budget, or too long for who is cancelled.
    pub(super) fn check(&self) -> Option<Duration> {
        let mut state = self.lock();
        if state.outstanding + state.asking == 0 {
            return None;
        }
        let without = state.progress.elapsed();
        let tell =
            without >= TELL_AFTER && state.told.is_none_or(|told| told.elapsed() >= TELL_AFTER);
        if tell {
            state.told = Some(Instant::now());
        }
        let mut is_over = without >= state.budget;
        if !state.tidies && self.is_cancelled() {
            let since = state.cancelled.get_or_insert_with(Instant::now).elapsed();
            is_over |= without >= self.cancelled_silence || since >= CANCELLED_PATIENCE;
        }
        let expired = is_over.then_some(without);
        let what = tell.then(|| {
            let silent = match state.lives() {
                true => "answers, but does not do what it was asked for",
                false => "does not answer",
            };
            let trouble = state.trouble.as_deref().unwrap_or(silent);
            format!("{} {trouble} ({} s)", self.server, without.as_secs())
        });
        drop(state);
        if let (Some(what), Some(observer)) = (what, &self.observer) {
            observer.stalled(&what);
        }
        expired
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Half to the whole of a pause that doubles, so that many agents do not come back in step.
pub(super) fn pause(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    let random = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    whole / 2 + whole / 2 * random / 255
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count {
        stalled: AtomicUsize,
        resumed: AtomicUsize,
    }

    impl Observer for Count {
        fn stalled(&self, what: &str) {
            assert!(what.starts_with("nfs server 10.0.0.5 does not answer"), "{what}");
            self.stalled.fetch_add(1, Ordering::SeqCst);
        }
        fn resumed(&self) {
            self.resumed.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn tells_and_expires_only_while_a_request_waits() {
        let count = Arc::new(Count::default());
        let options = Options { observer: Some(Arc::clone(&count) as _), ..Options::default() };
        let watch = Watch::new("nfs server 10.0.0.5".into(), &options);
        let an_hour_ago = Instant::now() - Duration::from_secs(3600);
        watch.lock().progress = an_hour_ago;
        assert_eq!(watch.check(), None, "nothing is outstanding");
        watch.began();
        assert_eq!(watch.check(), None, "the clock starts with the request");
        watch.lock().progress = an_hour_ago;
        assert!(watch.check().unwrap() >= Duration::from_secs(3600));
        assert!(watch.check().is_some());
        assert_eq!(count.stalled.load(Ordering::SeqCst), 1, "not again within seconds");
        watch.answered();
        assert_eq!(count.resumed.load(Ordering::SeqCst), 1);
        assert_eq!(watch.check(), None);
    }

    #[test]
    fn a_server_that_lives_and_does_nothing_makes_no_progress() {
        let count = Arc::new(Count::default());
        let options = Options { observer: Some(Arc::clone(&count) as _), ..Options::default() };
        let watch = Watch::new("nfs server 10.0.0.5".into(), &options);
        let an_hour_ago = Instant::now() - Duration::from_secs(3600);
        watch.asks();
        watch.lock().progress = an_hour_ago;
        assert!(watch.check().is_some(), "it does not answer");
        watch.began();
        assert_eq!(watch.check(), None, "a request has all of the budget");
        watch.lock().progress = an_hour_ago;
        watch.asked(true);
        assert!(watch.check().is_some());
        let error = watch.unreachable_with("flushing", Duration::from_secs(3600), None).to_string();
        assert!(error.contains("no progress with flushing, while it answers"), "{error}");
        watch.answered();
        let error = watch.unreachable_with("flushing", Duration::from_secs(3600), None).to_string();
        assert!(error.contains("no progress with flushing for 3600 s"), "{error}");
        watch.asks();
        watch.lock().progress = an_hour_ago;
        watch.asked(true);
        watch.asks();
        assert_eq!(watch.check(), None, "nothing else waited");
        assert_eq!(count.resumed.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_is_cancelled_waits_no_more_and_still_tidies_up() {
        let options = Options::default();
        let watch = Watch::new("nfs server 10.0.0.5".into(), &options);
        watch.began();
        let seconds_ago = |s| Instant::now() - Duration::from_secs(s);
        watch.lock().progress = seconds_ago(3);
        assert_eq!(watch.check(), None);
        options.cancelled.store(true, Ordering::Relaxed);
        let without = watch.check().expect("it is silent");
        let error = watch.unreachable(without, None);
        assert_eq!(error.kind(), agent_api::ErrorKind::Cancelled, "{error}");
        assert!(watch.wait("writing", &mut Patience::default()).is_err());
        // One that answers is left to whoever looks at the flag between two answers, for a while.
        watch.lock().progress = Instant::now();
        assert_eq!(watch.check(), None);
        watch.lock().cancelled = Some(seconds_ago(6));
        assert!(watch.check().is_some());
        watch.tidy(options.budget);
        assert_eq!(watch.check(), None);
        watch.lock().progress = seconds_ago(5);
        let without = watch.check().expect("tidying up does not take as long as after a failure");
        assert_eq!(watch.unreachable(without, None).kind(), agent_api::ErrorKind::Network);
    }
}
