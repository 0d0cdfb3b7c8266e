//! Steps of a job that switch its machine.
//!
//! Every action is stored as an intent before the BMC is asked and as done when its effect was seen. After a restart an intent
//! that is not done is judged by the machine's power first, with some patience, before anything is asked again; and only actions
//! that do no harm twice are used: off and on, never cycle or reset.

use std::time::Duration;

use agent_api::ErrorKind;

use super::{Next, StepError, age};
use crate::bmc::{Command, Power};
use crate::context::Controller;
use crate::db::{BmcRow, DbError, Host, PowerAction};
use crate::job::{Job, Shutdown, State};

/// A BMC may need so long until its status shows what it did.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at the power.
const LOOK_AT_POWER: Duration = Duration::from_secs(2);
/// An agent that spoke within this time holds its machine.
const IN_AGENT: Duration = Duration::from_secs(90);
/// A machine that powers itself off after a job may take so long before its BMC does it.
const OWN_POWER_OFF: Duration = Duration::from_secs(90);

/// Whether the agent of a failed restore still answers on this host: such a machine may lose its power without harm.
///
/// # Errors
/// When the database fails.
pub(crate) async fn is_in_agent(controller: &Controller, host: &Host) -> Result<bool, DbError> {
    let seen = controller.db.left_agent_last_seen(host.id).await?;
    Ok(seen.is_some_and(|at| age(at) < IN_AGENT))
}

/// `planned`: a machine that runs its own system is shut down as the job says, or the job is refused.
pub(super) async fn prepare(
    controller: &Controller,
    job: &Job,
    host: &Host,
) -> Result<Next, StepError> {
    let db = &controller.db;
    let arm = async |cause: &str| {
        db.advance(job.id, State::Planned, State::Armed, "controller", cause).await?;
        Ok(Next::Now)
    };
    if host.bmc == BmcRow::Manual {
        return arm("the machine is switched by hand").await;
    }
    if controller.bmcs.power(host).await? == Power::Off {
        return arm("the machine is off").await;
    }
    if is_in_agent(controller, host).await? {
        return arm("the machine is in the agent").await;
    }
    match job.shutdown {
        Shutdown::Refuse => {
            let message = format!(
                "host {} is on and runs its own system: shut it down, or give --shutdown soft (or force)",
                host.name
            );
            db.fail_job(job.id, ErrorKind::Refused, &message, "controller").await?;
            Ok(Next::Now)
        }
        Shutdown::Force => arm("the machine's power will be cut, as asked").await,
        Shutdown::Soft => {
            let Some(asked) =
                db.power_action(job.id, job.generation, Command::Soft.as_str()).await?
            else {
                return act(controller, job, host, Command::Soft).await;
            };
            if age(asked.intended_ms) < controller.limits.soft_off {
                return Ok(Next::Wait(LOOK_AT_POWER));
            }
            let message = format!(
                "host {} did not shut down within {} s: shut it down by hand, or give --shutdown force",
                host.name,
                controller.limits.soft_off.as_secs()
            );
            db.fail_job(job.id, ErrorKind::Refused, &message, "controller").await?;
            Ok(Next::Now)
        }
    }
}

/// `powering`: off if need be, network boot chosen, on; each once for each power-up.
pub(super) async fn power_up(
    controller: &Controller,
    job: &Job,
    host: &Host,
) -> Result<Next, StepError> {
    let db = &controller.db;
    let booting = async |cause: &str| {
        db.advance(job.id, State::Powering, State::Booting, "controller", cause).await?;
        Ok(Next::Now)
    };
    if host.bmc == BmcRow::Manual {
        return booting(
            "waiting for somebody to switch the machine on; it must boot from the network",
        )
        .await;
    }
    let power = controller.bmcs.power(host).await?;
    if let Some(on) = db.power_action(job.id, job.generation, Command::On.as_str()).await? {
        if power == Power::On {
            finish(controller, &on, "on").await?;
            return booting("the machine is on").await;
        }
        return wait_or_repeat(controller, job, host, &on, Command::On).await;
    }
    if power == Power::On {
        return match db.power_action(job.id, job.generation, Command::Off.as_str()).await? {
            Some(off) => wait_or_repeat(controller, job, host, &off, Command::Off).await,
            None => {
                db.revoke_sessions(host.id, job.id).await?;
                act(controller, job, host, Command::Off).await
            }
        };
    }
    if let Some(off) = db.power_action(job.id, job.generation, Command::Off.as_str()).await? {
        finish(controller, &off, "off").await?;
    }
    if !once(controller, job, host, Command::BootPxe).await? {
        return Ok(Next::Now);
    }
    act(controller, job, host, Command::On).await
}

