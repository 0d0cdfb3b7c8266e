//! Work for a program that waits for it: when that program ends, however it does, the work is cancelled as by a signal.
//!
//! Whoever holds the other end of our standard error is who waits. A pipe without a reader says so at once; a parent's death
//! signal would not do, since it is sent when the thread ends that started us.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::signals::{self, Listener};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Cancels the work once nobody reads our standard error any more.
///
/// # Errors
/// If there can be no thread that waits for it.
pub fn watch(progress: &Arc<Progress>) -> Result<()> {
    let progress = Arc::clone(progress);
    let wait = move || {
        let stderr = std::io::stderr();
        loop {
            // No event is asked for: an end without a reader is reported all the same.
            let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::empty())];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => break,
                Err(nix::errno::Errno::EINTR) => {}
                // It cannot be waited for; the work goes on as without --attached.
                Err(_) => return,
            }
        }
        signals::cancel(&progress, Listener::Person);
    };
    std::thread::Builder::new()
        .name("attached".into())
        .spawn(wait)
        .map(drop)
        .map_err(|e| Error::refused("waiting for the end of who reads standard error").because(e))
}
