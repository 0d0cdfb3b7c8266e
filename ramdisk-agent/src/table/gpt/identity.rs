//! A GPT with other identities: the disk's GUID and the unique GUIDs of its partitions, in every copy. All else stays.

use uuid::Uuid;

use super::{CRC32, Copy, ENTRIES_CHECKSUM, Gpt, Header};
use crate::table::u32_at;

/// Field of a header: the disk's GUID.
const DISK_GUID: usize = 56;
/// Fields of an entry: the type, which is zero where there is no partition, and the unique GUID.
const TYPE: usize = 0;
const UNIQUE: usize = 16;
const GUID_LEN: usize = 16;

impl Gpt {
    /// Gives disk and partitions these identities. Copies that differ go on doing so in all else.
    pub fn identify(&mut self, disk: Uuid, partition: &dyn Fn(u32) -> Uuid) {
        for copy in [&mut self.primary, &mut self.used].into_iter().chain(&mut self.backup) {
            copy.identify(disk, partition);
        }
        self.header.disk_guid = disk.to_bytes_le();
        self.header.entries_checksum = u32_at(&self.used.header, ENTRIES_CHECKSUM);
    }
}

impl Copy {
    fn identify(&mut self, disk: Uuid, partition: &dyn Fn(u32) -> Uuid) {
        // Each copy has an array of its own length where they differ.
        let (len, entry_len) = Header::array_of(&self.header).expect("checked when it was read");
        let array = &mut self.entries[..len];
        for (entry, number) in array.chunks_exact_mut(entry_len).zip(1..) {
            if entry[TYPE..TYPE + GUID_LEN] != [0; GUID_LEN] {
                let guid = partition(number).to_bytes_le();
                entry[UNIQUE..UNIQUE + GUID_LEN].copy_from_slice(&guid);
            }
        }
        let sum = CRC32.checksum(array).to_le_bytes();
        self.header[ENTRIES_CHECKSUM..ENTRIES_CHECKSUM + 4].copy_from_slice(&sum);
        self.header[DISK_GUID..DISK_GUID + GUID_LEN].copy_from_slice(&disk.to_bytes_le());
        self.seal();
    }
}
