//! The agent's log: short lines on every console of the kernel, and a bounded backlog for the controller.
//!
//! Whoever says something is never held up: a slow serial line or an absent controller costs lines, which are counted, and
//! nothing else. Lines are cleaned of control characters, since some of them come from other programs.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Lines that may wait for the consoles.
const CONSOLE_QUEUE: usize = 256;
/// Lines kept for the controller.
const BACKLOG_LINES: usize = 2000;
/// A line's longest form, in bytes.
pub const MAX_LINE_LEN: usize = 1000;
/// How long one line may take on one console.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(2);

/// A handle to the log; clones write to the same one.
#[derive(Debug, Clone)]
pub struct Log {
    screen: SyncSender<Item>,
    backlog: Arc<Mutex<Backlog>>,
}

enum Item {
    Line(String),
    Flush(SyncSender<()>),
}

#[derive(Debug, Default)]
struct Backlog {
    lines: VecDeque<String>,
    dropped: u64,
}

impl Log {
    /// A log on all consoles that the kernel uses (`console=`), or on the kernel's own log if there is none.
    #[must_use]
    pub fn on_consoles() -> Self {
        Self::to(
            open_consoles()
                .into_iter()
                .map(|f| Box::new(Console(f)) as Box<dyn Write + Send>)
                .collect(),
        )
    }

    /// A log to the given writers.
    #[must_use]
    pub fn to(writers: Vec<Box<dyn Write + Send>>) -> Self {
        let (screen, items) = sync_channel(CONSOLE_QUEUE);
        std::thread::spawn(move || show(&items, writers));
        Self { screen, backlog: Arc::default() }
    }

    /// Says one line.
    pub fn say(&self, text: impl AsRef<str>) {
        let line = clean(text.as_ref());
        // A full queue means a console slower than the log: the line is still in the backlog.
        let _: Result<(), TrySendError<Item>> = self.screen.try_send(Item::Line(line.clone()));
        let mut backlog = self.lock();
        if backlog.lines.len() >= BACKLOG_LINES {
            backlog.lines.pop_front();
            backlog.dropped = backlog.dropped.saturating_add(1);
        }
        backlog.lines.push_back(line);
    }

    /// Takes lines for the controller, up to about `max_len` bytes; `None` if there are none.
    #[must_use]
    pub fn take(&self, max_len: usize) -> Option<String> {
        let mut backlog = self.lock();
        let mut text = String::new();
        if backlog.dropped > 0 {
            text = format!("({} earlier lines were left out)\n", backlog.dropped);
            backlog.dropped = 0;
        }
        while text.len() < max_len
            && let Some(line) = backlog.lines.pop_front()
        {
            text.push_str(&line);
            text.push('\n');
        }
        (!text.is_empty()).then_some(text)
    }

    /// Puts text back that [`Log::take`] gave and that could not be sent.
    pub fn put_back(&self, text: &str) {
        let mut backlog = self.lock();
        for line in text.lines().rev() {
            if backlog.lines.len() < BACKLOG_LINES {
                backlog.lines.push_front(line.to_owned());
            } else {
                backlog.dropped = backlog.dropped.saturating_add(1);
            }
        }
    }

    /// Waits until the consoles have shown everything, `limit` at most.
    pub fn flush(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let (done, wait) = sync_channel(1);
        while Instant::now() < until {
            match self.screen.try_send(Item::Flush(done.clone())) {
                Ok(()) => {
                    // A console that takes longer than the limit is not waited for.
                    let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
                    return;
                }
                Err(TrySendError::Full(_)) => std::thread::sleep(Duration::from_millis(20)),
                Err(TrySendError::Disconnected(_)) => return,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line without control characters, cut to [`MAX_LINE_LEN`].
fn clean(text: &str) -> String {
    let mut line: String =
        text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() > MAX_LINE_LEN {
        let mut end = MAX_LINE_LEN;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
        line.push('…');
    }
    line
}

fn show(items: &Receiver<Item>, mut writers: Vec<Box<dyn Write + Send>>) {
    loop {
        match items.recv_timeout(Duration::from_secs(3600)) {
            Ok(Item::Line(line)) => {
                let line = format!("imprint: {line}\n");
                for writer in &mut writers {
                    // A console that fails must not silence the others, and there is nowhere else to say so.
                    let _ = writer.write_all(line.as_bytes());
                }
            }
            Ok(Item::Flush(done)) => {
                // Nobody waits any more: fine.
                let _ = done.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn open_consoles() -> Vec<File> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut files: Vec<File> = active
        .split_whitespace()
        .filter_map(|name| open_console(&Path::new("/dev").join(name)).ok())
        .collect();
    if files.is_empty() {
        files.extend(
            ["/dev/console", "/dev/kmsg"].iter().find_map(|p| open_console(Path::new(p)).ok()),
        );
    }
    files
}

fn open_console(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK the open of a serial line could wait for a modem.
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

/// A terminal that is given [`CONSOLE_PATIENCE`] per line and is otherwise left behind.
struct Console(File);

impl Write for Console {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let until = Instant::now() + CONSOLE_PATIENCE;
        loop {
            match self.0.write(buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut fds, PollTimeout::from(100_u8))?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cleaned_and_cut() {
        assert_eq!(clean("a\x1b[2Jb\tc\r\n"), "a [2Jb c");
        let long = clean(&"ü".repeat(5000));
        assert!(long.len() <= MAX_LINE_LEN + 3 && long.ends_with('…'));
    }

    #[test]
    fn the_backlog_is_bounded_and_says_what_is_missing() {
        let log = Log::to(Vec::new());
        for n in 0..BACKLOG_LINES + 7 {
            log.say(format!("line {n}"));
        }
        let text = log.take(usize::MAX).unwrap();
        assert!(text.starts_with("(7 earlier lines were left out)\nline 7\n"), "{}", &text[..80]);
        assert!(log.take(100).is_none());
        log.put_back("one\ntwo\n");
        assert_eq!(log.take(100).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn every_console_gets_every_line() {
        let (reader, writer) = io::pipe().unwrap();
        let log = Log::to(vec![Box::new(writer)]);
        log.say("hello");
        log.flush(Duration::from_secs(10));
        drop(log);
        assert_eq!(io::read_to_string(reader).unwrap(), "imprint: hello\n");
    }
}
