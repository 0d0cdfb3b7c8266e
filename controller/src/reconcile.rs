//! What takes a job from state to state: one task per job that is under way, driven by what is stored and nothing else.
//!
//! A driver reads the job, takes one step, and waits for the job's bell or a deadline. It keeps nothing between steps, so a
//! controller that was killed goes on by starting a driver for every job that has not ended. Steps towards the machine are in
//! `power`; what the agent says comes in through [`crate::api`], which stores it and rings the bell.

mod power;

pub(crate) use power::{is_boot_disk_done, is_in_agent};

use std::sync::Arc;
use std::time::Duration;

use agent_api::{ErrorKind, Finish as Leave};
use tokio::time::{sleep, timeout};

use crate::bmc::BmcError;
use crate::clock::now_ms;
use crate::context::Controller;
use crate::db::{BmcRow, DbError, Host, JobFilter};
use crate::error_chain;
use crate::host::Finish;
use crate::job::{Job, State};

/// Time limits of a job.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From power-on to the agent's first request, before the machine is switched on again.
    pub boot: Duration,
    /// The same when somebody has to press the button.
    pub boot_by_hand: Duration,
    /// Silence of an agent after which its job counts as stalled.
    pub stall: Duration,
    /// Silence of an agent after which its job has failed.
    pub lost: Duration,
    /// A system that was asked to shut down.
    pub soft_off: Duration,
    /// A BMC that does not do what it is asked.
    pub bmc: Duration,
    /// An agent that was told to cancel its work, or is to come for its leave.
    pub obey: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(15 * 60),
            boot_by_hand: Duration::from_secs(24 * 60 * 60),
            stall: Duration::from_secs(90),
            lost: Duration::from_secs(15 * 60),
            soft_off: Duration::from_secs(10 * 60),
            bmc: Duration::from_secs(10 * 60),
            obey: Duration::from_secs(60),
        }
    }
}

/// How often a driver looks even when nothing rings.
const LOOK: Duration = Duration::from_secs(5);
/// Wait after a BMC failed for all its tries.
const BMC_REST: Duration = Duration::from_secs(10);

