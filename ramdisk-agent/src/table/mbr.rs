//! The master boot record: four entries at the end of LBA 0, behind boot code that is never touched.
//!
//! Layout as in the UEFI specification (2.10, section 5.2), which also defines the protective entry of a GPT. Numbers and
//! identities are those that Linux gives. What an extended partition holds is for [`logical`] to say.

use std::io::{self, Read, Seek};

use uuid::Uuid;

use super::fresh::FreshPartition;
use super::kinds::TypeId;
use super::{
    MBR_LEN, Partition, SECTOR_BYTES, Sectors, Slot, Table, TableKind, TableOutcome, TableRefusal,
    check_layout, logical, place, u32_at,
};
use crate::extents::Extents;
use crate::probe;

const DISK_SIGNATURE: usize = 440;
pub const ENTRIES: usize = 446;
pub const ENTRY_LEN: usize = 16;
const ENTRY_COUNT: usize = 4;
const SIGNATURE: usize = 510;

const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
pub const ACTIVE: u8 = 0x80;
/// The last CHS address of an entry that is too large for one.
const CHS_MAX: [u8; 3] = [0xFF; 3];

/// Whether this is the type of an entry that holds logical partitions.
pub fn is_extended(kind: u8) -> bool {
    EXTENDED.contains(&kind)
}

/// A sector with the signature of an MBR.
#[derive(Debug, Clone)]
pub struct Mbr {
    disk_signature: u32,
    pub entries: [Entry; ENTRY_COUNT],
}

#[derive(Debug, Clone, Copy)]
pub struct Entry {
    flags: u8,
    kind: u8,
    pub start: u32,
    pub len: u32,
}

impl Entry {
    fn parse(bytes: &[u8]) -> Self {
        Self { flags: bytes[0], kind: bytes[4], start: u32_at(bytes, 8), len: u32_at(bytes, 12) }
    }

    /// As the kernel has it: without a length there is nothing.
    fn is_used(&self) -> bool {
        self.kind != 0 && self.len != 0
    }

    /// Its type.
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// Whether it holds logical partitions.
    pub fn is_extended(&self) -> bool {
        is_extended(self.kind)
    }

    /// The first sector behind it.
    pub fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.len)
    }
}

impl Mbr {
    /// `None` without the signature.
    pub fn parse(lba0: &[u8]) -> Option<Self> {
        let bytes: &[u8; MBR_LEN] = lba0.first_chunk()?;
        let entry = |i: usize| Entry::parse(&bytes[ENTRIES + i * ENTRY_LEN..][..ENTRY_LEN]);
        (bytes[SIGNATURE..] == [0x55, 0xAA]).then(|| Self {
            disk_signature: u32_at(bytes, DISK_SIGNATURE),
            entries: std::array::from_fn(entry),
        })
    }

    /// The entry that keeps tools that know no GPT off the disk.
    pub fn protective(&self) -> Option<&Entry> {
        self.entries.iter().find(|entry| self.protects(entry))
    }

    /// Whether this is such an entry. Where text of a boot sector stands for entries, the type says nothing.
    fn protects(&self, entry: &Entry) -> bool {
        entry.kind == PROTECTIVE && entry.is_used() && (entry.start == 1 || self.is_plausible())
    }

    /// How many partitions it has beside a protective one.
    pub fn count(&self) -> usize {
        self.entries.iter().filter(|e| e.is_used() && e.kind != PROTECTIVE).count()
    }

    pub fn is_empty(&self) -> bool {
        !self.entries.iter().any(Entry::is_used)
    }

    /// The kernel's test: every entry, used or not, is either active or not.
    pub fn is_plausible(&self) -> bool {
        self.entries.iter().all(|e| matches!(e.flags, 0 | ACTIVE))
    }

    /// The partition that an entry of this table, or of one in its extended partition, describes.
    pub fn partition(
        &self,
        sectors: Sectors,
        number: u32,
        entry: &Entry,
        start_lba: u64,
        end_lba: u64,
    ) -> Result<Partition, TableRefusal> {
        let (start_bytes, len_bytes) = place(sectors, number, start_lba, u128::from(end_lba))?;
        Ok(Partition {
            number,
            start_bytes,
            len_bytes,
            type_id: format!("{:#04x}", entry.kind),
            uuid: (self.disk_signature != 0).then(|| partuuid(self.disk_signature, number)),
            name: None,
            attributes: 0,
            bootable: entry.flags == ACTIVE,
        })
    }

