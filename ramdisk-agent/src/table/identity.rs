//! Identities that a table gets in place of its own: two disks with the same image are told apart by them.
//!
//! Types, names, attributes and places stay. What refers to a partition by its identity is elsewhere, and not looked for here.

use uuid::Uuid;

use super::{Table, TableKind, mbr};

impl Table {
    /// Gives the disk and its partitions, by their numbers, these identities. An MBR has the first four bytes of the disk's as its
    /// signature, and partitions that are named after that. Without a table there is nothing to identify.
    pub fn identify(&mut self, disk: Uuid, partition: &dyn Fn(u32) -> Uuid) {
        let signature = mbr::signature_of(disk);
        self.new_signature = Some(signature);
        if self.kind == TableKind::None {
            return;
        }
        self.disk_id = Some(match &mut self.gpt {
            Some(gpt) => {
                gpt.identify(disk, partition);
                disk.to_string()
            }
            None => format!("{signature:08x}"),
        });
        let is_gpt = self.gpt.is_some();
        for held in &mut self.partitions {
            held.uuid = Some(match is_gpt {
                true => partition(held.number).to_string(),
                false => mbr::partuuid(signature, held.number),
            });
        }
    }
}
