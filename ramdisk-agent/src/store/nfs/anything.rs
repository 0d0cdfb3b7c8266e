//! Every reader of what an NFS server says, over any bytes: for the fuzz target, and for a property test here.

use std::sync::Arc;

use super::super::pool::Pool;
use super::rpc::{self, MAX_RECORD_BYTES};
use super::{mount, proto};

/// What a READ asks for here.
const ASKED_BYTES: u32 = 512;
/// An entry of a folder has no fewer: a flag, number, length of its name, cookie, and that there are neither attributes nor handle.
const ENTRY_BYTES: usize = 32;

/// Reads `data` as records on a connection, as a reply, and as the results of every procedure. Whatever they are, each is a value or an error.
pub fn read_anything(data: &[u8]) {
    let pool = Arc::new(Pool::default());
    let mut stream = data;
    while let Ok(record) = rpc::read_record(&mut stream, &pool) {
        let record = record.bytes();
        assert!(record.len() <= MAX_RECORD_BYTES.min(data.len()), "no more than was sent");
        read_reply(record);
    }
    read_reply(data);
    read_results(data);
}

fn read_reply(record: &[u8]) {
    let _ = rpc::reply_xid(record);
    match rpc::reply_results(record, proto::READ) {
        Ok(results) => {
            assert!(results.len() < record.len(), "there is a header before them");
            read_results(results);
        }
        Err(error) => assert!(!error.to_string().is_empty(), "every refusal has words"),
    }
}

fn read_results(results: &[u8]) {
    let _ = proto::outcome(results, proto::Attributes::read);
    let _ = proto::outcome(results, proto::read_lookup);
    let _ = proto::outcome(results, proto::read_create);
    let _ = proto::outcome(results, proto::read_written);
    let _ = proto::outcome(results, proto::read_committed);
    let _ = proto::outcome(results, proto::read_fsinfo);
    let _ = proto::outcome(results, proto::read_fsstat);
    if let Ok(Ok(read)) = proto::outcome(results, |decoder| proto::read_data(decoder, ASKED_BYTES))
    {
        assert!(read.data.len() <= ASKED_BYTES as usize, "no more than was asked for");
    }
    match proto::outcome(results, proto::read_folder) {
        Ok(Ok(page)) => {
            assert!(page.entries.len() * ENTRY_BYTES <= results.len(), "no more than was sent");
            assert_eq!(page.entries.is_empty(), page.last_cookie.is_none());
        }
        Ok(Err(status)) => assert!(!status.to_string().is_empty(), "every status has words"),
        Err(_) => {}
    }
    let _ = mount::read_mounted(results);
    if let Ok(exports) = mount::read_exports(results) {
        // A byte that is no UTF-8 becomes three.
        assert!(exports.iter().map(String::len).sum::<usize>() <= 3 * results.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_reply_is_a_value_or_an_error(
            words in prop::collection::vec(prop_oneof![Just(0_u32), Just(1), 0..20_u32, any::<u32>()], 0..80),
            denied in prop::sample::select(vec![0_u32, 0, 0, 1]),
            parts in 1..5_usize,
        ) {
            // Of call 7 a reply that was accepted, without an authenticator, and carried out.
            let head = [7, 1, denied, 0, 0, 0];
            let reply: Vec<u8> = head.iter().chain(&words).flat_map(|word| word.to_be_bytes()).collect();
            read_anything(&reply);
            let size = reply.len().div_ceil(parts);
            let count = reply.len().div_ceil(size);
            let fragments = reply.chunks(size).enumerate().flat_map(|(index, part)| {
                let last = if index + 1 == count { rpc::LAST_FRAGMENT } else { 0 };
                let mark = u32::try_from(part.len()).unwrap() | last;
                [&mark.to_be_bytes()[..], part].concat()
            });
            read_anything(&fragments.collect::<Vec<u8>>());
            read_anything(&words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>());
        }
    }
}
