//! A small NFS server that misbehaves on demand, on the independent codec of `nfs3_types`.
//!
//! It keeps, per file, what would survive a restart and what would not, and it notes every byte that is written again
//! although a COMMIT had made it durable.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nfs3_types::mount::{fhandle3, mountres3, mountres3_ok};
use nfs3_types::nfs3::*;
use nfs3_types::rpc::*;
use nfs3_types::xdr_codec::{List, Opaque, Pack, Unpack, Void};

/// What the server does wrong. Counters count down to the event.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// After so many WRITEs (again and again) it restarts: unstable data are gone, the verifier is another.
    pub restart_every: Option<u32>,
    /// The same without another verifier: it lies.
    pub forget_silently_every: Option<u32>,
    /// It restarts when a COMMIT comes, before carrying it out, so often.
    pub restart_at_commit: u32,
    /// It writes half of what it gets.
    pub short_writes: bool,
    /// It reads half of what it is asked for.
    pub short_reads: bool,
    /// Everything is stable at once.
    pub file_sync: bool,
    /// It sends replies in fragments of this size.
    pub fragment_bytes: Option<usize>,
    /// So many replies are a length that cannot be.
    pub garbage_lengths: u32,
    /// It carries these out, but closes the connection instead of answering.
    pub lose_reply_of: Vec<NFS_PROGRAM>,
    /// It answers "try later" so often.
    pub jukebox: u32,
    /// It has no hard links, no exclusive create.
    pub no_link: bool,
    pub no_exclusive: bool,
    /// A new file gets the number of one that has no name any more, whose handle is stale then.
    pub reuses_numbers: bool,
    /// The first WRITE to the front of a file comes late, and finds other handles.
    pub late_front: bool,
    /// Answers to all WRITEs (from the n-th on).
    pub write_error: Option<(u32, nfsstat3)>,
    pub commit_error: Option<nfsstat3>,
    pub create_error: Option<nfsstat3>,
    /// Its limit for reads and writes.
    pub request_bytes: u32,
    /// Its folder never ends, and holds nothing but folders.
    pub endless_folder: bool,
}

#[derive(Debug, Clone, Default)]
struct File {
    id: u64,
    stable: Vec<u8>,
    view: Vec<u8>,
    /// Under which verifier each byte was written.
    written_under: Vec<u64>,
    /// How much of the front a client may take as durable: written and committed under one verifier.
    committed: usize,
    verifier: [u8; 8],
    /// How often it was changed: its time.
    changes: u32,
}

#[derive(Debug, Default)]
pub struct State {
    pub faults: Faults,
    names: BTreeMap<String, u64>,
    files: BTreeMap<u64, File>,
    next_id: u64,
    verifier: u64,
    /// Handles of an earlier generation are stale.
    pub generation: u64,
    writes: u32,
    pub commits: u32,
    pub committed_bytes_written_again: usize,
    pub bytes_written: usize,
}

#[derive(Clone)]
pub struct Fake {
    pub port: u16,
    pub state: Arc<Mutex<State>>,
}

const FOLDER: u64 = 1;
/// What no file in a folder is called.
const ELSEWHERE: &str = "../../elsewhere.img.zst";

impl State {
    fn set_len(&mut self, id: u64, len: usize) {
        let file = self.files.get_mut(&id).unwrap();
        file.view.resize(len, 0);
        file.stable.resize(len, 0);
        file.written_under.truncate(len);
        file.committed = file.committed.min(len);
        file.changes += 1;
    }
}

impl Fake {
    pub fn start(faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { faults, next_id: 2, verifier: 7, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, state) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { port, state }
    }

    pub fn url(&self, name: &str) -> ramdisk_agent::store::StoreUrl {
        format!("nfs://127.0.0.1:{0}/images/{name}?mountport={0}", self.port).parse().unwrap()
    }

    /// The same as an agent on another machine has it: what is claimed by the other URL is not claimed by this one.
    pub fn url_elsewhere(&self, name: &str) -> ramdisk_agent::store::StoreUrl {
        format!("nfs://localhost:{0}/images/{name}?mountport={0}", self.port).parse().unwrap()
    }

    /// A file as it would be after a restart.
    pub fn stable(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.names.get(name).map(|id| state.files[id].stable.clone())
    }

    pub fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().names.keys().cloned().collect()
    }

    pub fn put(&self, name: &str, data: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let id = state.next_id;
        state.next_id += 1;
        let file = File { id, stable: data.to_vec(), view: data.to_vec(), ..File::default() };
        state.files.insert(id, file);
        state.names.insert(name.to_owned(), id);
    }
}