    /// Whether a partition would hold the table itself.
    pub fn starts_at_zero(&self) -> bool {
        self.entries.iter().any(|e| e.is_used() && e.start == 0)
    }
}

/// The identity of a partition, as Linux makes it of the disk's.
pub fn partuuid(disk_signature: u32, number: u32) -> String {
    format!("{disk_signature:08x}-{number:02x}")
}

/// The signature of a disk that has this identity.
pub fn signature_of(disk_id: Uuid) -> u32 {
    u32_at(disk_id.as_bytes(), 0).max(1)
}

/// Gives LBA 0 another signature. Beside a GPT it counts only where there is one already.
pub fn sign(lba0: &mut [u8], kind: TableKind, signature: u32) {
    let Some(mbr) = Mbr::parse(lba0) else { return };
    if kind == TableKind::Mbr || mbr.disk_signature != 0 {
        lba0[DISK_SIGNATURE..DISK_SIGNATURE + 4].copy_from_slice(&signature.to_le_bytes());
    }
}

/// The table that an MBR without a protective entry describes.
pub fn read(src: &mut (impl Read + Seek), mbr: &Mbr, sectors: Sectors) -> io::Result<TableOutcome> {
    let mut own = table(src, mbr, sectors)?;
    match counted_in(src, mbr, sectors, own.as_ref().ok())? {
        Counted::Otherwise(table) => {
            let (kind, disk) = ("MBR", sectors.bytes);
            return Ok(TableOutcome::Refused(TableRefusal::SectorSize { kind, table, disk }));
        }
        Counted::Perhaps(bytes) => {
            if let Ok(own) = &mut own {
                own.may_lie_elsewhere = true;
                own.warnings.push(format!(
                    "nothing known begins in any partition, and an MBR does not say what sectors it counts in: as those may have {bytes} \
                     bytes, where the disk was copied from one of such, what lies outside of the partitions is kept, too"
                ));
            }
        }
        Counted::BySectors => {}
    }
    Ok(match own {
        Ok(table) => TableOutcome::Table(table),
        Err(refusal) => TableOutcome::Refused(refusal),
    })
}

/// What sectors a table counts in.
enum Counted {
    /// The disk's.
    BySectors,
    /// Others, of so many bytes.
    Otherwise(u32),
    /// Nothing tells, and they may be of so many bytes, which are more than the disk's.
    Perhaps(u32),
}

/// What sectors the table was made for. An MBR does not say it. Where a volume begins does: at none of
/// the places that the numbers are by the disk's sectors, and at one that they are by others. Otherwise most of what is in the partitions
/// would lie outside of them.
fn counted_in(
    src: &mut (impl Read + Seek),
    mbr: &Mbr,
    sectors: Sectors,
    own: Option<&Table>,
) -> io::Result<Counted> {
    let mut counted = Counted::BySectors;
    for bytes in SECTOR_BYTES.into_iter().filter(|bytes| *bytes != sectors.bytes) {
        let Ok(other) = table(src, mbr, Sectors::new(sectors.disk_bytes, bytes)?)? else {
            continue;
        };
        if let Some(own) = own
            && holds_a_volume(src, own)?
        {
            return Ok(Counted::BySectors);
        }
        if holds_a_volume(src, &other)? {
            return Ok(Counted::Otherwise(bytes));
        }
        if bytes > sectors.bytes && !other.partitions.is_empty() {
            counted = Counted::Perhaps(bytes);
        }
    }
    Ok(counted)
}

