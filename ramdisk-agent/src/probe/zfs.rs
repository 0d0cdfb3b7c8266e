//! The labels of a ZFS device: two at its start, two at its end, any of which names the pool.
//!
//! Follows OpenZFS's `module/zfs/vdev_label.c` for their places and `module/nvpair/nvpair.c` for the name-value list (XDR) in each.
//! The list is the signature: it has no magic number, so its keys must be there.

use std::io::{self, Read, Seek};

use super::{Hit, Part, field};
use crate::fs::FsKind;

const LABEL_LEN: u64 = 256 << 10;
/// The list in a label, behind an empty block and a boot header.
const LIST: u64 = 16 << 10;
/// The keys that are wanted stand before the large ones.
const LIST_HEAD_LEN: usize = 4096;
/// Encoding (XDR), byte order, two bytes of nothing; then version 0 and flags.
const LIST_HEADER_LEN: usize = 12;
const MAX_PAIRS: usize = 64;
const TYPE_UINT64: u32 = 8;
const TYPE_STRING: u32 = 9;

/// The labels that are there; those at the end, and the second at the start if there is a first, are copies.
pub fn labels<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Vec<Hit>> {
    let end = part.len & !(LABEL_LEN - 1);
    let mut hits: Vec<Hit> = Vec::new();
    if end < 4 * LABEL_LEN {
        return Ok(hits);
    }
    for (i, start) in [0, LABEL_LEN, end - 2 * LABEL_LEN, end - LABEL_LEN].into_iter().enumerate() {
        let list = part.bytes(start + LIST, LIST_HEAD_LEN)?;
        if let Some(mut hit) = list.and_then(|list| label(&list, start + LIST)) {
            hit.copy = i >= 2 || !hits.is_empty();
            hits.push(hit);
        }
    }
    Ok(hits)
}

/// The first label, which every formatter overwrites.
pub fn first_label<S: Read + Seek>(part: &mut Part<'_, S>) -> io::Result<Option<Hit>> {
    let list = part.bytes(LIST, LIST_HEAD_LEN)?;
    Ok(list.and_then(|list| label(&list, LIST)))
}

fn label(list: &[u8], offset: u64) -> Option<Hit> {
    let [encoding, order, 0, 0] = field(list, 0)? else { return None };
    let version: [u8; 4] = field(list, 4)?;
    if encoding != 1 || order > 1 || version != [0; 4] {
        return None;
    }
    let (mut name, mut pool, mut versioned) = (None, None, false);
    let mut at = LIST_HEADER_LEN;
    for _ in 0..MAX_PAIRS {
        let Some(pair) = pair(list, at).filter(|pair| pair.len > 0) else { break };
        match (pair.name, pair.value) {
            (b"version", Value::Number(_)) => versioned = true,
            (b"name", Value::Text(text)) => name = Some(String::from_utf8_lossy(text).into_owned()),
            (b"pool_guid", Value::Number(number)) => pool = Some(number.to_string()),
            _ => {}
        }
        at = at.checked_add(pair.len)?;
    }
    let len = LIST_HEADER_LEN as u64;
    versioned.then(|| Hit::new(FsKind::Zfs, offset, len, pool, name))
}

enum Value<'a> {
    Number(u64),
    Text(&'a [u8]),
    Other,
}

struct Pair<'a> {
    len: usize,
    name: &'a [u8],
    value: Value<'a>,
}

fn pair(list: &[u8], at: usize) -> Option<Pair<'_>> {
    let number = |at: usize| field(list, at).map(u32::from_be_bytes);
    let size = |at: usize| usize::try_from(number(at)?).ok();
    let padded = |len: usize| len.checked_next_multiple_of(4);
    let len = size(at)?;
    let name_len = size(at + 8)?;
    let name = list.get(at + 12..)?.get(..name_len)?;
    let kind = at + 12 + padded(name_len)?;
    let value = match number(kind)? {
        TYPE_UINT64 => Value::Number(u64::from_be_bytes(field(list, kind + 8)?)),
        TYPE_STRING => Value::Text(list.get(kind + 12..)?.get(..size(kind + 8)?)?),
        _ => Value::Other,
    };
    Some(Pair { len, name, value })
}
