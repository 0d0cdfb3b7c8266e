//! A mounted share, on which things are done within a time.
//!
//! A call into the kernel's client cannot be called off: `softerr` ends it when the connection is broken for good, but not while a server
//! acknowledges and says nothing, nor while the client recovers what a restarted server has forgotten. So each runs in a thread of its own. When the budget is
//! spent the caller gets its error, the kernel is told to fail what waits, and a thread that hangs even then is left
//! to the end of the process, which ends it.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::super::connect::RECEIVE_TICK;
use super::super::error::MOUNTED_READ_ONLY;
use super::super::watch::Watch;
use super::super::{Nfs4Url, Options, Result, StoreError, StoreUrl};
use super::mount::{self, Mounted};
use super::refusal;

const THREAD: &str = "store-nfs4";
/// How long the end of an open file is waited for. With the next one less than a worker has between being told to end and being killed.
const DISCARD_PATIENCE: Duration = Duration::from_secs(4);
/// The same once everything that waits is made to fail.
const FAILING_PATIENCE: Duration = Duration::from_secs(4);

/// A folder of a server, mounted. Clones are the same mount, which ends with the last of them.
#[derive(Clone)]
pub(super) struct Share(Arc<Inner>);

struct Inner {
    mounted: Mounted,
    folder: Nfs4Url,
    watch: Watch,
    budget: Duration,
    /// After how many seconds it was given up; nothing is tried any more then, as the budget would be spent again each time.
    given_up: OnceLock<Duration>,
}

impl Share {
    /// Mounts a folder.
    pub(super) fn open(folder: &Nfs4Url, options: &Options) -> Result<Self> {
        let watch = Watch::new(format!("nfs server {}", folder.server()), options);
        let watch = watch.patient_when_cancelled();
        let mounted = mount::mount(folder, options, &watch)?;
        watch.set_budget(options.budget);
        let given_up = OnceLock::new();
        let budget = options.budget;
        let inner = Inner { mounted, folder: folder.clone(), watch, budget, given_up };
        Ok(Self(Arc::new(inner)))
    }

    /// From now on only what is left behind is tidied up.
    pub(super) fn tidy(&self) {
        self.0.watch.tidy(self.0.budget);
    }

    pub(super) fn mounted(&self) -> &Mounted {
        &self.0.mounted
    }

    /// Does something in the folder, whose path it gets, as the URL's user, and within the budget.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let began = Instant::now();
        if let Some(without) = self.0.given_up.get() {
            return Err(self.0.watch.unreachable(*without, None));
        }
        let (done, answer) = channel();
        let root = Arc::clone(self.0.mounted.root());
        let identity = self.0.folder.identity();
        let failed = |source| {
            let url = self.0.folder.to_string();
            StoreError::Io { doing: "using", url, source }
        };
        let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
            identity.assume();
            // Whoever waited may have given up.
            let _ = done.send(work(root.path()));
        });
        thread.map_err(failed)?;
        match answer_of(&self.0.watch, &answer) {
            Ok(result) => result.map_err(|error| self.translated(error, began.elapsed())),
            Err(Unanswered::Spent(without)) => {
                // Another thread may have been faster, with about the same.
                let _ = self.0.given_up.set(without);
                self.0.mounted.fail_what_waits();
                // The process may end now. What it has open is better closed before, while there is somebody to fail what that waits for.
                if let Ok(late) = answer.recv_timeout(FAILING_PATIENCE) {
                    self.discard(late);
                }
                Err(self.0.watch.unreachable(without, None))
            }
            Err(Unanswered::Thread(source)) => Err(failed(source)),
        }
    }

    /// Drops something that may have to tell the server of it, which is waited for no longer than a moment. Nothing that matters is
    /// lost with it: an image that was published is none of those.
    pub(super) fn discard<T: Send + 'static>(&self, thing: T) {
        let (done, answer) = channel::<()>();
        let root = Arc::clone(self.0.mounted.root());
        let identity = self.0.folder.identity();
        // Without a thread it is dropped here.
        let _ = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
            identity.assume();
            drop(thing);
            drop(root);
            drop(done);
        });
        let is_late = answer.recv_timeout(DISCARD_PATIENCE) == Err(RecvTimeoutError::Timeout);
        // A writer goes on when its reader is dropped.
        if is_late && Arc::strong_count(&self.0) == 1 {
            // Data that nobody wants any more would hold up even the end of the process.
            self.0.mounted.fail_what_waits();
            let _ = answer.recv_timeout(FAILING_PATIENCE);
        }
    }

    /// The same error in this store's words: with the URL in place of the path, and what the errors of a network file system mean.
    pub(super) fn translated(&self, error: StoreError, took: Duration) -> StoreError {
        let root = self.0.mounted.root().path();
        let folder = StoreUrl::Nfs4(self.0.folder.clone());
        let rename = |url: &str| match Path::new(url).strip_prefix(root) {
            Ok(name) if name.as_os_str().is_empty() => folder.to_string(),
            Ok(name) => folder.join(&name.to_string_lossy()).to_string(),
            Err(_) => url.to_owned(),
        };
        match error.renamed(rename) {
            StoreError::Io { url, source, doing } => match source.raw_os_error() {
                Some(code) if refusal::is_silence(code) => {
                    self.0.watch.unreachable(took, Some(source))
                }
                Some(libc::ESTALE) => StoreError::Replaced { url },
                Some(libc::ENOTDIR | libc::ELOOP) => StoreError::Io {
                    doing,
                    url,
                    source: io::Error::new(
                        source.kind(),
                        format!("{source}: it is a link or no folder"),
                    ),
                },
                _ => StoreError::Io { doing, url, source },
            },
            StoreError::Denied { doing, url, reason } => {
                let reason = if reason == MOUNTED_READ_ONLY {
                    "the server exports it read-only to this machine".to_owned()
                } else {
                    refusal::not_allowed(&self.0.folder)
                };
                StoreError::Denied { doing, url, reason }
            }
            other => other,
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// The budget is spent, after so long without one.
    Spent(Duration),
    /// There is no thread that could give it.
    Thread(io::Error),
}

/// Waits for another thread's answer as long as the watch has patience.
pub(super) fn answer_of<T>(
    watch: &Watch,
    answer: &Receiver<T>,
) -> std::result::Result<T, Unanswered> {
    watch.began();
    loop {
        match answer.recv_timeout(RECEIVE_TICK) {
            Ok(result) => {
                watch.answered();
                return Ok(result);
            }
            Err(RecvTimeoutError::Disconnected) => {
                watch.gave_up();
                let source = io::Error::other("a thread of the agent ended without a result");
                return Err(Unanswered::Thread(source));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(without) = watch.check() {
                    watch.gave_up();
                    return Err(Unanswered::Spent(without));
                }
            }
        }
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Share").field(&self.0.folder).finish()
    }
}
