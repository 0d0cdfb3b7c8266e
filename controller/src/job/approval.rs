//! How far the approval of a restore's plan is.
//!
//! `wanted` → the agent makes the plan and changes nothing → `asked`, the job is `awaiting_approval` → somebody quotes the plan's
//! hash → `given` → the agent makes the plan again, and restores only if its hash is the same → `used`, once it writes. From then
//! on the disk is no longer what the plan saw: a restore that is interrupted goes on by the disk's identity, not by the hash.

use serde::{Deserialize, Serialize};

/// How far an approval is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// No plan has been made yet.
    Wanted,
    /// There is a plan to look at.
    Asked,
    /// Somebody approved the plan.
    Given,
    /// The agent has begun to write.
    Used,
}

impl Approval {
    const ALL: [Self; 4] = [Self::Wanted, Self::Asked, Self::Given, Self::Used];

    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
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

    /// Whether the agent is to make a plan, and nothing else.
    #[must_use]
    pub fn wants_plan(self) -> bool {
        matches!(self, Self::Wanted | Self::Asked)
    }
}
