//! XDR (RFC 4506), the part that ONC RPC and NFSv3 need.
//!
//! The decoder borrows from the record and is total: it allocates nothing, checks every length against what is there, and a
//! length above its caller's limit is an error. (Decoding with the `nfs3_types` crate would allocate what the server claims.)

/// Why bytes are not the XDR that was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum XdrError {
    #[error("it ends too early")]
    Short,
    #[error("a length of {len} is above the limit of {limit}")]
    TooLong { len: u32, limit: u32 },
    #[error("{value} is not a value of this field")]
    Value { value: u32 },
}

/// Appends XDR to a buffer.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Bytes of a length that both sides know.
    pub(super) fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// A length and that many bytes. Callers pass names, handles and credentials, all far below 4 GiB.
    pub(super) fn opaque(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(u32::try_from(bytes.len()).expect("names and handles are short"));
        self.fixed(bytes)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes XDR from a record, front to back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], XdrError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(XdrError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, XdrError> {
        let bytes = self.take(4)?.try_into().expect("four bytes were taken");
        Ok(u32::from_be_bytes(bytes))
    }

    pub(super) fn u64(&mut self) -> Result<u64, XdrError> {
        let bytes = self.take(8)?.try_into().expect("eight bytes were taken");
        Ok(u64::from_be_bytes(bytes))
    }

    pub(super) fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(XdrError::Value { value }),
        }
    }

    /// Eight bytes: the write and cookie verifiers.
    pub(super) fn verifier(&mut self) -> Result<[u8; 8], XdrError> {
        Ok(self.take(8)?.try_into().expect("eight bytes were taken"))
    }

    /// A length of at most `limit` and that many bytes.
    pub(super) fn opaque(&mut self, limit: u32) -> Result<&'a [u8], XdrError> {
        let len = self.u32()?;
        if len > limit {
            return Err(XdrError::TooLong { len, limit });
        }
        let len = usize::try_from(len).expect("u32 fits usize on every target");
        let taken = self.take(len)?;
        self.take(len.next_multiple_of(4) - len)?;
        Ok(taken)
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn padding_and_limits() {
        let mut encoder = Encoder::default();
        encoder.opaque(b"abcde").u32(7).u64(9).fixed(&[1; 8]);
        let bytes = encoder.into_bytes();
        assert_eq!(&bytes[..12], [0, 0, 0, 5, b'a', b'b', b'c', b'd', b'e', 0, 0, 0]);
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.opaque(5).unwrap(), b"abcde");
        assert_eq!((decoder.u32().unwrap(), decoder.u64().unwrap()), (7, 9));
        assert_eq!(decoder.verifier().unwrap(), [1; 8]);
        assert!(decoder.rest().is_empty());
        assert_eq!(decoder.u32(), Err(XdrError::Short));
        let limit = Decoder::new(&bytes).opaque(4);
        assert_eq!(limit, Err(XdrError::TooLong { len: 5, limit: 4 }));
        assert_eq!(Decoder::new(&[0xFF; 8]).opaque(u32::MAX), Err(XdrError::Short));
        assert_eq!(Decoder::new(&[0, 0, 0, 2]).bool(), Err(XdrError::Value { value: 2 }));
    }

    proptest! {
        #[test]
        fn agrees_with_an_independent_codec(bytes in proptest::collection::vec(any::<u8>(), 0..70), number in any::<u64>()) {
            use nfs3_types::xdr_codec::{Opaque, Pack};
            let mut theirs = Vec::new();
            Opaque::borrowed(&bytes).pack(&mut theirs).unwrap();
            number.pack(&mut theirs).unwrap();
            let mut ours = Encoder::default();
            ours.opaque(&bytes).u64(number);
            prop_assert_eq!(&ours.into_bytes(), &theirs);
            let mut decoder = Decoder::new(&theirs);
            prop_assert_eq!(decoder.opaque(70).unwrap(), &bytes[..]);
            prop_assert_eq!(decoder.u64().unwrap(), number);
        }

        #[test]
        fn any_bytes_are_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut decoder = Decoder::new(&bytes);
            while decoder.opaque(64).is_ok() || decoder.bool().is_ok() {
                if decoder.rest().is_empty() { break }
            }
        }
    }
}
