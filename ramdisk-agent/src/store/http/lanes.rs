//! How many requests may be under way at once.
//!
//! One request uses one connection, so this is the number of connections too. Who needs one waits; who could use more takes them only
//! if nobody waits.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The right to so many requests at once.
#[derive(Debug)]
pub(super) struct Lanes {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: usize,
}

/// Some of the rights, returned when dropped.
#[derive(Debug)]
pub(super) struct Taken<'a> {
    lanes: &'a Lanes,
    count: usize,
}

impl Lanes {
    pub(super) fn new(count: usize) -> Self {
        let state = State { free: count.max(1), waiting: 0 };
        Self { state: Mutex::new(state), freed: Condvar::new() }
    }

    /// Waits for one lane, and takes up to `useful` if they are free and nobody waits for them.
    pub(super) fn take(&self, useful: usize) -> Taken<'_> {
        let mut state = self.lock();
        state.waiting += 1;
        while state.free == 0 {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        let count = if state.waiting == 0 { useful.clamp(1, state.free) } else { 1 };
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
        self.lanes.lock().free += self.count;
        self.lanes.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_one_only_while_nobody_waits() {
        let lanes = Lanes::new(4);
        let all = lanes.take(9);
        assert_eq!(all.count(), 4);
        drop(all);
        let one = lanes.take(0);
        assert_eq!(one.count(), 1);
        assert_eq!(lanes.take(2).count(), 2);
        std::thread::scope(|scope| {
            let rest = lanes.take(9);
            let waiting = scope.spawn(|| lanes.take(9).count());
            while lanes.lock().waiting == 0 {
                std::thread::yield_now();
            }
            drop(rest);
            assert_eq!(waiting.join().unwrap(), 3);
        });
        drop(one);
        assert_eq!(lanes.lock().free, 4);
    }
}
