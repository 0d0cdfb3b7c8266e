//! Little-endian fields of a byte string, taken one after the other; never past the end.

/// What is left of a byte string that is being taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The magic number of the skippable frames that are Imprint's own; what a frame is for is in its first eight bytes.
pub(crate) const SKIPPABLE_MAGIC: u32 = 0x184D_2A5B;

/// The magic number and the length that start every skippable frame.
pub(crate) const SKIPPABLE_HEADER_LEN: usize = 8;

/// Starts a skippable frame whose payload length is not yet known; [`seal`] or [`close`] fills it in.
pub(crate) fn open_skippable(out: &mut Vec<u8>, kind: &[u8; 8]) {
    out.clear();
    out.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
}

/// Fills in the payload length of a skippable frame that is `total_len` bytes long.
pub(crate) fn set_skippable_len(frame: &mut [u8], total_len: usize) {
    let payload = u32::try_from(total_len - SKIPPABLE_HEADER_LEN)
        .expect("the limits keep skippable frames under 4 GiB");
    frame[4..8].copy_from_slice(&payload.to_le_bytes());
}

/// Completes a skippable frame that ends with the BLAKE3 hash of everything before it.
pub(crate) fn seal(frame: &mut Vec<u8>) -> crate::Hash {
    let total_len = frame.len() + 32;
    set_skippable_len(frame, total_len);
    let hash = crate::Hash::of(frame);
    frame.extend_from_slice(hash.as_bytes());
    hash
}

/// Checks the start and the seal of a skippable frame of this kind; gives its hash and what is between.
pub(crate) fn unseal<'a>(
    frame: &'a [u8],
    kind: &[u8; 8],
) -> Result<(crate::Hash, Fields<'a>), &'static str> {
    unseal_magic(frame, SKIPPABLE_MAGIC, kind)
}

/// The same for a frame that has this magic number.
pub(crate) fn unseal_magic<'a>(
    frame: &'a [u8],
    magic: u32,
    kind: &[u8; 8],
) -> Result<(crate::Hash, Fields<'a>), &'static str> {
    let (body, seal) = frame.split_last_chunk::<32>().ok_or("is too short")?;
    let mut fields = Fields::new(body);
    if fields.u32() != Some(magic) {
        return Err("does not start with its magic number");
    }
    if fields.u32().map(u64::from)
        != Some((frame.len() - SKIPPABLE_HEADER_LEN.min(frame.len())) as u64)
    {
        return Err("is not as long as its header says");
    }
    if fields.array() != Some(*kind) {
        return Err("is a frame of another kind");
    }
    let hash = crate::Hash::of(body);
    if hash.as_bytes() != seal {
        return Err("does not match its hash");
    }
    Ok((hash, fields))
}
