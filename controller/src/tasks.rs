//! Work on images that needs no machine: copies and checks, done by `imprint-agent` beside the controller.
//!
//! Tasks are known in memory only. With the controller's end they end too, and remove what they have begun. What a task works on is not
//! removed meanwhile: whoever begins a task or removes an image, or a store, holds [`Tasks::catalogue`] while it looks and changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_api::{CopySummary, Failure, StageProgress, StoreAccess};
use serde_json::Value;
use tokio::sync::Notify;

use crate::clock::now_ms;
use crate::context::Controller;
use crate::db::{Image, NewImage};
use crate::store::Spots;
use crate::store::agent_program::{self, ProgramError};

/// The most tasks at once: each of them is a program of its own that fills a network.
const RUNNING_MAX: usize = 4;
/// How many tasks that have ended are remembered.
const ENDED_MAX: usize = 100;

/// What a task does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Copies an image into a store, as an image of this name.
    Copy {
        /// Name of the copy.
        name: String,
        /// Its store.
        store: String,
        /// Its place, as the catalogue has it.
        place: String,
    },
    /// Compares every hash of an image, of its content too if `deep`.
    Verify {
        /// Decompress as well.
        deep: bool,
    },
}

/// How a task stands.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It is at work.
    Running,
    /// What the program said.
    Succeeded(Value),
    /// Why it failed.
    Failed(Failure),
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// Number, from 1 at each start of the controller.
    pub id: u64,
    /// What it does.
    pub work: Work,
    /// The image that it does it with.
    pub image: String,
    /// Stores that it needs.
    stores: Vec<String>,
    /// The files that it reads or writes, as the catalogue has places.
    places: Vec<String>,
    /// How it stands.
    pub outcome: Outcome,
    /// How far it is.
    pub progress: Option<StageProgress>,
    /// Who asked for it.
    pub by: String,
    /// When it began.
    pub started_ms: i64,
    /// When it ended.
    pub finished_ms: Option<i64>,
    cancel: Arc<Notify>,
}

impl Task {
    fn is_running(&self) -> bool {
        matches!(self.outcome, Outcome::Running)
    }
}

/// Why something is not done because of tasks.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No such task.
    #[error("there is no task {0}: those of before the controller's last start are forgotten")]
    NotFound(u64),
    /// It has ended.
    #[error("task {0} has ended")]
    Ended(u64),
    /// Too many.
    #[error("{RUNNING_MAX} tasks are at work: wait for one of them, or cancel it")]
    TooMany,
    /// A task works with it.
    #[error("task {id} works with {what}: wait for it or cancel it")]
    InUse {
        /// Which task.
        id: u64,
        /// With what.
        what: String,
    },
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    tasks: BTreeMap<u64, Task>,
}

/// All tasks.
#[derive(Debug, Default)]
pub struct Tasks {
    /// Held by whoever looks at the catalogue and begins a task, or removes what one might need.
    pub catalogue: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

/// What a task is started with.
#[derive(Debug)]
pub struct NewTask {
    /// What it does.
    pub work: Work,
    /// With which image.
    pub image: Image,
    /// Stores that it needs.
    pub stores: Vec<String>,
    /// Places of the files that it reads or writes.
    pub places: Vec<String>,
    /// Who asks for it.
    pub by: String,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// What lets it into the stores.
    pub access: Vec<StoreAccess>,
    /// API token that is worth something for as long as the task runs.
    pub token: Option<String>,
}

impl Tasks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are known, the newest last.
    #[must_use]
    pub fn list(&self) -> Vec<Task> {
        self.state().tasks.values().cloned().collect()
    }

