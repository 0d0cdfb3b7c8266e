//! Measures a store: writes an image of random bytes, commits, reads it again, publishes, removes it.
//!
//! `store_rate URL MIB [connections=N] [in_flight=N] [request_kib=N] [delay_us=N]`; with a delay, the NFS or SMB port of the URL is
//! reached by way of a proxy on this machine that holds every byte back for that long, each way; the server is an address then.
//! `IMPRINT_STORE_USER` and `IMPRINT_STORE_PASSWORD` are the user of an SMB share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_api::{SecretText, StoreAccess};
use anyhow::{Context as _, Result, bail};
use fault_proxy::{Proxy, Script};
use ramdisk_agent::store::{self, Access, Options, ReadAt as _, StoreUrl};
use uuid::Uuid;

/// As much as the engine hands over or asks for at a time.
const FRAME_BYTES: usize = 4 << 20;
const READERS: usize = 2;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut url: StoreUrl =
        arguments.next().context("the first argument is a store URL")?.parse()?;
    let mebibytes: usize =
        arguments.next().context("the second argument is a number of MiB")?.parse()?;
    let mut options = Options::default();
    let mut delay = Duration::ZERO;
    for option in arguments {
        let (name, value) = option.split_once('=').context("options are name=value")?;
        match name {
            "connections" => options.connections = value.parse()?,
            "in_flight" => options.requests_in_flight = value.parse()?,
            "request_kib" => options.request_bytes = value.parse::<u32>()? << 10,
            "delay_us" => delay = Duration::from_micros(value.parse()?),
            _ => bail!("unknown option {name}"),
        }
    }
    let place = match &mut url {
        StoreUrl::Nfs(nfs) => Some((&mut nfs.host, &mut nfs.port, 2049)),
        StoreUrl::Smb(smb) => Some((&mut smb.host, &mut smb.port, 445)),
        _ => None,
    };
    let proxy = match place.filter(|_| !delay.is_zero()) {
        Some((host, port, usual)) => {
            let server = std::net::SocketAddr::new(host.parse()?, port.unwrap_or(usual));
            let proxy = Proxy::start(server, [])?;
            proxy.set_rest(Script { delay, ..Script::default() });
            (*host, *port) = ("127.0.0.1".to_owned(), Some(proxy.port()));
            Some(proxy)
        }
        None => None,
    };
    if let Ok(user) = std::env::var("IMPRINT_STORE_USER") {
        let password = std::env::var("IMPRINT_STORE_PASSWORD").ok().map(SecretText::from);
        let access = StoreAccess { user: Some(user), password, ..StoreAccess::default() };
        options.access = Arc::new(Access::new(vec![access], std::slice::from_ref(&url))?);
    }

    let mut frame = vec![0; FRAME_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut frame);
    let total = mebibytes << 20;
    let rate = |since: Instant| {
        f64::from(u32::try_from(mebibytes).unwrap_or(u32::MAX)) / since.elapsed().as_secs_f64()
    };

    let start = Instant::now();
    let mut writer = store::create(&url, Uuid::new_v4(), &options).context("creating")?;
    for _ in 0..total / FRAME_BYTES {
        writer.append(&frame).context("writing")?;
    }
    let appended = rate(start);
    let committing = Instant::now();
    writer.commit().context("committing")?;
    let (commit, durable) = (committing.elapsed(), rate(start));

    let image = writer.reader().context("opening for reading")?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                let (image, frame) = (&image, &frame);
                scope.spawn(move || -> Result<()> {
                    let mut back = vec![0; FRAME_BYTES];
                    for index in (reader..total / FRAME_BYTES).step_by(READERS) {
                        image.read_exact_at(&mut back, u64::try_from(index * FRAME_BYTES)?)?;
                        if back != *frame {
                            bail!("frame {index} differs");
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read,
            Err(_) => bail!("a reader panicked"),
        })
    })
    .context("reading")?;
    let read = rate(start);
    // An SMB server removes no image that is open.
    drop(image);
    writer.publish().context("publishing")?;
    store::remove(&url, &options).context("removing")?;
    drop(proxy);
    println!(
        "append {appended:.0} MiB/s, with commit {durable:.0} MiB/s (last commit {:.2} s), read {read:.0} MiB/s",
        commit.as_secs_f64()
    );
    Ok(())
}
