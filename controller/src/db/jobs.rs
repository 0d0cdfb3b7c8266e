//! Jobs, their transitions and events.

use agent_api::{ErrorKind, Outcome, Summary};
use sqlx::{Row, SqliteConnection};

use super::images::{self, NewImage};
use super::{Db, Result, conflict, content, not_found, on_unique};
use crate::clock::now_ms;
use crate::job::{Action, BOOT_BUDGET, Job, NewJob, Options, Shutdown, State};

/// Code of the conflict when a job waits for a person.
pub const JOB_PAUSED: &str = "job_paused";

/// Something that happened to a job.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Event {
    /// Grows over all jobs; the id of a server-sent event.
    pub id: i64,
    /// When.
    pub at_ms: i64,
    /// `transition`, `alarm` or `note`.
    pub kind: String,
    /// State before, for a transition.
    pub from_state: Option<String>,
    /// State after.
    pub to_state: Option<String>,
    /// Who did it: `api:NAME`, `controller`, `agent`.
    pub actor: String,
    /// Why.
    pub cause: String,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Of this host only.
    pub host: Option<String>,
    /// Only those that have not ended.
    pub active: bool,
    /// At most so many, the newest.
    pub limit: u32,
}

/// Whether a POST made a job or repeated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewJobOutcome {
    /// A new one.
    Created(i64),
    /// The same key and body had made this one before.
    Repeated(i64),
}

/// What a POST with an `Idempotency-Key` is remembered by.
#[derive(Debug, Clone, Copy)]
pub struct Idempotency<'a> {
    /// Whose key.
    pub token_id: i64,
    /// The key.
    pub key: &'a str,
    /// SHA-256 of the body.
    pub body_hash: &'a [u8],
}

impl Db {
    /// Stores a job in state `planned`.
    ///
    /// # Errors
    /// When host or image are busy, or the key was used for another body.
    pub async fn create_job(
        &self,
        job: &NewJob,
        idempotency: Option<Idempotency<'_>>,
    ) -> Result<NewJobOutcome> {
        let mut tx = self.write().await?;
        if let Some(Idempotency { token_id, key, body_hash }) = idempotency {
            let before: Option<(Vec<u8>, i64)> = sqlx::query_as(
                "SELECT body_hash, job_id FROM idempotency_keys WHERE token_id = ? AND key = ?",
            )
            .bind(token_id)
            .bind(key)
            .fetch_optional(&mut *tx)
            .await?;
            match before {
                Some((hash, id)) if hash == body_hash => return Ok(NewJobOutcome::Repeated(id)),
                Some(_) => {
                    return Err(conflict(
                        "idempotency_key_reused",
                        "this Idempotency-Key was used with another request",
                    ));
                }
                None => {}
            }
        }
        let action = job.options.action();
        let taken: Option<i64> = sqlx::query_scalar("SELECT id FROM images WHERE name = ?")
            .bind(job.image.as_str())
            .fetch_optional(&mut *tx)
            .await?;
        match (action, taken) {
            (Action::Capture, Some(_)) => {
                return Err(conflict(
                    "image_exists",
                    format!(
                        "image {} exists: choose another name, or remove that entry",
                        job.image
                    ),
                ));
            }
            (Action::Restore, None) => return Err(not_found("image", &job.image)),
            _ => {}
        }
        let now = now_ms();
        let options = serde_json::to_string(&job.options).expect("options are plain data");
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO jobs (action, host_id, host, image, image_url, disk, options, shutdown, state, state_since_ms,
                               boot_budget, created_by, created_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'planned', ?, ?, ?, ?) RETURNING id",
        )
        .bind(action.as_str())
        .bind(job.host_id)
        .bind(job.host.as_str())
        .bind(job.image.as_str())
        .bind(job.image_url.as_str())
        .bind(job.disk.as_ref().map(|d| d.as_str()))
        .bind(options)
        .bind(job.shutdown.as_str())
        .bind(now)
        .bind(BOOT_BUDGET)
        .bind(&job.created_by)
        .bind(now)
        .fetch_one(&mut *tx)
        .await
        .map_err(|e| {
            on_unique(
                e,
                &[
                    ("jobs.host_id", "host_busy", "another job is under way on this host"),
                    ("jobs.image", "image_in_use", "another job is capturing an image of this name"),
                ],
            )
        })?;
        record(
            &mut tx,
            id,
            "transition",
            None,
            Some(State::Planned),
            &format!("api:{}", job.created_by),
            "asked for",
        )
        .await?;
        if let Some(Idempotency { token_id, key, body_hash }) = idempotency {
            sqlx::query(
                "INSERT INTO idempotency_keys (token_id, key, body_hash, job_id, created_ms) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(token_id)
            .bind(key)
            .bind(body_hash)
            .bind(id)
            .bind(now)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(NewJobOutcome::Created(id))
    }

    /// The job that a POST with this key made before, if any.
    ///
    /// # Errors
    /// When the key was used for another body.
    pub async fn job_of_key(&self, idempotency: Idempotency<'_>) -> Result<Option<i64>> {
        let before: Option<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT body_hash, job_id FROM idempotency_keys WHERE token_id = ? AND key = ?",
        )
        .bind(idempotency.token_id)
        .bind(idempotency.key)
        .fetch_optional(&self.pool)
        .await?;
        match before {
            Some((hash, id)) if hash == idempotency.body_hash => Ok(Some(id)),
            Some(_) => Err(conflict(
                "idempotency_key_reused",
                "this Idempotency-Key was used with another request",
            )),
            None => Ok(None),
        }
    }

