//! Replies of SMB servers.

/// Reads the input as every reply that an SMB server may send.
pub fn reply(data: &[u8]) {
    ramdisk_agent::store::read_any_smb(data);
}

/// One reply of each kind with its length before it, by hand after MS-SMB2.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let name: Vec<u8> = "x.img.zst".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut entry = vec![0; 80];
    entry[40..48].copy_from_slice(&4096_u64.to_le_bytes());
    entry[60] = 18;
    entry.extend_from_slice(&name);
    let mut negotiate = vec![0; 62];
    negotiate[..8].copy_from_slice(&[65, 0, 3, 0, 0x11, 3, 2, 0]);
    negotiate[60..].copy_from_slice(&[128, 0]);
    let contexts = [
        &[1, 0, 38, 0, 0, 0, 0, 0, 1, 0, 32, 0, 1, 0][..],
        &[7; 32],
        &[0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 1, 0, 2, 0],
    ];
    negotiate.extend_from_slice(&[0, 0]);
    negotiate.extend_from_slice(&contexts.concat());
    let mut challenge = b"NTLMSSP\0\x02\0\0\0".to_vec();
    challenge.extend_from_slice(&[0, 0, 0, 0, 48, 0, 0, 0, 0x15, 0x82, 0x8a, 0xe2]);
    challenge.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    challenge.extend_from_slice(&[16, 0, 16, 0, 48, 0, 0, 0]);
    challenge.extend_from_slice(&[7, 0, 8, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    let len = u8::try_from(challenge.len()).expect("it is short");
    let token =
        [&[0xa1, len + 6, 0x30, len + 4, 0xa2, len + 2, 0x04, len][..], &challenge].concat();
    let token_len = u8::try_from(token.len()).expect("it is short");
    let bodies = [
        negotiate,
        [&[9, 0, 0, 0, 72, 0, token_len, 0][..], &token].concat(),
        [&[16, 0, 1, 0, 0, 0x80, 0, 0][..], &[0; 8]].concat(),
        [&[89, 0][..], &[0; 87]].concat(),
        [&[17, 0, 80, 0, 4, 0, 0, 0][..], &[0; 8], b"data"].concat(),
        [&[17, 0, 0, 0, 0, 0, 1, 0][..], &[0; 8]].concat(),
        [&[9, 0, 72, 0, 24, 0, 0, 0][..], &[1; 24]].concat(),
        [&[9, 0, 72, 0, 98, 0, 0, 0][..], &entry].concat(),
    ];
    bodies
        .into_iter()
        .map(|body| {
            let mut header = vec![0; 64];
            header[..6].copy_from_slice(b"\xFESMB\x40\0");
            header[16] = 1;
            let len = u32::try_from(header.len() + body.len()).expect("it is short");
            [&len.to_be_bytes()[..], &header, &body].concat()
        })
        .collect()
}
