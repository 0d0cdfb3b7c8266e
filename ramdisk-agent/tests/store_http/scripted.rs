//! A web server that does what a test tells it: one file, and for each request a [`Reply`].

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ramdisk_agent::store::StoreUrl;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The how many-th it is, from 0.
    pub number: usize,
    pub line: String,
    pub fields: Vec<(String, String)>,
    /// How long its body was.
    pub body_len: u64,
}

impl Asked {
    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// First and last byte of the range that was asked for.
    pub fn range(&self) -> (usize, usize) {
        let range = self.field("range").expect("every request is for a range");
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    }
}

/// What to do about a request.
pub enum Reply {
    /// The range that was asked for.
    Range,
    /// The range, and after so many bytes of head and body together the connection ends.
    CutAt(usize),
    /// The range, and after so many bytes of head and body nothing more comes.
    SilentAt(usize),
    /// The range as 206, but with these fields in place of Content-Range, Content-Length and ETag, and this body.
    Fields(Vec<String>, Vec<u8>),
    /// Exactly these bytes; then the connection is closed.
    Raw(Vec<u8>),
    /// A status with fields and an empty body.
    Status(u16, Vec<String>),
    /// A status with this document.
    Json(u16, String),
    /// Nothing, for so long as the client waits.
    Silence,
}

/// The server; it ends with it.
pub struct Scripted {
    address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    stop: Arc<TcpListener>,
}

pub const ETAG: &str = "\"v1\"";

impl Scripted {
    /// Serves `data` as every path.
    pub fn start(data: Vec<u8>, script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (data, script) = (Arc::new(data), Arc::new(script));
        let (accepting, seen) = (Arc::clone(&listener), Arc::clone(&asked));
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        std::thread::spawn(move || {
            // Ends when the test shuts the listener down.
            while let Ok((stream, _)) = accepting.accept() {
                accepted.fetch_add(1, Ordering::SeqCst);
                let (data, script, seen) =
                    (Arc::clone(&data), Arc::clone(&script), Arc::clone(&seen));
                std::thread::spawn(move || serve(&stream, &data, &*script, &seen));
            }
        });
        Self { address, asked, connections, stop: listener }
    }

    /// A URL of this server; the path begins with a slash.
    pub fn url(&self, path: &str) -> StoreUrl {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        // Wakes the thread that accepts; connections end with their clients.
        let _ = rustix::net::shutdown(&*self.stop, rustix::net::Shutdown::Both);
    }
}

fn serve(
    stream: &TcpStream,
    data: &[u8],
    script: &(dyn Fn(&Asked) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Asked>>,
) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line == "\r\n" => break,
                Ok(_) => lines.push(line.trim_end().to_owned()),
            }
        }
        let fields = lines[1..]
            .iter()
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut asked = Asked { number: 0, line: lines[0].clone(), fields, body_len: 0 };
        let body_len: u64 = asked.field("content-length").map_or(0, |len| len.parse().unwrap());
        asked.body_len =
            std::io::copy(&mut (&mut reader).take(body_len), &mut std::io::sink()).unwrap_or(0);
        if asked.body_len < body_len {
            return;
        }
        let asked = {
            let mut seen = seen.lock().unwrap();
            asked.number = seen.len();
            seen.push(asked.clone());
            asked
        };
        if !answer(stream, data, &asked, script(&asked)) {
            // The other side may be gone.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Whether the connection goes on.
fn answer(mut stream: &TcpStream, data: &[u8], asked: &Asked, reply: Reply) -> bool {
    let range = || {
        let (first, last) = asked.range();
        let body = &data[first..=last];
        let fields = format!(
            "Content-Range: bytes {first}-{last}/{}\r\nContent-Length: {}\r\nETag: {ETAG}",
            data.len(),
            body.len()
        );
        [format!("HTTP/1.1 206 Partial Content\r\n{fields}\r\n\r\n").as_bytes(), body].concat()
    };
    match reply {
        Reply::Range => stream.write_all(&range()).is_ok(),
        Reply::CutAt(at) => {
            let all = range();
            let _ = stream.write_all(&all[..at.min(all.len())]);
            false
        }
        Reply::SilentAt(at) => {
            let all = range();
            let _ = stream.write_all(&all[..at.min(all.len())]);
            be_silent(stream);
            false
        }
        Reply::Fields(fields, body) => {
            let head = format!("HTTP/1.1 206 Partial Content\r\n{}\r\n\r\n", fields.join("\r\n"));
            stream.write_all(&[head.as_bytes(), &body].concat()).is_ok()
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(&bytes);
            false
        }
        Reply::Status(status, fields) => {
            let head = format!("HTTP/1.1 {status} Told\r\nContent-Length: 0\r\n");
            let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
            stream.write_all(format!("{head}{fields}\r\n").as_bytes()).is_ok()
        }
        Reply::Json(status, text) => {
            let head = format!("HTTP/1.1 {status} Told\r\nContent-Length: {}\r\n", text.len());
            stream.write_all(format!("{head}\r\n{text}").as_bytes()).is_ok()
        }
        Reply::Silence => {
            be_silent(stream);
            false
        }
    }
}

/// Until the client gives up.
fn be_silent(mut stream: &TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let _ = stream.read(&mut [0]);
}
