//! What was asked of BMCs: written before it is asked.

use super::{Db, Result};
use crate::clock::now_ms;

/// An action for a job, stored before the BMC is asked.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct PowerAction {
    /// Row.
    pub id: i64,
    /// `on`, `off`, `boot_pxe` …
    pub action: String,
    /// When it was decided.
    pub intended_ms: i64,
    /// When its effect was seen.
    pub done_ms: Option<i64>,
    /// How it went.
    pub result: Option<String>,
}

impl Db {
    /// The newest action of this kind for this power-up of the job.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn power_action(
        &self,
        job_id: i64,
        generation: i64,
        action: &str,
    ) -> Result<Option<PowerAction>> {
        Ok(sqlx::query_as(
            "SELECT * FROM power_actions WHERE job_id = ? AND generation = ? AND action = ? ORDER BY id DESC LIMIT 1",
        )
        .bind(job_id)
        .bind(generation)
        .bind(action)
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Stores the intent to act.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn intend_power(
        &self,
        host_id: i64,
        job_id: Option<i64>,
        generation: i64,
        action: &str,
    ) -> Result<i64> {
        Ok(sqlx::query_scalar(
            "INSERT INTO power_actions (host_id, job_id, generation, action, intended_ms) VALUES (?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(host_id)
        .bind(job_id)
        .bind(generation)
        .bind(action)
        .bind(now_ms())
        .fetch_one(&self.pool)
        .await?)
    }

    /// Stores that the action's effect was seen.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn power_done(&self, id: i64, result: &str) -> Result<()> {
        sqlx::query("UPDATE power_actions SET done_ms = ?, result = ? WHERE id = ?")
            .bind(now_ms())
            .bind(result)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Every action of a job, in order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn power_actions(&self, job_id: i64) -> Result<Vec<PowerAction>> {
        Ok(sqlx::query_as("SELECT * FROM power_actions WHERE job_id = ? ORDER BY id")
            .bind(job_id)
            .fetch_all(&self.pool)
            .await?)
    }
}
