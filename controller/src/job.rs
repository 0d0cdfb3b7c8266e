//! Jobs: what was asked, where it stands, how it ended.

mod approval;
mod state;

use agent_api::{
    CaptureOptions, ErrorKind, JobAction, JobSpec, Outcome, PlanSummary, RestoreOptions, Unknown,
};
use serde::{Deserialize, Serialize};

pub use approval::Approval;
pub use state::State;

use crate::names::{DiskSelector, HostName, ImageName};
use crate::store::Place;

/// How often the agent's boot files are handed out for one job.
pub const BOOT_BUDGET: i64 = 3;

/// Capture or restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Save the disk as an image.
    Capture,
    /// Write the image to the disk.
    Restore,
}

impl Action {
    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Restore => "restore",
        }
    }
}

/// What to do with a machine that runs its own system when a job wants it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Shutdown {
    /// Refuse the job.
    #[default]
    Refuse,
    /// Press its power button (ACPI) and wait until it is off.
    Soft,
    /// Cut its power.
    Force,
}

impl Shutdown {
    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Soft => "soft",
            Self::Force => "force",
        }
    }
}

/// The options of either action, as they go to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", content = "options", rename_all = "snake_case")]
pub enum Options {
    /// Of a capture.
    Capture(CaptureOptions),
    /// Of a restore, with the root hash that the catalogue knows.
    Restore(RestoreOptions),
}

impl Options {
    /// Those of the action with this name, with nothing asked for.
    #[must_use]
    pub fn none(action: &str) -> Option<Self> {
        match action {
            "capture" => Some(Self::Capture(CaptureOptions::default())),
            "restore" => Some(Self::Restore(RestoreOptions::default())),
            _ => None,
        }
    }

    /// Which action they belong to.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Capture(_) => Action::Capture,
            Self::Restore(_) => Action::Restore,
        }
    }
}

/// A job that is not in the database yet.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The host's row.
    pub host_id: i64,
    /// Its name, which stays with the job when the host is removed.
    pub host: HostName,
    /// The image.
    pub image: ImageName,
    /// Where it lies or will lie.
    pub place: Place,
    /// The disk.
    pub disk: Option<DiskSelector>,
    /// Capture or restore.
    pub options: Options,
    /// What to do with a running machine.
    pub shutdown: Shutdown,
    /// Restore: somebody is to approve the plan before anything is written.
    pub approval: bool,
    /// Name of the API token that asked.
    pub created_by: String,
}

/// A job as it is stored.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// The host, if it still exists.
    pub host_id: Option<i64>,
    /// The host's name.
    pub host: String,
    /// The image's name.
    pub image: String,
    /// The image's place, as text.
    pub image_url: String,
    /// The disk.
    pub disk: Option<String>,
    /// Capture or restore.
    pub options: Options,
    /// What was asked does not open with this controller's key file: only which action it is is known, and it is not handed out.
    pub is_locked: bool,
    /// What to do with a running machine.
    pub shutdown: Shutdown,
    /// How far the approval of its plan is; `None` if it needs none.
    pub approval: Option<Approval>,
    /// The plan that was made for an approval.
    pub plan: Option<PlanSummary>,
    /// Where it stands.
    pub state: State,
    /// Since when.
    pub state_since_ms: i64,
    /// Its agent is silent.
    pub stalled: bool,
    /// Why a person has to look at it.
    pub needs_attention: Option<String>,
    /// When its cancellation was asked for.
    pub cancel_asked_ms: Option<i64>,
    /// Number of the power-up.
    pub generation: i64,
    /// How often boot files were handed out.
    pub boots: i64,
    /// How often they may be.
    pub boot_budget: i64,
    /// What the agent said at its end.
    pub outcome: Option<Outcome>,
    /// The agent was told how to leave.
    pub dismissed: bool,
    /// Why it failed.
    pub failure: Option<(ErrorKind, String)>,
    /// Who asked for it.
    pub created_by: String,
    /// When.
    pub created_ms: i64,
    /// When it ended.
    pub finished_ms: Option<i64>,
}

impl Job {
    /// Capture or restore.
    #[must_use]
    pub fn action(&self) -> Action {
        self.options.action()
    }

    /// Whether it was asked for with the hash of this plan.
    #[must_use]
    pub fn expects(&self, hash: &str) -> bool {
        match &self.options {
            Options::Restore(RestoreOptions { expect_plan: Some(expected), .. }) => {
                expected.trim().eq_ignore_ascii_case(hash)
            }
            _ => false,
        }
    }

    /// What the agent gets, but for what [`crate::store::Stores::hand_out`] adds.
    #[must_use]
    pub fn spec(&self) -> JobSpec {
        let mut disk = self.disk.clone();
        let action = match &self.options {
            Options::Capture(options) => {
                let mut options = options.clone();
                // What an earlier boot's agent stored need not be stored again, if the disk is still the same.
                options.resume |= self.state.is_working() || self.boots > 1;
                JobAction::Capture(options)
            }
            Options::Restore(options) => {
                let mut options = options.clone();
                match (self.approval, &self.plan) {
                    (Some(approval), _) if approval.wants_plan() => {
                        return self.with(disk, JobAction::Plan(options));
                    }
                    // Once it has been written to, the disk is no longer what was approved, but the same disk.
                    (Some(Approval::Used), Some(PlanSummary { disk: Some(same), .. })) => {
                        options.expect_plan = None;
                        options.delta = true;
                        disk = Some(same.clone());
                    }
                    (Some(_), plan) => {
                        // Without a plan there is nothing that could be the same: no disk is written to.
                        let hash = plan.as_ref().map(|plan| plan.hash.clone());
                        options.expect_plan = Some(hash.unwrap_or_default());
                    }
                    // What an earlier attempt left on the disk need not be fetched again.
                    (None, _) => options.delta |= self.state.is_working() || self.boots > 1,
                }
                JobAction::Restore(options)
            }
        };
        self.with(disk, action)
    }

    fn with(&self, disk: Option<String>, action: JobAction) -> JobSpec {
        JobSpec {
            id: self.id.to_string(),
            disk,
            image_url: self.image_url.clone(),
            image_id: None,
            access: Vec::new(),
            action,
            unknown: Unknown::default(),
        }
    }

    /// Whether boot files may be handed out at all: the job is under way, nobody has to look at it first, its work is not done,
    /// nobody wants it cancelled, and the machine did not boot too often.
    #[must_use]
    pub fn may_boot(&self) -> bool {
        self.state.wants_agent()
            && self.needs_attention.is_none()
            && self.outcome.is_none()
            && self.cancel_asked_ms.is_none()
            && self.boots < self.boot_budget
    }
}
