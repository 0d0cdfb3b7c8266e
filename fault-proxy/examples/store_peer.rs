//! What the agent's stores are measured against, for `cargo xtask bench --only stores`.
//!
//! `store_peer nfs3 ADDRESS EXPORT NAME MIB [port=N] [mountport=N] [connections=N] [request_kib=N]`: plain `nfs3_client`, one request in
//! flight on each connection. Writes a file, commits, reads it twice, removes it; prints how many bytes a second it wrote and read.
//!
//! `store_peer delay ADDRESS:PORT MICROSECONDS`: a proxy that holds every byte back for so long each way. Prints its port; ends when
//! standard input does.

use std::io::Read as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fault_proxy::{Proxy, Script};
use nfs3_client::tokio::{TokioConnector, TokioIo};
use nfs3_client::{Nfs3Connection, Nfs3ConnectionBuilder};
use nfs3_types::nfs3::*;
use nfs3_types::rpc::{auth_unix, opaque_auth};
use nfs3_types::xdr_codec::Opaque;
use tokio::net::TcpStream;

/// So much of the file is different from the rest, as in the agent's own probe.
const NOISE_BYTES: usize = 32 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["delay", server, micros] => delay(server, micros),
        ["nfs3", host, export, name, mebibytes, ref options @ ..] => {
            nfs3(host, export, name, mebibytes.parse()?, options).await
        }
        _ => bail!("this is nfs3 or delay; the source has the words"),
    }
}

fn delay(server: &str, micros: &str) -> Result<()> {
    let proxy = Proxy::start(server.parse()?, [])?;
    let delay = Duration::from_micros(micros.parse()?);
    proxy.set_rest(Script { delay, ..Script::default() });
    println!("{}", proxy.port());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

type Connection = Nfs3Connection<TokioIo<TcpStream>>;

/// The part of a transfer that one connection does: every so many-th request.
#[derive(Clone)]
struct Part {
    file: nfs_fh3,
    first: u64,
    step: u64,
    len: u64,
    request: usize,
    noise: Arc<Vec<u8>>,
}

impl Part {
    fn requests(&self) -> impl Iterator<Item = (u64, u32)> + use<> {
        let (len, request) = (self.len, self.request as u64);
        let count = move |offset| u32::try_from(request.min(len - offset)).unwrap_or(u32::MAX);
        let step = usize::try_from(self.step).unwrap_or(usize::MAX);
        (self.first..len).step_by(step).map(move |offset| (offset, count(offset)))
    }

    fn wanted(&self, offset: u64, count: u32) -> &[u8] {
        let start = usize::try_from(offset).unwrap_or_default() % NOISE_BYTES;
        &self.noise[start..start + count as usize]
    }

    async fn write(self, mut connection: Connection) -> Result<Connection> {
        for (offset, count) in self.requests() {
            let data = Opaque::borrowed(self.wanted(offset, count));
            let (file, stable) = (self.file.clone(), stable_how::UNSTABLE);
            let result =
                connection.write(&WRITE3args { file, offset, count, stable, data }).await?;
            let Nfs3Result::Ok(done) = result else { bail!("WRITE failed: {result:?}") };
            anyhow::ensure!(done.count == count, "a short write");
        }
        Ok(connection)
    }

    async fn read(self, mut connection: Connection) -> Result<Connection> {
        for (offset, count) in self.requests() {
            let result =
                connection.read(&READ3args { file: self.file.clone(), offset, count }).await?;
            let Nfs3Result::Ok(done) = result else { bail!("READ failed") };
            anyhow::ensure!(*done.data == *self.wanted(offset, count), "other bytes at {offset}");
        }
        Ok(connection)
    }
}

async fn nfs3(
    host: &str,
    export: &str,
    name: &str,
    mebibytes: u64,
    options: &[&str],
) -> Result<()> {
    let (mut port, mut mount_port, mut connections, mut request) = (2049, 20_048, 1_u64, 1 << 20);
    for option in options {
        let (name, value) = option.split_once('=').context("options are name=value")?;
        match name {
            "port" => port = value.parse()?,
            "mountport" => mount_port = value.parse()?,
            "connections" => connections = value.parse()?,
            "request_kib" => request = value.parse::<usize>()? << 10,
            _ => bail!("unknown option {name}"),
        }
    }
    let mut open = Vec::new();
    for _ in 0..connections {
        let user = auth_unix {
            stamp: 1,
            machinename: Opaque::borrowed(b"peer"),
            uid: 0,
            gid: 0,
            gids: Vec::new(),
        };
        let builder = Nfs3ConnectionBuilder::new(TokioConnector, host, export)
            .nfs3_port(port)
            .mount_port(mount_port)
            .credential(opaque_auth::auth_unix(&user));
        open.push(builder.mount().await.context("mounting")?);
    }
    let place = || diropargs3 {
        dir: open[0].root_nfs_fh3(),
        name: filename3(Opaque::owned(name.as_bytes().to_vec())),
    };
    let (here, gone) = (place(), place());
    let how = createhow3::UNCHECKED(sattr3::default());
    let created = open[0].create(&CREATE3args { where_: here, how }).await?;
    let Nfs3Result::Ok(CREATE3resok { obj: Nfs3Option::Some(file), .. }) = created else {
        bail!("CREATE failed: {created:?}")
    };
    let len = mebibytes << 20;
    let mut noise = vec![0; NOISE_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut noise)?;
    let noise = Arc::new(noise);
    let part = |n: u64| Part {
        file: file.clone(),
        first: n * request as u64,
        step: connections * request as u64,
        len,
        request,
        noise: Arc::clone(&noise),
    };

    let start = Instant::now();
    let work = open.drain(..).zip(0..).map(|(c, n)| tokio::spawn(part(n).write(c)));
    let mut idle = all(work.collect()).await?;
    let commit = COMMIT3args { file: file.clone(), offset: 0, count: 0 };
    let Nfs3Result::Ok(_) = idle[0].commit(&commit).await? else { bail!("COMMIT failed") };
    let written = per_second(len, start);
    let mut read = 0;
    for _ in 0..2 {
        let start = Instant::now();
        let work = idle.drain(..).zip(0..).map(|(c, n)| tokio::spawn(part(n).read(c)));
        idle = all(work.collect()).await?;
        read = per_second(len, start).max(read);
    }
    let Nfs3Result::Ok(_) = idle[0].remove(&REMOVE3args { object: gone }).await? else {
        bail!("REMOVE failed")
    };
    println!("{written} {read}");
    Ok(())
}

async fn all(work: Vec<tokio::task::JoinHandle<Result<Connection>>>) -> Result<Vec<Connection>> {
    let mut done = Vec::new();
    for one in work {
        done.push(one.await??);
    }
    Ok(done)
}

/// Bytes a second since then.
fn per_second(len: u64, start: Instant) -> u64 {
    let micros = start.elapsed().as_micros().max(1);
    u64::try_from(u128::from(len) * 1_000_000 / micros).unwrap_or(u64::MAX)
}
