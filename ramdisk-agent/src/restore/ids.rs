//! Identities of a partition table that are not those of the image: made for a layout, and for any other restore on request.
//!
//! They are not random: they are derived from the image, the disk and the machine, so that a plan can be approved and a restore that
//! was cut off goes on with the same ones, while every other disk has others. What refers to the old ones in the restored system is
//! not changed; [`note`] says so. UUIDs of filesystems are no part of a table and stay.

use std::fmt;
use std::path::Path;

use agent_api::{Layout, RestoreOptions};
use image_format::Hash;
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use serde::Serialize;
use uuid::{Builder, Uuid};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::image::DiskImage;
use crate::restore::approval;
use crate::table::{Table, TableKind};

/// An identity that is not the image's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FreshId {
    /// The number of the partition that has it; `None`: the disk.
    pub partition: Option<u32>,
    /// What it was; `None`: there was none.
    pub old: Option<String>,
    /// What it will be.
    pub new: String,
}

impl fmt::Display for FreshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(number) => write!(f, "partition {number}: ")?,
            None => f.write_str("disk: ")?,
        }
        f.write_str(&self.new)?;
        self.old.as_ref().map_or(Ok(()), |old| write!(f, ", was {old}"))
    }
}

/// Gives the table of an image identities for this target; what they are. Refuses where no table is written.
pub fn make_fresh(
    table: &mut Table,
    image: &dyn DiskImage,
    target: &Disk,
    options: &RestoreOptions,
) -> Result<Vec<FreshId>> {
    let refused = |text: String| Error::refused(format!("{text}; nothing was written"));
    options.check_fresh_ids().map_err(refused)?;
    if table.kind == TableKind::None {
        return Err(refused(
            "there are no identities to make new: the image has no partition table, and UUIDs of filesystems are not changed; leave \
             --fresh-ids out"
                .into(),
        ));
    }
    let old = all_of(table);
    let ids = Ids::new(image, None, target);
    table.identify(ids.uuid("disk", 0), &|number| ids.uuid("partition", number));
    let fresh = |((partition, old), (_, new)): ((_, Option<String>), (_, Option<String>))| {
        Some(FreshId { partition, old, new: new? })
    };
    Ok(old.into_iter().zip(all_of(table)).filter_map(fresh).collect())
}

/// The identities of a disk and of its partitions.
fn all_of(table: &Table) -> Vec<(Option<u32>, Option<String>)> {
    let partitions = table.partitions.iter().map(|p| (Some(p.number), p.uuid.clone()));
    std::iter::once((None, table.disk_id.clone())).chain(partitions).collect()
}

/// What fresh identities mean for what was captured, in a sentence without a full stop.
pub fn note(kind: TableKind, fresh: &[FreshId]) -> Option<String> {
    let what = match kind {
        TableKind::Mbr => {
            "the disk's signature is new, and with it the identities (PARTUUID) of its partitions"
        }
        _ => "the GUIDs of the partition table are new",
    };
    (!fresh.is_empty()).then(|| {
        format!(
            "{what}: nothing in the restored system is changed to fit, so that what refers to the old ones (PARTUUID= in fstab or on \
             the kernel's command line, the boot configuration of a Windows) does not find them; UUIDs and labels of filesystems stay"
        )
    })
}

/// Identities that are the same for the same restore onto the same disk, and for no other.
pub struct Ids(Vec<u8>);

impl Ids {
    pub fn new(image: &dyn DiskImage, layout: Option<&Layout>, target: &Disk) -> Self {
        let info = target.info();
        // Two virtual disks without a serial number are told apart by their machines and their names, or by their files.
        let machine = std::fs::read_to_string("/sys/class/dmi/id/product_uuid").unwrap_or_default();
        let nameless = info.wwn.is_none() && info.serial.is_none();
        let seed = serde_json::json!([
            "imprint identities 1",
            image.root().to_string(),
            layout.map(approval::without_places),
            [info.wwn, info.serial, info.model],
            info.size_bytes,
            machine.trim(),
            nameless.then(|| place_of(target)),
        ]);
        Self(seed.to_string().into_bytes())
    }

    pub fn uuid(&self, what: &str, number: u32) -> Uuid {
        let text = [&self.0, what.as_bytes(), &number.to_le_bytes()[..]].concat();
        let hash = Hash::of(&text);
        let bytes: [u8; 16] = hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes");
        // As random as any to everybody else.
        Builder::from_random_bytes(bytes).into_uuid()
    }
}

/// What tells a disk without a name of its own from others: the file that it is, or is a loop device of, whatever that is called now; or its
/// path.
fn place_of(target: &Disk) -> serde_json::Value {
    let file = match target.is_block() {
        true => target.backing_file(),
        false => Some((target.path().to_owned(), 0)),
    };
    if let Some((file, offset)) = file
        && let Some((inode, made)) = birth_of(&file)
    {
        return serde_json::json!([inode, made, offset]);
    }
    let path = std::fs::canonicalize(target.path()).unwrap_or_else(|_| target.path().to_owned());
    serde_json::json!(path)
}

/// The inode of a file and when it was made, in nanoseconds; `None` where the filesystem does not keep that. The standard library would ask
/// for it on some targets only: with musl it calls `stat`, which has no such time.
fn birth_of(file: &Path) -> Option<(u64, u64)> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::BTIME;
    let found = rustix::fs::statx(CWD, file, AtFlags::empty(), wanted).ok()?;
    let has_all = StatxFlags::from_bits_retain(found.stx_mask).contains(wanted);
    let is_file = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
    if !has_all || !is_file {
        return None;
    }
    let seconds = u64::try_from(found.stx_btime.tv_sec).ok()?;
    let made = seconds.checked_mul(1_000_000_000)?.checked_add(found.stx_btime.tv_nsec.into())?;
    Some((found.stx_ino, made))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever C library this was built with.
    #[test]
    fn files_are_told_apart_by_what_stat_says() {
        let folder = tempfile::tempdir().unwrap();
        let births = ["a", "b"].map(|name| {
            let file = folder.path().join(name);
            std::fs::write(&file, "").unwrap();
            let format = "--format=%i %.9W";
            let said = std::process::Command::new("stat").arg(format).arg(&file).output().unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            let (inode, made) = said.trim().split_once(' ').unwrap();
            assert!(!made.starts_with(['0', '-']), "a filesystem without times of birth: {made}");
            let expected = (inode.parse().unwrap(), made.replace('.', "").parse().unwrap());
            assert_eq!(birth_of(&file), Some(expected));
            expected
        });
        assert_ne!(births[0], births[1]);
        assert_eq!(birth_of(folder.path()), None);
    }
}