/// What to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Something changed: look again.
    Now,
    /// Wait for the bell, at most so long.
    Wait(Duration),
}

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Db(#[from] DbError),
    #[error(transparent)]
    Bmc(#[from] BmcError),
}

/// Starts drivers for every job that has not ended.
///
/// # Errors
/// When the jobs cannot be read.
pub async fn resume_all(controller: &Arc<Controller>) -> Result<(), DbError> {
    let filter = JobFilter { host: None, active: true, limit: u32::MAX };
    for job in controller.db.jobs(&filter).await? {
        tracing::info!(job = job.id, host = job.host, state = %job.state, "going on with the job");
        start(controller, job.id);
    }
    Ok(())
}

/// Starts the driver of a job.
pub fn start(controller: &Arc<Controller>, job: i64) {
    let controller = Arc::clone(controller);
    tokio::spawn(async move { drive(&controller, job).await });
}

async fn drive(controller: &Controller, id: i64) {
    loop {
        let mut bell = controller.live.listen(id);
        let next = match controller.db.job(id).await {
            Ok(job) if job.state.is_terminal() => {
                tracing::info!(job = id, state = %job.state, failure = ?job.failure, "job ended");
                controller.live.forget(id);
                if let Err(error) = controller.stores.embedded.sweep(false).await {
                    tracing::warn!(job = id, error = %error_chain(&error), "tidying up the store");
                }
                return;
            }
            Ok(job) => step(controller, &job).await,
            // Nobody removes jobs under way.
            Err(error) => Err(error.into()),
        };
        let wait = match next {
            Ok(Next::Now) => {
                controller.live.ring(id);
                continue;
            }
            Ok(Next::Wait(wait)) => wait,
            Err(error) => {
                tracing::warn!(job = id, error = %error_chain(&error), "step failed");
                BMC_REST
            }
        };
        // Time is up or the bell rang: look again either way.
        let _ = timeout(wait, bell.changed()).await;
    }
}

async fn step(controller: &Controller, job: &Job) -> Result<Next, StepError> {
    if job.needs_attention.is_some() && !job.state.is_working() {
        return Ok(Next::Wait(LOOK));
    }
    let Some(host_id) = job.host_id else {
        // The schema forbids it; a job without a host could never go on.
        controller
            .db
            .fail_job(job.id, ErrorKind::Internal, "its host is gone", "controller")
            .await?;
        return Ok(Next::Now);
    };
    let host = controller.db.host_by_id(host_id).await?;
    let result = match job.state {
        State::Planned => power::prepare(controller, job, &host).await,
        State::Armed => {
            let cause = "the boot script leads to the agent";
            controller
                .db
                .advance(job.id, State::Armed, State::Powering, "controller", cause)
                .await?;
            Ok(Next::Now)
        }
        State::Powering => power::power_up(controller, job, &host).await,
        State::Booting => booting(controller, job, &host).await,
        State::Running | State::Verifying | State::AwaitingApproval => {
            working(controller, job).await
        }
        State::Finalizing if job.outcome.is_none() => working(controller, job).await,
        State::Finalizing => finalize(controller, job, &host).await,
        State::Succeeded | State::Failed | State::Cancelled => Ok(Next::Wait(LOOK)),
    };
    match result {
        Err(StepError::Bmc(error)) => bmc_trouble(controller, job, &error).await,
        other => other,
    }
}

/// A BMC that fails for good fails the job; one that refused its password waits for a person.
async fn bmc_trouble(
    controller: &Controller,
    job: &Job,
    error: &BmcError,
) -> Result<Next, StepError> {
    let text = error_chain(error);
    if let BmcError::Refused(_) = error {
        let why = format!("{text}; then `imprint job resume {}`", job.id);
        controller.db.set_attention(job.id, Some(&why), "controller").await?;
        return Ok(Next::Now);
    }
    if error.is_retryable() && age(job.state_since_ms) < controller.limits.bmc {
        tracing::warn!(job = job.id, error = text, "the BMC failed; trying again");
        sleep(BMC_REST).await;
        return Ok(Next::Wait(Duration::ZERO));
    }
    controller.db.fail_job(job.id, ErrorKind::Network, &text, "controller").await?;
    Ok(Next::Now)
}

async fn booting(controller: &Controller, job: &Job, host: &Host) -> Result<Next, StepError> {
    let limits = &controller.limits;
    let by_hand = host.bmc == BmcRow::Manual;
    let limit = if by_hand { limits.boot_by_hand } else { limits.boot };
    let waited = age(job.state_since_ms);
    if waited < limit {
        return Ok(Next::Wait((limit - waited).min(LOOK)));
    }
    let message = format!(
        "the agent did not check in within {} s of the machine's start; look at its console: does it boot from the network first, \
         from the interface with the MAC address that is entered?",
        limit.as_secs()
    );
    if !by_hand && job.generation < job.boot_budget && job.boots < job.boot_budget {
        controller
            .db
            .advance(job.id, State::Booting, State::Powering, "controller", &message)
            .await?;
    } else {
        controller.db.fail_job(job.id, ErrorKind::Network, &message, "controller").await?;
    }
    Ok(Next::Now)
}

async fn working(controller: &Controller, job: &Job) -> Result<Next, StepError> {
    let limits = &controller.limits;
    let silence = controller.live.silence(job.id);
    if let Some(asked) = job.cancel_asked_ms
        && age(asked) >= limits.obey
    {
        let cause = "cancelled; its agent did not confirm";
        controller.db.advance(job.id, job.state, State::Cancelled, "controller", cause).await?;
        return Ok(Next::Now);
    }
    if silence >= limits.lost {
        let message = format!("the agent was not heard of for {} s", silence.as_secs());
        controller.db.fail_job(job.id, ErrorKind::Network, &message, "controller").await?;
        return Ok(Next::Now);
    }
    let stalled = silence >= limits.stall;
    let cause = if stalled {
        format!("stalled: the agent was not heard of for {} s", silence.as_secs())
    } else {
        "the agent is heard of again".to_owned()
    };
    if controller.db.set_stalled(job.id, stalled, &cause).await? {
        return Ok(Next::Now);
    }
    Ok(Next::Wait(LOOK))
}

/// The work is done: the next boot is from the disk, then the agent is told to leave, then the job has succeeded.
async fn finalize(controller: &Controller, job: &Job, host: &Host) -> Result<Next, StepError> {
    // Also before a kexec: what it falls back on is a boot from the disk.
    if host.finish != Finish::Off && power::once_boot_disk(controller, job, host).await? {
        return Ok(Next::Now);
    }
    if job.dismissed {
        if host.finish == Finish::Off && !power::is_off_at_last(controller, job, host).await? {
            return Ok(Next::Wait(Duration::from_secs(2)));
        }
        let cause = match host.finish.for_agent(job.action()) {
            Leave::PowerOff => "the machine powers off",
            Leave::Kexec => "the machine is to start the restored system's kernel",
            Leave::Reboot | Leave::Unknown => "the machine boots from its disk",
        };
        controller
            .db
            .advance(job.id, State::Finalizing, State::Succeeded, "controller", cause)
            .await?;
        return Ok(Next::Now);
    }
    if controller.live.silence(job.id) >= controller.limits.obey {
        let text = "its work is done, but the agent did not come for its leave; the machine may still be in it: `imprint host power`";
        controller.db.note(job.id, "alarm", "controller", text).await?;
        controller
            .db
            .advance(job.id, State::Finalizing, State::Succeeded, "controller", "its work is done")
            .await?;
        return Ok(Next::Now);
    }
    Ok(Next::Wait(LOOK))
}

/// How long ago a stored time is; zero if the clock was set back.
fn age(since_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms() - since_ms).unwrap_or(0))
}