/// What becomes of a reply.
enum Fate {
    Send(Vec<u8>),
    Garbage,
    Lose,
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    stream.set_nodelay(true).unwrap();
    loop {
        let mut mark = [0; 4];
        if stream.read_exact(&mut mark).is_err() {
            return;
        }
        let mark = fragment_header::from(mark);
        assert!(mark.eof(), "our client sends single fragments");
        let mut record = vec![0; usize::try_from(mark.fragment_length()).unwrap()];
        if stream.read_exact(&mut record).is_err() {
            return;
        }
        if is_late(&mut state.lock().unwrap().faults, &record) {
            std::thread::sleep(Duration::from_millis(200));
            state.lock().unwrap().generation += 1;
        }
        let (fate, fragment_bytes) = {
            let mut state = state.lock().unwrap();
            let fate = handle(&mut state, &record);
            (fate, state.faults.fragment_bytes.unwrap_or(usize::MAX))
        };
        let sent = match fate {
            Fate::Send(reply) => {
                let count = reply.len().div_ceil(fragment_bytes);
                let mut out = Vec::new();
                for (index, part) in reply.chunks(fragment_bytes).enumerate() {
                    let len = u32::try_from(part.len()).unwrap();
                    fragment_header::new(len, index + 1 == count).pack(&mut out).unwrap();
                    out.extend_from_slice(part);
                }
                stream.write_all(&out)
            }
            Fate::Garbage => stream.write_all(&[0x7F, 0xFF, 0xFF, 0xFF, 1, 2, 3]),
            Fate::Lose => stream.shutdown(Shutdown::Both),
        };
        if sent.is_err() {
            return;
        }
    }
}

fn is_late(faults: &mut Faults, record: &[u8]) -> bool {
    let mut rest = record;
    let (message, _) = rpc_msg::unpack(&mut rest).unwrap();
    let msg_body::CALL(call) = message.body else { panic!("not a call") };
    let is_write =
        call.prog == nfs3_types::nfs3::PROGRAM && call.proc == NFS_PROGRAM::NFSPROC3_WRITE as u32;
    if !faults.late_front || !is_write || get::<WRITE3args<'_>>(&mut rest).offset > 0 {
        return false;
    }
    faults.late_front = false;
    true
}

fn handle(state: &mut State, record: &[u8]) -> Fate {
    let mut rest = record;
    let (message, _) = rpc_msg::unpack(&mut rest).unwrap();
    let msg_body::CALL(call) = message.body else { panic!("not a call") };
    let mut reply = Vec::new();
    let verf = opaque_auth::default();
    let accepted = accepted_reply { verf, reply_data: accept_stat_data::SUCCESS };
    rpc_msg { xid: message.xid, body: msg_body::REPLY(reply_body::MSG_ACCEPTED(accepted)) }
        .pack(&mut reply)
        .unwrap();
    if call.prog == nfs3_types::mount::PROGRAM {
        assert_eq!(call.proc, 1, "MNT");
        let (path, _) = Opaque::unpack(&mut rest).unwrap();
        let result = if &*path == b"/images" {
            let data = fh(state, FOLDER).data;
            mountres3::Ok(mountres3_ok { fhandle: fhandle3(data), auth_flavors: vec![1] })
        } else {
            mountres3::Err(nfs3_types::mount::mountstat3::MNT3ERR_NOENT)
        };
        result.pack(&mut reply).unwrap();
        return Fate::Send(reply);
    }
    let procedure = NFS_PROGRAM::try_from(call.proc).unwrap();
    if state.faults.garbage_lengths > 0 && procedure != NFS_PROGRAM::NFSPROC3_FSINFO {
        state.faults.garbage_lengths -= 1;
        return Fate::Garbage;
    }
    answer(state, procedure, &mut rest, &mut reply);
    assert!(rest.is_empty(), "{procedure}: {} bytes left over", rest.len());
    if let Some(at) = state.faults.lose_reply_of.iter().position(|&lost| lost == procedure) {
        state.faults.lose_reply_of.remove(at);
        return Fate::Lose;
    }
    Fate::Send(reply)
}

fn get<T: Unpack>(rest: &mut &[u8]) -> T {
    T::unpack(rest).unwrap().0
}

fn put<T: Pack, E: Pack>(reply: &mut Vec<u8>, result: Result<T, (nfsstat3, E)>) {
    match result {
        Ok(value) => Nfs3Result::<T, E>::Ok(value).pack(reply),
        Err(error) => Nfs3Result::<T, E>::Err(error).pack(reply),
    }
    .unwrap();
}