/// Whether something that is known begins at the start of a partition.
fn holds_a_volume(src: &mut (impl Read + Seek), table: &Table) -> io::Result<bool> {
    for Partition { start_bytes, len_bytes, .. } in &table.partitions {
        let mut inside = probe::Part::new(src, *start_bytes, *len_bytes);
        if probe::whole(&mut inside, *len_bytes)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn table(
    src: &mut (impl Read + Seek),
    mbr: &Mbr,
    sectors: Sectors,
) -> io::Result<Result<Table, TableRefusal>> {
    let mut partitions = Vec::new();
    let mut metadata = Extents::single(0, u64::from(sectors.bytes));
    let mut warnings = Vec::new();
    let mut extended = None;
    let mut links = None;
    for (entry, number) in mbr.entries.iter().zip(1..).filter(|(e, _)| e.is_used()) {
        let (start, end) = (u64::from(entry.start), entry.end());
        let partition = match mbr.partition(sectors, number, entry, start, end) {
            Ok(partition) => partition,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if !entry.is_extended() {
            partitions.push(partition);
            continue;
        }
        if let Some(first) = extended.replace(number) {
            return Ok(Err(TableRefusal::SecondExtended { first, second: number }));
        }
        match logical::read(src, mbr, number, *entry, sectors)? {
            Ok(Some(mut chain)) => {
                partitions.append(&mut chain.partitions);
                metadata = metadata.union(&chain.metadata);
                links = Some(chain.extended);
            }
            Ok(None) => {
                partitions.push(partition);
                warnings.push(format!(
                    "the extended partition {number} has no table of logical partitions; it is taken as one that holds something else"
                ));
            }
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(check_layout(&mut partitions, &metadata).map(|()| Table {
        kind: TableKind::Mbr,
        disk_id: (mbr.disk_signature != 0).then(|| format!("{:08x}", mbr.disk_signature)),
        logical_sector_bytes: sectors.bytes,
        first_usable_lba: None,
        last_usable_lba: None,
        partitions,
        warnings,
        may_lie_elsewhere: false,
        metadata,
        gpt: None,
        extended: links,
        new_signature: None,
    }))
}

/// Makes the entries of LBA 0 say where the partitions lie on the target. With a GPT those are the entries of a hybrid MBR, which
/// repeat one of its partitions each.
pub fn move_entries(
    lba0: &mut [u8],
    table: &Table,
    slots: &[Slot],
    target: Sectors,
) -> io::Result<()> {
    let Some(mbr) = Mbr::parse(lba0) else { return Ok(()) };
    for (i, entry) in mbr.entries.iter().enumerate().filter(|(_, e)| e.is_used()) {
        let is_here = |p: &&Partition| {
            p.start_bytes == target.offset(entry.start.into())
                && p.len_bytes == target.offset(entry.len.into())
        };
        let Some(partition) = table.partitions.iter().find(is_here) else { continue };
        let bytes = &mut lba0[ENTRIES + i * ENTRY_LEN..][..ENTRY_LEN];
        match slots.iter().find(|slot| slot.number == partition.number) {
            Some(slot) if is_at(partition, slot) => {}
            Some(slot) => write_entry(bytes, slot, 0, target)?,
            None => bytes.fill(0),
        }
    }
    Ok(())
}

/// Whether a partition stays where it is.
pub fn is_at(partition: &Partition, slot: &Slot) -> bool {
    (slot.start_bytes, slot.len_bytes) == (partition.start_bytes, partition.len_bytes)
}

/// Writes place and length into an entry, counted from sector `origin`. Type and flags stay.
pub fn write_entry(entry: &mut [u8], slot: &Slot, origin: u64, sectors: Sectors) -> io::Result<()> {
    let sector = u64::from(sectors.bytes);
    let (first, len) = (slot.start_bytes / sector, slot.len_bytes / sector);
    let counted = first.checked_sub(origin).and_then(|start| u32::try_from(start).ok());
    let (Some(start), Ok(len_field)) = (counted, u32::try_from(len)) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "an MBR cannot count to where partition {} would end; it needs a GPT",
                slot.number
            ),
        ));
    };
    entry[1..4].copy_from_slice(&chs(first));
    entry[5..8].copy_from_slice(&chs(first + len.max(1) - 1));
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..16].copy_from_slice(&len_field.to_le_bytes());
    Ok(())
}

/// The CHS address of a sector in the geometry of 255 heads and 63 sectors that everybody assumes.
fn chs(lba: u64) -> [u8; 3] {
    const HEADS: u64 = 255;
    const SECTORS: u64 = 63;
    let (cylinder, head, sector) =
        (lba / (HEADS * SECTORS), lba / SECTORS % HEADS, lba % SECTORS + 1);
    if cylinder > 1023 {
        return [254, CHS_MAX[1], CHS_MAX[2]];
    }
    let low = |n: u64| u8::try_from(n & 0xFF).expect("masked");
    [low(head), low(sector | cylinder >> 8 << 6), low(cylinder)]
}

