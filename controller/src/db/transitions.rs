//! How a job moves from state to state: the only code that changes one.
//!
//! Every function here is one transaction that looks at the stored state first, so that of two who want to move a job at the same
//! moment one finds it moved already. [`State::may_become`] says what is possible; the history gets a row for each change.

use agent_api::{CaptureOptions, ErrorKind, Outcome, Summary};
use sqlx::SqliteConnection;

use super::approvals::store_plan;
use super::images::NewImage;
use super::{Db, DbError, Result, conflict, content, not_found};
use crate::clock::now_ms;
use crate::job::{Action, Options, State};

/// Code of the conflict when a job waits for a person.
pub const JOB_PAUSED: &str = "job_paused";

impl Db {
    /// Takes a job from one state to the next. `false`: it is not in `from` any more, and nothing was changed. To fail, a job needs
    /// a reason and [`Db::fail_job`]; to succeed, its agent's outcome.
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
        let worked: bool = sqlx::query_scalar("SELECT outcome IS NOT NULL FROM jobs WHERE id = ?")
            .bind(id)
            .fetch_one(&mut *tx)
            .await?;
        if to == State::Failed || (to == State::Succeeded && !worked) {
            return Err(no_way(id, from, to));
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
        let job = self.job_of_row(&row)?;
        if job.outcome.is_some() || job.state.is_terminal() {
            return Ok(false);
        }
        let plan = match outcome {
            Outcome::Succeeded(summary) => match summary.as_ref() {
                Summary::Plan(plan) => Some(plan),
                Summary::Capture(_) | Summary::Restore(_) => None,
            },
            Outcome::Failed(_) => None,
        };
        let waits = plan.is_some() && job.state == State::AwaitingApproval;
        if !job.state.is_working() && job.state != State::Booting && !waits {
            return Err(conflict(
                "job_not_running",
                format!("job {id} is {}, no agent works on it", job.state),
            ));
        }
        if let Some(why) = &job.needs_attention {
            // Who reports may not be the machine that was meant.
            return Err(conflict(JOB_PAUSED, format!("job {id} is paused: {why}")));
        }
        if let Some(plan) = plan {
            let news = store_plan(&mut tx, &job, plan).await?;
            tx.commit().await?;
            return Ok(news);
        }
        let fits = match outcome {
            Outcome::Succeeded(summary) => match summary.as_ref() {
                Summary::Capture(_) => job.action() == Action::Capture,
                Summary::Restore(_) => job.action() == Action::Restore,
                Summary::Plan(_) => false,
            },
            Outcome::Failed(_) => true,
        };
        if !fits {
            return Err(conflict(
                "wrong_outcome",
                format!("job {id} is a {}", job.action().as_str()),
            ));
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
                    let parent_root = match &job.options {
                        // The first one is what it is the difference to.
                        Options::Capture(CaptureOptions { base, .. }) => match base.first() {
                            Some(base) => Self::root_at(&mut *tx, &self.column(base)).await?,
                            None => None,
                        },
                        Options::Restore(_) => None,
                    };
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
                        parent_root,
                    };
                    match self.insert_image(&mut *tx, &image).await {
                        // Somebody entered the name by hand meanwhile: the image is published all the same.
                        Err(DbError::Conflict { message, .. }) => {
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
}

pub(super) async fn state_of(tx: &mut SqliteConnection, id: i64) -> Result<State> {
    let text: String = sqlx::query_scalar("SELECT state FROM jobs WHERE id = ?")
        .bind(id)
        .fetch_optional(tx)
        .await?
        .ok_or_else(|| not_found("job", id))?;
    text.parse().map_err(|()| content("job state", text))
}

fn no_way(id: i64, from: State, to: State) -> DbError {
    conflict("illegal_transition", format!("job {id} cannot go from {from} to {to}"))
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
        return Err(no_way(id, from, to));
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

#[cfg(test)]
mod tests;
