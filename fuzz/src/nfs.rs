//! Replies of NFS servers: ONC RPC, MOUNT and NFS version 3.

/// Reads the input as records, as a reply, and as the results of every procedure.
pub fn reply(data: &[u8]) {
    ramdisk_agent::store::read_any_nfs(data);
}

/// The bit of a record mark that says "last fragment".
const LAST: u32 = 1 << 31;

/// Results and refusals of each kind as records, by hand after RFC 5531 and RFC 1813; the last one in two fragments.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // Regular, mode, links, uid, gid; size, used, device, file system, number; three times.
    let attributes = [
        &[1, 0o644, 1, 0, 0][..],
        &[0, 4096, 0, 4096, 0, 0, 0, 7, 0, 42],
        &[1_700_000_000, 5, 1_700_000_001, 6, 1_700_000_002, 7],
    ]
    .concat();
    let with = |parts: &[&[u32]]| parts.concat();
    let some = with(&[&[1], &attributes]);
    let wcc = with(&[&[1, 0, 4096, 1, 2, 3, 4], &some]);
    let handle = [8, 0x0102_0304, 0x0506_0708];
    let name = [9, u32::from_be_bytes(*b"x.im"), u32::from_be_bytes(*b"g.zs"), 0x7400_0000];
    let data = [5, u32::from_be_bytes(*b"hell"), 0x6f00_0000];
    let verifier = [0xdead_beef, 7];
    let results = [
        with(&[&[0], &attributes]),
        with(&[&[0], &handle, &some, &some]),
        with(&[&[0, 1], &handle, &some, &wcc]),
        with(&[&[0], &some, &[5, 1], &data]),
        with(&[&[0], &wcc, &[1 << 20, 2], &verifier]),
        with(&[&[0], &wcc, &verifier]),
        with(&[&[0], &some, &[1 << 20; 2], &[4096, 1 << 20, 1 << 20, 4096, 1 << 20]]),
        with(&[&[0], &some, &[0, 1 << 30, 0, 1 << 29, 0, 1 << 28, 0, 9, 0, 8, 0, 7, 0]]),
        with(&[&[0], &some, &verifier, &[1, 0, 42], &name, &[0, 3], &some, &[1], &handle, &[0, 1]]),
        // MNT, EXPORT, GETPORT; no entry, stale, later.
        with(&[&[0], &handle, &[2, 1, 390_003]]),
        with(&[&[1], &name, &[1], &name, &[0, 0]]),
        vec![2049],
        vec![2, 0],
        vec![70, 0],
        vec![10_008, 0],
    ];
    // Refused: authentication, program, version, procedure, arguments, system.
    let refusals = [
        vec![1, 1, 5],
        vec![0, 0, 0, 1],
        vec![0, 0, 0, 2, 2, 3],
        vec![0, 0, 0, 3],
        vec![0, 0, 0, 4],
        vec![0, 0, 0, 5],
    ];
    let bodies = results
        .iter()
        .map(|results| with(&[&[7, 1, 0, 0, 0, 0], results]))
        .chain(refusals.iter().map(|refusal| with(&[&[7, 1], refusal])));
    let bytes =
        |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let len = |words: &[u32]| u32::try_from(words.len() * 4).expect("it is short");
    let mut seeds: Vec<Vec<u8>> =
        bodies.map(|body| bytes(&with(&[&[len(&body) | LAST], &body]))).collect();
    let [first, second] = [&[7, 1, 0, 0, 0][..], &[0, 0, 0]];
    seeds.push(bytes(&with(&[&[len(first)], first, &[len(second) | LAST], second])));
    seeds
}
