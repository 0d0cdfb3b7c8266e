//! Work, its progress and its outcome.

use serde::{Deserialize, Serialize};

use serde_json::{Map, Value};

use crate::{CaptureOptions, ErrorKind, RestoreOptions, StoreAccess, Unknown, read_options};

/// The answer to `GET /v1/agent/work`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    /// Nothing to do now: ask again.
    Idle,
    /// Run this job, report, send the outcome.
    Job(Box<JobSpec>),
    /// Leave: the job is over.
    Finish {
        /// How to leave.
        how: Finish,
    },
    /// A kind that a newer controller knows: treated as [`Work::Idle`].
    #[serde(other)]
    Unknown,
}

/// How a machine leaves the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// Restart; the firmware and the controller's boot script choose what boots next.
    Reboot,
    /// Power off.
    PowerOff,
    /// Start the kernel of the system that this boot has restored, without going through the firmware. An agent that cannot says why
    /// ([`Note`]) and restarts the machine.
    Kexec,
    /// A way that a newer controller knows: treated as [`Finish::Reboot`].
    #[serde(other)]
    Unknown,
}

/// One job, as the worker gets it. The worker needs nothing else: the same text works by hand with `imprint-agent run -`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The job's id.
    pub id: String,
    /// The disk: a device path or a selector such as `serial=VBLK01`. `None`: the machine's only fixed disk, refused when there
    /// are two.
    #[serde(default)]
    pub disk: Option<String>,
    /// URL of the image, such as `nfs://10.0.0.5/images/debian-12.img.zst`.
    pub image_url: String,
    /// The id of the image that a capture makes, a UUID that the agent itself has chosen for all attempts of one boot. What it finds stored
    /// under this id was captured since the machine started, with nothing else running in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_id: Option<String>,
    /// What lets the agent into the stores of this job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<StoreAccess>,
    /// What to do.
    #[serde(flatten)]
    pub action: JobAction,
    /// What else is said of it, and is refused: a disk whose name is misspelled would be the machine's only one.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl JobSpec {
    /// Reads a job.
    ///
    /// # Errors
    /// A sentence that names the option whose value is none, if it is that.
    pub fn read(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| wrong_option(text).unwrap_or(error.to_string()))
    }
}

/// What is wrong with the options of a job, if something is.
fn wrong_option(text: &str) -> Option<String> {
    let mut job: Map<String, Value> = serde_json::from_str(text).ok()?;
    let Value::Object(options) = job.remove("options")? else { return None };
    match job.get("action")?.as_str()? {
        "capture" => read_options::<CaptureOptions>(options).err(),
        "restore" | "plan" => read_options::<RestoreOptions>(options).err(),
        _ => None,
    }
}

/// Something about a job that whoever looks at it should know, said once its work is done: `POST /v1/agent/jobs/ID/note`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// A sentence for people.
    pub text: String,
}

/// Capture or restore, with its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", content = "options", rename_all = "snake_case")]
pub enum JobAction {
    /// Save the disk as an image.
    Capture(CaptureOptions),
    /// Write the image to the disk.
    Restore(RestoreOptions),
    /// Make the plan of such a restore and change nothing: somebody is to look at it first.
    Plan(RestoreOptions),
}

/// What the worker is busy with. In the order of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Looking at disks, mapping used blocks, making the plan.
    Planning,
    /// Capture: reading the disk, compressing, storing.
    Capturing,
    /// Copying an image from one store to another.
    Copying,
    /// Delta restore: comparing what the target holds with the image.
    Comparing,
    /// Restore: growing filesystems and changing the restored system, before the disk is made bootable.
    Finishing,
    /// Restore: fetching, checking, writing.
    Restoring,
    /// Waiting until written bytes are durable.
    Flushing,
    /// Reading back what was stored or written and comparing it.
    Verifying,
    /// Publishing the image, or making the disk bootable.
    Committing,
    /// A stage that a newer agent knows.
    #[serde(other)]
    Unknown,
}

impl Stage {
    /// The text form, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Capturing => "capturing",
            Self::Copying => "copying",
            Self::Comparing => "comparing",
            Self::Finishing => "finishing",
            Self::Restoring => "restoring",
            Self::Flushing => "flushing",
            Self::Verifying => "verifying",
            Self::Committing => "committing",
            Self::Unknown => "unknown",
        }
    }
}