fn fh(state: &State, id: u64) -> nfs_fh3 {
    let mut data = id.to_be_bytes().to_vec();
    data.extend_from_slice(&state.generation.to_be_bytes());
    nfs_fh3 { data: Opaque::owned(data) }
}

fn id_of(state: &State, handle: &nfs_fh3) -> Result<u64, nfsstat3> {
    let (id, generation) = handle.data.split_at(8);
    let generation = u64::from_be_bytes(generation.try_into().unwrap());
    let id = u64::from_be_bytes(id.try_into().unwrap());
    let known = id == FOLDER || state.files.contains_key(&id);
    if known && generation == state.generation { Ok(id) } else { Err(nfsstat3::NFS3ERR_STALE) }
}

fn attributes(state: &State, id: u64) -> fattr3 {
    let (type_, size, changes) = match state.files.get(&id) {
        Some(file) => (ftype3::NF3REG, file.view.len(), file.changes),
        None => (ftype3::NF3DIR, 4096, 0),
    };
    let time = nfstime3 { seconds: 1, nseconds: changes };
    fattr3 {
        type_,
        mode: 0o640,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: size as u64,
        used: 0,
        rdev: specdata3::default(),
        fsid: 5,
        fileid: id,
        atime: time,
        mtime: time,
        ctime: time,
    }
}

fn text(name: &filename3<'_>) -> String {
    String::from_utf8(name.as_ref().to_vec()).unwrap()
}

fn restart(state: &mut State, honest: bool) {
    state.verifier += u64::from(honest);
    for file in state.files.values_mut() {
        file.view = file.stable.clone();
    }
}

fn due(every: Option<u32>, count: u32) -> bool {
    every.is_some_and(|every| count.is_multiple_of(every))
}

