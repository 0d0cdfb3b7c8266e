//! What Imprint's agent and controller say to each other.
//!
//! Serde types and nothing else: no I/O, no policy, no defaults that differ between the two ends. The options of a job are clap's
//! arguments too, so that a command line and a job cannot differ. Agent and controller are
//! upgraded apart, so unknown fields are ignored, every enum that crosses the wire has an `Unknown` variant, and the paths carry
//! `/v1`. All messages are JSON over HTTPS; the agent accepts only a server whose TLS key has the hash it was booted with.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `POST /v1/agent/redeem` | [`Redeem`] | [`Session`]; 409 when the ticket was used before |
//! | `GET /v1/agent/work` (waits up to [`WORK_WAIT_SECS`]) | – | [`Work`] |
//! | `POST /v1/agent/heartbeat` | [`Heartbeat`] | [`Orders`] |
//! | `POST /v1/agent/jobs/{id}/report` | [`Report`] | [`Orders`] |
//! | `POST /v1/agent/jobs/{id}/outcome` | [`Outcome`] | [`Orders`] |
//! | `POST /v1/agent/log` | plain text lines | – |
//!
//! All but the first carry `Authorization: Bearer` with the credential of [`Session`].

mod access;
mod error_kind;
mod image_name;
mod job;
mod options;
mod rate;
mod selector;
mod session;
mod store_report;
mod text_or_number;

pub use access::{CA_FILE_VARIABLES, SecretText, StoreAccess};
pub use error_kind::ErrorKind;
pub use image_name::{DELTA_SUFFIX, IMAGE_SUFFIX, check_capture_name};
pub use job::{
    CaptureSummary, Failure, FileAction, FileChange, Finish, JobAction, JobSpec, Note, Outcome,
    Part, PartTimes, PlanSummary, Report, RestoreSummary, SourceUse, Stage, StageProgress,
    StageTimes, Summary, Work,
};
pub use options::{
    BootOrder, CaptureOptions, CloudInitSeed, Content, Customisation, DirtyPolicy, FileMode, Grow,
    Layout, LayoutFormat, LayoutPartition, LayoutSize, LayoutTable, MAX_BASES, MAX_CONTENT,
    MAX_GPT_PARTITIONS, MAX_LEVEL, MAX_MBR_PARTITIONS, MAX_SOURCES, MIN_LEVEL, NewFile,
    RestoreOptions, Unknown, is_hash, read_options,
};
pub use rate::Rate;
pub use selector::{Selector, Term};
pub use session::{DiskInfo, Heartbeat, Machine, Nic, Orders, Redeem, Session, Ticket};
pub use store_report::{CopySummary, StoreFacts, StoreReport};

/// The longest time in seconds that the controller holds a `GET /v1/agent/work` before it answers [`Work::Idle`].
pub const WORK_WAIT_SECS: u64 = 25;

/// Kernel parameter with the controller's HTTPS base URL, such as `https://10.77.0.1:8443`.
pub const KERNEL_PARAM_CONTROLLER: &str = "imprint.controller";
/// Kernel parameter with the pinned key: lower-case hex SHA-256 of the certificate's SubjectPublicKeyInfo (RFC 7469's pin, in hex).
pub const KERNEL_PARAM_PIN: &str = "imprint.pin";
/// Where the ticket's initrd segment puts the file with [`Ticket`] as JSON, mode 0600, owner root.
pub const TICKET_PATH: &str = "/imprint/ticket.json";
