//! Tickets and the sessions that they are exchanged for.

use agent_api::Machine;

use super::transitions::{attention, record, state_of, transition};
use super::{Db, Result, conflict, content, not_found};
use crate::clock::now_ms;
use crate::job::{Job, State};

/// How long a ticket can be redeemed after it was minted, in ms.
pub const TICKET_TTL_MS: i64 = 10 * 60 * 1000;

/// One boot of an agent that redeemed its ticket.
#[derive(Debug, Clone)]
pub struct Session {
    /// Row.
    pub id: i64,
    /// Its job.
    pub job_id: i64,
    /// The boot.
    pub boot_id: String,
    /// What the machine said of itself.
    pub machine: Machine,
    /// Last heartbeat or other request, to half a minute.
    pub last_seen_ms: i64,
    /// Its credential is worth nothing any more.
    pub revoked: bool,
}

/// What came of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redemption {
    /// A session was made, or an earlier answer to the same boot was lost and replaced.
    Granted,
    /// No such ticket, or too old, or replaced by a newer one.
    Unknown,
    /// Another boot redeemed it before: somebody copied it. The job is paused.
    UsedBefore,
    /// The job does not want an agent now.
    NotWanted,
}

impl Db {
    /// Makes `hash` the job's only valid ticket and counts the boot. `None`: the job does not want an agent now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mint_ticket(&self, job_id: i64, hash: &[u8]) -> Result<Option<i64>> {
        let mut tx = self.write().await?;
        let row = sqlx::query("SELECT * FROM jobs WHERE id = ?")
            .bind(job_id)
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(|| not_found("job", job_id))?;
        let job = self.job_of_row(&row)?;
        if !job.may_boot() {
            return Ok(None);
        }
        let boot = job.boots + 1;
        sqlx::query("UPDATE jobs SET boots = ? WHERE id = ?")
            .bind(boot)
            .bind(job_id)
            .execute(&mut *tx)
            .await?;
        sqlx::query("INSERT OR REPLACE INTO tickets (job_id, boot, secret_hash, expires_ms) VALUES (?, ?, ?, ?)")
            .bind(job_id)
            .bind(boot)
            .bind(hash)
            .bind(now_ms() + TICKET_TTL_MS)
            .execute(&mut *tx)
            .await?;
        record(
            &mut tx,
            job_id,
            "note",
            None,
            None,
            "controller",
            &format!("boot files handed out (boot {boot} of {})", job.boot_budget),
        )
        .await?;
        tx.commit().await?;
        Ok(Some(boot))
    }

    /// The job that a ticket is for, if the ticket is known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn job_of_ticket(&self, hash: &[u8]) -> Result<Option<Job>> {
        let row = sqlx::query(
            "SELECT jobs.* FROM jobs JOIN tickets ON tickets.job_id = jobs.id WHERE secret_hash = ?",
        )
        .bind(hash)
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(|row| self.job_of_row(row)).transpose()
    }

    /// Exchanges a ticket for a session with the credential of this hash.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn redeem(
        &self,
        ticket_hash: &[u8],
        boot_id: &str,
        credential_hash: &[u8],
        machine: &Machine,
    ) -> Result<Redemption> {
        let mut tx = self.write().await?;
        let found: Option<(i64, i64, Option<String>)> =
            sqlx::query_as("SELECT job_id, expires_ms, boot_id FROM tickets WHERE secret_hash = ?")
                .bind(ticket_hash)
                .fetch_optional(&mut *tx)
                .await?;
        let Some((job_id, expires_ms, redeemed_by)) = found else {
            return Ok(Redemption::Unknown);
        };
        let row =
            sqlx::query("SELECT * FROM jobs WHERE id = ?").bind(job_id).fetch_one(&mut *tx).await?;
        let job = self.job_of_row(&row)?;
        if redeemed_by.as_deref().is_some_and(|by| by != boot_id) {
            if !job.state.is_terminal() {
                let why = "its ticket was redeemed a second time, by another boot: another machine may have copied it; \
                           look at the network, then cancel the job and start it again";
                attention(&mut tx, job_id, Some(why), "controller").await?;
            }
            tx.commit().await?;
            return Ok(Redemption::UsedBefore);
        }
        if job.state.is_terminal() || job.needs_attention.is_some() || job.outcome.is_some() {
            return Ok(Redemption::NotWanted);
        }
        if redeemed_by.is_none() {
            if now_ms() > expires_ms {
                return Ok(Redemption::Unknown);
            }
            if job.state.is_working() || job.state == State::AwaitingApproval {
                transition(
                    &mut tx,
                    job_id,
                    job.state,
                    State::Booting,
                    "agent",
                    "it rebooted in mid-job; the work starts again",
                )
                .await?;
            }
            sqlx::query("UPDATE tickets SET boot_id = ? WHERE job_id = ?")
                .bind(boot_id)
                .bind(job_id)
                .execute(&mut *tx)
                .await?;
            record(&mut tx, job_id, "note", None, None, "agent", "checked in").await?;
        }
        let machine = serde_json::to_string(machine).expect("a machine is plain data");
        sqlx::query(
            "INSERT OR REPLACE INTO sessions (job_id, boot_id, credential_hash, machine, created_ms, last_seen_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
        )
        .bind(job_id)
        .bind(boot_id)
        .bind(credential_hash)
        .bind(machine)
        .bind(now_ms())
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE jobs SET stalled = 0 WHERE id = ?")
            .bind(job_id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(Redemption::Granted)
    }

    /// The session with this credential.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn session_by_credential(&self, hash: &[u8]) -> Result<Option<Session>> {
        let row: Option<SessionRow> =
            sqlx::query_as("SELECT * FROM sessions WHERE credential_hash = ?")
                .bind(hash)
                .fetch_optional(&self.pool)
                .await?;
        row.map(Session::try_from).transpose()
    }

    /// The newest session of a job.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn session_of_job(&self, job_id: i64) -> Result<Option<Session>> {
        let row: Option<SessionRow> = sqlx::query_as("SELECT * FROM sessions WHERE job_id = ?")
            .bind(job_id)
            .fetch_optional(&self.pool)
            .await?;
        row.map(Session::try_from).transpose()
    }

    /// When an agent was last heard of that stayed on this host after its job: only a failed restore leaves one, since its disk does
    /// not boot. After any other end the machine was sent on its way, and is running its own system soon.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn left_agent_last_seen(&self, host_id: i64) -> Result<Option<i64>> {
        Ok(sqlx::query_scalar(
            "SELECT max(last_seen_ms) FROM sessions JOIN jobs ON jobs.id = sessions.job_id
             WHERE jobs.host_id = ? AND jobs.action = 'restore' AND jobs.state = 'failed' AND NOT sessions.revoked",
        )
        .bind(host_id)
        .fetch_one(&self.pool)
        .await?)
    }

    /// Remembers that a session was heard of.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn touch_session(&self, id: i64) -> Result<()> {
        sqlx::query("UPDATE sessions SET last_seen_ms = ? WHERE id = ?")
            .bind(now_ms())
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Ends the sessions of earlier jobs on a host: their agents are about to lose power.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn revoke_sessions(&self, host_id: i64, except_job: i64) -> Result<()> {
        sqlx::query(
            "UPDATE sessions SET revoked = 1 WHERE job_id IN (SELECT id FROM jobs WHERE host_id = ? AND id <> ?)",
        )
        .bind(host_id)
        .bind(except_job)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Lets a paused job go on: the ticket that raised the alarm is worth nothing any more.
    ///
    /// # Errors
    /// When the job is over.
    pub async fn resume_job(&self, job_id: i64, actor: &str) -> Result<()> {
        let mut tx = self.write().await?;
        let state = state_of(&mut tx, job_id).await?;
        if state.is_terminal() {
            return Err(conflict("job_over", format!("job {job_id} is {state}")));
        }
        sqlx::query("DELETE FROM tickets WHERE job_id = ?").bind(job_id).execute(&mut *tx).await?;
        attention(&mut tx, job_id, None, actor).await?;
        tx.commit().await?;
        Ok(())
    }
}

#[derive(sqlx::FromRow)]
struct SessionRow {
    id: i64,
    job_id: i64,
    boot_id: String,
    machine: String,
    last_seen_ms: i64,
    revoked: bool,
}

impl TryFrom<SessionRow> for Session {
    type Error = super::DbError;
    fn try_from(row: SessionRow) -> Result<Self> {
        Ok(Self {
            id: row.id,
            job_id: row.job_id,
            boot_id: row.boot_id,
            machine: serde_json::from_str(&row.machine)
                .map_err(|_| content("machine", row.machine))?,
            last_seen_ms: row.last_seen_ms,
            revoked: row.revoked,
        })
    }
}