fn answer(state: &mut State, procedure: NFS_PROGRAM, rest: &mut &[u8], reply: &mut Vec<u8>) {
    let jukebox = state.faults.jukebox > 0;
    state.faults.jukebox = state.faults.jukebox.saturating_sub(1);
    match procedure {
        NFS_PROGRAM::NFSPROC3_FSINFO => {
            let _: FSINFO3args = get(rest);
            let size = match state.faults.request_bytes {
                0 => 64 << 10,
                size => size,
            };
            put::<_, Void>(
                reply,
                Ok(FSINFO3resok {
                    obj_attributes: Nfs3Option::None,
                    rtmax: size,
                    rtpref: size,
                    rtmult: 1,
                    wtmax: size,
                    wtpref: size,
                    wtmult: 1,
                    dtpref: 4096,
                    maxfilesize: u64::MAX,
                    time_delta: nfstime3::default(),
                    properties: 0,
                }),
            );
        }
        NFS_PROGRAM::NFSPROC3_GETATTR => {
            let args: GETATTR3args = get(rest);
            let result = id_of(state, &args.object)
                .map(|id| GETATTR3resok { obj_attributes: attributes(state, id) })
                .map_err(|status| (status, Void));
            put(reply, result);
        }
        NFS_PROGRAM::NFSPROC3_SETATTR => {
            let args: SETATTR3args = get(rest);
            let result = id_of(state, &args.object)
                .map(|id| {
                    if let Nfs3Option::Some(size) = args.new_attributes.size {
                        state.set_len(id, usize::try_from(size).unwrap());
                    }
                    SETATTR3resok { obj_wcc: wcc_data::default() }
                })
                .map_err(|status| (status, SETATTR3resfail::default()));
            put(reply, result);
        }
        NFS_PROGRAM::NFSPROC3_LOOKUP => {
            // Names of the arguments are generic over a lifetime that only their owner needs.
            let handle: nfs_fh3 = get(rest);
            let name: filename3<'static> = get(rest);
            let result = id_of(state, &handle)
                .and_then(|_| state.names.get(&text(&name)).copied().ok_or(nfsstat3::NFS3ERR_NOENT))
                .map(|id| LOOKUP3resok {
                    object: fh(state, id),
                    obj_attributes: Nfs3Option::Some(attributes(state, id)),
                    dir_attributes: Nfs3Option::None,
                })
                .map_err(|status| (status, LOOKUP3resfail::default()));
            put(reply, result);
        }
        NFS_PROGRAM::NFSPROC3_CREATE => {
            let _: nfs_fh3 = get(rest);
            let name: filename3<'static> = get(rest);
            let how: createhow3 = get(rest);
            put(
                reply,
                create(state, &text(&name), &how).map_err(|s| (s, CREATE3resfail::default())),
            );
        }
        NFS_PROGRAM::NFSPROC3_WRITE => {
            let args: WRITE3args<'static> = get(rest);
            let result = if jukebox { Err(nfsstat3::NFS3ERR_JUKEBOX) } else { write(state, &args) };
            put(reply, result.map_err(|status| (status, WRITE3resfail::default())));
        }
        NFS_PROGRAM::NFSPROC3_COMMIT => {
            let args: COMMIT3args = get(rest);
            let result =
                if jukebox { Err(nfsstat3::NFS3ERR_JUKEBOX) } else { commit(state, &args) };
            put(reply, result.map_err(|s| (s, COMMIT3resfail { file_wcc: wcc_data::default() })));
        }
        NFS_PROGRAM::NFSPROC3_READ => {
            let args: READ3args = get(rest);
            let result = if jukebox { Err(nfsstat3::NFS3ERR_JUKEBOX) } else { read(state, &args) };
            put(reply, result.map_err(|status| (status, READ3resfail::default())));
        }
        NFS_PROGRAM::NFSPROC3_REMOVE => {
            let _: nfs_fh3 = get(rest);
            let name: filename3<'static> = get(rest);
            let result = state.names.remove(&text(&name)).ok_or(nfsstat3::NFS3ERR_NOENT);
            let result = result.map(|_| REMOVE3resok { dir_wcc: wcc_data::default() });
            put(reply, result.map_err(|status| (status, REMOVE3resfail::default())));
        }
        NFS_PROGRAM::NFSPROC3_LINK => {
            let file: nfs_fh3 = get(rest);
            let _: nfs_fh3 = get(rest);
            let name: filename3<'static> = get(rest);
            let result = if state.faults.no_link {
                Err(nfsstat3::NFS3ERR_NOTSUPP)
            } else if state.names.contains_key(&text(&name)) {
                Err(nfsstat3::NFS3ERR_EXIST)
            } else {
                id_of(state, &file).map(|id| {
                    state.names.insert(text(&name), id);
                })
            };
            let fail = LINK3resfail {
                file_attributes: Nfs3Option::None,
                linkdir_wcc: wcc_data::default(),
            };
            let result = result.map(|()| LINK3resok {
                file_attributes: Nfs3Option::None,
                linkdir_wcc: wcc_data::default(),
            });
            put(reply, result.map_err(|status| (status, fail)));
        }
        NFS_PROGRAM::NFSPROC3_RENAME => {
            let _: nfs_fh3 = get(rest);
            let from: filename3<'static> = get(rest);
            let _: nfs_fh3 = get(rest);
            let to: filename3<'static> = get(rest);
            let result = state.names.remove(&text(&from)).ok_or(nfsstat3::NFS3ERR_NOENT);
            let result = result.map(|id| {
                state.names.insert(text(&to), id);
                RENAME3resok { fromdir_wcc: wcc_data::default(), todir_wcc: wcc_data::default() }
            });
            put(reply, result.map_err(|status| (status, RENAME3resfail::default())));
        }
        NFS_PROGRAM::NFSPROC3_READDIRPLUS => {
            let args: READDIRPLUS3args = get(rest);
            put::<_, READDIRPLUS3resfail>(reply, Ok(folder_page(state, args.cookie)));
        }
        other => panic!("the client is not expected to call {other}"),
    }
}

/// All files, and a name that leads elsewhere; or one more page of a folder that has no end.
fn folder_page(state: &State, cookie: u64) -> READDIRPLUS3resok<'static> {
    let entry = |name: &str, id: u64, cookie: u64| entryplus3 {
        fileid: id,
        name: filename3(Opaque::owned(name.as_bytes().to_vec())),
        cookie,
        name_attributes: Nfs3Option::Some(attributes(state, id)),
        name_handle: Nfs3Option::None,
    };
    let entries = if state.faults.endless_folder {
        (1..100).map(|n| entry(&format!("folder {n}"), FOLDER, cookie.wrapping_add(n))).collect()
    } else {
        let mut files: Vec<_> =
            state.names.iter().map(|(name, id)| entry(name, *id, *id)).collect();
        files.extend(state.names.values().map(|id| entry(ELSEWHERE, *id, *id)));
        files
    };
    let eof = !state.faults.endless_folder;
    READDIRPLUS3resok {
        dir_attributes: Nfs3Option::None,
        cookieverf: cookieverf3::default(),
        reply: dirlistplus3 { entries: List(entries), eof },
    }
}

