//! Plans that wait for somebody's approval.

use agent_api::PlanSummary;
use sqlx::SqliteConnection;

use super::transitions::{record, state_of, transition};
use super::{Db, Result, conflict, not_found};
use crate::job::{Approval, Job, State};

impl Db {
    /// Approves the plan with this hash.
    ///
    /// # Errors
    /// When the job does not wait for an approval, or its plan has another hash.
    pub async fn approve(&self, id: i64, hash: &str, actor: &str) -> Result<()> {
        let mut tx = self.write().await?;
        let state = state_of(&mut tx, id).await?;
        if state != State::AwaitingApproval {
            return Err(conflict(
                "nothing_to_approve",
                format!("job {id} is {state}: it does not wait for an approval"),
            ));
        }
        let plan: Option<String> = sqlx::query_scalar("SELECT plan FROM jobs WHERE id = ?")
            .bind(id)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| not_found("job", id))?;
        let plan: Option<PlanSummary> =
            plan.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let current = plan.map(|plan| plan.hash).unwrap_or_default();
        if !current.eq_ignore_ascii_case(hash.trim()) {
            return Err(conflict(
                "other_plan",
                format!("the plan of job {id} is {current}, not {}: look at it again", hash.trim()),
            ));
        }
        set(&mut tx, id, Approval::Given).await?;
        let cause = format!("approved the plan {current}");
        transition(&mut tx, id, State::AwaitingApproval, State::Running, actor, &cause).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The agent has begun to write what was approved.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn use_approval(&self, id: i64) -> Result<()> {
        sqlx::query("UPDATE jobs SET approval = 'used' WHERE id = ? AND approval = 'given'")
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Stores a plan that the agent made, and lets the job wait unless that plan is approved already. Saying it twice is the same as once.
pub(super) async fn store_plan(
    tx: &mut SqliteConnection,
    job: &Job,
    plan: &PlanSummary,
) -> Result<bool> {
    let id = job.id;
    match (job.approval, job.state) {
        (Some(approval), State::Booting | State::Running) if approval.wants_plan() => {}
        (Some(_), _) => return Ok(false),
        (None, _) => {
            return Err(conflict("wrong_outcome", format!("job {id} was not asked for a plan")));
        }
    }
    let text = serde_json::to_string(plan).expect("a plan is plain data");
    sqlx::query("UPDATE jobs SET plan = ?, stalled = 0 WHERE id = ?")
        .bind(text)
        .bind(id)
        .execute(&mut *tx)
        .await?;
    if job.state == State::Booting {
        transition(tx, id, State::Booting, State::Running, "agent", "made its plan").await?;
    }
    if job.approval == Some(Approval::Expected) && job.expects(&plan.hash) {
        set(tx, id, Approval::Given).await?;
        let text = format!("the plan is the one that was asked for, {}", plan.hash);
        record(tx, id, "note", None, None, "agent", &text).await?;
        return Ok(true);
    }
    set(tx, id, Approval::Asked).await?;
    let cause = format!("asks for approval of the plan {}", plan.hash);
    transition(tx, id, State::Running, State::AwaitingApproval, "agent", &cause).await?;
    record(
        tx,
        id,
        "note",
        None,
        None,
        "agent",
        &format!("`imprint job approve {id}` shows the plan"),
    )
    .await?;
    Ok(true)
}

async fn set(tx: &mut SqliteConnection, id: i64, approval: Approval) -> Result<()> {
    sqlx::query("UPDATE jobs SET approval = ? WHERE id = ?")
        .bind(approval.as_str())
        .bind(id)
        .execute(tx)
        .await?;
    Ok(())
}
