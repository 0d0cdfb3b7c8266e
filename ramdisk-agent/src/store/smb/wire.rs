//! Little-endian bytes of SMB2: appended to a message, and taken from one.
//!
//! The decoder borrows from the message and is total: it allocates nothing, and every length and offset is checked against what
//! is there.

/// Why bytes are not the message that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("it ends too early")]
    Short,
    #[error("{value:#x} is not a value of its {field}")]
    Value { field: &'static str, value: u64 },
}

/// Appends fields.
pub(super) trait Put {
    fn u8(&mut self, value: u8) -> &mut Self;
    fn u16(&mut self, value: u16) -> &mut Self;
    fn u32(&mut self, value: u32) -> &mut Self;
    fn u64(&mut self, value: u64) -> &mut Self;
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self;
    /// Text as UTF-16.
    fn utf16(&mut self, text: &str) -> &mut Self;
    /// Zeros up to a multiple of eight from the start of the buffer.
    fn align8(&mut self) -> &mut Self;
}

impl Put for Vec<u8> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.push(value);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.extend_from_slice(bytes);
        self
    }

    fn utf16(&mut self, text: &str) -> &mut Self {
        text.encode_utf16().for_each(|unit| self.extend_from_slice(&unit.to_le_bytes()));
        self
    }

    fn align8(&mut self) -> &mut Self {
        self.resize(self.len().next_multiple_of(8), 0);
        self
    }
}

/// Text as UTF-16, little-endian.
pub(super) fn utf16(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 * text.len());
    bytes.utf16(text);
    bytes
}

/// A length as the 16 bits of a field. Callers pass names, tokens and contexts that this client made, all short.
pub(super) fn len16(len: usize) -> u16 {
    u16::try_from(len).expect("names and tokens of this client are below 64 KiB")
}

/// Takes fields from a message, front to back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn skip(&mut self, len: usize) -> Result<&mut Self, WireError> {
        self.bytes(len)?;
        Ok(self)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The structure size that every body begins with.
    pub(super) fn structure(&mut self, size: u16) -> Result<&mut Self, WireError> {
        match self.u16()? {
            found if found == size => Ok(self),
            found => Err(WireError::Value { field: "structure size", value: found.into() }),
        }
    }
}

/// `len` bytes at `offset` of `message`.
pub(super) fn part(message: &[u8], offset: u32, len: u32) -> Result<&[u8], WireError> {
    let start = usize::try_from(offset).map_err(|_| WireError::Short)?;
    let len = usize::try_from(len).map_err(|_| WireError::Short)?;
    let end = start.checked_add(len).ok_or(WireError::Short)?;
    message.get(start..end).ok_or(WireError::Short)
}

/// UTF-16 as text, with what is not a character replaced.
pub(super) fn text(utf16: &[u8]) -> String {
    let units = utf16.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