/// What threads of a stage are busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Capture: reading the disk.
    ReadSource,
    /// Capture: finding zeros, hashing, compressing.
    Compress,
    /// Capture: handing bytes to the store.
    WriteStore,
    /// Reading from the store.
    ReadStore,
    /// Hashing what was read from the store, decompressing it.
    Decompress,
    /// Restore: writing to the target.
    WriteTarget,
    /// Restore: reading the target, to compare it.
    ReadTarget,
    /// Waiting because of the job's limit; not part of the time that reading from or writing to the store took.
    Limit,
    /// A part that a newer agent knows.
    #[serde(other)]
    Unknown,
}

/// How long the threads of a stage did one thing. The times of all threads are added up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTimes {
    /// What they did.
    pub part: Part,
    /// Bytes that it moved.
    pub bytes: u64,
    /// Time spent with it, in ms.
    pub busy_ms: u64,
    /// The rest of those threads' time, in ms: with other parts, or waiting for them.
    pub wait_ms: u64,
}

/// Where the time of a stage went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTimes {
    /// The stage.
    pub stage: Stage,
    /// How long it took, in ms of wall clock.
    pub elapsed_ms: u64,
    /// How many threads shared its work.
    pub threads: u32,
    /// What they did.
    pub parts: Vec<PartTimes>,
}

/// How far a stage has come. Also the line format of `--progress json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageProgress {
    /// The stage.
    pub stage: Stage,
    /// Bytes of the disk that are done, holes included, so that `done_bytes / total_bytes` is the share.
    pub done_bytes: u64,
    /// Bytes of the disk to do; 0 if the stage does not count.
    pub total_bytes: u64,
    /// Bytes that went to or came from the store so far.
    pub stored_bytes: u64,
    /// Milliseconds since the stage began.
    pub elapsed_ms: u64,
    /// What the stage waits for, if it is stalled: `nfs server 10.0.0.5 does not answer (12 s)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
}

/// Progress of a job, sent at most once a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Grows by one with every report of one boot: older ones are dropped.
    pub sequence: u64,
    /// Where the job stands.
    pub progress: StageProgress,
}

/// The end of a job. Sent again until the controller has answered 200.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// Everything was done, flushed, read back and committed.
    Succeeded(Box<Summary>),
    /// It was not; the target does not boot, or the image was not published.
    Failed(Failure),
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For machines.
    pub kind: ErrorKind,
    /// For people: the chain of causes, in order.
    pub message: String,
}

/// What a finished job did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Summary {
    /// Of a capture.
    Capture(CaptureSummary),
    /// Of a restore.
    Restore(RestoreSummary),
    /// Of a plan.
    Plan(PlanSummary),
}

/// The plan of a restore.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanSummary {
    /// What an approval quotes, and [`RestoreOptions::expect_plan`] then demands.
    pub hash: String,
    /// For people.
    pub text: String,
    /// For programs: as `imprint-agent plan restore --json` prints it.
    pub plan: serde_json::Value,
    /// Terms of a disk selector that name the disk by its identity; `None` if it has none.
    pub disk: Option<String>,
}

/// What a capture did. Times are wall clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CaptureSummary {
    /// Root hash of the image, hex.
    pub root: String,
    /// Image id (UUID).
    pub image_id: String,
    /// Size of the disk.
    pub disk_bytes: u64,
    /// Bytes that the filesystems say they use, plus what was taken raw.
    pub used_bytes: u64,
    /// Bytes of the disk kept as data.
    pub data_bytes: u64,
    /// Size of the image.
    pub stored_bytes: u64,
    /// Stored bytes that were read again and compared before publishing.
    pub reread_bytes: u64,
    /// So much of the disk an earlier attempt had stored already; 0 if this one began at the start.
    pub resumed_bytes: u64,
    /// Why what an earlier attempt had stored was not used, or not all of it.
    pub not_resumed: Option<String>,
    /// Reading, compressing and storing, in ms.
    pub capture_ms: u64,
    /// Waiting for durability, in ms.
    pub flush_ms: u64,
    /// Re-reading the store, in ms.
    pub verify_ms: u64,
    /// From start to published, in ms.
    pub total_ms: u64,
    /// Where the time went.
    pub stages: Vec<StageTimes>,
    /// What limited it, in words; `None` if it was too short to say.
    pub limited_by: Option<String>,
    /// Partitions that were taken raw, each with its reason.
    pub raw: Vec<String>,
    /// Bytes that could not be read and are zero in the image.
    pub bad_bytes: u64,
    /// Where those are, a line for each partition. Empty: the image is whole.
    pub damaged: Vec<String>,
}

/// What came from one of several sources of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceUse {
    /// Where it is.
    pub url: String,
    /// Bytes that came from it and were used.
    pub bytes: u64,
    /// Why it was not used, or not to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