/// Puts the protective entry of a GPT into an empty LBA 0.
pub fn protect(lba0: &mut [u8], sectors: Sectors) {
    let entry = &mut lba0[ENTRIES..][..ENTRY_LEN];
    let len = u32::try_from(sectors.count.saturating_sub(1)).unwrap_or(u32::MAX);
    // Its first sector is 1; in CHS that is 0/0/2.
    entry[1..4].copy_from_slice(&chs(1));
    entry[4] = PROTECTIVE;
    entry[5..8].copy_from_slice(&CHS_MAX);
    entry[8..12].copy_from_slice(&1_u32.to_le_bytes());
    entry[12..16].copy_from_slice(&len.to_le_bytes());
}

/// Puts a disk signature and primary partitions into an empty LBA 0.
pub fn fill(
    lba0: &mut [u8],
    disk_id: Uuid,
    partitions: &[FreshPartition],
    sectors: Sectors,
) -> io::Result<()> {
    let signature = signature_of(disk_id);
    lba0[DISK_SIGNATURE..DISK_SIGNATURE + 4].copy_from_slice(&signature.to_le_bytes());
    for partition in partitions {
        let index = usize::try_from(partition.slot.number).map_err(io::Error::other)? - 1;
        let TypeId::Byte(kind) = partition.type_id else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a type of a GPT in an MBR"));
        };
        if index >= ENTRY_COUNT {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "an MBR has four entries"));
        }
        let entry = &mut lba0[ENTRIES + index * ENTRY_LEN..][..ENTRY_LEN];
        entry[0] = if partition.bootable { ACTIVE } else { 0 };
        entry[4] = kind;
        write_entry(entry, &partition.slot, 0, sectors)?;
    }
    Ok(())
}

/// Fits the protective entry of LBA 0 to a disk of another size. An entry that did not reach the end of its disk is one of a
/// hybrid MBR that leaves room for others on purpose; it stays, and so does one that has the largest length there is, or that begins
/// behind the new end and would protect nothing with any length.
pub fn resize_protective(lba0: &mut [u8], old_sectors: u64, new_sectors: u64) {
    let Some(mbr) = Mbr::parse(lba0) else { return };
    for (i, entry) in mbr.entries.iter().enumerate().filter(|(_, e)| mbr.protects(e)) {
        if entry.len == u32::MAX || (entry.end() < old_sectors && mbr.count() > 0) {
            continue;
        }
        let Some(len) = new_sectors.checked_sub(entry.start.into()).filter(|len| *len > 0) else {
            continue;
        };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let bytes = &mut lba0[ENTRIES + i * ENTRY_LEN..][..ENTRY_LEN];
        bytes[5..8].copy_from_slice(&CHS_MAX);
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LBA 0 with one entry of the protective type.
    fn lba0(flags: u8, start: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; MBR_LEN];
        bytes[SIGNATURE..].copy_from_slice(&[0x55, 0xAA]);
        let entry = &mut bytes[ENTRIES..][..ENTRY_LEN];
        (entry[0], entry[4]) = (flags, PROTECTIVE);
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    /// One without sectors is no entry, and the disk would have an MBR in place of its GPT.
    #[test]
    fn a_protective_entry_behind_the_end_stays_one() {
        for (start, new_sectors) in [(0x0100_0001, 1536), (1536, 1536), (1, 1)] {
            let mut sector = lba0(0, start, 1023);
            resize_protective(&mut sector, 1024, new_sectors);
            assert_eq!(sector, lba0(0, start, 1023), "from {start} on {new_sectors} sectors");
        }
    }

    #[test]
    fn what_is_no_protective_entry_does_not_become_one() {
        for (flags, start, len) in [(0x74, 9, 0), (0, 1, 0), (0x74, 9, 100)] {
            let before = lba0(flags, start, len);
            let mut after = before.clone();
            resize_protective(&mut after, 100, 1000);
            assert_eq!(after, before, "{flags:#x} {start} {len}");
        }
        let mut after = lba0(0, 1, 99);
        resize_protective(&mut after, 100, 1000);
        assert_eq!(Mbr::parse(&after).unwrap().entries[0].len, 999);
    }
}
