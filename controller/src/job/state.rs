//! The states of a job and the only ways from one to the next.

use std::fmt;
use std::str::FromStr;

use agent_api::Stage;
use serde::{Deserialize, Serialize};

/// Where a job stands. Every change is stored before it is acted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Accepted; a machine that runs its own system is being shut down.
    Planned,
    /// The agent waits for somebody to approve its plan.
    AwaitingApproval,
    /// The host's boot script leads to the agent from now on.
    Armed,
    /// The machine is being switched on.
    Powering,
    /// It is on; its agent has not asked for work yet.
    Booting,
    /// The agent works.
    Running,
    /// The agent reads back what it wrote.
    Verifying,
    /// The agent commits; then the machine is sent on its way.
    Finalizing,
    /// Done.
    Succeeded,
    /// Not done; the failure says why.
    Failed,
    /// Ended because somebody wanted it.
    Cancelled,
}

impl State {
    /// All of them, in the order of a job.
    pub const ALL: [Self; 11] = [
        Self::Planned,
        Self::AwaitingApproval,
        Self::Armed,
        Self::Powering,
        Self::Booting,
        Self::Running,
        Self::Verifying,
        Self::Finalizing,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The text form, as in JSON and the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "planned",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Armed => "armed",
            Self::Powering => "powering",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Verifying => "verifying",
            Self::Finalizing => "finalizing",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether the machine is meant to boot the agent.
    #[must_use]
    pub fn wants_agent(self) -> bool {
        !self.is_terminal() && self != Self::Planned
    }

    /// Whether an agent is at work.
    #[must_use]
    pub fn is_working(self) -> bool {
        matches!(self, Self::Running | Self::Verifying | Self::Finalizing)
    }

    /// Whether a job may go from here to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use State::{
            Armed, AwaitingApproval, Booting, Cancelled, Failed, Finalizing, Planned, Powering,
            Running, Succeeded, Verifying,
        };
        match (self, next) {
            (from, Failed | Cancelled) => !from.is_terminal(),
            (Planned, Armed)
            | (Armed, Powering)
            | (Powering, Booting)
            // The machine did not check in: it is switched on once more.
            | (Booting, Powering | Running)
            // The agent shows its plan and waits.
            | (Running, AwaitingApproval)
            | (AwaitingApproval, Running)
            | (Running, Verifying | Finalizing)
            | (Verifying, Finalizing)
            // The agent rebooted in mid-job.
            | (Running | Verifying | Finalizing | AwaitingApproval, Booting)
            | (Finalizing, Succeeded) => true,
            _ => false,
        }
    }

    /// The state of a job whose worker is at `stage`; `None` if the stage changes nothing.
    #[must_use]
    pub fn of_stage(stage: Stage) -> Option<Self> {
        match stage {
            Stage::Planning | Stage::Flushing | Stage::Unknown => None,
            Stage::Capturing | Stage::Copying | Stage::Comparing | Stage::Restoring => {
                Some(Self::Running)
            }
            Stage::Verifying => Some(Self::Verifying),
            Stage::Finishing | Stage::Committing => Some(Self::Finalizing),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_form_is_the_json_form() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(state.as_str().parse::<State>(), Ok(state));
        }
    }

    #[test]
    fn every_state_is_reached_and_left() {
        for state in State::ALL {
            let reached = State::ALL.into_iter().any(|from| from.may_become(state));
            assert!(reached || state == State::Planned, "{state} cannot be reached");
            let left = State::ALL.into_iter().any(|to| state.may_become(to));
            assert_eq!(left, !state.is_terminal(), "{state}");
            assert!(!state.may_become(state), "{state} to itself");
        }
    }

    fn any_state() -> impl Strategy<Value = State> {
        prop::sample::select(State::ALL.to_vec())
    }

    proptest! {
        /// Whatever is tried in whatever order: terminal states stay, success comes after finalizing only, and no machine is
        /// switched on again once work began.
        #[test]
        fn no_way_around(wishes in prop::collection::vec(any_state(), 0..200)) {
            let mut path = vec![State::Planned];
            for wish in wishes {
                let here = *path.last().unwrap();
                if here.may_become(wish) {
                    prop_assert!(!here.is_terminal());
                    path.push(wish);
                }
            }
            for pair in path.windows(2) {
                if pair[1] == State::Succeeded {
                    prop_assert_eq!(pair[0], State::Finalizing);
                }
                if pair[1] == State::Armed {
                    prop_assert_eq!(pair[0], State::Planned);
                }
                if pair[0].is_working() {
                    prop_assert!(pair[1] != State::Powering && pair[1] != State::Planned);
                }
            }
            if path.contains(&State::Running) {
                prop_assert!(path.contains(&State::Armed) && path.contains(&State::Booting));
            }
        }
    }
}
