//! Measures reading from a store, as `verify` reads: some threads, each a frame at a time, in order; nothing is done with the bytes.
//!
//! `read_rate URL [readers=N] [frame_kib=N] [connections=N] [delay_us=N]`; with a delay, the server of an `http://` URL is reached by
//! way of a proxy on this machine that holds every byte back for that long, each way; the server is an address then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fault_proxy::{Proxy, Script};
use ramdisk_agent::store::{self, Options, StoreUrl};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut url: StoreUrl =
        arguments.next().context("the first argument is a store URL")?.parse()?;
    let mut options = Options::default();
    let (mut readers, mut frame_len, mut delay) = (4, 4 << 20, Duration::ZERO);
    for option in arguments {
        let (name, value) = option.split_once('=').context("options are name=value")?;
        match name {
            "readers" => readers = value.parse()?,
            "frame_kib" => frame_len = value.parse::<u64>()? << 10,
            "connections" => {
                options.connections = value.parse()?;
                options.http_connections = options.connections;
            }
            "delay_us" => delay = Duration::from_micros(value.parse()?),
            _ => bail!("unknown option {name}"),
        }
    }
    // Reads by way of it until the end.
    let _proxy = match &mut url {
        StoreUrl::Http(http) if !delay.is_zero() => {
            let server = std::net::SocketAddr::new(http.host.parse()?, http.port());
            let proxy = Proxy::start(server, [])?;
            proxy.set_rest(Script { delay, ..Script::default() });
            (http.host, http.port) = ("127.0.0.1".to_owned(), Some(proxy.port()));
            Some(proxy)
        }
        _ => None,
    };

    let image = store::open_with(&url, &options).context("opening")?;
    let len = image.len_bytes();
    let next = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let read = || -> Result<()> {
            let mut frame = vec![0; usize::try_from(frame_len)?];
            loop {
                let at = next.fetch_add(frame_len, Ordering::Relaxed);
                if at >= len {
                    return Ok(());
                }
                let now = usize::try_from(frame_len.min(len - at))?;
                image.read_exact_at(&mut frame[..now], at)?;
            }
        };
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(read)).collect();
        threads.into_iter().try_for_each(|reader| match reader.join() {
            Ok(read) => read,
            Err(_) => bail!("a reader panicked"),
        })
    })
    .context("reading")?;
    let mebibytes = f64::from(u32::try_from(len >> 20)?);
    println!("{:.0} MiB/s", mebibytes / start.elapsed().as_secs_f64());
    Ok(())
}
