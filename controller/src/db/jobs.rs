//! Jobs and what happened to them.

use agent_api::ErrorKind;
use sqlx::Row;

use super::transitions::record;
use super::uses::uses;
use super::{Db, Result, conflict, content, not_found, on_unique};
use crate::clock::now_ms;
use crate::job::{Action, Approval, BOOT_BUDGET, Job, NewJob, Options, Shutdown, State};

/// How many notes of its agent a job's history keeps.
const MAX_AGENT_NOTES: i64 = 16;

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
    /// The request, as text. It may hold passwords, so that only a keyed hash of it is stored.
    pub body: &'a str,
}

impl Db {
    /// Stores a job in state `planned`.
    ///
    /// # Errors
    /// When host or image are busy, a capture's file is another image or another job's, or the key was used for another body.
    pub async fn create_job(
        &self,
        job: &NewJob,
        idempotency: Option<Idempotency<'_>>,
    ) -> Result<NewJobOutcome> {
        let mut tx = self.write().await?;
        if let Some(idempotency) = idempotency
            && let Some(id) = self.made_before(&mut *tx, idempotency).await?
        {
            return Ok(NewJobOutcome::Repeated(id));
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
        if let Some(store) = job.place.store() {
            super::stores::require(&mut *tx, store.as_str()).await?;
        }
        let now = now_ms();
        let options = serde_json::to_value(&job.options).expect("options are plain data");
        let place = job.place.to_string();
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO jobs (action, host_id, host, image, image_url, disk, options, shutdown, approval,
                               state, state_since_ms, boot_budget, created_by, created_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'planned', ?, ?, ?, ?) RETURNING id",
        )
        .bind(action.as_str())
        .bind(job.host_id)
        .bind(job.host.as_str())
        .bind(job.image.as_str())
        .bind(self.column(&place))
        .bind(job.disk.as_ref().map(|d| d.as_str()))
        .bind(self.places_of(&options).to_string())
        .bind(job.shutdown.as_str())
        .bind(Approval::at_first(job).map(Approval::as_str))
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
        sqlx::query("UPDATE jobs SET sealed = ? WHERE id = ?")
            .bind(self.seal_job(id, &options, &place))
            .bind(id)
            .execute(&mut *tx)
            .await?;
        if action == Action::Capture {
            uses(&mut tx).await?.refuse_taken(&self.column(&place), Some(id))?;
        }
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
        if let Some(Idempotency { token_id, key, body }) = idempotency {
            sqlx::query(
                "INSERT INTO idempotency_keys (token_id, key, body_hash, job_id, created_ms) VALUES (?, ?, ?, ?, ?)",
            )
            .bind(token_id)
            .bind(key)
            .bind(self.body_hash(body))
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
        self.made_before(&self.pool, idempotency).await
    }

    async fn made_before(
        &self,
        at: impl sqlx::SqliteExecutor<'_>,
        Idempotency { token_id, key, body }: Idempotency<'_>,
    ) -> Result<Option<i64>> {
        let before: Option<(Vec<u8>, i64)> = sqlx::query_as(
            "SELECT body_hash, job_id FROM idempotency_keys WHERE token_id = ? AND key = ?",
        )
        .bind(token_id)
        .bind(key)
        .fetch_optional(at)
        .await?;
        match before {
            Some((hash, id)) if hash == self.body_hash(body) => Ok(Some(id)),
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
        self.job_of_row(&row)
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
        rows.iter().map(|row| self.job_of_row(row)).collect()
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
        row.as_ref().map(|row| self.job_of_row(row)).transpose()
    }

    /// Adds a note or an alarm to a job's history.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn note(&self, id: i64, kind: &str, actor: &str, text: &str) -> Result<()> {
        let mut connection = self.pool.acquire().await?;
        record(&mut connection, id, kind, None, None, actor, text).await
    }

    /// Adds what an agent has to say about its job once the work is done.
    ///
    /// # Errors
    /// When the work is not done, the agent has said too much already, or the database fails.
    pub async fn note_of_agent(&self, id: i64, text: &str) -> Result<()> {
        let mut tx = self.write().await?;
        let is_done: bool = sqlx::query_scalar("SELECT outcome IS NOT NULL FROM jobs WHERE id = ?")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| not_found("job", id))?;
        if !is_done {
            return Err(conflict("not_done", format!("the work of job {id} is not done yet")));
        }
        let said: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM job_events WHERE job_id = ? AND kind = 'note' AND actor = 'agent'",
        )
        .bind(id)
        .fetch_one(&mut *tx)
        .await?;
        if said >= MAX_AGENT_NOTES {
            return Err(conflict(
                "too_many_notes",
                format!("job {id} has {said} notes of its agent"),
            ));
        }
        record(&mut tx, id, "note", None, None, "agent", text).await?;
        tx.commit().await?;
        Ok(())
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

    pub(super) fn job_of_row(&self, row: &sqlx::sqlite::SqliteRow) -> Result<Job> {
        let text = |column: &str| row.try_get::<String, _>(column);
        let state = text("state")?;
        let id: i64 = row.try_get("id")?;
        let action = text("action")?;
        let sealed: Vec<u8> = row.try_get("sealed")?;
        let opened = self.open_job(id, &sealed)?;
        let is_locked = opened.is_none();
        let (options, image_url) = match opened {
            Some((options, image_url)) => (
                serde_json::from_value::<Options>(options)
                    .map_err(|_| content("job options", format!("of job {id}")))?,
                image_url,
            ),
            None => (
                Options::none(&action).ok_or_else(|| content("action", action))?,
                text("image_url")?,
            ),
        };
        let shutdown = text("shutdown")?;
        let approval: Option<String> = row.try_get("approval")?;
        let plan: Option<String> = row.try_get("plan")?;
        let outcome: Option<String> = row.try_get("outcome")?;
        let kind: Option<String> = row.try_get("failure_kind")?;
        let message: Option<String> = row.try_get("failure_message")?;
        Ok(Job {
            id,
            host_id: row.try_get("host_id")?,
            host: text("host")?,
            image: text("image")?,
            image_url,
            disk: row.try_get("disk")?,
            options,
            is_locked,
            shutdown: [Shutdown::Refuse, Shutdown::Soft, Shutdown::Force]
                .into_iter()
                .find(|s| s.as_str() == shutdown)
                .ok_or_else(|| content("shutdown policy", shutdown))?,
            approval: approval
                .map(|text| Approval::named(&text).ok_or_else(|| content("approval", text)))
                .transpose()?,
            plan: plan
                .map(|text| serde_json::from_str(&text).map_err(|_| content("plan", text)))
                .transpose()?,
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
}
