//! SPNEGO (RFC 4178), the part that carries NTLMSSP: two tokens of the client, and the server's answers.
//!
//! The reader goes for the one thing that matters, the mechanism's token in a `NegTokenResp`; it is total and does not descend
//! deeper than that structure has levels.

use super::wire::WireError;

/// 1.3.6.1.5.5.2
const OID_SPNEGO: &[u8] = &[0x06, 0x06, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x02];
/// 1.3.6.1.4.1.311.2.2.10
const OID_NTLMSSP: &[u8] =
    &[0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0a];

const SEQUENCE: u8 = 0x30;
const OCTETS: u8 = 0x04;
const APPLICATION: u8 = 0x60;
/// Context tags.
const TAG: [u8; 4] = [0xa0, 0xa1, 0xa2, 0xa3];

/// The first token: only NTLMSSP is offered, with its first message.
pub(super) fn init(token: &[u8]) -> Vec<u8> {
    let mechanisms = tlv(TAG[0], &mechanisms());
    let token = tlv(TAG[2], &tlv(OCTETS, token));
    let inner = tlv(TAG[0], &tlv(SEQUENCE, &[mechanisms, token].concat()));
    tlv(APPLICATION, &[OID_SPNEGO, &inner].concat())
}

/// The second token; `mic` is the mechanism's signature under [`mechanisms`], where there is a key.
pub(super) fn response(token: &[u8], mic: Option<&[u8]>) -> Vec<u8> {
    let mut fields = tlv(TAG[2], &tlv(OCTETS, token));
    if let Some(mic) = mic {
        fields.extend_from_slice(&tlv(TAG[3], &tlv(OCTETS, mic)));
    }
    tlv(TAG[1], &tlv(SEQUENCE, &fields))
}

/// What was offered.
pub(super) fn mechanisms() -> Vec<u8> {
    tlv(SEQUENCE, OID_NTLMSSP)
}

/// The mechanism's token in a server's answer.
pub(super) fn response_token(bytes: &[u8]) -> Result<&[u8], WireError> {
    let (tag, response, _) = element(bytes)?;
    let (inner, fields, _) = element(response)?;
    if tag != TAG[1] || inner != SEQUENCE {
        return Err(WireError::Value { field: "SPNEGO tag", value: tag.into() });
    }
    let mut rest = fields;
    while !rest.is_empty() {
        let (tag, value, after) = element(rest)?;
        if tag == TAG[2] {
            let (tag, token, _) = element(value)?;
            if tag == OCTETS {
                return Ok(token);
            }
        }
        rest = after;
    }
    Err(WireError::Short)
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let len =
        u16::try_from(value.len()).expect("tokens of this client are below 64 KiB").to_be_bytes();
    let mut out = Vec::with_capacity(value.len() + 4);
    out.push(tag);
    match len {
        [0, short @ ..=0x7f] => out.push(short),
        [0, long] => out.extend_from_slice(&[0x81, long]),
        [high, low] => out.extend_from_slice(&[0x82, high, low]),
    }
    out.extend_from_slice(value);
    out
}

/// Tag, value, and what follows. Tags of one byte, lengths of up to three.
fn element(bytes: &[u8]) -> Result<(u8, &[u8], &[u8]), WireError> {
    let (&[tag, first], rest) = bytes.split_first_chunk().ok_or(WireError::Short)?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (digits, rest) =
                rest.split_at_checked(usize::from(first & 0x7f)).ok_or(WireError::Short)?;
            (digits.iter().fold(0, |len, &digit| len << 8 | usize::from(digit)), rest)
        }
        _ => return Err(WireError::Value { field: "SPNEGO length", value: first.into() }),
    };
    let (value, rest) = rest.split_at_checked(len).ok_or(WireError::Short)?;
    Ok((tag, value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_comes_back(token in proptest::collection::vec(any::<u8>(), 0..600)) {
            let answer = response(&token, Some(b"mic"));
            prop_assert_eq!(response_token(&answer), Ok(&token[..]));
        }

        #[test]
        fn any_answer_is_read_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = response_token(&bytes);
            let _ = response_token(&tlv(TAG[1], &tlv(SEQUENCE, &bytes)));
        }
    }
}