/// `finalizing`: the next boot is from the disk. The boot script says so too, so a BMC that fails here does no harm. Returns
/// whether it did anything.
pub(super) async fn once_boot_disk(
    controller: &Controller,
    job: &Job,
    host: &Host,
) -> Result<bool, StepError> {
    if host.bmc == BmcRow::Manual || is_boot_disk_done(controller, job).await? {
        return Ok(false);
    }
    let action = controller
        .db
        .intend_power(host.id, Some(job.id), job.generation, Command::BootDisk.as_str())
        .await?;
    let result = match controller.bmcs.command(host, Command::BootDisk).await {
        Ok(()) => "done".to_owned(),
        Err(error) => {
            let text = format!(
                "the BMC did not choose the disk; the boot script does: {}",
                crate::error_chain(&error)
            );
            controller.db.note(job.id, "note", "controller", &text).await?;
            text
        }
    };
    controller.db.power_done(action, &result).await?;
    Ok(true)
}

/// Whether nothing stands between an agent that is done and its leave.
///
/// # Errors
/// When the database fails.
pub(crate) async fn is_boot_disk_done(controller: &Controller, job: &Job) -> Result<bool, DbError> {
    let action =
        controller.db.power_action(job.id, job.generation, Command::BootDisk.as_str()).await?;
    Ok(action.is_some_and(|action| action.done_ms.is_some()))
}

/// `finalizing`, for a host that is to be off: waits for it, and has its BMC do it when it does not come.
pub(super) async fn is_off_at_last(
    controller: &Controller,
    job: &Job,
    host: &Host,
) -> Result<bool, StepError> {
    if host.bmc == BmcRow::Manual {
        return Ok(true);
    }
    let look = async {
        if controller.bmcs.power(host).await? == Power::Off {
            return Ok(true);
        }
        if age(job.state_since_ms) > OWN_POWER_OFF {
            once(controller, job, host, Command::Off).await?;
        }
        Ok(age(job.state_since_ms) > OWN_POWER_OFF * 2)
    };
    match look.await {
        // The job's work is done: a BMC that fails now does not undo it.
        Err(StepError::Bmc(error)) => {
            let text =
                format!("cannot see whether the machine is off: {}", crate::error_chain(&error));
            controller.db.note(job.id, "alarm", "controller", &text).await?;
            Ok(true)
        }
        other => other,
    }
}

async fn finish(
    controller: &Controller,
    action: &PowerAction,
    result: &str,
) -> Result<(), DbError> {
    if action.done_ms.is_none() {
        controller.db.power_done(action.id, result).await?;
    }
    Ok(())
}

/// Stores the intent, then asks. The effect is judged at the next step.
async fn act(
    controller: &Controller,
    job: &Job,
    host: &Host,
    command: Command,
) -> Result<Next, StepError> {
    // Somebody may have cancelled the job while the BMC was being asked about the power.
    let now = controller.db.job(job.id).await?;
    if now.state != job.state || now.cancel_asked_ms.is_some() {
        return Ok(Next::Now);
    }
    controller.db.intend_power(host.id, Some(job.id), job.generation, command.as_str()).await?;
    controller.bmcs.command(host, command).await?;
    Ok(Next::Wait(LOOK_AT_POWER / 4))
}

/// An action without an effect of its own to look at: done once for this power-up. Returns whether it was done before.
async fn once(
    controller: &Controller,
    job: &Job,
    host: &Host,
    command: Command,
) -> Result<bool, StepError> {
    let before = controller.db.power_action(job.id, job.generation, command.as_str()).await?;
    if before.as_ref().is_some_and(|action| action.done_ms.is_some()) {
        return Ok(true);
    }
    let id = match before {
        Some(action) => action.id,
        None => {
            controller
                .db
                .intend_power(host.id, Some(job.id), job.generation, command.as_str())
                .await?
        }
    };
    controller.bmcs.command(host, command).await?;
    controller.db.power_done(id, "done").await?;
    Ok(false)
}

/// The effect of an action is not there yet: waits, asks again, gives up.
async fn wait_or_repeat(
    controller: &Controller,
    job: &Job,
    host: &Host,
    action: &PowerAction,
    command: Command,
) -> Result<Next, StepError> {
    let waited = age(job.state_since_ms);
    if waited > controller.limits.bmc {
        let wanted = command.as_str();
        let message = format!(
            "the BMC of host {} took the command to switch it {wanted}, but it is not {wanted} after {} s",
            host.name,
            waited.as_secs(),
        );
        controller.db.fail_job(job.id, ErrorKind::Network, &message, "controller").await?;
        return Ok(Next::Now);
    }
    if age(action.intended_ms) > PATIENCE {
        return act(controller, job, host, command).await;
    }
    Ok(Next::Wait(LOOK_AT_POWER))
}
