//! What an approval of a restore's plan quotes: a hash of all that matters.
//!
//! Which disk it is (by identity and size, not by its name in `/dev`), what was found on it and its partition table, which image, what will be wiped and
//! written where, what is changed before the commit, and the options. Not in it: device names, times, notes, and whether equal parts are
//! skipped. So the hash stays the same over a reboot, and changes when somebody exchanged the disk, wrote to its tables, or published
//! another image. A disk that has no identity is told by where it is connected.

use agent_api::{Layout, RestoreOptions, is_hash};
use image_format::Hash;
use serde::Serialize;

use super::customise::Changes;
use super::plan::RestorePlan;
use crate::disk::PartOf;
use crate::error::{Error, Result};

/// Keeps hashes of later versions apart.
const VERSION: u32 = 2;

#[derive(Serialize)]
struct Quoted<'a> {
    version: u32,
    root: &'a str,
    image_bytes: u64,
    serial: Option<&'a str>,
    wwn: Option<&'a str>,
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'a str>,
    size_bytes: u64,
    logical_sector_bytes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<PartOf>,
    /// Of a layout: where in its images it is, and where it goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    placed: Vec<(u64, u64, u64)>,
    destroys: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    held_table: Option<&'a str>,
    table_kind: &'a str,
    partitions: Vec<(u32, u64, u64, &'a str)>,
    whole: Option<&'a str>,
    wipes: Vec<(u64, u64)>,
    commit: Vec<(&'a str, u64, String)>,
    /// Firmware's entries that go are known to the plan only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<String>,
    options: RestoreOptions,
}

/// The hash of a plan, in hex.
pub fn hash(plan: &RestorePlan, options: &RestoreOptions) -> String {
    let target = &plan.target;
    let quoted = Quoted {
        version: VERSION,
        root: &plan.root,
        image_bytes: plan.image_bytes,
        serial: target.serial.as_deref(),
        wwn: target.wwn.as_deref(),
        model: target.model.as_deref(),
        place: match (&target.serial, &target.wwn) {
            (None, None) => target.by_path.as_deref(),
            _ => None,
        },
        size_bytes: target.size_bytes,
        logical_sector_bytes: target.logical_sector_bytes,
        into: plan.into,
        placed: match options.layout {
            Some(_) => {
                let segments = plan.placement.segments().iter();
                segments.map(|s| (s.image.start, s.image.end, s.target)).collect()
            }
            None => Vec::new(),
        },
        destroys: &plan.destroys,
        held_table: plan.held_table.as_deref(),
        table_kind: &plan.table_kind,
        partitions: plan
            .partitions
            .iter()
            .map(|p| (p.number, p.start_bytes, p.len_bytes, p.what.as_str()))
            .collect(),
        whole: plan.whole.as_deref(),
        wipes: plan.wipes.iter().map(|range| (range.start, range.end)).collect(),
        commit: plan
            .commit
            .iter()
            .map(|piece| (piece.name.as_str(), piece.offset, Hash::of(&piece.bytes).to_string()))
            .collect(),
        changes: plan.customises.iter().flat_map(Changes::lines).collect(),
        // What was quoted, and how the same result is come to, are no part of it. A root that was asked for is the plan's, and
        // whoever vouched for it does not change what is written, nor does where it is read from, and how fast.
        options: RestoreOptions {
            expect_plan: None,
            expect_root: None,
            require_signature: None,
            delta: false,
            limit: None,
            also: Vec::new(),
            base: Vec::new(),
            layout: options.layout.as_deref().map(|layout| Box::new(without_places(layout))),
            ..options.clone()
        },
    };
    let text = serde_json::to_vec(&quoted).expect("a plan is plain data");
    Hash::of(&text).to_string()
}

/// A layout without the places of its images: their roots are what counts.
pub fn without_places(layout: &Layout) -> Layout {
    let mut layout = layout.clone();
    for partition in &mut layout.partitions {
        partition.image = partition.image.as_ref().map(|_| String::new());
        partition.expect_root = None;
    }
    layout
}

/// Refuses a plan that is not the one that was approved.
pub fn check(plan: &RestorePlan, options: &RestoreOptions) -> Result<()> {
    match options.expect_plan.as_deref().map(str::trim) {
        Some(text) if !is_hash(text) => Err(Error::refused(format!(
            "'{text}' is no hash of a plan: those are 64 hexadecimal digits, as `plan restore` prints them"
        ))),
        Some(expected) if !expected.eq_ignore_ascii_case(&plan.hash) => {
            Err(Error::refused(format!(
                "this is not the plan that was approved: its hash is {}, not {expected}. The disk, what is on it, the image or the \
             options have changed; look at the plan again. Nothing was written",
                plan.hash
            )))
        }
        _ => Ok(()),
    }
}