fn create(state: &mut State, name: &str, how: &createhow3) -> Result<CREATE3resok, nfsstat3> {
    if let Some(status) = state.faults.create_error {
        return Err(status);
    }
    let verifier = match how {
        createhow3::EXCLUSIVE(_) if state.faults.no_exclusive => {
            return Err(nfsstat3::NFS3ERR_NOTSUPP);
        }
        createhow3::EXCLUSIVE(verifier) => Some(verifier.0),
        _ => None,
    };
    let id = match state.names.get(name) {
        Some(id) if verifier.is_some_and(|verifier| state.files[id].verifier == verifier) => *id,
        Some(_) => return Err(nfsstat3::NFS3ERR_EXIST),
        None => {
            let nameless = |id: &u64| !state.names.values().any(|named| named == id);
            let free = state.files.keys().copied().find(nameless);
            let id = match free.filter(|_| state.faults.reuses_numbers) {
                Some(id) => {
                    state.generation += 1;
                    id
                }
                None => {
                    state.next_id += 1;
                    state.next_id - 1
                }
            };
            let verifier = verifier.unwrap_or_default();
            state.files.insert(id, File { id, verifier, ..File::default() });
            state.names.insert(name.to_owned(), id);
            id
        }
    };
    Ok(CREATE3resok {
        obj: Nfs3Option::Some(fh(state, id)),
        obj_attributes: Nfs3Option::None,
        dir_wcc: wcc_data::default(),
    })
}

fn write(state: &mut State, args: &WRITE3args<'_>) -> Result<WRITE3resok, nfsstat3> {
    let id = id_of(state, &args.file)?;
    assert_eq!(args.data.len(), usize::try_from(args.count).unwrap());
    state.writes += 1;
    if let Some((_, status)) = state.faults.write_error.filter(|(from, _)| state.writes >= *from) {
        return Err(status);
    }
    if due(state.faults.restart_every, state.writes) {
        restart(state, true);
    }
    if due(state.faults.forget_silently_every, state.writes) {
        restart(state, false);
    }
    let (short, stable) = (state.faults.short_writes, state.faults.file_sync);
    let verifier = state.verifier;
    let file = state.files.get_mut(&id).unwrap();
    assert_eq!(file.id, id);
    file.changes += 1;
    let offset = usize::try_from(args.offset).unwrap();
    let count = if short { args.data.len().div_ceil(2) } else { args.data.len() };
    state.bytes_written += count;
    state.committed_bytes_written_again += file.committed.saturating_sub(offset).min(count);
    let end = file.written_under.len().max(offset + count);
    file.written_under.resize(end, 0);
    file.written_under[offset..offset + count].fill(verifier);
    let mut into = vec![&mut file.view];
    if stable {
        into.push(&mut file.stable);
    }
    for bytes in into {
        let end = bytes.len().max(offset + count);
        bytes.resize(end, 0);
        bytes[offset..offset + count].copy_from_slice(&args.data[..count]);
    }
    Ok(WRITE3resok {
        file_wcc: wcc_data::default(),
        count: u32::try_from(count).unwrap(),
        committed: if stable { stable_how::FILE_SYNC } else { stable_how::UNSTABLE },
        verf: writeverf3(state.verifier.to_be_bytes()),
    })
}

fn commit(state: &mut State, args: &COMMIT3args) -> Result<COMMIT3resok, nfsstat3> {
    let id = id_of(state, &args.file)?;
    if let Some(status) = state.faults.commit_error {
        return Err(status);
    }
    state.commits += 1;
    if state.faults.restart_at_commit > 0 {
        state.faults.restart_at_commit -= 1;
        restart(state, true);
    }
    let before = state.verifier;
    let file = state.files.get_mut(&id).unwrap();
    file.stable = file.view.clone();
    let end = usize::try_from(args.offset).unwrap() + usize::try_from(args.count).unwrap();
    while file.committed < end && file.written_under.get(file.committed) == Some(&before) {
        file.committed += 1;
    }
    Ok(COMMIT3resok { file_wcc: wcc_data::default(), verf: writeverf3(before.to_be_bytes()) })
}

fn read(state: &State, args: &READ3args) -> Result<READ3resok<'static>, nfsstat3> {
    let id = id_of(state, &args.file)?;
    let view = &state.files[&id].view;
    let start = usize::try_from(args.offset).unwrap().min(view.len());
    let mut count = usize::try_from(args.count).unwrap().min(view.len() - start);
    if state.faults.short_reads {
        count = count.div_ceil(2);
    }
    Ok(READ3resok {
        file_attributes: Nfs3Option::Some(attributes(state, id)),
        count: u32::try_from(count).unwrap(),
        eof: start + count == view.len(),
        data: Opaque::owned(view[start..start + count].to_vec()),
    })
}
