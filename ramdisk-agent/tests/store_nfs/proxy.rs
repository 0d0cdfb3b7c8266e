//! A TCP proxy that delays, cuts and silences connections.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// Ends a connection after exactly this many bytes of one way.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub way: Way,
    pub after_bytes: usize,
}

#[derive(Debug, Default)]
struct Plan {
    cuts: Mutex<VecDeque<Cut>>,
    connections: AtomicUsize,
    silent: AtomicBool,
}

/// A proxy before one port; its threads end with their connections.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    plan: Arc<Plan>,
}

impl Proxy {
    /// Each new connection takes the next of `cuts`; without one it lives.
    pub fn start(server_port: u16, delay: Duration, cuts: impl IntoIterator<Item = Cut>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let plan =
            Arc::new(Plan { cuts: Mutex::new(cuts.into_iter().collect()), ..Plan::default() });
        let shared = Arc::clone(&plan);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                // A server that is down: the client sees its connection end.
                let Ok(server) = TcpStream::connect(("127.0.0.1", server_port)) else { continue };
                shared.connections.fetch_add(1, Ordering::SeqCst);
                let cut = shared.cuts.lock().unwrap().pop_front();
                for (way, from, to) in
                    [(Way::ToServer, &client, &server), (Way::ToClient, &server, &client)]
                {
                    from.set_nodelay(true).unwrap();
                    let limit = cut.filter(|cut| cut.way == way).map(|cut| cut.after_bytes);
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (sender, receiver) = channel();
                    let plan = Arc::clone(&shared);
                    std::thread::spawn(move || take(&from, &sender, delay));
                    std::thread::spawn(move || give(&receiver, &to, limit, &plan));
                }
            }
        });
        Self { port, plan }
    }

    /// From now on nothing is forwarded on any connection, and none is closed.
    pub fn set_silent(&self, silent: bool) {
        self.plan.silent.store(silent, Ordering::SeqCst);
    }

    pub fn connections(&self) -> usize {
        self.plan.connections.load(Ordering::SeqCst)
    }

    pub fn cuts_left(&self) -> usize {
        self.plan.cuts.lock().unwrap().len()
    }
}

fn take(mut from: &TcpStream, to: &Sender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn give(
    from: &Receiver<(Instant, Vec<u8>)>,
    mut to: &TcpStream,
    mut limit: Option<usize>,
    plan: &Plan,
) {
    // Each clone of the sockets is shut down here, so both ways end together.
    let silent = loop {
        let Ok((due, bytes)) = from.recv() else { break false };
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if plan.silent.load(Ordering::SeqCst) {
            break true;
        }
        let count = limit.map_or(bytes.len(), |left| left.min(bytes.len()));
        if to.write_all(&bytes[..count]).is_err() {
            break false;
        }
        limit = limit.map(|left| left - count);
        if limit == Some(0) {
            break false;
        }
    };
    if silent {
        // Swallow everything, for as long as somebody sends.
        while from.recv().is_ok() {}
    }
    let _ = to.shutdown(Shutdown::Both);
}
