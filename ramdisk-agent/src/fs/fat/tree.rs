//! The walk through all directories: what the files say must agree with the table.

use std::io::{self, Read, Seek};

use super::Doubt;
use super::boot::{Boot, ENTRY_LEN, label};
use super::table::{Next, Table};
use crate::fs::FsKind;
use crate::fs::bytes::read_at;

const DELETED: u8 = 0xe5;
/// Stands for 0xe5 as a name's first byte.
const KANJI_E5: u8 = 0x05;
const ATTR_LABEL: u8 = 0x08;
const ATTR_DIRECTORY: u8 = 0x10;
const ATTR_LONG_NAME: u8 = 0x0f;
const ATTR_RESERVED: u8 = 0xc0;
/// A directory entry's own cluster and its parent's.
const DOT: &[u8; 11] = b".          ";
const DOT_DOT: &[u8; 11] = b"..         ";

/// Follows every chain from the root on; gives the label of the root directory.
///
/// Every run of clusters is followed at most once, so the walk ends on any input.
pub fn walk(
    src: &mut (impl Read + Seek),
    boot: &Boot,
    table: &Table,
) -> io::Result<Result<Option<String>, Doubt>> {
    let mut walk =
        Walk { boot, table, seen: vec![false; table.runs.len()], pending: Vec::new(), label: None };
    let result = walk.run(src)?;
    Ok(result.map(|()| walk.label))
}

struct Walk<'a> {
    boot: &'a Boot,
    table: &'a Table,
    seen: Vec<bool>,
    /// Directories still to be read: their runs, as indexes.
    pending: Vec<Vec<usize>>,
    label: Option<String>,
}

impl Walk<'_> {
    fn run(&mut self, src: &mut (impl Read + Seek)) -> io::Result<Result<(), Doubt>> {
        let root = if self.boot.kind == FsKind::Fat32 {
            match self.chain(self.boot.root_cluster) {
                Ok((runs, _)) => self.directory(src, &runs, true)?,
                Err(doubt) => Err(doubt),
            }
        } else {
            let (offset, len) = self.boot.fixed_root();
            let mut bytes = vec![0; usize::try_from(len).expect("at most 65535 entries")];
            read_at(src, offset, &mut bytes)?;
            self.entries(&bytes, None, true).map(|_| ())
        };
        if let Err(doubt) = root {
            return Ok(Err(format!("root directory: {doubt}")));
        }
        while let Some(runs) = self.pending.pop() {
            if let Err(doubt) = self.directory(src, &runs, false)? {
                let first = self.table.runs[runs[0]].first;
                return Ok(Err(format!("directory at cluster {first}: {doubt}")));
            }
        }
        Ok(Ok(()))
    }

    /// Reads a directory up to its end mark.
    fn directory(
        &mut self,
        src: &mut (impl Read + Seek),
        runs: &[usize],
        root: bool,
    ) -> io::Result<Result<(), Doubt>> {
        let mut bytes =
            vec![0; usize::try_from(self.boot.cluster_bytes()).expect("at most 512 KiB")];
        let mut own = (!root).then(|| self.table.runs[runs[0]].first);
        for index in runs {
            let run = self.table.runs[*index];
            for cluster in run.first..run.first + run.count {
                read_at(src, self.boot.cluster_offset(cluster), &mut bytes)?;
                match self.entries(&bytes, own.take(), root) {
                    Ok(true) => {}
                    Ok(false) => return Ok(Ok(())),
                    Err(doubt) => return Ok(Err(doubt)),
                }
            }
        }
        Ok(Ok(()))
    }

    /// Checks the entries of a piece of a directory; `own` is the directory's cluster if the piece is its first and it is not
    /// the root. Says whether the directory goes on.
    fn entries(&mut self, bytes: &[u8], own: Option<u32>, root: bool) -> Result<bool, Doubt> {
        let (entries, _) = bytes.as_chunks::<ENTRY_LEN>();
        for (i, entry) in entries.iter().enumerate() {
            let start = self.start_cluster(entry);
            if let (Some(own), 0 | 1) = (own, i) {
                let name = if i == 0 { DOT } else { DOT_DOT };
                if !entry.starts_with(name) || (i == 0 && start != own) {
                    return Err("it does not begin with its own and its parent's entry".into());
                }
                continue;
            }
            match entry[0] {
                0 => return Ok(false),
                DELETED => continue,
                _ if entry[11] & 0x3f == ATTR_LONG_NAME => continue,
                _ if entry[11] & ATTR_LABEL != 0 => {
                    if root && self.label.is_none() {
                        self.label = label(&entry[..11]);
                    }
                }
                _ => self.entry(entry, start)?,
            }
        }
        Ok(true)
    }

    /// Checks one file or directory.
    fn entry(&mut self, entry: &[u8; ENTRY_LEN], start: u32) -> Result<(), Doubt> {
        let name = String::from_utf8_lossy(&entry[..11]).into_owned();
        let odd = |byte: &u8| *byte < 0x20;
        if entry[11] & ATTR_RESERVED != 0
            || (odd(&entry[0]) && entry[0] != KANJI_E5)
            || entry[1..11].iter().any(odd)
        {
            return Err(format!("entry {name:?} is not one of a file"));
        }
        let size = u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]);
        let is_directory = entry[11] & ATTR_DIRECTORY != 0;
        if start == 0 {
            return if is_directory || size != 0 {
                Err(format!("entry {name:?} has no first cluster"))
            } else {
                Ok(())
            };
        }
        let (runs, clusters) =
            self.chain(start).map_err(|doubt| format!("entry {name:?}: {doubt}"))?;
        if is_directory {
            self.pending.push(runs);
        } else if u64::from(size).div_ceil(self.boot.cluster_bytes()) != clusters {
            return Err(format!("entry {name:?} has {size} bytes in {clusters} clusters"));
        }
        Ok(())
    }

    /// The runs of a chain and how many clusters they have together.
    fn chain(&mut self, first: u32) -> Result<(Vec<usize>, u64), Doubt> {
        let (mut runs, mut clusters) = (Vec::new(), 0);
        let mut cluster = first;
        loop {
            let index = self.table.run_at(cluster)?;
            if std::mem::replace(&mut self.seen[index], true) {
                return Err(format!("cluster {cluster} is in two chains"));
            }
            let run = self.table.runs[index];
            runs.push(index);
            clusters += u64::from(run.count);
            match run.next {
                Next::End => return Ok((runs, clusters)),
                Next::Cluster(next) => cluster = next,
                Next::Free | Next::Invalid => {
                    return Err(format!(
                        "the chain breaks off at cluster {}",
                        run.first + run.count - 1
                    ));
                }
            }
        }
    }

    fn start_cluster(&self, entry: &[u8; ENTRY_LEN]) -> u32 {
        let low = u32::from(u16::from_le_bytes([entry[26], entry[27]]));
        // Older FATs use the high half for other things.
        let high = if self.boot.kind == FsKind::Fat32 {
            u16::from_le_bytes([entry[20], entry[21]])
        } else {
            0
        };
        u32::from(high) << 16 | low
    }
}
