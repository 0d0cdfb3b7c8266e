//! How many requests may be under way at once.
//!
//! One request uses one connection, so this is the number of connections too. Who needs one waits; who could use more gets their
//! share of them by how many readers there were lately: one that reads alone has all, and where as many read as there are connections each
//! keeps to its own. A reader that splits its read waits for the slowest part while others wait for a connection, and meanwhile nobody
//! asks the server for anything.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The right to so many requests at once.
#[derive(Debug)]
pub(super) struct Lanes {
    state: Mutex<State>,
    freed: Condvar,
}

/// So many takings are "lately", and as many before them.
const RECENT: u32 = 32;

#[derive(Debug)]
struct State {
    all: usize,
    free: usize,
    waiting: usize,
    /// How many hold some or wait for one.
    users: usize,
    /// The most users in the present period and in the one before, and how many takings are left of the present one.
    most: [usize; 2],
    left: u32,
}

impl State {
    /// What one of the users may have of all.
    fn share(&mut self) -> usize {
        if self.left == 0 {
            self.most = [0, self.most[0]];
            self.left = RECENT;
        }
        self.left -= 1;
        self.most[0] = self.most[0].max(self.users);
        (self.all / self.most[0].max(self.most[1])).max(1)
    }
}

/// Some of the rights, returned when dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    lanes: &'a Lanes,
    count: usize,
}

impl Lanes {
    pub(super) fn new(count: usize) -> Self {
        let all = count.max(1);
        let state = State { all, free: all, waiting: 0, users: 0, most: [0; 2], left: RECENT };
        Self { state: Mutex::new(state), freed: Condvar::new() }
    }

    /// Waits for one lane, and takes up to `useful` of its share if they are free and nobody waits for them.
    pub(super) fn take(&self, useful: usize) -> Taken<'_> {
        let mut state = self.lock();
        state.waiting += 1;
        state.users += 1;
        let share = state.share();
        while state.free == 0 {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        let count = if state.waiting == 0 { useful.clamp(1, state.free.min(share)) } else { 1 };
        state.free -= count;
        Taken { lanes: self, count }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken<'_> {
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.lanes.lock();
        state.free += self.count;
        state.users -= 1;
        drop(state);
        self.lanes.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_alone_has_all() {
        let lanes = Lanes::new(4);
        for _ in 0..3 {
            assert_eq!(lanes.take(9).count(), 4);
            assert_eq!(lanes.take(0).count(), 1);
        }
    }

    #[test]
    fn several_have_their_shares_until_they_are_gone_for_a_while() {
        let lanes = Lanes::new(4);
        let first = lanes.take(1);
        let second = lanes.take(9);
        assert_eq!(second.count(), 2);
        drop((first, second));
        for _ in 0..RECENT - 2 {
            assert_eq!(lanes.take(9).count(), 2);
        }
        for _ in 0..RECENT {
            assert_eq!(lanes.take(9).count(), 2);
        }
        assert_eq!(lanes.take(9).count(), 4);
    }

    #[test]
    fn who_waits_gets_one() {
        let lanes = Lanes::new(4);
        std::thread::scope(|scope| {
            let rest = lanes.take(9);
            let waiting = scope.spawn(|| lanes.take(9).count());
            while lanes.lock().waiting == 0 {
                std::thread::yield_now();
            }
            drop(rest);
            assert_eq!(waiting.join().unwrap(), 2);
        });
        let state = lanes.lock();
        assert_eq!((state.free, state.users), (4, 0));
    }
}