    /// A task.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, id: u64) -> Result<Task, TaskError> {
        self.state().tasks.get(&id).cloned().ok_or(TaskError::NotFound(id))
    }

    /// Asks a task to end.
    ///
    /// # Errors
    /// When there is none, or it has ended.
    pub fn cancel(&self, id: u64) -> Result<(), TaskError> {
        let task = self.get(id)?;
        if !task.is_running() {
            return Err(TaskError::Ended(id));
        }
        task.cancel.notify_one();
        Ok(())
    }

    /// Refuses an image that a task works with, or makes.
    ///
    /// # Errors
    /// Then.
    pub fn refuse_image(&self, name: &str) -> Result<(), TaskError> {
        let uses = |task: &Task| {
            task.image == name
                || matches!(&task.work, Work::Copy { name: made, .. } if made == name)
        };
        self.refuse(uses, format!("image {name}"))
    }

    /// Refuses a file that a task reads or writes, however its place is spelled; `what` is how the message calls it.
    ///
    /// # Errors
    /// Then.
    pub fn refuse_place(&self, spots: &Spots, place: &str, what: &str) -> Result<(), TaskError> {
        let spot = spots.of(place);
        let uses = |task: &Task| task.places.iter().any(|place| spots.of(place) == spot);
        self.refuse(uses, what.to_owned())
    }

    /// Refuses a store that a task works with.
    ///
    /// # Errors
    /// Then.
    pub fn refuse_store(&self, name: &str) -> Result<(), TaskError> {
        self.refuse(|task| task.stores.iter().any(|store| store == name), format!("store {name}"))
    }

    fn refuse(&self, uses: impl Fn(&Task) -> bool, what: String) -> Result<(), TaskError> {
        match self.state().tasks.values().find(|task| task.is_running() && uses(task)) {
            Some(task) => Err(TaskError::InUse { id: task.id, what }),
            None => Ok(()),
        }
    }

    /// Refuses another task when there are many.
    ///
    /// # Errors
    /// Then.
    pub fn refuse_another(&self) -> Result<(), TaskError> {
        let running = self.state().tasks.values().filter(|task| task.is_running()).count();
        if running < RUNNING_MAX { Ok(()) } else { Err(TaskError::TooMany) }
    }

    /// Starts a task, with [`Tasks::catalogue`] held.
    pub fn start(controller: &Arc<Controller>, new: NewTask) -> Task {
        let mut state = controller.tasks.state();
        state.last_id += 1;
        let task = Task {
            id: state.last_id,
            work: new.work.clone(),
            image: new.image.name.clone(),
            stores: new.stores.clone(),
            places: new.places.clone(),
            outcome: Outcome::Running,
            progress: None,
            by: new.by.clone(),
            started_ms: now_ms(),
            finished_ms: None,
            cancel: Arc::new(Notify::new()),
        };
        state.tasks.insert(task.id, task.clone());
        let ended: Vec<u64> =
            state.tasks.values().filter(|task| !task.is_running()).map(|task| task.id).collect();
        for id in ended.iter().rev().skip(ENDED_MAX) {
            state.tasks.remove(id);
        }
        drop(state);
        tracing::info!(task = task.id, image = task.image, work = ?task.work, by = task.by, "task begun");
        let (controller, id, cancel) = (Arc::clone(controller), task.id, Arc::clone(&task.cancel));
        tokio::spawn(async move {
            let outcome = match carry_out(&controller, id, &new, &cancel).await {
                Ok(value) => {
                    tracing::info!(task = id, "task done");
                    Outcome::Succeeded(value)
                }
                Err(failure) => {
                    tracing::warn!(task = id, kind = %failure.kind, error = failure.message, "task failed");
                    Outcome::Failed(failure)
                }
            };
            if let Some(task) = controller.tasks.state().tasks.get_mut(&id) {
                task.outcome = outcome;
                task.finished_ms = Some(now_ms());
            }
        });
        task
    }
}

async fn carry_out(
    controller: &Controller,
    id: u64,
    new: &NewTask,
    cancel: &Notify,
) -> Result<Value, Failure> {
    let _held = controller.agent.hold();
    let progressed = |progress| {
        if let Some(task) = controller.tasks.state().tasks.get_mut(&id) {
            task.progress = Some(progress);
        }
    };
    let done = agent_program::run(
        &controller.agent,
        &new.args,
        &new.access,
        progressed,
        cancel.notified(),
    )
    .await;
    if let Some(token) = &new.token
        && let Err(error) = controller.db.remove_token(token).await
    {
        // The next start of the controller removes it.
        tracing::error!(token, error = crate::error_chain(&error), "token not removed");
    }
    let value = done.map_err(|error: ProgramError| error.failure())?;
    if let Work::Copy { name, place, .. } = &new.work {
        enter(controller, &new.image, name, place, &value).await?;
    }
    Ok(value)
}

/// Enters a copy in the catalogue.
async fn enter(
    controller: &Controller,
    original: &Image,
    name: &str,
    place: &str,
    value: &Value,
) -> Result<(), Failure> {
    let failed = |why: String| Failure {
        kind: agent_api::ErrorKind::Internal,
        message: format!("the image was copied, but is not in the catalogue: {why}"),
    };
    let summary: CopySummary =
        serde_json::from_value(value.clone()).map_err(|e| failed(e.to_string()))?;
    let bytes = |value: u64| i64::try_from(value).ok();
    let image = NewImage {
        name: name.to_owned(),
        url: place.to_owned(),
        root: summary.root,
        image_id: Some(summary.image_id),
        disk_bytes: bytes(summary.disk_bytes),
        used_bytes: bytes(summary.used_bytes),
        stored_bytes: bytes(summary.stored_bytes),
        host: original.host.clone(),
        job_id: None,
        parent_root: summary.parent_root,
    };
    controller.db.add_image(&image).await.map_err(|e| failed(crate::error_chain(&e)))
}
