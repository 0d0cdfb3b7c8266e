//! Properties of a host that have a fixed set of values.

use serde::{Deserialize, Serialize};

use crate::job::Action;

/// How a machine boots.
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
pub enum Firmware {
    /// Legacy BIOS.
    #[default]
    Bios,
    /// UEFI.
    Uefi,
}

impl Firmware {
    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }

    /// From the text form.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Bios, Self::Uefi].into_iter().find(|v| v.as_str() == text)
    }
}

/// What a machine does after a job that ended well.
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
pub enum Finish {
    /// It boots from its disk.
    #[default]
    Disk,
    /// It powers off.
    Off,
    /// After a restore it starts the restored system's kernel without going through its firmware (kexec), or boots from its disk if that
    /// is not possible; after a capture it boots from its disk.
    Kexec,
}

impl Finish {
    /// The text form.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Off => "off",
            Self::Kexec => "kexec",
        }
    }

    /// From the text form.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        [Self::Disk, Self::Off, Self::Kexec].into_iter().find(|v| v.as_str() == text)
    }

    /// What the agent is told after a job of this kind.
    #[must_use]
    pub fn for_agent(self, action: Action) -> agent_api::Finish {
        match (self, action) {
            (Self::Disk, _) | (Self::Kexec, Action::Capture) => agent_api::Finish::Reboot,
            (Self::Off, _) => agent_api::Finish::PowerOff,
            (Self::Kexec, Action::Restore) => agent_api::Finish::Kexec,
        }
    }
}