    /// A job.
    ///
    /// # Errors
    /// When there is none.
    pub async fn job(&self, id: i64) -> Result<Job> {
        let row = sqlx::query("SELECT * FROM jobs WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?
            .ok_or_else(|| not_found("job", id))?;
        job_of_row(&row)
    }

    /// Jobs, the newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<Job>> {
        let rows = sqlx::query(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR host = ?1)
               AND (NOT ?2 OR state NOT IN ('succeeded', 'failed', 'cancelled'))
             ORDER BY id DESC LIMIT ?3",
        )
        .bind(&filter.host)
        .bind(filter.active)
        .bind(i64::from(filter.limit))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(job_of_row).collect()
    }

    /// The job that is under way on a host.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn active_job_of(&self, host_id: i64) -> Result<Option<Job>> {
        let row = sqlx::query(
            "SELECT * FROM jobs WHERE host_id = ? AND state NOT IN ('succeeded', 'failed', 'cancelled')",
        )
        .bind(host_id)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(job_of_row).transpose()
    }

    /// Takes a job from one state to the next. `false`: it is not in `from` any more, and nothing was changed.
    ///
    /// # Errors
    /// When there is no such way, or no such job.
    pub async fn advance(
        &self,
        id: i64,
        from: State,
        to: State,
        actor: &str,
        cause: &str,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        if state_of(&mut tx, id).await? != from {
            return Ok(false);
        }
        transition(&mut tx, id, from, to, actor, cause).await?;
        if to == State::Powering {
            sqlx::query("UPDATE jobs SET generation = generation + 1 WHERE id = ?")
                .bind(id)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Ends a job that did not succeed. `false`: it had ended already.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn fail_job(
        &self,
        id: i64,
        kind: ErrorKind,
        message: &str,
        actor: &str,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        let done = fail(&mut tx, id, kind, message, actor).await?;
        tx.commit().await?;
        Ok(done)
    }

    /// The job's agent has its work now: brings the job to `running` from wherever it stands before that.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn start_work(&self, id: i64) -> Result<()> {
        let mut tx = self.write().await?;
        for (from, to) in [
            (State::Armed, State::Powering),
            (State::Powering, State::Booting),
            (State::Booting, State::Running),
        ] {
            if state_of(&mut tx, id).await? == from {
                transition(&mut tx, id, from, to, "agent", "asked for its work").await?;
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// The worker has come to the stage that `to` stands for. Steps back, and steps of a job that is over, change nothing.
    ///
    /// # Errors
    /// When there is no such job.
    pub async fn follow_stage(&self, id: i64, to: State, cause: &str) -> Result<bool> {
        let mut tx = self.write().await?;
        let from = state_of(&mut tx, id).await?;
        if !from.is_working() || !to.is_working() || !from.may_become(to) {
            return Ok(false);
        }
        transition(&mut tx, id, from, to, "agent", cause).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Stores what the agent said at its end and what follows from it: the image's row, the failure. Saying it twice is the same
    /// as once. Returns whether it was news.
    ///
    /// # Errors
    /// When the job is not one that an agent works on.
    pub async fn store_outcome(&self, id: i64, outcome: &Outcome) -> Result<bool> {
        let mut tx = self.write().await?;
        let row = sqlx::query("SELECT * FROM jobs WHERE id = ?")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| not_found("job", id))?;
        let job = job_of_row(&row)?;
        if job.outcome.is_some() || job.state.is_terminal() {
            return Ok(false);
        }
        if !job.state.is_working() && job.state != State::Booting {
            return Err(conflict(
                "job_not_running",
                format!("job {id} is {}, no agent works on it", job.state),
            ));
        }
        if let Some(why) = &job.needs_attention {
            // Who reports may not be the machine that was meant.
            return Err(conflict(JOB_PAUSED, format!("job {id} is paused: {why}")));
        }
        let text = serde_json::to_string(outcome).expect("an outcome is plain data");
        sqlx::query("UPDATE jobs SET outcome = ?, stalled = 0 WHERE id = ?")
            .bind(text)
            .bind(id)
            .execute(&mut *tx)
            .await?;
        match outcome {
            Outcome::Succeeded(summary) => {
                if job.state == State::Booting {
                    transition(
                        &mut tx,
                        id,
                        State::Booting,
                        State::Running,
                        "agent",
                        "reported its end",
                    )
                    .await?;
                }
                if job.state != State::Finalizing {
                    let from = state_of(&mut tx, id).await?;
                    transition(&mut tx, id, from, State::Finalizing, "agent", "did its work")
                        .await?;
                } else {
                    record(&mut tx, id, "note", None, None, "agent", "did its work").await?;
                }
                if let Summary::Capture(summary) = summary.as_ref() {
                    let bytes = |value: u64| i64::try_from(value).ok();
                    let image = NewImage {
                        name: job.image.clone(),
                        url: job.image_url.clone(),
                        root: summary.root.clone(),
                        image_id: Some(summary.image_id.clone()).filter(|id| !id.is_empty()),
                        disk_bytes: bytes(summary.disk_bytes),
                        used_bytes: bytes(summary.used_bytes),
                        stored_bytes: bytes(summary.stored_bytes),
                        host: Some(job.host.clone()),
                        job_id: Some(id),
                    };
                    match images::insert(&mut *tx, &image).await {
                        // Somebody entered the name by hand meanwhile: the image is published all the same.
                        Err(super::DbError::Conflict { message, .. }) => {
                            record(
                                &mut tx,
                                id,
                                "alarm",
                                None,
                                None,
                                "controller",
                                &format!("not entered in the catalogue: {message}"),
                            )
                            .await?;
                        }
                        other => other?,
                    }
                }
            }
            Outcome::Failed(failure) => {
                if failure.kind == ErrorKind::Cancelled && job.cancel_asked_ms.is_some() {
                    transition(
                        &mut tx,
                        id,
                        job.state,
                        State::Cancelled,
                        "agent",
                        "ended its work as asked",
                    )
                    .await?;
                } else {
                    fail(&mut tx, id, failure.kind, &failure.message, "agent").await?;
                }
            }
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Remembers that a job is to be cancelled; before an agent works on it, it is cancelled at once. Returns the state after.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn cancel_job(&self, id: i64, actor: &str) -> Result<State> {
        let mut tx = self.write().await?;
        let state = state_of(&mut tx, id).await?;
        if state.is_terminal() {
            return Err(conflict(
                "job_over",
                format!("job {id} is {state}: there is nothing to cancel"),
            ));
        }
        let news = sqlx::query(
            "UPDATE jobs SET cancel_asked_ms = ? WHERE id = ? AND cancel_asked_ms IS NULL",
        )
        .bind(now_ms())
        .bind(id)
        .execute(&mut *tx)
        .await?
        .rows_affected()
            == 1;
        let after = if state.is_working() {
            if news {
                record(&mut tx, id, "note", None, None, actor, "cancellation asked for").await?;
            }
            state
        } else {
            transition(
                &mut tx,
                id,
                state,
                State::Cancelled,
                actor,
                "cancelled before its agent worked",
            )
            .await?;
            State::Cancelled
        };
        tx.commit().await?;
        Ok(after)
    }

    /// Sets or clears the mark that the job's agent is silent.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_stalled(&self, id: i64, stalled: bool, cause: &str) -> Result<bool> {
        let mut tx = self.write().await?;
        let changed = sqlx::query("UPDATE jobs SET stalled = ?1 WHERE id = ?2 AND stalled <> ?1")
            .bind(stalled)
            .bind(id)
            .execute(&mut *tx)
            .await?
            .rows_affected()
            == 1;
        if changed {
            record(&mut tx, id, "note", None, None, "controller", cause).await?;
        }
        tx.commit().await?;
        Ok(changed)
    }

    /// Sets why a person has to look at the job, or clears it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_attention(&self, id: i64, why: Option<&str>, actor: &str) -> Result<bool> {
        let mut tx = self.write().await?;
        let changed = attention(&mut tx, id, why, actor).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Stores that the agent was told how to leave.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_dismissed(&self, id: i64) -> Result<()> {
        sqlx::query("UPDATE jobs SET dismissed = 1 WHERE id = ?")
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Adds a note or an alarm to a job's history.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note(&self, id: i64, kind: &str, actor: &str, text: &str) -> Result<()> {
        let mut connection = self.pool.acquire().await?;
        record(&mut connection, id, kind, None, None, actor, text).await
    }

    /// The events of a job after `after`, in order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn events(&self, job_id: i64, after: i64) -> Result<Vec<Event>> {
        Ok(sqlx::query_as("SELECT * FROM job_events WHERE job_id = ? AND id > ? ORDER BY id")
            .bind(job_id)
            .bind(after)
            .fetch_all(&self.pool)
            .await?)
    }

    /// How many jobs stand in each state.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_jobs(&self) -> Result<Vec<(String, String, i64)>> {
        Ok(sqlx::query_as("SELECT action, state, count(*) FROM jobs GROUP BY action, state ORDER BY action, state")
            .fetch_all(&self.pool)
            .await?)
    }
}

pub(super) async fn state_of(tx: &mut SqliteConnection, id: i64) -> Result<State> {
    let text: String = sqlx::query_scalar("SELECT state FROM jobs WHERE id = ?")
        .bind(id)
        .fetch_optional(tx)
        .await?
        .ok_or_else(|| not_found("job", id))?;
    text.parse().map_err(|()| content("job state", text))
}

pub(super) async fn transition(
    tx: &mut SqliteConnection,
    id: i64,
    from: State,
    to: State,
    actor: &str,
    cause: &str,
) -> Result<()> {
    if !from.may_become(to) {
        return Err(conflict(
            "illegal_transition",
            format!("job {id} cannot go from {from} to {to}"),
        ));
    }
    let now = now_ms();
    sqlx::query(
        "UPDATE jobs SET state = ?1, state_since_ms = ?2, finished_ms = CASE WHEN ?3 THEN ?2 END,
                stalled = CASE WHEN ?3 THEN 0 ELSE stalled END,
                needs_attention = CASE WHEN ?3 THEN NULL ELSE needs_attention END
         WHERE id = ?4",
    )
    .bind(to.as_str())
    .bind(now)
    .bind(to.is_terminal())
    .bind(id)
    .execute(&mut *tx)
    .await?;
    record(tx, id, "transition", Some(from), Some(to), actor, cause).await
}

pub(super) async fn attention(
    tx: &mut SqliteConnection,
    id: i64,
    why: Option<&str>,
    actor: &str,
) -> Result<bool> {
    let changed = sqlx::query(
        "UPDATE jobs SET needs_attention = ?1 WHERE id = ?2 AND needs_attention IS NOT ?1",
    )
    .bind(why)
    .bind(id)
    .execute(&mut *tx)
    .await?
    .rows_affected()
        == 1;
    if changed {
        let (kind, text) = match why {
            Some(why) => ("alarm", why),
            None => ("note", "no longer needs attention"),
        };
        record(tx, id, kind, None, None, actor, text).await?;
    }
    Ok(changed)
}

async fn fail(
    tx: &mut SqliteConnection,
    id: i64,
    kind: ErrorKind,
    message: &str,
    actor: &str,
) -> Result<bool> {
    let state = state_of(tx, id).await?;
    if state.is_terminal() {
        return Ok(false);
    }
    transition(tx, id, state, State::Failed, actor, message).await?;
    sqlx::query("UPDATE jobs SET failure_kind = ?, failure_message = ? WHERE id = ?")
        .bind(kind.as_str())
        .bind(message)
        .bind(id)
        .execute(tx)
        .await?;
    Ok(true)
}

pub(super) async fn record(
    tx: &mut SqliteConnection,
    id: i64,
    kind: &str,
    from: Option<State>,
    to: Option<State>,
    actor: &str,
    cause: &str,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO job_events (job_id, at_ms, kind, from_state, to_state, actor, cause) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(id)
    .bind(now_ms())
    .bind(kind)
    .bind(from.map(State::as_str))
    .bind(to.map(State::as_str))
    .bind(actor)
    .bind(cause)
    .execute(tx)
    .await?;
    Ok(())
}

pub(super) fn job_of_row(row: &sqlx::sqlite::SqliteRow) -> Result<Job> {
    let text = |column: &str| row.try_get::<String, _>(column);
    let state = text("state")?;
    let options = text("options")?;
    let shutdown = text("shutdown")?;
    let outcome: Option<String> = row.try_get("outcome")?;
    let kind: Option<String> = row.try_get("failure_kind")?;
    let message: Option<String> = row.try_get("failure_message")?;
    Ok(Job {
        id: row.try_get("id")?,
        host_id: row.try_get("host_id")?,
        host: text("host")?,
        image: text("image")?,
        image_url: text("image_url")?,
        disk: row.try_get("disk")?,
        options: serde_json::from_str::<Options>(&options)
            .map_err(|_| content("job options", options))?,
        shutdown: [Shutdown::Refuse, Shutdown::Soft, Shutdown::Force]
            .into_iter()
            .find(|s| s.as_str() == shutdown)
            .ok_or_else(|| content("shutdown policy", shutdown))?,
        state: state.parse().map_err(|()| content("job state", state))?,
        state_since_ms: row.try_get("state_since_ms")?,
        stalled: row.try_get("stalled")?,
        needs_attention: row.try_get("needs_attention")?,
        cancel_asked_ms: row.try_get("cancel_asked_ms")?,
        generation: row.try_get("generation")?,
        boots: row.try_get("boots")?,
        boot_budget: row.try_get("boot_budget")?,
        outcome: outcome
            .map(|text| serde_json::from_str(&text).map_err(|_| content("outcome", text)))
            .transpose()?,
        dismissed: row.try_get("dismissed")?,
        failure: kind.map(|kind| {
            let kind = serde_json::from_value(serde_json::Value::String(kind))
                .unwrap_or(ErrorKind::Unknown);
            (kind, message.unwrap_or_default())
        }),
        created_by: text("created_by")?,
        created_ms: row.try_get("created_ms")?,
        finished_ms: row.try_get("finished_ms")?,
    })
}
