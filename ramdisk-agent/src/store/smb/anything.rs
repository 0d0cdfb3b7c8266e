//! Every reader of what a server says, over any bytes: for the fuzz target, and for a property test here.

use std::sync::Arc;

use super::super::pool::Pool;
use super::frame::Inbound;
use super::messages;
use super::negotiate;
use super::ntlm::{self, Challenge};
use super::spnego;

/// Reads `data` as a message on the wire and as every reply there is. Whatever they are, each is a value or an error.
pub fn read_anything(data: &[u8]) {
    let inbound = Inbound::default();
    let framed = inbound.read(&mut &data[..], &Arc::new(Pool::default()));
    let message = framed.as_ref().map_or(data, |reply| reply.message());
    let _ = negotiate::read(message);
    if let Ok(setup) = messages::read_session_setup(message) {
        read_token(setup.token);
    }
    let _ = messages::read_tree_connect(message);
    let _ = messages::read_validated(message);
    let _ = messages::read_create(message);
    let _ = messages::read_standard(message);
    let _ = messages::read_internal(message);
    let _ = messages::read_space(message);
    let _ = messages::read_written(message);
    if let Ok(data) = messages::read_data(message, 512) {
        assert!(data.len() <= 512, "no more than was asked for");
    }
    let _ = messages::read_directory(message);
    read_token(data);
}

fn read_token(token: &[u8]) {
    let challenge = spnego::response_token(token).unwrap_or(token);
    if let Ok(challenge) = Challenge::read(challenge) {
        let random = ntlm::Random { challenge: [1; 8], session_key: [2; 16] };
        let login = ntlm::Login { user: "u", domain: "", password: "" };
        ntlm::authenticate(Some(login), &challenge, "cifs/h", [b"", token], random);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_reply_is_a_value_or_an_error(
            size in prop::sample::select(vec![4_u8, 9, 16, 17, 49, 60, 65, 89]),
            tail in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), 60..140_u8], 0..300)
        ) {
            let mut message = vec![0_u8; 64];
            message[..6].copy_from_slice(b"\xFESMB\x40\0");
            message[16] = 1;
            message.extend_from_slice(&[size, 0]);
            message.extend_from_slice(&tail);
            read_anything(&message);
            let len = u32::try_from(message.len()).unwrap().to_be_bytes();
            read_anything(&[&len[..], &message].concat());
            read_anything(&tail);
        }
    }
}