/// What a restore did. Times are wall clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreSummary {
    /// Root hash of the image, hex.
    pub root: String,
    /// Size of the image's disk.
    pub disk_bytes: u64,
    /// Size of the target.
    pub target_bytes: u64,
    /// Delta restore: bytes of the target that were read and compared before anything was written.
    pub compared_bytes: u64,
    /// Bytes fetched from the store.
    pub fetched_bytes: u64,
    /// Bytes written to the disk.
    pub written_bytes: u64,
    /// Bytes read back from the disk and compared.
    pub readback_bytes: u64,
    /// Delta restore: comparing, in ms.
    pub compare_ms: u64,
    /// Fetching, checking and writing, in ms.
    pub restore_ms: u64,
    /// Waiting for durability, in ms.
    pub flush_ms: u64,
    /// Reading back, in ms.
    pub verify_ms: u64,
    /// From start to committed, in ms.
    pub total_ms: u64,
    /// Where the time went.
    pub stages: Vec<StageTimes>,
    /// What limited it, in words; `None` if it was too short to say.
    pub limited_by: Option<String>,
    /// How much came from which source, if there were several.
    pub sources: Vec<SourceUse>,
    /// What is not as in the image: partitions and filesystems that grew, swap that became smaller.
    pub changes: Vec<String>,
    /// What was changed in the restored system, file by file, in the order in which it was done.
    pub files: Vec<FileChange>,
}

/// A file of the restored system that is not as in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileChange {
    /// Its path in that system; a folder's ends in a slash.
    pub path: String,
    /// What was done.
    pub action: FileAction,
}

/// What was done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileAction {
    /// It was not there.
    Created,
    /// It has other content.
    Replaced,
    /// It is not there any more.
    Removed,
    /// Something that a newer agent does.
    #[serde(other)]
    Unknown,
}

impl FileAction {
    /// The text form, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Removed => "removed",
            Self::Unknown => "changed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_from_the_future_is_unknown() {
        let work: Work = serde_json::from_str(r#"{"kind":"dance","tempo":3}"#).unwrap();
        assert_eq!(work, Work::Unknown);
    }

    #[test]
    fn a_job_survives_the_wire() {
        let job = JobSpec {
            id: "j1".into(),
            disk: Some("serial=VBLK01".into()),
            image_url: "nfs://10.0.0.5/images/a.img.zst".into(),
            image_id: None,
            access: vec![StoreAccess::default()],
            action: JobAction::Restore(RestoreOptions::default()),
            unknown: Unknown::default(),
        };
        let work = Work::Job(Box::new(job));
        let text = serde_json::to_string(&work).unwrap();
        assert_eq!(serde_json::from_str::<Work>(&text).unwrap(), work);
    }

    #[test]
    fn options_may_be_left_out() {
        let text = r#"{"id":"j","image_url":"/x","action":"capture","options":{}}"#;
        let job: JobSpec = serde_json::from_str(text).unwrap();
        assert_eq!(job.action, JobAction::Capture(CaptureOptions::default()));
        job.unknown.check().unwrap();
    }

    #[test]
    fn what_is_wrong_with_a_job_is_named() {
        let read = |text: &str| JobSpec::read(text).unwrap_err();
        let job = |action: &str, options: &str| {
            format!(r#"{{"id":"j","image_url":"/x","action":"{action}","options":{options}}}"#)
        };
        assert!(read(&job("capture", r#"{"level":"3"}"#)).starts_with("level: "));
        assert!(read(&job("plan", r#"{"also":"x"}"#)).starts_with("also: "));
        assert!(read(&job("restore", "[]")).contains("sequence"));
        assert!(read("").contains("EOF"));
        JobSpec::read(&job("restore", r#"{"grow":2}"#)).unwrap();
    }

    #[test]
    fn a_disk_that_is_misspelled_is_not_left_out_of_account() {
        for misspelled in
            [r#""disck":"serial=X","#, r#""Disk":"serial=X","#, r#""option":{"x":1},"#]
        {
            let text = format!(
                r#"{{{misspelled}"id":"j","image_url":"/x","action":"restore","options":{{}}}}"#
            );
            let job: JobSpec = serde_json::from_str(&text).unwrap();
            assert!(job.unknown.check().is_err(), "{text}");
            let handed_on: JobSpec =
                serde_json::from_str(&serde_json::to_string(&job).unwrap()).unwrap();
            assert_eq!(handed_on, job);
        }
    }
}
