//! How far the approval of a restore's plan is.
//!
//! `wanted` → the agent makes the plan and changes nothing → `asked`, the job is `awaiting_approval` → somebody quotes the plan's
//! hash → `given` → the agent makes the plan again, and restores only if its hash is the same → `used`, once it writes. From then
//! on the disk is no longer what the plan saw: a restore that is interrupted goes on by the disk's identity, not by the hash.
//!
//! Whoever asks for a restore with the hash of a plan (`expect_plan`) has approved that one beforehand: `expected` → the agent makes the
//! plan and changes nothing → `given`, if it is that plan, and so on as above.

use serde::{Deserialize, Serialize};

use super::{NewJob, Options};

/// How far an approval is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// No plan has been made yet.
    Wanted,
    /// No plan has been made yet, and one with a known hash is approved already.
    Expected,
    /// There is a plan to look at.
    Asked,
    /// Somebody approved the plan.
    Given,
    /// The agent has begun to write.
    Used,
}

impl Approval {
    const ALL: [Self; 5] = [Self::Wanted, Self::Expected, Self::Asked, Self::Given, Self::Used];

    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Expected => "expected",
            Self::Asked => "asked",
            Self::Given => "given",
            Self::Used => "used",
        }
    }

    /// The approval of this text form.
    #[must_use]
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|approval| approval.as_str() == text)
    }

    /// Where it begins for a job; `None` if the job needs none.
    #[must_use]
    pub fn at_first(job: &NewJob) -> Option<Self> {
        match &job.options {
            _ if job.approval => Some(Self::Wanted),
            Options::Restore(options) => options.expect_plan.as_ref().map(|_| Self::Expected),
            Options::Capture(_) => None,
        }
    }

    /// Whether the agent is to make a plan, and nothing else.
    #[must_use]
    pub fn wants_plan(self) -> bool {
        matches!(self, Self::Wanted | Self::Expected | Self::Asked)
    }
}
