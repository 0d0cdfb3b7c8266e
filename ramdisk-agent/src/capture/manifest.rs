//! The manifest of a capture: what the image says of the disk, made from the plan; and shown to people.

use std::fmt::Write as _;

use agent_api::CaptureOptions;
use image_format::{Header, Manifest, Root};

use super::logical::PlannedLogicalVolume;
use super::plan::{CapturePlan, PlannedVolume, remarks};
use crate::damage;
use crate::extents::Extents;
use crate::table::TableKind;
use crate::words::size;

impl CapturePlan {
    /// The manifest of the image that this plan makes.
    #[must_use]
    pub fn manifest(&self, header: &Header, options: &CaptureOptions, bad: &Extents) -> Manifest {
        let table = &self.table;
        Manifest {
            format_version: image_format::VERSION,
            image_id: header.image_id,
            created: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            producer: header.producer.clone(),
            name: None,
            description: options.description.clone(),
            parent: None,
            disk: image_format::Disk {
                model: self.disk.model.clone(),
                serial: self.disk.serial.clone(),
                wwn: self.disk.wwn.clone(),
                size_bytes: self.disk_bytes,
                logical_sector_bytes: self.disk.logical_sector_bytes,
                physical_sector_bytes: Some(self.disk.physical_sector_bytes).filter(|n| *n > 0),
            },
            span_len: image_format::DEFAULT_SPAN_LEN,
            compression: image_format::Compression::zstd(options.level),
            table: image_format::PartitionTable {
                kind: match table.kind {
                    TableKind::Gpt => image_format::TableKind::Gpt,
                    TableKind::Mbr => image_format::TableKind::Mbr,
                    TableKind::None => image_format::TableKind::None,
                },
                disk_id: table.disk_id.clone(),
                first_usable_lba: table.first_usable_lba,
                last_usable_lba: table.last_usable_lba,
                boot_code_kept: table.kind != TableKind::None,
                warnings: table.warnings.clone(),
                ..image_format::PartitionTable::default()
            },
            volumes: self.volumes.iter().map(manifest_volume).collect(),
            bad_sectors: bad
                .iter()
                .map(|e| image_format::BadSectors { start_bytes: e.start, len_bytes: e.len })
                .collect(),
        }
    }
}

fn manifest_volume(volume: &PlannedVolume) -> image_format::Volume {
    let partition = volume.partition.as_ref();
    image_format::Volume {
        number: volume.number,
        start_bytes: volume.start_bytes,
        len_bytes: volume.len_bytes,
        type_id: partition.map(|p| p.type_id.clone()),
        part_uuid: partition.and_then(|p| p.uuid.clone()),
        part_name: partition.and_then(|p| p.name.clone()),
        attributes: partition.map_or(0, |p| p.attributes),
        bootable: partition.is_some_and(|p| p.bootable),
        filesystem: Some(volume.filesystem.clone()),
        fs_uuid: volume.uuid.clone(),
        fs_label: volume.label.clone(),
        block_bytes: Some(volume.block_bytes).filter(|n| *n > 0),
        used_bytes: volume.used_bytes,
        taken: if volume.raw_reason.is_some() {
            image_format::Taken::Raw
        } else {
            image_format::Taken::Map
        },
        raw_reason: volume.raw_reason.clone(),
        note: volume.note.clone(),
        logical_volumes: volume
            .logical_volumes
            .iter()
            .map(PlannedLogicalVolume::manifest)
            .collect(),
    }
}

/// A manifest for people, as `inspect` shows it.
#[must_use]
pub fn describe_manifest(manifest: &Manifest, root: Root, stored_bytes: u64) -> String {
    let mut text = String::new();
    let disk = &manifest.disk;
    let or_dash = |s: &Option<String>| s.clone().unwrap_or_else(|| "-".into());
    let line = |text: &mut String, name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:10} {value}");
    };
    line(&mut text, "image", manifest.image_id.to_string());
    line(&mut text, "root", root.to_string());
    line(&mut text, "created", format!("{} by {}", manifest.created, manifest.producer));
    if let Some(description) = &manifest.description {
        line(&mut text, "about", description.clone());
    }
    if let Some(parent) = &manifest.parent {
        line(&mut text, "delta of", format!("{}, root {}", parent.name, parent.root));
    }
    line(&mut text, "stored", size(stored_bytes));
    let identity = format!(
        "{}  model {}  serial {}  wwn {}  sectors of {}",
        size(disk.size_bytes),
        or_dash(&disk.model),
        or_dash(&disk.serial),
        or_dash(&disk.wwn),
        disk.logical_sector_bytes
    );
    line(&mut text, "disk", identity);
    line(&mut text, "table", format!("{:?}", manifest.table.kind).to_lowercase());
    for v in &manifest.volumes {
        let name = v.number.map_or_else(|| "whole".into(), |n| n.to_string());
        let raw = remarks(&v.raw_reason, &v.note);
        let value = format!(
            "{name:>3} {:8} {:16} {} used of {}  uuid {}{raw}",
            or_dash(&v.filesystem),
            or_dash(&v.fs_label),
            size(v.used_bytes),
            size(v.len_bytes),
            or_dash(&v.fs_uuid),
        );
        line(&mut text, "volume", value);
        for inside in &v.logical_volumes {
            let raw = remarks(&inside.raw_reason, &inside.note);
            let value = format!(
                "    {} {:8} {} {} used of {}  uuid {}{raw}",
                inside.name,
                or_dash(&inside.filesystem),
                or_dash(&inside.fs_label),
                size(inside.used_bytes),
                size(inside.len_bytes),
                or_dash(&inside.fs_uuid),
            );
            line(&mut text, "", value);
        }
    }
    for lacking in damage::describe(manifest) {
        line(&mut text, "DAMAGED", lacking);
    }
    text.trim_end().to_owned()
}
